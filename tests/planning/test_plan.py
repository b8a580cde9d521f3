"""``fastvivit.plan``: what fits, what to turn, and what people read."""

import json
from dataclasses import replace

import pytest

import fastvivit as fv
from fastvivit.data.shards.files import INDEX
from fastvivit.planning import TextSize, advice
from fastvivit.planning.devices import BY_NAME
from fastvivit.planning.memory import memory_of
from fastvivit.planning.sizes import parse_bytes, show_bytes, show_seconds
from fastvivit.planning.switches import needed, remedy, switches, turned_by

CFG = fv.ViViTConfig(frames=8, size=64, tubelet=(2, 8, 8), width=64, depth=6, heads=4, ff=256)
TEXT = TextSize(width=64, depth=3, heads=4, ff=256, vocabulary=100)
H100 = BY_NAME["h100"]


def planned(**arguments):
    return fv.plan(CFG, text=TEXT, **arguments)


def test_the_largest_batch_fits_and_one_more_does_not():
    found = planned(batch=8, mask_ratio=0.5, gpu_memory="2GB")
    assert found.fits and found.largest_batch > 8
    assert needed(replace(found.step, batch=found.largest_batch), H100) <= 2e9
    assert needed(replace(found.step, batch=found.largest_batch + 1), H100) > 2e9


def test_the_largest_chunk_fits_and_one_more_does_not():
    found = planned(batch=2000, gpu_memory="1GB")
    assert not found.fits and 0 < found.largest_chunk < found.largest_batch < 2000
    assert needed(replace(found.step, chunk=found.largest_chunk), H100) <= 1e9
    assert needed(replace(found.step, chunk=found.largest_chunk + 1), H100) > 1e9
    assert planned(batch=4, gpu_memory="2GB").largest_chunk == 4


def test_memory_grows_with_what_makes_it_grow():
    step = planned(batch=8).step
    total = memory_of(step, H100).total
    for change in ({"batch": 9}, {"config": CFG.replace(frames=16)}, {"precision": "float32"}):
        assert memory_of(replace(step, **change), H100).total > total, change
    for change in ({"mask_ratio": 0.5}, {"tuning": "last_2"}, {"checkpointing": "selective"}, {"chunk": 2}):
        assert memory_of(replace(step, **change), H100).total < total, change
    image = memory_of(replace(step, images=True), H100)
    assert image.batch == 8 * 3 * 64 * 64 and image.total < total


def test_every_switch_does_what_it_says():
    step = planned(batch=64, mask_ratio=0.5, tuning="last_2", chunk=16).step
    before = memory_of(step, H100).total
    found = switches(step, H100, 10**9)
    fields = [switch.field for switch in found]
    assert {"memory.chunk", "memory.prefix", "memory.checkpointing", "optimiser.states"} <= set(fields)
    for switch in found:
        after = memory_of(turned_by(step, [switch]), H100).total
        assert (after, before - after) == (switch.total, switch.saves) and switch.saves > 0
    noted = [bool(switch.note) for switch in found]
    assert noted == sorted(noted), "what changes nothing comes first"
    assert [switch.field for switch in found if switch.note] == ["mask.ratio", "optimiser.states"]


def test_the_remedy_fits_and_none_of_it_is_needless():
    step, memory = planned(batch=4000, mask_ratio=0.5).step, 12 * 10**8
    assert needed(step, H100) > memory
    found = remedy(step, H100, memory)
    assert found and needed(turned_by(step, found), H100) <= memory
    for switch in found:
        others = [other for other in found if other is not switch]
        assert needed(turned_by(step, others), H100) > memory
    assert remedy(step, H100, 80 * 10**9) == ()
    assert remedy(step, H100, 10**6) == (), "nothing helps"


def test_advice_names_fields_of_a_training_config():
    lines = advice(CFG, "1GB", text=TEXT, batch=4000)
    assert "there are 1.00 GB" in lines[0] and lines[1].startswith("to fit: memory.chunk = ")
    assert any(line.startswith('memory.checkpointing = "full": saves') for line in lines)
    assert any(line.endswith("changes what is learned") for line in lines)


def test_what_is_printed_is_short_and_says_what_it_is():
    found = planned(batch=4000, mask_ratio=0.5, gpu_memory="1GiB", steps=50_000)
    text = str(found)
    assert "predicted" in text and "does not fit" in text and "to fit: memory.chunk" in text and "50,000 steps" in text
    assert len(text.splitlines()) < 40 and max(map(len, text.splitlines())) <= 100
    assert "gradients" in str(planned(batch=8, chunk=2)) and "to fit" not in str(planned(batch=2))


def test_a_plan_is_plain_json():
    found = planned(batch=4, chunk=2)
    told = json.loads(json.dumps(found.to_dict()))
    parts = {name: size for name, size in told["memory"].items() if name != "total"}
    assert sum(parts.values()) == told["memory"]["total"] == found.memory.total
    assert told["step"]["chunk"] == 2 and told["fits"] is True and told["mfu"] == found.mfu
    assert found.clips_per_second == pytest.approx(4 / found.step_seconds)


def test_a_training_config_is_planned_as_it_runs():
    config = fv.train.TrainConfig.for_stage(
        "image_to_video",
        data={"train": "clips.jsonl"},
        batch_size=16,
        model=CFG.replace(images=False),
        tuning={"method": "last_layers", "layers": 2},
        memory={"chunk": 4, "checkpointing": "selective"},
        text={"width": 64, "depth": 2, "heads": 4, "max_length": 20},
    )
    found = fv.plan(config, device="a100")
    step = found.step
    assert (step.batch, step.chunk, step.tuning, step.checkpointing) == (16, 4, "last_2", "selective")
    assert (step.mask_ratio, step.text.tokens, found.steps) == (0.75, 20, 800_000) and found.days > 0
    assert (step.batch_on, step.pixels) == ("host", "clips")
    assert fv.plan(config, chunk=0, mask_ratio=0.0).step == replace(step, chunk=0, mask_ratio=0.0)
    lines = advice(config, "10GB")
    assert "predicted to need" in lines[0]


def test_sources_of_a_config_are_planned_as_they_are_read(tmp_path):
    """Packed shards come as kept tubelets; a source's own mask goes before the run's."""
    (tmp_path / "index.json").write_text("{}")
    sources = [{"path": str(tmp_path), "batch": 8, "mask_ratio": 0.5}]
    config = fv.train.TrainConfig.for_stage(
        "image_to_video", data={"sources": sources}, batch_size=8, model=CFG.replace(images=False)
    )
    step = fv.plan(config, text="none").step
    assert (step.pixels, step.mask_ratio) == ("tubelets", 0.5)


def test_of_packed_shards_the_kept_tubelets_alone_are_planned_for(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / INDEX).touch()
    sources = [{"path": str(tmp_path / name), "batch": 4} for name in ("packed", "clips.jsonl")]
    for chosen, wanted in ((sources[:1], ["tubelets"]), (sources[1:], ["clips"]), (sources, ["tubelets", "clips"])):
        config = fv.train.TrainConfig.for_stage(
            "image_to_video", data={"sources": chosen}, batch_size=4 * len(chosen), model=CFG.replace(images=False)
        )
        found = fv.plan(config)
        assert [one.pixels for one in found.step.each] == wanted
        assert fv.plan(config, pixels="clips").memory.batch >= found.memory.batch
    assert {one.pixels for one in fv.plan(config, pixels="tubelets").step.each} == {"tubelets"}


def test_a_captioning_run_is_refused():
    config = fv.train.TrainConfig.for_stage("video_to_text", start="run", data={"train": "clips.jsonl"})
    with pytest.raises(ValueError, match="stage: wanted a contrastive one to plan, got 'video_to_text'"):
        fv.plan(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tuning": "last_9"}, "tuning: wanted last_1 to last_6"),
        ({"tuning": "some"}, "tuning: wanted 'all'"),
        ({"tuning": "temporal"}, "tuning: wanted attention='factorised'"),
        ({"batch": 0}, "batch: wanted a whole number of at least 1"),
        ({"chunk": -1}, "chunk: wanted a whole number of at least 0"),
        ({"mask_ratio": 1.0}, "mask_ratio: wanted 0 <= ratio < 1"),
        ({"checkpointing": "some"}, "checkpointing: wanted one of 'none', 'selective', 'full'"),
        ({"offload": True}, "offload: wanted checkpointing='full'"),
        ({"gpu_memory": "lots"}, "gpu_memory: wanted a size such as 16GB"),
        ({"device": "abacus"}, "device: wanted one of"),
        ({"steps": 0}, "steps: wanted at least 1"),
        ({"frames": 7}, "frames: wanted a multiple"),
    ],
)
def test_mistakes_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        planned(**arguments)
    with pytest.raises(ValueError, match="text: wanted one of"):
        fv.plan(CFG, text="bert-huge")


def test_sizes_as_people_write_them():
    assert parse_bytes("16GB") == parse_bytes("16 gb") == parse_bytes(16e9) == parse_bytes("16e9") == 16 * 10**9
    assert parse_bytes("16GiB") == 16 * 2**30 and parse_bytes("2 kib") == 2048 and parse_bytes("1.5M") == 1_500_000
    for wrong in ("", "GB", "0GB", "-1GB", "16XB", "inf", "nan"):
        with pytest.raises(ValueError, match="gpu_memory: wanted a size"):
            parse_bytes(wrong)
    assert [show_bytes(n) for n in (12, 999_900_000, 15.94e9, 2.5e12)] == ["12 B", "1.00 GB", "15.9 GB", "2.50 TB"]
    assert [show_seconds(s) for s in (0.0482, 1.239, 250)] == ["48.2 ms", "1.24 s", "250 s"]
