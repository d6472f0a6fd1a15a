"""What `data.py clean` saves for people to look at, and `data.py show`, which prints it."""
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentences import edited, korean

import data
from cleaning import differences, examples, pipeline, report, show, show_page
from cleaning.examples import Examples
from common import documents

# 'bold', 'quotation marks'
HOSTILE = "</script><script>alert(1)</script><!-- <b>굵게</b> & \"따옴표\" \\u003c"


def write(path: Path, records: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(
            (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records
        ),
        encoding="utf-8",
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path):
    """Two sources that contain every kind of decision."""
    rng = random.Random(7)
    wiki = [{"id": f"w{i}", "text": korean(rng, 12)} for i in range(60)]
    wiki[3]["text"] += " 전화 010-1234-5678."                            # a phone number,
    # Another, with an e-mail address.
    wiki[4]["text"] += " 전화 010-8765-4321, 메일 abc@example.com."
    wiki[5]["text"] += " \ue123 끝."                                     # a private character
    wiki += [{"id": f"short{i}", "text": f"짧다 {i}"} for i in range(30)]
    wiki += [{"id": f"same{i}", "text": "같은 글"} for i in range(30)]
    talk = [{"text": korean(rng, 12)} for _ in range(20)]
    talk += [{"id": "copy", "text": wiki[7]["text"]},
             {"id": "near", "text": edited(rng, wiki[8]["text"], 0.02)},
             {"id": "html", "text": HOSTILE}, "{broken", "[1]"]
    write(tmp_path / "raw" / "wiki.jsonl", wiki)
    write(tmp_path / "raw" / "talk.jsonl", talk)
    return tmp_path


def clean(corpus: Path, out: str = "out", *flags: str) -> Path:
    data.main(["clean", "--input", str(corpus / "raw"), "--out", str(corpus / out),
               "--profile", "formal", "--tails", "0", "0", *flags])
    return corpus / out


@pytest.fixture
def screen(capsys):
    """What `show` prints."""
    def printed(*argv) -> str:
        capsys.readouterr()
        data.main(["show", *map(str, argv)])
        return capsys.readouterr().out
    return printed


# ---- examples.jsonl -----------------------------------------------------------------------------


def test_examples_of_every_decision_with_their_texts(corpus):
    out = clean(corpus, "out", "--examples", "5")
    found = lines(out / "examples.jsonl")
    by_id = {(e.get("id"), e["step"]): e for e in found}
    kinds = {}
    for e in found:
        kinds.setdefault((Path(e["file"]).name, e["what"], e["step"], e["reason"]), []).append(e)
    assert set(kinds) >= {
        ("wiki.jsonl", "kept", "write", "kept"),
        ("talk.jsonl", "kept", "write", "kept"),
        ("wiki.jsonl", "removed", "rules", "too_short"),
        ("talk.jsonl", "rejected", "read", "broken JSON"),
        ("talk.jsonl", "rejected", "read", "no text field"),
        ("wiki.jsonl", "changed", "normalise", "private_use"),
        ("wiki.jsonl", "changed", "mask", "phone"),
        ("wiki.jsonl", "changed", "mask", "phone+email"),
    }
    assert {(step, reason) for _, _, step, reason in set(kinds)} == {
        (e["step"], e["reason"])
        for e in lines(out / "removed.jsonl")
        + lines(out / "changed.jsonl")
        + lines(out / "rejected.jsonl")
    } | {("write", "kept")}
    assert max(map(len, kinds.values())) == 5
    assert (
        by_id["w5", "normalise"]["before"].endswith(" \ue123 끝.")
        and "\ue123" not in by_id["w5", "normalise"]["text"]
    )
    copy, = [e for e in found if e["step"] == "exact"]
    assert {copy["id"], copy["duplicate_of"]} == {"copy", "w7"} and copy["stayed"] == copy["text"]
    near, = [e for e in found if e["step"] == "near"]
    assert {near["id"], near["duplicate_of"]} == {"near", "w8"} and near["stayed"] != near["text"]
    kept = {d.get("id"): d["text"] for d in lines(out / "wiki.jsonl")}
    assert all(kept[e["id"]] == e["text"] for e in kinds["wiki.jsonl", "kept", "write", "kept"])


def test_the_step_mask_writes_nothing_that_it_masked(corpus):
    out = clean(corpus)
    text = (out / "examples.jsonl").read_text(encoding="utf-8")
    assert "전화 [전화번호], 메일 [이메일]" in text
    assert not re.search(
        "010-|example.com", text + (out / "report.json").read_text(encoding="utf-8")
    )
    assert not [e for e in lines(out / "examples.jsonl") if e["step"] == "mask" and "before" in e]


def test_one_text_is_one_example_and_the_number_is_a_flag(corpus):
    found = [
        e
        for e in lines(clean(corpus) / "examples.jsonl")
        if e["reason"] == "too_short" and "wiki" in e["file"]
    ]
    assert len(found) == 20 == len({e["text"] for e in found})
    many = [e for e in lines(clean(corpus, "many", "--examples", "100") / "examples.jsonl")
            if e["reason"] == "too_short" and "wiki" in e["file"]]
    # The first of thirty.
    assert len(many) == 31 and [e["line"] for e in many if e["text"] == "같은 글"] == [91]
    assert many[:20] == found
    none = clean(corpus, "none", "--examples", "0")
    assert (none / "examples.jsonl").read_bytes() == b""
    assert json.loads((none / "report.json").read_text())["examples"] == {}


def test_a_sample_that_does_not_depend_on_the_order(corpus):
    first = [
        e["text"]
        for e in lines(clean(corpus, "out", "--examples", "4") / "examples.jsonl")
        if e["step"] == "rules"
    ]
    write(corpus / "raw" / "wiki.jsonl", lines(corpus / "raw" / "wiki.jsonl")[::-1])
    assert first == [
        e["text"]
        for e in lines(clean(corpus, "again", "--examples", "4") / "examples.jsonl")
        if e["step"] == "rules"
    ]


def test_same_bytes_for_any_workers_and_when_resumed(corpus, monkeypatch):
    monkeypatch.setattr(documents, "UNIT", 2_000)
    whole = clean(corpus, "whole", "--examples", "3")
    monkeypatch.setattr(pipeline, "last_pass", None)
    with pytest.raises(TypeError):
        clean(corpus, "out", "--examples", "3")
    monkeypatch.undo()
    resumed = clean(corpus, "out", "--examples", "3")
    subprocess.run([sys.executable, data.__file__, "clean", "--input", "raw", "--out", "two",
                    "--profile", "formal", "--tails", "0", "0", "--examples", "3",
                    "--workers", "2"], cwd=corpus, check=True, capture_output=True)
    expected = (whole / "examples.jsonl").read_bytes()
    assert expected == (resumed / "examples.jsonl").read_bytes() and expected.count(b"\n") > 15
    assert (corpus / "two" / "examples.jsonl").read_bytes() == expected.replace(
        f"{corpus}/".encode(), b""
    )


def test_no_task_holds_more_than_its_examples(monkeypatch):
    """The hash decides before a text is looked at."""
    cut = []
    monkeypatch.setattr(examples, "excerpts", lambda texts, step: cut.append(1) or texts)
    kept = Examples(5)
    for i in range(3_000):
        kept.offer(
            {"file": "a", "line": i, "step": "rules", "reason": "symbols"}, {"text": f"text {i}"}
        )
    assert [len(group) for group in kept.groups.values()] == [5] and len(cut) < 200


def test_many_sources_have_their_examples_together(corpus):
    rng = random.Random(3)
    for i in range(30):
        write(corpus / "raw" / f"{i}.jsonl", [{"text": korean(rng, 9)}])
    found = lines(clean(corpus) / "examples.jsonl")
    assert len([e for e in found if e["what"] == "kept"]) == 20
    assert len({e["file"] for e in found if e["what"] == "kept"}) > 3


def test_long_texts_are_cut_and_a_change_is_seen():
    rng = random.Random(1)
    same = korean(rng, 20_000)
    cut = examples.excerpts(
        {"text": same + "바다" + same, "before": same + "바다()" + same}, "leftovers"
    )
    start = len(same) - examples.IN_FRONT + 2
    assert cut["cut"] == {"text": [start, start + 10_000, len(same) * 2 + 2],
                          "before": [start, start + 10_000, len(same) * 2 + 4]}
    pieces = differences.pieces_of({"step": "leftovers", **cut})
    # Not what stands at the end of one of them.
    assert [piece for piece in pieces if piece[0] != "="] == [("-", "()")]
    assert "".join(text for mark, text in pieces if mark != "-").startswith(same[-298:] + "바다")
    mask = examples.excerpts({"text": "전화 [전화번호]", "before": "전화 010-1234-5678"}, "mask")
    assert mask == {"text": "전화 [전화번호]"}


# ---- Beside the documents -----------------------------------------------------------------------


def test_pack_and_folders_pass_over_examples(corpus):
    out = clean(corpus)
    names = ["talk.jsonl", "wiki.jsonl"]
    assert [path.name for path in documents.files(out)] == names and documents.left_out(out) == []
    (out / "examples.jsonl").unlink()  # to save space
    assert [path.name for path in documents.files(out)] == names and documents.left_out(out) == []


def test_an_input_named_examples_jsonl(tmp_path):
    write(tmp_path / "examples.jsonl", [{"text": korean(random.Random(), 9)}])
    data.main(
        ["clean", "--input", str(tmp_path / "examples.jsonl"), "--out", str(tmp_path / "out")]
    )
    assert len(lines(tmp_path / "out" / "examples-2.jsonl")) == 1
    assert [e["what"] for e in lines(tmp_path / "out" / "examples.jsonl")] == ["kept"]


def test_a_large_document_that_was_removed_has_a_line(tmp_path, capsys):
    rng = random.Random(5)
    # 'says the same again and again'
    long = korean(rng, 3) + " " + "같은 말을 또 하고 또 한다. " * 1_500
    texts = [korean(rng, 12) for _ in range(150)]
    write(tmp_path / "raw" / "wiki.jsonl", [{"text": text} for text in [*texts, long]])
    # Too few documents.
    write(tmp_path / "raw" / "few.jsonl", [{"text": text} for text in [*texts[:9], long + "또."]])
    data.main(["clean", "--input", str(tmp_path / "raw"), "--out", str(tmp_path / "out"),
               "--profile", "formal", "--tails", "0", "0"])
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    large, = result["large_removed"]
    assert (large["line"], large["step"], large["bytes"]) == (
        151,
        "rules",
        len(long.strip().encode()),
    )
    assert large["share"] == pytest.approx(
        large["bytes"] / result["sources"][large["file"]]["bytes_in"], abs=1e-4
    )
    assert re.search(
        r"    wiki.jsonl:151 \(0.1 MB, \d\d.\d% of its source\) was removed: rules, repeated_",
        capsys.readouterr().out,
    )


def test_the_lines_of_large_documents():
    tally = report.Tally(open("/dev/null", "w"))
    tally.came_in("a/wiki.jsonl", "read", 10_000_000, 1_000)
    for line, n_bytes in enumerate([1, 2_100_000, 600_000, 499_999, 3, 500_000, 5, 700_000]):
        reason = "too_surprising: 6.12 bits per character > 5.3"
        tally.record(report.REMOVED, "perplexity", reason, {"file": "a/wiki.jsonl", "line": line},
                     {"text": "a" * n_bytes})
    found = report.large_removed(tally, ["a/wiki.jsonl"])
    assert [record["line"] for record in found] == [1, 7, 2, 5]
    assert report.large_rows(found)[2] == (
        "    wiki.jsonl:1 (2.1 MB, 21.0% of its source) was removed: perplexity, "
        "too_surprising: 6.12 bits per character > 5.3"
    )
    assert report.large_rows([]) == []


# ---- On the screen ------------------------------------------------------------------------------


def test_without_a_filter_a_table_of_what_there_is(corpus, screen):
    out = clean(corpus)
    table = screen(out)
    assert re.search(r"wiki.jsonl +kept +\d+ +20\n", table)
    assert re.search(r"removed +rules +too_short +60 +20\n", table)
    assert re.search(r"changed +mask +phone\+email +1 +1\n", table)
    assert re.search(r"talk.jsonl +kept", table) and re.search(
        r"rejected +read +broken JSON +1 +1\n", table
    )
    assert f"python data.py show {out} --html" in table


def test_documents_with_heading_and_text(corpus, screen, monkeypatch):
    out = clean(corpus)
    found = lines(out / "examples.jsonl")
    for e in found:
        if e["reason"] == "too_short":
            e["measured"] = "3 characters < 50"
    write(out / "examples.jsonl", found)
    shown = screen(out, "--reason", "too_short", "--source", "wiki", "-n", "2")
    assert re.match(r"removed  rules: too_short  \(3 characters < 50\)  wiki.jsonl:\d+  id \w+\n"
                    r"    .+\n\nremoved", shown)
    assert shown.endswith("2 of 60 documents; -n shows more, up to the 20 that the run saved as "
                          "examples\n")
    shown = screen(out, "--reason", "too_short", "--source", "wiki.jsonl", "-n", "50")
    assert shown.endswith("20 of 60 documents; the run saved 20 of them as examples: "
                          "data.py clean --examples N saves more\n")
    assert screen(out, "--what", "kept").count("kept  ") == 20 and screen(
        out, "--reason", "kept", "-n", "1"
    ).startswith("kept  ")
    assert "\x1b" not in shown


def test_one_of_several_kinds_is_found(corpus, screen):
    out = clean(corpus)
    assert screen(out, "--reason", "phone").count("changed  mask: phone") == 2
    shown = screen(out, "--reason", "email")
    assert (
        "changed  mask: phone+email  wiki.jsonl:5  id w4" in shown and "메일 {+[이메일]+}." in shown
    )


def test_some_of_every_kind_come_first(corpus, screen):
    shown = screen(clean(corpus), "-n", "14")
    headings = [line.split("  ")[:2] for line in shown.split("\n") if line and line[0] != " "]
    assert {"rules: too_short", "mask: phone", "exact: exact_duplicate", "read: broken JSON"} <= {
        h[-1] for h in headings
    }


def test_what_is_different_is_marked(corpus, screen, monkeypatch):
    out = clean(corpus)
    shown = screen(out, "--step", "normalise")
    assert "[-\ue123-] 끝." in shown
    near = screen(out, "--step", "near")
    assert re.search("kept instead: (w8|near)\n", near)
    assert re.search(r"\[-.*-\]|\{\+.*\+\}", near)
    exact = screen(out, "--step", "exact")
    assert re.search("kept instead: (w7|copy)\n    [가-힣]", exact)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "{+" not in screen(out, "--step", "mask") and "\x1b[30;42m[전화번호]\x1b[0m" in screen(
        out, "--step", "mask"
    )


@pytest.mark.parametrize("before, after, expected", [
    ("바다()는", "바다는", "바다[-()-]는"),
    ("하나.\n메뉴\n둘.", "하나.\n둘.", "하나.↵[-메뉴↵-]둘."),
    ("끝", "끝.", "끝{+.+}"),
    ("앞 " * 50 + "가" + " 뒤" * 50, "앞 " * 50 + "나" + " 뒤" * 50,
     "..." + "앞 " * 20 + "[-가-]{+나+}" + " 뒤" * 20 + "..."),
])
def test_places_of_changes(before, after, expected):
    pieces = differences.differences(before, after)
    assert "".join(text for mark, text in pieces if mark != "+") == before
    assert "".join(text for mark, text in pieces if mark != "-") == after
    place, = show.places_of(pieces, lambda mark, text: show.painted(mark, text, False))
    assert place == expected


def test_differences_of_long_texts_take_no_minute():
    for a, b in (
        ("ㅋ " * 5_000, "ㅋ" * 10_000),
        ("가 나\n" * 2_500, "나 가\n" * 2_500),
        ("a" * 10_000, "b " * 5_000),
    ):
        pieces = differences.differences(a, b)
        assert "".join(text for mark, text in pieces if mark != "+") == a


def test_long_texts_are_shortened_unless_asked_for(corpus, screen):
    rng = random.Random(2)
    text = " ".join(korean(rng, 9) for _ in range(400))
    write(corpus / "raw" / "wiki.jsonl", [{"id": "long", "text": text}])
    out = clean(corpus)
    shown = screen(out, "--source", "wiki", "--what", "kept")
    assert len(shown) < 1_500 and f"... {len(text):,} characters in total" in shown
    whole = screen(out, "--source", "wiki", "--what", "kept", "--whole")
    assert text[:10_000] in whole and f"(part of a text of {len(text):,} characters)" in whole


def test_control_characters_are_spelled_out():
    example = {"what": "rejected", "step": "read", "reason": "broken JSON",
               "text": "a\x1b[2Jb\x9bc\u202ed"}
    assert show.rows_of(example, 80, False, False) == ["a\\x1b[2Jb\\x9bc\\u202ed"]
    assert show.rows_of(example, 80, True, False) == ["a\\x1b[2Jb\\x9bc\\u202ed"]


def test_a_pipe_to_head_ends_it_quietly(corpus):
    out = clean(corpus, "out", "--examples", "100")
    done = subprocess.run(
        f"{sys.executable} {data.__file__} show {out} -n 500 --whole | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize("flags, message", [
    (["--reason", "too_shrot"], "--reason too_shrot: the reasons are kept, "),
    (["--source", "wikki"], "--source wikki: the sources are talk.jsonl, wiki.jsonl"),
    (["--step", "lines"], "--step lines: the steps with something to show are write, "),
    (["--reason", "too_short", "--what", "kept"],
     "no document matches --reason too_short --what kept"),
    (["-n", "0"], "-n 0 is not at least 1"),
    (["--html", "report.json"], "--html report.json: the name of the page must end with .html"),
])
def test_filters_that_match_nothing(corpus, refused, flags, message):
    refused(data, ["show", str(clean(corpus)), *flags], message)


def test_folders_without_examples(corpus, refused, tmp_path):
    refused(
        data,
        ["show", str(tmp_path / "raw")],
        "holds no report.json; name a folder that data.py clean has written",
    )
    out = clean(corpus, "out", "--examples", "0")
    empty = "is empty; data.py clean saves documents to show with --examples N"
    refused(data, ["show", str(out)], empty)
    (out / "examples.jsonl").write_text('{"a": 1}\n')
    refused(
        data,
        ["show", str(out)],
        "examples.jsonl does not belong to the report.json beside it; clean again",
    )
    (out / "examples.jsonl").unlink()
    refused(data, ["show", str(out)], "examples.jsonl is missing: it was deleted, or")
    for other in ("[]", '{"passed": 3}', '{"sources": ["a"]}'):
        (out / "report.json").write_text(other)
        refused(data, ["show", str(out)], "report.json is not a report that data.py clean wrote")
    flags = ["--input", str(corpus / "raw"), "--out", "x", "--examples", "-1"]
    refused(data, ["clean", *flags], "--examples -1: give 0 (for none) or more")


# ---- As a page ----------------------------------------------------------------------------------


def data_of(page: str) -> dict:
    """The data that a browser would find in the page."""
    content = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "<" not in content
    return json.loads(content)


def test_a_page_holds_the_documents_as_they_are(corpus, screen):
    out = clean(corpus)
    assert "open it in a browser" in screen(out, "--html", corpus / "page.html")
    page = (corpus / "page.html").read_text(encoding="utf-8")
    found = data_of(page)
    assert len(found["documents"]) == len(lines(out / "examples.jsonl"))
    hostile, = [row for row in found["documents"] if row.get("id") == "html"]
    text, = [e["text"] for e in lines(out / "examples.jsonl") if e.get("id") == "html"]
    assert (
        "".join(piece for _, piece in hostile["pieces"]) == text and "</script>" in text + HOSTILE
    )
    result = json.loads((out / "report.json").read_text())
    assert f"<title>out: {result['input']['documents']} documents" in page
    assert (
        sum(row["documents"] for row in found["counts"] if row["what"] == "kept")
        == result["output"]["documents"]
    )
    assert not re.search(r"(src|href)=.http|@import|url\(", page)  # nothing from anywhere else


def test_a_text_cannot_break_out_of_its_place_in_the_page():
    script = show_page.as_script({"text": HOSTILE})
    assert "<" not in script and json.loads(script) == {"text": HOSTILE}


def test_a_page_of_what_was_asked_for(corpus, screen):
    out = clean(corpus)
    screen(out, "--html", corpus / "page.html", "--what", "changed", "-n", "2")
    rows = data_of((corpus / "page.html").read_text(encoding="utf-8"))["documents"]
    assert [row["what"] for row in rows] == ["changed", "changed"]
    assert ["+", "[전화번호]"] in rows[-1]["pieces"]
    # Kept ones stay beside them.
    screen(out, "--html", corpus / "page.html", "--reason", "phone", "--source", "wiki")
    found = data_of((corpus / "page.html").read_text(encoding="utf-8"))
    assert {row["reason"] for row in found["documents"]} == {"kept", "phone", "phone+email"}
    assert {row["reason"] for row in found["counts"]} == {"kept", "phone", "phone+email"}


def test_a_page_is_not_too_large(corpus, screen, monkeypatch):
    rng = random.Random(2)
    write(corpus / "raw" / "wiki.jsonl", [{"text": korean(rng, 200)} for _ in range(10)])
    out = clean(corpus)
    monkeypatch.setattr(show_page, "PAGE_BYTES", 40_000)
    screen(out, "--html", corpus / "page.html")
    page = (corpus / "page.html").read_text(encoding="utf-8")
    found = data_of(page)
    assert len(page.encode()) < 100_000 and "texts are cut after" in found["notes"][0]
    assert max(sum(len(text) for _, text in row["pieces"]) for row in found["documents"]) <= 1_000
    monkeypatch.setattr(show_page, "PAGE_BYTES", 5_000)
    screen(out, "--html", corpus / "page.html")
    found = data_of((corpus / "page.html").read_text(encoding="utf-8"))
    assert "examples are left out" in found["notes"][1] and 3 < len(found["documents"]) < 30


def test_examples_of_steps_before_mask_are_masked_too(tmp_path):
    """A private-use character, which normalise drops; a line that is not a document."""
    source = tmp_path / "in" / "a.jsonl"
    source.parent.mkdir()
    text = "\ue123 고래는 바다에 산다. 전화는 010-2345-6789이다."
    source.write_text(json.dumps({"text": text}) + "\n010-3333-4444\n", encoding="utf-8")
    for steps, is_masked in ((["normalise", "mask"], True), (["normalise"], False)):
        out = tmp_path / f"out{len(steps)}"
        data.main(["clean", "--input", str(source), "--out", str(out), "--steps", *steps])
        written = [
            (out / name).read_text(encoding="utf-8") for name in ("examples.jsonl", "report.json")
        ]
        assert "private_use" in written[0]
        for each in written:
            assert ("010-2345-6789" in each) != is_masked
            assert ("010-3333-4444" in each) != is_masked
