"""Step 3, rules: measure a document, and remove it if a measurement exceeds its limit.

The measurements are Gopher's (Rae et al. 2021, arXiv 2112.11446, table A1), FineWeb's (arXiv
2406.17557) and FineWeb-2's (arXiv 2506.20920). Their limits do not fit Korean as they are. A Korean
word here is an *eojeol*, a noun with its particles, which holds about as much as two English words;
FineWeb-2 counts morphemes instead. Limits for English therefore remove most Korean text, and some
of FineWeb-2's Korean limits have to be looser here. Where a limit is ours, the comment says what it
was measured on: Wikipedia, court rulings, statutes, reviews, comments, manuals, and periodicals of
the 1920s.

Hanja (Chinese characters) counts as Korean: a third of the letters in a periodical of 1925 is
hanja.

There are three profiles. `web` is for pages nobody vouches for. `formal` is for edited text, whose
tables, headings and repeated clauses a web filter takes for menus. `short` is for reviews and
comments, which are short by nature.
"""
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from cleaning.code import without_code
from cleaning.markup import markup_of
from cleaning.normalise import CONJOINING

# ---- The limits ---------------------------------------------------------------------------------


class Limits(NamedTuple):
    """The limits of a language and a profile. Shares lie between 0 and 1; None turns a rule off."""
    # Characters, not counting white space, at least.
    characters: int
    # Letters of the language among all letters, at least.
    own_letters: float
    # Mean characters per word, punctuation included: from, to.
    word_length: tuple[float, float]
    # Characters that are neither letter nor digit among all, at most.
    symbols: float
    # Words of digits without a letter among all words that have either, at most.
    no_letters: float
    # Syllables that no Korean word uses among all Hangul, at most.
    garbled: float | None
    # Korean: words that end in a particle or a verb ending. English: function words. At least.
    function_words: float | None
    # Lines that end in a full stop or the like, at least.
    line_ends: float | None
    # Lines that occurred before, at most.
    repeated_lines: float | None
    # Characters in the most frequent 2-, 3- and 4-gram of words, at most; None: no n-grams at all.
    frequent_ngrams: tuple[float, float, float] | None
    # {n: characters in n-grams of words that occurred before, at most}.
    repeated_ngrams: dict[int, float]


KO_WEB = Limits(
    # Polyglot-Ko's cleaner: 50 characters.
    characters=50,
    # Ours: 99 % of Wikipedia is above 0.5, manuals without code above 0.26. Polyglot-Ko: 0.25.
    own_letters=0.3,
    # Ours: all sources lie between 2.4 and 8.8. Polyglot-Ko: 3-10; FineWeb-2: 1-6 (morphemes).
    word_length=(1.5, 12),
    # Ours: 99 % of every source but comments is below 0.34.
    symbols=0.4,
    # FineWeb-2 for Korean: 0.791 of the words have a letter.
    no_letters=0.209,
    # Ours: 99.9 % of the documents are below 0.05; text read in a wrong encoding is above 0.5.
    garbled=0.2,
    # Ours: 99.5 % of every source is above 0.3, random syllables are at 0.02.
    function_words=0.15,
    # FineWeb-2 for Korean, like the rest.
    line_ends=0.062,
    repeated_lines=0.374,
    frequent_ngrams=(0.282, 0.228, 0.185),
    repeated_ngrams={5: 0.201, 6: 0.184, 7: 0.168, 8: 0.154, 9: 0.14, 10: 0.127},
)

KO_FORMAL = KO_WEB._replace(
    # Ours: a table of figures may have a number for every word.
    no_letters=0.5,
    # Tables have no full stops.
    line_ends=None,
    # Ours: statutes repeat up to 0.41 of their lines.
    repeated_lines=0.5,
    # Ours: rulings repeat their holdings word for word, 0.46 of the characters in 5-grams.
    repeated_ngrams={10: 0.5},
)

KO_SHORT = KO_FORMAL._replace(
    # A review may be 재밌어요 ("it's fun") and nothing else,
    characters=4,
    # have no spaces (1 % have a mean above 20),
    word_length=(1.5, 25),
    # be half ㅋㅋ!!!,
    symbols=0.5,
    # and be no sentence.
    function_words=None,
    repeated_lines=None,
    # What repetition can mean there is one phrase over and over.
    frequent_ngrams=(0.5, 0.5, 0.5),
    repeated_ngrams={},
)

EN_WEB = Limits(
    # Gopher: 50 words, of about four characters.
    characters=200,
    # Ours: Latin letters. Other languages in Latin letters fail at function_words.
    own_letters=0.8,
    # Gopher.
    word_length=(3, 10),
    # Ours: Gopher limits # and ... to 0.1 per word.
    symbols=0.3,
    # Gopher: 80 % of the words have a letter.
    no_letters=0.2,
    garbled=None,
    # Ours: Gopher asks for two of its eight words in a document, however long.
    function_words=0.1,
    # FineWeb.
    line_ends=0.12,
    # Gopher, like the rest.
    repeated_lines=0.3,
    frequent_ngrams=(0.20, 0.18, 0.16),
    repeated_ngrams={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
)

# As for Korean.
EN_FORMAL = EN_WEB._replace(
    characters=50,
    no_letters=0.5,
    line_ends=None,
    repeated_lines=0.5,
    repeated_ngrams={10: 0.5},
)

EN_SHORT = EN_FORMAL._replace(
    characters=8,
    symbols=0.5,
    function_words=None,
    repeated_lines=None,
    frequent_ngrams=(0.5, 0.5, 0.5),
    repeated_ngrams={},
)

LIMITS = {
    "ko": {"web": KO_WEB, "formal": KO_FORMAL, "short": KO_SHORT},
    "en": {"web": EN_WEB, "formal": EN_FORMAL, "short": EN_SHORT},
}

# ---- The rules ----------------------------------------------------------------------------------

# Characters that text read in a wrong encoding leaves behind: U+FFFD, which stands for a byte that
# could not be read; its own three bytes, read as Latin-1; and those of two of them, read as CP949.
BROKEN = ("\ufffd", "ï¿½", "占쏙옙")
# Ours: a bad byte or two harm no document. Of 136,147 real documents, one has any.
FEW_BROKEN = 2
SHARE_BROKEN = 0.01
# Korean read as Latin-1 or cp1252 is full of accented letters: ì•ˆë…• was UTF-8, ¾È³ç was CP949,
# and both were 안녕 ("hello"). Ours: two thirds and more of the letters of such text are accented;
# of Icelandic, which has many, a sixth at most. Real documents reach 0.4, but only where a name is
# the whole text (Péléa), and the + 1 in is_misread lets names pass.
SHARE_ACCENTED = 0.3
# Ours: Korean with long quotations or many names in another language is still worth keeping for
# this much Hangul, if Hangul and hanja are this share of its letters.
MUCH_HANGUL = 200
SHARE_BESIDE_MUCH_HANGUL = 0.15
# Ours: a periodical of 1921 that quotes Chinese poems has 0.08 of Hangul beside its hanja. A
# Chinese or Japanese page has none, or a few names.
HANGUL_BESIDE_HANJA = 0.05
# Ours: in fewer words than this, function words and n-grams say nothing.
FEW = 20
# What a line of text ends in: a full stop or the like, perhaps inside a quotation.
ENDS = set('.!?。…"\'”’)')
# The last syllables of particles and verb endings: topic, subject, object, place, "and", plain and
# polite verb endings, ...
ENDINGS = set("다이은는을를의에서로고지도만면며한인할과와가자기음게해까요라나들어아네데적던된")
ENDINGS |= set("년월일부터")
# Gopher's eight, and eight more that are as frequent.
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
STOP_WORDS |= {"a", "in", "is", "was", "for", "on", "as", "it"}


def check(text: str, limits: Limits, lang: str = "ko") -> tuple[str | None, str]:
    """(text, "") if the document passes every rule, else (None, the name of the first it breaks).

    >>> check("짧다", LIMITS["ko"]["formal"])  # 'it is short'
    (None, 'too_short')
    """
    # Ours. It comes first: markup shows in tags that prose() sets aside (<SYNC Start=...>, <ref>).
    no_code = without_code(text)
    reason = markup_of(no_code)
    if reason:
        return None, reason

    # Gopher.
    text_only = prose(no_code)
    words = text_only.split()
    visible = count_characters(words)
    if visible < limits.characters:
        return None, "too_short"

    # Ours.
    shape = text_only.translate(KIND_OF)
    kinds = count_kinds(shape)
    if is_misread(text_only, kinds):
        return None, "garbled"

    # FineWeb-2 asks a classifier; the script says enough about Korean.
    if is_other_language(kinds, limits, lang):
        return None, "wrong_language"

    # Gopher. Long "words" are addresses, tables or text without spaces; short ones lone letters.
    length = visible / max(1, len(words))
    if not limits.word_length[0] <= length <= limits.word_length[1]:
        return None, "word_length"

    # Gopher counts # and ... only.
    if kinds[SYMBOL] > limits.symbols * visible:
        return None, "symbols"

    # Gopher. A lone | or - is not a word.
    without_letter = WITHOUT_LETTER.findall(shape)
    numbers = [word for word in without_letter if DIGIT in word]
    either = len(words) - len(without_letter) + len(numbers)
    if len(numbers) > limits.no_letters * either:
        return None, "no_letters"

    # Ours. A single 뷁 is a joke.
    if limits.garbled is not None:
        if kinds[RARE] > limits.garbled * count_hangul(kinds) + 1:
            return None, "garbled"

    # Gopher.
    if limits.function_words is not None and len(words) >= FEW:
        found, among = count_function_words(shape, text_only, lang)
        if among >= FEW and found / among < limits.function_words:
            return None, "function_words"

    reason = check_lines(text_only, limits) or check_ngrams(words, limits)
    if reason:
        return None, reason
    return text, ""


def is_misread(text: str, kinds: dict[str, int]) -> bool:
    """Was the text read in a wrong encoding? (UTF-8 Korean read as CP949 has RARE syllables
    instead.)

    >>> text = "안녕하세요".encode("cp949").decode("latin-1")
    >>> text, is_misread(text, count_kinds(text.translate(KIND_OF)))
    ('¾È³çÇÏ¼¼¿ä', True)
    """
    broken = sum(text.count(mark) for mark in BROKEN)
    if broken > FEW_BROKEN + SHARE_BROKEN * len(text):
        return True
    # + 1, because a text may be a name: 2 of the 5 letters of Péléa are accented.
    return kinds[ACCENTED] > SHARE_ACCENTED * count_letters(kinds) + 1


def is_other_language(kinds: dict[str, int], limits: Limits, lang: str) -> bool:
    """Are too few of the letters Hangul and hanja, or Latin in English?

    >>> web = LIMITS["ko"]["web"]
    >>> korean = count_kinds("鄕歌 14首를 數하고".translate(KIND_OF))  # 'counting 14 poems'
    >>> japanese = count_kinds("新しい本を買った".translate(KIND_OF))  # 'I bought a new book'
    >>> is_other_language(korean, web, "ko"), is_other_language(japanese, web, "ko")
    (False, True)
    """
    letters = count_letters(kinds)
    if lang == "en":
        own = kinds[LATIN] + kinds[ACCENTED]
        return own == 0 or own < limits.own_letters * letters

    # Without Hangul, hanja is Chinese.
    hangul = count_hangul(kinds)
    own = hangul + kinds[HANJA]
    if own == 0 or hangul < HANGUL_BESIDE_HANJA * own:
        return True
    if hangul >= MUCH_HANGUL:
        return own < SHARE_BESIDE_MUCH_HANGUL * letters
    return own < limits.own_letters * letters


def check_lines(text: str, limits: Limits) -> str:
    """The first rule about lines that the text breaks, or "".

    >>> limits = LIMITS["en"]["web"]._replace(line_ends=0.5)
    >>> check_lines("메뉴\\n홈\\n글이다.", limits)  # 'menu, home, this is text.'
    'line_ends'
    """
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]

    # FineWeb. Menus, lists and tables have no full stops.
    if limits.line_ends is not None:
        ended = sum(1 for line in lines if line[-1] in ENDS)
        if ended < limits.line_ends * len(lines):
            return "line_ends"

    # Gopher.
    if limits.repeated_lines is not None:
        repeated = len(lines) - len(set(lines))
        if repeated > limits.repeated_lines * len(lines):
            return "repeated_lines"

    return ""


def count_function_words(shape: str, text: str, lang: str) -> tuple[int, int]:
    """(words that only grammar needs, words)."""
    if lang == "ko":
        return count_endings(shape)
    return count_stop_words(text)


def count_endings(shape: str) -> tuple[int, int]:
    """(words with a particle or a verb ending, words). Korean has these instead of function words:
    of each run of Hangul, the last syllable is looked at.

    >>> count_endings("하늘(天)은 넓다".translate(KIND_OF))  # 'the sky is wide'
    (2, 3)
    """
    last = LAST_HANGUL.findall(shape)
    return last.count(ENDING), len(last)


def count_stop_words(text: str) -> tuple[int, int]:
    """(function words, words).

    >>> count_stop_words("The sky is wide")
    (2, 4)
    """
    words = text.lower().split()
    return sum(1 for word in words if word in STOP_WORDS), len(words)


# ---- n-grams of words ---------------------------------------------------------------------------

# Ours: an n-gram that occurs less often than this is not frequent. A stub names its subject twice.
REPEATS = 3


def check_ngrams(words: list[str], limits: Limits) -> str:
    """"repeated_ngrams" if n-grams of words that occur again and again cover too much of the text,
    else "". What they cover is counted in characters, a word that several of them cover once."""
    if limits.frequent_ngrams is None or len(words) < FEW:
        return ""
    if has_frequent_ngram(words, limits) or has_repeated_ngrams(words, limits):
        return "repeated_ngrams"
    return ""


def has_frequent_ngram(words: list[str], limits: Limits) -> bool:
    """Gopher: does the most frequent 2-, 3- or 4-gram cover too much?

    For each n: covered(where it starts, n, words) / total > limit."""
    longest = max(map(len, words))
    total = count_characters(words)

    # No n-gram occurs more often than the most frequent word, or the most frequent shorter n-gram.
    most_possible = max(Counter(words).values())
    for n, limit in zip((2, 3, 4), limits.frequent_ngrams, strict=True):
        if most_possible < REPEATS:
            return False
        # Shortcut: same result, all rules together 1.6 times faster (measured, with the ones below,
        # profile web). N-grams as rare as this cover too little even if each of their words were
        # as long as the longest.
        if most_possible * n * longest <= limit * total:
            continue

        grams = ngrams(words, n)
        counts = Counter(grams)
        most = max(counts.values())
        if most >= REPEATS:
            # Of several that are equally frequent, the longest.
            equally_frequent = (gram for gram in counts if counts[gram] == most)
            top = max(equally_frequent, key=count_characters)
            starts = [i for i, gram in enumerate(grams) if gram == top]
            if covered(starts, n, words) / total > limit:
                return True
        most_possible = most
    return False


def has_repeated_ngrams(words: list[str], limits: Limits) -> bool:
    """Gopher: do the 5- to 10-grams that occurred before cover too much?

    For each n: covered(where those start, n, words) / total > limit."""
    longest = max(map(len, words))
    total = count_characters(words)
    strictest = min(limits.repeated_ngrams.values(), default=1)

    for n, limit in limits.repeated_ngrams.items():
        grams = ngrams(words, n)
        # Shortcut: same result, all rules together 1.6 times faster (measured, with the one above).
        # Longer n-grams repeat only where their beginnings do, and cover no more than these. So if
        # these cannot cover more than the strictest limit, no longer ones need be looked at.
        repeats = len(grams) - len(set(grams))
        if repeats * n * longest <= strictest * total:
            return False

        share = covered(starts_of_repeats(grams), n, words) / total
        if share > limit:
            return True
        # Shortcut: the same, now that what they cover is known.
        if share <= strictest:
            return False
    return False


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """
    >>> ngrams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    shifted = [words[i:] for i in range(n)]
    return list(zip(*shifted, strict=False))


def count_characters(words: Iterable[str]) -> int:
    return sum(map(len, words))


def starts_of_repeats(grams: list[tuple[str, ...]]) -> list[int]:
    """Where the n-grams are that occurred before.

    >>> starts_of_repeats([("a", "b"), ("b", "a"), ("a", "b")])
    [2]
    """
    seen = set()
    starts = []
    for i, gram in enumerate(grams):
        if gram in seen:
            starts.append(i)
        seen.add(gram)
    return starts


def covered(starts: list[int], n: int, words: list[str]) -> int:
    """The characters of all words in n-grams that start there, each word once.

    >>> covered([0, 1], 2, ["a", "bb", "ccc", "dddd"])
    6
    """
    positions = set()
    for start in starts:
        positions.update(range(start, start + n))
    return sum(len(words[position]) for position in positions)


# ---- Characters ---------------------------------------------------------------------------------

# The *shape* of a text has a kind for each character: that of "漢字 2자" is "cc 0h".
SPACE = " "
DIGIT = "0"
SYMBOL = "-"
HANGUL = "h"
# A syllable of Hangul in which words end.
ENDING = "e"
# A syllable of Hangul that no Korean word uses.
RARE = "r"
HANJA = "c"
LATIN = "l"
# The Latin letters of Latin-1 beyond ASCII.
ACCENTED = "a"
# A letter of another script.
OTHER = "o"
LETTERS = HANGUL + ENDING + RARE + HANJA + LATIN + ACCENTED + OTHER

# In a shape: the last of a run of Hangul, and a word without a letter.
LAST_HANGUL = re.compile("[her](?![her])")
WITHOUT_LETTER = re.compile(r"(?<!\S)[-0]+(?!\S)")

# Jamo: the conjoining ones, and those that people type (ㅋㅋ).
JAMO = re.compile(f"[{CONJOINING}\u3131-\u318e]")
CHINESE = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]")

# Addresses, tags, formulas: with code a third of a technical manual, and a language of their own.
ASIDE = re.compile(
    r"https?://\S+"
    r"|</?[a-zA-Z][^<>]{0,500}>"
    r"|\$[^$\n]+\$"
)


def prose(text: str) -> str:
    """The text with a space for everything that is not prose. Its code is out already.

    >>> prose("x의 값은 $x^2$이다")  # 'the value of x is x^2'
    'x의 값은  이다'
    """
    return ASIDE.sub(" ", text)


def kind_of(character: str) -> str:
    """Which of the kinds above.

    >>> "".join(kind_of(character) for character in "돌은뷁ㅋ石é!")  # 돌은: a stone, as the topic
    'herhca-'
    """
    if character.isspace():
        return SPACE
    if character.isdecimal():
        return DIGIT
    if not character.isalpha():
        return SYMBOL
    if character in ENDINGS:
        return ENDING
    if "가" <= character <= "힣":
        # KS X 1001 has the 2,350 syllables that Korean words use, two bytes each. Python spells the
        # others out, in eight bytes. Text read in a wrong encoding is full of these.
        return HANGUL if len(character.encode("euc_kr")) == 2 else RARE
    if JAMO.match(character):
        return HANGUL
    if CHINESE.match(character):
        return HANJA
    if "À" <= character <= "ÿ":
        return ACCENTED
    # To Latin Extended-B.
    if "A" <= character <= "z" or "Ā" <= character <= "ɏ":
        return LATIN
    return OTHER


class KindOf(dict):
    """{code point: kind} for str.translate, filled in as characters come up."""

    def __missing__(self, code_point: int) -> str:
        self[code_point] = kind_of(chr(code_point))
        return self[code_point]


KIND_OF = KindOf()


def count_kinds(shape: str) -> dict[str, int]:
    """{kind: characters}."""
    return {kind: shape.count(kind) for kind in SPACE + DIGIT + SYMBOL + LETTERS}


def count_letters(kinds: dict[str, int]) -> int:
    return sum(kinds[kind] for kind in LETTERS)


def count_hangul(kinds: dict[str, int]) -> int:
    return kinds[HANGUL] + kinds[ENDING] + kinds[RARE]
