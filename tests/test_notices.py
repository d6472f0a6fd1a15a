"""common/notices.py: what a run announces: how often it will read its data, and odd settings."""
from pathlib import Path

import pytest
from conftest import write_jsonl
from test_train import exact, records, stopping
from test_train import flags as flags_of_a_run

import data
import train
from common import cli, notices, plan


def flags(world, run, *stages, more=()):
    """Flags of a run without validation, which is not tested here."""
    return flags_of_a_run(world, run, *stages, more=["--eval_bytes", "500", *more])


# ------------------------------------------------------------------------------ what will be read


def epochs_of(run) -> list[dict]:
    return records(run, "epochs")


def windows_read(run, shards: list[str]) -> list[dict[str, float]]:
    """{source: epochs} after each stage of a finished run, from the loader's counts."""
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


@pytest.mark.parametrize("weights", [("0.75", "0.25"), ("0.2:0.8", "0.8:0.2")])
def test_a_resumed_stage_says_what_is_left(weights, world, tmp_path):
    """Also if it has become shorter since."""
    ko, en = weights
    sources = ["--data", f"{world}/shards/ko={ko}", f"{world}/shards/en={en}"]
    run = tmp_path / "run"
    argv = flags(world, run, "embed:5k:5e-3", "odd:1280:5e-3", more=sources)
    for after in (5, 4):
        with pytest.raises(SystemExit):
            stopping(lambda: train.main(argv), after)  # noqa: B023
        argv = ["--resume", str(run), "--stages", "embed:1280:5e-3", "odd:1280:5e-3"]
    train.main(argv)
    said = epochs_of(run)
    assert [(record["stage"], record["step"]) for record in said] == [(1, 0), (1, 5), (1, 9),
                                                                      (2, 0)]
    begun, shortened, resumed, _ = [record["epochs"] for record in said]
    first, _ = windows_read(run, [f"{world}/shards/ko", f"{world}/shards/en"])
    for name, read in first.items():
        a_window = 1 / data.Shards(world / "shards" / name).windows(32)
        assert begun[name][1] > read + a_window
        assert 0 < shortened[name][0] < resumed[name][0] < read + a_window
        for record in (shortened, resumed):
            assert record[name][1] == pytest.approx(read, abs=1.01 * a_window)


def test_a_stage_started_anew_announces_it_once(world, tmp_path, monkeypatch):
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
    """The world's shards have about seven validation documents each."""
    monkeypatch.setattr(notices, "ENOUGH_DOCUMENTS", 3)


def warned(argv: list[str], capsys) -> list[str]:
    capsys.readouterr()
    train.main(argv)
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_a_usual_run_has_no_notices(world, tmp_path, capsys):
    assert warned(flags(world, tmp_path / "run", "embed:1280:5e-3"), capsys) == []


def test_a_stage_shorter_than_a_batch_is_reported(world, tmp_path, capsys):
    lines = warned(flags(world, tmp_path / "run", "embed:128:5e-3", "odd:100:5e-3"), capsys)
    assert len(lines) == 1 and "stage 2, odd, has 100 tokens, less than a batch" in lines[0]
    assert [step[:2] for step in exact(tmp_path / "run")] == [(1, 1), (2, 1)]


def test_a_source_of_one_window_without_validation_is_reported(world, one, tmp_path, capsys):
    more = ["--data", f"{world}/shards/ko=0.99", f"{one}=0.01"]
    lines = warned(flags(world, tmp_path / "run", "embed:1280:5e-3", more=more), capsys)
    assert len(lines) == 2, lines
    assert "one holds only one window of 32 tokens" in lines[0]
    assert "for validation one has no documents" in lines[1]


def test_few_validation_documents_are_reported(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notices, "ENOUGH_DOCUMENTS", 30)
    lines = warned(flags(world, tmp_path / "run", "embed:128:5e-3"), capsys)
    assert len(lines) == 2
    for name, line in zip(("ko", "en"), lines, strict=True):
        assert f"for validation {name} has few documents (" in line


def test_more_than_four_epochs_are_reported_with_the_stage(world, one, tmp_path, capsys):
    """40 windows in each stage, a twentieth of them from a source of one window: 2, 4 and 6
    epochs."""
    more = ["--data", f"{world}/shards/ko=0.95", f"{one}=0.05", "--batch_tokens", "1280",
            "--micro_batch", "40"]
    stages = ["embed:1280:5e-3", "odd:1280:5e-3", "lora:1280:5e-3"]
    run = tmp_path / "run"
    argv = flags(world, run, *stages, more=more)
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(argv), 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "epochs" in line]
    assert len(lines) == 1, lines
    assert "the run will read 6.0 epochs of one" in lines[0]
    assert "more than 4 from stage 3, lora, on" in lines[0]
    assert "2305.16264" in lines[0]

    # Again when the run is resumed, but not once nothing is left.
    assert sum("epochs" in line for line in warned(["--resume", str(run)], capsys)) == 1
    assert warned(["--resume", str(run)], capsys) == []


def test_four_epochs_are_not_too_many(one):
    stages = [plan.parse_stage(stage) for stage in ("odd:128:1e-3", "even:1:1e-3")]
    loader = data.Loader([data.Shards(one)], [1.0], 32, 0)
    assert notices.read_too_often(stages[:1], ["one"], loader, 128) == []
    lines = notices.read_too_often(stages, ["one"], loader, 128)  # the second trains a batch, too
    assert len(lines) == 1 and lines[0].startswith("the run will read 8.0 epochs of one")
