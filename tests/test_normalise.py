"""Step 1, normalise: one spelling, against expectations written by hand."""
import time
import unicodedata

import pytest

from cleaning import normalise


@pytest.mark.parametrize("raw, clean", [
    (unicodedata.normalize("NFD", "한글"), "한글"),
    ("½ ㎡ ① ㅋ ㅠ Ａ", "½ ㎡ ① ㅋ ㅠ Ａ"),                       # NFKC would change every one of them
    ("\uffa1\uffc2 \u1100 \u1175 \u11ab", "ㄱㅏ ㄱ ㅣ ㄴ"),          # half-width, and conjoining jamo alone
    ("\u1112\u119e\u11ab", "\u1112\u119e\u11ab"),                 # a syllable of old Korean stays whole
    ("가\u200b나\u00ad다\ufeff\x07", "가나다"),
    ("가\u00a0나\u3000다\u2028라\r\n마\r바", "가 나 다\n라\n마\n바"),
    ("👨\u200d👩\u200d👧 가\u200d나", "👨\u200d👩\u200d👧 가나"),
    ("ㅋㅋㅋㅋㅋㅋ ㅠㅜㅠㅜㅠㅜㅠㅜㅠㅜ 와!!!!!", "ㅋㅋㅋ ㅠㅜㅠㅜㅠㅜ 와!!!"),
    ("ㅋㅋ\u200bㅋㅋ", "ㅋㅋㅋ"),                                    # the run shows only when the invisible is gone
    ("a  \n\n\n\n\nb\t\n", "a\n\nb"),
    ("##### h\n-----\n| a |", "##### h\n-----\n| a |"),
    ("5 &lt; 6 &amp;&amp; a&copy=b &#44032;", "5 < 6 && a&copy=b 가"),
    ("a < b and c > d", "a < b and c > d"),                       # not HTML
])
def test_normalise(raw, clean):
    assert normalise.normalise(raw) == (clean, "")
    assert normalise.normalise(clean)[0] == clean


def test_a_run_of_lone_jamo_takes_time_by_its_length_and_not_by_its_square():
    started = time.process_time()
    assert normalise.normalise("\u1100" * 60_000 + "\u1161")[0] == "ㄱㄱㄱ가"
    assert time.process_time() - started < 1
