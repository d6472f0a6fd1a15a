"""Part of step 1: HTML pages to text."""
import re
from html.parser import HTMLParser

LOOKS_LIKE_HTML = re.compile(r"(?i)\s*<(?:!doctype html|html|head|body|main|article|section|div|p|table|ul|span)\b|"
                             r"[^<]{0,500}<(?:!doctype html|html)\b")
DROPPED_TAGS = set("aside button footer form head header iframe nav noscript script select style svg template".split())
DROPPED_NAMES = re.compile(  # words in a class, id or role that mark a part of the site, not of the page
    r"(?i)(?:^|[\s_-])(?:menu|nav|navbar|navigation|sidebar|breadcrumbs?|toc|footer|cookie|banner|share|search|"
    r"searchbox|advert\w*|copyright|rating|headerlink|call-to-action)(?:$|[\s_-])")
BLOCK_TAGS = set("address article blockquote body br dd div dl dt figcaption figure h1 h2 h3 h4 h5 h6 hr li main ol "
                 "p pre section table tr ul".split())
FENCE = "\n```\n"  # Markdown's: by it the rules set code aside


class _Text(HTMLParser):
    """Collects the text that a reader of the page came for. With an <article> or <main>, only what is inside it."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        lower = page.lower()
        self.root = next((tag for tag in ("article", "main") if f"</{tag}" in lower), None)
        self.closed = {tag for tag in DROPPED_TAGS | BLOCK_TAGS | {"a", "span"} if f"</{tag}" in lower}
        self.inside = self.pre = 0         # how many root elements, and how many <pre>, are open
        self.dropping, self.depth = "", 0  # the tag of the element that is being left out, and how many of it are open
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.dropping:
            self.depth += tag == self.dropping
            return
        names = " ".join(value or "" for key, value in attrs if key in ("class", "id", "role"))
        if tag in DROPPED_TAGS or DROPPED_NAMES.search(names) and tag not in ("html", "body", "main", "article"):
            if tag in self.closed:  # one that nothing closes would swallow the rest of the page
                self.dropping, self.depth = tag, 1
            return
        self.inside += tag == self.root
        if tag == "pre":
            self.pre += 1
            self.parts.append(FENCE)
        elif tag in BLOCK_TAGS:
            self.parts.append("\n\n" if tag[0] in "hp" else "\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self.dropping:
            self.depth -= tag == self.dropping
            self.dropping = self.dropping if self.depth else ""
            return
        self.inside -= tag == self.root and self.inside > 0
        if tag == "pre" and self.pre:
            self.pre -= 1
            self.parts.append(FENCE)
        elif tag in BLOCK_TAGS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.dropping and (self.inside or not self.root):
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))


def html_to_text(page: str) -> str:
    """The text of a page: menus, scripts and footers left out, blocks on lines of their own, code in fences.

    >>> print(html_to_text("<html><nav>menu</nav><p>One &amp;\\n two<br>three<pre>a  = 1\\n  b</pre>"))
    One & two
    three
    ```
    a  = 1
      b
    ```
    """
    parser = _Text(page)
    page = page.replace("<![", "<!-[")  # html.parser gives up on a marked section that it does not know,
    tags, end, rest = page.rpartition(">")  # and looks through all the rest for the end of every tag that has none
    parser.feed(tags + end + rest.replace("<", "&lt;"))
    parser.close()
    prose_and_code = "".join(parser.parts).split(FENCE)
    prose_and_code[1::2] = [code.strip("\n") for code in prose_and_code[1::2]]
    prose_and_code[::2] = [re.sub(r" *\n[\n ]*", lambda m: "\n" * min(2, m[0].count("\n")), prose.strip())
                           for prose in prose_and_code[::2]]
    return FENCE.join(prose_and_code).strip("\n")
