"""Collectives, costs and buffers of programs written by hand and compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from me_jax.planning import hlo
from me_jax.planning import topology
from me_jax.training import sharding
from tests.support import hlo_programs

# A loop of 6 in one of 5, as a TPU's program has it: lengths stand only in the
# conditions, one limit is a part of the state, and one array is on the chip,
# S(1). A shape in a tuple has parentheses of its own.
LOOPS = """HloModule jit_step, is_scheduled=true, num_partitions=8

%body_fusion (p0: f32[5,8,128], p1: s32[]) -> f32[1,8,128] {
  %p0 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,128}
}

%inner_body (q: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %q = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%q), index=1
  %reduced = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%sum, metadata={op_name="jit(step)/inner"}
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%next, %reduced)
}

%inner_test (q.1: (s32[], f32[8,128])) -> pred[] {
  %q.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%q.1), index=0
  %last = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %last), direction=LT
}

%outer_body (s: (s32[], f32[5,8,128], s32[])) -> (s32[], f32[5,8,128], s32[]) {
  %s = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%s), index=0
  %one = s32[]{:T(128)} constant(1)
  %minus = s32[]{:T(128)} subtract(%j, %one)
  %all = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%s), index=1
  %layer = f32[1,8,128]{2,1,0:T(8,128)} fusion(%all, %j), kind=kLoop, calls=%body_fusion
  %flat = f32[8,128]{1,0:T(8,128)} bitcast(%layer)
  %zero.1 = s32[]{:T(128)} constant(0)
  %near = f32[8,128]{1,0:T(8,128)S(1)} copy(%flat)
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%zero.1, %near)
  %inner = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) while(%state), condition=%inner_test, body=%inner_body
  %limit.1 = s32[]{:T(128)} get-tuple-element(%s), index=2
  ROOT %out.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) tuple(%minus, %all, %limit.1)
}

%outer_test (s.1: (s32[], f32[5,8,128], s32[])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %j.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %limit.2 = s32[]{:T(128)} get-tuple-element(%s.1), index=2
  ROOT %more = pred[]{:T(512)} compare(%limit.2, %j.1), direction=LE
}

ENTRY %main (w: f32[5,8,128]) -> f32[5,8,128] {
  %w = f32[5,8,128]{2,1,0:T(8,128)} parameter(0), metadata={op_name="w"}
  %first = s32[]{:T(128)} constant(4)
  %start = s32[]{:T(128)} copy(%first)
  %none = s32[]{:T(128)} constant(0)
  %state.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) tuple(%start, %w, %none)
  %outer = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) while(%state.1), condition=%outer_test, body=%outer_body
  ROOT %result = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%outer), index=1
}
"""  # noqa: E501


def test_a_loop_in_a_loop_is_counted_as_often_as_it_runs():
  (one,) = hlo.collectives(LOOPS)
  # The outer counts 4, 3, 2, 1, 0; the inner 0, 2, ... 10.
  assert (one.times, one.inside_loop) == (5 * 6, True)
  assert one.op_name == 'jit(step)/inner'
  assert hlo.counted(LOOPS).unknown == ()


def test_a_known_trip_count_is_taken():
  text = LOOPS.replace(
    'body=%inner_body',
    'body=%inner_body, backend_config={"known_trip_count":{"n":"9"}}',
  )
  (one,) = hlo.collectives(text)
  assert one.times == 5 * 9


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  text = LOOPS.replace('constant(12)', 'parameter(1)')
  (one,) = hlo.collectives(text)
  assert one.times == 5
  assert hlo.counted(text).unknown == ('inner',)


FURTHER = """  %less = pred[]{:T(512)} compare(%i.1, %last), direction=LT
  %sooner = s32[]{:T(128)} constant(7)
  %lesser = pred[]{:T(512)} compare(%sooner, %i.1), direction=GT
  %x.1 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%q.1), index=1
  %some = pred[]{:T(512)} custom-call(%x.1), custom_call_target="Some"
"""


@pytest.mark.parametrize(
  ('root', 'times'),
  [
    # 0, 2, ... 10, unless some end it before.
    ('and(%less, %some)', 6),
    ('and(%some, %less)', 6),
    # 0, 2, 4, 6.
    ('and(%less, %lesser)', 4),
  ],
)
def test_a_loop_that_may_end_early_counts_as_often_as_it_may_run(root, times):
  line = '  ROOT %less = pred[]{:T(512)} compare(%i.1, %last), direction=LT\n'
  assert line in LOOPS
  text = LOOPS.replace(
    line, f'{FURTHER}  ROOT %both = pred[]{{:T(512)}} {root}\n'
  )
  (one,) = hlo.collectives(text)
  assert one.times == 5 * times
  assert hlo.counted(text).unknown == ()


def test_a_loop_with_no_limit_that_is_known_has_no_length():
  text = LOOPS.replace('ROOT %less =', '%less =').replace(
    'direction=LT\n', 'direction=LT\n  ROOT %o = pred[] or(%less, %less)\n'
  )
  assert hlo.counted(text).unknown == ('inner',)


@pytest.mark.parametrize(
  ('first', 'times', 'unknown'),
  [
    # What the outer loop hands on as it is: 0.
    ('%limit.1', 5 * 6, ()),
    # What it counts with, so that each time the inner one is longer.
    ('%j', 5, ('inner',)),
  ],
)
def test_a_loop_that_begins_elsewhere_each_time_has_no_length(
  first, times, unknown
):
  text = LOOPS.replace('tuple(%zero.1, %near)', f'tuple({first}, %near)')
  (one,) = hlo.collectives(text)
  assert one.times == times
  assert hlo.counted(text).unknown == unknown


def test_a_loop_that_moves_its_own_limit_has_no_length():
  text = LOOPS.replace('%all, %limit.1)', '%all, %minus)')
  assert hlo.counted(text).unknown == ('outer',)


def test_a_loop_whose_counter_is_made_of_something_else_has_no_length():
  text = LOOPS.replace('subtract(%j, %one)', 'subtract(%limit.1, %one)')
  assert hlo.counted(text).unknown == ('outer',)


@pytest.mark.parametrize(
  ('index', 'times', 'unknown'),
  # After the outer loop its limit is as before, and its counter is not.
  [(2, 5 * 6 + 6, ()), (0, 5 * 6 + 1, ('third',))],
)
def test_what_a_loop_changes_is_not_known_after_it(index, times, unknown):
  state = '(s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)})'
  third = (
    f'  %from = s32[]{{:T(128)}} get-tuple-element(%outer), index={index}\n'
    f'  %state.2 = {state} tuple(%from, %w)\n'
    f'  %third = {state} while(%state.2), condition=%inner_test,'
    ' body=%inner_body\n'
  )
  text = LOOPS.replace('  ROOT %result', f'{third}  ROOT %result')
  (one,) = hlo.collectives(text)
  assert one.times == times
  assert hlo.counted(text).unknown == unknown


def test_memory_moves_only_what_leaves_the_chip():
  # Each time round the outer loop reads and writes one of five slices, and
  # copies it onto the chip, where the inner one stays.
  layer = 8 * 128 * 4
  scalars = 100  # counters
  moved = hlo.counted(LOOPS).bytes
  assert 5 * 3 * layer <= moved < 5 * 3 * (layer + scalars)


@pytest.mark.parametrize(
  'opcode, shape, given, size, sent',
  # Of a group of 4; f32[16] are 64 bytes.
  [
    ('all-gather', 'f32[16]', 'f32[64]', 256, 256 * 3 / 4),
    ('all-gather-start', 'f32[16]', '(f32[16], f32[64])', 256, 256 * 3 / 4),
    ('reduce-scatter', 'f32[64]', 'f32[16]', 256, 256 * 3 / 4),
    ('all-reduce', 'f32[16]', '', 64, 2 * 64 * 3 / 4),
    # Reduced in float32, gathered in bfloat16.
    ('all-reduce', 'f32[16]', 'bf16[16]', 64, (64 + 32) * 3 / 4),
    ('all-to-all', 'f32[16]', '', 64, 64 * 3 / 4),
    ('collective-broadcast', 'f32[16]', '', 64, 64),
  ],
)
def test_what_a_device_sends(opcode, shape, given, size, sent):
  groups = 'replica_groups=[2,4]<=[8]'
  (one,) = hlo.collectives(hlo_programs.exchange(opcode, shape, groups, given))
  assert one.kind == opcode.removesuffix('-start')
  assert (one.size, one.bytes) == (size, sent)
  assert all(len(group) == 4 for group in one.groups)
  assert (one.network_bytes, one.times, one.inside_loop) == (0, 1, False)


def test_a_permutation_sends_all_to_the_next():
  pairs = 'source_target_pairs={{0,1},{1,2},{2,0},{5,5}}'
  (one,) = hlo.collectives(
    hlo_programs.exchange('collective-permute', 'f32[16]', pairs)
  )
  assert one.groups == ((0, 1), (1, 2), (2, 0))
  assert one.bytes == 64


def test_a_start_and_its_end_are_one():
  text = hlo_programs.program(
    '%p = f32[16] parameter(0)',
    '%s = (f32[16], f32[64]) all-gather-start(%p), channel_id=1,'
    ' replica_groups=[2,4]<=[8], dimensions={0}',
    'ROOT %d = f32[64] all-gather-done(%s)',
  )
  assert [one.name for one in hlo.collectives(text)] == ['s']


def test_an_exchange_alone_is_none():
  text = hlo_programs.exchange(
    'all-reduce', 'f32[16]', 'replica_groups=[8,1]<=[8]'
  )
  assert hlo.collectives(text) == ()


def test_parts_of_an_exchange_in_several_fusions_are_one():
  gather = (
    'all-gather(%p), channel_id=6, replica_groups=[2,4]<=[8], backend_config='
    '{"async_collective_fusion_config":{}}'
  )
  more = f"""
%begin (p: f32[16]) -> f32[64] {{
  %p = f32[16] parameter(0)
  %g = f32[64] {gather}
  ROOT %c = f32[64] custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%middle (p: f32[16]) -> f32[64] {{
  %p = f32[16] parameter(0)
  ROOT %g.1 = f32[64] {gather}
}}

%end (p: f32[16]) -> f32[64] {{
  %p = f32[16] parameter(0)
  %g.2 = f32[64] {gather}
  ROOT %c.2 = f32[64] custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}}
"""
  text = hlo_programs.program(
    '%p = f32[16] parameter(0)',
    '%a = f32[64] fusion(%p), kind=kCustom, calls=%begin',
    '%b = f32[64] fusion(%p), kind=kOutput, calls=%middle',
    'ROOT %c = f32[64] fusion(%p), kind=kCustom, calls=%end',
    more=more,
  )
  assert [one.name for one in hlo.collectives(text)] == ['g']


def test_a_fused_scatter_of_a_sum_is_a_reduce_scatter():
  more = """
%all-reduce-scatter.1 (p: f32[64]) -> f32[16] {
  %p = f32[64] parameter(0)
  %r = f32[64] all-reduce(%p), channel_id=1, replica_groups=[2,4]<=[8]
  %i = s32[] constant(0)
  ROOT %d = f32[16] dynamic-slice(%r, %i), dynamic_slice_sizes={16}
}
"""
  text = hlo_programs.program(
    '%p = f32[64] parameter(0)',
    'ROOT %f = f32[16] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1',
    more=more,
  )
  (one,) = hlo.collectives(text)
  assert (one.kind, one.bytes) == ('reduce-scatter', 256 * 3 / 4)


def test_products_are_counted_with_batches_that_are_dilated():
  # As TPUs have 12 products of 8 × 16 by 16 × 32.
  text = hlo_programs.program(
    '%p = bf16[12,8,16] parameter(0)',
    '%q = bf16[12,16,32] parameter(1)',
    'ROOT %c = bf16[12,8,32] convolution(%p, %q), window={size=12 stride=11'
    ' pad=0_0 lhs_dilate=12}, dim_labels=0bf_0io->0bf',
  )
  assert hlo.counted(text).flops == 12 * 2 * 8 * 16 * 32


def test_a_count_is_scaled_to_the_compilers_own():
  text = hlo_programs.program(
    '%p = f32[8,16] parameter(0)',
    '%q = f32[16,32] parameter(1)',
    'ROOT %d = f32[8,32] dot(%p, %q), lhs_contracting_dims={1},'
    ' rhs_contracting_dims={0}',
  )
  assert hlo.counted(text).flops == 2 * 8 * 16 * 32
  assert hlo.counted(text, {'flops': 9000.0}).flops == 9000


def test_what_runs_in_the_background_moves_its_bytes_once():
  more = """
%work (q: f32[1024]) -> f32[1024] {
  %q = f32[1024] parameter(0)
  ROOT %n = f32[1024] negate(%q)
}
"""
  text = hlo_programs.program(
    '%p = f32[1024] parameter(0)',
    '%s = ((f32[1024]), f32[1024], u32[]) async-start(%p), calls=%work',
    'ROOT %d = f32[1024] async-done(%s)',
    more=more,
  )
  assert hlo.counted(text).bytes == 2 * 4096


@pytest.mark.parametrize(
  ('opcode', 'indices', 'given'),
  [
    ('slice', '', '(f32[1024])'),
    ('dynamic-slice', ', %i', '(f32[1024], s32[])'),
  ],
)
def test_a_slice_in_the_background_reads_what_it_returns(
  opcode, indices, given
):
  text = hlo_programs.program(
    '%p = f32[1024] parameter(0)',
    '%i = s32[] parameter(1)',
    f'%s = ({given}, f32[16], u32[]) {opcode}-start(%p{indices})',
    f'ROOT %d = f32[16] {opcode}-done(%s)',
  )
  assert hlo.counted(text).bytes == 2 * 64


def test_buffers_are_what_is_made_and_large():
  shapes = [(one.shape, one.bytes) for one in hlo.buffers(LOOPS, 1000)]
  # Not the five slices that are given, nor the tuples that hold them.
  assert shapes == [('f32[1,8,128]', 4096), ('f32[8,128]', 4096)]
  assert all(one.inside_loop for one in hlo.buffers(LOOPS, 1000))
  assert hlo.buffers(LOOPS, 4096) == ()


LENGTH, WIDTH, ROWS = 7, 256, 64


def compiled(devices, tensor: int, length: int = LENGTH):
  """Returns layers of two products each, compiled with parts of both."""
  mesh = sharding.mesh(devices=devices, fsdp=-1, tensor=tensor)

  def place(*axes):
    return jax.NamedSharding(mesh, jax.P(*axes))

  def run(weights, x):
    def layer(x, weights):
      return x + jnp.tanh(x @ weights[0]) @ weights[1], None

    return jax.lax.scan(layer, x, weights)[0]

  def shape(dims, *axes):
    return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=place(*axes))

  up = shape((length, WIDTH, 4 * WIDTH), None, 'fsdp', 'tensor')
  down = shape((length, 4 * WIDTH, WIDTH), None, 'tensor', 'fsdp')
  x = shape((ROWS, WIDTH), 'fsdp')
  made = jax.jit(run, out_shardings=place('fsdp')).lower((up, down), x)
  return made.compile(), mesh


def test_the_tpu_compilers_program_is_read(tpu):
  pod = topology.find('v5e:2x2')
  made, mesh = compiled(topology.devices(pod), 2)
  text = made.as_text()
  found = hlo.collectives(text, mesh, pod)
  # Each layer's weights are gathered, and its sum over parts is reduced.
  whole = 2 * WIDTH * 4 * WIDTH // 2
  gathers = [one for one in found if one.kind == 'all-gather']
  assert [(one.axes, one.times, one.size) for one in gathers] == [
    (('fsdp',), LENGTH, whole)
  ] * 2
  (sums,) = [one for one in found if one.kind == 'all-reduce']
  assert (sums.axes, sums.times) == (('tensor',), LENGTH)
  # XLA counts the body once.
  cost = made.cost_analysis()
  counted = hlo.counted(text)
  assert counted.flops_once == pytest.approx(cost['flops'], rel=0.01)
  products = 2 * 2 * ROWS * WIDTH * 4 * WIDTH / 4
  assert counted.flops == pytest.approx(LENGTH * products, rel=0.05)
  assert cost['flops'] < 0.2 * LENGTH * products


def test_slices_exchange_over_the_network(tpu):
  pods = topology.find('2*v5e-4')
  made, mesh = compiled(topology.devices(pods), 2)
  found = hlo.collectives(made.as_text(), mesh, pods)
  assert {one.axes for one in found if one.network} == {('fsdp',)}
  assert {one.axes for one in found if not one.network} >= {('tensor',)}


def test_a_cpu_programs_loops_are_read():
  devices = jax.devices()[:1]
  once, many = (compiled(devices, 1, length)[0] for length in (1, LENGTH))
  assert hlo.counted(many.as_text()).flops == pytest.approx(
    LENGTH * hlo.counted(once.as_text()).flops, rel=0.02
  )
