"""Step 2, mask: personal data in its spellings, and the numbers that only look like it."""
import random
import re

from cleaning import mask


def resident(rng: random.Random, hyphen: str, check: bool) -> str:
    digits = f"{rng.randrange(100):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}{rng.randrange(1, 9)}"
    digits += "".join(rng.choice("0123456789") for _ in range(5))
    total = sum(int(d) * w for d, w in zip(digits, [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5], strict=True))
    last = (11 - total % 11) % 10
    digits += str(last if check else (last + 1 + rng.randrange(9)) % 10)
    return digits[:6] + hyphen + digits[6:]


def card(rng: random.Random, prefix: str, passes: bool = True) -> str:
    digits = prefix + "".join(rng.choice("0123456789") for _ in range(15 - len(prefix)))
    for last in "0123456789":
        total = sum(sum(divmod(int(d) * (1 + i % 2), 10)) for i, d in enumerate(reversed(digits + last)))
        if (total % 10 == 0) == passes:
            return digits + last


def test_personal_data_is_masked():
    rng = random.Random()
    for _ in range(50):
        number = f"{rng.randrange(1000, 10000)}"
        found = {
            resident(rng, rng.choice(["-", " - ", "–"]), rng.random() < 0.5): "[주민번호]",
            resident(rng, "", True): "[주민번호]",
            f"010-{number}-{number}": "[전화번호]", f"010{number}{number}": "[전화번호]",
            f"+82 10 {number} {number}": "[전화번호]", f"02-{number[:3]}-{number}": "[전화번호]",
            f"(031) {number[:3]}-{number}": "[전화번호]", f"070.{number}.{number}": "[전화번호]",
            f"(010-{number}-{number})": "([전화번호])", f"02){number[:3]}-{number}": "[전화번호]",
            f"kim.{number}+a@mail.example.co.kr": "[이메일]", f"lee{number} [at] naver.com": "[이메일]",
            "-".join(re.findall("....", card(rng, rng.choice(["4", "51", "9410", "3560"])))): "[카드번호]",
            f"국민은행 {number}01-04-{number}12": "국민은행 [계좌번호]",
            f"110-{number[:3]}-{number}56 신한은행": "[계좌번호] 신한은행",
            f"계좌번호: 3{number}{number}12": "계좌번호: [계좌번호]",  # 8210… would be a telephone, from abroad
        }
        for raw, masked in found.items():
            before, after = rng.choice(["연락처 ", "", "번호:"]), rng.choice(["", "로 연락", ")", ".", ", 끝"])
            assert mask.mask(before + raw + after)[0] == before + masked + after, raw


def test_numbers_of_rulings_and_code_are_not_masked():
    rng = random.Random()
    for text in [
        "대법원 2010. 3. 25. 선고 2009다12345 판결", "1990-12-31부터 2001-01-05까지", "법률 제12345호, 2013-0101-1234",
        resident(rng, "", False), "901301-1234567", "900101-9234567", card(rng, "4", False), card(rng, "1"),
        "1988 1992 1996 2000", "4.1234567890123456", "https://x.kr/4111111111111111", "계좌를 연 날 1999-12-31",
        "계좌 이야기를 하다 말고 (1123581321)을 적었다", "123456-12-123456", "a@b.sum(0)", "git@github.com:a/b",
        "https://user:x@host.com/", "010-1234-56789", "1,010-1234-5678", "ISBN 978-89-1234-567-8", "3.14159265358979",
    ]:
        assert mask.mask(text) == (text, ""), text


def test_an_english_corpus_gets_english_masks():
    assert mask.mask("Call 010-1234-5678.", "en") == ("Call [phone number].", "phone")
