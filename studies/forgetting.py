"""Korean gained against English lost: what does each way of forgetting less cost?

Every arm reads the same Korean tokens, and is measured as it goes, so that it draws a path:

    plain              everything is trained, on Korean alone
    plain, low rate    the same at a quarter of the rate. Whoever learns less forgets less, so a
                       method has to beat this
    replay             every fourth window is English (2403.08763)
    lora               a LoRA in the layers ("learns less and forgets less", 2405.09673), with
                       embedding and head, since the new pieces have to be learned somewhere
    lora alone         without them
    averaged           nothing is trained: the weights of base and plain are mixed, a quarter, half
                       and three quarters of the way (2109.01903); and the mean of the plain arm's
                       checkpoints and both its ends (2506.00288 averages along the way in place of
                       English data, with exponential weights)

    python -m studies.forgetting --model out/grown --data out/shards --out out/studies/forgetting
"""
import argparse
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

import data
import model
from common import checkpoint, cli
from studies import arms, plot

# {arm: (what is trained, share of English windows, factor of the learning rate)}
ARMS = {
    "plain": ("full", arms.NEVER, 1),
    "plain, low rate": ("full", arms.NEVER, 0.25),
    "replay": ("full", 0.25, 1),
    "lora": ("lora+embed", arms.NEVER, 1),
    "lora alone": ("lora", arms.NEVER, 1),
}
LANGUAGES = ("ko", "en")
BETWEEN = {"plain, ¼ of the way": 0.25, "plain, ½ of the way": 0.5, "plain, ¾ of the way": 0.75}
HEADER = ["arm", "Korean, bits per byte", "English, bits per byte", "Korean gained", "English lost"]


def trained(args: argparse.Namespace, name: str) -> list[dict]:
    """Train an arm; bits per byte of both languages along its way."""
    what, english, rate = ARMS[name]
    tokens = args.tokens / (1 - english)
    every = max(1, round(tokens / args.batch_tokens / args.points))
    run = arms.train(
        args,
        name.replace(", ", "_").replace(" ", "_"),
        model=args.model,
        lora_rank=args.lora_rank,
        stages=[f"{what}:{round(tokens)}:{args.lr * rate:g}"],
        eval_every=every,
        save_every=every,
        keep=args.points,
        data=[f"{args.data}/ko={1 - english:g}", f"{args.data}/en={english:g}"],
    )
    return [row["scores"] for row in arms.measured(run)]


def weights(llama: model.Llama, folder: Path) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint of a run that trained all of them."""
    state = {"parameters": {name: torch.empty_like(p) for name, p in llama.named_parameters()}}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state["parameters"]


def mean(weighted: list[tuple[float, dict]]) -> dict[str, torch.Tensor]:
    """The mean of models' parameters in float64, by weights that sum to 1."""
    _, first = weighted[0]
    result = {}
    for name in first:
        parts = [weight * parameters[name].double() for weight, parameters in weighted]
        result[name] = sum(parts).float()
    return result


def averages(args: argparse.Namespace) -> dict[str, dict]:
    """Bits per byte of both languages for means of base, checkpoints and end of the plain arm.
    Measured once."""
    file = args.out / "averages.json"
    if file.exists():
        return cli.read_json(file)
    llama = model.load(args.model)
    shards = {language: data.Shards(args.data / language, verify=False) for language in LANGUAGES}

    def score(parameters: dict) -> dict:
        with torch.no_grad():
            for name, p in llama.named_parameters():
                p.copy_(parameters[name])
        scores = {}
        for language, source in shards.items():
            found = data.bits_per_byte(llama, source, args.seq_len, args.eval_bytes)
            scores[language] = found["bits_per_byte"]
        return scores

    # The plain arm's way, from the base over its checkpoints, oldest first, to its end.
    base = {name: p.detach().clone() for name, p in llama.named_parameters()}
    end = dict(model.load(args.out / "plain/model").named_parameters())
    oldest_first = reversed(checkpoint.find(args.out / "plain"))
    states = [base, *(weights(llama, folder) for folder in oldest_first), end]

    found = {}
    for label, share in BETWEEN.items():
        found[label] = score(mean([(1 - share, base), (share, end)]))
    found["mean of checkpoints"] = score(mean([(1 / len(states), state) for state in states]))
    cli.write_json(file, found)
    return found


def change(scores: dict, start: dict) -> tuple[float, float]:
    """(English lost, Korean gained) since the start, in bits per byte."""
    return scores["en"] - start["en"], start["ko"] - scores["ko"]


def draw(result: dict, axes) -> None:
    """Each arm's path, Korean gained against English lost."""
    paths = result["paths"]
    averaged = result["averaged"]
    start = paths["plain"][0]
    ends = []
    for (name, path), colour in zip(paths.items(), plot.COLOURS, strict=False):
        changes = [change(scores, start) for scores in path]
        lost = [x for x, _ in changes]
        gained = [y for _, y in changes]
        axes.plot(lost, gained, "-o", ms=3, lw=1.2, color=colour)
        is_left = name == "plain, low rate"  # where there is more room
        axes.annotate(name, xy=(lost[-1], gained[-1]), xytext=(-6 if is_left else 6, 4),
                      ha="right" if is_left else "left", textcoords="offset points", color=colour)
        ends.append((lost[-1], gained[-1]))

    # Mixtures of base and plain lie on one curve between them.
    way = [start, *(averaged[label] for label in BETWEEN), paths["plain"][-1]]
    mixed = [change(scores, start) for scores in way]
    axes.plot([x for x, _ in mixed], [y for _, y in mixed], "--", color=plot.GREY, lw=1)
    axes.annotate("weights of base\nand plain, mixed", xy=mixed[1], xytext=(-4, 14), ha="right",
                  textcoords="offset points", color=plot.GREY)
    x, y = change(averaged["mean of checkpoints"], start)
    axes.plot(x, y, "*", color=plot.GREY)
    # Below the bundle of lines, with a line of its own.
    axes.annotate("mean of plain's checkpoints", xy=(x, y), xytext=(60, -90), ha="left",
                  textcoords="offset points", color=plot.GREY,
                  arrowprops={"arrowstyle": "-", "color": plot.GREY, "lw": 0.6})

    axes.set_xlim(left=-0.08, right=1.2 * max(x for x, _ in ends))
    axes.margins(y=0.1)
    axes.set(xlabel="English lost, bits per byte (left is better)",
             ylabel="Korean gained, bits per byte (higher is better)")
    plain = change(paths["plain"][-1], start)
    replay = change(paths["replay"][-1], start)
    share = replay[1] / plain[1]
    as_much = "as much Korean" if share >= 0.99 else f"{plot.percent(share)} as much Korean"
    kept = plot.percent(1 - replay[0] / plain[0])
    plot.title(axes, f"Replay forgets {kept} less English than training on Korean alone,\n"
                     f"and learns {as_much}")


def main() -> None:
    """Train the arms, average the plain one, and print and write what each gained and lost."""
    parser = arms.parser(__doc__, "forgetting.py", "Korean tokens per arm")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory")
    flag("--data", type=Path, required=True, help="folder with shards ko and en")
    flag("--points", type=int, default=4,
         help="measurements along an arm's way, and checkpoints")
    flag("--lora_rank", type=int, default=32, help="rank of the LoRA arms")
    args = parser.parse_args()
    settings = arms.start(args, points=1, lora_rank=1)

    paths = {name: trained(args, name) for name in ARMS}
    averaged = averages(args)
    start = paths["plain"][0]
    ends = {"untrained": start}
    ends.update({name: path[-1] for name, path in paths.items()})
    ends.update(averaged)
    rows = []
    for name, scores in ends.items():
        lost, gained = change(scores, start)
        rows.append([name, scores["ko"], scores["en"], gained, lost])
    result = {"settings": settings, "paths": paths, "averaged": averaged}
    arms.write(args, "forgetting", result, HEADER, rows, lambda axes: draw(result, axes))


if __name__ == "__main__":
    cli.run(main)
