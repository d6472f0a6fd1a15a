"""One process or many: the same training loop, with the model's memory divided among torchrun's processes.

Fully sharded data parallel (Rajbhandari et al., 1910.02054, stage 3; PyTorch's FSDP2): every process holds a slice of
rows of each parameter, of its gradient and of its moments, and works on its own share of the batch. Just before a block
runs, its slices are gathered into whole matrices; just after, they are let go again. Gradients are summed and dealt out
the same way. So N processes hold a model N times as large, and the loop does not see the difference:

    torchrun --nproc_per_node=8 train.py ...                                    one machine
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_id=1 --rdzv_endpoint=HOST:29500 train.py ...
                                                                    two, on each; RUN lies on a shared disk

A single process is not sharded: gathering from oneself costs copies and brings nothing.
"""
import contextlib
import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from common.cli import UserError


class Alone(UserError):
    """What happened to this process and not to all: each says it for itself."""
    of_one_process = True


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def process_group(device: str):
    """`with process_group(device):` meet the other processes, if torchrun started several; choose this one's GPU; leave
    together. A communication that fails becomes one line: PyTorch's error is about sockets, not the run."""
    if device == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count():
        raise UserError(f"more processes than the {torch.cuda.device_count()} GPUs of this machine; start one for each")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if size() > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(f"WORLD_SIZE is {size()} but MASTER_ADDR is not set; start several processes with torchrun")
    try:
        if size() > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        yield
        if size() > 1:
            broadcast(None)  # who leaves early would look like one that died; then cli.run ends this process
    except torch.OutOfMemoryError as error:
        raise Alone("the GPU's memory is full: a smaller --micro_batch, --recompute full, --optimizer adamw_bf16 and "
                    "--update_in_backward need less, and train.py --plan says how much "
                    f"({str(error).splitlines()[0][:200]})") from None
    except RuntimeError as error:
        words = ("connection", "socket", "timed out", "nccl", "gloo")
        if size() == 1 or not any(word in str(error).lower() for word in words):
            raise
        raise Alone(f"process {rank()}: another process of this run is gone; every checkpoint before is whole, and "
                    f"train.py --resume goes on from the newest ({str(error).strip().splitlines()[0][:200]})") from None


def on_rank_zero(work: Callable):
    """What work() returns, in the first process; None in the others, which wait for it. If it fails there, all stop,
    and the first process alone says why."""
    value = failed = None
    if rank() == 0:
        try:
            value = work()
        except BaseException as error:  # whatever it is, the others must not wait for ever
            failed = error
    if broadcast(failed is not None):
        raise failed or UserError("the first process says why")
    return value


def all_reduce_sum(*values: float) -> list[float]:
    """The sums of these numbers over all processes, in float64."""
    if size() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers)
    return numbers.tolist()


def anywhere(flag: torch.Tensor) -> torch.Tensor:
    """1.0 in every process if `flag`, 0.0 or 1.0, is 1.0 in any of them. It stays on its device: no process waits."""
    if size() > 1:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag


def broadcast(value):
    """The first process's value, in every process."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def gather(values: Iterable) -> list:
    """The values of all processes in one list, in the order of the processes."""
    mine = list(values)
    lists = [mine] * size()
    if size() > 1:
        dist.all_gather_object(lists, mine)
    return [value for values in lists for value in values]


def shard(llama, compute_dtype: torch.dtype) -> None:
    """Divide a model, still without memory, among the processes: each block, the embedding, and norm with head are
    gathered as one. With a tied head, embedding, norm and head are one group: a parameter lives in one only.

    Weights are gathered in the compute type, gradients summed in float32; sums, not means: the loss is divided by the
    number of tokens of the whole batch already."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)  # cos and sin stay float32
    kind = "cuda" if torch.cuda.is_available() and dist.get_backend() != "gloo" else "cpu"
    mesh = dist.init_device_mesh(kind, (size(),))
    embedding, ends = [llama.model.embed_tokens], [llama.model.norm, llama.lm_head]
    groups = [[block] for block in llama.model.layers]
    groups += [embedding + ends] if llama.config.tie_word_embeddings else [embedding, ends]
    for group in groups:
        fully_shard(group, mesh=mesh, mp_policy=policy)
    fully_shard(llama, mesh=mesh, mp_policy=policy)
    for module in llama.modules():
        if isinstance(module, FSDPModule) and size() > 1:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # the factor alone is an operation that gloo does not know
    register_fsdp_forward_method(llama, "generate")


def local(x: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; another one as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def full_tensor(x: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered (every process takes part); another one as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def rows(p: torch.Tensor) -> tuple[int, int]:
    """The rows of parameter p that this process holds: first, and one past the last. ValueError for a placement other
    than Shard(0) over one mesh dimension, which is all that `shard` makes."""
    if not hasattr(p, "placements"):
        return 0, len(p)
    if p.device_mesh.ndim != 1 or not p.placements[0].is_shard(0):
        raise ValueError(f"a parameter is placed as {p.placements}; only Shard(0) over one mesh dimension is known")
    each = -(-len(p) // p.device_mesh.size())
    first = min(len(p), each * p.device_mesh.get_local_rank())
    return first, min(len(p), first + each)


def like(p: torch.Tensor, part: torch.Tensor) -> torch.nn.Parameter:
    """A parameter that takes p's place, with `part` as the rows that this process holds of it."""
    if hasattr(p, "placements"):
        from torch.distributed.tensor import DTensor
        part = DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    return torch.nn.Parameter(part, requires_grad=p.requires_grad)
