"""timm and open_clip: against a dense ViT written here that carries their names, and against the packages."""

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

import fastvivit as fv
from fastvivit.convert import from_image_vit
from tests.convert.foreign import hf_clip, randomised, tensors_equal

CFG = fv.ViViTConfig(frames=4, size=32, tubelet=(2, 8, 8), attention="frame")
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
WIDTH, HEADS, FF = 32, 4, 48
ACT = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "quick_gelu": lambda x: x * (1.702 * x).sigmoid()}


def norm(state, name, x, eps):
    if name + ".weight" not in state:
        return x
    return nnf.layer_norm(x, (WIDTH,), state[name + ".weight"], state[name + ".bias"], eps)


def linear(state, name, x):
    return nnf.linear(x, state[name + ".weight"], state.get(name + ".bias"))


def block(x, attend, feed, norms, scales, eps, state):
    """A pre-norm block of the two functions, with LayerScale where there is one."""
    for which, branch, scale in zip(norms, (attend, feed), scales, strict=True):
        x = x + branch(norm(state, which, x, eps)) * state.get(scale, torch.ones(()))
    return x


def attention(qkv):
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    return ((q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def timm_tokens(state, images, act="gelu", eps=1e-6):
    """timm's VisionTransformer.forward_features, from its state dict."""
    x = nnf.conv2d(images, state["patch_embed.proj.weight"], state.get("patch_embed.proj.bias"), 8)
    x, pos = x.flatten(2).mT, state["pos_embed"]
    cls = state["cls_token"].expand(len(x), -1, -1) if "cls_token" in state else x[:, :0]
    if pos.shape[1] == x.shape[1]:  # no_embed_class, or no CLS
        x = torch.cat([cls, x + pos], 1)
    else:
        x = torch.cat([cls, x], 1) + pos
    x = norm(state, "norm_pre", x, eps)
    for n in range(2):
        at = f"blocks.{n}."
        attend = lambda h, at=at: linear(state, at + "attn.proj", attention(linear(state, at + "attn.qkv", h)))
        feed = lambda h, at=at: linear(state, at + "mlp.fc2", ACT[act](linear(state, at + "mlp.fc1", h)))
        x = block(x, attend, feed, (at + "norm1", at + "norm2"), (at + "ls1.gamma", at + "ls2.gamma"), eps, state)
    return norm(state, "norm", x, eps)


def timm_state(cls=True, embed_class=True, scale=False, pre_norm=False, fc_norm=False, qkv_bias=True):
    def pair(*shape, bias=True, centre=0.0):
        made = {"weight": centre + torch.randn(shape) * 0.2}
        return made | ({"bias": torch.randn(shape[0]) * 0.2} if bias else {})

    parts = {"patch_embed.proj": pair(WIDTH, 3, 8, 8), "head": pair(5, WIDTH)}
    parts["fc_norm" if fc_norm else "norm"] = pair(WIDTH, centre=1.0)
    if pre_norm:
        parts["norm_pre"] = pair(WIDTH, centre=1.0)
    state = {"pos_embed": torch.randn(1, 16 + (cls and embed_class), WIDTH) * 0.2}
    if cls:
        state["cls_token"] = torch.randn(1, 1, WIDTH)
    for n in range(2):
        at = f"blocks.{n}."
        parts |= {at + name: pair(WIDTH, centre=1.0) for name in ("norm1", "norm2")}
        parts |= {at + "attn.qkv": pair(3 * WIDTH, WIDTH, bias=qkv_bias), at + "attn.proj": pair(WIDTH, WIDTH)}
        parts |= {at + "mlp.fc1": pair(FF, WIDTH), at + "mlp.fc2": pair(WIDTH, FF)}
        if scale:
            state |= {at + name: torch.randn(WIDTH) for name in ("ls1.gamma", "ls2.gamma")}
    return state | {f"{name}.{part}": value for name, pair in parts.items() for part, value in pair.items()}


def open_clip_tokens(state, images, act="gelu", eps=1e-5):
    """open_clip's VisionTransformer up to its pooling, from its state dict; ln_post on every token."""
    x = nnf.conv2d(images, state["conv1.weight"], None, 8).flatten(2).mT
    cls = state["class_embedding"].expand(len(x), 1, -1)
    x = norm(state, "ln_pre", torch.cat([cls, x], 1) + state["positional_embedding"], eps)
    for n in range(2):
        at = f"transformer.resblocks.{n}."
        qkv = lambda h, at=at: nnf.linear(h, state[at + "attn.in_proj_weight"], state[at + "attn.in_proj_bias"])
        attend = lambda h, at=at, qkv=qkv: linear(state, at + "attn.out_proj", attention(qkv(h)))
        feed = lambda h, at=at: linear(state, at + "mlp.c_proj", ACT[act](linear(state, at + "mlp.c_fc", h)))
        x = block(x, attend, feed, (at + "ln_1", at + "ln_2"), (at + "ls_1.gamma", at + "ls_2.gamma"), eps, state)
    return norm(state, "ln_post", x, eps)


def open_clip_state(scale=False):
    """The names that open_clip has, from those of timm."""
    names = {"patch_embed.proj": "conv1", "norm_pre": "ln_pre", "blocks.": "transformer.resblocks.", "norm1": "ln_1"}
    names |= {"norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc"}
    names |= {"mlp.fc2": "mlp.c_proj", "ls1": "ls_1", "ls2": "ls_2"}
    state = {}
    for name, value in timm_state(pre_norm=True, scale=scale).items():
        for old, new in names.items():
            name = name.replace(old, new)
        state["ln_post" + name.removeprefix("norm") if name.startswith("norm.") else name] = value
    for gone in ("conv1.bias", "head.weight", "head.bias"):
        del state[gone]
    state["class_embedding"] = state.pop("cls_token")[0, 0]
    state["positional_embedding"] = state.pop("pos_embed")[0]
    return state | {"proj": torch.randn(WIDTH, 16)}


def compare(enc, want, cls=True):
    """The image path, and frame attention over slots that are still, against (2, 16 or 17, D) tokens."""
    torch.manual_seed(5)
    images = torch.randn(2, 3, 32, 32)
    want = want(images)
    with torch.no_grad():
        torch.testing.assert_close(enc(images).last_hidden_state, want, **CLOSE)
        slots = images.repeat_interleave(2, 0).transpose(0, 1).unsqueeze(0)
        torch.testing.assert_close(enc(slots).last_hidden_state, want.flatten(0, 1).unsqueeze(0), **CLOSE)
    assert enc.config.class_token is cls


TIMM = [{}, {"cls": False}, {"embed_class": False}, {"scale": True}, {"fc_norm": True}]
TIMM.append({"pre_norm": True, "qkv_bias": False})


@pytest.mark.parametrize("options", TIMM, ids=str)
def test_timm(options):
    state = timm_state(**options)
    enc = from_image_vit(state, CFG, config={"heads": HEADS})
    compare(enc, lambda images: timm_tokens(state, images), options.get("cls", True))
    heads = {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if "fc_norm" in options else set())
    assert set(enc.imported.left_out) == heads and enc.config.final_norm is not ("fc_norm" in options)
    assert enc.imported.source == "timm VisionTransformer" and not enc.imported.missing


def test_without_a_cls_joint_attention_on_one_slot_is_the_image_model():
    state = timm_state(cls=False)
    enc = from_image_vit(state, CFG.replace(frames=2, attention="joint"), config={"heads": HEADS})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = enc(images.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(out.last_hidden_state, timm_tokens(state, images), **CLOSE)
    for field, changes in (("pool", {"pool": "cls"}), ("cls", {"cls": True})):
        with pytest.raises(ValueError, match=f"cfg.{field}: wanted an encoder without CLS"):
            from_image_vit(state, CFG.replace(**changes), config={"heads": HEADS})


def test_what_timm_s_tensors_can_not_tell():
    state = timm_state()
    config = {"heads": HEADS, "eps": 0.1, "act": "quick_gelu", "image_size": 32}
    enc = from_image_vit(state, CFG, config=config)
    compare(enc, lambda images: timm_tokens(state, images, "quick_gelu", 0.1))
    assert enc.config.eps == 0.1
    said = {"model_args": {"num_heads": HEADS, "act_layer": "quick_gelu", "img_size": 32}, "eps": 0.1}
    assert from_image_vit(state, CFG, config=said).config == enc.config
    trunk = {f"visual.trunk.{name}": value for name, value in state.items()} | {"text.proj.weight": torch.zeros(1)}
    assert tensors_equal(from_image_vit(trunk, CFG, config=config).state_dict(), enc.state_dict())
    for config in (None, {}):
        with pytest.raises(ValueError, match="config: wanted a dict with heads"):
            from_image_vit(state, CFG, config=config)
    with pytest.raises(ValueError, match="heads: wanted a divisor of width 32, got 5"):
        from_image_vit(state, CFG, config={"heads": 5})
    with pytest.raises(ValueError, match="without register tokens"):
        from_image_vit(state | {"reg_token": torch.zeros(1, 4, WIDTH)}, CFG, config={"heads": HEADS})
    with pytest.raises(ValueError, match="got 2 more: blocks.0.attn.q_norm.weight"):
        odd = {f"blocks.{n}.attn.q_norm.weight": torch.zeros(8) for n in range(2)}
        from_image_vit(state | odd, CFG, config={"heads": HEADS})
    wide = state | {"pos_embed": torch.randn(1, 33, WIDTH)}
    with pytest.raises(ValueError, match="wanted an image_size whose grid has 32 places"):
        from_image_vit(wide, CFG, config={"heads": HEADS})
    enc = from_image_vit(wide, CFG.replace(size=(32, 64)), config={"heads": HEADS, "image_size": (32, 64)})
    assert torch.equal(enc.image.pos, wide["pos_embed"][0, 1:])


@pytest.mark.parametrize("prefix", ["", "visual."])
@pytest.mark.parametrize("scale", [False, True])
def test_open_clip(prefix, scale):
    state = open_clip_state(scale)
    named = {prefix + name: value for name, value in state.items()}
    text = {"transformer.resblocks.0.ln_1.weight", "token_embedding.weight", "positional_embedding", "logit_scale"}
    text = text if prefix else set()
    enc = from_image_vit(named | {name: torch.zeros(1) for name in text}, CFG, config={"heads": HEADS})
    compare(enc, lambda images: open_clip_tokens(state, images))
    assert set(enc.imported.left_out) == text | {prefix + "proj"} and enc.imported.missing
    assert all(name.endswith(".bias") and not enc.get_parameter(name).any() for name in enc.imported.missing)


def test_open_clip_s_own_configuration_and_what_its_tensors_can_not_tell():
    state = open_clip_state()
    vision = {"head_width": WIDTH // HEADS, "image_size": 32, "patch_size": 8}
    own = {"model_cfg": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision}}
    for config in (own, {"heads": HEADS, "act": "quick_gelu"}):
        enc = from_image_vit(state, CFG, config=config)
        compare(enc, lambda images: open_clip_tokens(state, images, "quick_gelu"))
    with pytest.raises(ValueError, match="config: wanted a dict with heads.*OpenAI"):
        from_image_vit(state, CFG)


def test_the_same_clip_by_two_libraries_names_is_the_same_encoder():
    """open_clip's names for the tensors of a transformers model."""
    model = hf_clip()
    state = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    names = {"embeddings.patch_embedding": "conv1", "embeddings.class_embedding": "class_embedding"}
    names |= {"embeddings.position_embedding.weight": "positional_embedding", "pre_layrnorm": "ln_pre"}
    names |= {"post_layernorm": "ln_post", "encoder.layers": "transformer.resblocks", "layer_norm": "ln_"}
    names |= {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    theirs = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        theirs[name] = value
    for n in range(2):
        for part in ("weight", "bias"):
            at = f"transformer.resblocks.{n}."
            fused = [theirs.pop(f"{at}self_attn.{which}_proj.{part}") for which in "qkv"]
            theirs[f"{at}attn.in_proj_{part}"] = torch.cat(fused)
    enc = from_image_vit(theirs, CFG, config={"heads": 4, "act": "quick_gelu"})
    want = from_image_vit(model, CFG)
    assert enc.config == want.config and tensors_equal(enc.state_dict(), want.state_dict())


class _Timm(nn.Module):
    """As much of timm's structure as says what its tensors can't."""

    def __init__(self, state, act, grid):
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(last, nn.Parameter(value))
        self.blocks = nn.Sequential(*self.blocks.children())
        self.patch_embed.grid_size = grid
        for part in self.blocks:
            part.attn.num_heads, part.norm1.eps, part.mlp.act = HEADS, 1e-3, act


def test_a_timm_model_says_itself_what_its_tensors_can_not():
    state = timm_state()
    enc = from_image_vit(_Timm(state, nn.GELU(approximate="tanh"), (4, 4)), CFG)
    compare(enc, lambda images: timm_tokens(state, images, "gelu_tanh", 1e-3))
    assert enc.config.act == "gelu_tanh" and enc.config.eps == 1e-3
    with pytest.raises(ValueError, match="wanted an activation of gelu, gelu_tanh, quick_gelu, got ReLU"):
        from_image_vit(_Timm(state, nn.ReLU(), (4, 4)), CFG)


REAL_TIMM = [{}, {"init_values": 0.5, "global_pool": "avg"}, {"class_token": False}, {"pre_norm": True}]


@pytest.mark.parametrize("options", REAL_TIMM, ids=str)
def test_real_timm(options):
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "mlp_ratio": 1.5}
    if options.get("class_token") is False:
        options = options | {"global_pool": "avg"}
    model = randomised(timm.models.VisionTransformer(**sizes, **options))
    enc = from_image_vit(model, CFG)
    with torch.no_grad():
        compare(enc, model.forward_features, options.get("class_token", True))


@pytest.mark.parametrize("quick", [False, True])
def test_real_open_clip(quick):
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "patch_size": 8, "width": WIDTH, "layers": 2, "head_width": 8}
    text = {"width": WIDTH, "heads": 4, "layers": 1, "vocab_size": 60, "context_length": 8}
    model = randomised(open_clip.CLIP(16, vision, text, quick_gelu=quick))
    enc = from_image_vit(model, CFG)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        cls = enc(images).last_hidden_state[:, 0]
        torch.testing.assert_close(cls @ model.visual.proj, model.encode_image(images), **CLOSE)
    assert enc.config.act == ("quick_gelu" if quick else "gelu") and "visual.proj" in enc.imported.left_out
    assert tensors_equal(from_image_vit(model.visual, CFG).state_dict(), enc.state_dict())
