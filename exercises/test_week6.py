"""Week 6: a scorer by log-likelihood and its controls; gradients of cross-entropy and RMSNorm.

    python -m pytest exercises/test_week6.py

Triton runs in its interpreter. Without Triton its tests are skipped.
"""
import itertools
import math
import os
import re

import pytest
import torch

# Before anything imports triton: the kernel runs on the CPU, in NumPy.
os.environ["TRITON_INTERPRET"] = "1"

import eval_kobest as kobest  # noqa: E402
import kernels  # noqa: E402
import model  # noqa: E402
from common import cli  # noqa: E402
from kernels import launch, norm  # noqa: E402
from kernels import loss as lce  # noqa: E402

BOS = 1


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)
    yield
    kernels.use("auto")


def tiny(positions: int = 64) -> model.Llama:
    """A random Llama of forty words, with opinions: its weights are large."""
    torch.manual_seed(0)
    return model.Llama(
        model.Config(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=positions,
            initializer_range=0.3,
        )
    ).eval()


def score(requests: list, positions: int = 64) -> list[float]:
    return kobest.loglikelihoods(tiny(positions), requests, 256)


def some_requests(n: int = 12) -> list:
    """Contexts and answers of several lengths. Some contexts come twice, as a question's do."""
    contexts = [[BOS, *torch.randint(3, 40, (5 + i,)).tolist()] for i in range(n // 2)]
    return [(contexts[i // 2], torch.randint(3, 40, (1 + i % 3,)).tolist()) for i in range(n)]


# -------------------------------------------------------------------------- a log-likelihood scorer


def words(text: str) -> list[int]:
    """A toy tokenizer: BOS, then a word with the spaces before it is a token, and so are spaces at
    the end."""
    return [BOS, *(3 + sum(map(ord, word)) % 37 for word in re.findall(r"\s*\S+|\s+$", text))]


@pytest.mark.parametrize("spaces", ["", " ", "   "], ids=["none", "one", "three"])
def test_the_spaces_at_the_end_go_to_the_answer(spaces):
    """In running text a word comes with its space. A context that ends in one would ask for a word
    without it."""
    answers = ["예", "아니오 아니오"]  # yes; no no
    example = kobest.Example(1, "답변:" + spaces, answers, 0)  # "answer:"
    pairs = kobest.encode(words, example)
    assert [context for context, _ in pairs] == [words("답변:")] * 2
    expected = [words(spaces + " " + answer)[1:] for answer in answers]
    assert [answer for _, answer in pairs] == expected


def test_an_answer_is_encoded_with_its_context():
    """Letter by letter, but "b " is one token: it swallows the space, and the answer is what comes
    after the cut."""

    def letters(text):
        return [BOS, *(ord(piece[0]) for piece in re.findall("b |.", text))]

    pairs = kobest.encode(letters, kobest.Example(1, "ab", ["c"], 0))
    expected = [([BOS, ord("a"), ord("b")], [ord("c")])]
    assert pairs == expected, "the answer alone would be a space and c"


def test_scores_are_those_of_a_plain_forward_pass():
    llama = tiny().double()
    requests = some_requests()
    llama.compute_dtype = torch.float64
    expected = []
    for context, answer in requests:
        logp = llama(torch.tensor([context + answer]))[0].log_softmax(-1)
        total = 0.0
        for i, token in enumerate(answer):
            total += float(logp[len(context) + i - 1, token].detach())
        expected.append(total)
    assert score(requests) == pytest.approx(expected, abs=1e-3)


def test_all_answers_of_one_token_share_the_probability():
    """Whatever the context, exp(score) of every word of the vocabulary sums to 1."""
    scores = score([([BOS, 7, 9], [token]) for token in range(40)])
    assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-4)


def test_the_chain_rule():
    """log p(5 6 7 | 9) = log p(5 | 9) + log p(6 | 9 5) + log p(7 | 9 5 6)."""
    parts = [([BOS, 9], [5]), ([BOS, 9, 5], [6]), ([BOS, 9, 5, 6], [7])]
    whole, *parts = score([([BOS, 9], [5, 6, 7]), *parts])
    assert whole == pytest.approx(sum(parts), abs=1e-3)


def test_what_is_too_long_loses_its_beginning():
    """A model of 8 positions reads 8 tokens and predicts the ninth: of context and answer together
    the last 9 stay."""
    context = [BOS, *range(3, 20)]
    long, short = score([(context, [5, 6]), (context[-7:], [5, 6])], positions=8)
    assert long == pytest.approx(short, abs=1e-4)


def examples(n: int, label) -> list:
    """Questions ("word word … no. i") with the same two answers, yes and no; label(i) says which is
    right."""
    result = []
    for i in range(n):
        context = "말 " * (i % 5) + f"{i}번"
        result.append(kobest.Example(i + 1, context, ["예", "아니오"], label(i)))
    return result


def test_evaluate_finds_the_likeliest_answer():
    asked = examples(20, lambda i: i % 2)
    result = kobest.evaluate(tiny(), words, "boolq", asked, 256)
    for example, row in zip(asked, result["examples"], strict=True):
        expected = score(kobest.encode(words, example))
        assert row["loglikelihoods"] == pytest.approx(expected, abs=1e-3)
        assert row["prediction"] == row["loglikelihoods"].index(max(row["loglikelihoods"]))
    right = [row for row in result["examples"] if row["prediction"] == row["label"]]
    assert result["acc"] == len(right) / 20
    assert {row["prediction"] for row in result["examples"]} == {0, 1}
    assert result["version"] == 1.0 and result["truncated"] == 0


def test_the_control_knows_nothing_of_the_question():
    """With BOS for a context the same answers get the same scores, so the accuracy is the share of
    one label."""
    asked = examples(20, lambda i: int(i >= 6))
    result = kobest.evaluate(tiny(), words, "boolq", asked, 256, context=[BOS])
    assert len({tuple(row["loglikelihoods"]) for row in result["examples"]}) == 1
    assert result["acc"] in (6 / 20, 14 / 20)


def test_what_cannot_be_scored_is_said():
    broken = tiny()
    broken.lm_head.weight.data[5] = torch.nan
    for llama, answer in ((broken, "예"), (tiny(positions=4), "예 " * 9)):
        with pytest.raises(cli.UserError, match="boolq, row 1"):
            example = kobest.Example(1, "말", [answer, "예"], 0)
            kobest.evaluate(llama, words, "boolq", [example], 256)


def test_mcnemar_by_counting_every_outcome():
    """Each of the n examples that changed went either way like a coin: how many of 2ⁿ outcomes are
    as lopsided?"""
    for lost, gained in itertools.product(range(6), range(6)):
        n = lost + gained
        as_lopsided = 0
        for coins in itertools.product((0, 1), repeat=n):
            if abs(2 * sum(coins) - n) >= abs(lost - gained):
                as_lopsided += 1
        expected = as_lopsided / 2**n
        assert kobest.mcnemar(lost, gained) == pytest.approx(expected), (lost, gained)


# ------------------------------------------------------------------------ head and loss in one pass


def head_and_loss(n: int = 23, dtype=torch.float32):
    """Hidden states, the head's weight, and targets of which every fourth does not count."""
    hidden = torch.randn(n, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 6, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 50, (n,))
    targets[::4] = -100
    return hidden, weight, targets


def test_two_classes_by_hand():
    """z = (0, 0), target 1: loss log 2, dz = (1/2, 1/2) - (0, 1). A row without a target gives
    nothing."""
    losses, dz = lce._softmax_torch(torch.zeros(2, 2), torch.tensor([1, -100]), True)
    assert losses.flatten().tolist() == pytest.approx([math.log(2), 0])
    assert dz.tolist() == [[0.5, -0.5], [0, 0]]


def test_the_softmax_does_not_overflow():
    logits = torch.tensor([[1000.0, 0.0], [0.0, -1000.0]])
    losses, dz = lce._softmax_torch(logits, torch.tensor([1, 0]), True)
    assert losses.flatten().tolist() == [1000, 0]
    assert dz.tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize("rows", [1, 4, 23, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_give_the_whole_gradient(rows, dtype):
    """`rows` per chunk: the last one may be short. Against autograd through logits that exist as a
    whole."""
    hidden, weight, targets = head_and_loss(dtype=dtype)
    chunk_bytes = rows * 50 * dtype.itemsize
    loss, count = lce.linear_cross_entropy(hidden, weight, targets, chunk_bytes)
    expected, _ = lce.linear_cross_entropy_reference(hidden, weight, targets)
    assert count == 17
    torch.testing.assert_close(loss, expected)
    got = torch.autograd.grad(3 * loss, (hidden, weight))
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_the_logits_are_never_whole(monkeypatch):
    """Six rows of logits fit into the budget, and there are 600: no call makes more than six."""
    hidden, weight, targets = head_and_loss(600)
    softmax = lce._softmax_torch
    seen = []

    def watched(logits, *rest):
        seen.append(len(logits))
        return softmax(logits, *rest)

    monkeypatch.setattr(lce, "_softmax_torch", watched)
    lce.linear_cross_entropy(hidden, weight, targets, chunk_bytes=6 * 50 * 4)
    assert max(seen) <= 6 and sum(seen) == 600, "take the chunks' softmax from _softmax_torch"


def test_bfloat16_sums_its_shares_in_float32():
    """600 rows, one per chunk, each with a share of 1/2. In bfloat16 the sum would stop at 128,
    where 1/2 is lost."""
    hidden = torch.ones(600, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, requires_grad=True)
    targets = torch.zeros(600, dtype=torch.int64)
    loss, _ = lce.linear_cross_entropy(hidden, weight, targets, chunk_bytes=1)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.flatten().tolist() == [-300, 300]
    assert loss.item() == pytest.approx(600 * math.log(2), rel=1e-3)


def test_a_gradient_that_nobody_needs_is_empty():
    hidden, weight, targets = head_and_loss()
    hidden = hidden.detach()
    weight = weight.detach()
    for need in ((True, False), (False, True), (False, False)):
        _, *gradients = lce.loss_and_gradients(hidden, weight, targets, 2000, *need)
        assert [g.numel() > 0 for g in gradients] == list(need)


# ----------------------------------------------------------------- RMSNorm's backward, once in each


@pytest.fixture(params=["torch", "triton"])
def choice(request):
    """The same tests for the PyTorch lines and for the Triton kernel."""
    if request.param == "triton" and launch.triton is None:
        pytest.skip("Triton is not installed here; the PyTorch twin runs everywhere")
    kernels.use(request.param)
    return request.param


def gradients(function, *inputs) -> tuple:
    """Of every input, for fixed gradients of every output."""
    outputs = function(*inputs, 1e-5)
    if not isinstance(outputs, tuple):
        outputs = (outputs,)
    given = []
    for y in outputs:
        given.append(torch.cos(torch.arange(y.numel())).view(y.shape).to(y.dtype))
    return torch.autograd.grad(outputs, inputs, given)


def test_a_backward_pass_by_hand(choice):
    """x = (3, 4), w = (1, 1), dy = (1, 0): r = √12.5, x̂ = (0.6, 0.8) √2, mean(g x̂) = 0.3 √2,
    dx = ((1, 0) - 0.6 (0.6, 0.8)) / r; dw = dy x̂."""
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    w = torch.ones(2, requires_grad=True)
    dy = torch.tensor([[1.0, 0.0]])
    dx, dw = torch.autograd.grad(norm.rms_norm(x, w, 0.0), (x, w), dy)
    r = math.sqrt(12.5)
    assert dx.flatten().tolist() == pytest.approx([0.64 / r, -0.48 / r])
    assert dw.tolist() == pytest.approx([0.6 * math.sqrt(2), 0])


@pytest.mark.parametrize("shape", [(1, 1), (7, 16), (2, 5, 100)], ids=str)
def test_gradients_are_autograd_s(choice, shape):
    """Seven rows on three programs: the shares of dw have to be added up."""
    x = torch.randn(shape, requires_grad=True)
    w = torch.randn(shape[-1:], requires_grad=True)
    got = gradients(norm.rms_norm, x, w)
    torch.testing.assert_close(got, gradients(norm.rms_norm_reference, x, w))


def test_the_stream_s_own_gradient_is_added(choice):
    """add_rms_norm gives the norm and the sum: the gradient of the sum joins that of the norm."""
    x = torch.randn(7, 12, requires_grad=True)
    r = torch.randn(7, 12, requires_grad=True)
    w = torch.randn(12, requires_grad=True)
    got = gradients(norm.add_rms_norm, x, r, w)
    torch.testing.assert_close(got, gradients(norm.add_rms_norm_reference, x, r, w))


def test_the_gradient_has_no_part_along_x(choice):
    """Twice x has the same norm, so a step along x changes nothing."""
    x = torch.randn(9, 32, requires_grad=True)
    w = torch.randn(32, requires_grad=True)
    dx, _ = torch.autograd.grad(norm.rms_norm(x, w, 0.0), (x, w), torch.randn(9, 32))
    assert (dx * x).sum(-1).abs().max() < 1e-4 < dx.abs().max()


def test_a_frozen_weight_has_no_gradient(choice):
    x = torch.randn(4, 8, requires_grad=True)
    w = torch.randn(8)
    expected = torch.autograd.grad(norm.rms_norm_reference(x, w, 1e-5).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(norm.rms_norm(x, w, 1e-5).sum(), x), expected)


def test_every_derivative_in_float64():
    """Finite differences, as a last witness: float64 is never Triton's."""
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    r = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: norm.add_rms_norm(*inputs, 1e-5), (x, r, w))
