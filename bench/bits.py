"""Bits per byte: eval_bits.py beside transformers, and how far few documents scatter.

Two tables. *Agreement*: the same documents scored as eval_bits.py scores them, and by transformers'
Llama in float64, with windows and a softmax of its own that are written from what
data.score_documents documents. (Inside transformers, RMSNorm and the angles of RoPE stay float32.)

*Scatter*: every document is scored alone. Then N of them are drawn, again and again, and bits per
byte are taken of each draw. Their standard deviation, in percent of what all documents give, is how
far a validation set of N documents typically lies from its source.

    pip install transformers
    OMP_NUM_THREADS=1 python -m bench.bits --model DIR --input FILES
"""
import argparse
import math
from pathlib import Path

import numpy as np
import torch

import data
import eval_bits
import sample
import tokenizer
from bench import measure
from common import cli

SIZES = (12, 30, 100)  # documents per draw; 30 is notices.ENOUGH_DOCUMENTS


# ----------------------------------------------------------------------------------- documents


def open_source(path: str, name: str, args: argparse.Namespace) -> eval_bits.Source:
    """The documents that data.py pack would hold out first: those of the lowest hashes."""
    # Neighbours in a file are often alike, so its first documents would be no sample of it.
    texts = tokenizer.texts([path])
    chosen = data.choose_validation(texts, 1.0, args.max_bytes)
    kept = list(chosen.values())[: args.documents]
    if not kept:
        raise cli.UserError(f"{path} has fewer than two different documents")
    return eval_bits.Source(name, [len(text.encode()) for text in kept], kept)


def beginning(source: eval_bits.Source, max_bytes: int) -> eval_bits.Source:
    """Its first documents that fit into max_bytes, and at least one."""
    totals = np.cumsum(source.sizes)
    n = max(1, int((totals <= max_bytes).sum()))
    return eval_bits.Source(source.name, source.sizes[:n], source.texts[:n])


# ----------------------------------------------------------------------------------- agreement


def peer_nats(peer, ids: list[int], seq_len: int) -> float:
    """Nats of a document, BOS ... EOS, by a model of transformers."""
    # Windows of seq_len inputs, each beginning with the last target of the one before: so every
    # token but BOS is a target once. One window at a time, so that nothing is padded.
    nats = 0.0
    for start in range(0, len(ids) - 1, seq_len):
        window = torch.tensor(ids[start : start + seq_len + 1], device=peer.device)
        with torch.no_grad():
            logits = peer(window[None, :-1]).logits[0]

        # -log softmax, written out: neither our loss nor PyTorch's has a part in it.
        targets = window[1:, None]
        largest = logits.max(dim=-1, keepdim=True).values
        log_total = (logits - largest).exp().sum(dim=-1, keepdim=True).log() + largest
        nats += float((log_total - logits.gather(1, targets)).sum())
    return nats


def agreement(
    args: argparse.Namespace,
    peer,
    vocabulary,
    seq_len: int,
    sources: list[eval_bits.Source],
) -> list[dict]:
    """A row per source: bits per byte by eval_bits.py, by `peer`, and the relative difference."""
    scores = eval_bits.score_model(str(args.model), seq_len, sources, args)
    rows = []
    for source in sources:
        nats = 0.0
        for text in cli.progress(source.texts, "transformers", " documents"):
            ids = vocabulary.encode(text, bos=True, eos=True)
            nats += peer_nats(peer, ids, seq_len)
        ours = scores[source.name]["bits_per_byte"]
        theirs = nats / sum(source.sizes) / math.log(2)
        rows.append({
            "source": source.name,
            "documents": len(source.sizes),
            "bytes": sum(source.sizes),
            "eval_bits": ours,
            "transformers": theirs,
            "relative difference": abs(ours - theirs) / theirs,
        })
    return rows


# ------------------------------------------------------------------------------------- scatter


def nats_per_document(
    llama,
    vocabulary,
    source: eval_bits.Source,
    seq_len: int,
    args: argparse.Namespace,
) -> np.ndarray:
    """Nats of each document, float64 (documents,)."""
    nats = []
    pairs = zip(source.texts, source.sizes, strict=True)
    for text, size in cli.progress(pairs, source.name, " documents", total=len(source.texts)):
        ids = vocabulary.encode(text, bos=True, eos=True)
        score = data.score_documents(
            llama,
            [np.array(ids)],
            [None],
            size,
            seq_len,
            args.micro_batch,
            args.device,
        )
        nats.append(score["loss"] * score["tokens"])
    return np.array(nats)


def deviation(nats: np.ndarray, sizes: np.ndarray, n: int, draws: int, seed: int) -> float:
    """Standard deviation of bits per byte over `draws` draws of n documents, in percent of what all
    documents give. nats, sizes: (documents,), sizes in bytes.

    >>> sizes = np.array([100, 200, 300])
    >>> deviation(0.5 * sizes, sizes, 12, 1000, seed=0) < 1e-9  # every byte costs as much
    True
    """
    # Drawn with replacement, for the documents stand for a source that has many more: without it,
    # draws of nearly all of them would be nearly the same set, and seem to agree.
    drawn = np.random.default_rng(seed).integers(len(nats), size=(draws, n))
    nats_per_byte = nats[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    whole = nats.sum() / sizes.sum()
    return float(100 * nats_per_byte.std() / whole)


def scatter(
    args: argparse.Namespace,
    vocabulary,
    llama,
    seq_len: int,
    sources: list[eval_bits.Source],
) -> list[dict]:
    """A row per source: bits per byte of all its documents, and how far draws of them scatter."""
    rows = []
    for source in sources:
        nats = nats_per_document(llama, vocabulary, source, seq_len, args)
        sizes = np.array(source.sizes)
        row = {
            "source": source.name,
            "documents": len(sizes),
            "bytes": int(sizes.sum()),
            "bits per byte": float(nats.sum() / sizes.sum() / math.log(2)),
        }
        for n in SIZES:
            row[f"{n} documents, ± %"] = deviation(nats, sizes, n, args.draws, args.seed)
        rows.append(row)
    return rows


# --------------------------------------------------------------------------------- the program


def main(argv: list[str] | None = None) -> None:
    """Score the documents with both; draw from them; print and write both tables."""
    parser = cli.Parser(description=__doc__, prog="bench.bits")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory, with its tokenizer")
    flag("--input", nargs="+", required=True, metavar="FILE", help="documents, a source per file")
    flag("--agreement_bytes", type=int, default=55_000,
         help="bytes of text, at most, of each source for the first table")
    flag("--documents", type=int, default=1000,
         help="documents, at most, of each source for the second table")
    flag("--max_bytes", type=int, default=1_000_000, help="bytes of their text, at most")
    flag("--draws", type=int, default=1000, help="draws of each number of documents")
    flag("--seed", type=int, default=0, help="of the draws")
    flag("--micro_batch", type=int, default=8, help="windows per forward pass")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    try:
        from transformers import LlamaForCausalLM
    except ImportError as error:
        raise cli.UserError(f"the peer is missing ({error}); pip install transformers") from None
    if len({Path(path).resolve() for path in args.input}) < len(args.input):
        raise cli.UserError(f"one of these is named twice: {' '.join(args.input)}")

    # The text comes before the models: a mistake is found in seconds.
    sources = []
    for path, name in zip(args.input, eval_bits.short_names(args.input), strict=True):
        sources.append(open_source(path, name, args))
    seq_len = eval_bits.window_length(str(args.model), 0)
    vocabulary, llama = sample.load(args.model, args.device, getattr(torch, args.dtype))
    peer = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float64).to(args.device)

    # The second table takes longer, so the first is on the screen before it.
    few = [beginning(source, args.agreement_bytes) for source in sources]
    agreed = agreement(args, peer, vocabulary, seq_len, few)
    print(f"bits per byte, {args.dtype} beside transformers in float64")
    print(measure.table(agreed), flush=True)
    scattered = scatter(args, vocabulary, llama, seq_len, sources)

    conditions = measure.machine("transformers") | {
        "dtype": args.dtype,
        "device": args.device,
        "seq_len": seq_len,
        "draws": args.draws,
        "seed": args.seed,
        "model": llama.config.__dict__ | {"parameters": sum(p.numel() for p in llama.parameters())},
    }
    print("\nstandard deviation of bits per byte over draws of N documents")
    measure.report("bits", scattered, conditions, agreement=agreed)


if __name__ == "__main__":
    cli.run(main)
