"""Fixtures of several test files: a tiny world (corpus, tokenizer, model, shards), made once."""
import importlib.util
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before triton is imported: its kernels run on the CPU
    os.environ["TRITON_INTERPRET"] = "1"
# Under nohup, programs that tests start ignore SIGHUP too; but some tests send it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# PyTorch reads this once per process, and some tests run --deterministic later.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import data  # noqa: E402
import model  # noqa: E402
import tokenizer  # noqa: E402
from common import byte_level, cli  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# Tiny tensors: threads cost more than they gain, and one thread is always reproducible.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what needs a GPU, skip it where there is none, and run slow tests last."""
    has_gpu = torch.cuda.is_available()
    for item in items:
        if has_gpu and item.path.name == "test_kernels.py":
            item.add_marker(pytest.mark.gpu)  # on a GPU they run the compiled kernels
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=is_slow)


def is_slow(item) -> bool:
    return item.get_closest_marker("slow") is not None


def syllables(rng: random.Random, n: int) -> str:
    return "".join(chr(rng.choice(range(0xAC00, 0xAC00 + 400))) for _ in range(n))


def korean(rng: random.Random, words: int) -> str:
    return " ".join(syllables(rng, rng.randint(1, 4)) for _ in range(words)) + "."


def english(rng: random.Random, words: int) -> str:
    text = []
    for _ in range(words):
        letters = [rng.choice("etaoinshrdlu") for _ in range(rng.randint(2, 6))]
        text.append("".join(letters))
    return " ".join(text) + "."


def tiny_config(**changes) -> model.Config:
    """The smallest Llama with every feature: grouped queries, an untied head, four layers."""
    values = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    return model.Config(**{**values, **changes})


class Parsed(Exception):
    """Raised instead of running a program, once its flags are parsed."""


def parse(program, argv, monkeypatch):
    """(the parser of a program, and its result for argv, if not None), without running the program.

    `program` is a path in ROOT.
    """
    parse_args = cli.Parser.parse_args

    def stop(self, *args):
        raise Parsed(self, None if argv is None else parse_args(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(program), *(argv or [])])
        patch.setattr(cli.Parser, "parse_args", stop)
        name = f"{program.parent.name}_{program.stem}"
        spec = importlib.util.spec_from_file_location(name, ROOT / program)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.raises(Parsed) as parsed:
            module.main()
    return parsed.value.args


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"id": str(i), "text": t}, ensure_ascii=False) + "\n"
                            for i, t in enumerate(texts)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with ko.jsonl, en.jsonl, base.model (a BPE with byte fallback), model/ (random) and
    shards/{ko,en}."""
    root = tmp_path_factory.mktemp("world")
    rng = random.Random(7)
    write_jsonl(root / "ko.jsonl", [korean(rng, 40) for _ in range(150)])
    write_jsonl(root / "en.jsonl", [english(rng, 40) for _ in range(150)])
    tokenizer.main(["train", "--input", str(root / "en.jsonl"), "--vocab_size", "400",
                    "--text", "all", "--out", str(root / "base.model")])
    torch.manual_seed(0)
    (root / "model").mkdir()
    model.save(model.Llama(tiny_config()), root / "model")
    tokenizer.save(root / "base.model", root / "model")
    for language in ("ko", "en"):
        data.main(["pack", "--input", str(root / f"{language}.jsonl"),
                   "--tokenizer", str(root / "base.model"),
                   "--out", str(root / "shards" / language), "--val_fraction", "0.05"])
    return root


@pytest.fixture(scope="session")
def llama3(tmp_path_factory):
    """A folder with toy/{ko,en,kobest}, base/ (of Llama 3's kind), korean.tiktoken, merged/, grown/
    and shards/{ko,en}: see llama3_world.make."""
    import llama3_world  # it imports this file
    return llama3_world.make(tmp_path_factory.mktemp("llama3"))


@pytest.fixture(params=["tiktoken", "definition"])
def engine(request, monkeypatch):
    """Run a test twice if tiktoken is installed: with it and without it."""
    if request.param == "tiktoken":
        pytest.importorskip("tiktoken")
    else:
        monkeypatch.setattr(byte_level, "tiktoken", None)


@pytest.fixture
def refused(capsys, monkeypatch):
    """Call a program's main as the command line would; assert exit status 2 and a one-line error
    that contains `part`."""
    def check(program, argv: list[str], part: str):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [program.__name__ + ".py", *argv])
        with pytest.raises(SystemExit) as exit:
            cli.run(program.main)
        line = capsys.readouterr().err.strip().split("\n")[-1]
        assert exit.value.code == 2, line
        assert part in line, f"{part!r} is not in {line!r}"
        assert "Traceback" not in line
    return check
