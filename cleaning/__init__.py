"""Cleaning a corpus: the steps in their order, over many files and processes, and the report.

RedWhale (arXiv 2408.11294) goes from 121.6 GB to 43.9 GB in about this order, cheap steps first: sample, normalise,
mask, rules, exact duplicates, near duplicates, decontaminate; all but the duplicates take one document at a time. Those
concern all documents at once, so there are two passes, and a scratch file that holds the texts between them:

    files ─▶ sample, normalise, mask, rules, hash ─▶ scratch ─▶ exact, near ─▶ decontaminate ─▶ OUT/*.jsonl
             (many processes)                                   (one)          (many)

Chunks come back in the order in which they went out: the same bytes for any number of processes.
"""
import argparse
import contextlib
import functools
import hashlib
import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

import cli
from cleaning import decontaminate, duplicates, mask, normalise, read, rules
from cleaning.corpus import CHUNK, Scratch, Step, Tally, where

STEPS = ("normalise", "mask", "rules", "exact", "near", "decontaminate")


def sample(text: str, share: float) -> tuple[bool, str]:
    """Keep that share of all texts, by a hash: the same ones on every run. Not the hash by which `pack` chooses the
    validation documents, or half of a sample of 1 % would be those."""
    key = hashlib.blake2b(text.encode(), digest_size=8, person=b"sample").digest()
    return (True, "") if int.from_bytes(key, "big") < share * 2**64 else (False, "not_sampled")


def choose_steps(args: argparse.Namespace) -> tuple[list[str], dict[str, Step]]:
    """The names of all steps of this run, in order, and the functions of those that take one document at a time."""
    names = [step for step in STEPS if step in (args.steps or STEPS)]
    if not args.steps and not args.decontaminate:
        names.remove("decontaminate")
    if ("decontaminate" in names) != bool(args.decontaminate):
        raise cli.UserError("the step decontaminate and --decontaminate KOBEST_DIR need each other: give both or none")
    if not 0 < args.sample <= 1:
        raise cli.UserError(f"--sample {args.sample} is not a share above 0, up to 1")
    steps = {"sample": functools.partial(sample, share=args.sample),
             "normalise": normalise.normalise, "mask": functools.partial(mask.mask, lang=args.lang),
             "rules": functools.partial(rules.check, limits=rules.LIMITS[args.lang][args.profile], lang=args.lang)}
    if args.decontaminate:
        steps["decontaminate"] = decontaminate.Benchmark(decontaminate.fields(args.decontaminate)).check
    names = ["sample"] * (args.sample < 1) + names
    return names, {name: step for name, step in steps.items() if name in names}


_job: dict = {}  # what the passes of this process do; sent once, for a benchmark is too large to go with every chunk


def _start(job: dict) -> None:
    _job.update(job)


def first_pass(chunk: tuple[Path, list]) -> tuple:
    """Raw lines -> what Scratch.append takes, and a Tally."""
    path, lines = chunk
    tally, texts, out = Tally(), [], []
    for number, raw in lines:
        try:
            document = read.parse(raw, path, _job["encoding"])
        except ValueError as error:
            tally.record("rejected.jsonl", "read", str(error), {"file": str(path), "line": number}, repr(raw)[:100])
            continue
        tally.passed(str(path), "read", "in", len(document["text"].encode()))
        if text := tally.take(document["text"], _job["first"], where(str(path), number, document)):
            texts.append(text)
            out.append(f"{number}\t{json.dumps(document | {'text': text}, ensure_ascii=False)}\n".encode())
    keys = b"".join(map(duplicates.exact_key, texts))
    return str(path), out, keys, duplicates.band_hashes(texts).tobytes(), [len(text.encode()) for text in texts], tally


def last_pass(chunk: tuple[str, list[bytes]]) -> tuple[str, list[bytes], Tally]:
    """Scratch lines -> (source, lines of output, Tally)."""
    source, lines = chunk
    tally, out = Tally(), []
    for scratch_line in lines:
        number, _, line = scratch_line.partition(b"\t")
        document = json.loads(line)
        if tally.take(document["text"], _job["last"], where(source, int(number), document)):
            tally.passed(source, "write", "out", len(document["text"].encode()))
            out.append(line)
    return source, out, tally


def ordered(function: Callable, items: Iterable, workers: int, job: dict) -> Iterator:
    """map(function, items) in `workers` processes, in order; a few items are under way at a time, not all."""
    if workers == 1:
        _start(job)
        yield from map(function, items)
        return
    # spawn: a forked copy of a process that has threads (PyTorch's, in the tests) may hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (job,)) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def chunks(paths: list[Path], bar: tqdm) -> Iterator[tuple[Path, list]]:
    """(path, [(line number, raw line)]) of about CHUNK bytes; moves the bar."""
    for path in paths:
        chunk, size = [], 0
        for number, raw in read.lines(path):
            chunk.append((number, raw))
            size += len(raw) if isinstance(raw, bytes) else 0
            if size >= CHUNK:
                yield path, chunk
                bar.update(size)
                chunk, size = [], 0
        yield path, chunk
        bar.update(size)


def output_names(paths: list[Path]) -> dict[str, str]:
    """{input: name of its output}: the same stem, with a number where another output or a record has that name.

    >>> list(output_names([Path("a/wiki.jsonl.gz"), Path("b/wiki.txt")]).values())
    ['wiki.jsonl', 'wiki-2.jsonl']
    """
    names: dict[str, str] = {}
    for path in paths:
        stem = functools.reduce(str.removesuffix, (".gz", ".jsonl", ".txt"), path.name)
        options = (f"{stem}-{n}.jsonl" if n > 1 else f"{stem}.jsonl" for n in range(1, len(paths) + 5))
        names[str(path)] = next(name for name in options if name not in {*names.values(), *read.RECORDS})
    return names


def clean(args: argparse.Namespace) -> dict:
    """Clean documents: one output file for each input file, and beside them report.json, and a line in removed.jsonl,
    masked.jsonl or rejected.jsonl for each document that was taken out, changed, or could not be read."""
    names, steps = choose_steps(args)
    first = {name: step for name, step in steps.items() if name != "decontaminate"}
    job = {"encoding": args.encoding, "first": first, "last": {k: v for k, v in steps.items() if k not in first}}
    paths = read.files(args.input)
    outputs, total = output_names(paths), Tally()
    with cli.new_folder(args.out) as folder, contextlib.ExitStack() as stack:
        scratch = Scratch(folder / "scratch", list(outputs))
        with tqdm(total=sum(p.stat().st_size for p in paths), desc="clean", unit="B", unit_scale=True) as bar:
            for *documents, tally in ordered(first_pass, chunks(paths, bar), args.workers, job):
                scratch.append(*documents)
                total.add(tally, folder)
        alive = np.arange(len(scratch.size))
        for step in [name for name in names if name in ("exact", "near")]:
            tally = Tally()
            alive = scratch.duplicates(step, alive, tally)
            total.add(tally, folder)
        files = {source: stack.enter_context(open(folder / name, "wb")) for source, name in outputs.items()}
        for source, lines, tally in ordered(last_pass, scratch.chunks(alive), args.workers, job):
            files[source].writelines(lines)
            total.add(tally, folder)
        scratch.file.close()
        (folder / "scratch").unlink()
        report = total.report(names, list(outputs))
        if not report["output"]["documents"]:
            reasons = [report["rejected"], *(step["reasons"] for step in report["steps"])]
            why = ", ".join(f"{n} {reason}" for counts in reasons for reason, n in counts.items())
            raise cli.UserError(f"nothing is left of {report['input']['documents']} documents ({why or 'no lines'}); "
                                "do --lang, --profile and --encoding fit?")
        cli.write_json(folder / "report.json", report)
    print(table(report))
    return report


def table(report: dict) -> str:
    """The steps as a table, like the paper's 121.6 GB -> 43.9 GB."""
    last = report["input"] | {"step": "input", "reasons": report["rejected"]}
    rows = [("step", "documents", "MB", "share", "removed, masked or rejected for")]
    for step in [last | {f"{key}_out": last[key] for key in ("documents", "bytes")}, *report["steps"]]:
        rows.append((step["step"], f"{step['documents_out']:,}", f"{step['bytes_out'] / 1e6:,.1f}",
                     f"{step['bytes_out'] / max(1, last['bytes']):.1%}",
                     ", ".join(f"{reason} {n:,}" for reason, n in step["reasons"].items())))
    return "\n".join(f"{a:14}{b:>12}{c:>12}{d:>8}  {e}".rstrip() for a, b, c, d, e in rows)
