"""The entries of --data, and how far a run has read them.

Which window of a source comes next is a function of a seed and of how many windows were drawn
(data.Loader). So these counts are a position in the data: a checkpoint holds them, every model
directory that training writes has them in training_state.json, and a new run can begin where
another one stopped (--skip_seen).
"""
from pathlib import Path

from common import checkpoint, cli
from common.cli import UserError

# Settings under which equal counts name the same windows: as Loader.state_dict has them, as flags.
ORDER_FLAGS = {"seed": "--seed", "seq_len": "--seq_len", "as_packed": "--order"}


# ------------------------------------------------------------------------------- entries of --data


def split_entry(entry: str) -> tuple[str, str]:
    """The folder of an entry, and its weight as it is written; 1 where there is none.

    >>> split_entry("runs/lr=1e-3/ko=0.5:0.9")
    ('runs/lr=1e-3/ko', '0.5:0.9')
    >>> split_entry("runs/lr=1e-3/ko")
    ('runs/lr=1e-3/ko', '1')
    """
    # People name folders lr=1e-3: what is there as it is written has no weight.
    if Path(entry, "index.json").exists():
        return entry, "1"
    folder, equals, weight = entry.rpartition("=")
    if not equals or "/" in weight:
        return entry, "1"
    return folder, weight


def parse_source(entry: str) -> tuple[str, tuple[float, float]]:
    """An entry of --data: the folder, its weight at a stage's start and at its end.

    >>> parse_source("shards/ko=0.5:0.9")
    ('shards/ko', (0.5, 0.9))
    """
    folder, weight = split_entry(entry)
    try:
        ends = [float(number) for number in weight.split(":")]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2):
        raise UserError(f"--data {entry}: {weight!r} is not a weight; write FOLDER=0.75, or "
                        "FOLDER=0.5:0.9")
    if not (min(ends) >= 0 and max(ends) > 0):
        raise UserError(f"--data {entry}: a weight is above 0")
    return folder, (ends[0], ends[-1])


def with_weight(entry: str) -> str:
    """The entry with its weight spelt out: it can be read where the folder is not."""
    folder, weight = split_entry(entry)
    return f"{folder}={weight}"


# ------------------------------------------------------------------------- a position in the data


def read_state(folder: Path) -> dict | None:
    """A folder's training_state.json; None if there is none, or if another program wrote it."""
    file = folder / "training_state.json"
    if not file.exists():
        return None
    state = cli.read_json(file)
    is_ours = isinstance(state, dict) and "stage" in state and "loader" in state
    return state if is_ours else None


def position(folder: Path) -> dict:
    """The training state of a model directory that training wrote, or the newest of a run: of its
    newest whole checkpoint, or of its last finished stage if that is later. UserError if there is
    none."""
    newest = read_state(folder)
    if newest:
        return newest

    # A stage that is finished is later than its own checkpoints.
    for stage in folder.glob("stages/[0-9]*-*"):
        state = read_state(stage)
        if state and (newest is None or state["stage"] > newest["stage"]):
            newest = state
    found = checkpoint.newest(folder)
    if found:
        _, counters = found
        if newest is None or counters["stage"] > newest["stage"]:
            newest = counters

    if newest is None:
        raise UserError(f"--skip_seen {folder}: nothing there says what was seen of the data; name "
                        "the folder of a run with a checkpoint or a finished stage, or a model "
                        "directory with a training_state.json")
    return newest


def seen_before(folder: Path, order: dict, hashes: list[str]) -> list[int]:
    """--skip_seen: the windows of each source that the training in `folder` has seen. `order`, as
    Loader.state_dict has it, and `hashes`, of each source's index.json, are those of the run that
    begins. UserError if the counts would name other windows there."""
    state = position(folder)
    loader = state["loader"]

    # Under other settings the same windows come in another order: the counts say nothing about it.
    for key, flag in ORDER_FLAGS.items():
        before = as_flag(key, loader[key])
        now = as_flag(key, order[key])
        if before != now:
            raise UserError(f"--skip_seen {folder}: that training had {flag} {before}, this run "
                            f"{now}, so its windows would come in another order; give {flag} "
                            f"{before}")

    # A source's number, too, is part of what its order is drawn from. States of an older version
    # have no hashes.
    counts = loader["counts"]
    known = state.get("data", [])
    in_places = "name the same shards in the same places, and further ones behind them"
    for number, (before, now) in enumerate(zip(known, hashes, strict=False), 1):
        if before != now:
            raise UserError(f"--skip_seen {folder}: source {number} of --data is not what that "
                            f"training read; {in_places}")
    # The last ones may be left out: that moves no other.
    if known:
        counts = counts[: len(hashes)]
    if len(counts) > len(hashes):
        raise UserError(f"--skip_seen {folder}: that training read {len(counts)} sources, --data "
                        f"has {len(hashes)}; {in_places}")
    return counts


def as_flag(key: str, value) -> str:
    """A setting of the loader as its flag has it."""
    if key == "as_packed":
        return "as_packed" if value else "shuffled"
    return str(value)


def seen_again(model: Path, order: dict, hashes: dict[str, str]) -> str:
    """The windows that the training of a model has seen, of sources that a new run would begin
    again in the same order: in words, "" if there are none. `hashes`: of each source's index.json,
    by the source's name, in the order of --data."""
    state = read_state(model)
    if state is None:
        return ""
    loader = state["loader"]
    if any(loader[key] != order[key] for key in ORDER_FLAGS):
        return ""

    # States of an older version have no hashes: nothing can be said then. In another place of
    # --data a source has another order.
    again = []
    seen = zip(state.get("data", []), loader["counts"], strict=False)
    for (before, count), (name, now) in zip(seen, hashes.items(), strict=False):
        if before == now and count > 0:
            again.append(f"{count:,} windows of {name}")
    return " and ".join(again)
