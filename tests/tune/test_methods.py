"""What each way to tune trains, that the rest stays as it was, and that a fresh one changes nothing."""

import copy
import re

import pytest
import torch

import fastvivit as fv
from fastvivit.modules.adapters import LoRALinear
from fastvivit.modules.block import Block
from fastvivit.modules.linear import Linear
from fastvivit.train.config import OptimiserConfig
from fastvivit.train.optimiser import make_optimiser
from tests.tune.encoders import CFG, PAIRS, WAYS, clips, encoder, train

# Names of what is trained beside the final norm, the pooling and the image embedding; all of them, spelled out.
EMBED = {"joint": ["embed.weight", "embed.bias", "embed.pos"]}
EMBED["frame"] = EMBED["joint"]
EMBED["factorised"] = [*EMBED["joint"], "embed.pos_time"]
EMBED["tubes"] = [f"embed.tubes.{i}.{name}" for i in (0, 1) for name in ("weight", "bias", "pos")]
ATTENTION = ["norm.weight", "norm.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"]
BLOCK = [name.replace("norm.", "norm1.") for name in ATTENTION] + ["norm2.weight", "norm2.bias"]
BLOCK += [f"mlp.{fc}.{name}" for fc in ("fc1", "fc2") for name in ("weight", "bias")]
EXTRA = [f"extra.{name}" for name in (*ATTENTION, "gate")]
ADAPTER = [f"adapter.{part}.{name}" for part in ("down", "norm", "up") for name in ("weight", "bias")]
LORA = [f"{layer}.lora_{m}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for m in "ab"]
EXTRA_LORA = [f"extra.attn.{layer}.lora_{m}" for layer in ("qkv", "proj") for m in "ab"]


def expected(kind, way, enc):
    gated = kind in ("factorised", "tubes")
    inside = {
        "last_layers": BLOCK + EXTRA * gated,
        "temporal_only": EXTRA,
        "lora": LORA + (EXTRA_LORA + ["extra.gate"]) * gated,
    }
    inside["separate"] = inside["lora"]
    inside = inside.get(way, ADAPTER + ["extra.gate"] * gated)
    blocks = (1, 2) if way == "last_layers" else (0, 1, 2)
    names = {f"blocks.{i}.{name}" for i in blocks for name in inside} | {"norm.weight", "norm.bias"}
    names |= {name for name, _ in enc.named_parameters() if name.startswith("pool.")}
    return names if way == "last_layers" else names | set(EMBED[kind])


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_trained_are_exactly_these_and_the_rest_stays_to_the_bit(kind, way):
    enc = encoder(kind).eval()
    video, keep = clips(), torch.tensor([[0, 3, 5], [1, 2, 3]])
    before, whole = enc(video).tokens, enc(video, keep=keep).tokens
    state = copy.deepcopy(enc.state_dict())
    returned = WAYS[way](enc)
    assert torch.equal(enc(video).tokens, before) and torch.equal(enc(video, keep=keep).tokens, whole)
    names = {name for name, p in enc.named_parameters() if p.requires_grad}
    assert names == expected(kind, way, enc)
    assert [id(p) for p in returned] == [id(p) for p in enc.parameters() if p.requires_grad]
    assert state.keys() <= enc.state_dict().keys() and not any(module.training for module in enc.modules())
    train(enc.train(), returned)
    still = [name for name, p in enc.named_parameters() if name in names and (p.grad is None or not p.grad.any())]
    assert still == []
    after = enc.state_dict()
    changed = {name for name in state if not torch.equal(state[name], after[name])}
    assert changed == names & state.keys()
    assert (enc.eval()(video).tokens - before).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "way"), [pair for pair in PAIRS if pair[0] != "tubes"])
def test_the_image_embedding_trains_on_images_where_it_is_asked_for(kind, way):
    tubelet = (1, 8, 8) if kind == "frame" else (2, 8, 8)
    enc = encoder(kind, tubelet=tubelet)
    parameters = WAYS[way](enc, images=True)
    names = {name for name, p in enc.named_parameters() if p.requires_grad}
    assert names == expected(kind, way, enc) | {"image.weight", "image.bias", "image.pos"}
    train(enc, parameters, still=True)
    assert all(p.grad is not None and p.grad.any() for p in enc.image.parameters())
    assert enc.tuning["images"] is True


@pytest.mark.parametrize("way", ["adapters", "residual"])
def test_an_adapter_stands_after_the_feed_forward_layer(way):
    enc = encoder().eval()
    WAYS[way](enc)
    block = enc.blocks[1]
    torch.nn.init.normal_(block.adapter.up.weight)
    seen = {}
    block.attn.register_forward_hook(lambda m, a, out: seen.update(attn=out))
    before, after = enc(clips(), layers=(0, 1)).layers
    middle = before + seen["attn"]
    branch = block.mlp(block.norm2(middle))
    wanted = middle + block.adapter(branch) if way == "adapters" else block.adapter(middle + branch)
    torch.testing.assert_close(after, wanted)
    assert (after - middle - branch).abs().max() > 0.1


def test_counts_are_those_of_the_paper():
    for preset, width, rank, adapters, fused, separate in (
        ("base", 384, 64, 7.1, 9.4, 10.6),
        ("large", 768, 128, 37.8, 50.3, 56.6),
    ):
        for way, millions in (
            (lambda enc, width=width: fv.tune.add_adapters(enc, width), adapters),
            (lambda enc, rank=rank: fv.tune.add_lora(enc, rank), fused),
            (lambda enc, rank=rank: fv.tune.add_lora(enc, rank, separate=True), separate),
        ):
            with torch.device("meta"):
                enc = fv.ViViT(getattr(fv.ViViTConfig, preset)(images=False))
            way(enc)
            added = sum(p.numel() for n, p in enc.named_parameters() if ".adapter." in n or ".lora_" in n)
            assert round(added / 1e6, 1) == millions
    with torch.device("meta"):
        enc = fv.ViViT(fv.ViViTConfig.base())
    fv.tune.add_adapters(enc)
    assert enc.tuning == {"method": "add_adapters", "width": 384, "position": "ffn", "images": False}


def test_the_scale_of_lora_is_one_over_its_rank_unless_given():
    for scale, wanted in ((None, 0.25), (2, 2.0)):
        enc = encoder("factorised")
        fv.tune.add_lora(enc, 4, scale=scale)
        found = {module.scale for module in enc.modules() if isinstance(module, LoRALinear)}
        assert found == {wanted}
        assert enc.tuning == {"method": "add_lora", "rank": 4, "scale": wanted, "separate": False, "images": False}


def test_zeros_as_in_the_paper_warn_and_never_learn():
    enc = encoder()
    with pytest.warns(UserWarning, match="init='paper': adapters that are all zeros can't learn"):
        parameters = fv.tune.add_adapters(enc, init="paper")
    train(enc, parameters)
    moving = {n for n, p in enc.named_parameters() if ".adapter." in n and p.grad.any()}
    assert moving == {f"blocks.{i}.adapter.up.bias" for i in range(3)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "way"), [pair for pair in PAIRS if pair[1] in ("lora", "separate")])
def test_a_merged_encoder_is_plain_and_computes_the_same(kind, way, dtype):
    enc = encoder(kind)
    plain, layers = enc.state_dict().keys(), {name: type(module) for name, module in enc.named_modules()}
    train(enc, WAYS[way](enc))
    enc.eval().to(dtype)
    trained = {name for name, p in enc.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert sum(isinstance(m, LoRALinear) for m in enc.modules()) == 3 * (4 if enc.blocks[0].extra is None else 6)
    video, base = clips(), enc.blocks[2].mlp.fc1.weight.clone()
    before = enc(video).tokens
    fv.tune.merge_lora(enc)
    scale = before.abs().max().item()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(enc(video).tokens, before, rtol=0, atol=tolerance * scale)
    assert not torch.equal(enc.blocks[2].mlp.fc1.weight, base)
    assert enc.state_dict().keys() == plain and enc.tuning is None
    assert {name: type(module) for name, module in enc.named_modules()} == layers
    assert {name for name, p in enc.named_parameters() if p.requires_grad} == trained
    assert type(enc.blocks[0].attn.qkv) is Linear
    fv.tune.add_lora(enc, 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_frozen_prefix_keeps_no_graph_and_runs_once(checkpointing, monkeypatch):
    enc = encoder("factorised").train()
    fv.tune.last_layers(enc, 1)
    enc.set_grad_checkpointing(checkpointing)
    calls, graphs, saved, place = [], [], set(), ["embedding"]
    real, indices = Block.forward, {id(block): i for i, block in enumerate(enc.blocks)}

    def watched(self, x, *rest):
        index = indices[id(self)]
        calls.append(index)
        graphs.append(x.grad_fn)
        place[0] = f"in {index}"
        out = real(self, x, *rest)
        place[0] = f"after {index}"
        return out

    monkeypatch.setattr(Block, "forward", watched)

    def keep(tensor):
        saved.add(place[0])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = enc(clips())
    assert calls == [0, 1, 2] and graphs == [None] * 3
    # Checkpointed, a block keeps its inputs, and nothing that comes up within.
    assert saved == ({"after 1", "after 2"} if checkpointing else {"in 2", "after 2"})
    out.pooled.square().sum().backward()
    assert calls == ([0, 1, 2, 2] if checkpointing else [0, 1, 2])
    assert all(p.grad is not None for p in enc.blocks[2].parameters())


def test_a_frozen_block_drops_no_branch():
    enc = encoder(drop_path=0.5).train()
    fv.tune.last_layers(enc, 1)
    assert [block.drop_path.rate for block in enc.blocks] == [0, 0, 0.5]
    video = clips(1).repeat(8, 1, 1, 1, 1)
    _, second, last = enc(video, layers=(0, 1, 2)).layers
    torch.testing.assert_close(second[:8], second[8:16])
    assert (last.view(8, 8, -1) - last[:8]).abs().max() > 1e-2
    fv.tune.last_layers(enc, 2)
    assert [block.drop_path.rate for block in enc.blocks] == [0, 0.25, 0.5]
    fv.tune.add_lora(enc, 2)
    assert [block.drop_path.rate for block in enc.blocks] == [0, 0.25, 0.5]


def test_gradients_that_are_left_of_frozen_parameters_go():
    enc = encoder()
    enc(clips()).pooled.square().sum().backward()
    fv.tune.last_layers(enc, 1)
    assert enc.embed.weight.grad is None and enc.blocks[0].mlp.fc1.weight.grad is None
    assert enc.norm.weight.grad is not None


@pytest.mark.parametrize("way", WAYS)
def test_the_optimiser_takes_what_is_trained_and_decays_matrices_alone(way):
    enc = encoder("factorised")
    returned = WAYS[way](enc)
    optimiser = make_optimiser(enc, OptimiserConfig())
    decayed, spared = ({id(p) for p in group["params"]} for group in optimiser.param_groups)
    names = {id(p): name for name, p in enc.named_parameters()}
    assert decayed | spared == {id(p) for p in returned}
    assert all(names[p].endswith(("weight", "lora_a", "lora_b")) and "norm" not in names[p] for p in decayed)
    assert all(names[p].endswith(("bias", "pos", "pos_time", "gate")) or "norm" in names[p] for p in spared)


@pytest.mark.parametrize("way", ["adapters", "residual", "lora", "separate"])
def test_new_modules_take_dtype_device_and_autocast_as_they_come(way):
    enc = encoder().to(torch.bfloat16).eval()
    WAYS[way](enc)
    assert {p.dtype for p in enc.parameters()} == {torch.bfloat16}
    enc(clips()).pooled.float().sum().backward()
    enc = encoder().eval()
    parameters = WAYS[way](enc)
    train(enc, parameters)
    video = clips()
    with torch.autocast("cpu", torch.bfloat16):
        half = enc(video).pooled
        half.float().square().sum().backward()
    full = enc(video).pooled
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.05 * full.abs().max().item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


@pytest.mark.parametrize(("kind", "way"), [("joint", "adapters"), ("factorised", "separate")])
def test_compiles_whole(kind, way):
    torch._dynamo.reset()
    enc = encoder(kind)
    train(enc, WAYS[way](enc))
    compiled, video = torch.compile(enc, fullgraph=True, backend="aot_eager"), clips()
    parameters = [p for p in enc.parameters() if p.requires_grad]
    found, wanted = compiled(video).pooled, enc(video).pooled
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(out.square().sum(), parameters) for out in (found, wanted)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_tuning_replaces_another_that_added_nothing():
    enc = encoder("factorised")
    fv.tune.temporal_only(enc)
    fv.tune.last_layers(enc, 2)
    assert {n for n, p in enc.named_parameters() if p.requires_grad} == expected("factorised", "last_layers", enc)
    other = encoder("factorised")
    assert len(fv.tune.apply(other, enc.tuning)) == len([p for p in enc.parameters() if p.requires_grad])
    assert other.tuning == enc.tuning == {"method": "last_layers", "k": 2, "images": False}


def dual():
    text = torch.nn.Module()
    text.width = 8
    return fv.VideoTextModel(encoder(), text, dim=8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: fv.tune.last_layers(e, 0), "k: wanted a whole number in 1..3 (the blocks), got 0"),
        (lambda e: fv.tune.last_layers(e, 4), "k: wanted a whole number in 1..3 (the blocks), got 4"),
        (lambda e: fv.tune.last_layers(e, True), "k: wanted a whole number in 1..3 (the blocks), got True"),
        (lambda e: fv.tune.last_layers(e, 2.0), "k: wanted a whole number in 1..3 (the blocks), got 2.0"),
        (lambda e: fv.tune.add_adapters(e, 0), "width: wanted a whole number of at least 1, got 0"),
        (lambda e: fv.tune.add_adapters(e, init="xavier"), "init: wanted one of 'houlsby', 'paper', got 'xavier'"),
        (lambda e: fv.tune.add_adapters(e, position="out"), "position: wanted one of 'ffn', 'residual', got 'out'"),
        (lambda e: fv.tune.add_lora(e, 0), "rank: wanted a whole number of at least 1, got 0"),
        (lambda e: fv.tune.add_lora(e, 4, scale=0), "scale: wanted a number above 0, got 0"),
        (lambda e: fv.tune.add_lora(e, 4, scale=float("nan")), "scale: wanted a number above 0, got nan"),
        (lambda e: fv.tune.add_lora(e, 4, separate=3), "separate: wanted True or False, got 3"),
        (lambda e: fv.tune.add_lora(e, 4, images="no"), "images: wanted True or False, got 'no'"),
        (lambda e: fv.tune.temporal_only(e), "enc: wanted attention='factorised', which has temporal attention"),
        (lambda e: fv.tune.temporal_only(encoder("tubes")), "got 'tubes'"),
        (lambda e: fv.tune.merge_lora(e), "enc: wanted an encoder with LoRA, got one with nothing added"),
        (lambda e: fv.tune.add_lora(encoder(images=False), images=True), "images: wanted an encoder with a path for"),
        (lambda e: fv.tune.add_lora(dual()), "enc: wanted a ViViT, got a VideoTextModel; its encoder is model.video"),
        (lambda e: fv.tune.add_adapters(CFG), "enc: wanted a ViViT, got ViViTConfig"),
        (lambda e: fv.tune.apply(e, {"method": "prompts"}), "tuning: wanted a method of 'last_layers', 'add_adapters'"),
        (lambda e: fv.tune.apply(e, {"method": "add_lora", "r": 4}), "tuning: wanted the settings of add_lora, got"),
        (lambda e: fv.tune.apply(e, {"method": "last_layers"}), "tuning: wanted the settings of last_layers, got {}"),
        (lambda e: fv.tune.apply(e, None), "tuning: wanted a dict, got NoneType"),
    ],
)
def test_mistakes_are_errors_that_name_them_and_change_nothing(call, message):
    enc = encoder()
    with pytest.raises(ValueError, match=re.escape(message)):
        call(enc)
    assert enc.tuning is None and all(p.requires_grad for p in enc.parameters())


def test_modules_are_added_once():
    for add, what in ((fv.tune.add_adapters, "adapters"), (fv.tune.add_lora, "LoRA; merge_lora folds it in")):
        enc = encoder("factorised")
        add(enc)
        before = enc.state_dict().keys()
        for again in WAYS.values():
            with pytest.raises(ValueError, match=f"wanted an encoder without adapters or LoRA, got one with {what}"):
                again(enc)
        assert enc.state_dict().keys() == before
    fv.tune.merge_lora(enc)
    fv.tune.add_adapters(enc)
    with pytest.raises(ValueError, match="wanted an encoder with LoRA, got one with adapters"):
        fv.tune.merge_lora(enc)
