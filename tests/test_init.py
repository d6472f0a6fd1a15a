"""New rows are what their definition says, by id, in both tables; everything old is the same, bit for bit."""
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
from common import cli

METHODS = ("random", "mean", "mean_both", "subtoken", "subtoken_both", "eeve")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A folder with model/ (base tokenizer that knows some Hangul), tied/, sharded/, merged.model and shards/."""
    root, rng = tmp_path_factory.mktemp("init"), random.Random(5)
    few = [line for line in (world / "ko.jsonl").read_text().splitlines()[:30]]
    (root / "some.jsonl").write_text("\n".join([*(world / "en.jsonl").read_text().splitlines(), *few]))
    tokenizer.main(["train", "--text", "all", "--input", f"{root}/some.jsonl", "--vocab_size", "900",
                    "--out", f"{root}/base.model"])
    tokenizer.main(["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "700", "--out", f"{root}/korean.model"])
    tokenizer.main(["merge", "--base", f"{root}/base.model", "--korean", f"{root}/korean.model",
                    "--out", f"{root}/merged.model"])
    for name, tied, dtype in (("model", False, "float32"), ("tied", True, "float32"), ("half", False, "bfloat16")):
        torch.manual_seed(rng.randrange(99))
        (root / name).mkdir()
        llama = model.Llama(tiny_config(vocab_size=900, tie_word_embeddings=tied, dtype=dtype))
        with torch.no_grad():
            llama.lm_head.weight.mul_(3)  # so that the two tables differ in scale
        model.save(llama, root / name)
        tokenizer.save(root / "base.model", root / name)
    shard(root / "model", root / "sharded", 5)
    write_jsonl(root / "val.jsonl", [korean(rng, 20) for _ in range(60)])
    data.main(["pack", "--input", f"{root}/val.jsonl", "--tokenizer", f"{root}/merged.model", "--out", f"{root}/shards",
               "--val_fraction", "0.2"])
    return root


def shard(source: Path, target: Path, n: int) -> None:
    """Deal a model's tensors over n files with an index."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    (target / "model.safetensors").unlink()
    where = {name: f"model-{i % n + 1:05d}-of-{n:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({k: v for k, v in tensors.items() if where[k] == file}, target / file, metadata={"format": "pt"})
    size = sum(t.nbytes for t in tensors.values())
    cli.write_json(target / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def grow(base, name, out, method, *more) -> dict[str, torch.Tensor]:
    init.main(["--model", f"{base}/{name}", "--tokenizer", f"{base}/merged.model", "--out", str(out),
               "--method", method, *more])
    return {k: v for file in Path(out).glob("*.safetensors") for k, v in load_file(file).items()}


def spelling(sp, piece: str) -> list[int]:
    """A piece's ids under the base, by another way than init's: behind a new line, which never merges with Hangul."""
    behind = sp.encode("\n")
    ids = sp.encode("\n" + piece.replace("▁", " "))
    assert ids[:len(behind)] == behind
    return ids[len(behind):]


@pytest.mark.parametrize("name", ["model", "tied", "half"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_are_their_definition(base, tmp_path, name, method):
    sp, merged = tokenizer.load(base / "base.model"), tokenizer.load(base / "merged.model")
    old, new = load_file(base / name / "model.safetensors"), grow(base, name, tmp_path / "out", method)
    assert old.keys() == new.keys()
    rules = dict(zip(METHODS, ("rr", "mr", "mm", "sr", "ss", "sf"), strict=True))[method]
    pieces = merged.get_piece_size()
    assert 1000 < pieces < 1664
    for k, before in old.items():
        if k not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(before, new[k])
            continue
        after, table, rule = new[k], before.double().numpy(), rules[k == "lm_head.weight"]
        assert after.dtype == before.dtype and torch.equal(after[:900].view(torch.uint8), before.view(torch.uint8))
        assert after.shape == (-(-pieces // 64) * 64, 32)
        want = {}
        for i in range(900, pieces):
            ids = spelling(sp, merged.id_to_piece(i))
            want[i] = {"m": table.mean(0), "s": table[ids].mean(0), "r": None,
                       "f": table[[j for j in ids if sp.id_to_piece(j) != "▁"][0]]}[rule]
        if rule == "r":
            rows = after[900:pieces].double().numpy()
            assert abs(rows.std() / table.std() - 1) < 0.05 and abs(rows.mean()) < 0.05 * table.std()
            assert len(np.unique(rows[:, 0])) > 0.3 * len(rows)
        else:
            exact = torch.from_numpy(np.stack(list(want.values()))).to(before.dtype)
            one_ulp = 8e-3 if name == "half" else 2e-7
            assert torch.allclose(after[900:pieces].float(), exact.float(), rtol=one_ulp, atol=1e-9)
        assert torch.allclose(after[pieces:].double(), before.double().mean(0), rtol=1e-2, atol=1e-4)


def test_the_written_folder_is_a_model(base, tmp_path):
    grow(base, "model", tmp_path / "out", "subtoken_both")
    config, size = model.Config.read(tmp_path / "out"), tokenizer.load(tmp_path / "out").get_piece_size()
    assert (config.base_vocab_size, config.unpadded_vocab_size, config.vocab_size % 64) == (900, size, 0)
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(range(size, config.vocab_size)) and generation["bos_token_id"] == 1
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (base / "merged.model").read_bytes()
    before, after = model.load(base / "model"), model.load(tmp_path / "out")
    tokens = torch.randint(0, 900, (2, 20))
    assert torch.equal(before(tokens), after(tokens)[..., :900])  # the old vocabulary means what it meant


def test_padding_can_never_be_likely_or_sampled(base, tmp_path):
    grow(base, "model", tmp_path / "out", "random", "--pad_to", "2000")
    llama, size = model.load(tmp_path / "out"), tokenizer.load(tmp_path / "out").get_piece_size()
    assert llama.config.vocab_size == 2000 > size
    hidden = 30 * torch.randn(500, 32)
    share = torch.softmax(llama.lm_head(hidden)[:, [*range(900), 1999]].double(), -1)[:, -1]
    assert (share < 1 / 900).all()  # against the base's rows alone, for any hidden state
    llama.lm_head.weight.data[size:] = 100.0  # even where training has pushed them up
    assert llama.generate(torch.ones(4, 3, dtype=torch.long), 8, temperature=5.0).max() < size
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs.lm_head.weight.data[size:] = 100.0
    tokens = theirs.generate(torch.ones(4, 3, dtype=torch.long), do_sample=True, temperature=5.0, max_new_tokens=8)
    assert tokens.max() < size


def test_seeds_and_padding_of_one(base, tmp_path):
    a, b, c = (grow(base, "model", tmp_path / "out", "random", "--seed", seed, "--pad_to", "1") for seed in "112")
    table = "lm_head.weight"
    assert torch.equal(a[table], b[table]) and not torch.equal(a[table], c[table])
    assert len(a[table]) == tokenizer.load(base / "merged.model").get_piece_size()
    assert not torch.allclose(a[table][900:] / a[table].std(), a["model.embed_tokens.weight"][900:]
                              / a["model.embed_tokens.weight"].std(), rtol=0.1)  # the tables' draws are independent
    assert "suppress_tokens" not in json.loads((tmp_path / "out/generation_config.json").read_text())


def test_shards_are_grown_one_by_one(base, tmp_path):
    whole, parts = (grow(base, name, tmp_path / name, "eeve") for name in ("model", "sharded"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    index = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in parts.values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "sharded" / file, "pt") as opened:
            assert name in opened.keys() and opened.metadata() == {"format": "pt"}
    model.load(tmp_path / "sharded")


def test_a_tied_file_that_holds_the_head_too_gets_both(base, tmp_path):
    shutil.copytree(base / "tied", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model/model.safetensors")
    shutil.copy(base / "merged.model", tmp_path)
    for method in ("random", "subtoken"):
        new = grow(tmp_path, "model", tmp_path / "out", method)
        assert torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"])


def test_a_base_with_padding_of_its_own_is_regrown_from_its_pieces(base, tmp_path):
    grow(base, "model", tmp_path / "once", "mean_both")
    (tmp_path / "once/tokenizer.model").write_bytes((base / "base.model").read_bytes())  # rows 900 … are now padding
    shutil.copy(base / "merged.model", tmp_path)
    config = json.loads((tmp_path / "once/config.json").read_text())
    short = tokenizer.load(base / "merged.model").get_piece_size() - config["vocab_size"]
    assert short < 0
    with pytest.raises(cli.UserError, match="only grows"):
        grow(tmp_path, "once", tmp_path / "twice", "subtoken_both")
    tensors = load_file(tmp_path / "once/model.safetensors")  # a base whose tables end a little after its pieces
    save_file(tensors | {k: tensors[k][:960].clone() for k in init.TABLES}, tmp_path / "once/model.safetensors")
    cli.write_json(tmp_path / "once/config.json", config | {"vocab_size": 960})
    again, fresh = (grow(folder, name, tmp_path / f"{name}2", "subtoken_both")
                    for folder, name in ((tmp_path, "once"), (base, "model")))
    assert all(torch.equal(again[k], fresh[k]) for k in fresh)


def sparse_shard(file: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of float32 zeros that takes no disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name], at = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}, at + size
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux resets the peak of resident memory")
@pytest.mark.parametrize("together", [False, True])
def test_memory_is_one_table_and_the_new_rows_not_a_model(base, tmp_path, together):
    """A model of many small shards, 8 MB a tensor, 270 MB in all; its two tables in one shard or in two."""
    width, folder, where = 2048, tmp_path / "model", {}
    shutil.copytree(base / "model", folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    cli.write_json(folder / "config.json", config | {"hidden_size": width})
    shards = [{name: [900, width]} for name in init.TABLES] + [{f"w{i}": [1000, width]} for i in range(31)]
    for i, shapes in enumerate([{**shards[0], **shards[1]}, *shards[2:]] if together else shards):
        sparse_shard(folder / f"{i}.safetensors", shapes)
        where.update(dict.fromkeys(shapes, f"{i}.safetensors"))
    cli.write_json(folder / init.INDEX, {"metadata": {}, "weight_map": where})
    added = math.ceil(tokenizer.load(base / "merged.model").get_piece_size() / 64) * 64 - 900
    table, rows, model_bytes = 4 * 900 * width, 4 * added * width, 33 * 4 * 900 * width

    def memory(field: str) -> int:
        return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    init.growth(folder, base / "merged.model", 64)  # what Python keeps of the tokenizers is not what is looked for
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    init.main(["--model", str(folder), "--tokenizer", f"{base}/merged.model", "--out", f"{tmp_path}/out"])
    peak = memory("VmHWM") - before
    in_float64 = 2 * 2 * table  # a slice of at most 4,096 rows, and its squares
    assert peak < table + 2 * rows + in_float64 + 2 * (1 << 24) + 10e6 < model_bytes / 2, f"{peak / 1e6:.0f} MB"
    with safe_open(tmp_path / "out" / where[init.TABLES[1]], "pt") as opened:
        assert opened.get_slice(init.TABLES[1]).get_shape() == [900 + added, width]


def test_refusals(base, world, tmp_path, refused):
    out = str(tmp_path / "out")
    merged = ["--tokenizer", f"{base}/merged.model", "--out", out]

    def broken(name, change):
        shutil.copytree(base / "sharded", tmp_path / name)
        change(tmp_path / name)
        return ["--model", f"{tmp_path}/{name}", *merged]

    def set_config(**values):
        return lambda folder: cli.write_json(folder / "config.json",
                                             json.loads((folder / "config.json").read_text()) | values)

    def cut(folder):
        file = folder / "model-00002-of-00005.safetensors"
        file.write_bytes(file.read_bytes()[:-8])

    def other_shape(folder):
        file = folder / json.loads((folder / init.INDEX).read_text())["weight_map"]["lm_head.weight"]
        save_file(load_file(file) | {"lm_head.weight": torch.zeros(900, 16)}, file)

    swapped = tokenizer.read(base / "merged.model").raw
    for old, new in ((b"<0x41>", b"<---->"), (b"<0x42>", b"<0x41>"), (b"<---->", b"<0x42>")):
        swapped = swapped.replace(old, new)
    swap = str(tmp_path / "swapped.model")
    Path(swap).write_bytes(swapped)
    for part, argv in [
            ("id 68 is '<0x42>'", ["--model", f"{base}/model", "--tokenizer", swap, "--out", out]),
            ("does not extend", ["--model", f"{base}/model", "--tokenizer", f"{world}/base.model", "--out", out]),
            ("says vocab_size 5000", broken("wide", set_config(vocab_size=5000))),
            ("says vocab_size 800", broken("narrow", set_config(vocab_size=800))),
            ("model-00003", broken("gone", lambda folder: (folder / "model-00003-of-00005.safetensors").unlink())),
            ("model-00002", broken("cut", cut)),
            ("lm_head.weight has shape [900, 16]", broken("shapes", other_shape)),
            ("tokenizer.model", broken("untokenized", lambda folder: (folder / "tokenizer.model").unlink())),
            ("--pad_to 0", ["--model", f"{base}/model", *merged, "--pad_to", "0"]),
            ("--out", ["--model", f"{base}/model", "--tokenizer", f"{base}/merged.model"]),
            ("choose another", ["--model", f"{base}/model", "--tokenizer", f"{base}/merged.model", "--out",
                                f"{base}/model"]),
            ("--probe_steps 0", ["--model", f"{base}/model", "--tokenizer", f"{base}/merged.model", "--probe",
                                 f"{base}/shards", "--probe_steps", "0"]),
            ("another tokenizer", ["--model", f"{base}/model", *merged, "--probe", f"{world}/shards/ko"])]:
        refused(init, argv, part)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


def test_an_interrupted_growth_leaves_nothing(base, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(init.tokenizer, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        grow(base, "model", tmp_path / "out", "mean")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model", "tied"])
def test_probe_starts_where_the_folders_do_and_trains_what_it_says(base, tmp_path, name, monkeypatch, capsys):
    frozen = []
    train = init.train_briefly

    def spy(llama, *rest):
        before = {k: v.clone() for k, v in llama.state_dict().items()}
        yield from train(llama, *rest)
        frozen.append({k for k, v in llama.state_dict().items() if torch.equal(v, before[k])})

    monkeypatch.setattr(init, "train_briefly", spy)
    init.main(["--model", f"{base}/{name}", "--tokenizer", f"{base}/merged.model", "--probe", f"{base}/shards", "--out",
               f"{tmp_path}/probe.json", "--probe_steps", "12", "--probe_batch", "2", "--seq_len", "16", "--lr", "0.01",
               "--probe_bytes", "1000"])
    result, printed = cli.read_json(tmp_path / "probe.json"), capsys.readouterr().out
    tables, every = result["bits_per_byte"], result["everything"]
    assert tuple(tables) == tuple(every) == METHODS
    body = {k for k in model.load(base / name).state_dict() if k not in init.TABLES}
    assert frozen == [body] * len(METHODS) + [set()] * len(METHODS)
    for method in METHODS:
        grow(base, name, tmp_path / "out", method)
        start = data.bits_per_byte(model.load(tmp_path / "out"), data.Shards(base / "shards"), 16, 1000)
        for bits in (tables[method], every[method]):
            assert list(bits) == ["0", "10", "12"]
            assert bits["0"] == pytest.approx(start["bits_per_byte"], rel=1e-6) and bits["12"] < bits["0"]
        assert every[method]["12"] != tables[method]["12"]
    assert result["best"] == min(METHODS, key=lambda method: tables[method]["12"] + every[method]["12"])
    assert f"--method {result['best']}" in printed
    assert f"of everything: {min(METHODS, key=lambda method: every[method]['12'])}" in printed


def test_probe_sees_the_same_batches_whatever_the_method(base, tmp_path, monkeypatch):
    seen = []
    draw = data.Loader.next

    def spy(self, n):
        batch = draw(self, n)
        seen.append(batch[0])
        return batch

    monkeypatch.setattr(data.Loader, "next", spy)
    init.main(["--model", f"{base}/model", "--tokenizer", f"{base}/merged.model", "--probe", f"{base}/shards",
               "--out", f"{tmp_path}/probe.json", "--probe_steps", "2", "--probe_batch", "2", "--seq_len", "16",
               "--probe_bytes", "500"])
    assert len(seen) == 2 * 2 * len(METHODS) and not np.array_equal(seen[0], seen[1])
    assert all(np.array_equal(batch, seen[i % 2]) for i, batch in enumerate(seen))
