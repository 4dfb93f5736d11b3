"""What me_jax raises when the fault lies in what it was given.

Everything that a user can get wrong (paths, files, configurations, texts,
flags) raises `MeJaxError` with one line that says what is wrong and what to do
about it. Any other exception is a fault of me_jax itself.
"""

from __future__ import annotations

from collections.abc import Iterable
import difflib

# Characters of a message from the front and from the end, where the advice is.
_FRONT, _END = 600, 200


class MeJaxError(Exception):
  """Bad input, said in one line. The command line turns it into exit status 2.

  Messages quote what was read: what cannot be printed is escaped, and a name
  of a megabyte is cut.

  Examples:
    >>> import me_jax
    >>> try:
    ...   me_jax.load('model.gguf')
    ... except me_jax.MeJaxError as error:
    ...   print(error)
    model.gguf: no such file or folder
  """

  def __init__(self, message: str):
    line = ' '.join(str(message).split())
    if len(line) > _FRONT + _END:
      line = f'{line[:_FRONT]} ... {line[-_END:]}'
    if not line.isprintable():
      line = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    super().__init__(line)


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns `" (did you mean 'x'?)"` for the known name nearest to `name`.

  Args:
    name: what the user wrote.
    known: the names that exist.

  Returns:
    A clause to append to an error message; empty when nothing is near.
  """
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
  return f" (did you mean '{close[0]}'?)" if close else ''
