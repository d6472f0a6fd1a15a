"""Bits per byte: how well do several models predict the same text?

    bits per byte = Σ -log2 p(token | tokens before it) / UTF-8 bytes of the text

The sum is over all tokens of whole documents, EOS included. It is the size, in bits, to which the
model would compress the text, so lower is better. A loss per token cannot compare models with
different vocabularies: if a text has fewer tokens, each of them is harder to predict. Its bytes are
the same for all models.

    # on the validation documents of token shards
    python eval_bits.py --models BASE grown run/model --data shards/ko shards/en
    # on text files
    python eval_bits.py --models BASE run/model --input held_out.jsonl novel.txt --out bits.json
    # on eight GPUs
    torchrun --nproc_per_node=8 eval_bits.py --models BASE run/model --data shards/ko

The table has a row for each model and a column for each source: bits per byte, and the difference
from the first model. If a model's tokenizer packed the shards, the model gets the packed tokens, as
in training. Any other model gets the same documents as text, decoded by the tokenizer that packed
them.
"""
import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import data
import model
import sample
import tokenizer
from common import cli, documents, notices, parallel
from common.cli import UserError, say


@dataclass
class Source:
    """Documents that every model is scored on: one column of the table."""
    name: str
    sizes: list[int]                # UTF-8 bytes to be predicted in each document
    texts: list[str] = field(default_factory=list)      # empty if no model needs them

    # For documents from shards: their tokens, which tokens are a prompt's, the tokenizer that
    # packed them, and the number of documents that were left out.
    packed: list[np.ndarray] = field(default_factory=list)
    prompts: list[np.ndarray | None] = field(default_factory=list)
    tokenizer_sha256: str = ""
    left_out: int = 0


# ------------------------------------------------------------------------------ what is scored


def from_shards(
    folder: str,
    name: str,
    max_bytes: int,
    hash_of: dict[str, str],
    tokenizers: dict[str, object],
) -> Source:
    """The validation documents of token shards, up to max_bytes of text.

    hash_of: the SHA-256 of each model's tokenizer. tokenizers: the available tokenizers by their
    SHA-256. UserError if a model has another tokenizer than the shards, and the documents cannot be
    decoded.
    """
    shards = data.Shards(folder, verify=parallel.rank() == 0)
    packed, _ = shards.validation(max_bytes)
    sizes = shards.validation_sizes()[: len(packed)].tolist()
    prompts = shards.prompts(packed)
    packer = shards.tokenizer_sha256
    source = Source(name, sizes, packed=packed, prompts=prompts, tokenizer_sha256=packer)

    others = [path for path, sha256 in hash_of.items() if sha256 != packer]
    if not others:
        return source
    if shards.index["given"]:
        raise UserError(f"{folder} holds prompts and responses, and {others[0]} has another "
                        "tokenizer than the one that packed them; score it alone, on shards that "
                        "its own tokenizer packed")
    if packer not in tokenizers:
        raise UserError(f"{folder} was packed with a tokenizer that none of --models has; give it "
                        "with --tokenizer")
    return with_texts(source, tokenizers[packer])


def with_texts(source: Source, vocabulary: tokenizer.Vocabulary) -> Source:
    """Add the text of the documents, decoded by the tokenizer that packed them. A document whose
    text cannot be recovered is left out for every model, so that all are scored on the same
    text."""
    texts = vocabulary.decode([ids[1:-1].tolist() for ids in source.packed])  # without BOS and EOS
    kept = Source(source.name, sizes=[], tokenizer_sha256=source.tokenizer_sha256)
    for i, text in enumerate(texts):
        # A tokenizer that normalises text, or has no piece for some character, loses information.
        if len(text.encode()) != source.sizes[i]:
            kept.left_out += 1
            continue
        kept.sizes.append(source.sizes[i])
        kept.texts.append(text)
        kept.packed.append(source.packed[i])
        kept.prompts.append(source.prompts[i])
    if not kept.sizes:
        raise UserError(f"{source.name}: none of its {len(texts)} validation documents can be "
                        "decoded to its original text; score the files themselves with --input")
    return kept


def from_documents(path: str, name: str, max_bytes: int, reading: documents.Reading) -> Source:
    """The first documents of a file or a folder that fit into max_bytes, but at least one."""
    source = Source(name, sizes=[])
    rejected = []
    total = 0
    found = documents.read_documents(path, reading, rejected.append)
    for document in cli.progress(found, f"reading {path}", " documents"):
        text = document["text"]
        size = len(text.encode())
        if source.texts and total + size > max_bytes:
            break
        source.texts.append(text)
        source.sizes.append(size)
        total += size
    problem = ""
    if rejected:
        first = rejected[0]
        problem = (f"{len(rejected)} could not be read, the first at line {first['line']} of "
                   f"{first['file']}: {first['reason']}")
    if not source.texts:
        raise UserError(f"{path} holds no document; {problem or 'it is empty'}")
    if problem:
        say(f"{name}: {problem}")
    return source


def tokens_of(
    source: Source,
    vocabulary: tokenizer.Vocabulary,
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """The documents as tokens of this tokenizer, BOS ... EOS, and which tokens are a prompt's."""
    if vocabulary.sha256 == source.tokenizer_sha256:
        return source.packed, source.prompts
    rows = vocabulary.encode(source.texts, bos=True, eos=True)
    return [np.array(row, np.int64) for row in rows], [None] * len(rows)


# ------------------------------------------------------------------------------------- scoring


def window_length(folder: str, asked: int) -> int:
    """Tokens per window: --seq_len, or the default of train.py."""
    positions = model.Config.read(folder).max_position_embeddings
    if asked > positions:
        raise UserError(f"--seq_len {asked} is more than the {positions} positions of {folder}")
    return asked or min(positions, data.LONGEST_WINDOW)


def score_model(
    folder: str,
    seq_len: int,
    sources: list[Source],
    args: argparse.Namespace,
) -> dict[str, dict]:
    """The scores of one model on every source, by the source's name. UserError if a score is not
    finite."""
    vocabulary, llama = sample.load(Path(folder), args.device, getattr(torch, args.dtype))
    scores = {}
    for source in sources:
        tokens, prompts = tokens_of(source, vocabulary)
        score = data.score_documents(
            llama,
            tokens,
            prompts,
            sum(source.sizes),
            seq_len,
            args.micro_batch,
            args.device,
        )
        if not math.isfinite(score["bits_per_byte"]):
            raise UserError(f"{folder} on {source.name}: {score['bits_per_byte']} bits per byte; "
                            "are the model's weights broken?")
        score["bytes_per_token"] = score["bytes"] / score["tokens"]
        scores[source.name] = score
    return scores


# ----------------------------------------------------------------------------------- the table


def heading(sources: list[Source], width: int) -> str:
    """The first line of the table; `width` is the width of the models' names."""
    line = " " * width
    for source in sources:
        line += f"  {source.name:<{cell_width(source.name)}}"
    return line.rstrip()


def row(folder: str, scores: dict[str, dict], width: int) -> str:
    """A model's line of the table."""
    line = f"{folder:<{width}}"
    for name, score in scores.items():
        cell = f"{score['bits_per_byte']:.4f}"
        if "difference" in score:
            cell += f"  {score['difference']:+.4f}"
        line += f"  {cell:<{cell_width(name)}}"
    return line.rstrip()


def cell_width(name: str) -> int:
    """A column is as wide as its source's name, but at least as `1.2345  -0.1234`."""
    return max(len(name), 15)


def short_names(paths: list[str]) -> list[str]:
    """Shorten paths to their last part, or to as many parts as it takes to tell them apart.

    >>> short_names(["out/shards/ko", "held_out.jsonl"])
    ['ko', 'held_out.jsonl']
    >>> short_names(["raw/ko/wiki.jsonl", "raw/en/wiki.jsonl"])
    ['ko/wiki.jsonl', 'en/wiki.jsonl']
    """
    n = 0
    names = []
    while len(set(names)) < len(paths):
        n += 1
        names = ["/".join(Path(path).resolve().parts[-n:]) for path in paths]
    return names


# --------------------------------------------------------------------------------- the program


def main(argv: list[str] | None = None) -> None:
    """Score every model on every source and print the table."""
    parser = cli.Parser(description=__doc__, prog="eval_bits.py")
    flag = parser.add_argument
    flag("--models", nargs="+", required=True, metavar="DIR",
         help="model directories, each with its tokenizer; the others are compared with the first")
    flag("--data", nargs="+", default=[], metavar="SHARDS",
         help="folders of token shards, of which the validation documents are scored")
    flag("--input", nargs="+", default=[], metavar="PATH",
         help=f"files or folders of documents: {documents.KINDS}")
    documents.add_flags(parser)  # how to read them
    flag("--tokenizer", metavar="FILE",
         help="the tokenizer that packed --data, if none of --models has it")
    flag("--max_bytes", type=int, default=1_000_000,
         help="bytes of text per source, at most: its first documents, but at least one")
    flag("--seq_len", type=int, default=0,
         help=f"tokens per window; 0: each model's positions, at most {data.LONGEST_WINDOW}, as in "
              "training")
    flag("--micro_batch", type=int, default=8, help="windows per forward pass")
    flag("--out", type=Path,
         help="JSON file to write, with the scores, loss per token and bytes per token")
    cli.add_device(parser)
    args = parser.parse_args(argv)

    # Check the flags now, not after an hour of scoring.
    if not args.data and not args.input:
        raise UserError("nothing to score on: give --data SHARDS or --input FILES")
    for name, least in (("max_bytes", 1), ("seq_len", 0), ("micro_batch", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: give {least} or more")
    for paths in (args.models, args.data + args.input):
        if len({Path(path).resolve() for path in paths}) < len(paths):
            raise UserError(f"one of these is named twice: {' '.join(paths)}; name each once")
    if args.out and args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder; name a file in it")
    cli.set_device(args)
    with parallel.process_group(args.device):
        score(args)


def score(args: argparse.Namespace) -> None:
    """Open everything, score one model after the other, print and write the results."""
    settings = cli.settings(args)

    # Open tokenizers and text before the models, so that a mistake is found within a second.
    hash_of = {}
    tokenizers = {}
    lengths = {}
    for folder in args.models:
        cli.check_model_folder(folder)
        vocabulary = tokenizer.load(folder)
        tokenizer.check_rows(vocabulary, Path(folder, "config.json"))
        hash_of[folder] = vocabulary.sha256
        tokenizers[vocabulary.sha256] = vocabulary
        lengths[folder] = window_length(folder, args.seq_len)
    if args.tokenizer:
        vocabulary = tokenizer.load(args.tokenizer)
        tokenizers[vocabulary.sha256] = vocabulary
    sources = open_sources(args, hash_of, tokenizers)

    # Say what is scored.
    for source in sources:
        noun = "document" if len(source.sizes) == 1 else "documents"
        parts = [f"{source.name}: {len(source.sizes)} {noun}, {sum(source.sizes):,} bytes"]
        if source.left_out:
            parts.append(f"{source.left_out} more are left out for all models, because their "
                         "tokens do not decode to the original text")
        warning = notices.small_validation(len(source.sizes))
        if warning:
            parts.append(warning)
        say("; ".join(parts))
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{folder} {length:,}" for folder, length in lengths.items())
        say(f"tokens per window differ: {listed}. Longer windows give better scores; --seq_len "
            f"{min(lengths.values())} would give all models the same")

    # Only one model is in memory at a time.
    say("\nbits per byte, and the difference from the first model")
    width = max(len(folder) for folder in args.models)
    say(heading(sources, width))
    results = {}
    for folder in args.models:
        scores = score_model(folder, lengths[folder], sources, args)
        if results:
            first = results[args.models[0]]["sources"]
            for name in scores:
                before = first[name]["bits_per_byte"]
                scores[name]["difference"] = scores[name]["bits_per_byte"] - before
        results[folder] = {"seq_len": lengths[folder], "sources": scores}
        say(row(folder, scores, width))

    if args.out and parallel.rank() == 0:
        counts = {}
        for source in sources:
            counts[source.name] = {
                "documents": len(source.sizes),
                "bytes": sum(source.sizes),
                "left_out": source.left_out,
            }
        cli.write_json(args.out, {"settings": settings, "sources": counts, "models": results})


def open_sources(
    args: argparse.Namespace,
    hash_of: dict[str, str],
    tokenizers: dict[str, object],
) -> list[Source]:
    """The sources of --data, then those of --input."""
    reading = documents.reading_of(args)
    if args.input:
        documents.check_fields(args.input, reading)
    if args.input and parallel.rank() == 0:
        documents.announce(args.input, reading)
    names = short_names(args.data + args.input)
    sources = []
    for folder, name in zip(args.data, names, strict=False):
        sources.append(from_shards(folder, name, args.max_bytes, hash_of, tokenizers))
    for path, name in zip(args.input, names[len(args.data):], strict=True):
        sources.append(from_documents(path, name, args.max_bytes, reading))
    return sources


if __name__ == "__main__":
    cli.run(main)
