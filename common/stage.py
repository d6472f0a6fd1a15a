"""A stage is a unit that can be restarted: it starts from a model directory and ends in one.

    load_stage   the start directory, with what the stage trains in the optimizer's type and the rest frozen, sharded if
                 there are several processes
    Updates      gradients into updates, all at the end of the backward pass or each as soon as it is there
    finish       the stage's own directory: trained weights gathered, a LoRA merged, frozen weights as they were
    publish      RUN/model, when all stages are done

Between the two stands train.py's loop. What a stage trains is said in plan.py; what survives a power cut within one, in
checkpoint.py.
"""
import argparse
import math
import os
import shutil
import weakref
from pathlib import Path

import torch

import kernels
import model
import tokenizer
from common import cli, parallel, plan
from common.cli import UserError


def load_stage(stage: plan.Stage, start: Path, args: argparse.Namespace, number: int) -> model.Llama:
    """The start directory as a stage wants it: trained weights in the optimizer's type (float32 masters, or bfloat16),
    frozen ones in the compute type."""
    compute, master = getattr(torch, args.dtype), plan.MASTER[args.optimizer]

    # Before there is memory: of what is sharded only a share ever gets any.
    def before_load(llama: model.Llama) -> None:
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
    llama = model.load(start, args.device, dtype, before_load)
    model.start_lora(llama, args.device, args.seed + number)
    llama.compute_dtype, llama.recompute = compute, args.recompute
    return llama


def mask_old_rows(llama: model.Llama, table: torch.Tensor) -> None:
    """new_rows: no gradient for the rows that the base had. Adam moves nothing whose gradient was always 0."""
    first, last = parallel.rows(table)
    parallel.local(table.grad)[:max(0, min(last, llama.config.base_vocab_size) - first)] = 0


def local_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What this process holds of a parameter, moment or gradient, and the number of its first row."""
    return parallel.local(x), parallel.rows(x)[0]


def make_optimizer(llama: model.Llama, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; only matrices of the layers decay (norms and tables hold their scale)."""
    trained = [(name, p) for name, p in llama.named_parameters() if p.requires_grad]
    decay = [p for name, p in trained if p.dim() == 2 and name not in plan.TABLES]
    rest = [p for name, p in trained if p.dim() != 2 or name in plan.TABLES]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups, common = [g for g in groups if g["params"]], {"lr": 0.0, "betas": tuple(args.betas)}
    if args.optimizer == "adamw_bf16":
        return kernels.AdamW(groups, **common, seed=args.seed, local_rows=local_rows)
    return torch.optim.AdamW(groups, **common, fused=True)


class Updates:
    """How gradients become an update. `norm()`, after the backward pass: their norm, a tensor; `apply(not_finite)`: the
    update, unless that tensor is 1.

    With --update_in_backward a gradient is used and let go of as soon as the backward pass has made it (as LOMO does,
    2306.09782, without moments): only one is in memory at a time. So nothing can be known of the others: each tensor
    is clipped by its own norm, and one whose gradient is not finite is left as it was. `apply()` finds all done.
    """

    def __init__(self, llama: model.Llama, optimizer: torch.optim.Optimizer, stage: plan.Stage, args):
        self.llama, self.optimizer, self.limit = llama, optimizer, args.clip or math.inf
        self.masked = [p for name, p in llama.named_parameters() if name in plan.TABLES] * ("new_rows" in stage.parts)
        self.place = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.early, self.norms = args.update_in_backward, []
        update = weakref.WeakMethod(self._update)  # Python does not see a cycle through autograd: the model would stay
        for p in self.place if self.early else ():
            p.register_post_accumulate_grad_hook(lambda p: update()(p))

    def _update(self, p: torch.Tensor) -> None:
        self.norms.append(self._clipped([p]))
        self.optimizer.found_inf = (~self.norms[-1].isfinite()).float()
        groups = self.optimizer.param_groups  # looked up each time: a checkpoint brings new ones
        self.optimizer.param_groups = [{**groups[self.place[p]], "params": [p]}]
        self.optimizer.step()
        self.optimizer.param_groups, p.grad = groups, None

    def _clipped(self, parameters: list[torch.Tensor]) -> torch.Tensor:
        for p in parameters:
            if any(p is table for table in self.masked):
                mask_old_rows(self.llama, p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients, 2, torch.float32)  # get_total_norm's would be bfloat16 where these are
        norm = parallel.full_tensor(torch.stack(norms).norm())
        if self.limit < math.inf:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.limit, norm)
        return norm

    def norm(self) -> torch.Tensor:
        """The norm of all gradients, before clipping: one float32, still on the device."""
        if not self.early:
            return self._clipped(list(self.place))
        norms, self.norms = self.norms, []
        return torch.stack(norms).norm()

    def apply(self, not_finite: torch.Tensor) -> None:
        """Update what is left to update, and let go of the gradients. `not_finite` is 0.0, or 1.0 to leave weights and
        moments as they are; the device reads it, and nobody waits."""
        if not self.early:
            self.optimizer.found_inf = not_finite  # the name that PyTorch's fused optimizers have for it
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def finish(llama: model.Llama, stage: plan.Stage, start: Path, folder: Path, args: argparse.Namespace, state: dict):
    """Write a stage's model directory, tensor by tensor: there is no second copy of the model. Frozen weights come from
    the start directory, not from their copies in the compute type, so that they pass through every stage unchanged; a
    LoRA is added to them in float32, rounded once."""
    read, trained = model.open_tensors(start), {name: p for name, p in llama.named_parameters() if p.requires_grad}
    old = llama.config.base_vocab_size if "new_rows" in stage.parts else 0
    left = iter([name for name, _ in llama.named_parameters() if not name.endswith(("lora_A", "lora_B"))])

    def gather(name: str) -> list[torch.Tensor]:  # every process takes part
        prefix = name.removesuffix("weight")
        return [parallel.full_tensor(trained[part]).detach() for part in (name, prefix + "lora_A", prefix + "lora_B")
                if part in trained]

    def stream():
        for name in left:
            parts = [part.cpu() for part in gather(name)]
            if len(parts) == 2:
                parts = [model.merge_lora(read(name), *parts, args.lora_alpha / args.lora_rank)]
            elif parts and old and name in plan.TABLES:  # what new_rows does not train does not even pass through it
                start_rows = read(name)
                parts = [torch.cat((start_rows[:old], parts[0][old:].to(start_rows.dtype)))]
            yield name, parts[0] if parts else read(name)

    def write():
        try:
            with cli.new_folder(folder) as temporary:
                model.save(llama, temporary, stream())
                tokenizer.save(start / "tokenizer.model", temporary)
                cli.write_json(temporary / "training_state.json", state)
        finally:
            for name in left:  # whatever went wrong here: the others wait for the rest of it
                gather(name)

    for name in left if parallel.rank() > 0 else ():
        gather(name)
    parallel.on_rank_zero(write)


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy on a file system that has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish(start: Path, run: Path) -> None:
    """RUN/model: the last stage's directory, under a name that does not depend on it."""
    def write():
        with cli.new_folder(run / "model") as temporary:
            for file in start.iterdir():
                if file.name != "training_state.json":
                    link(file, temporary / file.name)

    parallel.on_rank_zero(write)


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

    parallel.on_rank_zero(write)
    return start
