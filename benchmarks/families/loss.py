"""Loss of a language model's head: SmolLM2's vocabulary and width, eight captions of 64 tokens; the weight frozen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastvivit.functional as F

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import against, with_gradients
from ..peers import loss

PLAIN, TORCH = "cross_entropy of linear", "torch's linear_cross_entropy"
# As many rows a chunk as ours has on a CPU, where the default of torch's own is a few.
AT_128 = f"{TORCH}, 128 rows"


def loss_cases(options: Options) -> list[Case]:
    """Every token counted, and half of them ignored, as prompts and padding are; more rows on a GPU."""
    width, classes = (32, 512) if options.quick else (576, 49152)
    rows = 16 if options.quick else 8 * (512 if options.gpu else 64)
    return [_case(options, rows, width, classes, ignored) for ignored in (0, rows // 2)]


def _case(options: Options, rows: int, width: int, classes: int, ignored: int) -> Case:
    counted, size = rows - ignored, options.dtype.itemsize
    inputs = lambda: _inputs(options, rows, width, classes, ignored)
    calls = _calls(options.device, rows * width * classes * 4 if ignored else None)
    what = f"{ignored} of {rows} rows ignored" if ignored else f"{rows} rows"
    return Case(
        name=f"linear_cross_entropy/{'half ignored' if ignored else 'every row'}, forward + backward",
        layer=f"head of a language model, {what}, {classes} classes, width {width}, weight frozen",
        counts="loss and the gradient of x",
        flops=4 * counted * width * classes,
        bytes=size * (2 * rows * width + classes * width) + 8 * rows,
        build=lambda: _bench(inputs(), calls),
        claims=(
            Claim(text="not slower than whole logits", peers=(PLAIN,), at_least=1.0, times=True),
            Claim(text="not slower than torch's own", peers=(TORCH, AT_128), at_least=1.0, times=True),
        ),
        seconds=3.0 if options.gpu else 20.0,
        facts={"rate": True, "direction": "forward + backward"},
        peak={name: (lambda call=call: _alone(inputs(), call[0])) for name, call in calls.items()},
    )


def _inputs(options: Options, rows: int, width: int, classes: int, ignored: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = options.generator()
    x = torch.randn(rows, width, generator=generator, device=options.device).to(options.dtype).requires_grad_()
    weight = torch.randn(classes, width, generator=generator, device=options.device).mul_(0.05).to(options.dtype)
    target = torch.randint(classes, (rows,), generator=generator, device=options.device)
    # The first of every caption, as its prompt is.
    target.view(8, -1)[:, : ignored // 8] = -100
    return x, weight, target


def _calls(device: str, flops: int | None) -> dict[str, tuple[Callable[..., Tensor], str, int | None]]:
    calls = {
        OURS: (F.linear_cross_entropy, "", None),
        PLAIN: (loss.whole, "softmax in float32", flops),
    }
    if loss.no_torch_own() is None:
        calls[TORCH] = (loss.torch_own(None), "its default options", flops)
        if device == "cpu":
            calls[AT_128] = (loss.torch_own(128), "", flops)
    return calls


def _bench(inputs: tuple[Tensor, Tensor, Tensor], calls) -> Bench:
    x, weight, target = inputs
    one = torch.ones((), device=x.device)
    contestants = {
        name: Contestant(call=_with_loss(function, weight, target, x, one), note=note, flops=flops)
        for name, (function, note, flops) in calls.items()
    }
    exact, wide = x.detach().double().requires_grad_(), weight.double()
    golden = _with_loss(loss.whole, wide, target, exact, one.double())
    absent = {} if loss.no_torch_own() is None else {TORCH: loss.no_torch_own()}
    # Ours is not the measure of PyTorch's own error; whole logits are, the first peer.
    return Bench(contestants=contestants, gate=against(golden, contestants), absent=absent)


def _with_loss(function, weight: Tensor, target: Tensor, x: Tensor, one: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: with_gradients(lambda x: function(x, weight, target), [x], one)()


def _alone(inputs: tuple[Tensor, Tensor, Tensor], function) -> Callable[[], object]:
    """A call for its peak: what libraries load when they are first called is not the loss's."""
    x, weight, target = inputs
    some = x.detach()[:, :8].repeat(1, 8).requires_grad_()
    function(some, weight[:256].repeat(1, 64 // weight.shape[1] + 1)[:, :64].contiguous(), target % 256).backward()
    return lambda: function(x, weight, target).backward()
