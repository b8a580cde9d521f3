"""Rates, waiting and memory as a run notes and says them."""

import re
from types import SimpleNamespace

import pytest
import torch

import fastvivit as fv
from fastvivit.modules.tubelets import Tubelets
from fastvivit.train import journal as journals
from fastvivit.train import loop, meter
from fastvivit.train.journal import Journal, best_score, read_metrics
from fastvivit.train.loop import fit
from fastvivit.train.meter import Meter, Window
from fastvivit.train.say import show_duration, show_number
from fastvivit.train.stages import make_stage
from fastvivit.train.starvation import Starvation, remedy


def row(step, seconds=1.0, **fields):
    rates = {"clips_per_second": 6 / seconds, "tokens_per_second": 48 / seconds, "data_wait": 0.0, "data_busy": 0.0}
    return {"step": step, "loss": 1.0, "seconds": seconds, **rates, **fields}


def test_a_window_weighs_by_time_and_forgets():
    window = Window(2)
    window.add(row(1, seconds=100.0))
    window.add(row(2, seconds=1.0, data_wait=0.5))
    window.add(row(3, seconds=3.0, mfu=0.4))
    assert window.mean("clips_per_second") == pytest.approx(12 / 4)  # clips over seconds, the slow start forgotten
    assert window.seconds == 2.0 and window.mean("data_wait") == pytest.approx(0.5 / 4)
    assert window.mean("mfu") == pytest.approx(0.4) and window.mean("absent") is None


def test_the_time_left_counts_pauses_but_rates_do_not(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(journals.time, "monotonic", lambda: clock[0])
    journal = Journal(tmp_path, start=10, steps=40, log_every=10, tensorboard=False)
    for step in range(11, 21):
        clock[0] += 2.0 + 1.0  # a second for scores and checkpoints
        journal.step(row(step, seconds=2.0, mfu=0.413))
    journal.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("train: step 20/40  loss 1.0000  3 clips/s  24 tokens/s  MFU 41%  data wait 0%  60 s left")


def test_the_best_score_outlives_a_resume(tmp_path, capsys):
    journal = Journal(tmp_path, start=0, steps=9, log_every=100, tensorboard=False, headline=("t2v_r1", True))
    for step, score in ((1, 10.0), (2, 30.0), (3, 20.0)):
        journal.step(row(step, eval_t2v_r1=score))
    journal.close()
    journal = Journal(tmp_path, start=2, steps=9, log_every=100, tensorboard=False, headline=("t2v_r1", True))
    journal.step(row(3, eval_t2v_r1=25.0))
    journal.step(row(4, eval_t2v_r1=40.0))
    journal.close()
    said = [line.split(", ")[-1] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "the best so far", "the best so far", "best 30 at step 2", "best 30 at step 2", "the best so far",
    ]  # fmt: skip
    rows = [row(1, eval_loss=2.0), row(2, eval_loss=1.0), row(3)]
    assert best_score(rows, ("loss", False))["step"] == 2 and best_score(rows, ("t2v_r1", True)) is None


def test_mfu_is_the_counted_work_over_the_peak(config, tmp_path, monkeypatch):
    """On a CPU that says it is a GPU with a peak: each line's MFU is FLOPs over seconds and peak."""
    counted = []

    class Gpu(Meter):
        def __init__(self, *args):
            super().__init__(*args)
            self._peak = 1e12

    def flops(*args):
        counted.append(args)
        return 5e9

    monkeypatch.setattr(meter, "step_flops", flops)
    monkeypatch.setattr(loop, "Meter", Gpu)
    out = fit(config, tmp_path / "run", quiet=True)
    rows = read_metrics(out)
    assert len(counted) == 1
    assert all(one["mfu"] == pytest.approx(5e9 / one["seconds"] / 1e12) for one in rows)


def test_counting_changes_no_loss(config, tmp_path, monkeypatch):
    """The sample that is counted on draws random numbers and gradients of its own."""

    class Gpu(Meter):
        def __init__(self, *args):
            super().__init__(*args)
            self._peak = 1e12

    plain = fit(config, tmp_path / "plain", quiet=True)
    monkeypatch.setattr(loop, "Meter", Gpu)
    counted = fit(config, tmp_path / "counted", quiet=True)
    rows = [read_metrics(run) for run in (plain, counted)]
    assert [one["loss"] for one in rows[0]] == [one["loss"] for one in rows[1]]
    assert all("mfu" in one for one in rows[1]) and not any("mfu" in one for one in rows[0])


def test_tokens_of_clips_images_and_tubelets(config):
    model = SimpleNamespace(video=fv.ViViT(config.model.replace(images=True)))
    found = Meter(make_stage(config), model, torch.device("cpu"))
    clips, images = torch.zeros(3, 3, 8, 32, 32, dtype=torch.uint8), torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    tubelets = Tubelets.from_clips(clips, torch.tensor([[0, 1, 5]] * 3), (2, 16, 16))
    captions = {"caption": ["a"] * 3, "source": 0, "seconds": 0.25}
    for video, tokens in ((clips, 8), (images, 2), (tubelets, 3), (list(clips), 8)):
        line = found.row([{"video": video} | captions], 0.5, 0.1)
        assert line["tokens_per_second"] == 3 * tokens / 0.5 and line["clips_per_second"] == 6
        assert line["data_wait"] == 0.2 and line["data_busy"] == 0.5 and line["memory_peak"] > 1e7


def test_the_epoch_that_fills_the_cache_may_wait():
    row = {"data_wait": 0.5, "data_busy": 0.5, "seconds": 1.0}
    for cached, said in ((True, 0), (False, 1)):
        starvation = Starvation(0, 2, cached=cached, steps=5)
        assert sum(starvation.note(row | {"epoch": 0}) is not None for _ in range(20)) == said
    starvation = Starvation(0, 2, cached=True, steps=5)
    assert any(starvation.note(row | {"epoch": 1}) for _ in range(20))


def test_starvation_is_said_once_and_again_when_it_is_twice_as_bad():
    starvation = Starvation(2, 8, steps=10)
    cold = [starvation.note(row(n, data_wait=0.9, data_busy=0.9)) for n in range(6)]
    fed = [starvation.note(row(n, data_wait=0.05, data_busy=0.9)) for n in range(20)]
    hungry = [starvation.note(row(n, data_wait=0.2, data_busy=0.9)) for n in range(40)]
    worse = [starvation.note(row(n, data_wait=0.8, data_busy=0.9)) for n in range(40)]
    assert not any(cold) and not any(fed)
    assert [n for n, said in enumerate(hungry) if said] == [3]  # the mean over ten steps has passed a tenth
    assert sum(map(bool, worse)) == 2  # twice as much, and twice that


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ((0.5, 1.0, 0, 8), r"^data: 50% .* training process is the bottleneck: set data.workers=7 or .*data pack"),
        ((0.5, 1.0, 0, 1), r"training process is the bottleneck: read the clips from packed shards"),
        ((0.3, 0.95, 4, 16), r"decoding is the bottleneck, workers = 4 on 16 cores.*set data.workers=15"),
        ((0.3, 0.95, 15, 16), r"decoding is the bottleneck, workers = 15 on 16 cores, all busy: read .*data pack"),
        ((0.3, 0.2, 4, 16), r"4 workers are busy 20% .*handing batches over"),
    ],
)
def test_what_to_do_about_data(case, words):
    said = remedy(*case)
    assert re.search(words, said) and "\n" not in said


def test_a_run_that_waits_says_so(config, tmp_path, change, monkeypatch, capsys):
    monkeypatch.setattr(
        loop, "Starvation", lambda workers, cores, cached: Starvation(workers, cores, steps=3, limit=0.0)
    )
    fit(config, tmp_path / "run")
    assert "decoding in the training process is the bottleneck" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        ([show_number(n) for n in (0.8341, 12.54, 812.4, 9999, 12345, 6.42e6, 2e9)],
         ["0.834", "12.5", "812", "9999", "12.3k", "6.42M", "2G"]),
        ([show_duration(n) for n in (4.4, 90, 720, 11100, 187200)], ["4 s", "90 s", "12 min", "3 h 05 min", "2 d 4 h"]),
    ],
)  # fmt: skip
def test_numbers_are_short(shown, wanted):
    assert shown == wanted
