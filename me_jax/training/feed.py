"""What stands between rows of data and the batch of a step?

Nothing in supervised training; the reference's log-probabilities in DPO;
answers, drawn and judged, in GRPO.

Letters: B rows, T time, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
import contextlib
import functools
import hashlib
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from me_jax import errors
from me_jax.analysis import host as host_lib
from me_jax.checkpoints import processes
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.training import batches as batches_lib
from me_jax.training import objectives
from me_jax.training import packing
from me_jax.training import placement
from me_jax.training import prepare as prepare_lib
from me_jax.training import rollouts as rollouts_lib
from me_jax.training import settings as settings_lib
from me_jax.training import sharding as sharding_lib
from me_jax.training import step as step_lib

_PIECE = 8  # bytes of a row's name

Progress = Callable[[str, int, int], Any]


class Fed(NamedTuple):
  """A batch and what is known of it.

  Attributes:
    batch: arrays over all devices, as the objective takes them.
    packed: this process's rows, on the host.
    tokens: in the batch, over all processes, without padding.
    about: numbers for the log.
    texts: of answers that were drawn.
  """

  batch: Any
  packed: packing.Packed
  tokens: int
  about: dict[str, float]
  texts: tuple[str, ...] = ()


Feed = Callable[[step_lib.State, int], Fed]


def make(
  plan: prepare_lib.Plan,
  placed: prepare_lib.Placed,
  progress: Progress | None = None,
) -> Feed:
  """Returns the function that makes the batch of a step.

  It must be called before the state is restored: the reference is the model as
  it is now.

  Args:
    plan: of the run.
    placed: its model.
    progress: called with what is done, and how far it is.

  Returns:
    A function of the state and the steps done, which moves `plan.batches` on.
  """
  method = plan.run.method
  if isinstance(method, settings_lib.Dpo):
    return _dpo(plan, placed, progress)
  if isinstance(method, settings_lib.Grpo):
    return _grpo(plan, placed)

  def feed(state: step_lib.State, step: int) -> Fed:
    del state, step  # The order is a function of the step by itself.
    packed = cast(packing.Packed, next(plan.batches))
    return _fed(plan, packed, packed)

  return feed


def pair_scorer(
  model: decoder.Decoder, run: settings_lib.Run, mesh: jax.sharding.Mesh
) -> Any:
  """Returns the compiled function of DPO's reference, a sum for each answer."""
  everywhere = jax.NamedSharding(mesh, jax.P())

  @functools.partial(jax.jit, out_shardings=everywhere)
  def score(tree: Any, frozen: Any, pairs: packing.PackedPairs) -> Any:
    params = prepare_lib.computed(run, tree, frozen)
    return objectives.answer_sums(
      model, params, pairs, chunk=run.compute.vocabulary_chunk
    )

  return score


def token_scorer(model: decoder.Decoder, run: settings_lib.Run) -> Any:
  """Returns the compiled function that scores the tokens of GRPO's answers."""

  @jax.jit
  def score(tree: Any, frozen: Any, packed: packing.Packed) -> jax.Array:
    return objectives.token_logprobs(
      model,
      prepare_lib.computed(run, tree, frozen),
      packed,
      chunk=run.compute.vocabulary_chunk,
      temperature=cast(settings_lib.Grpo, run.method).sampling.temperature,
    )

  return score


def _fed(plan: Any, batch: Any, packed: packing.Packed, **about: Any) -> Fed:
  texts = about.pop('texts', ())
  tokens, about = _of_all(
    plan, int(np.count_nonzero(packed.segments_BT)), about
  )
  return Fed(
    placement.to_global(batch, plan.mesh, plan.rules),
    packed,
    tokens,
    about,
    texts,
  )


def _of_all(
  plan: prepare_lib.Plan, tokens: int, means: dict[str, float]
) -> tuple[int, dict[str, float]]:
  """Returns the sum of tokens and the means over the rows of all processes."""
  if jax.process_count() == 1:
    return int(tokens), means
  from jax.experimental import multihost_utils

  _, host = placement.row_share(plan.mesh, plan.rules)
  found = multihost_utils.process_allgather(
    np.array([host, tokens, *means.values()], np.float32)
  )
  # Some may hold the same rows.
  shares = np.array(list({int(one[0]): one[1:] for one in found}.values()))
  everywhere = shares[:, 1:].mean(axis=0).tolist()
  return int(shares[:, 0].sum()), dict(zip(means, everywhere))


def _dpo(
  plan: prepare_lib.Plan,
  placed: prepare_lib.Placed,
  progress: Progress | None,
) -> Feed:
  """Returns the feed of pairs."""
  run = plan.run
  reference = pair_scorer(placed.model, run, plan.mesh)

  def score(tree: Any, pairs: packing.PackedPairs) -> list[np.ndarray]:
    found = reference(
      tree, placed.frozen, placement.to_global(pairs, plan.mesh, plan.rules)
    )
    hosts, host = placement.row_share(plan.mesh, plan.rules)
    return [np.split(np.asarray(values), hosts)[host] for values in found]

  def together(pairs: packing.PackedPairs, sums: Any) -> Fed:
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *pairs)
    return _fed(plan, objectives.Pairs(pairs, *sums), both)

  if cast(settings_lib.Dpo, run.method).reference == 'beside':
    tree = jax.tree.map(lambda leaf: leaf.copy(), placed.state.tree)

    def feed(state: step_lib.State, step: int) -> Fed:
      del state, step
      pairs = cast(packing.PackedPairs, next(plan.batches))
      return together(pairs, score(tree, pairs))

    return feed

  table = _table(plan, functools.partial(score, placed.state.tree), progress)

  def look_up(state: step_lib.State, step: int) -> Fed:
    del state, step
    pairs = cast(packing.PackedPairs, next(plan.batches))
    sums = np.array([table[name] for name in _names(pairs)], np.float32)
    return together(pairs, (sums[:, 0], sums[:, 1]))

  return look_up


def _table(
  plan: prepare_lib.Plan,
  score: Callable[[packing.PackedPairs], list[np.ndarray]],
  progress: Progress | None,
) -> dict[bytes, np.ndarray]:
  """Scores every pair that the run will see, once."""
  batches, run = plan.batches, plan.run
  start = batches.state()
  # One more than an epoch: the shares of a mix are rounded.
  count = min(batches.epoch + 1, run.steps)
  table: dict[bytes, np.ndarray] = {}
  for done in range(count):
    pairs = cast(packing.PackedPairs, next(batches))
    table |= zip(_names(pairs), np.stack(score(pairs), axis=1))
    if progress is not None:
      progress('scoring pairs by the reference', done + 1, count)
  batches.restore(start)
  return _exchanged(table)


def _exchanged(table: dict[bytes, np.ndarray]) -> dict[bytes, np.ndarray]:
  """Returns the tables of all processes as one."""
  if jax.process_count() == 1:
    return table
  from jax.experimental import multihost_utils

  sizes = multihost_utils.process_allgather(np.array(len(table)))
  names = np.zeros((sizes.max(), _PIECE), np.uint8)
  values = np.zeros((sizes.max(), 2), np.float32)
  for i, (name, pair) in enumerate(table.items()):
    names[i], values[i] = np.frombuffer(name, np.uint8), pair
  return {
    name.tobytes(): pair
    for size, *some in zip(
      sizes, *multihost_utils.process_allgather((names, values))
    )
    for name, pair in zip(*(rows[:size] for rows in some))
  }


def _names(pairs: packing.PackedPairs) -> list[bytes]:
  """Returns what tells each pair from others."""
  return [
    hashlib.blake2b(
      chosen.tobytes() + rejected.tobytes(), digest_size=_PIECE
    ).digest()
    for chosen, rejected in zip(
      pairs.chosen.tokens_BT, pairs.rejected.tokens_BT
    )
  ]


def _grpo(plan: prepare_lib.Plan, placed: prepare_lib.Placed) -> Feed:
  """Returns the feed of answers."""
  run, method = plan.run, cast(settings_lib.Grpo, plan.run.method)
  start = None
  if method.kl:
    start = jax.tree.map(lambda leaf: leaf.copy(), placed.state.tree)
  hosts, host = placement.row_share(plan.mesh, plan.rules)

  score = token_scorer(placed.model, run)
  last: list[Fed] = []

  def feed(state: step_lib.State, step: int) -> Fed:
    if step % method.updates:
      return last[0]
    prompts = cast(batches_lib.Prompts, next(plan.batches))
    # As the loss computes with them: what is scored is what was drawn.
    params = host_lib.readable(
      prepare_lib.computed(run, state.tree, placed.frozen)
    )

    def draw() -> rollouts_lib.Rollouts:
      with _own_devices(plan, params) as own:
        return rollouts_lib.sample(
          placed.model,
          own,
          prompts,
          method.sampling,
          plan.tokenizer,
          length=plan.length,
          seed=(run.seed, step),
          first=host * run.data.batch // hosts,
        )

    # A reward may fail for the answers of one process alone.
    rolled = processes.together(draw)
    fed = _fed(
      plan,
      objectives.Answers(rolled.packed, rolled.advantages_B1),
      rolled.packed,
      texts=rolled.texts,
      **rolled.means(),
    )
    batch = fed.batch
    if method.updates > 1:
      old_BT = score(state.tree, placed.frozen, batch.texts)
      batch = batch._replace(old_logp_BT=old_BT)
    if start is not None:
      reference_BT = score(start, placed.frozen, batch.texts)
      batch = batch._replace(reference_logp_BT=reference_BT)
    last[:] = [fed._replace(batch=batch)]
    return last[0]

  return feed


def own_mesh(
  config: config_lib.ModelConfig, devices: Sequence[jax.Device]
) -> jax.sharding.Mesh:
  """Returns the mesh on which one of several processes draws its answers.

  Cut over heads and FFN width as far as they go: each token needs all
  parameters, and along fsdp each would gather them all.

  Args:
    config: of the model.
    devices: of the process.

  Raises:
    MeJaxError: the model fits no mesh of them.
  """
  count = len(devices)
  for tensor in range(count, 1, -1):
    if count % tensor == 0:
      with contextlib.suppress(errors.MeJaxError):
        mesh = sharding_lib.mesh(devices=devices, tensor=tensor)
        sharding_lib.fit(config, mesh)
        return mesh
  return sharding_lib.mesh(devices=devices)


@contextlib.contextmanager
def _own_devices(
  plan: prepare_lib.Plan, params: decoder.Params
) -> Generator[decoder.Params]:
  """Yields parameters on this process's devices, which are the mesh inside.

  Each process draws other answers, in another number of steps: on the mesh of
  all, they would be told to take the same ones.
  """
  if jax.process_count() == 1:
    yield params
    return
  mesh = own_mesh(plan.config, jax.local_devices())
  rules = sharding_lib.fit(plan.config, mesh)
  places = sharding_lib.shardings(plan.config, mesh, rules, params=params)
  with sharding_lib.use(mesh, rules):
    yield jax.device_put(params, places)
