"""One transformer block of ViT-B on clips of 512 tokens, forward and backward: bound by launches on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fastvivit.models import ViViTConfig
from fastvivit.modules.block import Block
from fastvivit.tokens import Tokens

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..families.attention import attention_flops
from ..gate import against
from ..peers.graphs import recorded

EAGER, GRAPH = "plain PyTorch", "plain PyTorch, CUDA graph"
COMPILED = "plain PyTorch, compiled, CUDA graph"
OURS_EAGER = f"{OURS}, no graph"


class Plain(nn.Module):
    """The same block as its best users write it: SDPA on views of one product, (B, N, D) tensors."""

    def __init__(self, ours: Block) -> None:
        super().__init__()
        width, self.heads = ours.norm1.normalized_shape[0], ours.attn.heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, ours.norm1.eps) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1 = nn.Linear(width, ours.mlp.fc1.weight.shape[0])
        self.fc2 = nn.Linear(ours.mlp.fc1.weight.shape[0], width)
        pairs = {"qkv": ours.attn.qkv, "proj": ours.attn.proj, "fc1": ours.mlp.fc1, "fc2": ours.mlp.fc2}
        for name, source in (pairs | {"norm1": ours.norm1, "norm2": ours.norm2}).items():
            getattr(self, name).load_state_dict(source.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


def block_cases(options: Options) -> list[Case]:
    """Batch 1 and 4."""
    return [_case(options, clips) for clips in ((1,) if options.quick else (1, 4))]


def _sizes(options: Options) -> tuple[int, int, int]:
    """Tokens of a clip, width, heads."""
    return (16, 64, 2) if options.quick else (512, 768, 12)


def _case(options: Options, clips: int) -> Case:
    tokens, width, heads = _sizes(options)
    rows, item = clips * tokens, options.dtype.itemsize
    attention = attention_flops([tokens] * clips, heads, width // heads, "forward + backward")
    claims = ()
    if options.gpu:
        text = "not slower than the best peer under CUDA graphs"
        claims = (Claim(text=text, peers=(EAGER, GRAPH, COMPILED), at_least=1.0),)
    return Case(
        name=f"block/{clips} clip{'s' * (clips > 1)} of {tokens}, forward + backward",
        layer=f"one block of ViT-B, {clips} x {tokens} tokens (16 frames, 75 % masked)",
        counts="forward and backward, gradients of input and weights, call after call from the host",
        flops=attention + 3 * 2 * rows * 12 * width**2,
        # Weights: read by the forward, twice by the backward, their gradients written; rows: in, out and gradients.
        bytes=item * (4 * 12 * width**2 + 4 * rows * width),
        build=lambda: _build(options, clips),
        claims=claims,
        seconds=1.5,
        min_rounds=9,
        clock="wall",
        facts={"model": "ViT-B", "frames": 16, "mask": 75, "clips": clips, "direction": "forward + backward"},
    )


def _build(options: Options, clips: int) -> Bench:
    tokens, width, heads = _sizes(options)
    torch.manual_seed(0)
    ours = Block(ViViTConfig(width=width, heads=heads, ff=4 * width), drop_path=0.0)
    ours = ours.to(options.device, options.dtype)
    plain = Plain(ours).to(options.device, options.dtype)
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(clips * tokens, width, generator=generator) for _ in range(2))
    x, grad = x.to(options.device, options.dtype), grad.to(options.device, options.dtype)
    places = Tokens([((1, 1, tokens),)] * clips, [tokens] * clips, None, torch.device(options.device))
    group = places.by_clip

    def mine(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda rows: model(rows, group, group)

    def theirs(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda rows: model(rows.view(clips, tokens, width)).flatten(0, 1)

    step = _stepper(x, grad)
    names = [(OURS, step(mine(ours), ours)), (EAGER, step(theirs(plain), plain))]
    contestants = {name: Contestant(call=call) for name, call in names}
    absent = {}
    if options.gpu:
        contestants[OURS_EAGER] = contestants[OURS]
        contestants[OURS] = Contestant(call=recorded(names[0][1]), note="CUDA graph")
        contestants[GRAPH] = Contestant(call=recorded(names[1][1]))
        if options.compile:
            fast = torch.compile(plain, dynamic=False)
            contestants[COMPILED] = Contestant(call=recorded(step(theirs(fast), plain)))
    else:
        absent |= dict.fromkeys((GRAPH, COMPILED), "no CUDA graphs on a CPU")
    if options.gpu and not options.compile:
        absent[COMPILED] = "not asked for (--compile)"
    exact = Plain(ours).to(options.device, torch.float64)
    golden = _stepper(x.double(), grad.double())(theirs(exact), exact)
    return Bench(contestants=contestants, gate=against(golden, contestants), absent=absent)


def _stepper(x: Tensor, grad: Tensor):
    """``(function, model) → call``: the output, and gradients of the input and of the weights of two layers."""
    leaf = x.detach().requires_grad_()

    def step(function: Callable[[Tensor], Tensor], model: nn.Module) -> Callable[[], Sequence[Tensor]]:
        parameters = list(model.parameters())
        named = dict(model.named_parameters())
        # All are computed; those of the first and the last layer are compared.
        watched = [next(p for n, p in named.items() if n.endswith(end)) for end in ("qkv.weight", "fc2.weight")]
        places = [next(i for i, p in enumerate(parameters) if p is w) for w in watched]

        def call() -> Sequence[Tensor]:
            with torch.enable_grad():
                out = function(leaf)
            grad_x, *grads = torch.autograd.grad(out, [leaf, *parameters], grad)
            return [out.detach(), grad_x, *(grads[i] for i in places)]

        return call

    return step
