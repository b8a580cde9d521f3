"""The order of samples: complete, deterministic, resumable, and twins together."""

from __future__ import annotations

import json

import pytest

from fastvivit.data import EpochSampler


class Twins:
    """A data set of which only the twins matter."""

    def __init__(self, twins):
        self.twins = twins

    def __len__(self):
        return len(self.twins)

    def twin_indices(self):
        return self.twins


def run(sampler, steps):
    """The batches of so many steps, across epochs, as a run uses them."""
    used = []
    while len(used) < steps:
        for batch in sampler:
            used.append((sampler.epoch, batch))
            sampler.advance()
            if len(used) == steps:
                break
    return used


@pytest.mark.parametrize(("drop_last", "batches"), [(True, 3), (False, 4)])
def test_an_epoch_holds_every_sample_once(drop_last, batches):
    sampler = EpochSampler(11, 3, 5, drop_last=drop_last)
    drawn = list(sampler)
    flat = [index for batch in drawn for index in batch]
    assert len(drawn) == len(sampler) == batches
    assert len(set(flat)) == len(flat) == (9 if drop_last else 11)
    assert {len(batch) for batch in drawn} == ({3} if drop_last else {3, 2})


def test_orders_depend_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(100, 10, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_without_shuffling_the_order_is_that_of_the_data():
    assert list(EpochSampler(7, 3, shuffle=False, drop_last=False)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("pair_twins", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 5, 6, 9])
def test_stopping_and_resuming_changes_nothing(stop, pair_twins):
    source = Twins([i ^ 1 for i in range(20)])
    whole = run(EpochSampler(source, 4, 3, pair_twins=pair_twins), 12)
    first = EpochSampler(source, 4, 3, pair_twins=pair_twins)
    used = run(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = EpochSampler(source, 4, 3, pair_twins=pair_twins)
    second.load_state_dict(state)
    assert used + run(second, 12 - stop) == whole


def test_drawing_ahead_is_not_using():
    """A loader draws batches early; only what was used moves the position."""
    sampler = EpochSampler(20, 4, 3)
    ahead = list(sampler)
    sampler.advance(2)
    assert (sampler.epoch, sampler.next_batch) == (0, 2) and list(sampler) == ahead[2:]
    sampler.advance(3)
    assert (sampler.epoch, sampler.next_batch) == (1, 0) and list(sampler) != ahead


@pytest.mark.parametrize("singles", [0, 1, 2, 7])
def test_twins_are_in_one_batch(singles):
    twins = [i ^ 1 for i in range(40)] + [-1] * singles
    sampler = EpochSampler(Twins(twins), 6, 1, pair_twins=True, drop_last=False)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(index for batch in batches for index in batch) == list(range(len(twins)))
        for batch in batches:
            assert all(twins[index] in batch for index in batch if twins[index] >= 0)
    plain = EpochSampler(Twins(twins), 6, 1, drop_last=False)
    assert any(twins[i] not in batch for batch in plain for i in batch if twins[i] >= 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpochSampler(10, 0), r"batch_size: wanted at least 1, got 0"),
        (lambda: EpochSampler(3, 4), r"source: wanted at least one batch of 4 samples, got 3"),
        (
            lambda: EpochSampler(0, 4, drop_last=False),
            r"source: wanted at least one batch of 1 samples, got 0",
        ),
        (
            lambda: EpochSampler(10, 3, pair_twins=True),
            r"batch_size: wanted an even number with pair_twins, got 3",
        ),
        (lambda: EpochSampler(10, 2, pair_twins=True), r"source: wanted a data set with twin_indices\(\)"),
        (
            lambda: EpochSampler(Twins([1, 2, 0, -1]), 2, pair_twins=True),
            r"twin: wanted two samples that name",
        ),
        (lambda: EpochSampler(Twins([0, -1]), 2, pair_twins=True), r"twin: wanted two samples that name"),
        (lambda: EpochSampler(10, 2).set_epoch(-1), r"epoch: wanted at least 0, got -1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_state_of_another_sampler_is_refused():
    state = EpochSampler(10, 2, 1).state_dict()
    for change, message in (
        ({"seed": 2}, r"state: wanted seed = 1 as in this sampler, got 2"),
        ({"batch_size": 5}, r"state: wanted batch_size = 2 as in this sampler, got 5"),
        ({"next_batch": 5}, r"state: wanted an epoch from 0 and a batch below 5, got epoch 0, batch 5"),
        ({"more": 1}, r"state: wanted the fields \[.*\], got \[.*'more'.*\]"),
    ):
        with pytest.raises(ValueError, match=message):
            EpochSampler(10, 2, 1).load_state_dict(state | change)
