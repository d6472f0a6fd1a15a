"""Step 9, decontaminate: remove documents that give away an item of the benchmark.

RedWhale is evaluated on KoBEST. Much of KoBEST's text comes from Wikipedia, and one published
Korean model had SentiNeg in its training data. A document is removed when, ignoring spaces and
punctuation, it contains

- 25 consecutive characters of any field of any item, or
- a whole field of at least 12 characters: runs of 25 alone miss COPA, SentiNeg and half of WiC.

Searching each document for each of 100,000 fields would be far too slow. Instead the hashes of all
runs of 25 in the benchmark go into a table, and the hashes of all runs of a document are looked up
in it. A rolling hash makes that cheap: six passes over a document hash the run at every position.
Whole fields are found in the same way by their first 12 characters; where those match, the rest is
compared. Memory: about 20 MB for KoBEST, whatever the size of the corpus.
"""
import csv
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cleaning.hashes import Table, code_points, rolling
from cleaning.normalise import normalise_text
from common import cli
from common.documents import parse_json, visible

# All three numbers are ours.
RUN = 25    # consecutive characters that give a longer field away
WHOLE = 12  # minimum length of a shorter field, which is looked for as a whole
SHOWN = 40  # characters of a match that are shown in removed.jsonl

CODE_POINTS = 0x110000
WITH_LETTERS = 0x40000  # planes 0 to 3: above them Unicode has no letters or digits
# Whether each code point is a letter or a digit: bool (0x110000,).
IS_LETTER = np.zeros(CODE_POINTS, bool)
IS_LETTER[:WITH_LETTERS] = [chr(code).isalnum() for code in range(WITH_LETTERS)]

# Two of the links in WiC begin with a space or a control character.
LINK = re.compile(r"\W*http")


# ---- The step -----------------------------------------------------------------------------------


def squeeze(text: str) -> np.ndarray:
    """The letters and digits of a text, as code points: uint64.

    >>> "".join(map(chr, squeeze("커피가, 식었다!").tolist()))
    '커피가식었다'
    """
    codes = code_points(text)
    return codes[IS_LETTER[codes]].astype(np.uint64)


def shown(codes: np.ndarray) -> str:
    """The beginning of what `squeeze` returned, as text."""
    return "".join(map(chr, codes[:SHOWN].tolist()))


class Benchmark:
    """The fields of a benchmark, prepared for looking them up."""

    def __init__(self, texts: Iterable[str]):
        # Long fields are found by their runs, shorter ones by their first 12 characters.
        hashes = array("Q")
        # {the hash of 12 characters: all fields that begin with them, as bytes}
        self.whole: dict[int, list[bytes]] = {}
        for text in texts:
            codes = squeeze(text)
            if len(codes) >= RUN:
                hashes.frombytes(rolling(codes, RUN).tobytes())
            elif len(codes) >= WHOLE:
                head = int(rolling(codes[:WHOLE], WHOLE)[0])
                hashes.append(head)
                self.whole.setdefault(head, []).append(codes.tobytes())

        # One table for both kinds: for nearly all documents one look-up per hash is enough.
        self.table = Table(np.sort(np.frombuffer(hashes, np.uint64)))

    def check(self, text: str) -> tuple[str | None, str]:
        """(text, "") if the text gives no item away, (None, reason) if it does.

        >>> benchmark = Benchmark(["남자는 토스트기 전원을 껐다."])  # 'he switched the toaster off'
        >>> benchmark.check("그래서 남자는 토스트기, 전원을 껐다!")
        (None, 'benchmark_field: all 12 characters, 남자는토스트기전원을껐다')
        >>> benchmark.check("남자는 토스트기 전원을 켰다")              # 'on'
        ('남자는 토스트기 전원을 켰다', '')
        """
        codes = squeeze(text)
        if len(codes) < WHOLE:
            return text, ""
        runs = rolling(codes, RUN)
        heads = rolling(codes, WHOLE)
        rows = self.table.find(np.concatenate([runs, heads]))

        for i in np.flatnonzero(rows >= 0).tolist():
            if i < len(runs):
                # Runs at consecutive positions form one longer run.
                end = i
                while end < len(runs) and rows[end] >= 0:
                    end += 1
                found = codes[i:end - 1 + RUN]
                return None, f"benchmark_run: {len(found)} characters in a row, {shown(found)}"
            # A shorter field may begin here: compare all of it. It is shorter than a run.
            start = i - len(runs)
            here = codes[start:start + RUN].tobytes()
            for field in self.whole.get(int(heads[start]), []):
                if here.startswith(field):
                    found = np.frombuffer(field, codes.dtype)
                    return None, f"benchmark_field: all {len(found)} characters, {shown(found)}"
        return text, ""


# ---- The benchmark's files ----------------------------------------------------------------------


def detectable(folder: str | Path) -> dict[str, tuple[int, int]]:
    """{table: (items with a field long enough to be found, all items)}."""
    counts: dict[str, tuple[int, int]] = {}
    for path in benchmark_files(folder):
        name = f"{path.parent.name}/{path.stem}"
        seen, items = counts.get(name, (0, 0))
        for fields_of_item in read_items(path):
            items += 1
            if any(len(squeeze(field)) >= WHOLE for field in fields_of_item):
                seen += 1
        counts[name] = (seen, items)
    return counts


def fields(folder: str | Path) -> list[str]:
    """Every field of every item, both as it is and normalised, without repeats. Raises UserError if
    there are none."""
    found: dict[str, None] = {}  # a set that keeps its order
    for path in benchmark_files(folder):
        for fields_of_item in read_items(path):
            for field in fields_of_item:
                found[field] = None
                normalised, _ = normalise_text(field)
                if normalised is not None:
                    found[normalised] = None
    if not found:
        raise cli.UserError(f"--decontaminate {folder}: its files hold no items")
    return list(found)


def benchmark_files(folder: str | Path) -> list[Path]:
    """The .tsv and .jsonl files under a folder: KoBEST as published (v1.0/BoolQ/dev.tsv), or as on
    Hugging Face (boolq/validation.jsonl). Raises UserError if there are none."""
    folder = Path(folder)
    found = []
    for path in visible(folder):
        is_table = path.suffix.lower() in (".tsv", ".jsonl")
        if is_table and path.is_file():
            found.append(path)
    if not found:
        raise cli.UserError(f"--decontaminate {folder}: no .tsv or .jsonl file there; name the "
                            "KoBEST folder, which holds files like v1.0/BoolQ/dev.tsv or "
                            "boolq/validation.jsonl")
    return found


def read_items(path: Path) -> Iterator[list[str]]:
    """Yield the fields of each item of a file, without links and ids: a page that cites the same
    dictionary entry gives nothing away."""
    if path.suffix.lower() == ".tsv":
        rows = read_tsv(path)
    else:
        rows = read_json_lines(path)
    for row in rows:
        yield [text for text in strings(row) if not LINK.match(text)]


def strings(value) -> Iterator[str]:
    """Yield all strings in a JSON value except ids.

    >>> list(strings({"id": "a-7", "question": "왜?", "choices": ["비", "눈"], "label": 0}))
    ['왜?', '비', '눈']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
    elif isinstance(value, dict):
        for name, part in value.items():
            if not is_id(name):
                yield from strings(part)


def is_id(name: str) -> bool:
    """Whether a column or key with this name holds ids.

    >>> [is_id(name) for name in ("ID", "question_id", "id", "paid", "idea")]
    [True, True, True, False, False]
    """
    return re.search(r"(^|_)id$", name.strip().lower()) is not None


def read_tsv(path: Path) -> Iterator[list[str]]:
    """Yield the rows below the header, without the id columns."""
    # csv must see the line ends itself: inside quotes they belong to the cell.
    reader = csv.reader(read_lines(path), dialect="excel-tab")
    names = None
    ids: set[int] = set()
    try:
        for cells in reader:
            if not cells:  # an empty line
                continue
            if names is None:
                names = cells
                ids = {column for column, name in enumerate(names) if is_id(name)}
                continue
            yield [cell for column, cell in enumerate(cells) if column not in ids]
    except csv.Error as error:
        raise unreadable(path, reader.line_num, error) from None


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their line ends. Raises UserError if one is not UTF-8."""
    # Read bytes: in text mode Python decodes ahead, and the error could not name the line.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise unreadable(path, number, error) from None


def read_json_lines(path: Path) -> Iterator[dict]:
    """Yield the JSON object of each line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            row, reason = parse_json(line)
            if reason:
                raise unreadable(path, number, reason)
            if not isinstance(row, dict):
                raise unreadable(path, number, "not a JSON object")
            yield row


def unreadable(path: Path, line: int, why: object) -> cli.UserError:
    return cli.UserError(f"--decontaminate: cannot read {path}: {why} (line {line})")
