"""AdamW (Loshchilov and Hutter, 1711.05101) with bfloat16 weights and moments: 6 bytes, not 12.

    m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
    w ← w (1 - lr λ) - lr m̂ / (√v̂ + ε),    m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

Bytes per parameter: in float32, weight and moments take 12, and 16 with the gradient; in bfloat16
they take 6, and 8 with the gradient. At 10.7B, weight and moments are 64 GB instead of 128. (A
model that computes in bfloat16 also keeps a bfloat16 copy of a float32 weight.)

Why not simply round to nearest? bfloat16 has 8 significant bits, so an update below 1/512 of its
weight is rounded away, every time, and the weight never moves. *Stochastic rounding* (Gupta et al.,
1502.02551) rounds up or down with probabilities that make the expectation exact: an update of a
hundredth of a step is made once in a hundred times. In bits: bfloat16 is the upper half of a
float32, so add a random 16-bit number to the lower half, and drop that half.

    float32 1.00390625 = 0x3F80_8000, halfway from 1 (0x3F80) to 1.0078125 (0x3F81):
    of the numbers 0x0000…0xFFFF, one half carry into the upper half when they are added

The random numbers are a function and not a state: a few integer operations mix (seed, step, index
of the element among all parameters). So a run that is resumed, or sharded over more processes,
rounds in the same way. And the PyTorch lines and the kernel agree to the last bit (the kernel uses
no fused multiply-add, and IEEE division and root).
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from kernels.launch import jit, load_float32, tl, triton_runs

# Elements per program, or per slice of the PyTorch lines.
CHUNK = 2**16

# Elements that a program updates at once.
BLOCK = 1024

# The lower 32 bits of an integer.
MASK = 0xFFFF_FFFF

# 2³² / golden ratio, an odd number whose bits have no pattern.
GOLDEN = 0x9E37_79B9


# ----------------------------------------------------------------------------------- random numbers


def mix(h):
    """A bijection of 32-bit integers in which every input bit affects every output bit.

    The shifts and odd multipliers were found by search (C. Wellons, "Prospecting for hash
    functions"). Takes Python ints and int64 tensors.

    >>> hex(mix(1))
    '0x688990c0'
    """
    h = ((h ^ (h >> 16)) * 0x7FEB_352D) & MASK
    h = ((h ^ (h >> 15)) * 0x846C_A68B) & MASK
    return h ^ (h >> 16)


def step_key(seed: int, step: int) -> int:
    """32 bits for one step of a run."""
    return mix(mix(seed & MASK) ^ ((step * GOLDEN) & MASK))


def stochastic_round(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Round float32 to bfloat16, up or down by 16 random bits (int64).

    Values that bfloat16 can represent, inf and NaN stay as they are.

    >>> stochastic_round(torch.tensor([1.00390625, 1.00390625]), torch.tensor([0x7FFF, 0x8000]))
    tensor([1.0000, 1.0078], dtype=torch.bfloat16)

    A number a quarter of the way up is rounded up for a quarter of all 16-bit numbers, so the mean
    is the number itself.

    >>> quarter = torch.tensor(1 + 2**-9)
    >>> stochastic_round(quarter.expand(2**16), torch.arange(2**16)).double().mean() == quarter
    tensor(True)
    """
    upper_half = (x.view(torch.int32) + bits.to(torch.int32)) & -0x1_0000
    rounded = upper_half.view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


# ----------------------------------------------------------------------------------------- one step


class Scalars(NamedTuple):
    """The factors that all elements share in a step, in the order of the kernel's arguments."""
    beta1: float
    rest1: float                # 1 - β₁
    beta2: float
    rest2: float                # 1 - β₂
    decay: float                # 1 - lr λ
    rate: float                 # lr / (1 - β₁ᵗ)
    root_correction: float      # 1 / √(1 - β₂ᵗ)
    eps: float


def scalars_of(group: dict, step: int) -> Scalars:
    """The factors of a parameter group at step 1, 2, …"""
    beta1, beta2 = group["betas"]
    return Scalars(
        beta1=beta1,
        rest1=1 - beta1,
        beta2=beta2,
        rest2=1 - beta2,
        decay=1 - group["lr"] * group["weight_decay"],
        rate=group["lr"] / (1 - beta1**step),
        root_correction=1 / math.sqrt(1 - beta2**step),
        eps=group["eps"],
    )


def adamw_reference(
    weight: torch.Tensor,
    moment: torch.Tensor,
    square: torch.Tensor,
    gradient: torch.Tensor,
    first_index: int,
    key: int,
    scalars: Scalars,
) -> None:
    """The definition: one step, in place, of n consecutive elements (n,), all bfloat16.

    `first_index`: the index of the first one among all parameters. `key`: that of the step.
    """
    # 32 random bits per element, 16 each for w and m, and another 16 for v.
    index = torch.arange(first_index, first_index + weight.numel(), device=weight.device)
    low = (index & MASK) ^ key
    high = (index >> 32) * GOLDEN
    h = mix((low + high) & MASK)
    h2 = mix(h)

    beta1, rest1, beta2, rest2, decay, rate, root_correction, eps = scalars
    g = gradient.float()
    m = moment.float() * beta1 + g * rest1
    v = square.float() * beta2 + g * g * rest2
    w = weight.float() * decay - m * rate / (v.sqrt() * root_correction + eps)

    weight.copy_(stochastic_round(w, h & 0xFFFF))
    moment.copy_(stochastic_round(m, h >> 16))
    square.copy_(stochastic_round(v, h2 & 0xFFFF))


# ---------------------------------------------------------------------------------------- in Triton


@jit
def _mix(h):
    """`mix`, in uint32, where no mask is needed."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@jit
def _store_rounded(P, x, bits, inside):
    """`stochastic_round`, written to P."""
    upper_half = (x.to(tl.uint32, bitcast=True) + bits) & 0xFFFF0000
    rounded = upper_half.to(tl.float32, bitcast=True)
    finite = tl.abs(x) < float("inf")  # false for NaN too
    tl.store(P, tl.where(finite, rounded, x), inside)


@jit
def _update(
    W,
    M,
    V,
    G,
    first,
    key,
    i,
    inside,
    beta1,
    rest1,
    beta2,
    rest2,
    decay,
    rate,
    root_correction,
    eps,
):
    """One step of elements i of a chunk. `first`: the index of its element 0 in all parameters."""
    index = first + i
    h = _mix((index.to(tl.uint32) ^ key) + (index >> 32).to(tl.uint32) * 0x9E3779B9)  # GOLDEN
    h2 = _mix(h)

    w = load_float32(W + i, inside)
    m = load_float32(M + i, inside)
    v = load_float32(V + i, inside)
    g = load_float32(G + i, inside)
    m = m * beta1 + g * rest1
    v = v * beta2 + g * g * rest2
    w = w * decay - tl.div_rn(m * rate, tl.sqrt_rn(v) * root_correction + eps)

    _store_rounded(W + i, w, h & 0xFFFF, inside)
    _store_rounded(M + i, m, h >> 16, inside)
    _store_rounded(V + i, v, h2 & 0xFFFF, inside)


@jit
def _step_kernel(
    TENSORS,                # (tensors, 7) int64: see AdamW._launch
    CHUNK_TENSOR,           # (chunks,) int64: the tensor that a chunk belongs to
    CHUNK_START,            # (chunks,) int64: its first element in that tensor
    beta1,
    rest1,
    beta2,
    rest2,
    decay,
    rate,
    root_correction,
    eps,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,  # are all addresses multiples of 16?
):
    """One program per chunk of a tensor. One launch updates all parameters of a group."""
    row = TENSORS + tl.load(CHUNK_TENSOR + tl.program_id(0)) * 7
    start = tl.load(CHUNK_START + tl.program_id(0))
    W = tl.load(row).to(tl.pointer_type(tl.bfloat16)) + start
    M = tl.load(row + 1).to(tl.pointer_type(tl.bfloat16)) + start
    V = tl.load(row + 2).to(tl.pointer_type(tl.bfloat16)) + start
    G = tl.load(row + 3).to(tl.pointer_type(tl.bfloat16)) + start
    if ALIGNED:
        # The compiler knows nothing about an address from a table. Without this, every load would
        # be of one element.
        W = tl.multiple_of(W, 16)
        M = tl.multiple_of(M, 16)
        V = tl.multiple_of(V, 16)
        G = tl.multiple_of(G, 16)
    left = tl.minimum(tl.maximum(tl.load(row + 4) - start, 0), CHUNK).to(tl.int32)
    first = tl.load(row + 5) + start
    key = tl.load(row + 6).to(tl.uint32)

    # Update whole blocks without a mask, which would narrow the loads; then the rest.
    whole = left // BLOCK * BLOCK
    everywhere = tl.full([BLOCK], True, tl.int1)
    for offset in range(0, whole, BLOCK):
        i = offset + tl.arange(0, BLOCK)
        _update(W, M, V, G, first, key, i, everywhere,
                beta1, rest1, beta2, rest2, decay, rate, root_correction, eps)
    if whole < left:
        i = whole + tl.arange(0, BLOCK)
        _update(W, M, V, G, first, key, i, i < left,
                beta1, rest1, beta2, rest2, decay, rate, root_correction, eps)


# ------------------------------------------------------------------------------------ the optimizer


def all_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The `local_rows` of a tensor that is not sharded: itself, from row 0 on."""
    if hasattr(x, "to_local"):
        raise ValueError("a sharded parameter: give AdamW local_rows=, which finds its local rows")
    return x, 0


class Part(NamedTuple):
    """What this process holds of a parameter: flat tensors (n,), and where they begin."""
    weight: torch.Tensor
    moment: torch.Tensor
    square: torch.Tensor
    gradient: torch.Tensor
    first_index: int        # of their first element, among all parameters

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self[:4]

    def is_aligned(self) -> bool:
        """Do all begin at a multiple of 16 bytes, so that a thread can load 16 bytes at once?"""
        return all(x.data_ptr() % 16 == 0 for x in self.tensors())


class AdamW(torch.optim.Optimizer):
    """AdamW on bfloat16 parameters, with bfloat16 moments, all three rounded stochastically.

    `groups` are as for torch.optim.AdamW. `local_rows` is a function tensor → (local tensor, number
    of its first row) for what this process holds of a sharded parameter, moment or gradient. With
    it, a sharded parameter is rounded exactly as an unsharded one. TypeError for a parameter of
    another dtype; ValueError for one that is not contiguous in memory, and for a sharded one
    without `local_rows`.

    If `found_inf` (a tensor, as in PyTorch's fused optimizers) is set to 1, a step leaves weights
    and moments as they are. On a GPU the kernel reads it, so the host need not wait.
    """
    found_inf: torch.Tensor | None = None

    def __init__(
        self,
        groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
        local_rows: Callable[[torch.Tensor], tuple[torch.Tensor, int]] = all_rows,
    ):
        self._local_rows = local_rows
        # {parameter: index of its first local element among all parameters}
        self._first_index: dict[torch.Tensor, int] = {}
        # {sizes: which chunk belongs to which tensor}; see `_chunks`.
        self._chunks_of_sizes: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, seed=seed)
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """As torch.optim.Optimizer's. New parameters are numbered after the existing ones."""
        super().add_param_group(param_group)
        *earlier, group = self.param_groups
        index = 0
        for other in earlier:
            index += sum(p.numel() for p in other["params"])
        for p in group["params"]:
            if p.dtype != torch.bfloat16:
                raise TypeError(f"this AdamW is for bfloat16 parameters, not {p.dtype}")
            _, first_row = self._local_rows(p)
            row_size = p.numel() // max(1, len(p))
            self._first_index[p] = index + first_row * row_size
            index += p.numel()

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient.

        Returns what `closure` (if given) returned, which is called before the update.
        """
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            # All have made the same number of steps, unless some had no gradient at some step.
            by_step: dict[int, list[torch.Tensor]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                by_step.setdefault(int(state["step"].item()), []).append(p)

            for step, parameters in by_step.items():
                parts = [self._part(p) for p in parameters]
                key = step_key(group["seed"], step)
                self._update(parts, key, scalars_of(group, step))
        return loss

    def _part(self, p: torch.Tensor) -> Part:
        """What this process updates of p."""
        flat = []
        for x in (p, self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]):
            held, _ = self._local_rows(x)
            if not held.is_contiguous():
                raise ValueError("a parameter is not contiguous in memory")
            flat.append(held.view(-1))
        gradient, _ = self._local_rows(p.grad)
        flat.append(gradient.contiguous().view(-1))
        return Part(*flat, self._first_index[p])

    def _update(self, parts: list[Part], key: int, scalars: Scalars) -> None:
        """One step of some parameters, by Triton or by the definition."""
        if triton_runs(parts[0].weight):
            # One launch for nearly all, and one for those whose addresses do not allow wide loads.
            aligned = [part for part in parts if part.is_aligned()]
            others = [part for part in parts if not part.is_aligned()]
            if aligned:
                self._launch(aligned, key, scalars, is_aligned=True)
            if others:
                self._launch(others, key, scalars, is_aligned=False)
            return

        if self.found_inf is not None and self.found_inf.item():
            return
        for part in parts:
            for start in range(0, part.weight.numel(), CHUNK):
                chunk = [x[start:start + CHUNK] for x in part.tensors()]
                adamw_reference(*chunk, part.first_index + start, key, scalars)

    def _launch(self, parts: list[Part], key: int, scalars: Scalars, is_aligned: bool) -> None:
        """One launch of the kernel over all chunks of all `parts`."""
        device = parts[0].weight.device
        table = []
        for part in parts:
            addresses = [x.data_ptr() for x in part.tensors()]
            table.append([*addresses, part.weight.numel(), part.first_index, key])
        # A copy from pinned memory is queued like a kernel; for one from pageable memory the host
        # may wait for the device.
        table = torch.tensor(table, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        if self.found_inf is not None:
            table[:, 4].masked_fill_(self.found_inf != 0, 0)  # no elements: nothing to update

        chunk_tensor, chunk_start = self._chunks(parts)
        _step_kernel[(len(chunk_tensor),)](
            table,
            chunk_tensor,
            chunk_start,
            *scalars,
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            ALIGNED=is_aligned,
            num_warps=4,
            enable_fp_fusion=False,
        )

    def _chunks(self, parts: list[Part]) -> tuple[torch.Tensor, torch.Tensor]:
        """The number of each chunk's tensor, and its first element there: (chunks,) each.

        They are made once, because the addresses of gradients change between steps, but not sizes.
        """
        sizes = tuple(part.weight.numel() for part in parts)
        if sizes not in self._chunks_of_sizes:
            tensors = []
            starts = []
            for number, size in enumerate(sizes):
                for start in range(0, size, CHUNK):
                    tensors.append(number)
                    starts.append(start)
            device = parts[0].weight.device
            self._chunks_of_sizes[sizes] = (
                torch.tensor(tensors, dtype=torch.int64, device=device),
                torch.tensor(starts, dtype=torch.int64, device=device),
            )
        return self._chunks_of_sizes[sizes]
