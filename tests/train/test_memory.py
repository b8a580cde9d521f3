"""Every switch that saves memory, through ``fit``: what is learned stays what it was."""

import copy

import pytest
import torch
from safetensors.torch import load_file

import fastvivit as fv
from fastvivit.modules import offload, recompute
from fastvivit.modules.text import TextTower
from fastvivit.train import MemoryConfig, TrainConfig, fit, latest_checkpoint
from fastvivit.train.memory import apply_memory
from fastvivit.train.start import build_dual
from tests.train.test_resume import losses

SWITCHES = {
    "selective": {"checkpointing": "selective"},
    "full": {"checkpointing": "full"},
    "offload": {"checkpointing": "full", "offload": True},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.fixture
def seen(monkeypatch):
    """How often each means was used; tensors of any size are offloaded."""
    counts = {"through": 0, "checkpoint": 0, "moved": 0}

    def counted(name, real):
        def call(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(offload, "SMALLEST", 1)
    monkeypatch.setattr(offload.Lane, "host", counted("moved", offload.Lane.host))
    monkeypatch.setattr(recompute, "checkpoint", counted("checkpoint", recompute.checkpoint))
    monkeypatch.setattr(recompute, "remade", counted("through", recompute.remade))
    return counts


def trained(config, out):
    """Losses and trained weights of a run, taken once."""
    if not (out / "report.html").is_file():
        fit(config, out, quiet=True)
    name = "captioner" if config.stage == "video_to_text" else "model"
    return losses(out), load_file(out / "model" / f"{name}.safetensors")


def same(got, want):
    assert got[0] == want[0] and got[1].keys() == want[1].keys()
    assert all(torch.equal(got[1][name], want[1][name]) for name in want[1])


RUNS = [("contrastive", switch) for switch in SWITCHES] + [("video_to_text", "full"), ("video_to_text", "offload")]


@pytest.mark.parametrize(("stage", "switch"), RUNS)
def test_runs_are_equal_to_the_bit(stage, switch, config, captioning, change, shared, tmp_path, seen):
    config = change(config if stage == "contrastive" else captioning, steps=3)
    want = trained(config, shared / stage)
    assert not any(seen.values())
    same(trained(change(config, memory=SWITCHES[switch]), tmp_path / "run"), want)
    used = {name for name, count in seen.items() if count}
    assert used == {"selective": {"through"}, "full": {"checkpoint"}, "offload": {"checkpoint", "moved"}}[switch]


def test_a_run_resumes_with_other_switches(config, change, shared, tmp_path, monkeypatch):
    config = change(config, steps=3, run={"save_every": 2})
    out = tmp_path / "run"
    fit(change(config, memory={"checkpointing": "selective"}), out, quiet=True)
    want = trained(change(config, run={"save_every": 1000}), shared / "contrastive")
    for path in (out / "checkpoints" / "step-00000003", out / "model"):
        path.rename(path.with_name(f"{path.name}-gone"))
    fit(change(config, memory={"checkpointing": "full", "offload": True}), out, resume=True, quiet=True)
    same((losses(out), load_file(out / "model" / "model.safetensors")), want)


def dual(config, **changes):
    """A dual encoder in float64, with dropout in its text encoder."""
    torch.manual_seed(0)
    model = build_dual(config, None, ["one two three", "four five six seven"], images=False, clips=True)
    for module in model.text.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return model.double()


def text_is_checkpointed(model):
    return any(getattr(module, "gradient_checkpointing", False) for module in model.text.modules())


@pytest.mark.parametrize("switch", SWITCHES)
def test_float64_gradients_are_equal_also_with_dropout(switch, config, seen):
    clips, texts = torch.randn(3, 3, 8, 32, 32, dtype=torch.float64), ["one two", "three four five", "six"]
    model, found = dual(config), []
    for memory in (MemoryConfig(), MemoryConfig(**SWITCHES[switch])):
        apply_memory(model, memory)
        torch.manual_seed(1)
        model.zero_grad()
        loss = model(clips, texts, mask_ratio=0.5)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 30 and all(map(torch.equal, *found))
    # Of the video encoder's one block; transformers checkpoints by itself.
    assert seen["checkpoint"] == (switch != "selective")
    assert text_is_checkpointed(model) == (switch != "selective")
    apply_memory(model, MemoryConfig())
    assert not text_is_checkpointed(model) and model.video.checkpointing is None


def test_a_text_model_that_cannot_checkpoint_stays_as_it_is():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("Config", (), {"hidden_size": 4, "max_position_embeddings": 8})

    tower = TextTower(Plain(), type("Tokenizer", (), {"model_max_length": 8}))
    tower.set_grad_checkpointing(True, offload=True)
    assert tower.offload is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": -1}, "memory.chunk: wanted at least 0, got -1"),
        ({"prefix": "disk"}, "memory.prefix: wanted one of 'device', 'host', 'off', got 'disk'"),
        ({"checkpointing": "some"}, "memory.checkpointing: wanted one of 'none', 'selective', 'full', got 'some'"),
        ({"offload": True}, "memory.offload: wanted checkpointing = 'full' beside it, got 'none'"),
        ({"offload": "yes"}, "memory.offload: wanted true or false, got 'yes'"),
        ({"chunks": 1}, "memory.chunks: no such field"),
    ],
)
def test_bad_switches_are_named(fields, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        TrainConfig.from_dict({"steps": 2000, "data": {"train": "a"}, "memory": fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": 4}, "memory.chunk: wanted in stage 'contrastive' only"),
        ({"prefix": "host"}, "memory.prefix: wanted in stage 'contrastive' only"),
        ({"checkpointing": "selective"}, "memory.checkpointing: wanted 'none' or 'full' in stage 'finetune'"),
    ],
)
def test_switches_that_mean_nothing_in_captioning_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.for_stage("finetune", start="a", data={"train": "b"}, memory=fields)
    TrainConfig.for_stage("finetune", start="a", data={"train": "b"}, memory={"checkpointing": "full"})


def test_fields_that_are_left_out_are_no_switch():
    config = TrainConfig.from_dict({"steps": 2000, "data": {"train": "a"}})
    assert (
        config.memory == MemoryConfig() == MemoryConfig(chunk=0, prefix="device", checkpointing="none", offload=False)
    )
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_bfloat16_keeps_float32_masters(config, change, shared, tmp_path):
    config = change(config, steps=3)
    exact = trained(config, shared / "contrastive")[0]
    out = fit(change(config, run={"precision": "bfloat16"}), tmp_path / "run", quiet=True)
    state = load_file(latest_checkpoint(out) / "training.safetensors")
    moments = [tensor for name, tensor in state.items() if name.endswith(("exp_avg", "exp_avg_sq"))]
    weights = load_file(out / "model" / "model.safetensors")
    kept = [tensor for tensor in (*moments, *weights.values()) if tensor.is_floating_point()]
    assert len(moments) > 40 and {tensor.dtype for tensor in kept} == {torch.float32}
    rounded = losses(out)
    assert rounded[0][1] != exact[0][1]
    assert abs(rounded[0][1] - exact[0][1]) <= 4 * rounding_of(config, shared)


def rounding_of(config, shared):
    """How far the loss moves when every weight is off by half a unit of bfloat16's last place, either way.

    That is one rounding a product on one of its sides. Autocast rounds both sides and the result, and norms and sums
    besides: four times as far is what it may move.
    """
    from fastvivit.train.stages import make_stage

    stage, moved = make_stage(config), []
    torch.manual_seed(config.seed)
    model = stage.build(shared).eval()
    dataset = stage.sources[0]
    batch = dataset.collate([dataset[i] for i in range(config.batch_size)]) | {"source": 0}
    with torch.no_grad():
        exact = float(stage.losses(model, [batch], torch.device("cpu"))["loss"])
        for _ in range(5):
            other = copy.deepcopy(model)
            for parameter in other.parameters():
                parameter.mul_(1 + 2**-9 * (2 * torch.randint(2, parameter.shape) - 1))
            moved.append(abs(float(stage.losses(other, [batch], torch.device("cpu"))["loss"]) - exact))
    assert 0 < max(moved) < 0.05
    return max(moved)


def test_a_model_of_16_bits_is_trained_in_float32(config, change, tmp_path, monkeypatch, capsys):
    from fastvivit.train.stages import contrastive

    real = build_dual
    monkeypatch.setattr(contrastive, "build_dual", lambda *args, **options: real(*args, **options).to(torch.bfloat16))
    out = fit(change(config, steps=3, optimiser={"lr": 1e-5}), tmp_path / "run")
    text = capsys.readouterr().err
    assert "loaded in 16 bits and trained in float32: video, text, video_proj, text_proj, logit_scale" in text
    begun = {n: p.to(torch.bfloat16) for n, p in fv.load_pretrained(out / "model").named_parameters()}
    weights = load_file(out / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
    # Steps of 1e-5 are lost on bfloat16 weights near 0.1; here they add up.
    name = "video.blocks.0.mlp.fc1.weight"
    assert (weights[name] != begun[name].float()).float().mean() > 0.9


def test_16_bits_are_refused_by_the_optimiser_and_frozen_parts_of_a_captioner_stay(captioning, tmp_path):
    from fastvivit.train.optimiser import make_optimiser, widen_masters
    from fastvivit.train.stages import make_stage

    model = make_stage(captioning).build(tmp_path).to(torch.bfloat16)
    with pytest.raises(ValueError, match="model: wanted float32 parameters to train, got torch.bfloat16 in "):
        make_optimiser(model, captioning.optimiser)
    assert widen_masters(model) == ["resampler", "layers"]
    assert {p.dtype for p in model.lm.parameters()} == {p.dtype for p in model.video.parameters()} == {torch.bfloat16}
    optimiser = make_optimiser(model, captioning.optimiser)
    clips = torch.randint(256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(clips, ["a one", "a two"])
    loss.backward()
    optimiser.step()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.grad.dtype for p in trained} == {torch.float32}
    assert {state["exp_avg"].dtype for state in optimiser.state.values()} == {torch.float32}
    assert widen_masters(model) == []
