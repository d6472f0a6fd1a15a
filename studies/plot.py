"""How a figure of the studies looks: an SVG without a background, or nothing where matplotlib is missing."""
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from common import cli

GREY, COLOURS = "#828a93", ["#2f81f7", "#db7f25", "#2da44e", "#c2479f", "#8a63d2", "#b89500", "#159a9c", "#e5534b"]
FONTS = ["DejaVu Sans", "Noto Sans KR", "Malgun Gothic", "AppleGothic", "sans-serif"]


def figure(path: Path, draw: Callable, panels: int = 1) -> None:
    """An SVG that `draw(axes, ...)` fills, or one line where matplotlib, an optional extra, is missing. No background
    and a middle grey: it can be read on white and on black. Text is text, in the reader's fonts; a machine without
    Korean ones only guesses how wide it will be."""
    try:
        import matplotlib
    except ImportError:
        return print(f"{path} was left out: figures need matplotlib (pip install matplotlib)")
    matplotlib.use("svg")
    from matplotlib import pyplot
    style = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    style |= {"svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": FONTS,
              "svg.hashsalt": "nanowhale", "axes.spines.top": False, "font.size": 9,
              "axes.spines.right": False, "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "legend.frameon": False}
    with matplotlib.rc_context(style):
        whole, axes = pyplot.subplots(1, panels, figsize=(7 if panels == 1 else 9, 4), layout="constrained")
        draw(*([axes] if panels == 1 else axes))
        with cli.new_file(path) as temporary:
            whole.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(whole)
    print(f"figure: {path}")
