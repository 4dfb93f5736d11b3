"""What can a device compute at most?

Apart, because plans for devices that are not there read it before JAX is
imported.
"""

from __future__ import annotations

# Dense bfloat16 FLOP/s of a device as JAX counts them, by a part of its kind:
# cloud.google.com/tpu/docs (a v4 or v5p chip is one device, a 7x chip two) and
# NVIDIA's data sheets (SXM, without sparsity).
PEAK = (
  ('TPU v5 lite', 197e12), ('TPU v5e', 197e12), ('TPU v5p', 459e12),
  ('TPU v5', 459e12), ('TPU v6', 918e12), ('TPU v4', 275e12),
  ('TPU7x', 2307e12 / 2),
  ('H200', 989e12), ('H100', 989e12), ('A100', 312e12), ('B200', 2250e12),
)  # fmt: skip


def of(kind: str) -> float | None:
  """Returns a device's FLOP/s; None where it is not known.

  Args:
    kind: as JAX names it.
  """
  return next((flops for name, flops in PEAK if name in kind), None)
