"""What do verbs share that look at prompts? From flags to a found ME Layer.

The model compiles while its weights load.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from typing import Any

from me_jax.cli import session

# Lengths of rows to choose from.
_STEP, _LONGEST = 16, 512
_SAMPLED = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
  """A model that is loaded, prompts that are encoded, and what `find` says.

  Attributes:
    model: the decoder.
    params: its parameters.
    batch: the prompts, packed into rows.
    names: how the tokenizer spells the tokens of the prompts.
    bos_token_id: the tokenizer's.
    report: where the massive activations come from, with full provenance.
  """

  model: Any
  params: Any
  batch: Any
  names: dict[int, str | None]
  bos_token_id: int | None
  report: Any


def read(flags: Any) -> tuple[Any, list[Any]]:
  """Opens what `--model` and `--prompts` name; reads no weights yet.

  Returns:
    The checkpoint and the prompts.

  Raises:
    MeJaxError: one of them is not sound.
  """
  from me_jax.analysis import prompts as prompts_lib
  from me_jax.checkpoints import load

  prompts = (
    prompts_lib.read(flags.prompts) if flags.prompts else prompts_lib.builtin()
  )
  return load.open_checkpoint(flags.model), prompts


def find(
  flags: Any, checkpoint: Any, prompts: list[Any], progress: session.Progress
) -> Running:
  """Loads the model while it compiles, then finds its ME Layer.

  Args:
    flags: with `dtype`, `bos` and `prompts`.
    checkpoint: as `read` returns it.
    prompts: as `read` returns them.
    progress: is told of each step.

  Returns:
    Everything that a further analysis needs.

  Raises:
    MeJaxError: the weights or the prompts are not sound.
  """
  import jax
  import jax.numpy as jnp

  from me_jax.analysis import emergence
  from me_jax.analysis import passes
  from me_jax.analysis import residual
  from me_jax.models import decoder

  session.keep_compiled()
  dtype = jnp.dtype(flags.dtype)
  model = decoder.Decoder(checkpoint.config, dtype=dtype, param_dtype=dtype)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    progress.step('reading prompts', 0, 1)
    batch, names, bos_id = _encode(checkpoint, prompts, flags.bos)
    session.return_freed_memory()
    lowered = residual.measure.lower(
      model,
      checkpoint.param_shapes(flags.dtype),
      *passes.operand_shapes(batch),
    )
    progress.step('reading prompts', 1, 1)
    # Compiling and loading leave Python alone; tracing does not.
    compiling = pool.submit(lowered.compile)
    params = checkpoint.load_params(
      flags.dtype, progress=functools.partial(progress.step, 'loading weights')
    )
    progress.step('compiling', 0, 1)
    compiled = compiling.result()
    session.return_freed_memory()
    progress.step('compiling', 1, 1)
    report = emergence.find_me_layer(
      model,
      params,
      batch,
      bos_token_id=bos_id,
      spell=names.get,
      # The model is part of what was compiled.
      measure=lambda _, *arguments: compiled(*arguments),
      progress=functools.partial(progress.step, 'running the model'),
    )
  return Running(
    model=model,
    params=params,
    batch=batch,
    names=names,
    bos_token_id=bos_id,
    report=dataclasses.replace(
      report,
      provenance=report.provenance
      | _provenance(flags, checkpoint, prompts)
      | {'parameters': sum(leaf.size for leaf in jax.tree.leaves(params))},
    ),
  )


def _provenance(
  flags: Any, checkpoint: Any, prompts: list[Any]
) -> dict[str, Any]:
  text = json.dumps(prompts, ensure_ascii=False)
  return {
    'model': checkpoint.path,
    'prompts': flags.prompts or 'built-in',
    'prompts_sha256': hashlib.sha256(text.encode()).hexdigest(),
    'prompt_count': len(prompts),
    'bos': flags.bos,
  }


def _encode(
  checkpoint: Any, prompts: list[Any], bos: str
) -> tuple[Any, dict[int, str | None], int | None]:
  """Packs the prompts into rows of the length that wastes least.

  Returns:
    The batch, the spelling of its tokens, and BOS: all that is needed of the
    tokenizer, whose memory the weights can have.
  """
  from me_jax.analysis import passes
  from me_jax.checkpoints import encoding
  from me_jax.models import batch as batch_lib

  tokenizer = checkpoint.load_tokenizer()
  ids = encoding.token_ids(tokenizer, checkpoint.config, prompts, bos)
  # Longest first: short ones then fill the gaps.
  ids.sort(key=len, reverse=True)
  shortest = -(-len(ids[0]) // _STEP) * _STEP
  # A sample of many prompts tells the best length as well as all of them.
  some = ids[:: -(-len(ids) // _SAMPLED)]
  length = min(
    range(shortest, max(shortest, _LONGEST) + 1, _STEP),
    key=lambda length: passes.cost(
      batch_lib.make_batch(some, pack=True, length=length)
    ),
  )
  batch = batch_lib.make_batch(ids, pack=True, length=length)
  known = {token for text in ids for token in text}
  names = {token: encoding.spell(tokenizer, token) for token in known}
  return batch, names, tokenizer.bos_token_id
