"""Detects markup that is not text: wiki source, chat exports and subtitles.

Such a file is mostly Korean words, so it passes every rule about characters and words, and a model
trained on it writes [[links]] and time stamps. These formats have parsers of their own, which give
better text than guessing here would. So the document is removed, with a reason that tells its owner
what to convert first.

One piece of markup proves nothing: a manual explains it, a wiki article has two links left, a
report quotes a chat. So what counts is the markup's share of the document, and code does not count
at all: rules.check removes it first.
"""
import re

# ---- Wiki source --------------------------------------------------------------------------------

# Wiki source has some of these, and few other texts do. (Searching for strings is many times faster
# than matching patterns.)
WIKI_SIGNS = ("[[", "{{", "||", "'''", "{|", "<ref", "[include(")

# A piece of namuwiki's or MediaWiki's source:
WIKI = re.compile(
    # a link; not [[1, 2], [3, 4]], which is an array, nor a category, which extractors leave at the
    # end of good text;
    r"\[\[(?!분류:|[Cc]ategory:)[:~]?(?:[^\W\d_]|\d+[가-힣])[^\[\]\n]*\]\]"
    # {{정보상자}} or {{Infobox|…; not {{ user.name }}, which belongs to template engines;
    r"|\{\{[가-힣][^{}\n]*|\{\{[^\W\d_][^{}\n|]*\|"
    # a line of an infobox, | name = value, without the bar at the end that Markdown tables have;
    r"|^\|[^|=\n]{1,40}=(?!.*\|$)"
    # {{{#!wiki, {{{+1 large}}}, {{{#red red}}};
    r"|\{\{\{[#+-]\S"
    # a macro: include, table of contents, footnotes;
    r"|\[include\(|\[목차\]|\[각주\]|\[\[TOC\]\]"
    # '''bold''';
    r"|'''[^'\n]+'''"
    # a line of a table: ||…||, and {| |- |} on lines of their own;
    r"|^ *\|\|.*\|\|$"
    r"|^ *(?:\{\||\|-|\|\})(?: .*)?$"
    # a footnote.
    r"|\[\* [^\[\]\n]|<ref[ >/]",
    re.MULTILINE,
)

# Ours: one piece for every twenty words, and three different ones. Of 55,835 Wikipedia articles
# whose source was converted to text, 75 have a piece left, and 5 have that many.
WIKI_PIECES_PER_WORD = 0.05
DIFFERENT_WIKI_PIECES = 3

# ---- Chats and subtitles ------------------------------------------------------------------------

TIME = r"(?:(?:오전|오후) )?\d{1,2}:\d\d(?: [AP]M)?"
DATE = r"\d{4}(?:년|\.) \d{1,2}(?:월|\.) \d{1,2}(?:일|\.)"
ENGLISH_DATE = r"[A-Z][a-z]+ \d{1,2}, \d{4}(?: at)?"

CHAT_SIGNS = ("] [", " : ", "-----", ',"')

# KakaoTalk's exports: from a computer, from a telephone (in Korean or English), as a table.
CHAT_LINE = re.compile(
    rf"^\[[^\[\]\n]+\] \[{TIME}\] "
    rf"|^-{{5,}} {DATE} .요일 -{{5,}}$"
    rf"|^(?:{DATE}|{ENGLISH_DATE}) {TIME}(?:, [^:\n]+ : |$)"
    r"|^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\"",
    re.MULTILINE,
)

CUE_SIGNS = ("-->", "<sync", "<Sync", "<SYNC", "Dialogue:")

# A cue in SubRip (.srt) or WebVTT, in SAMI (.smi), and in SubStation Alpha (.ass).
CUE = re.compile(
    r"\d\d:\d\d[.,]\d{1,3} --> (?:\d+:)?\d\d:\d\d[.,]\d{1,3}"
    r"|<SYNC\s+Start="
    r"|^Dialogue: \d+,\d+:\d\d:\d\d\.\d\d,",
    re.IGNORECASE | re.MULTILINE,
)

# Ours: one line in five. A SubRip cue is a number, a time, and up to three lines of text; a chat
# message is seldom longer.
SHARE_OF_LINES = 0.2


def markup_of(text: str) -> str:
    """"wiki_markup", "chat_export" or "subtitles" with what was measured and the limit, or "" for
    ordinary text. Code must be removed first.

    >>> markup_of("[민지] [오후 3:12] 뭐 해?\\n[하준] [오후 3:13] 밥")  # 'what's up?', 'rice'
    'chat_export: 1 of the lines >= 0.2'
    >>> markup_of("1\\n00:00:01,000 --> 00:00:04,000\\n안녕하세요?")  # 'hello'
    'subtitles: 0.333 cues per line >= 0.2'
    >>> markup_of("'''고래'''는 [[바다]]에 사는 [[포유류]]이다.")  # 'whales are mammals of the sea'
    'wiki_markup: 0.75 pieces per word >= 0.05'
    """
    if any(sign in text for sign in WIKI_SIGNS):
        pieces = WIKI.findall(text)
        per_word = len(pieces) / max(1, len(text.split()))
        are_different = len(set(pieces)) >= DIFFERENT_WIKI_PIECES
        if are_different and per_word >= WIKI_PIECES_PER_WORD:
            return f"wiki_markup: {per_word:.3g} pieces per word >= {WIKI_PIECES_PER_WORD}"

    if any(sign in text for sign in CHAT_SIGNS):
        share = share_of_lines(CHAT_LINE, text)
        if share >= SHARE_OF_LINES:
            return f"chat_export: {share:.3g} of the lines >= {SHARE_OF_LINES}"

    if any(sign in text for sign in CUE_SIGNS):
        share = share_of_lines(CUE, text)
        if share >= SHARE_OF_LINES:
            return f"subtitles: {share:.3g} cues per line >= {SHARE_OF_LINES}"

    return ""


def share_of_lines(pattern: re.Pattern, text: str) -> float:
    """How often the pattern occurs per non-empty line."""
    lines = [line for line in text.split("\n") if line.strip()]
    return len(pattern.findall(text)) / max(1, len(lines))
