"""Part of step 3, leftovers: front matter, the metadata at the head of a document, which is meant
for programs, not for readers. (⏎ is the end of a line, ⇥ a tab.)

    ---⏎title: 고래⏎tags: [바다]⏎---⏎아주 크다.         →  고래⏎⏎아주 크다.
    ---⏎제목: 고래⏎출처: 바다⏎---⏎# 고래⏎아주 크다.     →  # 고래⏎아주 크다.
    기사제목⇥고래⏎필자⇥김⏎⏎고래⏎아주 크다.             →  고래⏎아주 크다.

('Whales are very large'; title, source; title of the article, author.) Rulings and statutes come
with YAML, Hugo pages with YAML or TOML, articles from a database with tabs. The title is kept if it
occurs nowhere else. Prose between two horizontal rules, recipes, dialogues and tables stay.
"""
import re

# ---- What it looks like -------------------------------------------------------------------------

# Longer patterns are written with re.VERBOSE: white space in them is ignored; a literal space is
# written [ ], and a literal # is \#.

# A key of up to three words, and a colon followed by a space or nothing: `title:`, `소관부처:`.
KEY = r"""[\w"'.][\w"'./-]* (?: [ ][\w"'./-]+ ){0,2} :(?![^ \n])"""
# YAML between two lines of hyphens, where every line has one of these forms; prose below a
# horizontal rule has none of them.
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
# empty line. If a value is missing, normalise has already removed the tab.
TABBED = re.compile(
    r"""
    (?: \A | (?<=\n\n) )
    (?P<fields> (?: [^\t\n]{1,10} (?: \t.* )? \n ){2,12} )
    \n
    """,
    re.VERBOSE,
)

# Title, case name, article title. A value that begins with [ is a list, or [무제] (untitled).
TITLE = re.compile(
    r"^(?:[Tt]itle|제목|사건명|기사제목)(?:: *| *= *|\t)(?!\[)(?P<title>.*\w.*)$",
    re.MULTILINE,
)
# Nearly all front matter has one of these keys; a recipe, note or dialogue between two rules has
# none. Korean: title, case name, article title, date, date of writing, writer, author (twice),
# source, category, tags, dates of publication, promulgation and judgment.
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
# A text without any of these has nothing for cut_front_matter to cut.
SIGNS = ("---\n", "+++\n", "itle\t", "제목\t")

# ---- What is cut, and what stays ----------------------------------------------------------------


def cut_front_matter(text: str) -> str:
    """Remove front matter at the start of the text or, with tabs, of an article inside it.

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
    if toml and USUAL_KEY.search(toml["fields"]):
        return title_of(toml) + text[toml.end():]
    return TABBED.sub(cut_tabbed, text)


def is_front_matter(fields: str) -> bool:
    """Whether these fields are front matter, and not a recipe or note between two rules, nor a
    dialogue, in which the same speaker speaks again.

    >>> is_front_matter("layout: post\\nlang: ko\\n")
    True
    >>> is_front_matter("A: Hi!\\nB: Hi.\\n")
    False
    """
    keys = YAML_KEY.findall(fields)
    has_usual_key = USUAL_KEY.search(fields) is not None
    return has_usual_key and len(set(keys)) == len(keys)


def cut_tabbed(match: re.Match) -> str:
    """The replacement for a match of TABBED. Without a title and another usual key it could be any
    table: "제목⇥관객" (title, audience) heads one."""
    fields = match["fields"]
    has_title = re.search(r"^(?:[Tt]itle|제목|기사제목)\t", fields, re.MULTILINE)
    if not has_title or len(USUAL_KEY.findall(fields)) < 2:
        return match[0]
    return title_of(match)


def title_of(match: re.Match) -> str:
    """The title, if the text after the front matter does not begin with it. On Hugo and Jekyll
    pages it occurs nowhere else."""
    found = TITLE.search(match["fields"])
    if not found:
        return ""
    title = found["title"].strip("\"' ")

    # The first line may be a heading, or the title without an addition ("part 2", a foreign name).
    rest = match.string[match.end():match.end() + 500]
    first_line = rest.strip("#*= \n").partition("\n")[0].strip()
    repeats = title in first_line or (first_line and title.startswith(first_line))
    if repeats:
        return ""
    return f"{title}\n\n"
