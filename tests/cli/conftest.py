"""The command line called as a function, and a tiny run for it to work on."""

from __future__ import annotations

import pytest

from fastvivit.cli import main
from tests.train.conftest import captioning, change, config, digits, encoder, one_thread

__all__ = ["captioning", "change", "config", "digits", "encoder", "one_thread"]


@pytest.fixture
def call(capsys):
    """``call("search", ...)`` → (exit code, stdout, stderr); refuses tracebacks."""

    def called(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # the parsers leave so, as every Python program does
            code = leaving.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return called


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(runs, config):
    """A finished run."""
    from fastvivit.train import fit

    if not (runs / "run" / "report.html").is_file():
        fit(config, runs / "run", quiet=True)
    return runs / "run"


@pytest.fixture
def captioner(runs, captioning, change):
    """A finished run of stage "video_to_text"."""
    from fastvivit.train import fit

    if not (runs / "captioner" / "report.html").is_file():
        fit(change(captioning, captions={"prompt": "first"}), runs / "captioner", quiet=True)
    return runs / "captioner"


@pytest.fixture
def toml(tmp_path, digits):
    """A run as a file; ``toml("steps = 3\\n...")`` puts text before its tables."""
    train, heldout = digits

    def written(head="steps = 6"):
        path = tmp_path / "small.toml"
        path.write_text(
            f"""
            {head}
            batch_size = 6
            dim = 16
            [data]
            train = "{train}"
            heldout = "{heldout}"
            fps = 8
            [model]
            frames = 8
            size = 32
            width = 32
            depth = 1
            heads = 2
            ff = 64
            [text]
            width = 32
            depth = 1
            heads = 2
            max_length = 24
            [schedule]
            warmup = 2
            [run]
            save_every = 2
            tensorboard = false
            device = "cpu"
            """
        )
        return path

    return written
