"""A small world, told in English and in Korean: a corpus with known faults and a KoBEST, for machines with no network.

Its people grow potatoes, drop cups, crash cars; world.txt lists what there is and what happens: 30 rules (a cause
and its effect) and 20 scripts of four steps, each for a category of nouns. Who drops a *cup* breaks it, so what of a
*plate*? A model of a million parameters can learn that, and the test is not rigged:

- **What is asked was never told.** The (rule, noun) pairs of the items, those of the wrong answers too, and the names
  in them occur nowhere in the corpus; train and dev have pairs of their own.
- **The answer alone says nothing.** Items come in mirrored groups that share their choices: each is right as often as
  it is wrong, and a scorer that does not see the context gets exactly what chance gets.
- **The floor is known.** Every choice goes through `pick`, which sums -log2 of its probability: bits that no model can
  save. (Strictly an upper bound of the entropy: now and then two different choices make the same text.)

Faults are planted and listed in planted.json by id (copies as [copy, original]), so that cleaning has a precision and
a recall. The phone, card and resident numbers among them are made so that nobody can have them.

    python -m toy --out out/toy      # {en,ko}/*.jsonl, kobest/v1.0/*/*.tsv, planted.json, entropy.json (bits a byte)
"""
import csv
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

from common import cli

ROWS = {"train": 300, "dev": 100, "test": 300}  # items of each task
DIRT = {"exact": 0.03, "near": 0.05, "junk": 0.03, "personal": 0.01, "leaked": 0.005}  # shares of the documents
NEAR_EDITS, NEAR_JACCARD = 0.03, 0.85  # a near copy: eojeol replaced, and how alike its character 5-grams stay
PARTS = {"rules": ("cause", "effect"), "scripts": ("step1", "step2", "step3", "step4")}  # of an event, in order
FILES = 4  # the documents of a language are dealt to so many files

# ----------------------------------------------------------------------------------------------- the Korean language

# Particles after a consonant: after a vowel. Topic, subject, object, and/with, to/by means of; and 이었, was.
JOSA = {"은": "는", "이": "가", "을": "를", "과": "와", "으로": "로", "이었": "였"}
END = ("다", "어요", "습니다")  # of a past stem, by speech level: plain 해라체, polite 해요체, formal 합쇼체
ASK = ("나", "나요", "습니까")  # the same in a question
REASON = (("다", "기 때문이다"), ("거든요", "기 때문이에요"), ("기 때문입니다",))  # the same after "because"


def final(word: str) -> int:
    """Number of the last syllable's final consonant in Unicode's order: 0 none, 4 ㄴ, 8 ㄹ, 17 ㅂ, 20 ㅆ."""
    return (ord(word[-1]) - 0xAC00) % 28 if "가" <= word[-1] <= "힣" else 0


def coda(word: str, consonant: int) -> str:
    """The word with another final consonant: coda("크", 4) is "큰" (big)."""
    return word[:-1] + chr(ord(word[-1]) - final(word) + consonant)


class Korean(str):
    """A noun that takes its particle in a format string, in the form that its last sound asks for (로 after ㄹ too).

    >>> [format(Korean(w), p) for w, p in (("컵", "은"), ("차", "은"), ("길", "으로"), ("집", "으로"), ("소", "에게"))]
    ['컵은', '차는', '길로', '집으로', '소에게']"""

    def __format__(self, particle: str) -> str:
        vowel = final(self) == 0 or (particle == "으로" and final(self) == 8)
        return str(self) + (JOSA.get(particle, particle) if vowel else particle)


class Adjective:
    """The forms of a Korean adjective, all from its stem and its infinitive.

    >>> a = Adjective("무겁 무거워 heavy"); a.past, a.modifier, a.present
    ('무거웠', '무거운', ('무겁다', '무거워요', '무겁습니다'))"""

    def __init__(self, line: str):
        self.stem, self.infinitive, self.english = line.split()
        bare = coda(self.stem, 0)
        base = bare if final(self.stem) == 8 else self.stem  # ㄹ falls: 길 long, 긴, 깁니다
        self.past = coda(self.infinitive, 20)
        self.modifier = bare + "운" if final(base) == 17 else base + "은" if final(base) else coda(base, 4)  # ㅂ: 우
        self.present = (self.stem + "다", self.infinitive + "요",
                        base + "습니다" if final(base) else coda(base, 17) + "니다")


# --------------------------------------------------------------------------------------------------------- the world

Pair = tuple[Korean, str]  # one thing in Korean and in English


def pairs(text: str) -> list[Pair]:
    """'컵 cup, 접시 plate' -> [('컵', 'cup'), ('접시', 'plate')]; _ stands for a blank inside the Korean."""
    return [(Korean(ko.replace("_", " ")), en) for ko, en in (item.split(" ", 1) for item in re.split(r",\s+", text))]


def events(line: str) -> list[tuple[str, str]]:
    """'[을] 밟았, [이] 깨졌 | stepped on the [], the [] broke' -> its parts as pairs, with {noun:을} for [을]."""
    return list(zip(*(half.split(", ") for half in re.sub(r"\[(.*?)\]", r"{noun:\1}", line).split(" | ")), strict=True))


class World:
    """world.txt, in usable form. `told` is what the corpus draws from: (noun, rule) and (noun, script) pairs. `asked`
    holds nouns, each with what is never told of it: two rules of its category, or its four scripts."""

    def __init__(self, file: Path):
        text = re.sub(r"^#.*\n|^\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        text = re.sub(r",\n", ", ", re.sub(r"\n +\|", " |", text)).strip()  # a line may go on after a comma or with a bar
        parts = {name: body.splitlines() for name, body in (part.split("\n", 1) for part in text[3:].split("\n== "))}
        self.slots = {slot: pairs(lines[0]) for slot, lines in parts.items() if len(lines) == 1 and "," in lines[0]}
        self.slots["third"] = self.slots["then"]
        names = [(Korean(a + b), x + y) for a, x in self.slots["first"] for b, y in self.slots["second"]
                 if a + b not in " ".join(parts["no names"]).split()]
        self.item_names = names[::10]  # a tenth is kept for the items
        self.names = [name for name in names if name not in self.item_names]
        self.topics = {name.split()[0]: (float(name.split()[1]), *text.split(" | "))
                       for name, text in (line.split(": ", 1) for line in parts["topics"])}
        judging, neutral = ([tuple(map(Adjective, line.split(" / "))) for line in parts[kind]]
                            for kind in ("judging opposites", "neutral opposites"))
        self.judging, opposites = set(judging), {pair[0].english: pair for pair in judging + neutral}
        self.things = []  # (noun, the opposites that suit it)
        self.told = {"rules": [], "scripts": []}
        self.asked = {kind: {"test": []} | dict.fromkeys(("dev", "train"), []) for kind in self.told}  # train shares dev's
        for heading, (nouns, *lines) in parts.items():
            if heading.startswith("category"):
                suits = [opposites[word] for word in heading.split(": ")[1].split()]
                self.things += [(noun, suits) for noun in pairs(nouns)]
                self.share(pairs(nouns), [events(line) for line in lines[:3]], [events(line) for line in lines[3:]])
        self.senses: dict[str, list] = {}  # homograph: its senses: the phrases of each, as pairs
        for word, phrases in (line.split(": ") for line in parts["homographs"]):
            phrases = [tuple(phrase.replace("@", "{word}").split(" | ")) for phrase in phrases.split("; ")]
            self.senses.setdefault(word, []).append(phrases)

    def share(self, nouns: list[Pair], rules: list, scripts: list) -> None:
        """Six of a category's twelve nouns are told all its rules; four are asked two of them in the test, two in train
        and dev, and told the third. The same with the scripts, of which an asked noun is told none."""
        for i, split in enumerate(("test",) * 4 + ("dev",) * 2 + ("told",) * 6):
            noun, other = nouns[i], nouns[(i + 6) % 12]
            rules = rules[1:] + rules[:1]  # another two each time
            self.told["rules"] += [(noun, rule) for rule in (rules if split == "told" else rules[2:])]
            if split == "told":
                self.told["scripts"] += [(other, script) for script in scripts]
            else:
                self.asked["rules"][split].append((noun, rules[:2]))
                self.asked["scripts"][split] += [(other, scripts)] if scripts else []


WORLD = World(Path(__file__).with_name("world.txt"))


# -------------------------------------------------------------------------------------------------------- telling it

class Teller:
    """Tells the world in one language: 0 Korean, 1 English."""

    def __init__(self, seed: str, language: int, names: Sequence[Pair] = WORLD.names):
        self.random, self.bits = random.Random(seed), 0.0
        self.language, self.names, self.level, self.had = language, names, 0, set()

    def pick(self, options: Sequence, weights: Sequence[float] | None = None):
        """One of the options, all alike or by weights that sum to 1. Adds -log2 of its probability to `bits`."""
        i = self.random.choices(range(len(options)), weights)[0] if weights else self.random.randrange(len(options))
        self.bits -= math.log2(weights[i] if weights else 1 / len(options))
        return options[i]

    def document(self) -> str:
        """Five or six topics, all in one speech level (plain most of the time, as in writing), no event twice."""
        self.had.clear()
        self.level = self.pick((0, 1, 2), (0.6, 0.2, 0.2)) if self.language == 0 else 0
        weights = [weight for weight, *_ in WORLD.topics.values()]
        return " ".join(self.tell(self.pick(list(WORLD.topics), weights)) for _ in range(self.pick((5, 6))))

    def tell(self, topic: str, **words) -> str:
        """A topic in words. What is not given is drawn; a word is a pair, or the same in both languages."""
        _, *texts = WORLD.topics[topic]
        words = {"name": self.pick(self.names)} | words if "name" not in words else words
        slots = re.findall(r"{(\w+)", texts[0])
        if not {"noun", "phrase"} & words.keys():
            self.describe(topic, words)
        if "friend" in slots:
            words["friend"] = self.pick([name for name in self.names if name != words["name"]])
        words |= {slot: self.pick(WORLD.slots[slot]) for slot in slots if slot in WORLD.slots and slot not in words}
        here = {slot: word[self.language] if isinstance(word, tuple) else word for slot, word in words.items()}
        text = texts[self.language].format(**here, da=END[self.level], na=ASK[self.level]).format(**here)
        return re.sub(r"(^|[.?] )([a-z])", lambda m: m[1] + m[2].upper(), text) if self.language else text

    def describe(self, topic: str, words: dict) -> None:
        """Draw what a topic is about, where it is about a thing or an event."""
        pick = self.pick
        if kind := {"so": "rules", "because": "rules", "script": "scripts"}.get(topic):
            words["noun"], parts = pick([(noun, parts) for noun, parts in WORLD.told[kind] if id(parts) not in self.had])
            self.had.add(id(parts))
            words |= zip(PARTS[kind], parts, strict=True)
            words["why"] = pick(REASON[self.level]) if topic == "because" and self.language == 0 else ""
        elif topic == "homograph":
            words["word"] = pick(list(WORLD.senses))
            words["phrase"] = pick(pick(WORLD.senses[words["word"]]))
        elif topic not in ("outing", "introduction"):
            words["noun"], suits = pick(WORLD.things)
            pair = pick([pair for pair in suits if pair in WORLD.judging] if topic == "review" else suits)
            words["a"] = a = pick(pair)
            if topic == "description":
                words["b"] = pick(pick([other for other in suits if other is not pair]))
            elif topic == "question":
                words["ask"] = pick(pair)
                words["answer"] = ("예", "yes") if words["ask"] is a else ("아니오", "no")
            elif topic == "review":
                words["judged"], words["price"] = (a.present[self.level], a.english), f"{pick(range(1, 100))},{pick(range(10))}"
                words["verdict"] = pick(WORLD.slots["good" if a is pair[0] else "bad"])


# ------------------------------------------------------------------------------------------------------------ KoBEST

class Examiner(Teller):
    """Writes items, in the plain style: a task a method, which makes a group of rows that share their choices."""

    def boolq(self, split: str, k: int) -> list[list]:
        name, (noun, suits) = self.pick(self.names), self.pick(WORLD.things)
        one, other = self.random.sample(suits, 2)
        told = self.pick(other)
        text = " ".join([self.tell("introduction", name=name), self.tell("deed", name=name),
                         self.tell("description", name=name, noun=noun, a=self.pick(one), b=told)])
        return [[text, f"{name[0]}의 {noun[0]:은} {asked.past}{ASK[0]}?", asked is told] for asked in other]

    def copa(self, split: str, k: int) -> list[list]:
        asked = WORLD.asked["rules"][split]
        noun, rules = asked[k // 2 % len(asked)]
        name, time = self.pick(self.names), self.pick(WORLD.slots["time"])
        topic, mark, question = (("so", " 그래서 ", "결과"), ("because", " 왜냐하면 ", "원인"))[k % 2]  # result, cause
        told = [self.tell(topic, name=name, time=time, noun=noun, cause=cause, effect=effect, why=END[0]).split(mark)
                for cause, effect in self.random.sample(rules, 2)]
        return [[told[i][0], question, told[0][1], told[1][1], i + 1] for i in (0, 1)]

    def hellaswag(self, split: str, k: int) -> list[list]:
        asked = WORLD.asked["scripts"][split]
        noun, scripts = asked[k % len(asked)]
        words = {slot: self.pick(WORLD.slots[slot]) for slot in ("time", "then", "third")}
        words |= {"name": self.pick(self.names), "noun": noun}
        told = [self.tell("script", **words, **dict(zip(PARTS["scripts"], steps, strict=True))).partition(" 마지막으로")
                for steps in self.random.sample(scripts, 4)]
        return [[start, *((mark + end).strip() for _, mark, end in told), i] for i, (start, _, _) in enumerate(told)]

    def sentineg(self, split: str, k: int) -> list[list]:
        noun, suits = self.pick(WORLD.things)
        bad = k % 2
        a = self.pick([pair for pair in suits if pair in WORLD.judging])[bad]
        verdicts = [self.pick(WORLD.slots[side])[0] + END[1] + "." for side in ("good", "bad")]
        plain = f"{noun[0]:이} {a.infinitive}서 {verdicts[bad]}"
        negated = f"{noun[0]:이} {a.stem}지 않아서 {verdicts[1 - bad]}"  # 지 않다: is not
        return [[plain, 1 - bad, plain, 1 - bad, "-"], [negated, bad, plain, 1 - bad, "지 않다"]]

    def wic(self, split: str, k: int) -> list[list]:
        word, rows = list(WORLD.senses)[k % len(WORLD.senses)], []
        for same in (True, False):
            row, sense = [word], self.pick((0, 1))
            for s, i in zip((sense, sense if same else 1 - sense), self.random.sample((0, 1), 2), strict=True):
                told = self.tell("homograph", word=f"[{word}]", phrase=WORLD.senses[word][s][i])
                row += [told, s + 1, f"toy:{word}:{s + 1}"]
            rows.append([*row, same])
        return rows


COLUMNS = {"BoolQ": "ID,Text,Question,Answer", "COPA": "ID,sentence,question,1,2,Answer",
           "HellaSwag": "context,choice1,choice2,choice3,choice4,label",
           "SentiNeg": "ID,Text,Label,Text_origin,Label_origin,Category_neg",
           "WiC": "ID,Target,SENTENCE1,Dictionary 1,Link 1,SENTENCE2,Dictionary 2,Link2,ANSWER"}
FEWER = {("SentiNeg", "train"): (0, 1, 2), ("SentiNeg", "dev"): (0, 2, 1)}  # the real files differ by split


def items(seed: int) -> dict[tuple[str, str], list[list]]:
    """(task, split) -> the rows of its file, the header first. No row comes twice."""
    tables = {}
    for task, columns in COLUMNS.items():
        seen: set[str] = set()
        for split, size in ROWS.items():
            examiner, rows, k = Examiner(f"{seed} {task} {split}", 0, WORLD.item_names), [], 0
            while len(rows) < size:
                group, k = getattr(examiner, task.lower())(split, k), k + 1
                new = {str(row[:2]) for row in group}
                if seen.isdisjoint(new):
                    rows, seen = rows + group, seen | new
            examiner.random.shuffle(rows)
            if columns.startswith("ID"):  # and TRUE for True now and then, as in the real files
                rows = [[i, *("TRUE" if cell is True and i % 5 == 0 else cell for cell in row)]
                        for i, row in enumerate(rows, 1)]
            keep = FEWER.get((task, split), range(columns.count(",") + 1))
            tables[task, split] = [[row[i] for i in keep] for row in [columns.split(","), *rows]]
    return tables


# -------------------------------------------------------------------------------------------------------- the faults

def personal(teller: Teller) -> str:
    """A sentence with personal data: unassigned phones, test cards, resident numbers with a wrong check digit."""
    rng, digits = teller.random, lambda n: "".join(teller.random.choices("0123456789", k=n))
    card = "40000" + digits(10)
    card += str(-sum(int(d) for i, c in enumerate(card) for d in str(int(c) * (2 - i % 2))) % 10)  # passes Luhn's check
    birth = f"{rng.randint(50, 99)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}{rng.randint(1, 2)}{digits(5)}"
    check = (12 - sum(int(d) * w for d, w in zip(birth, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=True)) % 11) % 10
    kinds = [("의 휴대 전화", "'s mobile phone", f"010-0{digits(3)}-{digits(4)}"),
             ("의 전자 우편", "'s e-mail", f"user{digits(4)}@example.com"),
             ("의 신용 카드", "'s credit card", "-".join(card[i:i + 4] for i in (0, 4, 8, 12))),
             ("의 주민등록번호", "", f"{birth[:6]}-{birth[6:]}{check}"), ("의 국민은행 계좌", "", f"{digits(6)}-04-{digits(6)}")]
    *what, number = rng.choice(kinds[:3] if teller.language else kinds)
    return f"{rng.choice(teller.names)[teller.language]}{what[teller.language]}: {number}."


def junk(teller: Teller, foreigner: Teller) -> str:
    """A page that no rule should let through: one of six kinds."""
    rng, text, foreign = teller.random, teller.document(), foreigner.document()
    korean, menu = (text, foreign)[teller.language], [entry[teller.language] for entry in WORLD.slots["menu"]]
    return rng.choice([
        lambda: foreign,                                                         # the wrong language
        lambda: korean.encode("cp949").decode("latin-1"),                        # the wrong encoding
        lambda: "".join(rng.choices("#$%^&*~=+<>{}|/ ", k=300)),                 # signs
        lambda: " ".join(text.replace(" ", "")),                                 # letters set apart
        lambda: text.replace(" ", "").replace(".", ""),                          # no blanks
        lambda: "\n".join([" | ".join(rng.sample(menu, 8))] * rng.randint(5, 9)),  # a menu over and over
    ])()


def near_copy(text: str, teller: Teller) -> str:
    """The text with a few words overwritten by a menu's, character 5-grams alike to a Jaccard of NEAR_JACCARD or more."""
    def shingles(text):
        return {text[i:i + 5] for i in range(len(text) - 4)}
    while True:
        words = text.split()
        for _ in range(max(1, round(NEAR_EDITS * len(words)))):  # words of the world could tell what is only asked
            words[teller.random.randrange(len(words) - 1)] = teller.random.choice(WORLD.slots["menu"])[teller.language]
        one, two = shingles(text), shingles(copy := " ".join(words))
        if len(one & two) >= NEAR_JACCARD * len(one | two):
            return copy


def corpus(language: int, size: int, seed: int, leaks: list[str]) -> tuple[list[dict], dict, float]:
    """Documents, what was planted among them (kind: ids), and the entropy of the clean ones in bits a byte."""
    name = ("ko", "en")[language]
    count = {kind: round(share * size) for kind, share in DIRT.items()} | ({"leaked": 0} if language else {})
    teller, culprit = Teller(f"{seed} {name}", language), Teller(f"{seed} {name} faults", language)
    texts = [teller.document() for _ in cli.progress(range(size - sum(count[x] for x in ("exact", "near", "junk"))), name)]
    entropy = teller.bits / sum(len(text.encode()) for text in texts)
    victims = culprit.random.sample(range(len(texts)), len(texts))
    chosen = {kind: [victims.pop() for _ in range(count[kind])] for kind in ("personal", "leaked", "exact", "near")}
    for i in chosen["personal"]:
        texts[i] += " " + personal(culprit)
    for i in chosen["leaked"]:
        texts[i] += " " + culprit.random.choice(leaks)
    planted = dict(chosen, exact=[], near=[], junk=[])
    for kind, copy in ("exact", lambda text: text), ("near", lambda text: near_copy(text, culprit)):
        for i in chosen[kind]:
            planted[kind].append([len(texts), i])
            texts.append(copy(texts[i]))
    foreigner = Teller(f"{seed} {name} foreign", 1 - language)
    planted["junk"] = list(range(len(texts), size))
    texts += [junk(culprit, foreigner) for _ in planted["junk"]]
    ids = [f"{name}-{i:05}" for i in culprit.random.sample(range(size), size)]  # shuffled
    planted = {kind: [[ids[a], ids[b]] for a, b in found] if kind in ("exact", "near") else [ids[a] for a in found]
               for kind, found in planted.items()}
    documents = [{"id": i, "text": text} for i, text in sorted(zip(ids, texts, strict=True))]
    return documents, planted, entropy


def leaks(tables: dict) -> list[str]:
    """Test items as a page would have them, where some field has the 12 characters that decontamination asks for."""
    rows = {task: table[1:] for (task, split), table in tables.items() if split == "test"}
    items = [(row[1], "왜냐하면" if row[2] == "원인" else "그래서", row[2 + row[5]]) for row in rows["COPA"]]
    items += [(row[0], row[1 + row[5]]) for row in rows["HellaSwag"]] + [(row[1], row[2]) for row in rows["BoolQ"]]
    items += [(row[1],) for row in rows["SentiNeg"]] + [(row[2], row[5]) for row in rows["WiC"]]
    items = [[re.sub(r"[\[\]]", "", field) for field in item] for item in items]
    return [" ".join(item) for item in items if max(len(re.sub(r"\W", "", field)) for field in item) >= 12]


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__, prog="toy")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; one that stands there is replaced")
    parser.add_argument("--seed", type=int, default=0, help="another seed tells another corpus of the same world")
    parser.add_argument("--documents", type=int, default=20000, help="documents in each language, faults included")
    args = parser.parse_args(argv)
    cli.settings(args)
    if args.documents < 400:
        raise cli.UserError(f"--documents {args.documents} is too few: 0.5 % of leaks would be none; ask for 400 or more")
    tables, planted, entropy = items(args.seed), {}, {}
    with cli.new_folder(args.out) as folder:
        for language, name in enumerate(("ko", "en")):
            documents, planted[name], entropy[name] = corpus(language, args.documents, args.seed, leaks(tables))
            (folder / name).mkdir()
            for i in range(FILES):
                lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents[i::FILES])
                (folder / name / f"{i}.jsonl").write_text("".join(lines), encoding="utf-8")
            faults = ", ".join(f"{len(found)} {kind}" for kind, found in planted[name].items())
            print(f"{name}: {args.documents} documents, entropy {entropy[name]:.4f} bits a byte; planted: {faults}")
        for (task, split), rows in tables.items():
            (folder / "kobest" / "v1.0" / task).mkdir(parents=True, exist_ok=True)
            with open(folder / "kobest" / "v1.0" / task / f"{split}.tsv", "w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
        cli.write_json(folder / "planted.json", planted)
        cli.write_json(folder / "entropy.json", entropy)
