"""How much English must be replayed so that it is not forgotten while Korean is learnt?

The same Korean tokens in every arm; English comes on top, so an arm of 50 % reads twice as many tokens:

    0 … 50 %        a constant share of English windows (2407.02118, on replay at 1.4B: 5–30 %, about 30 % the best
                    balance; 2403.08763, Pile → German: 1 % helps already, 50 % costs the new language something)
    first tenth     half English in the first tenth of the tokens, none after (2506.00288's curriculum): as much English
                    as 5 %. Two runs: one at a constant rate, one with the usual decay; between them Adam starts anew,
                    and the order of the Korean text too, so the first twentieth of it is read twice
    70 → 40 %       an English share that falls on a line, so that Korean rises from 30 to 60 % (PolyLM, 2307.06018)

Bits a byte of held-out Korean and English, before and after.

    python -m studies.replay --model out/grown --data out/shards --out out/studies/replay --seeds 3
"""
from pathlib import Path

from common import cli
from studies import arms, plot

SHARES = (0, 5, 10, 20, 30, 50)
LABELS = {**{str(share): f"{share} %" for share in SHARES}, "first tenth": "first tenth", "rising": "70 → 40 %"}


def one(args, name: str, seed: int) -> dict:
    """Train an arm; its row of the table."""
    def mix(*en):
        return [f"{args.data}/ko=" + ":".join(f"{1 - share:g}" for share in en),
                f"{args.data}/en=" + ":".join(f"{share:g}" for share in en)]
    common, label = {"model": args.model, "seed": seed}, f"{name.replace(' ', '_')}-{seed}"
    runs, total = [], args.tokens / 0.95
    if name == "first tenth":
        runs.append(arms.train(args, f"{label}-a", **common, data=mix(0.5), stages=arms.full(args, total / 10),
                               min_lr=1))
        common, share, total = {**common, "model": runs[0] / "model"}, [arms.NEVER], 0.9 * total
    elif name == "rising":
        share, total = [0.7, 0.4], args.tokens / 0.45
    else:
        share, total = [max(int(name) / 100, arms.NEVER)], args.tokens / (1 - int(name) / 100)
    runs.append(arms.train(args, label, **common, data=mix(*share), stages=arms.full(args, total)))
    counts = [cli.read_json(run / "stages/1-full/training_state.json")["loader"]["counts"] for run in runs]
    start, *_, end = [row for run in runs for row in arms.measured(run)]
    return {"arm": name, "seed": seed, "start": start["scores"], **end["scores"],
            "seconds": sum(arms.measured(run)[-1]["seconds"] for run in runs),
            "tokens": {x: args.seq_len * sum(c[i] for c in counts) for i, x in enumerate(("ko", "en"))}}


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
    plot.title(axes, f"With 30 % of the windows English, {kept:.0%} of the English that would be "
                     f"lost is kept;\nKorean changes by {some['ko'] - none['ko']:+.3f} bits per byte")


def report(args, settings: dict, rows: list[dict]) -> None:
    """Table, JSON and figure of the rows so far."""
    of = by_arm(rows)
    start = rows[0]["start"]

    shown = [["untrained", "", "", f"{start['ko']:.3f}", f"{start['en']:.3f}", ""]]
    shown += [[LABELS[name], *found[0]["tokens"].values(), *(arms.shown([row[x] for row in found])
               for x in ("ko", "en")), round(mean_of(found, "seconds"))] for name, found in of.items()]
    result = {"settings": settings, "rows": rows}
    arms.write(args, "replay", result,
               ["English windows", "Korean tokens", "English tokens", "Korean, bits a byte", "English, bits a byte",
                "seconds"], shown, lambda axes: draw(result, axes))


def main() -> None:
    """Train all arms, seed by seed; print and write the table after each seed."""
    parser = arms.parser(__doc__, "replay.py", "Korean tokens an arm")
    parser.add_argument("--model", required=True, help="the grown model directory")
    parser.add_argument("--data", type=Path, required=True, help="folder with shards ko and en")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every arm; they differ in the order of the data")
    args = parser.parse_args()
    settings, rows = arms.start(args, seeds=1), []
    for seed in range(args.seeds):
        rows += [one(args, name, seed) for name in LABELS]
        report(args, settings, rows)


if __name__ == "__main__":
    cli.run(main)
