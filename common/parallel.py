"""One process or many: the same training loop, with the model's memory divided among processes.

Fully sharded data parallel (Rajbhandari et al., 1910.02054, stage 3; PyTorch's FSDP2): every
process holds a slice of rows of each parameter, of its gradient and of its moments, and works on
its own share of the batch. Just before a block runs, its slices are gathered into whole matrices;
just after, those are freed again. Gradients are summed and dealt out the same way. So N processes
hold a model N times as large, and the loop does not see the difference:

    torchrun --nproc_per_node=8 train.py ...                    # one machine
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_id=1 \\
        --rdzv_endpoint=HOST:29500 train.py ...                 # two: on each, RUN on a shared disk

A single process is not sharded: gathering from itself would cost copies and gain nothing.
"""
import contextlib
import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from common.cli import UserError

# What a RuntimeError says when another process is gone: the words of PyTorch, gloo and NCCL.
WORDS_OF_A_LOST_PROCESS = ("connection", "socket", "timed out", "nccl", "gloo")


class Alone(UserError):
    """An error of this process and not of all: each process it happens to reports it itself."""
    of_one_process = True


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def process_group(device: str):
    """`with process_group(device):` joins the other processes, if torchrun started several, chooses
    this one's GPU, and waits for the others at the end. A communication that fails becomes one
    line, because PyTorch's error is about sockets and not about the run."""
    if device == "cuda":
        gpus = torch.cuda.device_count()
        if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > gpus:
            raise UserError(
                f"more processes than the {gpus} GPUs of this machine; start one for each"
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if size() > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {size()} but MASTER_ADDR is not set; start several processes with "
            "torchrun"
        )

    try:
        if size() > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        yield
        # A process that leaves early looks like one that died, so wait. cli.run ends this process.
        barrier()
    except torch.OutOfMemoryError as error:
        raise Alone(
            "the GPU's memory is full: a smaller --micro_batch and --recompute full need less, and "
            "train.py --resume RUN takes both; a new run may have --optimizer adamw_bf16, too "
            "(eval_kobest.py: a smaller --batch_tokens); train.py --plan says how much "
            f"({_first_line(error)})"
        ) from None
    except RuntimeError as error:
        text = str(error).lower()
        lost_a_process = any(word in text for word in WORDS_OF_A_LOST_PROCESS)
        if size() == 1 or not lost_a_process:
            raise
        raise Alone(
            f"process {rank()}: another process of this run is gone; every checkpoint before is "
            f"whole, and train.py --resume continues from the newest ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    """PyTorch's messages are pages long."""
    return str(error).strip().partition("\n")[0][:200]


# --------------------------------------------------------------------------- numbers and decisions


def on_rank_zero(work: Callable):
    """What work() returns, on rank 0; None on the others, which wait for it. If it fails there, all
    stop, and rank 0 alone says why."""
    value = None
    failure = None
    if rank() == 0:
        try:
            value = work()
        except BaseException as error:  # whatever it is, the others must not wait for ever
            failure = error

    has_failed = broadcast(failure is not None)
    if failure is not None:
        raise failure
    if has_failed:
        raise UserError("rank 0 says why")
    return value


def all_reduce_sum(*values: float) -> list[float]:
    """The sums of these numbers over all processes, in float64."""
    if size() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers)
    return numbers.tolist()


def anywhere(flag: torch.Tensor) -> torch.Tensor:
    """1.0 on every rank if `flag`, 0.0 or 1.0, is 1.0 on any. It stays on its device: no process
    waits for the GPU."""
    if size() > 1:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag


def broadcast(value):
    """Rank 0's value, on every rank."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def barrier() -> None:
    """Wait for all processes."""
    broadcast(None)


def gather(values: Iterable) -> list:
    """The values of all processes in one list, in the order of their ranks."""
    mine = list(values)
    if size() == 1:
        return mine
    lists = [None] * size()
    dist.all_gather_object(lists, mine)
    everything = []
    for part in lists:
        everything += part
    return everything


# --------------------------------------------------------------------------------- a sharded model


def shard(llama, compute_dtype: torch.dtype) -> None:
    """Divide a model, still without memory, among the processes.

    Each block, the embedding, and the norm with the head are gathered as one group. With a tied
    head, embedding, norm and head are one: a parameter belongs to one group only.

    Weights are gathered in the compute type and gradients summed in float32. Sums, not means: the
    loss is already divided by the number of tokens of the whole batch.
    """
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # RoPE's cos and sin stay float32
    )
    on_gpu = torch.cuda.is_available() and dist.get_backend() != "gloo"
    mesh = dist.init_device_mesh("cuda" if on_gpu else "cpu", (size(),))

    groups = [[block] for block in llama.model.layers]
    embedding = llama.model.embed_tokens
    norm = llama.model.norm
    head = llama.lm_head
    if llama.config.tie_word_embeddings:
        groups.append([embedding, norm, head])
    else:
        groups.append([embedding])
        groups.append([norm, head])
    for group in groups:
        fully_shard(group, mesh=mesh, mp_policy=policy)
    fully_shard(llama, mesh=mesh, mp_policy=policy)

    for module in llama.modules():
        if isinstance(module, FSDPModule) and size() > 1:
            module.set_gradient_divide_factor(1.0)
            # The factor alone would be an operation that gloo does not know.
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(llama, "generate")


def local(x: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    if hasattr(x, "to_local"):
        return x.to_local()
    return x


def full_tensor(x: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered (every process takes part); any other tensor as it is."""
    if hasattr(x, "full_tensor"):
        return x.full_tensor()
    return x


def rows(p: torch.Tensor) -> tuple[int, int]:
    """The rows of parameter p that this process holds: the first, and one past the last.

    Of 10 rows, 4 processes hold 3, 3, 3 and 1: rank 3 has (9, 10). ValueError for a placement other
    than Shard(0) over one mesh dimension, which is all that `shard` makes.
    """
    if not hasattr(p, "placements"):
        return 0, len(p)
    if p.device_mesh.ndim != 1 or not p.placements[0].is_shard(0):
        raise ValueError(
            f"a parameter is placed as {p.placements}; only Shard(0) over one mesh dimension is "
            "known"
        )
    each = -(-len(p) // p.device_mesh.size())  # rounded up
    first = min(len(p), each * p.device_mesh.get_local_rank())
    last = min(len(p), first + each)
    return first, last


def local_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What this process holds of x, and the number of its first row: what kernels.AdamW asks."""
    first, _ = rows(x)
    return local(x), first


def like(p: torch.Tensor, part: torch.Tensor) -> torch.nn.Parameter:
    """A parameter that takes p's place, with `part` as the rows of it that this process holds."""
    if hasattr(p, "placements"):
        from torch.distributed.tensor import DTensor
        whole = {"shape": p.shape, "stride": p.stride()}
        part = DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, **whole)
    return torch.nn.Parameter(part, requires_grad=p.requires_grad)
