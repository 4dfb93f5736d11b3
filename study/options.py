"""What is studied, and how do its paths look to a reader elsewhere?"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
import dataclasses
import hashlib
import os
import pathlib
import re
from typing import NamedTuple, NoReturn

from me_jax import errors
from me_jax.checkpoints import locate

DEFAULT_MODEL = 'smollm2'
DATA, OUT = 'path/to/sets', 'out/study'
_PIECE = 1 << 22  # bytes of a file at a time


class Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def error(self, message: str) -> NoReturn:
    """Raises MeJaxError."""
    raise errors.MeJaxError(f'{message}; --help lists the flags.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """One model's study.

  Attributes:
    model: as the verbs take it.
    out: the folder of the whole study.
    data: a folder with the public sets; None uses built-in texts.
    quick: whether everything is tiny.
  """

  model: str = DEFAULT_MODEL
  out: str = OUT
  data: str | None = None
  quick: bool = False

  @property
  def name(self) -> str:
    """The model's name in paths and tables."""
    return name_of(self.model)

  @property
  def folder(self) -> pathlib.Path:
    """Where the model's steps are.

    Quick ones are apart, or they would take the place of real ones.
    """
    return pathlib.Path(self.out, 'quick' if self.quick else '', self.name)

  def shown(self, text: str) -> str:
    """Returns text without paths of this machine.

    What is looked at elsewhere, and compared with, is what does not depend on
    where the folders happen to be.
    """
    names = {self.out: OUT}
    if os.path.exists(self.model):
      names[self.model] = f'path/to/{self.name}'
    if self.data:
      names[self.data] = DATA
    places = {os.path.abspath(path): name for path, name in names.items()}
    # A relative path may be a common word: it is one where a flag has it.
    flags = {f'={path.rstrip("/")}': f'={name}' for path, name in names.items()}
    shown = places | flags
    return re.sub(
      rf'(?:(?<![\w./-])(?:{_any(places)})|(?:{_any(flags)}))(?![\w-])',
      lambda found: shown[found[0]],
      text,
    )


def _any(texts: Iterable[str]) -> str:
  """Returns a pattern for any of them, the longest that fits."""
  return '|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))


def name_of(model: str) -> str:
  """Returns a model's name: of a path its last part, of the hub both."""
  text = model.rstrip('/')
  if os.path.exists(text) or text.count('/') != 1:
    text = os.path.basename(os.path.abspath(text))
  text = text.removesuffix('.gguf')
  return re.sub(r'[^A-Za-z0-9._]+', '-', text).strip('-.') or 'model'


def check(models: list[str], data: str | None) -> None:
  """Looks over what was given before any work.

  Raises:
    MeJaxError: the folder of data is none, two models have one name, or one
      is not there.
  """
  if data is not None and not os.path.isdir(data):
    raise errors.MeJaxError(f'--data={data} is no folder.')
  names = [name_of(model) for model in models]
  for name in names:
    if names.count(name) > 1:
      raise errors.MeJaxError(
        f'two models are called {name}: rename a folder, or study them with'
        ' two --out.'
      )
  for model in models:
    locate.locate(model)


def check_sets(data: str, files: Iterable[str]) -> None:
  """Sees that a folder holds the sets that steps ask for.

  Raises:
    MeJaxError: one lacks.
  """
  lacking = [file for file in files if not pathlib.Path(data, file).is_file()]
  if lacking:
    raise errors.MeJaxError(f'--data={data} lacks {", ".join(lacking)}.')


def check_places(page: pathlib.Path, out: str) -> None:
  """Sees before any work that results can be written.

  Raises:
    MeJaxError: a place is not one for a page, or for a folder.
  """
  if page.suffix != '.md':
    raise errors.MeJaxError(
      f'--page={page} does not end in .md: its figures go into a folder of the'
      ' same name without it.'
    )
  for flag, path, folder in (
    ('page', page, page.parent), ('out', pathlib.Path(out), pathlib.Path(out))
  ):  # fmt: skip
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
      what = 'may not be written to' if there.is_dir() else 'is a file'
      raise errors.MeJaxError(f'cannot write --{flag}={path}: {there} {what}.')
  if page.is_dir():
    raise errors.MeJaxError(f'--page={page} is a folder.')


class Digests(NamedTuple):
  """Hashes of what the paths of a study hold.

  Attributes:
    model: of the files of the weights.
    data: of the sets; None without any.
  """

  model: str
  data: str | None


def digests(options: Options) -> Digests:
  """Reads all files of a model and of its sets once."""
  return Digests(
    model=_digest(pathlib.Path(locate.locate(options.model)), ()),
    data=_digest(pathlib.Path(options.data), ('.jsonl', '.txt', '.csv'))
    if options.data
    else None,
  )


def _digest(path: pathlib.Path, suffixes: tuple[str, ...]) -> str:
  """Returns a hash of a file, or of a folder's files with these suffixes."""
  found = hashlib.sha256()
  inside = [path] if path.is_file() else sorted(path.rglob('*'))
  for one in inside:
    if one.is_file() and (not suffixes or one.suffix in suffixes):
      found.update(str(one.relative_to(path)).encode())
      with open(one, 'rb') as file:
        while piece := file.read(_PIECE):
          found.update(piece)
  return found.hexdigest()[:16]
