"""Step 7, perplexity: how much a document surprises a model of its language; both tails go.

An n-gram model of characters (Korean syllables, mostly), interpolated Kneser-Ney (Kneser and Ney 1995; Chen and
Goodman 1999, section 2.7), in numpy. As in CCNet (Wenzek et al. 2020, section 4.3) the most surprising documents are
word salad, lists, other languages; the least surprising are templates filled in by the thousand.

    p_n(w | h) = max(c(hw) - D, 0) / c(h) + D types(h) / c(h) p_{n-1}(w | h')        h' is h without its first character

c counts occurrences for the longest n-grams; for shorter ones the different characters that occur before them: a
character that follows only one other is likely behind that one and nowhere else. D is n1 / (n1 + 2 n2), of the n-grams
seen once and twice. Below p_1 all characters are equally likely, one that was never seen among them: for any h all p
add up to 1.

Two traps. A document that the model was trained on surprises it less: without --reference two models are trained, each
on half of a sample, and every document is scored by the one that has not seen it. And sources differ (a statute is
half as surprising as a comment): a cut-off for all would remove a source, so each source has its own, by percentiles.
But a percentile removes something from the best of sources. So a document has to lie far out, too: more than three
times the distance of the quartiles beyond them (Tukey 1977, chapter 2). Of 36 documents of Korean sources that
percentiles alone removed, two readers would have kept 28; six of the 36 lie far out: the readers would remove all six.
"""
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cleaning.duplicates import flatten
from cleaning.work import new_array
from common import cli

ORDER = 5
SAMPLE = 8_000_000  # bytes of text that a model is trained on; memory is some 12 times that
FEWEST = 100        # documents a source must have: of fewer, a percentile says nothing (small sources are pooled)
FAR = 3             # interquartile ranges beyond the quartiles: of a normal distribution 2 in a million lie there
SHORTEST = 40       # characters a document must have: of fewer, the mean is chance, and both tails full of short ones
BATCH = 100_000     # characters scored at once
END = "\n"          # before and behind each document; inside there is none, white space being one blank
BASE = np.uint64(0x9E3779B97F4A7C15)
BINS = np.arange(0, 20.5, 0.5)  # bits a character, for the histogram


def mixed(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """The texts, flattened, one after another: (a 64-bit hash of each character, the place of each END)."""
    text = END + "".join(flatten(text) + END for text in texts)
    x = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    ends = np.flatnonzero(x == ord(END))
    x = (x.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(32)), ends


def longer(grams: np.ndarray, n: int, characters: np.ndarray) -> np.ndarray:
    """Hashes of all n-grams, from those of all (n - 1)-grams; an n-gram has the place of its first character."""
    return grams[:-1] * BASE + characters[n - 1:] if n > 1 else characters


def distinct(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(each gram once, sorted; a place where it stands; for each place its gram's number; how often it stands there).
    np.unique's first place costs a stable sort, five times this; here all places of a gram serve alike."""
    order = np.argsort(grams)
    ranked = grams[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])[:len(ranked)])
    counts = np.diff(starts, append=len(ranked))
    number = np.empty(len(grams), np.int64)
    number[order] = np.repeat(np.arange(len(starts)), counts)
    return ranked[starts], order[starts], number, counts


class Table:
    """Hashes -> places, by a sorted array and, for the first bits of a hash, where in it those begin."""

    def __init__(self, keys: np.ndarray):
        self.keys = keys  # sorted, without repeats
        bits = max(1, int(np.ceil(np.log2(len(keys) + 1))) + 1)
        self.shift = np.uint64(64 - bits)
        self.starts = np.searchsorted(keys >> self.shift, np.arange(2**bits, dtype=np.uint64)).astype(np.uint32)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The place of each hash, -1 for those that are not there. Most are settled by one look, all by a few."""
        if not len(self.keys):
            return np.full(len(hashes), -1)
        last = len(self.keys) - 1
        place = np.minimum(self.starts[hashes >> self.shift], last).astype(np.int64)
        found = self.keys[place]
        open_ = np.flatnonzero((found < hashes) & (place < last))
        while len(open_):
            place[open_] += 1
            found[open_] = self.keys[place[open_]]
            open_ = open_[(found[open_] < hashes[open_]) & (place[open_] < last)]
        return np.where(found == hashes, place, -1)


class Model:
    """Of every n-gram seen, log2 p of its last character, and log2 of what n-grams one longer leave to shorter ones."""

    ARRAYS = ("sizes", "keys", "log_p", "log_rest")

    def __init__(self, sizes: np.ndarray, keys: np.ndarray, log_p: np.ndarray, log_rest: np.ndarray):
        self.sizes, self.keys, self.log_p, self.log_rest = sizes, keys, log_p, log_rest
        ends = np.cumsum(sizes[1:])
        self.tables = [Table(keys[end - size:end]) for size, end in zip(sizes[1:], ends, strict=True)]
        self.firsts = (ends - sizes[1:]).tolist()
        self.unknown = float(log_rest[-1] - np.log2(sizes[0]))

    @classmethod
    def train(cls, texts: Iterable[str], order: int = ORDER) -> "Model":
        characters, _ = mixed(cli.progress(texts, "read", " documents"))
        grams, found = None, []
        for n in cli.progress(range(1, order + 1), "count n-grams"):
            grams = longer(grams, n, characters)
            found.append(distinct(grams))
        unique, place, number, raw = zip(*found, strict=True)
        p = np.full(1, 1 / (len(unique[0]) + 1))  # p_0: all characters that were seen, and one that was not
        log_p, rest = [], []
        for n in cli.progress(range(1, order + 1), "their chances"):
            size, at = len(unique[n - 1]), place[n - 1]
            # different characters before it; the document's first, which has none before it, counts once
            count = raw[-1] if n == order else np.maximum(1, np.bincount(number[n - 1][place[n] + 1], minlength=size))
            n1, n2 = (count == 1).sum(), (count == 2).sum()
            discount = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
            context = number[n - 2][at] if n > 1 else np.zeros(size, int)
            shorter = number[n - 2][at + 1] if n > 1 else np.zeros(size, int)
            contexts = len(unique[n - 2]) if n > 1 else 1
            total = np.maximum(1, np.bincount(context, count, contexts))
            types = np.bincount(context, minlength=contexts)
            left = np.where(types, discount * types / total, 1)
            p = (count - discount) / total[context] + left[context] * p[shorter]
            log_p.append(np.log2(p))
            rest.append(np.log2(left))
        rest = [*rest[1:], np.zeros(len(unique[-1])), rest[0]]
        return cls(np.array([len(unique[0]) + 1, *map(len, unique)]), np.concatenate(unique),
                   np.concatenate(log_p).astype(np.float32), np.concatenate(rest).astype(np.float32))

    def save(self, stem: Path) -> None:
        for name, array in ((name, getattr(self, name)) for name in self.ARRAYS):
            with cli.new_file(f"{stem}.{name}.npy") as temporary:
                new_array(temporary, array.dtype, array.shape)[:] = array

    @classmethod
    def load(cls, stem: Path) -> "Model":
        return cls(*(np.load(f"{stem}.{name}.npy", mmap_mode="r") for name in cls.ARRAYS))  # shared by all processes

    def log2_p(self, characters: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """log2 p of each character but the first, given those before it back to the last END: float32."""
        log_p = np.full(len(characters), self.unknown, np.float32)
        room = np.arange(len(characters)) - np.repeat(np.append(0, ends[:-1]), np.diff(ends, prepend=-1))
        at = np.arange(1, len(characters))    # the places of characters whose context of n - 1 characters was seen
        grams, context = None, None
        for n, (table, start) in enumerate(zip(self.tables, self.firsts, strict=True), 1):
            grams = longer(grams, n, characters)
            if n > 1:
                at = at[(room[at] >= n - 1) & (context[at - 1] >= 0)]
                log_p[at] += self.log_rest[context[at - 1]]
            found = table.find(grams[at - n + 1])
            log_p[at[found >= 0]] = self.log_p[start + found[found >= 0]]
            context = np.full(len(characters), -1)
            context[at] = np.where(found >= 0, start + found, -1)
            if n == 1:  # a document's END before its first character is a context, too
                context[0] = start + table.find(characters[:1])[0]
        return log_p[1:]

    def bits(self, texts: list[str]) -> np.ndarray:
        """Bits a character of each text, its end included (the logarithm of its perplexity): float32 (len(texts),).

        >>> model = Model.train(["가나다라 가나다마", "가나다라 가나다바"])
        >>> model.bits(["가나다라 가나다"]) < model.bits(["라다나가 다나가"])
        array([ True])
        """
        out, rows, size = np.zeros(len(texts), np.float32), [], 0
        for i, text in enumerate(texts):
            rows.append(i)
            size += len(text)
            if size >= BATCH or i == len(texts) - 1:
                characters, ends = mixed([texts[row] for row in rows])
                sums = np.add.reduceat(self.log2_p(characters, ends).astype(np.float64), ends[:-1])
                out[rows] = -sums / np.diff(ends)
                rows, size = [], 0
        return out


def some(n: int, sizes: np.ndarray, kept: np.ndarray, room: int) -> Iterator[int]:
    """Documents of `kept` in an order that looks random and is the same each time, until they are `room` bytes."""
    for i in np.random.default_rng(n).permutation(np.flatnonzero(kept)).tolist():
        yield i
        room -= int(sizes[i])
        if room <= 0:
            return


def cuts(scores: np.ndarray, sources: np.ndarray, n_sources: int, tails: tuple[float, float]) -> np.ndarray:
    """The lowest and the highest score that stays, for each source: float64 (n_sources, 2).

    scores: float32 (n,), nan for a document that has none; sources: (n,), ascending; tails: percent, low and high, that
    go at most."""
    bounds = np.searchsorted(sources, np.arange(n_sources + 1))
    small, out = np.diff(bounds) < FEWEST, np.tile([-np.inf, np.inf], (n_sources, 1))
    groups = [(k, scores[bounds[k]:bounds[k + 1]]) for k in np.flatnonzero(~small).tolist()]
    for group, own in [*groups, (small, scores[small[sources]])]:
        own = own[~np.isnan(own)]
        if len(own) >= FEWEST:
            low, first, third, high = np.percentile(own, [tails[0], 25, 75, 100 - tails[1]])
            out[group] = min(low, first - FAR * (third - first)), max(high, third + FAR * (third - first))
    return out


def verdict(score: float, low: float, high: float) -> tuple[bool, str]:
    """(kept, reason). A document without a score (nan) stays."""
    reason = "too_predictable" if score < low else "too_surprising" if score > high else ""
    return not reason, reason


def histograms(scores: np.ndarray, sources: np.ndarray, names: list[str], limits: np.ndarray) -> dict:
    """{source: its documents by bits a character, in bins, and the cut-offs}; above 20 bits counts as 20."""
    out, bounds = {}, np.searchsorted(sources, np.arange(len(names) + 1))
    for k, name in enumerate(names):
        own = scores[bounds[k]:bounds[k + 1]]
        own = own[~np.isnan(own)]
        if len(own):
            counts, _ = np.histogram(np.minimum(own, BINS[-1]), BINS)
            low, high = (round(float(cut), 3) if np.isfinite(cut) else None for cut in limits[k])
            out[name] = {"from": low, "to": high, "median": round(float(np.median(own)), 3), "counts": counts.tolist()}
    return out

