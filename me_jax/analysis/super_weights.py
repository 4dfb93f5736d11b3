"""Which down-projection entries write the spike, and what if they were not there?

Yu et al. (2024, arXiv 2411.07191) found single *super weights*: an entry of a
down-projection, (neuron, channel), that carries a dominating neuron's activation
into a massive channel.

Letters: L layers, E entries, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from me_jax.analysis import me_report
from me_jax.models import decoder

Entry = tuple[int, int, int]  # layer, neuron, channel
_CLASS = 2.0  # entries within this factor are of one size


def find(report: me_report.MEReport) -> tuple[Entry, ...]:
  """Returns the super weights: each dominating neuron into each channel.

  The neuron with the largest share and the largest channel first.
  """
  neurons = sorted(report.neurons, key=lambda neuron: -neuron.share)
  return tuple(
    (neuron.layer, neuron.index, channel.index)
    for neuron in neurons
    for channel in report.channels
  )


def sizes(params: decoder.Params, entries: Sequence[Entry]) -> np.ndarray:
  """Returns |weight| of each entry, `[E]`."""
  kernel_LFD = params['layers']['mlp']['down_proj']['kernel']
  index = tuple(np.array(entries).T)
  return np.abs(np.asarray(kernel_LFD[index], np.float32))


def remove(params: decoder.Params, entries: Sequence[Entry]) -> decoder.Params:
  """Returns the parameters with some entries of the down-projections at 0.

  A copy of that one leaf is made, in its own type; all others are shared.
  """
  return _with_zeros(params, *np.array(entries, np.int32).T)


def remove_neurons(
  params: decoder.Params, entries: Sequence[Entry]
) -> decoder.Params:
  """Returns the parameters without the whole neurons that entries belong to.

  Their rows of the down-projections are at 0, in all channels. As with `remove`,
  that one leaf is copied.
  """
  return _with_zeros(params, *np.array(entries, np.int32).T[:2])


def _with_zeros(params: decoder.Params, *index_E: np.ndarray) -> decoder.Params:
  layers = params['layers']
  down = layers['mlp']['down_proj']
  kernel = _zero(down['kernel'], index_E)
  mlp = {**layers['mlp'], 'down_proj': {**down, 'kernel': kernel}}
  return {**params, 'layers': {**layers, 'mlp': mlp}}


@jax.jit
def _zero(kernel_LFD: jax.Array, index_E: tuple[np.ndarray, ...]) -> jax.Array:
  return kernel_LFD.at[index_E].set(0)


def like(
  params: decoder.Params,
  entries: Sequence[Entry],
  each: int,
  random: np.random.Generator,
) -> tuple[Entry, ...]:
  """Draws other entries of the same layers and, where there are any, sizes.

  Args:
    params: of the model.
    entries: the super weights.
    each: how many for each of them.
    random: draws.

  Returns:
    Distinct entries of the same down-projections, of other neurons and other
    channels. Their |weight| is within a factor of two of a super weight's;
    where fewer than `each` are, they are the ones that come nearest to it.
  """
  kernel_LFD = params['layers']['mlp']['down_proj']['kernel']
  drawn: list[Entry] = []
  for layer in dict.fromkeys(layer for layer, *_ in entries):
    here = [entry for entry in entries if entry[0] == layer]
    size_FD = np.abs(np.asarray(kernel_LFD[layer], np.float32))
    free_FD = np.ones(size_FD.shape, bool)
    free_FD[[neuron for _, neuron, _ in here]] = False
    free_FD[:, [channel for *_, channel in here]] = False
    for size in sizes(params, here):
      near_FD = free_FD & (size_FD <= size * _CLASS)
      places = np.argwhere(near_FD & (size_FD >= size / _CLASS))
      if len(places) < each:
        gap_FD = np.where(free_FD, np.abs(size_FD - size), np.inf)
        nearest = np.sort(gap_FD, axis=None)[:each][-1]
        places = np.argwhere(free_FD & (gap_FD <= nearest))
      count = min(each, len(places))  # a tiny layer may have no others
      for neuron, channel in random.permutation(places)[:count].tolist():
        free_FD[neuron, channel] = False
        drawn.append((layer, neuron, channel))
  return tuple(drawn)
