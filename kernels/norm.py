"""RMSNorm (Zhang and Sennrich, 1910.07467): rows divided by their root mean square, columns scaled.

    y_i = w_i x_i / r,    r = sqrt(mean_j x_j² + eps)

For example, x = (3, 4) has mean square 12.5, so r = 3.5355 and, with w = 1, y = (0.8485, 1.1314).

The backward pass, with g_i = w_i dy_i and x̂ = x / r:

    dx = (g - x̂ mean(g x̂)) / r,    dw = Σ_rows dy x̂

So only x and 1/r (one float per row) must be kept. The definition's graph also keeps x̂ and a
float32 copy.

Before a norm comes an addition, the stream s = x + residual. `add_rms_norm` computes both in a
single pass over memory. Memory traffic in tensors of x's size (bfloat16; a float32 copy counts
twice):

    the definition, forward only                                                21
        (addition 3, to float32 3, square 4, mean 2, scale 4, round 3, weight 2)
    addition and rms_norm, forward 3 + 2, backward 3 + 3                        11
        (3 more backward, because the stream has its own gradient)
    add_rms_norm, forward 4, backward 4                                          8
"""
import torch
from torch.autograd.function import once_differentiable
from torch.library import triton_op

from kernels.launch import (
    as_rows,
    block,
    jit,
    load_float32,
    require,
    resident_programs,
    tl,
    triton_runs,
    wrap_triton,
)

# The longest row, in elements, that a program can hold in registers. For longer rows the compiler
# would spill to memory, so the PyTorch lines run instead.
LONGEST_ROW = 2**13


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The definition. x (..., D), weight (D,) → (..., D) in x's dtype.

    The mean is computed in float32 or better.

    >>> rms_norm_reference(torch.tensor([3.0, 4.0]), torch.ones(2), 0.0)
    tensor([0.8485, 1.1314])
    """
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight.to(x.dtype)


def add_rms_norm_reference(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition. x and residual (..., D) → (RMSNorm of their sum, the sum), both (..., D)."""
    stream = x + residual
    return rms_norm_reference(stream, weight, eps), stream


# ---------------------------------------------------------------------------------------- in Triton


@jit
def _norm_forward_kernel(
    X,          # (N, D), its rows x_stride elements apart
    R,          # (N, D), the residual; read only if ADD
    W,          # (D,)
    Y,          # (N, D), written: the norm
    S,          # (N, D), written only if ADD: the stream, x + residual
    INVERSE,    # (N,) float32, written: 1 / r
    x_stride,
    r_stride,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    """One program per row, which stays in registers from the sum of squares to the product."""
    row = tl.program_id(0).to(tl.int64)  # 64 bits: 600k rows of 4096 exceed 2³¹ elements
    column = tl.arange(0, BLOCK)
    inside = column < D
    x = load_float32(X + row * x_stride + column, inside)
    if ADD:
        # Take the norm of the rounded stream, which is what the backward pass will read.
        x += load_float32(R + row * r_stride + column, inside)
        rounded = x.to(S.dtype.element_ty)
        tl.store(S + row * D + column, rounded, inside)
        x = rounded.to(tl.float32)

    # torch.compile passes eps as float64, which would promote the whole row.
    mean_square = tl.sum(x * x) / D
    inverse = 1.0 / tl.sqrt(mean_square + tl.cast(eps, tl.float32))

    # A store rounds to the dtype of its destination.
    w = load_float32(W + column, inside)
    tl.store(Y + row * D + column, x * inverse * w, inside)
    tl.store(INVERSE + row, inverse)


@jit
def _norm_backward_kernel(
    DY,         # (N, D), the gradient of the norm
    DS,         # (N, D), the gradient of the stream; read only if ADD
    X,          # (N, D), what was normed: x, or the stream
    W,          # (D,)
    INVERSE,    # (N,) float32, 1 / r
    DX,         # (N, D), written
    DW,         # (programs, D) float32, written only if WEIGHT: each program's share of dw
    dy_stride,
    ds_stride,
    x_stride,
    n_rows,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
):
    """Program p of P takes rows p, p + P, p + 2P, …, and keeps its share of dw in registers.

    The P shares are summed afterwards, always in the same order. Atomic additions would come in any
    order.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < D
    w = load_float32(W + column, inside)
    dw = tl.zeros([BLOCK], tl.float32)

    # With num_stages, the next rows are loaded while this one is computed.
    for i in tl.range(program, n_rows, programs, num_stages=3):
        row = tl.cast(i, tl.int64)
        dy = load_float32(DY + row * dy_stride + column, inside)
        x = load_float32(X + row * x_stride + column, inside)
        inverse = tl.load(INVERSE + row)
        normed = x * inverse
        g = dy * w
        projection = tl.sum(g * normed) / D
        dx = (g - normed * projection) * inverse
        if ADD:
            dx += load_float32(DS + row * ds_stride + column, inside)
        tl.store(DX + row * D + column, dx, inside)
        if WEIGHT:
            dw += dy * normed
    if WEIGHT:
        tl.store(DW + program * D + column, dw, inside)


@triton_op("nanowhale::rms_norm", mutates_args={})
def _forward_triton(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x and residual (..., D) → norm (..., D), stream (..., D; empty without residual), 1/r."""
    D = x.shape[-1]
    add = residual is not None
    x_rows = as_rows(x)                                        # (N, D)
    residual_rows = as_rows(residual) if add else x_rows       # (N, D)
    y = x.new_empty(x.shape)
    stream = x.new_empty(x.shape if add else 0)
    inverse = x.new_empty(len(x_rows), dtype=torch.float32)
    wrap_triton(_norm_forward_kernel)[(len(x_rows),)](
        x_rows,
        residual_rows,
        weight.contiguous(),
        y,
        stream,
        inverse,
        x_rows.stride(0),
        residual_rows.stride(0),
        eps,
        D=D,
        ADD=add,
        **block(D),
    )
    return y, stream, inverse


@triton_op("nanowhale::rms_norm_backward", mutates_args={})
def _backward_triton(
    grad: torch.Tensor,
    grad_stream: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    need_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of norm and stream (..., D), and what forward kept → dx (..., D), dw (D,).

    If dw is not needed, it is returned as an empty tensor.
    """
    D = x.shape[-1]
    add = grad_stream is not None
    grad_rows = as_rows(grad)                                          # (N, D)
    stream_rows = as_rows(grad_stream) if add else grad_rows           # (N, D)
    x_rows = as_rows(x)                                                # (N, D)
    layout = block(D)
    programs = min(len(x_rows), resident_programs(x.device, layout["num_warps"]))
    grad_x = x.new_empty(x.shape)
    shares = x.new_empty((programs if need_weight else 0, D), dtype=torch.float32)
    wrap_triton(_norm_backward_kernel)[(programs,)](
        grad_rows,
        stream_rows,
        x_rows,
        weight.contiguous(),
        inverse,
        grad_x,
        shares,
        grad_rows.stride(0),
        stream_rows.stride(0),
        x_rows.stride(0),
        len(x_rows),
        D=D,
        ADD=add,
        WEIGHT=need_weight,
        **layout,
    )
    if not need_weight:
        return grad_x, shares
    return grad_x, shares.sum(0).to(weight.dtype)


def _kernel_runs(x: torch.Tensor) -> bool:
    """Does Triton run the norm of x? Not if the rows are too long for registers."""
    return triton_runs(x) and x.shape[-1] <= LONGEST_ROW


# --------------------------------------------------------------------------------------- in PyTorch


def _forward_torch(x, residual, weight, eps):
    """The definition, bit for bit, with 1/r (..., 1) kept: shapes as `_forward_triton`."""
    stream = x if residual is None else x + residual
    wide = stream if x.dtype == torch.float64 else stream.float()
    inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()   # (..., 1)
    normed = (wide * inverse).to(x.dtype)
    return normed.mul_(weight.to(x.dtype)), stream, inverse


def _backward_torch(grad, grad_stream, x, weight, inverse, need_weight):
    """The formula of the module docstring, in float32 or float64: shapes as `_backward_triton`."""
    normed = x * inverse                                                # x̂ (..., D)
    grad = grad.to(normed.dtype)
    grad_weight = None
    if need_weight:
        grad_weight = (grad * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
    g = grad * weight.to(normed.dtype)
    projection = (g * normed).mean(-1, keepdim=True)                    # (..., 1)
    grad_x = g.sub_(normed.mul_(projection)).mul_(inverse)
    if grad_stream is not None:
        grad_x.add_(grad_stream)
    return grad_x.to(x.dtype), grad_weight


# ----------------------------------------------------------------------------------- the operations


class _RMSNorm(torch.autograd.Function):
    """Both operations: the output is (norm, stream) with a residual, and the norm without one."""

    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        run = _forward_triton if _kernel_runs(x) else _forward_torch
        y, stream, inverse = run(x, residual, weight, eps)
        ctx.has_residual = residual is not None
        if ctx.has_residual:
            ctx.save_for_backward(stream, weight, inverse)
            return y, stream
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_stream=None):
        x, weight, inverse = ctx.saved_tensors
        need_weight = ctx.needs_input_grad[2]
        run = _backward_triton if _kernel_runs(x) else _backward_torch
        grad_x, grad_weight = run(grad, grad_stream, x, weight, inverse, need_weight)
        if not need_weight:
            grad_weight = None
        # x and the residual were added, so they have the same gradient; eps has none.
        grad_residual = grad_x if ctx.has_residual else None
        return grad_x, grad_residual, grad_weight, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm, keeping only x and one number per row for the backward pass.

    Shapes and dtypes as `rms_norm_reference`; ValueError if they do not match.
    """
    require(("weight's shape", weight.shape, x.shape[-1:]))
    if torch.compiler.is_compiling() and not _kernel_runs(x):  # see launch.left_to_compiler
        return rms_norm_reference(x, weight, eps)
    return _RMSNorm.apply(x, None, weight, eps)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm of x + residual, x + residual) in a single pass over memory.

    Shapes and dtypes as `add_rms_norm_reference`; ValueError if they do not match.
    """
    require(
        ("weight's shape", weight.shape, x.shape[-1:]),
        ("residual's shape", residual.shape, x.shape),
        ("residual's dtype", residual.dtype, x.dtype),
    )
    if torch.compiler.is_compiling() and not _kernel_runs(x):
        return add_rms_norm_reference(x, residual, weight, eps)
    return _RMSNorm.apply(x, residual, weight, eps)
