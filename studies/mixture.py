"""Which topics should the next tokens come from? Weights that follow what is still hard, against fixed ones.

Llama-3-SynE (2407.18743, section on the topic-based mixture) watches each topic's validation perplexity p_i, and after
each short stage moves the shares r_i of the next one:

    δ_i = p_i / p_i before − 1        f_i = 1 + α δ_i        r_i ← r_i f_i / Σ r_j f_j,   held between a floor and a cap

(the paper weighs δ_i by the topic's importance too; here all weigh 1). A topic whose perplexity fell less than others'
gets more. Topics are files, or folders, of documents; a quarter of the windows is English throughout. Every arm has the
same rounds, each a run of train.py at a constant rate, the last with the decay:

    rule    equal shares at first, then by the rule        equal    equal shares all the time
    size    shares by the bytes there are: what mixing everything does

    python -m studies.mixture --model out/grown --english out/shards/en --topics wiki=wiki.jsonl law=law.jsonl ... \\
           --out out/studies/mixture
"""
import math
from pathlib import Path

from common import cli
from studies import arms

ENGLISH = 0.25


def next_shares(shares: dict, before: dict, after: dict, alpha: float, floor: float, cap: float) -> dict:
    """The rule, on perplexities before and after a round.

    >>> half = {"a": 0.5, "b": 0.5}
    >>> next_shares(half, {"a": 100.0, "b": 100.0}, {"a": 50.0, "b": 100.0}, 0.5, 0.1, 0.9)     # f = 3/4 and 1
    {'a': 0.42857142857142855, 'b': 0.5714285714285714}
    """
    factor = {topic: max(1e-3, 1 + alpha * (after[topic] / before[topic] - 1)) for topic in shares}
    return bounded({topic: share * factor[topic] for topic, share in shares.items()}, floor, cap)


def bounded(wanted: dict, floor: float, cap: float) -> dict:
    """Shares in proportion to `wanted` that sum to 1 with none below the floor or above the cap: what one at a bound
    cannot take or give up is spread over the others, in proportion. The scale is found by bisection, since the sum
    rises with it; floor · n ≤ 1 ≤ cap · n is the caller's to see to.

    >>> [round(share, 6) for share in bounded({"a": 8.0, "b": 1.0, "c": 1.0}, 0.05, 0.5).values()]
    [0.5, 0.25, 0.25]
    """
    def at(scale):
        return {topic: min(cap, max(floor, scale * w)) for topic, w in wanted.items()}
    low, high = 0.0, 1 / min(wanted.values())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) < 1 else (low, middle)
    return at(high)


def rounds(args, name: str, shares: dict, folders: dict) -> list[dict]:
    """Train one arm, round by round: shares, and scores and perplexities after it, of each; the start comes first."""
    found, start = [], args.model
    for number in range(1, args.rounds + 1):
        data = [f"{folders[topic]}={(1 - ENGLISH) * share:.6f}" for topic, share in shares.items()]
        run = arms.train(args, f"{name}-{number}", model=start, data=[*data, f"{args.english}={ENGLISH}"], seed=number,
                         stages=arms.full(args, args.tokens / args.rounds), min_lr=0.1 if number == args.rounds else 1)
        for row in arms.measured(run)[bool(found):]:
            found.append({"shares": shares, "scores": row["scores"],
                          "perplexity": {topic: math.exp(row["losses"][topic]) for topic in shares}})
        if name == "rule":
            shares = next_shares(shares, *(r["perplexity"] for r in found[-2:]), args.alpha, args.floor, args.cap)
        start = run / "model"
    return found


def main() -> None:
    """Pack the topics, train the arms, and print and write where each ended."""
    parser = arms.parser(__doc__, "mixture.py", "tokens an arm, English included")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory")
    flag("--topics", nargs="+", required=True, metavar="NAME=TEXT", help="cleaned documents of each topic")
    flag("--english", type=Path, required=True, help="folder with shards of English")
    flag("--rounds", type=int, default=6, help="runs an arm is made of")
    flag("--alpha", type=float, default=0.5, help="how far the shares follow the perplexities")
    flag("--floor", type=float, default=0.05, help="least share of a topic")
    flag("--cap", type=float, default=0.5, help="largest share of a topic")
    args = parser.parse_args()
    topics = dict(entry.partition("=")[::2] for entry in args.topics)
    if len(topics) < 2 or not all(topics.values()):
        raise cli.UserError("--topics: at least two different ones, each NAME=TEXT, such as law=clean/law.jsonl")
    if args.english.name in topics:
        raise cli.UserError(f"--topics: {args.english.name} is what --english is called; call the topic otherwise")
    if not 0 < args.floor <= 1 / len(topics) <= args.cap <= 1:
        raise cli.UserError(f"--floor {args.floor} and --cap {args.cap}: one share of {len(topics)} topics, "
                            f"{1 / len(topics):.3f}, lies between them, and both between 0 and 1")
    settings = arms.start(args, rounds=2, alpha=0)
    folders = {topic: arms.pack(text, args.model, args.out / "shards" / topic, val_fraction=0.02,
                                val_bytes=args.eval_bytes) for topic, text in topics.items()}
    equal = dict.fromkeys(topics, 1 / len(topics))
    size = {topic: cli.read_json(folder / "index.json")["bytes"] for topic, folder in folders.items()}
    begin = {"rule": equal, "equal": equal, "size": bounded(size, 0.001, 1)}
    paths = {name: rounds(args, name, shares, folders) for name, shares in begin.items()}
    def mean(row):
        return sum(row["scores"][topic] for topic in topics) / len(topics)

    def draw(shares, scores):
        for topic in topics:
            shares.plot([row["shares"][topic] for row in paths["rule"][1:]], "-o", ms=3, lw=1, label=topic)
        shares.set(xlabel="round", ylabel="share of the Korean windows, by the rule")
        shares.legend()
        for name, path in paths.items():
            scores.plot([mean(row) for row in path], "-o", ms=3, lw=1, label=name)
        scores.set(xlabel="after round", ylabel="bits a byte, mean of the topics")
        scores.legend()

    header = ["arm", *topics, "mean of topics", "English"]
    def row(name, r):
        return [name, *(r["scores"][t] for t in topics), mean(r), r["scores"][args.english.name]]
    rows = [row("untrained", paths["rule"][0]), *(row(name, path[-1]) for name, path in paths.items())]
    rows.append(["last shares by the rule", *paths["rule"][-1]["shares"].values(), "", ""])
    arms.write(args, "mixture", {"settings": settings, "paths": paths}, header, rows, draw, panels=2)


if __name__ == "__main__":
    cli.run(main)
