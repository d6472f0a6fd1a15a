"""Week 1, cleaning: see week1.md.  python -m pytest exercises/test_week1.py"""
import csv
import itertools
import random
import unicodedata

import numpy as np
import pytest

from cleaning import decontaminate, duplicates
from cleaning.limits import LIMITS
from cleaning.normalise import unicode_to_nfc
from cleaning.rules import check
from toy import world as toy

KO = LIMITS["ko"]["web"]
EN = LIMITS["en"]["web"]


def prose(language: int, n: int = 60) -> list[str]:
    """Clean documents of the toy world, 0 in Korean, 1 in English."""
    teller = toy.Teller("week 1", language)
    return [teller.document() for _ in range(n)]


# -------------------------------------------------------------------------------- 1. unicode_to_nfc


def test_syllables_are_composed():
    for text in prose(0, 5):
        assert unicode_to_nfc(unicodedata.normalize("NFD", text)) == text


def test_laughter_stays_laughter():
    for text in (
        "ㅋㅋㅋ",
        "ㅠㅠ",
        "ㅇㅋ",
        "ㅋㅏ",
        "ㅎㅏㄴ",
    ):  # laughter, tears, OK; letters typed one by one
        assert unicode_to_nfc(text) == text


def test_other_encodings_of_laughter_become_the_one_that_people_type():
    with_fillers = "\u110f\u1160" * 3  # each with a filler in the place of its vowel
    for raw in ("\u110f\u110f\u110f", "\uffbb\uffbb\uffbb", with_fillers):  # conjoining; half-width
        assert unicode_to_nfc(f"웃겨 {raw}") == "웃겨 ㅋㅋㅋ"  # 'funny, hahaha'
    assert unicode_to_nfc("웃겨\u115f\u1160") == "웃겨 "  # fillers alone


def test_what_only_looks_alike_is_left_alone():
    for text in ("½", "㎡", "①", "Ａ", "ﬁ"):
        assert unicode_to_nfc(text + unicodedata.normalize("NFD", "한")) == text + "한"  # 한: Korea


def test_a_syllable_of_old_korean_stays_whole():
    # A vowel, and a last consonant, that no modern syllable has.
    for text in ("\u1112\u119e\u11ab", "셔\u11f0"):
        assert unicode_to_nfc(text) == text


# ----------------------------------------------------------------------------------------- 2. check


def reason(text: str, limits=KO, lang: str = "ko") -> str:
    """The name of the rule by which `check` removes the text, "" if it keeps it."""
    kept, why = check(text, limits, lang)
    assert kept == (None if why else text)
    name, _, _ = why.partition(":")
    return name


def test_korean_rules_keep_korean():
    assert {reason(text) for text in prose(0)} == {""}


def test_english_rules_keep_english_and_no_korean():
    assert [reason(text, EN, "en") for text in prose(1)].count("") >= 57
    assert {reason(text, EN, "en") for text in prose(0)} == {"too_short", "wrong_language"}


NOISE = random.Random(1)
SYLLABLES = [chr(code) for code in range(0xAC00, 0xD7A4)]
# The 2,350 that Korean words use.
COMMON = [syllable for syllable in SYLLABLES if len(syllable.encode("euc_kr")) == 2]


def random_words(syllables: list[str], count: int) -> str:
    """Words of four syllables each."""
    return " ".join("".join(NOISE.choices(syllables, k=4)) for _ in range(count))


# Tree, sea, sky, city, train ...
WORDS = "나무 바다 하늘 도시 기차 학생 친구 시장 다리 겨울 아침 음악".split()
# No line ends in a full stop.
LINES = "\n".join(f"{a}에서 본 {b} 그리고 {a}" for a, b in itertools.pairwise(WORDS))
JUNK = {
    # 48 characters: white space does not count.
    "too_short": "바 다\n\n" * 24,
    "wrong_language": "Nobody in this town could say when the boats would be back. " * 3,
    # Without a space.
    "word_length": "와".join(WORDS * 3),
    "symbols": "나무 ★◆※ 바다 ◇◈☆ 하늘 ※※★ 기차 ☆☆◆ " * 3,
    "no_letters": "나무 12 바다 345 하늘 6789 기차 10 학생 112 친구 " * 3,
    "garbled": random_words(SYLLABLES, 60),
    # None of these words ends like one.
    "function_words": random_words(COMMON, 200),
    "line_ends": LINES,
    # 'The sea that I saw last week was wide.'
    "repeated_lines": "\n".join([prose(0, 1)[0]] + ["지난주에 본 바다는 참 넓었다."] * 9),
    # 'Click now for a free gift.'
    "repeated_ngrams": prose(0, 1)[0] + " 지금 바로 클릭하면 사은품을 드립니다." * 30,
}


@pytest.mark.parametrize("name", JUNK)
def test_each_limit_has_its_reason(name):
    assert reason(JUNK[name]) == name


def test_none_switches_a_rule_off():
    assert reason(LINES, KO._replace(line_ends=None)) == ""


def test_code_and_addresses_are_set_aside():
    code = "```\n" + "for i in range(10): print(i)  # {}[]()\n" * 40 + "```"
    assert reason(prose(0, 1)[0] + "\n" + code + "\nhttps://example.com/a?b=c&d=e") == ""


def test_hanja_is_korean_beside_hangul_only():
    limits = KO._replace(repeated_ngrams={})
    text = "어제 先生이 東海에서 音樂을 들었다. 오늘 學生이 都市에서 册床을 샀다. " * 2
    assert reason(text, limits) == ""
    assert (
        reason("昨天老师在东海听了音乐。今天学生在城市买了书桌。" * 4, limits) == "wrong_language"
    )


# --------------------------------------------------------------------------------------- 3. MinHash


def pair(rng: np.random.Generator, common: int, own: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of hashed 5-grams whose Jaccard similarity is common / (common + 2 * own)."""
    grams = rng.integers(0, 2**64, common + 2 * own, np.uint64)
    a = grams[:common + own]
    b = np.concatenate([grams[:common], grams[common + own:]])
    return np.sort(a), np.sort(b)


def test_jaccard_by_hand():
    for a, b, expected in [
        ([1, 2, 3], [2, 3, 4], 0.5),
        ([1, 2], [3], 0),
        ([7, 8], [7, 8], 1),
    ]:
        assert duplicates.jaccard(np.array(a), np.array(b)) == expected
    assert duplicates.jaccard(*pair(np.random.default_rng(1), 60, 20)) == 0.6


def test_bands_depend_on_the_set_alone():
    a, b = pair(np.random.default_rng(2), 30, 30)
    # In another order, some 5-grams twice.
    repeated = np.concatenate([a, a[:10]])
    shuffled = np.random.default_rng(3).permutation(repeated)
    together = duplicates.bands_of([b, a, shuffled])
    alone = duplicates.bands_of([a])
    assert together.shape == (3, 14) and together.dtype == np.uint64
    assert (together[1] == alone[0]).all()
    assert (together[2] == alone[0]).all()
    assert (together[0] != alone[0]).any()


# Similarities 0.6, 0.8 and 0.9.
@pytest.mark.parametrize("common, own", [(60, 20), (80, 10), (90, 5)])
def test_two_documents_share_a_band_as_often_as_the_formula_says(common, own):
    rng = np.random.default_rng(common)
    s = common / 100
    documents = []
    for _ in range(400):
        documents += pair(rng, common, own)
    bands = duplicates.bands_of(documents)
    agree = bands[::2] == bands[1::2]
    assert float(agree.mean()) == pytest.approx(s**8, abs=0.04)
    assert float(agree.any(axis=1).mean()) == pytest.approx(1 - (1 - s**8) ** 14, abs=0.08)


def test_a_near_copy_goes_and_the_longer_one_stays():
    texts = prose(0, 20)
    texts.append(texts[4] + " 끝.")  # 'The end.'
    bands = duplicates.band_hashes(texts).T
    sizes = np.array([len(text) for text in texts])
    kept = duplicates.near_duplicates(bands, sizes, texts.__getitem__)
    expected = list(range(21))
    expected[4] = 20
    assert kept.tolist() == expected


# --------------------------------------------------------------------------------- 4. decontaminate

# 'Subin dropped a plate; it broke.'
LONG = "어제 저녁에 수빈이 접시를 바닥에 떨어뜨렸다. 그래서 접시가 산산이 깨졌다."
SHORT = "남자는 토스트기 전원을 껐다."  # 'the man switched the toaster off': 12 letters
TINY = "커피가 식었다."  # 'the coffee went cold': 6


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def verdict(benchmark: decontaminate.Benchmark, text: str) -> tuple[str | None, str]:
    """What `check` returns, without what it measured, which stands behind ": "."""
    kept, reason = benchmark.check(text)
    return kept, reason.partition(": ")[0]


def test_25_characters_in_a_row_give_an_item_away():
    benchmark = decontaminate.Benchmark([LONG])
    squeezed = letters(LONG)
    for start in range(len(squeezed) - 24):
        # 앞 is 'before', 뒤 'behind'.
        run = f"앞 {squeezed[start:start + 25]} 뒤"
        assert verdict(benchmark, run) == (None, "benchmark_run")
        shorter = f"앞 {squeezed[start:start + 24]} 뒤"
        assert benchmark.check(shorter) == (shorter, "")


def test_a_short_field_counts_only_as_a_whole():
    benchmark = decontaminate.Benchmark([LONG, SHORT])
    assert verdict(benchmark, f"그리고 {SHORT} 끝") == (None, "benchmark_field")
    other = "남자는 토스트기 전원을 켰다."  # 'on', not 'off': one letter differs
    assert benchmark.check(other) == (other, "")


def test_spaces_and_punctuation_hide_nothing():
    benchmark = decontaminate.Benchmark([LONG, SHORT])
    assert verdict(benchmark, "-".join(letters(LONG))) == (None, "benchmark_run")
    assert verdict(benchmark, " ".join(letters(SHORT)) + "!") == (None, "benchmark_field")


def test_what_the_check_cannot_see():
    benchmark = decontaminate.Benchmark([TINY])
    twice = f"{TINY} {TINY}"
    assert benchmark.check(twice) == (twice, "") and benchmark.check("") == ("", "")


def test_items_that_can_be_found_are_counted(tmp_path):
    (tmp_path / "COPA").mkdir()
    with open(tmp_path / "COPA" / "dev.tsv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(
            [
                ["ID", "a column whose name is long enough to be looked for"],
                ["1", LONG, TINY],
                ["2", TINY, SHORT],
                ["3", TINY, TINY],
                ["4", "https://example.com/a/page/that/both/cite", TINY],
            ]
        )
    assert decontaminate.detectable(tmp_path) == {"COPA/dev": (2, 4)}
