"""Week 1, cleaning: see week1.md.  python -m pytest exercises/test_week1.py"""
import csv
import random
import unicodedata

import numpy as np
import pytest

from cleaning import decontaminate, duplicates
from cleaning.normalise import unicode_to_nfc
from cleaning.rules import LIMITS, check
from toy import world as toy

KO, EN = LIMITS["ko"]["web"], LIMITS["en"]["web"]


def prose(language: int, n: int = 60) -> list[str]:
    """Clean documents of the toy world, 0 in Korean, 1 in English."""
    teller = toy.Teller("week 1", language)
    return [teller.document() for _ in range(n)]


# ------------------------------------------------------------------------------------------------ 1. unicode_to_nfc

def test_syllables_are_composed():
    for text in prose(0, 5):
        assert unicode_to_nfc(unicodedata.normalize("NFD", text)) == text


def test_laughter_stays_laughter():
    for text in ("ㅋㅋㅋ", "ㅠㅠ", "ㅇㅋ", "ㅋㅏ", "ㅎㅏㄴ"):  # laughter, tears, OK; letters typed one by one
        assert unicode_to_nfc(text) == text


def test_other_encodings_of_laughter_become_the_one_that_people_type():
    for raw in ("\u110f\u110f\u110f", "\uffbb\uffbb\uffbb"):  # conjoining; half-width
        assert unicode_to_nfc(f"웃겨 {raw}") == "웃겨 ㅋㅋㅋ"  # 'funny, hahaha'


def test_what_only_looks_alike_is_left_alone():
    for text in ("½", "㎡", "①", "Ａ", "ﬁ"):
        assert unicode_to_nfc(text + unicodedata.normalize("NFD", "한")) == text + "한"  # 한: Korea


def test_a_syllable_of_old_korean_stays_whole():
    assert unicode_to_nfc("\u1112\u119e\u11ab") == "\u1112\u119e\u11ab"  # a vowel that no modern syllable has


# --------------------------------------------------------------------------------------------------------- 2. check

def verdict(text: str, limits=KO, lang: str = "ko") -> tuple[bool, str]:
    """`check` of one document, between two others."""
    others = prose(lang == "en", 2)
    return check([others[0], text, others[1]], limits, lang)[1]


def test_korean_rules_keep_korean():
    assert check(prose(0), KO) == [(True, "")] * 60 and check([], KO) == []


def test_english_rules_keep_english_and_no_korean():
    assert sum(kept for kept, _ in check(prose(1), EN, "en")) >= 57
    assert set(check(prose(0), EN, "en")) == {(False, "too_short"), (False, "wrong_language")}


NOISE = random.Random(1)
SYLLABLES = [chr(code) for code in range(0xAC00, 0xD7A4)]
COMMON = [c for c in SYLLABLES if len(c.encode("euc_kr")) == 2]  # the 2,350 that Korean words use
WORDS = "나무 바다 하늘 도시 기차 학생 친구 시장 다리 겨울 아침 음악".split()  # tree, sea, sky, city, train ...
LINES = "\n".join(f"{a}에서 본 {b} 그리고 {a}" for a, b in zip(WORDS, WORDS[1:], strict=False))  # no full stop
JUNK = {
    "too_short": "바 다\n\n" * 24,  # 48 characters: white space does not count
    "wrong_language": "Nobody in this town could say when the boats would be back. " * 3,
    "word_length": "와".join(WORDS * 3),  # without a blank
    "symbols": "나무 ★◆※ 바다 ◇◈☆ 하늘 ※※★ 기차 ☆☆◆ " * 3,
    "no_letters": "나무 12 바다 345 하늘 6789 기차 10 학생 112 친구 " * 3,
    "garbled": " ".join("".join(NOISE.choices(SYLLABLES, k=4)) for _ in range(60)),
    "function_words": " ".join("".join(NOISE.choices(COMMON, k=4)) for _ in range(200)),  # none ends like a word
    "line_ends": LINES,
    "repeated_lines": "\n".join([prose(0, 1)[0]] + ["지난주에 본 바다는 참 넓었다."] * 9),  # 'the sea was wide'
    "repeated_ngrams": prose(0, 1)[0] + " 지금 바로 클릭하면 사은품을 드립니다." * 30}  # 'click now for a free gift'


@pytest.mark.parametrize("reason", JUNK)
def test_each_limit_has_its_reason(reason):
    assert verdict(JUNK[reason]) == (False, reason)


def test_none_switches_a_rule_off():
    assert verdict(LINES, KO._replace(line_ends=None)) == (True, "")


def test_code_and_addresses_are_set_aside():
    code = "```\n" + "for i in range(10): print(i)  # {}[]()\n" * 40 + "```"
    assert verdict(prose(0, 1)[0] + "\n" + code + "\nhttps://example.com/a?b=c&d=e") == (True, "")


def test_hanja_is_korean():
    assert verdict("어제 先生이 東海에서 音樂을 들었다. 오늘 學生이 都市에서 册床을 샀다. " * 2,
                   KO._replace(same_ngrams={})) == (True, "")


# ------------------------------------------------------------------------------------------------------- 3. MinHash

def pair(rng: np.random.Generator, common: int, own: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of hashed 5-grams whose Jaccard similarity is common / (common + 2 * own)."""
    grams = rng.integers(0, 2**64, common + 2 * own, np.uint64)
    return np.sort(grams[:common + own]), np.sort(np.concatenate([grams[:common], grams[common + own:]]))


def test_jaccard_by_hand():
    assert duplicates.jaccard(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert duplicates.jaccard(np.array([1, 2]), np.array([3])) == 0 and duplicates.jaccard(*[np.array([7, 8])] * 2) == 1
    assert duplicates.jaccard(*pair(np.random.default_rng(1), 60, 20)) == 0.6


def test_bands_depend_on_the_set_alone():
    a, b = pair(np.random.default_rng(2), 30, 30)
    shuffled = np.random.default_rng(3).permutation(np.concatenate([a, a[:10]]))  # another order, some 5-grams twice
    together, alone = duplicates._bands([b, a, shuffled]), duplicates._bands([a])
    assert together.shape == (3, 14) and together.dtype == np.uint64
    assert (together[1] == alone[0]).all() and (together[2] == alone[0]).all() and (together[0] != alone[0]).any()


@pytest.mark.parametrize("common, own", [(60, 20), (80, 10), (90, 5)])  # similarities 0.6, 0.8 and 0.9
def test_two_documents_share_a_band_as_often_as_the_formula_says(common, own):
    rng, s = np.random.default_rng(common), common / 100
    bands = duplicates._bands([grams for _ in range(400) for grams in pair(rng, common, own)])
    agree = bands[::2] == bands[1::2]
    assert float(agree.mean()) == pytest.approx(s ** 8, abs=0.04)
    assert float(agree.any(axis=1).mean()) == pytest.approx(1 - (1 - s ** 8) ** 14, abs=0.08)


def test_a_near_copy_goes_and_the_longer_one_stays():
    texts = prose(0, 20)
    texts.append(texts[4] + " 끝.")  # 'The end.'
    kept = duplicates.near_duplicates(duplicates.band_hashes(texts).T, np.array([len(t) for t in texts]),
                                      texts.__getitem__)
    assert kept.tolist() == [i if i != 4 else 20 for i in range(21)]


# ------------------------------------------------------------------------------------------------- 4. decontaminate

LONG = "어제 저녁에 수빈이 접시를 바닥에 떨어뜨렸다. 그래서 접시가 산산이 깨졌다."  # 'Subin dropped a plate; it broke'
SHORT = "남자는 토스트기 전원을 껐다."  # 'the man switched the toaster off': 13 letters
TINY = "커피가 식었다."                # 'the coffee went cold': 6


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def test_25_characters_in_a_row_give_an_item_away():
    benchmark = decontaminate.Benchmark([LONG])
    squeezed = letters(LONG)
    for start in range(len(squeezed) - 24):
        assert benchmark.check(f"앞 {squeezed[start:start + 25]} 뒤") == (False, "benchmark_run")   # 'before', 'behind'
        assert benchmark.check(f"앞 {squeezed[start:start + 24]} 뒤") == (True, "")


def test_a_short_field_counts_only_as_a_whole():
    benchmark = decontaminate.Benchmark([LONG, SHORT])
    assert benchmark.check(f"그리고 {SHORT} 끝") == (False, "benchmark_field")
    assert benchmark.check("남자는 토스트기 전원을 켰다.") == (True, "")  # 'on', not 'off': one letter differs


def test_blanks_and_punctuation_hide_nothing():
    benchmark = decontaminate.Benchmark([LONG, SHORT])
    assert benchmark.check("-".join(letters(LONG))) == (False, "benchmark_run")
    assert benchmark.check(" ".join(letters(SHORT)) + "!") == (False, "benchmark_field")


def test_what_the_check_cannot_see():
    benchmark = decontaminate.Benchmark([TINY])
    assert benchmark.check(f"{TINY} {TINY}") == (True, "") and benchmark.check("") == (True, "")


def test_items_that_can_be_found_are_counted(tmp_path):
    (tmp_path / "COPA").mkdir()
    with open(tmp_path / "COPA" / "dev.tsv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([
            ["ID", "a column whose name is long enough to be looked for"], ["1", LONG, TINY], ["2", TINY, SHORT],
            ["3", TINY, TINY], ["4", "https://example.com/a/page/that/both/cite", TINY]])
    assert decontaminate.detectable(tmp_path) == {"COPA/dev": (2, 4)}
