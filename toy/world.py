"""A small world, told in English and in Korean: a corpus with known faults and a toy KoBEST, for
machines without data or network.

    python -m toy --out out/toy

writes {en,ko}/*.jsonl, kobest/v1.0/*/*.tsv, planted.json and entropy.json (bits per byte).

The people of this world grow potatoes, drop cups and crash cars. world.txt lists what there is and
what happens: 30 rules (a cause and its effect) and 20 scripts of four steps, each for a category of
nouns. If a cup breaks when it is dropped, what about a plate? A model of a million parameters can
learn that, and the test is not rigged:

- **What is asked was never told.** The pairs of rule and noun in the items, wrong answers included,
  and the names in the items occur nowhere in the corpus. Train and dev have pairs of their own.
- **The answer alone says nothing.** Items come in mirrored groups that share their choices. Each
  choice is right as often as it is wrong, so a scorer that does not see the context is at chance.
- **The floor is known.** Every choice goes through `pick`, which sums -log2 of its probability:
  bits that no model can save. (Strictly this is an upper bound of the entropy, since now and then
  two different choices make the same text.)

Faults are planted, and planted.json lists them by id (copies as [copy, original]), so that cleaning
has a precision and a recall. The phone, card and resident numbers among them cannot be anybody's.
"""
import csv
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

from common import cli

# Items of each task.
ROWS = {"train": 300, "dev": 100, "test": 300}

# Planted faults, as shares of the documents.
DIRT = {"exact": 0.03, "near": 0.05, "junk": 0.03, "personal": 0.01, "leaked": 0.005}

# In a near copy: the share of words that are replaced, and the least Jaccard similarity of its
# character 5-grams with those of the original.
NEAR_EDITS = 0.03
NEAR_JACCARD = 0.85

# The parts of an event, in order.
PARTS = {"rules": ("cause", "effect"), "scripts": ("step1", "step2", "step3", "step4")}

# The number of files of each language.
FILES = 4

# ---- The Korean language -------------------------------------------------------------------------

# Particles after a consonant, and after a vowel: topic, subject, object, and/with, to/by means of;
# and 이었, "was".
JOSA = {"은": "는", "이": "가", "을": "를", "과": "와", "으로": "로", "이었": "였"}

# Endings by speech level (plain 해라체, polite 해요체, formal 합쇼체): of a past stem, of a past
# stem in a question, and after "because".
END = ("다", "어요", "습니다")
ASK = ("나", "나요", "습니까")
REASON = (("다", "기 때문이다"), ("거든요", "기 때문이에요"), ("기 때문입니다",))


def final(word: str) -> int:
    """Unicode's number of the last syllable's final consonant: 0 none, 4 ㄴ, 8 ㄹ, 17 ㅂ, 20 ㅆ."""
    if not "가" <= word[-1] <= "힣":
        return 0
    return (ord(word[-1]) - 0xAC00) % 28


def coda(word: str, consonant: int) -> str:
    """The word with another final consonant.

    >>> coda("크", 4)
    '큰'
    """
    return word[:-1] + chr(ord(word[-1]) - final(word) + consonant)


class Korean(str):
    """A noun that, in a format string, takes the form of a particle that fits its last sound.

    >>> nouns = [("컵", "은"), ("차", "은"), ("길", "으로"), ("집", "으로"), ("소", "에게")]
    >>> [format(Korean(noun), particle) for noun, particle in nouns]
    ['컵은', '차는', '길로', '집으로', '소에게']
    """

    def __format__(self, particle: str) -> str:
        # 로 follows a vowel, and ㄹ too.
        vowel = final(self) == 0 or (particle == "으로" and final(self) == 8)
        return str(self) + (JOSA.get(particle, particle) if vowel else particle)


class Adjective:
    """The forms of a Korean adjective, made from its stem and its infinitive.

    >>> heavy = Adjective("무겁 무거워 heavy")
    >>> heavy.past, heavy.modifier, heavy.present
    ('무거웠', '무거운', ('무겁다', '무거워요', '무겁습니다'))
    """

    def __init__(self, line: str):
        self.stem, self.infinitive, self.english = line.split()
        self.past = coda(self.infinitive, 20)

        bare = coda(self.stem, 0)
        # A final ㄹ is dropped: 길, long; 긴, 깁니다.
        base = bare if final(self.stem) == 8 else self.stem
        if final(base) == 17:
            # A final ㅂ becomes 우: 무겁, 무거운.
            self.modifier = bare + "운"
        elif final(base):
            self.modifier = base + "은"
        else:
            self.modifier = coda(base, 4)

        formal = base + "습니다" if final(base) else coda(base, 17) + "니다"
        self.present = (self.stem + "다", self.infinitive + "요", formal)


# ---- The world -----------------------------------------------------------------------------------

# One thing in Korean and in English.
Pair = tuple[Korean, str]


def pairs(text: str) -> list[Pair]:
    """The things in a line of world.txt. An underscore stands for a space inside the Korean.

    >>> pairs("컵 cup, 밥_그릇 rice bowl")
    [('컵', 'cup'), ('밥 그릇', 'rice bowl')]
    """
    found = []
    for item in re.split(r",\s+", text):
        korean, english = item.split(" ", 1)
        found.append((Korean(korean.replace("_", " ")), english))
    return found


def events(line: str) -> list[tuple[str, str]]:
    """The parts of an event in a line of world.txt, as pairs. [을] stands for the noun with its
    particle, and becomes {noun:을}.

    >>> events("[을] 밟았, [이] 깨졌 | stepped on the [], the [] broke")[1]
    ('{noun:이} 깨졌', 'the {noun:} broke')
    """
    halves = re.sub(r"\[(.*?)\]", r"{noun:\1}", line).split(" | ")
    return list(zip(*(half.split(", ") for half in halves), strict=True))


class World:
    """world.txt in usable form.

    `told` is what the corpus draws from: pairs of a noun and a rule, and of a noun and a script.
    `asked` holds nouns, each with what is never told of it: two rules of its category, or its four
    scripts.
    """

    def __init__(self, file: Path):
        parts = self.read(file)
        self.slots = {}
        for slot, lines in parts.items():
            if len(lines) == 1 and "," in lines[0]:
                self.slots[slot] = pairs(lines[0])
        self.slots["third"] = self.slots["then"]

        excluded = " ".join(parts["no names"]).split()
        names = []
        for first, first_english in self.slots["first"]:
            for second, second_english in self.slots["second"]:
                if first + second not in excluded:
                    names.append((Korean(first + second), first_english + second_english))
        self.item_names = names[::10]  # a tenth is kept for the items
        self.names = [name for name in names if name not in self.item_names]

        # {topic: (its probability, its Korean text, its English text)}
        self.topics = {}
        for line in parts["topics"]:
            heading, text = line.split(": ", 1)
            topic, weight = heading.split()
            self.topics[topic] = (float(weight), *text.split(" | "))

        judging, neutral = (
            [tuple(map(Adjective, line.split(" / "))) for line in parts[kind]]
            for kind in ("judging opposites", "neutral opposites")
        )
        self.judging = set(judging)
        opposites = {pair[0].english: pair for pair in judging + neutral}

        self.things = []  # (noun, the opposites that suit it)
        self.told = {"rules": [], "scripts": []}
        self.asked = {}
        for kind in self.told:
            dev = []  # train shares it
            self.asked[kind] = {"test": [], "dev": dev, "train": dev}
        for heading, (nouns, *lines) in parts.items():
            if heading.startswith("category"):
                suits = [opposites[word] for word in heading.split(": ")[1].split()]
                self.things += [(noun, suits) for noun in pairs(nouns)]
                rules = [events(line) for line in lines[:3]]
                scripts = [events(line) for line in lines[3:]]
                self.share(pairs(nouns), rules, scripts)

        # {homograph: its senses}; a sense is a list of phrases, as pairs.
        self.senses: dict[str, list] = {}
        for line in parts["homographs"]:
            word, text = line.split(": ")
            phrases = []
            for phrase in text.split("; "):
                phrases.append(tuple(phrase.replace("@", "{word}").split(" | ")))
            self.senses.setdefault(word, []).append(phrases)

    @staticmethod
    def read(file: Path) -> dict[str, list[str]]:
        """{heading: the lines below it}."""
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"^#.*\n|^\n", "", text, flags=re.MULTILINE)
        # A line may continue after a comma, or on an indented line that begins with a bar.
        text = re.sub(r",\n", ", ", re.sub(r"\n +\|", " |", text)).strip()
        parts = {}
        for part in text[3:].split("\n== "):
            heading, body = part.split("\n", 1)
            parts[heading] = body.splitlines()
        return parts

    def share(self, nouns: list[Pair], rules: list, scripts: list) -> None:
        """Divide what is told from what is asked. Of a category's twelve nouns, six are told with
        all three rules. The test asks two of the rules of four nouns, train and dev of two nouns;
        the third rule of these is told. It is the same with scripts, except that of a noun that is
        asked no script is told."""
        for i, split in enumerate(("test",) * 4 + ("dev",) * 2 + ("told",) * 6):
            noun = nouns[i]
            other = nouns[(i + 6) % 12]
            rules = rules[1:] + rules[:1]  # another two each time
            told = rules if split == "told" else rules[2:]
            self.told["rules"] += [(noun, rule) for rule in told]
            if split == "told":
                self.told["scripts"] += [(other, script) for script in scripts]
            else:
                self.asked["rules"][split].append((noun, rules[:2]))
                if scripts:
                    self.asked["scripts"][split].append((other, scripts))


WORLD = World(Path(__file__).with_name("world.txt"))


# ---- Telling it ----------------------------------------------------------------------------------


class Teller:
    """Tells the world in one language: 0 Korean, 1 English."""

    def __init__(self, seed: str, language: int, names: Sequence[Pair] = WORLD.names):
        self.random = random.Random(seed)
        self.bits = 0.0       # of all choices so far
        self.language = language
        self.names = names
        self.level = 0        # the speech level
        self.had = set()      # events of this document

    def pick(self, options: Sequence, weights: Sequence[float] | None = None):
        """One of the options, equally likely or by weights that sum to 1. Adds -log2 of its
        probability to `bits`."""
        if weights:
            i = self.random.choices(range(len(options)), weights)[0]
            self.bits -= math.log2(weights[i])
        else:
            i = self.random.randrange(len(options))
            self.bits -= math.log2(1 / len(options))
        return options[i]

    def document(self) -> str:
        """Five or six topics, all in one speech level (plain most of the time, as in writing), and
        no event twice."""
        self.had.clear()
        self.level = 0
        if self.language == 0:
            self.level = self.pick((0, 1, 2), (0.6, 0.2, 0.2))
        topics = list(WORLD.topics)
        weights = [weight for weight, *_ in WORLD.topics.values()]
        told = [self.tell(self.pick(topics, weights)) for _ in range(self.pick((5, 6)))]
        return " ".join(told)

    def tell(self, topic: str, **words) -> str:
        """A topic in words. What is not given in `words` is drawn. A word is a pair, or a string
        that is the same in both languages."""
        _, *texts = WORLD.topics[topic]
        if "name" not in words:
            words = {"name": self.pick(self.names)} | words
        slots = re.findall(r"{(\w+)", texts[0])
        if not {"noun", "phrase"} & words.keys():
            self.describe(topic, words)
        if "friend" in slots:
            words["friend"] = self.pick([name for name in self.names if name != words["name"]])
        for slot in slots:
            if slot in WORLD.slots and slot not in words:
                words[slot] = self.pick(WORLD.slots[slot])

        here = {}
        for slot, word in words.items():
            here[slot] = word[self.language] if isinstance(word, tuple) else word
        # Twice: the words hold slots of their own, such as {noun:을} in a rule.
        text = texts[self.language].format(**here, da=END[self.level], na=ASK[self.level])
        text = text.format(**here)
        if self.language == 0:
            return text
        return re.sub(r"(^|[.?] )([a-z])", capital, text)

    def describe(self, topic: str, words: dict) -> None:
        """Draw what a topic is about, if it is about a thing or an event."""
        kinds = {"so": "rules", "because": "rules", "script": "scripts"}
        if topic in kinds:
            kind = kinds[topic]
            left = [event for event in WORLD.told[kind] if id(event[1]) not in self.had]
            words["noun"], parts = self.pick(left)
            self.had.add(id(parts))
            words |= zip(PARTS[kind], parts, strict=True)
            words["why"] = ""
            if topic == "because" and self.language == 0:
                words["why"] = self.pick(REASON[self.level])
        elif topic == "homograph":
            words["word"] = self.pick(list(WORLD.senses))
            words["phrase"] = self.pick(self.pick(WORLD.senses[words["word"]]))
        elif topic not in ("outing", "introduction"):
            self.describe_thing(topic, words)

    def describe_thing(self, topic: str, words: dict) -> None:
        """Draw a thing, and what is said of it."""
        words["noun"], suits = self.pick(WORLD.things)
        fitting = suits
        if topic == "review":
            fitting = [pair for pair in suits if pair in WORLD.judging]
        pair = self.pick(fitting)
        a = self.pick(pair)
        words["a"] = a
        if topic == "description":
            words["b"] = self.pick(self.pick([other for other in suits if other is not pair]))
        elif topic == "question":
            words["ask"] = self.pick(pair)
            words["answer"] = ("예", "yes") if words["ask"] is a else ("아니오", "no")
        elif topic == "review":
            words["judged"] = (a.present[self.level], a.english)
            words["price"] = f"{self.pick(range(1, 100))},{self.pick(range(10))}"
            words["verdict"] = self.pick(WORLD.slots["good" if a is pair[0] else "bad"])


def capital(match: re.Match) -> str:
    """The beginning of a sentence with a capital letter."""
    return match[1] + match[2].upper()


# ---- KoBEST --------------------------------------------------------------------------------------


class Examiner(Teller):
    """Writes items in the plain style. Each method is a task, and makes a group of rows that share
    their choices."""

    def boolq(self, split: str, k: int) -> list[list]:
        name = self.pick(self.names)
        noun, suits = self.pick(WORLD.things)
        one, other = self.random.sample(suits, 2)
        told = self.pick(other)
        text = " ".join([
            self.tell("introduction", name=name),
            self.tell("deed", name=name),
            self.tell("description", name=name, noun=noun, a=self.pick(one), b=told),
        ])
        group = []
        for asked in other:
            question = f"{name[0]}의 {noun[0]:은} {asked.past}{ASK[0]}?"
            group.append([text, question, asked is told])
        return group

    def copa(self, split: str, k: int) -> list[list]:
        asked = WORLD.asked["rules"][split]
        noun, rules = asked[k // 2 % len(asked)]
        name = self.pick(self.names)
        time = self.pick(WORLD.slots["time"])
        # By turns for the result and for the cause.
        kinds = (("so", " 그래서 ", "결과"), ("because", " 왜냐하면 ", "원인"))
        topic, mark, question = kinds[k % 2]
        told = []
        for cause, effect in self.random.sample(rules, 2):
            words = {"name": name, "time": time, "noun": noun, "cause": cause, "effect": effect}
            told.append(self.tell(topic, **words, why=END[0]).split(mark))
        choices = [choice for _, choice in told]
        group = []
        for answer, (sentence, _) in enumerate(told, 1):
            group.append([sentence, question, *choices, answer])
        return group

    def hellaswag(self, split: str, k: int) -> list[list]:
        asked = WORLD.asked["scripts"][split]
        noun, scripts = asked[k % len(asked)]
        words = {slot: self.pick(WORLD.slots[slot]) for slot in ("time", "then", "third")}
        words |= {"name": self.pick(self.names), "noun": noun}
        starts = []
        ends = []
        for steps in self.random.sample(scripts, 4):
            step_words = dict(zip(PARTS["scripts"], steps, strict=True))
            text = self.tell("script", **words, **step_words)
            start, mark, end = text.partition(" 마지막으로")
            starts.append(start)
            ends.append((mark + end).strip())
        return [[start, *ends, i] for i, start in enumerate(starts)]

    def sentineg(self, split: str, k: int) -> list[list]:
        noun, suits = self.pick(WORLD.things)
        bad = k % 2
        a = self.pick([pair for pair in suits if pair in WORLD.judging])[bad]
        verdicts = []
        for side in ("good", "bad"):
            verdicts.append(self.pick(WORLD.slots[side])[0] + END[1] + ".")
        plain = f"{noun[0]:이} {a.infinitive}서 {verdicts[bad]}"
        # 지 않다: is not.
        negated = f"{noun[0]:이} {a.stem}지 않아서 {verdicts[1 - bad]}"
        return [
            [plain, 1 - bad, plain, 1 - bad, "-"],
            [negated, bad, plain, 1 - bad, "지 않다"],
        ]

    def wic(self, split: str, k: int) -> list[list]:
        word = list(WORLD.senses)[k % len(WORLD.senses)]
        rows = []
        for same in (True, False):
            row = [word]
            sense = self.pick((0, 1))
            senses = (sense, sense if same else 1 - sense)
            for s, i in zip(senses, self.random.sample((0, 1), 2), strict=True):
                phrase = WORLD.senses[word][s][i]
                told = self.tell("homograph", word=f"[{word}]", phrase=phrase)
                row += [told, s + 1, f"toy:{word}:{s + 1}"]
            rows.append([*row, same])
        return rows


COLUMNS = {
    "BoolQ": "ID,Text,Question,Answer",
    "COPA": "ID,sentence,question,1,2,Answer",
    "HellaSwag": "context,choice1,choice2,choice3,choice4,label",
    "SentiNeg": "ID,Text,Label,Text_origin,Label_origin,Category_neg",
    "WiC": "ID,Target,SENTENCE1,Dictionary 1,Link 1,SENTENCE2,Dictionary 2,Link2,ANSWER",
}
# Columns by number, where a split has fewer or another order, as in the real files.
FEWER = {("SentiNeg", "train"): (0, 1, 2), ("SentiNeg", "dev"): (0, 2, 1)}


def items(seed: int) -> dict[tuple[str, str], list[list]]:
    """{(task, split): the rows of its file, the header first}. No row comes twice."""
    tables = {}
    for task, columns in COLUMNS.items():
        seen: set[str] = set()
        for split, size in ROWS.items():
            examiner = Examiner(f"{seed} {task} {split}", 0, WORLD.item_names)
            rows = []
            k = 0
            while len(rows) < size:
                group = getattr(examiner, task.lower())(split, k)
                k += 1
                new = {str(row[:2]) for row in group}
                if seen.isdisjoint(new):
                    rows += group
                    seen |= new
            examiner.random.shuffle(rows)
            if columns.startswith("ID"):
                rows = [numbered(i, row) for i, row in enumerate(rows, 1)]
            keep = FEWER.get((task, split), range(columns.count(",") + 1))
            whole = [columns.split(","), *rows]
            tables[task, split] = [[row[i] for i in keep] for row in whole]
    return tables


def numbered(i: int, row: list) -> list:
    """A row with its number; every fifth says TRUE for True, as some of the real files do."""
    cells = [i]
    for cell in row:
        cells.append("TRUE" if cell is True and i % 5 == 0 else cell)
    return cells


# ---- The faults ----------------------------------------------------------------------------------

# The weights of the digits of a resident number, of which the last digit is the check.
RESIDENT_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)


def personal(teller: Teller) -> str:
    """A sentence with personal data that cannot be anybody's: unassigned phone numbers, test cards,
    resident numbers with a wrong check digit."""
    rng = teller.random

    def digits(n: int) -> str:
        return "".join(rng.choices("0123456789", k=n))

    # A card number that passes Luhn's check.
    card = "40000" + digits(10)
    total = 0
    for i, c in enumerate(card):
        total += sum(map(int, str(int(c) * (2 - i % 2))))
    card += str(-total % 10)

    # A resident number whose check digit is one too high.
    birth = f"{rng.randint(50, 99)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    resident = f"{birth}{rng.randint(1, 2)}{digits(5)}"
    weighted = sum(int(d) * w for d, w in zip(resident, RESIDENT_WEIGHTS, strict=True))
    check = (12 - weighted % 11) % 10

    kinds = [
        ("의 휴대 전화", "'s mobile phone", f"010-0{digits(3)}-{digits(4)}"),
        ("의 전자 우편", "'s e-mail", f"user{digits(4)}@example.com"),
        ("의 신용 카드", "'s credit card", "-".join(card[i:i + 4] for i in (0, 4, 8, 12))),
        ("의 주민등록번호", "", f"{resident[:6]}-{resident[6:]}{check}"),
        ("의 국민은행 계좌", "", f"{digits(6)}-04-{digits(6)}"),
    ]
    # The last two kinds exist in Korea alone.
    *what, number = rng.choice(kinds[:3] if teller.language else kinds)
    name = rng.choice(teller.names)[teller.language]
    return f"{name}{what[teller.language]}: {number}."


def junk(teller: Teller, foreigner: Teller) -> str:
    """A page that no rule should let through: one of six kinds."""
    rng = teller.random
    text = teller.document()
    foreign = foreigner.document()
    korean = (text, foreign)[teller.language]
    menu = [entry[teller.language] for entry in WORLD.slots["menu"]]
    kind = rng.choice(
        ["wrong language", "wrong encoding", "symbols", "spaced out", "run together", "menu"]
    )
    if kind == "wrong language":
        return foreign
    if kind == "wrong encoding":
        return korean.encode("cp949").decode("latin-1")
    if kind == "symbols":
        return "".join(rng.choices("#$%^&*~=+<>{}|/ ", k=300))
    if kind == "spaced out":
        return " ".join(text.replace(" ", ""))
    if kind == "run together":
        return text.replace(" ", "").replace(".", "")
    row = " | ".join(rng.sample(menu, 8))
    return "\n".join([row] * rng.randint(5, 9))


def shingles(text: str) -> set[str]:
    """The character 5-grams of a text."""
    return {text[i:i + 5] for i in range(len(text) - 4)}


def near_copy(text: str, teller: Teller) -> str:
    """The text with a few words replaced, similar by NEAR_JACCARD or more.

    The new words are those of a site's menu: words of the world could tell what is only asked.
    """
    menu = WORLD.slots["menu"]
    while True:
        words = text.split()
        for _ in range(max(1, round(NEAR_EDITS * len(words)))):
            # The word is drawn before its place.
            word = teller.random.choice(menu)[teller.language]
            words[teller.random.randrange(len(words) - 1)] = word
        copy = " ".join(words)
        one = shingles(text)
        two = shingles(copy)
        if len(one & two) >= NEAR_JACCARD * len(one | two):
            return copy


def corpus(language: int, size: int, seed: int, leaks: list[str]) -> tuple[list[dict], dict, float]:
    """Documents, what was planted in them (kind: ids), and the entropy of the clean ones in bits
    per byte."""
    name = ("ko", "en")[language]
    count = {kind: round(share * size) for kind, share in DIRT.items()}
    if name == "en":
        count["leaked"] = 0  # KoBEST is Korean
    teller = Teller(f"{seed} {name}", language)
    culprit = Teller(f"{seed} {name} faults", language)

    # Clean documents. Copies and junk come on top.
    clean = size - count["exact"] - count["near"] - count["junk"]
    texts = [teller.document() for _ in cli.progress(range(clean), name)]
    entropy = teller.bits / sum(len(text.encode()) for text in texts)

    # No document gets two faults.
    victims = culprit.random.sample(range(len(texts)), len(texts))
    chosen = {}
    for kind in ("personal", "leaked", "exact", "near"):
        chosen[kind] = [victims.pop() for _ in range(count[kind])]
    for i in chosen["personal"]:
        texts[i] += " " + personal(culprit)
    for i in chosen["leaked"]:
        texts[i] += " " + culprit.random.choice(leaks)
    copies = {"exact": [], "near": []}
    for kind, pairs_of_kind in copies.items():
        for i in chosen[kind]:
            pairs_of_kind.append([len(texts), i])
            texts.append(texts[i] if kind == "exact" else near_copy(texts[i], culprit))
    foreigner = Teller(f"{seed} {name} foreign", 1 - language)
    junk_places = list(range(len(texts), size))
    texts += [junk(culprit, foreigner) for _ in junk_places]

    # Ids in random order, so that faults lie anywhere.
    ids = [f"{name}-{i:05}" for i in culprit.random.sample(range(size), size)]
    planted = {}
    for kind in ("personal", "leaked"):
        planted[kind] = [ids[i] for i in chosen[kind]]
    for kind, pairs_of_kind in copies.items():
        planted[kind] = [[ids[copy], ids[original]] for copy, original in pairs_of_kind]
    planted["junk"] = [ids[i] for i in junk_places]
    documents = [{"id": i, "text": text} for i, text in sorted(zip(ids, texts, strict=True))]
    return documents, planted, entropy


def leaks(tables: dict) -> list[str]:
    """Test items as a page would quote them, if a field has the 12 characters that decontamination
    needs."""
    rows = {task: table[1:] for (task, split), table in tables.items() if split == "test"}
    items = []
    for _, sentence, question, *choices, answer in rows["COPA"]:
        mark = "왜냐하면" if question == "원인" else "그래서"
        items.append((sentence, mark, choices[answer - 1]))
    for context, *choices, label in rows["HellaSwag"]:
        items.append((context, choices[label]))
    for _, text, question, _ in rows["BoolQ"]:
        items.append((text, question))
    for _, text, *_ in rows["SentiNeg"]:
        items.append((text,))
    for row in rows["WiC"]:
        items.append((row[2], row[5]))

    found = []
    for item in items:
        fields = [re.sub(r"[\[\]]", "", field) for field in item]
        if max(len(re.sub(r"\W", "", field)) for field in fields) >= 12:
            found.append(" ".join(fields))
    return found


def main(argv: list[str] | None = None) -> None:
    """Write the world's files."""
    parser = cli.Parser(description=__doc__, prog="toy")
    parser.add_argument("--out", type=Path, required=True,
                        help="folder to write; an existing one is replaced")
    parser.add_argument("--seed", type=int, default=0,
                        help="another seed gives another corpus of the same world")
    parser.add_argument("--documents", type=int, default=20000,
                        help="documents in each language, faults included; at least 400")
    args = parser.parse_args(argv)
    cli.settings(args)
    if args.documents < 400:
        raise cli.UserError(
            f"--documents {args.documents} is too few for every kind of fault; use 400 or more"
        )

    tables = items(args.seed)
    planted = {}
    entropy = {}
    with cli.new_folder(args.out) as folder:
        for language, name in enumerate(("ko", "en")):
            documents, planted[name], entropy[name] = corpus(
                language, args.documents, args.seed, leaks(tables)
            )
            write_documents(documents, folder / name)
            faults = ", ".join(f"{len(found)} {kind}" for kind, found in planted[name].items())
            print(
                f"{name}: {args.documents} documents, entropy {entropy[name]:.4f} bits per byte; "
                f"planted: {faults}"
            )
        for (task, split), rows in tables.items():
            write_table(rows, folder / "kobest" / "v1.0" / task / f"{split}.tsv")
        cli.write_json(folder / "planted.json", planted)
        cli.write_json(folder / "entropy.json", entropy)


def write_documents(documents: list[dict], folder: Path) -> None:
    """The documents as JSON lines, dealt to FILES files."""
    folder.mkdir()
    for i in range(FILES):
        lines = [json.dumps(d, ensure_ascii=False) + "\n" for d in documents[i::FILES]]
        (folder / f"{i}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_table(rows: list[list], path: Path) -> None:
    """A split of a task, as tab-separated values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
