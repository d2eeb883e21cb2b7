"""Bar charts as SVG, written by hand: a chart needs no library."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
LEFT = 150
RIGHT = 110
TOP = 56
BAR = 22
GAP = 6
GROUP_GAP = 18
LEGEND_STEP = 90

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 15px; font-weight: 600; }
  .paper { fill: #ffffff; }
  .axis { stroke: #8c959f; }
  .peer { fill: #9aa4af; }
  .agent { fill: #1f6feb; }
  .edge { fill: #54aeff; }
  .pair { fill: #1f6feb; }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: pieces one after the other, each with the name that gives it its colour."""

    label: str
    pieces: Sequence[tuple[str, float]]

    @property
    def total(self) -> float:
        """Its length."""
        return sum(value for _, value in self.pieces)


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that belong together."""

    label: str
    bars: Sequence[Bar]


def chart(title: str, unit: str, groups: Sequence[Group]) -> str:
    """Horizontal bars on one scale from 0, with their values."""
    longest = max((bar.total for group in groups for bar in group.bars), default=0.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / longest
    names = dict.fromkeys(name for group in groups for bar in group.bars for name, _ in bar.pieces)
    lines = [f'<text class="title" x="12" y="22">{escape(title)}</text>', *_legend(list(names))]
    y = TOP
    for group in groups:
        lines.append(f'<text x="12" y="{y + 15}" font-weight="600">{escape(group.label)}</text>')
        for bar in group.bars:
            lines.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>')
            x = float(LEFT)
            for name, value in bar.pieces:
                lines.append(
                    f'<rect class="{escape(name)}" x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="{BAR}">'
                    f"<title>{escape(name)}: {value:.1f} {escape(unit)}</title></rect>"
                )
                x += value * scale
            lines.append(f'<text x="{x + 6:.1f}" y="{y + 15}">{bar.total:.1f} {escape(unit)}</text>')
            y += BAR + GAP
        y += GROUP_GAP
    lines.append(f'<line class="axis" x1="{LEFT}" y1="{TOP - 6}" x2="{LEFT}" y2="{y - GROUP_GAP}"/>')
    body = "\n  ".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img" '
        f'aria-label="{escape(title)}">\n  <style>{STYLE}  </style>\n'
        f'  <rect class="paper" width="{WIDTH}" height="{y}"/>\n  {body}\n</svg>\n'
    )


def _legend(names: Sequence[str]) -> list[str]:
    lines = []
    for number, name in enumerate(names):
        x = LEFT + number * LEGEND_STEP
        lines.append(f'<rect class="{escape(name)}" x="{x}" y="32" width="12" height="12"/>')
        lines.append(f'<text x="{x + 17}" y="43">{escape(name)}</text>')
    return lines
