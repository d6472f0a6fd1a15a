"""The program that runs the cleaning steps over a corpus: `python data.py clean`.

The steps run in RedWhale's order (arXiv 2408.11294, from 121.6 GB to 43.9 GB), cheap ones first:
sample, normalise, mask, leftovers, rules, exact duplicates, near duplicates, (lines that many web
pages share,) perplexity, decontaminate. Each step is a file in this folder.

A step that looks at one document can run in any process. Duplicates, line counts and perplexity
percentiles concern all documents. So the corpus is processed in passes by many processes, a unit of
about 8 MB at a time, and between the passes one process does what concerns all documents:

    first pass    sample, normalise, mask, leftovers, rules; hashes of each document
                      → exact and near duplicates
    count pass    (step lines) the number of documents that contain each line
                      → one sketch of all counts; n-gram models trained on a sample
    score pass    (step perplexity) bits per character of each document
                      → percentiles of each source
    last pass     lines, perplexity, decontaminate
                      → OUT/*.jsonl, examples.jsonl, report.json

Each pass stores its results in a work folder (work.py), from which a killed run can resume.
"""
import argparse
import functools
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cleaning import (
    decontaminate,
    duplicates,
    leftovers,
    lines,
    mask,
    normalise,
    perplexity,
    report,
    rules,
)
from cleaning.arrays import new_array
from cleaning.corpus import (
    Corpus,
    in_batches,
    number_documents,
    numbers_of,
    put_documents_together,
    read_kept,
    where_from,
    write_document,
)
from cleaning.examples import MANY_SOURCES, Examples
from cleaning.limits import Limits, choose_limits
from cleaning.report import Step, Tally, put_records_together
from cleaning.settings import (
    check_flags,
    choose_steps,
    fingerprint,
    nothing_left,
    output_names,
    read_benchmark,
)
from cleaning.work import Result, WorkFolder, load
from common import cli, documents

# ---- The run ------------------------------------------------------------------------------------


def clean(args: argparse.Namespace) -> dict:
    """Clean documents. Writes one output file for each input file, a summary in report.json, and a
    line in removed.jsonl, changed.jsonl or rejected.jsonl for each document that was removed,
    changed, or could not be read. A sample of these, and of the kept documents, goes to
    examples.jsonl with their texts: `data.py show` prints them. To resume a run that was stopped,
    give the same command again.

        python data.py clean --input wiki.jsonl rulings/ --profile formal --out clean/formal"""
    # Check everything that can be checked before anything is written.
    steps = choose_steps(args)
    check_flags(args, steps)
    paths = documents.files(args.input)
    sources = list(map(str, paths))
    reading = documents.reading_of(args)
    limits = choose_limits(args.lang, args.profile, args.limits)
    benchmark = read_benchmark(args.decontaminate)

    # The work folder stays until the output is complete, or until it is clear that there is none.
    out = Path(args.out).absolute()
    work = WorkFolder(out, fingerprint(args, paths, limits), args.workers)
    with work.guarded():
        if work.resumes:
            print(f"resuming from {work.outer}")
        job = Job(
            folder=work.folder,
            units=plan_units(work.folder, paths, reading),
            reading=reading,
            sources=sources,
            source_numbers={source: number for number, source in enumerate(sources)},
            steps=steps,
            sample=args.sample,
            lang=args.lang,
            limits=limits,
            benchmark=benchmark,
            examples=args.examples,
        )
        with cli.new_folder(out) as folder:
            result = run_passes(job, work, args, folder)
            result["limits"] = limits._asdict()
            result["left_out"] = list(map(str, documents.left_out(args.input)))
            if result["output"]["documents"] == 0:
                work.remove()
                raise cli.UserError(nothing_left(result))
            cli.write_json(folder / "report.json", result)
        work.remove()
    print(report.table(result))
    return result


class Job(NamedTuple):
    """What every pass needs to know. It is sent once to each process of the pool."""

    folder: Path                      # the work folder
    units: list[list[documents.Span]]
    reading: documents.Reading        # how files become documents
    sources: list[str]                # the input files
    source_numbers: dict[str, int]    # the index of each in that list
    steps: list[str]                  # the names of this run's steps, in order
    sample: float                     # share of the documents to start from
    lang: str
    limits: Limits
    benchmark: decontaminate.Benchmark | None
    examples: int                     # documents to keep for each source, step and reason

    def no_examples(self) -> Examples:
        """The empty Examples with which each task that decides on documents begins."""
        hide = None
        if "mask" in self.steps:
            hide = functools.partial(without_personal_data, lang=self.lang)
        return Examples(self.examples, len(self.sources) <= MANY_SOURCES, hide)


def run_passes(job: Job, work: WorkFolder, args: argparse.Namespace, folder: Path) -> dict:
    """Run all passes and write outputs and records to `folder`. Returns the report."""
    # The first pass reads the documents, unit by unit, and keeps those that the first steps do not
    # remove.
    raw_sizes = []
    for unit in job.units:
        raw_sizes.append(sum(span.end - span.start for span in unit))
    first = work.run_pass("first", first_pass, job, raw_sizes)
    sizes = [Path(f"{stem}.documents").stat().st_size for stem in first]

    # From here on each document has a number. Duplicates are decided over all of them.
    number_documents(job.folder, first)
    corpus = Corpus(job.folder, first, job.sources)
    duplicates_task = functools.partial(find_all_duplicates, job, corpus)
    between = work.run_alone("duplicates", duplicates_task)
    if "lines" in job.steps:
        counted = work.run_pass("count", count_pass, job, sizes)
        write_sketch(job, counted)

    # Models are trained on the text after the step lines, and score the same text.
    histograms = None
    if "perplexity" in job.steps:
        models_task = functools.partial(train_models, job, corpus, args.reference)
        work.run_alone("models", models_task)
        scored = work.run_pass("score", score_pass, job, sizes)
        histograms = write_cutoffs(job, corpus, scored, args.tails)
    last = work.run_pass("last", last_pass, job, sizes)

    # Put everything together, in the order of the units.
    total = put_records_together([*first, between, *last], folder, job.no_examples())
    put_documents_together(last, folder, output_names(job.sources))
    result = report.summary(total, job.steps, job.sources)
    if histograms is not None:
        result["perplexity"] = histograms
    return result


def first_steps(job: Job) -> dict[str, Step]:
    """The steps that look at one document as it is read, in order."""
    steps = {
        "sample": functools.partial(sample, share=job.sample),
        "normalise": normalise.normalise_text,
        "mask": functools.partial(mask.mask_personal_data, lang=job.lang),
        "leftovers": leftovers.remove_leftovers,
        "rules": functools.partial(rules.check, limits=job.limits, lang=job.lang),
    }
    return {name: step for name, step in steps.items() if name in job.steps}


def last_steps(job: Job, score: float, cutoffs: tuple[float, float]) -> dict[str, Step]:
    """The steps that look at one document but need to know something about all documents: how many
    contain each line, and which scores are unusual for the source."""
    low, high = cutoffs
    steps: dict[str, Step] = {}
    if "lines" in job.steps:
        steps["lines"] = functools.partial(cut_lines, job)
    if "perplexity" in job.steps:
        steps["perplexity"] = functools.partial(perplexity.check, score=score, low=low, high=high)
    if job.benchmark is not None:
        steps["decontaminate"] = job.benchmark.check
    return steps


# ---- The passes: tasks of work.py, in many processes --------------------------------------------


def first_pass(job: Job, unit: int, result: Result) -> None:
    """Read the documents of a unit, run the first steps, and write the documents they keep.

    Arrays, for the n kept documents: "source", "offset" and "size" (n,), the columns of Corpus; and
    the hashes by which duplicates are found, "keys" (n, 2) and "bands" (n, 14)."""
    result.tally.examples = job.no_examples()
    steps = first_steps(job)

    # One entry for each kept document.
    sources = []
    offsets = []
    sizes = []
    keys = []
    bands = [np.zeros((0, duplicates.BANDS), np.uint64)]
    offset = 0
    for batch in in_batches(read_unit(job, unit, result.tally)):
        texts = []
        for source, document, where in batch:
            text = result.tally.apply(steps, document["text"], where)
            if text is None:
                continue
            document["text"] = text
            texts.append(text)
            sources.append(source)
            sizes.append(len(text.encode()))
            offsets.append(offset)
            offset += write_document(result.documents, source, where["line"], document)

        # Hash many documents at once: numpy is slow on short ones.
        keys += [duplicates.exact_key(text) for text in texts]
        if "near" in job.steps:
            bands.append(duplicates.band_hashes(texts))

    result.arrays["source"] = np.array(sources, np.uint32)
    result.arrays["offset"] = np.array(offsets, np.uint64)
    result.arrays["size"] = np.array(sizes, np.uint32)
    result.arrays["keys"] = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    result.arrays["bands"] = np.concatenate(bands)


def count_pass(job: Job, unit: int, result: Result) -> None:
    """Count how many of the unit's documents contain each line: "hashes" and "counts" (lines,)."""
    kept = read_kept(job.folder, unit, job.sources)
    texts = (document["text"] for _, document, _ in kept)
    hashes, counts = lines.count(texts)
    result.arrays["hashes"] = hashes
    result.arrays["counts"] = counts


def score_pass(job: Job, unit: int, result: Result) -> None:
    """Compute "scores", the bits per character of the unit's documents: float32 (n,), nan for a
    document that was removed or is too short."""
    models = load_models(job.folder)
    numbers = numbers_of(job.folder, unit)
    scores = np.full(len(numbers), np.nan, np.float32)
    for batch in in_batches(read_kept(job.folder, unit, job.sources)):
        # A document with an even number is scored by the model trained on odd ones, and the other
        # way round: a model that has seen the document would not be surprised by it.
        waiting: list[dict[int, str]] = [{} for _ in models]  # for each model {index: text}
        for number, document, _ in batch:
            text = without_lines(job, document["text"])
            if text is not None and len(text) >= perplexity.SHORTEST:
                model = (number + 1) % len(models)
                waiting[model][numbers.index(number)] = text
        for model, texts in zip(models, waiting, strict=True):
            scores[list(texts)] = model.bits(list(texts.values()))
    result.arrays["scores"] = scores


def last_pass(job: Job, unit: int, result: Result) -> None:
    """Run the last steps over the unit's documents; the rest is the cleaned corpus."""
    result.tally.examples = job.no_examples()
    numbers = numbers_of(job.folder, unit)
    scores = [np.nan] * len(numbers)
    cutoffs = [(-np.inf, np.inf)] * len(job.sources)
    if "perplexity" in job.steps:
        scores = load(job.folder / "score" / f"{unit:06}", "scores").tolist()
        cutoffs = np.load(job.folder / "cutoffs.npy").tolist()

    for number, document, where in read_kept(job.folder, unit, job.sources):
        source = job.source_numbers[where["file"]]
        steps = last_steps(job, scores[numbers.index(number)], cutoffs[source])
        text = result.tally.apply(steps, document["text"], where)
        if text is None:
            continue
        document["text"] = text
        result.tally.kept(where, text)
        write_document(result.documents, source, where["line"], document)


def read_unit(job: Job, unit: int, tally: Tally) -> Iterator[tuple[int, dict, dict]]:
    """Yield (source, document, where it is) for a unit of the input. Count what was read, and
    record what could not be read."""
    for span in job.units[unit]:
        file = str(span.path)
        for line, document, reason, shown in documents.read_span(span, job.reading):
            if document is None:
                where = {"file": file, "line": line}
                tally.record(report.REJECTED, "read", reason, where, {"text": shown})
                continue
            where = where_from(file, line, document)
            text = document["text"]
            tally.came_in(file, "read", len(text.encode()))
            if reason:
                tally.record(report.CHANGED, "read", reason, where, {"text": text})
            yield job.source_numbers[file], document, where
        if documents.stamp(span.path) != span.stamp:
            raise cli.UserError(
                f"{span.path} changed while it was being read; run again when it is complete"
            )


# ---- Between the passes, in the main process ----------------------------------------------------


def find_all_duplicates(job: Job, corpus: Corpus, result: Result) -> None:
    """Run the steps exact and near: write kept.npy, and record each copy with the document that is
    kept instead."""
    tally = result.tally
    tally.examples = job.no_examples()
    kept = np.ones(len(corpus), bool)
    for step in ("exact", "near"):
        if step not in job.steps:
            continue
        if step == "exact":
            stays = corpus.exact_duplicates()
        else:
            stays = corpus.near_duplicates(kept)
        still_kept = kept & (stays == np.arange(len(corpus)))
        for source, n_bytes, n_documents in corpus.by_source(kept):
            tally.came_in(source, step, n_bytes, n_documents)
        for source, n_bytes, n_documents in corpus.by_source(still_kept):
            tally.went_out(source, step, n_bytes, n_documents)

        copies = np.flatnonzero(kept & ~still_kept).tolist()
        for copy in cli.progress(copies, f"{step} copies"):
            document, where = corpus.document(copy)
            stayed, original = corpus.document(int(stays[copy]))
            reason = f"{step}_duplicate"
            twin = {"duplicate_of": original["id"]}
            texts = {"text": document["text"], "stayed": stayed["text"]}
            tally.record(report.REMOVED, step, reason, where, texts, twin)
        kept = still_kept

    with cli.new_file(job.folder / "kept.npy") as temporary:
        new_array(temporary, bool, kept.shape)[:] = kept


def write_sketch(job: Job, stems: list[Path]) -> None:
    """Add the line counts of all units to one sketch."""
    sketch = lines.Sketch(job.folder / "lines.npy", "w+")
    for stem in stems:
        sketch.add(load(stem, "hashes"), load(stem, "counts"))
    sketch.counters.flush()


def train_models(job: Job, corpus: Corpus, reference: list[str] | None, result: Result) -> None:
    """Train one n-gram model on --reference, or two, on the documents with even and odd numbers."""
    if reference:
        texts = sample_of_reference(job, reference)
        perplexity.Model.train(texts).save(job.folder / "model-0")
        return
    kept = np.load(job.folder / "kept.npy")
    for k in (0, 1):
        half = kept.copy()
        half[1 - k :: 2] = False  # the other half
        chosen = perplexity.draw(k, corpus.size, half, perplexity.SAMPLE)
        texts = (without_lines(job, corpus.text(number)) for number in chosen)
        texts = (text for text in texts if text is not None)
        perplexity.Model.train(texts).save(job.folder / f"model-{k}")


def sample_of_reference(job: Job, reference: list[str]) -> Iterator[str]:
    """Yield documents of --reference, normalised: a sample of about perplexity.SAMPLE bytes."""
    paths = documents.files(reference)
    n_bytes = sum(path.stat().st_size for path in paths)
    share = min(1, perplexity.SAMPLE / max(1, n_bytes))
    for document in documents.read_documents(paths, job.reading):
        text, _ = normalise.normalise_text(document["text"])
        if text is None:
            continue
        text, _ = sample(text, share)
        if text is not None:
            yield text


def write_cutoffs(job: Job, corpus: Corpus, stems: list[Path], tails: tuple) -> dict:
    """Write the lowest and highest score that stays, for each source. Returns the histograms."""
    scores = np.concatenate([load(stem, "scores") for stem in stems])
    cutoffs = perplexity.cutoffs_by_source(scores, corpus.source, len(job.sources), tails)
    np.save(job.folder / "cutoffs.npy", cutoffs)
    return perplexity.histograms(scores, corpus.source, job.sources, cutoffs)


# ---- What the steps need ------------------------------------------------------------------------


def sample(text: str, share: float) -> tuple[str | None, str]:
    """Keep this share of all texts, chosen by a hash, so they are the same in every run. `pack`
    chooses validation documents by another hash: otherwise they would be half of a 1 % sample."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"sample").digest()
    if int.from_bytes(digest, "big") < share * 2**64:
        return text, ""
    return None, "not_sampled"


def without_personal_data(text: str, lang: str) -> str:
    """The text after the step mask."""
    masked, _ = mask.mask_personal_data(text, lang)
    return masked


def cut_lines(job: Job, text: str) -> tuple[str | None, str]:
    """The step lines: cut the lines that many documents share."""
    return load_sketch(job.folder).check(text, job.limits.characters)


def without_lines(job: Job, text: str) -> str | None:
    """The text after the step lines, if this run has that step; None if the step removed it."""
    if "lines" not in job.steps:
        return text
    text, _ = cut_lines(job, text)
    return text


@functools.lru_cache(maxsize=1)
def load_sketch(folder: Path) -> lines.Sketch:
    """The line sketch, in memory that all processes share."""
    return lines.Sketch(folder / "lines.npy")


@functools.lru_cache(maxsize=1)
def load_models(folder: Path) -> list[perplexity.Model]:
    """The one or two n-gram models, in memory that all processes share."""
    models = []
    for k in (0, 1):
        stem = folder / f"model-{k}"
        if Path(f"{stem}.keys.npy").exists():
            models.append(perplexity.Model.load(stem))
    return models


def plan_units(
    folder: Path,
    paths: list[Path],
    reading: documents.Reading,
) -> list[list[documents.Span]]:
    """Divide the input into units. Planning reads every large file to count its lines, so it is
    done once; a resumed run finds the units in the work folder."""
    file = folder / "units.pickle"
    if file.exists():
        return pickle.loads(file.read_bytes())
    units = documents.units(paths, reading)
    with cli.new_file(file) as temporary:
        temporary.write_bytes(pickle.dumps(units))
    return units
