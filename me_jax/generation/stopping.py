"""Where does a text end that has a stop string in it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def cut(text: str, strings: Sequence[str]) -> str:
  """Returns what stands before the first of the strings."""
  found = [text.find(string) for string in strings if string]
  found = [at for at in found if at >= 0]
  return text[: min(found)] if found else text


def begun(text: str, strings: Sequence[str]) -> int:
  """Returns how many last characters may be the beginning of a string."""
  longest = max(map(len, strings), default=1) - 1
  for count in range(min(longest, len(text)), 0, -1):
    if any(string.startswith(text[-count:]) for string in strings):
      return count
  return 0


def at_strings(
  strings: Sequence[str], decode: Callable[[list[int]], str]
) -> Callable[[list[int]], bool]:
  """Returns a function that says of tokens whether a string is among them.

  Args:
    strings: what ends a text.
    decode: ids to text.
  """
  strings = [string for string in strings if string]

  def ended(tokens: list[int]) -> bool:
    text = decode(tokens)
    return any(string in text for string in strings)

  return ended
