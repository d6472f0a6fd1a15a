"""What the studies share: an arm is a run of train.py that is made once, and measured as it goes.

A study can be stopped at any time. Started again with the same command it skips the arms that are
finished, and resumes the one that was not. Beside each arm's folder, and beside everything else
that is made once, two files are kept: the flags that it was asked for (what exists for other flags
is an error, not a result), and what train.py printed.

An arm can measure a language that it does not train on: a source of weight NEVER is validated like
any other, and its first window would be drawn after hundreds of thousands of others
(furthest_behind in data.py).
"""
import argparse
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from common import cli
from studies import plot
from studies.report import table
from studies.runs import run_settings, steps, validations

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, ROOT / "train.py"]
NEVER = 1e-6


def parser(doc: str, prog: str, tokens: str) -> cli.Parser:
    """The flags that all studies have. `tokens` says what --tokens counts."""
    parser = cli.Parser(description=doc, prog=f"studies.{prog.removesuffix('.py')}")
    flag = parser.add_argument
    flag("--out", type=Path, required=True, help="folder for the arms, the JSON and the figure")
    flag("--tokens", type=int, default=300_000, help=tokens)
    flag("--lr", type=float, default=2e-3, help="peak learning rate of every arm")
    flag("--seq_len", type=int, default=256, help="tokens per window")
    flag("--batch_tokens", type=int, default=2048, help="tokens per step")
    flag("--eval_bytes", type=int, default=100_000, help="bytes of validation text of each source")
    flag("--train_flags", type=shlex.split, default="",
         help="more flags for train.py, in one string: --train_flags='--compile --dtype bfloat16'")
    return parser


def start(args: argparse.Namespace, **least: float) -> dict:
    """Begin a study: print its settings, make its folder, return the settings.

    `least`: the smallest value that a flag may have. UserError if one is below.
    """
    for name, low in {"tokens": 1, "lr": 1e-9, **least}.items():
        if getattr(args, name) < low:
            raise cli.UserError(f"--{name} {getattr(args, name)} is not at least {low:g}")
    settings = cli.settings(args)
    args.out.mkdir(parents=True, exist_ok=True)
    return settings


def full(args: argparse.Namespace, tokens: float, what: str = "full") -> list[str]:
    """--stages of an arm with a single stage."""
    return [f"{what}:{round(tokens)}:{args.lr}"]


# ---- Made once -----------------------------------------------------------------------------------


def same(made: Path, wanted: list, there: bool) -> None:
    """Write down, beside MADE, what it was asked for. UserError if it exists and was made for
    something else."""
    note = made.with_name(f"{made.name}.flags.json")
    if there and note.exists() and cli.read_json(note) != wanted:
        raise cli.UserError(f"{made} was made with other flags ({note}); choose another --out")
    cli.write_json(note, wanted)


def words_of(flags: dict) -> list[str]:
    """Flags as the words of a command line; a flag that is None is left out.

    >>> words_of({"lr": 0.1, "data": ["a", "b"], "keep": None})
    ['--lr', '0.1', '--data', 'a', 'b']
    """
    words = []
    for name, value in flags.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(value) for value in values)]
    return words


def command(argv: list, log) -> None:
    """Run a program to its end.

    SIGTERM and Ctrl-C are handed on, and the program's answer is waited for: train.py saves first.
    """
    child = subprocess.Popen(argv, stdout=log, stderr=log)
    handlers = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        handlers[number] = signal.signal(number, lambda *_: child.terminate())
    child.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def train(args: argparse.Namespace, name: str, program: list = TRAIN, **flags) -> Path:
    """The run OUT/name of train.py, or of a program with the same flags.

    Nothing happens if it is finished; it is resumed if it was stopped. UserError if it fails.
    """
    run = args.out / name
    common = {
        "seq_len": args.seq_len,
        "batch_tokens": args.batch_tokens,
        "eval_bytes": args.eval_bytes,
    }
    argv = words_of({**common, **flags}) + args.train_flags
    begun = (run / "config.json").exists()
    same(run, argv, begun)
    if (run / "model").exists():
        return run

    print(f"training {run}; {run}.log shows how far it is", flush=True)
    if begun:
        words = ["--resume", run]
    else:
        words = ["--out", run, *argv]
    with open(f"{run}.log", "a", encoding="utf-8") as log:
        command([*program, *words], log)

    if not (run / "model").exists():
        printed = Path(f"{run}.log").read_text(encoding="utf-8").strip().splitlines()
        last = printed[-1].strip() if printed else "nothing was printed"
        raise cli.UserError(f"train.py stopped before {run} was finished ({last}); {run}.log says "
                            "more, and the same command resumes it")
    return run


def pack(text: str | Path, tokenizer: str | Path, folder: Path, **flags) -> Path:
    """Pack documents into FOLDER, unless it exists. UserError if that fails."""
    argv = words_of({"input": text, "tokenizer": tokenizer, **flags})
    same(folder, argv, folder.exists())
    if not folder.exists():
        done = subprocess.run(
            [sys.executable, ROOT / "data.py", "pack", *argv, "--out", folder],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            raise cli.UserError(f"{text} was not packed: {reason}")
    return folder


# ---- Measured ------------------------------------------------------------------------------------


def measured(run: Path) -> list[dict]:
    """A row for the start and for each validation of a run: {"stage", "step", "tokens", "seconds"
    of training so far, "scores": bits per byte of each source, "losses": nats per token}."""
    batch_tokens = run_settings(run)["batch_tokens"]
    trained = steps(run)
    rows = []
    for record in validations(run):
        now = (record["stage"], record["step"])
        seconds = 0.0
        for step in trained:
            if (step["stage"], step["step"]) <= now:
                seconds += batch_tokens / step["tokens_per_second"]
        found = record["validation"]
        rows.append({
            "stage": record["stage"],
            "step": record["step"],
            "tokens": record["tokens"],
            "seconds": seconds,
            "scores": {name: score["bits_per_byte"] for name, score in found.items()},
            "losses": {name: score["loss"] for name, score in found.items()},
        })
    return rows


def shown(values: list[float]) -> str:
    """A number that was measured once per seed: its mean, and the sample's standard deviation if
    there are several.

    >>> shown([1.0, 2.0, 3.0]), shown([0.5])
    ('2.000 ± 1.000', '0.500')
    """
    mean = f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.3f}"


def write(
    args: argparse.Namespace,
    name: str,
    result: dict,
    header: list[str],
    rows: list[list],
    draw: Callable,
    panels: int = 1,
) -> None:
    """Print the table; write OUT/name.json and OUT/name.svg."""
    cli.write_json(args.out / f"{name}.json", result)
    print(table(header, rows))
    plot.figure(args.out / f"{name}.svg", draw, panels)
