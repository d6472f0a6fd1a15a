"""Kill a training run (-9) at random moments, a hundred times: it must end with the same bits.

One run is undisturbed. Others are killed after a random time and resumed, again and again, until
they finish; then their weights, and the step, tokens, loss, learning rate and gradient norm of
every step, are compared with those of the first. After the last kill, the last run is left to
finish. Any difference ends this program with status 1.

    bash speedrun.sh --prepare && python -m tests.stress.chaos --kills 100
    python -m tests.stress.chaos --kills 50 --extend --processes 2

With --extend the owner of the killed runs changes their mind twice: the runs start with half of the
first stages, and are resumed with longer ones, with an additional one, and with other flags that do
not change the numbers. The undisturbed run has the final settings from the start.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import measure
from common import checkpoint, cli, plan

# The flags of a run at its start, and after each of the two changes; none of them changes a number.
# Saving less often than once per stage would mean that most kills undo a whole stage.
HARMLESS = (
    ["--save_every", "5", "--eval_every", "0", "--keep", "2", "--recompute", "none"],
    ["--save_every", "3", "--eval_every", "4", "--keep", "3", "--recompute", "full"],
    ["--save_every", "4", "--eval_every", "7", "--keep", "1", "--recompute", "attention"],
)

# A longer stage ends with the same bits only if its learning rate is still the same so far: with
# this schedule it is constant for the first four fifths of the stage (train.learning_rate).
CONSTANT_RATE = ["--schedule", "wsd", "--warmup", "0"]
CONSTANT_SHARE = 0.8


def program_of(args: argparse.Namespace) -> list[str]:
    """train.py in one process or in several."""
    if args.processes == 1:
        return [sys.executable, str(measure.ROOT / "train.py")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc_per_node={args.processes}", str(measure.ROOT / "train.py")]


def begin(args: argparse.Namespace, run: Path, changes: list[str]) -> list[str]:
    """The command that starts a run with the flags `changes`."""
    command = [*program_of(args), "--model", args.model, "--data", *args.data, "--out", str(run)]
    if args.extend:
        command += CONSTANT_RATE
    command += [f"--{pair}" for pair in args.more]
    return command + changes


# ---------------------------------------------------------------- an owner who changes their mind


def settings_of(args: argparse.Namespace) -> list[list[str]]:
    """The flags of a run at its start and after each change; the last are the final ones."""
    if not args.extend:
        return [["--stages", *args.stages, "--save_every", str(args.save_every)]]
    # Lengthen the current stage and one that has not started; then append one.
    *earlier, last = args.stages
    half = [halved(stage) for stage in earlier]
    stages = [half, earlier, [*earlier, last]]
    return [["--stages", *stages[i], *HARMLESS[i]] for i in range(len(stages))]


def halved(stage: str) -> str:
    """The same stage with half the tokens.

    >>> halved("odd:60k:5e-3")
    'odd:30000:5e-3'
    """
    what, _, lr = stage.split(":")
    return f"{what}:{plan.parse_stage(stage).tokens // 2}:{lr}"


class Owner:
    """Decides with which command a run continues. `changes`: how often this run has been changed;
    `too_late`: how many runs had come too far to be changed, and were started again."""

    def __init__(self, args: argparse.Namespace, draw: random.Random):
        self.args = args
        self.draw = draw
        self.settings = settings_of(args)
        self.changes = 0
        self.too_late = 0

    def is_content(self) -> bool:
        """Whether the run has its final settings."""
        return self.changes == len(self.settings) - 1

    def command(self, run: Path, in_a_hurry: bool) -> list[str]:
        """The command that starts or resumes a run, sometimes with changed flags."""
        is_finished = (run / "model").exists()
        wants_change = is_finished or in_a_hurry or self.draw.random() < 0.5
        # A process killed before it wrote its settings has to start again.
        has_begun = (run / "config.json").exists()
        if has_begun and wants_change and not self.is_content():
            if self.may_change(run):
                self.changes += 1
            else:
                self.too_late += 1
                shutil.rmtree(run)
                has_begun = False
        if not has_begun:
            self.changes = 0
            return begin(self.args, run, self.settings[0])

        # Without any flags, if the process that was given them lived long enough to save them.
        command = [*program_of(self.args), "--resume", str(run)]
        flags = self.settings[self.changes]
        stages = flags[1:flags.index("--save_every")]
        if cli.read_json(run / "config.json")["stages"] != stages:
            command += flags
        return command

    def may_change(self, run: Path) -> bool:
        """Whether a run can be resumed with the next settings and still end with the same bits."""
        if self.changes == 1:
            return True  # a stage is appended, whether the run is finished or not
        # The first stage must still have the learning rate that it would have in the longer one.
        if any(run.glob("stages/1-*")):
            return False
        found = checkpoint.newest(run)
        if found is None:
            return True
        saved = cli.read_json(run / "config.json")
        steps = plan.parse_stage(saved["stages"][0]).steps(saved["batch_tokens"])
        return found[1]["step"] <= CONSTANT_SHARE * (steps - 1)


# -------------------------------------------------------------------------------------------- kills


def kill(process: subprocess.Popen) -> None:
    """kill -9 a process and those that it started: torchrun's workers have sessions of their own,
    and would train on without it."""
    # Stop it first, so that it starts no more of them meanwhile.
    os.kill(process.pid, signal.SIGSTOP)
    children = []
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        children += (thread / "children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def run_for(command: list[str], seconds: float | None) -> tuple[int, str] | None:
    """Run a command: (exit status, its stderr), or None if it was killed after this many
    seconds."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        process.communicate()  # until all of them are gone
        return None
    return process.returncode, errors


def deal(args: argparse.Namespace, folder: Path) -> tuple[int, int, int]:
    """Kill and resume runs in this folder until all kills are done: (kills, finished runs, runs
    that came too far to be extended)."""
    still = folder / "still"
    run = folder / "run"
    draw = random.Random(args.seed)
    owner = Owner(args, draw)
    status, errors = run_for(begin(args, still, owner.settings[-1]), None)
    if status:
        sys.exit(f"the undisturbed run ended with {status}: {errors[-6000:]}")

    kills = 0
    finished = 0
    while kills < args.kills or run.exists():
        command = owner.command(run, in_a_hurry=kills >= args.kills)
        seconds = None
        if kills < args.kills or not owner.is_content():
            seconds = draw.uniform(0, args.longest)
        ended = run_for(command, seconds)
        if ended is None:
            kills += 1
            continue

        status, errors = ended
        if status:
            sys.exit(f"after {kills} kills train.py ended with {status}: {errors[-6000:]}")
        if not owner.is_content():
            continue  # finished, and to be extended
        difference = measure.difference(run, still)
        if difference:
            sys.exit(f"after {kills} kills a finished run differs in its {difference}")
        finished += 1
        print(f"{kills} kills, {finished} runs finished, all equal", flush=True)
        shutil.rmtree(run)
    return kills, finished, owner.too_late


def main() -> None:
    """Do all kills, finish the last run, and compare."""
    parser = cli.Parser(description=__doc__, prog="tests.stress.chaos")
    flag = parser.add_argument
    flag("--model", default="out/grown", help="model directory to start from")
    flag("--data", nargs="+", default=["out/shards/ko=0.75", "out/shards/en=0.25"],
         help="as train.py's")
    flag("--stages", nargs="+", default=["embed:60k:5e-3", "odd:60k:5e-3", "lora:60k:5e-3"],
         help="as train.py's; those of the undisturbed run")
    flag("--more", nargs="*", default=[],
         help="more flags of train.py, without their --, such as optimizer=adamw_bf16")
    flag("--kills", type=int, default=100, help="kills to deal, at least")
    flag("--longest", type=float, default=12.0, help="seconds that a process lives, at most")
    flag("--save_every", type=int, default=5, help="steps between checkpoints; not with --extend")
    flag("--extend", action="store_true",
         help="make the runs longer, and change other flags, when they are resumed; two stages at "
              "least")
    flag("--processes", type=int, default=1, help="processes of each run")
    flag("--seed", type=int, default=None, help="of the moments; None: another every time")
    args = parser.parse_args()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        kills, finished, too_late = deal(args, Path(folder))
    row = {
        "kills": kills,
        "finished runs": finished,
        "steps a run": "equal, every number",
        "weights": "equal, every bit",
        "seconds": time.perf_counter() - began,
    }
    name = "chaos"
    if args.processes > 1:
        name += f"-{args.processes}-processes"
    if args.extend:
        name += "-extended"
        row["too late to extend"] = too_late
    conditions = measure.machine()
    for flag_name in ("stages", "save_every", "processes", "more"):
        conditions[flag_name] = getattr(args, flag_name)
    if args.extend:
        conditions["save_every"] = [flags[1] for flags in HARMLESS]
    measure.report(name, [row], conditions)


if __name__ == "__main__":
    cli.run(main)
