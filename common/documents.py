"""Read files of documents, one document at a time.

A folder may hold files of several kinds. Each is read by its kind:

    .jsonl          one JSON object per line
    .json           the same; or one array of objects; or objects that run over several lines
    .parquet        one row per document (needs pyarrow)
    .txt            one document per file; with --lines, one per line
    wiki_00, .txt   WikiExtractor's output: <doc id=".." url=".." title=".."> ... </doc>

All kinds but .parquet may be compressed: .gz, .bz2, .xz, .zst (needs zstandard before Python 3.14).
A document is a dict with a `text`; its other fields are passed on. What cannot be read is reported
with a reason, document by document: it never stops a run and is never dropped silently. Files of
other kinds are named on the screen.

    files(paths)            the files of documents under some paths
    read_documents(paths)   every document in them, for a program that reads from start to end
    units, read_span        the same in parts, for a program with many processes (cleaning/)

A corpus is divided into units of about 8 MB: several small files, or a span of a large one.
Processes work on units, and a run that was killed need not repeat finished ones. A span ends at the
end of a line and knows how many lines come before it, so it can be read like a separate file. A
file that cannot be entered in the middle (a compressed file, an array) is one span.
"""
import codecs
import io
import json
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from common import cli, compressed
from common.compressed import first_bytes, open_bytes

KINDS = ".jsonl, .json, .txt (each also .gz, .bz2, .xz, .zst) or .parquet"
RECORDS = ("rejected.jsonl", "removed.jsonl", "changed.jsonl")  # what `clean` writes beside them
EXAMPLES = "examples.jsonl"  # users may delete it, because it holds texts
OURS = (*RECORDS, EXAMPLES, "report.json")
UNIT = 8_000_000      # bytes of work for one process
LONGEST = 32_000_000  # bytes of a document: ten long novels. Anything longer is a mistake
ARRAY = 500_000_000   # bytes of a JSON array, which is read whole and takes three times that memory
BLOCK = 2**20         # bytes to read at a time
ROWS = 1_000          # rows of a .parquet file to read at a time

# Bytes at the start of a file that show what is in it.
HEAD = 2**16

# A document with a few broken bytes is kept, and they become U+FFFD: a byte that a disk or a
# transfer changed, or half a character where a text was cut. With more of them, the text was read
# in the wrong encoding. A short text in the wrong encoding also has few broken bytes, so their
# share is limited too. (Both limits are ours, chosen by hand.)
BROKEN = "\ufffd"
BROKEN_PLACE = re.compile("\ufffd{1,3}")  # one wrong byte can break a character into three
MOST_PLACES = 10
BROKEN_SHARE = 0.01
BROKEN_BYTES = "broken_bytes"

# The reasons that do not reject a document.
KEPT = ("", BROKEN_BYTES)

# A .txt of at least this many bytes and lines probably has one document per line.
LARGE = 1_000_000
MANY_LINES = 1_000


class Reading(NamedTuple):
    """How to read documents, from the flags (`add_flags`)."""

    encoding: str = "utf-8"
    text_field: str = "text"     # a.b: the field b of the object in field a
    one_per_line: bool = False   # is each line of a .txt a document?


PLAIN = Reading()  # without any flag


class Wanted(NamedTuple):
    """What a program needs of a row, if it is not a single text."""

    fields: tuple[str, ...]             # required in a row, or as columns of a table
    optional: tuple[str, ...]           # read if they exist
    problem: Callable[[object], str]    # why a row cannot be used; "" if it can


class Span(NamedTuple):
    """Bytes start ... end of a file, and the state of the file when the work was planned."""

    path: Path
    start: int
    end: int
    lines_before: int       # lines of the file before `start`
    stamp: tuple[int, int]  # see `stamp`


# What the reader of a form yields: the line number from 1 (in an array or a table, the row), the
# JSON value, why it is rejected (or one of KEPT), and what to show of it in that case.
Found = Iterator[tuple[int, object, str, object]]

# ---- From the first file to the last ------------------------------------------------------------


def read_documents(
    paths: str | Path | Iterable[str | Path],
    reading: Reading = PLAIN,
    rejected: Callable[[dict], None] | None = None,
    wanted: Wanted | None = None,
    repaired: Callable[[dict], None] | None = None,
) -> Iterator[dict]:
    """Yield every document of files or folders, in order; see `read_span` for `wanted`.

    `rejected` is called for what cannot be used, with {"file", "line", "reason"}, and `repaired`
    likewise for a document that is kept in spite of broken bytes."""
    for path in files(paths):
        for number, document, reason, _ in read_span(whole(path), reading, wanted):
            record = {"file": str(path), "line": number, "reason": reason}
            if document is None:
                if rejected:
                    rejected(record)
                continue
            if reason and repaired:
                repaired(record)
            yield document


def read_span(
    span: Span,
    reading: Reading = PLAIN,
    wanted: Wanted | None = None,
) -> Iterator[tuple[int, dict | None, str, str]]:
    """Yield (number, document, reason, shown) for every document in a span, such as

        (7, {"text": "..."}, "", "")               a document
        (7, {"text": "..."}, "broken_bytes", "")   kept, with a U+FFFD for each broken place
        (7, None, "broken JSON", '{"text": "..')   rejected: why, and its first 100 characters

    The number is that of the line in the whole file, from 1, or of the row in an array or a
    .parquet. The text is moved to the field `text`. With `wanted`, nothing is moved, and `wanted`
    decides what a document is. UserError if the file cannot be opened."""
    for number, value, reason, raw in read_rows(span, reading, wanted):
        if reason in KEPT:
            yield number, value, reason, ""
        else:
            yield number, None, reason, shown(raw)


def read_rows(span: Span, reading: Reading = PLAIN, wanted: Wanted | None = None) -> Found:
    """Like read_span, but with the value of every row, even if it is rejected."""
    head = first_bytes(span.path, HEAD)
    # Otherwise a pointer named .txt would be a document, and any other a broken file.
    if cli.is_lfs_pointer(span.path):
        yield 1, None, "Git LFS pointer (run `git lfs pull`)", ""
        return
    encoding = encoding_of(head, reading.encoding)
    form = form_of(span.path, head, encoding, reading.one_per_line)

    # A plain text has no fields to choose from.
    text_field = "text"
    if form in ("json_lines", "json_values", "parquet"):
        text_field = reading.text_field

    number = span.lines_before
    try:
        with open_bytes(span.path) as file:
            # Of a table, read only the columns that are needed.
            if form == "parquet" and wanted:
                found = parquet_rows(file, wanted.fields, wanted.optional)
            elif form == "parquet":
                found = parquet_rows(file, (text_field,))
            else:
                found = FORMS[form](file, span, encoding)

            for number, value, reason, raw in found:
                problem = ""
                if reason in KEPT and wanted:
                    problem = wanted.problem(value)
                elif reason in KEPT:
                    problem = problem_of(value, (text_field,))
                    if not problem and text_field != "text":
                        move_text(value, text_field)
                yield number, value, problem or reason, raw
    except compressed.ERRORS as error:
        # Everything before the broken place has been read; the rest of the file is one rejection.
        yield number + 1, None, compressed.why_broken(span.path, error), ""


def check_fields(
    paths: str | Path | Iterable[str | Path],
    reading: Reading = PLAIN,
    wanted: Wanted | None = None,
) -> None:
    """UserError if no row has a field that was asked for. It says what the first row holds."""
    unseen = [reading.text_field]
    if wanted:
        unseen = [*wanted.fields, *wanted.optional]
    first = ""
    for path in files(paths):
        for number, value, reason, _ in read_rows(whole(path), reading, wanted):
            # Usually this is the first row, and no other is read. (Its text has been moved, so the
            # field itself is no longer there.)
            if reason in KEPT and not wanted:
                return
            if isinstance(value, dict):
                unseen = [field for field in unseen if not has_field(value, field)]
                first = first or f"line {number} of {path} holds {', '.join(value)}"
            if not unseen:
                return
    if first:
        raise cli.UserError(f"no line has a field {unseen[0]!r}; {first}")


# ---- One document -------------------------------------------------------------------------------


def parse_json(raw: bytes | str, encoding: str = "utf-8") -> tuple[object, str]:
    """The value of a line of JSON, and "" or "broken_bytes"; or None and the reason.

    >>> parse_json(b'{"id": 7, "text": "ab"}')
    ({'id': 7, 'text': 'ab'}, '')
    >>> parse_json(b'{"id": 7')
    (None, 'broken JSON')
    """
    text, is_broken = decode(raw, encoding)
    reason = damage(text, is_broken, encoding)
    if reason not in KEPT:
        return None, reason
    try:
        value = json.loads(text)
        # Half a surrogate pair, which only an escape can spell (\\ud83d), is not text and cannot be
        # written. (A whole pair is an emoji, for example.)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, "lone surrogate"
    except (ValueError, RecursionError):
        return None, "broken JSON"
    return value, reason


def decode(raw: bytes | str, encoding: str) -> tuple[str, bool]:
    """The text of some bytes, and whether any were broken, which become U+FFFD.

    >>> decode("가나".encode()[:-1], "utf-8")
    ('가�', True)
    """
    if isinstance(raw, str):  # a line of UTF-16, which was decoded with its file
        return raw, BROKEN in raw
    try:
        return raw.decode(encoding).removeprefix("\ufeff"), False
    except UnicodeDecodeError:
        return raw.decode(encoding, "replace").removeprefix("\ufeff"), True


def damage(text: str, is_broken: bool, encoding: str) -> str:
    """How damaged is a decoded text? "" if not at all, "broken_bytes", or a reason to reject it.

    >>> damage("가나다라 마바사 " * 50 + "�", True, "utf-8")
    'broken_bytes'
    >>> damage("가나다라 마바사 �", True, "utf-8")
    'not utf-8'
    """
    if not is_broken:
        return ""
    n_places = len(BROKEN_PLACE.findall(text))
    if n_places > MOST_PLACES or text.count(BROKEN) > BROKEN_SHARE * len(text):
        return f"not {encoding}"
    return BROKEN_BYTES


def problem_of(value: object, fields: tuple[str, ...]) -> str:
    """Why a JSON value is not a document; "" if each of `fields` has text.

    >>> problem_of({"page": {"body": " "}}, ("page.body",))
    'empty page.body'
    """
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "an array in a file of lines; call the file .json"
    for field in fields:
        text = look_up(value, field)
        if not isinstance(text, str):
            return f"no {field} field"
        if not text or text.isspace():
            return f"empty {field}"
    return ""


def look_up(value: object, field: str) -> object:
    """The value of a field; of `a.b`, the field b of the object in field a; None if missing."""
    for name in field.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def has_field(value: object, field: str) -> bool:
    """Does a field exist, whatever it holds?

    >>> has_field({"page": {"body": None}}, "page.body")
    True
    """
    *outer, name = field.split(".")
    for part in outer:
        value = look_up(value, part)
    return isinstance(value, dict) and name in value


def move_text(document: dict, field: str) -> None:
    """Move the text from another field to `text`. (A copy left behind would not be cleaned.)

    >>> document = {"id": 7, "page": {"body": "ab", "year": 1931}}
    >>> move_text(document, "page.body")
    >>> document
    {'id': 7, 'page': {'year': 1931}, 'text': 'ab'}
    """
    *outer, name = field.split(".")
    holder = document
    for part in outer:
        holder = holder[part]
    document["text"] = holder.pop(name)


def shown(raw: object) -> str:
    """The first 100 characters of what was rejected, as valid text."""
    if isinstance(raw, bytes):
        raw = raw[:400].decode(errors="backslashreplace")
    elif not isinstance(raw, str):
        raw = json.dumps(raw, ensure_ascii=False, default=str)
    return raw[:100].encode(errors="backslashreplace").decode()


# ---- The forms of files -------------------------------------------------------------------------


def form_of(path: Path, head: bytes, encoding: str, one_per_line: bool) -> str:
    """Which of FORMS a file has, judged by its name and its first bytes.

    >>> form_of(Path("a.json"), b'[{"text": "ab"},', "utf-8", False)
    'json_values'
    """
    kind, _ = file_kind(path)
    if kind == ".parquet":
        return "parquet"
    if kind == ".jsonl":
        return "json_lines"
    start = head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n")
    if kind in (".txt", "wiki") and start.startswith("<doc id="):
        return "wiki_blocks"
    if kind == ".txt" and one_per_line:
        return "text_lines"
    if kind == ".txt":
        return "text_file"

    # What remains is .json, and WikiExtractor's output as JSON. If an object runs over several
    # lines, the end of its first line shows it.
    first_line, line_end, _ = start.partition("\n")
    is_open = line_end and first_line.rstrip().endswith(("{", "[", ",", ":"))
    if start.startswith("[") or is_open:
        return "json_values"
    return "json_lines"


def json_lines(file: IO[bytes], span: Span, encoding: str) -> Found:
    """One JSON object per line."""
    for number, raw in read_lines(file, span, encoding):
        if raw is None:
            yield number, None, too_long(), ""
        elif not raw.isspace():
            value, reason = parse_json(raw, encoding)
            yield number, value, reason, raw


def text_lines(file: IO[bytes], span: Span, encoding: str) -> Found:
    """One text per line."""
    for number, raw in read_lines(file, span, encoding):
        if raw is None:
            yield number, None, too_long(), ""
        elif not raw.isspace():
            text, is_broken = decode(raw.rstrip(), encoding)
            yield number, {"text": text}, damage(text, is_broken, encoding), raw


def text_file(file: IO[bytes], span: Span, encoding: str) -> Found:
    """The whole file is one text. An empty file is an empty document."""
    raw = file.read(LONGEST + 1)
    if len(raw) > LONGEST:
        yield 1, None, too_long(), ""
        return
    text, is_broken = decode(raw, encoding)
    yield 1, {"text": text}, damage(text, is_broken, encoding), raw


def encoding_of(head: bytes, encoding: str) -> str:
    """The encoding of a file: that of its byte order mark, or else `encoding`."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8"
    return encoding


# What comes between the objects of an array, or between objects that just follow one another.
BETWEEN = re.compile(r"[\s,\[\]]*")


def json_values(file: IO[bytes], span: Span, encoding: str) -> Found:
    """An array of objects, or objects over several lines, one after another.

    The file is read whole and then parsed object by object. What comes before a broken object is
    kept; what comes after it cannot be parsed."""
    raw = file.read(ARRAY + 1)
    if len(raw) > ARRAY:
        yield 1, None, f"an array longer than {ARRAY // 1_000_000} MB; convert it to JSON lines", ""
        return
    text, is_broken = decode(raw, encoding)
    del raw
    needs_a_look = is_broken or "\\u" in text

    parse = json.JSONDecoder().raw_decode
    number = 0
    position = BETWEEN.match(text).end()
    while position < len(text):
        number += 1
        try:
            value, position = parse(text, position)
        except (ValueError, RecursionError):
            yield number, None, "broken JSON", text[position : position + 100]
            return
        reason = ""
        if needs_a_look:
            reason = damage_of_value(value, encoding)
        yield number, value, reason, value
        position = BETWEEN.match(text, position).end()


def damage_of_value(value: object, encoding: str) -> str:
    """`damage` for one object of an array, which was decoded as a part of the whole file."""
    spelled = json.dumps(value, ensure_ascii=False)
    try:
        spelled.encode()
    except UnicodeEncodeError:
        return "lone surrogate"
    return damage(spelled, BROKEN in spelled, encoding)


# A title is not escaped, so it may contain quotation marks; the last one before `>` ends it.
WIKI_BLOCK = re.compile(
    r'<doc id="(?P<id>[^"]*)"[^\n]*? url="(?P<url>[^"]*)"[^\n]*? title="(?P<title>[^\n]*)">[ \r]*\n'
    r"(?P<text>.*)</doc>\s*",
    re.DOTALL,
)


def wiki_blocks(file: IO[bytes], span: Span, encoding: str) -> Found:
    """WikiExtractor's output: each block is a document with an id, a url and a title. The first
    line of its text repeats the title, and is kept."""
    for number, block, is_broken in split_blocks(file, span, encoding):
        if len(block) > LONGEST:
            yield number, None, too_long(), block
            continue
        match = WIKI_BLOCK.fullmatch(block)
        reason = damage(block, is_broken, encoding)
        if match is None and reason in KEPT:
            reason = "broken <doc>"
        document = None
        if match is not None:
            document = match.groupdict()
            document["text"] = document["text"].strip()
        yield number, document, reason, block


def split_blocks(file: IO[bytes], span: Span, encoding: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (number of its first line, text, whether it had broken bytes) for each block <doc> ...
    </doc>, and for any text between two blocks."""
    block: list[str] = []
    first = 0
    size = 0
    is_broken = False
    for number, raw in read_lines(file, span, encoding):
        if raw is None:
            line = " " * LONGEST  # makes its block too long
            is_line_broken = False
        else:
            line, is_line_broken = decode(raw, encoding)

        # A block ends with </doc>, or, if that is missing, before the next <doc>.
        if line.startswith("<doc ") and block:
            yield first, "".join(block), is_broken
            block = []
        if not block:
            if raw is not None and line.isspace():
                continue
            first = number
            size = 0
            is_broken = False

        # A block without an end must not fill the memory.
        if size <= LONGEST:
            block.append(line)
        size += len(line)
        is_broken = is_broken or is_line_broken
        if line.strip() == "</doc>":
            yield first, "".join(block), is_broken
            block = []
    if block:
        yield first, "".join(block), is_broken


def parquet_rows(
    file: IO[bytes],
    fields: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> Found:
    """The rows of a .parquet file, ROWS at a time: the required `fields`, the `optional` ones, and
    all columns of plain values."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
        for field in fields:
            if column_of(field) not in schema.names:
                columns = dict.fromkeys(schema.names)
                yield 1, columns, f"no {field} field", f"the columns are {', '.join(columns)}"
                return

        # Images and times have no form in JSON.
        plain = [column.name for column in schema if is_plain(column.type)]
        more = [field for field in optional if column_of(field) in schema.names]
        columns = list(dict.fromkeys([*plain, *fields, *more]))
        for batch in table.iter_batches(ROWS, columns=columns, use_threads=False):
            for row in rows_of(batch):
                number += 1
                if row is None:
                    yield number, None, "not utf-8", ""
                else:
                    yield number, row, "", row
    except pyarrow.ArrowException as error:
        raise EOFError(str(error)) from None


def column_of(field: str) -> str:
    """The column of a table that has a field: a for a.b."""
    return field.partition(".")[0]


def is_plain(kind) -> bool:
    """Are a pyarrow type's values texts, numbers or booleans?"""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
    )
    return any(check(kind) for check in checks)


def rows_of(batch) -> Iterator[dict | None]:
    """The rows of a batch as dicts; None for one whose text is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield from batch.slice(i, 1).to_pylist()
            except UnicodeDecodeError:
                yield None


FORMS = {
    "json_lines": json_lines,
    "json_values": json_values,
    "text_lines": text_lines,
    "text_file": text_file,
    "wiki_blocks": wiki_blocks,
}


# ---- Lines --------------------------------------------------------------------------------------


def read_lines(
    file: IO[bytes],
    span: Span,
    encoding: str,
) -> Iterator[tuple[int, bytes | str | None]]:
    """Yield (number, line) for the lines of a span, with their line ends; None for a line that is
    too long.

    Lines are bytes, except in UTF-16, where a byte 10 may be half of another character."""
    number = span.lines_before
    position = span.start
    end = span.end
    line_end: bytes | str = b"\n"
    if encoding == "utf-16":
        file = io.TextIOWrapper(file, encoding, "replace", newline="\n")
        line_end = "\n"
        end = sys.maxsize
    elif compressed.suffix_of(span.path):
        end = sys.maxsize
    elif position > 0:
        file.seek(position)

    while position < end:
        line = file.readline(LONGEST + 1)
        if not line:
            return
        number += 1
        position += len(line)
        if len(line) <= LONGEST:
            yield number, line
            continue
        # Skip the rest of the line, without holding it in memory.
        yield number, None
        while line and not line.endswith(line_end):
            line = file.readline(BLOCK)
            position += len(line)


def too_long() -> str:
    """The reason for rejecting more than LONGEST bytes."""
    return f"longer than {LONGEST // 1_000_000} MB"


# ---- Which files --------------------------------------------------------------------------------


def files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The document files under `paths` (files or folders), each once, folders in sorted order.

    UserError if there are none, if a path does not exist or is of no known kind, or if the package
    that reads it is not installed."""
    if isinstance(paths, str | Path):
        paths = [paths]
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [file for file in visible(path) if is_read_in_a_folder(file)]
            if not inside:
                raise cli.UserError(f"{path} holds no {KINDS} file{but_holds(left_out([path]))}")
            found += inside
        elif not path.exists():
            raise cli.UserError(f"{path} does not exist; documents are in files or folders of "
                                f"{KINDS}")
        elif not is_document_file(path):
            raise cli.UserError(f"{path} is none of {KINDS}")
        else:
            found.append(path)

    for path in found:
        # Records name their file in UTF-8, but on Linux a file name need not be UTF-8.
        name = str(path)
        if name.encode(errors="ignore").decode() != name:
            raise cli.UserError(f"{name!a}: the name of this file is not UTF-8, so no record could "
                                "name it; rename it")
        check_packages(path)
    return list(dict.fromkeys(found))


def left_out(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files in the folders of `paths` whose kind cannot be read."""
    if isinstance(paths, str | Path):
        paths = [paths]
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [file for file in visible(path) if not is_read_in_a_folder(file)]
    return list(dict.fromkeys(found))


def visible(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, sorted, without hidden files, what macOS adds to
    archives, and the records and report that `clean` writes beside its documents.

    Links to folders are not followed and count as files."""
    found = []
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() or path.is_symlink()
        beside = [name for name in OURS if name != EXAMPLES]
        is_ours = path.name in OURS and all((path.parent / name).exists() for name in beside)
        if not is_file or is_ours:
            continue
        parts = path.relative_to(folder).parts
        is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if not is_hidden:
            found.append(path)
    return found


def is_document_file(path: Path) -> bool:
    """Is this a file whose kind can be read, judged by its name?"""
    kind, _ = file_kind(path)
    return kind != "" and path.is_file()


def is_read_in_a_folder(path: Path) -> bool:
    """The same for a file in a folder, where the names of records are excluded."""
    return is_document_file(path) and path.name not in OURS


def file_kind(path: Path) -> tuple[str, str]:
    """(kind, compression) of a file, by its name; ("", "") if its kind cannot be read.

    >>> file_kind(Path("A.JSONL.gz")), file_kind(Path("AA/wiki_00")), file_kind(Path("a.pdf"))
    (('.jsonl', '.gz'), ('wiki', ''), ('', ''))
    """
    compression = compressed.suffix_of(path)
    name = path.name.lower().removesuffix(compression)
    if name.endswith(".parquet") and not compression:
        return ".parquet", ""
    for kind in (".jsonl", ".json", ".txt"):
        if name.endswith(kind):
            return kind, compression
    if re.fullmatch(r"wiki_\d+", name):
        return "wiki", compression
    return "", ""


def stem(path: Path) -> str:
    """The name of a file without the suffixes that file_kind recognises.

    >>> stem(Path("a/News.2024.JSONL.gz")), stem(Path("AA/wiki_00"))
    ('News.2024', 'wiki_00')
    """
    kind, compression = file_kind(path)
    name = path.name[: len(path.name) - len(compression)]
    if kind != "wiki":
        name = name[: len(name) - len(kind)]
    return name


def announce(paths: Iterable[str | Path], reading: Reading) -> None:
    """Print, once per program, which files will not be read, and which may be read differently from
    what the user expects."""
    paths = list(paths)
    ignored = left_out(paths)
    if ignored:
        print(f"left out, because they are not {KINDS}: {names_by_suffix(ignored)}",
              file=sys.stderr)

    large = [path for path in files(paths) if is_large_text(path, reading)]
    if large:
        print(f"each of these is read as a single document: {names_by_suffix(large)}; "
              "if every line of them is a document, give --lines", file=sys.stderr)


def is_large_text(path: Path, reading: Reading) -> bool:
    """Does a .txt that will be read as one document look like one document per line?"""
    kind, compression = file_kind(path)
    is_small = not compression and path.stat().st_size < LARGE
    if kind != ".txt" or reading.one_per_line or is_small:
        return False
    start = first_bytes(path, LARGE)
    if len(start) < LARGE:
        return False
    form = form_of(path, start, encoding_of(start, reading.encoding), one_per_line=False)
    return form == "text_file" and start.count(b"\n") > MANY_LINES


def but_holds(paths: list[Path]) -> str:
    """The end of an error about a folder without documents."""
    if not paths:
        return ""
    return f", but {names_by_suffix(paths)}"


def names_by_suffix(paths: list[Path]) -> str:
    """How many files there are of each suffix, and the names of the first few.

    >>> names_by_suffix([Path("a/x.pdf"), Path("b/y.pdf"), Path("c/README")])
    '2 .pdf (x.pdf, y.pdf), 1 without a suffix (README)'
    """
    names: dict[str, list[str]] = {}
    for path in paths:
        suffix = path.suffix.lower()
        if compressed.suffix_of(path):
            suffix = "".join(path.suffixes[-2:]).lower()
        name = path.name.encode(errors="backslashreplace").decode()
        names.setdefault(suffix or "without a suffix", []).append(name)

    parts = []
    for suffix, of_suffix in names.items():
        some = ", ".join(of_suffix[:3])
        if len(of_suffix) > 3:
            some += ", ..."
        parts.append(f"{len(of_suffix)} {suffix} ({some})")
    return ", ".join(parts)


def check_packages(path: Path) -> None:
    """UserError if the package that reads a file is missing."""
    kind, compression = file_kind(path)
    if compression == ".zst":
        compressed.zstd()
    if kind == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise cli.UserError(f"reading {path} needs the package pyarrow: pip install pyarrow"
                                ) from None


# ---- In which parts -----------------------------------------------------------------------------


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change), by which a changed file is recognised.

    UserError if the file no longer exists."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def units(
    paths: list[Path],
    reading: Reading = PLAIN,
) -> list[list[Span]]:
    """Divide all files, in order, into units of about UNIT bytes."""
    found: list[list[Span]] = [[]]
    room = UNIT
    for path in paths:
        for span in spans(path, reading):
            size = span.end - span.start
            is_full = size > room
            if is_full and found[-1]:
                found.append([])
                room = UNIT
            found[-1].append(span)
            room -= size
    return found


def whole(path: Path) -> Span:
    """A file as one span. UserError if it no longer exists."""
    file_stamp = stamp(path)
    return Span(path, 0, file_stamp[0], 0, file_stamp)


def spans(path: Path, reading: Reading) -> Iterator[Span]:
    """The spans of one file. A large file of lines has several, each of UNIT bytes and the rest of
    a line. To count the lines before each, all but the last are read once."""
    file_stamp = stamp(path)
    size, _ = file_stamp
    if size <= UNIT or not can_be_split(path, reading):
        yield Span(path, 0, size, 0, file_stamp)  # an empty file is a span too
        return
    start = 0
    lines_before = 0
    with open_bytes(path) as file:
        while start < size:
            n_lines = 0
            left = min(UNIT, size - start)
            while left > 0 and (block := file.read(min(left, BLOCK))):
                n_lines += block.count(b"\n")
                left -= len(block)
            # Continue to the end of the line, which may be far away.
            while rest := file.readline(BLOCK):
                if rest.endswith(b"\n"):
                    n_lines += 1
                    break
            end = file.tell()
            if end == start:  # the file has become shorter, which its reader will notice
                return
            yield Span(path, start, end, lines_before, file_stamp)
            start = end
            lines_before += n_lines


def can_be_split(path: Path, reading: Reading) -> bool:
    """Does a file consist of plain lines, so that reading can start at any of them?"""
    head = first_bytes(path, HEAD)
    encoding = encoding_of(head, reading.encoding)
    form = form_of(path, head, encoding, reading.one_per_line)
    has_lines = form in ("json_lines", "text_lines") and encoding != "utf-16"
    return has_lines and not compressed.suffix_of(path)


# ---- Flags --------------------------------------------------------------------------------------


def add_flags(parser: ArgumentParser) -> None:
    """The flags of every program that reads documents."""
    flag = parser.add_argument
    flag("--encoding", choices=["utf-8", "cp949", "euc-kr"], default="utf-8",
         help="encoding of the input, for files without a byte order mark")
    flag("--text_field", default="text",
         help="JSON field or .parquet column with the text; a.b is the field b of the object in "
              "field a")
    flag("--lines", action="store_true",
         help="read each line of a .txt as a document; without this flag, each .txt is one "
              "document")


def reading_of(args: Namespace) -> Reading:
    """How to read documents, as these flags say."""
    return Reading(args.encoding, args.text_field, args.lines)
