"""Open files that may be compressed, by their suffix: .gz, .bz2, .xz or .zst.

    open_bytes(path)    the file, decompressed while it is read
    first_bytes(path)   its first bytes
    ERRORS, why_broken  the errors that reading may raise, and what they mean

Python reads the first three itself, and .zst from version 3.14 on; before that, .zst needs the
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

# Compressed bytes to read at a time. Decompressed, text has three to five times as many.
READ_SIZE = 2**16

# What reading a damaged file raises, for any compression.
ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)


def suffix_of(path: Path) -> str:
    """The suffix of a compressed file, in lower case; "" for any other file.

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
    """The first n bytes of a file, decompressed; b"" if it is damaged, which reading it will
    report. UserError if it cannot be opened."""
    try:
        with open_bytes(path) as file:
            return file.read(n)
    except ERRORS as error:
        why_broken(path, error)
        return b""


def why_broken(path: Path, error: Exception) -> str:
    """Why the rest of a file cannot be read. UserError if the cause is not the content of the file
    but the system, whose errors have a number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise cli.UserError(f"cannot read {path}: {error.strerror}") from None
    suffix = suffix_of(path)
    if suffix:
        _, name = COMPRESSIONS[suffix]
        return f"broken {name}"
    return f"broken {path.suffix.lower().removeprefix('.')}"


# ---- .zst ---------------------------------------------------------------------------------------


def zstd() -> tuple[Callable, type[Exception]]:
    """(a function that makes a decompressor for one frame, the error that it raises).

    UserError if the package is missing."""
    # Allow windows of up to 2 GB, for files that were compressed with --long.
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

    zstandard's own reader stops at the end of the first frame, but a file may have many, and it
    does not notice that a file is truncated."""

    def __init__(self, file: IO[bytes], new_frame: Callable, error: type[Exception]):
        self.file = file
        self.new_frame = new_frame
        self.error = error
        self.frame = None             # the decompressor of the current frame
        self.compressed = b""         # read from the file, but not decompressed yet
        self.ready = memoryview(b"")  # decompressed, but not returned yet

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer) -> int:
        """Fill a buffer as far as possible; returns the number of bytes, 0 at the end."""
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
        """Decompress what has been read from the file, up to the end of a frame."""
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


# {suffix: (how to open such a file, its name in messages)}
COMPRESSIONS = {
    ".gz": (gzip.open, "gzip"),
    ".bz2": (bz2.open, "bzip2"),
    ".xz": (lzma.open, "xz"),
    ".zst": (open_zst, "zst"),
}
