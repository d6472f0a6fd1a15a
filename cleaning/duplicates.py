"""Steps 4 and 5, duplicates: exact copies by a hash of the text, near copies by MinHash and locality-sensitive hashing.

Two documents are near copies when the Jaccard similarity of their sets of character 5-grams, |A ∩ B| / |A ∪ B|, is at
least 0.7. (Characters, not eojeol: replacing 5 % of the eojeol leaves 0.85 of the one and 0.64 of the other.) All pairs
are too many to compare, so (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3):

1. MinHash. Under a random order of all 5-grams, the first of A and the first of B are the same with a probability of
   exactly their Jaccard similarity. 112 orders give a document 112 numbers.
2. Bands. 14 groups of 8 numbers, each hashed into one: at similarity s two documents agree in one at least with
   probability 1 - (1 - s^8)^14: 0.21 at 0.6, 0.92 at 0.8, 0.9996 at 0.9. Only the 14 hashes are kept: 112 bytes a
   document, 3.9 GB for 35 million, where the 112 numbers would take 16 GB.
3. Verify. Documents that share a band are read again and compared by their true similarity: no chance remains in what
   is removed. Those that pass are joined into clusters (union-find), of which the longest document stays.

Under 50 characters only exact copies are removed: two short reviews share most 5-grams and mean different things.

Worked by hand: A and B share two of four grams. Of their 24 orders 12 have the same first gram of both: the Jaccard
similarity, 2/4. A band of 8 agrees with probability 0.5^8 = 1/256, one of 14 bands with 1 - (255/256)^14.

>>> A, B = {"동해", "해물", "물과"}, {"해물", "물과", "과백"}  # of 동해물과백, how the national anthem begins
>>> orders = list(itertools.permutations(sorted(A | B)))
>>> len(orders), sum(min(A, key=order.index) == min(B, key=order.index) for order in orders)
(24, 12)
>>> round(1 - (1 - 0.5**ROWS) ** BANDS, 3)
0.053
"""
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from common import cli

SHINGLE, BANDS, ROWS = 5, 14, 8
MIN_CHARACTERS = 50
THRESHOLD = 0.7
BATCH = 65_536  # characters hashed at once: their 5-grams stay in the processor's cache for the 112 orders
COMPARED = 16   # in a crowd that shares a band, a document is compared with so many clusters at most, the latest first

_random = np.random.default_rng(14 * 8)  # a fixed seed: the same corpus gives the same result on any machine
ORDERS = _random.integers(0, 2**32, (2, BANDS * ROWS), np.uint32) | np.array([[1], [0]], np.uint32)
MIX = _random.integers(0, 2**64, (BANDS, ROWS), np.uint64) | np.uint64(1)


def flatten(text: str) -> str:
    """What is compared: the text with every run of white space made one blank."""
    return " ".join(text.split())


def exact_key(text: str) -> bytes:
    """16 bytes that two texts share exactly if they are the same but for white space."""
    return hashlib.blake2b(flatten(text).encode(), digest_size=16).digest()


def shingles(text: str) -> np.ndarray:
    """A 64-bit hash of each 5-gram of characters: uint64 (len(text) - 4,)."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    n = max(0, len(codes) - SHINGLE + 1)
    grams = np.zeros(n, np.uint64)
    for j in range(SHINGLE):
        grams = (grams + codes[j:j + n]) * np.uint64(0x9E3779B97F4A7C15)  # wraps around at 2^64
    grams ^= grams >> np.uint64(31)
    grams *= np.uint64(0xBF58476D1CE4E5B9)  # or neighbours in the code chart would stay neighbours
    return grams ^ (grams >> np.uint64(29))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets, as sorted arrays without repeats.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def band_hashes(texts: list[str]) -> np.ndarray:
    """uint64 (len(texts), 14); zeros for a text under 50 characters. Many texts at a time, for numpy's sake.

    >>> a, b, c = band_hashes(["동해물과 백두산이 " * 8, "동해물과 백두산이 " * 9, "마르고 닳도록 " * 8])
    >>> int((a == b).sum()), int((a == c).sum())  # a and b have the same 5-grams, c has others
    (14, 0)
    """
    texts = [flatten(text) for text in texts]
    out, rows, size = np.zeros((len(texts), BANDS), np.uint64), [], 0
    for i, text in enumerate(texts):
        if len(text) >= MIN_CHARACTERS:
            rows.append(i)
            size += len(text)
        if rows and (size >= BATCH or i == len(texts) - 1):
            out[rows] = _bands([shingles(texts[row]) for row in rows])
            rows, size = [], 0
    return out


def _bands(documents: list[np.ndarray]) -> np.ndarray:
    """The band hashes of some documents' 5-grams. An order of all 5-grams is x -> a x xor b in 32 bits, a odd."""
    grams = (np.concatenate(documents) >> np.uint64(32)).astype(np.uint32)
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]])
    ordered, minima = np.empty_like(grams), np.empty((len(documents), BANDS * ROWS), np.uint32)
    for k, (a, b) in enumerate(ORDERS.T):
        np.multiply(grams, a, out=ordered)
        np.bitwise_xor(ordered, b, out=ordered)
        minima[:, k] = np.minimum.reduceat(ordered, starts)
    hashes = (minima.reshape(-1, BANDS, ROWS) * MIX).sum(2, dtype=np.uint64)
    return hashes ^ (hashes >> np.uint64(32))


def exact_duplicates(keys: np.ndarray) -> np.ndarray:
    """For each row of keys, uint64 (n, 2), the first row that equals it: int64 (n,)."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in the order of the documents
    ranked = keys[order]
    first = np.append(True, (ranked[1:] != ranked[:-1]).any(1))[:len(keys)]
    kept = np.empty(len(keys), np.int64)
    kept[order] = order[first][np.cumsum(first) - 1]
    return kept


class Grams:
    """The sets of 5-grams of the documents looked at last, sorted: some 64 MB of them."""

    def __init__(self, read: Callable[[int], str], room: int = 8_000_000):
        self.read, self.room, self.held = read, room, OrderedDict()

    def __call__(self, i: int) -> np.ndarray:
        if i not in self.held:
            self.held[i] = np.unique(shingles(flatten(self.read(i))))
            self.room -= len(self.held[i])
            while self.room < 0 and len(self.held) > 2:
                self.room += len(self.held.popitem(last=False)[1])
        self.held.move_to_end(i)
        return self.held[i]


def crowds(hashes: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """Those of the documents that share a hash, together: arrays of two or more, in order."""
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    same = np.flatnonzero(ranked[1:] == ranked[:-1])  # these and the one behind each
    first = np.append(True, np.diff(same) > 1)[:len(same)]
    starts, ends = same[first], same[np.append(first[1:], True)[:len(same)]] + 2
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield documents[order[start:end]]


def near_duplicates(bands: np.ndarray, sizes: np.ndarray, read: Callable[[int], str],
                    among: np.ndarray | None = None) -> np.ndarray:
    """For each document the one that is kept in its place, itself if it is kept: int32 (n,).

    bands: uint64 (14, n), a row of `band_hashes` a column; sizes: the documents' lengths; read(i): the text of document
    i; among: bool (n,), the documents that are looked at, if not all."""
    n = len(sizes)
    parent = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
    long = np.flatnonzero((bands[0] != 0) & (True if among is None else among)).astype(parent.dtype)
    grams = Grams(read)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]  # halve the path on the way
        return int(i)

    for band in cli.progress(range(BANDS), "near", "band"):
        for crowd in crowds(bands[band][long], long):
            clusters: OrderedDict[int, int] = OrderedDict()  # of the documents of the crowd: {root: one of the cluster}
            for i in crowd.tolist():
                if root(i) in clusters:
                    continue
                for other, member in itertools.islice(reversed(clusters.items()), COMPARED):
                    if jaccard(grams(i), grams(member)) >= THRESHOLD:
                        del clusters[other]
                        parent[root(i)] = root(member)
                        break
                clusters[root(i)] = i
    while (parent[parent] != parent).any():
        parent = parent[parent]
    joined = np.flatnonzero(parent != np.arange(n))
    joined = np.union1d(joined, parent[joined])
    # in each cluster the longest first, of these the earliest
    order = joined[np.lexsort((joined, -sizes[joined].astype(np.int64), parent[joined]))]
    longest = np.arange(n, dtype=parent.dtype)
    longest[parent[order[::-1]]] = order[::-1]  # the last to be written is the first in the order
    return longest[parent]
