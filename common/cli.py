"""How the programs talk to people: flags, one-line errors, and outputs that are whole or absent.

Every program here is used the same way, so the manners live in one place:

- a flag that does not exist stops the program and names the nearest one that does (no silent typo);
- what a person got wrong is a `UserError`: one line on stderr, exit status 2, no traceback.
  A traceback means that *we* got something wrong, so nothing else is caught;
- an output is written under a temporary name beside its place and renamed when it is whole.
  A rename is atomic on POSIX, so a reader (or a rerun after kill -9) sees the old output or the new one.
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
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm


class UserError(Exception):
    """Something that the person at the keyboard can mend. The message says what, where, and what to do."""
    of_one_process = False  # among several, do the others know of it too?


# What the machine says no to, not the program: a full or read-only disk, a forbidden place, a file in a folder's place.
FROM_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
                errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leave the module docstring's line breaks alone; say of each flag its default, or that it has to be given."""

    def _get_help_string(self, action: argparse.Action) -> str:
        value = action.default
        if action.required or action.nargs == 0 or value is None or value in ("", []) or "(default" in action.help:
            return action.help + " (required)" * bool(action.required and action.option_strings)
        value = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{action.help} (default: {value.replace('%', '%%')})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "X", Path: "PATH"}.get(action.type, action.dest.upper())


class Parser(argparse.ArgumentParser):
    """argparse with no abbreviations, and a hint for a misspelt flag. Pass the module's docstring as `description`."""

    def __init__(self, description: str | None = None, **kwargs):
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False, **kwargs)

    def flags(self) -> list[str]:
        """Every flag of this parser and of its sub-commands."""
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += [flag for sub in action.choices.values() for flag in sub.flags()]
        return names

    def parse_args(self, args: list[str] | None = None, namespace=None) -> argparse.Namespace:
        """As argparse's, but a misspelt flag is named as such before anything is said to be missing."""
        for argument in sys.argv[1:] if args is None else args:
            name = argument.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in self.flags():  # with a blank it is a value
                near = difflib.get_close_matches(name, self.flags(), n=1)
                hint = f"did you mean {near[0]}?" if near else "--help lists the known ones"
                self.error(f"unknown flag {name}; {hint}")
        return super().parse_args(args, namespace)

    def error(self, message: str):
        """One line on stderr and exit status 2; argparse would print the whole usage before it."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def run(main) -> None:
    """Call `main()` and leave; a UserError, or what the machine refuses, is one line on stderr and exit status 2."""
    status = 0
    path = Path(sys.argv[0])
    program = path.parent.name if path.name == "__main__.py" else path.name  # python -m toy
    try:
        main()
    except SystemExit as leaving:
        status = leaving.code or 0
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or error.of_one_process:  # torchrun's processes would all say it
            print(f"{program}: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # `... | head` closed our stdout; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if error.errno not in FROM_OUTSIDE:
            raise
        print(f"{program}: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        status = 2
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        # Past Python's own way out, on which a thread of gloo's that still holds a tensor would abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The two flags of every program that runs a model."""
    flag = parser.add_argument
    flag("--device", default=None, choices=["cpu", "cuda"], help="where to run (default: cuda if there is one)")
    flag("--dtype", default=None, choices=["float32", "bfloat16"],
         help="type of products and of weights that are not trained (default: bfloat16 on cuda, float32 on cpu)")


def set_device(args: argparse.Namespace) -> None:
    """Settle --device and --dtype; UserError for a GPU that is not there."""
    import torch  # here, because most programs have no use for it, and it takes seconds to import
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; use --device cpu (what began on a GPU goes on on "
                        "one)")
    if args.device == "cuda":
        # cuDNN's attention would make a new plan, 0.4 s, for every new length that generation, validation and scoring
        # meet. Training asks for it by name (kernels/attention.py).
        torch.backends.cuda.enable_cudnn_sdp(False)
    if args.device == "cpu" and sys.platform == "linux":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let a tensor have the memory of the one before. glibc's malloc hands blocks above some 32 MiB, and what lies at
    the end of its heap, back to the kernel, which must fill every page with zeros when it is asked for again: 60,000
    pages a training step of a small model, 6 % of its time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    for option, size in ((-1, 2**31 - 1), (-3, 2**30)) if mallopt else ():  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, size)


def settings(args: argparse.Namespace) -> dict:
    """Print the effective settings, once, on one line; return them for saving beside the result."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
              if not callable(value)}
    if os.environ.get("RANK", "0") == "0":
        line = "settings: " + " ".join(f"{key}={value}" for key, value in values.items())
        print(line.encode(errors="backslashreplace").decode())  # a file's name need not be UTF-8
    return values


def _number_of_stage(folder: Path) -> int:
    """10 for `10-full`: as text it would come before `9-lora`."""
    return int(folder.name.partition("-")[0])


def check_model_folder(path: str | Path) -> None:
    """UserError unless `path` is a folder that can hold a model. Where it is the folder of a run, the message names the
    model inside it. What a model directory must hold is checked by those who read it (model.load, tokenizer.load)."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no model directory {path}")
    if not path.is_dir():
        raise UserError(f"{path} is a file; name the model directory: the folder that holds config.json")

    # A run's folder has a config.json too (its settings), so that file cannot tell the two apart.
    has_weights = any(path.glob("*.safetensors"))
    is_a_run = (path / "metrics.jsonl").exists() or (path / "model").is_dir()
    if has_weights or not is_a_run:
        return
    if (path / "model").is_dir():
        raise UserError(f"{path} is a run folder, not a model directory; its model is {path / 'model'}")
    stages = list(path.glob("stages/[0-9]*-*"))
    if stages:
        newest = max(stages, key=_number_of_stage)
        raise UserError(f"{path} is the folder of an unfinished run; its last finished stage is {newest}")
    raise UserError(f"{path} is the folder of a run that has not finished a stage; it holds no model yet")


def read_json(path: str | Path) -> dict:
    """Read a JSON file. UserError if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); was it cut short? write it again") from None


def _partial(path: Path) -> Path:
    """A temporary name beside `path`, after removing what dead processes left under such names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = old.name.split(".")[-2]  # our own: a restarted container gives out the same numbers again
        if pid == str(os.getpid()) or Path("/proc").exists() and not Path(f"/proc/{pid}").exists():
            if ".old." in old.name and not path.exists():  # killed between the two renames of new_folder
                os.rename(old, path)
            else:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _sync(path: Path) -> None:
    """Ask the disk to keep a file, or a folder's entries: without it a rename may outlive what was renamed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_file(path: str | Path):
    """`with new_file(p) as temporary:` write to `temporary`; it becomes `p` if the block ends well, else it is gone."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file is to be written there")
    temporary = _partial(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path):
    """The same for a folder. One that stands there already is replaced only when the new one is whole."""
    path = Path(os.path.abspath(path))  # that of . has a name
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; a folder is to be written there")
    temporary = _partial(path)
    temporary.mkdir()
    try:
        yield temporary
        for inside in [*temporary.rglob("*"), temporary]:
            _sync(inside)
        if path.exists():  # a folder cannot be renamed onto a full one: move the old one aside first
            aside = path.with_name(f".{path.name}.old.{os.getpid()}.partial")
            os.rename(path, aside)
            os.rename(temporary, path)
            shutil.rmtree(aside)
        else:
            os.rename(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value) -> None:
    """Write JSON, whole or not at all. Korean stays Korean (no \\u escapes)."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        for part in progress(iter(lambda: file.read(1 << 20), b""), f"checking {path}", " MiB", total=size >> 20):
            digest.update(part)
    return digest.hexdigest()


def progress(things: Iterable | None, what: str, unit: str = "", **more) -> tqdm:
    """A bar on stderr, on a terminal, of one process: shown when something takes more than a second, gone when it is
    done. So whatever may take long with someone's data can have one."""
    silent = os.environ.get("RANK", "0") != "0" or None  # None: where stderr is no terminal
    return tqdm(things, what, unit=unit, unit_scale=True, leave=False, delay=1, disable=silent, **more)
