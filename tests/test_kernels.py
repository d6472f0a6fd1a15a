"""kernels/: the operations against their definitions in float64, and what they promise about memory."""
import doctest

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
import kernels.linear_cross_entropy
import kernels.rms_norm
import kernels.rope
import kernels.swiglu

TABLES = torch.randn(7, 4).cos(), torch.randn(7, 4).sin()
TARGETS = torch.tensor([0, 12, -100, 5, 5, 1, -100, 2, 9])
CASES = {
    "rms_norm": ([(2, 5, 24), (24,)], lambda f, x, w: f(x, w, 1e-5)),
    "rope": ([(2, 4, 7, 8), (2, 2, 7, 8)], lambda f, q, k: torch.cat([t.flatten() for t in f(q, k, *TABLES)])),
    "swiglu": ([(3, 5, 11), (3, 5, 11)], lambda f, g, u: f(g, u)),
    "linear_cross_entropy": ([(9, 6), (13, 6)], lambda f, h, w: f(h, w, TARGETS)[0]),
}


def run(function, call, inputs, dtype):
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    out = call(function, *inputs)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_as_close_to_float64_as_the_definition(name, dtype):
    """The rule: the error against float64 is at most the definition's own in that dtype, plus a small constant."""
    shapes, call = CASES[name]
    fused, reference = getattr(kernels, name), getattr(kernels, name + "_reference")
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    exact = run(reference, call, inputs, torch.float64)
    ours, theirs = run(fused, call, inputs, dtype), run(reference, call, inputs, dtype)
    slack = 4 * torch.finfo(dtype).eps
    for got, peer, true in zip(ours, theirs, exact, strict=True):
        assert got.dtype == peer.dtype
        allowed = (peer - true).abs().max() + slack * true.abs().max()
        assert (got - true).abs().max() <= allowed


@pytest.mark.parametrize("name", CASES)
def test_definitions_pass_gradcheck(name):
    shapes, call = CASES[name]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for function in (getattr(kernels, name), getattr(kernels, name + "_reference")):
        assert torch.autograd.gradcheck(lambda *x, f=function: call(f, *x), inputs)


@pytest.mark.parametrize("name", ["rms_norm", "rope"])
def test_float32_forward_is_the_definitions_bit_for_bit(name):
    shapes, call = CASES[name]
    inputs = [torch.randn(shape) for shape in shapes]
    assert torch.equal(call(getattr(kernels, name), *inputs), call(getattr(kernels, name + "_reference"), *inputs))


def test_inputs_are_never_overwritten_and_may_be_strided():
    for name, (shapes, call) in CASES.items():
        inputs = [torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] for shape in shapes]
        copies = [x.clone() for x in inputs]
        run(getattr(kernels, name), call, inputs, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True)), name


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_chunks_do_not_change_the_loss(rows):
    hidden = torch.randn(37, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (37,))
    loss, count = kernels.linear_cross_entropy(hidden, weight, targets, chunk_bytes=rows * 50 * 8)
    mine = torch.autograd.grad(loss, (hidden, weight))
    loss_reference, _ = kernels.linear_cross_entropy_reference(hidden, weight, targets)
    theirs = torch.autograd.grad(loss_reference, (hidden, weight))
    assert count == 37 and torch.allclose(loss, loss_reference)
    assert all(torch.allclose(a, b) for a, b in zip(mine, theirs, strict=True))


def test_all_masked_and_empty_batches_give_zero():
    weight = torch.randn(9, 4, requires_grad=True)
    for n in (0, 3):
        hidden = torch.randn(n, 4, requires_grad=True)
        loss, count = kernels.linear_cross_entropy(hidden, weight, torch.full((n,), -100))
        loss.backward()
        assert loss == 0 and count == 0 and not hidden.grad.any() and not weight.grad.any()


def test_a_frozen_weight_gets_no_gradient_buffer():
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    loss, _ = kernels.linear_cross_entropy(hidden, weight, torch.randint(0, 9, (6,)))
    assert [t for t in loss.grad_fn.saved_tensors if t is not None and t.shape == weight.shape] == []


def test_a_huge_logit_does_not_overflow():
    loss, _ = kernels.linear_cross_entropy(torch.full((1, 1), 1e4), torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    assert loss == 2e4


@pytest.mark.parametrize("name, extra", [("rms_norm", 10), ("rope", 0), ("swiglu", 0)])
def test_the_tensors_kept_for_backward_are_few(name, extra):
    """Elements saved for the backward pass, counted: the inputs (RoPE: not even those), and `extra`."""
    shapes, call = CASES[name]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def saved(function):
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
            out = call(function, *inputs)
        assert out.isfinite().all()
        return sum(t.numel() for t in kept.values())
    allowed = sum(t.numel() for t in (TABLES if name == "rope" else inputs)) + extra
    assert saved(getattr(kernels, name)) <= allowed
    assert name == "rope" or saved(getattr(kernels, name + "_reference")) > allowed  # a rotation is linear in q and k


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("grad", [True, False])
def test_a_batch_of_logits_never_exists(grad):
    """4,096 tokens × 8,192 classes are 33.5M logits; with 4 MB of chunk nothing over 1M elements is made."""
    hidden = torch.randn(4096, 64, requires_grad=grad)
    weight = torch.randn(8192, 64, requires_grad=grad)
    with Largest() as seen, torch.set_grad_enabled(grad):
        loss, _ = kernels.linear_cross_entropy(hidden, weight, torch.randint(0, 8192, (4096,)), chunk_bytes=2**22)
    assert loss > 0 and seen.elements <= 2**22 // 4


def test_the_weights_gradient_is_summed_in_float32():
    """256 chunks of bfloat16: a bfloat16 sum would stall; a float32 one is as good as one product's rounding."""
    hidden = (torch.rand(512, 8) + 0.5).bfloat16()
    weight = torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(512, dtype=torch.long)
    loss, _ = kernels.linear_cross_entropy(hidden, weight, targets, chunk_bytes=2 * 4 * 4)
    (mine,) = torch.autograd.grad(loss, weight)
    exact = weight.detach().double().requires_grad_()
    (true,) = torch.autograd.grad(kernels.linear_cross_entropy_reference(hidden.double(), exact, targets)[0], exact)
    assert ((mine - true).abs() <= 2**-8 * true.abs()).all()


def test_there_is_one_place_that_chooses():
    assert kernels.use("auto") in kernels.IMPLEMENTATIONS
    with pytest.raises(ValueError, match="fast"):
        kernels.use("fast")


@pytest.mark.parametrize("module", ["rms_norm", "rope", "swiglu", "linear_cross_entropy"])
def test_worked_examples(module):
    import importlib
    result = doctest.testmod(importlib.import_module(f"kernels.{module}"))
    assert result.attempted and not result.failed
