r"""A training step: tokens a second, utilisation, peak memory, and where the time goes, beside transformers' Llama.

    python -m bench.train_step --device cpu                          # base-en's body, vocabularies of 14k and 49k
    python -m bench.train_step --shapes 1.1B 8B --stages embed odd lora full              # on a GPU
    python -m bench.train_step --shapes 10.7B --stages embed odd lora full --optimizer adamw_bf16 --batch 1 \
        --seq_len 4096 --against [--checkpoint full --update_in_backward: inside 80 GB]   # on a large one

Every contender has the same shapes, batch, dtype, threads and fused AdamW, a process of its own, and takes turns with
the others; all are in memory at once, so give `--against` nothing for 10.7B. transformers has SDPA and is given labels,
as its own trainer does; Liger patches it where installed, and "memory kept" gives it the malloc settings of cli.py, so
that what is left is the arithmetic. "sharded" is nanowhale under FSDP in one process: what parallel.py avoids.
Utilisation is FLOPs by plan.py over what a large matrix product reached in the same run: of the model (mfu), and of
what was executed, recomputation included (hfu).
"""
import argparse
import math
import multiprocessing
import os
import sys
import time

import torch

import cli
import kernels
import model
import parallel
import plan
from bench import measure
from stage import Updates

COMMON = dict(rms_norm_eps=1e-5, rope_theta=10000.0)
SHAPES = {
    "base-en": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8,
                    num_key_value_heads=4, head_dim=32, max_position_embeddings=512, **COMMON),
    "1.1B": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                 num_key_value_heads=4, head_dim=64, max_position_embeddings=4096, **COMMON),
    "8B": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, **COMMON),
    "10.7B": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=48, num_attention_heads=32,
                  num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, **COMMON)}


def ours(config: model.Config, stage: str, args, shard: bool = False):
    """nanowhale's step."""
    dtype, master = getattr(torch, args.dtype), plan.MASTER[args.optimizer]
    with torch.device("meta"):
        llama = model.Llama(config)
        if stage == "lora":
            model.add_lora(llama, config.hidden_size // 32, config.hidden_size // 32, master)
    for name, p in llama.named_parameters():
        trained = bool(plan.is_trained(name, stage))
        p.data = p.data.to(master if trained else dtype)
        p.requires_grad_(trained)
    if args.compile:
        for block in llama.model.layers:
            block.compile(dynamic=False)
    if shard:
        parallel.shard(llama, dtype)
    llama.to_empty(device=args.device)
    with torch.no_grad():
        torch.manual_seed(0)
        for p in llama.parameters():
            parallel.local(p).normal_(std=0.02) if p.dim() > 1 else parallel.local(p).fill_(1)
    llama.compute_dtype, llama.recompute = dtype, args.checkpoint
    return step_of(llama, lambda x, y: llama(x, y)[0], stage, args, args.update_in_backward)


def theirs(config: model.Config, stage: str, args, liger: bool = False):
    """transformers' step; its mixed precision is autocast around float32 weights, as its trainer's is."""
    from transformers import LlamaConfig, LlamaForCausalLM
    wanted = {k: v for k, v in vars(config).items() if k in SHAPES["base-en"] or k == "vocab_size"}
    torch.manual_seed(0)
    with torch.device(args.device):
        llama = LlamaForCausalLM(LlamaConfig(**wanted, attn_implementation="sdpa", use_cache=False))
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
        apply_liger_kernel_to_llama(model=llama)
    if args.checkpoint == "full":
        llama.gradient_checkpointing_enable()
    for name, p in llama.named_parameters():
        p.requires_grad_(bool(plan.is_trained(name, stage)))

    def loss(x, y):
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            return llama(input_ids=x, labels=x).loss * y.numel()
    return step_of(llama, loss, stage, args)


def step_of(llama, loss, stage: str, args, early: bool = False):
    """One optimizer step on the same random tokens, as a function; `early`: updates in the backward pass."""
    trained = [p for p in llama.parameters() if p.requires_grad]
    small = args.optimizer == "adamw_bf16" and trained[0].dtype == torch.bfloat16
    optimizer = kernels.AdamW(trained, lr=1e-5) if small else torch.optim.AdamW(trained, lr=1e-5, fused=True)
    updates = Updates(llama, optimizer, plan.Stage(stage, 1, 1e-5),
                      argparse.Namespace(clip=1.0, update_in_backward=early))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, llama.config.vocab_size, (args.batch, args.seq_len + 1), generator=generator)
    rows = rows.to(args.device)

    def step() -> None:
        (loss(rows[:, :-1], rows[:, 1:]) / (args.batch * args.seq_len)).backward()
        updates.apply((~updates.norm().isfinite()).float())
    return step


def seconds(step, args) -> float:
    """A step's time."""
    sync = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    sync()
    began = time.perf_counter()
    step()
    sync()
    return time.perf_counter() - began


def parts(step, args) -> dict[str, float]:
    """Share of a step's time by kind of operation, from PyTorch's profiler."""
    kinds = {"attention": ("attention", "flash", "sdpa", "fmha", "softmax_backward"),
             "optimizer": ("adam", "_foreach", "multi_tensor", "_step_kernel"),
             "norms": ("norm_forward", "norm_backward", "rsqrt", "rms"),
             "products": ("mm", "linear_pointwise", "gemm", "cutlass", "nvjet"),
             "loss": ("_softmax_kernel", "exp_", "amax", "scatter", "gather", "nll_loss", "log_softmax")}
    cuda = args.device == "cuda"
    with torch.profiler.profile() as profile:
        seconds(step, args)
    spent: dict[str, float] = {}
    for event in profile.key_averages():
        if cuda and (event.device_type == torch.autograd.DeviceType.CPU or event.is_user_annotation):
            continue  # who launched kernels, which have entries of their own: their time would count twice or thrice
        used = event.self_device_time_total if cuda else event.self_cpu_time_total
        kind = next((k for k, words in kinds.items() if any(w in event.key.lower() for w in words)), "the rest")
        spent[kind] = spent.get(kind, 0) + used
    return {kind: used / max(1, sum(spent.values())) for kind, used in sorted(spent.items(), key=lambda x: -x[1])}


def serve(who: str, shape: str, vocabulary: int, stage: str, args, asked) -> None:
    """A contender's process: makes its step, and answers "seconds", "parts" and "peak" until it is told to stop."""
    torch.set_num_threads(args.threads)
    config = model.Config(vocab_size=vocabulary, **SHAPES[shape])
    if "sharded" in who:
        kind = "cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo"
        torch.distributed.init_process_group(kind, store=torch.distributed.HashStore(), rank=0, world_size=1)
    if "nanowhale" in who:
        cli.set_device(args)  # as train.py does
        kernels.use("auto", args.device)
        step = ours(config, stage, args, shard="sharded" in who)
    else:
        if "memory kept" in who:
            cli.keep_freed_memory()
        step = theirs(config, stage, args, liger="liger" in who)
    for _ in range(2):
        step()
    asked.send("ready")
    while (question := asked.recv()) != "stop":
        asked.send(parts(step, args) if question == "parts" else seconds(step, args) if question == "seconds"
                   else torch.cuda.max_memory_allocated() / 1e9)
    os._exit(0)


def one(shape: str, vocabulary: int, stage: str, args) -> list[dict]:
    """The rows of one shape, vocabulary and stage."""
    config, entrants = model.Config(vocab_size=vocabulary, **SHAPES[shape]), {}
    for who in ("nanowhale", *args.against):
        if "transformers" in who and stage == "lora":  # it has no LoRA of its own
            continue
        entrants[who], theirs_end = multiprocessing.Pipe()
        multiprocessing.Process(target=serve, args=(who, shape, vocabulary, stage, args, theirs_end),
                                daemon=True).start()
        theirs_end.close()
        try:
            entrants[who].recv()  # ready, before the next one begins
        except EOFError:
            if who == "nanowhale":
                raise cli.UserError(f"nanowhale's own step ended with the error above ({shape}, {stage})") from None
            print(f"left out: {who}, which ended with an error")
            del entrants[who]

    def ask(who: str, question: str):
        entrants[who].send(question)
        return entrants[who].recv()

    times = measure.interleaved({who: lambda who=who: ask(who, "seconds") for who in entrants}, args.runs)
    rate = plan.matmul_rate(args.device, getattr(torch, args.dtype))
    executed = [plan.flops_per_token(config, stage, config.hidden_size // 32, args.seq_len, r)
                for r in ("none", args.checkpoint)]
    rows, tokens = [], args.batch * args.seq_len
    for who in entrants:
        median, low, high = measure.quantiles(times[who])
        faster = [b / a for a, b in zip(times["nanowhale"], times[who], strict=True)]
        row = {"shape": shape, "vocabulary": vocabulary, "stage": stage, "who": who,
               "tokens a second": tokens / median, "20 %": tokens / high, "80 %": tokens / low,
               "nanowhale is faster by": measure.quantiles(faster)[0],
               "mfu": executed[0] * tokens / median / rate, "hfu": executed[1] * tokens / median / rate}
        if args.device == "cuda":
            planned = plan.cost(config, plan.Stage(stage, 1, 1e-5), config.hidden_size // 32, args.seq_len,
                                getattr(torch, args.dtype), args.optimizer, micro_batch=args.batch, device="cuda",
                                recompute=args.checkpoint, update_in_backward=args.update_in_backward)
            row |= {"peak GB": ask(who, "peak"), "planned GB": planned["peak"] / 1e9 if who == "nanowhale" else None}
        rows.append(row | {"time": ", ".join(f"{k} {v:.0%}" for k, v in ask(who, "parts").items())})
    for pipe in entrants.values():
        pipe.send("stop")
    return rows


def main() -> None:
    """Time every shape, vocabulary and stage."""
    parser = cli.Parser(description=__doc__, prog="bench.train_step")
    flag = parser.add_argument
    flag("--shapes", nargs="+", default=None, choices=list(SHAPES), help="default: base-en on a CPU, 1.1B on a GPU")
    flag("--vocabularies", nargs="+", type=int, default=[14336, 49152], help="rows of embedding and head")
    flag("--stages", nargs="+", default=["full"], help="what is trained: embed odd even body lora full")
    flag("--against", nargs="*", default=["transformers", "transformers, memory kept", "nanowhale, sharded"],
         help="transformers, 'transformers + liger', 'transformers, memory kept', 'nanowhale, sharded'")
    flag("--batch", type=int, default=8, help="windows a step")
    flag("--seq_len", type=int, default=512, help="tokens a window")
    flag("--optimizer", default="adamw", choices=list(plan.MASTER), help="nanowhale's; the others have fused AdamW")
    flag("--checkpoint", default="none", choices=["none", "attention", "full"], help="activations computed again")
    flag("--update_in_backward", action="store_true", help="nanowhale's gradients are used as soon as they exist")
    flag("--compile", action="store_true", help="torch.compile nanowhale's blocks")
    flag("--runs", type=int, default=5, help="turns")
    flag("--name", default=None, help="of the result file (default: train_step-DEVICE)")
    cli.add_device(parser)
    args: argparse.Namespace = parser.parse_args()
    for stage in args.stages:
        plan.parse_stage(f"{stage}:1k:1e-5")
    cli.set_device(args)
    args.threads = torch.get_num_threads()
    multiprocessing.set_start_method("spawn")
    shapes = args.shapes or ["base-en" if args.device == "cpu" else "1.1B"]
    rows = [row for shape in shapes for vocabulary in args.vocabularies for stage in args.stages
            for row in one(shape, vocabulary, stage, args)]
    said = ("batch", "seq_len", "dtype", "optimizer", "checkpoint", "update_in_backward", "compile", "runs")
    conditions = measure.machine("transformers", "liger-kernel") | {name: getattr(args, name) for name in said}
    device = (conditions["gpu"] or "cpu").replace(" ", "-")
    measure.report(args.name or f"train_step-{device}", rows, conditions)
    if not all(math.isfinite(row["tokens a second"]) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
