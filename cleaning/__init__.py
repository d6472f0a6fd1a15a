"""Cleaning a corpus: the steps in their order, over many files and processes, and the report.

RedWhale (arXiv 2408.11294) goes from 121.6 GB to 43.9 GB in this order, cheap steps first: sample, normalise, mask,
rules, exact duplicates, near duplicates, (lines that many web pages share,) perplexity, decontaminate. A step that
looks at one document at a time can run anywhere; duplicates concern all of them, as do the counts of lines and the
percentiles of perplexity. Hence three passes over units of some 8 MB, in many processes, and between them what one
process does alone:

    files ─▶ first pass: sample, normalise, mask, rules, hash ─▶ exact, near ─▶ count lines ─▶ train the n-gram model
          ─▶ score pass: perplexity ─▶ percentiles ─▶ last pass: lines, perplexity, decontaminate ─▶ OUT/*.jsonl

Results are put together in the order of the units: the same bytes for any number of processes (work.py).
"""
import argparse
import contextlib
import functools
import hashlib
import itertools
from pathlib import Path

import numpy as np

from cleaning import (
    corpus,
    decontaminate,
    lines,
    mask,
    normalise,
    passes,
    perplexity,
    report,
    rules,
)
from cleaning.report import Step, Tally
from cleaning.work import Work, new_array
from common import cli, documents

STEPS = ("normalise", "mask", "rules", "exact", "near", "lines", "perplexity", "decontaminate")


def sample(text: str, share: float) -> tuple[bool, str]:
    """Keep that share of all texts, by a hash: the same ones on every run. Not the hash by which `pack` chooses the
    validation documents, or half of a sample of 1 % would be those."""
    key = hashlib.blake2b(text.encode(), digest_size=8, person=b"sample").digest()
    return (True, "") if int.from_bytes(key, "big") < share * 2**64 else (False, "not_sampled")


def choose_steps(args: argparse.Namespace) -> tuple[list[str], dict[str, Step]]:
    """The names of all steps of this run, in order, and the functions of those that take one document at a time."""
    absent = {"decontaminate": not args.decontaminate, "lines": args.profile != "web"}  # if not asked for by name
    names = [step for step in STEPS if (step in args.steps if args.steps else not absent.get(step))]
    if ("decontaminate" in names) != bool(args.decontaminate):
        raise cli.UserError("the step decontaminate and --decontaminate KOBEST_DIR need each other: give both or none")
    if args.reference and "perplexity" not in names:
        raise cli.UserError("--reference is for the step perplexity, which is not among --steps")
    if args.reference and not any(documents.read_documents(args.reference, args.encoding)):
        raise cli.UserError(f"--reference {' '.join(args.reference)}: no document there; does --encoding fit?")
    if not 0 < args.sample <= 1:
        raise cli.UserError(f"--sample {args.sample} is not a share above 0, up to 1")
    if not (min(args.tails) >= 0 and sum(args.tails) < 100):  # nan is neither
        raise cli.UserError(f"--tails {args.tails[0]} {args.tails[1]}: two percentages, together less than 100")
    each = functools.partial(functools.partial, map)  # a step answers to many texts at a time
    steps = {"sample": each(functools.partial(sample, share=args.sample)),
             "normalise": each(normalise.normalise), "mask": each(functools.partial(mask.mask, lang=args.lang)),
             "rules": functools.partial(rules.check, limits=rules.LIMITS[args.lang][args.profile], lang=args.lang)}
    if args.decontaminate:
        steps["decontaminate"] = each(decontaminate.Benchmark(decontaminate.fields(args.decontaminate)).check)
        found = decontaminate.detectable(args.decontaminate).items()
        print("items that can be found:", ", ".join(f"{file} {seen:,} of {items:,}" for file, (seen, items) in found))
    names = ["sample"] * (args.sample < 1) + names
    return names, {name: step for name, step in steps.items() if name in names}


def output_names(paths: list[Path]) -> dict[str, str]:
    """{input: name of its output}: the same stem, with a number where another output or a record has that name.

    >>> list(output_names([Path("a/wiki.jsonl.gz"), Path("b/wiki.txt")]).values())
    ['wiki.jsonl', 'wiki-2.jsonl']
    """
    taken, names = {*documents.RECORDS}, {}
    for path in paths:
        stem = functools.reduce(str.removesuffix, (".gz", ".jsonl", ".txt"), path.name)
        options = (f"{stem}-{n}.jsonl" if n > 1 else f"{stem}.jsonl" for n in itertools.count(1))
        names[str(path)] = next(name for name in options if name not in taken)
        taken.add(names[str(path)])
    return names


def duplicates_once(job: passes.Job, work: Work) -> np.ndarray:
    """The mask of the documents that the steps exact and near keep, from the folder if they have been done."""
    done = work.folder / "kept.npy"
    if not done.exists():
        kept = np.ones(len(job.corpus), bool)
        with cli.new_file(work.folder / "duplicates.log") as path, open(path, "w", encoding="utf-8") as log:
            tally = Tally(log)
            for step in [name for name in job.names if name in ("exact", "near")]:
                kept = job.corpus.remove_duplicates(step, kept, tally, work.folder)
        cli.write_json(work.folder / "duplicates.json", tally.to_json())
        with cli.new_file(done) as temporary:
            new_array(temporary, bool, kept.shape)[:] = kept
    return np.load(done)


def train_models(job: passes.Job, kept: np.ndarray, args: argparse.Namespace) -> None:
    """One model of --reference, or two of the corpus's documents with even and with odd numbers."""
    if args.reference:
        paths = documents.files(args.reference)
        share = min(1, perplexity.SAMPLE / max(1, sum(path.stat().st_size for path in paths)))
        found = documents.read_documents(paths, args.encoding)
        texts = (normalise.normalise(document["text"])[0] for document in found)
        perplexity.Model.train(text for text in texts if sample(text, share)[0]).save(job.folder / "model-0")
        return
    sizes, odd = job.corpus.all["size"], np.arange(len(kept)) % 2 == 1
    for k in (0, 1):
        chosen = perplexity.some(k, sizes, kept & (odd == k), perplexity.SAMPLE)
        texts = (job.without_lines(job.corpus.document(i)[1]["text"]) for i in chosen)
        perplexity.Model.train(text for text in texts if text).save(job.folder / f"model-{k}")


def find_cuts(job: passes.Job, stems: list[Path], tails: tuple[float, float]) -> dict:
    """Each source's percentiles to cuts.npz; the histograms."""
    scores, sources = np.concatenate([corpus.load(stem, "scores")[0] for stem in stems]), job.corpus.all["source"]
    limits = perplexity.cuts(scores, sources, len(job.sources), tails)
    np.savez(job.folder / "cuts.npz", cuts=limits)
    return perplexity.histograms(scores, sources, list(job.sources), limits)


def put_together(job: passes.Job, stems: list[Path], folder: Path, outputs: dict[str, str]) -> None:
    """The last pass's documents into one file for each input, in order."""
    for name in outputs.values():
        (folder / name).touch()
    names = list(outputs.values())
    for stem in cli.progress(stems, "put together", "unit"):
        with open(f"{stem}.docs", "rb") as documents:
            for source, size in corpus.load(stem, "runs")[0].tolist():
                with open(folder / names[source], "ab") as file:
                    for start in range(0, size, 2**24):
                        file.write(documents.read(min(2**24, size - start)))


def clean(args: argparse.Namespace) -> dict:
    """Clean documents: one output file for each input file, and beside them report.json, and a line in removed.jsonl,
    masked.jsonl or rejected.jsonl for each document that was taken out, changed, or could not be read. A run that was
    stopped goes on where it was when the same command is given again.

        python data.py clean --input wiki.jsonl rulings/ --profile formal --decontaminate kobest --out clean/formal"""
    names, steps = choose_steps(args)
    paths = documents.files(args.input)
    units, outputs = documents.units(paths), output_names(paths)
    extra = [[str(path), *documents.stamp(path)] for path in documents.files(args.reference)] if args.reference else []
    tables = sorted(Path(args.decontaminate or "/nowhere").rglob("*.tsv"))
    extra += [[str(path), *documents.stamp(path)] for path in tables]
    settings = {key: value for key, value in vars(args).items() if key not in ("workers", "run", "out")}
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise cli.UserError(f"{args.out} is a file; a folder is to be written there")
    settings |= {"names": names, "units": units, "extra": extra}
    work = Work(Path(args.out).absolute(), settings, args.workers)
    with work.guarded():
        with cli.new_folder(args.out) as folder:
            job = passes.Job(work.folder, args, names, steps, list(outputs))
            total, result = run_passes(job, work, units, args, folder, outputs)
            result = total.report(names, list(outputs)) | result
            if not result["output"]["documents"]:
                work.finish()
                reasons = [result["rejected"], *(step["reasons"] for step in result["steps"])]
                why = ", ".join(f"{n} {reason}" for counts in reasons for reason, n in counts.items())
                raise cli.UserError(f"nothing is left of {result['input']['documents']} documents "
                                    f"({why or 'no lines'}); do --lang, --profile and --encoding fit?")
            cli.write_json(folder / "report.json", result)
        work.finish()
    print(report.table(result))
    return result


def run_passes(job: passes.Job, work: Work, units: list[list[documents.Span]], args: argparse.Namespace, folder: Path,
               outputs: dict[str, str]) -> tuple[Tally, dict]:
    """All passes; the outputs and records into `folder`. -> (tally of everything, {"perplexity": histograms})."""
    first = work.run("first", passes.first_pass, units, [sum(s.end - s.start for s in unit) for unit in units], job)
    before = corpus.write_index(work.folder / "corpus.json", first, list(outputs))
    kept, result = duplicates_once(job, work), {}
    numbers, sizes = range(len(units)), [(stem.parent / f"{stem.name}.docs").stat().st_size for stem in first]
    if "lines" in job.names:
        sketch = lines.Sketch(work.folder / "lines.npy", "w+")
        for stem in work.run("lines", passes.count_pass, numbers, sizes, job):
            sketch.add(*corpus.load(stem, "hashes", "counts"))
        sketch.counters.flush()
    if "perplexity" in job.names:
        if not (work.folder / "models.json").exists():
            train_models(job, kept, args)
            cli.write_json(work.folder / "models.json", {"models": "whole"})
        result["perplexity"] = find_cuts(job, work.run("score", passes.score_pass, numbers, sizes, job), args.tails)
    last = work.run("last", passes.last_pass, numbers, sizes, job)
    total = Tally()
    with contextlib.ExitStack() as stack:
        records = {name: stack.enter_context(open(folder / name, "w", encoding="utf-8")) for name in documents.RECORDS}
        parts = [*zip(first, before, strict=True), (work.folder / "duplicates", {}), *((stem, {}) for stem in last)]
        for stem, lines_before in cli.progress(parts, "report", "unit"):
            total.add(Tally.from_json(cli.read_json(f"{stem}.json")), lines_before)
            report.merge_log(Path(f"{stem}.log"), records, lines_before)
    put_together(job, last, folder, outputs)
    return total, result
