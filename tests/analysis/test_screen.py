"""The screen of the weights, on models whose answer is known."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.analysis import quadratic_form as form
from me_jax.analysis import screen as screen_lib
from me_jax.analysis import screen_layer
from tests.support import planted
from tests.support.planted import Plant

SPIKE, OTHER = 9, 20
TOP = 20  # everywhere: the length of the lists is compiled in
WRITER = Plant(3, 7, SPIKE, 5000.0)
ERASER = Plant(6, 2, SPIKE, -4000.0, read=SPIKE)


def run(plants, *, edit=None, **kwargs):
  model, params = planted.build(plants, **kwargs)
  if edit:
    params = edit(params)
  return screen_lib.screen(model, params, top=TOP)


def place(found):
  entry = found.prediction.entry
  return entry.layer, entry.channel, entry.neuron


def noisier(plants, factor, **kwargs):
  """Multiplies all random weights of the branches, but not the plants."""
  model, params = planted.build(plants, **kwargs)
  _, plain = planted.build([], **kwargs)
  layers = jax.tree.map(
    lambda with_plants, without: jnp.where(
      (with_plants == without) & (jnp.abs(without) < 0.5),
      with_plants * factor,
      with_plants,
    ),
    params['layers'],
    plain['layers'],
  )
  return model, params | {'layers': layers}


@pytest.mark.parametrize(('layer', 'later'), [(0, 1), (0, 7), (3, 6), (6, 7)])
def test_names_a_writer_that_is_erased_later(layer, later):
  found = run(
    [
      Plant(layer, 7, SPIKE, 5000.0),
      Plant(later, 2, SPIKE, -4000.0, read=SPIKE),
    ]
  )
  assert place(found) == (layer, SPIKE, 7)
  entry = found.prediction.entry
  assert found.prediction.kind == 'writer and eraser'
  assert found.prediction.clear and found.prediction.sign == 1
  assert found.prediction.strength > 5 and found.prediction.over_control > 5
  assert entry.amount == pytest.approx(5000, rel=0.01)
  assert entry.erased == pytest.approx(4000, rel=0.01)
  assert (entry.eraser_layer, entry.eraser_neuron) == (later, 2)
  assert entry.role == 'writer'


def test_the_plain_ranking_has_the_eraser_first_and_tells_it():
  found = run([WRITER, ERASER._replace(amount=-9000.0)])
  first, second = found.plain[:2]
  assert (first.layer, first.neuron, first.role) == (6, 2, 'eraser')
  assert (second.layer, second.neuron, second.role) == (3, 7, 'writer')
  assert first.answer == pytest.approx(-9000, rel=0.01)
  assert (found.blocks[0].layer, found.blocks[0].channel) == (6, SPIKE)
  assert place(found) == (3, SPIKE, 7)


def test_a_negative_spike_is_predicted_with_its_sign():
  # The eraser's gate must open for a negative channel, and its up row is then
  # negative too: what it writes is positive.
  def edit(params):
    mlp = params['layers']['mlp']
    for name in ('gate_proj', 'up_proj'):
      mlp[name]['kernel'] = mlp[name]['kernel'].at[6, :, 2].multiply(-1)
    return params

  found = run(
    [WRITER._replace(amount=-5000.0), ERASER._replace(amount=4000.0)], edit=edit
  )
  assert place(found) == (3, SPIKE, 7)
  assert found.prediction.sign == -1 and found.prediction.clear
  # The same eraser does nothing to a positive spike.
  found = run([WRITER, ERASER._replace(amount=4000.0)], edit=edit)
  assert found.prediction.kind == 'writer only'


def test_without_an_eraser_the_writer_is_a_weak_guess():
  found = run([WRITER])
  assert place(found) == (3, SPIKE, 7)
  assert found.prediction.kind == 'writer only' and not found.prediction.clear
  assert 'weakly' in found.headline()


def test_an_eraser_before_its_writer_is_none():
  found = run([ERASER._replace(layer=1), WRITER])
  assert found.prediction.kind == 'writer only'


def test_an_amplifier_is_no_writer():
  found = run(
    [
      Plant(3, 7, SPIKE, 2000.0),
      Plant(4, 2, SPIKE, 3000.0, read=SPIKE),
      ERASER._replace(amount=-5000.0),
    ]
  )
  assert place(found) == (3, SPIKE, 7)
  roles = {(e.layer, e.neuron): e.role for e in found.plain[:3]}
  assert roles == {(3, 7): 'writer', (4, 2): 'amplifier', (6, 2): 'eraser'}
  assert found.prediction.clear


def test_a_smaller_decoy_with_an_eraser_of_its_own_is_second():
  found = run(
    [
      Plant(1, 3, OTHER, 600.0),
      Plant(2, 5, OTHER, -600.0, read=OTHER),
      WRITER,
      ERASER,
    ]
  )
  assert place(found) == (3, SPIKE, 7) and found.prediction.clear
  assert found.prediction.strength == pytest.approx(
    (5000 * 4000) ** 0.5 / 600, rel=0.02
  )
  assert (found.pairs[1].layer, found.pairs[1].channel) == (1, OTHER)


def test_two_equal_writers_are_not_clear():
  found = run(
    [
      WRITER,
      ERASER,
      Plant(2, 3, OTHER, 5000.0),
      Plant(5, 5, OTHER, -4000.0, read=OTHER),
    ]
  )
  assert found.prediction.strength == pytest.approx(1, abs=0.05)
  assert not found.prediction.clear
  assert {(e.layer, e.channel) for e in found.pairs[:2]} == {
    (3, SPIKE),
    (2, OTHER),
  }


def test_two_neurons_of_one_layer_share_the_prediction():
  plants = [Plant(3, 7, SPIKE, 3500.0), Plant(3, 2, SPIKE, 1500.0), ERASER]
  found = run(plants)
  assert found.prediction.clear, 'they are no rivals'
  assert found.prediction.write == pytest.approx(5000, rel=0.02)
  assert [n.index for n in found.prediction.neurons] == [7, 2]
  assert found.prediction.neurons[0].share == pytest.approx(0.7, abs=0.01)
  assert found.prediction.neurons[1].share == pytest.approx(0.3, abs=0.01)
  model, params = planted.build(plants)
  assert screen_lib.screen(model, params, top=1).prediction == found.prediction


@pytest.mark.parametrize(
  'fields',
  [
    {'norm_offset': 1.0, 'hidden_act': 'gelu_pytorch_tanh'},
    {'mlp_bias': True, 'tie_word_embeddings': True, 'qk_norm': 'head'},
  ],
)
def test_other_architectures(fields):
  found = run([WRITER, ERASER], **fields)
  assert place(found) == (3, SPIKE, 7) and found.prediction.clear


def test_bfloat16_parameters():
  model, params = planted.build([WRITER, ERASER])
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  found = screen_lib.screen(
    model.clone(param_dtype=jnp.bfloat16, dtype=jnp.bfloat16), low, top=TOP
  )
  assert place(found) == (3, SPIKE, 7) and found.prediction.clear


@pytest.mark.parametrize('placement', ['sandwich', 'post'])
def test_a_norm_after_the_ffn_bounds_what_is_written(placement):
  weight = 600.0

  def edit(params):
    norm = params['layers']['post_feedforward_layernorm']
    at = (jnp.array([3, 6]), SPIKE)
    norm['weight'] = norm['weight'].at[at].set(weight)
    return params

  found = run([WRITER, ERASER], edit=edit, norm_placement=placement)
  assert place(found) == (3, SPIKE, 7)
  # sqrt(D) times the norm's weight, however large the neuron.
  bound = weight * planted.WIDTH**0.5
  entry = found.prediction.entry
  assert entry.amount == pytest.approx(bound, rel=0.01)
  assert entry.erased == pytest.approx(bound, rel=0.01)
  assert found.prediction.write == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_larger_noise_does_not_hide_the_plants(seed):
  model, params = noisier([WRITER, ERASER], 8.0, seed=seed)
  found = screen_lib.screen(model, params, top=TOP)
  assert place(found) == (3, SPIKE, 7) and found.prediction.clear


@pytest.mark.parametrize('factor', [1.0, 10.0, 40.0])
def test_random_weights_predict_nothing(factor):
  found = screen_lib.screen(*noisier([], factor), top=TOP)
  assert found.prediction is None
  assert 'no single layer' in found.headline()


def test_gradual_emergence_predicts_nothing_clear():
  found = run(
    [Plant(1, 7, SPIKE, 800.0)]
    + [Plant(i, 7, SPIKE, 800.0, read=SPIKE) for i in range(2, 7)]
  )
  assert found.prediction is None or not found.prediction.clear


def test_the_control_has_the_same_rows_and_no_pairs():
  found = run([WRITER, ERASER])
  best = found.control_pairs[0].score if found.control_pairs else 0
  assert best < found.pairs[0].score / 10


def test_muted_channels_are_counted():
  def edit(params):
    norm = params['layers']['post_attention_layernorm']
    norm['weight'] = norm['weight'].at[4:6, SPIKE].set(0.01)
    return params

  found = run([WRITER, ERASER], edit=edit)
  assert found.prediction.muted == 1.0
  assert found.prediction.muted_usual == pytest.approx(1 / planted.WIDTH)
  assert run([WRITER, ERASER]).prediction.muted == 0.0


def reference(params, layer):
  """Scores of one layer by plain loops in float64."""
  take = lambda name: np.asarray(params['layers']['mlp'][name]['kernel'][layer])  # noqa: E731
  gate_DF, up_DF, down_FD = (
    take(f'{n}_proj').astype(np.float64) for n in ('gate', 'up', 'down')
  )
  gamma_D1 = np.asarray(
    params['layers']['post_attention_layernorm']['weight'][layer], np.float64
  )[:, None]
  return gate_DF * gamma_D1, up_DF * gamma_D1, down_FD


def test_formulas_equal_a_float64_version():
  model, params = noisier([WRITER, ERASER], 5.0)
  random = np.random.default_rng(0)
  norm = params['layers']['post_attention_layernorm']
  norm['weight'] = jnp.asarray(
    random.lognormal(size=norm['weight'].shape), jnp.float32
  )
  rows, *biases = form.read(model.config, params, 2)
  each = form.neurons(rows, *biases)
  gate_DF, up_DF, down_FD = reference(params, 2)
  width, count = gate_DF.shape
  forms = np.einsum('FK,DF,EF->KDE', down_FD, gate_DF, up_DF)
  np.testing.assert_allclose(
    form.frobenius(rows), np.linalg.norm(forms, axis=(1, 2)), rtol=1e-5
  )
  lengths = np.linalg.norm(gate_DF, axis=0) * np.linalg.norm(up_DF, axis=0)
  np.testing.assert_allclose(
    form.plain_scores(rows, each), np.abs(down_FD.T) * lengths, rtol=1e-5
  )
  # The amount from the eigenvalues of the form without the channel.
  for k, i in ((0, 0), (SPIKE, 7), (5, 23)):
    gate_D, up_D = gate_DF[:, i].copy(), up_DF[:, i].copy()
    gate_D[k] = up_D[k] = 0
    outer = down_FD[i, k] * np.outer(gate_D, up_D)
    values = np.linalg.eigvalsh((outer + outer.T) / 2)
    np.testing.assert_allclose(
      form.amounts(model.config, rows, each)[k, i],
      width * (values[0] + values[-1]),
      rtol=2e-4,
    )
  # The answer is the FFN's own.
  removal_DS, _, _ = form.answers(model.config, rows, each)
  for s, sign in enumerate((1, -1)):
    for k in (0, SPIKE, 40):
      h_D = np.zeros(width)
      h_D[k] = sign * width**0.5
      gate_F, up_F = h_D @ gate_DF, h_D @ up_DF
      write = (gate_F / (1 + np.exp(-gate_F)) * up_F) @ down_FD[:, k]
      np.testing.assert_allclose(removal_DS[k, s], -sign * write, rtol=1e-4)


def test_the_first_entries_are_those_of_a_full_sort():
  model, params = noisier([WRITER, ERASER], 5.0)
  found = screen_lib.screen(model, params, top=TOP)
  every = []
  for layer in range(planted.LAYERS):
    gate_DF, up_DF, down_FD = reference(params, layer)
    lengths = np.linalg.norm(gate_DF, axis=0) * np.linalg.norm(up_DF, axis=0)
    for (i, k), w in np.ndenumerate(down_FD):
      every.append((abs(w) * lengths[i], layer, k, i))
  every.sort(reverse=True)
  assert [(e.layer, e.channel, e.neuron) for e in found.plain] == [
    entry[1:] for entry in every[:TOP]
  ]


def test_the_best_write_finds_the_largest_eigenvalue():
  model, params = noisier([WRITER, ERASER], 5.0, seed=3)
  gate_DF, up_DF, down_FD = reference(params, 5)
  for k, sign in ((4, 1), (4, -1), (30, 1)):
    write, share_F = form.best_write(
      model.config, params, jnp.int32(5), jnp.int32(k), jnp.float32(sign)
    )
    u_DD = sign * np.einsum('F,DF,EF->DE', down_FD[:, k], gate_DF, up_DF)
    values, vectors = np.linalg.eigh((u_DD + u_DD.T) / 2)
    writes = []
    for h_D in (vectors[:, -1] * 8, -vectors[:, -1] * 8):
      gate_F, up_F = h_D @ gate_DF, h_D @ up_DF
      writes.append(
        sign * (gate_F / (1 + np.exp(-gate_F)) * up_F) @ down_FD[:, k]
      )
    assert write == pytest.approx(max(writes), rel=0.02)
    assert share_F.sum() == pytest.approx(1, abs=1e-4)


def test_layers_share_one_compile():
  screen_layer.score_layer.clear_cache()
  run([WRITER, ERASER])
  assert screen_layer.score_layer._cache_size() == 1


def test_memory_does_not_grow_with_depth():
  """Temporary memory of what takes a layer out, for 8 and for 64 layers."""
  import dataclasses

  from me_jax.models import params as params_lib

  sizes = []
  for layers in (8, 64):
    model, _ = planted.build([])
    config = dataclasses.replace(model.config, num_hidden_layers=layers)
    compiled = screen_layer.read.lower(
      config,
      params_lib.param_shapes(config, 'float32'),
      jnp.int32(0),
      jnp.zeros((3, planted.FFN), jnp.int32),
    ).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  assert sizes[1] <= 1.05 * sizes[0]


def test_json_is_plain_and_complete():
  values = json.loads(json.dumps(run([WRITER, ERASER]).to_json()))
  assert values['prediction']['entry']['layer'] == 3
  assert values['plain'][0]['role'] in ('writer', 'eraser')
  assert values['headline'].startswith('The weights predict layer 3')
  assert json.loads(json.dumps(run([]).to_json()))['prediction'] is None


def test_bad_input_is_refused():
  model, params = planted.build([])
  with pytest.raises(me_jax.MeJaxError, match='top is 0'):
    screen_lib.screen(model, params, top=0)
  with pytest.raises(me_jax.MeJaxError, match='stacked'):
    screen_lib.screen(model, {'layers_0': params['layers']})
  params['layers']['mlp']['up_proj']['kernel'] = (
    params['layers']['mlp']['up_proj']['kernel'].at[2, 0, 0].set(jnp.nan)
  )
  with pytest.raises(me_jax.MeJaxError, match='layer 2'):
    screen_lib.screen(model, params)
