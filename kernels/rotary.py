"""Rotary position embedding (Su et al., 2104.09864), in the rotate-half layout of Hugging Face checkpoints.

Component i of a head is paired with component i + D/2, and the pair at position t turns by the angle t·θ_i:

    (a, b) → (a cos - b sin,  b cos + a sin),    a = x[i], b = x[i + D/2]

Meta's own checkpoints pair neighbours (2i, 2i + 1) instead. Mixing the two gives no error, only text that falls
apart after some twenty tokens; every checkpoint in the HF layout has been permuted for this one.

Worked by hand: D = 2 and an angle of 90°: (1, 0) → (0, 1), and a query turned by s meets a key turned by t in an
inner product that depends on s - t alone.

A rotation's inverse is the rotation by -angle, so the backward pass is the forward one with sin negated. Memory
traffic, in bfloat16 tensors of q's and k's size: each component is read and written once, 2, in one launch for both;
the definition, a kernel for each cast, product, sum and the joining of halves, moves 24.
"""
import math

import torch
from torch.autograd.function import once_differentiable
from torch.library import triton_op

from kernels.launch import block, jit, left_to_compiler, require, tl, triton_runs, wrap_triton


def rope_frequencies(width: int, theta: float, scaling: dict | None = None) -> torch.Tensor:
    """Radians a position for each pair of a head of `width` components: theta^(-2i/width), (width/2,) float32.

    `scaling` is Llama 3.1's ("llama3"; 2407.21783): that model was trained on 8k positions and extended. Pairs that
    turn slowly (fewer than low_freq_factor turns in the old context) turn `factor` times slower still, fast ones (more
    than high_freq_factor turns) stay as they were, and the band between is interpolated.

    >>> rope_frequencies(4, 100.0)                                                # 100^(-0/4) and 100^(-2/4)
    tensor([1.0000, 0.1000])
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


@jit
def _turn_heads(a, b, OUT, offset, cos, sin, inside, HALF: tl.constexpr):
    tl.store(OUT + offset, (a * cos - b * sin).to(OUT.dtype.element_ty), inside)
    tl.store(OUT + offset + HALF, (b * cos + a * sin).to(OUT.dtype.element_ty), inside)


@jit
def _turn_kernel(Q, K, COS, SIN, Q_OUT, K_OUT, T, q_batch, q_head, q_time, k_batch, k_head, k_time,
                 qo_batch, qo_head, qo_time, ko_batch, ko_head, ko_time, heads, groups, SIGN: tl.constexpr,
                 HALF: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr):
    """One program a position of a sequence: its cos and sin are read once for all heads of q and of k."""
    batch, time = (tl.program_id(0) // T).to(tl.int64), (tl.program_id(0) % T).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    head, group = tl.arange(0, HEADS)[:, None].to(tl.int64), tl.arange(0, GROUPS)[:, None].to(tl.int64)
    of_q, of_k = (head < heads) & (pair < HALF), (group < groups) & (pair < HALF)
    cos = tl.load(COS + time * HALF + pair, pair < HALF, 0.0).to(tl.float32)
    sin = tl.load(SIN + time * HALF + pair, pair < HALF, 0.0).to(tl.float32) * SIGN
    Q += batch * q_batch + time * q_time + head * q_head + pair
    K += batch * k_batch + time * k_time + group * k_head + pair
    q_a, q_b = tl.load(Q, of_q, 0.0).to(tl.float32), tl.load(Q + HALF, of_q, 0.0).to(tl.float32)
    k_a, k_b = tl.load(K, of_k, 0.0).to(tl.float32), tl.load(K + HALF, of_k, 0.0).to(tl.float32)  # all before a store
    _turn_heads(q_a, q_b, Q_OUT, batch * qo_batch + time * qo_time + head * qo_head + pair, cos, sin, of_q, HALF)
    _turn_heads(k_a, k_b, K_OUT, batch * ko_batch + time * ko_time + group * ko_head + pair, cos, sin, of_k, HALF)


@triton_op("nanowhale::rope", mutates_args={})
def _turn_triton(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
                 sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))             # a head's components are neighbours
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)  # heads inside positions stay so: no copy for attention
    (B, H, T, E), G = q.shape, k.shape[1]
    strides = [stride for x in (q, k, q_out, k_out) for stride in x.stride()[:3]]
    heads, groups, pairs = (block(n)["BLOCK"] for n in (H, G, E // 2))
    wrap_triton(_turn_kernel)[(B * T,)](q, k, cos.contiguous(), sin.contiguous(), q_out, k_out, T, *strides, H, G,
                                        SIGN=sign, HALF=E // 2, PAIRS=pairs, HEADS=heads, GROUPS=groups,
                                        num_warps=block(heads * pairs)["num_warps"])
    return q_out, k_out


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    a, b = wide.chunk(2, dim=-1)
    out = torch.empty_like(wide, memory_format=torch.contiguous_format)
    first, second = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).sub_(b * sin)   # not addcmul_: it rounds once, the definition twice
    torch.mul(b, cos, out=second).add_(a * sin)
    return out.to(x.dtype)


def _turn_torch(q, k, cos, sin, sign):
    return _turn(q, cos, sign * sin), _turn(k, cos, sign * sin)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        run = _turn_triton if triton_runs(q) else _turn_torch
        return run(q, k, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):
        run = _turn_triton if triton_runs(grad_q) else _turn_torch
        return *run(grad_q, grad_k, *ctx.saved_tensors, -1), None, None


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """Turn queries and keys; nothing of their size is kept for the backward pass. Shapes as `rope_reference`."""
    (B, _, T, E), table = q.shape, (q.shape[2], q.shape[3] // 2)
    require(("k's shape", (k.shape[0], *k.shape[2:]), (B, T, E)), ("k's dtype", k.dtype, q.dtype),
            ("cos's shape", tuple(cos.shape), table), ("sin's shape", tuple(sin.shape), table))
    if left_to_compiler(q):
        return rope_reference(q, k, cos, sin)
    return _Rope.apply(q, k, cos, sin)
