"""Look at what a run decided: `python data.py show OUT`, on the screen or as a page of HTML.

A rule is right or wrong document by document. So this prints documents that were removed, changed,
rejected or kept, each with the step, the reason, what was measured, and the text. It reads the two
files that `clean` has written beside its documents: examples.jsonl (see examples.py), a random
sample of every kind of decision, and report.json, how many there were.

Of a changed document, and of a copy beside the one that stays, the differences are shown:

    다테야마시[-()-]는 일본 지바현에 있는 {+시+}이다.

[-...-] stands only in the text before (or in the one that stays), {+...+} only in the one after.
"""
import argparse
import difflib
import functools
import html
import itertools
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from cleaning import examples, mask
from common import cli, documents

# ---- What is different --------------------------------------------------------------------------

# A text is a list of pieces, (mark, text) each.
SAME = "="
GONE = "-"   # stands only in the text before
NEW = "+"    # stands only in the text after

# A word with all that follows it up to the next one. Words seldom come twice in a row, spaces and
# commas always do: they would match in all the wrong places.
WORD = re.compile(r"\w+\W*|\W+")

# What the step mask writes in the place of a number or an address.
MASK = re.compile(mask.ANY_TOKEN)


def differences(before: str, after: str) -> list[tuple[str, str]]:
    """The pieces of two texts.

    >>> differences("다테야마시()는 시이다.", "다테야마시는 시이다.")  # Tateyama is a city
    [('=', '다테야마시'), ('-', '()'), ('=', '는 시이다.')]
    """
    # First whole lines, then the words of those that differ: to compare all words of a long text
    # with all others would take minutes.
    pieces: list[tuple[str, str]] = []
    lines = blocks(before.splitlines(True), after.splitlines(True))
    for old_lines, new_lines in lines:
        if old_lines == new_lines:
            add_piece(pieces, SAME, old_lines)
            continue
        for old, new in blocks(WORD.findall(old_lines), WORD.findall(new_lines)):
            # Two different words often share a beginning or an end: a noun and its particle.
            start = os.path.commonprefix([old, new])
            old = old[len(start) :]
            new = new[len(start) :]
            end = os.path.commonprefix([old[::-1], new[::-1]])[::-1]
            add_piece(pieces, SAME, start)
            add_piece(pieces, GONE, old[: len(old) - len(end)])
            add_piece(pieces, NEW, new[: len(new) - len(end)])
            add_piece(pieces, SAME, end)
    return pieces


def blocks(before: list[str], after: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what stands in one list beside what stands in its place in the other."""
    matcher = difflib.SequenceMatcher(None, before, after)
    for _, i, j, k, m in matcher.get_opcodes():
        yield "".join(before[i:j]), "".join(after[k:m])


def add_piece(pieces: list[tuple[str, str]], mark: str, text: str) -> None:
    """Add a piece to those so far, to the last of them if it is of the same kind."""
    if not text:
        return
    if pieces and pieces[-1][0] == mark:
        mark, last = pieces.pop()
        text = last + text
    pieces.append((mark, text))


def pieces_of(example: dict) -> list[tuple[str, str]]:
    """An example's text, and what is different in it."""
    text = example["text"]
    if example["step"] == "mask":
        return masked_pieces(text)
    other = example.get("before", example.get("stayed"))
    if other is None:
        return [(SAME, text)]

    # Both texts may have been cut after so many characters, which are not the same ones: what one
    # has at its end and the other has not is no difference, unless it is the only one.
    pieces = differences(other, text)
    cuts = example.get("cut", {}).values()
    if any(end < length for _, end, length in cuts):
        shared = [i for i, (mark, _) in enumerate(pieces) if mark == SAME]
        without_end = pieces[: max(shared, default=0) + 1]
        if is_different(without_end):
            return without_end
    return pieces


def is_different(pieces: list[tuple[str, str]]) -> bool:
    """Whether anything stands in only one of the texts."""
    return any(mark != SAME for mark, _ in pieces)


def masked_pieces(text: str) -> list[tuple[str, str]]:
    """What a text was before it was masked is nowhere written: so the masks are what is new.

    >>> masked_pieces("전화 [전화번호]")  # telephone
    [('=', '전화 '), ('+', '[전화번호]')]
    """
    pieces: list[tuple[str, str]] = []
    end = 0
    for match in MASK.finditer(text):
        add_piece(pieces, SAME, text[end : match.start()])
        add_piece(pieces, NEW, match[0])
        end = match.end()
    add_piece(pieces, SAME, text[end:])
    return pieces


# ---- Which documents ----------------------------------------------------------------------------


class Run:
    """What a run has left: its report and its examples, in the order of sources and steps.

    counts: {(source, step, reason): documents}, of all, not only of the examples."""

    def __init__(self, folder: Path):
        if not (folder / "report.json").exists():
            raise cli.UserError(f"{folder} holds no report.json; name a folder that data.py clean "
                                "has written")
        self.folder = folder
        self.report = cli.read_json(folder / "report.json")
        # Many programs write a report.json.
        try:
            self.sources = list(self.report["sources"])
            self.counts = counts_of(self.report)
        except (AttributeError, KeyError, TypeError):
            raise cli.UserError(f"{folder / 'report.json'} is not a report that data.py clean "
                                "wrote") from None
        self.names = short_names(self.sources)
        self.examples = read_examples(folder)

        # What becomes of a document is known by the step and its reason.
        places = {name: place for place, name in enumerate(self.counts)}
        try:
            self.what = {(e["step"], e["reason"]): e["what"] for e in self.examples}
            self.examples.sort(key=lambda example: places[name_of(example)])
        except (KeyError, TypeError):
            raise cli.UserError(f"{folder / examples.FILE} does not belong to the report.json "
                                "beside it; clean again") from None

    def check(self, args: argparse.Namespace) -> None:
        """UserError for a source, a step or a reason that this run does not have."""
        sources = [self.names[source] for source in self.sources]
        if args.source and not any(is_source(source, args.source) for source in self.sources):
            raise cli.UserError(f"--source {args.source}: the sources are {first_of(sources)}")
        steps = [step for _, step, _ in self.counts]
        if args.step and args.step not in steps:
            raise cli.UserError(f"--step {args.step}: the steps with something to show are "
                                f"{first_of(steps)}")
        reasons = [reason for _, _, reason in self.counts]
        if args.reason and not any(is_reason(reason, args.reason) for reason in reasons):
            raise cli.UserError(f"--reason {args.reason}: the reasons are {first_of(reasons)}")

    def is_asked_for(self, name: tuple[str, str, str], args: argparse.Namespace) -> bool:
        """Whether the flags ask for a (source, step, reason)."""
        source, step, reason = name
        if args.source and not is_source(source, args.source):
            return False
        # On a page, kept documents stand beside whatever was decided on the others.
        if args.html and not args.what and reason == examples.KEPT:
            return True
        if args.step and step != args.step:
            return False
        if args.reason and not is_reason(reason, args.reason):
            return False
        return not args.what or self.what.get((step, reason)) == args.what


def counts_of(report: dict) -> dict[tuple[str, str, str], int]:
    """{(source, step, reason): documents}: what was kept first, then the steps in order."""
    counts = {}
    for source, row in report["sources"].items():
        counts[source, examples.WRITE, examples.KEPT] = row["documents_out"]
        for reason, n in row["rejected"].items():
            counts[source, "read", reason] = n
        for step, of_step in row["steps"].items():
            for reason, n in of_step["reasons"].items():
                counts[source, step, reason] = n
    return {name: n for name, n in counts.items() if n > 0}


def read_examples(folder: Path) -> list[dict]:
    """All of examples.jsonl."""
    path = folder / examples.FILE
    if not path.exists():
        raise cli.UserError(f"{path} is not there: it was deleted, or {folder} was written before "
                            "clean kept examples; clean again to see documents")
    found = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                raise cli.UserError(f"{path} is not whole; clean again") from None
    if not found:
        raise cli.UserError(f"{path} is empty; data.py clean keeps documents to show with "
                            "--examples N")
    return found


def name_of(example: dict) -> tuple[str, str, str]:
    """(source, step, reason)."""
    return example["file"], example["step"], example["reason"]


def is_source(source: str, wanted: str) -> bool:
    """Whether a file is the one that was named: by its path, its name, or without what its name
    ends with."""
    path = Path(source)
    return wanted in (source, path.name, documents.stem(path))


def is_reason(reason: str, wanted: str) -> bool:
    """Whether a reason is the one that was named, or has it among its kinds.

    >>> is_reason("phone+email", "phone")
    True
    """
    return wanted == reason or wanted in reason.split("+")


def in_turn(found: list[dict]) -> list[dict]:
    """The examples: the first of each source, step and reason, then the second of each, and so on.
    However many are looked at, they are of every kind."""
    seen: dict[tuple, int] = {}
    turns = []
    for place, example in enumerate(found):
        turn = seen.get(name_of(example), 0)
        seen[name_of(example)] = turn + 1
        turns.append((turn, place))
    return [found[place] for _, place in sorted(turns)]


def short_names(sources: list[str]) -> dict[str, str]:
    """{source: the name of the file, or its path where two have the same name}."""
    names = [Path(source).name for source in sources]
    short = {}
    for source, name in zip(sources, names, strict=True):
        short[source] = name
        if names.count(name) > 1:
            short[source] = source
    return short


def first_of(names: Iterable[str]) -> str:
    """Different names for an error of one line."""
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:30])
    if len(names) > 30:
        shown += f" and {len(names) - 30} more"
    return shown


# ---- On the screen ------------------------------------------------------------------------------

DOCUMENTS = 20      # if -n does not say how many
ROWS = 8            # of a text
PLACES = 8          # of the changes in a text
CONTEXT = 40        # characters on either side of a change
LONGEST_PIECE = 240

BOLD = "\x1b[1m"
COLOURS = {SAME: "", GONE: "\x1b[97;41m", NEW: "\x1b[30;42m"}  # on red, on green: a space is seen
END = "\x1b[0m"
BRACKETS = {SAME: ("", ""), GONE: ("[-", "-]"), NEW: ("{+", "+}")}

# What would move the cursor of a terminal, or turn the direction of the text.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def show(args: argparse.Namespace) -> None:
    """Look at what a run of `clean` decided: documents that were kept, removed, changed or
    rejected, with their texts. Without a filter, a table of what there is.

        python data.py show clean/web
        python data.py show clean/web --reason too_short --source wiki.jsonl -n 5
        python data.py show clean/web --html page.html

    The documents are random examples, which `clean --examples N` has kept in examples.jsonl. What
    the steps before mask removed or changed is shown as it was, with the personal data in it."""
    if args.n is not None and args.n < 1:
        raise cli.UserError(f"-n {args.n} is not at least 1")
    # A wrong path must not put a page in the place of documents.
    if args.html and Path(args.html).suffix.lower() not in (".html", ".htm"):
        raise cli.UserError(f"--html {args.html}: the name of a page ends with .html")
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
        show_documents(run, chosen, args)
    else:
        print("\n".join(table(run)))
    sys.stdout.flush()  # where `| head` is noticed


def asked_for(args: argparse.Namespace) -> str:
    """The filters that were given."""
    given = []
    for name in ("source", "step", "reason", "what"):
        if getattr(args, name):
            given.append(f"--{name} {getattr(args, name)}")
    return " ".join(given)


def table(run: Run) -> list[str]:
    """What there is to see: each source, step and reason, with all documents and the examples."""
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
    """The row of the table to which a (source, step, reason) belongs."""
    source, step, reason = name
    shown = run.names[source]
    if together:
        shown = f"all {len(run.sources):,} sources"
    return shown, run.what.get((step, reason), ""), step, reason


def show_documents(run: Run, chosen: list[dict], args: argparse.Namespace) -> None:
    """Print examples, then how many more there are."""
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
    kept = [example for example in run.examples if run.is_asked_for(name_of(example), args)]
    line = f"{len(chosen):,} of {sum(counted.values()):,} documents"
    if args.n and args.n > len(kept):
        line += f"; the run kept {len(kept):,} of them with their texts: "
        line += "data.py clean --examples N keeps more"
    elif len(chosen) < len(kept):
        line += f"; -n shows more, up to the {len(kept):,} that the run kept with their texts"
    print(line)


def heading_of(run: Run, example: dict) -> str:
    """What was decided and why, and which document it is."""
    parts = [decision_of(example)]
    if example.get("measured"):
        parts.append(f"({example['measured']})")
    parts.append(f"{run.names[example['file']]}:{example['line']}")
    # An id that was made of file and line says nothing new.
    id = example.get("id")
    if id is not None and id != f"{example['file']}:{example['line']}":
        parts.append(f"id {id}")
    return visible("  ".join(parts), newline=" ")


def decision_of(example: dict) -> str:
    """What became of a document, and why."""
    if example["what"] == examples.KEPT:
        return "kept"
    return f"{example['what']}  {example['step']}: {example['reason']}"


def rows_of(example: dict, width: int, whole: bool, in_colour: bool) -> list[str]:
    """A document's text as lines for the screen: what is different, or else its beginning."""
    rows = []
    if "duplicate_of" in example:
        stays = f"stays in its place: {example['duplicate_of']}"
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
            rows.append(f"... {length_of(example):,} characters in all; --whole shows more")
    if whole and "cut" in example:
        rows.append(f"(part of a text of {length_of(example):,} characters)")
    return rows


def length_of(example: dict) -> int:
    """The characters of the whole text, of which an example may have a part."""
    if "text" in example.get("cut", {}):
        _, _, length = example["cut"]["text"]
        return length
    return len(example["text"])


def visible(text: str, newline: str = "\n") -> str:
    """The text, with what a terminal would obey spelled out.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return UNSEEN.sub(spelled_out, text).replace("\n", newline)


def spelled_out(match: re.Match) -> str:
    """A character as Python writes it."""
    return match[0].encode("unicode_escape").decode()


def painted(mark: str, text: str, in_colour: bool) -> str:
    """A piece as it stands on the screen."""
    text = visible(text)
    if mark == SAME:
        return text
    if in_colour:
        # The colour ends where a line does, or a terminal would paint the rest of the screen.
        return "\n".join(f"{COLOURS[mark]}{line}{END}" for line in text.split("\n"))
    start, end = BRACKETS[mark]
    return f"{start}{text}{end}"


def places_of(pieces: list[tuple[str, str]], paint) -> list[str]:
    """The changed places of a text, one line each, with a few words on either side. Places that are
    close together stand in one line."""
    places = []
    row = ""
    for i, (mark, text) in enumerate(pieces):
        # A line end that was changed must be seen.
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
    """Yield the lines of a text that has something in them, broken where the screen ends.

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


# ---- As a page ----------------------------------------------------------------------------------

PAGE_BYTES = 8_000_000  # of all documents in it, which a browser opens in a second
# If they are more, texts are shortened to the first of these lengths (in characters) that fits.
LENGTHS = (examples.LONGEST, 5_000, 2_000, 1_000, 500, 200)


def page_of(run: Run, chosen: list[dict], counts: dict[tuple[str, str, str], int]) -> str:
    """The page of some examples, one of each kind first: show.html with the data in it. `counts`
    are of all documents of these kinds."""
    for length in LENGTHS:
        rows = [row_of_page(run, example, length) for example in chosen]
        sizes = [len(as_script(row).encode()) for row in rows]
        if sum(sizes) <= PAGE_BYTES:
            break
    # There may be too many even so. The last ones are third and fourth examples of their kinds.
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
