"""What the steps work on and leave behind: the tally of what happened, and the documents between the two passes."""
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cleaning import duplicates, read

Step = Callable[[str], tuple[str | None, str]]  # text -> (text, or None to remove the document; the reason, or "")
EXAMPLES, EXAMPLE_CHARACTERS = 3, 200
CHUNK = 2_000_000  # bytes of documents that go to a process at a time


class Tally:
    """Counts by source, step and reason; records of what was removed, masked or rejected; some examples."""

    def __init__(self):
        self.counts: Counter = Counter()  # {(source, step, "documents_in" or "reason:too_short" or ...): number}
        self.records: dict[str, list[dict]] = {name: [] for name in read.RECORDS}
        self.examples: dict[str, list[str]] = {}

    def passed(self, source: str, step: str, side: str, size: int) -> None:
        """A document of `size` bytes came "in" to a step or went "out" of it."""
        self.counts[source, step, f"documents_{side}"] += 1
        self.counts[source, step, f"bytes_{side}"] += size

    def record(self, name: str, step: str, reason: str, where: dict, text: str, **more) -> None:
        self.records[name].append(where | {"step": step, "reason": reason} | more)
        self.counts[where["file"], step, f"reason:{reason}"] += 1
        self._example(reason, text)

    def _example(self, reason: str, text: str) -> None:
        if len(examples := self.examples.setdefault(reason, [])) < EXAMPLES:
            examples.append(text[:EXAMPLE_CHARACTERS])

    def take(self, text: str, steps: dict[str, Step], where: dict) -> str | None:
        """Run the steps on one document; its text at the end, or None if one of them removed it."""
        for name, step in steps.items():
            self.passed(where["file"], name, "in", len(text.encode()))
            after, reason = step(text)
            if reason:
                self.record("removed.jsonl" if after is None else "masked.jsonl", name, reason, where, text)
            if after is None:
                return None
            self.passed(where["file"], name, "out", len(after.encode()))
            text = after
        return text

    def add(self, other: "Tally", folder: Path) -> None:
        """Add the counts and examples of another, and write its records into their files under `folder`."""
        self.counts.update(other.counts)
        for reason, examples in other.examples.items():
            for example in examples:
                self._example(reason, example)
        for name, records in other.records.items():
            with open(folder / name, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def report(self, steps: list[str], sources: list[str]) -> dict:
        """The report: the whole, each step, each source."""
        def total(what: str, step: str | None = None, source: str | None = None) -> int:
            return sum(n for (of, at, key), n in self.counts.items()
                       if key == what and step in (None, at) and source in (None, of))

        def reasons(step: str | None = None, source: str | None = None) -> dict[str, int]:
            found = Counter()
            for (of, at, key), n in self.counts.items():
                if key.startswith("reason:") and step in (None, at) and source in (None, of):
                    found[key.removeprefix("reason:")] += n
            return dict(found.most_common())

        sides = [(what, side) for side in ("in", "out") for what in ("documents", "bytes")]
        return {
            "input": {what: total(f"{what}_in", "input") for what in ("documents", "bytes")},
            "output": {what: total(f"{what}_out", "output") for what in ("documents", "bytes")},
            "rejected": reasons("read"),
            "steps": [{"step": step} | {f"{what}_{side}": total(f"{what}_{side}", step) for what, side in sides}
                      | {"reasons": reasons(step)} for step in steps],
            "sources": {source: {f"{what}_in": total(f"{what}_in", "input", source) for what in ("documents", "bytes")}
                        | {f"{what}_out": total(f"{what}_out", "output", source) for what in ("documents", "bytes")}
                        | {"reasons": reasons(source=source)} for source in sources},
            "examples": self.examples}


def where(source: str, number: int, document: dict) -> dict:
    """How records name a document: its file, its line and its id, which is file:line where it has none."""
    return {"file": source, "line": number, "id": document.get("id", f"{source}:{number}")}


class Scratch:
    """The documents between the two passes: their text in a file; in memory where it lies (24 bytes a document) and
    the hashes that find duplicates (128)."""

    def __init__(self, path: Path):
        self.file = open(path, "wb+")
        self.sources: list[str] = []
        self.source, self.offset, self.size = array("L"), array("Q", [0]), array("Q")
        self.keys, self.bands = bytearray(), bytearray()

    def append(self, source: str, lines: list[bytes], keys: bytes, bands: bytes, sizes: list[int]) -> None:
        if source not in self.sources[-1:]:
            self.sources.append(source)
        self.file.writelines(lines)
        for line in lines:
            self.source.append(len(self.sources) - 1)
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
            tally.passed(source := self.sources[self.source[i]], step, "in", self.size[i])
            if i == by:
                tally.passed(source, step, "out", self.size[i])
            else:
                at, document = self.document(i)
                tally.record("removed.jsonl", step, f"{step}_duplicate", at, document["text"],
                             duplicate_of=self.document(by)[0]["id"])
        return alive[kept == alive]

    def chunks(self, alive: np.ndarray) -> Iterator[tuple[str, list[bytes]]]:
        """(source, scratch lines) of the documents in `alive`, in chunks that never span two sources."""
        chunk, size = [], 0
        for i, following in zip(alive.tolist(), [*alive[1:].tolist(), None], strict=True):
            chunk.append(self.line(i))
            size += len(chunk[-1])
            if following is None or self.source[following] != self.source[i] or size >= CHUNK:
                yield self.sources[self.source[i]], chunk
                chunk, size = [], 0
