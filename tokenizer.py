"""Train a Korean SentencePiece model, merge it into the base's, and measure what that buys.

An English base spells Korean in bytes and single syllables. RedWhale (arXiv 2408.11294, section 3.2) appends the pieces
of a Korean BPE model. Three facts make that a small program:

- BPE training needs words and their counts, no more: `train` feeds counted Hangul runs, not the text.
- A SentencePiece model is a protobuf message, and protobuf messages concatenate: `merge` appends bytes.
- SentencePiece joins the two neighbours whose concatenation has the highest score. Pieces of Hangul only leave every
  text without Hangul as it was; scored downwards from the base's lowest, they are joined in the order they were learnt.

    python tokenizer.py train  --input wiki reviews --balance --vocab_size 20000 --min_count 50 --out korean.model
    python tokenizer.py merge  --base base.model --korean korean.model --out merged.model
    python tokenizer.py report --tokenizers base.model merged.model --input held_out.jsonl english.jsonl
    python tokenizer.py report --tokenizers base.model --korean big.model --sizes 8000 16000 24000 --input new.jsonl
"""
import io
import itertools
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import eq, gt, ne
from pathlib import Path
from typing import NamedTuple

import regex
import sentencepiece

from common import cli
from common.documents import read_documents

HANGUL = "ㄱ-ㅣㅥ-ㆎ가-힣"  # compatibility jamo (without U+3164, an invisible filler) and the 11,172 syllables
LINE = 4096  # characters; longer lines are cut, for SentencePiece drops those over max_sentence_length in silence
HANGUL_RUN, HANGUL_PIECE = regex.compile(f" ?[{HANGUL}]{{1,256}}"), regex.compile(f"▁?[{HANGUL}]+")

# ---- The file: protobuf, as far as a vocabulary needs it. Field numbers of sentencepiece_model.proto ---------------
PIECES, TRAINER, NORMALIZER, MODEL_TYPE, VOCAB_SIZE, DUMMY_PREFIX = 1, 2, 3, 3, 4, 3  # parts, then fields of the latter
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of pieces (5 is unused, 6 a byte)


class Piece(NamedTuple):
    text: str
    score: float
    type: int


class Model(NamedTuple):
    """A SentencePiece file: its bytes, its pieces in the order of their ids, and a processor that uses them."""
    raw: bytes
    pieces: list[Piece]
    sp: sentencepiece.SentencePieceProcessor


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow: 300 = 2 · 128 + 44 is ac 02."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: int | float | bytes) -> bytes:
    """One field: a key (number and wire type), then the value: varint (0), bytes after their length (2), float32 (5).

    >>> field(PIECES, field(1, "한".encode()) + field(2, -3.0)).hex(" ", -2)  # 한: "Korean"
    '0a0a 0a03 ed95 9c15 0000 40c0'
    """
    wire, body = ((2, varint(len(value)) + value) if isinstance(value, bytes) else
                  (5, struct.pack("<f", value)) if isinstance(value, float) else (0, varint(value)))
    return varint(number << 3 | wire) + body


def fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The inverse: (number, value) of every field. ValueError or LookupError where the bytes are no such message."""
    stream = io.BytesIO(message)
    number = lambda: byte if (byte := stream.read(1)[0]) < 128 else byte - 128 + (number() << 7)
    while stream.tell() < len(message):
        key, wire = divmod(number(), 8)
        size = 0 if wire == 0 else number() if wire == 2 else {1: 8, 5: 4}[wire]
        value = stream.read(size)
        if len(value) < size:
            raise ValueError("a field breaks off")
        yield key, number() if wire == 0 else struct.unpack("<f", value)[0] if wire == 5 else value


def parse(raw: bytes) -> tuple[list[Piece], int]:
    """The pieces in a file's bytes, and the model type (2 is BPE). Of a field that comes twice, the last one counts."""
    parts = [(key, dict(fields(value))) for key, value in fields(raw) if key in (PIECES, TRAINER)]
    pieces = [Piece(p[1].decode(), p.get(2, 0.0), p.get(3, NORMAL)) for key, p in parts if key == PIECES]
    if not pieces:
        raise ValueError("no pieces")
    return pieces, [1, *(p[MODEL_TYPE] for key, p in parts if key == TRAINER and MODEL_TYPE in p)][-1]


def processor(raw: bytes, dummy_prefix: bool = True) -> sentencepiece.SentencePieceProcessor:
    """A processor from a file's bytes; without dummy_prefix, which puts ▁ before a text, to encode a part of a word."""
    override = b"" if dummy_prefix else field(NORMALIZER, field(DUMMY_PREFIX, 0))
    return sentencepiece.SentencePieceProcessor(model_proto=raw + override)


def read(path: str | Path, base: bool = False) -> Model:
    """Read a SentencePiece BPE model: a file, or a model directory's. UserError, with the reason, for other kinds, and
    with `base` for a model that cannot take new pieces, or whose ways tokenizer.json cannot follow."""
    path = Path(path) / "tokenizer.model" if Path(path).is_dir() else Path(path)
    instead = "take a SentencePiece BPE model (Llama 2, TinyLlama, Mistral v0.1, SOLAR, or `tokenizer.py train`)"
    try:
        raw = path.read_bytes()
        if regex.match(rb"[\w+/]+=* \d+\n", raw):
            raise cli.UserError(f"{path} is tiktoken's format (Llama 3), which has no pieces to add to: {instead}")
        (pieces, kind), sp = parse(raw), processor(raw)
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}; if it never was there, {instead}") from None
    except (ValueError, LookupError, AttributeError, TypeError, RuntimeError):
        raise cli.UserError(f"{path} is no SentencePiece model, or a damaged one: fetch or train it again") from None
    if kind != 2:
        name = {1: "Unigram", 3: "word"}.get(kind, "character")
        raise cli.UserError(f"{path} is a SentencePiece {name} model; its scores are no merge ranks: {instead}")
    probe = "  ㅋ  ﬁ\n"  # ㅋ and ﬁ: the default normaliser, nmt_nfkc, replaces them by other letters
    if base and (sp.decode(sp.encode(probe)) != probe or any(map(sp.is_unused, range(len(sp))))):
        raise cli.UserError(f"{path} changes or loses text (a normaliser other than identity, repeated blanks removed, "
                            f"no byte fallback, or unused pieces): {instead}")
    return Model(raw, pieces, sp)


def load(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Load a .model file, or the tokenizer.model of a model directory."""
    return read(path).sp


def encode(sp: sentencepiece.SentencePieceProcessor, text: str | list[str], *, bos: bool, eos: bool = False) -> list:
    """Token ids of a text, or a list of them for a list of texts. BOS is the caller's choice, never a default."""
    return sp.encode(text, add_bos=bos, add_eos=eos)


# ---- Train ---------------------------------------------------------------------------------------------------------
def texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The texts of documents (common/documents.py). What cannot be read is skipped, and counted."""
    bad, found = Counter(), read_documents(paths, rejected=lambda record: bad.update([record["reason"]]))
    yield from (document["text"] for document in cli.progress(found, "read", " documents"))
    if bad:
        print(f"skipped {bad.total()} documents that cannot be read, which data.py clean names: {dict(bad)}")


def hangul_counts(documents: Iterable[str]) -> Counter:
    """The Hangul runs, each with the blank before it (as which a document's start counts too), and their counts. Pieces
    across blanks would save more tokens; but then a prompt's end is no token's end, and choices could not be scored.

    >>> hangul_counts(["나는 2권 나는", "2권"])  # 나는: "I"; 2권: "2 volumes"
    Counter({' 나는': 2, '권': 2})
    """
    return Counter(run for text in documents for run in HANGUL_RUN.findall(" " + text))


def prune(raw: bytes, runs: Counter, size: int, least: int) -> bytes:
    """Cut a model to the first `size` pieces of Hangul that occur `least` times in the runs, as do then their parts."""
    pieces, found = {p.text: p for p in parse(raw)[0] if HANGUL_PIECE.fullmatch(p.text)}, Counter()
    for word, n in cli.progress([(run.replace(" ", "▁"), n) for run, n in runs.items()], "count pieces", " runs"):
        for a, b in itertools.combinations(range(len(word) + 1), 2):
            if word[a:b] in pieces:
                found[word[a:b]] += n
    often = [piece for text, piece in pieces.items() if found[text] >= least]
    if len(often) < size:
        raise cli.UserError(f"--min_count {least}: only {len(often)} pieces of the first {len(pieces)} occur as often")
    keep = {"<unk>", "▁", *(piece.text for piece in truncated(often, size))}
    return b"".join(field(key, value) for key, value in fields(raw) if key != PIECES or dict(fields(
        value))[1].decode() in keep) + field(TRAINER, field(VOCAB_SIZE, len(keep)))


def train(inputs: list[str], vocab_size: int, text: str, character_coverage: float, balance: bool = False,
          min_count: int = 1, also: Iterable[str] = ()) -> bytes:
    """Train a BPE model; returns the file's bytes. UserError where vocab_size does not suit the corpus.

    `hangul`: vocab_size pieces of Hangul, beside <unk> and ▁, which no merge takes over. With `balance` the counts of
    each input are raised until all are as long. `all`: a base like Llama's: byte fallback, split digits, runs of ▁."""
    if text == "hangul":
        counts = [hangul_counts(texts([path])) for path in inputs]
        letters = [sum(len(run) * n for run, n in one.items()) if balance else 1 for one in counts]
        runs, size = sum(counts, hangul_counts(texts(also))), vocab_size * (3 if min_count > 1 else 2) // 2
        options = dict(vocab_size=size + 2, input_format="tsv", add_dummy_prefix=False, bos_id=-1, eos_id=-1)
        raised = (Counter({run: round(n * max(letters) / length) for run, n in one.items()})
                  for one, length in zip(counts, letters, strict=True))
        lines = [f"{run}\t{n}" for run, n in sum(raised, Counter()).most_common()]
    elif balance or min_count > 1 or also:
        raise cli.UserError("--balance, --min_count and --also are for --text hangul")
    else:
        options = dict(vocab_size=vocab_size, byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True)
        lines = [line[i:i + LINE] for text in texts(inputs) for line in text.split("\n")
                 for i in range(0, len(line), LINE)]
    if not lines:
        raise cli.UserError(f"--input {' '.join(inputs)} holds no {'Hangul' if text == 'hangul' else 'text'}")
    print(f"{len(lines):,} lines for SentencePiece, which says nothing while it learns: a few seconds for 1,000 pieces")
    try:
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, model_type="bpe", normalization_rule_name="identity",
            remove_extra_whitespaces=False, character_coverage=character_coverage, max_sentence_length=8 * LINE,
            minloglevel=2, **options)
    except RuntimeError as error:
        raise cli.UserError(f"--vocab_size {vocab_size} or --character_coverage misfits the corpus; SentencePiece "
                            f"(its size: {options['vocab_size']}) says: {str(error).partition(') ')[2]}") from None
    return prune(out.getvalue(), runs, vocab_size, min_count) if min_count > 1 else out.getvalue()


# ---- Merge ---------------------------------------------------------------------------------------------------------
def truncated(pieces: list[Piece], size: int) -> list[Piece]:
    """The Hangul pieces that a model of `size` of them would have had, from a larger model: BPE files its merges in the
    order in which it learns them, *then* the single characters. So the last merges go and the characters stay."""
    hangul = [piece for piece in pieces if HANGUL_PIECE.fullmatch(piece.text)]
    characters = [piece for piece in hangul if len(piece.text) == 1]
    if not len(characters) <= size <= len(hangul):
        raise cli.UserError(f"--sizes {size}: choose from {len(characters)} (only characters) to {len(hangul)} (all)")
    return [piece for piece in hangul if len(piece.text) > 1][:size - len(characters)] + characters


def merge(base: Model, korean: list[Piece]) -> bytes:
    """Append the pure-Hangul pieces that the base lacks; returns the file's bytes. A piece's parts are Hangul
    too, so it is unreachable only where the base joins Hangul otherwise (`report` names it). Scores go on below the
    base's lowest rank; Mistral's -1e9 for runs of blanks is no rank: from there float32 makes all new scores equal,
    while steps of 1 are exact down to -2^24. The last field overrides vocab_size.

    >>> base = [Piece("▁▁", -1e9, NORMAL), Piece("th", -6.0, NORMAL), Piece("e", -7.0, NORMAL)]
    >>> korean = [Piece(text, -rank, NORMAL) for rank, text in enumerate(["한국", "e", "2권", "한"])]  # 한국: Korea
    >>> [(piece.text, piece.score) for piece in parse(merge(Model(b"", base, None), korean))[0]]  # -7 - 1, then -1 each
    [('한국', -8.0), ('한', -9.0)]
    """
    known = {piece.text for piece in base.pieces}
    new = [piece.text for piece in korean if HANGUL_PIECE.fullmatch(piece.text) and piece.text not in known]
    lowest = min((p.score for p in base.pieces if p.type == NORMAL and p.score > -1e6), default=0.0) // 1
    appended = [field(PIECES, field(1, text.encode()) + field(2, lowest - 1 - i)) for i, text in enumerate(new)]
    return base.raw + b"".join(appended) + field(TRAINER, field(VOCAB_SIZE, len(base.pieces) + len(new)))


# ---- Save, for transformers ----------------------------------------------------------------------------------------
def ranked_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """SentencePiece's scores as the list of pairs, best first, that transformers' BPE wants: every split of a piece, as
    SentencePiece joins any neighbours that make one; of equal scores the leftmost, which no list can say. Equal are, in
    practice, runs of one character (Mistral's blanks), and those grow from the left if the longer piece ranks first.

    >>> ranked_merges([Piece(t, s, NORMAL) for t, s in dict(a=-3, aa=-1, aaa=-1, ab=-2, b=-4).items()])
    [('a', 'aa'), ('aa', 'a'), ('a', 'a'), ('a', 'b')]
    """
    normal = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
    pairs = [(-score, -len(text), text[:cut], text[cut:]) for text, score in normal.items()
             for cut in range(1, len(text)) if text[:cut] in normal and text[cut:] in normal]
    return [pair[2:] for pair in sorted(pairs)]


def tokenizer_json(model: Model) -> dict:
    """The model in the format of Hugging Face's `tokenizers`. (From tokenizer.model transformers would rank merges by
    id, and cut runs of blanks otherwise.) User-defined pieces are split off first and found whole (ignore_merges); as
    added tokens they would get a ▁ after them. Control pieces are added tokens: the one difference between the two is
    that a literal "</s>" in a text is EOS to transformers, as with every Llama, and four characters to SentencePiece.
    """
    own = sorted((piece.text for piece in model.pieces if piece.type == USER_DEFINED), key=len, reverse=True)
    split = dict(type="Split", pattern={"Regex": "|".join(map(regex.escape, own))}, behavior="Isolated", invert=False)
    prefix = "".join(model.sp.encode("a", out_type=str)).startswith("▁")  # add_dummy_prefix
    bos_id, bos = model.sp.bos_id(), model.sp.id_to_piece(model.sp.bos_id())
    start, a, b = {"SpecialToken": {"id": bos, "type_id": 0}}, *({"Sequence": {"id": i, "type_id": 0}} for i in "AB")
    return dict(
        version="1.0",
        added_tokens=[dict(id=i, content=piece.text, special=True, normalized=False, single_word=False, lstrip=False,
                           rstrip=False) for i, piece in enumerate(model.pieces) if piece.type in (UNKNOWN, CONTROL)],
        normalizer=dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="▁")] * prefix + [
            dict(type="Replace", pattern={"String": " "}, content="▁")]),
        pre_tokenizer=split if own else None,
        post_processor=dict(type="TemplateProcessing", single=[start, a], pair=[start, a, start, b],
                            special_tokens={bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}),
        decoder=dict(type="Sequence", decoders=[
            dict(type="Replace", pattern={"String": "▁"}, content=" "), dict(type="ByteFallback"), dict(type="Fuse"),
            *[dict(type="Strip", content=" ", start=1, stop=0)] * prefix]),
        model=dict(type="BPE", byte_fallback=True, fuse_unk=True, ignore_merges=bool(own),
                   unk_token=model.sp.id_to_piece(model.sp.unk_id()), merges=ranked_merges(model.pieces),
                   vocab={piece.text: i for i, piece in enumerate(model.pieces)}))


def save(model_file: str | Path, folder: str | Path) -> None:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json into a model directory. PreTrainedTokenizerFast
    takes tokenizer.json as it is; transformers 5's LlamaTokenizer puts no ▁ before a text that begins with a blank."""
    model, folder = read(model_file, base=True), Path(folder)
    bos, eos, unk = map(model.sp.id_to_piece, (model.sp.bos_id(), model.sp.eos_id(), model.sp.unk_id()))
    (folder / "tokenizer.model").write_bytes(model.raw)
    cli.write_json(folder / "tokenizer.json", tokenizer_json(model))
    cli.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, "bos_token": bos, "eos_token": eos, "unk_token": unk})


# ---- Report --------------------------------------------------------------------------------------------------------
def measure(processors: list[sentencepiece.SentencePieceProcessor], documents: Iterator[str]) -> list[dict]:
    """Counts of the documents under each tokenizer, and what differs from the first, the base: lines without Hangul
    that are segmented otherwise, documents that no longer decode to themselves. Fertility: tokens an eojeol (word)."""
    size, counts = Counter(), [Counter() for _ in processors]
    for batch in iter(lambda: list(itertools.islice(documents, 500)), []):
        other = [line for text in batch for line in text.split("\n") if not regex.search(f"[{HANGUL}]", line)]
        size.update(documents=len(batch), characters=sum(map(len, batch)), bytes=sum(len(t.encode()) for t in batch),
                    eojeol=sum(len(text.split()) for text in batch), lines_without_hangul=len(other))
        all_ids = [encode(sp, batch, bos=False) for sp in processors]
        lines = [encode(sp, other, bos=False) for sp in processors]
        right = [list(map(eq, sp.decode(ids), batch)) for sp, ids in zip(processors, all_ids, strict=True)]
        for i, count in enumerate(counts):
            count.update(tokens=sum(map(len, all_ids[i])), lines_changed=sum(map(ne, lines[0], lines[i])),
                         round_trips_lost=sum(map(gt, right[0], right[i])))
    if not counts[0]["tokens"]:
        raise cli.UserError("--input holds a file without text: nothing to measure")
    return [dict(token_ratio=n["tokens"] / counts[0]["tokens"], tokens_per_character=n["tokens"] / size["characters"],
                 bytes_per_token=size["bytes"] / n["tokens"], fertility=n["tokens"] / max(1, size["eojeol"]), **n,
                 **size) for n in counts]


def report(models: dict[str, Model], inputs: list[str]) -> dict:
    """Measure every input (a file or a folder) under every tokenizer, the base's first; print and return tables."""
    def table(title: str, rows: dict[str, dict]) -> dict:
        columns = {key: max(11, len(key)) for key, value in rows[base].items() if isinstance(value, int | float)}
        print(f"\n{title:30}", *(f"{key:>{width}}" for key, width in columns.items()))
        for name, row in rows.items():
            print(f"{name[-30:]:30}", *(f"{row[key]:{width},{'.4f' * isinstance(row[key], float)}}"
                                        for key, width in columns.items()))
        return rows

    base, sps, summary = next(iter(models)), [model.sp for model in models.values()], {}
    found = {path: table(path, dict(zip(models, measure(sps, texts([path])), strict=True))) for path in inputs}
    first = len(models[base].pieces)
    for name, (raw, pieces, _) in models.items():
        sp = processor(raw, dummy_prefix=False)
        cuts = {piece.text: encode(sp, piece.text, bos=False) for piece in pieces[first:]}
        lost = {text: " ".join(map(sp.id_to_piece, ids)) for text, ids in cuts.items() if len(ids) > 1}
        summary[name] = dict(pieces=len(pieces), added=len(pieces) - first, embedding_growth=len(pieces) / first,
                             mean_token_ratio=sum(rows[name]["token_ratio"] for rows in found.values()) / len(found),
                             unreachable=len(lost), unreachable_pieces=lost,
                             inputs={path: rows[name] for path, rows in found.items()})
        for text, cut in lost.items():
            print(f"{name}: {text} is unreachable: by the base's ranks its text is cut as {cut}")
    return table("all inputs", summary)


def suggest(rows: dict[str, dict]) -> str:
    """Of rising sizes, the knee (Satopaa et al. 2011): the one furthest below the straight line from the first to the
    last. Up to it a new row saves more tokens than the average row of the range, beyond it less."""
    x, y = ([row[key] for row in rows.values()] for key in ("embedding_growth", "mean_token_ratio"))
    saved, names = lambda a, b: (y[a] - y[b]) / (x[b] - x[a] or 1), list(rows)
    best = min(range(len(x)), key=lambda i: y[i] + saved(0, -1) * x[i])
    return (f"{names[best]}, the knee: rows worth 1 % of the base's save {saved(0, best):.2f} % of its tokens from "
            f"{names[0]} to there, {saved(best, -1):.2f} % from there to {names[-1]}")


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__, prog="tokenizer.py")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    command = lambda name, what, example: commands.add_parser(
        name, help=what, description=f"{what}\n\n    python tokenizer.py {name} {example}").add_argument
    flag = command("train", "Train a BPE model, on Hangul runs or on everything.",
                   "--input wiki reviews --balance --vocab_size 20000 --min_count 50 --out korean.model")
    flag("--input", nargs="+", required=True, help=".jsonl, .jsonl.gz or .txt files, or folders of them")
    flag("--vocab_size", type=int, default=20000, help="pieces of Hangul; with --text all, pieces in all")
    flag("--out", required=True, help="the .model file to write")
    flag("--text", choices=("hangul", "all"), default="hangul", help="Hangul runs, to be merged; or all, for a base")
    flag("--character_coverage", type=float, default=0.9999, help="share of characters that get a piece of their own")
    flag("--balance", action="store_true", help="let every --input count alike, whatever its size (Hangul)")
    flag("--min_count", type=int, default=1, help="replace pieces that occur less often in the files (Hangul)")
    flag("--also", nargs="+", default=[], help="files that --min_count looks into too; no merges are learnt from them")
    flag = command("merge", "Append a Korean model's Hangul pieces to a base's.",
                   "--base BASE --korean korean.model --out merged.model")
    flag("--base", required=True, help="the base's tokenizer.model, or its model directory")
    flag("--korean", required=True, help="what `train` wrote")
    flag("--out", required=True, help="the .model file to write")
    flag = command("report", "Compare tokenizers with the base's: tokens, what changed, what is out of reach.",
                   "--tokenizers BASE merged.model --input held_out.jsonl english.jsonl")
    flag("--tokenizers", nargs="+", required=True, help=".model files or model directories, the base's first")
    flag("--input", nargs="+", required=True, help="held-out documents; each file or folder gets its table")
    flag("--korean", help="a large Korean model, from which --sizes are cut")
    flag("--sizes", type=int, nargs="+", default=[], help="numbers of its pieces to merge; each becomes a row")
    flag("--out", help="a JSON file for the numbers")
    args = parser.parse_args(argv)
    settings = cli.settings(args)
    if args.command == "report":
        if bool(args.sizes) != bool(args.korean):
            raise cli.UserError("--sizes and --korean go together: the sizes are cut from that Korean model")
        models = {path: read(path) for path in args.tokenizers}
        for size in sorted(set(args.sizes)):
            raw = merge(models[args.tokenizers[0]], truncated(read(args.korean).pieces, size))
            models[f"{size} pieces"] = Model(raw, parse(raw)[0], processor(raw))
        result = {"settings": settings, "tokenizers": report(models, args.input)}
        if len(rows := dict(list(result["tokenizers"].items())[len(args.tokenizers):])) > 2:
            print("suggested size:", result.setdefault("suggested", suggest(rows)))
        if args.out:
            cli.write_json(args.out, result)
        return
    raw = merge(read(args.base, base=True), read(args.korean).pieces) if args.command == "merge" else train(
        args.input, args.vocab_size, args.text, args.character_coverage, args.balance, args.min_count, args.also)
    with cli.new_file(args.out) as temporary:
        temporary.write_bytes(raw)
    print(f"{args.out}: {len(parse(raw)[0])} pieces")


if __name__ == "__main__":
    cli.run(main)
