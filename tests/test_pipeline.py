"""bench/pipeline.py: README's first picture."""
from xml.etree import ElementTree

import pytest
from conftest import ROOT

from bench import pipeline


@pytest.mark.parametrize("language, name", [("en", "pipeline.svg"), ("ko", "pipeline.ko.svg")])
def test_the_picture_is_well_formed_and_up_to_date(language, name):
    picture = pipeline.picture(language)
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert (ROOT / "docs/figures" / name).read_text(encoding="utf-8") == picture


def test_both_segmentations_spell_the_sentence():
    syllable = bytes.fromhex("".join(pipeline.BYTES)).decode()
    before = "".join(pipeline.BEFORE).replace("".join(pipeline.BYTES), syllable)
    for tokens in (before, "".join(pipeline.AFTER)):
        assert tokens.replace("▁", " ").strip() == pipeline.SENTENCE
