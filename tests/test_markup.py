"""Wiki source, chat exports and subtitles are recognised; texts that contain a little of them, or
are about them, are not."""
import random

import pytest
from sentences import korean

from cleaning import markup, rules
from cleaning.code import without_code
from cleaning.limits import LIMITS
from cleaning.mask import mask_personal_data
from cleaning.normalise import normalise_text

NAMU = """[include(틀:다른 뜻, other1=같은 이름의 배, rd1=고래호)]
[[분류:바다의 동물]]
||<-2><tablealign=right> '''{{{#white 고래}}}''' ||
|| '''사는 곳''' || [[바다]] ||
|| '''먹이''' || [[크릴]], [[물고기]] ||
[목차]
== 개요 ==
'''고래'''는 [[바다]]에 사는 [[포유류]]이다. 숨을 쉬려고 물 위로 올라온다.[* 한 시간까지 참는다.]
== 종류 ==
 * [[수염고래]]: 이빨이 없다.
 * [[이빨고래]]: {{{+1 이빨}}}이 있다. ~~당연하다~~
{{{#!wiki style="margin: 0 auto"
흰긴수염고래는 지구에서 가장 큰 동물이다.}}}
[각주]
"""

MEDIAWIKI = """{{정보상자 동물
| 이름 = 고래
| 그림 = 고래.jpg
| 그림 크기 = 250px
| 목 = 고래목
}}
[[파일:고래 꼬리.jpg|섬네일|바다 위로 올라온 꼬리]]
'''고래'''는 [[바다]]에 사는 [[포유류]]이다.<ref name="kim">김, 2001</ref> 숨을 쉬려고 물 위로 올라온다.
== 종류 ==
{| class="wikitable"
! 이름 !! 길이
|-
| [[대왕고래|흰긴수염고래]] || 30 m
|-
| [[범고래]] || 9 m
|}
* [[수염고래]]는 이빨이 없다.{{출처|날짜=2020-01-01}}
[[분류:바다의 동물]]
"""

ENGLISH_WIKI = """{{Infobox ship
| name = Anna
| length = 30 m
}}
'''Anna''' was a [[sailing ship|ship]] of the [[harbour]] company.<ref>Kim 2001</ref>
She sailed to [[Norway]] in [[1902]].{{cite book|title=Ships}}
[[Category:Ships]]
"""

FROM_A_COMPUTER = """민지 님과 카카오톡 대화
저장한 날짜 : 2024-01-01 15:20:11

--------------- 2024년 1월 1일 월요일 ---------------
[민지] [오후 3:12] 새해 복 많이 받아!
[하준] [오후 3:13] 너도. 오늘 뭐 해?
[민지] [오후 3:13] 집에 있어. 떡국 먹고
누워 있어
[하준] [오후 3:14] 사진
"""

FROM_ANDROID = """2024년 1월 1일 오후 3:12
2024년 1월 1일 오후 3:12, 민지 : 새해 복 많이 받아!
2024년 1월 1일 오후 3:13, 하준 : 너도. 오늘 뭐 해?
2024년 1월 1일 오후 3:13, 민지 : 집에 있어
"""

FROM_AN_IPHONE = """2024. 1. 1. 오후 3:12, 민지 : 새해 복 많이 받아!
2024. 1. 1. 오후 3:13, 하준 : 너도. 오늘 뭐 해?
2024. 1. 1. 오후 3:13, 민지 : 집에 있어
"""

FROM_A_TELEPHONE_IN_ENGLISH = """March 5, 2024 at 3:12 PM, 민지 : 새해 복 많이 받아!
March 5, 2024 at 3:13 PM, 하준 : 너도. 오늘 뭐 해?
March 5, 2024 at 3:13 PM, 민지 : 집에 있어
"""

A_TABLE_OF_A_CHAT = """Date,User,Message
2024-01-01 15:12:33,"민지","새해 복 많이 받아!"
2024-01-01 15:13:02,"하준","너도. 오늘 뭐 해?"
"""

SUBSTATION = """[Events]
Format: Layer, Start, End, Style, Name, Text
Dialogue: 0,0:00:01.00,0:00:04.00,Default,,어제 항구에 배가 들어왔다고 하던데?
Dialogue: 0,0:00:04.50,0:00:06.20,Default,,누가 그래?
"""

SUBRIP = """1
00:00:01,000 --> 00:00:04,000
어제 항구에 배가
들어왔다고 하던데?

2
00:00:04,500 --> 00:00:06,200
- 누가 그래?
- 어머니가요.
"""

WEBVTT = """WEBVTT

00:01.000 --> 00:04.000
어제 항구에 배가 들어왔다고 하던데?

00:04.500 --> 00:06.200
누가 그래?
"""

SAMI = """<SAMI>
<HEAD><TITLE>항구</TITLE></HEAD>
<BODY>
<SYNC Start=1000><P Class=KRCC>
어제 항구에 배가<br>들어왔다고 하던데?
<SYNC Start=4000><P Class=KRCC>&nbsp;
<SYNC Start=4500><P Class=KRCC>
누가 그래?
</BODY>
</SAMI>
"""


@pytest.mark.parametrize("text, reason", [
    (NAMU, "wiki_markup"), (MEDIAWIKI, "wiki_markup"), (ENGLISH_WIKI, "wiki_markup"),
    (FROM_A_COMPUTER, "chat_export"), (FROM_ANDROID, "chat_export"),
    (FROM_AN_IPHONE, "chat_export"), (FROM_A_TELEPHONE_IN_ENGLISH, "chat_export"),
    (A_TABLE_OF_A_CHAT, "chat_export"), (SUBSTATION, "subtitles"),
    (SUBRIP.replace(",000", ".0").replace("00:00:0", "0:00:0"), "subtitles"),
    ("[민지] [오후 3:12] 안녕", "chat_export"),
    (SUBRIP, "subtitles"), (WEBVTT, "subtitles"), (SAMI, "subtitles"),
])
def test_markup_is_named_in_every_profile(text, reason):
    for document in (text, text * 20, mask_personal_data(normalise_text(text)[0])[0]):
        for lang, profiles in LIMITS.items():
            for limits in profiles.values():
                kept, why = rules.check(document, limits, lang)
                assert kept is None and why.startswith(f"{reason}: ")


PROSE = korean(random.Random(1), 30)
FENCED = f"위키 문서는 이렇게 쓴다. {PROSE}\n```\n{{}}\n```\n`[[링크]]`와 `'''굵게'''`를 쓴다."


@pytest.mark.parametrize("text", [
    # an article with two links left
    f"{PROSE} [[바다]]에 사는 동물이다. {PROSE}\n[[분류:동물]]",
    # an article whose categories were left at its end
    korean(random.Random(2), 5) + "\n[[분류:동물]]\n[[분류:포유류]]\n[[분류:바다]]\n[[분류:고래]]",
    # documents about markup
    FENCED.format(NAMU * 9), FENCED.format(MEDIAWIKI * 9), FENCED.format(SUBRIP * 9),
    FENCED.format(FROM_A_COMPUTER * 9),
    FENCED.format(NAMU * 9).replace("```", "~~~"), FENCED.format(SUBRIP * 9).replace("```", "~~~"),
    # a report that quotes a chat and a subtitle
    "\n".join([PROSE] * 12 + ["[민지] [오후 3:12] 안녕", "00:00:01,000 --> 00:00:04,000"]),
    # Markdown's tables and links, and a statute's table
    f"{PROSE}\n\n| 이름 | 값 |\n|---|---|\n" + "| [고래](a.md) | a = 1 |\n" * 9,
    f"{PROSE}\n" + "||\n" * 3 + "│ 구분 │ 금액 │\n" * 9,
    # arrays, other template engines, C and shell outside a fence
    f"{PROSE} [[1, 2], [3, 4]] [[0.5, 0.1]] [[ -f a.txt ]] && {{{{ user.name }}}} {{{{ x }}}} "
    "if (a || b || c) { return; }",
    # a paragraph with dates, times and names
    f"2024년 1월 1일 오후 3:12 현재 기온은 영하 3도이다. {PROSE}\n진행 : 김민지\n{PROSE}\n"
    "장소 : 항구",
    # masked addresses in brackets
    "문의: [[이메일]] [[이메일]] [[이메일]] [[이메일]]",
])
def test_what_only_contains_some_of_it_is_text(text):
    assert markup.markup_of(without_code(text)) == ""
    for limits in LIMITS["ko"].values():
        name, _, _ = rules.check(text, limits)[1].partition(":")
        assert name not in ("wiki_markup", "chat_export", "subtitles")
