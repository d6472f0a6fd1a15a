"""Telephone numbers: the weaker the evidence of the prefix, the more other evidence is required.

    010 1234 5678        a mobile prefix is enough, with any separators or none
    +82 2 123 4567       so is Korea's country code
    02-123-4567          an area code must be set off by hyphens, dots or brackets
    전화 02 1234 5678    with spaces or no separators, it needs a word (telephone) next to it

    >>> is_telephone(BY_WORD_PATTERN.search("전화 02 1234 5678"))
    True
    >>> is_telephone(BY_WORD_PATTERN.search("면적 02 1234 5678"))  # area: a row of a table
    False
"""
import regex

from cleaning.personal import (
    END,
    HYPHEN,
    NOT_IN_NAME,
    START,
    Kind,
    weighted_sum,
    words_after,
    words_before,
)

# Both codes are without the leading 0, which is dropped after the country code.
# Mobile phones 010, 011, 016-019; 050x, forwarding numbers; 070, internet telephony.
MOBILE_CODE = r"(?: 1[016789] | 50[0-9] | 70 )"
# Seoul 2, Gyeonggi 31, Incheon 32 ... Jeju 64.
AREA_CODE = r"(?: 2 | 3[1-3] | 4[1-4] | 5[1-5] | 6[1-4] )"

ANY_SEPARATOR = r"(?: \s?[-~·]\s? | [ ./] )"
CLEAR_SEPARATOR = rf"(?: {HYPHEN} | \. )"
# 02-123-4567~8: several lines, given by their last digits.
MORE_LINES = r"(?: ~[0-9]{1,4} )?"
# What follows the code: 123-4567, 1234 5678, 12345678 ...
ANY_NUMBER = rf"{ANY_SEPARATOR}? [0-9]{{3,4}} {ANY_SEPARATOR}? [0-9]{{4}} {MORE_LINES} {END}"
CLEAR_NUMBER = rf"[0-9]{{3,4}} {CLEAR_SEPARATOR} [0-9]{{4}} {MORE_LINES} {END}"

# A mobile code is evidence enough, with any separators or none.
MOBILE_PATTERN = regex.compile(
    rf"""
    {START}
    (?: \(0{MOBILE_CODE}\) | 0{MOBILE_CODE}\)? )   # (010), 010) or 010
    {ANY_NUMBER}
    """,
    regex.VERBOSE,
)

# So is Korea's country code, for landlines too: +82-10-1234-5678, 0082 2 123 4567, +82 (0)10 ...
# Without the + a mobile code must follow, after a separator or with no further one (820701 is a
# date of birth).
INTERNATIONAL_PATTERN = regex.compile(
    rf"""
    {START}
    (?: (?: \(\+82\) | \+82 | 0082 ) {ANY_SEPARATOR}? (?: \(0\) | 0 )? [ ]?
        (?: {MOBILE_CODE} | {AREA_CODE} )
      | 82 (?: [- ] (?: \(0\) | 0 )? | \(0\) ) {MOBILE_CODE}
      | 82 {MOBILE_CODE} (?=[0-9]{{7}})
    )
    \)?
    {ANY_NUMBER}
    """,
    regex.VERBOSE,
)

# An area code looks like any other number, so hyphens, dots or brackets must set it off.
LANDLINE_PATTERN = regex.compile(
    rf"""
    {START}
    (?: \(0{AREA_CODE}\) [ -]?                     # (02) 123-4567
      | 0{AREA_CODE}\) [ ]?                        # 02)123-4567
      | (?: 82[- ]?0? | 0 ){AREA_CODE} {CLEAR_SEPARATOR}   # 02-123-4567, 82-2-123-4567
    )
    {CLEAR_NUMBER}
    """,
    regex.VERBOSE,
)

# 02 1234 5678 may be a row of a table, 0311234567 a product: a word must say that it is a phone.
# Only Seoul numbers without separators need no word (see is_seoul).
BY_WORD_PATTERN = regex.compile(
    rf"""
    {START} {NOT_IN_NAME}
    (?: \(0{AREA_CODE}\) | 0{AREA_CODE}\)? )
    {ANY_NUMBER}
    """,
    regex.VERBOSE,
)
# Telephone, contact, enquiries, mobile phone (two words), fax.
TELEPHONE_WORD = regex.compile(
    r"""
    전화 | 연락 | 문의 | 휴대폰 | 핸드폰 | 팩스 | [☎☏📞📱]
    | \b (?: tel | phone | telephone | mobile | fax | call | h\.?p ) \b
    """,
    regex.VERBOSE | regex.IGNORECASE,
)


def is_mobile(match: regex.Match) -> bool:
    """Whether a match is neither a binary number (01101001011) nor a book's: those of Oxford
    University Press are ISBN 019 and seven digits."""
    is_binary = set(match[0]) <= {"0", "1", " "}
    return not is_binary and "ISBN" not in words_before(match)


# 02 and eight digits, which never begin with 0.
SEOUL = regex.compile(r"02[1-9][0-9]{7}")
ISBN_WEIGHTS = (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)


def is_telephone(match: regex.Match) -> bool:
    """Whether a word next to the match says so, or it is a Seoul number without separators."""
    is_before = TELEPHONE_WORD.search(words_before(match))
    is_behind = TELEPHONE_WORD.search(words_after(match))
    return is_before is not None or is_behind is not None or is_seoul(match[0])


def is_seoul(number: str) -> bool:
    """Whether ten digits are a Seoul number and not an ISBN such as 0262033844, whose weighted sum
    is a multiple of eleven (ISO 2108). 130 MB of real text contain neither.

    >>> is_seoul("0223456789"), is_seoul("0262033844")
    (True, False)
    """
    if not SEOUL.fullmatch(number):
        return False
    return weighted_sum(number, ISBN_WEIGHTS) % 11 != 0


def by_shape(match: regex.Match) -> bool:
    """Accept every match: the shape is evidence enough."""
    return True


MOBILE = Kind("phone", MOBILE_PATTERN, is_mobile)
INTERNATIONAL = Kind("phone", INTERNATIONAL_PATTERN, is_mobile)
LANDLINE = Kind("phone", LANDLINE_PATTERN, by_shape)
LANDLINE_BY_WORD = Kind("phone", BY_WORD_PATTERN, is_telephone)
