"""The product of a linear layer, y = x Wᵀ: nobody's own, but the right library's.

Matrix products are the one thing here that a library does best; the question is which. For float32 on a CPU PyTorch
asks MKL, which on processors of other makers than its own runs at half of what they can do, or less. PyTorch also
carries oneDNN, which does not. GFLOP/s on an AMD EPYC, one thread, (2048, 256) · (256, 704):

    y = x Wᵀ          dx = dy W          dW = dyᵀ x
    MKL     79               99                  96       all three have the form A Bᵀ, of matrices or transposed
    oneDNN 219              220         152 … 230 *       views, so one function serves them     (* see `gradient`)

Everywhere else (GPUs, bfloat16, a few rows) PyTorch's own choice stands.
"""
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEWEST_ROWS = 16  # below, preparing the product costs more than it saves


def linear_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The definition. x (..., K), weight (M, K) → (..., M).

    >>> linear_reference(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([[11.,  2.]])
    """
    return F.linear(x, weight)


def suits(x: torch.Tensor) -> bool:
    """Is oneDNN the better library for products with x (..., K)?"""
    return (ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
            and x.shape[-1] > 0 and x.numel() >= FEWEST_ROWS * x.shape[-1])


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None,
            times: torch.Tensor | None = None) -> torch.Tensor:
    """A Bᵀ through oneDNN, in float32 proper, plus a bias, times a factor. a (..., K), b (M, K), bias (M,), factor of
    the result's shape → (..., M)."""
    a, b = (x.contiguous() if 0 in x.stride() else x for x in (a, b))  # oneDNN misreads repeated rows,
    bias = None if bias is None else bias.contiguous()                 # and a bias whose elements are no neighbours
    if times is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(a, times, b, bias, "mul")
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def gradient(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dyᵀ x of dy (N, M) and x (N, K) → (M, K). oneDNN copies a first matrix that is transposed: so the narrower comes
    first, and the result may itself be the transposed view of another."""
    return product(x.t(), dy.t()).t() if x.shape[1] < dy.shape[1] else product(dy.t(), x.t())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight.t()) if weight is not None else None
        return grad_x, None if x is None else gradient(grad.flatten(0, -2), x.flatten(0, -2))


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ with the faster library. Shapes as `linear_reference`; a frozen weight keeps nothing of x."""
    if suits(x) and not torch.compiler.is_compiling():  # the compiler has choices of its own
        return _Linear.apply(x, weight)
    return F.linear(x, weight)
