"""The page of `python data.py show --html`: show.html with the documents in it.

It is a single file that loads nothing, so it opens without a server and can be sent to others. It
contains the documents as JSON, which its script lays out.
"""
import html
import itertools
import json
from pathlib import Path

from cleaning import examples
from cleaning.decisions import Run, length_of
from cleaning.differences import SAME, pieces_of

PAGE_BYTES = 8_000_000  # limit for all documents together: a browser opens this in a second
# If they exceed it, texts are cut to the first of these lengths (in characters) that fits.
LENGTHS = (examples.LONGEST, 5_000, 2_000, 1_000, 500, 200)


def page_of(run: Run, chosen: list[dict], counts: dict[tuple[str, str, str], int]) -> str:
    """The page for these examples, which start with one of each kind. `counts` are the numbers of
    all documents of these kinds."""
    for length in LENGTHS:
        rows = [row_of_page(run, example, length) for example in chosen]
        sizes = [len(as_script(row).encode()) for row in rows]
        if sum(sizes) <= PAGE_BYTES:
            break
    # There may still be too many. Drop the last ones: they are third or fourth examples of their
    # kinds.
    fits = [total <= PAGE_BYTES for total in itertools.accumulate(sizes)]
    rows = list(itertools.compress(rows, fits))

    read = run.report["input"]
    written = run.report["output"]
    totals = (
        f"{read['documents']:,} documents ({read['bytes'] / 1e6:,.1f} MB) read, "
        f"{written['documents']:,} ({written['bytes'] / 1e6:,.1f} MB) kept"
    )
    notes = []
    if length < examples.LONGEST:
        notes.append(f"To keep the page small, texts are cut after {length:,} characters.")
    if len(rows) < len(chosen):
        notes.append(f"{len(chosen) - len(rows):,} examples are left out for the same reason.")
    content = {
        "name": run.folder.resolve().name,
        "totals": totals,
        "notes": notes,
        "counts": counts_of_page(run, counts),
        "documents": rows,
    }
    template = Path(__file__).with_name("show.html").read_text(encoding="utf-8")
    title = html.escape(f"{content['name']}: {totals}")
    before, after = template.split("DATA_HERE")
    return before.replace("TITLE_HERE", title) + as_script(content) + after


def as_script(value) -> str:
    """JSON that is safe inside a <script>. Only `<` could do harm there, as in `</script>` and
    `<!--`, so it is written as an escape.

    >>> as_script({"text": "</script>"})
    '{"text":"\\\\u003c/script>"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def row_of_page(run: Run, example: dict, length: int) -> dict:
    """A document in the form that the page's script reads."""
    pieces = pieces_of(example)
    shown = first_pieces(pieces, length)
    row = {
        "what": example["what"],
        "source": run.names[example["file"]],
        "step": example["step"],
        "reason": example["reason"],
        "place": f"{run.names[example['file']]}:{example['line']}",
        "characters": length_of(example),
        "pieces": shown,
    }
    for name in ("id", "measured", "duplicate_of"):
        if name in example:
            row[name] = str(example[name])
    if "cut" in example or shown != pieces:
        row["is_part"] = True
    return row


def first_pieces(pieces: list[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    """The pieces up to `length` characters, starting shortly before the first difference."""
    short = []
    for mark, text in pieces:
        is_before_all = not short and mark == SAME and len(pieces) > 1
        if is_before_all and len(text) > length // 2:
            text = "... " + text[-length // 2 :]
        text = text[:length]
        length -= len(text)
        if text:
            short.append((mark, text))
    return short


def counts_of_page(run: Run, counts: dict[tuple[str, str, str], int]) -> list[dict]:
    """The number of documents for each source, step and reason, for the page's script."""
    rows = []
    for (source, step, reason), n in counts.items():
        rows.append({
            "source": run.names[source],
            "what": run.what.get((step, reason), ""),
            "step": step,
            "reason": reason,
            "documents": n,
        })
    return rows
