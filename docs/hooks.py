"""Puts what `me-jax VERB --help` prints into pages, when the site is built.

A line `<!-- help: find -->` becomes the flags of `find`, so that a page cannot
say something else than the program does.

A link that leaves this folder, such as `[the notebooks](../colab/README.md)`,
leads somewhere in a checkout and nowhere on the site: there it becomes text,
with the file's path.

A line `::: me_jax.load` becomes the documentation of that name, under that name:
the package looks its names up when they are first used, which those who only
read its source cannot see.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import me_jax
from me_jax import cli
from me_jax.cli import flags

_HERE = re.compile(r'^<!-- help: (\w+) -->$', re.M)
_PUBLIC = re.compile(r'^::: me_jax\.(\w+)$', re.M)
_LEAVING = re.compile(r'\[([^\]\n]+)\]\(\.\./([^)\n]+)\)')


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
  """Is called by mkdocs for every page."""
  del kwargs
  markdown = _LEAVING.sub(lambda match: _named(*match.groups()), markdown)
  markdown = _PUBLIC.sub(lambda match: _documented(match[1]), markdown)
  return _HERE.sub(lambda match: _help(match[1]), markdown)


def _named(text: str, path: str) -> str:
  name = f'`{path}`'
  return name if text.strip('`') == path else f'{text} ({name})'


def _documented(name: str) -> str:
  place = getattr(me_jax, name).__module__
  return f"""<a id="me_jax.{name}"></a>

::: {place}.{name}
    options:
      heading: me_jax.{name}
      toc_label: {name}
"""


def _help(verb: str) -> str:
  if verb not in cli.VERBS:
    raise KeyError(f'there is no verb {verb!r}')
  module = importlib.import_module(f'me_jax.cli.{verb}')
  return f'```text\n{flags.help_text(verb, module)}\n```'
