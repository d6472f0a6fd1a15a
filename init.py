"""Grow a model's vocabulary: the rows of the embedding and of the head for the pieces that a merge has added.

The merged tokenizer keeps the base's ids and adds new ones, so the two tables keep their rows, bit for bit, and get
more below. RedWhale (arXiv 2408.11294, section 3.3) compares five ways to fill them; EEVE (2402.14714) is the sixth.
The material is what the base did before: it read 한국 ("Korea") as 한 and 국, or as six bytes, and has rows for those.

    method          new row of the embedding (input)    new row of the head (output)
    random          N(0, s²)                            N(0, s²)
    mean            mean of all the base's rows         N(0, s²)
    mean_both       mean of all the base's rows         mean of all the base's rows
    subtoken        mean of its pieces' rows            N(0, s²)
    subtoken_both   mean of its pieces' rows            mean of its pieces' rows
    eeve            mean of its pieces' rows            row of its first piece that is not a bare ▁

`s` is the standard deviation of that table's rows, not config.json's `initializer_range`: that is where training began,
and rows grow. Means are taken in float64. A tied model has one table, made by the input's rule.

    python init.py --model base --tokenizer merged.model --out grown --method subtoken_both
    python init.py --model base --tokenizer merged.model --probe out/shards/ko    # which method? train each a little
"""
import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

import data
import model
import tokenizer
from common import cli

METHODS = {"random": ("random", "random"), "mean": ("mean", "random"), "mean_both": ("mean", "mean"),
           "subtoken": ("subtoken", "random"), "subtoken_both": ("subtoken", "subtoken"), "eeve": ("subtoken", "first")}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # a method's two rules, in this order
INDEX = "model.safetensors.index.json"


class Growth(NamedTuple):
    """What is to be added: rows base … size - 1 are new pieces, size … padded - 1 are padding."""
    base: int
    size: int
    padded: int
    parts: list[list[int]]  # for each new piece: the base ids that have spelt it so far
    blank: int              # the id of a bare ▁


def growth(folder: Path, merged_file: Path, pad_to: int) -> Growth:
    """Compare the model's tokenizer with the merged one. UserError where the latter does not extend the former.

    The base cuts each piece as it stands, without the ▁ that SentencePiece puts before a text: 한국 ("Korea") is
    한 국, ▁한국 is ▁ 한 국.
    """
    base, merged, rows = tokenizer.read(folder), tokenizer.read(merged_file), model.Config.read(folder).vocab_size
    old, new = len(base.pieces), len(merged.pieces)
    for i, (a, b) in enumerate(zip(base.pieces, merged.pieces, strict=False)):
        if a != b:
            raise cli.UserError(f"{merged_file} does not extend the tokenizer of {folder}: id {i} is {b.text!r} (score "
                                f"{b.score:g}), in the model {a.text!r} ({a.score:g}); merge into the model's own")
    if not old <= rows <= new:
        raise cli.UserError(f"a vocabulary only grows, but {folder}/tokenizer.model has {old} pieces, config.json says "
                            f"vocab_size {rows}, {merged_file} has {new} pieces; none may be less than the last")
    if rows > old:
        print(f"rows {old} to {rows - 1} of {folder} have no piece in its tokenizer.model; they are replaced")
    if pad_to < 1:
        raise cli.UserError(f"--pad_to {pad_to} must be at least 1, which pads nothing")
    plain = tokenizer.processor(base.raw, dummy_prefix=False)
    parts = tokenizer.encode(plain, [piece.text for piece in merged.pieces[old:]], bos=False)
    return Growth(old, new, math.ceil(new / pad_to) * pad_to, parts, plain.piece_to_id("▁"))


def new_rows(name: str, table: torch.Tensor, method: str, tied: bool, grow: Growth, seed: int) -> torch.Tensor:
    """The rows below row grow.base of the table (V, D) called `name`: (padded - base, D), in the table's dtype.

    Padding rows are the mean of the base's: their logit is then the mean of the base's logits, and no softmax gives one
    more than 1 / base, whatever the hidden state (log-sum-exp ≥ mean + log base). Zeros could be the likeliest token.
    """
    which = 0 if tied else TABLES.index(name)
    rule, generator = METHODS[method][which], torch.Generator().manual_seed(2 * seed + which)
    table = table[:grow.base]
    mean = sum(part.double().sum(0) for part in table.split(4096)) / grow.base  # in slices: float64 is four bfloat16
    square = sum(part.double().square().sum().item() for part in table.split(4096)) / table.numel()
    std = math.sqrt(square - mean.mean().item() ** 2)
    new = mean.to(table.dtype).repeat(grow.padded - grow.base, 1)
    for row, ids in zip(new, grow.parts, strict=False):
        if rule == "random":
            row[:] = torch.randn(len(row), generator=generator) * std
        elif rule == "subtoken":
            row[:] = table[ids].double().mean(0)
        elif rule == "first":
            row[:] = table[next((i for i in ids if i != grow.blank), ids[0])]
    return new


# ---- Model directories: the new rows apart, bytes are copied, a buffer at a time -----------------------------------
def header(file: Path) -> tuple[dict, int]:
    """The header of a safetensors file (name → dtype, shape, data_offsets), in the order of the data, and where the
    data begins. The file: the header's length (8 bytes, little-endian), the header (JSON), the tensors' bytes."""
    try:
        with safe_open(file, framework="pt"), open(file, "rb") as stream:  # safe_open checks that the file is whole
            size = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(size))
    except (OSError, SafetensorError) as error:
        raise cli.UserError(f"cannot read {file}: {error}; is it missing or cut short? fetch it again") from None
    entries.pop("__metadata__", None)
    return dict(sorted(entries.items(), key=lambda item: item[1]["data_offsets"])), 8 + size


def grow_file(source: Path, target: Path, keep: int, tables: dict[str, torch.Tensor]) -> int:
    """Copy a safetensors file, with the first `keep` rows of each of `tables` followed by the new ones given. Old rows
    are copied as bytes: they stay what they were, and no tensor is held in memory. Returns the bytes of all tensors."""
    (old, start), new, plan, end = header(source), {"__metadata__": {"format": "pt"}}, [], 0
    for name, entry in old.items():
        (first, last), added = entry["data_offsets"], b""
        if name in tables:
            last = first + (last - first) // entry["shape"][0] * keep
            added = tables[name].view(torch.uint8).flatten().numpy()
            entry = entry | {"shape": [keep + len(tables[name]), *entry["shape"][1:]]}
        plan.append((start + first, last - first, added))
        new[name] = entry | {"data_offsets": [end, end := end + last - first + len(added)]}
    text = json.dumps(new).encode()
    text += b" " * (-len(text) % 8)
    with open(source, "rb") as reader, open(target, "wb") as writer:
        writer.write(len(text).to_bytes(8, "little") + text)
        for first, size, added in cli.progress(plan, f"writing {source.name}", " tensors"):
            reader.seek(first)
            while size:
                size -= writer.write(reader.read(min(size, 1 << 24)))
            writer.write(added)
    return end


def find_tables(folder: Path, shape: list[int], tied: bool) -> dict[str, list[str]]:
    """The weight files of a model directory, and which tables each holds. UserError where a file or a table is missing,
    or a table has another shape than config.json says."""
    files = sorted(set(cli.read_json(folder / INDEX)["weight_map"].values())) if (folder / INDEX).exists() else [
        "model.safetensors"]
    entries = {file: header(folder / file)[0] for file in files}
    for name in TABLES:
        found = [entries[file][name]["shape"] for file in files if name in entries[file]]
        if found != [shape] and not (tied and name == TABLES[1] and not found):
            raise cli.UserError(f"{folder}: {name} has shape {found[0] if found else None}, config.json says {shape}; "
                                "weights and configuration belong to different models")
    return {file: [name for name in TABLES if name in entries[file]] for file in files}


def grow_folder(folder: Path, merged_file: Path, out: Path, method: str, pad_to: int, seed: int) -> Growth:
    """Write the grown model directory `out`. In memory at most: one table, 4,096 of its rows in float64 twice, and the
    new rows of the tables in its file. SOLAR 10.7B with 20,000 pieces: 262 MB + 268 MB + 2 · 164 MB, below 1 GB."""
    if out.resolve() == folder.resolve():
        raise cli.UserError(f"--out {out} is the base model itself, which would be lost; choose another folder")
    grow, config, total = growth(folder, merged_file, pad_to), cli.read_json(folder / "config.json"), 0
    tied = config.get("tie_word_embeddings", False)
    files = find_tables(folder, [config["vocab_size"], config["hidden_size"]], tied)
    with cli.new_folder(out) as temporary:
        for file, names in files.items():
            with safe_open(folder / file, framework="pt") as weights:
                tables = {name: new_rows(name, weights.get_tensor(name), method, tied, grow, seed) for name in names}
            total += grow_file(folder / file, temporary / file, grow.base, tables)
        if (folder / INDEX).exists():
            cli.write_json(temporary / INDEX, cli.read_json(folder / INDEX) | {"metadata": {"total_size": total}})
        cli.write_json(temporary / "config.json", config | dict(
            vocab_size=grow.padded, base_vocab_size=grow.base, unpadded_vocab_size=grow.size))
        padding = {"suppress_tokens": list(range(grow.size, grow.padded))} if grow.padded > grow.size else {}
        old = folder / "generation_config.json"
        cli.write_json(temporary / old.name, (cli.read_json(old) if old.exists() else {}) | padding)
        tokenizer.save(merged_file, temporary)
    return grow


# ---- The probe ------------------------------------------------------------------------------------------------------
TRAINED = {"bits_per_byte": "embedding and head", "everything": "everything"}  # key in probe.json: what is trained


def probe(folder: Path, merged_file: Path, args: argparse.Namespace) -> dict:
    """Bits per byte of the validation documents, by method and step, when embedding and head alone are trained on the
    same batches, then when everything is. Step 0 misleads: rows that predict badly may learn fast (2608.03494), so the
    last column decides. The stages of the recipe begin with the first way and end with the second: recommended is
    the method with the lowest mean of the two."""
    grow, shards = growth(folder, merged_file, args.pad_to), data.Shards(args.probe)
    if shards.tokenizer_sha256 != cli.sha256(merged_file):
        raise cli.UserError(f"{args.probe} was packed with another tokenizer than {merged_file}; data.py pack it again")
    if args.probe_steps < 1:
        raise cli.UserError(f"--probe_steps {args.probe_steps} must be at least 1: step 0 alone misleads")
    steps, result = [step for step in (0, 10, 50) if step < args.probe_steps] + [args.probe_steps], {}
    for key, trained in TRAINED.items():
        table = result[key] = {}
        print(f"\n{f'training {trained}, bits per byte at step':45}", *(f"{step:>8}" for step in steps))
        for method in METHODS:
            llama = grown(folder, grow, method, args.seed).to(args.device)
            llama.compute_dtype = getattr(torch, args.dtype)
            for name, parameter in llama.named_parameters():
                parameter.requires_grad = key == "everything" or name in TABLES
            table[method] = dict(zip(map(str, steps), train_briefly(llama, shards, steps, args), strict=True))
            print(f"{method:45}", *(f"{value:8.4f}" for value in table[method].values()), flush=True)
    last = {method: [result[key][method][str(steps[-1])] for key in TRAINED] for method in METHODS}
    for i, trained in enumerate(TRAINED.values()):
        print(f"lowest after {steps[-1]} steps of {trained}: {min(last, key=lambda method: last[method][i])}")
    result["best"] = min(last, key=lambda method: sum(last[method]))
    print(f"recommended, by the mean of the two: --method {result['best']}")
    return result


def grown(folder: Path, grow: Growth, method: str, seed: int) -> model.Llama:
    """The grown model, in memory and in float32: what grow_folder writes, without writing it."""
    llama = model.load(folder)
    tied = llama.config.tie_word_embeddings
    for part, name in zip((llama.model.embed_tokens, llama.lm_head), TABLES, strict=True):
        new = new_rows(name, part.weight.detach(), method, tied, grow, seed)
        part.weight = torch.nn.Parameter(torch.cat([part.weight.detach()[:grow.base], new]))
    if tied:
        llama.lm_head.weight = llama.model.embed_tokens.weight
    llama.config = dataclasses.replace(llama.config, vocab_size=grow.padded, unpadded_vocab_size=grow.size)
    return llama


def train_briefly(llama: model.Llama, shards: data.Shards, steps: list[int], args) -> Iterator[float]:
    """Train what requires a gradient; yield the validation bits per byte at each of `steps`."""
    optimizer = torch.optim.AdamW([p for p in llama.parameters() if p.requires_grad], args.lr, weight_decay=0.0)
    loader = data.Loader([shards], [1.0], args.seq_len, args.seed)
    for step in cli.progress(range(steps[-1] + 1), "train", " steps"):
        if step in steps:
            yield data.bits_per_byte(llama, shards, args.seq_len, args.probe_bytes, args.probe_batch,
                                     args.device)["bits_per_byte"]
        if step < steps[-1]:
            inputs, targets, _ = loader.next(args.probe_batch)
            loss, count = llama(torch.from_numpy(inputs).to(args.device), torch.from_numpy(targets).to(args.device))
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()


def main(argv: list[str] | None = None) -> None:
    """Grow a model, or with --probe compare the ways to."""
    parser = cli.Parser(description=__doc__, prog="init.py")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="the base's model directory")
    flag("--tokenizer", type=Path, required=True, help="the merged .model file (tokenizer.py merge)")
    flag("--out", type=Path, help="the grown model directory to write; with --probe, a JSON file for its numbers")
    flag("--method", choices=METHODS, default="subtoken_both", help="how the new rows are made; see above")
    flag("--pad_to", type=int, default=64, help="make the number of rows a multiple of this")
    flag("--seed", type=int, default=0, help="of the random rows, and of the probe's batches")
    flag("--probe", type=Path, help="compare all methods: train each a little on these token shards")
    flag("--probe_steps", type=int, default=200, help="steps of training, each method, twice")
    flag("--probe_batch", type=int, default=8, help="windows a step")
    flag("--probe_bytes", type=int, default=200_000, help="bytes of validation text to measure on")
    flag("--seq_len", type=int, default=512, help="tokens a window, in the probe")
    flag("--lr", type=float, default=1e-3, help="the probe's learning rate, constant, of AdamW")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    settings = cli.settings(args)
    merged_file = args.tokenizer / "tokenizer.model" if args.tokenizer.is_dir() else args.tokenizer
    if args.probe:
        cli.write_json(args.out or "probe.json", {"settings": settings} | probe(args.model, merged_file, args))
    elif args.out:
        grow = grow_folder(args.model, merged_file, args.out, args.method, args.pad_to, args.seed)
        print(f"{args.out}: {grow.base} rows kept, {grow.size - grow.base} new, {grow.padded - grow.size} of padding")
    else:
        raise cli.UserError("--out is missing: the folder for the grown model")


if __name__ == "__main__":
    cli.run(main)
