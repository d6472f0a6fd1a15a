"""Does it help to keep documents apart that share a training window?

A window is cut from a stream of documents, so a position may attend to documents before its own,
which have nothing to do with it. `train.py --document_mask` hides them. What is published is mixed:
2402.13991 reports better models from it, others saw no difference. The same tokens, in the same
order, with the mask and without:

    short    short documents (comments, reviews, articles), of which a window may hold many
    long     long ones (rulings, statutes, periodicals); most windows lie inside one of them

with a quarter of English windows in both. Measured: bits per byte of held-out documents of each
kind, which are read by themselves, as always. The difference that the mask makes is taken seed by
seed.

    python -m studies.document_mask --model grown --short shards/comments shards/wiki \\
        --long shards/law --english shards/en --out out/studies/document_mask --seeds 3
"""
import statistics

import data
from common import cli
from studies import arms
from studies.report import table

# The share of English windows, against forgetting: what the recipe replays.
ENGLISH = 0.25

# Trained on which kind, with the mask or without. Pairs follow each other, so that a machine that
# gets busier does it to both.
ARMS = [("short", False), ("short", True), ("long", False), ("long", True)]


def mix(args, kind: str) -> dict[str, float]:
    """The weight of each folder of shards: those of the kind share three quarters evenly. The
    other kind is measured and never drawn."""
    weights = {}
    for name, folders in (("short", args.short), ("long", args.long)):
        for folder in folders:
            weight = arms.NEVER
            if name == kind:
                weight = (1 - ENGLISH) / len(folders)
            weights[folder] = weight
    weights[args.english] = ENGLISH
    return weights


def documents_per_window(folder: str, seq_len: int) -> float:
    """Of how many documents a window holds something, on average: the one that its start cuts, and
    those that begin further on."""
    index = data.Shards(folder).index
    return 1 + (seq_len - 1) * index["documents"] / index["tokens"]


def one(args, kind: str, document_mask: bool, seed: int) -> dict:
    """Train an arm; its row of the result."""
    weights = mix(args, kind)
    flags = {
        "model": args.model,
        "data": [f"{folder}={weight:g}" for folder, weight in weights.items()],
        "stages": arms.full(args, args.tokens),
        "seed": seed,
    }
    name = f"{kind}-{seed}"
    if document_mask:
        flags["document_mask"] = []  # a flag without a value
        name += "-mask"
    run = arms.train(args, name, **flags)

    start, *_, end = arms.measured(run)
    return {
        "trained on": kind,
        "document_mask": document_mask,
        "seed": seed,
        "start": start["scores"],
        "end": end["scores"],
        "seconds": end["seconds"],
    }


def with_sign(values: list[float]) -> str:
    """A difference, as `arms.shown` shows a number.

    >>> with_sign([-0.5, -0.3])
    '-0.4000 ± 0.1414'
    """
    text = f"{statistics.mean(values):+.4f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.4f}"
    return text


def scores_of(rows: list[dict], kind: str, document_mask: bool) -> list[dict]:
    """The final bits per byte of an arm, seed by seed."""
    scores = []
    for row in rows:
        if row["trained on"] == kind and row["document_mask"] == document_mask:
            scores.append(row["end"] | {"seconds": row["seconds"]})
    return scores


def report(args, settings: dict, rows: list[dict]) -> None:
    """Print the table of the rows so far, and write it as JSON."""
    start = rows[0]["start"]
    documents = {}
    for name, folder in zip(start, mix(args, "short"), strict=True):
        documents[name] = round(documents_per_window(folder, args.seq_len), 1)
    shown = [
        ["documents per window", "", *map(str, documents.values()), ""],
        ["untrained", "", *start.values(), ""],
    ]
    for kind in ("short", "long"):
        off = scores_of(rows, kind, document_mask=False)
        on = scores_of(rows, kind, document_mask=True)
        for name, scores in (("off", off), ("on", on)):
            line = [kind, name]
            for source in start:
                line.append(arms.shown([score[source] for score in scores]))
            line.append(round(statistics.mean(score["seconds"] for score in scores)))
            shown.append(line)

        # Both arms of a seed have read the same windows, so their difference varies less than they.
        line = [kind, "on - off"]
        for source in start:
            pairs = zip(on, off, strict=True)
            line.append(with_sign([masked[source] - plain[source] for masked, plain in pairs]))
        shown.append([*line, ""])

    header = ["trained on", "mask", *start, "seconds"]
    result = {"settings": settings, "documents per window": documents, "rows": rows}
    cli.write_json(args.out / "document_mask.json", result)
    print(table(header, shown))


def main() -> None:
    """Train all arms, seed by seed; print and write the table after each seed."""
    parser = arms.parser(__doc__, "document_mask.py", "tokens per arm")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory")
    flag("--short", nargs="+", required=True, help="folders of shards of short documents")
    flag("--long", nargs="+", required=True, help="folders of shards of long documents")
    flag("--english", required=True, help="folder of shards of English")
    flag("--seeds", type=int, default=1,
         help="runs of every arm; they differ in the order of the data")
    parser.set_defaults(seq_len=512)
    args = parser.parse_args()
    settings = arms.start(args, seeds=1)
    rows = []
    for seed in range(args.seeds):
        rows += [one(args, kind, document_mask, seed) for kind, document_mask in ARMS]
        report(args, settings, rows)


if __name__ == "__main__":
    cli.run(main)
