"""Week 4: the rotation in two layouts, attention with and without a cache, a stage's bytes.

python -m pytest exercises/test_week4.py
"""
import math

import pytest
import torch

import kernels
import model
from common import plan
from kernels.rotary import rope_frequencies

SOLAR = model.Config(
    vocab_size=49072,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=4096,
)


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def tiny(**changes) -> model.Llama:
    """A random Llama with grouped queries. Its weights are large, or attention would be uniform."""
    values = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return model.Llama(model.Config(**{**values, **changes})).eval()


def sentence(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(1))


def angles(positions: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    turned = torch.outer(torch.arange(positions).float(), rope_frequencies(width, 10000.0))
    return turned.cos(), turned.sin()


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------- two layouts


def interleaved(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """The layout of Meta's own checkpoints: neighbours 2i and 2i + 1 are one complex number."""

    def turn(x):
        numbers = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(numbers * torch.complex(cos, sin)).flatten(-2)

    return turn(q), turn(k)


def halves(width: int) -> torch.Tensor:
    """Where each component of the rotate-half layout stands in the interleaved one; halves(8) is
    your prediction."""
    return torch.arange(width).view(-1, 2).t().flatten()


both_turns = pytest.mark.parametrize(
    "turn",
    [kernels.rope_reference, kernels.rope],
    ids=["definition", "what_the_model_runs"],
)


@both_turns
def test_a_quarter_turn_by_hand(turn):
    """Four components are two pairs, (1, 3) and (2, 4). The first turns by 90 degrees, the second
    stays."""
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    cos = torch.tensor([[0.0, 1.0]])
    sin = torch.tensor([[1.0, 0.0]])
    q, k = turn(x, 10 * x, cos, sin)
    assert q.flatten().tolist() == [-3, 2, 1, 4]
    assert k.flatten().tolist() == [-30, 20, 10, 40]


@both_turns
@pytest.mark.parametrize("width", [2, 8, 64])
def test_a_permutation_leads_from_one_layout_to_the_other(turn, width):
    q = torch.randn(2, 4, 9, width)
    k = torch.randn(2, 2, 9, width)
    cos, sin = angles(9, width)
    order = halves(width)
    q_expected, k_expected = interleaved(q, k, cos, sin)
    q_got, k_got = turn(q[..., order], k[..., order], cos, sin)
    same(q_got, q_expected[..., order])
    same(k_got, k_expected[..., order])


def test_only_the_distance_counts():
    """A query at s meets a key at t in an inner product that depends on s - t: here always 3."""
    cos, sin = angles(50, 16)
    q = torch.randn(1, 1, 1, 16).expand(-1, -1, 50, -1)
    k = torch.randn(1, 1, 1, 16).expand(-1, -1, 50, -1)
    q, k = kernels.rope(q, k, cos, sin)
    products = (q[0, 0, 3:] * k[0, 0, :-3]).sum(-1)
    same(products, products[0].expand(47))


def test_a_checkpoint_of_the_other_layout_needs_its_rows_permuted(monkeypatch):
    """The same model twice: as it is, and with interleaved rotation and the rows of q_proj and
    k_proj moved to match. Without moving them there is no error, only other numbers."""
    llama = tiny()
    tokens = sentence()
    expected = llama(tokens)
    monkeypatch.setattr(kernels, "rope", interleaved)
    assert not torch.allclose(llama(tokens), expected, atol=0.1)
    back = halves(8).argsort()
    for block in llama.model.layers:
        for matrix in (block.self_attn.q_proj, block.self_attn.k_proj):
            matrix.weight.data = matrix.weight.data.view(-1, 8, 32)[:, back].reshape(-1, 32)
    same(llama(tokens), expected)


# -------------------------------------------------------------------------- attention and its cache


def test_attention_by_hand():
    """Every projection is the identity, and nothing is turned. The second position scores 0 against
    the first and a² / √2 = log 3 against itself: weights 1/4 and 3/4."""
    attention = model.Attention(
        tiny(hidden_size=2, num_attention_heads=1, num_key_value_heads=1, head_dim=2).config, 0
    )
    for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        matrix.weight.data = torch.eye(2)
    a = math.sqrt(math.log(3) * math.sqrt(2))
    out = attention(torch.tensor([[[1.0, 0.0], [0.0, a]]]), torch.ones(2, 1), torch.zeros(2, 1))
    same(out[0], torch.tensor([[1.0, 0.0], [0.25, 0.75 * a]]))


def test_nobody_sees_the_future():
    llama = tiny()
    tokens = sentence()
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 64
    a = llama(tokens)
    b = llama(changed)
    same(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:], atol=0.1)


def test_query_heads_share_keys_in_order():
    """Heads 0 and 1 read the first key-value head, 2 and 3 the second: as if each stood there
    twice."""
    grouped = tiny()
    whole = tiny(num_key_value_heads=4)
    weights = grouped.state_dict()
    for name in [n for n in weights if n.endswith(("k_proj.weight", "v_proj.weight"))]:
        weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32)
    whole.load_state_dict(weights)
    same(whole(sentence()), grouped(sentence()))


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 1, 5], [1, 11], [11, 1]], ids=str)
def test_logits_with_a_cache_equal_those_without(pieces):
    llama = tiny()
    tokens = sentence()
    cache = model.Cache(llama.config, 2, 12, "cpu", torch.float32)
    parts = [llama.lm_head(llama.hidden(piece, cache)) for piece in tokens.split(pieces, dim=1)]
    same(torch.cat(parts, 1), llama(tokens))


def test_a_cache_fills_from_the_left_layer_by_layer():
    cache = model.Cache(tiny().config, 1, 5, "cpu", torch.float32)
    first = torch.randn(2, 1, 2, 3, 8)
    second = torch.randn(2, 1, 2, 2, 8)
    for part in (first, second):
        for layer in range(3):
            keys, values = cache.extend(layer, *(part + layer))
        cache.used += part.shape[3]
    assert torch.equal(keys, torch.cat((first[0], second[0]), 2) + 2)
    assert torch.equal(values, torch.cat((first[1], second[1]), 2) + 2)
    assert torch.equal(cache.keys[0, :, :, :3], first[0])


def test_only_the_positions_that_are_asked_for_come_out():
    llama = tiny()
    tokens = sentence()
    positions = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 11])
    same(llama.hidden(tokens, positions=positions), llama.hidden(tokens)[positions])


def test_generating_with_a_cache_takes_the_tokens_that_whole_passes_take():
    llama = tiny()
    tokens = sentence(length=4)
    slow = tokens
    for _ in range(10):
        slow = torch.cat((slow, llama(slow)[:, -1:].argmax(-1)), 1)
    assert torch.equal(llama.generate(tokens, 10, temperature=0), slow)


# --------------------------------------------------------------------------------- bytes of a stage


@pytest.mark.parametrize("what", ["embed", "odd", "lora", "full"])
def test_bytes_are_those_of_a_model_that_took_a_step(what):
    """Frozen weights are bfloat16; trained ones are float32, with a gradient and two moments. What
    a model holds after a step is what cost() says."""
    llama = tiny()
    if what == "lora":
        model.add_lora(llama, 4, 4)
    for name, p in llama.named_parameters():
        p.requires_grad_(bool(plan.is_trained(name, what)))
        p.data = p.data.to(torch.float32 if p.requires_grad else torch.bfloat16)
    trained = [p for p in llama.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    c = plan.cost(llama.config, plan.Stage(what, 1, 1e-3), 4, 8, torch.bfloat16)
    assert (c["stage"], c["trained"]) == (what, sum(p.numel() for p in trained))
    assert c["share"] == c["trained"] / sum(p.numel() for p in llama.parameters())
    assert c["weights"] == sum(p.nbytes for p in llama.parameters())
    assert c["gradients"] == sum(p.grad.nbytes for p in trained)
    assert c["optimizer"] == sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim()
    )


def test_solar_by_hand():
    """What half of the layers of a 10.9B model take, if you counted as the page asks."""
    c = plan.cost(SOLAR, plan.Stage("odd", 10**9, 1e-4), 128, 2048, torch.bfloat16)
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096 + 2 * 4096
    assert c["trained"] == 24 * layer == 5_234_688_000
    assert c["weights"] + c["gradients"] + c["optimizer"] == 95_028_387_840


def test_each_of_several_processes_holds_its_rows_of_every_parameter():
    """Each of N processes holds ceil(rows / N) rows, and gathers one group at a time. A single
    process gathers nothing."""
    stage = plan.Stage("full", 1, 1e-3)
    alone, c = (plan.cost(tiny().config, stage, 4, 8, torch.bfloat16, world_size=n) for n in (1, 3))
    rows = {name: -(-p.shape[0] // 3) * p[0].numel() for name, p in tiny().named_parameters()}
    assert (c["weights"], c["gradients"], c["optimizer"]) == tuple(
        n * sum(rows.values()) for n in (4, 4, 8)
    )
    assert alone["gathered"] == 0 < c["gathered"] and c["trained"] == alone["trained"]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_peak(accumulation):
    """With several micro-batches the gradients of the earlier ones are held beside the activations;
    with one, gradients appear as activations are freed."""
    for recompute in ("none", "full"):
        c = plan.cost(
            SOLAR,
            plan.Stage("full", 1, 1e-3),
            128,
            2048,
            torch.bfloat16,
            recompute=recompute,
            micro_batch=4,
            accumulation=accumulation,
        )
        high = c["activations"] + max(c["loss"], c["block"])
        high = c["gradients"] + high if accumulation > 1 else max(high, c["gradients"] + c["block"])
        assert c["peak"] == c["weights"] + c["optimizer"] + high
