"""What is done to a unit of documents, in three passes (and a small one to count lines). Each is one task of work.py:
it reads files, writes documents to `out`, what happened to `tally`, and returns arrays, one value a document."""
import argparse
import functools
import json
from pathlib import Path
from typing import IO

import numpy as np

from cleaning import duplicates, lines, perplexity, rules
from cleaning.corpus import Corpus, load
from cleaning.report import Step, Tally
from common import cli, documents

AT_ONCE = 1000  # documents that wait to be hashed or scored together; a unit may hold far more if it is compressed,
LONG = 2**18    # and one of so many bytes or characters ends the wait: else a thousand books would be in memory


class Job:
    """What the passes have in common. It is sent to a process once, at the start; what the passes before have left in
    the folder is read when first needed."""

    def __init__(self, folder: Path, args: argparse.Namespace, names: list[str], steps: dict[str, Step], sources: list):
        self.folder, self.encoding, self.names, self.steps = folder, args.encoding, names, steps
        self.characters = rules.LIMITS[args.lang][args.profile].characters
        self.sources = {source: i for i, source in enumerate(sources)}

    @functools.cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.folder / "corpus.json")

    @functools.cached_property
    def kept(self) -> np.ndarray:
        return np.load(self.folder / "kept.npy", mmap_mode="r")

    @functools.cached_property
    def sketch(self) -> lines.Sketch:
        return lines.Sketch(self.folder / "lines.npy")

    @functools.cached_property
    def models(self) -> list[perplexity.Model]:
        return [perplexity.Model.load(path.with_suffix("").with_suffix(""))
                for path in sorted(self.folder.glob("model-?.keys.npy"))]

    def without_lines(self, text: str) -> bool | str:
        """The text as it leaves the step "lines", False if it does not."""
        if "lines" not in self.names:
            return text
        answer, _ = self.sketch.check(text, self.characters)
        return text if answer is True else answer


def first_pass(job: Job, spans: list[documents.Span], tally: Tally, out: IO[bytes]) -> dict[str, np.ndarray]:
    """Raw lines -> the documents that the steps keep which look at one at a time, and the hashes of each."""
    rows, ends, n_lines, keys, bands, waiting = [], [0], [], [], [], []
    steps = {name: job.steps[name] for name in job.names if name in job.steps and name != "decontaminate"}

    def finish() -> None:
        texts = tally.take([document["text"] for document, _ in waiting], steps, [where for _, where in waiting])
        for text, (document, where) in zip(texts, waiting, strict=True):
            if text:
                line = json.dumps(document | {"text": text}, ensure_ascii=False).encode() + b"\n"
                ends.append(ends[-1] + out.write(line))
                rows.append((job.sources[where["file"]], where["line"], len(text.encode())))
        texts = [*filter(None, texts)]
        keys.append(np.frombuffer(b"".join(map(duplicates.exact_key, texts)), np.uint64).reshape(-1, 2))
        bands.append(duplicates.band_hashes(texts if "near" in job.names else [""] * len(texts)))
        waiting.clear()

    for span in spans:
        source = str(span.path)
        for number, raw in documents.lines(span.path, span.start, span.end):
            if raw is None:
                n_lines.append((job.sources[source], number))
                break
            try:
                document = documents.parse(raw, span.path, job.encoding)
            except ValueError as error:
                shown = repr(raw[:100]) if isinstance(raw, bytes) else ""
                tally.record("rejected.jsonl", "read", str(error), {"file": source, "line": number}, shown)
                continue
            tally.passed(source, "read", "in", len(document["text"].encode()))
            waiting.append((document, {"file": source, "line": number, "id": document.get("id")}))
            if len(waiting) == AT_ONCE or len(raw) > LONG:
                finish()
        if documents.stamp(span.path) != span.stamp:
            raise cli.UserError(f"{span.path} was changed while it was read; run again when it is whole")
    finish()
    source, number, size = np.array(rows, np.int64).reshape(-1, 3).T
    return {"source": source.astype(np.uint32), "number": number, "offset": np.array(ends[:-1], np.uint64),
            "size": size.astype(np.uint32), "keys": np.concatenate(keys), "bands": np.concatenate(bands),
            "spans": np.array(n_lines, np.int64).reshape(-1, 2)}


def count_pass(job: Job, unit: int, tally: Tally, out: IO[bytes]) -> dict[str, np.ndarray]:
    """-> lines' hashes, and in how many of the unit's documents each is."""
    hashes, counts = lines.count(document["text"] for _, _, document in job.corpus.read(unit, job.kept))
    return {"hashes": hashes, "counts": counts}


def score_pass(job: Job, unit: int, tally: Tally, out: IO[bytes]) -> dict[str, np.ndarray]:
    """-> bits a character of the unit's documents, nan for those that are gone or too short to say. A document whose
    number is even is scored by the model that was trained on odd ones."""
    start = job.corpus.starts[unit]
    scores = np.full(job.corpus.starts[unit + 1] - start, np.nan, np.float32)
    waiting: list[dict[int, str]] = [{} for _ in job.models]

    def score(model: perplexity.Model, texts: dict[int, str]) -> None:
        scores[list(texts)] = model.bits(list(texts.values()))
        texts.clear()

    for i, _, document in job.corpus.read(unit, job.kept):
        text = job.without_lines(document["text"])
        if text and len(text) >= perplexity.SHORTEST:
            texts = waiting[(i + 1) % len(job.models)]
            texts[i - start] = text
            if len(texts) == AT_ONCE or len(text) > LONG:
                score(job.models[(i + 1) % len(job.models)], texts)
    for model, texts in zip(job.models, waiting, strict=True):
        score(model, texts)
    return {"scores": scores}


def last_pass(job: Job, unit: int, tally: Tally, out: IO[bytes]) -> dict[str, np.ndarray]:
    """-> the steps that need to know of all documents, and the rest; in `out` what the corpus has become. "runs" says
    how many bytes of it belong to which source."""
    runs: list[list[int]] = []
    if "perplexity" in job.names:
        scores, cuts = load(f"{job.folder}/score/{unit:06}", "scores")[0].tolist(), load(job.folder / "cuts", "cuts")[0]
    steps = {"lines": lambda texts: [job.sketch.check(text, job.characters) for text in texts],
             "perplexity": lambda texts: [perplexity.verdict(scores[row], *cuts[source]) for _ in texts],
             "decontaminate": job.steps.get("decontaminate")}
    steps = {name: step for name, step in steps.items() if name in job.names}
    for i, where, document in job.corpus.read(unit, job.kept):
        source, row = job.sources[where["file"]], i - job.corpus.starts[unit]
        if text := tally.take([document["text"]], steps, [where])[0]:
            tally.passed(where["file"], "write", "out", len(text.encode()))
            if not runs or runs[-1][0] != source:
                runs.append([source, 0])
            runs[-1][1] += out.write(json.dumps(document | {"text": text}, ensure_ascii=False).encode() + b"\n")
    return {"runs": np.array(runs, np.int64).reshape(-1, 2)}
