"""Models whose massive activations are planted, so that the answer is known.

Token `BOS` alone has channel 0 set. A *plant* is a neuron that reads one
channel of the normalised state and writes an amount to another; where the read
channel dominates the state it stands at sqrt(D) after the norm, so the neuron's
activation there is about D and the amount written is about what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.analysis import me_report
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib

BOS = 1
WIDTH, FFN, LAYERS, VOCAB = 64, 24, 8, 50
_SHARED = 3  # a channel that all tokens have, where a sink is planted


class Plant(NamedTuple):
  """A neuron that writes `amount` to channel `to` where `read` dominates."""

  layer: int
  neuron: int
  to: int
  amount: float
  read: int = 0


def build(
  plants: Sequence[Plant],
  *,
  seed: int = 0,
  bos_channel: float = 40.0,
  **fields: Any,
) -> tuple[decoder.Decoder, dict]:
  """Returns a model with plants among small random weights, and its params.

  Args:
    plants: neurons with a known effect.
    seed: of the random weights.
    bos_channel: channel 0 of the embedding of `BOS`.
    **fields: of the configuration, where another architecture is wanted. A norm
      after the FFN makes a plant's amount another one.
  """
  config = config_lib.ModelConfig(
    model_type='llama',
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=FFN,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    bos_token_id=BOS,
    **fields,
  )
  random = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda leaf: random.normal(0, 0.02, leaf.shape).astype(np.float32),
    params_lib.param_shapes(config, 'float32'),
  )
  attention = params['layers']['self_attn']
  for norm in (params['norm'], *params['layers'].values(), *attention.values()):
    if 'weight' in norm:
      norm['weight'] = np.full_like(norm['weight'], 1 - config.norm_offset)
  embedding = random.normal(0, 0.5, (VOCAB, WIDTH)).astype(np.float32)
  embedding[:, 0] = 0.0
  embedding[BOS, 0] = bos_channel
  params['embed_tokens']['embedding'] = embedding
  mlp = params['layers']['mlp']
  for plant in plants:
    at = (plant.layer, slice(None), plant.neuron)
    for name in ('gate_proj', 'up_proj'):
      mlp[name]['kernel'][at] = 0.0
      mlp[name]['kernel'][plant.layer, plant.read, plant.neuron] = 1.0
    mlp['down_proj']['kernel'][plant.layer, plant.neuron] = 0.0
    mlp['down_proj']['kernel'][plant.layer, plant.neuron, plant.to] = (
      plant.amount / WIDTH
    )
  return decoder.Decoder(config), jax.tree.map(jnp.asarray, params)


def texts(
  count: int = 6, *, bos: bool = True, length: int = 12, seed: int = 1
) -> list[list[int]]:
  """Returns random texts, starting with BOS or never holding it."""
  random = np.random.default_rng(seed)
  start = [BOS] if bos else []
  return [
    start + random.integers(2, VOCAB, length).tolist() for _ in range(count)
  ]


def batch(**kwargs) -> batch_lib.Batch:
  """Returns `texts(**kwargs)` a text a row."""
  return batch_lib.make_batch(texts(**kwargs))


# Plants for which `find_me_layer` says this verdict, with `batch()`.
VERDICTS = {
  'single': [Plant(4, 7, 9, 5000.0)],
  'multi-step': [Plant(3, 7, 9, 2000.0), Plant(4, 2, 9, 3000.0, read=9)],
  'gradual': [Plant(1, 7, 9, 800.0)]
  + [Plant(i, 7, 9, 800.0, read=9) for i in range(2, 7)],
  'none': [],
}


def let_through(
  params: dict, plants: Sequence[Plant], weight: float = 500.0
) -> None:
  """Makes the norm after an FFN multiply what plants wrote, in place.

  Such a norm brings every token's write to one size. For an ordinary token to
  have next to nothing in the plants' channel, amounts must be small (about
  0.03), and no other neuron may write there.
  """
  layers = params['layers']
  after = layers['post_feedforward_layernorm']
  down = layers['mlp']['down_proj']
  for layer, to in {(plant.layer, plant.to) for plant in plants}:
    after['weight'] = after['weight'].at[layer, to].set(weight)
    others = np.setdiff1d(np.arange(FFN), [plant.neuron for plant in plants])
    down['kernel'] = down['kernel'].at[layer, others, to].set(0.0)


def with_a_sink(
  model: decoder.Decoder,
  params: dict,
  *,
  layer: int,
  head: int,
  channel: int,
  size: float = 5.0,
) -> dict:
  """Returns parameters whose one head looks at whatever holds a channel.

  Its keys read the channel, its queries one that all tokens share, both in the
  two dimensions of a head that rotate slowest.
  """
  config = model.config
  params = jax.tree.map(np.array, params)
  params['embed_tokens']['embedding'][:, _SHARED] = 1.0
  attention = params['layers']['self_attn']
  slow = config.head_dim // 2 - 1
  group = head // (config.num_attention_heads // config.num_key_value_heads)
  for name, at, read, value in (
    ('q_proj', head, _SHARED, 20.0),
    ('k_proj', group, channel, size),
  ):
    kernel = attention[name]['kernel'][layer]
    kernel[:, at * config.head_dim : (at + 1) * config.head_dim] = 0.0
    kernel[read, at * config.head_dim + slow] = value
  return jax.tree.map(jnp.asarray, params)


def report(
  layer: int | None = 4,
  span: Sequence[int] = (4,),
  verdict: str = 'single',
  median: float = 0.3,
) -> me_report.MEReport:
  """Returns what `find_me_layer` would say, as far as a mask asks."""
  fields = {
    field.name: None for field in dataclasses.fields(me_report.MEReport)
  }
  return me_report.MEReport(
    **fields
    | {
      'layer': layer,
      'span': tuple(span),
      'verdict': verdict,
      'median': np.full(LAYERS, median),
    }
  )
