"""Time, memory traffic, peak memory and error of kernels/ beside what else there is; or what the compiler made of them.

    python -m bench.kernels                   # on a GPU: the tables, and bench/results/kernels-GPU.json
    python -m bench.kernels --compile-only    # anywhere: registers, shared memory, spills, width of loads
    python -m bench.kernels --device cpu      # peak memory and time of the loss on a CPU

Bandwidth is a share of what a device copy reaches in the same run, and counts the bytes that cannot be avoided: inputs
read once, outputs written once. Times are of single calls between device events, in turns among the contenders, queued
behind a pause so that Python's own time is not measured, with the cache overwritten in between.
"""
import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F

import kernels
from bench import measure
from common import cli

SHAPES = {"1.1B": dict(D=2048, F=5632, H=32, K=4, E=64), "8B": dict(D=4096, F=14336, H=32, K=8, E=128),
          "tiny": dict(D=64, F=160, H=4, K=2, E=16)}  # 10.7B is 48 layers of 8B's shape
PAUSE = 2_000_000  # cycles, about a millisecond, for which a GPU waits while Python queues what is timed
FLUSH: dict[str, torch.Tensor] = {}  # what overwrites the cache between calls: larger than it, and allocated once
TARGETS = {"sm_75": torch.float16, "sm_80": torch.bfloat16, "sm_90": torch.bfloat16}  # Turing has no bfloat16


def calls(dtype: torch.dtype) -> list:
    """Calls that between them start every variant of every kernel, at the widths of a 10.7B model and few rows: what is
    compiled depends on no more. Frozen weights, float32 masters, validation, the widest row and odd addresses too."""
    x = lambda *shape, kind=dtype: torch.zeros(shape, dtype=kind, requires_grad=True)
    table, states, chosen = torch.zeros(8, 64), x(8, 4096), torch.zeros(8, dtype=torch.long)
    norm = lambda width, w: kernels.rms_norm(x(8, width), w, 1e-5).sum().backward()
    add = lambda w: sum(y.sum() for y in kernels.add_rms_norm(x(8, 4096), x(8, 4096), w, 1e-5)).backward()
    loss = lambda w: kernels.linear_cross_entropy(states, w, chosen)[0]
    heads = lambda n: x(1, 8, n, 128).transpose(1, 2)

    def adamw(first: int) -> None:
        p = torch.nn.Parameter(torch.zeros(4096 + first, dtype=torch.bfloat16)[first:])
        p.grad = torch.zeros_like(p)
        kernels.AdamW([p]).step()

    return [lambda: norm(4096, x(4096)), lambda: norm(4096, x(4096).detach()), lambda: norm(8192, x(8192)),
            lambda: norm(4096, x(4096, kind=torch.float32)), lambda: add(x(4096)), lambda: add(x(4096).detach()),
            lambda: kernels.swiglu(x(8, 14336), x(8, 14336)).sum().backward(),
            lambda: sum(y.sum() for y in kernels.rope(heads(32), heads(8), table, table)).backward(),
            lambda: loss(x(49152, 4096)).backward(), torch.no_grad()(lambda: loss(x(49152, 4096))),
            lambda: adamw(0), lambda: adamw(1)]


def compile_all() -> list[dict]:
    """Run every operation with launches recorded instead of made, and compile what would have been launched."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction
    if triton.knobs.runtime.interpret:
        sys.exit("unset TRITON_INTERPRET: the interpreter and the compiler cannot share a process")
    launched: list[tuple] = []
    JITFunction.run = lambda self, *args, grid, warmup, **options: launched.append((self, args, options))
    launch = import_module("kernels.launch")
    launch.triton_runs = lambda x: True
    for module in ("norm", "rotary", "activation", "loss", "adamw"):
        import_module(f"kernels.{module}").triton_runs = launch.triton_runs
    rows, seen = [], set()
    for target, dtype in TARGETS.items():
        launched.clear()
        for call in calls(dtype):
            call()
        for kernel, args, options in launched:
            values = dict(zip(kernel.arg_names, args, strict=False)) | options
            constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
            signature = {p.name: "constexpr" if p.is_constexpr else type_of(values[p.name]) for p in kernel.params}
            aligned = {(i,): [["tt.divisibility", 16]] for i, p in enumerate(kernel.params) if not p.is_constexpr
                       and (isinstance(values[p.name], torch.Tensor)
                            or isinstance(values[p.name], int) and values[p.name] % 16 == 0)}
            flags = {k: v for k, v in options.items() if k not in kernel.arg_names}
            signatures = [signature]
            if "eps" in signature and kernel.__module__ == "kernels.norm":
                signatures.append(signature | {"eps": "fp64"})  # as torch.compile hands it over
            for signature in signatures:
                if (target, kernel, str(constants), str(signature)) in seen:
                    continue
                seen.add((target, kernel, str(constants), str(signature)))
                began = time.perf_counter()
                compiled = triton.compile(ASTSource(kernel, signature, constants, aligned),
                                          target=GPUTarget("cuda", int(target[3:]), 32), options=flags)
                named = {k: int(v) for k, v in constants.items() if isinstance(v, bool) or k in ("SIGN", "D")}
                variant = [f"{k.lower()} {v}" for k, v in named.items()]
                if signature.get("W") == "*fp32":
                    variant.append("float32 weight")
                if signature.get("eps") == "fp64":
                    variant.append("eps float64")
                rows.append({"target": target, "kernel": f"{kernel.__module__.split('.')[1]}.{kernel.__name__}",
                             "variant": ", ".join(variant), "warps": flags["num_warps"], **resources(compiled),
                             "seconds": round(time.perf_counter() - began, 2)})
    return rows


def type_of(value) -> str:
    """The name in a kernel's signature of an argument that is not a constant."""
    if isinstance(value, torch.Tensor):
        short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
        return "*" + short[value.dtype]
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"


def resources(compiled) -> dict:
    """Registers per thread, shared memory, spilled bytes, the widest load from global memory, and the instructions in
    float64 (a GPU does few of those per second), of a compiled kernel. cuobjdump, which Triton carries, reads the first
    three from the binary."""
    import triton
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True)
    number = lambda name: int(re.search(rf"{name}:(\d+)", usage.stdout)[1])
    widths = [int(m[1] or m[2] or 1) * int(m[3]) for m in
              re.finditer(r"ld\.global(?:\.L\S+?)?(?:\.v(\d))?(?:\.v(\d))?\.[bfsu](\d+)", compiled.asm["ptx"])]
    return {"registers": number("REG"), "shared": compiled.metadata.shared,
            "spills": number("LOCAL") + number("STACK"), "load bits": max(widths, default=0),
            "float64": len(re.findall(r"^\s*(?!\.param|ld\.param)\S*\.f64", compiled.asm["ptx"], re.MULTILINE))}


def liger(name: str):
    """Liger's function for the operation of this name, called as ours; None where it is not installed. Whatever else is
    wrong with it (another version's names) shows when it is called."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None

    def call(*inputs):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
        from liger_kernel.transformers import functional as L
        if name == "rms_norm":
            return L.liger_rms_norm(*inputs, 1e-5)
        if name == "add_rms_norm":
            return L.liger_fused_add_rms_norm(*inputs, 1e-5)
        if name == "swiglu":
            return L.liger_swiglu(*inputs)
        if name == "rope":
            q, k, cos, sin = inputs
            return L.liger_rope(q, k, torch.cat((cos, cos), -1)[None], torch.cat((sin, sin), -1)[None])
        hidden, weight, targets = inputs
        return first(LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, targets, None, None, -100, 0.0, 0.0, "sum"))
    return call


def first(x):
    return x[0] if isinstance(x, tuple) else x


def operations(shape: dict, vocabularies: tuple[int, ...], tokens: int, dtype: torch.dtype, device: str) -> dict:
    """name → (how a contender is called, inputs, bytes that cannot be avoided forward, and backward)."""
    D, width, H, K, E = shape.values()
    new = lambda *size: torch.randn(*size, dtype=dtype, device=device)
    leaf = lambda *size: new(*size).requires_grad_()
    x, size = tokens * D, dtype.itemsize
    angles = torch.rand(tokens, E // 2, device=device)
    heads = [new(1, tokens, n, E).transpose(1, 2).requires_grad_() for n in (H, K)]
    table = {"rms_norm": (lambda k: lambda x, w: k(x, w, 1e-5), [leaf(tokens, D), leaf(D)], 2 * x, 3 * x),
             "add_rms_norm": (lambda k: lambda x, r, w: k(x, r, w, 1e-5), [leaf(tokens, D), leaf(tokens, D), leaf(D)],
                              4 * x, 4 * x),
             "swiglu": (lambda k: k, [leaf(tokens, width), leaf(tokens, width)], 3 * tokens * width, 5 * tokens *
             width), "rope": (lambda k: k, [*heads, angles.cos(), angles.sin()], 2 * tokens * (H + K) * E, 2 * tokens
             * (H + K) * E)}
    for V in vocabularies:
        targets = torch.randint(0, V, (tokens,), device=device)
        weight = (torch.randn(V, D, device=device) / D**0.5).to(dtype).requires_grad_()
        table[f"linear_cross_entropy {V}"] = (lambda k: lambda h, w, t: first(k(h, w, t)),
                                                       [leaf(tokens, D), weight, targets], 0, 0)
    return {name: (wrap, inputs, forward * size, backward * size) for name, (wrap, inputs, forward, backward) in
            table.items()}


def contenders(name: str, wrap, device: str) -> dict:
    """Who can do the operation: ours, its definition as it is and compiled, and what is installed."""
    kind = name.split()[0]
    definition = wrap(getattr(kernels, kind + "_reference"))
    backend = "inductor" if device == "cuda" else "aot_eager"  # on a CPU a minute of C++ for a number no one wants
    found = {"nanowhale": wrap(getattr(kernels, kind)), "eager": definition,
             "torch.compile": torch.compile(definition, dynamic=False, backend=backend)}
    if liger(kind):
        found["liger"] = liger(kind)
    if kind == "linear_cross_entropy" and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["F.linear_cross_entropy"] = lambda h, w, t: F.linear_cross_entropy(h, w, t, reduction="sum",
                                                                                 options=options)
    return found


def milliseconds(call, device: str, repeats: int, pause: int = PAUSE) -> list[float]:
    """Times of single calls, after warm-up. `pause`: the cycles in which Python queues the call; too short a pause, and
    Python's own time is measured."""
    times = []
    for _ in range(repeats + 3):
        FLUSH.setdefault(device, torch.empty(2**28 if device == "cuda" else 2**22, device=device)).zero_()
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
    return times[3:]


def copy_rate(device: str) -> float:
    """Bytes a second of a device copy, read and written ones together."""
    source = torch.randn(2**28 if device == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-3 * measure.quantiles(milliseconds(lambda: target.copy_(source), device, 20))[0])


def error(function, definition, inputs: list, upstream: list) -> float:
    """The largest relative error of a gradient against float64, over that of the definition in the same dtype."""
    exact = gradients(definition, [x.double() if x.is_floating_point() else x for x in inputs],
                      [g.double() for g in upstream])
    worst = lambda grads: max(((g - e).abs().max() / e.abs().max()).item() for g, e in zip(grads, exact, strict=True))
    return worst(gradients(function, inputs, upstream)) / max(worst(gradients(definition, inputs, upstream)), 1e-12)


def error_or_none(function, definition, inputs: list, upstream: list, args: argparse.Namespace) -> float | None:
    """`error`, if it is asked for and float64 fits into the memory."""
    if not args.errors:
        return None
    try:
        return error(function, definition, inputs, upstream)
    except torch.OutOfMemoryError:
        return None


def gradients(function, inputs: list, upstream: list) -> list:
    """Of Σ outputs · upstream, on copies: some contenders write over their inputs."""
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.autograd.grad(outputs, [x for x in inputs if x.requires_grad], [g.clone() for g in upstream])


def time_all(args: argparse.Namespace) -> Iterator[dict]:
    """Every operation of every shape by every contender: a row each, as soon as it is there."""
    dtype, copy = torch.bfloat16 if args.device == "cuda" else torch.float32, copy_rate(args.device)
    kernels.use("auto", args.device)
    for shape in args.shapes:
        for name, (wrap, inputs, *unavoidable) in operations(SHAPES[shape], args.vocabularies, args.tokens, dtype,
                                                             args.device).items():
            definition = wrap(getattr(kernels, name.split()[0] + "_reference"))
            functions = contenders(name, wrap, args.device)
            with torch.no_grad():
                outputs = definition(*inputs)
            upstream = [torch.randn_like(y) for y in (outputs if isinstance(outputs, tuple) else (outputs,))]
            del outputs
            # A contender that cannot do this at all, such as another library's changed function, is named and left out.
            for who, function in list(functions.items()):
                try:
                    gradients(function, inputs, upstream)
                except Exception as problem:
                    yield {"shape": shape, "operation": name, "who": who,
                           "failed": f"{type(problem).__name__}: {str(problem)[:300]}"}
                    del functions[who]
            mine = {who: [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs] for who in functions}
            both = {who: lambda f=f, x=mine[who], g=upstream: torch.autograd.grad(
                f(*x), [i for i in x if i.requires_grad], g) for who, f in functions.items()}
            ahead = {who: lambda f=f, x=mine[who]: f(*x) for who, f in functions.items()}
            turns = lambda calls: {who: sum(times, []) for who, times in measure.interleaved(
                {who: lambda c=c: milliseconds(c, args.device, -(-args.repeats // 5)) for who, c in calls.items()}
            ).items()}
            peaks = {who: peak(call, args.device) for who, call in both.items()}
            forward, whole = turns(ahead), turns(both)
            for who, function in functions.items():
                first, (median, low, high) = measure.quantiles(forward[who])[0], measure.quantiles(whole[who])
                share = lambda amount, ms: amount / (1e-3 * ms) / copy if amount else None
                rate = lambda amount, ms: amount / (1e-3 * ms) / 1e9 if amount else None
                yield {"shape": shape, "operation": name, "who": who, "forward ms": first,
                       "backward ms": median - first, "both ms": median, "20 %": low, "80 %": high,
                       "GB/s forward": rate(unavoidable[0], first), "GB/s both": rate(sum(unavoidable), median),
                       "of copy, forward": share(unavoidable[0], first),
                       "of copy, both": share(sum(unavoidable), median), "peak GB": peaks[who],
                       "error / eager's": error_or_none(function, definition, inputs, upstream, args)}


def peak(call, device: str) -> float | None:
    """GB that a call holds at most, over what was there before."""
    if device != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def time_adamw(args: argparse.Namespace, parameters: int) -> list[dict]:
    """A step over matrices of 16M parameters: bfloat16 with stochastic rounding, and torch's fused float32 AdamW."""
    rows, optimizers, shape = [], {}, (4096, min(4096, parameters // 4096))
    fused = lambda p: torch.optim.AdamW(p, fused=True)
    for who, make, dtype, size in (("nanowhale bfloat16", kernels.AdamW, torch.bfloat16, 14),
                                   ("torch float32, fused", fused, torch.float32, 28)):
        ps = [torch.nn.Parameter(torch.randn(shape, dtype=dtype, device=args.device))
              for _ in range(max(1, parameters // (shape[0] * shape[1])))]
        for p in ps:
            p.grad = torch.randn_like(p)
        optimizers[who] = make(ps), size * sum(p.numel() for p in ps)
    differing = adamw_differences(args.device)
    copy = copy_rate(args.device)
    pause = 5 * PAUSE  # a step's Python takes about two milliseconds
    times = measure.interleaved({who: lambda o=o: measure.quantiles(milliseconds(o.step, args.device, 10, pause))[0]
                                 for who, (o, _) in optimizers.items()})
    for who, (_, traffic) in optimizers.items():
        median, low, high = measure.quantiles(times[who])
        rows.append({"who": who, "parameters": parameters, "step ms": median, "20 %": low, "80 %": high,
                     "of copy": traffic / (1e-3 * median) / copy, "bytes a parameter": 6 if "bfloat16" in who else 12,
                     "numbers unlike the definition's": differing if "bfloat16" in who else None})
    return rows


def adamw_differences(device: str) -> int:
    """How many of a million weights and moments, after three steps, differ from the definition's: none should."""
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


LOSS = """
import resource, sys, time
sys.path.insert(0, {root!r})
import torch, torch.nn.functional as F
from common import cli
import kernels
N, D, V = {tokens}, 256, {vocabulary}
h, w = (torch.randn(n, D).requires_grad_() for n in (N, V))
t = torch.randint(0, V, (N,))
who = {{"nanowhale": lambda h, t: kernels.linear_cross_entropy(h, w, t)[0],
       "eager": lambda h, t: F.cross_entropy(F.linear(h, w), t, reduction="sum"),
       "F.linear_cross_entropy": lambda h, t: F.linear_cross_entropy(h, w, t, reduction="sum",
                                                                     options=torch.nn.LinearCrossEntropyOptions())}}
who = who[{who!r}]
who(h[:8], t[:8]).backward()  # the libraries are loaded, the gradients exist
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, began = peak(), time.perf_counter()
who(h, t).backward()
print(peak() - before, time.perf_counter() - began)
"""


def loss_on_cpu(tokens: int, vocabularies: list[int], runs: int = 5) -> Iterator[dict]:
    """Peak memory (over what the process held before) and time of loss and gradients, a process each, in turns."""
    for vocabulary in vocabularies:
        def once(who, vocabulary=vocabulary):
            code = LOSS.format(root=str(measure.ROOT), tokens=tokens, vocabulary=vocabulary, who=who)
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            return [float(x) for x in out.stdout.split()]
        names = ["nanowhale", "eager"] + ["F.linear_cross_entropy"] * hasattr(torch.nn, "LinearCrossEntropyOptions")
        for who, figures in measure.interleaved({n: lambda n=n: once(n) for n in names}, runs).items():
            peak, seconds = (measure.quantiles([f[i] for f in figures])[0] for i in range(2))
            yield {"vocabulary": vocabulary, "tokens": tokens, "who": who, "peak MB": peak / 1e6, "seconds": seconds}


def report_as_it_comes(name: str, rows: Iterator[dict], conditions: dict) -> None:
    """Print and save every row when it is there, and all of them at the end."""
    found = []
    for row in rows:
        found.append(row)
        print(measure.line(row), flush=True)
        measure.save(name, found, conditions)
    measure.report(name, found, conditions)


def main() -> None:
    """Compile, or time, and write down what came out."""
    p = cli.Parser(description=__doc__, prog="bench.kernels")
    p.add_argument("--compile-only", action="store_true", help="compile for sm_75, sm_80 and sm_90; needs no GPU")
    p.add_argument("--json", action="store_true", help="with --compile-only: print the rows as one line of JSON")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="what is timed")
    p.add_argument("--shapes", nargs="+", default=["1.1B", "8B"], choices=list(SHAPES), help="whose widths are timed")
    p.add_argument("--vocabularies", nargs="+", type=int, default=[49152], help="rows of the head")
    p.add_argument("--tokens", type=int, default=0, help="tokens a call; 0: 16384 on a GPU, 4096 on a CPU")
    p.add_argument("--repeats", type=int, default=50, help="timed calls of each operation")
    p.add_argument("--no-errors", dest="errors", action="store_false", help="leave the comparison with float64 away")
    args = p.parse_args()
    args.tokens = args.tokens or (16384 if args.device == "cuda" else 4096)
    if args.compile_only:
        rows = compile_all()
        return print(json.dumps(rows) if args.json else measure.table(rows))
    conditions = {**measure.machine("liger-kernel"), "tokens": args.tokens}
    if args.device == "cpu":
        return report_as_it_comes("kernels-cpu", loss_on_cpu(args.tokens, args.vocabularies), conditions)
    if not torch.cuda.is_available():
        raise cli.UserError("PyTorch finds no GPU here; --compile-only and --device cpu need none")
    name = conditions["gpu"].replace(" ", "-")
    report_as_it_comes(f"kernels-{name}", time_all(args), conditions)
    measure.report(f"adamw-{name}", time_adamw(args, 2**30), conditions)


if __name__ == "__main__":
    cli.run(main)
