"""The README's figures, drawn from what the programs wrote: no number is typed by hand.

    python -m bench.figures                          # the README's: bench/results/ to docs/figures/
    python -m bench.figures --recipe out/real --stages out/studies/stages --committed
                                                     # ... after studies.recipe and studies.stages
    python -m bench.figures --speedrun out           # those of a speedrun, into out/figures/
    python -m bench.figures --results mine.json --out mine --clean clean/formal clean/web \\
        --sizes tokens.json --probe probe.json --stages out/stages --run run \\
        --kobest before.json after.json              # those of your own

What a flag names is reduced to the few numbers that are drawn, and these are kept in --results: a
figure can be drawn again when the corpus and the weights are gone. With a flag, nothing is drawn
but what it names and what --results holds; a figure without numbers is left out, in a line that
says what makes them. Needs matplotlib (pip install matplotlib). Text stays text in the SVG, in
whatever Korean font the reader has.
"""
import argparse
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import measure
from common import cli
from studies import arms, forgetting, plot, replay, scaling, stages
from studies.report import RUNS

# What a probe of init.py trained, by the keys of its results.
TRAINED = {
    "bits_per_byte": "embedding and head trained",
    "everything": "everything trained",
}
LANGUAGES = {"ko": "Korean (한국어)", "en": "English (영어)"}
# Names in the figures, where the programs' own would be mistaken.
NAMES = {
    "odd": "odd alone",
    "en": "English",
    "ko": "Korean",
    "formal": "articles and law",
    "web": "web pages",
    "short": "reviews, comments",
}


# ---- What the programs wrote, reduced to what is drawn -------------------------------------------


def read_corpus(folders: list[Path]) -> dict:
    """{folder: [[step, documents, bytes left after it]]} of folders that data.py clean wrote."""
    found = {}
    for folder in folders:
        report = cli.read_json(folder / "report.json")
        rows = [["raw", *report["input"].values()]]
        for step in report["steps"]:
            rows.append([step["step"], step["documents_out"], step["bytes_out"]])
        found[folder.name] = rows
    return found


def read_tokens(file: Path) -> dict:
    """{"suggested": size, "rows": [[Korean pieces, tokens / the base's, rows / the base's]]}, from
    bench/tokenizer.py or from tokenizer.py report --sizes --out."""
    found = cli.read_json(file)
    rows = []
    if "sizes" in found:  # the benchmark's
        found = found["sizes"]
        for row in found["table"]:
            size, *ratios = row.values()
            if isinstance(size, int):  # the base itself has a name there
                rows.append([size, *ratios])
    else:
        for name, row in found["tokenizers"].items():
            if name.endswith(" pieces"):
                size = int(name.removesuffix(" pieces"))
                rows.append([size, row["mean_token_ratio"], row["embedding_growth"]])
    return {"suggested": int(found["suggested"].split()[0]), "rows": rows}


def read_init(file: Path) -> dict:
    """{what is trained: {method: {step: [bits per byte of each seed]}}}, from init.py --probe or
    from bench/init.py."""
    found = cli.read_json(file)
    runs = found.get("runs", [found])
    result = {}
    for trained in TRAINED:
        result[trained] = {}
        for method, row in runs[0][trained].items():
            values = {step: [run[trained][method][step] for run in runs] for step in row}
            result[trained][method] = values
    return result


def read_stages(folder: Path) -> dict:
    """{"rows": as studies.stages writes them}, from its folder or from a speedrun's."""
    if (folder / "stages.json").exists():
        study = cli.read_json(folder / "stages.json")
        return {"settings": numbers(study["settings"]), "rows": study["rows"]}
    rows = []
    for arm, run in RUNS.items():
        rows += stages.rows_of(folder / run, arm, 0)
    return {"rows": rows}


def read_run(folder: Path) -> dict:
    """{"rows": [[stage, tokens, bits per byte of Korean, of English]]}: a run's validations."""
    settings = cli.read_json(folder / "config.json")
    names = [stage.partition(":")[0] for stage in settings["stages"]]
    rows = []
    for record in arms.measured(folder):
        scores = record["scores"]
        stage = names[record["stage"] - 1]
        rows.append([stage, record["tokens"], scores["ko"], scores["en"]])
    return {"settings": numbers(settings), "rows": rows}


def read_kobest(files: list[Path]) -> dict:
    """{task: {"chance": ..., "before" and "after": [accuracy, and its 95 % interval]}}, from two
    files of eval_kobest.py --out."""
    before, after = [cli.read_json(file)["tasks"] for file in files]
    found = {}
    for task in after:
        if task in before:
            choices = len(after[task]["examples"][0]["loglikelihoods"])
            found[task] = {
                "chance": 1 / choices,
                "before": [before[task]["acc"], *before[task]["ci95"]],
                "after": [after[task]["acc"], *after[task]["ci95"]],
            }
    return found


def numbers(settings: dict) -> dict:
    """Of a program's settings, the numbers; paths are of no use to others."""
    return {key: value for key, value in settings.items() if isinstance(value, int | float)}


def rounded(value):
    """JSON with its floats rounded to five digits after the point: more than a figure can show.

    >>> rounded({"a": [0.1234567, 2, "x"]})
    {'a': [0.12346, 2, 'x']}
    """
    if isinstance(value, dict):
        return {key: rounded(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [rounded(inside) for inside in value]
    if isinstance(value, float):
        return round(value, 5)
    return value


# ---- The figures: each function fills the axes that it is given ----------------------------------


def draw_corpus(found: dict, documents_axes, bytes_axes) -> None:
    """The funnel: which share of each corpus is left after each step."""
    # The longest funnel comes first: it has the steps of the others among its own.
    longest_first = sorted(found.values(), key=len, reverse=True)
    order = []
    for rows in longest_first:
        for step, *_ in rows:
            if step not in order:
                order.append(step)

    draw_funnel(documents_axes, found, order, column=1)
    draw_funnel(bytes_axes, found, order, column=2)
    documents_axes.set(title="documents, and how many are left", ylabel="share left after the step")
    bytes_axes.set(title="text, and how much is left")

    # The finding is about the largest corpus.
    largest = max(found, key=lambda name: found[name][0][2])
    first = found[largest][0]
    last = found[largest][-1]
    removed_documents = plot.percent(1 - last[1] / first[1])
    removed_text = plot.percent(1 - last[2] / first[2])
    plot.title(documents_axes, f"Of “{NAMES.get(largest, largest)}”, cleaning removes "
                               f"{removed_documents} of the documents, but {removed_text} "
                               "of the text")


def draw_funnel(axes, found: dict, order: list[str], column: int) -> None:
    """One panel of draw_corpus: a line for each corpus, over the steps in `order`."""
    ends = []
    for (name, rows), colour in zip(found.items(), plot.COLOURS, strict=False):
        first = rows[0][column]
        last = rows[-1][column]
        if column == 2:
            left = f"{last / 1e6:,.1f} MB"
        else:
            left = f"{last:,}"
        places = [order.index(row[0]) for row in rows]
        shares = [row[column] / first for row in rows]
        axes.plot(places, shares, "o-", ms=3, color=colour)
        ends.append((len(order) - 1, shares[-1], f"{NAMES.get(name, name)}: {left}", colour))
    axes.set(ylim=(0, 1.05), xticks=range(len(order)))
    axes.yaxis.set_major_formatter(lambda share, _: plot.percent(share))
    axes.set_xticklabels(order, rotation=40, ha="right")
    plot.label_ends(axes, ends)


def draw_tokens(found: dict, axes) -> None:
    """Tokens of Korean against rows of the embedding."""
    sizes = [row[0] for row in found["rows"]]
    ratios = [row[1] for row in found["rows"]]
    axes.plot(sizes, ratios, "o-")
    for size, ratio, growth in found["rows"]:
        axes.annotate(f"{growth:.2f}", xy=(size, ratio), xytext=(5, 4),
                      textcoords="offset points", fontsize=8)
    suggested = found["suggested"]
    at_knee = ratios[sizes.index(suggested)]
    axes.axvline(suggested, color=plot.GREY, ls=":", lw=0.8)
    axes.text(suggested, 0.97, " suggested", color=plot.GREY, va="top",
              transform=axes.get_xaxis_transform())
    axes.set(
        xlabel="Korean pieces added (beside the points: rows of the embedding, before = 1)",
        ylabel="tokens of held-out Korean, before = 1",
    )
    axes.margins(0.08)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    plot.title(axes, f"With {suggested:,} Korean pieces added, Korean takes "
                     f"{plot.percent(at_knee)} of the tokens")


def draw_init(found: dict, *panels) -> None:
    """Bits per byte of Korean after so many steps, by method: the mean of all seeds."""
    best = []
    for axes, (trained, methods) in zip(panels, found.items(), strict=True):
        ends = []
        for (method, row), colour in zip(methods.items(), plot.COLOURS, strict=False):
            steps = [int(step) for step in row]
            means = [statistics.mean(values) for values in row.values()]
            axes.plot(steps, means, "o-", ms=3, color=colour)
            ends.append((steps[-1], means[-1], method, colour))
        axes.set(title=TRAINED[trained], xlabel="training steps")
        plot.label_ends(axes, ends)
        best.append(min(ends, key=lambda end: end[1])[2])
    panels[0].set(ylabel="Korean (한국어), bits per byte")
    if len(set(best)) == 1:
        finding = f"“{best[0]}” is the best start for new rows, whatever is trained"
    else:
        finding = f"The best start for new rows: “{best[0]}” and “{best[1]}”"
    plot.title(panels[0], f"{finding} (lower is better)")


def draw_stages(found: dict, *panels) -> None:
    """The staged arm stage by stage, joined by a line; the ends of its rivals; a dot per seed."""
    # {arm: {stage that just ended: [[ko, en] of each seed]}}
    values: dict = {}
    for arm, _, after, _, ko, en, _ in found["rows"]:
        stage = after.replace("lora", "LoRA")
        values.setdefault(arm, {}).setdefault(stage, []).append([ko, en])
    base = values["plain"]["start"][0]

    # The arm with most stages gets a column for each, its rivals one for their end.
    staged = values.pop(max(values, key=lambda arm: len(values[arm])))
    rivals = {NAMES.get(arm, arm): list(ends.values())[-1] for arm, ends in values.items()}
    staged_places = list(range(len(staged)))
    rival_places = [len(staged) + 0.6 + i for i in range(len(rivals))]  # after a gap

    for i, (axes, language) in enumerate(zip(panels, LANGUAGES.values(), strict=True)):
        draw_seeds(axes, staged_places, staged.values(), i, plot.COLOURS[0])
        draw_seeds(axes, rival_places, rivals.values(), i, plot.COLOURS[1])
        means = [statistics.mean(score[i] for score in scores) for scores in staged.values()]
        axes.plot(staged_places, means, lw=1)

        axes.axhline(base[i], color=plot.GREY, ls=":", lw=0.8)
        axes.text(1, base[i], "base, untrained", fontsize=8, ha="right", va="bottom",
                  transform=axes.get_yaxis_transform())
        drawn = [base[i]]
        for scores in [*staged.values(), *rivals.values()]:
            drawn += [score[i] for score in scores]
        set_bits_scale(axes, drawn)
        axes.margins(y=0.14)
        axes.set(title=language, xticks=staged_places + rival_places)
        for x, text, colour in ((staged_places[-1] / 2, "one stage after another", 0),
                                (statistics.mean(rival_places), "rivals, at their end", 1)):
            axes.text(x, 0.98, text, ha="center", va="top", color=plot.COLOURS[colour],
                      transform=axes.get_xaxis_transform())
        axes.set_xticklabels([*staged, *rivals], rotation=40, ha="right")

    panels[0].set(ylabel="bits per byte (lower is better)")
    staged_end = statistics.mean(score[0] for score in list(staged.values())[-1])
    full_end = statistics.mean(score[0] for score in rivals["full"]) if "full" in rivals else None
    if full_end is not None and full_end < staged_end:
        finding = "With as many tokens, one full stage learns more Korean than four stages"
    elif full_end is not None:
        finding = "With as many tokens, four stages learn more Korean than one full stage"
    else:
        finding = "Korean and English after each stage"
    plot.title(panels[0], finding)


def draw_seeds(axes, places: list[float], columns, i: int, colour: str) -> None:
    """A dot for the i-th score of every seed, in the column that it belongs to."""
    for place, scores in zip(places, columns, strict=True):
        heights = [score[i] for score in scores]
        axes.plot([place] * len(heights), heights, "o", ms=5, alpha=0.7, color=colour)


def draw_run(found: dict, axes) -> None:
    """Both languages over the tokens of a run; a dotted line where a stage ends."""
    rows = found["rows"]
    tokens = [row[1] / 1e6 for row in rows]
    drawn = []
    ends = []
    for column, name in enumerate(LANGUAGES.values(), start=2):
        scores = [row[column] for row in rows]
        colour = plot.COLOURS[column - 2]
        axes.plot(tokens, scores, "o-", ms=3, color=colour)
        ends.append((tokens[-1], scores[-1], name, colour))
        drawn += scores

    stage_ends = {}
    for stage, after, *_ in rows:
        # The last row of a stage is its end.
        stage_ends[stage.replace("lora", "LoRA")] = after / 1e6
    begin = 0
    for stage, end in stage_ends.items():
        axes.axvline(end, color=plot.GREY, ls=":", lw=0.8)
        middle = (begin + end) / 2
        axes.text(middle, 0.98, stage, ha="center", va="top", transform=axes.get_xaxis_transform())
        begin = end

    set_bits_scale(axes, drawn)
    axes.set(xlabel="million tokens of training",
             ylabel="bits per byte of held-out text (lower is better)")
    plot.label_ends(axes, ends)
    _, _, korean, english = rows[0]
    _, _, korean_end, english_end = rows[-1]
    plot.title(axes, f"Korean goes from {korean:.2f} to {korean_end:.2f} bits per byte, "
                     f"English from {english:.2f} to {english_end:.2f}")


def set_bits_scale(axes, values: list[float]) -> None:
    """A logarithmic scale where the last values would otherwise lie on one line at the bottom."""
    if max(values) > 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="minor", labelsize=7)


def draw_kobest(found: dict, axes) -> None:
    """Accuracy before and after with 95 % intervals, and what guessing gets."""
    for shift, name, colour in ((-0.12, "before", plot.GREY), (0.12, "after", plot.COLOURS[0])):
        places = [i + shift for i in range(len(found))]
        middle = [task[name][0] for task in found.values()]
        below = [task[name][0] - task[name][1] for task in found.values()]
        above = [task[name][2] - task[name][0] for task in found.values()]
        axes.errorbar(places, middle, [below, above], fmt="o", color=colour, label=name)
    for i, task in enumerate(found.values()):
        label = "chance" if i == 0 else None
        axes.plot([i - 0.35, i + 0.35], [task["chance"]] * 2, ":", color=plot.GREY, label=label)
    axes.set_ylabel("accuracy, with 95 % intervals")
    axes.set_xticks(range(len(found)), list(found))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)

    changed = []
    for name, task in found.items():
        _, low, high = task["after"]
        if not low <= task["before"][0] <= high:
            changed.append(name)
    if changed:
        finding = f"KoBEST: training changes {', '.join(changed)}"
    else:
        finding = "KoBEST: training changes no task by more than its interval"
    plot.title(axes, finding)


# ---- The program ---------------------------------------------------------------------------------


@dataclass
class Figure:
    """How one of the figures is made."""

    read: Callable
    draw: Callable
    panels: int
    command: str  # what makes its numbers
    flag: str  # what names them here


FIGURES = {
    "corpus": Figure(read_corpus, draw_corpus, 2, "data.py clean --out FOLDER", "--clean FOLDER …"),
    "tokens": Figure(read_tokens, draw_tokens, 1, "tokenizer.py report --sizes … --out FILE",
                     "--sizes FILE"),
    "init": Figure(read_init, draw_init, 2, "init.py --probe SHARDS --out FILE", "--probe FILE"),
    "stages": Figure(read_stages, draw_stages, 2, "python -m studies.stages --out FOLDER",
                     "--stages FOLDER"),
    "run": Figure(read_run, draw_run, 1, "train.py --out RUN", "--run RUN"),
    "kobest": Figure(read_kobest, draw_kobest, 1, "eval_kobest.py --out FILE, before and after",
                     "--kobest FILE FILE"),
}


# Figures of the studies: drawn from their JSON, by the function that draws them there.
STUDIES = {
    "replay": (replay.draw, 1),
    "forgetting": (forgetting.draw, 1),
    "scaling": (scaling.draw, 2),
}


def draw_studies(out: Path) -> None:
    """The figures of the studies again, from bench/results/study-*.json."""
    for name, (draw_study, panels) in STUDIES.items():
        result = cli.read_json(measure.RESULTS / f"study-{name}.json")

        def draw(*axes, draw_study=draw_study, result=result):
            draw_study(result, *axes)

        plot.figure(out / f"{name}.svg", draw, panels)


def sources(args: argparse.Namespace) -> dict:
    """{figure: where its numbers are}: what the flags name, and nothing else."""
    found = {}
    if args.speedrun:
        out = args.speedrun
        found = {
            "corpus": [out / "clean" / language for language in LANGUAGES],
            "init": out / "probe.json",
            "stages": out,
            "run": out / "run",
            "kobest": [out / "kobest" / f"{arm}.json" for arm in ("base", "nanowhale")],
        }
    if args.recipe:
        out = args.recipe
        found = {
            "corpus": [out / "clean" / name for name in ("formal", "web", "short", "en")],
            "run": out / "run",
            "kobest": [out / "kobest" / f"{when}.json" for when in ("before", "after")],
        }
        found["corpus"] = [folder for folder in found["corpus"] if folder.exists()]
    # What a flag of its own names goes before what lies in the speedrun's folder.
    given = {
        "corpus": args.clean,
        "tokens": args.sizes,
        "init": args.probe,
        "stages": args.stages,
        "run": args.run,
        "kobest": args.kobest,
    }
    found.update({name: place for name, place in given.items() if place})
    return found


def gather(results: Path, places: dict) -> dict:
    """The numbers of every figure: those that were kept in `results`, and those of `places`."""
    kept = cli.read_json(results) if results.exists() else {}
    for name, place in places.items():
        figure = FIGURES[name]
        try:
            kept[name] = rounded(figure.read(place))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            raise cli.UserError(f"{place} is not what `{figure.command}` writes") from None
    return kept


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags, with the folders that follow from them."""
    parser = cli.Parser(description=__doc__, prog="bench.figures")
    flag = parser.add_argument
    flag("--speedrun", type=Path, metavar="OUT", help="take everything from a speedrun's folder")
    flag("--recipe", type=Path, metavar="OUT", help="take what studies.recipe wrote")
    flag("--committed", action="store_true",
         help="keep the numbers in bench/results and draw docs/figures: the README's")
    flag("--clean", type=Path, nargs="+", metavar="FOLDER", help="folders that data.py clean wrote")
    flag("--sizes", type=Path, metavar="FILE", help="what tokenizer.py report --sizes wrote")
    flag("--probe", type=Path, metavar="FILE", help="what init.py --probe wrote")
    flag("--stages", type=Path, metavar="FOLDER", help="the folder of studies.stages")
    flag("--run", type=Path, metavar="RUN",
         help="a run folder of train.py, best one with --eval_every")
    flag("--kobest", type=Path, nargs=2, metavar="FILE",
         help="what eval_kobest.py wrote before and after")
    flag("--results", type=Path,
         help="JSON file of the numbers drawn, read and written (default: figures.json in --out)")
    flag("--out", type=Path,
         help="folder for the SVGs (default: out/figures; with --speedrun OUT/figures)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Gather the numbers, keep them, draw."""
    args = parse(argv)
    if importlib.util.find_spec("matplotlib") is None:
        raise cli.UserError("figures need matplotlib, an optional extra: pip install matplotlib")
    places = sources(args)
    the_readmes = args.committed or (not places and args.results is None)
    if the_readmes:
        # The README's: what the other benchmarks have written, and what was kept of the studies.
        places["tokens"] = measure.RESULTS / "tokenizer.json"
        places["init"] = measure.RESULTS / "init.json"
        args.results = measure.RESULTS / "figures.json"
        args.out = args.out or measure.ROOT / "docs" / "figures"
    if args.out is None:
        args.out = (args.speedrun or Path("out")) / "figures"
    if args.results is None:
        args.results = args.out / "figures.json"

    cli.settings(args)
    found = gather(args.results, places)
    cli.write_json(args.results, found)
    for name, figure in FIGURES.items():
        if name not in found:
            print(f"{name}.svg is left out: `{figure.command}` makes its numbers, "
                  f"and {figure.flag} names them here")
            continue

        def draw(*axes, figure=figure, numbers=found[name]):
            figure.draw(numbers, *axes)

        plot.figure(args.out / f"{name}.svg", draw, figure.panels)
    if the_readmes:
        draw_studies(args.out)


if __name__ == "__main__":
    cli.run(main)
