"""bench/gpu.py: every part of it on a CPU, so that nothing runs for the first time on a GPU; kills
and faults; and kernels compiled for GPUs that are not here."""
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from bench import gpu

launch = importlib.import_module("kernels.launch")
COMMAND = [sys.executable, "-m", "bench.gpu", "--device", "cpu"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(out: Path, parts: list[str], *flags: str) -> subprocess.Popen:
    command = [*COMMAND, "--out", str(out), "--parts", *parts, *flags]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def rows_of(file: Path) -> list[dict]:
    """The rows of a file. Every line is complete, whatever happened to the program that wrote
    it."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def is_gone(pid: int, seconds: float) -> bool:
    """Whether the process has ended, or ends within this many seconds."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def part(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["part"] == name]


@pytest.fixture(scope="module")
def found(world, tmp_path_factory) -> list[dict]:
    """The rows of all parts; the recipe, which takes longest, runs in parallel with the others."""
    folder = tmp_path_factory.mktemp("gpu")
    shards = [f"{world}/shards/ko=0.75", f"{world}/shards/en=0.25"]
    data = ["--data", *shards, "--tokenizer", f"{world}/base.model"]
    others = [name for name in gpu.PARTS if name != "recipe"]
    runs = [start(folder / "recipe.jsonl", ["recipe"]),
            start(folder / "others.jsonl", others, *data)]
    outputs = [run.communicate(timeout=600)[0] for run in runs]
    rows = [*rows_of(folder / "others.jsonl"), *rows_of(folder / "recipe.jsonl")]
    problems = [row for row in rows if "failed" in row and row["part"] != "attention"]
    assert not problems and [run.returncode for run in runs] == [0, 0], (problems, outputs)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu.PARTS)
def test_every_part_runs_to_its_end(found, name):
    rows = part(found, name)
    assert rows[-1]["done"] and len(rows) > 1


@pytest.mark.slow
def test_the_figures_are_there(found):
    assert [row["seconds"] for row in part(found, "gemm")[:-1]] == list(gpu.TRIAL.gemm_seconds)
    assert part(found, "machine")[0]["torch"].startswith(torch.__version__.partition("+")[0])
    attended = {row["who"]: row for row in part(found, "attention")[:5]}
    assert attended["nanowhale"]["error_ratio"] < 3
    assert attended["math"]["error_ratio"] < 3
    assert "failed" in attended["cudnn"]  # a CPU has none: it is named and skipped
    timed = {(row["operation"], row["who"]) for row in part(found, "kernels") if "operation" in row}
    for operation in ("rms_norm", "add_rms_norm", "swiglu", "rope", "linear_cross_entropy 512"):
        assert {(operation, who) for who in ("nanowhale", "eager", "torch.compile")} <= timed
    assert all("failed" not in row for row in part(found, "kernels"))
    adamw, = (row for row in part(found, "kernels") if row.get("who") == "nanowhale bfloat16")
    assert adamw["numbers unlike the definition's"] == 0


@pytest.mark.slow
def test_every_case_of_a_step_has_its_two_rows(found):
    speed = [row for row in part(found, "steps") if "losses" in row]
    where = [row for row in part(found, "steps") if row.get("what") == "where the time goes"]
    cases = [dataclasses.asdict(case) for case in gpu.TRIAL.cases]
    for rows in (speed, where):
        assert [{name: row[name] for name in cases[0]} for row in rows] == cases
    for row in speed:
        assert abs(row["losses"][0] - row["log_v"]) < 1 and row["loss_falls"], row
        assert row["mfu_sustained"] > 0 and row["tokens_per_second"] > 0
    for row in where:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["compile"] or 0 < row["host_seconds"] < 10


@pytest.mark.slow
def test_a_run_that_was_stopped_within_a_stage_ends_in_the_same_bits(found):
    same, = (row for row in part(found, "train") if "equal" in row)
    assert same["equal"], same["difference"]
    stopped = [row["stopped_at"] for row in part(found, "train") if "stopped_at" in row]
    # A checkpoint in the middle of each of these stages.
    assert [name[:2] for name in stopped] == ["02", "01"]


@pytest.mark.slow
def test_the_recipe_says_how_far_it_came_and_what_came_of_it(found):
    rows = part(found, "recipe")
    arms = {row["arm"]: row for row in rows if "arm" in row}
    assert set(arms) == {"base", "plain", "full", "nanowhale"}
    through = {row["run"]: row["validation"] for row in rows if "run" in row}
    assert through["run"] == arms["nanowhale"]["bits_per_byte"] and "base_run" in through


def test_a_kill_leaves_the_parts_before_it(tmp_path):
    out = tmp_path / "rows.jsonl"
    run = start(out, ["machine", "gemm", "kernels"])
    while not (out.exists() and part(rows_of(out), "kernels")):  # it writes whole lines at once
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.02)
    child = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0])
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert is_gone(child, seconds=10)  # it does not stay on the GPU, where nobody would end it
    rows = rows_of(out)
    assert all(part(rows, name)[-1]["done"] for name in ("machine", "gemm"))
    assert "done" not in part(rows, "kernels")[-1]


def test_sigterm_ends_the_part_that_runs(tmp_path):
    out = tmp_path / "rows.jsonl"
    run = start(out, ["machine", "steps"])
    while not (out.exists() and part(rows_of(out), "machine")):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.02)
    child = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0])
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=30)
    assert run.returncode == 128 + signal.SIGTERM
    assert is_gone(child, seconds=10)


def test_a_part_that_fails_or_takes_too_long_is_named_and_skipped(tmp_path):
    out = tmp_path / "rows.jsonl"
    run = start(out, ["train", "gemm"], "--tokenizer", str(tmp_path / "none.model"))
    output, _ = run.communicate(timeout=120)
    rows = rows_of(out)
    assert "none.model is missing" in out.with_suffix(".log").read_text()
    assert run.returncode == 2 and "failed: train" in output
    assert "none.model is missing: bash speedrun.sh --prepare" in part(rows, "train")[-1]["failed"]
    assert part(rows, "gemm")[-1]["done"]


def test_a_part_that_hangs_shows_where(tmp_path):
    out = tmp_path / "rows.jsonl"
    run = start(out, ["recipe", "gemm"], "--limit", "12")  # the recipe takes a minute
    run.communicate(timeout=60)
    rows = rows_of(out)
    assert "took longer than its 12 seconds" in part(rows, "recipe")[-1]["failed"]
    assert any("began_after_seconds" in row for row in part(rows, "recipe"))
    assert "no time" in part(rows, "gemm")[-1]["failed"]
    # Where it was some seconds before.
    assert "run_speedrun" in out.with_suffix(".log").read_text()


def test_steps_start_at_a_later_case_and_continue_after_one_that_fails(tmp_path, monkeypatch):
    measured = []

    def measure_step(case, cost, cold_rate, sizes, named, rows):
        measured.append(named["number"])
        if named["number"] == 4:
            raise torch.OutOfMemoryError("tried to allocate everything")
    monkeypatch.setattr(gpu, "measure_step", measure_step)
    args = gpu.parse(["--device", "cpu", "--from_case", "3"])
    gpu.steps_part(args, gpu.TRIAL, gpu.Rows(tmp_path / "rows.jsonl", "steps"))
    assert measured == [3, 4, 5, 6, 7]
    row, = rows_of(tmp_path / "rows.jsonl")
    assert row["number"] == 4 and "allocate everything" in row["failed"]


def test_a_speedrun_that_has_changed_is_not_made_small_by_half():
    script = (ROOT / "speedrun.sh").read_text(encoding="utf-8")
    assert gpu.small_speedrun(script).count("\n") == script.count("\n")
    with pytest.raises(ValueError, match="probe_steps"):
        gpu.small_speedrun(script.replace("--probe_steps", "--steps_of_the_probe"))


def test_cases_that_an_80_gb_gpu_has_room_for():
    """By the plan: which cases the part `steps` will run, and which it will skip."""
    needed = {case: gpu.planned(case, gpu.GPU)["needed"] for case in gpu.GPU.cases}
    assert all(needed[case] < 150e9 for case in gpu.GPU.cases)
    fits = [case for case in gpu.GPU.cases if needed[case] < 85e9]
    assert {case.stage for case in fits} == {"embed", "odd", "even", "lora"}
    left_out = [case for case in gpu.GPU.cases if case not in fits]
    assert {case.stage for case in left_out} == {"full"} and len(left_out) == 3


@pytest.mark.skipif(launch.triton is None, reason="triton is not installed")
def test_every_kernel_compiles_without_a_gpu_and_spills_nothing():
    """For three generations of GPU, in a separate process: the interpreter and the compiler cannot
    share one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels", "--compile-only", "--json"]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    rows = json.loads(out.stdout.splitlines()[-1])
    assert {row["target"] for row in rows} == {"sm_75", "sm_80", "sm_90"}
    names = ("norm", "rotary", "activation", "loss", "adamw")
    modules = [importlib.import_module(f"kernels.{name}") for name in names]
    compiled = {row["kernel"] for row in rows}  # in every variant: see `calls` there
    defined = {f"{module.__name__.split('.')[1]}.{name}" for module in modules
               for name in vars(module) if name.endswith("_kernel")}
    assert compiled == defined
    assert any("eps float64" in row["variant"] for row in rows)
    for row in rows:
        assert row["spills"] == 0 and row["registers"] <= 255, row
        # The conversion of a single number.
        assert row["float64"] == ("eps float64" in row["variant"]), row
        assert row["load bits"] == 128 or "aligned 0" in row["variant"], row
