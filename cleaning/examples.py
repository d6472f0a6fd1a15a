"""Example documents for every kind of decision, with their texts, for `python data.py show`.

The way to judge a threshold is to look at what it removed and what it kept. So for each source, a
few documents are saved for each step and reason, and a few of those that were kept. They are the
ones whose texts have the lowest hashes: a random sample that does not depend on the order of the
documents or the number of processes. (The first twenty would all come from the start of a file.)

    examples.jsonl    {"what": "removed", "file": "wiki.jsonl", "line": 123, "id": "wiki-123",
                       "step": "rules", "reason": "too_short", "measured": "3 characters < 50",
                       "text": "..."}

    what              kept, removed, changed or rejected
    text              the document; after the step, if the step changed it
    before            the document before that step
    duplicate_of      the id of the document that is kept instead of this copy,
    stayed            and the text of that document
    cut               which part of a long text is given: {"text": [from, to, length of the text]}

Texts are written as the step saw them, except for personal data: if mask is among the steps, it
also masks the examples of earlier steps, as far as it recognises personal data in text that is not
normalised yet.
"""
import bisect
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from common import documents

FILE = documents.EXAMPLES
WRITE = "write"         # kept documents are listed under this step, which is not a step of a run
KEPT = "kept"           # their reason, and also their "what"

# Maximum characters per text: a long article has 10,000. A hundred kinds of decision with 20
# examples each then take at most 80 MB per process: two texts, two bytes per Korean character.
LONGEST = 10_000
# Characters shown before the first change in a longer text: about three sentences.
IN_FRONT = 300
# A folder may hold a million files of one document each, where examples of each file would be the
# whole corpus. With more files than this, examples are drawn from all of them together.
MANY_SOURCES = 20


class Examples:
    """At most `limit` examples for each source, step and reason.

    groups: {(source, step, reason): [[hash, example], ...]}, lowest hash first."""

    def __init__(
        self,
        limit: int,
        by_source: bool = True,
        hide: Callable[[str], str] | None = None,
    ):
        self.limit = limit
        self.by_source = by_source
        self.hide = hide  # what masks personal data
        self.groups: dict[tuple[str, str, str], list] = {}

    def offer(self, example: dict, texts: dict[str, str]) -> None:
        """Keep an example if its hash is among the lowest so far.

        example: everything but its texts; texts: {"text": ...}, optionally "before" or "stayed"."""
        # Rejected lines may have no text. Hash where they are instead, so that they differ.
        text = texts["text"] or f"{example['file']}:{example['line']}"
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

        # Check the hash first. Only a few hundred of a million documents pass, and only their texts
        # are masked, cut and stored.
        group = self._group(example)
        is_full = len(group) >= self.limit
        if is_full and (not group or key > group[-1][0]):
            return
        if self.hide is not None:
            texts = {name: self.hide(text) for name, text in texts.items()}
        self._insert(group, [key, example | excerpts(texts, example["step"])])

    def _group(self, example: dict) -> list:
        """The examples of the same source, step and reason."""
        source = ""
        if self.by_source:
            source = example["file"]
        return self.groups.setdefault((source, example["step"], example["reason"]), [])

    def _insert(self, group: list, entry: list) -> None:
        """Insert an entry in order; drop the last one if there are too many."""
        # A text that occurs in a thousand places is shown once, at the first of them.
        for i, (key, _) in enumerate(group):
            if key == entry[0]:
                group[i] = min(group[i], entry, key=in_order)
                return
        bisect.insort(group, entry, key=in_order)
        del group[self.limit :]

    def save(self, path: Path) -> None:
        """Write all examples, for `add` in another process."""
        with open(path, "w", encoding="utf-8") as file:
            for group in self.groups.values():
                for entry in group:
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def add(self, path: Path) -> None:
        """Add the examples that another process saved."""
        with open(path, encoding="utf-8") as file:
            for line in file:
                key, example = json.loads(line)
                self._insert(self._group(example), [key, example])

    def write(self, path: Path) -> None:
        """Write examples.jsonl."""
        with open(path, "w", encoding="utf-8") as file:
            for name in sorted(self.groups):
                for _, example in self.groups[name]:
                    file.write(json.dumps(example, ensure_ascii=False) + "\n")

    def of_all_sources(self, limit: int) -> dict[tuple[str, str], list[dict]]:
        """{(step, reason): the `limit` examples with the lowest hashes over all sources}, without
        kept documents."""
        together: dict[tuple[str, str], list] = {}
        for (_, step, reason), group in sorted(self.groups.items()):
            if step != WRITE:
                together.setdefault((step, reason), []).extend(group)
        lowest = {}
        for name, group in sorted(together.items()):
            lowest[name] = [example for _, example in sorted(group, key=in_order)[:limit]]
        return lowest


def in_order(entry: list) -> tuple:
    """Sort key: the hash of the text, then where it is, as a text may occur in several places."""
    key, example = entry
    return key, example["file"], example["line"]


def excerpts(texts: dict[str, str], step: str) -> dict:
    """The texts, each cut to LONGEST characters; "cut" says which part of a longer text it is.

    >>> excerpts({"text": "고래"}, "rules")
    {'text': '고래'}
    >>> long = "가" * 20_000
    >>> cut = excerpts({"text": long + "나", "before": long + "()나"}, "leftovers")
    >>> cut["cut"], cut["before"][-5:]
    ({'text': [19700, 20001, 20001], 'before': [19700, 20003, 20003]}, '가가()나')
    """
    # In a long text the first change may be far from the start.
    start = 0
    if "before" in texts and max(map(len, texts.values())) > LONGEST:
        same = os.path.commonprefix([texts["before"], texts["text"]])
        start = max(0, len(same) - IN_FRONT)

    shown: dict = {}
    cut = {}
    for name, text in texts.items():
        # Personal data that was masked must not be written anywhere.
        if name == "before" and step == "mask":
            continue
        end = min(len(text), start + LONGEST)
        shown[name] = text[start:end]
        if end - start < len(text):
            cut[name] = [start, end, len(text)]
    if cut:
        shown["cut"] = cut
    return shown
