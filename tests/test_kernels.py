"""kernels/: both implementations against their definitions in float64; and how much memory they
use.

Without a GPU the Triton kernels run in Triton's interpreter, in numpy; tests marked `gpu` run them
for real. Inputs are fresh in every run (a failure prints its seed) and lie between NaNs, and
outputs start as NaN.
"""
import argparse
import copy
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
import train
from bench import kernels as bench_kernels
from common import parallel, plan
from kernels import activation, adamw, launch, norm, rotary
from kernels import loss as lce

ROOT = Path(__file__).resolve().parents[1]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

without_triton = pytest.mark.skipif(launch.triton is None, reason="triton is not installed")
IMPLEMENTATIONS = ["torch", pytest.param("triton", marks=without_triton)]

NAMES = ["rms_norm", "add_rms_norm", "rope", "swiglu", "linear_cross_entropy"]
ELEMENTWISE = [name for name in NAMES if name != "linear_cross_entropy"]
WIDTHS = [3, 16, 100, 257]


def shapes_of(name, n):
    """The shapes of an operation's inputs, for a width n."""
    if name == "rms_norm":
        return [(2, 5, n), (n,)]
    if name == "add_rms_norm":
        return [(2, 5, n), (2, 5, n), (n,)]
    if name == "rope":
        return [(2, 4, 7, 2 * n), (2, 2, 7, 2 * n)]
    if name == "swiglu":
        return [(3, 5, n), (3, 5, n)]
    return [(9, 6), (n + 1, 6)]


def call(name, function, inputs):
    """All outputs, as a list, of a function that implements the operation `name`."""
    if name == "rms_norm":
        x, weight = inputs
        return [function(x, weight, 1e-5)]
    if name == "add_rms_norm":
        x, residual, weight = inputs
        return list(function(x, residual, weight, 1e-5))
    if name == "rope":
        q, k = inputs
        return list(function(q, k, *tables(q)))
    if name == "swiglu":
        return [function(*inputs)]
    hidden, weight = inputs
    loss, _ = function(hidden, weight, targets(weight))
    return [loss]


def tables(q):
    """cos and sin of seven positions for the heads of q."""
    half = q.shape[-1] // 2
    angles = torch.outer(torch.arange(7), 1 + torch.arange(half) / half).to(q.device)
    return angles.cos(), angles.sin()


def targets(weight):
    """Nine targets for the head's classes, two of them masked."""
    chosen = torch.arange(9, device=weight.device) * 7 % len(weight)
    chosen[2] = -100
    chosen[6] = -100
    return chosen


@pytest.fixture(autouse=True)
def fresh_inputs_and_poisoned_outputs(capsys):
    """A new seed per test, printed if it fails; torch.empty gives NaN; the choice is restored."""
    seed = torch.seed() % 2**32
    torch.manual_seed(seed)
    print(f"seed {seed}")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    kernels.use("auto", DEVICE)


def random(*shape, dtype=torch.float32, requires_grad=False):
    return torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=requires_grad)


def random_classes(n, classes):
    return torch.randint(0, classes, (n,), device=DEVICE)


def between_nans(shape, dtype):
    """Random values whose neighbours in memory, before and after each row, are NaN."""
    wide = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=dtype, device=DEVICE)
    wide[..., 1:-2] = torch.randn(shape).to(dtype)
    return wide[..., 1:-2]


def run(name, function, inputs, dtype, upstream):
    """Outputs and the gradients of Σ output · upstream, as two lists."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    outputs = call(name, function, leaves)
    total = 0
    for y, g in zip(outputs, upstream, strict=True):
        total = total + (y * g.to(y.dtype)).sum()
    gradients = torch.autograd.grad(total, leaves)
    return [y.detach() for y in outputs], list(gradients)


def setting(name, width, dtype):
    """The operation, its definition, inputs, and gradients for its outputs."""
    inputs = [between_nans(shape, dtype) for shape in shapes_of(name, width)]
    fused = getattr(kernels, name)
    reference = getattr(kernels, name + "_reference")
    upstream = [torch.randn_like(y) for y in call(name, reference, inputs)]
    return fused, reference, inputs, upstream


# ----------------------------------------------------------------------------------------- accuracy


def assert_rule(got, peer, true, eps):
    """DESIGN's rule: the error against float64 is at most the definition's own in that dtype, plus
    a small constant."""
    for a, b, exact in zip(got, peer, true, strict=True):
        assert a.dtype == b.dtype and a.shape == exact.shape
        # The constant: in 36,929 draws of linear_cross_entropy at 257 classes, where the larger of
        # two roundings is compared, 571 were above 4 and 6 above 8.
        allowed = (b - exact).abs().max() + 8 * eps * max(1, exact.abs().max())
        assert (a - exact).abs().max() <= allowed


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_as_close_to_float64_as_the_definition(name, choice, width):
    fused, reference, inputs, upstream = setting(name, width, torch.float32)
    exact = run(name, reference, inputs, torch.float64, upstream)
    peer = run(name, reference, inputs, torch.float32, upstream)
    kernels.use(choice, DEVICE)
    ours = run(name, fused, inputs, torch.float32, upstream)
    for got, their, true in zip(ours, peer, exact, strict=True):
        assert_rule(got, their, true, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_one(name, choice):
    """There RMSNorm's gradient is a difference of equal numbers, so the error is compared with
    those, not with the gradient."""
    fused, reference, inputs, upstream = setting(name, 1, torch.float32)
    exact = run(name, reference, inputs, torch.float64, upstream)
    kernels.use(choice, DEVICE)
    ours = run(name, fused, inputs, torch.float32, upstream)
    for got, true in zip([*ours[0], *ours[1]], [*exact[0], *exact[1]], strict=True):
        torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=1e-3)


def low_precision(name, choice, width, dtype, steps):
    """Check that every output and gradient is within `steps` units in the last place of the exact
    value, rounding included."""
    fused, reference, inputs, upstream = setting(name, width, dtype)
    kernels.use(choice, DEVICE)
    outputs, grads = run(name, fused, inputs, dtype, upstream)
    if name == "add_rms_norm":
        # The norm is that of the rounded stream: compare it with the norm of exactly that.
        x, residual, weight = inputs
        _, stream = outputs
        assert ((stream - (x.double() + residual)).abs() <= steps * ulp(stream)).all()
        exact, exact_grads = run("rms_norm", kernels.rms_norm_reference, [stream, weight],
                                 torch.float64, upstream[:1])
        of_sum = exact_grads[0] + upstream[1].double()
        true = [*exact, stream, of_sum, of_sum, exact_grads[1]]
    else:
        exact, exact_grads = run(name, reference, inputs, torch.float64, upstream)
        true = [*exact, *exact_grads]
    for got, exact in zip([*outputs, *grads], true, strict=True):
        slack = 2e-6 * exact.abs().max()  # float32 sums of terms that cancel
        assert ((got - exact).abs() <= steps * ulp(exact.to(dtype)) + slack).all()


def ulp(x: torch.Tensor) -> torch.Tensor:
    """The distance from |x| to the next number of its dtype, in float64."""
    up = (x.abs().view(torch.int16) + 1).view(x.dtype)
    return up.double() - x.abs().double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [3, 100])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_low_precision_within_one_ulp(name, width, dtype):
    """The interpreter truncates bfloat16 where a GPU rounds: one unit in the last place."""
    low_precision(name, "triton", width, dtype, 1)


on_gpu_only = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)


@pytest.mark.parametrize("dtype", [on_gpu_only, torch.float16])
@pytest.mark.parametrize("width", [3, 100, 2048])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_low_precision_is_rounded_once(name, width, dtype):
    """One rounding costs half a unit in the last place; a second one would show."""
    low_precision(name, "triton", width, dtype, 0.501)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_low_precision_loss_is_as_close_as_the_definition(choice, dtype):
    """Logits are rounded to the dtype in both, so the rule is the definition's error."""
    name = "linear_cross_entropy"
    fused, reference, inputs, upstream = setting(name, 300, dtype)
    exact = run(name, reference, inputs, torch.float64, upstream)
    peer = run(name, reference, inputs, dtype, upstream)
    kernels.use(choice, DEVICE)
    ours = run(name, fused, inputs, dtype, upstream)
    for got, their, true in zip(ours, peer, exact, strict=True):
        assert_rule(got, their, true, torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
def test_definitions_pass_gradcheck(name):
    inputs = []
    for shape in shapes_of(name, 4):
        inputs.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    for function in (getattr(kernels, name), getattr(kernels, name + "_reference")):
        def outputs(*x, function=function):
            return tuple(call(name, function, x))
        assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "rope"])
def test_float32_forward_in_pytorch_is_the_definitions_bit_for_bit(name):
    kernels.use("torch")
    fused, reference, inputs, _ = setting(name, 100, torch.float32)
    ours = call(name, fused, inputs)
    theirs = call(name, reference, inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# ------------------------------------------------------------------------------- shapes and strides


def in_layout(x, layout):
    """A tensor of x's shape with strides that no kernel likes."""
    if layout == "every second":
        return torch.stack((x, x), -1).flatten(-2)[..., ::2]
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "repeated":
        return x[..., :1].expand(x.shape)
    return x[:1].expand(x.shape)


@pytest.mark.parametrize("layout", ["every second", "transposed", "repeated", "repeated rows"])
@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_any_strides_and_no_input_is_overwritten(name, choice, layout):
    """Inputs have odd strides, the upstream gradient has only strides of 0; inputs are not
    changed."""
    inputs = [in_layout(random(*shape), layout) for shape in shapes_of(name, 12)]
    copies = [x.clone() for x in inputs]
    reference = getattr(kernels, name + "_reference")
    upstream = [random().expand(y.shape) for y in call(name, reference, inputs)]
    exact = run(name, reference, copies, torch.float64, upstream)
    kernels.use(choice, DEVICE)
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = call(name, getattr(kernels, name), leaves)
    grads = torch.autograd.grad(outputs, leaves, upstream)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
    for got, true in zip([*outputs, *grads], [*exact[0], *exact[1]], strict=True):
        scale = max(1.0, true.abs().max().item())  # in a row of one value a norm's gradient cancels
        torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=3e-5 * scale)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_empty_batches(name, choice):
    kernels.use(choice, DEVICE)
    inputs = []
    for shape in shapes_of(name, 8):
        if len(shape) > 1:
            shape = (0, *shape[1:])
        inputs.append(random(*shape, requires_grad=True))
    outputs = call(name, getattr(kernels, name), inputs)
    grads = torch.autograd.grad(sum(y.sum() for y in outputs), inputs)
    for g, x in zip(grads, inputs, strict=True):
        assert g.shape == x.shape and not g.any()


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_a_row_longer_than_a_program_can_hold(choice):
    kernels.use(choice, DEVICE)
    width = norm.LONGEST_ROW + 5
    x = random(2, width)
    w = random(width)
    normed = kernels.rms_norm_reference(x.double(), w.double(), 1e-5)
    gated = kernels.swiglu_reference(x.double(), x.double())
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, w, 1e-5).double(), normed, **close)
    torch.testing.assert_close(kernels.swiglu(x, x).double(), gated, **close)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_shapes_that_do_not_fit_are_refused(choice):
    """A kernel given a wrong width would read foreign memory."""
    kernels.use(choice, DEVICE)
    x = torch.zeros(2, 5, 8, device=DEVICE)
    w = x[0, 0]
    q = torch.zeros(2, 3, 5, 8, device=DEVICE)
    cos = torch.zeros(5, 4, device=DEVICE)
    wrong = [
        (kernels.rms_norm, x, w[:7], 1e-5),
        (kernels.add_rms_norm, x, x[0], w, 1e-5),
        (kernels.add_rms_norm, x, x.bfloat16(), w, 1e-5),
        (kernels.swiglu, x, x[:1]),
        (kernels.swiglu, x.bfloat16(), x),
        (kernels.rope, q, q, cos[:4], cos),
        (kernels.rope, q, q[:1], cos, cos),
        (kernels.linear_cross_entropy, x[0], x[1], torch.zeros(4)),
        (kernels.linear_cross_entropy, x, x[1], torch.zeros(2, 5)),
    ]
    for function, *inputs in wrong:
        with pytest.raises(ValueError, match="is .*, not "):
            function(*inputs)


# ------------------------------------------------------------------------------------------ loss.py


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_chunks_do_not_change_the_loss(rows, choice):
    kernels.use(choice, DEVICE)
    hidden = random(37, 16, requires_grad=True)
    weight = random(50, 16, requires_grad=True)
    chosen = random_classes(37, 50)
    loss, count = kernels.linear_cross_entropy(hidden, weight, chosen, chunk_bytes=rows * 50 * 4)
    mine = torch.autograd.grad(loss, (hidden, weight))
    expected, _ = kernels.linear_cross_entropy_reference(hidden, weight, chosen)
    theirs = torch.autograd.grad(expected, (hidden, weight))
    assert count == 37
    torch.testing.assert_close((loss, *mine), (expected, *theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_all_masked_and_no_tokens_give_zero(choice):
    kernels.use(choice, DEVICE)
    weight = random(9, 4, requires_grad=True)
    for n in (0, 3):
        hidden = random(n, 4, requires_grad=True)
        masked = torch.full((n,), -100, device=DEVICE)
        loss, count = kernels.linear_cross_entropy(hidden, weight, masked)
        grads = torch.autograd.grad(loss, (hidden, weight))
        assert loss == 0 and count == 0
        assert not any(g.any() for g in grads)


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_a_frozen_weight_or_frozen_states_cost_no_gradient(choice):
    kernels.use(choice, DEVICE)
    chosen = random_classes(6, 9)
    for trained in (0, 1):
        hidden = random(6, 4, requires_grad=trained == 0)
        weight = random(9, 4, requires_grad=trained == 1)
        inputs = [hidden, weight]
        loss, _ = kernels.linear_cross_entropy(hidden, weight, chosen)
        kept = [t.shape for t in loss.grad_fn.saved_tensors if t is not None]
        assert kept == [inputs[trained].shape]
        loss.backward()
        assert inputs[trained].grad.any() and inputs[1 - trained].grad is None
    x = random(3, 8, requires_grad=True)
    w = random(8)
    kernels.rms_norm(x, w, 1e-5).sum().backward()
    assert x.grad.any() and w.grad is None


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_huge_logits_do_not_overflow_and_a_wrong_target_is_no_number(choice):
    kernels.use(choice, DEVICE)
    hidden = torch.full((1, 1), 1e4, device=DEVICE)
    weight = torch.tensor([[1.0], [-1.0]], device=DEVICE)

    def loss_of(target):
        chosen = torch.tensor([target], device=DEVICE)
        return kernels.linear_cross_entropy(hidden, weight, chosen)[0]

    assert loss_of(1) == 2e4
    if choice == "torch" and not GPU:
        with pytest.raises(RuntimeError, match="out of bounds"):
            loss_of(-5)
    elif choice == "triton":  # nothing out of bounds is read, and the training loop stops for it
        assert loss_of(-5).isnan()
        assert loss_of(2).isnan()


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_the_weights_gradient_is_summed_in_float32(choice):
    """256 chunks of bfloat16: a bfloat16 sum would stall; a float32 sum is as good as the rounding
    of one product."""
    kernels.use(choice, DEVICE)
    hidden = (torch.rand(512, 8, device=DEVICE) + 0.5).bfloat16()
    weight = torch.zeros(4, 8, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    chosen = torch.zeros(512, dtype=torch.long, device=DEVICE)
    loss, _ = kernels.linear_cross_entropy(hidden, weight, chosen, chunk_bytes=2 * 4 * 4)
    (mine,) = torch.autograd.grad(loss, weight)
    exact = weight.detach().double().requires_grad_()
    loss, _ = kernels.linear_cross_entropy_reference(hidden.double(), exact, chosen)
    (true,) = torch.autograd.grad(loss, exact)
    # On a CPU the products of two rows are rounded before they are added.
    assert ((mine - true).abs() <= 2**-7 * true.abs()).all()


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_the_same_bits_every_time(choice):
    kernels.use(choice, DEVICE)
    for name in NAMES:
        fused, _, inputs, upstream = setting(name, 100, torch.float32)
        first = run(name, fused, inputs, torch.float32, upstream)
        second = run(name, fused, inputs, torch.float32, upstream)
        for a, b in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
            assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
@pytest.mark.parametrize("name, extra", [("rms_norm", 10), ("rope", 0), ("swiglu", 0)])
def test_the_tensors_kept_for_backward_are_few(name, extra, choice):
    """Count the elements saved for the backward pass: the inputs (RoPE: not even those) and
    `extra`."""
    kernels.use(choice, DEVICE)
    inputs = [random(*shape, requires_grad=True) for shape in shapes_of(name, 12)]

    def saved(function):
        kept = {}

        def keep(t):
            return kept.setdefault(t.data_ptr(), t)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            outputs = call(name, function, inputs)
        assert all(y.isfinite().all() for y in outputs)
        return sum(t.numel() for t in kept.values())

    needed = tables(inputs[0]) if name == "rope" else inputs
    allowed = sum(t.numel() for t in needed) + extra
    assert saved(getattr(kernels, name)) <= allowed
    if name != "rope":  # a rotation is linear in q and k, and its definition keeps no more either
        assert saved(getattr(kernels, name + "_reference")) > allowed


class Alive(TorchDispatchMode):
    """Counts the bytes of storage that operations created and some tensor still holds, and records
    the maximum."""
    most = 0

    def __init__(self):
        super().__init__()
        self.holders = {}  # address of a storage → its bytes, once per tensor

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            storage = out.untyped_storage()
            sizes = self.holders.setdefault(storage.data_ptr(), [])
            sizes.append(storage.nbytes())
            weakref.finalize(out, sizes.pop)
            alive = sum(sizes[0] for sizes in self.holders.values() if sizes)
            self.most = max(self.most, alive)
        return out


slow_in_the_interpreter = pytest.param("triton", marks=pytest.mark.gpu)


@pytest.mark.parametrize("choice", ["torch", slow_in_the_interpreter])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_of_logits_never_exists(grad, dtype, choice):
    """4,096 tokens × 8,192 classes are 134 MB of float32 logits; with chunks of 4 MB, no more than
    that is alive at any time besides the two gradients."""
    kernels.use(choice, DEVICE)
    hidden = random(4096, 8, dtype=dtype)
    weight = random(8192, 8, dtype=dtype)
    chosen = random_classes(4096, 8192)
    with Alive() as alive:
        loss, *gradients = lce.loss_and_gradients(hidden, weight, chosen, 2**22, grad, grad)
    # The weight's transpose is a view, which is counted here.
    beside = sum(g.nbytes for g in gradients) + weight.nbytes
    assert loss > 0
    # A little more: the sums of rows, and a product about to be added to a sum.
    assert 2**21 < alive.most - beside <= 1.15 * 2**22


PEAK = """
import resource, sys, torch
sys.path.insert(0, {root!r})
import kernels

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

torch.set_num_threads(1)
hidden = torch.randn(2048, 64, requires_grad=True)
weight = torch.randn(49152, 64, requires_grad=True)
targets = torch.randint(0, 49152, (2048,))

# A small call first, so that libraries and gradients are there.
kernels.linear_cross_entropy(hidden[:8], weight, targets[:8])[0].backward()
before = peak()
kernels.{name}(hidden, weight, targets)[0].backward()
print(peak() - before)
"""


def test_the_loss_takes_a_fifth_of_the_memory_of_plain_cross_entropy():
    """Peak of the process above what it held before, at 2,048 tokens and 49k classes, where logits
    are 0.4 GB."""
    peak = {}
    for name in ("linear_cross_entropy", "linear_cross_entropy_reference"):
        command = [sys.executable, "-c", PEAK.format(root=str(ROOT), name=name)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        peak[name] = int(out.stdout)
    assert 5 * peak["linear_cross_entropy"] <= peak["linear_cross_entropy_reference"], peak


# ----------------------------------------------------------------------- in the model, and compiled


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


def step_of(llama: model.Llama, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The loss of one step, and the gradients of everything that is trained."""
    loss, count = llama(tokens[:, :-1], tokens[:, 1:])
    (loss / count).backward()
    return [loss.detach(), *(p.grad for p in llama.parameters() if p.requires_grad)]


@pytest.mark.parametrize("what, recompute", [
    ("full", "none"),
    ("full", "full"),
    ("full", "attention"),
    ("embed", "none"),
    ("odd", "none"),
    ("lora", "full"),
])
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
    """A kernel that skips the tensors without data with which torch.compile traces. PyTorch does
    that itself for compiled kernels; only interpreted ones would be run on them."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch_unless_fake(*args, **options):
            if not any(isinstance(x, torch._subclasses.FakeTensor) for x in args):
                self.kernel[grid](*args, **options)
        return launch_unless_fake


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["none", "attention", "full"])
@pytest.mark.parametrize("what", ["full", "odd", "lora", "embed"])
def test_a_compiled_step_is_the_plain_step(what, recompute, dtype, monkeypatch):
    """Every gradient, for both implementations: an operation must not lose one under torch.compile
    (torch 2.11 drops those of an autograd function that wrote its output in place). Blocks go
    through AOTAutograd, which is where that happens. It may not trace into Triton's operations,
    where it would find an interpreted kernel."""
    for module in (norm, rotary, activation):
        monkeypatch.setattr(module, "wrap_triton", NotForFakes)
    decomposition_disabled = "torch.export._trace.custom_triton_ops_decomposition_disabled"
    monkeypatch.setattr(decomposition_disabled, lambda: True)
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
            if compiled:  # the block through which each of these stages sends a gradient
                llama.model.layers[1].compile(backend="aot_eager", dynamic=False)
            steps[compiled] = step_of(llama, tokens)
        if dtype == torch.float32:
            close = dict(rtol=1e-5, atol=1e-6)
        else:
            close = dict(rtol=2e-2, atol=2e-3)  # a bfloat16 sum taken in another order
        torch.testing.assert_close(steps[True], steps[False], **close)


def run_compiled(name, compiled, inputs, dtype, upstream):
    """`run`, for a compiled function that returns all outputs as a list."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    outputs = compiled(*leaves)
    total = 0
    for y, g in zip(outputs, upstream, strict=True):
        total = total + (y * g.to(y.dtype)).sum()
    return [y.detach() for y in outputs], list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("name", NAMES)
def test_torch_compile_keeps_an_operation_whole(name, monkeypatch):
    """One graph without breaks, in which the registered operation appears by name, with the same
    numbers."""
    for module in (norm, rotary, activation):
        monkeypatch.setattr(module, "wrap_triton", NotForFakes)
    fused, _, inputs, upstream = setting(name, 16, torch.float32)
    kernels.use("triton", DEVICE)
    expected = run(name, fused, inputs, torch.float32, upstream)
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(lambda *x: call(name, fused, x), backend=backend, fullgraph=True)
    got = run_compiled(name, compiled, inputs, torch.float32, upstream)
    operations = []
    for graph in graphs:
        for module in graph.modules():
            if isinstance(module, torch.fx.GraphModule):
                operations += [str(node.target) for node in module.graph.nodes]
    assert "nanowhale." + name.removeprefix("add_") in " ".join(operations)
    torch.testing.assert_close(got, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_torch_compile_with_inductor_gives_the_same_numbers(name):
    fused, _, inputs, upstream = setting(name, 128, torch.bfloat16)
    kernels.use("triton", DEVICE)
    expected = run(name, fused, inputs, torch.bfloat16, upstream)
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: call(name, fused, x), fullgraph=True)
    got = run_compiled(name, compiled, inputs, torch.bfloat16, upstream)
    torch.testing.assert_close(got, expected)


# ----------------------------------------------------------------------------------------- adamw.py


def test_stochastic_rounding_is_unbiased():
    """A million float32 values: the mean of (rounded - value), in units of the last place, is
    within 4 standard errors of 0 for each of several sizes of value; and each value lands on one of
    its two neighbours."""
    n = 1_000_000
    x = torch.randn(n) * torch.logspace(-6, 6, n)
    bits = adamw.mix(torch.arange(n) ^ adamw.step_key(3, 7)) & 0xFFFF
    rounded = adamw.stochastic_round(x, bits)
    error = (rounded.double() - x.double()) / ulp(x.bfloat16()).clamp(min=1e-300)
    assert error.abs().max() < 1.01
    for part in error.split(n // 4):
        assert part.mean().abs() < 4 * part.std() / len(part) ** 0.5
    nearest = (x.bfloat16().double() - x.double()) / ulp(x.bfloat16())
    assert error.std() > 1.2 * nearest.std()  # it does choose the farther neighbour sometimes


def test_random_bits_have_no_pattern():
    """Over a million indices each of the 32 bits is set half of the time, and neighbours, seeds and
    steps do not agree."""
    index = torch.arange(1_000_000)
    streams = []
    for seed, step in ((0, 1), (0, 2), (1, 1)):
        streams.append(adamw.mix(index ^ adamw.step_key(seed, step)))
    for h in streams:
        share = torch.stack([(h >> i & 1).double().mean() for i in range(32)])
        assert (share - 0.5).abs().max() < 5 * 0.5 / 1000
        equal_neighbours = (h[1:] ^ h[:-1]) & 0xFFFF == 0
        assert equal_neighbours.double().mean() < 10 / 65536
    assert (streams[0] == streams[1]).sum() < 10
    assert (streams[0] == streams[2]).sum() < 10


def test_values_that_bfloat16_holds_stay():
    inf = float("inf")
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, inf, -inf, float("nan"), 3e38, 1e-40]).bfloat16()
    for bits in (0, 0x7FFF, 0xFFFF):
        rounded = adamw.stochastic_round(x.float(), torch.full((9,), bits))
        assert torch.equal(rounded.nan_to_num(7), x.nan_to_num(7))


def distance_from_minimum(optimizer_class, dtype, steps=3000):
    """Minimise mean (w - 1.23)² from 1, with a learning rate whose steps bfloat16 rounds away."""
    w = torch.nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = optimizer_class([w], lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(steps):
        w.grad = 2 * (w.detach() - 1.23).to(dtype)
        optimizer.step()
    return (w.detach().double().mean() - 1.23).abs().item()


def test_a_quadratic_that_plain_bfloat16_cannot_solve():
    plain = distance_from_minimum(torch.optim.AdamW, torch.bfloat16)
    ours = distance_from_minimum(kernels.AdamW, torch.bfloat16)
    wide = distance_from_minimum(torch.optim.AdamW, torch.float32)
    assert plain > 0.2 and ours < 0.005 and wide < 0.005, (plain, ours, wide)


def test_one_step_is_torchs_adamw_before_rounding():
    """The mean over many seeds of the rounded step is the float32 step of torch.optim.AdamW."""
    start = torch.randn(50).bfloat16()
    gradient = torch.randn(50).bfloat16()
    settings = dict(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    exact = torch.nn.Parameter(start.float())
    exact.grad = gradient.float()
    torch.optim.AdamW([exact], **settings).step()
    exact = exact.detach()
    results = []
    for seed in range(400):
        p = torch.nn.Parameter(start.clone())
        p.grad = gradient
        kernels.AdamW([p], **settings, seed=seed).step()
        results.append(p.detach().double())
    results = torch.stack(results)
    unit = torch.maximum(ulp(start), ulp(exact.bfloat16()))
    assert ((results - exact.double()).abs() <= unit * 1.01).all()
    assert ((results.mean(0) - exact.double()).abs() < 5 * unit / 2 / 400**0.5).all()


SIZES = [(70001,), (3, 5), (1,), (0,), (300, 41)]


def trained(choice, steps=3, first=0, sizes=SIZES):
    """Weights and moments after some steps, for parameters numbered from `first` on."""
    kernels.use(choice, DEVICE)
    generator = torch.Generator().manual_seed(1)

    def new(shape):
        return torch.randn(shape, generator=generator).bfloat16().to(DEVICE)

    parameters = [torch.nn.Parameter(new(shape)) for shape in sizes]
    parameters[1].data = new((3, 6)).flatten()[1:16].view(3, 5)  # an odd address
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}]
    optimizer = kernels.AdamW(groups, lr=1e-2, seed=5)
    for p in parameters:
        optimizer._first_index[p] += first
    for _ in range(steps):
        for p in parameters:
            p.grad = new(p.shape)
        optimizer.step()
    result = []
    for p in parameters:
        state = optimizer.state[p]
        result += [p.detach(), state["exp_avg"], state["exp_avg_sq"]]
    return result


@pytest.mark.parametrize("first", [0, 2**32 - 70000, 2**33 + 7])
def test_pytorch_and_triton_give_the_same_bits(first):
    """At indices beyond 2³² too: a 10.7B model has them."""
    by_torch = trained("torch", first=first)
    by_triton = trained("triton", first=first)
    assert all(torch.equal(a, b) for a, b in zip(by_torch, by_triton, strict=True))


class Counted:
    """Wraps a kernel, and records the grids with which it was launched."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.grids = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return self.kernel[grid]


def test_many_tensors_take_few_launches(monkeypatch):
    counted = Counted(adamw._step_kernel)
    monkeypatch.setattr(adamw, "_step_kernel", counted)
    trained("triton", steps=1, sizes=[(4, 4)] * 30)
    # One per group, and one for the tensor at an odd address.
    assert len(counted.grids) == 3


@pytest.mark.parametrize("choice", IMPLEMENTATIONS)
def test_a_step_with_an_infinity_changes_nothing(choice):
    kernels.use(choice, DEVICE)
    p = torch.nn.Parameter(random(1000, dtype=torch.bfloat16))
    optimizer = kernels.AdamW([p], lr=1e-2)
    for found, moves in ((1.0, False), (0.0, True)):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.found_inf = torch.tensor(found, device=DEVICE)
        optimizer.step()
        assert (not torch.equal(p, before)) == moves
        assert bool(optimizer.state[p]["exp_avg"].any()) == moves


def test_six_bytes_a_parameter_and_resume():
    p = torch.nn.Parameter(torch.randn(1000).bfloat16())
    optimizer = kernels.AdamW([p], lr=1e-2)
    p.grad = torch.randn(1000).bfloat16()
    optimizer.step()
    state = optimizer.state[p]
    held = [p, state["exp_avg"], state["exp_avg_sq"]]
    assert sum(t.nbytes for t in held) == 6 * 1000
    again = torch.nn.Parameter(p.detach().clone())
    other = kernels.AdamW([again], lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for q, o in ((p, optimizer), (again, other)):
        q.grad = torch.ones(1000).bfloat16()
        o.step()
    assert torch.equal(p, again)


def test_wrong_parameters_are_refused():
    with pytest.raises(TypeError, match="bfloat16"):
        kernels.AdamW([torch.nn.Parameter(torch.zeros(3))])
    p = torch.nn.Parameter(torch.zeros(3, 4).bfloat16().t())
    p.grad = torch.zeros(4, 3).bfloat16()
    with pytest.raises(ValueError, match="not contiguous"):
        kernels.AdamW([p]).step()


# ------------------------------------------------------------------------------------ two processes


def head_and_batch():
    """A head, states (2, 2, 9, 16) and targets (2, 2, 9): the shares of two ranks of one batch."""
    torch.manual_seed(0)
    head = model.Head(16, 51, bias=False)
    return head, torch.randn(2, 2, 9, 16), torch.randint(0, 51, (2, 2, 9))


def local_rows(x):
    return parallel.local(x), parallel.rows(x)[0]


def sharded(rank: int, file: str, out: str) -> None:
    """Run as one of two ranks: a sharded head's loss and gradients, and a sharded AdamW."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    # By default fully_shard would use the GPUs if there are any.
    mesh = dist.init_device_mesh("cpu", (2,))

    head, x, chosen = head_and_batch()
    fully_shard(head, mesh=mesh)
    head.set_gradient_divide_factor(1.0)
    head.set_force_sum_reduction_for_comms(True)
    states = x[rank].requires_grad_()
    loss, _ = head(states, chosen[rank])
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)

    os.environ["WORLD_SIZE"] = "2"
    one_says_so = parallel.anywhere(torch.tensor(float(rank)))
    none_says_so = parallel.anywhere(torch.tensor(0.0))

    torch.manual_seed(1)
    layer = torch.nn.Linear(7, 5, bias=False).bfloat16()
    fully_shard(layer, mesh=mesh)
    with pytest.raises(ValueError, match="local_rows"):
        kernels.AdamW(layer.parameters())
    optimizer = kernels.AdamW(layer.parameters(), lr=1e-2, seed=3, local_rows=local_rows)
    for _ in range(2):
        weight = layer.weight
        gradient = torch.randn(5, 7).bfloat16()
        weight.grad = distribute_tensor(gradient, weight.device_mesh, weight.placements)
        optimizer.step()

    results = {
        "loss": total,
        "weight": head.weight.grad.full_tensor(),
        "adamw": layer.weight.detach().full_tensor(),
        "states": states.grad,
        "flags": (one_says_so, none_says_so),
    }
    torch.save(results, f"{out}/{rank}.pt")
    dist.barrier()
    # Exit as cli.run does: in a normal exit of Python a thread of gloo may abort the process.
    os._exit(0)


def test_a_sharded_head_and_a_sharded_optimizer(tmp_path):
    """FSDP2 over two processes: the loss and gradients of the whole batch; AdamW rounds as if the
    weight were not sharded."""
    torch.multiprocessing.spawn(sharded, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    a = torch.load(tmp_path / "0.pt")
    b = torch.load(tmp_path / "1.pt")

    head, x, chosen = head_and_batch()
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
    assert torch.equal(a["adamw"], layer.weight.detach())
    assert torch.equal(b["adamw"], a["adamw"])


# ------------------------------------------------------------------------- the choice and the bench


def test_there_is_one_place_that_chooses(monkeypatch):
    assert kernels.use("auto", "cpu") == "torch"
    assert kernels.use("torch", "cuda") == "torch"
    assert kernels.use("auto", "cuda") == ("triton" if launch.triton else "torch")
    with pytest.raises(ValueError, match="fast"):
        kernels.use("fast")
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(ValueError, match="CUDA device"):
        kernels.use("triton", "cpu")


def test_triton_without_a_gpu_is_refused_in_one_line(world, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    argv = ["--model", f"{world}/model", "--data", f"{world}/shards/ko=1",
            "--stages", "full:640:1e-3", "--seq_len", "32", "--out", str(tmp_path / "run"),
            "--device", "cpu", "--kernels", "triton"]
    refused(train, argv, "CUDA device")


def test_kernels_import_nothing_of_the_project():
    command = [sys.executable, "-c", "import kernels, sys; print(*sys.modules)"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {path.stem for path in ROOT.glob("*.py")} | {"common", "cleaning", "bench", "toy"}
    assert not ours & {name.partition(".")[0] for name in out.stdout.split()}


def test_a_contender_that_writes_over_its_inputs_harms_no_other(monkeypatch):
    """Liger does this: its dx overwrites dy, and the next call scales dx again, until it overflows.
    On a GPU every error in that table was NaN."""
    class Overwriting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return kernels.rms_norm_reference(x, weight, bench_kernels.EPS)

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            grad.mul_(1e30)
            return grad, torch.ones_like(weight)

    def contenders(kind, device):
        found = {"overwriting": Overwriting.apply}
        return found | {who: bench_kernels.from_kernels(kind) for who in ("nanowhale", "again")}

    monkeypatch.setattr(bench_kernels, "contenders", contenders)
    args = argparse.Namespace(device=DEVICE, repeats=2, errors=True)
    inputs = [random(6, 16, requires_grad=True), random(16, requires_grad=True)]
    operation = bench_kernels.Operation("rms_norm", "rms_norm", inputs, 1, 1)
    rows = {row["who"]: row for row in bench_kernels.time_operation(operation, 1.0, args)}
    assert rows["overwriting"]["error / eager's"] > 1e3
    assert rows["nanowhale"]["error / eager's"] == rows["again"]["error / eager's"] < 10
