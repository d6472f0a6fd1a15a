"""What a run reports: counts by step, source and reason, records, and the tables on the screen.

The full lists (removed.jsonl and others) are written to disk as they grow, because a corpus may
lose millions of documents. A sample of each kind is saved with its texts, see examples.py; three
examples of every reason are in report.json and on the screen.
"""
import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from cleaning import examples
from cleaning.examples import Examples
from common import cli
from common.documents import RECORDS

# A step looks at one document's text and returns (text, reason). The text is None if the document
# is removed, and the reason is "" if there is nothing to record: (text, ""), (text, "phone"). After
# a colon comes what was measured, with the limit: (None, "too_short: 3 characters < 50").
Step = Callable[[str], tuple[str | None, str]]

# Lines that are not documents; documents that a step removed; documents that a step changed, such
# as those with masked numbers.
REJECTED, REMOVED, CHANGED = RECORDS

EXAMPLES = 3               # documents shown for each reason, in report.json and on the screen
EXAMPLE_CHARACTERS = 300   # of each, in report.json
SCREEN_CHARACTERS = 90     # of each, on the screen
SOURCES_ON_SCREEN = examples.MANY_SOURCES  # with more, sources have no examples of their own either

# A removed document is named on the screen if it was this share of its source: a whole book, or a
# law with all of its articles. Sources with few documents are skipped, as many of theirs are that
# large. (Ours: among fifty, a document of 5 % is as long as two and a half average ones.)
LARGE_SHARE = 0.05
ENOUGH_DOCUMENTS = 50
LARGEST = 5  # most documents to name, per source and on the screen

# ---- Counting -----------------------------------------------------------------------------------


def no_counts() -> dict:
    """The counts of one step and one source, all zero."""
    return {
        "documents_in": 0,
        "bytes_in": 0,
        "documents_out": 0,
        "bytes_out": 0,
        "reasons": {},  # {reason: documents removed or changed for it}
    }


def add_counts(total: dict, more: dict) -> None:
    """Add the counts `more` to `total`."""
    for key, value in more.items():
        if key == "reasons":
            for reason, n in value.items():
                total["reasons"][reason] = total["reasons"].get(reason, 0) + n
        else:
            total[key] += value


class Tally:
    """What happened to documents: counts, a file of records, and examples.

    counts: {source: {step: counts}}, with "read" and "write" for what came in and went out.
    largest: {source: [[bytes, record], ...]}, the largest removed documents."""

    def __init__(self, records: IO[str] | None = None, kept_examples: Examples | None = None):
        self.records = records
        self.counts: dict[str, dict[str, dict]] = {}
        self.largest: dict[str, list] = {}
        self.examples = kept_examples or Examples(0)

    def of(self, source: str, step: str) -> dict:
        """The counts of a step for the documents of a source."""
        steps = self.counts.setdefault(source, {})
        if step not in steps:
            steps[step] = no_counts()
        return steps[step]

    def came_in(self, source: str, step: str, n_bytes: int, n_documents: int = 1) -> None:
        """Count documents, `n_bytes` in total, that came to a step."""
        counts = self.of(source, step)
        counts["documents_in"] += n_documents
        counts["bytes_in"] += n_bytes

    def went_out(self, source: str, step: str, n_bytes: int, n_documents: int = 1) -> None:
        """Count documents, `n_bytes` in total, that a step kept."""
        counts = self.of(source, step)
        counts["documents_out"] += n_documents
        counts["bytes_out"] += n_bytes

    def apply(self, steps: dict[str, Step], text: str, where: dict) -> str | None:
        """Run the steps on a document. Returns its final text, or None if a step removed it.

        where: {"file", "line", "id"}, by which records name the document."""
        source = where["file"]
        size = len(text.encode())
        for name, step in steps.items():
            self.came_in(source, name, size)
            before = text
            text, reason = step(before)
            if text is None:
                self.record(REMOVED, name, reason, where, {"text": before})
                return None
            if text is not before:
                size = len(text.encode())
            if reason:
                texts = {"text": text, "before": before}
                self.record(CHANGED, name, reason, where, texts)
            self.went_out(source, name, size)
        return text

    def record(
        self,
        file: str,
        step: str,
        reason: str,
        where: dict,
        texts: dict[str, str],
        more: dict | None = None,
    ) -> None:
        """Count a document that was removed, changed or rejected; write its line for `file`, with
        the fields of `more` at the end. `texts` are for an example, see examples.py."""
        # Measurements differ from document to document, so they are not part of the counted reason.
        reason, _, measured = reason.partition(": ")
        record = {**where, "step": step, "reason": reason}
        if measured:
            record["measured"] = measured
        if more:
            record |= more
        self.records.write(f"{file}\t{json.dumps(record, ensure_ascii=False)}\n")
        reasons = self.of(where["file"], step)["reasons"]
        reasons[reason] = reasons.get(reason, 0) + 1

        self.examples.offer({"what": file.removesuffix(".jsonl"), **record}, texts)
        if file == REMOVED:
            self._add_largest(where["file"], [[len(texts["text"].encode()), record]])

    def kept(self, where: dict, text: str) -> None:
        """Count a document that passed all steps."""
        self.went_out(where["file"], "write", len(text.encode()))
        record = {"what": examples.KEPT, **where, "step": examples.WRITE, "reason": examples.KEPT}
        self.examples.offer(record, {"text": text})

    def _add_largest(self, source: str, removed: list) -> None:
        """Add removed documents, and keep only the LARGEST largest."""
        largest = self.largest.get(source, []) + removed
        largest.sort(key=largest_first)
        self.largest[source] = largest[:LARGEST]

    def to_json(self) -> dict:
        """The counts and the largest documents, for `add` in another process. (Examples have their
        own file.)"""
        return {"counts": self.counts, "largest": self.largest}

    def add(self, other: dict) -> None:
        """Add what another tally's `to_json` returned."""
        for source, steps in other["counts"].items():
            for step, more in steps.items():
                add_counts(self.of(source, step), more)
        for source, removed in other["largest"].items():
            self._add_largest(source, removed)


def largest_first(entry: list) -> tuple:
    """Sort key of [bytes, record]: by bytes, then by line."""
    n_bytes, record = entry
    return -n_bytes, record["line"]


# ---- Putting together ---------------------------------------------------------------------------


def put_records_together(stems: list[Path], folder: Path, kept_examples: Examples) -> Tally:
    """Write removed.jsonl, changed.jsonl, rejected.jsonl and examples.jsonl from the files of all
    tasks. Returns the sum of their counts."""
    total = Tally(None, kept_examples)
    with contextlib.ExitStack() as stack:
        outputs = {}
        for name in RECORDS:
            file = open(folder / name, "w", encoding="utf-8")
            outputs[name] = stack.enter_context(file)
        for stem in cli.progress(stems, "report", "unit"):
            total.add(cli.read_json(f"{stem}.json"))
            total.examples.add(Path(f"{stem}.examples"))
            split_records(Path(f"{stem}.records"), outputs)
    total.examples.write(folder / examples.FILE)
    return total


def split_records(file: Path, outputs: dict[str, IO[str]]) -> None:
    """Append each record that a tally wrote to the output it names."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            name, _, record = line.partition("\t")
            outputs[name].write(record)


# ---- report.json --------------------------------------------------------------------------------


def summary(tally: Tally, steps: list[str], sources: list[str]) -> dict:
    """The content of report.json: totals, each step, each source, and examples."""
    # Sum every step over all sources.
    whole: dict[str, dict] = {}
    for name in ("read", *steps, "write"):
        whole[name] = no_counts()
        for source in sources:
            add_counts(whole[name], tally.of(source, name))

    step_rows = []
    for name in steps:
        step_rows.append({"step": name, **sorted_reasons(whole[name])})
    source_rows = {}
    for source in sources:
        source_rows[source] = source_row(tally, source, steps)

    return {
        "input": {
            "documents": whole["read"]["documents_in"],
            "bytes": whole["read"]["bytes_in"],
        },
        "output": {
            "documents": whole["write"]["documents_out"],
            "bytes": whole["write"]["bytes_out"],
        },
        "rejected": sorted_reasons(whole["read"])["reasons"],
        "steps": step_rows,
        "sources": source_rows,
        "large_removed": large_removed(tally, sources),
        "examples": short_examples(tally),
    }


def source_row(tally: Tally, source: str, steps: list[str]) -> dict:
    """A source's totals and its counts per step."""
    read = tally.of(source, "read")
    written = tally.of(source, "write")
    total = {
        "documents_in": read["documents_in"],
        "bytes_in": read["bytes_in"],
        "documents_out": written["documents_out"],
        "bytes_out": written["bytes_out"],
        "reasons": {},
        "rejected": sorted_reasons(read)["reasons"],
    }
    for name in ("read", *steps):
        add_counts(total, {"reasons": tally.of(source, name)["reasons"]})
    total = sorted_reasons(total)
    total["steps"] = {name: sorted_reasons(tally.of(source, name)) for name in steps}
    return total


def large_removed(tally: Tally, sources: list[str]) -> list[dict]:
    """The removed documents that were at least LARGE_SHARE of their source, largest first."""
    found = []
    for source in sources:
        read = tally.of(source, "read")
        if read["documents_in"] < ENOUGH_DOCUMENTS:
            continue
        for n_bytes, record in tally.largest.get(source, []):
            share = n_bytes / read["bytes_in"]
            if share >= LARGE_SHARE:
                found.append({**record, "bytes": n_bytes, "share": round(share, 4)})
    found.sort(key=bytes_first)
    return found


def bytes_first(record: dict) -> tuple[int, str, int]:
    """Sort key of large_removed."""
    return -record["bytes"], record["file"], record["line"]


def short_examples(tally: Tally) -> dict[str, list[dict]]:
    """{reason: EXAMPLES examples from each step that gives it}, with the start of their texts."""
    short: dict[str, list[dict]] = {}
    for (step, reason), found in tally.examples.of_all_sources(EXAMPLES).items():
        for example in found:
            row = {"step": step}
            for name in ("file", "line", "id", "measured", "text"):
                if name in example:
                    row[name] = example[name]
            # For a changed document this is the text after the change: the mask, not what it hides.
            row["text"] = row["text"][:EXAMPLE_CHARACTERS]
            short.setdefault(reason, []).append(row)
    return short


def sorted_reasons(counts: dict) -> dict:
    """The counts with their reasons sorted, the most frequent first."""
    reasons = sorted(counts["reasons"].items(), key=frequent_first)
    return {**counts, "reasons": dict(reasons)}


def frequent_first(item: tuple[str, int]) -> tuple[int, str]:
    """Sort key of (reason, documents): by documents, then by name."""
    reason, n = item
    return -n, reason


# ---- On the screen ------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The steps as a table, from input to output; then the sources, the perplexity histograms,
    large removed documents, and examples of each reason."""
    whole = result["input"]["bytes"]
    rows = [header("step")]
    rows.append(row("input", read_counts(result), whole))
    for step in result["steps"]:
        rows.append(row(step["step"], step, whole))

    rows.append("")
    rows.append(header("source"))
    sources = list(result["sources"].items())
    for source, counts in sources[:SOURCES_ON_SCREEN]:
        rows.append(row(short_name(source), counts, counts["bytes_in"]))
    n_more = len(sources) - SOURCES_ON_SCREEN
    if n_more > 0:
        rows.append(f"and {n_more} more sources, in report.json")

    if "perplexity" in result:
        rows += histogram_rows(result["perplexity"])
    rows += large_rows(result["large_removed"])
    rows += example_rows(result["examples"])
    return "\n".join(rows)


def columns(name: str, cells: Iterable[str], last: str) -> str:
    """One line of the table."""
    documents, megabytes, share, removed = cells
    line = f"{name:28}{documents:>12}{megabytes:>12}{share:>8}{removed:>9}  {last}"
    return line.rstrip()


def header(what: str) -> str:
    """The line above a table."""
    titles = ("documents", "MB", "share", "removed")
    return columns(what, titles, "removed, changed or rejected for")


def row(name: str, counts: dict, whole: int) -> str:
    """A step's output: documents, megabytes, share of the `whole` bytes, share that it removed."""
    removed = 1 - counts["documents_out"] / max(1, counts["documents_in"])
    cells = (
        f"{counts['documents_out']:,}",
        f"{counts['bytes_out'] / 1e6:,.1f}",
        f"{counts['bytes_out'] / max(1, whole):.1%}",
        f"{removed:.2%}",
    )
    reasons = [f"{reason} {n:,}" for reason, n in counts["reasons"].items()]
    return columns(name, cells, ", ".join(reasons))


def read_counts(result: dict) -> dict:
    """The input as a row of the table: everything that could be read."""
    n_documents = result["input"]["documents"]
    n_bytes = result["input"]["bytes"]
    return {
        "documents_in": n_documents,
        "documents_out": n_documents,
        "bytes_out": n_bytes,
        "reasons": result["rejected"],
    }


def short_name(source: str) -> str:
    """The end of a file's name, as much as fits into the first column."""
    return Path(source).name[-27:]


def histogram_rows(histograms: dict[str, dict]) -> list[str]:
    """For each source, its perplexity cutoffs and a histogram of its documents."""
    title = f"{'bits per character':28}{'from':>8}{'to':>8}{'median':>8}"
    rows = ["", f"{title}  documents at 0 ... 20 bits"]
    for source, histogram in list(histograms.items())[:SOURCES_ON_SCREEN]:
        low = shown_cutoff(histogram["from"])
        high = shown_cutoff(histogram["to"])
        numbers = f"{low:>8}{high:>8}{histogram['median']:>8}"
        rows.append(f"{short_name(source):28}{numbers}  |{bars(histogram['counts'])}|")
    return rows


def shown_cutoff(cutoff: float | None) -> str:
    """A cutoff as it is printed; "-" if nothing is removed on that side."""
    if cutoff is None:
        return "-"
    return str(cutoff)


def bars(counts: list[int]) -> str:
    """A histogram in one line.

    >>> bars([0, 1, 4, 8])
    ' ▁▄█'
    """
    most = max(counts)
    line = ""
    for count in counts:
        height = -(-8 * count // most)  # rounded up, so that a single document is visible
        line += " ▁▂▃▄▅▆▇█"[height]
    return line


def large_rows(removed: list[dict]) -> list[str]:
    """A line for each large removed document, so that a missing book does not go unnoticed."""
    if not removed:
        return []
    rows = ["", f"large removed documents ({LARGE_SHARE:.0%} of a source or more):"]
    for record in removed[:LARGEST]:
        place = f"{Path(record['file']).name}:{record['line']}"
        megabytes = f"{record['bytes'] / 1e6:.1f} MB"
        why = f"{record['step']}, {record['reason']}"
        if "measured" in record:
            why += f": {record['measured']}"
        share = f"{record['share']:.1%} of its source"
        rows.append(f"    {place} ({megabytes}, {share}) was removed: {why}")
    n_more = len(removed) - LARGEST
    if n_more > 0:
        rows.append(f"    and {n_more} more, in report.json")
    return rows


def example_rows(examples: dict[str, list[dict]]) -> list[str]:
    """Each reason with some of the documents it was given for."""
    rows = []
    for reason, found in examples.items():
        rows += ["", f"{found[0]['step']}: {reason}"]
        for example in found:
            snippet = " ".join(example["text"].split())[:SCREEN_CHARACTERS]
            rows.append(f"    {Path(example['file']).name}:{example['line']} {snippet}")
    return rows
