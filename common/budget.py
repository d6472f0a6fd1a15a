"""What a run will take, computed before it starts: hours, GPUs, disk and host memory.

`train.py --plan` prints this below the tables of plan.py, which count each stage's bytes and FLOPs.

**Hours**: the FLOPs, including those of recomputation, divided by the speed that the GPUs sustain.
That speed is given (--tflops), or is half of the peak on a GPU's data sheet (--gpu). On an H200,
stages of a 10.7B model ran at 500 to 570 TFLOP/s of the data sheet's 989, or 0.51 to 0.58
(RESULTS.md, "On a GPU"). No other GPU has been measured. Only training steps are counted, not
validation, and not reading and writing models.

**Whether a stage fits** a GPU: plan.py's `needed` is compared with the memory that PyTorch finds on
the card.

**Disk**: each stage leaves a whole model, and a LoRA stage also its adapter. A checkpoint holds
what is trained and both of Adam's moments in the optimizer's dtype: 12 bytes per trained parameter
in float32, 6 in bfloat16. RUN/model takes no space, because it consists of hard links to the last
stage's files.

**Host memory**, in addition to PyTorch itself: models are read and checkpoints are written tensor
by tensor, and a stage's model is written file by file, of at most 5 GB each. On a CPU the training
itself is in host memory too.

Measured (VmHWM) on a CPU with 1.1B parameters in bfloat16, in one file of 2.20 GB: writing a stage
takes 2.14 GB more for odd, 2.20 for embed and 4.04 for lora. Up to 2.20 of that are pages of the
file that the stage started from, which Linux frees when memory is short. Writing a checkpoint (0.61
to 5.81 GB) takes less than 0.01 GB more. Reading one takes up to 0.52, twice the largest tensor in
float32. Not measured: a GPU's tensors, which pass through the host one by one, and what CUDA's
libraries take on the host (which is not counted).
"""
import dataclasses
import math

import torch

from common import checkpoint, hf, plan
from common.cli import UserError

# The share of the data sheet's peak that training sustains; see above.
SHARE_OF_PEAK = 0.5


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A card: its nominal memory in GB, and its peaks in TFLOP/s. bfloat16 is the peak of the
    tensor cores without sparsity and with float32 accumulation; None if they do not support it.
    float32 is without TF32, which PyTorch uses only on request."""
    memory: int
    bfloat16: float | None
    float32: float


# From NVIDIA's data sheets; the two RTX from the white papers of their architectures (GA102, Ada).
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

# {nominal GB of a card: GiB that PyTorch finds on it}, which is less where error correction takes
# part of the memory. It is the least that users report for cards of that size ("GPU 0 has a total
# capacity of", in the messages of torch.OutOfMemoryError): T4, A10 and L4, RTX 5090, A100, L40S,
# H100, H200.
CAPACITY = {16: 14.5, 24: 22.0, 32: 31.3, 40: 39.3, 48: 44.4, 80: 79.1, 141: 139.7}

# The memory sizes in GB for which a plan says whether a stage fits.
SIZES = (16, 24, 40, 80, 141)


# ------------------------------------------------------------------------------------------ time


def sustained(name: str, dtype: torch.dtype) -> float:
    """TFLOP/s to plan with on a GPU of this name. UserError if it does not support this dtype.

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
    """Hours that `flops` take on `world_size` GPUs of `tflops` TFLOP/s each.

    >>> hours(3.6e18, tflops=100, world_size=2)
    5.0
    """
    return flops / (tflops * 1e12 * world_size) / 3600


def duration(n_hours: float) -> str:
    """Format a time for the reader.

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
    """The memory sizes, in GB, that get a column in the plan, including that of --gpu."""
    if device == "cpu":
        return []
    sizes = set(SIZES)
    if gpu:
        sizes.add(GPUS[gpu].memory)
    return sorted(sizes)


def fits(size: int, needed: dict[str, int]) -> str:
    """Does a stage fit a GPU of `size` GB? `needed`: bytes by --recompute, the planned value first.

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
    """Bytes of the weights of a model directory, in the dtype that config.json names."""
    itemsize = getattr(torch, config.dtype).itemsize
    return itemsize * sum(math.prod(shape) for shape in plan.shapes(config, "full", 0).values())


def adapter_bytes(stage: plan.Stage, trained: int, optimizer: str) -> int:
    """Bytes of the adapter that a LoRA stage writes: all that it trained. 0 for other stages.

    >>> adapter_bytes(plan.parse_stage("lora:1M:1e-4"), 1000, "adamw")
    4000
    """
    if "lora" in stage.parts:
        return plan.MASTER[optimizer].itemsize * trained
    return 0


def checkpoint_bytes(trained: int, optimizer: str) -> int:
    """Bytes of a checkpoint with `trained` parameters: the parameters and two moments.

    >>> checkpoint_bytes(1000, "adamw"), checkpoint_bytes(1000, "adamw_bf16")
    (12000, 6000)
    """
    return 3 * plan.MASTER[optimizer].itemsize * trained


def writing_bytes(config) -> int:
    """Host memory for writing a model directory: one file, and one tensor that is prepared for the
    next file, both as gathered and as it will be written, each in at most float32."""
    largest = max(math.prod(shape) for shape in plan.shapes(config, "full", 0).values())
    return min(model_bytes(config), hf.MAX_SHARD_BYTES) + 2 * 4 * largest


def host_bytes(
    config, costs: list[dict], adapters: list[int], device: str, from_scratch: bool
) -> int:
    """Peak host memory of rank 0 in a run, in addition to PyTorch itself. costs, adapters: one for
    each stage."""
    worst = 0
    for cost, adapter in zip(costs, adapters, strict=True):
        # An adapter is gathered while the model is written.
        held = writing_bytes(config) + adapter
        if device == "cpu":
            # The optimizer is still in memory too.
            held += cost["weights"] + cost["optimizer"]
            held = max(held, cost["peak"])
        worst = max(worst, held)
    if from_scratch:
        # All random weights are drawn in float32 before they are written.
        elements = model_bytes(config) // getattr(torch, config.dtype).itemsize
        worst = max(worst, 4 * elements + writing_bytes(config))
    return worst


# -------------------------------------------------------------------------------------- the table


def amount(n_bytes: float) -> str:
    """Format a number of bytes for the reader.

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
    """plan.cost of a stage by --recompute: the planned value first, then those that need less."""
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
    """A table of each stage's FLOPs, hours, the GPUs that it fits and its checkpoint, and of what
    the whole run takes. `how`: the other fields of plan.Step; the rest are train.py's flags."""
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

    # A line for each stage, and one for the run.
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

    # Explain the columns, and say what the whole run takes.
    lines.append(line_of_hours(total_flops, tflops, source, step))
    if sizes:
        lines += lines_of_fits(sizes)
    n_models = len(stages)
    if from_scratch:
        n_models += 1  # the model with random weights
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
    """How long the run takes, at which speed. `source`: where that speed comes from."""
    if tflops:
        time = duration(hours(flops, tflops, step.world_size))
        return f"hours: {time} of training steps on {step.world_size} x {tflops:g} TFLOP/s{source}"
    advice = "give --gpu or --tflops for those of each stage"
    if step.device == "cpu":
        return f"hours: {advice}"
    slow = duration(hours(flops, 100, step.world_size))
    fast = duration(hours(flops, 400, step.world_size))
    return f"hours: {slow} at 100 TFLOP/s per GPU, {fast} at 400; {advice}"


def lines_of_fits(sizes: list[int]) -> list[str]:
    """Explain the columns of GPUs."""
    found = ", ".join(f"{capacity(size) / 1e9:.1f}" for size in sizes)
    return [
        f"fits: does `needed` above fit into the {found} GB that PyTorch finds on such GPUs?",
        "    yes: as planned; attention, full: only with that --recompute; no: not even with full",
        "    a smaller --micro_batch, more processes or --optimizer adamw_bf16 need less memory",
    ]


def line_of_disk(config, n_models: int, adapters: int, checkpoints: list[int], keep: int) -> str:
    """The most that a run's folder takes. adapters: bytes of all adapters together; checkpoints:
    bytes of each stage's checkpoint."""
    one_model = model_bytes(config)
    kept = keep or checkpoint.KEPT_WHILE_TRAINING
    parts = [f"{n_models} models of {amount(one_model)}"]
    if adapters:
        parts.append(f"LoRAs of {amount(adapters)}")
    # Old checkpoints are deleted only when the new one is complete.
    parts.append(f"{kept} checkpoints and one being written")
    total = n_models * one_model + adapters + (kept + 1) * max(checkpoints)
    return f"disk: at most {amount(total)}: " + ", ".join(parts)


def line_of_host(n_bytes: int, from_scratch: bool) -> str:
    """How much host memory is needed, and when."""
    when = "a stage is written"
    if from_scratch:
        when = "random weights are written"
    return f"host memory: at most {amount(n_bytes)} besides PyTorch itself, on rank 0 while {when}"
