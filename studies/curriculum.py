"""In which order should the documents come: easy first, hard first, or any?

Llama-3-SynE (2407.18743, section on the perplexity-based curriculum) orders text by what the model
itself finds easy, low perplexity first, and reports it better than random and reversed order. Here
a document's difficulty is its bits per byte under --scorer, for example the base before any Korean
training. The same documents are packed in each order and read once in that order (--order
as_packed), with a quarter of the windows English in all arms:

    easy_first, hard_first     sorted
    random, random_again       two shuffles: how far these two lie apart is how much a difference
                               must be to count

Bear two things in mind. Sources differ in difficulty, so sorting also separates them; the table of
sources says how much. And the learning rate decays, so what comes last is learned with a small one
(--train_flags "--min_lr 1" keeps it up).

    python -m studies.curriculum --model out/grown --scorer out/base_run/model \\
        --text out/clean/ko --data out/shards --out out/studies/curriculum
"""
import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch

import data
import model
import tokenizer
from common import cli
from common.documents import files, read_documents, stem
from studies import arms

ENGLISH = 0.25


def sample(args: argparse.Namespace) -> list[dict]:
    """Documents of so many tokens together: {"text", "source", "bits_per_byte"} of each.

    They are those of the highest hash, in the order of their hash. Validation documents are those
    of the lowest (data.py), so none of them is here.
    """
    file = args.out / "sample.jsonl"
    asked = [args.tokens, args.seq_len, str(args.model), str(args.scorer)]
    asked += [str(path) for path in args.text]
    arms.same(file, asked, file.exists())
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    chosen = choose(args)
    llama = model.load(args.scorer)
    vocabulary = tokenizer.load(args.scorer)
    length = min(args.seq_len, llama.config.max_position_embeddings)
    for document in cli.progress(chosen, "scoring", " documents"):
        document["bits_per_byte"] = difficulty(llama, vocabulary, document["text"], length)
    write_jsonl(file, chosen)
    return chosen


def choose(args: argparse.Namespace) -> list[dict]:
    """The documents of sample(), unscored. UserError if --text holds too few tokens."""
    by_hash = {}
    for path in files(args.text):
        for document in read_documents([path]):
            key = data.text_hash(document["text"])
            by_hash[key] = {"text": document["text"], "source": stem(path)}

    vocabulary = tokenizer.load(args.model)
    left = round(args.tokens * (1 - ENGLISH))
    chosen = []
    for key in sorted(by_hash, reverse=True):
        if left <= 0:
            break
        chosen.append(by_hash[key])
        left -= len(vocabulary.encode(by_hash[key]["text"], bos=True, eos=True))
    if left > 0:
        raise cli.UserError(f"--text holds {left} tokens too few for --tokens {args.tokens}; ask "
                            "for fewer, or give more text")
    return chosen


def write_jsonl(file: Path, documents: list[dict]) -> None:
    """A line per document."""
    lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
    with cli.new_file(file) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


@torch.no_grad()
def difficulty(llama: model.Llama, vocabulary, text: str, seq_len: int) -> float:
    """Bits per byte of one text, in windows of seq_len, as data.bits_per_byte takes them."""
    ids = torch.tensor(vocabulary.encode(text, bos=True, eos=True))
    nats = 0.0
    for begin in range(0, len(ids) - 1, seq_len):
        window = ids[None, begin:begin + seq_len + 1]           # (1, T + 1)
        loss, _ = llama(window[:, :-1], window[:, 1:])
        nats += float(loss)
    return nats / len(text.encode()) / math.log(2)


def orders(docs: list[dict]) -> dict[str, list[dict]]:
    """The same documents in each order."""
    rising = sorted(docs, key=lambda document: document["bits_per_byte"])
    return {
        "easy_first": rising,
        "hard_first": rising[::-1],
        "random": random.Random(0).sample(docs, len(docs)),
        "random_again": random.Random(1).sample(docs, len(docs)),
    }


def packed(args: argparse.Namespace, name: str, docs: list[dict]) -> Path:
    """The folder of shards with the documents in this order."""
    folder = args.out / "shards" / name
    text = args.out / f"{name}.jsonl"
    if not folder.exists():
        write_jsonl(text, docs)
        arms.pack(text, args.model, folder, val_fraction=1e-9)
    return folder


def train_arm(args: argparse.Namespace, name: str, docs: list[dict]) -> tuple[dict, dict]:
    """Read the documents once in this order; the scores before and after."""
    folder = packed(args, name, docs)
    korean_tokens = data.Shards(folder, verify=False).windows(args.seq_len) * args.seq_len
    once = korean_tokens / (1 - ENGLISH)
    run = arms.train(
        args,
        name,
        model=args.model,
        order="as_packed",
        stages=arms.full(args, once // args.batch_tokens * args.batch_tokens),
        data=[f"{folder}={1 - ENGLISH}", f"{args.data}/en={ENGLISH}",
              f"{args.data}/ko={arms.NEVER}"],
    )
    records = arms.measured(run)
    return records[0]["scores"], records[-1]["scores"]


def main() -> None:
    """Choose, score, order, pack, train; print and write the results."""
    parser = arms.parser(__doc__, "curriculum.py", "tokens per arm, English included")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory")
    flag("--scorer", required=True,
         help="the model directory whose bits per byte are the difficulty")
    flag("--text", nargs="+", required=True,
         help="cleaned Korean documents: files, or folders of .jsonl")
    flag("--data", type=Path, required=True, help="folder with shards ko (only measured) and en")
    args = parser.parse_args()
    settings = arms.start(args)
    docs = sample(args)
    ends = {name: train_arm(args, name, ordered) for name, ordered in orders(docs).items()}

    # How much sorting by difficulty separates the sources.
    bits: dict[str, list[float]] = {}
    for source in sorted({document["source"] for document in docs}):
        bits[source] = [d["bits_per_byte"] for d in docs if d["source"] == source]
    header = ["source", "documents", "bits per byte: 1st decile", "median", "9th decile"]
    rows = []
    for source, values in bits.items():
        deciles = [float(value) for value in np.quantile(values, (0.1, 0.5, 0.9))]
        rows.append([source, len(values), *deciles])
    print(arms.table(header, rows), "\n")

    def draw(axes):
        for name in ends:
            losses = np.array([step["loss"] for step in arms.steps(args.out / name)])
            width = max(1, len(losses) // 20)
            axes.plot(np.convolve(losses, np.ones(width) / width, "valid"), label=name, lw=1)
        axes.set(xlabel="step", ylabel="training loss, nats per token (running mean)")
        axes.legend()

    before, _ = ends["random"]
    rows = [["untrained", before["ko"], before["en"]]]
    for name, (_, after) in ends.items():
        rows.append([name, after["ko"], after["en"]])
    result = {"settings": settings, "rows": rows, "difficulty": bits}
    header = ["order", "Korean, bits per byte", "English, bits per byte"]
    arms.write(args, "curriculum", result, header, rows, draw)


if __name__ == "__main__":
    cli.run(main)
