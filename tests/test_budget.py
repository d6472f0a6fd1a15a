"""common/budget.py: hours, GPUs, disk and host memory, by hand, and against a run's files."""
import dataclasses
import json

import pytest
import torch
from conftest import tiny_config
from test_plan import SOLAR as FLOAT32_SOLAR

import model
import train
from common import budget, checkpoint, plan
from common.cli import UserError

BF16 = torch.bfloat16

# The model of RESULTS.md, "On a GPU", as its weights are published.
SOLAR = dataclasses.replace(FLOAT32_SOLAR, dtype="bfloat16")
STAGES = ["embed:200M:2e-4", "odd:3B:1e-4", "lora:1B:1e-4", "full:10B:1e-4"]
GPU = dict(device="cuda", micro_batch=1, accumulation=128)


def table(stages=STAGES, config=SOLAR, optimizer="adamw_bf16", dtype=BF16, **more) -> str:
    parsed = [plan.parse_stage(text) for text in stages]
    return budget.table(config, parsed, 128, 4096, dtype, optimizer, **more)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each line of the table, by stage."""
    lines = text.split("\n")
    end = [line.startswith("the run") for line in lines].index(True)
    return {line.split()[0]: line.split()[1:] for line in lines[1:end]}


def line_of(text: str, name: str) -> str:
    found, = [line for line in text.split("\n") if line.startswith(name)]
    return found


# ------------------------------------------------------------------------------------------ hours


def test_hours_by_hand():
    """An embed stage of SOLAR: two FLOPs per weight of a layer forward and two backward, six for
    the head, attention's 6·T·H·E in each layer; 200M tokens are 381 steps of 524,288."""
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
    per_token = 48 * (4 * layer + 6 * 4096 * 4096) + 6 * 49072 * 4096
    flops = per_token * 381 * 524_288
    hours = flops / (8 * 500e12) / 3600
    text = table(["embed:200M:2e-4"], tflops=500, **{**GPU, "accumulation": 16, "world_size": 8})
    cells = rows(text)["embed"]
    assert cells[:2] == [f"{flops:.2e}", f"{hours:.2f}"]
    assert f"hours: {60 * hours:.1f} minutes of training steps on 8 x 500 TFLOP/s" in text


def test_hours_count_what_is_recomputed():
    stage = ["full:10B:1e-4"]
    plain = float(rows(table(stage, tflops=500, **GPU))["full"][1])
    again = float(rows(table(stage, tflops=500, recompute="full", **GPU))["full"][1])
    ratio = plan.flops_per_token(SOLAR, "full", 0, 4096, "full")
    ratio /= plan.flops_per_token(SOLAR, "full", 0, 4096)
    assert again / plain == pytest.approx(ratio, rel=1e-3) and ratio > 1.2


def test_the_run_is_the_sum_of_its_stages():
    text = table(tflops=400, **GPU)
    total = sum(float(cells[1].replace(",", "")) for cells in rows(text).values())
    line = line_of(text, "the run").split()
    assert float(line[3].replace(",", "")) == pytest.approx(total, abs=0.03)
    assert f" {total / 24:.1f} days " in line_of(text, "hours:")


def test_a_named_gpu_sustains_half_its_peak():
    by_name = table(gpu="H200", **GPU)
    assert rows(by_name) == rows(table(tflops=494.5, **GPU))
    assert "1 x 494.5 TFLOP/s, 50% of the peak of H200" in by_name
    # A rate that the user gives takes precedence.
    assert "1 x 540 TFLOP/s" in table(gpu="H200", tflops=540, **GPU)


def test_hours_of_measured_runs_are_near():
    """RESULTS.md: 16,384 tokens at 9,330 per second, in an odd stage on an H200."""
    flops = plan.flops_per_token(SOLAR, "odd", 0, 4096) * 16384
    planned = 3600 * budget.hours(flops, budget.sustained("H200", BF16))
    assert planned == pytest.approx(16384 / 9330, rel=0.15)


def test_a_gpu_without_bfloat16_is_planned_in_float32():
    with pytest.raises(UserError, match="T4 has no bfloat16"):
        budget.sustained("T4", BF16)
    assert budget.sustained("T4", torch.float32) == pytest.approx(4.05)


def test_every_gpu_has_a_known_capacity():
    for name, gpu in budget.GPUS.items():
        assert budget.capacity(gpu.memory) <= gpu.memory * 2**30, name
        table(gpu=name, dtype=torch.float32, **GPU)


# ------------------------------------------------------------------------------------------- fits


def test_fits_at_its_thresholds():
    room = budget.capacity(24)
    assert budget.fits(24, {"none": room}) == "yes"
    assert budget.fits(24, {"none": room + 1, "attention": room, "full": 1}) == "attention"
    assert budget.fits(24, {"none": room + 1, "attention": room + 1, "full": room}) == "full"
    assert budget.fits(24, {"none": room + 1, "attention": room + 1, "full": room + 1}) == "no"
    assert budget.fits(24, {"full": room}) == "yes"  # as planned


def test_the_columns_say_what_plan_needs():
    """Against plan.cost, cell by cell; and against what README says about 80 GB."""
    text = table(**GPU)
    for what, cells in rows(text).items():
        stage = plan.Stage(what, 1, 1e-4)
        for size, cell in zip(budget.SIZES, cells[1:6], strict=True):
            enough = []
            for recompute in ("none", "attention", "full"):
                needed = plan.cost(SOLAR, stage, 128, 4096, BF16, "adamw_bf16",
                                   **{**GPU, "recompute": recompute})["needed"]
                if needed <= budget.capacity(size):
                    enough.append(recompute)
            first = enough[0] if enough else "no"
            assert cell == first.replace("none", "yes"), (what, size)
    assert rows(text)["odd"][4] == "yes" and rows(text)["full"][4:6] == ["no", "yes"]


def test_without_a_gpu_there_is_no_column_of_gpus():
    text = table(dtype=torch.float32, optimizer="adamw")
    assert "fits" not in text and len(rows(text)["odd"]) == 2


# --------------------------------------------------------------------------- disk and host memory


@pytest.mark.parametrize("what, optimizer, dtype", [
    ("full", "adamw", "float32"),
    ("odd", "adamw_bf16", "bfloat16"),
    ("lora+embed", "adamw", "float32"),
])
def test_a_checkpoint_of_a_run(what, optimizer, dtype, world, tmp_path, monkeypatch):
    """Its files hold what was planned, plus about 8 kB of names per trained tensor."""
    saved = {}
    save = checkpoint.save

    def noted(run, llama, *others):
        folder = save(run, llama, *others)
        saved["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
        saved["tensors"] = sum(p.requires_grad for p in llama.parameters())
        return folder

    monkeypatch.setattr(checkpoint, "save", noted)
    train.main(["--model", f"{world}/model", "--data", f"{world}/shards/ko", "--out",
                str(tmp_path / "run"), "--device", "cpu", "--seq_len", "32", "--save_every", "1",
                "--batch_tokens", "128", "--stages", f"{what}:256:1e-3", "--optimizer", optimizer,
                "--dtype", dtype, "--lora_rank", "4"])
    config = model.Config.read(world / "model")
    cost = plan.cost(config, plan.Stage(what, 1, 1e-3), 4, 32, getattr(torch, dtype), optimizer)
    planned = budget.checkpoint_bytes(cost["trained"], optimizer)
    assert 0 < saved["bytes"] - planned < 10_000 * saved["tensors"] + 10_000

    # The stage's own directory, where a few kB of names precede the weights.
    weights = tmp_path / "run/model/model.safetensors"
    assert 0 < weights.stat().st_size - budget.model_bytes(config) < 10_000


def test_disk_by_hand():
    """10,871,377,920 parameters; full trains all of them in bfloat16, and a checkpoint has 6 bytes
    for each. A LoRA of rank 128 has 128 rows or columns on both sides of seven matrices."""
    lora = 2 * 48 * 128 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    one_model = 2 * 10_871_377_920
    text = table(**GPU)
    total = 4 * one_model + lora + 3 * 6 * 10_871_377_920
    assert f"LoRAs of {lora / 1e9:.1f} GB" in text
    assert f"disk: at most {total / 1e9:.1f} GB: 4 models of 21.7 GB" in text
    total += one_model + 2 * 6 * 10_871_377_920
    text = table(keep=4, from_scratch=True, **GPU)
    assert f"disk: at most {total / 1e9:.1f} GB: 5 models" in text and "4 checkpoints" in text


def test_host_memory_by_hand():
    """A file of 5 GB, and twice the largest tensor, the embedding, in float32; on a CPU also the
    model and its optimizer; from scratch, the whole model in float32."""
    writing = 5 * 10**9 + 8 * 49072 * 4096
    held = {"weights": 10**10, "optimizer": 10**9, "peak": 10**9}
    stages = ([held, held], [0, 7])     # the second leaves an adapter
    assert budget.host_bytes(SOLAR, *stages, "cuda", False) == writing + 7
    assert budget.host_bytes(SOLAR, *stages, "cuda", True) == writing + 4 * 10_871_377_920
    assert budget.host_bytes(SOLAR, *stages, "cpu", False) == writing + 7 + 11 * 10**9
    held["peak"] = 10**11
    assert budget.host_bytes(SOLAR, *stages, "cpu", False) == 10**11
    # A small model is a single file.
    tiny = tiny_config()
    expected = budget.model_bytes(tiny) + 8 * 512 * 32
    assert budget.host_bytes(tiny, [held], [0], "cuda", False) == expected


# --------------------------------------------------------------------------------------- train.py


def plan_of(argv, capsys) -> str:
    train.main(["--plan", *argv])
    return capsys.readouterr().out


def test_plan_prints_it_and_a_run_does_not(world, tmp_path, capsys):
    model_and_stages = ["--model", f"{world}/model", "--stages", "odd:200:1e-3"]
    text = plan_of([*model_and_stages, "--gpu", "H100"], capsys)
    # Naming a GPU means planning for one.
    assert "device=cuda dtype=bfloat16" in text and "fits 16 GB" in text
    for name in ("hours:", "fits:", "disk:", "host memory:"):
        assert line_of(text, name)
    assert "hours: give --gpu or --tflops" in plan_of([*model_and_stages, "--device", "cpu"],
                                                      capsys)
    assert "device=cuda" in plan_of([*model_and_stages, "--tflops", "400"], capsys)
    out = tmp_path / "run"
    train.main([*model_and_stages, "--data", f"{world}/shards/ko", "--out", str(out), "--device",
                "cpu"])
    assert "host memory" not in capsys.readouterr().out
    assert not {"gpu", "tflops"} & set(json.loads((out / "config.json").read_text()))


@pytest.mark.parametrize("more", [
    {},
    {"gpu": "L40S", "world_size": 8},
    {"tflops": 1.5},
    {"device": "cpu"},
])
def test_no_line_is_wider_than_120_columns(more):
    text = table([*STAGES, "lora+embed:900B:1e-4"], **{**GPU, **more})
    assert max(map(len, text.split("\n"))) <= 120
