"""Measurements of loading, each in a process of its own; see `workers`.

Safetensors: the parameters must be in memory of this process, every page of
them. Imports, and the model to be filled, come before the clock starts.
"""

from __future__ import annotations

import mmap
import os
import pathlib
import time
from typing import Any

# Twice the default model and some.
_RECYCLED = 1_300_000_000


def jax_safetensors(folder: str) -> dict[str, float]:
  """Times loading a folder's parameters; peak memory over their size."""
  import jax
  import numpy as np

  from me_jax.checkpoints import load

  load.open_checkpoint(folder)
  jax.block_until_ready(jax.device_put(np.ones(3)))
  _recycle_memory()
  before = _resident('VmRSS')
  start = time.perf_counter()
  params = load.open_checkpoint(folder).load_params()
  leaves = jax.block_until_ready(jax.tree.leaves(params))
  for leaf in leaves:
    np.asarray(leaf).reshape(-1)[::1024].sum()
  seconds = time.perf_counter() - start
  size = sum(leaf.nbytes for leaf in leaves)
  return {'seconds': seconds, 'peak': (_resident('VmHWM') - before) / size}


def torch_safetensors(
  folder: str, how: str, threads: str = ''
) -> dict[str, float]:
  """Times the same with the `safetensors` package and `load_state_dict`.

  Args:
    folder: as for `jax_safetensors`.
    how: `copy` fills a model that exists, as by default; `assign` lets the
      model point into the mapped file.
    threads: of torch; by default as many as it takes.
  """
  import safetensors.torch
  import torch
  import transformers

  torch.set_grad_enabled(False)
  if threads:
    torch.set_num_threads(int(threads))
  config = transformers.AutoConfig.from_pretrained(folder)
  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(
      config, dtype=torch.float32
    )
  if how == 'copy':
    model.to_empty(device='cpu')
    model.tie_weights()
  # Starts torch's threads.
  torch.ones(1000, 1000).add(1)
  _recycle_memory()
  start = time.perf_counter()
  state = safetensors.torch.load_file(f'{folder}/model.safetensors')
  model.load_state_dict(state, strict=False, assign=how == 'assign')
  model.tie_weights()
  for parameter in model.parameters():
    parameter.view(-1)[::1024].sum()
  return {'seconds': time.perf_counter() - start}


def kquant_file(path: str) -> None:
  """Writes a GGUF file in K-quants."""
  from benchmarks import kquant_file

  kquant_file.write(pathlib.Path(path))


def jax_gguf(source: str = 'smollm2') -> float:
  """Times loading a GGUF file, the default model's, tokenizer included."""
  import me_jax
  from me_jax.checkpoints import load

  load.open_checkpoint(source)
  _recycle_memory()
  start = time.perf_counter()
  import jax

  jax.block_until_ready(me_jax.load(source).params)
  return time.perf_counter() - start


def torch_gguf(source: str = 'smollm2') -> float:
  """Times the same with transformers' loader."""
  import torch
  import transformers

  from me_jax.checkpoints import locate

  folder, name = os.path.split(locate.locate(source))
  _recycle_memory()
  start = time.perf_counter()
  transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
  transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32
  )
  return time.perf_counter() - start


def _recycle_memory() -> None:
  """Takes memory and gives it back, so that the next to take it is quick.

  The first process to touch a page of a virtual machine may wait for the host,
  ten times longer than for the page.
  """
  with mmap.mmap(
    -1, _RECYCLED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
  ) as taken:
    # Buffers of 100 MB come in huge pages, which are not made of small ones.
    taken.madvise(mmap.MADV_HUGEPAGE)
    for page in range(0, _RECYCLED, mmap.PAGESIZE):
      taken[page] = 1
  # The peak counts from here.
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')


def _resident(key: str) -> int:
  """Returns a line of this process's memory in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split(f'{key}:')[1].split()[0]) * 1024


WORKERS: tuple[Any, ...] = (
  jax_safetensors, torch_safetensors, kquant_file, jax_gguf, torch_gguf,
)  # fmt: skip
