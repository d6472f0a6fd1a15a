"""How far does a budget go? Sizes × tokens, from scratch and continued from an English base of the
same size.

For each size an English base is trained. Then, for each budget, one model learns Korean from random
weights and one from that base. Both laws of laws.py are fitted to the Korean loss (2407.02118), and
say where the loss would be, how to split a budget between parameters and tokens, and which share of
the tokens continuing saves at equal loss. N counts the parameters that a token is multiplied with,
everything but the input embedding, so that C = 6 N D.

One learning rate serves all sizes, as in the paper. What lies outside the runs is extrapolation and
marked as such.

    python -m studies.scaling --tokenizer out/base.model --data out/shards_base \\
        --out out/studies/scaling --seeds 3
"""
import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

import model
import tokenizer
from common import cli, plan
from studies import arms, laws, plot

STARTS = ("scratch", "continued")


def shape(args: argparse.Namespace, text: str) -> tuple[str, int]:
    """Write the config.json of a size such as 128x4 (width × layers); its path, and N."""
    width, _, layers = text.partition("x")
    are_numbers = width.isdecimal() and layers.isdecimal()
    if not are_numbers or int(width) < 32 or int(width) % 32 or int(layers) < 1:
        raise cli.UserError(f"--sizes {text!r} is not width x layers with a width in steps of 32, "
                            "such as 128x4")
    width = int(width)
    heads = width // 32
    config = model.Config(
        tokenizer.load(args.tokenizer).size,
        width,
        16 * round(width / 6),
        int(layers),
        heads,
        heads,
        32,
        max_position_embeddings=args.seq_len,
    )
    file = args.out / f"{text}.config.json"
    config.write(file)

    n_parameters = 0
    for name, dims in plan.shapes(config, "full", 1).items():
        if name != plan.TABLES[0]:
            n_parameters += int(np.prod(dims))
    return str(file), n_parameters


def mix(args: argparse.Namespace, english: float) -> list[str]:
    """--data with this share of English windows."""
    return [f"{args.data}/ko={1 - english:g}", f"{args.data}/en={english:g}"]


def sweep(args: argparse.Namespace, shapes: dict, seed: int) -> list[dict]:
    """Train all runs of a seed; a row for each: size, N, D, where it began, Korean loss in nats per
    token."""
    rows = []
    for size, (config, n_parameters) in shapes.items():
        fresh = {"config": config, "tokenizer": args.tokenizer}
        base = arms.train(args, f"{size}-base-{seed}", **fresh, seed=seed,
                          data=mix(args, 1 - arms.NEVER),
                          stages=arms.full(args, args.base_tokens))
        origins = {"scratch": fresh, "continued": {"model": base / "model"}}
        for tokens in args.budgets:
            for start in STARTS:
                run = arms.train(args, f"{size}-{start}-{tokens}-{seed}", **origins[start],
                                 seed=seed, data=mix(args, arms.NEVER),
                                 stages=arms.full(args, tokens))
                end = arms.measured(run)[-1]
                rows.append({
                    "size": size,
                    "start": start,
                    "seed": seed,
                    "N": n_parameters,
                    "D": end["tokens"],
                    "loss": end["losses"]["ko"],
                    "bits_per_byte": end["scores"]["ko"],
                    "english": end["scores"]["en"],
                })
    return rows


def points(rows: list[dict], start: str) -> tuple:
    """(N, D, L) of the runs that began so."""
    mine = [row for row in rows if row["start"] == start]
    return tuple(np.array([row[key] for row in mine], float) for key in ("N", "D", "loss"))


# ---- What the laws say ---------------------------------------------------------------------------


def interval(values: list[float]) -> str:
    """The middle 95 % of a bootstrap, and how many of its draws have no such value.

    >>> interval([1.0, 1.0, float("nan")])
    '[1, 1] none in 33%'
    """
    there = [value for value in values if np.isfinite(value)]
    if not there:
        return "none"
    low, high = np.quantile(there, (0.025, 0.975))
    text = f"[{low:.3g}, {high:.3g}]"
    if len(there) < len(values):
        text += f" none in {1 - len(there) / len(values):.0%}"
    return text


def findings(fitted: tuple, samples: list[tuple], rows: list[dict]) -> list[list[str]]:
    """What the laws say, each with its interval: coefficients, tokens saved, the best split of a
    budget."""
    found = []

    def say(what: str, value_of: Callable) -> None:
        """A row: `value_of` of the fitted laws, and of every bootstrap sample."""
        value = value_of(*fitted)
        drawn = [value_of(*sample) for sample in samples]
        shown = f"{value:.3g}" if np.isfinite(value) else "none"
        found.append([what, shown, interval(drawn)])

    for name, i, which in (
        ("E", laws.E, 0),
        ("A", laws.A, 0),
        ("α", laws.ALPHA, 0),
        ("B", laws.B, 0),
        ("β", laws.BETA, 0),
        ("B'", laws.B, 1),
        ("β'", laws.BETA, 1),
        ("γ", laws.GAMMA, 1),
    ):

        def coefficient(*both, i=i, which=which):
            value = both[which][i]
            return np.exp(value) if i in (laws.E, laws.A, laws.B) else value

        say(name, coefficient)

    largest = max(row["D"] for row in rows)
    sizes = {(row["size"], row["N"]) for row in rows}
    for size, N in sorted(sizes, key=lambda pair: pair[1]):

        def tokens_saved(*both, N=N):
            return laws.saved(*both, N, largest)

        say(f"tokens saved at {size}, of {largest:,} from scratch", tokens_saved)

    flops = 6 * max(row["N"] * row["D"] for row in rows)
    for C, note in ((flops, "the largest run's"), (100 * flops, "100 times it, extrapolated")):
        for which, start in enumerate(("from scratch", "continued")):

            def best_size(*both, C=C, which=which):
                return laws.split(both[which], C)[0]

            say(f"best N for C = {C:.1e} ({note}), {start}", best_size)
    return found


def draw(result: dict, *panels) -> None:
    """The runs and the fitted laws, from scratch and continued; a colour per size."""
    rows = result["rows"]
    losses = [row["loss"] for row in rows]
    budgets = [row["D"] for row in rows]
    wide = np.geomspace(min(budgets) / 1.2, max(budgets) * 1.2, 50)
    names = {"scratch": "from random weights", "continued": "continued from English"}
    for axes, start, theta in zip(panels, names, result["theta"], strict=True):
        axes.set(xscale="log", xlabel="Korean tokens", title=names[start],
                 ylim=(0.95 * min(losses), 1.02 * max(losses)))
        ends = []
        for size, colour in zip(result["settings"]["sizes"], plot.COLOURS, strict=False):
            mine = [row for row in rows if (row["size"], row["start"]) == (size, start)]
            n_parameters = mine[0]["N"]
            axes.plot([row["D"] for row in mine], [row["loss"] for row in mine], "o", ms=4,
                      color=colour)
            curve = laws.loss(theta, n_parameters, wide)
            axes.plot(wide, curve, lw=1, color=colour)
            ends.append((wide[-1], curve[-1], f"{n_parameters / 1e6:.1f}M parameters", colour))
        # The budgets, in thousands of tokens, are the ticks.
        ticks = sorted(set(budgets))
        axes.set_xticks(ticks, [f"{budget / 1e3:,.0f}k" for budget in ticks])
        axes.set_xticks([], minor=True)
        plot.label_ends(axes, ends)
    panels[0].set(ylabel="Korean loss, nats per token (lower is better)")

    # How much does the start matter, at the smallest budget and at the largest?
    gains = []
    for budget in (min(budgets), max(budgets)):
        means = {}
        for start in STARTS:
            found = [r["loss"] for r in rows if (r["D"], r["start"]) == (budget, start)]
            means[start] = sum(found) / len(found)
        gains.append(means["scratch"] - means["continued"])
    plot.title(panels[0], "Starting from an English model lowers the Korean loss by "
                          f"{gains[0]:.2f} nats after {min(budgets):,} tokens,\nand by "
                          f"{gains[1]:.2f} after {max(budgets):,}")


def table_of_losses(rows: list[dict]) -> list[list]:
    """A row per size and budget: mean and spread of the losses, by where the runs began."""
    losses: dict = {}
    for row in rows:
        place = (row["size"], row["N"], row["D"])
        losses.setdefault(place, {}).setdefault(row["start"], []).append(row["loss"])
    result = []
    for place, by_start in losses.items():
        result.append([*place, *(arms.shown(by_start[start]) for start in STARTS)])
    return result


def parse() -> argparse.Namespace:
    """The flags; UserError if they name fewer than two sizes."""
    parser = arms.parser(__doc__, "scaling.py",
                         "tokens of the largest budget; a half and a quarter are run too")
    flag = parser.add_argument
    flag("--tokenizer", required=True, help="the base's tokenizer.model")
    flag("--data", type=Path, required=True, help="folder with shards ko and en packed with it")
    flag("--sizes", nargs="+", default=["64x2", "96x3", "128x4", "192x6"],
         help="width x layers; heads are 32 wide")
    flag("--base_tokens", type=int, default=600_000, help="English tokens of each base")
    flag("--draws", type=int, default=200, help="bootstrap samples")
    flag("--seeds", type=int, default=1, help="runs of every point")
    # Many small steps: with the other studies' 2,048 tokens per step, the larger sizes, which want
    # a lower rate, are still behind the smaller ones when the tokens end, and the law has nothing
    # to say about N.
    parser.set_defaults(lr=1e-3, batch_tokens=512)
    return parser.parse_args()


def main() -> None:
    """Sweep, fit, and print and write what the laws say."""
    args = parse()
    # The smallest budget is a quarter, and must be one step at least.
    settings = arms.start(args, tokens=4 * args.batch_tokens, seeds=1, base_tokens=1, draws=2)
    if len(set(args.sizes)) < 2:
        raise cli.UserError("--sizes: a law over sizes needs two different ones at least, such as "
                            "64x2 128x4")
    args.budgets = [args.tokens // 4, args.tokens // 2, args.tokens]
    shapes = {size: shape(args, size) for size in args.sizes}
    rows = []
    for seed in range(args.seeds):
        rows += sweep(args, shapes, seed)

    scratch, continued = (points(rows, start) for start in STARTS)
    fitted = laws.both(scratch, continued)
    # Runs of one size and seed share a base, random weights, and the order of the data.
    pairs = [(row["size"], row["seed"]) for row in rows if row["start"] == "scratch"]
    numbers = {pair: i for i, pair in enumerate(sorted(set(pairs)))}
    group = np.array([numbers[pair] for pair in pairs])
    samples = laws.bootstrap(scratch, continued, fitted, group, args.draws)
    found = findings(fitted, samples, rows)

    result = {
        "settings": settings,
        "rows": rows,
        "findings": found,
        "theta": [theta.tolist() for theta in fitted],
    }
    cli.write_json(args.out / "scaling.json", result)
    header = ["size", "N", "D", "from scratch", "continued"]
    print(arms.table(header, table_of_losses(rows)), "\n", sep="")
    print(arms.table(["by the laws", "value", "95 % interval"], found))
    plot.figure(args.out / "scaling.svg", lambda *axes: draw(result, *axes), panels=2)


if __name__ == "__main__":
    cli.run(main)
