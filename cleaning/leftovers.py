r"""Step 3, leftovers: what an extractor leaves inside a document is cut. The document stays.

Text comes out of wikis, databases and scans by programs that cannot show everything. What they
leave behind no reader ever saw, and it stands in good documents (⏎ is the end of a line):

    front_matter    ---⏎title: 고래⏎tags: [바다]⏎---⏎아주 크다.   →  고래⏎⏎아주 크다.
    page_marks      산에 올라＜44＞ 바다를 보았다.                →  산에 올라 바다를 보았다.
    wiki_remnants      고래는 크다.⏎[[분류:바다의 동물]]             →  고래는 크다.
    lost_content    무게는 formula_1이다. 고래는 크다.            →  고래는 크다.
    empty_brackets  고래()는 크다. 고래(, Whale)는 크다.         →  고래는 크다. 고래(Whale)는 크다.

('Whales are large', 'I went up the hill and saw the sea', 'Its weight is formula_1'; the category
is 'Animals of the sea'.)

Good text looks like all of this: a rule of hyphens, a call print(), a box ( ) to tick, an emoticon
(;;). So each kind asks for evidence, and what might be text stays: square brackets; ( ) with
nothing but a space; () behind a Latin letter; <34> and [2], which number paragraphs. Code that is
marked as code is not looked at.

A document goes if most of it is such sentences as the fourth, or if it has nothing but leftovers.
"""
import functools
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from cleaning.code import IN_CODE
from cleaning.normalise import tidy
from cleaning.rules import too_high

# ---- Front matter -------------------------------------------------------------------------------

# Patterns of several parts are written with re.VERBOSE: spaces and lines in them mean nothing; a
# space that is meant is [ ], and # is \#.

# A key of up to three words, and a colon with a space or nothing behind it: `title:`, `소관부처:`.
KEY = r"""[\w"'.][\w"'./-]* (?: [ ][\w"'./-]+ ){0,2} :(?![^ \n])"""
# YAML between two lines of hyphens, of which every line is one of these; prose below a horizontal
# rule is none of them.
YAML = re.compile(
    rf"""
    ---\n
    (?= {KEY} )
    (?P<fields> (?:
        (?: {KEY}.*            # a key with its value
          | -(?: [ ].*)?       # an item of a list
          | \#.*               # a comment
          | [ \t]+.*           # indented: belongs to the line above
        )? \n                  # or empty
    )+? )
    --- (?: \n | \Z )
    """,
    re.VERBOSE,
)
YAML_KEY = re.compile(rf"^{KEY}", re.VERBOSE | re.MULTILINE)
# TOML between two lines of plus signs.
TOML = re.compile(
    r"""
    \+\+\+\n
    (?P<fields> (?:
        (?: [\w.\"'-]+[ ]*=.*  # key = value
          | [\[\]].*           # [table], or the end of a list
          | \#.*               # a comment
          | [ \t]+.*           # indented: an item of a long list
        )? \n                  # or empty
    )+? )
    \+\+\+ (?: \n | \Z )
    """,
    re.VERBOSE,
)
# The head of an article from a database of periodicals: lines of a key, a tab and a value, then an
# empty line. Where the value is missing, normalise has taken the tab away.
TABBED = re.compile(
    r"""
    (?: \A | (?<=\n\n) )
    (?P<fields> (?: [^\t\n]{1,10} (?: \t.* )? \n ){2,12} )
    \n
    """,
    re.VERBOSE,
)

# Title, name of the case, title of the article. What begins with [ is a list, or [무제] (untitled).
TITLE = re.compile(
    r"^(?:[Tt]itle|제목|사건명|기사제목)(?:: *| *= *|\t)(?!\[)(?P<title>.*\w.*)$",
    re.MULTILINE,
)


# Keys of which one stands in nearly all front matter, and none in a recipe, a note or a dialogue
# between two rules. Korean: date, date of writing, writer, author, source, category, tags,
# published, promulgated, pronounced.
USUAL_KEY = re.compile(
    r"""
    ^(?: title | layout | date | tags | author | categor(?:y|ies) | description | draft | slug
       | permalink | lang | weight | id | url | source
       | 제목 | 사건명 | 기사제목 | 날짜 | 작성일 | 작성자 | 저자 | 필자 | 출처 | 분류 | 태그
       | 발행일 | 공포일자 | 선고일자
    ) (?: : | [ ]?= | \t | $ )
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)


def cut_front_matter(text: str) -> str:
    """Without front matter, at the start of the text or (with tabs) of an article inside it.

    >>> cut_front_matter("---\\n제목: 고래\\n쪽: 3\\n---\\n# 고래\\n크다.")  # 'title', 'pages'
    '# 고래\\n크다.'
    >>> cut_front_matter("제목\\t고래\\n필자\\t김\\n\\n크다.")  # 'title', 'author'
    '고래\\n\\n크다.'
    >>> cut_front_matter("---\\nA rule, and prose.\\n---\\n")
    '---\\nA rule, and prose.\\n---\\n'
    """
    yaml = YAML.match(text)
    if yaml and is_front_matter(yaml["fields"]):
        return title_of(yaml) + text[yaml.end():]
    toml = TOML.match(text)
    if toml:
        return title_of(toml) + text[toml.end():]
    return TABBED.sub(cut_tabbed, text)


def is_front_matter(fields: str) -> bool:
    """Not a recipe or a note between two rules, nor a dialogue, whose speakers speak again.

    >>> is_front_matter("layout: post\\nlang: ko\\n")
    True
    >>> is_front_matter("A: Hi!\\nB: Hi.\\n")
    False
    """
    keys = YAML_KEY.findall(fields)
    has_usual_key = USUAL_KEY.search(fields) is not None
    return has_usual_key and len(set(keys)) == len(keys)


def cut_tabbed(match: re.Match) -> str:
    """The replacement for a match of TABBED. Without a title and another usual key it may be any
    table: "제목⇥관객" (title, audience) is the head of one."""
    fields = match["fields"]
    has_title = re.search(r"^(?:[Tt]itle|제목|기사제목)\t", fields, re.MULTILINE)
    if not has_title or len(USUAL_KEY.findall(fields)) < 2:
        return match[0]
    return title_of(match)


def title_of(match: re.Match) -> str:
    """The title, if the text behind the front matter does not begin with it. On the pages of Hugo
    and Jekyll it stands nowhere else."""
    found = TITLE.search(match["fields"])
    if not found:
        return ""
    title = found["title"].strip("\"' ")

    # The first line may be a heading, or the title without its addition: "part 2", a foreign name.
    rest = match.string[match.end():match.end() + 500]
    first_line = rest.strip("#*= \n").partition("\n")[0].strip()
    repeats = title in first_line or (first_line and title.startswith(first_line))
    if repeats:
        return ""
    return f"{title}\n\n"


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
    if before.isdigit() or is_noun:
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
    marked = HOLE.sub(MARK, text)
    # A text about punctuation has 《》 in its sentences, and has lost nothing.
    if not has_any(BRACKETS_AS_SUBJECT, text):
        marked = LOST_IN_LIST.sub("", marked)
        marked = LOST_TITLE.sub(MARK, marked)
    if marked == text:
        return text
    marked = BRACKETED.sub("", marked)
    marked = FRAGMENT.sub(MARK, marked)
    lines = []
    for line in marked.split("\n"):
        sentences = [line]
        if MARK in line:
            sentences = SENTENCE_END.split(line)
            sentences = [sentence for sentence in sentences if MARK not in sentence]
        if sentences:
            lines.append(" ".join(sentences))
    return "\n".join(lines)


# ---- Empty brackets -----------------------------------------------------------------------------

# Of what a bracket held, foreign names are lost most often: 4,904 of 23,703 Korean articles of
# Wikipedia lost some.
BRACKET = re.compile(r"(?P<space> ?)\((?P<inside>[^()\n]*)\)(?P<gap> (?=[은는을를] ))?")

# Separators with nothing between them: (, Whale), (Whale, ), (Whale, , 1930). A space belongs to
# each, since (;;) and (15년;;) are emoticons and (,) is about commas; (3, ) may be a tuple. The
# first pattern serves brackets that hold others or are never closed, which BRACKET does not match.
SEPARATORS_BEFORE_WORD = re.compile(r"(?<=\() ?(?:[,;] )+(?=[^\W_ㄱ-ㅣ])")
SEPARATORS_AT_START = re.compile(r"^(?:[,;] )+")
SEPARATORS_AT_END = re.compile(r"(?:(?<![ 0-9]),|(?<! );) (?:[,;] )*$|(?<=[가-힣一-鿿]),$")
SEPARATORS_IN_A_ROW = re.compile(r"([,;])(?: [,;])+(?= )")
# Labels of what was lost: English, Japanese, Chinese, hanja, French, German, Russian, Latin;
# original title, real name, scientific name.
LANGUAGE = (
    "영어|일본어|중국어|한자|프랑스어|독일어|러시아어|라틴어|원제|본명|학명"
    "|Arabic|Chinese|Greek|Hangul|Hanja|Hebrew|Japanese|Korean|Persian|Russian|Urdu|IAST|IPA"
)
LABEL = re.compile(rf"(?:^|(?<=[,;] ))(?:{LANGUAGE}): ?(?=[,;]|$)")

# Directly behind a Hangul syllable, hanja or kana, or the mark that closes a title.
BEHIND_KOREAN = re.compile(r"(?:[가-힣一-鿿぀-ヿ][\"'”’)!]?|[》〉」』])\Z")
CLOSING = ("\"", "'", "”", "’", ")", "》", "〉", "」", "』")
# A call in a text about programming, where foo () may be another.
CALL = re.compile(r"[A-Za-z0-9_]\(\)|\(\) ?\{")
# A blank in a form: 2020년()월()일, 제()조 (of an article), ()번 (number), ()명 (persons), ()개.
BLANK_OF_FORM = re.compile(r"[월일시분조항호번명개점원](?![가-힣])")
# A bracket that no form or quiz has: a particle or a comma is directly behind it.
SURE = re.compile(r"[가-힣]\((?:, )*\)(?:[은는이가을를의에와과로도]|으로|[,.])")
LONGEST_TITLE = 40

# Brackets stand in brackets; emptying the inner ones may empty the outer ones.
ROUNDS = 8


def cut_empty_brackets(text: str) -> str:
    """Without the brackets that lost all they held, and the separators of what others lost.

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
    # Nobody nests brackets so deeply: the text was made to take long, and stays as it is.
    return text


def first_line(text: str) -> str:
    """The first line without its spaces, if it is as short as a title. An article names its subject
    there, and again in front of the bracket."""
    line, end, _ = text[:LONGEST_TITLE].partition("\n")
    title = line.replace(" ", "")
    if end and len(title) > 1:
        return title
    return ""


class Around(NamedTuple):
    """What the text says about its brackets."""
    title: str        # its first line, without spaces
    has_calls: bool   # there are calls in it
    has_sure: bool    # there are brackets in it that have lost something without a doubt


def cut_bracket(match: re.Match, around: Around) -> str:
    """The replacement for a match of BRACKET."""
    inside = LABEL.sub("", match["inside"])
    inside = SEPARATORS_AT_START.sub("", inside)
    inside = SEPARATORS_AT_END.sub("", inside)
    inside = SEPARATORS_IN_A_ROW.sub(r"\1", inside)
    is_changed = inside != match["inside"]
    if any(character.isalnum() for character in inside):
        if not is_changed:
            return match[0]
        return f"{match['space']}({inside}){match['gap'] or ''}"

    before = match.string[max(0, match.start() - 2 * LONGEST_TITLE):match.start()]
    is_blank = not inside.strip(" ,;")  # not (?) or (!)
    is_title = around.title and before.replace(" ", "").endswith(around.title)
    may_be_empty = is_changed or not inside
    if (is_blank and is_title) or (may_be_empty and is_empty(match, before, around)):
        return ""  # and without the gap: 현(, ) 은 is 현은, a noun and its particle
    return match[0]


def is_empty(match: re.Match, before: str, around: Around) -> bool:
    """Whether a bracket without words, and not behind the title, has lost what it held."""
    if match["inside"]:
        # It held separators, so it is no call and no box: anything but an emoticon has a word,
        # a title or a closing bracket in front.
        return before[-1:].isalnum() or before.endswith(CLOSING)
    if match["space"]:
        return not around.has_calls and ends_in_name(before)

    if not BEHIND_KOREAN.search(before) or BLANK_OF_FORM.match(match.string, match.end()):
        return False
    # With a space behind it, it may be a question in a form or a quiz: 이름() 나이() (name, age).
    # With another name behind it is none (또는 and 혹은 are 'or').
    after = match.string[match.end():match.end() + 3]
    is_followed = after.strip() != "" and not after.startswith((" ", "\n"))
    return is_followed or after in (" 또는", " 혹은") or around.has_sure


def ends_in_name(before: str) -> bool:
    """Whether an English name or a quotation ends here: "Blue Whale", not "the whale", for "call
    main ()" is a call, and "the capital is ()" a question."""
    word = before.rpartition(" ")[2].rpartition("\n")[2]
    return word[:1].isupper() or word[-1:] in ("\"", "”")


# ---- The step -----------------------------------------------------------------------------------


class Kind(NamedTuple):
    name: str                 # in the report
    cut: Callable[[str], str]
    signs: tuple[str, ...]    # a text without any of these has nothing of the kind
    most: float = 1.0         # of the characters; a text that would lose more goes


BRACKET_SIGNS = (
    "()", "( )", "(,", "(; ", "( , ", "( ; ", ",)", ", )", "; )", ": )", ", ,", "; ;", ", ;", "; ,"
)
KINDS = [
    Kind("front_matter", cut_front_matter, ("---\n", "+++\n", "itle\t", "제목\t")),
    Kind("page_marks", cut_page_marks, ("＜",)),
    Kind("wiki_remnants", cut_wiki_remnants, ("[[", "\n!")),
    Kind("lost_content", cut_lost_content, ("formula_", "codice_", "《》", "〈〉"), MOST_LOST),
    Kind("empty_brackets", cut_empty_brackets, BRACKET_SIGNS),
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
