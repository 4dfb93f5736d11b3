"""One line says why Orbax could not."""

from __future__ import annotations

import pytest

from me_jax import errors
from me_jax.checkpoints import orbax_card


@pytest.mark.parametrize(
  'annotations',
  [
    '',
    " [os_error_code='27']",
    f""" [os_error_code='27', tensorstore_spec='{{"path": "{'x' * 400}"}}']""",
  ],
)
def test_what_the_file_system_says_is_kept(annotations):
  error = ValueError(
    f'OUT_OF_RANGE: Error writing "a"\nin "{"/folder" * 60}": Failed to write'
    f' 9 bytes: File too large{annotations}'
  )
  said = str(orbax_card.failure('cannot write', error))
  assert said.startswith('cannot write: OUT_OF_RANGE: Error writing "a" in "/f')
  assert said.endswith('Failed to write 9 bytes: File too large')
  assert len(said) < 350


def test_our_own_errors_stay_and_empty_ones_have_a_name():
  own = errors.MeJaxError('it is so')
  assert orbax_card.failure('cannot write', own) is own
  assert str(orbax_card.failure('a', ValueError())) == 'a: ValueError'
