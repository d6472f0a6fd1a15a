"""Duplicates against all pairs compared, and what MinHash promises; lines that many documents share."""
import functools
import random

import numpy as np
from sentences import edited, korean

from cleaning import duplicates, lines


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
    close = {(i, j) for i in range(len(texts)) for j in range(i) if similarity(texts[i], texts[j]) >= 0.85}
    together = sum(kept[i] == kept[j] for i, j in close)
    assert len(close) >= 60 and together >= 0.95 * len(close)
    clusters: dict[int, set[int]] = {}
    for i, by in enumerate(kept):
        clusters.setdefault(by, set()).add(i)
    for by, members in clusters.items():  # the longest stays, and all hang together by pairs over the threshold
        assert len(texts[by]) == max(len(texts[i]) for i in members)
        reached = {by}
        while grown := {i for i in members - reached if any(similarity(texts[i], texts[j]) >= 0.7 for j in reached)}:
            reached |= grown
        assert reached == members


def test_minhash_estimates_jaccard():
    rng = random.Random()
    trials = [(a := korean(rng, 40), edited(rng, a, 0.04)) for _ in range(300)]
    hashed = duplicates.band_hashes([text for pair in trials for text in pair])
    assert hashed.nbytes == 112 * len(hashed)
    agree = (hashed[::2] == hashed[1::2]).mean()
    expected = np.mean([similarity(a, b) ** 8 for a, b in trials])  # eight minima, each equal with probability s
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
    """1 - (1 - s^8)^14, and nothing below the threshold: pairs of one document with 1 to 10 % of its words replaced."""
    rng, texts = random.Random(), []
    for _ in range(250):
        base = korean(rng, rng.randrange(6, 25))
        texts += [base, edited(rng, base, rng.choice([0.01, 0.02, 0.03, 0.05, 0.1]))]
    kept = duplicates.near_duplicates(duplicates.band_hashes(texts).T, np.array([len(t) for t in texts]),
                                      texts.__getitem__)
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


# ----------------------------------------------------------------------------------------------------------- lines

def pages(rng: random.Random, n: int) -> list[str]:
    """Pages with a line of the site above and below, a short one, and code with an import."""
    # 'log in to see all of this site'; 'all rights reserved'; 'contents'
    above, below = "이 사이트의 글을 보려면 로그인하세요.", "저작권 1999-2024 모든 권리 보유"
    return [f"{korean(rng, 1)}\n{above}\n{korean(rng, 8)}\n목차\n```\nimport numpy as np\n```\n{below}"
            for _ in range(n)]


def sketch_of(texts: list[str], path, width: int = 2**16) -> lines.Sketch:
    sketch = lines.Sketch(path, "w+", width)
    for some in (texts[:7], texts[7:]):  # as units are: what is counted does not depend on how they are cut
        sketch.add(*lines.count(some))
    return sketch


def test_lines_of_many_documents_are_cut_and_code_is_not(tmp_path):
    rng = random.Random()
    texts = pages(rng, 12)
    sketch = sketch_of(texts, tmp_path / "sketch")
    text, reason = sketch.check(texts[3])
    first, _, body, *rest = texts[3].split("\n")
    assert reason == "repeated_lines_cut" and text == "\n".join([first, body, *rest[:-1]])
    assert sketch_of(texts[:9], tmp_path / "few").check(texts[3]) == (texts[3], "")
    assert sketch.check("\n".join(texts[3].split("\n")[1:2]), 5) == (None, "only_repeated_lines")


def test_code_between_either_kind_of_fence_is_kept():
    command = "import numpy as np, torch"
    for fence in ("```", "~~~"):
        found = lines.hash_lines([fence + "python", command, fence, command])
        assert [line_hash != 0 for line_hash in found] == [False, False, False, True]
    # A compiler marks an error with ~~~, which ends no code.
    found = lines.hash_lines(["```", "~~~", command, "```", command])
    assert [line_hash != 0 for line_hash in found] == [False, False, False, False, True]


def test_the_sketch_never_counts_too_little(tmp_path):
    rng = random.Random()
    vocabulary = [korean(rng, 2) for _ in range(300)]
    texts = ["\n".join(rng.choices(vocabulary, k=20)) for _ in range(100)]
    true = {line: sum(line in text.split("\n") for text in texts) for line in vocabulary}
    for width, exact in ((2**20, True), (64, False)):
        sketch = sketch_of(texts, tmp_path / str(width), width)
        found = sketch.find(np.array(lines.hash_lines(vocabulary), np.uint64))
        expected = np.array([true[line] for line in vocabulary])
        assert (found == expected).all() if exact else (found >= expected).all()
