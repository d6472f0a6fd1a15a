"""Train a Korean SentencePiece model, merge it into the base model's, and measure what that buys.

An English base spells Korean in bytes and single syllables, two to four tokens an eojeol (a word between blanks) too
many. RedWhale (arXiv 2408.11294, section 3.2) appends pieces of a Korean BPE model. Three facts make that simple:

- BPE training needs words and their counts, no more: `train` feeds the counted Hangul runs, not the text.
- A SentencePiece model is a protobuf message, and protobuf messages concatenate: `merge` appends bytes.
- SentencePiece merges the neighbours whose concatenation has the highest score, wherever the piece came from. New
  scores below all the base's, and pieces of Hangul only, leave every text without Hangul segmented as it was.

    python tokenizer.py train  --input out/clean/ko --vocab_size 20000 --out korean.model
    python tokenizer.py merge  --base base.model --korean korean.model --out merged.model
    python tokenizer.py report --tokenizers base.model merged.model --input held_out.jsonl english.jsonl
    python tokenizer.py report --tokenizers base.model --korean korean.model --sizes 8000 16000 --input held_out.jsonl
"""
import argparse
import collections
import dataclasses
import gzip
import io
import itertools
import json
import math
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex
import sentencepiece

import cli

HANGUL = "ㄱ-ㅣㅥ-ㆎ가-힣"  # compatibility jamo (without the invisible filler U+3164) and the 11,172 syllables
HANGUL_RUN = regex.compile(f" ?[{HANGUL}]+")
HANGUL_PIECE = regex.compile(f"▁?[{HANGUL}]+")
LINE = 4096  # characters; longer lines are cut, for SentencePiece drops lines over max_sentence_length in silence

# ---- The file: protobuf, as far as a vocabulary needs it (sentencepiece_model.proto) ------------------------------
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.type
PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3  # fields of the file; below, fields of the two specifications
MODEL_TYPE, VOCAB_SIZE, WHITESPACE_SUFFIX, BYTE_FALLBACK = 3, 4, 24, 35
CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5
BPE = 2


@dataclasses.dataclass
class Piece:
    text: str
    score: float = 0.0
    type: int = NORMAL


@dataclasses.dataclass
class Model:
    """A SentencePiece file: its bytes, its pieces in the order of their ids, and two of its specifications."""
    raw: bytes
    pieces: list[Piece]
    trainer: dict[int, int | bytes]
    normalizer: dict[int, int | bytes]


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the eighth bit says that more follow.

    >>> varint(300).hex()  # 300 = 2 * 128 + 44
    'ac02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, value: int | float | bytes) -> bytes:
    """One field: a key (number and wire type), then the value: varint (0), bytes with their length (2), float32 (5).

    >>> field(PIECES, field(1, "한".encode()) + field(2, -3.0)).hex(" ", -4)  # 한: "Korean"
    '0a0a0a03 ed959c15 000040c0'
    """
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The inverse: (number, value) of every field in turn. ValueError where the bytes are no such message."""
    at = 0

    def number() -> int:
        nonlocal at
        for shift in range(0, 70, 7):
            at += 1
            if at > len(message):
                break
            if message[at - 1] < 128:
                return sum((byte & 127) << 7 * i for i, byte in enumerate(message[at - 1 - shift // 7:at]))
        raise ValueError("a number breaks off")

    while at < len(message):
        key = number()
        wire = key & 7
        if wire == 0:
            yield key >> 3, number()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size = number() if wire == 2 else 8 if wire == 1 else 4
        value = message[at:at + size]
        at += size
        if at > len(message):
            raise ValueError("a field breaks off")
        yield key >> 3, struct.unpack("<f", value)[0] if wire == 5 else value


def parse(raw: bytes) -> Model:
    """Read a file's bytes. A field that comes twice keeps its last value, and two messages in one place are one."""
    model = Model(raw, [], {MODEL_TYPE: 1}, {})
    for number, value in fields(raw):
        if number == PIECES:
            piece = dict(fields(value))
            model.pieces.append(Piece(piece[1].decode(), piece.get(2, 0.0), piece.get(3, NORMAL)))
        elif number == TRAINER_SPEC:
            model.trainer |= dict(fields(value))
        elif number == NORMALIZER_SPEC:
            model.normalizer |= dict(fields(value))
    return model


def read(path: str | Path) -> Model:
    """Read a SentencePiece BPE model from a file or a model directory. UserError, with a reason, for anything else."""
    path = Path(path)
    if path.is_dir():
        if not (path / "tokenizer.model").exists():
            raise cli.UserError(f"{path} holds no tokenizer.model: nanowhale needs a SentencePiece BPE tokenizer "
                                "(Llama 1/2, TinyLlama, Mistral v0.1, SOLAR); Llama 3's kind cannot be merged")
        path /= "tokenizer.model"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    if regex.match(rb"[A-Za-z0-9+/]+=* \d+\n", raw):
        raise cli.UserError(f"{path} is a tiktoken file (Llama 3): its merges are over bytes, so no pieces can be "
                            "appended; take a base with a SentencePiece BPE model (Llama 2, Mistral v0.1, SOLAR)")
    try:
        model = parse(raw)
        assert model.pieces
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise cli.UserError(f"{path} is no SentencePiece model, or a damaged one: fetch or train it again") from None
    if model.trainer[MODEL_TYPE] != BPE:
        kind = {1: "Unigram", 3: "word", 4: "character"}.get(model.trainer[MODEL_TYPE], "unknown")
        raise cli.UserError(f"{path} is a SentencePiece {kind} model; only BPE models can be merged (the scores of "
                            "other kinds mean something else): take a BPE base, train with `tokenizer.py train`")
    return model


def check_base(model: Model, path: str | Path) -> None:
    """UserError where new pieces would not work in this base, or transformers could not be told its ways."""
    reasons = {
        "has no byte fallback, so characters it lacks are lost": not model.trainer.get(BYTE_FALLBACK, 0),
        "writes blanks behind words": model.trainer.get(WHITESPACE_SUFFIX, 0),
        "rewrites characters (its normaliser is not identity: ㅋ becomes another)": model.normalizer.get(CHARSMAP),
        "removes repeated blanks": model.normalizer.get(REMOVE_EXTRA_WHITESPACES, 1),
        "does not write blanks as ▁": not model.normalizer.get(ESCAPE_WHITESPACES, 1),
        "has pieces marked unused": any(piece.type == UNUSED for piece in model.pieces),
        "lacks <unk>, BOS or EOS": sum(piece.type in (UNKNOWN, CONTROL) for piece in model.pieces) < 3,
    }
    for reason, holds in reasons.items():
        if holds:
            raise cli.UserError(f"{path} {reason}: take a Llama 2, Mistral v0.1 or SOLAR tokenizer, or one made by "
                                "`tokenizer.py train --text all`")


def processor(raw: bytes, dummy_prefix: bool = True) -> sentencepiece.SentencePieceProcessor:
    """A processor from a file's bytes; `dummy_prefix=False` switches off the ▁ put before every text, by appending
    an overriding field, so that a piece can be encoded as it stands inside a word."""
    override = b"" if dummy_prefix else field(NORMALIZER_SPEC, field(ADD_DUMMY_PREFIX, 0))
    return sentencepiece.SentencePieceProcessor(model_proto=raw + override)


def load(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Load a .model file, or the tokenizer.model of a model directory."""
    return processor(read(path).raw)


def encode(sp: sentencepiece.SentencePieceProcessor, text: str | list[str], *, bos: bool, eos: bool = False) -> list:
    """Token ids of a text, or a list of them for a list of texts. BOS is the caller's choice, never a default."""
    return sp.encode(text, add_bos=bos, add_eos=eos)


# ---- Train --------------------------------------------------------------------------------------------------------
def texts(paths: Iterable[str | Path], sample_bytes: int | None = None) -> Iterator[str]:
    """Documents of .jsonl, .jsonl.gz and .txt files, or of the folders that hold them; unreadable ones are counted.

    `sample_bytes`: of all files' bytes, about so many are read, as every k-th document of each file. (data.py has the
    full reader; this one serves clean files, and data.py imports this module, so it cannot import data.py.)
    """
    files, bad = [], collections.Counter()
    for path in map(Path, paths):
        names = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [p for p in names if p == path or p.name.endswith((".jsonl", ".jsonl.gz", ".txt"))
                  and p.name != "rejected.jsonl"]
    try:
        step = max(1, round(sum(path.stat().st_size for path in files) / (sample_bytes or math.inf)))
        for path in files:
            whole = path.suffix == ".txt"
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
                for line in itertools.islice([file.read()] if whole else file, 0, None, step):
                    try:
                        text = line.decode() if whole else json.loads(line)["text"]
                        text.encode()  # half a surrogate pair is valid JSON and no text
                        yield text
                    except (ValueError, KeyError, TypeError, AttributeError):
                        bad[str(path)] += 1
    except OSError as error:
        raise cli.UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    for path, count in bad.items():
        print(f"skipped {count} unreadable documents of {path} (data.py clean names them)")


def hangul_counts(documents: Iterable[str]) -> Iterator[str]:
    """The Hangul runs with their counts, as lines of SentencePiece's TSV format. A run takes the one blank before it,
    which becomes ▁; so does the start of a document, where the base puts one.

    >>> list(hangul_counts(["나는 2권 나는", "2권"]))  # 나는: "I"; 2권: "2 volumes"
    [' 나는\\t2', '권\\t2']
    """
    counts = collections.Counter()
    for text in documents:
        counts.update(HANGUL_RUN.findall(" " + text))
    for run, count in counts.most_common():
        yield from (f"{run[i:i + LINE]}\t{count}" for i in range(0, len(run), LINE))


def lines(documents: Iterable[str]) -> Iterator[str]:
    """The lines of documents, none longer than LINE characters."""
    for text in documents:
        for line in text.split("\n"):
            yield from (line[i:i + LINE] for i in range(0, len(line), LINE))


def train(inputs: list[Path], vocab_size: int, text: str = "hangul", character_coverage: float = 0.9999,
          sample_bytes: int | None = None) -> bytes:
    """Train a BPE model. `hangul`: vocab_size pieces of Hangul (and ▁ and <unk>, which a merge leaves behind); `all`: a
    base tokenizer of vocab_size pieces, as Llama's: byte fallback, single digits, <unk> <s> </s> = 0 1 2."""
    options = dict(  # identity: the default normaliser, nmt_nfkc, turns the letter ㅋ (a laugh) into another one
        model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=character_coverage, max_sentence_length=8 * LINE, minloglevel=2)
    if text == "hangul":
        source = hangul_counts(texts(inputs, sample_bytes))
        options |= dict(input_format="tsv", add_dummy_prefix=False, bos_id=-1, eos_id=-1, vocab_size=vocab_size + 2)
    else:
        source = lines(texts(inputs, sample_bytes))
        options |= dict(byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, vocab_size=vocab_size)
    first = next(source, None)
    if first is None:
        raise cli.UserError(f"no {'Hangul' if text == 'hangul' else 'text'} in {' '.join(map(str, inputs))}")
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=itertools.chain([first], source), model_writer=out,
                                                 **options)
    except RuntimeError as error:
        if "ocabulary size" not in str(error):
            raise
        reason = regex.search("[Vv]ocabulary size.*", str(error))[0]
        raise cli.UserError(f"--vocab_size {vocab_size} does not suit this corpus; SentencePiece says: {reason}") from None
    return out.getvalue()


# ---- Merge --------------------------------------------------------------------------------------------------------
def smaller(pieces: list[Piece], size: int) -> list[Piece]:
    """The Hangul pieces that a model of `size` of them would have had, out of a larger one: BPE learns its merges one
    by one and files them in that order, *then* the characters. So the last merges go and the characters stay."""
    hangul = [piece for piece in pieces if HANGUL_PIECE.fullmatch(piece.text)]
    merges = [piece for piece in hangul if len(piece.text) > 1]
    characters = [piece for piece in hangul if len(piece.text) == 1]
    if not len(characters) <= size <= len(hangul):
        raise cli.UserError(f"size {size}: the Korean model can give {len(characters)} (its characters alone) to "
                            f"{len(hangul)} pieces")
    return merges[:size - len(characters)] + characters


def merge(base: Model, korean: list[Piece]) -> bytes:
    """Append the pure-Hangul pieces that the base lacks; returns the bytes of the merged model.

    What a piece is built from is a substring of it, so Hangul as well, so kept: nothing becomes unreachable. Scores
    go on below the base's lowest (Mistral's runs of blanks, at -1e9, are no rank: going on from there, float32 would
    make all scores equal). Steps of 1 are exact in float32 down to -2^24.
    """
    known = {piece.text for piece in base.pieces}
    new = [piece.text for piece in korean if HANGUL_PIECE.fullmatch(piece.text) and piece.text not in known]
    lowest = math.floor(min((p.score for p in base.pieces if p.type == NORMAL and p.score > -1e6), default=0.0))
    assert lowest - len(new) > -2 ** 24
    appended = [field(PIECES, field(1, text.encode()) + field(2, float(lowest - 1 - i))) for i, text in enumerate(new)]
    size = field(TRAINER_SPEC, field(VOCAB_SIZE, len(base.pieces) + len(new)))  # overrides the base's
    return b"".join([base.raw, *appended, size])


# ---- Save, for transformers ---------------------------------------------------------------------------------------
def ranked_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """What SentencePiece does by score, as the list of pairs, best first, that transformers' BPE wants.

    SentencePiece joins any two neighbours that make a piece: every split of a piece is a pair, ranked by the piece's
    score. Equal scores, it joins leftmost first; a list cannot say that. It matters only for runs of one character
    with scores in common (Mistral's blanks, all -1e9), which grow from the left if the longer piece ranks first and,
    of its splits, the one with the longer left part.

    >>> ranked_merges([Piece(t, s) for t, s in [("a", -3), ("aa", -1), ("aaa", -1), ("aaaa", -2)]])
    [('aa', 'a'), ('a', 'aa'), ('a', 'a'), ('aaa', 'a'), ('aa', 'aa'), ('a', 'aaa')]
    """
    normal = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
    pairs = [(-score, -len(text), -cut, text[:cut], text[cut:]) for text, score in normal.items()
             for cut in range(1, len(text)) if text[:cut] in normal and text[cut:] in normal]
    return [pair[3:] for pair in sorted(pairs)]


def tokenizer_json(model: Model) -> dict:
    """The tokenizer in the format of Hugging Face's `tokenizers` library.

    transformers reads tokenizer.model too, but ranks merges by *id*, and so segments runs of blanks otherwise.
    User-defined pieces are cut out before the merges and found whole (ignore_merges), as SentencePiece does; as
    `added_tokens` they would get a ▁ behind them. Control pieces are added tokens: a literal "</s>" in a text is the
    token to transformers and four characters to SentencePiece, the one difference between the two.
    """
    specials = [(i, piece.text) for i, piece in enumerate(model.pieces) if piece.type in (UNKNOWN, CONTROL)]
    own = sorted((p.text for p in model.pieces if p.type == USER_DEFINED), key=len, reverse=True)
    prefix = model.normalizer.get(ADD_DUMMY_PREFIX, 1)
    sp = processor(model.raw)
    bos, bos_id = sp.id_to_piece(sp.bos_id()), sp.bos_id()
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    blanks = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}]
    if prefix:
        blanks.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, text in specials],
        "normalizer": {"type": "Sequence", "normalizers": blanks},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "|".join(map(regex.escape, own))},
                          "behavior": "Isolated", "invert": False} if own else None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, start, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": None, "unk_token": sp.id_to_piece(sp.unk_id()),
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                  "byte_fallback": True, "ignore_merges": bool(own),
                  "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
                  "merges": ranked_merges(model.pieces)},
    }


def save(model_file: str | Path, folder: str | Path) -> None:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json into a model directory.

    The class is PreTrainedTokenizerFast, which takes tokenizer.json as it stands; transformers 5's LlamaTokenizer
    keeps only the merges, and drops the ▁ before a text that begins with a blank.
    """
    model, folder = read(model_file), Path(folder)
    check_base(model, model_file)
    sp = processor(model.raw)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False,
              "bos_token": sp.id_to_piece(sp.bos_id()), "eos_token": sp.id_to_piece(sp.eos_id()),
              "unk_token": sp.id_to_piece(sp.unk_id()), "clean_up_tokenization_spaces": False}
    (folder / "tokenizer.model").write_bytes(model.raw)
    cli.write_json(folder / "tokenizer.json", tokenizer_json(model))
    cli.write_json(folder / "tokenizer_config.json", config)
