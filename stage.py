"""A stage is a unit that can be restarted: it starts from a model directory and ends in one.

    load_stage   the start directory, with what the stage trains in the optimizer's type and the rest frozen, sharded if
                 there are several processes
    finish       the stage's own directory: trained weights gathered, a LoRA merged, frozen weights as they were
    publish      RUN/model, when all stages are done

Between the two stands train.py's loop. What a stage trains is said in plan.py; what survives a power cut within one, in
checkpoint.py.
"""
import argparse
import os
import shutil
from pathlib import Path

import torch

import cli
import kernels
import model
import parallel
import plan
import tokenizer
from cli import UserError


def load_stage(stage: plan.Stage, start: Path, args: argparse.Namespace, number: int) -> model.Llama:
    """The start directory as a stage wants it: trained weights in the optimizer's type (float32 masters, or bfloat16),
    frozen ones in the compute type."""
    compute, master = getattr(torch, args.dtype), plan.MASTER[args.optimizer]

    def prepare(llama: model.Llama) -> None:  # before there is memory: of what is sharded only a share ever gets any
        if "lora" in stage.parts:
            model.add_lora(llama, args.lora_rank, args.lora_alpha, master)
        for name, p in llama.named_parameters():
            p.requires_grad_(plan.is_trained(name, stage.what))
        if args.compile:
            for block in llama.model.layers:
                block.compile(dynamic=False)  # block by block: they are alike, so one compilation serves all
        if parallel.size() > 1:
            parallel.shard(llama, compute)

    dtype = lambda name: master if plan.is_trained(name, stage.what) else compute
    llama = model.load(start, args.device, dtype, prepare)
    model.start_lora(llama, args.device, args.seed + number)
    llama.compute_dtype, llama.recompute = compute, args.checkpoint
    return llama


def mask_old_rows(llama: model.Llama) -> None:
    """new_rows: no gradient for the rows that the base had. Adam moves nothing whose gradient was always 0."""
    for table in {llama.model.embed_tokens.weight, llama.lm_head.weight}:
        first, last = parallel.rows(table)
        parallel.local(table.grad)[:max(0, min(last, llama.config.base_vocab_size) - first)] = 0


def make_optimizer(llama: model.Llama, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; only matrices of the layers decay (norms and tables hold their scale)."""
    trained = [(name, p) for name, p in llama.named_parameters() if p.requires_grad]
    decay = [p for name, p in trained if p.dim() == 2 and name not in plan.TABLES]
    rest = [p for name, p in trained if p.dim() != 2 or name in plan.TABLES]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups, common = [g for g in groups if g["params"]], {"lr": 0.0, "betas": tuple(args.betas)}
    if args.optimizer == "adamw_bf16":
        return kernels.AdamW(groups, **common, seed=args.seed)
    return torch.optim.AdamW(groups, **common, fused=True)


def finish(llama: model.Llama, stage: plan.Stage, start: Path, folder: Path, args: argparse.Namespace, state: dict):
    """Write a stage's model directory. Frozen weights come from the start directory, not from their copies in the
    compute type, so that they pass through every stage unchanged; a LoRA is added to them in float32, rounded once."""
    def open_start():
        whole = model.load(start, dtype=getattr(torch, llama.config.dtype))
        if "lora" in stage.parts:
            model.add_lora(whole, args.lora_rank, args.lora_alpha)
        return whole

    def write():
        model.merge_lora(whole)
        with cli.new_folder(folder) as temporary:
            model.save(whole, temporary)
            tokenizer.save(start / "tokenizer.model", temporary)
            cli.write_json(temporary / "training_state.json", state)

    whole = parallel.first(open_start)
    places = dict(whole.named_parameters()) if whole else {}
    with torch.no_grad():
        for name, p in llama.named_parameters():
            gathered = parallel.whole(p) if p.requires_grad else None  # all take part, the first process keeps it
            if places and p.requires_grad:
                old = llama.config.base_vocab_size if "new_rows" in stage.parts and name in plan.TABLES else 0
                places[name][old:] = gathered[old:]  # new_rows: what it does not train does not even pass through it
    parallel.first(write)


def link(source: str, target: str) -> None:
    """The same file under a second name; a copy on a file system that has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish(start: Path, run: Path) -> None:
    """RUN/model: the last stage's directory, under a name that does not depend on it."""
    def write():
        with cli.new_folder(run / "model") as temporary:
            shutil.copytree(start, temporary, copy_function=link, dirs_exist_ok=True)
            (temporary / "training_state.json").unlink()

    parallel.first(write)


def begin(args: argparse.Namespace, run: Path) -> Path:
    """The directory that the first stage starts from. With --config, one of random weights is written as stage 0."""
    if not args.config:
        return Path(args.model)
    start = run / "stages" / "0-random"

    def write():
        if args.resume and start.exists():
            return
        config, pieces = model.Config.read(args.config), tokenizer.load(args.tokenizer).get_piece_size()
        if pieces > config.vocab_size:
            raise UserError(f"{args.tokenizer} has {pieces} pieces, more than {args.config}'s vocab_size")
        config.unpadded_vocab_size = pieces if pieces < config.vocab_size else None
        torch.manual_seed(args.seed)
        llama = model.Llama(config)
        with cli.new_folder(start) as temporary:
            model.save(llama, temporary)
            tokenizer.save(args.tokenizer, temporary)

    parallel.first(write)
    return start
