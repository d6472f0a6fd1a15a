"""Prompts with responses, and chats: how they are read, packed and reported."""
import json
import random
import shutil

import numpy as np
import pytest
from conftest import english, korean, tiny_config

import data
import init
import model
import tokenizer
import train
from common import cli, dialogues


def write_rows(path, rows: list[dict]):
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def pack(world, folder, rows: list[dict], *flags: str) -> data.Shards:
    file = write_rows(folder / "rows.jsonl", rows)
    data.main(["pack", "--input", str(file), "--tokenizer", str(world / "base.model"),
               "--out", str(folder / "out"), "--val_fraction", "0.000001", *flags])
    return data.Shards(folder / "out")


def documents(shards: data.Shards) -> list[tuple[list[int], list[int]]]:
    """(ids, learned ids) of every document, validation documents last."""
    streams = [(shards.index["files"], shards.index["given"])]
    streams.append((["val-00000.npy"], ["val_given.npy"]))
    found = []
    for files, given in streams:
        ids = np.concatenate([np.load(shards.folder / name) for name in files])
        is_prompt = np.concatenate([np.load(shards.folder / name) for name in given])
        starts = np.flatnonzero(ids == shards.index["bos_token_id"])[1:]
        parts = zip(np.split(ids, starts), np.split(is_prompt, starts), strict=True)
        found += [(part.tolist(), part[~mask].tolist()) for part, mask in parts]
    return found


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def said(capsys) -> str:
    return capsys.readouterr().out


ALPACA = [
    {"instruction": "sort these", "input": "tree sea", "output": "sea tree"},
    {"instruction": "say tree", "input": "", "output": "tree"},
    {"instruction": "say sea", "output": "sea"},
    {"instruction": " ", "input": "only here", "output": "yes"},
    {"instruction": "", "input": None, "output": "no prompt"},
]
FIELDS = ["--prompt_field", "instruction", "input", "--response_field", "output"]

# ------------------------------------------------------------------------------ pairs of fields


def test_several_prompt_fields_are_joined_by_a_newline_and_some_may_be_empty(world, tmp_path):
    shards = pack(world, tmp_path, ALPACA, *FIELDS)
    sp = tokenizer.load(world / "base.model")
    wanted = []
    for prompt, response in [("sort these\ntree sea", "sea tree"), ("say tree", "tree"),
                             ("say sea", "sea"), ("only here", "yes")]:
        n_given = len(sp.encode(prompt, bos=True))
        ids = sp.encode(f"{prompt} {response}", bos=True, eos=True)
        wanted.append((ids, ids[n_given:]))
    assert sorted(documents(shards)) == sorted(wanted)
    rejected = (tmp_path / "out/rejected.jsonl").read_text()
    assert [json.loads(line)["reason"] for line in rejected.splitlines()] == ["empty instruction"]


def test_a_prompt_of_one_field_is_packed_as_it_always_was(world, tmp_path):
    """Written out as the first version did it; the hash of the text decides on validation."""
    rows = [{"q": f" {english(random.Random(i), 5)} \n", "a": f"  yes {i} "} for i in range(20)]
    shards = pack(world, tmp_path, rows, "--prompt_field", "q", "--response_field", "a")
    sp = tokenizer.load(world / "base.model")
    wanted = []
    for row in rows:
        prompt = row["q"].rstrip()
        text = f"{prompt} {row['a'].lstrip()}"
        ids = sp.encode(text, bos=True, eos=True)
        key = data.text_hash(f"{row['q']}\x00{row['a']}")
        wanted.append((key, ids, ids[len(sp.encode(prompt, bos=True)):]))
    lowest = min(wanted)
    wanted.remove(lowest)
    assert documents(shards) == [entry[1:] for entry in [*wanted, lowest]]


def test_bytes_per_token_counts_the_response_alone(world, tmp_path, capsys):
    index = pack(world, tmp_path, ALPACA, *FIELDS).index
    *packed, _ = documents(data.Shards(tmp_path / "out"))
    learned = sum(len(targets) for _, targets in packed)
    assert index["targets"] == learned < index["tokens"]
    assert f"{learned} of them learned ({index['bytes'] / learned:.2f} bytes per token)" in said(
        capsys
    )


def test_of_texts_every_token_is_learnt_and_an_older_index_is_read(world, tmp_path):
    shutil.copytree(world / "shards/ko", tmp_path / "ko")
    index = cli.read_json(tmp_path / "ko/index.json")
    assert index.pop("targets") == index["tokens"]
    cli.write_json(tmp_path / "ko/index.json", index)
    assert data.Shards(tmp_path / "ko").tokens == index["tokens"]


@pytest.mark.parametrize("flags, field", [
    (["--prompt_field", "instruct", "--response_field", "output"], "instruct"),
    (["--prompt_field", "instruction", "inptu", "--response_field", "output"], "inptu"),
    (["--prompt_field", "instruction", "--response_field", "answer"], "answer"),
    (["--text_field", "body"], "body"),
    (["--text_field", "instruction.body"], "instruction.body"),
    (["--messages"], "messages"),
    ([], "text"),
])
def test_an_unknown_field_is_named_with_what_the_lines_hold(world, tmp_path, refused, flags, field):
    file = tmp_path / "a.jsonl"
    file.write_text("broken\n" + "".join(json.dumps(row) + "\n" for row in ALPACA))
    wanted = f"no line has a field '{field}'; line 2 of {file} holds instruction, input, output"
    pack_flags = ["--tokenizer", str(world / "base.model"), *flags]
    refused(data, ["pack", "--input", str(file), "--out", f"{tmp_path}/out", *pack_flags], wanted)
    if "--text_field" in flags or not flags:
        refused(data, ["clean", "--input", str(file), "--out", f"{tmp_path}/out", *flags], wanted)
    assert not (tmp_path / "out").exists()


def test_a_field_that_some_lines_lack_is_no_error(world, tmp_path):
    rows = [{"title": "a"}, {"text": "one"}, {"text": "two"}, {"body": "b"}]
    index = pack(world, tmp_path, rows).index
    assert index["documents"] + index["val"]["documents"] == 2
    rejected = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejected] == [1, 4]
    data.main(["clean", "--input", f"{tmp_path}/rows.jsonl", "--out", f"{tmp_path}/clean",
               "--steps", "normalise"])


def test_the_columns_of_a_table_are_named_and_an_optional_one_is_read(world, tmp_path, refused):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(ALPACA[:3])
    parquet.write_table(table, tmp_path / "a.parquet")
    flags = ["--input", f"{tmp_path}/a.parquet", "--tokenizer", str(world / "base.model"),
             "--out", f"{tmp_path}/out"]
    refused(data, ["pack", *flags, "--text_field", "body"], "holds instruction, input, output")
    data.main(["pack", *flags, *FIELDS])
    lengths = [len(ids) for ids, _ in documents(data.Shards(tmp_path / "out"))]
    data.main(["pack", *flags, "--prompt_field", "instruction", "--response_field", "output"])
    without = [len(ids) for ids, _ in documents(data.Shards(tmp_path / "out"))]
    assert sum(lengths) > sum(without)


# Rows like those of known data sets: prompt field, response field, rows; what is reported about
# them and about another row, and the prompt fields that are suggested. (Two of ALPACA's have no
# instruction.)
SHAPES = {
    "alpaca": (["instruction"], "output", ALPACA, "1 of 4 rows", "instruction input"),
    "koalpaca": (["instruction"], "output",
                 [{"instruction": "say sea", "output": "sea", "url": "https://example.org/7"}], "",
                 ""),
    "dolly": (["instruction"], "response",
              [{"instruction": "who?", "context": "", "response": "he", "category": "open_qa"},
               {"instruction": "when?", "context": "in 1446", "response": "then",
                "category": "qa"}],
              "1 of 3 rows", "instruction context"),
    "openorca": (["question"], "response",
                 [{"id": "niv.1", "system_prompt": "be brief", "question": "who?",
                   "response": "he"}],
                 "1 of 2 rows", "system_prompt question"),
    "with the whole once more": (["instruction"], "output",
                                 [{"instruction": "say a", "output": "a", "text": "say a: a"}], "",
                                 ""),
    "preferences": (["prompt"], "chosen",
                    [{"prompt": "say a", "chosen": "a", "rejected": "b", "source": "me"}], "", ""),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_text_in_a_field_that_is_not_named_is_counted(world, tmp_path, capsys, shape):
    prompt, response, rows, count, advice = SHAPES[shape]
    rows = [*rows, {prompt[0]: "another", response: "row"}]
    pack(world, tmp_path, rows, "--prompt_field", *prompt, "--response_field", response)
    screen = said(capsys)
    if not advice:
        assert "not used" not in screen
        return
    assert f"{count} have text in a field that is not used: " in screen
    assert screen.strip().endswith(f"--prompt_field {advice}")
    pack(world, tmp_path, rows, "--prompt_field", *advice.split(), "--response_field", response)
    assert "not used" not in said(capsys)


# ------------------------------------------------------------------------------ chats


def test_a_pair_and_a_chat_of_one_exchange_give_the_same_shards(world, tmp_path):
    for name in ("pairs", "chats", "sharegpt"):
        (tmp_path / name).mkdir()
    chats = []
    sharegpt = []
    for row in ALPACA[:4]:
        asked = [user(row["instruction"]), user(row.get("input", ""))]
        chats.append({"messages": [*asked, assistant(row["output"])]})
        sharegpt.append({"conversations": [
            {"from": "system", "value": row["instruction"]},
            {"from": "human", "value": row.get("input", "")},
            {"from": "gpt", "value": row["output"]}]})
    pack(world, tmp_path / "pairs", ALPACA[:4], *FIELDS)
    pack(world, tmp_path / "chats", chats, "--messages")
    pack(world, tmp_path / "sharegpt", sharegpt, "--messages", "conversations")
    for path in (tmp_path / "pairs/out").iterdir():
        for name in ("chats", "sharegpt"):
            assert (tmp_path / name / "out" / path.name).read_bytes() == path.read_bytes()


CHAT = [system("be brief"), user("say sea"), assistant("sea"), user("and"), user("say tree "),
        assistant("  tree"), user("why?")]


def test_of_a_chat_the_answers_and_their_ends_are_learnt(world, tmp_path):
    """And the chat is one document of validation, whose bytes are those of the answers."""
    rows = [{"messages": CHAT}, {"messages": [user("say sky"), assistant("sky")]}]
    shards = pack(world, tmp_path, rows, "--messages")
    sp = tokenizer.load(world / "base.model")
    ids = [sp.bos]
    learned = []
    for prompt, whole in [("be brief\nsay sea", "be brief\nsay sea sea"),
                          ("and\nsay tree", "and\nsay tree tree")]:
        exchange = sp.encode(whole, bos=False, eos=True)
        ids += exchange
        learned += exchange[len(sp.encode(prompt, bos=False)):]
    assert (ids, learned) in documents(shards)
    assert [sp.decode(learned), learned.count(sp.eos)] == ["sea tree", 2]
    n_bytes = shards.index["bytes"] + shards.index["val"]["bytes"]
    assert n_bytes == len("sea" + "  tree" + "sky")
    _, n_bytes = shards.validation(10**6)
    assert n_bytes == shards.index["val"]["bytes"]


@pytest.mark.parametrize("messages, reason", [
    ([], "no answer"),
    ([user("a")], "no answer"),
    ([assistant("a"), user("b"), assistant("c")], "an answer without a prompt"),
    ([user("a"), assistant("b"), assistant("c")], "an answer without a prompt"),
    ([user(" "), assistant("b")], "an answer without a prompt"),
    ([user("a"), assistant(" ")], "an empty answer"),
    ([user("a"), assistant(None)], "a message without text"),
    ([{"role": "user", "content": [{"type": "text"}]}, assistant("b")], "a message without text"),
    ([{"role": "tool", "content": "a"}, assistant("b")], "a message of role 'tool'"),
    ([{"content": "a"}], "a message of role 'None'"),
    (["a"], "a message that is not an object"),
    ("a", "messages is not a list of messages"),
    (None, "no messages field"),
])
def test_invalid_chats_are_rejected_with_a_reason(world, tmp_path, messages, reason):
    rows = [{"messages": CHAT}, {"messages": messages}, {"messages": CHAT[1:]}]
    index = pack(world, tmp_path, rows, "--messages").index
    assert index["documents"] + index["val"]["documents"] == 2
    record = json.loads((tmp_path / "out/rejected.jsonl").read_text())
    assert (record["line"], record["reason"]) == (2, reason)


def test_chats_in_a_table(world, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{"messages": CHAT}, {"messages": CHAT[1:]}])
    parquet.write_table(table, tmp_path / "a.parquet")
    data.main(["pack", "--input", f"{tmp_path}/a.parquet", "--messages", "--out", f"{tmp_path}/out",
               "--tokenizer", str(world / "base.model")])
    assert len(documents(data.Shards(tmp_path / "out"))) == 2


def test_chats_and_pairs_at_once_are_refused(world, tmp_path, refused):
    argv = ["pack", "--input", str(world / "en.jsonl"), "--tokenizer", str(world / "base.model"),
            "--out", f"{tmp_path}/out", "--messages"]
    refused(data, [*argv, *FIELDS], "--messages and --prompt_field: choose one")
    refused(data, [*argv, "--text_field", "a"], "choose one")


# ------------------------------------------------------------------------------ the chat template


@pytest.fixture(scope="module")
def chats() -> list[list[dict]]:
    """Chats with everything that a template can get wrong."""
    rng = random.Random(3)
    found = [CHAT[:-1]]
    for _ in range(60):
        chat = []
        if rng.random() < 0.5:
            chat.append(system(rng.choice(["", " ", "be brief.\n", "짧게 "])))
        for _ in range(rng.randint(1, 3)):
            for _ in range(rng.randint(1, 2)):
                text = rng.choice([korean, english])(rng, rng.randint(1, 6))
                chat.append(
                    user(rng.choice(["", " ", "\n", "\t\n"]) + text + rng.choice(["", " \n"]))
                )
            if rng.random() < 0.2:
                chat.append(user("  "))
            text = korean(rng, rng.randint(1, 6))
            chat.append(
                assistant(rng.choice(["", "  ", "\n"]) + text + rng.choice(["", " ", "\n"]))
            )
        found.append(chat)
    return found


def train_stage(shards, run, what: str, start) -> None:
    train.main(["--model", str(start), "--data", str(shards), "--out", str(run), "--stages", what,
                "--seq_len", "16", "--batch_tokens", "64", "--device", "cpu"])


def template(folder) -> str | None:
    return cli.read_json(folder / "tokenizer_config.json").get("chat_template")


@pytest.mark.parametrize("legacy, rstrip, start", [
    (True, False, ""), (False, False, " "), (False, True, "▁"),
])
def test_the_chat_template_gives_the_ids_that_pack_wrote(
        world, tmp_path, chats, legacy, rstrip, start):
    """Written by `sft`, carried on by a later stage, and read by transformers. After a special
    token transformers adds a space, or none (legacy: false), and Phi-3's EOS strips spaces."""
    base = tmp_path / "base"
    shutil.copytree(world / "model", base)
    config = cli.read_json(base / "tokenizer_config.json")
    cli.write_json(base / "tokenizer_config.json", {**config, "legacy": legacy})
    content = cli.read_json(base / "tokenizer.json")
    for token in content["added_tokens"]:
        token["rstrip"] = rstrip and token["content"] == "</s>"
    cli.write_json(base / "tokenizer.json", content)
    tokenizer.save(base, base)
    # Templates of the model being tuned, which would take precedence over the one in the settings.
    (base / "chat_template.jinja").write_text("old")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tool.jinja").write_text("old")
    shards = pack(world, tmp_path, [{"messages": chat} for chat in chats], "--messages")
    train_stage(tmp_path / "out", tmp_path / "run", "sft:64:1e-3", base)
    assert not list((tmp_path / "run/model").rglob("*.jinja"))
    train_stage(world / "shards/en", tmp_path / "more", "lora:64:1e-3", tmp_path / "run/model")
    assert template(tmp_path / "more/model") == dialogues.chat_template(
        "<s>", "</s>", start=start)
    train_stage(world / "shards/en", tmp_path / "plain", "lora:64:1e-3", world / "model")
    assert template(tmp_path / "plain/model") is None

    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "more/model")
    packed = sorted(documents(shards))
    found = []
    for chat in chats:
        ids = fast.apply_chat_template(chat, tokenize=True, return_dict=False)
        asked = fast.apply_chat_template(
            chat[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
        found.append((ids, asked))
    assert sorted(ids for ids, _ in found) == [ids for ids, _ in packed]
    # The prompt ends where the tokens to learn of the last answer begin.
    sp = tokenizer.load(world / "base.model")
    for ids, asked in found:
        learned = dict((tuple(whole), targets) for whole, targets in packed)[tuple(ids)]
        answer = ids[len(asked):]
        assert ids[:len(asked)] == asked
        assert answer == learned[-len(answer):]
        assert sp.eos not in answer[:-1] and len(answer) > 1


@pytest.mark.parametrize("bos, eos", [("<START>", "<EOS>"), ("<EOS>", "<EOS>"), ("it's", '"')])
def test_tokens_may_have_any_name_in_the_template(bos, eos):
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(dialogues.chat_template(bos, eos, start=" "))
    messages = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "yes"}]
    assert template.render(messages=messages) == f"{bos} tea? yes{eos}"


def test_a_template_of_the_base_is_carried_along(world, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    model.save(model.Llama(tiny_config(vocab_size=400)), base)
    tokenizer.save(world / "base.model", base)
    config = cli.read_json(base / "tokenizer_config.json")
    cli.write_json(base / "tokenizer_config.json", {**config, "chat_template": "old"})
    (base / "chat_template.jinja").write_text("{{ 'theirs' }}")
    init.main(["--model", str(base), "--tokenizer", str(world / "base.model"), "--device", "cpu",
               "--out", f"{tmp_path}/grown"])
    assert template(tmp_path / "grown") == "old"
    assert (tmp_path / "grown/chat_template.jinja").read_text() == "{{ 'theirs' }}"
