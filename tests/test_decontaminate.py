"""Step 9, decontaminate, against brute force; the benchmark's files in both layouts."""
import csv
import json
import random
import unicodedata
from pathlib import Path

import pytest

from cleaning import decontaminate
from cleaning.normalise import normalise_text
from common import cli


def kobest(folder: Path, rows: list[list[str]]) -> Path:
    (folder / "v1.0" / "COPA").mkdir(parents=True)
    with open(folder / "v1.0" / "COPA" / "test.tsv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    return folder


def test_decontaminate_against_brute_force():
    rng = random.Random()
    letters = "가나다 라,마.바!"
    items = ["".join(rng.choices(letters, k=rng.randrange(5, 60))) for _ in range(40)]
    benchmark = decontaminate.Benchmark(items)
    def squeeze(text):
        return "".join(c for c in text if c.isalnum())
    needles = {s for s in map(squeeze, items) if 12 <= len(s) < 25}
    needles |= {s[i:i + 25] for s in map(squeeze, items) for i in range(len(s) - 24)}
    found = 0
    for _ in range(400):
        item = rng.choice(items)
        a = rng.randrange(len(item))
        item = item[a if rng.random() < 0.5 else 0:]
        text = "".join(rng.choices(letters, k=30)) + item + "".join(rng.choices(letters, k=30))
        expected = any(needle in squeeze(text) for needle in needles)
        kept, reason = benchmark.check(text)
        assert (kept is None) is expected and bool(reason) is expected and kept in (None, text)
        found += expected
    assert 50 < found < 390  # of both outcomes there are many; 105 to 222 in 300 trials
    assert benchmark.check("") == ("", "")
    assert decontaminate.Benchmark([]).check("가" * 100) == ("가" * 100, "")


def test_what_was_found_is_measured_and_shown():
    long = ("어제 저녁에 수빈이 접시를 바닥에 떨어뜨렸다. 그래서 접시가 산산이 깨졌고, "
            "수빈은 아주 오래 울었다.")
    short = "남자는 토스트기 전원을 껐다."  # 'the man switched the toaster off'
    benchmark = decontaminate.Benchmark([long, short])
    letters = "".join(c for c in long if c.isalnum())
    # The whole run is counted, and its first 40 characters are shown.
    found = f"benchmark_run: {len(letters)} characters in a row, {letters[:40]}"
    assert benchmark.check(f"앞. {long} 뒤.") == (None, found)
    found = f"benchmark_run: 27 characters in a row, {letters[3:30]}"
    assert benchmark.check(f"앞 {letters[3:30]} 뒤, {letters}") == (None, found)
    found = "benchmark_field: all 12 characters, 남자는토스트기전원을껐다"
    assert benchmark.check(f"그리고 {short} 끝") == (None, found)


def test_no_letter_is_beyond_the_planes_that_are_checked():
    beyond = range(decontaminate.WITH_LETTERS, decontaminate.CODE_POINTS)
    assert not any(chr(code).isalnum() for code in beyond)


def test_fields_are_read_with_quotes_and_normalised(tmp_path):
    field = 'He said "어제 강아지를 보았다ㅋㅋㅋㅋㅋㅋ" ' + unicodedata.normalize("NFD", "어제")
    rows = [["ID", "sentence"], ["1", field], ["2", "https://example.com/a/b/c"],
            ["3", " https://example.com/a/b"], ["4", "\x08https://example.com/a/b"]]
    found = decontaminate.fields(kobest(tmp_path, rows))
    assert (
        field in found and normalise_text(field)[0] in found and not any("http" in f for f in found)
    )


# ---- The benchmark's files: TSV as published, JSON lines as on Hugging Face ----------------------

# Two items like COPA's, each with two short answers, and an item that is too short to be found.
ITEMS = [
    {"premise": "수빈이는 어제 저녁에 할머니가 아끼시던 접시를 바닥에 떨어뜨리고 말았다.",
     "question": "결과", "alternative_1": "접시가 산산이 깨져 버렸다.",
     "alternative_2": "접시가 하늘로 높이 날아갔다.", "label": 0},
    {"premise": "남자는 \"토스트기\" 전원을 서둘러 껐다ㅋㅋㅋㅋㅋ", "question": "원인",
     "alternative_1": "빵이 새까맣게 타고 있었다.", "alternative_2": "빵이 없었다.", "label": 0},
    {"premise": "비가 왔다.", "question": "결과", "alternative_1": "젖었다.",
     "alternative_2": "말랐다.", "label": 0},
]
LINK = "https://example.com/dictionary/view?word=123456789"
HASH = "0123456789abcdef0123456789abcdef"


def published(folder: Path, items: list[dict] = ITEMS) -> Path:
    """Write v1.0/COPA/dev.tsv."""
    file = folder / "v1.0" / "COPA" / "dev.tsv"
    file.parent.mkdir(parents=True)
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["ID", "sentence", "question", "1", "2", "Answer", "Link 1"])
        for item in items:
            *texts, label = item.values()
            writer.writerow([HASH, *texts, label + 1, LINK])
    return folder


def hugging_face(folder: Path, items: list[dict] = ITEMS, name: str = "validation.jsonl") -> Path:
    """Write copa/validation.jsonl."""
    file = folder / "copa" / name
    file.parent.mkdir(parents=True)
    with open(file, "w", encoding="utf-8") as stream:
        for item in items:
            record = {"id": HASH, **item, "link": LINK}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n\n")
    return folder


def test_both_layouts_give_the_same_verdicts(tmp_path):
    tsv = published(tmp_path / "a")
    lines = hugging_face(tmp_path / "b")
    assert set(decontaminate.fields(tsv)) - {"1"} == set(decontaminate.fields(lines))
    assert decontaminate.detectable(tsv) == {"COPA/dev": (2, 3)}
    assert decontaminate.detectable(lines) == {"copa/validation": (2, 3)}

    from_tsv = decontaminate.Benchmark(decontaminate.fields(tsv))
    from_lines = decontaminate.Benchmark(decontaminate.fields(lines))
    reasons = set()
    for item in ITEMS:
        for field in [*map(str, item.values()), LINK, HASH, "COPA alternative_1 premise question"]:
            text = f"그는 이렇게 적었다. {field} 그리고 떠났다."
            assert from_tsv.check(text) == from_lines.check(text)
            reasons.add(from_lines.check(text)[1].partition(": ")[0])
            is_text = field not in (LINK, HASH) and not field.startswith("COPA")
            is_long = len(decontaminate.squeeze(field)) >= 12
            assert (from_lines.check(text)[0] is None) == (is_text and is_long)
    assert reasons == {"", "benchmark_run", "benchmark_field"}


def test_a_folder_with_both_layouts_reads_both(tmp_path):
    published(tmp_path, ITEMS[:1])
    hugging_face(tmp_path, ITEMS[1:])
    files = decontaminate.benchmark_files(tmp_path)
    names = [str(file.relative_to(tmp_path)) for file in files]
    assert names == ["copa/validation.jsonl", "v1.0/COPA/dev.tsv"]
    assert decontaminate.detectable(tmp_path) == {"copa/validation": (1, 2), "COPA/dev": (1, 1)}
    benchmark = decontaminate.Benchmark(decontaminate.fields(tmp_path))
    assert benchmark.check(ITEMS[0]["premise"])[1].startswith("benchmark_run: ")
    assert benchmark.check(ITEMS[1]["premise"])[1].startswith("benchmark_field: ")


def test_tables_of_the_same_name_are_counted_together(tmp_path):
    published(tmp_path / "old")
    published(tmp_path / "new")
    assert decontaminate.detectable(tmp_path) == {"COPA/dev": (4, 6)}


def test_lists_inside_a_record_and_cells_beyond_the_header_are_searched(tmp_path):
    answers = [ITEMS[0]["alternative_1"], {"text": ITEMS[0]["alternative_2"]}]
    hugging_face(tmp_path / "a", [{"choices": answers}], "TEST.JSONL")
    (tmp_path / "a" / "more.tsv").write_text(f"text\n비\t{ITEMS[1]['premise']}\n\n", "utf-8-sig")
    found = decontaminate.fields(tmp_path / "a")
    assert {ITEMS[0]["alternative_1"], ITEMS[0]["alternative_2"]} <= set(found)
    benchmark = decontaminate.Benchmark(found)
    assert benchmark.check(ITEMS[1]["premise"])[0] is None
    assert decontaminate.detectable(tmp_path / "a")["a/more"] == (1, 1)


@pytest.mark.parametrize("name, content, part", [
    ("dev.jsonl", b'{"a": "b"}\n\n{"a": \n', "dev.jsonl: broken JSON"),
    ("dev.jsonl", b'{"a": "b"}\n\n["a"]\n', "dev.jsonl: not a JSON object"),
    ("dev.jsonl", b'{"a": "b"}\n\n{"a": "\\ud83d"}\n', "dev.jsonl: lone surrogate"),
    ("dev.jsonl", b'{}\n\n{"a": ' + b"[" * 100_000, "dev.jsonl: broken JSON"),
    ("dev.jsonl", '{}\n\n{"a": "가"}'.encode("cp949"), "dev.jsonl: not utf-8"),
    ("dev.jsonl", b'{}\n\n{"a": "' + b"b" * 500 + b'\xff"}', "dev.jsonl: broken_bytes"),
    ("dev.tsv", "a\tb\n1\t2\n3\t가\n".encode("cp949"), "dev.tsv: 'utf-8' codec"),
    ("dev.tsv", b"a\tb\n1\t2\n3\t" + b"4" * 200_000, "dev.tsv: field larger"),
])
def test_an_unreadable_file_is_named_with_the_line(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    for read in (decontaminate.fields, decontaminate.detectable):
        with pytest.raises(cli.UserError) as error:
            read(tmp_path)
        assert part in str(error.value) and "(line 3)" in str(error.value)


def test_a_folder_without_a_benchmark_names_both_layouts(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "dev.tsv").write_text("a\nb\n")
    (tmp_path / "._dev.tsv").write_bytes(b"\0\xff")
    for read in (decontaminate.fields, decontaminate.detectable, decontaminate.benchmark_files):
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(cli.UserError) as error:
                read(folder)
            for part in (str(folder), "v1.0/BoolQ/dev.tsv", "boolq/validation.jsonl"):
                assert part in str(error.value)
    (tmp_path / "dev.tsv").write_text("a\tb\n")
    with pytest.raises(cli.UserError, match="no items"):
        decontaminate.fields(tmp_path)
