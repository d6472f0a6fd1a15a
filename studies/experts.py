"""Do experts specialise by language? A sparse model beside the dense one it was made of, in the same training.

LOLA (2409.11272, section on its experts) finds that which experts a text meets follows the family of its language. Here
a dense model is upcycled (moe.py: every other feed-forward becomes X copies and a router, and step 0 computes the
same); both read the same tokens of Korean and English; then held-out text of each language is sent through, and the
experts that it met are counted, layer by layer.

How far two languages lie apart in a layer is the total variation of their shares (0: the same experts, 1: none in
common). It has two baselines: the untrained router, which tells hidden states apart at random, and two halves of the
same language's documents.

    python -m studies.experts --model out/grown --data out/shards --out out/studies/experts
"""
from pathlib import Path

import numpy as np
import torch

import data
import model
import tokenizer
from common import cli
from studies import arms, moe

LANGUAGES = ("ko", "en")


def upcycled(args) -> Path:
    """The model directory with experts, made of --model."""
    folder = args.out / "upcycled"
    arms.same(folder, [str(args.model), args.experts, args.balance], folder.exists())
    if not folder.exists():
        llama = moe.upcycle(model.load(args.model), args.experts, args.balance)
        with cli.new_folder(folder) as temporary:
            model.save(llama, temporary)
            tokenizer.save(Path(args.model) / "tokenizer.model", temporary)
    return folder


@torch.no_grad()
def shares(args, folder: Path) -> dict[str, np.ndarray]:
    """{"ko": (2, layers, X), ...}: the share of each expert among a language's tokens, for every second document."""
    llama, found = model.load(folder), {}
    for language in LANGUAGES:
        counts = np.zeros((2, len(moe.routers(llama)), args.experts))
        documents, _ = data.Shards(args.data / language, verify=False).validation(args.eval_bytes)
        for number, ids in enumerate(cli.progress(documents, f"experts that {language} meets")):
            for a in range(0, len(ids), args.seq_len):
                llama.hidden(torch.from_numpy(ids[None, a:a + args.seq_len]))
                for layer, router in enumerate(moe.routers(llama).values()):
                    counts[number % 2, layer] += router.chosen.bincount(minlength=args.experts).numpy()
        found[language] = counts / counts.sum(-1, keepdims=True).clip(1)
    return found


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation of two sets of shares (..., X): half the sum of the differences.

    >>> float(apart(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5])))
    0.5
    """
    return np.abs(a - b).sum(-1) / 2


def row(args, name: str, run: Path, seconds: float, scores: dict) -> list:
    """An arm's row: parameters, those that one token meets, scores."""
    sizes = {n: p.numel() for n, p in model.load(run).named_parameters()}
    met = sum(size / (args.experts if ".experts." in n else 1) for n, size in sizes.items())
    return [name, sum(sizes.values()), round(met), scores["ko"], scores["en"], round(seconds)]


def main() -> None:
    """Upcycle, train both, count; print and write scores and the map."""
    parser = arms.parser(__doc__, "experts.py", "tokens an arm, English included")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory, dense")
    flag("--data", type=Path, required=True, help="folder with shards ko and en")
    flag("--experts", type=int, default=8, help="experts of a sparse layer")
    flag("--balance", type=float, default=0.01, help="the auxiliary loss's coefficient")
    flag("--korean", type=float, default=0.75, help="share of Korean windows")
    args = parser.parse_args()
    settings, rows = arms.start(args, experts=2, balance=0), []
    if model.Config.read(args.model).num_experts:
        raise cli.UserError(f"{args.model} has experts already; start from a dense model")
    mix = [f"{args.data}/ko={args.korean:g}", f"{args.data}/en={1 - args.korean:g}"]
    for name, start in (("dense", args.model), ("experts", upcycled(args))):
        run = arms.train(args, name, model=start, data=mix, stages=arms.full(args, args.tokens))
        first, *_, last = arms.measured(run)
        rows += [row(args, f"{name}, untrained", run / "model", 0, first["scores"])] if not rows else []
        rows.append(row(args, name, run / "model", last["seconds"], last["scores"]))
    before, after = (shares(args, folder) for folder in (args.out / "upcycled", args.out / "experts/model"))
    whole = {language: found.mean(0) for language, found in after.items()}
    layers = sorted(moe.routers(model.load(args.out / "upcycled")))
    apart_rows = [[layer, float(apart(*(before[x].mean(0)[i] for x in LANGUAGES))),
                   float(apart(*(whole[x][i] for x in LANGUAGES))), *(float(apart(*after[x][:, i])) for x in LANGUAGES)]
                  for i, layer in enumerate(layers)]
    print(arms.table(["layer", "ko from en, untrained router", "ko from en, trained", "halves of ko", "halves of en"],
                     apart_rows), "\n")
    print(arms.table(["layer", "language", *(f"expert {e}" for e in range(args.experts))], [
        [layer, x, *map(float, whole[x][i])] for i, layer in enumerate(layers) for x in LANGUAGES]), "\n")

    def draw(axes):
        grid = np.concatenate([whole[x][i:i + 1] for i in range(len(layers)) for x in LANGUAGES])
        image = axes.imshow(grid, cmap="viridis", vmin=0, aspect="auto")
        axes.set(yticks=range(len(grid)), yticklabels=[f"layer {layer}, {x}" for layer in layers for x in LANGUAGES],
                 xticks=range(args.experts), xlabel="expert")
        axes.figure.colorbar(image, label="share of the language's tokens")

    arms.write(args, "experts", {"settings": settings, "rows": rows, "apart": apart_rows, "layers": layers,
                                 "shares": {x: found.tolist() for x, found in whole.items()}},
               ["arm", "parameters", "a token meets", "Korean, bits a byte", "English, bits a byte", "seconds"],
               rows, draw)


if __name__ == "__main__":
    cli.run(main)
