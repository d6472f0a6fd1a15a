"""What a stage trains, and what that costs in bytes and FLOPs, by arithmetic alone.

RedWhale (2408.11294, section 3.4) fits a 10.7B model on one GPU by training a part at a time. A
stage is written `what:tokens:peak_lr`, and `what` is one of

    embed      the input embedding and the head
    new_rows   only the rows that init.py added to them
    odd        layers 1, 3, 5, …
    even       layers 0, 2, 4, …
    body       all layers and the final norm
    lora       a LoRA beside every matrix of every layer
    full       everything
    sft        everything, on the responses of dialogues (data.py pack --prompt_field)

or a union, such as `odd+embed`. A LoRA can only be combined with embed, because the matrices beside
it are frozen.

**Weights, gradients, Adam's moments.** A trained parameter takes 16 bytes: a float32 master weight
(4), its gradient (4) and two moments (8). With all four in bfloat16 (kernels/adamw.py) it takes 8.
A frozen parameter is held in the compute dtype: 4 bytes, or 2 in bfloat16. So training all 10.7B
parameters at once needs 171 GB before any activations, and training half of the layers a little
more than half of that: this is why there are stages.

Each of N processes holds ceil(rows / N) rows of every parameter, its gradient and its moments. It
also holds one gathered group of parameters in the compute dtype, at most the largest of a block,
the embedding and the head (parallel.py). Not counted: what is in flight (the next group, the
gradients of the previous one) and what libraries allocate for themselves.

**Activations**: the elements per token that one block keeps for its backward pass (letters as in
model.py). Those in brackets are kept only if the block's matrices, or LoRAs beside them, are
trained, because only a trained matrix needs its input:

    attention      D residual stream (the norm's input)  [D normed stream]
                   HE + 2KE queries, keys, values        HE attention's output
    feed-forward   D residual stream  [D normed stream]  2F gate and up  [F their product]

In addition:

- In float32, one number per norm (1 / root mean square) and one per head (log Σ exp scores).
- A LoRA of rank r keeps r more for each of the seven matrices.
- A float32 master weight used in bfloat16 is cast, and the copy is kept (not with several
  processes, where the gathered group is that copy).
- On a CPU, a trained block keeps a second copy of attention's output: RoPE writes the heads one
  after the other there, and o_proj reads them side by side.
- Below the lowest trained parameter nothing is kept.

For example, a frozen block above a trained one, with D 4096, F 14336, H 32, HE 4096, KE 1024, in
bfloat16, keeps these bytes per token:

    attention      2 (4096 + 4096 + 2 · 1024 + 4096) + 4 (1 + 32)    =  28,804
    feed-forward   2 (4096 + 2 · 14336) + 4                          =  65,540

With --recompute attention, a block keeps the residual stream instead of attention's activations.
With --recompute full, it keeps the residual stream instead of all, and the backward pass holds all
of them again, for one block at a time, with the gradients of gate, up and their product (`block`).
The final norm keeps D. The loss holds a chunk of logits, the head's gradient in float32, and 2D.

**The peak** is reached at the loss or in the first block of the backward pass, where the gradients
of earlier micro-batches are held beside the activations of this one. With a single micro-batch,
gradients appear while activations are freed, so the peak is there or at the end of the backward
pass. `needed` adds what is outside PyTorch's allocator. Not modelled: what torch.compile keeps.

**--document_mask** adds the mask of the scores on a CPU, and in float32 on a GPU: micro-batch · T ·
T elements, once for all layers. In bfloat16 on a GPU it adds only the documents' starts, which is
negligible. Not modelled: keys and values that are repeated for the queries that share them (before
torch 2.13), and the 128 additional rows per document in which FlashAttention's backward pass sums
the queries' gradients, 4 · 128 · HE bytes each, one layer at a time.

**FLOPs per token**, forward and backward: 2 per parameter for the forward pass; 2 more for the
gradient of the input, if anything below is trained; 2 more for the gradient of the weight, if it is
trained itself. So a trained matrix takes 6, a frozen one through which gradients pass takes 4, and
a frozen one below everything trained takes 2. Attention adds 2·T·H·E forward in each layer (causal:
half of the score matrix) and twice that backward. Recomputation adds the forward pass again, except
for its last matmul, whose result no gradient needs. With --document_mask, attention is still
counted over whole windows, which is an upper bound; so is the utilisation that train.py computes
from it.
"""
import dataclasses
import math
import re
import time

import torch
import torch.nn.functional as F

from common.cli import UserError

# What a stage may train; a union combines several.
PARTS = ("embed", "new_rows", "odd", "even", "body", "lora", "full", "sft")

# The two matrices with a row for each piece of the vocabulary.
TABLES = ("model.embed_tokens.weight", "lm_head.weight")

# The dtype of a trained weight, its gradient and its moments, by --optimizer.
MASTER = {"adamw": torch.float32, "adamw_bf16": torch.bfloat16}

# The values of --recompute, from the fastest to the one that needs least memory.
RECOMPUTE = ("none", "attention", "full")

# Bytes of GPU memory outside PyTorch's allocator: the CUDA context with its compiled kernels (about
# 0.6 GB) and the workspaces of cuBLAS and cuDNN.
OUTSIDE = {"cpu": 0, "cuda": 2 * 10**9}

# RoPE's tables have at least this many positions, if the model does (model.py).
ROPE_POSITIONS = 4096

# The loss computes logits in chunks of this many bytes (kernels/loss.py).
LOGIT_BYTES = {"cpu": 3 * 2**23, "cuda": 2**29}

# But a chunk has at least this many rows.
LOGIT_ROWS = 384

# The LoRA matrices that read the block's normed input. In the lowest block that has LoRAs, the
# gradient of that input is not needed.
FIRST_OF_LORA = ("self_attn.q_proj.lora_A", "self_attn.k_proj.lora_A", "self_attn.v_proj.lora_A")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One entry of --stages: what to train, for how many tokens, at which peak learning rate."""
    what: str
    tokens: int
    peak_lr: float

    @property
    def parts(self) -> list[str]:
        """The parts that are combined: ["odd", "embed"] for `odd+embed`."""
        return self.what.split("+")

    def steps(self, batch_tokens: int) -> int:
        """The number of optimizer steps in the stage."""
        return max(1, round(self.tokens / batch_tokens))


@dataclasses.dataclass(frozen=True)
class Step:
    """How each process computes an optimizer step: in `accumulation` micro-batches of `micro_batch`
    windows of `seq_len` tokens."""
    seq_len: int
    dtype: torch.dtype          # compute dtype: of activations, matmuls and frozen weights
    optimizer: str = "adamw"
    micro_batch: int = 1
    accumulation: int = 1
    world_size: int = 1
    recompute: str = "none"     # or "attention", or "full"
    device: str = "cpu"
    document_mask: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.micro_batch * self.seq_len

    @property
    def casts(self) -> bool:
        """Is a trained weight cast to the compute dtype when it is used? With several processes,
        gathering it does that."""
        return MASTER[self.optimizer] != self.dtype and self.world_size == 1


def parse_stage(text: str) -> Stage:
    """Parse an entry of --stages. UserError says which field is wrong.

    >>> parse_stage("odd+embed:1.5M:1e-4")
    Stage(what='odd+embed', tokens=1500000, peak_lr=0.0001)
    """
    fields = text.split(":")
    if len(fields) != 3:
        raise UserError(f"stage {text!r} is not what:tokens:peak_lr, such as embed:200M:2e-4")
    what, tokens, lr = fields

    parts = set(what.split("+"))
    for part in what.split("+"):
        if part not in PARTS:
            known = ", ".join(PARTS)
            raise UserError(f"stage {text!r}: there is no part {part!r}; there are {known}")
    others = parts - {"lora", "embed"}
    if "lora" in parts and others:
        listed = ", ".join(sorted(others))
        raise UserError(f"stage {text!r}: lora can be combined only with embed, not with {listed}")
    if "new_rows" in parts and parts & {"embed", "full", "sft"}:
        raise UserError(
            f"stage {text!r}: new_rows keeps the old rows as they are, embed, full and sft train "
            "them; choose one"
        )

    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMB]?)", tokens)
    if not number or float(number[1]) == 0:
        raise UserError(
            f"stage {text!r}: {tokens!r} is not a number of tokens, such as 500k, 200M or 1.2B"
        )
    scale = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}[number[2]]

    try:
        peak_lr = float(lr)
    except ValueError:
        peak_lr = 0.0
    if not 0 < peak_lr < 1:
        raise UserError(
            f"stage {text!r}: {lr!r} is not a learning rate between 0 and 1, such as 2e-4"
        )
    return Stage(what, round(float(number[1]) * scale), peak_lr)


def is_trained(name: str, what: str) -> bool:
    """Does a stage train the parameter of this name? (For new_rows both tables count as trained;
    train.py zeroes the gradient of their old rows.)

    >>> is_trained("model.layers.3.mlp.up_proj.weight", "odd+embed")
    True
    """
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    for part in what.split("+"):
        if part in ("full", "sft"):
            return True
        if part in ("embed", "new_rows") and name in TABLES:
            return True
        if part == "body" and name not in TABLES:
            return True
        if part == "odd" and layer and int(layer[1]) % 2 == 1:
            return True
        if part == "even" and layer and int(layer[1]) % 2 == 0:
            return True
        if part == "lora" and name.endswith(("lora_A", "lora_B")):
            return True
    return False


# ------------------------------------------------------------------------ the parameters of a Llama


def block_shapes(config, lora_rank: int = 0) -> dict[str, tuple[int, ...]]:
    """{name within the block: shape} of the parameters of one block, in model.py's order. A matrix
    is (outputs, inputs). If lora_rank is not 0, a LoRA's two matrices follow each of the seven."""
    D = config.hidden_size
    query_width = config.num_attention_heads * config.head_dim      # HE
    key_width = config.num_key_value_heads * config.head_dim        # KE
    plain = {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (query_width, D),
        "self_attn.k_proj.weight": (key_width, D),
        "self_attn.v_proj.weight": (key_width, D),
        "self_attn.o_proj.weight": (D, query_width),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (config.intermediate_size, D),
        "mlp.up_proj.weight": (config.intermediate_size, D),
        "mlp.down_proj.weight": (D, config.intermediate_size),
    }
    if lora_rank == 0:
        return plain

    with_lora = {}
    for name, shape in plain.items():
        with_lora[name] = shape
        if len(shape) == 2:
            outputs, inputs = shape
            prefix = name.removesuffix("weight")
            with_lora[prefix + "lora_A"] = (lora_rank, inputs)
            with_lora[prefix + "lora_B"] = (outputs, lora_rank)
    return with_lora


def rank_of_stage(what: str, lora_rank: int) -> int:
    """The rank of the LoRAs that exist during a stage; 0 if there are none."""
    if "lora" in what.split("+"):
        return lora_rank
    return 0


def shapes(config, what: str, lora_rank: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter that exists during a stage, those of LoRAs included, in
    model.py's order. A tied head is not listed, because it is the embedding."""
    found = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    block = block_shapes(config, rank_of_stage(what, lora_rank))
    for layer in range(config.num_hidden_layers):
        for name, shape in block.items():
            found[f"model.layers.{layer}.{name}"] = shape
    found["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return found


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix of a block: its name within the block, its size, and whether the stage trains it."""
    name: str
    elements: int
    trained: bool


def layer_matrices(config, what: str, lora_rank: int, layer: int) -> list[Matrix]:
    """The matrices of one layer, those of LoRAs included, in the order of computation."""
    matrices = []
    for name, shape in block_shapes(config, rank_of_stage(what, lora_rank)).items():
        if len(shape) == 2:
            trained = is_trained(f"model.layers.{layer}.{name}", what)
            matrices.append(Matrix(name, math.prod(shape), trained))
    return matrices


# -------------------------------------------------------------------------------------------- FLOPs


def flops_recomputed(matrices: list[Matrix], scores: int, recompute: str) -> int:
    """FLOPs per token that the backward pass of one block spends on recomputing activations.
    `scores`: those of attention's two matmuls."""
    if recompute == "none":
        return 0
    if recompute == "attention":
        repeated = [matrix for matrix in matrices if matrix.name.startswith("self_attn.")]
    else:
        repeated = matrices
    # No gradient needs the result of the last matmul, so it is not recomputed.
    return scores + sum(2 * matrix.elements for matrix in repeated[:-1])


def flops_per_token(
    config,
    what: str,
    lora_rank: int,
    seq_len: int,
    recompute: str = "none",
) -> int:
    """FLOPs per token, forward and backward, at this sequence length. The module docstring explains
    the factors; `recompute` is as in Step."""
    # Attention's two matmuls, q kᵀ and p v, take 2·T·H·E each; a causal mask halves that.
    scores = 2 * seq_len * config.num_attention_heads * config.head_dim

    total = 0
    trained_so_far = is_trained(TABLES[0], what)  # is anything trained, up to this layer?
    for layer in range(config.num_hidden_layers):
        matrices = layer_matrices(config, what, lora_rank, layer)
        weights = sum(matrix.elements for matrix in matrices)
        trained_weights = sum(matrix.elements for matrix in matrices if matrix.trained)
        # If any of a layer's matrices is trained, gradients reach the inputs inside the layer.
        if trained_weights > 0:
            trained_so_far = True

        # The forward pass, then the gradients of the inputs, then those of the weights. Attention
        # has no weights: its backward pass takes twice its forward pass.
        total += 2 * weights + scores
        if trained_so_far:
            total += 2 * weights + 2 * scores
            total += flops_recomputed(matrices, scores, recompute)
        total += 2 * trained_weights

    # A stage that trains the head also trains the embedding, so `trained_so_far` covers it.
    head = config.vocab_size * config.hidden_size
    head_is_trained = is_trained("lm_head.weight", what)
    total += 2 * head
    if trained_so_far:
        total += 2 * head
    if head_is_trained:
        total += 2 * head
    return total


# -------------------------------------------------------------------------------------- activations


def block_activations(
    config,
    matrices: list[Matrix],
    rank: int,
    trained_below: bool,
    step: Step,
) -> tuple[int, int]:
    """Bytes that a block keeps for its backward pass: (attention with its norm, feed-forward).

    rank: the rank of its LoRAs, 0 if there are none. trained_below: is anything below trained, so
    that the gradient of the block's input is needed?"""
    # A LoRA needs the input of the matrix beside it, as that matrix would if it were trained.
    trained = any(matrix.trained for matrix in matrices)
    if not trained and not trained_below:
        return 0, 0

    D = config.hidden_size
    query_width = config.num_attention_heads * config.head_dim
    key_width = config.num_key_value_heads * config.head_dim
    width = config.intermediate_size

    # The first norm's own weight is trained with the matrices, but not with LoRAs.
    gradient_reaches_first_norm = trained_below or (trained and rank == 0)

    # Elements per token in the compute dtype, and elements per token in float32.
    attention = query_width + 2 * key_width + query_width   # queries, keys, values; the output
    attention_float32 = config.num_attention_heads          # log of each softmax's denominator
    if gradient_reaches_first_norm:
        attention += D
        attention_float32 += 1                              # the norm's 1/r
    if trained:
        attention += D + 4 * rank                           # input of q, k, v; LoRAs' x Aᵀ
    if trained and step.device == "cpu":
        attention += query_width                            # the output, laid out for o_proj
    feed_forward = D + 2 * width                            # residual stream; gate and up
    if trained:
        feed_forward += D + width + 3 * rank                # the matrices' inputs; LoRAs' x Aᵀ
    feed_forward_float32 = 1                                # the norm's 1 / root mean square

    itemsize = step.dtype.itemsize
    attention_bytes = step.tokens * (itemsize * attention + 4 * attention_float32)
    feed_forward_bytes = step.tokens * (itemsize * feed_forward + 4 * feed_forward_float32)

    # Copies of the master weights in the compute dtype: the gradient of a matmul's input needs
    # them.
    if step.casts:
        for matrix in matrices:
            first = matrix.name in FIRST_OF_LORA
            if not matrix.trained or (first and not gradient_reaches_first_norm):
                continue
            if matrix.name.startswith("self_attn."):
                attention_bytes += itemsize * matrix.elements
            else:
                feed_forward_bytes += itemsize * matrix.elements
    return attention_bytes, feed_forward_bytes


def logit_bytes(config, head_is_trained: bool, step: Step) -> int:
    """Bytes of logits that the loss may hold at once, as chunk_budget in kernels/loss.py."""
    budget = max(LOGIT_BYTES[step.device], LOGIT_ROWS * config.vocab_size * step.dtype.itemsize)
    if step.device == "cuda" and head_is_trained:
        # Every chunk reads and writes the head's gradient, so a few large chunks are faster.
        budget = max(budget, 2 * config.vocab_size * config.hidden_size)
    return budget


def loss_bytes(config, head_is_trained: bool, step: Step) -> int:
    """Bytes that the head and the loss hold at most."""
    itemsize = step.dtype.itemsize
    logits = step.tokens * config.vocab_size
    head = config.vocab_size * config.hidden_size
    budget = logit_bytes(config, head_is_trained, step)

    # On a CPU, bfloat16 logits are copied to float32 for the softmax. That copy is freed before the
    # chunk's share of the head's gradient is computed, which is then added to the float32 sum.
    if step.device == "cpu" and itemsize < 4:
        chunk = min(budget // (itemsize + 4), logits)
        beside_the_chunk = 4 * chunk
        if head_is_trained:
            beside_the_chunk = max(beside_the_chunk, itemsize * head)
    else:
        chunk = min(budget // itemsize, logits)
        beside_the_chunk = 0

    held = itemsize * chunk + beside_the_chunk
    # The normed stream and its gradient.
    held += 2 * itemsize * step.tokens * config.hidden_size
    # The head's gradient, summed in float32, and the head itself in the compute dtype.
    if head_is_trained:
        held += 4 * head
    if head_is_trained and step.casts:
        held += itemsize * head
    return held


def document_bytes(step: Step) -> int:
    """Bytes that --document_mask keeps: the number of each position's document; and, where
    FlashAttention does not run, a mask of each window, once for all layers."""
    numbers = 4 * step.tokens
    if step.device == "cuda" and step.dtype != torch.float32:
        return numbers
    return numbers + step.dtype.itemsize * step.tokens * step.seq_len


def activations(config, what: str, lora_rank: int, step: Step) -> dict[str, int]:
    """Bytes other than weights, gradients and moments. `activations`: what the forward pass of a
    micro-batch keeps below the head. `loss`: what the head and the loss hold. `block`: what the
    backward pass of one block adds."""
    itemsize = step.dtype.itemsize
    stream = step.tokens * config.hidden_size * itemsize

    positions = max(step.seq_len, min(config.max_position_embeddings, ROPE_POSITIONS))
    kept = 4 * positions * config.head_dim              # RoPE's cos and sin: float32, E/2 each
    kept += 8 * step.micro_batch * (step.seq_len + 1)   # ids: inputs, targets
    kept += stream + 4 * step.tokens                    # the final norm's input, and its 1/r
    if step.document_mask:
        kept += document_bytes(step)

    block = 0
    rank = rank_of_stage(what, lora_rank)
    trained_below = is_trained(TABLES[0], what)
    for layer in range(config.num_hidden_layers):
        matrices = layer_matrices(config, what, lora_rank, layer)
        trained = any(matrix.trained for matrix in matrices)
        attention, feed_forward = block_activations(config, matrices, rank, trained_below, step)
        if trained or trained_below:
            if step.recompute == "none":
                kept_by_block = attention + feed_forward
            elif step.recompute == "attention":
                kept_by_block = stream + feed_forward
            else:
                kept_by_block = stream
            kept += kept_by_block

            # The gradients of gate, up and their product. A trained block has kept the product,
            # which is freed before the gradients of gate and up are computed.
            gradients = 3 * step.tokens * config.intermediate_size * itemsize
            if trained:
                gradients -= step.tokens * config.intermediate_size * itemsize
            block = max(block, attention + feed_forward - kept_by_block + gradients)
        if trained:
            trained_below = True

    return {
        "activations": kept,
        "loss": loss_bytes(config, is_trained("lm_head.weight", what), step),
        "block": block,
    }


# ------------------------------------------------------------------------------- a stage in numbers


def largest_group(config, what: str, lora_rank: int) -> int:
    """Elements of the largest group of parameters that FSDP gathers at once. The groups are those
    of parallel.py: each block; the embedding; the final norm with the head."""
    block = block_shapes(config, rank_of_stage(what, lora_rank))
    block_elements = sum(math.prod(shape) for shape in block.values())
    # If the head is tied, embedding and norm are one group, of the same size.
    head_and_norm = config.vocab_size * config.hidden_size + config.hidden_size
    return max(block_elements, head_and_norm)


def cost(
    config,
    stage: Stage,
    lora_rank: int,
    seq_len: int,
    dtype: torch.dtype,
    optimizer: str = "adamw",
    **how,
) -> dict:
    """A stage's parameters, the bytes that each process holds, and FLOPs per token (`hardware`
    includes those of recomputation). `how`: the other fields of Step. Weights, gradients and
    moments are exact; the rest is modelled as the module docstring says."""
    step = Step(seq_len, dtype, optimizer, **how)

    # Count the elements of the whole model, and of the rows that each process holds.
    trained = 0
    frozen = 0
    trained_here = 0
    frozen_here = 0
    for name, shape in shapes(config, stage.what, lora_rank).items():
        rows_here = math.ceil(shape[0] / step.world_size)
        elements_here = rows_here * math.prod(shape[1:])
        if is_trained(name, stage.what):
            trained += math.prod(shape)
            trained_here += elements_here
        else:
            frozen += math.prod(shape)
            frozen_here += elements_here

    master = MASTER[optimizer].itemsize
    weights = master * trained_here + dtype.itemsize * frozen_here
    gradients = master * trained_here
    moments = 2 * master * trained_here
    gathered = 0
    if step.world_size > 1:
        gathered = dtype.itemsize * largest_group(config, stage.what, lora_rank)

    held = activations(config, stage.what, lora_rank, step)
    start_of_backward = held["activations"] + max(held["loss"], held["block"])
    end_of_backward = gradients + held["block"]
    if step.accumulation > 1:
        moving = gradients + start_of_backward
    else:
        moving = max(start_of_backward, end_of_backward)
    peak = weights + gathered + moments + moving

    return {
        "stage": stage.what,
        "trained": trained,
        "share": trained / (trained + frozen),
        "weights": weights,
        "gathered": gathered,
        "gradients": gradients,
        "optimizer": moments,
        **held,
        "flops_per_token": flops_per_token(config, stage.what, lora_rank, seq_len),
        "hardware": flops_per_token(config, stage.what, lora_rank, seq_len, step.recompute),
        "peak": peak,
        "needed": peak + OUTSIDE[step.device],
    }


def table(
    config,
    stages: list[Stage],
    lora_rank: int,
    seq_len: int,
    dtype: torch.dtype,
    optimizer: str,
    **how,
) -> str:
    """Two tables of the stages: what each trains and computes, and what each process holds. `how`:
    the other fields of Step."""
    step = Step(seq_len, dtype, optimizer, **how)
    costs = [cost(config, stage, lora_rank, seq_len, dtype, optimizer, **how) for stage in stages]

    # What each stage trains and computes.
    lines = [
        f"{'stage':<14}{'tokens':>10}{'peak lr':>9}{'trained':>16}{'share':>9}"
        "  GFLOP/token  with recompute"
    ]
    for stage, c in zip(stages, costs, strict=True):
        lines.append(
            f"{stage.what:<14}"
            f"{stage.tokens / 1e6:>9.4g}M"
            f"{stage.peak_lr:>9.1e}"
            f"{c['trained']:>16,}"
            f"{c['share']:>9.2%}"
            f"{c['flops_per_token'] / 1e9:>13.4g}"
            f"{c['hardware'] / 1e9:>16.4g}"
        )

    # What each process holds.
    columns = [
        "weights", "gathered", "optimizer", "gradients", "activations", "loss", "block", "peak"
    ]
    if step.device == "cuda":
        columns.append("needed")
    lines.append("")
    lines.append(f"{'GB per process':<14}" + "".join(f"{name:>13}" for name in columns))
    for c in costs:
        figures = "".join(f"{c[name] / 1e9:>13.3f}" for name in columns)
        lines.append(f"{c['stage']:<14}{figures}")

    lines += legend(step)
    return "\n".join(lines)


def legend(step: Step) -> list[str]:
    """The lines below the tables: what the peak consists of, and how a step is split."""
    start = "activations + the larger of loss and block"
    if step.accumulation > 1:
        moving = f"gradients + {start}"
    else:
        moving = f"the larger of ({start}) and (gradients + block)"
    lines = [f"peak = weights + gathered + optimizer + {moving}"]
    if step.device == "cuda":
        outside = OUTSIDE["cuda"] / 1e9
        lines.append(
            f"needed = peak + {outside:g} GB for the CUDA context and the libraries' workspaces"
        )
        lines.append("GB are 10^9 bytes: a GPU of 80 GB has 85 of them, an H200 has 150")

    master = MASTER[step.optimizer].itemsize
    tokens = step.world_size * step.accumulation * step.tokens
    lines += [
        f"bytes per parameter: trained {master}, gradient {master}, moments {2 * master}; "
        f"frozen {step.dtype.itemsize}",
        f"activations of a micro-batch of {step.tokens:,} tokens; recomputed: {step.recompute}",
        f"a step: {step.world_size} processes x {step.accumulation} micro-batches x "
        f"{step.micro_batch} windows x {step.seq_len:,} = {tokens:,} tokens",
    ]
    return lines


# ------------------------------------------------------------------------------------- this machine


def matmul_rate(device: str, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measure the FLOP/s of a large matmul on this machine for at least `seconds`, as the reference
    for utilisation. (A GPU that has been busy for a second clocks lower than an idle one.)"""
    on_gpu = device == "cuda"
    n = 8192 if on_gpu else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    b = torch.randn(n, n, device=device, dtype=dtype)
    F.linear(a, b)  # the first call loads the library
    if on_gpu:
        torch.cuda.synchronize()

    # Queue several matmuls before waiting, so that the GPU is not idle in between.
    queued = 8 if on_gpu else 1
    matmuls = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(queued):
            F.linear(a, b)
        matmuls += queued
        if on_gpu:
            torch.cuda.synchronize()
    return 2 * n**3 * matmuls / (time.perf_counter() - start)
