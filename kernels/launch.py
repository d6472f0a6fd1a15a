"""Where the operations meet the machine: which implementation runs, and how Triton's programs are laid out.

Triton (Tillet et al., 2019) compiles a Python function into one GPU kernel. The function is run by many *programs* at
once, told apart by `tl.program_id`; each works on whole vectors (`tl.arange`), whose elements the compiler deals out
to the threads of a program. What is written here is memory traffic: which addresses are read, and that nothing goes
back to memory between the first load and the last store. TRITON_INTERPRET=1 runs the same functions on a CPU, in
numpy, slowly: that is how the tests see every line of them without a GPU.
"""
import types

import torch

from common.cli import UserError

try:
    import triton
    import triton.language as tl
    jit = triton.jit
    INTERPRETED = triton.knobs.runtime.interpret
    # torch.compile sees a kernel that is launched through wrap_triton. PyTorch before 2.13 knows compiled kernels only,
    # so an interpreted one is launched as it is.
    wrap_triton = (lambda kernel: kernel) if INTERPRETED else torch.library.wrap_triton
except ImportError:  # macOS, Windows: Triton does not exist there, and the PyTorch lines run
    tl, jit, INTERPRETED = types.SimpleNamespace(constexpr=None), None, False
    jit = lambda function: function
    triton = wrap_triton = None

IMPLEMENTATIONS = ("torch", "triton")
HOPPER = 9  # major number of the compute capability of H100 and H200
_choice = "auto"
cudnn_trains_faster = False  # see attention.py


def use(choice: str, device: str = "cpu") -> str:
    """Choose for this process: "torch", "triton", or "auto", which is Triton where a CUDA device has it. Returns the
    name of what runs on `device`. UserError where Triton is asked for and cannot run."""
    global _choice, cudnn_trains_faster
    if choice not in ("auto", *IMPLEMENTATIONS):
        raise UserError(f"there are no kernels called {choice!r}; there are auto, {', '.join(IMPLEMENTATIONS)}")
    able = triton is not None and (device == "cuda" or INTERPRETED)
    if choice == "triton" and not able:
        raise UserError("--kernels triton needs the package triton and a CUDA device (or TRITON_INTERPRET=1, which is "
                        "slow and for tests); --kernels torch runs everywhere")
    _choice = choice
    on_gpu = device == "cuda" and torch.cuda.is_available()
    cudnn_trains_faster = on_gpu and torch.cuda.get_device_capability()[0] == HOPPER
    return choice if choice != "auto" else "triton" if triton is not None and device == "cuda" else "torch"


def triton_runs(x: torch.Tensor) -> bool:
    """Is the operation on x Triton's to do? float64 never is: it belongs to the definitions."""
    here = x.is_cuda if _choice == "auto" else _choice == "triton"
    return here and triton is not None and x.dtype != torch.float64


def left_to_compiler(x: torch.Tensor) -> bool:
    """Is torch.compile tracing an operation on x that Triton does not do?

    Then the operation hands it the definition, which it fuses by itself. It must not be handed the PyTorch lines of an
    autograd function: one whose forward returns a tensor that was last written in place, or by a `.to` that changes
    nothing, loses its gradient under torch.compile, without a word (pytorch issues 180642 and 184113; torch 2.11).
    """
    return torch.compiler.is_compiling() and not triton_runs(x)


def require(*equal: tuple) -> None:
    """(name, is, should be): ValueError unless they are equal. Kernels would read past the end of what is too short."""
    for name, got, wanted in equal:
        if got != wanted:
            raise ValueError(f"{name} is {got}, not {wanted}")


def rows(x: torch.Tensor) -> torch.Tensor:
    """x (..., D) as (N, D) with neighbours in memory along D. Copied only where its strides leave no other way: slices
    of a wider tensor and repeated rows (stride 0) are read where they are."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def block(width: int) -> dict[str, int]:
    """The block that covers a row of `width`, and the warps that give each thread up to 16 elements of it: two loads
    of 16 bytes in bfloat16, the widest there are."""
    size = triton.next_power_of_2(max(1, width))
    return {"BLOCK": size, "num_warps": min(32, max(1, size // 512))}


def resident_programs(device: torch.device, num_warps: int) -> int:
    """About as many programs as a GPU runs at the same time, for kernels that loop over rows."""
    if device.type != "cuda":
        return 3  # the interpreter's one processor: few, and more than one
    return torch.cuda.get_device_properties(device).multi_processor_count * max(1, 16 // num_warps)
