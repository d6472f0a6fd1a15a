"""The entries of --data, and how far a run has read them.

Which window of a source comes next is a function of a seed and of the number of windows drawn so
far (data.Loader). So these counts are a position in the data. They are in every checkpoint, and in
training_state.json in every model directory that training writes, and a new run can begin where
another one stopped (--skip_seen).
"""
from pathlib import Path

from common import checkpoint, cli
from common.cli import UserError

# Only with these settings equal do equal counts mean the same windows: {key in Loader.state_dict:
# flag}.
ORDER_FLAGS = {"seed": "--seed", "seq_len": "--seq_len", "as_packed": "--order"}


# ------------------------------------------------------------------------------- entries of --data


def split_entry(entry: str) -> tuple[str, str]:
    """The folder of an entry, and its weight as it is written; 1 if there is none.

    >>> split_entry("runs/lr=1e-3/ko=0.5:0.9")
    ('runs/lr=1e-3/ko', '0.5:0.9')
    >>> split_entry("runs/lr=1e-3/ko")
    ('runs/lr=1e-3/ko', '1')
    """
    # Folders may have names such as lr=1e-3. If the whole entry is a folder, it has no weight.
    if Path(entry, "index.json").exists():
        return entry, "1"
    folder, equals, weight = entry.rpartition("=")
    if not equals or "/" in weight:
        return entry, "1"
    return folder, weight


def parse_source(entry: str) -> tuple[str, tuple[float, float]]:
    """Parse an entry of --data: the folder, and its weights at the start and end of a stage.

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
        raise UserError(f"--data {entry}: a weight must be above 0, at one end of a stage at least")
    return folder, (ends[0], ends[-1])


def with_weight(entry: str) -> str:
    """The entry with its weight written out, so that it can be parsed without the folder."""
    folder, weight = split_entry(entry)
    return f"{folder}={weight}"


# ------------------------------------------------------------------------- a position in the data


def read_state(folder: Path) -> dict | None:
    """Read a folder's training_state.json; None if there is none, or another program wrote it."""
    file = folder / "training_state.json"
    if not file.exists():
        return None
    state = cli.read_json(file)
    is_ours = isinstance(state, dict) and "stage" in state and "loader" in state
    return state if is_ours else None


def position(folder: Path) -> dict:
    """The training state of a model directory that training wrote, or the newest one of a run: that
    of its newest complete checkpoint, or of its last finished stage if that is later. UserError if
    there is none."""
    newest = read_state(folder)
    if newest:
        return newest

    # The end of a finished stage is later than the stage's checkpoints.
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
        raise UserError(f"--skip_seen {folder}: nothing there says which data was seen; name a run "
                        "folder with a checkpoint or a finished stage, or a model directory with a "
                        "training_state.json")
    return newest


def seen_before(folder: Path, order: dict, hashes: list[str]) -> list[int]:
    """For --skip_seen: the number of windows of each source that the training in `folder` has seen.

    order, hashes: Loader.state_dict, and the SHA-256 of each source's index.json, of the run that
    begins. UserError if the counts would mean other windows in that run."""
    state = position(folder)
    loader = state["loader"]

    # With other settings windows come in another order, to which the counts do not apply.
    for key, flag in ORDER_FLAGS.items():
        before = as_flag(key, loader[key])
        now = as_flag(key, order[key])
        if before != now:
            raise UserError(f"--skip_seen {folder}: that training had {flag} {before}, this run "
                            f"{now}, so its windows would come in another order; give {flag} "
                            f"{before}")

    # A source's order also depends on its number. States of older versions have no hashes.
    counts = loader["counts"]
    known = state.get("data", [])
    in_places = "name the same shards in the same places, and new ones after them"
    for number, (before, now) in enumerate(zip(known, hashes, strict=False), 1):
        if before != now:
            raise UserError(f"--skip_seen {folder}: source {number} of --data is not what that "
                            f"training read; {in_places}")
    # The last sources may be left out, because that does not change the number of any other.
    if known:
        counts = counts[: len(hashes)]
    if len(counts) > len(hashes):
        raise UserError(f"--skip_seen {folder}: that training read {len(counts)} sources, --data "
                        f"has {len(hashes)}; {in_places}")
    return counts


def as_flag(key: str, value) -> str:
    """A setting of the loader as the value of its flag."""
    if key == "as_packed":
        return "as_packed" if value else "shuffled"
    return str(value)


def seen_again(model: Path, order: dict, hashes: dict[str, str]) -> str:
    """The windows that a model was trained on and that a new run would read again in the same
    order, in words; "" if there are none. `hashes`: {name of a source: SHA-256 of its index.json},
    in the order of --data."""
    state = read_state(model)
    if state is None:
        return ""
    loader = state["loader"]
    if any(loader[key] != order[key] for key in ORDER_FLAGS):
        return ""

    # States of older versions have no hashes, so nothing is known about them. In another place of
    # --data a source has another order.
    again = []
    seen = zip(state.get("data", []), loader["counts"], strict=False)
    for (before, count), (name, now) in zip(seen, hashes.items(), strict=False):
        if before == now and count > 0:
            again.append(f"{count:,} windows of {name}")
    return " and ".join(again)
