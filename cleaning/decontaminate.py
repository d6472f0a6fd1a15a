"""Step 8, decontaminate: no document that gives away an item of the benchmark by which the model will be judged.

RedWhale is judged by KoBEST; much of KoBEST's text comes from Wikipedia, and one published Korean model had SentiNeg in
its training data. A document goes when, spaces and punctuation set aside, it contains
- 25 characters in a row of any field of any item, or
- a whole field of at least 12 characters: a run of 25 alone cannot see COPA, SentiNeg and half of WiC.

All positions of a document are looked up at once: a hash of the 25 characters that begin there, and one of 12 for how
the shorter fields begin. Memory: some 20 MB for KoBEST, whatever the corpus.
"""
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cleaning.normalise import normalise
from common import cli

RUN, WHOLE = 25, 12
IS_LETTER = np.array([chr(code).isalnum() for code in range(0x32400)] + [False] * (0x110000 - 0x32400))  # or digit
BASE = 0x9E3779B97F4A7C15


def squeeze(text: str) -> np.ndarray:
    """The code points of the letters and digits of a text: uint64."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return codes[IS_LETTER[codes]].astype(np.uint64)


def tables(folder: str | Path) -> Iterator[tuple[str, list[list[str]]]]:
    """(name, rows) of every .tsv file under `folder`, but for links: a page that cites the same dictionary gives
    nothing away."""
    for path in sorted(Path(folder).rglob("*.tsv")):
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = [[cell for cell in row if not cell.startswith("http")] for row in csv.reader(file, "excel-tab")]
        except (UnicodeDecodeError, csv.Error) as error:
            raise cli.UserError(f"--decontaminate: cannot read {path}: {error}") from None
        yield f"{path.parent.name}/{path.stem}", rows


def fields(folder: str | Path) -> list[str]:
    """Every field of every table, as it is and as `normalise` leaves it. UserError if there is none."""
    found = [field for _, rows in tables(folder) for row in rows for field in row]
    if not found:
        raise cli.UserError(f"--decontaminate {folder}: no .tsv file there; it takes the folder of KoBEST")
    return list(dict.fromkeys(variant for field in found for variant in (field, normalise(field)[0])))


def detectable(folder: str | Path) -> dict[str, tuple[int, int]]:
    """{table: (items of which some field is long enough to be found, items)}; the first row names the columns."""
    return {name: (sum(any(len(squeeze(field)) >= WHOLE for field in row) for row in rows[1:]), len(rows[1:]))
            for name, rows in tables(folder)}


def rolling(codes: np.ndarray, n: int) -> np.ndarray:
    """A hash of every n code points in a row: uint64 (len(codes) - n + 1,). In log n steps, as one raises to a power:
    the hash of 2k is made of two of k, which are all there already."""
    hashes, size = codes, 1
    for bit in bin(n)[3:]:
        hashes = hashes[:-size] * np.uint64(pow(BASE, size, 2**64)) + hashes[size:]
        size *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(BASE) + codes[size:]
            size += 1
    return hashes


class Hashes:
    """A set of hashes, for asking which of many are in it."""

    def __init__(self, parts: list[np.ndarray]):
        self.sorted = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))
        self.top = np.zeros(2**22, bool)  # by their first 22 bits: this one look settles nearly all
        self.top[self.sorted >> np.uint64(42)] = True

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The positions in `hashes` of those that are in the set."""
        maybe = np.flatnonzero(self.top[hashes >> np.uint64(42)])
        places = np.searchsorted(self.sorted, hashes[maybe])
        return maybe[self.sorted.take(places, mode="wrap") == hashes[maybe]] if len(maybe) else maybe


class Benchmark:
    """The fields of a benchmark, ready to be looked for."""

    def __init__(self, texts: Iterable[str]):
        squeezed = [codes for codes in map(squeeze, texts) if len(codes) >= WHOLE]
        self.runs = Hashes([rolling(codes, RUN) for codes in squeezed if len(codes) >= RUN])
        whole = [codes for codes in squeezed if len(codes) < RUN]
        self.heads = Hashes([rolling(codes[:WHOLE], WHOLE) for codes in whole])
        self.whole: dict[bytes, list[bytes]] = {}  # {the first 12 code points: all of each field that begins so}
        for codes in whole:
            self.whole.setdefault(codes[:WHOLE].tobytes(), []).append(codes.tobytes())

    def check(self, text: str) -> tuple[bool, str]:
        """(kept, reason).

        >>> benchmark = Benchmark(["남자는 토스트기 전원을 껐다."])  # 'the man switched the toaster off': 13 letters
        >>> benchmark.check("그래서 남자는 토스트기, 전원을 껐다!"), benchmark.check("남자는 토스트기 전원을 켰다")
        ((False, 'benchmark_field'), (True, ''))
        """
        codes = squeeze(text)
        if len(codes) >= RUN and len(self.runs.find(rolling(codes, RUN))):
            return False, "benchmark_run"
        for i in self.heads.find(rolling(codes, WHOLE)) if len(codes) >= WHOLE else ():
            rest = codes[i:i + RUN].tobytes()
            if any(rest.startswith(field) for field in self.whole.get(rest[:8 * WHOLE], ())):
                return False, "benchmark_field"
        return True, ""
