"""RedWhale's claim about new rows, put to the test: is the mean of the subtokens, in both tables, the best start?

Runs `init.py --probe` (every method, embedding and head alone, then everything) for several seeds of the random rows
and of the order of the batches, and prints mean and spread of bits per byte.

    python -m bench.init --model BASE --tokenizer merged.model --shards out/shards/ko
"""
import statistics
import tempfile
from pathlib import Path

import init
from bench import measure
from common import cli


def main() -> None:
    """Run the probe once a seed; print mean and spread."""
    parser = cli.Parser(description=__doc__, prog="bench.init")
    flag = parser.add_argument
    flag("--model", required=True, help="the base's model directory")
    flag("--tokenizer", required=True, help="the merged .model file")
    flag("--shards", required=True, help="token shards of Korean, packed with it")
    flag("--seeds", type=int, default=3, help="runs of the probe")
    flag("--probe_steps", default="100", help="steps of training, each method, twice a seed")
    flag("--probe_batch", default="4", help="windows a step")
    flag("--probe_bytes", default="30000", help="bytes of validation text to measure on")
    flag("--seq_len", default="128", help="tokens a window")
    flag("--lr", default="1e-3", help="learning rate, constant, of AdamW")
    args = parser.parse_args()
    conditions = {name: value for name, value in vars(args).items() if name.startswith(("probe_", "seq_len", "lr"))}
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for seed in range(args.seeds):
            out = Path(folder) / f"{seed}.json"
            init.main(["--model", args.model, "--tokenizer", args.tokenizer, "--probe", args.shards, "--out", str(out),
                       "--seed", str(seed), *(f"--{name}={value}" for name, value in conditions.items())])
            runs.append(cli.read_json(out))
    rows = []
    for key, trained in init.TRAINED.items():
        for method in init.METHODS:
            values = {step: [run[key][method][step] for run in runs] for step in runs[0][key][method]}
            last = values[args.probe_steps]
            rows.append({"trained": trained, "method": method,
                         **{f"step {step}": statistics.mean(found) for step, found in values.items()},
                         "largest - smallest at the end": max(last) - min(last)})
    measure.report("init", rows, measure.machine() | {"seeds": args.seeds} | conditions,
                   recommended=[run["best"] for run in runs], runs=[{k: run[k] for k in init.TRAINED} for run in runs])


if __name__ == "__main__":
    cli.run(main)
