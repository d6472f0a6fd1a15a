"""Rotary position embedding (Su et al., 2104.09864), in the rotate-half layout of Hugging Face checkpoints.

Component i of a head is paired with component i + D/2, and the pair at position t turns by the angle t·θ_i:

    (a, b) → (a cos - b sin,  b cos + a sin),    a = x[i], b = x[i + D/2]

Meta's own checkpoints pair neighbours (2i, 2i + 1) instead. Mixing the two gives no error, only text that falls
apart after some twenty tokens; every checkpoint in the HF layout has been permuted for this one.

Worked by hand: D = 2 and an angle of 90°: (1, 0) → (0, 1), and a query turned by s meets a key turned by t in an
inner product that depends on s - t alone.

A rotation's inverse is the rotation by -angle, so the backward pass is the forward one with sin negated.
"""
import math

import torch


def rope_frequencies(width: int, theta: float, scaling: dict | None = None) -> torch.Tensor:
    """Radians a position for each pair of a head of `width` components: theta^(-2i/width), (width/2,) float32.

    `scaling` is Llama 3.1's ("llama3"; 2407.21783): that model was trained on 8k positions and extended. Pairs that
    turn slowly (fewer than low_freq_factor turns in the old context) turn `factor` times slower still, fast ones (more
    than high_freq_factor turns) stay as they were, and the band between is interpolated.
    """
    frequency = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    if not scaling:
        return frequency
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # within the old context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)                                 # 1: as it was; 0: stretched
    return frequency * (keep + (1 - keep) / scaling["factor"])


def rope_reference(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """The definition. q (B, H, T, D), k (B, K, T, D), cos and sin (T, D/2) → the same two, turned.

    >>> turn = torch.tensor([[0.0]]), torch.tensor([[1.0]])                       # cos 90°, sin 90°
    >>> rope_reference(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]]), *turn)
    (tensor([[[[0., 1.]]]]), tensor([[[[-2.,  0.]]]]))
    """
    def turn(x):
        wide = x if x.dtype == torch.float64 else x.float()
        a, b = wide.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
    return turn(q), turn(k)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    a, b = wide.chunk(2, dim=-1)
    out = torch.empty_like(wide, memory_format=torch.contiguous_format)
    first, second = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).sub_(b * sin)   # not addcmul_: it rounds once, the definition twice
    torch.mul(b, cos, out=second).add_(a * sin)
    return out.to(x.dtype)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(q, cos, sin), _turn(k, cos, sin)

    @staticmethod
    def backward(ctx, grad_q, grad_k):
        cos, sin = ctx.saved_tensors
        return _turn(grad_q, cos, -sin), _turn(grad_k, cos, -sin), None, None


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """Turn queries and keys; nothing of their size is kept for the backward pass. Shapes as `rope_reference`."""
    return _Rope.apply(q, k, cos, sin)
