"""The roofline: FLOPs are those of the formulas, and every second has its ceiling."""

from dataclasses import replace

import pytest
import torch

import fastvivit as fv
from benchmarks.accounting import account
from fastvivit.planning.devices import BY_NAME, device_named
from fastvivit.planning.seconds import EFFICIENCY, LAUNCH, model_flops, op_seconds, seconds_of
from fastvivit.planning.simulate import simulate
from fastvivit.planning.step import Step
from fastvivit.planning.trace import ATTENTION, ATTENTION_BACKWARD, FLOPS, PRODUCTS, REST

CFG = fv.ViViTConfig(frames=8, size=64, tubelet=(2, 8, 8), width=64, depth=5, heads=4, ff=256, images=False)
H100 = BY_NAME["h100"]


def op(flops, moved, kind):
    return torch.tensor([[0, 0, 0, flops, moved, kind]])


def test_an_op_takes_the_longer_of_its_flops_and_its_bytes():
    step = Step(config=CFG)
    rate, copy = H100.half * EFFICIENCY["products"], H100.copy * EFFICIENCY["memory"]
    assert float(op_seconds(op(10**12, 1, PRODUCTS), step, H100)) == pytest.approx(1e12 / rate)
    assert float(op_seconds(op(10, 10**9, PRODUCTS), step, H100)) == pytest.approx(1e9 / copy)
    assert float(op_seconds(op(0, 10**9, REST), step, H100)) == pytest.approx(1e9 / copy)
    whole = replace(step, precision="float32")
    ieee = H100.ieee * EFFICIENCY["products"]
    assert float(op_seconds(op(10**12, 1, PRODUCTS), whole, H100)) == pytest.approx(1e12 / ieee)


def test_attention_takes_its_exponentials_and_its_backward_seven_products():
    step, scores, head = Step(config=CFG), 10**9, CFG.width // CFG.heads
    share, exponential = EFFICIENCY["attention"], 1 / H100.exponential_rate
    forward = scores * (4 * head / H100.half + exponential) / share
    backward = scores * (14 * head / H100.half + 2 * exponential) / share
    assert float(op_seconds(op(4 * head * scores, 1, ATTENTION), step, H100)) == pytest.approx(forward)
    assert float(op_seconds(op(10 * head * scores, 1, ATTENTION_BACKWARD), step, H100)) == pytest.approx(backward)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_flops_are_those_of_the_accounting_of_a_whole_step(mask_ratio):
    for depth in (2, 9):
        step = Step(config=CFG.replace(depth=depth), mask_ratio=mask_ratio, batch=4)
        assert model_flops(step) == account(step.config, mask_ratio, clips=4).flops_step
        again = replace(step, checkpointing="full")
        assert model_flops(again) == model_flops(step), "nothing twice"
        computed = int(simulate(again).trace.at(4).ops()[:, FLOPS].sum())
        whole = account(step.config, mask_ratio, clips=4, dtype=torch.bfloat16, checkpointing=True).flops_step
        assert computed == whole > model_flops(step)


def test_chunks_cost_a_second_forward_but_for_a_stored_prefix():
    config = CFG.replace(size=256, frames=16, width=256, ff=1024, depth=12)
    step = Step(config=config, batch=64, mask_ratio=0.5, tuning="last_2")
    seconds = {prefix: seconds_of(replace(step, chunk=16, prefix=prefix), H100).device for prefix in ("device", "off")}
    plain = seconds_of(step, H100).device
    trace = simulate(step).trace.at(16)
    forward = float(op_seconds(trace.part(backward=False).ops(), step, H100).sum())
    assert seconds["off"] - plain == pytest.approx(3 * forward, rel=0.02)
    assert seconds["device"] - plain == pytest.approx(3 * forward * 2 / 12, rel=0.15)


def test_what_goes_on_beside_the_device_counts_where_it_takes_longer():
    step = Step(config=CFG, batch=2)
    found = seconds_of(step, H100)
    assert found.bound == "host" and found.total == found.host > 100 * LAUNCH
    slow = seconds_of(step, replace(H100, link=1.0))
    assert slow.bound == "transfers" and slow.total == slow.transfers
    assert seconds_of(replace(step, pixels="tubelets", mask_ratio=0.75), H100).transfers == pytest.approx(
        found.transfers / 4
    )


def test_a_prefix_on_the_host_and_offloaded_activations_are_sent_both_ways():
    config = CFG.replace(size=256, width=128, depth=8)
    link = H100.link * EFFICIENCY["link"]
    step = Step(config=config, batch=8, chunk=2, tuning="last_2")
    more = seconds_of(replace(step, prefix="host"), H100).transfers - seconds_of(step, H100).transfers
    assert more == pytest.approx(2 * 8 * config.tokens * 128 * 2 / link)
    step = Step(config=config, batch=8, checkpointing="full")
    more = seconds_of(replace(step, offload=True), H100).transfers - seconds_of(step, H100).transfers
    assert more == pytest.approx(2 * 8 * 8 * config.tokens * 128 * 2 / link, rel=0.01)


def test_devices_have_names():
    assert device_named("h200").copy > device_named("h100").copy
    with pytest.raises(ValueError, match="device: wanted one of 'a100', .*got 'tpu'"):
        device_named("tpu")
