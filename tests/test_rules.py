"""Step 3, rules: what they keep, what they remove, and under which name."""
import itertools
import random

import pytest
from sentences import NOUNS, korean

from cleaning import rules
from cleaning.normalise import unicode_to_nfc

EVERY_PROFILE = list(itertools.product(("ko", "en"), ("web", "formal", "short")))
WEB, FORMAL, SHORT = (rules.LIMITS["ko"][profile] for profile in ("web", "formal", "short"))
ENGLISH = ("The harbour was quiet when Anna came down to the boats. Her brother had gone out before "
           "dawn, and nobody in the town could say with certainty that he would be back for supper. "
           "She sat on a crate, counted 14 gulls, and wondered whether it had been wise to have let "
           "him take their only lamp.")


def reasons(text: str, lang: str = "ko") -> set[str]:
    """The reasons for which the profiles remove the text, "" where one keeps it."""
    found = set()
    for limits in rules.LIMITS[lang].values():
        kept, reason = rules.check(text, limits, lang)
        assert kept == (None if reason else text)
        found.add(reason)
    return found


def test_rules_keep_text():
    rng = random.Random()
    prose = korean(rng, 30)
    hanja = "강아지 學生이 東海에서 音樂을 보았다. 어제 先生이 都市에서 册床을 샀다. " + korean(rng, 3)
    lines = "for i in range(10): print(i)  # english and symbols {}[]()\n" * 40
    code = f"{prose}\n```\n{lines}```\n"
    other_code = f"{prose}\n~~~python\n{lines}~~~\n"
    latin = " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(250))
    mixed = f"{prose}{latin}."  # three quarters Latin
    for text in (prose, hanja, code, other_code, mixed):
        assert rules.check(text, WEB) == (text, "")
    articles = []
    for i in range(9):
        articles.append(f"제{i}조 {korean(rng, 1)}\n  ① 다음 각 호와 같다.\n  1. {korean(rng, 1)}")
    statute = "\n".join(articles)
    assert rules.check(statute, FORMAL) == (statute, "")
    review = "재밌어요ㅋㅋㅋ!!!"  # 'it is fun'
    assert rules.check(review, SHORT) == (review, "")


def test_rules_name_what_is_wrong():
    rng = random.Random()
    prose = korean(rng, 12)
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    common = [c for c in syllables if len(c.encode("euc_kr")) == 2]
    menu = [f"{rng.choice(NOUNS)}이 {rng.choice(NOUNS)}을" for _ in range(60)]
    junk = {
        "too_short": korean(rng, 1),
        "wrong_language": "This page is in English. " * 20,
        "word_length": "가나다라" * 50,
        "symbols": "가 " + "★☆ 나 ◆◇◈ 다 ※※ " * 30,
        "no_letters": korean(rng, 5) + " 1234 5678" * 40,
        "garbled": " ".join("".join(rng.choices(syllables, k=4)) for _ in range(60)),
        "function_words": " ".join("".join(rng.choices(common, k=4)) for _ in range(200)),
        "line_ends": "\n".join(menu),
        "repeated_lines": "\n".join([prose] + [korean(random.Random(1), 1)] * 30),
        # 'Click now for a free gift.'
        "repeated_ngrams": prose + " 지금 바로 클릭하면 사은품을 드립니다." * 30,
    }
    for reason, text in junk.items():
        assert rules.check(text, WEB) == (None, reason)
    assert rules.check("ㅋ!", SHORT) == (None, "too_short")
    assert rules.check(junk["line_ends"], FORMAL) == (junk["line_ends"], "")


def test_every_text_has_an_answer():
    rng = random.Random()
    alphabet = ["다 ", "가", "을 ", "a", "the ", " ", "\n", ". ", "1", "★", "`", "$", "<b>", "漢",
                "뷁", "\ufffd", "é", "[[", "]]", "{{", "||", "-->", " : ", "1:02"]
    texts = ["", " ", "\n", korean(rng, 3000)]
    for _ in range(100):
        noise = "".join(rng.choices(alphabet, k=rng.randrange(400)))
        texts.append(noise)
        texts.append(korean(rng, rng.randrange(1, 40)) + noise)
        texts.append(korean(rng, 2) * rng.randrange(1, 9))
    for text in texts:
        assert reasons(text, "ko") and reasons(text, "en")
    assert "" in reasons(texts[3]) and "" not in reasons("")


def test_english_rules():
    rng = random.Random()
    limits = rules.LIMITS["en"]["web"]
    assert rules.check(ENGLISH, limits, "en") == (ENGLISH, "")
    assert rules.check(korean(rng, 30), limits, "en") == (None, "wrong_language")
    words = ["".join(rng.choices("bcdfghjklmnprstvw", k=5)) for _ in range(100)]
    assert rules.check(" ".join(words) + ".", limits, "en") == (None, "function_words")


# ---- Text read in a wrong encoding --------------------------------------------------------------


def broken(rng: random.Random, text: str, times: int) -> str:
    """The text with U+FFFD in place of some of its characters; the full stop at its end stays."""
    characters = list(text)
    for i in rng.sample(range(len(text) - 1), times):
        characters[i] = "\ufffd"
    return "".join(characters)


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_many_broken_bytes_are_garbled_and_two_are_not(lang):
    rng = random.Random()
    text = korean(rng, 40) if lang == "ko" else ENGLISH
    for times in (1, 2):
        assert reasons(broken(rng, text, times), lang) == {""}
    for times in (len(text) // 20, len(text) // 3, len(text) - 1):
        assert reasons(broken(rng, text, times), lang) == {"garbled"}
    # A Korean file read as UTF-8, and a file that somebody saved after that, read again.
    read = korean(rng, 40).encode("cp949").decode("utf-8", "replace")
    saved = read.encode()
    for text in (read, saved.decode("cp949", "replace"), saved.decode("latin-1")):
        assert reasons(text, lang) == {"garbled"}


@pytest.mark.parametrize("lang", ["ko", "en"])
@pytest.mark.parametrize("written, read", [("utf-8", "latin-1"), ("utf-8", "cp1252"),
                                           ("cp949", "latin-1"), ("cp949", "cp1252")])
def test_korean_read_as_western_european_is_garbled(lang, written, read):
    text = korean(random.Random(), 40).encode(written).decode(read, "replace")
    # Cleaning drops control characters before it comes to the rules.
    text = "".join(character for character in text if character.isprintable())
    assert reasons(text, lang) == {"garbled"}
    assert reasons(text.replace("\ufffd", ""), lang) == {"garbled"}


def test_languages_with_many_accents_are_not_garbled():
    icelandic = ("Þegar ég kom niður að höfninni í morgun sá ég að báturinn var farinn, og enginn í "
                 "bænum vissi hvert bróðir minn hafði siglt. Ég settist niður og beið. ") * 3
    french = ("L'été dernier, l'élève a été très étonné : à l'arrière de l'hôtel, où la forêt dévale "
              "vers la rivière, une chèvre dînait à côté d'un pêcheur. ") * 3
    for text in (icelandic, french, ENGLISH + " Péléa, Pïlëuwimë, naïve café"):
        assert "garbled" not in reasons(text, "en")
    for name in ("Péléa", "Pïlëuwimë", "Ill Niño"):
        assert "garbled" not in reasons(name, "en")


# ---- Chinese and Japanese -----------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    # 'In the morning the ships came back into the harbour; the people waited on the quay ...'
    "早上船回到了港口，人们在码头上等着他们的家人。没有人知道昨天夜里发生了什么事。" * 3,
    "早上船回到了港口，人們在碼頭上等著他們的家人。沒有人知道昨天夜裡發生了什麼事。" * 3,
    "朝になって船が港に帰ってきた。人々は岸壁で家族を待っていた。夜に何があったのか誰も知らない。" * 3,
    "昨夜未明、東京都内某所於火災発生。消防隊出動、負傷者数名確認。原因調査中。" * 3,
    # the same, with a link to the Korean page
    "早上船回到了港口，人们在码头上等着他们的家人。没有人知道昨天夜里发生了什么事。" * 3 + " 한국어",
    "好看！非常好看。",
])
def test_chinese_and_japanese_are_another_language_in_every_profile(text):
    found = reasons(text)
    assert "wrong_language" in found and found <= {"wrong_language", "too_short"}


def test_korean_with_much_hanja_is_korean():
    quotation = "春有百花秋有月 夏有凉風冬有雪 若無閑事挂心頭 便是人間好時節 " * 4
    around = "스승은 이 시를 좋아하여 아침마다 읊었다고 한다. 그 뜻은 다음과 같다고 전해진다."
    particles = "各民族의 文化가 發達함에 從하야 靑年의 敎育이 더욱 必要하게 되엿다. " * 4
    for text in (quotation + around, particles):
        assert "wrong_language" not in reasons(text)
    assert rules.check("예찬인생(禮讚人生).", SHORT)[1] == ""


def test_old_hangul_is_korean():
    # 나랏말ᄊᆞ미, with vowels that modern Korean has lost, and a syllable with a letter of Extended-A
    old = "나랏말\u110a\u119e미 듕귁에 달아 문\u110d\u119e와로 서르 \u1109\u119e\u1106\u119e디 아니\u1112\u119e\u11af\u110a\u1175 "
    assert "wrong_language" not in reasons(unicode_to_nfc(old * 3))
    assert rules.kind_of("\ua964") == rules.kind_of("\ud7b0") == rules.HANGUL
