"""The look of matplotlib's figures, and how they get into a page."""

import io
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gfl_jax.reports import pictures

INK = '#1f2937'
SERIES = ('#2563eb', '#dc2626', '#059669', '#d97706', '#7c3aed', '#0891b2', '#be185d')
_STYLE: dict[Any, Any] = {
  'font.size': 10,
  'axes.edgecolor': '#d1d5db',
  'axes.labelcolor': INK,
  'axes.titlecolor': INK,
  'axes.titlesize': 11,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'xtick.color': '#6b7280',
  'ytick.color': '#6b7280',
  'legend.frameon': False,
  'legend.fontsize': 9,
  'svg.hashsalt': 'gfl_jax',  # the same run gives the same file
}


def style():
  """A context for making figures; outside it matplotlib's settings are as before."""
  return matplotlib.rc_context(_STYLE)


def svg(figure: Figure) -> str:
  """The figure as an SVG element."""
  FigureCanvasAgg(figure)
  file = io.StringIO()
  figure.savefig(file, format='svg', dpi=150, metadata={'Date': None})
  text = file.getvalue()
  return text[text.index('<svg') :]  # without the XML heading, which HTML does not have


def webp(figure: Figure) -> str:
  """The figure as an img element."""
  FigureCanvasAgg(figure)
  file = io.BytesIO()
  figure.savefig(file, format='webp', dpi=170, pil_kwargs={'quality': 92})
  return f'<img alt="" src="{pictures.data_uri("image/webp", file.getvalue())}">'
