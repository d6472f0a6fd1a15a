"""Save, find and load the state of a training run, so that it can be unplugged at any moment.

A checkpoint is a folder RUN/checkpoints/STAGE-STEP:

    *.distcp, .metadata   trained parameters and optimizer moments (torch.distributed.checkpoint: N processes write,
                          M may read). Frozen weights are not here: they stand unchanged in the stage's start directory.
    counters.json         step, tokens, the data loader's position; and the SHA-256 of every other file

Two rules make it trustworthy. It is written under a temporary name and renamed last, so a kill at any moment leaves
either no new checkpoint or a whole one. And nothing is believed on reading: a folder whose files are missing, short or
changed is passed over, with a warning that names it, for the one before.

A signal (SIGTERM from a scheduler, Ctrl-C) only raises a flag; the loop finishes its step, saves, and leaves with 0.
"""
import contextlib
import fcntl
import json
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

import kernels
from common import parallel
from common.cli import UserError, new_file, new_folder, read_json, sha256, write_json

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is a usual case here, not a mistake
TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


class StopSignal:
    """`with StopSignal() as stop:` then `stop.asked` after every step. A second Ctrl-C kills, as people expect."""

    def __enter__(self) -> "StopSignal":
        self.asked, self._old = False, {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._raise_flag)
        return self

    def _raise_flag(self, number, frame):
        self.asked = True
        if number == signal.SIGINT:  # a scheduler may repeat its SIGTERM while a checkpoint is being written
            signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *exception):
        for number, handler in self._old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lock(run: Path):
    """`with lock(run):` makes RUN and holds it; UserError if someone else trains there. A kill lets go of it too."""
    def take():
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / ".lock", "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {run}; stop it first, or choose another --out") from None
        except OSError as error:  # some shared disks cannot lock
            print(f"warning: cannot lock {run} ({error.strerror}); see that no one else trains there", file=sys.stderr)
        for part in ("checkpoints", "stages"):
            for leftover in (run / part).glob(".*.partial"):  # of a process that was killed while it wrote; tens of GB
                shutil.rmtree(leftover, ignore_errors=True)
        return file

    with parallel.on_rank_zero(take) or contextlib.nullcontext():
        yield


def check_inputs(run: Path, files: list[Path], resumed: bool) -> None:
    """Note the SHA-256 of what a run starts from; when it is resumed, UserError for a file that is not the same."""
    hashes = {str(file): sha256(file) for file in files if file.exists()}
    if resumed:
        for file, old in read_json(run / "inputs.json").items():
            if hashes.get(file) != old:
                raise UserError(f"{file} is missing, or not what {run} started with; going on would mix two trainings")
    else:
        write_json(run / "inputs.json", hashes)


def save(run: Path, llama: torch.nn.Module, optimizer: torch.optim.Optimizer, counters: dict, keep: int) -> Path:
    """Write RUN/checkpoints/STAGE-STEP whole or not at all, then delete all but the newest `keep`.

    UserError if it cannot be written (a full disk): the checkpoints before it stay usable."""
    folder = run / "checkpoints" / f"{counters['stage']:02d}-{counters['step']:08d}"
    parameters, moments = get_state_dict(llama, optimizer, options=TRAINED_ONLY)
    try:
        with contextlib.ExitStack() as writing:
            temporary = parallel.on_rank_zero(lambda: writing.enter_context(new_folder(folder)))
            temporary = parallel.broadcast(temporary)
            dcp.save({"parameters": parameters, "optimizer": moments}, checkpoint_id=temporary,
                     no_dist=parallel.size() == 1)

            def seal():
                hashes = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
                write_json(temporary / "counters.json", {**counters, "files": hashes})
                writing.close()  # renames it

            parallel.on_rank_zero(seal)
    except (OSError, CheckpointException) as error:  # the latter hides the system's own words behind torch's
        reason = str(error).strip().split("\n")[-1]
        raise UserError(f"cannot write checkpoint {folder}; is the disk full? ({reason}) The ones before it are whole, "
                        f"and --resume {run} goes on from the newest") from None

    # the one written now stays, even below a newer broken one
    parallel.on_rank_zero(lambda: [shutil.rmtree(old) for old in [p for p in find(run) if p != folder][keep - 1:]])
    return folder


def find(run: Path, stage: int | None = None) -> list[Path]:
    """The checkpoints of a run, or of one stage, newest first: by stage and step, not by the clock."""
    name = "[0-9]*-[0-9]*" if stage is None else f"{stage:02d}-[0-9]*"
    return sorted((p for p in (run / "checkpoints").glob(name) if p.is_dir()), reverse=True)


def newest(run: Path, stage: int | None = None) -> tuple[Path, dict] | None:
    """The newest whole checkpoint, of one stage if it is given, and its counters; or None. A broken one is passed over
    with a warning."""
    for folder in find(run, stage):
        problem = None
        try:
            counters = read_json(folder / "counters.json")
            for name, expected in counters["files"].items():
                if not (folder / name).exists() or sha256(folder / name) != expected:
                    problem = f"{name} is missing or has changed"
        except (UserError, KeyError, TypeError, AttributeError) as error:  # counters.json is not what `save` wrote
            problem = str(error)
        if problem is None:
            return folder, counters
        print(f"warning: checkpoint {folder} is broken ({problem}); passing over it", file=sys.stderr)
    return None


def load(folder: Path, llama: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's parameters and moments into the model and optimizer of the same stage."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        # Else PyTorch makes them by a step with gradients of zeros, all of them at once: more memory than training has.
        device = "cpu" if isinstance(optimizer, kernels.AdamW) else p.device
        optimizer.state[p] = {"step": torch.zeros((), device=device), "exp_avg": torch.zeros_like(p),
                              "exp_avg_sq": torch.zeros_like(p)}
    parameters, moments = get_state_dict(llama, optimizer, options=TRAINED_ONLY)
    state = {"parameters": parameters, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder, no_dist=parallel.size() == 1)
    set_state_dict(llama, optimizer, model_state_dict=state["parameters"], optim_state_dict=state["optimizer"],
                   options=TRAINED_ONLY)


def rewind_metrics(file: Path, stage: int, step: int) -> None:
    """Drop the lines of metrics.jsonl that a resumed run will write again, and a last line that a kill cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if (record["stage"], record["step"]) <= (stage, step):
            kept.append(line + "\n")
    with new_file(file) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
