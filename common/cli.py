"""What all programs share: flags, one-line errors, and outputs that are complete or absent.

Every program follows the same conventions:

- An unknown flag stops the program, which names the nearest known one. A typo is never ignored.
- A mistake the user can fix is a `UserError`: one line on stderr, exit status 2, no traceback. A
  traceback means a bug in the program, so no other errors are caught.
- An output is written under a temporary name in the same folder and renamed when it is complete. A
  rename is atomic on POSIX, so a reader (or a rerun after kill -9) sees either the old output or
  the new one, never a part.
"""
import argparse
import contextlib
import ctypes
import difflib
import errno
import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

# Errors of the system and not of the program. They are reported in one line, like a UserError.
FROM_OUTSIDE = {
    errno.ENOSPC,           # the disk is full
    errno.EDQUOT,           # the user's quota is used up
    errno.EFBIG,            # the file is larger than the file system allows
    errno.EROFS,            # the disk is read-only
    errno.EACCES,           # forbidden
    errno.EPERM,
    errno.ENOTDIR,          # a file in a folder's place
    errno.EISDIR,           # a folder in a file's place
    errno.EEXIST,
    errno.ENAMETOOLONG,
}

# Bytes that `sha256` reads at a time.
READ_SIZE = 2**20

# The beginning of a Git LFS pointer: a few lines in place of a large file that was not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


class UserError(Exception):
    """A mistake the user can fix. The message says what is wrong, where, and what to do."""

    # Did this happen in only one of several processes, so that the others do not report it?
    of_one_process = False


def is_rank_zero() -> bool:
    """Is this rank 0 of the processes that torchrun started (or the only process)?"""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print once, whatever the number of processes, and without breaking a progress bar."""
    if is_rank_zero():
        tqdm.write(line)
        # Otherwise Python would buffer the line if stdout is a file: it would come after later
        # lines of stderr, or be lost if the process is killed.
        sys.stdout.flush()


def warn(line: str) -> None:
    """A warning on stderr, once, whatever the number of processes."""
    if is_rank_zero():
        print(f"warning: {line}", file=sys.stderr)


# -------------------------------------------------------------------------------------------- flags


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the module docstring, and adds to each flag its default or
    `(required)`."""

    def _get_help_string(self, action: argparse.Action) -> str:
        value = action.default
        if action.required and action.option_strings:
            return f"{action.help} (required)"
        takes_no_value = action.nargs == 0
        has_no_default = value is None or value in ("", [])
        names_its_default = "(default" in action.help
        if action.required or takes_no_value or has_no_default or names_its_default:
            return action.help

        if isinstance(value, list):
            value = " ".join(map(str, value))
        value = str(value).replace("%", "%%")  # argparse formats the text with %
        return f"{action.help} (default: {value})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        names = {int: "N", float: "X", Path: "PATH"}
        return names.get(action.type, action.dest.upper())


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with a hint for a misspelled flag.

    Pass the module's docstring as `description`; it is the manual that --help prints.
    """

    def __init__(self, description: str | None = None, **kwargs):
        super().__init__(
            description=description, formatter_class=_Help, allow_abbrev=False, **kwargs
        )

    def flags(self) -> list[str]:
        """Every flag of this parser and of its sub-commands."""
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    names += command.flags()
        return names

    def parse_args(self, args: list[str] | None = None, namespace=None) -> argparse.Namespace:
        """As argparse's, but an unknown flag is reported before any missing one."""
        if args is None:
            args = sys.argv[1:]
        known = self.flags()
        for argument in args:
            name = argument.partition("=")[0]
            # An argument with a space is a value that happens to begin with --.
            is_a_flag = name.startswith("--") and " " not in name
            if is_a_flag and name not in known:
                self.error(f"unknown flag {name}; {self._hint(name, known)}")
        return super().parse_args(args, namespace)

    @staticmethod
    def _hint(name: str, known: list[str]) -> str:
        near = difflib.get_close_matches(name, known, n=1)
        if near:
            return f"did you mean {near[0]}?"
        return "--help lists the known ones"

    def error(self, message: str):
        """Print one line on stderr and exit with status 2. (argparse also prints the usage.)"""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def settings(args: argparse.Namespace) -> dict:
    """Print the effective settings on one line, once; return them to be saved with the results."""
    values = {}
    for name, value in vars(args).items():
        if callable(value):
            continue
        if isinstance(value, Path):
            value = str(value)
        values[name] = value

    if is_rank_zero():
        line = "settings: " + " ".join(f"{name}={value}" for name, value in values.items())
        print(line.encode(errors="backslashreplace").decode())  # a file name need not be UTF-8
    return values


# -------------------------------------------------------------------------------- running a program


def run(main: Callable[[], None]) -> None:
    """Call `main()` and exit. A UserError, or an error of the system, becomes one line on stderr
    and exit status 2."""
    path = Path(sys.argv[0])
    program = path.name
    if program == "__main__.py":  # python -m toy
        program = path.parent.name

    # A console that is not UTF-8 (ASCII, CP949) cannot show every character: printing \ud55c is
    # better than failing on output.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")

    status = 0
    try:
        main()
    except SystemExit as leaving:
        status = leaving.code or 0
    except UserError as error:
        if is_rank_zero() or error.of_one_process:  # or all of torchrun's processes would print it
            print(f"{program}: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # `... | head` has closed our stdout; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if error.errno not in FROM_OUTSIDE:
            raise
        print(f"{program}: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        status = 2

    # A gloo thread that still holds a tensor would abort the process during Python's own shutdown.
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The two flags of every program that runs a model."""
    flag = parser.add_argument
    flag("--device", default=None, choices=["cpu", "cuda"],
         help="device to run on (default: cuda if there is a GPU, otherwise cpu)")
    flag("--dtype", default=None, choices=["float32", "bfloat16"],
         help="dtype of activations, matmuls and weights that are not trained (default: bfloat16 "
              "on cuda, float32 on cpu)")


def set_device(args: argparse.Namespace) -> None:
    """Fill in --device and --dtype. UserError if --device is cuda and there is no GPU."""
    import torch  # here, because most programs do not need it, and importing it takes seconds

    has_gpu = torch.cuda.is_available()
    if args.device is None:
        args.device = "cuda" if has_gpu else "cpu"
    if args.dtype is None:
        args.dtype = "bfloat16" if args.device == "cuda" else "float32"
    if args.device == "cuda" and not has_gpu:
        raise UserError("--device cuda: PyTorch finds no GPU here; use --device cpu "
                        "(also to resume a run that was started on a GPU)")

    if args.device == "cuda":
        # cuDNN's attention builds a plan for every new sequence length (0.04 to 0.07 s on an H200),
        # and generation, validation and scoring have many. Training enables it itself (model.py).
        torch.backends.cuda.enable_cudnn_sdp(False)
    if args.device == "cpu" and sys.platform == "linux":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let new tensors reuse the memory of freed ones.

    glibc's malloc returns large blocks to the kernel when they are freed, and the kernel fills
    every page with zeros when they are allocated again: 60,000 pages per training step of a small
    model. On an Intel machine the speedrun's model trains at 1,170 tokens per second without these
    two settings, and at 8,000 to 9,500 with them.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc
        return
    M_TRIM_THRESHOLD = -1
    M_MMAP_THRESHOLD = -3
    # Keep up to 2 GiB of free memory at the end of the heap (the default is 128 KiB).
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    # Map and unmap blocks one by one only from 1 GiB on (the default is 128 KiB, rising to 32 MiB).
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)


def progress(things: Iterable | None, what: str, unit: str = "", **more) -> tqdm:
    """A progress bar on stderr, on rank 0 only, and only if stderr is a terminal. It appears after
    a second and disappears at the end, so it suits anything that may take long on large data."""
    is_silent = True
    if is_rank_zero():
        is_silent = None  # tqdm is then silent only if stderr is not a terminal
    return tqdm(
        things, what, unit=unit, unit_scale=True, leave=False, delay=1, disable=is_silent, **more
    )


# ------------------------------------------------------------------------------------------ reading


def _number_of_stage(folder: Path) -> int:
    """10 for `10-full`, which as text would sort before `9-lora`."""
    return int(folder.name.partition("-")[0])


def check_model_folder(path: str | Path) -> None:
    """UserError unless `path` is a folder that may be a model directory. If it is the folder of a
    run, the message names the model inside. What the directory must hold is checked when it is read
    (model.load, tokenizer.load)."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no model directory {path}")
    if not path.is_dir():
        raise UserError(
            f"{path} is a file; name the model directory, the folder that holds config.json"
        )

    # A run's folder also has a config.json (its settings), which cannot tell the two apart.
    has_weights = any(path.glob("*.safetensors"))
    is_a_run = (path / "metrics.jsonl").exists() or (path / "model").is_dir()
    if has_weights or not is_a_run:
        return
    if (path / "model").is_dir():
        raise UserError(
            f"{path} is a run folder, not a model directory; its model is {path / 'model'}"
        )
    advice = ""
    if any(path.glob("checkpoints/[0-9]*-*")):
        advice = f"; export.py {path} --out DIR makes a model directory of its newest checkpoint"
    stages = list(path.glob("stages/[0-9]*-*"))
    if stages:
        newest = max(stages, key=_number_of_stage)
        raise UserError(
            f"{path} is the folder of an unfinished run; its last finished stage is {newest}"
            f"{advice}"
        )
    raise UserError(
        f"{path} is the folder of a run that has not finished a stage; it holds no model yet"
        f"{advice}"
    )


def is_lfs_pointer(path: str | Path) -> bool:
    """Is this file only a pointer to the one that Git LFS would fetch?"""
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def refuse_lfs_pointer(path: str | Path) -> None:
    """UserError for a Git LFS pointer. (A missing file is reported when it is opened.)"""
    if Path(path).is_file() and is_lfs_pointer(path):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its "
            f"repository, or download the file"
        )


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file. UserError if that is not possible."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    refuse_lfs_pointer(path)
    return content


def read_json(path: str | Path) -> dict:
    """Read a JSON file. UserError if it is missing or broken."""
    try:
        return json.loads(read_bytes(path).decode())
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); was it cut short? write it again"
        ) from None


def read_json_if_any(path: str | Path) -> dict:
    """Read a JSON file of settings; {} if there is none."""
    if not Path(path).is_file():
        return {}
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not a JSON object ({{...}}) of settings; fetch it again")
    return settings


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    size = os.path.getsize(path)
    with open(path, "rb") as file, progress(None, f"checking {path}", "B", total=size) as bar:
        while part := file.read(READ_SIZE):
            digest.update(part)
            bar.update(len(part))
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """`with new_file(path) as temporary:` write to `temporary`. If the block succeeds, it becomes
    `path`; otherwise it is removed, and an existing `path` is unchanged."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a file is to be written there; name another file")
    temporary = _temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        _name_place(error, temporary, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder. An existing one is replaced when the new one is complete."""
    # With its real path, `.` has a name, and for a link the folder behind it is replaced.
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but a folder is to be written there; name another one")
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for inside in temporary.rglob("*"):
            _sync(inside)
        _sync(temporary)
        _move_folder(temporary, path)
        _sync(path.parent)
    except OSError as error:
        _name_place(error, temporary, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value) -> None:
    """Write JSON, completely or not at all. Korean is written as it is, without \\u escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _name_place(error: OSError, temporary: Path, path: Path) -> None:
    """Let an error name the output. An error from writing to an open file has no name, and a
    temporary name no longer exists when the message is read."""
    if error.filename is None or str(error.filename).startswith(str(temporary)):
        error.filename = str(path)


def _move_folder(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, replacing an existing folder."""
    if not path.exists():
        os.rename(temporary, path)
        return
    # A folder cannot be renamed to an existing one that is not empty, so move that aside first.
    aside = path.with_name(f".{path.name}.old.{os.getpid()}.partial")
    os.rename(path, aside)
    os.rename(temporary, path)
    shutil.rmtree(aside)


def _temporary_name(path: Path) -> Path:
    """A temporary name in the folder of `path`, which is created. What dead processes left under
    such names is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = old.name.split(".")[-2]
        # A file with our own process id is also old: a restarted container reuses the ids.
        is_ours = pid == str(os.getpid())
        owner_is_dead = Path("/proc").exists() and not Path(f"/proc/{pid}").exists()
        if not is_ours and not owner_is_dead:
            continue
        if ".old." in old.name and not path.exists():
            os.rename(old, path)  # the process was killed between the two renames of _move_folder
        elif old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk. Otherwise, after a power cut, a rename may have
    survived but not the contents."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
