"""Models as folders: safetensors weights and a JSON config, never a pickle."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastvivit._folders import written_whole
from fastvivit.caption import VideoCaptioner
from fastvivit.caption.files import read_settings, write_layers
from fastvivit.caption.quiet import no_bars
from fastvivit.models import ViViTConfig, check_fields
from fastvivit.modules.auxiliary import AuxiliaryConfig
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.perceiver import PerceiverResampler
from fastvivit.modules.text import TextTower
from fastvivit.modules.vivit import ViViT
from fastvivit.tune import apply

CONFIG, WEIGHTS, TEXT = "config.json", "model.safetensors", "text"
VIDEO, LANGUAGE = "video", "language"
Model = ViViT | VideoTextModel | VideoCaptioner


def save_pretrained(model: Model, folder: str | os.PathLike) -> Path:
    """Write ``model`` to ``folder``: config, weights, tuning, and a dual encoder's text config and tokenizer.

    Of a captioner also the frozen encoder and language model, in folders of their own; ``VideoCaptioner.save`` writes
    the trained part alone.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Returns:
        The folder.

    Raises:
        ValueError: a model that is no ViViT, VideoTextModel or VideoCaptioner.
    """
    folder = Path(folder)
    with written_whole(folder) as scratch:
        write_pretrained(model, scratch)
    return folder


def write_pretrained(model: Model, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the files of ``save_pretrained`` into an existing folder.

    ``weights`` takes the place of ``own_weights(model)``, where other processes hold parts of them.
    """
    if isinstance(model, VideoCaptioner):
        _write_captioner(model, folder)
        return
    if isinstance(model, VideoTextModel):
        config = {"model": "VideoTextModel", "dim": model.dim, "video": model.video.config.to_dict()}
        pooler = getattr(model.text.model, "pooler", None) is not None
        config["text"] = {
            "max_length": model.text.max_length,
            "pooler": pooler,
            "kind": type(model.text.model).__name__,
        }
        if model.auxiliary is not None:
            config["auxiliary"] = asdict(model.auxiliary.config)
        if model.loss != "infonce":
            config["loss"] = model.loss
        model.text.model.config.save_pretrained(folder / TEXT)
        model.text.tokenizer.save_pretrained(folder / TEXT)
    elif isinstance(model, ViViT):
        config = {"model": "ViViT", "video": model.config.to_dict()}
    else:
        raise ValueError(f"model: wanted a ViViT, VideoTextModel or VideoCaptioner, got {type(model).__name__}")
    encoder = model.video if isinstance(model, VideoTextModel) else model
    if encoder.tuning is not None:
        config["tuning"] = encoder.tuning
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    state = own_weights(model) if weights is None else weights
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load_pretrained(folder: str | os.PathLike) -> Model:
    """Read a model that ``save_pretrained`` wrote, in eval mode on the CPU.

    An encoder that ``fastvivit.tune`` had tuned is tuned again: the same parameters are frozen.

    Raises:
        ValueError: a folder without a model, an unknown config field or tuning, weights that do not fit.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).is_file() else {}
    if config.get("model") == "VideoCaptioner":
        return _load_captioner(folder)
    if not config or not (folder / WEIGHTS).is_file():
        raise ValueError(f"folder: wanted {CONFIG} and {WEIGHTS} in it, got {str(folder)!r}")
    if config.get("model") not in ("ViViT", "VideoTextModel"):
        raise ValueError(
            f"folder: wanted one that save_pretrained wrote, got another library's {CONFIG} in {str(folder)!r}; "
            "from_hf_vivit, from_hf_videomae and from_image_vit read those of transformers"
        )
    model: ViViT | VideoTextModel = ViViT(ViViTConfig.from_dict(config["video"]))
    if config.get("tuning") is not None:
        apply(model, config["tuning"])
    if config["model"] == "VideoTextModel":
        auxiliary = config.get("auxiliary", {})
        check_fields(AuxiliaryConfig, auxiliary)
        text = _text_tower(folder / TEXT, **config["text"])
        model = VideoTextModel(
            model, text, config["dim"], AuxiliaryConfig(**auxiliary), loss=config.get("loss", "infonce")
        )
    state = load_file(folder / WEIGHTS)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    load_weights(model, state, f"folder: {str(folder)!r}")
    return model.eval()


def load_weights(model: torch.nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy the tensors that ``write_pretrained`` wrote into a model of their kind.

    Raises:
        ValueError: names or shapes that do not fit; ``where`` begins the message.
    """
    expected = own_weights(model)
    missing, unused = expected.keys() - state.keys(), state.keys() - expected.keys()
    shaped = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unused or shaped:
        raise ValueError(
            f"{where}: wanted the weights of its config, got missing {sorted(missing)}, "
            f"unused {sorted(unused)}, of another shape {sorted(shaped)}"
        )
    # A second name of a tensor is not in the file; that everything else is has been checked.
    model.load_state_dict(state, strict=False)


def own_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict without second names of one tensor, which text models with tied embeddings have."""
    found: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _write_captioner(cap: VideoCaptioner, folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps({"model": "VideoCaptioner"}, indent=2) + "\n")
    write_layers(cap, folder)
    (folder / VIDEO).mkdir()
    write_pretrained(cap.video, folder / VIDEO)
    with no_bars():
        cap.lm.save_pretrained(folder / LANGUAGE)
    cap.tokenizer.save_pretrained(folder / LANGUAGE)


def _load_captioner(folder: Path) -> VideoCaptioner:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = read_settings(folder)
    resampler = settings.pop("resampler")
    with torch.random.fork_rng(devices=[]), no_bars():
        cap = VideoCaptioner(
            load_pretrained(folder / VIDEO),
            AutoModelForCausalLM.from_pretrained(folder / LANGUAGE, local_files_only=True, dtype="auto"),
            AutoTokenizer.from_pretrained(folder / LANGUAGE, local_files_only=True),
            resampler=False if resampler is None else PerceiverResampler(**resampler),
            **settings,
        )
    return cap.load(folder).eval()


def _text_tower(folder: Path, max_length: int, pooler: bool, kind: str | None = None) -> TextTower:
    import transformers
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    own = getattr(transformers, kind or "", None)
    with torch.random.fork_rng(devices=[]):
        # An encoder may be a part of what the config's own class is, as T5EncoderModel is of T5Model.
        model = AutoModel.from_config(config) if own is None else own(config)
    if not pooler and hasattr(model, "pooler"):
        # Whether there is one is an argument of transformers' classes, not of their configs.
        model.pooler = None
    return TextTower(model, tokenizer, max_length=max_length)
