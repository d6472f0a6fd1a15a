"""Some documents of every kind of decision, with their texts, for `python data.py show`.

A threshold is judged by looking at what it removed, and at what it kept. So each source keeps a few
documents for each step and reason, and a few of those that went through. They are the ones whose
text has the lowest hash: a random sample, and the same one whatever the order in which documents
come or the number of processes. (The first twenty would all stand at the beginning of a file.)

    examples.jsonl    {"what": "removed", "file": "wiki.jsonl", "line": 123, "id": "wiki-123",
                       "step": "rules", "reason": "too_short", "measured": "3 characters < 50",
                       "text": "..."}

    what              kept, removed, changed or rejected
    text              the document; of one that was changed, what it was changed to
    before            what it was before that step
    duplicate_of      the id of the document that stays in the place of this copy,
    stayed            and that one's text
    cut               which part of a long text is there: {"text": [from, to, of all characters]}

Texts are written as the step saw them, but for personal data: if mask is among the steps, it masks
the examples of the steps before it too, as far as it finds any in text that is not normalised yet.
"""
import bisect
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from common import documents

FILE = documents.EXAMPLES
WRITE = "write"         # the step by which kept documents are listed; it is none of the run's
KEPT = "kept"           # their reason, and what became of them

# Characters of a text: a long article has 10,000. So a hundred kinds of decision with 20 examples
# each take 80 MB of a process's memory at most: two texts each, two bytes per Korean character.
LONGEST = 10_000
# What is shown in front of the first change in a longer one: some three sentences.
IN_FRONT = 300
# A folder may hold a million files of one document each: examples of each would be the corpus. With
# more files than this, examples are drawn from all of them together.
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
        """Keep an example, if it is among the lowest so far.

        example: all but its texts; texts: {"text": ...}, and perhaps "before" or "stayed"."""
        # Rejected lines may have nothing to show. Let them not all be the same text.
        text = texts["text"] or f"{example['file']}:{example['line']}"
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

        # The hash decides first. Of a million documents a few hundred get past it, and only their
        # texts are cut, compared and held.
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
        """Put an entry into its place; drop the last one if there are too many."""
        # A text that stands in a thousand places is shown once, as the first of them.
        for i, (key, _) in enumerate(group):
            if key == entry[0]:
                group[i] = min(group[i], entry, key=in_order)
                return
        bisect.insort(group, entry, key=in_order)
        del group[self.limit :]

    def save(self, path: Path) -> None:
        """Write all, for `add` in another process."""
        with open(path, "w", encoding="utf-8") as file:
            for group in self.groups.values():
                for entry in group:
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def add(self, path: Path) -> None:
        """Add what another one has saved."""
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
        """{(step, reason): the `limit` lowest of all sources}, without kept documents."""
        together: dict[tuple[str, str], list] = {}
        for (_, step, reason), group in sorted(self.groups.items()):
            if step != WRITE:
                together.setdefault((step, reason), []).extend(group)
        lowest = {}
        for name, group in sorted(together.items()):
            lowest[name] = [example for _, example in sorted(group, key=in_order)[:limit]]
        return lowest


def in_order(entry: list) -> tuple:
    """By the hash of the text; the same text may stand in several places."""
    key, example = entry
    return key, example["file"], example["line"]


def excerpts(texts: dict[str, str], step: str) -> dict:
    """The texts, each of LONGEST characters at most; "cut" says which part, if it is a part.

    >>> excerpts({"text": "고래"}, "rules")
    {'text': '고래'}
    >>> long = "가" * 20_000
    >>> cut = excerpts({"text": long + "나", "before": long + "()나"}, "leftovers")
    >>> cut["cut"], cut["before"][-5:]
    ({'text': [19700, 20001, 20001], 'before': [19700, 20003, 20003]}, '가가()나')
    """
    # What was changed in a long text may stand far behind its beginning.
    start = 0
    if "before" in texts and max(map(len, texts.values())) > LONGEST:
        same = os.path.commonprefix([texts["before"], texts["text"]])
        start = max(0, len(same) - IN_FRONT)

    shown: dict = {}
    cut = {}
    for name, text in texts.items():
        # What the step mask has hidden must not be written anywhere.
        if name == "before" and step == "mask":
            continue
        end = min(len(text), start + LONGEST)
        shown[name] = text[start:end]
        if end - start < len(text):
            cut[name] = [start, end, len(text)]
    if cut:
        shown["cut"] = cut
    return shown
