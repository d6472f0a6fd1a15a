"""Resident registration numbers, and company registration numbers, which have the same shape.

    900101-1234568    a resident: born on 1 January 1990; 1, a man born before 2000; check digit 8
    110111-1234569    a company: registered at court 1101, in Seoul; 11, a stock company; check
                      digit 9

The first six digits of the company's number are also a date, 11 January 1911. So the two are told
apart by the words around a number and by its check digit:

    >>> is_resident(RESIDENT_PATTERN.search("법인등록번호 110111-1234569"))  # a company's label
    False
    >>> is_resident(RESIDENT_PATTERN.search("번호 110111-1234569"))  # 'number': if in doubt, yes
    True
"""
import datetime

import regex

from cleaning.personal import ANY_TOKEN, Kind, digits_of, weighted_sum, words_before

# ---- Resident registration numbers --------------------------------------------------------------

RESIDENT_PATTERN = regex.compile(
    r"""
    (?<! [0-9] | [0-9]- )
    (?P<year>[0-9]{2}) (?P<month>[0-9]{2}) (?P<day>[0-9]{2})
    (?P<separator> \s?[-~·]\s? | \s? | \. )
    (?P<seventh>[1-8])                     # century and sex; 5-8 are foreigners
    (?P<rest> [0-9]{6} | [*xX○●]{6} )      # often hidden, unlike the date of birth
    (?! [-*]?[0-9] )
    """,
    regex.VERBOSE,
)
# Resident, foreigner, residence (of Koreans living abroad): the words for their numbers.
RESIDENT_WORD = regex.compile("주민|외국인|거소")
RESIDENT_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)


def is_resident(match: regex.Match) -> bool:
    """Whether a match has a valid date of birth, and a hyphen, hidden digits, or 주민 (resident)
    before it.

    Without any of these the check digit decides. With a hyphen it is not consulted: numbers issued
    since October 2020 have no check digit (their last six digits are random)."""
    born_before_2000 = match["seventh"] in "1256"
    century = 1900 if born_before_2000 else 2000
    try:
        datetime.date(century + int(match["year"]), int(match["month"]), int(match["day"]))
    except ValueError:
        return False
    if is_company(match):
        return False

    is_hidden = not match["rest"].isdecimal()
    is_named = RESIDENT_WORD.search(words_before(match)) is not None
    if "-" in match["separator"] or is_hidden or is_named:
        return True
    if match["separator"] == ".":  # may be a decimal fraction
        return False
    return has_resident_check(digits_of(match))


def has_resident_check(digits: str) -> bool:
    """Whether the last of thirteen digits is the check digit of a resident number.

    >>> has_resident_check("9001011234568"), has_resident_check("9001011234567")
    (True, False)
    """
    check = (11 - weighted_sum(digits[:12], RESIDENT_WEIGHTS) % 11) % 10
    last = int(digits[12])
    if last == check:
        return True
    # In foreigners' numbers (seventh digit 5-8) it is usually two higher.
    return digits[6] in "5678" and last == (check + 2) % 10


RESIDENT_NUMBER = Kind("resident_number", RESIDENT_PATTERN, is_resident)

# ---- Company registration numbers ---------------------------------------------------------------

# A corporation's registration number (법인등록번호) has the same shape: four digits for its court,
# two for its kind, a serial number, a check digit. That of a stock company in Seoul begins with
# 110111, which is also a date. These numbers are public and stay, but only if the text says what
# they are. If in doubt, a number is masked: that harms no company, and not masking it may harm a
# person.

# How many characters before a number are searched for its label, and for the head of the table that
# contains it. Ours, chosen by hand: a label followed by bars and spaces; about twenty rows.
LABEL_BEFORE = 60
HEAD_BEFORE = 1000

# A label belongs to one number only: the search for it stops at another number, or at a token.
NUMBER_OR_TOKEN = regex.compile(rf"[0-9*xX○●]{{5,}}|{ANY_TOKEN}")
HAS_WORD = regex.compile(r"\w")
# Resident, foreigner, individual, date of birth. Some forms ask for either: 주민(법인)등록번호.
PERSON = regex.compile("주민|외국인|개인|생년월일")
# Representative, director, chair, president, officer, staff, name (two words): on a page about a
# company they come before a person's number.
POSITION = regex.compile("대표|이사|회장|사장|임원|직원|성명|이름")

COMPANY_NUMBER = r"""
    (?: 법\s?인 \s? \(? (?: 등\s?[록기] \s? )? \)? \s? 번\s?호   # 법인(등록)번호, 법 인 등 기 번 호
      | 등록번호 [ ]? \(법인\)
      | corporat(?:e|ion) [ ] (?: registration [ ] )? (?: number | no\b )
    )
"""
# Between a label or a name and its number: spaces, colons, brackets, the bars of a table.
UP_TO_NUMBER = r"[^가-힣A-Za-z0-9]{0,20} $"
COMPANY_FLAGS = regex.VERBOSE | regex.IGNORECASE

COMPANY_HEAD = regex.compile(COMPANY_NUMBER, COMPANY_FLAGS)
COMPANY_LABEL = regex.compile(
    rf"""
    (?: {COMPANY_NUMBER} [은는이가]?                # perhaps with a particle
      | (?<!비) 법인                               # 'corporation', not 비법인, 'unincorporated'
    )
    {UP_TO_NUMBER}
    """,
    COMPANY_FLAGS,
)
COMPANY_NAME = regex.compile(
    rf"""
    # The kind of company, before or after its name: (주)한빛, 한빛 주식회사 ...
    (?: \((?:주|유|재|사)\) | [㈜㈲] | (?:주식|유한|합자|합명)회사 | (?:재단|사단)법인 )
    [ ]? [^\s0-9]{{0,20}}
    {UP_TO_NUMBER}
    """,
    regex.VERBOSE,
)
COMPANY_WEIGHTS = (1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2)


def is_company(match: regex.Match) -> bool:
    """Whether the text says that a match of RESIDENT_PATTERN is a corporation's number.

    A label directly before it is enough, unless the check digits say that it is a resident's. A
    company's name before it, or a label in the head of a table, is weaker evidence, as the number
    may belong to somebody who works there: the check digit must agree, and no position may be
    named."""
    label = label_of(match)
    if PERSON.search(label):
        return False
    if COMPANY_LABEL.search(label):
        return not can_only_be_resident(match)
    if POSITION.search(label):
        return False
    start = max(0, match.start() - HEAD_BEFORE)
    head = match.string[start:match.start()]
    is_near_company = COMPANY_NAME.search(label) or COMPANY_HEAD.search(head)
    return is_near_company is not None and can_only_be_company(match)


def label_of(match: regex.Match) -> str:
    """The words that may label a number: those before it on its line, else the line above."""
    start = max(0, match.start() - LABEL_BEFORE)
    before = NUMBER_OR_TOKEN.split(match.string[start:match.start()])[-1]
    lines = [line for line in before.split("\n") if HAS_WORD.search(line)]
    # A narrow cell breaks its label at the brackets: 주민등록번호⏎(법인등록번호).
    if len(lines) > 1 and lines[-1].lstrip().startswith("("):
        return lines[-2] + lines[-1]
    return lines[-1] if lines else ""


def can_only_be_company(match: regex.Match) -> bool:
    """Whether the check digit is right for a corporation, and wrong for a resident."""
    digits = digits_of(match)
    is_hidden = len(digits) < 13
    # Children born since October 2020 have numbers without a check digit.
    is_child = match["seventh"] in "3478" and int(match["year"]) >= 20
    if is_hidden or is_child:
        return False
    return has_company_check(digits) and not has_resident_check(digits)


def can_only_be_resident(match: regex.Match) -> bool:
    """Whether the check digit is right for a resident, and wrong for a corporation."""
    digits = digits_of(match)
    is_hidden = len(digits) < 13
    if is_hidden:
        return False
    return has_resident_check(digits) and not has_company_check(digits)


def has_company_check(digits: str) -> bool:
    """Whether the last of thirteen digits is the check digit of a corporation's number. The rule is
    in the annex to 법인 및 재외국민의 부동산등기용등록번호 부여에 관한 규칙 (Supreme Court).

    >>> has_company_check("1101111234569"), has_company_check("1101111234567")
    (True, False)
    """
    total = weighted_sum(digits[:12], COMPANY_WEIGHTS)
    return (10 - total % 10) % 10 == int(digits[12])
