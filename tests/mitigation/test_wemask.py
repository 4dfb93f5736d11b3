"""The mask as parameters: which, where, and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.mitigation import activation
from me_jax.mitigation import wemask
from me_jax.models import sites
from tests.support import planted

LAYERS, WIDTH = planted.LAYERS, planted.WIDTH
REPORT = planted.report()
# Emergence in two steps: what comes after the ME Layer is still in the span.
TWO_STEPS = planted.report(layer=3, span=(3, 4), verdict='multi-step')
NONE = planted.report(layer=None, span=(), verdict='none')
SINK, OTHER = 9, 11  # massive channels
# BOS is massive wherever it stands; the second text holds none.
TEXTS = [[5, 1, 6, 1, 7, 8], [9, 10, 11, 12, 13, 14], [1, 15, 16, 17, 18, 19]]
BATCH = planted.batch_lib.make_batch(TEXTS)


@pytest.fixture(scope='module', name='stock')
def _stock():
  """Two heads of layer 5 look at the massive token, by different channels."""
  model, params = planted.build(
    [planted.Plant(4, 7, SINK, 5000.0), planted.Plant(4, 8, OTHER, 3000.0)]
  )
  for head, channel in ((2, SINK), (0, OTHER)):
    params = planted.with_a_sink(
      model, params, layer=5, head=head, channel=channel
    )
  norm = params['layers']['input_layernorm']
  random = np.random.default_rng(2)
  norm['weight'] = jnp.asarray(
    random.uniform(0.5, 1.0, norm['weight'].shape), jnp.float32
  )
  norm['weight'] = norm['weight'].at[:, SINK].set(1.5)
  return model, params


class _Given:
  """Reads what attention receives."""

  site, name = 'attn_in', 'given'

  def __call__(self, value, context):
    return value


@functools.partial(jax.jit, static_argnums=0)
def _look(model, params):
  observers = _Given(), sites.Capture('attn_probs', 'probs')
  out, state = model.clone(sites=sites.Sites(observers=observers)).apply(
    {'params': params},
    *BATCH,
    {'probs': jnp.arange(LAYERS)},
    mutable='intermediates',
  )
  return {'logits': out.logits, **sites.read(state)}


def look(model, params):
  """Returns logits, attn_in `[L, B, T, D]` and attention `[L, B, N, T, S]`."""
  return jax.device_get(_look(model, params))


def hit(model, params, layer):
  """Which tokens receive nothing where all channels are masked, `[B, T]`."""
  return (look(model, params)['given'][layer] == 0).all(axis=-1)


def same(a, b):
  """Whether two trees hold the very same arrays."""
  leaves = jax.tree.leaves(a), jax.tree.leaves(b)
  equal = all(x is y for x, y in zip(*leaves, strict=True))
  return equal and jax.tree.structure(a) == jax.tree.structure(b)


def snapshot(tree):
  return jax.tree.map(lambda leaf: np.array(leaf).tobytes(), tree)


def test_rate_zero_changes_no_bit(stock):
  model, params = stock
  for tokens in ('first', 'massive', [0, 3]):
    tree = wemask.wemask(model, params, REPORT, rate=0.0, tokens=tokens)
    assert (tree['layers']['sink_scale'] == 1).all()
    for name, value in look(model, tree).items():
      assert (value == look(model, params)[name]).all(), name


def test_the_scale_is_what_was_asked_for(stock):
  model, params = stock
  gamma_LD = np.abs(params['layers']['input_layernorm']['weight'])
  tree = wemask.wemask(
    model, params, REPORT, rate=0.3, strength=[0.25, 0.5, 1.0]
  )
  scale_LD = np.asarray(tree['layers']['sink_scale'])
  assert scale_LD.dtype == np.float32
  count = int(0.3 * WIDTH)
  for layer in range(LAYERS):
    keep = {5: 0.75, 6: 0.5, 7: 0.0}.get(layer, 1.0)
    largest = np.argsort(-gamma_LD[layer], kind='stable')[:count]
    expected_D = np.ones(WIDTH)
    expected_D[largest] = keep
    assert (scale_LD[layer] == expected_D).all()
  by_k = wemask.wemask(
    model, params, REPORT, k=count, strength=(0.25, 0.5, 1.0)
  )
  assert (by_k['layers']['sink_scale'] == scale_LD).all()


def test_layers_are_after_the_span(stock):
  model, _ = stock
  resolve = functools.partial(wemask.resolve, model)
  assert resolve(REPORT).layers == (5, 6, 7)
  # Not after the ME Layer, which is the first of the two.
  assert resolve(TWO_STEPS).layers == (5, 6, 7)
  assert resolve(TWO_STEPS, layers='next').layers == (5,)
  assert resolve(TWO_STEPS, tokens='massive').after_layer == 4
  assert resolve(TWO_STEPS, select='me_weight').me_layer == 3
  assert resolve(TWO_STEPS, layers=np.array([6, 0])).layers == (0, 6)
  assert resolve(NONE, layers=[2]).layers == (2,)
  last = planted.report(layer=6, span=(6,))
  assert resolve(last).layers == resolve(last, layers='next').layers == (7,)


def test_a_strength_stays_with_its_layer(stock):
  model, _ = stock
  recipe = wemask.resolve(model, REPORT, layers=[7, 2], strength=[0.1, 0.9])
  assert (recipe.layers, recipe.strength) == ((2, 7), (0.9, 0.1))
  recipe = wemask.resolve(model, REPORT, strength=0.4)
  assert recipe.strength == (0.4, 0.4, 0.4)


def test_the_marked_tokens_are_scaled_and_no_others(stock):
  model, params = stock
  first = np.eye(1, 6, dtype=bool).repeat(3, axis=0)
  everything = dict(rate=1.0)
  tree = wemask.wemask(model, params, REPORT, **everything)
  assert tree.keys() == params.keys()
  assert (hit(model, tree, 6) == first).all()
  assert not hit(model, tree, 4).any()

  tree = wemask.wemask(model, params, REPORT, tokens=[3, 1], **everything)
  assert tree['sink_positions'].tolist() == [0, 1, 0, 1]
  assert 'sink_bound' not in tree
  assert (hit(model, tree, 5) == np.isin(np.arange(6), [1, 3])).all()

  tree = wemask.wemask(model, params, REPORT, tokens='massive', **everything)
  bound = [0.0] * LAYERS
  bound[4] = pytest.approx(300.0)  # 1000 × the median; 100 at least
  assert tree['sink_bound'].tolist() == bound
  assert 'sink_positions' not in tree
  massive = np.array(TEXTS) == planted.BOS
  assert massive.sum() == 3
  for layer in (5, 7):
    assert (hit(model, tree, layer) == massive).all()
  small = planted.report(median=0.01)
  assert wemask.resolve(model, small, tokens='massive').bound == 100


def test_masking_the_channel_takes_that_heads_sink_away(stock):
  model, params = stock
  before = look(model, params)['probs']
  tree = wemask.wemask(
    model, params, REPORT, k=1, layers='next', tokens='massive'
  )
  masked_LD = np.asarray(tree['layers']['sink_scale']) == 0
  assert np.argwhere(masked_LD).tolist() == [[5, SINK]]
  after = look(model, tree)['probs']
  # The third text's later queries, how they look at its first token.
  before_N, after_N = (x[5, 2, :, 1:, 0].mean(axis=1) for x in (before, after))
  assert before_N[0] > 0.9 and before_N[2] > 0.9
  assert after_N[2] < 0.05
  # The fourth head has the third one's keys, and is no sink.
  np.testing.assert_allclose(after_N[:2], before_N[:2], atol=0.02)
  assert before_N[3] < 0.3
  # Layers before, and a text without a massive token, have nothing to lose.
  assert (after[:5] == before[:5]).all()
  assert (after[:, 1] == before[:, 1]).all()


def test_masks_multiply(stock):
  model, params = stock
  once = functools.partial(wemask.wemask, model)
  a = once(params, REPORT, rate=0.5, strength=0.5)
  b = once(params, REPORT, rate=0.25, strength=0.4, layers=[0, 5])
  scales = [np.asarray(x['layers']['sink_scale']) for x in (a, b)]
  both = once(a, REPORT, rate=0.25, strength=0.4, layers=[0, 5])
  assert (both['layers']['sink_scale'] == scales[0] * scales[1]).all()
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), a)
  assert once(half, REPORT)['layers']['sink_scale'].dtype == jnp.float32
  for tokens in ('massive', [1, 2]):
    marked = once(params, REPORT, tokens=tokens)
    twice = once(marked, REPORT, tokens=tokens, strength=0.5, rate=1.0)
    assert (
      twice['layers']['sink_scale'] == marked['layers']['sink_scale'] * 0.5
    )[5:].all()


def test_one_model_has_one_set_of_masked_tokens(stock):
  model, params = stock
  ways = ['first', 'massive', [1, 2], [1, 3]]
  for i, before in enumerate(ways):
    tree = wemask.wemask(model, params, REPORT, tokens=before)
    for after in ways[:i] + ways[i + 1 :]:
      with pytest.raises(me_jax.MeJaxError, match='other tokens already'):
        wemask.wemask(model, tree, REPORT, tokens=after)


def test_a_mask_of_ones_marks_no_tokens(stock):
  model, params = stock
  for before in (wemask.ones(model, params), {**params, 'sink_bound': None}):
    tree = wemask.wemask(model, before, REPORT, tokens=[2])
    wanted = wemask.wemask(model, params, REPORT, tokens=[2])
    assert snapshot(tree) == snapshot(wanted)


def test_remove_gives_the_stock_tree_back(stock):
  model, params = stock
  for tokens in ('first', 'massive', [2]):
    tree = wemask.wemask(model, params, REPORT, tokens=tokens)
    assert not same(tree, params)
    assert same(wemask.remove(tree), params)
    ones = wemask.ones(model, tree)
    assert (ones['layers'].pop('sink_scale') == 1).all()
    assert same(ones, params)
  assert same(wemask.remove(params), params)


def test_nothing_that_is_given_changes(stock):
  model, params = stock
  tree = wemask.wemask(model, params, REPORT, tokens='massive', strength=0.5)
  for given in (params, tree):
    before = snapshot(given)
    wemask.wemask(model, given, REPORT, tokens='massive')
    wemask.with_scale(given, np.zeros((LAYERS, WIDTH)))
    wemask.ones(model, given)
    wemask.remove(given)
    assert snapshot(given) == before


def test_the_scale_of_activation_is_the_published_choice(stock):
  model, params = stock
  recipe = wemask.resolve(
    model, REPORT, k=6, select='activation', strength=[1.0, 0.5, 0.2]
  )
  scale_LD = wemask.scale(model, params, recipe, batch=BATCH)
  masked_LD = activation.select(
    model, params, BATCH, (5, 6, 7), 6, (1.0, 0.5, 0.2)
  )
  assert ((scale_LD < 1) == masked_LD).all() and masked_LD.sum() == 18
  backwards = activation.select(
    model, params, BATCH, (7, 6, 5), 6, (0.2, 0.5, 1.0)
  )
  assert (backwards == masked_LD).all()
  with pytest.raises(me_jax.MeJaxError, match='needs texts'):
    wemask.apply(model, params, recipe)


def test_a_recipe_survives_json_and_a_checkpoint(stock, tmp_path):
  model, params = stock
  recipes = [
    wemask.resolve(model, REPORT, strength=[0.1, 0.2, 0.30000000000000004]),
    wemask.resolve(model, TWO_STEPS, select='random', seed=7, layers='next'),
    wemask.resolve(model, REPORT, tokens='massive', k=np.int64(3)),
    wemask.resolve(model, NONE, tokens=np.array([4, 0]), layers=[1]),
  ]
  told = [recipe.to_json() for recipe in recipes]
  for recipe, content in zip(recipes, json.loads(json.dumps(told))):
    lists = {
      name: tuple(value)
      for name, value in content.items()
      if isinstance(value, list)
    }
    assert wemask.Recipe(**content | lists) == recipe
  tree = wemask.apply(model, params, recipes[0])
  lm = me_jax.LoadedModel(model, tree, None, model.config)
  folder = tmp_path / 'masked'
  me_jax.save(lm, folder, metadata={'recipes': told})
  assert me_jax.read_metadata(folder) == {'recipes': told}
  again = me_jax.load(str(folder)).params
  assert snapshot(again) == snapshot(tree)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (dict(rate=float('nan')), 'rate is nan'),
    (dict(rate=-1), 'rate is -1, must be between 0 and 1'),
    (dict(rate=2), 'rate is 2'),
    (dict(rate='half'), 'rate is half'),
    (dict(rate=None), 'rate is None'),
    (dict(k=65), 'cannot mask 65 channels: the model has 64'),
    (dict(k=-1), 'cannot mask -1 channels'),
    (dict(k=2.5), 'k must be given in whole numbers'),
    (dict(strength=1.5), 'strength of a mask is 1.5'),
    (dict(strength=float('nan')), 'strength of a mask is nan'),
    (dict(strength='all'), 'strength of a mask is all'),
    (dict(strength=[[0.5]]), 'strength of a mask is'),
    (dict(strength=[1.0, 0.5]), '2 strengths for 3 layers'),
    (dict(select='wieght'), r"did you mean 'weight'\?"),
    (dict(select='all'), "select is 'all', must be one of weight, me_weight"),
    (dict(layers='afer'), r"did you mean 'after'\?"),
    (dict(layers=[]), 'layers must be some of 0 to 7'),
    (dict(layers=[8]), r'layers must be some of 0 to 7, not \[8\]'),
    (dict(layers=[-1]), 'layers must be some of 0 to 7'),
    (dict(layers=[5.5]), 'layers must be given in whole numbers'),
    (dict(layers=5), 'layers must be given in whole numbers, not 5'),
    (dict(layers=[5, 5]), 'layers lists one twice'),
    (dict(tokens='frist'), r"did you mean 'first'\?"),
    (dict(tokens=[-1]), r'positions in a text, some of 0 to 255, not \[-1\]'),
    (dict(tokens=[]), 'positions in a text'),
    (dict(tokens=[10**12]), 'positions in a text'),
    (dict(tokens=[0.5]), 'tokens must be given in whole numbers'),
    (dict(tokens=[1], select='activation'), 'tokens cannot be positions'),
    (dict(tokens='massive', layers=[4, 6]), 'layer 4 cannot be masked'),
    (dict(seed=-1), 'seed is -1'),
  ],
)
def test_impossible_masks_are_one_line(stock, arguments, words):
  model, params = stock
  with pytest.raises(me_jax.MeJaxError, match=words) as caught:
    wemask.wemask(model, params, REPORT, **arguments)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('report', 'arguments', 'words'),
  [
    (NONE, {}, r'no ME Layer \(none\) for .* follow: list the layers'),
    (NONE, dict(layers='next'), 'list the layers to mask'),
    (NONE, dict(layers=[3], tokens='massive'), 'needs an ME Layer'),
    (NONE, dict(layers=[3], select='me_weight'), 'needs an ME Layer'),
    (planted.report(7, (7,)), {}, 'no layer comes after the emergence span'),
    (None, {}, 'report must be what find_me_layer returns, not None'),
    (
      dataclasses.replace(REPORT, median=np.ones(12)),
      {},
      'a model of 12 layers, and this one has 8',
    ),
  ],
)
def test_without_an_me_layer_some_masks_cannot_be(
  stock, report, arguments, words
):
  model, params = stock
  with pytest.raises(me_jax.MeJaxError, match=words):
    wemask.wemask(model, params, report, **arguments)


def test_a_norm_that_is_not_there_is_missed_before_any_work():
  model, _ = planted.build([], norm_placement='post')
  for select in ('weight', 'weight_bottom', 'me_weight'):
    with pytest.raises(me_jax.MeJaxError, match='use activation'):
      wemask.resolve(model, REPORT, select=select)
  assert wemask.resolve(model, REPORT, select='random').count == WIDTH // 2


def test_recipes_cannot_be_changed(stock):
  recipe = wemask.resolve(stock[0], REPORT)
  with pytest.raises(dataclasses.FrozenInstanceError):
    recipe.count = 3
