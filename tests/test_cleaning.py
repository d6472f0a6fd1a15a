"""Each cleaning step on inputs made here, against independent oracles; then `data.py clean` as a whole."""
import csv
import gzip
import importlib.util
import itertools
import json
import random
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from sentences import NOUNS, edited, korean

import data
from cleaning import decontaminate, mask, normalise, rules
from common.cli import UserError

LEAKED = "고양이가 기차를 타고 바다로 갔다"  # 'the cat took a train to the sea'


# ------------------------------------------------------------------------------------------------------- normalise

@pytest.mark.parametrize("raw, clean", [
    (unicodedata.normalize("NFD", "한글"), "한글"),
    ("½ ㎡ ① ㅋ ㅠ Ａ", "½ ㎡ ① ㅋ ㅠ Ａ"),                       # NFKC would change every one of them
    ("\uffa1\uffc2 \u1100 \u1175 \u11ab", "ㄱㅏ ㄱ ㅣ ㄴ"),          # half-width, and conjoining jamo alone
    ("\u1112\u119e\u11ab", "\u1112\u119e\u11ab"),                 # a syllable of old Korean stays whole
    ("가\u200b나\u00ad다\ufeff\x07", "가나다"),
    ("가\u00a0나\u3000다\u2028라\r\n마\r바", "가 나 다\n라\n마\n바"),
    ("👨\u200d👩\u200d👧 가\u200d나", "👨\u200d👩\u200d👧 가나"),
    ("ㅋㅋㅋㅋㅋㅋ ㅠㅜㅠㅜㅠㅜㅠㅜㅠㅜ 와!!!!!", "ㅋㅋㅋ ㅠㅜㅠㅜㅠㅜ 와!!!"),
    ("ㅋㅋ\u200bㅋㅋ", "ㅋㅋㅋ"),                                    # the run shows only when the invisible is gone
    ("a  \n\n\n\n\nb\t\n", "a\n\nb"),
    ("##### h\n-----\n| a |", "##### h\n-----\n| a |"),
    ("5 &lt; 6 &amp;&amp; a&copy=b &#44032;", "5 < 6 && a&copy=b 가"),
    ("a < b and c > d", "a < b and c > d"),                       # not HTML
])
def test_normalise(raw, clean):
    assert normalise.normalise(raw) == (clean, "")
    assert normalise.normalise(clean)[0] == clean


def test_a_run_of_lone_jamo_takes_time_by_its_length_and_not_by_its_square():
    started = time.process_time()
    assert normalise.normalise("\u1100" * 60_000 + "\u1161")[0] == "ㄱㄱㄱ가"
    assert time.process_time() - started < 1


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


# ------------------------------------------------------------------------------------------------------------ mask

def resident(rng: random.Random, hyphen: str, check: bool) -> str:
    digits = f"{rng.randrange(100):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}{rng.randrange(1, 9)}"
    digits += "".join(rng.choice("0123456789") for _ in range(5))
    total = sum(int(d) * w for d, w in zip(digits, [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5], strict=True))
    last = (11 - total % 11) % 10
    digits += str(last if check else (last + 1 + rng.randrange(9)) % 10)
    return digits[:6] + hyphen + digits[6:]


def card(rng: random.Random, prefix: str, passes: bool = True) -> str:
    digits = prefix + "".join(rng.choice("0123456789") for _ in range(15 - len(prefix)))
    for last in "0123456789":
        total = sum(sum(divmod(int(d) * (1 + i % 2), 10)) for i, d in enumerate(reversed(digits + last)))
        if (total % 10 == 0) == passes:
            return digits + last


def test_personal_data_is_masked():
    rng = random.Random()
    for _ in range(50):
        number = f"{rng.randrange(1000, 10000)}"
        found = {
            resident(rng, rng.choice(["-", " - ", "–"]), rng.random() < 0.5): "[주민번호]",
            resident(rng, "", True): "[주민번호]",
            f"010-{number}-{number}": "[전화번호]", f"010{number}{number}": "[전화번호]",
            f"+82 10 {number} {number}": "[전화번호]", f"02-{number[:3]}-{number}": "[전화번호]",
            f"(031) {number[:3]}-{number}": "[전화번호]", f"070.{number}.{number}": "[전화번호]",
            f"(010-{number}-{number})": "([전화번호])", f"02){number[:3]}-{number}": "[전화번호]",
            f"kim.{number}+a@mail.example.co.kr": "[이메일]", f"lee{number} [at] naver.com": "[이메일]",
            "-".join(re.findall("....", card(rng, rng.choice(["4", "51", "9410", "3560"])))): "[카드번호]",
            f"국민은행 {number}01-04-{number}12": "국민은행 [계좌번호]",
            f"110-{number[:3]}-{number}56 신한은행": "[계좌번호] 신한은행",
            f"계좌번호: 3{number}{number}12": "계좌번호: [계좌번호]",  # 8210… would be a telephone, from abroad
        }
        for raw, masked in found.items():
            before, after = rng.choice(["연락처 ", "", "번호:"]), rng.choice(["", "로 연락", ")", ".", ", 끝"])
            assert mask.mask(before + raw + after)[0] == before + masked + after, raw


def test_numbers_of_rulings_and_code_are_not_masked():
    rng = random.Random()
    for text in [
        "대법원 2010. 3. 25. 선고 2009다12345 판결", "1990-12-31부터 2001-01-05까지", "법률 제12345호, 2013-0101-1234",
        resident(rng, "", False), "901301-1234567", "900101-9234567", card(rng, "4", False), card(rng, "1"),
        "1988 1992 1996 2000", "4.1234567890123456", "https://x.kr/4111111111111111", "계좌를 연 날 1999-12-31",
        "계좌 이야기를 하다 말고 (1123581321)을 적었다", "123456-12-123456", "a@b.sum(0)", "git@github.com:a/b",
        "https://user:x@host.com/", "010-1234-56789", "1,010-1234-5678", "ISBN 978-89-1234-567-8", "3.14159265358979",
    ]:
        assert mask.mask(text) == (text, ""), text


# ----------------------------------------------------------------------------------------------------------- rules

def test_rules_keep_text():
    rng = random.Random()
    web, formal, short = (rules.LIMITS["ko"][profile] for profile in ("web", "formal", "short"))
    prose = korean(rng, 30)
    hanja = "강아지 學生이 東海에서 音樂을 보았다. 어제 先生이 都市에서 册床을 샀다. " + korean(rng, 3)
    code = prose + "\n```\n" + "for i in range(10): print(i)  # english and symbols {}[]()\n" * 40 + "```\n"
    statute = "\n".join(f"제{i}조 {korean(rng, 1)}\n  ① 다음 각 호와 같다.\n  1. {korean(rng, 1)}" for i in range(9))
    mixed = prose + " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(250)) + "."  # three quarters Latin
    for text in (prose, hanja, code, mixed):
        assert rules.check([text], web) == [(True, "")], text
    assert rules.check([statute], formal) == [(True, "")]
    assert rules.check(["재밌어요ㅋㅋㅋ!!!"], short) == [(True, "")]  # 'it is fun'


def test_a_document_has_the_same_answer_in_any_company():
    rng = random.Random()
    alphabet = ["다 ", "가", "을 ", "a", "the ", " ", "\n", ". ", "1", "★", "`", "$", "<b>", "漢", "뷁"]
    texts = [korean(rng, rng.randrange(1, 40)) + "".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(60)]
    texts += ["".join(rng.choices(alphabet, k=rng.randrange(1, 400))) for _ in range(60)] + [" ", "", korean(rng, 3000)]
    texts += [korean(rng, 2) * rng.randrange(1, 9) for _ in range(20)]
    rng.shuffle(texts)
    for lang, profile in itertools.product(("ko", "en"), ("web", "formal", "short")):
        limits = rules.LIMITS[lang][profile]
        answers = rules.check(texts, limits, lang)
        assert answers == [rules.check([text], limits, lang)[0] for text in texts]
        assert {kept for kept, _ in answers} == {True, False} or lang == "en"
    assert rules.check([], limits, "en") == []


def test_rules_name_what_is_wrong():
    rng = random.Random()
    web, formal, short = (rules.LIMITS["ko"][profile] for profile in ("web", "formal", "short"))
    prose = korean(rng, 12)
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    common = [c for c in syllables if len(c.encode("euc_kr")) == 2]
    junk = {
        "too_short": korean(rng, 1), "wrong_language": "This page is in English. " * 20, "word_length": "가나다라" * 50,
        "symbols": "가 " + "★☆ 나 ◆◇◈ 다 ※※ " * 30, "no_letters": korean(rng, 5) + " 1234 5678" * 40,
        "garbled": " ".join("".join(rng.choices(syllables, k=4)) for _ in range(60)),
        "function_words": " ".join("".join(rng.choices(common, k=4)) for _ in range(200)),
        "line_ends": "\n".join(f"{rng.choice(NOUNS)}이 {rng.choice(NOUNS)}을" for _ in range(60)),
        "repeated_lines": "\n".join([prose] + [korean(random.Random(1), 1)] * 30),
        "repeated_ngrams": prose + " 지금 바로 클릭하면 사은품을 드립니다." * 30,  # 'click now for a free gift'
    }
    for reason, text in junk.items():
        assert rules.check([text], web) == [(False, reason)], text
    assert rules.check(["ㅋ!"], short) == [(False, "too_short")]
    assert rules.check([junk["line_ends"]], formal) == [(True, "")]


def test_english_rules():
    rng = random.Random()
    limits = rules.LIMITS["en"]["web"]
    prose = ("The harbour was quiet when Anna came down to the boats. Her brother had gone out before dawn, and nobody "
             "in the town could say with certainty that he would be back for supper. She sat on a crate, counted 14 "
             "gulls, and wondered whether it had been wise to have let him take their only lamp.")
    assert rules.check([prose], limits, "en") == [(True, "")]
    assert rules.check([korean(rng, 30)], limits, "en") == [(False, "wrong_language")]
    words = ["".join(rng.choices("bcdfghjklmnprstvw", k=5)) for _ in range(100)]
    assert rules.check([" ".join(words) + "."], limits, "en") == [(False, "function_words")]


# --------------------------------------------------------------------------------------------------- decontaminate

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
        assert benchmark.check(text)[0] is not expected
        found += expected
    assert 100 < found < 390
    assert benchmark.check("")[0] and decontaminate.Benchmark([]).check("가" * 100)[0]


def kobest(folder: Path, rows: list[list[str]]) -> Path:
    (folder / "v1.0" / "COPA").mkdir(parents=True)
    with open(folder / "v1.0" / "COPA" / "test.tsv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    return folder


def test_fields_are_read_with_quotes_and_normalised(tmp_path):
    field = 'He said "어제 강아지를 보았다ㅋㅋㅋㅋㅋㅋ" ' + unicodedata.normalize("NFD", "어제")
    rows = [["ID", "sentence"], ["1", field], ["2", "https://example.com/a/b/c"]]
    found = decontaminate.fields(kobest(tmp_path, rows))
    assert field in found and normalise.normalise(field)[0] in found and not any("http" in f for f in found)


# ------------------------------------------------------------------------------------------------ data.py clean

def write(path: Path, records: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random()
    a = [{"id": f"a{i}", "text": korean(rng, 12), "year": i} for i in range(60)]
    a[3]["text"] += " 전화 010-1234-5678."                          # a phone number
    a[7]["text"] = "<html><nav>메뉴</nav><p>" + a[7]["text"] + "</p></html>"
    b = [{"text": korean(rng, 12)} for _ in range(20)]
    b += [{"id": "copy", "text": a[5]["text"]}, {"id": "near", "text": edited(rng, a[6]["text"], 0.02) + " 끝."},
          {"id": "short", "text": "짧다"}, {"id": "leak", "text": korean(rng, 9) + f" {LEAKED}. 끝."}]
    b += ["", "{broken", "[1]", '{"text": 5}', '{"text": "\\ud800"}', '{"text": "  "}']
    write(tmp_path / "raw" / "a.jsonl", a)
    write(tmp_path / "raw" / "sub" / "a.jsonl", b)
    (tmp_path / "raw" / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": korean(rng, 9)}).encode())[:-9])
    kobest(tmp_path / "kobest", [["ID", "sentence"], ["1", LEAKED]])
    return tmp_path


def clean(corpus: Path, out: str, *flags: str) -> dict:
    data.main(["clean", "--input", str(corpus / "raw"), "--out", str(corpus / out), "--profile", "formal",
               "--decontaminate", str(corpus / "kobest"), *flags])
    return json.loads((corpus / out / "report.json").read_text())


def test_clean_finds_what_was_planted_and_loses_nothing(corpus, capsys):
    report = clean(corpus, "out")
    out = corpus / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "a-2.jsonl", "a.jsonl", "c.jsonl", "masked.jsonl", "rejected.jsonl", "removed.jsonl", "report.json"]
    removed = {r["id"]: r for r in lines(out / "removed.jsonl")}
    assert {i: (r["step"], r["reason"]) for i, r in removed.items() if not i.startswith("a")} == {
        "copy": ("exact", "exact_duplicate"), "short": ("rules", "too_short"),
        "leak": ("decontaminate", "benchmark_field")}
    assert (removed["a6"]["duplicate_of"], removed["copy"]["duplicate_of"]) == ("near", "a5")  # longer, first
    assert [(r["id"], r["reason"], r["line"]) for r in lines(out / "masked.jsonl")] == [("a3", "phone", 4)]
    assert [(Path(r["file"]).name, r["line"], r["reason"]) for r in lines(out / "rejected.jsonl")] == [
        ("c.jsonl.gz", 1, "broken gzip"), ("a.jsonl", 26, "broken JSON"), ("a.jsonl", 27, "no text field"),
        ("a.jsonl", 28, "no text field"), ("a.jsonl", 29, "lone surrogate"), ("a.jsonl", 30, "empty text")]
    kept = lines(out / "a.jsonl") + lines(out / "a-2.jsonl")
    assert [d["year"] for d in kept if "year" in d] == [i for i in range(60) if i != 6]  # other fields pass, in order
    assert "[전화번호]" in kept[3]["text"] and "메뉴" not in str(kept)
    assert report["input"]["documents"] == 84 == len(kept) + len(removed) and report["output"]["documents"] == len(kept)
    assert report["output"]["bytes"] == sum(len(d["text"].encode()) for d in kept)
    steps = report["steps"]
    assert [s["step"] for s in steps] == ["normalise", "mask", "rules", "exact", "near", "perplexity",
                                         "decontaminate"]
    assert all(a["documents_out"] == b["documents_in"] and a["bytes_out"] == b["bytes_in"]
               for a, b in zip(steps, steps[1:], strict=False))
    assert sum(s["documents_out"] for s in report["sources"].values()) == len(kept)
    assert "010-1234" not in json.dumps(report) and [e["text"] for e in report["examples"]["too_short"]] == ["짧다"]
    assert "exact_duplicate 1" in capsys.readouterr().out


def test_same_bytes_for_any_number_of_workers(corpus):
    clean(corpus, "one")
    subprocess.run([sys.executable, data.__file__, "clean", "--input", "raw", "--out", "three", "--profile", "formal",
                    "--decontaminate", "kobest", "--workers", "3"], cwd=corpus, check=True, capture_output=True)
    for file in (corpus / "one").iterdir():
        expected = file.read_text(encoding="utf-8").replace(f"{corpus}/", "")
        assert (corpus / "three" / file.name).read_text(encoding="utf-8") == expected


def test_a_page_of_nothing_but_menus_is_not_asked_for_its_perplexity(tmp_path):
    rng = random.Random()
    menu = [korean(rng, 1) for _ in range(8)]
    write(tmp_path / "raw" / "a.jsonl", [{"text": "\n".join(rng.sample(menu, 6))} for _ in range(20)]
          + [{"text": korean(rng, 8)} for _ in range(120)])
    data.main(["clean", "--input", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--steps", "lines",
               "perplexity"])
    first, second = json.loads((tmp_path / "out" / "report.json").read_text())["steps"]
    assert first["reasons"] == {"only_repeated_lines": 20} and second["documents_in"] == 120


def test_sample_and_steps(corpus):
    report = clean(corpus, "half", "--sample", "0.5", "--steps", "exact", "decontaminate")
    assert [s["step"] for s in report["steps"]] == ["sample", "exact", "decontaminate"]
    kept = {d["text"] for d in lines(corpus / "half" / "a.jsonl")}
    assert 10 < len(kept) < 50 and kept < {d["text"] for d in lines(corpus / "raw" / "a.jsonl")}  # not normalised
    clean(corpus, "again", "--sample", "0.5", "--steps", "exact", "decontaminate")
    assert kept == {d["text"] for d in lines(corpus / "again" / "a.jsonl")}


def test_cp949_text_file(tmp_path):
    text = korean(random.Random(), 9)
    (tmp_path / "novel.txt").write_bytes(text.encode("cp949"))
    data.main(["clean", "--input", str(tmp_path / "novel.txt"), "--out", str(tmp_path / "o"), "--encoding", "cp949"])
    assert lines(tmp_path / "o" / "novel.jsonl") == [{"text": text}]
    with pytest.raises(UserError, match="not utf-8"):
        data.main(["clean", "--input", str(tmp_path / "novel.txt"), "--out", str(tmp_path / "p")])
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("flags, message", [
    (["--input", "absent.jsonl"], "does not exist"), (["--input", "empty"], "holds no"),
    (["--input", "x.pdf"], "none of"), (["--input", "junk.jsonl"], "nothing is left of 1 documents .1 too_short"),
    (["--input", "a.jsonl", "--sample", "0"], "sample"), (["--input", "a.jsonl", "--workers", "0"], "workers"),
    (["--input", "a.jsonl", "--decontaminate", "empty"], "no .tsv"),
    (["--input", "a.jsonl", "--steps", "decontaminate"], "need each other"),
    (["--input", "a.jsonl", "--decontaminate", "cp949"], "cannot read cp949/a.tsv: 'utf-8' codec"),
    (["--input", "a.jsonl", "--reference", "novel.txt"], "no document there; does --encoding fit"),
    (["--input", "a.jsonl", "--tails", "nan", "1"], "two percentages"),
    (["--input", "a.jsonl", "cp949"], "cp949/.udcb0.udca1.jsonl': the name of this file is not UTF-8"),
    (["--input", "a.jsonl", "--out", "x.pdf"], "is a file"), (["--input", "a.jsonl", "--out", "."], "its own input"),
])
def test_what_a_person_can_get_wrong(tmp_path, monkeypatch, flags, message):
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
    folder = tmp_path / f"seed-{seed}"  # by which a failure can be had again
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent / "stress" / "fuzz_cleaning.py")
    spec.loader.exec_module(fuzz := importlib.util.module_from_spec(spec))
    fuzz.check(folder, fuzz.write(folder, random.Random(seed), 300), "--profile", profile)


def test_an_english_corpus_gets_english_masks():
    assert mask.mask("Call 010-1234-5678.", "en") == ("Call [phone number].", "phone")
