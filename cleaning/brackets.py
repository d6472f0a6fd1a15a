"""Part of step 3, leftovers: empty brackets, left where an extractor dropped their contents.

Foreign names are lost most often, because wikis write them with templates: 4,904 of 23,703 Korean
Wikipedia articles have lost some. (⏎ is the end of a line.)

    고래()는 크다.            →  고래는 크다.            'whales are large'
    고래(, Whale)는 크다.     →  고래(Whale)는 크다.     the separator of what was lost
    고래(Whale, 한자: )       →  고래(Whale)             the label of what was lost: 'hanja'
    HDMI⏎HDMI()는 선이다.     →  HDMI⏎HDMI는 선이다.     'HDMI is a cable'

But print() is a call, ( ) is a box to tick, 이름() (name) is a blank in a form, (;;) is an
emoticon, and (3, ) may be a tuple. So a bracket is removed only with evidence that it held words:
separators with spaces inside it, a particle directly after it, or the document's title before it.
"""
import functools
import re
from typing import NamedTuple

BRACKET = re.compile(r"(?P<space> ?)\((?P<inside>[^()\n]*)\)(?P<gap> (?=[은는을를] ))?")
# A text without any of these has nothing for cut_empty_brackets to cut.
SIGNS = (
    "()", "( )", "(,", "(; ", "( , ", "( ; ", ",)", ", )", "; )", ": )", ", ,", "; ;", ", ;", "; ,"
)
# Brackets can be nested: removing the inner ones may leave the outer ones empty.
ROUNDS = 8
# Maximum length of a first line that may be a title, in characters.
LONGEST_TITLE = 40


class Around(NamedTuple):
    """What the whole text says about its brackets."""
    title: str        # the first line, without spaces
    has_calls: bool   # the text contains calls
    has_sure: bool    # some bracket in the text has certainly lost its contents


def cut_empty_brackets(text: str) -> str:
    """Remove brackets that lost all of their contents, and stray separators from those that lost a
    part.

    >>> cut_empty_brackets("고래(, Whale, 영어: )와 돌고래(, )는 크다.")  # 'whales and dolphins'
    '고래(Whale)와 돌고래는 크다.'
    >>> cut_empty_brackets("The Blue Whale () is large (;;) ( ) 1 (1, 2, 3)")
    'The Blue Whale is large (;;) ( ) 1 (1, 2, 3)'
    >>> cut_empty_brackets("main() calls Print ()")
    'main() calls Print ()'
    """
    around = Around(
        title=first_line(text),
        has_calls=CALL.search(text) is not None,
        has_sure=SURE.search(text) is not None,
    )
    before = SEPARATORS_BEFORE_WORD.sub("", text)
    replace = functools.partial(cut_bracket, around=around)
    for _ in range(ROUNDS):
        after = BRACKET.sub(replace, before)
        if after == before:
            return after
        before = after
    # No real text nests brackets this deeply. It was built to take long, and is left unchanged.
    return text


def cut_bracket(match: re.Match, around: Around) -> str:
    """The replacement for a match of BRACKET: the bracket as it is, cleaned up, or nothing."""
    inside = without_separators(match["inside"])
    is_changed = inside != match["inside"]
    if any(character.isalnum() for character in inside):
        if not is_changed:
            return match[0]
        return f"{match['space']}({inside}){match['gap'] or ''}"

    # After the title, the lost words were the title in another language. (?) and (!) stay.
    before = match.string[max(0, match.start() - 2 * LONGEST_TITLE):match.start()]
    is_blank = not inside.strip(" ,;")
    is_behind_title = around.title and before.replace(" ", "").endswith(around.title)
    may_be_empty = is_changed or not inside
    if (is_blank and is_behind_title) or (may_be_empty and is_empty(match, before, around)):
        return ""  # the gap goes too: 현(, ) 은 is 현은, a noun and its particle
    return match[0]


# ---- What was inside ----------------------------------------------------------------------------

# Separators with nothing between them. Each must have a space, since (;;) and (15년;;) are
# emoticons and (,) is about commas; without a space, only a comma after Hangul or hanja is certain.
# The first pattern is for brackets that contain others or are never closed, which BRACKET does not
# match.
SEPARATORS_BEFORE_WORD = re.compile(r"(?<=\() ?(?:[,;] )+(?=[^\W_ㄱ-ㅣ])")
SEPARATORS_AT_START = re.compile(r"^(?:[,;] )+")
SEPARATORS_AT_END = re.compile(r"(?:(?<![ 0-9]),|(?<! );) (?:[,;] )*$|(?<=[가-힣一-鿿]),$")
SEPARATORS_IN_A_ROW = re.compile(r"([,;])(?: [,;])+(?= )")
# Labels whose contents were lost: English, Japanese, Chinese, hanja, French, German, Russian,
# Latin; original title, real name, scientific name.
LANGUAGE = (
    "영어|일본어|중국어|한자|프랑스어|독일어|러시아어|라틴어|원제|본명|학명"
    "|Arabic|Chinese|Greek|Hangul|Hanja|Hebrew|Japanese|Korean|Persian|Russian|Urdu|IAST|IPA"
)
LABEL = re.compile(rf"(?:^|(?<=[,;] ))(?:{LANGUAGE}): ?(?=[,;]|$)")


def without_separators(inside: str) -> str:
    """The contents of a bracket, without empty labels and stray separators.

    >>> without_separators(", , Whale, 영어: ")
    'Whale'
    """
    inside = LABEL.sub("", inside)
    inside = SEPARATORS_AT_START.sub("", inside)
    inside = SEPARATORS_AT_END.sub("", inside)
    return SEPARATORS_IN_A_ROW.sub(r"\1", inside)


# ---- What is around it --------------------------------------------------------------------------

# Directly after a Hangul syllable, hanja or kana, or after a mark that closes a title.
BEHIND_KOREAN = re.compile(r"(?:[가-힣一-鿿぀-ヿ][\"'”’)!]?|[》〉」』])\Z")
CLOSING = ("\"", "'", "”", "’", ")", "》", "〉", "」", "』")
# A call. In a text with calls, foo () may be another one.
CALL = re.compile(r"[A-Za-z0-9_]\(\)|\(\) ?\{")
# A blank in a form: 2020년()월()일, 제()조 (of an article), ()번 (number), ()명 (persons), ()개.
BLANK_OF_FORM = re.compile(r"[월일시분조항호번명개점원](?![가-힣])")
# A bracket followed directly by a particle or a comma, which does not occur in forms or quizzes.
SURE = re.compile(r"[가-힣]\((?:, )*\)(?:[은는이가을를의에와과로도]|으로|[,.])")


def is_empty(match: re.Match, before: str, around: Around) -> bool:
    """Whether a bracket that has no words, and does not follow the title, has lost its contents."""
    if match["inside"]:
        # It held separators, so it is neither a call nor a box. It may be an emoticon, unless a
        # word, a title or a closing bracket comes before it.
        return before[-1:].isalnum() or before.endswith(CLOSING)
    if match["space"]:
        return not around.has_calls and ends_in_name(before)

    if not BEHIND_KOREAN.search(before) or BLANK_OF_FORM.match(match.string, match.end()):
        return False
    # Followed by a space, it may be a question in a form or a quiz: 이름() 나이() (name, age). It
    # is not if another name follows (또는 and 혹은 are 'or').
    after = match.string[match.end():match.end() + 3]
    is_followed = after.strip() != "" and not after.startswith((" ", "\n"))
    return is_followed or after in (" 또는", " 혹은") or around.has_sure


def ends_in_name(before: str) -> bool:
    """Whether an English name or a quotation ends here: "Blue Whale", but not "the whale", because
    "call main ()" is a call and "the capital is ()" a question."""
    word = before.rpartition(" ")[2].rpartition("\n")[2]
    return word[:1].isupper() or word[-1:] in ("\"", "”")


def first_line(text: str) -> str:
    """The first line without its spaces if it is short enough to be a title, else "". An article
    names its subject there, and again before the bracket."""
    line, end, _ = text[:LONGEST_TITLE].partition("\n")
    title = line.replace(" ", "")
    if end and len(title) > 1:
        return title
    return ""
