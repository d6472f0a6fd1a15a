"""The paper's table in small: what each stage brings, beside one full stage and plain training.

RedWhale (2408.11294, table of losses by stage) trains embedding and head, odd layers, even layers,
then a LoRA. Here every arm reads the same number of tokens (plain, with the base's own tokenizer,
the same bytes), with one learning rate for all, tuned for none of them:

    stages       embed, odd, even, lora, a quarter of the tokens each
    full         everything at once
    odd          odd layers alone
    odd+embed    odd layers with embedding and head
    plain        everything at once, base model, base tokenizer

    python -m studies.stages --grown GROWN --base BASE --data out/shards \\
        --base_data out/shards_base --out out/stages
"""
import argparse
from pathlib import Path

from common import cli
from studies import arms
from studies.report import table
from studies.runs import bytes_read

HEADER = ["arm", "seed", "after", "tokens", "ko, bits per byte", "en, bits per byte", "seconds"]
ARMS = {
    "stages": ("embed", "odd", "even", "lora"),
    "full": ("full",),
    "odd": ("odd",),
    "odd+embed": ("odd+embed",),
}
# What is repeated with other seeds, beside plain; the rest runs once.
REPEATED = ("stages", "full")


def rows_of(run: Path, arm: str, seed: int) -> list[list]:
    """A row for the start and for the end of each stage, as HEADER says."""
    names = [stage.partition(":")[0] for stage in cli.read_json(run / "config.json")["stages"]]
    rows = []
    for record in arms.measured(run):
        after = names[record["stage"] - 1] if record["step"] else "start"
        scores = record["scores"]
        seconds = round(record["seconds"])
        rows.append([arm, seed, after, record["tokens"], scores["ko"], scores["en"], seconds])
    return rows


def train_arm(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """An arm that starts from the grown model; the tokens are divided among its stages."""
    parts = ARMS[arm]
    stages = []
    for part in parts:
        stages += arms.full(args, args.tokens / len(parts), part)
    return arms.train(
        args,
        f"{arm}-{seed}",
        model=args.grown,
        data=[f"{args.data}/ko={args.korean}", f"{args.data}/en={1 - args.korean}"],
        stages=stages,
        seed=seed,
        lora_rank=args.lora_rank,
    )


def train_plain(args: argparse.Namespace, seed: int) -> Path:
    """The base with its own tokenizer, on as many bytes of each source as the full arm read."""
    tokens = {}
    for folder, n_bytes in bytes_read(args.out / f"full-{seed}").items():
        folder = args.base_data / folder.name
        index = cli.read_json(folder / "index.json")
        tokens[folder] = n_bytes * index["tokens"] / index["bytes"]
    total = sum(tokens.values())
    return arms.train(
        args,
        f"plain-{seed}",
        model=args.base,
        stages=arms.full(args, total),
        seed=seed,
        data=[f"{folder}={n / total:.6f}" for folder, n in tokens.items()],
        lora_rank=args.lora_rank,
    )


def main() -> None:
    """Train all arms, seed by seed; print and write the table after each."""
    parser = arms.parser(__doc__, "stages.py", "tokens per arm")
    flag = parser.add_argument
    flag("--grown", required=True, help="the grown model directory")
    flag("--base", required=True, help="the base that it grew from")
    flag("--data", type=Path, required=True,
         help="folder with shards ko and en, packed with the merged tokenizer")
    flag("--base_data", type=Path, required=True,
         help="the same documents, packed with the base's tokenizer")
    flag("--korean", type=float, default=0.75,
         help="share of Korean windows; the rest is English replay")
    flag("--seeds", type=int, default=3,
         help="runs of stages, full and plain; the others have one")
    flag("--lora_rank", type=int, default=32, help="rank of the LoRA stage")
    args = parser.parse_args()
    settings = arms.start(args, seeds=1)

    rows = []
    for seed in range(args.seeds):
        for arm in ARMS:
            if seed == 0 or arm in REPEATED:
                rows += rows_of(train_arm(args, arm, seed), arm, seed)
        rows += rows_of(train_plain(args, seed), "plain", seed)
        result = {"settings": settings, "header": HEADER, "rows": rows}
        cli.write_json(args.out / "stages.json", result)
        print(table(HEADER, rows))


if __name__ == "__main__":
    cli.run(main)
