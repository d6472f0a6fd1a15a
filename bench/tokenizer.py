"""The merged tokenizer on real text: what it saves on documents that it has not seen, that it changes nothing else, and
whether transformers agrees.

Documents are dealt into tenths by a hash of their text (data.text_hash modulo 10), so that equal texts lie together.
For each tenth a Korean model is trained on the other nine, and merged; so every document is held out once, and a
domain's token ratio is its held-out tokens over the base's, summed over all tenths. (One tenth alone says little: it
holds about nine statutes.) Merges are learnt from these four domains, which count alike; the pieces' occurrences
are counted in periodicals and news comments too. Technical manuals and KoBEST are never trained on.

    python -m bench.tokenizer --base base.model --korean data/raw/ko --english data/raw/en --kobest data/kobest/v1.0
"""
import contextlib
import io
import json
import random
import tempfile
import time
import unicodedata
from collections import Counter
from pathlib import Path

import data
import tokenizer
from bench import measure
from common import cli

HELD_OUT = ["wiki", "nsmc_reviews", "court_precedents", "law_statutes"]
ALSO, UNTRAINED = ["periodicals_1920_1941", "news_comments"], ["techdocs_tensorflow", "kobest_train"]
TENTHS = 10
SIZES = range(8000, 40001, 4000)


def read(folder: Path) -> dict[str, list[str]]:
    """The documents of a folder's .jsonl files, by their names."""
    return {file.stem: list(tokenizer.texts([file])) for file in sorted(folder.glob("*.jsonl"))}


def run(*argv) -> None:
    """A tokenizer.py command; its prints are not the table's."""
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer.main([str(argument) for argument in argv])


def split(corpus: dict[str, list[str]], tenth: int, folder: Path) -> dict[str, list[str]]:
    """Write nine tenths of each training domain to FOLDER/train-DOMAIN.jsonl; return the held-out documents."""
    held_out = {}
    for name in HELD_OUT + ALSO:
        kinds = {True: [], False: []}
        for text in corpus[name]:
            kinds[data.text_hash(text) % TENTHS == tenth].append(text)
        held_out[name] = kinds[True]
        write(folder / f"train-{name}.jsonl", kinds[False])
    return held_out


def write(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def occurrences(texts: set[str], runs: Counter) -> Counter:
    """How often each of the texts occurs in the runs: a window of each length is moved over each run."""
    found, longest = Counter(), max(map(len, texts))
    for run, n in runs.items():
        word = run.replace(" ", "▁")
        for length in range(1, longest + 1):
            for start in range(len(word) - length + 1):
                if word[start:start + length] in texts:
                    found[word[start:start + length]] += n
    return found


def one_tenth(corpus: dict[str, list[str]], tenth: int, args, folder: Path) -> tuple[dict, dict]:
    """Train, merge (korean.model and merged.model in `folder`) and look: (facts, {domain: (tokens, base's tokens)})."""
    held_out, learn, also = split(corpus, tenth, folder), *([folder / f"train-{name}.jsonl" for name in names]
                                                            for names in (HELD_OUT, ALSO))
    run("train", "--vocab_size", args.vocab_size, "--balance", "--min_count", args.min_count, "--input", *learn,
        "--also", *also, "--out", folder / "korean.model")
    start = time.perf_counter()
    run("merge", "--base", args.base, "--korean", folder / "korean.model", "--out", folder / "merged.model")
    seconds = time.perf_counter() - start
    base, merged = (tokenizer.read(file) for file in (args.base, folder / "merged.model"))
    inside = tokenizer.processor(merged.raw, dummy_prefix=False)
    new = {piece.text: i for i, piece in enumerate(merged.pieces) if i >= len(base.pieces)}
    runs, tokens = tokenizer.hangul_counts(tokenizer.texts(learn + also)), Counter()
    for ids, n in zip(inside.encode(list(runs)), runs.values(), strict=True):
        tokens.update({i: n * ids.count(i) for i in set(ids)})
    seen = occurrences(set(new), runs)
    texts = {name: held_out[name] for name in HELD_OUT} | {name: corpus[name] for name in UNTRAINED}
    size = {name: tuple(sum(map(len, sp.encode(some))) for sp in (merged.sp, base.sp)) for name, some in texts.items()}
    lost = sum(base.sp.decode(base.sp.encode(text)) == text != merged.sp.decode(merged.sp.encode(text))
               for some in texts.values() for text in some)
    return dict(korean=sum(tokenizer.HANGUL_PIECE.fullmatch(p.text) is not None for p in tokenizer.read(
        folder / "korean.model").pieces), added=len(new), rarest_as_text=min(seen[text] for text in new),
        rare_as_tokens=sum(tokens[i] < args.min_count for i in new.values()), merge_seconds=seconds,
        unreachable=[text for text, i in new.items() if inside.encode(text) != [i]], round_trips_lost=lost), size


def sizes(args, folder: Path, held_out: list[Path]) -> dict:
    """report --sizes from one large model, and beside it the smallest size trained by itself."""
    learn = [folder / f"train-{name}.jsonl" for name in HELD_OUT]
    for size in (max(SIZES), min(SIZES)):
        run("train", "--vocab_size", size, "--balance", "--input", *learn, "--out", folder / f"{size}.model")
    run("merge", "--base", args.base, "--korean", folder / f"{min(SIZES)}.model", "--out", folder / "small.model")
    tokenizer.main(["report", "--tokenizers", str(args.base), f"{folder}/small.model", "--korean",
                    f"{folder}/{max(SIZES)}.model", "--sizes", *map(str, SIZES), "--input", *map(str, held_out),
                    "--out", f"{folder}/report.json"])
    report = cli.read_json(folder / "report.json")
    rows = list(report["tokenizers"].values())[1:]
    return {"suggested": report["suggested"], "table": [
        {"size": name, "token_ratio": row["mean_token_ratio"], "embedding_growth": row["embedding_growth"]}
        for name, row in zip([f"{min(SIZES)} trained by itself", *SIZES], rows, strict=True)]}


def transformers_agrees(corpus: dict[str, list[str]], args, folder: Path) -> dict:
    """Documents of all kinds under SentencePiece and under transformers, on what tokenizer.save has written."""
    from transformers import AutoTokenizer
    (folder / "saved").mkdir()
    tokenizer.save(folder / "merged.model", folder / "saved")
    ours, theirs = tokenizer.load(folder / "saved"), AutoTokenizer.from_pretrained(folder / "saved")
    kinds = {"emoji": "[\U0001f300-\U0001faff\u2600-\u27bf]", "hanja": "[\u4e00-\u9fff]", "code": "```|</",
             "runs of spaces": "  +", "anything": ""}
    rng, every, texts = random.Random(0), [text for some in corpus.values() for text in some], []
    for pattern in kinds.values():  # a fifth of each kind, or all there are; the last one fills up
        found = [text for text in every if tokenizer.regex.search(pattern, text)]
        texts += rng.sample(found, min(len(found), args.documents // 5 if pattern else args.documents - len(texts)))
    texts[::10] = [unicodedata.normalize("NFD", text) for text in texts[::10]]
    ids = [tokenizer.encode(ours, text, bos=True) for text in texts]
    return {"documents": len(texts), "NFD": len(texts[::10]),
            **{kind: sum(bool(tokenizer.regex.search(pattern, text)) for text in texts)
               for kind, pattern in kinds.items() if pattern},
            "ids_differ": sum(theirs(text)["input_ids"] != one for text, one in zip(texts, ids, strict=True)),
            "text_differs": sum(theirs.decode(one, skip_special_tokens=True) != ours.decode(one) for one in ids)}


def main() -> None:
    """Train, merge and report on tenths that are held out in turn."""
    parser = cli.Parser(description=__doc__, prog="bench.tokenizer")
    flag = parser.add_argument
    flag("--base", type=Path, required=True, help="the base's .model file")
    flag("--korean", type=Path, required=True, help=f"folder of Korean .jsonl files: {', '.join(HELD_OUT + ALSO)}, …")
    flag("--english", type=Path, required=True, help="folder of English .jsonl files")
    flag("--kobest", type=Path, required=True, help="KoBEST's folder of tasks")
    flag("--vocab_size", type=int, default=20000, help="Korean pieces, those that the base has among them")
    flag("--min_count", type=int, default=50, help="occurrences of the rarest one in the training text")
    flag("--documents", type=int, default=5000, help="to compare with transformers")
    args = parser.parse_args()
    corpus, facts, sums = read(args.korean), [], {}
    every = corpus | {f"english {name}": texts for name, texts in read(args.english).items()}
    corpus["kobest_train"] = [line for file in sorted(args.kobest.glob("*/train.tsv"))
                              for line in file.read_text(encoding="utf-8-sig").splitlines()[1:]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tenth in reversed(range(TENTHS)):  # the models of tenth 0 are left for what comes after
            fact, size = one_tenth(corpus, tenth, args, folder)
            ratios = {domain: new / old for domain, (new, old) in size.items()}
            facts.append(fact | {"tenth": tenth, "token_ratio": ratios})
            print(tenth, {domain: round(ratio, 4) for domain, ratio in ratios.items()}, flush=True)
            for domain, pair in size.items():
                sums[domain] = [a + b for a, b in zip(sums.get(domain, (0, 0)), pair, strict=True)]
        base, merged = tokenizer.load(args.base), tokenizer.load(folder / "merged.model")
        plain = [text for some in every.values() for text in some
                 if not tokenizer.regex.search(f"[{tokenizer.HANGUL}]", text)]
        changed = sum(base.encode(text) != merged.encode(text) for text in plain)
        paths, held_out = [folder / f"{name}.jsonl" for name in HELD_OUT], split(corpus, 0, folder)
        for path, name in zip(paths, HELD_OUT, strict=True):
            write(path, held_out[name])
        extra = {"transformers": transformers_agrees(every, args, folder), "sizes": sizes(args, folder, paths)}
    column = lambda key: [fact[key] for fact in facts]
    rows = [{"domain": domain, "token_ratio": new / old, "lowest tenth": min(f["token_ratio"][domain] for f in facts),
             "highest tenth": max(f["token_ratio"][domain] for f in facts), "trained on": domain in HELD_OUT}
            for domain, (new, old) in sums.items()]
    summary = {"mean_token_ratio": sum(row["token_ratio"] for row in rows if row["trained on"]) / len(HELD_OUT),
               "korean_pieces": column("korean"), "added": column("added"),
               "rarest_as_text": min(column("rarest_as_text")), "rare_as_tokens": max(column("rare_as_tokens")),
               "unreachable": sum(column("unreachable"), []), "round_trips_lost": sum(column("round_trips_lost")),
               "merge_seconds": max(column("merge_seconds")),
               "documents_without_hangul": len(plain), "of_which_changed": changed}
    print(json.dumps(summary | extra, ensure_ascii=False, indent=1))
    measure.report("tokenizer", rows, measure.machine("sentencepiece", "transformers", "tokenizers") | {
        "vocab_size": args.vocab_size, "min_count": args.min_count}, summary=summary, tenths=facts, **extra)


if __name__ == "__main__":
    cli.run(main)
