"""Model directories out of a run: of a stage that ends, and of a checkpoint before it does.

A stage trains a part of the model. Its directory holds the whole: what was trained, from memory,
and everything else unchanged from the directory that the stage started from. A LoRA is merged into
the matrices beside it.
"""
import argparse
from collections.abc import Callable
from pathlib import Path

import torch

import model
import tokenizer
from common import cli, parallel, plan


def trained_parts(name: str, trained: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What was trained of a tensor: nothing, itself, or its LoRA's A and B, gathered. All processes
    take part, because each holds some of the rows."""
    prefix = name.removesuffix("weight")
    parts = []
    for part in (name, prefix + "lora_A", prefix + "lora_B"):
        if part in trained:
            parts.append(parallel.full_tensor(trained[part]).detach())
    return parts


def save_stage(
    llama: model.Llama,
    stage: plan.Stage,
    start: Path,
    folder: Path,
    args: argparse.Namespace,
    state: dict,
) -> None:
    """Write a stage's model directory, one tensor at a time: there is no second copy of the model.

    What was not trained is copied from the start directory, not from the model's copy in the
    compute type, so it passes through every stage unchanged. A LoRA is merged in float32, and
    rounded once.
    """
    # A LoRA has no name in the directory: it is merged into the matrix beside it.
    names = []
    trained = {}
    for name, p in llama.named_parameters():
        if not name.endswith(("lora_A", "lora_B")):
            names.append(name)
        if p.requires_grad:
            trained[name] = p

    def finished(name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor as the directory gets it; read(name) gives it as the stage found it."""
        parts = [part.cpu() for part in trained_parts(name, trained)]
        if not parts:
            return read(name)
        if len(parts) == 2:
            lora_a, lora_b = parts
            return model.merge_lora(read(name), lora_a, lora_b, args.lora_alpha / args.lora_rank)
        if "new_rows" in stage.parts and name in plan.TABLES:
            # The old rows had no gradient, but they were cast to the optimizer's type: take them
            # from the start as well.
            before = read(name)
            old_rows = llama.config.base_vocab_size
            return torch.cat((before[:old_rows], parts[0][old_rows:].to(before.dtype)))
        return parts[0]

    remaining = iter(names)

    def write() -> None:
        try:
            read = model.open_tensors(start)
            tensors = ((name, finished(name, read)) for name in remaining)
            with cli.new_folder(folder) as temporary:
                model.save(llama, temporary, tensors)
                tokenizer.save(start / "tokenizer.model", temporary)
                cli.write_json(temporary / "training_state.json", state)
        finally:
            # If writing failed, the other processes still wait for the tensors that are left.
            for name in remaining:
                trained_parts(name, trained)

    # Rank 0 writes while it gathers; the others gather with it, name by name, and then wait.
    if parallel.rank() > 0:
        for name in remaining:
            trained_parts(name, trained)
    parallel.on_rank_zero(write)
