"""Generation equals running whole texts again and again, however it is served."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import me_jax
from me_jax.generation import generate as generate_lib
from me_jax.generation import serve
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib
from me_jax.models import params as params_lib
from tests.support import planted

NEW, LAYERS = 12, 4
FAMILIES = {
  'llama': {},
  'some windows': dict(
    norm_placement='sandwich', norm_offset=1.0, qk_norm='head',
    sliding_window=4, layer_windowed=(True, False) * 4,
    rope_local=config_lib.RopeConfig(theta=100.0), attention_bias=True,
  ),
  'all windows': dict(sliding_window=5, layer_windowed=(True,) * 8),
  'norms after the branches': dict(
    norm_placement='post', qk_norm='projection', rope_in_float32=True
  ),
  'some layers without rotation': dict(rope_layers=(True, True, False, True) * 2),
}  # fmt: skip


def build(**fields):
  model, params = planted.build([], bos_channel=2.0, **fields)
  model, params = params_lib.first_layers(model, params, LAYERS)
  # Larger weights, so that what is likeliest depends on the whole text.
  params = jax.tree.map(lambda x: x * 10 if x.ndim == 3 else x, params)
  return model, params


def prompts(lengths=(5, 9, 1, 14, 3, 7)):
  texts = planted.texts(len(lengths), length=20)
  return [text[:length] for text, length in zip(texts, lengths)]


@functools.partial(jax.jit, static_argnums=0)
def whole(model, params, batch):
  return model.apply({'params': params}, *batch).logits


def slowly(model, params, prompts):
  """Greedy, running the whole texts for every token."""
  texts = [list(prompt) for prompt in prompts]
  size = max(map(len, texts)) + NEW
  for _ in range(NEW):
    logits_BTV = np.asarray(
      whole(model, params, batch_lib.make_batch(texts, length=size))
    )
    for row, text in enumerate(texts):
      text.append(int(logits_BTV[row, len(text) - 1].argmax()))
  return [text[len(prompt) :] for text, prompt in zip(texts, prompts)]


def run(model, params, texts, **kwargs):
  kwargs = {'max_new_tokens': NEW, 'stop_tokens': ()} | kwargs
  batch = batch_lib.make_batch(texts, pad_side=kwargs.pop('pad_side', 'right'))
  return generate_lib.generate(model, params, batch, **kwargs)


@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('family', FAMILIES)
def test_greedy_equals_the_whole_text_every_time(family, scanned):
  """Three rows for six prompts, so that rows are refilled."""
  model, params = build(**FAMILIES[family])
  texts = prompts()
  expected = slowly(model, params, texts)
  found = run(model.clone(scanned=scanned), params, texts, rows=3)
  assert found.ids() == expected
  assert not found.stopped_X.any()


def test_padding_packing_and_rows_change_nothing():
  model, params = build()
  texts = prompts()
  model = model.clone(scanned=False)
  expected = run(model, params, texts).ids()
  assert run(model, params, texts, pad_side='left', rows=2).ids() == expected
  one = [run(model, params, [text]).ids()[0] for text in texts]
  assert one == expected
  packed = batch_lib.make_batch(texts[:2], pack=True, length=20)
  assert len(packed.tokens_BT) == 1
  found = generate_lib.generate(
    model, params, packed, max_new_tokens=NEW, stop_tokens=()
  )
  assert found.ids() == expected[:2]


def test_a_mask_acts_through_the_cache():
  model, params = build()
  scale = np.ones((LAYERS, planted.WIDTH), np.float32)
  scale[1:] = 0.0
  masked = {**params, 'layers': {**params['layers'], 'sink_scale': scale}}
  texts = prompts()
  expected = slowly(model, masked, texts)
  assert expected != slowly(model, params, texts)
  found = run(model.clone(scanned=False), masked, texts, rows=2)
  assert found.ids() == expected


@pytest.mark.parametrize(
  'leaves',
  [
    # The first six tokens; of short prompts the model generates some of them.
    {'sink_positions': np.ones(6, np.float32)},
    {'sink_bound': np.array([0.0, 1.0, 0.0, 0.0], np.float32)},
  ],
  ids=['positions', 'size'],
)
def test_tokens_that_are_generated_are_masked_too(leaves):
  model, params = build()
  scale = np.ones((LAYERS, planted.WIDTH), np.float32)
  scale[1:] = 0.0
  masked = {**params, **leaves}
  masked['layers'] = {**params['layers'], 'sink_scale': scale}
  texts = prompts((1, 3, 2))
  expected = slowly(model, masked, texts)
  assert expected != slowly(model, params, texts)
  for scanned in (False, True):
    assert run(model.clone(scanned=scanned), masked, texts).ids() == expected


def test_stop_tokens_end_a_text_and_are_part_of_it():
  model, params = build()
  texts = prompts()
  plain = run(model, params, texts).ids()
  stop = plain[0][4]
  found = run(model, params, texts, stop_tokens=[stop], rows=2)
  for ids, whole, stopped in zip(found.ids(), plain, found.stopped_X):
    if stop in whole:
      whole = whole[: whole.index(stop) + 1]
    assert ids == whole
    assert stopped == (stop in whole)
  assert found.stopped_X[0] and found.length_X[0] <= 5


def test_stop_strings_end_a_text():
  model, params = build()
  texts = prompts()
  spell = lambda ids: ''.join(f'<{i}>' for i in ids)  # noqa: E731
  plain = run(model, params, texts, max_new_tokens=40).ids()
  string = spell(plain[1][3:5])
  found = run(
    model, params, texts, max_new_tokens=40, stop_strings=[string], decode=spell
  )
  for ids, whole, stopped in zip(found.ids(), plain, found.stopped_X):
    assert stopped == (string in spell(whole))
    assert ids == whole[: len(ids)]
    if stopped:
      # And not a token more.
      assert string in spell(ids) and string not in spell(ids[:-1])
    else:
      assert len(ids) == 40
  assert len(found.ids()[1]) < 40
  # One string is one string, and what is shown is what comes out.
  shown = {}
  again = run(
    model, params, texts, max_new_tokens=40, stop_strings=string, decode=spell,
    on_tokens=lambda x, ids: shown.__setitem__(x, list(ids)),
  )  # fmt: skip
  assert again.ids() == found.ids()
  assert [shown[x] for x in range(len(texts))] == found.ids()


def test_samples_depend_on_the_seed_and_not_on_the_batch():
  model, params = build()
  texts = prompts()
  sampled = dict(temperature=1.0, top_p=0.9)
  found = run(model, params, texts, seed=3, **sampled)
  assert (
    found.ids() == run(model, params, texts, seed=3, rows=2, **sampled).ids()
  )
  assert found.ids() != run(model, params, texts, seed=4, **sampled).ids()
  third = run(model, params, texts[2:3], seed=5, **sampled)
  assert third.ids()[0] == found.ids()[2]


def test_a_penalty_keeps_tokens_from_coming_again():
  model, params = build()
  found = run(model, params, prompts(), repetition_penalty=1e6)
  for prompt, ids in zip(prompts(), found.ids()):
    assert len(set(ids)) == NEW
    assert not set(ids) & set(prompt)


def test_tokens_are_shown_as_they_come():
  model, params = build()
  seen = {}

  def on_tokens(index, tokens):
    assert tokens[: len(seen.get(index, []))] == seen.get(index, [])
    seen[index] = list(tokens)

  found = run(model, params, prompts(), on_tokens=on_tokens, max_new_tokens=40)
  assert [seen[i] for i in range(len(seen))] == found.ids()


def test_one_compile_a_length_and_one_for_all_steps():
  from me_jax.generation import steps

  model, params = build()
  steps.prefill.clear_cache()
  steps.decode.clear_cache()
  texts = prompts((3, 9, 20, 5, 8, 2)) + [list(range(1, 45))] * 2
  run(model, params, texts, rows=4)
  assert steps.prefill._cache_size() == 2
  assert steps.decode._cache_size() == 1


def test_a_window_needs_no_more_slots_than_it_is_wide():
  from me_jax.generation import steps

  model, _ = build(**FAMILIES['some windows'])
  state = steps.start(model.clone(scanned=False), 2, 64, np.float32, False)
  assert [s.k.shape[2] for s in state.cache.slots] == [4, 64] * 2
  model, _ = build(**FAMILIES['all windows'])
  state = steps.start(model, 2, 64, np.float32, False)
  assert state.cache.slots[0].k.shape[3] == 5


def test_a_smaller_type_of_the_cache(monkeypatch):
  from me_jax.generation import steps

  model, params = build()
  kinds = set()
  real = steps.decode

  def looking(*args):
    state, out_BC = real(*args)
    kinds.add(str(state.cache.slots[0].k.dtype))
    return state, out_BC

  monkeypatch.setattr(steps, 'decode', looking)
  found = run(model, params, prompts(), cache_dtype='bfloat16')
  assert kinds == {'bfloat16'}
  monkeypatch.undo()
  exact = run(model, params, prompts())
  same = np.mean(found.tokens_XM == exact.tokens_XM)
  assert same > 0.8


def test_lengths_that_prompts_are_padded_to():
  assert [serve.bucket(n) for n in (1, 32, 33, 48, 49, 64, 65, 97, 129)] == [
    32, 32, 48, 48, 64, 64, 96, 128, 192,
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(max_new_tokens=0), 'may get 0 new tokens'),
    (dict(max_new_tokens=300), 'exceed the context of 256'),
    (dict(rows=0), 'rows is 0'),
    (dict(seed=-1), 'seed is -1'),
    (dict(stop_strings=['x']), 'decode='),
    (dict(top_p=2.0), 'top_p is 2'),
  ],
)
def test_bad_input_is_refused(kwargs, message):
  model, params = build()
  with pytest.raises(me_jax.MeJaxError, match=message):
    run(model, params, prompts(), **kwargs)
