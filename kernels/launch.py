"""Which implementation of an operation runs, and how kernels are launched.

Triton (Tillet et al., 2019) compiles a Python function into one GPU kernel. Many *programs* run the
function at the same time, each with its own `tl.program_id`. A program works on whole vectors
(`tl.arange`), whose elements the compiler distributes over its threads. A kernel mainly describes
memory traffic: which addresses are read and written. Between the first load and the last store,
values stay in registers.

In a kernel's signature, capital letters are pointers and compile-time constants.

With TRITON_INTERPRET=1 the same functions run on a CPU, in numpy, slowly. This is how the tests
cover them without a GPU.
"""
import types

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    # There is no Triton on macOS and Windows: the PyTorch lines run, and no kernel is ever called.
    triton = None
    tl = types.SimpleNamespace(constexpr=None)

IMPLEMENTATIONS = ("torch", "triton")

# Does this process run kernels in the interpreter?
INTERPRETED = triton is not None and triton.knobs.runtime.interpret

# The last argument of `use`.
_choice = "auto"


# ------------------------------------------------------------------------ which implementation runs


def use(choice: str, device: str = "cpu") -> str:
    """Choose the implementation for this process: "torch", "triton" or "auto".

    "auto" is Triton if it is installed and the tensors are on a CUDA device. Returns the name of
    what will run on `device`. ValueError for an unknown name, or for "triton" if it cannot run.
    """
    global _choice
    if choice not in ("auto", *IMPLEMENTATIONS):
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"there are no kernels called {choice!r}; choose auto, {known}")

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
    """Does Triton run the operation on x? Never in float64, which is for testing definitions."""
    if triton is None or x.dtype == torch.float64:
        return False
    if _choice == "auto":
        return x.is_cuda
    return _choice == "triton"


def left_to_compiler(x: torch.Tensor) -> bool:
    """Is torch.compile tracing an operation on x that Triton does not run?

    Then the operation gives it the definition, which torch.compile fuses itself. It must not be
    given the PyTorch lines of an autograd function. If the forward of such a function returns a
    tensor that was last written in place, or by a `.to` that changes nothing, its gradient is
    silently lost under torch.compile (pytorch issues 180642 and 184113; torch 2.11).
    """
    return torch.compiler.is_compiling() and not triton_runs(x)


def require(*equal: tuple) -> None:
    """Check triples (name, value, expected value); ValueError for the first that differs.

    With a wrong shape, a kernel would read past the end of a tensor.
    """
    for name, value, expected in equal:
        if value != expected:
            raise ValueError(f"{name} is {value}, not {expected}")


# ----------------------------------------------------------------------------- kernels and launches


def jit(function):
    """`triton.jit`, if Triton is installed."""
    if triton is None:
        return function
    return triton.jit(function)


def wrap_triton(kernel):
    """Wrap a kernel so that torch.compile can trace its launch."""
    if INTERPRETED:
        return kernel  # before 2.13, PyTorch can wrap only compiled kernels
    return torch.library.wrap_triton(kernel)


@jit
def load_float32(P, inside):
    """Load what P points to, as float32; 0 where `inside` is false."""
    return tl.load(P, inside, 0.0).to(tl.float32)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x (..., D) as (N, D), with stride 1 along D.

    It is copied only if necessary: slices of a wider tensor and repeated rows (stride 0) are read
    in place.
    """
    x = x.reshape(-1, x.shape[-1])
    if x.stride(1) == 1:
        return x
    return x.contiguous()


def block(width: int) -> dict[str, int]:
    """The size of the block that covers a row of `width` elements, and its number of warps.

    A thread gets up to 16 elements: in bfloat16, two loads of 16 bytes, the widest possible.
    """
    size = triton.next_power_of_2(max(1, width))
    warps = min(32, max(1, size // 512))
    return {"BLOCK": size, "num_warps": warps}


def resident_programs(device: torch.device, num_warps: int) -> int:
    """About the number of programs that a GPU runs at once, for kernels that loop over rows."""
    if device.type != "cuda":
        return 3  # in the interpreter: few, but more than one
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return processors * max(1, 16 // num_warps)
