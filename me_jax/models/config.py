"""Which decoder is this? One frozen dataclass describes every supported family.

A family is a set of values, never a subclass. Fields carry the names that
Hugging Face configurations use, so that a paper, a checkpoint and this code
speak of the same thing; the few that have no counterpart there say so.
`ModelConfig.from_hf` and `to_hf` translate; see `hf_config.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Activation = Literal['silu', 'gelu_pytorch_tanh']
NormPlacement = Literal['pre', 'post', 'sandwich']
QkNorm = Literal['none', 'head', 'projection']


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
  """Rotary position embedding of one kind.

  Attributes:
    theta: base of the geometric series of wavelengths.
    kind: `default`, `linear`, `dynamic`, `llama3`, `yarn` or `longrope`.
    partial_rotary_factor: share of each head that is rotated.
    factor: how much longer the context is than the original one.
    original_max_position_embeddings: the context that was trained first. In
      `dynamic` and `longrope` a text that is longer than it has frequencies of
      its own; which ones depends on the length of the text alone, never on
      what else is in the batch.
    low_freq_factor: llama3: wavelengths above original/low are divided.
    high_freq_factor: llama3: wavelengths below original/high are kept.
    beta_fast: yarn: rotations above which nothing is interpolated.
    beta_slow: yarn: rotations below which all is interpolated.
    attention_factor: yarn, longrope: scale of the cosines and sines; None
      computes it from `factor`.
    mscale: yarn: numerator of the computed attention factor.
    mscale_all_dim: yarn: denominator of the computed attention factor.
    truncate: yarn: whether the ramp's bounds are rounded to whole dimensions.
    short_factor: longrope: divisors per dimension up to the original context.
    long_factor: longrope: divisors per dimension beyond it.
  """

  theta: float = 10_000.0
  kind: str = 'default'
  partial_rotary_factor: float = 1.0
  factor: float = 1.0
  original_max_position_embeddings: int | None = None
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True
  short_factor: tuple[float, ...] = ()
  long_factor: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Everything that the decoder's computation depends on, besides parameters.

  Attributes:
    model_type: the family's name in Hugging Face configurations.
    vocab_size: V.
    hidden_size: D.
    intermediate_size: F.
    num_hidden_layers: L.
    num_attention_heads: N.
    num_key_value_heads: K; divides N.
    head_dim: H; need not be D / N.
    max_position_embeddings: longest context in tokens, unless the rotary
      embedding stretches it further: see `context_length`.
    rms_norm_eps: added to the mean square before the root.
    tie_word_embeddings: whether the embedding is also the output head.
    hidden_act: activation of the gate.
    attention_bias: biases on the query, key and value projections.
    attention_out_bias: bias on the output projection (a field of ours: Llama
      ties it to `attention_bias`, Qwen2 has none).
    mlp_bias: biases on the three FFN projections.
    qk_norm: RMSNorm of queries and keys, per `head` (Qwen3, Gemma 3) or over
      the whole `projection` (OLMo 2).
    norm_placement: RMSNorm before each branch (`pre`), after it (`post`,
      OLMo 2) or both (`sandwich`, Gemma 2 and 3).
    norm_offset: added to every norm weight (Gemma stores w - 1).
    norm_in_float32: whether the norm's weight is multiplied before the result
      is cast (Gemma, OLMo 2) or after (all others); ours, no HF counterpart.
    embedding_scale: multiplies the token embeddings (Gemma: sqrt(D)).
    query_pre_attn_scalar: scores are divided by its root; None means H.
    attn_logit_softcapping: cap c of scores, c * tanh(s / c); None is none.
    final_logit_softcapping: the same for the logits.
    sliding_window: keys a windowed layer sees, the query's own included; None
      when no layer is windowed.
    layer_windowed: per layer, whether it uses `sliding_window`.
    rope: rotary embedding of full-attention layers.
    rope_local: rotary embedding of windowed layers; None means `rope`.
    rope_in_float32: whether queries and keys are rotated in float32 and then
      cast (OLMo 2), or by cosines that are cast first (all others); ours.
    rope_layers: per layer, whether rotation is applied at all (SmolLM3 leaves
      out every fourth); empty means in all.
    fused_projections: checkpoints store `qkv_proj` and `gate_up_proj` fused
      (Phi-3). The parameter tree is split either way.
    bos_token_id: None when the model has none.
    eos_token_ids: tokens that end a text.
    pad_token_id: None when the model has none.

  Examples:
    >>> import me_jax
    >>> config = me_jax.load('smollm2').config
    >>> config.model_type, config.num_hidden_layers, config.hidden_size
    ('llama', 30, 576)
    >>> me_jax.ModelConfig.from_hf(config.to_hf()) == config
    True
  """

  model_type: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  max_position_embeddings: int
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = False
  hidden_act: Activation = 'silu'
  attention_bias: bool = False
  attention_out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: QkNorm = 'none'
  norm_placement: NormPlacement = 'pre'
  norm_offset: float = 0.0
  norm_in_float32: bool = False
  embedding_scale: float = 1.0
  query_pre_attn_scalar: float | None = None
  attn_logit_softcapping: float | None = None
  final_logit_softcapping: float | None = None
  sliding_window: int | None = None
  layer_windowed: tuple[bool, ...] = ()
  rope: RopeConfig = RopeConfig()
  rope_local: RopeConfig | None = None
  rope_in_float32: bool = False
  rope_layers: tuple[bool, ...] = ()
  fused_projections: bool = False
  bos_token_id: int | None = None
  eos_token_ids: tuple[int, ...] = ()
  pad_token_id: int | None = None

  @property
  def context_length(self) -> int:
    """Longest text in tokens, what the rotary embedding is stretched to."""
    rope = self.rope
    if rope.kind not in ('dynamic', 'yarn'):
      return self.max_position_embeddings
    assert rope.original_max_position_embeddings is not None
    stretched = int(rope.original_max_position_embeddings * rope.factor)
    return max(self.max_position_embeddings, stretched)

  @classmethod
  def from_hf(cls, source: dict[str, Any] | str) -> ModelConfig:
    """Reads a Hugging Face configuration; see `hf_config.from_hf`."""
    from me_jax.models import hf_config

    return hf_config.from_hf(source)

  def to_hf(self) -> dict[str, Any]:
    """Returns the configuration that transformers loads; see `hf_config`."""
    from me_jax.models import hf_config

    return hf_config.to_hf(self)
