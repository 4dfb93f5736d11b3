"""How do results become a page? Sections in, a folder of files out.

The folder appears when it is complete: `report.html` with everything inside,
`report.json` with every number, and the figures as SVG and PNG for papers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import io
import os
import pathlib
import re
from typing import Any

from PIL import Image

from me_jax import __version__
from me_jax import files
from me_jax.analysis import me_report
from me_jax.checkpoints import atomic
from me_jax.plotting import page
from me_jax.plotting import spec
from me_jax.plotting import static

PAGE, NUMBERS, FIGURES = 'report.html', 'report.json', 'figures'
_NAME = re.compile(r'[a-z][a-z0-9-]*')
# Dots of the picture in the page for one of its CSS pixels, so that it is
# sharp on paper; and colours that are enough for a figure.
_SHARPNESS, _COLORS = 1.5, 128
_WHITE = 249  # What is brighter becomes white.


def check_target(folder: str | os.PathLike[str]) -> str:
  """Finds out whether a report can be written; leaves nothing behind.

  Args:
    folder: where it shall stand. It may be missing, empty, or hold an earlier
      report, which is then replaced; one that holds anything else stays.

  Returns:
    Its absolute path.

  Raises:
    MeJaxError: it cannot, or may not, be written.
  """
  ours = (PAGE, NUMBERS, FIGURES)
  return atomic.check_target(
    folder, overwrite=True, ours=ours.__contains__, mark=PAGE
  )


def write(
  folder: str | os.PathLike[str],
  sections: Sequence[spec.Section],
  *,
  headline: str,
  provenance: Mapping[str, Any],
  command: str,
  title: str = 'Massive activations',
  open_points: Sequence[str] = (),
  progress: Callable[[int, int], Any] | None = None,
) -> pathlib.Path:
  """Writes a report, whole or not at all.

  Args:
    folder: where it shall stand; see `check_target`.
    sections: a claim each, in reading order.
    headline: the verdict in one sentence.
    provenance: how the numbers were made; may be nested.
    command: that makes the report again.
    title: of the page, such as the model's name.
    open_points: sentences on what was looked for and not found, or not looked
      for, beyond what the sections' verdicts say.
    progress: called with (figures drawn, figures in all).

  Returns:
    Where the page is.

  Raises:
    MeJaxError: the folder cannot, or may not, be written.
    ValueError: two sections or two figures have one name, or a name that does
      not fit into a link.
  """
  _check_names(sections)
  target = check_target(folder)
  figures = [figure for section in sections for figure in section.figures]
  numbers = _numbers(sections, headline, provenance, command, open_points)
  with atomic.writing(target) as partial:
    inside = pathlib.Path(partial)
    (inside / FIGURES).mkdir()
    stills = {}
    for done, figure in enumerate(figures):
      if progress:
        progress(done, len(figures))
      stills[figure.name] = _draw(figure, inside / FIGURES)
    text = page.build(
      title=title,
      headline=headline,
      sections=sections,
      stills=stills,
      open_points=open_points,
      provenance=provenance,
      command=command,
    )
    (inside / PAGE).write_text(text, encoding='utf-8')
    files.write_json(inside / NUMBERS, numbers)
    if progress:
      progress(len(figures), len(figures))
  return pathlib.Path(target, PAGE)


def _check_names(sections: Sequence[spec.Section]) -> None:
  names = [section.name for section in sections]
  drawn = [figure.name for section in sections for figure in section.figures]
  taken = ['summary', 'open', 'provenance', 'reproduce']
  for group in (names + taken + [f'figure-{name}' for name in drawn], drawn):
    for name in group:
      if not _NAME.fullmatch(name) or group.count(name) > 1:
        raise ValueError(f'{name!r} is no name, or one that is taken')


def _draw(figure: spec.Figure, folder: pathlib.Path) -> page.Still:
  """Writes a figure's files and returns its picture for the page."""
  # The page has the title above it, a paper below.
  drawn = static.draw(dataclasses.replace(figure, title=''))
  png = folder / f'{figure.name}.png'
  static.save(drawn, png)
  # What was laid out once stays: laying out takes as long as drawing.
  drawn.set_layout_engine('none')
  static.save(drawn, folder / f'{figure.name}.svg')
  with Image.open(png) as image:
    # Octrees are four times as quick as cutting at medians, but grey the white.
    small = image.convert('RGB').quantize(_COLORS, Image.Quantize.FASTOCTREE)
  small.putpalette([255 if v > _WHITE else v for v in small.getpalette() or ()])
  data = io.BytesIO()
  small.save(data, 'png')
  width, height = small.size
  return page.Still(
    data.getvalue(), round(width / _SHARPNESS), round(height / _SHARPNESS)
  )


def _numbers(
  sections: Sequence[spec.Section],
  headline: str,
  provenance: Mapping[str, Any],
  command: str,
  open_points: Sequence[str],
) -> dict[str, Any]:
  """Returns everything that was measured and said, as plain values."""
  return me_report.plain({
    'headline': headline,
    'command': command,
    'me_jax': __version__,
    'provenance': dict(provenance),
    'open_points': list(open_points),
    'sections': {
      section.name: {
        'title': section.title,
        'claim': section.claim,
        'verdict': section.verdict,
        'finding': section.finding,
        'control': section.control,
        'numbers': section.numbers,
        'figures': {
          figure.name: [_drawn(panel) for panel in figure.panels]
          for figure in section.figures
        },
      }
      for section in sections
    },
  })  # fmt: skip


def _drawn(panel: spec.Panel) -> dict[str, Any]:
  """Returns what a panel shows; a profile of all channels is too large."""
  if isinstance(panel, spec.Chart):
    return {
      'title': panel.title,
      'x': panel.x_label,
      'y': panel.y_label,
      'categories': panel.categories,
      'series': [
        {
          name: getattr(series, name)
          for name in ('label', 'x', 'y', 'low', 'high')
          if getattr(series, name) is not None
        }
        for series in panel.series
      ],
    }
  if isinstance(panel, spec.Heatmap):
    return {
      'title': panel.title,
      'columns': panel.x_label,
      'rows': panel.y_label,
      'value': panel.value_label,
      'values': panel.values,
    }
  return {'title': panel.title, 'value': panel.value_label, 'top': panel.top}
