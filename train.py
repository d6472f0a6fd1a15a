"""Staged continual pretraining: the RedWhale recipe (2408.11294, section 3.4) in one flat loop.

Each stage trains a part of the model on the same stream of data, from the model directory that the stage before it
wrote, and writes one itself. A stage is therefore a unit that can be restarted, swapped or run alone:

    start directory → load → freeze → train → RUN/stages/N-what/ → the next stage's start directory

    python train.py                                  # the built-in world, after `bash speedrun.sh --prepare`
    python train.py --model DIR --data KO=0.75 EN=0.25 --out RUN --stages embed:200M:2e-4 odd:300M:1e-4 \\
                    even:300M:1e-4 lora:200M:1e-4    # on your own weights and shards; full:1B:1e-4 is the plain way
    python train.py --config F --tokenizer T ...     # from scratch: random weights of a shape
    python train.py --plan ...                       # what each stage trains, in bytes and FLOPs; allocates nothing
    python train.py --resume RUN                     # goes on where RUN stopped, bit for bit on a CPU

RUN holds config.json (the settings), metrics.jsonl (a line a step), checkpoints/, stages/, and at the end model/.
"""
import argparse
import gc
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

import data
import kernels
import model
import tokenizer
from common import checkpoint, cli, parallel, plan
from common.cli import UserError
from common.stage import Updates, begin, finish, load_stage, make_optimizer, publish

PROMPTS = ("대한민국의 수도는", "The capital of Korea is")  # the first: "the capital of the Republic of Korea is"
WORLD = ("out/grown", "embed:200k:1e-2", "odd:280k:8e-3", "even:270k:8e-3", "lora:50k:8e-3")  # model, stages
NOT_SAVED = ("resume", "plan", "world_size", "out")  # everything else is in RUN/config.json
SIZE, SHARE = (0, math.inf), (0, 1)
LIMITS = {"seq_len": SIZE, "batch_tokens": SIZE, "micro_batch": SIZE, "warmup": SHARE, "min_lr": SHARE, "clip": SIZE,
          "weight_decay": SIZE, "lora_rank": SIZE, "lora_alpha": SIZE, "seed": (0, 2**32 - 1), "eval_every": SIZE,
          "eval_bytes": (1, math.inf), "save_every": (1, math.inf), "keep": (1, math.inf)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags. Their defaults train the recipe on the built-in world."""
    p = cli.Parser(description=__doc__, prog="train.py")
    flag = p.add_argument
    flag("--model", default=None, help="model directory to start from (default: out/grown)")
    flag("--config", default=None, help="config.json of a model to start from random weights, in place of --model")
    flag("--tokenizer", default=None, help="tokenizer.model that goes with --config")
    flag("--data", nargs="+", default=["out/shards/ko=0.75", "out/shards/en=0.25"], metavar="SHARDS=WEIGHT",
         help="folders of token shards and their shares of the windows; 0.5:0.9 moves from one to the other in a stage")
    flag("--order", default="shuffled", choices=["shuffled", "as_packed"], help="of a source's windows in each epoch")
    flag("--out", default="out/run", help="run folder to write")
    flag("--stages", nargs="+", metavar="WHAT:TOKENS:PEAK_LR", help="what: embed new_rows odd even body lora full sft, "
         f"or a union (odd+embed); the built-in world has {' '.join(WORLD[1:])}, a model of yours is asked for its own")
    flag("--seq_len", type=int, default=0, help="tokens a window; 0: the model's positions, at most 2048")
    flag("--batch_tokens", type=int, default=0, help="tokens an optimizer step; 0: 16 windows")
    flag("--micro_batch", type=int, default=0, help="windows a forward pass; 0: about 16,384 tokens")
    flag("--warmup", type=float, default=0.01, help="share of a stage's steps with a rising learning rate")
    flag("--schedule", default="cosine", choices=["cosine", "wsd"], help="wsd: constant, then a linear last fifth")
    flag("--min_lr", type=float, default=0.1, help="final learning rate, as a share of the peak")
    flag("--weight_decay", type=float, default=0.1, help="on the layers' matrices; never on norms, embedding, head")
    flag("--betas", type=float, nargs=2, default=[0.9, 0.95], help="Adam's decay rates")
    flag("--clip", type=float, default=1.0, help="largest norm of the whole gradient; 0: no clipping")
    flag("--optimizer", default="adamw", choices=["adamw", "adamw_bf16"],
         help="adamw: float32, 16 bytes a trained parameter with its gradient; adamw_bf16: 8 (kernels/adamw.py)")
    flag("--update_in_backward", action="store_true",
         help="use and free each gradient as soon as it exists: the memory of one instead of all. One process and one "
              "micro-batch a step; --clip holds for each tensor by itself; a tensor whose gradient is not finite is "
              "left as it was, others may have moved, and the run stops")
    flag("--lora_rank", type=int, default=0, help="0: a 32nd of the hidden size, which is 128 at 10.7B; at least 16")
    flag("--lora_alpha", type=float, default=0, help="a LoRA counts alpha / rank times; 0: as the rank, so once")
    flag("--eval_every", type=int, default=0, help="steps between validations; 0: at the ends of stages only")
    flag("--eval_bytes", type=int, default=1_000_000, help="bytes of validation text, at most, of each source")
    flag("--save_every", type=int, default=500, help="steps between checkpoints")
    flag("--keep", type=int, default=2, help="newest checkpoints kept")
    flag("--recompute", default="none", choices=["none", "attention", "full"],
         help="activations that are computed again instead of kept: attention's, or all inside a block")
    flag("--compile", action="store_true", help="torch.compile each block: a minute at the start, faster steps")
    flag("--kernels", default="auto", choices=["auto", *kernels.IMPLEMENTATIONS], help="implementation of kernels/")
    flag("--seed", type=int, default=0, help="of the data order, the LoRA's and random weights")
    flag("--deterministic", action="store_true", help="bit-exact on a GPU too, and slower")
    flag("--plan", action="store_true", help="print the tables of stages and stop; allocates nothing")
    flag("--world_size", type=int, default=0, help="processes that --plan plans for; 0: those that run")
    flag("--resume", default=None, metavar="RUN", help="go on with this run, with its own settings")
    cli.add_device(p)
    args = p.parse_args(argv)
    if args.resume is not None:
        given = [a for a in (sys.argv[1:] if argv is None else argv) if a.startswith("--")]
        if len(given) > 1:
            raise UserError(f"--resume takes its settings from {args.resume}/config.json; leave the other flags away")
        saved = cli.read_json(Path(args.resume) / "config.json")
        if not isinstance(saved, dict) or set(saved) != set(vars(args)) - set(NOT_SAVED):
            raise UserError(f"{args.resume}/config.json does not hold the settings of a run; is it a run folder?")
        words = [[f"--{name}", *map(str, value if isinstance(value, list) else [value] * (value is not True))]
                 for name, value in saved.items() if value is not None and value is not False]
        args = p.parse_args(sum(words, []), argparse.Namespace(resume=args.resume, out=args.resume))  # checked as flags
        cli.set_device(args)
        return args
    if args.config and args.model or args.tokenizer and not args.config:
        raise UserError("--config and --tokenizer start from random weights, --model has its own tokenizer; choose one")
    if args.config and not (args.tokenizer or args.plan):
        raise UserError("--config needs --tokenizer: the tokenizer.model that the shards were packed with")
    if not (args.stages or args.plan) and (args.config or args.model not in (None, WORLD[0])):
        raise UserError("--stages: what to train, for how long, how fast? Such as embed:200M:2e-4 odd:300M:1e-4; the "
                        "built-in world's own rates would ruin a trained model")
    args.stages = args.stages or list(WORLD[1:])
    args.model = args.model or (None if args.config else WORLD[0])
    if args.world_size < 0 or args.world_size and not args.plan:
        raise UserError(f"--world_size {args.world_size}: a number of processes for --plan; torchrun starts real ones")
    if args.plan and args.device == "cuda":
        args.dtype = args.dtype or "bfloat16"  # a laptop may plan for a GPU
    else:
        cli.set_device(args)
    return args


def micro_batch(args: argparse.Namespace) -> int:
    """Windows of a forward pass: as asked, or about 16,384 tokens; the latter too where a run is resumed by a number of
    processes among which what was asked does not divide."""
    share = args.batch_tokens // args.seq_len // processes(args)
    if args.micro_batch and not (args.resume and share % args.micro_batch):
        return args.micro_batch
    most = share if args.update_in_backward else 2**14 // args.seq_len
    return max(n for n in range(1, max(1, most) + 1) if max(1, share) % n == 0)


def processes(args: argparse.Namespace) -> int:
    """The number of processes that train, or that are planned for."""
    return args.world_size or parallel.size()


def derive(args: argparse.Namespace, config: model.Config) -> None:
    """Check the numbers, fill in those left at 0, and see that they divide: what can be derived is not asked for."""
    for name, (low, high) in LIMITS.items():
        if not low <= getattr(args, name) <= high:
            raise UserError(f"--{name} {getattr(args, name)} is not between {low} and {high}")
    if not all(0 <= beta < 1 for beta in args.betas):
        raise UserError(f"--betas {args.betas}: each lies between 0 and 1, such as 0.9 0.95")
    args.seq_len = args.seq_len or min(config.max_position_embeddings, 2048)
    if args.seq_len > config.max_position_embeddings:
        raise UserError(f"--seq_len {args.seq_len} is more than the model's {config.max_position_embeddings} positions")
    args.lora_rank = args.lora_rank or max(16, config.hidden_size // 32)
    if args.lora_rank > config.hidden_size:
        raise UserError(f"--lora_rank {args.lora_rank} is more than the model's width, {config.hidden_size}")
    args.lora_alpha = args.lora_alpha or args.lora_rank
    args.batch_tokens = args.batch_tokens or 16 * args.seq_len
    windows, rest = divmod(args.batch_tokens, args.seq_len)
    if rest or not windows:
        raise UserError(f"--batch_tokens {args.batch_tokens} is not a multiple of --seq_len {args.seq_len}")
    n, micro = processes(args), micro_batch(args)
    if args.update_in_backward and (n > 1 or micro != windows):
        raise UserError("--update_in_backward cannot wait for gradients of other micro-batches or processes; give one "
                        f"process --micro_batch {windows}, or a smaller --batch_tokens")
    if windows % (micro * n):
        raise UserError(f"--batch_tokens {args.batch_tokens} is {windows} windows of {args.seq_len} tokens, not a "
                        f"multiple of --micro_batch {micro}" + f" times {n} processes" * (n > 1))


def sources(args: argparse.Namespace, config: model.Config, tokenizer_file: Path) -> tuple[dict, list[tuple]]:
    """The shards by name, and their weights (first and last), checked against the model's tokenizer. UserError names a
    misfit."""
    shards, weights = {}, []
    for entry in args.data:
        folder, _, weight = entry.partition("=")
        try:
            ends = [float(w) for w in (weight or "1").split(":")]
        except ValueError:
            ends = []
        if len(ends) not in (1, 2):
            raise UserError(f"--data {entry}: {weight!r} is not a weight; write FOLDER=0.75, or FOLDER=0.5:0.9")
        if not (min(ends) >= 0 and max(ends) > 0):
            raise UserError(f"--data {entry}: a weight is above 0")
        weights.append((ends[0], ends[-1]))
        source = data.Shards(folder, verify=parallel.rank() == 0)  # one process reads it all; the others look at sizes
        if source.tokenizer_sha256 != cli.sha256(tokenizer_file):
            raise UserError(f"{folder} was packed with another tokenizer than {tokenizer_file}; pack it again with "
                            f"data.py pack --tokenizer {tokenizer_file}")
        if source.index["vocab_size"] > config.vocab_size:
            raise UserError(f"{folder} has ids up to {source.index['vocab_size']}, the model {config.vocab_size} rows; "
                            "grow it with init.py")
        if source.windows(args.seq_len) < 1:
            raise UserError(f"{folder} holds {source.tokens} tokens, less than one window of {args.seq_len}")
        name = Path(folder).name if Path(folder).name not in shards else folder
        if name in shards:
            raise UserError(f"--data names {folder} twice; add its weights up")
        shards[name] = source
    return shards, weights


def learning_rate(step: int, steps: int, peak: float, args: argparse.Namespace) -> float:
    """The rate of a stage's step 0 … steps-1: a linear rise, then cosine decay, or constant with a linear end (wsd)."""
    warmup = max(1, round(args.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)  # 0 … 1
    fall = (1 + math.cos(math.pi * done)) / 2 if args.schedule == "cosine" else min(1.0, (1 - done) / 0.2)
    return peak * (args.min_lr + (1 - args.min_lr) * fall)


@torch.compiler.set_stance("force_eager")  # lengths differ from batch to batch: compiling would never end
def validate(llama, shards: dict, sp, args, stage: int, step: int, tokens: int, log) -> None:
    """Bits per byte of every source that has validation documents, and how the model goes on from two beginnings: one
    line of metrics, and three on the screen."""
    scores = {name: data.bits_per_byte(llama, source, args.seq_len, args.eval_bytes, device=args.device)
              for name, source in shards.items() if source.index["val"]["documents"]}
    samples = {}
    for prompt in PROMPTS:
        start = torch.tensor([tokenizer.encode(sp, prompt, bos=True)], device=args.device)
        n = min(24, llama.config.max_position_embeddings - start.shape[1])
        ids = llama.generate(start, n, temperature=0)[0].tolist()  # to the end in every process, and cut at EOS after
        ids = ids[:ids.index(sp.eos_id())] if sp.eos_id() in ids else ids
        samples[prompt] = sp.decode([i for i in ids if i < sp.get_piece_size()])
    log({"stage": stage, "step": step, "tokens": tokens, "validation": scores, "samples": samples})
    say(f"stage {stage} step {step}: " + "  ".join(
        f"{name} {s['bits_per_byte']:.4f} bits a byte (loss {s['loss']:.4f})" for name, s in scores.items()))
    for text in samples.values():
        say("    " + " ".join(text.split()))


def say(line: str) -> None:
    """Print, once, whatever the number of processes."""
    if parallel.rank() == 0:
        tqdm.write(line)


def batches(loader: data.Loader, n: int, windows: int, device: str) -> Iterator[tuple]:
    """The next n batches, each made ready while the device works on the one before: this process's rows on the device,
    the source of each, the tokens to predict in the whole batch (known before its first backward), and the loader's
    state after it, for a checkpoint."""
    share = windows // parallel.size()
    mine = slice(parallel.rank() * share, (parallel.rank() + 1) * share)
    for _ in range(n):
        inputs, targets, origin = loader.next(windows, mine)                        # (share, seq_len) each
        count = max(1, parallel.all_reduce_sum((targets != -100).sum())[0])
        inputs, targets = torch.from_numpy(inputs), torch.from_numpy(targets)
        if device == "cuda":
            inputs = inputs.pin_memory().to(device, non_blocking=True)
            targets = targets.pin_memory().to(device, non_blocking=True)
        yield inputs, targets, origin, count, loader.state_dict()


def start_reading(x: torch.Tensor) -> Callable[[], list[float]]:
    """Start to copy x (n,) from the device. Returns a function that waits for just this copy, not for what the device
    was given to do after it, and returns the n numbers."""
    copy = x.to("cpu", non_blocking=True)
    if not x.is_cuda:
        return copy.tolist
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return copy.tolist()
    return read


def blame(llama, inputs: torch.Tensor, targets: torch.Tensor, origin, names: list[str]) -> str:
    """The source of the first window of a batch whose own loss is not finite; said when a run is stopped for it."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        finite = [bool(llama(*window)[0].isfinite()) for window in zip(inputs.split(1), targets.split(1), strict=True)]
    bad = parallel.gather(names[source] for source, good in zip(origin, finite, strict=True) if not good)
    return f"a window of {bad[0]}" if bad else (
        "a gradient (every window's loss is finite), so the learning rate may be too high")


def train_stage(number: int, stage: plan.Stage, start: Path, run: Path, shards: dict, loader: data.Loader,
                sp, args: argparse.Namespace, stop: checkpoint.StopSignal, before: int) -> int:
    """Train one stage from `start` and write its directory; `before` tokens were trained in earlier stages.

    Returns the tokens trained in all. Exits with 0 after a checkpoint if a signal asked to stop."""
    gc.collect()  # FSDP's modules refer to each other: without this the last stage's model lives on beside the new one
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    llama = load_stage(stage, start, args, number)
    optimizer = make_optimizer(llama, args)
    updates = Updates(llama, optimizer, stage, args)
    steps = max(1, round(stage.tokens / args.batch_tokens))
    windows, names, metrics = args.batch_tokens // args.seq_len, list(shards), run / "metrics.jsonl"
    flops = [plan.flops_per_token(llama.config, stage.what, args.lora_rank, args.seq_len, recompute)
             for recompute in ("none", llama.recompute)]
    peak = plan.matmul_rate(args.device, getattr(torch, args.dtype)) * parallel.size()
    found, first = parallel.broadcast(parallel.on_rank_zero(lambda: args.resume and checkpoint.newest(run, number))), 0
    if found:
        folder, counters = found
        checkpoint.load(folder, llama, optimizer)
        loader.load_state_dict(counters["loader"])
        first = counters["step"]
        say(f"going on from {folder}")
    else:
        loader.begin_stage(steps * windows)
    parallel.on_rank_zero(lambda: checkpoint.rewind_metrics(metrics, number, first if first else -1))

    def log(record: dict) -> None:
        if parallel.rank() == 0:
            with open(metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    if number == 1 and first == 0:
        validate(llama, shards, sp, args, number, 0, before, log)
    bar = tqdm(range(first, steps), f"{number}-{stage.what}", steps, initial=first, unit="step", mininterval=1,
               disable=parallel.rank() > 0)
    upcoming = batches(loader, steps - first, windows, args.device)
    batch = next(upcoming)
    for step in bar:
        began = time.perf_counter()
        inputs, targets, origin, count, position = batch
        lr = learning_rate(step, steps, stage.peak_lr, args)
        for group in optimizer.param_groups:
            group["lr"] = lr
        total = torch.zeros((), device=args.device)
        size = micro_batch(args)
        for micro in zip(inputs.split(size), targets.split(size), strict=True):
            loss, _ = llama(*micro)
            (loss / count).backward()
            total += loss.detach()
        # The GPU is given its update before Python looks at the loss, or it would stand still meanwhile. So the GPU
        # itself decides: where the loss or the norm is not finite, the update leaves weights and moments as they are.
        norm = updates.norm()
        not_finite = parallel.anywhere((~(total + norm).isfinite()).float())
        read_figures = start_reading(torch.stack((total, norm)))
        updates.apply(not_finite)
        batch = next(upcoming, None)
        mean_loss, grad_norm = read_figures()                                       # the step's one wait
        # A signal may reach one process only.
        mean_loss, stopping = parallel.all_reduce_sum(mean_loss / count, stop.asked)
        if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
            bar.close()
            raise UserError(f"stage {number} step {step + 1}: loss {mean_loss}, gradient norm {grad_norm}; the cause "
                            f"is {blame(llama, inputs, targets, origin, names)}. "
                            + ("Tensors of finite gradients have been updated" if args.update_in_backward else
                               "Nothing was updated") + ". Look at the data there, or "
                            f"start this stage anew (another --out) from {start} with a lower learning rate")
        done, seconds = step + 1, time.perf_counter() - began
        tokens = before + done * args.batch_tokens
        speed = args.batch_tokens / seconds
        memory = (torch.cuda.max_memory_allocated() if args.device == "cuda"
                  else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        log({"stage": number, "step": done, "tokens": tokens, "loss": mean_loss, "lr": lr, "grad_norm": grad_norm,
             "tokens_per_second": speed, "mfu": speed * flops[0] / peak, "hfu": speed * flops[1] / peak,
             "peak_memory": memory})
        bar.set_postfix_str(f"loss {mean_loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        if args.eval_every and done % args.eval_every == 0 and done < steps:
            validate(llama, shards, sp, args, number, done, tokens, log)
        if done < steps and (stopping or done % args.save_every == 0):
            state = {"stage": number, "step": done, "tokens": tokens, "loader": position}
            checkpoint.save(run, llama, optimizer, state, args.keep)
        if stopping and done < steps:
            say(f"\nstopped after stage {number} step {done}; go on with: train.py --resume {run}")
            sys.exit(0)
    validate(llama, shards, sp, args, number, steps, tokens, log)
    finish(llama, stage, start, run / "stages" / f"{number}-{stage.what}", args,
           {"stage": number, "tokens": tokens, "loader": loader.state_dict()})
    return tokens


def main(argv: list[str] | None = None) -> None:
    """Parse, check everything that can be checked before the first step, then train stage after stage."""
    args = parse(argv)
    stages = [plan.parse_stage(text) for text in args.stages]
    config = model.Config.read(args.config or args.model)
    derive(args, config)
    settings = cli.settings(args)
    windows, micro, n = args.batch_tokens // args.seq_len, micro_batch(args), processes(args)
    say(plan.table(config, stages, args.lora_rank, args.seq_len, getattr(torch, args.dtype), args.optimizer,
                   micro_batch=micro, accumulation=windows // (micro * n), world_size=n, recompute=args.recompute,
                   device=args.device, update_in_backward=args.update_in_backward))
    if args.plan:
        return
    if not args.out:
        raise UserError("--out is empty: name the run folder")
    run, tokenizer_file = Path(args.out), Path(args.tokenizer or Path(args.model) / "tokenizer.model")
    sp = tokenizer.load(tokenizer_file)
    shards, weights = sources(args, config, tokenizer_file)
    if any("sft" in stage.parts for stage in stages) and not any(source.index["given"] for source in shards.values()):
        raise UserError("an sft stage needs shards of prompts and responses: data.py pack --prompt_field F "
                        "--response_field F")
    if any("new_rows" in stage.parts for stage in stages) and config.base_vocab_size is None:
        raise UserError(f"a new_rows stage needs base_vocab_size in {args.model}/config.json; init.py writes it")
    if not args.resume and (run / "metrics.jsonl").exists():
        raise UserError(f"{run} is a run already; --resume {run} goes on with it, or choose another --out")
    kernels.use(args.kernels, args.device)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it before it promises anything
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    torch.use_deterministic_algorithms(args.deterministic)
    loader = data.Loader(list(shards.values()), weights, args.seq_len, args.seed, args.order == "as_packed")
    tokens = 0
    with parallel.process_group(args.device), checkpoint.lock(run), checkpoint.StopSignal() as stop:
        start = begin(args, run)

        def note():
            inputs = [source.folder / "index.json" for source in shards.values()] + sorted(start.glob("*.safetensors"))
            checkpoint.check_inputs(run, inputs, resumed=bool(args.resume))
            cli.write_json(run / "config.json", {k: v for k, v in settings.items() if k not in NOT_SAVED})

        parallel.on_rank_zero(note)
        for number, stage in enumerate(stages, 1):
            folder = run / "stages" / f"{number}-{stage.what}"
            if parallel.broadcast(folder.exists()):  # finished before this run was stopped
                state = cli.read_json(folder / "training_state.json")
                tokens = state["tokens"]
                loader.load_state_dict(state["loader"])
            else:
                tokens = train_stage(number, stage, start, run, shards, loader, sp, args, stop, tokens)
            start = folder
            if parallel.all_reduce_sum(stop.asked)[0] and number < len(stages):
                return say(f"stopped after stage {number}; go on with: train.py --resume {run}")
        publish(start, run)
    say(f"{tokens:,} tokens trained; the model is in {run / 'model'}")


if __name__ == "__main__":
    cli.run(main)
