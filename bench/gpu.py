r"""What only a GPU can prove, part by part, in the order of worth.

    python -m bench.gpu --out gpu.jsonl                                       # everything
    python -m bench.gpu --parts machine gemm attention --limit 300 --out gpu.jsonl
    python -m bench.gpu --device cpu --out try.jsonl                          # tiny, anywhere

    machine     name, versions, and the bandwidth of a device copy
    gemm        FLOP/s of a large matmul, cold and sustained
    attention   each backend at the recipe's shapes; within documents; what ten new lengths cost
    kernels     each of kernels/ against float64, beside eager, torch.compile and Liger
    steps       training steps of the 10.7B shape: time, utilisation, memory beside the plan
    train       train.py on four layers of that shape: stopped, resumed, and the same bits
    sharded     train.py under FSDP against one process without it
    recipe      the whole of speedrun.sh

GPU time comes in short pieces, so nothing may be lost. Each part runs in a process of its own with
a time limit of its own. One that fails or takes too long is reported as a row and passed over, and
what it had found by then stays: a row is a line of JSON, appended to --out and on disk the moment
it is known. bench/GPU.md says what to prepare, what to expect and what to do where it differs.
With --device cpu every line of this runs on tiny shapes, so that nothing in it is met for the first
time on a GPU.
"""
import argparse
import dataclasses
import faulthandler
import gc
import hashlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
import model
from bench import kernels as bench_kernels
from bench import measure, train_step
from common import checkpoint, cli, plan, sources

# ------------------------------------------------------------------------ what is measured


@dataclasses.dataclass(frozen=True)
class Case:
    """One training step of the part `steps`."""
    stage: str
    windows: int = 1             # per micro-batch
    accumulation: int = 1        # micro-batches per step
    recompute: str = "none"      # or "attention", or "full"
    compile: bool = False


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is, on a GPU and in a trial on a CPU."""
    device: str
    dtype: torch.dtype
    shape: str                   # of bench.train_step's SHAPES
    vocabulary: int
    seq_len: int
    short_seq_len: int           # of a step so short that Python takes longer than the device
    gemm_seconds: tuple[float, ...]
    attention: tuple[tuple[int, int, int, int, int], ...]    # B, T, H, K, E
    new_length: int              # the first of ten lengths that attention has not seen
    kernel_shape: str            # of bench.kernels' SHAPES
    kernel_tokens: int
    repeats: int                 # timed calls of each operation
    adamw_parameters: int
    train_steps: int             # of each stage of the part `train`
    sharded_shape: str           # of bench.train_step's SHAPES, in the part `sharded`
    sharded_steps: int           # of each of its stages
    cases: tuple[Case, ...]


# The recipe is RedWhale's: a 10.7B Llama, windows of 4,096 tokens, bfloat16, adamw_bf16. The cases
# come in the order in which their answers are wanted. Those that do not fit into the GPU's memory,
# by the plan, are passed over.
GPU = Sizes(
    device="cuda",
    dtype=torch.bfloat16,
    shape="10.7B",
    vocabulary=49152,
    seq_len=4096,
    short_seq_len=64,
    gemm_seconds=(0.02, 1.0, 4.0),
    attention=((1, 4096, 32, 8, 128), (4, 4096, 32, 8, 128), (8, 2048, 32, 8, 128)),
    new_length=1000,
    kernel_shape="8B",
    kernel_tokens=16384,
    repeats=50,
    adamw_parameters=2**30,
    train_steps=40,
    sharded_shape="base-en",
    sharded_steps=40,
    cases=(
        Case("odd"),
        Case("embed"),
        Case("lora"),
        Case("odd", accumulation=8),
        Case("odd", recompute="full"),
        Case("full"),
        Case("full", recompute="full"),
        Case("lora", windows=2),
        Case("even"),
        Case("odd", recompute="attention"),
        Case("embed", windows=4, recompute="full"),
        Case("full", accumulation=8),
        Case("odd", compile=True),
        Case("lora", compile=True),
    ),
)
TRIAL = Sizes(
    device="cpu",
    dtype=torch.float32,
    shape="tiny",
    vocabulary=512,
    seq_len=64,
    short_seq_len=8,
    gemm_seconds=(0.02, 0.05, 0.1),
    attention=((1, 64, 4, 2, 16),),
    new_length=30,
    kernel_shape="tiny",
    kernel_tokens=64,
    repeats=5,
    adamw_parameters=2**14,
    train_steps=100,
    sharded_shape="tiny",
    sharded_steps=4,
    cases=(
        Case("odd"),
        Case("embed", accumulation=2),
        Case("lora", recompute="attention"),
        Case("full", recompute="full"),
        Case("even", windows=2),
        Case("odd", compile=True),
        Case("lora", compile=True),
    ),
)
OPTIMIZER = "adamw_bf16"
VOCABULARY = 8192  # room for the pieces of --tokenizer, and no more to write to disk
LEARNING_RATE = 1e-4


class Rows:
    """The file to which one part appends what it finds."""

    def __init__(self, path: Path, part: str):
        self.path = path
        self.part = part

    def add(self, **figures) -> None:
        """Append a row, see that it is on disk, and print it."""
        row = {"part": self.part, **figures}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(measure.line(row), flush=True)


# -------------------------------------------------------------- the machine and its ceilings


def machine_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """What this is, and how fast its memory is."""
    facts = measure.machine("numpy", "transformers", "liger-kernel")
    if sizes.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["memory_gb"] = properties.total_memory / 1e9
        facts["multiprocessors"] = properties.multi_processor_count
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    rows.add(**facts)
    copied = bench_kernels.copy_rate(sizes.device)
    rows.add(what="device copy, bytes read and written", gb_per_second=copied / 1e9)


def gemm_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """A large matmul for longer and longer: a GPU that has rested clocks higher than one that has
    worked for seconds."""
    for duration in sizes.gemm_seconds:
        rate = plan.matmul_rate(sizes.device, sizes.dtype, duration)
        rows.add(seconds=duration, tflops=rate / 1e12)


# ---------------------------------------------------------------------------------- attention


def attention_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """Each of PyTorch's backends, and our choice among them."""
    contenders = attention_contenders()
    for shape in sizes.attention:
        # Once only: the float64 scores of a longer batch would take too much memory.
        check_error = shape == sizes.attention[0]
        for who, attend in contenders.items():
            if who == "math" and shape != sizes.attention[0]:
                continue  # a floor for the others, and slow
            figures = or_why_not(time_attention, attend, shape, sizes, check_error)
            rows.add(who=who, shape=shape, **figures)

    # With --document_mask. Its rates count whole windows, as if nothing were hidden.
    for shape in sizes.attention:
        figures = or_why_not(time_attention, within_documents(shape, sizes), shape, sizes, False)
        rows.add(what="windows of eight documents", who="nanowhale", shape=shape, **figures)

    # cuDNN plans anew for every length that it meets, so we must not meet it where lengths vary.
    for who in ("nanowhale", "cudnn"):
        figures = or_why_not(time_new_lengths, contenders[who], sizes)
        rows.add(what="ten new lengths, without gradients", who=who, **figures)


def or_why_not(measure_it: Callable[..., dict], *given) -> dict:
    """What `measure_it(*given)` returns, the figures of a backend; or, if it cannot do this shape,
    dtype or device, why it refuses, which PyTorch says in warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return measure_it(*given)
        except RuntimeError as error:
            reasons = [str(warning.message)[:150] for warning in caught]
            return {"failed": first_line(error), "reasons": reasons[:8]}


def attention_contenders() -> dict[str, Callable]:
    """name → causal attention of q (B, H, T, E), k and v (B, K, T, E)."""

    def only(backend: SDPBackend) -> Callable:
        def attend(q, k, v):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return attend

    def efficient(q, k, v):
        # It does not let heads share keys, so each head gets its own copy of them.
        copies = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(copies, 1)
        v = v.repeat_interleave(copies, 1)
        return only(SDPBackend.EFFICIENT_ATTENTION)(q, k, v)

    return {
        "nanowhale": model.causal_attention,
        "cudnn": only(SDPBackend.CUDNN_ATTENTION),
        "flash": only(SDPBackend.FLASH_ATTENTION),
        "efficient": efficient,
        "math": only(SDPBackend.MATH),
    }


def within_documents(shape: tuple[int, ...], sizes: Sizes) -> Callable:
    """Attention in windows that eight documents share evenly."""
    B, T = shape[:2]
    tokens = torch.zeros(B, T, dtype=torch.int64)
    tokens[:, ::T // 8] = 1
    documents = model.find_documents(tokens, bos=1)
    documents = documents._replace(numbers=documents.numbers.to(sizes.device))
    documents = documents.ready(sizes.dtype)

    def attend(q, k, v):
        return model.attention_within(q, k, v, documents)

    return attend


def queries_keys_values(shape: tuple[int, ...], sizes: Sizes) -> list[torch.Tensor]:
    """q, k and v as the model lays them out: heads inside positions."""
    B, T, H, K, E = shape
    inputs = []
    for heads in (H, K, K):
        x = torch.randn(B, T, heads, E, device=sizes.device, dtype=sizes.dtype)
        inputs.append(x.transpose(1, 2).requires_grad_())
    return inputs


def time_attention(attend: Callable, shape: tuple, sizes: Sizes, check_error: bool) -> dict:
    """Times and rates of one backend at one shape, and the names of the kernels that ran.

    FLOPs are of two matmuls forward and five backward, of which causality needs half.
    """
    B, T, H, _, E = shape
    inputs = queries_keys_values(shape, sizes)
    upstream = torch.randn_like(attend(*inputs))

    def forward():
        return attend(*inputs)

    def forward_and_backward():
        return torch.autograd.grad(attend(*inputs), inputs, upstream)

    # Times, and which kernels they are the times of.
    forward_ms = median_ms(forward, sizes)
    backward_ms = median_ms(forward_and_backward, sizes) - forward_ms
    flops = 2 * B * H * T * T * E
    kernel_times = train_step.profile(forward_and_backward, sizes)
    figures = {
        "forward_ms": forward_ms,
        "backward_ms": backward_ms,
        "forward_tflops": flops / forward_ms / 1e9,
        "backward_tflops": 2.5 * flops / max(backward_ms, 1e-6) / 1e9,
        "longest_kernels": [name[:60] for name, _, _ in kernel_times[:3]],
    }
    if check_error:
        definition = model.attention_reference
        figures["error_ratio"] = bench_kernels.error(attend, definition, inputs, [upstream])
    return figures


def median_ms(call: Callable, sizes: Sizes) -> float:
    """The median time of a call on the device, in milliseconds."""
    return statistics.median(bench_kernels.milliseconds(call, sizes.device, sizes.repeats))


@torch.no_grad()
def time_new_lengths(attend: Callable, sizes: Sizes) -> dict:
    """Seconds that a length costs when it is met for the first time, and again."""

    def seconds(length: int) -> float:
        _, _, *heads = sizes.attention[0]
        inputs = queries_keys_values((1, length, *heads), sizes)
        return train_step.seconds(lambda: attend(*inputs), sizes)

    seconds(sizes.new_length - 1)  # loads the library
    lengths = [sizes.new_length + 7 * i for i in range(10)]
    first_time = [seconds(length) for length in lengths]
    again = [seconds(length) for length in lengths]
    return {
        "first_time_seconds": statistics.median(first_time),
        "again_seconds": statistics.median(again),
    }


# ------------------------------------------------------------------------------------ kernels


def kernels_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """bench.kernels, at the widths of the recipe."""
    settings = argparse.Namespace(
        device=sizes.device,
        shapes=[sizes.kernel_shape],
        vocabularies=[sizes.vocabulary],
        tokens=sizes.kernel_tokens,
        repeats=sizes.repeats,
        errors=True,
    )
    for row in bench_kernels.time_all(settings):
        rows.add(**row)
    for row in bench_kernels.time_adamw(settings, sizes.adamw_parameters):
        rows.add(operation="adamw", **row)


# -------------------------------------------------------------------------------------- steps


def steps_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """Training steps in memory: every case that fits by the plan, the most wanted first."""
    memory = math.inf
    if sizes.device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        if args.cap:
            # What PyTorch may give out, so that what lies outside it has its place below the cap.
            allowed = min(memory, args.cap * 1e9) - plan.OUTSIDE["cuda"]
            torch.cuda.set_per_process_memory_fraction(allowed / memory)
            memory = min(memory, args.cap * 1e9)

    cold_rate = plan.matmul_rate(sizes.device, sizes.dtype, sizes.gemm_seconds[0])
    for number, case in enumerate(sizes.cases, 1):
        if number < args.from_case:
            continue
        named = {"number": number, **dataclasses.asdict(case)}
        cost = planned(case, sizes)
        if cost["needed"] > memory:
            rows.add(**named, skipped=f"needs {cost['needed'] / 1e9:.0f} GB, says the plan")
            continue
        try:
            measure_step(case, cost, cold_rate, sizes, named, rows)
        except Exception as error:  # out of memory, or the compiler; the other cases go on
            needed = cost["needed"] / 1e9
            rows.add(**named, failed=first_line(error), planned_need_gb=needed)

        # The model of this case has to be gone before the next one comes. Waiting for the device
        # also tells whether it still answers: after an illegal access nothing does.
        gc.collect()
        synchronize(sizes)
        if sizes.device == "cuda":
            torch.cuda.empty_cache()


def config_of(sizes: Sizes) -> model.Config:
    """The model whose steps are measured."""
    return model.Config(vocab_size=sizes.vocabulary, **train_step.SHAPES[sizes.shape])


def planned(case: Case, sizes: Sizes) -> dict:
    """What common/plan.py says of a case."""
    config = config_of(sizes)
    return plan.cost(
        config,
        plan.Stage(case.stage, 1, LEARNING_RATE),
        max(16, config.hidden_size // 32),
        sizes.seq_len,
        sizes.dtype,
        OPTIMIZER,
        micro_batch=case.windows,
        accumulation=case.accumulation,
        recompute=case.recompute,
        device=sizes.device,
    )


def measure_step(
    case: Case, cost: dict, cold_rate: float, sizes: Sizes, named: dict, rows: Rows
) -> None:
    """Make the model, take some steps, and add two rows: how fast they were, and where the time
    went. `named`: what both rows begin with."""
    if sizes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # torch.compile keeps a few variants of a block, and beyond them runs it uncompiled, which would
    # be timed under the wrong name.
    torch.compiler.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    step = train_step.ours(config_of(sizes), case.stage, settings_of(case, sizes))

    # Two steps to warm up: Triton and torch.compile compile, the allocator finds its sizes. Then
    # those that are timed. Each reads its loss as train.py does, so the next one is queued while
    # the device works on this one's update.
    losses = [step(), step()]
    synchronize(sizes)
    began = time.perf_counter()
    timed_steps = max(2, 6 // case.accumulation)
    for _ in range(timed_steps):
        losses.append(step())
    synchronize(sizes)
    seconds = (time.perf_counter() - began) / timed_steps
    memory = memory_figures(cost, sizes)

    # Right after the steps, while the GPU is as warm as they have made it.
    try:
        sustained_rate = plan.matmul_rate(sizes.device, sizes.dtype, sizes.gemm_seconds[1])
    except torch.OutOfMemoryError:  # where the steps left no room for its matrices
        sustained_rate = None

    tokens = case.windows * case.accumulation * sizes.seq_len
    flops_per_second = cost["flops_per_token"] * tokens / seconds
    rows.add(
        **named,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        tflops=flops_per_second / 1e12,
        mfu_cold=flops_per_second / cold_rate,
        mfu_sustained=sustained_rate and flops_per_second / sustained_rate,
        sustained_matmul_tflops=sustained_rate and sustained_rate / 1e12,
        **memory,
        log_v=math.log(sizes.vocabulary),
        losses=losses,
        loss_falls=losses[-1] < losses[0],
    )

    add_where_the_time_goes(step, case, sizes, named, rows)


def settings_of(case: Case, sizes: Sizes) -> argparse.Namespace:
    """A case in the words of bench.train_step's flags."""
    return argparse.Namespace(
        device=sizes.device,
        dtype=name_of(sizes.dtype),
        optimizer=OPTIMIZER,
        lr=LEARNING_RATE,
        recompute=case.recompute,
        compile=case.compile,
        backend="inductor" if sizes.device == "cuda" else "aot_eager",
        batch=case.windows,
        accumulation=case.accumulation,
        seq_len=sizes.seq_len,
    )


def add_where_the_time_goes(
    step: train_step.Step, case: Case, sizes: Sizes, named: dict, rows: Rows
) -> None:
    """The second row: Python's own time, and the kernels' by kind and by name."""
    # How long Python takes to queue a step, told by one so short that the device keeps up with it.
    host = {}
    if not case.compile:  # which would compile this length, too
        host_seconds = []
        for _ in range(3):
            step(sizes.short_seq_len)
            host_seconds.append(step.host_seconds)
        host["host_seconds"] = statistics.median(host_seconds)

    kernel_times = train_step.profile(step, sizes)
    rows.add(
        **named,
        what="where the time goes",
        **host,
        kernel_seconds=sum(spent for _, _, spent in kernel_times),
        shares=train_step.shares(kernel_times),
        longest_kernels=[[name[:70], calls, spent] for name, calls, spent in kernel_times[:15]],
    )


def memory_figures(cost: dict, sizes: Sizes) -> dict:
    """What the steps so far held at most, beside the plan."""
    if sizes.device == "cpu":
        return {}
    free, whole = torch.cuda.mem_get_info()
    return {
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "planned_peak_gb": cost["peak"] / 1e9,
        "used_of_the_gpu_gb": (whole - free) / 1e9,
        "planned_need_gb": cost["needed"] / 1e9,
    }


def synchronize(sizes: Sizes) -> None:
    """Wait until the device has done all that it was given."""
    if sizes.device == "cuda":
        torch.cuda.synchronize()


def name_of(dtype: torch.dtype) -> str:
    """torch.bfloat16 → "bfloat16", as --dtype has it."""
    return str(dtype).removeprefix("torch.")


# --------------------------------------------------------------------------------------- train


def train_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """train.py as a user runs it, on four layers of the recipe's shape: from random weights,
    stopped by SIGTERM in its second stage and resumed; then --deterministic, once undisturbed and
    once stopped, which must give the same bits."""
    check_inputs(args)
    steps = sizes.train_steps
    tokens = steps * sizes.seq_len
    stages = [f"{what}:{tokens}:{LEARNING_RATE}" for what in ("embed", "odd", "lora")]
    common = f"--seq_len {sizes.seq_len} --batch_tokens {sizes.seq_len} --micro_batch 1"
    common += f" --optimizer {OPTIMIZER} --device {sizes.device} --eval_bytes 20000"
    flags = [*common.split(), "--data", *args.data]
    with tempfile.TemporaryDirectory() as folder:
        # As a user runs it.
        config = write_config(Path(folder) / "config.json", sizes)
        run = Path(folder) / "run"
        from_scratch = ["--config", str(config), "--tokenizer", args.tokenizer]
        stop_and_resume([*from_scratch, *flags, "--stages", *stages], run, steps + 2, rows)
        for figures in stage_figures(run, stages):
            rows.add(**figures)

        # The same bits, from the model directory that the first run began with.
        start = ["--model", str(checkpoint.random_start(run))]
        repeatable = [*start, *flags, "--deterministic", "--stages", stages[1]]
        undisturbed = Path(folder) / "undisturbed"
        train(["--out", str(undisturbed), *repeatable])
        figures, = stage_figures(undisturbed, stages[1:2])
        rows.add(what="--deterministic", **figures)
        stopped = Path(folder) / "stopped"
        stop_and_resume(repeatable, stopped, 2, rows)
        difference = measure.difference(stopped, undisturbed)
        rows.add(
            what="--deterministic, stopped and resumed: every loss, norm and weight",
            equal=not difference,
            difference=difference,
        )


def check_inputs(args: argparse.Namespace) -> None:
    """UserError if the shards or the tokenizer are missing."""
    inputs = [args.tokenizer]
    for entry in args.data:
        folder, _ = sources.parse_source(entry)
        inputs.append(folder)
    for path in inputs:
        if not Path(path).exists():
            raise cli.UserError(f"{path} is missing: bash speedrun.sh --prepare makes it")


def write_config(file: Path, sizes: Sizes) -> Path:
    """config.json of four layers of the recipe's shape, in bfloat16."""
    shape = dict(train_step.SHAPES[sizes.shape])
    shape["num_hidden_layers"] = 4
    shape["vocab_size"] = VOCABULARY
    cli.write_json(file, {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", **shape})
    return file


def train(
    flags: list[str],
    stop_when: Callable[[], bool] | None = None,
    program: Sequence[str] = (str(measure.ROOT / "train.py"),),
) -> None:
    """Run train.py, or another program with its flags, to its end, or send it SIGTERM as soon as
    `stop_when()` is true.

    RuntimeError if it does not end with status 0. What it says is in this part's log.
    """
    command = [sys.executable, *program, *flags]
    process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    if stop_when:
        while process.poll() is None and not stop_when():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    if process.wait() != 0:
        raise RuntimeError(f"train.py ended with {process.returncode}; the log has what it said")


def stop_and_resume(flags: list[str], run: Path, after: int, rows: Rows) -> None:
    """A run that is stopped by SIGTERM after so many steps, in the middle of a stage, and resumed
    to its end; a row for each."""

    def has_come_so_far() -> bool:
        metrics = run / "metrics.jsonl"
        return metrics.exists() and metrics.read_text().count('"grad_norm"') >= after

    began = time.perf_counter()
    train(["--out", str(run), *flags], stop_when=has_come_so_far)
    # Without a checkpoint of the stage that was stopped, resuming would prove nothing.
    found = sorted(path.name for path in (run / "checkpoints").glob("[0-9]*"))
    if not found or (run / "model").exists():
        raise RuntimeError(f"the run was not stopped in the middle of a stage: {found}")
    took = time.perf_counter() - began
    rows.add(what="train.py, stopped by SIGTERM", stopped_at=found[-1], seconds=took)

    began = time.perf_counter()
    train(["--resume", str(run)])
    rows.add(what="train.py, resumed", seconds=time.perf_counter() - began)


def stage_figures(run: Path, stages: list[str]) -> list[dict]:
    """A row for each stage of a finished run, from its metrics.jsonl."""
    records = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "loss" in record:
            records.append(record)
    found = []
    for number, stage in enumerate(stages, 1):
        mine = [record for record in records if record["stage"] == number]
        found.append({
            "stage": stage,
            "steps": len(mine),
            "first_loss": mine[0]["loss"],
            "last_loss": mine[-1]["loss"],
            "tokens_per_second": statistics.median(record["tokens_per_second"] for record in mine),
            "mfu": statistics.median(record["mfu"] for record in mine),
            "peak_gb": mine[-1]["peak_memory"] / 1e9,
        })
    return found


# ------------------------------------------------------------------------------------- sharded


def sharded_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """train.py under FSDP: how far its losses, gradient norms and weights are from those of one
    process without it. Float32, so that a difference is a mistake and not a rounding."""
    check_inputs(args)
    # 16 windows per step: one micro-batch for each of two ranks, two for one alone, whose losses
    # are then added up in another way.
    batch_tokens = 2048
    tokens = sizes.sharded_steps * batch_tokens
    stages = [f"{what}:{tokens}:{LEARNING_RATE}" for what in ("embed", "odd", "lora")]
    common = f"--seq_len 128 --batch_tokens {batch_tokens} --micro_batch 8"
    common += " --dtype float32 --optimizer adamw"
    common += f" --device {sizes.device} --eval_bytes 20000"
    flags = [*common.split(), "--data", *args.data, "--stages", *stages]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        shape = {**train_step.SHAPES[sizes.sharded_shape], "vocab_size": VOCABULARY}
        cli.write_json(config, {"architectures": ["LlamaForCausalLM"], **shape})
        alone = Path(folder) / "alone"
        train(["--config", str(config), "--tokenizer", args.tokenizer, "--out", str(alone), *flags])

        # The others begin with the same random weights.
        start = ["--model", str(checkpoint.random_start(alone))]
        for number, (what, ranks, program) in enumerate(ways_to_shard(sizes.device)):
            run = Path(folder) / str(number)
            launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
            train(["--out", str(run), *start, *flags], program=[*launcher, *program])
            rows.add(what=what, stages=stages, **largest_differences(run, alone))


def ways_to_shard(device: str) -> list[tuple[str, int, list[str]]]:
    """(what it is called, the number of ranks, the program that they run) for this machine."""
    program = [str(measure.ROOT / "train.py")]
    if device == "cpu":
        return [("two ranks over gloo", 2, program)]
    n_gpus = torch.cuda.device_count()
    if n_gpus > 1:
        return [(f"{n_gpus} ranks over NCCL", n_gpus, program)]
    return [
        ("one rank over NCCL", 1, ["-m", "bench.sharded", "nccl"]),
        ("two ranks on one GPU, over gloo", 2, ["-m", "bench.sharded", "gloo"]),
    ]


def largest_differences(run: Path, other: Path) -> dict:
    """Of two finished runs: the steps, and the largest differences of a loss, of a gradient norm
    (relative) and of a weight."""
    loss = 0.0
    grad_norm = 0.0
    steps = measure.steps(run)
    for mine, theirs in zip(steps, measure.steps(other), strict=True):
        mine = dict(zip(measure.KEYS, mine, strict=True))
        theirs = dict(zip(measure.KEYS, theirs, strict=True))
        loss = max(loss, abs(mine["loss"] - theirs["loss"]))
        change = abs(mine["grad_norm"] - theirs["grad_norm"]) / theirs["grad_norm"]
        grad_norm = max(grad_norm, change)

    weight = 0.0
    weights = load_file(run / "model" / "model.safetensors")
    for name, theirs in load_file(other / "model" / "model.safetensors").items():
        weight = max(weight, (weights[name] - theirs).abs().max().item())
    return {"steps": len(steps), "loss": loss, "grad_norm": grad_norm, "weight": weight}


# -------------------------------------------------------------------------------------- recipe


def recipe_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """speedrun.sh, in a copy of this project so that no one's out/ is moved away."""
    left_behind = shutil.ignore_patterns(".*", "out", "out.old", "wheels", "__pycache__")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanowhale"
        shutil.copytree(measure.ROOT, copy, ignore=left_behind)
        script = copy / "speedrun.sh"
        environment = {**os.environ, "PYTHON": sys.executable}
        if sizes.device == "cpu":
            script.write_text(small_speedrun(script.read_text(encoding="utf-8")), encoding="utf-8")
            environment["CUDA_VISIBLE_DEVICES"] = ""
        run_speedrun(copy, environment, rows)
        report = cli.read_json(copy / "out" / "report.json")
    for arm, bits in report["bits_per_byte"].items():
        rows.add(
            arm=arm,
            bits_per_byte=bits,
            copa=report["kobest"][arm]["copa"]["acc"],
            hellaswag=report["kobest"][arm]["hellaswag"]["acc"],
            **report["training"].get(arm, {}),  # the base was not trained here
        )
    rows.add(what="the whole speedrun", seconds=report["seconds"], entropy=report["entropy"])


def run_speedrun(copy: Path, environment: dict[str, str], rows: Rows) -> None:
    """Run it, with a row for each of its steps and for each run that is through: an interrupted
    speedrun shows how far it got. RuntimeError if it fails."""
    process = subprocess.Popen(
        ["bash", "speedrun.sh"],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    reported = set()
    for line in process.stdout:
        lines.append(line)
        sys.stderr.write(line)  # into the log, where it stays if this is cut off
        step = re.match(r"== +(\d+)s +(.*)", line)
        if step:
            rows.add(what=step[2][:60], began_after_seconds=int(step[1]))
            for run in sorted(path.parent for path in copy.glob("out/*/model")):
                if run.name not in reported:
                    reported.add(run.name)
                    rows.add(run=run.name, validation=last_validation(run))
    if process.wait() != 0:
        file = copy / "out" / "log" / "progress.txt"
        progress = file.read_text(encoding="utf-8") if file.exists() else ""
        raise RuntimeError("speedrun.sh failed: " + "".join(lines)[-1000:] + progress[-1000:])


def last_validation(run: Path) -> dict:
    """{language: bits per byte} at the end of a run."""
    found = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        scores = json.loads(line).get("validation", {})
        for language, score in scores.items():
            found[language] = score["bits_per_byte"]
    return found


def small_speedrun(script: str) -> str:
    """speedrun.sh with the same commands and small sizes. ValueError if it has changed so that this
    no longer fits."""
    small_stages = "embed:4k:5e-3 odd:4k:5e-3 lora:4k:5e-3"
    changes = {
        r"-m toy --out": "-m toy --documents 400 --out",
        r"head -q -n 250": "head -q -n 10",
        r"--vocab_size 1536": "--vocab_size 1000",
        r'"vocab_size": 1536': '"vocab_size": 1000',
        r"--vocab_size 1500": "--vocab_size 600",
        r"full:[\d.]+M:": "full:4k:",
        r"--probe_steps 30": "--probe_steps 1",
        r"train\.py --out out/run\b": f"train.py --stages {small_stages} --out out/run",
        r"eval_kobest\.py ": "eval_kobest.py --limit 4 ",
    }
    for pattern, small in changes.items():
        script, count = re.subn(pattern, small, script)
        if count == 0:
            raise ValueError(f"speedrun.sh has no {pattern} any more, which is what is made small")
    return script


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0][:300]}"


# --------------------------------------------------------- the program: parts with time limits

# In the order of worth: the function, and the seconds that it may take.
PARTS = {
    "machine": (machine_part, 120),
    "gemm": (gemm_part, 60),
    "attention": (attention_part, 120),
    "kernels": (kernels_part, 240),
    "steps": (steps_part, 540),
    "train": (train_part, 400),
    "sharded": (sharded_part, 240),
    "recipe": (recipe_part, 580),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(description=__doc__, prog="bench.gpu")
    flag = parser.add_argument
    flag("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART",
         help=f"which, in this order: {' '.join(PARTS)}")
    flag("--limit", type=float, default=3600.0, help="seconds for all of them together")
    flag("--cap", type=float, default=0.0,
         help="GB that `steps` may use; 85 is what an 80 GB GPU has; 0: all there is")
    flag("--from_case", type=int, default=1, metavar="N",
         help="begin `steps` with its Nth case: after a run that was cut off")
    flag("--out", type=Path, default=Path("out/gpu.jsonl"),
         help="JSON-lines file to append to; beside it a .log with what the parts print to stderr")
    flag("--device", default=None, choices=["cpu", "cuda"],
         help="cpu: a trial of every part on tiny shapes (default: cuda if there is one)")
    flag("--data", nargs="+", default=["out/shards/ko=0.75", "out/shards/en=0.25"],
         metavar="SHARDS=WEIGHT", help="token shards for `train`")
    flag("--tokenizer", default="out/merged.model", help="the tokenizer they were packed with")
    flag("--in_process", action="store_true",
         help="internal: run the parts in this process; --limit only says when to show where it is")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise cli.UserError("--device cuda: PyTorch finds no GPU here; --device cpu is a trial")
    return args


def run_here(part: str, args: argparse.Namespace) -> None:
    """Run a part in this process, set up as train.py sets itself up."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    # If it hangs, the log shows where, shortly before the limit ends it. The limit began before
    # this process had loaded PyTorch, which takes seconds on a busy machine.
    faulthandler.dump_traceback_later(max(1.0, args.limit - 7))
    sizes = GPU if args.device == "cuda" else TRIAL
    args.dtype = name_of(sizes.dtype)
    cli.set_device(args)
    kernels.use("auto", args.device)
    torch.manual_seed(0)
    function, _ = PARTS[part]
    function(args, sizes, Rows(args.out, part))
    faulthandler.cancel_dump_traceback_later()


def end_with(parent: int) -> None:
    """End this process and its children as soon as `parent` is gone, whatever it died of: else they
    would stay on the GPU, and the next command would be timed beside them."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def run_apart(part: str, argv: list[str], out: Path, seconds: float) -> str | None:
    """Run a part in a process of its own. Returns None, or what went wrong."""
    # Of a flag that is given twice the last one counts.
    command = [sys.executable, "-m", "bench.gpu", *argv, "--parts", part, "--out", str(out)]
    command += ["--limit", str(seconds), "--in_process"]
    log = open(out.with_suffix(".log"), "a+", encoding="utf-8", errors="replace")
    began = log.tell()
    # For what the part writes: deleted here, whatever becomes of the process.
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    environment = {**os.environ, "TMPDIR": scratch.name}
    # The process leads a session, so that its children (train.py, the speedrun) end with it.
    process = subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)

    def end() -> None:
        os.killpg(process.pid, signal.SIGKILL)

    def end_and_leave(number, frame) -> None:
        end()
        scratch.cleanup()
        sys.exit(128 + number)

    handlers = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        handlers[number] = signal.signal(number, end_and_leave)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        end()
        process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    scratch.cleanup()

    # What it said on stderr: all of it is in the log, the end of it on the screen if it failed.
    log.seek(began)
    said = log.read()
    log.close()
    if process.returncode == 0:
        return None
    sys.stderr.write(said[-6000:])
    if process.returncode == -signal.SIGKILL:
        return f"took longer than its {seconds:.0f} seconds, or was killed; see {log.name}"
    lines = said.strip().splitlines() or ["no message"]
    return f"ended with {process.returncode}: {lines[-1][:300]}"


def main(argv: list[str] | None = None) -> None:
    """Run the parts one after the other; UserError if one of them failed."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    args.out = args.out.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.in_process:
        for part in args.parts:
            run_here(part, args)
        return

    Rows(args.out, "settings").add(
        device=args.device,
        cap=args.cap,
        started=time.strftime("%Y-%m-%d %H:%M:%S"),
        code=digest_of_the_code(),
    )
    began = time.perf_counter()
    failed = []
    for part in args.parts:
        _, limit = PARTS[part]
        left = args.limit - (time.perf_counter() - began)
        if left > 1:
            problem = run_apart(part, argv, args.out, min(limit, left))
        else:
            problem = "no time was left for it"
        rows = Rows(args.out, part)
        if problem:
            rows.add(failed=problem)
            failed.append(part)
        else:
            rows.add(done=True, after_seconds=round(time.perf_counter() - began, 1))
    if failed:
        raise cli.UserError(f"failed: {', '.join(failed)}; {args.out} has the reasons and the rest")


def digest_of_the_code() -> str:
    """Eight hexadecimal digits that identify the version of the Python files: a GPU server gets no
    git history."""
    digest = hashlib.sha256()
    for path in sorted([*measure.ROOT.glob("*.py"), *measure.ROOT.glob("*/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


if __name__ == "__main__":
    cli.run(main)
