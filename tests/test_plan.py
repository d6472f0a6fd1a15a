"""common/plan.py: the arithmetic of stages against counting on a real model."""
import random
import resource
import sys
import weakref

import pytest
import torch
from conftest import tiny_config

import kernels
import model
import train
from common import parallel, plan
from common.cli import UserError

SOLAR = model.Config(vocab_size=32000 + 17072, hidden_size=4096, intermediate_size=14336, num_hidden_layers=48,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=4096)


@pytest.mark.parametrize("what, prefix", [
    ("embed", ("model.embed", "lm_head")), ("new_rows", ("model.embed", "lm_head")),
    ("odd", ("model.layers.1.", "model.layers.3.")), ("even", ("model.layers.0.", "model.layers.2.")),
    ("body", ("model.layers.", "model.norm")), ("full", ("",)), ("lora", ("none",)),
    ("odd+embed", ("model.layers.1.", "model.layers.3.", "model.embed", "lm_head"))])
def test_what_a_stage_trains(what, prefix):
    for name, _ in model.Llama(tiny_config()).named_parameters():
        assert bool(plan.is_trained(name, what)) == name.startswith(prefix), name


def test_layers_beyond_nine_are_odd_or_even_too():
    assert plan.is_trained("model.layers.11.mlp.up_proj.weight", "odd")
    assert not plan.is_trained("model.layers.10.mlp.up_proj.weight", "odd")


def as_a_stage(config, what: str, dtype: torch.dtype, optimizer: str, recompute: str = "none"):
    """A random model with a LoRA of rank 4 where one belongs, frozen and in the types that the stage wants."""
    llama, master = model.Llama(config), plan.MASTER[optimizer]
    if "lora" in what:
        model.add_lora(llama, 4, 4, master)
    for name, p in llama.named_parameters():
        p.requires_grad_(bool(plan.is_trained(name, what)))
        p.data = p.data.to(master if p.requires_grad else dtype)
    llama.compute_dtype, llama.recompute = dtype, recompute
    return llama


def optimizer_of(llama, name: str):
    trained = [p for p in llama.parameters() if p.requires_grad]
    return kernels.AdamW(trained) if name == "adamw_bf16" else torch.optim.AdamW(trained, fused=True)


@pytest.mark.parametrize("what", ["embed", "odd", "lora", "lora+embed", "full"])
@pytest.mark.parametrize("tied, name", [(False, "adamw"), (True, "adamw"), (False, "adamw_bf16")])
def test_bytes_equal_those_of_a_real_step(what, tied, name):
    """Weights, gradients and moments, counted on a model that has taken a step."""
    config = tiny_config(tie_word_embeddings=tied)
    llama = as_a_stage(config, what, torch.float32, name)
    optimizer = optimizer_of(llama, name)
    tokens = torch.randint(0, 512, (1, 9))
    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    optimizer.step()
    cost = plan.cost(config, plan.Stage(what, 1, 1e-3), 4, 8, torch.float32, name)
    assert cost["weights"] == sum(p.nbytes for p in llama.parameters())
    assert cost["gradients"] == sum(p.grad.nbytes for p in llama.parameters() if p.grad is not None)
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert cost["optimizer"] == sum(t.nbytes for t in moments)


@pytest.mark.parametrize("what, optimizer", [("full", "adamw"), ("lora", "adamw_bf16"), ("odd+embed", "adamw")])
@pytest.mark.parametrize("processes, tied", [(2, False), (3, True)])
def test_bytes_of_one_of_several_processes(what, optimizer, processes, tied, monkeypatch):
    """The first of so many, alone: the others are PyTorch's fake process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(parallel.dist, "get_backend", lambda *_: "gloo")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        config = tiny_config(tie_word_embeddings=tied, vocab_size=510 if tied else 511, intermediate_size=50)
        llama = as_a_stage(config, what, torch.bfloat16, optimizer)
        parallel.shard(llama, torch.bfloat16)
        cost = plan.cost(config, plan.Stage(what, 1, 1e-3), 4, 8, torch.bfloat16, optimizer, world_size=processes)
        assert cost["weights"] == sum(parallel.local(p).nbytes for p in llama.parameters())
        trained = [parallel.local(p).nbytes for p in llama.parameters() if p.requires_grad]
        assert (cost["gradients"], cost["optimizer"]) == (sum(trained), 2 * sum(trained))
        ends = 511 * 32 if not tied else 510 * 32 + 32  # above a block's: the head with its norm, or all ends in one
        assert cost["gathered"] == 2 * (ends + 32 * (not tied))
    finally:
        torch.distributed.destroy_process_group()


class Kept:
    """What autograd holds in place of a tensor; it lives as long as the graph does."""
    def __init__(self, tensor):
        self.tensor = tensor


def saved_bytes(llama, tokens, targets) -> int:
    """Bytes that the graph of a forward pass keeps alive: unique storages, parameters excluded."""
    held = []

    def pack(tensor):
        kept = Kept(tensor)
        held.append(weakref.ref(kept))
        return kept
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss, _ = llama(tokens, targets)
    storages = [kept().tensor.untyped_storage() for kept in held if kept() is not None]  # the loss is alive until here
    assert loss.requires_grad
    parameters = {p.untyped_storage().data_ptr() for p in llama.parameters()}
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in parameters}.values())


SHAPES = {"grouped": dict(), "tied": dict(tie_word_embeddings=True), "all heads": dict(num_key_value_heads=4),
          "wide heads": dict(hidden_size=48, head_dim=24, intermediate_size=160, num_key_value_heads=1)}


@pytest.mark.parametrize("recompute", ["none", "attention", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["embed", "odd", "even", "body", "lora", "full", "lora+embed"])
def test_activations_are_those_that_autograd_saves(what, dtype, recompute):
    """To the byte, but for token ids and RoPE's tables, which plan.py always counts and not every graph holds."""
    for shape in SHAPES.values():
        config, (rows, width) = tiny_config(**shape), random.choice([(3, 16), (1, 64), (2, 33)])
        optimizer = random.choice(list(plan.MASTER))
        batch = torch.randint(0, 512, (rows, width + 1))
        measured = saved_bytes(as_a_stage(config, what, dtype, optimizer, recompute), batch[:, :-1], batch[:, 1:])
        step = plan.Step(width, dtype, optimizer, rows, recompute=recompute)
        head = 4 * config.vocab_size * config.hidden_size * bool(plan.is_trained(plan.TABLES[0], what))
        of_the_loss = rows * width * config.hidden_size * dtype.itemsize + head
        slack = batch.nbytes + 2 * 4 * 64 * config.head_dim // 2
        planned = plan.activations(config, what, 4, step)["activations"] + of_the_loss
        assert 0 <= planned - measured <= slack, (shape, optimizer, planned, measured)
        assert planned <= 1.1 * measured + slack


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_on_a_gpu_attention_is_not_copied_before_its_last_product():
    """Triton's RoPE leaves a head's rows where they are, and so does attention; the interpreter shows the layout."""
    pytest.importorskip("triton")
    config, tokens = tiny_config(num_hidden_layers=1), torch.randint(0, 512, (1, 17))
    llama = as_a_stage(config, "full", torch.float32, "adamw")
    kernels.use("triton")
    try:
        measured = saved_bytes(llama, tokens[:, :-1], tokens[:, 1:])
    finally:
        kernels.use("auto")
    step = plan.Step(16, torch.float32, device="cuda")
    assert measured == plan.activations(config, "full", 4, step)["activations"] + 4 * 32 * (16 + 512)


def measured_peak(config, what, optimizer, dtype, recompute, rows, width, accumulation) -> int:
    """The most that PyTorch's allocator had given out, from its own record, over the second of two steps."""
    from torch.profiler import ProfilerActivity, profile, record_function
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        llama = as_a_stage(config, what, dtype, optimizer, recompute)
        adamw = optimizer_of(llama, optimizer)
        for step in range(2):
            with record_function(f"step {step}"):
                for _ in range(accumulation):
                    tokens = torch.randint(0, 512, (rows, width + 1))
                    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
            adamw.step()
            adamw.zero_grad()
    events = record.profiler.kineto_results.events()
    (start, end), = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == "step 1"]
    held = peak = 0
    for time, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += size
        peak = max(peak, held) if start <= time <= end else peak
    return peak


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("what, optimizer, dtype, recompute, vocabulary", [
    ("full", "adamw", torch.float32, "none", 1024), ("full", "adamw_bf16", torch.bfloat16, "attention", 2048),
    ("embed", "adamw", torch.float32, "full", 512), ("odd", "adamw", torch.bfloat16, "full", 512),
    ("lora", "adamw", torch.bfloat16, "none", 2048)])
def test_peak_of_a_step(what, optimizer, dtype, recompute, vocabulary, accumulation):
    config = tiny_config(vocab_size=vocabulary, hidden_size=128, intermediate_size=384, head_dim=32,
                         max_position_embeddings=128)
    measured = measured_peak(config, what, optimizer, dtype, recompute, 4, 128, accumulation)
    cost = plan.cost(config, plan.Stage(what, 1, 1e-3), 4, 128, dtype, optimizer, micro_batch=4,
                     accumulation=accumulation, recompute=recompute)
    assert abs(cost["peak"] / measured - 1) < 0.1, cost


@pytest.mark.gpu
@pytest.mark.parametrize("what, optimizer, recompute", [
    ("full", "adamw", "none"), ("odd", "adamw", "attention"), ("lora", "adamw_bf16", "none"),
    ("embed", "adamw_bf16", "full"), ("full", "adamw_bf16", "full")])
def test_peak_of_a_step_on_a_gpu(what, optimizer, recompute):
    """Against the allocator's own record, cuBLAS's workspace and what other tests left apart."""
    config = model.Config(vocab_size=16384, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
                          num_attention_heads=8, num_key_value_heads=4, head_dim=128, max_position_embeddings=1024)
    kernels.use("auto", "cuda")
    square = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    (square @ square).sum().backward()  # this thread's workspace of cuBLAS, and the one of autograd's thread
    del square
    before = torch.cuda.memory_allocated()
    llama = as_a_stage(config, what, torch.bfloat16, optimizer, recompute).to("cuda")
    trained, updater = [p for p in llama.parameters() if p.requires_grad], optimizer_of(llama, optimizer)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        tokens = torch.randint(0, config.vocab_size, (8, 1025), device="cuda")
        llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
        norm = train.gradient_norm(trained)
        torch.nn.utils.clip_grads_with_norm_(trained, 1.0, norm)
        updater.found_inf = (~norm.isfinite()).float()
        updater.step()
        updater.zero_grad(set_to_none=True)
    measured = torch.cuda.max_memory_allocated() - before
    cost = plan.cost(config, plan.Stage(what, 1, 1e-3), 4, 1024, torch.bfloat16, optimizer, micro_batch=8,
                     recompute=recompute, device="cuda")
    assert abs(cost["peak"] / measured - 1) < 0.1, (measured, cost)


def test_every_stage_of_solar_fits_80_gb():
    how = dict(dtype=torch.bfloat16, optimizer="adamw_bf16", device="cuda", recompute="full")
    for what in ("embed", "odd", "even", "lora", "lora+embed"):
        assert plan.cost(SOLAR, plan.Stage(what, 1, 1e-4), 128, 4096, **how)["peak"] < 80e9
    assert plan.cost(SOLAR, plan.Stage("full", 1, 1e-4), 128, 4096, **how)["peak"] > 80e9


def test_a_70b_shape_is_planned_without_memory():
    config = model.Config(vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                          num_attention_heads=64, num_key_value_heads=8, head_dim=128, max_position_embeddings=8192)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = plan.table(config, [plan.Stage("full", 10**9, 1e-4)], 256, 8192, torch.bfloat16, "adamw_bf16",
                       world_size=8, accumulation=4, recompute="full", device="cuda").split("\n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes; the tables alone are GB
    assert "70,553,706,496" in lines[1]
    names, numbers = lines[3].split()[3:], [float(x) for x in lines[4].split()[1:]]
    held = dict(zip(names, numbers, strict=True))
    assert held["weights"] == pytest.approx(70.554 * 2 / 8, abs=2e-3)
    assert held["gathered"] == pytest.approx(2 * 128257 * 8192 / 1e9, abs=1e-3)      # head and norm, above a block
    parts = [held[name] for name in ("weights", "gathered", "optimizer", "gradients", "activations")]
    assert held["peak"] == pytest.approx(sum(parts) + max(held["loss"], held["block"]), abs=5e-3)  # as it is printed
    assert "8 processes x 4 micro-batches x 1 windows x 8,192 = 262,144 tokens" in lines[-1]


def test_lora_share_of_solar_is_the_papers():
    assert 0.044 < plan.cost(SOLAR, plan.Stage("lora", 1, 1e-4), 128, 4096, torch.bfloat16)["share"] < 0.047


def test_flops_of_a_full_stage_are_six_a_parameter_plus_attention():
    shapes = plan.shapes(SOLAR, "full", 1).items()
    n = sum(torch.Size(s).numel() for name, s in shapes if len(s) == 2 and "embed" not in name)
    assert plan.flops_per_token(SOLAR, "full", 1, 4096) == 6 * n + 6 * 48 * 4096 * 4096


def test_flops_of_a_step_counted_by_pytorch(monkeypatch):
    """torch's own counter sees every matrix product that a step really runs (attention apart: a fused operation)."""
    from torch.utils.flop_counter import FlopCounterMode
    head = sys.modules["kernels.loss"]  # its registered operation is opaque to the counter
    monkeypatch.setattr(head, "_operation", head.loss_and_gradients)
    monkeypatch.setattr(sys.modules["kernels.linear"], "ONEDNN", False)  # its product is not in the counter's list
    config = tiny_config(num_hidden_layers=2)
    for what in ("embed", "body", "full"):
        llama = model.Llama(config)
        for name, p in llama.named_parameters():
            p.requires_grad_(bool(plan.is_trained(name, what)))
        tokens = torch.randint(0, 512, (2, 33))
        with FlopCounterMode(display=False) as counter:
            llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
        products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
        attention = 6 * 2 * 32 * 32  # layers × T × H·E, per token, forward and backward
        expected = plan.flops_per_token(config, what, 1, 32) - attention
        if what == "body":  # the lowest layer's first products need no gradient of their input: ours is an upper bound
            assert products / 64 <= expected <= 1.1 * products / 64
        else:  # the head's weight gradient is accumulated in place (addmm_), which torch's counter does not know
            assert products / 64 + 2 * 512 * 32 == expected, what


@pytest.mark.parametrize("what", ["embed", "odd", "lora", "full"])
def test_flops_of_what_is_computed_again(what, monkeypatch):
    """The products that a step really runs, with and without: torch's counter sees them all but attention itself, once
    it is told of the product that adds in place."""
    from torch.utils.flop_counter import FlopCounterMode
    head = sys.modules["kernels.loss"]
    monkeypatch.setattr(head, "_operation", head.loss_and_gradients)
    monkeypatch.setattr(sys.modules["kernels.linear"], "ONEDNN", False)
    tokens, scores, counted, planned = torch.randint(0, 512, (2, 33)), 2 * 32 * 32, {}, {}  # T × H·E

    def flops_of_addmm(total: tuple, a: tuple, b: tuple, **others) -> int:
        return 2 * a[0] * a[1] * b[1]

    for recompute in ("none", "attention", "full"):
        llama = as_a_stage(tiny_config(), what, torch.float32, "adamw", recompute)
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: flops_of_addmm}) as counter:
            llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
        counted[recompute] = counter.get_total_flops() / 64
        planned[recompute] = plan.flops_per_token(tiny_config(), what, 4, 32, recompute)
    layers = 3 if what == "odd" else 4  # layer 0 is below everything that odd trains
    for recompute in ("attention", "full"):
        extra = counted[recompute] - counted["none"]
        assert extra and planned[recompute] - planned["none"] == extra + layers * scores
    assert plan.flops_per_token(tiny_config(), what, 4, 32, True) == planned["full"]


@pytest.mark.parametrize("text, part", [
    ("embed", "what:tokens:peak_lr"), ("middle:1M:1e-4", "middle"), ("odd:lots:1e-4", "lots"), ("odd:1M:2", "rate"),
    ("lora+odd:1M:1e-4", "lora joins only"), ("odd:0:1e-4", "number of tokens")])
def test_a_wrong_stage_is_refused_by_field(text, part):
    with pytest.raises(UserError, match=part):
        plan.parse_stage(text)
