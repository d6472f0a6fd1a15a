"""N-grams as numbers: what the steps that compare texts have in common.

A text becomes an array of code points, and each n-gram in it one 64-bit number, computed for all
places at once. Duplicates compares sets of 5-grams, perplexity counts n-grams of 1 to 5 characters,
and decontaminate looks for runs of 12 and 25.
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
    """The text with every run of white space made one space, and none at its ends.

    >>> flatten("동해물과  백두산이\\n")
    '동해물과 백두산이'
    """
    return " ".join(text.split())


def batches(texts: list[str], characters: int) -> Iterator[slice]:
    """Divide a list into stretches of about `characters` each, for numpy to work on at once.

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
    """A hash of every n codes in a row, read as the digits of a number to this base, modulo 2^64:
    uint64 (len(codes) - n + 1,), empty if there are fewer than n.

    >>> rolling(np.array([3, 1, 4, 1, 5, 9, 2], np.uint64), 5, base=10).tolist()
    [31415, 14159, 41592]
    """
    if len(codes) < n:
        return np.zeros(0, np.uint64)

    # Numbers of one digit are there already. A number of 2k digits is made of two of k digits, the
    # second of which begins k places later; one of 2k + 1 takes another digit. The binary digits of
    # n say when: 5 is 101, so 1 → 2 → 4 → 5, and 25 is 11001, so 1 → 2 → 3 → 6 → 12 → 24 → 25.
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
    """Finds hashes in a sorted array of them, as a dictionary's thumb index finds words: for each
    beginning (the first bits of a hash) it knows where in the array the hashes with it start.

    >>> table = Table(np.array([3, 7, 2**63], np.uint64))
    >>> table.find(np.array([7, 8, 2**63], np.uint64)).tolist()
    [1, -1, 2]
    """

    def __init__(self, keys: np.ndarray):
        self.keys = keys  # uint64, ascending
        # Two to four beginnings per key, so that most have one key or none.
        bits = max(1, int(np.ceil(np.log2(len(keys) + 1))) + 1)
        self.shift = np.uint64(64 - bits)

        # The keys of a beginning come after those of all smaller ones: the running sum of how many
        # keys each has, one beginning further on. In place, because the array is large.
        beginnings = (keys >> self.shift).astype(np.int64)
        beginnings += 1
        starts = np.bincount(beginnings, minlength=2**bits + 1)
        np.cumsum(starts, out=starts)
        # Hashes that begin higher than the last key are compared with the last key.
        np.minimum(starts, max(0, len(keys) - 1), out=starts)
        self.starts = starts[:-1].astype(np.uint32)  # (2^bits,)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The place of each hash in the array, the first if it is there several times, -1 if it is
        not there: int64 (hashes,)."""
        if len(self.keys) == 0:
            return np.full(len(hashes), -1)
        place = self.starts[hashes >> self.shift].astype(np.int64)
        key = self.keys[place]

        # Most are settled by one look. The others go one key further at a time, until they meet a
        # key that is not smaller. There is one, unless the hash is above all keys.
        looking = np.flatnonzero((key < hashes) & (hashes <= self.keys[-1]))
        while len(looking) > 0:
            place[looking] += 1
            next_key = self.keys[place[looking]]
            key[looking] = next_key
            looking = looking[next_key < hashes[looking]]

        place[key != hashes] = -1
        return place
