"""Which stored tensor does each parameter come from?

One table per naming scheme. Hugging Face checkpoints of all Llama-like
families share one: our tree uses its names. GGUF's are in `gguf_names.py`. A
family that differs (fused projections, norms stored with an offset) is an
`Origin` with other fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import re

from me_jax.models import config as config_lib
from me_jax.models import sink

# Our modules, which have the same names in checkpoints. Which of them a model
# has is decided by its parameter tree.
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
  origins = module_origins(modules)
  # The mitigation, which is ours: see `sink_leaves.py`.
  origins[f'layers/{sink.SCALE}'] = Origin(
    template=f'{prefix}layers.{{layer}}.{sink.SCALE}'
  )
  for name in (sink.BOUND, sink.POSITIONS):
    origins[name] = Origin(template=f'{prefix}{name}')
  if config.fused_projections:
    layer = f'{prefix}layers.{{layer}}'
    origins |= fused_origins(
      config, f'{layer}.self_attn.qkv_proj', f'{layer}.mlp.gate_up_proj'
    )
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


def module_origins(modules: Mapping[str, str]) -> dict[str, Origin]:
  """Returns the origins of every leaf that these modules may have.

  Args:
    modules: each module of the tree, and its name in the checkpoint.
  """
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


def fused_origins(
  config: config_lib.ModelConfig, qkv: str, gate_up: str
) -> dict[str, Origin]:
  """Returns the origins of projections that are stored on top of each other.

  Args:
    config: of the model.
    qkv: name in the checkpoint of queries, keys and values, in this order.
    gate_up: name of gate and up.
  """
  query = config.num_attention_heads * config.head_dim
  key = config.num_key_value_heads * config.head_dim
  width = config.intermediate_size
  attention = (('q_proj', query), ('k_proj', key), ('v_proj', key))
  groups = {
    ('self_attn', qkv): attention,
    ('mlp', gate_up): (('gate_proj', width), ('up_proj', width)),
  }
  origins = {}
  for (branch, fused), parts in groups.items():
    first_row = 0
    for part, rows in parts:
      origins[f'layers/{branch}/{part}/kernel'] = Origin(
        template=f'{fused}.weight',
        transpose=True,
        first_row=first_row,
        stored_rows=sum(rows for _, rows in parts),
      )
      first_row += rows
  return origins
