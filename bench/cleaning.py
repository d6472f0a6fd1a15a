"""What cleaning costs and what it finds, on documents of your own.

    python -m bench.cleaning speed    --input RAW/ko
        # MB/s per core, beside datatrove's filters
    python -m bench.cleaning near     --input RAW/ko
        # recall of planted near duplicates, by similarity
    python -m bench.cleaning personal --input RAW/ko
        # recall of planted personal data, and what is masked in the documents as they are
    python -m bench.cleaning kobest   --input RAW/ko --kobest KOBEST
        # hits against an independent brute-force search
    python -m bench.cleaning dirt     --input RAW/ko --clean CLEAN
        # leftovers inside documents, raw and cleaned
    python -m bench.cleaning memory   --input RAW/ko
        # bytes per document at 10,000 ... 1,000,000 documents

Every oracle here is written with strings and sets, independently of the program. datatrove
(pip install datatrove tokenizers "xxhash<4") splits words at spaces here, as the rules do; its word
tokenizers for Korean would be many times slower.
"""
import collections
import csv
import functools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import regex

from bench import measure
from cleaning import decontaminate, duplicates, leftovers, lines, mask, normalise, perplexity, rules
from cleaning.limits import EN_WEB, KO_WEB
from common import cli, documents


def texts_of(paths: list[str], room: float, seed: int = 0) -> dict[str, list[str]]:
    """{file: up to `room` bytes of its documents, drawn at random}, normalised.

    A .txt that is not UTF-8 is read as CP949.
    """
    found = {}
    for path in documents.files(paths):
        texts = [d["text"] for d in documents.read_documents([path])]
        if not texts:
            as_cp949 = documents.Reading("cp949")
            texts = [found["text"] for found in documents.read_documents([path], as_cp949)]
        random.Random(seed).shuffle(texts)
        sizes = np.cumsum([len(text.encode()) for text in texts])
        n_drawn = np.searchsorted(sizes, room) + 1
        drawn = [normalise.normalise_text(text)[0] for text in texts[:n_drawn]]
        found[path.name] = [text for text in drawn if text is not None]
    return found


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


# ---- Speed --------------------------------------------------------------------------------------

# The rules in parts, as datatrove's filters divide them. What GopherQualityFilter looks at:
# characters and words.
QUALITY = KO_WEB._replace(
    line_ends=None,
    repeated_lines=None,
    frequent_ngrams={},
    repeated_ngrams={},
)
# What GopherRepetitionFilter looks at, with its limits.
REPETITION = EN_WEB._replace(line_ends=None)
# What FineWebQualityFilter looks at, with its limits.
LINES = KO_WEB._replace(line_ends=0.12, repeated_lines=0.3)

THREE_FILTERS = ("quality", "repetition", "lines")


def each(function: Callable[[str], object]) -> Callable[[list[str]], list]:
    """The function of many texts that calls `function` for each."""
    return lambda texts: [function(text) for text in texts]


def datatrove() -> dict[str, Callable[[list[str]], list]]:
    """Its filters and MinHash, splitting at spaces; {} where it is not installed."""
    try:
        import datatrove.pipeline.filters.fineweb_quality_filter as fineweb
        import datatrove.pipeline.filters.gopher_quality_filter as quality
        import datatrove.pipeline.filters.gopher_repetition_filter as repetition
        from datatrove.data import Document
        from datatrove.pipeline.dedup import minhash
    except ImportError as error:
        print(f"without datatrove ({error})")
        return {}

    class SplitAtSpaces:
        word_tokenize = staticmethod(str.split)

    for module in (fineweb, quality, repetition):
        module.split_into_words = lambda text, language: text.split()
    minhash.load_word_tokenizer = lambda language: SplitAtSpaces

    filters = {
        "quality": quality.GopherQualityFilter(min_stop_words=0),
        "repetition": repetition.GopherRepetitionFilter(),
        "lines": fineweb.FineWebQualityFilter(),
    }
    config = minhash.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    signature = minhash.MinhashDedupSignature(tempfile.mkdtemp(), config)

    def filtered(name: str, text: str):
        return filters[name].filter(Document(text=text, id=""))

    def hashed(text: str):
        shingles = signature.get_shingles(text)
        if shingles.size:
            return signature.get_signature(shingles)
        return None

    calls = {name: each(functools.partial(filtered, name)) for name in filters}
    calls["minhash"] = each(hashed)
    return calls


def our_steps(texts: list[str], folder: Path, kobest: str | None) -> dict[str, Callable]:
    """{step: function of many texts}; those that need a model or counts get them from `texts`."""
    raw = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    model = perplexity.Model.train(texts[::4])
    sketch = lines.Sketch(folder / "sketch", "w+", 2**22)
    steps = {
        "read": lambda texts: [documents.parse_json(line) for line in raw],
        "normalise": each(normalise.normalise_text),
        "mask": each(mask.mask_personal_data),
        "leftovers": each(leftovers.remove_leftovers),
        "rules": each(functools.partial(rules.check, limits=KO_WEB)),
        "exact": each(duplicates.exact_key),
        "near": duplicates.band_hashes,
        "lines: count": lines.count,
        "lines: cut": each(sketch.check),
        "perplexity: train": lambda texts: perplexity.Model.train(texts[::4]),
        "perplexity: score": model.bits,
    }
    if kobest:
        benchmark = decontaminate.Benchmark(decontaminate.fields(kobest))
        steps["decontaminate"] = each(benchmark.check)
    return steps


def check_repetition(text: str) -> str:
    words = text.split()
    return (
        rules.check_lines(text, REPETITION)
        or rules.check_ngrams(text, words, REPETITION, "en")
    )


def our_filters() -> dict[str, Callable[[list[str]], list]]:
    """What is timed beside datatrove's calls of the same names."""
    return {
        "quality": each(functools.partial(rules.check, limits=QUALITY)),
        "repetition": each(check_repetition),
        # datatrove's FineWeb filter looks at lines and sets no code aside; nor does this.
        "lines": each(functools.partial(rules.check_lines, limits=LINES)),
        "minhash": duplicates.band_hashes,
        "three filters": each(functools.partial(rules.check, limits=KO_WEB)),
    }


def timed(function: Callable, texts: list[str]) -> float:
    """Megabytes per second of processor time."""
    start = time.process_time()
    function(texts)
    # Before the bytes are counted, which takes longer than some rules.
    seconds = time.process_time() - start
    return megabytes(texts) / seconds


def in_a_row(figures: dict, source: str) -> list[float]:
    """The speed of datatrove's three filters one after another, in each turn."""
    speeds = []
    columns = [figures[source, name, "datatrove"] for name in THREE_FILTERS]
    for turn in zip(*columns, strict=True):
        seconds_per_megabyte = sum(1 / speed for speed in turn)
        speeds.append(1 / seconds_per_megabyte)
    return speeds


def speed(args) -> None:
    """Megabytes per second and core of each step, and beside datatrove of what both do."""
    sources = texts_of(args.input, args.megabytes * 1e6)
    everything = [text for texts in sources.values() for text in texts]
    theirs = datatrove()
    ours = our_filters()
    corpora = {}
    if theirs:
        corpora = {"all": everything, **sources}

    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for name, step in our_steps(everything, Path(folder), args.kobest).items():
            calls["step", name] = functools.partial(timed, step, everything)
        for source, texts in corpora.items():
            for name, function in ours.items():
                calls[source, name, "ours"] = functools.partial(timed, function, texts)
            for name, function in theirs.items():
                calls[source, name, "datatrove"] = functools.partial(timed, function, texts)
        figures = measure.interleaved(calls, args.runs)

    rows = []
    for key, values in figures.items():
        if key[0] == "step":
            middle, low, high = measure.quantiles(values)
            rows.append({"step": key[1], "MB/s per core": middle, "20 %": low, "80 %": high})

    versus = []
    for source in corpora:
        figures[source, "three filters", "datatrove"] = in_a_row(figures, source)
        for name in ours:
            own = figures[source, name, "ours"]
            other = figures[source, name, "datatrove"]
            ratio, low, high = measure.quantiles(np.divide(own, other).tolist())
            versus.append({
                "documents": source,
                "what": name,
                "ours, MB/s": measure.quantiles(own)[0],
                "datatrove, MB/s": measure.quantiles(other)[0],
                "ratio": ratio,
                "20 %": low,
                "80 %": high,
            })
    if versus:
        print(measure.table(versus))
    conditions = measure.machine("datatrove", "numpy") | {
        "documents": len(everything),
        "megabytes": megabytes(everything),
        "runs": args.runs,
    }
    measure.report("cleaning-speed", rows, conditions, versus=versus)


# ---- Recall --------------------------------------------------------------------------------------

def grams(text: str) -> set[str]:
    text = " ".join(text.split())
    return {text[i:i + 5] for i in range(len(text) - 4)}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def with_replaced_words(
    rng: random.Random,
    text: str,
    share: float,
    words: list[str],
) -> str | None:
    """The text with that share of its eojeol replaced, one at least; None if it is too short."""
    eojeol = text.split(" ")
    if share * len(eojeol) < 0.5:
        return None
    n = max(1, round(share * len(eojeol)))
    for k in rng.sample(range(len(eojeol)), n):
        eojeol[k] = rng.choice(words)
    return " ".join(eojeol)


def near(args) -> None:
    """Copies with replaced eojeol among real documents: how many are found, by band of true Jaccard
    similarity."""
    # Real documents, and behind them the copies: `pairs` has (original, copy), as numbers.
    rng = random.Random(args.seed)
    real = []
    for of_file in texts_of(args.input, 2e6).values():
        real += [text for text in of_file if 60 <= len(text) <= 20_000]
    real = rng.sample(real, min(len(real), args.documents))
    words = " ".join(real).split()
    texts = list(real)
    pairs = []
    for i, text in enumerate(real):
        for share in (0.01, 0.02, 0.03, 0.05, 0.1):
            copy = with_replaced_words(rng, text, share, words)
            if copy is not None:
                pairs.append((i, len(texts)))
                texts.append(copy)
    sizes = np.array([len(text.encode()) for text in texts])
    hashes = duplicates.band_hashes(texts)
    sets = [grams(text) for text in texts]

    # Each pair by itself: together, a pair would also be found by way of its sisters.
    found_in_band = collections.defaultdict(list)
    for pair in map(list, pairs):
        pair_texts = [texts[i] for i in pair]
        kept = duplicates.near_duplicates(hashes[pair].T, sizes[pair], pair_texts.__getitem__)
        similarity = jaccard(*[sets[i] for i in pair])
        band = min(19, int(20 * similarity))
        found_in_band[band].append(bool(kept[0] == kept[1]))

    # Beside the recall of each band, what MinHash promises, averaged over the band.
    rows = []
    for band, found in sorted(found_in_band.items(), reverse=True):
        low = band / 20
        s = np.linspace(low, low + 0.05, 50)
        promised = 1 - (1 - s**8)**14
        rows.append({
            "true Jaccard": f"{low:.2f} - {low + 0.05:.2f}",
            "pairs": len(found),
            "recall": float(np.mean(found)),
            "share a band: 1-(1-s^8)^14": float(promised.mean()),
        })

    # All together, for precision: each removed document must have a near copy in its cluster.
    kept = duplicates.near_duplicates(hashes.T, sizes, texts.__getitem__).tolist()
    removed, right = removed_and_right(kept, sets)
    measure.report("cleaning-near", rows, measure.machine("numpy") | {
        "documents": len(real),
        "pairs": len(pairs),
        "removed, all together": removed,
        "of these with a true near copy in their cluster": right,
        "seed": args.seed,
    })


def removed_and_right(kept: list[int], sets: list[set[str]]) -> tuple[int, int]:
    """(documents removed, those of them that have a true near copy in their cluster). kept: for
    each document the one that stays in its place; sets: its grams."""
    members = collections.defaultdict(list)
    for i, by in enumerate(kept):
        members[by].append(i)
    removed = 0
    right = 0
    for i, by in enumerate(kept):
        if i == by:
            continue
        removed += 1
        others = [j for j in members[by] if j != i]
        if any(jaccard(sets[i], sets[j]) >= duplicates.THRESHOLD for j in others):
            right += 1
    return removed, right


def digits(rng: random.Random, n: int) -> str:
    return "".join(rng.choices("0123456789", k=n))


def resident_number(rng: random.Random, hyphen: str) -> str:
    """A date of birth, and a check digit that is right."""
    number = f"{rng.randrange(100):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}"
    number += f"{rng.randrange(1, 9)}{digits(rng, 5)}"
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(int(d) * w for d, w in zip(number, weights, strict=True))
    return f"{number[:6]}{hyphen}{number[6:]}{(11 - total % 11) % 10}"


def card_number(rng: random.Random, separator: str) -> str:
    """An issued prefix, and a last digit by Luhn."""
    number = rng.choice(["4", "51", "9410", "3560"])
    number += digits(rng, 15 - len(number))
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(number))
    number += str(-total % 10)
    return separator.join(number[i:i + 4] for i in range(0, 16, 4))


def planted(rng: random.Random) -> dict[str, list[str]]:
    """Personal data in the spellings people use, made at random: {kind: items}.

    What is evidence by itself is planted by itself, the rest with its word in front."""
    return {
        "resident_number": planted_resident_numbers(rng),
        "phone": planted_phones(rng),
        "email": planted_addresses(rng),
        "card": [
            card_number(rng, "-"),
            card_number(rng, " "),
            card_number(rng, ""),
            full_width(card_number(rng, "-")),
        ],
        "account": planted_accounts(rng),
    }


def planted_resident_numbers(rng: random.Random) -> list[str]:
    hyphens = ["-", " - ", "", "–", "ㅡ", "ー", "~", "·"]
    found = [resident_number(rng, hyphen) for hyphen in hyphens]
    found.append(full_width(resident_number(rng, "-")))
    found.append(resident_number(rng, "-")[:8] + "******")
    return found


def planted_phones(rng: random.Random) -> list[str]:
    """A telephone number in each spelling."""
    area = rng.choice(["02", "031", "032", "051", "053", "062", "064"])
    mobile = rng.choice(["010", "011", "016", "019"])
    word = rng.choice(["전화", "연락처", "문의", "Tel.", "☎"])  # telephone, contact, enquiries
    three = digits(rng, 3)
    middle = digits(rng, 4)
    last = digits(rng, 4)
    return [
        f"{mobile}-{middle}-{last}",
        f"{mobile} {middle} {last}",
        f"{mobile}{middle}{last}",
        f"{mobile}.{middle}.{last}",
        f"{area}-{three}-{last}",
        f"{area}){three}-{last}",
        f"({area}) {middle}-{last}",
        f"+82-10-{middle}-{last}",
        f"070-{middle}-{last}",
        full_width(f"{mobile}-{middle}-{last}"),
        f"{mobile}ㅡ{middle}ㅡ{last}",
        f"{mobile}~{middle}~{last}",
        f"{mobile}·{middle}—{last}",
        f"{mobile} - {middle} - {last}",
        f"{mobile}-{middle}{last}",
        f"{mobile}){middle}-{last}",
        f"({mobile}){middle}-{last}",
        f"{mobile}/{middle}/{last}",
        f"0507-{middle}-{last}",
        f"0082-10-{middle}-{last}",
        f"+82(0)10-{middle}-{last}",
        f"(+82) 10 {middle} {last}",
        f"+82 {area[1:]} {middle} {last}",
        full_width(f"{area}-{three}-{last}"),
        f"{word} {area}{middle}{last}",
        f"{word} {area} {middle} {last}",
    ]


def planted_addresses(rng: random.Random) -> list[str]:
    """An e-mail address in each spelling."""
    name = rng.choice(["kim", "lee.jh", "park_01"])
    host = rng.choice(["naver.com", "gmail.com", "snu.ac.kr", "korea.kr"])
    service = rng.choice(["naver", "daum", "hanmail", "gmail"])
    top = rng.choice(["company", "online", "museum", "photography", "site", "studio"])
    return [
        f"{name}@{host}",
        f"{name}{digits(rng, 3)}@mail.{host}",
        f"{name}[at]{host}",
        f"{name.upper()}@{host}",
        full_width(f"{name}@{host}"),
        f"{name} @ {service}.com",
        f"{name} @ {service} . com",
        f"{name}(at){host}",
        f"{name} [at] {service} [dot] com",
        f"{name}골뱅이{host}",
        f"{name}@{service}.{top}",
    ]


def planted_accounts(rng: random.Random) -> list[str]:
    """A bank account in each spelling."""
    # Banks by their full names, or "account number"; banks by their short names.
    bank = rng.choice(["국민은행", "신한은행", "농협", "우리은행", "카카오뱅크", "계좌번호"])
    short = rng.choice(["국민", "신한", "우리", "하나", "기업", "카뱅", "토스", "부산"])
    return [
        f"{bank} {digits(rng, 6)}-{digits(rng, 2)}-{digits(rng, 6)}",
        f"{bank} {digits(rng, 3)}-{digits(rng, 3)}-{digits(rng, 6)}",
        f"{bank}: {digits(rng, 4)}-{digits(rng, 2)}-{digits(rng, 7)}",
        f"{short} {digits(rng, 6)}-{digits(rng, 2)}-{digits(rng, 6)}",
        f"{short}{digits(rng, 3)}-{digits(rng, 3)}-{digits(rng, 6)}",
        f"{short} {digits(rng, 4)}ㅡ{digits(rng, 2)}ㅡ{digits(rng, 7)}",
    ]


def full_width(ascii_text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) for character in ascii_text)


def personal(args) -> None:
    """Planted items in the spellings people use, and every mask in the real documents."""
    rng = random.Random(args.seed)
    sources = texts_of(args.input, 1e12)
    everything = [text for texts in sources.values() for text in texts if text and len(text) > 30]

    # Each item among the words of a real document: is its number gone?
    counts = collections.defaultdict(list)
    for _ in range(args.items):
        for kind, items in planted(rng).items():
            for spelling, item in enumerate(items):
                words = rng.choice(everything)[:400].split(" ")
                at = rng.randrange(len(words) + 1)
                behind = rng.choice(["", ".", "로", "입니다", ")", ","])
                text = " ".join([*words[:at], item + behind, *words[at:]])
                masked, _ = mask.mask_personal_data(text)
                number = item
                if " " in item and kind in ("account", "phone"):
                    number = item.split(" ", 1)[1]  # without the word in front
                counts[kind, spelling].append((number not in masked, item))
    rows = []
    for (kind, _), found in counts.items():
        example = found[0][1]
        rows.append({
            "kind": kind,
            "spelling": "".join("0" if c.isdigit() else c for c in example),
            "items": len(found),
            "recall": float(np.mean([is_masked for is_masked, _ in found])),
        })
    every = [is_masked for found in counts.values() for is_masked, _ in found]

    real = []
    for source, texts in sources.items():
        for text in filter(None, texts):
            for start, end, kind in mask.find_personal_data(text):
                around = " ".join(text[max(0, start - 25):end + 15].split())
                real.append((source, kind.name, text[start:end], around))
    print(f"masked in all {sum(map(len, sources.values())):,} real documents, for you to judge:")
    for source, kind, found, around in sorted(set(real)):
        print(f"  {source} {kind}: {found}    ... {around} ...")
    in_real = collections.Counter(f"{source} {kind}" for source, kind, _, _ in real)
    measure.report("cleaning-personal", rows, measure.machine("regex") | {
        "items": len(every),
        "recall of all": sum(every) / len(every),
        "seed": args.seed,
        "masked in the real documents": dict(in_real),
    })


def letters_of(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def benchmark_tables(folder: str) -> dict[str, list[list[str]]]:
    """{table: the fields of each item} of KoBEST's .tsv or .jsonl files, but for links."""
    tables = {}
    for path in sorted(Path(folder).rglob("*.*")):
        if path.suffix == ".tsv":
            with open(path, encoding="utf-8", newline="") as file:
                items = list(csv.reader(file, delimiter="\t"))[1:]
        elif path.suffix == ".jsonl":
            lines_of_file = path.read_text(encoding="utf-8").split("\n")
            items = [list(json.loads(line).values()) for line in lines_of_file if line]
        else:
            continue
        fields = [[str(f) for f in item if not str(f).startswith("http")] for item in items]
        tables[f"{path.parent.name}/{path.stem}"] = fields
    return tables


class BruteForce:
    """The rules of decontaminate.py with strings and sets: runs of 25, whole fields of 12 to 24."""

    def __init__(self, fields: set[str]):
        self.runs = set()
        self.whole = collections.defaultdict(set)  # {first 12 letters: fields that begin so}
        for field in fields:
            letters = letters_of(field)
            for i in range(len(letters) - 24):
                self.runs.add(letters[i:i + 25])
            if 12 <= len(letters) < 25:
                self.whole[letters[:12]].add(letters)

    def finds(self, text: str) -> bool:
        """Whether the text holds 25 characters in a row of a field, or a whole short one."""
        letters = letters_of(text)
        for i in range(len(letters) - 11):
            if letters[i:i + 25] in self.runs:
                return True
            fields = self.whole.get(letters[i:i + 12], ())
            if any(letters.startswith(field, i) for field in fields):
                return True
        return False


def kobest(args) -> None:
    """What an independent brute force finds of the benchmark, before and after; items that can be
    found at all."""
    rows = []
    every_field = set()
    for name, items in benchmark_tables(args.kobest).items():
        visible = 0
        for fields in items:
            every_field.update(fields)
            every_field.update(normalise.normalise_text(field)[0] or "" for field in fields)
            if any(len(letters_of(field)) >= 12 for field in fields):
                visible += 1
        rows.append({"task": name, "items": len(items), "can be found": visible})
    brute_force = BruteForce(every_field)

    benchmark = decontaminate.Benchmark(decontaminate.fields(args.kobest))
    hits = collections.Counter()
    differs = 0
    n = 0
    for source, texts in texts_of(args.input, 1e12).items():
        for text in texts:
            expected = brute_force.finds(text)
            kept, _ = benchmark.check(text)
            if expected:
                hits[source] += 1
            if expected != (kept is None):
                differs += 1
            n += 1

    left = None
    if args.clean:
        cleaned = documents.read_documents(args.clean)
        left = len([1 for document in cleaned if brute_force.finds(document["text"])])
    measure.report("cleaning-kobest", rows, measure.machine("numpy") | {
        "documents": n,
        "hits by brute force": dict(hits),
        "documents on which the program differs": differs,
        "cleaned folders": len(args.clean),
        "hits left in them": left,
    })


# ---- Dirt inside documents ----------------------------------------------------------------------

# What a wiki's extractor, a publisher's template or an archive leaves in a text. These patterns are
# not those of cleaning/leftovers.py, and looser: a step that was measured by its own patterns would
# have missed nothing.
DIRT = {
    # 다테야마시()는: the characters between the brackets were in a template that is gone.
    "empty brackets": r"[가-힣] [(（] \s* [)）]",
    # 펀자브(, )는, 갤러가(Galaga, )는, 강(, 후지 강의 상류)에. It has to stand behind a Korean
    # letter or the end of a title: (784,) and :) are none, nor is 의외로(;;), which sweats.
    "separator at a bracket": r"""
        [가-힣》」』”’] [ ]? [(（] (?:
            \s* (?: [,:·、] | ; (?!;) ) [^()（）\n]* [)）]
          | [^()（）\n]* (?: [,·、] \s* | \s ; \s* | [가-힣] : \s+ ) [)）]
        )
    """,
    "formula_N": r"\b formula_ [0-9]+",
    "codice_N": r"\b codice_ [0-9]+",
    "[[분류:, [[파일:": r"\[\[ \s* (?: 분류 | 파일 | 그림 | category | file | image ) \s* :",
    # --- at the very beginning, and a key behind it.
    "YAML front matter": r"\A \s* --- [ ]* \n [^\n:]+ :",
    # At the very beginning lines of a name, a tab and a value, of which one may be missing.
    "tab-separated header": r"""
        \A \s* [^\t\n]{1,10} \t [^\n]+ \n (?: [^\t\n]{1,10} \n )? [^\t\n]{1,10} \t [^\n]+ \n
    """,
    "page mark ＜44＞": r"＜ \s* [0-9０-９]+ (?: \s* [-~,] \s* [0-9０-９]+ )* \s* ＞",
    "Apache licence": r"Licensed [ ] under [ ] the [ ] Apache [ ] License",
    # 수비수 || 12 || 1988, ! colspan="9": a wiki's table; but not a || b of a program, nor HTML.
    "double bars, colspan": r"""
        ^ [^\n|<]* \|\| [^\n|]* \|\| [^\n]* $
      | ^ [!|] [^\n]* (?: \|\| | (?:col|row)span \s* = )
    """,
}
FLAGS = regex.VERBOSE | regex.MULTILINE | regex.IGNORECASE
PATTERNS = {kind: regex.compile(pattern, FLAGS) for kind, pattern in DIRT.items()}
TABLE_TAG = regex.compile("<(/?)table\\b", regex.IGNORECASE)


def dirt_of(text: str) -> dict[str, int]:
    """How often each kind of dirt stands in a text.

    >>> found = dirt_of("다테야마시()는 시이다. formula_1와 formula_2, 펀자브(, )는")
    >>> {kind: number for kind, number in found.items() if number}
    {'empty brackets': 1, 'separator at a bracket': 1, 'formula_N': 2}
    """
    found = {}
    for kind, pattern in PATTERNS.items():
        found[kind] = len(pattern.findall(text))
    found["<table> or </table> alone"] = tags_alone(text)
    return found


def tags_alone(text: str) -> int:
    """How many tags of tables have no partner.

    >>> tags_alone("<table><tr></table>"), tags_alone("</td></table> <table>")
    (0, 2)
    """
    is_open = 0
    alone = 0
    for slash in TABLE_TAG.findall(text):
        if not slash:
            is_open += 1
        elif is_open:
            is_open -= 1
        else:
            alone += 1
    return alone + is_open


def dirt(args) -> None:
    """Each kind of dirt in the raw documents, normalised, beside cleaned folders: how many
    documents have it, and how often it occurs."""
    corpora = {"raw": texts_of(args.input, 1e12)}
    for folder in args.clean:
        corpora[Path(folder).name] = cleaned_texts(folder)

    # {(source, kind): {corpus: [documents with it, occurrences]}}
    counts = collections.defaultdict(lambda: {name: [0, 0] for name in corpora})
    for corpus, sources in corpora.items():
        for source, texts in sources.items():
            for text in texts:
                for kind, number in dirt_of(text).items():
                    for row in ("all", source):
                        counts[row, kind][corpus][0] += min(1, number)
                        counts[row, kind][corpus][1] += number

    rows = []
    for (source, kind), of_corpus in sorted(counts.items()):
        if not any(number for _, number in of_corpus.values()):
            continue
        row = {"source": source, "dirt": kind}
        for corpus, (documents_with, number) in of_corpus.items():
            row[f"{corpus}: documents"] = documents_with
            row[f"{corpus}: number"] = number
        rows.append(row)
    sizes = {}
    for corpus, sources in corpora.items():
        sizes[corpus] = {source: len(texts) for source, texts in sources.items()}
    measure.report("cleaning-dirt", rows, measure.machine("regex") | {"documents": sizes})


def cleaned_texts(folder: str) -> dict[str, list[str]]:
    """{file: its documents} of a folder that data.py clean wrote."""
    found = {}
    for path in documents.files([folder]):
        texts = [document["text"] for document in documents.read_documents([path])]
        if texts:
            found[path.name] = texts
    return found


# ---- Memory --------------------------------------------------------------------------------------

def write_documents(
    path: Path,
    n: int,
    real: list[str],
    characters: int,
    rng: random.Random,
) -> None:
    """n documents of so many characters: stretches of real ones with up to nine eojeol replaced, so
    that some stay near copies of others."""
    words = " ".join(real).split()[:2_000_000]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(n):
            text = rng.choice(real)
            start = rng.randrange(len(text) - characters)
            eojeol = text[start:start + characters].split(" ")
            for _ in range(rng.randrange(10)):
                eojeol[rng.randrange(len(eojeol))] = rng.choice(words)
            line = json.dumps({"text": " ".join(eojeol)}, ensure_ascii=False)
            file.write(line + "\n")


def peak_of(command: list[str]) -> int:
    """The most bytes of its own that a process held (RssAnon: not the files it maps), by looking
    fifty times per second."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for line in status.split("\n"):
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


def memory(args) -> None:
    """The first process's own memory, by which the corpus's size is limited."""
    rng = random.Random(args.seed)
    real = []
    for texts in texts_of(args.input, 5e6).values():
        real += [text for text in texts if len(text) > args.characters]
    rows = []
    for n in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_documents(Path(folder) / "a.jsonl", n, real, args.characters, rng)
            start = time.time()
            peak = peak_of([
                sys.executable, str(measure.ROOT / "data.py"), "clean",
                "--input", f"{folder}/a.jsonl", "--out", f"{folder}/out",
                "--profile", "formal", "--workers", str(args.workers),
            ])
            seconds = time.time() - start
            report = cli.read_json(f"{folder}/out/report.json")
        print(f"{n:,} documents: {peak / 1e6:.0f} MB")
        near_step = next(step for step in report["steps"] if step["step"] == "near")
        rows.append({
            "documents": n,
            "MB": report["input"]["bytes"] / 1e6,
            "kept": report["output"]["documents"],
            "near duplicates": near_step["documents_in"] - near_step["documents_out"],
            "peak MB": peak / 1e6,
            "seconds": seconds,
        })

    # Between the last two: the first ones still grow with the sample that the models are trained
    # on.
    before, last = rows[-2:]
    more_documents = last["documents"] - before["documents"]
    growth = (last["peak MB"] - before["peak MB"]) * 1e6 / more_documents
    at_35_million = last["peak MB"] * 1e6 + growth * (35e6 - last["documents"])
    measure.report("cleaning-memory", rows, measure.machine("numpy") | {
        "workers": args.workers,
        "characters a document": args.characters,
        "bytes a document, between the last two": growth,
        "35 million documents, GB": at_35_million / 1e9,
    })


def main(argv: list[str] | None = None) -> None:
    """Run the measurement that is asked for."""
    parser = cli.Parser(description=__doc__, prog="bench.cleaning")
    flag = parser.add_argument
    flag("what", choices=["speed", "near", "personal", "kobest", "dirt", "memory"],
         help="what to measure")
    flag("--input", nargs="+", required=True, help="files or folders of real documents")
    flag("--kobest", help="folder of KoBEST")
    flag("--clean", nargs="*", default=[],
         help="kobest, dirt: cleaned folders, in which to look for what is left")
    flag("--megabytes", type=float, default=2, help="speed: of each file")
    flag("--runs", type=int, default=5, help="speed: turns")
    flag("--documents", type=int, default=2000, help="near: real documents to plant copies of")
    flag("--items", type=int, default=100, help="personal: of each spelling")
    flag("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000],
         help="memory: numbers of documents")
    flag("--characters", type=int, default=120, help="memory: of a document")
    flag("--workers", type=int, default=2, help="memory: processes")
    flag("--seed", type=int, default=0, help="of what is planted")
    args = parser.parse_args(argv)
    if args.what == "kobest" and not args.kobest:
        raise cli.UserError("kobest needs --kobest FOLDER")
    globals()[args.what](args)


if __name__ == "__main__":
    cli.run(main)
