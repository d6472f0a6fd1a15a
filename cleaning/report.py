"""What a run leaves for a person: counts by step, source and reason, examples, and the tables.

A threshold is judged by looking at what it removed. So every reason comes with three of the
documents that it applied to. They are drawn by a hash of their text: the first three would all
stand in the same file. The full lists (removed.jsonl and the like) go to the disk as they arise,
for a corpus may lose millions.
"""
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from common import cli
from common.documents import RECORDS

# A step looks at one document's text and returns (text, reason); the text is None if the document
# goes, and the reason is "" if there is nothing to record: (text, ""), (text, "phone"). Behind a
# colon stands what was measured and the limit: (None, "too_short: 3 characters < 50").
Step = Callable[[str], tuple[str | None, str]]

# Lines that are no document; documents that a step took out; documents that a step changed, such as
# those with masked numbers.
REJECTED, REMOVED, CHANGED = RECORDS

EXAMPLES = 3               # documents shown for each reason
EXAMPLE_CHARACTERS = 300   # of each, in report.json
SCREEN_CHARACTERS = 90     # of each, on the screen
SOURCES_ON_SCREEN = 20

# ---- Counting -----------------------------------------------------------------------------------


def no_counts() -> dict:
    """What is counted of one step and one source."""
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
    """What happened to some documents: counts, examples, and a file of records.

    counts: {source: {step: counts}}, with "read" and "write" for what came in and went out.
    examples: {(step, reason): [[hash, example], ...]}, the EXAMPLES with the lowest hashes."""

    def __init__(self, records: IO[str] | None = None):
        self.records = records
        self.counts: dict[str, dict[str, dict]] = {}
        self.examples: dict[tuple[str, str], list] = {}

    def of(self, source: str, step: str) -> dict:
        """The counts of a step for the documents of a source."""
        steps = self.counts.setdefault(source, {})
        if step not in steps:
            steps[step] = no_counts()
        return steps[step]

    def came_in(self, source: str, step: str, n_bytes: int, n_documents: int = 1) -> None:
        """Documents of `n_bytes` in all came to a step."""
        counts = self.of(source, step)
        counts["documents_in"] += n_documents
        counts["bytes_in"] += n_bytes

    def went_out(self, source: str, step: str, n_bytes: int, n_documents: int = 1) -> None:
        """Documents of `n_bytes` in all left a step."""
        counts = self.of(source, step)
        counts["documents_out"] += n_documents
        counts["bytes_out"] += n_bytes

    def apply(self, steps: dict[str, Step], text: str, where: dict) -> str | None:
        """Run the steps on a document. Returns its text at the end, None if one removed it.

        where: {"file", "line", "id"}, by which records name the document."""
        source = where["file"]
        size = len(text.encode())
        for name, step in steps.items():
            self.came_in(source, name, size)
            before = text
            text, reason = step(before)
            if text is None:
                self.record(REMOVED, name, reason, where, before)
                return None
            if text is not before:
                size = len(text.encode())
            if reason:
                # The example is the text as it is now: it shows the mask, not what is under it.
                self.record(CHANGED, name, reason, where, text)
            self.went_out(source, name, size)
        return text

    def record(
        self,
        file: str,
        step: str,
        reason: str,
        where: dict,
        text: str,
        more: dict | None = None,
    ) -> None:
        """Count a document that was removed, changed or rejected; write its line for `file`, with
        `more` fields at the end."""
        # What was measured differs from document to document. It is not counted.
        reason, _, measured = reason.partition(": ")
        record = {**where, "step": step, "reason": reason}
        if measured:
            record["measured"] = measured
        record |= more or {}
        self.records.write(f"{file}\t{json.dumps(record, ensure_ascii=False)}\n")
        reasons = self.of(where["file"], step)["reasons"]
        reasons[reason] = reasons.get(reason, 0) + 1

        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        example = {"step": step, **where, "text": text[:EXAMPLE_CHARACTERS]}
        self._add_examples((step, reason), [[key, example]])

    def _add_examples(self, key: tuple[str, str], examples: list) -> None:
        """Of the examples so far and these, keep the ones with the lowest hashes."""
        candidates = self.examples.get(key, []) + examples
        candidates.sort(key=example_order)
        self.examples[key] = candidates[:EXAMPLES]

    def to_json(self) -> dict:
        """The counts and examples, for `add` in another process."""
        examples = [[*key, found] for key, found in self.examples.items()]
        return {"counts": self.counts, "examples": examples}

    def add(self, other: dict) -> None:
        """Add what another tally's `to_json` gave."""
        for source, steps in other["counts"].items():
            for step, more in steps.items():
                add_counts(self.of(source, step), more)
        for step, reason, found in other["examples"]:
            self._add_examples((step, reason), found)


def example_order(entry: list) -> tuple:
    """By the hash of the text; the same text may stand in several places."""
    key, example = entry
    return key, example["file"], example["line"]


# ---- Putting together ---------------------------------------------------------------------------


def put_records_together(stems: list[Path], folder: Path) -> Tally:
    """removed.jsonl, changed.jsonl and rejected.jsonl from the records of all tasks; returns the
    sum of their counts."""
    total = Tally()
    with contextlib.ExitStack() as stack:
        outputs = {}
        for name in RECORDS:
            file = open(folder / name, "w", encoding="utf-8")
            outputs[name] = stack.enter_context(file)
        for stem in cli.progress(stems, "report", "unit"):
            total.add(cli.read_json(f"{stem}.json"))
            split_records(Path(f"{stem}.records"), outputs)
    return total


def split_records(file: Path, outputs: dict[str, IO[str]]) -> None:
    """Append each record that a tally wrote to the output of its name."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            name, _, record = line.partition("\t")
            outputs[name].write(record)


# ---- report.json --------------------------------------------------------------------------------


def summary(tally: Tally, steps: list[str], sources: list[str]) -> dict:
    """The content of report.json: the whole, each step, each source, and examples."""
    # Every step over all sources.
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

    examples: dict[str, list] = {}
    for (_, reason), found in sorted(tally.examples.items()):
        examples.setdefault(reason, [])
        examples[reason] += [example for _, example in found]
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
        "examples": examples,
    }


def source_row(tally: Tally, source: str, steps: list[str]) -> dict:
    """A source's totals, then its counts per step."""
    read = tally.of(source, "read")
    written = tally.of(source, "write")
    total = {
        "documents_in": read["documents_in"],
        "bytes_in": read["bytes_in"],
        "documents_out": written["documents_out"],
        "bytes_out": written["bytes_out"],
        "reasons": {},
    }
    for name in ("read", *steps):
        add_counts(total, {"reasons": tally.of(source, name)["reasons"]})
    total = sorted_reasons(total)
    total["steps"] = {name: sorted_reasons(tally.of(source, name)) for name in steps}
    return total


def sorted_reasons(counts: dict) -> dict:
    """The counts, with the most frequent reason first."""
    reasons = sorted(counts["reasons"].items(), key=frequent_first)
    return {**counts, "reasons": dict(reasons)}


def frequent_first(item: tuple[str, int]) -> tuple[int, str]:
    """Of (reason, documents): by documents, then by name."""
    reason, n = item
    return -n, reason


# ---- On the screen ------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The steps as a table, like the paper's 121.6 GB to 43.9 GB; then the sources, the histograms
    of perplexity, and examples of each reason."""
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
    """What left a step: documents, megabytes, share of the `whole` bytes, share removed by it."""
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
    """The input as a row of the table: all that could be read leaves it."""
    n_documents = result["input"]["documents"]
    n_bytes = result["input"]["bytes"]
    return {
        "documents_in": n_documents,
        "documents_out": n_documents,
        "bytes_out": n_bytes,
        "reasons": result["rejected"],
    }


def short_name(source: str) -> str:
    """The end of a file's name, as much as the first column holds."""
    return Path(source).name[-27:]


def histogram_rows(histograms: dict[str, dict]) -> list[str]:
    """For each source, the limits of perplexity and how its documents lie around them."""
    title = f"{'bits per character':28}{'from':>8}{'to':>8}{'median':>8}"
    rows = ["", f"{title}  documents at 0 ... 20 bits"]
    for source, histogram in list(histograms.items())[:SOURCES_ON_SCREEN]:
        low = shown_cutoff(histogram["from"])
        high = shown_cutoff(histogram["to"])
        numbers = f"{low:>8}{high:>8}{histogram['median']:>8}"
        rows.append(f"{short_name(source):28}{numbers}  |{bars(histogram['counts'])}|")
    return rows


def shown_cutoff(cutoff: float | None) -> str:
    """A cut-off as it is printed; None if nothing goes on that side."""
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
        height = -(-8 * count // most)  # rounded up: one document is seen
        line += " ▁▂▃▄▅▆▇█"[height]
    return line


def example_rows(examples: dict[str, list[dict]]) -> list[str]:
    """Each reason with the documents that it met."""
    rows = []
    for reason, found in examples.items():
        rows += ["", f"{found[0]['step']}: {reason}"]
        for example in found:
            snippet = " ".join(example["text"].split())[:SCREEN_CHARACTERS]
            rows.append(f"    {Path(example['file']).name}:{example['line']} {snippet}")
    return rows
