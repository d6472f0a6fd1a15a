"""The progress of a stage: a bar on a terminal, a line every half minute in a log.

A bar redraws itself with carriage returns. In a file, such as the log of a SLURM job, these make
one line of many kilobytes, which `tail` cannot show. So if stderr is not a terminal, lines are
printed:

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
    """`for step in progress:` yields the remaining steps of a stage. After each step, call
    `progress.update(...)`."""

    def __init__(self, stage: str, first_step: int, steps: int, tokens_per_step: int):
        self.stage = stage
        self.first_step = first_step
        self.steps = steps
        self.tokens_per_step = tokens_per_step

        # Only rank 0 prints.
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

        # When these steps began; when the last line was written, and after which step.
        self.began = time.monotonic()
        self.last_time = self.began
        self.last_step = first_step

    def __iter__(self) -> Iterator[int]:
        return iter(self.bar)

    def update(self, done: int, loss: float, lr: float, speed: float) -> None:
        """Show progress after `done` steps of the stage, the last of which had this loss, learning
        rate and speed (tokens per second)."""
        self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        if not self.writes_lines:
            return

        # Write a line after the first step too, so that a mistake shows at once.
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
        # Single steps vary, so the speed is that of all steps since the last line.
        tokens = (done - self.last_step) * self.tokens_per_step
        speed = tokens / (now - self.last_time)

        # The time left is estimated from all steps since the stage began or was resumed, so that it
        # includes validations and checkpoints.
        seconds_per_step = (now - self.began) / (done - self.first_step)
        left = timedelta(seconds=round(seconds_per_step * (self.steps - done)))
        return (
            f"{self.stage}  step {done:,} of {self.steps:,} ({done / self.steps:.0%})  "
            f"loss {loss:.3f}  lr {lr:.2e}  {speed:,.0f} tokens/s  {left} left"
        )

    def close(self) -> None:
        """Remove the bar, before something else is printed."""
        self.bar.close()
