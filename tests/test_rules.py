"""Step 3, rules: what they keep, what they remove, and under which name."""
import itertools
import random

from sentences import NOUNS, korean

from cleaning import rules


def test_rules_keep_text():
    rng = random.Random()
    web, formal, short = (rules.LIMITS["ko"][profile] for profile in ("web", "formal", "short"))
    prose = korean(rng, 30)
    hanja = "강아지 學生이 東海에서 音樂을 보았다. 어제 先生이 都市에서 册床을 샀다. " + korean(rng, 3)
    code = prose + "\n```\n" + "for i in range(10): print(i)  # english and symbols {}[]()\n" * 40 + "```\n"
    statute = "\n".join(f"제{i}조 {korean(rng, 1)}\n  ① 다음 각 호와 같다.\n  1. {korean(rng, 1)}" for i in range(9))
    mixed = prose + " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(250)) + "."  # three quarters Latin
    for text in (prose, hanja, code, mixed):
        assert rules.check([text], web) == [(True, "")], text
    assert rules.check([statute], formal) == [(True, "")]
    assert rules.check(["재밌어요ㅋㅋㅋ!!!"], short) == [(True, "")]  # 'it is fun'


def test_a_document_has_the_same_answer_in_any_company():
    rng = random.Random()
    alphabet = ["다 ", "가", "을 ", "a", "the ", " ", "\n", ". ", "1", "★", "`", "$", "<b>", "漢", "뷁"]
    texts = [korean(rng, rng.randrange(1, 40)) + "".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(60)]
    texts += ["".join(rng.choices(alphabet, k=rng.randrange(1, 400))) for _ in range(60)] + [" ", "", korean(rng, 3000)]
    texts += [korean(rng, 2) * rng.randrange(1, 9) for _ in range(20)]
    rng.shuffle(texts)
    for lang, profile in itertools.product(("ko", "en"), ("web", "formal", "short")):
        limits = rules.LIMITS[lang][profile]
        answers = rules.check(texts, limits, lang)
        assert answers == [rules.check([text], limits, lang)[0] for text in texts]
        assert {kept for kept, _ in answers} == {True, False} or lang == "en"
    assert rules.check([], limits, "en") == []


def test_rules_name_what_is_wrong():
    rng = random.Random()
    web, formal, short = (rules.LIMITS["ko"][profile] for profile in ("web", "formal", "short"))
    prose = korean(rng, 12)
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    common = [c for c in syllables if len(c.encode("euc_kr")) == 2]
    junk = {
        "too_short": korean(rng, 1), "wrong_language": "This page is in English. " * 20, "word_length": "가나다라" * 50,
        "symbols": "가 " + "★☆ 나 ◆◇◈ 다 ※※ " * 30, "no_letters": korean(rng, 5) + " 1234 5678" * 40,
        "garbled": " ".join("".join(rng.choices(syllables, k=4)) for _ in range(60)),
        "function_words": " ".join("".join(rng.choices(common, k=4)) for _ in range(200)),
        "line_ends": "\n".join(f"{rng.choice(NOUNS)}이 {rng.choice(NOUNS)}을" for _ in range(60)),
        "repeated_lines": "\n".join([prose] + [korean(random.Random(1), 1)] * 30),
        "repeated_ngrams": prose + " 지금 바로 클릭하면 사은품을 드립니다." * 30,  # 'click now for a free gift'
    }
    for reason, text in junk.items():
        assert rules.check([text], web) == [(False, reason)], text
    assert rules.check(["ㅋ!"], short) == [(False, "too_short")]
    assert rules.check([junk["line_ends"]], formal) == [(True, "")]


def test_english_rules():
    rng = random.Random()
    limits = rules.LIMITS["en"]["web"]
    prose = ("The harbour was quiet when Anna came down to the boats. Her brother had gone out before dawn, and nobody "
             "in the town could say with certainty that he would be back for supper. She sat on a crate, counted 14 "
             "gulls, and wondered whether it had been wise to have let him take their only lamp.")
    assert rules.check([prose], limits, "en") == [(True, "")]
    assert rules.check([korean(rng, 30)], limits, "en") == [(False, "wrong_language")]
    words = ["".join(rng.choices("bcdfghjklmnprstvw", k=5)) for _ in range(100)]
    assert rules.check([" ".join(words) + "."], limits, "en") == [(False, "function_words")]
