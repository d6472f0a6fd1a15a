"""Llama 3's vocabulary, extended by Korean merges, on real text: what it saves, that it changes
nothing else, and whether other programs agree on every id.

Documents are dealt into tenths as in bench/tokenizer.py. For each of --tenths, merges are learned
on the other nine of the four balanced domains and measured on the tenth that was held out, and on
domains that are never trained on. Four contenders, of which the last three have only the first of
these tenths:

- Llama 3's ranks with --sizes new tokens, all from one training of the largest size;
- Qwen 2's ranks with 8,000, by the same code;
- Mistral's SentencePiece with 20,000, what the project did before there were ranks;
- Llama 3 with the same new tokens by `add_tokens` of tokenizers, the usual way: words that are cut
  out of a text before the base has seen what is around them.

The largest vocabulary is then compared with its definition (`ByteLevel.encode_chunks`) under
tiktoken, tokenizers and transformers, and with the base on all text without Hangul.

    pip install tiktoken tokenizers transformers
    python -m bench.byte_level --llama3 llama3/tokenizer.model --qwen qwen2/qwen.tiktoken \\
        --mistral mistral.model --korean data/raw/ko --english data/raw/en --kobest data/kobest/v1.0
"""
import argparse
import dataclasses
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

import tokenizer
from bench import measure
from bench.tokenizer import (
    ALSO,
    HELD_OUT,
    TENTHS,
    UNTRAINED,
    read,
    read_kobest,
    run,
    split,
    training_files,
)
from common import byte_level_file, cli
from common.byte_level import ByteLevel

ELSEWHERE = ALSO + UNTRAINED  # domains that no merges are learned from

LLAMA3 = "Llama 3"
QWEN = "Qwen 2"
MISTRAL = "Mistral"
RIVAL = "add_tokens"

QWEN_SIZE = 8000
MISTRAL_SIZE = 20000

# A program for one training, in a process of its own: afterwards it prints the processor's seconds
# and the most memory, in KiB. (What wait4 says of a child is at least the memory of its parent.)
TRAIN = """
import re, sys, time, tokenizer
tokenizer.main(sys.argv[1:])
memory = open("/proc/self/status").read()
print(time.process_time(), re.search(r"VmHWM:\\s+(\\d+)", memory)[1])
"""

# Texts that are encoded at a time.
BATCH = 5000

CODE_POINTS = [chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF]


# ---- One tenth -----------------------------------------------------------------------------------


def qwen_base(ranks_file: Path, folder: Path) -> None:
    """Write a model directory's tokenizer with Qwen's ranks.

    A text is split as by Llama 3, but every digit is a chunk. The control tokens are Llama 3's,
    since no text can become one. tokenizer.load refuses the file itself, which says neither."""
    vocabulary = byte_level_file.llama3(byte_level_file.read_ranks(ranks_file), {})
    pattern = vocabulary.pattern.replace(r"\p{N}{1,3}", r"\p{N}")
    content = vocabulary.content | {"pre_tokenizer": byte_level_file.pre_tokenizer(pattern)}
    folder.mkdir()
    byte_level_file.save(dataclasses.replace(vocabulary, pattern=pattern, content=content), folder)


def train(base: Path, inputs: list[Path], size: int, out: Path) -> dict:
    """`tokenizer.py train`, and what it took."""
    argv = ["train", "--base", base, "--balance", "--vocab_size", size, "--out", out,
            "--input", *inputs]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *map(str, argv)],
        cwd=measure.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cpu_seconds, kib = done.stdout.split()[-2:]
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": float(cpu_seconds),
        "peak_mib": int(kib) / 1024,
    }


def count(vocabularies: dict[str, tokenizer.Vocabulary], texts: dict[str, list[str]]) -> dict:
    """{name: what it makes of the texts}, the base's first. Tokens and bytes are by domain.

    longer: documents of more tokens than the base's.
    round_trips_lost: documents that decode to themselves under the base, and not here."""
    base = next(iter(vocabularies.values()))
    found = {}
    for name, vocabulary in vocabularies.items():
        lost = tokenizer.unreachable(vocabulary, base.size)
        found[name] = {"unreachable": len(lost), "longer": 0, "round_trips_lost": 0, "tokens": {}}

    for domain, some in texts.items():
        before = base.encode(some, bos=False)
        decoded_before = base.decode(before)
        for name, vocabulary in vocabularies.items():
            after = vocabulary.encode(some, bos=False)
            decoded = vocabulary.decode(after)
            facts = found[name]
            facts["tokens"][domain] = sum(map(len, after))
            for i, text in enumerate(some):
                if len(after[i]) > len(before[i]):
                    facts["longer"] += 1
                if decoded_before[i] == text and decoded[i] != text:
                    facts["round_trips_lost"] += 1
    return found


def contend(
    base_file: Path,
    sizes: list[int],
    texts: dict[str, list[str]],
    folder: Path,
) -> tuple[dict, dict]:
    """Train on the files in `folder`, for a base and the largest of some sizes; count all sizes.

    Returns (what the training took, what `count` returns). The tokens stay in korean.model."""
    korean = folder / "korean.model"
    took = train(base_file, training_files(HELD_OUT, folder), max(sizes), korean)
    base = tokenizer.load(base_file, base=True)
    vocabularies = {"base": base}
    for size in sizes:
        vocabularies[str(size)] = tokenizer.merged_with(base, korean, size)
    return took, count(vocabularies, texts)


# ---- The rival -----------------------------------------------------------------------------------


def add_tokens(base_folder: Path, merged: ByteLevel, first: int, texts: dict) -> dict:
    """The tokens from id `first` on as words of `add_tokens`: what that makes of the texts."""
    rival = Tokenizer.from_file(str(base_folder / "tokenizer.json"))
    words = []
    for i in range(first, merged.size):
        token = merged.bytes_of(i)
        # The beginning of a syllable is no word.
        if not tokenizer.TWO_BYTES.fullmatch(token):
            words.append(token.decode())
    rival.add_tokens(words)

    # Under the ids of the merged vocabulary both can be compared.
    merged_id = list(range(first))
    for i in range(first, rival.get_vocab_size()):
        merged_id.append(merged.ranks[rival.id_to_token(i).encode()])

    facts = {"words": len(words), "documents": 0, "segmented_differently": 0, "tokens": {}}
    for domain, some in texts.items():
        facts["tokens"][domain] = 0
        rows = merged.encode(some, bos=False)
        encodings = rival.encode_batch(some, add_special_tokens=False)
        for row, encoding in zip(rows, encodings, strict=True):
            facts["documents"] += 1
            facts["tokens"][domain] += len(encoding.ids)
            if [merged_id[i] for i in encoding.ids] != row:
                facts["segmented_differently"] += 1
    return facts


# ---- Nothing else changes ------------------------------------------------------------------------


def around_code_points() -> Iterator[str]:
    """Every code point outside Hangul: alone, doubled, and beside spaces."""
    for letter in CODE_POINTS:
        if not tokenizer.HANGUL_LETTER.match(letter):
            yield letter
            yield letter + letter
            yield f" {letter}"
            yield f"{letter} "
            yield f"  {letter}  {letter}"


def lines_without_hangul(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines(keepends=True):
            if not tokenizer.HANGUL_LETTER.search(line):
                yield line


def unchanged(base: ByteLevel, merged: ByteLevel, kinds: dict[str, Iterable[str]]) -> dict:
    """{kind: (how many texts there are, how many of them are segmented differently)}"""
    found = {}
    for kind, texts in kinds.items():
        total = 0
        changed = 0
        for text in texts:
            total += 1
            if base.encode(text, bos=False) != merged.encode(text, bos=False):
                changed += 1
        found[kind] = {"texts": total, "changed": changed}
    return found


# ---- Others agree --------------------------------------------------------------------------------


def random_texts(letters: str, number: int, longest: int) -> list[str]:
    """Texts of 1 to `longest` letters, always the same ones."""
    rng = random.Random(0)
    texts = []
    for _ in range(number):
        length = rng.randint(1, longest)
        texts.append("".join(rng.choices(letters, k=length)))
    return texts


def letters_of(*ranges: tuple[int, int]) -> str:
    """The letters from the first to the last code point of each range."""
    letters = ""
    for first, last in ranges:
        letters += "".join(map(chr, range(first, last + 1)))
    return letters


def hard_texts(documents: list[str]) -> dict[str, list[str]]:
    """Texts in which byte-level tokenizers might differ, by their kind."""
    syllables = letters_of((0xAC00, 0xD7A3))
    old_jamo = letters_of((0x1100, 0x11FF), (0xA960, 0xA97C), (0xD7B0, 0xD7FB))
    # Emoji, and what joins two of them, or two letters to a flag.
    emoji = letters_of((0x1F300, 0x1FAFF), (0x2600, 0x27BF))
    emoji += "\u200d\ufe0f\U0001f1f0\U0001f1f7" * 99
    # Letters, digits, spaces and punctuation, each as frequent that they meet.
    mixed = syllables[::50] + "ㅋㅎㅠ漢字aZéß09٣²"
    mixed += " \t\n\r\u00a0\u3000\u2028" * 20
    mixed += ".,'’-()!?" * 9
    # A letter that is younger than a program's Unicode is none to that program: see code_points.
    assigned = ""
    for letter in CODE_POINTS:
        if unicodedata.category(letter) not in ("Cn", "Co"):
            assigned += letter
    return {
        "held-out documents": documents,
        "the same in NFD": [unicodedata.normalize("NFD", text) for text in documents[::10]],
        "syllables": list(syllables),
        "syllables after a space": [f" {letter}" for letter in syllables],
        "syllables, doubled": [letter + letter for letter in syllables],
        "runs of ㅋ": ["ㅋ" * n for n in (*range(1, 301), *range(400, 3001, 100))],
        "old jamo": random_texts(old_jamo + " ", 2000, 30),
        "emoji": random_texts(emoji, 2000, 10),
        "scripts and spaces": random_texts(mixed, 20000, 30),
        "random letters": random_texts(assigned, 20000, 20),
    }


def peers_of(merged: ByteLevel, folder: Path) -> tuple[dict[str, Callable], dict]:
    """Other programs that read the vocabulary, {name: their ids of texts, after BOS}; and BOS."""
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    opened = AutoTokenizer.from_pretrained(folder)
    opened.save_pretrained(folder / "saved")
    reopened = AutoTokenizer.from_pretrained(folder / "saved")

    def by_tiktoken(texts: list[str]) -> list[list[int]]:
        return [[merged.bos, *merged.tiktoken.encode_ordinary(text)] for text in texts]

    def by_tokenizers(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in fast.encode_batch(texts)]

    def by_transformers(texts: list[str]) -> list[list[int]]:
        return opened(texts)["input_ids"]

    def by_transformers_again(texts: list[str]) -> list[list[int]]:
        return reopened(texts)["input_ids"]

    peers = {
        "tiktoken": by_tiktoken,
        "tokenizers": by_tokenizers,
        "transformers": by_transformers,
        "transformers, reopened": by_transformers_again,
    }
    bos = {
        "nanowhale": merged.bos,
        "transformers": opened.bos_token_id,
        "transformers, reopened": reopened.bos_token_id,
    }
    return peers, bos


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of BATCH texts."""
    texts = iter(texts)
    while batch := list(islice(texts, BATCH)):
        yield batch


def disagreements(merged: ByteLevel, peers: dict, texts: Iterable[str]) -> dict[str, list[str]]:
    """{peer: the texts whose ids are not those of the definition}"""
    found = {name: [] for name in peers}
    for batch in batches(texts):
        rows = [[merged.bos, *merged.encode_chunks(text)] for text in batch]
        for name, encode in peers.items():
            for text, row, other in zip(batch, rows, encode(batch), strict=True):
                if other != row:
                    found[name].append(text)
    return found


def code_points(merged: ByteLevel, peers: dict) -> dict:
    """Every code point, beside a letter, a digit and a space: those on whose ids a peer differs.

    What a letter is depends on the version of Unicode that a program was built with. By it the
    expression splits text around a letter that is younger."""
    text_of = {f"a{letter}1 {letter}{letter}": letter for letter in CODE_POINTS}
    # transformers calls tokenizers.
    peers = {name: peers[name] for name in ("tiktoken", "tokenizers")}
    found = {}
    for name, texts in disagreements(merged, peers, text_of).items():
        letters = [text_of[text] for text in texts]
        kinds = Counter(unicodedata.category(letter) for letter in letters)
        found[name] = {
            "differ": len(letters),
            "categories": dict(kinds),
            "first": [f"U+{ord(letter):04X}" for letter in letters[:5]],
            "Hangul": len([letter for letter in letters if tokenizer.HANGUL_LETTER.match(letter)]),
        }
    return {"code_points": len(text_of), "unicode": unicodedata.unidata_version, "peers": found}


# ---- All of it -----------------------------------------------------------------------------------


def joined(by_domain: dict[str, list[str]]) -> list[str]:
    """The texts of all domains."""
    return list(chain.from_iterable(by_domain.values()))


def tenth_of(corpus: dict, tenth: int, folder: Path) -> dict[str, list[str]]:
    """Write what is trained on to a folder; return what is measured, by domain."""
    held_out = split(corpus, tenth, folder)
    texts = {name: held_out[name] for name in HELD_OUT}
    return texts | {name: corpus[name] for name in ELSEWHERE}


def others(args: argparse.Namespace, texts: dict, folder: Path) -> tuple[dict, dict]:
    """Qwen and Mistral on the tenth that is in `folder`: (what training took, {name: counts})"""
    qwen_base(args.qwen, folder / "qwen")
    took = {}
    counts = {}
    for name, base_file, size in (
        (QWEN, folder / "qwen", QWEN_SIZE),
        (MISTRAL, args.mistral, MISTRAL_SIZE),
    ):
        took[name], counts[name] = contend(base_file, [size], texts, folder)
        print(name, took[name], flush=True)
    return took, counts


def add(total: dict, counts: dict) -> None:
    """Add counts to their sum over tenths; both may hold dictionaries of counts."""
    for key, value in counts.items():
        if isinstance(value, dict):
            add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def ratios(counts: dict) -> dict[str, dict[str, float]]:
    """{vocabulary: {domain: tokens over the base's}}, with the mean of the domains trained on."""
    before = counts["base"]["tokens"]
    found = {}
    for name, facts in counts.items():
        found[name] = {domain: n / before[domain] for domain, n in facts["tokens"].items()}
        trained = [found[name][domain] for domain in HELD_OUT]
        found[name]["mean of the four"] = sum(trained) / len(trained)
    return found


def rows_of(by_contender: dict[str, dict]) -> list[dict]:
    """The table: a row per domain, a column per vocabulary."""
    rows = []
    for domain in [*HELD_OUT, "mean of the four", *ELSEWHERE]:
        row = {"domain": domain}
        for contender, counts in by_contender.items():
            for name, found in ratios(counts).items():
                if name != "base":
                    row[f"{contender} + {name}"] = found[domain]
        rows.append(row)
    return rows


def bytes_per_token(counts: dict, sizes: dict[str, int]) -> dict:
    """{vocabulary: {domain: bytes per token}}, by which bases of any kind can be compared."""
    found = {}
    for name, facts in counts.items():
        found[name] = {domain: sizes[domain] / n for domain, n in facts["tokens"].items()}
    return found


def prove(args: argparse.Namespace, corpus: dict, texts: dict, folder: Path) -> tuple[dict, dict]:
    """The largest vocabulary, merged in `folder`, beside the base and beside other programs.

    Returns (what `unchanged` found, where others agree)."""
    base = tokenizer.load(args.llama3, base=True)
    merged = tokenizer.load(folder / "merged")
    english = joined(read(args.english))
    korean = joined(corpus)
    same = unchanged(base, merged, {
        "English documents": [text for text in english if not tokenizer.HANGUL_LETTER.search(text)],
        "lines without Hangul of all documents": lines_without_hangul(english + korean),
        "code points outside Hangul, in five ways": around_code_points(),
    })
    print(same, flush=True)

    peers, bos = peers_of(merged, folder / "merged")
    agreement = []
    for kind, some in hard_texts(joined(texts)).items():
        found = disagreements(merged, peers, some)
        agreement.append({"kind": kind, "texts": len(some)} | {k: len(v) for k, v in found.items()})
        print(agreement[-1], flush=True)
    return same, {"ids_differ": agreement, "bos": bos, "unicode": code_points(merged, peers)}


def all_tenths(
    args: argparse.Namespace,
    corpus: dict[str, list[str]],
    folder: Path,
) -> tuple[list[dict], list[dict]]:
    """Llama 3 on each of --tenths: (what is said of each, their counts). The first one's files are
    left in the folder."""
    facts = []
    counts = []
    # Backwards, so that the first comes last.
    for tenth in reversed(args.tenths):
        texts = tenth_of(corpus, tenth, folder)
        took, found = contend(args.llama3, args.sizes, texts, folder)
        counts.append(found)
        facts.append({"tenth": tenth, "training": took, "token_ratio": ratios(found)})
        print(facts[-1], flush=True)
    return facts[::-1], counts[::-1]


def summarise(by_contender: dict[str, dict], rival: dict, first_tenth: dict) -> dict:
    """What is said of a whole vocabulary, beside the table."""
    summary = {}
    for contender, counts in by_contender.items():
        for name, facts in counts.items():
            if name != "base" and contender != RIVAL:
                row = {key: value for key, value in facts.items() if key != "tokens"}
                summary[f"{contender} + {name}"] = row
    summary[RIVAL] = {key: value for key, value in rival.items() if key != "tokens"}
    summary["first tenth"] = {name: ratios(counts) for name, counts in first_tenth.items()}
    return summary


def main() -> None:
    """Train, merge and measure on tenths that are held out; then compare."""
    parser = cli.Parser(description=__doc__, prog="bench.byte_level")
    flag = parser.add_argument
    flag("--llama3", type=Path, required=True, help="Llama 3's tiktoken file")
    flag("--qwen", type=Path, required=True, help="Qwen's tiktoken file")
    flag("--mistral", type=Path, required=True, help="a SentencePiece base's .model file")
    flag("--korean", type=Path, required=True,
         help=f"folder of Korean .jsonl files: {', '.join(HELD_OUT + ALSO)}, …")
    flag("--english", type=Path, required=True, help="folder of English .jsonl files")
    flag("--kobest", type=Path, required=True, help="KoBEST's folder of tasks")
    flag("--sizes", type=int, nargs="+", default=[4000, 8000, 16000], help="new tokens of Llama 3")
    flag("--tenths", type=int, nargs="+", default=list(range(TENTHS)),
         help="tenths to hold out, each with a training of its own")
    args = parser.parse_args()

    corpus = read(args.korean)
    corpus["kobest_train"] = read_kobest(args.kobest)
    llama3 = tokenizer.load(args.llama3, base=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tenths, counts = all_tenths(args, corpus, folder)

        # What the first tenth alone has: its files are there.
        run("merge", "--base", args.llama3, "--korean", folder / "korean.model",
            "--out", folder / "merged")
        (folder / "base").mkdir()
        tokenizer.save(args.llama3, folder / "base")
        merged = tokenizer.load(folder / "merged")
        texts = tenth_of(corpus, args.tenths[0], folder)
        rival = add_tokens(folder / "base", merged, llama3.size, texts)
        took, other_counts = others(args, texts, folder)
        same, agreement = prove(args, corpus, texts, folder)

    first_tenth = {
        LLAMA3: counts[0],
        **other_counts,
        RIVAL: {"base": counts[0]["base"], str(rival["words"]): rival},
    }
    total = {}
    for found in counts:
        add(total, found)
    by_contender = first_tenth | {LLAMA3: total}
    summary = {"base_merges": len(byte_level_file.merges_of(llama3.ranks)), "training": took}
    summary |= summarise(by_contender, rival, first_tenth)

    sizes = {domain: len("".join(some).encode()) for domain, some in texts.items()}
    density = {name: bytes_per_token(found, sizes) for name, found in first_tenth.items()}
    conditions = measure.machine("tiktoken", "tokenizers", "transformers", "regex", "sentencepiece")
    conditions |= {"tenths": args.tenths, "others on tenth": args.tenths[0]}
    measure.report("byte_level", rows_of(by_contender), conditions, summary=summary,
                   unchanged=same, agreement=agreement, bytes_per_token=density, tenths=tenths)


if __name__ == "__main__":
    cli.run(main)
