"""Step 2, mask: personal data gives way to a token that names its kind. The document stays.

A pattern alone is not enough: Korean rulings and statutes are full of numbers that look like somebody's. So each kind
asks for evidence besides its shape:

- resident registration number: a date of birth that exists and a seventh digit 1-8. The check digit decides only where
  there is no hyphen: numbers issued since October 2020 have none (their last six digits are random).
- phone: a mobile prefix or an area code, and nothing that continues the number on either side.
- e-mail: a real top-level domain; no git@host:path, user@host in a URL or method of a matrix product (a@b.sum()).
- card: Luhn's check, a prefix that is issued, and not four years in a row (one list of years in ten passes Luhn).
- bank account: only beside a bank's name or 계좌 (account), and not a date.
"""
import datetime
from collections.abc import Callable

import regex

# Hyphens and dashes as people type them. On the outside no digit, and nothing that ties a digit on, may touch a number.
DASH = r"\s?[-\u2010-\u2015\u2212]\s?"
START, END = r"(?<!\d|\d[-.,]|\w[-_=/])", r"(?![-.,]?\d)"

RESIDENT = regex.compile(rf"(?<!\d|\d-)(\d\d)(\d\d)(\d\d)({DASH}|\s?)([1-8])(\d{{6}}|[*xX○●]{{6}})(?![-*]?\d)")
CARD = regex.compile(rf"{START}(?:\d{{4}}([ -]?)\d{{4}}\1\d{{4}}\1\d{{4}}|3[47]\d\d([ -]?)\d{{6}}\2\d{{5}}){END}")
# (?(1)a|b) asks for a where the bracket of group 1 is, else for b: (02) 123-4567, 02)123-4567, (02-123-4567).
PHONE = regex.compile(
    rf"(?<!\d|\d[-.,])(?:(?:\(\+82\)|\+?82)[- ]?(?:\(0\)|0)?|(\()?0)(?:"
    rf"(?:1[016789]|50\d|70)(?:(?(1)\)[ -]?|(?:{DASH}|[ .]))\d{{3,4}}(?:{DASH}|[ .])\d{{4}}|(?(1)(?!)|\d{{7,8}}))"
    rf"|(?:2|3[1-3]|4[1-4]|5[1-5]|6[1-4])(?(1)\)[ -]?|(?:{DASH}|\.|\) ?))\d{{3,4}}(?:{DASH}|\.)\d{{4}}){END}")
ACCOUNT = regex.compile(rf"{START}(?:\d{{2,6}}(?:-\d{{1,7}}){{2,3}}|\d{{10,14}}){END}")
AT = r"(?:[@＠]|\s?[(\[]at[)\]]\s?)"
HAS_AT = regex.compile(AT)
EMAIL = regex.compile(rf"(?<![\w.+%-]|://[^\s@)]{{0,60}})(?!git@)[a-z0-9][\w.+%-]{{0,63}}{AT}(?:[a-z0-9-]+\.)+"
                      r"(?:[a-z]{2}|com|net|org|edu|gov|mil|info|biz|name|dev|app)(?![\w(-]|\.\w)",
                      regex.ASCII | regex.IGNORECASE)

# Account, bank, (internet) bank, the co-operatives, post office, paying in, transfer.
BANK = regex.compile(r"계좌|은행|뱅크|농협|수협|신협|새마을금고|우체국|입금|송금")
BANK_DIRECTLY = regex.compile(rf"(?:{BANK.pattern})(?:번호)?[은는]?[\s:：(]*$")  # 번호: number; 은/는: particle
DATE = regex.compile(r"(?:19|20)\d\d-\d{1,2}-\d{1,2}")
WHERE_BEFORE, WHERE_AFTER = 20, 10  # characters around the number in which a bank's name counts

# The first digits of issued cards: Visa 4, Mastercard 51-55 and 2221-2720, Amex 34 37, JCB 3528-3589, UnionPay 62,
# Discover 6011 644-649 65, and the Korean domestic range 9 (ISO/IEC 7812).
ISSUED = regex.compile(r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|352[89]|35[3-8]|62|6011|64[4-9]|65|9")


def luhn(digits: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1): from the right every second digit doubled, digit sums, a multiple of ten.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    doubled = [int(d) for d in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(2 * d - 9 * (d > 4) for d in doubled)) % 10 == 0


def is_resident(match: regex.Match, text: str) -> bool:
    """A date of birth that exists; without a hyphen, also the check digit, or 주민 (resident) nearby."""
    year, month, day, hyphen, seventh, rest = match.groups()
    try:
        datetime.date((1900 if seventh in "1256" else 2000) + int(year), int(month), int(day))
    except ValueError:
        return False
    if hyphen.strip() or not rest.isdecimal() or "주민" in text[max(0, match.start() - WHERE_BEFORE):match.start()]:
        return True
    digits, weights = year + month + day + seventh + rest, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(weight * int(digit) for weight, digit in zip(weights, digits[:12], strict=True))
    return (11 - total % 11) % 10 == int(digits[12])


def is_card(match: regex.Match, text: str) -> bool:
    digits = regex.sub(r"\D", "", match[0])
    years = all(1500 <= int(digits[i:i + 4]) <= 2100 for i in range(0, 16, 4))
    return not years and bool(ISSUED.match(digits)) and luhn(digits)


def is_account(match: regex.Match, text: str) -> bool:
    """10 to 14 digits, and on the same line a bank's name a little before or right behind; for a run without hyphens
    the name stands directly before it (in a novel a number follows "opened an account" that is no account's)."""
    before = text[max(0, match.start() - WHERE_BEFORE):match.start()].rpartition("\n")[2]
    after = text[match.end():match.end() + WHERE_AFTER].partition("\n")[0]
    if not 10 <= sum(map(str.isdecimal, match[0])) <= 14 or DATE.match(match[0]):
        return False
    return bool(BANK.search(before) or BANK.search(after)) if "-" in match[0] else bool(BANK_DIRECTLY.search(before))


# In this order: a resident number or a card is not to be taken for an account. What stands in a number's place is said
# in the language of the corpus: [주민번호] in an English one would be the only Korean there, and teach the wrong thing.
KINDS: list[tuple[str, regex.Pattern, dict[str, str], Callable[[regex.Match, str], bool]]] = [
    ("resident_number", RESIDENT, {"ko": "[주민번호]", "en": "[resident number]"}, is_resident),
    ("card", CARD, {"ko": "[카드번호]", "en": "[card number]"}, is_card),
    ("phone", PHONE, {"ko": "[전화번호]", "en": "[phone number]"}, lambda match, text: True),
    ("account", ACCOUNT, {"ko": "[계좌번호]", "en": "[account number]"}, is_account),
    ("email", EMAIL, {"ko": "[이메일]", "en": "[e-mail]"}, lambda match, text: True),
]


def mask(text: str, lang: str = "ko") -> tuple[str, str]:
    """(the text with personal data masked, the kinds that were found, joined by +).

    >>> mask("번호는 900101-1234567, 010-1234-5678")  # 'the numbers are ...'
    ('번호는 [주민번호], [전화번호]', 'resident_number+phone')
    >>> mask("2010. 3. 25. 선고 2009다12345, 1990-12-31")[1]  # a ruling's date and case number
    ''
    """
    found = {}
    for kind, pattern, tokens, is_one in KINDS if HAS_AT.search(text) else KINDS[:-1]:  # EMAIL is slow on Latin text
        def replace(match, kind=kind, token=tokens[lang], is_one=is_one):
            if not is_one(match, match.string):
                return match[0]
            found[kind] = True
            return token
        text = pattern.sub(replace, text)
    return text, "+".join(found)
