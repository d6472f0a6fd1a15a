"""A Llama, written out by hand, that reads and writes Hugging Face model directories.

One legend of letters for every shape below:

    B  sequences in a batch       D  hidden size (model width)    V  vocabulary
    T  positions in a sequence    F  feed-forward width           H  query heads
    S  positions that are seen:   E  one head's width             K  key-value heads
       a cache's, then these T

Llama (Touvron et al., 2302.13971 and 2307.09288) is a GPT with three changes: RMSNorm before every
branch in place of LayerNorm, rotary positions on queries and keys in place of a position table, and
a gated feed-forward (SwiGLU). Grouped-query attention (2305.13245) lets H/K query heads share one
key-value head. LoRA (2106.09685) learns a low-rank correction beside a frozen matrix.

Modules carry the Hugging Face parameter names: `model.layers.0.self_attn.q_proj.weight` here,
there, and in the file. Matmuls and attention are PyTorch's; the other operations that take
time stand in kernels/, each beside the PyTorch lines that define it.

    llama = model.load("DIR")                   # config.json, *.safetensors
    logits = llama(tokens)                      # (B, T) int64 → (B, T, V)
    loss_sum, count = llama(tokens, targets)    # nats, summed over the `count` targets ≠ -100
    model.save(llama, "OUT")
"""
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

import kernels
from common import hf, parallel, special_tokens
from common.cli import UserError, progress, write_json
from kernels.rotary import rope_frequencies


@dataclasses.dataclass
class Config:
    """The shape of a Llama, under the names that config.json uses."""
    # Sizes of matrices.
    vocab_size: int                             # V
    hidden_size: int                            # D
    intermediate_size: int                      # F
    num_hidden_layers: int
    num_attention_heads: int                    # H
    num_key_value_heads: int                    # K, a divisor of H
    head_dim: int                               # E

    # What the weights alone do not say.
    max_position_embeddings: int = 2048         # the longest sequence it is made for
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0                 # the slowest pair turns once in about 2π θ places
    rope_scaling: dict | None = None            # Llama 3.1's, or None
    tie_word_embeddings: bool = False           # does the head use the embedding's matrix?
    initializer_range: float = 0.02             # standard deviation of random weights
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2    # Llama 3 ends on any of several
    dtype: str = "float32"                      # of the weights in the file

    # Set by init.py; None in a model that it did not grow.
    base_vocab_size: int | None = None          # pieces of the base tokenizer, before the new ones
    unpadded_vocab_size: int | None = None      # pieces of the tokenizer; later rows are padding

    def eos_ids(self) -> list[int]:
        """eos_token_id as a list, which may be empty."""
        return special_tokens.id_list(self.eos_token_id)

    @classmethod
    def read(cls, path: str | Path) -> "Config":
        """Read a config.json, or the one in a model directory. UserError for what this Llama would
        compute wrongly."""
        values = hf.read_config(path)

        # A file may say more than we need, and may leave to us what has a default.
        ours = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: values[name] for name in ours if name in values})

    def write(self, path: str | Path) -> None:
        """Write a config.json that transformers reads."""
        hf.write_config(path, dataclasses.asdict(self))


# ------------------------------------------------------------------------- linear and norm


class Linear(nn.Linear):
    """y = x Wᵀ. The weight may be a float32 master while x is bfloat16: the cast is explicit, and
    autograd undoes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """y = w · x / sqrt(mean(x²) + eps), over the last dimension (Zhang and Sennrich,
    1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)

    def after_adding(self, x: torch.Tensor, branch: torch.Tensor):
        """(the norm of x + branch, x + branch), in a single pass over memory."""
        return kernels.add_rms_norm(x, branch, self.weight, self.eps)


# ------------------------------------------------------------------------------- attention


def repeat_heads(x: torch.Tensor, H: int) -> torch.Tensor:
    """Keys or values (B, K, S, E) → (B, H, S, E): each head once for every query that shares it."""
    return x.repeat_interleave(H // x.shape[1], dim=1)


def attention_reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                        numbers: torch.Tensor | None = None) -> torch.Tensor:
    """The definition of causal attention (Vaswani et al., 1706.03762, section 3.2.1).

    q (B, H, T, E), k and v (B, K, S, E) → (B, H, T, E). The T queries are the last of S positions;
    K divides H. `numbers` (B, T): the number of each position's document. It sees that one alone.

    >>> q = torch.zeros(1, 1, 2, 1)                # no preference: the mean of what is seen so far
    >>> v = torch.tensor([[[[1.0], [5.0]]]])
    >>> attention_reference(q, q, v).flatten()
    tensor([1., 3.])
    >>> attention_reference(q, q, v, numbers=torch.tensor([[0, 1]])).flatten()
    tensor([1., 5.])
    """
    H, T, E = q.shape[1:]
    S = k.shape[2]
    k = repeat_heads(k, H)                                              # (B, H, S, E)
    v = repeat_heads(v, H)                                              # (B, H, S, E)
    scores = q @ k.transpose(2, 3) / math.sqrt(E)                       # (B, H, T, S)
    is_later = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
    scores = scores.masked_fill(is_later, -math.inf)
    if numbers is not None:
        is_elsewhere = numbers[:, None, :, None] != numbers[:, None, None, :]
        scores = scores.masked_fill(is_elsewhere, -math.inf)
    return scores.softmax(-1) @ v                                       # (B, H, T, E)


# On Hopper (H100, H200) cuDNN's attention trains 1.7 to 2.3 times as fast as FlashAttention 2; on
# older and newer GPUs it is slower (transformers, pull request 48163). What one backend cannot do,
# the next one does.
HOPPER = 9  # the major number of its compute capability
TRAINING_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`attention_reference`, by the fastest implementation that PyTorch has for this device. Shapes
    as there."""
    H, T = q.shape[1:3]
    K, S = k.shape[1:3]

    # In float32 a GPU has only the memory-efficient kernel, which does not let heads share keys.
    # Without repeated keys the math backend would run and hold all scores, (B, H, T, S).
    if q.device.type != "cpu" and q.dtype == torch.float32 and K < H:
        k = repeat_heads(k, H)                                          # (B, H, S, E)
        v = repeat_heads(v, H)                                          # (B, H, S, E)
        K = H

    # New positions see what is in the cache, and each other up to themselves. A single one sees
    # everything and needs no mask.
    mask = None
    if 1 < T < S:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    options = {"attn_mask": mask, "is_causal": T == S, "enable_gqa": K < H}

    # cuDNN makes a new plan for every length that it meets (.04 to .07 s on an H200). Training sees
    # one length. Generation, validation and scoring see hundreds: for them cli.set_device switches
    # cuDNN off.
    trains = q.is_cuda and torch.is_grad_enabled()
    cudnn_first = trains and torch.cuda.get_device_properties(q.device).major == HOPPER

    #     scores = q kᵀ / √E,    p = softmax(scores over the keys up to oneself),    y = p v
    #
    # Neither scores nor p is ever held whole (FlashAttention, 2205.14135): keys come a block at a
    # time, and each query keeps its y so far and log Σ exp(scores), from which the backward pass
    # computes p again.
    if cudnn_first:
        with sdpa_kernel(TRAINING_ORDER, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, **options)
    return F.scaled_dot_product_attention(q, k, v, **options)


class Cache:
    """Keys and values of the positions seen so far, layer by layer: there is room for `length`
    positions, and `used` are filled."""

    def __init__(self, config: Config, batch: int, length: int, device, dtype):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length,
                 config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.used = 0  # grows once per forward pass, in Llama.hidden: the layers share it

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        """Append k and v (B, K, T, E) to a layer; return all its keys and values (B, K, S, E),
        where S = used + T."""
        end = self.used + k.shape[2]
        self.keys[layer, :, :, self.used:end] = k
        self.values[layer, :, :, self.used:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """Each of H queries at a position compares itself with the keys up to there, and takes a
    weighted mean of their values. H/K query heads share a head of keys and values, so that the
    cache is H/K times smaller (grouped-query attention)."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.layer = layer  # its place in a cache
        self.q_proj = Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, cache: Cache | None = None, positions=None,
                documents: "Documents | None" = None) -> torch.Tensor:
        """x (B, T, D), cos and sin (T, E/2) → (B, T, D); (N, D) for `positions`, as in Block."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim)
        q = q.transpose(1, 2)                                           # (B, H, T, E)
        k = k.transpose(1, 2)                                           # (B, K, T, E)
        v = v.transpose(1, 2)                                           # (B, K, T, E)

        # Without a sign of its place, a key would be the same wherever it stands.
        # RoPE turns each pair (a, b) = (q[i], q[i + E/2]) at position t by the angle t θ^(-2i/E):
        #     (a, b) → (a cos - b sin,  b cos + a sin)
        # and so for k. What is left in q · k is the distance between the two positions: so it does
        # not matter that a document begins in the middle of a window.
        q, k = kernels.rope(q, k, cos, sin)

        # What came before need not be computed again: its keys and values do not change.
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)                       # (B, K, S, E)
        if documents is None:
            y = causal_attention(q, k, v)                               # (B, H, T, E)
        else:
            y = attention_within(q, k, v, documents)                    # (B, H, T, E)

        # Heads side by side again, and mixed.
        y = y.transpose(1, 2).reshape(B, T, self.heads * self.head_dim)
        if positions is not None:
            y = y[positions]                                            # (N, H E)
        return self.o_proj(y)                                           # (B, T, D) or (N, D)


# --------------------------------------------------------------- attention within documents


class Documents(NamedTuple):
    """The documents in a batch of training windows, each of which attends to itself alone."""
    numbers: torch.Tensor           # (B, T) int32: each position's document, counted from 0
    room: int                       # more than the last number, a power of two

    # What attention reads: `ready` adds one of the two.
    mask: torch.Tensor | None = None    # (B, 1, T, T): 0 where a query sees a key, -inf elsewhere
    starts: torch.Tensor | None = None  # (room + 1,) int32: the place among B T of each one's start

    def to(self, device: str) -> "Documents":
        """The same on the device, copied from pinned memory so that Python need not wait."""
        return self._replace(numbers=self.numbers.pin_memory().to(device, non_blocking=True))

    def split(self, windows: int) -> list["Documents"]:
        """Those of so many windows each, as a tensor is split."""
        return [self._replace(numbers=numbers) for numbers in self.numbers.split(windows)]

    def ready(self, dtype: torch.dtype) -> "Documents":
        """The same with what attention in this type reads, made once for all layers.

        >>> documents = find_documents(torch.tensor([[7, 1, 7]]), bos=1)
        >>> documents.ready(torch.float32).mask
        tensor([[[[0., -inf, -inf],
                  [-inf, 0., -inf],
                  [-inf, 0., 0.]]]])
        """
        numbers = self.numbers
        if varlen_runs(numbers, dtype):
            # The documents that `room` has beyond the last number begin and end where all end.
            all_numbers = torch.arange(self.room + 1, dtype=numbers.dtype, device=numbers.device)
            starts = torch.searchsorted(numbers.flatten(), all_numbers, out_int32=True)
            return self._replace(starts=starts)

        # Not a mask of booleans: SDPA would make these numbers of it, in every layer anew.
        sees = (numbers[:, :, None] == numbers[:, None, :]).tril()          # (B, T, T)
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        mask = mask.masked_fill_(~sees, -math.inf)
        return self._replace(mask=mask[:, None])


def find_documents(tokens: torch.Tensor, bos: int) -> Documents:
    """The documents in tokens (B, T), which are in CPU memory: each begins at a BOS. What stands
    before the first BOS of a window is the rest of a document that the window's start has cut.

    >>> find_documents(torch.tensor([[7, 1, 7], [1, 7, 7]]), bos=1).numbers
    tensor([[0, 1, 1],
            [2, 2, 2]], dtype=torch.int32)
    """
    begins = tokens == bos
    begins[:, 0] = True
    numbers = begins.flatten().cumsum(0, dtype=torch.int32).view(tokens.shape) - 1
    # A compiled block is compiled again for every other room: powers of two are few.
    return Documents(numbers, room=2 ** int(numbers[-1, -1]).bit_length())


def attention_within(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                     documents: Documents) -> torch.Tensor:
    """`attention_reference` within documents that are ready. Shapes as there, with S = T."""
    H, T = q.shape[1:3]
    K = k.shape[1]
    if documents.mask is not None:
        if q.device.type != "cpu" and K < H:  # in float32, as in causal_attention
            k = repeat_heads(k, H)                                      # (B, H, T, E)
            v = repeat_heads(v, H)                                      # (B, H, T, E)
            K = H
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=documents.mask, enable_gqa=K < H
        )

    # FlashAttention over documents one behind another, in place of windows: scores between two of
    # them are never computed. It has not run on a GPU yet; the tests compare its stand-in.
    options = {}
    if VARLEN_SHARES_KEYS:
        options["enable_gqa"] = K < H
    else:
        k = repeat_heads(k, H)                                          # (B, H, T, E)
        v = repeat_heads(v, H)                                          # (B, H, T, E)
    y = varlen_attn(
        q.transpose(1, 2).flatten(0, 1),                                # (B T, H, E)
        k.transpose(1, 2).flatten(0, 1),                                # (B T, K, E)
        v.transpose(1, 2).flatten(0, 1),                                # (B T, K, E)
        cu_seq_q=documents.starts,
        cu_seq_k=documents.starts,
        max_q=T,  # the longest that there can be: the true one would have to be waited for
        max_k=T,
        window_size=(-1, 0),  # all that is earlier, nothing that is later
        **options,
    )
    return y.unflatten(0, (-1, T)).transpose(1, 2)                      # (B, H, T, E)


# FlashAttention's kernels begin with Ampere (A100).
AMPERE = 8  # the major number of its compute capability

# Since torch 2.13 query heads may share keys and values in varlen_attn.
VARLEN_SHARES_KEYS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def varlen_runs(x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Is varlen_attn there for this type, on x's device?"""
    if x.device.type == "cpu" or dtype == torch.float32:
        return False
    # Meta tensors have it, too: in the tests they stand for those of a GPU.
    return not x.is_cuda or torch.cuda.get_device_properties(x.device).major >= AMPERE


# ----------------------------------------------------------------------------- feed-forward


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2002.05202): one projection opens and closes the gate of another."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x)                                        # (B, T, F)
        up = self.up_proj(x)                                            # (B, T, F)
        # silu(gate) · up, where silu(g) = g / (1 + e^-g)
        hidden = kernels.swiglu(gate, up)                               # (B, T, F)
        return self.down_proj(hidden)                                   # (B, T, D)


# --------------------------------------------------------------------------- the whole model


def recomputed(function: Callable, *inputs):
    """function(*inputs), of which only the inputs are kept for the backward pass; the function runs
    again there, which trades time for memory (Chen et al., 1604.06174). It draws no random numbers,
    so their state need not be kept."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class Block(nn.Module):
    """One layer: attention, then the feed-forward. Each branch reads a normalised copy of the
    stream x and is added back to it.

    `positions` is an index, (N,) sequences and (N,) places: only they come out, (N, D), which
    spares the last block the others. With `documents` each position attends within its own.
    `recompute_attention`: its activations are not kept."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def attend(self, x, cos, sin, cache: Cache | None, positions, documents) -> torch.Tensor:
        """The first branch, attention(norm(x))."""
        return self.self_attn(self.input_layernorm(x), cos, sin, cache, positions, documents)

    def forward(self, x, cos, sin, cache: Cache | None = None, positions=None,
                documents: Documents | None = None,
                recompute_attention: bool = False) -> torch.Tensor:
        """x (B, T, D) → (B, T, D), or (N, D)."""
        if recompute_attention:
            attended = recomputed(self.attend, x, cos, sin, cache, positions, documents)
        else:
            attended = self.attend(x, cos, sin, cache, positions, documents)
        if positions is not None:
            x = x[positions]                                            # (N, D)

        # x = x + attention(norm(x)).  The next norm makes the sum in the same pass over memory.
        normed, x = self.post_attention_layernorm.after_adding(x, attended)

        # x = x + mlp(norm(x))
        x = x + self.mlp(normed)
        return x


class Head(Linear):
    """Logits, or the loss straight from the hidden states. The loss is computed *inside* the
    forward of the module that owns the weight, so that a sharded weight (FSDP) is whole at that
    moment."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None):
        if targets is None:
            return super().forward(x)                                   # (B, T, V)
        return kernels.linear_cross_entropy(x.flatten(0, 1), self.weight, targets.flatten())


class Decoder(nn.Module):
    """Everything but the head."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """The whole model.

    `compute_dtype` is the type of activations and matmuls, whatever the weights are in. `recompute`
    ("none", "attention" or "full") says which activations are not kept for the backward pass:
    attention's, or all inside a block."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.recompute = "none"
        self.model = Decoder(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)

        # A small model can save the head: a token's embedding is then also what predicts it.
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.cos_and_sin: tuple[torch.Tensor, torch.Tensor] | None = None
        self.init_weights()

    def init_weights(self) -> None:
        """Random matrices, as in GPT-2: those whose output is added to the stream start smaller,
        since two of them per layer add up. Norms start at 1."""
        for name, p in self.named_parameters():
            if p.dim() < 2 or p.is_meta:
                continue
            std = self.config.initializer_range
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std = std / math.sqrt(2 * self.config.num_hidden_layers)
            nn.init.normal_(p, std=std)

    def rope_tables(self, start: int, end: int, device) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of position × frequency for the positions start…end-1, (T, E/2) float32 each.
        They are computed once, and again if a longer sequence comes."""
        known = self.cos_and_sin
        if known is None or len(known[0]) < end or known[0].device != torch.device(device):
            config = self.config

            # Long enough that most runs compute them once.
            length = max(end, min(config.max_position_embeddings, 4096))
            positions = torch.arange(length, device=device).float()
            frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            angles = torch.outer(positions, frequencies.to(device))     # (length, E/2)
            self.cos_and_sin = angles.cos(), angles.sin()
        cos, sin = self.cos_and_sin
        return cos[start:end], sin[start:end]

    def hidden(self, tokens: torch.Tensor, cache: Cache | None = None, positions=None,
               documents: Documents | None = None):
        """tokens (B, T) → the head's input, (B, T, D), or (N, D) at the index `positions`, as in
        Block. A cache grows by T. `documents` are there without a cache only."""
        T = tokens.shape[1]

        # Where these tokens stand: after those in the cache.
        start = 0
        if cache is not None:
            start = cache.used
        cos, sin = self.rope_tables(start, start + T, tokens.device)    # (T, E/2)

        if documents is not None:
            documents = documents.ready(self.compute_dtype)

        x = self.model.embed_tokens(tokens).to(self.compute_dtype)      # (B, T, D)
        last = self.model.layers[-1]
        for block in self.model.layers:
            # Before the last block every position is needed: later ones look at its keys.
            selected = positions if block is last else None

            # Below everything that is trained nothing is kept, so there is nothing to recompute.
            is_trained = any(p.requires_grad for p in block.parameters())
            keeps_activations = torch.is_grad_enabled() and (x.requires_grad or is_trained)
            if keeps_activations and self.recompute == "full":
                x = recomputed(block, x, cos, sin, cache, selected, documents)
            else:
                recompute_attention = keeps_activations and self.recompute == "attention"
                x = block(x, cos, sin, cache, selected, documents, recompute_attention)
        if cache is not None:
            cache.used += T
        return self.model.norm(x)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None,
                documents: Documents | None = None):
        """tokens (B, T) → logits (B, T, V); with targets (B, T) → (loss in nats, summed over the
        targets ≠ -100; their number). With documents each position attends within its own."""
        return self.lm_head(self.hidden(tokens, documents=documents), targets)

    @torch.no_grad()  # not inference_mode: what rope_tables keeps is used in training too
    def generate(self, tokens: torch.Tensor, max_new_tokens: int, temperature: float = 1.0,
                 top_p: float = 1.0, generator: torch.Generator | None = None,
                 eos: Iterable[int] = ()) -> torch.Tensor:
        """Continue tokens (B, T) by sampling → (B, T + n), n ≤ max_new_tokens.

        Temperature 0 takes the most likely token. It stops when every sequence has ended, in any
        of `eos`; the shorter ones are filled up with the first of these. Padded rows of the
        vocabulary are never sampled."""
        B, T = tokens.shape
        ends = torch.tensor(list(eos), device=tokens.device)
        cache = Cache(self.config, B, T + max_new_tokens, tokens.device, self.compute_dtype)
        has_ended = torch.zeros(B, dtype=torch.bool, device=tokens.device)

        # What the cache has not seen: the prompt, then one token at a time.
        new = tokens
        for _ in progress(range(max_new_tokens), "generate", " tokens"):
            # Only the last position predicts a token that is not there yet.
            last = self.hidden(new, cache)[:, -1]                       # (B, D)
            logits = self.lm_head(last).float()                         # (B, V)
            logits = logits[:, :self.config.unpadded_vocab_size]        # None keeps all
            if temperature == 0:
                new = logits.argmax(-1, keepdim=True)                   # (B, 1)
            else:
                new = sample_top_p(logits / temperature, top_p, generator)

            # A sequence that has ended waits for the others.
            if len(ends):
                new[has_ended] = ends[0]
                has_ended |= torch.isin(new[:, 0], ends)
            tokens = torch.cat((tokens, new), 1)
            if has_ended.all():
                break
        return tokens


def sample_top_p(logits: torch.Tensor, top_p: float,
                 generator: torch.Generator | None = None) -> torch.Tensor:
    """Sample from the fewest tokens that hold the probability `top_p` together, the nucleus
    (Holtzman et al., 1904.09751). logits (B, V) → (B, 1).

    Of the probabilities 0.1, 0.6 and 0.3 the second is enough for 0.5:

    >>> sample_top_p(torch.tensor([[0.1, 0.6, 0.3]]).log(), top_p=0.5)
    tensor([[1]])
    """
    p, order = logits.softmax(-1).sort(-1, descending=True)             # (B, V)

    # A token is outside if those that are more likely hold top_p without it. The first one stays.
    more_likely = p.cumsum(-1) - p                                      # (B, V)
    is_outside = more_likely >= top_p
    is_outside[:, 0] = False
    p[is_outside] = 0

    # multinomial needs no probabilities that sum to 1, and chooses a place in the order.
    chosen = torch.multinomial(p, 1, generator=generator)               # (B, 1)
    return order.gather(1, chosen)


# ------------------------------------------------------------------------------------ LoRA


class LoRALinear(Linear):
    """y = x Wᵀ + (alpha / rank) · (x Aᵀ) Bᵀ, with W frozen (2106.09685). A (rank, in) and B (out,
    rank) are trained. B starts at zero, so that step 0 computes what the base does."""

    def __init__(self, base: Linear, rank: int, alpha: float, dtype=torch.float32):
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight  # the base's own tensor, not a copy
        self.scale = alpha / rank

        # On the meta device, which has no memory, the values come later, from start_lora.
        device = base.weight.device
        A = torch.empty(rank, base.in_features, dtype=dtype, device=device)
        B = torch.zeros(base.out_features, rank, dtype=dtype, device=device)
        self.lora_A = nn.Parameter(init_lora_a(A))
        self.lora_B = nn.Parameter(B)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) → (..., out)."""
        A = self.lora_A.to(x.dtype)
        B = self.lora_B.to(x.dtype)
        rows = x.flatten(0, -2)                                         # (B T, in)

        # The scale multiplies the narrow product, and addmm_ adds the last matmul to y as it
        # writes. Scaling and adding afterwards would each be one more pass over (B T, out).
        low = F.linear(rows, A) * self.scale                            # (B T, rank)
        y = super().forward(rows)                                       # (B T, out)
        y = y.addmm_(low, B.t())                                        # (B T, out)
        return y.view(*x.shape[:-1], self.out_features)                 # (B, T, out)


def init_lora_a(A: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """A (rank, in) filled as LoRA's authors do: uniform between ±1/√in."""
    return nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)


def add_lora(llama: Llama, rank: int, alpha: float, dtype=torch.float32) -> None:
    """Put a LoRA beside all seven matrices of every block, in place. Which parameters are trained
    is left to the caller."""
    # Lists, because the tree of modules changes while we walk through it.
    for parent in list(llama.model.layers.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear):
                setattr(parent, name, LoRALinear(layer, rank, alpha, dtype))


def start_lora(llama: Llama, device: str, seed: int) -> None:
    """Initialise the LoRAs that were added on the meta device: A random, the same whole matrix for
    any number of processes, and B zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in list(llama.named_parameters()):
        if not name.endswith(("lora_A", "lora_B")):
            continue

        # Every process draws the whole matrix, and keeps its own rows of it.
        start = torch.zeros(p.shape)
        if name.endswith("lora_A"):
            init_lora_a(start, generator)
        first, last = parallel.rows(p)
        assign(llama, name, start[first:last].to(device=device, dtype=p.dtype))


def merge_lora(weight: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float):
    """W + (alpha / rank) · B A, summed in float32."""
    return weight.float() + scale * (B.float() @ A.float())


# ------------------------------------------------------------------------ model directories


def load(folder: str | Path, device: str = "cpu",
         dtype: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
         before_load: Callable[[Llama], None] | None = None) -> Llama:
    """Read a model directory, tensor by tensor to its place.

    `dtype` may be a function of the parameter's name. `before_load` is called with the model while
    it has no memory yet (meta tensors of the right types): it may add a LoRA, freeze parameters,
    shard. Of a sharded parameter each process reads its own rows only.

    UserError names a tensor that is missing, unknown or of the wrong shape: nothing is silently
    skipped."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no model directory {folder}")
    config = Config.read(folder)
    stored = hf.TensorFiles(folder)

    # A model of names, shapes and types alone.
    with torch.device("meta"):
        llama = Llama(config)
    names = [name for name, _ in llama.named_parameters()]
    check_names(folder, names, stored, config)
    for name, p in llama.named_parameters():
        wanted = dtype(name) if callable(dtype) else dtype
        p.data = p.data.to(wanted)
    if before_load is not None:
        before_load(llama)

    # Its parameters are replaced one by one, so that nothing is in memory twice, and a sharded one
    # by this process's rows alone.
    parameters = dict(llama.named_parameters())  # what before_load made of them
    stored_dtypes = set()
    for name in progress(names, f"reading {folder}"):
        p = parameters[name]
        tensor = stored.slice(name)
        shape = tuple(tensor.get_shape())
        if shape != tuple(p.shape):
            raise UserError(f"{stored.files[name]}: {name} has shape {shape}, config.json says "
                            f"{tuple(p.shape)}; was the vocabulary grown without its embedding? "
                            "(init.py does both)")
        stored_dtypes.add(tensor.get_dtype())
        first, last = parallel.rows(p)
        assign(llama, name, tensor[first:last].to(device=device, dtype=p.dtype))
    unknown = sorted(stored_dtypes - set(hf.DTYPES))
    if unknown:
        raise UserError(f"{folder} holds tensors of type {', '.join(unknown)}; quantised models "
                        "cannot be read")

    # The type that the weights have, whatever config.json says; float32 if they differ.
    config.dtype = "float32"
    if len(stored_dtypes) == 1:
        config.dtype = hf.DTYPES[stored_dtypes.pop()]
    if config.tie_word_embeddings:
        tie_head(llama, folder, stored)
    if isinstance(dtype, torch.dtype):
        llama.compute_dtype = dtype
    return llama


def check_names(folder: Path, names: list[str], stored: hf.TensorFiles, config: Config) -> None:
    """UserError unless a directory holds the tensors that its config.json describes, and no
    others."""
    missing = sorted(set(names) - set(stored.files))
    extra = set(stored.files) - set(names)
    if config.tie_word_embeddings:
        extra.discard("lm_head.weight")  # tie_head compares it
    if not missing and not extra:
        return
    if missing:
        what = f"has no tensor {missing[0]}"
    else:
        what = f"holds an unknown tensor {min(extra)}"
    raise UserError(f"{folder} {what} ({len(missing)} missing, {len(extra)} unknown): config.json "
                    "describes another model than the weights")


def tie_head(llama: Llama, folder: Path, stored: hf.TensorFiles) -> None:
    """Make the embedding, which has just been read, the head's matrix again. UserError if the file
    holds another head."""
    embedding = llama.model.embed_tokens.weight
    llama.lm_head.weight = embedding
    if "lm_head.weight" in stored.files and not embedding.is_meta:
        first, last = parallel.rows(embedding)
        mine = parallel.local(embedding)
        head = stored.slice("lm_head.weight")[first:last].to(mine)
        if not torch.equal(head, mine):
            raise UserError(f"{folder}/config.json ties the head to the embedding, but "
                            "lm_head.weight differs from it; set tie_word_embeddings to false")


def assign(llama: Llama, name: str, part: torch.Tensor) -> None:
    """Put `part` (this process's rows) into the place of parameter `name`."""
    owner, _, leaf = name.rpartition(".")
    module = llama.get_submodule(owner)
    old = getattr(module, leaf)
    setattr(module, leaf, parallel.like(old, part))


def open_tensors(folder: str | Path) -> Callable[[str], torch.Tensor]:
    """A function that reads one tensor of a model directory, by its name."""
    return hf.TensorFiles(Path(folder)).read


def save(llama: Llama, folder: str | Path,
         tensors: Iterable[tuple[str, torch.Tensor]] | None = None) -> None:
    """Write config.json, generation_config.json and the weights, in config.dtype, into an existing
    folder, in the layout that Hugging Face reads: above 5 GB in several files, one in memory at a
    time. A generation_config.json that is there stays as it is; a config.json keeps what it says
    beside the fields of Config.

    `tensors`: name and value of each, in the model's order, where they are not the model's own. A
    LoRA is not written; it is merged before."""
    folder = Path(folder)
    config = llama.config
    dtype = getattr(torch, config.dtype)

    # A tied head appears once, under the embedding's name. Sizes decide what goes to which file.
    own = []
    for name, p in llama.named_parameters():
        if not name.endswith(("lora_A", "lora_B")):
            own.append((name, p))
    sizes = {name: p.numel() * dtype.itemsize for name, p in own}
    hf.write_tensors(folder, sizes, tensors or own, dtype)

    config.write(folder / "config.json")
    if not (folder / "generation_config.json").exists():
        generation = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        write_json(folder / "generation_config.json", generation)
