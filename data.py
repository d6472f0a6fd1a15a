"""Everything between raw text and a training step: documents, token shards, batches.

- `clean` turns raw documents into documents worth training on. Its steps are in cleaning/.
- `show` prints what `clean` decided, document by document.
- `pack` turns documents into *token shards*: one stream of token ids on disk, BOS text EOS BOS text
  EOS ... The files are memory-mapped, so a corpus larger than memory opens at once. A few whole
  documents are set aside for validation, on which `bits_per_byte` measures a model. They are chosen
  by a hash of their text, so they are the same for every tokenizer. Of exact copies, within one
  input or across several, only the first is packed.
- `Loader` deals windows of the stream into batches for train.py. Which window comes next is a pure
  function of a seed and of one counter per source, so a run that was stopped resumes with exactly
  the batch that would have come next.

    python data.py clean --input raw/wiki.jsonl raw/court.jsonl --out out/clean --profile formal
    python data.py show  out/clean --reason too_short
    python data.py pack  --input out/clean --tokenizer out/merged.model --out out/shards
"""
import argparse
import hashlib
import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

import tokenizer
from cleaning.limits import Limits
from cleaning.pipeline import clean
from cleaning.settings import STEPS
from cleaning.show import show
from common import cli, dialogues
from common.documents import (
    KINDS,
    Wanted,
    add_flags,
    announce,
    check_fields,
    read_documents,
    reading_of,
)
from common.notices import small_validation

IGNORE = -100  # a target that does not count, as in PyTorch's cross_entropy
LONGEST_WINDOW = 2048  # tokens per window, at most, if --seq_len is 0

# ---- Validation documents -----------------------------------------------------------------------


def text_hash(text: str) -> int:
    """A 64-bit BLAKE2b hash of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def choose_validation(texts: Iterable[str], fraction: float, max_bytes: int) -> dict[int, str]:
    """Choose the validation documents: {hash: text}, in the order of their hashes.

    They are the documents whose hash lies in the lowest `fraction` of the hash range; of these, the
    lowest that fit into max_bytes together, but at least one. The choice depends neither on the
    order of the documents nor on the tokenizer. If there is only one text, it is for training.
    Memory: max_bytes and one document."""
    limit = int(fraction * 2**64)  # documents with hashes from here on are for training
    chosen: dict[int, str] = {}
    highest_first: list[int] = []  # a heap of the chosen hashes, negated
    n_bytes = 0
    lowest_hash = 2**64
    lowest_text = ""
    highest_hash = -1
    for text in texts:
        key = text_hash(text)
        highest_hash = max(highest_hash, key)
        if key < lowest_hash:
            lowest_hash = key
            lowest_text = text
        if key < limit and key not in chosen:
            chosen[key] = text
            heapq.heappush(highest_first, -key)
            n_bytes += len(text.encode())
        # Too much text: evict the highest hash, and lower the limit to it. So the result is always
        # "every text below some hash", in whatever order the texts come.
        while n_bytes > max_bytes and len(chosen) > 1:
            limit = -heapq.heappop(highest_first)
            n_bytes -= len(chosen.pop(limit).encode())

    has_two_texts = lowest_hash < highest_hash
    if not has_two_texts:
        return {}
    # The fraction was so small that no hash was below it: take one document.
    if not chosen:
        return {lowest_hash: lowest_text}
    return dict(sorted(chosen.items()))


# ---- Packing ------------------------------------------------------------------------------------


def encode_documents(
    vocabulary: tokenizer.Vocabulary,
    texts: list[str],
    workers: int,
    are_dialogues: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode each text as BOS text EOS and join them: (ids, is_prompt), uint32 and bool, (tokens,)
    each.

    `workers`: threads. The ids are the same for any number of them."""
    # The empty arrays are for the case of no texts, in which np.concatenate would fail.
    ids = [np.zeros(0, np.uint32)]
    is_prompt = [np.zeros(0, bool)]
    if are_dialogues:
        for row, is_given in encode_dialogues(vocabulary, texts, workers):
            ids.append(np.array(row, np.uint32))
            is_prompt.append(is_given)
    else:
        for row in vocabulary.encode(texts, bos=True, eos=True, workers=workers):
            ids.append(np.array(row, np.uint32))
            is_prompt.append(np.zeros(len(row), bool))
    return np.concatenate(ids), np.concatenate(is_prompt)


def encode_dialogues(
    vocabulary: tokenizer.Vocabulary,
    texts: list[str],
    workers: int,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (ids, is_prompt) for each exchange of each dialogue. The format is described, with an
    example, in common/dialogues.py."""
    # A prompt and its response are encoded together, with a space between them. As many tokens
    # count as the prompt's as the prompt alone would have, because those are what the model will be
    # given. Everything after them, the space included, is the response to learn.
    prompts = []
    exchanges = []
    begins = []  # is it the first exchange of its dialogue?
    for text in texts:
        for n, (prompt, response) in enumerate(dialogues.split(text)):
            prompts.append(prompt.rstrip())
            exchanges.append(f"{prompt.rstrip()} {response.lstrip()}")
            begins.append(n == 0)
    prompt_rows = vocabulary.encode(prompts, bos=False, workers=workers)
    rows = vocabulary.encode(exchanges, bos=False, eos=True, workers=workers)
    bos = vocabulary.encode("", bos=True)

    # A document has one BOS, at its beginning; `Shards.validation` finds the documents by it.
    for prompt, row, is_first in zip(prompt_rows, rows, begins, strict=True):
        n_given = len(prompt)
        if is_first:
            row = [*bos, *row]
            n_given += 1
        yield row, np.arange(len(row)) < n_given


def pack(args: argparse.Namespace) -> dict:
    """Tokenize documents into the shards that train.py reads, and print what they hold.

        python data.py pack --input clean/a clean/b --tokenizer merged.model --out shards/ko

    The corpus is read twice; the first pass decides which documents are for validation. Of exact
    copies, within one input or across several, only the first is packed. Memory: one shard, one
    batch, and about 100 bytes per document."""
    # Refuse an unsuitable tokenizer now, not after the first pass over the corpus: one with ids
    # that have no row in its model, or one without BOS or EOS.
    vocabulary = tokenizer.load(args.tokenizer)
    tokenizer.check_rows(vocabulary, Path(args.tokenizer, "config.json"))
    vocabulary.encode("", bos=True, eos=True)
    check_pack_flags(args)
    check_fields(args.input, reading_of(args), wanted_of(args))

    with cli.new_folder(args.out) as folder:
        # The first pass chooses the validation documents and lists the lines that are not
        # documents. It costs little: hashing is far faster than tokenizing.
        # (disable=None: no bar if stderr is not a terminal.)
        with tqdm(desc="read", unit="B", unit_scale=True, disable=None) as bar:
            held_out, seen = read_validation(args, folder / "rejected.jsonl", bar)

        # The second pass tokenizes all others. Two bytes per token are enough for vocabularies up
        # to 65,536. For dialogues, `given` marks which tokens are a prompt's.
        dtype = np.uint16 if vocabulary.size <= 2**16 else np.uint32
        train = ShardWriter(folder, "train", dtype, args.shard_tokens)
        given = ShardWriter(folder, "given", bool, args.shard_tokens)
        with tqdm(desc="pack", unit="B", unit_scale=True, total=bar.n, disable=None) as bar:
            once = Once()
            texts = once.filter(read_texts(args, bar))
            written = write_training(args, vocabulary, texts, held_out, train, given)
        if written["documents"] == 0:
            raise cli.UserError(f"no document to train on in {' '.join(map(str, args.input))} "
                                f"({seen.rejected.total()} lines were rejected{why(seen)}, "
                                f"{len(held_out)} documents are for validation)")

        # The index lists the files with their hashes, so that later changes are noticed. The
        # tokenizer's hash identifies shards that were packed for another model.
        val = write_validation(args, vocabulary, list(held_out.values()), folder, dtype)
        index = {
            **written,
            "duplicates": once.n_duplicates,
            "vocab_size": vocabulary.size,
            "tokenizer_sha256": vocabulary.sha256,
            "dtype": train.buffer.dtype.name,
            "bos_token_id": vocabulary.bos,
            "eos_token_id": vocabulary.eos,
            "files": train.files,
            "given": given.files,
            "val": val,
        }
        cli.write_json(folder / "index.json", index)

    say_what_was_packed(args, index, seen)
    return index


@dataclass
class Seen:
    """What the first pass has counted."""
    rows: int = 0           # rows that can be used
    rejected: Counter = field(default_factory=Counter)  # number of lines by reason
    repaired: int = 0       # rows in which U+FFFD replaces a few broken bytes
    with_more: int = 0      # rows with text in an unused field that looks like part of the prompt
    unused: Counter = field(default_factory=Counter)    # number of rows by such field


def why(seen: Seen) -> str:
    """The most common reason why lines were rejected, for a message; "" if none were."""
    if not seen.rejected:
        return ""
    [(reason, n)] = seen.rejected.most_common(1)
    return f" ({n} of them: {reason})"


def read_validation(
    args: argparse.Namespace,
    rejected: Path,
    bar: tqdm,
) -> tuple[dict[int, str], Seen]:
    """Read all documents and choose those for validation. Lines that are not documents go to
    `rejected`."""
    seen = Seen()
    with open(rejected, "w", encoding="utf-8") as file:
        texts = read_texts(args, bar, seen, file)
        held_out = choose_validation(texts, args.val_fraction, args.val_bytes)
    return held_out, seen


class Once:
    """Lets each text through once: two folders that were cleaned under two profiles may share
    documents.

    A prompt and its response are one text, so a prompt may come again with another response. Texts
    are compared by their 64-bit hash. Among 35 million texts the chance that any two different ones
    have the same hash is 1 in 30,000, and one text would then be lost. The set takes 80 to 110
    bytes per document: at most 4 GB for 35 million."""

    def __init__(self):
        self.seen: set[int] = set()
        self.n_duplicates = 0

    def filter(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts that have not come before."""
        for text in texts:
            key = text_hash(text)
            if key in self.seen:
                self.n_duplicates += 1
            else:
                self.seen.add(key)
                yield text


def write_training(
    args: argparse.Namespace,
    vocabulary: tokenizer.Vocabulary,
    texts: Iterable[str],
    held_out: dict[int, str],
    train: "ShardWriter",
    given: "ShardWriter",
) -> dict[str, int]:
    """Write the tokens of all texts that are not held out to `train`, and for dialogues to `given`
    whether each token is a prompt's. Returns counts for the index: all tokens, the tokens to be
    learned ("targets"), the bytes of text of these, and the documents."""
    counts = {"tokens": 0, "targets": 0, "bytes": 0, "documents": 0}
    for batch in in_batches(texts):
        # The validation documents come among these texts again; their hashes tell which they are.
        batch = [text for text in batch if text_hash(text) not in held_out]
        ids, is_prompt = encode_documents(vocabulary, batch, args.workers, has_dialogues(args))
        train.append(ids)
        if has_dialogues(args):
            given.append(is_prompt)
        counts["tokens"] += len(ids)
        counts["targets"] += len(ids) - int(is_prompt.sum())
        counts["bytes"] += sum(bytes_to_predict(text, has_dialogues(args)) for text in batch)
        counts["documents"] += len(batch)
    train.flush()
    given.flush()
    return counts


def write_validation(
    args: argparse.Namespace,
    vocabulary: tokenizer.Vocabulary,
    texts: list[str],
    folder: Path,
    dtype: type,
) -> dict:
    """Write the validation documents for `Shards.validation`; returns their entry in the index."""
    # The bytes of each document are stored too: bits per byte divides by them, and they make the
    # first megabyte of documents the same for every tokenizer.
    ids, is_prompt = encode_documents(vocabulary, texts, args.workers, has_dialogues(args))
    n_bytes = [bytes_to_predict(text, has_dialogues(args)) for text in texts]
    files = {
        "val-00000.npy": save_array(folder / "val-00000.npy", ids.astype(dtype)),
        "val_bytes.npy": save_array(folder / "val_bytes.npy", np.array(n_bytes, np.uint32)),
    }
    if has_dialogues(args):
        files["val_given.npy"] = save_array(folder / "val_given.npy", is_prompt)
    return {"tokens": len(ids), "bytes": sum(n_bytes), "documents": len(texts), "files": files}


# ---- Shards -------------------------------------------------------------------------------------


def inputs_and_targets(
    tokens: np.ndarray,
    is_prompt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split a window into the inputs, tokens 0 ... T - 1, and their targets, tokens 1 ... T.

    tokens: int64 (T + 1,); is_prompt: bool (T + 1,), or None if there are no prompts. Returns int64
    (T,) and (T,). A prompt's tokens are inputs but not targets: there the target is IGNORE, which
    the loss does not count.

    >>> inputs, targets = inputs_and_targets(np.array([1, 5, 6, 8, 2]), np.arange(5) < 3)
    >>> inputs.tolist(), targets.tolist()
    ([1, 5, 6, 8], [-100, -100, 8, 2])
    """
    inputs = tokens[:-1]
    targets = tokens[1:]
    if is_prompt is not None:
        targets = np.where(is_prompt[1:], IGNORE, targets)
    return inputs, targets


class Shards:
    """A folder that `pack` wrote, memory-mapped.

    UserError if it is incomplete or (with `verify`) has changed since it was written."""

    def __init__(self, folder: str | Path, verify: bool = True):
        self.folder = Path(folder)
        index_file = self.folder / "index.json"
        if not index_file.is_file():
            raise cli.UserError(f"{folder} is not a folder of token shards (it has no index.json); "
                                "data.py pack writes one")
        # Many programs write an index.json, so this one may not be ours.
        self.index = cli.read_json(index_file)
        try:
            self.tokens = self.index["tokens"]
            self.tokenizer_sha256 = self.index["tokenizer_sha256"]
            self.index.setdefault("given", {})  # missing in older shards, which have no prompts
            files = self.index["files"] | self.index["given"] | self.index["val"]["files"]
        except (KeyError, TypeError):
            raise cli.UserError(f"{index_file} is not an index that data.py pack wrote") from None
        # The index holds the hash of every other file, so its own hash identifies the folder.
        self.sha256 = cli.sha256(index_file)

        # A truncated or changed file would silently train the model on noise.
        for name, entry in cli.progress(files.items(), f"checking {self.folder}"):
            self._check(self.folder / name, entry, verify)

        # The training stream in parts; and for each of its tokens, whether it is a prompt's.
        self._stream = self._map(self.index["files"])
        self._is_prompt = self._map(self.index["given"])  # empty if there are no prompts
        lengths = [len(part) for part in self._stream]
        self._starts = np.cumsum([0, *lengths])

    @staticmethod
    def _check(path: Path, entry: dict, verify: bool) -> None:
        """UserError if a file differs from its entry in the index."""
        if not path.is_file():
            raise cli.UserError(f"{path} is missing; run data.py pack again")
        size = path.stat().st_size
        if size != entry["bytes_on_disk"]:
            raise cli.UserError(f"{path} has {size} bytes, its index says "
                                f"{entry['bytes_on_disk']}: cut short? run data.py pack again")
        if verify and cli.sha256(path) != entry["sha256"]:
            raise cli.UserError(f"{path} has changed since it was packed (SHA-256); "
                                "run data.py pack again")

    def _map(self, names: Iterable[str]) -> list[np.ndarray]:
        """Memory-map arrays: only the parts that are used are read from disk."""
        return [np.load(self.folder / name, mmap_mode="r") for name in names]

    def windows(self, seq_len: int) -> int:
        """The number of training windows of seq_len + 1 tokens. Neighbours share one token."""
        return (self.tokens - 1) // seq_len

    def window(self, i: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of window i, which has tokens i * seq_len to (i + 1) * seq_len, both
        included: int64 (seq_len,) each. A window may span files."""
        # One more token than seq_len: the last one is only a target.
        first = i * seq_len
        end = first + seq_len + 1
        tokens = self._read(self._stream, first, end).astype(np.int64)
        is_prompt = None
        if self._is_prompt:
            is_prompt = self._read(self._is_prompt, first, end)
        return inputs_and_targets(tokens, is_prompt)

    def _read(self, parts: list[np.ndarray], first: int, end: int) -> np.ndarray:
        """Entries first ... end - 1 of an array that is stored in parts."""
        found = []
        while first < end:
            # Find the part that holds `first`, and take as much of it as is wanted.
            number = int(np.searchsorted(self._starts, first, side="right")) - 1
            start = self._starts[number]
            found.append(parts[number][first - start : end - start])
            first += len(found[-1])
        return np.concatenate(found)

    def validation(self, max_bytes: int) -> tuple[list[np.ndarray], int]:
        """The first validation documents that fit into max_bytes of text, but at least one.

        Returns (documents, n_bytes): each document as int64, BOS ... EOS, and the number of UTF-8
        bytes to be predicted in all of them. The choice depends only on the text, so tokenizers can
        be compared."""
        if self.index["val"]["documents"] == 0:
            raise cli.UserError(f"{self.folder} has no validation documents; pack at least two "
                                "different documents")
        # Their sizes, in the same order, say how many documents fit.
        total_bytes = np.cumsum(self.validation_sizes())
        n = max(1, int(np.searchsorted(total_bytes, max_bytes, side="right")))

        # The documents are stored end to end, each from its BOS to the next one's.
        tokens = np.load(self.folder / "val-00000.npy", mmap_mode="r")
        starts = np.flatnonzero(tokens == self.index["bos_token_id"])
        ends = np.append(starts[1:], len(tokens))
        documents = []
        for start, end in zip(starts[:n], ends[:n], strict=True):
            documents.append(tokens[start:end].astype(np.int64))
        return documents, int(total_bytes[n - 1])

    def validation_sizes(self) -> np.ndarray:
        """The UTF-8 bytes to be predicted in each validation document, in order: int64."""
        return np.load(self.folder / "val_bytes.npy").astype(np.int64)

    def prompts(self, documents: list[np.ndarray]) -> list[np.ndarray | None]:
        """For each document that `validation` returned, a bool per token: is it a prompt's? None if
        there are no prompts."""
        if not self._is_prompt:
            return [None] * len(documents)
        # The documents are the first ones of the file, end to end, and so are the marks.
        is_prompt = np.load(self.folder / "val_given.npy")
        ends = np.cumsum([len(document) for document in documents])
        return np.split(is_prompt[: ends[-1]], ends[:-1])


# ---- Batches ------------------------------------------------------------------------------------


def furthest_behind(first: list[float], last: list[float], counts: list[int], length: int) -> int:
    """Choose the source of the next window: the one that is furthest behind its share.

    first, last: each source's weight at the start and at the end of a stage of `length` windows;
    the weights of all sources add up to 1. counts: the windows drawn from each since the start.

    For example, with weights ¾ and ¼: at the first window the sources are behind by ¾ and ¼, so
    take source 0. At the second they are behind by 1½ - 1 = ½ and ½; in a tie take the first, 0. At
    the third they are behind by ¼ and ¾, so take 1.

    >>> drawn = []
    >>> for _ in range(8):
    ...     counts = [drawn.count(0), drawn.count(1)]
    ...     drawn.append(furthest_behind([0.75, 0.25], [0.75, 0.25], counts, length=8))
    >>> drawn
    [0, 0, 1, 0, 0, 0, 1, 0]
    """
    # Random draws would be off by about the square root of the windows drawn. Here a source is
    # never a whole window ahead of its share, because only one that is behind is drawn. And none of
    # n sources is ever further behind than 1/2 + 1/3 + ... + 1/n of a window: 0.5 with two, 0.83
    # with three, 1.28 with five. (Few come near that: of 20,000 sets of five random weights, one in
    # a thousand was ever more than one window behind.)
    #
    # A weight that moves linearly from w0 to w1 over L windows is w0 + (w1 - w0) s / L after s of
    # them. The windows due by then are the integral of this.
    s = sum(counts) + 1  # including the one that is about to be drawn
    behind = []
    for w0, w1, count in zip(first, last, counts, strict=True):
        due = w0 * s + (w1 - w0) * s**2 / (2 * length)
        behind.append(due - count)
    # Rounding may decide a tie, but always in the same way: equal counts give equal floats, in
    # every process and after every resume.
    return behind.index(max(behind))


class Loader:
    """Deals windows of several sources into batches. Their order is a pure function of the seed and
    of the number of windows drawn from each source.

    Between sources, `furthest_behind` chooses. A weight may be a pair: it then moves from the first
    value to the second within each stage.

    Within a source, each epoch has its own permutation of the windows, so every window comes once
    per epoch. (Drawing with replacement would leave 1/e of the data unseen after one.) With
    `as_packed`, windows come in the order of the shards; for a curriculum, pack documents in
    order."""

    def __init__(
        self,
        sources: list[Shards],
        weights: list[float | tuple[float, float]],
        seq_len: int,
        seed: int,
        as_packed: bool = False,
    ):
        for source in sources:
            if source.windows(seq_len) < 1:
                raise cli.UserError(f"{source.folder} has {source.tokens} tokens, less than a "
                                    f"window of {seq_len} + 1; pack more text or lower --seq_len")
        if len(weights) != len(sources):
            raise cli.UserError(f"weights {weights}: every source needs one")
        self.sources = sources
        self.seq_len = seq_len
        self.seed = seed
        self.as_packed = as_packed
        self.first, self.last = shares(weights)

        # The whole state: the windows drawn from each source; the counts from which shares are
        # computed; and, for weights that move, the number of windows in the stage.
        self.counts = [0] * len(sources)
        self.origin = [0] * len(sources)
        self.length = 1

        # {source: (epoch, its permutation)}, kept because permuting millions takes a while.
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def begin_stage(self, windows: int) -> None:
        """Begin a stage of `windows` windows: weights that move start from their first value."""
        # Constant weights keep counting, so that many short stages are as exact as a long one.
        if self.first != self.last:
            self.origin = list(self.counts)
            self.length = windows

    def change_length(self, windows: int) -> None:
        """Change the length of the current stage to `windows`: weights that move reach their last
        value at its new end."""
        # The length matters only to weights that move.
        if self.first != self.last:
            self.length = windows

    def skip(self, counts: list[int]) -> None:
        """Begin after the `counts` windows of the first sources, which the model has seen. The
        weights apply from here on."""
        # Shares count from here. Otherwise a source that the model has not seen would come alone
        # until it had caught up.
        self.counts[: len(counts)] = counts
        self.origin = list(self.counts)

    def next(self, n: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next n windows: (inputs, targets, sources), int64 (rows, T), (rows, T) and (rows,).

        A target that does not count, such as a prompt's token, is IGNORE. Every process asks for
        the whole batch of n windows and names its own rows."""
        # Every process counts all windows, so the order is the same for any number of processes.
        chosen = []
        for _ in range(n):
            drawn = [now - before for now, before in zip(self.counts, self.origin, strict=True)]
            source = furthest_behind(self.first, self.last, drawn, self.length)
            chosen.append((source, self.counts[source]))
            self.counts[source] += 1

        # Each process reads only its own windows.
        inputs = []
        targets = []
        for source, count in chosen[rows]:
            window_inputs, window_targets = self._window(source, count)
            inputs.append(window_inputs)
            targets.append(window_targets)
        sources = np.array([source for source, _ in chosen[rows]])
        return np.stack(inputs), np.stack(targets), sources

    def _window(self, source: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a source's window number `count`, counted over all epochs."""
        # An epoch is over when every window has come once.
        shards = self.sources[source]
        n = shards.windows(self.seq_len)
        epoch, place = divmod(count, n)
        if self.as_packed:
            return shards.window(place, self.seq_len)
        # The generator is seeded anew for each epoch, from what identifies the epoch, so that a run
        # resumed in the middle of it gets the same order.
        kept_epoch, order = self._orders.get(source, (None, None))
        if kept_epoch != epoch:
            order = np.random.default_rng([self.seed, source, epoch]).permutation(n)
            self._orders[source] = (epoch, order)
        return shards.window(int(order[place]), self.seq_len)

    def state_dict(self) -> dict:
        """The state for a checkpoint: the counts, and the settings on which the order depends."""
        return {
            "counts": list(self.counts),
            "origin": list(self.origin),
            "length": self.length,
            "shares": [self.first, self.last],
            "seed": self.seed,
            "seq_len": self.seq_len,
            "as_packed": self.as_packed,
        }

    def load_state_dict(self, state: dict) -> None:
        """Resume from `state`. UserError if it belongs to another order, such as other weights."""
        # The same counts mean the same windows only under the same settings.
        mine = self.state_dict()
        for key in ("shares", "seed", "seq_len", "as_packed"):
            if state[key] != mine[key]:
                raise cli.UserError(f"the saved data order has {key} {state[key]}, this run "
                                    f"{mine[key]}; resume with the same --data, --seed, --order "
                                    "and --seq_len")
        self.counts = list(state["counts"])
        self.origin = list(state["origin"])
        self.length = state["length"]


def shares(weights: list[float | tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The weights at the start and at the end of a stage, normalised to add up to 1.

    UserError for weights from which nothing can be drawn.

    >>> shares([3, (1, 0)])
    ([0.75, 0.25], [1.0, 0.0])
    """
    pairs = [weight if isinstance(weight, tuple) else (weight, weight) for weight in weights]
    # Comparisons with nan are false, so nan is refused here too.
    for pair in pairs:
        is_valid = all(0 <= weight < math.inf for weight in pair) and max(pair) > 0
        if not is_valid:
            raise cli.UserError(f"weights {weights}: every source needs one above 0")
    # math.fsum rounds once, so the shares are the same in every version of Python. Otherwise a run
    # could not be resumed under another version.
    start = math.fsum(first for first, _ in pairs)
    end = math.fsum(last for _, last in pairs)
    if start == 0 or end == 0:
        raise cli.UserError(f"weights {weights}: no source is left to draw from at one end of a "
                            "stage")
    return [first / start for first, _ in pairs], [last / end for _, last in pairs]


# ---- Measurement --------------------------------------------------------------------------------


def bits_per_byte(
    llama,
    shards: Shards,
    seq_len: int,
    max_bytes: int = 1_000_000,
    batch: int = 8,
    device: str = "cpu",
) -> dict:
    """Bits per byte on the first validation documents of `shards` that fit into max_bytes, in
    batches of `batch` windows of at most seq_len tokens; see `score_documents`."""
    # Only responses count where there are prompts, in the tokens as in the bytes.
    documents, n_bytes = shards.validation(max_bytes)
    is_prompt = shards.prompts(documents)
    return score_documents(llama, documents, is_prompt, n_bytes, seq_len, batch, device)


def score_documents(
    llama,
    documents: list[np.ndarray],
    prompts: list[np.ndarray | None],
    n_bytes: int,
    seq_len: int,
    batch: int = 8,
    device: str = "cpu",
) -> dict:
    """Bits per byte on whole documents: nats of all tokens / UTF-8 bytes of text / ln 2.

    A loss per token would favour the tokenizer that splits text into more tokens; the bytes are the
    same for all. Documents are whole because the first thousand tokens of one are another text for
    each tokenizer. Also returns that loss (nats per token) and the numbers of tokens and bytes.

    documents: int64, BOS ... EOS. prompts: for each document, which tokens are a prompt's, or None.
    n_bytes: the UTF-8 bytes of all documents' text, without prompts."""
    import torch  # here: in each of `clean`'s processes it would take seconds and 200 MB

    from common import parallel

    # BOS is only an input; every other token, EOS too, is predicted once. A document longer than
    # seq_len continues in further windows, each of which begins with the last token of the previous
    # one.
    windows = []
    for document, is_prompt in zip(documents, prompts, strict=True):
        inputs, targets = inputs_and_targets(document, is_prompt)
        for start in range(0, len(inputs), seq_len):
            end = start + seq_len
            windows.append((inputs[start:end], targets[start:end]))

    # Windows of similar length in one batch need little padding.
    windows.sort(key=lambda window: len(window[0]))

    # Every process takes a batch in each round, even if it is empty in the last round: all must run
    # a sharded model the same number of times.
    nats = 0.0
    n_tokens = 0
    n_processes = parallel.size()
    for round_start in cli.progress(range(0, len(windows), n_processes * batch), "bits per byte"):
        mine = round_start + parallel.rank() * batch
        inputs, targets = padded(windows[mine : mine + batch])
        inputs = torch.from_numpy(inputs).to(device)
        targets = torch.from_numpy(targets).to(device)
        with torch.no_grad():
            loss, count = llama(inputs, targets)
        nats += float(loss)
        n_tokens += int(count)
    nats, n_tokens = parallel.all_reduce_sum(nats, n_tokens)
    return {
        "bits_per_byte": nats / n_bytes / math.log(2),
        "loss": nats / n_tokens,
        "tokens": int(n_tokens),
        "bytes": n_bytes,
    }


def padded(windows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad windows of different lengths into one batch: inputs and targets, int64 (rows, longest).
    An empty list gives one row of padding.

    >>> inputs, targets = padded([(np.array([5, 6, 7]), np.array([6, 7, 2])), ([8], [2])])
    >>> inputs.tolist(), targets.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[6, 7, 2], [2, -100, -100]])
    """
    # Padding is on the right: attention is causal, so no real token attends to it, and its targets
    # do not count. As an input it only has to be a valid id, such as 0.
    longest = max((len(inputs) for inputs, _ in windows), default=1)
    rows = max(1, len(windows))
    inputs = np.zeros((rows, longest), np.int64)
    targets = np.full((rows, longest), IGNORE, np.int64)
    for row, (window_inputs, window_targets) in enumerate(windows):
        inputs[row, : len(window_inputs)] = window_inputs
        targets[row, : len(window_targets)] = window_targets
    return inputs, targets


# ---- What pack reads and writes -----------------------------------------------------------------


def check_pack_flags(args: argparse.Namespace) -> None:
    """UserError for flags that contradict each other or are out of range."""
    if not 0 < args.val_fraction < 1:
        raise cli.UserError(f"--val_fraction {args.val_fraction} is not between 0 and 1")
    if bool(args.prompt_field) != bool(args.response_field):
        raise cli.UserError("--prompt_field and --response_field go together: give both, what is "
                            "given and what is learned")
    # A document comes from one place: a text, a pair of fields, or messages.
    if args.messages and args.prompt_field:
        raise cli.UserError("--messages and --prompt_field: choose one, chats or pairs of fields")
    if has_dialogues(args) and args.text_field != "text":
        raise cli.UserError("--text_field and --prompt_field or --messages: choose one, a text "
                            "that is learned whole or prompts with responses")


def has_dialogues(args: argparse.Namespace) -> bool:
    """Do the documents consist of prompts with responses?"""
    return bool(args.prompt_field or args.messages)


def wanted_of(args: argparse.Namespace) -> Wanted | None:
    """The fields that the flags ask for; None for plain texts."""
    if args.messages:
        return dialogues.wanted_messages(args.messages)
    if args.prompt_field:
        return dialogues.wanted_fields(args.prompt_field, args.response_field)
    return None


def read_texts(
    args: argparse.Namespace,
    bar: tqdm,
    seen: Seen | None = None,
    rejected: IO[str] | None = None,
) -> Iterator[str]:
    """Yield the text of every document, or a dialogue as one text. The bar moves by UTF-8 bytes.

    `seen` gets the counts; `rejected` gets a line for everything that is not a document."""
    # The second pass would count the same again, so its counts are dropped.
    if seen is None:
        seen = Seen()

    def reject(record: dict) -> None:
        seen.rejected[record["reason"]] += 1
        if rejected:
            print(json.dumps(record), file=rejected)

    def repair(record: dict) -> None:
        seen.repaired += 1

    for row in read_documents(args.input, reading_of(args), reject, wanted_of(args), repair):
        # A prompt and its response are passed on as one text, so that the hash depends on both.
        if args.messages:
            text = dialogues.of_messages(row, args.messages)
        elif args.prompt_field:
            text = dialogues.of_fields(row, args.prompt_field, args.response_field)
            # Alpaca's `input` is half of the prompt and easily forgotten, so count such fields.
            unused = dialogues.unused_fields(row, [*args.prompt_field, args.response_field])
            seen.unused.update(unused)
            if unused:
                seen.with_more += 1
        else:
            text = row["text"]
        seen.rows += 1
        bar.update(len(text.encode()))
        yield text


def bytes_to_predict(text: str, is_dialogue: bool) -> int:
    """The UTF-8 bytes of a document; of a dialogue, those of the responses without the prompts."""
    if not is_dialogue:
        return len(text.encode())
    return sum(len(response.encode()) for _, response in dialogues.split(text))


def in_batches(texts: Iterable[str], max_characters: int = 2_000_000) -> Iterator[list[str]]:
    """Yield the texts in lists of about `max_characters`: enough work for all threads of the
    tokenizer, and little enough for any machine's memory."""
    # Count characters rather than documents, because some documents are books.
    batch: list[str] = []
    n_characters = 0
    for text in texts:
        batch.append(text)
        n_characters += len(text)
        if n_characters >= max_characters:
            yield batch
            batch = []
            n_characters = 0
    yield batch


class ShardWriter:
    """Appends tokens to PREFIX-00000.npy, PREFIX-00001.npy, ... of `shard_tokens` tokens each.

    `files` has the entry for the index of each file written so far."""

    def __init__(self, folder: Path, prefix: str, dtype: type, shard_tokens: int):
        self.folder = folder
        self.prefix = prefix
        self.files: dict[str, dict] = {}
        self.buffer = np.empty(shard_tokens, dtype)
        self.used = 0  # tokens in the buffer

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens (n,) to the stream. A shard is written as soon as it is full."""
        # Fill the buffer; when it is full, it becomes a file.
        while len(tokens) > 0:
            room = len(self.buffer) - self.used
            part = tokens[:room]
            tokens = tokens[room:]
            self.buffer[self.used : self.used + len(part)] = part
            self.used += len(part)
            if self.used == len(self.buffer):
                self.flush()

    def flush(self) -> None:
        """Write what is in the buffer."""
        # Write no empty shard: the stream may end exactly where a shard does.
        if self.used > 0:
            name = f"{self.prefix}-{len(self.files):05d}.npy"
            self.files[name] = save_array(self.folder / name, self.buffer[:self.used])
            self.used = 0


def save_array(path: Path, array: np.ndarray) -> dict:
    """Write an array as np.save does; returns its entry in the index."""
    # On a full disk np.save raises an error without errno, which cli.run cannot tell from a bug.
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)
    return {
        "tokens": len(array),
        "bytes_on_disk": path.stat().st_size,
        "sha256": cli.sha256(path),
    }


def say_what_was_packed(args: argparse.Namespace, index: dict, seen: Seen) -> None:
    """Print what the shards hold, and what was noticed along the way."""
    # For dialogues, bytes per token counts both in the responses only.
    val = index["val"]
    learned = ""
    if has_dialogues(args):
        learned = f", {index['targets']} of them learned"
    print(f"{index['documents']} documents, {index['bytes']} bytes, {index['tokens']} tokens"
          f"{learned} ({index['bytes'] / index['targets']:.2f} bytes per token) in "
          f"{len(index['files'])} shards; for validation {val['documents']} documents, "
          f"{val['bytes']} bytes; {index['duplicates']} duplicates dropped, "
          f"{seen.rejected.total()} lines rejected")

    # Problems in the data that are better known now than after a week of training.
    if seen.repaired:
        print(f"{seen.repaired} documents have a few broken bytes, which are packed as U+FFFD")
    if few := small_validation(val["documents"]):
        print(f"for validation {few}; --val_fraction is their share of all")
    if seen.with_more:
        print(dialogues.about_unused(seen.rows, seen.with_more, seen.unused, args.prompt_field))


# ---- Command line -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """Run `clean`, `show` or `pack`."""
    # Each command is a function. Its docstring is the command's manual.
    parser = cli.Parser(description=__doc__, prog="data.py")
    names = "clean|show|pack"
    commands = parser.add_subparsers(required=True, metavar=names, parser_class=cli.Parser)
    programs = [
        (clean, add_clean_flags, "raw documents → documents worth training on"),
        (show, add_show_flags, "look at what clean decided, and why"),
        (pack, add_pack_flags, "documents → token shards"),
    ]
    for function, add_its_flags, summary in programs:
        description = function.__doc__.replace("\n    ", "\n")
        # The format of dialogues is described in one place; this manual includes it.
        if function is pack:
            description += f"\n\n{dialogues.__doc__}"
        command = commands.add_parser(function.__name__, help=summary, description=description)
        command.set_defaults(run=function)
        add_its_flags(command)
    args = parser.parse_args(argv)
    # show reads no documents and writes no folder, so the checks below are not for it.
    if args.run is show:
        show(args)
        return

    # Check what can be checked without reading a document, before anything is written.
    for name in ("workers", "val_bytes", "shard_tokens"):
        if getattr(args, name, 1) < 1:
            raise cli.UserError(f"--{name} {getattr(args, name)} is not at least 1")
    check_places(args.out, args.input)
    cli.settings(args)
    announce(args.input, reading_of(args))
    if args.run is clean:
        check_fields(args.input, reading_of(args))
    args.run(args)


def check_places(out: str, inputs: list[str]) -> None:
    """UserError if an input lies inside --out, or --out inside an input."""
    # An existing --out is replaced with everything in it, so it must not contain an input. And a
    # folder written into an input would be read as documents the next time.
    target = Path(out).resolve()
    for name in inputs:
        source = Path(name).resolve()
        if target == source or target in source.parents:
            raise cli.UserError(f"--out {out} would replace its own input {name}; "
                                "name another folder")
        if source in target.parents:
            raise cli.UserError(f"--out {out} lies inside its own input {name}, and would be read "
                                "as input the next time; name a folder outside it")


def add_common_flags(parser: cli.Parser, workers: str) -> None:
    """Flags of `clean` and `pack`; `workers` says what --workers counts."""
    flag = parser.add_argument
    flag("--input", nargs="+", required=True, help=f"files or folders of {KINDS}")
    flag("--out", required=True,
         help="folder to write; an existing one is replaced when the new one is complete")
    add_flags(parser)  # how to read the input
    flag("--workers", type=int, default=1,
         help=f"number of {workers}; the results do not depend on it")


def add_clean_flags(parser: cli.Parser) -> None:
    """Flags of `clean`; what they do is in cleaning/."""
    add_common_flags(parser, "processes")
    flag = parser.add_argument
    flag("--lang", choices=["ko", "en"], default="ko", help="the language that the rules expect")
    flag("--profile", choices=["web", "formal", "short"], default="web",
         help="set of limits for the rules; web: web pages; formal: edited text; short: reviews "
              "and comments")
    flag("--limits", nargs="+", default=[], metavar="NAME=VALUE|FILE.json",
         help="override limits of the profile, by name or by a JSON file of "
              "{\"name\": value, ...}: symbols=0.6, word_length='[1.5, 30]', "
              "repeated_ngrams='{\"10\": 0.3}', line_ends=null (turns the rule off); the last "
              "value of a name counts; a file may hold the \"limits\" of a report.json; names: "
              + " ".join(Limits._fields))
    flag("--steps", nargs="+", choices=STEPS, metavar="STEP",
         help="run only these steps, in this order (default: all that apply, of "
              f"{' '.join(STEPS)})")
    flag("--cut_lines", action="store_true",
         help="run the step lines with any profile; by default only web has it. Not for rulings "
              "and statutes, which legitimately share whole sentences")
    flag("--sample", type=float, default=1.0,
         help="share of the documents to start from, chosen by hash")
    flag("--reference", nargs="+", metavar="FILE",
         help="text to train the n-gram model of the perplexity step on (default: the input)")
    flag("--tails", nargs=2, type=float, default=[0.5, 1.0], metavar=("LOW", "HIGH"),
         help="percent of each source's documents, at most, that the perplexity step removes as "
              "too predictable and as too surprising")
    flag("--examples", type=int, default=20,
         help="documents to keep as examples for data.py show: this many for each source, step "
              "and reason, and of those kept; 0: none")
    flag("--decontaminate", metavar="KOBEST_DIR",
         help="folder of KoBEST (.tsv or .jsonl): remove documents that contain its items")


def add_show_flags(parser: cli.Parser) -> None:
    """Flags of `show`; what they do is in cleaning/show.py."""
    flag = parser.add_argument
    flag("folder", metavar="OUT", help="folder that clean wrote")
    flag("--source", metavar="NAME", help="only documents of this file, such as wiki or wiki.jsonl")
    flag("--step", help="only decisions of this step")
    flag("--reason", help="only decisions for this reason, alone or among others: phone also finds "
                          "phone+email")
    flag("--what", choices=["kept", "removed", "changed", "rejected"],
         help="only documents with this outcome")
    flag("-n", type=int,
         help="number of documents to show, spread over all kinds of decision (default: 20 on the "
              "screen, all on a page)")
    flag("--whole", action="store_true",
         help="print all that clean kept of each text, not only its beginning or what changed")
    flag("--html", metavar="PAGE.html", help="write a page for a browser instead")


def add_pack_flags(parser: cli.Parser) -> None:
    """Flags of `pack`."""
    add_common_flags(parser, "threads")
    flag = parser.add_argument
    flag("--tokenizer", required=True,
         help="the tokenizer of the model to train: a file that tokenizer.py wrote, or a model "
              "directory")
    flag("--prompt_field", nargs="+", metavar="FIELD",
         help="for an sft stage: fields with the prompt, which is given and not learned")
    flag("--response_field", metavar="FIELD",
         help="for an sft stage: field with the response, which is learned")
    flag("--messages", nargs="?", const="messages", metavar="FIELD",
         help="for an sft stage: rows are chats, in this field (messages if none is named)")
    flag("--val_fraction", type=float, default=0.005,
         help="share of the documents set aside for validation")
    flag("--val_bytes", type=int, default=5_000_000,
         help="bytes of validation text, at most")
    flag("--shard_tokens", type=int, default=100_000_000, help="tokens per shard file")


if __name__ == "__main__":
    cli.run(main)
