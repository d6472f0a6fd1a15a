"""Last step, decontaminate: no document that gives away an item of the benchmark the model will be scored on.

RedWhale is scored on KoBEST, much of whose text comes from Wikipedia, and one published Korean model had its SentiNeg in the
training data. A document goes when, spaces and punctuation set aside, it contains
- 25 characters in a row of any field of any item, or
- a whole field of at least 12 characters: a run of 25 alone cannot see COPA, SentiNeg and half of WiC.

Every position of a document is looked up at once: a rolling hash of its 25-grams, and one of its 12-grams for how the
whole fields begin. A hit is verified on the characters. Memory: some 50 MB for KoBEST, whatever the corpus.
"""
import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import cli
from cleaning.normalise import normalise

RUN, WHOLE = 25, 12
NOT_LETTERS = re.compile(r"[\W_]+")


def squeeze(text: str) -> str:
    """Letters and digits only.

    >>> squeeze("그는 [배]를 탔다.")  # 'he took a [boat].'
    '그는배를탔다'
    """
    return NOT_LETTERS.sub("", text)


def fields(folder: str | Path) -> list[str]:
    """Every field of every .tsv file under `folder`, as they are and as `normalise` leaves them, without links (a page that
    cites the same dictionary gives nothing away). UserError if there is no such file."""
    files = sorted(Path(folder).rglob("*.tsv"))
    if not files:
        raise cli.UserError(f"--decontaminate {folder}: no .tsv file there; it takes the folder of KoBEST")
    found = {}
    for path in files:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.reader(file, delimiter="\t"):
                found |= {variant: None for field in row if not field.startswith("http")
                          for variant in (squeeze(field), squeeze(normalise(field)))}
    return list(found)


def rolling(text: str, n: int) -> np.ndarray:
    """A hash of each n-gram of characters, uint64 (len(text) - n + 1,), in log n steps: an n-gram is two halves, and the
    halves of all n-grams are the same array."""
    grams = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    size, base = 1, 0x9E3779B97F4A7C15
    for bit in bin(n)[3:]:  # as in raising to a power: double, and add one where n has a bit
        grams = grams[:-size] * np.uint64(pow(base, size, 2**64)) + grams[size:] if len(grams) > size else grams[:0]
        size *= 2
        if bit == "1":
            singles = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)[size:]
            grams = grams[:len(singles)] * np.uint64(base) + singles
            size += 1
    return grams


class _Table:
    """Finds which of many hashes occur in a set, and where in `text` they were seen."""

    def __init__(self, hashes: np.ndarray, places: np.ndarray):
        self.hashes, first = np.unique(hashes, return_index=True)
        self.places = places[first].astype(np.int32)
        self.present = np.zeros(2**22, bool)  # by the top 22 bits: one look settles nearly all positions
        self.present[self.hashes >> np.uint64(42)] = True

    def find(self, hashes: np.ndarray) -> Iterable[tuple[int, int]]:
        """(position in `hashes`, place of the same hash in the set) of every hit."""
        hits = np.flatnonzero(self.present[hashes >> np.uint64(42)])
        at = np.searchsorted(self.hashes, hashes[hits])
        same = self.hashes[np.minimum(at, len(self.hashes) - 1)] == hashes[hits] if len(self.hashes) else at < 0
        return zip(hits[same].tolist(), self.places[at[same]].tolist(), strict=True)


class Benchmark:
    """The fields of a benchmark, ready for `found_in`."""

    def __init__(self, texts: Iterable[str]):
        texts = [text for text in texts if len(text) >= WHOLE]
        self.text = "".join(texts)
        ends = np.cumsum([len(text) for text in texts])
        starts = {RUN: [], WHOLE: []}
        self.whole: dict[str, list[str]] = {}  # {first 12 characters: the fields of 12 to 24 that begin so}
        for text, end in zip(texts, ends, strict=True):
            if len(text) >= RUN:
                starts[RUN].append(np.arange(end - len(text), end - RUN + 1))
            else:
                starts[WHOLE].append(np.array([end - len(text)]))
                self.whole.setdefault(text[:WHOLE], []).append(text)
        self.tables = {}
        for n in (RUN, WHOLE):
            places = np.concatenate(starts[n]) if starts[n] else np.zeros(0, np.int64)
            self.tables[n] = _Table(rolling(self.text, n)[places], places)

    def found_in(self, text: str) -> str:
        """Why `text` must go: "benchmark_run", "benchmark_field", or "" if it may stay.

        >>> benchmark = Benchmark([squeeze("남자는 토스트기 전원을 껐다.")])  # 'the man switched the toaster off', 13
        >>> benchmark.found_in("그래서 남자는 토스트기, 전원을 껐다!"), benchmark.found_in("남자는 토스트기 전원을 켰다")
        ('benchmark_field', '')
        """
        text = squeeze(text)
        for i, place in self.tables[RUN].find(rolling(text, RUN)):
            if text[i:i + RUN] == self.text[place:place + RUN]:
                return "benchmark_run"
        for i, _ in self.tables[WHOLE].find(rolling(text, WHOLE)):
            if any(text.startswith(field, i) for field in self.whole.get(text[i:i + WHOLE], ())):
                return "benchmark_field"
        return ""
