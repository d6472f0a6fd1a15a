"""`data.py clean` as a whole."""
import gzip
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from sentences import edited, korean
from test_decontaminate import kobest

import data
from cleaning import pipeline
from common.cli import UserError

LEAKED = "고양이가 기차를 타고 바다로 갔다"  # 'the cat took a train to the sea'


def write(path: Path, records: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(
            (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records
        )
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random()
    a = [{"id": f"a{i}", "text": korean(rng, 12), "year": i} for i in range(60)]
    a[3]["text"] += " 전화 010-1234-5678."                          # a phone number
    a[7]["text"] = "<html><nav>메뉴</nav><p>" + a[7]["text"] + "</p></html>"
    b = [{"text": korean(rng, 12)} for _ in range(20)]
    b += [
        {"id": "copy", "text": a[5]["text"]},
        {"id": "near", "text": edited(rng, a[6]["text"], 0.02) + " 그리고 끝."},
        {"id": "short", "text": "짧다"},
        {"id": "leak", "text": korean(rng, 9) + f" {LEAKED}. 끝."},
    ]
    b += ["", "{broken", "[1]", '{"text": 5}', '{"text": "\\ud800"}', '{"text": "  "}']
    write(tmp_path / "raw" / "a.jsonl", a)
    write(tmp_path / "raw" / "sub" / "a.jsonl", b)
    (tmp_path / "raw" / "c.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"text": korean(rng, 9)}).encode())[:-9]
    )
    kobest(tmp_path / "kobest", [["ID", "sentence"], ["1", LEAKED]])
    return tmp_path


def clean(corpus: Path, out: str, *flags: str) -> dict:
    data.main(["clean", "--input", str(corpus / "raw"), "--out", str(corpus / out),
               "--profile", "formal", "--decontaminate", str(corpus / "kobest"), *flags])
    return json.loads((corpus / out / "report.json").read_text())


def test_clean_finds_what_was_planted_and_loses_nothing(corpus, capsys):
    report = clean(corpus, "out")
    out = corpus / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "a-2.jsonl", "a.jsonl", "c.jsonl", "changed.jsonl", "examples.jsonl", "rejected.jsonl",
        "removed.jsonl", "report.json"]
    removed = {r["id"]: r for r in lines(out / "removed.jsonl")}
    assert {i: (r["step"], r["reason"]) for i, r in removed.items() if not i.startswith("a")} == {
        "copy": ("exact", "exact_duplicate"), "short": ("rules", "too_short"),
        "leak": ("decontaminate", "benchmark_field")}
    # Longer, first.
    assert (removed["a6"]["duplicate_of"], removed["copy"]["duplicate_of"]) == ("near", "a5")
    assert [(r["id"], r["reason"], r["line"]) for r in lines(out / "changed.jsonl")] == [
        ("a3", "phone", 4)
    ]
    rejected = lines(out / "rejected.jsonl")
    assert [(Path(r["file"]).name, r["line"], r["reason"]) for r in rejected] == [
        ("c.jsonl.gz", 1, "broken gzip"), ("a.jsonl", 26, "broken JSON"),
        ("a.jsonl", 27, "no text field"),
        ("a.jsonl", 28, "no text field"), ("a.jsonl", 29, "lone surrogate"),
        ("a.jsonl", 30, "empty text")]
    kept = lines(out / "a.jsonl") + lines(out / "a-2.jsonl")
    # Other fields pass, in order.
    assert [d["year"] for d in kept if "year" in d] == [i for i in range(60) if i != 6]
    assert "[전화번호]" in kept[3]["text"] and "메뉴" not in str(kept)
    assert report["input"]["documents"] == 84 == len(kept) + len(removed) and report["output"][
        "documents"
    ] == len(kept)
    assert report["output"]["bytes"] == sum(len(d["text"].encode()) for d in kept)
    steps = report["steps"]
    assert [s["step"] for s in steps] == ["normalise", "mask", "leftovers", "rules", "exact",
                                          "near",
                                         "perplexity", "decontaminate"]
    assert all(a["documents_out"] == b["documents_in"] and a["bytes_out"] == b["bytes_in"]
               for a, b in zip(steps, steps[1:], strict=False))
    assert sum(s["documents_out"] for s in report["sources"].values()) == len(kept)
    assert "010-1234" not in json.dumps(report) + (out / "examples.jsonl").read_text(
        encoding="utf-8"
    )
    assert [e["text"] for e in report["examples"]["too_short"]] == ["짧다"]
    assert "exact_duplicate 1" in capsys.readouterr().out


def test_same_bytes_for_any_number_of_workers(corpus):
    clean(corpus, "one")
    subprocess.run([sys.executable, data.__file__, "clean", "--input", "raw", "--out", "three",
                    "--profile", "formal", "--decontaminate", "kobest", "--workers", "3"],
                    cwd=corpus, check=True, capture_output=True)
    for file in (corpus / "one").iterdir():
        expected = file.read_text(encoding="utf-8").replace(f"{corpus}/", "")
        assert (corpus / "three" / file.name).read_text(encoding="utf-8") == expected


def test_a_page_of_menus_only_gets_no_perplexity(tmp_path):
    rng = random.Random()
    menu = [korean(rng, 1) for _ in range(8)]
    write(
        tmp_path / "raw" / "a.jsonl",
        [{"text": "\n".join(rng.sample(menu, 6))} for _ in range(20)]
        + [{"text": korean(rng, 8)} for _ in range(120)],
    )
    data.main(["clean", "--input", str(tmp_path / "raw"), "--out", str(tmp_path / "out"),
               "--steps", "lines", "perplexity"])
    first, second = json.loads((tmp_path / "out" / "report.json").read_text())["steps"]
    assert first["reasons"] == {"only_repeated_lines": 20} and second["documents_in"] == 120


def test_sample_and_steps(corpus):
    report = clean(corpus, "half", "--sample", "0.5", "--steps", "exact", "decontaminate")
    assert [s["step"] for s in report["steps"]] == ["sample", "exact", "decontaminate"]
    kept = {d["text"] for d in lines(corpus / "half" / "a.jsonl")}
    # Not normalised.
    assert 10 < len(kept) < 50 and kept < {d["text"] for d in lines(corpus / "raw" / "a.jsonl")}
    clean(corpus, "again", "--sample", "0.5", "--steps", "exact", "decontaminate")
    assert kept == {d["text"] for d in lines(corpus / "again" / "a.jsonl")}


def test_cp949_text_file(tmp_path):
    text = korean(random.Random(), 9)
    (tmp_path / "novel.txt").write_bytes(text.encode("cp949"))
    data.main(["clean", "--input", str(tmp_path / "novel.txt"), "--out", str(tmp_path / "o"),
               "--encoding", "cp949"])
    assert lines(tmp_path / "o" / "novel.jsonl") == [{"text": text}]
    with pytest.raises(UserError, match="not utf-8"):
        data.main(["clean", "--input", str(tmp_path / "novel.txt"), "--out", str(tmp_path / "p")])
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("flags, message", [
    (["--input", "absent.jsonl"], "does not exist"), (["--input", "empty"], "holds no"),
    (["--input", "x.pdf"], "none of"),
    (["--input", "junk.jsonl"], "nothing is left of 1 documents .1 too_short"),
    (["--input", "a.jsonl", "--sample", "0"], "sample"),
    (["--input", "a.jsonl", "--workers", "0"], "workers"),
    (["--input", "a.jsonl", "--decontaminate", "empty"], "no .tsv"),
    (["--input", "a.jsonl", "--steps", "decontaminate"], "need each other"),
    (["--input", "a.jsonl", "--decontaminate", "cp949"], "cannot read cp949/a.tsv: 'utf-8' codec"),
    (["--input", "a.jsonl", "--reference", "novel.txt"], "no documents found; check --encoding"),
    (["--input", "a.jsonl", "--tails", "nan", "1"], "two percentages"),
    (["--input", "a.jsonl", "cp949"],
     "cp949/.udcb0.udca1.jsonl': the name of this file is not UTF-8"),
    (["--input", "a.jsonl", "--out", "x.pdf"], "is a file"),
    (["--input", "a.jsonl", "--out", "."], "its own input"),
])
def test_user_errors_are_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("x.pdf").touch()
    write(Path("a.jsonl"), [{"text": korean(random.Random(), 9)}])
    write(Path("junk.jsonl"), [{"text": "짧다"}])
    Path("cp949").mkdir()
    for name in (b"novel.txt", b"cp949/a.tsv", b"cp949/" + "가".encode("cp949") + b".jsonl"):
        with open(name, "wb") as file:
            file.write("소설".encode("cp949"))
    with pytest.raises(UserError, match=message):
        data.main(["clean", "--out", "out", *flags])
    assert not Path("out").exists() and not list(Path().glob(".*"))


@pytest.mark.parametrize("profile", ["web", "short"])
def test_malformed_inputs_never_stop_a_run(tmp_path, profile):
    seed = random.randrange(10**6)
    folder = tmp_path / f"seed-{seed}"  # so that a failure can be reproduced
    spec = importlib.util.spec_from_file_location(
        "fuzz", Path(__file__).parent / "stress" / "fuzz_cleaning.py"
    )
    spec.loader.exec_module(fuzz := importlib.util.module_from_spec(spec))
    fuzz.check(folder, fuzz.write(folder, random.Random(seed), 300), "--profile", profile)


def test_what_happens_while_reading_is_counted(tmp_path):
    """Broken bytes, private-use characters, a nested field, and files that nothing can read."""
    rng = random.Random()
    texts = [korean(rng, 9) for _ in range(4)]
    folder = tmp_path / "raw"
    folder.mkdir()
    novel = bytearray(korean(rng, 30).encode())
    novel[300] = 0xFF
    (folder / "novel.txt").write_bytes(novel)
    write(
        folder / "a.JSONL",
        [{"id": i, "page": {"body": text, "year": 1931}} for i, text in enumerate(texts[:3])]
        + [{"page": {"body": texts[3] + " \ue123"}}],
    )
    (folder / "b.pdf").touch()
    data.main(["clean", "--input", str(folder), "--out", str(tmp_path / "out"),
               "--text_field", "page.body", "--profile", "formal"])
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["left_out"] == [str(folder / "b.pdf")]
    assert report["sources"][str(folder / "novel.txt")]["reasons"] == {"broken_bytes": 1}
    assert report["steps"][0]["reasons"] == {"private_use": 1}
    changed = lines(tmp_path / "out" / "changed.jsonl")
    assert sorted((record["step"], record["reason"]) for record in changed) == [
        ("normalise", "private_use"), ("read", "broken_bytes")]
    kept = lines(tmp_path / "out" / "a.jsonl")
    # Nothing uncleaned travels along.
    assert kept[0] == {"id": 0, "page": {"year": 1931}, "text": texts[0]}
    assert "\ufffd" in lines(tmp_path / "out" / "novel.jsonl")[0]["text"]
    assert report["input"]["documents"] == report["output"]["documents"] == 5


def test_a_resumed_run_does_not_count_lines_again(corpus, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "last_pass", None)
    with pytest.raises(TypeError):
        clean(corpus, "out")
    monkeypatch.undo()
    monkeypatch.setattr(pipeline.documents, "units", None)  # would fail if it were called
    clean(corpus, "out")
    assert "resuming" in capsys.readouterr().out
