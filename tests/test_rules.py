"""Step 4, rules: what they keep, what they remove, and under which name."""
import itertools
import random

import pytest
from sentences import NOUNS, korean

from cleaning import rules
from cleaning.limits import LIMITS
from cleaning.normalise import unicode_to_nfc

EVERY_PROFILE = list(itertools.product(("ko", "en"), ("web", "formal", "short")))
WEB, FORMAL, SHORT = (LIMITS["ko"][profile] for profile in ("web", "formal", "short"))
ENGLISH = (
    "The harbour was quiet when Anna came down to the boats. Her brother had gone out before "
    "dawn, and nobody in the town could say with certainty that he would be back for supper. "
    "She sat on a crate, counted 14 gulls, and wondered whether it had been wise to have let "
    "him take their only lamp."
)


def name_of(text: str, limits, lang: str = "ko") -> str:
    """The name of the rule that the text fails, "" if it is kept."""
    kept, reason = rules.check(text, limits, lang)
    assert kept == (None if reason else text)
    name, _, measured = reason.partition(": ")
    assert bool(name) == bool(measured)
    return name


def reasons(text: str, lang: str = "ko") -> set[str]:
    """The reasons for which the profiles remove the text, "" if a profile keeps it."""
    found = set()
    for limits in LIMITS[lang].values():
        found.add(name_of(text, limits, lang))
    return found


def test_rules_keep_text():
    rng = random.Random()
    prose = korean(rng, 30)
    hanja = "강아지 學生이 東海에서 音樂을 보았다. 어제 先生이 都市에서 册床을 샀다. " + korean(
        rng, 3
    )
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
        assert name_of(text, WEB) == reason
    assert name_of("ㅋ!", SHORT) == "too_short"
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
    limits = LIMITS["en"]["web"]
    assert rules.check(ENGLISH, limits, "en") == (ENGLISH, "")
    assert name_of(korean(rng, 30), limits, "en") == "wrong_language"
    words = ["".join(rng.choices("bcdfghjklmnprstvw", k=5)) for _ in range(100)]
    assert name_of(" ".join(words) + ".", limits, "en") == "function_words"


# ---- Text decoded with the wrong encoding -------------------------------------------------------


def broken(rng: random.Random, text: str, times: int) -> str:
    """The text with U+FFFD in place of some characters; the final full stop stays."""
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
    # A Korean file read as UTF-8, and a file that was saved after that and read again.
    read = korean(rng, 40).encode("cp949").decode("utf-8", "replace")
    saved = read.encode()
    for text in (read, saved.decode("cp949", "replace"), saved.decode("latin-1")):
        assert reasons(text, lang) == {"garbled"}


@pytest.mark.parametrize("lang", ["ko", "en"])
@pytest.mark.parametrize("written, read", [("utf-8", "latin-1"), ("utf-8", "cp1252"),
                                           ("cp949", "latin-1"), ("cp949", "cp1252")])
def test_korean_read_as_western_european_is_garbled(lang, written, read):
    text = korean(random.Random(), 40).encode(written).decode(read, "replace")
    # Cleaning drops control characters before the rules see the text.
    text = "".join(character for character in text if character.isprintable())
    assert reasons(text, lang) == {"garbled"}
    assert reasons(text.replace("\ufffd", ""), lang) == {"garbled"}


def test_languages_with_many_accents_are_not_garbled():
    icelandic = (
        "Þegar ég kom niður að höfninni í morgun sá ég að báturinn var farinn, og enginn í "
        "bænum vissi hvert bróðir minn hafði siglt. Ég settist niður og beið. "
    ) * 3
    french = (
        "L'été dernier, l'élève a été très étonné : à l'arrière de l'hôtel, où la forêt dévale "
        "vers la rivière, une chèvre dînait à côté d'un pêcheur. "
    ) * 3
    for text in (icelandic, french, ENGLISH + " Péléa, Pïlëuwimë, naïve café"):
        assert "garbled" not in reasons(text, "en")
    for name in ("Péléa", "Pïlëuwimë", "Ill Niño"):
        assert "garbled" not in reasons(name, "en")


# ---- Chinese and Japanese -----------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    # 'In the morning the ships came back into the harbour; the people waited on the quay ...'
    "早上船回到了港口，人们在码头上等着他们的家人。没有人知道昨天夜里发生了什么事。" * 3,
    "早上船回到了港口，人們在碼頭上等著他們的家人。沒有人知道昨天夜裡發生了什麼事。" * 3,
    "朝になって船が港に帰ってきた。人々は岸壁で家族を待っていた。"
    "夜に何があったのか誰も知らない。" * 3,
    "昨夜未明、東京都内某所於火災発生。消防隊出動、負傷者数名確認。原因調査中。" * 3,
    # the same, with a link to the Korean page
    "早上船回到了港口，人们在码头上等着他们的家人。没有人知道昨天夜里发生了什么事。" * 3
    + " 한국어",
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
    # 나랏말ᄊᆞ미, with vowels that modern Korean has lost, and a syllable with a letter of
    # Extended-A
    old = ("나랏말\u110a\u119e미 듕귁에 달아 문\u110d\u119e와로 서르 "
           "\u1109\u119e\u1106\u119e디 아니\u1112\u119e\u11af\u110a\u1175 ")
    assert "wrong_language" not in reasons(unicode_to_nfc(old * 3))
    assert rules.kind_of("\ua964") == rules.kind_of("\ud7b0") == rules.HANGUL


# ---- What was measured --------------------------------------------------------------------------


@pytest.mark.parametrize("text, limits, reason", [
    ("바 다\n", WEB, "too_short: 2 characters < 50"),
    ("바다를 보았다. " * 9 + "\ufffd" * 9, WEB, "garbled: broken 0.1 of the characters > 0.01"),
    # 'Hello' in UTF-8, read as Latin-1: a third of its characters are not letters.
    ("¾È³çÇÏ¼¼¿ä" * 9, WEB, "garbled: accented 1 of the letters > 0.3"),
    ("뷁뷁뷁 " * 30, WEB, "garbled: rare syllables 0.989 of the Hangul > 0.2"),
    ("Nobody saw the sea today. " * 3, WEB,
     "wrong_language: Hangul 0 of Hangul and hanja < 0.05"),
    ("Nobody saw the 바다 today. " * 3, WEB,
     "wrong_language: Hangul and hanja 0.105 of the letters < 0.3"),
    ("나무바다" * 15, WEB, "word_length: 60 characters per word > 12"),
    ("나 무 " * 30, WEB, "word_length: 1 characters per word < 1.5"),
    ("나무 ★◆※ 바다 ◇◈☆ " * 6, WEB, "symbols: 0.6 of the characters > 0.4"),
    ("나무 12 바다 345 하늘 6789 " * 5, WEB, "no_letters: 0.5 of the words > 0.209"),
    ("나무 바위 구름 " * 9, WEB, "function_words: 0 of the words < 0.15"),
    ("나무가 바다에\n" * 9, WEB, "line_ends: 0 of the lines < 0.062"),
    ("나무가 바다에.\n" * 9, WEB, "repeated_lines: 0.889 of the lines > 0.374"),
    ("나무가 바다에 산다. " * 9, WEB, "repeated_ngrams: most frequent 2-gram 0.519 > 0.282"),
])
def test_a_reason_says_what_was_measured_and_the_limit(text, limits, reason):
    assert rules.check(text, limits) == (None, reason)


def test_repeated_ngrams_say_of_which_length():
    text = korean(random.Random(1), 12)
    assert rules.check(f"{text} {text}", WEB)[1] == "repeated_ngrams: repeated 5-grams 0.5 > 0.201"
    limits = WEB._replace(repeated_ngrams={10: 0.3})
    assert (
        rules.check(f"{text} {text}", limits)[1] == "repeated_ngrams: repeated 10-grams 0.5 > 0.3"
    )


def test_a_measurement_is_never_shown_as_its_limit():
    assert rules.shown(0.12704, 0.127) == "0.12704"
    assert rules.shown(12.0001, 12) == "12.0001"
    assert rules.shown(1234.5, 12) == "1230"


def test_a_rounded_measurement_stays_on_its_side_of_the_limit():
    rng = random.Random(0)
    for _ in range(2000):
        limit = float(f"{rng.random():.{rng.randint(1, 6)}g}")
        value = limit + rng.choice([-1, 1]) * 10 ** rng.uniform(-8, -1)
        rounded = float(rules.shown(value, limit))
        assert (rounded > limit, rounded < limit) == (value > limit, value < limit)


def test_none_turns_any_rule_off():
    off = LIMITS["ko"]["web"]._replace(
        characters=1, own_letters=None, word_length=(None, None), symbols=None, no_letters=None,
        garbled=None, function_words=None, line_ends=None, repeated_lines=None, frequent_ngrams={},
        repeated_ngrams={},
    )
    rng = random.Random(1)
    for text in ("a", "뷁", "★", "1 2 3", "Nobody saw it.", "나무" * 99, "나무 " * 99,
                 korean(rng, 2) * 30):
        assert name_of(text, off) == name_of(text, off, "en") == ""
    assert rules.check("", off) == (None, "too_short: 0 characters < 1")


# ---- What only looks repetitive -----------------------------------------------------------------

# A long name in short articles: 'The Duchy of Upper Danmore is a duchy on the shore of the lake
# ...'
STUBS = [
    "2031년 동계 대회 북아리아 공화국 선수단\n\n2031년 동계 대회 북아리아 공화국 선수단은 "
    "남해에서 열린 2031년 동계 "
    "대회에 참가한 동계 대회 북아리아 공화국 선수단이다.",
    "윗단모어 호숫가 자치 공국\n\n윗단모어 호숫가 자치 공국은 1920년에 세워진 나라이다. 1923년에 "
    "윗단모어 인민국은 "
    "윗단모어 호숫가 자치 공국으로 이름을 바꾸었다. 윗단모어 호숫가 자치 공국은 한 해 동안 있었고 "
    "사람들은 물고기를 잡으며 "
    "살았다. 이듬해 봄에 윗단모어 호숫가 자치 공국은 이웃한 산골과 들판과 바닷가의 세 나라로 "
    "나뉘었다.",
    # a line about the list is under both of its headings
    "1994년 신인 지명\n\n1994년 신인 선수 지명회의는 두 번에 나누어 열렸다.\n1차 지명.\n※ "
    "가로줄이 그어진 이름은 구단이 "
    "그 선수를 포기했음을 뜻한다.\n2차 지명.\n순서는 지난해 순위의 역순이었다.\n※ 가로줄이 그어진 "
    "이름은 구단이 그 선수를 "
    "포기했음을 뜻한다.",
]


@pytest.mark.parametrize("text", STUBS)
def test_a_short_text_may_name_its_subject_and_repeat_a_sentence(text):
    assert rules.check(text, WEB) == (text, "")
    assert rules.check(text, FORMAL) == (text, "")


def test_a_short_english_text_may_name_its_subject():
    text = (
        "Tour of the Upper Lakes\n\nThe 1929 Tour of the Upper Lakes was the sixth edition of the "
        "Tour of the Upper Lakes cycle race and was held from 7 August to 11 August 1929. The "
        "race started in Danmore and finished in Ellen. The race was won by Hal Merrow, who came "
        "from a village on the shore and had never ridden in it before."
    )
    assert rules.check(text, LIMITS["en"]["web"], "en") == (text, "")


def test_commands_do_not_make_a_korean_manual_repetitive():
    commands = ("sudo apt update\nsudo apt install python3-dev python3-pip\n"
                "python3 -m venv venv\npip install --upgrade pip\n")
    parts = []
    for seed in range(4):
        sentences = korean(random.Random(seed), 9).replace(". ", ".\n")
        parts.append(f"{sentences}\n\n{commands}")
    manual = "\n".join(parts)
    assert "repeated_ngrams" in rules.check_words(manual.split(), WEB)
    assert rules.check(manual, WEB) == (manual, "")
    # A page that is mostly such lines is judged by them.
    mostly = f"{korean(random.Random(1), 6)}\n{commands * 9}"
    assert "repeated_ngrams" in rules.check_ngrams(mostly, mostly.split(), WEB)


def spam(rng: random.Random, kind: str, n: int) -> str:
    """About n words of something that says the same again and again."""
    if kind == "keyword":  # 'Gangnam restaurants' between other words
        return " ".join(
            f"강남 맛집 {rng.choice(NOUNS)}이 {rng.choice(NOUNS)}을" for _ in range(n // 4)
        )
    if kind == "list":  # 'free download of ...'
        return " ".join(f"{rng.choice(NOUNS)} 무료 다운로드." for _ in range(n // 3))
    if kind == "phrase":  # 'click now for a free gift'
        return " ".join(["지금 바로 클릭하면 사은품을 드립니다."] * (n // 5))
    if kind == "phrase between":
        return " ".join(
            f"{korean(rng, 1)} 지금 바로 클릭하면 사은품을 드립니다." for _ in range(n // 10)
        )
    if kind == "menu":  # the menu of a page is above it and below it
        menu = " ".join(f"{rng.choice(NOUNS)}을 찾는 곳" for _ in range(n // 6))
        return f"{menu} {menu}"
    return " ".join([korean(rng, max(1, n // 15))] * 3)  # a text three times


@pytest.mark.parametrize("n", [60, 100, 300])
@pytest.mark.parametrize("kind", ["keyword", "list", "phrase", "phrase between", "menu", "text"])
def test_what_says_the_same_again_and_again_is_caught(kind, n):
    for seed in range(9):
        text = spam(random.Random(seed), kind, n)
        assert rules.check_ngrams(text, text.split(), WEB)


# ---- What people type ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "최고!!!",                                     # 'the best'
    "글쎄...",                                     # 'well ...'
    "재밌어요~~~ ♥♥♥♥♥",                           # 'it is fun'
    # 'acted well ...'
    "배우들연기도좋고이야기도탄탄해서시간가는줄모르고끝까지재미있게잘보고갑니다",
    "좀 더 하지",                                  # 'they might have done more'
])
def test_reviews_are_kept_as_people_type_them(text):
    assert rules.check(text, SHORT) == (text, "")


@pytest.mark.parametrize("text, reason", [
    ("흠.....", "symbols"),                        # 'hm'
    ("좋다" + "♥" * 30, "symbols"),
    ("최 고 다 최 고 다", "word_length"),           # spelled apart
    ("배우들연기도좋고이야기도탄탄해서" * 10, "word_length"),  # a document that lost its spaces
    ("ㅋ!", "too_short"),
    ("사실 우리 같은 사람들이 " * 20, "repeated_ngrams"),
])
def test_reviews_that_say_nothing_are_removed(text, reason):
    assert name_of(text, SHORT) == reason


def test_short_english_may_have_short_words_or_one_long_word():
    for text in ("And so am I, I am!", "It is as good as it is.", "Unquestionably!"):
        assert rules.check(text, LIMITS["en"]["short"], "en") == (text, "")
