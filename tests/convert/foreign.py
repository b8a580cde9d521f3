"""Tiny random models of other libraries, every parameter of which matters."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}


def randomised(model):
    """LayerNorms, LayerScale, biases, CLS and positions too: a default of 0 or 1 would hide what is not copied."""
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, centre, 0.2)
    return model.eval()


def hf_vit(**changes):
    options = SIZES | {"intermediate_size": 48, "image_size": 32, "patch_size": 8} | changes
    return randomised(transformers.ViTModel(transformers.ViTConfig(**options)))


def hf_dinov2(**changes):
    options = SIZES | {"mlp_ratio": 2, "image_size": 32, "patch_size": 8, "layerscale_value": 0.5} | changes
    return randomised(transformers.Dinov2Model(transformers.Dinov2Config(**options)))


def hf_clip(**changes):
    options = SIZES | {"intermediate_size": 48, "image_size": 32, "patch_size": 8} | changes
    return randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**options)))


IMAGE_MODELS = {"vit": hf_vit, "dinov2": hf_dinov2, "clip": hf_clip}


def hf_tokens(model, images):
    """(B, 1 + S, D) of an image model, its last norm on every token, positions interpolated where need be."""
    with torch.no_grad():
        if isinstance(model, transformers.CLIPVisionModel):
            inner = getattr(model, "vision_model", model)
            return inner.post_layernorm(model(images, interpolate_pos_encoding=True).last_hidden_state)
        extra = {} if isinstance(model, transformers.Dinov2Model) else {"interpolate_pos_encoding": True}
        return model(images, **extra).last_hidden_state


def hf_vivit(classify=False, **changes):
    options = SIZES | {"intermediate_size": 48, "image_size": 32, "num_frames": 4, "tubelet_size": [2, 8, 8]} | changes
    kind = transformers.VivitForVideoClassification if classify else transformers.VivitModel
    return randomised(kind(transformers.VivitConfig(**options)))


def hf_videomae(kind="VideoMAEModel", **changes):
    options = SIZES | {"intermediate_size": 48, "image_size": 32, "num_frames": 4, "tubelet_size": 2, "patch_size": 8}
    options |= {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 32, "decoder_num_attention_heads": 4}
    return randomised(getattr(transformers, kind)(transformers.VideoMAEConfig(**options | changes)))


def tensors_equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
