"""How far a stage is: a bar on a terminal, and a line every half minute in a log.

A bar redraws itself by carriage returns. In a file, such as the log of a SLURM job, they make one
line of many kilobytes that no `tail` can show. So where stderr is no terminal, there are lines:

    2-odd  step 120 of 610 (20%)  loss 2.345  lr 1.00e-04  12,300 tokens/s  1:23:45 left
"""
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

from tqdm import tqdm

from common import cli

# Seconds between two lines: often enough to see that a run is alive, and 120 lines per hour.
SECONDS_PER_LINE = 30


class Progress:
    """`for step in progress:` gives the steps of a stage that are still to do. After each,
    `progress.update(...)` may show how far the stage is."""

    def __init__(self, stage: str, first_step: int, steps: int, tokens_per_step: int):
        self.stage = stage
        self.first_step = first_step
        self.steps = steps
        self.tokens_per_step = tokens_per_step

        # Rank 0 speaks for all.
        shows_bar = False
        self.writes_lines = False
        if cli.is_rank_zero():
            shows_bar = sys.stderr.isatty()
            self.writes_lines = not shows_bar
        self.bar = tqdm(
            range(first_step, steps),
            stage,
            steps,
            initial=first_step,
            unit="step",
            mininterval=1,
            disable=not shows_bar,
        )

        # When these steps began; and the last line: when it was written, after which step.
        self.began = time.monotonic()
        self.last_time = self.began
        self.last_step = first_step

    def __iter__(self) -> Iterator[int]:
        return iter(self.bar)

    def update(self, done: int, loss: float, lr: float, speed: float) -> None:
        """`done` steps of the stage are done; the last one had this loss, learning rate and speed
        (tokens per second)."""
        self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        if not self.writes_lines:
            return

        # The first step, too, so that a mistake shows at once.
        is_first = done == self.first_step + 1
        is_last = done == self.steps
        now = time.monotonic()
        is_time = now - self.last_time >= SECONDS_PER_LINE
        if is_first or is_last or is_time:
            print(self.line(done, loss, lr, now), file=sys.stderr, flush=True)
            self.last_time = now
            self.last_step = done

    def line(self, done: int, loss: float, lr: float, now: float) -> str:
        """The line after `done` steps."""
        # Steps differ, so the speed is that of all steps since the line before.
        tokens = (done - self.last_step) * self.tokens_per_step
        speed = tokens / (now - self.last_time)

        # The time left follows from all steps since the stage began or was resumed, so that
        # validations and checkpoints are in it.
        seconds_per_step = (now - self.began) / (done - self.first_step)
        left = timedelta(seconds=round(seconds_per_step * (self.steps - done)))
        return (
            f"{self.stage}  step {done:,} of {self.steps:,} ({done / self.steps:.0%})  "
            f"loss {loss:.3f}  lr {lr:.2e}  {speed:,.0f} tokens/s  {left} left"
        )

    def close(self) -> None:
        """Remove the bar, before something else is printed."""
        self.bar.close()
