"""What a stage trains, and what that costs in bytes and FLOPs: arithmetic alone, nothing is allocated.

RedWhale (2408.11294, section 3.4) fits a 10.7B model on one GPU by training a part at a time. A stage is written
`what:tokens:peak_lr`, and `what` is one of

    embed      the input embedding and the head             odd, even  layers 1, 3, 5, … and layers 0, 2, 4, …
    new_rows   only the rows that init.py added to them     body       all layers and the final norm
    lora       a LoRA beside every matrix of every layer    full       everything
    sft        everything, on the responses of dialogues whose prompts are given (data.py pack --prompt_field)

or a union, `odd+embed`. A LoRA joins only with embed (its matrices are frozen by definition).

What Adam costs: a trained parameter is a float32 master (4 bytes), its gradient (4) and two moments (8): 16 bytes; or
all four in bfloat16 (kernels/adamw.py): 8. A frozen one is held in the compute type: 4 bytes, or 2 in bfloat16. So
10.7B parameters trained at once need 171 GB before any activation, and half of the layers a good half of that: which
is why there are stages.

FLOPs a token, forward and backward: 2 a parameter forward; 2 more for the gradient of the input, if anything below is
trained; 2 more for the gradient of the weight, if it is trained itself. So 6 for a trained matrix, 4 for a frozen one
that gradients pass through, 2 for a frozen one below everything trained. Attention adds 2·T·H·E forward in each layer
(causal: half of the score matrix), twice that backward.
"""
import dataclasses
import re
import time

import torch

import model
from cli import UserError

MASTER = {"adamw": torch.float32, "adamw_bf16": torch.bfloat16}  # type of a trained weight, its gradient and moments
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


def flops_per_token(config: model.Config, what: str, lora_rank: int, seq_len: int, recompute: bool = False) -> float:
    """FLOPs of one token, forward and backward, at this sequence length; see the module docstring for the factors."""
    sizes: dict[int, list[tuple[int, bool]]] = {}  # layer → (elements, trained?) of each matrix; the head comes last
    head = config.num_hidden_layers
    for name, shape in shapes(config, what, lora_rank).items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if len(shape) == 2 and (layer or name == "lm_head.weight"):
            sizes.setdefault(int(layer[1]) if layer else head, []).append((shape[0] * shape[1], is_trained(name, what)))
    if config.tie_word_embeddings:
        sizes[head] = [(config.vocab_size * config.hidden_size, is_trained(TABLES[0], what))]
    attention = 2 * seq_len * config.num_attention_heads * config.head_dim
    total, below = 0.0, is_trained(TABLES[0], what)  # below: is there anything trained further down?
    for layer in range(head + 1):
        mine = any(trained for _, trained in sizes[layer])
        forward = 2 * sum(n for n, _ in sizes[layer]) + (attention if layer < head else 0)
        # the gradient of a layer's inner inputs is needed as soon as one of its own matrices is trained
        backward = forward * (1 if below or mine else 0)
        backward += attention * (layer < head and (below or mine))                # scores' gradient: two products
        backward += 2 * sum(n for n, trained in sizes[layer] if trained)
        total += forward + backward + (forward if recompute and layer < head else 0)
        below = below or mine
    return total


def cost(config: model.Config, stage: Stage, lora_rank: int, seq_len: int, dtype: torch.dtype,
         optimizer: str = "adamw") -> dict:
    """A stage's parameters, bytes (weights, gradients, Adam's moments) and FLOPs a token; activations come on top."""
    count = {True: 0, False: 0}
    for name, shape in shapes(config, stage.what, lora_rank).items():
        count[is_trained(name, stage.what)] += torch.Size(shape).numel()
    trained, frozen, each = count[True], count[False], MASTER[optimizer].itemsize
    return {"stage": stage.what, "trained": trained, "share": trained / (trained + frozen),
            "weights": each * trained + dtype.itemsize * frozen, "gradients": each * trained,
            "optimizer": 2 * each * trained,
            "flops_per_token": flops_per_token(config, stage.what, lora_rank, seq_len)}


def table(config: model.Config, stages: list[Stage], lora_rank: int, seq_len: int, dtype: torch.dtype,
          optimizer: str) -> str:
    """The stages as a table: what each trains, for how long, and what it holds and computes."""
    lines = [f"{'stage':<14}{'tokens':>10}{'peak lr':>9}{'trained':>15}{'share':>8}{'weights':>10}{'gradients':>11}"
             f"{'optimizer':>11}{'in all':>9}   GFLOP/token"]
    for stage in stages:
        c = cost(config, stage, lora_rank, seq_len, dtype, optimizer)
        gb = [c[k] / 1e9 for k in ("weights", "gradients", "optimizer")]
        lines.append(f"{stage.what:<14}{stage.tokens / 1e6:>9.4g}M{stage.peak_lr:>9.1e}{c['trained']:>15,}"
                     f"{c['share']:>8.2%}{gb[0]:>8.3f}GB{gb[1]:>9.3f}GB{gb[2]:>9.3f}GB{sum(gb):>7.3f}GB"
                     f"{c['flops_per_token'] / 1e9:>14.4g}")
    return "\n".join(lines)


def matmul_rate(device: str, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of a large matrix product on this machine now: what utilisation is measured against."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.mm(a, b)
    sync()
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(a, b)
        sync()
        products += 1
    return 2 * n**3 * products / (time.perf_counter() - start)
