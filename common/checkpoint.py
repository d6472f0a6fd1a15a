"""Save, find and load the state of a training run, so that it can be interrupted at any moment.

A checkpoint is a folder RUN/checkpoints/STAGE-STEP:

    *.distcp, .metadata   trained parameters and optimizer moments (torch.distributed.checkpoint: N
                          processes write, M may read). Frozen weights are not included: they are
                          unchanged in the directory that the stage started from.
    counters.json         step, tokens, the data loader's position; and the SHA-256 of every other
                          file

No state of a random generator is saved. The order of the data is a function of the seed and the
loader's counts, adamw_bf16's rounding one of the seed and the step. Nothing else in a step is
random.

Two rules make checkpoints reliable:

- A checkpoint is written under a temporary name and renamed last. So a kill at any moment leaves
  either a complete new checkpoint or none.
- Its files are verified before it is read. If one is missing, truncated or changed, the previous
  checkpoint is used instead, with a warning.

A signal (SIGTERM or SIGUSR1 from a scheduler, Ctrl-C, SIGHUP) only sets a flag; the loop finishes
its step, saves and exits.
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

# PyTorch warns when a single process saves, which is normal here.
warnings.filterwarnings("ignore", "torch.distributed is disabled")

# Frozen parameters are not saved. With strict=True loading would fail because they are missing.
TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)

# Checkpoints kept during training if --keep is 0: the newest, and the one before it in case the
# newest is damaged.
KEPT_WHILE_TRAINING = 2

# Settings that a run's config.json has had since the first version.
ALWAYS_THERE = ("model", "config", "stages", "data", "batch_tokens")

# The signals that ask a run to save and exit.
STOPPING = (
    signal.SIGTERM,  # a scheduler ends the job, or `kill`
    signal.SIGINT,   # Ctrl-C
    signal.SIGUSR1,  # SLURM's warning before the time limit, if asked for by --signal=USR1@SECONDS
    signal.SIGHUP,   # the terminal was closed
)


# ------------------------------------------------------------------------------ checkpoints


def save(
    run: Path, llama: torch.nn.Module, optimizer: torch.optim.Optimizer, counters: dict, keep: int
) -> Path:
    """Write RUN/checkpoints/STAGE-STEP completely or not at all, then delete all but the newest
    `keep`, or KEPT_WHILE_TRAINING if that is 0.

    UserError if it cannot be written (a full disk). Earlier checkpoints stay usable."""
    folder = folder_of(run, counters["stage"], counters["step"])
    parameters, moments = get_state_dict(llama, optimizer, options=TRAINED_ONLY)
    try:
        # Only rank 0 enters new_folder, and leaves it in `seal`, which renames the folder. In
        # between all processes write into it, so the others are told its name.
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
                        f"Earlier checkpoints are complete, and --resume {run} continues from the "
                        "newest") from None

    parallel.on_rank_zero(lambda: delete_old(run, folder, keep or KEPT_WHILE_TRAINING))
    return folder


def delete_old(run: Path, written: Path, keep: int) -> None:
    """Delete all but `keep` checkpoints: the one just written and the newest others stay."""
    # A broken checkpoint may have a higher number than `written`, which must stay anyway.
    others = [folder for folder in find(run) if folder != written]
    for folder in others[keep - 1:]:
        shutil.rmtree(folder)


def delete_all(run: Path) -> None:
    """Delete the checkpoints of a finished run: each is three times as large as what was
    trained."""
    for folder in find(run):
        shutil.rmtree(folder)


def find(run: Path, stage: int | None = None) -> list[Path]:
    """The checkpoints of a run, or of one stage, newest first (by stage and step, not by time)."""
    # The name of an unfinished checkpoint begins with a dot (cli.new_folder), so it does not match.
    pattern = "[0-9]*-[0-9]*"
    if stage is not None:
        pattern = f"{stage:02d}-[0-9]*"
    folders = [path for path in (run / "checkpoints").glob(pattern) if path.is_dir()]
    return sorted(folders, reverse=True)


def folder_of(run: Path, stage: int, step: int) -> Path:
    """The folder of a checkpoint. Its name sorts by stage and step.

    >>> folder_of(Path("run"), 2, 500)
    PosixPath('run/checkpoints/02-00000500')
    """
    return run / "checkpoints" / f"{stage:02d}-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its name.

    >>> step_of(Path("run/checkpoints/02-00000500"))
    500
    """
    return int(folder.name.partition("-")[2])


def read_counters(folder: Path) -> dict:
    """Verify a checkpoint and return its counters. UserError if it is not complete."""
    try:
        counters = read_json(folder / "counters.json")
        for name, expected in counters["files"].items():
            if not (folder / name).exists() or sha256(folder / name) != expected:
                raise UserError(f"{name} is missing or has changed")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"counters.json is not what a run writes: {error}") from None
    except FileNotFoundError:
        raise UserError("it was deleted just now") from None  # by the run, which is still training
    return counters


def newest(run: Path, stage: int | None = None) -> tuple[Path, dict] | None:
    """The newest complete checkpoint, of the run or of one stage, and its counters; or None. A
    broken one is skipped with a warning."""
    for folder in find(run, stage):
        try:
            return folder, read_counters(folder)
        except UserError as error:
            warn(f"checkpoint {folder} is broken ({error}); skipping it")
    return None


def load(folder: Path, llama: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's parameters and moments into the model and optimizer of the same stage."""
    # The moments are read into these tensors. Otherwise PyTorch would create them by a step with
    # zero gradients for all parameters at once, which takes more memory than training.
    for group in optimizer.param_groups:
        for p in group["params"]:
            # Only PyTorch's fused AdamW keeps its count of steps on the parameter's device.
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
    """Load only the parameters of a checkpoint, unsharded and on the CPU, whatever the number of
    processes that saved them. `wanted`: {name: a tensor of the same shape and dtype}."""
    parameters = {}
    for name, like in wanted.items():
        parameters[name] = torch.empty_like(like, device="cpu")
    try:
        dcp.load({"parameters": parameters}, checkpoint_id=folder, no_dist=True)
    except (OSError, CheckpointException) as error:
        raise UserError(f"cannot read checkpoint {folder} ({reason(error)}); during training a "
                        "run keeps only its newest ones: try again, or train with a larger "
                        "--keep") from None
    return parameters


def reason(error: Exception) -> str:
    """Why a checkpoint cannot be written or read, in the system's words: the last line, because a
    CheckpointException puts PyTorch's own first."""
    return str(error).strip().split("\n")[-1]


# --------------------------------------------------------------------------- the run's folder


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """`with lock(run):` creates the folder and locks it. UserError if another process trains there.
    The operating system releases the lock when the process ends, in whatever way."""
    held = parallel.on_rank_zero(lambda: take_lock(run))  # a file; None on the other ranks
    try:
        yield
    finally:
        if held is not None:
            held.close()


def take_lock(run: Path):
    """Create RUN and lock it; returns the open file that holds the lock."""
    run.mkdir(parents=True, exist_ok=True)
    file = open(run / ".lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is training in {run}; stop it first, or give a new run "
                        "another --out") from None
    except OSError as error:  # some network file systems have no locks
        warn(f"cannot lock {run} ({error.strerror}); make sure that nothing else trains there")

    # A process that was killed may have left tens of GB of unfinished files.
    for part in ("checkpoints", "stages"):
        for leftover in (run / part).glob(".*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
    return file


def check_inputs(run: Path, indexes: list[Path], weights: list[Path], resumed: bool) -> None:
    """Write the SHA-256 of what a run starts from: the index.json of each source, and the weights.
    When it is resumed, UserError if one of them has changed."""
    hashes = {str(file): sha256(file) for file in [*indexes, *weights]}
    if not resumed:
        write_json(run / "inputs.json", hashes)
        return

    # Folders may have moved since. A source is identified by its place in --data, because its order
    # is drawn from that number; a file of weights by its name.
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
                            "would mix two different trainings")


def read_settings(run: Path) -> dict:
    """Read RUN/config.json. UserError if it is not the settings of a run."""
    file = run / "config.json"
    settings = read_json(file)
    if not isinstance(settings, dict) or not all(name in settings for name in ALWAYS_THERE):
        raise UserError(f"{file} does not hold the settings of a run; is it a run folder?")
    return settings


def stage_folder(run: Path, number: int, stage: plan.Stage) -> Path:
    """The model directory that a stage writes."""
    return run / "stages" / f"{number}-{stage.what}"


def finished_stages(run: Path, stages: list[plan.Stage]) -> int:
    """The number of finished stages: all up to the last one whose directory exists. Directories
    before that may have been deleted, because nothing reads them any more.

    UserError if a directory that is needed is missing or has another name. Otherwise its stage
    would be trained again, and its metrics dropped."""
    finished = 0
    begun = 0
    for number, stage in enumerate(stages, 1):
        folder = stage_folder(run, number, stage)
        if folder.exists():
            finished = number
        elif renamed := list(run.glob(f"stages/{number}-*")):
            raise UserError(f"{renamed[0]} does not belong to this run, whose stage {number} is "
                            f"{stage.what}; rename it to {folder}, or move it away")
        if find(run, number):
            begun = number
    if begun > finished + 1:
        missing = stage_folder(run, begun - 1, stages[begun - 2])
        raise UserError(f"{missing} is missing, from which stage {begun} started; put it back")
    return finished


def random_start(run: Path) -> Path:
    """The model directory with random weights that a run with --config starts from."""
    return run / "stages" / "0-random"


def rewind_metrics(file: Path, stage: int, step: int) -> None:
    """Drop the lines of metrics.jsonl after this step of this stage, because a resumed run writes
    them again, and a last line that is incomplete because the process was killed."""
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
    """Make RUN/model, the last stage's directory under a name that does not depend on the stages.
    Its adapter/ is left out, because it fits the model before the LoRA was merged."""
    with new_folder(run / "model") as temporary:
        for file in hf.files_of_model(folder):
            other = temporary / file.relative_to(folder)
            other.parent.mkdir(exist_ok=True)
            link(file, other)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy, on a file system without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# -------------------------------------------------------------------------------- signals


class StopSignal:
    """`with StopSignal() as stop:` then check `stop.asked` after every step, save, and exit with
    `stop.exit_status()`. A second Ctrl-C kills the process, as users expect."""

    def __enter__(self) -> "StopSignal":
        self.asked = False
        self.interrupted = False  # by Ctrl-C
        self._handlers_before = {}
        for number in STOPPING:
            # `nohup python train.py` starts the process with SIGHUP ignored, so that the run
            # outlives its terminal. It stays ignored.
            under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            if number == signal.SIGHUP and under_nohup:
                continue
            self._handlers_before[number] = signal.signal(number, self._raise_flag)
        return self

    def _raise_flag(self, number, frame):
        self.asked = True
        # A scheduler may repeat SIGTERM while a checkpoint is written, which must not kill us. So
        # only a second Ctrl-C does.
        if number == signal.SIGINT:
            self.interrupted = True
            signal.signal(number, signal.SIG_DFL)

    def exit_status(self) -> int:
        """130 after Ctrl-C, as shells expect, so that a script that runs the program stops too. 0
        after the others, because a scheduler or the user asked for it and nothing went wrong."""
        if self.interrupted:
            return 128 + signal.SIGINT
        return 0

    def __exit__(self, *exception):
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
