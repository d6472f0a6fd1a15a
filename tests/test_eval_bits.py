"""eval_bits.py: the bits per byte of several models on the same text."""
import json
import math
import os
import random
import subprocess
import sys

import pytest
import sentencepiece
import torch
from conftest import ROOT, korean, tiny_config, write_jsonl

import data
import eval_bits
import model
import tokenizer
import train


@pytest.fixture(scope="module")
def grown(world, tmp_path_factory):
    """The world's model with another tokenizer, which has Korean pieces, and with other weights."""
    folder = tmp_path_factory.mktemp("grown")
    tokenizer.main(["train", "--input", str(world / "ko.jsonl"), "--text", "all",
                    "--vocab_size", "700", "--out", str(folder / "ko.model")])
    torch.manual_seed(1)
    (folder / "model").mkdir()
    model.save(
        model.Llama(tiny_config(vocab_size=704, max_position_embeddings=96)), folder / "model"
    )
    tokenizer.save(folder / "ko.model", folder / "model")
    return folder / "model"


def scores_of(tmp_path, *argv) -> dict:
    out = tmp_path / "bits.json"
    eval_bits.main(["--device", "cpu", "--out", str(out), *map(str, argv)])
    return json.loads(out.read_text(encoding="utf-8"))


def nats_by_hand(folder, texts, seq_len) -> float:
    """Σ -ln p of all tokens, in float64, from the logits of one window at a time."""
    sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    llama = model.load(folder).double()
    llama.compute_dtype = torch.float64
    total = 0.0
    for text in texts:
        ids = torch.tensor([[sp.bos_id(), *sp.encode(text), sp.eos_id()]])
        for start in range(0, ids.shape[1] - 1, seq_len):
            part = ids[:, start : start + seq_len + 1]
            with torch.no_grad():
                logp = llama(part[:, :-1]).log_softmax(-1)
            total -= logp.gather(2, part[:, 1:, None]).sum().item()
    return total


# ---------------------------------------------------------------------------------- the numbers


def test_documents_by_hand(world, grown, tmp_path):
    texts = [korean(random.Random(i), 30) for i in range(7)]
    file = write_jsonl(tmp_path / "held_out.jsonl", texts)
    n_bytes = sum(len(text.encode()) for text in texts)
    found = scores_of(tmp_path, "--models", world / "model", grown, "--input", file)
    assert found["sources"]["held_out.jsonl"] == {"documents": 7, "bytes": n_bytes, "left_out": 0}
    bits = []
    for folder, seq_len in ((world / "model", 64), (grown, 96)):
        of_model = found["models"][str(folder)]
        score = of_model["sources"]["held_out.jsonl"]
        assert of_model["seq_len"] == seq_len and score["bytes"] == n_bytes
        nats = nats_by_hand(folder, texts, seq_len)
        assert score["bits_per_byte"] == pytest.approx(nats / n_bytes / math.log(2), rel=1e-5)
        assert score["loss"] == pytest.approx(nats / score["tokens"], rel=1e-5)
        assert score["bytes_per_token"] == n_bytes / score["tokens"]
        bits.append(score["bits_per_byte"])
    assert score["difference"] == bits[1] - bits[0]


def test_validation_of_training_to_the_last_bit(world, tmp_path):
    shards = [f"{world}/shards/ko", f"{world}/shards/en"]
    run = tmp_path / "run"
    train.main(["--model", f"{world}/model", "--data", *shards, "--out", str(run), "--device",
                "cpu", "--seq_len", "32", "--stages", "odd:1k:1e-3", "full:1k:1e-3"])
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "validation" in record]
    models = [world / "model", run / "stages/1-odd", run / "model"]
    found = scores_of(tmp_path, "--models", *models, "--data", *shards, "--seq_len", "32")
    assert len(records) == 3
    for folder, record in zip(models, records, strict=True):
        for name in ("ko", "en"):
            score = found["models"][str(folder)]["sources"][name]
            for key, value in record["validation"][name].items():
                assert score[key] == value, (folder, name, key)


def test_another_tokenizer_gets_the_same_text(world, grown, tmp_path):
    """Decoded from the shards, as if they had been packed with its own tokenizer."""
    data.main(["pack", "--input", f"{world}/ko.jsonl", "--tokenizer", f"{grown}/tokenizer.model",
               "--out", str(tmp_path / "own"), "--val_fraction", "0.05"])
    models = ["--models", world / "model", grown]
    found = scores_of(tmp_path, *models, "--data", world / "shards/ko", tmp_path / "own")
    assert found["sources"]["ko"]["documents"] > 1
    for scores in found["models"].values():
        for key in ("bits_per_byte", "loss", "tokens", "bytes"):
            assert scores["sources"]["ko"][key] == scores["sources"]["own"][key]


def test_the_packing_tokenizer_may_be_given_alone(world, grown, tmp_path, refused):
    argv = ["--device", "cpu", "--models", str(grown), "--data", str(world / "shards/ko")]
    refused(eval_bits, argv, "none of --models has; give it with --tokenizer")
    scores_of(tmp_path, *argv, "--tokenizer", world / "base.model")


def test_a_text_that_does_not_come_back_is_left_out_for_all(world, grown, tmp_path, capsys):
    """A tokenizer without byte fallback, which cannot write Korean."""
    english = [json.loads(line)["text"] for line in open(world / "en.jsonl", encoding="utf-8")]
    texts = [korean(random.Random(i), 9) for i in range(40)] + english[:40]
    write_jsonl(tmp_path / "mixed.jsonl", texts)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english), model_prefix=str(tmp_path / "lossy"), model_type="bpe",
        vocab_size=200, normalization_rule_name="identity", minloglevel=2)
    shards = tmp_path / "shards"
    # As data.py pack would write it, if it did not refuse such a tokenizer.
    data.main(["pack", "--input", str(tmp_path / "mixed.jsonl"), "--out", str(shards),
               "--tokenizer", f"{world}/base.model", "--val_fraction", "0.4"])
    sizes = data.Shards(shards).validation_sizes()
    lossy = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "lossy.model"))
    source = eval_bits.Source("mixed", sizes.tolist())
    packed, _ = data.Shards(shards).validation(10**6)
    base = sentencepiece.SentencePieceProcessor(model_file=f"{world}/base.model")
    originals = base.decode([ids[1:-1].tolist() for ids in packed])
    source.packed = [torch.tensor([1, *lossy.encode(text), 2]).numpy() for text in originals]
    source.prompts = [None] * len(packed)
    kept = eval_bits.with_texts(source, lossy)
    n_english = sum(text.isascii() for text in originals)
    assert 0 < n_english < len(packed) and all(text.isascii() for text in kept.texts)
    assert len(kept.texts) == len(kept.packed) == len(kept.sizes) == n_english
    assert kept.left_out == len(packed) - n_english


def test_in_instruction_data_only_the_response_counts(world, grown, tmp_path, refused):
    rows = []
    for i in range(60):
        rng = random.Random(i)
        rows.append({"q": korean(rng, 5), "a": korean(rng, 8)})
    file = tmp_path / "sft.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data.main(["pack", "--input", str(file), "--tokenizer", f"{world}/base.model", "--out",
               str(tmp_path / "sft"), "--val_fraction", "0.3", "--prompt_field", "q",
               "--response_field", "a"])
    shards = data.Shards(tmp_path / "sft")
    expected = data.bits_per_byte(model.load(world / "model"), shards, 64)
    found = scores_of(tmp_path, "--models", world / "model", "--data", tmp_path / "sft")
    score = found["models"][str(world / "model")]["sources"]["sft"]
    for key, value in expected.items():
        assert score[key] == value
    argv = ["--device", "cpu", "--models", str(grown), "--data", str(tmp_path / "sft")]
    refused(eval_bits, argv, "holds prompts and responses")


def test_max_bytes_takes_the_first_documents_and_at_least_one(world, tmp_path):
    texts = ["a" * 100, "b" * 100, "c" * 100]
    file = write_jsonl(tmp_path / "x.jsonl", texts)
    for most, documents in ((250, 2), (200, 2), (5, 1)):
        found = scores_of(tmp_path, "--models", world / "model", "--input", file, "--max_bytes",
                          most)
        assert found["sources"]["x.jsonl"]["documents"] == documents


@pytest.mark.slow
def test_two_processes_give_the_same(world, tmp_path):
    out = tmp_path / "two.json"
    argv = ["--device", "cpu", "--models", f"{world}/model", "--data", f"{world}/shards/ko"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "eval_bits.py", *argv, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the first model") == 1
    alone = scores_of(tmp_path, *argv)
    of_two = json.loads(out.read_text(encoding="utf-8"))["models"]
    for folder, scores in alone["models"].items():
        for key, value in scores["sources"]["ko"].items():
            assert of_two[folder]["sources"]["ko"][key] == pytest.approx(value, rel=1e-12)


# ----------------------------------------------------------------------------------- the screen


def test_the_table(world, grown, tmp_path, capsys):
    found = scores_of(tmp_path, "--models", world / "model", grown, "--data", world / "shards/ko",
                      world / "shards/en")
    screen = capsys.readouterr().out
    table = screen.partition("the first model\n")[2].splitlines()
    assert table[0].split() == ["ko", "en"]
    assert table[1].startswith(str(world / "model"))
    last = found["models"][str(grown)]["sources"]
    expected = []
    for name in ("ko", "en"):
        expected += [f"{last[name]['bits_per_byte']:.4f}", f"{last[name]['difference']:+.4f}"]
    assert table[2].split() == [str(grown), *expected]
    assert "tokens per window differ" in screen and "--seq_len 64 would give" in screen


def test_a_small_validation_set_is_reported(world, tmp_path, capsys):
    scores_of(tmp_path, "--models", world / "model", "--data", world / "shards/ko")
    n = data.Shards(world / "shards/ko").index["val"]["documents"]
    assert n < 30
    assert f"few documents ({n}): on others" in capsys.readouterr().out


def test_unreadable_lines_are_counted_and_reported(world, tmp_path, capsys):
    file = write_jsonl(tmp_path / "x.jsonl", ["a b c", "d e f"])
    file.write_text(file.read_text(encoding="utf-8") + "{half", encoding="utf-8")
    scores_of(tmp_path, "--models", world / "model", "--input", file)
    screen = capsys.readouterr().out
    assert "x.jsonl: 1 could not be read, the first at line 3" in screen and "broken" in screen


# ------------------------------------------------------------------------------------- mistakes


def test_a_file_in_another_encoding(world, tmp_path, refused):
    file = tmp_path / "novel.txt"
    file.write_bytes(korean(random.Random(0), 50).encode("cp949"))
    argv = ["--device", "cpu", "--models", f"{world}/model", "--input", str(file)]
    refused(eval_bits, argv, "holds no document; 1 could not be read, the first at line 1")
    found = scores_of(tmp_path, *argv, "--encoding", "cp949")
    expected = len(korean(random.Random(0), 50).encode())
    assert found["sources"]["novel.txt"]["bytes"] == expected


@pytest.mark.parametrize("argv, part", [
    ("--models {w}/model", "nothing to score on"),
    ("--models {w}/none --data {w}/shards/ko", "there is no model directory"),
    ("--models {w}/base.model --data {w}/shards/ko", "is a file"),
    ("--models {w}/model --data {w}", "not a folder of token shards"),
    ("--models {w}/model --input {w}/none.jsonl", "does not exist"),
    ("--models {w}/model --data {w}/shards/ko --seq_len 65", "more than the 64 positions"),
    ("--models {w}/model --data {w}/shards/ko --max_bytes 0", "--max_bytes 0"),
    ("--models {w}/model {w}/model --data {w}/shards/ko", "twice"),
    ("--models {w}/model --data {w}/shards/ko --out {w}", "is a folder"),
])
def test_a_mistake_is_one_line(argv, part, world, refused):
    refused(eval_bits, ["--device", "cpu", *argv.format(w=world).split()], part)


def test_a_run_folder_is_not_a_model(world, tmp_path, refused):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    argv = ["--device", "cpu", "--models", str(run), "--data", f"{world}/shards/ko"]
    refused(eval_bits, argv, f"its model is {run / 'model'}")


def test_weights_that_are_not_finite_are_named(world, tmp_path, refused):
    broken = tmp_path / "broken"
    broken.mkdir()
    llama = model.load(world / "model")
    llama.model.norm.weight.data[0] = math.nan
    model.save(llama, broken)
    tokenizer.save(world / "base.model", broken)
    argv = ["--device", "cpu", "--models", str(broken), "--data", f"{world}/shards/ko"]
    refused(eval_bits, argv, "broken on ko: nan bits per byte")
