"""Pull the plug a hundred times: a training run that is killed (-9) at random moments must end in
the same bits.

One run goes undisturbed. Others are killed after a random time and resumed, again and again, until
they finish; then their weights, and step, tokens, loss, learning rate and gradient norm of every
step, are compared with the first one's. When enough kills have been dealt the last run finishes in
peace; any difference ends this program with status 1.

    bash speedrun.sh --prepare && python -m tests.stress.chaos --kills 100
"""
import argparse
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

TRAIN = [sys.executable, str(measure.ROOT / "train.py")]


def command_of(args: argparse.Namespace, run: Path) -> list[str]:
    """The command that begins a run."""
    command = [*TRAIN, "--model", args.model, "--data", *args.data, "--stages", *args.stages]
    command += ["--save_every", str(args.save_every), "--out", str(run)]
    command += [f"--{pair}" for pair in args.more]
    return command


def run_for(command: list[str], seconds: float | None) -> tuple[int, str] | None:
    """Run a command: (exit status, what it said on stderr), or None if it was killed after so many
    seconds."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None
    return process.returncode, errors


def deal(args: argparse.Namespace, folder: Path) -> tuple[int, int]:
    """Kill and resume runs in this folder until the kills are dealt: (kills, finished runs)."""
    still = folder / "still"
    run = folder / "run"
    quiet = subprocess.DEVNULL
    subprocess.run(command_of(args, still), check=True, stdout=quiet, stderr=quiet)

    draw = random.Random(args.seed)
    kills = 0
    finished = 0
    while kills < args.kills or run.exists():
        # A process that was killed before it wrote its settings has to begin again.
        command = command_of(args, run)
        if (run / "config.json").exists():
            command = [*TRAIN, "--resume", str(run)]
        seconds = None
        if kills < args.kills:
            seconds = draw.uniform(0, args.longest)
        ended = run_for(command, seconds)
        if ended is None:
            kills += 1
            continue

        status, errors = ended
        if status:
            sys.exit(f"after {kills} kills train.py ended with {status}: {errors[-2000:]}")
        difference = measure.difference(run, still)
        if difference:
            sys.exit(f"after {kills} kills a finished run differs in its {difference}")
        finished += 1
        print(f"{kills} kills, {finished} runs finished, all equal", flush=True)
        shutil.rmtree(run)
    return kills, finished


def main() -> None:
    """Deal the kills, finish the last run, compare."""
    parser = cli.Parser(description=__doc__, prog="tests.stress.chaos")
    flag = parser.add_argument
    flag("--model", default="out/grown", help="model directory to start from")
    flag("--data", nargs="+", default=["out/shards/ko=0.75", "out/shards/en=0.25"],
         help="as train.py's")
    flag("--stages", nargs="+", default=["embed:60k:5e-3", "odd:60k:5e-3", "lora:60k:5e-3"],
         help="as train.py's")
    flag("--more", nargs="*", default=[],
         help="more flags of train.py, without their --, such as optimizer=adamw_bf16")
    flag("--kills", type=int, default=100, help="kills to deal, at least")
    flag("--longest", type=float, default=12.0, help="seconds that a process lives, at most")
    flag("--save_every", type=int, default=5, help="steps between checkpoints")
    flag("--seed", type=int, default=None, help="of the moments; None: another every time")
    args = parser.parse_args()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        kills, finished = deal(args, Path(folder))
    row = {
        "kills": kills,
        "finished runs": finished,
        "steps a run": "equal, every number",
        "weights": "equal, every bit",
        "seconds": time.perf_counter() - began,
    }
    conditions = measure.machine()
    for name in ("stages", "save_every", "more"):
        conditions[name] = getattr(args, name)
    measure.report("chaos", [row], conditions)


if __name__ == "__main__":
    cli.run(main)
