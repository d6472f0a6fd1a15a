"""Time, memory traffic, peak memory and error of kernels/ beside what else there is; or what the
compiler made of them.

    python -m bench.kernels                   # on a GPU: tables, and bench/results/kernels-GPU.json
    python -m bench.kernels --compile-only    # anywhere: registers, shared memory, spills, loads
    python -m bench.kernels --device cpu      # peak memory and time of the loss on a CPU

Bandwidth is a share of what a device copy reaches in the same run, and counts the bytes that cannot
be avoided: inputs read once, outputs written once. Times are of single calls between device events,
in turns among the contenders, queued behind a pause so that Python's own time is not measured, with
the cache overwritten in between.
"""
import argparse
import functools
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

import kernels
from bench import measure
from common import cli

# D and F are the model's widths, H and K its heads of queries and keys, E the width of a head.
SHAPES = {
    "1.1B": dict(D=2048, F=5632, H=32, K=4, E=64),
    "8B": dict(D=4096, F=14336, H=32, K=8, E=128),  # 10.7B is 48 layers of this
    "tiny": dict(D=64, F=160, H=4, K=2, E=16),
}
EPS = 1e-5

# Cycles, about a millisecond, for which a GPU waits while Python queues what is timed.
PAUSE = 2_000_000

# What overwrites the cache between calls: larger than it, and allocated once per device.
FLUSH: dict[str, torch.Tensor] = {}


# --------------------------------------------------------------------------------- what is compared


class Operation(NamedTuple):
    """An operation at one shape."""
    name: str
    kind: str                       # its name in kernels/
    inputs: list[torch.Tensor]
    forward_bytes: int = 0          # that cannot be avoided; 0: time is not memory's
    backward_bytes: int = 0


def operations(
    shape: dict[str, int],
    vocabularies: list[int],
    tokens: int,
    dtype: torch.dtype,
    device: str,
) -> list[Operation]:
    """Every operation, at the widths of a model."""
    D = shape["D"]
    width = shape["F"]
    H = shape["H"]
    K = shape["K"]
    E = shape["E"]

    def leaf(*size):
        return torch.randn(size, dtype=dtype, device=device, requires_grad=True)

    def heads(n):
        return torch.randn(1, tokens, n, E, dtype=dtype, device=device).transpose(1, 2)

    # Bytes of a tensor of the model's width, of the feed-forward block's, and of all heads.
    x = tokens * D * dtype.itemsize
    wide = tokens * width * dtype.itemsize
    qk = tokens * (H + K) * E * dtype.itemsize

    angles = torch.rand(tokens, E // 2, device=device)
    q = heads(H).requires_grad_()
    k = heads(K).requires_grad_()
    rope_inputs = [q, k, angles.cos(), angles.sin()]
    norm_inputs = [leaf(tokens, D), leaf(D)]
    add_inputs = [leaf(tokens, D), leaf(tokens, D), leaf(D)]
    gate_and_up = [leaf(tokens, width), leaf(tokens, width)]
    found = [
        Operation("rms_norm", "rms_norm", norm_inputs, 2 * x, 3 * x),
        Operation("add_rms_norm", "add_rms_norm", add_inputs, 4 * x, 4 * x),
        Operation("swiglu", "swiglu", gate_and_up, 3 * wide, 5 * wide),
        Operation("rope", "rope", rope_inputs, 2 * qk, 2 * qk),
    ]
    for V in vocabularies:
        targets = torch.randint(0, V, (tokens,), device=device)
        weight = torch.randn(V, D, device=device) / D**0.5
        weight = weight.to(dtype).requires_grad_()
        name = f"linear_cross_entropy {V}"
        inputs = [leaf(tokens, D), weight, targets]
        found.append(Operation(name, "linear_cross_entropy", inputs))
    return found


def from_kernels(name: str) -> Callable:
    """The function of this name in kernels/, as a function of an operation's inputs."""
    function = getattr(kernels, name)
    if "rms_norm" in name:
        return functools.partial(function, eps=EPS)
    return function


def contenders(kind: str, device: str) -> dict[str, Callable]:
    """Who can do an operation: ours, its definition as it is and compiled, what is installed."""
    definition = from_kernels(kind + "_reference")
    # On a CPU inductor would take a minute of C++ for a number that no one wants.
    backend = "inductor" if device == "cuda" else "aot_eager"
    found = {
        "nanowhale": from_kernels(kind),
        "eager": definition,
        "torch.compile": torch.compile(definition, dynamic=False, backend=backend),
    }
    if importlib.util.find_spec("liger_kernel") is not None:
        found["liger"] = functools.partial(liger, kind)
    if kind == "linear_cross_entropy" and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["F.linear_cross_entropy"] = functools.partial(
            F.linear_cross_entropy,
            reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions(),
        )
    return found


def liger(kind: str, *inputs):
    """Liger's function for an operation."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    from liger_kernel.transformers import functional as L
    if kind == "rms_norm":
        return L.liger_rms_norm(*inputs, EPS)
    if kind == "add_rms_norm":
        return L.liger_fused_add_rms_norm(*inputs, EPS)
    if kind == "swiglu":
        return L.liger_swiglu(*inputs)
    if kind == "rope":
        q, k, cos, sin = inputs
        cos = torch.cat((cos, cos), -1)[None]
        sin = torch.cat((sin, sin), -1)[None]
        return L.liger_rope(q, k, cos, sin)
    hidden, weight, targets = inputs
    bias = class_weights = None
    results = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, targets, bias, class_weights, -100, 0.0, 0.0, "sum")
    return results[0] if isinstance(results, tuple) else results  # the loss


def outputs_of(function: Callable, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs that have a gradient: not the loss's number of targets."""
    outputs = function(*inputs)
    if not isinstance(outputs, tuple):
        return [outputs]
    return [y for y in outputs if y.is_floating_point()]


def gradients_of(
    function: Callable,
    inputs: list[torch.Tensor],
    upstream: list[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """The gradients of Σ output · upstream for the inputs that want one.

    Some contenders write over what they are given: hand each a copy.
    """
    wanted = [x for x in inputs if x.requires_grad]
    return torch.autograd.grad(outputs_of(function, inputs), wanted, upstream)


def copies_of(tensors: list[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Copies that want a gradient where the originals do; floating-point ones in `dtype`."""
    copies = []
    for x in tensors:
        copy = x.detach().clone()
        if dtype is not None and x.is_floating_point():
            copy = copy.to(dtype)
        copies.append(copy.requires_grad_(x.requires_grad))
    return copies


# -------------------------------------------------------------------------------------------- error


def error(
    function: Callable,
    definition: Callable,
    inputs: list[torch.Tensor],
    upstream: list[torch.Tensor],
) -> float:
    """The largest relative error of a gradient against float64, over the definition's own.

    The definition is evaluated in the dtype of the inputs, as `function` is, and in float64.
    """
    exact = gradients_of(
        definition,
        copies_of(inputs, torch.float64),
        copies_of(upstream, torch.float64),
    )

    def largest_error(function):
        gradients = gradients_of(function, copies_of(inputs), copies_of(upstream))
        errors = []
        for got, true in zip(gradients, exact, strict=True):
            relative = (got - true).abs().max() / true.abs().max()
            errors.append(relative.item())
        return max(errors)

    return largest_error(function) / max(largest_error(definition), 1e-12)


# ---------------------------------------------------------------------------------- time and memory


def milliseconds(call: Callable, device: str, repeats: int, pause: int = PAUSE) -> list[float]:
    """Times of single calls, after warm-up.

    `pause`: the cycles in which Python queues the call; if they are too few, Python's own time is
    measured.
    """
    if device not in FLUSH:
        FLUSH[device] = torch.empty(2**28 if device == "cuda" else 2**22, device=device)
    warm_up = 3
    times = []
    for _ in range(warm_up + repeats):
        FLUSH[device].zero_()
        if device == "cuda":
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(pause)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - began))
    return times[warm_up:]


def copy_rate(device: str) -> float:
    """Bytes per second of a device copy: those that are read and those that are written."""
    source = torch.randn(2**28 if device == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    times = milliseconds(lambda: target.copy_(source), device, 20)
    median, _, _ = measure.quantiles(times)
    return 2 * source.nbytes / (1e-3 * median)


def peak(call: Callable, device: str) -> float | None:
    """GB that a call holds at most, over what was there before."""
    if device != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def in_turns(calls: dict[str, Callable], device: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of about `repeats` calls of each contender, a fifth of them at a turn."""
    turns = {}
    for who, call in calls.items():
        turns[who] = functools.partial(milliseconds, call, device, -(-repeats // 5))
    times = {}
    for who, lists in measure.interleaved(turns).items():
        times[who] = sum(lists, [])
    return times


def time_all(args: argparse.Namespace) -> Iterator[dict]:
    """Every operation of every shape by every contender: a row each, as soon as it is there."""
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    copy = copy_rate(args.device)
    kernels.use("auto", args.device)
    for shape in args.shapes:
        todo = operations(SHAPES[shape], args.vocabularies, args.tokens, dtype, args.device)
        for operation in todo:
            for row in time_operation(operation, copy, args):
                yield {"shape": shape, "operation": operation.name, **row}


def time_operation(operation: Operation, copy: float, args: argparse.Namespace) -> Iterator[dict]:
    """One row per contender. `copy`: bytes per second of a device copy."""
    definition = from_kernels(operation.kind + "_reference")
    with torch.no_grad():
        upstream = [torch.randn_like(y) for y in outputs_of(definition, operation.inputs)]

    # A contender that cannot do this at all, such as another library's changed function, is named
    # and left out.
    able = {}
    for who, function in contenders(operation.kind, args.device).items():
        try:
            gradients_of(function, copies_of(operation.inputs), copies_of(upstream))
        except Exception as problem:
            yield {"who": who, "failed": f"{type(problem).__name__}: {str(problem)[:300]}"}
        else:
            able[who] = function

    # Each has inputs and upstream gradients of its own. Liger writes dx over dy, call after call:
    # shared with the others, it would soon overflow for all of them.
    forward = {}
    both = {}
    for who, function in able.items():
        inputs = copies_of(operation.inputs)
        forward[who] = functools.partial(outputs_of, function, inputs)
        both[who] = functools.partial(gradients_of, function, inputs, copies_of(upstream))
    peaks = {who: peak(call, args.device) for who, call in both.items()}
    forward_times = in_turns(forward, args.device, args.repeats)
    both_times = in_turns(both, args.device, args.repeats)

    def rate(n_bytes, milliseconds):
        return n_bytes / (1e-3 * milliseconds) if n_bytes else None

    def per(value, unit):
        return None if value is None else value / unit

    for who, function in able.items():
        forward_ms, _, _ = measure.quantiles(forward_times[who])
        both_ms, low, high = measure.quantiles(both_times[who])
        forward_rate = rate(operation.forward_bytes, forward_ms)
        both_rate = rate(operation.forward_bytes + operation.backward_bytes, both_ms)
        yield {
            "who": who,
            "forward ms": forward_ms,
            "backward ms": both_ms - forward_ms,
            "both ms": both_ms,
            "20 %": low,
            "80 %": high,
            "GB/s forward": per(forward_rate, 1e9),
            "GB/s both": per(both_rate, 1e9),
            "of copy, forward": per(forward_rate, copy),
            "of copy, both": per(both_rate, copy),
            "peak GB": peaks[who],
            "error / eager's": error_or_none(function, definition, operation, upstream, args),
        }


def error_or_none(
    function: Callable,
    definition: Callable,
    operation: Operation,
    upstream: list[torch.Tensor],
    args: argparse.Namespace,
) -> float | None:
    """`error`, if it is asked for and float64 fits into the memory."""
    if not args.errors:
        return None
    try:
        return error(function, definition, operation.inputs, upstream)
    except torch.OutOfMemoryError:
        return None


# -------------------------------------------------------------------------------------------- AdamW


def time_adamw(args: argparse.Namespace, parameters: int) -> list[dict]:
    """A step over matrices of 16M parameters: bfloat16 with stochastic rounding, and float32."""
    # Bytes per parameter: what is held (weight and moments), and what a step reads and writes.
    fused = functools.partial(torch.optim.AdamW, fused=True)
    contenders = {
        "nanowhale bfloat16": (kernels.AdamW, torch.bfloat16, 6, 14),
        "torch float32, fused": (fused, torch.float32, 12, 28),
    }
    shape = (4096, min(4096, parameters // 4096))
    matrices = max(1, parameters // (shape[0] * shape[1]))
    n_parameters = matrices * shape[0] * shape[1]

    turns = {}
    for who, (optimizer_class, dtype, _, _) in contenders.items():
        ps = []
        for _ in range(matrices):
            p = torch.nn.Parameter(torch.randn(shape, dtype=dtype, device=args.device))
            p.grad = torch.randn_like(p)
            ps.append(p)
        optimizer = optimizer_class(ps)
        pause = 5 * PAUSE  # a step's Python takes about two milliseconds
        turns[who] = functools.partial(
            median_milliseconds, optimizer.step, args.device, 10, pause)
    differing = adamw_differences(args.device)
    copy = copy_rate(args.device)

    rows = []
    for who, times in measure.interleaved(turns).items():
        _, dtype, held, traffic = contenders[who]
        median, low, high = measure.quantiles(times)
        rows.append({
            "who": who,
            "parameters": parameters,
            "step ms": median,
            "20 %": low,
            "80 %": high,
            "of copy": traffic * n_parameters / (1e-3 * median) / copy,
            "bytes per parameter": held,
            "numbers unlike the definition's": differing if dtype == torch.bfloat16 else None,
        })
    return rows


def median_milliseconds(*args) -> float:
    """The median of `milliseconds`."""
    median, _, _ = measure.quantiles(milliseconds(*args))
    return median


def adamw_differences(device: str) -> int:
    """How many of a million weights and moments differ from the definition's after three steps."""
    ends = []
    for choice in ("auto", "torch"):
        kernels.use(choice, device)
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(2**20, generator=generator).bfloat16().to(device))
        optimizer = kernels.AdamW([p], lr=1e-2)
        for _ in range(3):
            p.grad = torch.randn(2**20, generator=generator).bfloat16().to(device)
            optimizer.step()
        state = optimizer.state[p]
        ends.append(torch.stack((p.detach(), state["exp_avg"], state["exp_avg_sq"])))
    kernels.use("auto", device)
    return int((ends[0] != ends[1]).sum())


# -------------------------------------------------------------------------------- the loss on a CPU


LOSS = """
import resource, sys, time
sys.path.insert(0, {root!r})
import torch
import torch.nn.functional as F
import kernels

def nanowhale(h, w, t):
    return kernels.linear_cross_entropy(h, w, t)[0]

def eager(h, w, t):
    return F.cross_entropy(F.linear(h, w), t, reduction="sum")

def pytorch(h, w, t):
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(h, w, t, reduction="sum", options=options)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

h = torch.randn({tokens}, 256, requires_grad=True)
w = torch.randn({vocabulary}, 256, requires_grad=True)
t = torch.randint(0, {vocabulary}, ({tokens},))

# A small call first, so that libraries and gradients are there.
{function}(h[:8], w, t[:8]).backward()
before = peak()
began = time.perf_counter()
{function}(h, w, t).backward()
print(peak() - before, time.perf_counter() - began)
"""


def loss_once(function: str, vocabulary: int, tokens: int) -> tuple[float, float]:
    """Bytes and seconds that loss and gradients take in a process of their own."""
    code = LOSS.format(
        root=str(measure.ROOT),
        function=function,
        vocabulary=vocabulary,
        tokens=tokens,
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    n_bytes, seconds = out.stdout.split()
    return float(n_bytes), float(seconds)


def loss_on_cpu(tokens: int, vocabularies: list[int]) -> Iterator[dict]:
    """Peak memory (over what the process held before) and time of loss and gradients, in turns."""
    functions = {"nanowhale": "nanowhale", "eager": "eager"}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        functions["F.linear_cross_entropy"] = "pytorch"
    for vocabulary in vocabularies:
        turns = {}
        for who, function in functions.items():
            turns[who] = functools.partial(loss_once, function, vocabulary, tokens)
        for who, figures in measure.interleaved(turns).items():
            n_bytes, _, _ = measure.quantiles([figure[0] for figure in figures])
            seconds, _, _ = measure.quantiles([figure[1] for figure in figures])
            yield {
                "vocabulary": vocabulary,
                "tokens": tokens,
                "who": who,
                "peak MB": n_bytes / 1e6,
                "seconds": seconds,
            }


# --------------------------------------------------------------------------- what the compiler made


# Generations of GPU, and the dtype that is compiled for: Turing has no bfloat16.
TARGETS = {"sm_75": torch.float16, "sm_80": torch.bfloat16, "sm_90": torch.bfloat16}


def launch_everything(dtype: torch.dtype) -> None:
    """Start every variant of every kernel, at the widths of a 10.7B model and with few rows.

    What is compiled depends on no more: frozen weights, float32 masters, validation, the widest row
    and odd addresses among it.
    """
    def zeros(*shape, dtype=dtype, requires_grad=True):
        return torch.zeros(shape, dtype=dtype, requires_grad=requires_grad)

    # norm.py
    frozen = zeros(4096, requires_grad=False)
    master = zeros(4096, dtype=torch.float32)
    for width, weight in ((4096, zeros(4096)), (4096, frozen), (8192, zeros(8192)), (4096, master)):
        kernels.rms_norm(zeros(8, width), weight, EPS).sum().backward()
    for weight in (zeros(4096), frozen):
        y, stream = kernels.add_rms_norm(zeros(8, 4096), zeros(8, 4096), weight, EPS)
        (y.sum() + stream.sum()).backward()

    # activation.py
    kernels.swiglu(zeros(8, 14336), zeros(8, 14336)).sum().backward()

    # rotary.py
    q = zeros(1, 8, 32, 128).transpose(1, 2)
    k = zeros(1, 8, 8, 128).transpose(1, 2)
    table = torch.zeros(8, 64)
    q, k = kernels.rope(q, k, table, table)
    (q.sum() + k.sum()).backward()

    # loss.py
    hidden = zeros(8, 4096)
    head = zeros(49152, 4096)
    targets = torch.zeros(8, dtype=torch.long)
    kernels.linear_cross_entropy(hidden, head, targets)[0].backward()
    with torch.no_grad():
        kernels.linear_cross_entropy(hidden, head, targets)

    # adamw.py
    for first in (0, 1):
        elements = torch.zeros(4096 + first, dtype=torch.bfloat16)
        p = torch.nn.Parameter(elements[first:])
        p.grad = torch.zeros_like(p)
        kernels.AdamW([p]).step()


def compile_all() -> list[dict]:
    """Run every operation with launches recorded instead of made; compile what was recorded."""
    import triton
    from triton.runtime.jit import JITFunction
    if triton.knobs.runtime.interpret:
        sys.exit("unset TRITON_INTERPRET: interpreter and compiler cannot share a process")
    launched: list[tuple] = []

    def record(kernel, *args, grid, warmup, **options):
        launched.append((kernel, args, options))

    JITFunction.run = record
    for module in ("launch", "norm", "rotary", "activation", "loss", "adamw"):
        import_module(f"kernels.{module}").triton_runs = lambda x: True

    rows = []
    seen = set()
    for target, dtype in TARGETS.items():
        launched.clear()
        launch_everything(dtype)
        for kernel, args, options in launched:
            values = dict(zip(kernel.arg_names, args, strict=False)) | options
            flags = {name: x for name, x in options.items() if name not in kernel.arg_names}
            for variant in variants(kernel, values):
                key = (target, kernel, str(variant))
                if key not in seen:
                    seen.add(key)
                    rows.append(compile_one(kernel, variant, flags, target))
    return rows


class Variant(NamedTuple):
    """What a kernel is compiled for."""
    signature: dict[str, str]               # argument → type
    constants: dict[str, object]            # argument → value
    attributes: dict[tuple, list]           # what is known of arguments' values


def variants(kernel, values: dict) -> list[Variant]:
    """The variant of a launch with these arguments; two, if torch.compile would make another."""
    signature = {}
    constants = {}
    attributes = {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        signature[parameter.name] = type_of(value)
        is_divisible = isinstance(value, int) and value % 16 == 0
        if isinstance(value, torch.Tensor) or is_divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]

    found = [Variant(signature, constants, attributes)]
    if "eps" in signature and kernel.__module__ == "kernels.norm":
        # torch.compile hands a Python float over as float64.
        found.append(Variant(signature | {"eps": "fp64"}, constants, attributes))
    return found


def type_of(value) -> str:
    """The name in a kernel's signature of an argument that is not a constant."""
    if isinstance(value, torch.Tensor):
        names = {
            torch.float32: "fp32",
            torch.bfloat16: "bf16",
            torch.float16: "fp16",
            torch.int64: "i64",
        }
        return "*" + names[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def compile_one(kernel, variant: Variant, flags: dict, target: str) -> dict:
    """Compile, and describe the result in a row."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    began = time.perf_counter()
    compiled = triton.compile(
        ASTSource(kernel, variant.signature, variant.constants, variant.attributes),
        target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32),
        options=flags,
    )
    seconds = time.perf_counter() - began

    named = []
    for name, value in variant.constants.items():
        if isinstance(value, bool) or name in ("SIGN", "D"):
            named.append(f"{name.lower()} {int(value)}")
    if variant.signature.get("W") == "*fp32":
        named.append("float32 weight")
    if variant.signature.get("eps") == "fp64":
        named.append("eps float64")
    return {
        "target": target,
        "kernel": f"{kernel.__module__.removeprefix('kernels.')}.{kernel.__name__}",
        "variant": ", ".join(named),
        "warps": flags["num_warps"],
        **resources(compiled),
        "seconds": round(seconds, 2),
    }


def resources(compiled) -> dict:
    """What a compiled kernel needs.

    Registers per thread, shared memory, spilled bytes, the widest load from global memory, and the
    instructions in float64 (a GPU does few of those per second). Registers and spills are read from
    the binary, by the cuobjdump that comes with Triton; the rest is in the text.
    """
    import triton
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def number(name):
        return int(re.search(rf"{name}:(\d+)", usage)[1])

    # ld.global.v4.b32 loads 4 × 32 bits; the number of elements may stand in two places.
    ptx = compiled.asm["ptx"]
    load = re.compile(r"ld\.global(?:\.L\S+?)?(?:\.v(\d))?(?:\.v(\d))?\.[bfsu](\d+)")
    widths = []
    for match in load.finditer(ptx):
        elements = match[1] or match[2] or 1
        widths.append(int(elements) * int(match[3]))
    in_float64 = re.findall(r"^\s*(?!\.param|ld\.param)\S*\.f64", ptx, re.MULTILINE)
    return {
        "registers": number("REG"),
        "shared": compiled.metadata.shared,
        "spills": number("LOCAL") + number("STACK"),
        "load bits": max(widths, default=0),
        "float64": len(in_float64),
    }


# -------------------------------------------------------------------------------------- the program


def report_as_it_comes(name: str, rows: Iterator[dict], conditions: dict) -> None:
    """Print and save every row when it is there, and all of them at the end."""
    found = []
    for row in rows:
        found.append(row)
        print(measure.line(row), flush=True)
        measure.save(name, found, conditions)
    measure.report(name, found, conditions)


def parse() -> argparse.Namespace:
    """The flags, with the default of --tokens filled in."""
    parser = cli.Parser(description=__doc__, prog="bench.kernels")
    flag = parser.add_argument
    flag("--compile-only", action="store_true",
         help="compile for sm_75, sm_80 and sm_90; needs no GPU")
    flag("--json", action="store_true", help="with --compile-only: print one line of JSON")
    flag("--device", default="cuda", choices=["cuda", "cpu"], help="what is timed")
    flag("--shapes", nargs="+", default=["1.1B", "8B"], choices=list(SHAPES),
         help="whose widths are timed")
    flag("--vocabularies", nargs="+", type=int, default=[49152], help="rows of the head")
    flag("--tokens", type=int, default=0, help="tokens per call; 0: 16384 on a GPU, 4096 on a CPU")
    flag("--repeats", type=int, default=50, help="timed calls of each operation")
    flag("--no-errors", dest="errors", action="store_false",
         help="leave out the comparison with float64")
    args = parser.parse_args()
    if not args.tokens:
        args.tokens = 16384 if args.device == "cuda" else 4096
    return args


def main() -> None:
    """Compile, or time, and write down what came out."""
    args = parse()
    if args.compile_only:
        rows = compile_all()
        print(json.dumps(rows) if args.json else measure.table(rows))
        return

    conditions = {**measure.machine("liger-kernel"), "tokens": args.tokens}
    if args.device == "cpu":
        rows = loss_on_cpu(args.tokens, args.vocabularies)
        report_as_it_comes("kernels-cpu", rows, conditions)
        return
    if not torch.cuda.is_available():
        raise cli.UserError("PyTorch finds no GPU here; --compile-only and --device cpu need none")
    name = conditions["gpu"].replace(" ", "-")
    report_as_it_comes(f"kernels-{name}", time_all(args), conditions)
    measure.report(f"adamw-{name}", time_adamw(args, 2**30), conditions)


if __name__ == "__main__":
    cli.run(main)
