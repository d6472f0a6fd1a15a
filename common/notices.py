"""What to say about a run before it begins: the epochs of each source it will read, and warnings.

An epoch is one pass over all windows of a source. The loader deals windows by the sources' shares,
so what a stage will read is known before it begins, to about one window (data.furthest_behind).

The warnings are about settings that train without an error but are rarely intended.
"""

# Nothing here imports torch, not even for a type: data.py imports this file, and each of `clean`'s
# processes imports data.py.

# Up to 4 epochs of the same data are nearly as good as new data; further epochs are worth less and
# less (Muennighoff et al., Scaling Data-Constrained Language Models, arXiv 2305.16264).
MOST_EPOCHS = 4

# With fewer validation documents than this, a score depends on the choice of documents as much as
# on the model. For N documents drawn at random, bits per byte have a standard deviation of 4 to
# 12 % at N = 12, 2 to 5 % at 30, and 1.3 to 2.7 % at 100. Measured on Wikipedia in English and
# Korean, film reviews and rulings, with an English Llama of 7.5M parameters (bench/bits.py).
ENOUGH_DOCUMENTS = 30


def after_stage(counts: list[float], loader, windows: int) -> list[float]:
    """The windows of each source read by the end of a stage of `windows` windows, if `counts` were
    read before it."""
    after = []
    for count, first, last in zip(counts, loader.first, loader.last, strict=True):
        # A share may move linearly from `first` to `last`; over the whole stage it is their mean.
        after.append(count + (first + last) / 2 * windows)
    return after


def in_epochs(counts: list[float], loader) -> list[float]:
    """Numbers of windows, one for each source, as epochs."""
    epochs = []
    for count, source in zip(counts, loader.sources, strict=True):
        epochs.append(count / source.windows(loader.seq_len))
    return epochs


def epochs_of_stage(names: list[str], loader, windows: int) -> dict[str, list[float]]:
    """{source: [from, to]}: the epochs, counted from the start of the run, at which a stage of
    `windows` (remaining) windows begins or resumes, and will end. The loader is where the stage
    begins or resumes."""
    before = in_epochs(loader.counts, loader)
    if loader.first == loader.last:
        end = after_stage(loader.counts, loader, windows)
    else:
        # Moving shares have changed since the stage began, so count from there.
        end = after_stage(loader.origin, loader, loader.length)
    pairs = zip(names, before, in_epochs(end, loader), strict=True)
    return {name: [round(start, 6), round(end, 6)] for name, start, end in pairs}


def in_words(epochs: dict[str, list[float]]) -> str:
    """Format what `epochs_of_stage` returns, for the screen.

    >>> in_words({"ko": [0.7123, 1.4], "en": [0, 0.25]})
    'ko 0.712 to 1.4, en 0 to 0.25'
    """
    return ", ".join(f"{name} {start:.3g} to {end:.3g}" for name, (start, end) in epochs.items())


# ------------------------------------------------------------------------------------------ notices


def small_validation(n_documents: int) -> str:
    """A warning for few validation documents; "" if there are enough.

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
    """Warnings before a run begins, or resumes after `finished` of its stages (plan.Stage), a line
    each. The loader is where the run began."""
    if finished == len(stages):
        return []
    lines = []
    for number, stage in enumerate(stages, 1):
        if number > finished and stage.tokens < batch_tokens:
            lines.append(f"stage {number}, {stage.what}, has {stage.tokens:,} tokens, less than a "
                         f"batch: it will train for one step of {batch_tokens:,}")
    for name, source in shards.items():
        if source.windows(loader.seq_len) == 1:
            lines.append(f"{name} holds only one window of {loader.seq_len:,} tokens, which will "
                         "be read again and again; pack more text, or lower --seq_len")
        if few := small_validation(source.index["val"]["documents"]):
            lines.append(f"for validation {name} has {few}; --val_fraction of data.py pack is "
                         "their share of all")
    return lines + read_too_often(stages, list(shards), loader, batch_tokens)


def read_too_often(stages: list, names: list[str], loader, batch_tokens: int) -> list[str]:
    """A line for each source of which the run will read more than MOST_EPOCHS epochs."""
    # For each such source, the number of the stage in which it exceeds them.
    counts = list(loader.counts)
    passed_in = {}
    for number, stage in enumerate(stages, 1):
        windows = stage.steps(batch_tokens) * (batch_tokens // loader.seq_len)
        counts = after_stage(counts, loader, windows)
        epochs = dict(zip(names, in_epochs(counts, loader), strict=True))
        for name in names:
            if epochs[name] > MOST_EPOCHS:
                passed_in.setdefault(name, number)

    # `epochs` is now that of the end of the run.
    lines = []
    for name, number in passed_in.items():
        what = stages[number - 1].what
        lines.append(f"the run will read {epochs[name]:.1f} epochs of {name}, more than "
                     f"{MOST_EPOCHS} from stage {number}, {what}, on; repeated further, text "
                     "teaches less and less (arXiv 2305.16264): pack more of it, lower its weight, "
                     "or shorten the stages")
    return lines
