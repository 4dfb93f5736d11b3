"""Does the decoder compute what Hugging Face's models compute?

`python -m tests.support.parity` (or `make parity`) measures every case and
prints the table; the tests hold each case to its bound. A case is a tiny
random model of one family, built and run by transformers on torch, saved, and
loaded by me_jax. Its text is longer than its windows and than the context
that scaled rotary embeddings were first trained for.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import me_jax
from me_jax.models import sites
from tests.support import tiny

TIME = 640  # rotary faults do not show on short texts
_LLAMA3 = dict(
  rope_type='llama3', rope_theta=5e5, factor=8.0, low_freq_factor=1.0,
  high_freq_factor=4.0, original_max_position_embeddings=64,
)  # fmt: skip
_YARN = dict(
  rope_type='yarn', rope_theta=1e4, factor=8.0,
  original_max_position_embeddings=128,
)  # fmt: skip
_LONG = dict(
  rope_type='longrope',
  rope_theta=1e4,
  short_factor=[1.0, 1.1, 1.3, 1.6],
  long_factor=[1.0, 1.5, 2.5, 4.0],
)
_LINEAR = dict(rope_type='linear', rope_theta=1e4, factor=4.0)
_DEFAULT = dict(rope_type='default', rope_theta=1e4)
_HALF_ROTATED = dict(_DEFAULT, partial_rotary_factor=0.75)

# Name: family and the fields that differ from `tiny.FAMILIES`.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
  'llama, K=2 G=3': ('llama', {}),
  'llama, MHA': ('llama', dict(num_key_value_heads=6)),
  'llama, MQA, tied': (
    'llama',
    dict(num_key_value_heads=1, tie_word_embeddings=True),
  ),
  'llama, biases': ('llama', dict(attention_bias=True, mlp_bias=True)),
  'llama, head_dim 20': ('llama', dict(head_dim=20)),
  'llama, linear': ('llama', dict(rope_parameters=_LINEAR)),
  'llama, dynamic': (
    'llama',
    dict(
      rope_parameters=dict(_LINEAR, rope_type='dynamic'),
      max_position_embeddings=256,
    ),
  ),
  'llama, llama3': ('llama', dict(rope_parameters=_LLAMA3, head_dim=32)),
  'llama, yarn': ('llama', dict(rope_parameters=_YARN, head_dim=32)),
  'llama, yarn, all fields': (
    'llama',
    dict(
      rope_parameters=dict(
        _YARN, beta_fast=16.0, beta_slow=2.0, mscale=1.2, mscale_all_dim=0.7,
        truncate=False,
      ),
      head_dim=32,
    ),
  ),
  'llama, longrope': (
    'llama',
    dict(rope_parameters=dict(_LONG, original_max_position_embeddings=256)),
  ),
  'smollm3': ('smollm3', {}),
  'smollm3, tied, biases, window': (
    'smollm3',
    dict(
      tie_word_embeddings=True, attention_bias=True, use_sliding_window=True,
      sliding_window=40,
    ),
  ),
  'mistral, window': ('mistral', {}),
  'mistral, no window, head_dim 20': (
    'mistral',
    dict(sliding_window=None, head_dim=20),
  ),
  'qwen2, late windows': ('qwen2', {}),
  'qwen2, layer_types, MQA, tied': (
    'qwen2',
    dict(
      layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
      num_key_value_heads=1, tie_word_embeddings=True,
    ),
  ),
  'qwen2, no windows, yarn': (
    'qwen2',
    dict(
      use_sliding_window=False,
      rope_parameters=dict(_YARN, attention_factor=0.9),
    ),
  ),
  'qwen3': ('qwen3', {}),
  'qwen3, bias, windows, MHA': (
    'qwen3',
    dict(
      attention_bias=True, num_key_value_heads=6, use_sliding_window=True,
      sliding_window=40, max_window_layers=0,
    ),
  ),
  'phi3': ('phi3', {}),
  'phi3, window, MHA, tied': (
    'phi3',
    dict(sliding_window=40, num_key_value_heads=6, tie_word_embeddings=True),
  ),
  'phi3, longrope, short text': (
    'phi3',
    dict(rope_parameters=_LONG, original_max_position_embeddings=700),
  ),
  'phi3, longrope, long text': (
    'phi3',
    dict(rope_parameters=_LONG, original_max_position_embeddings=256),
  ),
  'phi3, partial rotary, head_dim 15': (
    'phi3',
    dict(hidden_size=90, rope_parameters=_HALF_ROTATED),
  ),
  'gemma2': ('gemma2', {}),
  'gemma2, no caps, MQA, tied': (
    'gemma2',
    dict(
      attn_logit_softcapping=None, final_logit_softcapping=None,
      num_key_value_heads=1, tie_word_embeddings=True,
    ),
  ),
  'gemma2, bias, layer_types': (
    'gemma2',
    dict(
      attention_bias=True,
      layer_types=['full_attention', 'full_attention', 'sliding_attention'],
    ),
  ),
  'gemma3': ('gemma3_text', {}),
  'gemma3, linear, tied, MHA': (
    'gemma3_text',
    dict(
      rope_parameters={
        'full_attention': dict(_LINEAR, rope_theta=1e6, factor=8.0),
        'sliding_attention': _DEFAULT,
      },
      num_key_value_heads=6, tie_word_embeddings=True,
    ),
  ),
  'olmo2': ('olmo2', {}),
  'olmo2, bias, MHA, tied': (
    'olmo2',
    dict(
      attention_bias=True, num_key_value_heads=6, tie_word_embeddings=True,
    ),
  ),
}  # fmt: skip


def hf_states(model: Any, tokens_BT: np.ndarray) -> tuple[np.ndarray, ...]:
  """Returns the residual after each layer `[L, B, T, D]` and the logits."""
  import torch

  states = []
  with contextlib.ExitStack() as stack, torch.no_grad():
    for layer in model.model.layers:
      handle = layer.register_forward_hook(
        lambda _module, _inputs, output: states.append(output)
      )
      stack.callback(handle.remove)
    logits = model(torch.tensor(tokens_BT)).logits
  states = [s[0] if isinstance(s, tuple) else s for s in states]
  return np.stack([s.float().numpy() for s in states]), logits.float().numpy()


def our_states(
  lm: me_jax.LoadedModel, tokens_BT: np.ndarray
) -> tuple[np.ndarray, ...]:
  """Returns the same of a loaded model."""
  everything = sites.Sites(observers=(sites.Capture('resid_post', 'all'),))
  apply = functools.partial(
    lm.model.clone(sites=everything).apply, mutable='intermediates'
  )
  layers = jnp.arange(lm.config.num_hidden_layers)
  with jax.default_matmul_precision('highest'):
    output, state = jax.jit(apply)(
      {'params': lm.params}, tokens_BT, None, {'all': layers}
    )
  return np.asarray(sites.read(state)['all']), np.asarray(output.logits)


def tokens(batch: int, seed: int = 0) -> np.ndarray:
  """Returns random texts, `[batch, TIME]`."""
  return np.random.default_rng(seed).integers(3, 101, (batch, TIME))


def float32(case: str) -> dict[str, float]:
  """Measures a case in float32.

  Returns:
    `resid` and `logits`: the largest absolute difference; `write`: the largest
    change that a layer makes to the residual, the least over layers.
  """
  family, fields = CASES[case]
  model = tiny.hf_model(family, **fields)
  with tempfile.TemporaryDirectory() as folder:
    lm = tiny.loaded(model, pathlib.Path(folder))
  texts = tokens(1)
  theirs, their_logits = hf_states(model, texts)
  ours, our_logits = our_states(lm, texts)
  return dict(
    resid=float(np.abs(ours - theirs).max()),
    logits=float(np.abs(our_logits - their_logits).max()),
    write=float(np.abs(np.diff(theirs, axis=0)).max(axis=(1, 2, 3)).min()),
  )


def bfloat16(case: str) -> dict[str, float]:
  """Measures a case in bfloat16 against Hugging Face's bfloat16.

  Returns:
    `kl`: mean KL divergence in nats; `top1`: share of positions where both
    find the same token likeliest.
  """
  import torch
  import transformers

  family, fields = CASES[case]
  # A random model's two likeliest tokens are often as near as bfloat16 rounds:
  # Hugging Face's own two attention implementations then agree on 98 %.
  model = tiny.train(tiny.hf_model(family, **fields))
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    lm = me_jax.load(folder, dtype='bfloat16')
    model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.bfloat16
    )
  texts = tokens(4)
  _, theirs = hf_states(model.eval(), texts)
  ours = jax.jit(lm.model.apply)({'params': lm.params}, texts).logits
  theirs, ours = jax.nn.log_softmax(theirs), jax.nn.log_softmax(ours)
  kl_BT = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
  same_BT = theirs.argmax(-1) == ours.argmax(-1)
  return dict(kl=float(kl_BT.mean()), top1=float(same_BT.mean()))


def main() -> None:
  """Prints the table of all cases as Markdown."""
  import transformers

  transformers.utils.logging.disable_progress_bar()
  print('| model | residual | logits | KL in bf16 | same top-1 in bf16 |')
  print('|---|---|---|---|---|')
  for case in CASES:
    exact, rough = float32(case), bfloat16(case)
    print(
      f'| {case} | {exact["resid"]:.1e} | {exact["logits"]:.1e} '
      f'| {rough["kl"]:.1e} | {rough["top1"]:.2%} |',
      flush=True,
    )


if __name__ == '__main__':
  main()
