"""Read and write the pieces in SentencePiece's model file.

The file is one protobuf message. A message is a sequence of fields, and a field is a key and a
value. The key is an integer, 8 times the field's number plus the wire type, which says how the
value is written:

    0  an integer   7 bits per byte, the lowest first; the top bit says that more follow (a varint)
    1  8 bytes      not used here
    2  bytes        their number, as a varint, and the bytes: a text, or a nested message
    5  float32      4 bytes, little-endian

A field may occur twice. If it is a list, like the pieces, all occurrences count; otherwise the last
one does. So messages can be concatenated: pieces are added by appending bytes, and a setting is
changed by appending it again.

Field numbers are those of sentencepiece_model.proto (https://github.com/google/sentencepiece).
"""
import dataclasses
import hashlib
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import sentencepiece

from common import cli, special_tokens

# Wire types.
VARINT = 0
EIGHT_BYTES = 1
BYTES = 2
FLOAT32 = 5
LONGEST_VARINT = 10  # bytes: 64 bits, seven at a time

# Fields of the file.
PIECES = 1
TRAINER = 2
NORMALIZER = 3

# Fields of a piece.
TEXT = 1
SCORE = 2
TYPE = 3

# Fields of the trainer's and the normaliser's settings.
MODEL_TYPE = 3
VOCAB_SIZE = 4
DUMMY_PREFIX = 3  # is ▁ put before every text?

# Types of pieces. (5 is an unused piece.)
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
BYTE = 6

# Model types, by their names in messages. Only the scores of BPE are ranks.
BPE = 2
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}

# The end of every refusal.
INSTEAD = (
    "take a SentencePiece BPE model (Llama 2, TinyLlama, Mistral v0.1, SOLAR, "
    "or `tokenizer.py train`), or Llama 3's tokenizer.json")


class Piece(NamedTuple):
    """An entry of the vocabulary: its text, with ▁ for a space; its score; NORMAL, CONTROL, …"""

    text: str
    score: float
    type: int

    def __str__(self) -> str:
        return f"{self.text!r} (score {self.score:g})"


@dataclasses.dataclass(eq=False, repr=False)
class Model:
    """A SentencePiece model. It has the methods of byte_level.ByteLevel; only tokenizer.py
    distinguishes the two."""

    raw: bytes  # the file
    pieces: list[Piece]  # in the order of their ids: the file's, then those of `added`
    sp: sentencepiece.SentencePieceProcessor
    # Tokens that the directory adds after the file's pieces: {id: description}, as in
    # special_tokens.added_tokens. No text is encoded as one, so the hash is that of the file.
    added: dict[int, dict] = dataclasses.field(default_factory=dict)
    # More such tokens, whose ids are beyond the rows of the embedding.
    without_row: dict[int, dict] = dataclasses.field(default_factory=dict)
    # The name for messages: the file that it was read from.
    source: str = "the tokenizer"

    def __post_init__(self):
        self.size = len(self.pieces)
        self.sha256 = hashlib.sha256(self.raw).hexdigest()
        self.controls = {}
        for i, piece in enumerate(self.pieces):
            if piece.type == CONTROL:
                self.controls[piece.text] = i

    def with_added(self, tokens: dict[int, dict]) -> "Model":
        """This vocabulary with tokens after its last piece, {id: description}."""
        pieces = list(self.pieces)
        for token in tokens.values():
            pieces.append(Piece(token["content"], 0.0, CONTROL))
        return dataclasses.replace(self, pieces=pieces, added={**self.added, **tokens})

    @property
    def bos(self) -> int | None:
        """The id of BOS, if there is one."""
        i = self.sp.bos_id()
        return i if i >= 0 else None

    @property
    def eos(self) -> int | None:
        """The id of EOS, if there is one."""
        i = self.sp.eos_id()
        return i if i >= 0 else None

    @cached_property
    def adds_space(self) -> bool:
        """Is a space put before every text (add_dummy_prefix)? Never in byte-level BPE."""
        return self.sp.encode("a", out_type=str)[0].startswith("▁")

    @cached_property
    def inside_words(self) -> sentencepiece.SentencePieceProcessor:
        """A processor for parts of words: no ▁ is put before a text."""
        return processor(self.raw, dummy_prefix=False)

    def encode(
        self,
        text: str | list[str],
        *,
        bos: bool,
        eos: bool = False,
        workers: int = -1,
    ) -> list:
        """Token ids of a text, or a list of them for a list of texts.

        bos, eos: put these around each text; UserError if the model has none. workers: threads for
        a list, -1 for one per core."""
        for name, is_wanted, i in (("BOS", bos, self.bos), ("EOS", eos, self.eos)):
            if is_wanted and i is None:
                raise cli.UserError(
                    f"{self.source} has no {name} piece, but a document is BOS, text, EOS: take "
                    f"the tokenizer of a base that has both, or what `tokenizer.py merge` made "
                    f"from it")
        return self.sp.encode(text, add_bos=bos, add_eos=eos, num_threads=workers)

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text that follows a special token: no space is put before it."""
        return self.inside_words.encode(text)

    def decode(self, ids: list) -> str | list[str]:
        """The text of token ids, or a list of texts for a list of lists. Control tokens add
        nothing."""
        if ids and isinstance(ids[0], list):
            return [self.decode(row) for row in ids]
        return self.sp.decode([i for i in ids if i not in self.added])

    def bytes_of(self, i: int) -> bytes:
        """What piece i adds to a text; nothing if it is a control piece."""
        piece = self.pieces[i]
        if piece.type in (UNKNOWN, CONTROL):
            return b""
        if piece.type == BYTE:
            return bytes([int(piece.text[1:-1], 16)])  # <0xED>
        return piece.text.replace("▁", " ").encode()

    def split(self, piece: bytes) -> list[int]:
        """The pieces of a part of a word."""
        return self.encode_inside(piece.decode())


def varint(value: int) -> bytes:
    """An integer of 0 or more as bytes.

    >>> varint(300).hex(" ")  # 300 = 2 · 128 + 44: first 44 + 128, because more follows; then 2
    'ac 02'
    """
    digits = []
    while value >= 128:
        digits.append(value % 128 + 128)
        value //= 128
    digits.append(value)
    return bytes(digits)


def read_varint(message: bytes, start: int) -> tuple[int, int]:
    """The integer whose bytes begin at `start`, and where they end. ValueError without an end.

    >>> read_varint(b"\\xac\\x02", 0)
    (300, 2)
    """
    value = 0
    for i, byte in enumerate(message[start:start + LONGEST_VARINT]):
        value += byte % 128 * 128**i
        if byte < 128:
            return value, start + i + 1
    raise ValueError("an integer breaks off")


def field(number: int, value: int | float | bytes) -> bytes:
    """One field as bytes. The Python type of the value determines the wire type.

    >>> field(PIECES, field(TEXT, "한".encode()) + field(SCORE, -3.0)).hex(" ", -2)  # 한: "Korean"
    '0a0a 0a03 ed95 9c15 0000 40c0'
    """
    if isinstance(value, bytes):
        wire = BYTES
        body = varint(len(value)) + value
    elif isinstance(value, float):
        wire = FLOAT32
        body = struct.pack("<f", value)
    else:
        wire = VARINT
        body = varint(value)
    return varint(number * 8 + wire) + body


def fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The inverse of `field`, for every field of a message: (number, value).

    ValueError if the bytes are not a message.

    >>> list(fields(field(SCORE, -3.0) + field(TYPE, 1)))
    [(2, -3.0), (3, 1)]
    """
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        number, wire = divmod(key, 8)
        if wire == VARINT:
            value, at = read_varint(message, at)
            yield number, value
            continue

        # The other wire types are runs of bytes, and differ in their length.
        if wire == BYTES:
            size, at = read_varint(message, at)
        elif wire == FLOAT32:
            size = 4
        elif wire == EIGHT_BYTES:
            size = 8
        else:
            raise ValueError(f"there is no wire type {wire}")
        value = message[at:at + size]
        if len(value) < size:
            raise ValueError("a field breaks off")
        at += size
        if wire == FLOAT32:
            value = struct.unpack("<f", value)[0]
        yield number, value


def inner_fields(value: int | float | bytes) -> dict[int, int | float | bytes]:
    """{number: value} of a nested message. ValueError if it is not a message."""
    if not isinstance(value, bytes):
        raise ValueError(f"{value} is where a message should be")
    return dict(fields(value))  # if a field occurs twice, the last one counts


def parse_piece(value: int | float | bytes) -> Piece:
    """A piece, from its message. ValueError if it has no text."""
    piece = inner_fields(value)
    text = piece.get(TEXT)
    if not isinstance(text, bytes):
        raise ValueError("a piece has no text")
    return Piece(text.decode(), piece.get(SCORE, 0.0), piece.get(TYPE, NORMAL))


def parse(raw: bytes) -> tuple[list[Piece], int]:
    """The pieces in a file's bytes, in the order of their ids, and the model type.

    ValueError if the bytes are not a message, or have no pieces."""
    pieces = []
    model_type = 1  # the default of a file without this setting
    for number, value in fields(raw):
        if number == PIECES:
            pieces.append(parse_piece(value))
        elif number == TRAINER:
            model_type = inner_fields(value).get(MODEL_TYPE, model_type)
    if not pieces:
        raise ValueError("no pieces")
    return pieces, model_type


def processor(raw: bytes, dummy_prefix: bool = True) -> sentencepiece.SentencePieceProcessor:
    """A processor from the bytes of a model file.

    With dummy_prefix=False no ▁ is put before a text; this is for parts of words."""
    if not dummy_prefix:
        raw += field(NORMALIZER, field(DUMMY_PREFIX, 0))
    return sentencepiece.SentencePieceProcessor(model_proto=raw)


def read(path: str | Path, base: bool = False) -> Model:
    """Read a SentencePiece model: a .model file, or a model directory with its added tokens.

    UserError, with the reason, if the file is missing, damaged or of another kind; with `base` also
    if the model cannot take new pieces, or tokenizer.json cannot describe it."""
    file = model_file(path)
    raw = cli.read_bytes(file)
    try:
        pieces, _ = parse(raw)
        sp = processor(raw)
    except (ValueError, RuntimeError):  # ours, and SentencePiece's
        raise cli.UserError(
            f"{file} is not a SentencePiece model, or it is damaged: fetch or train it again "
            f"(with a byte-level --base, `train` writes another kind of file)"
        ) from None
    model = Model(raw, pieces, sp, source=str(file))
    if base and (reason := why_no_base(model)):
        raise cli.UserError(f"{file} {reason}: {INSTEAD}")
    if Path(path).is_dir():
        model = with_added_tokens(model, Path(path))
    return model


def with_added_tokens(model: Model, folder: Path) -> Model:
    """A model with the tokens that its directory adds after its pieces.

    UserError if there are words among them, because transformers segments texts with such words
    differently; or if the directory's files give a piece another text."""
    texts = [piece.text for piece in model.pieces]
    # A token with two texts would be written under that of the piece, and the other would lose its
    # row.
    if found := special_tokens.other_name(folder, texts):
        i, name = found
        raise cli.UserError(
            f"{folder}: tokenizer.model calls id {i} {texts[i]!r}, and the files beside it "
            f"(tokenizer.json, tokenizer_config.json or added_tokens.json) {name!r}: take the "
            f"tokenizer.model that was saved with them")
    tokens = special_tokens.added_tokens(folder, texts)
    if word := special_tokens.word_among(tokens):
        raise cli.UserError(
            f"{folder} cannot be used: add_tokens has put words beside its tokenizer.model, "
            f"{word!r} among them, which transformers would cut out of a text: {INSTEAD}")

    # Llama 2's <pad> has id 32000, but the model has 32,000 rows. Growing gives it one.
    rows = special_tokens.rows_of(folder)
    model = model.with_added({i: token for i, token in tokens.items() if i < rows})
    model.without_row = {i: token for i, token in tokens.items() if i >= rows}
    return model


def why_no_base(model: Model) -> str | None:
    """Why a model cannot take new pieces, or tokenizer.json cannot describe it; None if it can."""
    if reason := why_no_ranks(model):
        return reason
    if not keeps_text(model.sp):
        return ("changes or loses text (a normaliser other than identity, repeated spaces removed, "
                "no byte fallback, or unused pieces)")
    if None in (model.bos, model.eos):
        return "has no piece for BOS, or none for EOS, between which documents are packed"
    return None


def why_no_ranks(model: Model) -> str | None:
    """Why a model's scores are not the ranks of merges; None if they are."""
    _, model_type = parse(model.raw)
    if model_type == BPE:
        return None
    name = MODEL_TYPES.get(model_type, "unknown")
    return f"is a SentencePiece {name} model, whose scores are not the ranks of merges"


def model_file(path: str | Path) -> Path:
    """The .model file of a path: the path itself, or the file in a model directory. UserError if
    there is none."""
    path = Path(path)
    if not path.exists():
        raise cli.UserError(f"{path} does not exist; give a .model file or a model directory")
    if not path.is_dir():
        return path
    file = path / "tokenizer.model"
    if file.exists():
        return file

    # The user may have given a run's folder instead of the model inside.
    inside = path / "model"
    if inside.is_dir():
        raise cli.UserError(
            f"{path} is the folder of a run, without a tokenizer: the model is in {inside}")
    # Meta's own layout of Llama 3.
    original = path / "original" / "tokenizer.model"
    if original.is_file():
        raise cli.UserError(
            f"{path} holds no tokenizer.json and no tokenizer.model, but {original}: give that "
            f"file, or copy it into {path}")
    raise cli.UserError(f"{path} holds no tokenizer.model: {INSTEAD}")


def keeps_text(sp: sentencepiece.SentencePieceProcessor) -> bool:
    """Does every text decode to itself, and is every piece in use?"""
    # Without byte pieces the newline is lost, and extra spaces may be removed. The default
    # normaliser, nmt_nfkc, replaces ㅋ and ﬁ by other letters.
    probe = "  ㅋ  ﬁ\n"
    if sp.decode(sp.encode(probe)) != probe:
        return False
    return not any(sp.is_unused(i) for i in range(len(sp)))
