"""The files of a Hugging Face model directory: config.json, and the tensors in *.safetensors.

config.json comes in two spellings, because transformers renamed some keys (rope_theta and
rope_scaling became rope_parameters; torch_dtype became dtype). Both are read, and both are written.
What model.py would compute wrongly is refused by name. Otherwise a model that is almost a Llama
would give no error, only worse text.

Weights are in model.safetensors, or in shards with an index that says which tensor is in which
file. A safetensors file begins with a table of names, dtypes, shapes and offsets, so a single
tensor, or some of its rows, can be read.
"""
import itertools
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from common.cli import (
    UserError,
    progress,
    read_json,
    read_json_if_any,
    refuse_lfs_pointer,
    write_json,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # of one file; a larger model has several

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # {safetensors': PyTorch's}

# A Mistral without a sliding window computes the same as a Llama.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")

# The fields that a config.json must have. Everything else has a default.
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

# The defaults of a Mistral's config.json, which differ from a Llama's. A null is not a missing
# field: it says that there is no window.
MISTRAL = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}

# The fields that Llama 3.1's rope_scaling must have.
LLAMA3_ROPE = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


# ---------------------------------------------------------------------------------- config.json


def read_config(path: str | Path, architectures: tuple[str, ...] = ARCHITECTURES) -> dict:
    """Read a config.json, or that of a model directory, into one spelling: the fields of
    model.Config under their names, and all other fields of the file. UserError if it cannot be
    read, or describes a model that model.py would compute wrongly."""
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a Llama configuration")
    missing = [name for name in REQUIRED if not config.get(name)]
    if missing:
        raise UserError(f"{path} is not a Llama configuration: it has no {', '.join(missing)}")
    config = in_one_spelling(config)
    problem = unsupported(config, architectures)
    if problem:
        raise UserError(f"{path}: {problem}")
    return config


def in_one_spelling(config: dict) -> dict:
    """A copy that has all fields of model.Config that have two names or may be missing. `rope_type`
    is added for `unsupported`."""
    config = dict(config)

    # Fill in missing fields as transformers does: by the model type, or, if there is none, by the
    # architecture.
    config["architectures"] = config.get("architectures") or ["LlamaForCausalLM"]
    kind = config.get("model_type") or config["architectures"][0]
    if kind in ("mistral", "MistralForCausalLM"):
        config = {**MISTRAL, **config}
        config.pop("use_sliding_window", None)  # Qwen's switch, which Mistral ignores
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
    config["rms_norm_eps"] = config.get("rms_norm_eps", 1e-6)
    config["dtype"] = config.get("dtype") or config.get("torch_dtype") or "float32"

    # RoPE: rope_parameters is the new spelling, rope_scaling the old one, which wins if there are
    # both. A base frequency that is in neither is at the top level.
    rope = {}
    rope.update(config.get("rope_parameters") or {})
    rope.update(config.get("rope_scaling") or {})
    theta = config.get("rope_theta", 10000.0)
    config["rope_theta"] = rope.get("rope_theta", theta)
    config["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    config["rope_scaling"] = None
    if config["rope_type"] == "llama3":
        config["rope_scaling"] = rope
    return config


def unsupported(config: dict, architectures: tuple[str, ...]) -> str | None:
    """What model.py would compute wrongly, for a configuration in one spelling; None if nothing."""
    architecture = config["architectures"][0]
    if architecture not in architectures:
        return f"architecture {architecture} is neither LlamaForCausalLM nor MistralForCausalLM"

    # Attention here covers every earlier position. With a window it would not.
    window = config.get("sliding_window")
    positions = config.get("max_position_embeddings", 2048)
    if window and window < positions and config.get("use_sliding_window", True):
        return (f"sliding_window {window} is in use (a Mistral's is 4096 if config.json leaves it "
                f"out); set it to null and max_position_embeddings to {window} (up to that length "
                "the two are the same)")

    # Variants of Llama: with biases, or with another activation in the feed-forward.
    if config.get("attention_bias") or config.get("mlp_bias"):
        return "attention_bias or mlp_bias is set; biases are not supported"
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        return f"hidden_act {activation} is not supported; silu is"

    # RoPE's frequencies: kernels/rotary.py has the plain ones and Llama 3.1's.
    rope_type = config["rope_type"]
    if rope_type not in ("default", "llama3"):
        return f"rope type {rope_type!r} is not supported; default and llama3 are"
    if rope_type == "llama3":
        missing = [name for name in LLAMA3_ROPE if name not in config["rope_scaling"]]
        if missing:
            return f"rope type llama3 lacks {', '.join(missing)}"

    heads = config["num_attention_heads"]
    key_value_heads = config["num_key_value_heads"]
    if heads % key_value_heads:
        return f"{heads} attention heads cannot share {key_value_heads} key-value heads evenly"
    if config["dtype"] not in DTYPES.values():
        return f"dtype {config['dtype']!r} is not one of {', '.join(DTYPES.values())}"
    return None


def write_config(path: str | Path, values: dict) -> None:
    """Write the fields of model.Config to a config.json, in both spellings, so that old and new
    versions of transformers read the same. Other fields of an existing file stay in it."""
    rope = dict(values["rope_scaling"] or {"rope_type": "default"})
    rope["rope_theta"] = values["rope_theta"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **read_json_if_any(path),
    }
    for name, value in values.items():
        if value is not None:
            config[name] = value
    config["torch_dtype"] = values["dtype"]
    config["rope_parameters"] = rope
    config["rope_scaling"] = None
    if values["rope_scaling"]:
        config["rope_scaling"] = {name: rope[name] for name in rope if name != "rope_theta"}
    write_json(path, config)


# ------------------------------------------------------------------------- everything else

# Weights, including formats that are not read here. They are not carried along, and neither is the
# state of the training that made a directory.
WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
)
STATE = "training_state.json"

# Chat templates beside the usual one: the only subfolder that belongs to a model directory.
TEMPLATES = "additional_chat_templates"


def files_of_model(folder: Path) -> list[Path]:
    """The files that belong to a model directory, without those in other subfolders."""
    found = [*folder.glob("*"), *folder.glob(f"{TEMPLATES}/*")]
    return sorted(file for file in found if file.is_file())


def carry_files(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """Copy all files of a model directory except its weights into another one: the licence, the
    chat template, and anything else that is there. `but`: names, or patterns of names, to leave
    out."""
    left_out = (*WEIGHT_FILES, STATE, ".*", *but)
    for file in files_of_model(source):
        if not any(fnmatch(file.name, pattern) for pattern in left_out):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


# --------------------------------------------------------------------------------- safetensors


class TensorFiles:
    """The tensors of a model directory by name, in one file or several. They are read on
    demand."""

    def __init__(self, folder: Path):
        self.files = files_of_tensors(folder)  # name → file
        self.opened = {file: open_file(file) for file in set(self.files.values())}

    def slice(self, name: str):
        """A tensor that is not read yet: it has get_shape() and get_dtype(), and [first:last] reads
        some of its rows."""
        file = self.files[name]
        try:
            return self.opened[file].get_slice(name)
        except SafetensorError:
            raise UserError(f"{file} does not hold {name}, though the index says so; fetch the "
                            "model again") from None

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor."""
        return self.slice(name)[:]


def files_of_tensors(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a model directory: {name: file}."""
    index = folder / INDEX
    weights = folder / WEIGHTS
    files = {}
    if index.exists():
        for name, file in read_json(index).get("weight_map", {}).items():
            files[name] = folder / file
    elif weights.exists():
        files = dict.fromkeys(open_file(weights).keys(), weights)
    else:
        raise UserError(f"{folder} holds no {WEIGHTS}, whole or in shards with {INDEX}; is it a "
                        "Hugging Face model directory? (.bin files: convert them to safetensors "
                        "first)")

    # Old checkpoints also hold RoPE's frequencies, which follow from the configuration.
    return {name: file for name, file in files.items() if not name.endswith("rotary_emb.inv_freq")}


def open_file(file: Path) -> safe_open:
    """Open a safetensors file, memory-mapped. UserError if it is not one."""
    refuse_lfs_pointer(file)
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {file}: {error}; is it missing or cut short? "
                        "fetch it again") from None


def into_shards(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Group names, in their order, into shards of at most `most` bytes. A larger tensor gets its
    own shard.

    >>> into_shards({"a": 3, "b": 3, "c": 9, "d": 1}, most=6)
    [['a', 'b'], ['c'], ['d']]
    """
    shards = [[]]
    size = 0
    for name, n_bytes in sizes.items():
        if size and size + n_bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += n_bytes
    return shards


def write_tensors(folder: Path, sizes: dict[str, int], tensors: Iterable[tuple[str, torch.Tensor]],
                  dtype: torch.dtype) -> None:
    """Write the tensors of a model directory, as `dtype`, to one file or to shards with an index.

    `sizes`: {name: bytes}. `tensors`: (name, value) pairs in the same order. One shard is in memory
    at a time. UserError if the disk is full."""
    shards = into_shards(sizes, MAX_SHARD_BYTES)
    tensors = iter(progress(tensors, "writing the model", total=len(sizes)))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard = {}
        for name, value in itertools.islice(tensors, len(names)):
            shard[name] = value.detach().to("cpu", dtype).contiguous()
            weight_map[name] = file
        try:
            save_file(shard, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, mostly
            raise UserError(f"cannot write {folder / file}: {error}") from None
    if len(shards) > 1:
        metadata = {"total_size": sum(sizes.values())}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})
