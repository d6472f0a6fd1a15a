"""What the steps leave behind: the tally of what happened, and the documents as they wait between the two passes."""
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cleaning import duplicates, read

# A step answers (True, "") to keep a text, (False or "", reason) to remove it, or (new text, what was changed in it).
Step = Callable[[str], tuple[bool | str, str]]
EXAMPLES, EXAMPLE_CHARACTERS = 3, 200
CHUNK = 2_000_000  # bytes of documents that go to a process at a time


class Tally:
    """What happened: counts for each source, records of what was removed, masked or rejected, and some examples."""

    def __init__(self):
        self.counts: dict[str, Counter] = defaultdict(Counter)  # of each source: {(step, what): number}
        self.records: dict[str, list[dict]] = {name: [] for name in read.RECORDS}
        self.examples: dict[str, list[str]] = defaultdict(list)

    def passed(self, source: str, step: str, side: str, size: int) -> None:
        """A document of `size` bytes came "in" to a step or went "out" of it."""
        self.counts[source][step, f"documents_{side}"] += 1
        self.counts[source][step, f"bytes_{side}"] += size

    def record(self, name: str, step: str, reason: str, where: dict, text: str, **more) -> None:
        self.records[name].append(where | {"step": step, "reason": reason} | more)
        self.counts[where["file"]]["reason", step, reason] += 1
        self.examples[reason] = (self.examples[reason] + [text[:EXAMPLE_CHARACTERS]])[:EXAMPLES]

    def take(self, text: str, steps: dict[str, Step], where: dict) -> str:
        """Run the steps on one document; its text at the end, "" if one of them removed it."""
        for name, step in steps.items():
            self.passed(where["file"], name, "in", len(text.encode()))
            answer, reason = step(text)
            if answer and answer is not True:
                text = answer
            if reason:  # an example of what was masked shows the mask, not what is under it
                self.record("masked.jsonl" if answer else "removed.jsonl", name, reason, where, text)
            if not answer:
                return ""
            self.passed(where["file"], name, "out", len(text.encode()))
        return text

    def add(self, other: "Tally", folder: Path) -> None:
        """Add the counts and examples of another, and append its records to their files in `folder`."""
        for source, counts in other.counts.items():
            self.counts[source].update(counts)
        for reason, examples in other.examples.items():
            self.examples[reason] = (self.examples[reason] + examples)[:EXAMPLES]
        for name, records in other.records.items():
            with open(folder / name, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def report(self, steps: list[str], sources: list[str]) -> dict:
        """The whole, each step, and each source, with the reasons of what was removed or masked."""
        def line(counts: Counter, first: str, last: str, steps: list[str]) -> dict:
            reasons = Counter({key[2]: n for key, n in counts.items() if key[0] == "reason" and key[1] in steps})
            ends = {f"{what}_{side}": counts[step, f"{what}_{side}"]
                    for side, step in (("in", first), ("out", last)) for what in ("documents", "bytes")}
            return ends | {"reasons": dict(reasons.most_common())}

        whole = sum(self.counts.values(), Counter())
        total = line(whole, "read", "write", [])
        return {"input": {what: total[f"{what}_in"] for what in ("documents", "bytes")},
                "output": {what: total[f"{what}_out"] for what in ("documents", "bytes")},
                "rejected": line(whole, "read", "read", ["read"])["reasons"],
                "steps": [{"step": step} | line(whole, step, step, [step]) for step in steps],
                "sources": {source: line(self.counts[source], "read", "write", ["read", *steps]) for source in sources},
                "examples": dict(self.examples)}


def where(source: str, number: int, document: dict) -> dict:
    """How records name a document: its file, its line and its id, which is file:line where it has none."""
    return {"file": source, "line": number, "id": document.get("id", f"{source}:{number}")}


class Scratch:
    """The documents between the passes: a file of lines "source, line number, document", and in memory, of each
    document, where it lies (24 bytes) and the hashes that find duplicates (128)."""

    def __init__(self, path: Path, sources: list[str]):
        self.file, self.sources = open(path, "wb+"), sources
        self.source, self.offset, self.size = array("L"), array("Q", [0]), array("Q")
        self.keys, self.bands = bytearray(), bytearray()

    def append(self, source: str, lines: list[bytes], keys: bytes, bands: bytes, sizes: list[int]) -> None:
        self.file.writelines(lines)
        for line in lines:
            self.source.append(self.sources.index(source))
            self.offset.append(self.offset[-1] + len(line))
        self.size.extend(sizes)
        self.keys += keys
        self.bands += bands

    def line(self, i: int) -> bytes:
        self.file.seek(self.offset[i])
        return self.file.read(self.offset[i + 1] - self.offset[i])

    def document(self, i: int) -> tuple[dict, dict]:
        """(where it came from, the document)."""
        number, _, line = self.line(i).partition(b"\t")
        document = json.loads(line)
        return where(self.sources[self.source[i]], int(number), document), document

    def duplicates(self, step: str, alive: np.ndarray, tally: Tally) -> np.ndarray:
        """The documents of `alive` that stay after `step`, "exact" or "near"."""
        if step == "exact":
            kept = alive[duplicates.exact_duplicates(np.frombuffer(self.keys, np.uint64).reshape(-1, 2)[alive])]
        else:
            bands = np.frombuffer(self.bands, np.uint64).reshape(-1, duplicates.BANDS)[alive]
            sizes = np.frombuffer(self.size, np.uint64)[alive].astype(np.int64)
            kept = alive[duplicates.near_duplicates(bands, sizes, lambda i: self.document(alive[i])[1]["text"])]
        for i, by in zip(alive.tolist(), kept.tolist(), strict=True):
            source = self.sources[self.source[i]]
            tally.passed(source, step, "in", self.size[i])
            if i == by:
                tally.passed(source, step, "out", self.size[i])
            else:
                place, document = self.document(i)
                tally.record("removed.jsonl", step, f"{step}_duplicate", place, document["text"],
                             duplicate_of=self.document(by)[0]["id"])
        return alive[kept == alive]

    def chunks(self, alive: np.ndarray) -> Iterator[tuple[str, list[bytes]]]:
        """(source, lines) of the documents in `alive`, in chunks that never span two sources."""
        chunk, size = [], 0
        for i, following in zip(alive.tolist(), [*alive.tolist(), None][1:], strict=True):
            chunk.append(self.line(i))
            size += len(chunk[-1])
            if following is None or self.source[following] != self.source[i] or size >= CHUNK:
                yield self.sources[self.source[i]], chunk
                chunk, size = [], 0
