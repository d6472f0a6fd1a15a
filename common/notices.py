"""What to know of a run before it begins: how many epochs of each source it will read, and notices.

An epoch is one pass over all windows of a source. The loader deals windows by the sources' shares,
so what a stage reads can be told before it begins, to about a window (data.furthest_behind).

The notices are about settings that train without an error, and seldom mean what someone wanted.
"""

# Nothing here imports torch, not even for a type: data.py imports this file, and each of `clean`'s
# processes imports data.py.

# Up to 4 epochs are nearly as good as new data, and what comes after is worth less and less
# (Muennighoff et al., Scaling Data-Constrained Language Models, arXiv 2305.16264).
MOST_EPOCHS = 4

# With fewer validation documents than this, what is measured is the documents as much as the model.
# Of N drawn at random, bits per byte have a standard deviation of 4 to 12 % at N = 12, 2 to 5 % at
# 30, 1.3 to 2.7 % at 100: Wikipedia in English and Korean, film reviews and rulings, scored by an
# English Llama of 7.5M parameters (bench/bits.py).
ENOUGH_DOCUMENTS = 30


def after_stage(counts: list[float], loader, windows: int) -> list[float]:
    """How many windows of each source have been read after a stage of so many `windows`, where
    `counts` had been before it."""
    after = []
    for count, first, last in zip(counts, loader.first, loader.last, strict=True):
        # A share may move on a line from `first` to `last`: over the whole stage, it is their mean.
        after.append(count + (first + last) / 2 * windows)
    return after


def in_epochs(counts: list[float], loader) -> list[float]:
    """The same numbers of windows, counted in epochs."""
    epochs = []
    for count, source in zip(counts, loader.sources, strict=True):
        epochs.append(count / source.windows(loader.seq_len))
    return epochs


def epochs_of_stage(names: list[str], loader, windows: int) -> dict[str, list[float]]:
    """{source: [from, to]}: the epochs at which a stage begins, or is resumed with so many windows
    left, and will end, counted since the run began. The loader is where it begins or is resumed."""
    before = in_epochs(loader.counts, loader)
    if loader.first == loader.last:
        end = after_stage(loader.counts, loader, windows)
    else:
        # Shares that move are at another place now than when the stage began.
        end = after_stage(loader.origin, loader, loader.length)
    pairs = zip(names, before, in_epochs(end, loader), strict=True)
    return {name: [round(start, 6), round(end, 6)] for name, start, end in pairs}


def in_words(epochs: dict[str, list[float]]) -> str:
    """What `epochs_of_stage` gives, for the screen.

    >>> in_words({"ko": [0.7123, 1.4], "en": [0, 0.25]})
    'ko 0.712 to 1.4, en 0 to 0.25'
    """
    return ", ".join(f"{name} {start:.3g} to {end:.3g}" for name, (start, end) in epochs.items())


# ------------------------------------------------------------------------------------------ notices


def small_validation(n_documents: int) -> str:
    """What to tell someone with so few validation documents; "" if there are enough.

    >>> small_validation(29)
    'few documents (29): on others, bits per byte may differ by 5 % or more'
    >>> small_validation(30)
    ''
    """
    if n_documents >= ENOUGH_DOCUMENTS:
        return ""
    if n_documents == 0:
        return "no documents: there is nothing to measure bits per byte on"
    return f"few documents ({n_documents}): on others, bits per byte may differ by 5 % or more"


def of_run(
    stages: list, finished: int, shards: dict, loader, batch_tokens: int
) -> list[str]:
    """What to know before a run begins, or resumes after so many `finished` of its stages
    (plan.Stage): a line each. The loader is where the run began."""
    if finished == len(stages):
        return []
    lines = []
    for number, stage in enumerate(stages, 1):
        if number > finished and stage.tokens < batch_tokens:
            lines.append(f"stage {number}, {stage.what}, has {stage.tokens:,} tokens, less than a "
                         f"batch: it will train one step of {batch_tokens:,}")
    for name, source in shards.items():
        if source.windows(loader.seq_len) == 1:
            lines.append(f"{name} holds one window of {loader.seq_len:,} tokens, which will be "
                         "read again and again; pack more text, or lower --seq_len")
        if few := small_validation(source.index["val"]["documents"]):
            lines.append(f"for validation {name} has {few}; --val_fraction of data.py pack is "
                         "their share of all")
    return lines + read_too_often(stages, list(shards), loader, batch_tokens)


def read_too_often(stages: list, names: list[str], loader, batch_tokens: int) -> list[str]:
    """A line for each source of which the run will have read more than MOST_EPOCHS at its end."""
    # The number of the stage in which each of them passes that.
    counts = list(loader.counts)
    passed_in = {}
    for number, stage in enumerate(stages, 1):
        windows = stage.steps(batch_tokens) * (batch_tokens // loader.seq_len)
        counts = after_stage(counts, loader, windows)
        epochs = dict(zip(names, in_epochs(counts, loader), strict=True))
        for name in names:
            if epochs[name] > MOST_EPOCHS:
                passed_in.setdefault(name, number)

    # What the loop counted last are the epochs at the end of the run.
    lines = []
    for name, number in passed_in.items():
        what = stages[number - 1].what
        lines.append(f"{epochs[name]:.1f} epochs of {name} will have been read at the end of the "
                     f"run, more than {MOST_EPOCHS} from stage {number}, {what}, on: repeated "
                     "further, text teaches less and less (arXiv 2305.16264); pack more of it, "
                     "lower its weight, or shorten the stages")
    return lines
