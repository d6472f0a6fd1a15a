"""The work folder: runs tasks in many processes, and lets a killed run resume.

A pass over a corpus is a list of tasks, one per unit of documents (about 8 MB). A task writes its
result to files, `first/000007.*`, and finally the marker `first/000007.json`, by a rename: once the
marker is there, the task is done, whatever happens later. A run that finds the work folder of an
earlier one with the same fingerprint (settings, inputs, code) does only the remaining tasks.

Two things follow. The result does not depend on which process did what or on how many there are,
because results are put together in the order of the tasks. And only a number per task travels
between processes, never documents.
"""
import contextlib
import fcntl
import functools
import gc
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from cleaning.report import Tally
from common import cli

FILES = ("documents", "records", "examples", "npz")  # what a task writes, besides its marker

# ---- One task -----------------------------------------------------------------------------------


class Result:
    """What a task fills in, and what is then stored in the work folder."""

    def __init__(self, documents: IO[bytes], records: IO[str]):
        self.documents = documents                 # documents, one line each
        self.tally = Tally(records)                # what happened to them
        self.arrays: dict[str, np.ndarray] = {}


def do_task(task: Callable[[Result], None], stem: Path) -> None:
    """Run a task; write its documents, records, examples, arrays and, last, its marker."""
    with (
        open(f"{stem}.documents", "wb") as documents,
        open(f"{stem}.records", "w", encoding="utf-8") as records,
    ):
        result = Result(documents, records)
        task(result)
    result.tally.examples.save(Path(f"{stem}.examples"))
    np.savez(f"{stem}.npz", **result.arrays)

    # Nothing is synced to disk: that would cost more than repeating a task. After a power failure a
    # file may be shorter than it was, so the marker records the size of each.
    marker = {"sizes": sizes_of(stem), **result.tally.to_json()}
    with open(f"{stem}.json.part", "w", encoding="utf-8") as file:
        json.dump(marker, file, ensure_ascii=False)
    os.replace(f"{stem}.json.part", f"{stem}.json")


def is_done(stem: Path) -> bool:
    """Whether all files of a task are complete."""
    try:
        marker = json.loads(Path(f"{stem}.json").read_bytes())
        return marker["sizes"] == sizes_of(stem)
    except (OSError, ValueError):
        return False  # a file is missing, or the marker itself is truncated


def sizes_of(stem: Path) -> list[int]:
    """The size of each of a task's files in bytes."""
    return [os.path.getsize(f"{stem}.{name}") for name in FILES]


def load(stem: Path, name: str) -> np.ndarray:
    """Load one of the arrays that a task wrote."""
    with np.load(f"{stem}.npz") as arrays:
        return arrays[name]


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Hide Ctrl-C from the processes started inside: it is meant for the main process, which stops
    the others in an orderly way. If it comes meanwhile, the main process sees it at the end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# ---- In a process of the pool -------------------------------------------------------------------

_job = None  # what the tasks of this process share; it is sent only once


def start_process(job) -> None:
    """Prepare the process."""
    global _job
    _job = job
    # A main process killed with -9 cannot stop the others, so each ends when it sees it gone.
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait until the process that started this one has ended, then end this one."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def do_task_in_pool(task: Callable, unit: int, stem: Path) -> None:
    """Run the task of a pass for one unit."""
    do_task(functools.partial(task, _job, unit), stem)


# ---- The folder ---------------------------------------------------------------------------------


class WorkFolder:
    """`.NAME.work` beside the output folder NAME: created, or taken over from a stopped run.

    It contains one folder, named after the fingerprint of the run, so that the files of a different
    run cannot be mistaken for this one's. Raises UserError if another process is using it."""

    def __init__(self, out: Path, fingerprint: str, workers: int):
        self.outer = out.parent / f".{out.name}.work"
        self.folder = self.outer / fingerprint
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None
        self.outer.mkdir(parents=True, exist_ok=True)
        self.lock = self._lock(out)

        self.resumes = self.folder.exists()
        for other in self.outer.iterdir():
            if other.is_dir() and other != self.folder:
                shutil.rmtree(other)
        self.folder.mkdir(exist_ok=True)

    def _lock(self, out: Path) -> int:
        """Lock the folder for the lifetime of this process. The system releases the lock even after
        a kill; a lock file that merely exists would stay."""
        lock = os.open(self.outer / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(self.outer / "lock")  # gone, if a run has just finished and removed the folder
        except (BlockingIOError, FileNotFoundError):
            os.close(lock)
            raise cli.UserError(
                f"another process is writing {out}; wait for it, or name another --out"
            ) from None
        return lock

    def run_pass(self, name: str, task: Callable, job, sizes: list[int]) -> list[Path]:
        """Run task(job, unit, result) for every unit that is not done yet. `sizes` are the units'
        bytes, for the progress bar. Returns the stems of all results, in order."""
        (self.folder / name).mkdir(exist_ok=True)
        stems = [self.folder / name / f"{unit:06}" for unit in range(len(sizes))]
        missing = [unit for unit, stem in enumerate(stems) if not is_done(stem)]
        to_do = sum(sizes[unit] for unit in missing)
        total = sum(sizes)
        with tqdm(
            total=total,
            initial=total - to_do,
            desc=f"{name:10}",
            unit="B",
            unit_scale=True,
            disable=None,  # unless stderr is a terminal
        ) as bar:
            if self.workers == 1:
                for unit in missing:
                    do_task(functools.partial(task, job, unit), stems[unit])
                    bar.update(sizes[unit])
                return stems

            pool = self._start_pool(job)
            futures = {}
            with without_interrupts():
                for unit in missing:
                    futures[unit] = pool.submit(do_task_in_pool, task, unit, stems[unit])
            for unit, future in futures.items():
                future.result()
                bar.update(sizes[unit])
        return stems

    def run_alone(self, name: str, task: Callable[[Result], None]) -> Path:
        """Run task(result) in this process, unless it is done. Returns the stem of its result."""
        stem = self.folder / name
        if not is_done(stem):
            do_task(task, stem)
        return stem

    def _start_pool(self, job) -> ProcessPoolExecutor:
        """Start the processes, the first time; the same ones serve every pass."""
        if self.pool is None:
            # "spawn", because a fork of a process with threads (PyTorch's) may hang.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.workers, context, start_process, (job,))
        return self.pool

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn whatever stops a run from outside into one line that says how to resume it. Finished
        tasks stay."""
        hint = f"; finished work is kept in {self.outer}: run the same command to resume"
        # Compiling the patterns leaves garbage with finalizers, in which Python would swallow a
        # Ctrl-C. Collect it now, and not at some moment while tasks run.
        gc.collect()
        try:
            yield
        except KeyboardInterrupt:
            raise cli.UserError(f"stopped{hint}") from None
        except BrokenProcessPool:
            raise cli.UserError(
                f"a process was killed, perhaps out of memory: try fewer --workers{hint}"
            ) from None
        except OSError as error:
            if error.errno not in cli.FROM_OUTSIDE:
                raise
            raise cli.UserError(f"{error.filename or self.outer}: {error.strerror}{hint}") from None
        finally:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)
            os.close(self.lock)

    def remove(self) -> None:
        """Delete the folder, once the output is complete or it is clear that there is none."""
        shutil.rmtree(self.outer)
