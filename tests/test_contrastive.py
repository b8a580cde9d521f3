"""Chunked contrastive steps against the batch in one piece, in float64."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit as fv
import fastvivit.functional as F
from benchmarks.accounting import Ledger
from fastvivit import _chunks, tune
from fastvivit.contrastive import ContrastivePart, chunked_backward, contrastive_losses
from fastvivit.modules.clips import draw_keep
from tests.processes import run_two_ranks

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "digit", "one", "two", "moves", "up", "down", "first", "then"]


def tower(dropout=0.0):
    raw = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]")
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=16
    )
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return fv.TextTower(transformers.BertModel(config, add_pooling_layer=False), tokenizer)


def dual(loss="infonce", auxiliary=None, dropout=0.0, dtype=torch.float64, **changes):
    """In train mode; zeros are filled, so that nothing hides behind them."""
    torch.manual_seed(0)
    config = {"frames": 4, "size": 64, "width": 32, "depth": 3, "heads": 2, "ff": 64, "pos_std": 0.2} | changes
    model = fv.VideoTextModel(fv.ViViT(fv.ViViTConfig(**config)), tower(dropout), 16, auxiliary, loss=loss)
    for parameter in model.parameters():
        if parameter.dim() and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train().to(dtype)


def captions(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    draw = lambda most: int(torch.randint(most, (), generator=random))
    return [" ".join(WORDS[draw(len(WORDS))] for _ in range(1 + draw(6))) for _ in range(count)]


def clips(count, seed=1, frames=4, size=64):
    shape = (count, 3, frames, size, size) if frames else (count, 3, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def masked(count, tokens=32, seed=2):
    return F.random_keep(count, tokens, 0.75, generator=torch.Generator().manual_seed(seed))


def part(count=7, **options):
    return ContrastivePart(clips(count), captions(count), masked(count), **options)


def mixed():
    """Masked clips, a ragged last chunk of them, and images."""
    images = ContrastivePart(clips(5, 3, frames=0), captions(5, 4), masked(5, 16, 5), weight=0.5, text_seeds=range(5))
    return [part(weight=2.0, text_seeds=range(7, 14)), images]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_shot(model, parts, **options):
    whole = copy.deepcopy(model)
    values = contrastive_losses(whole, parts, **options)
    values["loss"].backward()
    return {name: value.detach() for name, value in values.items()}, gradients(whole)


def check(model, parts, options=None, **chunked):
    """Every value and gradient, twice over: gradients are added to those that are there."""
    values, wanted = one_shot(model, parts, **(options or {}))
    for times in (1, 2):
        found = chunked_backward(model, parts, **(options or {}), **chunked)
        assert found.keys() == values.keys() and not any(value.requires_grad for value in found.values())
        torch.testing.assert_close(found, values)
        assert gradients(model).keys() == wanted.keys()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, times * wanted[name], msg=lambda text, name=name: f"{name}: {text}")
    return wanted


def test_a_batch_in_one_piece_is_the_weighted_mean_of_its_parts():
    model, parts = dual("siglip"), mixed()
    values = contrastive_losses(model, parts)
    want = []
    for one in parts:
        video = nnf.normalize(model.video_proj(model.video(one.video, keep=one.keep).pooled))
        text = nnf.normalize(model.text_proj(model.text(one.texts)))
        logits = 10.0 * video @ text.T - 10.0
        signs = 2 * torch.eye(len(video), dtype=torch.float64) - 1
        want.append(-nnf.logsigmoid(signs * logits).sum() / len(video))
    torch.testing.assert_close(values["loss_0"], want[0])
    torch.testing.assert_close(values["loss_1"], want[1])
    torch.testing.assert_close(values["loss"], (2.0 * want[0] + 0.5 * want[1]) / 2.5)
    assert contrastive_losses(model, parts[:1]).keys() == {"loss", "contrastive"}


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, (3, 2)])
@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_chunks_give_the_gradients_of_the_batch(loss, chunk):
    found = check(dual(loss), mixed(), chunk=chunk)
    assert {"logit_scale", "video.embed.weight", "video.image.weight", "text_proj.weight"} <= found.keys()
    assert ("logit_bias" in found) == (loss == "siglip")


@pytest.mark.parametrize("kind", ["mlm", "captioning"])
def test_auxiliary_losses_are_means_over_the_tokens_of_the_part(kind):
    check(dual(auxiliary=kind), mixed(), chunk=3)
    bare = ContrastivePart(clips(3), ["", "up", "the digit one"], text_seeds=[1, 2, 3])
    check(dual(auxiliary=kind), [bare], chunk=1)


def test_masks_drawn_again_would_be_seen():
    model, parts = dual(), [part()]
    wanted = one_shot(model, parts)[1]
    encode = model.video.forward
    model.video.forward = lambda video, keep: encode(video, keep=F.random_keep(len(video), 32, 0.75))
    chunked_backward(model, parts, chunk=3)
    found = gradients(model)["video.embed.weight"]
    assert (found - wanted["video.embed.weight"]).norm() > 0.1 * wanted["video.embed.weight"].norm()


def in_a_loop(model, parts, size):
    """The same random numbers: chunks in turn with their graphs, and the loss on all of them."""
    vectors = []
    for one in parts:
        rows = [slice(i, i + size) for i in range(0, len(one.texts), size)]
        encoded = [(model.encode_video(one.video[r], keep=one.keep[r]), model.encode_text(one.texts[r])) for r in rows]
        vectors.append([torch.cat(both) for both in zip(*encoded, strict=True)])
    shares = [one.weight / sum(p.weight for p in parts) for one in parts]
    loss = sum(share * F.nce_loss(*both, model.scale) for share, both in zip(shares, vectors, strict=True))
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("replayed", [True, False])
def test_dropout_is_replayed(replayed, monkeypatch):
    model, parts = dual(dropout=0.2, drop_path=0.4), mixed()
    whole = copy.deepcopy(model)
    torch.manual_seed(5)
    loss = in_a_loop(whole, parts, 3)
    after = torch.rand(3)
    if not replayed:
        monkeypatch.setattr(_chunks, "set_random_state", lambda device, state: None)
    torch.manual_seed(5)
    found = chunked_backward(model, parts, chunk=3)["loss"]
    torch.testing.assert_close(found, loss)
    close = [torch.allclose(g, gradients(whole)[name]) for name, g in gradients(model).items()]
    assert all(close) == replayed
    if replayed:
        assert torch.equal(torch.rand(3), after)


def test_dropout_of_captions_is_replayed_beside_a_frozen_encoder():
    model = dual(dropout=0.2)
    model.video.requires_grad_(False)
    whole = copy.deepcopy(model)
    torch.manual_seed(5)
    in_a_loop(whole, [part()], 3)
    torch.manual_seed(5)
    chunked_backward(model, [part()], chunk=3)
    torch.testing.assert_close(gradients(model), gradients(whole))


@pytest.mark.parametrize("kind", ["mlm", "captioning"])
def test_what_an_auxiliary_loss_draws_is_drawn_once(kind):
    model, parts = dual(auxiliary=kind, dropout=0.2), [part(text_seeds=range(7))]
    states = []
    for _ in range(2):
        chunked_backward(model, parts, chunk=3)
        states.append(torch.get_rng_state())
    assert not torch.equal(*states)
    torch.manual_seed(0)
    first = chunked_backward(model, parts, chunk=3)
    second = chunked_backward(model, parts, chunk=3)
    assert (first[kind] != second[kind]) == (kind == "mlm") and first["contrastive"] != second["contrastive"]


def counted(model):
    """How often each block, the embedding and the text model run."""
    calls = {}

    def count(name):
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    for index, block in enumerate(model.video.blocks):
        block.register_forward_pre_hook(count(index))
    model.video.embed.register_forward_pre_hook(count("embed"))
    model.text.model.register_forward_pre_hook(count("text"))
    return calls


ENCODERS = {
    "joint": {},
    "class token": {"pool": "cls"},
    "factorised": {"attention": "factorised"},
    "frame": {"attention": "frame", "cls": True, "tubelet": (1, 16, 16)},
    "attention pool": {"pool": "attention"},
}


@pytest.mark.parametrize("changes", ENCODERS.values(), ids=list(ENCODERS))
@pytest.mark.parametrize("prefix", ["device", "host", "off"])
def test_frozen_blocks_run_once_where_their_outputs_are_kept(prefix, changes):
    model = dual(**changes)
    tune.last_layers(model.video, 1)
    # Ids in no order, and not as many a clip: frames have to be put in order, and back.
    ids = masked(7, model.video.config.tokens)
    keep = [own[torch.randperm(len(own))][: 8 - i] for i, own in enumerate(ids)]
    parts = [ContrastivePart(clips(7), captions(7), keep)]
    check(model, parts, chunk=3, prefix=prefix)
    model.zero_grad()
    calls = counted(model)
    chunked_backward(model, parts, chunk=3, prefix=prefix)
    # Three chunks, of which the last has its graph in the first pass.
    twice = 3 if prefix != "off" else 5
    assert calls == {"embed": twice, 0: twice, 1: twice, 2: 5, "text": 5}


@pytest.mark.parametrize("images", [False, True])
def test_images_whose_embedding_is_trained_keep_nothing(images):
    model = dual()
    tune.last_layers(model.video, 2, images=images)
    assert model.video.frozen_blocks() == 1 and model.video.frozen_blocks(images=True) == (not images)
    found = check(model, mixed(), chunk=3, prefix="host")
    assert ("video.image.weight" in found) == images


@pytest.mark.parametrize("auxiliary", [None, "captioning"])
@pytest.mark.parametrize("prefix", ["device", "off"])
def test_towers_that_are_not_trained_run_once(auxiliary, prefix):
    model, parts = dual(auxiliary=auxiliary), [part()]
    model.video.requires_grad_(False)
    model.text.requires_grad_(False)
    check(model, parts, chunk=3, prefix=prefix)
    calls = counted(model)
    chunked_backward(model, parts, chunk=3, prefix=prefix)
    # Only what reads the clip's tokens again needs them.
    runs = 5 if auxiliary and prefix == "off" else 3
    assert calls == {"embed": runs, 0: runs, 1: runs, 2: runs, "text": 3}


def test_nothing_but_the_temperature_can_be_trained():
    model = dual()
    model.requires_grad_(False)
    model.logit_scale.requires_grad_(True)
    assert check(model, [part()], chunk=3).keys() == {"logit_scale"}


def test_clips_of_all_kinds():
    sizes = [(4, 64), (2, 64), (4, 32), (2, 64), (4, 64)]
    ragged = [clips(1, i, *size)[0] for i, size in enumerate(sizes)]
    check(dual(), [ContrastivePart(ragged, captions(5))], chunk=2)
    drawn = draw_keep(5, ((2, 4, 4),), 0.75, generator=torch.Generator().manual_seed(0))
    check(dual(), [ContrastivePart(clips(5), captions(5), drawn)], chunk=2)
    model, cut = dual(), fv.Tubelets.from_clips(clips(5), drawn, (2, 16, 16))
    found = check(model, [ContrastivePart(cut, captions(5))], chunk=2)
    wanted = one_shot(model, [ContrastivePart(clips(5), captions(5), drawn)])[1]
    torch.testing.assert_close(found, wanted)
    tune.last_layers(model.video, 1)
    model.zero_grad()
    check(model, [ContrastivePart(cut, captions(5))], chunk=2)


def test_under_autocast_and_checkpointed():
    model = dual(dtype=torch.float32)
    model.video.set_grad_checkpointing()
    tune.last_layers(model.video, 2)
    whole = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_losses(whole, mixed())["loss"]
        found = chunked_backward(model, mixed(), chunk=3)["loss"]
    # Only forwards belong into autocast: the loss is float32, and so is its gradient.
    loss.backward()
    torch.testing.assert_close(found, loss.detach())
    assert gradients(model).keys() == gradients(whole).keys()
    for name, wanted in gradients(whole).items():
        # A key's bias has no effect, and its gradient is rounding.
        if not name.endswith("key.bias"):
            error = (gradients(model)[name] - wanted).norm() / wanted.norm()
            # A chunk's gradient of a weight is rounded to 16 bits; where no product is between, nothing is.
            exact = name == "logit_scale" or name.startswith("text.model.embeddings")
            assert error < (1e-5 if exact else 0.05), (name, error)


def test_casts_of_weights_without_a_graph_are_gone_before_one_is_built(monkeypatch):
    """PyTorch 2.10 would use those of the first pass in the second, and leave weights without a gradient."""
    model, events, clear = dual(dtype=torch.float32), [], torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (events.append("cleared"), clear()))
    model.video.register_forward_pre_hook(lambda *_: events.append(torch.is_grad_enabled()))
    with torch.autocast("cpu", torch.bfloat16):
        chunked_backward(model, [ContrastivePart(clips(5), captions(5))], chunk=2)
        assert events == [False, False, "cleared", True, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: clips stay on the host")
@pytest.mark.parametrize("prefix", ["device", "host", "off"])
def test_on_a_gpu_clips_come_chunk_by_chunk(prefix):
    model, parts = dual(), mixed()
    tune.last_layers(model.video, 1)
    wanted = one_shot(model, parts)[1]
    model.cuda()
    for _ in range(2):
        model.zero_grad()
        chunked_backward(model, parts, chunk=2, prefix=prefix)
        found = {name: gradient.cpu() for name, gradient in gradients(model).items()}
        torch.testing.assert_close(found, wanted)
    dropping = dual(dropout=0.2, drop_path=0.4).cuda()
    for _ in range(2):
        torch.manual_seed(5)
        dropping.zero_grad()
        on_device = [ContrastivePart(p.video.cuda(), p.texts, p.keep.cuda(), p.weight) for p in parts]
        loss = in_a_loop(copy.deepcopy(dropping), on_device, 3)
        torch.manual_seed(5)
        torch.testing.assert_close(chunked_backward(dropping, parts, chunk=3)["loss"], loss)


def test_only_the_last_backward_is_synchronised():
    model, seen = dual(), []
    probe = model.logit_scale

    @contextmanager
    def sync(last):
        before = probe.grad
        yield
        seen.append((last, before is None, probe.grad is None))

    chunked_backward(model, mixed(), chunk=3, sync=sync)
    # 3 + 2 chunks; what is reduced in the last one is complete then.
    assert seen == [(False, True, True)] * 4 + [(True, True, False)]
    seen.clear()
    model.zero_grad()
    chunked_backward(model, [part()], chunk=7, sync=sync)
    assert seen == [(True, True, False)]


def peak(step, count, frozen=0):
    model = dual(dtype=torch.float32)
    if frozen:
        tune.last_layers(model.video, 3 - frozen)
    parts = [part(count)]
    with Ledger([*model.parameters(), parts[0].video, parts[0].keep], {}) as ledger:
        step(model, parts)
    return ledger.peak


def test_memory_does_not_grow_with_the_batch():
    whole = lambda model, parts: contrastive_losses(model, parts)["loss"].backward()
    chunked = lambda model, parts: chunked_backward(model, parts, chunk=4)
    four, sixteen, sixtyfour = (peak(chunked, count) for count in (8, 16, 64))
    assert peak(whole, 16) > 1.5 * peak(whole, 8)
    # Embeddings, their gradients and the loss's own: unit vectors a few times over, and the logits.
    for grown, more in ((sixteen - four, 8), (sixtyfour - four, 56)):
        assert grown < 4 * (16 * 16 * more + 8 * (more + 8) ** 2), (grown, more)
    # The outputs of frozen blocks do grow: 8 kept tokens of 32 floats a clip.
    kept = peak(chunked, 64, frozen=1) - peak(chunked, 8, frozen=1)
    assert kept > 56 * 8 * 32 * 4


TWO_RANKS = """
import os, sys, torch, torch.distributed as dist
from tests.test_contrastive import dual, gradients, mixed, one_shot
from fastvivit.contrastive import ContrastivePart, chunked_backward
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
for loss in ("infonce", "siglip"):
    model, whole = dual(loss), mixed()
    whole = [ContrastivePart(p.video[:4], p.texts[:4], p.keep[:4], p.weight) for p in whole]
    values, wanted = one_shot(model, whole)
    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mine = slice(2 * rank, 2 * rank + 2)
    parts = [ContrastivePart(p.video[mine], p.texts[mine], p.keep[mine], p.weight) for p in whole]
    found = chunked_backward(model, parts, chunk=1, gather=True)
    total = found["loss"].clone(); dist.all_reduce(total)
    torch.testing.assert_close(total / 2, values["loss"])
    assert gradients(model).keys() == wanted.keys()
    for name, gradient in gradients(model).items():
        dist.all_reduce(gradient)
        torch.testing.assert_close(gradient / 2, wanted[name], msg=lambda text: f"{name}: {text}")
"""


def test_two_processes_are_as_one(tmp_path):
    run_two_ranks(TWO_RANKS, tmp_path)


def test_bad_arguments_are_errors_that_name_them():
    video, texts = clips(2), captions(2)
    for options, message in (
        ({"texts": captions(3)}, "texts: wanted 2 strings, one a clip"),
        ({"texts": "ab"}, "texts: wanted 2 strings"),
        ({"video": clips(0), "texts": []}, "video: wanted at least one clip"),
        ({"keep": masked(3)}, "keep: wanted ids of 2 clips like video, got of 3"),
        ({"weight": 0.0}, "weight: wanted above 0, and finite, got 0.0"),
        ({"weight": float("nan")}, "weight: wanted above 0"),
        ({"text_seeds": [1]}, "text_seeds: wanted 2 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            ContrastivePart(**({"video": video, "texts": texts} | options))
    model, parts = dual(), [part(2)]
    for change, message in (
        ({"model": model.video}, "model: wanted a VideoTextModel, got ViViT"),
        ({"parts": []}, "parts: wanted a list of ContrastivePart, at least one"),
        ({"parts": [video]}, "parts: wanted a list of ContrastivePart"),
        ({"chunk": 0}, "chunk: wanted a whole number of at least 1"),
        ({"chunk": (1, 2)}, "chunk: wanted a whole number of at least 1, or one for each of 1 parts"),
        ({"prefix": "disk"}, "prefix: wanted one of 'device', 'host', 'off', got 'disk'"),
        ({"loss": "triplet"}, "loss: wanted one of 'infonce', 'siglip', got 'triplet'"),
        ({"loss": "siglip"}, "loss: wanted a model made with loss='siglip'"),
    ):
        with pytest.raises(ValueError, match=message):
            chunked_backward(**({"model": model, "parts": parts, "chunk": 1} | change))
    bad = [part(2, text_seeds=[0, -1])]
    with pytest.raises(ValueError, match="text_seeds: wanted 2 whole numbers of at least 0"):
        chunked_backward(dual(auxiliary="mlm"), bad, chunk=1)
