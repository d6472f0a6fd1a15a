"""Learn a Korean vocabulary, merge it into the base's, and measure what that saves.

An English tokenizer splits Korean into bytes and single syllables. RedWhale (arXiv 2408.11294,
section 3.2) appends the pieces of a Korean BPE model. Four facts make that a small program:

- Scores are ranks. SentencePiece's BPE starts from characters and repeatedly joins the two
  neighbours whose concatenation is the piece with the highest score (`segment`).
- Training needs only words and their counts: `train_korean` feeds counted runs of Hangul.
- A model file is a protobuf message, and messages can be concatenated: `merge` appends bytes.
- A text without Hangul cannot contain a piece of Hangul, so it is segmented as before. The new
  pieces rank below the base's, in the order in which they were learned, so they are joined in the
  order of training.

Llama 3's tokenizer is the same BPE with ranks instead of scores and bytes instead of characters:
compare `segment` with `join` in common/byte_level.py. Its new tokens are learned on top of the
base's, so `train` needs the base: `--base BASE`.

    python tokenizer.py train  --input wiki reviews --balance --min_count 50 --out korean.model
    python tokenizer.py merge  --base base.model --korean korean.model --out merged.model
    python tokenizer.py report --tokenizers base.model merged.model --input held_out.jsonl en.jsonl
    python tokenizer.py report --tokenizers base.model --korean ko.model --sizes 8000 16000 24000 \\
        --input new.jsonl

    # for a base with byte-level BPE, such as Llama 3; `merged` is then a folder
    python tokenizer.py train  --base BASE --input wiki reviews --balance --vocab_size 16000 \\
        --out korean.tiktoken
    python tokenizer.py merge  --base BASE --korean korean.tiktoken --out merged
"""
import argparse
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import regex
import sentencepiece

from common import byte_level_file, cli, tied_scores, tokenizer_json
from common.byte_level import ByteLevel, learn
from common.documents import (
    KINDS,
    PLAIN,
    Reading,
    add_flags,
    announce,
    read_documents,
    reading_of,
)
from common.sentencepiece_file import (
    CONTROL,
    NORMAL,
    PIECES,
    SCORE,
    TEXT,
    TRAINER,
    TYPE,
    VOCAB_SIZE,
    Model,
    Piece,
    field,
    fields,
    parse,
    parse_piece,
    processor,
    read,
    why_no_base,
    why_no_ranks,
)

Vocabulary = Model | ByteLevel  # the two kinds, with the same methods

# The compatibility jamo, as in ㅋㅋ (without U+3164, an invisible filler), and the 11,172
# syllables.
HANGUL = "ㄱ-ㅣㅥ-ㆎ가-힣"
HANGUL_LETTER = regex.compile(f"[{HANGUL}]")

# The longest run to learn from, in characters. Longer ones are mostly laughter.
LONGEST_RUN = 256

# What training sees: a run of Hangul with the space before it. Longer ones are split.
HANGUL_RUN = regex.compile(f" ?[{HANGUL}]{{1,{LONGEST_RUN}}}")

# What a merge adds. ▁ is SentencePiece's space.
HANGUL_PIECE = regex.compile(f"▁?[{HANGUL}]+")

# The same in bytes. A syllable has three bytes, EA B0 80 (가) to ED 9E A3 (힣). Two of them must be
# joined before the third, so the first two may be a token if no other letters begin with them.
# (Those of jamo, E3 84 to 86, also begin other letters; they have to be tokens of the base, as in
# Llama 3.)
HANGUL_TOKEN = regex.compile(f" ?[{HANGUL}]+")
TWO_BYTES = regex.compile(rb" ?(\xEA[\xB0-\xBF]|[\xEB\xEC][\x80-\xBF]|\xED[\x80-\x9D])")

# Scores below this are not ranks. Mistral gives its runs of spaces -1e9, where float32 has steps of
# 64: of scores that continued from there, about sixty at a time would be equal.
LOWEST_RANK = -1e6

# The share of the corpus's characters that must have a piece of their own.
CHARACTER_COVERAGE = 0.9999

# Characters per line for SentencePiece, which silently drops lines over max_sentence_length.
LINE = 4096


# ---- Scores are ranks ----------------------------------------------------------------------------
# How a vocabulary segments text, in both of its forms: pieces with scores, as in SentencePiece, and
# a list of merges, as in transformers.


def segment(text: str, scores: dict[str, float]) -> list[str]:
    """Segment a text by SentencePiece's BPE. This is the definition; its library is faster.

    `scores` are those of the normal pieces. Only their order matters, so a score is a rank: -1 is
    rank 1, the best (byte_level.join has the same example with ranks). Of equal scores the leftmost
    wins. These two vocabularies differ only in their order:

    >>> segment("lower", {"er": -1, "lo": -2, "low": -3, "we": -4})
    ['low', 'er']
    >>> segment("lower", {"we": -1, "lo": -2, "low": -3, "er": -4})
    ['lo', 'we', 'r']
    """
    parts = list(text)
    while True:
        # Find the best piece that any two neighbours would make.
        best = None
        best_score = -math.inf
        for i in range(len(parts) - 1):
            score = scores.get(parts[i] + parts[i + 1], -math.inf)
            if score > best_score:
                best = i
                best_score = score
        # No two neighbours make a piece, so the text is segmented.
        if best is None:
            return parts
        parts[best:best + 2] = [parts[best] + parts[best + 1]]


def ranked_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """The scores as a list of merges, best first, as other libraries (transformers) describe a BPE.

    SentencePiece joins any two neighbours that make a piece, so every split of a piece into two
    pieces is a merge. Of equal scores it takes the leftmost, which a list cannot express.
    common/tied_scores chooses an order for them that is right for runs of one character (Mistral's
    spaces) and mostly right for others.

    >>> scores = {"a": -3, "aa": -1, "aaa": -1, "ab": -2, "b": -4}
    >>> ranked_merges([Piece(text, score, NORMAL) for text, score in scores.items()])
    [('a', 'aa'), ('aa', 'a'), ('a', 'a'), ('a', 'b')]
    """
    # Byte, control and user-defined pieces are left out: no merge makes or uses them.
    scores = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
    merges = []
    for text in tied_scores.by_rank(scores):
        for cut in range(1, len(text)):
            left = text[:cut]
            right = text[cut:]
            if left in scores and right in scores:
                merges.append((left, right))
    return merges


# ---- Training needs words and counts -------------------------------------------------------------
# BPE counts how often two neighbours occur within words. So a corpus of any size reduces to its
# distinct words and their counts, and a source is weighted by multiplying its counts.


def hangul_counts(documents: Iterable[str]) -> Counter:
    """Count the runs of Hangul, each with the space before it.

    The start of a document counts as a space. Pieces that span spaces would save more tokens, but
    then the end of a prompt could be inside a token, and the choices after it could not be scored.

    >>> hangul_counts(["나는 2권 나는", "2권"])  # 나는: "I"; 2권: "2 volumes"
    Counter({' 나는': 2, '권': 2})
    """
    counts = Counter()
    for text in documents:
        counts.update(HANGUL_RUN.findall(" " + text))
    return counts


def balanced(counts: list[Counter]) -> list[Counter]:
    """Raise the counts of each input until all inputs have as many letters as the largest.

    >>> balanced([Counter({"가나": 3}), Counter({"다라": 1, "마바": 2}), Counter({"사아": 1})])
    [Counter({'가나': 3}), Counter({'마바': 2, '다라': 1}), Counter({'사아': 3})]
    """
    # An input's letters: those of its runs, each as often as it occurs.
    letters = []
    for one in counts:
        letters.append(sum(len(run) * n for run, n in one.items()))
    most = max(letters)

    raised = []
    for one, length in zip(counts, letters, strict=True):
        raised.append(Counter({run: round(n * most / length) for run, n in one.items()}))
    return raised


def train_korean(
    inputs: list[str],
    vocab_size: int,
    character_coverage: float = CHARACTER_COVERAGE,
    balance: bool = False,
    min_count: int = 1,
    also: Iterable[str] = (),
    reading: Reading = PLAIN,
) -> bytes:
    """Train a BPE model on runs of Hangul; returns the bytes of the model file.

    vocab_size: pieces of Hangul. <unk> and ▁ are added to these; `merge` does not take them.
    character_coverage: the share of all characters that must be pieces of their own.
    balance: give every input the same weight, whatever its size.
    min_count: replace pieces that occur less often than this in the inputs and the files of `also`.
    reading: how to read all these files.
    UserError if the inputs have no Hangul, or not enough of it for vocab_size.
    """
    weighed, occurring = count_inputs(inputs, also, hangul_counts, balance, reading)
    lines = [f"{run}\t{n}" for run, n in weighed.most_common()]

    # Rare pieces will be replaced by later ones, so learn half as many more.
    learned = vocab_size * 3 // 2 if min_count > 1 else vocab_size
    raw = run_trainer(
        lines,
        asked=vocab_size,
        # <unk> and ▁ count too.
        vocab_size=learned + 2,
        character_coverage=character_coverage,
        # A line is a word, a tab and its count.
        input_format="tsv",
        # The runs already have the spaces before words.
        add_dummy_prefix=False,
        bos_id=-1,
        eos_id=-1,
    )
    if min_count > 1:
        raw = prune(raw, occurring, vocab_size, min_count)
    return raw


def count_inputs(
    inputs: list[str],
    also: Iterable[str],
    count: Callable[[Iterable[str]], Counter],
    balance: bool,
    reading: Reading,
) -> tuple[Counter, Counter]:
    """Count the runs of all inputs: ({run: its weight in training}, {run: its count, in `also`
    too}). `count` makes the counts of a list of texts.

    UserError if the inputs have no Hangul."""
    # Rare pieces are those with a low true count, so count before the weights are raised.
    counts = [count(texts([path], reading)) for path in inputs]
    occurring = sum(counts, count(texts(also, reading)))
    if balance:
        counts = balanced(counts)
    weighed = sum(counts, Counter())
    if not weighed:
        raise cli.UserError(f"--input {' '.join(inputs)} holds no Hangul")
    return weighed, occurring


def train_base(
    inputs: list[str],
    vocab_size: int,
    character_coverage: float = CHARACTER_COVERAGE,
    reading: Reading = PLAIN,
) -> bytes:
    """Train a BPE model on all text, with Llama's settings; returns the bytes of the model file.

    vocab_size counts all pieces, including the 256 bytes. UserError if it does not suit the
    corpus."""
    # Split long lines, because SentencePiece would drop them.
    lines = []
    for text in texts(inputs, reading):
        for line in text.split("\n"):
            lines += [line[start:start + LINE] for start in range(0, len(line), LINE)]
    if not lines:
        raise cli.UserError(f"--input {' '.join(inputs)} holds no text")
    return run_trainer(
        lines,
        asked=vocab_size,
        vocab_size=vocab_size,
        character_coverage=character_coverage,
        # A character without a piece becomes bytes, so no text is lost.
        byte_fallback=True,
        # Each digit of a number is a piece of its own.
        split_digits=True,
        # Allow runs of ▁, for the indentation of code.
        allow_whitespace_only_pieces=True,
    )


def run_trainer(lines: list[str], asked: int, **options) -> bytes:
    """Run SentencePiece's trainer on lines of text; returns the bytes of the model file.

    asked: the user's --vocab_size, for the error message; the options have SentencePiece's own."""
    print(
        f"{len(lines):,} lines for SentencePiece, which prints nothing while it trains: "
        f"a few seconds per 1,000 pieces")
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="bpe",
            # No normalisation: the default, nmt_nfkc, would replace ㅋ by another letter.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            # In bytes; a character has at most four.
            max_sentence_length=8 * LINE,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        reason = str(error).partition(") ")[2]
        raise cli.UserError(
            f"--vocab_size {asked} or --character_coverage does not suit the corpus; "
            f"SentencePiece, asked for {options['vocab_size']} pieces, says: {reason}") from None
    return out.getvalue()


def occurrences(pieces: Iterable[str | bytes], runs: Counter) -> Counter:
    """How often each piece occurs in the runs as a substring, however a tokenizer segments them.
    Pieces and runs are both text, or both bytes.

    >>> occurrences([" 가", "가", "다"], Counter({" 가가": 10, "나가": 1}))
    Counter({'가': 21, ' 가': 10})
    """
    # Look up every substring of every word, up to the length of the longest piece.
    pieces = set(pieces)
    longest = max(map(len, pieces), default=0)
    found = Counter()
    for word, n in cli.progress(runs.items(), "count pieces", " runs"):
        for start in range(len(word)):
            last = min(start + longest, len(word))
            for end in range(start + 1, last + 1):
                if word[start:end] in pieces:
                    found[word[start:end]] += n
    return found


def prune(raw: bytes, runs: Counter, size: int, min_count: int) -> bytes:
    """Reduce a model to its first `size` pieces of Hangul that occur min_count times in the runs.

    The parts of a piece occur at least as often as the piece itself, so a piece that is kept can
    still be joined from its parts. UserError if too few pieces occur that often."""
    hangul = [piece for piece in parse(raw)[0] if HANGUL_PIECE.fullmatch(piece.text)]
    spelled = Counter({run.replace(" ", "▁"): n for run, n in runs.items()})
    found = occurrences([piece.text for piece in hangul], spelled)
    frequent = [piece for piece in hangul if found[piece.text] >= min_count]
    characters = [piece for piece in frequent if len(piece.text) == 1]
    if not len(characters) <= size <= len(frequent):
        raise cli.UserError(
            f"--vocab_size {size} with --min_count {min_count}: of the first {len(hangul)} pieces "
            f"{len(frequent)} occur as often, {len(characters)} of them single characters; "
            f"choose a size between these two, or lower --min_count")

    # Keep the first ones: those of a model of this size that never learns rare pieces.
    kept = {"<unk>", "▁"}
    kept |= {piece.text for piece in truncated(frequent, size)}

    # Copy the file without the dropped pieces. A setting counts as it comes last, so append the new
    # size.
    parts = []
    for number, value in fields(raw):
        if number != PIECES or parse_piece(value).text in kept:
            parts.append(field(number, value))
    parts.append(field(TRAINER, field(VOCAB_SIZE, len(kept))))
    return b"".join(parts)


def truncated(pieces: list[Piece], size: int) -> list[Piece]:
    """The Hangul pieces of a model of `size` such pieces, from a larger model.

    A BPE model lists its merges in the order in which they were learned, *then* the single
    characters. So drop the last merges and keep all characters. UserError if `size` is less than
    the number of characters, or more than all pieces."""
    hangul = [piece for piece in pieces if HANGUL_PIECE.fullmatch(piece.text)]
    merges = [piece for piece in hangul if len(piece.text) > 1]
    characters = [piece for piece in hangul if len(piece.text) == 1]
    if not len(characters) <= size <= len(hangul):
        raise cli.UserError(
            f"--sizes {size}: choose from {len(characters)} (only characters) "
            f"to {len(hangul)} (all)")
    return merges[:size - len(characters)] + characters


# ---- The same for a byte-level base --------------------------------------------------------------
# There is no separate Korean model: training continues from the base's merges. Chunks are counted
# as the base splits them. They may contain other scripts ("Python은", "(한국"), but only Hangul is
# learned.


def is_hangul_token(token: bytes) -> bool:
    """May a byte-level vocabulary learn this token?

    Only if its bytes never occur in a text without Hangul. Then no new token, whatever its rank,
    can be made in such a text, and all joins are the base's, as before.

    >>> is_hangul_token(" 한국".encode()), is_hangul_token("은(".encode())
    (True, False)
    >>> is_hangul_token("나".encode()[:2]), is_hangul_token("漢".encode()[:2])
    (True, False)
    """
    # Incomplete characters become U+FFFD, which is not Hangul.
    text = token.decode(errors="replace")
    return bool(TWO_BYTES.fullmatch(token) or HANGUL_TOKEN.fullmatch(text))


def chunk_counts(base: ByteLevel, documents: Iterable[str]) -> Counter:
    """Count the chunks with Hangul, as the base splits them."""
    counts = Counter()
    for text in documents:
        counts.update(base.chunks(text))
    # Look for Hangul only now: words repeat, so there are far fewer distinct chunks.
    with_hangul = Counter()
    for chunk, n in counts.items():
        if HANGUL_LETTER.search(chunk) and len(chunk) <= LONGEST_RUN:
            with_hangul[chunk] = n
    return with_hangul


def train_on_base(
    base: ByteLevel,
    inputs: list[str],
    vocab_size: int,
    balance: bool = False,
    min_count: int = 1,
    also: Iterable[str] = (),
    reading: Reading = PLAIN,
) -> list[bytes]:
    """Learn Hangul tokens on top of a byte-level base, in order (continued BPE).

    vocab_size: the number of new tokens. The other arguments and errors are those of
    `train_korean`."""
    count = partial(chunk_counts, base)
    weighed, occurring = count_inputs(inputs, also, count, balance, reading)

    # As in `train_korean`: rare tokens will be replaced, so learn half as many more.
    learned = vocab_size * 3 // 2 if min_count > 1 else vocab_size
    tokens = learn(weighed, base.ranks, learned, is_hangul_token)

    # The parts of a token occur at least as often as the token, so the rest can still be joined.
    if min_count > 1:
        in_bytes = Counter({chunk.encode(): n for chunk, n in occurring.items()})
        found = occurrences(tokens, in_bytes)
        tokens = [token for token in tokens if found[token] >= min_count]
    if len(tokens) < vocab_size:
        raise cli.UserError(
            f"--vocab_size {vocab_size}: the inputs hold only {len(tokens)} tokens to learn (of "
            f"the first {learned}, with --min_count {min_count}); lower one of the two, or give "
            f"more text")
    return tokens[:vocab_size]


# ---- Merging appends -----------------------------------------------------------------------------
# A merge guarantees two things: text without Hangul is segmented as before, and Korean words are
# segmented as the Korean model does it, except where the base's own merges interfere. (There are no
# such exceptions on a byte-level base, whose new tokens were learned on top of its merges.)


def merge(base: Model, korean: list[Piece]) -> bytes:
    """Append the pieces of pure Hangul that the base lacks; returns the bytes of the model file.

    Their scores continue below the base's lowest rank, in their order. The parts of a piece are
    Hangul too, and are in the merged model, so every piece can be reached by joining, except where
    the base joins Hangul differently (`report` lists those).

    >>> base = [Piece("▁▁", -1e9, NORMAL), Piece("th", -6.0, NORMAL), Piece("e", -7.0, NORMAL)]
    >>> texts = ["한국", "e", "2권", "한"]  # 한국: Korea
    >>> korean = [Piece(text, -rank, NORMAL) for rank, text in enumerate(texts)]
    >>> raw = merge(Model(b"", base, None), korean)
    >>> [(piece.text, piece.score) for piece in parse(raw)[0]]  # -7 - 1, then -1 each
    [('한국', -8.0), ('한', -9.0)]
    """
    # Hangul only, because a piece with a digit or a Latin letter could change how other text is
    # segmented. Pieces that the base has already keep their id and rank.
    known = {piece.text for piece in base.pieces}
    new = []
    for piece in korean:
        if HANGUL_PIECE.fullmatch(piece.text) and piece.text not in known:
            new.append(piece)

    # The base's joins come first, so the new scores continue below its lowest rank.
    ranks = [piece.score for piece in base.pieces if piece.type == NORMAL]
    ranks = [score for score in ranks if score > LOWEST_RANK]
    lowest = math.floor(min(ranks, default=0.0))

    # The base's bytes stay as they are. Tokens that its directory adds after the pieces become
    # pieces with the same ids. They are control pieces, so no text is encoded as one.
    parts = [base.raw]
    for token in base.added.values():
        text = token["content"].encode()
        parts.append(field(PIECES, field(TEXT, text) + field(SCORE, 0.0) + field(TYPE, CONTROL)))

    # Steps of 1 keep the scores distinct, which float32 can represent down to -2^24. If scores were
    # equal, the leftmost join would win instead of the one learned first. A piece without a TYPE is
    # a normal one.
    for i, piece in enumerate(new, start=1):
        score = float(lowest - i)
        parts.append(field(PIECES, field(TEXT, piece.text.encode()) + field(SCORE, score)))

    # Where a setting comes twice, the last one counts.
    parts.append(field(TRAINER, field(VOCAB_SIZE, len(base.pieces) + len(new))))
    return b"".join(parts)


# ---- What the merge saves, and what it changes ---------------------------------------------------
# A merge should save tokens. The other counts of a row show damage and should be 0.


def measure(vocabularies: list[Vocabulary], documents: Iterable[str]) -> list[dict]:
    """Counts and ratios for each tokenizer, of which the first is the base: one dict for each.

    token_ratio: number of tokens, relative to the base.
    fertility: tokens per eojeol, the text between two spaces (a word with its particles).
    lines_changed: lines without Hangul that are segmented differently from the base.
    round_trips_lost: documents that decode to the same text with the base, but not with this one.
    UserError if there is no text.
    """
    base = vocabularies[0]
    size = Counter(documents=0, characters=0, bytes=0, eojeol=0, lines_without_hangul=0)
    counts = [Counter(tokens=0, lines_changed=0, round_trips_lost=0) for _ in vocabularies]
    for text in documents:
        # Count what is the same for all tokenizers.
        lines = [line for line in text.split("\n") if not HANGUL_LETTER.search(line)]
        size["documents"] += 1
        size["characters"] += len(text)
        size["bytes"] += len(text.encode())
        size["eojeol"] += len(text.split())
        size["lines_without_hangul"] += len(lines)

        # Compare what each tokenizer makes of the text with what the base does.
        base_lines = base.encode(lines, bos=False, workers=1)
        base_keeps_text = base.decode(base.encode(text, bos=False)) == text
        for vocabulary, count in zip(vocabularies, counts, strict=True):
            ids = vocabulary.encode(text, bos=False)
            count["tokens"] += len(ids)
            if base_keeps_text and vocabulary.decode(ids) != text:
                count["round_trips_lost"] += 1
            own_lines = vocabulary.encode(lines, bos=False, workers=1)
            for own, before in zip(own_lines, base_lines, strict=True):
                if own != before:
                    count["lines_changed"] += 1

    # Ratios come before the counts, because they compare inputs and tokenizers of any size.
    base_tokens = counts[0]["tokens"]
    if not base_tokens:
        raise cli.UserError("an --input has no text to measure; leave it out")
    rows = []
    for count in counts:
        tokens = count["tokens"]
        ratios = {
            "token_ratio": tokens / base_tokens,
            "tokens_per_character": tokens / size["characters"],
            "bytes_per_token": size["bytes"] / tokens,
            "fertility": tokens / max(1, size["eojeol"]),
        }
        rows.append({**ratios, **count, **size})
    return rows


def unreachable(vocabulary: Vocabulary, first: int) -> dict[str, str]:
    """The pieces from id `first` on that segmentation never makes: {piece: what its text becomes
    instead}."""
    lost = {}
    for i in range(first, vocabulary.size):
        ids = vocabulary.split(vocabulary.bytes_of(i))
        if len(ids) > 1:
            lost[shown(vocabulary, i)] = " ".join(shown(vocabulary, part) for part in ids)
    return lost


def shown(vocabulary: Vocabulary, i: int) -> str:
    """A piece for the reader: ▁ for a space, and <0xEA> for a byte that is not text by itself."""
    # The first two bytes of a syllable may be a token, but are not text.
    piece = vocabulary.bytes_of(i)
    try:
        return piece.decode().replace(" ", "▁")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in piece)


def report(
    vocabularies: dict[str, Vocabulary],
    inputs: list[str],
    reading: Reading = PLAIN,
) -> dict:
    """Measure every input (a file or a folder) with every tokenizer, the base's first.

    Prints a table for each input and one for all; returns the last one: {tokenizer: its row}."""
    # A table for each input, because a tokenizer may do well on one source and badly on another.
    by_input = {}
    for path in inputs:
        rows = measure(list(vocabularies.values()), texts([path], reading))
        by_input[path] = dict(zip(vocabularies, rows, strict=True))
        print_table(path, by_input[path])

    # The price of saved tokens is rows of the embedding, so the summary shows both.
    base_size = next(iter(vocabularies.values())).size
    summary = {}
    for name, vocabulary in vocabularies.items():
        own_rows = {path: rows[name] for path, rows in by_input.items()}
        ratios = [row["token_ratio"] for row in own_rows.values()]
        # An unreachable piece costs a row and saves nothing.
        lost = unreachable(vocabulary, base_size)
        for text, cut in lost.items():
            print(f"{name}: {text} is unreachable: its text is segmented as {cut}")
        summary[name] = {
            "pieces": vocabulary.size,
            "added": vocabulary.size - base_size,
            "embedding_growth": vocabulary.size / base_size,
            "mean_token_ratio": sum(ratios) / len(ratios),
            "unreachable": len(lost),
            "unreachable_pieces": lost,
            "inputs": own_rows,
        }
    print_table("all inputs", summary)
    return summary


def print_table(title: str, rows: dict[str, dict]) -> None:
    """Print rows of numbers under the names of their columns, which are those of the first row."""
    # What is not a number (the inputs' own rows, lists of pieces) is for the JSON file.
    first = next(iter(rows.values()))
    columns = [key for key, value in first.items() if isinstance(value, int | float)]
    widths = {key: max(11, len(key)) for key in columns}
    print()
    print(f"{title:30}", *(f"{key:>{widths[key]}}" for key in columns))
    for name, row in rows.items():
        cells = []
        for key in columns:
            if isinstance(row[key], float):
                cells.append(f"{row[key]:{widths[key]},.4f}")
            else:
                cells.append(f"{row[key]:{widths[key]},}")
        print(f"{name[-30:]:30}", *cells)


def suggest(rows: dict[str, dict]) -> str:
    """Suggest one of several rising sizes, in a sentence with the reason: the knee (Satopaa et al.
    2011).

    It is the size furthest below the straight line from the first size to the last: up to it a new
    row of the embedding saves more tokens than the average row, after it fewer."""
    names = list(rows)
    growth = [row["embedding_growth"] for row in rows.values()]
    ratio = [row["mean_token_ratio"] for row in rows.values()]

    def saved(a: int, b: int) -> float:
        """The share of tokens saved from size a to size b, per as many rows as the base has."""
        if growth[a] == growth[b]:
            return 0.0
        return (ratio[a] - ratio[b]) / (growth[b] - growth[a])

    # Tilt the curve until that line is level; the knee is then the lowest point.
    slope = saved(0, -1)
    heights = [y + slope * x for x, y in zip(growth, ratio, strict=True)]
    best = heights.index(min(heights))
    return (
        f"{names[best]}, the knee: rows worth 1 % of the base's save {saved(0, best):.2f} % of its "
        f"tokens from {names[0]} to there, {saved(best, -1):.2f} % from there to {names[-1]}")


# ---- Files in, files out -------------------------------------------------------------------------
# The formats are in common/: documents, sentencepiece_file, byte_level_file, tokenizer_json.


def texts(paths: Iterable[str | Path], reading: Reading = PLAIN) -> Iterator[str]:
    """Yield the texts of documents in files or folders. What cannot be read is skipped and
    counted."""
    reasons = Counter()

    def count(record: dict) -> None:
        reasons[record["reason"]] += 1

    documents = read_documents(paths, reading, rejected=count)
    for document in cli.progress(documents, "read", " documents"):
        yield document["text"]
    if reasons:
        print(
            f"skipped {reasons.total()} documents that cannot be read: {dict(reasons)}; "
            f"`data.py clean` lists each of them")


def load(path: str | Path, base: bool = False) -> Vocabulary:
    """Load a tokenizer of either kind, from a file or a model directory.

    UserError if the file is missing, damaged or of another kind; with `base` also if it cannot take
    new pieces, or tokenizer.json cannot describe it."""
    file = byte_level_file.vocabulary_file(path)
    if file:
        return byte_level_file.read(file)
    return read(path, base)


def check_rows(vocabulary: Vocabulary, config_file: str | Path) -> None:
    """UserError if a text could be encoded as an id that has no row in a model's embedding.

    `config_file`: the model's config.json, which need not exist."""
    rows = cli.read_json_if_any(config_file).get("vocab_size")
    # Control tokens have no bytes. No text is encoded as one, so at the end of the vocabulary they
    # need no rows; except BOS and EOS, with which documents begin and end.
    last = vocabulary.size - 1
    while not vocabulary.bytes_of(last) and last not in (vocabulary.bos, vocabulary.eos):
        last -= 1
    if rows is not None and last >= rows:
        raise cli.UserError(
            f"the tokenizer has ids up to {last}, {config_file} says vocab_size {rows}: use the "
            f"model's own tokenizer, or grow the model for this one with init.py")


def merged_with(base: Vocabulary, korean: str, size: int | None = None) -> Vocabulary:
    """The base with the pieces of a file that `train` wrote: all of them, or the first `size`.

    UserError if the file has fewer, or was learned on another base."""
    if isinstance(base, ByteLevel):
        ranks = byte_level_file.read_ranks(korean)
        if min(ranks.values(), default=0) != base.size:
            raise cli.UserError(
                f"{korean} was not learned on this base of {base.size} tokens; run `tokenizer.py "
                f"train --base` with the base that you merge into")
        if size is not None and not 1 <= size <= len(ranks):
            raise cli.UserError(f"--sizes {size}: choose up to {len(ranks)} (all)")
        return base.extended(list(ranks)[:size])

    learned = read(korean)
    if reason := why_no_ranks(learned):
        raise cli.UserError(f"{korean} {reason}: train it with `tokenizer.py train`")
    pieces = learned.pieces
    if size is not None:
        pieces = truncated(pieces, size)
    raw = merge(base, pieces)
    return Model(raw, parse(raw)[0], processor(raw))


def is_same(a: Piece | bytes | str | None, b: Piece | bytes | str | None) -> bool:
    """Are two entries of vocabularies the same piece? The score does not count, because
    --break_ties may have changed it.

    >>> is_same(Piece("가", 0.0, NORMAL), Piece("가", -3.0, NORMAL))
    True
    >>> is_same(Piece("가", 0.0, NORMAL), Piece("가", 0.0, CONTROL))
    False
    """
    if isinstance(a, Piece) and isinstance(b, Piece):
        return (a.text, a.type) == (b.text, b.type)
    return a == b


def save(path: str | Path, folder: str | Path) -> None:
    """Write a tokenizer into a model directory: that of a file, or that of another model directory
    with its settings."""
    base = Path(path) if Path(path).is_dir() else None
    write(load(path), Path(folder), base)


def write(vocabulary: Vocabulary, folder: Path, base: Path | None) -> None:
    """Write a tokenizer's files into a model directory: its own, and those of transformers.

    base: the model directory whose settings are carried along, such as the chat template, the pad
    token, and the tokens put around a text; None for a file."""
    if isinstance(vocabulary, ByteLevel):
        byte_level_file.save(vocabulary, folder, base)
        return
    (folder / "tokenizer.model").write_bytes(vocabulary.raw)
    # From tokenizer.model alone transformers would rank the merges by id, so write tokenizer.json,
    # which has them by score. (It cannot describe a model that is not BPE or loses text; then there
    # is only tokenizer.model.)
    if not why_no_base(vocabulary):
        merges = ranked_merges(vocabulary.pieces)
        tokenizer_json.save(vocabulary, merges, folder, base)


def warn_of_ties(vocabulary: Vocabulary) -> None:
    """Warn if transformers will segment some texts differently from SentencePiece, because pieces
    have equal scores."""
    if isinstance(vocabulary, Model) and not why_no_base(vocabulary):
        difference = tied_scores.compare(vocabulary, ranked_merges(vocabulary.pieces))
        if difference:
            cli.warn(difference)


def write_model(raw: bytes, file: str) -> None:
    """Write a .model file, completely or not at all, and print how many pieces it has."""
    with cli.new_file(file) as temporary:
        temporary.write_bytes(raw)
    print(f"{file}: {len(parse(raw)[0])} pieces")


# ---- The commands --------------------------------------------------------------------------------


def run_train(args: argparse.Namespace) -> None:
    """`tokenizer.py train`"""
    if args.vocab_size < 1:
        raise cli.UserError(f"--vocab_size {args.vocab_size}: ask for at least one piece")
    # Load the base first, so that a mistake in it shows before the corpus is read.
    base = load(args.base, base=True) if args.base else None
    if isinstance(base, ByteLevel) and args.character_coverage != CHARACTER_COVERAGE:
        raise cli.UserError(
            "--character_coverage is for SentencePiece: a byte-level vocabulary has every byte")
    reading = reading_of(args)
    announce([*args.input, *args.also], reading)
    # Both kinds of tokenizers weight and prune in the same way.
    how = (args.balance, args.min_count, args.also, reading)
    if args.text == "all":
        if args.balance or args.min_count > 1 or args.also or args.base:
            raise cli.UserError("--balance, --min_count, --also and --base are for --text hangul")
        raw = train_base(args.input, args.vocab_size, args.character_coverage, reading)
        write_model(raw, args.out)
    elif isinstance(base, ByteLevel):
        tokens = train_on_base(base, args.input, args.vocab_size, *how)
        byte_level_file.write_ranks(tokens, base.size, args.out)
        print(f"{args.out}: {len(tokens)} tokens for {args.base}")
    else:
        raw = train_korean(args.input, args.vocab_size, args.character_coverage, *how)
        write_model(raw, args.out)


def run_merge(args: argparse.Namespace) -> None:
    """`tokenizer.py merge`"""
    inputs = [Path(args.base).resolve(), Path(args.korean).resolve()]
    out = Path(args.out).resolve()
    if out in inputs or out / "tokenizer.json" in inputs:
        raise cli.UserError(f"--out {args.out} would replace one of its inputs; name another")
    base = load(args.base, base=True)
    if base.added:
        print(f"added tokens of {args.base}, which keep their ids: {len(base.added)}")
    if args.break_ties:
        if isinstance(base, ByteLevel):
            raise cli.UserError("--break_ties: a byte-level base has no ties; drop the flag")
        base = tied_scores.break_ties(base, LOWEST_RANK)
    merged = merged_with(base, args.korean)
    if isinstance(merged, Model):
        write_model(merged.raw, args.out)
        warn_of_ties(merged)
        return
    # An existing folder will be replaced, so it must not hold a model.
    inside = {file.name for file in Path(args.out).glob("*")}
    if inside - {"tokenizer.json", "tokenizer_config.json"}:
        raise cli.UserError(f"--out {args.out} holds more than a tokenizer; name a new folder")
    with cli.new_folder(args.out) as folder:
        byte_level_file.save(merged, folder)
    print(f"{args.out}: {merged.size} tokens")


def run_report(args: argparse.Namespace, settings: dict) -> None:
    """`tokenizer.py report`"""
    if bool(args.sizes) != bool(args.korean):
        raise cli.UserError(
            "--sizes and --korean go together: the sizes are cut from that Korean model")
    vocabularies = {path: load(path) for path in args.tokenizers}
    base = vocabularies[args.tokenizers[0]]

    # Each size is a merged vocabulary of its own, made here.
    sizes = []
    for size in sorted(set(args.sizes)):
        name = f"{size} pieces"
        vocabularies[name] = merged_with(base, args.korean, size)
        sizes.append(name)

    reading = reading_of(args)
    announce(args.input, reading)
    rows = report(vocabularies, args.input, reading)
    result = {"settings": settings, "tokenizers": rows}
    # A knee needs at least three sizes.
    if len(sizes) > 2:
        result["suggested"] = suggest({name: rows[name] for name in sizes})
        print("suggested size:", result["suggested"])
    if args.out:
        cli.write_json(args.out, result)


def add_command(commands, name: str, what: str, example: str) -> cli.Parser:
    """Add a sub-command whose manual ends with an example; returns its parser."""
    description = f"{what}\n\n    python tokenizer.py {name} {example}"
    return commands.add_parser(name, help=what, description=description)


def add_train(commands) -> None:
    """The flags of `tokenizer.py train`."""
    command = add_command(
        commands, "train", "Train a BPE model on runs of Hangul or, with --text all, on all text.",
        "--input wiki reviews --balance --min_count 50 --out korean.model")
    flag = command.add_argument
    flag("--input", nargs="+", required=True, help=f"files or folders of {KINDS}")
    flag("--vocab_size", type=int, default=20000,
         help="number of Hangul pieces; with --text all, of all pieces")
    flag("--base",
         help="tokenizer file or model directory of the base; required if it is byte-level, "
              "because its merges are continued")
    flag("--out", required=True,
         help=".model file to write; for a byte-level base, a file in tiktoken's format")
    flag("--text", choices=("hangul", "all"), default="hangul",
         help="what to learn from; hangul: runs of Hangul, for a merge; all: all text, for a new "
              "base")
    flag("--character_coverage", type=float, default=CHARACTER_COVERAGE,
         help="share of the text's characters that get a piece of their own")
    flag("--balance", action="store_true",
         help="give every --input the same weight, whatever its size (hangul only)")
    flag("--min_count", type=int, default=1,
         help="replace pieces that occur less often than this in --input and --also (hangul only)")
    flag("--also", nargs="+", default=[],
         help="more files in which --min_count counts; no merges are learned from them")
    add_flags(command)


def add_merge(commands) -> None:
    """The flags of `tokenizer.py merge`."""
    command = add_command(
        commands, "merge", "Append the Hangul pieces of a Korean model to a base's tokenizer.",
        "--base BASE --korean korean.model --out merged.model")
    flag = command.add_argument
    flag("--base", required=True, help="tokenizer file or model directory of the base")
    flag("--korean", required=True, help="file that `train` wrote")
    flag("--out", required=True,
         help=".model file to write; for a byte-level base, a folder")
    flag("--break_ties", action="store_true",
         help="give pieces with equal scores different ones, so that transformers segments like "
              "SentencePiece; some texts are then segmented differently from the base")


def add_report(commands) -> None:
    """The flags of `tokenizer.py report`."""
    command = add_command(
        commands, "report",
        "Compare tokenizers with the base's: tokens saved, lines changed, unreachable pieces.",
        "--tokenizers BASE merged.model --input held_out.jsonl english.jsonl")
    flag = command.add_argument
    flag("--tokenizers", nargs="+", required=True,
         help="tokenizer files or model directories, the base's first")
    flag("--input", nargs="+", required=True,
         help="files or folders of held-out documents; each gets a table")
    flag("--korean", help="large Korean model, to compare the --sizes of")
    flag("--sizes", type=int, nargs="+", default=[],
         help="numbers of pieces of --korean to merge into the base; each becomes a row, and from "
              "three on one is suggested")
    flag("--out", help="JSON file to write the numbers to")
    add_flags(command)


def main(argv: list[str] | None = None) -> None:
    """Run `train`, `merge` or `report`."""
    parser = cli.Parser(description=__doc__, prog="tokenizer.py")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    add_train(commands)
    add_merge(commands)
    add_report(commands)
    args = parser.parse_args(argv)
    settings = cli.settings(args)
    if args.command == "train":
        run_train(args)
    elif args.command == "merge":
        run_merge(args)
    else:
        run_report(args, settings)


if __name__ == "__main__":
    cli.run(main)
