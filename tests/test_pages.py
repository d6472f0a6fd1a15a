"""HTML pages to text."""
import pytest

from cleaning import normalise


def test_html_keeps_the_article_and_code_and_leaves_the_site():
    page = """<!DOCTYPE html><html><head><title>t</title><script>if (a<b) alert("<p>no</p>")</script></head><body>
      <div class="main-menu"><ul><li>배우기<div>문서</div></li></ul></div><nav>길</nav>
      <article><h1>제목<a class="headerlink">#</a></h1><p>첫째   문단 &amp; 끝.</p>
      <ul><li>하나<li>둘</ul><aside>옆</aside>
      <pre><span>def f(x):</span>\n    return  x &lt; 1</pre><p>둘째<br>문단</p></article>
      <div class="cookie-banner">쿠키</div><footer>저작권</footer></body></html>"""
    text, _ = normalise.normalise(page)
    assert [line for line in text.split("\n") if line] == [
        "제목", "첫째 문단 & 끝.", "하나", "둘", "```", "def f(x):", "    return  x < 1", "```", "둘째", "문단"]


@pytest.mark.parametrize("page", ["<html><nav>가<p>나", "<div><![weird[가]]>나</div>", "<p", "<html></nav></pre></p>가",
                                  "<article><article>가</article>", "<html><!--가", "<div class>가</div>"])
def test_broken_html_is_no_crash(page):
    assert isinstance(normalise.normalise(page)[0], str)
