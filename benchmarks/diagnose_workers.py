"""Workers that measure `diagnose` and `screen`, and the peer in PyTorch.

The peer is what people write: Hugging Face with `output_hidden_states` and
`output_attentions`, reductions afterwards, singular values for the entropies.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

_WINDOW, _SINK, _NEAR = 64, 0.3, 0.9


def _tokens(vocab: int, shape: tuple[int, int]) -> np.ndarray:
  return np.random.default_rng(0).integers(0, vocab, shape).astype(np.int32)


def jax_diagnose(folder: str, shape: str) -> dict[str, float]:
  """Times `diagnose` on texts of random tokens, `8x512` of them."""
  from benchmarks import workers
  import me_jax

  lm = me_jax.load(folder)
  tokens = _tokens(lm.config.vocab_size, workers.shape_of(shape))
  batch = me_jax.Batch(tokens, np.ones_like(tokens))
  seconds = workers.median_seconds(
    lambda: me_jax.diagnose(lm.model, lm.params, batch), least=3
  )
  return {'rate': tokens.size / seconds}


def torch_diagnose(folder: str, shape: str) -> dict[str, float]:
  """Times the same measurements in PyTorch."""
  import torch
  import transformers

  from benchmarks import workers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  ).model.eval()
  tokens = _tokens(model.config.vocab_size, workers.shape_of(shape))
  tokens = torch.tensor(tokens).long()
  times = []
  for _ in range(3):
    start = time.perf_counter()
    with torch.inference_mode():
      _torch_pass(model, tokens)
    times.append(time.perf_counter() - start)
  return {'rate': tokens.numel() / float(np.median(times))}


def _torch_pass(model: Any, tokens: Any) -> list[dict[str, Any]]:
  """Returns what `diagnose` measures, layer by layer."""
  import torch

  output = model(
    tokens, use_cache=False, output_hidden_states=True, output_attentions=True
  )
  time_ = tokens.shape[1]
  queries = torch.arange(time_, 0, -1)
  early = torch.arange(_WINDOW, 0, -1)
  found = []
  states = output.hidden_states
  for i, (layer, probs) in enumerate(zip(model.layers, output.attentions)):
    x, after = states[i], states[i + 1]
    h = layer.input_layernorm(x)
    alpha = probs.sum(2) / queries
    window = probs[:, :, :_WINDOW, :_WINDOW].sum(2) / early
    own = torch.nn.functional.normalize(x[:, 0], dim=-1)
    unit = torch.nn.functional.normalize(x, dim=-1)
    spectra = []
    for tokens_ in (h, h[:, 1:]):
      energy = torch.linalg.svdvals(tokens_) ** 2
      p = energy / energy.sum(-1, keepdim=True)
      entropy = -(p * torch.log(p.clamp_min(1e-30))).sum(-1)
      spectra.append(
        (entropy, entropy.exp(), p[:, 0], 1 / p[:, 0], 1 / (p**2).sum(-1))
      )
    found.append(
      {
        'norm': x.norm(dim=-1),
        'peak': after.abs().amax(-1),
        'median': after.abs().flatten(1).median(dim=1).values,
        'state': after[:, 0],
        'attn_in': h[:, 0],
        'alpha': alpha[:, :, 0].mean(0),
        'largest': (probs[:, :, 1:].argmax(-1) == 0).float().mean(-1).mean(0),
        'window': window.mean(0),
        'rate': (window > _SINK).float().mean(0),
        'secondary': ((unit @ own[..., None]).abs() > _NEAR).sum(),
        'spectra': spectra,
      }
    )
  state = torch.nn.functional.normalize(
    torch.stack([f['state'] for f in found]), dim=-1
  )
  found.append(
    {'inputs': state @ state.mT, 'layers': state[:, 0] @ state[:, 0].mT}
  )
  return found


def diagnose_overhead(folder: str, shape: str) -> list[float]:
  """Returns the time of `diagnose` over a plain forward's, round by round."""
  import jax

  from benchmarks import workers
  import me_jax

  lm = me_jax.load(folder)
  tokens = _tokens(lm.config.vocab_size, workers.shape_of(shape))
  batch = me_jax.Batch(tokens, np.ones_like(tokens))

  @jax.jit
  def plain(params, tokens, segments):
    with jax.default_matmul_precision('highest'):
      return lm.model.apply({'params': params}, tokens, segments).logits

  calls = (
    lambda: jax.block_until_ready(plain(lm.params, *batch)),
    lambda: me_jax.diagnose(lm.model, lm.params, batch),
  )
  times = [[], []]
  for _ in range(9):
    # In turn, so that a drift of the machine meets both.
    for call, spent in zip(calls, times):
      start = time.perf_counter()
      call()
      spent.append(time.perf_counter() - start)
  return (np.array(times[1][1:]) / np.array(times[0][1:])).tolist()


def diagnose_texts(folder: str, count: str) -> int:
  """Diagnoses so many texts of 128 tokens; the caller reads the peak memory."""
  import me_jax

  lm = me_jax.load(folder)
  tokens = _tokens(lm.config.vocab_size, (int(count), 128))
  batch = me_jax.Batch(tokens, np.ones_like(tokens))
  return me_jax.diagnose(lm.model, lm.params, batch).texts


def diagnose_depth(folder: str) -> dict[str, int]:
  """Compares XLA's temporary memory of a pass at 8 and 64 layers."""
  import dataclasses

  import jax

  from me_jax.analysis import diagnosis
  from me_jax.models import decoder
  from me_jax.models import params as params_lib

  config = decoder.config_lib.ModelConfig.from_hf(folder)
  rows, time_ = 1, 512
  shape = lambda *dims, kind=np.int32: jax.ShapeDtypeStruct(dims, kind)  # noqa: E731
  operands = {
    'positions': shape(rows, 3),
    'members': shape(rows, 1, time_, kind=np.bool_),
    'index': shape(rows, time_),
    'length': shape(rows, time_),
    'sample': shape(rows, 1, time_),
  }
  sizes = {}
  for layers in (8, 64):
    deep = dataclasses.replace(config, num_hidden_layers=layers)
    lowered = diagnosis.measure.lower(
      decoder.Decoder(deep),
      params_lib.param_shapes(deep, 'float32'),
      shape(rows, time_),
      shape(rows, time_),
      operands,
    )
    sizes[layers] = lowered.compile().memory_analysis().temp_size_in_bytes
  return {'8 layers': sizes[8], '64 layers': sizes[64]}


def screen(folder: str) -> float:
  """Returns the seconds of screening the weights, compiling included."""
  import me_jax
  from me_jax.analysis import screen as screen_lib

  lm = me_jax.load(folder)
  start = time.perf_counter()
  screen_lib.screen(lm.model, lm.params)
  return time.perf_counter() - start


WORKERS = (
  jax_diagnose,
  torch_diagnose,
  diagnose_overhead,
  diagnose_texts,
  diagnose_depth,
  screen,
)
