"""Training on tar shards is training on the same data in files, also when it is cut and resumed."""

from __future__ import annotations

import tarfile

import pytest

from fastvivit.data import read_manifest
from fastvivit.train import fit, loop, read_metrics
from fastvivit.train.step import train_step

pytest.importorskip("webdataset", reason="webdataset is not installed: pip install fastvivit[train]")


def losses(run):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(run)]


@pytest.fixture
def shards(config, tmp_path):
    """Two tars of the training clips, in the manifest's order."""
    entries, folder = read_manifest(config.data.train), tmp_path / "shards"
    folder.mkdir()
    for shard, half in enumerate((entries[:11], entries[11:])):
        with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as tar:
            for place, entry in enumerate(half):
                text = tmp_path / "caption.txt"
                text.write_text(entry.captions[0])
                tar.add(entry.video, f"{place:03d}.mp4")
                tar.add(text, f"{place:03d}.txt")
    return folder / "train-{0000..0001}.tar"


def test_losses_are_those_of_files_also_after_a_kill_in_the_middle_of_an_epoch(
    config, change, shards, tmp_path, monkeypatch
):
    config = change(config, data={"pair_twins": False, "cache": False})
    files = fit(config, tmp_path / "files", quiet=True)
    config = change(config, data={"train": str(shards)})
    tars = fit(config, tmp_path / "tars", quiet=True)
    assert losses(tars) == losses(files)

    taken = []

    def step(*args):
        if len(taken) == 6:
            raise RuntimeError("the power went out")
        taken.append(1)
        return train_step(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", step)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, tmp_path / "cut", quiet=True)
    cut = fit(config, tmp_path / "cut", resume=True, quiet=True)
    assert losses(cut) == losses(files)
