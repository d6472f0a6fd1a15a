"""Staged continual pretraining: the RedWhale recipe (arXiv 2408.11294, section 3.4) in a flat loop.

Each stage trains a part of the model on the same stream of data. It starts from the model directory
that the previous stage wrote and ends by writing one itself, so a stage can be restarted, swapped
or run alone:

    start directory → load → freeze → train → RUN/stages/N-what/ → the next stage's start directory

A stage is given as WHAT:TOKENS:PEAK_LR, such as embed:200M:2e-4. WHAT is a union (odd+embed) of

    embed       the input embedding and the head
    new_rows    only those of their rows that init.py added
    odd, even   every other layer, counted from 0
    body        all layers and the final norm
    lora        a LoRA beside every matrix of every layer
    full        everything
    sft         everything, on the responses of dialogues

A run needs a model directory, and token shards that were packed with its tokenizer (data.py pack).

    # the built-in world, after `bash speedrun.sh --prepare`
    python train.py
    # your own weights and shards; full:1B:1e-4 would train everything at once
    python train.py --model DIR --data KO=0.75 EN=0.25 --out RUN \\
        --stages embed:200M:2e-4 odd:300M:1e-4 even:300M:1e-4 lora:200M:1e-4
    # from scratch: random weights of a given shape
    python train.py --config F --tokenizer T ...
    # memory, FLOPs, hours and disk of a run, without training
    python train.py --plan --gpu H100 ...
    # continue where RUN stopped: bit for bit on a CPU
    python train.py --resume RUN
    # ... and train longer, with another learning rate, or more stages (common/resume.py)
    python train.py --resume RUN --stages embed:200M:2e-4 odd:900M:5e-5 full:100M:2e-5
    # a new run on what RUN has not seen of the same shards
    python train.py --model RUN/model --skip_seen RUN ...

RUN then holds:

    config.json        the settings, and the directory that their relative paths start from
    inputs.json        SHA-256 of the initial weights and of each source's index
    loader.json        where in the data the run begins
    metrics.jsonl      a line per step, per validation, and where a stage begins or resumes
    checkpoints/       STAGE-STEP, the newest two; none when the run is finished (see --keep)
    stages/N-what/     a model directory; after a LoRA stage also adapter/, which PEFT opens
    model/             at the end: the model directory of the last stage

Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP let the current step finish and save a checkpoint.

- After Ctrl-C the exit status is 130, as shells expect, so a script that runs train.py stops too.
  A second Ctrl-C kills the program.
- After the other signals, which schedulers and terminals send, the exit status is 0 (torchrun
  itself exits with 1). Under `nohup`, SIGHUP is ignored.
- After a mistake in the flags or the data, which is reported in one line, the exit status is 2.

SLURM sends SIGUSR1 to what srun started, here 300 seconds before the time limit. By default
torchrun dies of this signal and leaves its workers behind, and it undoes nohup. Tell it which
signals to forward:

    #SBATCH --signal=USR1@300
    srun python train.py ...
    srun torchrun --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 train.py ...
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

import data
import export
import kernels
import model
import tokenizer
from common import budget, checkpoint, cli, notices, parallel, plan, resume, sources
from common.checkpoint import stage_folder
from common.cli import UserError, say
from common.progress import Progress

# The defaults: the model that `bash speedrun.sh --prepare` makes, and the stages that suit it.
WORLD_MODEL = "out/grown"
WORLD_STAGES = ["embed:220k:1e-2", "odd:310k:8e-3", "even:310k:8e-3", "lora:60k:8e-3"]

# The model continues these at every validation. The first is "The capital of South Korea is".
PROMPTS = ("대한민국의 수도는", "The capital of Korea is")

# Tokens per micro-batch, about, if --micro_batch is 0.
MICRO_BATCH_TOKENS = 2**14


# --------------------------------------------------------------------- what a stage trains, and how


def load_stage(
    stage: plan.Stage, start: Path, args: argparse.Namespace, number: int
) -> model.Llama:
    """Load the model in directory `start` for a stage. What the stage trains is in the optimizer's
    dtype (float32 master weights, or bfloat16); the rest is frozen and in the compute dtype."""
    compute_dtype = getattr(torch, args.dtype)
    master_dtype = plan.MASTER[args.optimizer]

    def dtype_of(name: str) -> torch.dtype:
        if plan.is_trained(name, stage.what):
            return master_dtype
        return compute_dtype

    # model.load calls this before it allocates memory, so a process of a sharded run never holds
    # more than its own rows.
    def before_load(llama: model.Llama) -> None:
        if "lora" in stage.parts:
            model.add_lora(llama, args.lora_rank, args.lora_alpha, master_dtype)
        for name, p in llama.named_parameters():
            p.requires_grad_(plan.is_trained(name, stage.what))
        if args.compile:
            # Block by block: the blocks are alike, so one compilation serves all.
            for block in llama.model.layers:
                block.compile(dynamic=False)
        if parallel.size() > 1:
            parallel.shard(llama, compute_dtype)

    llama = model.load(start, args.device, dtype_of, before_load)
    model.start_lora(llama, args.device, args.seed + number)
    llama.compute_dtype = compute_dtype
    llama.recompute = args.recompute
    return llama


def make_optimizer(llama: model.Llama, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW over the trained parameters. Only the layers' matrices have weight decay, because the
    scale of norms, embedding and head carries meaning."""
    decayed = []
    not_decayed = []
    for name, p in llama.named_parameters():
        if not p.requires_grad:
            continue
        if p.dim() == 2 and name not in plan.TABLES:
            decayed.append(p)
        else:
            not_decayed.append(p)

    # A stage may leave one of the two empty.
    groups = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": args.weight_decay})
    if not_decayed:
        groups.append({"params": not_decayed, "weight_decay": 0.0})

    # The loop sets the learning rate at every step. adamw_bf16 rounds stochastically, so it needs a
    # seed.
    betas = tuple(args.betas)
    if args.optimizer == "adamw_bf16":
        return kernels.AdamW(
            groups, lr=0.0, betas=betas, seed=args.seed, local_rows=parallel.local_rows
        )
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def learning_rate(step: int, steps: int, peak: float, args: argparse.Namespace) -> float:
    """The learning rate at a step, 0 … steps - 1, of a stage: a linear warmup, then a cosine decay;
    or, with --schedule wsd, a constant rate and a linear decay over the last fifth."""
    # Adam's moments start empty, so its first steps are the least reliable: make them small.
    warmup_steps = max(1, round(args.warmup * steps))
    if step < warmup_steps:
        # With step instead of step + 1, the first rate would be 0 and the weights would not move.
        return peak * (step + 1) / warmup_steps

    # Then decay from the peak to --min_lr times the peak.
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)  # 0 … 1
    if args.schedule == "cosine":
        fall = (1 + math.cos(math.pi * done)) / 2
    else:
        fall = min(1.0, (1 - done) / 0.2)
    return peak * (args.min_lr + (1 - args.min_lr) * fall)


def batches(
    loader: data.Loader, n: int, windows: int, micro_batch: int, device: str,
    document_mask: bool = False,
) -> Iterator[tuple]:
    """Yield the next n batches of `windows` windows, each as (parts, source_of, count, state).

    parts: the micro-batches of this process's share, as arguments of the model: (inputs, targets),
        each (micro_batch, seq_len) on the device, and model.Documents with `document_mask`.
    source_of: (rows,) the source of each window of the share.
    count: the number of targets in the whole batch, over all processes. The loss is divided by it,
        so it must be known before the first backward pass.
    state: the loader's state after this batch, for a checkpoint.
    """
    # All processes ask for the whole batch, so they agree on the order; each reads only its rows.
    share = windows // parallel.size()
    first = parallel.rank() * share
    # All sources were packed with the same tokenizer (open_sources), so they have the same BOS.
    bos = loader.sources[0].index["bos_token_id"]
    for _ in range(n):
        inputs, targets, source_of = loader.next(windows, slice(first, first + share))
        counted = (targets != data.IGNORE).sum()
        # A batch of prompts alone has no target. Its loss is 0, which must not be divided by 0.
        count = max(1, parallel.all_reduce_sum(counted)[0])
        inputs = torch.from_numpy(inputs)                                   # (share, seq_len)
        targets = torch.from_numpy(targets)                                 # (share, seq_len)

        # Find the documents while the tokens are on the CPU: on a GPU Python would wait for it.
        documents = []
        if document_mask:
            documents = [model.find_documents(part, bos) for part in inputs.split(micro_batch)]

        if device == "cuda":
            # A copy from pinned memory is queued behind the GPU's work; for a copy from pageable
            # memory Python would wait.
            inputs = inputs.pin_memory().to(device, non_blocking=True)
            targets = targets.pin_memory().to(device, non_blocking=True)
            documents = [part.to(device) for part in documents]
        columns = [inputs.split(micro_batch), targets.split(micro_batch)]
        if document_mask:
            columns.append(documents)
        parts = list(zip(*columns, strict=True))
        yield parts, source_of, count, loader.state_dict()


def keep_old_rows(llama: model.Llama) -> None:
    """For a new_rows stage: zero the gradient of the rows of embedding and head that the base had.
    AdamW without weight decay does not move a row whose gradient has always been zero."""
    for table in (llama.model.embed_tokens.weight, llama.lm_head.weight):
        first, last = parallel.rows(table)  # the rows that this process holds
        old_here = max(0, min(last, llama.config.base_vocab_size) - first)
        parallel.local(table.grad)[:old_here] = 0


def gradient_norm(parameters: list[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients as one vector: a float32 scalar, still on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    # torch.nn.utils.get_total_norm would round it to bfloat16 if the gradients are bfloat16.
    norms = torch._foreach_norm(gradients, 2, torch.float32)
    return parallel.full_tensor(torch.stack(norms).norm())


def start_reading(x: torch.Tensor) -> Callable[[], list[float]]:
    """Start to copy x (n,) from the device. Returns a function that returns the n numbers. It waits
    only for this copy, not for what was queued on the device after it."""
    copy = x.to("cpu", non_blocking=True)
    if not x.is_cuda:
        return copy.tolist
    # An event marks a place in the device's queue: here, right after the copy.
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return copy.tolist()

    return read


# -------------------------------------------------------------------------------- the training loop


def train_stage(
    number: int, stage: plan.Stage, start: Path, run: Path, shards: dict[str, data.Shards],
    loader: data.Loader, vocabulary: tokenizer.Vocabulary, args: argparse.Namespace,
    stop: checkpoint.StopSignal, before: int
) -> int:
    """Train one stage from directory `start` and write the stage's own directory.

    before: the tokens of earlier stages. Returns that number plus this stage's. Exits after saving
    a checkpoint if a signal asked to stop. UserError for a loss or gradient that is not finite.
    """
    free_memory(args.device)
    llama = load_stage(stage, start, args, number)
    optimizer = make_optimizer(llama, args)
    trained = []
    for group in optimizer.param_groups:
        trained += group["params"]

    # Utilisation is relative to the speed of a large matmul on this machine. "mfu" counts the
    # model's own FLOPs, "hfu" also those that recomputation executes a second time.
    flops_of = (llama.config, stage.what, args.lora_rank, args.seq_len)
    model_flops = plan.flops_per_token(*flops_of)
    executed_flops = plan.flops_per_token(*flops_of, llama.recompute)
    peak_flops = plan.matmul_rate(args.device, getattr(torch, args.dtype)) * parallel.size()

    # Begin the stage, or resume it from its newest checkpoint.
    windows = args.batch_tokens // args.seq_len
    steps = stage.steps(args.batch_tokens)
    first_step = resume_or_begin(run, number, steps * windows, llama, optimizer, loader, args)
    metrics = run / "metrics.jsonl"
    tokens = before + first_step * args.batch_tokens
    tell_epochs(shards, loader, (steps - first_step) * windows, number, first_step, tokens, metrics)
    if number == 1 and first_step == 0:
        validate(llama, shards, vocabulary, args, number, 0, before, metrics)

    progress = Progress(f"{number}-{stage.what}", first_step, steps, args.batch_tokens)
    upcoming = batches(loader, steps - first_step, windows, windows_per_micro_batch(args),
                       args.device, args.document_mask)
    batch = next(upcoming)
    for step in progress:
        began = time.perf_counter()
        parts, source_of, count, loader_state = batch

        # The learning rate changes with every step.
        lr = learning_rate(step, steps, stage.peak_lr, args)
        for group in optimizer.param_groups:
            group["lr"] = lr

        # Forward and backward, one micro-batch at a time; the gradients accumulate in p.grad. Each
        # loss is a sum over targets, divided by the number of targets in the whole batch. So the
        # result does not depend on how the batch is split into micro-batches and processes.
        total = torch.zeros((), device=args.device)
        for part in parts:
            loss, _ = llama(*part)
            (loss / count).backward()
            total += loss.detach()
        if "new_rows" in stage.parts:
            keep_old_rows(llama)

        # Clip: scale the gradient down to the norm --clip if it is larger.
        norm = gradient_norm(trained)
        if args.clip:
            torch.nn.utils.clip_grads_with_norm_(trained, args.clip, norm)

        # Update. If Python read the loss before queueing the update, the GPU would idle. So the GPU
        # decides: where `found_inf` (PyTorch's name) is 1, the optimizer does nothing.
        not_finite = ~(total + norm).isfinite()
        optimizer.found_inf = parallel.anywhere(not_finite.float())
        read_figures = start_reading(torch.stack((total, norm)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # Prepare the next batch while the device works. Then wait for the loss and the norm: this
        # is the only point where a step waits for the device.
        batch = next(upcoming, None)
        loss_sum, grad_norm = read_figures()

        # So far both the loss and a signal may be of this process only: sum them over all.
        mean_loss, stopping = parallel.all_reduce_sum(loss_sum / count, stop.asked)
        if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
            progress.close()
            figures = f"loss {mean_loss}, gradient norm {grad_norm}"
            cause = find_cause(llama, parts, source_of, list(shards))
            raise UserError(f"stage {number} step {step + 1}: {figures}; the cause is {cause}. "
                            "Nothing was updated. Look at the data there, or continue with a lower "
                            f"learning rate for this stage: --resume {run} --stages ...")

        # One line of metrics per step.
        done = step + 1
        tokens = before + done * args.batch_tokens
        speed = args.batch_tokens / (time.perf_counter() - began)
        write_line(metrics, {
            "stage": number,
            "step": done,
            "tokens": tokens,
            "loss": mean_loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_second": speed,
            "mfu": speed * model_flops / peak_flops,
            "hfu": speed * executed_flops / peak_flops,
            "peak_memory": peak_memory(args.device),
        })
        progress.update(done, mean_loss, lr, speed)

        # Validate and save every so many steps. What follows the last step is below the loop.
        if done == steps:
            break
        if args.eval_every and done % args.eval_every == 0:
            validate(llama, shards, vocabulary, args, number, done, tokens, metrics)
        if stopping or done % args.save_every == 0:
            state = training_state(number, done, tokens, loader_state, shards)
            checkpoint.save(run, llama, optimizer, state, args.keep)
        if stopping:
            leave(stop, run, f"stage {number} step {done}")

    progress.close()
    validate(llama, shards, vocabulary, args, number, steps, tokens, metrics)
    state = training_state(number, steps, tokens, loader.state_dict(), shards)
    export.save_stage(llama, stage, start, stage_folder(run, number, stage), args, state)
    return tokens


# ---------------------------------------------------------------------------------- around the loop


def training_state(
    number: int, step: int, tokens: int, loader_state: dict, shards: dict[str, data.Shards]
) -> dict:
    """Where the run is after a step of stage `number`, for checkpoints and model directories. The
    loader's counts are valid only for the same data, so the hashes of the data go with them.

    loader_state: as of this step's batch. During a stage that is not loader.state_dict(), because
    the loader has drawn the next batch already; after the last step it is."""
    return {
        "stage": number,
        "step": step,
        "tokens": tokens,
        "loader": loader_state,
        "data": [source.sha256 for source in shards.values()],
    }


def write_line(file: Path, record: dict) -> None:
    """Append a record to metrics.jsonl. Korean is written as it is, not as escapes."""
    line = json.dumps(record, ensure_ascii=False)
    # A sample may contain these separators, and str.splitlines would split the line there.
    for separator in "\u0085\u2028\u2029":
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    if parallel.rank() == 0:
        with open(file, "a", encoding="utf-8") as metrics:
            metrics.write(line + "\n")


def peak_memory(device: str) -> int:
    """Peak memory in bytes: on a GPU what PyTorch held in this stage, on a CPU what this process
    has held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory(device: str) -> None:
    """Free the last stage's model before the next one is loaded."""
    # FSDP's modules refer to each other, so only the cycle collector frees them.
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def resume_or_begin(
    run: Path,
    number: int,
    windows: int,
    llama: model.Llama,
    optimizer: torch.optim.Optimizer,
    loader: data.Loader,
    args: argparse.Namespace,
) -> int:
    """Resume stage `number` from its newest checkpoint, or begin it if there is none or the run is
    new. The stage has `windows` windows. Returns the first step."""
    found = None
    if args.resume:
        found = parallel.on_rank_zero(lambda: checkpoint.newest(run, number))
        found = parallel.broadcast(found)

    first_step = 0
    last_kept = -1  # keep not even step 0, the validation before the first step
    if found:
        folder, counters = found
        checkpoint.load(folder, llama, optimizer)
        loader.load_state_dict(counters["loader"])
        loader.change_length(windows)
        first_step = last_kept = counters["step"]
        say(f"resuming from {folder}")
    else:
        if args.resume and checkpoint.find(run, number):
            cli.warn(f"stage {number} has no complete checkpoint left, so it starts again")
        loader.begin_stage(windows)

    # Drop the metrics of the steps that will be trained again.
    metrics = run / "metrics.jsonl"
    parallel.on_rank_zero(lambda: checkpoint.rewind_metrics(metrics, number, last_kept))
    return first_step


def leave(stop: checkpoint.StopSignal, run: Path, after: str) -> None:
    """Exit because a signal asked to. Everything has been saved."""
    say(f"\nstopped after {after}; resume with: train.py --resume {run}")
    parallel.barrier()  # to the others, a process that leaves early looks like one that died
    sys.exit(stop.exit_status())


def tell_epochs(
    shards: dict[str, data.Shards],
    loader: data.Loader,
    windows: int,
    stage: int,
    step: int,
    tokens: int,
    metrics: Path,
) -> None:
    """Say how many epochs of each source a stage will read in its remaining `windows`: one line in
    metrics.jsonl and one on the screen."""
    will_read = notices.epochs_of_stage(list(shards), loader, windows)
    say(f"stage {stage} reads, in epochs: {notices.in_words(will_read)}")
    write_line(metrics, {"stage": stage, "step": step, "tokens": tokens, "epochs": will_read})


@torch.compiler.set_stance("force_eager")  # or every new length would be compiled
def validate(
    llama: model.Llama,
    shards: dict[str, data.Shards],
    vocabulary: tokenizer.Vocabulary,
    args: argparse.Namespace,
    stage: int,
    step: int,
    tokens: int,
    metrics: Path,
) -> None:
    """Measure bits per byte on every source with validation documents, and continue two prompts:
    one line in metrics.jsonl and three on the screen."""
    # All processes take part, because the model may be sharded.
    scores = {}
    for name, source in shards.items():
        if source.index["val"]["documents"]:
            scores[name] = data.bits_per_byte(
                llama, source, args.seq_len, args.eval_bytes, device=args.device
            )
    samples = {prompt: continuation(llama, vocabulary, prompt, args.device) for prompt in PROMPTS}
    write_line(metrics, {
        "stage": stage,
        "step": step,
        "tokens": tokens,
        "validation": scores,
        "samples": samples,
    })

    # A short version for the screen.
    figures = []
    for name, score in scores.items():
        bits, loss = score["bits_per_byte"], score["loss"]
        figures.append(f"{name} {bits:.4f} bits per byte (loss {loss:.4f})")
    say(f"stage {stage} step {step}: " + "  ".join(figures))
    for text in samples.values():
        say("    " + " ".join(text.split()))


def continuation(
    llama: model.Llama, vocabulary: tokenizer.Vocabulary, prompt: str, device: str
) -> str:
    """The prompt and its most likely continuation: at most 24 tokens, up to the end of the
    document."""
    start = torch.tensor([vocabulary.encode(prompt, bos=True)], device=device)      # (1, T)
    room = llama.config.max_position_embeddings - start.shape[1]
    # Cut at EOS only afterwards: all processes must run a sharded model the same number of times.
    ids = llama.generate(start, min(24, room), temperature=0)[0].tolist()
    for end in (vocabulary.eos, *llama.config.eos_ids()):
        if end in ids:
            ids = ids[:ids.index(end)]
    # The model may have more rows than the tokenizer has pieces.
    return vocabulary.decode([i for i in ids if i < vocabulary.size])


def find_cause(llama: model.Llama, parts: list[tuple], source_of, names: list[str]) -> str:
    """Why a step is not finite, in words: the source of a window whose own loss is not finite, on
    any process; or, if there is none, a gradient."""
    # Run the batch again, one window at a time. The weights are the same: no update was made.
    windows = []
    for part in parts:
        windows += zip(*(tensors.split(1) for tensors in part), strict=True)
    bad_sources = []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for window, source in zip(windows, source_of, strict=True):
            loss, _ = llama(*window)
            if not loss.isfinite():
                bad_sources.append(names[source])
    # Rank 0 prints the message, but the window may be another rank's.
    bad_sources = parallel.gather(bad_sources)
    if bad_sources:
        return f"a window of {bad_sources[0]}"
    return "a gradient (every window's loss is finite), so the learning rate may be too high"


# -------------------------------------------------------------- how a stage and a run begin and end


def start_files(args: argparse.Namespace) -> tuple[Path, Path]:
    """The config.json and the tokenizer (a file or a model directory) that the run starts from."""
    if not args.config:
        return Path(args.model, "config.json"), Path(args.model)
    # Once a run from random weights has begun, it has its own copies.
    start = checkpoint.random_start(Path(args.out))
    if args.resume and start.exists():
        return start / "config.json", start
    return Path(args.config), Path(args.tokenizer or "")


def start_directory(args: argparse.Namespace, run: Path) -> Path:
    """The model directory that the first stage starts from. With --config, a model with random
    weights is written as stage 0."""
    if not args.config:
        return Path(args.model)
    folder = checkpoint.random_start(run)
    if not (args.resume and parallel.broadcast(folder.exists())):
        parallel.on_rank_zero(lambda: write_random_model(args, folder))
    return folder


def write_random_model(args: argparse.Namespace, folder: Path) -> None:
    """Write a model directory with random weights, of the shape in --config, with --tokenizer."""
    config = model.Config.read(args.config)
    vocabulary = tokenizer.load(args.tokenizer)
    pieces = vocabulary.size
    # Rows beyond the pieces are padding and never sampled.
    config.unpadded_vocab_size = None
    if pieces < config.vocab_size:
        config.unpadded_vocab_size = pieces

    # Documents are packed between the tokenizer's BOS and EOS, whatever --config says.
    config.bos_token_id = vocabulary.bos
    if vocabulary.eos not in config.eos_ids():
        config.eos_token_id = vocabulary.eos

    # The constructor draws the weights.
    torch.manual_seed(args.seed)
    llama = model.Llama(config)
    with cli.new_folder(folder) as temporary:
        model.save(llama, temporary)
        tokenizer.save(args.tokenizer, temporary)


# -------------------------------------------------------------------------------------------- flags


def make_parser() -> cli.Parser:
    """All flags. The defaults train the recipe on the built-in world."""
    parser = cli.Parser(description=__doc__, prog="train.py")
    add_data_flags(parser)
    add_optimizer_flags(parser)
    add_run_flags(parser)
    return parser


def add_data_flags(parser: cli.Parser) -> None:
    """Flags for the model to start from, the stages and the data."""
    flag = parser.add_argument

    # The model
    flag("--model", default=None, help=f"model directory to start from (default: {WORLD_MODEL})")
    flag("--config", default=None,
         help="config.json of a model to start from random weights, instead of --model")
    flag("--tokenizer", default=None,
         help="tokenizer to use with --config: a file or a model directory")

    # The stages
    flag("--stages", nargs="+", metavar="WHAT:TOKENS:PEAK_LR",
         help="stages, in order: what to train (see above), for how many tokens (k, M and B are "
              "thousands, millions and billions), at which peak learning rate; default for the "
              f"built-in world: {' '.join(WORLD_STAGES)}; required for any other model")
    flag("--lora_rank", type=int, default=0,
         help="rank of the LoRA; 0: the hidden size / 32 (128 at 10.7B), at least 16")
    flag("--lora_alpha", type=float, default=0,
         help="the LoRA's output is multiplied by alpha / rank; 0: alpha is the rank")

    # The data
    flag("--data", nargs="+", default=["out/shards/ko=0.75", "out/shards/en=0.25"],
         metavar="SHARDS=WEIGHT",
         help="folders of token shards and their shares of the windows; 0.5:0.9 moves the share "
              "from 0.5 to 0.9 within each stage")
    flag("--skip_seen", default=None, metavar="FOLDER",
         help="begin the data where the training of FOLDER stopped (a run, one of its stages, or "
              "a model that train.py or export.py wrote); for --model FOLDER on the same shards")
    flag("--order", default="shuffled", choices=["shuffled", "as_packed"],
         help="order of a source's windows in each epoch")
    flag("--seq_len", type=int, default=0,
         help=f"tokens per window; 0: the model's positions, at most {data.LONGEST_WINDOW}")
    flag("--document_mask", action="store_true",
         help="attend only within documents: a position does not see earlier documents in its "
              "window")
    flag("--batch_tokens", type=int, default=0, help="tokens per optimizer step; 0: 8 windows")
    flag("--micro_batch", type=int, default=0,
         help=f"windows per forward pass; 0: about {MICRO_BATCH_TOKENS:,} tokens")
    flag("--seed", type=int, default=0,
         help="seed of the data order, of the LoRA and of random weights")


def add_optimizer_flags(parser: cli.Parser) -> None:
    """Flags of the optimizer."""
    flag = parser.add_argument
    flag("--optimizer", default="adamw", choices=["adamw", "adamw_bf16"],
         help="adamw: float32, 16 bytes per trained parameter (weight, gradient, two moments); "
              "adamw_bf16: bfloat16, 8 bytes (kernels/adamw.py)")
    flag("--warmup", type=float, default=0.01,
         help="share of a stage's steps in which the learning rate rises")
    flag("--schedule", default="cosine", choices=["cosine", "wsd"],
         help="learning rate after the warmup; cosine: cosine decay; wsd: constant, then a linear "
              "decay over the last fifth")
    flag("--min_lr", type=float, default=0.1,
         help="final learning rate, as a fraction of the peak")
    flag("--weight_decay", type=float, default=0.1,
         help="weight decay of the layers' matrices; norms, embedding and head have none")
    flag("--betas", type=float, nargs=2, default=[0.9, 0.95],
         help="AdamW's decay rates of the two moments")
    flag("--clip", type=float, default=1.0,
         help="clip the norm of the whole gradient to this; 0: no clipping")


def add_run_flags(parser: cli.Parser) -> None:
    """Flags of the run folder, of memory and speed, and of --plan."""
    flag = parser.add_argument

    # The run folder
    flag("--out", default="out/run", help="run folder to write")
    flag("--resume", default=None, metavar="RUN",
         help="continue this run with its own settings; --stages may be extended (finished stages "
              "stay as they are), folders may have moved, and these flags may change: "
              + " ".join(resume.MAY_CHANGE))
    flag("--eval_every", type=int, default=0,
         help="steps between validations; 0: only at the end of each stage")
    flag("--eval_bytes", type=int, default=1_000_000,
         help="bytes of validation text per source, at most")
    flag("--save_every", type=int, default=500, help="steps between checkpoints")
    flag("--keep", type=int, default=0,
         help="number of checkpoints to keep, also after the run is finished; 0: the newest two "
              "during training, none afterwards")

    # Memory and speed
    flag("--recompute", default="none", choices=plan.RECOMPUTE,
         help="activations to recompute in the backward pass instead of keeping them: those of "
              "attention, or all inside a block (full)")
    flag("--compile", action=argparse.BooleanOptionalAction, default=False,
         help="torch.compile each block: takes a minute at the start, then steps are faster")
    flag("--kernels", default="auto", choices=["auto", *kernels.IMPLEMENTATIONS],
         help="implementation of the fused operations in kernels/")
    flag("--deterministic", action=argparse.BooleanOptionalAction, default=False,
         help="make runs on a GPU bit-exact too; slower")
    cli.add_device(parser)

    # Planning
    flag("--plan", action="store_true",
         help="print what each stage trains and needs, and the hours, GPUs, disk and host memory "
              "of the run, without training")
    flag("--world_size", type=int, default=0,
         help="number of processes to plan for with --plan; 0: those running now")
    flag("--gpu", choices=list(budget.GPUS), metavar="NAME",
         help=f"GPU for --plan's hours, at {budget.SHARE_OF_PEAK} of its peak: "
              + " ".join(budget.GPUS))
    flag("--tflops", type=float, metavar="X",
         help="TFLOP/s that each process sustains, for --plan's hours")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags, or with --resume the run's own settings. UserError if they contradict each
    other."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.resume is None:
        check_start(args)
        # Relative paths in config.json start from this directory.
        args.started_in = os.getcwd()
        args.data = [sources.with_weight(entry) for entry in args.data]
    else:
        words = sys.argv[1:] if argv is None else argv
        args = resume.settings_of(parser, words, learning_rate_at)

    # The number of processes and the device
    check_plan_flags(args)
    if args.plan and (args.gpu or args.tflops) and args.device is None:
        args.device = "cuda"
    if args.plan and args.device == "cuda":
        args.dtype = args.dtype or "bfloat16"  # a laptop without a GPU may plan for one
    else:
        cli.set_device(args)
    return args


def check_start(args: argparse.Namespace) -> None:
    """Fill in the built-in world's model and stages where a new run names none. UserError if
    something is missing or flags contradict each other."""
    # What to start from
    two_starts = args.config and args.model
    stray_tokenizer = args.tokenizer and not args.config
    if two_starts or stray_tokenizer:
        raise UserError("--config and --tokenizer start from random weights, --model has its own "
                        "tokenizer; choose one")
    if args.config and not (args.tokenizer or args.plan):
        raise UserError("--config needs --tokenizer: the tokenizer that the shards were "
                        "packed with")
    own_model = args.config is not None or args.model not in (None, WORLD_MODEL)
    if not own_model:
        args.model = WORLD_MODEL
        if not Path(WORLD_MODEL, "config.json").exists():
            raise UserError(f"there is no model in {WORLD_MODEL} yet: run `bash speedrun.sh "
                            "--prepare` first, or give --model, --data and --stages of your own")

    # What to train
    if not args.stages:
        if own_model and not args.plan:
            raise UserError("--stages is missing: say what to train, for how many tokens, at which "
                            "learning rate, such as embed:200M:2e-4 odd:300M:1e-4 (the built-in "
                            "world's own rates would ruin a trained model)")
        args.stages = list(WORLD_STAGES)


def learning_rate_at(step: int, stage: plan.Stage, args: argparse.Namespace) -> float:
    """The learning rate at a step of a stage, from the stage and the flags."""
    return learning_rate(step, stage.steps(args.batch_tokens), stage.peak_lr, args)


def check_plan_flags(args: argparse.Namespace) -> None:
    """UserError for flags of --plan that are given without it, or out of range."""
    plans_for_others = args.plan and args.world_size > 0
    if args.world_size != 0 and not plans_for_others:
        raise UserError(f"--world_size {args.world_size} is a number of processes for --plan, at "
                        "least 1; to train on several, start them with torchrun")
    for name in ("gpu", "tflops"):
        value = getattr(args, name)
        if value is not None and not args.plan:
            raise UserError(f"--{name} {value} is only for --plan; a run measures its own speed")
    if args.tflops is not None and not 0 < args.tflops < math.inf:
        raise UserError(f"--tflops {args.tflops} is not above 0; give a number such as 400")


def check_between(args: argparse.Namespace, name: str, low: float, high: float) -> None:
    """UserError unless low ≤ --name ≤ high."""
    value = getattr(args, name)
    if not low <= value <= high:  # comparisons with nan are false, so nan is refused
        raise UserError(f"--{name} {value} is not between {low} and {high}")


def check_numbers(args: argparse.Namespace) -> None:
    """UserError for a number that is out of range, whatever the model."""
    # 0 is allowed where it means a default that depends on the model, or "off".
    for name in ("seq_len", "batch_tokens", "micro_batch", "clip", "weight_decay", "lora_rank",
                 "lora_alpha", "eval_every", "keep"):
        check_between(args, name, 0, math.inf)
    for name in ("eval_bytes", "save_every"):
        check_between(args, name, 1, math.inf)
    for name in ("warmup", "min_lr"):
        check_between(args, name, 0, 1)
    check_between(args, "seed", 0, 2**32 - 1)
    if not all(0 <= beta < 1 for beta in args.betas):
        raise UserError(f"--betas {args.betas}: each must be at least 0 and below 1, such as "
                        "0.9 0.95")


def fill_in(args: argparse.Namespace, config: model.Config) -> None:
    """Replace zeros by defaults that depend on the model. UserError if a value does not fit the
    model, or one does not divide another."""
    # The window
    positions = config.max_position_embeddings
    args.seq_len = args.seq_len or min(positions, data.LONGEST_WINDOW)
    if args.seq_len > positions:
        raise UserError(f"--seq_len {args.seq_len} is more than the model's {positions} positions")

    # The LoRA
    args.lora_rank = args.lora_rank or max(16, config.hidden_size // 32)
    if args.lora_rank > config.hidden_size:
        raise UserError(f"--lora_rank {args.lora_rank} is more than the model's width, "
                        f"{config.hidden_size}")
    args.lora_alpha = args.lora_alpha or args.lora_rank

    # The batch: whole windows, split into equal micro-batches on every process
    args.batch_tokens = args.batch_tokens or 8 * args.seq_len
    windows = args.batch_tokens // args.seq_len
    if windows == 0 or args.batch_tokens % args.seq_len:
        raise UserError(f"--batch_tokens {args.batch_tokens} is not a multiple of --seq_len "
                        f"{args.seq_len}")
    micro_batch = windows_per_micro_batch(args)
    n = processes(args)
    if args.micro_batch not in (0, micro_batch):
        say(f"--micro_batch {args.micro_batch} does not divide the {windows // n} windows per "
            f"process; using {micro_batch}")
    if windows % (micro_batch * n):
        among = f" times {n} processes" if n > 1 else ""
        raise UserError(f"--batch_tokens {args.batch_tokens} is {windows} windows of "
                        f"{args.seq_len} tokens, not a multiple of --micro_batch "
                        f"{micro_batch}{among}")


def processes(args: argparse.Namespace) -> int:
    """The number of processes that train, or that --plan plans for."""
    return args.world_size or parallel.size()


def windows_per_micro_batch(args: argparse.Namespace) -> int:
    """--micro_batch; or, if that is 0, the most windows that have at most MICRO_BATCH_TOKENS tokens
    (but at least one window) and divide a process's share of the batch."""
    share = args.batch_tokens // args.seq_len // processes(args)
    # On another number of processes, a resumed run may have shares that --micro_batch does not
    # divide. Then take fewer windows at a time, but not more: memory may have been short.
    most = MICRO_BATCH_TOKENS // args.seq_len
    if args.micro_batch > 0:
        divides = share % args.micro_batch == 0
        if divides or not args.resume:
            return args.micro_batch
        most = args.micro_batch

    # The largest divisor of the share that is at most `most`.
    best = 1
    for n in range(2, most + 1):
        if share and share % n == 0:
            best = n
    return best


# ------------------------------------------------------------------------------------------ sources


def open_sources(
    args: argparse.Namespace, tokenizer_path: Path, vocabulary: tokenizer.Vocabulary
) -> tuple[dict[str, data.Shards], list[tuple[float, float]]]:
    """Open --data: the shards by name, and their weights (first and last). UserError if shards do
    not fit the tokenizer."""
    shards = {}
    weights = []
    for entry in args.data:
        folder, ends = sources.parse_source(entry)
        # Rank 0 verifies every byte; the others only check sizes.
        source = data.Shards(folder, verify=parallel.rank() == 0)
        # Ids of another tokenizer would silently mean other pieces.
        if source.tokenizer_sha256 != vocabulary.sha256:
            raise UserError(f"{folder} was packed with another tokenizer than {tokenizer_path}; "
                            f"pack it again with data.py pack --tokenizer {tokenizer_path}")
        if source.windows(args.seq_len) < 1:
            raise UserError(f"{folder} holds {source.tokens} tokens, less than one window of "
                            f"{args.seq_len}")

        # The folder's own name is short; the path tells two folders of the same name apart.
        name = Path(folder).name
        if name in shards:
            name = folder
        if name in shards:
            raise UserError(f"--data names {folder} twice; name it once, with the sum of the "
                            "weights")
        shards[name] = source
        weights.append(ends)
    return shards, weights


# -------------------------------------------------------------------------------------- the program


def check_run(
    args: argparse.Namespace,
    config: model.Config,
    stages: list[plan.Stage],
    shards: dict[str, data.Shards],
) -> None:
    """UserError for stages that the data or the model does not support, and for a run folder that
    exists already."""
    # Two kinds of stages need more than a model and shards.
    parts = set()
    for stage in stages:
        parts.update(stage.parts)
    has_prompts = any(source.index["given"] for source in shards.values())
    if "sft" in parts and not has_prompts:
        raise UserError("an sft stage needs shards of prompts and responses: data.py pack "
                        "--prompt_field F --response_field F, or --messages")
    if "new_rows" in parts and config.base_vocab_size is None:
        raise UserError("a new_rows stage needs base_vocab_size in config.json; start from a model "
                        "directory that init.py wrote")
    # An existing run is never overwritten.
    if not args.resume and Path(args.out, "metrics.jsonl").exists():
        raise UserError(f"{args.out} is a run already; --resume {args.out} continues it, also with "
                        "longer or further --stages; or choose another --out")


def plan_table(
    args: argparse.Namespace, config: model.Config, stages: list[plan.Stage]
) -> str:
    """Tables of what each stage trains, computes and needs; with --plan, also of the time, GPUs,
    disk and host memory that the run takes."""
    micro_batch = windows_per_micro_batch(args)
    windows_at_once = micro_batch * processes(args)
    dtype = getattr(torch, args.dtype)
    run = (config, stages, args.lora_rank, args.seq_len, dtype, args.optimizer)
    how = {
        "micro_batch": micro_batch,
        "accumulation": args.batch_tokens // args.seq_len // windows_at_once,
        "world_size": processes(args),
        "recompute": args.recompute,
        "device": args.device,
        "document_mask": args.document_mask,
    }
    tables = plan.table(*run, **how)
    # Before training, the first table is enough.
    if args.plan:
        from_scratch = args.config is not None
        tables += "\n\n" + budget.table(
            *run, args.tflops, args.gpu, args.keep, from_scratch, **how
        )
    return tables


def warn_of_repetition(
    args: argparse.Namespace, shards: dict[str, data.Shards], loader: data.Loader
) -> None:
    """Warn if a new run would read data again that its model has been trained on."""
    if args.resume or args.skip_seen or not args.model:
        return
    hashes = {name: source.sha256 for name, source in shards.items()}
    again = sources.seen_again(Path(args.model), loader.state_dict(), hashes)
    if again:
        # Do not suggest what would be refused.
        advice = f"--skip_seen {args.model} continues after them"
        try:
            sources.seen_before(Path(args.model), loader.state_dict(), list(hashes.values()))
        except UserError:  # not with these sources
            advice = "another --seed gives another order"
        cli.warn(f"{args.model} was trained on {again}, and this run begins the same data again, "
                 f"in the same order; {advice}")


def set_up_torch(args: argparse.Namespace) -> None:
    """Process-wide settings: which kernels run, and whether results may depend on timing."""
    try:
        kernels.use(args.kernels, args.device)
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.deterministic:
        # cuBLAS is deterministic only with this setting.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # No code here reads uninitialised memory, so filling it would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(args.deterministic)


def place_loader(
    loader: data.Loader, run: Path, shards: dict[str, data.Shards], args: argparse.Namespace
) -> None:
    """Set where in the data the run begins: at the start; with --skip_seen, after what another
    training has seen."""
    file = run / "loader.json"

    # Written to a file, so that resuming does not need the other training's folder.
    def note() -> None:
        if args.skip_seen:
            hashes = [source.sha256 for source in shards.values()]
            seen = sources.seen_before(Path(args.skip_seen), loader.state_dict(), hashes)
            loader.skip(seen)
        cli.write_json(file, loader.state_dict())

    if not args.resume:
        parallel.on_rank_zero(note)
    # Runs of an older version have no such file; they all began at the start.
    if parallel.broadcast(file.exists()):
        loader.load_state_dict(cli.read_json(file))


def note_settings(
    run: Path, settings: dict, start: Path, shards: dict[str, data.Shards]
) -> None:
    """Write RUN/config.json and the hashes of what the run starts from. When it is resumed,
    UserError if those have changed."""
    resumed = settings["resume"] is not None
    indexes = [source.folder / "index.json" for source in shards.values()]
    weights = sorted(start.glob("*.safetensors"))
    checkpoint.check_inputs(run, indexes, weights, resumed)
    saved = {name: value for name, value in settings.items() if name not in resume.NOT_SAVED}
    cli.write_json(run / "config.json", saved)


def continue_after(folder: Path, loader: data.Loader) -> int:
    """Put the loader where the finished stage in `folder` left it. Returns the tokens so far."""
    state = cli.read_json(folder / "training_state.json")
    loader.load_state_dict(state["loader"])
    return state["tokens"]


def main(argv: list[str] | None = None) -> None:
    """Check everything that can be checked before the first step, then train stage by stage."""
    # Read, check and complete the flags.
    args = parse(argv)
    stages = [plan.parse_stage(text) for text in args.stages]
    if args.model:
        cli.check_model_folder(args.model)
    config_file, tokenizer_path = start_files(args)
    config = model.Config.read(config_file)
    check_numbers(args)
    fill_in(args, config)
    settings = cli.settings(args)

    say(plan_table(args, config, stages))
    if args.plan:
        return

    # Open what the run reads.
    if not args.out:
        raise UserError("--out is empty: name the run folder")
    vocabulary = tokenizer.load(tokenizer_path)
    tokenizer.check_rows(vocabulary, config_file)
    shards, weights = open_sources(args, tokenizer_path, vocabulary)
    check_run(args, config, stages, shards)
    set_up_torch(args)
    loader = data.Loader(
        list(shards.values()), weights, args.seq_len, args.seed, args.order == "as_packed"
    )
    warn_of_repetition(args, shards, loader)

    # From here on the run folder is written. Each stage starts from the previous one's directory.
    run = Path(args.out)
    with parallel.process_group(args.device), checkpoint.lock(run), checkpoint.StopSignal() as stop:
        start = start_directory(args, run)
        place_loader(loader, run, shards, args)
        # config.json comes last: a folder that has one can be resumed.
        parallel.on_rank_zero(lambda: note_settings(run, settings, start, shards))
        folders = [stage_folder(run, number, stage) for number, stage in enumerate(stages, 1)]
        finished = parallel.on_rank_zero(lambda: checkpoint.finished_stages(run, stages))
        finished = parallel.broadcast(finished)
        for line in notices.of_run(stages, finished, shards, loader, args.batch_tokens):
            cli.warn(line)
        tokens = 0
        if finished > 0:  # the run was stopped after this stage
            start = folders[finished - 1]
            tokens = continue_after(start, loader)
        for number, stage in enumerate(stages[finished:], finished + 1):
            tokens = train_stage(
                number, stage, start, run, shards, loader, vocabulary, args, stop, tokens)
            start = folders[number - 1]
            asked = parallel.all_reduce_sum(stop.asked)[0]  # the number of processes
            if asked and number < len(stages):
                leave(stop, run, f"stage {number}")
        parallel.on_rank_zero(lambda: checkpoint.publish(start, run))
        parallel.on_rank_zero(lambda: tokenizer.warn_of_ties(vocabulary))
        if args.keep == 0:
            parallel.on_rank_zero(lambda: checkpoint.delete_all(run))
    say(f"{tokens:,} tokens trained; the model is in {run / 'model'}")
    if stop.asked:
        sys.exit(stop.exit_status())  # the signal came too late to stop anything


if __name__ == "__main__":
    cli.run(main)
