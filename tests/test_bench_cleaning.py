"""bench/cleaning.py: what it counts as dirt, on made-up documents."""
import json

import pytest

from bench import cleaning, measure


@pytest.mark.parametrize("kind, dirty", [
    ("empty brackets", "새말시()는 도시이다."),
    ("empty brackets", "한빛 대학교( )의 연혁"),
    ("separator at a bracket", "새말시(, )는 도시이다."),
    ("separator at a bracket", "새말시(, 1901년 ~ 1950년)는"),
    ("separator at a bracket", "《새말》(Saemal, )은"),
    ("separator at a bracket", "새말(한자: )은"),
    ("formula_N", "여기서 formula_12는 길이이다."),
    ("codice_N", "명령 codice_3은"),
    ("[[분류:, [[파일:", "각주.\n[[분류:새말의 강]]"),
    ("[[분류:, [[파일:", "[[File:a.png|thumb]]"),
    ("YAML front matter", "---\n사건번호: 1\n---\n\n# 판결"),
    ("tab-separated header", "잡지\t새말\n날짜\t1920년\n\n첫 글"),
    ("tab-separated header", "잡지\t새말\n날짜\n필자\t김\n\n첫 글"),
    ("page mark ＜44＞", "글이 끝났다.＜44＞"),
    ("Apache licence", "#@title Licensed under the Apache License, Version 2.0"),
    ("double bars, colspan", "가 || 12 || 1988"),
    ("double bars, colspan", '! colspan="9" | 선수'),
    ("<table> or </table> alone", "<td>가</td></table>"),
    ("<table> or </table> alone", '<table class="a">\n\n표'),
])
def test_dirt_is_counted(kind, dirty):
    found = {kind: number for kind, number in cleaning.dirt_of(dirty).items() if number}
    assert found == {kind: 1}


@pytest.mark.parametrize("clean", [
    "새말시(Saemal)는, 그리고 (가, 나)는 x = f(784,) 또는 f()이다 :) 좋아요 (정말;;) ^^",
    "가 < 44 > 나, 〈8282〉, 1920~1930, a || b, -- 끝\n---\n둘째: 절",
    "이름\t값 하나뿐인 첫 줄\n그리고 긴 두 번째 줄이 이어진다.\t탭",
    '<table><tr><th colspan="3">가</th></tr></table>',
])
def test_clean_text_is_not_dirt(clean):
    assert set(cleaning.dirt_of(clean).values()) == {0}


def test_raw_and_cleaned_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    texts = ["새말시()는 도시()이다.", "한빛시()는", "깨끗한 글이다."]
    for folder, some in (("raw", texts), ("clean", texts[1:])):
        (tmp_path / folder).mkdir()
        lines = [json.dumps({"text": text}) + "\n" for text in some]
        (tmp_path / folder / "wiki.jsonl").write_text("".join(lines))
    (tmp_path / "clean" / "removed.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n")

    cleaning.main(["dirt", "--input", str(tmp_path / "raw"), "--clean", str(tmp_path / "clean")])
    result = json.loads((tmp_path / "results/cleaning-dirt.json").read_text())
    counts = {"raw: documents": 2, "raw: number": 3, "clean: documents": 1, "clean: number": 1}
    assert result["rows"] == [
        {"source": source, "dirt": "empty brackets", **counts} for source in ("all", "wiki.jsonl")
    ]
    assert result["conditions"]["documents"] == {
        "raw": {"wiki.jsonl": 3},
        "clean": {"wiki.jsonl": 2},
    }
