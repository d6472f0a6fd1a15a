"""The merged tokenizer on real text: what it saves on documents that it has not seen, that it
changes nothing else, and whether transformers agrees.

Documents are dealt into tenths by a hash of their text (data.text_hash modulo 10), so that equal
texts lie together. For each tenth a Korean model is trained on the other nine and merged; so every
document is held out once, and a domain's token ratio is its held-out tokens over the base's,
summed over all tenths. (One tenth alone says little: it holds about nine statutes.) Merges are
learned from these four domains, which count alike; the pieces' occurrences are counted in
periodicals and news comments too. Technical manuals and KoBEST are never trained on.

    python -m bench.tokenizer --base base.model --korean data/raw/ko --english data/raw/en \\
        --kobest data/kobest/v1.0
"""
import argparse
import contextlib
import io
import json
import random
import tempfile
import time
import unicodedata
from collections import Counter
from pathlib import Path

import regex

import data
import tokenizer
from bench import measure
from common import cli, documents

# Merges are learned from these, tenth by tenth.
HELD_OUT = ["wiki", "nsmc_reviews", "court_precedents", "law_statutes"]
# Only occurrences are counted in these.
ALSO = ["periodicals_1920_1941", "news_comments"]
# Not looked at in training.
UNTRAINED = ["techdocs_tensorflow", "kobest_train"]

TENTHS = 10
SIZES = range(8000, 40001, 4000)

# What might be segmented differently by transformers.
KINDS = {
    "emoji": "[\U0001f300-\U0001faff\u2600-\u27bf]",
    "hanja": "[\u4e00-\u9fff]",
    "code": "```|</",
    "runs of spaces": "  +",
}


def read(folder: Path) -> dict[str, list[str]]:
    """The documents of a folder's files, by their names; those in another encoding are left out."""
    corpus = {}
    for file in documents.files(folder):
        texts = list(tokenizer.texts([file]))
        if texts:
            corpus[documents.stem(file)] = texts
    return corpus


def read_kobest(folder: Path) -> list[str]:
    """The lines of KoBEST's training files, less the headers."""
    lines = []
    for file in sorted(folder.glob("*/train.tsv")):
        lines += file.read_text(encoding="utf-8-sig").splitlines()[1:]
    return lines


def write(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def run(*argv) -> None:
    """A tokenizer.py command; what it prints is not the table's."""
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer.main([str(argument) for argument in argv])


def count_tokens(sp, texts: list[str]) -> int:
    return sum(map(len, sp.encode(texts)))


# ---- One tenth -----------------------------------------------------------------------------------


def training_files(names: list[str], folder: Path) -> list[Path]:
    return [folder / f"train-{name}.jsonl" for name in names]


def split(corpus: dict[str, list[str]], tenth: int, folder: Path) -> dict[str, list[str]]:
    """Write nine tenths of each training domain to `folder`; return the held-out documents."""
    held_out = {}
    for name, file in zip(HELD_OUT + ALSO, training_files(HELD_OUT + ALSO, folder), strict=True):
        rest = []
        held_out[name] = []
        for text in corpus[name]:
            if data.text_hash(text) % TENTHS == tenth:
                held_out[name].append(text)
            else:
                rest.append(text)
        write(file, rest)
    return held_out


def one_tenth(corpus: dict[str, list[str]], tenth: int, args, folder: Path) -> tuple[dict, dict]:
    """Train, merge (korean.model and merged.model in `folder`) and look.

    Returns (facts, {domain: (tokens, the base's tokens)})."""
    held_out = split(corpus, tenth, folder)
    learn = training_files(HELD_OUT, folder)
    also = training_files(ALSO, folder)
    run("train", "--vocab_size", args.vocab_size, "--balance", "--min_count", args.min_count,
        "--input", *learn, "--also", *also, "--out", folder / "korean.model")
    start = time.perf_counter()
    run("merge", "--base", args.base, "--korean", folder / "korean.model",
        "--out", folder / "merged.model")
    seconds = time.perf_counter() - start

    base = tokenizer.read(args.base)
    korean = tokenizer.read(folder / "korean.model")
    merged = tokenizer.read(folder / "merged.model")
    texts = {name: held_out[name] for name in HELD_OUT}
    texts |= {name: corpus[name] for name in UNTRAINED}
    sizes = {}
    lost = 0
    for name, some in texts.items():
        sizes[name] = (count_tokens(merged.sp, some), count_tokens(base.sp, some))
        for text in some:
            before = base.sp.decode(base.sp.encode(text))
            after = merged.sp.decode(merged.sp.encode(text))
            if before == text and after != text:
                lost += 1

    hangul = [piece for piece in korean.pieces if tokenizer.HANGUL_PIECE.fullmatch(piece.text)]
    added = len(merged.pieces) - len(base.pieces)
    facts = {"korean": len(hangul), "added": added}
    facts |= rarity(base, merged, learn + also, args.min_count)
    facts["merge_seconds"] = seconds
    facts["unreachable"] = list(tokenizer.unreachable(merged, len(base.pieces)))
    facts["round_trips_lost"] = lost
    return facts, sizes


def rarity(
    base: tokenizer.Model,
    merged: tokenizer.Model,
    files: list[Path],
    min_count: int,
) -> dict:
    """How rare the new pieces are in training text: as text, and as tokens.

    A piece that occurs often as text may be a rare token, if longer pieces take its place."""
    new = {piece.text: i for i, piece in enumerate(merged.pieces) if i >= len(base.pieces)}
    runs = tokenizer.hangul_counts(tokenizer.texts(files))
    spelled = Counter({run.replace(" ", "▁"): n for run, n in runs.items()})
    seen = tokenizer.occurrences(new, spelled)

    tokens = Counter()
    for ids, n in zip(merged.inside_words.encode(list(runs)), runs.values(), strict=True):
        for i in ids:
            tokens[i] += n
    rare = [i for i in new.values() if tokens[i] < min_count]
    return {"rarest_as_text": min(seen[text] for text in new), "rare_as_tokens": len(rare)}


# ---- All of it -----------------------------------------------------------------------------------


def compare_sizes(args: argparse.Namespace, folder: Path, held_out: list[Path]) -> dict:
    """report --sizes from one large model, and beside it the smallest size trained by itself."""
    smallest = min(SIZES)
    largest = max(SIZES)
    learn = training_files(HELD_OUT, folder)
    for size in (largest, smallest):
        run("train", "--vocab_size", size, "--balance", "--input", *learn,
            "--out", folder / f"{size}.model")
    run("merge", "--base", args.base, "--korean", folder / f"{smallest}.model",
        "--out", folder / "small.model")
    argv = ["report", "--tokenizers", args.base, folder / "small.model",
            "--korean", folder / f"{largest}.model", "--sizes", *SIZES,
            "--input", *held_out, "--out", folder / "report.json"]
    tokenizer.main([str(argument) for argument in argv])

    report = cli.read_json(folder / "report.json")
    rows = list(report["tokenizers"].values())[1:]  # less the base's
    table = []
    for name, row in zip([f"{smallest} trained by itself", *SIZES], rows, strict=True):
        table.append({
            "size": name,
            "token_ratio": row["mean_token_ratio"],
            "embedding_growth": row["embedding_growth"],
        })
    return {"suggested": report["suggested"], "table": table}


def choose(texts: list[str], n: int) -> list[str]:
    """n documents: of each of KINDS a fifth or all there are, then any; a tenth of them in NFD."""
    rng = random.Random(0)
    chosen = []
    for pattern in KINDS.values():
        found = [text for text in texts if regex.search(pattern, text)]
        chosen += rng.sample(found, min(len(found), n // 5))
    chosen += rng.sample(texts, min(len(texts), n - len(chosen)))
    chosen[::10] = [unicodedata.normalize("NFD", text) for text in chosen[::10]]
    return chosen


def compare_with_transformers(texts: list[str], folder: Path) -> dict:
    """Documents under SentencePiece and under transformers, on what tokenizer.save writes."""
    from transformers import AutoTokenizer
    (folder / "saved").mkdir()
    tokenizer.save(folder / "merged.model", folder / "saved")
    ours = tokenizer.load(folder / "saved")
    theirs = AutoTokenizer.from_pretrained(folder / "saved")

    found = {"documents": len(texts), "NFD": len(texts[::10])}
    for kind, pattern in KINDS.items():
        found[kind] = len([text for text in texts if regex.search(pattern, text)])
    found["ids_differ"] = 0
    found["text_differs"] = 0
    for text in texts:
        ids = ours.encode(text, bos=True)
        if theirs(text)["input_ids"] != ids:
            found["ids_differ"] += 1
        if theirs.decode(ids, skip_special_tokens=True) != ours.decode(ids):
            found["text_differs"] += 1
    return found


def unchanged(texts: list[str], base_file: Path, merged_file: Path) -> dict:
    """Of the documents without Hangul, how many are segmented differently? None should be."""
    base = tokenizer.load(base_file)
    merged = tokenizer.load(merged_file)
    plain = [text for text in texts if not tokenizer.HANGUL_LETTER.search(text)]
    changed = []
    for text in plain:
        if base.encode(text, bos=False) != merged.encode(text, bos=False):
            changed.append(text)
    return {"documents_without_hangul": len(plain), "of_which_changed": len(changed)}


def summarise(facts: list[dict], sums: dict[str, list[int]]) -> tuple[list[dict], dict]:
    """The table's rows, one per domain, and what is said of all tenths together."""
    rows = []
    for domain, (tokens, base_tokens) in sums.items():
        ratios = [fact["token_ratio"][domain] for fact in facts]
        rows.append({
            "domain": domain,
            "token_ratio": tokens / base_tokens,
            "lowest tenth": min(ratios),
            "highest tenth": max(ratios),
            "trained on": domain in HELD_OUT,
        })
    trained = [row["token_ratio"] for row in rows if row["trained on"]]
    columns = {key: [fact[key] for fact in facts] for key in facts[0]}
    summary = {
        "mean_token_ratio": sum(trained) / len(HELD_OUT),
        "korean_pieces": columns["korean"],
        "added": columns["added"],
        "rarest_as_text": min(columns["rarest_as_text"]),
        "rare_as_tokens": max(columns["rare_as_tokens"]),
        "unreachable": sum(columns["unreachable"], []),
        "round_trips_lost": sum(columns["round_trips_lost"]),
        "merge_seconds": max(columns["merge_seconds"]),
    }
    return rows, summary


def all_tenths(corpus: dict[str, list[str]], args, folder: Path) -> tuple[list[dict], dict]:
    """(facts of each tenth, {domain: [tokens, the base's tokens]} of all); prints as it goes."""
    facts = []
    sums = {}
    # Backwards: the models of tenth 0 are left for what comes after.
    for tenth in reversed(range(TENTHS)):
        fact, sizes = one_tenth(corpus, tenth, args, folder)
        ratios = {domain: new / old for domain, (new, old) in sizes.items()}
        facts.append(fact | {"tenth": tenth, "token_ratio": ratios})
        print(tenth, {domain: round(ratio, 4) for domain, ratio in ratios.items()}, flush=True)
        for domain, (tokens, base_tokens) in sizes.items():
            total = sums.setdefault(domain, [0, 0])
            total[0] += tokens
            total[1] += base_tokens
    return facts, sums


def main() -> None:
    """Train, merge and report on tenths that are held out in turn."""
    parser = cli.Parser(description=__doc__, prog="bench.tokenizer")
    flag = parser.add_argument
    flag("--base", type=Path, required=True, help="the base's .model file")
    flag("--korean", type=Path, required=True,
         help=f"folder of Korean .jsonl files: {', '.join(HELD_OUT + ALSO)}, …")
    flag("--english", type=Path, required=True, help="folder of English .jsonl files")
    flag("--kobest", type=Path, required=True, help="KoBEST's folder of tasks")
    flag("--vocab_size", type=int, default=20000,
         help="Korean pieces, those that the base has among them")
    flag("--min_count", type=int, default=50,
         help="occurrences of the rarest one in the training text")
    flag("--documents", type=int, default=5000, help="to compare with transformers")
    args = parser.parse_args()

    corpus = read(args.korean)
    every = []
    for texts in [*corpus.values(), *read(args.english).values()]:
        every += texts
    corpus["kobest_train"] = read_kobest(args.kobest)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts, sums = all_tenths(corpus, args, folder)
        rows, summary = summarise(facts, sums)
        summary |= unchanged(every, args.base, folder / "merged.model")

        chosen = choose(every, args.documents)
        extra = {"transformers": compare_with_transformers(chosen, folder)}
        held_out = split(corpus, 0, folder)
        paths = [folder / f"{name}.jsonl" for name in HELD_OUT]
        for path, name in zip(paths, HELD_OUT, strict=True):
            write(path, held_out[name])
        extra["sizes"] = compare_sizes(args, folder, paths)

    print(json.dumps(summary | extra, ensure_ascii=False, indent=1))
    conditions = measure.machine("sentencepiece", "transformers", "tokenizers")
    conditions |= {"vocab_size": args.vocab_size, "min_count": args.min_count}
    measure.report("tokenizer", rows, conditions, summary=summary, tenths=facts, **extra)


if __name__ == "__main__":
    cli.run(main)
