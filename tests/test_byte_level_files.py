"""tokenizer.json files as they occur, and unusual texts: every id is the one that `tokenizers`
gives, or the file is refused in one line."""
import copy
import json
import random

import pytest

import tokenizer
from common import byte_level, byte_level_file, cli
from common.byte_level import join, segment, single_bytes

GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+|[\s\S]"
)
LLAMA3 = byte_level_file.LLAMA3_PATTERN

# Regular expressions that all libraries read alike, and others.
PATTERNS = [
    LLAMA3, GPT4O,
    LLAMA3.replace("{1,3}", ""), LLAMA3.replace(r"\p{L}+", r"\p{L}++"),
    LLAMA3.replace(r"\p{L}+", r"[\p{L}\p{M}]+"),
    r"\p{L}+|\P{L}+", r"\S+(?=\s)|\s|\S+", r"(?i:the|k|s)+|[\s\S]", r"[가-힣]{2}|[\s\S]",
]
REFUSED_PATTERNS = [
    # read in two ways: possessive, or repeated
    LLAMA3.replace("{1,3}", "{1,3}+"),
    # groups, whose contents findall would return
    f"({LLAMA3})", LLAMA3.replace("(?i:", "("), r"(\p{L})\1|[\s\S]",
    # text is lost: single digits, the last space, roman numerals
    LLAMA3.replace("{1,3}", "{2}"), LLAMA3.removesuffix(r"|\s+"),
    r"\p{L}+|\p{Nd}+|[^\p{L}\p{N}]+",
    # what matches nothing at all
    "", r"\p{L}*|\P{L}+", r"[\s\S]*",
    # not a regular expression
    "[", "(?:", r"a{3,1}|[\s\S]", r"\p{Foo}",
]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A small tokenizer.json: single bytes, tokens of a few words, and three control tokens."""
    ranks = {token: i for i, token in enumerate(single_bytes(bytes(range(256))))}
    words = ["the", " the", "her", "low", "한국", " 한국어", "ㅋㅋㅋㅋ", "12", "...", "\n\n", "   "]
    for length in range(2, 12):
        for word in words:
            token = word.encode()[:length]
            if len(join(single_bytes(token), ranks)) == 2:
                ranks[token] = len(ranks)
    vocabulary = byte_level_file.llama3(ranks, {})
    keep = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>")
    for one in vocabulary.content["added_tokens"][3:]:
        vocabulary.controls.pop(one["content"])
    vocabulary.content["added_tokens"] = vocabulary.content["added_tokens"][:len(keep)]
    assert tuple(vocabulary.controls) == keep

    folder = tmp_path_factory.mktemp("content")
    byte_level_file.save(byte_level.dataclasses.replace(vocabulary), folder)
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def read(content, folder):
    """The vocabulary of a tokenizer.json."""
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return byte_level_file.read(folder / "tokenizer.json")


def strings(seed, n=200):
    """Random strings of letters of all kinds, spaces and control characters."""
    rng = random.Random(seed)
    pools = [
        "the low er", "한국어ㅋㅋ", "가각힣", " \t\r\n\v\f\x1c\x1d\x1f\x85\xa0\u2028\u3000\ufeff",
        "0123456789²½Ⅷ٣", "'sStTſKkLlReſ", "'\u2019\"()[]<>|{}-_.,", "éÉ\u0301\u0300ः⃝",
        "😀👍🏽\u200d", "\x00\x01\x7f\xad\ue000\uffff", "漢字かな",
    ]
    for _ in range(n):
        runs = []
        for _ in range(rng.randrange(12)):
            runs.append("".join(rng.choices(rng.choice(pools), k=rng.randrange(1, 4))))
        yield "".join(runs)


def set_pattern(content, pattern):
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}


def merges_as_lists(content):
    model = content["model"]
    model["merges"] = [merge.split(" ") for merge in model["merges"]]


def controls_in_front(content):
    model = content["model"]
    names = [token["content"] for token in content["added_tokens"]]
    others = [text for text in model["vocab"] if text not in names]
    model["vocab"] = {text: i for i, text in enumerate([*names, *others])}
    for token in content["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]


def controls_outside(content):
    for token in content["added_tokens"]:
        del content["model"]["vocab"][token["content"]]


def hole(content):
    for token in content["added_tokens"]:
        token["id"] += 5
        content["model"]["vocab"][token["content"]] = token["id"]


def trimmed(content):
    content["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regular_expression_is_read_as_by_tokenizers(content, pattern, tmp_path):
    content = copy.deepcopy(content)
    set_pattern(content, pattern)
    check_equal(content, tmp_path)


@pytest.mark.parametrize(
    "change", [merges_as_lists, controls_in_front, controls_outside, hole, trimmed])
def test_other_spellings_of_the_same_are_read(content, change, tmp_path):
    content = copy.deepcopy(content)
    change(content)
    check_equal(content, tmp_path)


def check_equal(content, folder):
    """Ids are those of `tokenizers` and tiktoken, if installed, and nothing is lost."""
    vocabulary = read(content, folder)
    for text in strings(0):
        assert vocabulary.decode(vocabulary.encode_chunks(text)) == text
    if byte_level.tiktoken:
        for text in strings(1):
            assert vocabulary.tiktoken.encode_ordinary(text) == vocabulary.encode_chunks(text)

    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, i in vocabulary.controls.items():
        assert theirs.token_to_id(text) == i
    for text in strings(2):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ids == vocabulary.encode_chunks(text), text


def same_id(content):
    content["model"]["vocab"]["a"] = content["model"]["vocab"]["b"]


def swapped(content):
    vocab = content["model"]["vocab"]
    vocab["th"], vocab["the"] = vocab["the"], vocab["th"]


def no_byte(content):
    content["model"]["vocab"].pop("\u0100")  # the letter of byte 0


def raw_space(content):
    content["model"]["vocab"][" z"] = 5000


def control_of_two_ids(content):
    content["added_tokens"][0]["id"] += 10


def controls_far_outside(content):
    controls_outside(content)
    for token in content["added_tokens"]:
        token["id"] += 7


def added_word(content, special=False, word="low"):
    token = {**content["added_tokens"][0], "content": word, "id": 5000, "special": special}
    content["added_tokens"].append(token)


def special_word(content):
    added_word(content, special=True)


def arrow(content):
    added_word(content, word="->")


def lost_merge(content):
    content["model"]["merges"].pop(3)


def own_merges(content):
    content["model"]["ignore_merges"] = False


def dropout(content):
    content["model"]["dropout"] = 0.1


def suffix(content):
    content["model"]["end_of_word_suffix"] = "</w>"


def normalizer(content):
    content["normalizer"] = {"type": "NFC"}


def string_pattern(content):
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"String": " "}


def removed(content):
    content["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed", invert=True)


def more_steps(content):
    content["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits"})


def own_regex(content):
    content["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = True


def no_type(content):
    del content["model"]["type"]


def no_tokens(content):
    del content["added_tokens"]


@pytest.mark.parametrize("change", [
    same_id, swapped, no_byte, raw_space, control_of_two_ids, controls_far_outside,
    added_word, special_word, arrow, lost_merge, own_merges, dropout, suffix, normalizer,
    string_pattern, removed, more_steps, own_regex, no_type, no_tokens,
])
def test_what_would_be_computed_wrongly_is_refused(content, change, tmp_path):
    content = copy.deepcopy(content)
    change(content)
    check_refused(content, tmp_path)


@pytest.mark.parametrize("pattern", REFUSED_PATTERNS)
def test_other_regular_expressions_are_refused(content, pattern, tmp_path):
    content = copy.deepcopy(content)
    set_pattern(content, pattern)
    check_refused(content, tmp_path)


@pytest.mark.parametrize("other", [[], {}, {"model": None}, {"model": {"type": "BPE"}}, "", 5])
def test_other_json_is_refused(other, tmp_path):
    check_refused(other, tmp_path)


def check_refused(content, folder):
    with pytest.raises(cli.UserError, match="cannot be used: ") as error:
        read(content, folder)
    assert "\n" not in str(error.value)


# ---- Texts ---------------------------------------------------------------------------------------


def slow_join(parts, ranks):
    """The definition, word for word."""
    parts = list(parts)
    while True:
        pairs = []
        for i in range(1, len(parts)):
            token = parts[i - 1] + parts[i]
            if token in ranks:
                pairs.append((ranks[token], i))
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i - 1:i + 1] = [parts[i - 1] + parts[i]]


def test_join_is_its_definition():
    """With ranks in any order, not only in one that learning could give."""
    rng = random.Random(0)
    for _ in range(3000):
        letters = rng.choice([b"a", b"ab", b"abc"])
        tokens = set()
        for _ in range(rng.randrange(25)):
            tokens.add(bytes(rng.choices(letters, k=rng.randrange(2, 6))))
        order = rng.sample(sorted(tokens), k=len(tokens))
        ranks = {token: rank for rank, token in enumerate(order)}
        text = bytes(rng.choices(letters, k=rng.randrange(30)))
        assert join(single_bytes(text), ranks) == slow_join(single_bytes(text), ranks)
    assert join([], {}) == []
    assert segment(b"", {}) == []


@pytest.mark.parametrize("unit", ["ㅋ", "a", "ACGT", " ", "\n", " \n", "\0", "the", "."])
def test_long_runs(content, unit, tmp_path):
    """100,000 bytes in one chunk take seconds, not minutes."""
    vocabulary = read(copy.deepcopy(content), tmp_path)
    text = unit * (100_000 // len(unit.encode()))
    ids = vocabulary.encode_chunks(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode(text, bos=False) == ids


def test_more_spaces_than_tiktoken_can_handle(content, tmp_path, monkeypatch):
    """Its regular expressions panic, and a panic is not an Exception: it would kill pack."""
    pytest.importorskip("tiktoken")
    vocabulary = read(copy.deepcopy(content), tmp_path)
    monkeypatch.setattr(vocabulary, "ids_of_chunk", lambda chunk: [len(chunk)])
    spaces = " " * 1_100_000
    assert vocabulary.encode(["a", spaces + "a"], bos=False) == [[1], [len(spaces) - 1, 2]]


@pytest.mark.parametrize("text", ["a\ud800", "\udcff", "\ud83d\ude00"])
def test_half_a_character_is_an_error(content, text, tmp_path, monkeypatch):
    vocabulary = read(copy.deepcopy(content), tmp_path)
    with pytest.raises(UnicodeEncodeError):
        vocabulary.encode(text, bos=True)
    monkeypatch.setattr(byte_level, "tiktoken", None)
    with pytest.raises(UnicodeEncodeError):
        vocabulary.encode(["a", text], bos=True)


def test_nothing(content, tmp_path):
    vocabulary = read(copy.deepcopy(content), tmp_path)
    assert vocabulary.encode([], bos=True) == []
    assert vocabulary.encode("", bos=True, eos=True) == [vocabulary.bos, vocabulary.eos]
    assert vocabulary.decode([]) == ""


def test_without_bos(content, tmp_path):
    """It can be measured, but no document can begin with a token that does not exist."""
    read(copy.deepcopy(content), tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    vocabulary = byte_level_file.read(tmp_path / "tokenizer.json")
    assert vocabulary.decode(vocabulary.encode("the", bos=False)) == "the"
    with pytest.raises(cli.UserError, match=f"{tmp_path}/tokenizer.json has no BOS"):
        vocabulary.encode("the", bos=True)


@pytest.mark.parametrize("changes", [
    {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}},
    {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}},
    {"decoder": {"type": "Metaspace", "replacement": "▁"}},
    {"model": {"type": "BPE", "byte_fallback": True}}, {"model": {"type": "Unigram", "vocab": []}},
])
def test_a_tokenizer_json_of_a_sentencepiece_model_asks_for_that(content, changes, tmp_path):
    content = {**copy.deepcopy(content), **changes}
    with pytest.raises(
        cli.UserError, match=f"{tmp_path} holds no tokenizer.model, .* from the base"
    ):
        read(content, tmp_path)
    # The file itself was named, and the file to read is next to it.
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(
        cli.UserError, match=f"SentencePiece model; give {tmp_path}/tokenizer.model"
    ):
        read(content, tmp_path)


def test_only_tokens_that_occur_in_texts_need_a_row(content, tmp_path):
    """A pad token beyond the table does no harm; BOS, EOS or a piece does."""
    vocabulary = read(copy.deepcopy(content), tmp_path)
    pad = vocabulary.controls["<|reserved_special_token_0|>"]
    assert (vocabulary.eos, pad) == (vocabulary.size - 2, vocabulary.size - 1)
    tokenizer.check_rows(vocabulary, tmp_path / "config.json")      # there is none
    cli.write_json(tmp_path / "config.json", {"vocab_size": pad})
    tokenizer.check_rows(vocabulary, tmp_path / "config.json")
    cli.write_json(tmp_path / "config.json", {"vocab_size": vocabulary.eos})
    with pytest.raises(
        cli.UserError, match=f"ids up to {vocabulary.eos}, .* vocab_size {vocabulary.eos}:"
    ):
        tokenizer.check_rows(vocabulary, tmp_path / "config.json")
    new = vocabulary.extended([b" thel"])
    cli.write_json(tmp_path / "config.json", {"vocab_size": vocabulary.size})
    with pytest.raises(cli.UserError, match=f"ids up to {vocabulary.size}, "):
        tokenizer.check_rows(new, tmp_path / "config.json")
