"""Head and loss as one operation, so that the logits of a whole batch never exist.

    z = h Wᵀ            (N, V)    one row of logits per token
    loss = Σ_n  log Σ_v exp z_nv  -  z_n,target

For 16k tokens and a vocabulary of 49k, the logits take 3.2 GB in float32, and their gradient the
same again. This is where training runs out of memory once the vocabulary has grown. But the rows
are independent and the loss is a sum. So rows are processed in chunks, and the gradient of a chunk
is computed as long as its logits are in memory:

    dz = softmax(z) - onehot(target)    dh = dz W    dW += dzᵀ h

The loss is one number, so the upstream gradient is one factor, by which the backward pass
multiplies dh and dW. (Recomputing the logits there would cost a fourth matmul.) The memory needed
is one chunk of logits.

The three matmuls are PyTorch's. Between them, softmax, loss and dz cost memory traffic: PyTorch's
operations pass over the chunk about ten times. The kernel below reads a row twice, the second time
from the end, where the cache still holds it, and writes dz over it. That moves 2 to 3 tensors of
the size of the logits.

The size of a chunk is a budget of bytes, but at least 384 rows, because matmuls with few rows are
slow. dW is summed in float32 or better, because a sum in bfloat16 stops growing when it is about
256 times as large as what is added. Rows whose target is -100 do not count.

For example, with two classes and z = (0, 0), the loss is log 2 = 0.6931 and dz = (½, ½) - onehot.
"""
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from kernels.launch import block, jit, load_float32, require, tl, triton_runs

# The target of a row that does not count.
IGNORE = -100

# Bytes of logits in memory at once. On a CPU it is less than 32 MiB: from there on glibc's malloc,
# by default, returns freed memory to the system, which fills it with zeros page by page for the
# next chunk.
CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 512 * 2**20}

# But a chunk has at least this many rows, unless the caller gives a budget.
CHUNK_ROWS = 384

# Elements of a row of logits that a program holds at once.
AT_ONCE = 8192


def linear_cross_entropy_reference(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition. hidden (N, D), weight (V, D), targets (N,) int64 → (summed loss, count).

    The loss is in nats; the count is the number of targets other than -100.

    >>> linear_cross_entropy_reference(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1, -100]))
    (tensor(0.6931), tensor(1))
    """
    logits = F.linear(hidden, weight.to(hidden.dtype))
    if logits.dtype != torch.float64:
        logits = logits.float()
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return loss, (targets != IGNORE).sum()


# ---------------------------------------------------------------------- between the matmuls: Triton


@jit
def _softmax_kernel(
    Z,                          # (n, V), logits, its rows z_stride elements apart
    TARGETS,                    # (n,) int64
    LOSSES,                     # (n,) float32, written
    z_stride,
    V,
    BLOCK: tl.constexpr,
    GRADIENT: tl.constexpr,     # write dz over the logits?
    IGNORE: tl.constexpr,
):
    """One program per row of logits: its loss, and its dz."""
    row = tl.program_id(0).to(tl.int64)
    Z += row * z_stride
    column = tl.arange(0, BLOCK)

    # The target's logit is read before dz overwrites it. A target that is not a class gives NaN,
    # which stops the training loop.
    target = tl.load(TARGETS + row)
    counts = target != IGNORE
    has_logit = counts & (target >= 0) & (target < V)
    correct = tl.load(Z + target, has_logit, float("nan")).to(tl.float32)

    # Keep a running maximum and the sum of exp(z - top) (Milakov and Gimelshein, 1805.02867).
    top = -float("inf")
    total = 0.0
    for start in range(0, V, BLOCK):
        z = tl.load(Z + start + column, start + column < V, -float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(z))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher))
        top = higher
    tl.store(LOSSES + row, tl.where(counts, top + tl.log(total) - correct, 0.0))

    # Second pass, from the end, where the cache still holds the row. dz is computed in float32 and
    # rounded once.
    if GRADIENT:
        share = tl.where(counts, 1.0 / total, 0.0)
        blocks = tl.cdiv(V, BLOCK)
        for i in range(0, blocks):
            at = (blocks - 1 - i) * BLOCK + column
            z = load_float32(Z + at, at < V)
            dz = tl.exp(z - top) * share - tl.where(at == target, 1.0, 0.0)
            tl.store(Z + at, dz, at < V)


def _softmax_triton(logits, targets, need_gradient):
    """logits (n, V), targets (n,) → losses (n,), dz (n, V) in the dtype and memory of the
    logits."""
    n_rows, n_classes = logits.shape
    losses = logits.new_empty(n_rows, dtype=torch.float32)
    _softmax_kernel[(n_rows,)](
        logits,
        targets,
        losses,
        logits.stride(0),
        n_classes,
        GRADIENT=need_gradient,
        IGNORE=IGNORE,
        **block(min(AT_ONCE, n_classes)),
    )
    return losses, logits


# --------------------------------------------------------------------- between the matmuls: PyTorch


def _softmax_torch(logits, targets, need_gradient):
    """As `_softmax_triton`, with losses (n, 1). Operations of the logits' size are in place."""
    counts = (targets != IGNORE).unsqueeze(1)                               # (n, 1)
    # A row that does not count reads class 0, which exists, and its loss and dz are set to 0.
    index = targets.unsqueeze(1).where(counts, 0)                           # (n, 1)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))         # (n, V)
    torch.log_softmax(z, 1, out=z)
    losses = -z.gather(1, index) * counts                                   # (n, 1)
    if need_gradient:
        # dz = softmax(z) - onehot(target)
        z.exp_()
        z.scatter_add_(1, index, -torch.ones_like(losses))
        if not counts.all():
            z.mul_(counts)
    if z is not logits:
        logits.copy_(z)
    return losses, logits


# ----------------------------------------------------------------------------------- chunk by chunk


def chunk_budget(device: str, classes: int, width: int, itemsize: int, need_weight: bool) -> int:
    """Bytes of logits in memory at once, unless the caller says.

    CHUNK_BYTES, and at least CHUNK_ROWS rows. On a GPU, adding to a large dW is expensive, so
    chunks are larger and fewer: at least half the size of dW in float32.
    """
    budget = max(CHUNK_BYTES[device], CHUNK_ROWS * classes * itemsize)
    if device == "cuda" and need_weight:
        budget = max(budget, 2 * classes * width)
    return budget


def _rows_per_chunk(n_rows: int, bytes_per_row: int, chunk_bytes: int) -> int:
    """The rows of a chunk: as few chunks as the budget allows, all of about the same size.

    Above 128 rows it is a multiple of 128, because matmuls work on tiles of such sizes.

    >>> _rows_per_chunk(1000, bytes_per_row=1, chunk_bytes=700)     # at most 640: two chunks of 500
    512
    """
    most = max(1, chunk_bytes // bytes_per_row)
    if most > 128:
        most -= most % 128
    chunks = max(1, -(-n_rows // most))         # rounded up, as below
    chunk_rows = -(-n_rows // chunks)
    if chunk_rows > 128:
        chunk_rows += -chunk_rows % 128
    return max(1, chunk_rows)


def _accumulate(total: torch.Tensor, dz: torch.Tensor, h: torch.Tensor, is_first: bool) -> None:
    """total (V, D) += dzᵀ h, summed in the dtype of total, for dz (n, V) and h (n, D) in any dtype.

    The first chunk is written to total, which is not initialised. Filling it with zeros and reading
    them would be two passes over the largest gradient of the model.
    """
    beta = 0 if is_first else 1  # addmm: beta * total + dzᵀ h; total is not read if beta is 0
    if dz.dtype == total.dtype:
        total.addmm_(dz.t(), h, beta=beta)
    elif dz.is_cuda:
        # The matmul adds to total in its float32 accumulator, so nothing is rounded in between.
        torch.addmm(total, dz.t(), h, beta=beta, out_dtype=total.dtype, out=total)
    elif is_first:
        total.copy_(torch.mm(dz.t(), h))
    else:
        total += torch.mm(dz.t(), h)


def loss_and_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk_bytes: int,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (N, D), weight (V, D), targets (N,) → loss, dhidden (N, D), dweight (V, D).

    The loss and dweight are in float32 or better. A gradient that is not needed is not computed,
    and is returned as an empty tensor.
    """
    n_rows = len(hidden)
    n_classes = len(weight)
    targets = targets.contiguous()
    wide = torch.promote_types(hidden.dtype, torch.float32)
    # Cast here and not by the caller, so that a float32 master weight gets a float32 gradient.
    matrix = weight.to(hidden.dtype)

    loss = torch.zeros((), dtype=wide, device=hidden.device)
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = weight.new_empty(weight.shape if need_weight else 0, dtype=wide)
    if n_rows == 0:
        grad_weight.zero_()  # there is no first chunk to initialise it

    # How many rows fit into the budget? The PyTorch lines also hold a float32 copy of bfloat16
    # logits.
    softmax = _softmax_torch
    bytes_per_row = n_classes * hidden.itemsize
    if triton_runs(hidden):
        softmax = _softmax_triton
    elif hidden.dtype != wide:
        bytes_per_row += n_classes * wide.itemsize
    chunk_rows = _rows_per_chunk(n_rows, bytes_per_row, chunk_bytes)

    # All chunks use one buffer, first for the logits, then for dz.
    buffer = hidden.new_empty(min(chunk_rows, n_rows), n_classes)
    for start in range(0, n_rows, chunk_rows):
        chunk = slice(start, start + chunk_rows)
        h = hidden[chunk]                                                   # (n, D)
        # F.linear(h, matrix), written to the buffer.
        logits = torch.mm(h, matrix.t(), out=buffer[:len(h)])               # (n, V)
        losses, dz = softmax(logits, targets[chunk], need_hidden or need_weight)
        loss += losses.sum()
        if need_hidden:
            torch.mm(dz, matrix, out=grad_hidden[chunk])                    # (n, D)
        if need_weight:
            _accumulate(grad_weight, dz, h, is_first=start == 0)
    return loss, grad_hidden, grad_weight


# ------------------------------------------------------------------------------------ the operation


# torch.compile must treat this as one operation. If it looked inside, it would unroll the chunks
# and hold all their logits.
_operation = custom_op("nanowhale::linear_cross_entropy", loss_and_gradients, mutates_args=())


@_operation.register_fake
def _(hidden, weight, targets, chunk_bytes, need_hidden, need_weight):
    """The shapes and dtypes that `loss_and_gradients` returns, for torch.compile."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_weight else 0, dtype=wide),
    )


def _scaled(gradient: torch.Tensor | None, factor: torch.Tensor, dtype: torch.dtype):
    """gradient · factor, rounded once to `dtype`; None for None."""
    if gradient is None:
        return None
    out = torch.empty_like(gradient, dtype=dtype)
    # As (1,): a factor without dimensions would be rounded to `dtype` before the product.
    return torch.mul(gradient, factor.reshape(1), out=out)


class _LinearCrossEntropy(torch.autograd.Function):
    """The forward pass computes both gradients and keeps them, not hidden or weight. The backward
    pass only scales them. Second derivatives would need the logits, so there are none."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk_bytes, need_hidden, need_weight):
        loss, grad_hidden, grad_weight = _operation(
            hidden, weight, targets, chunk_bytes, need_hidden, need_weight)
        ctx.save_for_backward(
            grad_hidden if need_hidden else None,
            grad_weight if need_weight else None,
        )
        ctx.hidden_dtype = hidden.dtype
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_hidden = _scaled(grad_hidden, upstream, ctx.hidden_dtype)
        grad_weight = _scaled(grad_weight, upstream, ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk_bytes: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of `hidden @ weight.T`, a chunk of rows at a time.

    hidden (N, D), weight (V, D; cast to hidden's dtype for the matmuls), targets (N,) int64, of
    which -100 is ignored → (loss in nats, a float32 or float64 scalar; number of targets counted).
    At most `chunk_bytes` of logits are in memory (None: `chunk_budget`). No gradient is computed
    for a frozen weight. ValueError if the shapes do not match.

    For example, two rows and two classes, with a budget of one row of logits, make two chunks. With
    W = 0 each softmax is (½, ½). The first row has dz = (-½, ½) and adds dz · 1 to dW; the second
    adds (½, -½) · 2. The loss is 2 log 2.

    >>> W = torch.zeros(2, 1, requires_grad=True)
    >>> hidden, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
    >>> loss, n = linear_cross_entropy(hidden, W, targets, chunk_bytes=8)
    >>> loss.backward()
    >>> round(loss.item(), 4), n.item(), W.grad.flatten().tolist()
    (1.3863, 2, [0.5, -0.5])
    """
    require(
        ("hidden's width", hidden.shape, (len(hidden), weight.shape[1])),
        ("targets' shape", targets.shape, hidden.shape[:1]),
    )
    need_hidden = torch.is_grad_enabled() and hidden.requires_grad
    need_weight = torch.is_grad_enabled() and weight.requires_grad
    if chunk_bytes is None:
        device = "cuda" if hidden.is_cuda else "cpu"
        chunk_bytes = chunk_budget(device, *weight.shape, hidden.itemsize, need_weight)
    loss = _LinearCrossEntropy.apply(
        hidden, weight, targets, chunk_bytes, need_hidden, need_weight)
    return loss, (targets != IGNORE).sum()
