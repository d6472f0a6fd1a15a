"""Save, find and load the state of a training run, so that it can be unplugged at any moment.

A checkpoint is a folder RUN/checkpoints/STAGE-STEP:

    *.distcp, .metadata   trained parameters and optimizer moments (torch.distributed.checkpoint: N
                          processes write, M may read). Frozen weights are not here: they stand
                          unchanged in the stage's start directory.
    counters.json         step, tokens, the data loader's position; and the SHA-256 of every other
                          file

Two rules make it trustworthy. It is written under a temporary name and renamed last, so a kill at
any moment leaves either no new checkpoint or a whole one. And nothing is believed on reading: a
folder whose files are missing, short or changed is passed over, with a warning that names it, for
the one before.

A signal (SIGTERM or SIGUSR1 from a scheduler, Ctrl-C, SIGHUP) only raises a flag; the loop finishes
its step, saves, and exits.
"""
import contextlib
import fcntl
import json
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from common import hf, parallel, plan
from common.cli import UserError, new_file, new_folder, read_json, sha256, warn, write_json

# PyTorch warns when a single process saves, which is a usual case here and not a mistake.
warnings.filterwarnings("ignore", "torch.distributed is disabled")

TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)

# Checkpoints of a run that trains, where --keep is left at 0: the newest, and one before it in case
# the disk damages that.
KEPT_WHILE_TRAINING = 2

# What a run's config.json has held since the first version.
ALWAYS_THERE = ("model", "config", "stages", "data", "batch_tokens")

# The signals that ask a run to save and leave.
STOPPING = (
    signal.SIGTERM,  # a scheduler that ends the job, or `kill`
    signal.SIGINT,   # Ctrl-C
    signal.SIGUSR1,  # SLURM's warning before the time limit, if asked for by --signal=USR1@SECONDS
    signal.SIGHUP,   # the terminal was closed
)


# ------------------------------------------------------------------------------ checkpoints


def save(
    run: Path, llama: torch.nn.Module, optimizer: torch.optim.Optimizer, counters: dict, keep: int
) -> Path:
    """Write RUN/checkpoints/STAGE-STEP whole or not at all, then delete all but the newest `keep`,
    or KEPT_WHILE_TRAINING if that is 0.

    UserError if it cannot be written (a full disk): the checkpoints before it stay usable."""
    folder = folder_of(run, counters["stage"], counters["step"])
    parameters, moments = get_state_dict(llama, optimizer, options=TRAINED_ONLY)
    try:
        # Rank 0 alone enters new_folder, and leaves it in `seal`, which renames the folder. All
        # processes write into it meanwhile: the others are told its name.
        with contextlib.ExitStack() as of_rank_zero:
            enter = of_rank_zero.enter_context
            temporary = parallel.on_rank_zero(lambda: enter(new_folder(folder)))
            temporary = parallel.broadcast(temporary)
            dcp.save(
                {"parameters": parameters, "optimizer": moments},
                checkpoint_id=temporary,
                no_dist=parallel.size() == 1,
            )

            def seal() -> None:
                hashes = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
                write_json(temporary / "counters.json", {**counters, "files": hashes})
                of_rank_zero.close()

            parallel.on_rank_zero(seal)
    except (OSError, CheckpointException) as error:
        raise UserError(f"cannot write checkpoint {folder}; is the disk full? ({reason(error)}) "
                        f"The ones before it are whole, and --resume {run} continues from the "
                        "newest") from None

    parallel.on_rank_zero(lambda: delete_old(run, folder, keep or KEPT_WHILE_TRAINING))
    return folder


def delete_old(run: Path, written: Path, keep: int) -> None:
    """Delete all checkpoints but `keep`: the one just written, and the newest others."""
    # A broken one may have a higher number than `written`, which must stay all the same.
    others = [folder for folder in find(run) if folder != written]
    for folder in others[keep - 1:]:
        shutil.rmtree(folder)


def delete_all(run: Path) -> None:
    """Delete the checkpoints of a finished run: each is three times the size of what it trained."""
    for folder in find(run):
        shutil.rmtree(folder)


def find(run: Path, stage: int | None = None) -> list[Path]:
    """The checkpoints of a run, or of one stage, newest first: by stage and step, not by the
    clock."""
    pattern = "[0-9]*-[0-9]*"
    if stage is not None:
        pattern = f"{stage:02d}-[0-9]*"
    folders = [path for path in (run / "checkpoints").glob(pattern) if path.is_dir()]
    return sorted(folders, reverse=True)


def folder_of(run: Path, stage: int, step: int) -> Path:
    """The folder of a checkpoint. Names sort as stages and steps do.

    >>> folder_of(Path("run"), 2, 500)
    PosixPath('run/checkpoints/02-00000500')
    """
    return run / "checkpoints" / f"{stage:02d}-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by its name.

    >>> step_of(Path("run/checkpoints/02-00000500"))
    500
    """
    return int(folder.name.partition("-")[2])


def read_counters(folder: Path) -> dict:
    """A checkpoint's counters. UserError says what is broken, if it is not whole."""
    try:
        counters = read_json(folder / "counters.json")
        for name, expected in counters["files"].items():
            if not (folder / name).exists() or sha256(folder / name) != expected:
                raise UserError(f"{name} is missing or has changed")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"counters.json is not what a run writes: {error}") from None
    except FileNotFoundError:
        raise UserError("it was deleted just now") from None  # by the run, which trains on
    return counters


def newest(run: Path, stage: int | None = None) -> tuple[Path, dict] | None:
    """The newest whole checkpoint, of one stage if it is given, and its counters; or None. A broken
    one is passed over with a warning."""
    for folder in find(run, stage):
        try:
            return folder, read_counters(folder)
        except UserError as error:
            warn(f"checkpoint {folder} is broken ({error}); passing over it")
    return None


def load(folder: Path, llama: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's parameters and moments into the model and optimizer of the same stage."""
    # The moments are read into these. Left to itself, PyTorch would make them by a step with
    # gradients of zeros for all parameters at once: more memory than training needs.
    for group in optimizer.param_groups:
        for p in group["params"]:
            # PyTorch's fused AdamW keeps its count of steps beside the parameter, others do not.
            device = p.device if group.get("fused") else "cpu"
            optimizer.state[p] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    parameters, moments = get_state_dict(llama, optimizer, options=TRAINED_ONLY)
    state = {"parameters": parameters, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder, no_dist=parallel.size() == 1)
    set_state_dict(
        llama,
        optimizer,
        model_state_dict=state["parameters"],
        optim_state_dict=state["optimizer"],
        options=TRAINED_ONLY,
    )


def load_parameters(folder: Path, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a checkpoint the parameters alone, whole and on the CPU, by however many processes they
    were saved. `wanted`: their names, with tensors of the same shapes and types."""
    parameters = {}
    for name, like in wanted.items():
        parameters[name] = torch.empty_like(like, device="cpu")
    try:
        dcp.load({"parameters": parameters}, checkpoint_id=folder, no_dist=True)
    except (OSError, CheckpointException) as error:
        raise UserError(f"cannot read checkpoint {folder} ({reason(error)}); a run that is "
                        "training keeps its newest ones only: try again, or train with a larger "
                        "--keep") from None
    return parameters


def reason(error: Exception) -> str:
    """Why a checkpoint cannot be written or read: the system's own words. A CheckpointException
    hides them behind PyTorch's: they come last."""
    return str(error).strip().split("\n")[-1]


# --------------------------------------------------------------------------- the run's folder


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """`with lock(run):` makes RUN and holds it; UserError if another process trains there. The
    operating system releases the lock when a process ends, however it ends."""
    held = parallel.on_rank_zero(lambda: take_lock(run))  # a file; None on the other ranks
    try:
        yield
    finally:
        if held is not None:
            held.close()


def take_lock(run: Path):
    """Make RUN and lock it; returns the open file that is the lock."""
    run.mkdir(parents=True, exist_ok=True)
    file = open(run / ".lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is training in {run}; stop it first (a new run may "
                        "have another --out)") from None
    except OSError as error:  # some shared disks cannot lock
        warn(f"cannot lock {run} ({error.strerror}); see that no one else trains there")

    # What a process was writing when it was killed may be tens of GB.
    for part in ("checkpoints", "stages"):
        for leftover in (run / part).glob(".*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
    return file


def check_inputs(run: Path, indexes: list[Path], weights: list[Path], resumed: bool) -> None:
    """Note the SHA-256 of what a run starts from: the index.json of each source, and the weights.
    When it is resumed, UserError for one that is not the same."""
    hashes = {str(file): sha256(file) for file in [*indexes, *weights]}
    if not resumed:
        write_json(run / "inputs.json", hashes)
        return

    # Folders may have moved since. A source is known by its place in --data, for its number is part
    # of what its order is drawn from; a file of weights by its name.
    indexes = list(indexes)
    weights = {file.name: file for file in weights}
    for path, before in read_json(run / "inputs.json").items():
        name = Path(path).name
        file = None
        if name != "index.json":
            file = weights.get(name)
        elif indexes:
            file = indexes.pop(0)
        if file is None or hashes[str(file)] != before:
            raise UserError(f"{file or path} is missing, or not what {run} started with; resuming "
                            "would mix two trainings")


def read_settings(run: Path) -> dict:
    """What RUN/config.json holds. UserError if that is not a run's."""
    file = run / "config.json"
    settings = read_json(file)
    if not isinstance(settings, dict) or not all(name in settings for name in ALWAYS_THERE):
        raise UserError(f"{file} does not hold the settings of a run; is it a run folder?")
    return settings


def stage_folder(run: Path, number: int, stage: plan.Stage) -> Path:
    """The model directory that a stage writes."""
    return run / "stages" / f"{number}-{stage.what}"


def finished_stages(run: Path, stages: list[plan.Stage]) -> int:
    """How many stages of a run are finished: all up to the last whose directory is there. Those
    before it may have been deleted, for nothing reads them any more. UserError for a directory that
    is needed, or has another name: its stage would be trained again, and its metrics dropped."""
    finished = 0
    begun = 0
    for number, stage in enumerate(stages, 1):
        folder = stage_folder(run, number, stage)
        if folder.exists():
            finished = number
        elif renamed := list(run.glob(f"stages/{number}-*")):
            raise UserError(f"{renamed[0]} is no directory of this run, whose stage {number} is "
                            f"{stage.what}; rename it to {folder}, or move it away")
        if find(run, number):
            begun = number
    if begun > finished + 1:
        missing = stage_folder(run, begun - 1, stages[begun - 2])
        raise UserError(f"{missing} is missing, from which stage {begun} started; put it back")
    return finished


def random_start(run: Path) -> Path:
    """The model directory of random weights that a run with --config starts from."""
    return run / "stages" / "0-random"


def rewind_metrics(file: Path, stage: int, step: int) -> None:
    """Drop the lines of metrics.jsonl after this step of this stage, which a resumed run will write
    again, and a last line that a kill cut short."""
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


def publish(folder: Path, run: Path) -> None:
    """RUN/model: the last stage's directory under a name that does not depend on the stages. Its
    adapter/ stays behind: it fits the model before it was merged."""
    with new_folder(run / "model") as temporary:
        for file in hf.files_of_model(folder):
            other = temporary / file.relative_to(folder)
            other.parent.mkdir(exist_ok=True)
            link(file, other)


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy on a file system that has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# -------------------------------------------------------------------------------- signals


class StopSignal:
    """`with StopSignal() as stop:` then look at `stop.asked` after every step, save, and leave with
    `stop.exit_status()`. A second Ctrl-C kills, as people expect."""

    def __enter__(self) -> "StopSignal":
        self.asked = False
        self.interrupted = False  # by Ctrl-C
        self._handlers_before = {}
        for number in STOPPING:
            # `nohup python train.py` starts us with SIGHUP ignored: the run is to outlive its
            # terminal, so it stays ignored.
            under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            if number == signal.SIGHUP and under_nohup:
                continue
            self._handlers_before[number] = signal.signal(number, self._raise_flag)
        return self

    def _raise_flag(self, number, frame):
        self.asked = True
        # A scheduler may repeat its SIGTERM while a checkpoint is written: that must not kill.
        if number == signal.SIGINT:
            self.interrupted = True
            signal.signal(number, signal.SIG_DFL)

    def exit_status(self) -> int:
        """130 after Ctrl-C, which shells expect: a script that runs the program stops, too. 0 after
        the others: a scheduler or the user asked for it, and nothing went wrong."""
        if self.interrupted:
            return 128 + signal.SIGINT
        return 0

    def __exit__(self, *exception):
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
