"""Converts HTML pages to text, the first part of normalising.

Most of a page is not its text: menus, search boxes, cookie banners, footers. They can be recognised
by a tag (<nav>) or a name (class="sidebar"). But a name can mislead: `<body class="no-sidebar">`
has no sidebar, an ASP.NET page is a single <form>, and the Read the Docs theme calls its text
"wy-nav-content". So a name is only a suspicion, and a measurement decides:

    An element is dropped for its tag or its name only if it holds less than half of the text.

Nor may several such elements together remove the text: see `site_elements`. "Text" here means
characters outside links. The menu of a large site may be longer than the page, but it is all links.

There is no tree. The parser makes a list of pieces of text, and an element is a slice of that list,
pieces[first:end]. Dropping an element means skipping its slice.
"""
import re
from collections import Counter
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import compress
from typing import NamedTuple

from cleaning.code import FENCE, without_code

# ---- Which tags and names mean what -------------------------------------------------------------

# Elements that no reader sees. <title> is here because the heading repeats it.
INVISIBLE = {"iframe", "noscript", "script", "style", "svg", "template", "title"}

# Tags that belong to the site rather than to the page. Of a <form>, only the parts one clicks or
# fills in: a whole ASP.NET or JSP page may be inside a form.
SITE_TAGS = {"aside", "button", "footer", "header", "nav", "select", "textarea"}

# The same by a word of a class, id or role: "main-menu", "sidebar_left", but not "no-sidebar".
# Korean sites call their menus gnb, lnb and snb: global, local and side navigation bar. "linenos"
# (Sphinx) and "gutter" (Hexo) hold the line numbers of code.
SITE_NAMES = re.compile(
    r"(?i)(?:^|[\s_-])(?<!\bno-)(?<!\bhas-)(?<!\bwith-)"
    r"(?P<word>menu|nav|navbar|navigation|gnb|lnb|snb|sidebar|complementary|breadcrumbs?|toc|"
    r"tablist|table-of-contents|paging|pagination|footer|contentinfo|cookie|banner|share|search|searchbox|"
    r"related|advert\w*|copyright|rating|headerlink|linenos|(?<!\S)gutter(?!\S)|"
    r"call-to-action)(?:$|[\s_-])"
)

# Those of these words that may also name text: reviews ("rating-5"), the results of a "search", a
# column ("left-menu-wrap").
DOUBTFUL_WORDS = {
    "banner", "menu", "nav", "navigation", "rating", "related", "search", "share", "sidebar",
    "table-of-contents", "toc",
}

# Elements of a list have numbered names: "share-1", "share-2".
NUMBER = re.compile(r"[0-9]+")

# These wrap whole pages, and their names describe the whole: <body class="page search">.
NEVER_BY_NAME = {"html", "body", "main", "article"}

# Elements whose id is made from their title: <section id="search"> is a chapter about searching.
TITLED = {"section", "h1", "h2", "h3", "h4", "h5", "h6", "dt"}

HIDDEN_STYLE = re.compile(r"(?i)display\s*:\s*none")

# A new line begins before and after these ...
BLOCKS = set(
    "address article aside body caption center details dialog div dl fieldset figcaption figure "
    "footer form html legend main nav ol option pre section summary table ul".split()
)

# ... an empty line before and after these ...
PARAGRAPHS = set("blockquote h1 h2 h3 h4 h5 h6 header hr p".split())

# ... but none before these, even if they hold a <p>, as all lists and tables of Sphinx do.
ITEMS = {"dd", "dt", "li", "tr"}

# These are side by side on one line.
CELLS = {"td", "th"}

# The pieces that mark all this. HTML treats these characters as spaces, so no text contains them.
NEW_LINE = "\v"
NEW_ITEM = "\f"
NEW_CELL = "\t"
CODE_EDGE = "\x1c"  # where code begins or ends
BEFORE = {
    **dict.fromkeys(BLOCKS, NEW_LINE),
    **dict.fromkeys(PARAGRAPHS, "\n\n"),
    **dict.fromkeys(ITEMS, NEW_ITEM),
    **dict.fromkeys(CELLS, NEW_CELL),
}
AFTER = {
    **dict.fromkeys(BLOCKS | ITEMS, NEW_LINE),
    **dict.fromkeys(PARAGRAPHS, "\n\n"),
}

# A run of line ends.
ENDS = rf"\n{NEW_LINE}{NEW_ITEM}"
LINE_ENDS = re.compile(f" ?[{ENDS}][{ENDS} ]*")
# White space, which HTML renders as one space.
SPACES = re.compile(r"\s+")

# These have no end tag.
VOID = set("area base br col embed hr img input link meta param source track wbr".split())

# html.parser treats everything up to their end tags as text, or will in later versions.
RAW = ("script", "style", "textarea", "title")

# Inline elements. Their end tags close nothing else: </b> does not close a <div>.
INLINE = set("a abbr b big code em font i label mark s small span strike strong sub sup u".split())

# A link with this text, next to a heading, leads to that heading.
HEADING_LINKS = {"#", "¶", "§", "🔗"}


# ---- A page to text -----------------------------------------------------------------------------


def html_to_text(page: str) -> str:
    """The text of a page, without menus, scripts and footers; blocks are on lines of their own, and
    code is in fences.

    >>> print(html_to_text("<nav>menu</nav><p>One &amp;\\n two<br>three<pre>a  = 1\\n  b</pre>"))
    One & two
    three
    ```
    a  = 1
      b
    ```

    A suspicious name counts only if the element holds less than half of the text:

    >>> html_to_text('<div class="menu">Home</div><div class="menu-wrap"><p>A long text.</div>')
    'A long text.'
    """
    parser = Parser()
    parser.feed(repaired(page))
    parser.close()
    whole = parser.open[0]
    parser.close_above(0)

    # First pass: find the elements of the site. Their text does not count towards the total,
    # because on a short page it outweighs the article.
    site = site_elements(parser.elements, whole.weight)
    kept = main_elements(parser.elements, whole, whole.weight - weight_of(site))
    shown = [False] * (len(parser.pieces) + 1)  # one more, for elements that begin at the end
    for element in kept:
        shown[element.first:element.end] = [True] * (element.end - element.first)

    # Second pass: the same within what is left.
    inside = [element for element in parser.elements if shown[element.first]]
    site = site_elements(inside, weight_of(kept))
    for element in site:
        shown[element.first:element.end] = [False] * (element.end - element.first)
    return tidy("".join(compress(parser.pieces, shown)))


def weight_of(elements: list["Element"]) -> float:
    """How much text these elements hold in total."""
    return sum(element.weight for element in elements)


def main_elements(elements: list["Element"], whole: "Element", total: float) -> list["Element"]:
    """The <main>, or else the <article>s, or else the whole page.

    Tags may mislead here too: a page's only <article> may be a preview of another page. So <main>
    must hold a quarter of `total`, and all <article>s together half of it. (By the HTML standard,
    4.4.14, a page has one <main> but may have any number of <article>s.)"""
    # Ours, chosen by hand: on 33 of 35 pages that have both, each holds 0.79 of the text or more.
    # On the other two it is 0.08 and 0.35.
    for role, least in (("main", 0.25), ("article", 0.5)):
        found = outermost(element for element in elements if element.role == role)
        if found and weight_of(found) >= least * total:
            return found
    return [whole]


def site_elements(elements: list["Element"], total: float) -> list["Element"]:
    """The elements that belong to the site: suspects that hold less than half of `total`.

    Suspects with the same name count together: a hundred reviews of class "rating-5" are the text
    of a page, though each is only a hundredth of it. Unclosed elements are not suspects: dropping
    one would drop everything that follows."""
    suspects = [element for element in elements if element.suspicion and element.is_closed]
    names = [element.suspicion.name for element in suspects]
    weights = group_weights(suspects, names)
    # Ours, chosen by hand: half. (See the top of this file.)
    suspects = [element for element in suspects if weights[element.suspicion.name] < total / 2]

    # Text may be spread over several names, each with less than half of it.
    site = without_content(suspects, DOUBTFUL_WORDS, total)
    # Ours, chosen by hand: a tenth. If less than that is left, every word is doubtful.
    if total - weight_of(site) < total / 10:
        every_word = {element.suspicion.word for element in suspects}
        site = without_content(suspects, every_word, total)
    return site


def without_content(suspects: list["Element"], words: set[str], total: float) -> list["Element"]:
    """The suspects without those that are text after all: suspects that share one of `words` and
    together hold more text than all elements under no suspicion."""
    left = total - weight_of(outermost(suspects))
    doubtful = doubtful_elements(suspects, words)
    weights = group_weights(doubtful, [element.suspicion.word for element in doubtful])
    # Ours, chosen by hand: a quarter. Next to a long list of reviews, a short "share" belongs to
    # the site, even if nothing else is left.
    most = max(left, max(weights.values(), default=0) / 4)
    content = {element for element in doubtful if weights[element.suspicion.word] > most}
    return outermost(element for element in suspects if element not in content)


def doubtful_elements(suspects: list["Element"], words: set[str]) -> list["Element"]:
    """The suspects with these words, except lists of links and elements inside a certain suspect.

    On a short page, the site (a menu, a footer, a cookie banner) outweighs the text. But a menu is
    all links, and hardly anybody calls the text "footer"."""
    doubtful = []
    end_of_sure = 0
    for element in suspects:
        # Ours: four pieces per character. Links weigh next to nothing, and a word more than one
        # character.
        is_all_links = 4 * element.weight < element.end - element.first
        if is_all_links or element.suspicion.word not in words:
            end_of_sure = max(end_of_sure, element.end)
        elif element.first >= end_of_sure:
            doubtful.append(element)
    return doubtful


def group_weights(elements: list["Element"], groups: list[str]) -> Counter:
    """{group: how much text its elements hold}; groups[i] is the group of elements[i]. An element
    inside another one of its group is not counted twice."""
    weights = Counter()
    ends = Counter()
    for element, group in zip(elements, groups, strict=True):
        is_inside_another = element.first < ends[group]
        if not is_inside_another:
            weights[group] += element.weight
            ends[group] = element.end
    return weights


def outermost(elements: Iterable["Element"]) -> list["Element"]:
    """The elements that are not inside another one. They must be in the order of the page."""
    found = []
    for element in elements:
        if not found or element.first >= found[-1].end:
            found.append(element)
    return found


def tidy(text: str) -> str:
    """Collapse spaces, line ends and empty lines to one each; leave code as it is."""
    prose_and_code = text.split(CODE_EDGE)
    for i, part in enumerate(prose_and_code):
        is_code = i % 2 == 1
        if is_code:
            prose_and_code[i] = part.strip("\n")
            continue
        # The cells of a row go on one line, even if each is a paragraph of its own.
        cells = [cell.strip(f" \n{NEW_LINE}") for cell in part.split(NEW_CELL)]
        part = re.sub(" +", " ", " ".join(cells).strip())
        prose_and_code[i] = LINE_ENDS.sub(line_end, part)
    return f"\n{FENCE}\n".join(prose_and_code).strip("\n")


def line_end(match: re.Match) -> str:
    """The replacement for a run of line ends: one, or two (an empty line)."""
    if NEW_ITEM not in match[0] and match[0].count("\n") >= 2:
        return "\n\n"
    return "\n"


# ---- Parsing ------------------------------------------------------------------------------------


class Suspicion(NamedTuple):
    """Why an element may be part of the site."""

    word: str   # "menu", or the tag: "<nav>"
    name: str   # "main-menu"


class Element:
    """An element of the page: pieces[first:end], with `weight`, how much text it holds."""

    __slots__ = (
        "tag",
        "index",
        "suspicion",
        "role",
        "first",
        "end",
        "weight_before",
        "weight",
        "is_closed",
    )

    def __init__(self, tag: str, index: int, first: int, weight_before: float):
        self.tag = tag
        self.index = index          # its place in Parser.elements, if it is added there
        self.suspicion: Suspicion | None = None
        self.role = None            # "main" or "article"
        self.first = first
        self.end = first            # known when it is closed
        self.weight_before = weight_before  # of the page before this element
        self.weight = 0.0           # known when it is closed
        self.is_closed = False      # whether its own end tag closed it


class Parser(HTMLParser):
    """Collects `pieces`, the text of a page with its line ends, and `elements`, the slices that may
    matter, ordered by where they start."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.elements: list[Element] = []
        self.weight = 0.0
        self.in_link = False
        self.open = [Element("", 0, 0, 0.0)]    # the page itself, then all open elements
        self.open_tags = Counter()              # how many of each tag are open
        self.formula: Element | None = None     # the last <math>

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element (html.parser calls this)."""
        attributes = dict(attrs)
        in_code = self.open_tags["pre"] > 0
        if tag == "a":
            self.in_link = "href" in attributes

        # The line end goes before the element: it is needed even if the element is dropped.
        if tag == "br":
            self.pieces.append("\n")
        elif tag in BEFORE and not in_code:
            self.pieces.append(BEFORE[tag])
        if tag in VOID:
            return

        # Use a formula's TeX source, if there is one, instead of its symbols one by one.
        if tag == "annotation" and self.open_tags["math"] and not in_code:
            self.forget(self.formula)

        element = Element(tag, len(self.elements), len(self.pieces), self.weight)
        if tag in ("main", "article"):
            element.role = tag
        elif attributes.get("role") == "main":
            element.role = "main"
        else:
            element.suspicion = self.suspicion(tag, attributes)
        if element.role or element.suspicion:
            self.elements.append(element)
        if tag == "math":
            self.formula = element
        if tag == "pre" and not in_code:
            self.pieces.append(CODE_EDGE)
        self.open.append(element)
        self.open_tags[tag] += 1

    def suspicion(self, tag: str, attributes: dict[str, str | None]) -> Suspicion | None:
        """Why an element may not be part of the text: its tag or a name, or None."""
        names = attributes.get("class") or ""
        # The header of an article is its heading; the header of the page belongs to the site.
        is_heading = tag == "header" and (self.open_tags["article"] or self.open_tags["main"])
        if tag in SITE_TAGS and not is_heading:
            return Suspicion(f"<{tag}>", without_numbers(f"{tag} {names}"))
        if "hidden" in attributes or attributes.get("aria-hidden") == "true":
            return Suspicion("hidden", "hidden")
        if HIDDEN_STYLE.search(attributes.get("style") or ""):
            return Suspicion("hidden", "hidden")
        if tag in NEVER_BY_NAME:
            return None

        is_titled = tag in TITLED or "section" in names.split()
        names += " " + (attributes.get("role") or "")
        if not is_titled:
            names += " " + (attributes.get("id") or "")
        for name in names.split():
            match = SITE_NAMES.search(name)
            if match:
                return Suspicion(match["word"].lower(), without_numbers(name))
        return None

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost open element of this tag, if there is one."""
        if tag in AFTER or tag == "a":
            self.in_link = False  # an unclosed link ends with its block
        if self.open_tags[tag] and (tag not in INLINE or self.open[-1].tag == tag):
            # Close it, and everything left open inside it.
            depth = len(self.open) - 1
            while self.open[depth].tag != tag:
                depth -= 1
            self.close_above(depth + 1)
            self.open[depth].is_closed = True
            self.close_above(depth)
        if tag not in AFTER:
            return
        if not self.open_tags["pre"]:
            self.pieces.append(AFTER[tag])
        elif not self.pieces[-1].endswith("\n"):
            # A line of code may be a <div>, and may end with a <br> as well.
            self.pieces.append("\n")

    def close_above(self, depth: int) -> None:
        """Close open elements until `depth` are left."""
        while len(self.open) > depth:
            element = self.open.pop()
            self.open_tags[element.tag] -= 1
            if element.tag == "pre" and not self.open_tags["pre"]:
                self.pieces.append(CODE_EDGE)
            if element.is_closed and self.is_unseen(element):
                self.forget(element)
            element.end = len(self.pieces)
            element.weight = self.weight - element.weight_before

    def is_unseen(self, element: Element) -> bool:
        """Whether an element that ends here is never shown, or is only a link to a heading."""
        is_one_piece = len(self.pieces) == element.first + 1
        if element.tag == "a" and is_one_piece:
            return self.pieces[-1].strip() in HEADING_LINKS
        return element.tag in INVISIBLE

    def forget(self, element: Element) -> None:
        """Remove an open element's text, as if it had been empty."""
        del self.pieces[element.first:]
        del self.elements[element.index:]
        self.weight = element.weight_before

    def handle_data(self, data: str) -> None:
        """Collect text and add up its weight."""
        # Ours, chosen by hand: a character in a link counts a hundredth. That is next to nothing,
        # but still something on a page that consists of links only.
        characters = len(data.strip())
        if self.in_link:
            self.weight += characters / 100
        else:
            self.weight += characters

        if self.open_tags["pre"]:
            self.pieces.append(data.replace(CODE_EDGE, ""))
        else:
            self.pieces.append(SPACES.sub(" ", data))


def without_numbers(name: str) -> str:
    """Replace numbers, so that all elements of a list have the same name.

    >>> without_numbers("menu-item-12")
    'menu-item-0'
    """
    return NUMBER.sub("0", name)


def repaired(page: str) -> str:
    """Fix what makes html.parser stop, take very long, or swallow the rest of the page."""
    # It gives up at a marked section that it does not know, as in Word's <![if !vml]>.
    page = page.replace("<![", "<!-[")

    # It searches the rest of the page for the end of every unclosed tag: quadratic in 1 MB of "<".
    tags, end, rest = page.rpartition(">")
    page = tags + end + rest.replace("<", "&lt;")

    # The same for comments. An unclosed last comment then ends at the next ">".
    comments, end, rest = page.rpartition("-->")
    page = comments + end + rest.replace("<!--", "<!-")

    # An unclosed last script must not swallow the page: turn it into an unknown tag.
    for tag in RAW:
        *pieces, rest = re.split(f"(?i)(?=</{tag})", page)
        page = "".join(pieces) + re.sub(f"(?i)<(?={tag})", "<open-", rest)
    return page


# ---- Is it a page? ------------------------------------------------------------------------------

# What may come before a page's first tag: an XML declaration, comments ("saved from url").
PROLOGUE = re.compile(r"(?s)(?:\s|\ufeff|<!--.*?-->|<\?xml.*?\?>)*")

# What a page begins with. The line must end after it, or another tag begin: "<body> holds the text"
# is a sentence.
ATTRIBUTES = r"(?:\s[^<>]*)?"
ALONE = r"[ \t]*(?:[\r\n<]|\Z)"
FIRST_TAG = re.compile(
    rf"(?i)<(?:(?:!doctype\s+html|html|head|body|meta|base){ATTRIBUTES}>"
    rf"|title{ATTRIBUTES}>[^<]*</title>){ALONE}"
)

# A page that starts after something else, such as PHP warnings or server headers.
LATER_START = re.compile(rf"(?im)^ {{0,3}}<(?:!doctype\s+html|html){ATTRIBUTES}>{ALONE}")
# The maximum number of characters before it. Ours, chosen by hand: about twenty such lines.
NOT_FAR = 2000

# Subtitles in SAMI are written in tags, too. They stay as they are, so that the rules recognise
# them by these tags (markup.py).
SUBTITLES = re.compile(r"(?i)<sync\s+start=")

# A heading, or the front matter of Jekyll, Hugo and MDX.
MARKDOWN_START = re.compile(r"\s*(?:#{1,6} [^<\n]*|---\r?)\n")

# The first or the last line of code in Markdown.
FENCE_LINE = re.compile(r"(?m)^[ \t]*(?:```|~~~)[^`<\n]*$")

# A heading, the rule below the head of a table, or a link.
MARKDOWN_LINE = re.compile(r"#{1,6} +\S|(?=.*\|)[|: ]*---[-:| ]*$|.*\]\([^()\s]*[./#]")

# A list item, a table row, a quotation, or a rule. Any text may have one such line.
MARKDOWN_LIST = re.compile(r"(?:[-*+]|[0-9]+[.)]) +\S|\|.*\|$|> |(?:---+|\*\*\*+|___+|===+)$")

# The tags that make lines, and <font> and <span>, with which editors begin them.
LINE_NAMES = {*BEFORE, "body", "br", "font", "html", "span", "tbody", "thead"}
NAME = "|".join(sorted(LINE_NAMES))
LINE_TAG = re.compile(rf"(?i)<(?P<end>/?)(?P<name>{NAME})(?P<rest>\s[^<>]*|/)?>")
ANY_TAG = re.compile(r"<[^<>]*>")
SCRIPT_TAG = re.compile(r"(?i)</?(?:script|style)(?:\s[^<>]*)?>")
PRE_TAG = re.compile(r"(?i)(</?pre(?:\s[^<>]*)?>)")

# These may be tags even without an end tag. Others, such as List<Form>, are not. (HTML, 13.1.2.4)
NO_END_NEEDED = {"br", "dd", "dt", "hr", "li", "p", "td", "th", "tr"}

# A tag as a word in a sentence: in quotes, in a list of words, or followed by a Korean particle or
# the word "tag". The particles are those with which no other word begins.
MENTIONED = re.compile(
    r"(?i)(?<![^\s'\"“‘(\[,/·])</?[a-z][^<>]*>"
    r"(?=['\"”’)\],.·]"
    r"|\s?(?:태그|요소|tags?\b|elements?\b)"
    r"|\s?(?:을|를|은|는|과|와|로|으로|의|에|에는|에서|란|이란|처럼)[\s,.])"
)

# Ours: a longer paragraph with a single <br> is not written in HTML. 98 % of the paragraphs in the
# Korean Wikipedia are shorter.
TAG_EVERY = 500


def looks_like_html(text: str) -> bool:
    r"""Whether a text is an HTML page or part of one, and not Markdown or prose with some tags.

    A text that begins as only a page does is a page; one with fenced code or a Markdown heading is
    not. Otherwise the test is what makes the lines: tags in HTML, line ends in Markdown and prose.
    Tags in code do not count: a text that shows HTML is not a page.

    >>> looks_like_html("<?xml version='1.0'?><!-- saved --><html>")
    True
    >>> looks_like_html("One<br>two<br>")
    True
    >>> looks_like_html('<p align="center"><img src="logo.png"></p>\n\nA project and its *story*.')
    False
    """
    if "<" not in text:
        return False
    prose = without_code(text, "x")  # not nothing, or <`x`p> would become a tag
    if SUBTITLES.search(prose):
        return False
    prose = prose[PROLOGUE.match(prose).end():]
    if FIRST_TAG.match(prose):
        return True
    if FENCE_LINE.search(one_line_per_pre(text)):
        return False
    if LATER_START.search(prose, 0, NOT_FAR):
        return True
    if MARKDOWN_START.match(prose):
        return False

    prose = "".join(SCRIPT_TAG.split(prose)[::2])
    prose = without_mentioned_tags(one_line_per_pre(prose))
    if not LINE_TAG.search(prose):
        return False
    return tags_make_the_lines(prose)


def one_line_per_pre(text: str) -> str:
    """Put each <pre> on one line: # and ``` in it are the page's code, not Markdown."""
    pieces = PRE_TAG.split(text)
    # Text, tag, text, tag, text, ...; an unclosed <pre> is not code.
    for i in range(2, len(pieces) - 1, 4):
        pieces[i] = " ".join(pieces[i].splitlines())
    return "".join(pieces)


def without_mentioned_tags(text: str) -> str:
    """Replace tags that are only mentioned, as words of the text.

    >>> without_mentioned_tags("<b>은 굵고, List<Form>은 목록이다.<br>")  # 'is bold', 'is a list'
    'x은 굵고, Listx은 목록이다.<br>'
    """
    text = MENTIONED.sub("x", text)
    begun = set()
    ended = set()
    for tag in LINE_TAG.finditer(text):
        if tag["end"]:
            ended.add(tag["name"].lower())
        else:
            begun.add(tag["name"].lower())

    def keep_or_not(tag: re.Match) -> str:
        name = tag["name"].lower()
        has_attributes = tag["rest"] is not None and "=" in tag["rest"]
        is_pair = name in begun and name in ended
        needs_no_end = name in NO_END_NEEDED and not tag["end"]
        if is_pair or needs_no_end or has_attributes:
            return tag[0]
        return "x"

    return LINE_TAG.sub(keep_or_not, text)


def tags_make_the_lines(text: str) -> bool:
    """Whether HTML holds more characters than the rest, tags make more lines than line ends do, and
    there is no Markdown outside the HTML.

    A block of HTML begins at a line that starts with a tag and ends at an empty line, as in
    Markdown (CommonMark 4.6). Outside blocks, a line with enough tags is HTML as well."""
    characters_in_tags = 0
    lines_by_tags = 0
    outside = []
    in_block = False
    for line in text.splitlines():
        line = line.strip()
        if not line:
            in_block = False
        elif LINE_TAG.match(line):
            in_block = True

        characters = len(ANY_TAG.sub("", line))
        tags = LINE_TAG.findall(line)
        has_enough_tags = len(tags) * TAG_EVERY > characters
        if in_block or has_enough_tags:
            characters_in_tags += characters
            lines_by_tags += sum(1 for end, *_ in tags if not end)
        elif characters:
            outside.append(line)

    if any(MARKDOWN_LINE.match(line) for line in outside):
        return False
    # Ours, chosen by hand: two such lines, and one for every ten lines made by tags. A page with
    # hundreds of lines may have some by chance.
    items = [line for line in outside if MARKDOWN_LIST.match(line)]
    if len(items) > 1 and len(items) > lines_by_tags / 10:
        return False
    characters_outside = sum(len(ANY_TAG.sub("", line)) for line in outside)
    return characters_in_tags > characters_outside and lines_by_tags > len(outside)
