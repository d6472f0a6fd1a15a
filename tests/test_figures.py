"""bench/figures.py: every figure from hand-made inputs, in the forms that the programs write."""
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from common import cli
from studies import report, stages

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def figures():
    return importlib.import_module("bench.figures")


@pytest.fixture
def speedrun(tmp_path):
    """A speedrun's folder, as far as figures.py reads it."""

    def step(name, n):
        return {"step": name, "documents_in": 10, "bytes_in": 900, "documents_out": n,
                "bytes_out": 90 * n}

    for language, last in (("ko", ["decontaminate"]), ("en", [])):
        cli.write_json(tmp_path / "clean" / language / "report.json", {
            "input": {"documents": 10, "bytes": 900},
            "steps": [step(name, 9 - i) for i, name in enumerate(["rules", *last])]})
    methods = {"random": {"0": 3.0, "30": 2.0}, "mean": {"0": 2.5, "30": 1.5}}
    cli.write_json(tmp_path / "probe.json", {"bits_per_byte": methods, "everything": methods})
    for arm, run in report.RUNS.items():
        names = ["embed", "odd", "even", "lora"] if arm == "nanowhale" else ["full"]
        given = [f"{name}:1k:1e-3" for name in names]
        settings = {"stages": given, "batch_tokens": 100, "model": "/a/path"}
        cli.write_json(tmp_path / run / "config.json", settings)
        rows = []
        for i in range(len(names) + 1):
            scores = {x: {"bits_per_byte": 3.0 - 0.5 * i, "loss": 1.0} for x in ("ko", "en")}
            if i > 0:
                rows.append({"stage": i, "step": 1, "loss": 1.0, "tokens": 100 * i,
                             "tokens_per_second": 10})
            rows.append({"stage": max(1, i), "step": min(1, i), "tokens": 100 * i,
                         "validation": scores})
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / run / "metrics.jsonl").write_text("".join(lines))
    for i, arm in enumerate(("base", "nanowhale")):
        score = {"acc": 0.5 + 0.1 * i, "ci95": [0.4, 0.7],
                 "examples": [{"loglikelihoods": [-1, -2]}]}
        tasks = {"boolq": score, "copa": score}
        cli.write_json(tmp_path / "kobest" / f"{arm}.json", {"tasks": tasks})
    return tmp_path


def test_a_speedrun_is_drawn_and_what_is_missing_is_named(figures, speedrun, capsys):
    pytest.importorskip("matplotlib")
    figures.main(["--speedrun", str(speedrun)])
    out = speedrun / "figures"
    assert {path.name for path in out.iterdir()} == {"figures.json", *(
        f"{name}.svg" for name in set(figures.FIGURES) - {"tokens"})}
    assert "tokens.svg is left out: `tokenizer.py report --sizes" in capsys.readouterr().out
    for svg in out.glob("*.svg"):
        text = svg.read_text(encoding="utf-8")
        assert "<text" in text and "Noto Sans KR" in text and len(text) < 40_000, svg
    assert "한국어" in (out / "run.svg").read_text(encoding="utf-8")  # "Korean"
    drawn = cli.read_json(out / "figures.json")
    assert drawn["corpus"]["ko"] == [["raw", 10, 900], ["rules", 9, 810], ["decontaminate", 8, 720]]
    assert drawn["kobest"]["copa"] == {
        "chance": 0.5, "before": [0.5, 0.4, 0.7], "after": [0.6, 0.4, 0.7]}
    assert [row[0] for row in drawn["run"]["rows"]] == ["embed", "embed", "odd", "even", "lora"]


def test_flags_replace_and_the_rest_is_drawn_from_what_was_kept(figures, speedrun, tmp_path):
    pytest.importorskip("matplotlib")
    where = ["--results", f"{tmp_path}/kept.json", "--out", f"{tmp_path}/svg"]
    rows = stages.rows_of(speedrun / "run", "stages", 0)
    rows += stages.rows_of(speedrun / "run_plain", "plain", 0)
    settings = {"lr": 1e-3, "base": "/a/path"}
    cli.write_json(tmp_path / "study/stages.json", {"settings": settings, "rows": rows})
    sizes = {f"{n} pieces": {"mean_token_ratio": 1 / n, "embedding_growth": n} for n in (2, 3, 4)}
    cli.write_json(tmp_path / "tokens.json", {"suggested": "3 pieces, the knee", "tokenizers": {
        "base.model": {"mean_token_ratio": 1.0, "embedding_growth": 1.0}, **sizes}})
    figures.main([*where, "--stages", f"{tmp_path}/study", "--sizes", f"{tmp_path}/tokens.json"])
    figures.main([*where, "--run", f"{speedrun}/run"])
    kept = cli.read_json(tmp_path / "kept.json")
    assert set(kept) == {"stages", "tokens", "run"} and "/a/path" not in json.dumps(kept)
    assert kept["stages"] == {"settings": {"lr": 1e-3}, "rows": rows}
    assert {path.stem for path in (tmp_path / "svg").iterdir()} == set(kept)


def test_the_repository_s_own_are_drawn_only_without_a_flag(
        figures, speedrun, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures.measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(figures.measure, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    figures.main(["--run", f"{speedrun}/run"])
    drawn = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert drawn == {"figures.json", "run.svg"}
    assert not (tmp_path / "results").exists() and not (tmp_path / "repository").exists()
    shutil.copytree(ROOT / "bench/results", tmp_path / "results")
    figures.main([])
    drawn = {path.stem for path in (tmp_path / "repository/docs/figures").iterdir()}
    assert drawn == {*figures.FIGURES, *figures.STUDIES}


def test_the_committed_figures_are_small_and_those_of_the_committed_numbers(figures):
    kept = (ROOT / "bench/results/figures.json").read_text(encoding="utf-8")
    assert set(json.loads(kept)) == set(figures.FIGURES) and "/" not in kept
    for name in (*figures.FIGURES, *figures.STUDIES):
        assert (ROOT / f"docs/figures/{name}.svg").stat().st_size < 40_000


def test_a_file_of_another_kind_is_one_line(figures, tmp_path, refused):
    pytest.importorskip("matplotlib")
    cli.write_json(tmp_path / "x.json", {"a": 1})
    other = f"{tmp_path}/x.json"
    for flags in (["--sizes", other], ["--kobest", other, other]):
        argv = [*flags, "--results", f"{tmp_path}/r.json", "--out", str(tmp_path)]
        refused(figures, argv, "is not what `")
    refused(figures, ["--run", str(tmp_path), "--results", f"{tmp_path}/r.json"], "cannot read")


def test_without_matplotlib_one_line(figures, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    argv = ["--results", f"{tmp_path}/x.json", "--out", str(tmp_path)]
    refused(figures, argv, "pip install matplotlib")
