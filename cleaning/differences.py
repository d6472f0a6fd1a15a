"""Finds the differences between two texts, which `python data.py show` prints on the screen or on a
page.

    before    다테야마시()는 일본 지바현에 있는 이다.
    after     다테야마시는 일본 지바현에 있는 시이다.
    pieces    = 다테야마시   - ()   = 는 일본 지바현에 있는   + 시   = 이다.

('Tateyama is a city in Chiba, Japan'; 'a city' was missing.)
"""
import difflib
import os
import re
from collections.abc import Iterator

from cleaning.personal import ANY_TOKEN

# The result is a list of pieces, each (mark, text).
SAME = "="
GONE = "-"   # only in the text before
NEW = "+"    # only in the text after

# A word with everything up to the next word. Spaces and commas as pieces of their own would match
# in all the wrong places, because every text is full of them.
WORD = re.compile(r"\w+\W*|\W+")

# What the step mask writes in place of personal data.
MASK = re.compile(ANY_TOKEN)


def differences(before: str, after: str) -> list[tuple[str, str]]:
    """The pieces that two texts share, and those that only one of them has.

    >>> differences("다테야마시()는 시이다.", "다테야마시는 시이다.")  # Tateyama is a city
    [('=', '다테야마시'), ('-', '()'), ('=', '는 시이다.')]
    """
    # First compare whole lines, then the words of the lines that differ: comparing all words of a
    # long text with each other would take minutes.
    pieces: list[tuple[str, str]] = []
    lines = side_by_side(before.splitlines(True), after.splitlines(True))
    for old_lines, new_lines in lines:
        if old_lines == new_lines:
            add_piece(pieces, SAME, old_lines)
            continue
        for old, new in side_by_side(WORD.findall(old_lines), WORD.findall(new_lines)):
            # Two different words often share a beginning or an end: a noun and its particle.
            start = os.path.commonprefix([old, new])
            old = old[len(start) :]
            new = new[len(start) :]
            end = os.path.commonprefix([old[::-1], new[::-1]])[::-1]
            add_piece(pieces, SAME, start)
            add_piece(pieces, GONE, old[: len(old) - len(end)])
            add_piece(pieces, NEW, new[: len(new) - len(end)])
            add_piece(pieces, SAME, end)
    return pieces


def side_by_side(before: list[str], after: list[str]) -> Iterator[tuple[str, str]]:
    """Align two lists: yield (text of one, corresponding text of the other)."""
    matcher = difflib.SequenceMatcher(None, before, after)
    for _, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        yield "".join(before[old_start:old_end]), "".join(after[new_start:new_end])


def add_piece(pieces: list[tuple[str, str]], mark: str, text: str) -> None:
    """Append a piece, or extend the last one if it has the same mark."""
    if not text:
        return
    if pieces and pieces[-1][0] == mark:
        mark, last = pieces.pop()
        text = last + text
    pieces.append((mark, text))


def pieces_of(example: dict) -> list[tuple[str, str]]:
    """The pieces of an example's text, compared with its other text if it has one."""
    text = example["text"]
    if example["step"] == "mask":
        return masked_pieces(text)
    other = example.get("before", example.get("stayed"))
    if other is None:
        return [(SAME, text)]

    # Both texts may have been cut to a maximum length, at different places. A difference at the
    # very end then comes from the cut, so drop it, unless it is the only one.
    pieces = differences(other, text)
    cuts = example.get("cut", {}).values()
    if any(end < length for _, end, length in cuts):
        shared = [i for i, (mark, _) in enumerate(pieces) if mark == SAME]
        without_end = pieces[: max(shared, default=0) + 1]
        if is_different(without_end):
            return without_end
    return pieces


def is_different(pieces: list[tuple[str, str]]) -> bool:
    """Whether anything is in only one of the texts."""
    return any(mark != SAME for mark, _ in pieces)


def masked_pieces(text: str) -> list[tuple[str, str]]:
    """The pieces of a masked text, in which the masks are new: what they replaced is not stored.

    >>> masked_pieces("전화 [전화번호]")  # telephone
    [('=', '전화 '), ('+', '[전화번호]')]
    """
    pieces: list[tuple[str, str]] = []
    end = 0
    for match in MASK.finditer(text):
        add_piece(pieces, SAME, text[end : match.start()])
        add_piece(pieces, NEW, match[0])
        end = match.end()
    add_piece(pieces, SAME, text[end:])
    return pieces
