"""The whole recipe at the smallest size, one program after the other, as a user would run it. The
result opens in transformers, with the same logits and the same tokens."""
import json

import pytest
import torch
from conftest import tiny_config

import data
import eval_kobest
import init
import model
import sample
import tokenizer
import train
from toy import world as toy

ODD_TEXTS = [
    "안녕하세요, 반갑습니다!",  # greetings
    "두  칸   세 칸    네 칸",  # runs of spaces
    " 앞뒤 빈칸 ",  # spaces at both ends
    "줄\n바꿈\n\n두 번\t탭",  # newlines and a tab
    "大韓民國 한자 漢字",  # hanja
    "ㅋㅋㅋ ㅠㅠ",  # laughter and tears
    "def f(x):\n    return  x",
    "이모지 🐋 고래",  # emoji
    "plain English, too.",
    "한글abc123섞임",  # mixed
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Run everything once: toy world, clean, tokenizer, merge, init, pack, four stages."""
    out = tmp_path_factory.mktemp("recipe")
    toy.main(["--out", f"{out}/world", "--documents", "400"])
    for language in ("ko", "en"):
        flags = ["--input", f"{out}/world/{language}", "--out", f"{out}/clean/{language}"]
        if language == "ko":
            flags += ["--decontaminate", f"{out}/world/kobest"]
        data.main(["clean", *flags, "--lang", language, "--profile", "formal"])

    tokenizer.main(["train", "--text", "all", "--vocab_size", "500", "--input", f"{out}/clean/en",
                    "--out", f"{out}/base.model"])
    (out / "base").mkdir()
    torch.manual_seed(0)
    model.save(model.Llama(tiny_config(vocab_size=500)), out / "base")
    tokenizer.save(out / "base.model", out / "base")

    tokenizer.main(["train", "--vocab_size", "600", "--input", f"{out}/clean/ko",
                    "--out", f"{out}/korean.model"])
    tokenizer.main(["merge", "--base", f"{out}/base", "--korean", f"{out}/korean.model",
                    "--out", f"{out}/merged.model"])
    init.main(["--model", f"{out}/base", "--tokenizer", f"{out}/merged.model",
               "--out", f"{out}/grown", "--method", "subtoken_both"])
    for language in ("ko", "en"):
        data.main(["pack", "--input", f"{out}/clean/{language}", "--val_fraction", "0.05",
                   "--tokenizer", f"{out}/merged.model", "--out", f"{out}/shards/{language}"])
    train.main(["--model", f"{out}/grown",
                "--data", f"{out}/shards/ko=0.75", f"{out}/shards/en=0.25",
                "--stages", "embed:10k:1e-2", "odd:10k:5e-3", "even:10k:5e-3", "lora:10k:5e-3",
                "--batch_tokens", "512", "--lora_rank", "4", "--lora_alpha", "4",
                "--out", f"{out}/run"])
    return out


def test_korean_is_learned(recipe):
    lines = [json.loads(line) for line in (recipe / "run/metrics.jsonl").read_text().splitlines()]
    bits = [r["validation"]["ko"]["bits_per_byte"] for r in lines if "validation" in r]
    assert len(bits) == 5 and bits == sorted(bits, reverse=True) and bits[-1] < 0.75 * bits[0]


def test_new_pieces_shorten_korean_and_leave_english(recipe):
    base, merged = tokenizer.load(recipe / "base"), tokenizer.load(recipe / "run/model")
    for language in ("ko", "en"):
        texts = [d["text"] for d in data.read_documents([recipe / "clean" / language])]
        before = sum(map(len, base.encode(texts, bos=False)))
        after = sum(map(len, merged.encode(texts, bos=False)))
        if language == "en":
            assert after == before
        else:
            assert after < 0.6 * before


def test_the_finished_directory_opens_in_transformers(recipe):
    transformers = pytest.importorskip("transformers")
    ours = model.load(recipe / "run/model")
    folder = recipe / "run/model"
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(recipe / "run/model")
    sp = tokenizer.load(recipe / "run/model")
    korean = [d["text"] for d in data.read_documents([recipe / "clean/ko"])][:100]
    for text in ODD_TEXTS + korean:
        ids = sp.encode(text, bos=True)
        assert peer_tokenizer(text)["input_ids"] == ids
        assert peer_tokenizer.decode(ids, skip_special_tokens=True) == sp.decode(ids)
        tokens = torch.tensor([ids[:64]])
        with torch.inference_mode():
            assert (ours(tokens) - peer(tokens).logits).abs().max() < 1e-5


def test_padded_rows_are_never_sampled_here_or_in_transformers(recipe):
    transformers = pytest.importorskip("transformers")
    folder = recipe / "grown"
    config, pieces = model.Config.read(folder), tokenizer.load(folder).size
    assert config.vocab_size % 64 == 0 and config.unpadded_vocab_size == pieces < config.vocab_size
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.ones(64, 1, dtype=torch.long)
    for out in (model.load(folder).generate(tokens, 20, temperature=3.0),
                peer.generate(tokens, max_new_tokens=20, do_sample=True, temperature=3.0, top_k=0)):
        assert out.max() < pieces


def test_scores_and_samples_come_out(recipe, capsys):
    eval_kobest.main(["--model", f"{recipe}/run/model", "--data", f"{recipe}/world/kobest",
                      "--limit", "20", "--out", f"{recipe}/scores.json"])
    scores = json.loads((recipe / "scores.json").read_text())
    assert set(scores["tasks"]) == {"boolq", "copa", "hellaswag", "sentineg", "wic"}
    for task in scores["tasks"].values():
        assert len(task["examples"]) == 20 and 0 <= task["acc"] <= 1
    capsys.readouterr()
    prompt = "민수는"  # "Minsu", as the topic of a sentence
    sample.main(["--model", f"{recipe}/run/model", "--prompt", prompt, "--max_new_tokens", "12"])
    assert prompt in capsys.readouterr().out
