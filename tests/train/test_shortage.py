"""Out of memory: what is said, what is left."""

import weakref

import pytest
import torch

import fastvivit as fv
from fastvivit.cli import main
from fastvivit.planning import advice
from fastvivit.train import OutOfMemory, fit, latest_checkpoint, loop
from fastvivit.train.shortage import is_shortage, planned_advice, switches
from fastvivit.train.step import train_step

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which ..."


def failing(monkeypatch, error, step):
    def stop(*args):
        if args[3] == step:
            raise error
        return train_step(*args)

    monkeypatch.setattr(loop, "train_step", stop)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(ALLOCATOR), MemoryError()])
def test_what_is_said(config, tmp_path, monkeypatch, error):
    failing(monkeypatch, error, 7)
    with pytest.raises(OutOfMemory) as caught:
        fit(config, tmp_path / "run", quiet=True)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("out of memory in step 8: ") and caught.value.__cause__ is error
    text = "\n".join(rest)
    assert "batch_size=6, memory.chunk=0, mask.ratio=0.5, memory.checkpointing=none, tuning.method=all" in text
    assert str(tmp_path / "run" / "checkpoints" / "step-00000005") in text and "memory.chunk=1" in text
    assert len(rest) <= 12
    assert isinstance(fv.load_pretrained(latest_checkpoint(tmp_path / "run")), fv.VideoTextModel)


def test_before_the_first_checkpoint(config, tmp_path, monkeypatch):
    failing(monkeypatch, torch.OutOfMemoryError(CUDA), 2)
    with pytest.raises(OutOfMemory, match="there is no checkpoint yet"):
        fit(config, tmp_path / "run", quiet=True)


def test_a_real_one_of_the_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_shortage(caught.value)
    assert not is_shortage(RuntimeError("shape mismatch")) and not is_shortage(ValueError("out of memory"))


def test_other_errors_pass(config, tmp_path, monkeypatch):
    failing(monkeypatch, RuntimeError("shape mismatch"), 2)
    with pytest.raises(RuntimeError, match="^shape mismatch$"):
        fit(config, tmp_path / "run", quiet=True)


def test_nothing_of_the_step_is_held(config, tmp_path, monkeypatch):
    """Who catches the error to go on with less must find the memory free."""
    held = []

    def stop(*args):
        large = torch.ones(1000)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(OutOfMemory):
        fit(config, tmp_path / "run", quiet=True)
    assert held[0]() is None


def test_switches_that_are_turned_are_not_advised_again(config, change):
    cpu = torch.device("cpu")
    turned = change(config, memory={"chunk": 1, "checkpointing": "full", "offload": True}, mask={"ratio": 0.75})
    assert switches(turned, cpu) == [line for line in switches(turned, cpu) if line.startswith("batch_size=3")]
    named = [line.partition("=")[0].partition(":")[0] for line in switches(config, cpu)]
    assert named == ["memory.chunk", "memory.checkpointing", "memory.checkpointing", "mask.ratio", "batch_size"]


def test_a_captioner_has_switches_of_its_own(captioning):
    assert not any("chunk" in line or "selective" in line for line in switches(captioning, torch.device("cpu")))


def test_the_plan_is_asked(config):
    known, other = (planned_advice(config, 10**7, gpu) for gpu in ("NVIDIA A100-SXM4-80GB", "NVIDIA X1"))
    assert "predicted to need" in known[0] and len(known) > 1
    assert known == advice(config, 10**7, device="a100") and other == advice(config, 10**7)


def test_the_command_line(config, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, torch.OutOfMemoryError(CUDA), 0)
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'steps = 4\nbatch_size = 6\n[data]\ntrain = "{config.data.train}"\nfps = 8.0\n[run]\ndevice = "cpu"\n'
        "tensorboard = false\n[schedule]\nwarmup = 1\n[model]\nframes = 8\nsize = 32\nwidth = 32\ndepth = 1\n"
        "heads = 2\nff = 64\n[text]\nwidth = 32\nheads = 2\ndepth = 1\n"
    )
    assert main(["train", str(toml), "--out", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("    ") and any(
        line.startswith("fastvivit train: out of memory in step 1: CUDA out of memory") for line in lines
    )
    assert "Traceback" not in "".join(lines)
