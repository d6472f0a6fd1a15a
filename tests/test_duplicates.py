"""Duplicates against a comparison of all pairs, and what MinHash promises."""
import functools
import random

import numpy as np
from sentences import edited, korean

from cleaning import duplicates


@functools.cache
def grams(text: str) -> set[str]:
    text = " ".join(text.split())
    return {text[i:i + 5] for i in range(len(text) - 4)}


def similarity(a: str, b: str) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def test_near_duplicates_against_all_pairs():
    rng = random.Random()
    texts = [korean(rng, rng.randrange(6, 30)) for _ in range(150)]
    texts += [edited(rng, texts[i], rng.choice([0.01, 0.03, 0.05])) for i in range(100)]
    rng.shuffle(texts)
    sizes = np.array([len(text) for text in texts])
    kept = duplicates.near_duplicates(duplicates.band_hashes(texts).T, sizes, texts.__getitem__)
    close = {(i, j) for i in range(len(texts)) for j in range(i)
             if similarity(texts[i], texts[j]) >= 0.85}
    together = sum(kept[i] == kept[j] for i, j in close)
    assert len(close) >= 60 and together >= 0.95 * len(close)
    clusters: dict[int, set[int]] = {}
    for i, by in enumerate(kept):
        clusters.setdefault(by, set()).add(i)
    # The longest stays, and all hang together by pairs over the threshold.
    for by, members in clusters.items():
        assert len(texts[by]) == max(len(texts[i]) for i in members)
        reached = {by}
        while grown := {
            i
            for i in members - reached
            if any(similarity(texts[i], texts[j]) >= 0.7 for j in reached)
        }:
            reached |= grown
        assert reached == members


def test_minhash_estimates_jaccard():
    rng = random.Random()
    trials = [(a := korean(rng, 40), edited(rng, a, 0.04)) for _ in range(300)]
    hashed = duplicates.band_hashes([text for pair in trials for text in pair])
    assert hashed.nbytes == 112 * len(hashed)
    agree = (hashed[::2] == hashed[1::2]).mean()
    # Eight minima, each equal with probability s.
    expected = np.mean([similarity(a, b) ** 8 for a, b in trials])
    assert abs(agree - expected) < 0.06  # six standard errors


def test_band_hashes_do_not_depend_on_the_batch():
    rng = random.Random()
    texts = [korean(rng, n) for n in (1, 2, 300, 5, 0, 2000, 3)]
    alone = np.concatenate([duplicates.band_hashes([text]) for text in texts])
    assert (duplicates.band_hashes(texts) == alone).all()
    assert not alone[4].any() and alone[3].all()


def test_exact_duplicates_keep_the_first():
    keys = [duplicates.exact_key(text) for text in ["가 나", "다", "가  나\n", "다", "라"]]
    rows = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    assert duplicates.exact_duplicates(rows).tolist() == [0, 1, 0, 1, 4]


def test_what_is_found_by_band_of_similarity():
    """1 - (1 - s^8)^14, and nothing below the threshold: pairs of a document and a copy with 1 to
    10 % of its words replaced."""
    rng, texts = random.Random(), []
    for _ in range(250):
        base = korean(rng, rng.randrange(6, 25))
        texts += [base, edited(rng, base, rng.choice([0.01, 0.02, 0.03, 0.05, 0.1]))]
    kept = duplicates.near_duplicates(
        duplicates.band_hashes(texts).T, np.array([len(t) for t in texts]), texts.__getitem__
    )
    pairs = [(similarity(a, b), kept[2 * i] == kept[2 * i + 1])
             for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
    high, low = [found for s, found in pairs if s >= 0.9], [found for s, found in pairs if s < 0.7]
    assert len(high) > 40 and np.mean(high) > 0.97 and not any(low)


def test_a_crowd_that_shares_a_band_costs_little_memory():
    texts = [korean(random.Random(), 300) for _ in range(30)]
    grams = duplicates.Grams(texts.__getitem__, room=5_000)
    for i in [*range(30), 0, 29]:
        assert (grams(i) == np.unique(duplicates.shingles(texts[i]))).all()
        assert sum(map(len, grams.held.values())) <= 5_000 or len(grams.held) <= 2
