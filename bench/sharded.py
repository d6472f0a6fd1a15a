"""train.py under FSDP on a machine with one GPU: what the part `sharded` of bench/gpu.py starts.

    python -m bench.sharded nccl FLAGS OF train.py
    torchrun --nproc_per_node=2 -m bench.sharded gloo FLAGS OF train.py

train.py does not shard a single process, and NCCL refuses two ranks on one GPU. So `nccl` shards
the model of one rank, whose weights, gradients and moments take every path of FSDP over NCCL,
though there is no one to exchange them with; `gloo` lets several ranks share the GPU and exchange
through the host.

Neither is of use to anyone who trains, so train.py has no flag for it: a few functions that it
calls are replaced here before it starts.
"""
import argparse

import torch
import torch.distributed as dist

import model
import train
from common import cli, parallel

full_tensor = parallel.full_tensor  # before share_one_gpu replaces it


def shard_one_rank() -> None:
    """Make train.py shard its model in a single process, over NCCL."""
    # With several ranks, what train.py hands to model.load as `before_load` ends with
    # parallel.shard. Here it does with one.
    load = model.load

    def load_sharded(start, device, dtype_of, before_load):
        def before_load_and_shard(llama: model.Llama) -> None:
            before_load(llama)
            compute_dtype = dtype_of("")  # that of what is not trained; no parameter is called ""
            parallel.shard(llama, compute_dtype)

        return load(start, device, dtype_of, before_load_and_shard)

    model.load = load_sharded
    # parallel.process_group leaves this to torchrun's ranks.
    torch.cuda.set_device(0)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)


def share_one_gpu() -> None:
    """Make every rank use GPU 0, and exchange tensors of the GPU over gloo."""
    torch.cuda.init()  # counts the GPUs, before the count is changed
    set_device = torch.cuda.set_device
    init_process_group = dist.init_process_group
    n_ranks = parallel.size()

    # parallel.process_group refuses more ranks than GPUs, gives each its own, and takes NCCL.
    torch.cuda.device_count = lambda: n_ranks
    torch.cuda.set_device = lambda number: set_device(0)
    dist.init_process_group = lambda backend: init_process_group("cpu:gloo,cuda:gloo")
    # parallel.shard would keep the model on the CPU under gloo.
    dist.get_backend = lambda: "nccl"
    parallel.full_tensor = gather_through_host


def gather_through_host(x: torch.Tensor) -> torch.Tensor:
    """parallel.full_tensor for rows that lie on several ranks, without DTensor's all_gather, which
    crashes over gloo on a GPU."""
    is_divided = hasattr(x, "placements") and x.placements[0].is_shard()
    if not is_divided:
        return full_tensor(x)
    parts = parallel.gather([parallel.local(x).detach().cpu()])
    return torch.cat(parts).to(x.device)


def main() -> None:
    """The backend, then train.py's flags."""
    parser = cli.Parser(description=__doc__, prog="bench.sharded")
    parser.add_argument("backend", choices=["nccl", "gloo"], help="how ranks exchange tensors")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of train.py")
    args = parser.parse_args()
    if args.backend == "nccl":
        shard_one_rank()
    else:
        share_one_gpu()
    train.main(args.flags)


if __name__ == "__main__":
    cli.run(main)
