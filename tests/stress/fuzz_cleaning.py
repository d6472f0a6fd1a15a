"""Malformed inputs for `data.py clean`: no traceback, and kept + removed + rejected = read.

    python -m tests.stress.fuzz_cleaning       # ten thousand inputs and a line of 200 MB: minutes
    python -m tests.stress.fuzz_cleaning --inputs 500 --seed 3 --long_line 0

Lines go into .jsonl, .json, .jsonl.gz, .jsonl.xz and .txt files and into arrays; there are also
empty files, broken archives, and a folder in place of a file. The number of documents is counted
independently of the program, by splitting the bytes at line ends.
"""
import argparse
import gzip
import json
import lzma
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

STEPS = "normalise mask leftovers rules exact near lines perplexity".split()
DATA = Path(__file__).resolve().parents[2] / "data.py"
# Simple sentences: a pupil read a book, it rained, the teacher likes music, they meet friends.
WORDS = ("어제 학생이 학교에서 책을 읽었다. 오늘은 비가 와서 집에 있었다. 선생님은 음악을 "
         "좋아한다. 내일은 친구를 "
         "만나기로 했지만 시간이 없다. 동생과 함께 바다에 갔다가 저녁에 돌아왔다.").split()
TAGS = ["<html>", "<p>", "</p>", "<div class='menu'>", "<![CDATA[", "<!--", "-->", "<pre>",
        "</pre>", "<article>",
        "<a b=", "</article>", "<script>", "&#1114112;", "&#xD800;", "&nbsp", "<", ">",
        "<table><tr><td>"]
ODD = ["\x00", "\x1b", "\u200b", "\ud83d", "\udc00", "\ufffe", "\u1100", "\u11a8", "\U000e0001",
       "\u202e", "ㅋ", "🏳️‍🌈", "010-1234-5678", "900101-1234567", "@", "a@b.kr",
       "4111 1111 1111 1111", "\t", "\r", "\u2028", "```", "$"]


def prose(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 120)))


def sound(rng: random.Random) -> str:
    """A document that every profile keeps, so that something is left of each folder."""
    return " ".join(rng.choices(WORDS, k=80)) + "."


def text(rng: random.Random) -> str:
    """Korean, mixed with things that are not."""
    words = prose(rng).split(" ")
    for _ in range(rng.randrange(30)):
        words.insert(
            rng.randrange(len(words) + 1),
            rng.choice([*TAGS, *ODD, rng.choice(ODD) * rng.randrange(1, 300)]),
        )
    return rng.choice(["", "<html>", " "]) + rng.choice([" ", ""]).join(words)


def document(rng: random.Random) -> bytes:
    value = json.dumps({"id": rng.choice([1, "a", None, [1], {"b": 2}]), "text": text(rng),
                        "more": [1.5, None, "x"]},
                       ensure_ascii=rng.random() < 0.5)
    return value.encode("utf-8", "surrogatepass")


def cut(rng: random.Random, line: bytes) -> bytes:
    return line[rng.randrange(3):rng.randrange(1, len(line) + 1)]


def flipped(rng: random.Random, line: bytes) -> bytes:
    line = bytearray(line)
    for _ in range(rng.randrange(1, 9)):
        line[rng.randrange(len(line))] = rng.randrange(256)
    return bytes(line)


KINDS = {
    "document": document,
    "cut": lambda rng: cut(rng, document(rng)),
    "flipped": lambda rng: flipped(rng, document(rng)),
    "random bytes": lambda rng: rng.randbytes(rng.randrange(1, 400)),
    "cut UTF-8": lambda rng: b'{"text": "' + prose(rng).encode()[:-rng.randrange(1, 3)] + b'"}',
    "lone surrogate":
        lambda rng: b'{"text": "%s \\ud83d %s"}' % (prose(rng).encode(), prose(rng).encode()),
    "NUL":
        lambda rng: (b'{"text": "%s\\u0000"}' % prose(rng).encode() if rng.random() < 0.5
                     else b"\x00" * 50),
    "no object": lambda rng: rng.choice([b"null", b"[]", b'"text"', b"3", b"NaN", b"[[1], 2]",
                                         b"true", b"1e999", b"9" * 5000]),
    "no text": lambda rng: rng.choice([b"{}", b'{"text": null}', b'{"text": 3}', b'{"text": ["a"]}',
                                       b'{"text": ""}', b'{"Text": "a"}', b'{"text": " \\n "}',
                                       b'{"text": {"text": "a"}}']),
    "deep nesting":
        lambda rng: (rng.choice([b"[", b'{"a":', b'{"text":', b"[{"])
                     * rng.choice([10, 1000, 100_000])),
    "deep tags":
        lambda rng: (b'{"text": "<html>'
                     + rng.choice([b"<div>", b"<ul><li>", b"<pre>", b"<a "]) * 5000 + b'"}'),
    "CP949": lambda rng: b'{"text": "' + prose(rng).encode("cp949") + b'"}',
    "UTF-16": lambda rng: document(rng).decode("utf-8", "replace").encode("utf-16"),
    "byte order mark": lambda rng: b"\xef\xbb\xbf" + document(rng),
    "blank": lambda rng: rng.choice([b"", b"   ", b"\t", b"\r"]),
}


def write(folder: Path, rng: random.Random, inputs: int) -> int:
    """Write files of malformed inputs; return how many documents a reader must account for."""
    expected, made = 0, 0
    (folder / "folder.jsonl").mkdir(parents=True)
    (folder / "folder.jsonl" / "inside.jsonl").write_bytes(document(rng) + b"\n")
    (folder / "empty.jsonl").touch()
    (folder / "empty.txt").touch()
    (folder / "empty.jsonl.gz").touch()
    (folder / "sound.jsonl").write_text(
        json.dumps({"text": sound(rng)}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    expected, made = 3, 5  # an empty .txt is a document without text
    while made < inputs:
        kind = rng.choice(["jsonl", "jsonl", "JSONL", "jsonl.gz", "jsonl.xz", "broken.jsonl.gz",
                           "array.json", "txt"])
        path = folder / f"{made:06}.{kind}"
        lines = [
            KINDS[rng.choice(list(KINDS))](rng)
            for _ in range(1 if kind == "txt" else rng.randrange(1, 80))
        ]
        made += len(lines)
        raw = rng.choice([b"\n", b"\n", b"\r\n"]).join(lines) + rng.choice([b"", b"\n"])
        if kind == "array.json":  # of documents whose half surrogate pairs are spelled with escapes
            values = [{"id": i, "text": text(rng)} for i in range(len(lines))]
            path.write_text(json.dumps(values), encoding="utf-8")
            expected += len(values)
        elif kind == "broken.jsonl.gz":
            raw = raw.lstrip(b"\xff\xfe")  # lines are counted as bytes below
            packed = gzip.compress(raw)
            packed = (
                packed[: rng.randrange(1, len(packed))]
                if rng.random() < 0.7
                else rng.randbytes(20) + packed
            )
            path.write_bytes(packed)
            try:
                raw = zlib.decompressobj(31).decompress(packed)
            except zlib.error:
                raw = b""
            expected += sum(bool(line.strip()) for line in raw.split(b"\n")[:-1]) + 1
        else:
            pack = {"jsonl.gz": gzip.compress, "jsonl.xz": lzma.compress}.get(kind, bytes)
            path.write_bytes(pack(raw))
            expected += 1 if kind == "txt" else filled_lines(raw)
    return expected


def filled_lines(raw: bytes) -> int:
    """How many lines are not empty. A byte order mark at the start makes the whole file UTF-16."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return sum(bool(line.strip()) for line in raw.decode("utf-16", "replace").split("\n"))
    return sum(bool(line.strip()) for line in raw.split(b"\n"))


def check(folder: Path, expected: int, *flags: str) -> dict[str, int]:
    """Clean the folder; return what happened to the documents. AssertionError if one is lost, or if
    there is a traceback."""
    out = folder.with_name(folder.name + "-clean")
    done = subprocess.run(
        [sys.executable, str(DATA), "clean", "--input", str(folder), "--out", str(out), *flags],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr and done.returncode == 0, (flags, done.stderr[-3000:])
    files = {name: (out / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
             for name in ("removed", "rejected", "changed", "examples")}
    kept = [json.loads(line)["text"] for file in out.glob("*.jsonl") if file.stem not in files
            for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    counts = {
        "kept": len(kept),
        "removed": len(files["removed"]),
        "rejected": len(files["rejected"]),
    }
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["input"]["documents"] == counts["kept"] + counts["removed"], (
        flags,
        counts,
        report["input"],
    )
    assert sum(counts.values()) == expected, (flags, counts, expected)
    assert report["output"]["bytes"] == sum(len(text.encode()) for text in kept)
    assert not [text for text in kept if re.search("[\x00-\x08\ud800-\udfff]", text)]
    reasons = Counter(json.loads(line)["reason"] for line in files["rejected"] + files["removed"])
    return counts | dict(reasons)


def main(argv: list[str] | None = None) -> None:
    """Clean malformed inputs; every document must be kept, removed or rejected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="malformed inputs in all")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the inputs; a failure names it"
    )
    parser.add_argument(
        "--long_line", type=int, default=200, help="megabytes of one line, 0 for none"
    )
    args = parser.parse_args(argv)
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as temporary:
        profiles = ("web", "short", "formal")
        for i, profile in enumerate(profiles):
            flags = ["--profile", profile, "--workers", str(1 + i % 2), "--steps", *STEPS]
            folder = Path(temporary) / str(i)
            expected = write(folder, random.Random(args.seed + i), args.inputs // len(profiles) + 1)
            print(f"{profile}, {expected} read:", check(folder, expected, *flags))
        if args.long_line:
            folder = Path(temporary) / "long"
            folder.mkdir()
            rng, unit = random.Random(args.seed), (" ".join(WORDS) + " ").encode()
            short = [
                json.dumps({"text": sound(rng)}, ensure_ascii=False).encode() + b"\n"
                for _ in range(2)
            ]
            line = b'{"text": "' + unit * (args.long_line * 1_000_000 // len(unit)) + b'"}\n'
            (folder / "a.jsonl").write_bytes(short[0] + line + short[1])
            (folder / "b.txt").write_bytes(line)
            print(f"a line of {len(line) / 1e6:.0f} MB:", check(folder, 4))


if __name__ == "__main__":
    main()
