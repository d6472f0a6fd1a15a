r"""What only a GPU can prove, part by part, in the order of worth. Every figure is on disk the moment it is known.

    python -m bench.gpu --out gpu.jsonl                                                  # everything
    python -m bench.gpu --parts machine gemm attention kernels --limit 540 --out gpu.jsonl
    python -m bench.gpu --device cpu --data SHARDS/ko SHARDS/en --tokenizer T --out try.jsonl    # tiny, anywhere

    machine     name, versions, and the bandwidth of a device copy
    gemm        FLOP/s of a large matmul, cold and sustained
    attention   each backend at the recipe's shapes, forward and backward; what ten new lengths cost
    kernels     each of kernels/ against float64 and beside eager, torch.compile and what else is installed
    steps       training steps of the 10.7B shape: time, utilisation, memory beside the plan, where the time goes
    train       train.py on four layers of that shape: stopped by SIGTERM, resumed, and the same bits
    recipe      the whole of speedrun.sh

GPU time comes in short pieces, so nothing may be lost. Each part runs in a process of its own with a time limit of its
own; one that fails or takes too long is reported as a row and passed over, and what it had found by then stays. A row
is a line of JSON appended to --out. bench/GPU.md says what to prepare, what to expect and what to do where it differs.
With --device cpu every line of this runs on tiny shapes, so that nothing in it is met for the first time on a GPU.
"""
import argparse
import dataclasses
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import cli
import kernels
import model
import plan
from bench import chaos, measure, train_step
from bench import kernels as bench_kernels

# ----------------------------------------------------------------------------------------------- what is measured


@dataclasses.dataclass(frozen=True)
class Case:
    """One training step of the part `steps`."""
    stage: str
    windows: int = 1                    # per micro-batch
    accumulation: int = 1               # micro-batches per step
    recompute: str = "none"             # or "attention", or "full"
    update_in_backward: bool = False
    compile: bool = False


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is, on a GPU and in a trial on a CPU."""
    dtype: torch.dtype
    shape: str                                       # of bench.train_step's SHAPES
    vocabulary: int
    seq_len: int
    short_seq_len: int                               # a step so short that Python and its launches are all there is
    gemm_seconds: tuple[float, ...]
    attention: tuple[tuple[int, int, int, int, int], ...]   # B, T, H, K, E
    new_length: int                                  # the first of ten lengths that attention has not seen
    kernel_shape: str                                # of bench.kernels' SHAPES
    kernel_tokens: int
    repeats: int                                     # timed calls of each operation
    adamw_parameters: int
    train_steps: int                                 # of each stage of the part `train`
    cases: tuple[Case, ...]


# The recipe is RedWhale's: a 10.7B Llama, windows of 4,096 tokens, bfloat16, adamw_bf16. The cases come in the order in
# which their answers are wanted; those that do not fit into the GPU's memory by the plan are passed over.
GPU = Sizes(
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
    train_steps=12,
    cases=(
        Case("odd"),
        Case("embed"),
        Case("lora"),
        Case("odd", accumulation=8),
        Case("odd", recompute="full"),
        Case("full"),
        Case("full", recompute="full", update_in_backward=True),
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
    train_steps=4,
    cases=(
        Case("odd"),
        Case("embed", accumulation=2),
        Case("lora", recompute="attention"),
        Case("full", recompute="full", update_in_backward=True),
    ),
)
OPTIMIZER = "adamw_bf16"
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


# ------------------------------------------------------------------------------------------------------ the parts


def machine_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """What this is, and how fast its memory is."""
    facts = measure.machine("numpy", "transformers", "liger-kernel")
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["memory GB"] = properties.total_memory / 1e9
        facts["multiprocessors"] = properties.multi_processor_count
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    rows.add(**facts)
    copied = bench_kernels.copy_rate(args.device)
    rows.add(what="device copy, bytes read and written", **{"GB/s": copied / 1e9})


def gemm_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """A large matmul for longer and longer: a GPU that is cold clocks higher than one that has worked for seconds."""
    for duration in sizes.gemm_seconds:
        rate = plan.matmul_rate(args.device, sizes.dtype, duration)
        rows.add(seconds=duration, **{"TFLOP/s": rate / 1e12})


def attention_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """Each of PyTorch's backends and our choice among them. FLOPs: two matmuls forward and five backward, of which
    causality needs half."""
    for shape in sizes.attention:
        check_error = shape == sizes.attention[0]  # once: float64 scores of a longer batch take too much memory
        for who, attend in attention_contenders().items():
            try:
                figures = time_attention(attend, shape, args, sizes, check_error)
            except RuntimeError as error:  # a backend that cannot do this shape, type or device
                figures = {"failed": first_line(error)}
            rows.add(who=who, **{"B T H K E": shape}, **figures)
    for who, attend in attention_contenders().items():
        if who in ("nanowhale", "cudnn"):
            try:
                figures = time_new_lengths(attend, args, sizes)
            except RuntimeError as error:
                figures = {"failed": first_line(error)}
            rows.add(what="ten new lengths, without gradients", who=who, **figures)


def attention_contenders() -> dict[str, Callable]:
    """name → causal attention of q (B, H, T, E), k and v (B, K, T, E)."""
    def only(backend: SDPBackend) -> Callable:
        def attend(q, k, v):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return attend
    return {
        "nanowhale": kernels.attention,
        "cudnn": only(SDPBackend.CUDNN_ATTENTION),
        "flash": only(SDPBackend.FLASH_ATTENTION),
        "efficient": only(SDPBackend.EFFICIENT_ATTENTION),
    }


def queries_keys_values(shape: tuple[int, ...], args: argparse.Namespace, sizes: Sizes) -> list[torch.Tensor]:
    """q, k and v as the model lays them out: heads inside positions."""
    B, T, H, K, E = shape
    new = lambda heads: torch.randn(B, T, heads, E, device=args.device, dtype=sizes.dtype)
    return [new(heads).transpose(1, 2).requires_grad_() for heads in (H, K, K)]


def time_attention(attend: Callable, shape: tuple[int, ...], args: argparse.Namespace, sizes: Sizes,
                   check_error: bool) -> dict:
    """Times and rates of one backend at one shape, and the names of the kernels that ran."""
    B, T, H, _, E = shape
    inputs = queries_keys_values(shape, args, sizes)
    upstream = torch.randn_like(attend(*inputs))

    def both() -> None:
        torch.autograd.grad(attend(*inputs), inputs, upstream)

    forward = statistics.median(bench_kernels.milliseconds(lambda: attend(*inputs), args.device, sizes.repeats))
    whole = statistics.median(bench_kernels.milliseconds(both, args.device, sizes.repeats))
    flops = 2 * B * H * T * T * E  # forward
    names = [name[:60] for name, _, _ in train_step.profile(both, args)[:3]]
    figures = {
        "forward ms": forward,
        "backward ms": whole - forward,
        "forward TFLOP/s": flops / forward / 1e9,
        "backward TFLOP/s": 2.5 * flops / max(whole - forward, 1e-6) / 1e9,
        "longest kernels": names,
    }
    if check_error:
        figures["error / the definition's"] = bench_kernels.error(attend, kernels.attention_reference, inputs,
                                                                  [upstream])
    return figures


@torch.no_grad()
def time_new_lengths(attend: Callable, args: argparse.Namespace, sizes: Sizes) -> dict:
    """Seconds that a length costs when it is met for the first time, and again."""
    def seconds(length: int) -> float:
        _, _, *heads = sizes.attention[0]
        inputs = queries_keys_values((1, length, *heads), args, sizes)
        return train_step.seconds(lambda: attend(*inputs), args)

    seconds(sizes.new_length - 1)  # whatever a process does once
    lengths = [sizes.new_length + 7 * i for i in range(10)]
    first_time = [seconds(length) for length in lengths]
    again = [seconds(length) for length in lengths]
    return {"s, first time": statistics.median(first_time), "s, again": statistics.median(again)}


def kernels_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """bench.kernels, at the widths of the recipe."""
    settings = argparse.Namespace(
        device=args.device,
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


def steps_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """Training steps in memory: every case that the plan says fits, the most wanted first."""
    memory = None
    if args.device == "cuda":
        whole = torch.cuda.get_device_properties(0).total_memory
        memory = min(whole, args.cap * 1e9) if args.cap else whole
        torch.cuda.set_per_process_memory_fraction(memory / whole)
    cold_rate = plan.matmul_rate(args.device, sizes.dtype, sizes.gemm_seconds[0])
    for case in sizes.cases:
        named = dataclasses.asdict(case)
        cost = planned(case, args, sizes)
        if memory and cost["needed"] > memory:
            rows.add(**named, skipped=f"needs {cost['needed'] / 1e9:.0f} GB by the plan")
            continue
        try:
            figures = measure_step(case, cost, cold_rate, args, sizes)
        except Exception as error:  # out of memory, or a compiler's: the other cases are wanted all the same
            figures = {"failed": first_line(error), "planned need, GB": cost["needed"] / 1e9}
        rows.add(**named, **figures)
        # The model of this case has to be gone before the next one comes.
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


def planned(case: Case, args: argparse.Namespace, sizes: Sizes) -> dict:
    """What plan.py says of a case."""
    config = model.Config(vocab_size=sizes.vocabulary, **train_step.SHAPES[sizes.shape])
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
        device=args.device,
        update_in_backward=case.update_in_backward,
    )


def measure_step(case: Case, cost: dict, cold_rate: float, args: argparse.Namespace, sizes: Sizes) -> dict:
    """Make the model, take some steps, and say how they went."""
    settings = argparse.Namespace(
        device=args.device,
        dtype=str(sizes.dtype).removeprefix("torch."),
        optimizer=OPTIMIZER,
        lr=LEARNING_RATE,
        checkpoint=case.recompute,
        compile=case.compile,
        update_in_backward=case.update_in_backward,
        batch=case.windows,
        accumulation=case.accumulation,
        seq_len=sizes.seq_len,
    )
    config = model.Config(vocab_size=sizes.vocabulary, **train_step.SHAPES[sizes.shape])
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = train_step.ours(config, case.stage, settings)

    # Two steps to warm up: Triton and torch.compile compile, the allocator finds its sizes. Then some to be timed. Each
    # reads its loss as train.py does, so the next one is queued while the device works on this one's update.
    losses = [step(), step()]
    synchronize(args)
    began = time.perf_counter()
    timed_steps = max(2, 6 // case.accumulation)
    for _ in range(timed_steps):
        losses.append(step())
    synchronize(args)
    seconds = (time.perf_counter() - began) / timed_steps

    memory = {}
    if args.device == "cuda":
        free, whole = torch.cuda.mem_get_info()
        memory["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        memory["planned peak GB"] = cost["peak"] / 1e9
        memory["used of the GPU, GB"] = (whole - free) / 1e9
        memory["planned need, GB"] = cost["needed"] / 1e9

    # Right after the steps, while the GPU is as warm as they made it.
    sustained_rate = plan.matmul_rate(args.device, sizes.dtype, sizes.gemm_seconds[1])
    short = statistics.median(train_step.seconds(lambda: step(sizes.short_seq_len), settings) for _ in range(3))
    kernel_times = train_step.profile(step, settings)

    tokens = case.windows * case.accumulation * sizes.seq_len
    flops = cost["flops_per_token"] * tokens / seconds
    return {
        "seconds": seconds,
        "tokens per second": tokens / seconds,
        "TFLOP/s": flops / 1e12,
        "mfu, of the sustained matmul": flops / sustained_rate,
        "mfu, of the cold matmul": flops / cold_rate,
        "sustained matmul, TFLOP/s": sustained_rate / 1e12,
        **memory,
        f"seconds of a step of {sizes.short_seq_len} tokens": short,
        "log V": float(torch.tensor(float(sizes.vocabulary)).log()),
        "losses": losses,
        "loss falls": losses[-1] < losses[0],
        "shares": train_step.shares(kernel_times),
        "longest kernels": [[name[:70], calls, seconds] for name, calls, seconds in kernel_times[:15]],
    }


def synchronize(args: argparse.Namespace) -> None:
    """Wait until the device has done all that it was given."""
    if args.device == "cuda":
        torch.cuda.synchronize()


def train_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """train.py as a user runs it, on four layers of the recipe's shape and the built-in world's shards: from random
    weights, stopped by SIGTERM in its second stage and resumed; then --deterministic, undisturbed and stopped."""
    for path in [*(entry.partition("=")[0] for entry in args.data), args.tokenizer]:
        if not Path(path).exists():
            raise cli.UserError(f"{path} is missing: bash speedrun.sh --prepare, or name --data and --tokenizer")
    steps = sizes.train_steps
    stages = [f"{what}:{steps * sizes.seq_len}:{LEARNING_RATE}" for what in ("embed", "odd", "lora")]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        shape = train_step.SHAPES[sizes.shape] | {"num_hidden_layers": 4, "vocab_size": max(sizes.vocabulary, 4096)}
        cli.write_json(config, {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", **shape})
        common = [
            "--data", *args.data,
            "--seq_len", str(sizes.seq_len),
            "--batch_tokens", str(sizes.seq_len),
            "--micro_batch", "1",
            "--optimizer", OPTIMIZER,
            "--device", args.device,
            "--eval_bytes", "20000",
        ]

        # As a user runs it.
        run = Path(folder) / "run"
        random_weights = ["--config", str(config), "--tokenizer", args.tokenizer]
        began = time.perf_counter()
        stop_and_resume([*random_weights, *common, "--stages", *stages], run, after=steps + steps // 2)
        rows.add(what="train.py, stopped by SIGTERM and resumed", seconds=time.perf_counter() - began)
        for figures in stage_figures(run, stages):
            rows.add(**figures)

        # The same bits: the model directory that the first run began with serves again.
        start = ["--model", str(run / "stages" / "0-random")]
        flags = [*start, *common, "--deterministic", "--stages", *stages[1:]]
        undisturbed = Path(folder) / "undisturbed"
        train(["--out", str(undisturbed), *flags])
        rows.add(what="train.py --deterministic, undisturbed", **stage_figures(undisturbed, stages[1:])[0])
        stopped = Path(folder) / "stopped"
        stop_and_resume(flags, stopped, after=steps // 2)
        difference = chaos.difference(stopped, undisturbed)
        rows.add(what="stopped and resumed, every loss, norm and weight", equal=not difference, difference=difference)


def train(flags: list[str], stop_when: Callable[[], bool] | None = None) -> None:
    """Run train.py to its end, or send it SIGTERM as soon as `stop_when()`. RuntimeError if it does not end with 0."""
    process = subprocess.Popen([sys.executable, "train.py", *flags], cwd=measure.ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    if stop_when:
        while process.poll() is None and not stop_when():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"train.py ended with {process.returncode}: {output[-2000:]}")


def stop_and_resume(flags: list[str], run: Path, after: int) -> None:
    """A run that is stopped by SIGTERM after so many steps, and resumed to its end."""
    def has_come_so_far() -> bool:
        metrics = run / "metrics.jsonl"
        return metrics.exists() and len(chaos.steps(run)) >= after

    train(["--out", str(run), *flags], stop_when=has_come_so_far)
    if (run / "model").exists():
        raise RuntimeError(f"the run had ended before it could be stopped after {after} steps")
    train(["--resume", str(run)])


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
            "first loss": mine[0]["loss"],
            "last loss": mine[-1]["loss"],
            "tokens per second": statistics.median(record["tokens_per_second"] for record in mine),
            "mfu": statistics.median(record["mfu"] for record in mine),
            "peak GB": mine[-1]["peak_memory"] / 1e9,
        })
    return found


def recipe_part(args: argparse.Namespace, sizes: Sizes, rows: Rows) -> None:
    """speedrun.sh in a copy of this project, so that no one's out/ is moved away; a row when a step of it begins, so
    that one that is cut off says how far it came, and one for every arm at the end."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanowhale"
        shutil.copytree(measure.ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "out", "out.old", ".*cache"))
        script = copy / "speedrun.sh"
        if sizes is TRIAL:
            script.write_text(small_speedrun(script.read_text(encoding="utf-8")), encoding="utf-8")
        environment = {**os.environ, "PYTHON": sys.executable}
        if args.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        process = subprocess.Popen(["bash", str(script)], cwd=copy, env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        last_lines: list[str] = []
        for line in process.stdout:
            last_lines = [*last_lines[-20:], line]
            step = re.match(r"== +(\d+)s +(.*)", line)
            if step:
                rows.add(what=step[2][:60], **{"begins, s": int(step[1])})
        if process.wait() != 0:
            raise RuntimeError("speedrun.sh failed: " + "".join(last_lines)[-2000:])
        report = cli.read_json(copy / "out" / "report.json")
    for arm, bits in report["bits_per_byte"].items():
        accuracy = {task: report["kobest"][arm][task]["acc"] for task in ("copa", "hellaswag")}
        seconds = report["training"].get(arm, {}).get("seconds")
        rows.add(arm=arm, **{"bits per byte": bits, "acc": accuracy, "seconds of training": seconds})
    rows.add(what="the whole speedrun", seconds=report["seconds"], entropy=report["entropy"])


def small_speedrun(script: str) -> str:
    """speedrun.sh with the same commands and small sizes. ValueError if it has changed so that this no longer fits."""
    changes = [
        (r"toy\.py --out", "toy.py --documents 400 --out"),
        (r"head -q -n 250", "head -q -n 10"),
        (r"--vocab_size 1536", "--vocab_size 1000"),
        (r'"vocab_size": 1536', '"vocab_size": 1000'),
        (r"--vocab_size 1500", "--vocab_size 600"),
        (r"full:[\d.]+M:", "full:4k:"),
        (r"--probe_steps 30", "--probe_steps 1"),
        (r"train\.py --out out/run\b", "train.py --stages embed:4k:5e-3 odd:4k:5e-3 lora:4k:5e-3 --out out/run"),
        (r"eval_kobest\.py ", "eval_kobest.py --limit 4 "),
    ]
    for pattern, small in changes:
        script, count = re.subn(pattern, small, script)
        if count == 0:
            raise ValueError(f"speedrun.sh has no {pattern} any more; bench/gpu.py makes it small by that")
    return script


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}" if str(error) else type(error).__name__


# --------------------------------------------------------------------------------- the program: parts with time limits

# In the order of worth: the function, and the seconds that it may take.
PARTS = {
    "machine": (machine_part, 60),
    "gemm": (gemm_part, 60),
    "attention": (attention_part, 120),
    "kernels": (kernels_part, 240),
    "steps": (steps_part, 540),
    "train": (train_part, 400),
    "recipe": (recipe_part, 580),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(description=__doc__, prog="bench.gpu")
    flag = parser.add_argument
    flag("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART",
         help=f"which, in this order: {' '.join(PARTS)}")
    flag("--limit", type=float, default=3600.0, help="seconds for all of them together")
    flag("--cap", type=float, default=0.0, help="GB that `steps` may use; 85 is what an 80 GB GPU has; 0: all")
    flag("--out", type=Path, default=Path("out/gpu.jsonl"), help="JSON-lines file to append to")
    flag("--device", default=None, choices=["cpu", "cuda"], help="cpu: a trial of every part on tiny shapes "
         "(default: cuda if there is one)")
    flag("--data", nargs="+", default=["out/shards/ko=0.75", "out/shards/en=0.25"], metavar="SHARDS=WEIGHT",
         help="token shards for `train`")
    flag("--tokenizer", default="out/merged.model", help="the tokenizer they were packed with")
    flag("--in_process", action="store_true", help="run the parts here, without limits: how each is started")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise cli.UserError("--device cuda: PyTorch finds no GPU here; --device cpu tries every part on tiny shapes")
    return args


def run_here(part: str, args: argparse.Namespace) -> None:
    """Run a part in this process, set up as train.py sets itself up."""
    sizes = GPU if args.device == "cuda" else TRIAL
    args.dtype = str(sizes.dtype).removeprefix("torch.")
    cli.set_device(args)
    kernels.use("auto", args.device)
    torch.manual_seed(0)
    function, _ = PARTS[part]
    function(args, sizes, Rows(args.out, part))


def run_apart(part: str, argv: list[str], seconds: float) -> str | None:
    """Run a part in a process of its own. Returns None, or what went wrong."""
    command = [sys.executable, "-m", "bench.gpu", *argv, "--parts", part, "--in_process"]  # the last --parts counts
    # A session of its own, so that its children (train.py, the speedrun) can be ended with it.
    process = subprocess.Popen(command, cwd=measure.ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def end(*_) -> None:
        os.killpg(process.pid, signal.SIGKILL)

    def leave(number, frame) -> None:
        end()
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end()
        process.communicate()
        return f"took longer than its {seconds:.0f} seconds"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if process.returncode == 0:
        return None
    sys.stderr.write(errors[-6000:])
    last_line = (errors.strip().splitlines() or ["no message"])[-1]
    return f"ended with {process.returncode}: {last_line[:300]}"


def main(argv: list[str] | None = None) -> None:
    """Run the parts one after the other; exit with 1 if one of them failed."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    args.out = args.out.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.in_process:
        for part in args.parts:
            run_here(part, args)
        return
    settings = {"device": args.device, "cap": args.cap, "started": time.strftime("%Y-%m-%d %H:%M:%S"),
                "code": digest_of_the_code()}
    Rows(args.out, "settings").add(**settings)
    began = time.perf_counter()
    failed = []
    for part in args.parts:
        _, limit = PARTS[part]
        left = args.limit - (time.perf_counter() - began)
        problem = run_apart(part, argv, min(limit, left)) if left > 1 else "no time was left for it"
        rows = Rows(args.out, part)
        if problem:
            rows.add(failed=problem)
            failed.append(part)
        else:
            rows.add(done=True, **{"after, s": round(time.perf_counter() - began, 1)})
    if failed:
        raise cli.UserError(f"failed: {', '.join(failed)}; {args.out} says why, and holds what they found before")


def digest_of_the_code() -> str:
    """Eight hexadecimal digits that tell the state of the project's Python files: a GPU server gets no git history."""
    digest = hashlib.sha256()
    for path in sorted([*measure.ROOT.glob("*.py"), *measure.ROOT.glob("*/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


if __name__ == "__main__":
    cli.run(main)
