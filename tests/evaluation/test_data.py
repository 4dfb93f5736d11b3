"""Rows are read, and a broken one is named."""

from __future__ import annotations

import json

import pytest

import me_jax
from me_jax.evaluation import data


def put(folder, name, text):
  path = folder / data.SOURCES[name].file
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding='utf-8')


@pytest.mark.parametrize('name', data.SOURCES)
def test_the_samples_are_sound(name):
  rows = data.rows(name, data.samples())
  assert 2 <= len(rows) <= 10


def test_examples_before_a_question():
  assert data.shots('mmlu', data.samples())
  assert data.shots('gsm8k', data.samples()) == []


def test_csv_and_jsonl(tmp_path):
  put(tmp_path, 'xstest', 'id,prompt,label\n1,"a, ""b""\nc",safe\n')
  assert data.rows('xstest', str(tmp_path))[0]['prompt'] == 'a, "b"\nc'
  put(tmp_path, 'gsm8k', '{"question": "q", "answer": "#### 1", "more": 1}\n\n')
  assert data.rows('gsm8k', str(tmp_path))[0]['more'] == 1


ROW = {'subject': 's', 'question': 'q', 'choices': ['a', 'b'], 'answer': 1}


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('gsm8k', '', 'is empty'),
    ('gsm8k', '{"question": "q", "answer": "a"}\n{', 'row 2 is no JSON'),
    ('gsm8k', '{"question": "q"}', "row 1 lacks 'answer'"),
    ('gsm8k', '[1]', 'row 1 is no object'),
    ('gsm8k', '{"question": 3, "answer": "a"}', "'question' is of type int"),
    ('mmlu', json.dumps(ROW | {'answer': 2}), 'none of the choices'),
    ('xstest', 'id,prompt\n1,hello\n', "row 1 lacks 'label'"),
  ],
)
def test_broken_rows_are_named(tmp_path, name, text, message):
  put(tmp_path, name, text)
  with pytest.raises(me_jax.MeJaxError, match=message):
    data.rows(name, str(tmp_path))


def test_a_missing_file_says_where_it_comes_from(tmp_path):
  with pytest.raises(me_jax.MeJaxError, match='github.com/paul-rottger/xstest'):
    data.rows('xstest', str(tmp_path))
