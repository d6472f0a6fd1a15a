"""Week 2, the tokenizer: see week2.md.  python -m pytest exercises/test_week2.py"""
import io
import random
from itertools import pairwise

import pytest
import sentencepiece

import tokenizer
from common import cli
from tokenizer import Model, Piece, field
from toy import world as toy

SPECIALS = [Piece("<unk>", 0, 2), Piece("<s>", 0, 3), Piece("</s>", 0, 3),
            *(Piece(f"<0x{byte:02X}>", 0, 6) for byte in range(256))]


def as_model(raw: bytes) -> Model:
    return Model(raw, tokenizer.parse(raw)[0], tokenizer.processor(raw))


def base_of(*merges: str, letters: str = "▁abcdehot") -> Model:
    """A hand-made base, byte fallback and all: its merges in the order of their rank (-1, -2, ...), then letters."""
    normal = [Piece(text, -1 - i, 1) for i, text in enumerate([*merges, *letters])]
    body = b"".join(field(1, field(1, p.text.encode()) + field(2, float(p.score)) + field(3, p.type))
                    for p in SPECIALS + normal)
    return as_model(body + field(2, field(3, 2) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2))
                    + field(3, field(1, b"identity") + field(3, 1) + field(4, 0)))


def pieces(*texts: str) -> list[Piece]:
    return [Piece(text, -i, 1) for i, text in enumerate(texts)]


def prose(language: int, n: int = 150) -> list[str]:
    """Documents of the toy world, 0 in Korean, 1 in English."""
    teller = toy.Teller("week 2", language)
    return [teller.document() for _ in range(n)]


def train(size: int) -> Model:
    """A Korean BPE model of that many pieces, <unk> and ▁ apart: straight from SentencePiece."""
    out = io.BytesIO()
    words = [word for text in prose(0) for word in text.split()]
    hangul = [" " + "".join(c for c in word if "가" <= c <= "힣") for word in words]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(hangul), model_writer=out, model_type="bpe", normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=False, vocab_size=size + 2, character_coverage=1.0,
        bos_id=-1, eos_id=-1, minloglevel=2)
    return as_model(out.getvalue())


@pytest.fixture(scope="module")
def korean() -> Model:
    return train(1200)


# ------------------------------------------------------------------------------------------------- 1. hangul_counts

def test_runs_are_counted_with_the_blank_before_them():
    counts = tokenizer.hangul_counts(["나는 2권 나는", "2권ㅋㅋ", "가\n나", "한국의 美 Korea사람."])
    assert counts == {" 나는": 2, "권": 1, "권ㅋㅋ": 1, " 가": 1, "나": 1, " 한국의": 1, "사람": 1}


def test_no_hangul_is_lost():
    texts = prose(0, 20)
    counts = tokenizer.hangul_counts(texts)
    assert sum(len(run.strip()) * n for run, n in counts.items()) == sum("가" <= c <= "힣" for c in "".join(texts))


# ------------------------------------------------------------------------------------------------------- 2. truncated

def test_the_last_merges_go_and_the_characters_stay():
    found = tokenizer.truncated(pieces("<unk>", "나라", "▁이", "이나", "▁", "나", "라", "이"), 4)
    assert [piece.text for piece in found] == ["나라", "나", "라", "이"]  # 'country', and its letters and one more


def test_it_is_the_model_that_training_at_that_size_gives(korean):
    direct = [p.text for p in train(900).pieces if p.text not in ("<unk>", "▁")]
    assert [p.text for p in tokenizer.truncated(korean.pieces, 900)] == direct


def test_a_size_that_cannot_be_is_refused():
    for size in (2, 5):  # less than the characters; more than there are
        with pytest.raises(cli.UserError):
            tokenizer.truncated(pieces("나라", "나", "라", "이"), size)


# --------------------------------------------------------------------------------------------------------- 3. merge

def added(base: Model, *texts: str) -> list[tuple[str, float]]:
    found = tokenizer.parse(tokenizer.merge(base, pieces(*texts)))[0]
    assert found[:len(base.pieces)] == base.pieces
    return [(piece.text, piece.score) for piece in found[len(base.pieces):]]


def test_scores_go_on_below_the_base():
    base = base_of("th", "the", letters="▁the")  # its scores: -1 to -6
    assert added(base, "나라", "이나", "나", "라") == [("나라", -7), ("이나", -8), ("나", -9), ("라", -10)]


def test_only_new_pieces_of_hangul_are_added():
    base = base_of("나라", letters="▁나라the")
    found = added(base, "나라", "the", "e▁t", "나1", "a나", "나 라", "▁", "▁나라", "ㅋㅋ", "나")
    assert [text for text, _ in found] == ["▁나라", "ㅋㅋ"]


def test_mistrals_score_for_blanks_is_no_rank():
    base = base_of("th")
    blanks = field(1, field(1, "▁▁".encode()) + field(2, -1e9) + field(3, 1))
    lowest = min(piece.score for piece in base.pieces)
    assert added(as_model(base.raw + blanks), "나라", "나", "라") == [
        ("나라", lowest - 1), ("나", lowest - 2), ("라", lowest - 3)]


def test_the_file_is_the_bases_and_more():
    base = base_of("th", "the")
    raw, trainer = tokenizer.merge(base, pieces("나라", "나", "라")), {}
    for key, value in tokenizer.fields(raw):
        trainer |= dict(tokenizer.fields(value)) if key == tokenizer.TRAINER else {}
    assert raw.startswith(base.raw) and tokenizer.processor(raw).vocab_size() == len(base.pieces) + 3
    assert trainer[tokenizer.VOCAB_SIZE] == len(base.pieces) + 3  # of what is said twice, the last counts


def test_a_word_by_hand():
    base = base_of("th", "the")
    new = tokenizer.processor(tokenizer.merge(base, pieces("나라", "이나", "이", "나", "라")), dummy_prefix=False)
    assert new.encode("이나라", out_type=str) == ["이", "나라"]  # 'this country', and not 이나 'or' + 라


def test_korean_words_are_cut_as_the_korean_model_cuts_them(korean):
    raw = tokenizer.merge(base_of("th", "the", "▁the", "▁▁"), korean.pieces)
    words = sorted({word.strip(".,?:") for text in prose(0) for word in text.split()})
    words = [" " + word for word in words if all("가" <= c <= "힣" for c in word)]
    ours, theirs = (sp.encode(words, out_type=str) for sp in (
        tokenizer.processor(raw, dummy_prefix=False), korean.sp))
    other = [f"{a} instead of {b}" for a, b in zip(ours, theirs, strict=True) if a != b]
    assert not other, f"{len(other)} of {len(words)} words are cut otherwise: {'; '.join(other[:5])}"


def test_english_cannot_change():
    base, rng = base_of("th", "the", "▁the", "at", "▁▁"), random.Random(1)
    new = tokenizer.processor(tokenizer.merge(base, pieces("나라", "tt", "e▁a", "▁th", "나", "라", "eat", "é", "1")))
    parts = ["the", "at", "a", "e", "t", "h", " ", "  ", "\n", "é", "漢", "😀", "1", "eat"]
    for _ in range(500):
        text = "".join(rng.choices(parts, k=rng.randint(0, 15)))
        assert new.encode(text, out_type=str) == base.sp.encode(text, out_type=str), text


def test_two_blanks_before_a_korean_word_stay_one_token():
    base = base_of("th", "the", "▁the", "▁▁")
    new = tokenizer.processor(tokenizer.merge(base, pieces("▁나라", "나라", "나", "라")))
    assert new.encode("the  나라", out_type=str) == ["▁the", "▁▁", "나라"]


# ------------------------------------------------------------------------------------------------- 4. ranked_merges

def apply(merges: list[tuple[str, str]], text: str) -> list[str]:
    """What transformers does with the list: again and again, join the pair that stands first in it, leftmost first."""
    rank, parts = {pair: i for i, pair in enumerate(merges)}, list(text)
    while known := [(rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank]:
        i = min(known)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_every_split_of_a_piece_is_a_merge():
    model = [Piece(text, score, 1) for text, score in dict(ab=-2, abc=-1, bc=-3, a=-4, b=-5, c=-6).items()]
    assert tokenizer.ranked_merges(model) == [("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "c")]


def test_bytes_and_control_pieces_are_no_parts():
    model = [Piece("<s>", 0, 3), Piece("s>", -1, 1), *(Piece(c, -2 - i, 1) for i, c in enumerate("s><"))]
    assert tokenizer.ranked_merges(model) == [("s", ">")]


def test_applied_the_list_cuts_every_word_as_sentencepiece_does(korean):
    merges, known = tokenizer.ranked_merges(korean.pieces), {piece.text for piece in korean.pieces}
    for word in sorted({word for text in prose(0, 40) for word in text.split()}):
        if known.issuperset(f"▁{word}"):
            assert apply(merges, f"▁{word}") == korean.sp.encode(f" {word}", out_type=str)
