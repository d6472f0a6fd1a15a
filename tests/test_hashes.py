"""N-grams as numbers: each is the number its digits make, and a table finds what it contains."""
import numpy as np

from cleaning import hashes


def test_a_rolling_hash_is_the_number_its_digits_make():
    rng = np.random.default_rng()
    codes = rng.integers(0, 2**32, 60, np.uint64)
    for n in (1, 2, 3, 5, 12, 25, 60):
        found = hashes.rolling(codes, n)
        assert found.dtype == np.uint64 and len(found) == 61 - n
        for i, one in enumerate(found.tolist()):
            value = 0
            for digit in codes[i:i + n].tolist():
                value = (value * hashes.GOLDEN + digit) % 2**64
            assert one == value


def test_a_text_shorter_than_an_n_gram_has_none():
    for n in (1, 5, 12, 25):
        for length in range(n):
            assert len(hashes.rolling(np.zeros(length, np.uint64), n)) == 0


def test_a_table_finds_its_keys_and_no_others():
    rng = np.random.default_rng()
    ends = np.array([0, 2**64 - 1], np.uint64)
    for n in (0, 1, 2, 1000):
        keys = np.unique(rng.integers(0, 2**64, n, np.uint64))
        others = rng.integers(0, 2**64, 500, np.uint64)
        asked = np.concatenate([keys, others, ends])
        expected = [keys.tolist().index(key) if key in keys else -1 for key in asked.tolist()]
        assert hashes.Table(keys).find(asked).tolist() == expected


def test_a_table_finds_the_first_of_equal_keys():
    rng = np.random.default_rng()
    keys = np.sort(rng.choice(rng.integers(0, 2**64, 50, np.uint64), 200))
    places = hashes.Table(keys).find(keys)
    assert (places == np.searchsorted(keys, keys)).all()
