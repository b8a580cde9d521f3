"""One model in several processes: copies of it ("ddp"), or its layers cut in parts ("fsdp").

Both give the gradient of one process. Parameters outside the layers are few, have methods of their own that read
them, and one of them is a number without dimensions; they are copies in both, and the mean of their gradients is taken
once a step, when all backwards of it are done. So no wrapper stands between a model and its methods, a step may have
any number of forwards and backwards, and a parameter may have no gradient. Layers are only ever called, so
``torch.distributed.fsdp.fully_shard`` can fetch and drop them around the call, and sums their gradients itself.

Parts are float32 and are fetched as such: autocast casts inside a layer as it does in one process, and the numbers
stay those of one process. A policy that fetches bfloat16 would halve the traffic, but hand LayerNorms rounded weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fastvivit.modules.dual import VideoTextModel
from fastvivit.pretrained import own_weights
from fastvivit.train.ranks import Ranks

_BUCKET = 1 << 26  # bytes of gradients that travel at once


def spread(model: nn.Module, how: str, ranks: Ranks) -> None:
    """Give every rank the weights of rank 0, whole or in parts; before the optimiser is made.

    Args:
        model: on its device, the same on every rank but for its weights.
        how: "ddp" or "fsdp".
        ranks: of the run.
    """
    if ranks.alone:
        return
    copy_from_first(model, ranks)
    if how == "fsdp":
        _shard(model)


@torch.no_grad()
def copy_from_first(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the weights of rank 0, whole."""
    if not ranks.alone:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, 0)


class _Layers(nn.Module):
    """Stands above all layers once, so that they share streams and know of each other; nobody calls it later."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return x


def _shard(model: VideoTextModel) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    stacks = [list(model.video.blocks), _text_layers(model.text.model)]
    for stack in stacks:
        for layer in stack:
            fully_shard(layer, mesh=mesh)
        for layer, following in pairwise(stack):
            layer.set_modules_to_forward_prefetch([following])
    fully_shard(_Layers(chain(*stacks)), mesh=mesh)(torch.zeros((), device=device))


def _text_layers(text: nn.Module) -> list[nn.Module]:
    """A text model's layers: of its lists of modules the one with the most parameters; without a list, none."""
    lists = [module for module in text.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=()))


def in_parts(tensor: Tensor) -> bool:
    """Whether a rank has only its part of a tensor."""
    return hasattr(tensor, "device_mesh")  # a DTensor, a class whose import takes time that one process can save


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, if ``like`` is in parts; else the tensor."""
    if not in_parts(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Nothing travels: each rank cuts its part out of its own copy.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def gathered(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU of rank 0, one after the other; nothing on the other ranks."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if in_parts(tensor) else tensor.detach()
        if ranks.first:
            found[name] = whole.cpu().contiguous()
    return found


def whole_weights(model: nn.Module, ranks: Ranks) -> dict[str, Tensor] | None:
    """A model's weights for ``write_pretrained`` on rank 0, where ranks hold parts of them; else None."""
    own = own_weights(model)
    return gathered(own, ranks) if any(map(in_parts, own.values())) else None


def parts_of(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole weights that every rank has, as the parts that it holds of them."""
    own = own_weights(model)
    return {name: part_of(tensor, own[name]) if name in own else tensor for name, tensor in weights.items()}


@torch.no_grad()
def average_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Give every copy of a parameter the mean of the ranks' gradients.

    A gradient that only some ranks have counts as 0 on the others; one that no rank has stays None, as in one process.
    """
    if ranks.alone:
        return
    copies = [p for p in model.parameters() if p.requires_grad and not in_parts(p)]
    wanted = ranks.largest([float(parameter.grad is not None) for parameter in copies])
    gradients = []
    for parameter, some in zip(copies, wanted, strict=True):
        if some and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if some:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= ranks.size
        for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype, so many that it is worth while to send them."""
    waiting: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        bucket = waiting.setdefault(gradient.dtype, [])
        bucket.append(gradient)
        if sum(one.nbytes for one in bucket) >= _BUCKET:
            yield waiting.pop(gradient.dtype)
    yield from waiting.values()


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float, ranks: Ranks) -> Tensor:
    """Scale the gradient of the whole model down to a norm of ``limit``; its norm before, 0-d."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    parts = [parameter.grad.to_local() for parameter in parameters if in_parts(parameter)]
    if not parts:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    copies = [parameter.grad for parameter in parameters if not in_parts(parameter)]
    norms = parts[0].new_zeros(ranks.size)
    norms[ranks.rank] = torch.nn.utils.get_total_norm(parts)
    dist.all_reduce(norms)
    norm = torch.linalg.vector_norm(torch.cat([norms, torch.nn.utils.get_total_norm(copies).reshape(1)]))
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ does
    for gradient in parts + copies:
        gradient.mul_(scale)
    return norm
