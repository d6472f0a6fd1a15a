"""Bank numbers: cards, which can be checked by their digits, and accounts, which cannot.

The digits of a card number are evidence in themselves: an issued prefix, and Luhn's check, which
nine out of ten random numbers fail. Account formats differ from bank to bank, so only the words
next to a number tell an account from, say, a file number:

    >>> is_account(ACCOUNT_PATTERN.search("국민은행 123-45-678901"))  # Kookmin Bank
    True
    >>> is_account(ACCOUNT_PATTERN.search("문서번호 123-45-678901"))  # 'file number'
    False
"""
import regex

from cleaning.personal import (
    END,
    HYPHEN,
    NOT_IN_NAME,
    START,
    Kind,
    digits_of,
    words_after,
    words_before,
)

# ---- Cards --------------------------------------------------------------------------------------

CARD_PATTERN = regex.compile(
    rf"""
    (?=[0-9])                                      # tested first: avoids most lookbehinds
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
    """Whether a match passes Luhn's check, has an issued prefix, and is not four years: one list of
    four years in ten passes Luhn's check."""
    digits = digits_of(match)
    groups = [digits[i:i + 4] for i in range(0, 16, 4)]
    return not are_years(groups) and ISSUED.match(digits) is not None and luhn(digits)


def luhn(digits: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1): counting from the right, every second digit is doubled; the
    sum of all resulting digits must be a multiple of ten.

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


def are_years(groups: list[str]) -> bool:
    """Whether every group of digits could be a year."""
    # Ours: of 60,830 numbers followed by 년 (year), 95 % lie in this range.
    return all(1500 <= int(group) <= 2100 for group in groups)


CARD = Kind("card", CARD_PATTERN, is_card)


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
# Account, bank, (internet) bank, the co-operatives, post office, deposit, transfer.
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
# Short names of banks with no other meaning: a number after one of these needs no hyphens.
CLEAR_NAME_DIRECTLY = regex.compile(
    r"""
    (?: (?<![가-힣]) (?: 신한 | 카뱅 | 케뱅 | 토스 | 씨티 ) | (?<![A-Za-z]) (?: KB | NH | IBK ) )
    [ ]? [:(]? [ ]? $
    """,
    regex.VERBOSE,
)
# Most short names are also everyday words (people, we, one, company) or names of cities, so one
# counts only directly before the number and as a word of its own.
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
    """Whether a match has 10 to 14 digits and a bank's name on the same line, shortly before it or
    right after it.

    Digits without hyphens need the name directly before them: in a novel, "opened an account" was
    followed by a number that is no account number. So does a number next to a short name."""
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
    # A city's name or 기업 (company) also comes before file numbers such as 2016-12-345678 and
    # business registration numbers such as 123-45-67890.
    return count >= 11 and not YEAR.match(number)


ACCOUNT = Kind("account", ACCOUNT_PATTERN, is_account)
