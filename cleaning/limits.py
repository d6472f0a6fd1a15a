"""The limits of step 4, rules: for each language and profile, and as --limits changes them.

The measurements (rules.py) are Gopher's, FineWeb's and FineWeb-2's. Their limits do not fit Korean
as they are. A Korean word here is an *eojeol*, a noun with its particles, which holds about as much
as two English words; FineWeb-2 counts morphemes instead. Limits for English therefore remove most
Korean text, and some of FineWeb-2's Korean limits have to be looser here. Where a limit is ours,
the comment says what it was measured on: Wikipedia, court rulings, statutes, reviews, comments,
manuals, and periodicals of the 1920s.

There are three profiles. `web` is for pages nobody vouches for. `formal` is for edited text, whose
tables, headings and repeated clauses a web filter takes for menus. `short` is for reviews and
comments, which are short by nature.
"""
import difflib
import json
from typing import NamedTuple

from common import cli

# ---- The limits ---------------------------------------------------------------------------------


class Limits(NamedTuple):
    """The limits of a language and a profile. Shares lie between 0 and 1. None turns a rule off; so
    does {} for n-grams, and 1 for characters."""
    # Characters, not counting white space, at least.
    characters: int
    # Letters of the language among all letters, at least.
    own_letters: float | None
    # Mean characters per word, punctuation included: from, to.
    word_length: tuple[float | None, float | None]
    # Characters that are neither letter nor digit among all, at most.
    symbols: float | None
    # Words of digits without a letter among all words that have either, at most.
    no_letters: float | None
    # Syllables that no Korean word uses among all Hangul, at most.
    garbled: float | None
    # Korean: words that end in a particle or a verb ending. English: function words. At least.
    function_words: float | None
    # Lines that end in a full stop or the like, at least.
    line_ends: float | None
    # Lines that occurred before, at most.
    repeated_lines: float | None
    # {n: characters in the most frequent n-gram of words, at most}.
    frequent_ngrams: dict[int, float]
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
    # or be typed without a space. Ours: of 78,960 reviews and comments, 448 have means above 25,
    # all but rows of ♥ are text, and 4 are above 150; documents that lost their spaces are longer.
    # 9 are below 1.25: 가 로 세 로, spelled apart, or ㅋㅋ ㅋ.
    word_length=(1.25, 150),
    # It may be 최고!!! ("the best") or 글쎄... ("well"), with 0.6 of symbols. Ours: of 253 above
    # 0.5, 191 are below 0.7 and say something; those above say 흠... ("hm") or are rows of ♥.
    symbols=0.7,
    # It need be no sentence.
    function_words=None,
    repeated_lines=None,
    # What repetition can mean there is one phrase over and over.
    frequent_ngrams={2: 0.5, 3: 0.5, 4: 0.5},
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
    frequent_ngrams={2: 0.20, 3: 0.18, 4: 0.16},
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
    # Ours: of 1,890 things said in novels, "So I am." and the like, 0.1 % lie outside.
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
    """The limits of a language and a profile as `changes` leave them, one after another: each is
    NAME=VALUE, or a JSON file of {name: value}. UserError for one that cannot be.

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
    # The limits of a run stand in its report.
    if isinstance(values, dict) and isinstance(values.get("limits"), dict):
        values = values["limits"]
    if not isinstance(values, dict):
        raise cli.UserError(f'--limits {change}: the file does not hold {{"name": value, ...}}')
    return values


def hint(name: str) -> str:
    """The limit that an unknown name may have meant."""
    near = difflib.get_close_matches(name, Limits._fields, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {' '.join(Limits._fields)}"


def checked(name: str, value: object) -> object:
    """A value from JSON as Limits holds it. The ValueError of a wrong one says what is right.

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
    """[from, to], of which null leaves one side open."""
    if value is None:
        return None, None
    if isinstance(value, list) and len(value) == 2:
        ends = [end for end in value if end is not None]
        if all(is_number(end, float("inf")) for end in ends) and ends == sorted(ends):
            return tuple(value)
    raise ValueError("[from, to] such as [1.5, 30] (null in place of a number, or of both, turns "
                     "it off)")


# Gopher's have 10 words. As many copies of a text's list of words are made for them.
LONGEST_NGRAM = 100


def checked_ngrams(value: object) -> dict[int, float]:
    """{n: share}. The rules go through them from the shortest n-grams to the longest."""
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
    """A number from 0 to `most`: no true, NaN or Infinity, which Python would accept."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= most and value != float("inf")
