"""SwiGLU (Shazeer, 2002.05202): the gate of Llama's feed-forward block.

    y = silu(g) · u,    silu(g) = g σ(g),    σ(g) = 1 / (1 + e^-g)

    dg = dy u σ(g) (1 + g (1 - σ(g))),    du = dy silu(g)

The definition's graph keeps g, u and silu(g); only g and u are needed, σ(g) is cheaper to compute again than to store.
"""
import torch
import torch.nn.functional as F


def swiglu_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The definition. gate and up (..., F) → (..., F).

    >>> swiglu_reference(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]))      # σ(1) = 0.7311
    tensor([0.0000, 1.4621])
    """
    wide = gate if gate.dtype == torch.float64 else gate.float()
    return F.silu(wide).to(gate.dtype) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, F.silu(gate).mul_(grad)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, keeping only the two inputs for the backward pass. Shapes as `swiglu_reference`."""
    return _SwiGLU.apply(gate, up)
