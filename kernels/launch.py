"""Where the operations meet the machine: which implementation runs, and how kernels are launched.

Triton (Tillet et al., 2019) compiles a Python function into one GPU kernel. The function is run by
many *programs* at once, told apart by `tl.program_id`; each works on whole vectors (`tl.arange`),
whose elements the compiler deals out to the threads of a program. What is written here is memory
traffic: which addresses are read, and that nothing goes back to memory between the first load and
the last store. In a kernel's signature capital letters are pointers and compile-time constants.
TRITON_INTERPRET=1 runs the same functions on a CPU, in numpy, slowly: that is how the tests see
every line of them without a GPU.
"""
import types

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    # macOS and Windows have no Triton: the PyTorch lines run, and no kernel is ever called.
    triton = None
    tl = types.SimpleNamespace(constexpr=None)

IMPLEMENTATIONS = ("torch", "triton")

# Does this process run kernels in the interpreter?
INTERPRETED = triton is not None and triton.knobs.runtime.interpret

# What `use` was told last.
_choice = "auto"


# ------------------------------------------------------------------------ which implementation runs


def use(choice: str, device: str = "cpu") -> str:
    """Choose the implementation for this process: "torch", "triton" or "auto".

    "auto" is Triton where it is installed and the tensors are on a CUDA device. Returns the name of
    what will run on `device`. ValueError for an unknown name, and for "triton" where it cannot run.
    """
    global _choice
    if choice not in ("auto", *IMPLEMENTATIONS):
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"there are no kernels called {choice!r}; there are auto, {known}")

    on_gpu = device == "cuda"
    can_run = triton is not None and (on_gpu or INTERPRETED)
    if choice == "triton" and not can_run:
        raise ValueError(
            "--kernels triton needs the package triton and a CUDA device (or TRITON_INTERPRET=1, "
            "which is slow and for tests); --kernels torch runs everywhere"
        )

    _choice = choice
    if choice != "auto":
        return choice
    if on_gpu and triton is not None:
        return "triton"
    return "torch"


def triton_runs(x: torch.Tensor) -> bool:
    """Does Triton do the operation on x? Never in float64, which is for checking definitions."""
    if triton is None or x.dtype == torch.float64:
        return False
    if _choice == "auto":
        return x.is_cuda
    return _choice == "triton"


def left_to_compiler(x: torch.Tensor) -> bool:
    """Is torch.compile tracing an operation on x that Triton does not do?

    Then the operation hands it the definition, which it fuses by itself. It must not be handed the
    PyTorch lines of an autograd function: one whose forward returns a tensor that was last written
    in place, or by a `.to` that changes nothing, silently loses its gradient under torch.compile
    (pytorch issues 180642 and 184113; torch 2.11).
    """
    return torch.compiler.is_compiling() and not triton_runs(x)


def require(*equal: tuple) -> None:
    """Compare triples (name, value, expected value); ValueError for the first that differs.

    A kernel that is told a wrong shape would read past the end of a tensor.
    """
    for name, value, expected in equal:
        if value != expected:
            raise ValueError(f"{name} is {value}, not {expected}")


# ----------------------------------------------------------------------------- kernels and launches


def jit(function):
    """`triton.jit`, where there is a Triton."""
    if triton is None:
        return function
    return triton.jit(function)


def wrap_triton(kernel):
    """A kernel that torch.compile can see being launched."""
    if INTERPRETED:
        return kernel  # PyTorch before 2.13 can wrap compiled kernels only
    return torch.library.wrap_triton(kernel)


@jit
def load_float32(P, inside):
    """What P points at, as float32; 0 where `inside` is false."""
    return tl.load(P, inside, 0.0).to(tl.float32)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x (..., D) as (N, D), with stride 1 along D.

    It is copied only if it must be: slices of a wider tensor and repeated rows (stride 0) are read
    where they are.
    """
    x = x.reshape(-1, x.shape[-1])
    if x.stride(1) == 1:
        return x
    return x.contiguous()


def block(width: int) -> dict[str, int]:
    """The block that covers a row of `width` elements, and the warps that share it.

    A thread gets up to 16 elements: in bfloat16 two loads of 16 bytes, the widest there are.
    """
    size = triton.next_power_of_2(max(1, width))
    warps = min(32, max(1, size // 512))
    return {"BLOCK": size, "num_warps": warps}


def resident_programs(device: torch.device, num_warps: int) -> int:
    """About as many programs as a GPU runs at the same time, for kernels that loop over rows."""
    if device.type != "cuda":
        return 3  # in the interpreter: few, but more than one
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return processors * max(1, 16 // num_warps)
