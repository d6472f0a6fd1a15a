"""How fast a byte-level vocabulary encodes: MB of text per second of CPU time, one thread.

    definition, cold    common/byte_level.py, which has seen no chunk yet
    definition, warm    the same on the same text once more: chunks are remembered
    tiktoken            what it uses where that is installed
    tokenizers          what transformers uses

Then `data.py pack` over all of --input, with tiktoken and without: seconds of CPU time, and whether
the shards are the same bytes.

    python -m bench.encoding --tokenizer merged --input raw/ko/wiki.jsonl raw/en/wiki.jsonl
"""
import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import tiktoken
from tokenizers import Tokenizer

import data
import tokenizer
from bench import measure
from common import byte_level, cli


def cpu_seconds(work: Callable, *arguments) -> float:
    """Seconds of CPU time that a call takes, its threads included."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def first_texts(path: str, max_bytes: int) -> tuple[list[str], float]:
    """The first documents of a file, up to so many bytes, and their size in MB."""
    chosen = []
    size = 0
    for text in tokenizer.texts([path]):
        chosen.append(text)
        size += len(text.encode())
        if size >= max_bytes:
            break
    return chosen, size / 1e6


def encode_all(vocabulary: byte_level.ByteLevel, chosen: list[str]) -> None:
    """Encode every text by the definition."""
    for text in chosen:
        vocabulary.encode_chunks(text)


def encode_by_tiktoken(vocabulary: byte_level.ByteLevel, chosen: list[str]) -> None:
    """Encode every text as `ByteLevel.encode` does with one worker."""
    vocabulary.encode(chosen, bos=False, workers=1)


def speeds(folder: str, chosen: list[str], size: float, runs: int) -> dict[str, float]:
    """MB per second of each contender, medians of `runs` turns."""
    vocabulary = tokenizer.load(folder)
    peer = Tokenizer.from_file(f"{folder}/tokenizer.json")

    def cold() -> float:
        vocabulary.ids_of_chunk.cache_clear()
        return cpu_seconds(encode_all, vocabulary, chosen)

    # After the turn of `cold`, every chunk that fits has been seen.
    contenders = {
        "definition, cold": cold,
        "definition, warm": partial(cpu_seconds, encode_all, vocabulary, chosen),
        "tiktoken": partial(cpu_seconds, encode_by_tiktoken, vocabulary, chosen),
        "tokenizers": partial(cpu_seconds, peer.encode_batch, chosen),
    }
    seconds = measure.interleaved(contenders, runs)
    return {name: size / median(values) for name, values in seconds.items()}


def pack(args: argparse.Namespace, engine, folder: Path) -> tuple[float, list[str]]:
    """CPU seconds of `data.py pack`, and the hashes of the shards it wrote."""
    byte_level.tiktoken = engine
    argv = ["pack", "--input", *args.input, "--tokenizer", args.tokenizer, "--out", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()):
        seconds = cpu_seconds(data.main, argv)
    return seconds, [cli.sha256(file) for file in sorted(folder.glob("*.npy"))]


def main() -> None:
    """Measure, print and write bench/results/encoding.json."""
    parser = cli.Parser(description=__doc__, prog="python -m bench.encoding")
    flag = parser.add_argument
    flag("--tokenizer", required=True, help="folder with a byte-level tokenizer.json")
    flag("--input", nargs="+", required=True, help="files of documents")
    flag("--max_bytes", type=int, default=2_000_000, help="text of each file, for the speeds")
    flag("--runs", type=int, default=5, help="turns, of which the median counts")
    args = parser.parse_args()

    rows = []
    for path in args.input:
        chosen, size = first_texts(path, args.max_bytes)
        row = {"input": f"{Path(path).parent.name}/{Path(path).stem}", "MB": size}
        rows.append(row | speeds(args.tokenizer, chosen, size, args.runs))
    with tempfile.TemporaryDirectory() as name:
        with_tiktoken, shards = pack(args, tiktoken, Path(name) / "with")
        without, same_shards = pack(args, None, Path(name) / "without")
    packing = {
        "seconds with tiktoken": with_tiktoken,
        "seconds without": without,
        "same shards": shards == same_shards,
    }
    print(packing)
    conditions = measure.machine("tiktoken", "tokenizers", "regex")
    measure.report("encoding", rows, conditions, packing=packing)


if __name__ == "__main__":
    cli.run(main)
