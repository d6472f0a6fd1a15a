"""SwiGLU (Shazeer, 2002.05202): the gate of Llama's feed-forward block.

    y = silu(g) · u,    silu(g) = g σ(g),    σ(g) = 1 / (1 + e^-g)

    dg = dy u σ(g) (1 + g (1 - σ(g))),    du = dy silu(g)

The definition's graph keeps g (widened), silu(g) and u; only g and u are needed: σ(g) is cheaper to compute again than
to store. Memory traffic in bfloat16 tensors of g's size (a float32 copy counts twice): the definition, a kernel for
each of its operations, moves 13 forward and 18 backward and keeps 4; a fused kernel moves 3 and 5 and keeps 2. At
10.7B (F = 14336, 48 layers) the two that are not kept are 2.75 MB a token.
"""
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.library import triton_op

from kernels.launch import jit, left_to_compiler, require, rows, tl, triton_runs, wrap_triton

BLOCK = 2048  # elements a program; with 8 warps one load of 16 bytes a thread and input in bfloat16


def swiglu_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The definition. gate and up (..., F) → (..., F).

    >>> swiglu_reference(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]))      # σ(1) = 0.7311
    tensor([0.0000, 1.4621])
    """
    wide = gate if gate.dtype == torch.float64 else gate.float()
    return F.silu(wide).to(gate.dtype) * up


@jit
def _swiglu_forward_kernel(G, U, Y, g_stride, u_stride, width, blocks, BLOCK: tl.constexpr):
    """Program p does block p % blocks of row p // blocks."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(G + row * g_stride + column, inside, 0.0).to(tl.float32)
    u = tl.load(U + row * u_stride + column, inside, 0.0).to(tl.float32)
    tl.store(Y + row * width + column, (g * tl.sigmoid(g) * u).to(Y.dtype.element_ty), inside)


@jit
def _swiglu_backward_kernel(DY, G, U, DG, DU, dy_stride, g_stride, u_stride, width, blocks, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    dy = tl.load(DY + row * dy_stride + column, inside, 0.0).to(tl.float32)
    g = tl.load(G + row * g_stride + column, inside, 0.0).to(tl.float32)
    u = tl.load(U + row * u_stride + column, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    tl.store(DG + row * width + column, (dy * u * sigmoid * (1 + g * (1 - sigmoid))).to(DG.dtype.element_ty), inside)
    tl.store(DU + row * width + column, (dy * g * sigmoid).to(DU.dtype.element_ty), inside)


def _layout(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], int, int]:
    """The tensors as rows, their width, and blocks a row. Contiguous ones are one long row: no block is cut short."""
    whole = all(x.is_contiguous() for x in tensors)
    flat = [x.reshape(1, -1) if whole else rows(x) for x in tensors]
    return flat, flat[0].shape[1], -(-flat[0].shape[1] // BLOCK)


@triton_op("nanowhale::swiglu", mutates_args={})
def _forward_triton(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    (g, u), width, blocks = _layout(gate, up)
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    wrap_triton(_swiglu_forward_kernel)[(len(g) * blocks,)](g, u, y, g.stride(0), u.stride(0), width, blocks,
                                                            BLOCK=BLOCK, num_warps=8)
    return y


@triton_op("nanowhale::swiglu_backward", mutates_args={})
def _backward_triton(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (dy, g, u), width, blocks = _layout(grad, gate, up)
    grad_gate, grad_up = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
    wrap_triton(_swiglu_backward_kernel)[(len(g) * blocks,)](dy, g, u, grad_gate, grad_up, dy.stride(0), g.stride(0),
                                                      u.stride(0), width, blocks, BLOCK=BLOCK, num_warps=8)
    return grad_gate, grad_up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return _forward_triton(gate, up) if triton_runs(gate) else F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        if triton_runs(gate):
            return _backward_triton(grad, gate, up)
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, keeping only the two inputs for the backward pass. Shapes as `swiglu_reference`."""
    require(("up's shape", up.shape, gate.shape), ("up's dtype", up.dtype, gate.dtype))
    if left_to_compiler(gate):
        return swiglu_reference(gate, up)
    return _SwiGLU.apply(gate, up)
