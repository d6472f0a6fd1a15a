"""Step 1, normalise: one way to write each thing, so that later steps and the tokenizer see text and not encodings.

In this order: HTML pages to text; Unicode; invisible characters; white space; long runs of laughter and punctuation.
The runs come last, because an invisible character inside ㅋㅋㅋ hides a run.

Unicode is NFC (UAX 15): syllables composed, 한 and not ᄒ + ᅡ + ᆫ, which would cost four times the tokens. Never NFKC: it
folds the compatibility jamo of ㅋㅋ (laughter) and ㅠㅠ (tears) into conjoining ones, and ½, ㎡ and ① into other text.
"""
import html
import re
import unicodedata

import regex

from cleaning.pages import LOOKS_LIKE_HTML, html_to_text

ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")  # left over in text: &lt; &nbsp; &#39;


# --------------------------------------------------------------------------------------------------------- Unicode

def _letters(first: int, last: int) -> dict[str, str]:
    """{half-width or conjoining jamo: compatibility jamo}, by their Unicode names; a few old ones have no such twin."""
    table = {}
    for char in map(chr, range(first, last + 1)):
        name = re.sub(r"^(HALFWIDTH )?HANGUL (LETTER|CHOSEONG|JUNGSEONG|JONGSEONG) ", "HANGUL LETTER ",
                         unicodedata.name(char, ""))
        try:
            table[char] = unicodedata.lookup(name)
        except KeyError:
            continue
    return table


HALF_WIDTH = str.maketrans(_letters(0xFFA1, 0xFFDC))
CONJOINING = str.maketrans(_letters(0x1100, 0x11FF))
# A leading consonant followed by a vowel that NFC could not compose is a syllable of old Korean: it stays as it is.
LONE_JAMO = regex.compile(r"[\u1100-\u115F]++[\u1160-\u11A7]++[\u11A8-\u11FF]*(*SKIP)(*FAIL)|"
                          r"[\u1100-\u115F]+|[\u1160-\u11FF]")
HAS_JAMO = re.compile(r"[\u1100-\u11FF\uFFA0-\uFFDC]")

SPACES = str.maketrans({c: " " for c in "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
                                        "\u202f\u205f\u3000\u3164\u115f\u1160\uffa0"}  # the last four: Hangul fillers
                       | {c: "\n" for c in "\u2028\u2029\x0b\x0c\x85"})
# Control characters but tab and newline; soft hyphens, zero-width characters, direction marks, byte order marks.
# A zero-width joiner inside an emoji (a family, a flag) is what holds it together.
CONTROL = ("\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f"
           "\ufeff\ufff9-\ufffb")
INVISIBLE = regex.compile(rf"[{CONTROL}]|\u200d(?!\p{{Extended_Pictographic}})")
ODD = re.compile(f"[{CONTROL}\u200d{''.join(map(chr, SPACES))}]")  # one fast look: most documents have none of them


def unicode_to_nfc(text: str) -> str:
    """NFC, with half-width jamo and conjoining jamo that stand alone turned into compatibility jamo.

    >>> unicode_to_nfc("\\u1112\\u1161\\u11ab \\u110f\\u110f \\uffbb \\u314b")  # a syllable, and k in three encodings
    '한 ㅋㅋ ㅋ ㅋ'
    """
    text = unicodedata.normalize("NFC", text)
    if HAS_JAMO.search(text):
        text = LONE_JAMO.sub(lambda m: m[0].translate(CONJOINING), text.translate(HALF_WIDTH))
    return text


# --------------------------------------------------------------------------------------------- white space and runs

# A run is cut to three: ㅋㅋㅋ still laughs. One jamo or punctuation mark over and over, or two jamo in turn; not
# - = _ * #, which make rulers, tables and headings.
RUN = re.compile(r"([\u3131-\u3163!?.,~^;:…·ㆍ。！？♡♥★☆])\1{3,}")
RUN_OF_TWO = re.compile(r"([\u3131-\u3163]{2})\1{3,}")
LINE_ENDS, EMPTY_LINES = re.compile(r"[ \t]+$", re.MULTILINE), re.compile(r"\n{3,}")


def normalise(text: str) -> tuple[str, str]:
    """(the text in its one spelling, ""), or ("", "empty").

    >>> normalise("<p>ㅋㅋ\\u200bㅋㅋㅋㅋ &lt;3</p>\\r\\n")[0], normalise("뭐!!!!!!  \\n\\n\\n\\n끝")[0]  # 'what! end'
    ('ㅋㅋㅋ <3', '뭐!!!\\n\\n끝')
    """
    text = html_to_text(text) if LOOKS_LIKE_HTML.match(text) else ENTITY.sub(lambda m: html.unescape(m[0]), text)
    text = unicode_to_nfc(text).replace("\r\n", "\n").replace("\r", "\n")
    if ODD.search(text):
        text = INVISIBLE.sub("", text.translate(SPACES))
    if " \n" in text or "\t\n" in text:
        text = LINE_ENDS.sub("", text)
    text = EMPTY_LINES.sub("\n\n", text).strip("\n").rstrip()
    text = RUN_OF_TWO.sub(r"\1\1\1", RUN.sub(r"\1\1\1", text))
    return text, "" if text else "empty"
