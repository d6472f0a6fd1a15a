"""Files of documents, read one document at a time.

Three kinds of file: JSON lines (.jsonl), the same compressed (.jsonl.gz), and plain text (.txt, one
document per file). What cannot be read is passed on with its reason, line by line; it never stops a
run and never disappears.

    files(paths)            the files under some paths
    read_documents(paths)   every document in them, for a program that reads from start to end
    units, lines, parse     the same in parts, for a program of many processes (cleaning/)

A corpus is divided into units of about 8 MB: several small files, or a span of a large one. Units
are what processes work on, and what a run that was killed need not do again. Nobody looks for line
ends beforehand: a line belongs to the span in which it begins. A compressed file cannot be entered
in the middle, so it is one span.
"""
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from common import cli

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
RECORDS = ("rejected.jsonl", "removed.jsonl", "masked.jsonl")  # what `clean` writes beside them
UNIT = 8_000_000      # bytes of work for one process
LONGEST = 32_000_000  # bytes of a line; the complete works of an author are a tenth of it

# ---- From the first file to the last ------------------------------------------------------------


def read_documents(
    paths: Iterable[str | Path],
    encoding: str = "utf-8",
    rejected: Callable[[dict], None] | None = None,
    fields: tuple[str, ...] = ("text",),
) -> Iterator[dict]:
    """Yield every document of files or folders, in order.

    Bad lines go to `rejected` as {"file", "line", "reason"}."""
    for path in files(paths):
        for number, raw in lines(path):
            if raw is None:  # the end of the file
                continue
            try:
                yield parse(raw, path, encoding, fields)
            except ValueError as error:
                if rejected:
                    rejected({"file": str(path), "line": number, "reason": str(error)})


def parse(
    raw: bytes | ValueError,
    path: Path,
    encoding: str = "utf-8",
    fields: tuple[str, ...] = ("text",),
) -> dict:
    """One document: a dict in which each of `fields` holds text. ValueError says why it is none.

    >>> parse(b'{"id": 7, "text": "ab"}', Path("a.jsonl"))
    {'id': 7, 'text': 'ab'}
    >>> parse(b'{"id": 7}', Path("a.jsonl"))
    Traceback (most recent call last):
    ValueError: no text field
    """
    if isinstance(raw, ValueError):  # `lines` could not even read it
        raise raw
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
        if path.suffix == ".txt":
            document = {"text": text}
        else:
            document = json.loads(text)
        # JSON can spell half a surrogate pair (\ud83d), which is no text and cannot be written.
        json.dumps(document, ensure_ascii=False).encode()
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


# ---- Which files, and in which parts ------------------------------------------------------------


def files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The document files under `paths` (files or folders), each once, folders in sorted order.

    UserError if there are none, or if a path is not what it should be."""
    if isinstance(paths, str | Path):
        paths = [paths]
    kinds = ", ".join(SUFFIXES)
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if is_document_file(p)]
            if not inside:
                raise cli.UserError(f"{path} holds no {kinds} file")
            found += inside
        elif not path.exists():
            raise cli.UserError(f"{path} does not exist; documents are in files or folders of "
                                f"{kinds}")
        elif not path.name.endswith(SUFFIXES) or not path.is_file():
            raise cli.UserError(f"{path} is none of {kinds}")
        else:
            found.append(path)

    # A record names its file in UTF-8, which Linux does not ask of the name of a file.
    for name in map(str, found):
        if name.encode(errors="ignore").decode() != name:
            raise cli.UserError(f"{name!a}: the name of this file is not UTF-8, so no record could "
                                "name it; rename it")
    return list(dict.fromkeys(found))


def is_document_file(path: Path) -> bool:
    """Whether a file in a folder holds documents, and is no record that `clean` wrote."""
    return path.name.endswith(SUFFIXES) and path.name not in RECORDS and path.is_file()


class Span(NamedTuple):
    """Bytes start ... end of a file, and what the file was when the work was planned."""

    path: Path
    start: int
    end: int
    stamp: tuple[int, int]


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change): a file with another stamp is another file.

    UserError if it is gone."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def units(paths: list[Path]) -> list[list[Span]]:
    """All bytes of all files, in order, in units of about UNIT bytes."""
    found: list[list[Span]] = [[]]
    room = UNIT
    for path in paths:
        size, changed = stamp(path)
        can_be_split = path.suffix == ".jsonl"
        step = UNIT if can_be_split else max(1, size)
        for start in range(0, max(1, size), step):  # an empty file is a span too
            end = min(start + step, size)
            is_full = end - start > room
            if is_full and found[-1]:
                found.append([])
                room = UNIT
            found[-1].append(Span(path, start, end, (size, changed)))
            room -= end - start
    return found


# ---- Lines --------------------------------------------------------------------------------------


def lines(
    path: Path,
    start: int = 0,
    end: int | None = None,
) -> Iterator[tuple[int, bytes | ValueError | None]]:
    """Yield (line number, raw bytes) of every line that begins in bytes start ... end, blank ones
    excepted, and at last (number of lines, None). Numbers count from `start`.

    A .txt file is a single line; a compressed file is read whole. What cannot be read yields an
    error in its place: a line that is too long, the rest of a compressed file that breaks off. What
    came before it still counts. UserError if the file cannot be opened."""
    if end is None or path.suffix != ".jsonl":
        end = sys.maxsize
    number = 0
    try:
        with open_bytes(path) as file:
            if path.suffix == ".txt":
                found = [whole_file(file)]
            else:
                found = split_lines(file, start, end)
            for raw in found:
                number += 1
                is_blank = isinstance(raw, bytes) and not raw.strip()
                if not is_blank or path.suffix == ".txt":  # an empty .txt is an empty document
                    yield number, raw
    except (EOFError, zlib.error, gzip.BadGzipFile):
        number += 1
        yield number, ValueError("broken gzip")
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    yield number, None


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed."""
    if path.suffix == ".gz":
        return gzip.open(path)
    return open(path, "rb")


def split_lines(file: IO[bytes], start: int, end: int) -> Iterator[bytes | ValueError]:
    """Yield every line that begins in bytes start ... end, with its line end."""
    position = start
    if start > 0:
        # Skip the rest of the line that began in the span before this one. If that span ended with
        # a line end, the byte before `start` is that line end, and nothing but it is skipped.
        file.seek(start - 1)
        skipped = file.readline(end - start + 1)
        position = start - 1 + len(skipped)
    while position < end:
        raw = file.readline(LONGEST + 1)
        if not raw:
            return
        position += len(raw)
        if len(raw) <= LONGEST:
            yield raw
            continue
        yield too_long()
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(LONGEST)
            position += len(raw)


def whole_file(file: IO[bytes]) -> bytes | ValueError:
    """The content of a file, as if it were one line."""
    raw = file.read(LONGEST + 1)
    if len(raw) > LONGEST:
        return too_long()
    return raw


def too_long() -> ValueError:
    """What stands in the place of more than LONGEST bytes."""
    return ValueError(f"longer than {LONGEST // 1_000_000} MB")
