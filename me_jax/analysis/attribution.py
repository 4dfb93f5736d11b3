"""Why does the ME Layer write the plateau, and no other layer or token?

Who wrote how much of it is in the report of `find_me_layer`. Here is what makes
that layer's FFN write: the norm before it (how much it scales the token, into
how few channels, what its weight does to the massive channels afterwards), and
the FFN itself (its gain, and how well the normalised token is aligned with the
gate and up rows of the neurons that write). All of it at every layer, for the
massive token and for ordinary tokens.

With x the state, h = x / rms(x) * weight is what the FFN is given, and neuron i
writes act(h.g_i) * (h.u_i) along d_i. Where norms come after the branches (OLMo
2), x is the FFN's raw output and h what is added to the residual stream.

Letters: L layers, N tokens, X prefixes, O ordinary tokens, G groups (0 the
massive token, 1 ordinary tokens), S statistics (mean, 10 %, 90 %), E numbers of
top channels, K massive channels, I neurons, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import jax.numpy as jnp
import numpy as np

from me_jax.analysis import layer_view
from me_jax.analysis import me_report
from me_jax.analysis import token_states
from me_jax.models import block
from me_jax.models import decoder

MASSIVE, ORDINARY = range(2)
MEAN, LOW, HIGH = range(3)
_RANDOM_NEURONS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronTable:
  """How some neurons see the tokens.

  Cosines are of the row or column in the FFN's input space, h being what the
  FFN is given.

  Attributes:
    layer_I: whose FFN each belongs to.
    index_I: which neuron.
    gate_GSI: pre-activation of the gate, h.g (with its bias).
    up_GSI: the same of up, h.u.
    gate_cos_GSI: cosine of h with g.
    up_cos_GSI: cosine of h with u.
    gate_up_cos_I: cosine of g with u.
    gate_down_cos_I: cosine of g with the down column d.
    up_down_cos_I: cosine of u with d.
    gate_size_I: norm of g over the median of its layer.
    up_size_I: the same of u.
    down_size_I: the same of d.
  """

  layer_I: np.ndarray
  index_I: np.ndarray
  gate_GSI: np.ndarray
  up_GSI: np.ndarray
  gate_cos_GSI: np.ndarray
  up_cos_GSI: np.ndarray
  gate_up_cos_I: np.ndarray
  gate_down_cos_I: np.ndarray
  up_down_cos_I: np.ndarray
  gate_size_I: np.ndarray
  up_size_I: np.ndarray
  down_size_I: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribution:
  """What the norm and the FFN do to the tokens, at every layer.

  Attributes:
    massive: whether group 0 is massive tokens; else they are first tokens.
    prefixes: number of massive tokens, of distinct prefixes.
    ordinary: number of ordinary tokens.
    norm: name of the norm at the FFN (before it, unless all norms are after).
    attn_norm: name of the norm at attention.
    scale_GSL: 1 / rms(x) of that norm.
    gain_GSL: norm of h over norm of x.
    energy_GSLE: share of h's squared norm in its top 1, 5 and 10 channels.
    ffn_gain_GSL: norm of what the FFN adds over norm of what it is given.
    alignment_GSL: largest |cos(h, g_i)| * |cos(h, u_i)| of any neuron i, token
      by token.
    channels_K: the massive channels.
    gamma_attn_LK: |weight| of attention's norm at these channels, over the
      median |weight| of that norm.
    gamma_ffn_LK: the same of the FFN's norm.
    attn_in_GSLK: |value| of the massive channels in what attention is given.
    ffn_in_GSLK: the same of the FFN.
    dominating: the neurons that write the plateau, of the span's layers.
    random: random ones of the same layers.
    aligned: of every layer, the neuron that is best aligned with the massive
      token (largest mean of `alignment`).
  """

  massive: bool
  prefixes: int
  ordinary: int
  norm: str
  attn_norm: str
  scale_GSL: np.ndarray
  gain_GSL: np.ndarray
  energy_GSLE: np.ndarray
  ffn_gain_GSL: np.ndarray
  alignment_GSL: np.ndarray
  channels_K: np.ndarray
  gamma_attn_LK: np.ndarray
  gamma_ffn_LK: np.ndarray
  attn_in_GSLK: np.ndarray
  ffn_in_GSLK: np.ndarray
  dominating: NeuronTable
  random: NeuronTable
  aligned: NeuronTable


def attribute(
  model: decoder.Decoder,
  params: decoder.Params,
  report: me_report.MEReport,
  states: token_states.TokenStates,
  *,
  writers: Mapping[int, tuple[int, ...]] | None = None,
  seed: int = 0,
) -> Attribution:
  """Measures the norm's and the FFN's side of every layer.

  Args:
    model: the decoder.
    params: its parameters.
    report: of `find_me_layer`.
    states: of the same model, from `token_states.capture`.
    writers: dominating neurons by layer, from `token_states.writers`; None
      works them out.
    seed: of the random neurons.

  Returns:
    The measurements; without massive activations, of the texts' first tokens,
    with empty tables of dominating and random neurons.
  """
  config = model.config
  if writers is None:
    writers = {}
    if states.prefixes.massive and report.span:
      share_LF = token_states.contributions(model, params, states)
      writers = token_states.writers(report, share_LF)
  random = _random_neurons(writers, config.intermediate_size, seed)
  width = max([1, *(len(writers[i]) + len(random[i]) for i in writers)])
  channels_K = np.array([c.index for c in report.channels], np.int32)
  split = states.massive['ffn_in'].shape[1]
  seen = {
    site: np.concatenate([states.massive[site], states.ordinary[site]], axis=1)
    for site in ('attn_in', 'resid_mid', 'ffn_in', 'ffn_out')
  }
  layers = []
  for layer in range(config.num_hidden_layers):
    chosen = [*writers.get(layer, ()), *random.get(layer, ())]
    # Filled up, so that one compile serves all layers.
    neurons_I = np.array(chosen + [0] * (width - len(chosen)), np.int32)
    layers.append(
      layer_view.measure(
        model,
        params,
        jnp.int32(layer),
        {site: value[layer] for site, value in seen.items()},
        np.arange(seen['ffn_in'].shape[1]) < split,
        neurons_I,
        channels_K,
      )
    )
  found = {
    key: np.stack([layer[key] for layer in layers])
    for key in layers[0]
  }  # fmt: skip
  named = [(i, k) for i in sorted(writers) for k in range(len(writers[i]))]
  drawn = [
    (i, len(writers[i]) + k)
    for i in sorted(writers)
    for k in range(len(random[i]))
  ]
  best = [(i, width) for i in range(config.num_hidden_layers)]
  norm, attn_norm = norm_names(config.norm_placement)

  def spread(key: str) -> np.ndarray:
    return summarise(np.moveaxis(found[key], 1, -1), split)

  return Attribution(
    massive=states.prefixes.massive,
    prefixes=split,
    ordinary=seen['ffn_in'].shape[1] - split,
    norm=norm,
    attn_norm=attn_norm,
    scale_GSL=spread('scale'),
    gain_GSL=spread('gain'),
    energy_GSLE=spread('energy'),
    ffn_gain_GSL=spread('ffn_gain'),
    alignment_GSL=spread('alignment'),
    channels_K=channels_K,
    gamma_attn_LK=_gamma(model, params, attn_norm, channels_K),
    gamma_ffn_LK=_gamma(model, params, norm, channels_K),
    attn_in_GSLK=spread('attn_in'),
    ffn_in_GSLK=spread('ffn_in'),
    dominating=_table(found, named, split),
    random=_table(found, drawn, split),
    aligned=_table(found, best, split),
  )


def norm_names(placement: str) -> tuple[str, str]:
  """Returns the names of the norms at the FFN and at attention.

  Before the branch, unless the family has norms only after it.
  """
  if placement == 'post':
    return 'post_feedforward_layernorm', 'post_attention_layernorm'
  name = block.FFN_NORMS[placement]
  assert name is not None
  return name, 'input_layernorm'


def summarise(values: np.ndarray, split: int) -> np.ndarray:
  """Returns mean, 10 % and 90 % quantile of two groups of tokens.

  Args:
    values: `[..., N]`.
    split: how many of the tokens are group 0.

  Returns:
    `[G, S, ...]`; NaN for a group without tokens.
  """
  groups = []
  for group in (values[..., :split], values[..., split:]):
    if not group.shape[-1]:
      groups.append(np.full((3, *group.shape[:-1]), np.nan))
      continue
    low, high = np.quantile(group, [0.1, 0.9], axis=-1)
    groups.append(np.stack([group.mean(axis=-1, dtype=np.float64), low, high]))
  return np.stack(groups)


def _gamma(
  model: decoder.Decoder,
  params: decoder.Params,
  norm: str,
  channels_K: np.ndarray,
) -> np.ndarray:
  """Returns |weight| at some channels over the median of its norm, `[L, K]`."""
  weight_LD = np.asarray(params['layers'][norm]['weight'], np.float32)
  weight_LD = np.abs(weight_LD + model.config.norm_offset)
  median_L1 = np.median(weight_LD, axis=1, keepdims=True)
  return weight_LD[:, channels_K] / np.maximum(median_L1, 1e-30)


def _random_neurons(
  writers: Mapping[int, tuple[int, ...]], width: int, seed: int
) -> dict[int, list[int]]:
  """Draws neurons of the same layers that are none of the writers."""
  drawn = {}
  for layer, mine in writers.items():
    others = np.setdiff1d(np.arange(width), mine)
    random = np.random.default_rng([seed, layer])
    count = min(_RANDOM_NEURONS, len(others))
    drawn[layer] = random.choice(others, count, replace=False).tolist()
  return drawn


def _table(
  found: Mapping[str, np.ndarray], places: list[tuple[int, int]], split: int
) -> NeuronTable:
  """Takes neurons, as (layer, column), out of what all layers gave."""
  layer_I = np.array([layer for layer, _ in places], np.int64)
  column_I = np.array([column for _, column in places], np.int64)

  def tokens(key: str) -> np.ndarray:
    return summarise(found[key][layer_I, :, column_I], split)

  def neurons(key: str) -> np.ndarray:
    return found[key][layer_I, column_I]

  return NeuronTable(
    layer_I=layer_I,
    index_I=neurons('neuron'),
    gate_GSI=tokens('gate'),
    up_GSI=tokens('up'),
    gate_cos_GSI=tokens('gate_cos'),
    up_cos_GSI=tokens('up_cos'),
    gate_up_cos_I=neurons('gate_up_cos'),
    gate_down_cos_I=neurons('gate_down_cos'),
    up_down_cos_I=neurons('up_down_cos'),
    gate_size_I=neurons('gate_size'),
    up_size_I=neurons('up_size'),
    down_size_I=neurons('down_size'),
  )
