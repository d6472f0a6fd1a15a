"""Reads the decisions of a run back from its report.json and examples.jsonl, and selects those that
the flags of `python data.py show` ask for."""
import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from cleaning import examples
from common import cli, documents


class Run:
    """A finished run: its report and its examples, in the order of sources and steps.

    counts: {(source, step, reason): documents}, over all documents, not only the examples."""

    def __init__(self, folder: Path):
        if not (folder / "report.json").exists():
            raise cli.UserError(f"{folder} holds no report.json; name a folder that data.py clean "
                                "has written")
        self.folder = folder
        self.report = cli.read_json(folder / "report.json")
        # A report.json may come from another program.
        try:
            self.sources = list(self.report["sources"])
            self.counts = counts_of(self.report)
        except (AttributeError, KeyError, TypeError):
            raise cli.UserError(f"{folder / 'report.json'} is not a report that data.py clean "
                                "wrote") from None
        self.names = short_names(self.sources)
        self.examples = read_examples(folder)

        # Step and reason together determine what happened to a document.
        places = {name: place for place, name in enumerate(self.counts)}
        try:
            self.what = {(e["step"], e["reason"]): e["what"] for e in self.examples}
            self.examples.sort(key=lambda example: places[name_of(example)])
        except (KeyError, TypeError):
            raise cli.UserError(f"{folder / examples.FILE} does not belong to the report.json "
                                "beside it; clean again") from None

    def check(self, args: argparse.Namespace) -> None:
        """Raise UserError for a source, step or reason that this run does not have."""
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
        """Whether the flags select this (source, step, reason)."""
        source, step, reason = name
        if args.source and not is_source(source, args.source):
            return False
        # A page shows kept documents beside whichever decisions were asked for.
        if args.html and not args.what and reason == examples.KEPT:
            return True
        if args.step and step != args.step:
            return False
        if args.reason and not is_reason(reason, args.reason):
            return False
        return not args.what or self.what.get((step, reason)) == args.what


def counts_of(report: dict) -> dict[tuple[str, str, str], int]:
    """{(source, step, reason): documents}: the kept documents first, then the steps in order."""
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
    """Read examples.jsonl."""
    path = folder / examples.FILE
    if not path.exists():
        raise cli.UserError(f"{path} is missing: it was deleted, or {folder} was written before "
                            "clean saved examples; clean again to see documents")
    found = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                raise cli.UserError(f"{path} is incomplete; clean again") from None
    if not found:
        raise cli.UserError(f"{path} is empty; data.py clean saves documents to show with "
                            "--examples N")
    return found


def name_of(example: dict) -> tuple[str, str, str]:
    """(source, step, reason)."""
    return example["file"], example["step"], example["reason"]


def is_source(source: str, wanted: str) -> bool:
    """Whether `wanted` names this file: by its path, its name, or its name without the suffix."""
    path = Path(source)
    return wanted in (source, path.name, documents.stem(path))


def is_reason(reason: str, wanted: str) -> bool:
    """Whether `wanted` is this reason, or one of the kinds it combines.

    >>> is_reason("phone+email", "phone")
    True
    """
    return wanted == reason or wanted in reason.split("+")


def in_turn(found: list[dict]) -> list[dict]:
    """The examples interleaved: the first of each source, step and reason, then the second of each,
    and so on. However few are looked at, they are of different kinds."""
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
    """The distinct names, at most 30, for a one-line error."""
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:30])
    if len(names) > 30:
        shown += f" and {len(names) - 30} more"
    return shown


def length_of(example: dict) -> int:
    """The length of the whole text in characters; an example may hold only a part of it."""
    if "text" in example.get("cut", {}):
        _, _, length = example["cut"]["text"]
        return length
    return len(example["text"])
