"""In which order should the documents come: easy first, hard first, or any?

Llama-3-SynE (2407.18743, section on the perplexity-based curriculum) orders text by what the model itself finds easy,
low perplexity first, and reports it better than random and reversed. Here a document's difficulty is its bits a byte
under --scorer, the base before any Korean training, say. The same documents are packed in each order and read once, in
that order (--order as_packed), a quarter of the windows English in all arms:

    easy_first, hard_first          sorted
    random, random_again            two shuffles: how far these two lie apart is how much a difference must be to count

Two things to bear in mind. Sources differ in difficulty, so sorting also separates them: the table of sources says how
much. And the rate decays: what comes last is learnt with the small one (--train_flags "--min_lr 1" keeps it up).

    python -m studies.curriculum --model out/grown --scorer out/base_run/model --text out/clean/ko --data out/shards \\
           --out out/studies/curriculum
"""
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


def sample(args) -> list[dict]:
    """The documents of highest hash, of so many tokens together: {"text", "source", "bits_per_byte"} in the order of
    their hash. Validation documents are those of lowest hash (data.py), so none of them is here."""
    file = args.out / "sample.jsonl"
    arms.same(file, [args.tokens, args.seq_len, *map(str, (args.model, args.scorer, *args.text))], file.exists())
    if file.exists():
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = {data.text_hash(document["text"]): {"text": document["text"], "source": stem(path)}
             for path in files(args.text) for document in read_documents([path])}
    vocabulary, left, chosen = tokenizer.load(args.model), round(args.tokens * (1 - ENGLISH)), []
    for key in sorted(found, reverse=True):
        if left <= 0:
            break
        chosen.append(found[key])
        left -= len(vocabulary.encode(chosen[-1]["text"], bos=True, eos=True))
    if left > 0:
        raise cli.UserError(f"--text holds {left} tokens too few for --tokens {args.tokens}; ask for fewer, or give "
                            "more text")
    llama, vocabulary = model.load(args.scorer), tokenizer.load(args.scorer)
    length = min(args.seq_len, llama.config.max_position_embeddings)
    for document in cli.progress(chosen, "scoring", " documents"):
        document["bits_per_byte"] = difficulty(llama, vocabulary, document["text"], length)
    with cli.new_file(file) as temporary:
        temporary.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in chosen), encoding="utf-8")
    return chosen


@torch.no_grad()
def difficulty(llama: model.Llama, vocabulary, text: str, seq_len: int) -> float:
    """Bits a byte of one text, in windows of seq_len as data.bits_per_byte takes them."""
    ids = torch.tensor(vocabulary.encode(text, bos=True, eos=True))
    windows = (ids[None, a:a + seq_len + 1] for a in range(0, len(ids) - 1, seq_len))
    return sum(float(llama(window[:, :-1], window[:, 1:])[0]) for window in windows) / len(text.encode()) / math.log(2)


def orders(docs: list[dict]) -> dict[str, list[dict]]:
    """The same documents in each order."""
    rising = sorted(docs, key=lambda document: document["bits_per_byte"])
    shuffled = [random.Random(seed).sample(docs, len(docs)) for seed in (0, 1)]
    return {"easy_first": rising, "hard_first": rising[::-1], "random": shuffled[0], "random_again": shuffled[1]}


def packed(args, name: str, docs: list[dict]) -> Path:
    """The folder of shards with the documents in this order."""
    folder, text = args.out / "shards" / name, args.out / f"{name}.jsonl"
    if not folder.exists():
        with cli.new_file(text) as temporary:
            temporary.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in docs), encoding="utf-8")
        arms.pack(text, args.model, folder, val_fraction=1e-9)
    return folder


def main() -> None:
    """Choose, score, order, pack, train; print and write what came of it."""
    parser = arms.parser(__doc__, "curriculum.py", "tokens an arm, English included")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory")
    flag("--scorer", required=True, help="the model directory whose bits a byte are the difficulty")
    flag("--text", nargs="+", required=True, help="cleaned Korean documents: files, or folders of .jsonl")
    flag("--data", type=Path, required=True, help="folder with shards ko (only measured) and en")
    args = parser.parse_args()
    settings, docs, ends = arms.start(args), sample(args), {}
    for name, ordered in orders(docs).items():
        folder = packed(args, name, ordered)
        once = data.Shards(folder, verify=False).windows(args.seq_len) * args.seq_len / (1 - ENGLISH)
        run = arms.train(args, name, model=args.model, order="as_packed",
                         stages=arms.full(args, once // args.batch_tokens * args.batch_tokens),
                         data=[f"{folder}={1 - ENGLISH}", f"{args.data}/en={ENGLISH}", f"{args.data}/ko={arms.NEVER}"])
        ends[name] = arms.measured(run)[0]["scores"], arms.measured(run)[-1]["scores"]
    names = sorted({document["source"] for document in docs})
    bits = {source: [d["bits_per_byte"] for d in docs if d["source"] == source] for source in names}
    print(arms.table(["source", "documents", "bits a byte: 1st decile", "median", "9th decile"], [
        [source, len(b), *map(float, np.quantile(b, (0.1, 0.5, 0.9)))] for source, b in bits.items()]), "\n")

    def draw(axes):
        for name in ends:
            losses = np.array([step["loss"] for step in arms.steps(args.out / name)])
            width = max(1, len(losses) // 20)
            axes.plot(np.convolve(losses, np.ones(width) / width, "valid"), label=name, lw=1)
        axes.set(xlabel="step", ylabel="training loss, nats a token (running mean)")
        axes.legend()

    rows = [["untrained", *(ends["random"][0][x] for x in ("ko", "en"))]]
    rows += [[name, *(end[x] for x in ("ko", "en"))] for name, (_, end) in ends.items()]
    arms.write(args, "curriculum", {"settings": settings, "rows": rows, "difficulty": bits},
               ["order", "Korean, bits a byte", "English, bits a byte"], rows, draw)


if __name__ == "__main__":
    cli.run(main)
