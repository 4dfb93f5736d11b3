"""About how much memory and time would a step of training take, uncompiled?

Arithmetic that ranks settings before the compiler is asked about a few of them.
It is no plan: it knows what is kept for the backward pass and what is gathered,
not what the compiler makes of it.

Letters of the comments: D model width, F FFN width, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math

import jax

from me_jax.models import config as config_lib
from me_jax.planning import chips as chips_lib
from me_jax.planning import programs
from me_jax.planning import topology as topology_lib
from me_jax.training import flops
from me_jax.training import settings as settings_lib

_F32 = 4
# Of a step's arithmetic, what backward does again: a third of it is forward.
_AGAIN = {'none': 0.0, 'dots': 0.05, 'dots_no_batch': 0.1, 'full': 1 / 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
  """What does not depend on how a run is laid out, bytes of all devices.

  Attributes:
    tree: of what is trained, float32.
    frozen: of what is not.
    layer: of one layer's kernels, in the type that is computed in.
    table: of the head, likewise.
    rows: of a step.
    length: tokens of a row.
    itemsize: bytes of a number that is computed with.
    copies: of the tree beside the parameters: two of the optimiser, one of
      gradients, and one of the start if that is kept.
    model_flops: of a step.
  """

  tree: int
  frozen: int
  layer: int
  table: int
  rows: int
  length: int
  itemsize: int
  copies: int
  model_flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess:
  """Of one device.

  Attributes:
    state: bytes of parameters and optimiser, which no layout of rows changes.
    activations: bytes of the rest.
    seconds: of a step.
  """

  state: int
  activations: int
  seconds: float

  @property
  def peak(self) -> int:
    """Bytes in all."""
    return self.state + self.activations


def totals(run: settings_lib.Run, config: config_lib.ModelConfig) -> Totals:
  """Returns what all layouts of a run share."""
  # How many parts a batch has is one of the things that vary.
  whole = dataclasses.replace(run.compute, parts=1)
  run = programs.everywhere(dataclasses.replace(run, compute=whole))
  tree, frozen = programs.split(run, config)
  method = run.method
  itemsize = 4 if run.compute.dtype == 'float32' else 2
  rows, length = settings_lib.rows(run), programs.length_of(run)
  pairs = 2 if isinstance(method, settings_lib.Dpo) else 1
  width, head = config.hidden_size, config.head_dim
  heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
  kernels = width * head * heads + 3 * width * config.intermediate_size
  return Totals(
    tree=_bytes(tree),
    frozen=_bytes(frozen),
    layer=kernels * itemsize,
    table=width * config.vocab_size * itemsize,
    rows=rows * pairs,
    length=length,
    itemsize=itemsize,
    copies=3 + programs.keeps_start(run),
    model_flops=flops.of_step(
      config, rows * pairs * length, length, 'full' in run.train.parts
    ),
  )


def of(
  totals: Totals,
  config: config_lib.ModelConfig,
  compute: settings_lib.Compute,
  mesh: Mapping[str, int],
  topology: topology_lib.Topology,
) -> Guess:
  """Returns a guess of a step's memory and time.

  Args:
    totals: of the run.
    config: of the model.
    compute: the settings that are tried.
    mesh: sizes of its axes.
    topology: of the devices.
  """
  chip, tensor = topology.chip, mesh['tensor']
  cut = mesh['fsdp'] * mesh['sequence'] * tensor
  # Gradients are as large as the tree, and float32 as well.
  trained = totals.tree * (1 + totals.copies)
  state = (trained + totals.frozen) // cut
  tokens = totals.rows * totals.length // compute.parts
  tokens //= mesh['data'] * mesh['fsdp'] * mesh['sequence']
  kept = config.num_hidden_layers * _kept(totals, config, compute, tensor)
  # One layer at work, gathered, with its gradients in float32.
  working = 2 * _inside(totals, config, tensor) * tokens
  gathered = (totals.layer + 2 * totals.layer * _F32 // totals.itemsize) // (
    tensor
  )
  heads = max(config.num_attention_heads // tensor, 1)
  chunk = min(compute.attention_chunk, totals.length)
  rows = max(tokens // totals.length, 1)
  scores = 3 * rows * heads * chunk * totals.length * _F32
  words = min(compute.vocabulary_chunk, config.vocab_size)
  logits = 2 * tokens * words * _F32 // tensor
  activations = kept * tokens + gathered + max(working + scores, logits)
  return Guess(
    state=state,
    activations=int(activations),
    seconds=_seconds(totals, config, compute, mesh, tokens, chip),
  )


def _kept(
  totals: Totals,
  config: config_lib.ModelConfig,
  compute: settings_lib.Compute,
  tensor: int,
) -> float:
  """Returns the bytes that a layer keeps of a token for the backward pass."""
  resid = config.hidden_size * _F32
  inside = _inside(totals, config, tensor)
  if compute.remat == 'full':
    return resid
  if compute.remat == 'dots_no_batch':
    return resid + inside
  scores = config.num_attention_heads / tensor * totals.length * _F32
  if compute.remat == 'dots':
    return resid + inside + scores
  return 2 * (resid + inside + scores)


def _inside(
  totals: Totals, config: config_lib.ModelConfig, tensor: int
) -> float:
  """Returns the bytes of a token that a layer's products give."""
  head = config.head_dim
  heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
  wide = heads * head + 2 * config.intermediate_size
  return (wide / tensor + 2 * config.hidden_size) * totals.itemsize


def _seconds(
  totals: Totals,
  config: config_lib.ModelConfig,
  compute: settings_lib.Compute,
  mesh: Mapping[str, int],
  tokens: int,
  chip: chips_lib.Chip,
) -> float:
  """Returns the longest of arithmetic, memory and links, and a part of others.

  Args:
    totals: of the run.
    config: of the model.
    compute: that is tried.
    mesh: sizes of its axes.
    tokens: of a device and part of the batch.
    chip: of the devices.
  """
  parts, layers, tensor = (
    compute.parts,
    config.num_hidden_layers,
    mesh['tensor'],
  )
  size = math.prod(mesh.values())
  again = 1 + _AGAIN[compute.remat]
  arithmetic = again * totals.model_flops / size / (chip.flops / chip.cores)
  passes = 2 + (compute.remat == 'full')
  weights = parts * (layers * totals.layer + totals.table) / tensor
  cut = mesh['fsdp'] * mesh['sequence']
  # Weights are gathered in each pass, gradients scattered once, in float32.
  share = (cut - 1) / cut
  wires = weights * share * (passes + _F32 / totals.itemsize)
  width = config.hidden_size * totals.itemsize * tokens * parts
  # Two sums of the residual's width a layer and pass.
  wires += layers * 2 * (passes + 1) * 2 * width * (tensor - 1) / tensor
  if mesh['sequence'] > 1:
    pair = 2 * config.num_key_value_heads * config.head_dim / tensor
    wires += (
      layers
      * passes
      * pair
      * tokens
      * parts
      * totals.itemsize
      * (mesh['sequence'] - 1)
    )
  # Gradients of what every part of the data axis holds.
  wires += 2 * totals.tree / cut / tensor * (mesh['data'] - 1) / mesh['data']
  links = wires / (chip.link_bandwidth * min(chip.links, 2))
  # Keys are read anew for each chunk of queries, states for each of words.
  chunks = -(-totals.length // compute.attention_chunk)
  keys = 2 * config.num_key_value_heads * config.head_dim / tensor
  reads = layers * passes * chunks * keys * tokens * totals.itemsize
  words = -(-config.vocab_size // compute.vocabulary_chunk)
  reads += 3 * words * config.hidden_size * tokens * totals.itemsize
  moved = parts * reads + (passes + 1) * weights
  moved += 8 * totals.tree / cut / tensor
  memory = moved / (chip.bandwidth / chip.cores)
  times = sorted((arithmetic, links, memory))
  return times[2] + 0.25 * (times[0] + times[1])


def _bytes(tree: object) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
