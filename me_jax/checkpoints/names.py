"""Which stored tensor does each parameter come from?

One table per naming scheme. Hugging Face checkpoints of all Llama-like
families share one: our tree uses its names. GGUF has another, and stores the
rows of Llama's queries and keys in the order that ggml's rotary embedding
wants. A family that differs (fused projections, norms stored with an offset)
is an `Origin` with other fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import re

from me_jax.models import config as config_lib

# Our module: its name in the checkpoint. Which of them a model has is decided
# by its parameter tree, so modules of later families do no harm.
_HF_LAYER = (
  'input_layernorm',
  'self_attn/q_proj',
  'self_attn/k_proj',
  'self_attn/v_proj',
  'self_attn/o_proj',
  'self_attn/q_norm',
  'self_attn/k_norm',
  'post_attention_layernorm',
  'pre_feedforward_layernorm',
  'post_feedforward_layernorm',
  'mlp/gate_proj',
  'mlp/up_proj',
  'mlp/down_proj',
)
_GGUF_LLAMA = {
  'embed_tokens': 'token_embd',
  'norm': 'output_norm',
  'lm_head': 'output',
  'layers/input_layernorm': 'blk.{layer}.attn_norm',
  'layers/self_attn/q_proj': 'blk.{layer}.attn_q',
  'layers/self_attn/k_proj': 'blk.{layer}.attn_k',
  'layers/self_attn/v_proj': 'blk.{layer}.attn_v',
  'layers/self_attn/o_proj': 'blk.{layer}.attn_output',
  'layers/post_attention_layernorm': 'blk.{layer}.ffn_norm',
  'layers/mlp/gate_proj': 'blk.{layer}.ffn_gate',
  'layers/mlp/up_proj': 'blk.{layer}.ffn_up',
  'layers/mlp/down_proj': 'blk.{layer}.ffn_down',
}
_ROTATED = ('layers/self_attn/q_proj', 'layers/self_attn/k_proj')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
  """Where the values of one parameter lie.

  Attributes:
    template: the tensor's name, with `{layer}` for the layer's number.
    transpose: whether it is stored `[out, in]`.
    first_row: of the rows that belong to this parameter, when it shares the
      tensor with others (Phi-3's `qkv_proj`).
    stored_rows: of the whole shared tensor; None when it is not shared.
    rotary_rows: rows per head when the two rows that are rotated together lie
      next to each other; 0 when they lie half a head apart, as in our tree.
    offset: added to every value (Gemma's norms in GGUF hold 1 + w).
  """

  template: str
  transpose: bool = False
  first_row: int = 0
  stored_rows: int | None = None
  rotary_rows: int = 0
  offset: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameTable:
  """How one checkpoint names its tensors.

  Attributes:
    origins: where each leaf of the parameter tree comes from, by its path
      (`layers/mlp/up_proj/kernel`); leaves the model lacks are no matter.
    harmless: matches tensors that a checkpoint may hold without our using
      them. Any other unused tensor is an error.
  """

  origins: Mapping[str, Origin]
  harmless: re.Pattern[str]


def hf_table(
  config: config_lib.ModelConfig, stored: Iterable[str] = ()
) -> NameTable:
  """Returns the table of Hugging Face checkpoints.

  Args:
    config: of the model.
    stored: names in the checkpoint. Without them, the names that transformers
      gives a language model.
  """
  prefix, head = _prefixes(tuple(stored))
  modules = {
    'embed_tokens': f'{prefix}embed_tokens',
    'norm': f'{prefix}norm',
    'lm_head': head,
  }
  for module in _HF_LAYER:
    name = module.replace('/', '.')
    modules[f'layers/{module}'] = f'{prefix}layers.{{layer}}.{name}'
  origins = _origins(modules)
  if config.fused_projections:
    origins |= _fused(f'{prefix}layers.{{layer}}', config)
  harmless = r'(.*\.)?rotary_emb\.inv_freq'
  if 'language_model.' in prefix:
    harmless += r'|(model\.)?(vision_tower|multi_modal_projector)\..*'
  if config.tie_word_embeddings:
    harmless += rf'|{re.escape(head)}\.weight'
  return NameTable(origins=origins, harmless=re.compile(harmless))


def _prefixes(stored: tuple[str, ...]) -> tuple[str, str]:
  """Returns what stands before the decoder's names, and the head's name.

  A checkpoint of the bare decoder, saved without its head, has no prefix; in
  one of several modalities the language model is a part, which transformers 4
  and 5 place differently.
  """
  prefixes = {
    'model.language_model.': 'lm_head',
    'language_model.model.': 'language_model.lm_head',
    'model.': 'lm_head',
  }
  if not stored:
    return 'model.', 'lm_head'
  for prefix, head in prefixes.items():
    if any(name.startswith(prefix) for name in stored):
      return prefix, head
  return '', 'lm_head'


def gguf_table(config: config_lib.ModelConfig) -> NameTable:
  """Returns the table of GGUF files of the `llama` architecture.

  Args:
    config: of the model.
  """
  origins = _origins(_GGUF_LLAMA)
  for path, origin in origins.items():
    if path.startswith(_ROTATED):
      origins[path] = dataclasses.replace(origin, rotary_rows=config.head_dim)
  # What `rope_freqs` says is in the configuration by now: see gguf_config.
  return NameTable(origins=origins, harmless=re.compile(r'rope_freqs\.weight'))


def _origins(modules: Mapping[str, str]) -> dict[str, Origin]:
  """Returns the origins of every leaf that these modules may have."""
  origins = {}
  for module, name in modules.items():
    if module == 'embed_tokens':
      origins[f'{module}/embedding'] = Origin(template=f'{name}.weight')
    elif module.endswith('norm'):
      origins[f'{module}/weight'] = Origin(template=f'{name}.weight')
    else:
      origins[f'{module}/kernel'] = Origin(
        template=f'{name}.weight', transpose=True
      )
      origins[f'{module}/bias'] = Origin(template=f'{name}.bias')
  return origins


def _fused(prefix: str, config: config_lib.ModelConfig) -> dict[str, Origin]:
  """Returns the origins of projections that are stored on top of each other."""
  query = config.num_attention_heads * config.head_dim
  key = config.num_key_value_heads * config.head_dim
  width = config.intermediate_size
  groups = {
    'self_attn.qkv_proj': (('q_proj', query), ('k_proj', key), ('v_proj', key)),
    'mlp.gate_up_proj': (('gate_proj', width), ('up_proj', width)),
  }
  origins = {}
  for fused, parts in groups.items():
    branch = fused.split('.')[0]
    first_row = 0
    for part, rows in parts:
      origins[f'layers/{branch}/{part}/kernel'] = Origin(
        template=f'{prefix}.{fused}.weight',
        transpose=True,
        first_row=first_row,
        stored_rows=sum(rows for _, rows in parts),
      )
      first_row += rows
  return origins
