"""The rivals of the recipe that keep the base's own tokenizer: plain continual pretraining, twice.

A new tokenizer changes what a token is, so "the same number of tokens" would be an unfair race. Two fair ones:

    equal bytes   the same text is read: more tokens, because Korean costs more of them, and so more time
    equal time    training takes as many seconds as the recipe's did: less text is read

Both start from the same base model, on shards of the same documents packed with the base's tokenizer.

    python -m studies.plain --run out/run --model out/base_run/model --data out/shards_base --out out/run_plain
"""
import json
import subprocess
import sys
from pathlib import Path

from common import cli


def steps(run: Path) -> list[dict]:
    """The lines of a run's metrics that are training steps."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def seconds(run: Path) -> float:
    """Time that a run spent in training steps; validation and checkpoints are not in it."""
    return sum(run_settings(run)["batch_tokens"] / record["tokens_per_second"] for record in steps(run))


def run_settings(run: Path) -> dict:
    """The effective settings of a run."""
    return cli.read_json(run / "config.json")


def bytes_read(run: Path) -> dict[Path, float]:
    """Bytes of text that a run read from each of its folders of shards, by the windows that it drew."""
    settings = run_settings(run)
    last = max((run / "stages").glob("[0-9]*-*"), key=lambda folder: int(folder.name.partition("-")[0]))
    counts = cli.read_json(last / "training_state.json")["loader"]["counts"]
    folders = [Path(entry.partition("=")[0]) for entry in settings["data"]]
    indexes = [cli.read_json(folder / "index.json") for folder in folders]
    return {folder: n * settings["seq_len"] * index["bytes"] / index["tokens"]
            for folder, n, index in zip(folders, counts, indexes, strict=True)}


def train(args, out: str, tokens: dict[Path, float]) -> None:
    """One full stage on the base's shards, with so many tokens of each."""
    total = sum(tokens.values())
    data = [f"{folder}={n / total:.6f}" for folder, n in tokens.items()]
    subprocess.run([sys.executable, "train.py", "--model", args.model, "--data", *data, "--out", out,
                    "--stages", f"full:{total / 1e6:.4f}M:{args.peak_lr}"], check=True)


def main() -> None:
    """Train at equal bytes, read off its speed, train at equal time."""
    parser = cli.Parser(description=__doc__, prog="studies.plain")
    parser.add_argument("--run", type=Path, default=Path("out/run"), help="the recipe's run")
    parser.add_argument("--model", default="out/base_run/model", help="the base that it started from")
    parser.add_argument("--data", type=Path, default=Path("out/shards_base"), help="the same sources, base tokenizer")
    parser.add_argument("--out", default="out/run_plain", help="run folder; the second one gets _equal_time behind it")
    parser.add_argument("--peak_lr", default="4e-3", help="peak learning rate")
    args = parser.parse_args()
    tokens = {}
    for folder, n_bytes in bytes_read(args.run).items():
        index = cli.read_json(args.data / folder.name / "index.json")
        tokens[args.data / folder.name] = n_bytes * index["tokens"] / index["bytes"]
    train(args, args.out, tokens)
    share = seconds(args.run) / seconds(Path(args.out))
    train(args, args.out + "_equal_time", {folder: n * share for folder, n in tokens.items()})


if __name__ == "__main__":
    cli.run(main)
