"""AdamW over float32 parameters, and its state under their names."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.caption import VideoCaptioner
from fastvivit.train.parallel import in_parts, part_of
from fastvivit.train.tables import OptimiserConfig

_MASTERS = (torch.float32, torch.float64)


def widen_masters(model: nn.Module) -> list[str]:
    """Make parameters that will be trained float32, where a model was loaded in 16 bits.

    An update is often smaller than what 16 bits can tell from the weight, and Adam's moments have the dtype of their
    parameter. Of a captioner the parts that are trained are cast, since the frozen ones may stay what they are; any
    other model is cast whole.

    Returns:
        Names of the parts that were cast.
    """
    cast = []
    for name, part in model.named_children():
        small = any(p.is_floating_point() and p.dtype not in _MASTERS for p in part.parameters())
        frozen = not any(p.requires_grad for p in part.parameters())
        if small and not (frozen and isinstance(model, VideoCaptioner)):
            part.float()
            cast.append(name)
    for name, parameter in model.named_parameters(recurse=False):
        if parameter.dtype not in _MASTERS:
            parameter.data = parameter.data.float()
            cast.append(name)
    return cast


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, fused where their device has that, or with its moments in 8 bits.

    Weight decay leaves out parameters of fewer than two dimensions (norms, biases, the temperature) and those
    that ``model.no_weight_decay()`` names (positions).

    Raises:
        ValueError: trainable parameters of 16 bits; 8-bit states of parameters of which ranks hold parts.
        ImportError: 8-bit states without bitsandbytes.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.dtype not in _MASTERS:
                raise ValueError(f"model: wanted float32 parameters to train, got {parameter.dtype} in {name}")
            (spared if parameter.dim() < 2 or name in exempt else decayed).append(parameter)
    groups = [
        {"params": some, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (spared, 0.0))
        for some in _whole_and_parts(parameters)
    ]
    if config.states == "8bit" and any(map(in_parts, decayed + spared)):
        raise ValueError("optimiser.states: wanted 'float32' with run.parallel = 'fsdp', got '8bit'")
    if config.states == "8bit":
        return _eight_bits()(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in decayed + spared)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as ``{"<parameter>/<state>": tensor}``: by name, whatever the order was.

    A whole number is a 0-d int64, and what parameters share (tables of 8-bit states) is there for each.
    """
    found, seen = {}, set()
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            if in_parts(tensor):
                found[f"{name}/{key}"] = tensor
                continue
            address = tensor.untyped_storage().data_ptr()
            found[f"{name}/{key}"] = tensor.clone() if address in seen else tensor
            seen.add(address)
    return found


def load_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimiser_tensors`` gave.

    Raises:
        ValueError: state of other parameters than the optimiser's.
    """
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    state: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        whole = tensor.dim() == 0 and tensor.dtype == torch.int64
        if name in parameters:
            tensor = part_of(tensor, parameters[name])
        state.setdefault(name, {})[part] = tensor.item() if whole else tensor
    own = [names[parameter] for group in optimiser.param_groups for parameter in group["params"]]
    unknown = sorted(state.keys() - set(own))
    if unknown:
        raise ValueError(f"optimiser: wanted the state of this model's trainable parameters, got also {unknown}")
    packed = optimiser.state_dict()
    packed["state"] = {index: state[name] for index, name in enumerate(own) if name in state}
    optimiser.load_state_dict(packed)


def _whole_and_parts(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that are whole, and those of which ranks hold parts, if any: no step takes both at once."""
    parts = [parameter for parameter in parameters if in_parts(parameter)]
    whole = [parameter for parameter in parameters if not in_parts(parameter)]
    return [whole, parts] if parts else [whole]


def _eight_bits() -> type[torch.optim.Optimizer]:
    try:
        return import_module("bitsandbytes").optim.AdamW8bit
    except ModuleNotFoundError as error:
        if error.name != "bitsandbytes":
            raise
        raise ImportError(
            "optimiser.states: '8bit' wants bitsandbytes, which is not installed; run: "
            'pip install "fastvivit[lowbit]"',
            name="bitsandbytes",
        ) from None
