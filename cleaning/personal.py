"""Shared by all kinds of personal data: pattern and evidence, tokens, folding to one spelling.

A kind is a pattern and a test. The pattern finds what has the right shape; the test looks for
further evidence, such as a word before it or a check digit. Both see a folded copy of the text, in
which digits and hyphens have one spelling:

    >>> match = regex.search("[0-9-]{9,}", fold("전화 ０１０ㅡ１２３４―５６７８"))  # telephone
    >>> match[0], words_before(match), digits_of(match)
    ('010-1234-5678', '전화 ', '01012345678')

The kinds themselves are in resident.py, bank.py, telephone.py and mail.py; mask.py uses them all.
"""
from collections.abc import Callable
from typing import NamedTuple

import regex

# ---- A kind, and what replaces it ---------------------------------------------------------------


class Kind(NamedTuple):
    name: str                # in the report, and in TOKENS
    pattern: regex.Pattern   # where to look
    is_one: Callable[[regex.Match], bool]  # the evidence besides the shape


# The token that replaces each kind, in the language of the corpus: [주민번호] in an English corpus
# would be its only Korean, and teach the wrong thing.
TOKENS = {
    "resident_number": {"ko": "[주민번호]", "en": "[resident number]"},
    "card": {"ko": "[카드번호]", "en": "[card number]"},
    "phone": {"ko": "[전화번호]", "en": "[phone number]"},
    "account": {"ko": "[계좌번호]", "en": "[account number]"},
    "email": {"ko": "[이메일]", "en": "[e-mail]"},
}
ALL_TOKENS: list[str] = []
for tokens in TOKENS.values():
    ALL_TOKENS += tokens.values()
ANY_TOKEN = "|".join(map(regex.escape, ALL_TOKENS))

# ---- Pieces of patterns -------------------------------------------------------------------------

# Patterns are written with regex.VERBOSE: white space in them is ignored; a literal space is
# written [ ].
HYPHEN = r"(?: \s?-\s? )"  # 010-1234 or 010 - 1234

# A number may not touch another digit, directly or through a separator.
START = r"(?<! [0-9] | [0-9][-.,] )"
END = r"(?! [-.,]?[0-9] )"
# Nor may it be part of a URL or a name: item-4111..., ?id=4111..., /4111...
NOT_IN_NAME = r"(?<! [A-Za-z0-9_][-_=/] )"

# ---- Evidence -----------------------------------------------------------------------------------

# How many characters before and after a number are searched for a word that counts as evidence.
# Ours, chosen by hand: between a label and its number there may be a few words; a word after the
# number follows at once.
WHERE_BEFORE = 20
WHERE_AFTER = 10


def words_before(match: regex.Match) -> str:
    """The characters before a number on the same line that are searched for evidence."""
    start = max(0, match.start() - WHERE_BEFORE)
    return match.string[start:match.start()].rpartition("\n")[2]


def words_after(match: regex.Match) -> str:
    """The characters after a number on the same line that are searched for evidence."""
    return match.string[match.end():match.end() + WHERE_AFTER].partition("\n")[0]


def digits_of(match: regex.Match) -> str:
    return regex.sub(r"[^0-9]", "", match[0])


def weighted_sum(digits: str, weights: tuple[int, ...]) -> int:
    """The sum that check digits are computed from: each digit times the weight of its place.

    >>> weighted_sum("305", (1, 2, 3))
    18
    """
    total = 0
    for digit, weight in zip(digits, weights, strict=True):
        total += int(digit) * weight
    return total


# ---- Folding to one spelling --------------------------------------------------------------------

# People type 010-1234-5678 with full-width digits and whatever looks like a hyphen. So that no
# pattern has to list all of these, patterns are matched against a folded copy of the text. Each
# character is replaced by exactly one, so positions in the copy are positions in the text; the copy
# is thrown away and the text keeps its own characters.
DASHES = (
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212"  # Unicode's hyphens, dashes, bullet, minus
    "\u2500\ufe58\ufe63"  # the box-drawing line that Korean keyboards offer; small dash and hyphen
    "\u3161\u30fc"        # ㅡ and ー, letters
)
WAVES = "\u223c\u301c\u3030"                     # ∼ 〜 〰
MIDDLE_DOTS = "\u2022\u2219\u22c5\u30fb\uff65\u318d\u119e"  # • ∙ ⋅ ・ ･ ㆍ ᆞ
SPACES = "\u00a0\u2002\u2003\u2009\u202f\u3000"  # no-break, en, em, thin, narrow, ideographic

FOLD = {
    "\ufe6b": "@",  # small @
    "\u25ef": "○",  # ◯, which hides digits as ○ does
}
FOLD |= dict.fromkeys(DASHES, "-")
FOLD |= dict.fromkeys(WAVES, "~")
FOLD |= dict.fromkeys(MIDDLE_DOTS, "·")
FOLD |= dict.fromkeys(SPACES, " ")
# The full-width forms of ASCII's ! to ~ stand in ASCII's order from U+FF01.
for offset in range(ord("~") - ord("!") + 1):
    FOLD[chr(0xFF01 + offset)] = chr(ord("!") + offset)

FOLD_TABLE = str.maketrans(FOLD)
# Translating a character is slow, and most are ASCII or Hangul syllables, which do not change.
NEITHER_ASCII_NOR_HANGUL = regex.compile(r"[^\x00-\x7f가-힣]+")


def fold(text: str) -> str:
    """A copy of the same length in which all digits, hyphens, spaces and letters have one spelling.

    >>> fold("０１０ㅡ１２３４―５６７８"), fold("ｋｉｍ＠naver．com")
    ('010-1234-5678', 'kim@naver.com')
    """
    return NEITHER_ASCII_NOR_HANGUL.sub(fold_match, text)


def fold_match(match: regex.Match) -> str:
    return match[0].translate(FOLD_TABLE)
