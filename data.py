"""Documents in, token shards out, batches out: everything between a raw text file and a training step.

Three ideas, in the order in which text meets them:

- `clean` turns raw documents into documents worth training on. The steps are in cleaning/.
- `pack` turns documents into *token shards*: one stream of token ids on disk, BOS text EOS BOS text EOS ..., memory-
  mapped, so that a corpus larger than memory costs nothing to open. A few whole documents, chosen by a hash of their
  text and so the same under every tokenizer, are set aside: on them `bits_per_byte` measures a model.
- `Loader` deals windows of the stream into batches. Which comes next is a pure function of a seed and of one counter a
  source, so that a run that was stopped goes on with the very batch it would have had.

    python data.py clean --input raw/wiki.jsonl raw/court.jsonl --out out/clean --profile formal
    python data.py pack  --input out/clean --tokenizer out/merged.model --out out/shards
"""
import argparse
import hashlib
import heapq
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tokenizer
from cleaning import STEPS, clean
from common import cli
from common.documents import SUFFIXES, documents
from schedule import Schedule

GIVEN, MARK = 2**32, "\x00"  # added to a token that is given, not predicted; between a prompt and its response

# --------------------------------------------------------------------------------------------------------- packing


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def choose_validation(found: Iterable[str], fraction: float, max_bytes: int) -> dict[int, str]:
    """The validation documents, {hash: text} in the order of their hash.

    Those whose hash lies in the lowest `fraction` of all hashes; of these, the lowest that fit into max_bytes together,
    and at least one. Neither the order of the documents nor the tokenizer has a say. If there is but one text, it is
    for training. Memory: max_bytes and a document."""
    limit, chosen, highest_first, held = int(fraction * 2**64), {}, [], 0
    lowest, highest = (2**64, ""), -1
    for text in found:
        key = text_hash(text)
        lowest, highest = min(lowest, (key, text)), max(highest, key)
        if key < limit and key not in chosen:
            chosen[key] = text
            heapq.heappush(highest_first, -key)
            held += len(text.encode())
        while held > max_bytes and len(chosen) > 1:  # what is let go shuts the door behind it: the result stays
            limit = -heapq.heappop(highest_first)    # "all below some hash", whatever came first
            held -= len(chosen.pop(limit).encode())
    if lowest[0] >= highest:  # no text, or one
        return {}
    return dict(sorted(chosen.items())) or dict([lowest])


class ShardWriter:
    """Appends tokens to PREFIX-00000.npy, PREFIX-00001.npy, ... of `shard_tokens` tokens; `files` describes them."""

    def __init__(self, folder: Path, prefix: str, dtype: np.dtype, shard_tokens: int):
        self.folder, self.prefix, self.files = folder, prefix, {}
        self.buffer, self.used = np.empty(shard_tokens, dtype), 0

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            part = tokens[:len(self.buffer) - self.used]
            self.buffer[self.used:self.used + len(part)] = part
            self.used += len(part)
            tokens = tokens[len(part):]
            if self.used == len(self.buffer):
                self.flush()

    def flush(self) -> None:
        if self.used:
            name = f"{self.prefix}-{len(self.files):05d}.npy"
            self.files[name] = save(self.folder / name, self.buffer[:self.used])
            self.used = 0


def save(path: Path, array: np.ndarray) -> dict:
    """Write an array; its entry in the index."""
    np.save(path, array)
    return {"tokens": len(array), "bytes_on_disk": path.stat().st_size, "sha256": cli.sha256(path)}


def texts(docs: Iterable[dict], bar: tqdm, fields: tuple[str, ...] = ("text",)) -> Iterator[str]:
    """Their texts, prompt and response with a mark between them; moves the bar by their UTF-8 bytes."""
    for document in docs:
        text = document[fields[0]] if len(fields) == 1 else MARK.join(document[f].replace(MARK, "") for f in fields)
        bar.update(len(text.encode()))
        yield text


def n_bytes_learnt(text: str, prompted: bool) -> int:
    """UTF-8 bytes of a document, of a response without its prompt."""
    return len((text.partition(MARK)[2] if prompted else text).encode())


def batches(found: Iterable[str], max_characters: int = 2_000_000) -> Iterator[list[str]]:
    """Texts in lists of about `max_characters`: enough for every thread, little enough for any memory."""
    batch, size = [], 0
    for text in found:
        batch.append(text)
        size += len(text)
        if size >= max_characters:
            yield batch
            batch, size = [], 0
    yield batch


def encode(sp, batch: list[str], workers: int, prompted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """BOS text EOS of each text, joined: (ids, which of them are given and not to be learnt). SentencePiece's own
    threads do it: the same ids for any number of them.

    A prompt and its response are encoded together, a blank between them, and cut where the prompt alone would end."""
    given = [0] * len(batch)
    if prompted and batch:
        prompts, responses = zip(*(text.split(MARK) for text in batch), strict=True)
        given = [len(row) for row in sp.encode([p.rstrip() for p in prompts], add_bos=True, num_threads=workers)]
        batch = [p.rstrip() + " " + r.lstrip() for p, r in zip(prompts, responses, strict=True)]
    ids = sp.encode(batch, add_bos=True, add_eos=True, num_threads=workers) if batch else []
    return (np.concatenate([np.zeros(0, np.uint32), *(np.array(row, np.uint32) for row in ids)]),
            np.concatenate([np.zeros(0, bool), *(np.arange(len(row)) < n for row, n in zip(ids, given, strict=True))]))


def pack(args: argparse.Namespace) -> dict:
    """Tokenise documents into shards; print and return their index. The corpus is read twice: the first time settles
    which documents are for validation, and hashing is far faster than tokenising. Memory: a shard and a batch.

        python data.py pack --input clean/formal clean/web --tokenizer merged.model --out shards/ko --workers 2"""
    model = Path(args.tokenizer) / "tokenizer.model" if Path(args.tokenizer).is_dir() else Path(args.tokenizer)
    sp = tokenizer.load(model)
    if not 0 < args.val_fraction < 1:
        raise cli.UserError(f"--val_fraction {args.val_fraction} is not between 0 and 1")
    if bool(args.prompt_field) != bool(args.response_field):
        raise cli.UserError("--prompt_field and --response_field go together: what is given, and what is to be learnt")
    prompted = bool(args.prompt_field)
    fields = (args.prompt_field, args.response_field) if prompted else ("text",)
    bar = {"unit": "B", "unit_scale": True}
    with cli.new_folder(args.out) as folder:
        with open(folder / "rejected.jsonl", "w", encoding="utf-8") as rejected, tqdm(**bar, desc="read") as reading:
            found = documents(args.input, args.encoding, lambda bad: print(json.dumps(bad), file=rejected), fields)
            held_out = choose_validation(texts(found, reading, fields), args.val_fraction, args.val_bytes)
        train = ShardWriter(folder, "train", np.uint16 if sp.vocab_size() <= 2**16 else np.uint32, args.shard_tokens)
        given = ShardWriter(folder, "given", bool, args.shard_tokens)  # beside each token: is it a prompt's?
        n_documents = n_bytes = 0
        with tqdm(**bar, desc="pack", total=reading.n) as packing:
            for batch in batches(texts(documents(args.input, args.encoding, fields=fields), packing, fields)):
                batch = [text for text in batch if text_hash(text) not in held_out]
                ids, prompts = encode(sp, batch, args.workers, prompted)
                train.append(ids)
                given.append(prompts if prompted else prompts[:0])
                n_documents += len(batch)
                n_bytes += sum(n_bytes_learnt(text, prompted) for text in batch)
        train.flush()
        given.flush()
        n_rejected = (folder / "rejected.jsonl").read_bytes().count(b"\n")
        if not n_documents:
            raise cli.UserError(f"no document to train on in {' '.join(map(str, args.input))} ({n_rejected} lines were "
                                f"rejected, {len(held_out)} documents are for validation)")
        val, val_given = encode(sp, list(held_out.values()), args.workers, prompted)
        val_bytes = np.array([n_bytes_learnt(text, prompted) for text in held_out.values()], np.uint32)
        val_files = {"val-00000.npy": val.astype(train.buffer.dtype), "val_bytes.npy": val_bytes}
        val_files |= {"val_given.npy": val_given} if prompted else {}
        index = {"tokens": sum(entry["tokens"] for entry in train.files.values()), "bytes": n_bytes,
                 "documents": n_documents, "vocab_size": sp.vocab_size(), "tokenizer_sha256": cli.sha256(model),
                 "dtype": train.buffer.dtype.name, "bos_token_id": sp.bos_id(), "eos_token_id": sp.eos_id(),
                 "files": train.files, "given": given.files,
                 "val": {"tokens": len(val), "bytes": int(val_bytes.sum()), "documents": len(val_bytes),
                         "files": {name: save(folder / name, array) for name, array in val_files.items()}}}
        cli.write_json(folder / "index.json", index)
    print(f"{n_documents} documents, {n_bytes} bytes, {index['tokens']} tokens ({n_bytes / index['tokens']:.2f} bytes "
          f"a token) in {len(train.files)} shards; for validation {len(val_bytes)} documents, {val_bytes.sum()} bytes; "
          f"{n_rejected} lines rejected")
    return index


# ---------------------------------------------------------------------------------------------------------- shards


class Shards:
    """A folder that `pack` wrote, memory-mapped. UserError if it is not whole or (`verify`) not as it was written."""

    def __init__(self, folder: str | Path, verify: bool = True):
        self.folder = Path(folder)
        if not (self.folder / "index.json").is_file():
            raise cli.UserError(f"{folder} is no folder of token shards (no index.json); data.py pack writes one")
        self.index = cli.read_json(self.folder / "index.json")
        try:
            self.tokens, self.tokenizer_sha256 = self.index["tokens"], self.index["tokenizer_sha256"]
            files = self.index["files"] | self.index.setdefault("given", {}) | self.index["val"]["files"]
        except (KeyError, TypeError):
            raise cli.UserError(f"{self.folder / 'index.json'} is not an index that data.py pack wrote") from None
        for name, entry in cli.progress(files.items(), f"checking {self.folder}"):
            self._check(self.folder / name, entry, verify)
        self._maps, self._given = ([np.load(self.folder / name, mmap_mode="r") for name in self.index[kind]]
                                   for kind in ("files", "given"))
        self._starts = np.cumsum([0] + [len(tokens) for tokens in self._maps])

    @staticmethod
    def _check(path: Path, entry: dict, verify: bool) -> None:
        if not path.is_file():
            raise cli.UserError(f"{path} is missing; run data.py pack again")
        if path.stat().st_size != entry["bytes_on_disk"]:
            raise cli.UserError(f"{path} has {path.stat().st_size} bytes, its index says {entry['bytes_on_disk']}: "
                                "cut short? run data.py pack again")
        if verify and cli.sha256(path) != entry["sha256"]:
            raise cli.UserError(f"{path} has changed since it was packed (SHA-256); run data.py pack again")

    def windows(self, seq_len: int) -> int:
        """How many training windows of seq_len + 1 tokens there are; neighbours share one token."""
        return (self.tokens - 1) // seq_len

    def window(self, i: int, seq_len: int) -> np.ndarray:
        """Tokens i * seq_len to (i + 1) * seq_len, both included: int64 (seq_len + 1,), GIVEN added to a prompt's. May
        span files."""
        first, end, parts = i * seq_len, (i + 1) * seq_len + 1, []
        while first < end:
            shard = int(np.searchsorted(self._starts, first, side="right")) - 1
            place = slice(first - self._starts[shard], end - self._starts[shard])
            parts.append(self._maps[shard][place].astype(np.int64))
            if self._given:
                parts[-1] += GIVEN * self._given[shard][place]
            first += len(parts[-1])
        return np.concatenate(parts)

    def validation(self, max_bytes: int) -> tuple[list[np.ndarray], int]:
        """(the first validation documents that fit into max_bytes of text, at least one; the UTF-8 bytes to predict).

        Each document is int64, BOS ... EOS. Which they are depends on the text alone, so tokenizers can be compared."""
        if not self.index["val"]["documents"]:
            raise cli.UserError(f"{self.folder} has no validation documents; pack at least two different documents")
        n_bytes = np.cumsum(np.load(self.folder / "val_bytes.npy").astype(np.int64))
        n = max(1, int(np.searchsorted(n_bytes, max_bytes, side="right")))
        tokens = np.load(self.folder / "val-00000.npy", mmap_mode="r")
        starts = np.append(np.flatnonzero(tokens == self.index["bos_token_id"]), len(tokens))
        if self._given:
            tokens = tokens.astype(np.int64) + GIVEN * np.load(self.folder / "val_given.npy")
        docs = [tokens[a:b].astype(np.int64) for a, b in zip(starts[:n], starts[1:n + 1], strict=True)]
        return docs, int(n_bytes[n - 1])


# --------------------------------------------------------------------------------------------------------- batches


class Loader:
    """Deals windows of several sources into batches, in an order that is a pure function of the seed and of counts.

    Within a source: a permutation of its windows, another in each epoch, every window once an epoch. (Drawing with
    replacement would leave 1/e of the data unseen after one.) With `as_packed` the order of the shards instead: a
    curriculum is made by packing in order. Between sources: a Schedule.
    """

    def __init__(self, sources: list[Shards], weights: list[float | tuple[float, float]], seq_len: int, seed: int,
                 as_packed: bool = False):
        for source in sources:
            if source.windows(seq_len) < 1:
                raise cli.UserError(f"{source.folder} has {source.tokens} tokens, less than a window of {seq_len} + 1; "
                                    "pack more text or lower --seq_len")
        if len(weights) != len(sources):
            raise cli.UserError(f"weights {weights}: every source needs one")
        self.schedule, self.sources, self.seq_len, self.seed = Schedule(weights), sources, seq_len, seed
        self.as_packed = as_packed
        self._orders = [(-1, np.zeros(0, np.int64))] * len(sources)  # of each source: an epoch and its permutation

    def _read(self, source: int, count: int) -> np.ndarray:
        """The source's window number `count`, over all epochs."""
        n = self.sources[source].windows(self.seq_len)
        epoch, place = divmod(count, n)
        if self.as_packed:
            return self.sources[source].window(place, self.seq_len)
        if self._orders[source][0] != epoch:
            self._orders[source] = epoch, np.random.default_rng([self.seed, source, epoch]).permutation(n)
        return self.sources[source].window(int(self._orders[source][1][place]), self.seq_len)

    def begin_stage(self, windows: int) -> None:
        """A stage of so many windows begins: weights that move go from their first to their last share within it."""
        self.schedule.begin(windows)

    def next(self, n: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next n windows: inputs and targets, int64 (rows, seq_len), and the source of each row, int64 (rows,). A
        target that does not count, such as a prompt's token, is -100.

        Every process asks for the whole batch of n and for its own rows of it: so all agree on the schedule, however
        many they are, and each reads only what it needs."""
        chosen = []
        for _ in range(n):
            source = self.schedule.draw()
            chosen.append((source, self.schedule.counts[source] - 1))
        tokens = [self._read(source, count) for source, count in chosen[rows]]
        inputs, targets = split(np.stack(tokens))
        return inputs, targets, np.array([source for source, _ in chosen[rows]])

    def state_dict(self) -> dict:
        s = self.schedule
        return {"counts": list(s.counts), "origin": list(s.origin), "length": s.length, "shares": [s.first, s.last],
                "seed": self.seed, "seq_len": self.seq_len, "as_packed": self.as_packed}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`. UserError if it belongs to another order (weights, seed or window length)."""
        mine = self.state_dict()
        for key in ("shares", "seed", "seq_len", "as_packed"):
            if state[key] != mine[key]:
                raise cli.UserError(f"the saved data order has {key} {state[key]}, this run {mine[key]}; "
                                    "resume with the same --data, --seed, --order and --seq_len")
        s = self.schedule
        s.counts, s.origin, s.length = list(state["counts"]), list(state["origin"]), state["length"]


def split(rows):
    """Windows (B, T + 1) → the model's inputs (B, T), and its targets (B, T): the next tokens, -100
    for a prompt's and for padding."""
    inputs, targets = rows[:, :-1].clip(0) % GIVEN, rows[:, 1:]
    return inputs, np.where(targets < GIVEN, targets, -100)


# ----------------------------------------------------------------------------------------------------- measurement


def bits_per_byte(llama, shards: Shards, seq_len: int, max_bytes: int = 1_000_000, batch: int = 8,
                  device: str = "cpu") -> dict:
    """Bits per byte of whole validation documents: nats of all tokens / UTF-8 bytes of their text / ln 2.

    A document is fed from its BOS, which is given and not predicted; every other token, EOS too, is predicted once. A
    document longer than seq_len goes on in further windows, each of which begins with the last token of the one before.
    Loss a token would favour the tokenizer that cuts text into more pieces; the bytes are the same for all."""
    import torch  # here: each of `clean`'s processes would spend seconds and 200 MB on it

    from common import parallel
    docs, n_bytes = shards.validation(max_bytes)
    windows = [doc[a:a + seq_len + 1] for doc in docs for a in range(0, len(doc) - 1, seq_len)]
    windows.sort(key=len)  # neighbours of like length need little padding
    nats, n_tokens, n = 0, 0, parallel.size()
    with torch.no_grad():
        # A batch for every process, at the end perhaps an empty one: all have to run a sharded model equally often.
        for i in cli.progress(range(0, len(windows), n * batch), "bits a byte"):
            rows = windows[i + parallel.rank() * batch:][:batch]
            tokens = np.full((max(1, len(rows)), max(map(len, rows), default=2)), -100)
            for row, window in zip(tokens, rows, strict=False):
                row[:len(window)] = window
            inputs, targets = (torch.from_numpy(part).to(device) for part in split(tokens))
            loss, count = llama(inputs, targets)                # right padding: causal, needs no mask
            nats, n_tokens = nats + float(loss), n_tokens + int(count)
    nats, n_tokens = parallel.all_reduce_sum(nats, n_tokens)
    n_tokens = int(n_tokens)
    return {"bits_per_byte": nats / n_bytes / math.log(2), "loss": nats / n_tokens,
            "tokens": n_tokens, "bytes": n_bytes}


def main(argv: list[str] | None = None) -> None:
    """`clean` and `pack` on the command line."""
    parser = cli.Parser(description=__doc__, prog="data.py")
    commands = parser.add_subparsers(required=True, metavar="clean|pack", parser_class=cli.Parser)
    for function, what in ((clean, "raw documents → documents worth training on"), (pack, "documents → token shards")):
        name = function.__name__
        command = commands.add_parser(name, help=what, description=function.__doc__.replace("\n    ", "\n"))
        command.set_defaults(run=function)
        add = command.add_argument
        add("--input", nargs="+", required=True, help=f"files or folders of {', '.join(SUFFIXES)} documents")
        add("--out", required=True, help="folder for the results; replaced only when the new one is whole")
        add("--encoding", choices=["utf-8", "cp949", "euc-kr"], default="utf-8", help="of the input")
        add("--workers", type=int, default=1, help="processes or threads; the results are the same for any number")
        if function is clean:
            add("--lang", choices=["ko", "en"], default="ko", help="the language that the rules expect")
            add("--profile", choices=["web", "formal", "short"], default="web",
                help="how strict the rules are: for web pages, edited text, or reviews and comments")
            add("--steps", nargs="+", choices=STEPS, metavar="STEP",
                help=f"only these, in this order; if not given, all that apply: {' '.join(STEPS)}")
            add("--sample", type=float, default=1.0, help="share of the documents to start from, chosen by hash")
            add("--reference", nargs="+", metavar="FILE", help="text to train the n-gram model on, if not the input")
            add("--tails", nargs=2, type=float, default=[0.5, 1.0], metavar=("LOW", "HIGH"),
                help="percent of each source's documents, at most, that go as too predictable and as too surprising")
            add("--decontaminate", metavar="KOBEST_DIR", help="folder with the benchmark's .tsv files")
        else:
            add("--tokenizer", required=True, help="a SentencePiece .model file, or a model folder that holds one")
            add("--prompt_field", help="JSONL field whose text is given and not learnt, for an sft stage")
            add("--response_field", help="JSONL field with the answer to it, which is")
            add("--val_fraction", type=float, default=0.005, help="share of the documents for validation")
            add("--val_bytes", type=int, default=5_000_000, help="at most so many bytes of text for validation")
            add("--shard_tokens", type=int, default=100_000_000, help="tokens in a shard file")
    args = parser.parse_args(argv)
    for name in ("workers", "val_bytes", "shard_tokens"):
        if getattr(args, name, 1) < 1:
            raise cli.UserError(f"--{name} {getattr(args, name)} is not at least 1")
    out = Path(args.out).resolve()
    for path in args.input:
        if out in (Path(path).resolve(), *Path(path).resolve().parents):
            raise cli.UserError(f"--out {args.out} would replace its own input {path}; name another folder")
    cli.settings(args)
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
