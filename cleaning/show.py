"""Shows what a run decided: `python data.py show OUT`, on the screen or as an HTML page.

Whether a rule is right can only be judged on documents. So this prints documents that were removed,
changed, rejected or kept, each with the step, the reason, what was measured, and the text. It reads
two files that `clean` writes beside its documents: examples.jsonl (see examples.py), a random
sample of every kind of decision, and report.json, the counts.

For a changed document, and for a copy compared with the document that was kept, it shows the
differences:

    다테야마시[-()-]는 일본 지바현에 있는 {+시+}이다.

[-...-] is only in the text before (or in the kept document), {+...+} only in the text after.
"""
import argparse
import functools
import itertools
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from cleaning import examples
from cleaning.decisions import Run, in_turn, length_of, name_of
from cleaning.differences import GONE, NEW, SAME, is_different, pieces_of
from cleaning.show_page import page_of
from common import cli

# What is shown unless -n or --whole ask for more.
DOCUMENTS = 20
ROWS = 8             # lines of a text
PLACES = 8           # changed places of a text, each with
CONTEXT = 40         # characters on either side, and at most
LONGEST_PIECE = 240  # characters of the change

BOLD = "\x1b[1m"
COLOURS = {SAME: "", GONE: "\x1b[97;41m", NEW: "\x1b[30;42m"}  # backgrounds, so spaces show
END = "\x1b[0m"
BRACKETS = {SAME: ("", ""), GONE: ("[-", "-]"), NEW: ("{+", "+}")}

# Characters that would move a terminal's cursor or change the direction of text.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def show(args: argparse.Namespace) -> None:
    """Show what a run of `clean` decided: documents that were kept, removed, changed or rejected,
    with their texts. Without a filter, print a table of what there is to see.

        python data.py show clean/web
        python data.py show clean/web --reason too_short --source wiki.jsonl -n 5
        python data.py show clean/web --html page.html

    The documents are random examples that `clean --examples N` saved in examples.jsonl. If mask
    was among the steps, personal data in them is masked."""
    if args.n is not None and args.n < 1:
        raise cli.UserError(f"-n {args.n} is not at least 1")
    # A mistyped path must not overwrite documents with a page.
    if args.html and Path(args.html).suffix.lower() not in (".html", ".htm"):
        raise cli.UserError(f"--html {args.html}: the name of the page must end with .html")
    run = Run(Path(args.folder))
    run.check(args)
    found = [example for example in run.examples if run.is_asked_for(name_of(example), args)]
    has_filter = bool(args.source or args.step or args.reason or args.what)
    if not found:
        raise cli.UserError("no document matches " + asked_for(args))

    if args.html:
        counts = {name: n for name, n in run.counts.items() if run.is_asked_for(name, args)}
        page = page_of(run, in_turn(found)[: args.n], counts)
        with cli.new_file(args.html) as temporary:
            temporary.write_text(page, encoding="utf-8")
        print(f"wrote {args.html} ({len(page.encode()) / 1e6:.1f} MB); open it in a browser")
    elif has_filter or args.n or args.whole:
        chosen = in_turn(found)[: args.n or DOCUMENTS]
        chosen.sort(key=found.index)
        show_documents(run, chosen, len(found), args)
    else:
        print("\n".join(table(run)))
    sys.stdout.flush()  # a pipe closed by `| head` is noticed here


def asked_for(args: argparse.Namespace) -> str:
    """The filters that were given, as they are typed."""
    given = []
    for name in ("source", "step", "reason", "what"):
        if getattr(args, name):
            given.append(f"--{name} {getattr(args, name)}")
    return " ".join(given)


def table(run: Run) -> list[str]:
    """What there is to see: each source, step and reason, with its documents and examples."""
    kept_examples: dict[tuple, int] = {}
    totals: dict[tuple, int] = {}
    together = len(run.sources) > examples.MANY_SOURCES
    for name, n in run.counts.items():
        row = row_of(run, name, together)
        totals[row] = totals.get(row, 0) + n
    for example in run.examples:
        row = row_of(run, name_of(example), together)
        kept_examples[row] = kept_examples.get(row, 0) + 1

    rows = [table_row("source", "what", "step", "reason", "documents", "examples")]
    before = ""
    for (source, what, step, reason), n in totals.items():
        n_examples = kept_examples.get((source, what, step, reason), 0)
        shown = source[-27:]
        if source == before:
            shown = ""
        else:
            rows.append("")
        before = source
        if what == examples.KEPT:
            step = ""
            reason = ""
        rows.append(table_row(shown, what, step, reason, f"{n:,}", f"{n_examples:,}"))

    folder = run.folder
    rows += [
        "",
        "to see documents:",
        f"    python data.py show {folder} --what removed",
        f"    python data.py show {folder} --reason too_short --source wiki -n 50 --whole",
        f"    python data.py show {folder} --html page.html",
    ]
    return rows


def table_row(*cells: str) -> str:
    """One line of the table: four names, two numbers."""
    source, what, step, reason, n_documents, n_examples = cells
    return f"{source:28}{what:10}{step:15}{reason:24}{n_documents:>11}{n_examples:>10}"


def row_of(run: Run, name: tuple[str, str, str], together: bool) -> tuple[str, str, str, str]:
    """The table row for a (source, step, reason)."""
    source, step, reason = name
    shown = run.names[source]
    if together:
        shown = f"all {len(run.sources):,} sources"
    return shown, run.what.get((step, reason), ""), step, reason


def show_documents(
    run: Run,
    chosen: list[dict],
    n_found: int,
    args: argparse.Namespace,
) -> None:
    """Print the chosen examples, then how many of the `n_found` they are."""
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size().columns
    for example in chosen:
        heading = heading_of(run, example)
        if in_colour:
            heading = f"{BOLD}{heading}{END}"
        print(heading)
        for row in rows_of(example, width - 4, args.whole, in_colour):
            print(f"    {row}")
        print()

    counted = {name: n for name, n in run.counts.items() if run.is_asked_for(name, args)}
    line = f"{len(chosen):,} of {sum(counted.values()):,} documents"
    if args.n and args.n > n_found:
        line += f"; the run saved {n_found:,} of them as examples: "
        line += "data.py clean --examples N saves more"
    elif len(chosen) < n_found:
        line += f"; -n shows more, up to the {n_found:,} that the run saved as examples"
    print(line)


def heading_of(run: Run, example: dict) -> str:
    """The decision, the reason, and the document's place and id."""
    parts = [decision_of(example)]
    if example.get("measured"):
        parts.append(f"({example['measured']})")
    parts.append(f"{run.names[example['file']]}:{example['line']}")
    # An id made of file and line would repeat the place.
    id = example.get("id")
    if id is not None and id != f"{example['file']}:{example['line']}":
        parts.append(f"id {id}")
    return visible("  ".join(parts), newline=" ")


def decision_of(example: dict) -> str:
    """What happened to a document, and why."""
    if example["what"] == examples.KEPT:
        return "kept"
    return f"{example['what']}  {example['step']}: {example['reason']}"


def rows_of(example: dict, width: int, whole: bool, in_colour: bool) -> list[str]:
    """A document's text as lines for the screen: the differences, or else its beginning."""
    rows = []
    if "duplicate_of" in example:
        stays = f"kept instead: {example['duplicate_of']}"
        rows.append(visible(stays, newline=" "))
    pieces = pieces_of(example)
    paint = functools.partial(painted, in_colour=in_colour)
    if whole:
        rows += "".join(paint(mark, text) for mark, text in pieces).split("\n")
    elif is_different(pieces):
        places = places_of(pieces, paint)
        rows += places[:PLACES]
        if len(places) > PLACES:
            rows.append(f"... and {len(places) - PLACES} more places; --whole shows all")
    else:
        text = example["text"]
        wrapped = list(itertools.islice(wrap(visible(text), width), ROWS + 1))
        rows += wrapped[:ROWS]
        if len(wrapped) > ROWS:
            rows.append(f"... {length_of(example):,} characters in total; --whole shows more")
    if whole and "cut" in example:
        rows.append(f"(part of a text of {length_of(example):,} characters)")
    return rows


def visible(text: str, newline: str = "\n") -> str:
    """The text with control characters spelled out, so that a terminal does not obey them.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return UNSEEN.sub(spelled_out, text).replace("\n", newline)


def spelled_out(match: re.Match) -> str:
    """A character as a Python escape."""
    return match[0].encode("unicode_escape").decode()


def painted(mark: str, text: str, in_colour: bool) -> str:
    """A piece as it appears on the screen."""
    text = visible(text)
    if mark == SAME:
        return text
    if in_colour:
        # End the colour at each line end, or a terminal would paint the rest of the screen.
        return "\n".join(f"{COLOURS[mark]}{line}{END}" for line in text.split("\n"))
    start, end = BRACKETS[mark]
    return f"{start}{text}{end}"


def places_of(pieces: list[tuple[str, str]], paint: Callable[[str, str], str]) -> list[str]:
    """The changed places of a text, one line each, with a few words on either side. Places that are
    close together share a line."""
    places = []
    row = ""
    for i, (mark, text) in enumerate(pieces):
        # Make a changed line end visible.
        text = text.replace("\n", "↵")
        if mark != SAME:
            row += paint(mark, shortened(text))
            continue
        is_last = i == len(pieces) - 1
        if row and not is_last and len(text) <= 2 * CONTEXT:
            row += paint(mark, text)
            continue
        if row:
            after = text[:CONTEXT]
            if len(text) > CONTEXT:
                after += "..."
            places.append(row + paint(mark, after))
        before = text[-CONTEXT:]
        if len(text) > CONTEXT:
            before = "..." + before
        row = paint(mark, before)
    if pieces[-1][0] != SAME:
        places.append(row)
    return places


def shortened(text: str) -> str:
    """The beginning and the end of a long piece."""
    if len(text) <= LONGEST_PIECE:
        return text
    left_out = len(text) - LONGEST_PIECE
    return f"{text[:-CONTEXT][:LONGEST_PIECE - CONTEXT]} ...{left_out:,}... {text[-CONTEXT:]}"


def wrap(text: str, width: int) -> Iterator[str]:
    """Yield the non-empty lines of a text, wrapped at `width` columns.

    >>> list(wrap("고래는 산다\\n\\nyes", 6))  # whales live; a Hangul letter is two columns wide
    ['고래는', ' 산다', 'yes']
    """
    for line in text.split("\n"):
        row = ""
        used = 0
        for character in line.replace("\t", " "):
            columns = 1
            if unicodedata.east_asian_width(character) in "WF":
                columns = 2
            if used + columns > width:
                yield row
                row = ""
                used = 0
            row += character
            used += columns
        if row.strip():
            yield row
