"""Step 4, rules: measure a document, and remove it if a measurement exceeds its limit.

The measurements are those of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), FineWeb (arXiv
2406.17557) and FineWeb-2 (arXiv 2506.20920). Their limits do not fit Korean unchanged; the limits
used here, with the source of each, are in limits.py.

A Korean word here is an *eojeol*, a noun with its particles. Hanja (Chinese characters) count as
Korean: in a periodical of 1925 they are a third of the letters.
"""
import re
from collections import Counter
from collections.abc import Iterable

from cleaning.code import without_code
from cleaning.limits import KO_WEB, Limits
from cleaning.markup import markup_of
from cleaning.normalise import CONJOINING

# ---- The rules ----------------------------------------------------------------------------------

# What decoding with the wrong encoding produces: U+FFFD, which stands for a byte that could not be
# decoded; its three UTF-8 bytes read as Latin-1; and those of two of them read as CP949.
BROKEN = ("\ufffd", "ï¿½", "占쏙옙")
# Ours: a bad byte or two harm no document. Of 136,147 real documents, one has any.
FEW_BROKEN = 2
SHARE_BROKEN = 0.01
# Korean read as Latin-1 or cp1252 is full of accented letters: ì•ˆë…• was UTF-8, ¾È³ç was CP949,
# and both were 안녕 ("hello"). Ours: in such text at least two thirds of the letters are accented;
# in Icelandic, which has many, at most a sixth. Real documents reach 0.4, but only if a name is the
# whole text (Péléa), and the + 1 in check_encoding lets names pass.
SHARE_ACCENTED = 0.3
# Ours: Korean with long quotations or many names in another language is still worth keeping if it
# has this much Hangul, and Hangul and hanja are this share of its letters.
MUCH_HANGUL = 200
SHARE_BESIDE_MUCH_HANGUL = 0.15
# Ours: in a periodical of 1921 that quotes Chinese poems, Hangul is 0.08 of Hangul and hanja. A
# Chinese or Japanese page has none, or a few names.
HANGUL_BESIDE_HANJA = 0.05
# Ours: with fewer words than this, function words and n-grams say nothing.
FEW = 20
# How a line of text ends: with a full stop or similar, perhaps inside a quotation.
ENDS = set('.!?。…"\'”’)')
# The last syllables of particles and verb endings: topic, subject, object, place, "and", plain and
# polite verb endings, ...
ENDINGS = set("다이은는을를의에서로고지도만면며한인할과와가자기음게해까요라나들어아네데적던된")
ENDINGS |= set("년월일부터")
# Gopher's eight, and eight more that are as frequent.
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
STOP_WORDS |= {"a", "in", "is", "was", "for", "on", "as", "it"}


def check(text: str, limits: Limits = KO_WEB, lang: str = "ko") -> tuple[str | None, str]:
    """(text, "") if the document passes every rule, else (None, the first rule that it fails).

    >>> check("짧다")  # 'it is short'
    (None, 'too_short: 2 characters < 50')
    """
    # Ours. It comes first, because prose() removes the tags that show markup (<SYNC Start=...>).
    no_code = without_code(text)
    reason = markup_of(no_code)
    if reason:
        return None, reason

    # Gopher.
    text_only = prose(no_code)
    words = text_only.split()
    visible = count_characters(words)
    if visible < limits.characters:
        return None, f"too_short: {visible} characters < {limits.characters}"

    # Ours; then FineWeb-2, which uses a classifier. For Korean the script is enough.
    shape = text_only.translate(KIND_OF)
    kinds = count_kinds(shape)
    reason = check_encoding(text_only, kinds) or check_language(kinds, limits, lang)
    if reason:
        return None, reason

    # Gopher. Long "words" are URLs, tables or text without spaces; short ones are single letters.
    reason = check_word_length(visible / len(words), limits)
    if reason:
        return None, reason

    # Gopher counts only # and ...
    share = kinds[SYMBOL] / visible
    if is_above(share, limits.symbols):
        return None, f"symbols: {too_high(share, 'of the characters', limits.symbols)}"

    # Gopher. A lone | or - is not a word.
    without_letter = WITHOUT_LETTER.findall(shape)
    numbers = [word for word in without_letter if DIGIT in word]
    either = len(words) - len(without_letter) + len(numbers)
    share = len(numbers) / max(1, either)
    if is_above(share, limits.no_letters):
        return None, f"no_letters: {too_high(share, 'of the words', limits.no_letters)}"

    # Ours. A single 뷁 is a joke.
    share = (kinds[RARE] - 1) / max(1, count_hangul(kinds))
    if is_above(share, limits.garbled):
        return None, f"garbled: rare syllables {too_high(share, 'of the Hangul', limits.garbled)}"

    # Gopher.
    if len(words) >= FEW:
        found, among = count_function_words(shape, text_only, lang)
        share = found / max(1, among)
        if among >= FEW and is_below(share, limits.function_words):
            return None, f"function_words: {too_low(share, 'of the words', limits.function_words)}"

    reason = check_lines(text_only, limits) or check_ngrams(text_only, words, limits, lang)
    if reason:
        return None, reason
    return text, ""


def check_encoding(text: str, kinds: dict[str, int]) -> str:
    """The reason if the text was decoded with the wrong encoding, else "". (UTF-8 Korean read as
    CP949 has RARE syllables instead.)

    >>> text = "안녕하세요".encode("cp949").decode("latin-1")
    >>> text, check_encoding(text, count_kinds(text.translate(KIND_OF)))
    ('¾È³çÇÏ¼¼¿ä', 'garbled: accented 1 of the letters > 0.3')
    """
    broken = sum(text.count(mark) for mark in BROKEN)
    if broken > FEW_BROKEN + SHARE_BROKEN * len(text):
        share = broken / len(text)
        return f"garbled: broken {too_high(share, 'of the characters', SHARE_BROKEN)}"

    # + 1, because a text may be a name: 2 of the 5 letters of Péléa are accented.
    letters = count_letters(kinds)
    if kinds[ACCENTED] > SHARE_ACCENTED * letters + 1:
        share = kinds[ACCENTED] / letters
        return f"garbled: accented {too_high(share, 'of the letters', SHARE_ACCENTED)}"
    return ""


def check_language(kinds: dict[str, int], limits: Limits, lang: str) -> str:
    """The reason if too few of the letters are Hangul and hanja, or Latin in English, else "".

    >>> korean = count_kinds("鄕歌 14首를 數하고".translate(KIND_OF))  # 'counting 14 poems'
    >>> check_language(korean, KO_WEB, "ko")
    ''
    >>> japanese = count_kinds("新しい本を買った".translate(KIND_OF))  # 'I bought a new book'
    >>> check_language(japanese, KO_WEB, "ko")
    'wrong_language: Hangul 0 of Hangul and hanja < 0.05'
    """
    limit = limits.own_letters
    if limit is None:
        return ""
    letters = max(1, count_letters(kinds))
    if lang == "en":
        own = kinds[LATIN] + kinds[ACCENTED]
        share = own / letters
        if own == 0 or share < limit:
            return f"wrong_language: Latin {too_low(share, 'of the letters', limit)}"
        return ""

    # Hanja without Hangul is Chinese or Japanese.
    hangul = count_hangul(kinds)
    own = hangul + kinds[HANJA]
    share = hangul / max(1, own)
    if share < HANGUL_BESIDE_HANJA:
        what = too_low(share, "of Hangul and hanja", HANGUL_BESIDE_HANJA)
        return f"wrong_language: Hangul {what}"
    if hangul >= MUCH_HANGUL:
        limit = min(limit, SHARE_BESIDE_MUCH_HANGUL)
    share = own / letters
    if share < limit:
        return f"wrong_language: Hangul and hanja {too_low(share, 'of the letters', limit)}"
    return ""


def check_word_length(length: float, limits: Limits) -> str:
    """The reason if words are too short or too long on average, else "".

    >>> check_word_length(31.25, KO_WEB)
    'word_length: 31.2 characters per word > 12'
    """
    shortest, longest = limits.word_length
    if is_below(length, shortest):
        return f"word_length: {too_low(length, 'characters per word', shortest)}"
    if is_above(length, longest):
        return f"word_length: {too_high(length, 'characters per word', longest)}"
    return ""


def check_lines(text: str, limits: Limits) -> str:
    """The first rule about lines that the text fails, or "".

    >>> limits = KO_WEB._replace(line_ends=0.5)
    >>> check_lines("메뉴\\n홈\\n글이다.", limits)  # 'menu, home, this is text.'
    'line_ends: 0.333 of the lines < 0.5'
    """
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]

    # FineWeb. Menus, lists and tables have no full stops.
    if limits.line_ends is not None:
        ended = sum(1 for line in lines if line[-1] in ENDS)
        share = ended / max(1, len(lines))
        if share < limits.line_ends:
            return f"line_ends: {too_low(share, 'of the lines', limits.line_ends)}"

    # Gopher.
    if limits.repeated_lines is not None:
        repeated = len(lines) - len(set(lines))
        share = repeated / max(1, len(lines))
        if share > limits.repeated_lines:
            return f"repeated_lines: {too_high(share, 'of the lines', limits.repeated_lines)}"

    return ""


def count_function_words(shape: str, text: str, lang: str) -> tuple[int, int]:
    """(words that serve grammar only, all words counted)."""
    if lang == "ko":
        return count_endings(shape)
    return count_stop_words(text)


def count_endings(shape: str) -> tuple[int, int]:
    """(words with a particle or a verb ending, words). Korean has these instead of function words;
    they are recognised by the last syllable of each run of Hangul.

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


# ---- Comparing with limits, and printing measurements -------------------------------------------


def is_above(value: float, limit: float | None) -> bool:
    """Whether the value is above the limit, if there is one."""
    return limit is not None and value > limit


def is_below(value: float, limit: float | None) -> bool:
    """Whether the value is below the limit, if there is one."""
    return limit is not None and value < limit


def too_high(value: float, unit: str, limit: float) -> str:
    """
    >>> too_high(0.5, "of the characters", 0.4)
    '0.5 of the characters > 0.4'
    """
    return f"{shown(value, limit)} {unit} > {limit}"


def too_low(value: float, unit: str, limit: float) -> str:
    """
    >>> too_low(0.12, "of the letters", 0.3)
    '0.12 of the letters < 0.3'
    """
    return f"{shown(value, limit)} {unit} < {limit}"


def shown(value: float, limit: float) -> str:
    """A measured value with three digits, or as many as keep it on its side of the limit.

    >>> shown(0.12345, 0.1), shown(0.12704, 0.127), shown(0.12342, 0.1234)
    ('0.123', '0.12704', '0.12342')
    """
    for digits in range(3, 16):
        rounded = float(f"{value:.{digits}g}")
        if (rounded > limit) == (value > limit) and (rounded < limit) == (value < limit):
            break
    return f"{rounded:.15g}"


# ---- n-grams of words ---------------------------------------------------------------------------

# Ours: a text may name its subject this often before the name counts. Without this, 250 of 55,835
# Wikipedia articles would be removed for their most frequent n-gram, 213 of them because it occurs
# three times: '2010년 동계 올림픽' ("Winter Olympics"). With it, 11 are; one repeats its n-gram 52
# times.
FREE_OCCURRENCES = 2

# Ours: a letter of a Korean word. Commands, tables of figures and so on have lines without any.
KOREAN = re.compile("[가-힣\u3131-\u318e\u3400-\u9fff]")


def check_ngrams(text: str, words: list[str], limits: Limits, lang: str = "ko") -> str:
    """The rule about n-grams of words that the text fails, or "". What n-grams cover is counted in
    characters; a word covered by several of them counts once.

    >>> text = "지금 바로 클릭하세요. " * 9  # 'click right now'
    >>> check_ngrams(text, text.split(), KO_WEB)
    'repeated_ngrams: most frequent 2-gram 0.622 > 0.282'
    """
    reason = check_words(words, limits)
    # Ours. Manuals repeat the same commands, not always inside fences. If most of a Korean text is
    # in lines with Korean, only those lines are judged.
    if reason and lang == "ko":
        lines = [line for line in text.split("\n") if KOREAN.search(line)]
        korean = " ".join(lines).split()
        if count_characters(korean) > count_characters(words) / 2:
            return check_words(korean, limits)
    return reason


def check_words(words: list[str], limits: Limits) -> str:
    """The same for the words of a text."""
    if len(words) < FEW:
        return ""
    reason = ""
    if limits.frequent_ngrams:
        reason = frequent_ngram(words, limits)
    if limits.repeated_ngrams and not reason:
        reason = repeated_ngrams(words, limits)
    return reason


def frequent_ngram(words: list[str], limits: Limits) -> str:
    """Gopher: whether the most frequent 2-, 3- or 4-gram covers too much.

    For each n: covered(where it starts, from the third time on, n, words) / total > limit."""
    longest = max(map(len, words))
    total = count_characters(words)

    # No n-gram occurs more often than the most frequent word, or the most frequent shorter n-gram.
    most_possible = max(Counter(words).values())
    for n, limit in limits.frequent_ngrams.items():
        # Shortcut: same result, all rules together 1.6 times faster (measured with the ones below,
        # profile web). N-grams this rare cover too little even if each word were as long as the
        # longest.
        if (most_possible - FREE_OCCURRENCES) * n * longest <= limit * total:
            continue

        grams = ngrams(words, n)
        counts = Counter(grams)
        most_possible = max(counts.values(), default=0)
        if most_possible <= FREE_OCCURRENCES:
            return ""
        # Among equally frequent n-grams, take the longest.
        equally_frequent = (gram for gram in counts if counts[gram] == most_possible)
        top = max(equally_frequent, key=count_characters)
        starts = [i for i, gram in enumerate(grams) if gram == top]
        share = covered(starts[FREE_OCCURRENCES:], n, words) / total
        if share > limit:
            return f"repeated_ngrams: most frequent {n}-gram {shown(share, limit)} > {limit}"
    return ""


def repeated_ngrams(words: list[str], limits: Limits) -> str:
    """Gopher: whether the 5- to 10-grams that occurred before cover too much.

    For each n: covered(where those start, n, words) / total > limit."""
    longest = max(map(len, words))
    total = count_characters(words)
    strictest = min(limits.repeated_ngrams.values(), default=1)

    for n, limit in limits.repeated_ngrams.items():
        grams = ngrams(words, n)
        # Shortcut: same result, all rules together 1.6 times faster (measured with the one above).
        # Longer n-grams repeat only where their beginnings do, and cover no more than these. So if
        # these cannot exceed the strictest limit, longer ones need not be checked.
        repeats = len(grams) - len(set(grams))
        if repeats * n * longest <= strictest * total:
            return ""

        starts = starts_of_repeats(grams)
        share = covered(starts, n, words) / total
        # Ours: of 376 Wikipedia articles above a limit, 221 repeat fewer words than FEW: a name, or
        # a sentence that occurs twice in a short text.
        if share > limit and len(positions(starts, n)) >= FEW:
            return f"repeated_ngrams: repeated {n}-grams {shown(share, limit)} > {limit}"
        # Shortcut: the same, now that the covered share is known.
        if share <= strictest:
            return ""
    return ""


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
    """The positions of n-grams that occurred before.

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


def positions(starts: list[int], n: int) -> set[int]:
    """The positions of the words in n-grams that start there.

    >>> positions([0, 1], 2)
    {0, 1, 2}
    """
    found = set()
    for start in starts:
        found.update(range(start, start + n))
    return found


def covered(starts: list[int], n: int, words: list[str]) -> int:
    """The characters of all words in n-grams that start there, each word counted once.

    >>> covered([0, 1], 2, ["a", "bb", "ccc", "dddd"])
    6
    """
    return sum(len(words[position]) for position in positions(starts, n))


# ---- Characters ---------------------------------------------------------------------------------

# The *shape* of a text has a kind for each character: the shape of "漢字 2자" is "cc 0h".
SPACE = " "
DIGIT = "0"
SYMBOL = "-"
HANGUL = "h"
# A Hangul syllable with which words end.
ENDING = "e"
# A Hangul syllable that occurs in no Korean word.
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

# URLs, tags, formulas: with code, a third of a technical manual, and not prose.
ASIDE = re.compile(
    r"https?://\S+"
    r"|</?[a-zA-Z][^<>]{0,500}>"
    r"|\$[^$\n]+\$"
)


def prose(text: str) -> str:
    """Replace everything that is not prose by a space. Code must be removed first.

    >>> prose("x의 값은 $x^2$이다")  # 'the value of x is x^2'
    'x의 값은  이다'
    """
    return ASIDE.sub(" ", text)


def kind_of(character: str) -> str:
    """Which of the kinds above a character is.

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
        # KS X 1001 has the 2,350 syllables that occur in Korean words, two bytes each. Python's
        # codec spells the others out, in eight bytes. Wrongly decoded text is full of these.
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
    """{code point: kind} for str.translate, filled in as characters occur."""

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
