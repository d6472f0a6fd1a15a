"""Korean sentences for the tests of cleaning, similar enough to real Korean for its rules."""
import random

# Dog, cat, teacher, student, sea ...; saw, bought, met, drew ...; yesterday, today, last year ...
NOUNS = (
    "강아지 고양이 선생님 학생 바다 하늘 기차 도시 음악 책상 나무 겨울 친구 시장 다리 아침".split()
)
VERBS = "보았다 샀다 만났다 그렸다 불렀다 찾았다 고쳤다 옮겼다 기다렸다 잊었다".split()
WHEN = "어제 오늘 작년에 지난주에 봄에 밤에 새벽에 주말에".split()


def korean(rng: random.Random, sentences: int) -> str:
    """Sentences like 'yesterday the student saw the sea'."""
    return " ".join(
        f"{rng.choice(WHEN)} {rng.choice(NOUNS)}이 {rng.choice(NOUNS)}에서 {rng.choice(NOUNS)}을 "
        f"{rng.choice(VERBS)}."
        for _ in range(sentences)
    )


def edited(rng: random.Random, text: str, share: float) -> str:
    """The text with this share of its words, at least one, replaced by noise."""
    words = text.split(" ")
    for i in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[i] = "".join(rng.choices("가나다라마바사아자차", k=3))
    return " ".join(words)
