"""The documents between the passes: texts on disk, and a few numbers for each in memory.

The first pass writes one file per unit with the documents it kept, one line each: source, line in
the source, and the document as JSON. A document's number is its position among all of them.
`starts.npy` holds the number of each unit's first document; `kept.npy` holds one byte per document,
whether it is still kept.

Memory of the main process: what is held for each document, and the peak for 35 million documents
(bench/cleaning.py measures the growth):

    step         bytes per document                                         at most   35 million
    always       source 4, offset 8, size 4, kept 1                              17       0.6 GB
    exact        and a key 16, the order of the keys 8, the keys in order        90       3.2 GB
                 16, what stays 8, workspace 25
    near         and parent 4, candidate 4, a band 8 twice, its order 8,         60       2.1 GB
                 sorted 8, workspace 3; the other bands wait on disk (112)
    perplexity   and a score 4 twice, workspace 9                                34       1.2 GB

The rest does not grow with the number of documents: for each process, one unit (8 MB of text, about
200 MB while it is processed) and the benchmark (20 MB); the models (2 × 100 MB, shared; 600 MB
while one is trained, in the main process); the line sketch (512 MB at most, shared). Each input
file costs about 7 KB, for its counts and its row in the report, so merge a million small files into
one. The disk holds the corpus up to three times: between the passes, cleaned, and while the output
files are put together.
"""
import bisect
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from cleaning import duplicates
from cleaning.arrays import new_array
from cleaning.work import load
from common import cli

BATCH = 2**20  # characters handed to numpy at once: it is slow on single short texts

# ---- A document ---------------------------------------------------------------------------------


def where_from(source: str, line: int, document: dict) -> dict:
    """How records name a document: its file, its line, and its id (file:line if it has none)."""
    id = document.get("id")
    if id is None:
        id = f"{source}:{line}"
    return {"file": source, "line": line, "id": id}


def write_document(file: IO[bytes], source: int, line: int, document: dict) -> int:
    """Write a document with the number of its source and its line there; return the bytes
    written."""
    text = json.dumps(document, ensure_ascii=False)
    return file.write(f"{source}\t{line}\t{text}\n".encode())


def parse_document(sources: list[str], line: bytes) -> tuple[dict, dict]:
    """Read what write_document wrote: (the document, where it came from)."""
    source, number, text = line.split(b"\t", 2)
    document = json.loads(text)
    return document, where_from(sources[int(source)], int(number), document)


def in_batches(items: Iterable[tuple[int, dict, dict]]) -> Iterator[list[tuple[int, dict, dict]]]:
    """Yield the items of `read_kept` in lists of about BATCH characters."""
    batch = []
    n_characters = 0
    for item in items:
        batch.append(item)
        _, document, _ = item
        n_characters += len(document["text"])
        if n_characters >= BATCH:
            yield batch
            batch = []
            n_characters = 0
    if batch:
        yield batch


# ---- A unit's documents, for every process ------------------------------------------------------


def number_documents(folder: Path, stems: list[Path]) -> None:
    """Number the documents of all units: write starts.npy."""
    counts = [len(load(stem, "size")) for stem in stems]
    np.save(folder / "starts.npy", np.cumsum([0, *counts]))


def numbers_of(folder: Path, unit: int) -> range:
    """The numbers of a unit's documents."""
    starts = np.load(folder / "starts.npy", mmap_mode="r")
    return range(int(starts[unit]), int(starts[unit + 1]))


def read_kept(folder: Path, unit: int, sources: list[str]) -> Iterator[tuple[int, dict, dict]]:
    """Yield (number, document, where it came from) for each kept document of a unit."""
    kept = np.load(folder / "kept.npy", mmap_mode="r")
    numbers = numbers_of(folder, unit)
    with open(folder / "first" / f"{unit:06}.documents", "rb") as file:
        for number, line in zip(numbers, file, strict=True):
            if kept[number]:
                yield number, *parse_document(sources, line)


# ---- All documents, for the main process --------------------------------------------------------


class Corpus:
    """All n documents that the first pass kept, by number.

    Columns: source (n,), an index into `sources`; size (n,), bytes of text; offset (n,), where the
    document's line begins in its unit's file."""

    def __init__(self, folder: Path, stems: list[Path], sources: list[str]):
        self.folder = folder
        self.stems = stems
        self.sources = sources
        self.starts = np.load(folder / "starts.npy").tolist()
        self.source = self._column("source")
        self.size = self._column("size")
        self.offset = self._column("offset")

    def __len__(self) -> int:
        return self.starts[-1]

    def _column(self, name: str) -> np.ndarray:
        """One array, concatenated over all units."""
        first = load(self.stems[0], name)
        column = np.empty((len(self), *first.shape[1:]), first.dtype)
        for unit, stem in enumerate(self.stems):
            column[self.starts[unit] : self.starts[unit + 1]] = load(stem, name)
        return column

    def document(self, number: int) -> tuple[dict, dict]:
        """Read one document: (the document, where it came from)."""
        unit = bisect.bisect_right(self.starts, number) - 1
        with open(f"{self.stems[unit]}.documents", "rb") as file:
            file.seek(self.offset[number])
            return parse_document(self.sources, file.readline())

    def text(self, number: int) -> str:
        """The text of a document."""
        document, _ = self.document(number)
        return document["text"]

    def exact_duplicates(self) -> np.ndarray:
        """For each document, the exact copy that is kept (itself if it is kept): int (n,)."""
        return duplicates.exact_duplicates(self._column("keys"))

    def near_duplicates(self, kept: np.ndarray) -> np.ndarray:
        """The same for near copies among the documents in `kept`, bool (n,): int (n,)."""
        # One row per band, so that each can be read by itself; in a file, so that they need not
        # all be in memory.
        shape = (duplicates.BANDS, len(self))
        bands = new_array(self.folder / "bands.npy", np.uint64, shape)
        for unit, stem in enumerate(self.stems):
            bands[:, self.starts[unit] : self.starts[unit + 1]] = load(stem, "bands").T
        return duplicates.near_duplicates(bands, self.size, self.text, kept)

    def by_source(self, chosen: np.ndarray) -> Iterator[tuple[str, int, int]]:
        """Yield (source, bytes, documents) of the chosen documents, bool (n,)."""
        sources = self.source[chosen]
        n_documents = np.bincount(sources, minlength=len(self.sources))
        n_bytes = np.bincount(sources, self.size[chosen], len(self.sources))
        for number in np.flatnonzero(n_documents).tolist():
            yield self.sources[number], int(n_bytes[number]), int(n_documents[number])


# ---- The end ------------------------------------------------------------------------------------


def put_documents_together(stems: list[Path], folder: Path, outputs: list[str]) -> None:
    """Write the documents of the last pass to one file per source."""
    for name in outputs:
        (folder / name).touch()
    for stem in cli.progress(stems, "put together", "unit"):
        with open(f"{stem}.documents", "rb") as found:
            # Documents of a source are adjacent: open its output once for all of them.
            for source, own in itertools.groupby(found, key=source_of):
                with open(folder / outputs[source], "ab") as file:
                    for line in own:
                        _, _, document = line.split(b"\t", 2)
                        file.write(document)


def source_of(line: bytes) -> int:
    """The number of the source, from a line that write_document wrote."""
    return int(line.partition(b"\t")[0])
