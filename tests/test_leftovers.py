"""What an extractor leaves inside documents is cut; text that looks like it stays."""
import time

import pytest
from test_markup import ENGLISH_WIKI, MEDIAWIKI, NAMU

from cleaning import rules
from cleaning.leftovers import remove_leftovers
from cleaning.limits import LIMITS
from cleaning.normalise import normalise_text

STATUTE = """---
제목: 고래 보호에 관한 법률
법령ID: '001234'
소관부처:
- 바다부
첨부파일:
- 별표번호: '0001'
  제목: 고래 목록
  파일링크: https://example.com/a?b=1

- 별표번호: '0002'
법령분야: ''
---

# 고래 보호에 관한 법률

이 법은 고래를 보호함을 목적으로 한다.
"""

HUGO = """+++
title = "고래를 보러 가다"
date = 2020-01-02T10:00:00
tags = [
  "바다",
]
[extra]
image = "whale.jpg"
+++
아침 일찍 배를 탔다.
"""

PERIODICAL = """잡지명\t고래 제3호
발행일
기사제목\t[무제]
기사형태\t잡저

고래는 바다의 임금이라 하더라.＜12＞

------------------------------------------

기사제목\t바다의 노래(二)
필자\t金某
기사형태\t시

바다의 노래
\t\t\t\t金某
물결이 높고＜13＞바람이 차다. 그러나 나＜14＞는 간다.
우리는 ＜15＞ 노래한다.  ＜16＞
＜13-16＞"""

CHANGED = [
    # Front matter.
    ("front_matter", STATUTE, STATUTE.partition("---\n\n")[2].strip("\n")),
    ("front_matter", HUGO, "고래를 보러 가다\n\n아침 일찍 배를 탔다."),
    ("front_matter", "---\ntitle: 고래 이야기\nlayout: post\n---\n고래 이야기\n크다.",
     "고래 이야기\n크다."),
    ("front_matter", "---\nlayout: post\nlang: ko\n---\n\n고래는 크다.", "고래는 크다."),
    # Periodicals: a title that is [무제] (untitled) or is repeated below is not kept.
    ("front_matter+page_marks", PERIODICAL, "고래는 바다의 임금이라 하더라.\n\n"
     "------------------------------------------\n\n바다의 노래\n\t\t\t\t金某\n"
     "물결이 높고 바람이 차다. 그러나 나는 간다.\n우리는 노래한다."),
    # Remnants of wiki source.
    ("wiki_remnants", "고래는 크다.\n[[분류:바다의 동물]\n[[분류:포유류]]]", "고래는 크다."),
    ("wiki_remnants", "Whales are large.\n[[Category:Sea animals]]\n[[Category:Mammals| ]]",
     "Whales are large."),
    ("wiki_remnants",
     "[[파일:고래.jpg|섬네일|[[바다]]의 [1] 고래]] 고래는 크다.\n[[File:b.png]]\n작다.",
     "고래는 크다.\n작다."),
    ("wiki_remnants", "차례.\n!colspan=2| 합계 || 6 || 6\n끝.", "차례.\n끝."),
    # Lost content: the sentence is cut, not the paragraph; a line of its own is cut.
    ("lost_content",
     "고래는 크다. 그 무게는 formula_1이다. 그래도 (바다에서) 헤엄친다.\nformula_2\n끝이다.",
     "고래는 크다. 그래도 (바다에서) 헤엄친다.\n끝이다."),
    ("lost_content",
     "Whales are very large animals. We write formula_1. Here, they live in the sea.\n"
     "Use codice_12 to count them.", "Whales are very large animals. Here, they live in the sea."),
    ("lost_content",
     "하준은 서울에서 태어난 배우이다. 영화 《》에서 고래를 맡았다. 《바다》에도 나온다.",
     "하준은 서울에서 태어난 배우이다. 《바다》에도 나온다."),
    ("lost_content",
     "고래의 무게는 다음과 같이 나타낸다.\n로 쓴다. 무게는 길이에 따라 늘어난다.\nformula_1",
     "고래의 무게는 다음과 같이 나타낸다.\n무게는 길이에 따라 늘어난다."),
    # Empty brackets.
    ("empty_brackets", "다테시()는 바다(, )에 있다.", "다테시는 바다에 있다."),
    ("empty_brackets", "바이 현(, , ) 은 크다.", "바이 현은 크다."),
    ("empty_brackets", "《고래》()와 ‘바다’(), 노래(노랫말)()이다.",
     "《고래》와 ‘바다’, 노래(노랫말)이다."),
    ("empty_brackets", "고래(, Whale, 1930년 ~ )와 게임(Galaga, )",
     "고래(Whale, 1930년 ~ )와 게임(Galaga)"),
    ("empty_brackets", "고래(영어: , 한자: 鯨, , 본명:)", "고래(한자: 鯨)"),
    ("empty_brackets", "고래(, 바다(Sea)의 임금)", "고래(바다(Sea)의 임금)"),
    ("empty_brackets", "고래(바다(), )는", "고래(바다)는"),
    ("empty_brackets", "고래( , 1937년 ~ )와 바다( ; , Sea)", "고래(1937년 ~ )와 바다(Sea)"),
    ("empty_brackets", "Tateya (born 1990; IAST: ) and Urdu (Urdu: )",
     "Tateya (born 1990) and Urdu"),
    ("empty_brackets", "Tateya () is a city (; born 1990) in the Sea (, ).",
     "Tateya is a city (born 1990) in the Sea."),
]

KEPT = [
    # A horizontal rule and prose, a dialogue between rules, a table.
    "---\n고래는 크다.\n---\n바다는 넓다.",
    "---\n민지: 안녕\n하준: 응\n민지: 가자\n---\n둘은 갔다.",
    "---\nNote: whales are large.\n---\nThey swim.",
    "---\n# 고래\n---\n크다.",
    "---\n\nNote: whales are large.\n\n---\nThey swim.",
    "사과\tapple\n고래\twhale\n\n끝",
    "표이다.\n\n제목\t관객\n고래\t3\n바다\t4\n\n끝이다.",
    # Numbers of paragraphs, amendments, titles.
    "<34> 고래법을 개정한다. <개정 2016.2.3>\n＜1＞ 목적\n＜고래＞는 시이다. [2] 끝",
    "＜보기 2＞ ＜1＞과 ＜2＞를 비교하라. 3＜5＞4",
    # Links are counted by rules.py; this text is about them.
    "[[고래]]는 '[[분류:동물]]'과 같이 쓰고 [[분류:바다]]를 덧붙인다. [[1, 2], [3, 4]]",
    # Names in programs.
    "my_formula_1, formula_1.py, formula_2[0] 그리고 formula_3 = 4, formula_x",
    "책 이름에는 겹화살괄호(《》)를 쓴다.",
    # Calls, emoticons, boxes, questions.
    "print()를 부르고 foo () 그리고 main()은 Clone () 하였다.",
    "재밌다(;;) 좋다( ; ) 하하(,,) 100만원(천원;;) 최고:) 좋아요 ; ) ㅠㅠ(..)",
    "비공개( ) 공개[ ] 1. (1) 다음 ( )에 들어갈 말은? 수도는 ()이다. The capital is ().",
    "바다역\n()은 역이다.",
    "shape (3, )와 f(1, )",
    "쉼표(,)와 세미콜론(;)으로 나눈다. 배열 A[]",
    # Code.
    "```\nx = f(, )\n[[분류:동물]]\nformula_1\n가()\n```\n`고래()`와 ~~~",
]


@pytest.mark.parametrize(("reason", "text", "expected"), CHANGED)
def test_cut(reason, text, expected):
    text, _ = normalise_text(text)
    assert remove_leftovers(text) == (expected, reason)
    assert remove_leftovers(expected) == (expected, "")
    assert normalise_text(expected) == (expected, "")


@pytest.mark.parametrize("text", KEPT)
def test_kept(text):
    assert remove_leftovers(text) == (text, "")


def test_code_is_put_back():
    text = (
        "`a`는 formula_1이다. `b()`는 고래()라는 것이다.\n```\nc()\n가()\n```\n그리고 `e`도 있다."
    )
    expected = "`b()`는 고래라는 것이다.\n```\nc()\n가()\n```\n그리고 `e`도 있다."
    assert remove_leftovers(text) == (expected, "lost_content+empty_brackets")


def test_nothing_but_leftovers():
    assert remove_leftovers("[[분류:고래]]\n[[분류:바다]]") == (
        None,
        "only_leftovers: nothing but wiki_remnants",
    )
    assert remove_leftovers("---\nlayout: post\nlang: ko\n---") == (
        None,
        "only_leftovers: nothing but front_matter",
    )
    # The title remains, and the rules find it too short.
    assert remove_leftovers("---\ntitle: 고래\n---") == ("고래", "front_matter")
    lost = "고래\n무게는 formula_1이고 길이는 formula_2이다."
    assert remove_leftovers(lost) == (None, "too_much_lost: 0.943 of the characters > 0.5")
    # Slightly more than half: not shown as "0.5 > 0.5".
    lost = "가" * 100 + ".\n" + "나" * 87 + "formula_123 다."
    assert remove_leftovers(lost) == (None, "too_much_lost: 0.502 of the characters > 0.5")


def test_wiki_source_is_still_recognised():
    for text, lang in ((NAMU, "ko"), (MEDIAWIKI, "ko"), (ENGLISH_WIKI, "en")):
        text, _ = remove_leftovers(normalise_text(text)[0])
        reason = rules.check(text, LIMITS[lang]["formal"], lang)[1]
        assert reason.partition(":")[0] == "wiki_markup"


@pytest.mark.parametrize("text", [
    "---\na: b\n" + "- x\n" * 50_000,
    "+++\na" + " " * 200_000 + "x\n+++",
    "제목\tx\n" + "a\tb\n" * 50_000,
    "가(" * 70_000 + ")" * 70_000,
    "가(" + ", " * 100_000 + "(",
    "[[파일:a [[b]] " * 15_000,
    "[[파일:" + "[[b]]" * 40_000,
    "[[분류:" + " " * 200_000 + "x",
    "가＜1＞" + " " * 200_000 + "＜1",
    ". " * 100_000 + "formula_1",
    "formula_1. " * 20_000,
])
def test_time_is_linear(text):
    start = time.perf_counter()
    remove_leftovers(text)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(("text", "expected"), [
    # After the title, whatever else it looks like: Latin letters, a space, a space inside.
    ("HDMI\n\nHDMI()는 선이다.", "HDMI\n\nHDMI는 선이다."),
    ("푸른 고래 호\n\n푸른 고래 호 ()는 배다.", "푸른 고래 호\n\n푸른 고래 호는 배다."),
    ("다이치\n\n다이치( )가 왔다.", "다이치\n\n다이치가 왔다."),
    ("고래\n\n고래(,)는 크다.", "고래\n\n고래는 크다."),
    ("단일 국가(單一國家,)는 크다.", "단일 국가(單一國家)는 크다."),
    # Followed by a space, next to a bracket that no form has.
    ("고래()는 크다. 돌고래() 또는 물돼지는 작다.", "고래는 크다. 돌고래 또는 물돼지는 작다."),
    # One title in a list.
    ("소설 《바다》, 《》, 《고래》를 썼다.", "소설 《바다》, 《고래》를 썼다."),
    ("소설 《》, 《고래》 등을 썼다.", "소설 《고래》 등을 썼다."),
])
def test_what_the_text_says_about_a_bracket(text, expected):
    changed, _ = remove_leftovers(text)
    assert changed == expected
    assert remove_leftovers(expected) == (expected, "")


@pytest.mark.parametrize("text", [
    "이름() 나이() 성별()",  # name, age, sex
    "나는 학교() 간다. 동의() 비동의()",
    "2020년()월()일, 제()조 제()항",
    "괄호 《》와 〈〉는 책 이름에 쓴다.",  # the brackets are for names of books
    "---\n재료: 밀가루 100g\n분량: 2인분\n---\n섞는다.",  # a recipe
    "---\n민수: 안녕\n지영: 응\n---\n둘이 인사한다.",
    "제목\t감독\n고래\t김\n\n영화다.",  # the head of a table
])
def test_forms_recipes_and_texts_about_brackets_stay(text):
    assert remove_leftovers(text) == (text, "")
