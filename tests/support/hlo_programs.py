"""Compiled programs written by hand, as text."""

from __future__ import annotations


def program(*lines: str, partitions: int = 8, more: str = '') -> str:
  """Returns a program of one computation."""
  body = '\n'.join(f'  {line}' for line in lines)
  return (
    f'HloModule m, num_partitions={partitions}\n\n{more}\n'
    f'ENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n'
  )


def exchange(opcode: str, shape: str, groups: str, given: str = '') -> str:
  """Returns a program of one exchange."""
  return program(
    f'%p = {shape} parameter(0)',
    f'ROOT %c = {given or shape} {opcode}(%p), channel_id=1, {groups},'
    ' use_global_device_ids=true, metadata={op_name="here"}',
  )
