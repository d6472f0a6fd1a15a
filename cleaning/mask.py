"""Step 2, mask: personal data gives way to a token that names its kind. The document stays.

A pattern alone is not enough: Korean rulings and statutes are full of numbers that look like
somebody's. So each kind asks for evidence besides its shape:

    resident number  a date of birth that exists, a seventh digit 1-8 (5-8 are foreigners), and a
                     hyphen or hidden digits; else the check digit or 주민 (resident) in front; and
                     nothing that calls it a company's, whose numbers have the same shape
    card             Luhn's check, a prefix that is issued, and not four years in a row
    phone            a mobile prefix, or an area code in brackets, or with hyphens or dots; an area
                     code with spaces or without separators only beside a word such as 전화
                     (telephone), or if it is Seoul's
    account          10 to 14 digits beside a bank's name or 계좌 (account), and not a date; the
                     short name of a bank, most often a word of every day, has to stand directly in
                     front
    e-mail           a real top-level domain; no git@host:path, user@host in a URL or method of a
                     matrix product (a@b.sum()); with spaces around the @ only at a mail service

Left as they are:

    of a person      names, addresses, dates of birth, numbers of passports, driver's licences and
                     vehicles, a user's @name; 123-4567 without its area code; an account beside no
                     bank; foreign telephones; what is spelled as words (공일공 일이삼사)
    of a business    1588-1234 and 080 numbers; registration numbers, a company's (110111-1234567)
                     where its label says so, and a business's (123-45-67890)
    of a machine     IP and MAC addresses, URLs
"""
import datetime
import itertools
from collections.abc import Callable
from typing import NamedTuple

import regex

# ---- One spelling to look for -------------------------------------------------------------------

# People type 010-1234-5678 with full-width digits and with whatever looks like a hyphen. So that no
# pattern has to know all of these, patterns look at a folded copy of the text. Each character gives
# way to exactly one, so a place in the copy is the same place in the text; the copy is thrown away
# and the text keeps its own characters.
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
# Looking up a character takes long, and most are ASCII or Hangul syllables, which stay.
NEITHER_ASCII_NOR_HANGUL = regex.compile(r"[^\x00-\x7f가-힣]+")


def fold(text: str) -> str:
    """A copy of the same length in which digits, hyphens, spaces and letters have one spelling.

    >>> fold("０１０ㅡ１２３４―５６７８"), fold("ｋｉｍ＠naver．com")
    ('010-1234-5678', 'kim@naver.com')
    """
    return NEITHER_ASCII_NOR_HANGUL.sub(fold_match, text)


def fold_match(match: regex.Match) -> str:
    return match[0].translate(FOLD_TABLE)


# ---- What all kinds share -----------------------------------------------------------------------


class Kind(NamedTuple):
    name: str                # in the report, and in TOKENS
    pattern: regex.Pattern   # where to look
    is_one: Callable[[regex.Match], bool]  # the evidence besides the shape


# What replaces each kind, in the language of the corpus: [주민번호] in an English one would be the
# only Korean there, and teach the wrong thing.
TOKENS = {
    "resident_number": {"ko": "[주민번호]", "en": "[resident number]"},
    "card": {"ko": "[카드번호]", "en": "[card number]"},
    "phone": {"ko": "[전화번호]", "en": "[phone number]"},
    "account": {"ko": "[계좌번호]", "en": "[account number]"},
    "email": {"ko": "[이메일]", "en": "[e-mail]"},
}
ALL_TOKENS = [*itertools.chain(*(tokens.values() for tokens in TOKENS.values()))]
ANY_TOKEN = "|".join(map(regex.escape, ALL_TOKENS))


# Patterns are written with regex.VERBOSE: spaces and lines in them mean nothing; a space that is
# meant is [ ].
HYPHEN = r"(?: \s?-\s? )"  # 010-1234 or 010 - 1234

# Nothing that ties a further digit to a number may touch it.
START = r"(?<! [0-9] | [0-9][-.,] )"
END = r"(?! [-.,]?[0-9] )"
# Nor may it be a piece of a URL or of a name: item-4111..., ?id=4111..., /4111...
NOT_IN_NAME = r"(?<! [A-Za-z0-9_][-_=/] )"

# How many characters in front of a number and behind it are searched for a word that counts as
# evidence. Ours, chosen by hand: a label in front may have a few words behind it; what stands
# behind a number follows at once.
WHERE_BEFORE = 20
WHERE_AFTER = 10


def words_before(match: regex.Match) -> str:
    """What stands in front of a number on the same line, as far as it counts as evidence."""
    start = max(0, match.start() - WHERE_BEFORE)
    return match.string[start:match.start()].rpartition("\n")[2]


def words_after(match: regex.Match) -> str:
    """What stands behind a number on the same line, as far as it counts as evidence."""
    return match.string[match.end():match.end() + WHERE_AFTER].partition("\n")[0]


def digits_of(match: regex.Match) -> str:
    return regex.sub(r"[^0-9]", "", match[0])


def weighted_sum(digits: str, weights: tuple[int, ...]) -> int:
    """What check digits are computed from: each digit times the weight of its place.

    >>> weighted_sum("305", (1, 2, 3))
    18
    """
    total = 0
    for digit, weight in zip(digits, weights, strict=True):
        total += int(digit) * weight
    return total


def are_years(groups: list[str]) -> bool:
    """Whether all groups of digits may be years."""
    # Ours: of 60,830 years with 년 (year) behind them, 95 % are among these.
    return all(1500 <= int(group) <= 2100 for group in groups)


def by_shape(match: regex.Match) -> bool:
    """No evidence is needed besides the shape."""
    return True


# ---- Resident registration numbers --------------------------------------------------------------

RESIDENT_PATTERN = regex.compile(
    r"""
    (?<! [0-9] | [0-9]- )
    (?P<year>[0-9]{2}) (?P<month>[0-9]{2}) (?P<day>[0-9]{2})
    (?P<separator> \s?[-~·]\s? | \s? | \. )
    (?P<seventh>[1-8])                     # century and sex; 5-8 are foreigners
    (?P<rest> [0-9]{6} | [*xX○●]{6} )      # the rest is often hidden; the date of birth is not
    (?! [-*]?[0-9] )
    """,
    regex.VERBOSE,
)
# Resident, foreigner, residence (of a Korean from abroad): the words for their numbers.
RESIDENT_WORD = regex.compile("주민|외국인|거소")
RESIDENT_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)


def is_resident(match: regex.Match) -> bool:
    """A date of birth that exists, and a hyphen, hidden digits, or 주민 (resident) in front.

    Without any of them the check digit decides. It does not decide where there is a hyphen: numbers
    issued since October 2020 have none (their last six digits are random)."""
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
    if match["separator"] == ".":  # else a decimal fraction
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
    # Foreigners' numbers (the seventh digit is 5-8) mostly end in two more.
    return digits[6] in "5678" and last == (check + 2) % 10


RESIDENT_NUMBER = Kind("resident_number", RESIDENT_PATTERN, is_resident)

# ---- A company's number is no resident's --------------------------------------------------------

# A corporation's registration number (법인등록번호) has the same shape: four digits for its court,
# two for its kind, a serial number, a check digit. That of a stock company in Seoul begins with
# 110111, which is a date as well. These numbers are public and stay, but only where the text says
# what they are. In doubt a number is masked: that harms no company, and not masking it may harm a
# person.

# How many characters in front of a number are searched for its label, and for the head of a table
# that it stands in. Ours, chosen by hand: a label with bars and spaces behind it; some twenty rows.
LABEL_BEFORE = 60
HEAD_BEFORE = 1000

# The label of one number ends where another one stands, or the token in its place.
NUMBER_OR_TOKEN = regex.compile(rf"[0-9*xX○●]{{5,}}|{ANY_TOKEN}")
HAS_WORD = regex.compile(r"\w")
# Resident, foreigner, individual, date of birth. Some forms ask for either: 주민(법인)등록번호.
PERSON = regex.compile("주민|외국인|개인|생년월일")
# Representative, director, chair, president, officer, staff, name: on a page about a company they
# stand in front of a person's number.
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
    # The kind of company in front of its name or behind it: (주)한빛, 한빛 주식회사 ...
    (?: \((?:주|유|재|사)\) | [㈜㈲] | (?:주식|유한|합자|합명)회사 | (?:재단|사단)법인 )
    [ ]? [^\s0-9]{{0,20}}
    {UP_TO_NUMBER}
    """,
    regex.VERBOSE,
)
COMPANY_WEIGHTS = (1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2)


def is_company(match: regex.Match) -> bool:
    """Whether a match of RESIDENT_PATTERN is called a corporation's number.

    A label right in front says so, unless the check digits say that it is a resident's. A company's
    name in front, or a label in the head of a table, is weaker: the number may be that of somebody
    who works there, so the check digit has to agree, and no position may be named."""
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
    """The words that may name a number: those in front of it on its line, else the line above."""
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
    # Whoever was born since October 2020 has a number without a check digit.
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


# ---- Cards --------------------------------------------------------------------------------------

CARD_PATTERN = regex.compile(
    rf"""
    (?=[0-9])                                      # saves looking back everywhere
    {START} {NOT_IN_NAME}
    (?: [0-9]{{4}} (?P<four> {HYPHEN} | [ ]? ) [0-9]{{4}} (?P=four) [0-9]{{4}} (?P=four) [0-9]{{4}}
      | 3[47][0-9]{{2}} (?P<amex> {HYPHEN} | [ ]? ) [0-9]{{6}} (?P=amex) [0-9]{{5}}
    )
    {END}
    """,
    regex.VERBOSE,
)

# The first digits of issued cards (ISO/IEC 7812).
ISSUED = regex.compile(
    r"""
    4                                              # Visa
    | 5[1-5] | 222[1-9] | 22[3-9] | 2[3-6] | 27[01] | 2720   # Mastercard: 51-55, 2221-2720
    | 3[47]                                        # American Express
    | 352[89] | 35[3-8]                            # JCB: 3528-3589
    | 62                                           # UnionPay
    | 6011 | 64[4-9] | 65                          # Discover
    | 9                                            # Korean, for use in Korea only
    """,
    regex.VERBOSE,
)


def is_card(match: regex.Match) -> bool:
    """Luhn's check, an issued prefix, and not four years: one list of years in ten passes Luhn."""
    digits = digits_of(match)
    groups = [digits[i:i + 4] for i in range(0, 16, 4)]
    return not are_years(groups) and ISSUED.match(digits) is not None and luhn(digits)


def luhn(digits: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1): from the right every second digit is doubled; the sum of all
    digits is a multiple of ten.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        if place % 2 == 1:
            value *= 2
        total += value // 10 + value % 10
    return total % 10 == 0


CARD = Kind("card", CARD_PATTERN, is_card)


# ---- Telephones ---------------------------------------------------------------------------------

# Both codes are without the 0 in front, which is left out behind the country code.
# Mobile phones 010, 011, 016-019; 050x, numbers that forward to another; 070, over the internet.
MOBILE_CODE = r"(?: 1[016789] | 50[0-9] | 70 )"
# Seoul 2, Gyeonggi 31, Incheon 32 ... Jeju 64.
AREA_CODE = r"(?: 2 | 3[1-3] | 4[1-4] | 5[1-5] | 6[1-4] )"

ANY_SEPARATOR = r"(?: \s?[-~·]\s? | [ ./] )"
CLEAR_SEPARATOR = rf"(?: {HYPHEN} | \. )"
# 02-123-4567~8: several lines, of which the last digits are named.
MORE_LINES = r"(?: ~[0-9]{1,4} )?"
# What follows the code: 123-4567, 1234 5678, 12345678 ...
ANY_NUMBER = rf"{ANY_SEPARATOR}? [0-9]{{3,4}} {ANY_SEPARATOR}? [0-9]{{4}} {MORE_LINES} {END}"
CLEAR_NUMBER = rf"[0-9]{{3,4}} {CLEAR_SEPARATOR} [0-9]{{4}} {MORE_LINES} {END}"

# A mobile code is evidence enough for any separators, and for none.
MOBILE_PATTERN = regex.compile(
    rf"""
    {START}
    (?: \(0{MOBILE_CODE}\) | 0{MOBILE_CODE}\)? )   # (010), 010) or 010
    {ANY_NUMBER}
    """,
    regex.VERBOSE,
)

# So is Korea's country code, for landlines too: +82-10-1234-5678, 0082 2 123 4567, +82 (0)10 ...
# Without the + it needs a mobile code, and a separator or none further: 820701 is a date of birth.
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

# An area code is a number like any other: hyphens, dots or brackets have to set it off.
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

# 02 1234 5678 may be a row of a table, 0311234567 a product: a word has to say that it is a phone.
# Only a number of Seoul without separators is one by itself (see is_seoul).
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
    """Not a number in base two (01101001011), which is a computer's more often than a person's, and
    not a book's: those of Oxford University Press are ISBN 019 and seven digits."""
    is_binary = set(match[0]) <= {"0", "1", " "}
    return not is_binary and "ISBN" not in words_before(match)


# 02 and eight digits, which never begin with 0.
SEOUL = regex.compile(r"02[1-9][0-9]{7}")
ISBN_WEIGHTS = (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)


def is_telephone(match: regex.Match) -> bool:
    """A word beside it says so, or it is a number of Seoul without separators."""
    is_before = TELEPHONE_WORD.search(words_before(match))
    is_behind = TELEPHONE_WORD.search(words_after(match))
    return is_before is not None or is_behind is not None or is_seoul(match[0])


def is_seoul(number: str) -> bool:
    """Whether ten digits are a number of Seoul and not those of a book, as ISBN 0262033844 are: in
    one the weighted sum is a multiple of eleven (ISO 2108). Of 130 MB of real text none is either.

    >>> is_seoul("0223456789"), is_seoul("0262033844")
    (True, False)
    """
    if not SEOUL.fullmatch(number):
        return False
    return weighted_sum(number, ISBN_WEIGHTS) % 11 != 0


MOBILE = Kind("phone", MOBILE_PATTERN, is_mobile)
INTERNATIONAL = Kind("phone", INTERNATIONAL_PATTERN, is_mobile)
LANDLINE = Kind("phone", LANDLINE_PATTERN, by_shape)
LANDLINE_BY_WORD = Kind("phone", BY_WORD_PATTERN, is_telephone)

# ---- Bank accounts ------------------------------------------------------------------------------

ACCOUNT_PATTERN = regex.compile(
    rf"""
    (?=[0-9])
    {START} {NOT_IN_NAME}
    (?: [0-9]{{2,6}} (?: -[0-9]{{1,7}} ){{2,3}} | [0-9]{{10,14}} )
    {END}
    """,
    regex.VERBOSE,
)
# Account, bank, (internet) bank, the co-operatives, post office, paying in, transfer.
BANK_WORDS = "계좌|은행|뱅크|농협|수협|신협|새마을금고|우체국|입금|송금"
BANK = regex.compile(BANK_WORDS)
BANK_DIRECTLY = regex.compile(
    rf"""
    (?: {BANK_WORDS} )
    (?: 번호 )?                                    # number
    [은는]?                                        # a particle
    [\s:(]* $
    """,
    regex.VERBOSE,
)
# Banks' short names that mean nothing else: a number behind one needs no hyphens.
CLEAR_NAME_DIRECTLY = regex.compile(
    r"""
    (?: (?<![가-힣]) (?: 신한 | 카뱅 | 케뱅 | 토스 | 씨티 ) | (?<![A-Za-z]) (?: KB | NH | IBK ) )
    [ ]? [:(]? [ ]? $
    """,
    regex.VERBOSE,
)
# Most are words of every day as well (people, we, one, company; names of cities), so one has to
# stand directly in front, as a word of its own.
SHORT_NAME_DIRECTLY = regex.compile(
    r"""
    (?: (?<![가-힣])
        (?: 국민 | 신한 | 우리 | 하나 | 기업 | 산업 | 제일 | 외환 | 씨티 | 카카오 | 카뱅 | 케뱅
          | 토스 | 새마을 | 부산 | 대구 | 광주 | 전북 | 경남 | 제주 )
      | (?<![A-Za-z]) (?: KB | NH | IBK | SC )
    )
    [ ]? [:(]? [ ]? $
    """,
    regex.VERBOSE,
)
DATE = regex.compile(r"(?:19|20)[0-9]{2}-[0-9]{1,2}-[0-9]{1,2}(?![0-9])")

YEAR = regex.compile(r"(?:19|20)[0-9]{2}-")


def is_account(match: regex.Match) -> bool:
    """10 to 14 digits, and a bank's name on the same line: a little before, or right behind.

    A run without hyphens has it directly in front (in a novel a number follows "opened an account"
    that is no account's). So has a number whose bank is called by its short name."""
    number = match[0]
    count = len(digits_of(match))
    # Ours, chosen by hand.
    if not 10 <= count <= 14 or DATE.match(number):
        return False
    before = words_before(match)
    if "-" not in number:
        is_named = BANK_DIRECTLY.search(before) or CLEAR_NAME_DIRECTLY.search(before)
        return is_named is not None

    if are_years(number.split("-")):
        return False
    if BANK.search(before) or BANK.search(words_after(match)):
        return True
    if not SHORT_NAME_DIRECTLY.search(before):
        return False
    # A city's name or 기업 (company) also stands before 2016-12-345678, a file number, and
    # 123-45-67890, a company's registration.
    return count >= 11 and not YEAR.match(number)


ACCOUNT = Kind("account", ACCOUNT_PATTERN, is_account)


# ---- E-mail -------------------------------------------------------------------------------------

# Domains of two letters are countries: the codes of ISO 3166-1 that are in DNS, and eu, uk, su.
COUNTRIES = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs "
    "bt bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee "
    "eg er es et eu fi fj fk fm fo fr ga gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm "
    "hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb "
    "lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz "
    "na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs "
    "ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl "
    "tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw"
)
# Longer ones in which people have mail (IANA, root zone). The root zone has a thousand more, among
# them map, zip, date and run: names of methods, which stand behind a product of matrices.
GENERIC = (
    "com net org edu gov mil info biz name dev app pro mobi asia coop aero jobs museum travel "
    "academy accountants agency art associates bank blog builders business capital care careers "
    "center chat church city cloud club community company consulting cool design digital direct "
    "doctor education email energy engineer engineering enterprises events expert finance fund "
    "gallery games global group guide guru health help holdings hospital host house industries "
    "institute international investments kim kiwi land law lawyer legal life limited live london "
    "ltd management market marketing media moe money network news ninja one online partners photo "
    "photography photos pictures press productions properties realty restaurant school science "
    "services shop site social software solutions space store studio support systems team tech "
    "technology today tokyo tools top tours training university vip website wiki work works world "
    "xyz zone"
)
TOP_LEVEL = frozenset(f"{COUNTRIES} {GENERIC}".split())

# In front of the @. Possessive (the + at the end): the @ is none of these characters, so where the
# longest name fails there is no shorter one to try.
NAME = r"(?<! [\w.+%-] ) (?P<name> [a-z0-9] [\w.+%-]{0,63}+ )"
HOST = r"(?P<host> (?: [a-z0-9-]{1,63} \. ){1,8} )"
# What ends an address: no further part of a name, and no call of a method, as in x.to(device). What
# stands in kim@naver.com(김철수) is a name.
TOP = r"(?P<top> [a-z]{2,20} ) (?! [\w-] | \.\w | \( (?![가-힣]) )"
FLAGS = regex.VERBOSE | regex.ASCII | regex.IGNORECASE

EMAIL_PATTERN = regex.compile(rf"{NAME} @ {HOST} {TOP}", FLAGS)

# Spelled, to be hidden from machines: kim (at) naver (dot) com, kim골뱅이naver.com. Koreans call
# the @ 골뱅이, a snail.
SPELLED_AT = regex.compile(r"[(\[{](?:at|골뱅이)[)\]}]|골뱅이", regex.IGNORECASE)
SPELLED_DOT = r"(?: \. | [ ]?[(\[{]dot[)\]}][ ]? )"
SPELLED_PATTERN = regex.compile(
    rf"""
    {NAME}
    [ ]? (?: {SPELLED_AT.pattern} ) [ ]?
    (?P<host> (?: [a-z0-9-]{{1,63}} {SPELLED_DOT} ){{1,8}} )
    {TOP}
    """,
    FLAGS,
)

# With spaces around the @ it may as well be "see you @ example.com", or a product of matrices. It
# is an address at a service where people have their mail, or directly behind 메일 (mail).
SERVICE = "naver|daum|hanmail|kakao|nate|gmail|hotmail|outlook|yahoo|icloud|empal|paran|lycos"
SPACED_PATTERN = regex.compile(
    rf"""
    {NAME} [ ]? @ [ ]?
    (?: (?P<service> {SERVICE} ) [ ]?\.[ ]? (?: co [ ]?\.[ ]? )? | {HOST} )
    {TOP}
    """,
    FLAGS,
)
MAIL_DIRECTLY = regex.compile(
    r"(?: 메일 (?:[ ]?주소)? [은는]? [ ]? :? | mail [ ]? : ) [ ]? $",  # 주소: address
    regex.VERBOSE | regex.IGNORECASE,
)
# https://user:secret@host.com, at the place of "secret".
INSIDE_URL = regex.compile(r"://[^\s@)]*$")
# host.com:path or host.com:~/path behind a user's name: a place on another machine.
REMOTE_PATH = regex.compile(r":[\w.~-]*/", regex.ASCII)


def is_email(match: regex.Match) -> bool:
    """A real top-level domain; not a user in a URL or on another machine, nor code."""
    top = match["top"]
    if top.lower() not in TOP_LEVEL:
        return False
    text = match.string
    # Ours, chosen by hand: 60 characters hold what precedes a password in most URLs.
    before = text[max(0, match.start() - 60):match.start()]
    if INSIDE_URL.search(before) or REMOTE_PATH.match(text, match.end()):
        return False
    if match["name"] == "git" or match["name"].startswith("self."):
        return False

    host = match["host"] or ""  # none where a service is named
    is_attribute = host.startswith("self.")  # x@self.to
    is_transpose = top[0].islower() and not top.islower()  # x@w.mT
    is_subscript = len(top) == 2 and text.startswith("[", match.end())  # x@w.at[0]
    return not is_attribute and not is_transpose and not is_subscript


def is_spaced_email(match: regex.Match) -> bool:
    """The same, at a mail service or directly behind 메일."""
    is_mail = match["service"] or MAIL_DIRECTLY.search(words_before(match))
    return bool(is_mail) and is_email(match)


EMAIL = Kind("email", EMAIL_PATTERN, is_email)
SPACED_EMAIL = Kind("email", SPACED_PATTERN, is_spaced_email)
SPELLED_EMAIL = Kind("email", SPELLED_PATTERN, is_email)

# ---- All kinds ----------------------------------------------------------------------------------

# In this order: a resident number or a card is not to be taken for an account.
NUMBERS = [RESIDENT_NUMBER, CARD, INTERNATIONAL, MOBILE, LANDLINE, LANDLINE_BY_WORD, ACCOUNT]

# Most documents hold none of this, and a few quick searches see it. Each number has nine digits or
# more (02-123-4567), hidden ones included, and at most five separators between two of them. The
# text is not folded yet, so full-width forms are spelt out here.
SEPARATORS = rf"-~·./()\s{DASHES}{WAVES}{MIDDLE_DOTS}{SPACES}－～．／（）"
NINE_DIGITS = regex.compile(rf"[0-9０-９](?:[{SEPARATORS}]{{0,5}}[0-9０-９*＊xXｘＸ○●◯]){{8}}")
AT_SIGN = regex.compile("[@＠\ufe6b]")


class Found(NamedTuple):
    """Personal data: characters start ... end of a text."""

    start: int
    end: int
    kind: Kind


def find_personal_data(text: str) -> list[Found]:
    """All personal data in a text, kind by kind.

    >>> [(start, end, kind.name) for start, end, kind in find_personal_data("☎ 010)1234-5678")]
    [(2, 15, 'phone')]
    """
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
    """Hide what was found from the kinds that come after, without moving anything."""
    pieces = []
    done = 0
    for start, end in places:
        pieces.append(folded[done:start])
        pieces.append("■" * (end - start))
        done = end
    pieces.append(folded[done:])
    return "".join(pieces)


def mask_personal_data(text: str, lang: str = "ko") -> tuple[str, str]:
    """(the text with personal data masked, the kinds that were found, joined by +).

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
