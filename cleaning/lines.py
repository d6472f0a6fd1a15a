"""Step 7, lines (web pages, or --cut_lines): cuts lines that many documents share.

Menus, cookie notices, licences and rows of buttons that the markup did not give away are the same
on every page of a site. Duplicate detection does not see them, because the pages as a whole differ.
So this step counts, for each line, the documents that contain it, and cuts the lines that too many
contain. Duplicates must be removed first: an article copied to ten places would lose all of its
lines in all of them.

Some lines belong together. If the cells of a table are on every page, cutting only them would leave
<table> and </table>; cutting a licence line by line would leave its code fence and the author's
name. So a document is first split into blocks: a fence, an HTML element of several lines, or else a
single line. A block is cut as a whole if more than half of its letters are in lines that many
documents share; otherwise it stays as a whole. If many manuals share the lines with a *, the first
and the third block of this one are cut:

    1   * Terms of use and privacy
    2     Whales
    3     <table>
        *   <td>View on our site</td>        13 letters
        *   <td>Run in a notebook</td>       14 letters
            <td>Whales in pictures</td>      16 letters
          </table>
    4     Whales suckle their young.

There are billions of lines, and a dictionary of them would not fit in memory. A count-min sketch
(Cormode and Muthukrishnan 2005) has a fixed size: two rows of counters. A line's hash picks one
counter in each row, and every document that has the line adds one to both. Other lines that pick
the same counter add to it as well, so a counter is never too low, and the smaller of the two is the
better estimate. With four counters per row, "menu" in 3 documents, "cookies" in 5 and "sea" in 1:

    row 0     3      5+1    0      0         menu → 0, cookies → 1, sea → 1
    row 1     0      0      3+1    5         menu → 2, cookies → 3, sea → 2
    estimates: menu min(3, 4) = 3, cookies min(6, 5) = 5, sea min(6, 4) = 4, which is too high

In a real run a row has 2^28 counters of one byte. With 35 million documents of 20 different lines
each, a counter stands at 2.6 on average, and reaches 9 by chance with a probability of 0.0015
(Poisson). For 2 lines in a million both counters do, and such a line is cut wrongly. The two rows
together take 512 MB, on disk; a small corpus touches little of it.
"""
import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cleaning.arrays import new_array
from cleaning.code import FENCES
from cleaning.normalise import EMPTY_LINES

# These numbers are ours. Lines with fewer letters and digits are not counted: "..." and short
# headings occur everywhere.
MIN_LETTERS = 10
# A line that this many documents share is cut. In 275 manuals that cuts the licence and the "View
# on GitHub" links.
MOST_DOCUMENTS = 10
# A longer element is split into single lines: it is hardly one thing that a site repeats, and may
# be a whole page in a <div>. The rows of buttons in those manuals have 5 to 20 lines.
LONGEST_ELEMENT = 30
# A shorter code fence never counts as a notice: a line that begins with # may be a command for
# root. The licences have 10 to 13 lines.
SHORTEST_NOTICE = 5

SKETCH_ROWS = 2
WIDTH = 2**28     # counters per row
FULL = 255        # the largest number that a counter of one byte can hold

LETTERS = re.compile(r"\w+")


# ---- Blocks: cut or kept as a whole -------------------------------------------------------------

# CommonMark 4.5: three or more ` or ~. After ` there may be no other one on the line: that would be
# code within a line.
OPENING_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")

# Where an element or a comment begins or ends.
TAG = re.compile(r"</?[A-Za-z][\w-]*|<!--|-->")


def blocks(text: str) -> list[str]:
    """Split the text into pieces that are cut or kept as a whole: code fences, HTML elements of
    several lines (and comments, <!-- -->), single lines. Joined by line breaks, they give the text.

    >>> blocks("# 고래\\n```\\nimport sea\\n```\\n<p>젖을\\n먹인다.</p>")  # 'whales', 'they suckle'
    ['# 고래', '```\\nimport sea\\n```', '<p>젖을\\n먹인다.</p>']
    """
    lines = text.split("\n")
    if "<" not in text and not any(fence in text for fence in FENCES):
        return lines
    last_lines = find_blocks(lines)
    found = []
    start = 0
    while start < len(lines):
        # Elements inside another one are skipped: the loop jumps past the outer one.
        end = last_lines.get(start, start) + 1
        found.append("\n".join(lines[start:end]))
        start = end
    return found


def find_blocks(lines: list[str]) -> dict[int, int]:
    """{first line: last line} of each fence, and of each element that begins a line."""
    last_lines = {}
    fence = ""      # the ``` or ~~~ that opened the current code block, if any
    fence_start = 0
    # For each tag name, the lines of the tags that are still open. A closing tag closes the last
    # one.
    opened: dict[str, list[int]] = defaultdict(list)

    for number, line in enumerate(lines):
        if fence:
            # A fence ends at a line of only its own character, at least as often.
            rest = line.strip()
            if rest.startswith(fence) and not rest.strip(fence[0]):
                last_lines[fence_start] = number
                fence = ""
            continue
        opening = OPENING_FENCE.match(line)
        if opening:
            fence = opening[1]
            fence_start = number
            # An element with code inside is part of the page's content, not something that a site
            # repeats.
            opened.clear()
            continue

        for tag in TAG.finditer(line):
            name = tag[0].strip("</!>").lower()  # "table", or "--" for a comment
            closes = tag[0].startswith("</") or tag[0] == "-->"
            if not closes:
                opened[name].append(number)
                continue
            if not opened[name]:
                continue
            start = opened[name].pop()
            begins_line = lines[start].lstrip().startswith("<")
            if begins_line and number - start < LONGEST_ELEMENT:
                last_lines[start] = number

    # A fence that is not closed is code to the end (CommonMark).
    if fence:
        last_lines[fence_start] = len(lines) - 1
    return last_lines


# ---- Which lines count, and in how many documents -----------------------------------------------

# What differs from page to page in lines that are otherwise the same: tags and their attributes,
# URLs, the years of a copyright. Other numbers are content. CCNet reads every digit as 0 (Wenzek et
# al. 2019, section 3). But then many statutes share "제0조(시행일) 이 영은 0000년 0월 00일부터
# 시행한다" (in force from that day) and many towns "0개 진, 0개 향을 관할한다" (so many districts):
# it cut three times as much of statutes, rulings and Wikipedia.
HTML_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
ADDRESS = re.compile(r"(?:https?|ftp)://[^\s<>()\[\]\"']+")
YEARS = re.compile(r"(Copyright|COPYRIGHT|copyright|©|\([cC]\)|저작권)(?:\W{0,9}\d{4}(?!\d))+")

# A comment in Python or shell, in C, or in SQL; not #include, which is code.
COMMENT = re.compile(r"\s*(?:#(?!\w)|//|/?\*|--|$)")


def lines_to_compare(block: str) -> list[tuple[int, int]]:
    """(64-bit hash, letters) of each line of a block, without what differs from page to page. The
    hash is 0 for a line too short to count. Code has no lines here: its imports are rightly the
    same everywhere.

    >>> notice = "모든 권리는 저자에게 있습니다."  # 'all rights belong to the author'
    >>> len(lines_to_compare(notice)), lines_to_compare("```\\nimport numpy as np\\n```")
    (1, [])
    >>> years = ("2019", "2020-2024")
    >>> len({str(lines_to_compare(f"Copyright {year} The Whale Authors")) for year in years})
    1
    """
    if len(block) < MIN_LETTERS:
        return []
    lines = block.split("\n")
    if len(lines) > 1 and OPENING_FENCE.match(lines[0]):
        if not is_notice(lines[1:-1]):
            return []
    shared = block
    if "<" in shared:
        shared = HTML_TAG.sub("", shared)
    if "://" in shared:
        shared = ADDRESS.sub("", shared)
    shared = YEARS.sub(r"\1 0000", shared)
    # A block of only tags or URLs is compared by those.
    if not shared.strip():
        shared = block

    found = []
    for line in shared.split("\n"):
        line = line.strip()
        letters = len("".join(LETTERS.findall(line)))
        line_hash = 0
        if letters >= MIN_LETTERS:
            digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
            line_hash = int.from_bytes(digest, "little")
        found.append((line_hash, letters))
    return found


def is_notice(code: list[str]) -> bool:
    """Whether code consists of comments only, like the licence above a program."""
    return len(code) >= SHORTEST_NOTICE and all(COMMENT.match(line) for line in code)


def count(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all lines that count, the number of texts that contain each): uint64 and int64,
    both (distinct lines,)."""
    # A set per document, so that it counts once, however often it repeats the line. The array takes
    # 8 bytes per line where a list takes 40.
    found = array("Q")
    for text in texts:
        own = set()
        for block in blocks(text):
            own.update(line_hash for line_hash, _ in lines_to_compare(block))
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
        """Yield each row's counters, (width,), and which of them each hash picks, (hashes,)."""
        # The first row takes the lower 32 bits of a hash, the second the upper ones: two lines that
        # collide in one row need not collide in the other.
        for row, counters in enumerate(self.counters):
            bits = hashes >> np.uint64(32 * row)
            yield counters, bits % np.uint64(len(counters))

    def add(self, hashes: np.ndarray, counts: np.ndarray) -> None:
        """Add the counts of more documents: the two arrays that `count` returns."""
        for counters, picked in self._rows(hashes):
            # Several lines may pick the same counter, and `counters[picked] += counts` would add
            # only one of them. So first sum the counts for each counter.
            cells, cell_of_line = np.unique(picked, return_inverse=True)
            added = np.bincount(cell_of_line, weights=counts)      # (cells,) float64
            total = counters[cells] + added
            counters[cells] = np.minimum(FULL, total).astype(np.uint8)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """An upper bound on how many documents have each line, 255 at most: uint8 (hashes,)."""
        estimates = [counters[picked] for counters, picked in self._rows(hashes)]
        return np.min(estimates, axis=0)

    def check(self, text: str, least_characters: int = 1) -> tuple[str | None, str]:
        """(the text without the blocks that many documents share, reason), or (None, reason) if
        fewer than `least_characters` are left, not counting spaces."""
        # A cut can make an element short enough to be a block. So cut until nothing is left to cut:
        # the step changes nothing in its own output.
        before = text
        shorter = self.cut(text)
        while shorter != before and "<" in shorter:
            before = shorter
            shorter = self.cut(before)
        if shorter == text:
            return text, ""

        visible = len("".join(shorter.split()))
        if visible < least_characters:
            left = f"{visible} characters left < {least_characters}"
            return None, f"only_repeated_lines: {left}"
        return shorter, "repeated_lines_cut"

    def cut(self, text: str) -> str:
        """The text without its repeated blocks; the same text if there are none."""
        pieces = blocks(text)
        compared = [lines_to_compare(block) for block in pieces]
        repeated = self.repeated(compared)
        if not repeated:
            return text

        kept = []
        for block, lines in zip(pieces, compared, strict=True):
            all_letters = sum(letters for _, letters in lines)
            repeated_letters = sum(letters for line, letters in lines if line in repeated)
            if 2 * repeated_letters <= all_letters:
                kept.append(block)
        if len(kept) == len(pieces):
            return text
        # Where a paragraph was cut, the empty lines around it are now adjacent.
        return EMPTY_LINES.sub("\n\n", "\n".join(kept)).strip("\n")

    def repeated(self, compared: list[list[tuple[int, int]]]) -> set[int]:
        """The hashes of those lines that many documents share."""
        own = set()
        for lines in compared:
            own.update(line_hash for line_hash, _ in lines)
        own.discard(0)
        hashes = np.array(list(own), np.uint64)
        return set(hashes[self.find(hashes) >= MOST_DOCUMENTS].tolist())
