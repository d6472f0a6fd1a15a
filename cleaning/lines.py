"""Step 6, lines (web pages): a line that many documents have belongs to a site, not to a text.

Menus, cookie notices and licences that the markup did not give away are the same on every page, and
duplicate detection does not see them, because the pages differ. So count, for each line, the
documents that have it, and cut the lines that too many have. Duplicates have to be gone by then:
an article copied to ten places would lose all of its lines in all of them.

There are billions of lines, and a dictionary of them would not fit in memory. A count-min sketch
(Cormode and Muthukrishnan 2005) has a fixed size: two rows of counters. A line's hash picks one
counter in each row, and every document that has the line adds one to both. Other lines that happen
to pick the same counter add to it as well, so a counter never says too little, and the smaller of
the two is the better estimate. With four counters per row, "menu" in 3 documents, "cookies" in 5
and "sea" in 1:

    row 0     3      5+1    0      0         menu → 0, cookies → 1, sea → 1
    row 1     0      0      3+1    5         menu → 2, cookies → 3, sea → 2
    estimates: menu min(3, 4) = 3, cookies min(6, 5) = 5, sea min(6, 4) = 4, which is too much

In a real run a row has 2^28 counters of one byte. With 35 million documents of 20 different lines
each, a counter stands at 2.6 on average, and reaches 9 by chance with a probability of 0.0015
(Poisson). For 2 lines in a million both counters do, and such a line is cut wrongly. The two rows
together take 512 MB, on disk; a small corpus touches little of it.
"""
import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cleaning.arrays import new_array
from cleaning.code import FENCES
from cleaning.normalise import EMPTY_LINES

# Both numbers are ours. Letters and digits that a line needs to count: "..." and short headings
# occur everywhere.
MIN_LETTERS = 10
# A line that this many documents have is cut. In 275 manuals that cuts their licence and their
# "View on GitHub" links.
MOST_DOCUMENTS = 10

SKETCH_ROWS = 2
WIDTH = 2**28     # counters per row
FULL = 255        # the largest number that a counter of one byte can hold

LETTER = re.compile(r"\w")


# ---- Which lines count, and in how many documents -----------------------------------------------


def hash_lines(lines: list[str]) -> list[int]:
    """A 64-bit hash of each line of a document, 0 for those that do not count: short ones, and
    code, whose imports are rightly the same everywhere.

    >>> lines = ["목차", "```", "import numpy as np", "```", "모든 권리는 저자에게 있습니다."]
    >>> [line_hash != 0 for line_hash in hash_lines(lines)]
    [False, False, False, False, True]
    """
    found = []
    fence = ""  # the kind of fence that the code began with, if these lines are code
    for line in lines:
        line = line.strip()
        if line.startswith(FENCES):
            # Code ends at a fence of its own kind: in a block of ```, a line of ~~~ is code.
            kind = line[:3]
            if not fence:
                fence = kind
            elif kind == fence:
                fence = ""
        # The length is the cheaper test, and most short lines already fail it.
        is_short = len(line) < MIN_LETTERS or len(LETTER.findall(line)) < MIN_LETTERS
        if fence or is_short:
            found.append(0)
        else:
            digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
            found.append(int.from_bytes(digest, "little"))
    return found


def count(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all lines that count, in how many of the texts each one is): uint64 and int64,
    both (different lines,)."""
    # A set: a document counts once, however often it repeats the line. An array takes 8 bytes per
    # line where a list takes 40.
    found = array("Q")
    for text in texts:
        own = set(hash_lines(text.split("\n")))
        own.discard(0)
        found.extend(own)
    return np.unique(np.frombuffer(found, np.uint64), return_counts=True)


# ---- The sketch ---------------------------------------------------------------------------------


class Sketch:
    """Counters of lines, uint8 (2, width), in a file that all processes share."""

    def __init__(self, path: Path, mode: str = "r", width: int = WIDTH):
        if mode == "w+":
            self.counters = new_array(path, np.uint8, (SKETCH_ROWS, width))
        else:
            self.counters = np.load(path, mmap_mode=mode)

    def _rows(self, hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each row: its counters, (width,), and which of them each hash picks, (hashes,)."""
        # The first row takes the lower 32 bits of a hash, the second the upper ones: two lines that
        # collide in one row need not collide in the other.
        for row, counters in enumerate(self.counters):
            bits = hashes >> np.uint64(32 * row)
            yield counters, bits % np.uint64(len(counters))

    def add(self, hashes: np.ndarray, counts: np.ndarray) -> None:
        """Count lines that were found in some more documents: the two arrays of `count`."""
        for counters, picked in self._rows(hashes):
            # Several of the lines may pick the same counter. `counters[picked] += counts` would add
            # only one of them, so their counts are added up first, counter by counter.
            cells, cell_of_line = np.unique(picked, return_inverse=True)
            added = np.bincount(cell_of_line, weights=counts)      # (cells,) float64
            total = counters[cells] + added
            counters[cells] = np.minimum(FULL, total).astype(np.uint8)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """How many documents have each line, or more than that; 255 at most. uint8 (hashes,)."""
        estimates = [counters[picked] for counters, picked in self._rows(hashes)]
        return np.min(estimates, axis=0)

    def check(self, text: str, least_characters: int = 1) -> tuple[str | None, str]:
        """(the text without the lines that many documents have, reason); (None, reason) if fewer
        than `least_characters` are left, spaces not counted."""
        lines = text.split("\n")
        own = np.array(hash_lines(lines), np.uint64)                   # (lines,)
        is_cut = (self.find(own) >= MOST_DOCUMENTS) & (own != 0)
        if not is_cut.any():
            return text, ""

        kept = []
        for line, cut in zip(lines, is_cut, strict=True):
            if not cut:
                kept.append(line)
        # Where a paragraph is gone, the empty lines around it have come together.
        shorter = EMPTY_LINES.sub("\n\n", "\n".join(kept))

        visible = len("".join(shorter.split()))
        if visible < least_characters:
            return None, "only_repeated_lines"
        return shorter.strip("\n"), "repeated_lines_cut"
