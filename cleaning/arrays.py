"""Arrays on disk that may be larger than memory, and that many processes share."""
import os
from pathlib import Path

import numpy as np


def new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Create a .npy file and map it into memory: writing to the array writes to the file.

    Its disk space is allocated up front. Otherwise a disk that fills up during a later write would
    kill the process with SIGBUS instead of raising an error that says why."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    has_fallocate = hasattr(os, "posix_fallocate")  # macOS does not have it
    if has_fallocate:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return array
