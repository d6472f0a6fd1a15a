"""What a run takes before it is started: hours, GPUs, disk, host memory. Arithmetic alone.

`train.py --plan` prints it below the tables of plan.py, which count each stage's bytes and FLOPs.

**Hours** are FLOPs, those of recomputation included, divided by what the GPUs sustain. That is
given (--tflops), or half of the peak on a named GPU's data sheet (--gpu). On an H200 stages of a
10.7B model ran at 500 to 570 TFLOP/s, of 989 on the data sheet: .51 to .58 (RESULTS.md, "On a
GPU"). No other GPU has been measured. Only training steps are counted, not validation, nor reading
and writing models.

**Whether a stage fits** a GPU: what plan.py says is needed against what PyTorch finds on the card.

**Disk**: each stage leaves a whole model, and one with a LoRA its adapter. A checkpoint holds what
is trained, in the optimizer's type, with both of Adam's moments: 12 bytes per trained parameter in
float32, 6 in bfloat16. RUN/model is the last stage's files under a second name (hard links), and
takes nothing.

**Host memory**, beside PyTorch itself: a model is read and a checkpoint written tensor by tensor,
and a stage's model file by file, of at most 5 GB each. On a CPU the training itself is there, too.
Measured (VmHWM) on a CPU with 1.1B parameters in bfloat16, one file of 2.20 GB: the stage odd takes
2.14 GB more while it is written, embed 2.20, lora 4.04, of which up to 2.20 are pages of the file
that it started from, which Linux frees when it needs them. Checkpoints (.61 to 5.81 GB) take less
than .01 GB more to write, and up to .52 to read, twice the largest tensor in float32. A GPU's
tensors pass through the host one by one; that, and what CUDA's libraries take on the host (not
counted), has not been measured.
"""
import dataclasses
import math

import torch

from common import checkpoint, hf, plan
from common.cli import UserError

# Of the peak on a data sheet, what training sustains; see above.
SHARE_OF_PEAK = 0.5


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A card: its memory in GB, as it is sold, and its peaks in TFLOP/s. bfloat16 is that of the
    tensor cores, without sparsity and with sums in float32; None where there are none for it.
    float32 is without TF32, which PyTorch does not use unless it is asked to."""
    memory: int
    bfloat16: float | None
    float32: float


# NVIDIA's data sheets; those of the two RTX from the architectures' white papers (GA102, Ada).
GPUS = {
    "T4": Gpu(16, None, 8.1),
    "V100": Gpu(32, None, 15.7),            # SXM2
    "RTX3090": Gpu(24, 71, 35.6),
    "RTX4090": Gpu(24, 165.2, 82.6),
    "A10": Gpu(24, 125, 31.2),
    "L4": Gpu(24, 121, 30.3),
    "L40S": Gpu(48, 362, 91.6),
    "A100-40": Gpu(40, 312, 19.5),
    "A100-80": Gpu(80, 312, 19.5),
    "H100-PCIe": Gpu(80, 756, 51),
    "H100": Gpu(80, 989, 67),               # SXM
    "H200": Gpu(141, 989, 67),
}

# GiB that PyTorch finds on a card of so many GB: less than the name says where error correction
# takes a part of it. Of several cards of a size it is the least that users report ("GPU 0 has a
# total capacity of", in the messages of torch.OutOfMemoryError): T4, A10 and L4, RTX 5090, A100,
# L40S, H100, H200.
CAPACITY = {16: 14.5, 24: 22.0, 32: 31.3, 40: 39.3, 48: 44.4, 80: 79.1, 141: 139.7}

# The sizes that a plan compares.
SIZES = (16, 24, 40, 80, 141)


# ------------------------------------------------------------------------------------------ time


def sustained(name: str, dtype: torch.dtype) -> float:
    """TFLOP/s to plan with on a GPU of this name. UserError where it cannot compute in this type.

    >>> sustained("A100-80", torch.bfloat16)
    156.0
    """
    gpu = GPUS[name]
    peak = gpu.float32
    if dtype == torch.bfloat16:
        peak = gpu.bfloat16
    if peak is None:
        raise UserError(f"--gpu {name} has no bfloat16; plan for it with --dtype float32")
    return SHARE_OF_PEAK * peak


def hours(flops: float, tflops: float, world_size: int = 1) -> float:
    """Hours that so many FLOPs take on `world_size` GPUs of `tflops` TFLOP/s each.

    >>> hours(3.6e18, tflops=100, world_size=2)
    5.0
    """
    return flops / (tflops * 1e12 * world_size) / 3600


def duration(n_hours: float) -> str:
    """A time to read.

    >>> duration(0.25), duration(30), duration(1234.5)
    ('15.0 minutes', '30.0 hours', '51.4 days')
    """
    if n_hours < 1:
        return f"{60 * n_hours:.1f} minutes"
    if n_hours < 48:
        return f"{n_hours:.1f} hours"
    return f"{n_hours / 24:,.1f} days"


# ------------------------------------------------------------------------------------------- GPU


def capacity(size: int) -> int:
    """Bytes that PyTorch finds on a GPU of `size` GB.

    >>> capacity(80)
    84932978278
    """
    return int(CAPACITY[size] * 2**30)


def sizes_to_compare(device: str, gpu: str | None) -> list[int]:
    """Memory in GB of the GPUs that a plan has a column for, the named one's included."""
    if device == "cpu":
        return []
    sizes = set(SIZES)
    if gpu:
        sizes.add(GPUS[gpu].memory)
    return sorted(sizes)


def fits(size: int, needed: dict[str, int]) -> str:
    """Does a stage fit a GPU of `size` GB? needed: bytes, by --recompute, the one planned first.

    >>> needed = {"none": 90 * 10**9, "attention": 85 * 10**9, "full": 60 * 10**9}
    >>> fits(141, needed), fits(80, needed), fits(40, needed)
    ('yes', 'full', 'no')
    """
    for i, (recompute, n_bytes) in enumerate(needed.items()):
        if n_bytes <= capacity(size):
            return "yes" if i == 0 else recompute
    return "no"


# -------------------------------------------------------------------------- disk and host memory


def model_bytes(config) -> int:
    """The weights of a model directory, in the type that config.json names."""
    itemsize = getattr(torch, config.dtype).itemsize
    return itemsize * sum(math.prod(shape) for shape in plan.shapes(config, "full", 0).values())


def adapter_bytes(stage: plan.Stage, trained: int, optimizer: str) -> int:
    """What a stage with a LoRA leaves beside its model: all that it trained; 0 without a LoRA.

    >>> adapter_bytes(plan.parse_stage("lora:1M:1e-4"), 1000, "adamw")
    4000
    """
    if "lora" in stage.parts:
        return plan.MASTER[optimizer].itemsize * trained
    return 0


def checkpoint_bytes(trained: int, optimizer: str) -> int:
    """A checkpoint of so many trained parameters: themselves and two moments.

    >>> checkpoint_bytes(1000, "adamw"), checkpoint_bytes(1000, "adamw_bf16")
    (12000, 6000)
    """
    return 3 * plan.MASTER[optimizer].itemsize * trained


def writing_bytes(config) -> int:
    """Host memory while a model directory is written: a file of it, and a tensor that is made ready
    for the next: as it was gathered and as it will be written, both in float32 at most."""
    largest = max(math.prod(shape) for shape in plan.shapes(config, "full", 0).values())
    return min(model_bytes(config), hf.MAX_SHARD_BYTES) + 2 * 4 * largest


def host_bytes(
    config, costs: list[dict], adapters: list[int], device: str, from_scratch: bool
) -> int:
    """Host memory of rank 0 beside PyTorch itself, at the worst moment of a run. costs, adapters:
    of each stage."""
    worst = 0
    for cost, adapter in zip(costs, adapters, strict=True):
        # An adapter is gathered while the model is written.
        held = writing_bytes(config) + adapter
        if device == "cpu":
            # The optimizer is still there, too.
            held += cost["weights"] + cost["optimizer"]
            held = max(held, cost["peak"])
        worst = max(worst, held)
    if from_scratch:
        # Random weights are drawn in float32, all of them, before they are written.
        elements = model_bytes(config) // getattr(torch, config.dtype).itemsize
        worst = max(worst, 4 * elements + writing_bytes(config))
    return worst


# -------------------------------------------------------------------------------------- the table


def amount(n_bytes: float) -> str:
    """Bytes to read.

    >>> amount(21_743_000_000), amount(5_640_000)
    ('21.7 GB', '5.6 MB')
    """
    if n_bytes < 1e9:
        return f"{n_bytes / 1e6:.1f} MB"
    return f"{n_bytes / 1e9:,.1f} GB"


def costs_of(
    config,
    stage: plan.Stage,
    lora_rank: int,
    step: plan.Step,
) -> dict[str, dict]:
    """plan.cost of a stage by --recompute: the one planned first, then those that need less."""
    how = dataclasses.asdict(step)
    costs = {}
    first = plan.RECOMPUTE.index(step.recompute)
    for recompute in plan.RECOMPUTE[first:]:
        how["recompute"] = recompute
        costs[recompute] = plan.cost(config, stage, lora_rank, **how)
    return costs


def table(
    config,
    stages: list[plan.Stage],
    lora_rank: int,
    seq_len: int,
    dtype: torch.dtype,
    optimizer: str,
    tflops: float | None = None,
    gpu: str | None = None,
    keep: int = 0,
    from_scratch: bool = False,
    **how,
) -> str:
    """Each stage's FLOPs, hours, GPUs that it fits and checkpoint, and what the run takes in all.
    `how`: the other fields of plan.Step; the rest is as train.py's flags."""
    step = plan.Step(seq_len, dtype, optimizer, **how)
    step_tokens = step.tokens * step.accumulation * step.world_size
    source = ""
    if gpu and not tflops:
        tflops = sustained(gpu, dtype)
        source = f", {SHARE_OF_PEAK:.0%} of the peak of {gpu}"

    sizes = sizes_to_compare(step.device, gpu)

    def row(name: str, flops: float, cells: list[str]) -> str:
        line = f"{name:<14}{flops:>10.2e}"
        if tflops:
            line += f"{hours(flops, tflops, step.world_size):>11,.2f}"
        return line + "".join(cells)

    # A line per stage, and one for the run.
    lines = [heading(sizes, tflops is not None)]
    planned = []
    checkpoints = []
    adapters = []
    total_flops = 0
    for stage in stages:
        costs = costs_of(config, stage, lora_rank, step)
        cost = costs[step.recompute]
        planned.append(cost)
        checkpoints.append(checkpoint_bytes(cost["trained"], optimizer))
        adapters.append(adapter_bytes(stage, cost["trained"], optimizer))
        flops = cost["hardware"] * stage.steps(step_tokens) * step_tokens
        total_flops += flops
        needed = {recompute: found["needed"] for recompute, found in costs.items()}
        cells = [f"{fits(size, needed):>11}" for size in sizes]
        lines.append(row(stage.what, flops, [*cells, f"{checkpoints[-1] / 1e9:>16.3f}"]))
    lines.append(row("the run", total_flops, []))

    # What it means, and what the run takes in all.
    lines.append(line_of_hours(total_flops, tflops, source, step))
    if sizes:
        lines += lines_of_fits(sizes)
    n_models = len(stages)
    if from_scratch:
        n_models += 1  # the random one
    lines.append(line_of_disk(config, n_models, sum(adapters), checkpoints, keep))
    host = host_bytes(config, planned, adapters, step.device, from_scratch)
    lines.append(line_of_host(host, from_scratch))
    return "\n".join(lines)


def heading(sizes: list[int], has_hours: bool) -> str:
    """The names of the columns."""
    line = f"{'stage':<14}{'FLOPs':>10}"
    if has_hours:
        line += f"{'hours':>11}"
    for size in sizes:
        label = f"{size} GB"
        if size == sizes[0]:
            label = f"fits {label}"
        line += f"{label:>11}"
    return f"{line}  checkpoint, GB"


def line_of_hours(flops: float, tflops: float | None, source: str, step: plan.Step) -> str:
    """How long the run takes, and at what rate. `source`: where the rate is from."""
    if tflops:
        time = duration(hours(flops, tflops, step.world_size))
        return f"hours: {time} of training steps on {step.world_size} x {tflops:g} TFLOP/s{source}"
    advice = "--gpu or --tflops for each stage's"
    if step.device == "cpu":
        return f"hours: {advice}"
    slow = duration(hours(flops, 100, step.world_size))
    fast = duration(hours(flops, 400, step.world_size))
    return f"hours: {slow} at 100 TFLOP/s per GPU, {fast} at 400; {advice}"


def lines_of_fits(sizes: list[int]) -> list[str]:
    """What the columns of GPUs say."""
    found = ", ".join(f"{capacity(size) / 1e9:.1f}" for size in sizes)
    return [
        f"fits: `needed` above against the {found} GB that PyTorch finds on such GPUs",
        "    yes: as planned; attention, full: with that --recompute; no: not even so",
        "    a smaller --micro_batch, more processes and --optimizer adamw_bf16 need less",
    ]


def line_of_disk(config, n_models: int, adapters: int, checkpoints: list[int], keep: int) -> str:
    """The most that a run's folder takes. adapters: bytes of all; checkpoints: of each stage's."""
    one_model = model_bytes(config)
    kept = keep or checkpoint.KEPT_WHILE_TRAINING
    parts = [f"{n_models} models of {amount(one_model)}"]
    if adapters:
        parts.append(f"LoRAs of {amount(adapters)}")
    # Old checkpoints are deleted when the new one is whole.
    parts.append(f"{kept} checkpoints and one being written")
    total = n_models * one_model + adapters + (kept + 1) * max(checkpoints)
    return f"disk: at most {amount(total)}: " + ", ".join(parts)


def line_of_host(n_bytes: int, from_scratch: bool) -> str:
    """Host memory, and when it is needed."""
    when = "a stage is written"
    if from_scratch:
        when = "random weights are written"
    return f"host memory: at most {amount(n_bytes)} beside PyTorch itself, on rank 0 while {when}"
