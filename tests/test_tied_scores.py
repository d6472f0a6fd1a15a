"""Pieces of equal score: what tokenizer.json cannot express is found, reported, and can be
fixed."""
import itertools
import json
import random

import llama3_world
import pytest
from test_tokenizer import as_model, letters, ranked, runs_of_spaces, strings, write_model

import tokenizer
from common import cli, tied_scores, tokenizer_json
from common.sentencepiece_file import CONTROL, NORMAL, USER_DEFINED, Model, Piece


def tied(*texts: str, score: float = 0.0) -> list[Piece]:
    return [Piece(text, score, NORMAL) for text in texts]


def model_of(*pieces: Piece) -> Model:
    """These pieces, and those of a base around them."""
    base = [*ranked(["▁t", "th", "▁th", "the"]), *runs_of_spaces(2, 4, 3), *letters("▁the")]
    return as_model(write_model([*base, *pieces]))


def compared(model: Model) -> str | None:
    return tied_scores.compare(model, tokenizer.ranked_merges(model.pieces))


def ranks_of(model: Model) -> dict[tuple[str, str], int]:
    merges = tokenizer.ranked_merges(model.pieces)
    return {pair: i for i, pair in enumerate(merges)}


def disagreements(model: Model, texts: list[str]) -> list[str]:
    """Texts that the list of merges segments differently from SentencePiece."""
    ranks = ranks_of(model)
    found = []
    for text in texts:
        if tied_scores.segment_by_merges(text, ranks) != model.inside_words.encode(
            text, out_type=str
        ):
            found.append(text)
    return found


def tied_model(rng: random.Random) -> Model:
    """Random pieces with few different scores."""
    alphabet = "abc▁"[:rng.randint(2, 4)]
    texts = {text for text in strings(rng, alphabet, 5, 30) if len(text) > 1}
    pieces = [Piece(text, -rng.randint(0, 3), NORMAL) for text in sorted(texts)]
    return as_model(write_model([*pieces, *letters("abc▁")], dummy_prefix=False))


# ---- The order -----------------------------------------------------------------------------------


def test_the_smallest_case_agrees():
    model = model_of(*tied("란", "드", "의", "란드", "드의"))
    assert disagreements(model, ["란드의", "드의란드", "란드의란드의"]) == []
    assert compared(model) is None


def test_without_ties_the_order_is_that_of_the_scores():
    rng = random.Random(0)
    texts = sorted({text for text in strings(rng, "abc", 5, 60) if text})
    rng.shuffle(texts)
    scores = {text: -float(i) for i, text in enumerate(texts)}
    assert tied_scores.by_rank(scores) == texts


@pytest.mark.parametrize("beside", [[], tied("ㅋ가", "▁ㅋ", "ㅋㅋ가", "▁ㅋㅋ")])
def test_runs_of_one_character_agree_though_tied(beside):
    runs = ["ㅋ" * n for n in (2, 3, 4, 5, 8)]
    model = model_of(*tied("ㅋ", "가", *runs), *beside)
    assert disagreements(model, ["ㅋ" * n for n in range(1, 40)]) == []


# ---- What is said --------------------------------------------------------------------------------


def test_segment_by_merges_is_what_tokenizers_does(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    for seed in range(20):
        rng = random.Random(seed)
        model = tied_model(rng)
        tokenizer_json.save(model, tokenizer.ranked_merges(model.pieces), tmp_path, None)
        content = cli.read_json(tmp_path / "tokenizer.json")
        # Parts of words: no ▁ is added before them, and no BOS.
        content |= {"normalizer": None, "post_processor": None}
        theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
        ranks = ranks_of(model)
        for text in strings(rng, "abc▁", 30, 100):
            assert tied_scores.segment_by_merges(text, ranks) == theirs.encode(text).tokens


def test_what_no_list_can_express_is_named_with_an_example():
    # Whichever of the two comes first, one of 가나가 and 나가나 is joined from the wrong side.
    pieces = tied("가", "나", "가나", "나가")
    model = as_model(write_model(pieces))
    [text] = disagreements(model, ["가나가", "나가나"])
    said = compared(model)
    expected = " ".join(model.inside_words.encode(text, out_type=str))
    assert f"'{text}' as" in said
    assert f"not '{expected}'" in said
    assert "1 of 2 short texts" in said
    assert "--break_ties" in said
    assert "\n" not in said


def test_every_pair_of_tied_pieces_that_differs_is_noticed():
    """Not every text is in the sample, but if any three parts differ, one text of the sample
    does."""
    noticed = 0
    for seed in range(200):
        model = tied_model(random.Random(seed))
        ranks = ranks_of(model)
        wrong = []
        for (a, b), (c, d) in itertools.product(ranks, ranks):
            scores = {piece.text: piece.score for piece in model.pieces}
            if b == c and scores[a + b] == scores[b + d]:
                wrong += disagreements(model, [a + b + d])
        if wrong:
            noticed += 1
            assert compared(model), wrong
    assert noticed > 20


def test_every_tied_piece_is_on_the_left_and_on_the_right_of_another():
    pieces = tied("가", "나", "다", "라", "가나", "나다", "다라", "나다라")
    model = as_model(write_model(pieces))
    texts = tied_scores.competing(model, tokenizer.ranked_merges(model.pieces))
    assert {"가나다", "나다라", "가나다라"} >= set(texts) >= {"가나다", "나다라"}


def test_nothing_is_reported_where_nothing_differs():
    trained = [*ranked(["한국", "국한", "한국한"]), *letters("한국")]
    without_ties = as_model(write_model(trained))
    merges = tokenizer.ranked_merges(without_ties.pieces)
    assert tied_scores.competing(without_ties, merges) == []
    assert tied_scores.compare(without_ties, merges) is None
    # Mistral's runs of spaces share one score, and agree.
    spaces = model_of(*runs_of_spaces(5, 6, 7, 8, 16))
    assert tied_scores.competing(spaces, tokenizer.ranked_merges(spaces.pieces))
    assert compared(spaces) is None


def test_what_differs_for_other_reasons_is_left_out():
    # A user-defined piece is cut out of a text; a character that is not a piece is written in
    # bytes.
    own = Piece("나가", 0, USER_DEFINED)
    assert compared(model_of(*tied("가", "나", "가나", "나가나"), own)) is None
    without_letters = tied("가나", "나가", "가나나가", "나가가나")
    assert compared(model_of(*without_letters)) is None


def test_each_pair_is_beside_the_one_that_shows_a_mistake_best():
    """SentencePiece joins the left pair. A list does not, if the right pair comes first in it."""
    model = as_model(write_model(tied(*"가나다라마", "가나", "다나", "나라", "나마")))
    merges = tokenizer.ranked_merges(model.pieces)
    left = [a for a, b in merges if b == "나"]
    right = [b for a, b in merges if a == "나"]
    expected = {a + "나" + right[0] for a in left} | {left[-1] + "나" + b for b in right}
    assert set(tied_scores.competing(model, merges)) == expected


# ---- Breaking ties -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_without_ties_all_agree_on_any_text(seed):
    rng = random.Random(seed)
    before = tied_model(rng)
    after = tied_scores.break_ties(before, tokenizer.LOWEST_RANK)
    texts = strings(rng, "abc▁", 30, 200)
    assert compared(after) is None
    assert disagreements(after, texts) == []


def test_breaking_ties_changes_scores_alone():
    control = Piece("<|im|>", 0, CONTROL)
    before = model_of(*tied("가", "나", "가나", "나가"), control)
    after = tied_scores.break_ties(before, tokenizer.LOWEST_RANK)
    # What the file says, to our reader and to SentencePiece's.
    assert tokenizer.parse(after.raw)[0] == after.pieces
    assert [after.sp.get_score(i) for i in range(after.size)] == [p.score for p in after.pieces]

    scores = []
    for old, new in zip(before.pieces, after.pieces, strict=True):
        assert (old.text, old.type) == (new.text, new.type)
        if old.type == NORMAL and old.score > tokenizer.LOWEST_RANK:
            scores.append((old.score, new.score))
        else:
            assert old.score == new.score
    assert len({new for _, new in scores}) == len(scores)
    # The order of scores has not changed.
    for (old, new), (other, other_new) in itertools.product(scores, scores):
        if old > other:
            assert new > other_new


def test_the_flag_of_merge(tmp_path, capsys):
    base = model_of(*tied("가", "나", "가나", "나가"))
    (tmp_path / "base.model").write_bytes(base.raw)
    korean = write_model([*ranked(["가나다", "나다"]), *letters("가나다")])
    (tmp_path / "korean.model").write_bytes(korean)
    paths = ["--base", f"{tmp_path}/base.model", "--korean", f"{tmp_path}/korean.model"]
    merged = {}
    for name, flags in (("kept", []), ("broken", ["--break_ties"])):
        tokenizer.main(["merge", *paths, *flags, "--out", f"{tmp_path}/{name}.model"])
        merged[name] = tokenizer.load(tmp_path / f"{name}.model")

    kept = merged["kept"].pieces
    broken = merged["broken"].pieces
    assert [piece.text for piece in kept] == [piece.text for piece in broken]
    assert kept[:base.size] == base.pieces
    assert compared(merged["kept"])
    assert compared(merged["broken"]) is None
    # The new pieces rank below all others, in their order.
    ranks = [piece.score for piece in broken if piece.type == NORMAL and piece.score > -1e6]
    new = [piece.score for piece in broken[base.size:]]
    assert sorted(ranks, reverse=True)[-len(new):] == new


def test_a_byte_level_base_has_no_ties_to_break(tmp_path, refused):
    base = llama3_world.write_base(tmp_path, {bytes([i]): i for i in range(256)})
    paths = ["--base", str(base), "--korean", f"{tmp_path}/korean", "--out", f"{tmp_path}/out"]
    refused(tokenizer, ["merge", *paths, "--break_ties"], "a byte-level base has no ties")
