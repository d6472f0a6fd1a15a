"""Packing, shards, the order of batches and bits per byte, checked by independent arithmetic."""
import json
import math
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import ROOT

import data
import tokenizer
import train
from common import cli
from common import sentencepiece_file as files
from common.sentencepiece_file import field

WORDS = "바다 하늘 기차 도시 음악 책상 나무 sea sky train town music desk tree 1 22 333 ! ?".split()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> list[Path]:
    """Two SentencePiece BPE models of different sizes, with byte fallback."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "text").write_text(
        "\n".join(" ".join(random.choices(WORDS, k=9)) for _ in range(300))
    )
    for size in (320, 360):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"), model_prefix=str(folder / str(size)), vocab_size=size,
            model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", minloglevel=2)
    return [folder / "320.model", folder / "360.model"]


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def sentences(rng: random.Random, n: int) -> list[str]:
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 40))) for i in range(n)]


def pack(folder: Path, tokenizer: Path, name: str, *flags: str, input: str = "in") -> data.Shards:
    out = folder / name
    data.main(["pack", "--input", str(folder / input), "--tokenizer", str(tokenizer),
               "--out", str(out), *flags])
    return data.Shards(out)


def test_shards_hold_every_document_once(tmp_path, tokenizers):
    rng = random.Random()
    texts = sentences(rng, 300) + ["끝\n\t \x00 <s> </s> 😀 ㅋㅋ"]
    write(tmp_path / "in" / "a.jsonl", texts[:200])
    write(tmp_path / "in" / "b" / "a.jsonl", texts[200:])
    with open(tmp_path / "in" / "a.jsonl", "a") as file:
        file.write("broken\n")
    write(tmp_path / "in" / "removed.jsonl", ["a record of clean, no document"])
    shards = pack(tmp_path, tokenizers[0], "out", "--shard_tokens", "1000", "--val_fraction", "0.1")
    index = shards.index
    stream = np.concatenate([np.load(tmp_path / "out" / name) for name in index["files"]])
    assert stream.dtype == np.uint16 and len(stream) == index["tokens"] == shards.tokens
    sizes = [entry["tokens"] for entry in index["files"].values()]
    assert sizes[:-1] == [1000] * (len(stream) // 1000) and 0 < sizes[-1] <= 1000
    sp = sentencepiece.SentencePieceProcessor(model_file=str(tokenizers[0]))
    documents = [
        part.tolist() for part in np.split(stream, np.flatnonzero(stream == sp.bos_id()))[1:]
    ]
    validation, n_bytes = shards.validation(10**9)
    assert all(d[-1] == sp.eos_id() for d in [*documents, *validation])
    train_texts = [sp.decode(d[1:-1]) for d in documents]
    val_texts = [sp.decode(d[1:-1].tolist()) for d in validation]
    assert sorted(train_texts + val_texts) == sorted(texts) and 5 < len(val_texts) < 80
    assert train_texts == [text for text in texts if text not in val_texts]  # in order
    assert n_bytes == index["val"]["bytes"] == sum(len(text.encode()) for text in val_texts)
    assert index["bytes"] + n_bytes == sum(len(text.encode()) for text in texts)
    assert index["tokenizer_sha256"] == cli.sha256(tokenizers[0]) and index["vocab_size"] == 320
    assert [json.loads(line)["reason"] for line in open(tmp_path / "out" / "rejected.jsonl")] == [
        "broken JSON"
    ]


def test_validation_is_the_same_text_under_any_tokenizer_order_and_threads(tmp_path, tokenizers):
    rng = random.Random()
    texts = sentences(rng, 400)
    write(tmp_path / "in" / "a.jsonl", texts)
    rng.shuffle(texts)
    write(tmp_path / "shuffled" / "a.jsonl", texts + texts[:50])  # copies change nothing
    flags = ["--val_fraction", "0.2", "--val_bytes", "2500"]
    found = []
    for which, folder, threads in ((0, "in", "1"), (0, "in", "3"), (1, "in", "2"),
                                   (0, "shuffled", "1")):
        shards = pack(tmp_path, tokenizers[which], f"out{len(found)}", *flags, "--workers", threads,
                      input=folder)
        sp = sentencepiece.SentencePieceProcessor(model_file=str(tokenizers[which]))
        documents, n_bytes = shards.validation(10**9)
        found.append([sp.decode(d[1:-1].tolist()) for d in documents])
        assert n_bytes <= 2500 and n_bytes == sum(len(text.encode()) for text in found[-1])
    assert found[0] == found[1] == found[2] == found[3] == sorted(found[0], key=data.text_hash)
    allowed = sorted((t for t in texts if data.text_hash(t) < 0.2 * 2**64), key=data.text_hash)
    following = allowed[len(found[0])]  # not one more would have fit
    assert found[0] == allowed[:len(found[0])] and n_bytes + len(following.encode()) > 2500
    for a, b in zip((tmp_path / "out0").iterdir(), (tmp_path / "out1").iterdir(), strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("texts, n_train, n_val",
                         [(["a"], 1, 0), (["a", "a"], 1, 0), (["a", "b"], 1, 1)])
def test_the_smallest_corpora(tmp_path, tokenizers, texts, n_train, n_val):
    write(tmp_path / "in" / "a.jsonl", texts)
    shards = pack(tmp_path, tokenizers[0], "out")
    assert (shards.index["documents"], shards.index["val"]["documents"]) == (n_train, n_val)
    if not n_val:
        with pytest.raises(cli.UserError, match="no validation documents"):
            shards.validation(1)


def test_a_document_in_two_folders_is_packed_once(tmp_path, tokenizers):
    """Two profiles may keep the same document. Nothing else about the shards changes."""
    rng = random.Random()
    texts = sentences(rng, 200)
    write(tmp_path / "once" / "a.jsonl", texts)
    write(tmp_path / "formal" / "a.jsonl", texts[:120])
    write(tmp_path / "web" / "a.jsonl", texts[70:] + texts[:3])
    once = pack(tmp_path, tokenizers[0], "out", "--val_fraction", "0.1", input="once")
    both = [str(tmp_path / name) for name in ("formal", "web")]
    data.main(["pack", "--input", *both, "--tokenizer", str(tokenizers[0]),
               "--out", str(tmp_path / "both"), "--val_fraction", "0.1"])
    index = data.Shards(tmp_path / "both").index
    assert once.index["duplicates"] == 0 and index == {**once.index, "duplicates": 53}
    for name in (*index["files"], *index["val"]["files"]):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_repeated_pair_is_packed_once_and_another_response_is_not(tmp_path, tokenizers):
    (tmp_path / "in").mkdir()
    pairs = [("sea?", "music"), ("sea?", "sky"), ("sea?", "music"), ("sky?", "music")]
    lines = [json.dumps({"q": prompt, "a": response}) + "\n" for prompt, response in pairs]
    (tmp_path / "in" / "a.jsonl").write_text("".join(lines))
    index = pack(
        tmp_path, tokenizers[0], "out", "--prompt_field", "q", "--response_field", "a"
    ).index
    assert index["documents"] + index["val"]["documents"] == 3 and index["duplicates"] == 1


def test_pack_reads_what_the_flags_say(tmp_path, tokenizers, capsys):
    """Another encoding, a nested field, one document per line, a few broken bytes; what is not read
    is named."""
    texts = [f"바다 {i} 하늘" for i in range(30)]  # sea, sky
    nested = [json.dumps({"page": {"body": text}}, ensure_ascii=False) for text in texts[:20]]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.JSON").write_text("[" + ",".join(nested) + "]", encoding="cp949")
    (tmp_path / "in" / "b.txt").write_text("\n".join(texts[20:]), encoding="cp949")
    (tmp_path / "in" / "c.txt").write_bytes(("바다 하늘 " * 200).encode("cp949") + b"\xb9")
    (tmp_path / "in" / "d.hwp").touch()
    index = pack(tmp_path, tokenizers[0], "out", "--encoding", "cp949", "--text_field", "page.body",
                 "--lines").index
    assert index["documents"] + index["val"]["documents"] == 31
    screen = capsys.readouterr()
    assert "1 .hwp (d.hwp)" in screen.err and "1 documents have a few broken bytes" in screen.out


def fake(folder: Path, sizes: list[int]) -> data.Shards:
    """Shards whose tokens are 0, 1, 2, ..., so that a window shows where it was read."""
    folder.mkdir()
    parts = np.split(np.arange(sum(sizes), dtype=np.uint32), np.cumsum(sizes)[:-1])
    files = {
        f"train-{i:05d}.npy": data.save_array(folder / f"train-{i:05d}.npy", part)
        for i, part in enumerate(parts)
    }
    cli.write_json(folder / "index.json",
                   {"tokens": sum(sizes), "tokenizer_sha256": "0", "files": files,
                                           "bos_token_id": 1, "val": {"documents": 0, "files": {}}})
    return data.Shards(folder)


def test_windows_span_files(tmp_path):
    shards = fake(tmp_path / "s", [5, 1, 30, 4])
    for seq_len in (1, 3, 7, 39):
        assert shards.windows(seq_len) == 39 // seq_len
        for i in range(shards.windows(seq_len)):
            inputs, targets = shards.window(i, seq_len)
            assert inputs.dtype == targets.dtype == np.int64
            assert inputs.tolist() == list(range(i * seq_len, (i + 1) * seq_len))
            assert targets.tolist() == list(range(i * seq_len + 1, (i + 1) * seq_len + 1))


def test_shards_that_have_changed_since_they_were_written(tmp_path):
    fake(tmp_path / "s", [50, 50])
    file = tmp_path / "s" / "train-00001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2] + b"\x01\x00")
    data.Shards(tmp_path / "s", verify=False)
    for content, message in (
        (whole[:-2] + b"\x01\x00", "01.npy has changed"),
        (whole[:-4], "01.npy has .* cut short"),
    ):
        file.write_bytes(content)
        with pytest.raises(cli.UserError, match=message):
            data.Shards(tmp_path / "s")
    file.unlink()
    with pytest.raises(cli.UserError, match="00001.npy is missing"):
        data.Shards(tmp_path / "s", verify=False)
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "not an index"),
        ('{"tokens": 3}', "not an index"),
    ):
        (tmp_path / "s" / "index.json").write_text(content)
        with pytest.raises(cli.UserError, match=message):
            data.Shards(tmp_path / "s")
    with pytest.raises(cli.UserError, match="no index.json"):
        data.Shards(tmp_path)


@pytest.mark.parametrize("limit, wrong, flags", [
    (4_000, 0, []),                             # no room for the shard
    (4_000, 300, []),                           # for rejected.jsonl
    (2_000, 0, ["--shard_tokens", "200"]),      # for index.json
])
def test_a_full_disk_is_one_line_and_nothing_half_is_left(tmp_path, tokenizers, limit, wrong,
                                                          flags):
    """A limit on the size of files: the kernel refuses to write, as on a full disk."""
    write(tmp_path / "in" / "a.jsonl", sentences(random.Random(1), 200))
    with open(tmp_path / "in" / "a.jsonl", "a") as file:
        file.write("broken\n" * wrong)
    argv = ["pack", "--input", str(tmp_path / "in"), "--tokenizer", str(tokenizers[0]),
            "--val_bytes", "500", "--out", str(tmp_path / "out" / "shards"), *flags]
    code = f"""
import resource, signal, sys
import data
from common import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["data.py"]
cli.run(lambda: data.main({argv!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("data.py: ") and "File too large" in done.stderr
    assert str(tmp_path / "out" / "shards") in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_pack_says_that_a_validation_set_is_small(world, tmp_path, capsys):
    argv = ["pack", "--input", f"{world}/ko.jsonl", "--tokenizer", f"{world}/base.model", "--out"]
    data.main([*argv, str(tmp_path / "few"), "--val_fraction", "0.05"])
    assert "for validation few documents (" in capsys.readouterr().out
    data.main([*argv, str(tmp_path / "enough"), "--val_fraction", "0.5"])
    assert "few documents" not in capsys.readouterr().out


def test_data_py_comes_without_torch():
    """Each of `clean`'s processes imports it, and torch would take seconds and 200 MB in each."""
    command = [sys.executable, "-c", "import data, sys; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_an_array_is_written_as_numpy_writes_it(tmp_path):
    for array in (np.arange(5, dtype=np.uint16), np.zeros(0, np.uint32), np.arange(9) < 4):
        entry = data.save_array(tmp_path / "a.npy", array)
        np.save(tmp_path / "b.npy", array)
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
        assert entry["tokens"] == len(array) and np.load(tmp_path / "a.npy").dtype == array.dtype


# -------------------------------------------------------------------------------------------- order

@pytest.fixture
def loader(tmp_path):
    sources = [
        fake(tmp_path / "a", [40, 61]),
        fake(tmp_path / "b", [33]),
        fake(tmp_path / "c", [201]),
    ]
    return lambda seed=7, weights=(0.6, 0.3, 0.1): data.Loader(
        sources[: len(weights)], list(weights), 10, seed
    )


def test_an_epoch_deals_every_window_once_and_the_next_in_another_order(loader):
    inputs, targets, source = loader().next(300)
    assert inputs.shape == targets.shape == (300, 10)
    assert inputs.dtype == targets.dtype == source.dtype == np.int64
    assert (targets == inputs + 1).all()  # of tokens that count 0, 1, 2, ...
    for i, n in enumerate((10, 3, 20)):
        starts = inputs[source == i][:, 0] // 10
        epochs = [starts[e:e + n].tolist() for e in range(0, len(starts) - n + 1, n)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len(epochs) < 3 or len({tuple(epoch) for epoch in epochs}) > 1
    again, _, _ = loader().next(300)
    other, _, _ = loader(seed=8).next(300)
    assert (inputs == again).all() and (inputs != other).any()


def strays(first: list[Fraction], last: list[Fraction], windows: int) -> tuple[Fraction, Fraction]:
    """(most windows behind, most windows ahead) of any source at any draw of a stage, in exact
    fractions. The number due is the integral of the source's exact share."""
    first, last = ([w / sum(weights) for w in weights] for weights in (first, last))
    floats, counts = [[float(w) for w in weights] for weights in (first, last)], [0] * len(first)
    behind = []
    for s in range(1, windows + 1):
        counts[data.furthest_behind(*floats, counts, windows)] += 1
        for a, b, count in zip(first, last, counts, strict=True):
            behind.append(a * s + (b - a) * s * s / (2 * windows) - count)
    return max(behind), -min(behind)


def fractions(rng: np.random.Generator, n: int, power: int = 1) -> list[Fraction]:
    return [Fraction(float(x) ** power + 0.01).limit_denominator(1000) for x in rng.random(n)]


def test_sources_are_interleaved_as_their_shares_say():
    """For any weights: less than a window ahead, and at most 1/2 + ... + 1/n behind. (Proof: the
    mean lag of the k sources furthest behind is at most 1/(k+1) + ... + 1/n, by induction over
    draws.)"""
    rng = np.random.default_rng()
    for _ in range(40):
        n = int(rng.integers(2, 21))
        weights = fractions(rng, n, power=int(rng.integers(1, 7)))
        behind, ahead = strays(weights, weights, 150)
        assert ahead < 1 and behind <= sum(Fraction(1, k) for k in range(2, n + 1)) + Fraction(
            1, 10**9
        )


def test_two_to_twenty_random_sources_stray_less_than_a_window():
    """Not guaranteed for every set of weights: see the comment in furthest_behind."""
    rng = np.random.default_rng(0)
    for n in range(2, 21):
        weights = fractions(rng, n)
        assert max(strays(weights, weights, 300)) < 1


def test_weights_that_move_over_a_stage_stray_no_further():
    """One of the sources fades out."""
    rng, seeded = np.random.default_rng(), np.random.default_rng(0)
    for n in range(2, 21):
        length = int(rng.integers(5, 300))
        behind, ahead = strays(fractions(rng, n), [Fraction(0), *fractions(rng, n - 1)], length)
        assert ahead < 1 and behind <= sum(Fraction(1, k) for k in range(2, n + 1)) + Fraction(
            1, 10**9
        )
        assert max(strays(fractions(seeded, n), [Fraction(0), *fractions(seeded, n - 1)], 200)) < 1


def drawn(loader: data.Loader, n: int) -> list[int]:
    return loader.next(n)[2].tolist()


def test_the_source_furthest_behind_comes_next(loader):
    """By hand. With weights ½, ⅜ and ⅛, sources are behind by (½ ⅜ ⅛), (0 ¾ ¼), (½ ⅛ ⅜), (0 ½ ½),
    (½ -⅛ ⅝), (1 ¼ -¼), (½ ⅝ -⅛), (1 0 0) before each draw. Then all are back at the start."""
    assert drawn(loader(weights=(4, 3, 1)), 16) == [0, 1, 0, 1, 2, 0, 1, 0] * 2


def test_weights_move_within_each_stage_and_others_carry_on(loader):
    """Two sources that trade places over 4 windows are due s - s²/8 and s²/8: behind by (⅞ ⅛),
    (½ ½), (-⅛ 1⅛), (0 1)."""
    moving = loader(weights=((1, 0), (0, 1)))
    for _ in range(2):
        moving.begin_stage(4)
        assert drawn(moving, 4) == [0, 0, 1, 1]
    for stages in ([16], [3, 1, 12], [1] * 16):
        still, found = loader(weights=(4, 3, 1)), []
        for windows in stages:
            still.begin_stage(windows)
            found += drawn(still, windows)
        assert found == [0, 1, 0, 1, 2, 0, 1, 0] * 2


def test_as_packed_keeps_the_order_of_the_shards(tmp_path):
    shards = fake(tmp_path / "a", [40, 61])
    inputs, _, _ = data.Loader([shards], [1.0], 10, 7, as_packed=True).next(25)
    starts = inputs[:, 0]
    assert starts.tolist() == [10 * (i % 10) for i in range(25)]


def test_every_process_reads_its_rows_of_the_same_batch(loader):
    whole = loader().next(24)
    for n in (2, 3, 4):
        parts = [
            loader().next(24, slice(rank * 24 // n, (rank + 1) * 24 // n)) for rank in range(n)
        ]
        for of_parts, of_whole in zip(zip(*parts, strict=True), whole, strict=True):
            assert (np.concatenate(of_parts) == of_whole).all()
    strided = loader()
    for every_second, array in zip(strided.next(24, slice(1, None, 2)), whole, strict=True):
        assert (every_second == array[1::2]).all()
    # The state is that of the whole batch.
    assert strided.counts == [int(n) for n in np.bincount(whole[2])]


@pytest.mark.parametrize("weights",
                         [(0.6, 0.3, 0.1), (1 / 3, 1 / 3, 1 / 3),
                          ((0.1, 0.7), (0.6, 0.3), (0.3, 0))])
def test_resume_in_the_middle_of_an_epoch_deals_the_same_batches(loader, weights):
    straight = loader(weights=weights)
    straight.next(3)
    straight.begin_stage(180)
    for _ in range(5):
        straight.next(7)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = loader(weights=weights)
    resumed.load_state_dict(state)
    for _ in range(20):
        for a, b in zip(straight.next(7), resumed.next(7), strict=True):
            assert (a == b).all()
    for other in (loader(seed=8, weights=weights), loader(weights=(0.5, 0.4, 0.1))):
        with pytest.raises(cli.UserError, match="saved data order"):
            other.load_state_dict(state)


def test_loader_refuses(tmp_path):
    shards = fake(tmp_path / "a", [11])
    inputs, targets, _ = data.Loader([shards], [1.0], 10, 0).next(3)
    assert inputs.tolist() == [list(range(10))] * 3 and targets.tolist() == [list(range(1, 11))] * 3
    with pytest.raises(cli.UserError, match="less than a window"):
        data.Loader([shards], [1.0], 11, 0)
    for weights in ([], [0.0], [-1.0], [math.nan], [math.inf], [1.0, 1.0], [(0.0, 1.0)]):
        with pytest.raises(cli.UserError, match="weights"):
            data.Loader([shards], weights, 10, 0)


def test_prompts_are_given_and_responses_learnt(world, tmp_path):
    """The targets of a packed dialogue are the tokens of response and EOS, with prompt and response
    encoded together; validation counts the bytes of responses; a line without a field is rejected
    by name."""
    rng = np.random.default_rng()
    def word():
        return "".join(rng.choice(list("etaoin"), 4))
    pairs = [(f"{word()} {word()}? ", f"{word()} {word()} {word()}") for _ in range(40)]
    lines = [{"question": p, "answer": r} for p, r in pairs] + [{"question": "q"}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data.main(["pack", "--input", str(tmp_path / "d.jsonl"),
               "--tokenizer", str(world / "base.model"), "--out", str(tmp_path / "s"),
               "--prompt_field", "question", "--response_field", "answer", "--val_fraction", "0.2",
               "--shard_tokens", "50"])
    assert "no answer field" in (tmp_path / "s" / "rejected.jsonl").read_text()
    sp, shards = tokenizer.load(world / "base.model"), data.Shards(tmp_path / "s")
    docs, n_bytes = shards.validation(10**6)
    responses = {r for _, r in pairs}
    windows = [shards.window(i, 7) for i in range(shards.windows(7))]
    learned = [[]]
    for token, target in zip(*map(np.concatenate, zip(*windows, strict=True)), strict=True):
        if target != data.IGNORE:
            learned[-1].append(int(target))
        elif learned[-1]:
            learned.append([])
        assert 0 <= token < 400
    texts = [sp.decode(ids) for ids in learned if ids[-1:] == [sp.eos]]
    assert shards.index["documents"] + len(docs) == len(pairs)
    assert len(texts) >= shards.index["documents"] - 2 and all(text in responses for text in texts)
    prompts = shards.prompts(docs)
    held = [
        sp.decode(doc[~is_prompt].tolist()) for doc, is_prompt in zip(docs, prompts, strict=True)
    ]
    assert all(text in responses for text in held) and n_bytes == sum(len(text) for text in held)
    asked = {" ".join(p.split()) for p, _ in pairs}
    assert all(
        sp.decode(doc[is_prompt].tolist()) in asked
        for doc, is_prompt in zip(docs, prompts, strict=True)
    )
    some, _ = shards.validation(n_bytes // 2)
    assert 0 < len(some) < len(docs)
    assert all((a == b).all() for a, b in zip(shards.prompts(some), prompts, strict=False))
    inputs, targets, _ = data.Loader([shards], [1.0], 7, 0).next(8)
    for row in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert any(row == (a.tolist(), b.tolist()) for a, b in windows)
    model_folder = str(world / "model")
    train.main(["--model", model_folder, "--data", str(tmp_path / "s"),
                "--out", str(tmp_path / "run"), "--stages", "sft:256:1e-2", "--seq_len", "16",
                "--batch_tokens", "64", "--device", "cpu"])
    records = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0]


def test_half_of_a_dialogue_and_sft_without_prompts_are_refused(world, tmp_path, refused):
    packs = ["pack", "--input", str(world / "en.jsonl"), "--tokenizer", str(world / "base.model"),
             "--out", str(tmp_path / "s"), "--prompt_field", "question"]
    refused(data, packs, "go together")
    trains = ["--model", str(world / "model"), "--data", str(world / "shards/ko"),
              "--stages", "sft:1k:1e-3", "--device", "cpu", "--seq_len", "32",
              "--out", str(tmp_path / "run")]
    refused(train, trains, "--prompt_field")


# ------------------------------------------------------------------------------------ bits per byte

class Bigram(torch.nn.Module):
    """A model that knows only the previous token: how windows are cut does not change its loss."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.logp = torch.randn(vocab_size, vocab_size, dtype=torch.float64).log_softmax(-1)
        self.widest = 0

    def forward(self, tokens, targets):
        assert tokens.min() >= 0  # an input is a row of the embedding, for padding too
        self.widest = max(self.widest, tokens.shape[1])
        loss = torch.nn.functional.cross_entropy(
            self.logp[tokens].flatten(0, 1), targets.flatten(), reduction="sum"
        )
        return loss, (targets != -100).sum()


@pytest.mark.parametrize("seq_len", [1, 5, 16, 1000])
def test_bits_per_byte_counts_every_token_once(tmp_path, tokenizers, seq_len):
    texts = sentences(random.Random(), 200)
    write(tmp_path / "in" / "a.jsonl", texts)
    shards = pack(tmp_path, tokenizers[0], "out", "--val_fraction", "0.3")
    model = Bigram(320)
    documents, n_bytes = shards.validation(1500)
    nats = -sum(
        float(model.logp[a, b]) for d in documents for a, b in zip(d[:-1], d[1:], strict=True)
    )
    n_tokens = sum(len(d) - 1 for d in documents)
    for batch in (1, 7):
        result = data.bits_per_byte(model, shards, seq_len, max_bytes=1500, batch=batch)
        assert (
            result["tokens"] == n_tokens
            and result["bytes"] == n_bytes <= 1500
            and model.widest <= seq_len
        )
        assert math.isclose(result["loss"], nats / n_tokens, rel_tol=1e-9)
        assert math.isclose(result["bits_per_byte"], nats / n_bytes / math.log(2), rel_tol=1e-9)


@pytest.mark.parametrize("flags, message", [
    (["--input", "absent"], "absent does not exist"), (["--val_fraction", "0"], "val_fraction"),
    (["--tokenizer", "in/a.jsonl"], "a.jsonl"), (["--tokenizer", "absent.model"], "absent.model"),
    (["--input", "bad.jsonl"],
     r"no document to train on .*1 lines were rejected \(1 of them: broken JSON\), 0 documents"),
    (["--shard_tokens", "0"], "shard_tokens"), (["--val_fraction", "0.99999999"], "for validation"),
])
def test_user_errors_are_one_line(tmp_path, tokenizers, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    write(Path("in/a.jsonl"), ["a", "b", "c"])
    Path("bad.jsonl").write_text("{")
    with pytest.raises(cli.UserError, match=message):
        data.main(
            ["pack", "--input", "in", "--tokenizer", str(tokenizers[0]), "--out", "out", *flags]
        )
    assert not Path("out").exists()


def test_a_tokenizer_longer_than_the_table_of_its_model(tmp_path, tokenizers):
    """Otherwise only training would find an id beyond the table. Only pieces of texts count."""
    write(tmp_path / "in/a.jsonl", ["하늘", "sky", "tree"])
    folder = tmp_path / "model"
    folder.mkdir()
    raw = tokenizers[0].read_bytes()
    pad = field(files.PIECES, field(files.TEXT, b"<pad>") + field(files.TYPE, files.CONTROL))
    (folder / "tokenizer.model").write_bytes(raw + pad)
    assert tokenizer.load(folder).size == 321
    cli.write_json(folder / "config.json", {"vocab_size": 320})
    pack(tmp_path, folder, "out")
    cli.write_json(folder / "config.json", {"vocab_size": 319})
    with pytest.raises(
        cli.UserError, match="ids up to 319, .*model/config.json says vocab_size 319: .* init.py"
    ):
        pack(tmp_path, folder, "again")
    assert not (tmp_path / "again").exists()
    # A file by itself belongs to no model.
    pack(tmp_path, folder / "tokenizer.model", "again")
