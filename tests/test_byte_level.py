"""Byte-level vocabularies against independent definitions, tiktoken, tokenizers and transformers;
what extending promises; and which files are refused."""
import base64
import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import llama3_world as world
import pytest
from llama3_world import BEGIN, END, ODD_TEXTS, TURN, WHOLE, odd_text

import data
import tokenizer
from common import byte_level, byte_level_file, cli, tokenizer_json
from common.byte_level import join, join_long, learn, segment, single_bytes

SEEDS = range(20)


@pytest.fixture(scope="module")
def base(llama3):
    return tokenizer.load(llama3 / "base")


@pytest.fixture(scope="module")
def merged(llama3):
    return tokenizer.load(llama3 / "merged")


@pytest.fixture(scope="module")
def learned(llama3):
    return list(byte_level_file.read_ranks(llama3 / "korean.tiktoken"))


def texts(llama3, n: int = 200) -> list[str]:
    """Odd texts, random texts, and documents."""
    rng = random.Random()
    found = [*ODD_TEXTS, *(odd_text(rng) for _ in range(n))]
    return found + world.texts_of(llama3, "ko")[::40] + world.texts_of(llama3, "en")[::40]


def random_ranks(
    rng: random.Random, alphabet: bytes, tokens: int, all_bytes=()
) -> dict[bytes, int]:
    """Tokens with ranks in any order: some are made by no pair. Single bytes come first: those of
    the alphabet, or `all_bytes`."""
    ranks = {}
    for token in all_bytes or single_bytes(alphabet):
        ranks[token] = len(ranks)
    while len(ranks) < len(all_bytes or alphabet) + tokens:
        token = bytes(rng.choices(alphabet, k=rng.randint(2, 6)))
        ranks.setdefault(token, len(ranks))
    return ranks


# ---- Encoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_join_is_its_definition(seed):
    rng = random.Random(seed)
    alphabet = bytes(rng.sample(range(256), rng.choice([2, 2, 3, 8])))
    ranks = random_ranks(rng, alphabet, rng.choice([2, 5, 20]))
    for _ in range(60):
        chunk = bytes(rng.choices(alphabet, k=rng.randint(0, 30)))
        assert join(single_bytes(chunk), ranks) == world.joined(chunk, ranks)
        assert join_long(chunk, ranks) == world.joined(chunk, ranks)


def test_join_continues_from_what_is_joined_already():
    """As learn does: first with the ranks of the base, then with one above them."""
    for seed in SEEDS:
        rng = random.Random(seed)
        ranks = random_ranks(rng, b"ab", 6)
        *older, newest = ranks
        before = {token: ranks[token] for token in older}
        for _ in range(60):
            chunk = bytes(rng.choices(b"ab", k=rng.randint(0, 20)))
            parts = join(single_bytes(chunk), before)
            assert join(parts, ranks) == world.joined(chunk, ranks), newest


def test_of_equal_pairs_the_leftmost_is_joined():
    ranks = {b"a": 0, b"aa": 1}
    assert join(single_bytes(b"aaa"), ranks) == [b"aa", b"a"]
    assert join(single_bytes(b"aaaaa"), ranks) == [b"aa", b"aa", b"a"]


def test_a_chunk_that_is_a_token_is_looked_up_and_a_part_of_one_is_not(base, engine):
    whole = base.ranks[WHOLE.encode()]
    assert len(world.joined(WHOLE.encode(), base.ranks)) > 2
    assert segment(WHOLE.encode(), base.ranks) == [WHOLE.encode()]
    assert base.encode(f"x{WHOLE}{WHOLE}", bos=False)[-2:] == [whole, whole]
    assert whole not in base.encode(WHOLE + "x", bos=False)
    assert base.split(WHOLE.encode()) == [
        base.ranks[part] for part in world.joined(WHOLE.encode(), base.ranks)
    ]


def test_ids_are_those_of_the_definition(llama3, base, merged, engine):
    for vocabulary in (base, merged):
        for text in texts(llama3):
            assert vocabulary.encode(text, bos=False) == world.encoded(text, vocabulary.ranks), text


def test_encode_takes_a_text_or_a_list_and_adds_bos_and_eos(merged, engine):
    some = ["한국", "", "It's"]
    rows = [world.encoded(text, merged.ranks) for text in some]
    assert merged.encode(some, bos=False) == rows
    assert [merged.encode(text, bos=False) for text in some] == rows
    assert merged.encode([], bos=True) == []
    for bos, eos in itertools.product((False, True), repeat=2):
        first = [merged.controls[BEGIN]] if bos else []
        last = [merged.controls[END]] if eos else []
        expected = [[*first, *row, *last] for row in rows]
        for workers in (-1, 1, 3):
            assert merged.encode(some, bos=bos, eos=eos, workers=workers) == expected
        assert merged.encode(some[0], bos=bos, eos=eos) == expected[0]


def test_the_text_of_a_control_token_is_ordinary_text(merged, engine):
    """No document can end itself or start another one."""
    ids = merged.encode(f"{BEGIN}a{TURN}", bos=False)
    assert not set(ids) & set(merged.controls.values())
    assert merged.decode(ids) == f"{BEGIN}a{TURN}"


def test_a_text_decodes_to_itself_and_a_control_token_to_nothing(llama3, merged, engine):
    found = texts(llama3)
    rows = merged.encode(found, bos=True, eos=True)
    assert merged.decode(rows) == found
    assert [merged.decode(row) for row in rows] == found
    assert merged.decode([]) == "" and merged.decode([[], [merged.bos]]) == ["", ""]


def test_half_a_character_decodes_to_the_replacement_character(merged):
    single = {byte: merged.ranks[bytes([byte])] for byte in range(256)}
    whole = [single[byte] for byte in "한".encode()]
    assert merged.decode(whole) == "한"
    assert merged.decode(whole[:2]) == "\ufffd"
    assert merged.decode([single[ord("a")], whole[0], merged.eos, single[ord("b")]]) == "a\ufffdb"
    assert merged.decode([whole[0], merged.bos, *whole[1:]]) == "한"


def test_bytes_of_every_id(merged):
    for token, i in merged.ranks.items():
        assert merged.bytes_of(i) == token
    for i in merged.controls.values():
        assert merged.bytes_of(i) == b""
    assert sorted([*merged.ranks.values(), *merged.controls.values()]) == list(range(merged.size))


def test_a_missing_bos_is_reported_only_where_it_is_needed(llama3, tmp_path, refused):
    """Qwen's tokenizer has none. Whatever does not need it works."""
    shutil.copytree(llama3 / "base", tmp_path / "base")
    config = cli.read_json(tmp_path / "base/tokenizer_config.json")
    for missing in ("bos_token", "eos_token"):
        for value in (None, "<|none|>"):
            cli.write_json(tmp_path / "base/tokenizer_config.json", {**config, missing: value})
            vocabulary = tokenizer.load(tmp_path / "base")
            assert vocabulary.encode("a", bos=False) == [vocabulary.ranks[b"a"]]
            with pytest.raises(cli.UserError, match="no BOS"):
                vocabulary.encode("a", bos=True, eos=True)
            pack = ["pack", "--input", f"{llama3}/toy/ko", "--tokenizer", f"{tmp_path}/base"]
            refused(data, [*pack, "--out", f"{tmp_path}/out"], "its tokenizer_config.json")
            assert not (tmp_path / "out").exists()


# ---- Extending -----------------------------------------------------------------------------------


def learn_by_counting(counts, ranks, size, is_wanted) -> list[bytes]:
    """`learn`, counting everything again after each token."""
    ranks = dict(ranks)
    base = set(ranks)
    tokens = []
    while len(tokens) < size:
        found = Counter()
        for chunk, n in counts.items():
            chunk = chunk.encode()
            parts = [chunk] if chunk in base else world.joined(chunk, ranks)
            for left, right in itertools.pairwise(parts):
                if is_wanted(left + right):
                    found[left + right] += n
        if not found:
            break
        tokens.append(min(found, key=lambda token: (-found[token], token)))
        ranks[tokens[-1]] = max(ranks.values()) + 1
    return tokens


@pytest.mark.parametrize("is_wanted", [world.always, tokenizer.is_hangul_token])
@pytest.mark.parametrize("seed", SEEDS)
def test_learn_is_counting_again_and_again(seed, is_wanted):
    """Also on bases where not every token is made of a pair, and with gaps between ranks."""
    rng = random.Random(seed)
    letters = rng.choice(["가나", "가간깐ㅋ", "가나a", " 가a漢", "ab가나다라"])
    alphabet = bytes(sorted(set(letters.encode())))
    ranks = random_ranks(rng, alphabet, rng.choice([0, 3, 12]))
    counts = {}
    for _ in range(rng.choice([3, 12, 30])):
        counts["".join(rng.choices(letters, k=rng.randint(1, 7)))] = rng.randint(1, 4)
    # Some chunks are tokens of the base.
    for chunk in rng.sample(sorted(counts), 2):
        ranks.setdefault(chunk.encode(), len(ranks))
    ranks = {token: 3 * rank for token, rank in ranks.items()}
    before = dict(counts), dict(ranks)
    found = learn(counts, ranks, 15, is_wanted)
    assert found == learn_by_counting(counts, ranks, 15, is_wanted)
    assert (counts, ranks) == before


def test_a_learned_token_ranks_after_the_base_s():
    """Once `ab` is joined, the base's `aba` can be made, and comes before a second `ab`. So `bb` is
    the next pair that occurs twice."""
    ranks = {b"a": 0, b"b": 1, b"aba": 2}
    assert learn({"ababb": 1, "bb": 1}, ranks, 2, world.always) == [b"ab", b"bb"]


def test_a_learned_token_is_hangul_or_begins_it(learned):
    two_bytes = set()
    for code in range(0xAC00, 0xD7A4):
        two_bytes.add(chr(code).encode()[:2])
    for code in [*range(0x800, 0xAC00), *range(0xD7A4, 0xD800), *range(0xE000, 0x10000)]:
        two_bytes.discard(chr(code).encode()[:2])
    for byte in range(256):
        for other in range(256):
            pair = bytes([byte, other])
            assert tokenizer.is_hangul_token(pair) == (pair in two_bytes), pair
            assert tokenizer.is_hangul_token(b" " + pair) == (pair in two_bytes), pair
    for token in learned:
        if token.removeprefix(b" ") not in two_bytes:
            text = token.decode().removeprefix(" ")
            assert text and all("가" <= letter <= "힣" or "ㄱ" <= letter <= "ㆎ" for letter in text)
    assert sum(token.removeprefix(b" ") in two_bytes for token in learned) > 10


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b" ",
        b"a",
        b"\xed",
        b" \xea",
        b"\xea\xaf",
        b"\xed\x9e",
        b"\xe3\x84",
        "\u3164".encode(),
        "가나다".encode()[1:],
        "가 나".encode(),
        "  가".encode(),
        "\u1112\u1161".encode(),
        "가a".encode(),
        "漢".encode(),
        "가".encode() + b"\xeb\x82",
    ],
)
def test_what_no_vocabulary_learns(token):
    assert not tokenizer.is_hangul_token(token)


def test_every_learned_token_is_reached_by_joining_alone(merged, learned, base):
    assert len(learned) == 200 and merged.size == base.size + 200
    for i, token in enumerate(learned, base.size):
        assert merged.ranks[token] == i and merged.split(token) == [i]
        assert world.joined(token, merged.ranks) == [token]
    # The one token of the base that is found only by look-up is named by `report`.
    lost = tokenizer.unreachable(merged, 0)
    assert list(lost) == [WHOLE.replace(" ", "▁")]
    assert tokenizer.unreachable(merged, base.size) == {}


def test_the_base_keeps_its_ids(base, merged):
    assert merged.pieces[:base.size] == base.pieces
    assert merged.controls == base.controls and (merged.bos, merged.eos) == (base.bos, base.eos)
    assert base.bos == len(base.ranks) and base.eos == base.bos + 1


def test_a_text_without_hangul_is_segmented_as_before(llama3, base, merged, engine):
    rng = random.Random()
    found = [tokenizer.HANGUL_LETTER.sub("", text) for text in texts(llama3, 2000)]
    found += ["".join(world.any_characters(rng, 8)) for _ in range(2000)]
    # Characters whose bytes begin like those of Hangul, in all contexts.
    near = [
        *range(0xA960, 0xA980),
        *range(0xAB00, 0xAC00),
        *range(0xD7A4, 0xD800),
        *range(0x1100, 0x1200),
        *range(0x3100, 0x3131),
        0x3164,
        *range(0x318F, 0x31A0),
        *range(0x3200, 0x3220),
        *range(0xFF00, 0xFFF0),
    ]
    found += [form.replace("x", chr(code)) for code in near for form in ("x", "xx", " x", "axb ")]
    found = [tokenizer.HANGUL_LETTER.sub("", text) for text in found]
    assert merged.encode(found, bos=True) == base.encode(found, bos=True)


def test_no_text_gets_longer_and_korean_gets_shorter(llama3, base, merged, engine):
    found = texts(llama3, 1000)
    before = base.encode(found, bos=False)
    after = merged.encode(found, bos=False)
    for text, old, new in zip(found, before, after, strict=True):
        assert len(new) <= len(old), text
    korean = world.texts_of(llama3, "ko")
    n_before = sum(map(len, base.encode(korean, bos=False)))
    assert sum(map(len, merged.encode(korean, bos=False))) < 0.8 * n_before


def test_chunks_are_counted_as_the_base_cuts_them(base):
    counts = tokenizer.chunk_counts(
        base, ["Python은 (한국) 한국", "(한국", "漢字 plain", "ㅋ" * 257]
    )
    assert counts == {"Python은": 1, "한국": 1, " 한국": 1, "(한국": 1}


def test_rare_tokens_are_replaced_and_too_many_refused(llama3, base, refused, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("나라 나라 나라 바다 바다 하늘", encoding="utf-8")
    flags = ["train", "--base", f"{llama3}/base", "--input", str(file), "--out", f"{tmp_path}/k"]
    refused(tokenizer, [*flags, "--vocab_size", "100"], "the inputs hold only")
    assert not (tmp_path / "k").exists()
    counts = tokenizer.chunk_counts(base, [file.read_text(encoding="utf-8")])
    often = []
    for token in learn_by_counting(counts, base.ranks, 99, tokenizer.is_hangul_token):
        if file.read_bytes().count(token) >= 2:
            often.append(token)
    for n in range(1, len(often) * 2 // 3):
        tokenizer.main([*flags, "--vocab_size", str(n), "--min_count", "2"])
        assert list(byte_level_file.read_ranks(tmp_path / "k")) == often[:n]
    # Few occur that often. A small source that is weighted like a large one has rare ones.
    refused(tokenizer, [*flags, "--vocab_size", str(len(often) + 1), "--min_count", "2"], "only")
    (tmp_path / "rare.txt").write_text("나라 뷁", encoding="utf-8")
    both = [*flags[:5], f"{tmp_path}/rare.txt", *flags[5:], "--vocab_size", "8", "--balance"]

    def has_rare_ones(*more: str) -> bool:
        tokenizer.main([*both, *more])
        tokens = byte_level_file.read_ranks(tmp_path / "k")
        return any(token.strip() in "뷁".encode() for token in tokens)

    assert has_rare_ones()
    assert not has_rare_ones("--min_count", "2")
    assert has_rare_ones("--min_count", "2", "--also", f"{tmp_path}/rare.txt")
    (tmp_path / "en.txt").write_text("no such letters")
    refused(tokenizer, ["train", "--base", f"{llama3}/base", "--input", f"{tmp_path}/en.txt",
                        "--vocab_size", "9", "--out", f"{tmp_path}/k"], "holds no Hangul")
    refused(tokenizer, [*flags, "--text", "all"], "--base are for --text hangul")


def test_merging_what_was_learned_on_another_base_is_refused(
    llama3, learned, base, tmp_path, refused, request
):
    merge = [
        "merge",
        "--base",
        f"{llama3}/base",
        "--korean",
        f"{tmp_path}/k",
        "--out",
        f"{tmp_path}/m",
    ]
    # A base of another size; one in which a token has no two parts, or is a token already.
    byte_level_file.write_ranks(learned, base.size + 1, tmp_path / "k")
    refused(tokenizer, merge, "was not learned on this base")
    byte_level_file.write_ranks(learned[::-1], base.size, tmp_path / "k")
    refused(tokenizer, merge, "is not a pair of two tokens")
    byte_level_file.write_ranks([b"a"], base.size, tmp_path / "k")
    refused(tokenizer, merge, "is not a pair of two tokens")
    byte_level_file.write_ranks([], base.size, tmp_path / "k")
    refused(tokenizer, merge, "was not learned on this base")
    refused(
        tokenizer,
        [*merge[:4], f"{llama3}/base/tokenizer.json", *merge[5:]],
        "is not a token in base64",
    )
    refused(tokenizer, [*merge[:4], f"{tmp_path}/none", *merge[5:]], "cannot read")
    # A Korean model trained without --base, and the reverse.
    model_file = str(request.getfixturevalue("world") / "base.model")
    refused(tokenizer, [*merge[:4], model_file, *merge[5:]], "`tokenizer.py train --base BASE`")
    byte_level_file.write_ranks(learned, base.size, tmp_path / "k")
    refused(tokenizer, [*merge[:2], model_file, *merge[3:]], "with a byte-level --base")
    assert not (tmp_path / "m").exists()


def test_merge_overwrites_no_other_file_or_model(llama3, tmp_path, refused):
    shutil.copytree(llama3 / "base", tmp_path / "base")
    (tmp_path / "file").write_text("mine")
    merge = [
        "merge",
        "--base",
        f"{tmp_path}/base",
        "--korean",
        f"{llama3}/korean.tiktoken",
        "--out",
    ]
    refused(tokenizer, [*merge, f"{tmp_path}/file"],
            "is a file, but a folder is to be written there")
    refused(tokenizer, [*merge, f"{tmp_path}/base"], "would replace one of its inputs")
    shutil.copytree(llama3 / "base", tmp_path / "another")
    refused(tokenizer, [*merge, f"{tmp_path}/another"], "holds more than a tokenizer")
    # A base may be a tokenizer without a model.
    (tmp_path / "alone").mkdir()
    shutil.copy(llama3 / "base/tokenizer.json", tmp_path / "alone")
    merge_alone = [*merge[:2], f"{tmp_path}/alone", *merge[3:]]
    refused(tokenizer, [*merge_alone, f"{tmp_path}/alone"], "would replace one of its inputs")
    merge_alone[2] = f"{tmp_path}/alone/tokenizer.json"
    refused(tokenizer, [*merge_alone, f"{tmp_path}/alone"], "would replace one of its inputs")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "base/model.safetensors").exists()
    train = [
        "train",
        "--base",
        f"{tmp_path}/base",
        "--input",
        f"{llama3}/toy/ko",
        "--vocab_size",
        "5",
    ]
    refused(
        tokenizer, [*train, "--out", f"{tmp_path}/base"], "is a folder, but a file is to be written"
    )
    # The same output again, or an empty folder, may be overwritten.
    (tmp_path / "new").mkdir()
    for _ in range(2):
        tokenizer.main([*merge, f"{tmp_path}/new"])
    assert tokenizer.load(tmp_path / "new").sha256 == tokenizer.load(llama3 / "merged").sha256


def test_report_measures_a_byte_level_merge(llama3, tmp_path):
    tokenizer.main(["report", "--tokenizers", f"{llama3}/base", f"{llama3}/merged", "--input",
                    f"{llama3}/toy/ko", f"{llama3}/toy/en", "--korean", f"{llama3}/korean.tiktoken",
                    "--sizes", "50", "200", "--out", f"{tmp_path}/report.json"])
    rows = cli.read_json(tmp_path / "report.json")["tokenizers"]
    whole, first, every = rows[f"{llama3}/merged"], rows["50 pieces"], rows["200 pieces"]
    assert every == whole and first["added"] == 50 and whole["unreachable"] == 0
    of_korean, of_english = whole["inputs"].values()
    assert of_korean["token_ratio"] < first["inputs"][f"{llama3}/toy/ko"]["token_ratio"] < 1
    for row in (of_korean, of_english):
        assert row["lines_changed"] == row["round_trips_lost"] == 0


def test_report_refuses_more_pieces_than_were_learned(llama3, refused):
    refused(
        tokenizer,
        [
            "report",
            "--tokenizers",
            f"{llama3}/base",
            "--input",
            f"{llama3}/toy/ko",
            "--korean",
            f"{llama3}/korean.tiktoken",
            "--sizes",
            "201",
        ],
        "choose up to 200",
    )


# ---- The files, and their other readers ----------------------------------------------------------


def test_merges_are_all_cuts_of_all_tokens():
    for seed in SEEDS:
        ranks = random_ranks(random.Random(seed), b"ab ", 30)
        pairs = [tuple(map(byte_level_file.unspelled, merge.split(" ")))
                 for merge in byte_level_file.merges_of(ranks)]
        assert pairs == world.cuts(ranks)


def test_every_byte_is_spelled_and_read_back():
    for byte in range(256):
        assert byte_level_file.spelled(bytes([byte])) == world.letters(bytes([byte]))
    every = bytes(range(256))
    assert byte_level_file.unspelled(byte_level_file.spelled(every)) == every


def test_what_is_written_is_what_was_read_and_the_new_tokens(llama3, learned):
    before = cli.read_json(llama3 / "base/tokenizer.json")
    after = cli.read_json(llama3 / "merged/tokenizer.json")
    assert before.keys() == after.keys()
    for key in before.keys() - {"model"}:
        assert before[key] == after[key]
    size = len(before["model"]["vocab"]) + len(world.CONTROLS)
    vocabulary = {**before["model"]["vocab"], **{text: len(before["model"]["vocab"]) + i
                                                 for i, text in enumerate(world.CONTROLS)}}
    ranks = {byte_level_file.unspelled(text): i for text, i in before["model"]["vocab"].items()}
    for i, token in enumerate(learned, size):
        vocabulary[world.letters(token)] = i
        ranks[token] = i
    assert list(after["model"]["vocab"].items()) == list(vocabulary.items())
    assert after["model"]["merges"] == [
        f"{world.letters(a)} {world.letters(b)}" for a, b in world.cuts(ranks)
    ]
    assert after["model"]["ignore_merges"] is True
    assert cli.read_json(llama3 / "merged/tokenizer_config.json") == world.TOKENIZER_CONFIG


def test_a_file_written_twice_is_the_same_file(llama3, tmp_path, merged):
    byte_level_file.save(merged, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (llama3 / "merged" / name).read_bytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_tiktoken_segments_alike_with_any_ranks(seed, monkeypatch):
    pytest.importorskip("tiktoken")
    rng = random.Random(seed)
    every = single_bytes(bytes(range(256)))
    ranks = random_ranks(rng, " 가나ab".encode(), 60, every)
    vocabulary = byte_level_file.llama3(ranks, {})
    found = ["".join(rng.choices(" 가나ab간1\n", k=rng.randint(0, 40))) for _ in range(100)]
    found += [odd_text(rng) for _ in range(50)]
    theirs = vocabulary.encode(found, bos=False)
    monkeypatch.setattr(byte_level, "tiktoken", None)
    assert vocabulary.encode(found, bos=False) == theirs


@pytest.mark.parametrize("name", ["base", "merged", "grown"])
def test_tokenizers_reads_the_same_ids(llama3, name):
    tokenizers = pytest.importorskip("tokenizers")
    peer = tokenizers.Tokenizer.from_file(f"{llama3}/{name}/tokenizer.json")
    vocabulary = tokenizer.load(llama3 / name)
    assert peer.get_vocab_size() == vocabulary.size
    for text in texts(llama3, 1000):
        if BEGIN not in text:  # there it is a control token
            assert peer.encode(text).ids == vocabulary.encode(text, bos=True), text
            plain = peer.encode(text, add_special_tokens=False).ids
            assert plain == vocabulary.encode(text, bos=False), text


def test_transformers_saves_and_reopens_it_with_the_same_ids(llama3, tmp_path, merged):
    transformers = pytest.importorskip("transformers")
    transformers.AutoTokenizer.from_pretrained(llama3 / "merged").save_pretrained(tmp_path)
    found = [text for text in texts(llama3) if BEGIN not in text]
    for folder in (llama3 / "merged", tmp_path):
        peer = transformers.AutoTokenizer.from_pretrained(folder)
        assert len(peer) == merged.size
        assert (peer.bos_token_id, peer.eos_token_id) == (merged.bos, merged.eos)
        assert peer.convert_tokens_to_ids(TURN) == merged.controls[TURN]
        for text in found:
            ids = merged.encode(text, bos=True)
            assert peer(text)["input_ids"] == ids, text
            back = peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert back == text
        # And we read what transformers saved: written differently, the same vocabulary.
        assert tokenizer.load(folder).sha256 == merged.sha256


def test_a_tiktoken_file_is_the_same_vocabulary_as_its_tokenizer_json(base, tmp_path, monkeypatch):
    monkeypatch.setattr(byte_level_file, "LLAMA3_RANKS", len(base.ranks))
    for name in ("tokenizer.model", "llama3.tiktoken"):
        world.write_tiktoken(base.ranks, tmp_path / name)
    (tmp_path / "dir").mkdir()
    shutil.copy(tmp_path / "tokenizer.model", tmp_path / "dir")
    (tmp_path / "written").mkdir()
    tokenizer.save(tmp_path / "tokenizer.model", tmp_path / "written")
    found = [tokenizer.load(tmp_path / name) for name in (
        "tokenizer.model", "llama3.tiktoken", "dir", "written", "written/tokenizer.json")]
    assert len({vocabulary.sha256 for vocabulary in found}) == 1
    for vocabulary in found:
        assert vocabulary.ranks == base.ranks and vocabulary.size == len(base.ranks) + 256
        assert (vocabulary.bos, vocabulary.eos) == (len(base.ranks), len(base.ranks) + 1)
        assert vocabulary.controls["<|eot_id|>"] == len(base.ranks) + 9
        assert not vocabulary.adds_space
    # Another EOS or another regular expression makes another vocabulary.
    cli.write_json(tmp_path / "dir/tokenizer_config.json", {"eos_token": "<|eot_id|>"})
    assert tokenizer.load(tmp_path / "dir").eos == len(base.ranks) + 9
    assert tokenizer.load(tmp_path / "dir").sha256 != found[0].sha256


def test_a_tokenizer_json_comes_before_tiktoken_s_file_and_after_sentencepiece_s(
    llama3, base, world_model, tmp_path
):
    shutil.copytree(llama3 / "base", tmp_path / "base")
    world.write_tiktoken(base.ranks, tmp_path / "base/tokenizer.model")
    assert tokenizer.load(tmp_path / "base").sha256 == base.sha256
    shutil.copy(world_model, tmp_path / "base/tokenizer.model")
    assert tokenizer.load(tmp_path / "base").raw == world_model.read_bytes()


@pytest.fixture
def world_model(request):
    return request.getfixturevalue("world") / "base.model"


# ---- What is refused -----------------------------------------------------------------------------


def written(tmp_path, content) -> str:
    """Write a tokenizer.json with this content."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


def change(content: dict, path: str, value) -> dict:
    """A copy of nested dictionaries with one value changed; `path`: its keys, joined by dots."""
    content = json.loads(json.dumps(content))
    *keys, last = path.split(".")
    inner = content
    for key in keys:
        inner = inner[int(key) if key.isdecimal() else key]
    inner[int(last) if last.isdecimal() else last] = value
    return content


WORD = {"id": 561, "content": "한국", "special": False, "normalized": True, "single_word": False,
        "lstrip": False, "rstrip": False}
SPLIT = "pre_tokenizer.pretokenizers.0"
SPELL = "pre_tokenizer.pretokenizers.1"


@pytest.mark.parametrize(
    "path, value, part",
    [
        ("normalizer", {"type": "NFC"}, "it has a normalizer"),
        ("model.ignore_merges", False, "ignore_merges is not set"),
        ("model.type", "WordPiece", "it is not a BPE over the bytes"),
        ("pre_tokenizer", None, "it is not a BPE over the bytes"),
        (
            "pre_tokenizer",
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "it is not a BPE over the bytes",
        ),
        (f"{SPLIT}.behavior", "Removed", "it is not a BPE over the bytes"),
        (f"{SPLIT}.invert", True, "it is not a BPE over the bytes"),
        (f"{SPLIT}.pattern", {"String": " "}, "it is not a BPE over the bytes"),
        (f"{SPELL}.use_regex", True, "it is not a BPE over the bytes"),
        (f"{SPELL}.add_prefix_space", True, "it is not a BPE over the bytes"),
        (f"{SPLIT}.pattern.Regex", r"\p{L}+|\s+", "its regular expression loses some of a text"),
        (f"{SPLIT}.pattern.Regex", "(", "it is damaged"),
        ("added_tokens.0", WORD, "add_tokens has put words beside its BPE, '한국' among them"),
        ("added_tokens.0", {}, "it is damaged"),
        ("added_tokens", None, "it is damaged"),
        ("model", None, "it is damaged"),
        ("model.merges", [], "its merges are not the ranks"),
        ("model.merges", [1], "its merges are not the ranks"),
        ("model.merges", [[1]], "it is damaged"),
        ("model.vocab", {"한": 1}, "it is damaged"),
    ],
)
def test_a_tokenizer_json_that_would_be_read_wrongly_is_refused(
    llama3, tmp_path, refused, path, value, part
):
    content = change(cli.read_json(llama3 / "base/tokenizer.json"), path, value)
    file = written(tmp_path, content)
    refused(tokenizer, ["report", "--tokenizers", file, "--input", file], part)


def test_a_word_of_add_tokens_and_a_changed_order_are_refused(llama3, tmp_path):
    content = cli.read_json(llama3 / "base/tokenizer.json")
    with_word = {**content, "added_tokens": [*content["added_tokens"], WORD]}
    with pytest.raises(cli.UserError, match="add_tokens"):
        tokenizer.load(written(tmp_path, with_word))
    # Tokens that are not words are allowed: the chat formats of Llama 3 and Qwen have some.
    tool = {**WORD, "content": "<tool_call>"}
    with_tool = {**content, "added_tokens": [*content["added_tokens"], tool]}
    assert tokenizer.load(written(tmp_path, with_tool)).controls["<tool_call>"] == 561
    merges = content["model"]["merges"]
    swapped = [merges[1], merges[0], *merges[2:]]
    with pytest.raises(cli.UserError, match="its merges are not the ranks"):
        tokenizer.load(written(tmp_path, change(content, "model.merges", swapped)))
    # A list with one merge per token, like GPT-2's: the merges by which they were learned.
    ranks = tokenizer.load(llama3 / "base").ranks
    own = []
    for token, rank in ranks.items():
        lower = {one: r for one, r in ranks.items() if r < rank}
        parts = world.joined(token, lower)
        if len(parts) == 2:
            own.append(" ".join(map(world.letters, parts)))
    assert 200 < len(own) < len(merges)
    with pytest.raises(cli.UserError, match="its merges are not the ranks"):
        tokenizer.load(written(tmp_path, change(content, "model.merges", own)))


def test_settings_beside_a_tokenizer_may_be_wrong(llama3, tmp_path, base):
    written(tmp_path, cli.read_json(llama3 / "base/tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(cli.UserError, match="is not a JSON object"):
        tokenizer.load(tmp_path)
    with pytest.raises(cli.UserError, match="'<s>', which is not a control token"):
        byte_level_file.llama3(base.ranks, {"bos_token": "<s>"})


def puts_bos(folder: Path) -> bool:
    return tokenizer_json.puts_bos(cli.read_json(folder / "tokenizer.json"))


def test_other_spellings_of_the_same_are_read(llama3, tmp_path, base):
    content = cli.read_json(llama3 / "base/tokenizer.json")
    pairs = [merge.split(" ") for merge in content["model"]["merges"]]
    for path, value in [
        ("model.merges", pairs),
        (f"{SPELL}.trim_offsets", False),
        ("normalizer", None),
        ("post_processor", content["post_processor"]["processors"][1]),
    ]:
        found = tokenizer.load(written(tmp_path, change(content, path, value)))
        assert found.ranks == base.ranks and puts_bos(tmp_path)
    config = {**world.TOKENIZER_CONFIG, "bos_token": {"content": BEGIN, "lstrip": False}}
    cli.write_json(tmp_path / "tokenizer_config.json", config)
    assert tokenizer.load(tmp_path).bos == base.bos and puts_bos(tmp_path)
    written(tmp_path, change(content, "post_processor", None))
    assert not puts_bos(tmp_path)


def test_directories_as_people_have_them(llama3, tmp_path, base):
    folder = tmp_path / "model"
    folder.mkdir()
    written(folder, cli.read_json(llama3 / "base/tokenizer.json"))
    # BOS and EOS are in a separate file, or in none: then a document cannot begin.
    assert puts_bos(folder)
    with pytest.raises(cli.UserError, match="model/tokenizer.json has no BOS"):
        tokenizer.load(folder).encode("예", bos=True)
    named = {"bos_token": {"content": BEGIN}, "eos_token": "<|end_of_text|>"}
    cli.write_json(folder / "special_tokens_map.json", named)
    assert tokenizer.load(folder).sha256 == base.sha256

    # DeepSeek's class would build another tokenizer; transformers 4 does not know this new name.
    for name in ("LlamaTokenizerFast", "TokenizersBackend"):
        cli.write_json(folder / "tokenizer_config.json", {"tokenizer_class": name})
        tokenizer.save(folder, tmp_path)
        config = cli.read_json(tmp_path / "tokenizer_config.json")
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert config["bos_token"] == BEGIN


def test_damaged_files_are_refused(llama3, tmp_path, refused, base, monkeypatch):
    whole = (llama3 / "base/tokenizer.json").read_bytes()
    file = tmp_path / "tokenizer.json"
    report = ["report", "--input", str(file), "--tokenizers"]
    file.write_bytes(whole[:-100])
    refused(tokenizer, [*report, str(tmp_path)], "is not valid JSON")
    for content in ([], {}, 3, None, "text", {"model": {"type": "BPE"}}):
        refused(tokenizer, [*report, written(tmp_path, content)], "cannot be used")
    file.write_bytes(whole)
    (tmp_path / "tokenizer_config.json").write_text("{")
    refused(tokenizer, [*report, str(tmp_path)], "tokenizer_config.json is not valid JSON")
    (tmp_path / "tokenizer_config.json").unlink()

    # A tiktoken file with the wrong number of ranks, or with an invalid line.
    ranks = world.write_tiktoken(base.ranks, tmp_path / "llama3.tiktoken")
    refused(
        tokenizer,
        [*report, str(ranks)],
        f"has {len(base.ranks)} tokens, not Llama 3's 128000",
    )
    monkeypatch.setattr(byte_level_file, "LLAMA3_RANKS", len(base.ranks))
    lines = ranks.read_bytes().splitlines(keepends=True)
    for line in (
        b"!!!! 7\n",
        b"YQ== seven\n",
        b"YQ==\n",
        b"YQ= 7\n",
        b"a b c\n",
        b"\n",
        b"\xff\xfe\n",
    ):
        ranks.write_bytes(b"".join([*lines[:6], line, *lines[7:]]))
        refused(tokenizer, [*report, str(ranks)], "llama3.tiktoken, line 7, is not a token")
    # A file that breaks off, between two tokens or in the last number.
    for end in (b"", lines[-1][:-2], lines[-1][:-5]):
        ranks.write_bytes(b"".join(lines[:-1]) + end)
        refused(tokenizer, [*report, str(ranks)], "llama3.tiktoken")
    same_token = base64.b64encode(base.pieces[6]) + b" 7\n"
    ranks.write_bytes(b"".join([*lines[:7], same_token, *lines[8:]]))
    refused(tokenizer, [*report, str(ranks)], "llama3.tiktoken")
    refused(tokenizer, [*report, str(tmp_path / "none")], "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tokenizer, [*report, str(tmp_path / "empty")], "holds no tokenizer.model")
