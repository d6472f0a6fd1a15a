"""RMSNorm (Zhang and Sennrich, 1910.07467): divide each row by its root mean square, scale each column.

    y_i = w_i x_i / r,    r = sqrt(mean_j x_j² + eps)

Worked by hand: x = (3, 4) has mean square 12.5, so r = 3.5355 and y = (0.8485, 1.1314) for w = 1.

The backward pass, with g_i = w_i dy_i and x̂ = x / r:

    dx = (g - x̂ mean(g x̂)) / r,    dw = Σ_rows dy x̂

so r (one float a row) is all that must be kept beside x; the definition's graph keeps four tensors of x's size.
"""
import torch


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The definition. x (..., D), weight (D,) → (..., D) in x's dtype; the mean is taken in float32 or better.

    >>> rms_norm_reference(torch.tensor([3.0, 4.0]), torch.ones(2), 0.0)
    tensor([0.8485, 1.1314])
    """
    wide = x if x.dtype == torch.float64 else x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x if x.dtype == torch.float64 else x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # 1/r (..., 1), bit for bit the definition's
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse                                            # x̂ (..., D), float32 or float64
        wide = grad.to(normed.dtype)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (wide * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            g = wide * weight.to(normed.dtype)
            projection = (g * normed).mean(-1, keepdim=True)            # (..., 1)
            grad_x = g.sub_(normed.mul_(projection)).mul_(inverse).to(x.dtype)
        return grad_x, grad_weight, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm that keeps x and one number a row for its backward pass. Shapes and dtypes as `rms_norm_reference`."""
    return _RMSNorm.apply(x, weight, eps)
