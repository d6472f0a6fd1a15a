"""Documents in, token shards out, batches out: everything between a raw text file and a training step.

Three ideas, in the order in which text meets them:

- `clean` turns raw documents into documents worth training on. The steps themselves are in cleaning/.
- `pack` turns documents into *token shards*: one long stream of token ids on disk, BOS text EOS BOS text EOS ...,
  memory-mapped, so that a corpus larger than memory costs nothing to open. A few whole documents, chosen by a hash of
  their text and so the same under every tokenizer, are set aside: on them `bits_per_byte` measures the model.
- `Loader` deals windows of the stream into batches. What comes at step n is a pure function of a seed and of a few
  counters, so that a run that was stopped goes on with exactly the batch it would have had.

    python data.py clean --input raw/wiki.jsonl raw/court.jsonl --out out/clean --profile formal
    python data.py pack  --input out/clean --tokenizer out/merged.model --out out/shards
"""
import argparse
import hashlib
import heapq
import json
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

import cli
import tokenizer
from cleaning import STEPS, clean
from cleaning.read import SUFFIXES, documents

# ------------------------------------------------------------------------------------------------- packing tokens

def text_hash(text: str) -> int:
    """64 bits of BLAKE2b of the text: the same on every machine, whatever the order of the documents."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def choose_validation(texts: Iterable[str], fraction: float, max_bytes: int) -> tuple[dict[int, str], int]:
    """The validation documents {hash: text} in the order of their hash, and the UTF-8 bytes of all texts.

    Chosen are the texts whose hash lies in the lowest `fraction` of all hashes; of those, the smallest hashes that
    fit into `max_bytes` (at least one). Neither the order of the documents nor the tokenizer has a say. Memory:
    max_bytes and a document. A single distinct text is for training: then nothing is chosen.
    """
    limit, chosen, heap, held, total = int(fraction * 2**64), {}, [], 0, 0
    smallest, largest = (2**64, ""), 0
    for text in texts:
        n, key = len(text.encode()), text_hash(text)
        total += n
        smallest, largest = min(smallest, (key, text)), max(largest, key)
        if key < limit and key not in chosen:
            chosen[key] = text
            heapq.heappush(heap, -key)
            held += n
        while held > max_bytes and len(heap) > 1:  # what is let go shuts the door behind it, hence `limit`:
            limit = -heapq.heappop(heap)           # the result is "all below a hash", whatever came first
            held -= len(chosen.pop(limit).encode())
    if not chosen and smallest[0] < largest:
        chosen = dict([smallest])
    return dict(sorted(chosen.items())), total


class ShardWriter:
    """Appends tokens to PREFIX-00000.npy, PREFIX-00001.npy, ..., each of at most `shard_tokens` tokens."""

    def __init__(self, folder: Path, prefix: str, dtype: np.dtype, shard_tokens: int):
        self.folder, self.prefix, self.dtype, self.shard_tokens = folder, prefix, np.dtype(dtype), shard_tokens
        self.sizes: dict[str, int] = {}
        self.file = None

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self.file is None:
                self.name = f"{self.prefix}-{len(self.sizes):05d}.npy"
                self.file, self.sizes[self.name] = open(self.folder / self.name, "wb"), 0
                self._header()
            part = tokens[:self.shard_tokens - self.sizes[self.name]]
            self.file.write(part.astype(self.dtype).tobytes())
            self.sizes[self.name] += len(part)
            tokens = tokens[len(part):]
            if self.sizes[self.name] == self.shard_tokens:
                self.close()

    def _header(self) -> None:
        """numpy leaves room in the header for any length, so it can be written again when the length is known."""
        np.lib.format.write_array_header_1_0(self.file, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
            "shape": (self.sizes[self.name],)})

    def close(self) -> None:
        if self.file is not None:
            self.file.seek(0)
            self._header()
            self.file.close()
            self.file = None


def describe(folder: Path, sizes: dict[str, int]) -> dict:
    """The index entry of each file: its tokens, bytes on disk and SHA-256."""
    return {name: {"tokens": n, "bytes_on_disk": (folder / name).stat().st_size, "sha256": cli.sha256(folder / name)}
            for name, n in sizes.items()}


def pack(args: argparse.Namespace) -> dict:
    """Tokenise documents into shards; return the index. The corpus is read twice: hashing is far faster than
    tokenising, and the first pass settles which documents are for validation. Memory: a batch, whatever the corpus."""
    model = Path(args.tokenizer) / "tokenizer.model" if Path(args.tokenizer).is_dir() else Path(args.tokenizer)
    sp = tokenizer.load(model)
    if not 0 < args.val_fraction < 1:
        raise cli.UserError(f"--val_fraction {args.val_fraction} is not between 0 and 1")
    dtype = np.dtype(np.uint16 if sp.vocab_size() <= 2**16 else np.uint32)
    with cli.new_folder(args.out) as folder:
        with open(folder / "rejected.jsonl", "w", encoding="utf-8") as file:
            reject = lambda record: file.write(json.dumps(record, ensure_ascii=False) + "\n")
            texts = (d["text"] for d in documents(args.input, args.encoding, reject))
            held_out, total = choose_validation(tqdm(texts, "read", unit="doc"), args.val_fraction, args.val_bytes)
        train = ShardWriter(folder, "train", dtype, args.shard_tokens)
        val = ShardWriter(folder, "val", dtype, 2**62)  # one file: it is small, by --val_bytes
        n_documents = n_bytes = 0
        with tqdm(total=total, desc="pack", unit="B", unit_scale=True) as bar:
            for batch in batches(documents(args.input, args.encoding)):
                keep = [text for text in batch if text_hash(text) not in held_out]
                train.append(encode(sp, keep, args.workers))
                n_documents += len(keep)
                n_bytes += sum(len(text.encode()) for text in keep)
                bar.update(sum(len(text.encode()) for text in batch))
        if not n_documents:
            raise cli.UserError(f"no document to train on in {' '.join(map(str, args.input))}"
                                + (": all are for validation; lower --val_fraction" if held_out else ""))
        for text in held_out.values():
            val.append(encode(sp, [text], 1))
        train.close()
        val.close()
        val_bytes = np.array([len(text.encode()) for text in held_out.values()], np.uint32)
        np.save(folder / "val_bytes.npy", val_bytes)
        index = {"tokens": sum(train.sizes.values()), "bytes": n_bytes, "documents": n_documents,
                 "vocab_size": sp.vocab_size(), "tokenizer_sha256": cli.sha256(model), "dtype": dtype.name,
                 "bos_token_id": sp.bos_id(), "eos_token_id": sp.eos_id(), "files": describe(folder, train.sizes),
                 "val": {"tokens": sum(val.sizes.values()), "bytes": int(val_bytes.sum()), "documents": len(val_bytes),
                         "files": describe(folder, val.sizes | {"val_bytes.npy": len(val_bytes)})}}
        cli.write_json(folder / "index.json", index)
        n_rejected = sum(1 for _ in open(folder / "rejected.jsonl", "rb"))
    print(f"{index['documents']} documents, {index['bytes']} bytes, {index['tokens']} tokens "
          f"({index['bytes'] / index['tokens']:.2f} bytes a token) in {len(index['files'])} shards; for validation "
          f"{index['val']['documents']} documents, {index['val']['bytes']} bytes; {n_rejected} lines rejected")
    return index


def batches(docs: Iterable[dict], max_characters: int = 2_000_000) -> Iterator[list[str]]:
    """Texts in lists of about `max_characters`: enough for every thread, little enough for any memory."""
    batch, size = [], 0
    for document in docs:
        batch.append(document["text"])
        size += len(document["text"])
        if size >= max_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(sp, texts: list[str], workers: int) -> np.ndarray:
    """BOS text EOS of each text, joined. SentencePiece's own threads do it: the same ids for any number of them."""
    ids = sp.encode(texts, add_bos=True, add_eos=True, num_threads=workers)
    return np.concatenate([np.array(row, np.uint32) for row in ids]) if ids else np.zeros(0, np.uint32)


# ------------------------------------------------------------------------------------------------ reading shards

class Shards:
    """A folder that `pack` wrote, memory-mapped. UserError if it is not whole or (`verify`) not as it was written."""

    def __init__(self, folder: str | Path, verify: bool = True):
        self.folder = Path(folder)
        if not (self.folder / "index.json").is_file():
            raise cli.UserError(f"{folder} is no folder of token shards (no index.json); data.py pack writes one")
        self.index = cli.read_json(self.folder / "index.json")
        try:
            self.tokens, self.tokenizer_sha256 = self.index["tokens"], self.index["tokenizer_sha256"]
            sizes = self.index["files"] | self.index["val"]["files"]
        except (KeyError, TypeError):
            raise cli.UserError(f"{self.folder / 'index.json'} is not an index of data.py pack; pack again") from None
        for name, entry in sizes.items():
            self._check(self.folder / name, entry, verify)
        self._maps = [np.load(self.folder / name, mmap_mode="r") for name in self.index["files"]]
        self._starts = np.cumsum([0] + [len(m) for m in self._maps])

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
        """Tokens [i * seq_len, (i + 1) * seq_len], both ends included: int64 (seq_len + 1,). May span two files."""
        first, end, parts = i * seq_len, (i + 1) * seq_len + 1, []
        while first < end:
            shard = int(np.searchsorted(self._starts, first, side="right")) - 1
            part = self._maps[shard][first - self._starts[shard]:end - self._starts[shard]]
            parts.append(part)
            first += len(part)
        return np.concatenate(parts).astype(np.int64)

    def validation(self, max_bytes: int) -> tuple[list[np.ndarray], int]:
        """(the first validation documents that fit into max_bytes of text, at least one; their UTF-8 bytes).

        Each is int64, BOS ... EOS. Which they are depends on the text alone, so tokenizers can be compared."""
        if not self.index["val"]["documents"]:
            raise cli.UserError(f"{self.folder} has no validation documents; pack at least two different documents")
        n_bytes = np.cumsum(np.load(self.folder / "val_bytes.npy").astype(np.int64))
        n = max(1, int(np.searchsorted(n_bytes, max_bytes, side="right")))
        tokens = np.load(self.folder / "val-00000.npy", mmap_mode="r")
        starts = np.append(np.flatnonzero(tokens == self.index["bos_token_id"]), len(tokens))
        docs = [tokens[a:b].astype(np.int64) for a, b in zip(starts[:n], starts[1:n + 1], strict=True)]
        return docs, int(n_bytes[n - 1])


# ------------------------------------------------------------------------------------------------------- batches

class Loader:
    """Deals windows of several sources into batches, in an order that is a pure function of seed and counters.

    Within a source: a permutation of its windows, drawn anew for each (seed, source, epoch), each window once an
    epoch. Drawing with replacement would be simpler; after one epoch it has never seen 1/e of the data.
    Between sources: exactly by weight. After s draws a source of weight w has been drawn floor(s w) or ceil(s w) times.
    Dice would be off by sqrt(s), and always taking the source that is furthest behind can fall more than one draw
    behind when there are many. So draw k of a source (from 0) may come when s w > k - w and must have come when
    s w = k + 1, and of those that may come the most urgent goes first: earliest deadline first, which misses none
    (Baruah et al. 1996, "Proportionate progress"). In whole numbers, so that nothing rounds.

    >>> loader = Loader.__new__(Loader); loader.shares = [3, 1]; loader.counts = [0, 0]
    >>> [loader.draw() for _ in range(8)]
    [0, 0, 0, 1, 0, 0, 0, 1]
    """

    def __init__(self, sources: list[Shards], weights: list[float], seq_len: int, seed: int):
        for source in sources:
            if source.windows(seq_len) < 1:
                raise cli.UserError(f"{source.folder} has {source.tokens} tokens, less than a window of {seq_len} + 1; "
                                    "pack more text or lower --seq_len")
        if len(weights) != len(sources) or not all(1e-6 <= w < math.inf for w in weights):
            raise cli.UserError(f"weights {weights}: every source needs one, of at least 1e-6")
        exact = [Fraction(w).limit_denominator(10**6) for w in weights]
        common = math.lcm(*(w.denominator for w in exact))
        self.shares = [int(w * common) for w in exact]  # whole numbers in the proportion of the weights
        self.sources, self.seq_len, self.seed = sources, seq_len, seed
        self.counts = [0] * len(sources)  # windows drawn from each source: the whole state
        self._orders: list[tuple[int, np.ndarray]] = [(-1, np.zeros(0))] * len(sources)

    def draw(self) -> int:
        """The source of the next window; counts it."""
        total, drawn = sum(self.shares), sum(self.counts)
        _, source = min((-(-(count + 1) * total // share), i)  # deadline, rounded up
                        for i, (share, count) in enumerate(zip(self.shares, self.counts, strict=True))
                        if count * total < (drawn + 1) * share)
        self.counts[source] += 1
        return source

    def _window(self, source: int, count: int) -> int:
        """Which window of the source is its number `count`: epoch by epoch, each a permutation."""
        n = self.sources[source].windows(self.seq_len)
        epoch, place = divmod(count, n)
        if self._orders[source][0] != epoch:
            self._orders[source] = epoch, np.random.default_rng([self.seed, source, epoch]).permutation(n)
        return int(self._orders[source][1][place])

    def next(self, n: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """The next n windows: (int64 (rows, seq_len + 1), the source of each row (rows,)).

        Every process asks for the whole batch of n and for its own rows of it: all agree on the schedule, however many
        they are, and each reads only what it needs."""
        schedule = []
        for _ in range(n):
            source = self.draw()
            schedule.append((source, self.counts[source] - 1))
        mine = [(source, self._window(source, count)) for source, count in schedule[rows]]
        tokens = [self.sources[source].window(i, self.seq_len) for source, i in mine]
        return np.stack(tokens), np.array([source for source, _ in mine])

    def state_dict(self) -> dict:
        return {"counts": list(self.counts), "shares": list(self.shares), "seed": self.seed, "seq_len": self.seq_len}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`. UserError if it belongs to another order (weights, seed or window length)."""
        for key in ("shares", "seed", "seq_len"):
            if state[key] != getattr(self, key):
                raise cli.UserError(f"the saved data order has {key} {state[key]}, this run {getattr(self, key)}; "
                                    "resume with the same --data, --seed and --seq_len")
        self.counts = list(state["counts"])


# --------------------------------------------------------------------------------------------------- measurement

def bits_per_byte(llama, shards: Shards, seq_len: int, max_bytes: int = 1_000_000, batch: int = 8,
                  device: str = "cpu") -> dict:
    """Bits per byte of whole validation documents: nats of all tokens / UTF-8 bytes of the text / ln 2.

    Each document is fed from its BOS, which is given and not predicted; each later token, EOS too, is predicted once.
    Documents longer than seq_len go on in further windows, which overlap by the one token that is fed again. A loss a
    token would favour the tokenizer that cuts text into more pieces; bytes are the same for all."""
    import torch  # here, because `clean`'s many processes would each spend seconds and 200 MB on it
    docs, n_bytes = shards.validation(max_bytes)
    windows = [doc[a:a + seq_len + 1] for doc in docs for a in range(0, len(doc) - 1, seq_len)]
    windows.sort(key=len)  # neighbours of like length need little padding
    nats = n_tokens = 0
    with torch.no_grad():
        for first in range(0, len(windows), batch):
            rows = windows[first:first + batch]
            tokens = np.full((len(rows), len(rows[-1])), -100)
            for row, window in zip(tokens, rows, strict=True):
                row[:len(window)] = window
            tokens = torch.from_numpy(tokens).to(device)
            loss, count = llama(tokens[:, :-1].clamp(min=0), tokens[:, 1:])  # right padding: causal, needs no mask
            nats, n_tokens = nats + float(loss), n_tokens + int(count)
    return {"bits_per_byte": nats / n_bytes / math.log(2), "loss": nats / n_tokens,
            "tokens": n_tokens, "bytes": n_bytes}


def main(argv: list[str] | None = None) -> None:
    """`clean` and `pack` on the command line; flags as `python data.py pack --help` lists them."""
    parser = cli.Parser(description=__doc__, prog="data.py")
    commands = parser.add_subparsers(required=True, metavar="clean|pack", parser_class=cli.Parser)
    add = commands.add_parser("clean", prog="data.py clean", description=clean.__doc__)
    add.set_defaults(run=clean)
    add.add_argument("--input", nargs="+", required=True, help=f"files or folders of {', '.join(SUFFIXES)} documents")
    add.add_argument("--out", required=True, help="folder for the results; replaced only when the new one is whole")
    add.add_argument("--encoding", choices=["utf-8", "cp949", "euc-kr"], default="utf-8", help="of the input")
    add.add_argument("--lang", choices=["ko", "en"], default="ko", help="language that the rules expect")
    add.add_argument("--profile", choices=["web", "formal", "short"], default="web", help="web pages; edited text; "
                     "reviews and comments: how strict the rules are")
    add.add_argument("--steps", nargs="+", choices=STEPS, help="only these, in this order; none given: all of them")
    add.add_argument("--sample", type=float, default=1.0, help="share of the documents to start from, by hash")
    add.add_argument("--decontaminate", metavar="KOBEST_DIR", help="folder of the benchmark's .tsv files")
    add.add_argument("--workers", type=int, default=1, help="processes; the results are the same for any number")
    add = commands.add_parser("pack", prog="data.py pack", description=pack.__doc__)
    add.set_defaults(run=pack)
    add.add_argument("--input", nargs="+", required=True, help=f"files or folders of {', '.join(SUFFIXES)} documents")
    add.add_argument("--tokenizer", required=True, help="a SentencePiece .model file, or a model folder that has one")
    add.add_argument("--out", required=True, help="folder for the shards; replaced only when the new one is whole")
    add.add_argument("--encoding", choices=["utf-8", "cp949", "euc-kr"], default="utf-8", help="of the input")
    add.add_argument("--val_fraction", type=float, default=0.005, help="share of the documents for validation")
    add.add_argument("--val_bytes", type=int, default=5_000_000, help="at most so many bytes of text for validation")
    add.add_argument("--shard_tokens", type=int, default=100_000_000, help="tokens in a shard file, at most")
    add.add_argument("--workers", type=int, default=1, help="threads that tokenise; the shards are the same for any")
    args = parser.parse_args(argv)
    cli.settings(args)
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
