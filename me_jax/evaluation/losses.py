"""Loss as a task: how well are the right answers predicted?

For models too small to solve a task, and sensitive where accuracy is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import pathlib
from typing import Any

from me_jax import errors
from me_jax.checkpoints import load as load_lib
from me_jax.evaluation import run as run_lib
from me_jax.evaluation import tasks as tasks_lib
from me_jax.mitigation import corpora
from me_jax.mitigation import scoring

METRIC = tasks_lib.Metric(
  name='loss', label='nats per token', better=-1, unit=''
)
_LENGTH = 512  # tokens of a text; longer chats are left out


def run(
  lm: load_lib.LoadedModel,
  who: str,
  corpus: corpora.Corpus,
  out: str,
  *,
  limit: int | None = None,
  progress: Callable[[int, int], Any] | None = None,
) -> dict[int, dict[str, Any]]:
  """Scores the answers of one corpus, unless an earlier run has.

  Args:
    lm: the model, scanned.
    who: names the model's files.
    corpus: whose held-out texts are scored: of chats the last answer, of plain
      texts all tokens.
    out: the folder that was claimed.
    limit: texts, at most.
    progress: called with (rows done, rows in all).

  Returns:
    By number, the `loss` among the `metrics` of each text: nats of each
    predicted token.

  Raises:
    MeJaxError: no text fits.
  """
  path = pathlib.Path(out) / f'loss_{_file_name(corpus.name)}_{who}.jsonl'
  found = run_lib.kept(path)
  if found is not None:
    return found
  texts = corpora.encode(
    lm.tokenizer,
    lm.config,
    corpus.held_out,
    limit or len(corpus.held_out),
    _LENGTH,
  )
  if not texts:
    raise errors.MeJaxError(
      f'{corpus.name} has no text of at most {_LENGTH} tokens to score.'
    )
  laid_out = scoring.lay_out(texts, bos_token_id=lm.tokenizer.bos_token_id)
  loss_BT = scoring.losses(lm.model, lm.params, laid_out, progress)
  rows = []
  for x in range(len(texts)):
    here = laid_out.answer_BT & (laid_out.text_BT == x)
    values = loss_BT[here].astype(float).round(6).tolist()
    rows.append({'item': x, 'metrics': {METRIC.name: values}})
  return run_lib.keep(path, rows)


def sources(folder: str | None) -> Sequence[corpora.Corpus]:
  """Returns the corpora of a folder; of none, the built-in prompts.

  Raises:
    MeJaxError: the folder holds none.
  """
  if folder is None:
    return corpora.builtin()
  return corpora.read(folder, choosing=False)


def _file_name(name: str) -> str:
  return ''.join(c if c.isalnum() else '-' for c in name.lower())
