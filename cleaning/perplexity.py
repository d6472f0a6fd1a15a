"""Step 8, perplexity: scores documents with a language model, and removes both tails.

The model predicts each character (usually a Korean syllable) from the four before it: an n-gram
model with interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999, section
2.7), in numpy. As in CCNet (Wenzek et al. 2020, section 4.3), the most surprising documents are
word salad, lists and other languages; the least surprising are templates filled in by the thousand.

Let h be the n - 1 characters before w, and h' be h without its first character:

    p_n(w | h) = max(c(hw) - D, 0) / c(h)  +  rest(h) · p_{n-1}(w | h')
    rest(h)    = D · types(h) / c(h)

Each seen n-gram gives up D of its count. The share that all n-grams beginning with h give up,
rest(h), is distributed by the model one shorter, so a character never seen after h also gets a
probability. types(h) is the number of different characters seen after h. D is n1 / (n1 + 2 n2),
where n1 and n2 are the numbers of n-grams seen once and twice.

For the longest n-grams, c(hw) is how often hw occurs. Kneser and Ney's idea is to let c, for
shorter ones, be the number of *different characters that occur before hw*. In 20,000 articles of
the Korean Wikipedia 렇 and 곤 are equally frequent (1,118 and 1,112), but 렇 follows 이 or 그 in
1,098 cases (이렇다, 그렇다) and only 5 different characters in all, while 곤 follows 97. So if the
model does not know the preceding characters, 곤 is far more likely.

p_0 is the same for every character that was seen, and for one more that stands for all others. For
any h, the probabilities of all w sum to 1.

Worked by hand, for n-grams of at most two characters, on the texts "ab" and "ac", each between END
marks ⏎: the line is ⏎ab⏎ac⏎. Its pairs are ⏎a (twice), ab, b⏎, ac and c⏎ (once each), so n1 = 4,
n2 = 1, D = 4/6. a is followed by b and by c, once each: c(a) = 2, types(a) = 2, and rest(a) =
4/6 · 2 / 2 = 2/3. For single characters, c counts the different ones before them: a 1 (⏎), b 1 (a),
c 1 (a), ⏎ 2 (b and c). Three of these counts are 1 and one is 2, so D = 3/5; c() = 5, types() = 4,
rest() = 3/5 · 4 / 5 = 0.48, p_0 = 1/5. Hence p_1(b) = (1 - 0.6) / 5 + 0.48 / 5 = 0.176 and
p_2(b | a) = (1 - 2/3) / 2 + 2/3 · 0.176 = 0.284.

>>> model = Model.train(["ab", "ac"], order=2)
>>> [round(2.0 ** float(x), 3) for x in model.log2_p(*hash_characters(["ab"]))]  # a, b, ⏎
[0.725, 0.284, 0.584]

Two traps. First, a document the model was trained on surprises it less. So without --reference two
models are trained, each on half of a sample, and every document is scored by the one that has not
seen it. Second, sources differ (a statute is half as surprising as a comment), and a single cutoff
would remove a whole source. So each source has its own cutoffs, by percentiles. But a percentile
removes something from even the best source, so a removed document must also be an outlier: beyond a
quartile by more than three interquartile ranges (Tukey 1977, chapter 2). Of 36 documents of Korean
sources that percentiles alone removed, two readers would have kept 28; six of the 36 are outliers,
and the readers would remove all six.
"""
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cleaning.arrays import new_array
from cleaning.hashes import (
    SPLITMIX_1,
    SPLITMIX_2,
    Table,
    batches,
    code_points,
    flatten,
    rolling,
)
from common import cli

# 5 is CCNet's, but its n-grams are of SentencePiece pieces.
ORDER = 5           # characters of the longest n-grams
# The numbers below are ours, except for Tukey's 3. So are the tails, 0.5 and 1 % by default; CCNet
# divides each language into thirds instead.
SAMPLE = 8_000_000  # bytes of text to train a model on; the model takes 12 times that
SHORTEST = 40       # characters that a document needs for a score: a mean of fewer is mostly chance
BATCH = 100_000     # characters scored at once
# Before and after each document. It cannot occur inside one, where all white space is spaces.
END = "\n"

# Minimum documents per source: a percentile of fewer says nothing. Smaller sources are pooled.
FEWEST = 100
# Interquartile ranges beyond the quartiles: 2 in a million of a normal distribution lie there.
FAR = 3
BINS = np.arange(0, 20.5, 0.5)  # bits per character, for the histogram


# ---- The formula --------------------------------------------------------------------------------


class Level(NamedTuple):
    """All n-grams of one length n in a text of N characters. The distinct n-grams are numbered in
    the order of their hashes."""
    hashes: np.ndarray   # uint64 (distinct,), ascending
    place: np.ndarray    # int64 (distinct,): a position where the n-gram begins
    number: np.ndarray   # int64 (N - n + 1,): the number of the n-gram beginning at each position
    counts: np.ndarray   # int64 (distinct,): how often it occurs


def interpolate(
    level: Level, shorter: Level, counts: np.ndarray, p_shorter: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The formula at the top, for all n-grams of a level: p_n of the last character of each,
    (distinct,), and rest(h) of each (n - 1)-gram h, (distinct shorter,).

    counts: c of each n-gram; p_shorter: p_{n-1} of each (n - 1)-gram's last character."""
    # An n-gram hw contains two (n - 1)-grams: h, which begins at the same position, and h'w, which
    # begins one character later.
    context = shorter.number[level.place]                    # h:   (distinct,)
    suffix = shorter.number[level.place + 1]                 # h'w: (distinct,)

    # c(h) and types(h): the summed counts, and the number, of the n-grams that begin with h.
    contexts = len(shorter.hashes)
    total = np.bincount(context, weights=counts, minlength=contexts)
    types = np.bincount(context, minlength=contexts)

    # An h that nothing follows, at the very end of the text, passes everything on to h'.
    discount = discount_of(counts)
    is_followed = types > 0
    rest = np.ones(contexts)
    rest[is_followed] = discount * types[is_followed] / total[is_followed]

    p = (counts - discount) / total[context] + rest[context] * p_shorter[suffix]
    return p, rest


def discount_of(counts: np.ndarray) -> float:
    """D, what each n-gram gives up of its count.

    >>> float(discount_of(np.array([1, 1, 2, 1])))  # n1 = 3, n2 = 1
    0.6
    """
    n1 = (counts == 1).sum()
    n2 = (counts == 2).sum()
    # A very short text may have none.
    if n1 == 0 or n2 == 0:
        return 0.5
    return n1 / (n1 + 2 * n2)


def different_before(shorter: Level, level: Level) -> np.ndarray:
    """Kneser and Ney's count: for each n-gram of `shorter`, how many different characters occur
    before it. int64 (distinct,)."""
    # Each distinct n-gram of `level` is a character followed by a shorter n-gram, which begins one
    # position later. Counting these shorter ones counts the different characters before them.
    endings = shorter.number[level.place + 1]
    counts = np.bincount(endings, minlength=len(shorter.hashes))
    # The very first n-gram of the text has nothing before it. It counts once.
    return np.maximum(1, counts)


# ---- The model ----------------------------------------------------------------------------------


class Model:
    """An n-gram model: four arrays, in files that all processes share.

    The rows are the n-grams seen, first all of one character, then all of two, and so on.

        sizes      (order + 1,)        characters for p_0, then the number of n-grams of each length
        keys       (n-grams,) uint64   their hashes, ascending within a length
        log_p      (n-grams,) float32  log2 of p_n of the n-gram's last character
        log_rest   (n-grams,) float32  log2 of rest(h) with the n-gram as h, for longer n-grams; the
                                       last entry is for the empty h
    """

    ARRAYS = ("sizes", "keys", "log_p", "log_rest")

    def __init__(
        self, sizes: np.ndarray, keys: np.ndarray, log_p: np.ndarray, log_rest: np.ndarray
    ):
        self.sizes = sizes
        self.keys = keys
        self.log_p = log_p
        self.log_rest = log_rest
        # For each length, its first row and a table of its keys.
        self.firsts = []
        self.tables = []
        first = 0
        for size in sizes[1:].tolist():
            self.firsts.append(first)
            self.tables.append(Table(keys[first:first + size]))
            first += size
        # A character that was never seen: rest() · p_0.
        self.unknown = float(log_rest[-1] - np.log2(sizes[0]))

    @classmethod
    def train(cls, texts: Iterable[str], order: int = ORDER) -> "Model":
        """Count the n-grams of the texts and compute their probabilities."""
        # The empty n-gram, of length 0, is the context of single characters. There is only one, and
        # it occurs everywhere: before each of the N characters and after the last. (As a broadcast
        # zero these N + 1 numbers take no memory.)
        characters, _ = hash_characters(cli.progress(texts, "read", " documents"))
        everywhere = np.broadcast_to(np.int64(0), len(characters) + 1)
        empty = Level(np.zeros(1, np.uint64), np.zeros(1, np.int64), everywhere, everywhere[:1])

        levels = [empty]
        for n in cli.progress(range(1, order + 1), "count n-grams"):
            levels.append(distinct(rolling(characters, n)))

        # Start with p_0: all characters that were seen, and one that was not, are equally likely.
        n_characters = len(levels[1].hashes) + 1
        p = np.full(1, 1 / n_characters)
        log_p = []
        log_rest = []
        for n in cli.progress(range(1, order + 1), "their probabilities"):
            if n == order:
                counts = levels[n].counts
            else:
                counts = different_before(levels[n], levels[n + 1])
            p, rest = interpolate(levels[n], levels[n - 1], counts, p)
            log_p.append(np.log2(p))
            log_rest.append(np.log2(rest))

        # A level's rest belongs to the n-grams one shorter. The longest are no context; the rest of
        # the empty n-gram, which has no row, comes last.
        longest = np.zeros(len(levels[order].hashes))
        log_rest = log_rest[1:] + [longest] + log_rest[:1]
        sizes = [n_characters] + [len(level.hashes) for level in levels[1:]]
        return cls(
            np.array(sizes),
            np.concatenate([level.hashes for level in levels[1:]]),
            np.concatenate(log_p).astype(np.float32),
            np.concatenate(log_rest).astype(np.float32),
        )

    def log2_p(self, characters: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """log2 p of each character but the first, given the ones before it back to the last END.

        The two arrays of `hash_characters` → float32 (characters - 1,)."""
        # From short n-grams to long ones. `at` holds the positions of the characters whose context
        # of n - 1 characters was seen in training: longer n-grams improve only on these.
        # `ending[i]` is the row of the n-gram that ends at position i, -1 if it was never seen.
        n_characters = len(characters)
        history = history_of(ends)
        log_p = np.full(n_characters, self.unknown, np.float32)
        at = np.arange(n_characters)
        ending = None
        for n in range(1, len(self.sizes)):
            grams = rolling(characters, n)

            # So far log_p is log2 p_{n-1}(w | h'). If hw was not seen, p_n = rest(h) · p_{n-1}.
            if n > 1:
                has_history = history[at] >= n - 1
                context_is_known = ending[at - 1] >= 0
                at = at[has_history & context_is_known]
                log_p[at] += self.log_rest[ending[at - 1]]

            # If hw was seen, its row has p_n(w | h).
            ending = np.full(n_characters, -1)
            ending[at] = self.rows_of(grams[at - (n - 1)], n)
            is_known = ending >= 0
            log_p[is_known] = self.log_p[ending[is_known]]
        return log_p[1:]

    def rows_of(self, grams: np.ndarray, n: int) -> np.ndarray:
        """The rows of n-grams, given by their hashes; -1 for those that were never seen."""
        # The table counts from the first row of this length.
        rows = self.tables[n - 1].find(grams)
        rows[rows >= 0] += self.firsts[n - 1]
        return rows

    def bits(self, texts: list[str]) -> np.ndarray:
        """Bits per character of each text, its END included: the logarithm of its perplexity.
        float32 (texts,).

        >>> model = Model.train(["가나다라 가나다마", "가나다라 가나다바"])
        >>> model.bits(["가나다라 가나다"]) < model.bits(["라다나가 다나가"])
        array([ True])
        """
        bits = np.zeros(len(texts), np.float32)
        for batch in batches(texts, BATCH):
            characters, ends = hash_characters(texts[batch])
            log_p = self.log2_p(characters, ends).astype(np.float64)
            # log_p has no entry for the first END, so the entry of a document's first character is
            # at the position of the END before it.
            sums = np.add.reduceat(log_p, ends[:-1])
            bits[batch] = -sums / np.diff(ends)
        return bits

    def save(self, stem: Path) -> None:
        """Write STEM.keys.npy and so on, each completely or not at all."""
        for name in self.ARRAYS:
            array = getattr(self, name)
            with cli.new_file(f"{stem}.{name}.npy") as temporary:
                new_array(temporary, array.dtype, array.shape)[:] = array

    @classmethod
    def load(cls, stem: Path) -> "Model":
        """Map the model that `save` wrote: it stays on disk and is read where needed."""
        arrays = [np.load(f"{stem}.{name}.npy", mmap_mode="r") for name in cls.ARRAYS]
        return cls(*arrays)


# ---- N-grams as numbers -------------------------------------------------------------------------


def hash_characters(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Flatten the texts and join them as ⏎first⏎second⏎. Returns a 64-bit hash of each character,
    uint64 (characters,), and the positions of the ENDs, (texts + 1,)."""
    line = END + "".join(flatten(text) + END for text in texts)
    codes = code_points(line)
    ends = np.flatnonzero(codes == ord(END))

    # SplitMix64's mixing: multiply, then shift the high bits onto the low ones. Without it, hashes
    # of n-grams would collide, because code points are small and close together.
    x = (codes.astype(np.uint64) + 1) * SPLITMIX_1
    x = (x ^ (x >> 29)) * SPLITMIX_2
    return x ^ (x >> 32), ends


def history_of(ends: np.ndarray) -> np.ndarray:
    """How many characters before each one may be its context: back to and including the END before
    its document, so nothing of another document. int64 (characters,).

    >>> history_of(np.array([0, 3, 5])).tolist()  # of ⏎ab⏎c⏎
    [0, 1, 2, 3, 1, 2]
    """
    end_before = np.append(0, ends[:-1])          # (texts + 1,): for each END, the one before
    length = np.diff(ends, prepend=-1)            # (texts + 1,): characters from one to the next
    return np.arange(ends[-1] + 1) - np.repeat(end_before, length)


def distinct(grams: np.ndarray) -> Level:
    """Number and count the n-grams whose hashes are `grams`, (N - n + 1,).

    `np.unique` finds the *first* position of each, with a stable sort that takes five times as
    long. Here any position will do."""
    # Sorting makes equal n-grams adjacent: `starts` is where each group begins.
    order = np.argsort(grams)
    ranked = grams[order]
    begins_group = np.ones(len(ranked), bool)
    begins_group[1:] = ranked[1:] != ranked[:-1]
    starts = np.flatnonzero(begins_group)                 # (distinct,)
    counts = np.diff(starts, append=len(ranked))

    # All positions of group k get the number k.
    number = np.empty(len(grams), np.int64)
    number[order] = np.repeat(np.arange(len(starts)), counts)
    return Level(ranked[starts], order[starts], number, counts)


# ---- Which documents to remove, and which to train on -------------------------------------------


def check(text: str, score: float, low: float, high: float) -> tuple[str | None, str]:
    """(text, "") if the document stays, else (None, reason). It stays if it has no score (nan).

    low, high: the cutoffs of its source.

    >>> check("가나다", 0.9, 1.2, 6.0)
    (None, 'too_predictable: 0.9 bits per character < 1.2')
    >>> check("가나다", 3.0, 1.2, 6.0)
    ('가나다', '')
    """
    if score < low:
        shown, limit = told_apart(score, low)
        return None, f"too_predictable: {shown} bits per character < {limit}"
    if score > high:
        shown, limit = told_apart(score, high)
        return None, f"too_surprising: {shown} bits per character > {limit}"
    return text, ""


def told_apart(score: float, cutoff: float) -> tuple[str, str]:
    """Both numbers with three digits, or with as many as it takes to tell them apart.

    >>> told_apart(0.91, 1.234), told_apart(1.6991, 1.7031)
    (('0.91', '1.23'), ('1.699', '1.703'))
    """
    for digits in range(3, 18):
        shown = f"{score:.{digits}g}"
        limit = f"{cutoff:.{digits}g}"
        if shown != limit:
            break
    return shown, limit


def cutoffs_of(scores: np.ndarray, tails: tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest score that stays, for scores that are judged together.

    A document is removed only if it is in a tail and also an outlier:

    >>> scores = np.append(np.linspace(1, 3, 199), 12)
    >>> low, high = cutoffs_of(scores, (2.0, 2.0))
    >>> round(float(low), 1), round(float(high), 1)  # the quartiles are 1.5 and 2.5
    (-1.5, 5.5)
    """
    scores = scores[~np.isnan(scores)]
    if len(scores) < FEWEST:
        return -np.inf, np.inf
    low_tail, high_tail = tails
    percents = [low_tail, 25, 75, 100 - high_tail]
    low, first_quartile, third_quartile, high = np.percentile(scores, percents)
    far = FAR * (third_quartile - first_quartile)
    return min(low, first_quartile - far), max(high, third_quartile + far)


def cutoffs_by_source(
    scores: np.ndarray, sources: np.ndarray, n_sources: int, tails: tuple[float, float]
) -> np.ndarray:
    """The lowest and the highest score that stays, for each source: float64 (n_sources, 2).

    scores: float32 (n,), nan for a document without one; sources: (n,), ascending; tails: the
    largest percentages to remove, low and high."""
    # Sources are ascending, so the documents of each are contiguous.
    bounds = np.searchsorted(sources, np.arange(n_sources + 1))
    is_small = np.diff(bounds) < FEWEST                    # (n_sources,)
    cutoffs = np.empty((n_sources, 2))
    for source in np.flatnonzero(~is_small):
        own = scores[bounds[source]:bounds[source + 1]]
        cutoffs[source] = cutoffs_of(own, tails)

    # The small sources are judged together, as one source.
    pooled = scores[is_small[sources]]
    cutoffs[is_small] = cutoffs_of(pooled, tails)
    return cutoffs


def draw(seed: int, sizes: np.ndarray, kept: np.ndarray, n_bytes: int) -> Iterator[int]:
    """Yield numbers of documents in random order until they add up to `n_bytes`. The order depends
    on the seed and on which documents are kept.

    sizes: (n,), the documents' bytes; kept: bool (n,), the documents to draw from."""
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(kept))
    for i in shuffled.tolist():
        yield i
        n_bytes -= int(sizes[i])
        if n_bytes <= 0:
            return


# ---- The report ---------------------------------------------------------------------------------


def histograms(
    scores: np.ndarray, sources: np.ndarray, names: list[str], cutoffs: np.ndarray
) -> dict:
    """{source: a histogram of its documents by bits per character, and its cutoffs}.

    scores, sources: as for `cutoffs_by_source`, which returned the cutoffs; names: of the
    sources."""
    result = {}
    bounds = np.searchsorted(sources, np.arange(len(names) + 1))
    for k, name in enumerate(names):
        own = scores[bounds[k]:bounds[k + 1]]
        own = own[~np.isnan(own)]
        if len(own) == 0:
            continue
        # More than 20 bits counts as 20.
        counts, _ = np.histogram(np.minimum(own, BINS[-1]), BINS)
        low, high = cutoffs[k].tolist()
        result[name] = {
            "from": rounded(low),
            "to": rounded(high),
            "median": rounded(float(np.median(own))),
            "counts": counts.tolist(),
        }
    return result


def rounded(score: float) -> float | None:
    """Round for JSON, which has no infinity: None for a side on which nothing is removed."""
    if not np.isfinite(score):
        return None
    return round(score, 3)
