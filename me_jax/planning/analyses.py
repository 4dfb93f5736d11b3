"""What do `find` and `diagnose` hand to the compiler, and what would a plain pass?

Letters: B rows, T time.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.analysis import diagnosis
from me_jax.analysis import diversity
from me_jax.analysis import massive_tokens
from me_jax.analysis import monitor
from me_jax.analysis import residual
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.planning import chunks
from me_jax.planning import programs
from me_jax.training import sharding as sharding_lib


class _Captured(Exception):
  """Carries what a pass was called with."""


def analyses(
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
  *,
  rows: int,
  length: int,
  dtype: str = 'bfloat16',
  attention_chunk: int | None = None,
) -> tuple[programs.Program, ...]:
  """Returns a plain forward pass, that of `find` and that of `diagnose`.

  Args:
    config: of the model.
    mesh: the devices, from `sharding.mesh`.
    rows: of a pass, each one text.
    length: tokens of a row.
    dtype: of parameters and products; the residual stream is float32.
    attention_chunk: queries whose scores exist at a time; None for what
      `chunks` says.

  Raises:
    MeJaxError: the model does not fit the mesh.
  """
  rules = sharding_lib.fit(config, mesh, length=length)
  model = decoder.Decoder(
    config, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype)
  )
  if attention_chunk is None:
    attention_chunk = chunks.attention_chunk(
      config, mesh, rules, rows=rows, length=length
    )
  model = model.clone(attention_chunk=attention_chunk)
  params = programs.placed(
    params_lib.param_shapes(config, dtype),
    lambda shapes: sharding_lib.shardings(config, mesh, rules, params=shapes),
  )
  batch = batch_lib.Batch(
    np.zeros((rows, length), np.int32), np.ones((rows, length), np.int32)
  )
  find = arguments(model, params, batch, None)
  also = functools.partial(
    diagnosis.operands_of, 1, diversity.sample_size(length)
  )
  everything = arguments(model, params, batch, also)

  def program(name: str, function: Any, args: Any) -> programs.Program:
    return programs.Program(
      name=name,
      function=function,
      args=args,
      mesh=mesh,
      rules=rules,
      config=config,
      tokens=rows * length,
    )

  return (
    program('forward', forward, find),
    program('find', residual.measure, find),
    program('diagnose', diagnosis.measure, everything),
  )


def monitored(
  config: config_lib.ModelConfig,
  model: decoder.Decoder,
  params: Any,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules,
  *,
  rows: int = 8,
  length: int = 64,
) -> programs.Program:
  """Returns the look that a run takes at the ME Layer.

  Args:
    config: of the model.
    model: of the run.
    params: what it computes with, shapes with shardings.
    mesh: the devices.
    rules: fitted to the model.
    rows: of `monitor.probes`.
    length: likewise.
  """
  batch = batch_lib.Batch(
    np.zeros((rows, length), np.int32), np.ones((rows, length), np.int32)
  )
  everywhere = jax.NamedSharding(mesh, jax.P())
  args = arguments(model, params, batch, monitor.operands_of)
  return programs.Program(
    name='monitor',
    function=monitor.measure,
    args=(everywhere, *args),
    mesh=mesh,
    rules=rules,
    config=config,
    tokens=rows * length,
  )


def arguments(
  model: decoder.Decoder,
  params: Any,
  batch: batch_lib.Batch,
  operands: massive_tokens.Operands | None,
) -> tuple[Any, ...]:
  """Returns what a pass over a batch is called with, arrays as shapes."""

  def capture(*args: Any) -> Any:
    raise _Captured(args)

  try:
    massive_tokens.look(capture, model, params, batch, 1, operands)
  except _Captured as found:
    model, params, *arrays = found.args[0]
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays
  )
  return model, params, *shapes


@functools.partial(jax.jit, static_argnums=0)
def forward(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  operands: Mapping[str, jax.Array],
) -> jax.Array:
  """Returns the last state: what a pass computes that measures nothing."""
  del operands
  with jax.default_matmul_precision('highest'):
    return model.apply({'params': params}, tokens_BT, segments_BT).resid
