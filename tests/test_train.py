"""train.py and common/checkpoint.py: what a stage changes and what it does not, and that it can be
killed at any moment."""
import argparse
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file

import data
import model
import tokenizer
import train
from common import checkpoint, cli, plan
from common.cli import UserError

ROOT = Path(train.__file__).parent
SMALL = ["--seq_len", "32", "--batch_tokens", "128", "--micro_batch", "2", "--lora_rank", "4",
         "--lora_alpha", "4", "--save_every", "3", "--device", "cpu"]


def flags(world, out, *stages, more=()):
    shards = [f"{world}/shards/ko=0.75", f"{world}/shards/en=0.25"]
    return ["--model", f"{world}/model", "--data", *shards, "--out", str(out), "--stages", *stages,
            *SMALL, *more]


def settings(**changes) -> argparse.Namespace:
    """The flags that loading a stage and making its optimizer read."""
    values = dict(dtype="float32", optimizer="adamw", compile=False, device="cpu", seed=0, clip=1.0,
                  recompute="none", weight_decay=0.1, betas=[0.9, 0.95])
    return argparse.Namespace(**{**values, **changes})


def weights(folder) -> dict:
    return load_file(Path(folder) / "model.safetensors")


def records(run, key="loss") -> list[dict]:
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if key in record]


def exact(run) -> list[tuple]:
    keys = ("stage", "step", "tokens", "loss", "lr", "grad_norm")
    return [tuple(record[key] for key in keys) for record in records(run)]


def copy_of_the_model(world, folder, **config) -> Path:
    """The world's model directory with these changes to its config."""
    folder.mkdir()
    llama = model.load(world / "model")
    for name, value in config.items():
        setattr(llama.config, name, value)
    model.save(llama, folder)
    tokenizer.save(world / "base.model", folder)
    return folder


def watch_steps(monkeypatch, look) -> None:
    """Call look(optimizer, "before") and look(optimizer, "after") around each update in
    train.py."""
    make = train.make_optimizer

    def make_watched(llama, args):
        optimizer = make(llama, args)
        step = optimizer.step

        def watched():
            look(optimizer, "before")
            step()
            look(optimizer, "after")
        optimizer.step = watched
        return optimizer
    monkeypatch.setattr(train, "make_optimizer", make_watched)


def parameters_of(optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


# ------------------------------------------------------------------------- what a stage trains

UNIONS = ["embed", "odd", "even", "body", "lora", "lora+embed", "full", "odd+embed"]


@pytest.mark.parametrize("what", UNIONS)
def test_a_stage_changes_what_it_trains_and_nothing_else(what, world, tmp_path):
    train.main(flags(world, tmp_path / "run", f"{what}:400:1e-2"))
    before, after = weights(world / "model"), weights(tmp_path / "run/model")
    assert before.keys() == after.keys()
    for name, old in before.items():
        has_lora = "lora" in what and name.endswith("_proj.weight")
        trained = has_lora or train.plan.is_trained(name, what)
        assert torch.equal(old, after[name]) != bool(trained), name


def test_masters_are_float32_under_bfloat16_compute(world, tmp_path):
    """A step of 1e-6 is lost in bfloat16 weights (8 bits of mantissa) but kept in float32
    masters."""
    for dtype in ("float32", "bfloat16"):
        train.main(flags(world, tmp_path / dtype, "full:640:1e-6", more=["--dtype", dtype]))
    before, after = weights(world / "model"), weights(tmp_path / "bfloat16/model")
    for name, old in before.items():
        assert 0 < (after[name] - old).abs().max() < 1e-5, name
    in_float32, in_bfloat16 = (
        [record["loss"] for record in records(tmp_path / run)] for run in ("float32", "bfloat16")
    )
    assert in_float32 != in_bfloat16 and in_float32 == pytest.approx(in_bfloat16, abs=2e-2)


def test_recomputation_changes_nothing_but_memory(world, tmp_path):
    for mode in ("none", "attention", "full"):
        train.main(flags(world, tmp_path / mode, "full:640:1e-3", more=["--recompute", mode]))
    assert exact(tmp_path / "none") == exact(tmp_path / "full") == exact(tmp_path / "attention")


@pytest.mark.slow
def test_compiled_blocks_train_the_same(world, tmp_path):
    ways = {
        "plain": [],
        "compiled": ["--compile"],
        "compiled and recomputed": ["--compile", "--recompute", "full", "--micro_batch", "4"],
    }
    for name, more in ways.items():
        stages = ("odd:640:1e-4", "lora:640:1e-4")
        train.main(flags(world, tmp_path / name, *stages, more=["--clip", "0", *more]))
    for name in ways:
        for a, b in zip(exact(tmp_path / "plain"), exact(tmp_path / name), strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_new_rows_leaves_old_rows_bit_identical(world, tmp_path):
    grown = copy_of_the_model(world, tmp_path / "grown", base_vocab_size=300)
    argv = flags(world, tmp_path / "run", "new_rows:800:1e-2")
    train.main([*argv, "--model", str(grown)])
    before, after = weights(grown), weights(tmp_path / "run/model")
    for name in train.plan.TABLES:
        assert torch.equal(before[name][:300], after[name][:300])
        assert (before[name][300:] != after[name][300:]).any()


def test_a_tied_model_trains_and_stays_tied(world, tmp_path):
    tied = tmp_path / "tied"
    tied.mkdir()
    torch.manual_seed(0)
    model.save(model.Llama(tiny_config(tie_word_embeddings=True)), tied)
    tokenizer.save(world / "base.model", tied)
    argv = flags(world, tmp_path / "run", "embed:640:1e-2", "lora+embed:640:1e-2")
    train.main([*argv, "--model", str(tied)])
    assert "lm_head.weight" not in weights(tmp_path / "run/model")
    assert records(tmp_path / "run")[-1]["loss"] < records(tmp_path / "run")[0]["loss"]


def test_a_bfloat16_start_passes_through_frozen_stages_unchanged(world, tmp_path):
    start = copy_of_the_model(world, tmp_path / "start", dtype="bfloat16")
    argv = flags(world, tmp_path / "run", "odd:400:1e-2", "lora:400:1e-2")
    train.main([*argv, "--model", str(start)])
    before, after = weights(start), weights(tmp_path / "run/stages/1-odd")
    for name in before:
        if ".layers.1." not in name and ".layers.3." not in name:
            assert torch.equal(before[name], after[name]), name
    assert all(t.dtype == torch.bfloat16 for t in weights(tmp_path / "run/model").values())


def test_frozen_float32_weights_survive_bfloat16_compute(world, tmp_path):
    train.main(flags(world, tmp_path / "run", "odd:400:1e-2", more=["--dtype", "bfloat16"]))
    before = weights(world / "model")["lm_head.weight"]
    assert torch.equal(before, weights(tmp_path / "run/model")["lm_head.weight"])
    assert not torch.equal(before, before.bfloat16().float())


def test_from_scratch_with_a_config(world, tmp_path):
    argv = flags(world, tmp_path / "run", "full:400:1e-2")[2:]
    config = f"{world}/model/config.json"
    train.main(["--config", config, "--tokenizer", f"{world}/base.model", *argv])
    random, trained = weights(tmp_path / "run/stages/0-random"), weights(tmp_path / "run/model")
    assert random.keys() == trained.keys()


@pytest.mark.parametrize("named, written", [(7, 2), ([7, 2], [7, 2]), (None, 2)])
def test_a_random_model_ends_a_text_where_documents_end(world, tmp_path, named, written):
    """The configuration may have been made for another tokenizer."""
    config = cli.read_json(world / "model/config.json")
    config |= {"bos_token_id": 5, "eos_token_id": named}
    cli.write_json(tmp_path / "shape.json", config)
    args = argparse.Namespace(
        config=tmp_path / "shape.json", tokenizer=world / "base.model", seed=0)
    train.write_random_model(args, tmp_path / "start")
    for name in ("config.json", "generation_config.json"):
        said = cli.read_json(tmp_path / "start" / name)
        assert (said["bos_token_id"], said["eos_token_id"]) == (1, written)


# -------------------------------------------------------------------------------- the update


def test_a_stage_leaves_nothing_behind(world):
    args = settings()
    llama = train.load_stage(plan.parse_stage("full:1k:1e-2"), world / "model", args, 1)
    optimizer = train.make_optimizer(llama, args)
    llama(torch.randint(3, 90, (2, 9)), torch.randint(3, 90, (2, 9)))[0].backward()
    train.gradient_norm(parameters_of(optimizer))
    optimizer.step()
    gone = weakref.ref(llama)
    del llama, optimizer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("optimizer_name", ["adamw", "adamw_bf16"])
def test_a_cancelled_update_changes_nothing(optimizer_name, world):
    """Neither weights nor moments; and the next update is the one that would have come without
    it."""
    args = settings(optimizer=optimizer_name)
    stage = plan.parse_stage("full:1k:1e-2")
    tokens = torch.randint(3, 90, (2, 9))
    ends = []
    for told_off in (False, True):
        llama = train.load_stage(stage, world / "model", args, 1)
        optimizer = train.make_optimizer(llama, args)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2

        def step(not_finite: float, llama=llama, optimizer=optimizer) -> None:
            llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
            trained = parameters_of(optimizer)
            norm = train.gradient_norm(trained)
            torch.nn.utils.clip_grads_with_norm_(trained, 1.0, norm)
            optimizer.found_inf = torch.tensor(not_finite)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def state(llama=llama, optimizer=optimizer) -> list[torch.Tensor]:
            found = []
            for p in llama.parameters():
                moments = optimizer.state[p]
                found += [p.detach(), moments["exp_avg"], moments["exp_avg_sq"]]
            return [tensor.clone() for tensor in found]

        step(0.0)
        if told_off:
            before = state()
            step(1.0)
            assert all(torch.equal(x, y) for x, y in zip(before, state(), strict=True))
        # The other one counts the step, and rounds by it: the run stops anyway.
        if not told_off or optimizer_name == "adamw":
            step(0.0)
            ends.append(state())
    assert len(ends) == 1 or all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


@pytest.mark.parametrize("optimizer_name", ["adamw", "adamw_bf16"])
def test_a_loss_that_ends_a_run_moves_no_weight(optimizer_name, world, tmp_path, monkeypatch):
    """The update is queued before the loss is read, so it has to know by itself. The third step's
    norm is infinite."""
    norm = train.gradient_norm
    calls, states = [], []

    def broken_norm(parameters):
        calls.append(1)
        return norm(parameters) * (torch.inf if len(calls) == 3 else 1)

    def look(optimizer, when):
        states.append([p.detach().clone() for p in parameters_of(optimizer)])
    monkeypatch.setattr(train, "gradient_norm", broken_norm)
    watch_steps(monkeypatch, look)
    argv = flags(world, tmp_path / "run", "full:1280:1e-3", more=["--optimizer", optimizer_name])
    with pytest.raises(UserError, match="step 3: .* gradient norm inf"):
        train.main(argv)
    moved = []
    for before, after in zip(states[::2], states[1::2], strict=True):
        moved.append(any(not torch.equal(x, y) for x, y in zip(before, after, strict=True)))
    assert moved == [True, True, False]
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2]


def test_a_non_finite_loss_stops_before_the_update_and_names_the_source(world, tmp_path):
    bad = copy_of_the_model(world, tmp_path / "bad")
    tensors = weights(bad)
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    argv = flags(world, tmp_path / "run", "full:400:1e-3")
    with pytest.raises(UserError, match="stage 1 step 1: loss .* a window of (ko|en)"):
        train.main([*argv, "--model", str(bad)])
    assert not records(tmp_path / "run")


class Launched:
    """Replaces a kernel: checks that its inputs are on the device, and does nothing."""
    def __class_getitem__(cls, grid):
        def launch(*given, **options):
            assert all(x.is_meta for x in given if isinstance(x, torch.Tensor))
        return launch


@pytest.mark.parametrize("what", ["embed", "new_rows+odd", "lora", "full"])
def test_a_step_never_waits_for_its_device(what, monkeypatch):
    """The device "meta" stands in for a GPU: its tensors have no values, so reading one raises. The
    rest of a step is train.py's only wait, for the loss and the norm together."""
    adamw, loss = (sys.modules[f"kernels.{name}"] for name in ("adamw", "loss"))
    for module, kernel in ((adamw, "_step_kernel"), (loss, "_softmax_kernel")):
        monkeypatch.setattr(module, "triton_runs", lambda x: True)
        monkeypatch.setattr(module, kernel, Launched)
    monkeypatch.setattr(loss, "_operation", loss.loss_and_gradients)
    monkeypatch.setattr(loss, "chunk_budget", lambda *shape: 2**14)
    with torch.device("meta"):
        llama = model.Llama(tiny_config(base_vocab_size=300)).bfloat16()
        if what == "lora":
            model.add_lora(llama, 4, 4, torch.bfloat16)
    for name, p in llama.named_parameters():
        p.requires_grad_(bool(plan.is_trained(name, what)))
    llama.compute_dtype, llama.recompute = torch.bfloat16, "attention"
    optimizer = train.make_optimizer(llama, settings(optimizer="adamw_bf16"))
    trained = parameters_of(optimizer)
    tokens = torch.empty(2, 33, dtype=torch.int64, device="meta")
    for _ in range(2):
        summed, count = llama(tokens[:, :-1], tokens[:, 1:])
        (summed / 64).backward()
        if "new_rows" in what:
            train.keep_old_rows(llama)
        norm = train.gradient_norm(trained)
        torch.nn.utils.clip_grads_with_norm_(trained, 1.0, norm)
        optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert all(x.is_meta and x.dtype == torch.float32 for x in (summed, norm))
    with pytest.raises(RuntimeError):
        norm.tolist()


def test_norm_of_bfloat16_gradients_is_not_rounded():
    p = torch.nn.Parameter(torch.zeros(300, 300, dtype=torch.bfloat16))
    p.grad = torch.randn(300, 300, generator=torch.Generator().manual_seed(5)).bfloat16()
    truth = p.grad.double().norm()
    norm = train.gradient_norm([p])
    assert norm.dtype == torch.float32
    assert abs(norm / truth - 1) < 1e-5 < abs(truth.bfloat16() / truth - 1)


@pytest.mark.parametrize("optimizer_name, tolerance", [("adamw", 1e-4), ("adamw_bf16", 1e-2)])
def test_clipping_shortens_the_gradient_and_no_clipping_touches_nothing(
    optimizer_name, tolerance, world, tmp_path, monkeypatch
):
    used = []

    def look(optimizer, when):
        if when == "before":
            gradients = [p.grad.double().flatten() for p in parameters_of(optimizer)]
            used.append(float(torch.cat(gradients).norm()))
    watch_steps(monkeypatch, look)
    for clip in ("0", "1e-3"):
        more = ["--optimizer", optimizer_name, "--clip", clip]
        train.main(flags(world, tmp_path / clip, "full:640:1e-3", more=more))
    unclipped, clipped = used[:5], used[5:]
    # metrics.jsonl has the norm before clipping.
    norms = [record["grad_norm"] for record in records(tmp_path / "0")]
    assert unclipped == pytest.approx(norms, rel=1e-5)
    assert clipped == pytest.approx([1e-3] * 5, rel=tolerance)


@pytest.mark.parametrize("schedule, at_half", [("cosine", (0.4, 0.7)), ("wsd", (1.0, 1.0))])
def test_learning_rate(schedule, at_half):
    args = argparse.Namespace(schedule=schedule, warmup=0.1, min_lr=0.1)
    rates = [train.learning_rate(step, 100, 1.0, args) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and abs(rates[-1] - 0.1) < 1e-12
    assert at_half[0] <= rates[50] <= at_half[1]
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert train.learning_rate(0, 1, 1.0, args) == 1.0


# ------------------------------------------------------------------------ the loop and its data


def test_samples_come_with_every_validation(world, tmp_path):
    more = ["--eval_every", "2"]
    train.main(flags(world, tmp_path / "run", "full:640:1e-3", more=more))
    lines = records(tmp_path / "run", "samples")
    assert [record["step"] for record in lines] == [0, 2, 4, 5]
    for record in lines:
        assert len(record["samples"]) == 2 and all(record["samples"].values())


def test_metrics_are_readable_korean_with_one_line_per_record(tmp_path):
    """Unicode has more line separators than the newline, and a model may sample them."""
    file = tmp_path / "metrics.jsonl"
    texts = ["대한민국의 수도는", "a\u2028b\u2029c\u0085d\ne"]
    for text in texts:
        train.write_line(file, {"stage": 1, "step": 1, "samples": text})
    text = file.read_text(encoding="utf-8")
    assert texts[0] in text
    assert [json.loads(line)["samples"] for line in text.splitlines()] == texts
    checkpoint.rewind_metrics(file, 1, 1)
    assert file.read_text(encoding="utf-8") == text


def test_a_source_fades_in_over_a_stage(world, tmp_path):
    """Korean from a tenth to nine tenths: over 40 windows the integral is 20, with few among the
    first ten."""
    argv = flags(world, tmp_path / "run", "full:1280:1e-3", "full:1280:1e-3")
    i = argv.index("--data")
    argv[i + 1:i + 3] = [f"{world}/shards/ko=0.1:0.9", f"{world}/shards/en=0.9:0.1"]
    seen, draw = [], data.furthest_behind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "furthest_behind", lambda *args: seen.append(draw(*args)) or seen[-1])
        train.main(argv)
    for half in (seen[:40], seen[40:]):
        assert half.count(0) == 20 and half[:10].count(0) == 2 and half[-10:].count(0) == 8


def test_the_order_of_the_shards_can_be_kept(world, tmp_path, monkeypatch):
    read, seen = train.data.Shards.window, []

    def watched(self, i, n):
        seen.append((self.folder.name, i))
        return read(self, i, n)
    monkeypatch.setattr(train.data.Shards, "window", watched)
    more = ["--order", "as_packed"]
    train.main(flags(world, tmp_path / "run", "full:1280:1e-3", more=more))
    for name in ("ko", "en"):
        places = [i for folder, i in seen if folder == name]
        assert places == list(range(len(places))) and len(places) > 5


def test_torchrun_with_one_process_is_the_same_run(world, tmp_path):
    train.main(flags(world, tmp_path / "alone", "full:640:1e-3"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "train.py",
               *flags(world, tmp_path / "torchrun", "full:640:1e-3")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120, capture_output=True)
    assert exact(tmp_path / "alone") == exact(tmp_path / "torchrun")


def test_the_loss_falls_and_metrics_say_so(world, tmp_path):
    more = ["--eval_every", "40"]
    train.main(flags(world, tmp_path / "run", "full:12000:1e-2", more=more))
    lines, scores = records(tmp_path / "run"), records(tmp_path / "run", "validation")
    assert [record["step"] for record in lines] == list(range(1, 95))
    assert lines[-1]["tokens"] == 94 * 128
    assert [record["step"] for record in scores] == [0, 40, 80, 94]
    for language in ("ko", "en"):
        first, last = (scores[i]["validation"][language]["bits_per_byte"] for i in (0, -1))
        assert last < 0.8 * first
    for record in lines:
        assert record["tokens_per_second"] > 0 and record["peak_memory"] > 1e7
        assert 0 < record["mfu"] <= record["hfu"]


def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(world, tmp_path):
    for name, micro in (("whole", "4"), ("parts", "1")):
        more = ["--micro_batch", micro]
        train.main(flags(world, tmp_path / name, "full:1300:1e-3", more=more))
    for a, b in zip(records(tmp_path / "whole"), records(tmp_path / "parts"), strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-4 and abs(a["grad_norm"] - b["grad_norm"]) < 1e-3


def test_full_stage_equals_an_independent_loop(world, tmp_path):
    """A hundred steps against transformers' Llama, torch's AdamW and clipping, written out again
    here."""
    transformers = pytest.importorskip("transformers")
    train.main(flags(world, tmp_path / "run", "full:12800:1e-3"))
    load = transformers.AutoModelForCausalLM.from_pretrained
    peer = load(world / "model", dtype=torch.float32)
    shards = [data.Shards(world / "shards/ko"), data.Shards(world / "shards/en")]
    loader = data.Loader(shards, [0.75, 0.25], 32, 0)
    decay, rest = [], []
    for name, p in peer.named_parameters():
        if p.dim() == 2 and "embed" not in name and "lm_head" not in name:
            decay.append(p)
        else:
            rest.append(p)
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for record in records(tmp_path / "run"):
        inputs, targets, _ = loader.next(4)
        logits = peer(torch.from_numpy(inputs)).logits
        targets = torch.from_numpy(targets).flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
        assert abs(loss.item() - record["loss"]) < 1e-4


def test_stages_continue_the_data_and_do_not_start_it_again(world, tmp_path):
    train.main(flags(world, tmp_path / "run", "odd:640:1e-3", "even:640:1e-3"))
    state = json.loads((tmp_path / "run/stages/2-even/training_state.json").read_text())
    assert sum(state["loader"]["counts"]) == 10 * 4 and state["tokens"] == 1280


@pytest.mark.parametrize("argv", [[], ["--plan"], ["--model", "out/grown"]], ids=" ".join)
def test_before_the_world_is_prepared_one_line_says_how(argv, tmp_path, refused, monkeypatch):
    """What a new user types first, in a fresh clone."""
    monkeypatch.chdir(tmp_path)
    refused(train, argv, "run `bash speedrun.sh --prepare` first")


# ------------------------------------------------------------------------ stopping and resuming

# Ten steps each, checkpoints after 3, 6 and 9.
STAGES = ["embed:1280:5e-3", "odd:1280:5e-3", "lora:1280:5e-3"]
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
INJECTIONS = {
    "at a checkpoint": f"""
save = checkpoint.save
def stop(run, llama, optimizer, counters, keep):
    save(run, llama, optimizer, counters, keep)
    if (counters["stage"], counters["step"]) == (2, 6): {KILL}
checkpoint.save = stop""",
    "in the middle of a step": f"""
norm, calls = train.gradient_norm, []
def stop(parameters):
    calls.append(1)
    if len(calls) == 18: {KILL}  # stage 2 step 8: gradients are there, the update is not
    return norm(parameters)
train.gradient_norm = stop""",
    "while a checkpoint is written": f"""
def stop(path, value):
    is_in_a_checkpoint = path.name == "counters.json" and "partial" in str(path)
    if is_in_a_checkpoint and (value["stage"], value["step"]) == (2, 6): {KILL}
    write(path, value)
write = checkpoint.write_json
checkpoint.write_json = stop""",
    "before a stage is renamed": f"""
import export
def stop(stage, start, folder):
    finish_settings(stage, start, folder)
    if "2-odd" in str(folder): {KILL}
finish_settings = export.finish_settings
export.finish_settings = stop""",
}


def staged(world, run):
    """STAGES, with a second source so short that each stage starts several epochs of it, before and
    after a kill."""
    shards = [f"{world}/shards/ko=0.75", f"{world}/shards/short=0.25"]
    return flags(world, run, *STAGES, more=["--keep", "2", "--data", *shards])


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    (world / "short.jsonl").write_text((world / "en.jsonl").read_text().splitlines()[0] + "\n")
    data.main(["pack", "--input", f"{world}/short.jsonl", "--tokenizer", f"{world}/base.model",
               "--out", f"{world}/shards/short", "--val_fraction", "1e-9"])
    assert data.Shards(world / "shards/short").windows(32) <= 5  # of 30 that are drawn
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train.main(staged(world, run))
    return run


def in_a_process(code: str) -> subprocess.CompletedProcess:
    """Run Python code next to train.py, with what the INJECTIONS need."""
    code = ("import os, signal, torch, train\n"
            "from common import checkpoint, cli\n"
            "torch.set_num_threads(1)\n" + code)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("moment", INJECTIONS)
def test_a_killed_run_ends_in_the_same_bits(moment, world, undisturbed, tmp_path):
    run = tmp_path / "run"
    killed = in_a_process(f"{INJECTIONS[moment]}\ntrain.main({staged(world, run)!r})")
    assert killed.returncode == -9, killed.stderr
    assert not (run / "model").exists()
    train.main(["--resume", str(run)])
    assert exact(run) == exact(undisturbed)
    for name, tensor in weights(undisturbed / "model").items():
        assert torch.equal(tensor, weights(run / "model")[name]), name


def stopping(run, after: int, number: int = signal.SIGTERM) -> None:
    """Call run(), and send this process a signal in step number `after`, once the backward pass is
    done."""
    norm, calls = train.gradient_norm, []

    def interrupted(parameters):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), number)
        return norm(parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "gradient_norm", interrupted)
        run()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130),
                                            (signal.SIGUSR1, 0), (signal.SIGHUP, 0)])
def test_a_signal_saves_and_leaves(number, status, world, undisturbed, tmp_path, capsys):
    """With 0 for a scheduler; with 130 after Ctrl-C, so that a calling script stops too."""
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as leaving:
        stopping(lambda: train.main(staged(world, run)), 5, number)
    assert leaving.value.code == status and checkpoint.newest(run)[1]["step"] == 5
    assert f"resume with: train.py --resume {run}" in capsys.readouterr().out
    train.main(["--resume", str(run)])
    assert exact(run) == exact(undisturbed)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_in_the_last_step_of_a_stage(number, status, world, undisturbed, tmp_path):
    """That stage is finished and written, and so is the run if it was the last stage."""
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as leaving:
        stopping(lambda: train.main(staged(world, run)), 20, number)
    assert leaving.value.code == status
    assert (run / "stages/2-odd").exists() and not (run / "stages/3-lora").exists()
    with pytest.raises(SystemExit) as leaving:
        stopping(lambda: train.main(["--resume", str(run)]), 10, number)
    assert leaving.value.code == status and (run / "model").exists()
    assert exact(run) == exact(undisturbed)


def test_bfloat16_weights_and_moments_learn_and_resume_to_the_bit(world, tmp_path):
    """adamw_bf16 rounds by (seed, step, element), so a stop leaves no trace; and it learns like
    float32."""
    more = ["--optimizer", "adamw_bf16"]
    train.main(flags(world, tmp_path / "whole", *STAGES, more=more))
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(flags(world, tmp_path / "run", *STAGES, more=more)), after=15)
    assert checkpoint.newest(tmp_path / "run")[1]["stage"] == 2
    train.main(["--resume", str(tmp_path / "run")])
    assert exact(tmp_path / "run") == exact(tmp_path / "whole")
    whole, resumed = weights(tmp_path / "whole/model"), weights(tmp_path / "run/model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    train.main(flags(world, tmp_path / "float32", *STAGES))
    in_bfloat16, in_float32 = (
        [record["loss"] for record in records(tmp_path / run)] for run in ("whole", "float32")
    )
    assert in_bfloat16 != in_float32 and in_bfloat16 == pytest.approx(in_float32, abs=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [[], ["--optimizer", "adamw_bf16", "--recompute", "full"]],
                         ids=["float32", "bfloat16"])
def test_a_deterministic_run_on_a_gpu_resumes_to_the_bit(more, world, tmp_path):
    more = ["--device", "cuda", "--deterministic", *more]
    train.main(flags(world, tmp_path / "whole", *STAGES, more=more))
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(flags(world, tmp_path / "run", *STAGES, more=more)), after=15)
    train.main(["--resume", str(tmp_path / "run")])
    assert exact(tmp_path / "run") == exact(tmp_path / "whole")


def test_a_broken_checkpoint_is_skipped_by_name(undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    newest, older = checkpoint.find(run)[:2]
    shard = newest / "__0_0.distcp"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])  # one bit
    assert checkpoint.newest(run)[0] == older
    assert str(newest) in capsys.readouterr().err
    for wrong in ("{", "[]", "{}"):
        (older / "counters.json").write_text(wrong)
        assert checkpoint.newest(run) is None


def test_only_the_newest_checkpoints_are_kept(world, undisturbed):
    names = [folder.name for folder in checkpoint.find(undisturbed)]
    assert names == ["03-00000009", "03-00000006"]


def test_resuming_a_finished_run_changes_nothing(world, undisturbed):
    metrics = (undisturbed / "metrics.jsonl").read_bytes()
    before = weights(undisturbed / "model")
    train.main(["--resume", str(undisturbed)])
    assert (undisturbed / "metrics.jsonl").read_bytes() == metrics
    after = weights(undisturbed / "model")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_second_process_is_turned_away(world, undisturbed):
    with checkpoint.lock(undisturbed), pytest.raises(UserError, match="another process"):
        train.main(["--resume", str(undisturbed)])


@pytest.mark.parametrize("name, value", [("schedule", "linear"), ("save_every", "often"),
                                         ("betas", [0.9]), ("seed", -1), ("device", "abacus")])
def test_settings_of_a_run_are_checked_as_flags_are(name, value, undisturbed, tmp_path, refused):
    """Someone may have edited config.json."""
    saved = json.loads((undisturbed / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**saved, name: value}), encoding="utf-8")
    refused(train, ["--resume", str(tmp_path)], f"--{name}")


def test_a_resumed_run_has_the_settings_of_its_start(world, tmp_path):
    more = ["--compile", "--schedule", "wsd", "--clip", "0", "--betas", "0.8", "0.9", "--seed", "7"]
    args = train.parse(flags(world, tmp_path, "odd:640:1e-3", "lora:640:1e-3", more=more))
    saved = {
        name: value for name, value in vars(args).items() if name not in train.resume.NOT_SAVED
    }
    (tmp_path / "config.json").write_text(json.dumps(saved))
    resumed = train.parse(["--resume", str(tmp_path)])
    assert vars(resumed) == {**vars(args), "resume": str(tmp_path)}


def test_a_full_disk_leaves_the_checkpoint_before_it(world, undisturbed, tmp_path):
    """A limit on the size of files, from the second checkpoint on: the kernel refuses to write, as
    on a full disk."""
    run = tmp_path / "run"
    stopped = in_a_process(f"""
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = checkpoint.dcp.save
def full(state, checkpoint_id, **kwargs):
    if "00000006" in str(checkpoint_id):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return save(state, checkpoint_id=checkpoint_id, **kwargs)
checkpoint.dcp.save = full
cli.run(lambda: train.main({staged(world, run)!r}))""")
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr
    assert "cannot write checkpoint" in stopped.stderr and "is the disk full?" in stopped.stderr
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["01-00000003"]
    train.main(["--resume", str(run)])
    assert exact(run) == exact(undisturbed)


@pytest.mark.parametrize("what", ["shards", "model"])
def test_a_run_does_not_resume_from_a_changed_input(what, world, tmp_path):
    mine = tmp_path / "world"
    shutil.copytree(world, mine)
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(flags(mine, tmp_path / "run", *STAGES)), after=4)
    if what == "shards":
        data.main(["pack", "--input", f"{mine}/en.jsonl", "--tokenizer", f"{mine}/base.model",
                   "--out", f"{mine}/shards/ko"])
    else:
        doubled = {name: 2 * tensor for name, tensor in weights(mine / "model").items()}
        save_file(doubled, mine / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is missing, or not what"):
        train.main(["--resume", str(tmp_path / "run")])
