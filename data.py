"""Documents in, token shards out, batches out: all that lies between raw text and a training step.

Four ideas, in the order in which text meets them:

- `clean` turns raw documents into documents worth training on. The steps are in cleaning/.
- `show` prints what `clean` decided, document by document.
- `pack` turns documents into *token shards*: one stream of token ids on disk, BOS text EOS BOS text
  EOS ..., memory-mapped, so that a corpus larger than memory costs nothing to open. A few whole
  documents are set aside for validation; on them `bits_per_byte` measures a model. They are chosen
  by a hash of their text, and so are the same under every tokenizer. A document that comes twice,
  in whichever of the inputs, is packed once.
- `Loader` deals windows of the stream into batches. Which window comes next is a pure function of a
  seed and of one counter per source, so a run that was stopped resumes with the very batch it would
  have had.

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

IGNORE = -100  # a target that does not count; PyTorch's cross_entropy has the same number
LONGEST_WINDOW = 2048  # tokens, where --seq_len is left at 0 and the model has so many positions

# ---- Validation documents -----------------------------------------------------------------------


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def choose_validation(texts: Iterable[str], fraction: float, max_bytes: int) -> dict[int, str]:
    """The validation documents, {hash: text} in the order of their hashes.

    They are those whose hash lies in the lowest `fraction` of all hashes; of these, the lowest that
    fit into max_bytes together, and at least one. Neither the order of the documents nor the
    tokenizer has a say. If there is only one text, it is for training. Memory: max_bytes and one
    document."""
    limit = int(fraction * 2**64)  # hashes from here on are for training
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
        # "every text below some hash", whatever the order in which the texts came.
        while n_bytes > max_bytes and len(chosen) > 1:
            limit = -heapq.heappop(highest_first)
            n_bytes -= len(chosen.pop(limit).encode())

    has_two_texts = lowest_hash < highest_hash
    if not has_two_texts:
        return {}
    # A fraction so small that no hash was below it: one document at least.
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
    """BOS text EOS of each text, joined: (ids, is_prompt), uint32 and bool, (tokens,) each.

    `workers`: threads. The ids are the same for any number of them."""
    # The empty arrays are for no text at all, which np.concatenate would refuse.
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
    """Yield (ids, is_prompt) of each exchange of each dialogue. common/dialogues.py has the format
    with an example."""
    # A prompt and its response are encoded together, with a space between them. The prompt's tokens
    # are as many as the prompt alone would have: these are what the model will be given, and all
    # that follows is what it should answer, the space included.
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

    # A document has one BOS, at its beginning: by it `Shards.validation` tells documents apart.
    for prompt, row, is_first in zip(prompt_rows, rows, begins, strict=True):
        n_given = len(prompt)
        if is_first:
            row = [*bos, *row]
            n_given += 1
        yield row, np.arange(len(row)) < n_given


def pack(args: argparse.Namespace) -> dict:
    """Tokenize documents into shards; print and return their index. The corpus is read twice: the
    first time settles which documents are for validation. Of exact copies, in whichever of the
    inputs, the first is packed. Memory: a shard, a batch, and some 100 bytes for each document.

        python data.py pack --input clean/a clean/b --tokenizer merged.model --out shards/ko"""
    # A tokenizer that will not do is refused now, not after the first reading of the corpus: one
    # with ids for which its model has no row, or without BOS or EOS.
    vocabulary = tokenizer.load(args.tokenizer)
    tokenizer.check_rows(vocabulary, Path(args.tokenizer, "config.json"))
    vocabulary.encode("", bos=True, eos=True)
    check_pack_flags(args)
    check_fields(args.input, reading_of(args), wanted_of(args))

    with cli.new_folder(args.out) as folder:
        # The first reading settles which documents are for validation, and notes which lines are no
        # documents. It costs little: hashing is far faster than tokenizing.
        # (disable=None: no bar where stderr is no terminal.)
        with tqdm(desc="read", unit="B", unit_scale=True, disable=None) as bar:
            held_out, seen = read_validation(args, folder / "rejected.jsonl", bar)

        # The second reading tokenizes all others. Two bytes per token are enough for most
        # vocabularies. Beside each token of a corpus of prompts stands whether it is a prompt's.
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

        # The index says what is in the folder, and by the hashes whether it still is; the
        # tokenizer's hash tells shards that were packed for another model.
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
    """What the first reading has counted."""
    rows: int = 0           # that can be used
    rejected: Counter = field(default_factory=Counter)  # reasons, each with its lines
    repaired: int = 0       # of `rows`, with U+FFFD for a few broken bytes
    with_more: int = 0      # of `rows`, with text in a field that looks like the prompt's
    unused: Counter = field(default_factory=Counter)    # those fields, each with its rows


def why(seen: Seen) -> str:
    """The commonest reason for which lines were rejected, for a message; "" if none was."""
    if not seen.rejected:
        return ""
    [(reason, n)] = seen.rejected.most_common(1)
    return f" ({n} of them: {reason})"


def read_validation(
    args: argparse.Namespace,
    rejected: Path,
    bar: tqdm,
) -> tuple[dict[int, str], Seen]:
    """Read all documents, choose those for validation, write what is no document to `rejected`."""
    seen = Seen()
    with open(rejected, "w", encoding="utf-8") as file:
        texts = read_texts(args, bar, seen, file)
        held_out = choose_validation(texts, args.val_fraction, args.val_bytes)
    return held_out, seen


class Once:
    """Lets each text through once: two folders, cleaned under two profiles, may share documents.

    Of a corpus of prompts and responses the two are one text, so a prompt may come again with
    another response. Texts are told apart by their 64-bit hash: that two of 35 million differ and
    have the same is a chance of 1 in 30,000, and would cost one of them. The set takes 80 to 110
    bytes per document: for 35 million, 4 GB at most."""

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
    """Write the tokens of all texts that are not held out to `train`, and, of dialogues, to `given`
    whether each token is a prompt's. Returns counts for the index: all tokens, those of them that
    are learnt, the bytes of text that these spell, the documents."""
    counts = {"tokens": 0, "targets": 0, "bytes": 0, "documents": 0}
    for batch in in_batches(texts):
        # By the hash, not by the place: the validation documents are among these texts.
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
    """Write the validation documents, as `Shards.validation` reads them; returns their entry in the
    index."""
    # The bytes of each document stand beside the tokens: bits per byte divides by them, and by them
    # the first megabyte of documents is the same under every tokenizer.
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
    """What a model is given, tokens 0 ... T - 1, and what it has to predict there, tokens 1 ... T.

    A prompt's token is given and never predicted: as a target it is IGNORE, which no loss counts.
    tokens: int64 (T + 1,); is_prompt: bool (T + 1,), None where there are no prompts. Returns int64
    (T,) and (T,).

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

    UserError if it is not whole or (with `verify`) not as it was written."""

    def __init__(self, folder: str | Path, verify: bool = True):
        self.folder = Path(folder)
        index_file = self.folder / "index.json"
        if not index_file.is_file():
            raise cli.UserError(f"{folder} is no folder of token shards (no index.json); "
                                "data.py pack writes one")
        # Many programs write an index.json: take what is needed, or say that this one is not ours.
        self.index = cli.read_json(index_file)
        try:
            self.tokens = self.index["tokens"]
            self.tokenizer_sha256 = self.index["tokenizer_sha256"]
            self.index.setdefault("given", {})  # older shards, without prompts, do not have it
            files = self.index["files"] | self.index["given"] | self.index["val"]["files"]
        except (KeyError, TypeError):
            raise cli.UserError(f"{index_file} is not an index that data.py pack wrote") from None
        # The index holds the hash of every other file: its own stands for the folder.
        self.sha256 = cli.sha256(index_file)

        # A file that was cut short, or changed since, would train a model on noise without a word.
        for name, entry in cli.progress(files.items(), f"checking {self.folder}"):
            self._check(self.folder / name, entry, verify)

        # The training stream in parts, and beside each of its tokens: is it a prompt's?
        self._stream = self._map(self.index["files"])
        self._is_prompt = self._map(self.index["given"])  # empty if there are no prompts
        lengths = [len(part) for part in self._stream]
        self._starts = np.cumsum([0, *lengths])

    @staticmethod
    def _check(path: Path, entry: dict, verify: bool) -> None:
        """UserError if a file is not as its entry in the index says."""
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
        """Arrays that are read from the disk where, and when, they are looked at."""
        return [np.load(self.folder / name, mmap_mode="r") for name in names]

    def windows(self, seq_len: int) -> int:
        """How many training windows of seq_len + 1 tokens there are; neighbours share one token."""
        return (self.tokens - 1) // seq_len

    def window(self, i: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of window i, tokens i * seq_len to (i + 1) * seq_len, both included:
        int64 (seq_len,) each. A window may span files."""
        # One token more than seq_len: the last one is the target of the one before it.
        first = i * seq_len
        end = first + seq_len + 1
        tokens = self._read(self._stream, first, end).astype(np.int64)
        is_prompt = None
        if self._is_prompt:
            is_prompt = self._read(self._is_prompt, first, end)
        return inputs_and_targets(tokens, is_prompt)

    def _read(self, parts: list[np.ndarray], first: int, end: int) -> np.ndarray:
        """Entries first ... end - 1 of an array that lies in parts."""
        found = []
        while first < end:
            # The part in which `first` lies, and as much of it as is wanted.
            number = int(np.searchsorted(self._starts, first, side="right")) - 1
            start = self._starts[number]
            found.append(parts[number][first - start : end - start])
            first += len(found[-1])
        return np.concatenate(found)

    def validation(self, max_bytes: int) -> tuple[list[np.ndarray], int]:
        """The first validation documents that fit into max_bytes of text, at least one.

        Returns (documents, n_bytes): each document int64, BOS ... EOS, and the UTF-8 bytes that are
        to be predicted. Which they are depends on the text alone, so tokenizers can be compared."""
        if self.index["val"]["documents"] == 0:
            raise cli.UserError(f"{self.folder} has no validation documents; pack at least two "
                                "different documents")
        # How many of them: their sizes lie beside them, in the order of their hashes.
        total_bytes = np.cumsum(self.validation_sizes())
        n = max(1, int(np.searchsorted(total_bytes, max_bytes, side="right")))

        # They lie one behind another, each from its BOS to that of the next.
        tokens = np.load(self.folder / "val-00000.npy", mmap_mode="r")
        starts = np.flatnonzero(tokens == self.index["bos_token_id"])
        ends = np.append(starts[1:], len(tokens))
        documents = []
        for start, end in zip(starts[:n], ends[:n], strict=True):
            documents.append(tokens[start:end].astype(np.int64))
        return documents, int(total_bytes[n - 1])

    def validation_sizes(self) -> np.ndarray:
        """The UTF-8 bytes to be predicted of each validation document, int64, in their order."""
        return np.load(self.folder / "val_bytes.npy").astype(np.int64)

    def prompts(self, documents: list[np.ndarray]) -> list[np.ndarray | None]:
        """For each of the documents that `validation` gave: is a token its prompt's? bool, like the
        document; None where there are no prompts."""
        if not self._is_prompt:
            return [None] * len(documents)
        # The documents are the first of the file, one behind another; so are the marks.
        is_prompt = np.load(self.folder / "val_given.npy")
        ends = np.cumsum([len(document) for document in documents])
        return np.split(is_prompt[: ends[-1]], ends[:-1])


# ---- Batches ------------------------------------------------------------------------------------


def furthest_behind(first: list[float], last: list[float], counts: list[int], length: int) -> int:
    """The source that the next window comes from: the one furthest behind its share.

    first, last: each source's weight at the start and at the end of a stage of `length` windows;
    the weights of all sources add up to 1. counts: the windows drawn from each since the start.

    Worked by hand, weights ¾ and ¼. At the first window they are behind by ¾ and ¼: take source 0.
    At the second by 1½ - 1 and ½, a tie: the first of them, 0. At the third by ¼ and ¾: take 1.

    >>> drawn = []
    >>> for _ in range(8):
    ...     counts = [drawn.count(0), drawn.count(1)]
    ...     drawn.append(furthest_behind([0.75, 0.25], [0.75, 0.25], counts, length=8))
    >>> drawn
    [0, 0, 1, 0, 0, 0, 1, 0]
    """
    # Dice would be off by the square root of the windows drawn. Here a source is never a whole
    # window ahead of its share, for only one that is behind is drawn. And of n sources none is
    # further behind than 1/2 + 1/3 + ... + 1/n of a window: 0.5 with two, 0.83 with three, 1.28
    # with five. (Few come near it: of 20,000 sets of five random weights, one in a thousand was
    # ever more than one window behind.)
    #
    # A weight that moves on a line from w0 to w1 within L windows is w0 + (w1 - w0) s / L after s
    # of them; the windows that the source is due by then are the integral of that.
    s = sum(counts) + 1  # with the one that is about to be drawn
    behind = []
    for w0, w1, count in zip(first, last, counts, strict=True):
        due = w0 * s + (w1 - w0) * s**2 / (2 * length)
        behind.append(due - count)
    # Rounding may decide between two that are equally far behind, but always in the same way: equal
    # counts give equal floats, in every process and after every resume.
    return behind.index(max(behind))


class Loader:
    """Deals windows of several sources into batches. Their order is a pure function of the seed and
    of how many windows each source has given.

    Between sources: `furthest_behind`. A weight may be a pair: it then moves from the first to the
    second within each stage.

    Within a source: a permutation of its windows, another in each epoch, so that every window comes
    once per epoch. (Drawing with replacement would leave 1/e of the data unseen after one.) With
    `as_packed` the order of the shards instead: a curriculum is made by packing in order."""

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

        # The whole state: the windows drawn from each source; the counts from which on its share is
        # reckoned; and, for weights that move, how many windows the stage has.
        self.counts = [0] * len(sources)
        self.origin = [0] * len(sources)
        self.length = 1

        # {source: (epoch, its permutation)}: kept, since drawing one of millions takes a while.
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def begin_stage(self, windows: int) -> None:
        """A stage of so many windows begins: weights that move start from their first value."""
        # Weights that do not move carry on, so that many short stages are as exact as a long one.
        if self.first != self.last:
            self.origin = list(self.counts)
            self.length = windows

    def change_length(self, windows: int) -> None:
        """The stage that is under way has so many windows now: weights that move reach their last
        value at its new end."""
        if self.first != self.last:
            self.length = windows

    def skip(self, counts: list[int]) -> None:
        """Begin behind so many windows of the first sources, which the model has seen. The weights
        say how to share out the windows from here on."""
        self.counts[: len(counts)] = counts
        self.origin = list(self.counts)

    def next(self, n: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next n windows: (inputs, targets, sources), int64 (rows, T), (rows, T) and (rows,).

        A target that does not count, such as a prompt's token, is IGNORE. Every process asks for
        the whole batch of n, and names the rows of it that are its own."""
        # All processes count all windows, so they agree on the order, however many they are.
        chosen = []
        for _ in range(n):
            drawn = [now - before for now, before in zip(self.counts, self.origin, strict=True)]
            source = furthest_behind(self.first, self.last, drawn, self.length)
            chosen.append((source, self.counts[source]))
            self.counts[source] += 1

        # Each reads only the windows that it needs.
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
        # Every window once, then every window again: that is an epoch.
        shards = self.sources[source]
        n = shards.windows(self.seq_len)
        epoch, place = divmod(count, n)
        if self.as_packed:
            return shards.window(place, self.seq_len)
        # Not a generator that runs on from epoch to epoch: one made anew from what identifies the
        # epoch gives the same order to a run that is resumed there.
        kept_epoch, order = self._orders.get(source, (None, None))
        if kept_epoch != epoch:
            order = np.random.default_rng([self.seed, source, epoch]).permutation(n)
            self._orders[source] = (epoch, order)
        return shards.window(int(order[place]), self.seq_len)

    def state_dict(self) -> dict:
        """For a checkpoint: the counts, and the settings under which they mean the same order."""
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
        """Resume from `state`. UserError if it is that of another order, say of other weights."""
        # The counts name the same windows only under the same settings.
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
    """The weights at the start and at the end of a stage, each made to add up to 1.

    UserError for weights of which nothing can be drawn.

    >>> shares([3, (1, 0)])
    ([0.75, 0.25], [1.0, 0.0])
    """
    pairs = [weight if isinstance(weight, tuple) else (weight, weight) for weight in weights]
    # Comparisons with nan are false, so it is refused here too.
    for pair in pairs:
        is_valid = all(0 <= weight < math.inf for weight in pair) and max(pair) > 0
        if not is_valid:
            raise cli.UserError(f"weights {weights}: every source needs one above 0")
    # math.fsum rounds once: the same shares in every version of Python, or a run could not resume.
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
    """Bits per byte of the first validation documents of `shards` that fit into max_bytes, in
    batches of `batch` windows of at most seq_len tokens; see `score_documents`."""
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
    """Bits per byte of whole documents: nats of all tokens / UTF-8 bytes of text / ln 2.

    A loss per token would favour the tokenizer that cuts text into more pieces; the bytes are the
    same for all. Returns that loss too (nats per token), the tokens and the bytes.

    documents: int64, BOS ... EOS; prompts: for each of them, which tokens are a prompt's, or None;
    n_bytes: what all of them, prompts left out, have as text."""
    import torch  # here: each of `clean`'s processes would spend seconds and 200 MB on it

    from common import parallel

    # A document is fed from its BOS, which is given and not predicted; every other token, EOS too,
    # is predicted once. A document longer than seq_len continues in further windows, each of which
    # begins with the last token of the one before.
    windows = []
    for document, is_prompt in zip(documents, prompts, strict=True):
        inputs, targets = inputs_and_targets(document, is_prompt)
        for start in range(0, len(inputs), seq_len):
            end = start + seq_len
            windows.append((inputs[start:end], targets[start:end]))

    # Neighbours of like length need little padding.
    windows.sort(key=lambda window: len(window[0]))

    # Every process takes a batch in each round, in the last one perhaps an empty one: all have to
    # run a sharded model equally often.
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
    """Windows of different lengths as one batch: inputs and targets, int64 (rows, longest). No
    window at all gives one row of padding.

    >>> inputs, targets = padded([(np.array([5, 6, 7]), np.array([6, 7, 2])), ([8], [2])])
    >>> inputs.tolist(), targets.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[6, 7, 2], [2, -100, -100]])
    """
    # The padding is on the right, where no token before it attends to it (attention is causal), and
    # its targets do not count. As an input it must be some row of the embedding: 0 will do.
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
    """UserError for flags that do not go together."""
    if not 0 < args.val_fraction < 1:
        raise cli.UserError(f"--val_fraction {args.val_fraction} is not between 0 and 1")
    if bool(args.prompt_field) != bool(args.response_field):
        raise cli.UserError("--prompt_field and --response_field go together: what is given, and "
                            "what is to be learnt")
    # A document comes from one place: a text, fields, or messages.
    if args.messages and args.prompt_field:
        raise cli.UserError("--messages and --prompt_field: choose one, chats or pairs of fields")
    if has_dialogues(args) and args.text_field != "text":
        raise cli.UserError("--text_field and --prompt_field or --messages: choose one, a text "
                            "that is learnt whole, or prompts with responses")


def has_dialogues(args: argparse.Namespace) -> bool:
    """Are the documents prompts with responses?"""
    return bool(args.prompt_field or args.messages)


def wanted_of(args: argparse.Namespace) -> Wanted | None:
    """The fields that the flags name; None for a text alone."""
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
    """Yield the text of every document, or a dialogue as one text; move the bar by its UTF-8 bytes.

    `seen` counts; `rejected` gets a line for each that is no document."""
    # The second reading finds the same again, and nobody asks.
    if seen is None:
        seen = Seen()

    def reject(record: dict) -> None:
        seen.rejected[record["reason"]] += 1
        if rejected:
            print(json.dumps(record), file=rejected)

    def repair(record: dict) -> None:
        seen.repaired += 1

    for row in read_documents(args.input, reading_of(args), reject, wanted_of(args), repair):
        # A prompt and its response travel as one text, so that both decide the hash.
        if args.messages:
            text = dialogues.of_messages(row, args.messages)
        elif args.prompt_field:
            text = dialogues.of_fields(row, args.prompt_field, args.response_field)
            # Alpaca's `input` is half of the prompt, and easily forgotten: count it.
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
    """UTF-8 bytes of a document; of a dialogue's responses without their prompts."""
    if not is_dialogue:
        return len(text.encode())
    return sum(len(response.encode()) for _, response in dialogues.split(text))


def in_batches(texts: Iterable[str], max_characters: int = 2_000_000) -> Iterator[list[str]]:
    """Yield the texts in lists of about `max_characters`: enough work for every thread of the
    tokenizer, little enough for any memory."""
    # By characters and not by documents: some are books.
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

    `files` has the index's entry of each file that is written."""

    def __init__(self, folder: Path, prefix: str, dtype: type, shard_tokens: int):
        self.folder = folder
        self.prefix = prefix
        self.files: dict[str, dict] = {}
        self.buffer = np.empty(shard_tokens, dtype)
        self.used = 0  # tokens in the buffer

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens (n,) to the stream; a shard is written as soon as it is full."""
        # Fill the buffer; each time that it is full, it becomes a file.
        while len(tokens) > 0:
            room = len(self.buffer) - self.used
            part = tokens[:room]
            tokens = tokens[room:]
            self.buffer[self.used : self.used + len(part)] = part
            self.used += len(part)
            if self.used == len(self.buffer):
                self.flush()

    def flush(self) -> None:
        """Write what is in the buffer, if anything is."""
        if self.used > 0:
            name = f"{self.prefix}-{len(self.files):05d}.npy"
            self.files[name] = save_array(self.folder / name, self.buffer[:self.used])
            self.used = 0


def save_array(path: Path, array: np.ndarray) -> dict:
    """Write an array as np.save does; returns its entry in the index."""
    # Not np.save itself: its error on a full disk does not say what it is (it has no errno).
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
    """Print what is in the shards, and what was found on the way."""
    # Of dialogues the bytes are those of the responses; so are the tokens that they are divided by.
    val = index["val"]
    learnt = ""
    if has_dialogues(args):
        learnt = f", {index['targets']} of them learnt"
    print(f"{index['documents']} documents, {index['bytes']} bytes, {index['tokens']} tokens"
          f"{learnt} ({index['bytes'] / index['targets']:.2f} bytes per token) in "
          f"{len(index['files'])} shards; for validation {val['documents']} documents, "
          f"{val['bytes']} bytes; {index['duplicates']} duplicates dropped, "
          f"{seen.rejected.total()} lines rejected")

    # What someone would rather know now than after a week of training.
    if seen.repaired:
        print(f"{seen.repaired} documents have a few broken bytes, which are packed as U+FFFD")
    if few := small_validation(val["documents"]):
        print(f"for validation {few}; --val_fraction is their share of all")
    if seen.with_more:
        print(dialogues.about_unused(seen.rows, seen.with_more, seen.unused, args.prompt_field))


# ---- Command line -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """`clean`, `show` and `pack` on the command line."""
    parser = cli.Parser(description=__doc__, prog="data.py")
    names = "clean|show|pack"
    commands = parser.add_subparsers(required=True, metavar=names, parser_class=cli.Parser)
    programs = [
        (clean, add_clean_flags, "raw documents → documents worth training on"),
        (show, add_show_flags, "look at what clean decided"),
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
    # It reads no documents and writes no folder, which is what the rest is about.
    if args.run is show:
        show(args)
        return

    # What can be checked without reading a document is checked before anything is written.
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
    # A folder that is written again is replaced, with all that is in it; and what is written into
    # an input would be read as documents the next time.
    target = Path(out).resolve()
    for name in inputs:
        source = Path(name).resolve()
        if target == source or target in source.parents:
            raise cli.UserError(f"--out {out} would replace its own input {name}; "
                                "name another folder")
        if source in target.parents:
            raise cli.UserError(f"--out {out} lies inside its own input {name}, and would be read "
                                "the next time; name a folder outside it")


def add_common_flags(parser: cli.Parser) -> None:
    """Flags of `clean` and `pack`."""
    flag = parser.add_argument
    flag("--input", nargs="+", required=True, help=f"files or folders of {KINDS}")
    flag("--out", required=True,
         help="folder for the results; replaced only when the new one is whole")
    add_flags(parser)  # how to read it
    flag("--workers", type=int, default=1,
         help="processes or threads; the results are the same for any number")


def add_clean_flags(parser: cli.Parser) -> None:
    """Flags of `clean`; what they do is in cleaning/."""
    add_common_flags(parser)
    flag = parser.add_argument
    flag("--lang", choices=["ko", "en"], default="ko", help="the language that the rules expect")
    flag("--profile", choices=["web", "formal", "short"], default="web",
         help="how strict the rules are: for web pages, edited text, or reviews and comments")
    flag("--limits", nargs="+", default=[], metavar="NAME=VALUE|FILE.json",
         help="limits of the rules in place of the profile's, by name or in a JSON file of "
              "{\"name\": value, ...}: symbols=0.6, word_length='[1.5, 30]', "
              "repeated_ngrams='{\"10\": 0.3}', line_ends=null (turns the rule off); the last "
              "value of a name counts; a file may hold the \"limits\" of a report.json; names: "
              + " ".join(Limits._fields))
    flag("--steps", nargs="+", choices=STEPS, metavar="STEP",
         help=f"only these, in this order; if not given, all that apply: {' '.join(STEPS)}")
    flag("--cut_lines", action="store_true",
         help="run the step lines with any profile; by default only web has it. Not for rulings "
              "and statutes, which rightly share whole sentences")
    flag("--sample", type=float, default=1.0,
         help="share of the documents to start from, chosen by hash")
    flag("--reference", nargs="+", metavar="FILE",
         help="text to train the n-gram model on, if not the input")
    flag("--tails", nargs=2, type=float, default=[0.5, 1.0], metavar=("LOW", "HIGH"),
         help="percent of each source's documents, at most, to remove as too predictable and as "
              "too surprising")
    flag("--examples", type=int, default=20,
         help="documents to keep with their texts for each source, step and reason, and of those "
              "that stay, for data.py show; 0: none")
    flag("--decontaminate", metavar="KOBEST_DIR",
         help="KoBEST's folder (.tsv or .jsonl): documents that contain its items are removed")


def add_show_flags(parser: cli.Parser) -> None:
    """Flags of `show`; what they do is in cleaning/show.py."""
    flag = parser.add_argument
    flag("folder", metavar="OUT", help="what clean has written")
    flag("--source", metavar="NAME", help="only documents of this file, wiki or wiki.jsonl")
    flag("--step", help="only decisions of this step")
    flag("--reason", help="only decisions for this reason, alone or among others: phone finds "
                          "phone+email")
    flag("--what", choices=["kept", "removed", "changed", "rejected"],
         help="only documents with this outcome")
    flag("-n", type=int,
         help="how many documents at most, of as many kinds of decision as there are (default: 20 "
              "on the screen, all on a page)")
    flag("--whole", action="store_true", help="each text as far as clean has kept it, not only its "
                                              "beginning or what changed")
    flag("--html", metavar="PAGE.html", help="write a page for a browser instead")


def add_pack_flags(parser: cli.Parser) -> None:
    """Flags of `pack`."""
    add_common_flags(parser)
    flag = parser.add_argument
    flag("--tokenizer", required=True,
         help="a SentencePiece .model file, or a model folder that holds one")
    flag("--prompt_field", nargs="+", metavar="FIELD",
         help="fields whose texts are given and not learnt, for an sft stage")
    flag("--response_field", metavar="FIELD", help="field with the answer to them, which is")
    flag("--messages", nargs="?", const="messages", metavar="FIELD",
         help="rows are chats, in this field (messages, if none is named)")
    flag("--val_fraction", type=float, default=0.005, help="share of the documents for validation")
    flag("--val_bytes", type=int, default=5_000_000,
         help="at most so many bytes of text for validation")
    flag("--shard_tokens", type=int, default=100_000_000, help="tokens per shard file")


if __name__ == "__main__":
    cli.run(main)
