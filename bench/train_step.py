r"""A training step: tokens per second, utilisation, peak memory, and where the time goes, beside
transformers' Llama.

    python -m bench.train_step --device cpu              # base-en's body and a vocabulary of 49k
    python -m bench.train_step --shapes 1.1B 8B --stages embed odd lora full         # on a GPU
    python -m bench.train_step --shapes 10.7B --stages embed odd lora --optimizer adamw_bf16 \
        --batch 1 --seq_len 4096 --against               # on a large one; --recompute full: 80 GB

Every contender has the same shapes, batch, dtype, threads and fused AdamW, and a process of its own
that times itself. On a CPU the contenders take turns; on a GPU they come one after the other, so
that each has all of its memory. transformers has SDPA and is given labels, as its own trainer does;
Liger patches it where installed, and "memory kept" gives it the malloc settings of common/cli.py,
so that what is left is the arithmetic. "sharded" is nanowhale under FSDP in one process: what
common/parallel.py avoids.

Utilisation is FLOPs by common/plan.py over what a large matmul reached in the same run: of the
model (mfu), and of what was executed, recomputation included (hfu).
"""
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

import kernels
import model
import train
from bench import measure
from common import cli, parallel, plan

COMMON = dict(rms_norm_eps=1e-5, rope_theta=10000.0)
SHAPES = {
    "tiny": dict(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        **COMMON,
    ),
    "base-en": dict(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        **COMMON,
    ),
    "1.1B": dict(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        **COMMON,
    ),
    "8B": dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        **COMMON,
    ),
    "10.7B": dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        **COMMON,
    ),
}

# Kinds of operation, and words in the names of the kernels (on a CPU: of the operations) that
# belong to them. A name is of the first kind that has a word in it.
KINDS = {
    "attention": ("attention", "flash", "sdpa", "fmha", "softmax_backward", "cudnn"),
    "optimizer": ("adam", "_foreach", "multi_tensor", "_step_kernel"),
    "norms": ("norm_forward", "norm_backward", "rsqrt", "rms"),
    "rope": ("_turn_kernel", "rope"),
    "swiglu": ("swiglu", "silu"),
    "loss": ("_softmax_kernel", "exp_", "amax", "scatter", "gather", "nll_loss", "log_softmax"),
    "matmuls": ("mm", "linear_pointwise", "gemm", "cutlass", "nvjet"),
    "copies and sums": ("copy", "memcpy", "memset", "elementwise", "reduce"),
}


def ours(config: model.Config, stage: str, args, shard: bool = False) -> "Step":
    """nanowhale's step, with random weights that were never anywhere but on the device."""
    dtype = getattr(torch, args.dtype)
    master = plan.MASTER[args.optimizer]
    lora_rank = lora_rank_of(config)
    with torch.device("meta"):
        llama = model.Llama(config)
        if stage == "lora":
            model.add_lora(llama, lora_rank, lora_rank, master)
    for name, p in llama.named_parameters():
        trained = plan.is_trained(name, stage)
        p.data = p.data.to(master if trained else dtype)
        p.requires_grad_(trained)
    if args.compile:
        for block in llama.model.layers:
            block.compile(dynamic=False, backend=getattr(args, "backend", "inductor"))
    if shard:
        parallel.shard(llama, dtype)

    # Memory, and weights of the usual size.
    llama.to_empty(device=args.device)
    with torch.no_grad():
        torch.manual_seed(0)
        for p in llama.parameters():
            mine = parallel.local(p)
            if p.dim() > 1:
                mine.normal_(std=0.02)
            else:
                mine.fill_(1)
    llama.compute_dtype = dtype
    llama.recompute = args.recompute

    def loss(inputs, targets):
        summed, _ = llama(inputs, targets)
        return summed

    return Step(llama, loss, args)


def theirs(config: model.Config, stage: str, args, liger: bool = False) -> "Step":
    """transformers' step; its mixed precision is autocast around float32 weights, as its trainer's
    is."""
    from transformers import LlamaConfig, LlamaForCausalLM
    shape = {"vocab_size": config.vocab_size}
    for name in SHAPES["base-en"]:
        shape[name] = getattr(config, name)
    torch.manual_seed(0)
    with torch.device(args.device):
        described = LlamaConfig(**shape, attn_implementation="sdpa", use_cache=False)
        llama = LlamaForCausalLM(described)
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
        apply_liger_kernel_to_llama(model=llama)
    if args.recompute == "full":
        llama.gradient_checkpointing_enable()
    for name, p in llama.named_parameters():
        p.requires_grad_(plan.is_trained(name, stage))

    def loss(inputs, targets):
        mixed = args.dtype == "bfloat16"
        with torch.autocast(args.device, torch.bfloat16, enabled=mixed):
            return llama(input_ids=inputs, labels=inputs).loss * inputs.numel()

    return Step(llama, loss, args)


def lora_rank_of(config: model.Config) -> int:
    """The rank that train.py gives a LoRA of this model."""
    return max(16, config.hidden_size // 32)


class Step:
    """One optimizer step as train.py's loop makes it, on random tokens that are the same each time,
    so that the loss falls. Calling it returns the loss per token, in nats.

    `host_seconds` is how long Python took, in the last step, until everything was queued on the
    device."""

    def __init__(self, llama: torch.nn.Module, loss: Callable, args):
        self.trained = [p for p in llama.parameters() if p.requires_grad]
        if args.optimizer == "adamw_bf16" and self.trained[0].dtype == torch.bfloat16:
            self.optimizer = kernels.AdamW(self.trained, lr=args.lr, local_rows=parallel.local_rows)
        else:
            self.optimizer = torch.optim.AdamW(self.trained, lr=args.lr, fused=True)
        self.loss = loss
        self.windows = args.batch  # of a micro-batch
        self.host_seconds = 0.0
        generator = torch.Generator().manual_seed(1)
        size = (args.batch * args.accumulation, args.seq_len + 1)
        tokens = torch.randint(0, llama.config.vocab_size, size, generator=generator)
        self.tokens = tokens.to(args.device)

    def __call__(self, seq_len: int | None = None) -> float:
        """A step with all of each window, or its first `seq_len` tokens."""
        began = time.perf_counter()
        tokens = self.tokens
        if seq_len is not None:
            tokens = tokens[:, :seq_len + 1]
        targets = tokens[:, 1:].numel()
        total = torch.zeros((), device=tokens.device)
        for rows in tokens.split(self.windows):
            summed = self.loss(rows[:, :-1], rows[:, 1:])
            (summed / targets).backward()
            total += summed.detach()
        norm = train.gradient_norm(self.trained)
        torch.nn.utils.clip_grads_with_norm_(self.trained, 1.0, norm)
        self.optimizer.found_inf = (~(total + norm).isfinite()).float()
        read_figures = train.start_reading(torch.stack((total, norm)))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.host_seconds = time.perf_counter() - began
        loss, _ = read_figures()
        return loss / targets


def seconds(step, args) -> float:
    """A step's time, until the device has finished."""
    on_gpu = args.device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def kind_of(name: str) -> str:
    """The kind of operation that a kernel's name belongs to."""
    for kind, words in KINDS.items():
        if any(word in name.lower() for word in words):
            return kind
    return "the rest"


def profile(step, args) -> list[tuple[str, int, float]]:
    """(name, calls, seconds) of every kernel of a step (on a CPU: of every operation), longest
    first."""
    on_gpu = args.device == "cuda"
    if on_gpu:
        activity = torch.profiler.ProfilerActivity.CUDA
    else:
        activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as record:
        seconds(step, args)
    found = []
    for event in record.key_averages():
        # What launched kernels is listed beside them, and would count their time again.
        launched = event.device_type == torch.autograd.DeviceType.CPU or event.is_user_annotation
        if on_gpu and launched:
            continue
        if on_gpu:
            spent = event.self_device_time_total
        else:
            spent = event.self_cpu_time_total
        found.append((event.key, event.count, spent / 1e6))
    return sorted(found, key=lambda row: -row[2])


def shares(kernel_times: list[tuple[str, int, float]]) -> dict[str, float]:
    """Share of a step's time by kind of operation, largest first, from what `profile` returns."""
    spent: dict[str, float] = {}
    for name, _, used in kernel_times:
        spent[kind_of(name)] = spent.get(kind_of(name), 0.0) + used
    whole = sum(spent.values()) or 1.0
    return {kind: used / whole for kind, used in sorted(spent.items(), key=lambda item: -item[1])}


def make_step(who: str, shape: str, vocabulary: int, stage: str, args) -> Callable:
    """A contender's step, by its name, in this process."""
    config = model.Config(vocab_size=vocabulary, **SHAPES[shape])
    if "nanowhale" in who:
        cli.set_device(args)  # as train.py does
        kernels.use("auto", args.device)
        return ours(config, stage, args, shard="sharded" in who)
    if "memory kept" in who:
        cli.keep_freed_memory()
    return theirs(config, stage, args, liger="liger" in who)


def serve(who: str, shape: str, vocabulary: int, stage: str, args, asked) -> None:
    """A contender's process: makes its step, and answers "seconds", "shares" and "peak" until it is
    told to stop."""
    torch.set_num_threads(args.threads)
    if "sharded" in who:
        kind = "cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo"
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(kind, store=store, rank=0, world_size=1)
    step = make_step(who, shape, vocabulary, stage, args)
    for _ in range(2):
        step()
    asked.send("ready")
    while (question := asked.recv()) != "stop":
        if question == "seconds":
            asked.send(seconds(step, args))
        elif question == "shares":
            asked.send(shares(profile(step, args)))
        else:
            asked.send(torch.cuda.max_memory_allocated() / 1e9)
    os._exit(0)


class Contender:
    """One of those that are compared, in a process of its own; `ask` gives its answer to a question
    of `serve`."""

    def __init__(self, who: str, shape: str, vocabulary: int, stage: str, args):
        self.pipe, other_end = multiprocessing.Pipe()
        given = (who, shape, vocabulary, stage, args, other_end)
        self.process = multiprocessing.Process(target=serve, daemon=True, args=given)
        self.process.start()
        other_end.close()
        try:
            self.pipe.recv()
            self.is_ready = True
        except EOFError:
            self.is_ready = False

    def ask(self, question: str):
        """The answer, when it is there; None if the process has ended with an error."""
        try:
            self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, BrokenPipeError):
            return None

    def stop(self) -> None:
        """End the process: its memory is free when this returns."""
        try:
            self.pipe.send("stop")
        except BrokenPipeError:
            pass  # it has ended
        self.process.join()


def answers_of(
    names: list[str], shape: str, vocabulary: int, stage: str, args
) -> Iterator[tuple[str, dict]]:
    """(name, its seconds per turn, shares and peak). On a CPU all together, in turns; on a GPU one
    after the other, each as soon as it is measured."""
    groups = [names]
    if args.device == "cuda":
        groups = [[name] for name in names]
    for group in groups:
        ready = {}
        for who in group:
            contender = Contender(who, shape, vocabulary, stage, args)
            if contender.is_ready:
                ready[who] = contender
            elif who == "nanowhale":
                raise cli.UserError("nanowhale's own step ended with the error above "
                                    f"({shape}, {stage})")
            else:
                print(f"left out: {who}, which ended with an error")
        timed = {who: partial(contender.ask, "seconds") for who, contender in ready.items()}
        times = measure.interleaved(timed, args.runs)
        for who, contender in ready.items():
            answer = {"seconds": times[who], "shares": contender.ask("shares"), "peak": None}
            if args.device == "cuda":
                answer["peak"] = contender.ask("peak")
            contender.stop()
            if answer["shares"] is None or None in times[who]:
                turns = len(times[who])
                print(f"left out: {who}, which ended with an error after {turns} turns at most")
            else:
                yield who, answer


def rows_of(shape: str, vocabulary: int, stage: str, args) -> Iterator[dict]:
    """The rows of one shape, vocabulary and stage. nanowhale's comes first: the others are compared
    with it."""
    config = model.Config(vocab_size=vocabulary, **SHAPES[shape])
    names = ["nanowhale", *args.against]
    if stage == "lora":  # transformers has none of its own
        names = [who for who in names if "transformers" not in who]
    flops_of = (config, stage, lora_rank_of(config), args.seq_len)
    model_flops = plan.flops_per_token(*flops_of)
    executed_flops = plan.flops_per_token(*flops_of, args.recompute)
    tokens = args.batch * args.accumulation * args.seq_len
    rate = plan.matmul_rate(args.device, getattr(torch, args.dtype))
    mine = None
    for who, answer in answers_of(names, shape, vocabulary, stage, args):
        if mine is None:
            mine = answer["seconds"]
        median, low, high = measure.quantiles(answer["seconds"])
        ratios = [other / own for own, other in zip(mine, answer["seconds"], strict=True)]
        row = {
            "shape": shape,
            "vocabulary": vocabulary,
            "stage": stage,
            "who": who,
            "tokens per second": tokens / median,
            "20 %": tokens / high,
            "80 %": tokens / low,
            "nanowhale is faster by": measure.quantiles(ratios)[0],
            "mfu": model_flops * tokens / median / rate,
            "hfu": executed_flops * tokens / median / rate,
        }
        if args.device == "cuda":
            row["peak GB"] = answer["peak"]
            row["planned GB"] = None
            if who == "nanowhale":
                row["planned GB"] = planned_peak(config, stage, args) / 1e9
        shares = [f"{kind} {share:.0%}" for kind, share in answer["shares"].items()]
        row["time"] = ", ".join(shares)
        yield row


def planned_peak(config: model.Config, stage: str, args) -> int:
    """Bytes that a step holds at most, says common/plan.py."""
    cost = plan.cost(
        config,
        plan.Stage(stage, 1, args.lr),
        lora_rank_of(config),
        args.seq_len,
        getattr(torch, args.dtype),
        args.optimizer,
        micro_batch=args.batch,
        accumulation=args.accumulation,
        recompute=args.recompute,
        device="cuda",
    )
    return cost["peak"]


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser(description=__doc__, prog="bench.train_step")
    flag = parser.add_argument
    flag("--shapes", nargs="+", default=None, choices=list(SHAPES),
         help="default: base-en on a CPU, 1.1B on a GPU")
    flag("--vocabularies", nargs="+", type=int, default=[49152], help="rows of embedding and head")
    flag("--stages", nargs="+", default=["full"],
         help="what is trained: embed odd even body lora full")
    flag("--against", nargs="*",
         default=["transformers", "transformers, memory kept", "nanowhale, sharded"],
         help="transformers, 'transformers + liger', 'transformers, memory kept', "
              "'nanowhale, sharded'")
    flag("--batch", type=int, default=8, help="windows per micro-batch")
    flag("--accumulation", type=int, default=1, help="micro-batches per step")
    flag("--seq_len", type=int, default=512, help="tokens per window")
    flag("--optimizer", default="adamw", choices=list(plan.MASTER),
         help="nanowhale's; the others have fused AdamW")
    flag("--lr", type=float, default=1e-5, help="learning rate, constant")
    flag("--recompute", default="none", choices=plan.RECOMPUTE,
         help="activations computed again")
    flag("--compile", action="store_true", help="torch.compile nanowhale's blocks")
    flag("--runs", type=int, default=5, help="turns")
    flag("--name", default=None, help="of the result file (default: train_step-DEVICE)")
    cli.add_device(parser)
    return parser


def main() -> None:
    """Time every shape, vocabulary and stage."""
    args = make_parser().parse_args()
    for stage in args.stages:
        plan.parse_stage(f"{stage}:1k:1e-5")
    cli.set_device(args)
    args.threads = torch.get_num_threads()
    if not args.shapes:
        args.shapes = ["1.1B"] if args.device == "cuda" else ["base-en"]
    multiprocessing.set_start_method("spawn")

    conditions = measure.machine("transformers", "liger-kernel")
    for name in ("batch", "accumulation", "seq_len", "dtype", "optimizer", "recompute", "compile",
                 "runs"):
        conditions[name] = getattr(args, name)
    device = (conditions["gpu"] or "cpu").replace(" ", "-")
    result = args.name or f"train_step-{device}"

    rows = []
    for shape in args.shapes:
        for vocabulary in args.vocabularies:
            for stage in args.stages:
                for row in rows_of(shape, vocabulary, stage, args):
                    rows.append(row)
                    print(measure.line(row), flush=True)
                    measure.save(result, rows, conditions)
    measure.report(result, rows, conditions)
    if not all(math.isfinite(row["tokens per second"]) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
