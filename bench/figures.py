"""The README's figures, drawn from what the programs wrote: no number is typed by hand, and one command draws them all.

    python -m bench.figures                          # those of bench/results/, into docs/figures/
    python -m bench.figures --speedrun out           # those of a speedrun, into out/figures/
    python -m bench.figures --results mine.json --out mine --clean clean/formal clean/web --sizes tokens.json \\
        --probe probe.json --stages out/stages --run run --kobest before.json after.json        # those of your own

What a flag names is reduced to the few numbers that are drawn, and these are kept in --results: a figure can be drawn
again when the corpus and the weights are gone. A figure without numbers is left out, in a line that says what makes
them. Needs matplotlib (pip install matplotlib). Text stays text in the SVG, in whatever Korean font the reader has.
"""
import importlib.util
import statistics
from pathlib import Path

from bench import measure
from common import cli
from studies import arms, plot, stages
from studies.report import RUNS

TRAINED = {"bits_per_byte": "embedding and head trained", "everything": "everything trained"}  # keys of the probe's
LANGUAGES = {"ko": "Korean (한국어)", "en": "English (영어)"}
NAMES = {"odd": "odd alone", "plain_equal_time": "equal time"}  # of arms, where their own would be mistaken


def rounded(value):
    """JSON with its floats cut to five digits after the point: what a figure can show, and more."""
    if isinstance(value, dict):
        return {key: rounded(inside) for key, inside in value.items()}
    return [rounded(x) for x in value] if isinstance(value, list) else round(value, 5) if isinstance(
        value, float) else value


def numbers(settings: dict) -> dict:
    """Of a program's settings, the numbers; paths are of no use to others."""
    return {key: value for key, value in settings.items() if isinstance(value, int | float)}


# ---- What the programs wrote, reduced to what is drawn -------------------------------------------------------------
def corpus(folders: list[Path]) -> dict:
    """{folder: [[step, documents, bytes left after it]]} of folders that data.py clean wrote."""
    reports = {folder.name: cli.read_json(folder / "report.json") for folder in folders}
    return {name: [["raw", *report["input"].values()],
                   *([s["step"], s["documents_out"], s["bytes_out"]] for s in report["steps"])]
            for name, report in reports.items()}


def tokens(file: Path) -> dict:
    """{"suggested": size, "rows": [[Korean pieces, tokens / the base's, rows / the base's]]}, from bench/tokenizer.py
    or from tokenizer.py report --sizes --out."""
    found = cli.read_json(file)
    if "sizes" in found:  # the benchmark's
        found, rows = found["sizes"], [[r["size"], *list(r.values())[1:]] for r in found["sizes"]["table"]]
    else:
        rows = [[int(name.removesuffix(" pieces")), row["mean_token_ratio"], row["embedding_growth"]]
                for name, row in found["tokenizers"].items() if name.endswith(" pieces")]
    return {"suggested": int(found["suggested"].split()[0]), "rows": [r for r in rows if isinstance(r[0], int)]}


def init(file: Path) -> dict:
    """{what is trained: {method: {step: bits a byte, one a seed}}}, from init.py --probe or bench/init.py."""
    found = cli.read_json(file)
    runs = found.get("runs", [found])
    return {trained: {method: {step: [run[trained][method][step] for run in runs] for step in row}
                      for method, row in runs[0][trained].items()} for trained in TRAINED}


def losses(folder: Path) -> dict:
    """{"rows": as studies.stages writes them}, from its folder or from a speedrun's."""
    if (folder / "stages.json").exists():
        study = cli.read_json(folder / "stages.json")
        return {"settings": numbers(study["settings"]), "rows": study["rows"]}
    return {"rows": [row for arm, run in RUNS.items() for row in stages.rows_of(folder / run, arm, 0)]}


def run(folder: Path) -> dict:
    """{"rows": [[stage, tokens, bits a byte of Korean, of English]]}: the validations of a run of train.py."""
    settings = cli.read_json(folder / "config.json")
    names = [stage.partition(":")[0] for stage in settings["stages"]]
    return {"settings": numbers(settings), "rows": [
        [names[r["stage"] - 1], r["tokens"], r["scores"]["ko"], r["scores"]["en"]] for r in arms.measured(folder)]}


def kobest(files: list[Path]) -> dict:
    """{task: {"chance": …, "before" and "after": [accuracy, and its 95 % interval]}}, from two of eval_kobest.py."""
    before, after = (cli.read_json(file)["tasks"] for file in files)
    return {task: {"chance": 1 / len(after[task]["examples"][0]["loglikelihoods"]),
                   **{name: [scores[task]["acc"], *scores[task]["ci95"]]
                      for name, scores in (("before", before), ("after", after))}} for task in after if task in before}


# ---- The figures ---------------------------------------------------------------------------------------------------
def draw_corpus(found: dict, *panels) -> None:
    """The funnel: the share of each corpus that is left; the numbers themselves are in the legend."""
    order = list(dict.fromkeys(step for rows in sorted(found.values(), key=len, reverse=True) for step, *_ in rows))
    for axes, column, what, shown in ((panels[0], 1, "documents", "{:,}".format),
                                      (panels[1], 2, "bytes of text", lambda n: f"{n / 1e6:,.2f} MB")):
        for name, rows in found.items():
            axes.plot([order.index(row[0]) for row in rows], [row[column] / rows[0][column] for row in rows], "o-",
                      ms=3, label=f"{name}: {shown(rows[0][column])} → {shown(rows[-1][column])}")
        axes.set(title=f"{what}: share left after the step", ylim=(0, 1.05), xticks=range(len(order)))
        axes.set_xticklabels(order, rotation=40, ha="right")
        axes.legend(fontsize=8, loc="lower left")


def draw_tokens(found: dict, axes) -> None:
    """Tokens of Korean against rows of the embedding."""
    axes.plot([row[0] for row in found["rows"]], [row[1] for row in found["rows"]], "o-")
    for size, ratio, growth in found["rows"]:
        axes.annotate(f"{growth:.2f}", (size, ratio), (5, 4), textcoords="offset points", fontsize=8)
    axes.axvline(found["suggested"], color=plot.GREY, ls=":", lw=0.8)
    axes.set(xlabel="Korean pieces (at the points: rows of the embedding, the base's = 1; dotted: the knee)",
             ylabel="tokens of held-out Korean, the base's = 1")


def draw_init(found: dict, *panels) -> None:
    """Bits a byte of Korean after so many steps, by method: the mean of all seeds."""
    for axes, (trained, methods) in zip(panels, found.items(), strict=True):
        for method, row in methods.items():
            axes.plot([int(step) for step in row], [statistics.mean(values) for values in row.values()], "o-", ms=3,
                      label=method)
        axes.set(title=TRAINED[trained], xlabel="steps", ylabel="Korean (한국어), bits a byte")
        axes.legend(fontsize=8)


def bits_axis(axes, values: list[float]) -> None:
    """A scale of logarithms where the last values would else be one line on the floor."""
    if max(values) > 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="minor", labelsize=7)


def draw_losses(found: dict, *panels) -> None:
    """The staged arm stage by stage, joined by a line, then the ends of its rivals; a dot a seed."""
    values: dict = {}
    for arm, _, after, _, *scores, _ in found["rows"]:
        values.setdefault(arm, {}).setdefault(after.replace("lora", "LoRA"), []).append(scores)
    staged = values.pop(max(values, key=lambda arm: len(values[arm])))
    columns = [*staged.items(), *((NAMES.get(arm, arm), list(afters.values())[-1]) for arm, afters in values.items())]
    places = [x + 0.6 * (x >= len(staged)) for x in range(len(columns))]
    for i, (axes, language) in enumerate(zip(panels, LANGUAGES.values(), strict=True)):
        for x, (_, scores) in zip(places, columns, strict=True):
            axes.plot([x] * len(scores), [score[i] for score in scores], "o", ms=5, alpha=0.7,
                      color=plot.COLOURS[x >= len(staged)])
        axes.plot(places[:len(staged)], [statistics.mean(s[i] for s in scores) for scores in staged.values()], lw=1)
        base = values["plain"]["start"][0][i]
        axes.axhline(base, color=plot.GREY, ls=":", lw=0.8)
        axes.text(1, base, "base, untrained", fontsize=8, ha="right", va="bottom", transform=axes.get_yaxis_transform())
        bits_axis(axes, [base, *(score[i] for _, scores in columns for score in scores)])
        axes.set(title=f"{language}, bits a byte", xticks=places)
        axes.set_xticklabels([name for name, _ in columns], rotation=40, ha="right")


def draw_run(found: dict, axes) -> None:
    """Both languages over the tokens of a run; a dotted line where a stage ends."""
    rows = found["rows"]
    for i, name in enumerate(LANGUAGES.values(), 2):
        axes.plot([row[1] / 1e6 for row in rows], [row[i] for row in rows], "o-", ms=3, label=name)
    ends = {stage.replace("lora", "LoRA"): tokens / 1e6 for stage, tokens, *_ in rows}
    for begin, (stage, end) in zip([0, *ends.values()], ends.items(), strict=False):
        axes.axvline(end, color=plot.GREY, ls=":", lw=0.8)
        axes.text((begin + end) / 2, 0.98, stage, ha="center", va="top", transform=axes.get_xaxis_transform())
    bits_axis(axes, [x for row in rows for x in row[2:]])
    axes.set(xlabel="million tokens", ylabel="bits a byte of held-out text")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def draw_kobest(found: dict, axes) -> None:
    """Accuracy before and after with 95 % intervals, and what guessing gets."""
    for shift, name, colour in ((-0.12, "before", plot.GREY), (0.12, "after", plot.COLOURS[0])):
        middle, low, high = zip(*(row[name] for row in found.values()), strict=True)
        error = [[m - x for m, x in zip(middle, low, strict=True)], [x - m for m, x in zip(middle, high, strict=True)]]
        axes.errorbar([i + shift for i in range(len(found))], middle, error, fmt="o", color=colour, label=name)
    for i, row in enumerate(found.values()):
        axes.plot([i - 0.35, i + 0.35], [row["chance"]] * 2, ":", color=plot.GREY, label="chance" if not i else None)
    axes.set(ylabel="accuracy, with 95 % intervals", xticks=range(len(found)), xticklabels=list(found))
    axes.legend()


# figure: (its reader, its drawing, panels, and the command and the flag that give it numbers)
FIGURES = {"corpus": (corpus, draw_corpus, 2, "data.py clean --out FOLDER", "--clean FOLDER …"),
           "tokens": (tokens, draw_tokens, 1, "tokenizer.py report --sizes … --out FILE", "--sizes FILE"),
           "init": (init, draw_init, 2, "init.py --probe SHARDS --out FILE", "--probe FILE"),
           "stages": (losses, draw_losses, 2, "python -m studies.stages --out FOLDER", "--stages FOLDER"),
           "run": (run, draw_run, 1, "train.py --out RUN", "--run RUN"),
           "kobest": (kobest, draw_kobest, 1, "eval_kobest.py --out FILE, before and after", "--kobest FILE FILE")}


def sources(args) -> dict:
    """{figure: where its numbers are}: the flags; else what the speedrun, or the other benchmarks, have written."""
    if args.speedrun:
        out = args.speedrun
        found = {"corpus": [out / "clean" / x for x in LANGUAGES], "init": out / "probe.json", "stages": out,
                 "run": out / "run", "kobest": [out / "kobest" / f"{x}.json" for x in ("base", "nanowhale")]}
    else:
        found = {"tokens": measure.RESULTS / "tokenizer.json", "init": measure.RESULTS / "init.json"}
    given = {"corpus": args.clean, "tokens": args.sizes, "init": args.probe, "stages": args.stages, "run": args.run,
             "kobest": args.kobest}
    return found | {name: place for name, place in given.items() if place}


def main(argv: list[str] | None = None) -> None:
    """Gather, keep what was gathered, draw."""
    parser = cli.Parser(description=__doc__, prog="bench.figures")
    flag = parser.add_argument
    flag("--speedrun", type=Path, metavar="OUT", help="take everything from the folder of a speedrun")
    flag("--clean", type=Path, nargs="+", metavar="FOLDER", help="folders that data.py clean wrote")
    flag("--sizes", type=Path, metavar="FILE", help="what tokenizer.py report --sizes wrote")
    flag("--probe", type=Path, metavar="FILE", help="what init.py --probe wrote")
    flag("--stages", type=Path, metavar="FOLDER", help="the folder of studies.stages")
    flag("--run", type=Path, metavar="RUN", help="a run folder of train.py, best one with --eval_every")
    flag("--kobest", type=Path, nargs=2, metavar="FILE", help="what eval_kobest.py wrote before and after")
    flag("--results", type=Path, help="JSON file of the numbers drawn, read and written (default: "
         "bench/results/figures.json; with --speedrun OUT/figures/figures.json)")
    flag("--out", type=Path, help="folder for the SVGs (default: docs/figures; with --speedrun OUT/figures)")
    args = parser.parse_args(argv)
    home = args.speedrun / "figures" if args.speedrun else None
    args.results = args.results or (home or measure.RESULTS) / "figures.json"
    args.out = args.out or home or measure.ROOT / "docs" / "figures"
    if importlib.util.find_spec("matplotlib") is None:
        raise cli.UserError("figures need matplotlib, an optional extra: pip install matplotlib")
    cli.settings(args)
    drawn = cli.read_json(args.results) if args.results.exists() else {}
    for name, place in sources(args).items():
        try:
            drawn[name] = rounded(FIGURES[name][0](place))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            raise cli.UserError(f"{place} is not what `{FIGURES[name][3]}` writes") from None
    cli.write_json(args.results, drawn)
    for name, (_, draw, panels, command, how) in FIGURES.items():
        if name in drawn:
            plot.figure(args.out / f"{name}.svg", lambda *axes, draw=draw, name=name: draw(drawn[name], *axes), panels)
        else:
            print(f"{name}.svg is left out: `{command}` makes its numbers, and {how} names them here")


if __name__ == "__main__":
    cli.run(main)
