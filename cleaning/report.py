"""What a run leaves behind for a person: counts by step, reason and source, examples, tables.

A threshold is judged by looking: every reason comes with three documents that it met, drawn by a hash of their text and
not the first three, which would all stand in one file. Records of single documents (removed.jsonl and its like) go to
disk as they come: a corpus may lose millions.
"""
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

# A step answers to each text: (True, "") keeps it, (False or "", reason) removes it, (new text, what) changes it.
Step = Callable[[list[str]], Iterable[tuple[bool | str, str]]]
EXAMPLES, EXAMPLE_CHARACTERS, SCREEN_CHARACTERS = 3, 300, 90
SOURCES_ON_SCREEN = 20


class Tally:
    """What happened to some documents: counts, examples, and a log of records, "name<tab>JSON" a line."""

    def __init__(self, log: IO[str] | None = None):
        self.log = log
        self.counts: Counter = Counter()  # of (source, step, "documents_in" or the like) and (source, step, "", reason)
        self.examples: dict[tuple[str, str], list[tuple]] = {}  # of (step, reason): (hash, file, line, id, text)

    def passed(self, source: str, step: str, side: str, size: int, documents: int = 1) -> None:
        """Documents of `size` bytes in all came "in" to a step or went "out" of it."""
        self.counts[source, step, f"documents_{side}"] += documents
        self.counts[source, step, f"bytes_{side}"] += size

    def record(self, name: str, step: str, reason: str, where: dict, text: str, **more) -> None:
        """A document that was removed, masked or rejected."""
        self.log.write(f"{name}\t{json.dumps(where | {'step': step, 'reason': reason} | more, ensure_ascii=False)}\n")
        self.counts[where["file"], step, "", reason] += 1
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._example((step, reason), [(key, where["file"], where["line"], where.get("id"), text[:EXAMPLE_CHARACTERS])])

    def _example(self, key: tuple[str, str], examples: list) -> None:
        self.examples[key] = sorted(self.examples.get(key, []) + examples, key=lambda e: e[:3])[:EXAMPLES]

    def take(self, texts: list[str], steps: dict[str, Step], where: list[dict]) -> list[str]:
        """Run the steps on some documents; their texts at the end, "" where one of them removed it."""
        texts, sizes, left, records = [*texts], [len(text.encode()) for text in texts], range(len(texts)), []
        for name, step in steps.items():
            tried, left = left, []
            for i, (answer, reason) in zip(tried, step([texts[i] for i in tried]), strict=True):
                self.passed(where[i]["file"], name, "in", sizes[i])
                if answer and answer is not True:
                    texts[i], sizes[i] = answer, len(answer.encode())
                if reason:  # an example of what was masked shows the mask, not what is under it
                    records.append((i, "masked.jsonl" if answer else "removed.jsonl", name, reason, where[i], texts[i]))
                if answer:
                    self.passed(where[i]["file"], name, "out", sizes[i])
                    left.append(i)
                else:
                    texts[i] = ""
        for _, *record in sorted(records, key=lambda record: record[0]):  # a document after another
            self.record(*record)
        return texts

    def add(self, other: "Tally", lines_before: dict[str, int]) -> None:
        """Add the counts and examples of another, in which a file's lines are counted from after `lines_before`."""
        self.counts.update(other.counts)
        for key, examples in other.examples.items():
            self._example(key, [(rank, file, line + lines_before.get(file, 0), *rest)
                                for rank, file, line, *rest in examples])

    def to_json(self) -> dict:
        return {"counts": [[*key, n] for key, n in self.counts.items()],
                "examples": [[*key, examples] for key, examples in self.examples.items()]}

    @classmethod
    def from_json(cls, value: dict) -> "Tally":
        tally = cls()
        tally.counts = Counter({tuple(key): n for *key, n in value["counts"]})
        tally.examples = {(step, reason): [tuple(e) for e in examples] for step, reason, examples in value["examples"]}
        return tally

    def report(self, steps: list[str], sources: list[str]) -> dict:
        """The whole, each step, and each source, with the reasons of what was removed or masked."""
        def line(counts: Counter, first: str, last: str, steps: list[str]) -> dict:
            reasons: Counter = Counter()
            for (step, what, *reason), n in counts.items():
                if not what and step in steps:
                    reasons[reason[0]] += n
            ends = {f"{what}_{side}": counts[step, f"{what}_{side}"]
                    for side, step in (("in", first), ("out", last)) for what in ("documents", "bytes")}
            return ends | {"reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))}

        whole, of_source = Counter(), {source: Counter() for source in sources}
        for (source, *key), n in self.counts.items():
            whole[tuple(key)] += n
            of_source[source][tuple(key)] += n
        total = line(whole, "read", "write", [])
        return {"input": {what: total[f"{what}_in"] for what in ("documents", "bytes")},
                "output": {what: total[f"{what}_out"] for what in ("documents", "bytes")},
                "rejected": line(whole, "read", "read", ["read"])["reasons"],
                "steps": [{"step": step} | line(whole, step, step, [step]) for step in steps],
                "sources": {source: line(counts, "read", "write", ["read", *steps]) | {
                    "steps": {step: line(counts, step, step, [step]) for step in steps}}
                    for source, counts in of_source.items()},
                "examples": {reason: [{"step": step, "file": file, "line": line, "id": id, "text": text}
                                      for _, file, line, id, text in examples]
                             for (step, reason), examples in sorted(self.examples.items())}}


def merge_log(log: Path, files: dict[str, IO[str]], lines_before: dict[str, int]) -> None:
    """Append the records of a log to their files. The first pass counts lines from the first one of a unit's span: here
    they get their place in the whole file, and documents without an id the name file:line."""
    with open(log, encoding="utf-8") as file:
        for line in file:
            name, _, record = line.partition("\t")
            record = json.loads(record)
            record["line"] += lines_before.get(record["file"], 0)
            if record.get("id", "") is None:
                record["id"] = f"{record['file']}:{record['line']}"
            files[name].write(json.dumps(record, ensure_ascii=False) + "\n")


def bars(counts: list[int]) -> str:
    """A histogram in one line.

    >>> bars([0, 1, 4, 8])
    ' ▁▄█'
    """
    most = max(counts)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // most)] for count in counts)


def table(report: dict) -> str:
    """The steps as a table, like the paper's 121.6 GB -> 43.9 GB; then the sources, then examples of each reason."""
    def row(name: str, line: dict, whole: int) -> tuple:
        removed = 1 - line["documents_out"] / max(1, line["documents_in"])
        return (name, f"{line['documents_out']:,}", f"{line['bytes_out'] / 1e6:,.1f}",
                f"{line['bytes_out'] / max(1, whole):.1%}", f"{removed:.2%}",
                ", ".join(f"{reason} {n:,}" for reason, n in line["reasons"].items()))

    first, title = report["input"], ("documents", "MB", "share", "removed", "removed, masked or rejected for")
    first = {f"{key}_{side}": first[key] for key in first for side in ("in", "out")} | {"reasons": report["rejected"]}
    rows = [("step", *title), row("input", first, report["input"]["bytes"])]
    rows += [row(step["step"], step, report["input"]["bytes"]) for step in report["steps"]]
    sources = list(report["sources"].items())
    rows += [("",) * 6, ("source", *title)]
    rows += [row(Path(source).name[-27:], line, line["bytes_in"]) for source, line in sources[:SOURCES_ON_SCREEN]]
    text = "\n".join(f"{a:28}{b:>12}{c:>12}{d:>8}{e:>9}  {f}".rstrip() for a, b, c, d, e, f in rows)
    if len(sources) > SOURCES_ON_SCREEN:
        text += f"\nand {len(sources) - SOURCES_ON_SCREEN} more sources, in report.json"
    if "perplexity" in report:
        text += f"\n\n{'bits a character':28}{'from':>8}{'to':>8}{'median':>8}  documents at 0 ... 20 bits"
    for source, line in list(report.get("perplexity", {}).items())[:SOURCES_ON_SCREEN]:
        low, high = (line[key] or "-" for key in ("from", "to"))
        text += f"\n{Path(source).name[-27:]:28}{low:>8}{high:>8}{line['median']:>8}  |{bars(line['counts'])}|"
    for reason, examples in report["examples"].items():
        text += f"\n\n{examples[0]['step']}: {reason}"
        for example in examples:
            snippet = " ".join(example["text"].split())[:SCREEN_CHARACTERS]
            text += f"\n    {Path(example['file']).name}:{example['line']} {snippet}"
    return text
