"""How does text from a tokenizer or a user become visible text?

A token may hold control characters, half a surrogate pair, marks that turn the
reading direction, `</script>`, `<b>`, `$` or `%{y}`. Each must show as what it
is, in matplotlib, in plotly and in HTML.
"""

from __future__ import annotations

import html
import unicodedata

# Not printable alone, but part of words and of emoji.
_JOINERS = '\u200c\u200d'
_HIDDEN = ('Cc', 'Cf', 'Cs', 'Co', 'Cn')


def visible(text: str) -> str:
  """Spells out characters that are not seen, or that change how others are."""
  if text.isprintable():
    return text
  return ''.join(
    ascii(c)[1:-1]
    if unicodedata.category(c) in _HIDDEN and c not in _JOINERS
    else c
    for c in text
  )


def in_matplotlib(text: str) -> str:
  """Returns text that matplotlib does not take for a formula."""
  return visible(text).replace('$', r'\$')


def in_plotly(text: str) -> str:
  """Returns text in which plotly finds no tags, variables and formulas."""
  text = html.escape(visible(text), quote=False)
  return text.replace('%{', '%&#123;').replace('$', '&#36;')


def in_html(text: str) -> str:
  """Returns text for an element or a quoted attribute."""
  return html.escape(visible(text))
