"""Every kind of file that people have is read completely or named; parts of a file have every line
once."""
import bz2
import codecs
import gzip
import json
import lzma
import random
import re
import sys
import tracemalloc
from pathlib import Path

import pytest

from common import cli, dialogues, documents
from common.documents import Reading, files, read_documents, read_span, spans, units

# 'The first text'; 'the second text, a comma and "quotes"'; 'two lines'.
TEXTS = ["첫째 글입니다.", "둘째 글, 쉼표와 \"따옴표\"", "third 😀\n두 줄"]
# 'The sea was wide and the sky high. The ship left the harbour.'
NOVEL = "바다는 넓고 하늘은 높았다. 배는 항구를 떠났다.\n" * 400


def found(path, reading=documents.PLAIN, wanted=None) -> list[dict]:
    return list(read_documents(path, reading, wanted=wanted))


def outcomes(path: Path, reading=documents.PLAIN) -> list[tuple[int, str, str]]:
    """(number, text or "", reason) for everything in one file."""
    rows = []
    for span in spans(path, reading):
        for number, document, reason, _ in read_span(span, reading):
            text = document["text"] if document else ""
            rows.append((number, text, reason))
    return rows


def rows(texts: list[str]) -> list[dict]:
    return [{"id": i, "text": text} for i, text in enumerate(texts)]


def json_lines(texts: list[str]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(texts))


def zst(raw: bytes) -> bytes:
    """Compressed, in two frames."""
    try:
        from compression.zstd import compress
    except ImportError:
        compress = pytest.importorskip("zstandard").compress
    return compress(raw[:50]) + compress(raw[50:])


def gz(raw: bytes) -> bytes:
    """Compressed, in two members."""
    return gzip.compress(raw[:50]) + gzip.compress(raw[50:])


COMPRESS = {"": bytes, ".gz": gz, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


def write_parquet(path: Path, columns: dict) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


# ----------------------------------------------------------------------------------- kinds of files

@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".JSONL", ".json", ".Json"])
def test_json_lines_under_any_name(tmp_path, kind, compression):
    for suffix in {compression, compression.upper()}:
        path = tmp_path / f"a{kind}{suffix}"
        path.write_bytes(COMPRESS[compression](json_lines(TEXTS).encode()))
        assert files([tmp_path]) == [path] == files([path])
        assert found(tmp_path) == found(path) == rows(TEXTS)
        path.unlink()


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_text_file_is_a_document_and_with_lines_each_line_is(tmp_path, compression):
    path = tmp_path / f"a.TXT{compression}"
    # The first line, the second line.
    path.write_bytes(COMPRESS[compression]("첫 줄\r\n\n  \n둘째 줄".encode()))
    assert found(path) == [{"text": "첫 줄\r\n\n  \n둘째 줄"}]
    assert outcomes(path, Reading(one_per_line=True)) == [(1, "첫 줄", ""), (4, "둘째 줄", "")]


def test_a_folder_of_all_kinds(tmp_path):
    """Eight files, one document each."""
    def line(text: str) -> bytes:
        return json.dumps({"text": text}).encode()

    contents = {"1.jsonl": line("1"), "2.JSONL": line("2"), "3.json.gz": gzip.compress(line("3")),
                "4.jsonl.zst": None, "5.parquet": None, "6.json": line("6"),
                "7.txt.gz": gzip.compress(b"7"), "8.jsonl.xz": lzma.compress(line("8"))}
    contents["4.jsonl.zst"] = zst(line("4"))
    write_parquet(tmp_path / "5.parquet", {"text": ["5"]})
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    assert [document["text"] for document in found(tmp_path)] == list("12345678")


@pytest.mark.parametrize("text", [
    json.dumps(rows(TEXTS)),
    "\n\n " + json.dumps(rows(TEXTS), ensure_ascii=False, indent=2) + "\n",
    "[\n" + ",\n".join(json.dumps(row) for row in rows(TEXTS)) + "\n]",
    "\n".join(json.dumps(row, indent=1) for row in rows(TEXTS)),   # as jq prints them
    json_lines(TEXTS),
    "\n\n" + "\n\n".join(json.dumps(row) for row in rows(TEXTS)),
])
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_json_is_lines_or_an_array_or_objects_over_several_lines(tmp_path, text, compression):
    path = tmp_path / f"a.json{compression}"
    path.write_bytes(COMPRESS[compression](text.encode()))
    assert found(path) == rows(TEXTS)


def test_a_single_object_on_one_line_or_on_several(tmp_path):
    path = tmp_path / "a.json"
    for text in (
        '{\n "text": "가나다"\n}\n',
        '{ "id": 1,\n  "text": "가나다" }',
        '{"text": "가나다"}',
    ):
        path.write_text(text)
        assert [document["text"] for document in found(path)] == ["가나다"]


def test_a_long_line_of_json_is_not_an_object_of_several_lines(tmp_path):
    """The first bytes of the file may end anywhere in it, after a comma for example."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"text": "," * 200_000}) + "\n" + json.dumps({"text": "둘째"}))
    assert [row[2] for row in outcomes(path)] == ["", ""]


def test_an_array_that_breaks_off_gives_what_comes_before(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows(TEXTS), ensure_ascii=False)[:-10])
    assert outcomes(path) == [(1, TEXTS[0], ""), (2, TEXTS[1], ""), (3, "", "broken JSON")]


def test_an_array_too_long_to_be_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ARRAY", 1_000_000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a" * 1_000_000}]))
    assert outcomes(path) == [(1, "", "an array longer than 1 MB; convert it to JSON lines")]


def test_parquet(tmp_path):
    path = tmp_path / "a.PARQUET"
    pictures = [b"\xff\xd8", b"", b"\x00"]
    bodies = [{"body": text, "length": 3} for text in TEXTS]
    write_parquet(path,
                  {"id": [0, 1, 2], "content": [TEXTS[0], None, TEXTS[2]], "picture": pictures,
                   "page": bodies})
    assert found(path, Reading(text_field="content")) == [
        {"id": 0, "text": TEXTS[0]},
        {"id": 2, "text": TEXTS[2]},
    ]
    assert outcomes(path, Reading(text_field="content"))[1] == (2, "", "no content field")
    assert [document["text"] for document in found(path, Reading(text_field="page.body"))] == TEXTS
    assert outcomes(path) == [(1, "", "no text field")]  # once for the file, not for each row
    path.write_bytes(path.read_bytes()[:-20])
    assert outcomes(path) == [(1, "", "broken parquet")]


def test_parquet_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROWS", 2)
    path = tmp_path / "a.parquet"
    texts = [f"{i} 번째 글" for i in range(11)]  # text number i
    write_parquet(path, {"text": texts})
    assert outcomes(path) == [(i + 1, text, "") for i, text in enumerate(texts)]


def test_parquet_with_bytes_that_are_not_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    broken = pyarrow.array(["가나".encode(), b"\xb0\xa1\xb3\xaa", "다라".encode()])
    write_parquet(tmp_path / "a.parquet", {"text": broken.view(pyarrow.string())})
    assert outcomes(tmp_path / "a.parquet") == [
        (1, "가나", ""),
        (2, "", "not utf-8"),
        (3, "다라", ""),
    ]


WIKI = """<doc id="5" url="https://ko.wikipedia.org/wiki?curid=5" title="바다">
바다

바다는 "넓다".

</doc>
<doc id="9" revid="77" url="https://ko.wikipedia.org/wiki?curid=9" title=""큰" 하늘">
"큰" 하늘

</doc>

<doc id="10" url="u" title="빈 글">
</doc>
"""  # sea; the sea is wide; the "big" sky; an empty article


@pytest.mark.parametrize("name",
                         ["AA/wiki_00", "AB/wiki_123.bz2", "ko.txt", "ko.txt.gz", "ko_utf16.txt"])
def test_blocks_of_wikiextractor(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    encoding = "utf-16" if "utf16" in name else "utf-8"
    compress = COMPRESS.get(path.suffix, bytes)
    path.write_bytes(compress(WIKI.encode(encoding)))
    sea = {"id": "5", "url": "https://ko.wikipedia.org/wiki?curid=5", "title": "바다",
           "text": '바다\n\n바다는 "넓다".'}
    sky = {"id": "9", "url": "https://ko.wikipedia.org/wiki?curid=9", "title": '"큰" 하늘',
           "text": '"큰" 하늘'}
    assert found(tmp_path) == [sea, sky]
    assert found(tmp_path, Reading(text_field="body", one_per_line=True)) == [sea, sky]
    assert [(number, reason) for number, _, reason in outcomes(path)] == [
        (1, ""),
        (7, ""),
        (12, "empty text"),
    ]


def test_incomplete_blocks(tmp_path):
    block = '<doc id="1" url="u" title="t">\n글\n'
    path = tmp_path / "wiki_00"
    # Text outside; a second line.
    path.write_text(f"{block}{block}</doc>\n밖의 글\n둘째 줄\n{block}</doc>\n{block}")
    assert outcomes(path, Reading("cp949"))[0] == (1, "", "not cp949")
    assert outcomes(path) == [(1, "", "broken <doc>"), (3, "글", ""), (6, "", "broken <doc>"),
                              (8, "글", ""),
                              (11, "", "broken <doc>")]


def test_wikiextractor_with_json_output(tmp_path):
    (tmp_path / "wiki_00").write_text(json_lines(TEXTS))
    assert found(tmp_path) == rows(TEXTS)


# ------------------------------------------------------------------------------------------- fields

def test_the_text_comes_from_any_field_and_does_not_stay_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "content": "글", "text": "다른 글"}\n{"page": {"body": "글", '
                    '"year": 1931}, "text": 3}\n')
    assert found(path, Reading(text_field="content")) == [{"id": 1, "text": "글"}]
    assert found(path, Reading(text_field="page.body")) == [{"page": {"year": 1931}, "text": "글"}]
    assert [row[2] for row in outcomes(path, Reading(text_field="page.body"))] == [
        "no page.body field",
        "",
    ]
    assert [row[2] for row in outcomes(path)] == ["", "no text field"]


def test_a_text_file_has_its_text_whatever_the_field(tmp_path):
    (tmp_path / "a.txt").write_text("글")
    assert found(tmp_path, Reading(text_field="content")) == [{"text": "글"}]


def test_prompts_and_responses_stay_where_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "물음", "a": {"b": "답"}}\n{"q": "물음"}\n')  # a question, an answer
    wanted = dialogues.wanted_fields(["q"], "a.b")
    assert found(path, wanted=wanted) == [{"q": "물음", "a": {"b": "답"}}]


@pytest.mark.parametrize("line, reason", [
    ("{", "broken JSON"), ("[" * 100_000, "broken JSON"), ("[1]", "no text field"),
    ("null", "no text field"),
    ("0", "no text field"), ('{"text": null}', "no text field"),
    ('{"text": " \\n\\u3000"}', "empty text"),
    ('{"text": "\\ud83d"}', "lone surrogate"), ('{"text": "a", "\\uDE00": 1}', "lone surrogate"),
    ('{"text": "\\ud83d\\ude00"}', ""),
])
@pytest.mark.parametrize("form", ["{}\n", "[{}]"])
def test_lines_that_are_not_documents(tmp_path, line, reason, form):
    path = tmp_path / "a.json"
    path.write_text('{"text": "글"}\n\n' + line + "\n")
    assert outcomes(path) == [(1, "글", ""), (3, "" if reason else "😀", reason)]
    path.write_text('[{"text": "글"}, ' + line)
    if line != "[1]" and line[:2] != "[[":  # brackets between the objects of an array do not count
        assert outcomes(path) == [(1, "글", ""), (2, "" if reason else "😀", reason)]


def test_what_was_rejected_is_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"a": "' + "가".encode() * 200 + b'"}\n{"text": "' + "가나".encode("cp949") + b'"}\n'
    )
    span, = spans(path, documents.PLAIN)
    first, second = (row[3] for row in read_span(span))
    assert first == '{"a": "' + "가" * 93 and second == r'{"text": "\xb0\xa1\xb3\xaa"}' + "\n"


# ---------------------------------------------------------------------------------------- encodings

@pytest.mark.parametrize("encoding, bom", [
    ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE),
    ("utf-8", codecs.BOM_UTF8)])
@pytest.mark.parametrize("flag", ["utf-8", "cp949"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, monkeypatch, encoding, bom, flag):
    monkeypatch.setattr(documents, "UNIT", 100)
    texts = [*TEXTS, "\u0a0a ਊ \u010a", "끝"]  # characters with a byte 10 in them
    names = {"a.jsonl": json_lines(texts), "b.json": json.dumps(rows(texts), ensure_ascii=False),
             "c.json": json_lines(texts), "d.jsonl.gz": json_lines(texts)}
    for name, text in names.items():
        path = tmp_path / name
        path.write_bytes(
            COMPRESS[path.suffix if path.suffix == ".gz" else ""](bom + text.encode(encoding))
        )
        assert [row[1:] for row in outcomes(path, Reading(flag))] == [(text, "") for text in texts]
        n_spans = len(list(spans(path, Reading(flag))))
        assert n_spans == 1 or (encoding == "utf-8" and name in ("a.jsonl", "c.json"))
    (tmp_path / "e.txt").write_bytes(bom + "가나\n다라".encode(encoding))
    assert found(tmp_path / "e.txt", Reading(flag)) == [{"text": "가나\n다라"}]
    assert [row[:2] for row in outcomes(tmp_path / "e.txt", Reading(flag, one_per_line=True))] == [
        (1, "가나"),
        (2, "다라"),
    ]


def test_a_file_of_utf_16_that_breaks_off(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        "\n".join(['{"text": "가나다라 마바사 아자차카 타파하"}', '{"text": "나'] * 1).encode(
            "utf-16"
        )[:-1]
    )
    assert [row[2] for row in outcomes(path)] == ["", "not utf-16"]


@pytest.mark.parametrize("encoding, n", [("utf-8", 10), ("cp949", 5)])
def test_a_few_broken_bytes_do_not_lose_a_novel(tmp_path, encoding, n):
    """In CP949 a wrong byte can take the rest of its word with it, up to another broken place."""
    path = tmp_path / "novel.txt"
    raw = bytearray(NOVEL.encode(encoding))
    for place in range(1_000, 1_000 + n * 1_000, 1_000):
        raw[place] = 0xff
    path.write_bytes(raw)
    (_, text, reason), = outcomes(path, Reading(encoding))
    assert (
        reason == "broken_bytes"
        and n <= text.count("\ufffd") <= 3 * n
        and text[:100] == NOVEL[:100]
    )
    repaired = []
    list(read_documents(path, Reading(encoding), repaired=repaired.append))
    assert repaired == [{"file": str(path), "line": 1, "reason": "broken_bytes"}]
    for place in range(7_000, 15_000, 500):
        raw[place] = 0xff
    path.write_bytes(raw)
    assert outcomes(path, Reading(encoding)) == [(1, "", f"not {encoding}")]


@pytest.mark.parametrize("length, reason", [(80, "not utf-8"), (100, "broken_bytes")])
def test_at_most_one_character_in_a_hundred_may_be_broken(tmp_path, length, reason):
    for name in ("a.txt", "a.jsonl", "b.json"):
        line = b"x" * (length - 1) + b"\xff"
        if name == "a.jsonl":
            line = b'{"text": "' + line[12:] + b'"}'
        if name == "b.json":
            line = b'[{"text": "' + line[12:] + b'"}]'
        (tmp_path / name).write_bytes(line)
        assert [row[2] for row in outcomes(tmp_path / name)] == [reason]


@pytest.mark.parametrize("form", ["lines", "array", "one per line", "whole"])
def test_another_encoding_is_not_a_few_broken_bytes(tmp_path, form):
    """Short Korean in CP949, read as UTF-8: few bytes per line are broken, but all lines are."""
    # Reviews: 'good', 'fun', 'so-so ...', 'fast delivery', 'the best!'
    texts = ["좋다", "재미있어요", "별로 one two three", "배송이 빨라요 ㅎㅎ", "최고!"]
    path = tmp_path / {"lines": "a.jsonl", "array": "a.json"}.get(form, "a.txt")
    spelled = {"lines": json_lines(texts), "array": json.dumps(rows(texts), ensure_ascii=False)}
    path.write_bytes(spelled.get(form, "\n".join(texts)).encode("cp949"))
    reading = Reading(one_per_line=form == "one per line")
    n = 1 if form == "whole" else len(texts)
    assert [row[1:] for row in outcomes(path, reading)] == [("", "not utf-8")] * n
    found_texts = [row[1] for row in outcomes(path, reading._replace(encoding="cp949"))]
    assert found_texts == (["\n".join(texts)] if form == "whole" else texts)


def test_an_array_is_judged_document_by_document(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(rows(["가" * 200, "나나", "다" * 200]), ensure_ascii=False).encode()
                     .replace("나나".encode(), b"\xff").replace("다".encode(), b"\xff", 1))
    assert [row[2] for row in outcomes(path)] == ["", "not utf-8", "broken_bytes"]


# ------------------------------------------------------------------------------------- broken files

@pytest.mark.parametrize("suffix, name",
                         [(".gz", "gzip"), (".bz2", "bzip2"), (".xz", "xz"), (".zst", "zst")])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".txt"])
def test_a_compressed_file_that_is_broken(tmp_path, suffix, name, kind):
    path = tmp_path / f"a{kind}{suffix}"
    rng = random.Random(0)
    texts = ["".join(rng.choices("가나다라마바사아자차카타파하", k=3_000)) for _ in range(100)]
    whole = COMPRESS[suffix](json_lines(texts).encode())
    for raw in (whole[:-4], whole[:len(whole) // 2], whole[:2000] + b"damage" + whole[2006:],
                b"no such thing", b"\x1f"):
        path.write_bytes(raw)
        *before, last = outcomes(path)
        assert last[2] == f"broken {name}" and last[0] == len(before) + 1
        assert [row[1] for row in before] == texts[:len(before)]
    path.write_bytes(whole[:-4])
    assert len(outcomes(path)) > 50 or kind == ".txt"


def test_empty_frames_of_zst(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"  # as pzstd writes it
    path.write_bytes(skippable + zst(b"") + zst(json_lines(TEXTS).encode()) + skippable)
    assert found(path) == rows(TEXTS)


@pytest.mark.parametrize("name, package", [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow")])
def test_a_package_that_is_missing_is_named_before_anything_is_read(tmp_path, monkeypatch, name,
                                                                    package):
    (tmp_path / name).write_bytes(b"")
    for module in ("zstandard", "compression", "compression.zstd", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(cli.UserError, match=f"needs the package {package}.*pip install {package}"):
        files([tmp_path])


def test_a_missing_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json_lines(TEXTS))
    (span,), = units([path])
    path.unlink()
    with pytest.raises(cli.UserError, match="cannot read .*a.jsonl: No such file"):
        list(read_span(span))
    with pytest.raises(cli.UserError, match="cannot read .*a.jsonl: No such file"):
        units([path])


# -------------------------------------------------------------------------------------- which files

def test_hidden_files_and_the_outputs_of_clean_are_not_documents(tmp_path):
    hidden = [".git/a.jsonl", ".ipynb_checkpoints/a.jsonl", "._a.jsonl", "__MACOSX/a.jsonl",
              "b/.c/a.jsonl"]
    for name in ["b/a.jsonl", *hidden, "removed.jsonl", "changed.jsonl", "rejected.jsonl",
                 "report.json"]:
        path = tmp_path / ".home" / name  # a hidden folder is read if it is named explicitly
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json_lines(TEXTS))
    assert files([tmp_path / ".home"]) == [tmp_path / ".home/b/a.jsonl"]
    assert documents.left_out([tmp_path / ".home"]) == []
    asked_for = tmp_path / ".home/report.json"
    assert files([asked_for]) == [asked_for]


def test_what_is_not_read_is_named(tmp_path, capsys):
    for name in ("a.jsonl", "b/1.pdf", "2.PDF", "3.pdf", "4.pdf", "x.hwp", "t.csv.gz", "README",
                 "\udcff.hwp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json_lines(TEXTS))
    (tmp_path / "link").symlink_to(tmp_path / "b")
    left = documents.left_out([tmp_path, tmp_path / "a.jsonl"])
    assert len(left) == 9
    documents.announce([tmp_path], documents.PLAIN)
    line, = capsys.readouterr().err.splitlines()
    assert (
        "4 .pdf (2.PDF, 3.pdf, 4.pdf, ...)" in line
        and "2 .hwp" in line
        and "1 .csv.gz (t.csv.gz)" in line
    )
    assert "2 without a suffix (README, link)" in line
    documents.announce([tmp_path / "a.jsonl"], documents.PLAIN)
    assert capsys.readouterr().err == ""
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(cli.UserError, match=r"holds no .*\.parquet file, but 4 \.pdf \("):
        files([tmp_path])


@pytest.mark.parametrize("path, message",
                         [("none", "does not exist"), ("a.pdf", "is none of"),
                          ("empty", "holds no")])
def test_a_path_of_the_wrong_kind(tmp_path, path, message):
    (tmp_path / "a.pdf").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(cli.UserError, match=f"{path} {message}"):
        files([tmp_path / path])


def test_a_large_text_that_may_be_one_document_per_line(tmp_path, capsys):
    (tmp_path / "reviews.txt").write_text("짧은 글입니다 하나\n" * 60_000)  # a short text
    (tmp_path / "wiki.txt").write_text(WIKI + WIKI * 5_000)
    (tmp_path / "book.txt").write_text("긴 줄 " * 300_000)  # a long line
    (tmp_path / "b.txt").write_text("짧은 글\n" * 2_000)
    documents.announce([tmp_path], documents.PLAIN)
    line, = capsys.readouterr().err.splitlines()
    assert "single document: 1 .txt (reviews.txt); " in line and "--lines" in line
    documents.announce([tmp_path], Reading(one_per_line=True))
    assert capsys.readouterr().err == ""


# -------------------------------------------------------------------------------------------- parts

@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\n\n"])
def test_spans_hold_every_line_once(tmp_path, monkeypatch, name, line_end):
    rng = random.Random()
    reading = Reading(one_per_line=True)
    lines = [json.dumps({"text": "x" * rng.randrange(1, 900)}) for _ in range(200)]
    lines[50] = "{broken" + "x" * 3_000
    path = tmp_path / name
    for last in ("", line_end):
        path.write_text(line_end.join(lines) + last, newline="")
        size = path.stat().st_size
        whole = outcomes(path, reading)
        assert len(whole) == 200 and whole[-1][0] == 1 + 199 * line_end.count("\n")
        for unit in (1, 600, 1_000, 5_000, size - 1, size, 10**9):
            monkeypatch.setattr(documents, "UNIT", unit)
            parts = list(spans(path, reading))
            assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
            assert parts[0].start == 0 and parts[-1].end == size
            assert len(parts) == 1 or unit < size
            assert outcomes(path, reading) == whole
        monkeypatch.undo()


def test_units_are_small_files_together_or_spans_of_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "UNIT", 1_000)
    for name, n in (("a", 3), ("b", 3), ("c", 60), ("d", 0), ("e", 3)):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "abcdefghijklmnopqrs"}\n' * n)
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(json_lines(["글"] * 900).encode()))
    found_units = units(files([tmp_path]))
    names = [[span.path.name[0] for span in unit] for unit in found_units]
    assert names == [["a", "b"], ["c"], ["c", "d", "e"], ["f"]]
    assert [span.lines_before for unit in found_units for span in unit] == [0, 0, 0, 32, 0, 0, 0]


def test_a_line_that_is_too_long_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST", 1_000_000)
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "a"}\n')
        for _ in range(40):
            file.write(b"x" * 1_000_000)
        file.write(b'\n{"text": "b"}\n')
    tracemalloc.start()
    assert outcomes(path) == [(1, "a", ""), (2, "", "longer than 1 MB"), (3, "b", "")]
    assert tracemalloc.get_traced_memory()[1] < 6_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "wiki_00", "a.jsonl.gz", "utf16.jsonl"])
def test_a_document_that_is_too_long(tmp_path, monkeypatch, name):
    monkeypatch.setattr(documents, "LONGEST", 1_000_000)
    path = tmp_path / name
    text = json_lines(["x" * 1_000_001, "y"])
    numbers = [1, 2]
    if name == "wiki_00":
        block = '<doc id="1" url="u" title="t">\n{}\n</doc>\n'
        text = block.format("x" * 1_000_001) + block.format("x\n" * 600_000) + block.format("y")
        numbers = [1, 4, 600_007]
    encoding = "utf-16" if "utf16" in name else "utf-8"
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(text.encode(encoding)))
    found_rows = outcomes(path)
    if name == "a.txt":
        assert found_rows == [(1, "", "longer than 1 MB")]
    else:
        assert [row[0] for row in found_rows] == numbers and found_rows[-1][1:] == ("y", "")
        assert {row[2] for row in found_rows[:-1]} == {"longer than 1 MB"}


def test_rejections_name_file_line_and_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "글"}\n{"text": 1}\n\n{\n')
    rejected = []
    assert list(read_documents([tmp_path], rejected=rejected.append)) == [{"text": "글"}]
    assert rejected == [{"file": str(path), "line": 3, "reason": "no text field"},
                        {"file": str(path), "line": 5, "reason": "broken JSON"}]


def test_a_name_that_is_not_utf_8(tmp_path):
    (tmp_path / "\udcff.jsonl").write_text(json_lines(TEXTS))
    with pytest.raises(
        cli.UserError, match=re.escape(r"\udcff.jsonl': the name of this file is not UTF-8")
    ):
        files([tmp_path])


def test_a_record_that_may_be_someone_elses_is_named(tmp_path):
    """Only beside all the others is removed.jsonl certainly clean's output, and not mentioned."""
    for name in ("a.jsonl", "removed.jsonl", "report.json"):
        (tmp_path / name).write_text('{"text": "가나다"}\n', encoding="utf-8")
    assert [path.name for path in files([tmp_path])] == ["a.jsonl"]
    assert [path.name for path in documents.left_out([tmp_path])] == [
        "removed.jsonl",
        "report.json",
    ]
    for name in ("changed.jsonl", "rejected.jsonl"):
        (tmp_path / name).touch()
    assert [path.name for path in files([tmp_path])] == ["a.jsonl"]
    assert documents.left_out([tmp_path]) == []


def test_an_array_in_a_file_of_lines_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('[{"text": "가나다"}]\n', encoding="utf-8")
    rejected = []
    assert list(documents.read_documents([path], rejected=rejected.append)) == []
    assert "call the file .json" in rejected[0]["reason"]
    path = path.rename(tmp_path / "a.json")
    assert list(documents.read_documents([path])) == [{"text": "가나다"}]


def test_a_large_compressed_text_of_many_lines_is_announced(tmp_path, capsys):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("한 줄이 한 문서이다.\n".encode() * 50_000))
    documents.announce([tmp_path], documents.Reading())
    assert "--lines" in capsys.readouterr().err


@pytest.mark.parametrize("name",
                         ["a.txt", "a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "a.txt.xz",
                          "wiki_00"])
def test_a_git_lfs_pointer_is_not_a_document(tmp_path, name):
    """`git clone` leaves it in place of a large file; in a .txt it would be read as the text."""
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"
    )
    assert outcomes(path) == [(1, "", "Git LFS pointer (run `git lfs pull`)")]
