"""How far does a budget go: sizes × tokens, from scratch and continued from an English base of the same size.

For each size an English base is trained; then, for each budget, one model learns Korean from random weights and one
from that base. Both laws of laws.py are fitted to the Korean loss (2407.02118). From them: where the loss would be, how
to split a budget between parameters and tokens, and what share of the tokens continuing saves at equal loss. N counts
what a token is multiplied with: everything but the input embedding, so that C = 6 N D.

One learning rate serves all sizes, as in the paper; what lies outside the runs is extrapolation and marked as such.

    python -m studies.scaling --tokenizer out/base.model --data out/shards_base --out out/studies/scaling --seeds 3
"""
from pathlib import Path

import numpy as np

import model
import tokenizer
from common import cli, plan
from studies import arms, laws, plot


def shape(args, text: str) -> tuple[str, int]:
    """Write the config.json of a size such as 128x4 (width × layers); its path, and N."""
    width, _, layers = text.partition("x")
    if not (width.isdecimal() and layers.isdecimal() and int(width) % 32 == 0 and int(width) and int(layers)):
        raise cli.UserError(f"--sizes {text!r} is not width x layers with a width in steps of 32, such as 128x4")
    width, file = int(width), args.out / f"{text}.config.json"
    config = model.Config(tokenizer.load(args.tokenizer).size, width, 16 * round(width / 6), int(layers),
                          width // 32, width // 32, 32, max_position_embeddings=args.seq_len)
    config.write(file)
    found = plan.shapes(config, "full", 1)
    return str(file), int(sum(np.prod(dims) for name, dims in found.items() if name != plan.TABLES[0]))


def sweep(args, shapes: dict, seed: int) -> list[dict]:
    """Train all runs of a seed; a row each: size, N, D, from where, Korean loss in nats a token."""
    rows, mix = [], lambda en: [f"{args.data}/ko={1 - en:g}", f"{args.data}/en={en:g}"]
    for size, (config, N) in shapes.items():
        fresh = {"config": config, "tokenizer": args.tokenizer}
        base = arms.train(args, f"{size}-base-{seed}", **fresh, seed=seed, data=mix(1 - arms.NEVER),
                          stages=arms.full(args, args.base_tokens))
        for tokens in args.budgets:
            for start, origin in (("scratch", fresh), ("continued", {"model": base / "model"})):
                run = arms.train(args, f"{size}-{start}-{tokens}-{seed}", **origin, seed=seed, data=mix(arms.NEVER),
                                 stages=arms.full(args, tokens))
                end = arms.measured(run)[-1]
                rows.append({"size": size, "start": start, "seed": seed, "N": N, "D": end["tokens"],
                             "loss": end["losses"]["ko"], "bits_per_byte": end["scores"]["ko"],
                             "english": end["scores"]["en"]})
    return rows


def points(rows: list[dict], start: str) -> tuple:
    """(N, D, L) of the runs that began so."""
    return tuple(np.array([row[key] for row in rows if row["start"] == start], float) for key in ("N", "D", "loss"))


def interval(values: list[float]) -> str:
    """The middle 95 % of a bootstrap, and how many of its draws have no such value."""
    there = [value for value in values if np.isfinite(value)]
    none = f" none in {1 - len(there) / len(values):.0%}" if len(there) < len(values) else ""
    return "[{:.3g}, {:.3g}]".format(*np.quantile(there, (0.025, 0.975))) + none if there else "none"


def findings(fitted: tuple, samples: list[tuple], rows: list[dict]) -> list[list[str]]:
    """What the laws say, each with its interval: coefficients, tokens saved, the best split of a budget."""
    found = []

    def say(what: str, of) -> None:
        value, drawn = of(*fitted), [of(*sample) for sample in samples]
        found.append([what, f"{value:.3g}" if np.isfinite(value) else "none", interval(drawn)])

    for name, i, which in (("E", laws.E, 0), ("A", laws.A, 0), ("α", laws.ALPHA, 0), ("B", laws.B, 0),
                           ("β", laws.BETA, 0), ("B'", laws.B, 1), ("β'", laws.BETA, 1), ("γ", laws.GAMMA, 1)):
        say(name, lambda *both, i=i, which=which: np.exp(both[which][i]) if i in (laws.E, laws.A, laws.B)
            else both[which][i])
    largest = max(row["D"] for row in rows)
    for size, N in sorted({(row["size"], row["N"]) for row in rows}, key=lambda pair: pair[1]):
        say(f"tokens saved at {size}, of {largest:,} from scratch", lambda *both, N=N: laws.saved(*both, N, largest))
    flops = 6 * max(row["N"] * row["D"] for row in rows)
    for C, note in ((flops, "the largest run's"), (100 * flops, "100 times it, extrapolated")):
        for i, start in enumerate(("from scratch", "continued")):
            say(f"best N for C = {C:.1e} ({note}), {start}", lambda *both, C=C, i=i: laws.split(both[i], C)[0])
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
        scratch = [row["loss"] for row in rows if (row["D"], row["start"]) == (budget, "scratch")]
        continued = [row["loss"] for row in rows if (row["D"], row["start"]) == (budget, "continued")]
        gains.append(sum(scratch) / len(scratch) - sum(continued) / len(continued))
    plot.title(panels[0], f"Starting from an English model lowers the Korean loss by {gains[0]:.2f} "
                          f"nats after {min(budgets):,} tokens,\nand by {gains[1]:.2f} after "
                          f"{max(budgets):,}")


def main() -> None:
    """Sweep, fit, and say what the laws say."""
    parser = arms.parser(__doc__, "scaling.py", "tokens of the largest budget; a half and a quarter are run too")
    flag = parser.add_argument
    flag("--tokenizer", required=True, help="the base's tokenizer.model")
    flag("--data", type=Path, required=True, help="folder with shards ko and en packed with it")
    flag("--sizes", nargs="+", default=["64x2", "96x3", "128x4", "192x6"], help="width x layers; heads are 32 wide")
    flag("--base_tokens", type=int, default=600_000, help="English tokens of each base")
    flag("--draws", type=int, default=200, help="bootstrap samples")
    flag("--seeds", type=int, default=1, help="runs of every point")
    # Small steps and many: with the other studies' 2,048 tokens a step the larger sizes, which want a lower rate, are
    # still behind the smaller ones when the tokens end, and the law has nothing to say about N.
    parser.set_defaults(lr=1e-3, batch_tokens=512)
    args = parser.parse_args()
    settings = arms.start(args, tokens=4 * args.batch_tokens, seeds=1, base_tokens=1, draws=2)  # a step at the least
    if len(set(args.sizes)) < 2:
        raise cli.UserError("--sizes: a law over sizes needs two different ones at least, such as 64x2 128x4")
    args.budgets = [args.tokens // 4, args.tokens // 2, args.tokens]
    shapes = {size: shape(args, size) for size in args.sizes}
    rows = [row for seed in range(args.seeds) for row in sweep(args, shapes, seed)]
    scratch, continued = (points(rows, start) for start in ("scratch", "continued"))
    fitted, pairs = laws.both(scratch, continued), [(r["size"], r["seed"]) for r in rows if r["start"] == "scratch"]
    group = np.array([sorted(set(pairs)).index(pair) for pair in pairs])
    found = findings(fitted, laws.bootstrap(scratch, continued, fitted, group, args.draws), rows)

    result = {"settings": settings, "rows": rows, "findings": found,
              "theta": [theta.tolist() for theta in fitted]}
    cli.write_json(args.out / "scaling.json", result)
    print(arms.table(["size", "N", "D", "from scratch", "continued"], [
        [a["size"], a["N"], a["D"], *(arms.shown([r["loss"] for r in rows if (r["N"], r["D"], r["start"]) == (
            a["N"], a["D"], start)]) for start in ("scratch", "continued"))]
        for a in rows if a["seed"] == 0 and a["start"] == "scratch"]), "\n", sep="")
    print(arms.table(["by the laws", "value", "95 % interval"], found))
    plot.figure(args.out / "scaling.svg", lambda *axes: draw(result, *axes), panels=2)


if __name__ == "__main__":
    cli.run(main)
