"""Loads broken checkpoints one after the other, each within bounds.

`python -m tests.support.fuzz_worker FORM FOLDER SEED COUNT`: FOLDER holds a
good checkpoint, which is overwritten with one corruption after another. Prints
for each its label when it begins, so that a crash has a name, and what became
of it. In a process of its own because of the limits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import signal
import sys
import time
from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.checkpoints import encoding
from me_jax.checkpoints import load
from me_jax.models import config as config_lib
from tests.support import corruptions
from tests.support import plain_reading

# Before our lines: the libraries print as well.
MARK = 'fuzz: '
SECONDS = 2.0
# Of the wall, for what waits and does not work; above it a busy machine.
_WAIT = 20.0
BYTES = 200_000_000
# One line that fits on a screen.
_LONGEST = 1000
_DTYPES = ('float32', 'float32', 'float32', 'bfloat16')


class TooSlow(BaseException):
  """Not an Exception: nothing may catch it on the way."""


def main(form: str, folder: str, seed: str, count: str) -> None:
  """Runs all corruptions of one form."""
  root = pathlib.Path(folder)
  good = {path.name: path.read_bytes() for path in root.iterdir()}
  rng, draws = np.random.default_rng(int(seed)), int(count)
  cases = {
    'safetensors': lambda: corruptions.safetensors(good, rng, draws),
    'config': lambda: corruptions.config(good, rng, draws),
    'index': lambda: corruptions.index(good),
    'gguf': lambda: corruptions.gguf(good, rng, draws),
    'tokenizer': lambda: corruptions.tokenizer(good, rng, draws),
    'gguf_tokenizer': lambda: corruptions.gguf(good, rng, draws),
  }[form]()
  source = root / next(iter(good)) if form.startswith('gguf') else root
  if form.endswith('tokenizer'):
    load_one, difference = _load_tokenizer, _tokenizer_difference
  else:
    load_one, difference = _load, _difference
  assert difference(source, 'float32', *load_one(source, 'float32')) is None
  for number, case in enumerate(cases):
    print(MARK + json.dumps(case.label), flush=True)
    for name, content in case.files.items():
      (root / name).unlink(missing_ok=True)
      if content is not None:
        (root / name).write_bytes(content)
    dtype = _DTYPES[number % len(_DTYPES)]
    outcome = _outcome(source, dtype, load_one, difference)
    print(MARK + json.dumps(outcome), flush=True)
    for name in case.files:
      (root / name).unlink(missing_ok=True)
      if name in good:
        (root / name).write_bytes(good[name])


def _outcome(
  source: pathlib.Path, dtype: str, load_one: Any, difference: Any
) -> dict[str, Any]:
  """Says what becomes of a load: refused, right or a fault."""
  begin = time.process_time()
  try:
    with _limits():
      loaded = load_one(source, dtype)
  except errors.MeJaxError as error:
    text = str(error)
    # Lone surrogates cannot be printed, control characters should not be.
    plain = text.isprintable() and len(text) <= _LONGEST
    outcome = {'outcome': 'refused' if plain else 'fault', 'why': text}
  except BaseException as error:
    return {'outcome': 'fault', 'why': f'{type(error).__name__}: {error}'}
  else:
    try:
      wrong = difference(source, dtype, *loaded)
    except Exception as error:
      wrong = f'others refuse it: {type(error).__name__}: {error}'
    outcome = {'outcome': 'right' if wrong is None else 'fault', 'why': wrong}
  outcome['why'] = ascii(outcome['why'])
  return outcome | {'seconds': time.process_time() - begin}


def _load(
  source: pathlib.Path, dtype: str
) -> tuple[config_lib.ModelConfig, dict[str, np.ndarray]]:
  checkpoint = load.open_checkpoint(source)
  params = checkpoint.load_params(dtype)
  found = jax.tree_util.tree_flatten_with_path(params)[0]
  return checkpoint.config, {
    '/'.join(key.key for key in path): np.asarray(leaf) for path, leaf in found
  }


def _difference(
  source: pathlib.Path,
  dtype: str,
  config: config_lib.ModelConfig,
  leaves: dict[str, np.ndarray],
) -> str | None:
  """Says where a load differs from what the bytes say, to the bit."""
  read = plain_reading.folder if source.is_dir() else plain_reading.gguf
  said, expected = read(source)
  ours = {name: getattr(config, name) for name in said if name != 'rope'}
  ours['eos_token_ids'] = list(config.eos_token_ids)
  ours['rope'] = [config.rope.kind, config.rope.theta]
  for name, value in said.items():
    if ours[name] != value:
      return f'{name} is {ours[name]!r} and should be {value!r}'
  if leaves.keys() != expected.keys():
    return f'parameters {leaves.keys() ^ expected.keys()}'
  for path, value in expected.items():
    with np.errstate(over='ignore'):
      value = value.astype(jax.numpy.dtype(dtype))
    same = leaves[path].shape == value.shape
    if not same or leaves[path].tobytes() != value.tobytes():
      return f'{path} differs'
    if not np.isfinite(value.astype(np.float32)).all():
      return f'{path} is not finite'
  return None


def _load_tokenizer(source: pathlib.Path, _: str) -> tuple[Any, list[int]]:
  checkpoint = load.open_checkpoint(source)
  tokenizer = checkpoint.load_tokenizer()
  if tokenizer is None:
    return None, []
  chat = [{'role': 'user', 'content': plain_reading.TEXT}]
  config = dataclasses.replace(checkpoint.config, max_position_embeddings=9999)
  for text in (chat, plain_reading.TEXT):
    ids = encoding.token_ids(tokenizer, config, [text], 'never')[0]
  return tokenizer, ids


def _tokenizer_difference(
  source: pathlib.Path, _: str, tokenizer: Any, ids: list[int]
) -> str | None:
  """Says where a tokenizer differs from what the bytes say."""
  if source.is_dir():
    expected = plain_reading.folder_ids(source)
    same = expected is None or ids == expected
    return None if same else f'ids {ids} and not {expected}'
  if tokenizer is None:
    return None
  tokens = plain_reading.gguf_tokens(source)
  found = tokenizer.convert_ids_to_tokens(range(len(tokens)))
  return None if found == tokens else f'tokens {found} and not {tokens}'


@contextlib.contextmanager
def _limits():
  """Stops what takes more time or memory than a small file may."""
  with open('/proc/self/statm') as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
  hard = resource.getrlimit(resource.RLIMIT_AS)[1]
  resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, hard))
  signal.setitimer(signal.ITIMER_PROF, SECONDS)
  signal.setitimer(signal.ITIMER_REAL, _WAIT)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _raise(*_: Any) -> None:
  raise TooSlow(f'more than {SECONDS} s of work or {_WAIT} s of waiting')


if __name__ == '__main__':
  for kind in (signal.SIGPROF, signal.SIGALRM):
    signal.signal(kind, _raise)
  main(*sys.argv[1:])
  sys.stdout.flush()
  os._exit(0)
