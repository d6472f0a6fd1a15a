"""Step 0, read: files of documents, one at a time. What cannot be read is handed on with its reason, never lost.

A corpus is cut into units of about 8 MB: some small files, or a span of a large one. Units are what processes work on
and what a run that was killed need not do again. A line belongs to the span in which it begins, so nobody has to look
for line ends beforehand; a compressed file cannot be entered in the middle and is one span.
"""
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from common import cli

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
RECORDS = ("rejected.jsonl", "removed.jsonl", "masked.jsonl")  # what `clean` writes beside the documents
UNIT = 8_000_000      # bytes
LONGEST = 32_000_000  # bytes of a line; the complete works of an author are a tenth of it


class Span(NamedTuple):
    """Bytes start ... end of a file, and what the file was when the work was planned."""
    path: Path
    start: int
    end: int
    stamp: tuple[int, int]


def files(paths: Iterable[str | Path]) -> list[Path]:
    """The document files under `paths` (files or folders), each once, folders in sorted order. UserError if none."""
    found: dict[Path, None] = {}
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*"))
                      if p.name.endswith(SUFFIXES) and p.name not in RECORDS and p.is_file()]
            if not inside:
                raise cli.UserError(f"{path} holds no {', '.join(SUFFIXES)} file")
            found |= dict.fromkeys(inside)
        elif not path.exists():
            raise cli.UserError(f"{path} does not exist; documents are in files or folders of {', '.join(SUFFIXES)}")
        elif not path.name.endswith(SUFFIXES) or not path.is_file():
            raise cli.UserError(f"{path} is none of {', '.join(SUFFIXES)}")
        else:
            found[path] = None
    if odd := [path for path in map(str, found) if path.encode(errors="ignore").decode() != path]:
        raise cli.UserError(f"{odd[0]!a}: the name of this file is not UTF-8, so no record could name it; rename it")
    return list(found)


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change): a file with another stamp is another file. UserError if it is gone."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def units(paths: list[Path]) -> list[list[Span]]:
    """All bytes of all files, in order, in units of about UNIT bytes."""
    found: list[list[Span]] = [[]]
    for path in paths:
        size, changed = stamp(path)
        step = UNIT if path.suffix == ".jsonl" else max(1, size)
        for start in range(0, max(1, size), step):
            span = Span(path, start, min(start + step, size), (size, changed))
            if found[-1] and sum(s.end - s.start for s in found[-1]) + span.end - span.start > UNIT:
                found.append([])
            found[-1].append(span)
    return found


def lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes | ValueError | None]]:
    """(line number from `start` on, raw bytes) of every line that begins in bytes start ... end and is not blank, and
    last (number of lines, None); a .txt file is a single line, and a compressed one is read whole.

    What cannot be had gives an error in its place: a line that is too long, the rest of a compressed file that breaks
    off. What came before still counts."""
    number, end = 0, end if path.suffix == ".jsonl" else None
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            if start:
                file.seek(start - 1)
                start += len(file.readline(end - start + 1)) - 1  # a line that began before is another span's
            while end is None or start < end:
                raw = file.read(LONGEST + 1) if path.suffix == ".txt" else file.readline(LONGEST + 1)
                if not raw and (path.suffix != ".txt" or number):
                    break
                number += 1
                start += len(raw)
                if len(raw) > LONGEST:
                    yield number, ValueError(f"longer than {LONGEST // 1_000_000} MB")
                    while raw and (raw[-1:] != b"\n" or path.suffix == ".txt"):
                        raw = file.readline(LONGEST)
                        start += len(raw)
                elif raw.strip() or path.suffix == ".txt":
                    yield number, raw
    except (EOFError, zlib.error, gzip.BadGzipFile):
        number += 1
        yield number, ValueError("broken gzip")
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    yield number, None


def parse(raw: bytes | ValueError, path: Path, encoding: str = "utf-8", fields: tuple[str, ...] = ("text",)) -> dict:
    """One document, a dict in which `fields` hold text. ValueError says why these bytes are none.

    >>> parse(b'{"id": 7, "text": "ab"}', Path("a.jsonl"))
    {'id': 7, 'text': 'ab'}
    """
    if isinstance(raw, ValueError):
        raise raw
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
        document = {"text": text} if path.suffix == ".txt" else json.loads(text)
        json.dumps(document, ensure_ascii=False).encode()  # fails on half a surrogate pair (\ud83d), which is no text
    except UnicodeDecodeError:
        raise ValueError(f"not {encoding}") from None
    except UnicodeEncodeError:
        raise ValueError("lone surrogate") from None
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    for field in fields:
        if not isinstance(document, dict) or not isinstance(document.get(field), str):
            raise ValueError(f"no {field} field")
        if not document[field].strip():
            raise ValueError(f"empty {field}")
    return document


def documents(paths: Iterable[str | Path], encoding: str = "utf-8", rejected: Callable[[dict], None] | None = None,
              fields: tuple[str, ...] = ("text",)) -> Iterator[dict]:
    """Every document of files or folders, in order. Bad lines go to `rejected` as {"file", "line", "reason"}."""
    for path in files(paths):
        for number, raw in lines(path):
            if raw is None:
                continue
            try:
                yield parse(raw, path, encoding, fields)
            except ValueError as error:
                if rejected:
                    rejected({"file": str(path), "line": number, "reason": str(error)})
