"""kernels/: both implementations against their definitions in float64, and what they promise about memory.

Without a GPU the Triton kernels run in Triton's interpreter, in numpy; tests marked `gpu` run them for real. Inputs are
fresh in every run (a failure prints its seed), lie between NaNs, and outputs start as NaN.
"""
import importlib
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
import model
from common import parallel, plan
from common.cli import UserError

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["norm", "rotary", "activation", "loss", "adamw", "linear"]
norm, rotary, activation, lce, adamw, linear = (importlib.import_module(f"kernels.{name}") for name in MODULES)
launch = importlib.import_module("kernels.launch")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
IMPLEMENTATIONS = ["torch", pytest.param("triton", marks=[
    pytest.mark.skipif(launch.triton is None, reason="triton is not installed")])]
CASES = {  # name → shapes of the inputs for a width n, and how the operation is called, all outputs as one list
    "rms_norm": (lambda n: [(2, 5, n), (n,)], lambda f, x, w: [f(x, w, 1e-5)]),
    "add_rms_norm": (lambda n: [(2, 5, n), (2, 5, n), (n,)], lambda f, x, r, w: list(f(x, r, w, 1e-5))),
    "rope": (lambda n: [(2, 4, 7, 2 * n), (2, 2, 7, 2 * n)], lambda f, q, k: list(f(q, k, *tables(q)))),
    "swiglu": (lambda n: [(3, 5, n), (3, 5, n)], lambda f, g, u: [f(g, u)]),
    "linear_cross_entropy": (lambda n: [(9, 6), (n + 1, 6)], lambda f, h, w: [f(h, w, targets(w))[0]]),
}
WIDTHS = [3, 16, 100, 257]


def tables(q):
    """cos and sin of seven positions for the heads of q."""
    half = q.shape[-1] // 2
    angles = torch.outer(torch.arange(7), 1 + torch.arange(half) / half).to(q.device)
    return angles.cos(), angles.sin()


def targets(weight):
    """Nine classes of the head's, two of them masked."""
    chosen = torch.arange(9, device=weight.device) * 7 % len(weight)
    return chosen.where(chosen.new_tensor([1, 1, 0, 1, 1, 1, 0, 1, 1]) == 1, -100)


@pytest.fixture(autouse=True)
def fresh_inputs_and_poisoned_outputs(capsys):
    """A new seed for every test, printed where one fails; torch.empty gives NaN; the choice is undone."""
    seed = torch.seed() % 2**32
    torch.manual_seed(seed)
    print(f"seed {seed}")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    kernels.use("auto", DEVICE)


def between_nans(shape, dtype):
    """Random values whose neighbours in memory, before and after each row, are NaN."""
    wide = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=dtype, device=DEVICE)
    wide[..., 1:-2] = torch.randn(shape).to(dtype)
    return wide[..., 1:-2]


def run(function, call, inputs, dtype, upstream):
    """Outputs, and the gradients of Σ output · upstream, as a list."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    outputs = call(function, *inputs)
    total = sum((y * g.to(y.dtype)).sum() for y, g in zip(outputs, upstream, strict=True))
    return [y.detach() for y in outputs], list(torch.autograd.grad(total, inputs))


def setting(name, width, dtype):
    shapes, call = CASES[name]
    inputs = [between_nans(shape, dtype) for shape in shapes(width)]
    reference = getattr(kernels, name + "_reference")
    upstream = [torch.randn_like(y) for y in call(reference, *inputs)]
    return getattr(kernels, name), reference, call, inputs, upstream


def assert_rule(got, peer, true, eps):
    """DESIGN's rule: the error against float64 is at most the definition's own in that dtype, plus a small constant."""
    for a, b, exact in zip(got, peer, true, strict=True):
        assert a.dtype == b.dtype and a.shape == exact.shape
        assert (a - exact).abs().max() <= (b - exact).abs().max() + 4 * eps * max(1, exact.abs().max())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_close_to_float64_as_the_definition(name, choice, width):
    fused, reference, call, inputs, upstream = setting(name, width, torch.float32)
    exact = run(reference, call, inputs, torch.float64, upstream)
    peer = run(reference, call, inputs, torch.float32, upstream)
    kernels.use(choice, DEVICE)
    ours = run(fused, call, inputs, torch.float32, upstream)
    for got, their, true in zip(ours, peer, exact, strict=True):
        assert_rule(got, their, true, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_rows_of_one(name, choice):
    """RMSNorm's gradient is a difference of equal numbers there, so the error is compared with those, not with it."""
    fused, reference, call, inputs, upstream = setting(name, 1, torch.float32)
    exact = run(reference, call, inputs, torch.float64, upstream)
    kernels.use(choice, DEVICE)
    ours = run(fused, call, inputs, torch.float32, upstream)
    for got, true in zip([*ours[0], *ours[1]], [*exact[0], *exact[1]], strict=True):
        torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=1e-3)


def low_precision(name, choice, width, dtype, steps):
    """Every output and gradient within `steps` units in the last place of the exact value, rounding included."""
    fused, reference, call, inputs, upstream = setting(name, width, dtype)
    kernels.use(choice, DEVICE)
    got = run(fused, call, inputs, dtype, upstream)
    if name == "add_rms_norm":  # the norm is of the stream as it was rounded; compare it with the norm of just that
        (_, stream), _ = got
        assert ((stream - (inputs[0].double() + inputs[1])).abs() <= steps * ulp(stream)).all()
        exact, grads = run(kernels.rms_norm_reference, CASES["rms_norm"][1], [stream, inputs[2]], torch.float64,
                           upstream[:1])
        true = [*exact, stream, grads[0] + upstream[1].double(), grads[0] + upstream[1].double(), grads[1]]
    else:
        true = [x for part in run(reference, call, inputs, torch.float64, upstream) for x in part]
    for a, exact in zip([x for part in got for x in part], true, strict=True):
        slack = 2e-6 * exact.abs().max()  # float32 sums of terms that cancel
        assert ((a - exact).abs() <= steps * ulp(exact.to(dtype)) + slack).all()


def ulp(x: torch.Tensor) -> torch.Tensor:
    """The distance from |x| to the next number of its dtype, in float64."""
    up = (x.abs().view(torch.int16) + 1).view(x.dtype)
    return up.double() - x.abs().double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [3, 100])
@pytest.mark.parametrize("name", [n for n in CASES if n != "linear_cross_entropy"])
def test_low_precision_within_one_ulp(name, width, dtype):
    """The interpreter cuts bfloat16 off where a GPU rounds: one unit in the last place."""
    low_precision(name, "triton", width, dtype, 1)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.gpu), torch.float16])
@pytest.mark.parametrize("width", [3, 100, 2048])
@pytest.mark.parametrize("name", [n for n in CASES if n != "linear_cross_entropy"])
def test_low_precision_is_rounded_once(name, width, dtype):
    """Half a unit in the last place is what one rounding costs; a second one would show."""
    low_precision(name, "triton", width, dtype, 0.501)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_low_precision_loss_is_as_close_as_the_definition(choice, dtype):
    """Logits are rounded to the dtype here as there, so the rule is the definition's error, not one rounding."""
    fused, reference, call, inputs, upstream = setting("linear_cross_entropy", 300, dtype)
    exact = run(reference, call, inputs, torch.float64, upstream)
    peer = run(reference, call, inputs, dtype, upstream)
    kernels.use(choice, DEVICE)
    for got, their, true in zip(run(fused, call, inputs, dtype, upstream), peer, exact, strict=True):
        assert_rule(got, their, true, torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", CASES)
def test_definitions_pass_gradcheck(name):
    shapes, call = CASES[name]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes(4)]
    for function in (getattr(kernels, name), getattr(kernels, name + "_reference")):
        assert torch.autograd.gradcheck(lambda *x, f=function: tuple(call(f, *x)), inputs)


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "rope"])
def test_float32_forward_in_pytorch_is_the_definitions_bit_for_bit(name):
    kernels.use("torch")
    fused, reference, call, inputs, _ = setting(name, 100, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(call(fused, *inputs), call(reference, *inputs), strict=True))


LAYOUTS = {"every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
           "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
           "repeated": lambda x: x[..., :1].expand(x.shape), "repeated rows": lambda x: x[:1].expand(x.shape)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_any_strides_and_no_input_is_overwritten(name, choice, layout):
    """Inputs and the upstream gradient come in strides that no kernel likes; both stay as they were."""
    shapes, call = CASES[name]
    inputs = [LAYOUTS[layout](torch.randn(shape, device=DEVICE)) for shape in shapes(12)]
    reference, copies = getattr(kernels, name + "_reference"), [x.clone() for x in inputs]
    upstream = [torch.randn((), device=DEVICE).expand(y.shape) for y in call(reference, *inputs)]  # all strides 0
    exact = run(reference, call, copies, torch.float64, upstream)
    kernels.use(choice, DEVICE)
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = call(getattr(kernels, name), *leaves)
    grads = torch.autograd.grad(outputs, leaves, upstream)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
    for got, true in zip([*outputs, *grads], [*exact[0], *exact[1]], strict=True):
        scale = max(1.0, true.abs().max().item())  # a row of one value has a norm's gradient that cancels
        torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=3e-5 * scale)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", [n for n in CASES if n != "linear_cross_entropy"])
def test_empty_batches(name, choice):
    shapes, call = CASES[name]
    kernels.use(choice, DEVICE)
    inputs = [torch.randn((0, *shape[1:]) if len(shape) > 1 else shape, device=DEVICE, requires_grad=True)
              for shape in shapes(8)]
    outputs = call(getattr(kernels, name), *inputs)
    grads = torch.autograd.grad(sum(y.sum() for y in outputs), inputs)
    assert all(g.shape == x.shape and not g.any() for g, x in zip(grads, inputs, strict=True))


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_a_row_longer_than_a_program_can_hold(choice):
    kernels.use(choice, DEVICE)
    x, w = torch.randn(2, norm.LONGEST_ROW + 5, device=DEVICE), torch.randn(norm.LONGEST_ROW + 5, device=DEVICE)
    exact = kernels.rms_norm_reference(x.double(), w.double(), 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, w, 1e-5).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernels.swiglu(x, x).double(), kernels.swiglu_reference(x.double(), x.double()),
                               rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_chunks_do_not_change_the_loss(rows, choice):
    kernels.use(choice, DEVICE)
    hidden, weight = (torch.randn(n, 16, device=DEVICE, requires_grad=True) for n in (37, 50))
    chosen = torch.randint(0, 50, (37,), device=DEVICE)
    loss, count = kernels.linear_cross_entropy(hidden, weight, chosen, chunk_bytes=rows * 50 * 4)
    mine = torch.autograd.grad(loss, (hidden, weight))
    expected, _ = kernels.linear_cross_entropy_reference(hidden, weight, chosen)
    theirs = torch.autograd.grad(expected, (hidden, weight))
    assert count == 37
    torch.testing.assert_close((loss, *mine), (expected, *theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_all_masked_and_no_tokens_give_zero(choice):
    kernels.use(choice, DEVICE)
    weight = torch.randn(9, 4, device=DEVICE, requires_grad=True)
    for n in (0, 3):
        hidden = torch.randn(n, 4, device=DEVICE, requires_grad=True)
        loss, count = kernels.linear_cross_entropy(hidden, weight, torch.full((n,), -100, device=DEVICE))
        grads = torch.autograd.grad(loss, (hidden, weight))
        assert loss == 0 and count == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_a_frozen_weight_or_frozen_states_cost_no_gradient(choice):
    kernels.use(choice, DEVICE)
    chosen = torch.randint(0, 9, (6,), device=DEVICE)
    for trained in (0, 1):
        inputs = [torch.randn(n, 4, device=DEVICE, requires_grad=i == trained) for i, n in enumerate((6, 9))]
        loss, _ = kernels.linear_cross_entropy(*inputs, chosen)
        kept = [t.shape for t in loss.grad_fn.saved_tensors if t is not None]
        assert kept == [inputs[trained].shape]
        loss.backward()
        assert inputs[trained].grad.any() and inputs[1 - trained].grad is None
    x, w = torch.randn(3, 8, device=DEVICE, requires_grad=True), torch.randn(8, device=DEVICE)
    kernels.rms_norm(x, w, 1e-5).sum().backward()
    assert x.grad.any() and w.grad is None


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_huge_logits_do_not_overflow_and_a_wrong_target_is_no_number(choice):
    kernels.use(choice, DEVICE)
    hidden, weight = torch.full((1, 1), 1e4, device=DEVICE), torch.tensor([[1.0], [-1.0]], device=DEVICE)
    assert kernels.linear_cross_entropy(hidden, weight, torch.tensor([1], device=DEVICE))[0] == 2e4
    if choice == "torch" and not GPU:
        with pytest.raises(RuntimeError, match="out of bounds"):
            kernels.linear_cross_entropy(hidden, weight, torch.tensor([-5]))
    elif choice == "triton":  # nothing outside is read, and the training loop stops for it
        for wrong in (-5, 2):
            assert kernels.linear_cross_entropy(hidden, weight, torch.tensor([wrong], device=DEVICE))[0].isnan()


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name, extra", [("rms_norm", 10), ("rope", 0), ("swiglu", 0)])
def test_the_tensors_kept_for_backward_are_few(name, extra, choice):
    """Elements saved for the backward pass, counted: the inputs (RoPE: not even those), and `extra`."""
    kernels.use(choice, DEVICE)
    shapes, call = CASES[name]
    inputs = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes(12)]

    def saved(function):
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
            outputs = call(function, *inputs)
        assert all(y.isfinite().all() for y in outputs)
        return sum(t.numel() for t in kept.values())
    allowed = sum(t.numel() for t in (tables(inputs[0]) if name == "rope" else inputs)) + extra
    assert saved(getattr(kernels, name)) <= allowed
    assert name == "rope" or saved(getattr(kernels, name + "_reference")) > allowed  # a rotation is linear in q and k


class Alive(TorchDispatchMode):
    """Counts the bytes of storage that operations made and some tensor still holds, and remembers the most of them."""
    most = 0

    def __init__(self):
        super().__init__()
        self.holders = {}  # address of a storage → its bytes, once for every tensor

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            storage = out.untyped_storage()
            self.holders.setdefault(storage.data_ptr(), []).append(storage.nbytes())
            weakref.finalize(out, self.holders[storage.data_ptr()].pop)
            self.most = max(self.most, sum(sizes[0] for sizes in self.holders.values() if sizes))
        return out


@pytest.mark.parametrize("choice", ["torch", pytest.param("triton", marks=pytest.mark.gpu)])  # slow in the interpreter
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_of_logits_never_exists(grad, dtype, choice):
    """4,096 tokens × 8,192 classes are 134 MB of float32 logits; with 4 MB of chunk no more than that is alive at any
    time beside the two gradients."""
    kernels.use(choice, DEVICE)
    hidden, weight = (torch.randn(n, 8, device=DEVICE, dtype=dtype) for n in (4096, 8192))
    chosen = torch.randint(0, 8192, (4096,), device=DEVICE)
    with Alive() as alive:
        loss, *gradients = lce.loss_and_gradients(hidden, weight, chosen, 2**22, grad, grad)
    beside = sum(g.nbytes for g in gradients) + weight.nbytes  # its transpose is a view, which counts here
    assert loss > 0 and 2**21 < alive.most - beside <= 1.15 * 2**22  # rows' sums, and a product on its way to a sum


PEAK = """
import resource, sys, torch
sys.path.insert(0, {root!r})
import kernels
torch.set_num_threads(1)
hidden, weight = (torch.randn(n, 64, requires_grad=True) for n in (2048, 49152))
targets = torch.randint(0, 49152, (2048,))
kernels.linear_cross_entropy(hidden[:8], weight, targets[:8])[0].backward()     # libraries and gradients are loaded
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
getattr(kernels, {name!r})(hidden, weight, targets)[0].backward()
print(peak() - before)
"""


def test_the_loss_takes_a_fifth_of_the_memory_of_plain_cross_entropy():
    """Peak of the process over what it held before, at 2,048 tokens and 49k classes, where logits are 0.4 GB."""
    peak = {}
    for name in ("linear_cross_entropy", "linear_cross_entropy_reference"):
        out = subprocess.run([sys.executable, "-c", PEAK.format(root=str(ROOT), name=name)], capture_output=True,
                             text=True, check=True)
        peak[name] = int(out.stdout)
    assert 5 * peak["linear_cross_entropy"] <= peak["linear_cross_entropy_reference"], peak


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_the_weights_gradient_is_summed_in_float32(choice):
    """256 chunks of bfloat16: a bfloat16 sum would stall; a float32 one is as good as one product's rounding."""
    kernels.use(choice, DEVICE)
    hidden = (torch.rand(512, 8, device=DEVICE) + 0.5).bfloat16()
    weight = torch.zeros(4, 8, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    chosen = torch.zeros(512, dtype=torch.long, device=DEVICE)
    loss, _ = kernels.linear_cross_entropy(hidden, weight, chosen, chunk_bytes=2 * 4 * 4)
    (mine,) = torch.autograd.grad(loss, weight)
    exact = weight.detach().double().requires_grad_()
    (true,) = torch.autograd.grad(kernels.linear_cross_entropy_reference(hidden.double(), exact, chosen)[0], exact)
    # on a CPU the products of two rows are rounded before they are added
    assert ((mine - true).abs() <= 2**-7 * true.abs()).all()


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_the_same_bits_every_time(choice):
    kernels.use(choice, DEVICE)
    for name in CASES:
        fused, _, call, inputs, upstream = setting(name, 100, torch.float32)
        first, second = (run(fused, call, inputs, torch.float32, upstream) for _ in range(2))
        assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def llama_for(what: str, recompute: str, **changes) -> model.Llama:
    torch.manual_seed(0)
    llama = model.Llama(tiny_config(**changes))
    if what == "lora":
        model.add_lora(llama, 4, 4)
        for name, p in llama.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(p, std=0.1)
    for name, p in llama.named_parameters():
        p.requires_grad_(bool(plan.is_trained(name, what)))
    llama.recompute = recompute
    return llama.to(DEVICE)


@pytest.mark.parametrize("what, recompute", [("full", "none"), ("full", "full"), ("full", "attention"),
                                             ("embed", "none"), ("odd", "none"), ("lora", "full")])
def test_a_training_step_with_the_kernels_is_the_pytorch_step(what, recompute):
    tokens = torch.randint(0, 512, (2, 17), device=DEVICE)
    results = {}
    for choice in ("torch", "triton"):
        kernels.use(choice, DEVICE)
        llama = llama_for(what, recompute)
        results[choice] = step_of(llama, tokens)
        assert all(p.grad is None for p in llama.parameters() if not p.requires_grad)
    torch.testing.assert_close(results["triton"], results["torch"], rtol=1e-4, atol=1e-5)


class NotForFakes:
    """A kernel that leaves the tensors without data alone that torch.compile traces with. PyTorch does so itself for
    compiled kernels; only interpreted ones would be run on them."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        fake = torch._subclasses.FakeTensor
        return lambda *args, **options: (None if any(isinstance(x, fake) for x in args)
                                         else self.kernel[grid](*args, **options))


def step_of(llama: model.Llama, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The loss of one step, and the gradient of everything that is trained."""
    loss, count = llama(tokens[:, :-1], tokens[:, 1:])
    (loss / count).backward()
    return [loss.detach(), *(p.grad for p in llama.parameters() if p.requires_grad)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["none", "attention", "full"])
@pytest.mark.parametrize("what", ["full", "odd", "lora", "embed"])
def test_a_compiled_step_is_the_plain_step(what, recompute, dtype, monkeypatch):
    """Every gradient, for both implementations: an operation must not lose one under torch.compile (torch 2.11 drops
    those of an autograd function that wrote its output in place). Blocks go through AOTAutograd, which is where that
    happens. It may not look into Triton's operations, where it would find an interpreted kernel."""
    for module in (norm, rotary, activation):
        monkeypatch.setattr(module, "wrap_triton", NotForFakes)
    monkeypatch.setattr("torch.export._trace.custom_triton_ops_decomposition_disabled", lambda: True)
    tokens = torch.randint(0, 512, (2, 9), device=DEVICE)
    for choice in ("torch", "triton") if launch.triton else ("torch",):
        kernels.use(choice, DEVICE)
        steps = {}
        for compiled in (False, True):
            torch.compiler.reset()
            llama = llama_for(what, recompute, num_hidden_layers=2)
            for p in llama.parameters():
                p.data = p.data.to(torch.float32 if p.requires_grad else dtype)
            llama.compute_dtype = dtype
            if compiled:  # the block that every one of these stages sends a gradient through
                llama.model.layers[1].compile(backend="aot_eager", dynamic=False)
            steps[compiled] = step_of(llama, tokens)
        rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (2e-2, 2e-3)  # a bfloat16 sum taken in another order
        torch.testing.assert_close(steps[True], steps[False], rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_torch_compile_keeps_an_operation_whole(name, monkeypatch):
    """One graph, without breaks, in which the registered operation stands by its name; the same numbers come out."""
    for module in (norm, rotary, activation):
        monkeypatch.setattr(module, "wrap_triton", NotForFakes)
    fused, _, call, inputs, upstream = setting(name, 16, torch.float32)
    kernels.use("triton", DEVICE)
    expected = run(fused, call, inputs, torch.float32, upstream)
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: call(fused, *x), backend=backend, fullgraph=True)
    got = run(lambda *x: x, lambda _, *x: compiled(*x), inputs, torch.float32, upstream)
    code = " ".join(str(node.target) for graph in graphs for module in graph.modules()
                    if isinstance(module, torch.fx.GraphModule) for node in module.graph.nodes)
    assert "nanowhale." + name.removeprefix("add_") in code
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_torch_compile_with_inductor_gives_the_same_numbers(name):
    fused, _, call, inputs, upstream = setting(name, 128, torch.bfloat16)
    kernels.use("triton", DEVICE)
    expected = run(fused, call, inputs, torch.bfloat16, upstream)
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: call(fused, *x), fullgraph=True)
    got = run(lambda *x: x, lambda _, *x: compiled(*x), inputs, torch.bfloat16, upstream)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("library", [True, False])
def test_products_are_the_same_from_every_library(library, trained, monkeypatch):
    """Values, gradients, and what is kept for them; strided inputs; and few rows, which never go to oneDNN."""
    monkeypatch.setattr(linear, "ONEDNN", library and linear.ONEDNN)
    for shape in ((2, 40, 24), (40, 24), (1, 3, 24)):
        x, w = between_nans(shape, torch.float32), torch.randn(24, 10, device=DEVICE).t()
        inputs = [t.detach().requires_grad_(needed) for t, needed in zip((x, w), trained, strict=True)]
        y = kernels.linear(*inputs)
        upstream = torch.randn_like(y) if len(shape) == 2 else torch.randn(10, device=DEVICE).expand_as(y)
        exact = [t.detach().double().requires_grad_(needed) for t, needed in zip((x, w), trained, strict=True)]
        true = kernels.linear_reference(*exact)
        torch.testing.assert_close(y.double(), true, rtol=1e-5, atol=1e-5)
        for got, want in zip(torch.autograd.grad(y, [t for t in inputs if t.requires_grad], upstream),
                             torch.autograd.grad(true, [t for t in exact if t.requires_grad], upstream.double()),
                             strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_attention_is_the_same_from_every_library(heads, library, monkeypatch):
    """Values and gradients against float64, at lengths that are no multiple of a block, for the strides of a model."""
    attention = importlib.import_module("kernels.attention")
    monkeypatch.setattr(attention, "ONEDNN", library and attention.ONEDNN)
    for batch, length in ((2, 1), (2, 37), (1, attention.FEWEST_POSITIONS), (2, attention.FEWEST_POSITIONS + 131)):
        q, k, v = (torch.randn(batch, length, h, 24, device=DEVICE).transpose(1, 2).requires_grad_()
                   for h in (heads[0], heads[1], heads[1]))
        upstream = torch.randn(batch, length, heads[0], 24, device=DEVICE).transpose(1, 2)
        out = kernels.attention(q, k, v)
        assert ("_Attention" in type(out.grad_fn).__name__) == attention.suits(q)
        exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
        true = kernels.attention_reference(*exact)
        torch.testing.assert_close(out.double(), true, rtol=1e-5, atol=1e-5)
        for got, want in zip(torch.autograd.grad(out, (q, k, v), upstream),
                             torch.autograd.grad(true, exact, upstream.double()), strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype, shared", [(torch.bfloat16, True), (torch.float32, False)])
def test_heads_share_keys_on_a_gpu_where_a_fused_library_can(dtype, shared, monkeypatch):
    """The device "meta" stands for a GPU."""
    asked, q, k = [], *(torch.empty(2, heads, 9, 8, dtype=dtype, device="meta") for heads in (6, 2))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                        lambda q, k, v, enable_gqa, **_: asked.append((k.shape, v.shape, enable_gqa)) or q)
    kernels.attention(q, k, k)
    assert asked == [((2, 2 if shared else 6, 9, 8),) * 2 + (shared,)]


def backends_of(call, monkeypatch) -> list[str]:
    """The names of the attention backends that `call()` lets PyTorch choose from, in their order."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def record(*args, **options):
        seen.extend(backend.name for backend in torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True))
        return attend(*args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
        call()
    return seen


@pytest.mark.parametrize("capability, first", [((9, 0), "CUDNN_ATTENTION"), ((8, 0), None), ((10, 0), None)])
def test_training_asks_for_cudnn_on_hopper_only(capability, first, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    kernels.use("torch", "cuda")
    q = torch.randn(1, 2, 5, 8)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as cli.set_device leaves it on a GPU
    try:
        training = backends_of(lambda: kernels.attention(q, q, q), monkeypatch)
        with torch.no_grad():
            scoring = backends_of(lambda: kernels.attention(q, q, q), monkeypatch)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert "CUDNN_ATTENTION" not in scoring and "FLASH_ATTENTION" in scoring
    if first:
        assert training[:4] == [first, "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
    else:
        assert training == scoring


@pytest.mark.gpu
def test_training_with_cudnn_on_hopper_is_attention():
    """At the recipe's width of a head, with shared keys, in the model's layout; and it is cuDNN that runs."""
    if torch.cuda.get_device_capability()[0] != launch.HOPPER:
        pytest.skip("cuDNN is asked for on Hopper only")
    torch.use_deterministic_algorithms(False)  # which would refuse it
    kernels.use("auto", "cuda")
    new = lambda heads: torch.randn(2, 300, heads, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    inputs = [new(heads).requires_grad_() for heads in (8, 2, 2)]
    upstream = new(8)

    def results(attend, dtype):
        given = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = attend(*given)
        return [out, *torch.autograd.grad(out, given, upstream.to(dtype))]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        ours = results(kernels.attention, torch.bfloat16)
        torch.cuda.synchronize()
    assert any("cudnn" in event.key.lower() for event in record.key_averages())
    exact = results(kernels.attention_reference, torch.float64)
    peer = results(kernels.attention_reference, torch.bfloat16)
    assert_rule(ours, peer, exact, torch.finfo(torch.bfloat16).eps)


def test_attention_survives_large_scores_of_keys_that_are_not_seen():
    """exp(score - log Σ exp) of a later key may be infinite; times 0 it would be NaN."""
    q, k, v = (8 * torch.randn(1, 2, 600, 32, device=DEVICE, requires_grad=True) for _ in range(3))
    gradients = torch.autograd.grad(kernels.attention(q, k, v).sum(), (q, k, v))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    for got, want in zip(gradients, torch.autograd.grad(kernels.attention_reference(*exact).sum(), exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-2)


# --- adamw.py ---------------------------------------------------------------------------------------------------------

def test_stochastic_rounding_is_unbiased():
    """A million float32 values: the mean of (rounded - value) in units of the last place is within 4 standard errors of
    0, for every one of several sizes of value; and each lands on one of its two neighbours."""
    n = 1_000_000
    x = torch.randn(n) * torch.logspace(-6, 6, n)
    bits = adamw.mix(torch.arange(n) ^ adamw.step_key(3, 7)) & 0xFFFF
    rounded = adamw.stochastic_round(x, bits)
    error = (rounded.double() - x.double()) / ulp(x.bfloat16()).clamp(min=1e-300)
    assert error.abs().max() < 1.01
    for part in error.split(n // 4):
        assert part.mean().abs() < 4 * part.std() / len(part) ** 0.5
    nearest = (x.bfloat16().double() - x.double()) / ulp(x.bfloat16())
    assert error.std() > 1.2 * nearest.std()  # it does choose the farther neighbour at times


def test_random_bits_have_no_pattern():
    """Over a million indices each of the 32 bits is set half of the time, and neighbours, seeds, steps do not agree."""
    index = torch.arange(1_000_000)
    streams = [adamw.mix(index ^ adamw.step_key(seed, step)) for seed, step in ((0, 1), (0, 2), (1, 1))]
    for h in streams:
        share = torch.stack([(h >> i & 1).double().mean() for i in range(32)])
        assert (share - 0.5).abs().max() < 5 * 0.5 / 1000
        assert ((h[1:] ^ h[:-1]) & 0xFFFF == 0).double().mean() < 10 / 65536
    assert (streams[0] == streams[1]).sum() < 10 and (streams[0] == streams[2]).sum() < 10


def test_values_that_bfloat16_holds_stay():
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf"), float("-inf"), float("nan"), 3e38, 1e-40]).bfloat16()
    for bits in (0, 0x7FFF, 0xFFFF):
        assert torch.equal(adamw.stochastic_round(x.float(), torch.full((9,), bits)).nan_to_num(7), x.nan_to_num(7))


def optimize(make, dtype, steps=3000):
    """Minimise mean (w - 1.23)² from 1, at a learning rate whose steps bfloat16 rounds away."""
    w = torch.nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = make([w])
    for _ in range(steps):
        w.grad = 2 * (w.detach() - 1.23).to(dtype)
        optimizer.step()
    return (w.detach().double().mean() - 1.23).abs().item()


def test_a_quadratic_that_plain_bfloat16_cannot_solve():
    settings = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
    plain = optimize(lambda p: torch.optim.AdamW(p, **settings), torch.bfloat16)
    ours = optimize(lambda p: kernels.AdamW(p, **settings), torch.bfloat16)
    wide = optimize(lambda p: torch.optim.AdamW(p, **settings), torch.float32)
    assert plain > 0.2 and ours < 0.005 and wide < 0.005, (plain, ours, wide)


def test_one_step_is_torchs_adamw_before_rounding():
    """The mean over many seeds of the rounded step is the float32 step of torch.optim.AdamW."""
    start, gradient = torch.randn(50).bfloat16(), torch.randn(50).bfloat16()
    settings = dict(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    exact = torch.nn.Parameter(start.float())
    exact.grad = gradient.float()
    torch.optim.AdamW([exact], **settings).step()
    results = []
    for seed in range(400):
        p = torch.nn.Parameter(start.clone())
        p.grad = gradient
        kernels.AdamW([p], **settings, seed=seed).step()
        results.append(p.detach().double())
    results, exact = torch.stack(results), exact.detach()
    unit = torch.maximum(ulp(start), ulp(exact.bfloat16()))
    assert ((results - exact.double()).abs() <= unit * 1.01).all()
    assert ((results.mean(0) - exact.double()).abs() < 5 * unit / 2 / 400**0.5).all()


def trained(choice, steps=3, first=0, sizes=((70001,), (3, 5), (1,), (0,), (300, 41))):
    kernels.use(choice, DEVICE)
    generator = torch.Generator().manual_seed(1)
    new = lambda shape: torch.randn(shape, generator=generator).bfloat16().to(DEVICE)
    ps = [torch.nn.Parameter(new(shape)) for shape in sizes]
    ps[1].data = new((3, 6)).flatten()[1:16].view(3, 5)  # an address that is no multiple of 16
    optimizer = kernels.AdamW([{"params": ps[:2], "weight_decay": 0.1}, {"params": ps[2:]}], lr=1e-2, seed=5)
    optimizer._first = {p: first + n for p, n in optimizer._first.items()}
    for _ in range(steps):
        for p in ps:
            p.grad = new(p.shape)
        optimizer.step()
    return [x for p in ps for x in (p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])]


@pytest.mark.parametrize("first", [0, 2**32 - 70000, 2**33 + 7])
def test_pytorch_and_triton_give_the_same_bits(first):
    """At indices past 2³² too: a 10.7B model has them."""
    results = (trained(choice, first=first) for choice in ("torch", "triton"))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_many_tensors_take_few_launches(monkeypatch):
    launches = []
    kernel = adamw._step_kernel
    monkeypatch.setattr(adamw, "_step_kernel", type("Counted", (), {
        "__getitem__": lambda _, grid: lambda *a, **k: (launches.append(grid), kernel[grid](*a, **k))})())
    trained("triton", steps=1, sizes=[(4, 4)] * 30)
    assert len(launches) == 3  # one for each group, and one for the tensor at an odd address


def test_six_bytes_a_parameter_and_resume():
    p = torch.nn.Parameter(torch.randn(1000).bfloat16())
    optimizer = kernels.AdamW([p], lr=1e-2)
    p.grad = torch.randn(1000).bfloat16()
    optimizer.step()
    state = optimizer.state[p]
    held = [p, state["exp_avg"], state["exp_avg_sq"]]
    assert sum(t.numel() * t.element_size() for t in held) == 6 * 1000
    again = torch.nn.Parameter(p.detach().clone())
    other = kernels.AdamW([again], lr=1e-2)
    other.load_state_dict(json_free_copy(optimizer.state_dict()))
    for q, o in ((p, optimizer), (again, other)):
        q.grad = torch.ones(1000).bfloat16()
        o.step()
    assert torch.equal(p, again)


def json_free_copy(state):
    import copy
    return copy.deepcopy(state)


def test_wrong_parameters_are_refused():
    with pytest.raises(TypeError, match="bfloat16"):
        kernels.AdamW([torch.nn.Parameter(torch.zeros(3))])
    p = torch.nn.Parameter(torch.zeros(3, 4).bfloat16().t())
    p.grad = torch.zeros(4, 3).bfloat16()
    with pytest.raises(ValueError, match="neighbours"):
        kernels.AdamW([p]).step()


# --- two processes ----------------------------------------------------------------------------------------------------

def sharded(rank: int, file: str, out: str) -> None:
    """One of two processes: a sharded head's loss and gradients, and a sharded AdamW."""
    from torch.distributed.fsdp import fully_shard
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    head, x, chosen = model.Head(16, 51, bias=False), torch.randn(2, 2, 9, 16), torch.randint(0, 51, (2, 2, 9))
    mesh = dist.init_device_mesh("cpu", (2,))  # left to itself, fully_shard would take the GPUs' where there are some
    fully_shard(head, mesh=mesh)
    head.set_gradient_divide_factor(1.0)
    head.set_force_sum_reduction_for_comms(True)
    states = x[rank].requires_grad_()
    loss, _ = head(states, chosen[rank])
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    os.environ["WORLD_SIZE"] = "2"
    one_says_so, none_says_so = parallel.anywhere(torch.tensor(float(rank))), parallel.anywhere(torch.tensor(0.0))
    torch.manual_seed(1)
    layer = torch.nn.Linear(7, 5, bias=False).bfloat16()
    fully_shard(layer, mesh=mesh)
    optimizer = kernels.AdamW(layer.parameters(), lr=1e-2, seed=3)
    for _ in range(2):
        from torch.distributed.tensor import distribute_tensor
        layer.weight.grad = distribute_tensor(torch.randn(5, 7).bfloat16(), layer.weight.device_mesh,
                                              layer.weight.placements)
        optimizer.step()
    gathered = {"loss": total, "weight": head.weight.grad.full_tensor(), "adamw": layer.weight.detach().full_tensor()}
    torch.save({**gathered, "states": states.grad, "flags": (one_says_so, none_says_so)}, f"{out}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # as cli.run leaves: on Python's own way out a thread of gloo's may abort the process


def test_a_sharded_head_and_a_sharded_optimizer(tmp_path):
    """FSDP2 over two processes: the loss and gradients of the whole batch; AdamW rounds as if the weight were whole."""
    torch.multiprocessing.spawn(sharded, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.manual_seed(0)
    head, x, chosen = model.Head(16, 51, bias=False), torch.randn(2, 2, 9, 16), torch.randint(0, 51, (2, 2, 9))
    x.requires_grad_()
    loss, _ = head(x.flatten(0, 1), chosen.flatten(0, 1))
    loss.backward()
    assert a["flags"] == b["flags"] == (1.0, 0.0)
    torch.testing.assert_close(a["loss"], loss.detach())
    torch.testing.assert_close(a["weight"], head.weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.stack((a["states"], b["states"])), x.grad)
    torch.manual_seed(1)
    layer = torch.nn.Linear(7, 5, bias=False).bfloat16()
    optimizer = kernels.AdamW(layer.parameters(), lr=1e-2, seed=3)
    for _ in range(2):
        layer.weight.grad = torch.randn(5, 7).bfloat16()
        optimizer.step()
    assert torch.equal(a["adamw"], layer.weight.detach()) and torch.equal(b["adamw"], a["adamw"])


# --- the choice, and compilation without a GPU ------------------------------------------------------------------------

@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_shapes_that_do_not_fit_are_refused(choice):
    """A kernel told of a wrong width would read foreign memory."""
    kernels.use(choice, DEVICE)
    x, cos = torch.zeros(2, 5, 8, device=DEVICE), torch.zeros(5, 4, device=DEVICE)
    q = torch.zeros(2, 3, 5, 8, device=DEVICE)
    wrong = [lambda: kernels.rms_norm(x, x[0, 0, :7], 1e-5), lambda: kernels.add_rms_norm(x, x[0], x[0, 0], 1e-5),
             lambda: kernels.add_rms_norm(x, x.bfloat16(), x[0, 0], 1e-5), lambda: kernels.swiglu(x, x[:1]),
             lambda: kernels.swiglu(x.bfloat16(), x), lambda: kernels.rope(q, q, cos[:4], cos),
             lambda: kernels.rope(q, q[:1], cos, cos), lambda: kernels.linear_cross_entropy(x[0], x[1], torch.zeros(4)),
             lambda: kernels.linear_cross_entropy(x, x[1], torch.zeros(2, 5))]
    for call in wrong:
        with pytest.raises(ValueError, match="is .*, not "):
            call()


def test_there_is_one_place_that_chooses(monkeypatch):
    assert kernels.use("auto", "cpu") == "torch" and kernels.use("torch", "cuda") == "torch"
    assert kernels.use("auto", "cuda") == ("triton" if launch.triton else "torch")
    with pytest.raises(UserError, match="fast"):
        kernels.use("fast")
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(UserError, match="CUDA device"):
        kernels.use("triton", "cpu")
