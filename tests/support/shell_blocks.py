"""What a page of documentation tells a reader to type."""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
import re
import shlex

_FENCE = re.compile(r'^```(\S*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_SHELL = ('bash', 'sh', 'shell')
_SPAN = re.compile(r'(?<!`)`([^`]+)`(?!`)')
_VARIABLE = re.compile(r'[A-Za-z_]\w*=')

Command = tuple[str, ...]


def commands(page: pathlib.Path) -> list[Command]:
  """Returns the commands in a page's shell blocks, each as its words.

  A block without a language is one of commands if it is ASCII; what commands
  print is not, or says so: ```text.
  """
  return [
    command
    for language, body in _FENCE.findall(page.read_text('utf-8'))
    if language in _SHELL or (not language and body.isascii())
    for command in split(body)
  ]


def split(text: str) -> Iterator[Command]:
  """Yields the commands of a text as a shell would split it."""
  for line in text.replace('\\\n', '').splitlines():
    words = shlex.shlex(line, posix=True, punctuation_chars=';&|')
    words.whitespace_split = True
    command: list[str] = []
    for word in words:
      if set(word) <= set(';&|'):
        yield from _without_variables(command)
        command = []
      else:
        command.append(word)
    yield from _without_variables(command)


def _without_variables(command: list[str]) -> Iterator[Command]:
  while command and _VARIABLE.match(command[0]):
    command = command[1:]
  if command:
    yield tuple(command)


def spans(page: pathlib.Path) -> list[str]:
  """Returns what stands between backticks in a page's sentences."""
  prose = _FENCE.sub('', page.read_text('utf-8'))
  return [' '.join(span.split()) for span in _SPAN.findall(prose)]
