"""Step 8, decontaminate, against brute force."""
import csv
import random
import unicodedata
from pathlib import Path

from cleaning import decontaminate, normalise


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
        assert benchmark.check(text)[0] is not expected
        found += expected
    assert 100 < found < 390
    assert benchmark.check("")[0] and decontaminate.Benchmark([]).check("가" * 100)[0]



def test_fields_are_read_with_quotes_and_normalised(tmp_path):
    field = 'He said "어제 강아지를 보았다ㅋㅋㅋㅋㅋㅋ" ' + unicodedata.normalize("NFD", "어제")
    rows = [["ID", "sentence"], ["1", field], ["2", "https://example.com/a/b/c"]]
    found = decontaminate.fields(kobest(tmp_path, rows))
    assert field in found and normalise.normalise(field)[0] in found and not any("http" in f for f in found)
