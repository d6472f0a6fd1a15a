"""Grow a model's vocabulary: new rows of the embedding and the head for the pieces a merge added.

The merged tokenizer keeps the base's ids and adds new ones. So the embedding and the head keep
their rows, bit for bit, and get new ones below. RedWhale (arXiv 2408.11294, section 3.3) compares
five ways to initialise these; EEVE's (2402.14714) is the sixth. Most of them use the base's rows
for a piece's parts: before, the base read 한국 ("Korea") as 한 and 국, or as six bytes.

    method          new row of the embedding (input)    new row of the head (output)
    random          N(0, s²)                            N(0, s²)
    mean            mean of all the base's rows         N(0, s²)
    mean_both       mean of all the base's rows         mean of all the base's rows
    subtoken        mean of its pieces' rows            N(0, s²)
    subtoken_both   mean of its pieces' rows            mean of its pieces' rows
    eeve            mean of its pieces' rows            row of its first piece that is not a bare ▁

`s` is the standard deviation of the base's rows in the same matrix, not config.json's
`initializer_range`, because rows grow in training. Means are computed in float64. A tied model has
one matrix, which is made by the rule for the embedding.

    # write the grown model directory
    python init.py --model base --tokenizer merged.model --out grown --method subtoken_both
    # compare the methods, by training a model of each for a few steps
    python init.py --model base --tokenizer merged.model --probe out/shards/ko
"""
import argparse
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import data
import model
import tokenizer
from common import cli, hf, special_tokens
from common.hf import INDEX, open_file
from common.plan import TABLES

EMBEDDING, HEAD = TABLES

# RedWhale's five methods and EEVE's. They differ in what they take from the base: only the scale of
# its rows, their mean, or the rows of the piece's parts.
METHODS = {                                     # (rule for the embedding, rule for the head)
    "random": ("random", "random"),
    "mean": ("mean", "random"),
    "mean_both": ("mean", "mean"),
    "subtoken": ("subtoken", "random"),
    "subtoken_both": ("subtoken", "subtoken"),
    "eeve": ("subtoken", "first"),
}

# Files that describe the base's vocabulary. They are not copied: they are written anew, or would be
# wrong.
OF_THE_VOCABULARY = (
    "config.json",
    "generation_config.json",
    "tokenizer.model*",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",       # a byte-level vocabulary in GPT-2's format
    "merges.txt",
    "tekken.json",      # a byte-level vocabulary in Mistral's format
    "params.json",      # Meta's and Mistral's own config.json
)

# ------------------------------------------------------------------------------- the new rows


class Growth(NamedTuple):
    """What to add: rows base … size - 1 are new pieces, rows size … padded - 1 are padding."""
    base: int
    size: int
    padded: int
    parts: list[list[int]]      # for each new piece, the base's ids that have spelled it; for
                                # a token that moves, its old id; for one without a row, nothing
    space: int                  # the id of a bare ▁, SentencePiece's space


def growth(folder: Path, merged_file: Path, pad_to: int) -> Growth:
    """Compare the model's tokenizer with the merged one.

    UserError if the merged one does not extend the model's.
    """
    base, merged = vocabularies(folder, merged_file)
    rows = model.Config.read(folder).vocab_size
    old = base.size
    new = merged.size

    # Ids are row numbers, so the base's pieces must come first, with the same ids. Only tokens that
    # its directory adds after them may move; rows are kept up to the first such token.
    kept = old
    for i, (a, b) in enumerate(zip(base.pieces, merged.pieces, strict=False)):
        if tokenizer.is_same(a, b):
            continue
        if i in base.added:
            kept = i
            break
        raise cli.UserError(f"{merged_file} does not extend the tokenizer of {folder}: id {i} is "
                            f"{b}, in the model {a}; merge into the model's own")
    # The last control tokens may have no row, such as a [PAD] added by fine-tuning. They get one.
    while old > rows and not base.bytes_of(old - 1):
        old -= 1
    kept = min(kept, old)
    # A padded base has more rows than pieces. Those rows mean nothing and are replaced by new ones.
    # But rows are never removed.
    if not old <= rows <= new:
        raise cli.UserError(f"a vocabulary can only grow, but the tokenizer of {folder} has {old} "
                            f"pieces, config.json says vocab_size {rows}, {merged_file} has {new} "
                            "pieces; each must be at least as large as the one before")
    if rows > old:
        print(f"rows {old} to {rows - 1} of {folder} have no piece in its tokenizer; "
              "they are replaced")
    if pad_to < 1:
        raise cli.UserError(f"--pad_to {pad_to} must be at least 1, which pads nothing")

    # How does the base segment each new piece, without the ▁ that SentencePiece puts before a text?
    # 한국 ("Korea") becomes 한 국, and ▁한국 becomes ▁ 한 국. A control token has its own row, or
    # none.
    controls = {i: text for text, i in merged.controls.items()}
    parts = []
    for i in range(kept, new):
        if i not in controls:
            parts.append(base.split(merged.bytes_of(i)))
        elif base.controls.get(controls[i], rows) < rows:
            parts.append([base.controls[controls[i]]])
        else:
            parts.append([])
    [space] = base.split(b" ")
    return Growth(kept, new, math.ceil(new / pad_to) * pad_to, parts, space)


def vocabularies(
    folder: Path, merged_file: Path
) -> tuple[tokenizer.Vocabulary, tokenizer.Vocabulary]:
    """The base's tokenizer, and the merged one with every token of the base's directory.

    If the directory was merged, these tokens are in the merged tokenizer. If only its
    tokenizer.model was merged, the tokens that the directory adds are missing, and are added after
    all pieces."""
    base = tokenizer.load(folder)
    merged = tokenizer.load(merged_file, base=True)
    behind = {}
    for token in [*base.added.values(), *base.without_row.values()]:
        if token["content"] not in merged.controls:
            behind[merged.size + len(behind)] = token
    if behind:
        merged = merged.with_added(behind)
    return base, merged


def new_rows(
    name: str,
    table: torch.Tensor,
    method: str,
    tied: bool,
    grow: Growth,
    seed: int,
) -> torch.Tensor:
    """The rows from grow.base on of the matrix (V, D) called `name`: (padded - base, D), in the
    dtype of the matrix.

    Padding rows are the mean of the base's rows. Then their logit is the mean of the base's logits,
    and the softmax gives each at most 1 / base, whatever the hidden state (log-sum-exp ≥ mean + log
    base). Rows of zeros could be the most likely token. Training lowers the logit further, because
    padding is never a target. So other programs need not be told to suppress these rows, and a chat
    token that is added later can use one.
    """
    # A tied matrix serves as both and follows the rule for the embedding.
    if name == EMBEDDING or tied:
        which = 0
    else:
        which = 1
    rule = METHODS[method][which]
    generator = torch.Generator().manual_seed(2 * seed + which)     # the tables' draws differ

    # The rules use the rows that keep their place. A token that moves takes its row along.
    whole_table = table
    table = table[:grow.base]

    # Mean and standard deviation of these rows, with variance = E[x²] - E[x]². They are computed in
    # slices, because a float64 copy is four times as large as a matrix in bfloat16.
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    squares = 0.0
    for rows in table.split(4096):
        total += rows.double().sum(0)
        squares += rows.double().square().sum().item()
    mean = total / grow.base                                        # (D,)
    std = math.sqrt(squares / table.numel() - mean.mean().item() ** 2)

    # All rows start as the mean. Padding rows stay so, and so do new rows if that is the rule.
    new = mean.to(table.dtype).repeat(grow.padded - grow.base, 1)
    # (There are fewer parts than rows, because padding has none.)
    for row, ids in zip(new, grow.parts, strict=False):
        if not ids:
            continue                        # a control token that had no row
        if ids[0] >= grow.base:
            row[:] = whole_table[ids[0]]    # a token that moves
        elif rule == "random":
            row[:] = torch.randn(len(row), generator=generator) * std
        elif rule == "subtoken":
            row[:] = table[ids].double().mean(0)
        elif rule == "first":
            row[:] = table[first_piece(ids, grow.space)]
    return new


def first_piece(ids: list[int], space: int) -> int:
    """The first of a piece's ids that is not a bare ▁; the ▁ if there is no other.

    >>> first_piece([7, 12, 15], space=7)                           # ▁ 한 국
    12
    """
    for i in ids:
        if i != space:
            return i
    return ids[0]


# --------------------------------------------------------------------------- model directories


def grow_folder(
    folder: Path,
    merged_file: Path,
    out: Path,
    method: str,
    pad_to: int,
    seed: int,
) -> Growth:
    """Write the grown model directory `out`, with one weight file in memory at a time.

    UserError if the base cannot be read, or does not match its config.json.
    """
    cli.check_model_folder(folder)
    if out.resolve() == folder.resolve():
        raise cli.UserError(f"--out {out} is the base model itself, which would be lost; "
                            "choose another folder")
    grow = growth(folder, merged_file, pad_to)
    config = cli.read_json(folder / "config.json")
    tied = config.get("tie_word_embeddings", False)
    files = weight_files(folder)
    check_tables(folder, files, [config["vocab_size"], config["hidden_size"]], tied)

    total_size = 0
    with cli.new_folder(out) as temporary:
        # Write the small files first, so that errors in them show before weights are written.
        hf.carry_files(folder, temporary, but=OF_THE_VOCABULARY)
        base, merged = vocabularies(folder, merged_file)
        write_settings(folder, temporary, grow, base, merged)
        tokenizer.write(merged, temporary, folder)

        # Every tensor except embedding and head is written as it was read, and so are their old
        # rows: the same bits, in any dtype. load_file maps the file into memory, so tensors are
        # read only when they are used.
        for file in cli.progress(files, "growing", " files"):
            tensors = load_file(folder / file)
            for name in TABLES:
                if name in tensors:
                    new = new_rows(name, tensors[name], method, tied, grow, seed)
                    tensors[name] = torch.cat([tensors[name][:grow.base], new])
            total_size += sum(tensor.nbytes for tensor in tensors.values())
            save_tensors(tensors, temporary / file)

        # Tensors stay in their files, so only the total in the index changes.
        if (folder / INDEX).exists():
            index = cli.read_json(folder / INDEX)
            index["metadata"] = {"total_size": total_size}
            cli.write_json(temporary / INDEX, index)
    tokenizer.warn_of_ties(merged)
    return grow


def write_settings(
    folder: Path,
    target: Path,
    grow: Growth,
    base: tokenizer.Vocabulary,
    merged: tokenizer.Vocabulary,
) -> None:
    """Write config.json and generation_config.json: the base's, with the sizes and ids of the
    merged vocabulary."""
    # Pieces keep their ids. Tokens after them get those of the merged vocabulary.
    new_ids = {i: i for i in range(base.size)}
    for i, token in {**base.added, **base.without_row}.items():
        text = token["content"]
        new_ids[i] = merged.controls[text]
        if i in base.added and new_ids[i] != i:
            print(f"{text} had id {i} and now has id {new_ids[i]}, with its row")

    config = cli.read_json(folder / "config.json")
    # transformers takes these ids from config.json only if there is no generation_config.json.
    generation = {name: config[name] for name in special_tokens.ROLE_IDS if name in config}
    generation |= cli.read_json_if_any(folder / "generation_config.json")
    for name, settings in (("config.json", config), ("generation_config.json", generation)):
        amended = special_tokens.amend_ids(settings, new_ids, merged, name)
        cli.write_json(target / name, amended)

    # Training and sampling need to know which rows are the base's and which are padding.
    sizes = model.Config.read(target)
    sizes.vocab_size = grow.padded
    sizes.base_vocab_size = grow.base
    sizes.unpadded_vocab_size = grow.size
    sizes.write(target / "config.json")


def weight_files(folder: Path) -> list[str]:
    """The names of a model directory's weight files. UserError if it has none, or .bin files."""
    return sorted({file.name for file in hf.files_of_tensors(folder).values()})


def check_tables(folder: Path, files: list[str], shape: list[int], tied: bool) -> None:
    """UserError if a weight file is missing or truncated, or the embedding or the head has another
    shape than config.json says. Reads only headers, so errors show before anything is written."""
    # Opening a file compares the sizes in its header with the file's, so truncation shows here.
    found = {}
    for file in files:
        with open_file(folder / file) as weights:
            for name in TABLES:
                if name in weights.keys():
                    found[name] = weights.get_slice(name).get_shape()
    # Otherwise a wrong shape would fail only later, in the first matmul.
    for name in TABLES:
        if name == HEAD and tied and name not in found:
            continue        # a tied model need not store the same matrix twice
        if found.get(name) != shape:
            raise cli.UserError(f"{folder}: {name} has shape {found.get(name)}, config.json says "
                                f"{shape}; weights and configuration belong to different models")


def save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a weight file in the form that transformers reads. UserError if that fails."""
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise cli.UserError(f"cannot write {file}: {error}") from None


# ---------------------------------------------------------------------------------- the probe

# {key in probe.json: what is trained}. studies/report.py shows the first.
TRAINED = {
    "bits_per_byte": "embedding and head",
    "everything": "everything",
}


def probe(folder: Path, merged_file: Path, args: argparse.Namespace) -> dict:
    """Train a model of each method for a few steps, and measure bits per byte on the validation
    documents: {key of TRAINED: {method: {step: bits}}}, and "best": the recommended method.

    Step 0 misleads, because rows that predict badly may learn fast (2608.03494). So the last step
    decides. The methods are compared twice: once training only embedding and head, with which the
    stages of the recipe begin, and once training everything, with which they end.
    """
    cli.check_model_folder(folder)
    grow = growth(folder, merged_file, args.pad_to)
    # In shards of another tokenizer the ids would mean other pieces.
    shards = data.Shards(args.probe)
    if shards.tokenizer_sha256 != tokenizer.load(merged_file).sha256:
        raise cli.UserError(f"{args.probe} was packed with another tokenizer than {merged_file}; "
                            "data.py pack it again")
    if args.probe_steps < 1:
        raise cli.UserError(f"--probe_steps {args.probe_steps} must be at least 1: step 0 alone "
                            "misleads")
    # Measure at some earlier steps too, because the order of the methods changes as they learn.
    steps = [step for step in (0, 10, 50) if step < args.probe_steps]
    steps.append(args.probe_steps)

    result = {}
    for key, trained in TRAINED.items():
        result[key] = {}
        title = f"training {trained}, bits per byte at step"
        print(f"\n{title:45}", *(f"{step:>8}" for step in steps))
        for method in METHODS:
            # A fresh model for every method, each trained on the same batches.
            llama = grown(folder, grow, method, args.seed).to(args.device)
            llama.compute_dtype = getattr(torch, args.dtype)
            for name, parameter in llama.named_parameters():
                parameter.requires_grad = key == "everything" or name in TABLES
            bits = list(train_briefly(llama, shards, steps, args))
            print(f"{method:45}", *(f"{value:8.4f}" for value in bits), flush=True)
            result[key][method] = {str(step): b for step, b in zip(steps, bits, strict=True)}

    # Recommend the method with the lowest mean over both ways of training.
    last = str(steps[-1])
    means = dict.fromkeys(METHODS, 0.0)
    for key, trained in TRAINED.items():
        bits_at_end = {method: result[key][method][last] for method in METHODS}
        lowest = min(METHODS, key=bits_at_end.get)
        print(f"lowest after {last} steps of {trained}: {lowest}")
        for method in METHODS:
            means[method] += bits_at_end[method] / len(TRAINED)
    result["best"] = min(METHODS, key=means.get)
    print(f"recommended, by the mean of the two: --method {result['best']}")
    return result


def grown(folder: Path, grow: Growth, method: str, seed: int) -> model.Llama:
    """The grown model in memory, in float32: what grow_folder would write."""
    llama = model.load(folder)
    tied = llama.config.tie_word_embeddings
    embedding = llama.model.embed_tokens
    head = llama.lm_head
    for name, layer in ((EMBEDDING, embedding), (HEAD, head)):
        old = layer.weight.detach()
        new = new_rows(name, old, method, tied, grow, seed)
        layer.weight = torch.nn.Parameter(torch.cat([old[:grow.base], new]))
    # Both have the same values, but must also be one parameter, or training would untie them.
    if tied:
        head.weight = embedding.weight
    llama.config = dataclasses.replace(
        llama.config, vocab_size=grow.padded, unpadded_vocab_size=grow.size)
    return llama


def train_briefly(
    llama: model.Llama,
    shards: data.Shards,
    steps: list[int],
    args: argparse.Namespace,
) -> Iterator[float]:
    """Train what requires a gradient; yield the validation bits per byte at each of `steps`."""
    # No weight decay, because it would shrink the rows of pieces that do not occur.
    trained = [p for p in llama.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.lr, weight_decay=0.0)
    loader = data.Loader([shards], [1.0], args.seq_len, args.seed)
    for step in cli.progress(range(steps[-1] + 1), "train", " steps"):
        # Validate before the update, so that step 0 is the model as it was initialised.
        if step in steps:
            score = data.bits_per_byte(
                llama, shards, args.seq_len, args.probe_bytes, args.probe_batch, args.device)
            yield score["bits_per_byte"]
        if step == steps[-1]:
            break

        # One step as in train.py, without schedule, clipping and micro-batches.
        inputs, targets, _ = loader.next(args.probe_batch)                      # (B, T) each
        inputs = torch.from_numpy(inputs).to(args.device)
        targets = torch.from_numpy(targets).to(args.device)
        loss, count = llama(inputs, targets)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()


# -------------------------------------------------------------------------------- the program


def main(argv: list[str] | None = None) -> None:
    """Grow a model, or with --probe compare the methods."""
    parser = cli.Parser(description=__doc__, prog="init.py")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory of the base")
    flag("--tokenizer", type=Path, required=True,
         help="the merged tokenizer: the file or folder that tokenizer.py merge wrote")
    flag("--out", type=Path,
         help="model directory to write (required without --probe); with --probe, the JSON file "
              "for its numbers (default: probe.json)")
    flag("--method", choices=METHODS, default="subtoken_both",
         help="how to initialise the new rows; see above")
    flag("--pad_to", type=int, default=64,
         help="pad the number of rows to a multiple of this; 1: no padding")
    flag("--seed", type=int, default=0, help="seed of the random rows and of the probe's batches")
    flag("--probe", type=Path, metavar="SHARDS",
         help="compare all methods instead of writing a model: train each for a few steps on these "
              "token shards, which were packed with --tokenizer")
    flag("--probe_steps", type=int, default=200,
         help="training steps of the probe, for each method and each of the two ways of training")
    flag("--probe_batch", type=int, default=8, help="windows per step of the probe")
    flag("--probe_bytes", type=int, default=200_000,
         help="bytes of validation text, at most, that the probe measures on")
    flag("--seq_len", type=int, default=512, help="tokens per window of the probe")
    flag("--lr", type=float, default=1e-3, help="learning rate of the probe's AdamW, constant")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    settings = cli.settings(args)

    if args.probe:
        result = probe(args.model, args.tokenizer, args)
        cli.write_json(args.out or "probe.json", {"settings": settings, **result})
    elif args.out:
        grow = grow_folder(
            args.model, args.tokenizer, args.out, args.method, args.pad_to, args.seed)
        print(f"{args.out}: {grow.base} rows kept, {grow.size - grow.base} new, "
              f"{grow.padded - grow.size} of padding")
    else:
        raise cli.UserError("--out is missing: name the model directory to write")


if __name__ == "__main__":
    cli.run(main)
