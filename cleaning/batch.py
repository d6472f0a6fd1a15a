"""What the rules measure, of many documents at once: characters and words as places in one array.

Most documents are short: of a review or a comment numpy would take longer to be called than to work. So a thousand
documents stand one behind another, a newline between them, and whatever is found is found in all; which document has it
is told by its place.
"""
import functools

import numpy as np

# The last syllables of particles and verb endings: topic, subject, object, place, 'and', plain and polite endings ...
ENDINGS = "다이은는을를의에서로고지도만면며한인할과와가자기음게해까요라나들어아네데적던된년월일부터"

# Classes of characters, in an order in which one comparison tells letters, and one Hangul.
MARK, SPACE, DIGIT, OTHER, LATIN, HANJA, HANGUL, RARE, ENDING = range(9)


def _classes() -> np.ndarray:
    """The class of every code point, as a table: one look for each character."""
    table = np.zeros(0x110000, np.uint8)
    for code in range(0x30000):
        char = chr(code)
        table[code] = OTHER if char.isalpha() else DIGIT if char.isdecimal() else SPACE if char.isspace() else MARK
    for kind, blocks in ((HANGUL, ((0xAC00, 0xD7A3), (0x1100, 0x11FF), (0x3131, 0x318E))),
                         (HANJA, ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FFFF))),
                         (LATIN, ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F)))):
        for first, last in blocks:
            table[first:last + 1] = kind
    for code in range(0xAC00, 0xD7A4):  # KS X 1001 has the 2,350 syllables of Korean words; 뷁쀍 is something else read
        if len(chr(code).encode("euc_kr")) != 2:  # as CP949. (euc_kr spells the other 8,822 out in eight bytes.)
            table[code] = RARE
    table[[ord(char) for char in ENDINGS]] = ENDING
    return table


CLASS = _classes()
PLACES = np.random.default_rng(5).integers(0, 2**64, 256, np.uint64) | np.uint64(1)  # a factor for each place in a word


class Batch:
    """Documents. A value a document, in an array, unless said otherwise.

    >>> batch = Batch(["첫째 줄\\n\\n둘째 줄 ", "하나"])  # 'first line', 'second line'; 'one'
    >>> batch.n_words, batch.visible, batch.words(0)[1]
    (array([4, 1]), array([6, 2]), array([2, 1, 2, 1]))
    """

    def __init__(self, texts: list[str]):
        self.texts = texts
        self.codes = np.frombuffer("\n".join(["", *texts, ""]).encode("utf-32-le"), np.uint32)  # of each character
        self.kinds = CLASS.take(self.codes)  # of each character
        self.bounds = 1 + np.cumsum([0, *(len(text) + 1 for text in texts)])  # where each begins, and the end
        cells = np.repeat(np.arange(0, 9 * len(texts), 9), np.diff(self.bounds)) + self.kinds[1:]
        self.count = np.bincount(cells, minlength=9 * len(texts)).reshape(-1, 9).T  # of each class: (9, documents)
        self.visible = np.diff(self.bounds) - self.count[SPACE]
        edges = np.flatnonzero(np.diff(self.kinds == SPACE)) + 1
        self.start, self.end = edges[::2], edges[1::2]  # of each word the first character, and the one behind it
        self.n_words = self.number(self.start)

    def number(self, places: np.ndarray) -> np.ndarray:
        """How many of these places, which are in order, lie in each document."""
        return np.diff(np.searchsorted(places, self.bounds))

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """A 64-bit hash of each word: a dict of words would take three times as long as the rest."""
        start = self.start
        places = np.arange(start[0], len(self.codes)) - np.repeat(start, np.diff(start, append=len(self.codes)))
        letters = np.where(self.kinds == SPACE, 0, self.codes)[start[0]:]
        return np.add.reduceat(letters * PLACES[places & 255], start - start[0])

    def words(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes and the lengths of document i's words."""
        own = slice(*np.searchsorted(self.start, self.bounds[i:i + 2]))
        return self.hashes[own], (self.end - self.start)[own]
