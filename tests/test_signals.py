"""The signals that stop a run, sent to real processes; what a stopped run has saved."""
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_train import flags as flags_of_a_run
from test_train import records, stopping

import train
from common import checkpoint, cli


def flags(world, run, *stages, more=()):
    """Flags of a run without validation, which is not tested here."""
    return flags_of_a_run(world, run, *stages, more=["--eval_bytes", "500", *more])


# So many steps that no run here reaches the last one.
LONG = "full:12800k:1e-3"
BY_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@contextlib.contextmanager
def training(command: list[str], run: Path, log: Path):
    """A real process that trains, once three of its steps are done."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            deadline = time.monotonic() + 60
            metrics = run / "metrics.jsonl"
            while not metrics.exists() or len(records(run)) < 3:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()


def saved_after(run: Path) -> tuple[int, int]:
    """The newest checkpoint's step, and the last step of the metrics."""
    return checkpoint.newest(run)[1]["step"], records(run)[-1]["step"]


# ----------------------------------------------------------------------------------- signals


def test_slurms_warning_saves_and_leaves(world, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "train.py", *flags(world, run, LONG, more=["--save_every", "10000"])]
    with training(command, run, log) as process:
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 0, log.read_text()
    step, last_step = saved_after(run)
    assert step == last_step >= 3
    assert f"resume with: train.py --resume {run}" in log.read_text()
    assert "Traceback" not in log.read_text()
    # stdout and stderr go to one file, as under schedulers, in the order in which they were
    # written.
    assert log.read_text().index("stage 1 step 0: ") < log.read_text().index("1-full  step 1 of")


def test_a_run_under_nohup_outlives_its_terminal(world, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["nohup", sys.executable, "train.py", *flags(world, run, LONG)]
    with training(command, run, log) as process:
        process.send_signal(signal.SIGHUP)
        before = len(records(run))
        while len(records(run)) < before + 3:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()


def test_the_earlier_handlers_are_restored_afterwards():
    before = {number: signal.getsignal(number) for number in checkpoint.STOPPING}
    with checkpoint.StopSignal():
        assert all(signal.getsignal(number) != before[number] for number in before)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_repeated_warning_does_not_kill():
    """Only a second Ctrl-C does."""
    with checkpoint.StopSignal() as stop:
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM) * 2:
            # Otherwise this process would be killed.
            assert signal.getsignal(number) != signal.SIG_DFL
            os.kill(os.getpid(), number)
        assert stop.asked and stop.exit_status() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_torchrun_hands_on_what_it_is_told_to(number, world, tmp_path):
    """With the flag in train.py's docstring, SIGUSR1 reaches both processes; SIGHUP without it."""
    run, log = tmp_path / "run", tmp_path / "log"
    handed_on = []
    if number == signal.SIGUSR1:
        line = next(line for line in train.__doc__.splitlines() if "torchrun --signals" in line)
        handed_on = [word for word in line.split() if word.startswith("--signals")]
    argv = flags(world, run, LONG, more=["--save_every", "10000"])
    command = [sys.executable, *BY_TORCHRUN, *handed_on, "train.py", *argv]
    with training(command, run, log) as process:
        process.send_signal(number)
        process.wait(60)
    step, last_step = saved_after(run)
    assert step == last_step >= 3
    assert f"stopped after stage 1 step {step}" in log.read_text()


# ------------------------------------------------------------------------- where a run is


def test_checkpoints_and_directories_say_where_the_run_was(world, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(flags(world, run, "odd:640:1e-3", "lora:1280:1e-3")), 9)
    found = [cli.read_json(run / "stages/1-odd/training_state.json"), checkpoint.newest(run)[1]]
    places = [(state["stage"], state["step"], state["tokens"]) for state in found]
    assert places == [(1, 5, 640), (2, 4, 1152)]
    indexes = [world / "shards" / name / "index.json" for name in ("ko", "en")]
    for state in found:
        assert state["data"] == [cli.sha256(index) for index in indexes]
        assert sum(state["loader"]["counts"]) == state["tokens"] / 32
