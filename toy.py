"""A small world, told in English and in Korean, for machines without a network: a corpus with known faults, and a KoBEST.

People of a village drop cups, grow potatoes, praise horses. What happens follows rules: 30 causes with their effects, 20
scripts of four steps, each for a category of nouns. A model can learn that whoever drops a *cup* breaks it, and be asked
about *plates*. Three things make it a fair measure rather than a rigged one:

- **What is asked was never told.** The (rule, noun) pairs of the test items, right and wrong answers alike, and the names
  in them, occur nowhere in the corpus (nor in train and dev, which have held-out pairs of their own).
- **The answer alone says nothing.** Items come in mirrored groups that share their choices: each choice is right exactly
  as often as it is wrong, so that a scorer that does not read the context gets exactly chance.
- **The floor is known.** Every choice goes through `Dice`, which sums -log2 of its probability: no model can spend fewer
  bits on average than the generator's entropy. (An upper bound of it: a few different choices make the same text.)

Planted faults (3 % exact copies, 5 % near copies, 3 % junk, 1 % personal data, 0.5 % leaked test items) are listed in
planted.json, so that cleaning has a precision and a recall. No phone, card or resident number can be anybody's.

    python toy.py --out out/toy                            # en/*.jsonl, ko/*.jsonl, kobest/v1.0, planted.json, entropy.json
"""
import argparse
import csv
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cli

# ------------------------------------------------------------------------------------------------ the Korean language

JOSA = {"은": "는", "이": "가", "을": "를", "과": "와", "으로": "로"}  # topic, subject, object, and/with, by/to: C, V
END = ("다", "어요", "습니다")  # of a past stem, by speech level: plain 해라체, polite 해요체, formal 합쇼체
ASK = ("나", "나요", "습니까")  # the same, asking
REASON = (("다", "기 때문이다"), ("거든요", "기 때문이에요"), ("기 때문입니다",))  # "that is because", by level


def final(word: str) -> int:
    """Number of the last syllable's final consonant: 0 none, 8 ㄹ. final("컵 cup"[:1]) -> 17 (ㅂ), final("차") -> 0."""
    return (ord(word[-1]) - 0xAC00) % 28 if "가" <= word[-1] <= "힣" else 0


def josa(word: str, particle: str) -> str:
    """The word with its particle, whose form follows the word's last sound; particles with one form are just added.

    >>> [josa(w, p) for w, p in (("컵", "은"), ("차", "은"), ("길", "으로"), ("집", "으로"), ("소", "에게"))]
    ['컵은', '차는', '길로', '집으로', '소에게']"""
    vowel = final(word) == 0 or (particle == "으로" and final(word) == 8)  # after ㄹ it is 로 too
    return word + (JOSA.get(particle, particle) if vowel else particle)


def fill(template: str, noun: str) -> str:
    """Put the noun into `[particle]` slots: fill("[을] 보았", "차") -> "차를 보았"; fill("saw the []", "car") works too."""
    return re.sub(r"\[(.*?)\]", lambda slot: josa(noun, slot[1]), template)


def was(word: str) -> str:
    """Past stem of 이다 (to be): 의사 -> 의사였, 선생님 -> 선생님이었."""
    return word + ("이었" if final(word) else "였")


class Adjective:
    """A Korean adjective from its stem and its infinitive (무겁, 무거워: heavy); all other forms follow.

    >>> a = Adjective("무겁 무거워 heavy"); a.past, a.modifier, a.present(0), a.present(2)
    ('무거웠', '무거운', '무겁다', '무겁습니다')"""

    def __init__(self, line: str):
        self.stem, self.infinitive, self.english = line.split(" ", 2)
        self.past = self.infinitive[:-1] + chr(ord(self.infinitive[-1]) + 20)  # 워 + ㅆ = 웠
        base = self.stem[:-1] + chr(ord(self.stem[-1]) - final(self.stem)) if final(self.stem) == 8 else self.stem
        if final(base) == 17 and self.infinitive.endswith("워"):  # ㅂ-irregular: 무겁 -> 무거우 + ㄴ
            self.modifier = base[:-1] + chr(ord(base[-1]) - 17) + "운"
        else:
            self.modifier = base + "은" if final(base) else base[:-1] + chr(ord(base[-1]) + 4)
        self.formal = base + "습니다" if final(base) else base[:-1] + chr(ord(base[-1]) + 17) + "니다"

    def present(self, level: int) -> str:
        """Present predicate at a speech level: 무겁다, 무거워요, 무겁습니다."""
        return (self.stem + "다", self.infinitive + "요", self.formal)[level]


# ------------------------------------------------------------------------------------------------------------ the world

FIRST = "민Min 서Seo 지Ji 하Ha 도Do 예Ye 수Su 은Eun 현Hyeon 재Jae 유Yu 시Si 승Seung 태Tae 소So 다Da 나Na 주Ju 정Jeong 우U"
SECOND = "준jun 윤yun 우u 연yeon 진jin 현hyeon 호ho 빈bin 원won 희hui 아a 민min 영yeong 은eun 훈hun"
WORDS = set("민민 현현 우우 은은 지진 지원 서민 시민 주민 도민 수준 예민 수은 수영 수원 우연 주연 정원 소원 시원 지연 유연 재현 유아 "
            "소아 나은 주은 우아 도진 시진 서은 현민 재민 하연 정은 유민 우호 다은 나우 정우 유원".split())  # mean other things
NAMES = [(a[0] + b[0], a[1:] + b[1:]) for a in FIRST.split() for b in SECOND.split() if a[0] + b[0] not in WORDS]
TEST_NAMES, NAMES = NAMES[::10], [name for i, name in enumerate(NAMES) if i % 10]  # a tenth is kept for the test items


def pairs(text: str) -> list[tuple[str, str]]:
    """'컵 cup, 접시 plate' -> [('컵', 'cup'), ('접시', 'plate')]; _ stands for a space inside the Korean."""
    return [(ko.replace("_", " "), en) for ko, en in (item.split(" ", 1) for item in re.split(r",\s*", text))]


TIMES = pairs("""월요일에 on Monday, 화요일에 on Tuesday, 수요일에 on Wednesday, 목요일에 on Thursday, 금요일에 on Friday,
토요일에 on Saturday, 일요일에 on Sunday, 일월에 in January, 이월에 in February, 삼월에 in March, 사월에 in April, 오월에 in May,
유월에 in June, 칠월에 in July, 팔월에 in August, 구월에 in September, 시월에 in October, 십일월에 in November, 십이월에 in December,
어제 yesterday, 지난주에 last week, 아침에 in the morning, 저녁에 in the evening, 작년에 last year""")
PLACES = pairs("""시장 market, 학교 school, 공원 park, 도서관 library, 병원 hospital, 역 station, 광장 square, 교실 classroom,
은행 bank, 호텔 hotel, 강가 riverside, 극장 theatre, 운동장 playground, 우체국 post office, 박물관 museum, 식당 restaurant""")
JOBS = pairs("""의사 a doctor, 선생님 a teacher, 농부 a farmer, 화가 a painter, 가수 a singer, 목수 a carpenter, 경찰관 a police officer,
요리사 a cook, 기자 a reporter, 소방관 a firefighter, 어부 a sailor, 작가 a writer, 군인 a soldier, 배우 an actor, 상인 a merchant, 간호사 a nurse""")
MOVES = pairs("걸어갔 walked, 뛰어갔 ran, 소풍을_갔 went on a trip, 심부름을_갔 went on an errand")
DEEDS = pairs("보았 saw, 찾았 found, 샀 bought, 팔았 sold, 그렸 drew, 자랑했 showed off, 구경했 looked at, 칭찬했 praised")
THEN = pairs("이어서 Next, 그다음에 After that, 그러고_나서 And then, 그리고 Then")
VERDICTS = (pairs("마음에_들었 liked it, 아주_만족했 was very content, 또_사고_싶었 wanted another one, 자랑하고_싶었 was proud"),
            pairs("실망했 was disappointed, 크게_후회했 regretted it, 돈이_아까웠 missed the money, 화가_났 was angry"))

# Twenty pairs of opposites; the first twelve have a good and a bad side, which reviews need.
ADJECTIVES = [tuple(map(Adjective, pair.split("/"))) for pair in re.split(r",\s*", """
튼튼하 튼튼해 sturdy/약하 약해 weak, 편하 편해 comfortable/불편하 불편해 uncomfortable, 깨끗하 깨끗해 clean/더럽 더러워 dirty,
예쁘 예뻐 pretty/촌스럽 촌스러워 tacky, 싱싱하 싱싱해 fresh/질기 질겨 tough, 달콤하 달콤해 sweet/쓰 써 bitter,
조용하 조용해 quiet/시끄럽 시끄러워 noisy, 빠르 빨라 fast/느리 느려 slow, 싸 싸 cheap/비싸 비싸 expensive,
흥미롭 흥미로워 interesting/지루하 지루해 boring, 얌전하 얌전해 gentle/사납 사나워 fierce, 새롭 새로워 new/낡 낡아 worn,
크 커 big/작 작아 small, 무겁 무거워 heavy/가볍 가벼워 light, 길 길어 long/짧 짧아 short, 두껍 두꺼워 thick/얇 얇아 thin,
밝 밝아 bright/어둡 어두워 dark, 둥글 둥글어 round/네모나 네모나 square, 단단하 단단해 hard/부드럽 부드러워 soft,
높 높아 tall/낮 낮아 low""".strip())]

# category: nouns; the adjective pairs that suit them; three rules: cause, effect | the same in English
CATEGORIES = {
 "dishes": ("컵 cup, 접시 plate, 유리병 bottle, 찻잔 teacup, 대접 bowl, 항아리 jar, 꽃병 vase, 술잔 goblet, 밥그릇 rice bowl, "
            "어항 fishbowl, 화분 flowerpot, 물병 pitcher", "0 2 3 8 12 13 15 17",
  "[을] 바닥에 떨어뜨렸, [이] 산산이 깨졌|dropped the [] on the floor, the [] broke into pieces",
  "[을] 난로 위에 두었, [이] 몹시 뜨거워졌|left the [] on the stove, the [] became very hot",
  "[을] 수세미로 문질렀, [이] 반짝반짝 빛났|scrubbed the [] with a sponge, the [] shone brightly"),
 "vegetables": ("감자 potato, 고구마 sweet potato, 당근 carrot, 토마토 tomato, 오이 cucumber, 딸기 strawberry, 수박 watermelon, "
                "호박 pumpkin, 양파 onion, 배추 cabbage, 참외 melon, 무 radish", "2 4 5 8 12 13 18",
  "[을] 더운 방에 묵혔, [이] 까맣게 썩었|kept the [] in a hot room, the [] rotted away",
  "[을] 냉동실에 넣었, [이] 꽁꽁 얼었|put the [] in the freezer, the [] froze solid",
  "[을] 발로 밟았, [이] 납작하게 으깨졌|stepped on the [], the [] was crushed flat"),
 "clothes": ("셔츠 shirt, 치마 skirt, 코트 coat, 조끼 vest, 스웨터 sweater, 재킷 jacket, 한복 hanbok, 원피스 dress, 점퍼 parka, "
             "잠옷 nightgown, 교복 uniform, 비옷 raincoat", "1 2 3 8 11 13 14 15 16",
  "[을] 끓는 물에 빨았, [이] 작게 줄어들었|boiled the [] in a pot, the [] shrank",
  "[을] 뾰족한 못에 걸었, [에] 구멍이 뚫렸|hung the [] on a sharp nail, a hole appeared in the []",
  "[을] 빗속에 널어 두었, [이] 흠뻑 젖었|left the [] out in the rain, the [] got soaking wet"),
 "furniture": ("의자 chair, 책상 desk, 침대 bed, 옷장 wardrobe, 책장 bookcase, 소파 sofa, 식탁 table, 서랍장 dresser, 선반 shelf, "
               "탁자 stand, 벤치 bench, 찬장 cupboard", "0 1 2 3 8 11 12 13 14 17 19",
  "[을] 톱으로 잘랐, [이] 두 동강 났|cut the [] with a saw, the [] fell into two halves",
  "[을] 닦지 않고 내버려 두었, [에] 먼지가 쌓였|left the [] without wiping it, dust gathered on the []",
  "[을] 모닥불 곁에 놓았, [이] 거멓게 그을렸|put the [] by the campfire, the [] was scorched"),
 "devices": ("컴퓨터 computer, 라디오 radio, 세탁기 washer, 냉장고 fridge, 선풍기 fan, 청소기 vacuum cleaner, 프린터 printer, "
             "에어컨 air conditioner, 믹서 blender, 난로 heater, 가습기 humidifier, 복사기 copier", "0 1 2 6 7 8 12 13",
  "[에] 물을 쏟았, [이] 고장 났|spilled water on the [], the [] stopped working",
  "[의] 전원을 켰, [이] 윙윙 소리를 냈|switched the [] on, the [] began to hum",
  "[의] 나사를 모두 풀었, [이] 조각조각 분해되었|removed every screw of the [], the [] came apart"),
 "animals": ("고양이 cat, 강아지 puppy, 토끼 rabbit, 염소 goat, 송아지 calf, 망아지 foal, 여우 fox, 다람쥐 squirrel, 당나귀 donkey, "
             "사슴 deer, 너구리 raccoon, 원숭이 monkey", "0 2 6 7 10 12 13",
  "[에게] 먹이를 잔뜩 주었, [이] 스르르 잠들었|gave the [] plenty of food, the [] fell asleep",
  "[의] 귀에 대고 소리쳤, [이] 멀리 달아났|shouted at the [], the [] ran far away",
  "[에게] 향수를 뿌렸, [에게서] 꽃 냄새가 났|sprayed perfume on the [], the [] smelled of flowers"),
 "plants": ("장미 rose, 튤립 tulip, 해바라기 sunflower, 소나무 pine tree, 난초 orchid, 국화 chrysanthemum, 백합 lily, "
            "대나무 bamboo, 단풍나무 maple, 수국 hydrangea, 제비꽃 violet, 은행나무 ginkgo", "0 3 8 12 14 19",
  "[에] 물을 주지 않았, [이] 바싹 시들었|did not water the [], the [] withered",
  "[에] 거름을 뿌렸, [이] 쑥쑥 자랐|spread manure around the [], the [] grew quickly",
  "[을] 어두운 창고에 가두었, [의] 잎이 누렇게 변했|kept the [] in a dark shed, the leaves of the [] turned yellow"),
 "vehicles": ("버스 bus, 트럭 truck, 택시 taxi, 오토바이 motorcycle, 승용차 car, 트랙터 tractor, 구급차 ambulance, 소방차 fire engine, "
              "스쿠터 scooter, 승합차 van, 경찰차 police car, 견인차 tow truck", "0 1 2 6 7 8 11 12 13 14",
  "[의] 브레이크를 밟았, [이] 끼익 멈췄|stepped on the brake of the [], the [] screeched to a halt",
  "[을] 담벼락에 박았, [이] 심하게 찌그러졌|crashed the [] into a wall, the [] was badly dented",
  "[을] 늪으로 몰았, [의] 바퀴가 푹 빠졌|drove the [] into a swamp, the wheels of the [] sank deep"),
 "meals": ("국수 noodle soup, 떡국 rice cake soup, 비빔밥 bibimbap, 만두 dumpling, 김밥 gimbap, 카레 curry, 죽 porridge, 볶음밥 fried rice, "
           "라면 ramen, 갈비탕 rib soup, 파스타 pasta, 불고기 bulgogi", "3 5 8 18",
  "[에] 소금을 들이부었, [이] 너무 짜졌|poured salt into the [], the [] became too salty",
  "[을] 센 불에 올려놓고 잊었, [이] 새까맣게 탔|forgot the [] on a high flame, the [] burned black",
  "[을] 창밖에 내놓았, [이] 싸늘하게 식었|set the [] outside the window, the [] went cold"),
 "papers": ("책 book, 편지 letter, 신문 newspaper, 공책 notebook, 잡지 magazine, 그림책 picture book, 지도 map, 사진첩 photo album, "
            "일기장 diary, 달력 calendar, 사전 dictionary, 악보 score", "3 8 9 11 12 13 15",
  "[을] 강물에 빠뜨렸, [이] 쭈글쭈글해졌|dropped the [] into the river, the [] became wrinkled",
  "[을] 벽난로에 던졌, [이] 재로 변했|threw the [] into the fireplace, the [] turned to ash",
  "[을] 가위로 마구 오렸, [이] 너덜너덜해졌|slashed the [] with scissors, the [] was left in tatters"),
}
# four scripts for each of five categories: four steps, the noun in the second and first in the fourth
SCRIPTS = {
 "vegetables": """물을 한 통 받았, [을] 깨끗이 헹궜, 믹서의 단추를 눌렀, [으로] 즙을 내어 마셨
filled a bucket with water, rinsed the [], pressed the button of the blender, drank the [] as juice
삽으로 밭을 갈았, [의] 모종을 심었, 날마다 잡초를 뽑았, [을] 한가득 거두었
dug the field with a spade, planted the [] seedlings, pulled weeds every day, harvested the [] by the heap
빈 상자를 트럭에 실었, [을] 크기대로 나누었, 시장에 자리를 잡았, [을] 손님에게 팔았
loaded boxes on a cart, sorted the [] by size, took a place at the market, sold the [] to a customer
항아리를 햇볕에 말렸, [을] 소금에 절였, 뚜껑을 꼭 닫았, [을] 한 달 뒤에 꺼냈
dried a pot in the sun, salted the [], closed the lid firmly, took the [] out a month later""",
 "clothes": """대야에 세제를 풀었, [을] 물에 담갔, 손으로 때를 뺐, [을] 빨랫줄에 널었
put soap in a basin, soaked the [], rubbed the stains by hand, hung the [] on the line
바늘에 실을 꿰었, [의] 찢어진 곳을 찾았, 한 땀씩 정성껏 꿰맸, [에] 새 단추까지 달았
threaded a needle, found the tear in the [], sewed stitch by stitch, gave the [] a new button too
지갑을 들고 집을 나섰, [을] 거울 앞에서 입어 보았, 점원에게 값을 물었, [을] 신용 카드로 샀
left home with a purse, tried the [] on, asked the clerk the price, bought the [] by credit card
고운 상자를 골랐, [을] 반듯하게 접었, 리본을 예쁘게 묶었, [을] 할머니께 선물했
chose a fine box, folded the [] neatly, tied a ribbon, gave the [] to Grandmother""",
 "furniture": """굵은 나무를 베었, [의] 설계도를 그렸, 망치로 못을 박았, [을] 드디어 완성했
felled a thick tree, drew a plan of the [], hammered the nails in, finished the [] at last
이삿짐 차를 불렀, [을] 담요로 감쌌, 계단을 조심조심 내려갔, [을] 새집에 들여놓았
called the movers, wrapped the [] in a blanket, went carefully down the stairs, put the [] in the new house
하얀 물감을 섞었, [을] 사포로 밀었, 큰 붓을 집어 들었, [을] 곱게 색칠했
mixed white paint, sanded the [], picked up a big brush, coloured the [] beautifully
인터넷에 광고를 올렸, [의] 사진을 찍었, 이웃과 값을 흥정했, [을] 헐값에 넘겼
put an advertisement online, photographed the [], haggled with a neighbour, let the [] go for little money""",
 "devices": """공구 상자를 열었, [의] 덮개를 떼어 냈, 낡은 부품을 갈았, [을] 말끔히 고쳤
opened a toolbox, took the cover off the [], replaced an old part, fixed the [] perfectly
설명서를 꼼꼼히 읽었, [을] 포장에서 꺼냈, 긴 전선을 벽에 꽂았, [을] 처음으로 작동시켰
read the manual, unpacked the [], plugged a long cord into the wall, started the [] for the first time
영수증을 챙겼, [에서] 흠집을 발견했, 가게에 전화로 항의했, [을] 다른 것으로 바꿨
kept the receipt, found a scratch on the [], complained to the shop by phone, exchanged the [] for another
부드러운 천을 적셨, [의] 먼지를 털어 냈, 구석까지 살살 닦았, [을] 제자리에 돌려놓았
wet a soft cloth, dusted the [], wiped every corner gently, put the [] back in its place""",
 "animals": """이마의 열을 쟀, [을] 병원에 데려갔, 의사에게 약을 받았, [을] 푹 쉬게 했
felt a hot forehead, took the [] to the clinic, got medicine from the vet, let the [] rest well
욕조에 물을 데웠, [을] 비누로 문질렀, 거품을 헹구어 냈, [을] 수건으로 감쌌
warmed water in a tub, soaped the [], rinsed the foam away, wrapped the [] in a towel
판자를 여러 장 모았, [의] 몸 크기를 쟀, 지붕을 튼튼하게 얹었, [에게] 새집을 마련해 주었
gathered some boards, measured the [], set a strong roof on top, gave the [] a new home
텅 빈 우리를 보았, [의] 발자국을 따라갔, 숲속에서 이름을 외쳤, [을] 품에 안고 돌아왔
saw the empty cage, followed the tracks of the [], called its name in the woods, came back with the [] in both arms""",
}
# twelve homographs: two lines a word, one for each sense; two phrases a sense (@ is the word)
HOMOGRAPHS = """배: @를 타고 섬으로 갔|took a boat to the island; @에 짐을 가득 실었|loaded the boat
배: @를 깎아 먹었|peeled a pear; 달콤한 @를 땄|picked a sweet pear
눈: @을 감고 쉬었|rested with closed eyes; @이 나빠 안경을 썼|wore glasses for weak eyes
눈: @을 뭉쳐 던졌|threw a snowball; 마당에 쌓인 @을 치웠|cleared the snow from the yard
말: @을 타고 들판을 달렸|rode a horse over the field; @에게 당근을 주었|gave a horse a carrot
말: 따뜻한 @을 건넸|spoke a warm word; @을 심하게 더듬었|stammered badly
차: @를 몰고 출근했|drove a car to work; @를 주차장에 세웠|parked the car
차: 뜨거운 @를 마셨|drank hot tea; 손님에게 @를 대접했|served tea to a guest
다리: @를 다쳐 절뚝거렸|limped with a hurt leg; @를 꼬고 앉았|sat with crossed legs
다리: 강 위의 @를 건넜|crossed the bridge; 돌로 @를 놓았|built a bridge of stone
밤: 늦은 @까지 일했|worked late into the night; 어두운 @에 산책했|walked in the dark night
밤: @을 구워 먹었|roasted chestnuts; 산에서 @을 주웠|gathered chestnuts on the hill
벌: @에 쏘여 울었|cried from a bee sting; 꿀을 따는 @을 보았|saw bees gather honey
벌: 지각해서 @을 받았|was punished for being late; 무거운 @을 내렸|gave a hard punishment
풀: 들에서 @을 베었|cut grass in the field; 토끼에게 @을 먹였|fed grass to the rabbits
풀: @로 종이를 붙였|stuck paper with glue; 봉투에 @을 발랐|put glue on an envelope
병: 무서운 @에 걸렸|fell badly ill; 오랜 @이 나았|recovered from a long illness
병: 빈 @에 물을 담았|filled an empty bottle with water; @의 마개를 열었|opened a bottle
사과: @를 한입 베어 물었|bit into an apple; 빨간 @를 샀|bought a red apple
사과: 잘못했다고 @를 했|apologised for a mistake; 친구의 @를 받아들였|accepted an apology
절: 산속의 @에서 기도했|prayed at a temple; 오래된 @을 찾아갔|visited an old temple
절: 할아버지께 @을 올렸|bowed to Grandfather; 무릎을 꿇고 @을 했|knelt down and bowed
김: 밥을 @에 싸 먹었|ate rice in seaweed; 바삭한 @을 구웠|toasted crisp seaweed
김: 하얀 @을 불어 식혔|blew the steam away; 안경에 서린 @을 닦았|wiped steam off the glasses"""

# ------------------------------------------------------------------------------------------ the world, in usable form

def cells(line: str) -> list[list[str]]:
    """'a, b|c, d' -> [['a', 'b'], ['c', 'd']]."""
    return [part.split(", ") for part in line.split("|")]


CATEGORY = {}  # name -> (nouns, adjective pairs, rules as ((cause, effect) in Korean, the same in English))
for _name, (_nouns, _adjectives, *_rules) in CATEGORIES.items():
    CATEGORY[_name] = pairs(_nouns), [ADJECTIVES[int(i)] for i in _adjectives.split()], [cells(r) for r in _rules]
SENSES: dict[str, list[list[tuple[str, str]]]] = {}  # word -> senses -> phrases (Korean, English)
for _word, _phrases in (line.split(": ") for line in HOMOGRAPHS.splitlines()):
    SENSES.setdefault(_word, []).append([tuple(phrase.split("|")) for phrase in _phrases.split("; ")])
THINGS = [(noun, adjectives) for nouns, adjectives, _ in CATEGORY.values() for noun in nouns]

# What is told and what is only asked. Nouns 0-5 of a category are asked of two rules in the test, 6-8 in train and dev, and
# then told of the third rule alone; 9-11 are told of all. For scripts it is 8-11, 6-7, and 0-5 told.
TOLD_RULES, ASKED_RULES = [], {"test": [], "dev": []}
for _nouns, _, _rules in CATEGORY.values():
    for _i, _noun in enumerate(_nouns):
        _a, _b, _c = (_rules[(_i + k) % 3] for k in range(3))
        TOLD_RULES += [(_noun, rule) for rule in ((_a, _b, _c) if _i > 8 else (_c,))]
        if _i <= 8:
            ASKED_RULES["test" if _i < 6 else "dev"].append((_noun, (_a, _b)))
TOLD_SCRIPTS, ASKED_SCRIPTS = [], {"test": [], "dev": []}
for _name, _table in SCRIPTS.items():
    _lines = _table.splitlines()
    _scripts = [(ko.split(", "), en.split(", ")) for ko, en in zip(_lines[::2], _lines[1::2], strict=True)]
    for _i, _noun in enumerate(CATEGORY[_name][0]):
        if _i < 6:
            TOLD_SCRIPTS += [(_noun, script) for script in _scripts]
        else:
            ASKED_SCRIPTS["test" if _i > 7 else "dev"].append((_noun, _scripts))


# ------------------------------------------------------------------------------------------------------- telling it

class Dice:
    """The one source of chance. `bits` sums -log2 of the probability of every choice: the entropy of what is told."""

    def __init__(self, seed: str):
        self.random, self.bits = random.Random(seed), 0.0

    def pick(self, options: Sequence, weights: Sequence[float] | None = None):
        """One of the options, uniformly or by weights (which sum to 1)."""
        i = self.random.choices(range(len(options)), weights)[0] if weights else self.random.randrange(len(options))
        self.bits -= math.log2(weights[i] if weights else 1 / len(options))
        return options[i]


class Teller:
    """Tells the world in one language (0 Korean, 1 English). Everything it draws is a (Korean, English) pair."""

    def __init__(self, dice: Dice, language: int, names: Sequence[tuple[str, str]] = NAMES):
        self.dice, self.pick, self.language, self.names, self.level = dice, dice.pick, language, names, 0

    def say(self, korean: str, english: str, ends: tuple[str, ...] = END) -> str:
        """A sentence: the Korean past stem gets the ending of the speech level, the English its capital."""
        if self.language == 0:
            return f"{korean}{ends[self.level]}."
        return f"{english[0].upper()}{english[1:]}."

    def document(self) -> str:
        """Four or five topics, in one speech level (plain half of the time, as in writing)."""
        self.level = self.pick((0, 1, 2), (0.5, 0.25, 0.25)) if self.language == 0 else 0
        kinds = [self.pick(list(TOPICS), list(TOPICS.values())) for _ in range(self.pick((4, 5)))]
        return " ".join(topic(self, self.pick(self.names)) for topic in kinds)


Pair = tuple[str, str]


def introduction(w: Teller, name: Pair) -> str:
    place, job = w.pick(PLACES), w.pick(JOBS)
    return w.say(f"{josa(name[0], '은')} {place[0]} 근처에 사는 {was(job[0])}",
                 f"{name[1]} was {job[1]} who lived near the {place[1]}")


def outing(w: Teller, name: Pair) -> str:
    time, place, move = w.pick(TIMES), w.pick(PLACES), w.pick(MOVES)
    friend = w.pick([other for other in w.names if other != name])
    return w.say(f"{time[0]} {josa(name[0], '과')} {josa(friend[0], '은')} {josa(place[0], '으로')} {move[0]}",
                 f"{time[1]} {name[1]} and {friend[1]} {move[1]} to the {place[1]}")


def deed(w: Teller, name: Pair) -> str:
    time, place, (noun, adjectives), act = w.pick(TIMES), w.pick(PLACES), w.pick(THINGS), w.pick(DEEDS)
    adjective = w.pick(w.pick(adjectives))
    return w.say(f"{time[0]} {josa(name[0], '은')} {place[0]}에서 {adjective.modifier} {josa(noun[0], '을')} {act[0]}",
                 f"{time[1]} {name[1]} {act[1]} the {adjective.english} {noun[1]} at the {place[1]}")


def quality(w: Teller, name: Pair, noun: Pair, first: Adjective, second: Adjective) -> str:
    return w.say(f"{name[0]}의 {josa(noun[0], '은')} {first.stem}고 {second.past}",
                 f"{name[1]}'s {noun[1]} was {first.english} and {second.english}")


def description(w: Teller, name: Pair) -> str:
    noun, adjectives = w.pick(THINGS)
    first = w.pick(adjectives)
    second = w.pick([pair for pair in adjectives if pair is not first])
    return quality(w, name, noun, w.pick(first), w.pick(second))


def question(w: Teller, name: Pair) -> str:
    noun, adjectives = w.pick(THINGS)
    first, second, ask = w.pick(w.pick(adjectives)), None, None
    pair = next(pair for pair in adjectives if first in pair)
    ask = w.pick(pair)
    answer = ("예", "yes") if ask is first else ("아니오", "no")
    korean = f"질문: {josa(noun[0], '은')} {ask.past}{ASK[w.level]}? 답변: {answer[0]}."
    english = f"Question: Was the {noun[1]} {ask.english}? Answer: {answer[1]}."
    return w.say(f"{name[0]}의 {josa(noun[0], '은')} {first.past}",
                 f"{name[1]}'s {noun[1]} was {first.english}") + " " + (korean, english)[w.language]


def review(w: Teller, name: Pair) -> str:
    noun, adjectives = w.pick(THINGS)
    side, price = w.pick((0, 1)), f"{w.pick(range(1, 100))},{w.pick(range(10))}00"
    adjective = w.pick([pair for pair in adjectives if ADJECTIVES.index(pair) < 12])[side]
    verdict = w.pick(VERDICTS[side])
    opening = (f"{josa(noun[0], '이')} 정말 {adjective.present(w.level)}. ", f"The {noun[1]} is very {adjective.english}. ")
    return opening[w.language] + w.say(f"{josa(name[0], '은')} {price}원을 주고 샀는데 {verdict[0]}",
                                       f"{name[1]} paid {price} won and {verdict[1]}")


def homograph(w: Teller, name: Pair) -> str:
    word = w.pick(list(SENSES))
    time, phrase = w.pick(TIMES), w.pick(w.pick(SENSES[word]))
    return w.say(f"{time[0]} {josa(name[0], '은')} {phrase[0].replace('@', word)}", f"{time[1]} {name[1]} {phrase[1]}")


def cause(w: Teller, name: Pair, time: Pair, noun: Pair, rule, ends=END) -> str:
    return w.say(f"{time[0]} {josa(name[0], '이')} {fill(rule[0][0], noun[0])}",
                 f"{time[1]} {name[1]} {fill(rule[1][0], noun[1])}", ends)


def effect(w: Teller, noun: Pair, rule, owner: Pair | None = None) -> str:
    mine = (f"{owner[0]}의 ", f"{owner[1]}'s []") if owner else ("", "the []")
    return w.say(mine[0] + fill(rule[0][1], noun[0]), fill(rule[1][1].replace("the []", mine[1]), noun[1]))


def causality(w: Teller, name: Pair) -> str:
    (noun, rule), time = w.pick(TOLD_RULES), w.pick(TIMES)
    if w.pick((True, False)):
        return f"{cause(w, name, time, noun, rule)} {('그래서', 'So')[w.language]} " + lower(w, effect(w, noun, rule))
    ends = [""] * 3
    ends[w.level] = w.pick(REASON[w.level]) if w.language == 0 else ""
    because = cause(w, name, time, noun, rule, tuple(ends))
    return f"{effect(w, noun, rule, name)} {('왜냐하면', 'That is because')[w.language]} " + lower(w, because)


def lower(w: Teller, sentence: str) -> str:
    return sentence if w.language == 0 or sentence.startswith("On ") else sentence[0].lower() + sentence[1:]


def steps(w: Teller, name: Pair, noun: Pair, script, time: Pair, second: Pair, third: Pair) -> list[str]:
    ko, en = ([fill(step, noun[i]) for step in script[i]] for i in (0, 1))
    return [w.say(f"{time[0]} {josa(name[0], '은')} {ko[0]}", f"{time[1]} {name[1]} {en[0]}"),
            w.say(f"{second[0]} {ko[1]}", f"{second[1]} {name[1]} {en[1]}"),
            w.say(f"{third[0]} {ko[2]}", f"{third[1]} {name[1]} {en[2]}"),
            w.say(f"마지막으로 {josa(name[0], '은')} {ko[3]}", f"finally {name[1]} {en[3]}")]


def story(w: Teller, name: Pair) -> str:
    noun, script = w.pick(TOLD_SCRIPTS)
    return " ".join(steps(w, name, noun, script, w.pick(TIMES), w.pick(THEN), w.pick(THEN)))


TOPICS = {causality: 0.34, story: 0.2, deed: 0.14, description: 0.08, outing: 0.06, homograph: 0.06, question: 0.05,
          review: 0.04, introduction: 0.03}


# ------------------------------------------------------------------------------------------------------------- KoBEST

def boolq(w: Teller, split: str, k: int) -> list[list]:
    name, (noun, adjectives) = w.pick(w.names), w.pick(THINGS)
    a, b = w.dice.random.sample(adjectives, 2)
    first, second = w.pick(a), w.pick(b)
    text = f"{introduction(w, name)} {deed(w, name)} {quality(w, name, noun, first, second)}"
    return [[text, f"{name[0]}의 {josa(noun[0], '은')} {asked.past}나?", asked is second] for asked in b]


def copa(w: Teller, split: str, k: int) -> list[list]:
    asked = ASKED_RULES[split]
    (noun, rules), name, time = asked[k // 2 % len(asked)], w.pick(w.names), w.pick(TIMES)
    rules = w.dice.random.sample(rules, 2)
    causes, effects = [cause(w, name, time, noun, r) for r in rules], [effect(w, noun, r) for r in rules]
    owned = [effect(w, noun, r, name) for r in rules]
    if k % 2:
        return [[owned[i], "원인", *causes, i + 1] for i in (0, 1)]
    return [[causes[i], "결과", *effects, i + 1] for i in (0, 1)]


def hellaswag(w: Teller, split: str, k: int) -> list[list]:
    asked = ASKED_SCRIPTS[split]
    (noun, scripts), name = asked[k % len(asked)], w.pick(w.names)
    told = w.pick(TIMES), w.pick(THEN), w.pick(THEN)
    tales = [steps(w, name, noun, script, *told) for script in w.dice.random.sample(scripts, 4)]
    return [[" ".join(tale[:3]), *(other[3] for other in tales), i] for i, tale in enumerate(tales)]


def sentineg(w: Teller, split: str, k: int) -> list[list]:
    noun, adjectives = w.pick(THINGS)
    side, pair = k % 2, w.pick([pair for pair in adjectives if ADJECTIVES.index(pair) < 12])
    verdicts = [w.pick(VERDICTS[i])[0] + "어요." for i in (side, 1 - side)]
    plain = f"{josa(noun[0], '이')} {pair[side].infinitive}서 {verdicts[0]}"
    negated = f"{josa(noun[0], '이')} {pair[side].stem}지 않아서 {verdicts[1]}"
    return [[plain, 1 - side, plain, 1 - side, "-"], [negated, side, plain, 1 - side, "지 않다"]]


def wic(w: Teller, split: str, k: int) -> list[list]:
    word = list(SENSES)[k % len(SENSES)]
    senses, rows = SENSES[word], []
    for same in (True, False):
        one = w.pick((0, 1))
        two = one if same else 1 - one
        a, b = w.dice.random.sample((0, 1), 2)
        told = [w.say(f"{w.pick(TIMES)[0]} {josa(w.pick(w.names)[0], '은')} "
                      f"{senses[s][p][0].replace('@', f'[{word}]')}", "") for s, p in ((one, a), (two, b))]
        rows.append([word, told[0], one + 1, f"toy:{word}:{one + 1}", told[1], two + 1, f"toy:{word}:{two + 1}", same])
    return rows


TASKS: dict[str, tuple[Callable, str]] = {
    "BoolQ": (boolq, "ID,Text,Question,Answer"),
    "COPA": (copa, "ID,sentence,question,1,2,Answer"),
    "HellaSwag": (hellaswag, "context,choice1,choice2,choice3,choice4,label"),
    "SentiNeg": (sentineg, "ID,Text,Label,Text_origin,Label_origin,Category_neg"),
    "WiC": (wic, "ID,Target,SENTENCE1,Dictionary 1,Link 1,SENTENCE2,Dictionary 2,Link2,ANSWER"),
}
