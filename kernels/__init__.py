"""The four operations in which a Llama spends its time outside matrix products and attention.

One file an operation. Each holds the mathematics, what fusing it saves, and `*_reference`: the few PyTorch lines that
*define* it, against which everything faster is tested. The model calls the names below and never asks which
implementation runs: that is decided here, once, by `use()` (train.py's --kernels).

    rms_norm(x, weight, eps)                      rms_norm.py
    rope(q, k, cos, sin)                          rope.py
    swiglu(gate, up)                              swiglu.py
    linear_cross_entropy(hidden, weight, targets) linear_cross_entropy.py: head and loss as one operation
"""
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.rope import rope, rope_reference
from kernels.swiglu import swiglu, swiglu_reference

IMPLEMENTATIONS = ("torch",)  # PyTorch operations, on any device


def use(choice: str) -> str:
    """Choose the implementation for this process: "auto" (the fastest there is), or one by name. Returns its name."""
    name = IMPLEMENTATIONS[-1] if choice == "auto" else choice
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"no kernels called {choice!r}; there are: auto, {', '.join(IMPLEMENTATIONS)}")
    return name


__all__ = ["rms_norm", "rope", "swiglu", "linear_cross_entropy", "rms_norm_reference", "rope_reference",
           "swiglu_reference", "linear_cross_entropy_reference", "use", "IMPLEMENTATIONS"]
