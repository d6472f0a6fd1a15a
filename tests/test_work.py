"""A run of `data.py clean` that is killed, run twice at once, or let down by its disk or input."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sentences import edited, korean

import data
from cleaning import corpus as corpus_files
from cleaning import duplicates, pipeline, work
from common import documents
from common.cli import UserError

DRIVER = (
    "import sys; sys.path.insert(0, {!r}); from common import documents; documents.UNIT = 6000; "
    "import data; data.main({})"
)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "UNIT", 6_000)
    rng = random.Random()
    texts = [korean(rng, 9) for _ in range(110)]
    texts += [edited(rng, texts[i], 0.02) for i in range(9)] + [texts[3], "짧다"]
    rng.shuffle(texts)
    (tmp_path / "raw").mkdir()
    for name, part in (("a", texts[:90]), ("b", texts[90:100]), ("c", texts[100:])):
        (tmp_path / "raw" / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n\n" for text in part)
            + "{broken\n"
        )
    return tmp_path


def argv(corpus: Path, out: str, *flags: str) -> list[str]:
    return ["clean", "--input", str(corpus / "raw"), "--out", str(corpus / out), "--tails", "2",
            "2", "--profile", "formal", *flags]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_long_documents_do_not_wait_for_others(corpus, monkeypatch):
    data.main(argv(corpus, "whole"))
    together, band_hashes = [], duplicates.band_hashes
    monkeypatch.setattr(
        duplicates,
        "band_hashes",
        lambda texts: [together.append(len(texts)), band_hashes(texts)][1],
    )
    monkeypatch.setattr(corpus_files, "BATCH", 500)
    data.main(argv(corpus, "out"))
    assert max(together) < 5 and contents(corpus / "out") == contents(corpus / "whole")


def test_units_do_not_change_the_result(corpus, monkeypatch):
    data.main(argv(corpus, "small"))
    monkeypatch.setattr(documents, "UNIT", 10**9)
    monkeypatch.setattr(corpus_files, "BATCH", 2_000)
    data.main(argv(corpus, "large"))
    assert contents(corpus / "small") == contents(corpus / "large")
    record = json.loads((corpus / "small" / "rejected.jsonl").read_text().splitlines()[0])
    assert record["line"] == 181 and record["file"].endswith("a.jsonl")


def test_finished_tasks_are_not_done_again(corpus, monkeypatch, capsys):
    data.main(argv(corpus, "whole"))
    done, last_pass = [], pipeline.last_pass

    def stopped(job, unit, result):
        done.append(unit)
        if len(done) == 4:
            raise KeyboardInterrupt
        return last_pass(job, unit, result)

    monkeypatch.setattr(pipeline, "last_pass", stopped)
    with pytest.raises(UserError, match="stopped.*the same command to resume"):
        data.main(argv(corpus, "out"))
    assert not (corpus / "out").exists()
    monkeypatch.setattr(pipeline, "first_pass", None)   # would fail if it were called
    monkeypatch.setattr(pipeline, "score_pass", None)
    data.main(argv(corpus, "out"))
    assert done == [0, 1, 2, 3, *range(3, len(done) - 1)] and "resuming" in capsys.readouterr().out
    assert contents(corpus / "out") == contents(corpus / "whole")
    assert not list(corpus.glob(".*"))


def test_other_settings_start_anew(corpus, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "last_pass", None)
    with pytest.raises(TypeError):
        data.main(argv(corpus, "out"))
    monkeypatch.undo()
    data.main(argv(corpus, "out", "--sample", "0.5"))
    data.main(argv(corpus, "half", "--sample", "0.5"))
    assert "resuming" not in capsys.readouterr().out and contents(corpus / "out") == contents(
        corpus / "half"
    )


def test_killed_and_started_again(corpus):
    data.main(argv(corpus, "whole"))
    command = [
        sys.executable,
        "-c",
        DRIVER.format(str(Path(data.__file__).parent), argv(corpus, "out")),
    ]
    for phase in ("first", "last"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(corpus.glob(f".out.work/*/{phase}/*.json"))) < 2:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (corpus / "out").exists() or phase == "last"
    subprocess.run(command, check=True, capture_output=True)
    assert contents(corpus / "out") == contents(corpus / "whole")
    assert [p.name for p in corpus.glob(".*")] == []


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_ctrl_c_while_processes_start(corpus, seconds):
    """A terminal sends SIGINT to all processes; only the main one prints something."""
    driver = DRIVER.replace("data.main({})", "sys.argv[1:] = {}; data.cli.run(data.main)")
    driver = driver.format(str(Path(data.__file__).parent), argv(corpus, "out", "--workers", "3"))
    command = [sys.executable, "-c", driver]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True,
                               start_new_session=True)
    while process.poll() is None and not list(corpus.glob(".out.work/*/first")):
        time.sleep(0.002)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert "Traceback" not in errors
    if process.returncode != 0:  # 0: it came too late
        assert "run the same command to resume" in errors


def test_one_run_at_a_time(corpus):
    first = work.WorkFolder(corpus / "out", "0123", 1)
    with pytest.raises(UserError, match="another process is writing"):
        data.main(argv(corpus, "out"))
    with first.guarded():
        pass
    data.main(argv(corpus, "out"))


def test_an_input_that_changes_or_vanishes(corpus, monkeypatch):
    parse_json = documents.parse_json

    def meanwhile(change):
        def wrapped(*args):
            change(corpus / "raw" / "c.jsonl")
            return parse_json(*args)
        return wrapped

    # Not while the first line is looked at, before anything starts.
    monkeypatch.setattr(data, "check_fields", lambda *args: None)
    monkeypatch.setattr(
        documents, "parse_json", meanwhile(lambda path: path.write_text('{"text": "다른 글"}\n'))
    )
    with pytest.raises(UserError, match="c.jsonl changed while it was being read"):
        data.main(argv(corpus, "out"))
    monkeypatch.setattr(
        documents, "parse_json", meanwhile(lambda path: path.unlink(missing_ok=True))
    )
    with pytest.raises(UserError, match="cannot read .*c.jsonl: No such file"):
        data.main(argv(corpus, "out"))
    assert not (corpus / "out").exists()


@pytest.mark.parametrize("limit, message", [(2, "File too large"), (40, "File too large")])
def test_a_limit_on_file_sizes(corpus, limit, message):
    command = f"ulimit -f {limit}; exec {sys.executable} {data.__file__} " + " ".join(
        argv(corpus, "out")
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    last = done.stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert done.returncode == 2 and message in last and "Traceback" not in done.stderr, done.stderr
    assert not (corpus / "out").exists()
    data.main(argv(corpus, "out"))


@pytest.mark.parametrize("profile, kilobytes", [("web", 3_000), ("formal", 120), ("formal", 200)])
def test_a_full_disk(corpus, profile, kilobytes):
    """With memory mapped onto a file, and with np.save, a full disk is harder to handle than
    `ulimit`."""
    (corpus / "disk").mkdir()
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(corpus / "disk")]
    ).returncode:
        pytest.skip("may not mount a small disk")
    run = " ".join([sys.executable, data.__file__, *argv(corpus, "disk/out"), "--profile", profile])
    command = f"mount -t tmpfs -o size={kilobytes}k none {corpus}/disk && {run}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True)
    last = done.stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert done.returncode == 2, done.stderr
    assert "No space left on device; finished work is kept in" in last, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("lost",
                         ["first/000001.json", "first/000002.npz", "score/000000.json",
                          "duplicates.records",
                                  "models.json", "last/000001.documents", "last/000001.examples"])
@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_power_failure_in_between(corpus, monkeypatch, lost, size):
    """Whichever file of a finished task is missing, empty or short, the task is done again, with
    the same result."""
    data.main(argv(corpus, "whole"))
    monkeypatch.setattr(data.cli, "write_json", lambda path, value, write=data.cli.write_json:
                        1 / 0 if Path(path).name == "report.json" else write(path, value))
    with pytest.raises(ZeroDivisionError):
        data.main(argv(corpus, "out"))
    monkeypatch.undo()
    monkeypatch.setattr(documents, "UNIT", 6_000)
    path, = corpus.glob(f".out.work/*/{lost}")
    path.unlink() if size is None else os.truncate(path, size)
    data.main(argv(corpus, "out"))
    assert contents(corpus / "out") == contents(corpus / "whole")


def test_the_current_folder_as_output(corpus, monkeypatch):
    (corpus / "here").mkdir()
    monkeypatch.chdir(corpus / "here")
    data.main(argv(corpus, "out"))
    data.main(["clean", "--input", str(corpus / "raw"), "--out", ".", "--tails", "2", "2",
               "--profile", "formal"])
    assert contents(corpus / "here") == contents(corpus / "out")


def test_an_output_that_cannot_be_written(corpus, refused):
    (corpus / "file").touch()
    refused(data, argv(corpus, "file/out"), "Not a directory")
    refused(
        data, ["clean", "--input", str(corpus / "raw"), "--out", "/sys/nowhere/out"], "/sys/nowhere"
    )
