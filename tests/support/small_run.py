"""Runs of training that take a second: a planted model and a few chats.

Also a configuration for the command line, where `--data` is the folder that
`write` has filled:

  me-jax train --config=tests/support/small_run.py --data=FOLDER --out=OUT
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from me_jax.checkpoints import export
from me_jax.checkpoints import load
from me_jax.mitigation import gates
from me_jax.models import params as params_lib
from me_jax.training import data as data_lib
from me_jax.training import loop
from me_jax.training import lora
from me_jax.training import metrics
from me_jax.training import prepare
from me_jax.training import rollouts
from me_jax.training import settings
from me_jax.training import trained
from tests.support import chats
from tests.support import planted

GATES = gates.Gates(layers=(5, 6, 7))
LORA = lora.Lora(rank=2, targets=('q_proj', 'down_proj'))
# What no two runs have in common.
CLOCK = ('seconds', 'tokens_per_s', 'mfu')
_WORDS = 'one two three four five six seven eight'.split()


def write(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
  """Writes a model that has massive activations, and data for each method."""
  model, params = planted.build(planted.VERDICTS['single'])
  lm = load.LoadedModel(model, params, chats.tokenizer(), model.config)
  export.export(lm, folder / 'model')
  # Answers are drawn by layers that are unrolled, which are slow to compile.
  model, params = params_lib.first_layers(model, params, 2)
  lm = load.LoadedModel(model, params, chats.tokenizer(), model.config)
  export.export(lm, folder / 'short')
  random = np.random.default_rng(seed)

  def some(count: int) -> str:
    return ' '.join(random.choice(_WORDS, count))

  asked = [(some(2), some(3)) for _ in range(24)]
  # A token that one row alone has.
  asked[0] = ('one', 'two 7')
  chats.write(
    folder / 'chats.jsonl', [{'messages': chats.chat(*one)} for one in asked]
  )
  chats.write(
    folder / 'pairs.jsonl',
    [{'prompt': a, 'chosen': b, 'rejected': some(2)} for a, b in asked],
  )
  chats.write(folder / 'prompts.jsonl', [{'prompt': a} for a, _ in asked])
  chats.write(
    folder / 'others.jsonl', [{'text': 'zzyy ' * int(n)} for n in range(3, 9)]
  )
  return folder


def config(data: str | None) -> settings.Run:
  """Returns a run of supervised training, of gates and adapters."""
  return run(pathlib.Path(data))


def run(folder: pathlib.Path, rows: str = 'chats', **fields: Any):
  """Returns a run with everything that may go wrong when it is resumed.

  Args:
    folder: that `write` has filled.
    rows: the file that is learnt from.
    **fields: of the run that differ.
  """

  def source(name: str, at: tuple[int | None, int | None] | None = None):
    return data_lib.Source(data=str(folder / f'{name}.jsonl'), rows=at)

  held = settings.HeldOut
  given: dict[str, Any] = {
    'model': str(folder / 'model'),
    'data': settings.Data(
      mix=data_lib.Mix(sources=(source(rows, (None, -8)),)), length=64, batch=4
    ),
    'train': trained.Trained(parts=('gates', 'lora'), gates=GATES, lora=LORA),
    'optim': settings.Optimizer(lr=0.02, eps=1e-3, weight_decay=0.01),
    'steps': 8,
    'held_out': (
      held(name='chats', source=source('chats', (-8, None))),
      held(name='others', source=source('others'), on_task=False, report=True),
    ),
    'evaluation': settings.Evaluation(every=4, length=64),
    'monitor_every': 4,
    'checkpoint': settings.Checkpoint(every=2),
    'compute': settings.Compute(vocabulary_chunk=64),
    'mesh': settings.Mesh(),
  }
  return settings.Run(**given | fields)


def early_letters(answer: str, row: Any) -> float:
  """Is a reward: how many letters are of the alphabet's first half."""
  del row
  return sum(letter in 'abcdefghijklm' for letter in answer) / 8


def sampled(
  folder: pathlib.Path, updates: int = 2, kl: float = 0.04, **fields: Any
) -> settings.Run:
  """Returns a run that draws short answers, each of which serves some steps."""
  sampling = rollouts.Settings(
    answers=2, max_new_tokens=8, rewards=((early_letters, 1.0),)
  )
  made = run(
    folder,
    'prompts',
    model=str(folder / 'short'),
    method=settings.Grpo(sampling=sampling, updates=updates, kl=kl),
    train=trained.Trained(
      parts=('gates', 'lora'), gates=gates.Gates(layers=(1,)), lora=LORA
    ),
    held_out=(),
    monitor_every=0,
    **fields,
  )
  data = dataclasses.replace(made.data, length=24, batch=2)
  return dataclasses.replace(made, data=data)


def train(
  run: settings.Run, out: str | os.PathLike[str], **listeners: Any
) -> loop.Result:
  """Plans, places and trains."""
  plan = prepare.plan(run)
  return loop.train(plan, prepare.place(plan), out, **listeners)


def numbers(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the lines of a run, but for when they were written."""
  return [
    {name: value for name, value in line.items() if name not in CLOCK}
    for line in metrics.read(out)
    if line['kind'] != 'resumed'
  ]


def flat(tree: Any) -> dict[str, np.ndarray]:
  """Returns leaves by path."""
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def assert_same(one: Any, other: Any) -> None:
  """Raises where two trees are not equal to the bit."""
  some, others = flat(one), flat(other)
  assert some.keys() == others.keys()
  for name, value in some.items():
    assert value.tobytes() == others[name].tobytes(), name
