"""bench/bits.py: both tables on a tiny model, and the standard error of made-up documents."""
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import data
import model
import tokenizer
from bench import bits, measure

ARGS = SimpleNamespace(documents=5, max_bytes=10**6, micro_batch=8, device="cpu")


def test_the_standard_error_is_that_of_a_mean():
    """Documents of one size, half of them with twice the nats of the others: σ/√N of the mean."""
    sizes = np.full(400, 100)
    nats = np.tile([100.0, 200.0], 200)
    for n in bits.SIZES:
        expected = 100 * (50 / 150) / math.sqrt(n)
        assert bits.deviation(nats, sizes, n, 20_000, seed=1) == pytest.approx(expected, rel=0.03)
    again = [bits.deviation(nats, sizes, 12, 50, seed) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_a_document_is_weighted_by_its_bytes():
    """A ratio of sums, not a mean of ratios: one document in ten has nearly all of the bytes."""
    sizes = np.array([10] * 9 + [10_000])
    nats = np.array([20.0] * 9 + [5_000.0])
    rng = np.random.default_rng(3)
    values = []
    for _ in range(20_000):
        drawn = rng.choice(10, size=12)
        values.append(nats[drawn].sum() / sizes[drawn].sum())
    expected = 100 * np.std(values) / (nats.sum() / sizes.sum())
    assert bits.deviation(nats, sizes, 12, 20_000, seed=0) == pytest.approx(expected, rel=0.03)


def test_documents_alone_and_windows_of_a_peer_add_up_to_the_whole(world):
    """With our own model as the peer: the bench supplies the windows and the softmax."""
    source = bits.open_source(f"{world}/ko.jsonl", "ko", ARGS)
    sp = tokenizer.load(world / "model")
    rows = sp.encode(source.texts, bos=True, eos=True)
    assert len(rows) == 5 and min(map(len, rows)) > 33  # each has several windows
    llama = model.load(world / "model")
    whole = data.score_documents(llama, list(map(np.array, rows)), [None] * 5, 1, 32)
    expected = whole["loss"] * whole["tokens"]
    assert bits.nats_per_document(llama, sp, source, 32, ARGS).sum() == pytest.approx(expected)

    class Peer:
        device = "cpu"

        def __call__(self, tokens):
            return SimpleNamespace(logits=llama(tokens).double())

    nats = sum(bits.peer_nats(Peer(), ids, 32) for ids in rows)
    assert nats == pytest.approx(expected, rel=1e-6)


def test_the_first_table_takes_the_first_documents(world):
    source = bits.open_source(f"{world}/ko.jsonl", "ko", ARGS)
    two = sum(source.sizes[:2])
    for most, documents in ((two, 2), (two - 1, 1), (1, 1)):
        assert bits.beginning(source, most).texts == source.texts[:documents]


def test_both_tables_are_written(world, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    bits.main(["--device", "cpu", "--model", f"{world}/model", "--input", f"{world}/ko.jsonl",
               f"{world}/en.jsonl", "--agreement_bytes", "2000", "--documents", "9"])
    result = json.loads((tmp_path / "results/bits.json").read_text(encoding="utf-8"))
    assert str(world) not in json.dumps(result)
    for table in ("rows", "agreement"):
        assert [row["source"] for row in result[table]] == ["ko.jsonl", "en.jsonl"]
    for row in result["agreement"]:
        assert 0 < row["bytes"] <= 2000
        assert row["relative difference"] < 1e-6
    for row in result["rows"]:
        assert row["documents"] == 9
        assert row["12 documents, ± %"] > row["100 documents, ± %"] > 0
    screen = capsys.readouterr().out
    assert screen.index("relative difference") < screen.index("100 documents, ± %")


def test_without_transformers_it_says_what_to_install(world, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    argv = ["--device", "cpu", "--model", f"{world}/model", "--input", f"{world}/ko.jsonl"]
    refused(bits, argv, "pip install transformers")


@pytest.mark.parametrize("inputs, part", [
    ("{w}/ko.jsonl {w}/ko.jsonl", "named twice"),
    ("{one}", "fewer than two different documents"),
])
def test_a_mistake_is_one_line(inputs, part, world, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(LlamaForCausalLM=None))
    one = tmp_path / "one.txt"
    one.write_text("one document", encoding="utf-8")
    argv = ["--device", "cpu", "--model", f"{world}/model", "--input"]
    refused(bits, argv + inputs.format(w=world, one=one).split(), part)
