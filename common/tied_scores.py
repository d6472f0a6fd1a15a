"""Pieces with equal scores: what a list of merges cannot express, and what to do about it.

SentencePiece joins the pair with the best score, and of equal scores the leftmost. tokenizer.json
has a list of merges instead, in which one always comes before the other, wherever they are in the
text.

In 란드의 the pieces 란드 and 드의 compete for 드. If their scores are equal, SentencePiece joins
란드, which is on the left. A list does so too if it has 란드 first (`by_rank`). But for 가나 and
나가 no order is right: one of 가나가 and 나가나 is always joined from the wrong side.

In an ordinary trained vocabulary only runs of spaces have equal scores, and for those there is a
right order. But Chinese-LLaMA's recipe, which many bases followed, gives every new piece the score
0.
"""
import dataclasses
import math
from collections import Counter
from itertools import pairwise

from common.sentencepiece_file import (
    NORMAL,
    PIECES,
    SCORE,
    USER_DEFINED,
    Model,
    field,
    fields,
    parse_piece,
    processor,
)

# ---- An order for equal scores -------------------------------------------------------------------


def by_rank(scores: dict[str, float]) -> list[str]:
    """The pieces, best score first; of equal scores, those first that tend to be further left.

    A piece tends to be on the left if its first and its last character begin many pieces and end
    few. (For 20,000 Korean pieces with score 0, a list in this order segments 0.4 % of the words of
    222 documents differently from SentencePiece. In alphabetical order, longer ones first, it is
    1.6 %.)

    Here 란 begins a piece, 의 ends one, and 드 does both:

    >>> by_rank({"th": -1, "드의": 0, "란드": 0})
    ['란드', '드의', 'th']

    Runs of one character get the same value. They grow from the left, as in SentencePiece, if the
    longer piece comes first:

    >>> by_rank({"▁▁": 0, "▁▁▁": 0, "▁▁▁▁": 0})
    ['▁▁▁▁', '▁▁▁', '▁▁']
    """
    # Count by score, because only pieces with the same score compete.
    begins = Counter((score, text[0]) for text, score in scores.items())
    ends = Counter((score, text[-1]) for text, score in scores.items())

    def rank(text: str) -> tuple:
        """The key to sort by, ascending."""
        score = scores[text]
        left = 0.0
        for character in (text[0], text[-1]):
            n = begins[score, character]
            left += n / (n + ends[score, character])
        return (-score, -left, -len(text), text)

    return sorted(scores, key=rank)


# ---- Does the list of merges do what SentencePiece does? -----------------------------------------


def segment_by_merges(text: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Segment a text by a list of merges, {pair: its place in the list}, as `tokenizers` does.

    The pair that is first in the list is joined first; of the same pair, the leftmost.

    >>> segment_by_merges("란드의", {("드", "의"): 0, ("란", "드"): 1})
    ['란', '드의']
    """
    parts = list(text)
    while True:
        best = None
        best_rank = math.inf
        for i, pair in enumerate(pairwise(parts)):
            rank = ranks.get(pair, math.inf)
            if rank < best_rank:
                best = i
                best_rank = rank
        if best is None:
            return parts
        parts[best:best + 2] = [parts[best] + parts[best + 1]]


def competing(vocabulary: Model, merges: list[tuple[str, str]]) -> list[str]:
    """Short texts in which two pieces with equal scores compete for the part between them.

    There would be millions of such texts. So each pair (a, b) of the list gets at most two: a b c
    and z a b, with the (b, c) and the (z, a) that are most likely to show a difference.
    SentencePiece joins the left pair, so these are the first (b, c) of the list and the last (z,
    a). This covers every tied piece on the left and on the right, if another one competes there."""
    scores = {piece.text: piece.score for piece in vocabulary.pieces if piece.type == NORMAL}
    made = {left + right for left, right in merges}
    how_many = Counter(scores[text] for text in made)
    tied = [(a, b) for a, b in merges if how_many[scores[a + b]] > 1]

    # {(score, part): what the first merge of the list joins on its right}, and {(score, part): what
    # the last merge joins on its left}.
    first_after = {}
    last_before = {}
    for a, b in tied:
        score = scores[a + b]
        first_after.setdefault((score, a), b)
        last_before[score, b] = a

    # A dict keeps the order, and has each text once.
    texts = {}
    for a, b in tied:
        score = scores[a + b]
        if (score, b) in first_after:
            texts[a + b + first_after[score, b]] = True
        if (score, a) in last_before:
            texts[last_before[score, a] + a + b] = True

    # Leave out texts that differ for other reasons: user-defined pieces are cut out before anything
    # is joined, and a character that is not a piece becomes bytes.
    own = [piece.text for piece in vocabulary.pieces if piece.type == USER_DEFINED]
    kept = []
    for text in texts:
        is_cut = any(piece in text for piece in own)
        if not is_cut and scores.keys() >= set(text):
            kept.append(text)
    return kept


def compare(vocabulary: Model, merges: list[tuple[str, str]]) -> str | None:
    """How a list of merges differs from SentencePiece, in a sentence; None if it does not.

    merges: those of tokenizer.ranked_merges. Both segment the texts of `competing`, which takes a
    second or two for 50,000 pieces with equal scores, and no time if there are none."""
    texts = competing(vocabulary, merges)
    ranks = {pair: i for i, pair in enumerate(merges)}
    differing = {}
    expected = vocabulary.inside_words.encode(texts, out_type=str)
    for text, pieces in zip(texts, expected, strict=True):
        by_merges = segment_by_merges(text, ranks)
        if by_merges != pieces:
            differing[text] = (" ".join(pieces), " ".join(by_merges))
    if not differing:
        return None

    # The shortest text is the clearest example.
    text = min(differing, key=len)
    ours, theirs = differing[text]
    return (
        f"pieces with equal scores: SentencePiece joins the leftmost, which tokenizer.json cannot "
        f"express, so transformers segments {len(differing):,} of {len(texts):,} short texts with "
        f"such pieces differently ({text!r} as {theirs!r}, not {ours!r}); before training, use "
        f"`tokenizer.py merge --break_ties`, and all will agree; after training, open the model "
        f"with a program that also joins the leftmost: llama.cpp, or LlamaTokenizer of "
        f"transformers 4 (not AutoTokenizer)")


# ---- Making them agree ---------------------------------------------------------------------------


def break_ties(model: Model, lowest: float) -> Model:
    """The model with distinct scores, 0, -1, -2, … in the order of `by_rank`.

    SentencePiece then does what a list of merges does. Only the order of scores matters, so pieces
    whose scores differed are joined as before. Scores of `lowest` and below stay, because they are
    not ranks (tokenizer.LOWEST_RANK)."""
    scores = {}
    for piece in model.pieces:
        if piece.type == NORMAL and piece.score > lowest:
            scores[piece.text] = piece.score
    ranks = {text: -float(rank) for rank, text in enumerate(by_rank(scores))}

    # If a field occurs twice, the last one counts, so the new score is appended after the old one.
    parts = []
    for number, value in fields(model.raw):
        if number == PIECES:
            piece = parse_piece(value)
            if piece.type == NORMAL and piece.text in ranks:
                value += field(SCORE, ranks[piece.text])
        parts.append(field(number, value))
    raw = b"".join(parts)

    pieces = []
    for piece in model.pieces:
        if piece.type == NORMAL:
            piece = piece._replace(score=ranks.get(piece.text, piece.score))
        pieces.append(piece)
    return dataclasses.replace(model, raw=raw, pieces=pieces, sp=processor(raw))
