"""A Llama, written out by hand, that reads and writes Hugging Face model directories.

These letters name the dimensions of every shape below:

    B  sequences in a batch       D  hidden size (model width)    V  vocabulary size
    T  positions in a sequence    F  feed-forward width           H  query heads
    S  positions attended to:     E  width of one head            K  key-value heads
       those in the cache, then
       these T

Llama (Touvron et al., 2302.13971 and 2307.09288) is a GPT with three changes:

- RMSNorm before every branch, instead of LayerNorm;
- rotary position embeddings on queries and keys, instead of a table of positions;
- a gated feed-forward layer (SwiGLU).

Grouped-query attention (2305.13245) lets H/K query heads share one key-value head. LoRA
(2106.09685) trains a low-rank update beside a frozen matrix.

Parameters have the same names as in Hugging Face's transformers and in the weight files, such as
`model.layers.0.self_attn.q_proj.weight`. Matmuls and attention are PyTorch's. The other operations
that take time are in kernels/, each beside the PyTorch lines that define it.

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
    # The sizes of the matrices.
    vocab_size: int                             # V
    hidden_size: int                            # D
    intermediate_size: int                      # F
    num_hidden_layers: int
    num_attention_heads: int                    # H
    num_key_value_heads: int                    # K, a divisor of H
    head_dim: int                               # E

    # What cannot be told from the weights.
    max_position_embeddings: int = 2048         # the longest sequence that it supports
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0                 # the slowest pair turns once in about 2πθ positions
    rope_scaling: dict | None = None            # Llama 3.1's, or None
    tie_word_embeddings: bool = False           # does the head share the embedding's matrix?
    initializer_range: float = 0.02             # standard deviation of random weights
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2    # Llama 3 has several, each of which ends a text
    dtype: str = "float32"                      # of the weights in the file

    # Set by init.py; None in a model that init.py did not grow.
    base_vocab_size: int | None = None          # pieces of the base tokenizer, without the new ones
    unpadded_vocab_size: int | None = None      # pieces of the tokenizer; later rows are padding

    def eos_ids(self) -> list[int]:
        """Return eos_token_id as a list, which may be empty."""
        return special_tokens.id_list(self.eos_token_id)

    @classmethod
    def read(cls, path: str | Path) -> "Config":
        """Read a config.json, or the one in a model directory. UserError if it asks for something
        that this Llama would compute wrongly."""
        values = hf.read_config(path)

        # The file may have more fields than we need, and may omit those with a default.
        ours = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: values[name] for name in ours if name in values})

    def write(self, path: str | Path) -> None:
        """Write a config.json that transformers reads."""
        hf.write_config(path, dataclasses.asdict(self))


# ------------------------------------------------------------------------- linear and norm


class Linear(nn.Linear):
    """y = x Wᵀ. The weight may be a float32 master copy while x is bfloat16. The cast is part of
    the graph, so the weight's gradient comes back in float32."""

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
        """Return (the norm of x + branch, x + branch), in a single pass over memory."""
        return kernels.add_rms_norm(x, branch, self.weight, self.eps)


# ------------------------------------------------------------------------------- attention


def repeat_heads(x: torch.Tensor, H: int) -> torch.Tensor:
    """Keys or values (B, K, S, E) → (B, H, S, E): a copy for every query head that shares one."""
    return x.repeat_interleave(H // x.shape[1], dim=1)


def attention_reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                        numbers: torch.Tensor | None = None) -> torch.Tensor:
    """The definition of causal attention (Vaswani et al., 1706.03762, section 3.2.1).

    q (B, H, T, E), k and v (B, K, S, E) → (B, H, T, E). The T queries are the last of S positions;
    K divides H. `numbers` (B, T) says which document each position belongs to: a position attends
    only to its own document.

    >>> q = torch.zeros(1, 1, 2, 1)                # equal scores: the mean of the values so far
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
    # Query t stands at position S - T + t. It does not attend to the positions after that.
    is_later = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
    scores = scores.masked_fill(is_later, -math.inf)
    if numbers is not None:
        is_elsewhere = numbers[:, None, :, None] != numbers[:, None, None, :]
        scores = scores.masked_fill(is_elsewhere, -math.inf)
    return scores.softmax(-1) @ v                                       # (B, H, T, E)


# For training on Hopper (H100, H200), cuDNN's attention is 1.7 to 2.3 times as fast as
# FlashAttention 2; on older and newer GPUs it is slower (transformers, pull request 48163). PyTorch
# takes the first backend in this list that supports the inputs.
HOPPER = 9  # major compute capability
TRAINING_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`attention_reference` by PyTorch's fastest implementation for this device. The shapes are the
    same."""
    H, T = q.shape[1:3]
    K, S = k.shape[1:3]

    # In float32 a GPU has only the memory-efficient kernel, which does not support shared key-value
    # heads. If they were not repeated, the math backend would run and hold all scores (B, H, T, S).
    if q.device.type != "cpu" and q.dtype == torch.float32 and K < H:
        k = repeat_heads(k, H)                                          # (B, H, S, E)
        v = repeat_heads(v, H)                                          # (B, H, S, E)
        K = H

    # New positions attend to the cache, and to each other up to themselves. A single new position
    # attends to everything and needs no mask.
    mask = None
    if 1 < T < S:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    # PyTorch's is_causal gives query 0 the position 0, which is right only if T = S.
    options = {"attn_mask": mask, "is_causal": T == S, "enable_gqa": K < H}

    # cuDNN builds a plan for every new sequence length (0.04 to 0.07 s on an H200). Training uses
    # one length. Generation, validation and scoring use hundreds: for them cli.set_device disables
    # cuDNN.
    trains = q.is_cuda and torch.is_grad_enabled()
    cudnn_first = trains and torch.cuda.get_device_properties(q.device).major == HOPPER

    #     scores = q kᵀ / √E,    p = softmax(scores over the keys up to oneself),    y = p v
    #
    # Neither scores nor p is ever held in full (FlashAttention, 2205.14135): keys are read block by
    # block, and each query keeps its y so far and log Σ exp(scores), from which the backward pass
    # recomputes p.
    if cudnn_first:
        with sdpa_kernel(TRAINING_ORDER, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, **options)
    return F.scaled_dot_product_attention(q, k, v, **options)


class Cache:
    """The keys and values of the positions so far, for each layer. There is room for `length`
    positions, of which `used` are filled."""

    def __init__(self, config: Config, batch: int, length: int, device, dtype):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length,
                 config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.used = 0  # shared by the layers; Llama.hidden raises it once per forward pass

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        """Append k and v (B, K, T, E) to a layer. Returns all of that layer's keys and values,
        (B, K, S, E) with S = used + T."""
        end = self.used + k.shape[2]
        self.keys[layer, :, :, self.used:end] = k
        self.values[layer, :, :, self.used:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """Causal multi-head attention with grouped queries.

    Each of the H queries at a position is compared with the keys up to that position, and takes the
    weighted mean of their values. H/K query heads share one head of keys and values, which makes
    the cache H/K times smaller."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.layer = layer  # index into the cache
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

        # Attention itself does not know the order of its keys, so RoPE encodes positions: it
        # rotates each pair (a, b) = (q[i], q[i + E/2]) at position t by the angle t θ^(-2i/E),
        #     (a, b) → (a cos - b sin,  b cos + a sin)
        # and k in the same way. Then q · k depends only on the distance between the two positions,
        # so a document may begin anywhere in a window.
        q, k = kernels.rope(q, k, cos, sin)

        # Keys and values of earlier positions do not change, so they are read from the cache.
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)                       # (B, K, S, E)
        if documents is None:
            y = causal_attention(q, k, v)                               # (B, H, T, E)
        else:
            y = attention_within(q, k, v, documents)                    # (B, H, T, E)

        # Put the heads side by side again, and mix them.
        y = y.transpose(1, 2).reshape(B, T, self.heads * self.head_dim)
        if positions is not None:
            y = y[positions]                                            # (N, H E)
        return self.o_proj(y)                                           # (B, T, D) or (N, D)


# --------------------------------------------------------------- attention within documents


class Documents(NamedTuple):
    """The documents in a batch of training windows. Each attends only to itself."""
    numbers: torch.Tensor           # (B, T) int32: each position's document, counted from 0
    room: int                       # a power of two, greater than the last number

    # What attention reads. `ready` sets one of the two.
    mask: torch.Tensor | None = None    # (B, 1, T, T): 0 where a query may attend, -inf elsewhere
    starts: torch.Tensor | None = None  # (room + 1,) int32: each document's first position of B·T

    def to(self, device: str) -> "Documents":
        """Copy to the device, from pinned memory so that Python need not wait."""
        return self._replace(numbers=self.numbers.pin_memory().to(device, non_blocking=True))

    def split(self, windows: int) -> list["Documents"]:
        """Split into parts of `windows` windows each, like Tensor.split."""
        return [self._replace(numbers=numbers) for numbers in self.numbers.split(windows)]

    def ready(self, dtype: torch.dtype) -> "Documents":
        """Add what attention in this dtype reads, once for all layers.

        >>> documents = find_documents(torch.tensor([[7, 1, 7]]), bos=1)
        >>> documents.ready(torch.float32).mask
        tensor([[[[0., -inf, -inf],
                  [-inf, 0., -inf],
                  [-inf, 0., 0.]]]])
        """
        numbers = self.numbers
        if varlen_runs(numbers, dtype):
            # Document i takes the positions starts[i] … starts[i + 1] - 1 of the B·T.
            # The numbers up to `room` that no document has become empty documents at the end.
            all_numbers = torch.arange(self.room + 1, dtype=numbers.dtype, device=numbers.device)
            starts = torch.searchsorted(numbers.flatten(), all_numbers, out_int32=True)
            return self._replace(starts=starts)

        # Not a boolean mask: SDPA would convert it to these numbers in every layer.
        sees = (numbers[:, :, None] == numbers[:, None, :]).tril()          # (B, T, T)
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        mask = mask.masked_fill_(~sees, -math.inf)
        return self._replace(mask=mask[:, None])


def find_documents(tokens: torch.Tensor, bos: int) -> Documents:
    """Find the documents in tokens (B, T), which must be in CPU memory. Each begins at a BOS;
    tokens before a window's first BOS are the rest of a document that began in an earlier window.

    >>> find_documents(torch.tensor([[7, 1, 7], [1, 7, 7]]), bos=1).numbers
    tensor([[0, 1, 1],
            [2, 2, 2]], dtype=torch.int32)
    """
    begins = tokens == bos
    begins[:, 0] = True
    numbers = begins.flatten().cumsum(0, dtype=torch.int32).view(tokens.shape) - 1
    # A compiled block is recompiled for every new `room`; powers of two keep their number small.
    return Documents(numbers, room=2 ** int(numbers[-1, -1]).bit_length())


def attention_within(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                     documents: Documents) -> torch.Tensor:
    """`attention_reference` within documents on which `ready` was called. The shapes are the same,
    with S = T."""
    H, T = q.shape[1:3]
    K = k.shape[1]
    if documents.mask is not None:
        if q.device.type != "cpu" and K < H:  # float32 on a GPU, as in causal_attention
            k = repeat_heads(k, H)                                      # (B, H, T, E)
            v = repeat_heads(v, H)                                      # (B, H, T, E)
            K = H
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=documents.mask, enable_gqa=K < H
        )

    # FlashAttention over the documents, laid end to end instead of in windows: scores between two
    # documents are never computed. It has not run on a GPU yet; the tests compare a stand-in.
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
        max_q=T,  # an upper bound: reading the true maximum would wait for the device
        max_k=T,
        window_size=(-1, 0),  # every earlier position, no later one: causal
        **options,
    )
    return y.unflatten(0, (-1, T)).transpose(1, 2)                      # (B, H, T, E)


# FlashAttention needs Ampere (A100) or newer.
AMPERE = 8  # major compute capability

# From torch 2.13 on, query heads may share keys and values in varlen_attn.
VARLEN_SHARES_KEYS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def varlen_runs(x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Does varlen_attn support this dtype on x's device?"""
    if x.device.type == "cpu" or dtype == torch.float32:
        return False
    # True for meta tensors too: the tests use them in place of a GPU's.
    return not x.is_cuda or torch.cuda.get_device_properties(x.device).major >= AMPERE


# ----------------------------------------------------------------------------- feed-forward


class MLP(nn.Module):
    """The feed-forward layer, SwiGLU (Shazeer, 2002.05202): one projection gates another."""

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
    """Call function(*inputs) and keep only the inputs for the backward pass, which runs the
    function again: less memory for more time (Chen et al., 1604.06174). The function draws no
    random numbers, so the state of the generator is not kept."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class Block(nn.Module):
    """One layer: attention, then the feed-forward. Each branch reads a normalised copy of the
    residual stream x, and its output is added to x.

    `positions` is an index of (N,) sequences and (N,) places. Only those positions are returned,
    (N, D), so the last block need not compute the others. With `documents`, each position attends
    within its own document. With `recompute_attention`, the activations of attention are not kept
    for the backward pass."""

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

        # x = x + attention(norm(x)).  The next norm computes the sum in the same pass over memory.
        normed, x = self.post_attention_layernorm.after_adding(x, attended)

        # x = x + mlp(norm(x))
        x = x + self.mlp(normed)
        return x


class Head(Linear):
    """Logits, or the loss straight from the hidden states. The loss is computed *inside* the
    forward of the module that owns the weight, because that is when FSDP has gathered a sharded
    weight."""

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

    `compute_dtype` is the dtype of activations and matmuls, whatever the dtype of the weights.
    `recompute` says which activations are recomputed in the backward pass instead of kept: "none",
    those of "attention", or all those inside a block ("full")."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.recompute = "none"
        self.model = Decoder(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)

        # A small model can do without a matrix for the head: a token's embedding also predicts it.
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.cos_and_sin: tuple[torch.Tensor, torch.Tensor] | None = None
        self.init_weights()

    def init_weights(self) -> None:
        """Random matrices, as in GPT-2. Those whose output is added to the residual stream start
        smaller, because two of them per layer add up. Norms start at 1."""
        for name, p in self.named_parameters():
            if p.dim() < 2 or p.is_meta:
                continue
            std = self.config.initializer_range
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std = std / math.sqrt(2 * self.config.num_hidden_layers)
            nn.init.normal_(p, std=std)

    def rope_tables(self, start: int, end: int, device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of position × frequency for the positions start … end - 1, each
        (T, E/2) float32. They are computed once, and again only for a longer sequence."""
        known = self.cos_and_sin
        if known is None or len(known[0]) < end or known[0].device != torch.device(device):
            config = self.config

            # Long enough that most runs compute the tables only once.
            length = max(end, min(config.max_position_embeddings, 4096))
            positions = torch.arange(length, device=device).float()
            frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            angles = torch.outer(positions, frequencies.to(device))     # (length, E/2)
            self.cos_and_sin = angles.cos(), angles.sin()
        cos, sin = self.cos_and_sin
        return cos[start:end], sin[start:end]

    def hidden(self, tokens: torch.Tensor, cache: Cache | None = None, positions=None,
               documents: Documents | None = None):
        """tokens (B, T) → the head's input, (B, T, D); (N, D) with `positions`, as in Block. A
        cache grows by T positions. `documents` cannot be combined with a cache."""
        T = tokens.shape[1]

        # These tokens come after those in the cache.
        start = 0
        if cache is not None:
            start = cache.used
        cos, sin = self.rope_tables(start, start + T, tokens.device)    # (T, E/2)

        if documents is not None:
            documents = documents.ready(self.compute_dtype)

        x = self.model.embed_tokens(tokens).to(self.compute_dtype)      # (B, T, D)
        last = self.model.layers[-1]
        for block in self.model.layers:
            # Before the last block every position is needed: later ones attend to it.
            selected = positions if block is last else None

            # Below the first trained parameter autograd keeps nothing, so recomputing saves
            # nothing.
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
        """tokens (B, T) → logits (B, T, V). With targets (B, T) → (the loss in nats, summed over
        the targets ≠ -100; their number). With `documents`, each position attends within its
        own."""
        return self.lm_head(self.hidden(tokens, documents=documents), targets)

    @torch.no_grad()  # not inference_mode: training uses the tensors that rope_tables keeps
    def generate(self, tokens: torch.Tensor, max_new_tokens: int, temperature: float = 1.0,
                 top_p: float = 1.0, generator: torch.Generator | None = None,
                 eos: Iterable[int] = ()) -> torch.Tensor:
        """Continue tokens (B, T) by sampling → (B, T + n), n ≤ max_new_tokens.

        Temperature 0 takes the most likely token. Generation stops when every sequence has ended
        with one of `eos`; sequences that end early are filled up with the first of `eos`. Padding
        rows of the vocabulary are never sampled."""
        B, T = tokens.shape
        ends = torch.tensor(list(eos), device=tokens.device)
        cache = Cache(self.config, B, T + max_new_tokens, tokens.device, self.compute_dtype)
        has_ended = torch.zeros(B, dtype=torch.bool, device=tokens.device)

        # The input that is not in the cache yet: first the prompt, then one token at a time.
        new = tokens
        for _ in progress(range(max_new_tokens), "generate", " tokens"):
            # Only the last position predicts a new token.
            last = self.hidden(new, cache)[:, -1]                       # (B, D)
            logits = self.lm_head(last).float()                         # (B, V)
            logits = logits[:, :self.config.unpadded_vocab_size]        # [:None] keeps all
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
    """Sample from the nucleus: the fewest tokens whose probabilities add up to `top_p` (Holtzman et
    al., 1904.09751). logits (B, V) → (B, 1).

    Of the probabilities 0.1, 0.6 and 0.3, the second alone reaches 0.5:

    >>> sample_top_p(torch.tensor([[0.1, 0.6, 0.3]]).log(), top_p=0.5)
    tensor([[1]])
    """
    p, order = logits.softmax(-1).sort(-1, descending=True)             # (B, V)

    # A token is outside if the more likely ones reach top_p without it. The first always stays.
    more_likely = p.cumsum(-1) - p                                      # (B, V)
    is_outside = more_likely >= top_p
    is_outside[:, 0] = False
    p[is_outside] = 0

    # multinomial normalises its weights itself. It returns a place in the sorted order.
    chosen = torch.multinomial(p, 1, generator=generator)               # (B, 1)
    return order.gather(1, chosen)


# ------------------------------------------------------------------------------------ LoRA


class LoRALinear(Linear):
    """y = x Wᵀ + (alpha / rank) · (x Aᵀ) Bᵀ, with W frozen (2106.09685). A (rank, in) and B (out,
    rank) are trained. B starts at zero, so at step 0 the output is the base's."""

    def __init__(self, base: Linear, rank: int, alpha: float, dtype=torch.float32):
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight  # the base's own tensor, not a copy
        self.scale = alpha / rank

        # On the meta device, which has no memory, start_lora sets the values later.
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

        # The narrow product is scaled, and addmm_ adds the last matmul to y while writing it.
        # Scaling and adding afterwards would each be another pass over (B T, out). Backward
        # does not read y, so y may be overwritten.
        low = F.linear(rows, A) * self.scale                            # (B T, rank)
        y = super().forward(rows)                                       # (B T, out)
        y = y.addmm_(low, B.t())                                        # (B T, out)
        return y.view(*x.shape[:-1], self.out_features)                 # (B, T, out)


def init_lora_a(A: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Fill A (rank, in) as LoRA's authors do: uniform between ±1/√in."""
    # The bound of kaiming_uniform_ is √(6 / (1 + a²)) / √in, so a = √5 makes it 1/√in.
    return nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)


def add_lora(llama: Llama, rank: int, alpha: float, dtype=torch.float32) -> None:
    """Put a LoRA beside all seven matrices of every block, in place. The caller chooses which
    parameters are trained."""
    # Lists, because the loop changes the tree of modules.
    for parent in list(llama.model.layers.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear):
                setattr(parent, name, LoRALinear(layer, rank, alpha, dtype))


def start_lora(llama: Llama, device: str, seed: int) -> None:
    """Initialise the LoRAs that were added on the meta device: A at random, but the same for any
    number of processes, and B to zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in list(llama.named_parameters()):
        if not name.endswith(("lora_A", "lora_B")):
            continue

        # Every process draws the whole matrix and keeps its own rows.
        start = torch.zeros(p.shape)
        if name.endswith("lora_A"):
            init_lora_a(start, generator)
        first, last = parallel.rows(p)
        assign(llama, name, start[first:last].to(device=device, dtype=p.dtype))


def merge_lora(weight: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float):
    """Return W + scale · B A, summed in float32; scale is alpha / rank."""
    return weight.float() + scale * (B.float() @ A.float())


# ------------------------------------------------------------------------ model directories


def load(folder: str | Path, device: str = "cpu",
         dtype: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
         before_load: Callable[[Llama], None] | None = None) -> Llama:
    """Read a model directory, one tensor at a time.

    `dtype` may be a function of the parameter's name. `before_load` is called with the model before
    it has memory (it consists of meta tensors with their dtypes): it may add a LoRA, freeze
    parameters, or shard. Of a sharded parameter each process reads only its own rows.

    UserError if a tensor is missing, unknown or of the wrong shape: nothing is skipped silently."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no model directory {folder}")
    config = Config.read(folder)
    stored = hf.TensorFiles(folder)

    # A model that has only names, shapes and dtypes.
    with torch.device("meta"):
        llama = Llama(config)
    # Listed before before_load, which may add LoRAs: the directory does not hold these.
    names = [name for name, _ in llama.named_parameters()]
    check_names(folder, names, stored, config)
    for name, p in llama.named_parameters():
        wanted = dtype(name) if callable(dtype) else dtype
        p.data = p.data.to(wanted)
    if before_load is not None:
        before_load(llama)

    # Its parameters are replaced one by one, so that nothing is in memory twice; of a sharded one
    # only this process's rows are read.
    parameters = dict(llama.named_parameters())  # as before_load left them
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

    # The dtype is what the weights have, whatever config.json says; float32 if they are mixed.
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
    raise UserError(f"{folder} {what} ({len(missing)} missing, {len(extra)} unknown): the weights "
                    "are not of the model that config.json describes")


def tie_head(llama: Llama, folder: Path, stored: hf.TensorFiles) -> None:
    """Share the embedding, which has just been read, with the head again. UserError if the file
    holds a head that differs from it."""
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
    """Replace parameter `name` by `part`, this process's rows."""
    owner, _, leaf = name.rpartition(".")
    module = llama.get_submodule(owner)
    old = getattr(module, leaf)
    setattr(module, leaf, parallel.like(old, part))


def open_tensors(folder: str | Path) -> Callable[[str], torch.Tensor]:
    """Return a function that reads one tensor of a model directory by its name."""
    return hf.TensorFiles(Path(folder)).read


def save(llama: Llama, folder: str | Path,
         tensors: Iterable[tuple[str, torch.Tensor]] | None = None) -> None:
    """Write a model directory in the Hugging Face layout: config.json, generation_config.json and
    the weights in config.dtype, into an existing folder.

    More than 5 GB of weights go to several files, of which one is in memory at a time. An existing
    generation_config.json stays as it is; an existing config.json keeps the fields that Config does
    not have.

    `tensors`: (name, value) pairs in the model's order, to be written instead of the model's own. A
    LoRA is not written: merge it first."""
    folder = Path(folder)
    config = llama.config
    dtype = getattr(torch, config.dtype)

    # A tied head appears once, under the embedding's name. The sizes decide how the tensors are
    # distributed over files.
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
