"""common/plan.py: the arithmetic of stages against counts on a real model."""
import json
import random
import resource
import subprocess
import sys
import weakref

import pytest
import torch
from conftest import ROOT, tiny_config

import kernels
import model
from common import parallel, plan
from common.cli import UserError

SOLAR = model.Config(
    vocab_size=32000 + 17072,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=4096,
)

# Variations of conftest's tiny model, whose heads share keys and whose head is not tied.
SHAPES = {
    "grouped": dict(),
    "tied": dict(tie_word_embeddings=True),
    "all heads": dict(num_key_value_heads=4),
    "wide heads": dict(hidden_size=48, head_dim=24, intermediate_size=160, num_key_value_heads=1),
}


def as_a_stage(config, what: str, dtype: torch.dtype, optimizer: str, recompute: str = "none"):
    """A random model, with a LoRA of rank 4 if the stage has one, with frozen parameters and dtypes
    as the stage needs them."""
    master = plan.MASTER[optimizer]
    llama = model.Llama(config)
    if "lora" in what:
        model.add_lora(llama, 4, 4, master)
    for name, p in llama.named_parameters():
        p.requires_grad_(plan.is_trained(name, what))
        p.data = p.data.to(master if p.requires_grad else dtype)
    llama.compute_dtype = dtype
    llama.recompute = recompute
    return llama


def optimizer_of(llama, name: str) -> torch.optim.Optimizer:
    trained = [p for p in llama.parameters() if p.requires_grad]
    if name == "adamw_bf16":
        return kernels.AdamW(trained)
    return torch.optim.AdamW(trained, fused=True)


# ---------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("what, prefixes", [
    ("embed", ("model.embed", "lm_head")),
    ("new_rows", ("model.embed", "lm_head")),
    ("odd", ("model.layers.1.", "model.layers.3.")),
    ("even", ("model.layers.0.", "model.layers.2.")),
    ("body", ("model.layers.", "model.norm")),
    ("full", ("",)),
    ("sft", ("",)),
    ("lora", ("none",)),
    ("odd+embed", ("model.layers.1.", "model.layers.3.", "model.embed", "lm_head")),
])
def test_what_a_stage_trains(what, prefixes):
    for name, _ in model.Llama(tiny_config()).named_parameters():
        assert plan.is_trained(name, what) is name.startswith(prefixes), name


def test_layers_beyond_nine_are_odd_or_even_too():
    assert plan.is_trained("model.layers.11.mlp.up_proj.weight", "odd")
    assert not plan.is_trained("model.layers.10.mlp.up_proj.weight", "odd")


@pytest.mark.parametrize("text, part", [
    ("embed", "what:tokens:peak_lr"),
    ("middle:1M:1e-4", "middle"),
    ("odd:lots:1e-4", "lots"),
    ("odd:1M:2", "rate"),
    ("odd:1M:fast", "rate"),
    ("lora+odd:1M:1e-4", "lora can be combined only with embed"),
    ("new_rows+embed:1M:1e-4", "new_rows keeps"),
    ("odd:0:1e-4", "number of tokens"),
])
def test_a_wrong_stage_is_refused_by_field(text, part):
    with pytest.raises(UserError, match=part):
        plan.parse_stage(text)


# ----------------------------------------------------------------------- parameters and their bytes


@pytest.mark.parametrize("what", ["full", "lora", "lora+embed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_shapes_are_those_of_the_model(what, shape):
    """Also in the model's order: FLOPs of recomputation leave out the last matmul."""
    config = tiny_config(**SHAPES[shape])
    with torch.device("meta"):
        llama = model.Llama(config)
        if "lora" in what:
            model.add_lora(llama, 6, 6)
    expected = [(name, tuple(p.shape)) for name, p in llama.named_parameters()]
    assert list(plan.shapes(config, what, 6).items()) == expected


def test_plan_needs_neither_model_nor_kernels():
    """It is arithmetic: any object with the attributes of config.json is a config."""
    code = """
import json, sys, types
from common import plan
config = types.SimpleNamespace(**json.loads(sys.argv[1]))
print(plan.shapes(config, "full", 1)["lm_head.weight"])
assert not {"model", "kernels"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, json.dumps(vars(tiny_config()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "(512, 32)\n", done.stderr


@pytest.mark.parametrize("what", ["embed", "odd", "lora", "lora+embed", "full"])
@pytest.mark.parametrize("tied, name", [(False, "adamw"), (True, "adamw"), (False, "adamw_bf16")])
def test_bytes_equal_those_of_a_real_step(what, tied, name):
    """Weights, gradients and moments, counted on a model after one step."""
    config = tiny_config(tie_word_embeddings=tied)
    llama = as_a_stage(config, what, torch.float32, name)
    optimizer = optimizer_of(llama, name)
    tokens = torch.randint(0, 512, (1, 9))
    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    optimizer.step()

    cost = plan.cost(config, plan.Stage(what, 1, 1e-3), 4, 8, torch.float32, name)
    gradients = [p.grad for p in llama.parameters() if p.grad is not None]
    moments = []
    for state in optimizer.state.values():
        moments += [t for t in state.values() if t.dim()]
    assert cost["weights"] == sum(p.nbytes for p in llama.parameters())
    assert cost["gradients"] == sum(gradient.nbytes for gradient in gradients)
    assert cost["optimizer"] == sum(moment.nbytes for moment in moments)


@pytest.mark.parametrize("what, optimizer", [
    ("full", "adamw"),
    ("lora", "adamw_bf16"),
    ("odd+embed", "adamw"),
])
@pytest.mark.parametrize("processes, tied", [(2, False), (3, True)])
def test_bytes_of_one_of_several_processes(what, optimizer, processes, tied, monkeypatch):
    """Rank 0 of several, alone: the others are PyTorch's fake process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(parallel.dist, "get_backend", lambda *_: "gloo")
    store = FakeStore()
    torch.distributed.init_process_group("fake", store=store, rank=0, world_size=processes)
    try:
        vocabulary = 510 if tied else 511
        config = tiny_config(
            tie_word_embeddings=tied, vocab_size=vocabulary, intermediate_size=50
        )
        llama = as_a_stage(config, what, torch.bfloat16, optimizer)
        parallel.shard(llama, torch.bfloat16)
        cost = plan.cost(
            config,
            plan.Stage(what, 1, 1e-3),
            4,
            8,
            torch.bfloat16,
            optimizer,
            world_size=processes,
        )
        trained = [parallel.local(p).nbytes for p in llama.parameters() if p.requires_grad]
        assert cost["weights"] == sum(parallel.local(p).nbytes for p in llama.parameters())
        assert cost["gradients"] == sum(trained)
        assert cost["optimizer"] == 2 * sum(trained)
        # Groups larger than a block: the head with its norm, or, if tied, both tables with it.
        assert cost["gathered"] == 2 * (vocabulary * 32 + 32)
    finally:
        torch.distributed.destroy_process_group()


def test_a_block_is_gathered_if_it_is_the_largest_group():
    deep = tiny_config(vocab_size=16)
    cost = plan.cost(deep, plan.Stage("full", 1, 1e-3), 4, 8, torch.float32, world_size=2)
    one_block = model.Llama(deep).model.layers[0]
    assert cost["gathered"] == 4 * sum(p.numel() for p in one_block.parameters())


# -------------------------------------------------------------------------------------- activations


class Kept:
    """What autograd holds instead of a tensor; it lives as long as the graph."""
    def __init__(self, tensor):
        self.tensor = tensor


def saved_bytes(llama, *part) -> int:
    """Bytes kept alive by the graph of a forward pass: unique storages, without parameters."""
    held = []

    def pack(tensor):
        kept = Kept(tensor)
        held.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss, _ = llama(*part)

    # The loss keeps the graph alive while its storages are counted.
    parameters = {p.untyped_storage().data_ptr() for p in llama.parameters()}
    bytes_of = {}
    for reference in held:
        kept = reference()
        if kept is not None:
            storage = kept.tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                bytes_of[storage.data_ptr()] = storage.nbytes()
    assert loss.requires_grad
    return sum(bytes_of.values())


@pytest.mark.parametrize("recompute", ["none", "attention", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["embed", "odd", "even", "body", "lora", "full", "lora+embed"])
def test_activations_are_those_that_autograd_saves(what, dtype, recompute):
    """To the byte, except for token ids and RoPE's tables, which plan.py always counts and not
    every graph holds."""
    for shape in SHAPES.values():
        config = tiny_config(**shape)
        windows, width = random.choice([(3, 16), (1, 64), (2, 33)])
        optimizer = random.choice(list(plan.MASTER))
        batch = torch.randint(0, 512, (windows, width + 1))
        llama = as_a_stage(config, what, dtype, optimizer, recompute)
        measured = saved_bytes(llama, batch[:, :-1], batch[:, 1:])

        # The loss's own tensors are under `loss` in the plan: dh and, if the head is trained, dW.
        of_the_loss = windows * width * config.hidden_size * dtype.itemsize
        if plan.is_trained("lm_head.weight", what):
            of_the_loss += 4 * config.vocab_size * config.hidden_size
        step = plan.Step(width, dtype, optimizer, windows, recompute=recompute)
        planned = plan.activations(config, what, 4, step)["activations"] + of_the_loss

        slack = batch.nbytes + 4 * 64 * config.head_dim
        assert 0 <= planned - measured <= slack, (shape, optimizer, planned, measured)
        assert planned <= 1.1 * measured + slack


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_on_a_gpu_attention_is_not_copied_before_its_last_matmul():
    """Triton's RoPE keeps the layout of a head's rows, and so does attention; the interpreter shows
    the layout."""
    pytest.importorskip("triton")
    config = tiny_config(num_hidden_layers=1)
    tokens = torch.randint(0, 512, (1, 17))
    llama = as_a_stage(config, "full", torch.float32, "adamw")
    kernels.use("triton")
    try:
        measured = saved_bytes(llama, tokens[:, :-1], tokens[:, 1:])
    finally:
        kernels.use("auto")
    step = plan.Step(16, torch.float32, device="cuda")
    of_the_loss = 4 * 32 * (16 + 512)
    assert measured == plan.activations(config, "full", 4, step)["activations"] + of_the_loss


def test_a_block_by_hand():
    """The example in plan.py's docstring: layer 2 of SOLAR is frozen, and layer 1 below it is
    trained."""
    matrices = plan.layer_matrices(SOLAR, "odd", 0, layer=2)
    step = plan.Step(1, torch.bfloat16, device="cuda")
    kept = plan.block_activations(SOLAR, matrices, rank=0, trained_below=True, step=step)
    assert kept == (28_804, 65_540)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_trained", [False, True])
def test_chunks_of_logits_are_those_of_the_loss(device, dtype, is_trained):
    chunk_budget = sys.modules["kernels.loss"].chunk_budget
    for config in (tiny_config(), SOLAR):
        step = plan.Step(64, dtype, device=device)
        expected = chunk_budget(
            device, config.vocab_size, config.hidden_size, dtype.itemsize, is_trained
        )
        assert plan.logit_bytes(config, is_trained, step) == expected


# ----------------------------------------------------------------------------------------- the peak


def measured_peak(
    config, what, optimizer, dtype, recompute, windows, width, accumulation, document_mask=False
) -> int:
    """The peak of PyTorch's allocator, from its own record, during the second of two steps."""
    from torch.profiler import ProfilerActivity, profile, record_function
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        llama = as_a_stage(config, what, dtype, optimizer, recompute)
        adamw = optimizer_of(llama, optimizer)
        for step in range(2):
            with record_function(f"step {step}"):
                for _ in range(accumulation):
                    tokens = torch.randint(0, 512, (windows, width + 1))
                    part = [tokens[:, :-1], tokens[:, 1:]]
                    if document_mask:
                        part.append(model.find_documents(part[0], bos=1))
                    llama(*part)[0].backward()
            adamw.step()
            adamw.zero_grad()

    events = record.profiler.kineto_results.events()
    second_step, = [event for event in events if event.name() == "step 1"]
    start = second_step.start_ns()
    end = start + second_step.duration_ns()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = 0
    peak = 0
    for time, change in sorted(changes):
        held += change
        if start <= time <= end:
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("what, optimizer, dtype, recompute, vocabulary", [
    ("full", "adamw", torch.float32, "none", 1024),
    ("full", "adamw_bf16", torch.bfloat16, "attention", 2048),
    ("embed", "adamw", torch.float32, "full", 512),
    ("odd", "adamw", torch.bfloat16, "full", 512),
    ("lora", "adamw", torch.bfloat16, "none", 2048),
])
def test_peak_of_a_step(what, optimizer, dtype, recompute, vocabulary, accumulation):
    config = tiny_config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        head_dim=32,
        max_position_embeddings=128,
    )
    measured = measured_peak(config, what, optimizer, dtype, recompute, 4, 128, accumulation)
    cost = plan.cost(
        config,
        plan.Stage(what, 1, 1e-3),
        4,
        128,
        dtype,
        optimizer,
        micro_batch=4,
        accumulation=accumulation,
        recompute=recompute,
    )
    assert abs(cost["peak"] / measured - 1) < 0.1, (measured, cost)


@pytest.mark.gpu
@pytest.mark.parametrize("what, optimizer, recompute", [
    ("full", "adamw", "none"),
    ("odd", "adamw", "attention"),
    ("lora", "adamw_bf16", "none"),
    ("embed", "adamw_bf16", "full"),
    ("full", "adamw_bf16", "full"),
])
def test_peak_of_a_step_on_a_gpu(what, optimizer, recompute):
    """Against the allocator's own record, minus cuBLAS's workspace and what other tests left."""
    config = model.Config(
        vocab_size=16384,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=1024,
    )
    kernels.use("auto", "cuda")
    # A matmul forward and backward: cuBLAS's workspaces of this thread and of autograd's.
    square = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    (square @ square).sum().backward()
    del square
    before = torch.cuda.memory_allocated()

    llama = as_a_stage(config, what, torch.bfloat16, optimizer, recompute).to("cuda")
    trained = [p for p in llama.parameters() if p.requires_grad]
    adamw = optimizer_of(llama, optimizer)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        tokens = torch.randint(0, config.vocab_size, (8, 1025), device="cuda")
        llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
    measured = torch.cuda.max_memory_allocated() - before
    cost = plan.cost(
        config,
        plan.Stage(what, 1, 1e-3),
        4,
        1024,
        torch.bfloat16,
        optimizer,
        micro_batch=8,
        recompute=recompute,
        device="cuda",
    )
    assert abs(cost["peak"] / measured - 1) < 0.1, (measured, cost)


def test_every_stage_of_solar_fits_80_gb():
    def peak(what):
        stage = plan.Stage(what, 1, 1e-4)
        how = dict(device="cuda", recompute="full")
        return plan.cost(SOLAR, stage, 128, 4096, torch.bfloat16, "adamw_bf16", **how)["peak"]

    for what in ("embed", "odd", "even", "lora", "lora+embed"):
        assert peak(what) < 80e9, what
    assert peak("full") > 80e9


def test_a_70b_shape_is_planned_without_memory():
    config = model.Config(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = plan.table(
        config,
        [plan.Stage("full", 10**9, 1e-4)],
        256,
        8192,
        torch.bfloat16,
        "adamw_bf16",
        world_size=8,
        accumulation=4,
        recompute="full",
        device="cuda",
    )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # kilobytes; the model's tables alone take gigabytes

    lines = text.split("\n")
    assert "70,553,706,496" in lines[1]
    names = lines[3].removeprefix("GB per process").split()
    numbers = [float(figure) for figure in lines[4].split()[1:]]
    held = dict(zip(names, numbers, strict=True))
    assert held["weights"] == pytest.approx(70.554 * 2 / 8, abs=2e-3)
    # The head and the final norm, which are larger than a block.
    assert held["gathered"] == pytest.approx(2 * 128257 * 8192 / 1e9, abs=1e-3)
    parts = ["weights", "gathered", "optimizer", "gradients", "activations"]
    total = sum(held[name] for name in parts) + max(held["loss"], held["block"])
    assert held["peak"] == pytest.approx(total, abs=5e-3)  # to the printed precision
    assert "8 processes x 4 micro-batches x 1 windows x 8,192 = 262,144 tokens" in lines[-1]


def test_lora_share_of_solar_is_the_papers():
    cost = plan.cost(SOLAR, plan.Stage("lora", 1, 1e-4), 128, 4096, torch.bfloat16)
    assert 0.044 < cost["share"] < 0.047


# -------------------------------------------------------------------------------------------- FLOPs


def test_flops_of_a_full_stage_are_six_a_parameter_plus_attention():
    elements = 0
    for name, shape in plan.shapes(SOLAR, "full", 1).items():
        if len(shape) == 2 and "embed" not in name:
            elements += shape[0] * shape[1]
    attention = 6 * 48 * 4096 * 4096
    assert plan.flops_per_token(SOLAR, "full", 1, 4096) == 6 * elements + attention


def flops_of_addmm(total: tuple, a: tuple, b: tuple, **others) -> int:
    """For torch's counter, which does not know the in-place matmul (addmm_)."""
    return 2 * a[0] * a[1] * b[1]


def counted_flops(llama, tokens, monkeypatch) -> int:
    """The matmuls that a forward and backward pass really runs, by torch's own counter. Attention
    is not included: the counter does not know its fused operation on a CPU."""
    from torch.utils.flop_counter import FlopCounterMode
    loss = sys.modules["kernels.loss"]  # its registered operation is opaque to the counter
    monkeypatch.setattr(loss, "_operation", loss.loss_and_gradients)
    mapping = {torch.ops.aten.addmm_: flops_of_addmm}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    return sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if "mm" in str(operation)
    )


@pytest.mark.parametrize("what", ["embed", "body", "full"])
def test_flops_of_a_step_counted_by_pytorch(what, monkeypatch):
    config = tiny_config(num_hidden_layers=2)
    llama = as_a_stage(config, what, torch.float32, "adamw")
    tokens = torch.randint(0, 512, (2, 33))
    counted = counted_flops(llama, tokens, monkeypatch) / 64
    attention = 6 * 2 * 32 * 32  # layers × T × H·E, per token, forward and backward
    planned = plan.flops_per_token(config, what, 1, 32) - attention
    if what == "body":
        # The lowest layer's first matmuls need no gradient of their input: an upper bound.
        assert counted <= planned <= 1.1 * counted
    else:
        assert counted == planned


@pytest.mark.parametrize("what", ["embed", "odd", "lora", "full"])
def test_flops_of_what_is_recomputed(what, monkeypatch):
    """The matmuls that a step really runs, with and without recomputation."""
    config = tiny_config()
    tokens = torch.randint(0, 512, (2, 33))
    counted = {}
    planned = {}
    for recompute in ("none", "attention", "full"):
        llama = as_a_stage(config, what, torch.float32, "adamw", recompute)
        counted[recompute] = counted_flops(llama, tokens, monkeypatch) / 64
        planned[recompute] = plan.flops_per_token(config, what, 4, 32, recompute)

    layers = 3 if what == "odd" else 4  # layer 0 is below everything that odd trains
    scores = 2 * 32 * 32                # 2 × T × H·E
    for recompute in ("attention", "full"):
        extra = counted[recompute] - counted["none"]
        assert extra > 0
        assert planned[recompute] - planned["none"] == extra + layers * scores
