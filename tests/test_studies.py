"""studies/: the arithmetic of the report, on hand-made inputs."""
import json
import random

import pytest

import cli
import train
from studies import plain, report


def test_a_pair_counts_as_found_whichever_copy_went():
    planted = {"exact": [["a2", "a1"], ["b2", "b1"]], "near": [["c2", "c1"]], "junk": ["j"], "personal": ["p"],
               "leaked": ["l", "m"]}
    removed = [{"id": i, "step": step} for i, step in
               [("a1", "exact"), ("x", "exact"), ("c2", "near"), ("j", "rules"), ("l", "decontaminate"), ("m", "near")]]
    found = report.found(planted, removed, [{"id": "p"}, {"id": "q"}])
    assert found["exact"] == {"planted": 2, "found": 1, "recall": 0.5, "precision": 0.5, "removed": 2}
    assert found["near"]["recall"] == 1 and found["near"]["precision"] == 0.5  # m is no copy
    assert found["leaked"]["recall"] == 1  # m was gone before decontamination could see it
    assert found["junk"]["precision"] == 1 and found["personal"]["precision"] == 0.5


def test_mcnemar_equals_the_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random()
    a, b = ([{"label": 0, "prediction": rng.randrange(2)} for _ in range(60)] for _ in range(2))
    better = sum(x["prediction"] < y["prediction"] for x, y in zip(a, b, strict=True))
    worse = sum(x["prediction"] > y["prediction"] for x, y in zip(a, b, strict=True))
    assert report.mcnemar(a, b) == pytest.approx(stats.binomtest(better, better + worse).pvalue)
    assert report.mcnemar(a, a) == 1


def test_bytes_read_are_those_of_the_windows_drawn(world, tmp_path):
    train.main(["--model", f"{world}/model", "--out", f"{tmp_path}/run", "--data", f"{world}/shards/ko=0.75",
                f"{world}/shards/en=0.25", "--stages", "full:640:1e-3", "--seq_len", "32", "--batch_tokens", "128",
                "--device", "cpu"])
    read = plain.bytes_read(tmp_path / "run")
    for language, windows in (("ko", 15), ("en", 5)):
        index = cli.read_json(world / "shards" / language / "index.json")
        assert read[world / "shards" / language] == pytest.approx(windows * 32 * index["bytes"] / index["tokens"])
    assert plain.seconds(tmp_path / "run") == pytest.approx(
        sum(128 / json.loads(line)["tokens_per_second"] for line in open(tmp_path / "run/metrics.jsonl")
            if "tokens_per_second" in line))


def test_a_table_is_markdown():
    assert report.table(["a", "b"], [["x", 0.5], ["y", 2]]) == "| a | b |\n| --- | ---: |\n| x | 0.500 |\n| y | 2 |"
