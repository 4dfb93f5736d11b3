"""Findings: what must not be in a compiled program is seen there."""

from __future__ import annotations

import types

import jax
import numpy as np

from me_jax.models import config as config_lib
from me_jax.planning import checks
from me_jax.planning import compile as compile_lib
from me_jax.planning import programs
from me_jax.training import sharding

CONFIG = config_lib.ModelConfig(
  model_type='llama',
  vocab_size=1000,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=4,
  head_dim=16,
  max_position_embeddings=64,
)
# Of eight devices along fsdp; checks look at nothing else of a mesh.
MESH = types.SimpleNamespace(
  devices=np.array([types.SimpleNamespace(id=i) for i in range(8)]).reshape(
    1, 8, 1, 1
  ),
  axis_names=sharding.MESH_AXES,
  shape={'data': 1, 'fsdp': 8, 'sequence': 1, 'tensor': 1},
  size=8,
)
GATHER = (
  '%own = {dtype}[8,{width}]{{1,0}} broadcast(%part)\n'
  '  %gather = {dtype}[64,{width}]{{1,0}} all-gather(%own), channel_id=1,'
  ' replica_groups=[1,8]<=[8], dimensions={{0}}, use_global_device_ids=true,'
  ' metadata={{op_name="jit(step)/{where}"}}'
)


def program(tokens=8 * 32, state=None, args=()):
  return programs.Program(
    name='step',
    function=None,
    args=args,
    mesh=MESH,
    rules=sharding.DEFAULT,
    config=CONFIG,
    tokens=tokens,
    state=state,
  )


LOOP = """
%body (state: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {{
  %state = (s32[], bf16[8,64]{{1,0}}) parameter(0)
  %part = bf16[8,64]{{1,0}} get-tuple-element(%state), index=1
{lines}
  ROOT %next = (s32[], bf16[8,64]{{1,0}}) tuple(%count, %part)
}}

%cond (state: (s32[], bf16[8,64])) -> pred[] {{
  %state = (s32[], bf16[8,64]{{1,0}}) parameter(0)
  ROOT %more = pred[] constant(true)
}}
"""
WHILE = (
  '%loop = (s32[], bf16[8,64]{{1,0}}) while(%start), condition=%cond,'
  ' body=%body, metadata={{op_name="jit(step)/{where}"}},'
  ' backend_config={{"known_trip_count":{{"n":"2"}}}}'
)


def compiled(lines, places=None, loop=''):
  """Returns a program of a few lines, as the compiler prints them.

  Args:
    lines: of it.
    places: of its arguments.
    loop: what the loop is called that they are in; in none if empty.
  """
  body = '\n'.join(f'  {line}' for line in lines)
  before = ''
  if loop:
    before = LOOP.format(lines=body)
    body = '  ' + WHILE.format(where=loop)
  text = (
    f'HloModule jit_step, num_partitions=8\n{before}\n'
    'ENTRY %main (part: bf16[8,64]) -> bf16[8,64] {\n'
    '  %part = bf16[8,64]{1,0} parameter(0)\n'
    f'{body}\n'
    '  ROOT %done = bf16[8,64]{1,0} copy(%part)\n}\n'
  )
  return compile_lib.Compiled(
    name='step',
    seconds=0.0,
    memory=compile_lib.Memory(peak=0),
    cost={},
    text=text,
    places=places,
  )


def gather(where, dtype='bf16', width=64, loop=''):
  line = GATHER.format(where=where, dtype=dtype, width=width)
  return compiled([line], loop=loop)


def test_a_kernel_gathered_outside_of_the_layers_is_found():
  (line,) = checks.gathers(program(), gather('jvp()/convert_element_type'))
  assert 'bf16[64,64]' in line
  assert 'fsdp' in line
  assert 'convert_element_type' in line


def test_layers_may_gather_their_kernels_and_texts_their_ids():
  inside = gather('', width=512, loop='jvp(Decoder)/Decoder._layers/while')
  assert not checks.gathers(program(), inside)
  assert not checks.gathers(program(), gather('jvp()/take', dtype='s32'))


def test_where_a_gather_is_counts_and_not_its_name():
  name = 'Decoder._layers/while/body/q_proj/dot_general'
  # One layer's before its turn, and those of both.
  assert not checks.gathers(program(), gather(name))
  (line,) = checks.gathers(program(), gather(name, width=64 * 2 * 2))
  assert 'bf16[64,256]' in line
  # Half of the head is no part of it.
  vocabulary = 'jvp()/while'
  part = gather('', width=128, loop=vocabulary)
  assert not checks.gathers(program(), part)
  assert checks.gathers(program(), gather('', width=500, loop=vocabulary))


def test_a_sum_of_parts_among_zeros_is_a_gather_and_one_of_gradients_is_not():
  def summed(made):
    return compiled(
      [
        '%zeros = bf16[64,1000]{1,0} broadcast(%part)',
        f'%operand = bf16[64,1000]{{1,0}} {made}',
        '%sum = bf16[64,1000]{1,0} all-reduce(%operand), channel_id=1,'
        ' replica_groups=[1,8]<=[8], to_apply=%add',
      ]
    )

  put = summed('dynamic-update-slice(%zeros, %part, %i, %j)')
  (line,) = checks.gathers(program(), put)
  assert 'bf16[64,1000]' in line
  assert not checks.gathers(program(), summed('add(%zeros, %zeros)'))


def test_logits_of_all_tokens_are_found():
  # 256 tokens over 8 devices.
  found = compiled(['%logits = f32[1,32,1000]{2,1,0} broadcast(%part)'])
  (line,) = checks.logits(program(), found)
  assert 'f32[1,32,1000]' in line
  part = compiled(['%logits = f32[1,32,500]{2,1,0} broadcast(%part)'])
  assert not checks.logits(program(), part)


def test_what_is_as_large_but_is_the_head_is_not_logits():
  head = compiled(['%head = f32[64,1000]{1,0} broadcast(%part)'])
  assert not checks.logits(program(tokens=8 * 64), head)


def test_an_optimiser_that_lies_whole_everywhere_is_found():
  mesh = sharding.mesh(devices=jax.devices()[:1])
  leaf = jax.ShapeDtypeStruct((64, 128), 'float32')
  state = types.SimpleNamespace(optimizer={'mu': leaf})

  class Place(jax.sharding.SingleDeviceSharding):
    """Says of one device that it is eight."""

    cut = 1

    def shard_shape(self, shape):
      return (shape[0] // self.cut, *shape[1:])

    @property
    def device_set(self):
      return set(range(8))

  def places(cut):
    place = Place(mesh.devices.flat[0])
    place.cut = cut
    return (types.SimpleNamespace(optimizer={'mu': place}),)

  step = program(state=0, args=(state,))
  (line,) = checks.optimizer_state(step, compiled([], places(1)))
  assert "['mu'] [64, 128]" in line
  assert '8 devices' in line
  assert not checks.optimizer_state(step, compiled([], places(8)))


def test_an_analysis_may_add_small_sums_and_nothing_else():
  def with_operands(*shapes):
    lines = []
    for i, shape in enumerate(shapes):
      lines += [
        f'%part.{i} = {shape} broadcast(%part)',
        f'%sum.{i} = {shape} all-reduce(%part.{i}), channel_id={i + 1},'
        ' replica_groups=[1,8]<=[8], to_apply=%add',
      ]
    return compiled(lines)

  state, numbers = 'f32[32,64]{1,0}', 'f32[32,2]{1,0}'
  plain = with_operands(state)
  fine = with_operands(state, numbers)
  assert not checks.measuring(program(), fine, plain)
  (line,) = checks.measuring(program(), with_operands(state, state), plain)
  assert '1 × all-reduce of f32[32,64]' in line
