"""The paper's table in small: what each stage brings, beside one full stage, plain training, and fewer parts.

RedWhale (2408.11294, table of losses by stage) trains embedding and head, odd layers, even layers, then a LoRA. Here
each arm reads the same tokens of the same text (plain, with the base's own tokenizer, the same bytes), with one
learning rate for all, tuned for none:

    stages      embed, odd, even, lora, a quarter of the tokens each         full        everything at once
    plain       everything at once, base model, base tokenizer               odd         odd layers alone
    odd+embed   odd layers with embedding and head

    python -m studies.stages --grown GROWN --base BASE --data out/shards --base_data out/shards_base --out out/stages
"""
from pathlib import Path

from common import cli
from studies import arms
from studies.report import table
from studies.runs import bytes_read

HEADER = ["arm", "seed", "after", "tokens", "ko, bits a byte", "en, bits a byte", "seconds"]
ARMS = {"stages": ("embed", "odd", "even", "lora"), "full": ("full",), "odd": ("odd",), "odd+embed": ("odd+embed",)}


def rows_of(run: Path, arm: str, seed: int) -> list[list]:
    """A row for the start and for the end of each stage: bits a byte of both languages, seconds of training so far."""
    names = [stage.partition(":")[0] for stage in cli.read_json(run / "config.json")["stages"]]
    return [[arm, seed, names[r["stage"] - 1] if r["step"] else "start", r["tokens"], r["scores"]["ko"],
             r["scores"]["en"], round(r["seconds"])] for r in arms.measured(run)]


def main() -> None:
    """Train all arms, the headline pair with several seeds, and print and write the table."""
    parser = arms.parser(__doc__, "stages.py", "tokens an arm")
    flag = parser.add_argument
    flag("--grown", required=True, help="the grown model directory")
    flag("--base", required=True, help="the base that it grew from")
    flag("--data", type=Path, required=True, help="folder with shards ko and en, merged tokenizer")
    flag("--base_data", type=Path, required=True, help="the same documents, base tokenizer")
    flag("--korean", type=float, default=0.75, help="share of Korean windows; the rest is English replay")
    flag("--seeds", type=int, default=3, help="runs of stages, full and plain; the others have one")
    flag("--lora_rank", type=int, default=32, help="rank of the LoRA stage")
    args = parser.parse_args()
    settings = arms.start(args, seeds=1)
    data, rows = [f"{args.data}/ko={args.korean}", f"{args.data}/en={1 - args.korean}"], []
    for seed in range(args.seeds):
        for arm, parts in ARMS.items():
            if seed and arm not in ("stages", "full"):
                continue
            stages = [stage for part in parts for stage in arms.full(args, args.tokens / len(parts), part)]
            run = arms.train(args, f"{arm}-{seed}", model=args.grown, data=data, stages=stages, seed=seed,
                             lora_rank=args.lora_rank)
            rows += rows_of(run, arm, seed)
        tokens = {}
        for folder, n_bytes in bytes_read(args.out / f"full-{seed}").items():
            index = cli.read_json(args.base_data / folder.name / "index.json")
            tokens[args.base_data / folder.name] = n_bytes * index["tokens"] / index["bytes"]
        total = sum(tokens.values())
        run = arms.train(args, f"plain-{seed}", model=args.base, stages=arms.full(args, total), seed=seed,
                         data=[f"{folder}={n / total:.6f}" for folder, n in tokens.items()], lora_rank=args.lora_rank)
        rows += rows_of(run, "plain", seed)
        cli.write_json(args.out / "stages.json", {"settings": settings, "header": HEADER, "rows": rows})
        print(table(HEADER, rows))


if __name__ == "__main__":
    cli.run(main)
