"""Read back what a run of train.py wrote: its steps and validations, its time, the text it read."""
import json
from pathlib import Path

from common import cli, sources


def read_jsonl(path: Path) -> list[dict]:
    """The records of a JSON-lines file. UserError if it cannot be read."""
    return [json.loads(line) for line in cli.read_bytes(path).splitlines()]


def check_finished(run: Path) -> None:
    """UserError that says what to do, if a run is missing or was stopped before its end."""
    if (run / "model").exists():
        return
    if (run / "config.json").exists():
        raise cli.UserError(
            f"{run} was stopped before its end; resume it: python train.py --resume {run}"
        )
    raise cli.UserError(f"there is no run in {run}; bash speedrun.sh trains what is missing")


def run_settings(run: Path) -> dict:
    """The settings that a run was started with, defaults included."""
    return cli.read_json(run / "config.json")


def steps(run: Path) -> list[dict]:
    """The records of a run's metrics.jsonl that are training steps."""
    return [record for record in read_jsonl(run / "metrics.jsonl") if "loss" in record]


def validations(run: Path) -> list[dict]:
    """The records of a run's metrics.jsonl that are validations."""
    return [record for record in read_jsonl(run / "metrics.jsonl") if "validation" in record]


def seconds(run: Path) -> float:
    """Time that a run spent in training steps, without validation and checkpoints."""
    batch_tokens = run_settings(run)["batch_tokens"]
    return sum(batch_tokens / record["tokens_per_second"] for record in steps(run))


def bytes_read(run: Path) -> dict[Path, float]:
    """Bytes of text that a run read from each of its folders of shards, computed from the number of
    windows it drew.

    UserError if the run is not finished, because it has not read everything yet.
    """
    check_finished(run)
    settings = run_settings(run)
    stage_folders = sorted((run / "stages").glob("[0-9]*-*"), key=stage_number)
    state = cli.read_json(stage_folders[-1] / "training_state.json")

    read = {}
    for entry, windows in zip(settings["data"], state["loader"]["counts"], strict=True):
        folder = Path(sources.parse_source(entry)[0])
        index = cli.read_json(folder / "index.json")
        tokens = windows * settings["seq_len"]
        read[folder] = tokens * index["bytes"] / index["tokens"]
    return read


def stage_number(folder: Path) -> int:
    """The number at the beginning of a stage folder's name.

    >>> stage_number(Path("run/stages/2-odd"))
    2
    """
    return int(folder.name.partition("-")[0])
