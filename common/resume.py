"""What may change when a run is resumed, what may not, and where its inputs are now.

`train.py --resume RUN` takes its settings from RUN/config.json and applies the flags of the command
line on top. The training must stay that of the run, so there are four kinds of flags:

    MAY_CHANGE    do not change the numbers (memory, speed, how often to save)
    PLACES        say where an input is now; its hash shows whether it is still the same input
    --stages      finished stages stay, later ones may change (check_stages)
    all others    keep their value; a different one is an error

A flag with its saved value is not a change, so --resume RUN can be appended to the command line
that started the run.
"""
import argparse
import os
from collections.abc import Callable
from pathlib import Path

from common import checkpoint, cli, plan, sources
from common.cli import UserError

# These do not change what is computed. The last bits may differ, because another micro-batch,
# kernel or device sums in another order.
MAY_CHANGE = (
    "save_every",
    "eval_every",
    "eval_bytes",
    "keep",
    "micro_batch",
    "recompute",
    "compile",
    "kernels",
    "deterministic",
    "device",
)

# Folders and files that may have moved.
PLACES = ("model", "config", "tokenizer", "data")

# All flags except these are saved in RUN/config.json.
NOT_SAVED = ("resume", "plan", "world_size", "gpu", "tflops", "out")

# For these, 0 is a default that depends on the model. config.json has the resulting value.
ZERO_IS_DEFAULT = ("seq_len", "batch_tokens", "lora_rank", "lora_alpha")


def settings_of(
    parser: cli.Parser,
    words: list[str],
    learning_rate_at: Callable[[int, plan.Stage, argparse.Namespace], float],
) -> argparse.Namespace:
    """The settings of the run that --resume names in `words`, the command line: its saved ones,
    with what `words` changes. Prints the changes. UserError for a change that is not allowed.

    learning_rate_at(step, stage, args): the learning rate at a step of a stage, counted from 0."""
    run = Path(parser.parse_args(words).resume)
    saved = saved_settings(parser, run)

    # argparse does not override values that a namespace has already by its defaults.
    args = parser.parse_args(words, argparse.Namespace(**vars(saved)))
    args.data = with_saved_weights(args.data, saved.data)
    for name in ZERO_IS_DEFAULT:
        if getattr(args, name) == 0:
            setattr(args, name, getattr(saved, name))
    if os.path.realpath(args.out) != os.path.realpath(run):
        raise UserError(f"--out {args.out} is not {run}, the run that --resume continues; "
                        "drop --out")
    args.out = saved.out

    places = list(PLACES)
    has_its_start = checkpoint.random_start(run).exists()
    if has_its_start:
        # --config and --tokenizer are not read again once the random model has been made from them.
        places.remove("config")
        places.remove("tokenizer")
    refuse_other_settings(run, saved, args, places)

    changes = changed_flags(saved, args)
    changes += check_stages(run, saved, args, learning_rate_at)
    for name in places:
        find_input(name, saved, args)
    if changes:
        cli.say(f"changed from here on: {'; '.join(changes)}")
    return args


def with_saved_weights(entries: list[str], saved: list[str]) -> list[str]:
    """The entries of --data, with the run's saved weights if none has a weight, so that users who
    say where the folders are now need not repeat them.

    >>> with_saved_weights(["new/ko", "new/en"], ["ko=0.75", "en=0.25"])
    ['new/ko=0.75', 'new/en=0.25']
    """
    spelled_out = [sources.with_weight(entry) for entry in entries]
    has_no_weights = spelled_out == [f"{entry}=1" for entry in entries]
    if not has_no_weights or len(entries) != len(saved):
        return spelled_out
    weights = [sources.split_entry(entry)[1] for entry in saved]
    return [f"{entry}={weight}" for entry, weight in zip(entries, weights, strict=True)]


# ------------------------------------------------------------------------------ the saved settings


def saved_settings(parser: cli.Parser, run: Path) -> argparse.Namespace:
    """The settings in RUN/config.json, each checked like its flag, because the file may have been
    edited."""
    file = run / "config.json"
    values = checkpoint.read_settings(run)
    # Older versions did not save it, and had to be resumed in the same directory.
    started_in = values.pop("started_in", os.getcwd())

    # Older versions had fewer flags, and later ones may have more.
    defaults = vars(parser.parse_args([]))
    for name in values:
        if name not in defaults or name in NOT_SAVED:
            raise UserError(f"{file} has {name!r}, which is not a flag of this version of "
                            "train.py; resume with the version that wrote it, or delete the line")
    for name, value in defaults.items():
        if name not in values and name not in NOT_SAVED:
            cli.say(f"{file} has no --{name} (an older version wrote it); using the default, "
                    f"{value}")

    words = []
    for name, value in values.items():
        if value is None or value is False:
            continue  # a flag that was not given
        words.append(f"--{name}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    saved = parser.parse_args(words)
    saved.data = [sources.with_weight(entry) for entry in saved.data]
    saved.out = str(run)
    saved.started_in = started_in
    return saved


# ------------------------------------------------------------------------------------- the rules


def refuse_other_settings(
    run: Path, saved: argparse.Namespace, args: argparse.Namespace, places: list[str]
) -> None:
    """UserError that names every flag whose value differs from the run's but may not."""
    free = (*MAY_CHANGE, *NOT_SAVED, "stages", "started_in")
    differing = []
    for name, before in vars(saved).items():
        now = getattr(args, name)
        # An input may have moved. But --model cannot be dropped, and --data must keep its number of
        # sources and their weights.
        if name in free or same_but_for_places(name, before, now, places):
            continue
        differing.append(f"--{name} {as_words(before)}, not {as_words(now)}")
    if differing:
        flags = " ".join(f"--{name}" for name in MAY_CHANGE)
        raise UserError(f"{run} was started with {'; '.join(differing)}, which cannot change. "
                        f"--resume takes --stages, --data folders that have moved, and {flags}; "
                        "for anything else, start a new run, with one of this run's stages or what "
                        "export.py makes of it as --model and as --skip_seen")


def same_but_for_places(name: str, before, now, places: list[str]) -> bool:
    """Is a setting the same, apart from where its folders and files are?"""
    if before == now:
        return True
    if name not in places or before is None or now is None:
        return False
    if name != "data":
        return True
    weights_before = [sources.parse_source(entry)[1] for entry in before]
    weights_now = [sources.parse_source(entry)[1] for entry in now]
    return weights_before == weights_now


def changed_flags(saved: argparse.Namespace, args: argparse.Namespace) -> list[str]:
    """The flags that change, except --stages, for a message."""
    changes = []
    for name in (*MAY_CHANGE, *PLACES):
        before = getattr(saved, name)
        now = getattr(args, name)
        if before != now:
            changes.append(f"--{name} {as_words(before)} → {as_words(now)}")
    return changes


def as_words(value) -> str:
    """A setting as it is typed on the command line."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def check_stages(
    run: Path,
    saved: argparse.Namespace,
    args: argparse.Namespace,
    learning_rate_at: Callable,
) -> list[str]:
    """What changes in --stages, for a message. UserError for a change that is not allowed.

    A finished stage stays as it was. A stage that has begun keeps what it trains, but may have
    another learning rate, and more tokens or fewer, as long as there are more than it has seen. A
    stage that has not begun may change freely."""
    before = [plan.parse_stage(text) for text in saved.stages]
    now = [plan.parse_stage(text) for text in args.stages]
    finished = checkpoint.finished_stages(run, before)
    changes = []
    for number, old in enumerate(before, 1):
        new = None
        text = "left out"
        if number <= len(now):
            new = now[number - 1]
            text = args.stages[number - 1]
        if new == old:
            continue  # even if it is written differently: 1B is 1000M

        if number <= finished:
            raise UserError(f"--stages: stage {number} is finished and stays as it was, "
                            f"{saved.stages[number - 1]}; add another stage after it")
        change = f"stage {number}: {saved.stages[number - 1]} → {text}"
        checkpoints = checkpoint.find(run, number)
        if checkpoints:
            done = checkpoint.step_of(checkpoints[0])
            check_begun_stage(number, old, new, done, saved.batch_tokens)
            rate_before = learning_rate_at(done, old, args)
            rate_now = learning_rate_at(done, new, args)
            change += (f" (learning rate at step {done + 1}: {rate_now:.3g} instead of "
                       f"{rate_before:.3g})")
        changes.append(change)

    for number in range(len(before) + 1, len(now) + 1):
        changes.append(f"stage {number}: {args.stages[number - 1]} is new")
    return changes


def check_begun_stage(
    number: int, old: plan.Stage, new: plan.Stage | None, done: int, batch_tokens: int
) -> None:
    """UserError if a stage with `done` steps in a checkpoint cannot become `new`."""
    if new is None or new.what != old.what:
        raise UserError(f"--stages: stage {number} has begun to train {old.what} and must stay; "
                        "only its learning rate and number of tokens may change, such as "
                        f"{old.what}:{(done + 1) * batch_tokens}:{old.peak_lr} to end it soon")
    if new.steps(batch_tokens) <= done:
        raise UserError(f"--stages: stage {number} has trained {done} steps, so it needs more than "
                        f"{done * batch_tokens} tokens: {old.what}:{(done + 1) * batch_tokens}:"
                        f"{new.peak_lr} ends it after the next step")


# ------------------------------------------------------------------------- where the inputs are now


def find_input(name: str, saved: argparse.Namespace, args: argparse.Namespace) -> None:
    """Make one of PLACES a path that can be opened from here and saved in config.json."""
    before = getattr(saved, name)
    now = getattr(args, name)
    if now is None:
        return
    is_given = now != before
    if name != "data":
        example = f"--{name} PATH"
        setattr(args, name, where_now(now, is_given, saved.started_in, example))
        return

    example = "--data with all folders, in the same order and with the same weights"
    entries = []
    for entry in now:
        folder, weight = sources.split_entry(entry)
        entries.append(f"{where_now(folder, is_given, saved.started_in, example)}={weight}")
    args.data = entries


def where_now(path: str, is_given: bool, started_in: str, example: str) -> str:
    """Where a path is now. A path from config.json is relative to the directory in which the run
    was started, or, if everything was moved together, to this one. If it is in neither, UserError
    with `example`, the flag that says where it is."""
    here = os.getcwd()
    if is_given:
        directories = [here]
    else:
        directories = [started_in, here]
    for directory in directories:
        there = Path(directory, path)
        if there.exists():
            # In the directory where the run was started, a relative path stays relative, so that
            # everything can be moved together later. Elsewhere config.json gets the full path.
            return path if here == started_in else str(there)

    if is_given:
        raise UserError(f"there is no {path}; say where it is: {example}")
    if os.path.isabs(path):
        raise UserError(f"{path} is no longer there; say where it is now: {example}")
    raise UserError(f"{path} is neither in {started_in} nor here; say where it is now: {example}")
