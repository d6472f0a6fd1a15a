"""common/cli.py: flags with hints, one-line errors, outputs that are complete or absent."""
import argparse
import errno
import hashlib
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from common import cli


def parser() -> cli.Parser:
    p = cli.Parser(description="teaches 100 % of it", prog="x.py")
    p.add_argument("--input", default="a", help="what to read")
    commands = p.add_subparsers()
    commands.add_parser("pack").add_argument("--tokenizer", type=int)
    return p


@pytest.mark.parametrize("argv, part", [
    (["--inptu=b"], "unknown flag --inptu; did you mean --input?"),
    (["pack", "--tokenzier", "3"], "unknown flag --tokenzier; did you mean --tokenizer?"),
    (["pack", "--tokeniser", "3"], "did you mean --tokenizer?"),
    # No abbreviations: a new flag must not change what an old command means.
    (["--inp=b"], "unknown flag --inp"),
    (["--zzz"], "--help lists"),
    (["pack", "--tokenizer", "x"], "invalid int value"),
])
def test_a_wrong_flag_is_one_line_and_status_2(argv, part, capsys):
    with pytest.raises(SystemExit) as leaving:
        parser().parse_args(argv)
    error = capsys.readouterr().err
    assert leaving.value.code == 2 and part in error and error.count("\n") == 1


def test_help_shows_the_docstring_and_each_default(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert "teaches 100 % of it" in text and "what to read (default: a)" in text


def test_on_a_gpu_cudnn_attends_only_where_it_is_asked_to(monkeypatch):
    """It would make a new plan for every length met in generation, validation and scoring."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        cli.set_device(argparse.Namespace(device="cpu", dtype=None))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        cli.set_device(argparse.Namespace(device=None, dtype=None))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_run_hides_none_of_our_bugs():
    def broken():
        raise KeyError("a defect of the program")
    with pytest.raises(KeyError):
        cli.run(broken)


def test_a_failing_block_leaves_what_was_there(tmp_path):
    (tmp_path / "f").write_text("old")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/keep").write_text("old")
    for new, path in ((cli.new_file, "f"), (cli.new_folder, "d")):
        with pytest.raises(ZeroDivisionError), new(tmp_path / path) as temporary:
            (temporary if path == "f" else temporary / "keep").write_text("half")
            raise ZeroDivisionError
    assert (tmp_path / "f").read_text() == (tmp_path / "d/keep").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def test_a_good_block_replaces_file_and_folder(tmp_path):
    for text in ("one", "two"):
        with cli.new_file(tmp_path / "f") as temporary:
            temporary.write_text(text)
        with cli.new_folder(tmp_path / "d") as temporary:
            (temporary / text).write_text(text)
    assert (tmp_path / "f").read_text() == "two"
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def test_through_a_link_the_folder_it_names_is_replaced(tmp_path):
    (tmp_path / "disk/d").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/d")
    with cli.new_folder(tmp_path / "link") as temporary:
        (temporary / "new").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk/d/new").exists()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["d", "disk", "link", "new"]


def test_leftovers_of_a_killed_process_are_removed_by_the_next(tmp_path):
    code = f"""
import os, signal
from common import cli
with cli.new_folder({str(tmp_path / "d")!r}) as temporary:
    (temporary / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with cli.new_folder(tmp_path / "d") as temporary:
        (temporary / "whole").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_folder_moved_aside_by_a_killed_process_comes_back(tmp_path):
    """Killed between the two renames: the old folder exists only under its temporary name."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".d.old.{dead.pid}.partial").mkdir()
    (tmp_path / f".d.old.{dead.pid}.partial/old").write_text("x")
    with pytest.raises(ZeroDivisionError), cli.new_folder(tmp_path / "d"):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d/old").exists()


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than is read at once
    (tmp_path / "f").write_bytes(content)
    assert cli.sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("error, line", [
    (cli.UserError("no such corpus"), "x.py: no such corpus\n"),
    (OSError(errno.ENOSPC, "No space left", "out/f"), "x.py: out/f: No space left\n"),
])
def test_a_mistake_of_the_user_and_a_full_disk_are_one_line(error, line, capsys, monkeypatch):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["/somewhere/x.py"])
    with pytest.raises(SystemExit) as leaving:
        cli.run(main)
    assert leaving.value.code == 2
    assert capsys.readouterr().err == line


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(cli.UserError, match="a.json is not valid JSON"):
        cli.read_json(tmp_path / "a.json")
    with pytest.raises(cli.UserError, match="cannot read .*b.json"):
        cli.read_json(tmp_path / "b.json")


def test_a_model_directory_passes(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    cli.check_model_folder(tmp_path / "model")
    # The weights decide: a model directory may contain a folder named `model`.
    (tmp_path / "model.safetensors").write_text("")
    cli.check_model_folder(tmp_path)


def test_a_missing_model_directory_and_a_file_are_named(tmp_path):
    with pytest.raises(cli.UserError, match="no model directory .*/none"):
        cli.check_model_folder(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(cli.UserError, match="config.json is a file"):
        cli.check_model_folder(tmp_path / "config.json")


def test_a_run_in_place_of_its_model_is_named_as_such(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(cli.UserError, match="no model yet"):
        cli.check_model_folder(run)
    for name in ("9-lora", "10-full"):
        (run / "stages" / name).mkdir(parents=True)
    with pytest.raises(cli.UserError, match="last finished stage is .*/run/stages/10-full"):
        cli.check_model_folder(run)
    (run / "model").mkdir()
    with pytest.raises(cli.UserError, match="its model is .*/run/model"):
        cli.check_model_folder(run)


# What a report may contain: Korean, an accented Latin letter, an arrow, SentencePiece's space, an
# emoji; and a file name that is not UTF-8.
HARD_TO_SHOW = "대한민국 é → ▁ 😀 \udcff"


@pytest.mark.parametrize("encoding", ["ascii", "cp949", "utf-8"])
def test_a_console_that_cannot_show_a_character_gets_its_number(encoding):
    code = f"""
import sys
from common import cli
def main():
    print({HARD_TO_SHOW!a})
    print({HARD_TO_SHOW!a}, file=sys.stderr)
    raise cli.UserError({HARD_TO_SHOW!a})
cli.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 2
    for output, n_lines in ((done.stdout, 1), (done.stderr, 2)):
        lines = output.decode(encoding).splitlines()
        assert len(lines) == n_lines
        # Python's own escape is \U0001f600; what can be shown is shown.
        shown = HARD_TO_SHOW.encode(encoding, "backslashreplace").decode(encoding)
        assert all(shown in line for line in lines)


@pytest.mark.parametrize("encoding, command", [
    ("ascii", "sample.py --device cpu --model {w}/model --prompt 바다 --max_new_tokens 2"),
    ("ascii", "eval_kobest.py --help"),
    ("cp949", "exercises/blank.py --list"),
])
def test_programs_print_on_a_console_that_is_not_utf_8(world, encoding, command):
    argv = [sys.executable, *command.format(w=world).split()]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    done.stdout.decode(encoding)
