"""Step 7, lines: blocks that many documents share are cut or kept as a whole; the sketch."""
import argparse
import json
import random
import time

import numpy as np
import pytest
from sentences import korean

import data
from cleaning import lines
from cleaning.settings import STEPS, check_flags, choose_steps
from common.cli import UserError


def sketch_of(texts: list[str], path, width: int = 2**16) -> lines.Sketch:
    sketch = lines.Sketch(path, "w+", width)
    # As units are: what is counted does not depend on how they are cut.
    for some in (texts[:7], texts[7:]):
        sketch.add(*lines.count(some))
    return sketch


def cut(sketch: lines.Sketch, text: str) -> str:
    """The text after the step, which changes nothing in its own output."""
    shorter, _ = sketch.check(text)
    assert sketch.check(shorter) == (shorter, "")
    return shorter


# ---- Single lines --------------------------------------------------------------------------------

def pages(rng: random.Random, n: int) -> list[str]:
    """Pages with a line of the site above and below, a short line, and code with an import."""
    # 'log in to see all of this site'; 'all rights reserved'; 'contents'
    above, below = "이 사이트의 글을 보려면 로그인하세요.", "저작권 1999-2024 모든 권리 보유"
    return [
        f"{korean(rng, 1)}\n{above}\n{korean(rng, 8)}\n목차\n```\nimport numpy as np\n```\n{below}"
        for _ in range(n)
    ]


def test_lines_of_many_documents_are_cut_and_code_is_not(tmp_path):
    rng = random.Random()
    texts = pages(rng, 12)
    sketch = sketch_of(texts, tmp_path / "sketch")
    text, reason = sketch.check(texts[3])
    first, _, body, *rest = texts[3].split("\n")
    assert reason == "repeated_lines_cut" and text == "\n".join([first, body, *rest[:-1]])
    assert sketch.check(text) == (text, "")
    assert sketch_of(texts[:9], tmp_path / "few").check(texts[3]) == (texts[3], "")
    menu = "메뉴\n" + texts[3].split("\n")[1]  # 'menu'
    assert sketch.check(menu, 2) == ("메뉴", "repeated_lines_cut")
    assert sketch.check(menu, 5) == (None, "only_repeated_lines: 2 characters left < 5")


def test_years_and_addresses_do_not_make_a_different_line(tmp_path):
    rng = random.Random()
    texts = [f"# Copyright {2011 + i} The Whale Authors. All Rights Reserved.\n{korean(rng, 4)}\n"
             # 'edit this page'
             f"[이 문서를 저장소에서 고치기](https://example.org/whales/{i}.md)" for i in range(12)]
    sketch = sketch_of(texts, tmp_path / "sketch")
    for text in texts:
        assert cut(sketch, text) == text.split("\n")[1]


@pytest.mark.parametrize("before, after", [("Copyright (c) 2019", "Copyright (c) 2020-2024"),
                                           ("©2019, 2021", "© 2022"),
                                           ("저작권 2019", "저작권 2020")])
def test_spellings_of_a_copyright(before, after):
    first, second = [
        lines.lines_to_compare(f"{years} The Whale Authors") for years in (before, after)
    ]
    assert first == second


def test_other_numbers_make_a_different_line(tmp_path):
    # 'Article 1 (in force) from ... on', 'it governs so many towns', 'joined the team in the year'
    texts = [f"제{i}조(시행일) 이 영은 20{i}년 3월 1일부터 시행한다.\n"
             f"{i}개 진, {i + 1}개 향을 관할한다.\n"
             f"20{i}년에 프로 축구단에 입단하였다." for i in range(10, 40)]
    sketch = sketch_of(texts, tmp_path / "sketch")
    assert all(sketch.check(text) == (text, "") for text in texts)


# ---- Elements ------------------------------------------------------------------------------------

def manual(rng: random.Random, n: int, view: str = "누리집에서 이 문서 보기",
           run: str = "공책에서 바로 실행하기") -> str:
    """A manual with a row of buttons, whose addresses and line breaks differ from manual to
    manual."""
    # 'view on the site', 'run in a notebook', 'download'
    space = "\n    " if n % 2 else ""
    return (f"# {korean(rng, 1)}\n\n<table class=\"buttons\">\n"
            f"  <td>{space}<a href=\"https://example.org/{n}\">"
            f"<img src=\"/logo{n}.png\" />{view}</a></td>\n"
            f"  <td><a href=\"https://example.org/run/{n}.ipynb\">{run}</a>{space}</td>\n"
            f"  <td><a href=\"/raw/{n}.ipynb\">내려받기</a></td>\n</table>\n\n{korean(rng, 6)}")


def test_the_example_in_the_docstring(tmp_path):
    shared = [
        "Terms of use and privacy",
        "  <td>View on our site</td>",
        "  <td>Run in a notebook</td>",
    ]
    text = "\n".join([shared[0], "Whales", "<table>", *shared[1:], "  <td>Whales in pictures</td>",
                      "</table>", "Whales suckle their young."])
    sketch = sketch_of([*["\n".join(shared)] * 12, text], tmp_path / "sketch")
    assert len(lines.blocks(text)) == 4
    assert cut(sketch, text) == "Whales\nWhales suckle their young."


def test_a_row_of_buttons_is_cut_as_a_whole(tmp_path):
    rng = random.Random()
    texts = [manual(rng, n) for n in range(12)]
    odd = manual(rng, 12, run="공책을 열어 실행하여 보기")  # one button has another name
    # 'see the whale', 'hear the whale'
    own = manual(rng, 13, "고래 그림을 크게 보기", "고래 소리를 들어 보기")
    sketch = sketch_of([*texts, odd, own], tmp_path / "sketch")
    for text in texts:
        heading, *_, body = text.split("\n")
        assert cut(sketch, text) == f"{heading}\n\n{body}"
    assert cut(sketch, own) == own
    assert cut(sketch, odd) == odd  # 10 of its 26 letters are in many documents


def test_a_table_with_one_line_of_the_site_stays_whole(tmp_path):
    rng = random.Random()
    head = ('<table class="data-table" border="1" cellpadding="4">\n'
            '<tr><th>고래의 이름과 길이와 무게</th></tr>\n')
    texts = [f"{head}<tr>\n<td>{korean(rng, 1)}</td>\n<td>{n}</td>\n</tr>\n"
             f"<tr><td>{korean(rng, 2)}</td></tr>\n"
             f"</table>\n{korean(rng, 4)}" for n in range(12)]
    sketch = sketch_of(texts, tmp_path / "sketch")
    assert all(sketch.check(text) == (text, "") for text in texts)


def test_lines_of_tags_or_an_address_alone_are_compared_as_they_are(tmp_path):
    rng = random.Random()
    tags, address = '<a name="back-to-top"></a>', "https://example.org/whales"
    texts = [f'{tags}\n{address}\n{address}/{n}\n<img src="{address}/{n}.png" width="500">\n'
             f'{korean(rng, 2)}'
             for n in range(12)]
    sketch = sketch_of(texts, tmp_path / "sketch")
    assert all(cut(sketch, text) == text.split("\n", 2)[2] for text in texts)


def test_a_page_in_an_element_is_cut_line_by_line(tmp_path):
    rng = random.Random()
    # 'log in'; 'we use cookies'
    menu = ["이 사이트의 글을 보려면 로그인하세요.", "쿠키를 써서 방문을 기억합니다."]
    texts = [
        "\n".join(["<div>", *menu, *(korean(rng, 1) for _ in range(40)), "</div>"])
        for _ in range(12)
    ]
    sketch = sketch_of(texts, tmp_path / "sketch")
    assert all(cut(sketch, text) == text.replace("\n".join(menu) + "\n", "") for text in texts)


def test_comments_are_cut_or_kept_as_a_whole(tmp_path):
    rng = random.Random()
    note = "<!-- This page was written by a program.\n\n   Do not change it by hand.\n{}\n-->"
    texts = [f"{korean(rng, 2)}\n{note.format('whales')}\n{korean(rng, 2)}" for n in range(12)]
    sketch = sketch_of(texts, tmp_path / "sketch")
    first, *_, last = texts[5].split("\n")
    assert cut(sketch, texts[5]) == f"{first}\n{last}"
    own = note.format(korean(rng, 5))
    assert sketch.check(own) == (own, "")


def test_blocks():
    def shown(text: str) -> list[str]:
        found = lines.blocks(text)
        assert "\n".join(found) == text
        return [block.replace("\n", "/") for block in found]

    assert shown("<div>\n<div>\n가\n</div>\n</div>\n나") == ["<div>/<div>/가/</div>/</div>", "나"]
    assert shown("<DIV>\n가\n</div>") == ["<DIV>/가/</div>"]
    # Nothing closes them.
    assert shown("<p>\n가\n<br>\n나\n</b>") == ["<p>", "가", "<br>", "나", "</b>"]
    assert shown("<td>가</td>\n<td><b>\n나</b></td>") == ["<td>가</td>", "<td><b>/나</b></td>"]
    assert shown("글 <b>\n가</b>\n나") == ["글 <b>", "가</b>", "나"]  # within a line: no block
    assert shown("```\n<div>\n```\n</div>") == ["```/<div>/```", "</div>"]
    assert shown("<div>\n```\n가\n```\n</div>") == ["<div>", "```/가/```", "</div>"]
    assert shown("````\n```\n가\n```\n````\n나") == ["````/```/가/```/````", "나"]
    assert shown("```가``` 나\n다") == ["```가``` 나", "다"]  # a piece of code in a line
    assert shown("~~~\n```\n가\n~~~\n나") == ["~~~/```/가/~~~", "나"]
    assert shown("가\n```\n나\n다") == ["가", "```/나/다"]  # code to the end
    # A compiler marks an error with ~~~, which does not end code.
    assert shown("```\n~~~\n가\n```\n나") == ["```/~~~/가/```", "나"]


def test_any_text_is_its_blocks_and_the_step_is_idempotent(tmp_path):
    rng = random.Random()
    pieces = ["<div>", "</div>", "<p>", "</p>", "<!--", "-->", "```", "~~~", "# note of the author",
              "", "이 줄은 모든 문서에 있습니다", "이 줄도 모든 문서에 있습니다", "짧은 줄"]
    texts = [
        "\n".join(rng.choices([*pieces, korean(rng, 1)], k=rng.randrange(1, 80)))
        for _ in range(200)
    ]
    sketch = sketch_of(texts, tmp_path / "sketch")
    for text in texts:
        assert "\n".join(lines.blocks(text)) == text
        shorter, _ = sketch.check(text)
        if shorter is not None:
            assert sketch.check(shorter) == (shorter, "")


@pytest.mark.parametrize("worst",
                         ["<div>\n", "<div>", "</div>", "<", "<a ", "<!--", "-->", "`" * 3 + "\n",
                          "http://",
                                   "https://a ", "Copyright ", "Copyright 2019 ",
                                   "Copyright" + " " * 9, "# \n"])
def test_a_megabyte_of_anything_takes_a_moment(worst):
    text = worst * (10**6 // len(worst))
    start = time.process_time()
    lines.count([text])
    assert time.process_time() - start < 10


# ---- Code ----------------------------------------------------------------------------------------

def licence(year: int, owner: str) -> str:
    rules = [
        f"# You may use this program where the law allows it, rule {rule}." for rule in "abcdef"
    ]
    return "\n".join(["```", f"#@title Copyright {year} {owner}", "#", *rules,
                      f"# https://example.org/{year}", "```"])


def test_a_licence_in_a_fence_is_cut_as_a_whole(tmp_path):
    rng = random.Random()
    code = "```\nimport numpy as np\nimport pandas as pd\n```"
    # A command, though it looks like a comment.
    root = "```\n# systemctl restart whales.service\n```"
    texts = [f"{korean(rng, 2)}\n\n{licence(2011 + n, 'The Whale Authors')}\n\n{code}\n{root}\n"
             f"{korean(rng, 2)}"
             for n in range(12)]
    # In few documents, but the rules are in many.
    other = f"{licence(2020, korean(rng, 1))}\n{korean(rng, 2)}"
    sketch = sketch_of([*texts, other], tmp_path / "sketch")
    for text in texts:
        first, last = text.split("\n")[0], text.split("\n")[-1]
        assert cut(sketch, text) == f"{first}\n\n{code}\n{root}\n{last}"
    assert cut(sketch, other) == other.split("\n")[-1]


def test_code_between_either_kind_of_fence_is_kept():
    command = "import numpy as np, torch"
    for text in (
        f"```python\n{command}\n```",
        f"~~~\n{command}\n~~~",
        f"```\n~~~\n{command}\n```",
        f"```\n#include <vector>\n#include <string>\n{command}\n{command}\n{command}\n```",
    ):
        assert lines.lines_to_compare(text) == [] and len(lines.blocks(text)) == 1
        (line_hash, _), = lines.lines_to_compare(command)
        hashes, counts = lines.count([f"{text}\n{command}"])
        assert hashes.tolist() == [line_hash] and counts.tolist() == [1]


# ---- The sketch ----------------------------------------------------------------------------------

def test_the_sketch_never_counts_too_little(tmp_path):
    rng = random.Random()
    vocabulary = [korean(rng, 2) for _ in range(300)]
    texts = ["\n".join(rng.choices(vocabulary, k=20)) for _ in range(100)]
    true = {line: sum(line in text.split("\n") for text in texts) for line in vocabulary}
    for width, exact in ((2**20, True), (64, False)):
        sketch = sketch_of(texts, tmp_path / str(width), width)
        found = sketch.find(
            np.array([lines.lines_to_compare(line)[0][0] for line in vocabulary], np.uint64)
        )
        expected = np.array([true[line] for line in vocabulary])
        assert (found == expected).all() if exact else (found >= expected).all()


# ---- The flag ------------------------------------------------------------------------------------

@pytest.mark.parametrize("profile", ["web", "formal", "short"])
def test_any_profile_can_have_the_step(profile):
    def steps(cut_lines: bool, chosen: list[str] | None = None) -> list[str]:
        args = argparse.Namespace(steps=chosen, profile=profile, cut_lines=cut_lines,
                                  decontaminate=None, sample=1.0,
                                  limits=None, reference=None, tails=[0.5, 1.0], out="absent",
                                  examples=20)
        found = choose_steps(args)
        check_flags(args, found)
        return found

    assert steps(True) == [step for step in STEPS if step != "decontaminate"]
    assert ("lines" in steps(False)) == (profile == "web")
    assert steps(True, ["lines", "near"]) == ["near", "lines"] == steps(False, ["lines", "near"])
    refusal = "--cut_lines runs the step lines, which is not among --steps"
    with pytest.raises(UserError, match=refusal):
        steps(True, ["near", "exact"])


def test_manuals_are_cut_under_the_profile_formal(tmp_path):
    rng = random.Random()
    texts = [f"{licence(2010 + n, 'The Whale Authors')}\n{manual(rng, n)}" for n in range(12)]
    source = tmp_path / "manuals.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data.main(["clean", "--input", str(source), "--out", str(tmp_path / "out"),
               "--profile", "formal", "--cut_lines"])
    kept = [json.loads(line)["text"] for line in open(tmp_path / "out" / "manuals.jsonl")]
    assert len(kept) == 12 and not any(
        word in "".join(kept) for word in ("Copyright", "```", "table")
    )
