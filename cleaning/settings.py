"""Turns the flags of `data.py clean` into settings, checked before anything is written."""
import argparse
import hashlib
import itertools
import json
from pathlib import Path

from cleaning import decontaminate
from cleaning.limits import Limits
from common import cli, compressed, documents

STEPS = (
    "normalise",
    "mask",
    "leftovers",
    "rules",
    "exact",
    "near",
    "lines",
    "perplexity",
    "decontaminate",
)


def choose_steps(args: argparse.Namespace) -> list[str]:
    """The names of this run's steps, in order."""
    if args.steps:
        steps = [step for step in STEPS if step in args.steps]
    else:
        steps = list(STEPS)
        if args.profile != "web" and not args.cut_lines:
            steps.remove("lines")
        if not args.decontaminate:
            steps.remove("decontaminate")
    if args.sample < 1:
        steps.insert(0, "sample")
    return steps


def check_flags(args: argparse.Namespace, steps: list[str]) -> None:
    """Raise UserError for invalid flags, and for flags that contradict each other."""
    if ("decontaminate" in steps) != bool(args.decontaminate):
        raise cli.UserError(
            "the step decontaminate and --decontaminate KOBEST_DIR need each other: give both or "
            "neither"
        )
    if args.cut_lines and "lines" not in steps:
        raise cli.UserError("--cut_lines runs the step lines, which is not among --steps")
    if args.reference and "perplexity" not in steps:
        raise cli.UserError("--reference is for the step perplexity, which is not among --steps")
    if args.limits and "rules" not in steps:
        raise cli.UserError("--limits is for the step rules, which is not among --steps")
    if args.reference:
        reading = documents.reading_of(args)
        if not any(documents.read_documents(args.reference, reading)):
            raise cli.UserError(
                f"--reference {' '.join(args.reference)}: no documents found; check --encoding"
            )
    if not 0 < args.sample <= 1:
        raise cli.UserError(f"--sample {args.sample}: give a share above 0 and at most 1")
    low, high = args.tails
    tails_fit = min(low, high) >= 0 and low + high < 100  # false for nan
    if not tails_fit:
        raise cli.UserError(f"--tails {low} {high}: give two percentages that sum to less than 100")
    if args.examples < 0:
        raise cli.UserError(f"--examples {args.examples}: give 0 (for none) or more")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise cli.UserError(f"{args.out} is a file, but a folder is to be written "
                            "there; name another one")


def read_benchmark(folder: str | None) -> decontaminate.Benchmark | None:
    """Read the benchmark to keep out, if any, and print how much of it can be found at all."""
    if not folder:
        return None
    benchmark = decontaminate.Benchmark(decontaminate.fields(folder))
    parts = []
    for file, (n_detectable, n_items) in decontaminate.detectable(folder).items():
        parts.append(f"{file} {n_detectable:,} of {n_items:,}")
    print("items that can be found:", ", ".join(parts))
    return benchmark


def fingerprint(args: argparse.Namespace, paths: list[Path], limits: Limits) -> str:
    """A hash of everything that the result depends on: the flags, the inputs (by size and
    modification time), and the code."""
    # The result does not depend on these: a run may resume with other --workers.
    settings = dict(vars(args))
    for name in ("workers", "run", "out"):
        settings.pop(name, None)
    # The limits themselves, as --limits may name a file whose content has changed.
    settings["limits"] = limits._asdict()

    # Everything that is read, by its stamps: hashing contents would take minutes at every start.
    inputs = list(paths)
    if args.reference:
        inputs += documents.files(args.reference)
    if args.decontaminate:
        inputs += decontaminate.benchmark_files(args.decontaminate)
    stamps = [[str(path), *documents.stamp(path)] for path in inputs]

    # The code that turns the inputs into the result.
    code = sorted(Path(__file__).parent.glob("*.py"))
    code += [Path(documents.__file__), Path(compressed.__file__)]
    digest = hashlib.sha256(json.dumps([settings, stamps], default=str).encode())
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def output_names(sources: list[str]) -> list[str]:
    """The output name for each input: the same stem, with a number added if another output or a
    record already has that name.

    >>> output_names(["a/wiki.jsonl.gz", "b/wiki.txt"])
    ['wiki.jsonl', 'wiki-2.jsonl']
    """
    taken = set(documents.OURS)
    names = []
    for source in sources:
        stem = documents.stem(Path(source))
        name = f"{stem}.jsonl"
        for n in itertools.count(2):
            if name not in taken:
                break
            name = f"{stem}-{n}.jsonl"
        taken.add(name)
        names.append(name)
    return names


def nothing_left(result: dict) -> str:
    """The message for a run that removed everything."""
    counted = [result["rejected"]]
    counted += [step["reasons"] for step in result["steps"]]
    parts = []
    for reasons in counted:
        parts += [f"{n} {reason}" for reason, n in reasons.items()]
    why = ", ".join(parts) or "no lines"
    return (
        f"nothing is left of {result['input']['documents']} documents ({why}); check --lang, "
        "--profile, --encoding and --text_field"
    )
