"""Model directories: the files of a base beside its weights, after growing and after training."""
import io
import json
import shutil

import pytest
import sentencepiece
import torch
from conftest import tiny_config
from safetensors.torch import load_file
from test_train import SMALL

import data
import eval_kobest
import export
import init
import model
import sample
import tokenizer
import train
from common import cli, special_tokens, tokenizer_json
from common.sentencepiece_file import (
    DUMMY_PREFIX,
    NORMALIZER,
    SCORE,
    TEXT,
    TYPE,
    USER_DEFINED,
    field,
)
from common.sentencepiece_file import PIECES as FIELD_OF_PIECES

PIECES = 400                                    # of world/base.model
END, PAD = "<|im_end|>", "<|pad|>"              # ids 400 and 401 of a chat model
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
QUICK = [*SMALL, "--eval_bytes", "1"]

# What a chat model's directory has in addition to the usual files.
TOKENIZER_CONFIG = {
    "model_max_length": 4096,
    "padding_side": "left",
    "legacy": False,
    "eos_token": END,
    "chat_template": "{{ messages }}",
    "additional_special_tokens": [END],
}
GENERATION = {
    "eos_token_id": [400],
    "pad_token_id": 401,
    "temperature": 0.6,
    "top_p": 0.9,
    "bad_words_ids": [[5, 400], [7]],
}


@pytest.fixture(scope="module")
def korean_model(world, tmp_path_factory):
    file = tmp_path_factory.mktemp("korean") / "korean.model"
    tokenizer.main(["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "600",
                    "--out", str(file)])
    return file


def write_base(world, folder, rows: int = PIECES + 2, **config):
    """A random model with `rows` rows, and the files of world/base.model."""
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    llama = model.Llama(tiny_config(vocab_size=rows, **config))
    for table in (llama.model.embed_tokens.weight, llama.lm_head.weight):
        table.data.normal_()
    model.save(llama, folder)
    tokenizer.save(world / "base.model", folder)
    return folder


def update(file, **values):
    cli.write_json(file, {**cli.read_json_if_any(file), **values})


@pytest.fixture
def chat(world, tmp_path):
    """A chat model with two tokens after its pieces."""
    folder = write_base(world, tmp_path / "chat")
    update(folder / "config.json", eos_token_id=400, pad_token_id=401, _name_or_path="chat")
    cli.write_json(folder / "generation_config.json", GENERATION)
    cli.write_json(folder / "added_tokens.json", {END: 400, PAD: 401})
    cli.write_json(folder / "special_tokens_map.json", {"pad_token": {"content": PAD}})
    cli.write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    (folder / "LICENSE").write_text("mine")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool.jinja").write_text("{{ tools }}")
    (folder / "pytorch_model.bin").write_bytes(b"old weights")
    (folder / ".gitattributes").write_text("*.bin filter=lfs")
    return folder


def merge(base, korean_model, out):
    tokenizer.main(["merge", "--base", str(base), "--korean", str(korean_model), "--out", str(out)])
    return out


def grow(base, merged, out, *more):
    init.main(["--model", str(base), "--tokenizer", str(merged), "--out", str(out), *more])
    return out


def rows_of(folder, i: int) -> list[torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return [tensors[name][i] for name in TABLES]


def named_ids(folder) -> dict[str, int]:
    """The added tokens according to each of the files that describe them; they must agree."""
    content = cli.read_json(folder / "tokenizer.json")
    by_json = {token["content"]: token["id"] for token in content["added_tokens"]}
    decoder = cli.read_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if decoder is not None:
        assert {token["content"]: int(i) for i, token in decoder.items()} == by_json
    assert {text: content["model"]["vocab"][text] for text in by_json} == by_json
    if (folder / "added_tokens.json").exists():
        for text, i in cli.read_json(folder / "added_tokens.json").items():
            assert by_json[text] == i
    return by_json


# ------------------------------------------------------------------- an id and its row

def test_tokens_behind_the_pieces_keep_their_ids_if_the_directory_was_merged(
        chat, korean_model, tmp_path, capsys):
    merged = merge(chat, korean_model, tmp_path / "merged.model")
    out = grow(chat, merged, tmp_path / "out")
    assert {END: 400, PAD: 401}.items() <= named_ids(out).items()
    for i in range(PIECES + 2):
        for before, after in zip(rows_of(chat, i), rows_of(out, i), strict=True):
            assert torch.equal(before, after)
    assert model.Config.read(out).base_vocab_size == PIECES + 2
    # No text becomes one of them, and the first new piece is not the token that ends a text.
    vocabulary = tokenizer.load(out)
    assert not {400, 401} & set(vocabulary.encode(f"a{END}b", bos=False))
    assert vocabulary.bytes_of(402)
    assert vocabulary.decode([*vocabulary.encode("tea", bos=True), 400]) == "tea"


def test_merged_into_the_file_alone_they_move_and_are_renamed_everywhere(
        chat, korean_model, tmp_path, capsys):
    merged = merge(chat / "tokenizer.model", korean_model, tmp_path / "merged.model")
    size = tokenizer.load(merged).size
    out = grow(chat, merged, tmp_path / "out", "--pad_to", "1")
    assert f"{END} had id 400 and now has id {size}, with its row" in capsys.readouterr().out
    assert {END: size, PAD: size + 1}.items() <= named_ids(out).items()
    # tokenizer.model lacks them, so llama.cpp looks for them in the settings.
    settings = cli.read_json(out / "tokenizer_config.json")
    assert settings["added_tokens_decoder"][str(size)]["content"] == END
    for old, new in ((400, size), (401, size + 1)):
        for before, after in zip(rows_of(chat, old), rows_of(out, new), strict=True):
            assert torch.equal(before, after)
    config = cli.read_json(out / "config.json")
    assert config["eos_token_id"] == [size, 2] and config["pad_token_id"] == size + 1
    generation = cli.read_json(out / "generation_config.json")
    assert generation == {
        **GENERATION,
        "bos_token_id": 1,
        "eos_token_id": [size, 2],
        "pad_token_id": size + 1,
        "bad_words_ids": [[5, size], [7]],
    }
    # What was packed with merged.model still fits, and the directory can be read and grown again.
    vocabulary = tokenizer.load(out)
    assert vocabulary.sha256 == tokenizer.load(merged).sha256
    assert vocabulary.size == size + 2 == config["unpadded_vocab_size"]
    # SentencePiece does not know the moved tokens, and they do not affect any text.
    assert vocabulary.decode([[*vocabulary.encode("tea", bos=True), size], [size]]) == ["tea", ""]
    again = grow(out, out, tmp_path / "again")
    assert named_ids(again) == named_ids(out)


@pytest.mark.parametrize("method", init.METHODS)
def test_rows_move_whatever_the_method(chat, korean_model, tmp_path, method):
    merged = merge(chat / "tokenizer.model", korean_model, tmp_path / "merged.model")
    init.main(["--model", str(chat), "--tokenizer", str(merged), "--out", f"{tmp_path}/out",
               "--method", method])
    size = tokenizer.load(merged).size
    for before, after in zip(rows_of(chat, 400), rows_of(tmp_path / "out", size), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", [
    "added_tokens.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", None,
])
def test_each_file_that_can_name_a_token(world, korean_model, tmp_path, name):
    """Also with none: config.json alone says that a text ends with 400."""
    base = write_base(world, tmp_path / "base", PIECES + 1)
    for file in ("config.json", "generation_config.json"):
        update(base / file, eos_token_id=400)
    if name == "added_tokens.json":
        cli.write_json(base / name, {END: 400})
    elif name == "tokenizer_config.json":
        update(base / name, added_tokens_decoder={"400": {"content": END}})
    elif name == "tokenizer.json":
        content = cli.read_json(base / name)
        content["added_tokens"].append({"id": 400, "content": END, "lstrip": True})
        cli.write_json(base / name, content)
    elif name == "special_tokens_map.json":
        cli.write_json(base / name, {"additional_special_tokens": [END]})
    for given in (base, base / "tokenizer.model"):
        merged = merge(given, korean_model, tmp_path / "merged.model")
        out = grow(base, merged, tmp_path / "out")
        i = named_ids(out)[END if name else "<|unnamed_400|>"]
        assert cli.read_json(out / "config.json")["eos_token_id"] == [i, 2]
        assert cli.read_json(out / "generation_config.json")["eos_token_id"] == [i, 2]
        assert torch.equal(rows_of(base, 400)[1], rows_of(out, i)[1])
        assert i in sample.end_tokens(out, *reversed(sample.load(out, "cpu", torch.float32)))
        if name == "tokenizer.json":
            [token] = [token for token in cli.read_json(out / name)["added_tokens"]
                       if token["content"] == END]
            assert token["lstrip"] and token["id"] == i


def test_ids_before_a_named_one_are_tokens_too(world, tmp_path):
    """Otherwise the named one would get the first free id, and another token's row."""
    base = write_base(world, tmp_path / "base")
    cli.write_json(base / "added_tokens.json", {PAD: 401})
    vocabulary = tokenizer.load(base)
    assert vocabulary.size == PIECES + 2
    assert vocabulary.controls[PAD] == 401 and vocabulary.controls["<|unnamed_400|>"] == 400


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_an_id_that_one_file_names_has_a_token(world, tmp_path, file, name):
    base = write_base(world, tmp_path / "base", PIECES + 1)
    update(base / file, **{name: 400})
    assert tokenizer.load(base).controls["<|unnamed_400|>"] == 400


def test_transformers_5_names_special_tokens_by_role(world, tmp_path):
    base = write_base(world, tmp_path / "base", PIECES + 1)
    update(base / "tokenizer_config.json", extra_special_tokens={"end_token": END})
    assert tokenizer.load(base).controls[END] == 400


def test_a_token_without_a_row_gets_one_after_all_pieces(world, korean_model, tmp_path):
    """Llama 2's <pad>: id 32000 of a model with 32,000 rows."""
    base = write_base(world, tmp_path / "base", PIECES)
    update(base / "config.json", pad_token_id=400)
    update(base / "tokenizer_config.json", pad_token="<pad>")
    assert tokenizer.load(base).size == PIECES
    merged = merge(base, korean_model, tmp_path / "merged.model")
    out = grow(base, merged, tmp_path / "out")
    pad = tokenizer.load(merged).size
    assert named_ids(out)["<pad>"] == pad == cli.read_json(out / "config.json")["pad_token_id"]
    means = [
        load_file(base / "model.safetensors")[name].double().mean(0).float() for name in TABLES
    ]
    for mean, row in zip(means, rows_of(out, pad), strict=True):
        assert torch.allclose(mean, row, atol=1e-6)


def test_words_of_add_tokens_are_refused(world, tmp_path, refused):
    base = write_base(world, tmp_path / "base")
    update(base / "tokenizer_config.json", added_tokens_decoder={
        "400": {"content": "영화", "special": False},
        "401": {"content": "<tool>", "special": False}})
    refused(sample, ["--model", str(base), "--prompt", "tea"], "'영화' among them")
    cli.write_json(base / "added_tokens.json", {"극장": 400})
    (base / "tokenizer_config.json").unlink()
    refused(sample, ["--model", str(base), "--prompt", "tea"], "'극장' among them")


@pytest.mark.parametrize("name, content", [
    ("added_tokens.json", {"<a>": "x"}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"a": 1}}),
    ("tokenizer.json", {"added_tokens": [{"id": 400}]}),
    ("special_tokens_map.json", [1]),
])
def test_damaged_files_of_the_tokenizer_are_one_line(world, tmp_path, refused, name, content):
    base = write_base(world, tmp_path / "base")
    cli.write_json(base / name, content)
    refused(sample, ["--model", str(base), "--prompt", "tea"], "fetch")


@pytest.mark.parametrize("pad", [-1, 13, 300, 5000])
def test_a_pad_id_is_never_a_piece_of_text(world, korean_model, tmp_path, pad, capsys):
    """Llama 1's config.json has -1; 13 is a byte, 300 an English piece."""
    base = write_base(world, tmp_path / "base", PIECES)
    update(base / "config.json", pad_token_id=pad)
    out = grow(base, merge(base, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    assert cli.read_json(out / "config.json")["pad_token_id"] is None
    assert f"config.json: pad_token_id is now None (it was {pad})" in capsys.readouterr().out


@pytest.mark.parametrize("named, exported",
                         [(2, 2), (7, [7, 2]), ([7, 2, 5], [7, 2, 5]), (None, 2)])
def test_documents_end_in_one_of_the_exported_tokens(
        world, korean_model, tmp_path, named, exported):
    base = write_base(world, tmp_path / "base", PIECES)
    for name in ("config.json", "generation_config.json"):
        update(base / name, eos_token_id=named)
    out = grow(base, merge(base, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    assert cli.read_json(out / "config.json")["eos_token_id"] == exported
    assert cli.read_json(out / "generation_config.json")["eos_token_id"] == exported


def test_a_bos_that_no_file_names_is_that_of_the_documents(world, korean_model, tmp_path):
    """If none is named, transformers uses Llama 2's."""
    base = write_base(world, tmp_path / "base", PIECES)
    for name in ("config.json", "generation_config.json"):
        update(base / name, bos_token_id=None)
    out = grow(base, merge(base, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        assert cli.read_json(out / name)["bos_token_id"] == 1


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["</s>", [2, None]])
def test_an_id_that_is_no_number_is_one_line(world, tmp_path, refused, name, value):
    base = write_base(world, tmp_path / "base")
    update(base / name, eos_token_id=value)
    part = f"{name}: eos_token_id is {value!r}; it must be a token's id"
    refused(sample, ["--model", str(base), "--prompt", "tea"], part)


# ------------------------------------------------------------------- files that are carried along

def everything(folder) -> dict[str, bytes]:
    """The files of a directory that a stage does not write."""
    files = {}
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors" and file.name != "training_state.json":
            files[str(file.relative_to(folder))] = file.read_bytes()
    return files


def test_init_keeps_what_the_base_says(chat, korean_model, tmp_path):
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    config = cli.read_json(out / "tokenizer_config.json")
    assert TOKENIZER_CONFIG.items() <= config.items()
    assert config["pad_token"] == PAD and config["bos_token"] == "<s>"
    assert cli.read_json(out / "config.json")["_name_or_path"] == "chat"
    for name in ("LICENSE", "special_tokens_map.json", "additional_chat_templates/tool.jinja"):
        assert (out / name).read_bytes() == (chat / name).read_bytes()
    assert not (out / "pytorch_model.bin").exists()
    assert not (out / ".gitattributes").exists()


def test_a_stage_copies_what_it_does_not_change(world, chat, korean_model, tmp_path):
    """Including files that were corrected by hand since."""
    merged = merge(chat, korean_model, tmp_path / "merged.model")
    grown = grow(chat, merged, tmp_path / "grown")
    update(grown / "config.json", note="mine", attention_dropout=0.25)
    update(grown / "generation_config.json", eos_token_id=[400], temperature=0.3)
    update(grown / "tokenizer_config.json", chat_template="{{ mended }}", padding_side="right")
    (grown / "NOTICE").write_text("notice")
    data.main(["pack", "--input", f"{world}/ko.jsonl", "--tokenizer", str(merged),
               "--out", f"{tmp_path}/shards", "--val_fraction", "0.05"])
    train.main(["--model", str(grown), "--data", f"{tmp_path}/shards", "--out", f"{tmp_path}/run",
                "--stages", "embed:64:1e-3", "lora:64:1e-3", *QUICK])
    before = everything(grown)
    for folder in (tmp_path / "run/stages/1-embed", tmp_path / "run/model"):
        after = everything(folder)
        assert after.keys() - before.keys() <= {"adapter/adapter_config.json"}
        for name, content in before.items():
            if name.endswith(".json"):
                assert json.loads(after[name]) == json.loads(content), name
            else:
                assert after[name] == content, name


def test_a_base_that_is_trained_without_growing_ends_as_its_documents_do(world, chat, tmp_path):
    train.main(["--model", str(chat), "--data", f"{world}/shards/ko", "--out", f"{tmp_path}/run",
                "--stages", "odd:64:1e-3", *QUICK])
    out = tmp_path / "run/model"
    assert cli.read_json(out / "config.json")["eos_token_id"] == [400, 2]
    assert cli.read_json(out / "generation_config.json") == {**GENERATION, "eos_token_id": [400, 2]}
    assert (out / "tokenizer.json").read_bytes() == (chat / "tokenizer.json").read_bytes()


# ------------------------------------------------------------------- how transformers reads a text

def encode_json(folder, text: str) -> list[str]:
    tokenizers = pytest.importorskip("tokenizers")
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # A token that strips adjacent spaces is shown with them.
    return [fast.id_to_token(i) for i in fast.encode(text).ids]


@pytest.mark.parametrize("legacy", [True, False, None])
def test_text_after_a_special_token_is_segmented_as_by_the_base(
        world, chat, korean_model, tmp_path, legacy):
    update(chat / "tokenizer_config.json", legacy=legacy)
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    after = encode_json(out, f"tea{END}tea{END} tea")
    first = encode_json(out, "tea")
    everywhere = "".join(first[1:]).startswith("▁") and legacy is not False
    behind = after[len(first):]
    assert after[:len(first)] == first
    text = "".join(behind).split(END)
    assert text == (["", "▁tea", "▁▁tea"] if everywhere else ["", "tea", "▁tea"])
    # A whole text is read as SentencePiece reads it, even if it begins with a space.
    vocabulary = tokenizer.load(out)
    for given in ("tea", " tea", "  two spaces", "", "한국어 tea", "a\nb"):
        ids = vocabulary.encode(given, bos=True)
        assert encode_json(out, given) == [vocabulary.pieces[i].text for i in ids]


@pytest.mark.parametrize("bos, eos", [(True, False), (False, False), (True, True)])
def test_what_the_base_puts_around_a_text(chat, korean_model, tmp_path, bos, eos):
    update(chat / "tokenizer_config.json", add_bos_token=bos, add_eos_token=eos)
    (chat / "tokenizer.json").unlink()
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    tokens = encode_json(out, "tea")
    assert (tokens[0] == "<s>") is bos
    assert (tokens[-1] == "</s>") is eos


def test_names_of_special_tokens_map_are_settings_too(chat, korean_model, tmp_path):
    """transformers 5 no longer reads that file."""
    config = cli.read_json(chat / "tokenizer_config.json")
    del config["additional_special_tokens"]
    cli.write_json(chat / "tokenizer_config.json", config)
    update(chat / "special_tokens_map.json", additional_special_tokens=[{"content": END}, PAD])
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    config = cli.read_json(out / "tokenizer_config.json")
    assert config["additional_special_tokens"] == [END, PAD]


@pytest.mark.parametrize("bos, eos", [(True, False), (False, False), (True, True)])
def test_the_tokenizer_json_of_the_base_counts_before_its_settings(
        chat, korean_model, tmp_path, bos, eos):
    content = cli.read_json(chat / "tokenizer.json")
    content["post_processor"] = tokenizer_json.post_processor(
        {"<s>": 1} if bos else {}, {"</s>": 2} if eos else {})
    cli.write_json(chat / "tokenizer.json", content)
    update(chat / "tokenizer_config.json", add_bos_token=not bos, add_eos_token=not eos)
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    assert cli.read_json(out / "tokenizer.json")["post_processor"] == content["post_processor"]


def test_the_named_class_is_told_what_a_llama_tokenizer_does_by_itself(world, llama3, tmp_path):
    tokenizer.save(world / "base.model", tmp_path)
    config = cli.read_json(tmp_path / "tokenizer_config.json")
    assert config["padding_side"] == "left"
    for folder in (tmp_path, llama3 / "grown"):
        config = cli.read_json(folder / "tokenizer_config.json")
        assert config["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("adds_space", [True, False])
def test_a_missing_dummy_prefix_is_in_the_settings(world, tmp_path, adds_space):
    """llama.cpp reads them, and adds a space before a text unless they say otherwise."""
    base = write_base(world, tmp_path / "base", PIECES)
    raw = (base / "tokenizer.model").read_bytes()
    prefix = field(NORMALIZER, field(DUMMY_PREFIX, int(adds_space)))
    (base / "tokenizer.model").write_bytes(raw + prefix)
    tokenizer.save(base / "tokenizer.model", tmp_path)
    config = cli.read_json(tmp_path / "tokenizer_config.json")
    assert config.get("add_prefix_space") == (None if adds_space else False)
    # A wrong value in the base is corrected.
    update(base / "tokenizer_config.json", add_prefix_space=not adds_space)
    tokenizer.save(base, tmp_path)
    assert cli.read_json(tmp_path / "tokenizer_config.json")["add_prefix_space"] is adds_space


def test_a_piece_that_the_base_describes_as_special_stays_so(chat, korean_model, tmp_path):
    """Some fine-tuned models reused an unused piece instead of adding a token."""
    [piece] = tokenizer.load(chat).pieces[300:301]
    content = cli.read_json(chat / "tokenizer.json")
    content["added_tokens"].append({"id": 300, "content": piece.text, "special": True})
    cli.write_json(chat / "tokenizer.json", content)
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    assert named_ids(out)[piece.text] == 300


def test_a_list_that_only_transformers_5_reads_has_its_older_name(chat, korean_model, tmp_path):
    """transformers 4 could not open a model grown from a tokenizer that transformers 5 saved."""
    update(chat / "tokenizer_config.json", additional_special_tokens=None,
           extra_special_tokens=[END, PAD])
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    config = cli.read_json(out / "tokenizer_config.json")
    assert "extra_special_tokens" not in config
    assert config["additional_special_tokens"] == [END, PAD]


def test_a_pad_token_that_is_a_piece_of_text_is_left_out(chat, korean_model, tmp_path, capsys):
    """Also in tokenizer_config.json."""
    i = next(i for i in range(300, PIECES) if tokenizer.load(chat).bytes_of(i))
    piece = tokenizer.load(chat).pieces[i].text
    for name in ("config.json", "generation_config.json"):
        update(chat / name, pad_token_id=i)
    update(chat / "tokenizer_config.json", pad_token=piece)
    cli.write_json(chat / "special_tokens_map.json", {"pad_token": piece, "eos_token": END})
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    assert f"pad_token is left out, because {piece!r}" in capsys.readouterr().out
    assert cli.read_json(out / "tokenizer_config.json")["pad_token"] is None
    assert cli.read_json(out / "special_tokens_map.json") == {"eos_token": END}
    for name in ("config.json", "generation_config.json"):
        assert cli.read_json(out / name)["pad_token_id"] is None


def test_merges_are_text_which_every_version_of_tokenizers_reads(world):
    merges = cli.read_json(world / "model/tokenizer.json")["model"]["merges"]
    assert merges and all(isinstance(merge, str) for merge in merges)


@pytest.mark.parametrize("prompt", [
    f"tea{END}tea {PAD} tea", f"{END} tea", f" tea{END}", f"<s>tea{END}", "tea", "", END,
])
@pytest.mark.parametrize("legacy, strips", [(True, {}), (False, {}), (False, {"rstrip": True}),
                                            (True, {"lstrip": True, "rstrip": True})])
def test_special_tokens_in_a_prompt_are_themselves(
        chat, korean_model, tmp_path, capsys, legacy, strips, prompt):
    update(chat / "tokenizer_config.json", legacy=legacy,
           added_tokens_decoder={"400": {"content": END, **strips}})
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    vocabulary = tokenizer.load(out)
    ids = sample.encode_prompt(vocabulary, out, prompt)
    assert ids.count(400) == prompt.count(END) and ids.count(1) == 1
    sample.main(["--model", str(out), "--prompt", prompt, "--max_new_tokens", "1"])
    # transformers adds another BOS before one that is already there.
    expected = encode_json(out, prompt)
    if prompt.startswith("<s>"):
        del expected[0]
    assert [vocabulary.pieces[i].text for i in ids] == expected


def test_of_two_special_tokens_that_begin_alike_the_longer_one_is_meant(world, tmp_path):
    base = write_base(world, tmp_path / "base")
    cli.write_json(base / "added_tokens.json", {"<|im|>": 400, "<|im|>[x]": 401})
    assert sample.encode_prompt(tokenizer.load(base), base, "<|im|>[x]<|im|>") == [1, 401, 400]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("prompt", [f"tea{END}tea {END} tea", f"{END} tea", f"{END}tea\n{END}"])
def test_special_tokens_in_a_prompt_may_be_pieces(world, tmp_path, legacy, prompt):
    """Yi's chat tokens are user-defined pieces: SentencePiece finds them, but adds a space before
    the first one and none after them."""
    base = write_base(world, tmp_path / "base", PIECES + 1)
    piece = field(TEXT, END.encode()) + field(SCORE, 0.0) + field(TYPE, USER_DEFINED)
    with open(base / "tokenizer.model", "ab") as file:
        file.write(field(FIELD_OF_PIECES, piece))
    update(base / "tokenizer_config.json", legacy=legacy,
           added_tokens_decoder={"400": {"content": END}})
    out = grow(base, base / "tokenizer.model", tmp_path / "out")
    vocabulary = tokenizer.load(out)
    ids = sample.encode_prompt(vocabulary, out, prompt)
    assert [vocabulary.pieces[i].text for i in ids] == encode_json(out, prompt)


# ------------------------------------------------------------------- pieces of equal score

def test_ties_are_reported_and_can_be_broken(world, korean_model, tmp_path, capsys):
    """가나 and 나가 compete for both characters: no list of merges is right for both."""
    base = write_base(world, tmp_path / "base", PIECES + 4)
    raw = (base / "tokenizer.model").read_bytes()
    for text in ("가", "나", "가나", "나가"):
        piece = field(TEXT, text.encode()) + field(SCORE, 0.0)
        raw += field(FIELD_OF_PIECES, piece)
    (base / "tokenizer.model").write_bytes(raw)
    for flags, is_said in ([], True), (["--break_ties"], False):
        merged = tmp_path / "merged.model"
        capsys.readouterr()
        tokenizer.main(["merge", "--base", str(base / "tokenizer.model"),
                        "--korean", str(korean_model), "--out", str(merged), *flags])
        assert ("pieces with equal scores" in capsys.readouterr().err) is is_said
        out = grow(base, merged, tmp_path / "out")
        assert ("pieces with equal scores" in capsys.readouterr().err) is is_said
        shards = tmp_path / f"shards{is_said}"
        data.main(["pack", "--input", f"{world}/ko.jsonl", "--tokenizer", str(merged),
                   "--out", str(shards), "--val_fraction", "0.05"])
        run = tmp_path / f"run{is_said}"
        train.main(["--model", str(out), "--data", str(shards), "--out", str(run),
                    "--stages", "odd:256:1e-3", *QUICK, "--save_every", "1", "--keep", "9"])
        assert ("pieces with equal scores" in capsys.readouterr().err) is is_said
        export.main([str(run), "--step", "1", "--out", f"{tmp_path}/exported"])
        assert ("pieces with equal scores" in capsys.readouterr().err) is is_said
    vocabulary = tokenizer.load(out)
    for text in ("가나가", "나가나", "가나가나가"):
        ids = vocabulary.encode(text, bos=True)
        assert encode_json(out, text) == [vocabulary.pieces[i].text for i in ids]


# ------------------------------------------------------------------- scoring is not merging

def train_unigram(world) -> bytes:
    out = io.BytesIO()
    texts = [json.loads(line)["text"] for line in open(world / "en.jsonl", encoding="utf-8")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, model_type="unigram", vocab_size=400,
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2)
    return out.getvalue()


def test_a_unigram_model_is_packed_trained_sampled_and_scored(world, tmp_path, capsys):
    base = write_base(world, tmp_path / "base", 512)
    (base / "tokenizer.model").write_bytes(train_unigram(world))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    data.main(["pack", "--input", f"{world}/en.jsonl", "--tokenizer", str(base),
               "--out", f"{tmp_path}/shards", "--val_fraction", "0.05"])
    train.main(["--model", str(base), "--data", f"{tmp_path}/shards", "--out", f"{tmp_path}/run",
                "--stages", "odd:64:1e-3", *QUICK])
    out = tmp_path / "run/model"
    assert (out / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    assert not (out / "tokenizer.json").exists()
    sample.main(["--model", str(out), "--prompt", "the tea", "--max_new_tokens", "4"])
    vocabulary = tokenizer.load(out)
    ids = vocabulary.sp.encode("the tea", add_bos=True)
    assert eval_kobest.encoder(vocabulary, out)("the tea") == ids


def test_ids_may_be_nested():
    assert special_tokens.new_value([[1, 2], [3]], {1: 1, 2: 9}) == [[1, 9]]
    assert special_tokens.new_value(None, {}) is None


def test_a_directory_of_a_hub_cache_is_links(chat, korean_model, tmp_path):
    """Files in Hugging Face's cache are links; copies of them are files."""
    shutil.copytree(chat, tmp_path / "blobs")
    (chat / "LICENSE").unlink()
    (chat / "LICENSE").symlink_to(tmp_path / "blobs/LICENSE")
    out = grow(chat, merge(chat, korean_model, tmp_path / "merged.model"), tmp_path / "out")
    assert not (out / "LICENSE").is_symlink() and (out / "LICENSE").read_text() == "mine"


def test_init_says_that_bin_files_are_not_read(chat, korean_model, tmp_path):
    """The usual state of an older repository, where fetching a missing file is not the answer."""
    merged = merge(chat, korean_model, tmp_path / "merged.model")
    (chat / "model.safetensors").unlink()
    with pytest.raises(cli.UserError, match="convert them to safetensors"):
        init.grow_folder(chat, merged, tmp_path / "out", "mean", 1, 0)
    assert not (tmp_path / "out").exists()


def test_a_piece_with_another_name_in_the_directory_is_refused(chat):
    """A chat model that reused a reserved piece: under the piece's name the chat template would not
    find it, and <|im_end|> would get a new row."""
    piece = tokenizer.load(chat).pieces[3].text
    update(chat / "tokenizer_config.json", added_tokens_decoder={"3": {"content": END}})
    with pytest.raises(cli.UserError, match=f"calls id 3 '{piece}', .* '<.im_end.>'"):
        tokenizer.load(chat)
    # The file alone has a single name for it.
    assert tokenizer.load(chat / "tokenizer.model").size == PIECES
