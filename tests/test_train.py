"""train.py and common/checkpoint.py: what a stage changes, what it leaves, and that it can be unplugged."""
import argparse
import gc
import json
import os
import shutil
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
from common import checkpoint, plan, stage
from common.cli import UserError

SMALL = ["--seq_len", "32", "--batch_tokens", "128", "--micro_batch", "2", "--lora_rank", "4", "--lora_alpha", "4",
         "--save_every", "3", "--device", "cpu"]


def flags(world, out, *stages, more=()):
    shards = [f"{world}/shards/ko=0.75", f"{world}/shards/en=0.25"]
    return ["--model", f"{world}/model", "--data", *shards, "--out", str(out), "--stages", *stages, *SMALL, *more]


def weights(folder) -> dict:
    return load_file(Path(folder) / "model.safetensors")


def records(run, key="loss") -> list[dict]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [r for r in lines if key in r]


@pytest.mark.parametrize("what", ["embed", "odd", "even", "body", "lora", "lora+embed", "full", "odd+embed"])
def test_a_stage_changes_what_it_trains_and_nothing_else(what, world, tmp_path):
    train.main(flags(world, tmp_path / "run", f"{what}:400:1e-2"))
    before, after = weights(world / "model"), weights(tmp_path / "run/model")
    assert before.keys() == after.keys()
    for name, old in before.items():
        trained = "lora" in what and name.endswith("_proj.weight") or train.plan.is_trained(name, what)
        assert torch.equal(old, after[name]) != bool(trained), name


def test_masters_are_float32_under_bfloat16_compute(world, tmp_path):
    """A step of 1e-6 is lost in bfloat16 weights (8 bits of mantissa) and kept in float32 masters."""
    for dtype in ("float32", "bfloat16"):
        train.main(flags(world, tmp_path / dtype, "full:640:1e-6", more=["--dtype", dtype]))
    before, after = weights(world / "model"), weights(tmp_path / "bfloat16/model")
    for name, old in before.items():
        assert 0 < (after[name] - old).abs().max() < 1e-5, name
    losses = [[r["loss"] for r in records(tmp_path / dtype)] for dtype in ("float32", "bfloat16")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=2e-2)


def test_recomputation_changes_nothing_but_memory(world, tmp_path):
    for mode in ("none", "attention", "full"):
        train.main(flags(world, tmp_path / mode, "full:640:1e-3", more=["--recompute", mode]))
    assert exact(tmp_path / "none") == exact(tmp_path / "full") == exact(tmp_path / "attention")


@pytest.mark.slow
def test_compiled_blocks_train_the_same(world, tmp_path):
    all_at_once = ["--clip", "0", "--recompute", "full", "--update_in_backward", "--micro_batch", "4"]
    for i, more in enumerate(([], ["--compile"], ["--compile", *all_at_once])):
        train.main(flags(world, tmp_path / str(i), "odd:640:1e-4", "lora:640:1e-4", more=["--clip", "0", *more]))
    plain, *compiled = (exact(tmp_path / run) for run in "012")
    for run in compiled:
        for a, b in zip(plain, run, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("more", [[], ["--optimizer", "adamw_bf16"], ["--recompute", "full"], ["--dtype", "bfloat16"],
                                  ["--optimizer", "adamw_bf16", "--recompute", "attention", "--dtype", "bfloat16"]],
                         ids=" ".join)
def test_updates_in_the_backward_pass_are_those_after_it(more, world, tmp_path):
    """Without clipping the order of updates changes nothing: the same bits, LoRA and old rows included."""
    stages = ["new_rows+odd:640:5e-3", "lora:640:5e-3", "full:640:5e-3"]
    shutil.copytree(world / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"base_vocab_size": 300}))
    for early in ([], ["--update_in_backward"]):
        argv = flags(world, tmp_path / str(len(early)), *stages, more=[*more, *early, "--clip", "0"])
        argv[argv.index("--micro_batch") + 1] = "4"
        train.main([*argv, "--model", str(tmp_path / "model")])
    a, b = (records(tmp_path / run) for run in "01")
    assert [(r["stage"], r["step"], r["loss"], r["lr"]) for r in a] == [
        (r["stage"], r["step"], r["loss"], r["lr"]) for r in b]
    assert [r["grad_norm"] for r in a] == pytest.approx([r["grad_norm"] for r in b], rel=1e-2)
    whole = weights(tmp_path / "0/model")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "1/model").items())


def test_a_stage_leaves_nothing_behind(world):
    args = argparse.Namespace(dtype="float32", optimizer="adamw", compile=False, device="cpu", seed=0, clip=1.0,
                              recompute="none", weight_decay=0.1, betas=[0.9, 0.95], update_in_backward=True)
    stage = plan.parse_stage("full:1k:1e-2")
    llama = train.load_stage(stage, world / "model", args, 1)
    updates, gone = train.Updates(llama, train.make_optimizer(llama, args), stage, args), weakref.ref(llama)
    llama(torch.randint(3, 90, (2, 9)), torch.randint(3, 90, (2, 9)))[0].backward()
    updates.norm()
    del llama, updates
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bf16"])
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_a_tensor_without_a_finite_gradient_is_left_as_it_was(optimizer, clip, world):
    stage = plan.parse_stage("full:1k:1e-2")
    args = argparse.Namespace(dtype="float32", optimizer=optimizer, compile=False, device="cpu", seed=0, clip=clip,
                              recompute="none", weight_decay=0.1, betas=[0.9, 0.95], update_in_backward=True)
    llama = train.load_stage(stage, world / "model", args, 1)
    updates = train.Updates(llama, train.make_optimizer(llama, args), stage, args)
    for group in updates.optimizer.param_groups:
        group["lr"] = 1e-2
    bad = llama.model.layers[0].mlp.up_proj.weight
    before, tokens = [p.detach().clone() for p in llama.parameters()], torch.randint(3, 90, (2, 9))
    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    assert updates.norm().isfinite() and all(p.grad is None for p in llama.parameters())
    middle = [p.detach().clone() for p in llama.parameters()]
    assert not any(torch.equal(x, y) for x, y in zip(before, middle, strict=True))
    bad.register_hook(lambda gradient: gradient * torch.nan)
    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    assert not updates.norm().isfinite()
    for p, old in zip(llama.parameters(), middle, strict=True):
        assert torch.equal(p, old) == (p is bad) and p.isfinite().all()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bf16"])
def test_an_update_that_is_told_off_changes_nothing(optimizer, world):
    """Weights and moments; and the next update is the one that would have come without it."""
    stage = plan.parse_stage("full:1k:1e-2")
    args = argparse.Namespace(dtype="float32", optimizer=optimizer, compile=False, device="cpu", seed=0, clip=1.0,
                              recompute="none", weight_decay=0.1, betas=[0.9, 0.95], update_in_backward=False)
    tokens, ends = torch.randint(3, 90, (2, 9)), []
    for told_off in (False, True):
        llama = train.load_stage(stage, world / "model", args, 1)
        updates = train.Updates(llama, train.make_optimizer(llama, args), stage, args)
        for group in updates.optimizer.param_groups:
            group["lr"] = 1e-2

        def step(not_finite: float, llama=llama, updates=updates) -> None:
            llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
            updates.norm()
            updates.apply(torch.tensor(not_finite))
            assert all(p.grad is None for p in llama.parameters())
        step(0.0)
        state = lambda llama=llama, updates=updates: [x.clone() for p in llama.parameters() for x in (
            p.detach(), updates.optimizer.state[p]["exp_avg"], updates.optimizer.state[p]["exp_avg_sq"])]
        if told_off:
            before = state()
            step(1.0)
            assert all(torch.equal(x, y) for x, y in zip(before, state(), strict=True))
        if not told_off or optimizer == "adamw":  # the other counts the step, and rounds by it: the run stops anyway
            step(0.0)
            ends.append(state())
    assert len(ends) == 1 or all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


class Launched:
    """In a kernel's place: sees that what it is given is on the device, and does nothing."""
    def __class_getitem__(cls, grid):
        def launch(*given, **options):
            assert all(x.is_meta for x in given if isinstance(x, torch.Tensor))
        return launch


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("what", ["embed", "new_rows+odd", "lora", "full"])
def test_a_step_never_waits_for_its_device(what, early, monkeypatch):
    """The device "meta" stands for a GPU: its tensors have no values, so asking for one raises. What is left of a step
    is train.py's one wait, for the loss and the norm together."""
    args = argparse.Namespace(optimizer="adamw_bf16", weight_decay=0.1, betas=[0.9, 0.95], clip=1.0, seed=0,
                              update_in_backward=early)
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
    updates = stage.Updates(llama, stage.make_optimizer(llama, args), plan.parse_stage(f"{what}:1k:1e-3"), args)
    for _ in range(2):
        tokens = torch.empty(2, 33, dtype=torch.int64, device="meta")
        summed, count = llama(tokens[:, :-1], tokens[:, 1:])
        (summed / 64).backward()
        norm = updates.norm()
        updates.apply((~norm.isfinite()).float())
        assert all(x.is_meta and x.dtype == torch.float32 for x in (summed, norm))
    with pytest.raises(RuntimeError):
        norm.tolist()


def test_samples_come_with_every_validation(world, tmp_path):
    train.main(flags(world, tmp_path / "run", "full:640:1e-3", more=["--eval_every", "2"]))
    lines = records(tmp_path / "run", "samples")
    assert [r["step"] for r in lines] == [0, 2, 4, 5]
    assert all(len(r["samples"]) == 2 and all(r["samples"].values()) for r in lines)


def test_a_source_fades_in_over_a_stage(world, tmp_path):
    """Korean from a tenth to nine tenths: of 40 windows the integral is 20, and few of the first ten."""
    argv = flags(world, tmp_path / "run", "full:1280:1e-3", "full:1280:1e-3")
    i = argv.index("--data")
    argv[i + 1:i + 3] = [f"{world}/shards/ko=0.1:0.9", f"{world}/shards/en=0.9:0.1"]
    seen, draw = [], data.furthest_behind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "furthest_behind", lambda *args: seen.append(draw(*args)) or seen[-1])
        train.main(argv)
    for half in (seen[:40], seen[40:]):
        assert half.count(0) == 20 and half[:10].count(0) == 2 and half[-10:].count(0) == 8


def test_the_order_of_the_shards_can_be_kept(world, tmp_path):
    read, seen = train.data.Shards.window, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.data.Shards, "window",
                      lambda self, i, n: seen.append((self.folder.name, i)) or read(self, i, n))
        train.main(flags(world, tmp_path / "run", "full:1280:1e-3", more=["--order", "as_packed"]))
    for name in ("ko", "en"):
        places = [i for folder, i in seen if folder == name]
        assert places == list(range(len(places))) and len(places) > 5


def test_a_tied_model_trains_and_stays_tied(world, tmp_path):
    tied = tmp_path / "tied"
    tied.mkdir()
    torch.manual_seed(0)
    model.save(model.Llama(tiny_config(tie_word_embeddings=True)), tied)
    tokenizer.save(world / "base.model", tied)
    train.main(flags(world, tmp_path / "run", "embed:640:1e-2", "lora+embed:640:1e-2") + ["--model", str(tied)])
    assert "lm_head.weight" not in weights(tmp_path / "run/model")
    assert records(tmp_path / "run")[-1]["loss"] < records(tmp_path / "run")[0]["loss"]


def test_torchrun_with_one_process_is_the_same_run(world, tmp_path):
    train.main(flags(world, tmp_path / "alone", "full:640:1e-3"))
    root = Path(train.__file__).parent
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "train.py",
                    *flags(world, tmp_path / "torchrun", "full:640:1e-3")], cwd=root, check=True, timeout=120,
                   env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert exact(tmp_path / "alone") == exact(tmp_path / "torchrun")


def test_new_rows_leaves_old_rows_bit_identical(world, tmp_path):
    grown = tmp_path / "grown"
    grown.mkdir()
    llama = model.load(world / "model")
    llama.config.base_vocab_size = 300
    model.save(llama, grown)
    tokenizer.save(world / "base.model", grown)
    train.main(flags(world, tmp_path / "run", "new_rows:800:1e-2") + ["--model", str(grown)])
    before, after = weights(grown), weights(tmp_path / "run/model")
    for name in train.plan.TABLES:
        assert torch.equal(before[name][:300], after[name][:300])
        assert (before[name][300:] != after[name][300:]).any()


def test_the_loss_falls_and_metrics_say_so(world, tmp_path):
    train.main(flags(world, tmp_path / "run", "full:12000:1e-2", more=["--eval_every", "40"]))
    lines, scores = records(tmp_path / "run"), records(tmp_path / "run", "validation")
    assert [r["step"] for r in lines] == list(range(1, 95)) and lines[-1]["tokens"] == 94 * 128
    assert [r["step"] for r in scores] == [0, 40, 80, 94]
    for language in ("ko", "en"):
        first, last = (scores[i]["validation"][language]["bits_per_byte"] for i in (0, -1))
        assert last < 0.8 * first
    assert all(r["tokens_per_second"] > 0 and 0 < r["mfu"] <= r["hfu"] and r["peak_memory"] > 1e7 for r in lines)


def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(world, tmp_path):
    for name, micro in (("whole", "4"), ("parts", "1")):
        train.main(flags(world, tmp_path / name, "full:1300:1e-3", more=["--micro_batch", micro]))
    for a, b in zip(records(tmp_path / "whole"), records(tmp_path / "parts"), strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-4 and abs(a["grad_norm"] - b["grad_norm"]) < 1e-3


def test_full_stage_equals_an_independent_loop(world, tmp_path):
    """A hundred steps against transformers' Llama, torch's AdamW and clipping, written out again here."""
    transformers = pytest.importorskip("transformers")
    train.main(flags(world, tmp_path / "run", "full:12800:1e-3"))
    peer = transformers.AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    shards = [data.Shards(world / "shards/ko"), data.Shards(world / "shards/en")]
    loader = data.Loader(shards, [0.75, 0.25], 32, 0)
    decay = [p for n, p in peer.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n]
    rest = [p for n, p in peer.named_parameters() if not (p.dim() == 2 and "embed" not in n and "lm_head" not in n)]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95))
    for record in records(tmp_path / "run"):
        inputs, targets, _ = map(torch.from_numpy, loader.next(4))
        logits = peer(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
        assert abs(loss.item() - record["loss"]) < 1e-4


def test_norm_of_bfloat16_gradients_is_not_rounded_and_no_clipping_touches_nothing():
    for clip in (0.0, 1.0):
        p = torch.nn.Parameter(torch.zeros(300, 300, dtype=torch.bfloat16))
        p.grad = torch.randn(300, 300, generator=torch.Generator().manual_seed(5)).bfloat16()
        before, exact = p.grad.clone(), p.grad.double().norm()
        args = argparse.Namespace(clip=clip, update_in_backward=False)
        updates = stage.Updates(torch.nn.Module(), torch.optim.SGD([p]), plan.Stage("full", 1, 1e-3), args)
        norm = updates.norm()
        assert norm.dtype == torch.float32 and abs(norm / exact - 1) < 1e-5 < abs(exact.bfloat16() / exact - 1)
        assert p.grad.equal(before) if not clip else abs(p.grad.double().norm() - 1) < 1e-2


@pytest.mark.parametrize("schedule, at_half", [("cosine", (0.4, 0.7)), ("wsd", (1.0, 1.0))])
def test_learning_rate(schedule, at_half):
    args = train.parse(["--schedule", schedule, "--warmup", "0.1", "--min_lr", "0.1"])
    rates = [train.learning_rate(step, 100, 1.0, args) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and abs(rates[-1] - 0.1) < 1e-12
    assert at_half[0] <= rates[50] <= at_half[1]
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert train.learning_rate(0, 1, 1.0, args) == 1.0


def test_a_bfloat16_start_passes_through_frozen_stages_unchanged(world, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    llama = model.load(world / "model")
    llama.config.dtype = "bfloat16"
    model.save(llama, start)
    tokenizer.save(world / "base.model", start)
    train.main(flags(world, tmp_path / "run", "odd:400:1e-2", "lora:400:1e-2") + ["--model", str(start)])
    a, b = weights(start), weights(tmp_path / "run/stages/1-odd")
    assert all(torch.equal(a[n], b[n]) for n in a if ".layers.1." not in n and ".layers.3." not in n)
    assert all(t.dtype == torch.bfloat16 for t in weights(tmp_path / "run/model").values())


def test_frozen_float32_weights_survive_bfloat16_compute(world, tmp_path):
    train.main(flags(world, tmp_path / "run", "odd:400:1e-2", more=["--dtype", "bfloat16"]))
    before, after = weights(world / "model"), weights(tmp_path / "run/model")
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert not torch.equal(before["lm_head.weight"], before["lm_head.weight"].bfloat16().float())


def test_stages_go_on_with_the_data_and_not_from_its_start(world, tmp_path):
    train.main(flags(world, tmp_path / "run", "odd:640:1e-3", "even:640:1e-3"))
    state = json.loads((tmp_path / "run/stages/2-even/training_state.json").read_text())
    assert sum(state["loader"]["counts"]) == 10 * 4 and state["tokens"] == 1280


def test_from_scratch_with_a_config(world, tmp_path):
    argv = flags(world, tmp_path / "run", "full:400:1e-2")[2:]
    train.main(["--config", f"{world}/model/config.json", "--tokenizer", f"{world}/base.model", *argv])
    assert weights(tmp_path / "run/stages/0-random").keys() == weights(tmp_path / "run/model").keys()


# ---------------------------------------------------------------------------------------------- stopping and going on

STAGES = ["embed:1280:5e-3", "odd:1280:5e-3", "lora:1280:5e-3"]  # ten steps each, checkpoints after 3, 6 and 9
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
INJECTIONS = {
    "at a checkpoint": f"""
save = checkpoint.save
def stop(run, llama, optimizer, counters, keep):
    save(run, llama, optimizer, counters, keep)
    if (counters["stage"], counters["step"]) == (2, 6): {KILL}
checkpoint.save = stop""",
    "in the middle of a step": f"""
norm, calls = stage.Updates.norm, []
def stop(*args):
    calls.append(1)
    if len(calls) == 18: {KILL}  # stage 2 step 8: gradients are there, the update is not
    return norm(*args)
stage.Updates.norm = stop""",
    "while a checkpoint is written": f"""
def stop(path, value):
    if path.name == "counters.json" and "partial" in str(path) and value["stage"] == 2 and value["step"] == 6: {KILL}
    write(path, value)
write = checkpoint.write_json
checkpoint.write_json = stop""",
    "before a stage is renamed": f"""
def stop(model_file, folder):
    tokenizer_save(model_file, folder)
    if "2-odd" in str(folder): {KILL}
tokenizer_save = train.tokenizer.save
train.tokenizer.save = stop""",
}


def staged(world, run):
    """STAGES, with a second source so short that each stage begins several epochs of it, before and after a kill."""
    return flags(world, run, *STAGES, more=["--data", f"{world}/shards/ko=0.75", f"{world}/shards/short=0.25"])


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    (world / "short.jsonl").write_text((world / "en.jsonl").read_text().splitlines()[0] + "\n")
    data.main(["pack", "--input", f"{world}/short.jsonl", "--tokenizer", f"{world}/base.model", "--out",
               f"{world}/shards/short", "--val_fraction", "1e-9"])
    assert data.Shards(world / "shards/short").windows(32) <= 5  # of 30 that are drawn
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train.main(staged(world, run))
    return run


def exact(run) -> list[tuple]:
    return [tuple(r[k] for k in ("stage", "step", "tokens", "loss", "lr", "grad_norm")) for r in records(run)]


@pytest.mark.parametrize("moment", INJECTIONS)
def test_a_killed_run_ends_in_the_same_bits(moment, world, undisturbed, tmp_path):
    run = tmp_path / "run"
    code = "import os, signal, torch, train\nfrom common import checkpoint, stage\ntorch.set_num_threads(1)\n" \
           f"{INJECTIONS[moment]}\ntrain.main({staged(world, run)!r})"
    root = Path(train.__file__).parent
    killed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120,
                            env={**os.environ, "PYTHONPATH": str(root)})
    assert killed.returncode == -9, killed.stderr
    assert not (run / "model").exists()
    train.main(["--resume", str(run)])
    assert exact(run) == exact(undisturbed)
    for name, tensor in weights(undisturbed / "model").items():
        assert torch.equal(tensor, weights(run / "model")[name]), name


def stopping(run, after: int) -> None:
    """Call run(), and send this process a SIGTERM in its step number `after`, when the backward pass is done."""
    norm, calls = train.Updates.norm, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), 15)
        return norm(self)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Updates, "norm", interrupted)
        run()


def test_a_signal_saves_and_leaves_with_zero(world, undisturbed, tmp_path):
    with pytest.raises(SystemExit) as leaving:
        stopping(lambda: train.main(staged(world, tmp_path / "run")), after=5)
    assert not leaving.value.code and checkpoint.newest(tmp_path / "run")[1]["step"] == 5
    train.main(["--resume", str(tmp_path / "run")])
    assert exact(tmp_path / "run") == exact(undisturbed)


@pytest.mark.parametrize("early", [[], ["--update_in_backward", "--micro_batch", "4"]], ids=["after", "in_backward"])
def test_bfloat16_weights_and_moments_learn_and_resume_to_the_bit(early, world, tmp_path):
    """adamw_bf16 rounds by (seed, step, element), so a stop leaves no trace; and it learns as float32 does."""
    more = ["--optimizer", "adamw_bf16", *early]
    train.main(flags(world, tmp_path / "whole", *STAGES, more=more))
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(flags(world, tmp_path / "run", *STAGES, more=more)), after=15)
    assert checkpoint.newest(tmp_path / "run")[1]["stage"] == 2
    train.main(["--resume", str(tmp_path / "run")])
    assert exact(tmp_path / "run") == exact(tmp_path / "whole")
    whole, resumed = weights(tmp_path / "whole/model"), weights(tmp_path / "run/model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    train.main(flags(world, tmp_path / "float32", *STAGES))
    losses = [[r["loss"] for r in records(tmp_path / run)] for run in ("whole", "float32")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [[], ["--optimizer", "adamw_bf16", "--recompute", "full", "--update_in_backward",
                                       "--micro_batch", "4"]], ids=["float32", "bfloat16"])
def test_a_deterministic_run_on_a_gpu_resumes_to_the_bit(more, world, tmp_path):
    more = ["--device", "cuda", "--deterministic", *more]
    train.main(flags(world, tmp_path / "whole", *STAGES, more=more))
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(flags(world, tmp_path / "run", *STAGES, more=more)), after=15)
    train.main(["--resume", str(tmp_path / "run")])
    assert exact(tmp_path / "run") == exact(tmp_path / "whole")


def test_a_broken_checkpoint_is_passed_over_by_name(undisturbed, tmp_path, capsys):
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
    assert [p.name for p in checkpoint.find(undisturbed)] == ["03-00000009", "03-00000006"]


def test_resuming_a_finished_run_changes_nothing(world, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes(), weights(undisturbed / "model")
    train.main(["--resume", str(undisturbed)])
    assert (undisturbed / "metrics.jsonl").read_bytes() == before[0]
    assert all(torch.equal(a, weights(undisturbed / "model")[n]) for n, a in before[1].items())


def test_a_second_process_is_turned_away(world, undisturbed):
    with checkpoint.lock(undisturbed), pytest.raises(UserError, match="another process"):
        train.main(["--resume", str(undisturbed)])


def test_a_non_finite_loss_stops_before_the_update_and_names_the_source(world, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    llama = model.load(world / "model")
    model.save(llama, bad)
    tokenizer.save(world / "base.model", bad)
    tensors = weights(bad)
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="stage 1 step 1: loss .* a window of (ko|en)"):
        train.main(flags(world, tmp_path / "run", "full:400:1e-3") + ["--model", str(bad)])
    assert not records(tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bf16"])
def test_a_loss_that_ends_a_run_moves_no_weight(optimizer, world, tmp_path, monkeypatch):
    """The update is queued before the loss is read: it has to know by itself. The third step's norm is infinite."""
    norm, apply, calls, states = train.Updates.norm, train.Updates.apply, [], []

    def weights_of(updates) -> list[torch.Tensor]:
        return [p.detach().clone() for p in updates.llama.parameters()]

    def broken_norm(updates):
        calls.append(1)
        return norm(updates) * (torch.inf if len(calls) == 3 else 1)

    def watched_apply(updates, not_finite):
        states.append(weights_of(updates))
        apply(updates, not_finite)
        states.append(weights_of(updates))
    monkeypatch.setattr(train.Updates, "norm", broken_norm)
    monkeypatch.setattr(train.Updates, "apply", watched_apply)
    with pytest.raises(UserError, match="step 3: .* gradient norm inf"):
        train.main(flags(world, tmp_path / "run", "full:1280:1e-3", more=["--optimizer", optimizer]))
    moved = [any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
             for before, after in zip(states[::2], states[1::2], strict=True)]
    assert moved == [True, True, False]
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2]


def test_a_full_disk_leaves_the_checkpoint_before_it(world, undisturbed, tmp_path):
    """No file may grow past a limit, from the second checkpoint on: the kernel says no, as a full disk does."""
    run, root = tmp_path / "run", Path(train.__file__).parent
    code = f"""
import resource, signal, torch, train
from common import checkpoint, cli
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = checkpoint.dcp.save
def full(state, checkpoint_id, **kwargs):
    if "00000006" in str(checkpoint_id):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return save(state, checkpoint_id=checkpoint_id, **kwargs)
checkpoint.dcp.save = full
cli.run(lambda: train.main({staged(world, run)!r}))"""
    stopped = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120,
                             env={**os.environ, "PYTHONPATH": str(root)})
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr
    assert "cannot write checkpoint" in stopped.stderr and "is the disk full?" in stopped.stderr
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["01-00000003"]
    train.main(["--resume", str(run)])
    assert exact(run) == exact(undisturbed)


@pytest.mark.parametrize("what", ["shards", "model"])
def test_a_changed_input_is_not_gone_on_with(what, world, tmp_path):
    mine = tmp_path / "world"
    shutil.copytree(world, mine)
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(flags(mine, tmp_path / "run", *STAGES)), after=4)
    if what == "shards":
        data.main(["pack", "--input", f"{mine}/en.jsonl", "--tokenizer", f"{mine}/base.model",
                   "--out", f"{mine}/shards/ko"])
    else:
        tensors = weights(mine / "model")
        save_file({n: 2 * t for n, t in tensors.items()}, mine / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is missing, or not what"):
        train.main(["--resume", str(tmp_path / "run")])
