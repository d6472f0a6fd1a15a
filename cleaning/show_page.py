"""The page of `python data.py show --html`: show.html with the documents in it.

It is one file that loads nothing, so it opens without a server and can be sent to somebody. The
documents stand in it as JSON, from which its own script lays them out.
"""
import html
import itertools
import json
from pathlib import Path

from cleaning import examples
from cleaning.decisions import Run, length_of
from cleaning.differences import SAME, pieces_of

PAGE_BYTES = 8_000_000  # of all documents in it, which a browser opens in a second
# If they are more, texts are shortened to the first of these lengths (in characters) that fits.
LENGTHS = (examples.LONGEST, 5_000, 2_000, 1_000, 500, 200)


def page_of(run: Run, chosen: list[dict], counts: dict[tuple[str, str, str], int]) -> str:
    """The page of some examples, one of each kind first. `counts` are of all documents of these
    kinds."""
    for length in LENGTHS:
        rows = [row_of_page(run, example, length) for example in chosen]
        sizes = [len(as_script(row).encode()) for row in rows]
        if sum(sizes) <= PAGE_BYTES:
            break
    # There may be too many even so. Drop the last ones: they are third and fourth examples of their
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
        notes.append(f"So that the page is not too large, texts end after {length:,} characters.")
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
    """JSON that may stand in a <script> of a page. In there only a `<` could do harm, as in
    `</script>` and `<!--`; JSON has another spelling for it.

    >>> as_script({"text": "</script>"})
    '{"text":"\\\\u003c/script>"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def row_of_page(run: Run, example: dict, length: int) -> dict:
    """A document as the page needs it."""
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
    """The beginning of a text of pieces; of one that differs, from shortly before that place."""
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
    """How many documents there are of each source, step and reason."""
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
