"""What the studies share: an arm is a run of train.py, made once, measured as it goes, put into a table and a figure.

A study may be stopped at any time: started again with the same command, it skips the arms that are finished and goes on
with the one that was not. Beside each arm's folder, and all else that is made once, lie the flags that it was asked for
(what is there for other flags is an error, not a result), and what train.py printed.

An arm may measure a language that it does not train on: a source of weight NEVER is validated like every other, and
its first window would be drawn after hundreds of thousands of others (furthest_behind in data.py).
"""
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
    """A study's flags, as far as all have the same ones. `tokens` says what --tokens counts."""
    p = cli.Parser(description=doc, prog=f"studies.{prog.removesuffix('.py')}")
    flag = p.add_argument
    flag("--out", type=Path, required=True, help="folder for the arms, the JSON and the figure")
    flag("--tokens", type=int, default=300_000, help=tokens)
    flag("--lr", type=float, default=2e-3, help="peak learning rate of every arm")
    flag("--seq_len", type=int, default=256, help="tokens a window")
    flag("--batch_tokens", type=int, default=2048, help="tokens a step")
    flag("--eval_bytes", type=int, default=100_000, help="bytes of validation text of each source")
    flag("--train_flags", type=shlex.split, default="",
         help="more flags for train.py, in one string: --train_flags='--compile --dtype bfloat16'")
    return p


def start(args, **least: float) -> dict:
    """Check numbers of the command line against the least they may be; print the settings, make OUT, return them."""
    for name, low in {"tokens": 1, "lr": 1e-9, **least}.items():
        if getattr(args, name) < low:
            raise cli.UserError(f"--{name} {getattr(args, name)} is not at least {low:g}")
    settings = cli.settings(args)
    args.out.mkdir(parents=True, exist_ok=True)
    return settings


def full(args, tokens: float, what: str = "full") -> list[str]:
    """--stages of an arm that has one."""
    return [f"{what}:{round(tokens)}:{args.lr}"]


def same(made: Path, wanted: list, there: bool) -> None:
    """Note beside what is MADE for what it was asked; UserError if it is there, and was made for something else."""
    note = made.with_name(f"{made.name}.flags.json")
    if there and note.exists() and cli.read_json(note) != wanted:
        raise cli.UserError(f"{made} was made with other flags ({note}); choose another --out")
    cli.write_json(note, wanted)


def command(argv: list, log) -> None:
    """Run a program to its end. A SIGTERM or Ctrl-C is handed on, and its answer waited for: train.py saves first."""
    child = subprocess.Popen(argv, stdout=log, stderr=log)
    old = {number: signal.signal(number, lambda *_: child.terminate()) for number in (signal.SIGTERM, signal.SIGINT)}
    child.wait()
    for number, handler in old.items():
        signal.signal(number, handler)


def train(args, name: str, program: list = TRAIN, **flags) -> Path:
    """The run OUT/name of train.py, or of a program with its flags: nothing if it is finished, resumed if it was
    stopped. UserError if it fails."""
    run = args.out / name
    wanted = {"seq_len": args.seq_len, "batch_tokens": args.batch_tokens, "eval_bytes": args.eval_bytes, **flags}
    argv = [str(word) for key, value in wanted.items() if value is not None
            for word in (f"--{key}", *(value if isinstance(value, list) else [value]))] + args.train_flags
    begun = (run / "config.json").exists()
    same(run, argv, begun)
    if (run / "model").exists():
        return run
    print(f"training {run}; {run}.log shows how far it is", flush=True)
    with open(f"{run}.log", "a", encoding="utf-8") as log:
        command([*program, *(["--resume", run] if begun else ["--out", run, *argv])], log)
    if not (run / "model").exists():
        last = Path(f"{run}.log").read_text(encoding="utf-8").strip().splitlines()[-1:] or ["nothing was printed"]
        raise cli.UserError(f"train.py stopped before {run} was finished ({last[0].strip()}); {run}.log says more, "
                            "and the same command goes on from there")
    return run


def pack(text: str | Path, tokenizer: str | Path, folder: Path, **flags) -> Path:
    """Pack documents into FOLDER, if it is not there yet. UserError if that fails."""
    flags = {"input": text, "tokenizer": tokenizer, **flags}
    argv = [str(word) for key, value in flags.items() for word in (f"--{key}", value)]
    same(folder, argv, folder.exists())
    if not folder.exists():
        done = subprocess.run([sys.executable, ROOT / "data.py", "pack", *argv, "--out", folder],
                              capture_output=True, text=True)
        if done.returncode:
            raise cli.UserError(f"{text} was not packed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def measured(run: Path) -> list[dict]:
    """A row for the start, and for each validation of a run: {"stage", "step", "tokens", "seconds" of training so far,
    "scores": bits a byte of each source, "losses": nats a token}."""
    batch, trained, rows = run_settings(run)["batch_tokens"], steps(run), []
    for record in validations(run):
        done = [r for r in trained if (r["stage"], r["step"]) <= (record["stage"], record["step"])]
        rows.append({**{key: record[key] for key in ("stage", "step", "tokens")},
                     "seconds": sum(batch / r["tokens_per_second"] for r in done),
                     "scores": {name: score["bits_per_byte"] for name, score in record["validation"].items()},
                     "losses": {name: score["loss"] for name, score in record["validation"].items()}})
    return rows


def shown(values: list[float]) -> str:
    """A number that was measured once a seed: its mean, and the sample's standard deviation if there are several.

    >>> shown([1.0, 2.0, 3.0]), shown([0.5])
    ('2.000 ± 1.000', '0.500')
    """
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def write(args, name: str, result: dict, header: list[str], rows: list[list], draw: Callable,
          panels: int = 1) -> None:
    """Print the table; write OUT/name.json and OUT/name.svg."""
    cli.write_json(args.out / f"{name}.json", result)
    print(table(header, rows))
    plot.figure(args.out / f"{name}.svg", draw, panels)
