r"""Step 3, leftovers: what an extractor leaves inside a document is cut. The document stays.

Text comes out of wikis, databases and scans by programs that cannot show everything. What they
leave behind no reader ever saw, and it stands in good documents (⏎ is the end of a line):

    front_matter    ---⏎title: 고래⏎tags: [바다]⏎---⏎아주 크다.   →  고래⏎⏎아주 크다.
    page_marks      산에 올라＜44＞ 바다를 보았다.                →  산에 올라 바다를 보았다.
    wiki_remnants   고래는 크다.⏎[[분류:바다의 동물]]             →  고래는 크다.
    lost_content    무게는 formula_1이다. 고래는 크다.            →  고래는 크다.
    empty_brackets  고래()는 크다. 고래(, Whale)는 크다.         →  고래는 크다. 고래(Whale)는 크다.

('Whales are large', 'I went up the hill and saw the sea', 'Its weight is formula_1'; the category
is 'Animals of the sea'.) The first is in front_matter.py, the last in brackets.py.

Good text looks like all of this: a rule of hyphens, a call print(), a box ( ) to tick, an emoticon
(;;). So each kind asks for evidence, and what might be text stays: square brackets, () behind the
name of a function, <34> and [2], which number paragraphs. Code that is marked as code is not looked
at.

A document goes if most of it is such sentences as the fourth, or if it has nothing but leftovers.
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
# A page may end inside a word, in front of its particle or ending.
PARTICLE = re.compile(r"(?:[은는이가을를의에로와과도]|으로|에서|부터|까지) ")


def cut_page_marks(text: str) -> str:
    """Without page marks. At the start of a line, in front of text, one may number a paragraph.

    >>> cut_page_marks("바다를＜44＞보는 사람＜45＞은 많다.＜46＞")  # 'Many people look at the sea'
    '바다를 보는 사람은 많다.'
    """
    return PAGE_MARK.sub(join_pages, PAGE_LINE.sub("", text))


def join_pages(match: re.Match) -> str:
    """The replacement for a match of PAGE_MARK: a space between two words, nothing in one."""
    text = match.string
    before = text[match.start() - 1]
    after = text[match.end():match.end() + 1]
    # 1＜2＞0 compares, and "compare ＜1＞ with ＜2＞" has nouns with their particles: none of the
    # 1,349 marks of the periodicals stands so.
    is_noun = match[0].startswith(" ") and PARTICLE.match(text, match.end())
    is_comparison = before.isdigit() and after.isdigit()
    if is_comparison or is_noun:
        return match[0]
    two_words = (before.isalnum() or before in ".!?") and after.isalnum()
    if two_words and not PARTICLE.match(text, match.end()):
        return " "
    return ""


# ---- Remains of wiki source ---------------------------------------------------------------------

# Without the brackets that close it.
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
# A line of nothing else. The brackets of categories are often broken.
LINK_LINE = re.compile(
    rf"^ (?: (?: {CATEGORY} \]{{0,3}} | {FILE} ) [ ]* )+ (?: \n | \Z )",
    re.VERBOSE | re.MULTILINE,
)
# Among words one stands free. With a particle or a quotation mark beside it, the text is about it.
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
    """Without categories and pictures. Other links stay: how many there are tells rules.py whether
    the document is wiki source.

    >>> cut_wiki_remnants("[[파일:고래.jpg|섬네일|[[바다]]의 고래]]\\n[[고래]]는 크다.")
    '[[고래]]는 크다.'
    """
    text = LINK_LINE.sub("", text)
    text = LINK.sub("", text)
    return CELL_LINE.sub("", text)


# ---- Content that was lost ----------------------------------------------------------------------

# Characters for private use, which normalise has dropped from all texts.
MARK = "\ue000"
CODE_MARK = "\ue001"
# What is left of a formula and of a piece of code.
HOLE = re.compile(
    r"""
    (?<![_./-]) (?: formula | codice ) _[0-9]{1,4}
    # Somebody's names are formula_1_x, formula_1[0], formula_1.py, formula_1(x) and formula_1 = 2.
    (?! [0-9_\[] | \.[a-z] | \([\w"']*[,)] | [ ]=[ ] )
    """,
    re.VERBOSE,
)
# What is left of a title that was a link. In a list of titles only this one is lost.
LOST_TITLE = re.compile(r"(?<=[ \n])(?:《》|〈〉)")
LOST_IN_LIST = re.compile(
    r"""
    (?<= [》〉] ) (?: ,[ ](?:《》|〈〉) )+ (?= [,.)] | [ ]등 )   # 등: 'and others'
  | (?<= [ \n] ) (?:《》|〈〉),[ ] (?= [《〈] )
    """,
    re.VERBOSE,
)
BRACKETS_AS_SUBJECT = ("괄호", "부호", "낫표")  # bracket, mark, corner bracket
# A hole in a bracket: the sentence around it is whole without.
BRACKETED = re.compile(rf" ?\([^()\n]*{MARK}[^()\n]*\)")
# A formula on a line of its own may be gone without a trace. The line behind it then begins with
# what followed the formula, a particle or an ending: "is ...", "to ...", "of ...". In a text
# without holes it may be anything.
FRAGMENT = re.compile(
    r"^(?:이다|이므로|이고|이며|인|을|를|은|는|가|와|과|로|으로|라고|라|의)(?=[ .,])",
    re.MULTILINE,
)
# The spaces behind a full stop, but not that of "1. " or "i.e. ".
SENTENCE_END = re.compile(
    rf"""
    (?: (?<= [^\W\d_]{{2}} [.!?] )     # behind a word of two letters or more,
      | (?<= [{MARK})\"”’] [.!?] )     # a hole, a bracket or a quotation,
      | (?<= [.!?] [)\"”’] )           # or inside one
    )
    [ ]+
    """,
    re.VERBOSE,
)

# Ours: of 238 articles of Wikipedia with a hole, 38 lose more. What is left of those is headings
# and broken sentences; the others read as articles without their formulas.
MOST_LOST = 0.5


def cut_lost_content(text: str) -> str:
    """Without the sentences that have a hole, which say nothing.

    >>> cut_lost_content("고래는 크다. 무게는 formula_1이다. 그래도 헤엄친다.")  # 'still, it swims'
    '고래는 크다. 그래도 헤엄친다.'
    >>> cut_lost_content("무게(기호 formula_1)는 크다.")  # 'the weight (symbol ...) is large'
    '무게는 크다.'
    """
    # Each hole becomes one character, so that the patterns below need not know what was lost.
    marked = HOLE.sub(MARK, text)
    has_lost_formulas = marked != text
    # A text about punctuation has 《》 in its sentences, and has lost nothing.
    if not has_any(BRACKETS_AS_SUBJECT, text):
        marked = LOST_IN_LIST.sub("", marked)
        marked = LOST_TITLE.sub(MARK, marked)
    if marked == text:
        return text

    # What costs less than a sentence goes first.
    marked = BRACKETED.sub("", marked)
    if has_lost_formulas:
        marked = FRAGMENT.sub(MARK, marked)

    # The other sentences of a line stay; a line of nothing else goes.
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
    signs: tuple[str, ...]    # a text without any of these has nothing of the kind
    most: float = 1.0         # of the characters; a text that would lose more goes


KINDS = [
    Kind("front_matter", front_matter.cut_front_matter, front_matter.SIGNS),
    Kind("page_marks", cut_page_marks, ("＜",)),
    Kind("wiki_remnants", cut_wiki_remnants, ("[[", "\n!")),
    Kind("lost_content", cut_lost_content, ("formula_", "codice_", "《》", "〈〉"), MOST_LOST),
    Kind("empty_brackets", brackets.cut_empty_brackets, brackets.SIGNS),
]
ALL_SIGNS = tuple(itertools.chain.from_iterable(kind.signs for kind in KINDS))


def remove_leftovers(text: str) -> tuple[str | None, str]:
    """(the text without leftovers, their kinds joined by +), or (None, why) if nothing readable
    would be left.

    >>> remove_leftovers("고래()는 크다.\\n[[분류:바다의 동물]]")
    ('고래는 크다.', 'wiki_remnants+empty_brackets')
    >>> remove_leftovers("고래\\n무게는 formula_1이다.")
    (None, 'too_much_lost: 0.895 of the characters > 0.5')
    """
    # (To look for strings is many times faster than to look for patterns.)
    if not has_any(ALL_SIGNS, text):
        return text, ""
    # Only a text that was not normalised has these, and then they would not be ours.
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
    # A loop: any() would take twice as long, and that is the time of most documents.
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
    """The text with each piece of code in its place, if its mark is still there."""
    parts = text.split(CODE_MARK)
    # Every second part is a number.
    for place in range(1, len(parts), 2):
        parts[place] = pieces[int(parts[place])]
    return "".join(parts)
