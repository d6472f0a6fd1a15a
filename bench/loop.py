"""train.py against a loop that shares nothing with it: transformers' Llama, cross_entropy, torch's
AdamW.

    python -m bench.loop --model BASE --data SHARDS/ko=0.75 SHARDS/en=0.25 --lr 2e-4

Both train the same model directory on the same batches in float32, one stage `full`. Only the
batches (data.Loader) and the learning rates come from nanowhale. What is reported is the largest
difference of any step's loss. Two correct loops differ in the last bits of each sum, and training
multiplies such differences: the more, the higher the learning rate.
"""
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import train
from bench import measure
from common import cli, sources


def losses_of_the_peer(run: Path, model: str, steps: int) -> list[float]:
    """The losses of the other loop, on the batches and at the learning rates of a finished run."""
    from transformers import AutoModelForCausalLM
    settings = cli.read_json(run / "config.json")

    # The same batches.
    shards = []
    weights = []
    for entry in settings["data"]:
        folder, ends = sources.parse_source(entry)
        shards.append(data.Shards(folder))
        weights.append(ends)
    windows = settings["batch_tokens"] // settings["seq_len"]
    loader = data.Loader(shards, weights, settings["seq_len"], settings["seed"])
    loader.begin_stage(steps * windows)

    # The same start, and the same rule of what decays.
    llama = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    decayed = []
    not_decayed = []
    for name, p in llama.named_parameters():
        if p.dim() == 2 and "embed_tokens" not in name and "lm_head" not in name:
            decayed.append(p)
        else:
            not_decayed.append(p)
    groups = [
        {"params": decayed, "weight_decay": settings["weight_decay"]},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=tuple(settings["betas"]))

    losses = []
    for record in steps_of(run):
        inputs, targets, _ = loader.next(windows)
        logits = llama(torch.from_numpy(inputs)).logits
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), settings["clip"])
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
        losses.append(loss.item())
    return losses


def steps_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl that are steps."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def compare(args, lr: float) -> dict:
    """Train twice at one learning rate; the row of the table."""
    batch_tokens = 4 * args.seq_len
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train.main([
            "--model", args.model,
            "--data", *args.data,
            "--out", str(run),
            "--seq_len", str(args.seq_len),
            "--batch_tokens", str(batch_tokens),
            "--stages", f"full:{args.steps * batch_tokens}:{lr}",
            "--eval_bytes", "2000",
            "--device", "cpu",
        ])
        ours = [record["loss"] for record in steps_of(run)]
        theirs = losses_of_the_peer(run, args.model, args.steps)
    return {
        "peak lr": lr,
        "steps": len(ours),
        "first loss": ours[0],
        "last loss": ours[-1],
        "largest difference": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
    }


def main() -> None:
    """A comparison for each learning rate."""
    parser = cli.Parser(description=__doc__, prog="bench.loop")
    flag = parser.add_argument
    flag("--model", required=True, help="model directory")
    flag("--data", nargs="+", required=True, metavar="SHARDS=WEIGHT",
         help="shards packed with its tokenizer")
    flag("--lr", nargs="+", type=float, default=[2e-4, 1e-3],
         help="peak learning rates, a comparison each")
    flag("--steps", type=int, default=100, help="optimizer steps")
    flag("--seq_len", type=int, default=256, help="tokens per window; a step has four")
    args = parser.parse_args()
    for entry in args.data:
        if entry.count("=") != 1 or ":" in entry:
            raise cli.UserError("--data: write FOLDER=0.75; weights that move are not for this "
                                "comparison")
    rows = [compare(args, lr) for lr in args.lr]
    measure.report("loop", rows, measure.machine("transformers") | {"seq_len": args.seq_len})


if __name__ == "__main__":
    cli.run(main)
