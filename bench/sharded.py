"""train.py under FSDP on a machine that has one GPU: what the part `sharded` of bench/gpu.py starts.

    python -m bench.sharded nccl FLAGS OF train.py
    torchrun --nproc_per_node=2 -m bench.sharded gloo FLAGS OF train.py

train.py does not shard a single process, and NCCL refuses two ranks on one GPU. So `nccl` shards the
model of one rank, whose weights, gradients and moments take every path of FSDP over NCCL, though
there is no one to exchange them with; `gloo` lets several ranks share the GPU and exchange through
the host.
"""
import argparse

import torch
import torch.distributed as dist

import model
import train
from common import cli, parallel

full_tensor = parallel.full_tensor


def shard_one_rank() -> None:
    """Make train.py shard its model in a single process, over NCCL."""
    load = model.load

    def load_sharded(start, device, dtype_of, before_load):
        def then_shard(llama: model.Llama) -> None:
            before_load(llama)
            parallel.shard(llama, dtype_of(""))

        return load(start, device, dtype_of, then_shard)

    # dtype_of("") is the compute type: no stage trains a parameter of that name.
    model.load = load_sharded
    torch.cuda.set_device(0)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)


def share_one_gpu() -> None:
    """Make every rank use GPU 0, and exchange tensors of the GPU over gloo."""
    torch.cuda.init()  # counts the GPUs, before the count is changed
    set_device = torch.cuda.set_device
    init_process_group = dist.init_process_group
    n_ranks = parallel.size()

    torch.cuda.device_count = lambda: n_ranks
    torch.cuda.set_device = lambda number: set_device(0)
    dist.init_process_group = lambda backend: init_process_group("cpu:gloo,cuda:gloo")
    dist.get_backend = lambda: "nccl"  # parallel.shard takes gloo for a sign of CPUs
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
