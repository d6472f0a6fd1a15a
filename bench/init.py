"""RedWhale's claim about new rows, put to the test: is the mean of the subtokens the best start?

Runs `init.py --probe` (every method, training embedding and head alone, then everything) for
several seeds of the random rows and of the order of the batches, and prints mean and spread of bits
per byte.

    python -m bench.init --model BASE --tokenizer merged.model --shards out/shards/ko
"""
import statistics
import tempfile
from pathlib import Path

import init
from bench import measure
from common import cli


def run_probe(args, conditions: dict, seed: int) -> dict:
    """What init.py --probe finds with a seed: {key of TRAINED: {method: {step: bits per byte}}}."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe.json"
        argv = ["--model", args.model, "--tokenizer", args.tokenizer, "--probe", args.shards,
                "--out", str(out), "--seed", str(seed)]
        for name, value in conditions.items():
            argv += [f"--{name}", value]
        init.main(argv)
        return cli.read_json(out)


def row(runs: list[dict], key: str, method: str) -> dict:
    """One method's mean over the runs at each step, and how far the runs lie apart at the end."""
    result = {"trained": init.TRAINED[key], "method": method}
    for step in runs[0][key][method]:
        values = [run[key][method][step] for run in runs]
        result[f"step {step}"] = statistics.mean(values)
    result["largest - smallest at the end"] = max(values) - min(values)
    return result


def main() -> None:
    """Run the probe once per seed; print mean and spread."""
    parser = cli.Parser(description=__doc__, prog="bench.init")
    flag = parser.add_argument
    flag("--model", required=True, help="the base's model directory")
    flag("--tokenizer", required=True, help="the merged .model file")
    flag("--shards", required=True, help="token shards of Korean, packed with it")
    flag("--seeds", type=int, default=3, help="runs of the probe")
    flag("--probe_steps", default="100", help="steps of training, each method, twice per seed")
    flag("--probe_batch", default="4", help="windows per step")
    flag("--probe_bytes", default="30000", help="bytes of validation text to measure on")
    flag("--seq_len", default="128", help="tokens per window")
    flag("--lr", default="1e-3", help="learning rate, constant, of AdamW")
    args = parser.parse_args()

    # These go to init.py as they are, and beside the results.
    conditions = {}
    for name in ("probe_steps", "probe_batch", "probe_bytes", "seq_len", "lr"):
        conditions[name] = getattr(args, name)
    runs = [run_probe(args, conditions, seed) for seed in range(args.seeds)]

    rows = []
    for key in init.TRAINED:
        for method in init.METHODS:
            rows.append(row(runs, key, method))
    measure.report(
        "init",
        rows,
        measure.machine() | {"seeds": args.seeds} | conditions,
        recommended=[run["best"] for run in runs],
        runs=[{key: run[key] for key in init.TRAINED} for run in runs],
    )


if __name__ == "__main__":
    cli.run(main)
