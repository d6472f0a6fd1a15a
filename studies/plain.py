"""The rivals of the recipe that keep the base's own tokenizer: plain continual pretraining, twice.

A new tokenizer changes what a token is, so "the same number of tokens" would be an unfair race.
Two fair ones:

    equal bytes   the same text is read: more tokens, because Korean costs more, and more time
    equal time    training takes as many seconds as the recipe's did: less text is read

Both start from the same base model, on shards of the same documents packed with the base's
tokenizer. Stopped and started again with the same command, the study resumes where it was.

    python -m studies.plain --run out/run --model out/base_run/model --data out/shards_base \\
                            --out out/run_plain
"""
import sys
from pathlib import Path

from common import cli
from studies import arms
from studies.runs import bytes_read, check_finished, seconds


def equal_bytes(run: Path, shards: Path) -> dict[Path, float]:
    """{folder: tokens} of the folders in `shards` that hold as much text as a run read.

    A folder is found by its name: what the run read from out/shards/ko is read from SHARDS/ko.
    """
    tokens = {}
    for folder, n_bytes in bytes_read(run).items():
        folder = shards / folder.name
        index = cli.read_json(folder / "index.json")
        tokens[folder] = n_bytes * index["tokens"] / index["bytes"]
    return tokens


def train(args, run: Path, tokens: dict[Path, float]) -> None:
    """One full stage on the base's shards, with so many tokens of each. UserError if it stops."""
    if (run / "model").exists():
        return  # finished before this study was stopped
    if (run / "config.json").exists():
        flags = ["--resume", str(run)]
    else:
        total = sum(tokens.values())
        data = [f"{folder}={n / total:.6f}" for folder, n in tokens.items()]
        stage = f"full:{total / 1e6:.4f}M:{args.peak_lr}"
        flags = ["--model", args.model, "--data", *data, "--stages", stage, "--out", str(run)]

    arms.command([sys.executable, "train.py", *flags], log=None)
    if not (run / "model").exists():
        raise cli.UserError(f"train.py did not finish {run}; the same command resumes it")


def main(argv: list[str] | None = None) -> None:
    """Train at equal bytes; read off its speed; train at equal time."""
    parser = cli.Parser(description=__doc__, prog="studies.plain")
    flag = parser.add_argument
    flag("--run", type=Path, default=Path("out/run"), help="the recipe's run, finished")
    flag("--model", default="out/base_run/model", help="the base that it started from")
    flag("--data", type=Path, default=Path("out/shards_base"),
         help="the same sources, packed with the base's tokenizer")
    flag("--out", default="out/run_plain",
         help="run folder; the second one gets _equal_time behind it")
    flag("--peak_lr", default="4e-3", help="peak learning rate")
    args = parser.parse_args(argv)

    check_finished(args.run)
    tokens = equal_bytes(args.run, args.data)
    train(args, Path(args.out), tokens)

    # Both runs take the same time per token, so the share of the time is the share of the tokens.
    share = seconds(args.run) / seconds(Path(args.out))
    fewer = {folder: n * share for folder, n in tokens.items()}
    train(args, Path(args.out + "_equal_time"), fewer)


if __name__ == "__main__":
    cli.run(main)
