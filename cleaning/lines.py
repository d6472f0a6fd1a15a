"""Step 6, lines (web pages): a line that stands in many documents belongs to a site and not to what it says.

Menus, cookie notices and licence texts that the markup did not give away (or that had none) are the same on every page,
and duplicate detection does not see them: the pages differ. So, once duplicates are gone (else a copied article would
lose its lines everywhere), count for each line the documents that have it, and cut those that are too many.

There are billions of lines, so the counts live in a sketch of fixed size, a count-min sketch (Cormode and Muthukrishnan
2005): two rows of 2^28 one-byte counters; a line adds one to the counter that its hash picks in each row, and
the smaller of the two is never less than its true count. 35 million documents of 20 different lines load a row with 2.6
a counter, which then stands at 9 by chance with a probability of 0.0015 (Poisson): in both rows, 2 lines in a million
are cut wrongly. 512 MB in all, on disk; of the memory a small corpus touches little.
"""
import hashlib
import re
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cleaning.work import new_array

LETTERS = 10    # letters and digits of a line that counts: "..." and short headings are anybody's
DOCUMENTS = 10  # so many have it: then it is cut. Of 275 manuals here, their licence and their "View on GitHub" links
ROWS, WIDTH = 2, 2**28
LETTER = re.compile(r"\w")
FENCE = "```"


def hashes(lines: list[str]) -> list[int]:
    """A hash of each line, 0 for those that do not count: short ones, and code, which repeats its imports by right."""
    out, code = [], False
    for line in map(str.strip, lines):
        code ^= line.startswith(FENCE)
        counts = not code and len(line) >= LETTERS and len(LETTER.findall(line)) >= LETTERS
        out.append(int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little") if counts else 0)
    return out


def count(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of lines, in how many of the texts each is)."""
    found = array("Q")  # 8 bytes a line where a list takes 40
    for text in texts:
        found.extend({*hashes(text.split("\n"))} - {0})
    return np.unique(np.frombuffer(found, np.uint64), return_counts=True)


class Sketch:
    """Counters of lines, in a file that all processes read."""

    def __init__(self, path: Path, mode: str = "r", width: int = WIDTH):
        self.counters = new_array(path, np.uint8, (ROWS, width)) if mode == "w+" else np.load(path, mmap_mode=mode)

    def _cells(self, hashes: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for row, counters in enumerate(self.counters):
            yield counters, (hashes >> np.uint64(32 * row)) % np.uint64(len(counters))

    def add(self, hashes: np.ndarray, counts: np.ndarray) -> None:
        for counters, cells in self._cells(hashes):
            cells, inverse = np.unique(cells, return_inverse=True)
            counters[cells] = np.minimum(255, counters[cells] + np.bincount(inverse, counts)).astype(np.uint8)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """At least the number of documents that have each of these lines; 255 for all above."""
        return np.min([counters[cells] for counters, cells in self._cells(hashes)], axis=0)

    def check(self, text: str, characters: int = 1) -> tuple[bool | str, str]:
        """(text without the lines that many documents have, reason); (False, reason) when that leaves less than
        `characters`; (True, "") when it has none of them."""
        lines = text.split("\n")
        own = np.array(hashes(lines), np.uint64)
        cut = (self.find(own) >= DOCUMENTS) & (own != 0)
        if not cut.any():
            return True, ""
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(line for line, out in zip(lines, cut, strict=True) if not out))
        if len("".join(text.split())) < characters:
            return False, "only_repeated_lines"
        return text.strip("\n"), "repeated_lines_cut"
