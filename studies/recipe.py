"""The recipe on real text, from raw documents to the table of before and after: README's commands
in a row, with the settings of a small model.

    python -m studies.recipe --base BASE --kobest KOBEST --out out/real \\
        --formal wiki.jsonl law.jsonl --web manuals.jsonl --short reviews.jsonl --english english/

What it leaves in OUT is what the other studies start from:

    clean/{formal,web,short,en}   cleaned documents
    korean.model, merged.model    the tokenizers
    grown                         the grown model
    shards/{ko,en}                packed with the merged tokenizer
    shards_base/{ko,en}           the same documents, packed with the base's tokenizer
    run/                          the four stages

Stopped and started again with the same command, it skips what is finished and resumes training.
"""
import argparse
import subprocess
import sys
from pathlib import Path

from common import cli
from studies import arms
from studies.report import TASKS, table

ENGLISH = 0.25  # share of English windows, against forgetting
STAGES = ("embed", "odd", "even", "lora")
PROFILES = ("formal", "web", "short")  # of the Korean documents; English is formal


def program(argv: list, made: Path) -> None:
    """Run one of the programs, which makes MADE, unless MADE exists. UserError if it fails."""
    if made.exists():
        return
    words = [str(word) for word in argv]
    print(f"python {' '.join(words)}", flush=True)
    done = subprocess.run([sys.executable, arms.ROOT / words[0], *words[1:]])
    if done.returncode:
        raise cli.UserError(f"{words[0]} stopped before {made} was finished; the same command "
                            "resumes it")


def clean(args: argparse.Namespace) -> list[Path]:
    """Clean every kind of text by its profile; the folders of the Korean ones."""
    korean = []
    for profile in PROFILES:
        documents = getattr(args, profile)
        if not documents:
            continue
        out = args.out / "clean" / profile
        program(["data.py", "clean", "--input", *documents, "--profile", profile,
                 "--decontaminate", args.kobest, "--workers", args.workers, "--out", out], out)
        korean.append(out)
    out = args.out / "clean/en"
    program(["data.py", "clean", "--input", *args.english, "--lang", "en", "--profile", "formal",
             "--workers", args.workers, "--out", out], out)
    return korean


def grow(args: argparse.Namespace, korean: list[Path]) -> None:
    """Learn Korean pieces, merge them into the base's tokenizer, grow the model by their rows."""
    pieces = args.out / "korean.model"
    merged = args.out / "merged.model"
    grown = args.out / "grown"
    program(["tokenizer.py", "train", "--input", *korean, "--vocab_size", args.vocab_size,
             "--out", pieces], pieces)
    program(["tokenizer.py", "merge", "--base", args.base, "--korean", pieces,
             "--out", merged], merged)
    program(["init.py", "--model", args.base, "--tokenizer", merged, "--method", "subtoken_both",
             "--out", grown], grown)


def pack(args: argparse.Namespace, korean: list[Path]) -> None:
    """Pack both languages with the merged tokenizer, and with the base's for what is compared."""
    tokenizers = {"shards": args.out / "merged.model", "shards_base": args.base}
    documents = {"ko": korean, "en": [args.out / "clean/en"]}
    for folder, tokenizer in tokenizers.items():
        for language, paths in documents.items():
            out = args.out / folder / language
            program(["data.py", "pack", "--input", *paths, "--tokenizer", tokenizer,
                     "--out", out], out)


def measure(args: argparse.Namespace) -> dict:
    """Bits per byte of base, grown and trained model, and KoBEST before and after, with the control
    of answers scored without their questions."""
    shards = [args.out / "shards/ko", args.out / "shards/en"]
    models = {"before": args.base, "grown": args.out / "grown", "after": args.out / "run/model"}
    bits = args.out / "bits.json"
    program(["eval_bits.py", "--models", *models.values(), "--data", *shards,
             "--seq_len", args.seq_len, "--out", bits], bits)
    tokens = args.out / "tokens.json"
    program(["tokenizer.py", "report", "--tokenizers", args.base, args.out / "merged.model",
             "--input", *sorted((args.out / "clean").iterdir()), "--out", tokens], tokens)

    scores = {}
    for name in ("before", "after"):
        for control, flags in (("", []), (".answer_only", ["--answer_only"])):
            out = args.out / f"kobest/{name}{control}.json"
            program(["eval_kobest.py", "--model", models[name], "--data", args.kobest,
                     "--split", "dev", *flags, "--out", out], out)
            found = cli.read_json(out)
            scores[name + control] = {"mean": found["mean_acc"]}
            scores[name + control].update({task: found["tasks"][task]["acc"] for task in TASKS})
    return {"bits": cli.read_json(bits), "tokens": cli.read_json(tokens), "kobest": scores}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe, then print and write what was measured."""
    parser = cli.Parser(description=__doc__, prog="studies.recipe")
    flag = parser.add_argument
    flag("--base", required=True, help="the English model directory, tokenizer.model in it")
    flag("--kobest", required=True, help="folder of KoBEST: kept out of the corpus, and scored")
    flag("--formal", nargs="+", default=[], metavar="PATH",
         help="articles, rulings, statutes, books")
    flag("--web", nargs="+", default=[], metavar="PATH", help="pages and manuals")
    flag("--short", nargs="+", default=[], metavar="PATH", help="reviews and comments")
    flag("--english", nargs="+", required=True, metavar="PATH", help="English documents")
    flag("--out", type=Path, required=True, help="folder for all that is made")
    flag("--vocab_size", type=int, default=8000, help="Korean pieces")
    flag("--tokens", type=int, default=300_000, help="tokens per stage")
    flag("--lr", type=float, default=2e-3, help="peak learning rate of every stage")
    flag("--seq_len", type=int, default=256, help="tokens per window")
    flag("--batch_tokens", type=int, default=2048, help="tokens per step")
    flag("--lora_rank", type=int, default=32, help="rank of the LoRA in the last stage")
    flag("--workers", type=int, default=2, help="processes that clean")
    args = parser.parse_args(argv)
    args.train_flags = []
    args.eval_bytes = 1_000_000
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kobest").mkdir(exist_ok=True)

    korean = clean(args)
    grow(args, korean)
    pack(args, korean)
    stages = [f"{what}:{args.tokens}:{args.lr}" for what in STAGES]
    arms.train(args, "run", model=args.out / "grown", lora_rank=args.lora_rank, stages=stages,
               eval_every=50,
               data=[f"{args.out}/shards/ko={1 - ENGLISH}", f"{args.out}/shards/en={ENGLISH}"])
    result = {
        "settings": cli.settings(args),
        **measure(args),
        "stages": arms.measured(args.out / "run"),
    }
    cli.write_json(args.out / "recipe.json", result)

    # After every validation: bits per byte of both languages.
    rows = []
    for row in result["stages"]:
        rows.append([row["stage"], row["tokens"], *row["scores"].values(), round(row["seconds"])])
    print(table(["stage", "tokens", *result["stages"][0]["scores"], "seconds"], rows))
    rows = [[name, *scores.values()] for name, scores in result["kobest"].items()]
    print(table(["KoBEST dev", "mean", *TASKS], rows))


if __name__ == "__main__":
    cli.run(main)
