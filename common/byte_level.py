"""Byte-level BPE, the tokenizer of Llama 3: bytes instead of characters, ranks instead of scores.

A regular expression splits a text into chunks, usually a word with the space before it. A chunk
starts as single bytes. Then `join` repeatedly joins the two neighbours whose concatenation is the
token with the lowest rank. This is `segment` in tokenizer.py, where the highest score wins: a rank
r is a score of -r. No token crosses the boundary between two chunks.

A vocabulary is extended by continuing its training (`learn`). The base encodes the new text, the
most frequent pair of neighbours becomes the next token, and so on. The new tokens rank after all of
the base's, so the base's joins are made first, as they were in training. (`add_tokens` of
transformers works differently: it cuts the new words out of the text, longest first, before
anything is joined.)

Definition: https://github.com/openai/tiktoken. Continued BPE: arXiv 2512.03989.
"""
import dataclasses
import hashlib
import heapq
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from itertools import pairwise

import regex

from common import cli

try:
    import tiktoken  # optional: gives the same ids, and packing takes a third of the time
except ImportError:
    tiktoken = None

# The number of chunks whose ids `encode` remembers. Words repeat, so most chunks are found here.
CACHED_CHUNKS = 2**18

# Chunks with more bytes go to `join_long`. The tokens of a vocabulary are shorter.
LONG_CHUNK = 1000

# Texts with fewer bytes are safe: tiktoken's regular expressions crash on a run of 1,000,000
# spaces.
SAFE_LENGTH = 900_000


# ---- Encoding ------------------------------------------------------------------------------------


def join(parts: Iterable[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """Join neighbours until no two of them make a token: the definition of byte-level BPE.

    The pair whose token has the lowest rank comes first; of equal ranks, the leftmost. These are
    the examples of `segment` in tokenizer.py, with ranks 1 to 4 for its scores -1 to -4. In the
    first, er, lo and low are joined; in the second we and lo, after which no w is left for low.

    >>> letters = [b"l", b"o", b"w", b"e", b"r"]
    >>> join(letters, {b"er": 1, b"lo": 2, b"low": 3, b"we": 4})
    [b'low', b'er']
    >>> join(letters, {b"we": 1, b"lo": 2, b"low": 3, b"er": 4})
    [b'lo', b'we', b'r']
    """
    parts = list(parts)
    # The rank of each pair. They are kept between joins, because a join changes only two of them.
    pairs = [ranks.get(left + right, math.inf) for left, right in pairwise(parts)]
    while pairs:
        lowest = min(pairs)
        if lowest == math.inf:
            break
        i = pairs.index(lowest)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]

        # The pair is gone. The pairs before and after it now include the new token.
        del pairs[i]
        for k in (i - 1, i):
            if 0 <= k < len(pairs):
                pairs[k] = ranks.get(parts[k] + parts[k + 1], math.inf)
    return parts


def join_long(chunk: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """`join` for long chunks, such as 100,000 letters without a space, for which looking at all
    pairs before each join would take minutes. Here the pairs are on a heap, lowest rank first.

    >>> join_long(b"lower", {b"we": 1, b"lo": 2, b"low": 3, b"er": 4})
    [b'lo', b'we', b'r']
    """
    # {start of each token: its end}, and {end of each token: its start}.
    ends = {i: i + 1 for i in range(len(chunk))}
    starts = {i + 1: i for i in range(len(chunk))}
    heap = []

    def offer(middle: int) -> None:
        """Put the pair of tokens that meet at `middle` on the heap, if they make a token."""
        if middle in starts and middle in ends:
            start = starts[middle]
            end = ends[middle]
            if chunk[start:end] in ranks:
                heapq.heappush(heap, (ranks[chunk[start:end]], start, middle, end))

    # At first every byte is a token, and a pair meets between any two of them.
    for i in range(len(chunk)):
        offer(i)
    while heap:
        _, start, middle, end = heapq.heappop(heap)
        # Skip the pair if one of the two has been joined to another token since.
        if ends.get(start) != middle or ends.get(middle) != end:
            continue

        # The middle is gone. At its ends the new token meets its neighbours.
        del ends[middle], starts[middle]
        ends[start] = end
        starts[end] = start
        offer(start)
        offer(end)
    return [chunk[start:end] for start, end in ends.items()]


def single_bytes(token: bytes) -> list[bytes]:
    """The single bytes of a token, from which `join` starts.

    >>> [byte.hex() for byte in single_bytes("나".encode())]  # a syllable has three
    ['eb', '82', '98']
    """
    return [token[i:i + 1] for i in range(len(token))]


def segment(chunk: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The tokens of a chunk. A chunk that is a token itself is looked up, not joined.

    The lookup is part of the definition: some tokens are never reached by joining. Here bc has the
    lowest rank, and once it is joined, neither ab nor cd can be:

    >>> ranks = {b"bc": 0, b"ab": 1, b"cd": 2, b"abcd": 3}
    >>> join(single_bytes(b"abcd"), ranks)
    [b'a', b'bc', b'd']
    >>> segment(b"abcd", ranks)
    [b'abcd']
    """
    if chunk in ranks:
        return [chunk]
    if len(chunk) > LONG_CHUNK:
        return join_long(chunk, ranks)
    return join(single_bytes(chunk), ranks)


# ---- Extending -----------------------------------------------------------------------------------


def learn(
    counts: dict[str, int],
    ranks: dict[bytes, int],
    size: int,
    is_wanted: Callable[[bytes], bool],
) -> list[bytes]:
    """Learn the next `size` tokens of a byte-level BPE; returns them in order.

    counts: {chunk: how often it occurs}. ranks: the vocabulary so far. is_wanted: may this be a
    token? Fewer tokens are returned if there is nothing left to join.

    The next token is the one that neighbours make most often, whichever two they are. Ties go to
    the first in byte order, whatever the order of the inputs. Then every chunk is encoded with the
    new token and counted again, so tokens are learned from what they will meet in use.

    In the example the base leaves lo|w, a space|lo|w and w|o|w. So low comes first, with 5 + 3;
    then ow and wo have 4 each, and ow sorts first.

    >>> ranks = {b"l": 0, b"o": 1, b"w": 2, b" ": 3, b"lo": 4}
    >>> learn({"low": 5, " low": 3, "wow": 4}, ranks, size=2, is_wanted=bytes.isalpha)
    [b'low', b'ow']
    """
    is_wanted = lru_cache(maxsize=None)(is_wanted)
    ranks = dict(ranks)
    last = max(ranks.values())

    # The chunks as the base encodes them; and, for each candidate, how often and where it occurs.
    chunks = [segment(chunk.encode(), ranks) for chunk in counts]
    weights = list(counts.values())
    occurs = Counter()
    chunks_with = defaultdict(set)
    for i, parts in enumerate(chunks):
        for token in new_tokens(parts, is_wanted):
            occurs[token] += weights[i]
            chunks_with[token].add(i)

    # The most frequent candidate is at the top of a heap.
    heap = [(-n, token) for token, n in occurs.items()]
    heapq.heapify(heap)
    learned = []
    for _ in cli.progress(range(size), "learn merges", " merges"):
        token = most_frequent(heap, occurs)
        if token is None:
            break
        learned.append(token)
        ranks[token] = last + len(learned)

        # Join it wherever it occurs. That may complete another token, so use `join`.
        found = set()
        for i in chunks_with.pop(token):
            for old in new_tokens(chunks[i], is_wanted):
                occurs[old] -= weights[i]
            chunks[i] = join(chunks[i], ranks)
            for new in new_tokens(chunks[i], is_wanted):
                occurs[new] += weights[i]
                chunks_with[new].add(i)
                found.add(new)
        for new in found:
            heapq.heappush(heap, (-occurs[new], new))
    return learned


def new_tokens(parts: list[bytes], is_wanted: Callable[[bytes], bool]) -> list[bytes]:
    """The wanted tokens that neighbours would make, one for each pair."""
    joined = [left + right for left, right in pairwise(parts)]
    return [token for token in joined if is_wanted(token)]


def most_frequent(heap: list[tuple[int, bytes]], occurs: Counter) -> bytes | None:
    """Take the most frequent token from a heap of (-count, token); None if there is none left."""
    while heap:
        n, token = heapq.heappop(heap)
        if occurs[token] == -n:
            return token
        # It has become rarer, so put it back with its new count. (One that has become more frequent
        # is on the heap a second time.)
        if 0 < occurs[token] < -n:
            heapq.heappush(heap, (-occurs[token], token))
    return None


# ---- A vocabulary --------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False, repr=False)
class ByteLevel:
    """A byte-level BPE tokenizer. It has the methods of sentencepiece_file.Model; only tokenizer.py
    distinguishes the two."""

    # The id of each token, which is also its rank. `join` only compares ranks, so gaps are allowed.
    ranks: dict[bytes, int]
    # The ids of the control tokens. No text is encoded as one of them.
    controls: dict[str, int]
    # The regular expression that splits a text into chunks.
    pattern: str
    # The rest of tokenizer.json, and tokenizer_config.json, which are carried along.
    content: dict
    config: dict
    # The name for messages: the file that it was read from.
    source: str = "the tokenizer"
    # SentencePiece may put a space before a text; byte-level BPE does not.
    adds_space = False
    # Its directory adds no further tokens: all control tokens are in tokenizer.json.
    added = {}
    without_row = {}

    def __post_init__(self):
        self.bos = self.controls.get(self.config.get("bos_token"))
        self.eos = self.controls.get(self.config.get("eos_token"))
        # By id: a token's bytes, a control token's text, or None for a gap.
        self.size = 1 + max([*self.ranks.values(), *self.controls.values()])
        self.pieces = [None] * self.size
        for piece, i in [*self.ranks.items(), *self.controls.items()]:
            self.pieces[i] = piece
        # Chunks repeat, so the ids of the most recent ones are remembered.
        self.chunks = regex.compile(self.pattern).findall
        self.ids_of_chunk = lru_cache(CACHED_CHUNKS)(self.ids_of_chunk)

    def encode(
        self,
        text: str | list[str],
        *,
        bos: bool,
        eos: bool = False,
        workers: int = -1,
    ) -> list:
        """Token ids of a text, or a list of them for a list of texts.

        bos, eos: put these around each text; UserError if the vocabulary has none. workers: threads
        for a list, -1 for one per core; only tiktoken has them."""
        if isinstance(text, str):
            return self.encode([text], bos=bos, eos=eos, workers=1)[0]
        first = [self.bos] if bos else []
        last = [self.eos] if eos else []
        if None in first + last:
            raise cli.UserError(
                f"{self.source} has no BOS, or no EOS: name them in its tokenizer_config.json, as "
                f"bos_token and eos_token; they must be control tokens of tokenizer.json")

        # A lone surrogate is not text: str.encode raises an error for it, with or without tiktoken.
        longest = max([len(one.encode()) for one in text], default=0)
        if tiktoken is None or longest >= SAFE_LENGTH:
            rows = [self.encode_chunks(one) for one in text]
        elif workers == 1:
            # A pool of threads costs more than a short text.
            rows = [self.tiktoken.encode_ordinary(one) for one in text]
        else:
            threads = workers if workers > 0 else os.cpu_count()
            rows = self.tiktoken.encode_ordinary_batch(text, num_threads=threads)
        return [[*first, *row, *last] for row in rows]

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text that follows a special token, which are those of any text."""
        return self.encode(text, bos=False)

    def encode_chunks(self, text: str) -> list[int]:
        """Token ids of a text, by definition. tiktoken computes the same faster."""
        ids = []
        for chunk in self.chunks(text):
            ids += self.ids_of_chunk(chunk)
        return ids

    def ids_of_chunk(self, chunk: str) -> list[int]:
        """Token ids of a chunk."""
        return [self.ranks[token] for token in segment(chunk.encode(), self.ranks)]

    @cached_property
    def tiktoken(self):
        """tiktoken's encoder for this vocabulary."""
        return tiktoken.Encoding(
            "nanowhale",
            pat_str=self.pattern,
            mergeable_ranks=self.ranks,
            special_tokens={},
        )

    def decode(self, ids: list) -> str | list[str]:
        """The text of token ids, or a list of texts for a list of lists. Control tokens add
        nothing; bytes that are not valid UTF-8 become U+FFFD."""
        if ids and isinstance(ids[0], list):
            return [self.decode(row) for row in ids]
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")

    def bytes_of(self, i: int) -> bytes:
        """The bytes that token i adds to a text; none if it is a control token."""
        piece = self.pieces[i]
        return piece if isinstance(piece, bytes) else b""

    def split(self, piece: bytes) -> list[int]:
        """The ids of a part of a word. Only whole chunks are looked up, so here even a token is
        joined from its bytes. If that gives several ids, the token is unreachable inside words."""
        return [self.ranks[token] for token in join(single_bytes(piece), self.ranks)]

    @cached_property
    def sha256(self) -> str:
        """A hash of everything that determines the ids of a text. It does not depend on the kind of
        file that the vocabulary was read from."""
        known = (self.pattern, self.bos, self.eos, self.pieces)
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def extended(self, tokens: list[bytes]) -> "ByteLevel":
        """This vocabulary with more tokens, in the order in which they were learned. Their ids come
        after those of the control tokens. UserError if they were learned on another base."""
        ranks = dict(self.ranks)
        for i, token in enumerate(tokens, start=self.size):
            # A token that `learn` learned on this base is two of its tokens, joined. One part means
            # that the token exists already, three that no join would ever make it.
            if len(join(single_bytes(token), ranks)) != 2:
                raise cli.UserError(
                    f"{token.decode(errors='backslashreplace')!r} is not a pair of two tokens: it "
                    f"was learned on another base; run `tokenizer.py train` on this one")
            ranks[token] = i
        return dataclasses.replace(self, ranks=ranks)
