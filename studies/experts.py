"""Do experts specialise by language? A sparse model beside the dense one that it was made of, in
the same training.

LOLA (2409.11272, section on its experts) finds that which experts a text meets follows the family
of its language. Here a dense model is upcycled (moe.py: every other feed-forward becomes X copies
and a router, and step 0 computes the same); both read the same tokens of Korean and English; then
held-out text of each language is sent through, and the experts that it met are counted, layer by
layer.

How far apart two languages are in a layer is the total variation of their shares (0: the same
experts, 1: none in common). It has two baselines: the untrained router, which tells hidden states
apart at random, and two halves of the same language's documents.

    python -m studies.experts --model out/grown --data out/shards --out out/studies/experts
"""
import sys
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
            tokenizer.save(Path(args.model), temporary)
    return folder


@torch.no_grad()
def shares(args, folder: Path) -> dict[str, np.ndarray]:
    """{"ko": (2, layers, X), ...}: the share of each expert among a language's tokens, in its even
    and in its odd documents."""
    llama = moe.load(folder)
    layers = list(moe.routers(llama).values())
    found = {}
    for language in LANGUAGES:
        shards = data.Shards(args.data / language, verify=False)
        documents = shards.validation(args.eval_bytes)[0]
        counts = np.zeros((2, len(layers), args.experts))
        for number, ids in enumerate(cli.progress(documents, f"experts that {language} meets")):
            half = number % 2
            for start in range(0, len(ids), args.seq_len):
                window = torch.from_numpy(ids[None, start:start + args.seq_len])
                llama.hidden(window)
                for layer, router in enumerate(layers):
                    met = router.chosen.bincount(minlength=args.experts)
                    counts[half, layer] += met.numpy()
        totals = counts.sum(-1, keepdims=True).clip(1)
        found[language] = counts / totals
    return found


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation of two sets of shares (..., X): half the sum of the differences.

    >>> float(apart(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5])))
    0.5
    """
    return np.abs(a - b).sum(-1) / 2


def train_both(args) -> list[list]:
    """Train the dense model and the sparse one; a row for the start, and one for each arm's end."""
    data_flags = [f"{args.data}/ko={args.korean:g}", f"{args.data}/en={1 - args.korean:g}"]
    programs = {
        "dense": arms.TRAIN,
        "experts": [sys.executable, "-m", "studies.moe"],
    }
    starts = {"dense": args.model, "experts": upcycled(args)}
    stages = arms.full(args, args.tokens)
    rows = []
    for name, start in starts.items():
        run = arms.train(args, name, programs[name], model=start, data=data_flags, stages=stages)
        first, *_, last = arms.measured(run)
        if not rows:  # both compute the same there
            rows.append(row(args, f"{name}, untrained", run / "model", 0, first["scores"]))
        rows.append(row(args, name, run / "model", last["seconds"], last["scores"]))
    return rows


def row(args, name: str, folder: Path, seconds: float, scores: dict[str, float]) -> list:
    """An arm's row: its parameters, those that one token meets, scores."""
    parameters = 0
    met = 0
    for key, p in moe.load(folder).named_parameters():
        parameters += p.numel()
        if ".experts." in key:
            met += p.numel() / args.experts
        else:
            met += p.numel()
    return [name, parameters, round(met), scores["ko"], scores["en"], round(seconds)]


def distances(layers: list[int], before: dict[str, np.ndarray],
              after: dict[str, np.ndarray]) -> list[list]:
    """A row per sparse layer: how far apart the languages are, before and after training, and how
    far the halves of each are, after it."""
    ko_from_en_before = apart(before["ko"].mean(0), before["en"].mean(0))       # (layers,)
    ko_from_en = apart(after["ko"].mean(0), after["en"].mean(0))
    halves = {language: apart(*after[language]) for language in LANGUAGES}
    rows = []
    for i, layer in enumerate(layers):
        within = [float(halves[language][i]) for language in LANGUAGES]
        rows.append([layer, float(ko_from_en_before[i]), float(ko_from_en[i]), *within])
    return rows


def main() -> None:
    """Upcycle, train both, count; print and write scores and the map."""
    parser = arms.parser(__doc__, "experts.py", "tokens per arm, English included")
    flag = parser.add_argument
    flag("--model", required=True, help="the grown model directory, dense")
    flag("--data", type=Path, required=True, help="folder with shards ko and en")
    flag("--experts", type=int, default=8, help="experts per sparse layer")
    flag("--balance", type=float, default=0.01, help="the auxiliary loss's coefficient")
    flag("--korean", type=float, default=0.75, help="share of Korean windows")
    args = parser.parse_args()
    settings = arms.start(args, experts=2, balance=0)
    model.Config.read(args.model)  # which refuses a model that has experts already
    rows = train_both(args)

    # Which experts the languages met, and how far apart that is.
    before = shares(args, args.out / "upcycled")
    after = shares(args, args.out / "experts/model")
    layers = sorted(moe.routers(moe.load(args.out / "upcycled")))
    apart_rows = distances(layers, before, after)
    header = ["layer", "ko from en, untrained router", "ko from en, trained", "halves of ko",
              "halves of en"]
    print(arms.table(header, apart_rows), "\n")

    # The map: a row per layer and language, its shares of the experts.
    map_rows = []
    for i, layer in enumerate(layers):
        for language in LANGUAGES:
            map_rows.append([layer, language, *after[language].mean(0)[i].tolist()])
    header = ["layer", "language"]
    for expert in range(args.experts):
        header.append(f"expert {expert}")
    print(arms.table(header, map_rows), "\n")

    def draw(axes):
        names = [f"layer {layer}, {language}" for layer, language, *_ in map_rows]
        grid = np.array([shares_of_row for _, _, *shares_of_row in map_rows])
        image = axes.imshow(grid, cmap="viridis", vmin=0, aspect="auto")
        axes.set(yticks=range(len(grid)), yticklabels=names)
        axes.set(xticks=range(args.experts), xlabel="expert")
        axes.figure.colorbar(image, label="share of the language's tokens")

    result = {
        "settings": settings,
        "rows": rows,
        "apart": apart_rows,
        "layers": layers,
        "shares": {language: after[language].tolist() for language in LANGUAGES},
    }
    header = ["arm", "parameters", "a token meets", "Korean, bits per byte",
              "English, bits per byte", "seconds"]
    arms.write(args, "experts", result, header, rows, draw)


if __name__ == "__main__":
    cli.run(main)
