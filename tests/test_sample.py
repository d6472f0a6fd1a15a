"""sample.py: greedy against a loop without a cache, seeds, padding, both ends, what is refused."""
import json

import pytest
import torch
from conftest import tiny_config

import model
import sample
import tokenizer
from common import sentencepiece_file as files
from common.sentencepiece_file import field


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A model far from uniform. Its table has 112 more rows than its tokenizer has pieces, and its
    config.json does not say so."""
    folder = tmp_path_factory.mktemp("sample")
    torch.manual_seed(1)
    llama = model.Llama(tiny_config())
    for p in llama.parameters():
        p.data.normal_(std=0.4)
    llama.lm_head.weight.data[400:] *= 100      # a padded row would win nearly every draw
    model.save(llama, folder)
    tokenizer.save(world / "base.model", folder)
    return folder


def text(capsys, folder, *argv) -> str:
    sample.main(["--model", str(folder), "--device", "cpu", *map(str, argv)])
    settings, _, printed = capsys.readouterr().out.partition("\n")
    assert settings.startswith("settings: ") and printed.endswith("\n")
    return printed[:-1]


def greedy(folder, prompt: str, new: int) -> str:
    """By the definition: the whole text is run for every token."""
    sp = tokenizer.load(folder)
    llama = model.load(folder)
    tokens = [1, *sp.encode(prompt, bos=False)]
    for _ in range(new):
        with torch.inference_mode():
            logits = llama(torch.tensor([tokens]))[0, -1, :400]
        tokens.append(logits.argmax().item())
        if tokens[-1] == sp.eos:
            break
    return sp.decode(tokens)


@pytest.mark.parametrize("prompt", ["the tea ", "", "  two spaces", "한국"])
def test_greedy_continues_the_prompt(capsys, folder, prompt):
    ours = text(capsys, folder, "--prompt", prompt, "--temperature", 0, "--max_new_tokens", 20)
    assert ours == greedy(folder, prompt, 20) and ours.startswith(prompt)


def test_a_seed_gives_the_same_text_and_another_seed_another(capsys, folder):
    one, again, two = (
        text(capsys, folder, "--prompt", "tea", "--temperature", 1, "--seed", seed)
        for seed in "112")
    assert one == again != two


def test_out_holds_what_is_printed(capsys, folder, tmp_path):
    argv = ["--prompt", "tea", "--max_new_tokens", 8, "--out", tmp_path / "answers/a.txt"]
    printed = text(capsys, folder, *argv)
    assert (tmp_path / "answers/a.txt").read_text(encoding="utf-8") == printed + "\n"


def test_a_narrow_nucleus_is_greedy(capsys, folder):
    ours = text(capsys, folder, "--prompt", "tea", "--top_p", 1e-6, "--max_new_tokens", 20)
    assert ours == greedy(folder, "tea", 20)


def test_stops_at_the_last_position_and_at_the_end_of_a_document(
        capsys, folder, tmp_path, monkeypatch):
    made = []
    generate = model.Llama.generate

    def spy(*args, **more):
        made.append(generate(*args, **more))
        return made[-1]

    monkeypatch.setattr(model.Llama, "generate", spy)
    long = ("--prompt", "tea", "--max_new_tokens", 1000)
    text(capsys, folder, *long, "--seed", 3)
    length = made[-1].shape[1]
    assert length == 64 or length < 64 and made[-1][0, -1] == 2

    llama = model.load(folder)
    llama.model.norm.weight.data.zero_()        # all logits equal: greedy takes id 0, <unk>
    llama.lm_head.weight.data.zero_()
    model.save(llama, tmp_path)
    tokenizer.save(folder / "tokenizer.model", tmp_path)
    text(capsys, tmp_path, *long, "--temperature", 0)
    assert made[-1].shape[1] == 64

    eos = torch.full((1, 1), 2)
    monkeypatch.setattr(torch.Tensor, "argmax", lambda self, *args, **more: eos)
    text(capsys, tmp_path, *long, "--temperature", 0)
    assert made[-1][0].tolist() == [1, *tokenizer.load(folder).encode("tea", bos=False), 2]


def test_wrong_input_is_refused(folder, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ["--model", str(folder), "--prompt"]
    refused(sample, [*argv, "a b " * 100], "the model has 64 positions")
    for flag, value in (
        ("--temperature", "-1"),
        ("--top_p", "0"),
        ("--top_p", "1.5"),
        ("--max_new_tokens", "0"),
    ):
        refused(sample, [*argv, "a", flag, value], "--max_new_tokens must be at least 1")
    refused(sample, [*argv, "a", "--device", "cuda"], "no GPU")
    refused(sample, [*argv, "a", "--tempreature", "1"], "did you mean --temperature?")
    refused(sample, ["--model", str(tmp_path), "--prompt", "a"], "tokenizer.model")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    llama = model.Llama(tiny_config(vocab_size=300))
    model.save(llama, tmp_path)
    refused(sample, ["--model", str(tmp_path), "--prompt", "a"], "ids up to 399,")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 301}))
    refused(sample, ["--model", str(tmp_path), "--prompt", "a"], "config.json says")


def test_a_folder_that_is_not_a_model_directory_is_named(folder, tmp_path, refused):
    argv = ["--device", "cpu", "--prompt", "a", "--model"]
    refused(sample, [*argv, str(tmp_path / "none")], f"no model directory {tmp_path}/none")
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("")
    (run / "config.json").write_text("{}")
    refused(sample, [*argv, str(run)], f"{run}/model")


def test_a_special_token_without_a_row_is_refused_as_a_prompt(world, tmp_path, refused):
    """It does no harm in the tokenizer: no other text becomes one."""
    model.save(model.Llama(tiny_config(vocab_size=400)), tmp_path)
    pad = field(files.PIECES, field(files.TEXT, b"<pad>") + field(files.TYPE, files.CONTROL))
    (tmp_path / "tokenizer.model").write_bytes((world / "base.model").read_bytes() + pad)
    argv = ["--model", str(tmp_path), "--device", "cpu", "--max_new_tokens", "1", "--prompt"]
    sample.main([*argv, "tea"])
    refused(sample, [*argv, "tea<pad>"], "--prompt holds the special token '<pad>'")


@pytest.mark.parametrize("number", [46, 47])        # the name of BOS, of EOS
def test_bos_and_eos_need_a_row(world, tmp_path, refused, number):
    model.save(model.Llama(tiny_config(vocab_size=400)), tmp_path)
    end = field(files.PIECES, field(files.TEXT, b"<end>") + field(files.TYPE, files.CONTROL))
    named = field(files.TRAINER, field(number, b"<end>"))
    (tmp_path / "tokenizer.model").write_bytes((world / "base.model").read_bytes() + end + named)
    refused(sample, ["--model", str(tmp_path), "--prompt", "tea"], "ids up to 400,")
