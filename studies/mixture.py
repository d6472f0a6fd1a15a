"""Which topics should the next tokens come from? Shares that follow what is still hard, against
fixed ones.

Llama-3-SynE (2407.18743, section on the topic-based mixture) watches each topic's validation
perplexity p_i, and after each short stage changes the shares r_i of the next one:

    δ_i = p_i / p_i before − 1        f_i = 1 + α δ_i        r_i ← r_i f_i / Σ r_j f_j

held between a floor and a cap. (The paper also weighs δ_i by the topic's importance; here all weigh
1.) A topic whose perplexity fell less than the others' gets more. Topics are files, or folders, of
documents, and a quarter of the windows is English throughout. Every arm has the same rounds, each a
run of train.py at a constant rate, the last one with the decay:

    rule     equal shares at first, then by the rule
    equal    equal shares all the time
    size     shares by the bytes there are: what mixing everything does

    python -m studies.mixture --model out/grown --english out/shards/en \\
        --topics wiki=wiki.jsonl law=law.jsonl ... --out out/studies/mixture
"""
import argparse
import math
from pathlib import Path

from common import cli
from studies import arms

ENGLISH = 0.25


def next_shares(
    shares: dict,
    before: dict,
    after: dict,
    alpha: float,
    floor: float,
    cap: float,
) -> dict:
    """The rule, on the perplexities before and after a round.

    >>> half = {"a": 0.5, "b": 0.5}
    >>> before = {"a": 100.0, "b": 100.0}
    >>> next_shares(half, before, {"a": 50.0, "b": 100.0}, 0.5, 0.1, 0.9)     # f = 3/4 and 1
    {'a': 0.42857142857142855, 'b': 0.5714285714285714}
    """
    wanted = {}
    for topic, share in shares.items():
        change = after[topic] / before[topic] - 1
        wanted[topic] = share * max(1e-3, 1 + alpha * change)
    return bounded(wanted, floor, cap)


def bounded(wanted: dict, floor: float, cap: float) -> dict:
    """Shares in proportion to `wanted` that sum to 1, none below the floor or above the cap.

    What a share at a bound cannot take or give up is spread over the others, in proportion. The
    caller sees to it that floor · n ≤ 1 ≤ cap · n.

    >>> [round(share, 6) for share in bounded({"a": 8.0, "b": 1.0, "c": 1.0}, 0.05, 0.5).values()]
    [0.5, 0.25, 0.25]
    """

    def at(scale: float) -> dict:
        return {topic: min(cap, max(floor, scale * w)) for topic, w in wanted.items()}

    # The sum rises with the scale, so bisection finds where it is 1.
    low = 0.0
    high = 1 / min(wanted.values())
    for _ in range(200):
        middle = (low + high) / 2
        if sum(at(middle).values()) < 1:
            low = middle
        else:
            high = middle
    return at(high)


def rounds(args: argparse.Namespace, name: str, shares: dict, folders: dict) -> list[dict]:
    """Train one arm, round by round: shares, and the scores and perplexities after it, of each
    round; the start comes first."""
    found = []
    start = args.model
    for number in range(1, args.rounds + 1):
        is_last = number == args.rounds
        data = []
        for topic, share in shares.items():
            data.append(f"{folders[topic]}={(1 - ENGLISH) * share:.6f}")
        run = arms.train(
            args,
            f"{name}-{number}",
            model=start,
            data=[*data, f"{args.english}={ENGLISH}"],
            seed=number,
            stages=arms.full(args, args.tokens / args.rounds),
            min_lr=0.1 if is_last else 1,
        )

        # The start of a later round is the end of the one before it, which is there already.
        records = arms.measured(run)
        if found:
            records = records[1:]
        for record in records:
            perplexity = {topic: math.exp(record["losses"][topic]) for topic in shares}
            found.append({"shares": shares, "scores": record["scores"], "perplexity": perplexity})

        if name == "rule":
            before = found[-2]["perplexity"]
            after = found[-1]["perplexity"]
            shares = next_shares(shares, before, after, args.alpha, args.floor, args.cap)
        start = run / "model"
    return found


def parse_topics(args: argparse.Namespace) -> dict[str, str]:
    """{topic: its documents} of --topics. UserError if they, or the bounds, cannot be."""
    topics = {}
    for entry in args.topics:
        name, _, text = entry.partition("=")
        topics[name] = text
    if len(topics) < 2 or not all(topics.values()):
        raise cli.UserError("--topics: at least two different ones, each NAME=TEXT, such as "
                            "law=clean/law.jsonl")
    if args.english.name in topics:
        raise cli.UserError(f"--topics: {args.english.name} is what --english is called; rename "
                            "the topic")
    equal = 1 / len(topics)
    if not 0 < args.floor <= equal <= args.cap <= 1:
        raise cli.UserError(f"--floor {args.floor} and --cap {args.cap}: one share of "
                            f"{len(topics)} topics, {equal:.3f}, must lie between them, and both "
                            "between 0 and 1")
    return topics


def draw(paths: dict, topics: list[str], shares_axes, scores_axes) -> None:
    """The shares by the rule, and how each arm's mean score falls."""
    for topic in topics:
        shares = [row["shares"][topic] for row in paths["rule"][1:]]
        shares_axes.plot(shares, "-o", ms=3, lw=1, label=topic)
    shares_axes.set(xlabel="round", ylabel="share of the Korean windows, by the rule")
    shares_axes.legend()
    for name, path in paths.items():
        means = [mean_of_topics(row, topics) for row in path]
        scores_axes.plot(means, "-o", ms=3, lw=1, label=name)
    scores_axes.set(xlabel="after round", ylabel="bits per byte, mean of the topics")
    scores_axes.legend()


def mean_of_topics(row: dict, topics: list[str]) -> float:
    """The mean bits per byte of the topics."""
    return sum(row["scores"][topic] for topic in topics) / len(topics)


def main() -> None:
    """Pack the topics, train the arms, and print and write where each ended."""
    parser = arms.parser(__doc__, "mixture.py", "tokens per arm, English included")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory")
    flag("--topics", nargs="+", required=True, metavar="NAME=TEXT",
         help="cleaned documents of each topic")
    flag("--english", type=Path, required=True, help="folder with shards of English")
    flag("--rounds", type=int, default=6, help="runs that make up an arm")
    flag("--alpha", type=float, default=0.5, help="how far the shares follow the perplexities")
    flag("--floor", type=float, default=0.05, help="smallest share of a topic")
    flag("--cap", type=float, default=0.5, help="largest share of a topic")
    args = parser.parse_args()
    topics = parse_topics(args)
    settings = arms.start(args, rounds=2, alpha=0)

    folders = {}
    sizes = {}
    for topic, text in topics.items():
        folder = args.out / "shards" / topic
        arms.pack(text, args.model, folder, val_fraction=0.02, val_bytes=args.eval_bytes)
        folders[topic] = folder
        sizes[topic] = cli.read_json(folder / "index.json")["bytes"]

    equal = dict.fromkeys(topics, 1 / len(topics))
    first_shares = {"rule": equal, "equal": equal, "size": bounded(sizes, 0.001, 1)}
    paths = {name: rounds(args, name, shares, folders) for name, shares in first_shares.items()}

    names = list(topics)
    ends = {"untrained": paths["rule"][0]}
    ends.update({name: path[-1] for name, path in paths.items()})
    rows = []
    for name, end in ends.items():
        scores = end["scores"]
        rows.append([
            name,
            *(scores[topic] for topic in names),
            mean_of_topics(end, names),
            scores[args.english.name],
        ])
    rows.append(["last shares by the rule", *paths["rule"][-1]["shares"].values(), "", ""])
    header = ["arm", *names, "mean of topics", "English"]
    arms.write(args, "mixture", {"settings": settings, "paths": paths}, header, rows,
               lambda *panels: draw(paths, names, *panels), panels=2)


if __name__ == "__main__":
    cli.run(main)
