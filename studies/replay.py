"""How much English must be replayed so that it is not forgotten while Korean is learned?

Every arm reads the same Korean tokens. English comes on top, so an arm of 50 % reads twice as many
tokens.

    0 … 50 %       a constant share of English windows. 2407.02118, on replay at 1.4B, recommends 5
                   to 30 %, with about 30 % the best balance; 2403.08763, Pile → German, finds that
                   1 % helps already and that 50 % costs the new language something
    first tenth    half English in the first tenth of the tokens, none after (the curriculum of
                   2506.00288): as much English as 5 %. Two runs, the first at a constant rate, the
                   second with the usual decay. Adam starts anew between them, and so does the order
                   of the Korean text, of which the first twentieth is therefore read twice
    70 → 40 %      an English share that falls linearly, so that Korean rises from 30 to 60 %
                   (PolyLM, 2307.06018)

Measured: bits per byte of held-out Korean and English, before and after.

    python -m studies.replay --model out/grown --data out/shards --out out/studies/replay --seeds 3
"""
import argparse
from pathlib import Path

from common import cli
from studies import arms, plot

SHARES = (0, 5, 10, 20, 30, 50)
LABELS = {str(share): f"{share} %" for share in SHARES}
LABELS.update({"first tenth": "first tenth", "rising": "70 → 40 %"})
HEADER = ["English windows", "Korean tokens", "English tokens", "Korean, bits per byte",
          "English, bits per byte", "seconds"]


def mix(args: argparse.Namespace, *english: float) -> list[str]:
    """--data with these shares of English, one after another over the stage.

    >>> mix(argparse.Namespace(data="d"), 0.75, 0.5)
    ['d/ko=0.25:0.5', 'd/en=0.75:0.5']
    """
    korean_shares = ":".join(f"{1 - share:g}" for share in english)
    english_shares = ":".join(f"{share:g}" for share in english)
    return [f"{args.data}/ko={korean_shares}", f"{args.data}/en={english_shares}"]


def train_arm(args: argparse.Namespace, name: str, seed: int) -> list[Path]:
    """The run of an arm, or its two runs, one after the other."""
    label = f"{name.replace(' ', '_')}-{seed}"
    if name == "first tenth":
        total = args.tokens / 0.95
        first = arms.train(args, f"{label}-a", model=args.model, seed=seed, data=mix(args, 0.5),
                           stages=arms.full(args, total / 10), min_lr=1)
        second = arms.train(args, label, model=first / "model", seed=seed,
                            data=mix(args, arms.NEVER), stages=arms.full(args, 0.9 * total))
        return [first, second]

    if name == "rising":
        shares = [0.7, 0.4]
        total = args.tokens / 0.45
    else:
        shares = [max(int(name) / 100, arms.NEVER)]
        total = args.tokens / (1 - int(name) / 100)
    run = arms.train(args, label, model=args.model, seed=seed, data=mix(args, *shares),
                     stages=arms.full(args, total))
    return [run]


def row_of(args: argparse.Namespace, name: str, seed: int) -> dict:
    """Train an arm; its row of the table."""
    tokens = {"ko": 0, "en": 0}
    seconds = 0.0
    records = []
    for run in train_arm(args, name, seed):
        state = cli.read_json(run / "stages/1-full/training_state.json")
        for language, windows in zip(tokens, state["loader"]["counts"], strict=True):
            tokens[language] += args.seq_len * windows
        found = arms.measured(run)
        seconds += found[-1]["seconds"]
        records += found
    return {
        "arm": name,
        "seed": seed,
        "start": records[0]["scores"],
        **records[-1]["scores"],
        "seconds": seconds,
        "tokens": tokens,
    }


def by_arm(rows: list[dict]) -> dict[str, list[dict]]:
    """{arm: its rows, one per seed}."""
    return {name: [row for row in rows if row["arm"] == name] for name in LABELS}


def mean_of(rows: list[dict], key: str) -> float:
    """The mean of a number over the seeds."""
    return sum(row[key] for row in rows) / len(rows)


def draw(result: dict, axes) -> None:
    """Korean against English at the end, a dot per seed; arms of a constant share are joined."""
    found = by_arm(result["rows"])
    start = result["rows"][0]["start"]
    none = {language: mean_of(found["0"], language) for language in ("ko", "en")}
    some = {language: mean_of(found["30"], language) for language in ("ko", "en")}

    for name, colour in zip(found, plot.COLOURS, strict=True):
        english = [row["en"] for row in found[name]]
        korean = [row["ko"] for row in found[name]]
        axes.plot(english, korean, "o", ms=5, color=colour)
        axes.annotate(LABELS[name], xy=(mean_of(found[name], "en"), max(korean)), xytext=(0, 6),
                      textcoords="offset points", ha="center", color=colour)
    line_en = [mean_of(found[str(share)], "en") for share in SHARES]
    line_ko = [mean_of(found[str(share)], "ko") for share in SHARES]
    axes.plot(line_en, line_ko, "-", color=plot.GREY, lw=0.8, zorder=0)

    axes.axvline(start["en"], color=plot.GREY, ls=":", lw=0.8)
    axes.text(start["en"], 0.02, " before training", color=plot.GREY,
              transform=axes.get_xaxis_transform())
    axes.margins(0.08)
    axes.set(xlabel="English, bits per byte (left is better)",
             ylabel="Korean, bits per byte (lower is better)")
    kept = (none["en"] - some["en"]) / (none["en"] - start["en"])
    shown = f"{some['ko'] - none['ko']:+.3f}".replace("-", "−")
    plot.title(axes, f"With 30 % of the windows English, {plot.percent(kept)} of the English that "
                     f"would be lost is kept;\nKorean changes by {shown} bits per byte")


def report(args: argparse.Namespace, settings: dict, rows: list[dict]) -> None:
    """Table, JSON and figure of the rows so far."""
    start = rows[0]["start"]
    table = [["untrained", "", "", f"{start['ko']:.3f}", f"{start['en']:.3f}", ""]]
    for name, found in by_arm(rows).items():
        table.append([
            LABELS[name],
            *found[0]["tokens"].values(),
            arms.shown([row["ko"] for row in found]),
            arms.shown([row["en"] for row in found]),
            round(mean_of(found, "seconds")),
        ])
    result = {"settings": settings, "rows": rows}
    arms.write(args, "replay", result, HEADER, table, lambda axes: draw(result, axes))


def main() -> None:
    """Train all arms, seed by seed; print and write the table after each seed."""
    parser = arms.parser(__doc__, "replay.py", "Korean tokens per arm")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory")
    flag("--data", type=Path, required=True, help="folder with shards ko and en")
    flag("--seeds", type=int, default=1,
         help="runs of every arm, which differ in the order of the data")
    args = parser.parse_args()
    settings = arms.start(args, seeds=1)
    rows = []
    for seed in range(args.seeds):
        rows += [row_of(args, name, seed) for name in LABELS]
        report(args, settings, rows)


if __name__ == "__main__":
    cli.run(main)
