"""Step 2, mask: replaces personal data by a token that names its kind, and keeps the document.

A pattern alone is not enough: Korean rulings and statutes are full of numbers that look like
personal ones. So each kind requires evidence besides its shape:

    resident number  a valid date of birth, a seventh digit 1-8 (5-8 are foreigners), and a hyphen
                     or hidden digits; otherwise 주민 (resident) before it, or a correct check
                     digit; and no label of a company, whose numbers have the same shape
    card             Luhn's check, an issued prefix, and not four years in a row
    phone            a mobile prefix, or an area code in brackets or with hyphens or dots; an area
                     code with spaces or without separators only next to a word such as 전화
                     (telephone), or if it is Seoul's
    account          10 to 14 digits next to a bank's name or 계좌 (account), and not a date; a
                     bank's short name, usually an everyday word, only directly before the number
    e-mail           a real top-level domain; not git@host:path, user@host in a URL, or a method
                     call on a matmul (a@b.sum()); with spaces around the @ only at a mail service
                     or after 메일 (mail)

Not masked:

    of a person      names, addresses, dates of birth, numbers of passports, driver's licences and
                     vehicles, a user's @name; 123-4567 without an area code; accounts without a
                     bank; foreign telephones; digits spelled as words (공일공 일이삼사)
    of a business    1588-1234 and 080 numbers; registration numbers: a company's (110111-1234567)
                     if it is labelled, and a business's (123-45-67890)
    of a machine     IP and MAC addresses, URLs

This file is the step. The patterns and the evidence for each kind are in resident.py, bank.py
(cards and accounts), telephone.py and mail.py; what they share is in personal.py.
"""
from typing import NamedTuple

import regex

from cleaning.bank import ACCOUNT, CARD
from cleaning.mail import EMAIL, SPACED_EMAIL, SPELLED_AT, SPELLED_EMAIL
from cleaning.personal import DASHES, MIDDLE_DOTS, SPACES, TOKENS, WAVES, Kind, fold
from cleaning.resident import RESIDENT_NUMBER
from cleaning.telephone import INTERNATIONAL, LANDLINE, LANDLINE_BY_WORD, MOBILE

# ---- The kinds ----------------------------------------------------------------------------------

# In this order, so that a resident number or a card is not taken for an account.
NUMBERS = [RESIDENT_NUMBER, CARD, INTERNATIONAL, MOBILE, LANDLINE, LANDLINE_BY_WORD, ACCOUNT]

# ---- The step -----------------------------------------------------------------------------------


class Found(NamedTuple):
    """Personal data found at text[start:end]."""

    start: int
    end: int
    kind: Kind


def mask_personal_data(text: str, lang: str = "ko") -> tuple[str, str]:
    """(the text with personal data masked, the kinds found, joined by +).

    >>> mask_personal_data("번호는 900101-1234567, 010-1234-5678")  # 'the numbers are ...'
    ('번호는 [주민번호], [전화번호]', 'resident_number+phone')
    >>> mask_personal_data("０１０－１２３４－５６７８（집）")  # the brackets stay full-width
    ('[전화번호]（집）', 'phone')
    >>> mask_personal_data("2010. 3. 25. 선고 2009다12345, 1990-12-31")  # a date, a case number
    ('2010. 3. 25. 선고 2009다12345, 1990-12-31', '')
    """
    found = find_personal_data(text)
    pieces = []
    done = 0
    for start, end, kind in sorted(found):
        pieces.append(text[done:start])
        pieces.append(TOKENS[kind.name][lang])
        done = end
    pieces.append(text[done:])
    names = dict.fromkeys(item.kind.name for item in found)  # each once, in order
    return "".join(pieces), "+".join(names)


def find_personal_data(text: str) -> list[Found]:
    """All personal data in a text, kind by kind.

    >>> [(start, end, kind.name) for start, end, kind in find_personal_data("☎ 010)1234-5678")]
    [(2, 15, 'phone')]
    """
    # Only the kinds that the text may contain: see the quick tests below.
    kinds = []
    if NINE_DIGITS.search(text):
        kinds += NUMBERS
    if AT_SIGN.search(text):
        kinds += [EMAIL, SPACED_EMAIL]
    if SPELLED_AT.search(text):
        kinds += [SPELLED_EMAIL]
    if not kinds:
        return []

    # Kind by kind: each kind's matches are hidden from the next.
    found = []
    folded = fold(text)
    for kind in kinds:
        places = [match.span() for match in kind.pattern.finditer(folded) if kind.is_one(match)]
        found += [Found(start, end, kind) for start, end in places]
        folded = hide(folded, places)
    return found


def hide(folded: str, places: list[tuple[int, int]]) -> str:
    """Hide what was found from the kinds that follow, keeping every position."""
    pieces = []
    done = 0
    for start, end in places:
        pieces.append(folded[done:start])
        pieces.append("■" * (end - start))
        done = end
    pieces.append(folded[done:])
    return "".join(pieces)


# ---- Quick tests --------------------------------------------------------------------------------

# Most documents hold no personal data, and a few quick searches show that. Every number has nine
# digits or more (02-123-4567), including hidden ones, with at most five separators between two
# digits. The text is not folded yet, so full-width forms are listed here.
SEPARATORS = rf"-~·./()\s{DASHES}{WAVES}{MIDDLE_DOTS}{SPACES}－～．／（）"
NINE_DIGITS = regex.compile(rf"[0-9０-９](?:[{SEPARATORS}]{{0,5}}[0-9０-９*＊xXｘＸ○●◯]){{8}}")
AT_SIGN = regex.compile("[@＠\ufe6b]")
