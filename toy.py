"""A small world, told in English and in Korean: a corpus with known faults and a KoBEST, for machines with no network.

Its people grow potatoes, drop cups, crash cars. What happens follows 30 rules (a cause and its effect) and 20 scripts of
four steps, each for a category of nouns: who drops a *cup* breaks it, so what of a *plate*? The test is not rigged:

- **What is asked was never told.** The (rule, noun) pairs of the items, those of the wrong answers too, and the names
  in them occur nowhere in the corpus; train and dev have pairs of their own.
- **The answer alone says nothing.** Items come in mirrored groups that share their choices: each is right as often as
  it is wrong, and a scorer that does not see the context gets exactly what chance gets.
- **The floor is known.** Every choice goes through `Dice`, which sums -log2 of its probability: bits that no model can
  save. (Strictly an upper bound of the entropy: now and then two different choices make the same text.)

Faults are planted and listed in planted.json by id (copies as [copy, original]), so that cleaning has a precision and
a recall. The phone, card and resident numbers among them are made so that nobody can have them.

    python toy.py --out out/toy      # {en,ko}/*.jsonl, kobest/v1.0/*/*.tsv, planted.json, entropy.json (bits a byte)
"""
import argparse
import csv
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import cli

ROWS = {"train": 300, "dev": 100, "test": 300}  # items of each task
DIRT = {"exact": 0.03, "near": 0.05, "junk": 0.03, "personal": 0.01, "leaked": 0.005}  # shares of the documents
FILES = 4  # the documents of a language are dealt to so many files

# ----------------------------------------------------------------------------------------------- the Korean language

# Particles after a consonant: after a vowel. Topic, subject, object, and/with, to/by means of; and 이었, was.
JOSA = {"은": "는", "이": "가", "을": "를", "과": "와", "으로": "로", "이었": "였"}
END = ("다", "어요", "습니다")  # of a past stem, by speech level: plain 해라체, polite 해요체, formal 합쇼체
ASK = ("나", "나요", "습니까")  # the same in a question
REASON = (("다", "기 때문이다"), ("거든요", "기 때문이에요"), ("기 때문입니다",))  # the same after "because"


def final(word: str) -> int:
    """Number of the last syllable's final consonant in Unicode's order: 0 none, 4 ㄴ, 8 ㄹ, 17 ㅂ, 20 ㅆ."""
    return (ord(word[-1]) - 0xAC00) % 28 if "가" <= word[-1] <= "힣" else 0


def coda(word: str, consonant: int) -> str:
    """The word with another final consonant: coda("크", 4) is "큰" (big)."""
    return word[:-1] + chr(ord(word[-1]) - final(word) + consonant)


class Korean(str):
    """A noun that takes its particle in a format string, in the form that its last sound asks for (로 after ㄹ too).

    >>> [format(Korean(w), p) for w, p in (("컵", "은"), ("차", "은"), ("길", "으로"), ("집", "으로"), ("소", "에게"))]
    ['컵은', '차는', '길로', '집으로', '소에게']"""

    def __format__(self, particle: str) -> str:
        vowel = final(self) == 0 or particle == "으로" and final(self) == 8
        return str(self) + (JOSA.get(particle, particle) if vowel else particle)


class Adjective:
    """The forms of a Korean adjective, all from its stem and its infinitive.

    >>> a = Adjective("무겁 무거워 heavy"); a.past, a.modifier, a.present
    ('무거웠', '무거운', ('무겁다', '무거워요', '무겁습니다'))"""

    def __init__(self, line: str):
        self.stem, self.infinitive, self.english = line.split()
        bare = coda(self.stem, 0)
        base = bare if final(self.stem) == 8 else self.stem  # ㄹ falls: 길 long, 긴, 깁니다
        self.past = coda(self.infinitive, 20)
        self.modifier = bare + "운" if final(base) == 17 else base + "은" if final(base) else coda(base, 4)  # ㅂ: 우
        self.present = (self.stem + "다", self.infinitive + "요",
                        base + "습니다" if final(base) else coda(base, 17) + "니다")


# --------------------------------------------------------------------------------------------------------- the world

Pair = tuple[Korean, str]  # one thing in Korean and in English


def pairs(text: str) -> list[Pair]:
    """'컵 cup, 접시 plate' -> [('컵', 'cup'), ('접시', 'plate')]; _ stands for a blank inside the Korean."""
    return [(Korean(ko.replace("_", " ")), en) for ko, en in (item.split(" ", 1) for item in re.split(r",\s", text))]


FIRST = "민Min 서Seo 지Ji 하Ha 도Do 예Ye 수Su 은Eun 현Hyeon 재Jae 유Yu 시Si 승Seung 태Tae 소So 다Da 나Na 주Ju 정Jeong"
SECOND = "준jun 윤yun 우u 연yeon 진jin 현hyeon 호ho 빈bin 원won 희hui 아a 민min 영yeong 은eun 훈hun"
NO_NAMES = """민민 현현 은은 지진 지원 서민 시민 주민 도민 수준 예민 수은 수영 수원 주연 정원 소원 시원 지연 유연 재현 유아
소아 주은 도진 시진 현민 재민 유민 다은 정우 유원 하희 주준 수우 태아 유우 태우 나아 도원"""  # words, or odd as names
NAMES = [(Korean(a[0] + b[0]), a[1:] + b[1:]) for a in FIRST.split() for b in SECOND.split()
         if a[0] + b[0] not in NO_NAMES.split()]
ITEM_NAMES, NAMES = NAMES[::10], [name for i, name in enumerate(NAMES) if i % 10]  # a tenth is kept for the items

SLOTS = {slot: pairs(text) for slot, text in {
    "time": """월요일에 on Monday, 화요일에 on Tuesday, 수요일에 on Wednesday, 목요일에 on Thursday, 금요일에 on Friday,
토요일에 on Saturday, 일요일에 on Sunday, 봄에 in spring, 여름에 in summer, 가을에 in autumn, 겨울에 in winter,
어제 yesterday, 아침에 in the morning, 저녁에 in the evening, 지난주에 last week, 작년에 last year""",
    "place": """시장 market, 학교 school, 공원 park, 도서관 library, 병원 hospital, 역 station, 광장 square, 교실 classroom,
은행 bank, 호텔 hotel, 강가 riverside, 극장 theatre, 운동장 playground, 우체국 post office, 박물관 museum, 식당 diner""",
    "job": "의사 a doctor, 교사 a teacher, 농부 a farmer, 화가 a painter, 상인 a merchant, 목수 a carpenter, 시인 a poet",
    "went": "걸어갔 walked, 뛰어갔 ran, 소풍을_갔 went on a trip, 심부름을_갔 went on an errand",
    "did": "보았 saw, 찾았 found, 샀 bought, 팔았 sold, 그렸 drew, 자랑했 showed off, 구경했 looked at, 칭찬했 praised",
    "then": "이어서 next, 그다음에 after that, 그러고_나서 and then, 그리고 then",
    "good": "마음에_들었 liked it, 아주_만족했 was content, 또_사고_싶었 wanted another one, 무척_기뻤 was delighted",
    "bad": "실망했 was disappointed, 크게_후회했 regretted it, 돈이_아까웠 missed the money, 몹시_화가_났 was angry"}.items()}

# Twenty pairs of opposites; the first twelve have a good and a bad side, which reviews need.
OPPOSITES = [tuple(map(Adjective, pair.split("/"))) for pair in re.split(r",\s", """튼튼하 튼튼해 sturdy/약하 약해 weak,
편하 편해 comfortable/불편하 불편해 uncomfortable, 깨끗하 깨끗해 clean/더럽 더러워 dirty, 예쁘 예뻐 pretty/흉하 흉해 ugly,
싱싱하 싱싱해 fresh/질기 질겨 tough, 달콤하 달콤해 sweet/쓰 써 bitter, 조용하 조용해 quiet/시끄럽 시끄러워 noisy,
빠르 빨라 fast/느리 느려 slow, 싸 싸 cheap/비싸 비싸 expensive, 흥미롭 흥미로워 interesting/지루하 지루해 boring,
얌전하 얌전해 gentle/사납 사나워 fierce, 새롭 새로워 new/낡 낡아 worn, 크 커 big/작 작아 small,
무겁 무거워 heavy/가볍 가벼워 light, 길 길어 long/짧 짧아 short, 두껍 두꺼워 thick/얇 얇아 thin, 밝 밝아 bright/어둡 어두워 dark,
둥글 둥글어 round/네모나 네모나 square, 단단하 단단해 hard/부드럽 부드러워 soft, 높 높아 tall/낮 낮아 low""")]

# Five lines a category: twelve nouns and which opposites suit them; three rules, cause and effect, in both languages.
CATEGORIES = """감자 potato, 고구마 sweet potato, 당근 carrot, 토마토 tomato, 오이 cucumber, 딸기 strawberry, 수박 watermelon,
호박 pumpkin, 양파 onion, 배추 cabbage, 참외 melon, 무 radish | 2 4 5 8 12 13 18
[을] 더운 방에 묵혔, [이] 까맣게 썩었|kept the [] in a hot room, the [] rotted away
[을] 냉동실에 넣었, [이] 꽁꽁 얼었|put the [] in the freezer, the [] froze solid
[을] 발로 밟았, [이] 납작하게 으깨졌|stepped on the [], the [] was crushed flat
셔츠 shirt, 치마 skirt, 코트 coat, 조끼 vest, 스웨터 sweater, 재킷 jacket, 한복 hanbok, 원피스 dress, 점퍼 parka,
잠옷 nightgown, 교복 uniform, 비옷 raincoat | 1 2 3 8 11 13 14 15 16
[을] 끓는 물에 빨았, [이] 작게 줄어들었|boiled the [] in a pot, the [] shrank
[을] 뾰족한 못에 걸었, [에] 구멍이 뚫렸|hung the [] on a sharp nail, a hole appeared in the []
[을] 빗속에 널어 두었, [이] 흠뻑 젖었|left the [] out in the rain, the [] got soaking wet
의자 chair, 책상 desk, 침대 bed, 옷장 wardrobe, 책장 bookcase, 소파 sofa, 식탁 table, 서랍장 dresser, 선반 shelf,
탁자 stand, 벤치 bench, 찬장 cupboard | 0 1 2 3 8 11 12 13 14 17 19
[을] 톱으로 잘랐, [이] 두 동강 났|cut the [] with a saw, the [] fell into two halves
[을] 닦지 않고 내버려 두었, [에] 먼지가 쌓였|left the [] without wiping it, dust gathered on the []
[을] 모닥불 곁에 놓았, [이] 거멓게 그을렸|put the [] by the campfire, the [] was scorched
컴퓨터 computer, 라디오 radio, 세탁기 washer, 냉장고 fridge, 선풍기 fan, 청소기 vacuum cleaner, 프린터 printer,
에어컨 air conditioner, 믹서 blender, 난로 heater, 가습기 humidifier, 복사기 copier | 0 1 2 6 7 8 12 13
[에] 물을 쏟았, [이] 고장 났|spilled water on the [], the [] stopped working
[의] 전원을 켰, [이] 윙윙 소리를 냈|switched the [] on, the [] began to hum
[의] 나사를 모두 풀었, [이] 조각조각 분해되었|removed every screw of the [], the [] came apart
고양이 cat, 강아지 puppy, 토끼 rabbit, 염소 goat, 송아지 calf, 망아지 foal, 여우 fox, 다람쥐 squirrel, 당나귀 donkey,
사슴 deer, 너구리 raccoon, 원숭이 monkey | 0 2 6 7 10 12 13
[에게] 먹이를 잔뜩 주었, [이] 스르르 잠들었|gave the [] plenty of food, the [] fell asleep
[의] 귀에 대고 소리쳤, [이] 멀리 달아났|shouted at the [], the [] ran far away
[에게] 향수를 뿌렸, [에게서] 꽃 냄새가 났|sprayed perfume on the [], the [] smelled of flowers
컵 cup, 접시 plate, 유리병 bottle, 찻잔 teacup, 대접 bowl, 항아리 jar, 꽃병 vase, 술잔 goblet, 밥그릇 rice bowl,
어항 fishbowl, 화분 flowerpot, 물병 pitcher | 0 2 3 8 12 13 15 17
[을] 바닥에 떨어뜨렸, [이] 산산이 깨졌|dropped the [] on the floor, the [] broke into pieces
[을] 난로 위에 두었, [이] 몹시 뜨거워졌|left the [] on the stove, the [] became very hot
[을] 수세미로 문질렀, [이] 반짝반짝 빛났|scrubbed the [] with a sponge, the [] shone brightly
장미 rose, 튤립 tulip, 해바라기 sunflower, 소나무 pine tree, 난초 orchid, 국화 chrysanthemum, 백합 lily, 대나무 bamboo,
단풍나무 maple, 수국 hydrangea, 제비꽃 violet, 은행나무 ginkgo | 0 3 8 12 14 19
[에] 물을 주지 않았, [이] 바싹 시들었|did not water the [], the [] withered
[에] 거름을 뿌렸, [이] 쑥쑥 자랐|spread manure around the [], the [] grew quickly
[을] 어두운 창고에 가두었, [의] 잎이 누렇게 변했|kept the [] in a dark shed, the leaves of the [] turned yellow
버스 bus, 트럭 truck, 택시 taxi, 오토바이 motorcycle, 승용차 car, 트랙터 tractor, 구급차 ambulance, 소방차 fire engine,
스쿠터 scooter, 승합차 van, 경찰차 police car, 견인차 tow truck | 0 1 2 6 7 8 11 12 13 14
[의] 브레이크를 밟았, [이] 끼익 멈췄|stepped on the brake of the [], the [] screeched to a halt
[을] 담벼락에 박았, [이] 심하게 찌그러졌|crashed the [] into a wall, the [] was badly dented
[을] 늪으로 몰았, [의] 바퀴가 푹 빠졌|drove the [] into a swamp, the wheels of the [] sank deep
국수 noodle soup, 떡국 rice cake soup, 비빔밥 bibimbap, 만두 dumpling, 김밥 gimbap, 카레 curry, 죽 porridge,
볶음밥 fried rice, 라면 ramen, 갈비탕 rib soup, 파스타 pasta, 불고기 bulgogi | 3 5 8 18
[에] 소금을 들이부었, [이] 너무 짜졌|poured salt into the [], the [] became too salty
[을] 센 불에 올려놓고 잊었, [이] 새까맣게 탔|forgot the [] on a high flame, the [] burned black
[을] 창밖에 내놓았, [이] 싸늘하게 식었|set the [] outside the window, the [] went cold
책 book, 편지 letter, 신문 newspaper, 공책 notebook, 잡지 magazine, 그림책 picture book, 지도 map, 사진첩 photo album,
일기장 diary, 달력 calendar, 사전 dictionary, 악보 score | 3 8 9 11 12 13 15
[을] 강물에 빠뜨렸, [이] 쭈글쭈글해졌|dropped the [] into the river, the [] became wrinkled
[을] 벽난로에 던졌, [이] 재로 변했|threw the [] into the fireplace, the [] turned to ash
[을] 가위로 마구 오렸, [이] 너덜너덜해졌|slashed the [] with scissors, the [] was left in tatters"""

# Four scripts for each of the first five categories: four steps, the noun in the second and in the fourth.
SCRIPTS = """통에 물을 받았, [을] 헹궜, 믹서를 돌렸, [으로] 즙을 냈|filled a bucket, rinsed the [], ran the blender, juiced the []
삽으로 밭을 갈았, [의] 모종을 심었, 잡초를 뽑았, [을] 거두었|dug a field, planted the [], pulled weeds, harvested the []
상자를 모았, [을] 나눠 담았, 자리를 잡았, [을] 손님에게 팔았|gathered boxes, packed the [], took a stall, sold the []
항아리를 말렸, [을] 소금에 절였, 뚜껑을 닫았, [을] 한 달 뒤 꺼냈|dried a pot, salted the [], shut the lid, unpacked the []
세제를 풀었, [을] 물에 담갔, 손으로 때를 뺐, [을] 빨랫줄에 널었|mixed soap, soaked the [], rubbed stains, hung the [] up
실을 꿰었, [의] 구멍을 찾았, 한 땀씩 꿰맸, [에] 단추를 달았|threaded a needle, spread the [], sewed, buttoned the []
지갑을 챙겼, [을] 입어 보았, 값을 물었, [을] 카드로 샀|took a purse, tried the [] on, asked the price, paid for the []
상자를 골랐, [을] 반듯이 접었, 리본을 묶었, [을] 할머니께 드렸|chose a box, folded the [], tied a ribbon, gave the [] away
나무를 베었, [의] 설계도를 그렸, 못을 박았, [을] 완성했|felled a tree, planned the [], hammered nails, finished the []
이웃을 불렀, [을] 담요로 감쌌, 계단을 내려갔, [을] 새집에 들였|called help, wrapped the [], went down, moved the [] in
물감을 섞었, [을] 사포로 밀었, 큰 붓을 들었, [을] 하얗게 칠했|mixed paint, sanded the [], took a brush, painted the []
광고를 올렸, [의] 사진을 찍었, 값을 흥정했, [을] 헐값에 넘겼|placed an ad, photographed the [], haggled, let the [] go
공구를 꺼냈, [의] 덮개를 뗐, 부품을 갈았, [을] 말끔히 고쳤|took tools, opened the [], replaced a part, repaired the []
설명서를 읽었, [의] 포장을 뜯었, 전선을 꽂았, [을] 작동시켰|read a manual, unwrapped the [], plugged in, started the []
영수증을 챙겼, [의] 흠집을 보았, 가게에 항의했, [을] 반품했|kept the bill, saw a scratch on the [], protested, returned the []
헝겊을 적셨, [의] 먼지를 털었, 구석까지 닦았, [을] 제자리에 두었|wet a cloth, dusted the [], wiped, put the [] back
이마를 짚었, [을] 병원에 데려갔, 약을 받았, [을] 푹 재웠|felt the fever, drove the [] to a clinic, got pills, let the [] rest
물을 데웠, [을] 비누로 문질렀, 거품을 헹궜, [을] 수건으로 닦았|heated water, soaped the [], rinsed well, dried the []
판자를 모았, [의] 키를 쟀, 지붕을 얹었, [에게] 새집을 주었|got boards, measured the [], set a roof, gave the [] a home
빈 우리를 보았, [의] 발자국을 쫓았, 이름을 외쳤, [을] 안고 돌아왔|saw no one, tracked the [], called, carried the [] home"""

# Homographs: two phrases for each of two senses; @ is the word.
HOMOGRAPHS = """배: @를 타고 갔|went by boat; @에 짐을 실었|loaded a boat; @를 깎았|peeled a pear; @를 땄|picked a pear
눈: @을 감았|closed both eyes; @을 비볐|rubbed an eye; @을 뭉쳤|made a snowball; @을 치웠|cleared the snow
말: @을 타고 달렸|rode a horse; @을 길들였|tamed a horse; @을 더듬었|stammered; @을 아꼈|spoke little
차: @를 몰았|drove a car; @를 세웠|parked the car; @를 끓였|made tea; @를 마셨|drank tea
다리: @를 다쳤|hurt a leg; @를 꼬았|crossed both legs; @를 건넜|crossed the bridge; @를 놓았|built a bridge
밤: @을 새웠|stayed up all night; @에 산책했|walked at night; @을 구웠|roasted chestnuts; @을 깠|shelled chestnuts
벌: @에 쏘였|was stung by a bee; @을 쫓았|chased a bee away; @을 받았|was punished; @을 내렸|gave a punishment
풀: @을 베었|cut the grass; @을 뽑았|pulled up grass; @로 종이를 붙였|glued paper; @을 발랐|spread the glue
병: @에 걸렸|fell ill; @이 나았|got over an illness; @에 물을 담았|filled a bottle; @을 땄|opened a bottle
사과: @를 베어 물었|bit an apple; @를 씻었|washed an apple; @를 받아 주었|accepted an apology; @를 했|apologised
절: @에서 기도했|prayed at a temple; @을 찾았|visited a temple; @을 올렸|made a deep bow; @을 받았|was bowed to
김: @에 밥을 쌌|wrapped rice in seaweed; @을 구웠|toasted seaweed; @을 쐬었|breathed steam; @을 식혔|let steam out"""


def forms(line: str) -> list[tuple[str, ...]]:
    """'[을] 밟았, [이] 깨졌|stepped on the [], ...' -> for each language its parts, with {noun:을} for [을]."""
    return [tuple(re.sub(r"\[(.*?)\]", r"{noun:\1}", part).split(", ")) for part in line.split("|")]


# Of twelve nouns six are told everything of their kind; the others are asked, four in the test, two in train and dev.
# RULES and SCRIPTED: {"told": [(noun, rule), ...], "test" and "dev": [(noun, [rules that are never told of it]), ...]}
SHARES = ("test",) * 4 + ("dev",) * 2 + ("told",) * 6
THINGS, RULES, SCRIPTED = [], *({"told": [], "test": [], "dev": []} for _ in range(2))
for _c, (_a, _b, *_lines) in enumerate(zip(*[iter(CATEGORIES.splitlines())] * 5, strict=True)):
    _nouns, _suits = f"{_a} {_b}".split(" | ")
    _nouns, _rules = pairs(_nouns), [forms(line) for line in _lines]
    _scripts = [forms(line) for line in SCRIPTS.splitlines()[4 * _c:4 * _c + 4]]
    THINGS += [(noun, [OPPOSITES[int(i)] for i in _suits.split()]) for noun in _nouns]
    for _i, _share in enumerate(SHARES):
        _noun, _other = _nouns[_i], _nouns[(_i + 6) % 12]
        if _share == "told":
            RULES["told"] += [(_noun, rule) for rule in _rules]
            SCRIPTED["told"] += [(_other, script) for script in _scripts]
        else:  # two rules are asked, the third is told
            RULES[_share].append((_noun, [_rules[_i % 3], _rules[(_i + 1) % 3]]))
            RULES["told"].append((_noun, _rules[(_i + 2) % 3]))
            SCRIPTED[_share] += [(_other, _scripts)] if _scripts else []
SENSES = {word: [[tuple(phrase.split("|")) for phrase in phrases.split("; ")[i:i + 2]] for i in (0, 2)]
          for word, phrases in (line.split(": ") for line in HOMOGRAPHS.splitlines())}


# -------------------------------------------------------------------------------------------------------- telling it

class Dice:
    """The one source of chance. `bits` sums -log2 of the probability of every choice made."""

    def __init__(self, seed: str):
        self.random, self.bits = random.Random(seed), 0.0

    def pick(self, options: Sequence, weights: Sequence[float] | None = None):
        """One of the options: all alike, or by weights that sum to 1."""
        i = self.random.choices(range(len(options)), weights)[0] if weights else self.random.randrange(len(options))
        self.bits -= math.log2(weights[i] if weights else 1 / len(options))
        return options[i]


class Teller(Dice):
    """Tells the world in one language (0 Korean, 1 English), a topic a method; each takes the name of who it is about."""

    def __init__(self, seed: str, language: int, names: Sequence[Pair] = NAMES):
        super().__init__(seed)
        self.language, self.names, self.level = language, names, 0

    def document(self) -> str:
        """Four or five topics, all in one speech level: plain half of the time, as in writing."""
        self.level = self.pick((0, 1, 2), (0.5, 0.25, 0.25)) if self.language == 0 else 0
        topics = [self.pick(list(TOPICS), list(TOPICS.values())) for _ in range(self.pick((4, 5)))]
        return " ".join(topic(self, self.pick(self.names)) for topic in topics)

    def say(self, korean: str, english: str, **words) -> str:
        """The language's template with the words (pairs) in it, drawing those of SLOTS that are not given. {da} is the
        ending of the speech level, {na} the asking one; English sentences get their capitals."""
        for slot in re.findall(r"{(\w+)", korean):
            if slot in SLOTS and slot not in words:
                words[slot] = self.pick(SLOTS[slot])
        here = {slot: word[self.language] if isinstance(word, tuple) else word for slot, word in words.items()}
        text = (korean, english)[self.language].format(**here, da=END[self.level], na=ASK[self.level])
        return re.sub(r"(^|[.?] )([a-z])", lambda m: m[1] + m[2].upper(), text) if self.language else text

    def introduction(self, name: Pair) -> str:
        return self.say("{name:은} {place} 근처에 사는 {job:이었}{da}.", "{name} was {job} who lived near the {place}.", name=name)

    def outing(self, name: Pair) -> str:
        friend = self.pick([other for other in self.names if other != name])
        return self.say("{time} {name:과} {friend:은} {place:으로} {went}{da}.",
                        "{time} {name} and {friend} {went} to the {place}.", name=name, friend=friend)

    def deed(self, name: Pair) -> str:
        noun, suits = self.pick(THINGS)
        return self.say("{time} {name:은} {place}에서 {a.modifier} {noun:을} {did}{da}.",
                        "{time} {name} {did} the {a.english} {noun} at the {place}.",
                        name=name, noun=noun, a=self.pick(self.pick(suits)))

    def quality(self, name: Pair, noun: Pair, a: Adjective, b: Adjective) -> str:
        return self.say("{name}의 {noun:은} {a.stem}고 {b.past}{da}.", "{name}'s {noun} was {a.english} and {b.english}.",
                        name=name, noun=noun, a=a, b=b)

    def description(self, name: Pair) -> str:
        noun, suits = self.pick(THINGS)
        first = self.pick(suits)
        second = self.pick([pair for pair in suits if pair is not first])
        return self.quality(name, noun, self.pick(first), self.pick(second))

    def question(self, name: Pair) -> str:
        noun, suits = self.pick(THINGS)
        pair = self.pick(suits)
        a, ask = self.pick(pair), self.pick(pair)
        return self.say("{name}의 {noun:은} {a.past}{da}. 질문: {noun:은} {ask.past}{na}? 답변: {answer}.",
                        "{name}'s {noun} was {a.english}. Question: Was the {noun} {ask.english}? Answer: {answer}.",
                        name=name, noun=noun, a=a, ask=ask, answer=("예", "yes") if a is ask else ("아니오", "no"))

    def review(self, name: Pair) -> str:
        noun, suits = self.pick(THINGS)
        side = self.pick((0, 1))
        a = self.pick([pair for pair in suits if OPPOSITES.index(pair) < 12])[side]
        return self.say("{noun:이} 정말 {judged}. {name:은} {price}00원을 주고 샀는데 {verdict}{da}.",
                        "The {noun} is very {judged}. {name} paid {price}00 won and {verdict}.", name=name, noun=noun,
                        judged=(a.present[self.level], a.english), verdict=self.pick(SLOTS[("good", "bad")[side]]),
                        price=f"{self.pick(range(1, 100))},{self.pick(range(10))}")

    def homograph(self, name: Pair) -> str:
        word = self.pick(list(SENSES))
        korean, english = self.pick(self.pick(SENSES[word]))
        return self.say("{time} {name:은} " + korean.replace("@", word) + "{da}.", "{time} {name} " + english + ".", name=name)

    def causality(self, name: Pair) -> str:
        noun, (korean, english) = self.pick(RULES["told"])
        if self.pick((True, False)):
            return self.say("{time} {name:이} %s{da}. 그래서 %s{da}." % korean, "{time} {name} %s. So %s." % english,
                            name=name, noun=noun)
        why = self.pick(REASON[self.level]) if self.language == 0 else ""
        return self.say("{name}의 %s{da}. 왜냐하면 {time} {name:이} %s{why}." % korean[::-1],
                        "%s. That is because {time} {name} %s." % english[::-1].replace("the {noun", "{name}'s {noun"),
                        name=name, noun=noun, why=why)

    def story(self, name: Pair) -> str:
        noun, (korean, english) = self.pick(SCRIPTED["told"])
        return self.say(STEPS[0] % korean, STEPS[1] % english, name=name, noun=noun, third=self.pick(SLOTS["then"]))
