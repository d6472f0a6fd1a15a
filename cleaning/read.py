"""Step 0, read: files of documents, one at a time. What cannot be read is handed on with its reason, never lost."""
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cli

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
RECORDS = ("rejected.jsonl", "removed.jsonl", "masked.jsonl")  # what `clean` writes beside the documents


def files(paths: Iterable[str | Path]) -> list[Path]:
    """The document files under `paths` (files or folders), folders in sorted order. UserError if there is none."""
    found = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.name.endswith(SUFFIXES) and p.name not in RECORDS]
            if not inside:
                raise cli.UserError(f"{path} holds no {', '.join(SUFFIXES)} file")
            found += inside
        elif not path.exists():
            raise cli.UserError(f"{path} does not exist; --input takes files or folders of {', '.join(SUFFIXES)}")
        elif not path.name.endswith(SUFFIXES):
            raise cli.UserError(f"{path} is none of {', '.join(SUFFIXES)}")
        else:
            found.append(path)
    return found


def lines(path: Path) -> Iterator[tuple[int, bytes | Exception]]:
    """(line number, raw bytes) of every line that is not blank; a .txt file is a single one.

    A compressed file that breaks off gives the error in place of the line: what came before it still counts."""
    number = 0
    try:
        if path.suffix == ".txt":
            yield 1, path.read_bytes()
            return
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield number, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield number + 1, error
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None


def parse(raw: bytes | Exception, path: Path, encoding: str = "utf-8", fields: tuple[str, ...] = ("text",)) -> dict:
    """One document, a dict in which `fields` hold text. ValueError says why these bytes are none.

    >>> parse(b'{"id": 7, "text": "ab"}', Path("a.jsonl"))
    {'id': 7, 'text': 'ab'}
    """
    if isinstance(raw, Exception):
        raise ValueError("broken gzip")
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
            try:
                yield parse(raw, path, encoding, fields)
            except ValueError as error:
                if rejected:
                    rejected({"file": str(path), "line": number, "reason": str(error)})
