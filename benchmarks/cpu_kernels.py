"""What does each form that the models use on a CPU gain over MLX's own, forward and with its gradients?

    python benchmarks/cpu_kernels.py

Shapes are those of the demo's teacher at 16 pixels with a batch of 64. The ratio is MLX's seconds over ours, taken in
turn: above 1, ours is faster.
"""

from __future__ import annotations

from collections.abc import Callable

from record import interleaved, ratio, save, spread

from mlx_tasks import hardware

hardware.prepare()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

from mlx_tasks.models import elementary  # noqa: E402
from mlx_tasks.models.attention import plain_attention  # noqa: E402
from mlx_tasks.models.convolution import cpu_strided_conv, double, doubling_conv, phased_doubling_conv, strided_conv  # noqa: E402
from mlx_tasks.models.layers import group_norm  # noqa: E402

REPEATS = 15
Form = Callable[..., mx.array]


def normal(*shape: int) -> mx.array:
    """Unit normal."""
    return mx.random.normal(shape, key=mx.random.key(0))


def pairs() -> dict[str, tuple[Form, Form, tuple[mx.array, ...]]]:
    """(MLX's form, ours, arguments) by name."""
    norm = nn.GroupNorm(8, 32, pytorch_compatible=True)
    upsample = nn.Upsample(2, "nearest")
    small = normal(64, 8, 8, 64)
    image, scores, kernel = normal(64, 16, 16, 32), normal(64, 4, 64, 64), normal(32, 3, 3, 32)
    heads = tuple(normal(64, 4, 64, 16) for _ in range(3))

    def fast(*heads: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(*heads, scale=0.25)

    return {
        "strided convolution": (strided_conv, cpu_strided_conv, (normal(64, 18, 18, 32), kernel)),
        "convolution of a doubled image": (doubling_conv, phased_doubling_conv, (small, normal(64, 3, 3, 64))),
        "group norm": (norm, lambda x: group_norm(x, norm.weight, norm.bias, 8, 1e-5), (image,)),
        "silu": (nn.silu, lambda x: x * elementary.sigmoid(x), (image,)),
        "relu": (nn.relu, lambda x: mx.maximum(x, 0), (image,)),
        "softmax": (lambda x: mx.softmax(x, axis=-1), elementary.softmax, (scores,)),
        "attention": (fast, lambda q, k, v: plain_attention(q, k, v, scale=0.25), heads),
        "nearest doubling": (upsample, double, (small,)),
    }


def main() -> None:
    """Time every pair and write benchmarks/results/cpu_kernels.json."""
    rows = []
    for name, (theirs, ours, arguments) in pairs().items():
        row: dict = {"form": name, "largest_difference": float(mx.abs(theirs(*arguments) - ours(*arguments)).max())}
        for label, derive in (("forward", False), ("forward_and_gradients", True)):
            runs = {who: timed(form, arguments, derive) for who, form in (("mlx", theirs), ("ours", ours))}
            seconds = interleaved(runs, repeats=REPEATS, warmup=2)
            row[label] = {who: spread([1e3 * s for s in taken]) for who, taken in seconds.items()}
            row[label]["mlx_seconds_over_ours"] = ratio(seconds["mlx"], seconds["ours"])
        rows.append(row)
        ratios = [row[label]["mlx_seconds_over_ours"]["median"] for label in ("forward", "forward_and_gradients")]
        print(f"{name:28s} forward {ratios[0]:5.2f}  with gradients {ratios[1]:5.2f}")
    question = "MLX's seconds over ours for each form the models use on a CPU"
    print(save("cpu_kernels", question=question, config={"repeats": REPEATS, "unit": "ms"}, rows=rows))


def timed(form: Form, arguments: tuple[mx.array, ...], derive: bool) -> Callable[[], None]:
    """A call that evaluates the form, or its gradient in every argument."""
    if not derive:
        return lambda: mx.eval(form(*arguments))
    weights = normal(*form(*arguments).shape)
    gradient = mx.grad(lambda *a: (form(*a) * weights).sum(), argnums=tuple(range(len(arguments))))
    return lambda: mx.eval(gradient(*arguments))


if __name__ == "__main__":
    main()
