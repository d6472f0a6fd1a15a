"""The README's first picture, the pipeline from raw text to scores, in English and in Korean.

    python -m bench.pipeline          # docs/figures/pipeline.svg and pipeline.ko.svg

Five cards from left to right, a step of the recipe each: what it does, a small drawing, and the
file where it is done. Written as SVG by hand, because no plotting library draws such a thing well.
The cards bring their own background, so the picture can be read on a light and on a dark page.

The sentence in the second card is segmented as Mistral 7B v0.1's tokenizer does, and as it does
after 7,654 Korean pieces were merged into it:

    python tokenizer.py merge --base mistral.model --korean out/real/korean.model --out merged.model
"""
from html import escape
from pathlib import Path

from bench import measure

CARD = 168  # width of a card
GAP = 15  # between two cards
MARGIN = 12  # inside a card
TOP = 64  # where the drawings begin
HEIGHT = 334
WIDTH = 5 * CARD + 4 * GAP

STYLE = """
  text { font-family: -apple-system, 'Segoe UI', Helvetica, Arial, 'Noto Sans KR', 'Malgun Gothic',
         'Apple SD Gothic Neo', sans-serif; fill: #1f2328; }
  .card { fill: #f6f8fa; stroke: #d1d9e0; }
  .title { font-size: 15px; font-weight: 600; }
  .small { font-size: 12px; fill: #59636e; }
  .label { font-size: 12px; }
  .file { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 11.5px;
          fill: #59636e; }
  .arrow { fill: none; stroke: #818b98; stroke-width: 1.6; }
  .old { fill: #d1d9e0; stroke: none; }
  .new { fill: #2f81f7; stroke: none; }
  .tiny { font-size: 11px; fill: #59636e; }
  .byte { fill: #f1c69b; stroke: none; }
  .link { fill: none; stroke: #2f81f7; stroke-width: 1.2; }
  .lora { fill: #d1d9e0; stroke: #2f81f7; stroke-width: 1.6; }
  .on-new { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .card { fill: #161b22; stroke: #3d444d; }
    .small, .tiny, .file { fill: #9198a1; }
    .old { fill: #3d444d; }
    .byte { fill: #8a5a2b; }
    .lora { fill: #3d444d; }
    .on-new { fill: #ffffff; }
  }
"""

# "The whale learned Korean." ▁ is SentencePiece's symbol for a space, <0xEC> a byte token.
SENTENCE = "고래가 한국어를 배웠다"
BEFORE = ["▁", "고", "래", "가", "▁", "한", "국", "어", "를", "▁", "배", "EC", "9B", "A0", "다"]
AFTER = ["▁고", "래", "가", "▁한국", "어를", "▁배", "웠다"]
BYTES = ("EC", "9B", "A0")

TEXTS = {
    "en": {
        "picture": "The pipeline: clean a corpus, merge Korean pieces into the base's tokenizer, "
                   "grow the model, train it in stages, score it",
        "titles": ["1  Clean", "2  Merge", "3  Grow", "4  Train", "5  Score"],
        "subtitles": [
            "a Korean corpus",
            "Korean into the tokenizer",
            "embedding and head",
            "a part at a time",
            "Korean, and English kept",
        ],
        "steps": ["normalise", "mask personal data", "cut leftovers", "filter by rules",
                  "deduplicate", "cut repeated lines", "filter by perplexity",
                  "remove the benchmark"],
        "before": "base: {} tokens",
        "after": "merged: {} tokens",
        "sentence": "“The whale learned Korean”",
        "byte": "bytes of one syllable",
        "old rows": "rows of the base",
        "new rows": "new: mean of the rows",
        "new rows 2": "that spelled the piece",
        "stages": ["embed,\nhead", "odd\nlayers", "even\nlayers", "LoRA"],
        "trained": "trained",
        "frozen": "frozen: no gradient,",
        "frozen 2": "no optimizer state",
        "lora": "frozen, with a LoRA",
        "scores": [("bits per byte", "of Korean and English"), ("KoBEST", "five Korean tasks"),
                   ("samples", "what does it say?")],
    },
    "ko": {
        "picture": "전체 과정: 말뭉치 정제, 한국어 조각 병합, 모델 확장, 단계별 학습, 평가",
        "titles": ["1  정제", "2  병합", "3  확장", "4  학습", "5  평가"],
        "subtitles": ["한국어 말뭉치", "토크나이저에 한국어 추가", "임베딩과 출력층",
                      "한 부분씩 차례로", "한국어 실력과 영어 보존"],
        "steps": ["정규화", "개인정보 마스킹", "찌꺼기 제거", "규칙 필터", "중복 문서 제거",
                  "반복되는 줄 제거", "퍼플렉시티 필터", "평가 문항 제거"],
        "before": "기존: 토큰 {}개",
        "after": "병합 후: 토큰 {}개",
        "sentence": SENTENCE,
        "byte": "음절 하나를 나눈 바이트",
        "old rows": "기존 모델의 행",
        "new rows": "새 행: 그 조각을 나타내던",
        "new rows 2": "기존 행들의 평균",
        "stages": ["임베딩,\n출력층", "홀수\n층", "짝수\n층", "LoRA"],
        "trained": "학습",
        "frozen": "동결: 그래디언트도",
        "frozen 2": "옵티마이저 상태도 없음",
        "lora": "동결, LoRA만 학습",
        "scores": [("바이트당 비트 수", "한국어와 영어"), ("KoBEST", "한국어 다섯 과제"),
                   ("샘플", "어떻게 이어 쓰나?")],
    },
}
FILES = ["cleaning/", "tokenizer.py", "init.py", "train.py", "eval_kobest.py"]

LAYERS = 6  # of the model that is drawn; layer 1 is odd


# ---- SVG -----------------------------------------------------------------------------------------


def text(x: float, y: float, words: str, kind: str = "label", anchor: str = "start") -> str:
    """A line of text; y is its baseline."""
    anchored = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}"{anchored}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 3) -> str:
    """A rectangle with round corners."""
    return (f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'class="{kind}"/>')


def arrow(x: float, y: float, length: float) -> str:
    """From left to right, its point at the end."""
    end = x + length
    return f'<path d="M{x:g} {y:g} H{end:g} m-4 -4 l4 4 l-4 4" class="arrow"/>'


# ---- The five drawings; x is a card's left edge inside its margin --------------------------------


def draw_steps(x: float, words: dict) -> list[str]:
    """The cleaning steps, in their order."""
    parts = []
    for i, step in enumerate(words["steps"]):
        y = TOP + 16 + 27 * i
        parts.append(f'<circle cx="{x + 4:g}" cy="{y - 4:g}" r="3" class="new"/>')
        parts.append(text(x + 15, y, step))
    return parts


def draw_tokens(x: float, words: dict) -> list[str]:
    """The sentence in the base's tokens, and in those of the merged tokenizer."""
    # Before: syllables one by one, and one that is no piece, in three bytes.
    parts = [text(x, TOP + 12, words["before"].format(len(BEFORE)), "small")]
    bottom, chips = draw_chips(x, TOP + 20, BEFORE, "old")
    parts += chips

    # After: words and their endings.
    parts.append(text(x, bottom + 34, words["after"].format(len(AFTER)), "small"))
    bottom, chips = draw_chips(x, bottom + 42, AFTER, "new")
    parts += chips

    parts.append(text(x, bottom + 24, words["sentence"], "tiny"))
    parts.append(box(x, bottom + 33, 10, 10, "byte", 2))
    parts.append(text(x + 16, bottom + 42, words["byte"], "small"))
    return parts


def draw_chips(x: float, y: float, tokens: list[str], kind: str) -> tuple[float, list[str]]:
    """A box per token, wrapped at the card's width; (the bottom of the last row, the boxes)."""
    parts = []
    left = x
    for token in tokens:
        width = 8 + sum(13 if "가" <= letter <= "힣" else 7.5 for letter in token)
        if left + width > x + CARD - 2 * MARGIN:
            left = x
            y += 25
        is_byte = token in BYTES
        parts.append(box(left, y, width, 21, "byte" if is_byte else kind))
        text_kind = "label on-new" if kind == "new" else "label"
        parts.append(text(left + width / 2, y + 15, token, text_kind, "middle"))
        left += width + 4
    return y + 21, parts


def draw_rows(x: float, words: dict) -> list[str]:
    """The table grown: a new row is the mean of old ones."""
    width = 92
    parts = []

    # The rows that were there, and the new ones below them.
    old = [TOP + 12 + 13 * i for i in range(7)]
    for y in old:
        parts.append(box(x, y, width, 9, "old"))
    new = [TOP + 112 + 13 * i for i in range(4)]
    for y in new:
        parts.append(box(x, y, width, 9, "new"))

    # The first new row comes from three old ones.
    for source in (old[1], old[3], old[4]):
        start = source + 4.5
        end = new[0] + 4.5
        parts.append(f'<path d="M{x + width:g} {start:g} C{x + width + 40:g} {start:g} '
                     f'{x + width + 40:g} {end:g} {x + width + 3:g} {end:g}" class="link"/>')

    # What the colours mean.
    parts.append(box(x, TOP + 181, 10, 10, "old", 2))
    parts.append(text(x + 16, TOP + 190, words["old rows"], "small"))
    parts.append(box(x, TOP + 198, 10, 10, "new", 2))
    parts.append(text(x + 16, TOP + 207, words["new rows"], "small"))
    parts.append(text(x + 16, TOP + 223, words["new rows 2"], "small"))
    return parts


def draw_stages(x: float, words: dict) -> list[str]:
    """Four times the model, head at the top, embedding at the bottom: what each stage trains."""
    parts = []
    for number, name in enumerate(words["stages"]):
        left = x + 37 * number
        for row in range(LAYERS + 2):
            layer = LAYERS + 1 - row  # 0 is the embedding, LAYERS + 1 the head
            parts.append(box(left, TOP + 12 + 15 * row, 30, 10, colour(number, layer), 2))
        for i, line in enumerate(name.split("\n")):
            parts.append(text(left + 15, TOP + 148 + 14 * i, line, "small", "middle"))

    # What the colours mean.
    parts.append(box(x, TOP + 181, 10, 10, "new", 2))
    parts.append(text(x + 16, TOP + 190, words["trained"], "small"))
    parts.append(box(x, TOP + 197, 10, 10, "lora", 2))
    parts.append(text(x + 16, TOP + 206, words["lora"], "small"))
    parts.append(box(x, TOP + 213, 10, 10, "old", 2))
    parts.append(text(x + 16, TOP + 222, words["frozen"], "small"))
    parts.append(text(x + 16, TOP + 236, words["frozen 2"], "small"))
    return parts


def colour(stage: int, layer: int) -> str:
    """Of a layer in a stage: trained, frozen, or with a LoRA.

    >>> [colour(1, layer) for layer in range(4)]        # the odd layers
    ['old', 'new', 'old', 'new']
    """
    is_table = layer in (0, LAYERS + 1)
    if stage == 0:
        return "new" if is_table else "old"
    if is_table:
        return "old"
    if stage == 3:
        return "lora"
    is_odd = layer % 2 == 1
    return "new" if is_odd == (stage == 1) else "old"


def draw_scores(x: float, words: dict) -> list[str]:
    """What is measured at the end."""
    parts = []
    for i, (name, what) in enumerate(words["scores"]):
        y = TOP + 12 + 66 * i
        parts.append(box(x, y, 4, 38, "new", 2))
        parts.append(text(x + 14, y + 15, name))
        parts.append(text(x + 14, y + 33, what, "small"))
    return parts


DRAWINGS = [draw_steps, draw_tokens, draw_rows, draw_stages, draw_scores]


def picture(language: str) -> str:
    """The whole SVG."""
    words = TEXTS[language]
    parts = []
    for i, draw in enumerate(DRAWINGS):
        left = i * (CARD + GAP) + 0.5
        inside = left + MARGIN
        parts.append(box(left, 0.5, CARD - 1, HEIGHT - 1, "card", 8))
        parts.append(text(inside, 27, words["titles"][i], "title"))
        parts.append(text(inside, 48, words["subtitles"][i], "small"))
        parts += draw(inside, words)
        parts.append(text(inside, HEIGHT - 14, FILES[i], "file"))
        if i:
            parts.append(arrow(left - GAP + 1, HEIGHT / 2, GAP - 3))
    body = "\n".join(parts)
    described = f'role="img" aria-label="{escape(words["picture"])}"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" {described}>\n'
            f"<style>{STYLE}</style>\n{body}\n</svg>\n")


def main() -> None:
    """Write both pictures."""
    for language, name in (("en", "pipeline.svg"), ("ko", "pipeline.ko.svg")):
        file = measure.ROOT / "docs" / "figures" / name
        Path(file).write_text(picture(language), encoding="utf-8")
        print(f"figure: {file.relative_to(measure.ROOT)}")


if __name__ == "__main__":
    main()
