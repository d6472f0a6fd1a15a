"""common/progress.py: a bar on a terminal, lines in a log."""
import itertools
import re
import shutil
import sys

import pytest
import torch
from test_train import flags as flags_of_a_run
from test_train import records

import model
import train
from common import cli, progress
from studies import arms


def flags(world, run, *stages, more=()):
    """Flags of a run without validation, which is not tested here."""
    return flags_of_a_run(world, run, *stages, more=["--eval_bytes", "500", *more])


LINE = re.compile(r"(\d-\w+)  step ([\d,]+) of ([\d,]+) \((\d+)%\)  loss (\d+\.\d{3})  lr (\S+)  "
                  r"([\d,]+) tokens/s  ((?:\d+ days?, )?\d+:\d\d:\d\d) left")


def test_without_a_terminal_there_are_lines(world, tmp_path, capsys):
    """One for the first step of a stage and one for its last, without tqdm's carriage returns."""
    train.main(flags(world, tmp_path / "run", "embed:1280:5e-3", "odd:640:5e-3"))
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    said = [line for line in err.splitlines() if not line.startswith("warning: ")]
    lines = [LINE.fullmatch(line) for line in said]
    assert all(lines), err
    found = [line.group(1, 2, 3, 4) for line in lines]
    assert found == [("1-embed", "1", "10", "10"), ("1-embed", "10", "10", "100"),
                     ("2-odd", "1", "5", "20"), ("2-odd", "5", "5", "100")]
    # The numbers are those in metrics.jsonl.
    steps = {(record["stage"], record["step"]): record for record in records(tmp_path / "run")}
    for line in lines:
        record = steps[int(line[1][0]), int(line[2])]
        assert line[5] == f"{record['loss']:.3f}" and float(line[6]) == pytest.approx(
            record["lr"], rel=1e-2)
    assert lines[-1][8] == "0:00:00"


def test_a_line_comes_every_half_minute(monkeypatch, capsys):
    """Ten steps per minute, of 1,000 tokens; 30 of 100 steps were done before the run was
    resumed."""
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
    assert lines[1].group() == (
        "2-odd  step 36 of 100 (36%)  loss 2.346  lr 1.00e-04  167 tokens/s  0:06:24 left"
    )


def test_the_other_processes_print_no_line(monkeypatch, capsys):
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
