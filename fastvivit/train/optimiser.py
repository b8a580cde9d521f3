"""AdamW, and its state under the names of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.train.tables import OptimiserConfig


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, fused where their device has that.

    Weight decay leaves out parameters of fewer than two dimensions (norms, biases, the temperature) and those
    that ``model.no_weight_decay()`` names (positions).
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spared if parameter.dim() < 2 or name in exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in decayed + spared)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as ``{"<parameter>/<state>": tensor}``: by name, whatever the order was."""
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            found[f"{name}/{key}"] = value
    return found


def load_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimiser_tensors`` gave.

    Raises:
        ValueError: state of other parameters than the optimiser's.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        state.setdefault(name, {})[part] = tensor
    own = [names[parameter] for group in optimiser.param_groups for parameter in group["params"]]
    unknown = sorted(state.keys() - set(own))
    if unknown:
        raise ValueError(f"optimiser: wanted the state of this model's trainable parameters, got also {unknown}")
    packed = optimiser.state_dict()
    packed["state"] = {index: state[name] for index, name in enumerate(own) if name in state}
    optimiser.load_state_dict(packed)
