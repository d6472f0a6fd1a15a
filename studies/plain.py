"""The rival of the recipe that keeps the base's own tokenizer: plain continual pretraining.

A new tokenizer changes what a token is, so "the same number of tokens" would be an unfair race.
Two fair ones:

    equal bytes   the same text is read: more tokens, because Korean costs more, and more time
    equal time    training takes as many seconds as the recipe's did: less text is read

Both start from the same base model, on shards of the same documents packed with the base's
tokenizer. Stopped and started again with the same command, the study resumes where it was.

    python -m studies.plain --equal time                                   # after bash speedrun.sh
    python -m studies.plain --equal bytes --out out/run_plain_equal_bytes
"""
import argparse
import sys
from pathlib import Path

from common import cli
from studies import arms
from studies.runs import bytes_read, check_finished, run_settings, seconds, steps


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


def equal_time(run: Path, shards: Path, base_run: Path) -> dict[Path, float]:
    """The same, cut down to what plain training reads in the time that the run took.

    Its speed is known already: the base was trained in the same way, all of it at once.
    """
    tokens_per_second = steps(base_run)[-1]["tokens"] / seconds(base_run)
    affordable = seconds(run) * tokens_per_second
    tokens = equal_bytes(run, shards)
    share = affordable / sum(tokens.values())
    return {folder: n * share for folder, n in tokens.items()}


def train(args: argparse.Namespace, tokens: dict[Path, float]) -> None:
    """One full stage on the base's shards, with so many tokens of each. UserError if it stops."""
    if (args.out / "model").exists():
        return  # finished before this study was stopped
    if (args.out / "config.json").exists():
        flags = ["--resume", str(args.out)]
    else:
        # Windows and batches are those of the recipe's run.
        settings = run_settings(args.run)
        total = sum(tokens.values())
        flags = [
            "--model", args.model,
            "--data", *(f"{folder}={n / total:.6f}" for folder, n in tokens.items()),
            "--stages", f"full:{total / 1e6:.4f}M:{args.peak_lr}",
            "--seq_len", str(settings["seq_len"]),
            "--batch_tokens", str(settings["batch_tokens"]),
            "--out", str(args.out),
        ]

    arms.command([sys.executable, "train.py", *flags], log=None)
    if not (args.out / "model").exists():
        raise cli.UserError(f"train.py did not finish {args.out}; the same command resumes it")


def main(argv: list[str] | None = None) -> None:
    """Count the tokens that make a fair race, and train with them."""
    parser = cli.Parser(description=__doc__, prog="studies.plain")
    flag = parser.add_argument
    flag("--equal", choices=["bytes", "time"], required=True,
         help="what is the same as the recipe's")
    flag("--run", type=Path, default=Path("out/run"), help="the recipe's run, finished")
    flag("--model", default="out/base_run/model", help="the base that it started from")
    flag("--base_run", type=Path, default=Path("out/base_run"),
         help="the run that trained the base: its speed makes equal time known beforehand")
    flag("--data", type=Path, default=Path("out/shards_base"),
         help="the same sources, packed with the base's tokenizer")
    flag("--out", type=Path, default=Path("out/run_plain"), help="run folder")
    flag("--peak_lr", default="4e-3", help="peak learning rate")
    args = parser.parse_args(argv)

    check_finished(args.run)
    if args.equal == "bytes":
        tokens = equal_bytes(args.run, args.data)
    else:
        tokens = equal_time(args.run, args.data, args.base_run)
    train(args, tokens)


if __name__ == "__main__":
    cli.run(main)
