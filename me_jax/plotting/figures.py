"""How does it look? Figures of a report, drawn without a display.

Letters: L layers, Z = L + 1 states, D model width.
"""

from __future__ import annotations

import os
import pathlib

from matplotlib import figure as figure_lib
import numpy as np

from me_jax import errors
from me_jax.analysis import me_report

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
PINK, GREY = '#CC79A7', '#777777'
_RIDGE_CHANNELS = 24  # of each layer's line that are kept sharp


def emergence(report: me_report.MEReport) -> figure_lib.Figure:
  """Draws where the massive activations appear, beside an ordinary token.

  Args:
    report: of `find_me_layer`.

  Returns:
    Four panels: |x| by layer and channel of the massive token and of an
    ordinary one on the same scale, the norm by layer, the shares by layer.
  """
  figure = figure_lib.Figure(figsize=(11, 8.5), layout='constrained')
  top = max(report.profile.max(), 1e-6)
  left = figure.add_subplot(2, 2, 1, projection='3d')
  _ridges(left, report.profile, top, report.layer)
  left.set_title(_token_title(report))
  right = figure.add_subplot(2, 2, 2, projection='3d')
  _ridges(right, report.control.profile, top, report.layer)
  right.set_title('control: an ordinary token, same scale')
  _norms(figure.add_subplot(2, 2, 3), report)
  _shares(figure.add_subplot(2, 2, 4), report)
  figure.suptitle(report.headline())
  return figure


def save(figure: figure_lib.Figure, path: str | os.PathLike[str]) -> None:
  """Writes a figure whole or not at all; the suffix names the format."""
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.partial')
  try:
    figure.savefig(partial, dpi=150, format=path.suffix.lstrip('.') or 'png')
    os.replace(partial, path)
  except OSError as error:
    raise errors.MeJaxError(f'cannot write {path}: {error.strerror}') from None
  finally:
    partial.unlink(missing_ok=True)


def _token_title(report: me_report.MEReport) -> str:
  if not report.tokens:
    return 'the first token of each prompt'
  return '|x| of the massive token (orange: the ME Layer)'


def _ridges(axes, profile_ZD: np.ndarray, top: float, mark: int | None) -> None:
  """Draws one line a layer over the channels, the ME Layer's in orange."""
  layers, width = len(profile_ZD) - 1, profile_ZD.shape[1]
  # A wide model has more channels than the figure has dots: keep the peaks.
  stride = max(1, width // 1024)
  peaks = np.sort(np.argsort(-profile_ZD.max(axis=0))[:_RIDGE_CHANNELS])
  shown = np.union1d(np.arange(0, width, stride), peaks)
  for layer in range(layers - 1, -1, -1):
    here = layer == mark
    axes.plot(
      shown,
      np.full(len(shown), layer),
      profile_ZD[layer + 1, shown],
      color=ORANGE if here else BLUE,
      linewidth=1.6 if here else 0.7,
      alpha=1.0 if here else 0.8,
    )
  axes.set(xlabel='channel', ylabel='layer', zlabel='mean |x|', zlim=(0, top))
  axes.view_init(elev=24, azim=-58)


def _norms(axes, report: me_report.MEReport) -> None:
  layers = np.arange(-1, len(report.jump))
  axes.semilogy(layers, report.norm, color=BLUE, marker='.', label='massive')
  axes.semilogy(layers, report.control.norm, color=GREEN, label='control token')
  axes.semilogy(
    layers, report.others, color=GREY, ls='--', label='median of other tokens'
  )
  if report.layer is not None:
    axes.axvline(report.layer, color=ORANGE, lw=1, label='ME Layer')
  axes.set(
    xlabel='layer (-1: embedding)', ylabel='norm of the state', title='norm'
  )
  axes.legend(fontsize=8)


def _shares(axes, report: me_report.MEReport) -> None:
  layers = np.arange(len(report.jump))
  control = report.control.shares
  axes.bar(layers, report.shares.ffn, color=BLUE, label='FFN')
  axes.bar(layers, report.shares.attn, color=PINK, label='attention')
  axes.step(
    layers,
    control.attn + control.ffn,
    where='mid',
    color=GREEN,
    lw=1,
    label='control token',
  )
  axes.axhline(0, color='black', lw=0.5)
  axes.set(xlabel='layer', ylabel='share', title='who wrote the plateau')
  axes.legend(fontsize=8)
