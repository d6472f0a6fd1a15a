"""The limits of step 4, rules: defaults for each language and profile, and changes by --limits.

The measurements (rules.py) are those of Gopher, FineWeb and FineWeb-2, but their limits do not fit
Korean unchanged. A Korean word here is an *eojeol*, a noun with its particles, which holds about as
much as two English words; FineWeb-2 counts morphemes instead. Limits made for English therefore
remove most Korean text, and some of FineWeb-2's Korean limits have to be looser here. "Ours" marks
a limit that was chosen for this project; its comment says what was measured, on Wikipedia, court
rulings, statutes, reviews, comments, manuals, and periodicals of the 1920s.

There are three profiles. `web` is for web pages of unknown quality. `formal` is for edited text,
whose tables, headings and repeated clauses a web filter takes for menus. `short` is for reviews and
comments, which are short by nature.
"""
import difflib
import json
from typing import NamedTuple

from common import cli

# ---- The limits ---------------------------------------------------------------------------------


class Limits(NamedTuple):
    """The limits for one language and profile. Shares are between 0 and 1. None turns a rule off;
    so does {} for n-grams, and 1 for characters."""
    # Minimum number of characters, not counting white space.
    characters: int
    # Minimum share of the language's own letters among all letters.
    own_letters: float | None
    # Mean characters per word, punctuation included: (minimum, maximum).
    word_length: tuple[float | None, float | None]
    # Maximum share of characters that are neither letters nor digits.
    symbols: float | None
    # Maximum share of words with digits but no letter, among words that have either.
    no_letters: float | None
    # Maximum share of syllables that occur in no Korean word, among all Hangul.
    garbled: float | None
    # Minimum share of words: in Korean, that end in a particle or verb ending; in English, that are
    # function words.
    function_words: float | None
    # Minimum share of lines that end in a full stop or similar.
    line_ends: float | None
    # Maximum share of lines that occurred before.
    repeated_lines: float | None
    # {n: maximum share of characters in the most frequent n-gram of words}.
    frequent_ngrams: dict[int, float]
    # {n: maximum share of characters in n-grams of words that occurred before}.
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
    # FineWeb-2 for Korean: 0.791 of the words must have a letter.
    no_letters=0.209,
    # Ours: 99.9 % of the documents are below 0.05; text decoded with the wrong encoding is above
    # 0.5.
    garbled=0.2,
    # Ours: 99.5 % of every source is above 0.3; random syllables have 0.02.
    function_words=0.15,
    # FineWeb-2 for Korean, like the rest.
    line_ends=0.062,
    repeated_lines=0.374,
    frequent_ngrams={2: 0.282, 3: 0.228, 4: 0.185},
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
    # or be typed without spaces. Ours: of 78,960 reviews and comments, 448 have a mean above 25,
    # all of them text except for rows of ♥, and only 4 are above 150; documents that lost their
    # spaces are longer. 9 are below 1.25: words spelled apart (가 로 세 로) or ㅋㅋ ㅋ.
    word_length=(1.25, 150),
    # It may be 최고!!! ("the best") or 글쎄... ("well"), with symbols at 0.6. Ours: of 253 above
    # 0.5, 191 are below 0.7 and say something; those above say 흠... ("hm") or are rows of ♥.
    symbols=0.7,
    # It does not have to be a sentence.
    function_words=None,
    repeated_lines=None,
    # Repetition here means one phrase over and over.
    frequent_ngrams={2: 0.5, 3: 0.5, 4: 0.5},
    repeated_ngrams={},
)

EN_WEB = Limits(
    # Gopher: 50 words, at about four characters each.
    characters=200,
    # Ours: Latin letters. Other languages in Latin script fail the function_words rule.
    own_letters=0.8,
    # Gopher.
    word_length=(3, 10),
    # Ours: Gopher limits # and ... to 0.1 per word.
    symbols=0.3,
    # Gopher: 80 % of the words must have a letter.
    no_letters=0.2,
    garbled=None,
    # Ours: Gopher requires two of its eight words in a document, however long it is.
    function_words=0.1,
    # FineWeb.
    line_ends=0.12,
    # Gopher, like the rest.
    repeated_lines=0.3,
    frequent_ngrams={2: 0.20, 3: 0.18, 4: 0.16},
    repeated_ngrams={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
)

# The same changes as for Korean.
EN_FORMAL = EN_WEB._replace(
    characters=50,
    no_letters=0.5,
    line_ends=None,
    repeated_lines=0.5,
    repeated_ngrams={10: 0.5},
)

EN_SHORT = EN_FORMAL._replace(
    characters=8,
    # Ours: of 1,890 lines of dialogue in novels ("So I am."), 0.1 % lie outside.
    word_length=(2, 15),
    symbols=0.7,
    function_words=None,
    repeated_lines=None,
    frequent_ngrams={2: 0.5, 3: 0.5, 4: 0.5},
    repeated_ngrams={},
)

LIMITS = {
    "ko": {"web": KO_WEB, "formal": KO_FORMAL, "short": KO_SHORT},
    "en": {"web": EN_WEB, "formal": EN_FORMAL, "short": EN_SHORT},
}

# ---- What --limits changes ----------------------------------------------------------------------


def choose_limits(lang: str, profile: str, changes: list[str]) -> Limits:
    """The limits of a language and profile after `changes`, which are applied in order: each is
    NAME=VALUE, or a JSON file of {name: value}. Raises UserError if one is not valid.

    >>> limits = choose_limits("ko", "web", ["symbols=0.6", "line_ends=null"])
    >>> limits.symbols, limits.line_ends, limits.no_letters
    (0.6, None, 0.209)
    """
    limits = LIMITS[lang][profile]
    for change in changes:
        for name, value in read_change(change).items():
            if name not in Limits._fields:
                raise cli.UserError(f"--limits {change}: no limit is called {name}; {hint(name)}")
            try:
                limits = limits._replace(**{name: checked(name, value)})
            except ValueError as error:
                shown = json.dumps(value, ensure_ascii=False)
                raise cli.UserError(f"--limits {change}: {name} is {shown}, not {error}") from None
    return limits


def read_change(change: str) -> dict:
    """{name: value} of NAME=VALUE or of a JSON file."""
    name, equals, value = change.partition("=")
    if equals:
        try:
            return {name: json.loads(value)}
        except (ValueError, RecursionError):
            raise cli.UserError(
                f"--limits {change}: the value is not JSON; write a number, null, [from, to] or "
                '{"n": share}, in quotation marks where the shell needs them'
            ) from None
    if name in Limits._fields:
        raise cli.UserError(f"--limits {name}: a value is missing; write {name}=VALUE")
    values = cli.read_json(change)
    # The report of a run holds its limits under this name.
    if isinstance(values, dict) and isinstance(values.get("limits"), dict):
        values = values["limits"]
    if not isinstance(values, dict):
        raise cli.UserError(f'--limits {change}: the file does not hold {{"name": value, ...}}')
    return values


def hint(name: str) -> str:
    """The nearest limit to an unknown name, or else all names."""
    near = difflib.get_close_matches(name, Limits._fields, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {' '.join(Limits._fields)}"


def checked(name: str, value: object) -> object:
    """Convert a JSON value to what Limits holds. Raises a ValueError that says what is expected.

    >>> checked("word_length", [1, None]), checked("repeated_ngrams", {"10": 0.3, "5": 0.4})
    ((1, None), {5: 0.4, 10: 0.3})
    """
    if name == "characters":
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        raise ValueError("a whole number from 1 (which turns the rule off)")
    if name == "word_length":
        return checked_range(value)
    if name in ("frequent_ngrams", "repeated_ngrams"):
        return checked_ngrams(value)
    if value is None or is_number(value, 1):
        return value
    raise ValueError("a share from 0 to 1 (null turns the rule off)")


def checked_range(value: object) -> tuple:
    """Check [from, to], where null leaves a side open."""
    if value is None:
        return None, None
    if isinstance(value, list) and len(value) == 2:
        ends = [end for end in value if end is not None]
        if all(is_number(end, float("inf")) for end in ends) and ends == sorted(ends):
            return tuple(value)
    raise ValueError("[from, to] such as [1.5, 30] (null in place of a number, or of both, turns "
                     "it off)")


# Gopher's longest n-grams have 10 words. Measuring n-grams takes n copies of a text's word list.
LONGEST_NGRAM = 100


def checked_ngrams(value: object) -> dict[int, float]:
    """Check {n: share}, and sort it: the rules go from the shortest n-grams to the longest."""
    if value is None:
        return {}
    if isinstance(value, dict):
        lengths = {str(n) for n in range(1, LONGEST_NGRAM + 1)}
        lengths_fit = lengths.issuperset(value)
        if lengths_fit and all(is_number(share, 1) for share in value.values()):
            return {int(n): value[n] for n in sorted(value, key=int)}
    raise ValueError('{"n": share, ...} such as {"10": 0.3}, with n from 1 to '
                     f"{LONGEST_NGRAM} (null turns the rule off)")


def is_number(value: object, most: float) -> bool:
    """Whether a value is a number from 0 to `most`; true, NaN and Infinity, which Python's json
    accepts, are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= most and value != float("inf")
