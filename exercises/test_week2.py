"""Week 2, the tokenizer: see week2.md, and week2b.md from part 5 on (`-k ranks` runs those).

python -m pytest exercises/test_week2.py
"""
import io
import random
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
import regex
import sentencepiece

import tokenizer
from common import byte_level, byte_level_file, cli
from common import sentencepiece_file as files
from common.sentencepiece_file import CONTROL, NORMAL, UNKNOWN, Model, Piece, field
from toy import world as toy

BYTE = 6
SPECIALS = [Piece("<unk>", 0, UNKNOWN), Piece("<s>", 0, CONTROL), Piece("</s>", 0, CONTROL)]
SPECIALS += [Piece(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)]


def as_model(raw: bytes) -> Model:
    return Model(raw, tokenizer.parse(raw)[0], tokenizer.processor(raw))


def base_of(*merges: str, letters: str = "▁abcdehot") -> Model:
    """A base made by hand, with byte fallback: its merges by rank (-1, -2, ...), then letters."""
    normal = [Piece(text, -1 - i, NORMAL) for i, text in enumerate([*merges, *letters])]
    parts = []
    for piece in SPECIALS + normal:
        text = field(files.TEXT, piece.text.encode())
        score = field(files.SCORE, float(piece.score))
        parts.append(field(files.PIECES, text + score + field(files.TYPE, piece.type)))

    # 35 byte_fallback, 40 to 42 the ids of unk, bos and eos.
    trainer = [(files.MODEL_TYPE, files.BPE), (35, 1), (40, 0), (41, 1), (42, 2)]
    parts.append(field(files.TRAINER, b"".join(field(*one) for one in trainer)))
    # 1 the normaliser's name, 4 remove_extra_whitespaces.
    normalizer = [(1, b"identity"), (files.DUMMY_PREFIX, 1), (4, 0)]
    parts.append(field(files.NORMALIZER, b"".join(field(*one) for one in normalizer)))
    return as_model(b"".join(parts))


def pieces(*texts: str) -> list[Piece]:
    return [Piece(text, -i, NORMAL) for i, text in enumerate(texts)]


def texts_of(found: list[Piece]) -> list[str]:
    return [piece.text for piece in found]


def prose(language: int, n: int = 150) -> list[str]:
    """Documents of the toy world, 0 in Korean, 1 in English."""
    teller = toy.Teller("week 2", language)
    return [teller.document() for _ in range(n)]


def words_of(texts: list[str]) -> list[str]:
    """What stands between spaces."""
    found = []
    for text in texts:
        found += text.split()
    return found


def is_syllable(character: str) -> bool:
    return "가" <= character <= "힣"


def train(size: int) -> Model:
    """A Korean BPE model of that many pieces, <unk> and ▁ apart: straight from SentencePiece."""
    hangul = []
    for word in words_of(prose(0)):
        hangul.append(" " + "".join(filter(is_syllable, word)))
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(hangul),
        model_writer=out,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        vocab_size=size + 2,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return as_model(out.getvalue())


@pytest.fixture(scope="module")
def korean() -> Model:
    return train(1200)


# ---- 1. hangul_counts ----------------------------------------------------------------------------


def test_runs_are_counted_with_the_space_before_them():
    counts = tokenizer.hangul_counts(["나는 2권 나는", "2권ㅋㅋ", "가\n나", "한국의 美 Korea사람."])
    assert counts == {
        " 나는": 2,
        "권": 1,
        "권ㅋㅋ": 1,
        " 가": 1,
        "나": 1,
        " 한국의": 1,
        "사람": 1,
    }


def test_no_hangul_is_lost():
    texts = prose(0, 20)
    counts = tokenizer.hangul_counts(texts)
    letters = sum(len(run.strip()) * n for run, n in counts.items())
    assert letters == len(list(filter(is_syllable, "".join(texts))))


# ---- 2. truncated --------------------------------------------------------------------------------


def test_the_last_merges_go_and_the_characters_stay():
    found = tokenizer.truncated(pieces("<unk>", "나라", "▁이", "이나", "▁", "나", "라", "이"), 4)
    assert texts_of(found) == ["나라", "나", "라", "이"]  # 'country', and its letters and one more


def test_it_is_the_model_that_training_at_that_size_gives(korean):
    direct = [text for text in texts_of(train(900).pieces) if text not in ("<unk>", "▁")]
    assert texts_of(tokenizer.truncated(korean.pieces, 900)) == direct


def test_a_size_that_cannot_be_is_refused():
    for size in (2, 5):  # less than the characters; more than there are
        with pytest.raises(cli.UserError):
            tokenizer.truncated(pieces("나라", "나", "라", "이"), size)


# ---- 3. merge ------------------------------------------------------------------------------------


def added(base: Model, *texts: str) -> list[tuple[str, float]]:
    found = tokenizer.parse(tokenizer.merge(base, pieces(*texts)))[0]
    assert found[: len(base.pieces)] == base.pieces
    return [(piece.text, piece.score) for piece in found[len(base.pieces) :]]


def test_scores_continue_below_the_base():
    base = base_of("th", "the", letters="▁the")  # its scores: -1 to -6
    found = added(base, "나라", "이나", "나", "라")
    assert found == [("나라", -7), ("이나", -8), ("나", -9), ("라", -10)]


def test_only_new_pieces_of_hangul_are_added():
    base = base_of("나라", letters="▁나라the")
    found = added(base, "나라", "the", "e▁t", "나1", "a나", "나 라", "▁", "▁나라", "ㅋㅋ", "나")
    assert [text for text, _ in found] == ["▁나라", "ㅋㅋ"]


def test_mistrals_score_for_spaces_is_no_rank():
    base = base_of("th")
    text = field(files.TEXT, "▁▁".encode())
    spaces = field(files.PIECES, text + field(files.SCORE, -1e9) + field(files.TYPE, NORMAL))
    lowest = min(piece.score for piece in base.pieces)
    found = added(as_model(base.raw + spaces), "나라", "나", "라")
    assert found == [("나라", lowest - 1), ("나", lowest - 2), ("라", lowest - 3)]


def test_the_file_is_the_bases_and_more():
    base = base_of("th", "the")
    raw = tokenizer.merge(base, pieces("나라", "나", "라"))
    assert raw.startswith(base.raw)
    assert tokenizer.processor(raw).vocab_size() == len(base.pieces) + 3

    # Of what is said twice, the last counts.
    trainer = {}
    for key, value in tokenizer.fields(raw):
        if key == tokenizer.TRAINER:
            trainer |= dict(tokenizer.fields(value))
    assert trainer[tokenizer.VOCAB_SIZE] == len(base.pieces) + 3


def test_a_word_by_hand():
    base = base_of("th", "the")
    raw = tokenizer.merge(base, pieces("나라", "이나", "이", "나", "라"))
    new = tokenizer.processor(raw, dummy_prefix=False)
    # 'this country', and not 이나 'or' + 라
    assert new.encode("이나라", out_type=str) == ["이", "나라"]


def test_korean_words_are_segmented_as_the_korean_model_does_it(korean):
    raw = tokenizer.merge(base_of("th", "the", "▁the", "▁▁"), korean.pieces)
    new = tokenizer.processor(raw, dummy_prefix=False)
    words = sorted({word.strip(".,?:") for word in words_of(prose(0))})
    words = [" " + word for word in words if all(map(is_syllable, word))]
    different = []
    for word in words:
        ours = new.encode(word, out_type=str)
        theirs = korean.sp.encode(word, out_type=str)
        if ours != theirs:
            different.append(f"{ours} instead of {theirs}")
    some = "; ".join(different[:5])
    assert not different, f"{len(different)} of {len(words)} words are different: {some}"


def test_english_cannot_change():
    rng = random.Random(1)
    base = base_of("th", "the", "▁the", "at", "▁▁")
    raw = tokenizer.merge(base, pieces("나라", "tt", "e▁a", "▁th", "나", "라", "eat", "é", "1"))
    new = tokenizer.processor(raw)
    parts = ["the", "at", "a", "e", "t", "h", " ", "  ", "\n", "é", "漢", "😀", "1", "eat"]
    for _ in range(500):
        text = "".join(rng.choices(parts, k=rng.randint(0, 15)))
        assert new.encode(text, out_type=str) == base.sp.encode(text, out_type=str), text


def test_two_spaces_before_a_korean_word_stay_one_token():
    base = base_of("th", "the", "▁the", "▁▁")
    new = tokenizer.processor(tokenizer.merge(base, pieces("▁나라", "나라", "나", "라")))
    assert new.encode("the  나라", out_type=str) == ["▁the", "▁▁", "나라"]


# ---- 4. ranked_merges ----------------------------------------------------------------------------


def apply(merges: list[tuple[str, str]], text: str) -> list[str]:
    """What transformers does with the list: join the pair that stands first in it, leftmost first,
    until there is none."""
    rank = {pair: i for i, pair in enumerate(merges)}
    parts = list(text)
    while True:
        known = [(rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank]
        if not known:
            return parts
        i = min(known)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_every_split_of_a_piece_is_a_merge():
    scores = {"ab": -2, "abc": -1, "bc": -3, "a": -4, "b": -5, "c": -6}
    model = [Piece(text, score, NORMAL) for text, score in scores.items()]
    expected = [("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "c")]
    assert tokenizer.ranked_merges(model) == expected


def test_bytes_and_control_pieces_are_no_parts():
    model = [Piece("<s>", 0, CONTROL), *pieces("s>", "s", ">", "<")]
    assert tokenizer.ranked_merges(model) == [("s", ">")]


def test_applied_the_list_segments_every_word_as_sentencepiece_does(korean):
    merges = tokenizer.ranked_merges(korean.pieces)
    known = set(texts_of(korean.pieces))
    for word in sorted(set(words_of(prose(0, 40)))):
        if known.issuperset(f"▁{word}"):
            expected = korean.sp.encode(f" {word}", out_type=str)
            assert apply(merges, f"▁{word}") == expected


# ---- 5. join: ranks in the place of scores (week2b.md) -------------------------------------------


def ranks_of(*tokens: str) -> dict[bytes, int]:
    """A vocabulary made by hand: tokens by rank."""
    return {token.encode(): rank for rank, token in enumerate(tokens)}


def joined(text: str, ranks: dict[bytes, int]) -> list[str]:
    """What `join` makes of the bytes of a text."""
    found = byte_level.join(byte_level.single_bytes(text.encode()), ranks)
    return [token.decode() for token in found]


def anything(token: bytes) -> bool:
    return True


# abcd is a token that its own bytes never become: bc is joined first.
LOST = ranks_of("a", "b", "c", "d", "e", "bc", "ab", "cd", "abcd")


def test_ranks_the_lowest_goes_first_and_of_equals_the_leftmost():
    assert joined("lower", ranks_of("er", "lo", "low", "we")) == ["low", "er"]
    assert joined("lower", ranks_of("we", "lo", "low", "er")) == ["lo", "we", "r"]
    assert joined("aaaaa", ranks_of("aa")) == ["aa", "aa", "a"]
    assert joined("aaaaa", ranks_of("aa", "aaa")) == ["aa", "aaa"]


def test_ranks_join_goes_on_from_what_is_joined_already():
    parts = [b"lo", b"w", b"er"]
    assert byte_level.join(parts, ranks_of("low", "lower")) == [b"lower"]
    assert parts == [b"lo", b"w", b"er"]
    assert byte_level.join([], LOST) == []


def test_ranks_are_scores():
    """Rank r is a score of -r: SentencePiece's rule says the same."""
    rng = random.Random(2)
    for _ in range(200):
        tokens = {"".join(rng.choices("abc", k=rng.randint(2, 4))) for _ in range(12)}
        ranks = ranks_of(*sorted(tokens, key=lambda token: rng.random()))
        scores = {token.decode(): -rank for token, rank in ranks.items()}
        text = "".join(rng.choices("abc", k=12))
        assert joined(text, ranks) == tokenizer.segment(text, scores)


# ---- 6. segment ----------------------------------------------------------------------------------


def test_ranks_a_chunk_that_is_a_token_is_looked_up():
    assert joined("abcd", LOST) == ["a", "bc", "d"]
    assert byte_level.segment(b"abcd", LOST) == [b"abcd"]
    assert byte_level.segment(b"abcde", LOST) == [b"a", b"bc", b"d", b"e"]


# ---- 7. learn ------------------------------------------------------------------------------------


def test_ranks_learn_by_hand():
    ranks = ranks_of("l", "o", "w", " ", "lo")
    counts = {"low": 5, " low": 3, "wow": 4}
    assert byte_level.learn(counts, ranks, 2, anything) == [b"low", b"ow"]
    assert byte_level.learn(counts, ranks, 9, bytes.isalpha) == [b"low", b"ow", b"wow"]
    assert len(ranks) == 5  # the base's own stays as it is


def test_ranks_of_equally_frequent_tokens_the_first_by_its_bytes_is_learned():
    ranks = ranks_of("a", "b", "c", "d")
    assert byte_level.learn({"cd": 2, "ab": 2, "bc": 1}, ranks, 2, anything) == [b"ab", b"cd"]


def test_ranks_a_new_token_lets_the_base_join_again():
    """abc is learned; then the base has a use for its abcd, which it could not make before."""
    assert byte_level.learn({"abcde": 3}, LOST, 2, anything) == [b"abc", b"abcde"]


@cache
def byte_base() -> byte_level.ByteLevel:
    """A base of 300 tokens beside the bytes, learned from English; with Llama 3's way to split a
    text, and a little Korean, as Llama 3 has."""
    counts = Counter()
    for text in prose(1) + prose(0, 8):
        counts.update(regex.findall(byte_level_file.LLAMA3_PATTERN, text))
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in byte_level.learn(counts, dict(ranks), 300, anything):
        ranks[token] = len(ranks)
    return byte_level_file.llama3(ranks, {})


@cache
def grown_base() -> byte_level.ByteLevel:
    """The same with 300 tokens of Hangul."""
    base = byte_base()
    counts = tokenizer.chunk_counts(base, prose(0))
    tokens = byte_level.learn(counts, base.ranks, 300, tokenizer.is_hangul_token)
    return base.extended(tokens)


def held_out(language: int) -> list[str]:
    teller = toy.Teller("week 2, held out", language)
    return [teller.document() for _ in range(40)]


def test_ranks_every_new_token_is_its_own():
    new = list(grown_base().ranks)[-300:]
    assert all(map(tokenizer.is_hangul_token, new))
    assert not tokenizer.unreachable(grown_base(), byte_base().size)


def test_ranks_save_tokens_and_no_document_gets_longer():
    before = [len(byte_base().encode_chunks(text)) for text in held_out(0)]
    after = [len(grown_base().encode_chunks(text)) for text in held_out(0)]
    assert all(now <= old for now, old in zip(after, before, strict=True))
    assert 0.35 < sum(after) / sum(before) < 0.50


def test_ranks_text_without_hangul_cannot_change():
    """English, and every character of the Basic Multilingual Plane that is not Hangul."""
    others = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    others = [one for one in others if not tokenizer.HANGUL_LETTER.search(one)]
    for text in [*held_out(1), *others]:
        assert grown_base().encode_chunks(text) == byte_base().encode_chunks(text), repr(text)


# ---- 8. merges_of --------------------------------------------------------------------------------


def test_ranks_every_cut_of_a_token_is_a_merge():
    ranks = ranks_of("l", "o", "w", "ow", "lo", "low", " ", " l", " lo")
    assert byte_level_file.merges_of(ranks) == ["o w", "l o", "l ow", "lo w", "Ġ l", "Ġ lo", "Ġl o"]


def applied(ranks: dict[bytes, int], chunk: str) -> list[str]:
    """What transformers makes of a chunk with these merges: letters in the place of bytes."""
    merges = [tuple(merge.split(" ")) for merge in byte_level_file.merges_of(ranks)]
    return apply(merges, byte_level_file.spelled(chunk.encode()))


def test_ranks_a_cut_that_was_never_learned_is_needed():
    """With bcd the base's own abcd can be joined at last: as a + bcd, which no training saw."""
    ranks = {**LOST, b"bcd": 9}
    assert joined("abcde", ranks) == ["abcd", "e"]
    assert applied(ranks, "abcde") == ["abcd", "e"]


def test_ranks_and_their_merges_say_the_same():
    chunks = sorted(set(byte_base().chunks("\n".join(held_out(0)[:5] + held_out(1)[:5]))))
    for chunk in chunks:
        tokens = byte_level.join(byte_level.single_bytes(chunk.encode()), grown_base().ranks)
        assert applied(grown_base().ranks, chunk) == [
            byte_level_file.spelled(one) for one in tokens
        ]
