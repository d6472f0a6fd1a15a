"""The shape of a Llama, read from and written to the config.json of a Hugging Face model directory.

Both spellings of what transformers renamed are read (rope_theta and rope_scaling, or rope_parameters; torch_dtype, or
dtype), and both are written. What model.py would compute wrongly is refused by name: a model that is almost a Llama
gives no error otherwise, only worse text.
"""
import dataclasses
from pathlib import Path

from common.cli import UserError, read_json, write_json

INDEX = "model.safetensors.index.json"  # beside weights in shards: which file holds which tensor
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names: ours
SPARSE = "NanowhaleExpertsForCausalLM"  # no name that transformers knows: it would skip the experts with a warning
LLAMA3_ROPE = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}


@dataclasses.dataclass
class Config:
    """The shape of a Llama, under the names that config.json uses."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None            # Llama 3.1's, or None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2    # Llama 3 ends on any of several
    dtype: str = "float32"                      # of the file
    base_vocab_size: int | None = None          # set by init.py: size of the base tokenizer, before its new pieces
    unpadded_vocab_size: int | None = None      # set by init.py: the tokenizer's pieces; rows past them are padding
    num_experts: int | None = None              # of a sparse feed-forward in the odd layers (studies/moe.py)
    router_aux_loss_coef: float | None = None   # how much the balance of their load counts beside the loss

    @classmethod
    def read(cls, path: str | Path) -> "Config":
        """Read a config.json, or the one in a model directory. UserError for what this Llama would compute wrongly."""
        path = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        hf = read_json(path)
        if not isinstance(hf, dict):
            raise UserError(f"{path} is not a Llama configuration")
        heads, architecture = hf.get("num_attention_heads"), (hf.get("architectures") or ["LlamaForCausalLM"])[0]
        positions, window = hf.get("max_position_embeddings", 2048), hf.get("sliding_window")
        rope = {**(hf.get("rope_parameters") or {}), **(hf.get("rope_scaling") or {})}  # the new spelling, the old one
        kind = rope.get("rope_type", rope.get("type", "default"))
        values = dict(hf, rope_theta=rope.get("rope_theta", hf.get("rope_theta", 10000.0)),
                      rms_norm_eps=hf.get("rms_norm_eps", 1e-6),  # what transformers takes where it is not said
                      rope_scaling=rope if kind == "llama3" else None,
                      num_key_value_heads=hf.get("num_key_value_heads") or heads,
                      head_dim=hf.get("head_dim") or hf.get("hidden_size", 0) // (heads or 1),
                      num_experts=hf.get("num_experts") if architecture == SPARSE else None,
                      router_aux_loss_coef=hf.get("router_aux_loss_coef", 0.01) if architecture == SPARSE else None,
                      dtype=hf.get("dtype") or hf.get("torch_dtype") or "float32")
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and not values.get(f.name)]
        refusals = {
            f"is not a Llama configuration: it has no {', '.join(missing)}": missing,
            f"architecture {architecture} is neither LlamaForCausalLM nor MistralForCausalLM":
                architecture not in ("LlamaForCausalLM", "MistralForCausalLM", SPARSE),
            f"num_experts {hf.get('num_experts')} is not a number of 2 or more, in a model of two layers or more":
                architecture == SPARSE and not (isinstance(hf.get("num_experts"), int) and hf["num_experts"] > 1
                                                and hf.get("num_hidden_layers", 0) > 1),
            f"sliding_window {window} is in use; set it to null and max_position_embeddings to {window} (below that "
            "length the two are the same)": window and window < positions and hf.get("use_sliding_window", True),
            "attention_bias or mlp_bias is set; this Llama has none": hf.get("attention_bias") or hf.get("mlp_bias"),
            f"hidden_act {hf.get('hidden_act')} is not supported; silu is": hf.get("hidden_act", "silu") != "silu",
            f"rope type {kind!r} is not supported; default and llama3 are": kind not in ("default", "llama3"),
            f"rope type llama3 lacks {', '.join(LLAMA3_ROPE - set(rope))}":
                kind == "llama3" and LLAMA3_ROPE - set(rope),
            f"{heads} attention heads cannot share {values['num_key_value_heads']} key-value heads evenly":
                heads and heads % values["num_key_value_heads"],
            f"dtype {values['dtype']!r} is none of {', '.join(DTYPES.values())}":
                values["dtype"] not in DTYPES.values()}
        for what in (what for what, wrong in refusals.items() if wrong):
            raise UserError(f"{path}: {what}")
        return cls(**{f.name: values[f.name] for f in fields if f.name in values})

    def write(self, path: str | Path) -> None:
        """Write a config.json with both spellings of rope and dtype: old and new transformers read it alike."""
        rope = {**(self.rope_scaling or {"rope_type": "default"}), "rope_theta": self.rope_theta}
        known = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        names = (SPARSE, "nanowhale_experts") if self.num_experts else ("LlamaForCausalLM", "llama")
        write_json(path, {"architectures": [names[0]], "model_type": names[1], "hidden_act": "silu",
                          "attention_bias": False, "mlp_bias": False, **known, "torch_dtype": self.dtype,
                          "rope_parameters": rope, "rope_scaling": self.rope_scaling})
