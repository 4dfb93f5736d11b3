"""`me-jax generate`, from flags to answers, and bad input."""

from __future__ import annotations

import dataclasses
import io
import json

import jax
import pytest

from me_jax import cli
from me_jax.checkpoints import load
from me_jax.mitigation import wemask
from tests.support import folder as folder_lib
from tests.support import planted

SHORT = '--max_new_tokens=9'


@pytest.fixture(scope='module', name='model')
def _model(tmp_path_factory):
  model, params = planted.build(planted.VERDICTS['single'])
  return folder_lib.write(model, params, tmp_path_factory.mktemp('planted'))


@pytest.fixture(scope='module', name='chatty')
def _chatty(tmp_path_factory):
  """A model with a chat template that writes each message's first letters."""
  model, params = planted.build([], bos_channel=2.0)
  params = jax.tree.map(lambda x: x * 8 if x.ndim == 3 else x, params)
  path = folder_lib.write(model, params, tmp_path_factory.mktemp('chatty'))
  file = path / 'tokenizer_config.json'
  template = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} {% endfor %}"
    '{% if add_generation_prompt %}a {% endif %}'
  )
  file.write_text(
    json.dumps(json.loads(file.read_text()) | {'chat_template': template})
  )
  return path


def run(capsys, *argv):
  assert cli.main(['generate', *argv]) == 0
  return capsys.readouterr()


def test_one_prompt_is_gone_on_with(model, capsys):
  said = run(capsys, f'--model={model}', '--prompt=a cat', SHORT)
  assert said.out.endswith('\n') and len(said.out.split()) > 3
  again = run(capsys, f'--model={model}', '--prompt=a cat', SHORT)
  assert again.out == said.out


def test_samples_follow_the_seed(chatty, capsys):
  flags = [f'--model={chatty}', '--prompt=a', SHORT, '--temperature=2']
  one, same, other = (
    run(capsys, *flags, f'--seed={seed}').out for seed in (1, 1, 2)
  )
  assert one == same != other


def test_a_chat_remembers_what_was_said(chatty, capsys, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('hello\nagain\n\nnever\n'))
  chat = run(capsys, f'--model={chatty}', SHORT).out.splitlines()
  assert len(chat) == 2
  monkeypatch.setattr('sys.stdin', io.StringIO('again\n'))
  alone = run(capsys, f'--model={chatty}', SHORT).out.splitlines()
  assert alone[0] != chat[1]


def test_without_input_there_is_an_example(chatty, capsys, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO(''))
  said = run(capsys, f'--model={chatty}', SHORT)
  assert 'an example' in said.err and said.out.strip()


def test_a_stop_string_is_not_shown(chatty, capsys):
  flags = [f'--model={chatty}', '--prompt=a', '--max_new_tokens=40']
  plain = run(capsys, *flags).out.strip()
  stop = plain[20:22]
  cut = run(capsys, *flags, f'--stop={stop}').out
  assert cut.rstrip('\n') == plain[: plain.index(stop)]


def test_two_models_side_by_side(model, tmp_path, capsys):
  import me_jax

  lm = me_jax.load(model)
  params = wemask.wemask(lm.model, lm.params, planted.report(), rate=1.0)
  me_jax.save(lm._replace(params=params), tmp_path / 'masked')
  for mitigation in (tmp_path / 'masked', 'wemask'):
    said = run(
      capsys, f'--model={model}', '--prompt=a cat', SHORT,
      f'--mitigation={mitigation}',
    )  # fmt: skip
    assert 'stock' in said.out and 'mitigated' in said.out


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--chat=always'], 'no chat template'),
    (['--system=x'], '--system needs a chat template'),
    (['--max_new_tokens=256'], 'the context is 256'),
    (['--max_new_tokens=255', '--prompt=a cat'], 'exceed the context of 256'),
    (['--temperature=-1'], 'temperature is -1'),
    (['--mitigation=nowhere'], '--mitigation: nowhere'),
    (['--model=nowhere'], 'nowhere'),
    (['--max_new_tokens=0'], 'max_new_tokens'),
  ],
)
def test_bad_input_gets_one_line(model, capsys, flags, message):
  if not any(flag.startswith('--model') for flag in flags):
    flags = [*flags, f'--model={model}']
  assert cli.main(['generate', '--prompt=a', *flags]) == 2
  err = capsys.readouterr().err.splitlines()
  assert message in err[-1]


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--chat=always', 'no chat template'),
    ('--system=x', '--system needs a chat template'),
    ('--system=x --chat=never', '--system has no place with --chat=never'),
    ('--max_new_tokens=300', 'the context is 256'),
    ('--mitigation={other}', 'another configuration than --model'),
  ],
)
def test_weights_are_not_read_for_flags_that_cannot_be(
  model, tmp_path, capsys, monkeypatch, flag, message
):
  stock, params = planted.build(planted.VERDICTS['single'])
  config = dataclasses.replace(stock.config, rms_norm_eps=1e-3)
  other = folder_lib.write(stock.clone(config=config), params, tmp_path)

  def read(*_):
    raise AssertionError('weights were read')

  monkeypatch.setattr(load.Checkpoint, 'load_params', read)
  flag = flag.format(other=other)
  argv = ['generate', '--prompt=a', *flag.split(), f'--model={model}']
  assert cli.main(argv) == 2
  assert message in capsys.readouterr().err
