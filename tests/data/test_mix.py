"""Several data sets in one stream of batches."""

from itertools import islice

import numpy as np
import pytest

from fastvivit.data import ClipDataset, Draw, EpochSampler, Mix, MixSampler, read_manifest, write_clip


def mixed(rank=0, ranks=1):
    return MixSampler([EpochSampler(10, 4, seed=1), EpochSampler(7, 2, seed=2)], rank=rank, ranks=ranks)


def take(sampler, count):
    return list(islice(sampler, count))


def test_every_source_goes_through_its_own_epochs():
    batches = take(mixed(), 30)
    assert all([draw.source for draw in batch] == [0] * 4 + [1] * 2 for batch in batches)
    for source, (length, size) in enumerate(((10, 4), (7, 2))):
        own, steps = EpochSampler(length, size, seed=source + 1), length // size
        for epoch in range(30 // steps):
            own.set_epoch(epoch)
            found = [[d.index for d in b if d.source == source] for b in batches[epoch * steps : (epoch + 1) * steps]]
            assert found == list(own)
            assert {d.epoch for b in batches[epoch * steps : (epoch + 1) * steps] for d in b if d.source == source} == {
                epoch
            }


@pytest.mark.parametrize("used", [0, 1, 2, 3, 7, 29])
def test_it_goes_on_where_it_was(used):
    first, second = mixed(), mixed()
    first.advance(used)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == take(mixed(), used + 5)[used:]
    assert take(second, 5) == take(second, 5)  # iterating moves nothing


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_share_the_batches_of_one(ranks):
    whole, parts = take(mixed(), 9), [take(mixed(rank, ranks), 9) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        for source in (0, 1):
            own = [draw for part in parts for draw in part[step] if draw.source == source]
            assert own == [draw for draw in batch if draw.source == source]


def test_items_and_batches(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed: pip install fastvivit[video]")
    grey = np.full((2, 16, 16, 3), 40, np.uint8)
    names = [write_clip(tmp_path / f"{i}.mp4", i * grey) for i in range(4)]
    rows = "".join(f'{{"video": "{name.name}", "caption": ["a {name.name}", "b {name.name}"]}}\n' for name in names)
    (tmp_path / "m.jsonl").write_text(rows)
    entries = read_manifest(tmp_path / "m.jsonl")
    sources = [ClipDataset(entries[:2], frames=2, size=16), ClipDataset(entries[2:], frames=1, size=16, seed=9)]
    mix = Mix(sources)
    draws = [Draw(1, 0, 3), Draw(0, 1, 5), Draw(1, 1, 3)]
    items = [mix[draw] for draw in draws]
    batches = mix.collate(items)
    assert [batch["source"] for batch in batches] == [0, 1]
    assert batches[0]["video"].shape == (1, 3, 2, 16, 16) and batches[1]["video"].shape == (2, 3, 1, 16, 16)
    for draw, item in zip(draws, items, strict=True):
        sources[draw.source].set_epoch(draw.epoch)
        own = sources[draw.source][draw.index]
        assert (item["caption"], item["mask_seed"]) == (own["caption"], own["mask_seed"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Mix([]), "sources: wanted at least one data set, got none"),
        (lambda: MixSampler([]), "samplers: wanted at least one, got none"),
        (lambda: mixed(2, 2), "rank: wanted 0 to 1, got 2"),
        (lambda: mixed(0, 4), "samplers: wanted batches that 4 ranks divide evenly, got one of 2"),
        (lambda: MixSampler([EpochSampler(5, 2, drop_last=False)]), "samplers: wanted drop_last"),
        (lambda: mixed().load_state_dict({"epoch": 0}), "state: wanted the positions of 2 sources, got None"),
        (
            lambda: mixed().load_state_dict({"sources": [EpochSampler(10, 4).state_dict()] * 2}),
            "state: wanted seed = 1 as in this sampler, got 0",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(words)
