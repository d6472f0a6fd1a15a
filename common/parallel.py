"""One process or many: the same training loop, with the model sharded over the processes.

Fully sharded data parallel (Rajbhandari et al., 1910.02054, stage 3; PyTorch's FSDP2): every
process holds some of the rows of each parameter, its gradient and its moments, and works on its own
share of the batch. Just before a block runs, whole matrices are gathered from all processes; right
after, they are freed. Gradients are summed and scattered in the same way. So N processes can hold a
model N times as large, and the training loop is the same:

    # one machine
    torchrun --nproc_per_node=8 train.py ...
    # two machines: start this on each, with RUN on a shared disk
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_id=1 \\
        --rdzv_endpoint=HOST:29500 train.py ...

A single process is not sharded, because gathering from itself would only cost copies.
"""
import contextlib
import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from common.cli import UserError

# Words in the RuntimeErrors of PyTorch, gloo and NCCL when another process is gone.
WORDS_OF_A_LOST_PROCESS = ("connection", "socket", "timed out", "nccl", "gloo")


class Alone(UserError):
    """An error of this process and not of all. Each process that has it reports it itself."""
    of_one_process = True


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def process_group(device: str):
    """`with process_group(device):` joins the other processes, if torchrun started several, selects
    this one's GPU, and waits for the others at the end. A failed communication is reported in one
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
        # To the others, a process that leaves early looks like one that died, so wait. cli.run ends
        # this process.
        barrier()
    except torch.OutOfMemoryError as error:
        raise Alone(
            "the GPU's memory is full: a smaller --micro_batch and --recompute full need less, "
            "also with train.py --resume RUN; for a new run there is --optimizer adamw_bf16 too "
            "(eval_kobest.py: a smaller --batch_tokens); train.py --plan prints what a run needs "
            f"({_first_line(error)})"
        ) from None
    except RuntimeError as error:
        text = str(error).lower()
        lost_a_process = any(word in text for word in WORDS_OF_A_LOST_PROCESS)
        if size() == 1 or not lost_a_process:
            raise
        raise Alone(
            f"process {rank()}: another process of this run is gone; earlier checkpoints are "
            f"complete, and train.py --resume continues from the newest ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    """The first line of an error, because PyTorch's messages are pages long."""
    return str(error).strip().partition("\n")[0][:200]


# --------------------------------------------------------------------------- numbers and decisions


def on_rank_zero(work: Callable):
    """Call work() on rank 0 and return its result there; the other ranks wait, and return None. If
    it fails, all stop, and only rank 0 reports why."""
    value = None
    failure = None
    if rank() == 0:
        try:
            value = work()
        except BaseException as error:  # any error: the others must not wait for ever
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
    """1.0 on every rank if `flag` (0.0 or 1.0) is 1.0 on any. It stays on its device, so no process
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
    """Shard a model that has no memory yet over the processes.

    Each block is gathered as a group; the embedding is another, and the norm with the head another.
    With a tied head, embedding, norm and head are one group, because a parameter belongs to only
    one.

    Weights are gathered in the compute dtype, and gradients are summed in float32. They are sums
    and not means, because the loss is already divided by the number of targets of the whole batch.
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
            # Without this, the factor would become an operation that gloo does not support.
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(llama, "generate")


def local(x: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; any other tensor unchanged."""
    if hasattr(x, "to_local"):
        return x.to_local()
    return x


def full_tensor(x: torch.Tensor) -> torch.Tensor:
    """Gather a sharded tensor (every process takes part); any other tensor unchanged."""
    if hasattr(x, "full_tensor"):
        return x.full_tensor()
    return x


def rows(p: torch.Tensor) -> tuple[int, int]:
    """The rows of parameter p that this process holds: the first, and one past the last.

    Of 10 rows, 4 processes hold 3, 3, 3 and 1, so rank 3 has (9, 10). ValueError for any placement
    other than Shard(0) over one mesh dimension, the only one that `shard` makes.
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
    """What this process holds of x, and the number of its first row, for kernels.AdamW."""
    first, _ = rows(x)
    return local(x), first


def like(p: torch.Tensor, part: torch.Tensor) -> torch.nn.Parameter:
    """A parameter like p, of which this process holds the rows `part`."""
    if hasattr(p, "placements"):
        from torch.distributed.tensor import DTensor
        whole = {"shape": p.shape, "stride": p.stride()}
        part = DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, **whole)
    return torch.nn.Parameter(part, requires_grad=p.requires_grad)
