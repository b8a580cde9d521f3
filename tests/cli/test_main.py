"""Exit codes and messages: no traceback for a user's mistake."""

import builtins
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastvivit
from fastvivit.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


def shell(*arguments, **more):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastvivit", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_help_and_version(call):
    code, out, _ = call("--help")
    assert code == 0 and all(name in out for name in COMMANDS)
    assert call("--version")[:2] == (0, f"fastvivit {fastvivit.__version__}\n")
    assert call()[0] == 2
    assert call("trian")[0] == 2 and "got 'trian'" in call("trian")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0 and f"fastvivit {command}" in out and len(out.splitlines()) > 4


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_options_end_with_2(call, command):
    assert call(command, "--nonsense")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "absent.toml"], "config: wanted a TOML file, no such file: absent.toml"),
        (
            ["embed", "absent.mp4", "--model", "absent", "--out", "x"],
            "paths: wanted a video file or a folder",
        ),
        (["embed", "{here}", "--model", "absent", "--out", "x"], "paths: wanted video files"),
        (
            ["search", "a dog", "--model", "absent"],
            "wanted either video files (or folders) or --index, got neither",
        ),
        (["search", "a", "f", "--index", "i", "--model", "m"], "got both"),
        (["search", "a", "{file}", "--model", "absent"], "model: wanted the folder of a run or a model"),
        (["search", "a", "{file}", "--model", "{here}"], "holds neither weights nor checkpoints"),
        (["search", "a", "{file}", "--model", "m", "--top", "0"], "top: wanted at least 1, got 0"),
        (["search", " ", "{file}", "--model", "m"], "query: wanted words, got none"),
        (["demo", "--clips", "3"], "clips: wanted a multiple of 8"),
        (["demo", "--seed", "-3"], "seed: wanted at least 0"),
        (["demo", "--videos", "absent"], "paths: wanted a video file or a folder"),
        (["demo", "--out", "{full}"], "out: wanted a new folder, or that of an earlier demo"),
    ],
)
def test_mistakes_end_with_2_and_one_line(call, tmp_path, arguments, words):
    pytest.importorskip("tyro")
    (tmp_path / "here").mkdir()
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "clip.mp4", tmp_path / "full" / "thesis.txt"):
        file.write_text("no video")
    places = {"{here}": tmp_path / "here", "{file}": tmp_path / "clip.mp4", "{full}": tmp_path / "full"}
    code, out, err = call(*(places.get(argument, argument) for argument in arguments))
    assert code == 2 and words in err and not out
    assert err.startswith(f"fastvivit {arguments[0]}: ") and err.count("\n") == 1


def test_verbose_shows_the_traceback(capsys):
    assert main(["train", "absent.toml", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["demo"], "tyro", "train"),
        (["train", "x.toml"], "tyro", "train"),
        (["demo"], "av", "video"),
        (["demo"], "transformers", "hf"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, command, module, extra):
    code = f"import sys; sys.modules[{module!r}] = None; from fastvivit.cli import main; sys.exit(main({[*command]!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f'needs {module}, which is not installed: pip install "fastvivit[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_8_bit_states_without_their_library(call, toml, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    out = tmp_path / "run"
    code, _, err = call("train", toml("steps = 3"), "--out", out, "--override", 'optimiser.states="8bit"')
    assert code == 2 and not out.exists()
    assert 'needs bitsandbytes, which is not installed: pip install "fastvivit[lowbit]"' in err


@pytest.mark.parametrize("command", ["info", "selftest"])
def test_runs_without_extras(call, monkeypatch, command):
    real = builtins.__import__

    def bare(name, *rest, **more):
        if name.partition(".")[0] in ("tyro", "av", "transformers", "tokenizers", "tqdm", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", bare)
    assert call(command)[0] == 0


def test_ctrl_c_in_training_saves_and_ends_with_130(toml, tmp_path):
    out = tmp_path / "run"
    process = shell("train", toml("steps = 100000"), "--out", out)
    while not list(out.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved, resume goes on from there" in err and "Traceback" not in err


def test_a_closed_pipe_is_no_error():
    with shell("info") as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 0 and "Traceback" not in err and "BrokenPipe" not in err
