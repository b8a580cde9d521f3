"""Writing: batches and beams against clip by clip, what is computed once, where a text ends."""

import threading

import pytest
import torch
from transformers.utils import logging

from fastvivit.caption.gated import GatedCrossAttention
from tests.caption import tiny

PROMPTS = ["a red cup", "blue dog falls then left", "cat"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
@pytest.mark.parametrize("lm", ["llama", "gpt2"])
@pytest.mark.parametrize("resampler", [False, "tiny"])
def test_a_batch_is_clip_by_clip(options, lm, resampler):
    cap = tiny.captioner(lm, resampler=resampler).double()
    seen = tiny.vision(dtype=torch.float64)
    several = options.get("num_return_sequences", 1)
    texts = cap.generate(seen, PROMPTS, 6, **options)
    alone = [text for i, prompt in enumerate(PROMPTS) for text in cap.generate(seen[i], prompt, 6, **options)]
    assert texts == alone and len(texts) == 3 * several
    other = cap.generate(tiny.vision((2, 9, 1), dtype=torch.float64), PROMPTS, 6, **options)
    assert other[several:] == texts[several:]


def test_what_a_text_says_depends_on_the_clip():
    cap = tiny.captioner()
    seen = tiny.vision((16, 16, 16, 16))
    assert len(set(cap.generate(seen, "the", 8))) > 1


def test_samples_of_one_seed_are_the_same():
    cap = tiny.captioner()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(cap.generate(tiny.vision(), "a", 8, do_sample=True, top_k=0, num_return_sequences=3))
    assert outs[0] == outs[1] != outs[2] and len(outs[0]) == 9


def test_greedy_whatever_the_model_prefers():
    cap = tiny.captioner()
    want = cap.generate(tiny.vision(), "a", 8)
    cap.lm.generation_config.update(do_sample=True, temperature=3.0, top_k=5, num_beams=2)
    before = cap.lm.generation_config.to_dict()
    assert [cap.generate(tiny.vision(), "a", 8) for _ in range(3)] == [want] * 3
    assert cap.lm.generation_config.to_dict() == before


@pytest.mark.parametrize("own", [{"max_length": 3}, {"max_length": 2048}, {"max_new_tokens": 2}])
def test_lengths_that_the_model_prefers_neither_count_nor_warn(own, caplog):
    cap = tiny.captioner()
    want = cap.generate(tiny.vision(), PROMPTS, 8, min_new_tokens=8)
    logger = logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        for name, value in own.items():
            setattr(cap.lm.generation_config, name, value)
        assert cap.generate(tiny.vision(), PROMPTS, 8, min_new_tokens=8) == want
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize("lm", ["gpt2", "opt"])
def test_the_longest_text_fits_the_models_positions(lm):
    cap = tiny.captioner(lm)
    steps = []
    cap.lm.register_forward_pre_hook(lambda *_: steps.append(1))
    # 64 positions; past them both models would fail.
    for prompt, most, written in (("", 63, 63), ("", 500, 63), ("red " * 80, 500, 32), ("red " * 80, 20, 20)):
        assert len(cap.generate(tiny.vision((3,)), prompt, most, min_new_tokens=written)) == 1
        assert len(steps) == written
        steps.clear()


@pytest.mark.parametrize("resampler", [False, "tiny"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_the_clip_is_encoded_once_and_its_keys_are_computed_once_a_layer(resampler, options, monkeypatch):
    cap = tiny.captioner(resampler=resampler)
    calls = {"video": 0, "bridge": 0, "keys": 0, "layers": 0}

    def counted(name, count=1):
        def count_one(*_):
            calls[name] += count

        return count_one

    cap.video.register_forward_hook(counted("video"))
    (cap.proj if cap.resampler is None else cap.resampler).register_forward_hook(counted("bridge"))
    for layer in cap.layers:
        layer.attn.kv.register_forward_hook(counted("keys"))
        layer.register_forward_hook(counted("layers"))
    cap.generate(tiny.clips(), PROMPTS, 8, min_new_tokens=8, **options)
    assert calls == {"video": 1, "bridge": 1, "keys": 2, "layers": 16}


def test_a_text_ends_where_captions_are_taught_to_end():
    # Language models have end tokens of their own beside the tokenizer's, or none at all.
    for own in (None, 40, [40, 41]):
        cap = tiny.captioner()
        cap.lm.generation_config.eos_token_id = own
        seen = []

        class Stream:
            def put(self, ids, seen=seen):
                seen.append(ids)

            def end(self):
                pass

        end = cap.tokenizer.eos_token_id
        with torch.no_grad():
            cap.lm.lm_head.weight.zero_()
            cap.lm.lm_head.weight[end] = 1e-3
        cap.lm.model.norm.register_forward_hook(lambda m, a, out: torch.ones_like(out))
        assert cap.generate(tiny.vision((3,)), "a", 8, streamer=Stream()) == [""]
        assert len(seen) == 2 and seen[1].item() == end


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_prompts_and_special_tokens_are_not_in_the_text(kind):
    cap = tiny.captioner(tokens=kind)
    texts = cap.generate(tiny.vision(), ["a photo of", "the", ""], 5)
    assert all(text == text.strip() and "<s>" not in text and "</s>" not in text for text in texts)
    assert not any(text.startswith("a photo of") for text in texts[:1])


def test_masked_places_do_not_matter():
    for options in ({"resampler": False}, {"resampler": "tiny"}):
        cap = tiny.captioner(**options)
        want = cap.generate(tiny.vision(), PROMPTS, 6)
        assert cap.generate(tiny.vision(holes=float("nan")), PROMPTS, 6) == want


def test_what_is_dropped_is_drawn_from_the_generator_or_given():
    cap = tiny.captioner()
    seen = [cap.encode_video(tiny.clips(), 0.5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(seen[0].tokens, seen[1].tokens) and not torch.equal(seen[0].tokens, seen[2].tokens)
    drawn = cap.generate(tiny.clips(), "a", 6, mask_ratio=0.5, generator=torch.Generator().manual_seed(1))
    assert drawn == cap.generate(seen[0], "a", 6)
    keep = torch.arange(0, 32, 3).expand(3, -1)
    assert cap.generate(tiny.clips(), "a", 6, keep=keep) == cap.generate(
        cap.encode_video(tiny.clips(), keep=keep), "a", 6
    )
    loss = cap(tiny.clips(), PROMPTS, keep=keep)
    assert torch.equal(loss, cap(cap.encode_video(tiny.clips(), keep=keep), PROMPTS))


def test_two_captioners_write_in_two_threads():
    caps = [tiny.captioner(), tiny.captioner("gpt2")]
    want = [cap.generate(tiny.vision(), PROMPTS, 8) for cap in caps]
    got = [[], []]

    def work(i):
        for _ in range(3):
            got[i].append(caps[i].generate(tiny.vision(), PROMPTS, 8))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[want[0]] * 3, [want[1]] * 3]


def test_one_captioner_writes_of_two_clips_in_two_threads():
    cap = tiny.captioner()
    seen = tiny.vision((16, 16))
    want = [cap.generate(seen[i], "a", 8) for i in range(2)]
    got = [None, None]

    def work(i):
        got[i] = [cap.generate(seen[i], "a", 8) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[w] * 3 for w in want]


def test_the_language_model_by_itself_sees_nothing():
    cap = tiny.captioner()
    inputs = tiny.left_padded(cap, PROMPTS)
    bare = tiny.language_model()
    cap.generate(tiny.vision(), PROMPTS, 4)
    assert torch.equal(cap.lm(**inputs).logits, bare(**inputs).logits)
    assert all(isinstance(layer, GatedCrossAttention) for layer in cap.layers)
