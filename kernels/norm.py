"""RMSNorm (Zhang and Sennrich, 1910.07467): divide each row by its root mean square, scale each column.

    y_i = w_i x_i / r,    r = sqrt(mean_j x_j² + eps)

Worked by hand: x = (3, 4) has mean square 12.5, so r = 3.5355 and y = (0.8485, 1.1314) for w = 1.

The backward pass, with g_i = w_i dy_i and x̂ = x / r:

    dx = (g - x̂ mean(g x̂)) / r,    dw = Σ_rows dy x̂

so 1/r (one float a row) is all that must be kept beside x; the definition's graph keeps x̂ and a float32 copy as well.

In front of a norm stands an addition, the stream s = x + residual, and `add_rms_norm` does both in one visit. Memory
traffic in tensors of x's size (bfloat16; a float32 copy counts twice):

    the definition, forward: the addition 3, to float32 3, square 4, mean 2, scale 4, round 3, weight 2     21
    the addition and rms_norm, forward 3 + 2, backward 3 + 3 (the stream has a gradient of its own)         11
    add_rms_norm, forward 4, backward 4                                                                      8
"""
import torch
from torch.autograd.function import once_differentiable
from torch.library import triton_op

from kernels.launch import block, jit, require, resident_programs, rows, tl, triton_runs, wrap_triton

LONGEST_ROW = 2**13  # elements that a program holds in registers; beyond, the compiler spills, and PyTorch's lines run


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The definition. x (..., D), weight (D,) → (..., D) in x's dtype; the mean is taken in float32 or better.

    >>> rms_norm_reference(torch.tensor([3.0, 4.0]), torch.ones(2), 0.0)
    tensor([0.8485, 1.1314])
    """
    wide = x if x.dtype == torch.float64 else x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight.to(x.dtype)


def add_rms_norm_reference(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float):
    """The definition. x and residual (..., D) → (RMSNorm of their sum, their sum), both (..., D)."""
    stream = x + residual
    return rms_norm_reference(stream, weight, eps), stream


@jit
def _norm_forward_kernel(X, R, W, Y, S, INVERSE, x_stride, r_stride, eps, D: tl.constexpr, BLOCK: tl.constexpr,
                    ADD: tl.constexpr):
    """One program a row, which it holds in registers between the sum of squares and the product."""
    row = tl.program_id(0).to(tl.int64)  # 64 bits: 600k rows of 4096 are past 2³¹ elements
    column = tl.arange(0, BLOCK)
    inside = column < D
    x = tl.load(X + row * x_stride + column, inside, 0.0).to(tl.float32)
    if ADD:
        x += tl.load(R + row * r_stride + column, inside, 0.0).to(tl.float32)
        rounded = x.to(S.dtype.element_ty)
        tl.store(S + row * D + column, rounded, inside)
        x = rounded.to(tl.float32)  # the norm is of the stream that the backward pass will read
    # torch.compile passes eps as a float64, which would widen the whole row.
    inverse = 1.0 / tl.sqrt(tl.sum(x * x) / D + tl.cast(eps, tl.float32))
    w = tl.load(W + column, inside, 0.0).to(tl.float32)
    tl.store(Y + row * D + column, (x * inverse * w).to(Y.dtype.element_ty), inside)
    tl.store(INVERSE + row, inverse)


@jit
def _norm_backward_kernel(DY, DS, X, W, INVERSE, DX, DW, dy_stride, ds_stride, x_stride, n_rows, D: tl.constexpr,
                     BLOCK: tl.constexpr, ADD: tl.constexpr, WEIGHT: tl.constexpr):
    """Program p takes rows p, p + P, p + 2P, …: its share of dw stays in registers, and is written once. P shares are
    summed afterwards, in the same order each time (atomic additions would come in any order)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < D
    w = tl.load(W + column, inside, 0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    for i in tl.range(program, n_rows, programs, num_stages=3):  # the next rows are on their way during this one's sums
        row = tl.cast(i, tl.int64)
        dy = tl.load(DY + row * dy_stride + column, inside, 0.0).to(tl.float32)
        x = tl.load(X + row * x_stride + column, inside, 0.0).to(tl.float32)
        inverse = tl.load(INVERSE + row)
        normed = x * inverse
        g = dy * w
        dx = (g - normed * (tl.sum(g * normed) / D)) * inverse
        if ADD:
            dx += tl.load(DS + row * ds_stride + column, inside, 0.0).to(tl.float32)
        tl.store(DX + row * D + column, dx.to(DX.dtype.element_ty), inside)
        if WEIGHT:
            dw += dy * normed
    if WEIGHT:
        tl.store(DW + program * D + column, dw, inside)


@triton_op("nanowhale::rms_norm", mutates_args={})
def _forward_triton(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor,
                    eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x2, r2, add, D = rows(x), rows(x if residual is None else residual), residual is not None, x.shape[-1]  # (N, D)
    y, inverse = torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(len(x2), dtype=torch.float32)
    stream = torch.empty_like(y) if add else x.new_empty(0)
    wrap_triton(_norm_forward_kernel)[(len(x2),)](x2, r2, weight.contiguous(), y, stream, inverse, x2.stride(0),
                                             r2.stride(0), eps, D=D, ADD=add, **block(D))
    return y, stream, inverse


@triton_op("nanowhale::rms_norm_backward", mutates_args={})
def _backward_triton(grad: torch.Tensor, grad_stream: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor,
                     inverse: torch.Tensor, need_weight: bool) -> tuple[torch.Tensor, torch.Tensor]:
    g2, x2, s2 = rows(grad), rows(x), rows(grad if grad_stream is None else grad_stream)
    D, add, layout = x.shape[-1], grad_stream is not None, block(x.shape[-1])
    programs = min(len(x2), resident_programs(x.device, layout["num_warps"]))
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shares = x.new_empty((programs if need_weight else 0, D), dtype=torch.float32)
    wrap_triton(_norm_backward_kernel)[(programs,)](g2, s2, x2, weight.contiguous(), inverse, grad_x, shares,
                                                    g2.stride(0), s2.stride(0), x2.stride(0), len(x2), D=D, ADD=add,
                                                    WEIGHT=need_weight, **layout)
    return grad_x, shares.sum(0).to(weight.dtype) if need_weight else shares


def _kernel_runs(x: torch.Tensor) -> bool:
    """Does Triton do the norm of x? Not of rows that are too long for its registers."""
    return triton_runs(x) and x.shape[-1] <= LONGEST_ROW


def _forward_torch(x, residual, weight, eps):
    stream = x if residual is None else x + residual
    wide = stream if x.dtype == torch.float64 else stream.float()
    inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # (..., 1), bit for bit the definition's
    return (wide * inverse).to(x.dtype).mul_(weight.to(x.dtype)), stream, inverse


def _backward_torch(grad, grad_stream, x, weight, inverse, need_weight):
    normed = x * inverse                                                # x̂ (..., D), float32 or float64
    wide = grad.to(normed.dtype)
    grad_weight = (wide * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype) if need_weight else None
    g = wide * weight.to(normed.dtype)
    projection = (g * normed).mean(-1, keepdim=True)                    # (..., 1)
    grad_x = g.sub_(normed.mul_(projection)).mul_(inverse)
    return (grad_x if grad_stream is None else grad_x.add_(grad_stream)).to(x.dtype), grad_weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        run = _forward_triton if _kernel_runs(x) else _forward_torch
        y, stream, inverse = run(x, residual, weight, eps)
        ctx.save_for_backward(x if residual is None else stream, weight, inverse)
        ctx.add = residual is not None
        return (y, stream) if ctx.add else y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_stream=None):
        x, weight, inverse = ctx.saved_tensors
        run = _backward_triton if _kernel_runs(x) else _backward_torch
        grad_x, grad_weight = run(grad, grad_stream, x, weight, inverse, ctx.needs_input_grad[2])
        return grad_x, grad_x if ctx.add else None, grad_weight if ctx.needs_input_grad[2] else None, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm that keeps x and one number a row for its backward pass. Shapes and dtypes as `rms_norm_reference`."""
    require(("weight's shape", weight.shape, x.shape[-1:]))
    if torch.compiler.is_compiling() and not _kernel_runs(x):  # see launch.left_to_compiler
        return rms_norm_reference(x, weight, eps)
    return _RMSNorm.apply(x, None, weight, eps)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float):
    """(RMSNorm of x + residual, x + residual) in one visit. Shapes and dtypes as `add_rms_norm_reference`."""
    require(("weight's shape", weight.shape, x.shape[-1:]), ("residual's shape", residual.shape, x.shape),
            ("residual's dtype", residual.dtype, x.dtype))
    if torch.compiler.is_compiling() and not _kernel_runs(x):
        return add_rms_norm_reference(x, residual, weight, eps)
    return _RMSNorm.apply(x, residual, weight, eps)
