"""Which source the next training window comes from: a rule that is exact, repeatable, and needs no dice.

data.Loader asks it for every window. Its whole state is a few counts, so that a run that was stopped goes on alike.
"""
import bisect
import math
from fractions import Fraction

from common.cli import UserError


class Schedule:
    """Which source each window comes from: exactly by weight, however the weights move.

    Dice would be off by sqrt(s) after s draws, and always taking the source that is furthest behind can fall more than
    one draw behind when there are many. Let A(s) be the windows of a source that s draws owe it: s w for a weight w.
    Draw k of it (from 0) may come when A(s) > k - w and must have come when A(s) = k + 1; of those that may come the
    most urgent goes first: earliest deadline first, which misses none (Baruah et al. 1996, "Proportionate progress").
    So floor(A) or ceil(A) windows have been drawn at any time. In whole numbers, so that nothing rounds.

    A weight may be a pair, the share of the first and of the last window of a stage: it moves on a line between them.

    Worked by hand, weights ¾ and ¼: after one draw A is ¾ and ¼, so either may come. Source 0 must have come at s = 2,
    when its A has passed 1, source 1 not before s = 4: 0 goes first. And so on; after 4 draws A is 3 and 1, exactly.

    >>> schedule = Schedule([3, 1])
    >>> [schedule.draw() for _ in range(8)]
    [0, 0, 0, 1, 0, 0, 0, 1]

    Weights that change places over 4 windows: A is s - s²/8 and s²/8, so ⅞, 1½, 1⅞, 2 and ⅛, ½, 1⅛, 2. The first of
    source 1 must have come at s = 3, the second of source 0 not before s = 4: so 1 comes second.

    >>> schedule = Schedule([(1, 0), (0, 1)])
    >>> schedule.begin(4)
    >>> [schedule.draw() for _ in range(4)]
    [0, 1, 0, 1]
    """

    def __init__(self, weights: list[float | tuple[float, float]]):
        pairs = [w if isinstance(w, tuple) else (w, w) for w in weights]
        if not pairs or not all(0 <= w < math.inf for pair in pairs for w in pair) or not all(
                max(pair) >= 1e-6 for pair in pairs):
            raise UserError(f"weights {weights}: every source needs one, of at least 1e-6")
        exact = [[Fraction(pair[end]).limit_denominator(10**6) for pair in pairs] for end in (0, 1)]
        if not all(map(sum, exact)):
            raise UserError(f"weights {weights}: no source is left to draw from at one end of a stage")
        exact = [[w / sum(end) for w in end] for end in exact]
        self.common = math.lcm(*(w.denominator for end in exact for w in end))
        self.first, self.last = ([int(w * self.common) for w in end] for end in exact)  # whole shares of `common`
        self.counts = [0] * len(pairs)                              # windows drawn from each source
        self.origin, self.length = [0] * len(pairs), 1              # counts when the stage began, and its windows

    def begin(self, length: int) -> None:
        """A stage of `length` windows begins. Weights that do not move have no use for that: they go on."""
        if self.first != self.last:
            self.origin, self.length = list(self.counts), length

    def _due(self, i: int, s: int) -> int:
        """A(s) of source i, in parts of 2 · length · common."""
        return 2 * self.length * self.first[i] * s + (self.last[i] - self.first[i]) * s * s

    def _deadline(self, i: int, need: int) -> int:
        """The fewest draws that owe source i `need` parts."""
        if self.first == self.last:
            return -(-need // (2 * self.length * self.first[i]))
        return bisect.bisect_left(range(self.length + 1), need, key=lambda s: self._due(i, s))

    def draw(self) -> int:
        """The source of the next window; counts it."""
        drawn, unit = sum(self.counts) - sum(self.origin), 2 * self.length * self.common
        done = [count - before for count, before in zip(self.counts, self.origin, strict=True)]
        _, source = min((self._deadline(i, (k + 1) * unit), i) for i, k in enumerate(done)
                        if k * unit < self._due(i, drawn + 1))
        self.counts[source] += 1
        return source
