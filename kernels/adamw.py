"""AdamW (Loshchilov and Hutter, 1711.05101) with weights and moments in bfloat16: 6 bytes a parameter, not 12.

    m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
    w ← w (1 - lr λ) - lr m̂ / (√v̂ + ε),    m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

Bytes a parameter: float32 weight and moments 12, with its gradient 16; bfloat16 6, with its gradient 8. (A model that
computes in bfloat16 keeps a bfloat16 copy of a float32 weight besides.) At 10.7B that is 64 GB against 128.

Why not simply round? bfloat16 has 8 significant bits: an update below 1/512 of its weight is rounded away, the next
one too, and the weight never moves. *Stochastic rounding* (Gupta et al., 1502.02551) goes up or down with
probabilities that make the expectation exact: an update of a hundredth of a step is made once in a hundred times. In
bits: bfloat16 is the upper half of a float32, so add a random number of 16 bits to the lower half, and cut it off.

    float32 1.00390625 = 0x3F80_8000, half way from 1 (0x3F80) to 1.0078125 (0x3F81):
    + a random number in 0x0000…0xFFFF carries into the upper half for one half of them

Randomness is a function, not a state: a few integer operations mix (seed, step, index of the element among all
parameters). So a run that is resumed, or sharded over more processes, rounds the same way; and the PyTorch lines and
the kernel agree to the last bit (there: no fused multiply-add, IEEE division and root).
"""
import math

import torch

from common.parallel import local, rows
from kernels.launch import jit, tl, triton_runs

CHUNK = 2**16  # elements a program, or a slice of the PyTorch lines
BLOCK = 1024
MASK = 0xFFFF_FFFF
GOLDEN = 0x9E37_79B9  # 2³² / golden ratio, an odd number without pattern


def mix(h):
    """A bijection of 32-bit integers in which every input bit moves every output bit (shifts and odd multipliers found
    by search: C. Wellons, "Prospecting for hash functions"). Takes Python ints and int64 tensors.

    >>> hex(mix(1))
    '0x688990c0'
    """
    h = (h ^ (h >> 16)) * 0x7FEB_352D & MASK
    h = (h ^ (h >> 15)) * 0x846C_A68B & MASK
    return h ^ (h >> 16)


def step_key(seed: int, step: int) -> int:
    """32 bits for a step of a run."""
    return mix(mix(seed & MASK) ^ (step * GOLDEN & MASK))


def stochastic_round(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """float32 → bfloat16, up or down by 16 random bits (int64). What bfloat16 holds, inf and NaN stay as they are.

    >>> stochastic_round(torch.tensor([1.00390625, 1.00390625]), torch.tensor([0x7FFF, 0x8000]))
    tensor([1.0000, 1.0078], dtype=torch.bfloat16)

    A number a quarter of the way up goes up for a quarter of all 16 bits: their mean is the number itself.

    >>> quarter = torch.tensor(1 + 2**-9)
    >>> stochastic_round(quarter.expand(2**16), torch.arange(2**16)).double().mean() == quarter
    tensor(True)
    """
    up = (x.view(torch.int32) + bits.to(torch.int32)) & -0x1_0000
    return torch.where(x.isfinite(), up.view(torch.float32), x).to(torch.bfloat16)


def adamw_reference(weight, moment, square, gradient, first_index: int, key: int, scalars: tuple[float, ...]) -> None:
    """The definition: one step, in place, of n neighbouring elements (bfloat16), the first of which is number
    `first_index` of all parameters. `scalars` as from `_scalars`."""
    beta1, rest1, beta2, rest2, decay, rate, root_correction, eps = scalars
    index = torch.arange(first_index, first_index + weight.numel(), device=weight.device)
    h = mix(((index & MASK) ^ key) + (index >> 32) * GOLDEN & MASK)
    h2 = mix(h)  # 16 bits for each of three numbers
    w, m, v, g = (x.float() for x in (weight, moment, square, gradient))
    m = m * beta1 + g * rest1
    v = v * beta2 + g * g * rest2
    w = w * decay - m * rate / (v.sqrt() * root_correction + eps)
    weight.copy_(stochastic_round(w, h & 0xFFFF))
    moment.copy_(stochastic_round(m, h >> 16))
    square.copy_(stochastic_round(v, h2 & 0xFFFF))


def _scalars(lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int) -> tuple[float, ...]:
    """What is the same for all elements: β₁, 1 - β₁, β₂, 1 - β₂, 1 - lr λ, lr / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ), ε."""
    beta1, beta2 = betas
    return (beta1, 1 - beta1, beta2, 1 - beta2, 1 - lr * weight_decay, lr / (1 - beta1**step),
            1 / math.sqrt(1 - beta2**step), eps)


@jit
def _mix(h):
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@jit
def _store_rounded(P, x, bits, inside):
    up = (x.to(tl.uint32, bitcast=True) + bits) & 0xFFFF0000
    finite = tl.abs(x) < float("inf")  # false for NaN too
    tl.store(P, tl.where(finite, up.to(tl.float32, bitcast=True), x).to(tl.bfloat16), inside)


@jit
def _update(W, M, V, G, first, key, i, inside, beta1, rest1, beta2, rest2, decay, rate, root_correction, eps):
    """One step of elements i of a chunk, whose first one is number `first` of all parameters."""
    index = first + i
    h = _mix((index.to(tl.uint32) ^ key) + (index >> 32).to(tl.uint32) * 0x9E3779B9)
    h2 = _mix(h)
    w = tl.load(W + i, inside, 0.0).to(tl.float32)
    m = tl.load(M + i, inside, 0.0).to(tl.float32)
    v = tl.load(V + i, inside, 0.0).to(tl.float32)
    g = tl.load(G + i, inside, 0.0).to(tl.float32)
    m = m * beta1 + g * rest1
    v = v * beta2 + g * g * rest2
    w = w * decay - tl.div_rn(m * rate, tl.sqrt_rn(v) * root_correction + eps)
    _store_rounded(W + i, w, h & 0xFFFF, inside)
    _store_rounded(M + i, m, h >> 16, inside)
    _store_rounded(V + i, v, h2 & 0xFFFF, inside)


@jit
def _step_kernel(TENSORS, CHUNK_TENSOR, CHUNK_START, beta1, rest1, beta2, rest2, decay, rate, root_correction, eps,
                 CHUNK: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """One program a chunk of one of many tensors. TENSORS (tensors, 7) int64: the addresses of weight, moment, square
    and gradient, the number of elements, the index of the first among all parameters, the step's key."""
    row = TENSORS + tl.load(CHUNK_TENSOR + tl.program_id(0)) * 7
    start = tl.load(CHUNK_START + tl.program_id(0))
    W = tl.load(row).to(tl.pointer_type(tl.bfloat16)) + start
    M = tl.load(row + 1).to(tl.pointer_type(tl.bfloat16)) + start
    V = tl.load(row + 2).to(tl.pointer_type(tl.bfloat16)) + start
    G = tl.load(row + 3).to(tl.pointer_type(tl.bfloat16)) + start
    if ALIGNED:  # an address read from a table may be any number: without this, loads are of single elements
        W, M, V, G = tl.multiple_of(W, 16), tl.multiple_of(M, 16), tl.multiple_of(V, 16), tl.multiple_of(G, 16)
    left = tl.minimum(tl.maximum(tl.load(row + 4) - start, 0), CHUNK).to(tl.int32)
    first, key = tl.load(row + 5) + start, tl.load(row + 6).to(tl.uint32)
    whole = left // BLOCK * BLOCK  # blocks that need no mask, which would narrow the loads
    everywhere = tl.full([BLOCK], True, tl.int1)
    for offset in range(0, whole, BLOCK):
        _update(W, M, V, G, first, key, offset + tl.arange(0, BLOCK), everywhere, beta1, rest1, beta2, rest2, decay,
                rate, root_correction, eps)
    if whole < left:
        i = whole + tl.arange(0, BLOCK)
        _update(W, M, V, G, first, key, i, i < left, beta1, rest1, beta2, rest2, decay, rate, root_correction, eps)


class AdamW(torch.optim.Optimizer):
    """AdamW on bfloat16 parameters, moments in bfloat16, all three rounded stochastically; see the module docstring.

    `groups` as for torch.optim.AdamW. A sharded parameter (DTensor, Shard(0)) is rounded as it would be whole.
    TypeError for a parameter of another dtype; ValueError for one that is sharded otherwise, or whose elements are
    not neighbours.

    Where `found_inf` is set (a tensor, as in PyTorch's fused optimizers), a 1 in it makes a step leave weights and
    moments as they are, and no one has to wait for the device to know.
    """
    found_inf: torch.Tensor | None = None

    def __init__(self, groups, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2, seed: int = 0):
        self._first: dict[torch.Tensor, int] = {}  # parameter → index of its first local element among all parameters
        self._chunks: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, seed=seed))

    def add_param_group(self, param_group: dict) -> None:
        """As torch.optim.Optimizer's; the new parameters are numbered after the ones before."""
        super().add_param_group(param_group)
        before = sum(p.numel() for group in self.param_groups[:-1] for p in group["params"])
        for p in self.param_groups[-1]["params"]:
            if p.dtype != torch.bfloat16:
                raise TypeError(f"this AdamW is for bfloat16 parameters, not {p.dtype}")
            self._first[p] = before + rows(p)[0] * (p.numel() // max(1, len(p)))
            before += p.numel()

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient. Returns what `closure`, if given, returned before the update."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for p in trained:
                state = self.state[p]
                if not state:
                    state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
            by_step: dict[int, list] = {}  # one number, unless a parameter had no gradient at some step
            for p in trained:
                by_step.setdefault(int(self.state[p]["step"].item()), []).append(p)
            for step, parameters in by_step.items():
                self._update(parameters, group, step)
        return loss

    def _update(self, parameters: list[torch.Tensor], group: dict, step: int) -> None:
        scalars = _scalars(group["lr"], group["betas"], group["eps"], group["weight_decay"], step)
        key, tensors = step_key(group["seed"], step), []
        for p in parameters:
            held = [local(t) for t in (p, self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"])]
            if not all(t.is_contiguous() for t in held):
                raise ValueError("a parameter's elements are not neighbours in memory")
            tensors.append((*(t.view(-1) for t in held), local(p.grad).contiguous().view(-1), self._first[p]))
        if triton_runs(tensors[0][0]):
            for aligned in (True, False):  # one launch, and one for those whose addresses allow no wide loads
                some = [t for t in tensors if all(x.data_ptr() % 16 == 0 for x in t[:4]) == aligned]
                if some:
                    self._launch(some, key, scalars, aligned)
            return
        if self.found_inf is not None and self.found_inf.item():
            return
        for *of_one, first in tensors:
            for start in range(0, of_one[0].numel(), CHUNK):
                adamw_reference(*(t[start:start + CHUNK] for t in of_one), first + start, key, scalars)

    def _launch(self, tensors: list[tuple], key: int, scalars: tuple[float, ...], aligned: bool) -> None:
        device, sizes = tensors[0][0].device, tuple(t[0].numel() for t in tensors)
        if sizes not in self._chunks:  # which chunk belongs to which tensor; gradients move, this does not
            count = torch.tensor([-(-n // CHUNK) for n in sizes])
            tensor = torch.arange(len(sizes)).repeat_interleave(count)
            start = (torch.arange(len(tensor)) - (count.cumsum(0) - count)[tensor]) * CHUNK
            self._chunks[sizes] = tensor.to(device), start.to(device)
        tensor, start = self._chunks[sizes]
        # From pinned memory the copy is queued like a kernel; from other memory the host may wait for the device.
        table = torch.tensor([[*(x.data_ptr() for x in t[:4]), t[0].numel(), t[4], key] for t in tensors],
                             pin_memory=device.type == "cuda").to(device, non_blocking=True)
        if self.found_inf is not None:
            table[:, 4] *= self.found_inf == 0  # tensors of no elements
        _step_kernel[(len(tensor),)](table, tensor, start, *scalars, CHUNK=CHUNK, BLOCK=BLOCK,
                                     ALIGNED=aligned, num_warps=4, enable_fp_fusion=False)
