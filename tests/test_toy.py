"""toy/: its Korean is correct, its faults are where planted.json says, and its questions cannot be
answered without the world."""
import csv
import itertools
import json
import lzma
import math
import re
import unicodedata
from collections import Counter, defaultdict

import pytest

from toy import world as toy
from toy.world import WORLD

SIZE = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "world"
    toy.main(["--out", str(out), "--documents", str(SIZE)])
    return out


@pytest.fixture(scope="module")
def documents(folder):
    """{language: {id: text}}."""
    texts = {"ko": {}, "en": {}}
    for name, found in texts.items():
        for file in sorted((folder / name).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                document = json.loads(line)
                found[document["id"]] = document["text"]
    return texts


@pytest.fixture(scope="module")
def planted(folder):
    return json.loads((folder / "planted.json").read_text())


def ids(planted: dict, kind: str) -> set[str]:
    """All documents of a kind of fault, copies and originals."""
    return {i for found in planted[kind] for i in ([found] if isinstance(found, str) else found)}


def rows(folder, task: str, split: str) -> list[dict]:
    path = folder / "kobest/v1.0" / task / f"{split}.tsv"
    with open(path, encoding="utf-8", newline="") as file:
        header, *body = csv.reader(file, delimiter="\t")
    assert all(len(row) == len(header) for row in body)
    return [dict(zip(header, row, strict=True)) for row in body]


def letters(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c)[0] in "LN")


# ---- Korean --------------------------------------------------------------------------------------

def test_particles_follow_the_last_sound():
    words = {noun for noun, _ in WORLD.things}
    words |= {*WORLD.names, *WORLD.slots["place"], *WORLD.slots["job"]}
    # Seoul, water, Busan, sea, price.
    words |= {(toy.Korean(w), "") for w in ("서울", "물", "부산", "바다", "값")}
    for korean, _ in words:
        # Decomposed: lead, vowel and, if it has one, a final consonant.
        jamo = unicodedata.normalize("NFD", korean[-1])
        closed = len(jamo) == 3
        rieul = jamo[-1] == "\u11af"
        for consonant, vowel in ("은는", "이가", "을를", "과와"):
            assert f"{korean:{consonant}}" == korean + (consonant if closed else vowel)
        assert f"{korean:으로}" == korean + ("으로" if closed and not rieul else "로")
        assert f"{korean:에게}" == f"{korean}에게" and f"{korean}" == korean
        assert f"{korean:이었}" == korean + ("이었" if closed else "였")


@pytest.mark.parametrize("line, past, modifier, formal", [
    ("크 커 big", "컸", "큰", "큽니다"),
    ("길 길어 long", "길었", "긴", "깁니다"),
    ("쓰 써 bitter", "썼", "쓴", "씁니다"),
    ("가볍 가벼워 light", "가벼웠", "가벼운", "가볍습니다"),
    ("빠르 빨라 fast", "빨랐", "빠른", "빠릅니다"),
    ("둥글 둥글어 round", "둥글었", "둥근", "둥급니다"),
    ("깨끗하 깨끗해 clean", "깨끗했", "깨끗한", "깨끗합니다"),
    ("높 높아 tall", "높았", "높은", "높습니다"),
    ("짧 짧아 short", "짧았", "짧은", "짧습니다"),
    ("새롭 새로워 new", "새로웠", "새로운", "새롭습니다"),
])
def test_adjectives(line, past, modifier, formal):
    adjective = toy.Adjective(line)
    assert (adjective.past, adjective.modifier, adjective.present[2]) == (past, modifier, formal)


def test_world_is_as_large_as_designed():
    nouns = [noun for noun, _ in WORLD.things]
    assert len({ko for ko, _ in nouns}) == 120 == len({en for _, en in nouns})
    stems = set()
    for _, suits in WORLD.things:
        stems.update(adjective.stem for pair in suits for adjective in pair)
    assert len(stems) == 40
    for kind, number, parts in (("rules", 30, 2), ("scripts", 20, 4)):
        distinct = {tuple(event) for _, event in WORLD.told[kind]}
        assert len(distinct) == number and all(len(event) == parts for event in distinct)
        # A particle of its own would give an answer away.
        particle = "{noun:이}" if kind == "rules" else "{noun:을}"
        assert {e[-1][0].split()[0] for e in distinct} == {particle}
        assert kind != "rules" or {e[0][0].split()[0] for e in distinct} == {"{noun:을}"}
    assert len(WORLD.senses) == 12 and all(len(senses) == 2 for senses in WORLD.senses.values())
    assert len(WORLD.names) >= 200 and not set(WORLD.names) & set(WORLD.item_names)
    assert math.isclose(sum(weight for weight, *_ in WORLD.topics.values()), 1)


def test_every_document_keeps_one_speech_level():
    teller = toy.Teller("levels", 0)
    seen = Counter()
    for _ in range(200):
        ends = set()
        for sentence in teller.document()[:-1].split(". "):
            if not re.search(r"(예|아니오)$", sentence):
                ends.add(re.search(r"(습니다|니다|요|다)$", sentence)[0].removeprefix("습"))
        assert len(ends) == 1
        seen[ends.pop()] += 1
    assert set(seen) == {"다", "요", "니다"} and seen["다"] > seen["요"]


# ---- The corpus ----------------------------------------------------------------------------------

def test_same_seed_same_files_other_seed_other_text(folder, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        toy.main(["--out", str(tmp_path / name), "--documents", str(SIZE), "--seed", str(seed)])
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert len(files) == 2 * toy.FILES + 15 + 2
    assert all((folder / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    assert all((folder / f).read_bytes() != (tmp_path / "other" / f).read_bytes() for f in files)


def test_faults_are_where_planted_says(documents, planted):
    for name, texts in documents.items():
        found = planted[name]
        assert len(texts) == SIZE and all(i.startswith(name) for i in texts)
        for kind, share in toy.DIRT.items():
            expected = 0 if kind == "leaked" and name == "en" else round(share * SIZE)
            assert len(found[kind]) == expected
        members = [i for kind in toy.DIRT for i in ids(found, kind)]
        assert len(members) == len(set(members))  # no document has two faults
        assert set(members) <= set(texts)
        assert all(texts[copy] == texts[original] for copy, original in found["exact"])
        clean = {i: t for i, t in texts.items() if i not in members}
        assert len(set(clean.values())) == len(clean)
        for i in found["personal"]:
            assert re.search(r"\d{3}-\d{4}|-04-\d{6}|@example", texts[i])
        assert not any(re.search(r"\d-\d|\d{6}|@", text) for text in clean.values())


def test_near_copies_are_near_and_nothing_else_is(documents, planted):
    def grams(text: str) -> set[str]:
        return {text[i:i + 5] for i in range(len(text) - 4)}

    def jaccard(one: set[str], two: set[str]) -> float:
        return len(one & two) / len(one | two)

    for name, texts in documents.items():
        found = planted[name]
        near = [jaccard(grams(texts[copy]), grams(texts[first])) for copy, first in found["near"]]
        assert 0.85 <= min(near) and max(near) < 1
        faulty = ids(found, "exact") | ids(found, "near") | ids(found, "junk")
        others = [grams(texts[i]) for i in sorted(set(texts) - faulty)[:160]]
        assert max(jaccard(a, b) for a, b in itertools.combinations(others, 2)) < 0.7


def test_personal_data_is_nobodys(documents, planted):
    texts = [documents[name][i] for name in documents for i in planted[name]["personal"]]
    text = " ".join(texts)
    cards = re.findall(r"\d{4}-\d{4}-\d{4}-\d{4}", text)
    for card in cards:  # Luhn, from the right: every second digit doubled
        digits = [int(d) for d in card[::-1] if d != "-"]
        doubled = sum(d * 2 // 10 + d * 2 % 10 for d in digits[1::2])
        assert (sum(digits[::2]) + doubled) % 10 == 0
    residents = re.findall(r"\b(\d{6})-(\d{7})\b", text)
    for front, back in residents:
        *number, check = [int(d) for d in front + back]
        weights = [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]
        weighted = sum(d * w for d, w in zip(number, weights, strict=True))
        assert check != (11 - weighted % 11) % 10
        assert 1 <= int(front[2:4]) <= 12 and 1 <= int(front[4:]) <= 28
    assert len(cards) > 5 and residents
    assert re.search(r"010-0\d{3}-\d{4}", text)  # 010-0... is not assigned


def test_entropy_is_the_sum_of_the_choices_and_a_floor(folder, documents, planted):
    teller = toy.Teller("bits", 0)
    teller.pick(range(8)), teller.pick("ab", (0.25, 0.75))
    assert teller.bits in (3 + 2, 3 - math.log2(0.75))
    entropy = json.loads((folder / "entropy.json").read_text())
    for language, name in enumerate(("ko", "en")):
        teller = toy.Teller(f"0 {name}", language)
        copies = sum(len(planted[name][kind]) for kind in ("exact", "near", "junk"))
        told = [teller.document() for _ in range(SIZE - copies)]
        faulty = {i for kind in toy.DIRT for i in ids(planted[name], kind)}
        assert set(told) >= {text for i, text in documents[name].items() if i not in faulty}
        n_bytes = sum(len(t.encode()) for t in told)
        assert math.isclose(entropy[name], teller.bits / n_bytes)
        packed = lzma.compress("\n".join(told).encode(), preset=6)
        assert 0.1 < entropy[name] < 8 * len(packed) / n_bytes


# ---- KoBEST --------------------------------------------------------------------------------------

ANSWER = {
    "BoolQ": "Answer",
    "COPA": "Answer",
    "HellaSwag": "label",
    "SentiNeg": "Label",
    "WiC": "ANSWER",
}


def test_files_have_the_columns_of_the_real_ones(folder):
    header = {"BoolQ": "ID Text Question Answer", "COPA": "ID sentence question 1 2 Answer",
              "HellaSwag": "context choice1 choice2 choice3 choice4 label"}
    for task, answer in ANSWER.items():
        everything = []
        for split, size in (("train", 300), ("dev", 100), ("test", 300)):
            table = rows(folder, task, split)
            assert len(table) == size and all(all(row.values()) for row in table)
            for row in table:
                everything.append(tuple(value for key, value in row.items() if key != "ID"))
            labels = Counter(row[answer].lower() for row in table)
            assert len(set(labels.values())) == 1  # balanced
            assert len(labels) == (4 if task == "HellaSwag" else 2)
            if task in header:
                assert " ".join(table[0]) == header[task]
            if "ID" in table[0]:
                assert [row["ID"] for row in table] == [str(i + 1) for i in range(size)]
        assert len(set(everything)) == len(everything)
    assert list(rows(folder, "SentiNeg", "train")[0]) == ["ID", "Text", "Label"]
    assert list(rows(folder, "SentiNeg", "dev")[0]) == ["ID", "Label", "Text"]
    more = {"Label_origin", "Text_origin", "Category_neg"}
    assert more < rows(folder, "SentiNeg", "test")[0].keys()
    assert {row["Answer"] for row in rows(folder, "BoolQ", "test")} == {"True", "TRUE", "False"}
    for row in rows(folder, "WiC", "test"):
        assert f"[{row['Target']}]" in row["SENTENCE1"] and f"[{row['Target']}]" in row["SENTENCE2"]
        assert (row["Dictionary 1"] == row["Dictionary 2"]) == (row["ANSWER"].lower() == "true")
    # Cause, result.
    assert {row["question"] for row in rows(folder, "COPA", "test")} == {"원인", "결과"}


def test_what_is_asked_was_never_told(documents, planted):
    told = {kind: {(noun, tuple(event)) for noun, event in WORLD.told[kind]} for kind in WORLD.told}
    leaked = ids(planted["ko"], "leaked")
    corpus = "".join(f" {text}" for i, text in documents["ko"].items() if i not in leaked)
    for kind, asked in WORLD.asked.items():
        pairs = {}
        for split in toy.ROWS:
            pairs[split] = {(noun, tuple(e)) for noun, events in asked[split] for e in events}
        assert pairs["test"] and pairs["dev"] and not pairs["test"] & pairs["dev"]
        for noun, event in pairs["test"] | pairs["dev"]:
            assert (noun, event) not in told[kind]
            # What has the noun in it: both parts of a rule, the second and last steps of a script.
            for part in event if kind == "rules" else (event[1], event[3]):
                assert f" {part[0].format(noun=noun[0])}" not in corpus
        # The events themselves are told, of other nouns.
        assert {event for _, event in pairs["test"]} <= {event for _, event in told[kind]}
    for korean, _ in WORLD.item_names:
        assert not any(f" {korean:{particle}} " in corpus for particle in ("은", "이", "과", "의"))


def test_only_leaks_share_text_with_the_benchmark(folder, documents, planted):
    fields = set()
    for task, split in itertools.product(ANSWER, toy.ROWS):
        for row in rows(folder, task, split):
            for key, value in row.items():
                if not key.startswith(("Dict", "Link")):
                    fields.add(letters(value))
    runs = {field[i:i + 25] for field in fields for i in range(len(field) - 24)}
    starts = defaultdict(list)
    for field in fields:
        if len(field) >= 12:
            starts[field[:12]].append(field)
    shared = set()
    for i, text in documents["ko"].items():
        text = letters(text)
        for k in range(len(text)):
            whole_fields = starts.get(text[k:k + 12], ())
            if text[k:k + 25] in runs or any(text.startswith(f, k) for f in whole_fields):
                shared.add(i)
    assert shared == set(planted["ko"]["leaked"])


class Ngrams:
    """A control: an n-gram model of words, interpolated to order 5 (Jelinek-Mercer). Its score is
    log P(choice | context)."""

    def __init__(self, texts, order=5, keep=0.7):
        self.order = order
        self.keep = keep
        self.counts = Counter()
        self.totals = Counter()
        for text in texts:
            words = text.split()
            for i in range(len(words)):
                for n in range(min(order, i + 1)):
                    self.counts[tuple(words[i - n:i + 1])] += 1
                    self.totals[tuple(words[i - n:i])] += 1

    def word(self, before: list[str], word: str) -> float:
        p = 1e-6
        for n in range(min(self.order - 1, len(before)) + 1):
            history = tuple(before[len(before) - n:])
            if self.totals[history]:
                share = self.counts[(*history, word)] / self.totals[history]
                p = (1 - self.keep) * p + self.keep * share
        return p

    def score(self, context: str, choice: str) -> float:
        words, start = f"{context} {choice}".split(), len(context.split())
        return sum(math.log(self.word(words[:i], words[i])) for i in range(start, len(words)))


def overlap(context: str, choice: str) -> float:
    def grams(text):
        return {text[i:i + 2] for i in range(len(text) - 1)}
    return len(grams(context) & grams(choice)) / len(grams(choice))


def questions(folder, task: str):
    for row in rows(folder, task, "test"):
        if task == "COPA":
            mark = {"원인": "왜냐하면", "결과": "그래서"}[row["question"]]
            yield f"{row['sentence']} {mark}", [row["1"], row["2"]], int(row["Answer"]) - 1
        else:
            yield row["context"], [row[f"choice{i}"] for i in range(1, 5)], int(row["label"])


def accuracy(items, score) -> float:
    """The share that a scorer gets right. A tie counts as a share of a right answer, so that a
    scorer that cannot tell is not lucky."""
    right = []
    for context, choices, label in items:
        scores = [round(score(context, choice), 9) for choice in choices]
        right.append((scores[label] == max(scores)) / scores.count(max(scores)))
    return sum(right) / len(right)


def test_controls_get_what_chance_gets(folder, documents, planted):
    faulty = ids(planted["ko"], "junk") | ids(planted["ko"], "leaked")
    ngrams = Ngrams(text for i, text in documents["ko"].items() if i not in faulty)
    told = WORLD.told["rules"][:50]
    known = []
    for noun, (cause, effect) in told:
        if sum(n == noun for n, _ in told) == 3:
            _, wrong = next(e for n, e in WORLD.told["rules"] if n == noun and e[0] != cause)
            choices = [f"{event[0].format(noun=noun[0])}다." for event in (effect, wrong)]
            known.append((f"어제 민준이 {cause[0].format(noun=noun[0])}다. 그래서", choices, 0))
    assert accuracy(known, ngrams.score) > 0.8  # it knows what it was told,

    for task, chance in (("COPA", 0.5), ("HellaSwag", 0.25)):
        items = list(questions(folder, task))
        assert abs(accuracy(items, ngrams.score) - chance) <= 0.05  # but not what is asked.
        # The answer alone gives nothing away, nor do its length, the letters that it shares with
        # the context, or the rows before.
        assert math.isclose(accuracy(items, lambda _, choice: ngrams.score("", choice)), chance)
        assert math.isclose(accuracy(items, lambda _, choice: len(choice)), chance)
        assert abs(accuracy(items, overlap) - chance) <= 0.1
        assert len({str(choices) for _, choices, _ in items[:8]}) > 4


def test_mistakes_are_one_line(tmp_path, capsys):
    with pytest.raises(toy.cli.UserError, match="--documents 10 is too few"):
        toy.main(["--out", str(tmp_path / "w"), "--documents", "10"])
    assert not (tmp_path / "w").exists()
    with pytest.raises(SystemExit) as stop:
        toy.main(["--out", "x", "--document", "5"])
    assert stop.value.code == 2 and "did you mean --documents?" in capsys.readouterr().err
