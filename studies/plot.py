"""How figures look: an SVG on a card of its own, light or dark like the page around it.

Where matplotlib is missing, an optional extra, a figure is left out with a line that says so.
"""
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path

from common import cli

GREY = "#7d8590"
COLOURS = [
    "#2f81f7",  # blue
    "#db7f25",  # orange
    "#2da44e",  # green
    "#c2479f",  # magenta
    "#8a63d2",  # violet
    "#b89500",  # yellow
    "#159a9c",  # cyan
    "#e5534b",  # red
]
FONTS = ["DejaVu Sans", "Noto Sans KR", "Malgun Gothic", "AppleGothic", "sans-serif"]

# Two colours follow the reader's colour scheme. matplotlib draws with those of the light one, and
# in the file they become variables.
INK = "#1f2328"
PAPER = "#f6f8fa"
SCHEMES = f"""<style>
  :root {{ --ink: {INK}; --paper: {PAPER}; }}
  @media (prefers-color-scheme: dark) {{ :root {{ --ink: #d1d7e0; --paper: #161b22; }} }}
</style>
"""


def figure(path: Path, draw: Callable, panels: int = 1) -> None:
    """Write an SVG that `draw(axes, ...)` fills, one axes per panel.

    Text stays text, in whatever Korean font the reader has; a machine without one only guesses how
    wide it will be.
    """
    try:
        import matplotlib
    except ImportError:
        return print(f"{path} was left out: figures need matplotlib (pip install matplotlib)")
    matplotlib.use("svg")
    from matplotlib import pyplot

    # Missing Korean fonts are no reason for a warning per glyph.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "nanowhale",  # the same numbers give the same bytes
        "font.family": "sans-serif",
        "font.sans-serif": FONTS,
        "font.size": 9.5,
        "figure.titlesize": 12,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "legend.frameon": False,
    }
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor",
                 "xtick.color", "ytick.color"):
        style[part] = INK

    with matplotlib.rc_context(style):
        whole, axes = pyplot.subplots(1, panels, figsize=(9.4, 4.3), layout="constrained")
        draw(*([axes] if panels == 1 else axes))
        with cli.new_file(path) as temporary:
            whole.savefig(temporary, format="svg", metadata={"Date": None})
            follow_the_scheme(temporary)
        pyplot.close(whole)
    print(f"figure: {path}")


def follow_the_scheme(path: Path) -> None:
    """Let ink and paper of an SVG follow the reader's colour scheme."""
    svg = path.read_text(encoding="utf-8")
    svg = svg.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")
    head, defs, rest = svg.partition("<defs>")
    path.write_text(head + SCHEMES + defs + rest, encoding="utf-8")


def percent(share: float) -> str:
    """A share in whole percent, as the texts write it.

    >>> percent(0.714)
    '71 %'
    """
    return f"{share * 100:.0f} %"


def title(axes, text: str) -> None:
    """The title of the whole figure, which says what was found; on the left, as one reads."""
    axes.figure.suptitle(text, x=0.01, ha="left", fontweight="bold", wrap=True)


def label_ends(axes, ends: list[tuple[float, float, str, str]], gap: float = 0.055) -> None:
    """Labels beside the ends of lines, in place of a legend: (x, y, text, colour) of each.

    Labels that would overlap are moved apart, to `gap` of the axes' height.
    """
    x_right = max(x for x, *_ in ends)
    # Heights as shares of the axes, from the lowest to the highest end.
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"
    placed = []
    for _, y, text, colour in sorted(ends, key=lambda end: end[1]):
        if log:
            share = math.log(y / low) / math.log(high / low)
        else:
            share = (y - low) / (high - low)
        lowest = placed[-1][0] + gap if placed else 0.0
        share = max(share, lowest)
        placed.append((share, text, colour))
    # If the uppermost were pushed out at the top, all move down.
    excess = max(0.0, placed[-1][0] - 1)
    for share, text, colour in placed:
        axes.annotate(
            text,
            xy=(x_right, share - excess),
            xycoords=axes.get_xaxis_transform(),  # x in data, y as a share
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
