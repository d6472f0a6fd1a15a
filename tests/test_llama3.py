"""The programs on a base of Llama 3's kind: byte-level, tied embeddings, scaled rotary
frequencies, several tokens that end a text, its own chat template."""
import json
import math
import shutil
from argparse import Namespace

import llama3_world as world
import numpy as np
import pytest
import torch
from llama3_world import BEGIN, END, ODD_TEXTS, PAD, TURN
from safetensors.torch import load_file
from test_train import SMALL, exact, stopping

import data
import eval_bits
import eval_kobest
import export
import init
import model
import sample
import tokenizer
import train
from common import byte_level_file, cli, dialogues
from studies import experts

QUICK = " ".join([*SMALL, "--eval_bytes 1"])  # validates on one document of each source

CHATS = [
    [("system", "짧게 답하라.\n"), ("user", "한국의 수도는?"), ("assistant", " 서울 ")],
    [
        ("user", "2 + 2?"),
        ("assistant", "4"),
        ("user", "  \n"),
        ("user", "고양이가 (무엇을)"),
        ("assistant", "잔다…"),
    ],
    [("user", "It's"), ("assistant", "\n'좋다' 3번")],
    [("user", "하나\n"), ("user", "둘"), ("assistant", "ㅋㅋㅋ")],
]


def call(program, flags: str) -> None:
    """Run a program with this command line."""
    program.main(flags.split())


def same_tokenizer(a, b) -> bool:
    """Whether two model directories hold the same tokenizer.json."""
    return (a / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()


def template(folder) -> str:
    """The chat template of a model directory."""
    return cli.read_json(folder / "tokenizer_config.json")["chat_template"]


def documents(shards: data.Shards, files: list[str], name: str = "") -> list[list[int]]:
    """The ids of each document in these files, or the values beside them in others."""
    ids = np.concatenate([np.load(shards.folder / file) for file in files])
    beside = ids
    if name:
        beside = np.load(shards.folder / name)
    starts = np.flatnonzero(ids == shards.index["bos_token_id"])[1:]
    return [part.tolist() for part in np.split(beside, starts)]


# ---- pack ----------------------------------------------------------------------------------------


def pack(llama3, out, file, flags: str) -> data.Shards:
    call(data, f"pack --input {file} --tokenizer {llama3}/grown --out {out} {flags}")
    return data.Shards(out)


def test_a_packed_document_is_bos_text_eos(llama3, tmp_path, engine):
    texts = [text for text in [*ODD_TEXTS, *world.texts_of(llama3, "ko")[:30]] if text.strip()]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    shards = pack(llama3, tmp_path / "out", tmp_path / "a.jsonl", "--val_fraction 0.1 --workers 2")

    vocabulary = tokenizer.load(llama3 / "merged")
    bos, eos = vocabulary.controls[BEGIN], vocabulary.controls[END]
    expected = [[bos, *world.encoded(text, vocabulary.ranks), eos] for text in texts]
    found = documents(shards, shards.index["files"]) + documents(shards, ["val-00000.npy"])
    assert sorted(found) == sorted(expected)
    index = shards.index
    assert (index["bos_token_id"], index["eos_token_id"], index["vocab_size"]) == (
        bos,
        eos,
        vocabulary.size,
    )
    assert index["tokenizer_sha256"] == vocabulary.sha256


def pack_chats(llama3, folder) -> data.Shards:
    lines = [json.dumps({"messages": messages(chat)}, ensure_ascii=False) + "\n" for chat in CHATS]
    (folder / "chats.jsonl").write_text("".join(lines), encoding="utf-8")
    flags = "--messages --val_fraction 0.000001"
    return pack(llama3, folder / "sft", folder / "chats.jsonl", flags)


def messages(chat) -> list[dict]:
    return [{"role": role, "content": text} for role, text in chat]


def test_chats_are_packed_exchange_by_exchange(llama3, tmp_path, engine):
    shards = pack_chats(llama3, tmp_path)
    vocabulary = tokenizer.load(llama3 / "merged")
    rows = []
    for chat in CHATS:
        row = [vocabulary.controls[BEGIN]]
        learned = [False]
        prompt = []
        for role, text in chat:
            if role != "assistant":
                prompt += [text.rstrip()] if text.strip() else []
                continue
            asked = "\n".join(prompt)
            n_given = len(world.encoded(asked, vocabulary.ranks))
            ids = world.encoded(f"{asked} {text.lstrip()}", vocabulary.ranks)
            row += [*ids, vocabulary.controls[END]]
            learned += [i >= n_given for i in range(len(ids) + 1)]
            prompt = []
        rows.append((row, learned))
    [packed_file], [given_file] = shards.index["files"], shards.index["given"]
    ids = documents(shards, [packed_file]) + documents(shards, ["val-00000.npy"])
    given = documents(shards, [packed_file], given_file)
    given += documents(shards, ["val-00000.npy"], "val_given.npy")
    found = [(row, [not one for one in mask]) for row, mask in zip(ids, given, strict=True)]
    assert sorted(found) == sorted(rows)


def test_a_stage_sft_replaces_the_template_by_the_one_it_was_trained_in(llama3, tmp_path):
    shards = pack_chats(llama3, tmp_path)
    call(train, f"--model {llama3}/grown --data {tmp_path}/sft --out {tmp_path}/run "
                "--stages sft:64:1e-3 --seq_len 16 --batch_tokens 64 --device cpu --eval_bytes 1")
    assert template(tmp_path / "run/model") == dialogues.chat_template(BEGIN, END, start="")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model")
    templated = [
        peer.apply_chat_template(messages(chat), tokenize=True, return_dict=False) for chat in CHATS
    ]
    packed = documents(shards, shards.index["files"]) + documents(shards, ["val-00000.npy"])
    assert sorted(templated) == sorted(packed)


# ---- init ----------------------------------------------------------------------------------------


def test_a_new_row_is_the_mean_of_the_base_s_tokens_of_its_bytes(llama3):
    base, merged = tokenizer.load(llama3 / "base"), tokenizer.load(llama3 / "merged")
    before, after = (load_file(llama3 / name / "model.safetensors") for name in ("base", "grown"))
    assert "lm_head.weight" not in after
    old, new = (tensors["model.embed_tokens.weight"] for tensors in (before, after))
    assert torch.equal(new[:base.size], old)  # including control tokens, bit for bit
    for i in range(base.size, merged.size):
        parts = [base.ranks[part] for part in world.joined(merged.bytes_of(i), base.ranks)]
        assert len(parts) > 1
        mean = old[parts].double().mean(0).float()
        torch.testing.assert_close(new[i], mean, rtol=1e-6, atol=1e-7)
    mean = old.double().mean(0).float()
    assert len(new) % 64 == 0 and len(new) > merged.size
    for row in new[merged.size:]:
        torch.testing.assert_close(row, mean)
    for name in before.keys() - {"model.embed_tokens.weight"}:
        assert torch.equal(before[name], after[name])


def test_the_grown_directory_keeps_what_the_base_says(llama3):
    before, after = (cli.read_json(llama3 / name / "config.json") for name in ("base", "grown"))
    rows, base = after["vocab_size"], tokenizer.load(llama3 / "base")
    sizes = {
        "vocab_size": rows,
        "base_vocab_size": base.size,
        "unpadded_vocab_size": base.size + 200,
    }
    assert after == {**before, **sizes}
    assert after["rope_scaling"]["rope_type"] == "llama3" and after["tie_word_embeddings"]
    generation = cli.read_json(llama3 / "grown/generation_config.json")
    assert generation["eos_token_id"] == [base.controls[END], base.controls[TURN]]
    assert "suppress_tokens" not in generation
    assert same_tokenizer(llama3 / "merged", llama3 / "grown")
    assert template(llama3 / "grown") == world.TEMPLATE


def test_a_template_in_a_file_of_its_own_is_carried_along(llama3, tmp_path):
    shutil.copytree(llama3 / "base", tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").write_text("{{ 'theirs' }}")
    call(init, f"--model {tmp_path}/base --tokenizer {llama3}/merged --device cpu "
               f"--out {tmp_path}/grown")
    assert (tmp_path / "grown/chat_template.jinja").read_text() == "{{ 'theirs' }}"


def test_bos_and_eos_are_those_that_documents_are_packed_between(llama3, tmp_path):
    """Those of the merged tokenizer, even if the base's settings have changed since."""
    shutil.copytree(llama3 / "base", tmp_path / "base")
    config = cli.read_json(tmp_path / "base/tokenizer_config.json")
    cli.write_json(tmp_path / "base/tokenizer_config.json", {**config, "eos_token": TURN})
    call(init, f"--model {tmp_path}/base --tokenizer {llama3}/merged --device cpu "
               f"--out {tmp_path}/grown")
    assert cli.read_json(tmp_path / "grown/tokenizer_config.json")["eos_token"] == END
    assert tokenizer.load(tmp_path / "grown").sha256 == tokenizer.load(llama3 / "merged").sha256


def test_a_tiktoken_file_is_not_left_beside_tokenizer_json(llama3, tmp_path):
    """Other programs would take it for a SentencePiece file."""
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0")
    tokenizer.save(llama3 / "base", tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()


@pytest.mark.parametrize("method", init.METHODS)
def test_every_method_grows_one_table(llama3, tmp_path, method):
    call(init, f"--model {llama3}/base --tokenizer {llama3}/merged/tokenizer.json --device cpu "
               f"--out {tmp_path}/grown --method {method}")
    llama = model.load(tmp_path / "grown")
    assert llama.lm_head.weight is llama.model.embed_tokens.weight
    assert len(llama.lm_head.weight) == llama.config.vocab_size


def test_init_refuses_a_tokenizer_that_does_not_extend_the_model_s(
    llama3, tmp_path, refused, request
):
    argv = ["--model", f"{llama3}/base", "--out", f"{tmp_path}/out", "--tokenizer"]
    other = world.write_base(
        tmp_path / "other", world.base_ranks(world.texts_of(llama3, "ko"), 320)
    )
    refused(init, [*argv, str(other)], "does not extend the tokenizer")
    sentencepiece = request.getfixturevalue("world") / "base.model"
    refused(init, [*argv, str(sentencepiece)], "does not extend the tokenizer")
    assert not (tmp_path / "out").exists()


def test_a_token_that_has_no_row_yet_gets_one(llama3, tmp_path):
    """A fine-tuner added [PAD] to the tokenizer without resizing the model."""
    base = tmp_path / "base"
    shutil.copytree(llama3 / "base", base)
    rows = tokenizer.load(base).size
    content = cli.read_json(base / "tokenizer.json")
    content["added_tokens"].append({**content["added_tokens"][-1], "id": rows, "content": "[PAD]"})
    cli.write_json(base / "tokenizer.json", content)
    cli.write_json(base / "added_tokens.json", {"[PAD]": rows})
    # What was learned on the base without it has other ids.
    learned = list(byte_level_file.read_ranks(llama3 / "korean.tiktoken"))
    byte_level_file.write_ranks(learned, rows + 1, tmp_path / "korean.tiktoken")
    call(tokenizer, f"merge --base {base} --korean {tmp_path}/korean.tiktoken "
                    f"--out {tmp_path}/merged")
    call(init, f"--model {base} --tokenizer {tmp_path}/merged --device cpu --out {tmp_path}/out "
               "--method mean_both --pad_to 1")
    name = "model.embed_tokens.weight"
    before = load_file(base / "model.safetensors")[name]
    after = load_file(tmp_path / "out/model.safetensors")[name]
    assert len(before) == rows and len(after) == rows + 1 + len(learned)
    assert torch.equal(after[:rows], before)
    mean = before.double().mean(0).to(before.dtype)
    assert torch.equal(after[rows], mean) and torch.equal(after[-1], mean)
    assert tokenizer.load(tmp_path / "out").controls["[PAD]"] == rows
    assert cli.read_json(tmp_path / "out/added_tokens.json") == {"[PAD]": rows}


def test_the_probe_compares_methods(llama3, tmp_path):
    call(init, f"--model {llama3}/base --tokenizer {llama3}/merged --probe {llama3}/shards/ko "
               "--probe_steps 1 --probe_batch 2 --probe_bytes 500 --seq_len 16 --device cpu "
               f"--out {tmp_path}/probe.json")
    assert cli.read_json(tmp_path / "probe.json")["best"] in init.METHODS


def test_transformers_opens_it_with_equal_logits(llama3):
    transformers = pytest.importorskip("transformers")
    vocabulary = tokenizer.load(llama3 / "grown")
    ours = model.load(llama3 / "grown")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        llama3 / "grown", dtype=torch.float32
    )
    assert theirs.config.eos_token_id == ours.config.eos_ids()
    for text in world.texts_of(llama3, "ko")[:5]:
        tokens = torch.tensor([vocabulary.encode(text, bos=True)[:128]])
        with torch.inference_mode():
            torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


# ---- train, export -------------------------------------------------------------------------------


def training(llama3, out, more="") -> str:
    sources = f"{llama3}/shards/ko=0.75 {llama3}/shards/en=0.25"
    stages = "new_rows:1k:1e-2 lora:1k:5e-3"
    return f"--model {llama3}/grown --data {sources} --out {out} --stages {stages} {QUICK} {more}"


@pytest.fixture(scope="module")
def run(llama3, tmp_path_factory):
    """Two stages, the second with a LoRA, and every checkpoint."""
    out = tmp_path_factory.mktemp("llama3") / "run"
    call(train, training(llama3, out, more="--keep 99"))
    return out


def test_a_stopped_run_resumes_to_the_bit(llama3, run, tmp_path):
    with pytest.raises(SystemExit):
        stopping(lambda: call(train, training(llama3, tmp_path / "run")), after=10)
    call(train, f"--resume {tmp_path}/run")
    assert exact(tmp_path / "run") == exact(run)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "run/model" / name).read_bytes() == (run / "model" / name).read_bytes()


def test_training_keeps_the_tokenizer_the_template_and_the_old_rows(llama3, run):
    for folder in (run / "stages/1-new_rows", run / "model"):
        assert same_tokenizer(llama3 / "grown", folder)
        assert template(folder) == world.TEMPLATE
        before, after = (model.Config.read(llama3 / "grown"), model.Config.read(folder))
        assert before == after and len(after.eos_ids()) == 2
        file = "generation_config.json"
        assert cli.read_json(folder / file) == cli.read_json(llama3 / "grown" / file)
    size = tokenizer.load(llama3 / "base").size
    before, after = (load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
                     for folder in (llama3 / "grown", run / "stages/1-new_rows"))
    assert torch.equal(before[:size], after[:size]) and not torch.equal(before[size:], after[size:])


def test_shards_of_the_base_s_vocabulary_are_refused(llama3, tmp_path, refused):
    call(data, f"pack --input {llama3}/toy/en --tokenizer {llama3}/base --out {tmp_path}/en")
    argv = ["--model", f"{llama3}/grown", "--data", f"{tmp_path}/en", "--out", f"{tmp_path}/run",
            "--stages", "full:1k:1e-3", "--seq_len", "32", "--device", "cpu"]
    refused(train, argv, "was packed with another tokenizer")


def test_a_run_from_random_weights(llama3, tmp_path):
    config = cli.read_json(llama3 / "grown/config.json")
    cli.write_json(tmp_path / "config.json", {**config, "bos_token_id": 1, "eos_token_id": 2})
    call(train, f"--config {tmp_path}/config.json --tokenizer {llama3}/merged/tokenizer.json "
                f"--data {llama3}/shards/ko --out {tmp_path}/run --stages full:256:1e-3 {QUICK}")
    assert same_tokenizer(llama3 / "merged", tmp_path / "run/model")
    # Its ids are the tokenizer's, not the configuration's.
    vocabulary = tokenizer.load(llama3 / "merged")
    for name in ("config.json", "generation_config.json"):
        settings = cli.read_json(tmp_path / "run/model" / name)
        assert settings["bos_token_id"] == vocabulary.bos
        assert settings["eos_token_id"] == vocabulary.eos


def test_a_checkpoint_is_exported_with_its_tokenizer(llama3, run, tmp_path):
    call(export, f"{run} --stage 1 --step 3 --out {tmp_path}/out")
    call(export, f"{run} --stage 2 --step 3 --adapter {tmp_path}/adapter")
    assert same_tokenizer(llama3 / "grown", tmp_path / "out")
    assert template(tmp_path / "out") == world.TEMPLATE
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()


def test_a_study_s_model_has_the_tokenizer(llama3, tmp_path):
    folder = experts.upcycled(
        Namespace(model=llama3 / "grown", experts=2, balance=0.01, out=tmp_path)
    )
    assert tokenizer.load(folder).sha256 == tokenizer.load(llama3 / "grown").sha256


# ---- sample, and the scores ----------------------------------------------------------------------


@pytest.mark.parametrize("end", [END, TURN, PAD])
def test_sampling_stops_at_any_end(llama3, tmp_path, monkeypatch, capsys, end):
    """The tokenizer's EOS, another one in config.json, and one in generation_config.json alone."""
    shutil.copytree(llama3 / "grown", tmp_path / "model")
    vocabulary = tokenizer.load(tmp_path / "model")
    config = cli.read_json(tmp_path / "model/config.json")
    cli.write_json(
        tmp_path / "model/config.json", {**config, "eos_token_id": [vocabulary.controls[TURN]]}
    )
    generation = {"eos_token_id": vocabulary.controls[PAD]}
    cli.write_json(tmp_path / "model/generation_config.json", generation)

    draws = [
        vocabulary.ranks["가".encode()[:1]],
        vocabulary.ranks["가".encode()[1:2]],
        vocabulary.ranks["가".encode()[2:]],
        vocabulary.controls[BEGIN],
        vocabulary.controls[end],
        0,
        0,
        0,
    ]
    drawn = iter(draws)
    monkeypatch.setattr(
        torch.Tensor, "argmax", lambda self, *args, **more: torch.full((1, 1), next(drawn))
    )
    call(sample, f"--model {tmp_path}/model --prompt 나 --temperature 0 --device cpu")
    assert capsys.readouterr().out.endswith("\n나가\n")
    assert len(list(drawn)) == 3  # nothing after the end was asked for


def test_sampling_continues_the_prompt(llama3, capsys, engine):
    argv = [
        "--model",
        f"{llama3}/grown",
        "--temperature",
        "0",
        "--max_new_tokens",
        "9",
        "--device",
        "cpu",
    ]
    vocabulary, llama = tokenizer.load(llama3 / "grown"), model.load(llama3 / "grown")
    for prompt in ("한국의 ", "", " two"):
        tokens = [vocabulary.bos, *world.encoded(prompt, vocabulary.ranks)]
        for _ in range(9):
            with torch.inference_mode():
                logits = llama(torch.tensor([tokens]))[0, -1, :vocabulary.size]
            tokens.append(logits.argmax().item())
            if tokens[-1] in llama.config.eos_ids():
                break
        capsys.readouterr()
        sample.main([*argv, "--prompt", prompt])
        assert capsys.readouterr().out.partition("\n")[2] == vocabulary.decode(tokens) + "\n"


def test_kobest_asks_as_the_definition_does(llama3, tmp_path, engine):
    call(eval_kobest, f"--model {llama3}/grown --data {llama3}/toy/kobest --limit 4 "
                      f"--out {tmp_path}/scores.json --device cpu")
    scores = cli.read_json(tmp_path / "scores.json")["tasks"]
    vocabulary = tokenizer.load(llama3 / "grown")
    llama = model.load(llama3 / "grown").double()
    llama.compute_dtype = torch.float64
    assert set(scores) == set(eval_kobest.KOBEST)
    for name in ("copa", "sentineg", "boolq"):
        examples = eval_kobest.read(llama3 / "toy/kobest", name, "test", 4)
        for example, scored in zip(examples, scores[name]["examples"], strict=True):
            context = example.context.rstrip()
            n_asked = len(world.encoded(context, vocabulary.ranks)) + 1
            spaces = example.context[len(context):]
            for choice, found in zip(example.choices, scored["loglikelihoods"], strict=True):
                text = f"{context}{spaces} {choice}"
                ids = torch.tensor([[vocabulary.bos, *world.encoded(text, vocabulary.ranks)]])
                with torch.inference_mode():
                    logp = llama(ids[:, :-1]).log_softmax(-1)
                own = logp.gather(2, ids[:, 1:, None])[0, n_asked - 1:].sum().item()
                assert found == pytest.approx(own, rel=1e-4), text


def test_kobest_puts_bos_where_transformers_does(llama3, tmp_path):
    """tokenizer.json's post_processor decides, even beside an add_bos_token."""
    shutil.copytree(llama3 / "merged", tmp_path / "model")
    config = cli.read_json(tmp_path / "model/tokenizer_config.json")
    cli.write_json(tmp_path / "model/tokenizer_config.json", {**config, "add_bos_token": False})
    content = cli.read_json(tmp_path / "model/tokenizer.json")
    # Without a tokenizer_class it is not a LlamaTokenizer either, which would drop the space.
    config = {key: world.TOKENIZER_CONFIG[key] for key in ("bos_token", "eos_token")}
    cli.write_json(tmp_path / "model/tokenizer_config.json", config)
    vocabulary = tokenizer.load(tmp_path / "model")
    assert eval_kobest.encoder(vocabulary, tmp_path / "model")(" 예") == vocabulary.encode(
        " 예", bos=True
    )
    cli.write_json(tmp_path / "model/tokenizer.json", {**content, "post_processor": None})
    vocabulary = tokenizer.load(tmp_path / "model")
    assert eval_kobest.encoder(vocabulary, tmp_path / "model")(" 예") == vocabulary.encode(
        " 예", bos=False
    )


def test_answers_alone_begin_a_document(llama3, tmp_path):
    call(eval_kobest, f"--model {llama3}/grown --data {llama3}/toy/kobest --limit 2 --tasks copa "
                      f"--answer_only --out {tmp_path}/scores.json --device cpu")
    assert len(cli.read_json(tmp_path / "scores.json")["tasks"]["copa"]["examples"]) == 2


def test_bits_of_base_and_grown_are_of_the_same_text(llama3, tmp_path, engine):
    call(eval_bits, f"--models {llama3}/base {llama3}/grown --device cpu --max_bytes 3000 "
                    f"--data {llama3}/shards/ko --input {llama3}/toy/en --out {tmp_path}/bits.json")
    found = cli.read_json(tmp_path / "bits.json")["models"]
    before, after = (found[f"{llama3}/{name}"]["sources"] for name in ("base", "grown"))
    assert before.keys() == after.keys() == {"ko", "en"}
    for name in ("ko", "en"):
        assert before[name]["bytes"] == after[name]["bytes"] > 0
    assert before["en"]["tokens"] == after["en"]["tokens"]
    assert before["ko"]["tokens"] > after["ko"]["tokens"]

    # By hand, for the model that did not pack them: decoded and encoded again.
    shards = data.Shards(llama3 / "shards/ko")
    llama = model.load(llama3 / "base").double()
    llama.compute_dtype = torch.float64
    base, merged = tokenizer.load(llama3 / "base"), tokenizer.load(llama3 / "merged")
    nats, n_bytes = 0.0, 0
    for row in documents(shards, ["val-00000.npy"]):
        text = b"".join(map(merged.bytes_of, row)).decode()
        if n_bytes + len(text.encode()) > 3000 and n_bytes:
            break
        n_bytes += len(text.encode())
        ids = torch.tensor([[base.bos, *world.encoded(text, base.ranks), base.eos]])
        for start in range(0, ids.shape[1] - 1, 128):
            part = ids[:, start:start + 129]
            with torch.inference_mode():
                logp = llama(part[:, :-1]).log_softmax(-1)
            nats -= logp.gather(2, part[:, 1:, None]).sum().item()
    assert before["ko"]["bytes"] == n_bytes
    assert before["ko"]["bits_per_byte"] == pytest.approx(nats / n_bytes / math.log(2), rel=1e-4)
