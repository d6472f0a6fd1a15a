"""The paper's table in small: what each stage brings, beside one full stage, plain training, and fewer parts.

RedWhale (2408.11294, table of losses by stage) trains embedding and head, odd layers, even layers, then a LoRA. Here
each arm reads the same tokens of the same text (plain, with the base's own tokenizer, the same bytes), with one
learning rate for all, tuned for none:

    stages      embed, odd, even, lora, a quarter of the tokens each         full        everything at once
    plain       everything at once, base model, base tokenizer               odd         odd layers alone
    odd+embed   odd layers with embedding and head

    python -m studies.stages --grown GROWN --base BASE --data out/shards --base_data out/shards_base --out out/stages
"""
import json
import subprocess
import sys
from pathlib import Path

import cli
from studies.plain import bytes_read, steps

ARMS = {"stages": ("embed", "odd", "even", "lora"), "full": ("full",), "odd": ("odd",), "odd+embed": ("odd+embed",)}


def train(args, model: str, data: list[str], out: Path, stages: list[str], seed: int) -> None:
    """One run of train.py, unless it is there already; its own output goes to OUT.log."""
    if (out / "model").exists():
        return
    with open(f"{out}.log", "w", encoding="utf-8") as log:
        flags = ["--resume", str(out)] if (out / "config.json").exists() else [
            "--model", model, "--data", *data, "--out", str(out), "--stages", *stages, "--seed", str(seed), "--seq_len",
            str(args.seq_len), "--eval_bytes", str(args.eval_bytes), "--batch_tokens", str(args.batch_tokens),
            "--lora_rank", str(args.lora_rank)]
        done = subprocess.run([sys.executable, "train.py", *flags], stdout=log, stderr=log)
    if done.returncode:
        raise cli.UserError(f"train.py stopped; {out}.log says why")


def measured(run: Path, arm: str, seed: int) -> list[dict]:
    """A row for the start and for the end of each stage: bits a byte of every source, seconds of training so far."""
    names = cli.read_json(run / "config.json")["stages"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    batch, rows = cli.read_json(run / "config.json")["batch_tokens"], []
    for record in (r for r in records if "validation" in r):
        done = [r for r in steps(run) if (r["stage"], r["step"]) <= (record["stage"], record["step"])]
        after = names[record["stage"] - 1].partition(":")[0] if record["step"] else "start"
        rows.append({"arm": arm, "seed": seed, "after": after, "tokens": record["tokens"],
                     **{name: score["bits_per_byte"] for name, score in record["validation"].items()},
                     "seconds": sum(batch / r["tokens_per_second"] for r in done)})
    return rows


def main() -> None:
    """Train all arms, the headline pair with several seeds, and print and write the table."""
    parser = cli.Parser(description=__doc__, prog="stages.py")
    flag = parser.add_argument
    flag("--grown", required=True, help="the grown model directory")
    flag("--base", required=True, help="the base that it grew from")
    flag("--data", type=Path, required=True, help="folder with shards ko and en, merged tokenizer")
    flag("--base_data", type=Path, required=True, help="the same documents, base tokenizer")
    flag("--out", type=Path, required=True, help="folder for the runs and stages.json")
    flag("--tokens", type=int, default=300_000, help="tokens an arm")
    flag("--korean", type=float, default=0.75, help="share of Korean windows; the rest is English replay")
    flag("--lr", default="2e-3", help="peak learning rate of every stage of every arm")
    flag("--seeds", type=int, default=3, help="runs of stages, full and plain; the others have one")
    flag("--seq_len", type=int, default=256, help="tokens a window")
    flag("--batch_tokens", type=int, default=2048, help="tokens a step")
    flag("--lora_rank", type=int, default=32, help="rank of the LoRA stage")
    flag("--eval_bytes", type=int, default=100_000, help="bytes of validation text of each language")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    weights, rows = {"ko": args.korean, "en": 1 - args.korean}, []
    for seed in range(args.seeds):
        for arm, parts in ARMS.items():
            if seed and arm not in ("stages", "full"):
                continue
            run = args.out / f"{arm}-{seed}"
            train(args, args.grown, [f"{args.data / name}={w}" for name, w in weights.items()], run,
                  [f"{part}:{args.tokens // len(parts)}:{args.lr}" for part in parts], seed)
            rows += measured(run, arm, seed)
            print(rows[-1], flush=True)
        tokens = {}
        for folder, n_bytes in bytes_read(args.out / f"full-{seed}").items():
            index = cli.read_json(args.base_data / folder.name / "index.json")
            tokens[args.base_data / folder.name] = n_bytes * index["tokens"] / index["bytes"]
        run, total = args.out / f"plain-{seed}", sum(tokens.values())
        train(args, args.base, [f"{folder}={n / total:.6f}" for folder, n in tokens.items()], run,
              [f"full:{round(total)}:{args.lr}"], seed)
        rows += measured(run, "plain", seed)
        print(rows[-1], flush=True)
    cli.write_json(args.out / "stages.json", {"settings": cli.settings(args), "rows": rows})
    print("| arm | seed | after | tokens | ko, bits a byte | en, bits a byte | seconds |\n" + "| --- " * 7 + "|")
    for r in rows:
        print(f"| {r['arm']} | {r['seed']} | {r['after']} | {r['tokens']} | {r['ko']:.3f} | {r['en']:.3f} | "
              f"{r['seconds']:.0f} |")


if __name__ == "__main__":
    cli.run(main)
