"""Causal attention (Vaswani et al., 1706.03762, section 3.2.1), which a library does best; but again, which?

    s = q kᵀ / √E,    p = softmax(s) over the keys up to one's own position,    o = p v

PyTorch's scaled_dot_product_attention never holds p whole (Dao et al., 2205.14135, FlashAttention): it keeps o and, of
each query, log Σ exp s, from which the backward pass computes p again, a block at a time. Which of its kernels runs is
a choice that we make on one kind of GPU only. On Hopper (H100, H200) cuDNN's attention trains 1.7 to 2.3 times as fast
as FlashAttention 2; on older and newer GPUs it is slower (transformers, pull request 48163). But cuDNN makes a new plan
for every new length, about 0.4 s each. Training sees one length and asks for cuDNN by name, below; generation,
validation and scoring see hundreds, and for them cli.set_device switches cuDNN's attention off.

On a CPU the backward pass asks MKL for small float32 products, slow on processors of other makers (linear.py). The same
backward pass through oneDNN takes two thirds of the time from 512 positions on:

    δ_i = do_i · o_i                     dv_j = Σ_i p_ij do_i                 dq_i = Σ_j ds_ij k_j / √E
    ds_ij = p_ij (do_i · v_j - δ_i)      dk_j = Σ_i ds_ij q_i / √E

A block holds some keys against all queries that see one of them, of all heads that share those keys: for grouped
queries (2305.13245) one product does what several would. It lies on its side, keys × queries, so that what a query
subtracts, log Σ exp s or δ, is a bias of the product, and the factor p its epilogue.
"""
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import launch
from kernels.linear import ONEDNN, product

TRAINING_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FEWEST_POSITIONS = 512  # with fewer, preparing the products costs more than it saves
KEYS = 256  # of a block. Fewer leave out more of what causality forbids (half of all), and are more products


def attention_reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The definition. q (B, H, T, E), k and v (B, K, T, E), K divides H → (B, H, T, E).

    >>> q = torch.zeros(1, 1, 2, 1)                                  # no preference: the mean of what is seen so far
    >>> attention_reference(q, q, torch.tensor([[[[1.0], [5.0]]]])).flatten()
    tensor([1., 3.])
    """
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    later = torch.ones(s.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return s.masked_fill(later, -torch.inf).softmax(-1) @ v


def suits(q: torch.Tensor) -> bool:
    """Is the backward pass below the faster one?"""
    return (ONEDNN and FLASH is not None and q.device.type == "cpu" and q.dtype == torch.float32
            and q.shape[2] >= FEWEST_POSITIONS and q.requires_grad and torch.is_grad_enabled())


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        out, log_sum = FLASH(q, k, v, 0.0, True)                                    # (B, H, T, E), (B, H, T)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, out, log_sum = ctx.saved_tensors
        (B, H, T, E), K = q.shape, k.shape[1]
        G, groups = H // K, lambda x: x.reshape(B * K, H // K, *x.shape[2:])        # queries that share keys
        k, v, delta = k.flatten(0, 1), v.flatten(0, 1), groups((grad * out).sum(-1))
        q, grad, log_sum = groups(q * E ** -0.5), groups(grad), groups(log_sum)
        dk, dv, dq = torch.empty_like(k), torch.empty_like(v), k.new_zeros(B * K, E, G, T)  # dq lies on its side, too
        later = torch.ones(KEYS, KEYS, dtype=torch.bool).tril(-1)[:, None]          # query i does not see key j > i
        for q_, do, minus_lse, minus_delta, k_, v_, dq_, dk_, dv_ in zip(q, grad, -log_sum, -delta, k, v, dq, dk, dv,
                                                                         strict=True):
            for j in range(0, T, KEYS):                                             # keys j … j+n-1, queries from j on
                n, keys = min(KEYS, T - j), slice(j, j + KEYS)
                queries, given = q_[:, j:].flatten(0, 1), do[:, j:].flatten(0, 1)   # (G (T-j), E)
                p = product(k_[keys], queries, minus_lse[:, j:].flatten()).exp_()   # (n, G (T-j))
                p.view(n, G, T - j)[:, :, :n].masked_fill_(later[:n, :, :n], 0)     # which may be inf there: no factor
                ds = product(v_[keys], given, minus_delta[:, j:].flatten(), times=p)
                dv_[keys], dk_[keys] = product(p, given.t()), product(ds, queries.t())
                dq_[:, :, j:] += product(k_[keys].t(), ds.t()).view(E, G, T - j)
        return dq.permute(0, 2, 3, 1).reshape(B, H, T, E) * E ** -0.5, dk.view(B, K, T, E), dv.view(B, K, T, E)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention with the faster library. Shapes as `attention_reference`."""
    if suits(q) and not torch.compiler.is_compiling():  # the compiler has choices of its own
        return _Attention.apply(q, k, v)
    if q.dtype == torch.float32 and q.device.type != "cpu" and q.shape[1] != k.shape[1]:
        # On a GPU FlashAttention alone lets heads share keys, and it has no float32: p would be held whole.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    options = {"is_causal": q.shape[2] > 1, "enable_gqa": q.shape[1] != k.shape[1]}
    if launch.cudnn_trains_faster and torch.is_grad_enabled():
        with sdpa_kernel(TRAINING_ORDER, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, **options)
    return F.scaled_dot_product_attention(q, k, v, **options)
