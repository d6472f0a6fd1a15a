"""What the measurements in bench/ share: the machine, interleaved runs, a table, a JSON file.

Every result names its processor, threads and versions. Machines are noisy, so contenders take
turns (A B C, A B C, …) and medians are compared: a slow minute then hits all of them alike.
Run them from the project's folder: `python -m bench.kernels`.
"""
import json
import os
import platform
import statistics
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
KEYS = ("stage", "step", "tokens", "loss", "lr", "grad_norm")


def machine(*packages: str) -> dict:
    """Processor, GPU, threads, and the versions of torch, triton and `packages` (None: missing)."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    versions = {}
    for name in ("torch", "triton", *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(), **versions}


def interleaved(
    contenders: dict[str, Callable[[], float]],
    runs: int = 5,
) -> dict[str, list[float]]:
    """Call each contender once per turn, for `runs` turns; each returns its figure (seconds, tokens
    per second, …)."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, contender in contenders.items():
            figures[name].append(contender())
    return figures


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), fifths[0], fifths[3]


def table(rows: list[dict]) -> str:
    """The rows, which share their keys, as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    for row in rows:
        lines.append([shown(value) for value in row.values()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value) -> str:
    """A cell of a table: floats with four digits.

    >>> shown(0.123456), shown("text")
    ('0.1235', 'text')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def line(row: dict) -> str:
    """A row on one line, for the screen: name value, name value, … with four digits."""
    words = []
    for name, value in row.items():
        words.append(f"{name} {shown(value)}")
    return ", ".join(words)


def save(name: str, rows: list[dict], conditions: dict, **extra) -> Path:
    """Write bench/results/NAME.json. Long measurements call it after every row, so that a kill
    costs one row."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    result = {"conditions": conditions, "rows": rows, **extra}
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return file


def report(name: str, rows: list[dict], conditions: dict, **extra) -> None:
    """Print the table and its conditions, and write both to bench/results/NAME.json."""
    print(json.dumps(conditions))
    print(table(rows))
    file = save(name, rows, conditions, **extra)
    print(f"written to {file.relative_to(ROOT)}")


def steps(run: Path) -> list[tuple]:
    """What must be equal, of every training step."""
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [tuple(record[key] for key in KEYS) for record in records if "loss" in record]


def difference(run: Path, other: Path) -> str:
    """The first thing in which two finished runs differ, or nothing."""
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    changed = [name for name in a if not a[name].equal(b[name])]
    if changed:
        return f"weights: {changed[0]}"
    return "" if steps(run) == steps(other) else "metrics"
