"""Open a file that may be compressed, as its suffix says: .gz, .bz2, .xz or .zst.

    open_bytes(path)    the file, decompressed while it is read
    first_bytes(path)   how it begins
    ERRORS, why_broken  what reading it may raise, and what is wrong with the file then

Python reads the first three by itself, and .zst from version 3.14 on; before that it takes the
package zstandard.
"""
import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from common import cli

# Compressed bytes to read at a time: text has three to five times as many.
READ_SIZE = 2**16

# What a damaged file raises while it is read, whatever its compression.
ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)


def suffix_of(path: Path) -> str:
    """The suffix of a compressed file, in small letters; "" for any other file.

    >>> suffix_of(Path("a.jsonl.GZ")), suffix_of(Path("a.jsonl"))
    ('.gz', '')
    """
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return suffix
    return ""


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed."""
    suffix = suffix_of(path)
    if suffix:
        opener, _ = COMPRESSIONS[suffix]
        return opener(path)
    return open(path, "rb")


def first_bytes(path: Path, n: int) -> bytes:
    """The first n bytes of a file, decompressed. None at all if it is damaged: reading it will say
    so. UserError if it cannot be opened."""
    try:
        with open_bytes(path) as file:
            return file.read(n)
    except ERRORS as error:
        why_broken(path, error)
        return b""


def why_broken(path: Path, error: Exception) -> str:
    """The reason for which the rest of a file cannot be read. UserError if it is not the content of
    the file but the system that refuses: only the system gives its errors a number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    suffix = suffix_of(path)
    if suffix:
        _, name = COMPRESSIONS[suffix]
        return f"broken {name}"
    return f"broken {path.suffix.lower().removeprefix('.')}"


# ---- .zst ---------------------------------------------------------------------------------------


def zstd() -> tuple[Callable, type[Exception]]:
    """(what makes a decompressor for one frame, the error that it raises).

    UserError without the package."""
    # The window of up to 2 GB is for files that were compressed with --long.
    try:
        from compression import zstd as standard  # Python 3.14

        options = {standard.DecompressionParameter.window_log_max: 31}
        return partial(standard.ZstdDecompressor, options=options), standard.ZstdError
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise cli.UserError("reading .zst needs the package zstandard before Python 3.14: "
                            "pip install zstandard") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    return decompressor.decompressobj, zstandard.ZstdError


def open_zst(path: Path) -> IO[bytes]:
    """Open a .zst file, decompressed."""
    new_frame, error = zstd()
    return io.BufferedReader(ZstFile(open(path, "rb"), new_frame, error), READ_SIZE)


class ZstFile(io.RawIOBase):
    """A .zst file, decompressed while it is read.

    zstandard's own reader stops at the end of the first frame, of which a file may have many, and
    takes a file that breaks off for a whole one."""

    def __init__(self, file: IO[bytes], new_frame: Callable, error: type[Exception]):
        self.file = file
        self.new_frame = new_frame
        self.error = error
        self.frame = None             # the decompressor of the frame that is being read
        self.compressed = b""         # read from the file, and not decompressed yet
        self.ready = memoryview(b"")  # decompressed, and not handed out yet

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer) -> int:
        """Fill a buffer, as far as it goes; returns how many bytes that was, 0 at the end."""
        while not self.ready:
            if not self.compressed:
                self.compressed = self.file.read(READ_SIZE)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("breaks off within a frame")
                return 0
            self.decompress()
        n = min(len(buffer), len(self.ready))
        buffer[:n] = self.ready[:n]
        self.ready = self.ready[n:]
        return n

    def decompress(self) -> None:
        """Decompress what has been read of the file, up to the end of a frame."""
        if self.frame is None:
            self.frame = self.new_frame()
        try:
            self.ready = memoryview(self.frame.decompress(self.compressed))
        except self.error as error:
            raise EOFError(str(error)) from None
        self.compressed = b""
        if self.frame.eof:
            self.compressed = self.frame.unused_data
            self.frame = None


# How each is opened, and what it is called where it is broken.
COMPRESSIONS = {
    ".gz": (gzip.open, "gzip"),
    ".bz2": (bz2.open, "bzip2"),
    ".xz": (lzma.open, "xz"),
    ".zst": (open_zst, "zst"),
}
