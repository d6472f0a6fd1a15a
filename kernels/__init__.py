"""The operations that take the time of a training step, besides matmuls and attention.

There is one file per operation, and each is a lesson: the mathematics; the memory traffic that
fusing saves; `*_reference`, the few PyTorch lines that *define* the operation and against which
everything faster is tested; Triton forward and backward; and the autograd function.

The model calls the names below and does not know which implementation runs: launch.py decides that
once (train.py's --kernels). Operations that a model calls are registered with PyTorch, so that
torch.compile does not take them apart where Triton runs.

    rms_norm(x, weight, eps)                        norm.py
    add_rms_norm(x, residual, weight, eps)          norm.py: with the addition before the norm
    swiglu(gate, up)                                activation.py
    rope(q, k, cos, sin)                            rotary.py
    linear_cross_entropy(hidden, weight, targets)   loss.py: head and loss as one operation
    AdamW(groups, seed)                             adamw.py: bfloat16 with stochastic rounding

Matmuls and attention are delegated to the faster library: F.linear and
F.scaled_dot_product_attention.
"""
from kernels.activation import swiglu, swiglu_reference
from kernels.adamw import AdamW
from kernels.launch import IMPLEMENTATIONS, use
from kernels.loss import linear_cross_entropy, linear_cross_entropy_reference
from kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.rotary import rope, rope_reference

__all__ = [
    "rms_norm",
    "add_rms_norm",
    "swiglu",
    "rope",
    "linear_cross_entropy",
    "AdamW",
    "rms_norm_reference",
    "add_rms_norm_reference",
    "swiglu_reference",
    "rope_reference",
    "linear_cross_entropy_reference",
    "use",
    "IMPLEMENTATIONS",
]
