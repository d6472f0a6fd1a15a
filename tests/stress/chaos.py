"""Pull the plug a hundred times: a training run that is killed (-9) at random moments must end in the same bits.

One run goes undisturbed. Others are killed after a random time and resumed, again and again, until they finish; then
their weights, and step, tokens, loss, learning rate and gradient norm of every step, are compared with the first one's.
When enough kills have been dealt the last run finishes in peace; any difference ends this program with status 1.

    bash speedrun.sh --prepare && python -m tests.stress.chaos --kills 100
"""
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import measure
from common import cli


def main() -> None:
    """Deal the kills, finish the last run, compare."""
    parser = cli.Parser(description=__doc__, prog="tests.stress.chaos")
    flag = parser.add_argument
    flag("--model", default="out/grown", help="model directory to start from")
    flag("--data", nargs="+", default=["out/shards/ko=0.75", "out/shards/en=0.25"], help="as train.py's")
    flag("--stages", nargs="+", default=["embed:60k:5e-3", "odd:60k:5e-3", "lora:60k:5e-3"], help="as train.py's")
    flag("--more", nargs="*", default=[], help="more flags of train.py, without their --, such as optimizer=adamw_bf16")
    flag("--kills", type=int, default=100, help="kills to deal, at least")
    flag("--longest", type=float, default=12.0, help="seconds that a process lives, at most")
    flag("--save_every", type=int, default=5, help="steps between checkpoints")
    flag("--seed", type=int, default=None, help="of the moments; None: another every time")
    args = parser.parse_args()
    draw, kills, finished = random.Random(args.seed), 0, 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        still, run = Path(folder) / "still", Path(folder) / "run"
        train = [sys.executable, str(measure.ROOT / "train.py")]
        new = [*train, "--model", args.model, "--data", *args.data, "--stages", *args.stages, "--save_every",
               str(args.save_every), *(f"--{pair}" for pair in args.more), "--out"]
        subprocess.run([*new, str(still)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while kills < args.kills or run.exists():
            command = [*train, "--resume", str(run)] if (run / "config.json").exists() else [*new, str(run)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                _, errors = process.communicate(timeout=draw.uniform(0, args.longest) if kills < args.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                continue
            if process.returncode:
                sys.exit(f"after {kills} kills train.py ended with {process.returncode}: {errors[-2000:]}")
            found = measure.difference(run, still)
            if found:
                sys.exit(f"after {kills} kills a finished run differs in its {found}")
            finished += 1
            print(f"{kills} kills, {finished} runs finished, all equal", flush=True)
            shutil.rmtree(run)
    measure.report("chaos", [{"kills": kills, "finished runs": finished, "steps a run": "equal, every number",
                              "weights": "equal, every bit", "seconds": time.perf_counter() - began}],
                   measure.machine() | {"stages": args.stages, "save_every": args.save_every, "more": args.more})


if __name__ == "__main__":
    cli.run(main)
