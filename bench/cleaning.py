"""What cleaning costs and what it finds, on documents of your own.

    python -m bench.cleaning speed    --input RAW/ko                  # MB a second a core, beside datatrove's filters
    python -m bench.cleaning near     --input RAW/ko                  # recall of planted near duplicates by similarity
    python -m bench.cleaning personal --input RAW/ko                  # recall of planted personal data; what is masked
    python -m bench.cleaning kobest   --input RAW/ko --kobest KOBEST  # hits against an independent brute force
    python -m bench.cleaning memory   --input RAW/ko                  # bytes a document at 10,000 ... 1,000,000

Every oracle here is written with strings and sets, apart from the program. datatrove (pip install datatrove "xxhash<4")
splits words at blanks here, as the rules do; its word tokenizers for Korean would be many times slower.
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
from pathlib import Path

import numpy as np

from bench import measure
from cleaning import decontaminate, duplicates, lines, mask, normalise, perplexity, rules
from common import cli, documents


def texts_of(paths: list[str], room: float, seed: int = 0) -> dict[str, list[str]]:
    """{file: up to `room` bytes of its documents, drawn at random}, normalised. A .txt that is not UTF-8 is CP949."""
    found = {}
    for path in documents.files(paths):
        texts = [d["text"] for d in documents.read_documents([path])]
        texts = texts or [d["text"] for d in documents.read_documents([path], "cp949")]
        random.Random(seed).shuffle(texts)
        sizes = np.cumsum([len(text.encode()) for text in texts])
        found[path.name] = [normalise.normalise(text)[0] for text in texts[:np.searchsorted(sizes, room) + 1]]
    return found


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


# ---------------------------------------------------------------------------------------------------------- speed

OFF = rules.KO_WEB._replace(characters=0, share=0, word=(0, 1e9), symbols=1, no_letters=1, garbled=None,
                            function_words=None, line_ends=None, same_lines=None, top_ngrams=None, same_ngrams={})
QUALITY = rules.KO_WEB._replace(line_ends=None, same_lines=None, top_ngrams=None)
GOPHER = rules.EN_WEB  # its limits for repetition
REPETITION = OFF._replace(same_lines=0.3, top_ngrams=GOPHER.top_ngrams, same_ngrams=GOPHER.same_ngrams)
LINES = OFF._replace(line_ends=0.12, same_lines=0.3)


def datatrove() -> dict:
    """Its filters and MinHash, splitting at blanks; {} where it is not installed."""
    try:
        import datatrove.pipeline.filters.fineweb_quality_filter as fineweb
        import datatrove.pipeline.filters.gopher_quality_filter as quality
        import datatrove.pipeline.filters.gopher_repetition_filter as repetition
        from datatrove.data import Document
        from datatrove.pipeline.dedup import minhash
    except ImportError as error:
        print(f"without datatrove ({error})")
        return {}
    for module in (fineweb, quality, repetition):
        module.split_into_words = lambda text, language: text.split()
    minhash.load_word_tokenizer = lambda language: type("Blanks", (), {"word_tokenize": staticmethod(str.split)})
    filters = {"quality": quality.GopherQualityFilter(min_stop_words=0), "repetition":
               repetition.GopherRepetitionFilter(), "lines": fineweb.FineWebQualityFilter()}
    signature = minhash.MinhashDedupSignature(tempfile.mkdtemp(), minhash.MinhashConfig(5, 14, 8))

    def filtered(name, texts):
        return [filters[name].filter(Document(text=text, id="")) for text in texts]

    def hashed(texts):
        shingles = map(signature.get_shingles, texts)
        return [signature.get_signature(s) for s in shingles if s.size]

    return {name: functools.partial(filtered, name) for name in filters} | {"minhash": hashed}


def speed(args) -> None:
    """Megabytes a second a core of each step, and beside datatrove of what both do."""
    sources = texts_of(args.input, args.megabytes * 1e6)
    everything = [text for texts in sources.values() for text in texts]
    raw = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in everything]
    model = perplexity.Model.train(everything[::4])
    def check(limits):
        return lambda texts: rules.check(texts, limits)
    with tempfile.TemporaryDirectory() as folder:
        sketch = lines.Sketch(Path(folder) / "sketch", "w+", 2**22)
        steps = {
            "read": lambda texts: [documents.parse(line, Path("a.jsonl")) for line in raw],
            "normalise": lambda texts: list(map(normalise.normalise, texts)),
            "mask": lambda texts: list(map(mask.mask, texts)), "rules": check(rules.KO_WEB),
            "exact": lambda texts: list(map(duplicates.exact_key, texts)), "near": duplicates.band_hashes,
            "lines: count": lines.count, "lines: cut": lambda texts: list(map(sketch.check, texts)),
            "perplexity: train": lambda texts: perplexity.Model.train(texts[::4]), "perplexity: score": model.bits}
        if args.kobest:
            benchmark = decontaminate.Benchmark(decontaminate.fields(args.kobest))
            steps["decontaminate"] = lambda texts: list(map(benchmark.check, texts))
        theirs = datatrove()
        # datatrove's FineWeb filter looks at lines and sets no code aside: so ours does here
        pairs = {"quality": check(QUALITY), "repetition": check(REPETITION), "minhash": duplicates.band_hashes,
                 "lines": lambda texts: rules.line_rules(texts, LINES)} if theirs else {}

        def timed(function, texts):
            start = time.process_time()
            function(texts)
            seconds = time.process_time() - start  # before the bytes are counted, which takes longer than some rules
            return megabytes(texts) / seconds

        calls = {("step", name): functools.partial(timed, step, everything) for name, step in steps.items()}
        for source, texts in {"all": everything, **sources}.items():
            for name in pairs:
                calls[source, name, "ours"] = functools.partial(timed, pairs[name], texts)
                calls[source, name, "datatrove"] = functools.partial(timed, theirs[name], texts)
            if theirs:
                calls[source, "three filters", "ours"] = functools.partial(timed, check(rules.KO_WEB), texts)
        figures = measure.interleaved(calls, args.runs)
    rows = []
    for name in steps:
        middle, low, high = measure.quantiles(figures["step", name])
        rows.append({"step": name, "MB a second a core": middle, "20 %": low, "80 %": high})
    versus = []
    for source in ["all", *sources] if theirs else []:
        three = [1 / sum(1 / x for x in turn) for turn in
                 zip(*(figures[source, name, "datatrove"] for name in ("quality", "repetition", "lines")), strict=True)]
        figures[source, "three filters", "datatrove"] = three
        for name in (*pairs, "three filters"):
            own, other = figures[source, name, "ours"], figures[source, name, "datatrove"]
            ratio, low, high = measure.quantiles(np.divide(own, other).tolist())
            versus.append({"documents": source, "what": name, "ours, MB/s": measure.quantiles(own)[0],
                           "datatrove, MB/s": measure.quantiles(other)[0], "ratio": ratio, "20 %": low, "80 %": high})
    if versus:
        print(measure.table(versus))
    measure.report("cleaning-speed", rows, measure.machine("datatrove", "numpy") | {
        "documents": len(everything), "megabytes": megabytes(everything), "runs": args.runs}, versus=versus)


# -------------------------------------------------------------------------------------------------------- recall

def grams(text: str) -> set[str]:
    text = " ".join(text.split())
    return {text[i:i + 5] for i in range(len(text) - 4)}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def near(args) -> None:
    """Copies with replaced eojeol among real documents: how many are found, by band of true Jaccard similarity."""
    rng = random.Random(args.seed)
    real = [text for texts in texts_of(args.input, 2e6).values() for text in texts if 60 <= len(text) <= 20_000]
    real = rng.sample(real, min(len(real), args.documents))
    words = [word for text in real for word in text.split()]
    texts, pairs = list(real), []
    for i, text in enumerate(real):
        for share in (0.01, 0.02, 0.03, 0.05, 0.1):
            eojeol = text.split(" ")
            if share * len(eojeol) < 0.5:
                continue
            for k in rng.sample(range(len(eojeol)), max(1, round(share * len(eojeol)))):
                eojeol[k] = rng.choice(words)
            pairs.append((i, len(texts), share))
            texts.append(" ".join(eojeol))
    sizes = np.array([len(text.encode()) for text in texts])
    hashes = duplicates.band_hashes(texts)
    sets = [grams(text) for text in texts]
    # each pair by itself: together, a pair would also be found by way of its sisters
    bands = collections.defaultdict(list)
    for a, b, share in pairs:
        kept = duplicates.near_duplicates(hashes[[a, b]].T, sizes[[a, b]], lambda i, ab=(a, b): texts[ab[i]])
        bands[min(19, int(20 * jaccard(sets[a], sets[b])))].append((kept[0] == kept[1], share))
    rows = []
    for band, found in sorted(bands.items(), reverse=True):
        s = np.linspace(band / 20, band / 20 + 0.05, 50)
        rows.append({"true Jaccard": f"{band / 20:.2f} - {band / 20 + 0.05:.2f}", "pairs": len(found),
                     "recall": float(np.mean([f for f, _ in found])),
                     "share a band: 1-(1-s^8)^14": float((1 - (1 - s**8)**14).mean())})
    kept = duplicates.near_duplicates(hashes.T, sizes, texts.__getitem__)
    members = collections.defaultdict(list)
    for i, by in enumerate(kept.tolist()):
        members[by].append(i)
    removed = [i for i, by in enumerate(kept.tolist()) if i != by]
    right = sum(any(jaccard(sets[i], sets[j]) >= duplicates.THRESHOLD for j in members[kept[i]] if j != i)
                for i in removed)
    measure.report("cleaning-near", rows, measure.machine("numpy") | {
        "documents": len(real), "pairs": len(pairs), "removed, all together": len(removed),
        "of these with a true near copy in their cluster": right, "seed": args.seed})


def planted(rng: random.Random) -> dict[str, list[str]]:
    """Personal data in its usual spellings, made at random: {kind: items}."""
    def digits(n):
        return "".join(rng.choice("0123456789") for _ in range(n))

    def resident(hyphen: str) -> str:
        number = f"{rng.randrange(100):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}"
        number += f"{rng.randrange(1, 9)}{digits(5)}"
        total = sum(int(d) * w for d, w in zip(number, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=True))
        return f"{number[:6]}{hyphen}{number[6:]}{(11 - total % 11) % 10}"

    def card(prefix: str, separator: str) -> str:
        number = prefix + digits(15 - len(prefix))
        total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(number))
        number += str(-total % 10)
        return separator.join(number[i:i + 4] for i in range(0, 16, 4))

    area, name = rng.choice(["02", "031", "032", "051", "053", "062", "064"]), rng.choice(["kim", "lee.jh", "park_01"])
    mobile = rng.choice(["010", "011", "016", "019"])
    host = rng.choice(["naver.com", "gmail.com", "snu.ac.kr", "korea.kr"])
    bank = rng.choice(["국민은행", "신한은행", "농협", "우리은행", "카카오뱅크", "계좌번호"])  # banks; account number
    return {"resident_number": [resident("-"), resident(" - "), resident(""), resident("–")],
            "phone": [f"{mobile}-{digits(4)}-{digits(4)}", f"{mobile} {digits(4)} {digits(4)}", f"{mobile}{digits(8)}",
                      f"{mobile}.{digits(4)}.{digits(4)}", f"{area}-{digits(3)}-{digits(4)}",
                      f"{area}){digits(3)}-{digits(4)}", f"({area}) {digits(4)}-{digits(4)}",
                      f"+82-10-{digits(4)}-{digits(4)}", f"070-{digits(4)}-{digits(4)}"],
            "email": [f"{name}@{host}", f"{name}{digits(3)}@mail.{host}", f"{name}[at]{host}",
                      f"{name.upper()}@{host}"],
            "card": [card(rng.choice(["4", "51", "9410", "3560"]), s) for s in ("-", " ", "")],
            "account": [f"{bank} {digits(6)}-{digits(2)}-{digits(6)}", f"{bank} {digits(3)}-{digits(3)}-{digits(6)}",
                        f"{bank}: {digits(4)}-{digits(2)}-{digits(7)}"]}


def personal(args) -> None:
    """Planted items in their usual spellings, and every mask in the real documents."""
    rng = random.Random(args.seed)
    sources = texts_of(args.input, 1e12)
    documents = [text for texts in sources.values() for text in texts if len(text) > 30]
    rows, counts = [], collections.defaultdict(list)
    for _ in range(args.items):
        for kind, items in planted(rng).items():
            for spelling, item in enumerate(items):
                words = rng.choice(documents)[:400].split(" ")
                at = rng.randrange(len(words) + 1)
                text = " ".join([*words[:at], item + rng.choice(["", ".", "로", "입니다", ")", ","]), *words[at:]])
                masked, _ = mask.mask(text)
                number = item.split(" ", 1)[1] if kind == "account" else item
                counts[kind, spelling].append((number not in masked, item))
    for (kind, _), found in counts.items():
        spelling = "".join("0" if c.isdigit() else c for c in found[0][1])
        rows.append({"kind": kind, "spelling": spelling, "items": len(found), "recall": np.mean([f for f, _ in found])})
    every = [f for found in counts.values() for f, _ in found]
    real = []
    for source, texts in sources.items():
        for text in texts:
            spans = [(kind, match) for kind, pattern, _, is_one in mask.KINDS for match in pattern.finditer(text)
                     if is_one(match, text)] if mask.mask(text)[1] else []
            real += [(source, kind, m[0], text[max(0, m.start() - 25):m.end() + 15]) for kind, m in spans]
    print(f"masked in all {sum(map(len, sources.values())):,} real documents, for you to judge:")
    for source, kind, found, around in sorted(set(real)):
        print(f"  {source} {kind}: {found}    ... {' '.join(around.split())} ...")
    measure.report("cleaning-personal", rows, measure.machine("regex") | {
        "items": len(every), "recall of all": sum(every) / len(every), "seed": args.seed,
        "masked in the real documents": dict(collections.Counter(f"{source} {kind}" for source, kind, _, _ in real))})


def kobest(args) -> None:
    """What an independent brute force finds of the benchmark, before and after; items that can be found at all."""
    def squeeze(text):
        return "".join(c for c in text if c.isalnum())
    long, short, rows = set(), collections.defaultdict(set), []
    for path in sorted(Path(args.kobest).rglob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            table = list(csv.reader(file, delimiter="\t"))
        for field in {field for row in table for field in row if not field.startswith("http")}:
            for text in {squeeze(field), squeeze(normalise.normalise(field)[0])}:
                long |= {text[i:i + 25] for i in range(len(text) - 24)}
                if 12 <= len(text) < 25:
                    short[text[:12]].add(text)
        visible = sum(any(len(squeeze(f)) >= 12 and not f.startswith("http") for f in row) for row in table[1:])
        rows.append({"task": f"{path.parent.name}/{path.stem}", "items": len(table) - 1, "can be found": visible})
    def found(text: str) -> bool:
        letters = squeeze(text)
        return any(letters[i:i + 25] in long for i in range(len(letters) - 24)) or any(
            letters.startswith(field, i) for i in range(len(letters) - 11)
            for field in short.get(letters[i:i + 12], ()))

    benchmark = decontaminate.Benchmark(decontaminate.fields(args.kobest))
    hits, wrong, n = collections.Counter(), 0, 0
    for source, texts in texts_of(args.input, 1e12).items():
        for text in texts:
            hit = found(text)
            hits[source] += hit
            wrong += benchmark.check(text)[0] == hit
            n += 1
    left = sum(found(d["text"]) for d in documents.read_documents(args.clean)) if args.clean else None
    measure.report("cleaning-kobest", rows, measure.machine("numpy") | {
        "documents": n, "hits by brute force": dict(+hits),
        "documents on which the program differs": wrong, "cleaned folders": len(args.clean), "hits left in them": left})


# -------------------------------------------------------------------------------------------------------- memory

def memory(args) -> None:
    """The first process's own memory (RssAnon: not the files it maps), by which the corpus's size is limited."""
    rng, rows = random.Random(args.seed), []
    real = [text for texts in texts_of(args.input, 5e6).values() for text in texts if len(text) > args.characters]
    words = [word for text in real for word in text.split()][:2_000_000]
    for n in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/a.jsonl", "w", encoding="utf-8") as file:
                for _ in range(n):
                    text = rng.choice(real)
                    start = rng.randrange(len(text) - args.characters)
                    part = text[start:start + args.characters].split(" ")
                    for _ in range(rng.randrange(10)):  # some stay near copies of others
                        part[rng.randrange(len(part))] = rng.choice(words)
                    file.write(json.dumps({"text": " ".join(part)}, ensure_ascii=False) + "\n")
            start, peak = time.time(), 0
            process = subprocess.Popen(
                [sys.executable, str(measure.ROOT / "data.py"), "clean", "--input", f"{folder}/a.jsonl", "--out",
                 f"{folder}/out", "--profile", "formal", "--workers", str(args.workers)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text().split("\n")
                peak = max([peak, *(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))])
                time.sleep(0.02)
            assert process.returncode == 0
            report = cli.read_json(f"{folder}/out/report.json")
            print(f"{n:,} documents: {peak / 1e6:.0f} MB")
            rows.append({"documents": n, "MB": report["input"]["bytes"] / 1e6, "kept": report["output"]["documents"],
                         "near duplicates": report["steps"][4]["documents_in"] - report["steps"][4]["documents_out"],
                         "peak MB": peak / 1e6, "seconds": time.time() - start})
    before, last = rows[-2:]  # the first ones still grow with the sample that the models are trained on
    growth = (last["peak MB"] - before["peak MB"]) * 1e6 / (last["documents"] - before["documents"])
    measure.report("cleaning-memory", rows, measure.machine("numpy") | {
        "workers": args.workers, "characters a document": args.characters,
        "bytes a document, between the last two": growth,
        "35 million documents, GB": (last["peak MB"] * 1e6 + growth * (35e6 - last["documents"])) / 1e9})


def main(argv: list[str] | None = None) -> None:
    """Run the measurement that is asked for."""
    parser = cli.Parser(description=__doc__, prog="bench.cleaning")
    flag = parser.add_argument
    flag("what", choices=["speed", "near", "personal", "kobest", "memory"], help="what to measure")
    flag("--input", nargs="+", required=True, help="files or folders of real documents")
    flag("--kobest", help="folder of KoBEST")
    flag("--clean", nargs="*", default=[], help="kobest: cleaned folders, to look for hits that are left")
    flag("--megabytes", type=float, default=2, help="speed: of each file")
    flag("--runs", type=int, default=5, help="speed: turns")
    flag("--documents", type=int, default=2000, help="near: real documents to plant copies of")
    flag("--items", type=int, default=100, help="personal: of each spelling")
    flag("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], help="memory: documents")
    flag("--characters", type=int, default=120, help="memory: of a document")
    flag("--workers", type=int, default=2, help="memory: processes")
    flag("--seed", type=int, default=0, help="of what is planted")
    args = parser.parse_args(argv)
    if args.what == "kobest" and not args.kobest:
        raise cli.UserError("kobest needs --kobest FOLDER")
    globals()[args.what](args)


if __name__ == "__main__":
    cli.run(main)
