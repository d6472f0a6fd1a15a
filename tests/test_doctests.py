"""The worked examples in docstrings, which can be checked by hand, are run here."""
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", "common", "cleaning", "kernels", "toy", "studies")
MODULES = [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
           for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
HARD = {"data", "tokenizer", "common.plan", "cleaning.duplicates", "kernels.adamw",
        # Hard to see without numbers.
        "kernels.norm", "kernels.loss", "kernels.rotary", "kernels.activation"}


@pytest.mark.parametrize("name", [name.removesuffix(".__init__") for name in MODULES])
def test_worked_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed and (result.attempted or name not in HARD)
