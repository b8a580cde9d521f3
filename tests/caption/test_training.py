"""The loss, its gradients, and what training leaves alone."""

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit as fv
from fastvivit.caption.files import fingerprint
from fastvivit.tubes import Tube
from tests.caption import tiny

TEXTS = ["a red cup", "dog falls then rises then left", "cat"]
PROMPTS = ["the", "a photo of the", ""]
BRIDGES = [False, "tiny"]
TUBES = (Tube(kernel=(2, 4, 4), stride=(2, 8, 8)), Tube(kernel=(4, 8, 8), stride=(4, 8, 8)))


def gradients(cap, loss):
    return torch.autograd.grad(loss, [p for p in cap.parameters() if p.requires_grad])


def assert_equal_all(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("lm", ["llama", "gpt2", "opt", "bloom"])
def test_the_loss_of_a_batch_is_the_token_weighted_mean_of_single_losses(lm):
    cap = tiny.captioner(lm).double()
    seen = tiny.vision(dtype=torch.float64)
    loss = cap(seen, TEXTS, prompts=PROMPTS)
    counts = cap.texts.targets(PROMPTS, TEXTS, torch.device("cpu"), ended=True).counts
    single = torch.stack([cap(seen[i], [TEXTS[i]], prompts=PROMPTS[i]) for i in range(3)])
    assert loss.dim() == 0
    torch.testing.assert_close(loss, (single * torch.tensor(counts)).sum() / sum(counts), rtol=1e-5, atol=1e-6)


def test_prompts_are_not_learned():
    cap = tiny.captioner()
    seen = tiny.vision((16,))
    ids = cap.tokenizer("the red cup")["input_ids"] + [cap.tokenizer.eos_token_id]
    with fv.caption.insertion.seeing(cap.insertion, cap.look(seen)):
        logp = cap.lm(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    want = -torch.stack([logp[1, ids[2]], logp[2, ids[3]]]).mean()
    torch.testing.assert_close(cap(seen, ["cup"], prompts="the red"), want)


@pytest.mark.parametrize("resampler", BRIDGES)
@pytest.mark.parametrize("ff", [0, 2])
def test_only_the_new_layers_are_trained_and_all_of_them(resampler, ff):
    # DistributedDataParallel waits for the gradient of every parameter.
    cap = tiny.captioner(resampler=resampler, ff=ff).train()
    cap(tiny.clips(), TEXTS).backward()
    for name, parameter in cap.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("video.", "lm."))), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert {n for n, p in cap.named_parameters() if p.requires_grad} == set(cap.trained_state())
    shut = tiny.captioner(resampler=resampler, ff=ff, opened=False)
    shut(tiny.clips(), TEXTS).backward()
    assert all(p.grad is not None for p in shut.parameters() if p.requires_grad)
    assert all(layer.gate.grad.any() for layer in shut.layers)


@pytest.mark.parametrize("lm", ["llama", "opt"])
def test_training_learns_and_leaves_the_frozen_models_to_the_bit(lm):
    cap = tiny.captioner(lm, opened=False, resampler="tiny").train()
    before = fingerprint(cap.video), fingerprint(cap.lm)
    params = [p for p in cap.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, 2e-2)
    losses = []
    for _ in range(25):
        loss = cap(tiny.clips(2), ["red cup falls", "blue dog rises"], prompts="the")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert (fingerprint(cap.video), fingerprint(cap.lm)) == before
    with torch.no_grad():
        next(cap.lm.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(cap.lm) != before[1]


@pytest.mark.parametrize("lm", ["gpt2", "opt"])
def test_frozen_models_have_no_dropout_in_train_mode(lm):
    changes = {"gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5}, "opt": {"dropout": 0.5}}[lm]
    cap = tiny.captioner(lm=tiny.language_model(lm, **changes), video=tiny.encoder(depth=2, drop_path=0.9))
    want = cap(tiny.clips(), TEXTS, 0.0)
    assert cap.train() is cap and cap.training and cap.layers.training
    assert not any(module.training for frozen in (cap.video, cap.lm) for module in frozen.modules())
    assert torch.equal(cap(tiny.clips(), TEXTS, 0.0), want)
    assert not cap.eval().layers.training


@pytest.mark.parametrize("lm", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("how", ["captioner", "model"])
def test_checkpointing_changes_nothing_but_memory(lm, how):
    cap = tiny.captioner(lm, resampler="tiny").train()
    plain = cap(tiny.vision(), TEXTS)
    want = gradients(cap, plain)
    saved = {}

    def measured():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            return cap(tiny.vision(), TEXTS), sum(sizes)

    saved["plain"] = measured()[1]
    if how == "captioner":
        cap.set_grad_checkpointing()
    else:
        cap.lm.gradient_checkpointing_enable()
    loss, saved["less"] = measured()
    assert torch.equal(loss, plain) and saved["less"] < 0.7 * saved["plain"]
    # A forward of other clips in between: the backward must see the clips of its own call.
    other = cap(tiny.vision((2, 5, 16)), TEXTS[::-1])
    assert_equal_all(gradients(cap, loss), want)
    assert not torch.equal(other, loss)


def test_what_masked_places_hold_matters_to_no_loss_and_no_gradient():
    for resampler in BRIDGES:
        cap = tiny.captioner(resampler=resampler)
        found = []
        for holes in (0.0, 1e30, float("nan")):
            loss = cap(tiny.vision(holes=holes), TEXTS)
            found.append([loss.detach(), *gradients(cap, loss)])
        assert all(t.isfinite().all() for t in found[0])
        assert_equal_all(found[0], found[1])
        assert_equal_all(found[0], found[2])


@pytest.mark.parametrize("resampler", BRIDGES)
def test_lower_precision(resampler):
    def fresh():
        return tiny.captioner(resampler=resampler)

    want = fresh()(tiny.vision(), TEXTS)
    mixed, half, double = fresh(), fresh().bfloat16(), fresh().double()
    mixed.lm.bfloat16()
    losses = {"lm": mixed(tiny.vision(), TEXTS), "all": half(tiny.vision(dtype=torch.bfloat16), TEXTS)}
    cap = fresh()
    with torch.autocast("cpu", torch.bfloat16):
        losses["autocast"] = cap(tiny.vision(), TEXTS)
        assert len(cap.generate(tiny.vision(), "a", 3)) == 3
    for name, loss in losses.items():
        torch.testing.assert_close(loss.float(), want, rtol=0.05, atol=0, msg=name)
        loss.backward()
    torch.testing.assert_close(double(tiny.vision(dtype=torch.float64), TEXTS).float(), want, rtol=1e-4, atol=0)
    assert mixed.layers[0].attn.q.weight.grad.dtype == torch.float32
    assert len(mixed.generate(tiny.vision(), "a", 3)) == len(half.generate(tiny.vision(), "a", 3)) == 3


@pytest.mark.parametrize("normalise", ["sum", "tokens"])
@pytest.mark.parametrize("tokens", ["words", "bytes", "pieces"])
def test_scores_are_sums_of_log_softmax(normalise, tokens):
    cap = tiny.captioner(tokens=tokens, resampler="tiny")
    options = [["red cup", "dog"], ["a photo of the cat"], ["cup", "blue dog falls", "left"]]
    prompts = ["the", "a photo of ", ""]
    seen = tiny.vision()
    scores = cap.score(seen, prompts, options, normalise)
    assert scores.shape == (3, 3) and scores.dtype == torch.float32 and not scores.requires_grad
    for i, row in enumerate(options):
        for j, option in enumerate(row):
            batch = cap.texts.targets([prompts[i]], [option], torch.device("cpu"), ended=False)
            with torch.no_grad(), fv.caption.insertion.seeing(cap.insertion, cap.look(seen[i])):
                logp = cap.lm(input_ids=batch.input_ids).logits[0].log_softmax(-1)
            want = logp[batch.index, batch.target].sum()
            want = want / batch.counts[0] if normalise == "tokens" else want
            torch.testing.assert_close(scores[i, j], want, rtol=1e-4, atol=1e-4)
        assert (scores[i, len(row) :] == float("-inf")).all()
    changed = fv.Vision(torch.cat((seen.tokens[:1], seen.tokens[1:] + 1)), seen.mask)
    assert torch.equal(cap.score(changed, prompts, options, normalise)[0], scores[0])


@pytest.mark.parametrize(
    ("settings", "options", "video"),
    [
        ({}, {"every": 2}, None),
        ({}, {"ff": 4}, None),
        ({}, {"over_time": False}, None),
        ({}, {"over_time": False, "resampler": "tiny"}, None),
        ({"attention": "tubes", "tubes": TUBES}, {"over_time": False}, None),
        ({"attention": "frame", "pool": "cls"}, {"over_time": False}, None),
        ({"attention": "factorised"}, {}, None),
        ({"images": True}, {}, "images"),
        ({}, {}, "list"),
        ({}, {"over_time": False, "resampler": "tiny"}, "list"),
    ],
)
def test_every_form_of_encoder_bridge_and_clip(settings, options, video):
    cap = tiny.captioner(video=tiny.encoder(**settings), **options).train()
    seen = tiny.clips()
    if video == "images":
        seen = seen[:, :, 0]
    if video == "list":
        seen = [seen[0], seen[1, :, :2], seen[2, :, :, :8]]
    assert len(cap.layers) == 2 // options.get("every", 1)
    loss = cap(seen, TEXTS)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in cap.parameters() if p.requires_grad)
    texts = cap.eval().generate(seen, "a", 4)
    assert texts == [cap.generate(seen[i : i + 1], "a", 4)[0] for i in range(3)]


def test_the_papers_resampler_is_made_by_default():
    cap = tiny.captioner(resampler=True)
    assert cap.resampler.latents.shape == (16, 1024) and len(cap.resampler.layers) == 3
    assert cap.resampler.num_features == 32 and cap.proj is None
    assert cap.no_weight_decay() == {"resampler.latents"} and tiny.captioner().no_weight_decay() == set()
    own = tiny.resampler()
    assert tiny.captioner(resampler=own).resampler is own


def test_the_loss_without_a_graph_needs_no_video_twice():
    cap = tiny.captioner()
    seen = cap.encode_video(tiny.clips(), 0.3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cap(seen, TEXTS), cap(tiny.clips(), TEXTS, generator=torch.Generator().manual_seed(0)))
    assert nnf.relu(cap(seen, TEXTS)) > 0
