"""Steps 5 and 6, duplicates: finds exact copies by a hash of the text, near copies by MinHash.

Two documents are near copies if the Jaccard similarity of their sets of character 5-grams,
|A ∩ B| / |A ∪ B|, is at least 0.7. (Characters, not eojeol: after replacing 5 % of the eojeol, the
similarity is 0.85 by characters and 0.64 by eojeol.) Comparing all pairs of 35 million documents is
out of the question. Instead (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", chapter 3):

1. MinHash. Put all 5-grams into a random order. The probability that A and B have the same first
   gram is exactly their Jaccard similarity. 112 orders give each document 112 numbers.
2. Bands. Divide the 112 numbers into 14 bands of 8, and hash each band into one number. At
   similarity s, two documents agree in at least one band with probability 1 - (1 - s^8)^14: 0.21
   at 0.6, 0.56 at 0.7, 0.92 at 0.8, 0.9996 at 0.9. A pair that shares no band is never compared.
   One band of 112 would find hardly anything but exact copies (7e-6 of the pairs at 0.9), 112 bands
   of one nearly every pair (0.997 at 0.05). Only the 14 hashes are kept: 112 bytes per document,
   3.9 GB for 35 million, where the 112 numbers would take 16 GB.
3. Verify. Documents that share a band are only candidates. They are read again and compared by
   their true similarity, so nothing is removed by chance.
4. Join. If a is a copy of b, and b of c, then all three form one cluster (union-find). The longest
   document of each cluster is kept.

Documents under 50 characters are removed only if they are exact copies: two short reviews may share
most of their 5-grams and still mean different things.

Worked by hand: A and B share two of four grams. In 12 of the 24 orders both have the same first
gram: 12/24 is the Jaccard similarity, 2/4. A band of 8 agrees with probability 0.5^8 = 1/256, and
at least one of 14 bands with 1 - (255/256)^14.

>>> A = {"동해", "해물", "물과"}  # of 동해물과백, the first words of the national anthem
>>> B = {"해물", "물과", "과백"}
>>> orders = list(itertools.permutations(sorted(A | B)))
>>> same_first = [min(A, key=order.index) == min(B, key=order.index) for order in orders]
>>> len(orders), sum(same_first)
(24, 12)
>>> round(1 - (1 - 0.5**ROWS) ** BANDS, 3)
0.053
"""
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from cleaning.hashes import GOLDEN, SPLITMIX_1, batches, code_points, flatten, rolling
from common import cli

# 5-grams and 14 bands of 8 are FineWeb's (2406.17557), but its 5-grams are of words.
SHINGLE = 5           # characters of a gram
BANDS = 14
ROWS = 8              # minima that make a band
# Ours: these three decide which documents are compared, and which count as copies.
MIN_CHARACTERS = 50   # shorter documents are not compared
THRESHOLD = 0.7       # least Jaccard similarity of near copies
COMPARED = 16         # most clusters of a crowd that a document is compared with, latest first
# Memory.
BATCH = 65_536        # characters hashed at once: their grams stay in the processor's cache
CACHED = 8_000_000    # grams held in memory for comparing documents: 64 MB

# A fixed seed: the same corpus gives the same result on any machine.
_random = np.random.default_rng(14 * 8)
# The 112 orders: (2, 112), a and b of each. An odd a makes x → a·x a permutation.
ORDERS = _random.integers(0, 2**32, (2, BANDS * ROWS), np.uint32)
ORDERS[0] |= np.uint32(1)
# Factors for the 8 minima of each band, which are then summed: (14, 8).
MIX = _random.integers(0, 2**64, (BANDS, ROWS), np.uint64) | np.uint64(1)


# ---- Exact copies -------------------------------------------------------------------------------


def exact_key(text: str) -> bytes:
    """A 16-byte key, the same for two texts if and only if they differ in white space alone."""
    return hashlib.blake2b(flatten(text).encode(), digest_size=16).digest()


def exact_duplicates(keys: np.ndarray) -> np.ndarray:
    """For each row of keys, uint64 (n, 2), the first row that equals it: int64 (n,).

    >>> exact_duplicates(np.array([[7, 7], [5, 1], [7, 7], [5, 2]], np.uint64)).tolist()
    [0, 1, 0, 3]
    """
    # Sorting makes equal keys adjacent. The sort is stable, so the earliest document of a group
    # comes first.
    order = np.lexsort((keys[:, 1], keys[:, 0]))    # (n,): row numbers
    ranked = keys[order]                            # (n, 2)
    begins_group = np.ones(len(keys), bool)         # (n,): differs from the one before?
    begins_group[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)

    # The running count of beginnings numbers the groups: 0, 0, 1, 2, 2, 2, ... (In place, because
    # an array of this size takes 280 MB for 35 million documents.)
    group = np.cumsum(begins_group)                 # (n,)
    group -= 1
    first_rows = order[begins_group]                # (groups,)
    kept = np.empty(len(keys), np.int64)
    kept[order] = first_rows[group]
    return kept


# ---- MinHash and bands --------------------------------------------------------------------------


def shingles(text: str) -> np.ndarray:
    """A 64-bit hash of each 5-gram of characters: uint64 (len(text) - 4,)."""
    # The five characters of a gram are read as the digits of one number, modulo 2^64.
    codes = code_points(text).astype(np.uint64)
    grams = rolling(codes, SHINGLE)

    # Neighbouring code points (각, 갂) still have similar hashes. Multiplying and shifting the high
    # bits onto the low ones, as SplitMix64 does, scatters them.
    grams *= GOLDEN
    grams ^= grams >> 31
    grams *= SPLITMIX_1
    return grams ^ (grams >> 29)


def bands_of(documents: list[np.ndarray]) -> np.ndarray:
    """The band hashes of documents, each given by its grams: uint64 (len(documents), 14)."""
    # All grams in one array, with the position where each document begins. The upper 32 bits of a
    # hash are enough to order grams, and halve the memory traffic.
    grams = (np.concatenate(documents) >> 32).astype(np.uint32)  # (all grams,)
    lengths = [len(document) for document in documents]
    starts = np.cumsum([0] + lengths[:-1])                                  # (documents,)

    # x → (a·x) xor b in 32 bits puts all 5-grams into an order: the result is a gram's position.
    # reduceat takes the minimum over each document's part of the array.
    places = np.empty_like(grams)
    minima = np.empty((len(documents), BANDS * ROWS), np.uint32)            # (documents, 112)
    for k, (a, b) in enumerate(ORDERS.T):
        np.multiply(grams, a, out=places)
        np.bitwise_xor(places, b, out=places)
        minima[:, k] = np.minimum.reduceat(places, starts)

    # Eight minima become one number: a sum of products with random odd numbers, modulo 2^64.
    grouped = minima.reshape(-1, BANDS, ROWS)                               # (documents, 14, 8)
    hashes = (grouped * MIX).sum(axis=2, dtype=np.uint64)                   # (documents, 14)
    return hashes ^ (hashes >> 32)


def band_hashes(texts: list[str]) -> np.ndarray:
    """The band hashes of texts: uint64 (len(texts), 14). Zeros for a text under 50 characters.

    >>> sea = "동해물과 백두산이 " * 8
    >>> more_sea = "동해물과 백두산이 " * 9
    >>> old = "마르고 닳도록 " * 8
    >>> a, b, c = band_hashes([sea, more_sea, old])
    >>> int((a == b).sum()), int((a == c).sum())  # a and b have the same 5-grams, c has others
    (14, 0)
    """
    hashes = np.zeros((len(texts), BANDS), np.uint64)
    rows = []
    long_texts = []
    for row, text in enumerate(map(flatten, texts)):
        if len(text) >= MIN_CHARACTERS:
            rows.append(row)
            long_texts.append(text)

    for batch in batches(long_texts, BATCH):
        hashes[rows[batch]] = bands_of([shingles(text) for text in long_texts[batch]])
    return hashes


# ---- Candidates, compared and joined ------------------------------------------------------------


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard similarity of two sets, given as sorted arrays without repeats.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def crowds(hashes: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the groups of documents that share a hash: arrays of two or more numbers, ascending.

    hashes: uint64 (n,), of one band; documents: (n,), their numbers.

    >>> list(crowds(np.array([5, 8, 5, 3], np.uint64), np.array([10, 11, 12, 13])))
    [array([10, 12])]
    """
    # Sorting makes equal hashes adjacent; the sort is stable, so documents stay in their order.
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]

    # `pairs` holds every position whose right neighbour is equal. A crowd of m documents is m - 1
    # such positions in a row. Nearly all documents are in no crowd, so the loop is short.
    pairs = np.flatnonzero(ranked[1:] == ranked[:-1])
    first = 0
    for k, place in enumerate(pairs):
        ends_here = k + 1 == len(pairs) or pairs[k + 1] != place + 1
        if ends_here:
            yield documents[order[pairs[first]:place + 2]]
            first = k + 1


class Grams:
    """An LRU cache of documents' 5-grams, so that few documents are read twice."""

    def __init__(self, read: Callable[[int], str], room: int = CACHED):
        self.read = read
        self.room = room  # how many more grams fit
        self.held: OrderedDict[int, np.ndarray] = OrderedDict()  # most recently used last

    def __call__(self, i: int) -> np.ndarray:
        """The 5-grams of document i, sorted and without repeats: uint64."""
        if i not in self.held:
            self.held[i] = np.unique(shingles(flatten(self.read(i))))
            self.room -= len(self.held[i])
            # A comparison needs two documents, however long they are.
            while self.room < 0 and len(self.held) > 2:
                _, oldest = self.held.popitem(last=False)
                self.room += len(oldest)
        self.held.move_to_end(i)
        return self.held[i]


class Clusters:
    """Union-find: each document points to another of its cluster, or to itself if it is the root.

    >>> clusters = Clusters(4)
    >>> clusters.join(0, 1)
    >>> clusters.join(1, 3)
    >>> [clusters.root(i) for i in range(4)]
    [3, 3, 2, 3]
    """

    def __init__(self, n: int):
        # 4 bytes per document if the numbers fit.
        number = np.int32
        if n >= 2**31:
            number = np.int64
        self.parent = np.arange(n, dtype=number)

    def root(self, i: int) -> int:
        """The document where the chain of parents that starts at i ends."""
        parent = self.parent
        while parent[i] != i:
            # Path halving: point to the grandparent, so that the next walk is half as long.
            parent[i] = parent[parent[i]]
            i = parent[i]
        return int(i)

    def join(self, i: int, other: int) -> None:
        """Merge the clusters of two documents, under the root of the second."""
        self.parent[self.root(i)] = self.root(other)

    def longest(self, sizes: np.ndarray) -> np.ndarray:
        """For each document, the longest of its cluster; among equals, the first: (n,)."""
        parent = self.parent
        numbers = np.arange(len(parent), dtype=parent.dtype)

        # Only joined documents need a look, and in most corpora they are few. From here on each of
        # them points directly to its root.
        joined = np.flatnonzero(parent != numbers)
        for i in joined:
            parent[i] = self.root(i)

        # For each root, the longest document so far, starting with the root itself.
        longest = numbers
        for i in joined:
            best = longest[parent[i]]
            is_longer = sizes[i] > sizes[best]
            is_earlier = sizes[i] == sizes[best] and i < best
            if is_longer or is_earlier:
                longest[parent[i]] = i
        return longest[parent]


def join_copies(crowd: np.ndarray, clusters: Clusters, grams: Grams) -> None:
    """Compare the documents of a crowd and join those that are near copies."""
    # {root: a document of that cluster}, for the clusters met in this crowd. Each document is
    # compared with one document per cluster, and with at most 16 clusters: a crowd may be a million
    # pages that share a template and nothing else.
    met: OrderedDict[int, int] = OrderedDict()
    for i in crowd.tolist():
        if clusters.root(i) in met:
            continue
        latest_first = reversed(met.items())
        for root, member in itertools.islice(latest_first, COMPARED):
            if jaccard(grams(i), grams(member)) >= THRESHOLD:
                clusters.join(i, member)
                del met[root]  # put back below, as the latest one
                break
        met[clusters.root(i)] = i


def near_duplicates(
    bands: np.ndarray,
    sizes: np.ndarray,
    read: Callable[[int], str],
    among: np.ndarray | None = None,
) -> np.ndarray:
    """For each document, the near copy that is kept (itself if it is kept): int32 (n,).

    bands: uint64 (14, n), the rows of `band_hashes` as columns; sizes: (n,), the documents'
    lengths; read(i): the text of document i; among: bool (n,), the documents to consider, if not
    all."""
    # Documents under 50 characters have zeros for hashes, and are not compared.
    is_candidate = bands[0] != 0
    if among is not None:
        is_candidate &= among
    clusters = Clusters(len(sizes))
    candidates = np.flatnonzero(is_candidate).astype(clusters.parent.dtype)

    # One band at a time, so that only one needs to be in memory.
    grams = Grams(read)
    for band in cli.progress(range(BANDS), "near", "band"):
        for crowd in crowds(bands[band][candidates], candidates):
            join_copies(crowd, clusters, grams)
    return clusters.longest(sizes)
