r"""Step 3, leftovers: cuts what an extractor left inside a document, and keeps the document.

Text is extracted from wikis, databases and scans by programs that cannot render everything. They
leave behind things that no reader of the original saw, in otherwise good documents (⏎ is the end of
a line):

    front_matter    ---⏎title: 고래⏎tags: [바다]⏎---⏎아주 크다.   →  고래⏎⏎아주 크다.
    page_marks      산에 올라＜44＞ 바다를 보았다.                →  산에 올라 바다를 보았다.
    wiki_remnants   고래는 크다.⏎[[분류:바다의 동물]]             →  고래는 크다.
    lost_content    무게는 formula_1이다. 고래는 크다.            →  고래는 크다.
    empty_brackets  고래()는 크다. 고래(, Whale)는 크다.         →  고래는 크다. 고래(Whale)는 크다.

('Whales are large', 'I went up the hill and saw the sea', 'Its weight is formula_1'; the category
is 'Animals of the sea'.) The code for the first kind is in front_matter.py, for the last in
brackets.py.

Good text can look like any of these: a rule of hyphens, a call print(), a box ( ) to tick, an
emoticon (;;). So each kind requires evidence, and anything that might be text stays: square
brackets, () after the name of a function, <34> and [2], which number paragraphs. Text marked as
code is left alone.

A document is removed if most of it is lost content, or if it has nothing but leftovers.
"""
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from cleaning import brackets, front_matter
from cleaning.code import IN_CODE
from cleaning.normalise import tidy
from cleaning.rules import too_high

# ---- Page marks ---------------------------------------------------------------------------------

# The printed page that ends here, ＜44＞, and the pages of an article, ＜13-16＞, in full-width
# brackets: all 110 periodicals have them. Statutes number paragraphs <34>, in narrow ones.
PAGE = r"＜[0-9]{1,4}(?:-[0-9]{1,4}(?:, [0-9]{1,4})?)?＞"
PAGE_LINE = re.compile(rf"^(?:{PAGE} ?)+(?:\n|\Z)", re.MULTILINE)
PAGE_MARK = re.compile(rf"(?<=[^\n ]) *(?:{PAGE})+")
# A page may end inside a word, before its particle or ending.
PARTICLE = re.compile(r"(?:[은는이가을를의에로와과도]|으로|에서|부터|까지) ")


def cut_page_marks(text: str) -> str:
    """Remove page marks, except at the start of a line of text, where one may number a paragraph.

    >>> cut_page_marks("바다를＜44＞보는 사람＜45＞은 많다.＜46＞")  # 'Many people look at the sea'
    '바다를 보는 사람은 많다.'
    """
    return PAGE_MARK.sub(join_pages, PAGE_LINE.sub("", text))


def join_pages(match: re.Match) -> str:
    """The replacement for a match of PAGE_MARK: a space between words, nothing within a word."""
    text = match.string
    before = text[match.start() - 1]
    after = text[match.end():match.end() + 1]
    # 1＜2＞0 is a comparison, and in "compare ＜1＞ with ＜2＞" the marks are nouns with particles.
    # None of the 1,349 marks in the periodicals looks like these.
    is_noun = match[0].startswith(" ") and PARTICLE.match(text, match.end())
    is_comparison = before.isdigit() and after.isdigit()
    if is_comparison or is_noun:
        return match[0]
    two_words = (before.isalnum() or before in ".!?") and after.isalnum()
    if two_words and not PARTICLE.match(text, match.end()):
        return " "
    return ""


# ---- Remains of wiki source ---------------------------------------------------------------------

# A category, without its closing brackets.
CATEGORY = r"\[\[ (?: 분류 | [Cc]ategory ) : [^\[\]\n]*+"
# A picture with its caption, which may hold links [[바다]] and footnotes [1].
FILE = r"""
    \[\[ (?: 파일 | 그림 | [Ff]ile | [Ii]mage ) :
    (?: [^\[\]\n]
      | \[\[ [^\[\]\n]*+ \]\]
      | \[ [^\[\]\n]*+ \] (?!\])
    )*+
    \]\]
"""
# A line of nothing else. The closing brackets of categories are often damaged.
LINK_LINE = re.compile(
    rf"^ (?: (?: {CATEGORY} \]{{0,3}} | {FILE} ) [ ]* )+ (?: \n | \Z )",
    re.VERBOSE | re.MULTILINE,
)
# Among words, a remnant has spaces around it. With a particle or a quotation mark next to it, it is
# what the text is about.
LINK = re.compile(
    rf"""
    (?: (?<=[ \]\n]) | \A )
    (?: {CATEGORY} \]\] | {FILE} )
    (?: [ ]+ | (?= \n | \[\[ | \Z ) )
    """,
    re.VERBOSE,
)
# The cell of a table with its attributes, alone on its line.
CELL_LINE = re.compile(
    r"^! ?(?:style|class|colspan|rowspan|scope|width|align|bgcolor) ?=.*(?:\n|\Z)",
    re.MULTILINE,
)


def cut_wiki_remnants(text: str) -> str:
    """Remove categories and pictures. Other links stay: rules.py counts them to decide whether the
    document is wiki source.

    >>> cut_wiki_remnants("[[파일:고래.jpg|섬네일|[[바다]]의 고래]]\\n[[고래]]는 크다.")
    '[[고래]]는 크다.'
    """
    text = LINK_LINE.sub("", text)
    text = LINK.sub("", text)
    return CELL_LINE.sub("", text)


# ---- Content that was lost ----------------------------------------------------------------------

# Private-use characters, which normalise has dropped from all texts.
MARK = "\ue000"
CODE_MARK = "\ue001"
# What is left of a formula and of a piece of code.
HOLE = re.compile(
    r"""
    (?<![_./-]) (?: formula | codice ) _[0-9]{1,4}
    # Not names in code: formula_1_x, formula_1[0], formula_1.py, formula_1(x) and formula_1 = 2.
    (?! [0-9_\[] | \.[a-z] | \([\w"']*[,)] | [ ]=[ ] )
    """,
    re.VERBOSE,
)
# What is left of a title that was a link. In a list, only the empty title is cut.
LOST_TITLE = re.compile(r"(?<=[ \n])(?:《》|〈〉)")
LOST_IN_LIST = re.compile(
    r"""
    (?<= [》〉] ) (?: ,[ ](?:《》|〈〉) )+ (?= [,.)] | [ ]등 )   # 등: 'and others'
  | (?<= [ \n] ) (?:《》|〈〉),[ ] (?= [《〈] )
    """,
    re.VERBOSE,
)
BRACKETS_AS_SUBJECT = ("괄호", "부호", "낫표")  # bracket, mark, corner bracket
# A hole in a bracket: without the bracket, the sentence around it is complete.
BRACKETED = re.compile(rf" ?\([^()\n]*{MARK}[^()\n]*\)")
# A formula on a line of its own may have vanished without a trace. The next line then begins with
# the particle or ending that followed the formula: "is ...", "to ...", "of ...". In a text without
# holes such a line means nothing.
FRAGMENT = re.compile(
    r"^(?:이다|이므로|이고|이며|인|을|를|은|는|가|와|과|로|으로|라고|라|의)(?=[ .,])",
    re.MULTILINE,
)
# The spaces after a full stop, but not the one in "1. " or "i.e. ".
SENTENCE_END = re.compile(
    rf"""
    (?: (?<= [^\W\d_]{{2}} [.!?] )     # after a word of two letters or more,
      | (?<= [{MARK})\"”’] [.!?] )     # a hole, a bracket or a quotation,
      | (?<= [.!?] [)\"”’] )           # or inside one
    )
    [ ]+
    """,
    re.VERBOSE,
)

# Ours: of 238 Wikipedia articles with a hole, 38 lose more. Of those, headings and broken sentences
# remain; the others still read well without their formulas.
MOST_LOST = 0.5


def cut_lost_content(text: str) -> str:
    """Remove sentences that have a hole, since they say nothing.

    >>> cut_lost_content("고래는 크다. 무게는 formula_1이다. 그래도 헤엄친다.")  # 'still, it swims'
    '고래는 크다. 그래도 헤엄친다.'
    >>> cut_lost_content("무게(기호 formula_1)는 크다.")  # 'the weight (symbol ...) is large'
    '무게는 크다.'
    """
    # Replace each hole by one character, so that the patterns below need not know what was lost.
    marked = HOLE.sub(MARK, text)
    has_lost_formulas = marked != text
    # A text about punctuation has 《》 in its sentences, and has lost nothing.
    if not has_any(BRACKETS_AS_SUBJECT, text):
        marked = LOST_IN_LIST.sub("", marked)
        marked = LOST_TITLE.sub(MARK, marked)
    if marked == text:
        return text

    # First cut what costs less than a sentence.
    marked = BRACKETED.sub("", marked)
    if has_lost_formulas:
        marked = FRAGMENT.sub(MARK, marked)

    # Keep the other sentences of a line; drop a line that has no others.
    lines = []
    for line in marked.split("\n"):
        sentences = [line]
        if MARK in line:
            sentences = SENTENCE_END.split(line)
            sentences = [sentence for sentence in sentences if MARK not in sentence]
        if sentences:
            lines.append(" ".join(sentences))
    return "\n".join(lines)


# ---- The step -----------------------------------------------------------------------------------


class Kind(NamedTuple):
    name: str                 # in the report
    cut: Callable[[str], str]
    signs: tuple[str, ...]    # a text without any of these has nothing of this kind
    most: float = 1.0         # share of characters; a text that would lose more is removed


KINDS = [
    Kind("front_matter", front_matter.cut_front_matter, front_matter.SIGNS),
    Kind("page_marks", cut_page_marks, ("＜",)),
    Kind("wiki_remnants", cut_wiki_remnants, ("[[", "\n!")),
    Kind("lost_content", cut_lost_content, ("formula_", "codice_", "《》", "〈〉"), MOST_LOST),
    Kind("empty_brackets", brackets.cut_empty_brackets, brackets.SIGNS),
]
ALL_SIGNS = tuple(itertools.chain.from_iterable(kind.signs for kind in KINDS))


def remove_leftovers(text: str) -> tuple[str | None, str]:
    """(the text without leftovers, their kinds joined by +), or (None, reason) if nothing readable
    would be left.

    >>> remove_leftovers("고래()는 크다.\\n[[분류:바다의 동물]]")
    ('고래는 크다.', 'wiki_remnants+empty_brackets')
    >>> remove_leftovers("고래\\n무게는 formula_1이다.")
    (None, 'too_much_lost: 0.895 of the characters > 0.5')
    """
    # (Searching for strings is many times faster than matching patterns.)
    if not has_any(ALL_SIGNS, text):
        return text, ""
    # A text that was not normalised may contain the marks already. It is left alone.
    if MARK in text or CODE_MARK in text:
        return text, ""

    changed, code = hide_code(text)
    kinds = []
    for kind in KINDS:
        before = changed
        if has_any(kind.signs, before):
            changed = kind.cut(before)
        if changed == before:
            continue
        kinds.append(kind.name)
        lost = 1 - len(changed) / len(before)
        if lost > kind.most:
            return None, f"too_much_lost: {too_high(lost, 'of the characters', kind.most)}"
    if not kinds:
        return text, ""

    changed = tidy(show_code(changed, code))
    if not changed:
        return None, f"only_leftovers: nothing but {' and '.join(kinds)}"
    return changed, "+".join(kinds)


def has_any(signs: tuple[str, ...], text: str) -> bool:
    # A loop, because any() takes twice as long, and for most documents this is all there is to do.
    for sign in signs:
        if sign in text:
            return True
    return False


def hide_code(text: str) -> tuple[str, list[str]]:
    """(the text with a numbered mark for each piece of code, the pieces).

    >>> hide_code("a `b` c")
    ('a \\ue0010\\ue001 c', ['`b`'])
    """
    if "`" not in text and "~~~" not in text:
        return text, []
    hidden = []
    pieces = []
    done = 0
    for match in IN_CODE.finditer(text):
        hidden.append(text[done:match.start()])
        hidden.append(f"{CODE_MARK}{len(pieces)}{CODE_MARK}")
        pieces.append(match[0])
        done = match.end()
    hidden.append(text[done:])
    return "".join(hidden), pieces


def show_code(text: str, pieces: list[str]) -> str:
    """Put each piece of code back, if its mark is still in the text."""
    parts = text.split(CODE_MARK)
    # Every second part is the number of a piece.
    for place in range(1, len(parts), 2):
        parts[place] = pieces[int(parts[place])]
    return "".join(parts)
