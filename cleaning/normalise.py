r"""Step 1, normalise: one spelling for each thing, so that the tokenizer sees text, not encodings.

A page of HTML becomes text, `&lt;` becomes `<`, a syllable becomes one code point, what nobody can
see goes. Unicode is NFC (UAX 15): 한 and not ᄒ + ᅡ + ᆫ, which would cost four times the tokens.
Never NFKC: it turns the letters of ㅋㅋ (laughter) and ㅠㅠ (tears) into parts of syllables, and ½,
㎡ and ① into other text. NFC also folds the compatibility hanja (U+F90A) into the unified ones (金,
U+91D1), which Unicode calls the same characters.

What is lost: characters for private use, old Hangul of the 1990s among them (see HANCOM below), and
entities that prose was meant to show, such as `&amp;lt;` outside of code.

Two properties, tested on random strings:

    normalise_text(normalise_text(x)) == normalise_text(x)   cleaning a clean corpus changes nothing
    NFD(normalise_text(x)) == NFD(x)                         for syllables, of old Korean as well

The first is why characters are changed until nothing changes: `&amp;nbsp;` hides an entity behind
an entity, and any invisible character can hide anything (`&l\u200bt;`).
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
# The trailing consonants of old Korean only. NFC composes 셔 with a modern one, never with these.
OLD_TRAILING = r"\u11c3-\u11ff\ud7cb-\ud7fb"
# They hold the place of a leading consonant and of a vowel, and are invisible.
LEADING_FILLER = r"\u115f"
VOWEL_FILLER = r"\u1160"
CONJOINING = LEADING + VOWEL + TRAILING + LEADING_FILLER + VOWEL_FILLER
HALF_WIDTH = r"\uffa1-\uffdc"

HAS_JAMO = re.compile(f"[{CONJOINING}{HALF_WIDTH}]")

# A syllable block (The Unicode Standard, 3.12) has a vowel and a consonant; all other jamo are
# letters that stand alone. The runs of letters are matched whole and possessively (++), so that the
# time grows with the length of the text and not with its square.
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
    """{a jamo in another encoding: the one that people type}, by their Unicode names.

    Some letters of old Korean have no such twin, and are left out. The fillers become nothing.

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
    """NFC, with the jamo that stand alone turned into the ones that people type.

    >>> unicode_to_nfc("\\u1112\\u1161\\u11ab \\u110f\\u110f \\u110f\\u1160 \\uffbb")
    '한 ㅋㅋ ㅋ ㅋ'

    That is a syllable, and then the letter k as leading consonants, with a filler, and half-width.
    A leading consonant and a vowel that NFC could not compose are a syllable of old Korean: they
    stay.
    """
    text = unicodedata.normalize("NFC", text)
    if HAS_JAMO.search(text):
        text = BLOCK_OR_LETTERS.sub(spell_jamo, text)
    return text


def spell_jamo(match: re.Match) -> str:
    """The replacement for a match of BLOCK_OR_LETTERS. Fillers without a letter: a space."""
    if match["block"]:
        return match[0]
    return match[0].translate(COMPATIBILITY_JAMO) or " "


# ---- Entities -----------------------------------------------------------------------------------

# &lt; &frac12; &#44032; &#xAC00;  The semicolon must be there: `a&copy=b` is part of an address.
ENTITY = r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});"

# A line break whose brackets are entities. Of the 64 articles of a Korean Wikipedia extract that
# have one, 63 got it from a converter; one is about HTML.
LINE_BREAK = r"(?P<line_break>&lt;/?(?i:br) ?/?&gt;[ \t]*\n?)"

CODE_OR_ENTITY = re.compile(f"{CODE}|{LINE_BREAK}|{ENTITY}")


def decode_entities(text: str) -> str:
    """Entities become what they stand for, except in code, where they may be what is being shown.

    >>> decode_entities("5 &lt; 6 &#x26; AT&amp;amp;T, but `&lt;` is written so")
    '5 < 6 & AT&amp;T, but `&lt;` is written so'
    """
    if "&" not in text:
        return text
    return CODE_OR_ENTITY.sub(decode_entity, text)


def decode_entity(match: re.Match) -> str:
    """The replacement for a match of CODE_OR_ENTITY. An unknown name stays as it is."""
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
    # Half of a surrogate pair. HTML calls it an error; the other half often follows (😀 as
    # &#55357;&#56832;), so it is kept here and `join_surrogates` sees to it.
    if 0xD800 <= number <= 0xDFFF:
        return chr(number)
    # This knows HTML's rules: &#150; is – as in cp1252, a number that is no character is nothing.
    return html.unescape(entity)


def join_surrogates(text: str) -> str:
    """Two halves of a surrogate pair become one character, and a half alone becomes U+FFFD.

    >>> join_surrogates("\\ud83d\\ude00 \\ud83d")
    '😀 �'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---- Spaces, private use, and what nobody can see -----------------------------------------------

SPACES = (
    # No-break, Ogham, all widths, narrow no-break, mathematical, ideographic.
    "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
    # Hangul fillers, beside the two that are parts of syllables.
    "\u3164\uffa0"
)
# Vertical tab, form feed, next line, line separator, paragraph separator.
LINE_ENDS = "\x0b\x0c\x85\u2028\u2029"

# Characters that only a font gives a meaning, in three areas that Unicode leaves to private use.
PRIVATE_AREAS = "\ue000-\uf8ff\U000f0000-\U0010ffff"

# Those of Hancom's word processor that people use as text, with what they stand for. Its pictures
# and lines carry no words, and its old Hangul (U+E0BC-F66E, "Hanyang PUA") would need a table of
# 5,660 syllables: they are dropped, like the icons of web fonts and Apple's logo.
HANCOM = {
    "\U000f0854": "『",
    "\U000f0855": "』",
    "\U000f02ef": "·",
}
# The digits in a square, 1 to 20, with which reports number their headings: here in a circle.
HANCOM |= {chr(0xF02B0 + number): chr(0x245F + number) for number in range(1, 21)}

DROPPED = (
    # Control characters but tab and the line ends.
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
    # The soft hyphen, zero-width spaces and joiners, the byte order mark.
    "\u00ad\u180e\u200b-\u200d\u2060\ufeff"
    # Marks of direction, invisible operators.
    "\u200e\u200f\u202a-\u202e\u2061-\u206f"
    # Marks around notes between the lines (the notes stay), and the place of an object.
    "\ufff9-\ufffc"
    # Code points that are no characters.
    "\ufdd0-\ufdef\ufffe\uffff"
    # Selectors of the variant of a glyph.
    "\ufe00-\ufe0f"
    # Planes 4 to 13, which are empty, and 14, which has tags and selectors of variants of hanja.
    "\U0003fffe-\U000effff"
)
HALVES = "\ud800-\udfff"  # of surrogate pairs

# Whether a text needs any of this: one look, because most documents do not.
UNUSUAL = re.compile(f"[\r{SPACES}{LINE_ENDS}{DROPPED}{PRIVATE_AREAS}{HALVES}]")
SURROGATES = re.compile(f"[{HALVES}]")
PRIVATE_USE = re.compile(f"[{PRIVATE_AREAS}]")
HANCOM_TEXT = str.maketrans(HANCOM)
SPACE = re.compile(f"[{SPACES}]")
LINE_END = re.compile(f"\r\n|[\r{LINE_ENDS}]")

# An emoji may be several characters (Unicode Technical Standard 51): a skin colour, a selector of
# the coloured or of the plain picture, and more emoji behind joiners (a family). A keycap (1️⃣) and
# the flags of parts of countries are written with such characters too.
ONE_EMOJI = r"\p{Extended_Pictographic}[\U0001f3fb-\U0001f3ff]?[\ufe0e\ufe0f]?"
EMOJI_OR_DROPPED = regex.compile(
    r"(\U0001f3f4[\U000e0020-\U000e007e]++\U000e007f"
    r"|[0-9#*]\ufe0f\u20e3"
    rf"|{ONE_EMOJI}(?:\u200d{ONE_EMOJI})*+)"
    rf"|[{DROPPED}{PRIVATE_AREAS}]"
)


def drop_invisible(text: str) -> str:
    """Spaces of all kinds become spaces; what nobody can see and what only a font can show goes.

    >>> drop_invisible("A\\u00a0B\\u200bC \\U000f0854D\\U000f0855 \\uf8ff")
    'A BC 『D』 '
    """
    if SURROGATES.search(text):
        text = join_surrogates(text)
    text = EMOJI_OR_DROPPED.sub(r"\1", text.translate(HANCOM_TEXT))
    return LINE_END.sub("\n", SPACE.sub(" ", text))


# ---- All characters -----------------------------------------------------------------------------

# Real text is escaped two or three times over; the rest is room.
ROUNDS = 8


def normalise_characters(text: str) -> tuple[str, str]:
    """All of the above, until nothing changes: (the text, "private_use" or "").

    A round can make work for the next one: `&amp;nbsp;` becomes `&nbsp;`, and `&l\\u200bt;` becomes
    `&lt;`. A text can be made to need very many rounds. Such a text loses its ampersands instead,
    and then nothing in it is an entity.
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
# A run is cut to three: ㅋㅋㅋ still laughs. One letter or punctuation mark over and over, or two
# letters in turn; not - = _ * #, which make rulers, tables and headings.
RUN = re.compile(r"([\u3131-\u3163!?.,~^;:…·ㆍ。！？♡♥★☆])\1{3,}")
RUN_OF_TWO = re.compile(r"([\u3131-\u3163]{2})\1{3,}")


def tidy(text: str) -> str:
    """No spaces at the ends of lines, at most one empty line in a row, runs of three.

    >>> tidy("뭐!!!!!!  \\n\\n\\n\\nㅋㅋㅋㅋㅋ\\n")  # 'what!', laughter
    '뭐!!!\\n\\nㅋㅋㅋ'
    """
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    text = EMPTY_LINES.sub("\n\n", text).strip("\n").rstrip()
    text = RUN.sub(r"\1\1\1", text)
    return RUN_OF_TWO.sub(r"\1\1\1", text)


# ---- The step -----------------------------------------------------------------------------------

# Where a tag begins, unless it is shown in code.
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
    """(the text in its one spelling, "" or "private_use"), or (None, "empty").

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

    # A page whose every tag is escaped, as databases hand them out: &lt;p&gt;text&lt;/p&gt;
    may_be_escaped = not was_page and text != raw and text.lstrip().startswith("<")
    if may_be_escaped and looks_like_html(text):
        text, more = normalise_characters(html_to_text(text))
        reason = reason or more
    text = tidy(text)

    # What looks like a page now only speaks of tags. With a space in them they are not tags, and
    # whoever cleans this text again leaves it alone.
    if text != raw and looks_like_html(text):
        text = space_tags(text)
    if not text:
        return None, "empty"
    return text, reason
