"""Step 3, rules: cheap measurements of a document, and cut-offs that tell text from junk. (kept, reason) for each.

The measurements are Gopher's (Rae et al. 2021, arXiv 2112.11446, table A1) and FineWeb-2's (arXiv 2506.20920), but a
Korean word is an *eojeol*, a noun with its particles between two blanks: about two of their words. So their limits for
English drop most Korean, and FineWeb-2's for Korean, which count morphemes, are looser here than there. Where a limit
is ours, the comment says what was measured: Wikipedia, court rulings, statutes, periodicals of the 1920s, manuals.

Hanja counts as Korean: a third of the letters in a periodical of 1925 is hanja. Code, formulas, addresses and tags are
set aside first: they are a third of a technical manual, and a language of their own.

Profiles: `web` for pages nobody vouches for; `formal` for edited text, whose tables, headings and repeated clauses a
web filter takes for menus; `short` for reviews and comments, which are short by nature.
"""
import itertools
import math
import re
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from cleaning.batch import DIGIT, ENDING, HANGUL, HANJA, LATIN, MARK, OTHER, RARE, Batch


class Limits(NamedTuple):
    """The cut-offs of a language and a profile. Shares lie between 0 and 1; None switches a rule off."""
    characters: int                   # at least so many letters and signs, white space apart
    share: float                      # letters of the language among all letters, at least
    word: tuple[float, float]         # mean length of a word (eojeol), signs included
    symbols: float                    # signs that are neither letter nor digit, at most
    no_letters: float                 # words of digits alone among all words, at most
    garbled: float | None             # Korean syllables that no Korean word uses, at most
    function_words: float | None      # ko: eojeol that end like one; en: function words; at least
    line_ends: float | None           # lines that end in a full stop or the like, at least
    same_lines: float | None          # lines that stood there before, at most
    top_ngrams: tuple | None          # characters in the most frequent 2-, 3- and 4-gram of words, at most
    same_ngrams: dict[int, float]     # {n: characters in n-grams of words that stood there before, at most}


KO_WEB = Limits(
    characters=50,         # Polyglot-Ko's cleaner: 50 characters
    share=0.3,             # ours: 99 % of Wikipedia is above 0.5, manuals without code above 0.26. Polyglot-Ko: 0.25
    word=(1.5, 12),        # ours: all sources lie between 2.4 and 8.8. Polyglot-Ko 3-10, FineWeb-2 1-6 (morphemes)
    symbols=0.4,           # ours: 99 % of every source but comments is below 0.34
    no_letters=0.209,      # FineWeb-2 for Korean: 0.791 of the words have a letter
    garbled=0.2,           # ours: 99.9 % of the documents are below 0.05; text read in a wrong encoding is above 0.5
    function_words=0.15,   # ours: 99.5 % of every source is above 0.3, random syllables are at 0.02
    line_ends=0.062,       # FineWeb-2 for Korean, as are the rest
    same_lines=0.374,
    top_ngrams=(0.282, 0.228, 0.185),
    same_ngrams={5: 0.201, 6: 0.184, 7: 0.168, 8: 0.154, 9: 0.14, 10: 0.127})
# Rulings repeat their holdings word for word (5-grams up to 0.46), statutes their lines (0.41), tables have no stops.
KO_FORMAL = KO_WEB._replace(no_letters=0.5, line_ends=None, same_lines=0.5, same_ngrams={10: 0.5})
# A review may be 재밌어요 ("it's fun"), have no blanks (1 % have a mean above 20), be half ㅋㅋ!!!; what repetition
# there can mean is one phrase over and over.
KO_SHORT = KO_FORMAL._replace(characters=4, word=(1.5, 25), symbols=0.5, function_words=None, same_lines=None,
                              top_ngrams=(0.5, 0.5, 0.5), same_ngrams={})
EN_WEB = Limits(
    characters=200,        # Gopher: 50 words
    share=0.8,             # ours: Latin letters; other languages in Latin letters fail at function_words
    word=(3, 10),          # Gopher
    symbols=0.3,           # ours: Gopher limits # and ... to 0.1 a word
    no_letters=0.2,        # Gopher: 80 % of words with a letter
    garbled=None,
    function_words=0.1,    # ours: Gopher wants two of its eight in a document, however long
    line_ends=0.12,        # FineWeb (arXiv 2406.17557)
    same_lines=0.3,        # Gopher, as are the rest
    top_ngrams=(0.20, 0.18, 0.16),
    same_ngrams={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
EN_FORMAL = EN_WEB._replace(characters=50, line_ends=None, same_lines=0.5, no_letters=0.5, same_ngrams={10: 0.5})
EN_SHORT = EN_FORMAL._replace(characters=8, symbols=0.5, function_words=None, same_lines=None,
                              top_ngrams=(0.5, 0.5, 0.5), same_ngrams={})
LIMITS = {"ko": {"web": KO_WEB, "formal": KO_FORMAL, "short": KO_SHORT},
          "en": {"web": EN_WEB, "formal": EN_FORMAL, "short": EN_SHORT}}

# Fenced code (its end spelt out is twice as fast as .*? is), code in a line, addresses, tags, formulas.
ASIDE = re.compile(r"```[^`]*(?:`(?!``)[^`]*)*(?:```|\Z)|`[^`\n]+`|https?://\S+|</?[a-zA-Z][^<>]{0,500}>|\$[^$\n]+\$")
TOGETHER = 65_536  # characters measured at once
FEW = 20  # function words are judged from so many words on, and
ENDS = set('.!?。…"\'”’)')
REPEATS = 3  # an n-gram is frequent from so many times on: a stub names its subject twice
# Gopher's eight, and the eight that are as frequent.
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with", "a", "in", "is", "was", "for", "on", "as", "it"}


def word_rules(batch: Batch, limits: Limits, lang: str) -> Iterator[tuple[str, np.ndarray]]:
    """(reason, the documents that it removes) of the rules about characters and words, in the order of their cost."""
    count, n_words = batch.count, batch.n_words
    yield "too_short", batch.visible < limits.characters
    letters, hangul = count[OTHER:].sum(0), count[HANGUL:].sum(0)
    own = hangul + count[HANJA] if lang == "ko" else count[LATIN]
    # Korean with long quotations or many names in another language is still worth its 200 characters of Hangul.
    share = np.where((lang == "ko") & (hangul >= 200), 0.15, limits.share)
    yield "wrong_language", (own < share * letters) | (own == 0)
    length = batch.visible / np.maximum(1, n_words)
    yield "word_length", (length < limits.word[0]) | (length > limits.word[1])
    yield "symbols", count[MARK] > limits.symbols * batch.visible
    best = np.maximum.reduceat(batch.kinds, batch.start)
    with_letter, with_either = batch.number(batch.start[best >= OTHER]), batch.number(batch.start[best >= DIGIT])
    yield "no_letters", with_either - with_letter > limits.no_letters * with_either  # a lone | or - is no word
    if limits.garbled is not None:
        yield "garbled", count[RARE] > limits.garbled * hangul + 1  # one is a joke
    if limits.function_words is not None:
        if lang == "ko":  # of the last syllables of eojeol, those that are an ending's
            last = np.flatnonzero((batch.kinds[:-1] >= HANGUL) & (batch.kinds[1:] < HANGUL))
            n, found = batch.number(last), batch.number(last[batch.kinds[last] == ENDING])
        else:
            n, found = n_words, [sum(word in STOP_WORDS for word in text.lower().split()) for text in batch.texts]
        share = np.divide(found, np.maximum(1, n))
        yield "function_words", (n_words >= FEW) & (n >= FEW) & (share < limits.function_words)


def line_rules(texts: list[str], limits: Limits) -> list[str]:
    """The reason, "" for none, of the rules about lines, for each document; strings' own functions find, strip and
    compare lines faster than numpy looks at characters.

    >>> line_rules(["메뉴\\n홈\\n글이다."], LIMITS["en"]["web"]._replace(line_ends=0.5))  # 'menu, home, this is text.'
    ['line_ends']
    """
    least, most, reasons = limits.line_ends or 0, limits.same_lines, [""] * len(texts)
    ends, last = ENDS.__contains__, itemgetter(-1)
    for i, text in enumerate(texts):
        if "\n" not in text:
            end = text[-1] if text else ""
            if least and end not in ENDS and not (end.isspace() and text.rstrip()[-1:] in ENDS):
                reasons[i] = "line_ends"
            continue
        lines = [*filter(None, map(str.strip, filter(None, text.split("\n"))))]
        enough = math.ceil(least * len(lines))  # that end in a stop: the lines behind the last of them can wait
        if enough and not next(itertools.islice(filter(ends, map(last, lines)), enough - 1, None), None):
            reasons[i] = "line_ends"
        elif most is not None and len(lines) - len(set(lines)) > most * len(lines):
            reasons[i] = "repeated_lines"
    return reasons


def repeats_itself(words: np.ndarray, lengths: np.ndarray, limits: Limits) -> bool:
    """Whether n-grams of words cover more of the text than the limits allow; words that several cover count once.

    words: their hashes. An n-gram is a number made from its words' hashes, so that sorting counts all of a document;
    and the sorted numbers alone say how much at most could be covered, which for most documents is little enough."""
    total, grams = lengths.sum(), words
    for n in range(2, 11):
        grams = grams[:-1] * np.uint64(0x9E3779B97F4A7C15) + words[n - 1:]
        if n > 4 and n not in limits.same_ngrams or not len(grams):
            continue
        ranked = np.sort(grams)
        starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
        if len(starts) == len(grams):  # then no longer n-gram repeats either
            break
        if n <= 4:
            counts = np.diff(starts, append=len(grams))
            if counts.max() < REPEATS or counts.max() * n * lengths.max() <= limits.top_ngrams[n - 2] * total:
                continue
            order = np.argsort(grams)[starts]  # a place of each n-gram; of the most frequent ones, take the longest
            length = np.convolve(lengths, np.ones(n, int))[n - 1:][order]
            top = order[np.where(counts == counts.max(), length, 0).argmax()]
            covering, limit = grams == grams[top], limits.top_ngrams[n - 2]
        else:
            least = min(limits.same_ngrams.values())
            if (len(grams) - len(starts)) * n * lengths.max() <= least * total:
                break
            covering, limit = np.ones(len(grams), bool), limits.same_ngrams[n]
            covering[np.minimum.reduceat(np.argsort(grams), starts)] = False  # where each n-gram stands first
        covered = np.convolve(covering, np.ones(n, int))[:len(words)] > 0  # an n-gram at i covers words i ... i + n - 1
        share = lengths[covered].sum() / total
        if share > limit:
            return True
        if n >= 5 and share <= least:  # longer n-grams repeat where their beginnings do
            break
    return False


def prose(text: str) -> str:
    """The text with a blank for everything that is not prose; most have no sign of it, which is faster to see."""
    return ASIDE.sub(" ", text) if "`" in text or "<" in text or "$" in text or "://" in text else text


def check(texts: list[str], limits: Limits, lang: str = "ko") -> list[tuple[bool, str]]:
    """(kept, reason) of each document; the reason is "" where it is kept.

    >>> check(["짧다"], LIMITS["ko"]["formal"])  # 'it is short'
    [(False, 'too_short')]
    """
    answers = []
    ends = np.flatnonzero(np.diff(np.cumsum([*map(len, texts)]) // TOGETHER)) + 1
    for start, end in itertools.pairwise(sorted({0, *ends.tolist(), len(texts)})):
        batch = Batch([*map(prose, texts[start:end])])
        left, reasons = np.ones(end - start, bool), [""] * (end - start)
        for reason, broken in word_rules(batch, limits, lang):
            for i in np.flatnonzero(left & broken).tolist():
                reasons[i] = reason
            left &= ~broken
        left = np.flatnonzero(left).tolist()
        for i, reason in zip(left, line_rules([batch.texts[i] for i in left], limits), strict=True):
            reasons[i] = reason
            if not reason and limits.top_ngrams and batch.n_words[i] >= FEW:
                reasons[i] = "repeated_ngrams" if repeats_itself(*batch.words(i), limits) else ""
        answers += [(not reason, reason) for reason in reasons]
    return answers
