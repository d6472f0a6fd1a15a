"""Head and loss as one operation, so that a batch's logits never exist.

    z = h Wᵀ            (N, V)    one row of logits a token
    loss = Σ_n  log Σ_v exp z_nv  -  z_n,target

At 16k tokens and a 49k vocabulary the logits take 3.2 GB in float32, and their gradient as much again: the place where
training runs out of memory once the vocabulary has grown. But every row is independent and the loss is a sum, so rows
are taken a chunk at a time, and the gradient is finished in the same visit, while the chunk's logits are at hand:

    dz = softmax(z) - onehot(target)    dh = dz W    dW += dzᵀ h

The upstream gradient is one number that multiplies everything, so it can wait for the backward pass. (Recomputing the
logits there instead would cost a third matrix product.) What remains of memory is one chunk of logits.

Chunks come from a budget of bytes, not of rows: thin chunks starve the matrix products. dW is accumulated in float32
whatever the dtype: hundreds of bfloat16 additions would lose the small ones. Rows whose target is -100 do not count.
Worked by hand: two classes, z = (0, 0): loss log 2 = 0.6931, dz = (½, ½) - onehot.
"""
import torch
import torch.nn.functional as F

IGNORE = -100
CHUNK_BYTES = 2**26  # of float32 logits alive at once


def linear_cross_entropy_reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor):
    """The definition. hidden (N, D), weight (V, D), targets (N,) int64 → (summed loss in nats, number of targets).

    >>> linear_cross_entropy_reference(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1, -100]))
    (tensor(0.6931), tensor(1))
    """
    logits = F.linear(hidden, weight.to(hidden.dtype))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum"), (targets != IGNORE).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk_bytes):
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows, wide = len(hidden), torch.promote_types(hidden.dtype, torch.float32)
        matrix = weight.to(hidden.dtype)  # here, not at the caller: so that a float32 master gets a float32 gradient
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        step = max(1, chunk_bytes // (len(weight) * wide.itemsize))
        step = -(-rows // max(1, -(-rows // step)))  # as few chunks as the budget allows, all of about one size
        for start in range(0, rows, max(1, step)):
            h, target = hidden[start:start + step], targets[start:start + step]
            valid = (target != IGNORE).unsqueeze(1)                              # (n, 1)
            index = target.clamp(min=0).unsqueeze(1)                             # (n, 1)
            logits = F.linear(h, matrix).to(wide)                                # (n, V)
            correct = logits.gather(1, index)                                    # before softmax overwrites it
            top = logits.amax(1, keepdim=True)
            logits.sub_(top).exp_()
            total = logits.sum(1, keepdim=True)
            loss += ((total.log() + top - correct) * valid).sum()
            if not (need_hidden or need_weight):
                continue
            logits.mul_(valid / total)                                           # softmax; 0 on ignored rows
            logits.scatter_add_(1, index, -valid.to(wide))                       # minus onehot: dz, in place
            grad = logits.to(hidden.dtype)
            if need_hidden:
                torch.mm(grad, matrix, out=grad_hidden[start:start + step])
            if need_weight and grad.dtype == wide:
                grad_weight.addmm_(grad.t(), h)
            elif need_weight:
                grad_weight += torch.mm(grad.t(), h)                             # half product, float32 sum
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx, upstream):
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = (grad_hidden.to(upstream.dtype) * upstream).to(grad_hidden.dtype)  # the scalar stays wide
        if grad_weight is not None:
            grad_weight = (grad_weight * upstream).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                         chunk_bytes: int = CHUNK_BYTES) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of `hidden @ weight.T`, holding at most `chunk_bytes` of logits.

    hidden (N, D), weight (V, D; cast to hidden's dtype for the products), targets (N,) int64, -100 = ignored →
    (loss in nats, a float32 or float64 scalar; number of targets counted). A frozen weight costs no gradient.
    """
    if not torch.is_grad_enabled():  # autograd would still ask for gradients of what requires them
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_bytes), (targets != IGNORE).sum()
