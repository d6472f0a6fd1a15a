"""SwiGLU (Shazeer, 2002.05202): the gate of Llama's feed-forward layer.

    y = silu(g) · u,    silu(g) = g σ(g),    σ(g) = 1 / (1 + e^-g)

    dg = dy u σ(g) (1 + g (1 - σ(g))),    du = dy silu(g)

The definition's graph keeps g (in float32), silu(g) and u. Only g and u are needed, because it is
cheaper to recompute σ(g) than to store it.

Memory traffic, in bfloat16 tensors of g's size (a float32 copy counts twice): the definition, with
one kernel per operation, moves 13 forward and 18 backward, and keeps 4. A fused kernel moves 3 and
5, and keeps 2. At 10.7B (F = 14336, 48 layers) the two that are not kept are 2.75 MB per token.
"""
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.library import triton_op

from kernels.launch import (
    as_rows,
    jit,
    left_to_compiler,
    load_float32,
    require,
    tl,
    triton_runs,
    wrap_triton,
)

# Elements per program: with 8 warps each thread loads 16 bytes of a bfloat16 tensor at once.
BLOCK = 2048
WARPS = 8


def swiglu_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The definition. gate and up (..., F) → (..., F).

    >>> swiglu_reference(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]))      # σ(1) = 0.7311
    tensor([0.0000, 1.4621])
    """
    wide = gate if gate.dtype == torch.float64 else gate.float()
    return F.silu(wide).to(gate.dtype) * up


# ---------------------------------------------------------------------------------------- in Triton


@jit
def _swiglu_forward_kernel(
    G,              # (N, width), its rows g_stride elements apart
    U,              # (N, width)
    Y,              # (N, width), written
    g_stride,
    u_stride,
    width,
    blocks,         # per row
    BLOCK: tl.constexpr,
):
    """Program p computes block p % blocks of row p // blocks."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = load_float32(G + row * g_stride + column, inside)
    u = load_float32(U + row * u_stride + column, inside)
    tl.store(Y + row * width + column, g * tl.sigmoid(g) * u, inside)


@jit
def _swiglu_backward_kernel(
    DY,             # (N, width), its rows dy_stride elements apart
    G,              # (N, width)
    U,              # (N, width)
    DG,             # (N, width), written
    DU,             # (N, width), written
    dy_stride,
    g_stride,
    u_stride,
    width,
    blocks,         # per row
    BLOCK: tl.constexpr,
):
    """Program p computes block p % blocks of row p // blocks."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    dy = load_float32(DY + row * dy_stride + column, inside)
    g = load_float32(G + row * g_stride + column, inside)
    u = load_float32(U + row * u_stride + column, inside)
    sigmoid = tl.sigmoid(g)
    dg = dy * u * sigmoid * (1 + g * (1 - sigmoid))
    tl.store(DG + row * width + column, dg, inside)
    du = dy * g * sigmoid
    tl.store(DU + row * width + column, du, inside)


def _layout(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], int, int]:
    """The tensors as rows (N, width), the width, and the number of blocks per row.

    Contiguous tensors become one long row, of which only the last block can be incomplete.
    """
    if all(x.is_contiguous() for x in tensors):
        flat = [x.reshape(1, -1) for x in tensors]
    else:
        flat = [as_rows(x) for x in tensors]
    width = flat[0].shape[1]
    blocks = -(-width // BLOCK)  # rounded up
    return flat, width, blocks


@triton_op("nanowhale::swiglu", mutates_args={})
def _forward_triton(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    (g, u), width, blocks = _layout(gate, up)
    y = gate.new_empty(gate.shape)
    wrap_triton(_swiglu_forward_kernel)[(len(g) * blocks,)](
        g,
        u,
        y,
        g.stride(0),
        u.stride(0),
        width,
        blocks,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return y


@triton_op("nanowhale::swiglu_backward", mutates_args={})
def _backward_triton(
    grad: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    (dy, g, u), width, blocks = _layout(grad, gate, up)
    grad_gate = gate.new_empty(gate.shape)
    grad_up = gate.new_empty(gate.shape)
    wrap_triton(_swiglu_backward_kernel)[(len(g) * blocks,)](
        dy,
        g,
        u,
        grad_gate,
        grad_up,
        dy.stride(0),
        g.stride(0),
        u.stride(0),
        width,
        blocks,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return grad_gate, grad_up


# ------------------------------------------------------------------------------------ the operation


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        if triton_runs(gate):
            return _forward_triton(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        if triton_runs(gate):
            return _backward_triton(grad, gate, up)
        # silu_backward is what autograd uses for F.silu.
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        grad_up = F.silu(gate).mul_(grad)
        return grad_gate, grad_up


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, keeping only the two inputs for the backward pass.

    Shapes and dtypes as `swiglu_reference`; ValueError if they do not match.
    """
    require(
        ("up's shape", up.shape, gate.shape),
        ("up's dtype", up.dtype, gate.dtype),
    )
    if left_to_compiler(gate):
        return swiglu_reference(gate, up)
    return _SwiGLU.apply(gate, up)
