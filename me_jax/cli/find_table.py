"""The table that `me-jax find` prints."""

from __future__ import annotations

import math

from rich import console as console_lib
from rich import table as table_lib
from rich import text as text_lib

from me_jax.analysis import me_report

_BAR = 24
_SHOWN_TOKENS = 6
_SHOWN_CHANNELS = 8


def show(report: me_report.MEReport) -> None:
  """Prints the report to standard output."""
  console = console_lib.Console(highlight=False)
  if not console.is_terminal:
    console = console_lib.Console(highlight=False, width=100)
  console.print(_layers(report))
  console.print()
  console.print(text_lib.Text(report.headline(), style='bold'))
  for label, line in _facts(report):
    console.print(text_lib.Text(f'{label:<12}', style='cyan').append(
      line, style='default'), soft_wrap=True)  # fmt: skip


def _layers(report: me_report.MEReport) -> table_lib.Table:
  """Returns one row a layer."""
  table = table_lib.Table(box=None, pad_edge=False)
  table.add_column('layer', justify='right')
  table.add_column('norm of the massive token (log)' if report.tokens
                   else 'norm of the first token (log)')  # fmt: skip
  for name in ('norm', 'others', 'jump', 'attn', 'FFN', 'control'):
    table.add_column(name, justify='right')
  table.add_column('')
  top = math.log10(max(report.norm.max(), 10.0))
  bottom = min(0.0, math.log10(max(report.norm.min(), 1e-6)))
  control = report.control.shares.attn + report.control.shares.ffn
  for layer, jump in enumerate(report.jump):
    norm = report.norm[layer + 1]
    part = (math.log10(max(norm, 1e-6)) - bottom) / (top - bottom)
    mark, style = '', ''
    if layer == report.layer:
      mark, style = '<- ME Layer', 'bold'
    elif layer in report.span:
      mark = '<- span'
    table.add_row(
      str(layer),
      '█' * round(_BAR * part),
      f'{norm:,.0f}',
      f'{report.others[layer + 1]:,.0f}',
      f'{jump:,.2f}',
      _share(report.shares.attn[layer]),
      _share(report.shares.ffn[layer]),
      _share(control[layer]),
      mark,
      style=style,
    )
  return table


def _share(share: float) -> str:
  """Spells a share; nothing worth a digit stays blank."""
  return f'{share:.3f}' if abs(share) >= 0.0005 else '·'


def _facts(report: me_report.MEReport) -> list[tuple[str, str]]:
  """Returns the lines below the table, each with its label."""
  facts = []
  if report.span:
    spread = report.share_by_text
    width = len(report.control.span)
    facts.append(
      (
        'share',
        f'{spread.mean():.4f} of the plateau, {spread.min():.4f} in the prompt '
        f'with the least; embedding {report.shares.embedding:.4f}. '
        f'Control token: {width or "no"} layers for the same.',
      )
    )
  if report.layer is not None:
    facts.append(('jump', f'norm x {report.jump[report.layer]:,.1f}'))
  if report.plateau:
    facts.append(('plateau', 'layers {}-{}'.format(*report.plateau)))
  if report.channels:
    channels = [
      f'{c.index} ({c.value:+,.0f} ± {c.std:,.0f}, {c.energy:.1%} of the norm²)'
      for c in report.channels[:_SHOWN_CHANNELS]
    ]
    facts.append(('channels', _list(channels, len(report.channels))))
  if report.neurons:
    neurons = [
      f'{n.index} of layer {n.layer} ({n.share:.3f})' for n in report.neurons
    ]
    facts.append(('neurons', ', '.join(neurons)))
  if report.tokens:
    places: dict[int, int] = {}
    for token in report.tokens:
      places[token.position] = places.get(token.position, 0) + token.texts
    where = ', '.join(
      f'position {place} in {count} prompt{"" if count == 1 else "s"}'
      for place, count in sorted(places.items())[:_SHOWN_TOKENS]
    )
    tokens = [
      f'{t.token_id if t.string is None else repr(t.string)} ({t.texts}×)'
      for t in report.tokens[:_SHOWN_TOKENS]
    ]
    facts.append(('tokens', f'{where}: {_list(tokens, len(report.tokens))}'))
  facts.append(
    (
      'largest |x|',
      f'{report.peak.value:,.0f} after layer {report.peak.layer}, '
      f'{report.peak.ratio:,.0f} × the median there',
    )
  )
  for group, found in report.agreement.items():
    facts.append(('prompts', f'{group.replace("_", " ")}: {_rules(found)}'))
  p = report.provenance
  facts.append(
    (
      'made with',
      f'{p.get("model", "")} {p["dtype"]}, residual {p["residual_dtype"]}, '
      f'matmul {p["matmul_precision"]}, attention {p["attention"]}, '
      f'{p["device"]}, jax {p["versions"]["jax"]}',
    )
  )
  return facts


def _list(items: list[str], count: int) -> str:
  more = f' and {count - len(items)} more' if count > len(items) else ''
  return ', '.join(items) + more


def _rules(found: me_report.Agreement) -> str:
  """Spells which layer each rule names in how many prompts."""
  line = f'{found.massive} of {found.texts} have massive activations'
  names = {'share': 'largest share', 'sun': 'first massive (Sun et al.)',
           'jump': 'largest jump'}  # fmt: skip
  for rule, layers in found.rules.items():
    ranked = sorted(layers.items(), key=lambda item: -item[1])
    spelled = ', '.join(
      f'{"none" if layer is None else layer} ({count}×)'
      for layer, count in ranked
    )
    line += f'; {names[rule]}: {spelled or "-"}'
  return line
