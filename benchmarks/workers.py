"""Measurements of one side, each in a process of its own.

`python -m benchmarks.workers NAME [ARGUMENTS]` prints one JSON value. The two
sides never share a process: threads that spin while they wait would slow the
other side down.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

# Texts and tokens of each; the last is the smallest.
SHAPES = ('8x256', '1x1024', '1x16')


def median_seconds(
  call: Callable[[], Any], seconds: float = 12.0, least: int = 5
) -> float:
  """Returns the median time of a call, over as many as fit, or `least`."""
  call()
  call()
  times = []
  while len(times) < least or (sum(times) < seconds and len(times) < 100):
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return float(np.median(times))


def shape_of(text: str) -> tuple[int, int]:
  """Returns texts and tokens of `8x256`."""
  rows, tokens = text.split('x')
  return int(rows), int(tokens)


def jax_imports() -> bool:
  """Imports what loads a model; the caller reads the time."""
  import me_jax

  return callable(me_jax.load)


def torch_imports() -> bool:
  """Imports what loads the same model in PyTorch."""
  import transformers

  return callable(transformers.LlamaForCausalLM.from_pretrained)


def model_folder(folder: str) -> None:
  """Writes the default model as safetensors, which both sides then load."""
  from benchmarks import model_folder

  model_folder.write(pathlib.Path(folder))


def jax_forward(folder: str, *shapes: str) -> dict[str, float]:
  """Times the forward pass with `find`'s statistics, as `find` runs it."""
  import jax

  import me_jax
  from me_jax.analysis import residual

  lm = me_jax.load(folder)
  rates = {}
  for shape in shapes:
    arguments = _jax_arguments(lm.config.vocab_size, shape_of(shape))

    def call(arguments=arguments):
      found = residual.measure(lm.model, lm.params, *arguments)
      jax.block_until_ready(found)

    rates[shape] = arguments[0].size / median_seconds(call)
  return rates


def torch_forward(folder: str, *shapes: str) -> dict[str, float]:
  """Times the forward pass of Hugging Face with hooks that measure the same."""
  import torch
  import transformers

  from benchmarks import torch_peer

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).model.eval()
  hooks = torch_peer.Hooks(model)
  rates = {}
  for shape in shapes:
    count, length = shape_of(shape)
    tokens = torch.tensor(_tokens(model.config.vocab_size, (count, length)))
    tokens = tokens.long()
    mask = torch.ones_like(tokens)
    positions = torch.tensor([[0, length // 2]] * count)

    def call(tokens=tokens, mask=mask, positions=positions):
      with torch.inference_mode():
        hooks.prepare(mask, positions)
        model(tokens, use_cache=False)

    rates[shape] = tokens.numel() / median_seconds(call)
  return rates


def overhead(folder: str, *shapes: str) -> dict[str, Any]:
  """Compares a forward pass with and without `find`'s statistics."""
  import jax

  import me_jax
  from me_jax.analysis import residual

  lm = me_jax.load(folder)

  def plain(params, tokens, segments, operands):
    del operands
    with jax.default_matmul_precision('highest'):
      return lm.model.apply({'params': params}, tokens, segments).logits

  def observed(*arguments):
    output, seen = residual.observe(lm.model, *arguments)
    return output.logits, seen

  result = {}
  for shape in shapes:
    operands = _jax_arguments(lm.config.vocab_size, shape_of(shape))
    arguments = (lm.params, *operands)
    calls = [jax.jit(f).lower(*arguments).compile() for f in (plain, observed)]
    costs = [call.cost_analysis() for call in calls]
    times = [[], []]
    for _ in range(8 if shape == SHAPES[0] else 16):
      # In turn, so that a drift of the machine meets both.
      for call, spent in zip(calls, times):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        spent.append(time.perf_counter() - start)
    ratios = np.array(times[1][1:]) / np.array(times[0][1:])
    result[shape] = {
      'time': ratios.tolist(),
      'flops': [costs[1]['flops'], costs[0]['flops']],
      'bytes': [costs[1]['bytes accessed'], costs[0]['bytes accessed']],
    }
  return result


def depth(folder: str) -> dict[str, Any]:
  """Compares XLA's temporary memory of the analysis at 8 and 64 layers."""
  import dataclasses

  import jax

  from me_jax.analysis import residual
  from me_jax.models import decoder
  from me_jax.models import params as params_lib

  config = decoder.config_lib.ModelConfig.from_hf(folder)
  arguments = _jax_arguments(config.vocab_size, shape_of(SHAPES[0]))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments
  )
  sizes = {}
  for layers in (8, 64):
    deep = dataclasses.replace(config, num_hidden_layers=layers)
    lowered = residual.measure.lower(
      decoder.Decoder(deep), params_lib.param_shapes(deep, 'float32'), *shapes
    )
    sizes[layers] = lowered.compile().memory_analysis().temp_size_in_bytes
  return {'8 layers': sizes[8], '64 layers': sizes[64]}


def _tokens(vocab: int, shape: tuple[int, int]) -> np.ndarray:
  return np.random.default_rng(0).integers(0, vocab, shape).astype(np.int32)


def _jax_arguments(vocab: int, shape: tuple[int, int]) -> tuple[Any, ...]:
  positions = np.tile([[0, shape[1] // 2]], (shape[0], 1)).astype(np.int32)
  tokens = _tokens(vocab, shape)
  members = np.ones((shape[0], 1, shape[1]), bool)
  operands = {'positions': positions, 'members': members}
  return tokens, np.ones_like(tokens), operands


def every() -> dict[str, Callable[..., Any]]:
  """Returns all workers by name."""
  from benchmarks import diagnose_workers
  from benchmarks import generate_workers
  from benchmarks import load_workers
  from benchmarks import mitigate_workers
  from benchmarks import speed
  from benchmarks import train_workers

  workers = (
    jax_imports, torch_imports, model_folder, jax_forward, torch_forward,
    overhead, depth,
    *load_workers.WORKERS, *diagnose_workers.WORKERS,
    *mitigate_workers.WORKERS, *generate_workers.WORKERS,
    *train_workers.WORKERS, *speed.WORKERS,
  )  # fmt: skip
  return {worker.__name__: worker for worker in workers}


if __name__ == '__main__':
  print(json.dumps(every()[sys.argv[1]](*sys.argv[2:])))
