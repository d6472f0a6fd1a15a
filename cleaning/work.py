"""Many processes, and a run that can be killed: the work folder, in which each finished task leaves its result.

A step over a corpus is a list of tasks, one for each unit. A task reads files and writes files, `000007.*`, and last
of all `000007.json` by a rename: when that is there the task is done, whatever happens later. A run that finds the
work folder of an earlier one with the same settings, inputs and code does what is left to do. So

- results cannot depend on which process did what, or on how many there are: they are put together in the tasks' order;
- what goes between processes is a number and a few paths, never documents;
- the disk holds the corpus up to three times while it is cleaned: between the passes, cleaned, and being put together.
"""
import contextlib
import copy
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cleaning.report import Tally
from common import cli, documents

PARTS = (".log", ".docs", ".npz")
_job = None  # what the tasks of this process have in common, sent to it once


def _start(job, lock: Path) -> None:
    """Make a process ready. It ends when the one that started it does, be it by kill -9."""
    global _job
    _job = job

    def follow():
        connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's business
    fcntl.flock(os.open(lock, os.O_RDONLY), fcntl.LOCK_SH)  # until it is gone: see Work


def _do(function: Callable, task, stem: Path) -> None:
    """One task: function(job, task, tally, out) -> arrays; `out` takes the lines of documents."""
    with open(f"{stem}.log", "w", encoding="utf-8") as log, open(f"{stem}.docs", "wb") as out:
        tally = Tally(log)
        np.savez(f"{stem}.npz", **function(_job, task, tally, out))
    with open(f"{stem}.json.part", "w", encoding="utf-8") as file:
        json.dump(tally.to_json() | {"sizes": _sizes(stem)}, file, ensure_ascii=False)
    os.replace(f"{stem}.json.part", f"{stem}.json")


def _sizes(stem: Path) -> list[int]:
    """The bytes of what a task has left."""
    return [os.path.getsize(f"{stem}{suffix}") for suffix in PARTS]


def _done(stem: Path) -> bool:
    """Whether a task has left everything. Nothing is synced to the disk on the way, which would cost more than it is
    worth: after a power cut, a file that is gone or shorter than it was shows, and so does a marker cut short."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(Path(f"{stem}.json").read_bytes())["sizes"] == _sizes(stem)
    return False


def new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a .npy file. The disk is asked for all of its room now: were it to run out while memory is written,
    the process would be killed by a signal (SIGBUS); and np.save does not say what went wrong."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        getattr(os, "posix_fallocate", lambda *_: None)(file.fileno(), 0, os.path.getsize(path))  # macOS has none
    return array


class Work:
    """The work folder `.NAME.work` beside an output folder: made, or taken over if it is of the same run."""

    def __init__(self, out: Path, settings: dict, workers: int):
        self.folder, self.workers, self.pool = out.parent / f".{out.name}.work", workers, None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(self.folder / "lock")  # one that has just finished takes the folder away
        except (BlockingIOError, FileNotFoundError):
            os.close(self.lock)
            raise cli.UserError(f"another process is writing {out}; wait for it, or name another --out") from None
        self.held = os.open(self.folder / "held", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self.held, fcntl.LOCK_EX)  # processes that a killed run has left behind are about to end
        fcntl.flock(self.held, fcntl.LOCK_UN)
        sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(documents.__file__)]
        code = b"".join(path.read_bytes() for path in sources)
        settings = json.loads(json.dumps(settings | {"code": hashlib.sha256(code).hexdigest()}, default=str))
        old = self.folder / "settings.json"
        if old.exists() and cli.read_json(old) == settings:
            print(f"going on with the run that left {self.folder}")
        else:
            for path in {*self.folder.iterdir()} - {self.folder / "lock", self.folder / "held"}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            cli.write_json(old, settings)

    def run(self, name: str, function: Callable, tasks: Sequence, sizes: Sequence[int], job) -> list[Path]:
        """Do the tasks that are not done yet; the stems of all results, in order. sizes: the tasks' bytes."""
        global _job
        (self.folder / name).mkdir(exist_ok=True)
        stems = [self.folder / name / f"{i:06}" for i in range(len(tasks))]
        open_tasks = [i for i, stem in enumerate(stems) if not _done(stem)]
        with tqdm(total=sum(sizes), initial=sum(sizes) - sum(sizes[i] for i in open_tasks), desc=f"{name:10}", unit="B",
                  unit_scale=True) as bar:
            if self.workers == 1:
                _job = job
                for i in open_tasks:
                    _do(function, tasks[i], stems[i])
                    bar.update(sizes[i])
            else:
                # spawn: a forked copy of a process that has threads (PyTorch's, in the tests) may hang
                # copy: a process that starts late does not need what this one has read into the job since
                self.pool = self.pool or ProcessPoolExecutor(
                    self.workers, multiprocessing.get_context("spawn"), _start, (copy.copy(job), self.folder / "held"))
                waiting: deque = deque()
                for i in open_tasks:
                    waiting.append((i, self.pool.submit(_do, function, tasks[i], stems[i])))
                    while len(waiting) > (2 * self.workers if i != open_tasks[-1] else 0):
                        done, future = waiting.popleft()
                        future.result()
                        bar.update(sizes[done])
        return stems

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """What stops a run from outside becomes one line that says how to go on; what was done stays."""
        hint = f"; what is done lies in {self.folder}: the same command goes on from there"
        try:
            yield
        except KeyboardInterrupt:
            raise cli.UserError(f"stopped{hint}") from None
        except BrokenProcessPool:
            raise cli.UserError(f"a process was killed, perhaps for want of memory: fewer --workers{hint}") from None
        except OSError as error:
            if error.errno not in cli.FROM_OUTSIDE:
                raise
            raise cli.UserError(f"{error.filename or self.folder}: {error.strerror}{hint}") from None
        finally:
            if self.pool:
                self.pool.shutdown(cancel_futures=True)
            os.close(self.held)
            os.close(self.lock)

    def finish(self) -> None:
        """Remove the folder: the output is whole, or there will be none."""
        shutil.rmtree(self.folder)
