"""Byte-level BPE, the tokenizer of Llama 3: no scores, no characters; bytes, and ranks themselves.

A regular expression splits a text into chunks, mostly a word with the space before it, and no token
reaches across two of them. A chunk is a row of bytes, and `join` does the rest: of all neighbours
that make a token it joins the two whose token has the lowest rank, again and again. That is
SentencePiece's rule (`tokenizer.segment`) with a rank in the place of a score.

To extend such a vocabulary is to go on joining. `learn` counts what the base leaves side by side,
and its tokens rank after all of the base's; so the base has its joins first, as before. Appended as
whole words instead (`add_tokens`), they would be cut out of longer words before the base has seen
what is around them.

Definition: https://github.com/openai/tiktoken. The idea of `learn`: continued BPE, 2512.03989.
"""
import dataclasses
import hashlib
import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from itertools import pairwise

import regex

from common import cli

try:
    import tiktoken  # optional: the same ids, some five times faster
except ImportError:
    tiktoken = None

# Different chunks that encode remembers. They repeat: most of a text is found here.
CACHED_CHUNKS = 2**18

NO_TOKEN = 2**62  # the rank of a pair that makes no token: above all ranks


# ---- Encoding ------------------------------------------------------------------------------------


def join(parts: Iterable[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """Join neighbours until no two of them make a token: the definition of byte-level BPE.

    Of all pairs it takes the one whose token has the lowest rank, of equal ones the leftmost.

    >>> letters = [b"l", b"o", b"w", b"e", b"r"]
    >>> join(letters, {b"er": 0, b"lo": 1, b"low": 2, b"we": 3})
    [b'low', b'er']
    >>> join(letters, {b"we": 0, b"lo": 1, b"low": 2, b"er": 3})
    [b'lo', b'we', b'r']
    """
    parts = list(parts)
    # Each pair's rank. It is kept from join to join, because one join changes only two of them.
    pairs = [ranks.get(left + right, NO_TOKEN) for left, right in pairwise(parts)]
    while pairs:
        lowest = min(pairs)
        if lowest == NO_TOKEN:
            break
        i = pairs.index(lowest)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]

        # The pair is gone; those before and after it are pairs with the new token.
        del pairs[i]
        for k in (i - 1, i):
            if 0 <= k < len(pairs):
                pairs[k] = ranks.get(parts[k] + parts[k + 1], NO_TOKEN)
    return parts


def single_bytes(token: bytes) -> list[bytes]:
    """The bytes of a token, one by one: where joining begins."""
    return [token[i:i + 1] for i in range(len(token))]


def segment(chunk: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The tokens of a chunk. One that is a token itself is not joined, but looked up.

    That is not always the same. Here the lowest rank leads astray:

    >>> ranks = {b"bc": 0, b"ab": 1, b"cd": 2, b"abcd": 3}
    >>> join(single_bytes(b"abcd"), ranks)
    [b'a', b'bc', b'd']
    >>> segment(b"abcd", ranks)
    [b'abcd']
    """
    if chunk in ranks:
        return [chunk]
    return join(single_bytes(chunk), ranks)


# ---- Extending -----------------------------------------------------------------------------------


def learn(
    counts: dict[str, int],
    ranks: dict[bytes, int],
    size: int,
    is_wanted: Callable[[bytes], bool],
) -> list[bytes]:
    """The next `size` tokens of a byte-level BPE, in the order in which they are learned.

    counts: chunks, and how often each occurs. ranks: the vocabulary so far. is_wanted: may this be
    a token? Fewer are returned if there is nothing left to join.

    Each is the token that occurs most often as a pair of neighbours; of equally frequent ones, the
    first in the order of their bytes. Every chunk is then what the longer vocabulary makes of it,
    so a token is learned from what will be there when it is used.

    >>> ranks = {b"l": 0, b"o": 1, b"w": 2, b" ": 3, b"lo": 4}
    >>> learn({"low": 5, " low": 3, "wow": 4}, ranks, size=2, is_wanted=bytes.isalpha)
    [b'low', b'ow']
    """
    is_wanted = lru_cache(maxsize=None)(is_wanted)
    ranks = dict(ranks)
    last = max(ranks.values())

    def new_tokens(parts: list[bytes]) -> list[bytes]:
        """What neighbours would make, if it is wanted."""
        joined = [left + right for left, right in pairwise(parts)]
        return [token for token in joined if is_wanted(token)]

    # Every chunk as the base leaves it; how often each new token occurs, and in which chunks.
    chunks = []
    weights = []
    occurs = Counter()
    chunks_with = defaultdict(set)
    for chunk, n in counts.items():
        parts = segment(chunk.encode(), ranks)
        for token in new_tokens(parts):
            occurs[token] += n
            chunks_with[token].add(len(chunks))
        chunks.append(parts)
        weights.append(n)

    # The most frequent token is at the top of a heap. When a count changes, its token is pushed
    # again; the older entry is recognised by its count when it comes up, and dropped.
    heap = [(-n, token) for token, n in occurs.items()]
    heapq.heapify(heap)
    learned = []
    with cli.progress(None, "learn merges", " merges", total=size) as bar:
        while heap and len(learned) < size:
            n, token = heapq.heappop(heap)
            if occurs[token] != -n:
                continue
            learned.append(token)
            bar.update()

            # Join it wherever it occurs, after all joins of lower rank, which it may make possible.
            ranks[token] = last + len(learned)
            changed = set()
            for i in chunks_with.pop(token):
                for old in new_tokens(chunks[i]):
                    occurs[old] -= weights[i]
                    changed.add(old)
                chunks[i] = join(chunks[i], ranks)
                for new in new_tokens(chunks[i]):
                    occurs[new] += weights[i]
                    changed.add(new)
                    chunks_with[new].add(i)
            for one in changed:
                if occurs[one] > 0:
                    heapq.heappush(heap, (-occurs[one], one))
    return learned


# ---- A vocabulary --------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False, repr=False)
class ByteLevel:
    """A byte-level BPE tokenizer. It has the methods of sentencepiece_file.Model, and only
    tokenizer.py knows which of the two it has."""

    # The id of each token. Ids rise with the ranks, so their order is all that `join` needs.
    ranks: dict[bytes, int]
    # The ids of the control tokens, which no text can become.
    controls: dict[str, int]
    # The regular expression that splits a text into chunks.
    pattern: str
    # What else is in tokenizer.json, and in tokenizer_config.json: it is carried along.
    content: dict
    config: dict
    # Does transformers put BOS before a text? And is a space put there, as by SentencePiece?
    adds_bos: bool = True
    adds_space = False

    def __post_init__(self):
        self.bos = self.controls.get(self.config.get("bos_token"))
        self.eos = self.controls.get(self.config.get("eos_token"))
        # What stands under each id: bytes, the text of a control token, or nothing.
        self.size = 1 + max([*self.ranks.values(), *self.controls.values()])
        self.entries = [None] * self.size
        for entry, i in [*self.ranks.items(), *self.controls.items()]:
            self.entries[i] = entry
        # Chunks repeat: the latest are remembered.
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

        bos, eos: put these around each text. workers: threads for a list, -1 for one per core;
        only tiktoken has them."""
        if isinstance(text, str):
            return self.encode([text], bos=bos, eos=eos, workers=1)[0]
        if tiktoken:
            threads = workers if workers > 0 else os.cpu_count()
            rows = self.tiktoken.encode_ordinary_batch(text, num_threads=threads)
        else:
            rows = [self.encode_chunks(one) for one in text]
        first = [self.bos] if bos else []
        last = [self.eos] if eos else []
        return [[*first, *row, *last] for row in rows]

    def encode_chunks(self, text: str) -> list[int]:
        """Token ids of a text: the definition, which tiktoken does faster."""
        ids = []
        for chunk in self.chunks(text):
            ids += self.ids_of_chunk(chunk)
        return ids

    def ids_of_chunk(self, chunk: str) -> list[int]:
        """Token ids of a chunk."""
        return [self.ranks[token] for token in segment(chunk.encode(), self.ranks)]

    @cached_property
    def chunks(self) -> Callable[[str], list[str]]:
        """A function that splits a text into chunks."""
        return regex.compile(self.pattern).findall

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
        """The text of token ids, or a list of texts for a list of lists. Control tokens have none;
        bytes that are no UTF-8 become U+FFFD."""
        if ids and isinstance(ids[0], list):
            return [self.decode(row) for row in ids]
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")

    def bytes_of(self, i: int) -> bytes:
        """What token i adds to a text; nothing, if it is a control token."""
        entry = self.entries[i]
        if isinstance(entry, bytes):
            return entry
        return b""

    def split(self, piece: bytes) -> list[int]:
        """The tokens of a piece of a word. It is joined from its bytes, even if it is a token: what
        is looked up is whole chunks, and this is part of one."""
        return [self.ranks[token] for token in join(single_bytes(piece), self.ranks)]

    @cached_property
    def sha256(self) -> str:
        """A hash of all that decides the ids of a text, in whichever file it stands."""
        known = (self.pattern, self.bos, self.eos, self.entries)
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def extended(self, tokens: list[bytes]) -> "ByteLevel":
        """This vocabulary and more tokens, in the order in which they were learned. Their ids come
        after those of the control tokens. UserError if they were learned on another base."""
        ranks = dict(self.ranks)
        for i, token in enumerate(tokens, start=self.size):
            # A token that is no pair of two others is there already, or could not be made.
            if len(join(single_bytes(token), ranks)) != 2:
                raise cli.UserError(
                    f"{token.decode(errors='backslashreplace')!r} is not a pair of two tokens: it "
                    f"was learned on another base; run `tokenizer.py train` on this one")
            ranks[token] = i
        return dataclasses.replace(self, ranks=ranks)
