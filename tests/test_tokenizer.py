"""The merge keeps every promise on random models, and transformers agrees with SentencePiece on what `save` writes."""
import gzip
import io
import json
import random
import struct

import numpy as np
import pytest
import sentencepiece
from conftest import korean, write_jsonl

import tokenizer
from common import cli
from tokenizer import Piece, field

BYTES = [Piece(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
SPECIALS = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]


def write_model(pieces: list[Piece], dummy_prefix: bool = True) -> bytes:
    """A hand-made BPE model with byte fallback, whose pieces and scores are exactly these."""
    body = b"".join(field(1, field(1, p.text.encode()) + field(2, float(p.score)) + field(3, p.type))
                    for p in [*SPECIALS, *BYTES, *pieces])
    trainer = field(3, 2) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2)
    return body + field(2, trainer) + field(3, field(1, b"identity") + field(3, int(dummy_prefix)) + field(4, 0))


def letters(text: str) -> list[Piece]:
    return [Piece(letter, -50 - i, 1) for i, letter in enumerate(text)]


def as_model(raw: bytes) -> tokenizer.Model:
    return tokenizer.Model(raw, tokenizer.parse(raw)[0], tokenizer.processor(raw))


def words(rng: random.Random, alphabet: str, n: int) -> str:
    return " ".join("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 7))) for _ in range(n))


def mixed(rng: random.Random) -> str:
    """What breaks tokenizers: scripts side by side, runs of blanks, half characters, controls."""
    parts = ["한국", "ㅋㅋㅋ", " ", "   ", "\n", "\t", "a", "the ", "Ω", "漢字", "😀", "e\u0301", "▁", "한", "\x00",
             "1234", "</x>", korean(rng, 3), words(rng, "abc", 3)]  # 한국: Korea, 漢字: hanja, ㅋㅋㅋ: laughter
    return "".join(rng.choice(parts) for _ in range(rng.randint(0, 12)))


def test_protobuf_reading_and_writing_are_inverse():
    rng = random.Random()
    message = [(rng.randint(1, 5000), rng.choice([rng.randrange(2**40), float(np.float32(rng.gauss(0, 99))),
                                                  rng.randbytes(rng.randrange(300))])) for _ in range(50)]
    assert list(tokenizer.fields(b"".join(field(*one) for one in message))) == message


@pytest.fixture(scope="module", params=range(4))
def merged(request, tmp_path_factory):
    """(base, Korean, merged) models: the base on English with some Korean, with piece sizes and texts that vary."""
    rng, folder = random.Random(request.param), tmp_path_factory.mktemp("merged")
    write_jsonl(folder / "en.jsonl", [words(rng, "etaoin", 30) + rng.choice([" ", "   ", "\n"]) + korean(rng, 2)
                                      for _ in range(80)])
    write_jsonl(folder / "ko.jsonl", [words(rng, "가나다라마바사아", 40) + " " + korean(rng, 30) + "ab 12"
                                      for _ in range(80)])
    tokenizer.main(["train", "--text", "all", "--input", f"{folder}/en.jsonl", "--vocab_size",
                    str(rng.randint(700, 900)), "--out", f"{folder}/base.model"])
    tokenizer.main(["train", "--input", f"{folder}/ko.jsonl", "--vocab_size", str(rng.randint(600, 900)),
                    "--out", f"{folder}/korean.model"])
    tokenizer.main(["merge", "--base", f"{folder}/base.model", "--korean", f"{folder}/korean.model",
                    "--out", f"{folder}/merged.model"])
    return [tokenizer.read(folder / f"{name}.model") for name in ("base", "korean", "merged")], folder


def test_merge_keeps_the_base(merged):
    (base, _, new), _ = merged
    n = len(base.pieces)
    assert new.raw.startswith(base.raw) and new.pieces[:n] == base.pieces and len(new.pieces) > n
    assert new.sp.get_piece_size() == len(new.pieces)
    trainer = {}
    for key, value in tokenizer.fields(new.raw):
        trainer |= dict(tokenizer.fields(value)) if key == 2 else {}
    assert trainer[4] == len(new.pieces) and trainer[35] == 1  # vocab_size is the new one, byte_fallback still there
    rng = random.Random()
    for _ in range(300):
        text = words(rng, "etaoin ,.12가"[:-1] + "Ωé漢", 12)
        assert new.sp.encode(text) == base.sp.encode(text), text


def test_merge_adds_every_hangul_piece_and_only_those(merged):
    (base, korean_model, new), _ = merged
    added = [p.text for p in new.pieces[len(base.pieces):]]
    hangul = [p.text for p in korean_model.pieces
              if p.text != "▁" and all("가" <= c <= "힣" for c in p.text.removeprefix("▁"))]
    assert added == [text for text in hangul if text not in {p.text for p in base.pieces}]
    scores = np.array([p.score for p in new.pieces[len(base.pieces):]], np.float32)
    assert (np.diff(scores) < 0).all() and scores[0] < min(p.score for p in base.pieces)
    plain = tokenizer.processor(new.raw, dummy_prefix=False)
    own = {p.text for p in base.pieces if len(p.text) > 1 and "가" <= p.text[-1] <= "힣"}
    for i, text in enumerate(added, len(base.pieces)):  # reachable, unless the base joins its syllables otherwise
        assert plain.encode(text) == [i] or any(piece in text for piece in own)


def test_round_trips(merged):
    (base, _, new), _ = merged
    rng = random.Random()
    for _ in range(300):
        text = mixed(rng)
        assert new.sp.decode(tokenizer.encode(new.sp, text, bos=True, eos=True)) == base.sp.decode(base.sp.encode(text))
        assert "▁" in text or new.sp.decode(new.sp.encode(text)) == text


def test_encode_puts_bos_and_eos_where_it_is_told(merged):
    sp = merged[0][2].sp
    ids = tokenizer.encode(sp, "한국 ab", bos=False)
    assert tokenizer.encode(sp, "한국 ab", bos=True, eos=True) == [1, *ids, 2]
    assert tokenizer.encode(sp, ["한국 ab", ""], bos=True) == [[1, *ids], [1]]


def test_mistral_scores_of_blanks_are_no_rank():
    blanks = [Piece("▁" * n, -1e9, 1) for n in (2, 3, 4)]
    base = as_model(write_model([*blanks, Piece("ab", -31740, 1), *letters("▁ab가")]))
    raw = tokenizer.merge(base, [Piece(t, 0, 1) for t in ("나다", "가나", "나", "다", "가", "a나", "나 다", "나1")])
    new = tokenizer.parse(raw)[0][len(base.pieces):]
    assert [(p.text, p.score) for p in new] == [("나다", -31741), ("가나", -31742), ("나", -31743), ("다", -31744)]


def grow(rng: random.Random, letters: str, n: int) -> list[str]:
    """n different strings, each joined from two earlier ones or letters, as BPE makes them."""
    texts = dict.fromkeys(letters)
    while len(texts) < len(letters) + n:
        texts["".join(rng.choices(list(texts), k=2))[:8]] = None
    return list(texts)[len(letters):]


def random_models(rng: random.Random) -> tuple[bytes, list[Piece]]:
    """A base (with user-defined and control pieces, Hangul, runs of blanks at -1e9) and Korean pieces, some of them
    the base's or not of Hangul."""
    own = [Piece(text, 0, 4) for text in rng.sample(["<user>", "나다", "가b", "a.*"], rng.randint(0, 4))]
    blanks = [Piece("▁" * n, -1e9, 1) for n in (2, 3, 4)]
    taken = {piece.text for piece in own + blanks}
    texts = [t for t in dict.fromkeys(grow(rng, "abc▁", 12) + grow(rng, "가나", rng.randint(0, 4))) if t not in taken]
    base = [*own, Piece("<|im|>", 0, 3), *blanks, *(Piece(text, -1.5 * i, 1) for i, text in enumerate(texts)),
            *letters("▁abc가나다")]
    korean = grow(rng, "▁가나다라마", 40) + grow(rng, "가나a1 ", 10) + list("가나다라마")
    return write_model(base, dummy_prefix=rng.random() < 0.7), [Piece(t, 0, 1) for t in dict.fromkeys(korean)]


@pytest.mark.parametrize("seed", [random.randrange(10**9) for _ in range(25)])
def test_merge_of_any_models(seed):
    rng = random.Random(seed)
    raw, korean_pieces = random_models(rng)
    base = as_model(raw)
    new = as_model(tokenizer.merge(base, korean_pieces))
    n, added = len(base.pieces), [piece.text for piece in as_model(new.raw).pieces[len(base.pieces):]]
    assert new.pieces[:n] == base.pieces and [new.sp.id_to_piece(i) for i in range(n)] == [p.text for p in base.pieces]
    assert added == [p.text for p in korean_pieces if p.text not in {p.text for p in base.pieces}
                     and p.text.strip("▁") and set(p.text.removeprefix("▁")) <= set("가나다라마")]
    scores = np.array([p.score for p in new.pieces[n:]], np.float32)
    assert (np.diff(scores) < 0).all() and scores[0] < min(p.score for p in base.pieces if p.score > -1e6)
    parts = ["a", "b", "c", "abc", " ", "  ", "     ", "\n", "<user>", "a.*", "1", "é", "漢", "😀"]
    hangul = ["가", "나다", "다라마", "가b", "나가 마", "한"]  # 한 ("Korean"): in neither model
    texts = ["".join(rng.choice(parts) for _ in range(rng.randint(0, 9))) for _ in range(100)]
    assert [base.sp.encode(text) for text in texts] == [new.sp.encode(text) for text in texts]
    texts += ["".join(rng.choice(parts + hangul) for _ in range(rng.randint(0, 12))) for _ in range(100)]
    for text in texts:
        assert new.sp.decode(new.sp.encode(text)) == base.sp.decode(base.sp.encode(text))
    pytest.importorskip("tokenizers")
    plain = tokenizer.processor(new.raw, dummy_prefix=False)  # a piece that no merges lead to, which BPE training never
    if all(len(plain.encode(piece.text)) == 1 for piece in new.pieces if piece.type == 1):  # makes: ignore_merges would
        assert disagreements(new.raw, texts) == []                                         # find it all the same


def test_scores_stay_distinct_at_the_end_of_the_range():
    base = as_model(write_model([Piece("ab", -999_999.5, 1), Piece("a", -1, 1), Piece("b", -2, 1), Piece("▁", -3, 1)]))
    syllables = [chr(0xAC00 + i) for i in range(11172)]
    raw = tokenizer.merge(base, [Piece(a + b, 0, 1) for a in syllables[:300] for b in syllables[:100]])
    scores = np.array([p.score for p in tokenizer.parse(raw)[0][len(base.pieces):]], np.float32)
    assert len(scores) == 30_000 and (np.diff(scores) < 0).all() and scores[0] < np.float32(-999_999.5)


def test_a_smaller_size_is_the_model_that_would_have_been_trained(tmp_path):
    rng = random.Random(3)
    write_jsonl(tmp_path / "ko.jsonl", [words(rng, "가나다라마바사아자차카타파하", 60) for _ in range(100)])
    models = {}
    for size in (60, 150):
        raw = tokenizer.train([str(tmp_path / "ko.jsonl")], size, "hangul", 1.0)
        models[size] = tokenizer.parse(raw)[0]
    texts = lambda pieces: [p.text for p in pieces]
    assert texts(tokenizer.truncated(models[150], 60)) == texts(tokenizer.truncated(models[60], 60))
    assert texts(tokenizer.truncated(models[150], 150)) == [p.text for p in models[150] if p.text not in ("<unk>", "▁")]


def pieces_of(raw: bytes) -> list[str]:
    return [piece.text for piece in tokenizer.parse(raw)[0] if piece.text not in ("<unk>", "▁")]


def test_rare_pieces_make_room_for_further_merges(tmp_path):
    rng, n = random.Random(), 80
    text = " ".join("".join(chr(0xAC00 + min(int(rng.expovariate(0.1)), 60)) for _ in range(rng.randint(1, 6)))
                    for _ in range(3000))
    path = str(write_jsonl(tmp_path / "a.jsonl", [text]))
    text = "▁" + text.replace(" ", "▁")
    occurs = lambda piece: sum(text.startswith(piece, i) for i in range(len(text)))
    assert min(map(occurs, pieces_of(tokenizer.train([path], n, "hangul", 1.0)))) < 10  # of the rarest syllables
    raw = tokenizer.train([path], n, "hangul", 1.0, min_count=10)
    found = pieces_of(raw)
    assert len(found) == n and min(map(occurs, found)) >= 10
    every = pieces_of(tokenizer.train([path], n * 3 // 2, "hangul", 1.0))
    merges = [piece for piece in every if len(piece) > 1 and occurs(piece) >= 10]
    characters = [piece for piece in every if len(piece) == 1 and occurs(piece) >= 10]
    assert found == merges[:n - len(characters)] + characters
    assert found == pieces_of(tokenizer.train([path], n, "hangul", 1.0, min_count=20, also=[path]))  # all seen twice
    base = as_model(write_model(letters("▁a")))
    new = tokenizer.processor(tokenizer.merge(base, tokenizer.parse(raw)[0]), dummy_prefix=False)
    assert all(len(new.encode(piece)) == 1 for piece in found)
    assert sentencepiece.SentencePieceProcessor(model_proto=raw).get_piece_size() == n + 2


def test_balance_is_repetition(tmp_path):
    rng = random.Random()
    text = words(rng, "가나다라마바", 200)
    large = " ".join([text.translate(str.maketrans("가나다라마바", "사아자차카타"))] * 7)
    for name, content in (("small", text), ("large", large), ("seven", " ".join([text] * 7))):
        write_jsonl(tmp_path / f"{name}.jsonl", [content])
    small, large, seven = (str(tmp_path / f"{name}.jsonl") for name in ("small", "large", "seven"))
    balanced = pieces_of(tokenizer.train([large, small], 60, "hangul", 1.0, balance=True))
    assert balanced == pieces_of(tokenizer.train([large, seven], 60, "hangul", 1.0))
    assert balanced != pieces_of(tokenizer.train([large, small], 60, "hangul", 1.0))


def test_the_suggested_size_is_the_furthest_from_the_line():
    rng = random.Random()
    x = np.cumsum([rng.random() + 0.1 for _ in range(8)])
    y = 1 / (x + rng.random()) ** rng.choice([0.3, 1, 2])
    line = np.array([x[-1] - x[0], y[-1] - y[0]])
    distance = np.abs(line[0] * (y - y[0]) - line[1] * (x - x[0])) / np.linalg.norm(line)
    rows = {f"{i} pieces": dict(embedding_growth=x[i], mean_token_ratio=y[i]) for i in range(8)}
    best = int(distance.argmax())
    found = tokenizer.suggest(rows)
    assert found.startswith(f"{best} pieces")
    assert f" {(y[0] - y[best]) / (x[best] - x[0]):.2f} %" in found
    assert f" {(y[best] - y[-1]) / (x[-1] - x[best]):.2f} %" in found


def test_training_reads_every_kind_of_file_and_counts_what_it_cannot(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("가나다 " * 50, encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("가나".encode("cp949"))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "라마바 " * 50}) + '\n{broken\n{"no": 1}\n{"text": "\\ud800"}\n')
    write_jsonl(tmp_path / "rejected.jsonl", ["사아자 " * 50])
    (tmp_path / "notes.md").write_text("차카타")
    found = list(tokenizer.texts([tmp_path]))
    assert [t[:3] for t in found] == ["가나다", "라마바"]
    assert "skipped 4 documents" in capsys.readouterr().out


def test_long_lines_and_their_ends_are_learnt(tmp_path):
    """SentencePiece drops lines over max_sentence_length; one line of 300 kB must count as any other."""
    (tmp_path / "a.txt").write_text("a " + "qq " * 100_000 + "가나 " * 50_000, encoding="utf-8")
    assert "가나" in {p.text for p in tokenizer.parse(tokenizer.train([str(tmp_path)], 5, "hangul", 1.0))[0]}
    assert "▁qq" in {p.text for p in tokenizer.parse(tokenizer.train([str(tmp_path)], 270, "all", 1.0))[0]}


# ---- transformers ---------------------------------------------------------------------------------------------------
def disagreements(raw: bytes, texts: list[str]) -> list[str]:
    """Texts that `tokenizers` cuts or decodes otherwise than SentencePiece."""
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(tokenizer.tokenizer_json(as_model(raw))))
    ours = tokenizer.processor(raw)
    return [text for text in texts if theirs.encode(text).ids != ours.encode(text, add_bos=True)
            or theirs.decode(ours.encode(text)) != ours.decode(ours.encode(text))]


@pytest.mark.parametrize("seed", range(15))
def test_tokenizer_json_agrees_on_any_vocabulary(seed):
    """Random pieces with random ranks (unreachable ones, no merge tree): every overlap of merges occurs."""
    rng, alphabet = random.Random(seed), "ab" if seed % 2 else "abcd"
    pieces = {"".join(rng.choice(alphabet + "▁") for _ in range(rng.randint(2, 6))) for _ in range(rng.randint(3, 40))}
    raw = write_model([*(Piece(t, -i, 1) for i, t in enumerate(rng.sample(sorted(pieces), len(pieces)))),
                       *(Piece(c, -1000 - i, 1) for i, c in enumerate(alphabet + "▁"))], dummy_prefix=seed % 3 > 0)
    texts = ["".join(rng.choice(alphabet + " é") for _ in range(rng.randint(0, 40))) for _ in range(200)]
    assert disagreements(raw, texts + [c * n + "b" for c in alphabet + " " for n in range(40)]) == []


def test_tokenizer_json_agrees_on_runs_of_equal_score():
    """Mistral's runs of blanks, up to 16, all with score -1e9, low ids and words beside them."""
    raw = write_model([*(Piece("▁" * n, -1e9, 1) for n in (2, 4, 8, 16, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15)),
                       Piece("▁a", -1, 1), Piece("▁▁b", -2, 1), *letters("▁abc")])
    assert disagreements(raw, [a + " " * n + b for a in ("", "a", "c") for n in range(50) for b in ("", *"abc")]) == []


def test_tokenizer_json_agrees_on_user_defined_and_control_pieces():
    own = [Piece("<user>", 0, 4), Piece("<user>s", 0, 4), Piece("a.*", 0, 4), Piece("<|im|>", 0, 3)]
    raw = write_model([*own, Piece("▁a", -1, 1), Piece("ab", -2, 1), *letters("▁abus")])
    rng = random.Random()
    parts = ["<user>", "<user>s", "a.*", " ", "a", "b", "ab", "us", "  "]
    texts = ["".join(rng.choice(parts) for _ in range(rng.randint(0, 9))) for _ in range(300)]
    assert disagreements(raw, texts) == []


def test_transformers_opens_what_save_writes(merged, tmp_path):
    transformers = pytest.importorskip("transformers")
    (*_, new), folder = merged
    tokenizer.save(folder / "merged.model", tmp_path)
    for in_model in (False, True):
        if in_model:
            cli.write_json(tmp_path / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        theirs, rng = transformers.AutoTokenizer.from_pretrained(tmp_path), random.Random()
        assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 2, len(new.pieces))
        for text in [" a", "  한국", "", " ", "\n한", *(mixed(rng) for _ in range(200))]:
            ids = tokenizer.encode(new.sp, text, bos=True)
            assert theirs(text)["input_ids"] == ids, text
            assert theirs.decode(ids, skip_special_tokens=True) == new.sp.decode(ids), text
        both = theirs("a", "b")["input_ids"]
        assert both == [*tokenizer.encode(new.sp, "a", bos=True), *tokenizer.encode(new.sp, "b", bos=True)]


# ---- Report and errors ----------------------------------------------------------------------------------------------
def test_report_counts(merged, tmp_path, capsys):
    (base, korean_model, new), folder = merged
    texts = ["가나 다라\nabc tea\n\n한 noon", "eat 가나다"]
    path = str(write_jsonl(tmp_path / "held.jsonl", texts))
    tokenizer.main(["report", "--tokenizers", f"{folder}/base.model", f"{folder}/merged.model", "--input", path,
                    "--korean", f"{folder}/korean.model", "--sizes", "500", "--out", f"{tmp_path}/r.json"])
    report = cli.read_json(tmp_path / "r.json")["tokenizers"]
    one = report[f"{folder}/merged.model"]
    tokens = [sum(len(m.sp.encode(t)) for t in texts) for m in (base, new)]
    row = one["inputs"][path]
    assert row["tokens"] == tokens[1] and row["token_ratio"] == tokens[1] / tokens[0] == one["mean_token_ratio"]
    assert row["eojeol"] == 8 and row["fertility"] == tokens[1] / 8 and row["lines_without_hangul"] == 2
    assert row["bytes_per_token"] == sum(len(t.encode()) for t in texts) / tokens[1]
    assert row["lines_changed"] == row["round_trips_lost"] == one["unreachable"] == 0
    assert one["added"] == len(new.pieces) - len(base.pieces)
    assert one["embedding_growth"] == len(new.pieces) / len(base.pieces)
    assert 0 < report["500 pieces"]["added"] <= 500 and "suggested" not in cli.read_json(tmp_path / "r.json")
    assert "token_ratio" in capsys.readouterr().out


def test_report_sees_damage(tmp_path):
    """A vocabulary that breaks the rules is reported: changed English, an unreachable piece."""
    base = write_model([Piece("ab", -1, 1), *letters("▁abc")])
    bad = write_model([Piece("ab", -1, 1), *letters("▁abc"), Piece("bc", -0.5, 1), Piece("abab가", -60, 1)])
    for name, raw in (("base", base), ("bad", bad)):
        (tmp_path / f"{name}.model").write_bytes(raw)
    write_jsonl(tmp_path / "t.jsonl", ["abc", "ab ab", "가"])
    models = {name: tokenizer.read(tmp_path / f"{name}.model") for name in ("base", "bad")}
    found = tokenizer.report(models, [str(tmp_path / "t.jsonl")])["bad"]
    assert found["inputs"][str(tmp_path / "t.jsonl")]["lines_changed"] == 1
    assert found["unreachable_pieces"] == {"abab가": "ab ab <0xEA> <0xB0> <0x80>"}


def train_other(text: list[str], **options) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=out, minloglevel=2,
                                             character_coverage=1.0, **options)
    return out.getvalue()


def test_refusals(world, tmp_path, refused):
    text = [words(random.Random(1), "abcdef가나다", 50) for _ in range(100)]
    base, ours, out = str(world / "base.model"), str(tmp_path / "ours"), str(tmp_path / "o")
    tokenizer.main(["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "600", "--out", ours])
    (tmp_path / "llama3").mkdir()
    (tmp_path / "blank.txt").touch()
    for name, part, raw in [
            ("unigram", "Unigram", train_other(text, model_type="unigram", vocab_size=30)),
            ("characters", "character model", train_other(text, model_type="char", vocab_size=13)),
            ("tiktoken", "tiktoken", b"IQ== 0\nIg== 1\n"),
            ("cut", "damaged", (world / "base.model").read_bytes()[:3001]),
            ("json", "damaged", b'{"model": 1}'),
            ("empty", "damaged", b""),
            ("nfkc", "normaliser", train_other(text, model_type="bpe", vocab_size=330, byte_fallback=True)),
            ("lossy", "byte fallback", train_other(text, model_type="bpe", vocab_size=60, unk_surface="?",
                                                   normalization_rule_name="identity"))]:
        (tmp_path / name).write_bytes(raw)
        refused(tokenizer, ["merge", "--base", f"{tmp_path}/{name}", "--korean", ours, "--out", out], part)
    for part, argv in [
            ("Llama 2", ["merge", "--base", f"{tmp_path}/llama3", "--korean", ours, "--out", out]),
            ("Unigram", ["merge", "--base", base, "--korean", f"{tmp_path}/unigram", "--out", out]),
            ("byte fallback", ["merge", "--base", ours, "--korean", ours, "--out", out]),
            ("none", ["merge", "--base", base, "--korean", f"{tmp_path}/none", "--out", out]),
            ("too high", ["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "90000", "--out", out]),
            ("required_chars", ["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "9", "--out", out]),
            ("none", ["train", "--input", f"{tmp_path}/none", "--out", out]),
            ("--korean", ["report", "--tokenizers", base, "--input", base, "--sizes", "9"]),
            ("--text hangul", ["train", "--input", f"{world}/ko.jsonl", "--text", "all", "--balance", "--out", out]),
            ("--min_count 999999", ["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "600", "--min_count",
                                    "999999", "--out", out]),
            ("--sizes 9", ["report", "--tokenizers", base, "--input", base, "--sizes", "9", "--korean", ours]),
            ("without text", ["report", "--tokenizers", base, "--input", f"{tmp_path}/blank.txt"])]:
        refused(tokenizer, argv, part)
    assert not (tmp_path / "o").exists()


def test_varints_are_those_of_struct_free_arithmetic():
    for value in (0, 1, 127, 128, 300, 16383, 16384, 2**32 - 1):
        digits = tokenizer.varint(value)
        assert sum((byte & 127) << 7 * i for i, byte in enumerate(digits)) == value
        assert all(byte > 127 for byte in digits[:-1]) and digits[-1] < 128
    assert tokenizer.field(2, -3.5)[1:] == struct.pack("<f", -3.5)
