"""The n-gram model against Kneser-Ney written with dictionaries, and what is removed by it."""
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from sentences import korean

from cleaning import perplexity


def oracle(texts: list[str], order: int):
    """p(w | h) by the formula, for any h and w, with sets and counters."""
    line = "\n" + "".join(" ".join(text.split()) + "\n" for text in texts)
    grams = [Counter(line[i:i + n] for i in range(len(line) - n + 1)) for n in range(1, order + 1)]
    counts = [*[{g: max(1, len({longer for longer in grams[n] if longer[1:] == g}))
                 for g in grams[n - 1]}
                for n in range(1, order)], grams[-1]]
    totals, types, discounts = [], [], []
    for count in counts:
        total, kinds = defaultdict(int), defaultdict(int)
        for gram, c in count.items():
            total[gram[:-1]] += c
            kinds[gram[:-1]] += 1
        n1, n2 = (sum(c == k for c in count.values()) for k in (1, 2))
        totals.append(total)
        types.append(kinds)
        discounts.append(n1 / (n1 + 2 * n2) if n1 and n2 else 0.5)

    def p(w: str, h: str, n: int = order) -> float:
        if n == 0:
            return 1 / (len(grams[0]) + 1)
        h = h[len(h) - n + 1:] if len(h) >= n else None if n > len(h) + 1 else h
        if h is None or not totals[n - 1][h]:
            return p(w, h or "", n - 1) if h is not None else p(w, p.context, n - 1)
        total, d = totals[n - 1][h], discounts[n - 1]
        own = max(0, counts[n - 1].get(h + w, 0) - d) / total
        return own + d * types[n - 1][h] / total * p(w, h[1:], n - 1)

    def outer(w: str, h: str) -> float:
        p.context = h
        return p(w, h)
    return outer


def log2_p(model: perplexity.Model, text: str) -> np.ndarray:
    return model.log2_p(*perplexity.hash_characters([text]))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_model_against_dictionaries(order):
    rng = random.Random()
    texts = [
        "".join(rng.choices("가나다 라마", (9, 5, 3, 3, 1, 1), k=rng.randrange(1, 60)))
        for _ in range(8)
    ]
    model, p = perplexity.Model.train(texts, order), oracle(texts, order)
    for text in [*texts[:3], "".join(rng.choices("가나다 라마바", k=40)), "바가바", "나"]:
        text = " ".join(text.split())
        line = "\n" + text + "\n"
        expected = [np.log2(p(line[i], line[max(0, i - order + 1):i])) for i in range(1, len(line))]
        np.testing.assert_allclose(log2_p(model, text), expected, rtol=1e-4)


def test_probabilities_add_up_to_one():
    rng = random.Random()
    texts = [korean(rng, 5) for _ in range(20)]
    model = perplexity.Model.train(texts)
    characters = sorted({"\n", *"".join(texts)}) + ["뷁"]  # a syllable that does not occur
    for _ in range(20):
        text = rng.choice(texts)
        at = rng.randrange(1, len(text))
        history = rng.choice([text[:at].strip(), "뷁" + text[:at].strip(), text[:at] + "뷁"])
        lines = [history + c + "가" if c != "\n" else history for c in characters]
        total = sum(2.0 ** log2_p(model, line)[len(history)] for line in lines)
        assert abs(total - 1) < 1e-5


def test_bits_do_not_depend_on_the_batch_and_order_documents_rightly(tmp_path, monkeypatch):
    rng = random.Random()
    trained = perplexity.Model.train([korean(rng, 10) for _ in range(50)])
    trained.save(tmp_path / "m")
    model = perplexity.Model.load(tmp_path / "m")
    texts = [korean(rng, n) for n in (1, 5, 30)] + ["", "낯선 글자들만 모여 있는 줄", "dog cat"]
    together = model.bits(texts)
    monkeypatch.setattr(perplexity, "BATCH", 10)
    np.testing.assert_allclose(together, model.bits(texts), rtol=1e-6)
    np.testing.assert_allclose(together[2], -log2_p(trained, texts[2]).mean(), rtol=1e-5)
    assert together[:3].max() < together[4:].min()


def test_each_source_loses_what_lies_far_out_and_no_more_than_its_tails():
    rng = np.random.default_rng()
    sources = np.repeat([0, 1, 2, 3], [1000, 400, 60, 70])
    scores = rng.normal([2.0, 5.0, 3.0, 3.0], 0.5, (1530, 4))[np.arange(1530), sources].astype(
        np.float32
    )
    scores[:100] = np.nan                     # removed before
    scores[100:105] = 9                       # fewer than 2 % of source 0: only these are removed
    scores[1000:1040] = 12 + np.arange(40)    # a tenth of source 1: only 2 % of it is removed
    scores[1040:1042] = -9
    scores[1529] = 20                         # in a small source: these are judged together
    cutoffs = perplexity.cutoffs_by_source(scores, sources, 4, (1.0, 2.0))
    low, high = (
        np.flatnonzero(scores < cutoffs[sources, 0]),
        np.flatnonzero(scores > cutoffs[sources, 1]),
    )
    assert low.tolist() == [1040, 1041] and high.tolist() == [
        *range(100, 105),
        *range(1032, 1040),
        1529,
    ]
    assert (cutoffs[2] == cutoffs[3]).all()
    none = perplexity.cutoffs_by_source(scores[-130:][:90], np.zeros(90, int), 1, (1.0, 2.0))
    assert none.tolist() == [[-np.inf, np.inf]]
    assert perplexity.check("가", np.nan, 1, 2) == perplexity.check("가", 2, 1, 2) == ("가", "")
    surprising = perplexity.check("가", np.float32(6.1234), 1, 5.3)
    assert surprising == (None, "too_surprising: 6.12 bits per character > 5.3")
    predictable = perplexity.check("가", 0.5, 1.004, 2)
    assert predictable == (None, "too_predictable: 0.5 bits per character < 1")


def test_a_score_is_never_shown_as_its_cutoff():
    low = "too_predictable: 1.699 bits per character < 1.703"
    high = "too_surprising: 8.004 bits per character > 8.001"
    assert perplexity.check("고래", 1.6991, 1.7031, 8.0) == (None, low)
    assert perplexity.check("고래", 8.0042, 1.7031, 8.0011) == (None, high)


def test_documents_are_drawn_at_random_but_always_the_same():
    sizes, kept = np.full(1000, 10), np.arange(1000) % 3 > 0
    drawn = list(perplexity.draw(0, sizes, kept, 500))
    assert (
        drawn
        == list(perplexity.draw(0, sizes, kept, 500))
        != list(perplexity.draw(1, sizes, kept, 500))
    )
    assert len(set(drawn)) == 50 and all(kept[drawn]) and max(drawn) > 700
