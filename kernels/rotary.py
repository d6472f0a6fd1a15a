"""Rotary position embedding (Su et al., 2104.09864), in the rotate-half layout of HF checkpoints.

Component i of a head is paired with component i + D/2, and the pair at position t is rotated by the
angle t·θ_i:

    (a, b) → (a cos - b sin,  b cos + a sin),    a = x[i], b = x[i + D/2]

For example, with D = 2 and an angle of 90°, (1, 0) → (0, 1). The inner product of a query rotated
by s and a key rotated by t depends only on s - t.

Meta's own checkpoints pair neighbours (2i, 2i + 1) instead, and are permuted when they are
converted to the HF layout. Mixing the two gives no error, only text that falls apart after some
twenty tokens.

The inverse of a rotation is the rotation by the negative angle, so the backward pass is the forward
pass with -sin. Memory traffic, in bfloat16 tensors of the size of q and k: the kernel moves 2 (each
component is read and written once), in one launch for both. The definition, with one kernel for
each cast, product, sum and concatenation, moves 24.
"""
import math

import torch
from torch.autograd.function import once_differentiable
from torch.library import triton_op

from kernels.launch import (
    block,
    jit,
    left_to_compiler,
    load_float32,
    require,
    tl,
    triton_runs,
    wrap_triton,
)


def rope_frequencies(width: int, theta: float, scaling: dict | None = None) -> torch.Tensor:
    """Radians per position for each pair of a head: theta^(-2i/width), (width/2,) float32.

    `scaling` is that of Llama 3.1 ("llama3"; 2407.21783), which was trained on 8k positions and
    then extended. Pairs that rotate slowly (fewer than low_freq_factor turns in the old context)
    rotate `factor` times more slowly; fast ones (more than high_freq_factor turns) stay as they
    are; those in between are interpolated.

    >>> rope_frequencies(4, 100.0)                                  # 100^(-0/4) and 100^(-2/4)
    tensor([1.0000, 0.1000])
    """
    exponent = torch.arange(0, width, 2).float() / width
    frequency = 1.0 / theta**exponent
    if not scaling:
        return frequency

    old_context = scaling["original_max_position_embeddings"]
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    turns = old_context * frequency / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)               # 1: unchanged; 0: slowed down
    return frequency * (keep + (1 - keep) / scaling["factor"])


def rope_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition. q (B, H, T, D), k (B, K, T, D), cos and sin (T, D/2) → q and k, rotated.

    >>> turn = torch.tensor([[0.0]]), torch.tensor([[1.0]])         # cos 90°, sin 90°
    >>> q, k = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    >>> rope_reference(q, k, *turn)
    (tensor([[[[0., 1.]]]]), tensor([[[[-2.,  0.]]]]))
    """
    def turn(x):
        wide = x if x.dtype == torch.float64 else x.float()
        a, b = wide.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return turned.to(x.dtype)

    return turn(q), turn(k)


# ---------------------------------------------------------------------------------------- in Triton


@jit
def _turn_heads(a, b, OUT, cos, sin, inside, HALF: tl.constexpr):
    """Write the rotated pairs (a, b) of all heads at one position to OUT and OUT + HALF."""
    tl.store(OUT, a * cos - b * sin, inside)
    tl.store(OUT + HALF, b * cos + a * sin, inside)


@jit
def _turn_kernel(
    Q,                      # (B, H, T, D)
    K,                      # (B, K, T, D)
    COS,                    # (T, D/2)
    SIN,                    # (T, D/2)
    Q_OUT,                  # written, as Q
    K_OUT,                  # written, as K
    T,
    q_batch,                # strides of Q, in elements: from sequence to sequence,
    q_head,                 # from head to head,
    q_time,                 # and from position to position
    k_batch,                # ... of K
    k_head,
    k_time,
    qo_batch,               # ... of Q_OUT
    qo_head,
    qo_time,
    ko_batch,               # ... of K_OUT
    ko_head,
    ko_time,
    heads,                  # H
    groups,                 # K, the heads of keys
    SIGN: tl.constexpr,     # 1: rotate; -1: rotate back
    HALF: tl.constexpr,     # D/2
    PAIRS: tl.constexpr,    # D/2, H and K rounded up to powers of two
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One program per position of a sequence, because all its heads of q and k share cos and
    sin."""
    batch = (tl.program_id(0) // T).to(tl.int64)
    time = (tl.program_id(0) % T).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    head = tl.arange(0, HEADS)[:, None].to(tl.int64)
    group = tl.arange(0, GROUPS)[:, None].to(tl.int64)
    in_q = (head < heads) & (pair < HALF)
    in_k = (group < groups) & (pair < HALF)

    cos = load_float32(COS + time * HALF + pair, pair < HALF)
    sin = load_float32(SIN + time * HALF + pair, pair < HALF) * SIGN

    # All loads come before the first store, so that they overlap.
    Q += batch * q_batch + time * q_time + head * q_head + pair
    K += batch * k_batch + time * k_time + group * k_head + pair
    q_a = load_float32(Q, in_q)
    q_b = load_float32(Q + HALF, in_q)
    k_a = load_float32(K, in_k)
    k_b = load_float32(K + HALF, in_k)

    Q_OUT += batch * qo_batch + time * qo_time + head * qo_head + pair
    _turn_heads(q_a, q_b, Q_OUT, cos, sin, in_q, HALF)
    K_OUT += batch * ko_batch + time * ko_time + group * ko_head + pair
    _turn_heads(k_a, k_b, K_OUT, cos, sin, in_k, HALF)


@triton_op("nanowhale::rope", mutates_args={})
def _turn_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    sign: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k, rotated by sign · angle: shapes as `rope_reference`."""
    B, H, T, D = q.shape
    K = k.shape[1]

    # The kernel needs the components of a head to be contiguous. The order of heads and positions
    # in memory is kept, so attention need not copy the result.
    if q.stride(3) != 1:
        q = q.contiguous()
    if k.stride(3) != 1:
        k = k.contiguous()
    q_out = torch.empty_like(q)
    k_out = torch.empty_like(k)
    strides = []
    for x in (q, k, q_out, k_out):
        strides += x.stride()[:3]

    pairs = block(D // 2)["BLOCK"]
    heads = block(H)["BLOCK"]
    groups = block(K)["BLOCK"]
    wrap_triton(_turn_kernel)[(B * T,)](
        q,
        k,
        cos.contiguous(),
        sin.contiguous(),
        q_out,
        k_out,
        T,
        *strides,
        H,
        K,
        SIGN=sign,
        HALF=D // 2,
        PAIRS=pairs,
        HEADS=heads,
        GROUPS=groups,
        num_warps=block(heads * pairs)["num_warps"],
    )
    return q_out, k_out


# --------------------------------------------------------------------------------------- in PyTorch


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, D), rotated: the definition bit for bit, with each half written in place."""
    wide = x if x.dtype == torch.float64 else x.float()
    a, b = wide.chunk(2, dim=-1)
    out = torch.empty_like(wide, memory_format=torch.contiguous_format)
    first, second = out.chunk(2, dim=-1)
    # Not addcmul_, because it rounds once where the definition rounds twice.
    torch.mul(a, cos, out=first).sub_(b * sin)
    torch.mul(b, cos, out=second).add_(a * sin)
    return out.to(x.dtype)


def _turn_torch(q, k, cos, sin, sign):
    sin = sign * sin
    return _turn(q, cos, sin), _turn(k, cos, sin)


# ------------------------------------------------------------------------------------ the operation


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        run = _turn_triton if triton_runs(q) else _turn_torch
        return run(q, k, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):
        cos, sin = ctx.saved_tensors
        run = _turn_triton if triton_runs(grad_q) else _turn_torch
        grad_q, grad_k = run(grad_q, grad_k, cos, sin, -1)
        return grad_q, grad_k, None, None


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys. Nothing of their size is kept for the backward pass.

    Shapes and dtypes as `rope_reference`; ValueError if they do not match.
    """
    B, _, T, D = q.shape
    require(
        ("k's shape", (k.shape[0], *k.shape[2:]), (B, T, D)),
        ("k's dtype", k.dtype, q.dtype),
        ("cos's shape", tuple(cos.shape), (T, D // 2)),
        ("sin's shape", tuple(sin.shape), (T, D // 2)),
    )
    if left_to_compiler(q):
        return rope_reference(q, k, cos, sin)
    return _Rope.apply(q, k, cos, sin)
