"""HTML pages to text."""
import time

import pytest

from cleaning.markup import markup_of
from cleaning.normalise import normalise_text
from cleaning.pages import html_to_text, looks_like_html

# Some paragraphs, and what surrounds them on most pages.
TEXT = [
    "저수지를 한 바퀴 도는 길은 사 킬로미터쯤 되고, 천천히 걸으면 한 시간 반이 걸린다.",
    "봄에는 둑을 따라 벚꽃이 피고, 가을에는 갈대가 물가를 덮는다.",
    "어린이와 함께라면 나무 계단이 가파른 남쪽 구간은 피하는 편이 좋다.",
]
PARAGRAPHS = "\n".join(f"<p>{text}</p>" for text in TEXT)
LINKS = "".join(f'<li><a href="/{i}">갈래 {i}번</a></li>' for i in range(30))
MENU = f'<nav><ul>{LINKS}</ul></nav><div class="left-menu"><ul>{LINKS}</ul></div>'
FOOTER = "<footer>상호 물가, 대표 아무개, 무단 전재 금지</footer>"


def lines(page: str) -> list[str]:
    """The non-empty lines of a page's text."""
    return [line for line in html_to_text(page).split("\n") if line]


def page(body: str, attributes: str = "") -> str:
    """A whole page."""
    return (f"<!DOCTYPE html><html><head><title>제목</title><style>p {{}}</style></head>"
            f"<body {attributes}>{body}</body></html>")


# ---- What is left out, and what is not ----------------------------------------------------------


def test_html_keeps_the_article_and_code_and_leaves_the_site():
    page = """<!DOCTYPE html><html><head><title>t</title><script>if (a<b) alert("<p>no</p>")</script></head><body>
      <div class="main-menu"><ul><li>배우기<div>문서</div></li></ul></div><nav>길</nav>
      <article><h1>제목<a class="headerlink">#</a></h1><p>첫째   문단 &amp; 끝.</p>
      <ul><li>하나<li>둘</ul><aside>옆</aside>
      <pre><span>def f(x):</span>\n    return  x &lt; 1</pre><p>둘째<br>문단</p></article>
      <div class="cookie-banner">쿠키</div><footer>저작권</footer></body></html>"""
    assert lines(page) == [
        "제목", "첫째 문단 & 끝.", "하나", "둘", "```", "def f(x):", "    return  x < 1", "```",
        "둘째", "문단"]


@pytest.mark.parametrize("name", [
    "no-sidebar", "has-sidebar", "menu-wrap", "with-toc", "share-on", "rating-5", "banner-page",
    "search-results", "wy-nav-content-wrap", "wy-grid-for-nav", "sidebar footer nav",
])
@pytest.mark.parametrize("key", ["class", "id"])
def test_a_name_does_not_empty_a_page(name: str, key: str):
    named = f'{key}="{name}"'
    on_content = page(f"{MENU}<div><div {named}>{PARAGRAPHS}</div></div>{FOOTER}")
    on_wrapper = page(f"{MENU}<div {named}><div>{PARAGRAPHS}</div></div>{FOOTER}")
    around_all = page(f"<div {named}>{MENU}<div>{PARAGRAPHS}</div>{FOOTER}</div>", named)
    assert lines(on_content) == lines(on_wrapper) == lines(around_all) == TEXT


@pytest.mark.parametrize("tag", ["form", "header", "aside", "nav", "footer"])
def test_a_tag_does_not_empty_a_page(tag: str):
    menu = f'<nav class="site"><ul>{LINKS}</ul></nav>'
    assert lines(page(f"{menu}<{tag}>{PARAGRAPHS}</{tag}>")) == TEXT


@pytest.mark.parametrize("form", ['<form id="aspnetForm">', '<FORM name="frm" action="list.jsp">'])
@pytest.mark.parametrize("text", [TEXT, ["짧은 글."]])
def test_a_form_around_a_page_of_aspnet_or_jsp(form: str, text: list[str]):
    content = "".join(f"<p>{line}</p>" for line in text)
    controls = (
        "<select><option>제목</select><input name=q><button>찾기</button><textarea>..</textarea>"
    )
    body = f'{form}<div class="gnb">{LINKS}</div>{content}{controls}</form>'
    assert lines(page(body)) == text


def test_a_hundred_reviews_of_one_class_are_the_text():
    reviews = [f"{i}번째 후기입니다. 아주 좋았어요." for i in range(100)]
    items = "".join(f'<div class="rating-5" id="share-{i}">{text}</div>'
                    for i, text in enumerate(reviews))
    assert lines(page(f'{MENU}<div>{items}</div><div class="rating">5</div>{FOOTER}')) == reviews


REVIEWS = [f"{i}번째 후기, 참 좋은 길이다." for i in range(20)]


def reviews(attributes: str) -> str:
    """Twenty reviews, each with its own attributes."""
    words = ["menu", "toc", "share", "search", "related"]
    items = ""
    for i, text in enumerate(REVIEWS):
        values = {"number": i, "stars": i % 5 + 1, "topic": "abc"[i % 3], "word": words[i % 5]}
        items += f"<div {attributes.format(**values)}>{text}</div>"
    return items


@pytest.mark.parametrize("attributes", [
    'class="review rating-{stars}"',
    'class="rating-{topic}"',
    'class="menu-item menu-item-{number}"',
    'class="post-{number} category-{topic} share-on"',
    'class="{word}-box"',
    'id="share-{number}"',
    'id="menu-{topic}-{number}"',
])
def test_text_spread_over_several_names_stays(attributes: str):
    heading = "<h1>후기</h1>"
    buttons = '<div class="share">공유</div>'
    assert lines(page(MENU + reviews(attributes) + FOOTER)) == REVIEWS
    assert lines(page(MENU + heading + reviews(attributes) + FOOTER)) == ["후기", *REVIEWS]
    assert set(REVIEWS) <= set(lines(page(f"<main>{reviews(attributes)}{buttons}</main>")))


def test_most_reviews_of_one_rating_do_not_lose_the_others():
    body = ""
    for i, text in enumerate(REVIEWS):
        stars = 5 if i < 12 else i % 4 + 1
        body += f'<div class="rating-{stars}">{text}</div>'
    assert lines(page(MENU + body + FOOTER)) == REVIEWS


@pytest.mark.parametrize("body", [
    f'<div class="left-menu-wrap">{TEXT[0]}</div><div class="right-toc-wrap">{TEXT[1]}</div>'
    f'<div class="share-on">{TEXT[2]}</div>',
    f'<div class="menu-wrap"><div class="search-box"><p class="related">{TEXT[0]}</p></div></div>'
    f'<div class="toc-wrap"><p class="share-on">{TEXT[1]}</p></div><p class="nav-a">{TEXT[2]}</p>',
    # Even if tags or certain words say so, if nothing else is left.
    "".join(f'<aside class="{name}">{text}</aside>'
            for name, text in zip("abc", TEXT, strict=True)),
    f'<div class="sticky-footer">{TEXT[0]}</div><div class="cookie-on">{TEXT[1]}</div>'
    f'<aside>{TEXT[2]}</aside>',
])
def test_names_do_not_empty_a_page_together(body: str):
    assert lines(page(MENU + body)) == TEXT


def test_a_long_footer_and_banner_around_a_short_text():
    notice = "이 누리집은 방문 기록을 남긴다. 계속 보면 그에 동의하는 것으로 본다. " * 2
    body = f'<div class="cookie-banner">{notice}</div><p>{TEXT[1]}</p><footer>{notice}</footer>'
    assert lines(page(MENU + body)) == [TEXT[1]]


def test_parts_of_the_site_with_different_names_do_not_protect_each_other():
    parts = "".join(f'<div id="{name}">물가를 걷는 사람들의 모임 안내 글</div>'
                    for name in ("menu", "search", "footer", "cookie"))
    assert lines(page(parts + f"<p>{TEXT[0]}</p>")) == [TEXT[0]]


def test_the_menu_of_a_short_page_is_longer_than_its_text():
    for content in (f"<main>{TEXT[0]}</main>", f"<article>{TEXT[0]}</article>",
                    f"<div>{TEXT[0]}</div>"):
        assert lines(page(MENU + content)) == [TEXT[0]]


def test_an_article_is_the_page_only_if_it_holds_the_text():
    card = "<article><h3>다른 글</h3><p>짧은 소개</p></article>"
    assert set(TEXT) <= set(lines(page(f"<div>{PARAGRAPHS}</div><div>{card}</div>")))
    assert lines(page(f"<div>{PARAGRAPHS}</div><aside>{card}</aside>")) == TEXT

    # An index of articles, and an article that is part of the text.
    articles = "".join(f'<article class="post share-on"><p>{text}</p></article>' for text in TEXT)
    assert lines(page(MENU + articles + FOOTER)) == TEXT
    body = f"<main><p>{TEXT[0]}</p><p>{TEXT[1]}</p><article>{TEXT[2]}</article></main>"
    assert lines(page(body)) == TEXT

    # An empty <main> for a script to fill.
    assert lines(page(f"<main></main><div>{PARAGRAPHS}</div>")) == TEXT


def test_the_header_of_an_article_is_its_heading():
    article = f"<article><header><h1>둘레길</h1></header><p>{TEXT[0]}</p></article>"
    assert lines(page(f"<header>물가 누리집</header>{article}")) == ["둘레길", TEXT[0]]


def test_the_id_of_a_section_or_a_heading_is_its_title():
    body = (f'<section id="search"><h2 id="footer">찾기</h2>{TEXT[0]}</section>'
            f'<div class="section" id="navigation">{TEXT[1]}</div><p>{TEXT[2]}</p>')
    assert lines(page(body)) == ["찾기", *TEXT]


def test_unclosed_elements_do_not_swallow_the_rest():
    for start in ("<nav>", '<div class="menu">', "<footer>", "<style>", "<script>", "<title>",
                  "<!--", "<svg>", "<b class=menu>"):
        text = html_to_text(f"<body><p>{TEXT[0]}</p>{start} <p>{TEXT[1]}</p></body>")
        assert TEXT[1] in text, start

    # An unclosed link before text, which would not count as text.
    body = f'<a href="/">처음<p>{TEXT[0]}</p><div class="menu-wrap">{TEXT[1]}</div>'
    assert TEXT[0] in html_to_text(body)


def test_hidden_elements_and_links_to_headings():
    body = (
        f'<h2>길<a href="#길">¶</a><a href="#길" aria-hidden="true">여기</a></h2><p>{TEXT[0]}</p>'
        '<p hidden>숨김</p><p style="color: red; DISPLAY : none">숨김</p>'
        "<noscript>켜세요</noscript><template><article>틀</article></template>"
        "<nav><svg><text>그림</text></svg>메뉴</nav><iframe>틀</iframe>"
    )
    assert lines(page(body)) == ["길", TEXT[0]]
    # But a page that a script would have shown is shown.
    assert lines(page(PARAGRAPHS, 'style="display:none"')) == TEXT


# ---- Lines --------------------------------------------------------------------------------------


def test_rows_and_items_on_lines_paragraphs_apart():
    body = """<h2>표</h2><table><caption>거리</caption>
      <tr><th>구간</th><th>거리</th></tr><tr>
      <td><p>북문</p></td>
      <td><p>천 미터</p></td></tr><tr><td>남문<td>  오백
      미터</table>
      <ul><li><p>물</p></li> <li><p>신발</p></li><li>손전등</ul><p>하나</p><p>둘<br>셋</p>끝
      <dl><dt>길이</dt><dd><p>미터</p></dd></dl>"""
    assert html_to_text(body) == (
        "표\n\n거리\n구간 거리\n북문 천 미터\n남문 오백 미터\n물\n신발\n손전등\n\n"
        "하나\n\n둘\n셋\n\n끝\n길이\n미터"
    )


def test_code_keeps_its_lines():
    code = "def f(x):\n    return x\n\nf(1)"
    as_blocks = "".join(f'<div class="line">{line}<br></div>' for line in code.split("\n"))
    with_numbers = (
        f'<table><tr><td class="linenos"><pre>1\n2</pre></td><td><pre>{code}</pre></table>'
    )
    for html in (f"<pre>{code}</pre>", f"<pre><code>{as_blocks}</code></pre>", with_numbers,
                 f"<pre>{code}"):
        html = f"<p>{TEXT[0]}</p>" + html
        assert html_to_text(html) == f"{TEXT[0]}\n```\n{code}\n```"

    # Markdown shown as code.
    shown = html_to_text("<p>가</p><pre># 나\n```\nx\n```\n  y</pre><p>다</p>")
    assert shown == "가\n```\n# 나\n```\nx\n```\n  y\n```\n다"


def test_entities_and_formulas():
    assert html_to_text("<p>a&nbsp;&lt;&#48;&#x31; &amp;lt; &middot;") == "a <01 &lt; ·"
    symbols = "<mrow><mi>x</mi><mn>2</mn></mrow>"
    tex = '<annotation encoding="application/x-tex">x^2</annotation>'
    assert html_to_text(f"<p>값 <math>{symbols}</math> 끝") == "값 x2 끝"
    assert (
        html_to_text(f"<p>값 <math><semantics>{symbols}{tex}</semantics></math> 끝") == "값 x^2 끝"
    )


# ---- Broken and hostile pages -------------------------------------------------------------------


@pytest.mark.parametrize("page",
                         ["<html><nav>가<p>나", "<div><![weird[가]]>나</div>", "<p",
                          "<html></nav></pre></p>가",
                                  "<article><article>가</article>", "<html><!--가",
                                  "<div class>가</div>", "", "<", "<div/>", "</pre>",
                                  "<pre><td><pre>", "<math><pre><annotation>가</pre>",
                                  "<svg><pre></svg>", "<main role=main><main></main>",
                                  "<a><a></b>"])
def test_broken_html_does_not_crash(page):
    assert isinstance(html_to_text(page), str)
    assert isinstance(looks_like_html(page), bool)


@pytest.mark.parametrize("page", [
    "<div>" * 20_000 + "가",
    "<div class=menu>" * 20_000 + "가" + "</div>" * 20_000,
    "".join(f"<div id=menu-{i}>" for i in range(20_000)) + "가" + "</div>" * 20_000,
    "<" * 200_000,
    "<" * 200_000 + ">",
    "<!--" * 50_000 + ">",
    "<script>" * 20_000 + "가",
    "<a href=x><b></a>" * 20_000,
    "<b> </b>" * 20_000,
    "<td> " * 20_000,
    "<math>" * 20_000 + "<annotation>" * 20_000,
    "<pre>\n" * 20_000,
    "<nav>가</nav>" * 20_000,
    "<p>" + " \n" * 100_000,
    "```\n<p>`<p>" * 20_000,
    "".join(f"<nav class={'a' * (i % 99)}><p class=menu>가" for i in range(20_000))
    + "</nav>" * 20_000,
    "<p>가</p>\n\n---" + "|" * 100_000 + "x",
    "<p>가</p>\n\n" + "](" * 100_000,
    "<p>\n" + "# " * 100_000,
    "<pre>가</pre>\n" * 20_000,
    "(<a" * 60_000,
    "<sync" + " " * 200_000,
])
def test_time_grows_with_the_length_only(page: str):
    start = time.perf_counter()
    html_to_text(page)
    looks_like_html(page)
    # Takes a fraction of a second; quadratic versions took minutes.
    assert time.perf_counter() - start < 5


# ---- Is it a page? ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "\ufeff \n<!DOCTYPE html PUBLIC \"-//W3C\"><html>",
    "<?xml version=\"1.0\" encoding=\"euc-kr\"?>\n<html xmlns=\"http://www.w3.org/1999/xhtml\">",
    "<!-- saved from url=(0014)about:internet --><HTML><BODY>가",
    "<!-- 하나 -->\n<!-- 둘 -->\n<TITLE>가</TITLE>",
    "<h1>제목</h1>본문이다.",
    "<font size=2>가<br>나</font>",
    "<center>가</center>",
    "<br>가<br>나",
    "<p>가",
    "오늘 다녀왔습니다.<br>\n날이 좋았어요.<br><br>\n또 가고 싶네요.",
    "한 줄에 다 쓴 글<br><br>둘째 문단<p>셋째 문단",
    "Warning: mysql_connect() in /home/a.php\n<!doctype html>\n<html>",
    "<br />\n<b>Notice</b>: x in <b>a.php</b><br />\n<html>\n<p>``` 가",
    "<div><pre>\n# 주석\n</pre></div>",
    "<style>p {}\n\na {}\n</style><div>가</div>",
    "<script>var a;\n\nvar b;\n</script>\n<div>가나다</div>",
    # Tags in running text.
    "글<br>글<br>글",
    "글 <br> 글 <br> 글",
    "첫 줄<br>둘째 줄",
    "<p>글</p><p>글</p>",
    "<p>이 책은 재미있다.</p>",
    "안녕.<br /><br />이 글은 길다.<br />나는 간다.",
    "<body>가</body>",
    "<span style=\"color: red\">글",
    "<p>&lt;br&gt; 은 줄을 바꾼다.</p>",
    # What only looks like Markdown.
    "준비물<br>\n- 물<br>\n- 신발<br>\n- 끈",
    "<div><pre>\n\n# 주석\n```\nx\n```\n</pre></div>\n<p>설명이다</p>",
    "<p>글</p>\n" * 30 + "\n- 물\n- 신발\n",
])
def test_pages(text: str):
    assert looks_like_html(text)


README = "# 둘레길\n\n저수지를 도는 길이다.\n\n- 물\n- 신발\n\n```html\n<html>\n<div>\n```\n"


PEOPLE = "".join(
    f'<td align="center"><a href="/{i}"><img src="{i}.png"><br><b>사람 {i}</b></a><br>'
    '글, 그림</td>\n'
    for i in range(12)
)
SLOGAN = '<p align="center"><b>저수지를 도는 모든 길을 한곳에 모은 꾸러미</b><br>길을 걷자</p>\n\n'
BUTTONS = """<table class="tfo-notebook-buttons" align="left">
  <td><a target="_blank" href="/a"><img src="a.png">누리집에서 보기</a></td>
  <td><a target="_blank" href="/b"><img src="b.png">코랩에서 실행하기</a></td>
</table>

"""

# Markdown with HTML in it, and prose that mentions tags.
NO_PAGES = [
    '<p align="center"><img src="logo.png"></p>\n\n'
    + README
    + f"\n<table><tr>\n{PEOPLE}</tr></table>\n",
    '<p align="center"><img src="logo.png"></p>\n\n- 물\n- '
    '신발\n\n<table><tr><td>가</td></tr></table>\n',
    SLOGAN + "짧은 설명.\n\n설치는 쉽다.\n",
    SLOGAN + "짧은 설명.\n설치는 쉽다.\n끝.",
    SLOGAN + "- 물\n- 신발",
    SLOGAN + "[문서](https://example.com)를 보라.",
    SLOGAN + "이름 | 길이\n--- | ---\n북문 | 3\n",
    '<div align="center">\n\n# 둘레길\n\n<p>아주 긴 구호를 여기에 쓴다.</p>\n\n</div>\n\n길.\n',
    BUTTONS + "# 둘레길\n\n짧다.\n",
    BUTTONS + "짧다.\n\n1. 물\n2. 신발\n",
    "<style>\np {color: red}\n</style>\n\n# 제목\n\n글이다.\n\n- 가\n- 나\n",
    "<style>\np {color: red}\n</style>\n\n글이다.\n\n둘째.\n",
    '<link rel="stylesheet" href="a.css">\n\n글이다.\n\n둘째.\n',
    "<!-- 머리 -->\n# 제목\n\n<p>아주 긴 구호를 여기에 쓴다.</p>\n",
    '다음과 같이 쓴다.<br>\n\n```html\n<div class="a">\n  <img src="b">\n</div>\n```',
    "a<br>\nb<br>\n\n- item\n- item\n\n```python\ncode\n```",
    "a<br>\nb<br>\n~~~\ncode\n~~~",
    "HTML에서 <div> 태그는 구역을 나눈다.",
    "List<Form> 과 Map<String> 을 쓴다.",
    "<header> 와 <footer> 를 쓴다.",
    "<table>, <tr>, <td> 를 쓴다.",
    "<div>와 </div> 사이에, <p>와 </p> 사이에 쓴다.",
    "<br>과 <br/>은 같다. 문단은 '<p>'로 시작한다.",
    "The <p> tag and the <br> element.",
    "<body> 태그 안에 쓴다.",
    "<html> 은 뿌리이다.",
    "<!DOCTYPE html> 을 맨 앞에 쓴다.",
    '<meta charset="utf-8"> 를 넣는다.',
    "<title>제목</title> 을 쓴다.",
]


@pytest.mark.parametrize("text", NO_PAGES)
def test_markdown_and_prose_with_tags_keep_their_lines_and_tags(text: str):
    assert not looks_like_html(text)
    assert normalise_text(text)[0] == text.strip("\n")


SYNC = ("<SYNC Start=1000><P Class=KRCC>\n어제 배가<br>들어왔다고 하던데?\n"
        "<SYNC Start=4000><P>\n누가 그래?\n")


@pytest.mark.parametrize("text", [
    "<!-- x --><SAMI>\n<HEAD><TITLE>항구</TITLE></HEAD>\n<BODY>\n" + SYNC + "</BODY></SAMI>",
    "<HEAD><TITLE>항구</TITLE></HEAD>\n<BODY>\n" + SYNC,
    SYNC,
])
def test_subtitles_keep_the_tags_that_the_rules_recognise(text: str):
    assert not looks_like_html(text)
    assert markup_of(normalise_text(text)[0]).startswith("subtitles: ")


@pytest.mark.parametrize("text", [
    '<div align="center">\n<img src="logo.png"><br><br>\n</div>\n\n' + README,
    '<p align="center"><img src="logo.png" alt="둘레길 로고"></p>\n\n저수지를 도는 길을 모은 '
    '꾸러미이다.\n',
    '<h1 align="center">길</h1>\n\n' + README,
    "HTML을 배우자.\n\n```html\n<!DOCTYPE html>\n<html>\n<p>가</p>\n</html>\n```\n",
    "~~~\n<html>\n<p>가</p>\n<br>\n~~~\n",
    "~~~html\n<br>\n\n<br>\n~~~~\n가 ```<p>가</p>``` 나",
    "`<html>`로 시작하고 `<p>`와 `<br>`을 쓴다.",
    "---\nlayout: post\n---\n\n첫 <span>글</span>이다.<br>\n\n<div>그림</div>\n",
    "import Tabs from 'tabs';\n\n# 제목\n\n<Tabs>\n\n글이 이어진다. 길게 이어진다.\n\n</Tabs>\n",
    "# 표\n\n글\n\n<table><tr><td>표가 글보다 길다</td></tr></table>",
    "글에 <b>굵은</b> 말이 있다.",
    "a < b and c > d",
    "Option<String> x; Map<String, Table> y; vector<int> z;",
    "가 <p@example.com> 나",
    "아주 긴 문단이다. " * 100 + "<br>을 한 번 말한다.",
    "<?xml version=\"1.0\"?><rss><channel/></rss>",
    "<doc id=\"1\" title=\"길\">\n길\n\n길은 길다.\n</doc>",
    "<보기> 다음을 읽고 <가>를 고르시오.",
    "",
])
def test_no_pages(text: str):
    assert not looks_like_html(text)
