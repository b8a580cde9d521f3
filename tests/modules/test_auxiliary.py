"""Auxiliary losses: their equations, what they see, what they train, and that they are off until asked for."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit as fv
import fastvivit.functional as F
from fastvivit.modules.auxiliary import make_head

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "digit", "one", "two", "moves", "up", "down", "first", "then"]
VIDEO = torch.randint(256, (3, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEXTS = ["the digit one moves up", "two", "first down then up then down"]
SEEDS = [3, 1, 2**62]
KINDS = ["mlm", "captioning"]


def tower(framed=False, mask=True, side="right"):
    """A small BERT over ``WORDS``; ``framed`` captions stand between [CLS] and [SEP]."""
    names = SPECIAL if mask else SPECIAL[:-1]
    raw = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate([*names, *WORDS])}, unk_token="[UNK]")
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if framed:
        raw.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]" if mask else None,
        padding_side=side,
        model_max_length=16,
    )
    config = transformers.BertConfig(
        vocab_size=len(names) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
    )
    return fv.TextTower(transformers.BertModel(config, add_pooling_layer=False).eval(), tokenizer)


def dual(auxiliary, text=None, **changes):
    """A dual encoder in float64 whose zeros have been filled, so that nothing can hide behind them."""
    torch.manual_seed(0)
    cfg = fv.ViViTConfig(frames=4, size=32, width=48, depth=1, heads=3, ff=96, images=False, **changes)
    model = fv.VideoTextModel(fv.ViViT(cfg), text or tower(), dim=16, auxiliary=auxiliary).eval().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("auxiliary.") and parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def dense_attention(q, k, v, heads, causal=False):
    q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
    score = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        score = score.masked_fill(torch.ones(score.shape[1:], dtype=torch.bool).triu(1), -math.inf)
    return (score.softmax(-1) @ v).transpose(0, 1).flatten(1)


def dense_logits(head, embeddings, x, media, causal):
    """(L, V) logits of one caption x (L, D) beside the tokens of its clip."""

    def linear(name, y):
        return nnf.linear(y, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, y):
        return nnf.layer_norm(y, y.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    weights = head.state_dict()
    media = norm("norm_media", media)
    for i in range(head.config.depth):
        at, heads = f"layers.{i}", 2
        y = norm(f"{at}.norm1", x)
        y = dense_attention(*linear(f"{at}.attn.qkv", y).chunk(3, -1), heads, causal)
        x = x + linear(f"{at}.attn.proj", y)
        y = linear(f"{at}.cross.q", norm(f"{at}.norm2", x))
        y = dense_attention(y, *linear(f"{at}.cross.kv", media).chunk(2, -1), heads)
        x = x + linear(f"{at}.cross.proj", y)
        x = x + linear(f"{at}.mlp.fc2", nnf.gelu(linear(f"{at}.mlp.fc1", norm(f"{at}.norm3", x))))
    return linear("out", norm("norm", x)) @ embeddings.T + weights["bias"]


def dense_loss(model, video, texts, seeds, keep):
    """Both losses by their definitions: a caption and a clip at a time, no packing, no padding."""
    head, text = model.auxiliary, model.text
    embeddings = text.model.get_input_embeddings().weight
    found = []
    for row, caption in enumerate(texts):
        media = model.video(video[row : row + 1], keep=keep[row : row + 1]).tokens
        ids = text.tokenizer(caption, return_tensors="pt")["input_ids"][0]
        if head.config.kind == "mlm":
            maskable = (ids >= len(SPECIAL)) | (ids == 1)
            hidden, chosen = head.mask_tokens(ids[None], maskable[None], text, seeds[row : row + 1])
            x = text.model(input_ids=hidden).last_hidden_state[0]
            logits = dense_logits(head, embeddings, x, media, causal=False)[chosen[0]]
            ids = ids[chosen[0]]
        else:
            ids = ids[1:] if ids[0] == 2 else ids
            x = head.embed(embeddings[ids[:-1]])
            x = torch.cat([head.start[None], x]) + head.pos[: len(ids)]
            logits = dense_logits(head, embeddings, x, media, causal=True)
        found += list(-logits.log_softmax(-1)[torch.arange(len(ids)), ids])
    return sum(found) / len(found)


# BERT counts padding on the left among its positions, so that there its own states would differ.
@pytest.mark.parametrize(("kind", "side"), [("mlm", "right"), ("captioning", "right"), ("captioning", "left")])
@pytest.mark.parametrize("framed", [False, True])
def test_an_auxiliary_loss_is_its_definition(kind, framed, side):
    model = dual(fv.AuxiliaryConfig(kind=kind, depth=2, mlm_ratio=0.4, weight=0.5), tower(framed, side=side))
    keep = F.random_keep(3, 8, 0.5)
    parts = model.losses(VIDEO, TEXTS, keep=keep, text_seeds=SEEDS)
    wanted = dense_loss(model, VIDEO, TEXTS, SEEDS, keep)
    torch.testing.assert_close(parts[kind], wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts["loss"], parts["contrastive"] + 0.5 * wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(model(VIDEO, TEXTS, keep=keep, text_seeds=SEEDS), parts["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_and_masked_clips_are_those_computed_alone(kind):
    model = dual(fv.AuxiliaryConfig(kind=kind, mlm_ratio=0.3), pool="cls")
    clips = [VIDEO[0], VIDEO[1][:, :2], VIDEO[2]]
    keep = [torch.tensor([0, 5]), torch.tensor([1, 2, 3]), torch.tensor([7])]
    together = model.losses(clips, TEXTS, keep=keep, text_seeds=SEEDS)[kind]
    count = [max(1, math.floor(0.3 * n + 0.5)) for n in (5, 1, 6)] if kind == "mlm" else (5, 1, 6)
    alone = [
        model.losses(clips[i : i + 1], TEXTS[i : i + 1], keep=keep[i : i + 1], text_seeds=SEEDS[i : i + 1])[kind]
        for i in range(3)
    ]
    wanted = sum(n * loss for n, loss in zip(count, alone, strict=True)) / sum(count)
    torch.testing.assert_close(together, wanted, rtol=1e-9, atol=1e-9)
    other = model.losses(clips, TEXTS, keep=[*keep[:2], torch.tensor([6])], text_seeds=SEEDS)[kind]
    assert not torch.allclose(together, other)  # which tokens were kept matters


def test_a_captions_token_does_not_see_those_after_it():
    model = dual("captioning")
    head, out = model.auxiliary, model.video(VIDEO[:1])

    def states(ids):
        return head.decode(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), model.text, out)

    ids = [5, 6, 7, 8, 9, 10]
    before = states(ids)
    for changed in range(len(ids)):
        after = states([*ids[:changed], 12, *ids[changed + 1 :]])
        difference = (after - before).abs().amax(1)
        assert (difference[: changed + 1] < 1e-12).all()  # row t predicts token t, from those before it
        assert (difference[changed + 1 :] > 1e-6).all()
    assert states(ids[:3]).shape == (3, 32)
    torch.testing.assert_close(states(ids[:3]), before[:3])


def test_masked_language_modelling_sees_both_ways_but_not_what_is_masked(monkeypatch):
    model = dual("mlm")
    head, out = model.auxiliary, model.video(VIDEO[:1])
    hidden, chosen = torch.tensor([[5, 4, 7]]), torch.tensor([[False, True, False]])
    monkeypatch.setattr(head, "mask_tokens", lambda *_: (hidden, chosen))
    loss = head(out, model.text, ["the digit one"], SEEDS[:1])
    # The caption is the targets alone: only that of the chosen place counts.
    assert torch.equal(head(out, model.text, ["up digit down"], SEEDS[:1]), loss)
    assert not torch.allclose(head(out, model.text, ["the two one"], SEEDS[:1]), loss)
    for place in (0, 2):
        hidden = torch.tensor([[5, 4, 7]])
        hidden[0, place] = 11
        assert not torch.allclose(head(out, model.text, ["the digit one"], SEEDS[:1]), loss)


def test_tokens_are_masked_as_in_bert():
    model = dual(fv.AuxiliaryConfig(kind="mlm", mlm_ratio=0.15))
    ids = torch.arange(5, 14).repeat(600, 23)[:, :200]
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, :20] = False
    hidden, chosen = model.auxiliary.mask_tokens(ids, maskable, model.text, range(600))
    assert (chosen.sum(1) == 27).all() and not chosen[:, :20].any()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    spread = chosen[:, 20:].double().mean(0)
    assert spread.min() > 0.08 and spread.max() < 0.22  # every place, at 15 %
    masked = (hidden == 4)[chosen].double().mean().item()
    same = (hidden == ids)[chosen].double().mean().item()
    # A random one is, one time in 14, the mask token, and one in 14, the same.
    assert masked == pytest.approx(0.8 + 0.1 / 14, abs=0.015) and same == pytest.approx(0.1 + 0.1 / 14, abs=0.012)
    assert set(hidden[chosen].tolist()) == set(range(14))
    again = model.auxiliary.mask_tokens(ids[5:7], maskable[5:7], model.text, [5, 6])
    assert torch.equal(again[0], hidden[5:7]) and torch.equal(again[1], chosen[5:7])
    few = torch.tensor([[True, False, False], [False, False, False]])
    assert model.auxiliary.mask_tokens(ids[:2, :3], few, model.text, [1, 2])[1].sum(1).tolist() == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_encoder_the_text_model_and_all_of_the_head(kind):
    model = dual(kind)
    model.losses(VIDEO, TEXTS, mask_ratio=0.5, text_seeds=SEEDS)[kind].backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    head, video = {n for n in without if n.startswith("auxiliary.")}, {n for n in without if n.startswith("video.")}
    assert not head and not video
    assert "text.model.embeddings.word_embeddings.weight" not in without
    # A bidirectional text tower would tell the decoder the rest of the caption.
    read = any(n.startswith("text.model.encoder.") and n not in without for n, _ in model.named_parameters())
    assert read == (kind == "mlm")


def test_seeds_are_drawn_where_none_are_given():
    model = dual("mlm")
    first, second = (model(VIDEO, TEXTS, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model(VIDEO, TEXTS, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(model(VIDEO, TEXTS, text_seeds=torch.tensor(SEEDS)), model(VIDEO, TEXTS, text_seeds=SEEDS))
    for bad in (SEEDS[:2], [-1, 2, 3]):
        with pytest.raises(ValueError, match="text_seeds: wanted 3 whole numbers of at least 0"):
            model(VIDEO, TEXTS, text_seeds=bad)


@pytest.mark.parametrize("off", [None, "none", fv.AuxiliaryConfig()])
def test_off_is_the_contrastive_loss_to_the_bit(off):
    model = dual(off)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert model.auxiliary is None and not any("auxiliary" in name for name in model.state_dict())
    # What is drawn, and in which order, is what it was.
    cfg, text = model.video.config, tower()
    torch.manual_seed(0)
    video = fv.ViViT(cfg)
    tower()
    again = fv.VideoTextModel(video, text, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.video_proj.weight.double(), model.video_proj.weight)
    keep = F.random_keep(3, 8, 0.5)
    wanted = F.nce_loss(model.encode_video(VIDEO, keep=keep), model.encode_text(TEXTS), model.scale)
    parts = model.losses(VIDEO, TEXTS, keep=keep)
    assert parts.keys() == {"loss", "contrastive"}
    assert torch.equal(parts["loss"], wanted) and torch.equal(model(VIDEO, TEXTS, keep=keep), wanted)
    assert torch.equal(dual("captioning").losses(VIDEO, TEXTS, keep=keep)["contrastive"], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_folders_round_trip(kind, tmp_path):
    config = fv.AuxiliaryConfig(kind=kind, depth=1, heads=4, weight=0.25, mlm_ratio=0.2)
    model = dual(config)
    again = fv.load_pretrained(fv.save_pretrained(model, tmp_path / "model"))
    assert again.auxiliary.config == config
    inputs = {"mask_ratio": 0.0, "text_seeds": SEEDS}
    assert torch.equal(again(VIDEO, TEXTS, **inputs), model(VIDEO, TEXTS, **inputs))
    file = tmp_path / "model" / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"auxiliary": {"kinds": kind}}))
    with pytest.raises(ValueError, match="kinds: no such field of AuxiliaryConfig .did you mean 'kind'"):
        fv.load_pretrained(tmp_path / "model")


def test_folders_from_before_there_was_a_head_load(tmp_path):
    model = dual(None)
    folder = fv.save_pretrained(model, tmp_path / "model")
    assert "auxiliary" not in json.loads((folder / "config.json").read_text())
    again = fv.load_pretrained(folder)
    assert again.auxiliary is None and torch.equal(again(VIDEO, TEXTS), model(VIDEO, TEXTS))


@pytest.mark.parametrize("kind", KINDS)
def test_the_auxiliary_loss_falls(kind):
    """Captions that only the clip tells apart: its brightness says which digit it is."""
    model = dual(fv.AuxiliaryConfig(kind=kind, depth=1, mlm_ratio=1.0), tower()).float().train()
    texts = ["the digit one moves", "the digit two moves"]
    video = torch.stack([torch.full((3, 4, 32, 32), 40), torch.full((3, 4, 32, 32), 220)]).to(torch.uint8)
    optimiser, seen = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for step in range(60):
        parts = model.losses(video, texts, mask_ratio=0.5, text_seeds=[2 * step, 2 * step + 1])
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
        seen.append(parts[kind].item())
    assert seen[0] > 1.5
    # Blind to the clip, a decoder would be left with ln 2 at one token in four.
    assert sum(seen[-5:]) / 5 < (0.5 if kind == "mlm" else math.log(2) / 4 / 2)


def test_what_does_not_fit_is_refused():
    for fields, message in (
        ({"kind": "mml"}, "auxiliary.kind: wanted one of 'none', 'mlm', 'captioning', got 'mml'"),
        ({"weight": 0.0}, "auxiliary.weight: wanted above 0, and finite, got 0.0"),
        ({"depth": 0}, "auxiliary.depth: wanted a whole number of at least 1, got 0"),
        ({"heads": 0}, "auxiliary.heads: wanted a whole number of at least 1, got 0"),
        ({"mlm_ratio": 1.5}, "auxiliary.mlm_ratio: wanted 0 < ratio <= 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            fv.AuxiliaryConfig(**fields)
    with pytest.raises(ValueError, match="auxiliary.kind: wanted one of"):
        dual("mml")
    with pytest.raises(ValueError, match="auxiliary.kind: wanted a tokenizer with a mask token for 'mlm'.* got None"):
        dual("mlm", tower(mask=False))
    with pytest.raises(ValueError, match="auxiliary.heads: wanted a divisor of the text tower's width 32, got 5"):
        dual(fv.AuxiliaryConfig(kind="captioning", heads=5))
    model = dual(None)
    config = fv.AuxiliaryConfig(kind="mlm")
    assert make_head(replace(config, kind="none"), model.video, model.text) is None
    assert make_head(config, model.video, model.text).config.heads is None


@pytest.mark.parametrize("kind", KINDS)
def test_captions_without_tokens_cost_nothing(kind):
    model = dual(kind)
    parts = model.losses(VIDEO[:2], ["", "up"], text_seeds=[1, 2])
    alone = model.losses(VIDEO[1:2], ["up"], text_seeds=[2])
    torch.testing.assert_close(parts[kind], alone[kind])


def test_weight_decay_leaves_positions_out():
    assert "auxiliary.pos" in dual("captioning").no_weight_decay()
    assert not any("auxiliary" in name for name in dual("mlm").no_weight_decay())
