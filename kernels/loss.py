"""Head and loss as one operation, so that a batch's logits never exist.

    z = h Wᵀ            (N, V)    one row of logits a token
    loss = Σ_n  log Σ_v exp z_nv  -  z_n,target

At 16k tokens and a 49k vocabulary the logits take 3.2 GB in float32, and their gradient as much again: the place where
training runs out of memory once the vocabulary has grown. But every row is independent and the loss is a sum, so rows
are taken a chunk at a time, and the gradient is finished in the same visit, while the chunk's logits are at hand:

    dz = softmax(z) - onehot(target)    dh = dz W    dW += dzᵀ h

The upstream gradient is one number that multiplies everything, so it can wait for the backward pass. (Recomputing the
logits there instead would cost a fourth matrix product.) What remains of memory is one chunk of logits.

The three products are a library's (cuBLAS on a GPU; on a CPU see linear.py), which nobody beats. What lies between,
softmax, loss and dz, is memory traffic. PyTorch's operations visit the chunk some ten times; the kernel below reads a
row twice, the second time backwards, so that it meets what the cache still holds, and writes dz over it: 2 to 3 tensors
of the logits' size.

Chunks come from a budget of bytes, not of rows: thin chunks starve the products. dW is accumulated in float32 whatever
the dtype: hundreds of bfloat16 additions would lose the small ones. Rows whose target is -100 do not count.
Worked by hand: two classes, z = (0, 0): loss log 2 = 0.6931, dz = (½, ½) - onehot.
"""
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from kernels.launch import block, jit, require, tl, triton_runs
from kernels.linear import gradient, product, suits

IGNORE = -100
CHUNK_BYTES = {"cpu": 3 * 2**23, "cuda": 2**29}  # of logits alive at once; from 32 MiB on malloc gives nothing again
CHUNK_ROWS = 384  # but at least so many, if the caller does not say
AT_ONCE = 8192  # elements of a row that a program holds


def linear_cross_entropy_reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor):
    """The definition. hidden (N, D), weight (V, D), targets (N,) int64 → (summed loss in nats, number of targets).

    >>> linear_cross_entropy_reference(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1, -100]))
    (tensor(0.6931), tensor(1))
    """
    logits = F.linear(hidden, weight.to(hidden.dtype))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum"), (targets != IGNORE).sum()


@jit
def _softmax_kernel(Z, TARGETS, LOSSES, z_stride, V, BLOCK: tl.constexpr, GRADIENT: tl.constexpr,
                    IGNORE: tl.constexpr):
    """One program a row of logits Z: its loss, and (GRADIENT) dz written over it."""
    row = tl.program_id(0).to(tl.int64)
    Z += row * z_stride
    column, target = tl.arange(0, BLOCK), tl.load(TARGETS + row)
    counts = target != IGNORE  # a target that is no class gives NaN; z of the target is read before dz covers it
    correct = tl.load(Z + target, counts & (target >= 0) & (target < V), float("nan")).to(tl.float32)
    top, total = -float("inf"), 0.0  # running maximum, and the sum of exp(z - top): Milakov, Gimelshein, 1805.02867
    for start in range(0, V, BLOCK):
        z = tl.load(Z + start + column, start + column < V, -float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(z))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher))
        top = higher
    tl.store(LOSSES + row, tl.where(counts, top + tl.log(total) - correct, 0.0))
    if GRADIENT:
        share = tl.where(counts, 1.0 / total, 0.0)
        blocks = tl.cdiv(V, BLOCK)
        for i in range(0, blocks):
            at = (blocks - 1 - i) * BLOCK + column
            z = tl.load(Z + at, at < V, 0.0).to(tl.float32)
            dz = tl.exp(z - top) * share - tl.where(at == target, 1.0, 0.0)  # in float32, rounded once
            tl.store(Z + at, dz.to(Z.dtype.element_ty), at < V)


def _softmax_triton(logits, targets, gradient):
    """logits (n, V), targets (n,) → losses (n,), dz in logits' dtype and (where `gradient`) memory."""
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    _softmax_kernel[(len(logits),)](logits, targets, losses, logits.stride(0), logits.shape[1], GRADIENT=gradient,
                                    IGNORE=IGNORE, **block(min(AT_ONCE, logits.shape[1])))
    return losses, logits


def _softmax_torch(logits, targets, gradient):
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))      # (n, V)
    valid = (targets != IGNORE).unsqueeze(1)                             # (n, 1)
    index = torch.where(valid, targets.unsqueeze(1), 0)                  # (n, 1)
    torch.ops.aten._log_softmax.out(z, 1, False, out=z)                  # in place: a row is read before it is written
    losses = -z.gather(1, index) * valid
    if gradient:
        z.exp_().scatter_add_(1, index, -torch.ones_like(losses))        # softmax minus onehot: dz
        if not valid.all():
            z.mul_(valid)
    return losses, z if z is logits else logits.copy_(z)


def _accumulate(total: torch.Tensor, dz: torch.Tensor, h: torch.Tensor, is_first: bool) -> None:
    """total (V, D) += dzᵀ h, summed in total's dtype, whatever that of dz (n, V) and h (n, D).

    The first chunk is written over total, which holds nothing yet: filling it with zeros, to read them again, would be
    two passes over the largest gradient there is.
    """
    beta = 0 if is_first else 1  # of addmm: beta * total + dzᵀ h; where it is 0, total is not read
    if dz.dtype == total.dtype and not suits(dz):
        total.addmm_(dz.t(), h, beta=beta)
    elif dz.is_cuda:
        # The product's own float32 sums go on from total, and nothing is rounded between chunks.
        torch.addmm(total, dz.t(), h, beta=beta, out_dtype=total.dtype, out=total)
    else:
        product_of_chunk = gradient(dz, h) if suits(dz) else torch.mm(dz.t(), h)
        if is_first:
            total.copy_(product_of_chunk)
        else:
            total += product_of_chunk


def chunk_budget(device: str, classes: int, width: int, itemsize: int, need_weight: bool) -> int:
    """Bytes of logits alive at once where the caller does not say: CHUNK_BYTES, and at least CHUNK_ROWS rows. On a GPU
    adding to a large dW wants fewer and larger chunks: at least half of dW's size. common/plan.py uses it too."""
    budget = max(CHUNK_BYTES[device], CHUNK_ROWS * classes * itemsize)
    return max(budget, 2 * classes * width) if device == "cuda" and need_weight else budget


def loss_and_gradients(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_bytes: int,
                       need_hidden: bool, need_weight: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (N, D), weight (V, D), targets (N,) → loss, dloss/dhidden (N, D), dloss/dweight (V, D) in float32 or
    better. A gradient that is not needed is not computed, and comes back empty."""
    n_rows, wide, targets = len(hidden), torch.promote_types(hidden.dtype, torch.float32), targets.contiguous()
    softmax, copies = (_softmax_triton, 0) if triton_runs(hidden) else (_softmax_torch, int(hidden.dtype != wide))
    matrix = weight.to(hidden.dtype)  # here, not at the caller: so that a float32 master gets a float32 gradient
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = torch.empty(weight.shape if need_weight else 0, dtype=wide, device=weight.device)
    if n_rows == 0:
        grad_weight.zero_()
    if suits(hidden) and need_weight:  # laid out as `gradient` gives what is added to it
        grad_weight = grad_weight.view(weight.shape[::-1]).t()
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    step = max(1, chunk_bytes // (len(weight) * (hidden.dtype.itemsize + copies * wide.itemsize)))
    step -= step % 128 if step > 128 else 0               # products like whole tiles
    step = -(-n_rows // max(1, -(-n_rows // step)))       # as few chunks as the budget allows, all of about one size
    step += -step % 128 if step > 128 else 0
    buffer = None if suits(hidden) else hidden.new_empty(min(step, n_rows), len(weight))  # one for all chunks
    for start in range(0, n_rows, max(1, step)):
        h, target = hidden[start:start + step], targets[start:start + step]
        z = product(h, matrix) if buffer is None else torch.mm(h, matrix.t(), out=buffer[:len(h)])
        losses, dz = softmax(z, target, need_hidden or need_weight)
        loss += losses.sum()
        if need_hidden and buffer is None:
            grad_hidden[start:start + step] = product(dz, matrix.t())
        elif need_hidden:
            torch.mm(dz, matrix, out=grad_hidden[start:start + step])
        if need_weight:
            _accumulate(grad_weight, dz, h, is_first=start == 0)
        del z, dz  # or two chunks would be alive for a moment
    return loss, grad_hidden, grad_weight.contiguous()


# One operation for torch.compile, which must not look inside: it would unroll the chunks, and hold all their logits.
_operation = custom_op("nanowhale::linear_cross_entropy", loss_and_gradients, mutates_args=())


@_operation.register_fake
def _(hidden, weight, targets, chunk_bytes, need_hidden, need_weight):
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return (hidden.new_empty((), dtype=wide), hidden.new_empty(hidden.shape if need_hidden else 0),
            weight.new_empty(weight.shape if need_weight else 0, dtype=wide))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk_bytes, need_hidden, need_weight):
        loss, grad_hidden, grad_weight = _operation(hidden, weight, targets, chunk_bytes, need_hidden, need_weight)
        ctx.save_for_backward(grad_hidden if need_hidden else None, grad_weight if need_weight else None)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        def scaled(gradient, dtype):  # in one visit; (1,) because a scalar would first be rounded to that dtype
            return torch.mul(gradient, upstream.reshape(1), out=torch.empty_like(gradient, dtype=dtype))
        grad_hidden, grad_weight = ctx.saved_tensors
        return (None if grad_hidden is None else scaled(grad_hidden, grad_hidden.dtype),
                None if grad_weight is None else scaled(grad_weight, ctx.weight_dtype), None, None, None, None)


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                         chunk_bytes: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of `hidden @ weight.T`, holding at most `chunk_bytes` of logits (None: chunk_budget).

    hidden (N, D), weight (V, D; cast to hidden's dtype for the products), targets (N,) int64, -100 = ignored →
    (loss in nats, a float32 or float64 scalar; number of targets counted). A frozen weight costs no gradient.

    Two rows, two classes, room for one row of logits, so two chunks. With W = 0 each softmax is (½, ½): the first row
    gives dz = (-½, ½) and adds dz · 1 to dW, the second (½, -½) · 2. The loss is 2 log 2.

    >>> W = torch.zeros(2, 1, requires_grad=True)
    >>> loss, n = linear_cross_entropy(torch.tensor([[1.0], [2.0]]), W, torch.tensor([0, 1]), chunk_bytes=8)
    >>> loss.backward()
    >>> round(loss.item(), 4), n.item(), W.grad.flatten().tolist()
    (1.3863, 2, [0.5, -0.5])
    """
    require(("hidden's width", hidden.shape, (len(hidden), weight.shape[1])),
            ("targets' shape", targets.shape, hidden.shape[:1]))
    need_hidden, need_weight = (torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight))
    if chunk_bytes is None:
        chunk_bytes = chunk_budget("cuda" if hidden.is_cuda else "cpu", *weight.shape, hidden.itemsize, need_weight)
    loss = _LinearCrossEntropy.apply(hidden, weight, targets, chunk_bytes, need_hidden, need_weight)
    return loss, (targets != IGNORE).sum()
