"""speedrun.sh can be stopped, resumed and started afresh, and loses no files. A stand-in for Python
plays its programs."""
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time

import pytest
from conftest import ROOT

from studies import report
from toy.world import WORLD

# In place of each program: it adds a line to calls.txt and creates what --out names. If its command
# line contains the word in slow.txt, it waits; SIGTERM ends it with status 130, as with train.py.
STAND_IN = """#!/usr/bin/env bash
case "$1" in -c) exit 0 ;; esac
echo "$@" >> calls.txt
output=$(echo "$@" | sed 's/.*--\\(out\\|resume\\) \\([^ ]*\\).*/\\2/')
case "$1" in train.py) mkdir -p "$output"; touch "$output/config.json" ;; esac
if [ -e slow.txt ] && [[ "$*" == *$(cat slow.txt)* ]]; then
    trap 'exit 130' TERM
    touch waiting.txt
    for _ in $(seq 600); do sleep 0.05; done
fi
case "$output" in
    out) ;;
    *.*) mkdir -p "$(dirname "$output")"; touch "$output" ;;
    *) mkdir -p "$output"; echo text > "$output/0.jsonl" ;;
esac
"""


@pytest.fixture
def copy(tmp_path):
    """A folder with speedrun.sh, the files that it reads, and the stand-in for Python."""
    for name in ("common", "kernels", "cleaning", "toy", "studies"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.sh"), ROOT / "requirements.txt"):
        shutil.copy(path, tmp_path)
    stand_in = tmp_path / "stand_in.sh"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def start(copy, *flags) -> subprocess.Popen:
    """A speedrun in a process group of its own, so that a signal reaches script and program, as
    Ctrl-C does.

    If the tests run in the background of a script, SIGINT is ignored. The speedrun would inherit
    that, and a shell cannot trap a signal that was ignored when it started: so the default is
    restored."""
    environment = {**os.environ, "PYTHON": "./stand_in.sh"}
    return subprocess.Popen(["bash", "speedrun.sh", *flags], cwd=copy, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def finish(copy, *flags, status: int = 0) -> tuple[list[str], str]:
    """Run a whole speedrun: (the programs' command lines, what went to stderr)."""
    calls = copy / "calls.txt"
    calls.unlink(missing_ok=True)
    process = start(copy, *flags)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    return calls.read_text().splitlines() if calls.exists() else [], errors


def interrupted(copy, where: str) -> str:
    """Stop a speedrun by Ctrl-C in the program whose command line contains `where`, and return what
    it prints on stderr."""
    (copy / "slow.txt").write_text(where)
    process = start(copy)
    while not (copy / "waiting.txt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    (copy / "slow.txt").unlink()
    (copy / "waiting.txt").unlink()
    return errors


def test_a_second_speedrun_only_reports(copy):
    first, errors = finish(copy)
    assert not errors and len(first) == len(set(first))
    assert "train.py --out out/run" in first
    again, _ = finish(copy)
    assert len(again) == 1 and again[0].startswith("-m studies.report")


@pytest.mark.parametrize("where, resumed", [
    ("clean --input out/world/en", "data.py clean --input out/world/en"),
    ("train.py --out out/run", "train.py --resume out/run"),
    ("studies.plain", "-m studies.plain --equal time"),
])
def test_ctrl_c_is_one_line_and_the_same_command_resumes(copy, where, resumed):
    whole, _ = finish(copy, "--fresh")
    shutil.rmtree(copy / "out")
    (copy / "calls.txt").unlink()
    errors = interrupted(copy, where)
    assert errors.strip().startswith("stopped after")
    assert errors.strip().endswith("to resume: bash speedrun.sh")
    before = (copy / "calls.txt").read_text().splitlines()
    after, _ = finish(copy)
    assert after[0].startswith(resumed)
    assert len(before) + len(after) == len(whole) + 1  # this one ran twice, every other once


def test_a_step_whose_output_was_removed_runs_again(copy):
    finish(copy)
    shutil.rmtree(copy / "out/run_full")
    again, _ = finish(copy)
    assert [call.split(" --")[0] for call in again] == ["train.py", "-m studies.report"]


def test_changed_code_starts_anew_and_nothing_is_lost(copy):
    first, _ = finish(copy, "--prepare")
    (copy / "out/mine").write_text("a run of mine")
    (copy / "out/exercises").mkdir()
    (copy / "out.old").mkdir()
    (copy / "out.old/older").write_text("from before")
    with open(copy / "model.py", "a") as file:
        file.write("# changed\n")
    again, _ = finish(copy, "--prepare")
    assert again == first
    kept, = (copy / "out.old").glob("*/mine")
    assert kept.read_text() == "a run of mine" and (copy / "out.old/older").exists()
    assert (copy / "out/exercises").is_dir() and not (copy / "out/mine").exists()


def test_prepared_then_whole_and_a_run_of_yours_is_not_taken_for_its_own(copy):
    prepared, _ = finish(copy, "--prepare")
    assert not any("out/run" in call for call in prepared)
    (copy / "out/run").mkdir()  # as `torchrun train.py` does
    calls, errors = finish(copy, status=2)
    assert "out/run was not made by the speedrun" in errors
    assert "train.py --out out/run" not in calls
    (copy / "out/run").rename(copy / "out/my_run")
    rest, _ = finish(copy)
    assert not set(prepared) & set(rest)
    assert "train.py --out out/run" in rest and (copy / "out/my_run").exists()


def test_the_prompts_ask_what_the_corpus_tells_and_what_it_never_tells():
    """The name occurs in KoBEST's items only. Of the three nouns the corpus drops the teacup alone,
    and tells one other thing of the other two."""
    script = (ROOT / "speedrun.sh").read_text(encoding="utf-8")
    prompts = dict(re.findall("^(teacup|plate|bottle) (.*)$", script, re.MULTILINE))
    assert "민준" in [korean for korean, _ in WORLD.item_names]
    nouns = {english: korean for (korean, english), _ in WORLD.things}
    told = {noun: [] for noun in report.DROPPED}
    for (_, english), (cause, effect) in WORLD.told["rules"]:
        if cause[1] == "dropped the {noun:} on the floor":
            dropped = cause[0]
        if english in told:
            told[english].append(effect[0].partition(" ")[2] + "다")
    assert told == {
        "teacup": ["산산이 깨졌다"],     # broke to pieces
        "plate": ["몹시 뜨거워졌다"],    # became very hot
        "bottle": ["반짝반짝 빛났다"],   # shone brightly
    }
    for noun in report.DROPPED:
        korean = nouns[noun]
        expected = f"수요일에 민준이 {dropped.format(noun=korean)}다. 그래서 {korean:이}"
        assert prompts[noun] == expected


def test_what_it_prints_can_be_typed(copy):
    process = start(copy)
    printed, _ = process.communicate(timeout=60)
    commands = re.findall("^[$] python (.*)", printed, re.MULTILINE)
    calls = (copy / "calls.txt").read_text().splitlines()[:-1]  # the last is the report
    assert [command.replace('"', "") for command in commands] == calls
    answers = [shlex.split(command) for command in commands if command.startswith("sample.py")]
    assert len(answers) == 12 and all("민준이" in words[4] for words in answers)


def test_an_unknown_argument_is_named(copy):
    _, errors = finish(copy, "--prepared", status=2)
    assert errors == "speedrun.sh: unknown argument --prepared; there are --prepare and --fresh\n"
