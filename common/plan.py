"""What a stage trains, and what that costs in bytes and FLOPs: arithmetic alone, nothing is allocated.

RedWhale (2408.11294, section 3.4) fits a 10.7B model on one GPU by training a part at a time. A stage is written
`what:tokens:peak_lr`, and `what` is one of

    embed      the input embedding and the head             odd, even  layers 1, 3, 5, … and layers 0, 2, 4, …
    new_rows   only the rows that init.py added to them     body       all layers and the final norm
    lora       a LoRA beside every matrix of every layer    full       everything
    sft        everything, on the responses of dialogues whose prompts are given (data.py pack --prompt_field)

or a union, `odd+embed`. A LoRA joins only with embed (its matrices are frozen by definition).

**Weights, gradients, Adam's moments.** A trained parameter is a float32 master (4 bytes), its gradient (4) and two
moments (8): 16 bytes; or all four in bfloat16 (kernels/adamw.py): 8. A frozen one is held in the compute type: 4 bytes,
or 2 in bfloat16. So 10.7B parameters trained at once need 171 GB before any activation, and half of the layers a good
half of that: which is why there are stages. Gradients used as soon as they exist (update_in_backward) are those of one
parameter. Of N processes each holds ceil(rows / N) rows of every parameter, its gradient and moments, and besides one
group gathered in the compute type: the largest of a block, the embedding and the head (parallel.py). What is on its way
(the next group, the gradients of the one before) and what libraries take for themselves is not counted.

**Activations**, elements a token that one block keeps for its backward pass (letters as in model.py; a figure in
brackets only where the block's matrices, or a LoRA beside them, are trained: only a trained matrix needs its input):

    attention      D the stream (the norm's input)  [D the normed stream]  HE + 2KE queries, keys, values
                   HE attention's output  [HE its contiguous copy, on a CPU]
    feed-forward   D the stream  [D the normed stream]  2F gate and up  [F their product]

and in float32 one number a norm and one a head; a LoRA keeps its rank, for each of the seven matrices. A master that is
not of the compute type leaves a copy of itself that is, in this one's bytes (not when sharded: the gathered group is).
Below the lowest trained parameter nothing is kept. Recomputing "attention" keeps the stream instead of the first line;
"full" keeps the stream instead of both, and one block at a time (`block`) has them again, with the gradients of gate,
up and their product. Norm and head keep D, and the loss a chunk of logits, their weight's gradient in float32, and 2D.

**The peak** is reached at the loss, or in the first block of the backward pass, and gradients of earlier micro-batches
lie beside the activations of this one. With a single micro-batch gradients come as activations go, so it is there or at
the end of the backward pass. `needed` adds what lies outside PyTorch's allocator. Not modelled: what torch.compile
keeps.

**FLOPs a token**, forward and backward: 2 a parameter forward; 2 more for the gradient of the input, if anything below
is trained; 2 more for the gradient of the weight, if it is trained itself. So 6 for a trained matrix, 4 for a frozen
one that gradients pass through, 2 for a frozen one below everything trained. Attention adds 2·T·H·E forward in each
layer (causal: half of the score matrix), twice that backward. What is computed again adds its forward, but for its last
product, whose result no gradient needs.
"""
import dataclasses
import math
import re
import time

import torch

import model
from common.cli import UserError
from kernels.loss import chunk_budget

MASTER = {"adamw": torch.float32, "adamw_bf16": torch.bfloat16}  # type of a trained weight, its gradient and moments
# Bytes of a GPU's memory that PyTorch's allocator does not give out: the CUDA context with its compiled kernels (about
# 0.6 GB), and what cuBLAS and cuDNN take as workspace.
OUTSIDE = {"cpu": 0, "cuda": 2 * 10**9}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
PARTS = ("embed", "new_rows", "odd", "even", "body", "lora", "full", "sft")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One entry of --stages: what is trained, for how many tokens, up to which learning rate."""
    what: str
    tokens: int
    peak_lr: float

    @property
    def parts(self) -> list[str]:
        """The members of the union."""
        return self.what.split("+")


@dataclasses.dataclass(frozen=True)
class Step:
    """How each process computes an optimizer step: `accumulation` micro-batches of `micro_batch` windows."""
    seq_len: int
    dtype: torch.dtype                  # of activations, products and frozen weights
    optimizer: str = "adamw"
    micro_batch: int = 1
    accumulation: int = 1
    world_size: int = 1
    recompute: str = "none"             # or "attention", or "full"
    device: str = "cpu"
    update_in_backward: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.micro_batch * self.seq_len


def parse_stage(text: str) -> Stage:
    """`embed:200M:2e-4` → Stage("embed", 200_000_000, 2e-4). UserError says which field is wrong.

    >>> parse_stage("odd+embed:1.5M:1e-4")
    Stage(what='odd+embed', tokens=1500000, peak_lr=0.0001)
    """
    fields = text.split(":")
    if len(fields) != 3:
        raise UserError(f"stage {text!r} is not what:tokens:peak_lr, such as embed:200M:2e-4")
    what, tokens, lr = fields
    for part in what.split("+"):
        if part not in PARTS:
            raise UserError(f"stage {text!r}: there is no part {part!r}; there are {', '.join(PARTS)}")
    others = set(what.split("+")) - {"lora", "embed"}
    if "lora" in what.split("+") and others:
        raise UserError(f"stage {text!r}: lora joins only with embed, not with {', '.join(sorted(others))}")
    if "new_rows" in what.split("+") and {"embed", "full", "sft"} & set(what.split("+")):
        raise UserError(f"stage {text!r}: new_rows keeps the old rows as they are, embed and full train them; choose")
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMB]?)", tokens)
    if not number or float(number[1]) == 0:
        raise UserError(f"stage {text!r}: {tokens!r} is not a number of tokens, such as 500k, 200M or 1.2B")
    try:
        peak_lr = float(lr)
    except ValueError:
        peak_lr = 0.0
    if not 0 < peak_lr < 1:
        raise UserError(f"stage {text!r}: {lr!r} is not a learning rate between 0 and 1, such as 2e-4")
    scale = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}[number[2]]
    return Stage(what, round(float(number[1]) * scale), peak_lr)


def is_trained(name: str, what: str) -> bool:
    """Does a stage train the parameter of this name? (new_rows trains its two tables: their old rows are masked.)"""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return any(part in ("full", "sft")
               or part in ("embed", "new_rows") and name in TABLES
               or part == "body" and name not in TABLES
               or part == "odd" and layer and int(layer[1]) % 2 == 1
               or part == "even" and layer and int(layer[1]) % 2 == 0
               or part == "lora" and name.endswith(("lora_A", "lora_B"))
               for part in what.split("+"))


def shapes(config: model.Config, what: str, lora_rank: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter that exists while a stage runs, the LoRA's included. Nothing is allocated."""
    with torch.device("meta"):
        llama = model.Llama(config)
        if "lora" in what.split("+"):
            model.add_lora(llama, lora_rank, lora_rank)
    return {name: tuple(p.shape) for name, p in llama.named_parameters()}


def layers(config: model.Config, what: str, lora_rank: int) -> list[list[tuple[str, int, bool]]]:
    """(name, elements, trained?) of the matrices of each layer, in the order of computation; the head comes last. Of
    studies/moe.py's experts a token meets one: each counts for its share."""
    found = [[] for _ in range(config.num_hidden_layers + 1)]
    for name, shape in shapes(config, what, lora_rank).items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if len(shape) == 2 and (layer or name == "lm_head.weight"):
            met = shape[0] * shape[1] // (config.num_experts if ".experts." in name else 1)
            found[int(layer[1]) if layer else -1].append((name, met, bool(is_trained(name, what))))
    if config.tie_word_embeddings:
        found[-1] = [("lm_head.weight", config.vocab_size * config.hidden_size, bool(is_trained(TABLES[0], what)))]
    return found


def flops_per_token(config: model.Config, what: str, lora_rank: int, seq_len: int,
                    recompute: str | bool = "none") -> float:
    """FLOPs of one token, forward and backward, at this sequence length; see the module docstring for the factors.
    `recompute` as in Step; True is "full", False "none"."""
    part = {"none": None, False: None, "attention": ".self_attn.", "full": ".layers.", True: ".layers."}[recompute]
    scores = 2 * seq_len * config.num_attention_heads * config.head_dim
    total, below = 0.0, is_trained(TABLES[0], what)  # below: is there anything trained further down?
    for matrices in layers(config, what, lora_rank):
        attention = scores if ".layers." in matrices[0][0] else 0
        below = below or any(trained for _, _, trained in matrices)
        # the gradient of a layer's inner inputs is needed as soon as one of its own matrices is trained
        forward = 2 * sum(n for _, n, _ in matrices) + attention
        backward = (forward + attention) * below + 2 * sum(n for _, n, trained in matrices if trained)
        again = [2 * n for name, n, _ in matrices if below and part and part in name]  # the last one is left out
        total += forward + backward + (sum(again[:-1]) + attention if again else 0)
    return total


def block_activations(config: model.Config, matrices: list[tuple[str, int, bool]], below: bool,
                      step: Step) -> tuple[int, int]:
    """Bytes that a block keeps for its backward pass: attention's (with its norm), and the feed-forward's."""
    lora = [n for name, n, _ in matrices if name.endswith("lora_A")]
    trained = any(t for _, _, t in matrices)      # a matrix, or a LoRA beside it: either needs its input
    flows = below or trained and not lora         # into attention's norm: its own weight is trained with the matrices
    if not (below or trained):
        return 0, 0
    D, F, s = config.hidden_size, config.intermediate_size, step.dtype.itemsize
    Q, K = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    rank = lora[0] // D if lora else 0
    copied = trained and step.device == "cpu"
    attention = (s * (flows * D + trained * D + 2 * Q + 2 * K + copied * Q + 4 * rank)
                 + 4 * (flows + config.num_attention_heads))
    feed_forward = s * (D + trained * D + 2 * F + trained * F + 3 * rank) + 4
    casts = {True: 0, False: 0}
    if MASTER[step.optimizer] != step.dtype and step.world_size == 1:
        for name, n, t in matrices:  # for the gradient of its input, which the lowest LoRA's first products do not need
            first = name.endswith(("q_proj.lora_A", "k_proj.lora_A", "v_proj.lora_A"))
            casts[".self_attn." in name] += s * n * (t and (flows or not first))
    return step.tokens * attention + casts[True], step.tokens * feed_forward + casts[False]


def activations(config: model.Config, what: str, lora_rank: int, step: Step) -> dict[str, int]:
    """Bytes beside weights, gradients and moments. `activations`: what the forward pass of a micro-batch keeps below
    the head; `loss`: what the head and the loss hold; `block`: what the backward pass of one block adds."""
    N, D, V, s = step.tokens, config.hidden_size, config.vocab_size, step.dtype.itemsize
    *blocks, [(_, head, head_trained)] = layers(config, what, lora_rank)
    rope = 4 * config.head_dim * max(step.seq_len, min(config.max_position_embeddings, 4096))
    saved = rope + 8 * (N + step.micro_batch) + N * (D * s + 4)             # tables, token ids, the final norm
    again, below = 0, is_trained(TABLES[0], what)
    for matrices in blocks:
        attention, feed_forward = block_activations(config, matrices, below, step)
        if feed_forward:
            kept = {"none": attention + feed_forward, "attention": N * D * s + feed_forward, "full": N * D * s}
            saved += kept[step.recompute]
            freed = any(trained for _, _, trained in matrices)  # gate and up's product, let go before their gradients
            again = max(again, attention + feed_forward - kept[step.recompute]
                        + (3 - freed) * N * config.intermediate_size * s)
        below = below or any(trained for _, _, trained in matrices)
    budget = chunk_budget(step.device, V, D, s, head_trained)
    wide = 4 if step.device == "cpu" and s < 4 else 0
    chunk, beside = min(budget // (s + wide), N * V), 0                     # logits; what a CPU holds beside them:
    if step.device == "cpu" and s < 4:
        beside = max(chunk * wide, head_trained * head * s)                 # a float32 copy; then a share of dW
    elif step.device == "cpu":
        beside = head_trained * (chunk + head) * s                          # a transposed copy, and a share of dW
    cast = s if MASTER[step.optimizer] != step.dtype and step.world_size == 1 else 0
    loss = chunk * s + beside + 2 * N * D * s + head_trained * head * (4 + cast)
    return {"activations": saved, "loss": loss, "block": again}


def gathered(config: model.Config, sizes: dict[str, tuple[int, ...]]) -> int:
    """Elements of the largest group of parameters that several processes gather at once, grouped as in parallel.py."""
    groups: dict[str, int] = {}
    for name, shape in sizes.items():
        layer = re.match(r"model\.layers\.\d+\.", name)
        ends = "head" if name != TABLES[0] or config.tie_word_embeddings else "embedding"
        groups[layer[0] if layer else ends] = groups.get(layer[0] if layer else ends, 0) + math.prod(shape)
    return max(groups.values())


def cost(config: model.Config, stage: Stage, lora_rank: int, seq_len: int, dtype: torch.dtype,
         optimizer: str = "adamw", **how) -> dict:
    """A stage's parameters, the bytes that each process holds, and FLOPs a token (`hardware`: with what is computed
    again). `how`: the fields of Step. Weights, gradients and moments are exact; the rest is by the factors above."""
    step, each = Step(seq_len, dtype, optimizer, **how), MASTER[optimizer].itemsize
    sizes = shapes(config, stage.what, lora_rank)
    whole, mine = {True: 0, False: 0}, {True: [], False: []}  # elements of the model; of each parameter, on one process
    for name, shape in sizes.items():
        trained = bool(is_trained(name, stage.what))
        whole[trained] += math.prod(shape)
        mine[trained].append(-(-shape[0] // step.world_size) * math.prod(shape[1:]))
    here = sum(mine[True])
    c = {"stage": stage.what, "trained": whole[True], "share": whole[True] / sum(whole.values()),
         "weights": each * here + dtype.itemsize * sum(mine[False]),
         "gathered": dtype.itemsize * gathered(config, sizes) if step.world_size > 1 else 0,
         "gradients": each * (max(mine[True]) if step.update_in_backward else here), "optimizer": 2 * each * here,
         **activations(config, stage.what, lora_rank, step),
         "flops_per_token": flops_per_token(config, stage.what, lora_rank, seq_len),
         "hardware": flops_per_token(config, stage.what, lora_rank, seq_len, step.recompute)}
    before = c["gradients"] if step.accumulation > 1 else 0
    c["peak"] = c["weights"] + c["gathered"] + c["optimizer"] + max(
        before + c["activations"] + max(c["loss"], c["block"]), c["gradients"] + c["block"])
    c["needed"] = c["peak"] + OUTSIDE[step.device]
    return c


def table(config: model.Config, stages: list[Stage], lora_rank: int, seq_len: int, dtype: torch.dtype,
          optimizer: str, **how) -> str:
    """The stages as two tables: what each trains and computes, and what a process holds. `how`: the fields of Step."""
    step = Step(seq_len, dtype, optimizer, **how)
    costs = [cost(config, stage, lora_rank, seq_len, dtype, optimizer, **how) for stage in stages]
    held = ["weights", "gathered", "optimizer", "gradients", "activations", "loss", "block", "peak"]
    if step.device == "cuda":
        held.append("needed")
    lines = [f"{'stage':<14}{'tokens':>10}{'peak lr':>9}{'trained':>16}{'share':>9}  GFLOP/token  with recompute"]
    for stage, c in zip(stages, costs, strict=True):
        lines.append(f"{stage.what:<14}{stage.tokens / 1e6:>9.4g}M{stage.peak_lr:>9.1e}{c['trained']:>16,}"
                     f"{c['share']:>9.2%}{c['flops_per_token'] / 1e9:>13.4g}{c['hardware'] / 1e9:>16.4g}")
    lines += ["", f"{'GB a process':<14}" + "".join(f"{name:>13}" for name in held)]
    lines += [f"{c['stage']:<14}" + "".join(f"{c[name] / 1e9:>13.3f}" for name in held) for c in costs]
    high = "activations + the larger of loss and block"
    together = f"gradients + {high}" if step.accumulation > 1 else f"the larger of ({high}) and (gradients + block)"
    master = MASTER[optimizer].itemsize
    lines.append(f"peak = weights + gathered + optimizer + {together}")
    if step.device == "cuda":
        lines.append(f"needed = peak + {OUTSIDE['cuda'] / 1e9:g} GB for the CUDA context and the libraries' workspaces")
        lines.append("GB are 10^9 bytes: a GPU of 80 GB has 85 of them, an H200 has 150")
    lines += [f"bytes a parameter: trained {master}, gradient {master}, moments {2 * master}; frozen {dtype.itemsize}",
              f"activations of a micro-batch of {step.tokens:,} tokens; computed again: {step.recompute}",
              f"a step: {step.world_size} processes x {step.accumulation} micro-batches x {step.micro_batch} windows x "
              f"{seq_len:,} = {step.world_size * step.accumulation * step.tokens:,} tokens"]
    return "\n".join(lines)


def matmul_rate(device: str, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of a large matmul on this machine now, for at least so long: what utilisation is measured against. A GPU
    that has worked for a second clocks lower than one that has rested."""
    on_gpu = device == "cuda"
    n = 8192 if on_gpu else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    b = torch.randn(n, n, device=device, dtype=dtype)
    torch.nn.functional.linear(a, b)  # the first one loads the library
    if on_gpu:
        torch.cuda.synchronize()

    matmuls = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        # Several are queued before we wait, so that the GPU does not stand still between two of them.
        for _ in range(8 if on_gpu else 1):
            torch.nn.functional.linear(a, b)
            matmuls += 1
        if on_gpu:
            torch.cuda.synchronize()
    return 2 * n**3 * matmuls / (time.perf_counter() - start)
