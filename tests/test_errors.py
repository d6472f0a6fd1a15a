"""Mistakes a user can make, program by program: each ends with exit status 2 and one line that says
what is wrong and where.

The list is the test: a name, the command, and a part of the message. `{w}` is a valid little world,
`{b}` the same with one thing broken."""
import json
import shutil

import pytest
import sentencepiece
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file

import data
import eval_bits
import eval_kobest
import export
import init
import model
import sample
import tokenizer
import train
from common.sentencepiece_file import TRAINER, field
from toy import world as toy

PROGRAMS = {
    p.__name__: p
    for p in (data, eval_bits, eval_kobest, export, init, sample, tokenizer, toy, train)
}
TRAIN = ("train --device cpu --model {w}/model --data {w}/shards/ko --out {b}/run --seq_len 32 "
         "--stages full:1k:1e-3 ")
KOBEST = "eval_kobest --device cpu --model {w}/model --data {b}/kobest --tasks copa "
BITS = "eval_bits --device cpu --models {w}/model "
CLEAN = "data clean --input {w}/ko.jsonl --out {b}/clean "
PACK = "data pack --input {w}/ko.jsonl --out {b}/packed --tokenizer {w}/base.model "
MERGE = "tokenizer merge --korean {w}/base.model --out {b}/m.model "

WRONG = {
    # flags
    "an unknown flag": ("train --modle x", "did you mean --model?"),
    "an unknown flag of a command": ("data pack --inptu x", "did you mean --input?"),
    "no command": ("data", "required"),
    "a missing required flag": ("tokenizer merge --base {w}/base.model", "--korean"),
    "a choice that there is not": (CLEAN + "--profile novel", "invalid choice"),
    # cleaning and packing
    "an input that is not there": ("data clean --input {b}/none.jsonl --out {b}/clean",
                                   "none.jsonl does not exist"),
    "an input of another kind": (PACK + "--input {w}/base.model", "is none of"),
    "an empty folder": (PACK + "--input {b}/empty", "holds no"),
    "a folder of other kinds": (PACK + "--input {b}/other", "holds no"),
    "a folder of other kinds, and which": ("data clean --input {b}/other --out {b}/clean",
                                           "1 .hwp (a.hwp), 1 .pdf"),
    "an output inside its input": ("data clean --input {b}/nothing --out {b}/nothing/clean",
                                   "lies inside its own input"),
    "shards inside their input": (PACK + "--input {b}/nothing --out {b}/nothing/a/b",
                                  "lies inside its own input"),
    "an input inside the output": (PACK + "--input {b}/nothing/a.jsonl --out {b}/nothing",
                                   "replace its own input"),
    "a text and prompts at once": (PACK + "--text_field a --prompt_field q --response_field r",
                                   "choose one"),
    "an empty corpus": ("data clean --input {b}/nothing.jsonl --out {b}/clean", "nothing is left"),
    "an empty corpus to pack": (PACK + "--input {b}/nothing.jsonl", "document"),
    "no tokenizer file": (PACK + "--tokenizer {b}/none.model", "none.model"),
    "a share of validation above 1": (PACK + "--val_fraction 2", "--val_fraction 2"),
    "no KoBEST to decontaminate against": (CLEAN + "--decontaminate {b}/empty", "{b}/empty"),
    "a step that there is not": (CLEAN + "--steps rinse", "rinse"),
    "an output folder that is a file": (PACK + "--out {w}/en.jsonl", "is a file"),
    # tokenizers
    "more pieces than the corpus has": ("tokenizer train --input {w}/ko.jsonl --vocab_size 90000 "
                                        "--out {b}/t.model",
                                        "--vocab_size 90000"),
    "a corpus without Hangul": ("tokenizer train --input {w}/en.jsonl --vocab_size 500 --out "
                                "{b}/t.model", "Hangul"),
    "a Unigram base": (MERGE + "--base {b}/unigram.model", "Unigram"),
    "a tiktoken base": (MERGE + "--base {b}/tiktoken.model", "tiktoken"),
    "a damaged base": (MERGE + "--base {b}/damaged.model", "damaged"),
    # initialisation
    "a tokenizer that does not extend the model's": (
        "init --model {w}/model --tokenizer {b}/other.model --out {b}/grown --method mean",
        "does not extend"),
    "a method that there is not": ("init --model {w}/model --tokenizer {w}/base.model --out {b}/g "
                                   "--method best",
                                   "invalid choice"),
    "growing a model onto itself": ("init --model {b}/model --tokenizer {b}/model --out {b}/model "
                                    "--method mean",
                                    "choose another"),
    # model directories
    "no model directory": (TRAIN + "--model {b}/none", "{b}/none"),
    "a model without weights": ("sample --device cpu --prompt a --model {b}/weightless",
                                "model.safetensors"),
    "weights cut short": ("sample --device cpu --prompt a --model {b}/cut", "cut short"),
    "a tensor too few": ("sample --device cpu --prompt a --model {b}/missing",
                         "no tensor model.norm.weight"),
    "a tensor too many": ("sample --device cpu --prompt a --model {b}/extra",
                          "unknown tensor model.extra"),
    "a vocabulary grown without its embedding": ("sample --device cpu --prompt a --model {b}/shape",
                                                 "init.py"),
    "a config.json cut short": ("sample --device cpu --prompt a --model {b}/half",
                                "not valid JSON"),
    "a model without tokenizer": ("sample --device cpu --prompt a --model {b}/untokenized",
                                  "tokenizer.model"),
    "a head that is tied and is not": ("sample --device cpu --prompt a --model {b}/tied",
                                       "lm_head.weight differs"),
    "a rope scaling that is not whole": ("sample --device cpu --prompt a --model {b}/rope",
                                         "llama3 lacks"),
    "another architecture": (TRAIN + "--model {b}/gpt", "GPT2LMHeadModel"),
    # shards
    "a folder that is no shards": (TRAIN + "--data {b}/empty", "not a folder of token shards"),
    "a shard cut short": (TRAIN + "--data {b}/short", "cut short"),
    "a shard changed after packing": (TRAIN + "--data {b}/changed", "has changed"),
    "a shard gone": (TRAIN + "--data {b}/gone", "is missing"),
    "shards of another tokenizer": (TRAIN + "--data {b}/foreign", "another tokenizer"),
    "a weight that is no number": (TRAIN + "--data {w}/shards/ko=much", "'much'"),
    "a weight of nothing": (TRAIN + "--data {w}/shards/ko=0", "above 0"),
    # training
    "a stage without its fields": (TRAIN + "--stages embed", "what:tokens:peak_lr"),
    "no stages for a model of one's own": (TRAIN.replace("--stages full:1k:1e-3 ", ""), "--stages"),
    "a part that there is not": (TRAIN + "--stages middle:1M:1e-4", "middle"),
    "a LoRA beside trained layers": (TRAIN + "--stages odd+lora:1M:1e-4",
                                     "lora can be combined only with embed"),
    "a learning rate of 3": (TRAIN + "--stages odd:1M:3", "learning rate"),
    "new_rows of a model that was never grown": (TRAIN + "--stages new_rows:1k:1e-3",
                                                 "base_vocab_size"),
    "a batch that is no whole number of windows": (TRAIN + "--batch_tokens 100",
                                                   "--batch_tokens 100"),
    "a batch that micro-batches do not divide": (TRAIN + "--batch_tokens 96 --micro_batch 2",
                                                 "--micro_batch 2"),
    "windows longer than the model's positions": (TRAIN + "--seq_len 65", "64 positions"),
    "a checkpoint every 0 steps": (TRAIN + "--save_every 0", "--save_every 0 is not between"),
    "a warm-up longer than the stage": (TRAIN + "--warmup 3", "--warmup 3"),
    "a run that is there already": (TRAIN + "--out {b}/old_run", "is a run already"),
    "resuming what is no run": ("train --resume {b}/empty", "config.json"),
    "resuming a model directory": ("train --resume {w}/model", "is it a run folder"),
    "resuming with other settings": ("train --resume {b}/old_run --seed 3", "with --seed 0, not 3"),
    "a configuration beside a model": (TRAIN + "--config {w}/model/config.json", "choose one"),
    "a configuration without tokenizer": ("train --device cpu --config {w}/model/config.json",
                                          "needs --tokenizer"),
    "another tokenizer beside a model": (TRAIN + "--tokenizer {w}/base.model", "choose one"),
    "a weight with three ends": (TRAIN + "--data {w}/shards/ko=0.1:0.2:0.3", "0.5:0.9"),
    "weights of nothing": (TRAIN + "--data {w}/shards/ko=0:0", "above 0"),
    "processes for no plan": (TRAIN + "--world_size 8", "--plan"),
    "a GPU for no plan": (TRAIN + "--gpu H100", "--plan"),
    "a GPU that there is not": (TRAIN + "--plan --gpu H500", "A100-80"),
    "a GPU without bfloat16": ("train --plan --model {w}/model --gpu T4 --stages full:1k:1e-3",
                               "--dtype float32"),
    "no speed at all": (TRAIN + "--plan --tflops 0", "--tflops 0"),
    "nothing to draw from at the end": (TRAIN + "--data {w}/shards/ko=1:0", "no source is left"),
    "an unknown order": (TRAIN + "--order sorted", "as_packed"),
    "an unknown optimizer": (TRAIN + "--optimizer sgd", "adamw_bf16"),
    "an unknown part to recompute": (TRAIN + "--recompute most", "attention"),
    "unknown kernels": (TRAIN + "--kernels cuda", "triton"),
    "instruction tuning without prompts": (TRAIN + "--stages sft:1k:1e-3", "--prompt_field"),
    "a prompt without a response": ("data pack --input {w}/en.jsonl --tokenizer {w}/base.model "
                                    "--out {b}/p "
                                    "--prompt_field question", "go together"),
    "old rows both kept and trained": (TRAIN + "--stages new_rows+full:1k:1e-3", "choose"),
    "the same shards twice": (TRAIN + "--data {w}/shards/ko {w}/shards/ko {w}/shards/ko", "twice"),
    "a momentum of 2": (TRAIN + "--betas 2 0.95", "--betas"),
    "a seed below 0": (TRAIN + "--seed -1", "--seed -1"),
    "a LoRA wider than the model": (TRAIN + "--stages lora:1k:1e-3 --lora_rank 4000",
                                    "--lora_rank 4000"),
    "a run folder inside a file": (TRAIN + "--out {w}/ko.jsonl/run", "Not a directory"),
    # exporting
    "exporting a model directory": ("export {w}/model --out {b}/exported", "is it a run folder"),
    "exporting to nowhere": ("export {b}/old_run", "give --out"),
    # scoring
    "no KoBEST": (KOBEST + "--data {b}/empty", "{b}/empty"),
    "a split that is not there": (KOBEST + "--split test", "try --split"),
    "a column too few": (KOBEST + "--split train", "'question'"),
    "a label out of range": (KOBEST + "--split dev", "row 2"),
    "a limit of 0": (KOBEST + "--limit 0", "--limit 0"),
    "bits per byte of nothing": ("eval_bits --models {w}/model", "--data SHARDS"),
    "bits per byte of what is no shards": (BITS + "--data {b}/empty",
                                           "not a folder of token shards"),
    "bits per byte of a changed shard": (BITS + "--data {b}/changed", "has changed"),
    "bits per byte of another tokenizer's shards": (BITS + "--data {b}/foreign", "--tokenizer"),
    "bits per byte of documents that are not there": (BITS + "--input {b}/none.jsonl",
                                                      "none.jsonl does not exist"),
    "bits per byte of no document": (BITS + "--input {b}/nothing.jsonl", "holds no document"),
    "bits per byte of no model": (BITS + "{b}/none --data {w}/shards/ko", "{b}/none"),
    # sampling
    "a prompt longer than the model": (
        "sample --device cpu --model {w}/model --prompt " + "가" * 99,
        "64 positions"),
    "a temperature below 0": ("sample --device cpu --model {w}/model --prompt a --temperature -1",
                              "--temperature"),
}


@pytest.fixture(scope="module")
def broken(world, tmp_path_factory):
    """A folder in which each thing is broken in one way."""
    b = tmp_path_factory.mktemp("broken")
    (b / "empty").mkdir()
    (b / "nothing.jsonl").write_text("\n")
    for name in ("other/a.hwp", "other/b.pdf", "nothing/a.jsonl"):
        (b / name).parent.mkdir(exist_ok=True)
        (b / name).write_text("\n")
    texts = [json.loads(line)["text"] for line in (world / "ko.jsonl").read_text().splitlines()]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts),
                                             model_prefix=f"{b}/unigram", minloglevel=2,
                                             model_type="unigram", vocab_size=450,
                                             character_coverage=1.0)
    (b / "tiktoken.model").write_text("IQ== 0\nIg== 1\n")
    (b / "damaged.model").write_bytes((world / "base.model").read_bytes()[:-7])
    tokenizer.main(["train", "--text", "all", "--vocab_size", "350", "--input", f"{world}/en.jsonl",
                    "--out", f"{b}/other.model"])
    for name in ("model", "weightless", "cut", "missing", "extra", "shape", "half", "untokenized",
                 "gpt", "tied", "rope"):
        shutil.copytree(world / "model", b / name)
    (b / "weightless/model.safetensors").unlink()
    (b / "untokenized/tokenizer.model").unlink()
    weights = world / "model/model.safetensors"
    (b / "cut/model.safetensors").write_bytes(weights.read_bytes()[:-1000])
    tensors = load_file(weights)
    save_file(
        {k: v for k, v in tensors.items() if k != "model.norm.weight"},
        b / "missing/model.safetensors",
    )
    save_file({**tensors, "model.extra": torch.zeros(1)}, b / "extra/model.safetensors")
    tiny_config(vocab_size=576).write(b / "shape/config.json")
    (b / "half/config.json").write_text((world / "model/config.json").read_text()[:100])
    config = json.loads((world / "model/config.json").read_text())
    (b / "gpt/config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    for name in ("short", "changed", "gone"):
        shutil.copytree(world / "shards/ko", b / name)
    shard = (world / "shards/ko/train-00000.npy").read_bytes()
    (b / "short/train-00000.npy").write_bytes(shard[:-2])
    (b / "changed/train-00000.npy").write_bytes(shard[:-2] + bytes([shard[-2] ^ 1, shard[-1]]))
    (b / "gone/train-00000.npy").unlink()
    data.main(["pack", "--input", f"{world}/ko.jsonl", "--tokenizer", f"{b}/other.model",
               "--out", f"{b}/foreign"])
    (b / "old_run").mkdir()
    saved = {"model": f"{world}/model", "config": None, "data": [f"{world}/shards/ko"],
             "stages": ["full:1k:1e-3"], "batch_tokens": 512}
    (b / "old_run/config.json").write_text(json.dumps(saved))
    (b / "old_run/metrics.jsonl").write_text("")
    tied = {**config, "tie_word_embeddings": True}
    (b / "tied/config.json").write_text(json.dumps(tied))
    rope = {"rope_type": "llama3", "factor": 8}
    (b / "rope/config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    copa = b / "kobest/v1.0/COPA"
    copa.mkdir(parents=True)
    (copa / "train.tsv").write_text("ID\tsentence\t1\t2\tAnswer\n1\ta\tb\tc\t1\n")
    (copa / "dev.tsv").write_text("ID\tsentence\tquestion\t1\t2\tAnswer\n"
                                  "1\ta\t원인\tb\tc\t1\n2\ta\t원인\tb\tc\t3\n")  # 원인: cause
    return b


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_one_clear_line(name, world, broken, refused):
    command, part = (
        text.replace("{w}", str(world)).replace("{b}", str(broken)) for text in WRONG[name]
    )
    program, *argv = command.split()
    before = sorted(p.name for p in broken.iterdir())
    refused(PROGRAMS[program], argv, part)
    left = set(p.name for p in broken.iterdir()) - set(before) - {"run"}
    assert not left, f"half an output was left: {left}"


def test_the_model_fixture_itself_is_fine(world, capsys):
    """The commands above fail for the reason they name: without the fault they run."""
    sample.main(["--device", "cpu", "--model", str(world / "model"), "--prompt", "a",
                 "--max_new_tokens", "2"])
    assert model.load(world / "model").config.vocab_size == 512 and capsys.readouterr().out


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 14000000000\n".format(
    "0" * 64
)


@pytest.mark.parametrize("name",
                         ["config.json", "tokenizer.model", "tokenizer.json",
                          "tokenizer_config.json",
                                  "model.safetensors", "generation_config.json"])
def test_a_git_lfs_pointer_is_called_one(name, world, tmp_path, refused):
    """`git clone` leaves it in place of a large file. tokenizer.json counts only if it is alone."""
    folder = tmp_path / "model"
    shutil.copytree(world / "model", folder)
    if name.startswith("tokenizer") and name.endswith(".json"):
        (folder / "tokenizer.model").unlink()
    (folder / name).write_text(POINTER)
    part = f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`"
    refused(sample, ["--device", "cpu", "--model", str(folder), "--prompt", "a"], part)
    if name == "model.safetensors":
        config = json.loads((folder / "config.json").read_text())
        # The tokenizer's pieces.
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))
        grow = ["--model", str(folder), "--tokenizer", f"{world}/base.model",
                "--out", f"{tmp_path}/grown"]
        refused(init, grow, part)
    if name.startswith("tokenizer"):
        file = [] if name == "tokenizer_config.json" else [name]
        path = folder.joinpath(*file)
        packs = ["pack", "--input", f"{world}/ko.jsonl", "--tokenizer", str(path),
                 "--out", f"{tmp_path}/p"]
        refused(data, packs, part)


TOO_LONG = {
    "sample": "sample --device cpu --prompt a --model {m}",
    "pack": PACK + "--tokenizer {m}",
    "train": TRAIN + "--model {m}",
    "train from random weights": "train --device cpu --config {m}/config.json --tokenizer "
                                 "{w}/base.model "
    "--data {w}/shards/ko --seq_len 32 --stages full:1k:1e-3 --out {b}/run",
    "eval_bits": BITS + "{m} --data {w}/shards/ko",
    "eval_kobest": KOBEST + "--model {m}",
    "init": "init --model {m} --tokenizer {w}/base.model --out {b}/grown --method mean",
}


def write_copa(folder):
    (folder / "COPA").mkdir(parents=True)
    (folder / "COPA/test.tsv").write_text(
        "ID\tsentence\tquestion\t1\t2\tAnswer\n1\ta\t원인\tb\tc\t1\n"
    )  # cause


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_tokenizer_longer_than_the_table_is_one_line(name, world, tmp_path, refused):
    write_copa(tmp_path / "kobest/v1.0")
    folder = tmp_path / "model"
    shutil.copytree(world / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 399}))
    command = TOO_LONG[name].replace("{w}", str(world)).replace("{b}", str(tmp_path))
    command = command.replace("{m}", str(folder))
    program, *argv = command.split()
    refused(PROGRAMS[program], argv, "config.json says vocab_size 399")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kobest", "model"]


@pytest.mark.parametrize("name", ["sample", "pack", "eval_kobest", "init"])
def test_a_model_without_bos_is_one_line(name, world, tmp_path, refused):
    write_copa(tmp_path / "kobest/v1.0")
    folder = tmp_path / "model"
    shutil.copytree(world / "model", folder)
    (folder / "tokenizer.json").unlink()
    # The name of BOS.
    raw = (folder / "tokenizer.model").read_bytes() + field(TRAINER, field(46, b"<none>"))
    (folder / "tokenizer.model").write_bytes(raw)
    # For init: no more rows than pieces.
    model.save(model.Llama(tiny_config(vocab_size=400)), folder)
    command = TOO_LONG[name].replace("{w}/base.model", "{m}/tokenizer.model")
    command = (
        command.replace("{w}", str(world)).replace("{b}", str(tmp_path)).replace("{m}", str(folder))
    )
    program, *argv = command.split()
    part = (
        "tokenizer.model has no piece for BOS"
        if name == "init"
        else "tokenizer.model has no BOS piece"
    )
    refused(PROGRAMS[program], argv, part)
