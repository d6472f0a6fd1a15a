"""Step 1, normalise: one spelling, against expectations written by hand and on random strings."""
import random
import time
import unicodedata

import pytest

from cleaning.normalise import normalise_text


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


# ---- By hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw, clean", [
    (unicodedata.normalize("NFD", "한글"), "한글"),
    # NFKC would change every one of them.
    ("½ ㎡ ① ㅋ ㅠ Ａ", "½ ㎡ ① ㅋ ㅠ Ａ"),
    # Half-width, and conjoining jamo alone.
    ("\uffa1\uffc2 \u1100 \u1175 \u11ab", "ㄱㅏ ㄱ ㅣ ㄴ"),
    # A syllable of old Korean stays whole.
    ("\u1112\u119e\u11ab", "\u1112\u119e\u11ab"),
    ("가\u200b나\u00ad다\ufeff\x07", "가나다"),
    ("가\u00a0나\u3000다\u2028라\r\n마\r바", "가 나 다\n라\n마\n바"),
    ("👨\u200d👩\u200d👧 가\u200d나", "👨\u200d👩\u200d👧 가나"),
    ("ㅋㅋㅋㅋㅋㅋ ㅠㅜㅠㅜㅠㅜㅠㅜㅠㅜ 와!!!!!", "ㅋㅋㅋ ㅠㅜㅠㅜㅠㅜ 와!!!"),
    # The run shows only when the invisible is gone.
    ("ㅋㅋ\u200bㅋㅋ", "ㅋㅋㅋ"),
    ("a  \n\n\n\n\nb\t\n", "a\n\nb"),
    ("##### h\n-----\n| a |", "##### h\n-----\n| a |"),
    ("5 &lt; 6 &amp;&amp; a&copy=b &#44032;", "5 < 6 && a&copy=b 가"),
    ("a < b and c > d", "a < b and c > d"),                       # not HTML
])
def test_normalise(raw, clean):
    assert normalise_text(raw) == (clean, "")
    assert normalise_text(clean)[0] == clean


def test_a_text_of_invisible_characters_is_empty():
    for raw in ("", " \n", "\u200b&nbsp;", "\u115f\u1160", "\ue000"):
        assert normalise_text(raw) == (None, "empty")


@pytest.mark.parametrize("block", [
    "셔\u11f0",               # a precomposed syllable and an old trailing consonant (Unicode 3.12)
    "간\ud7cb",
    "\ua964\u1161\u11ab",     # Jamo Extended-A leads
    "\u1100\ud7b0",           # a vowel of Extended-B
    "\u1112\u119e\u11ab\u302e",           # with a tone mark
    "\u1107\u1109\u119e",                 # two leading consonants
    "由\u115f\u1175\u11ab뎌",             # a syllable without leading consonant, after hanja
])
def test_syllable_blocks_stay_whole(block):
    assert normalise_text(block) == (block, "")


@pytest.mark.parametrize("raw, clean", [
    ("\u110f\u1160\u110f\u1160", "ㅋㅋ"),   # a filler in the vowel's place
    ("\u115f\u1161", "ㅏ"),                # in the leading consonant's
    ("\u115f\u1160\u11a8", "ㄱ"),          # in both
    ("가\u115f나\u1160다", "가 나 다"),     # without a letter: a space
    ("아\u1161\u1161", "아ㅏㅏ"),           # NFKC of what people type
    ("간\u11ab", "간ㄴ"),                  # a modern consonant behind one is a letter
    ("\ua972 \ud7e7 \u11a2", "\ua972 \ud7e7 \u11a2"),  # letters of old Korean without a twin
])
def test_jamo_outside_syllables_are_the_ones_people_type(raw, clean):
    assert normalise_text(raw) == (clean, "")


@pytest.mark.parametrize("raw, clean", [
    ("&#55357;&#56832; &#xD83D;&#xDE00;", "😀 😀"),  # surrogate pairs
    ("a&#55357;b\ud83d", "a\ufffdb\ufffd"),          # halves
    ("a&amp;nbsp;b AT&amp;amp;T", "a b AT&T"),       # escaped twice
    ("&frac12; &#150; &#x2019;", "½ – ’"),           # a digit in the name; cp1252; hexadecimal
    ("&notit; &copyfoo; &nbsp", "&notit; &copyfoo; &nbsp"),  # no such names, no semicolon
    ("a&#0;b&#1;c&#12;d", "a\ufffdbc\nd"),
    ("&l\u200bt; &am&shy;p;lt;", "< <"),             # hidden by what is dropped
    ("끝.&lt;br&gt;\n첫째 &lt;BR /&gt; 둘째&lt;/br&gt;", "끝.\n첫째\n둘째"),
    ("`&lt;` is <\n```html\n&amp;lt;\n```\n&lt;", "`&lt;` is <\n```html\n&amp;lt;\n```\n<"),
    ("~~~html\r\n&amp;lt;\r\n~~~\r\n&lt;", "~~~html\n&amp;lt;\n~~~\n<"),
    # No code, nothing closes it.
    ("가~~~\n&lt;\n나~~~ `&lt;\n~~~\n&lt;", "가~~~\n<\n나~~~ `<\n~~~\n<"),
])
def test_entities(raw, clean):
    assert normalise_text(raw) == (clean, "")


def test_entities_nested_without_end_lose_their_ampersands():
    text = "2"
    for wrap in ["&#5", "&#5", "&#5", "&#4", "&#5"] * 20:  # 2, 4, 6, 8, 0, 2, ...
        text = f"{wrap}{text};"
    once, _ = normalise_text(text)
    assert "&" not in once
    assert normalise_text(once) == (once, "")


def test_private_use_is_mapped_or_dropped_and_reported():
    assert normalise_text("\U000f0854님의 침묵\U000f0855") == ("『님의 침묵』", "private_use")
    assert normalise_text("\U000f02b1 개요 \U000f02c4") == ("① 개요 ⑳", "private_use")
    assert normalise_text("a\uf8ff \uf0c9b\U0010fffd&#xE0BC;") == ("a b", "private_use")


@pytest.mark.parametrize("raw, clean", [
    ("葛\U000e0100 a\ufe01\ufdd0\uffff\U000e0041", "葛 a"),  # variants, noncharacters, tags
    ("\ufff9漢字\ufffa한자\ufffb", "漢字한자"),               # notes between the lines
    ("❤\ufe0f ❤\ufe0e a\ufe0f 1\ufe0f\u20e3", "❤\ufe0f ❤\ufe0e a 1\ufe0f\u20e3"),
    ("👍🏽 👨🏽\u200d🚀 👨\u200d", "👍🏽 👨🏽\u200d🚀 👨"),
    ("🏴\U000e0067\U000e0062\U000e007f", "🏴\U000e0067\U000e0062\U000e007f"),
    ("\uf914\uf90a", "樂金"),                                # compatibility hanja
    ("a\x0bb\x0cc\x85d\u2029e", "a\nb\nc\nd\ne"),
])
def test_other_characters(raw, clean):
    assert normalise_text(raw) == (clean, "")


def test_a_page_whose_tags_are_escaped_is_a_page():
    raw = "&lt;p&gt;안녕하세요.&lt;/p&gt;&lt;p&gt;&amp;nbsp;반갑습니다.&lt;/p&gt;"
    assert [line.strip() for line in normalise_text(raw)[0].split("\n\n")] == [
        "안녕하세요.",
        "반갑습니다.",
    ]


def test_a_page_about_tags_is_not_a_page_the_second_time():
    once, _ = normalise_text("<html><body><p>&lt;p&gt; begins a paragraph.</p></body></html>")
    assert "p> begins a paragraph." in once
    assert normalise_text(once) == (once, "")


# ---- On random strings --------------------------------------------------------------------------

NASTY = [
    # Jamo of all kinds, syllables, fillers, marks that combine, characters that NFC changes.
    *"\u1100\u110f\u1161\u119e\u11a2\u11a8\u11aa\u11f0\ua964\ua972\ud7b0\ud7cb\ud7e7\u115f\u1160",
    *"\u3164\uffa0\uffa1\uffc2가셔간ㅋ\u302e\u0301\u0338\u037e\u1fef\u212aé\uf914",
    # Runs.
    "ㅋㅋㅋㅋ", "ㅠㅜ", "ㅠㅜㅠㅜㅠㅜㅠㅜ", "!", "!!!!!", "♥♥♥♥", "~~~~",
    # Emoji and what they are made of, invisible and private characters, surrogates.
    *"\u200d👨👩🏽\ufe0f\ufe0e❤🏴\U000e0067\U000e007f1#\u20e3",
    *"\u200b\u00ad\ufeff\ue000\U000f0854\uf8ff\ufdd0\uffff\ud83d\ude00\x00\x07",
    # Entities, and parts that may become some.
    "&", "amp;", "&amp;", "&amp;amp;nbsp;", "&lt;", "&gt;", "lt;", *"lt;x4", "&#", "&#52;",
    "&#55357;",
    "&#56832;", "&#x0A;", "&#13;", "&#96;", "&grave;", "&shy;", "&zwj;", "&ZeroWidthSpace;",
    "&#xE000;", "&#4352;", "&Tab;", "&NewLine;", "&nbsp",
    # White space, tags and code.
    *"\r\n \t\u00a0\u2028\x0b\x85\x1c", "\r\n", "\n\n\n",
    "<", "<p>", "</p>", "<div", "<html>", "<!doctype html>", "<br>", "<pre>", "</pre>", "/", ">",
    "<article>", "</article>", "<script>", "<!--", "-->", "&lt;p&gt;", "&lt;html&gt;",
    "`", "``", "```", "```\n", "~~~", "\n~~~\n", "~", "a",
]


def test_twice_is_once():
    rng = random.Random(0)
    for _ in range(4000):
        alphabet = rng.sample(NASTY, rng.choice([4, 8, 20, len(NASTY)]))
        raw = "".join(rng.choices(alphabet, k=rng.choice([5, 12, 30, 80])))
        once, _ = normalise_text(raw)
        if once is not None:
            assert normalise_text(once) == (once, ""), ascii(raw)


def code_points(*ranges: tuple[int, int]) -> list[str]:
    return [chr(code) for first, last in ranges for code in range(first, last + 1)]


def test_whole_syllables_are_canonically_the_same():
    rng = random.Random(0)
    leading = code_points((0x1100, 0x115E), (0xA960, 0xA97C))
    vowels = code_points((0x1161, 0x11A7), (0xD7B0, 0xD7C6))
    trailing = code_points((0x11A8, 0x11FF), (0xD7CB, 0xD7FB))
    modern = code_points((0xAC00, 0xD7A3))
    for _ in range(1500):
        text = ""
        for _ in range(10):
            if rng.random() < 0.5:
                text += rng.choice(modern)
            else:
                text += rng.choice(leading) + rng.choice(vowels)
                text += rng.choice([rng.choice(trailing), ""])
            text += rng.choice(["", "", "\u302e", "\u302f", " 가"])
        for raw in (text, nfd(text)):
            assert nfd(normalise_text(raw)[0]) == nfd(text), ascii(text)


# ---- Time ---------------------------------------------------------------------------------------


def test_a_run_of_lone_jamo_takes_linear_time():
    started = time.process_time()
    assert normalise_text("\u1100" * 60_000 + "\u1161")[0] == "ㄱㄱㄱ가"
    assert time.process_time() - started < 1


@pytest.mark.parametrize("raw", [
    "\u1161" * 60_000, "\u115f" + "\u1161" * 60_000, "\u115f" * 60_000, "a" + " " * 60_000 + "b",
    "&" * 60_000, "&amp;" * 20_000, "&" + "amp;" * 20_000, "` " * 30_000, "```\n" * 20_000,
    "<" * 60_000, "~~~\n" * 20_000, "\n ~~~" * 20_000, "~~~\n" + "~~\n" * 20_000, "`\n" * 30_000,
    "👨\u200d" * 20_000, "🏴" + "\U000e0067" * 60_000, "\ud83d" * 60_000, "ㅠㅜ" * 30_000,
    " ".join("`" * n for n in range(300)),
], ids=lambda raw: ascii(raw)[:12])
def test_long_runs_are_fast(raw):
    started = time.process_time()
    normalise_text(raw)
    assert time.process_time() - started < 1
