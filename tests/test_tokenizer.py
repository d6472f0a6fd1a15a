"""The merge keeps every promise on random models, and transformers agrees with SentencePiece."""
import gzip
import io
import json
import random
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import korean, write_jsonl

import data
import tokenizer
from common import cli, tokenizer_json
from common import sentencepiece_file as files
from common.sentencepiece_file import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Piece, field

BYTE = 6
BYTES = [Piece(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
SPECIALS = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]


# ---- Models made by hand -------------------------------------------------------------------------


def write_model(pieces: list[Piece], dummy_prefix: bool = True) -> bytes:
    """A BPE model with byte fallback, with exactly these pieces and scores, as a file."""
    parts = []
    for piece in [*SPECIALS, *BYTES, *pieces]:
        text = field(files.TEXT, piece.text.encode())
        score = field(files.SCORE, float(piece.score))
        parts.append(field(files.PIECES, text + score + field(files.TYPE, piece.type)))

    # 35 is byte_fallback, 40 to 42 are the ids of unk, bos and eos.
    trainer = [(files.MODEL_TYPE, files.BPE), (35, 1), (40, 0), (41, 1), (42, 2)]
    parts.append(field(files.TRAINER, b"".join(field(*one) for one in trainer)))
    # 1 is the normaliser's name, 4 remove_extra_whitespaces.
    normalizer = [(1, b"identity"), (files.DUMMY_PREFIX, int(dummy_prefix)), (4, 0)]
    parts.append(field(files.NORMALIZER, b"".join(field(*one) for one in normalizer)))
    return b"".join(parts)


def ranked(texts: list[str], first: float = -1) -> list[Piece]:
    """Normal pieces whose scores fall from `first` in steps of 1."""
    return [Piece(text, first - i, NORMAL) for i, text in enumerate(texts)]


def letters(text: str) -> list[Piece]:
    return ranked(list(text), first=-50)


def runs_of_spaces(*lengths: int) -> list[Piece]:
    """Runs of spaces as in Mistral's tokenizer."""
    return [Piece("▁" * n, -1e9, NORMAL) for n in lengths]


def as_model(raw: bytes) -> tokenizer.Model:
    return tokenizer.Model(raw, tokenizer.parse(raw)[0], tokenizer.processor(raw))


def texts_of(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces]


def scores_of(pieces: list[Piece]) -> np.ndarray:
    return np.array([piece.score for piece in pieces], np.float32)


# ---- Random texts --------------------------------------------------------------------------------


def strings(rng: random.Random, parts, most: int, n: int) -> list[str]:
    """n strings of up to `most` random parts each."""
    found = []
    for _ in range(n):
        chosen = rng.choices(parts, k=rng.randint(0, most))
        found.append("".join(chosen))
    return found


def words(rng: random.Random, alphabet: str, n: int) -> str:
    found = ["".join(rng.choices(alphabet, k=rng.randint(1, 7))) for _ in range(n)]
    return " ".join(found)


def mixed(rng: random.Random) -> str:
    """What breaks tokenizers: scripts side by side, runs of spaces, half characters, controls."""
    parts = [" ", "   ", "\n", "\t", "\x00", "▁", "a", "the ", "1234", "</x>", "Ω", "e\u0301", "😀"]
    parts += ["한국", "한", "ㅋㅋㅋ", "漢字"]  # Korea, half of it, laughter, hanja
    parts += [korean(rng, 3), words(rng, "abc", 3)]
    return strings(rng, parts, 12, 1)[0]


# ---- The file ------------------------------------------------------------------------------------


def test_protobuf_reading_and_writing_are_inverse():
    rng = random.Random()
    message = []
    for _ in range(50):
        integer = rng.randrange(2**40)
        number = float(np.float32(rng.gauss(0, 99)))
        text = rng.randbytes(rng.randrange(300))
        message.append((rng.randint(1, 5000), rng.choice([integer, number, text])))
    raw = b"".join(field(*one) for one in message)
    assert list(files.fields(raw)) == message


def test_varints_are_digits_in_base_128():
    for value in (0, 1, 127, 128, 300, 16383, 16384, 2**32 - 1):
        digits = files.varint(value)
        assert sum((byte & 127) << 7 * i for i, byte in enumerate(digits)) == value
        assert all(byte > 127 for byte in digits[:-1])
        assert digits[-1] < 128
        assert files.read_varint(b"x" + digits + b"y", 1) == (value, 1 + len(digits))
    assert field(2, -3.5)[1:] == struct.pack("<f", -3.5)


def test_a_message_that_breaks_off_is_named_as_such():
    whole = field(files.PIECES, b"some text") + field(3, 300) + field(2, -1.0)
    ends = {len(field(files.PIECES, b"some text")), len(whole) - len(field(2, -1.0)), 0}
    for size in set(range(len(whole))) - ends:
        with pytest.raises(ValueError, match="breaks off"):
            list(files.fields(whole[:size]))
    # Impossible lengths, integers without an end, a wire type that does not exist.
    for bad in (b"\x0a" + files.varint(2**63), b"\xff" * 50, b"\x0f\x01"):
        with pytest.raises(ValueError):
            list(files.fields(bad))


def test_a_damaged_file_is_refused_in_one_line_or_still_a_model(tmp_path):
    rng = random.Random()
    whole = write_model([*ranked(["ab"]), *letters("▁abc나")])
    for _ in range(300):
        raw = bytearray(whole[:rng.randint(1, len(whole))])
        for _ in range(rng.randint(1, 3)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        (tmp_path / "damaged.model").write_bytes(raw)
        try:
            model = tokenizer.read(tmp_path / "damaged.model")
        except cli.UserError as error:
            assert "damaged.model is" in str(error)
        else:
            assert len(model.sp) == len(model.pieces)


# ---- Scores are ranks ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_segment_is_what_sentencepiece_does(seed):
    """On pieces that no training would make, some with equal scores."""
    rng = random.Random(seed)
    pieces = {text for text in strings(rng, "ab▁", 6, 30) if len(text) > 1}
    joined = [Piece(text, -rng.randint(1, 20), NORMAL) for text in sorted(pieces)]
    model = as_model(write_model([*joined, *letters("ab▁")], dummy_prefix=False))
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == NORMAL}
    for text in strings(rng, "ab ", 30, 200):
        expected = model.sp.encode(text, out_type=str)
        assert tokenizer.segment(text.replace(" ", "▁"), scores) == expected


# ---- Merge ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=range(4))
def merged(request, tmp_path_factory):
    """((base, Korean, merged) models, their folder): a base trained on English and some Korean."""
    rng = random.Random(request.param)
    folder = tmp_path_factory.mktemp("merged")
    english = []
    hangul = []
    for _ in range(80):
        gap = rng.choice([" ", "   ", "\n"])
        english.append(words(rng, "etaoin", 30) + gap + korean(rng, 2))
        hangul.append(words(rng, "가나다라마바사아", 40) + " " + korean(rng, 30) + "ab 12")
    write_jsonl(folder / "en.jsonl", english)
    write_jsonl(folder / "ko.jsonl", hangul)

    tokenizer.main(["train", "--text", "all", "--input", f"{folder}/en.jsonl",
                    "--vocab_size", str(rng.randint(700, 900)), "--out", f"{folder}/base.model"])
    tokenizer.main(["train", "--input", f"{folder}/ko.jsonl",
                    "--vocab_size", str(rng.randint(600, 900)), "--out", f"{folder}/korean.model"])
    tokenizer.main(["merge", "--base", f"{folder}/base.model",
                    "--korean", f"{folder}/korean.model", "--out", f"{folder}/merged.model"])
    models = [tokenizer.read(folder / f"{name}.model") for name in ("base", "korean", "merged")]
    return models, folder


def test_merge_keeps_the_base(merged):
    (base, _, new), _ = merged
    n = len(base.pieces)
    assert new.raw.startswith(base.raw)
    assert new.pieces[:n] == base.pieces
    assert len(new.pieces) > n
    assert new.sp.get_piece_size() == len(new.pieces)

    trainer = {}
    for key, value in tokenizer.fields(new.raw):
        if key == files.TRAINER:
            trainer |= dict(tokenizer.fields(value))
    assert trainer[files.VOCAB_SIZE] == len(new.pieces)
    assert trainer[35] == 1  # byte_fallback is still there

    rng = random.Random()
    for _ in range(300):
        text = words(rng, "etaoin ,.12Ωé漢", 12)
        assert new.sp.encode(text) == base.sp.encode(text), text


def test_merge_adds_every_hangul_piece_and_only_those(merged):
    (base, korean_model, new), _ = merged
    added = new.pieces[len(base.pieces):]
    known = set(texts_of(base.pieces))
    expected = []
    for text in texts_of(korean_model.pieces):
        syllables = text.removeprefix("▁")
        pure = all("가" <= c <= "힣" for c in syllables)
        if syllables and pure and text not in known:
            expected.append(text)
    assert texts_of(added) == expected

    scores = scores_of(added)
    assert (np.diff(scores) < 0).all()
    assert scores[0] < min(piece.score for piece in base.pieces)

    # Each is reachable, unless the base joins its syllables differently.
    plain = tokenizer.processor(new.raw, dummy_prefix=False)
    base_hangul = [text for text in known if len(text) > 1 and "가" <= text[-1] <= "힣"]
    for i, text in enumerate(expected, len(base.pieces)):
        assert plain.encode(text) == [i] or any(piece in text for piece in base_hangul)


def test_round_trips(merged):
    (base, _, new), _ = merged
    rng = random.Random()
    for _ in range(300):
        text = mixed(rng)
        back = new.sp.decode(new.encode(text, bos=True, eos=True))
        assert back == base.sp.decode(base.sp.encode(text))
        assert back == text or "▁" in text


def test_encode_puts_bos_and_eos_where_it_is_told(merged):
    new = merged[0][2]
    ids = new.sp.encode("한국 ab")
    assert new.encode("한국 ab", bos=True, eos=True) == [1, *ids, 2]
    assert new.encode(["한국 ab", ""], bos=True) == [[1, *ids], [1]]


def test_mistral_scores_of_spaces_are_not_ranks():
    base = as_model(write_model([
        *runs_of_spaces(2, 3, 4), Piece("ab", -31740, NORMAL), *letters("▁ab가")]))
    korean_pieces = ranked(["나다", "가나", "나", "다", "가", "a나", "나 다", "나1"])
    new = tokenizer.parse(tokenizer.merge(base, korean_pieces))[0][len(base.pieces):]
    assert texts_of(new) == ["나다", "가나", "나", "다"]
    assert [piece.score for piece in new] == [-31741, -31742, -31743, -31744]


def grow(rng: random.Random, alphabet: str, n: int) -> list[str]:
    """n different strings, each joined from two earlier ones or letters, as BPE makes them."""
    found = dict.fromkeys(alphabet)
    while len(found) < len(alphabet) + n:
        pair = rng.choices(list(found), k=2)
        found["".join(pair)[:8]] = None
    return list(found)[len(alphabet):]


def random_models(rng: random.Random) -> tuple[bytes, list[Piece]]:
    """A base (with user-defined and control pieces, Hangul, runs of spaces at -1e9) and Korean
    pieces, some of which are already in the base or not Hangul."""
    own_texts = rng.sample(["<user>", "나다", "가b", "a.*"], rng.randint(0, 4))
    own = [Piece(text, 0, USER_DEFINED) for text in own_texts]
    spaces = runs_of_spaces(2, 3, 4)
    taken = set(texts_of(own + spaces))
    joined = grow(rng, "abc▁", 12) + grow(rng, "가나", rng.randint(0, 4))
    joined = [text for text in dict.fromkeys(joined) if text not in taken]
    base = [*own, Piece("<|im|>", 0, CONTROL), *spaces]
    base += [Piece(text, -1.5 * i, NORMAL) for i, text in enumerate(joined)]
    base += letters("▁abc가나다")

    new = grow(rng, "▁가나다라마", 40) + grow(rng, "가나a1 ", 10) + list("가나다라마")
    return write_model(base, dummy_prefix=rng.random() < 0.7), ranked(list(dict.fromkeys(new)))


@pytest.mark.parametrize("seed", [random.randrange(10**9) for _ in range(25)])
def test_merge_of_any_models(seed):
    rng = random.Random(seed)
    raw, korean_pieces = random_models(rng)
    base = as_model(raw)
    new = as_model(tokenizer.merge(base, korean_pieces))

    # The base's pieces stay; those of pure Hangul follow, with lower scores.
    n = len(base.pieces)
    assert new.pieces[:n] == base.pieces
    assert [new.sp.id_to_piece(i) for i in range(n)] == texts_of(base.pieces)
    known = set(texts_of(base.pieces))
    expected = []
    for text in texts_of(korean_pieces):
        pure = set(text.removeprefix("▁")) <= set("가나다라마")
        if pure and text.strip("▁") and text not in known:
            expected.append(text)
    assert texts_of(new.pieces[n:]) == expected
    scores = scores_of(new.pieces[n:])
    assert (np.diff(scores) < 0).all()
    assert scores[0] < min(piece.score for piece in base.pieces if piece.score > -1e6)

    # Text without Hangul is segmented as before, and all text decodes as before.
    parts = ["a", "b", "c", "abc", " ", "  ", "     ", "\n", "<user>", "a.*", "1", "é", "漢", "😀"]
    texts = strings(rng, parts, 9, 100)
    assert [base.sp.encode(text) for text in texts] == [new.sp.encode(text) for text in texts]
    hangul = ["가", "나다", "다라마", "가b", "나가 마", "한"]  # 한 ("Korean"): in neither model
    texts += strings(rng, parts + hangul, 12, 100)
    for text in texts:
        assert new.sp.decode(new.sp.encode(text)) == base.sp.decode(base.sp.encode(text))

    # transformers agrees. A piece that no merges lead to, which BPE training never makes, is found
    # only if ignore_merges is on.
    pytest.importorskip("tokenizers")
    plain = tokenizer.processor(new.raw, dummy_prefix=False)
    normal = [piece.text for piece in new.pieces if piece.type == NORMAL]
    if all(len(plain.encode(text)) == 1 for text in normal):
        assert disagreements(new.raw, texts) == []


def test_scores_stay_distinct_at_the_end_of_the_range():
    base = as_model(write_model([Piece("ab", -999_999.5, NORMAL), *ranked(["a", "b", "▁"])]))
    syllables = [chr(0xAC00 + i) for i in range(300)]
    pairs = [a + b for a in syllables for b in syllables[:100]]
    new = tokenizer.parse(tokenizer.merge(base, ranked(pairs)))[0][len(base.pieces):]
    scores = scores_of(new)
    assert len(scores) == 30_000
    assert (np.diff(scores) < 0).all()
    assert scores[0] < np.float32(-999_999.5)


# ---- Train ---------------------------------------------------------------------------------------


def pieces_of(raw: bytes) -> list[str]:
    return [text for text in texts_of(tokenizer.parse(raw)[0]) if text not in ("<unk>", "▁")]


def test_a_smaller_size_is_the_model_that_would_have_been_trained(tmp_path):
    rng = random.Random(3)
    documents = [words(rng, "가나다라마바사아자차카타파하", 60) for _ in range(100)]
    path = str(write_jsonl(tmp_path / "ko.jsonl", documents))
    small = tokenizer.train_korean([path], 60, character_coverage=1.0)
    large = tokenizer.train_korean([path], 150, character_coverage=1.0)
    pieces = tokenizer.parse(large)[0]
    assert texts_of(tokenizer.truncated(pieces, 60)) == pieces_of(small)
    assert texts_of(tokenizer.truncated(pieces, 150)) == pieces_of(large)


def test_rare_pieces_make_room_for_further_merges(tmp_path):
    rng = random.Random()
    n = 80

    def syllable() -> str:
        return chr(0xAC00 + min(int(rng.expovariate(0.1)), 60))

    found_words = []
    for _ in range(3000):
        found_words.append("".join(syllable() for _ in range(rng.randint(1, 6))))
    text = " ".join(found_words)
    path = str(write_jsonl(tmp_path / "a.jsonl", [text]))
    spelled = "▁" + text.replace(" ", "▁")

    def occurs(piece: str) -> int:
        return sum(spelled.startswith(piece, i) for i in range(len(spelled)))

    def train(size: int, **options) -> bytes:
        return tokenizer.train_korean([path], size, character_coverage=1.0, **options)

    assert min(map(occurs, pieces_of(train(n)))) < 10  # of the rarest syllables
    raw = train(n, min_count=10)
    found = pieces_of(raw)
    assert len(found) == n
    assert min(map(occurs, found)) >= 10

    frequent = [piece for piece in pieces_of(train(n * 3 // 2)) if occurs(piece) >= 10]
    merges = [piece for piece in frequent if len(piece) > 1]
    characters = [piece for piece in frequent if len(piece) == 1]
    assert found == merges[:n - len(characters)] + characters
    assert found == pieces_of(train(n, min_count=20, also=[path]))  # all occur twice

    base = as_model(write_model(letters("▁a")))
    merged_raw = tokenizer.merge(base, tokenizer.parse(raw)[0])
    new = tokenizer.processor(merged_raw, dummy_prefix=False)
    assert all(len(new.encode(piece)) == 1 for piece in found)
    assert sentencepiece.SentencePieceProcessor(model_proto=raw).get_piece_size() == n + 2


def test_balance_is_repetition(tmp_path):
    rng = random.Random()
    text = words(rng, "가나다라마바", 200)
    other = text.translate(str.maketrans("가나다라마바", "사아자차카타"))
    small = str(write_jsonl(tmp_path / "small.jsonl", [text]))
    large = str(write_jsonl(tmp_path / "large.jsonl", [" ".join([other] * 7)]))
    seven = str(write_jsonl(tmp_path / "seven.jsonl", [" ".join([text] * 7)]))

    def train(inputs: list[str], balance: bool = False) -> list[str]:
        raw = tokenizer.train_korean(inputs, 60, character_coverage=1.0, balance=balance)
        return pieces_of(raw)

    balanced = train([large, small], balance=True)
    assert balanced == train([large, seven])
    assert balanced != train([large, small])


def test_an_input_without_hangul_does_not_disturb_the_balance(tmp_path):
    path = str(write_jsonl(tmp_path / "ko.jsonl", [words(random.Random(), "가나다라", 200)]))
    empty = str(write_jsonl(tmp_path / "en.jsonl", ["only Latin"]))
    raw = tokenizer.train_korean([path, empty], 20, character_coverage=1.0, balance=True)
    assert raw == tokenizer.train_korean([path], 20, character_coverage=1.0)


def test_training_reads_every_kind_of_file_and_counts_what_it_cannot(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("가나다 " * 50, encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("가나".encode("cp949"))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "라마바 " * 50}) + "\n")
        file.write('{broken\n{"no": 1}\n{"text": "\\ud800"}\n')
    write_jsonl(tmp_path / "rejected.jsonl", ["사아자 " * 50])
    (tmp_path / "notes.md").write_text("차카타")
    found = list(tokenizer.texts([tmp_path]))
    assert [text[:3] for text in found] == ["가나다", "라마바"]
    assert "skipped 4 documents" in capsys.readouterr().out


def test_the_flags_say_how_to_read(tmp_path, capsys):
    """Training and the report read the same documents from CP949, nested fields and one document
    per line as from plain UTF-8."""
    words = ["가나다 " * 50, "라마바 " * 50, "abc 가나"]
    write_jsonl(tmp_path / "plain.jsonl", words)
    nested = [{"page": {"body": word}} for word in words[:2]]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(
        json.dumps(nested, ensure_ascii=False), encoding="cp949"
    )
    (tmp_path / "in" / "b.txt").write_text(words[2] + "\n\n", encoding="cp949")
    (tmp_path / "in" / "c.pdf").touch()
    flags = ["--encoding", "cp949", "--text_field", "page.body", "--lines"]

    for name, argv in (
        ("plain", [f"{tmp_path}/plain.jsonl"]),
        ("other", [f"{tmp_path}/in", *flags]),
    ):
        for kind, size in (("hangul", "9"), ("all", "270")):
            tokenizer.main(["train", "--text", kind, "--vocab_size", size,
                            "--character_coverage", "1", "--input", *argv,
                            "--out", f"{tmp_path}/{name}-{kind}.model"])
    for kind in ("hangul", "all"):
        plain, other = (tmp_path / f"{name}-{kind}.model" for name in ("plain", "other"))
        assert plain.read_bytes() == other.read_bytes()
    assert "1 .pdf (c.pdf)" in capsys.readouterr().err

    tokenizer.main(["report", "--tokenizers", f"{tmp_path}/plain-all.model",
                    "--input", f"{tmp_path}/in", *flags, "--out", f"{tmp_path}/report.json"])
    rows = json.loads((tmp_path / "report.json").read_text())["tokenizers"]
    counts, = rows[f"{tmp_path}/plain-all.model"]["inputs"].values()
    assert counts["documents"] == 3


def test_long_lines_and_their_ends_are_learned(tmp_path):
    """SentencePiece drops lines over max_sentence_length; one of 300 kB must count like any
    other."""
    text = "a " + "qq " * 100_000 + "가나 " * 50_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert "가나" in pieces_of(tokenizer.train_korean([str(tmp_path)], 5, 1.0))
    assert "▁qq" in pieces_of(tokenizer.train_base([str(tmp_path)], 270, 1.0))


# ---- transformers --------------------------------------------------------------------------------


def disagreements(raw: bytes, texts: list[str]) -> list[str]:
    """Texts that `tokenizers` segments or decodes differently from SentencePiece."""
    tokenizers = pytest.importorskip("tokenizers")
    model = as_model(raw)
    merges = tokenizer.ranked_merges(model.pieces)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_json.save(model, merges, Path(folder), None)
        theirs = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    ours = tokenizer.processor(raw)
    found = []
    for text in texts:
        ids = ours.encode(text)
        same_ids = theirs.encode(text).ids == ours.encode(text, add_bos=True)
        if not same_ids or theirs.decode(ids) != ours.decode(ids):
            found.append(text)
    return found


@pytest.mark.parametrize("seed", range(15))
def test_tokenizer_json_agrees_on_any_vocabulary(seed):
    """Random pieces with random ranks (unreachable ones, no merge tree): every overlap occurs."""
    rng = random.Random(seed)
    alphabet = "abcd"
    if seed % 2:
        alphabet = "ab"
    pieces = set()
    for _ in range(rng.randint(3, 40)):
        pieces.add("".join(rng.choices(alphabet + "▁", k=rng.randint(2, 6))))
    shuffled = rng.sample(sorted(pieces), len(pieces))
    characters = ranked(list(alphabet + "▁"), first=-1000)
    raw = write_model(ranked(shuffled, first=0) + characters, dummy_prefix=seed % 3 > 0)

    texts = strings(rng, alphabet + " é", 40, 200)
    for character in alphabet + " ":
        texts += [character * n + "b" for n in range(40)]
    assert disagreements(raw, texts) == []


def test_tokenizer_json_agrees_on_runs_of_equal_score():
    """Mistral's runs of spaces, up to 16, all with score -1e9 and low ids, with words next to
    them."""
    raw = write_model([*runs_of_spaces(2, 4, 8, 16, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15),
                       *ranked(["▁a", "▁▁b"]), *letters("▁abc")])
    texts = []
    for before in ("", "a", "c"):
        for after in ("", "a", "b", "c"):
            texts += [before + " " * n + after for n in range(50)]
    assert disagreements(raw, texts) == []


def test_tokenizer_json_agrees_on_user_defined_and_control_pieces():
    own = [Piece(text, 0, USER_DEFINED) for text in ("<user>", "<user>s", "a.*")]
    control = Piece("<|im|>", 0, CONTROL)
    raw = write_model([*own, control, *ranked(["▁a", "ab"]), *letters("▁abus")])
    parts = ["<user>", "<user>s", "a.*", " ", "a", "b", "ab", "us", "  "]
    assert disagreements(raw, strings(random.Random(), parts, 9, 300)) == []


def test_transformers_opens_what_save_writes(merged, tmp_path):
    transformers = pytest.importorskip("transformers")
    (*_, new), folder = merged
    tokenizer.save(folder / "merged.model", tmp_path)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    rng = random.Random()
    for in_model in (False, True):
        if in_model:
            cli.write_json(tmp_path / "config.json", config)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.bos_token_id == 1
        assert theirs.eos_token_id == 2
        assert len(theirs) == len(new.pieces)
        for text in [" a", "  한국", "", " ", "\n한", *(mixed(rng) for _ in range(200))]:
            ids = new.encode(text, bos=True)
            assert theirs(text)["input_ids"] == ids, text
            assert theirs.decode(ids, skip_special_tokens=True) == new.sp.decode(ids), text
        first, second = new.encode(["a", "b"], bos=True)
        assert theirs("a", "b")["input_ids"] == first + second


# ---- Report --------------------------------------------------------------------------------------


def test_report_counts(merged, tmp_path, capsys):
    (base, _, new), folder = merged
    texts = ["가나 다라\nabc tea\n\n한 noon", "eat 가나다"]
    path = str(write_jsonl(tmp_path / "held.jsonl", texts))
    tokenizer.main(["report", "--tokenizers", f"{folder}/base.model", f"{folder}/merged.model",
                    "--input", path, "--korean", f"{folder}/korean.model", "--sizes", "500",
                    "--out", f"{tmp_path}/r.json"])
    written = cli.read_json(tmp_path / "r.json")
    one = written["tokenizers"][f"{folder}/merged.model"]
    row = one["inputs"][path]

    base_tokens = sum(len(base.sp.encode(text)) for text in texts)
    tokens = sum(len(new.sp.encode(text)) for text in texts)
    assert row["tokens"] == tokens
    assert row["token_ratio"] == tokens / base_tokens == one["mean_token_ratio"]
    assert row["tokens_per_character"] == tokens / sum(map(len, texts))
    assert row["bytes_per_token"] == sum(len(text.encode()) for text in texts) / tokens
    assert row["eojeol"] == 8
    assert row["fertility"] == tokens / 8
    assert row["documents"] == 2
    assert row["lines_without_hangul"] == 2
    assert row["lines_changed"] == row["round_trips_lost"] == one["unreachable"] == 0
    assert one["added"] == len(new.pieces) - len(base.pieces)
    assert one["embedding_growth"] == len(new.pieces) / len(base.pieces)
    assert 0 < written["tokenizers"]["500 pieces"]["added"] <= 500
    assert "suggested" not in written
    assert "token_ratio" in capsys.readouterr().out


def test_report_sees_damage(tmp_path):
    """A vocabulary that breaks the rules is reported: changed English, an unreachable piece."""
    base = [*ranked(["ab"]), *letters("▁abc")]
    bad = [Piece("bc", -0.5, NORMAL), Piece("abab가", -60, NORMAL)]
    models = {"base": as_model(write_model(base)), "bad": as_model(write_model(base + bad))}
    path = str(write_jsonl(tmp_path / "t.jsonl", ["abc", "ab ab", "가"]))
    found = tokenizer.report(models, [path])["bad"]
    assert found["inputs"][path]["lines_changed"] == 1
    assert found["unreachable_pieces"] == {"abab가": "ab ab <0xEA> <0xB0> <0x80>"}


def test_report_sees_documents_that_no_longer_decode(tmp_path):
    pieces = [*ranked(["ab"]), *letters("▁abc")]
    raw = write_model(pieces)
    # remove_extra_whitespaces, appended: the last value of a repeated setting counts.
    lossy = raw + field(files.NORMALIZER, field(4, 1))
    path = str(write_jsonl(tmp_path / "t.jsonl", ["a  b", "a b", "c   "]))
    found = tokenizer.report({"base": as_model(raw), "lossy": as_model(lossy)}, [path])
    assert found["base"]["inputs"][path]["round_trips_lost"] == 0
    assert found["lossy"]["inputs"][path]["round_trips_lost"] == 2


def test_the_suggested_size_is_the_furthest_from_the_line():
    rng = random.Random()
    x = np.cumsum([rng.random() + 0.1 for _ in range(8)])
    y = 1 / (x + rng.random()) ** rng.choice([0.3, 1, 2])
    run = x[-1] - x[0]
    rise = y[-1] - y[0]
    distance = np.abs(run * (y - y[0]) - rise * (x - x[0])) / np.hypot(run, rise)
    best = int(distance.argmax())

    rows = {}
    for i in range(8):
        rows[f"{i} pieces"] = {"embedding_growth": x[i], "mean_token_ratio": y[i]}
    found = tokenizer.suggest(rows)
    assert found.startswith(f"{best} pieces")
    assert f" {(y[0] - y[best]) / (x[best] - x[0]):.2f} %" in found
    assert f" {(y[best] - y[-1]) / (x[-1] - x[best]):.2f} %" in found


# ---- Errors --------------------------------------------------------------------------------------


def train_other(**options) -> bytes:
    """A model of another kind than BPE, or with other settings, trained on a little text."""
    rng = random.Random(1)
    text = [words(rng, "abcdef가나다", 50) for _ in range(100)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=out,
        minloglevel=2,
        character_coverage=1.0,
        **options,
    )
    return out.getvalue()


def test_a_base_that_cannot_take_new_pieces_is_refused(world, tmp_path, refused):
    korean_model = str(tmp_path / "ours")
    tokenizer.main(["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "600",
                    "--out", korean_model])
    nfkc = train_other(model_type="bpe", vocab_size=330, byte_fallback=True)
    lossy = train_other(model_type="bpe", vocab_size=60, unk_surface="?",
                        normalization_rule_name="identity")
    for name, part, raw in [
        ("unigram", "Unigram", train_other(model_type="unigram", vocab_size=30)),
        ("characters", "character model", train_other(model_type="char", vocab_size=13)),
        ("tiktoken", "tiktoken", b"IQ== 0\nIg== 1\n"),
        ("cut", "damaged", (world / "base.model").read_bytes()[:3001]),
        ("json", "damaged", b'{"model": 1}'),
        ("empty", "damaged", b""),
        ("nfkc", "normaliser", nfkc),
        ("lossy", "byte fallback", lossy),
    ]:
        file = tmp_path / name
        file.write_bytes(raw)
        argv = ["merge", "--base", str(file), "--korean", korean_model, "--out", f"{tmp_path}/o"]
        refused(tokenizer, argv, part)
    assert not (tmp_path / "o").exists()


def test_a_folder_without_a_tokenizer_is_named(world, tmp_path, refused):
    (tmp_path / "llama3").mkdir()
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model/tokenizer.model").write_bytes((world / "base.model").read_bytes())
    for base, part in [
        ("none", "none does not exist"),
        ("llama3", "llama3 holds no tokenizer.model: take a SentencePiece BPE model (Llama 2"),
        ("run", "the model is in"),
    ]:
        argv = ["merge", "--base", f"{tmp_path}/{base}", "--korean", f"{world}/base.model",
                "--out", f"{tmp_path}/o"]
        refused(tokenizer, argv, part)


def test_refusals(world, tmp_path, refused):
    base = str(world / "base.model")
    ours = str(tmp_path / "ours")
    tokenizer.main(["train", "--input", f"{world}/ko.jsonl", "--vocab_size", "600", "--out", ours])
    (tmp_path / "unigram").write_bytes(train_other(model_type="unigram", vocab_size=30))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_text("only Latin")

    merge = ["merge", "--out", f"{tmp_path}/o"]
    train = ["train", "--out", f"{tmp_path}/o", "--input"]
    report = ["report", "--tokenizers", base, "--input"]
    hangul = f"{world}/ko.jsonl"
    for part, argv in [
        ("Unigram", [*merge, "--base", base, "--korean", f"{tmp_path}/unigram"]),
        ("byte fallback", [*merge, "--base", ours, "--korean", ours]),
        ("too high", [*train, hangul, "--vocab_size", "90000"]),
        ("required_chars", [*train, hangul, "--vocab_size", "9"]),
        ("none", [*train, f"{tmp_path}/none"]),
        ("no Hangul", [*train, f"{tmp_path}/latin.txt"]),
        ("no text", [*train, f"{tmp_path}/empty.txt", "--text", "all"]),
        ("--text hangul", [*train, hangul, "--text", "all", "--balance"]),
        ("--min_count 999999",
         [*train, hangul, "--vocab_size", "600", "--min_count", "999999"]),
        ("--korean", [*report, base, "--sizes", "9"]),
        ("--korean", [*report, base, "--korean", ours]),
        ("--sizes 9", [*report, base, "--sizes", "9", "--korean", ours]),
        ("has no text to measure", [*report, f"{tmp_path}/empty.txt"]),
    ]:
        refused(tokenizer, argv, part)
    assert not (tmp_path / "o").exists()


def without(raw: bytes, ends: tuple[str, ...]) -> bytes:
    """A model whose BOS or EOS does not exist as a piece, as if it had been trained without it."""
    for end in ends:
        number = {"BOS": 46, "EOS": 47}[end]
        raw += field(files.TRAINER, field(number, b"<none>"))
    return raw


@pytest.mark.parametrize("ends", [("BOS",), ("EOS",), ("BOS", "EOS")])
def test_a_model_without_bos_or_eos_is_one_line(ends, world, tmp_path, refused):
    """It can be measured and merged from. But documents have both, and so must a base."""
    file = tmp_path / "base.model"
    file.write_bytes(without(write_model(letters("▁ab")), ends))
    korean_file = str(world / "base.model")
    vocabulary = tokenizer.load(file)
    assert (vocabulary.bos is None, vocabulary.eos is None) == ("BOS" in ends, "EOS" in ends)
    assert vocabulary.decode(vocabulary.encode("ab", bos=False)) == "ab"

    part = f"{file} has no {ends[0]} piece, but a document is BOS, text, EOS"
    with pytest.raises(cli.UserError, match=part):
        vocabulary.encode("ab", bos=True, eos=True)
    # It is reported before anything else, not after the first reading of the corpus.
    packs = ["pack", "--input", f"{world}/ko.jsonl", "--tokenizer", str(file),
             "--out", f"{tmp_path}/o", "--val_fraction", "7"]
    refused(data, packs, part)
    part = f"{file} has no piece for BOS, or none for EOS"
    refused(
        tokenizer,
        ["merge", "--base", str(file), "--korean", korean_file, "--out", f"{tmp_path}/o"],
        part,
    )
    assert not (tmp_path / "o").exists()


def test_metas_original_folder_is_named(world, tmp_path, refused):
    """Llama 3, downloaded without tokenizer.json."""
    inside = tmp_path / "model/original/tokenizer.model"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"IQ== 0\n")
    argv = ["merge", "--base", f"{tmp_path}/model", "--korean", f"{world}/base.model",
            "--out", f"{tmp_path}/o"]
    refused(tokenizer, argv, f"no tokenizer.model, but {inside}: give that file, or copy it")
