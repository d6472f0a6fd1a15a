"""New rows follow their definition in both tables; everything old keeps its bits."""
import ctypes
import json
import math
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import korean, tiny_config, write_jsonl
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import data
import init
import model
import tokenizer
import train
from common import cli

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
RULES = {  # of the embedding, of the head: r(andom), m(ean), s(ubtoken), f(irst)
    "random": "rr",
    "mean": "mr",
    "mean_both": "mm",
    "subtoken": "sr",
    "subtoken_both": "ss",
    "eeve": "sf",
}
METHODS = tuple(RULES)


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A folder with model/ (its tokenizer knows some Hangul), tied/, half/, sharded/, merged.model
    and shards/."""
    root = tmp_path_factory.mktemp("init")
    rng = random.Random(5)
    lines = (world / "en.jsonl").read_text().splitlines()
    lines += (world / "ko.jsonl").read_text().splitlines()[:30]
    (root / "some.jsonl").write_text("\n".join(lines))
    tokenizer.main(["train", "--text", "all", "--input", f"{root}/some.jsonl",
                    "--vocab_size", "900", "--out", f"{root}/base.model"])
    tokenizer.main(["train", "--input", f"{world}/ko.jsonl",
                    "--vocab_size", "700", "--out", f"{root}/korean.model"])
    tokenizer.main(["merge", "--base", f"{root}/base.model", "--korean", f"{root}/korean.model",
                    "--out", f"{root}/merged.model"])
    for name, tied, dtype in (
        ("model", False, "float32"),
        ("tied", True, "float32"),
        ("half", False, "bfloat16"),
    ):
        torch.manual_seed(rng.randrange(99))
        (root / name).mkdir()
        config = tiny_config(vocab_size=900, tie_word_embeddings=tied, dtype=dtype)
        llama = model.Llama(config)
        with torch.no_grad():
            llama.lm_head.weight.mul_(3)  # so that the two tables differ in scale
        model.save(llama, root / name)
        tokenizer.save(root / "base.model", root / name)
    shard(root / "model", root / "sharded", 5)
    write_jsonl(root / "val.jsonl", [korean(rng, 20) for _ in range(60)])
    data.main(["pack", "--input", f"{root}/val.jsonl", "--tokenizer", f"{root}/merged.model",
               "--out", f"{root}/shards", "--val_fraction", "0.2"])
    return root


def shard(source: Path, target: Path, n: int) -> None:
    """Distribute a model's tensors over n files with an index."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    (target / "model.safetensors").unlink()
    where = {}
    for i, name in enumerate(tensors):
        where[name] = f"model-{i % n + 1:05d}-of-{n:05d}.safetensors"
    for file in set(where.values()):
        part = {name: tensor for name, tensor in tensors.items() if where[name] == file}
        save_file(part, target / file, metadata={"format": "pt"})
    size = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    cli.write_json(target / "model.safetensors.index.json", index)


def grow(base, name, out, method, *more) -> dict[str, torch.Tensor]:
    """Run init.py; return all tensors of the folder it wrote."""
    init.main(["--model", f"{base}/{name}", "--tokenizer", f"{base}/merged.model",
               "--out", str(out), "--method", method, *more])
    tensors = {}
    for file in Path(out).glob("*.safetensors"):
        tensors.update(load_file(file))
    return tensors


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def spelling(sp, piece: str) -> list[int]:
    """A piece's ids in the base, found in another way than init's: after a newline, which never
    merges with Hangul."""
    behind = sp.encode("\n", bos=False)
    ids = sp.encode("\n" + piece.replace("▁", " "), bos=False)
    assert ids[:len(behind)] == behind
    return ids[len(behind):]


@pytest.mark.parametrize("name", ["model", "tied", "half"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_follow_their_definition(base, tmp_path, name, method):
    sp = tokenizer.load(base / "base.model")
    merged = tokenizer.load(base / "merged.model")
    old = load_file(base / name / "model.safetensors")
    new = grow(base, name, tmp_path / "out", method)
    assert old.keys() == new.keys()
    pieces = merged.size
    assert 1000 < pieces < 1664
    for k, before in old.items():
        after = new[k]
        assert after.dtype == before.dtype
        if k not in (EMBEDDING, HEAD):
            assert same_bits(before, after)
            continue
        assert same_bits(after[:900], before)
        assert after.shape == (-(-pieces // 64) * 64, 32)
        mean = before.double().mean(0)
        assert torch.allclose(after[pieces:].double(), mean, rtol=1e-2, atol=1e-4)

        rule = RULES[method][k == HEAD]
        table = before.double().numpy()
        if rule == "r":
            rows = after[900:pieces].double().numpy()
            assert abs(rows.std() / table.std() - 1) < 0.05
            assert abs(rows.mean()) < 0.05 * table.std()
            assert len(np.unique(rows[:, 0])) > 0.3 * len(rows)
            continue
        expected = []
        for i in range(900, pieces):
            ids = spelling(sp, merged.pieces[i].text)
            if rule == "m":
                expected.append(table.mean(0))
            elif rule == "s":
                expected.append(table[ids].mean(0))
            else:
                expected.append(table[[j for j in ids if sp.pieces[j].text != "▁"][0]])
        exact = torch.from_numpy(np.stack(expected)).to(before.dtype)
        one_ulp = 8e-3 if name == "half" else 2e-7
        assert torch.allclose(after[900:pieces].float(), exact.float(), rtol=one_ulp, atol=1e-9)


def test_the_written_folder_is_a_model(base, tmp_path):
    grow(base, "model", tmp_path / "out", "subtoken_both")
    config = model.Config.read(tmp_path / "out")
    size = tokenizer.load(tmp_path / "out").size
    assert config.base_vocab_size == 900
    assert config.unpadded_vocab_size == size
    assert config.vocab_size % 64 == 0
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert "suppress_tokens" not in generation
    assert generation["bos_token_id"] == 1
    merged = (base / "merged.model").read_bytes()
    assert (tmp_path / "out/tokenizer.model").read_bytes() == merged
    before = model.load(base / "model")
    after = model.load(tmp_path / "out")
    tokens = torch.randint(0, 900, (2, 20))
    # The old vocabulary means what it meant before.
    assert torch.equal(before(tokens), after(tokens)[..., :900])


def test_generate_knows_where_a_text_ends(base, tmp_path):
    """Even if the base has no generation_config.json: then transformers asks config.json."""
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base/model/generation_config.json").unlink()
    config_file = tmp_path / "base/model/config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "eos_token_id": [2, 7]}))
    grow(tmp_path / "base", "model", tmp_path / "out", "mean")
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 7]


def test_padding_can_never_be_likely_or_sampled(base, tmp_path):
    grow(base, "model", tmp_path / "out", "random", "--pad_to", "2000")
    llama = model.load(tmp_path / "out")
    size = tokenizer.load(tmp_path / "out").size
    assert llama.config.vocab_size == 2000 > size
    hidden = 30 * torch.randn(500, 32)
    logits = llama.lm_head(hidden)[:, [*range(900), 1999]]
    share = torch.softmax(logits.double(), -1)[:, -1]
    assert (share < 1 / 900).all()  # compared with the base's rows alone, for any hidden state
    llama.lm_head.weight.data[size:] = 100.0  # even if training has pushed them up
    start = torch.ones(4, 3, dtype=torch.long)
    assert llama.generate(start, 8, temperature=5.0).max() < size


def test_training_pushes_padding_down(base, tmp_path):
    """Other programs know nothing of padding and need not: no suppress_tokens is written. Padding
    is never a target, so every step lowers its logits."""
    grow(base, "model", tmp_path / "grown", "subtoken_both", "--pad_to", "2000")
    train.main(["--model", f"{tmp_path}/grown", "--data", f"{base}/shards", "--device", "cpu",
                "--out", f"{tmp_path}/run", "--stages", "embed:10k:3e-2", "full:10k:1e-2",
                "--seq_len", "32", "--batch_tokens", "512"])
    shards = data.Shards(base / "shards")
    tokens = torch.stack([torch.from_numpy(shards.window(i, 32)[0]) for i in range(16)])
    size = tokenizer.load(tmp_path / "grown").size
    for name in ("grown", "run/model"):
        llama = model.load(tmp_path / name)
        with torch.no_grad():
            share = llama(tokens).softmax(-1)[..., size:]
        assert share.max() < 1 / 900


def test_seeds_and_padding_of_one(base, tmp_path):
    a, b, c = (grow(base, "model", tmp_path / "out", "random", "--seed", seed, "--pad_to", "1")
               for seed in "112")
    assert torch.equal(a[HEAD], b[HEAD]) and not torch.equal(a[HEAD], c[HEAD])
    assert len(a[HEAD]) == tokenizer.load(base / "merged.model").size
    # The draws for the two tables are independent.
    head = a[HEAD][900:] / a[HEAD].std()
    embedding = a[EMBEDDING][900:] / a[EMBEDDING].std()
    assert not torch.allclose(head, embedding, rtol=0.1)
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert "suppress_tokens" not in generation


@pytest.mark.parametrize("own", [[], [5]])
def test_pieces_in_place_of_the_base_s_padding_can_be_sampled(base, tmp_path, own):
    """A base may suppress its padding, and tokens of its own. Pieces replace the padding."""
    shutil.copytree(base / "model", tmp_path / "base/model")
    generation = {"suppress_tokens": [*own, *range(900, 960)]}
    cli.write_json(tmp_path / "base/model/generation_config.json", generation)
    shutil.copy(base / "merged.model", tmp_path / "base")
    grow(tmp_path / "base", "model", tmp_path / "out", "mean", "--pad_to", "64")
    generation = cli.read_json(tmp_path / "out/generation_config.json")
    assert generation["suppress_tokens"] == (own or None)


def test_shards_are_grown_one_by_one(base, tmp_path):
    whole, parts = (grow(base, name, tmp_path / name, "eeve") for name in ("model", "sharded"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    index = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in parts.values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "sharded" / file, "pt") as opened:
            assert name in opened.keys() and opened.metadata() == {"format": "pt"}
    model.load(tmp_path / "sharded")


def test_a_tied_file_that_holds_the_head_too_gets_both(base, tmp_path):
    shutil.copytree(base / "tied", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors[HEAD] = tensors[EMBEDDING].clone()
    save_file(tensors, tmp_path / "model/model.safetensors")
    shutil.copy(base / "merged.model", tmp_path)
    for method in ("random", "subtoken"):
        new = grow(tmp_path, "model", tmp_path / "out", method)
        assert torch.equal(new[HEAD], new[EMBEDDING])


def test_a_base_with_padding_of_its_own_is_regrown_from_its_pieces(base, tmp_path):
    grow(base, "model", tmp_path / "once", "mean_both")
    # With the base's tokenizer instead of the merged one, rows from 900 on are padding.
    shutil.copy(base / "base.model", tmp_path / "once/tokenizer.model")
    shutil.copy(base / "merged.model", tmp_path)
    config = json.loads((tmp_path / "once/config.json").read_text())
    assert tokenizer.load(base / "merged.model").size < config["vocab_size"]
    with pytest.raises(cli.UserError, match="can only grow"):
        grow(tmp_path, "once", tmp_path / "twice", "subtoken_both")
    # A base whose tables end shortly after its pieces is grown as if they ended with them.
    tensors = load_file(tmp_path / "once/model.safetensors")
    for name in init.TABLES:
        tensors[name] = tensors[name][:960].clone()
    save_file(tensors, tmp_path / "once/model.safetensors")
    cli.write_json(tmp_path / "once/config.json", config | {"vocab_size": 960})
    again = grow(tmp_path, "once", tmp_path / "once2", "subtoken_both")
    fresh = grow(base, "model", tmp_path / "model2", "subtoken_both")
    assert all(torch.equal(again[k], fresh[k]) for k in fresh)


def sparse_shard(file: Path, shapes: dict[str, list[int]]) -> int:
    """Write a safetensors file of float32 zeros that takes no disk; return the bytes of its
    tensors."""
    header = {}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
    return at


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK),
                    reason="Linux resets the peak of resident memory")
@pytest.mark.parametrize("together", [False, True])
def test_memory_is_one_weight_file_not_a_model(base, tmp_path, together):
    """A model of many small shards, 8 MB per tensor, 270 MB in total; its two tables in one shard
    or in two."""
    width = 2048
    folder = tmp_path / "model"
    shutil.copytree(base / "model", folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    cli.write_json(folder / "config.json", config | {"hidden_size": width})
    embedding = {EMBEDDING: [900, width]}
    head = {HEAD: [900, width]}
    shards = [embedding | head] if together else [embedding, head]
    shards += [{f"w{i}": [1000, width]} for i in range(31)]
    where = {}
    sizes = []
    for i, shapes in enumerate(shards):
        sizes.append(sparse_shard(folder / f"{i}.safetensors", shapes))
        where.update(dict.fromkeys(shapes, f"{i}.safetensors"))
    cli.write_json(folder / init.INDEX, {"metadata": {}, "weight_map": where})
    pieces = tokenizer.load(base / "merged.model").size
    added = math.ceil(pieces / 64) * 64 - 900

    def memory(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024

    init.growth(folder, base / "merged.model", 64)  # memory that the tokenizers keep is not counted
    # The least of ten runs: how many adjacent pages the kernel maps varies. Memory that was freed
    # but not returned must not hide anything.
    peak = math.inf
    for _ in range(10):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        init.main(["--model", str(folder), "--tokenizer", f"{base}/merged.model",
                   "--out", f"{tmp_path}/out"])
        peak = min(peak, memory("VmHWM") - before)
    # The largest shard as it was read, its grown tables, the rows added to the last one, and
    # float64 and squares of a slice of it (at most 4,096 rows). Plus 22 MB, which the kernel counts
    # on top in one process out of five, in each of the ten runs.
    table = 4 * 900 * width
    rows = 4 * added * width
    tables = 2 if together else 1
    bound = max(sizes) + tables * (table + rows) + rows + 2 * 2 * table + 10e6 + 22e6
    assert peak < bound < sum(sizes) / 2, f"{peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB"
    with safe_open(tmp_path / "out" / where[HEAD], "pt") as opened:
        assert opened.get_slice(HEAD).get_shape() == [900 + added, width]


def test_refusals(base, world, tmp_path, refused):
    out = str(tmp_path / "out")
    whole = ["--model", f"{base}/model"]
    merged = ["--tokenizer", f"{base}/merged.model"]
    merged_to_out = [*merged, "--out", out]

    def broken(name, change):
        shutil.copytree(base / "sharded", tmp_path / name)
        change(tmp_path / name)
        return ["--model", f"{tmp_path}/{name}", *merged_to_out]

    def set_vocab_size(folder, value):
        config = json.loads((folder / "config.json").read_text())
        cli.write_json(folder / "config.json", config | {"vocab_size": value})

    def cut(folder):
        file = folder / "model-00002-of-00005.safetensors"
        file.write_bytes(file.read_bytes()[:-8])

    def other_shape(folder):
        index = json.loads((folder / init.INDEX).read_text())
        file = folder / index["weight_map"][HEAD]
        save_file(load_file(file) | {HEAD: torch.zeros(900, 16)}, file)

    def no_head(folder):
        index = json.loads((folder / init.INDEX).read_text())
        file = folder / index["weight_map"][HEAD]
        save_file({k: v for k, v in load_file(file).items() if k != HEAD}, file)

    swapped = tokenizer.read(base / "merged.model").raw
    for old, new in ((b"<0x41>", b"<---->"), (b"<0x42>", b"<0x41>"), (b"<---->", b"<0x42>")):
        swapped = swapped.replace(old, new)
    swap = str(tmp_path / "swapped.model")
    Path(swap).write_bytes(swapped)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text("")
    shutil.copytree(base / "model", tmp_path / "run/model")

    refused(init, [*whole, "--tokenizer", swap, "--out", out], "id 68 is '<0x42>'")
    refused(init, [*whole, "--tokenizer", f"{world}/base.model", "--out", out], "does not extend")
    refused(init, ["--model", f"{base}/none", *merged_to_out], f"no model directory {base}/none")
    refused(init, ["--model", f"{tmp_path}/run", *merged_to_out], f"{tmp_path}/run/model")
    wide = broken("wide", lambda folder: set_vocab_size(folder, 5000))
    refused(init, wide, "says vocab_size 5000")
    narrow = broken("narrow", lambda folder: set_vocab_size(folder, 800))
    refused(init, narrow, "says vocab_size 800")
    third = "model-00003-of-00005.safetensors"
    refused(init, broken("gone", lambda folder: (folder / third).unlink()), "model-00003")
    refused(init, broken("cut", cut), "model-00002")
    refused(init, broken("shapes", other_shape), "lm_head.weight has shape [900, 16]")
    refused(init, broken("headless", no_head), "lm_head.weight has shape None")
    bare = broken("bare", lambda folder: (folder / "tokenizer.model").unlink())
    refused(init, bare, "tokenizer.model")
    refused(init, [*whole, *merged_to_out, "--pad_to", "0"], "--pad_to 0")
    refused(init, [*whole, *merged], "--out")
    refused(init, [*whole, *merged, "--out", f"{base}/model"], "choose another")
    probe = [*whole, *merged, "--probe", f"{base}/shards", "--probe_steps", "0"]
    refused(init, probe, "--probe_steps 0")
    foreign = [*whole, *merged_to_out, "--probe", f"{world}/shards/ko"]
    refused(init, foreign, "another tokenizer")
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


def test_a_disk_that_refuses_is_one_line(base, tmp_path, refused, monkeypatch):
    def full(*_, **__):
        raise init.SafetensorError("No space left on device")

    monkeypatch.setattr(init, "save_file", full)
    argv = ["--model", f"{base}/model", "--tokenizer", f"{base}/merged.model"]
    refused(init, [*argv, "--out", f"{tmp_path}/out"], "No space left on device")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_growth_leaves_nothing(base, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(init.tokenizer, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        grow(base, "model", tmp_path / "out", "mean")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- the probe


def run_probe(base, name: str, out: Path, *more: str) -> None:
    init.main(["--model", f"{base}/{name}", "--tokenizer", f"{base}/merged.model",
               "--probe", f"{base}/shards", "--out", f"{out}/probe.json",
               "--probe_batch", "2", "--seq_len", "16", *more])


@pytest.mark.parametrize("name", ["model", "tied"])
def test_probe_starts_where_the_folders_do_and_trains_what_it_says(
        base, tmp_path, name, monkeypatch, capsys):
    frozen = []
    train = init.train_briefly

    def spy(llama, *rest):
        before = {k: v.clone() for k, v in llama.state_dict().items()}
        yield from train(llama, *rest)
        frozen.append({k for k, v in llama.state_dict().items() if torch.equal(v, before[k])})

    monkeypatch.setattr(init, "train_briefly", spy)
    run_probe(base, name, tmp_path, "--probe_steps", "12", "--lr", "0.01", "--probe_bytes", "1000")
    result = cli.read_json(tmp_path / "probe.json")
    printed = capsys.readouterr().out
    tables = result["bits_per_byte"]
    every = result["everything"]
    assert tuple(tables) == tuple(every) == METHODS
    body = {k for k in model.load(base / name).state_dict() if k not in init.TABLES}
    assert frozen == [body] * len(METHODS) + [set()] * len(METHODS)
    shards = data.Shards(base / "shards")
    for method in METHODS:
        grow(base, name, tmp_path / "out", method)
        start = data.bits_per_byte(model.load(tmp_path / "out"), shards, 16, 1000)
        for bits in (tables[method], every[method]):
            assert list(bits) == ["0", "10", "12"]
            assert bits["0"] == pytest.approx(start["bits_per_byte"], rel=1e-6)
            assert bits["12"] < bits["0"]
        assert every[method]["12"] != tables[method]["12"]
    sums = {method: tables[method]["12"] + every[method]["12"] for method in METHODS}
    assert result["best"] == min(METHODS, key=sums.get)
    assert f"--method {result['best']}" in printed
    lowest = min(METHODS, key=lambda method: every[method]["12"])
    assert f"of everything: {lowest}" in printed


def test_probe_sees_the_same_batches_whatever_the_method(base, tmp_path, monkeypatch):
    seen = []
    draw = data.Loader.next

    def spy(self, *args):
        batch = draw(self, *args)
        seen.append(batch[0])
        return batch

    monkeypatch.setattr(data.Loader, "next", spy)
    run_probe(base, "model", tmp_path, "--probe_steps", "2", "--probe_bytes", "500")
    assert len(seen) == 2 * 2 * len(METHODS) and not np.array_equal(seen[0], seen[1])
    assert all(np.array_equal(batch, seen[i % 2]) for i, batch in enumerate(seen))
