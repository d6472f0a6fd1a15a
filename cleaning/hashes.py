"""N-grams as numbers, shared by the steps that compare texts.

A text becomes an array of code points, and each n-gram in it one 64-bit number, computed for all
positions at once. duplicates.py compares sets of 5-grams, perplexity.py counts n-grams of 1 to 5
characters, and decontaminate.py looks for runs of 12 and 25.
"""
from collections.abc import Iterator

import numpy as np

# Odd constants with well-mixed bits for multiplicative hashing: 2^64 divided by the golden ratio
# (Knuth, volume 3, section 6.4), and the two multipliers of SplitMix64 (Steele, Lea and Flood
# 2014), which scatters numbers that lie close together.
GOLDEN = 0x9E3779B97F4A7C15
SPLITMIX_1 = 0xBF58476D1CE4E5B9
SPLITMIX_2 = 0x94D049BB133111EB


def flatten(text: str) -> str:
    """Collapse every run of white space into one space, and strip both ends.

    >>> flatten("동해물과  백두산이\\n")
    '동해물과 백두산이'
    """
    return " ".join(text.split())


def batches(texts: list[str], characters: int) -> Iterator[slice]:
    """Yield slices of a list with about `characters` each, for numpy to process at once.

    >>> list(batches(["abcd", "e", "f", "gh"], 4))
    [slice(0, 1, None), slice(1, 4, None)]
    """
    start = 0
    size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= characters or end == len(texts):
            yield slice(start, end)
            start = end
            size = 0


def code_points(text: str) -> np.ndarray:
    """The Unicode code point of each character: uint32 (characters,).

    >>> code_points("가a").tolist()
    [44032, 97]
    """
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def rolling(codes: np.ndarray, n: int, base: int = GOLDEN) -> np.ndarray:
    """A hash of every n consecutive codes, read as the digits of a number in this base, modulo
    2^64: uint64 (len(codes) - n + 1,), empty if there are fewer than n.

    >>> rolling(np.array([3, 1, 4, 1, 5, 9, 2], np.uint64), 5, base=10).tolist()
    [31415, 14159, 41592]
    """
    if len(codes) < n:
        return np.zeros(0, np.uint64)

    # Start with numbers of one digit. Two numbers of k digits, the second of which begins k places
    # later, make one of 2k; one more digit makes 2k + 1. The binary digits of n say when to add it:
    # 5 is 101, so 1 → 2 → 4 → 5, and 25 is 11001, so 1 → 2 → 3 → 6 → 12 → 24 → 25.
    hashes = codes
    size = 1
    for bit in f"{n:b}"[1:]:
        shift = pow(base, size, 2**64)
        hashes = hashes[:-size] * shift + hashes[size:]
        size *= 2
        if bit == "1":
            hashes = hashes[:-1] * base + codes[size:]
            size += 1
    return hashes


class Table:
    """Looks hashes up in a sorted array, like the thumb index of a dictionary: for each prefix (the
    first bits of a hash) it stores where in the array the hashes with that prefix start.

    >>> table = Table(np.array([3, 7, 2**63], np.uint64))
    >>> table.find(np.array([7, 8, 2**63], np.uint64)).tolist()
    [1, -1, 2]
    """

    def __init__(self, keys: np.ndarray):
        self.keys = keys  # uint64, ascending
        # Two to four prefixes per key, so that most have one key or none.
        bits = max(1, int(np.ceil(np.log2(len(keys) + 1))) + 1)
        self.shift = np.uint64(64 - bits)

        # The keys of a prefix come after those of all smaller ones: a running sum of the counts,
        # shifted by one prefix. In place, because the array is large.
        prefixes = (keys >> self.shift).astype(np.int64)
        prefixes += 1
        starts = np.bincount(prefixes, minlength=2**bits + 1)
        np.cumsum(starts, out=starts)
        # Hashes with a prefix above that of the last key are compared with the last key.
        np.minimum(starts, max(0, len(keys) - 1), out=starts)
        self.starts = starts[:-1].astype(np.uint32)  # (2^bits,)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The index of each hash in the array, the first one if it occurs several times, -1 if it
        does not occur: int64 (hashes,)."""
        if len(self.keys) == 0:
            return np.full(len(hashes), -1)
        place = self.starts[hashes >> self.shift].astype(np.int64)
        key = self.keys[place]

        # For most, the first key settles it. The others advance one key at a time until they meet
        # one that is not smaller. There is one, unless the hash is above all keys.
        looking = np.flatnonzero((key < hashes) & (hashes <= self.keys[-1]))
        while len(looking) > 0:
            place[looking] += 1
            next_key = self.keys[place[looking]]
            key[looking] = next_key
            looking = looking[next_key < hashes[looking]]

        place[key != hashes] = -1
        return place
