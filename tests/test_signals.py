"""A run as a job: the signals that stop it, what it says in a log, and what it says beforehand."""
import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_jsonl
from test_train import exact, records, stopping
from test_train import flags as flags_of_a_run

import data
import model
import train
from common import checkpoint, cli, notices, plan, progress
from studies import arms


def flags(world, run, *stages, more=()):
    """Validation is not what is looked at here."""
    return flags_of_a_run(world, run, *stages, more=["--eval_bytes", "500", *more])


# So many steps that no run here comes to the end of them.
LONG = "full:12800k:1e-3"
BY_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@contextlib.contextmanager
def training(command: list[str], run: Path, log: Path):
    """A real process that trains, as soon as three steps of it are done."""
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
    # stdout and stderr are one file, as schedulers have it, and what they say is in its order.
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


def test_the_handlers_of_before_are_back_afterwards():
    before = {number: signal.getsignal(number) for number in checkpoint.STOPPING}
    with checkpoint.StopSignal():
        assert all(signal.getsignal(number) != before[number] for number in before)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_repeated_warning_does_not_kill():
    """Only a second Ctrl-C does."""
    with checkpoint.StopSignal() as stop:
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM) * 2:
            assert signal.getsignal(number) != signal.SIG_DFL  # or this process would be killed
            os.kill(os.getpid(), number)
        assert stop.asked and stop.exit_status() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_torchrun_hands_on_what_it_is_told_to(number, world, tmp_path):
    """With the flag of train.py's docstring, SIGUSR1 reaches both processes; SIGHUP without it."""
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


# ------------------------------------------------------------------------------ lines in a log

LINE = re.compile(r"(\d-\w+)  step ([\d,]+) of ([\d,]+) \((\d+)%\)  loss (\d+\.\d{3})  lr (\S+)  "
                  r"([\d,]+) tokens/s  ((?:\d+ days?, )?\d+:\d\d:\d\d) left")


def test_where_stderr_is_no_terminal_there_are_lines(world, tmp_path, capsys):
    """One for the first step of a stage and one for its last; none of tqdm's carriage returns."""
    train.main(flags(world, tmp_path / "run", "embed:1280:5e-3", "odd:640:5e-3"))
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    lines = [LINE.fullmatch(line) for line in err.splitlines()]
    assert all(lines), err
    found = [line.group(1, 2, 3, 4) for line in lines]
    assert found == [("1-embed", "1", "10", "10"), ("1-embed", "10", "10", "100"),
                     ("2-odd", "1", "5", "20"), ("2-odd", "5", "5", "100")]
    # The figures are those of metrics.jsonl.
    steps = {(record["stage"], record["step"]): record for record in records(tmp_path / "run")}
    for line in lines:
        record = steps[int(line[1][0]), int(line[2])]
        assert line[5] == f"{record['loss']:.3f}" and float(line[6]) == pytest.approx(
            record["lr"], rel=1e-2)
    assert lines[-1][8] == "0:00:00"


def test_a_line_comes_every_half_minute(monkeypatch, capsys):
    """Ten steps a minute, of 1,000 tokens; 30 steps of 100 were done before the run was resumed."""
    clock = itertools.count(0, 6)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    steps = progress.Progress("2-odd", 30, 100, 1000)
    for step in steps:
        steps.update(step + 1, 2.3456, 1e-4, 1.0)
    steps.close()
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().err.splitlines()]
    assert [int(line[2]) for line in lines] == [31, *range(36, 100, 5), 100]
    assert {line[7] for line in lines} == {"167"}                # 10,000 tokens in 60 seconds
    # 69 steps of 6 seconds are left, then 64, then five fewer each time.
    assert [line[8] for line in lines][:3] == ["0:06:54", "0:06:24", "0:05:54"]
    assert lines[1].group() == ("2-odd  step 36 of 100 (36%)  loss 2.346  lr 1.00e-04  167 tokens/s  "
                                "0:06:24 left")


def test_the_other_processes_write_no_line(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    steps = progress.Progress("2-odd", 0, 3, 1000)
    for step in steps:
        steps.update(step + 1, 2.0, 1e-4, 1.0)
    steps.close()
    assert capsys.readouterr().err == ""


def test_a_terminal_has_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    steps = progress.Progress("2-odd", 0, 3, 1000)
    for step in steps:
        steps.update(step + 1, 2.3456, 1e-4, 1234.5)
    steps.close()
    shown = capsys.readouterr().err
    assert "\r2-odd: " in shown and "3/3" in shown and " left" not in shown
    assert "loss 2.346, 1,234 tokens/s" in shown


def test_a_study_finds_the_error_at_the_end_of_a_log(world, tmp_path):
    """studies/arms.py quotes the last line of what train.py printed."""
    args = arms.parser("", "x", "").parse_args(
        ["--out", str(tmp_path), "--seq_len", "32", "--batch_tokens", "128"])
    broken = tmp_path / "broken"
    shutil.copytree(world / "model", broken)
    llama = model.load(broken)
    llama.model.norm.weight.data[0] = torch.inf
    model.save(llama, broken)
    given = {"model": broken, "data": [f"{world}/shards/ko"], "stages": ["full:640:1e-3"],
             "device": "cpu"}
    with pytest.raises(cli.UserError, match="stage 1 step .* the cause is"):
        arms.train(args, "arm", **given)


# ------------------------------------------------------------------------------ what will be read


def epochs_of(run) -> list[dict]:
    return records(run, "epochs")


def windows_read(run, shards: list[str]) -> list[dict[str, float]]:
    """{source: epochs} after each stage of a finished run, from what the loader counted."""
    read = []
    for folder in sorted(Path(run, "stages").iterdir()):
        counts = cli.read_json(folder / "training_state.json")["loader"]["counts"]
        sources = {Path(path).name: data.Shards(path) for path in shards}
        pairs = zip(sources.items(), counts, strict=True)
        read.append({name: count / source.windows(32) for (name, source), count in pairs})
    return read


@pytest.mark.parametrize("weights", [("0.75", "0.25"), ("0.2:0.8", "0.8:0.2"), ("1:0", "0:1")])
def test_a_stage_says_what_it_will_read(weights, world, tmp_path, capsys):
    folders = [f"{world}/shards/ko", f"{world}/shards/en"]
    sources = [f"{folder}={weight}" for folder, weight in zip(folders, weights, strict=True)]
    run = tmp_path / "run"
    train.main(flags(world, run, "embed:1280:5e-3", "odd:5k:5e-3", more=["--data", *sources]))
    said = epochs_of(run)
    assert [(r["stage"], r["step"], r["tokens"]) for r in said] == [(1, 0, 0), (2, 0, 1280)]
    assert {"epochs", "stage", "step", "tokens"} == set(said[0])
    screen = capsys.readouterr().out
    before = {"ko": 0.0, "en": 0.0}
    for record, after in zip(said, windows_read(run, folders), strict=True):
        for name, folder in zip(("ko", "en"), folders, strict=True):
            a_window = 1 / data.Shards(folder).windows(32)
            start, end = record["epochs"][name]
            assert start == pytest.approx(before[name], abs=1e-4)
            assert end == pytest.approx(after[name], abs=1.01 * a_window)
            assert f"{name} {start:.3g} to {end:.3g}" in screen
        before = after


def test_a_resumed_stage_says_it_once(world, tmp_path):
    argv = flags(world, tmp_path / "run", "embed:1280:5e-3", "odd:1280:5e-3")
    for after in (5, 4):
        with pytest.raises(SystemExit):
            stopping(lambda: train.main(argv), after)  # noqa: B023
        argv = ["--resume", str(tmp_path / "run")]
    train.main(argv)
    assert [record["stage"] for record in epochs_of(tmp_path / "run")] == [1, 2]


def test_a_stage_begun_anew_says_it_once(world, tmp_path, monkeypatch):
    """Killed before the first checkpoint."""
    class Killed(Exception):
        pass

    def kill(parameters):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "gradient_norm", kill)
        with pytest.raises(Killed):
            train.main(flags(world, tmp_path / "run", "embed:640:5e-3"))
    assert len(epochs_of(tmp_path / "run")) == 1
    train.main(["--resume", str(tmp_path / "run")])
    assert len(epochs_of(tmp_path / "run")) == 1


# ------------------------------------------------------------------------------ notices


@pytest.fixture(scope="module")
def one(world, tmp_path_factory):
    """Shards of one window of 32 tokens, without validation documents."""
    root = tmp_path_factory.mktemp("small")
    write_jsonl(root / "one.jsonl", ["aeiou " * 12])
    data.main(["pack", "--input", f"{root}/one.jsonl", "--tokenizer", f"{world}/base.model",
               "--out", f"{root}/one"])
    assert data.Shards(root / "one").windows(32) == 1
    return root / "one"


@pytest.fixture(autouse=True)
def seven_are_enough(monkeypatch):
    """The world's shards have about seven documents for validation each."""
    monkeypatch.setattr(notices, "ENOUGH_DOCUMENTS", 3)


def warned(argv: list[str], capsys) -> list[str]:
    capsys.readouterr()
    train.main(argv)
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_nothing_is_said_of_a_usual_run(world, tmp_path, capsys):
    assert warned(flags(world, tmp_path / "run", "embed:1280:5e-3"), capsys) == []


def test_a_stage_shorter_than_a_batch_is_said(world, tmp_path, capsys):
    lines = warned(flags(world, tmp_path / "run", "embed:128:5e-3", "odd:100:5e-3"), capsys)
    assert len(lines) == 1 and "stage 2, odd, has 100 tokens, less than a batch" in lines[0]
    assert [step[:2] for step in exact(tmp_path / "run")] == [(1, 1), (2, 1)]


def test_a_source_of_one_window_without_validation_is_said(world, one, tmp_path, capsys):
    more = ["--data", f"{world}/shards/ko=0.99", f"{one}=0.01"]
    lines = warned(flags(world, tmp_path / "run", "embed:1280:5e-3", more=more), capsys)
    assert len(lines) == 2, lines
    assert "one holds one window of 32 tokens" in lines[0]
    assert "for validation one has no documents" in lines[1]


def test_few_validation_documents_are_said(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notices, "ENOUGH_DOCUMENTS", 30)
    lines = warned(flags(world, tmp_path / "run", "embed:128:5e-3"), capsys)
    assert len(lines) == 2
    for name, line in zip(("ko", "en"), lines, strict=True):
        assert f"for validation {name} has few documents (" in line


def test_more_than_four_epochs_are_said_with_the_stage(world, one, tmp_path, capsys):
    """40 windows in each stage, a twentieth of one window's source: 2, 4 and 6 epochs of it."""
    more = ["--data", f"{world}/shards/ko=0.95", f"{one}=0.05", "--batch_tokens", "1280",
            "--micro_batch", "40"]
    stages = ["embed:1280:5e-3", "odd:1280:5e-3", "lora:1280:5e-3"]
    run = tmp_path / "run"
    argv = flags(world, run, *stages, more=more)
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(argv), 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "epochs" in line]
    assert len(lines) == 1, lines
    assert "6.0 epochs of one will have been read" in lines[0]
    assert "more than 4 from stage 3, lora, on" in lines[0]
    assert "2305.16264" in lines[0]

    # Again when it is resumed, and no longer when nothing is left.
    assert sum("epochs" in line for line in warned(["--resume", str(run)], capsys)) == 1
    assert warned(["--resume", str(run)], capsys) == []


def test_four_epochs_are_not_too_many(one):
    stages = [plan.parse_stage(stage) for stage in ("odd:128:1e-3", "even:1:1e-3")]
    loader = data.Loader([data.Shards(one)], [1.0], 32, 0)
    assert notices.read_too_often(stages[:1], ["one"], loader, 128) == []
    lines = notices.read_too_often(stages, ["one"], loader, 128)  # the second trains a batch, too
    assert len(lines) == 1 and lines[0].startswith("8.0 epochs of one")


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
