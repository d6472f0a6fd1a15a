"""The worked examples in the docstrings: what is said there can be checked by hand, and is checked here."""
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
           for folder in (".", "cleaning", "kernels", "studies") for path in sorted((ROOT / folder).glob("*.py"))]
HARD = {"schedule", "tokenizer", "plan", "cleaning.duplicates", "kernels.adamw", "kernels.linear", "kernels.rms_norm",
        "kernels.linear_cross_entropy", "kernels.rope", "kernels.swiglu"}  # ideas that are hard to see without numbers


@pytest.mark.parametrize("name", [name.removesuffix(".__init__") for name in MODULES])
def test_worked_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed and (result.attempted or name not in HARD)
