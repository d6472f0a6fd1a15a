"""Llama 3: a grown model directory, opened by nanowhale, transformers and lm-evaluation-harness.

What a row compares, and how much of it differed (it should be nothing, or float32's rounding):

- *ids*: each document of --input, encoded by eval_kobest's encoder and by AutoTokenizer
- *saved*: the same, after transformers saved its tokenizer and nanowhale read that
- *logits*: of the beginning of some documents, relative to the largest of each
- *ends*: for each of the model's EOS ids (Llama 3 has several) a prompt after which it is the
  likeliest token; does a continuation end there, in both?
- *KoBEST*: log-likelihoods of every choice, in nats, and the harness's, with --shots

The directory is any that the programs wrote. From Llama 3.2's:

    python tokenizer.py train --base BASE --input WIKI RULINGS REVIEWS --balance \\
        --vocab_size 16000 --out korean.tiktoken
    python tokenizer.py merge --base BASE --korean korean.tiktoken --out merged
    python data.py pack --input KO --tokenizer merged --out shards/ko
    python data.py pack --input EN --tokenizer merged --out shards/en
    python init.py --model BASE --tokenizer merged --out grown
    python train.py --model grown --data shards/ko=0.75 shards/en=0.25 --out run \\
        --stages embed:200M:2e-4 odd:300M:1e-4 even:300M:1e-4 lora:200M:1e-4

    pip install lm-eval transformers accelerate
    python -m bench.llama3 --model run/model --data KOBEST_DIR --input held_out.jsonl
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import eval_kobest as kobest
import model
import sample
import tokenizer
from bench import measure
from bench.kobest import contenders
from common import cli

POSITIONS = 128  # tokens of a document whose logits are compared
PROMPT = "대한민국의 수도는"  # "The capital of Korea is"


def row(what: str, compared: int, different: int, largest: float) -> dict:
    """A row of the table. `largest`: of the differences between numbers."""
    result = {"what": what, "compared": compared, "different": different}
    result["largest difference"] = largest
    print(measure.line(result), flush=True)
    return result


def compare_ids(what: str, folder: Path, peer, texts: list[str]) -> dict:
    """Token ids of texts, BOS included, by nanowhale in `folder` and by transformers' tokenizer."""
    encode = kobest.encoder(tokenizer.load(folder), folder)
    different = 0
    for text in texts:
        if encode(text) != peer(text)["input_ids"]:
            different += 1
    return row(what, len(texts), different, 0.0)


def compare_saved(folder: Path, peer, texts: list[str]) -> dict:
    """The same, of what transformers saves. It must also be the same vocabulary, by its hash."""
    with tempfile.TemporaryDirectory() as name:
        saved = Path(name)
        peer.save_pretrained(saved)
        if tokenizer.load(saved).sha256 != tokenizer.load(folder).sha256:
            raise cli.UserError(f"{folder}: what transformers saves is another tokenizer")
        return compare_ids("saved", saved, peer, texts)


@torch.inference_mode()
def compare_logits(llama: model.Llama, peer, documents: list[list[int]]) -> dict:
    """The logits of documents, relative to the largest of each. They differ from 2e-5 on."""
    differences = []
    for ids in documents:
        tokens = torch.tensor([ids[:POSITIONS]])                        # (1, T)
        ours = llama(tokens)
        theirs = peer(tokens).logits
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        differences.append(difference.item())
    different = sum(1 for difference in differences if difference > 2e-5)
    return row("logits", len(documents), different, max(differences))


@torch.inference_mode()
def compare_ends(llama: model.Llama, peer, ends: list[int], prompt: list[int]) -> dict:
    """Continuations in which each of `ends` is the likeliest token."""
    tokens = torch.tensor([prompt])
    hidden = peer.model(tokens).last_hidden_state[0, -1]                # (D,)
    different = 0
    for end in ends:
        # The row of the head that the last position's state points at has the largest logit.
        before = peer.lm_head.weight[end].clone()
        for one in (llama, peer):
            one.lm_head.weight[end] = 100 * hidden
        ours = llama.generate(tokens, 8, temperature=0, eos=ends)[0].tolist()
        theirs = peer.generate(tokens, max_new_tokens=8, do_sample=False)[0].tolist()
        for one in (llama, peer):
            one.lm_head.weight[end] = before
        if ours != theirs or ours != [*prompt, end]:
            different += 1
    return row("ends", len(ends), different, 0.0)


def compare_kobest(args: argparse.Namespace, llama: model.Llama, lm, tokens, shots: int) -> dict:
    """Log-likelihoods of every choice of the five tasks. They differ from 1e-3 nats on."""
    differences = []
    for name in kobest.KOBEST:
        examples = kobest.read(args.data, name, args.split, args.limit)
        if shots:
            pool = kobest.read(args.data, name, "train")
            examples = kobest.add_shots(examples, pool, shots)
        both = contenders(args, llama, lm, tokens, name, examples)
        _, ours = both["ours"]()
        _, theirs = both["harness"]()
        differences += np.abs(np.subtract(ours, theirs)).tolist()
    different = sum(1 for difference in differences if difference > 1e-3)
    return row(f"KoBEST, {shots} shots", len(differences), different, max(differences))


def main(argv: list[str] | None = None) -> None:
    """Compare, row by row."""
    parser = cli.Parser(description=__doc__, prog="bench.llama3")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory, with its tokenizer")
    flag("--data", type=Path, required=True, help="folder of KoBEST")
    flag("--input", nargs="+", required=True, help="documents whose ids and logits are compared")
    flag("--documents", type=int, default=2000, help="how many of them, from the beginning")
    flag("--split", default="dev", choices=["dev", "test", "train"], help="which file of each task")
    flag("--limit", type=int, help="the first N examples of each task; if not given, all")
    flag("--shots", type=int, nargs="+", default=[0, 2], help="solved examples before each context")
    flag("--batch_tokens", type=int, default=2048, help="tokens per forward pass")
    args = parser.parse_args(argv)
    args.device = "cpu"
    try:
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise cli.UserError(f"a peer is missing ({error}); pip install lm-eval transformers "
                            "accelerate") from None

    # The same files, in both programs.
    vocabulary, llama = sample.load(args.model, "cpu", torch.float32)
    peer_tokenizer = AutoTokenizer.from_pretrained(args.model)
    peer = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    texts = list(tokenizer.texts(args.input))[:args.documents]
    tokens = kobest.encoder(vocabulary, args.model)
    documents = [tokens(text) for text in texts[:20]]
    ends = sorted(set(sample.end_tokens(args.model, llama, vocabulary)))

    rows = []
    rows.append(compare_ids("ids", args.model, peer_tokenizer, texts))
    rows.append(compare_saved(args.model, peer_tokenizer, texts))
    rows.append(compare_logits(llama, peer, documents))
    rows.append(compare_ends(llama, peer, ends, tokens(PROMPT)))
    lm = HFLM(pretrained=peer, tokenizer=peer_tokenizer, batch_size=1)
    for shots in args.shots:
        rows.append(compare_kobest(args, llama, lm, tokens, shots))

    conditions = measure.machine("transformers", "tokenizers", "lm_eval", "tiktoken") | {
        "split": args.split,
        "limit": args.limit,
        "ends": ends,
        "model": llama.config.__dict__,
    }
    measure.report("llama3", rows, conditions)


if __name__ == "__main__":
    cli.run(main)
