r"""Step 1, normalise: one spelling for each thing, so that the tokenizer sees text, not encodings.

An HTML page becomes text, `&lt;` becomes `<`, a syllable becomes one code point, and invisible
characters are dropped. Unicode is NFC (UAX 15): 한 and not ᄒ + ᅡ + ᆫ, which would cost four times
the tokens. Never NFKC: it turns the letters of ㅋㅋ (laughter) and ㅠㅠ (tears) into parts of
syllables, and ½, ㎡ and ① into other text. NFC also folds compatibility hanja (U+F90A) into the
unified ones (金, U+91D1), which Unicode considers the same characters.

What is lost: private-use characters, including the old Hangul of 1990s documents (see HANCOM
below), and entities that prose was meant to show, such as `&amp;lt;` outside code.

Two properties, tested on random strings:

    normalise_text(normalise_text(x)) == normalise_text(x)   cleaning a clean corpus changes nothing
    NFD(normalise_text(x)) == NFD(x)                         for syllables, of old Korean as well

The first requires repeating the changes until nothing changes: `&amp;nbsp;` hides an entity behind
an entity, and an invisible character can hide anything (`&l\u200bt;`).
"""
import html.entities
import re
import unicodedata

import regex

from cleaning.code import CODE
from cleaning.pages import html_to_text, looks_like_html

# ---- Hangul -------------------------------------------------------------------------------------

# The parts of syllables ("conjoining jamo"), in the main block and in the Extended-A and -B blocks.
LEADING = r"\u1100-\u115e\ua960-\ua97c"
VOWEL = r"\u1161-\u11a7\ud7b0-\ud7c6"
TRAILING = r"\u11a8-\u11ff\ud7cb-\ud7fb"
# Trailing consonants of old Korean. NFC composes 셔 with a modern one, never with these.
OLD_TRAILING = r"\u11c3-\u11ff\ud7cb-\ud7fb"
# Invisible placeholders for a leading consonant and for a vowel.
LEADING_FILLER = r"\u115f"
VOWEL_FILLER = r"\u1160"
CONJOINING = LEADING + VOWEL + TRAILING + LEADING_FILLER + VOWEL_FILLER
HALF_WIDTH = r"\uffa1-\uffdc"

HAS_JAMO = re.compile(f"[{CONJOINING}{HALF_WIDTH}]")

# A syllable block (The Unicode Standard, 3.12) has a vowel and a consonant; all other jamo are
# letters on their own. Runs of letters are matched possessively (++), so that the time grows with
# the length of the text and not with its square.
BLOCK_OR_LETTERS = re.compile(
    rf"(?P<block>[{LEADING}]++[{VOWEL}]++[{TRAILING}]*"
    rf"|{LEADING_FILLER}[{VOWEL}]++[{TRAILING}]+"
    rf"|[가-힣][{OLD_TRAILING}]+)"
    rf"|[{LEADING}]+{VOWEL_FILLER}?"
    rf"|{LEADING_FILLER}?{VOWEL_FILLER}?[{VOWEL}{TRAILING}]+"
    rf"|[{LEADING_FILLER}{VOWEL_FILLER}]+"
    rf"|[{HALF_WIDTH}]+"
)


def compatibility_jamo() -> dict[str, str]:
    """{a jamo in another encoding: the jamo that people type}, paired by their Unicode names.

    Some letters of old Korean have no such twin and are left out. The fillers map to nothing.

    >>> table = compatibility_jamo()
    >>> table["\\u110f"], table["\\u11bf"], table["\\uffbb"]   # leading, trailing, half-width
    ('ㅋ', 'ㅋ', 'ㅋ')
    """
    encoding = re.compile("^(HALFWIDTH )?HANGUL (LETTER|CHOSEONG|JUNGSEONG|JONGSEONG) ")
    table = {"\u115f": "", "\u1160": ""}
    for code in [*range(0x1100, 0x1200), *range(0xFFA1, 0xFFDD)]:
        name = unicodedata.name(chr(code), "")
        try:
            twin = unicodedata.lookup(encoding.sub("HANGUL LETTER ", name))
        except KeyError:
            continue
        table.setdefault(chr(code), twin)
    return table


COMPATIBILITY_JAMO = str.maketrans(compatibility_jamo())


def unicode_to_nfc(text: str) -> str:
    """NFC, with jamo outside syllables turned into the ones that people type.

    >>> unicode_to_nfc("\\u1112\\u1161\\u11ab \\u110f\\u110f \\u110f\\u1160 \\uffbb")
    '한 ㅋㅋ ㅋ ㅋ'

    The input is a syllable, then the letter k as two leading consonants, with a filler, and
    half-width. A leading consonant and a vowel that NFC cannot compose are a syllable of old Korean
    and stay.
    """
    text = unicodedata.normalize("NFC", text)
    if HAS_JAMO.search(text):
        text = BLOCK_OR_LETTERS.sub(spell_jamo, text)
    return text


def spell_jamo(match: re.Match) -> str:
    """The replacement for a match of BLOCK_OR_LETTERS. Fillers without a letter become a space."""
    if match["block"]:
        return match[0]
    return match[0].translate(COMPATIBILITY_JAMO) or " "


# ---- Entities -----------------------------------------------------------------------------------

# &lt; &frac12; &#44032; &#xAC00;  The semicolon is required: `a&copy=b` is part of a URL.
ENTITY = r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});"

# A <br> whose brackets are entities. Of the 64 articles in a Korean Wikipedia extract that have
# one, 63 got it from a converter; one is about HTML.
LINE_BREAK = r"(?P<line_break>&lt;/?(?i:br) ?/?&gt;[ \t]*\n?)"

CODE_OR_ENTITY = re.compile(f"{CODE}|{LINE_BREAK}|{ENTITY}")


def decode_entities(text: str) -> str:
    """Decode entities, except in code, where they may be what is being shown.

    >>> decode_entities("5 &lt; 6 &#x26; AT&amp;amp;T, but `&lt;` is written so")
    '5 < 6 & AT&amp;T, but `&lt;` is written so'
    """
    if "&" not in text:
        return text
    return CODE_OR_ENTITY.sub(decode_entity, text)


def decode_entity(match: re.Match) -> str:
    """The replacement for a match of CODE_OR_ENTITY. An unknown entity stays as it is."""
    entity = match[0]
    if match["code"]:
        return entity
    if match["line_break"]:
        return "\n"
    if not entity.startswith("&#"):
        return html.entities.html5.get(entity[1:], entity)

    if entity[2] in "xX":
        number = int(entity[3:-1], 16)
    else:
        number = int(entity[2:-1])
    # Half of a surrogate pair. HTML calls it an error, but the other half often follows (😀 as
    # &#55357;&#56832;), so it is kept here for `join_surrogates`.
    if 0xD800 <= number <= 0xDFFF:
        return chr(number)
    # unescape knows HTML's rules: &#150; is – as in cp1252; a number without a character is
    # nothing.
    return html.unescape(entity)


def join_surrogates(text: str) -> str:
    """Join the halves of a surrogate pair into one character; a half alone becomes U+FFFD.

    >>> join_surrogates("\\ud83d\\ude00 \\ud83d")
    '😀 �'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---- Spaces, private use, and invisible characters ----------------------------------------------

SPACES = (
    # No-break, Ogham, all widths, narrow no-break, mathematical, ideographic.
    "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
    # Hangul fillers, other than the two that are parts of syllables.
    "\u3164\uffa0"
)
# Vertical tab, form feed, next line, line separator, paragraph separator.
LINE_ENDS = "\x0b\x0c\x85\u2028\u2029"

# Characters to which only a font gives meaning, in the three areas that Unicode reserves for this.
PRIVATE_AREAS = "\ue000-\uf8ff\U000f0000-\U0010ffff"

# Those of Hancom's word processor that people use as text, and what they stand for. Its pictures
# and lines carry no words, and its old Hangul (U+E0BC-F66E, "Hanyang PUA") would need a table of
# 5,660 syllables: these are dropped, like the icons of web fonts and Apple's logo.
HANCOM = {
    "\U000f0854": "『",
    "\U000f0855": "』",
    "\U000f02ef": "·",
}
# Numbers in a square, 1 to 20, used for headings in reports: replaced by numbers in a circle.
HANCOM |= {chr(0xF02B0 + number): chr(0x245F + number) for number in range(1, 21)}

DROPPED = (
    # Control characters except tab and line ends.
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
    # The soft hyphen, zero-width spaces and joiners, the byte order mark.
    "\u00ad\u180e\u200b-\u200d\u2060\ufeff"
    # Directional marks, invisible operators.
    "\u200e\u200f\u202a-\u202e\u2061-\u206f"
    # Marks around interlinear notes (the notes stay), and the object replacement character.
    "\ufff9-\ufffc"
    # Noncharacters.
    "\ufdd0-\ufdef\ufffe\uffff"
    # Variation selectors.
    "\ufe00-\ufe0f"
    # Planes 4 to 13, which are empty, and 14, which has tags and variation selectors for hanja.
    "\U0003fffe-\U000effff"
)
HALVES = "\ud800-\udfff"  # of surrogate pairs

# Whether a text needs any of this: a single search, because most documents do not.
UNUSUAL = re.compile(f"[\r{SPACES}{LINE_ENDS}{DROPPED}{PRIVATE_AREAS}{HALVES}]")
SURROGATES = re.compile(f"[{HALVES}]")
PRIVATE_USE = re.compile(f"[{PRIVATE_AREAS}]")
HANCOM_TEXT = str.maketrans(HANCOM)
SPACE = re.compile(f"[{SPACES}]")
LINE_END = re.compile(f"\r\n|[\r{LINE_ENDS}]")

# An emoji may be several characters (Unicode Technical Standard 51): with a skin tone, a selector
# for the coloured or the plain picture, and more emoji after joiners (a family). Keycaps (1️⃣) and
# the flags of parts of countries are written with such characters too.
ONE_EMOJI = r"\p{Extended_Pictographic}[\U0001f3fb-\U0001f3ff]?[\ufe0e\ufe0f]?"
EMOJI_OR_DROPPED = regex.compile(
    r"(\U0001f3f4[\U000e0020-\U000e007e]++\U000e007f"
    r"|[0-9#*]\ufe0f\u20e3"
    rf"|{ONE_EMOJI}(?:\u200d{ONE_EMOJI})*+)"
    rf"|[{DROPPED}{PRIVATE_AREAS}]"
)


def drop_invisible(text: str) -> str:
    """Turn all kinds of spaces into spaces; drop invisible and private-use characters.

    >>> drop_invisible("A\\u00a0B\\u200bC \\U000f0854D\\U000f0855 \\uf8ff")
    'A BC 『D』 '
    """
    if SURROGATES.search(text):
        text = join_surrogates(text)
    text = EMOJI_OR_DROPPED.sub(r"\1", text.translate(HANCOM_TEXT))
    return LINE_END.sub("\n", SPACE.sub(" ", text))


# ---- All characters -----------------------------------------------------------------------------

# Real text is escaped two or three times; the rest is margin.
ROUNDS = 8


def normalise_characters(text: str) -> tuple[str, str]:
    """Apply all of the above until nothing changes: (the text, "private_use" or "").

    A round can make work for the next one: `&amp;nbsp;` becomes `&nbsp;`, and `&l\\u200bt;` becomes
    `&lt;`. A text can be built to need any number of rounds. Such a text loses its ampersands
    instead, so that nothing in it is an entity.
    """
    reason = ""
    for _ in range(ROUNDS):
        before = text
        text = decode_entities(text)
        if UNUSUAL.search(text):
            if PRIVATE_USE.search(text):
                reason = "private_use"
            text = drop_invisible(text)
        text = unicode_to_nfc(text)
        if text == before:
            return text, reason
    return unicode_to_nfc(text.replace("&", "")), reason


# ---- White space and runs -----------------------------------------------------------------------

EMPTY_LINES = re.compile(r"\n{3,}")
# A run is cut to three: ㅋㅋㅋ is still laughter. A run is one letter or punctuation mark over and
# over, or two letters in turn; not - = _ * #, which make rules, tables and headings.
RUN = re.compile(r"([\u3131-\u3163!?.,~^;:…·ㆍ。！？♡♥★☆])\1{3,}")
RUN_OF_TWO = re.compile(r"([\u3131-\u3163]{2})\1{3,}")


def tidy(text: str) -> str:
    """Strip the ends of lines, allow at most one empty line in a row, and cut runs to three.

    >>> tidy("뭐!!!!!!  \\n\\n\\n\\nㅋㅋㅋㅋㅋ\\n")  # 'what!', laughter
    '뭐!!!\\n\\nㅋㅋㅋ'
    """
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    text = EMPTY_LINES.sub("\n\n", text).strip("\n").rstrip()
    text = RUN.sub(r"\1\1\1", text)
    return RUN_OF_TWO.sub(r"\1\1\1", text)


# ---- The step -----------------------------------------------------------------------------------

# The start of a tag, unless it is shown in code.
CODE_OR_TAG = re.compile(f"{CODE}|<(?=[a-zA-Z/!?])")


def space_tags(text: str) -> str:
    """`<div>` becomes `< div>`, except in code.

    >>> space_tags("<div> and `<p>`")
    '< div> and `<p>`'
    """
    return CODE_OR_TAG.sub(space_tag, text)


def space_tag(match: re.Match) -> str:
    """The replacement for a match of CODE_OR_TAG."""
    if match["code"]:
        return match[0]
    return "< "


def normalise_text(text: str) -> tuple[str | None, str]:
    """(the normalised text, "" or "private_use"), or (None, "empty").

    >>> normalise_text("<p>ㅋㅋ\\u200bㅋㅋㅋㅋ &lt;3</p>\\r\\n")
    ('ㅋㅋㅋ <3', '')
    >>> normalise_text("\\u200b&nbsp;")
    (None, 'empty')
    """
    raw = text
    was_page = looks_like_html(raw)
    if was_page:
        text = html_to_text(raw)
    text, reason = normalise_characters(text)

    # A page in which every tag is escaped, as databases export them: &lt;p&gt;text&lt;/p&gt;
    may_be_escaped = not was_page and text != raw and text.lstrip().startswith("<")
    if may_be_escaped and looks_like_html(text):
        text, more = normalise_characters(html_to_text(text))
        reason = reason or more
    text = tidy(text)

    # If the text still looks like a page, it only talks about tags. A space inside them makes them
    # plain text, so that cleaning the text again leaves it alone.
    if text != raw and looks_like_html(text):
        text = space_tags(text)
    if not text:
        return None, "empty"
    return text, reason
