"""The documents between the passes: on disk the texts, in memory a few numbers a document.

The first pass leaves for each unit the documents that it kept, one JSON line each, and their columns: source, line,
place, size, and the hashes that find duplicates. A document's number is its place among all of them, so `kept.npy`,
one byte a document, says which are still there.

Bytes a document in memory, and the most at a time for 35 million (bench/cleaning.py measures the growth):

    step           held for each document                                    at the peak    35 million
    always         source 4, line 8, place 8, size 4, kept 1                           25        0.9 GB
    exact          and a key of 16, twice, its order 8, sorted 16, workspace 4,        93        3.3 GB
                   what stays 4 + 8
    near           and parent 4, long 4, one band 8, twice, its order 8, sorted 8,     73        2.6 GB
                   workspace 4, masks 4; the other 13 bands wait on disk (112)
    perplexity     and scores 4, twice; the order in which a sample is drawn, 16       41        1.4 GB

The rest does not grow with the corpus: for each process a unit (8 MB of text, some 200 MB while it is worked on) and
the benchmark (20 MB); the models (2 x 100 MB, shared; 600 MB while one is trained, in the first process); the sketch of
lines (512 MB at most, shared).
"""
import bisect
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cleaning import duplicates
from cleaning.report import Tally
from cleaning.work import new_array
from common import cli


def load(stem: str | Path, *names: str) -> list[np.ndarray]:
    """Arrays that a task has left."""
    with np.load(f"{stem}.npz") as arrays:
        return [arrays[name] for name in names]


def place(source: str, number: int, document: dict) -> dict:
    """How records name a document: its file, its line and its id, which is file:line where it has none."""
    id = document.get("id")
    return {"file": source, "line": number, "id": f"{source}:{number}" if id is None else id}


def write_index(path: Path, stems: list[Path], sources: list[str]) -> list[dict[str, int]]:
    """What a Corpus has to know of the first pass's units. -> for each unit, the lines of its files that earlier units
    hold: a unit counts a file's lines from its own first one."""
    starts, before, seen = [0], [], dict.fromkeys(sources, 0)
    for stem in stems:
        size, spans = load(stem, "size", "spans")
        starts.append(starts[-1] + len(size))
        spans = [(sources[source], n) for source, n in spans.tolist()]
        before.append({source: seen[source] for source, _ in spans})
        seen |= {source: seen[source] + n for source, n in spans}
    cli.write_json(path, {"stems": list(map(str, stems)), "sources": sources, "starts": starts, "before": before})
    return before


class Corpus:
    """The documents that the first pass kept, by their number."""

    def __init__(self, index: Path):
        value = cli.read_json(index).get
        self.stems, self.sources, self.starts, self.before = map(value, ("stems", "sources", "starts", "before"))

    def __len__(self) -> int:
        return self.starts[-1]

    def columns(self, unit: int) -> dict[str, np.ndarray]:
        """source, number (of the line), offset and size of a unit's documents."""
        names = ("source", "number", "offset", "size")
        columns = dict(zip(names, load(self.stems[unit], *names), strict=True))
        before = {self.sources.index(source): n for source, n in self.before[unit].items() if n}
        for source, n in before.items():  # of one file at most: the others begin in this unit
            columns["number"][columns["source"] == source] += n
        return columns

    @functools.cached_property
    def all(self) -> dict[str, np.ndarray]:
        """The columns of all documents, 24 bytes for each; only the first process needs them."""
        out = {name: np.empty(len(self), column.dtype) for name, column in self.columns(0).items()}
        for unit, start in enumerate(self.starts[:-1]):
            for name, column in self.columns(unit).items():
                out[name][start:start + len(column)] = column
        return out

    def read(self, unit: int, kept: np.ndarray) -> Iterator[tuple[int, dict, dict]]:
        """(number, where it came from, the document) of those of a unit's documents that are `kept`, a mask of all."""
        columns, start = self.columns(unit), self.starts[unit]
        with open(f"{self.stems[unit]}.docs", "rb") as file:
            rows = zip(file, columns["source"].tolist(), columns["number"].tolist(), strict=True)
            for i, (line, source, number) in enumerate(rows, start):
                if kept[i]:
                    document = json.loads(line)
                    yield i, place(self.sources[source], number, document), document

    def document(self, i: int) -> tuple[dict, dict]:
        """(where it came from, the document) of number i."""
        unit = bisect.bisect_right(self.starts, i) - 1
        with open(f"{self.stems[unit]}.docs", "rb") as file:
            file.seek(self.all["offset"][i])
            document = json.loads(file.readline())
        return place(self.sources[self.all["source"][i]], int(self.all["number"][i]), document), document

    def duplicates(self, step: str, kept: np.ndarray, folder: Path) -> np.ndarray:
        """For each document of `kept` (bool) the one that stays in its place after `step`, "exact" or "near"."""
        if step == "exact":
            among, keys = np.flatnonzero(kept), np.empty((len(self), 2), np.uint64)
            for stem, start, end in zip(self.stems, self.starts, self.starts[1:], strict=False):
                keys[start:end], = load(stem, "keys")
            keys = keys[among]  # those of the others need not be held meanwhile
            by = np.arange(len(self), dtype=np.int32 if len(self) < 2**31 else np.int64)
            by[among] = among[duplicates.exact_duplicates(keys)]
            return by
        # a row a band, so that each can be read by itself; a file, so that they need not all be in memory
        bands = new_array(folder / "bands.npy", np.uint64, (duplicates.BANDS, len(self)))
        for unit, stem in enumerate(self.stems):
            bands[:, self.starts[unit]:self.starts[unit + 1]] = load(stem, "bands")[0].T
        return duplicates.near_duplicates(bands, self.all["size"], lambda i: self.document(i)[1]["text"], kept)

    def remove_duplicates(self, step: str, kept: np.ndarray, tally: Tally, folder: Path) -> np.ndarray:
        """`kept` without the duplicates, which are recorded with the one that stays."""
        by = self.duplicates(step, kept, folder)
        stays = kept & (by == np.arange(len(by)))
        for side, mask in (("in", kept), ("out", stays)):
            counts = np.bincount(self.all["source"][mask], minlength=len(self.sources))
            sizes = np.bincount(self.all["source"][mask], self.all["size"][mask], len(self.sources))
            for source in np.flatnonzero(counts).tolist():
                tally.passed(self.sources[source], step, side, int(sizes[source]), int(counts[source]))
        for i in cli.progress(np.flatnonzero(kept & ~stays).tolist(), f"{step} copies"):
            where, document = self.document(i)
            other, _ = self.document(int(by[i]))
            tally.record("removed.jsonl", step, f"{step}_duplicate", where, document["text"], duplicate_of=other["id"])
        return stays
