"""Step 2, mask: personal data as people write it, and numbers that only look like it."""
import random
import re
import time

import pytest

from cleaning.mask import mask_personal_data
from cleaning.resident import has_company_check


def digits(rng: random.Random, n: int) -> str:
    """n digits, starting with one that begins no area code or country code."""
    return rng.choice("345679") + "".join(rng.choices("0123456789", k=n - 1))


def resident(rng: random.Random, hyphen: str, check: bool) -> str:
    digits = (f"{rng.randrange(100):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}"
              f"{rng.randrange(1, 9)}")
    digits += "".join(rng.choice("0123456789") for _ in range(5))
    total = sum(
        int(d) * w for d, w in zip(digits, [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5], strict=True)
    )
    last = (11 - total % 11) % 10
    wrong = set("0123456789") - {str(last)}
    if digits[6] in "5678":  # a foreigner's may be two higher
        wrong.discard(str((last + 2) % 10))
    digits += str(last) if check else rng.choice(sorted(wrong))
    return digits[:6] + hyphen + digits[6:]


def company(rng: random.Random, check: bool = True) -> str:
    """The number of a stock company in Seoul, whose first six digits are also a date."""
    while True:
        digits = f"110111{rng.randrange(1, 9)}" + "".join(rng.choices("0123456789", k=5))
        total = sum(int(d) * (1 + i % 2) for i, d in enumerate(digits))
        last = -total % 10
        of_resident = sum(
            int(d) * w for d, w in zip(digits, [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5], strict=True)
        )
        of_resident = (11 - of_resident % 11) % 10
        if not check:
            last = (last + 1) % 10
        # A tenth of them is also valid as a resident number.
        if last not in (of_resident, (of_resident + 2) % 10):
            return f"{digits[:6]}-{digits[6:]}{last}"


def card(rng: random.Random, prefix: str, passes: bool = True) -> str:
    digits = prefix + "".join(rng.choice("0123456789") for _ in range(15 - len(prefix)))
    for last in "0123456789":
        total = sum(
            sum(divmod(int(d) * (1 + i % 2), 10)) for i, d in enumerate(reversed(digits + last))
        )
        if (total % 10 == 0) == passes:
            return digits + last


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def assert_masked(rng: random.Random, raw: str, masked: str) -> None:
    """Check that it is masked anywhere in a text, with nothing else changed."""
    before = rng.choice(["연락처 ", "", "번호:", "ㅡ 그의 ", "～：", "Ｂ동 １층 "])
    behind = rng.choice(["", "로 연락", ")", ".", ", 끝", "（집）", "　ㅡ"])
    assert mask_personal_data(before + raw + behind)[0] == before + masked + behind, raw


def test_personal_data_is_masked():
    rng = random.Random()
    for _ in range(50):
        number = f"{rng.randrange(2000, 10000)}"  # 01010111011 would be a binary number
        found = {
            resident(rng, rng.choice(["-", " - ", "–"]), rng.random() < 0.5): "[주민번호]",
            resident(rng, "", True): "[주민번호]",
            f"010-{number}-{number}": "[전화번호]", f"010{number}{number}": "[전화번호]",
            f"+82 10 {number} {number}": "[전화번호]", f"02-{number[:3]}-{number}": "[전화번호]",
            f"(031) {number[:3]}-{number}": "[전화번호]", f"070.{number}.{number}": "[전화번호]",
            f"(010-{number}-{number})": "([전화번호])", f"02){number[:3]}-{number}": "[전화번호]",
            f"kim.{number}+a@mail.example.co.kr": "[이메일]",
            f"lee{number} [at] naver.com": "[이메일]",
            "-".join(re.findall("....", card(rng, rng.choice(["4", "51", "9410", "3560"])))):
                "[카드번호]",
            f"국민은행 {number}01-04-{number}12": "국민은행 [계좌번호]",
            f"110-{number[:3]}-{number}56 신한은행": "[계좌번호] 신한은행",
            # 8210… would be a telephone number with the country code.
            f"계좌번호: 3{number}{number}12": "계좌번호: [계좌번호]",
        }
        for raw, masked in found.items():
            before, after = (
                rng.choice(["연락처 ", "", "번호:"]),
                rng.choice(["", "로 연락", ")", ".", ", 끝"]),
            )
            assert mask_personal_data(before + raw + after)[0] == before + masked + after, raw


def test_full_width_characters_and_whatever_looks_like_a_hyphen():
    rng = random.Random()
    assert mask_personal_data("900101－1234567")[0] == "[주민번호]"
    assert mask_personal_data("０１０－１２３４－５６７８")[0] == "[전화번호]"
    for _ in range(20):
        for hyphen in "-‐‑‒–—―−─﹣－ㅡー":
            separators = [hyphen, rng.choice("-ㅡ－"), rng.choice("-—~·")]
            rng.shuffle(separators)
            mobile = "010" + separators[0] + digits(rng, 4) + separators[1] + digits(rng, 4)
            landline = f"02{hyphen}{digits(rng, 3)}{hyphen}{digits(rng, 4)}"
            account = f"계좌 {digits(rng, 6)}{hyphen}04{hyphen}{digits(rng, 6)}"
            assert_masked(rng, resident(rng, hyphen, False), "[주민번호]")
            assert_masked(rng, mobile, "[전화번호]")
            assert_masked(rng, full_width(mobile), "[전화번호]")
            assert_masked(rng, landline, "[전화번호]")
            assert_masked(rng, account, "계좌 [계좌번호]")
        for wave in "~～∼〜··ㆍ・":  # a range is also written like this: the check digit decides
            assert_masked(rng, resident(rng, wave, True), "[주민번호]")
            not_one = f"번{resident(rng, wave, False)}호"
            assert mask_personal_data(not_one) == (not_one, "")
        for item in (resident(rng, "-", False), resident(rng, "", True)):
            assert_masked(rng, full_width(item), "[주민번호]")
        number = "-".join(re.findall("....", card(rng, "9410")))
        assert_masked(rng, full_width(number), "[카드번호]")
        assert_masked(rng, full_width(f"kim{digits(rng, 3)}@naver.com"), "[이메일]")


def test_resident_numbers_of_foreigners_and_hidden_ones():
    rng = random.Random()
    for _ in range(20):
        born = resident(rng, "-", False)[:6]
        seventh = rng.choice("5678")
        assert_masked(rng, f"{born}-{seventh}{digits(rng, 6)}", "[주민번호]")
        for hidden in "*＊xX○◯●":
            assert_masked(rng, f"{born}-{seventh}{hidden * 6}", "[주민번호]")
        # With a dot it is a decimal fraction, unless a word says what it is.
        dotted = resident(rng, ".", False)
        assert mask_personal_data(f"주민번호 {dotted}")[0] == "주민번호 [주민번호]"
        assert mask_personal_data(f"값은 {dotted}") == (f"값은 {dotted}", "")


@pytest.mark.parametrize("before", [
    "법인등록번호: ", "법인등록번호 ", "법인 등록번호는 ", "법인등록번호가 '", "법인번호 : ",
    "법인등기번호 ", "법인 ", "법인: ", "법 인 등 록 번 호 : ", "법인(등록)번호 ",
    "등록번호(법인) ", "[법인번호] ", "법인등록번호（", "사단법인 ○○회[법인등록번호: ",
    "| 법인등록번호 | ", "법인등록번호\t", "법인등록번호\n", "법인등록번호\n\n| ",
    "Corporate registration number: ", "사업자등록번호 123-45-67890, 법인등록번호 ",
    "대표자 홍길동, 법인등록번호 ", "주민등록번호 없음\n법인등록번호 ",
])
def test_a_number_labelled_as_a_companys_is_not_a_residents(before):
    rng = random.Random()
    for number in (company(rng), company(rng, False), company(rng)[:8] + "******",
                   company(rng).replace("-", " - ")):
        text = f"{before}{number}, 끝"
        assert mask_personal_data(text) == (text, "")
    # The label is for one number, not for that of the person after it.
    person = resident(rng, "-", True)
    text = f"{before}{number}, 대표 홍길동 "
    assert mask_personal_data(text + person) == (text + "[주민번호]", "resident_number")
    # Masking again changes nothing: a token, too, ends the label of the next number.
    masked, _ = mask_personal_data(f"주민등록번호 {person} {text}")
    assert masked == f"주민등록번호 [주민번호] {text}"
    assert mask_personal_data(masked) == (masked, "")


@pytest.mark.parametrize("before", [
    "주식회사 한빛(", "(주)한빛 ", "㈜ 한빛: ", "한빛(주) | ", "한빛 주식회사 ", "（주）한빛 | ",
    "재단법인 한빛재단 (", "| 상호 | 법인등록번호 |\n|---|---|\n| 한빛 | ",
    "법인등록번호 목록\n1. 한빛상사 ", "법인등록번호 110111-1234569, ",
])
def test_after_a_companys_name_or_below_a_label_the_check_digits_decide(before):
    rng = random.Random()
    number = company(rng)
    assert mask_personal_data(before + number) == (before + number, "")
    # A resident number, one without a check digit, and a child's.
    child = f"21010{rng.randrange(1, 9)}-3{digits(rng, 6)}"
    for person in (resident(rng, "-", True), company(rng, False), child):
        assert mask_personal_data(before + person) == (before + "[주민번호]", "resident_number")


@pytest.mark.parametrize("before",
                         ["법인등록번호 ", "법인 ", "등록번호(법인): ", "법인번호\n",
                          "Corporate number "])
def test_a_label_does_not_make_a_resident_number_a_companys(before):
    rng = random.Random()
    person = resident(rng, "-", True)
    while has_company_check(person.replace("-", "")):
        person = resident(rng, "-", True)
    assert mask_personal_data(before + person) == (before + "[주민번호]", "resident_number")


@pytest.mark.parametrize("before", [
    "법인등록번호: 110111-1234569\n대표자 ", "| 성명 | 법인등록번호 |\n| 대표 홍길동 | ",
    "법인등록번호 110111-1234569, 이사 ",
])
def test_a_number_after_a_position_is_a_persons(before):
    # With a company's check digit, which one in ten numbers without a check digit has by chance.
    number = company(random.Random())
    assert mask_personal_data(before + number) == (before + "[주민번호]", "resident_number")


@pytest.mark.parametrize("before", [
    "", "번호 ", "주민등록번호 ", "주민(법인)등록번호: ", "법인(주민)등록번호: ",
    "주민등록번호(법인등록번호) ", "개인/법인 등록번호 ", "주민등록번호\n(법인등록번호)\n",
    "법인등록번호\n(주민등록번호)\n", "생년월일(법인등록번호) ", "법인 대표 홍길동(", "비법인 ",
    "법인카드 ", "(주)한빛 대표이사 홍길동 ", "법인등록번호가 없는 단체의 대표 홍길동 ", "법인이 ",
    "법인 현황\n홍길동 ", "외국인등록번호 ",
])
def test_if_in_doubt_it_is_a_residents(before):
    rng = random.Random()
    for number in (
        resident(rng, "-", True),
        company(rng, False),
        resident(rng, "-", False)[:8] + "******",
    ):
        assert mask_personal_data(before + number) == (before + "[주민번호]", "resident_number")


def test_numbers_of_foreigners_without_a_hyphen():
    rng = random.Random()
    for _ in range(20):
        number = f"9001{rng.randrange(10, 29)}{rng.randrange(5, 9)}{digits(rng, 5)}"
        total = sum(
            int(d) * w for d, w in zip(number, [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5], strict=True)
        )
        last = (11 - total % 11) % 10
        assert_masked(rng, f"{number}{(last + 2) % 10}", "[주민번호]")
        for word in ("외국인등록번호 ", "국내거소신고번호: "):
            assert mask_personal_data(f"{word}{number}{(last + 5) % 10}")[0] == f"{word}[주민번호]"


def test_telephones_as_people_write_them():
    rng = random.Random()
    for _ in range(20):
        middle = digits(rng, 4)
        last = digits(rng, 4)
        mobile = rng.choice(["010", "011", "016", "017", "018", "019", "070", "0507"])
        for raw in [
            f"{mobile}-{middle}{last}", f"{mobile} {middle}{last}", f"{mobile}{middle}-{last}",
            f"{mobile}){middle}-{last}", f"({mobile}){middle}-{last}",
            f"({mobile}) {middle} {last}", f"{mobile} - {middle} - {last}",
            f"{mobile}/{middle}/{last}", f"{mobile}~{middle}~{last}", f"{mobile}·{middle}·{last}",
            f"{mobile}-{middle} {last}", f"{mobile}　{middle}　{last}", f"0082-10-{middle}-{last}",
            f"008210{middle}{last}", f"0082 2 {middle} {last}", f"+82(0)10-{middle}-{last}",
            f"+82 (0)10 {middle} {last}", f"+82-010-{middle}-{last}", f"(+82) 10 {middle} {last}",
            f"(+82)10-{middle}-{last}", f"+8210{middle}{last}", f"+82 2 {middle} {last}",
            f"+82-31-{middle}-{last}", f"82(0)10-{middle}-{last}", f"8210{middle}{last}",
            f"82-10-{middle}-{last}", f"82 10 {middle} {last}", f"02-{middle}-{last}~8",
            f"051–{middle}–{last}", f"(02){middle}-{last}", "010-1011-0110",
        ]:
            assert_masked(rng, raw, "[전화번호]")

        # Only a word tells these from a row of a table and from a product number.
        area = rng.choice(["02", "031", "042", "051", "064"])
        for raw in [f"{area}{middle}{last}", f"{area} {middle} {last}", f"{area}-{middle}{last}",
                    f"({area}) {middle} {last}", f"{area}){middle}{last}",
                    f"{area}/{middle}/{last}"]:
            for word in ["전화", "연락처:", "문의는", "☎", "Tel.", "TEL :", "팩스"]:
                assert mask_personal_data(f"{word} {raw}")[0] == f"{word} [전화번호]"
            assert mask_personal_data(f"{raw}로 전화 주세요")[0] == "[전화번호]로 전화 주세요"
            is_seoul = raw == f"02{middle}{last}"
            if not is_seoul:
                assert mask_personal_data(f"표 3: {raw}, 합계") == (f"표 3: {raw}, 합계", "")


def test_a_number_of_seoul_without_separators():
    assert mask_personal_data("0212345678")[0] == "[전화번호]"
    rng = random.Random()
    for _ in range(50):
        number = f"02{rng.randrange(1, 10)}{digits(rng, 7)}"
        is_isbn = sum((10 - i) * int(digit) for i, digit in enumerate(number)) % 11 == 0
        expected = number if is_isbn else "[전화번호]"
        assert mask_personal_data(f"표 3: {number}, 합계")[0] == f"표 3: {expected}, 합계"


def test_accounts_next_to_a_short_name_of_their_bank():
    rng = random.Random()
    for _ in range(20):
        for raw in [
            f"{digits(rng, 6)}-01-{digits(rng, 6)}",
            f"110-{digits(rng, 3)}-{digits(rng, 6)}",
            f"3333-01-{digits(rng, 7)}",
            f"301-{digits(rng, 4)}-{digits(rng, 4)}-91",
        ]:
            for name in ["국민", "신한", "농협", "카뱅", "토스", "우리", "하나", "기업", "새마을",
                         "우체국", "케이뱅크", "수협", "신협", "부산", "대구", "전북", "KB국민",
                         "NH", "IBK"]:
                space = rng.choice(["", " ", ": ", " ("])
                assert mask_personal_data(name + space + raw)[0] == f"{name}{space}[계좌번호]"
            for name in ["조국민 ", "우리 집 ", "하나, ", "중소기업 ", "WKB "]:
                assert mask_personal_data(name + raw) == (name + raw, "")
    # After a name that only a bank has, no hyphens are needed.
    for name in ["신한", "카뱅", "케뱅", "토스", "씨티", "KB", "NH", "IBK"]:
        assert mask_personal_data(f"{name} 110123456789")[0] == f"{name} [계좌번호]"
    for name in ["우리 ", "하나 ", "부산 ", "아신한 ", "WKB "]:
        assert mask_personal_data(f"{name}110123456789")[1] == ""
    # An account may begin like a year.
    assert mask_personal_data("농협 1998-11-2345678")[0] == "농협 [계좌번호]"


def test_mail_addresses_as_people_write_them():
    rng = random.Random()
    for _ in range(20):
        name = f"{rng.choice(['kim', 'LEE.jh', 'park_'])}{digits(rng, 3)}"
        service = rng.choice(["naver", "daum", "gmail", "hanmail"])
        for raw in [
            f"{name} @ {service}.com", f"{name}@ {service}.com", f"{name} @{service}.com",
            f"{name} @ {service} . com", f"{name} @ yahoo.co.kr", f"{name}(at){service}.com",
            f"{name} (at) {service}.com", f"{name} [at] {service} [dot] com",
            f"{name}골뱅이{service}.com", f"{name} 골뱅이 snu.ac.kr", f"{name}(골뱅이)snu.ac.kr",
            f"{name}＠{service}．com", f"{name}@{service}.company", f"{name}@{service}.online",
            f"{name}@{service}.museum", f"{name}@{service}.photography",
            f"{name}@shop.{service}.CO.KR", f"{name}@163.com",
        ]:
            assert_masked(rng, raw, "[이메일]")
        assert mask_personal_data(f"메일: {name} @ snu.ac.kr")[0] == "메일: [이메일]"
        assert mask_personal_data(f"{name}@snu.ac.kr(홍길동)")[0] == "[이메일](홍길동)"
        assert mask_personal_data(f"{name} @ {service}.com. Thanks")[0] == "[이메일]. Thanks"


def test_numbers_in_rulings_and_code_are_not_masked():
    rng = random.Random()
    for text in [
        "대법원 2010. 3. 25. 선고 2009다12345 판결", "1990-12-31부터 2001-01-05까지",
        "법률 제12345호, 2013-0101-1234",
        resident(rng, "", False), "901301-1234567", "900101-9234567", card(rng, "4", False),
        card(rng, "1"),
        "1988 1992 1996 2000", "4.1234567890123456", "https://x.kr/4111111111111111",
        "계좌를 연 날 1999-12-31", "계좌 이야기를 하다 말고 (1123581321)을 적었다",
        "123456-12-123456", "a@b.sum(0)", "git@github.com:a/b", "https://user:x@host.com/",
        "010-1234-56789", "1,010-1234-5678", "ISBN 978-89-1234-567-8", "3.14159265358979",
    ]:
        assert mask_personal_data(text) == (text, ""), text


@pytest.mark.parametrize("text", [
    # rulings, statutes, file numbers, companies
    "서울고등법원 2016나2012345, 2016헌바123·2017헌가45(병합)",
    "1994. 12. 31.~1995. 1. 5. 02 1990-1995", "특허 제10-2012-0123456호",
    "사업자등록번호 123-45-67890, 법인 110111-0123456", "우리 123-45-67890", "부산 2016-12-345678",
    "하나 2010-12-25", "국민 1997-1998-1999", "은행은 1997–1998–1999년에",
    # figures, prices, rows of tables, coordinates, ranges
    "02 1234 5678 9012", "서울 02 1990 2000", "1,000~2,000원 · 3,000-4,000원", "37.5665, 126.9780",
    "820701~3063268", "8207013063269", "127.0276368,37.4979502", "010101~101010",
    "01101001011, 010 0110 1101", "1939·1941·1945·1950", "2018-19 ~ 2020-21",
    "기업 1,234-5,678-90,123",
    # businesses
    "1588-1234", "대표전화 1544－5678", "080-123-4567",
    # books, products, versions, IP addresses
    "ISBN 0198534531", "ISBN 0201633612", "0-201-63361-2", "978-0-201-63361-2", "제품 0312345678",
    "제품 0262033844", "192.168.0.10:8080", "v1.10.1234.5678",
    "uuid 0a1b2c3d-0212-4567-8901-021234567890", "/img/0212345678.jpg",
    # what README says is not masked: of persons, of machines, from abroad
    "홍길동, 1990년 1월 2일생, 서울시 중구 세종대로 110, 101동 1203호", "생년월일 900101",
    "1990-01-02", "여권번호 M12345678", "여권 M123A4567", "운전면허 11-12-345678-90",
    "면허번호 서울 12-345678-90", "운전면허 111234567890", "차량 12가 3456", "123나4567",
    "사업자등록번호 1234567890", "전화 123-4567", "공일공 일이삼사 오육칠팔", "010101-0101010",
    "110-123-456789", "199.86.94.82", "2001:db8::1:ab", "00:1A:2B:3C:4D:5E",
    "https://blog.example.com/kim", "카톡 아이디 kim123", "+1 212-555-0123", "(212) 555-0123",
    "+81-3-1234-5678", "+44 20 7946 0123",
    # texts with an @
    "@app.route('/')", "@staticmethod", "트위터 @kim.kr", "npm i @scope/pkg@1.2.3 lodash@latest.js",
    "icon@2x.png", "y = x@w.mT", "q@k.at[0]", "self.q@self.k", "x@self.to", "h = self.w@x.io",
    "y = a @ b.to", "a@b.sum()", "see you @ example.com", "scp a.txt kim@host.com:~/x",
    "kim@host.com:data/x.txt", "ssh://git@host.kr/x", "f(at)x", "골뱅이 무침", "(at) 12:00",
])
def test_what_only_looks_like_personal_data(text):
    assert mask_personal_data(text) == (text, "")
    assert mask_personal_data(f"그는 {text}\n") == (f"그는 {text}\n", "")


def test_kinds_are_named_once_and_in_order():
    text = "kim@naver.com 010-1234-5678 900101-1234567 010-1234-5679 ☎ 0212345678"
    masked = "[이메일] [전화번호] [주민번호] [전화번호] ☎ [전화번호]"
    assert mask_personal_data(text) == (masked, "resident_number+phone+email")
    assert mask_personal_data("") == ("", "")


@pytest.mark.parametrize("piece", [
    "1", "0", "１", "@", "-", "－", "ㅡ", " ", "a", "a.", "a@", "a@a.", "1-", "12-", "010-",
    "010-1234-", "0 1", "1234 ", "(02)", "+82 ", "900101-1", "900101-1234567 ", "110111-1234569 ",
    "법인110111-1234567 ", "(주)110111-1234569 ",
    "(주)(주)(주)(주)(주)(주)(주)(주)-------------------- 110111-1234569 ",
    "법인등록번호" + " " * 50 + "110111-1234569", "\n(\n(\n(110111-1234569", "a(at)", "a@b.kr:",
    "a골뱅이", "a(dot)", "naver . ", "은행 1234567890 ",
])
def test_no_text_takes_long(piece):
    """These 100,000 characters take less than 0.1 s. A pattern that backtracked from each of them
    over all the others would take minutes."""
    text = "a@" + piece * (100_000 // len(piece)) + "@"
    start = time.process_time()
    mask_personal_data(text)
    assert time.process_time() - start < 1


def test_an_english_corpus_gets_english_masks():
    assert mask_personal_data("Call 010-1234-5678.", "en") == ("Call [phone number].", "phone")
