"""A Llama, written out by hand, that reads and writes Hugging Face model directories.

One legend of letters for every shape below:

    B  sequences in a batch      D  hidden size (model width)      H  query heads       V  vocabulary
    T  positions in a sequence   F  feed-forward width             K  key-value heads   E  one head's width

Llama (Touvron et al., 2302.13971 and 2307.09288) is a GPT with three changes, each one line here: RMSNorm before every
block in place of LayerNorm, rotary positions on queries and keys in place of a position table, and a gated feed-forward
(SwiGLU). Grouped-query attention (2305.13245) lets H/K query heads share one key-value head. LoRA (2106.09685) learns
a low-rank correction beside a frozen matrix.

Modules carry the Hugging Face parameter names: `model.layers.0.self_attn.q_proj.weight` here, there, and in the file.

    llama = model.load("DIR")                       # config.json, *.safetensors
    logits = llama(tokens)                          # (B, T) int64 → (B, T, V)
    loss_sum, count = llama(tokens, targets)        # nats summed over targets that are not -100, and their number
    model.save(llama, "OUT")
"""
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

import kernels
from common import parallel
from common.cli import UserError, progress, read_json, write_json
from common.hf import DTYPES, Config
from kernels.rotary import rope_frequencies
from studies import moe

MAX_SHARD_BYTES = 5 * 10**9


class Linear(nn.Linear):
    """x Wᵀ. The weight may be a float32 master while x is bfloat16: the cast is explicit, and autograd undoes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def merge_lora(weight: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float) -> torch.Tensor:
    """W + (alpha / rank) B A, summed in float32."""
    return weight.float() + scale * (B.float() @ A.float())


class LoRALinear(Linear):
    """x Wᵀ + (alpha / rank) · (x Aᵀ) Bᵀ with W frozen (2106.09685). B starts at zero: step 0 is unchanged."""

    def __init__(self, base: Linear, rank: int, alpha: float, dtype: torch.dtype = torch.float32):
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.scale = base.weight, alpha / rank       # W is the base's own tensor, not a copy
        new = dict(device=base.weight.device, dtype=dtype)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **new))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **new))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The scale multiplies the narrow product, and the last matmul adds to what W gave while it writes: scaling and
        # adding afterwards would each be a pass of its own over (B T, out).
        rows = x.flatten(0, -2)                                             # (B T, in)
        low = F.linear(rows, self.lora_A.to(x.dtype)) * self.scale    # (B T, rank)
        y = super().forward(rows)                                           # (B T, out)
        y = y.addmm_(low, self.lora_B.to(x.dtype).t())
        return y.view(*x.shape[:-1], self.out_features)                     # (B, T, out)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None):
        """The norm of x; with a residual, the norm of their sum and the sum itself, in one visit of memory."""
        if residual is None:
            return kernels.rms_norm(x, self.weight, self.eps)
        return kernels.add_rms_norm(x, residual, self.weight, self.eps)


class Cache:
    """Keys and values of the positions seen so far, layer by layer: room for `length` positions, `used` are filled."""

    def __init__(self, config: Config, batch: int, length: int, device, dtype):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.used = 0

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        """Append k and v (B, K, T, E) to a layer; return all its keys and values (B, K, used + T, E)."""
        end = self.used + k.shape[2]
        self.keys[layer, :, :, self.used:end], self.values[layer, :, :, self.used:end] = k, v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    def __init__(self, c: Config, layer: int):
        super().__init__()
        self.heads, self.groups, self.width = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.layer = layer
        self.q_proj = Linear(c.hidden_size, self.heads * self.width, bias=False)
        self.k_proj = Linear(c.hidden_size, self.groups * self.width, bias=False)
        self.v_proj = Linear(c.hidden_size, self.groups * self.width, bias=False)
        self.o_proj = Linear(self.heads * self.width, c.hidden_size, bias=False)

    def forward(self, x, cos, sin, cache: Cache | None = None, positions=None):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.width).transpose(1, 2)       # (B, H, T, E)
        k = self.k_proj(x).view(B, T, self.groups, self.width).transpose(1, 2)      # (B, K, T, E)
        v = self.v_proj(x).view(B, T, self.groups, self.width).transpose(1, 2)      # (B, K, T, E)
        q, k = kernels.rope(q, k, cos, sin)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                               enable_gqa=self.heads != self.groups)    # (B, H, T, E)
        else:
            k, v = cache.extend(self.layer, k, v)
            mask = None
            if T > 1 and cache.used:  # new position i sees the cached ones and the new ones up to itself
                mask = torch.ones(T, k.shape[2], dtype=torch.bool, device=x.device).tril(cache.used)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1,
                                               enable_gqa=self.heads != self.groups)
        y = y.transpose(1, 2).reshape(B, T, -1)
        return self.o_proj(y if positions is None else y[positions])                # (B, T, D), or (N, D)


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(kernels.swiglu(self.gate_proj(x), self.up_proj(x)))   # (B, T, F) → (B, T, D)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normalised copy of the stream x and added back to it.

    `positions` is an index, (N,) sequences and (N,) places: only they come out, (N, D), which spares the last
    block the others. `again` drops attention's activations, to be computed again in the backward pass."""

    def __init__(self, c: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c, layer)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)
        if c.num_experts and layer % 2:
            copies = [self.mlp, *(MLP(c) for _ in range(1, c.num_experts))]
            self.mlp = moe.Experts(copies, Linear(c.hidden_size, c.num_experts, bias=False))

    def forward(self, x, cos, sin, cache: Cache | None = None, positions=None, again: bool = False):
        attend = lambda x: self.self_attn(self.input_layernorm(x), cos, sin, cache, positions)
        attended = checkpoint(attend, x, use_reentrant=False, preserve_rng_state=False) if again else attend(x)
        normed, x = self.post_attention_layernorm(attended, x if positions is None else x[positions])
        return x + self.mlp(normed)                                                 # the norm gave x + attended back


class Head(Linear):
    """Logits, or the loss straight from the hidden states. The loss is computed *inside* the forward of the module that
    owns the weight, so that a sharded weight (FSDP) is whole at that moment."""

    def forward(self, x, targets=None):
        if targets is None:
            return super().forward(x)                                               # (B, T, V)
        return kernels.linear_cross_entropy(x.flatten(0, 1), self.weight, targets.flatten())


class Decoder(nn.Module):
    """Everything but the head."""

    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Llama(nn.Module):
    """The whole model. `compute_dtype` is the type of activations and products, whatever the weights are in;
    `recompute` ("none", "attention" or "full") drops activations, of attention or of whole blocks, and computes them
    again in the backward pass (1604.06174)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.compute_dtype, self.recompute = config, torch.float32, "none"
        self.model = Decoder(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        for name, p in self.named_parameters():
            if p.dim() == 2 and not p.is_meta:  # what writes into the stream starts smaller, as in GPT-2
                smaller = 2 * config.num_hidden_layers if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(p, std=config.initializer_range / math.sqrt(smaller))

    def rope_tables(self, start: int, end: int, device) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of position × frequency for positions start…end-1: (T, E/2) float32, kept for the next call."""
        if self._rope is None or len(self._rope[0]) < end or self._rope[0].device != torch.device(device):
            length = max(end, min(self.config.max_position_embeddings, 4096))
            frequency = rope_frequencies(self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
            angles = torch.outer(torch.arange(length, device=device).float(), frequency.to(device))
            self._rope = angles.cos(), angles.sin()
        return self._rope[0][start:end], self._rope[1][start:end]

    def hidden(self, tokens: torch.Tensor, cache: Cache | None = None, positions=None) -> torch.Tensor:
        """tokens (B, T) → the head's input, (B, T, D), or (N, D) of an index `positions` into (B, T).
        A cache grows by T."""
        start = cache.used if cache else 0
        x = self.model.embed_tokens(tokens).to(self.compute_dtype)
        cos, sin = self.rope_tables(start, start + tokens.shape[1], x.device)
        for block in self.model.layers:
            trains = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in block.parameters()))
            if trains and self.recompute == "full":  # below what is trained nothing is kept that could be dropped
                x = checkpoint(block, x, cos, sin, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin, cache, positions if block is self.model.layers[-1] else None,
                          trains and self.recompute == "attention")
        if cache:
            cache.used += tokens.shape[1]
        return self.model.norm(x)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None):
        """tokens (B, T) → logits (B, T, V); with targets (B, T) → (summed loss in nats, number of targets ≠ -100)."""
        out = self.lm_head(self.hidden(tokens), targets)
        if targets is None or not (self.config.num_experts and torch.is_grad_enabled()):
            return out
        return moe.balanced(self, *out), out[1]

    @torch.no_grad()  # not inference_mode: what rope_tables keeps is used in training too
    def generate(self, tokens: torch.Tensor, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0,
                 generator: torch.Generator | None = None, eos: int | None = None) -> torch.Tensor:
        """Continue tokens (B, T) by sampling → (B, T + n), n ≤ max_new_tokens. Temperature 0 takes the likeliest; top_p
        keeps the fewest tokens that hold that probability (Holtzman et al., 1904.09751). Stops when every sequence has
        ended in `eos`, with which the shorter ones are filled. Padded rows of the vocabulary never come."""
        B, T = tokens.shape
        cache = Cache(self.config, B, T + max_new_tokens, tokens.device, self.compute_dtype)
        ended = torch.zeros(B, dtype=torch.bool, device=tokens.device)
        fresh = tokens
        for _ in progress(range(max_new_tokens), "generate", " tokens"):
            last = torch.arange(B, device=tokens.device), torch.full((B,), fresh.shape[1] - 1, device=tokens.device)
            logits = self.lm_head(self.hidden(fresh, cache, last)).float()          # (B, V)
            logits = logits[:, :self.config.unpadded_vocab_size]
            if temperature == 0:
                fresh = logits.argmax(-1, keepdim=True)                             # (B, 1)
            else:
                p, order = torch.softmax(logits / temperature, -1).sort(-1, descending=True)
                p[:, 1:][(p.cumsum(-1) - p)[:, 1:] >= top_p] = 0                    # the first one always stays
                fresh = order.gather(1, torch.multinomial(p, 1, generator=generator))
            if eos is not None:
                fresh[ended] = eos
                ended |= fresh[:, 0] == eos
            tokens = torch.cat((tokens, fresh), 1)
            if ended.all():
                break
        return tokens


def _matrices(llama: Llama) -> Iterator[tuple[nn.Module, str, Linear]]:
    """The seven matrices of every block, router and experts included: (module that holds it, its name, the layer)."""
    for part in list(llama.model.layers.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, Linear):
                yield part, name, layer


def assign(llama: Llama, name: str, part: torch.Tensor) -> None:
    """Put `part` (this process's rows) into the place of parameter `name`."""
    owner, _, leaf = name.rpartition(".")
    module = llama.get_submodule(owner)
    setattr(module, leaf, parallel.like(getattr(module, leaf), part))


def start_lora(llama: Llama, device: str, seed: int) -> None:
    """Give the LoRAs that were added to a model without memory their start: A random, the same whole matrix for any
    number of processes, and B zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in list(llama.named_parameters()):
        if name.endswith(("lora_A", "lora_B")):
            (first, last), start = parallel.rows(p), torch.zeros(p.shape)
            if name.endswith("lora_A"):
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            assign(llama, name, start[first:last].to(device=device, dtype=p.dtype))


def add_lora(llama: Llama, rank: int, alpha: float, dtype: torch.dtype = torch.float32) -> None:
    """Put a LoRA beside all seven matrices of every block, in place. The caller says which parameters are trained."""
    for part, name, layer in _matrices(llama):
        setattr(part, name, LoRALinear(layer, rank, alpha, dtype))


def _files(folder: Path) -> dict[str, Path]:
    """Where each tensor of a model directory lies: name → file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = {name: folder / file for name, file in read_json(index).get("weight_map", {}).items()}
    elif (folder / "model.safetensors").exists():
        names = dict.fromkeys(_open(folder / "model.safetensors").keys(), folder / "model.safetensors")
    else:
        raise UserError(f"{folder} holds no model.safetensors, whole or in shards with model.safetensors.index.json; "
                        "is it a Hugging Face model directory? (.bin files: convert them to safetensors first)")
    return {name: file for name, file in names.items() if not name.endswith("rotary_emb.inv_freq")}  # old, derived


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {file}: {error}; is it missing or cut short?") from None


def open_tensors(folder: str | Path) -> Callable[[str], torch.Tensor]:
    """A function that reads one tensor of a model directory, by its name."""
    files = _files(Path(folder))
    opened = {file: _open(file) for file in set(files.values())}
    return lambda name: opened[files[name]].get_tensor(name)


def load(folder: str | Path, device: str = "cpu", dtype: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
         before_load: Callable[[Llama], None] = lambda llama: None) -> Llama:
    """Read a model directory, tensor by tensor to its place. `dtype` may be a function of the parameter's name.

    `before_load` is called with the model while it has no memory yet (meta tensors of the right types): it may add a
    LoRA, freeze parameters, shard. Of a sharded parameter each process reads its own rows only.
    UserError names a key that is missing, unknown or of the wrong shape: nothing is skipped in silence.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no model directory {folder}")
    config = Config.read(folder)
    with torch.device("meta"):
        llama = Llama(config)
    wanted, files = dict(llama.named_parameters()), _files(folder)
    extra = sorted(set(files) - set(wanted) - ({"lm_head.weight"} if config.tie_word_embeddings else set()))
    missing = sorted(set(wanted) - set(files))
    if missing or extra:
        what = f"has no tensor {missing[0]}" if missing else f"holds an unknown tensor {extra[0]}"
        raise UserError(f"{folder} {what} ({len(missing)} missing, {len(extra)} unknown): config.json describes "
                        "another model than the weights")
    for name, meta in wanted.items():
        meta.data = meta.data.to(dtype(name) if callable(dtype) else dtype)
    before_load(llama)
    opened, kinds = {file: _open(file) for file in set(files.values())}, set()
    for name, meta in progress([(k, p) for k, p in llama.named_parameters() if k in wanted], f"reading {folder}"):
        if name not in opened[files[name]].keys():
            raise UserError(f"{files[name]} does not hold {name}, though the index says so; fetch the model again")
        piece = opened[files[name]].get_slice(name)
        kinds.add(piece.get_dtype())
        if tuple(piece.get_shape()) != tuple(meta.shape):
            raise UserError(f"{files[name]}: {name} has shape {tuple(piece.get_shape())}, config.json says "
                            f"{tuple(meta.shape)}; was the vocabulary grown without its embedding? (init.py does both)")
        first, last = parallel.rows(meta)
        assign(llama, name, piece[first:last].to(device=device, dtype=meta.dtype))
    if kinds - set(DTYPES):
        raise UserError(f"{folder} holds tensors of type {', '.join(kinds - set(DTYPES))}; quantised models cannot be "
                        "read")
    config.dtype = DTYPES[kinds.pop()] if len(kinds) == 1 else "float32"  # of the weights, whatever config.json says
    if config.tie_word_embeddings:
        llama.lm_head.weight = head = llama.model.embed_tokens.weight
        (first, last), head = parallel.rows(head), parallel.local(head)
        if "lm_head.weight" in files and not torch.equal(
                opened[files["lm_head.weight"]].get_slice("lm_head.weight")[first:last].to(head), head):
            raise UserError(f"{folder}/config.json ties the head to the embedding, but lm_head.weight differs from it; "
                            "set tie_word_embeddings to false")
    llama.compute_dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
    return llama


def save(llama: Llama, folder: str | Path, tensors: Iterable[tuple[str, torch.Tensor]] | None = None) -> None:
    """Write config.json, generation_config.json and the weights, in config.dtype, into an existing folder.

    Above 5 GB the weights go to shards with an index, in the layout that Hugging Face reads, and one shard is in memory
    at a time. `tensors`: name and value of each, in the model's order, where they are not the model's own."""
    folder, config = Path(folder), llama.config
    dtype = getattr(torch, config.dtype)
    own = [(name, p) for name, p in llama.named_parameters() if not name.endswith(("lora_A", "lora_B"))]
    tensors, shards, size = iter(progress(tensors or own, "writing the model", total=len(own))), [[]], 0
    for name, p in own:  # a tied head appears once, under the embedding's name
        if size and size + p.numel() * dtype.itemsize > MAX_SHARD_BYTES:
            shards, size = [*shards, []], 0
        shards[-1].append(name)
        size += p.numel() * dtype.itemsize
    where = {}
    for i, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        try:
            save_file({name: value.detach().to("cpu", dtype).contiguous()
                       for name, value in itertools.islice(tensors, len(shard))}, folder / file,
                      metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, mostly
            raise UserError(f"cannot write {folder / file}: {error}") from None
        where.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        total = sum(p.numel() for _, p in own) * dtype.itemsize
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    config.write(folder / "config.json")
    padded = range(config.unpadded_vocab_size or config.vocab_size, config.vocab_size)
    write_json(folder / "generation_config.json", {"bos_token_id": config.bos_token_id,
                                                   "eos_token_id": config.eos_token_id,
                                                   **({"suppress_tokens": list(padded)} if padded else {})})
