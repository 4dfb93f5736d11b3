"""`python -m study.quantise`: from what `mitigate` wrote to a report."""

from __future__ import annotations

import json

import pytest

import me_jax
from me_jax import errors
from me_jax.mitigation import wemask
from study import quantise
from tests.support import folder as folder_lib
from tests.support import planted


@pytest.fixture(scope='module', name='folder')
def _folder(tmp_path_factory):
  model, params = planted.build(planted.VERDICTS['single'])
  return folder_lib.write(model, params, tmp_path_factory.mktemp('planted'))


def _report(folder, out, *argv):
  quantise.main(
    [
      f'--model={folder}', '--texts=2', '--length=32', f'--out={out}', *argv,
    ]
  )  # fmt: skip
  report = json.loads((out / 'report.json').read_text())
  return report['sections']['quantisation']['numbers']


def test_rounds_what_mitigate_wrote(folder, tmp_path):
  lm = me_jax.load(folder)
  masked = wemask.wemask(lm.model, lm.params, planted.report(), rate=0.5)
  relaxed = tmp_path / 'relaxed'
  me_jax.save(lm._replace(params=masked), relaxed / 'orbax')
  found = _report(folder, tmp_path / 'out', f'--relaxed={relaxed}')
  # There is no baked one.
  assert found['variants'] == ['stock', 'masked']
  corpus, about = next(iter(found['corpora'].items()))
  assert about['texts'] == 2 and found['me_layer'] == 4
  exact = {name: by['exact'] for name, by in found['loss'][corpus].items()}
  assert exact['masked'] != exact['stock']


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--relaxed=nowhere'], 'holds none of orbax, baked'),
    (['--data=nowhere'], 'nowhere'),
    (['--txts=3'], "did you mean 'texts'"),
  ],
)
def test_a_mistake_is_told(argv, message, folder, tmp_path):
  with pytest.raises(errors.MeJaxError, match=message):
    quantise.main([f'--model={folder}', f'--out={tmp_path / "o"}', *argv])
