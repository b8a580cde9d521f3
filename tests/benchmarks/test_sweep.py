"""The sweep: what fake tensors account for is what a real step keeps and computes, and a run leaves what it says."""

import json

import pytest
import torch

import fastvivit as fv
from benchmarks import accounting, sweep, sweep_measure, sweep_plots
from benchmarks.case import Options
from benchmarks.families.encoder import _Encoders
from benchmarks.measure import Ceilings
from benchmarks.sweep_points import ENCODERS, Point, points
from fastvivit.models import ViViTConfig
from fastvivit.planning.fakes import attended, widen_norms
from fastvivit.planning.ledger import Ledger, saved_storages

CFG = ViViTConfig(frames=8, size=32, tubelet=(2, 8, 8), width=48, depth=2, heads=3, ff=96, images=False)
TUBES = (fv.Tube(kernel=(4, 4, 4), stride=(4, 8, 16)), fv.Tube(kernel=(6, 8, 8), stride=(2, 16, 8), offset=(0, 2, 4)))
KINDS = {
    "joint": {},
    "factorised": {"attention": "factorised"},
    "frame": {"attention": "frame"},
    "tubes": {"attention": "tubes", "tubes": TUBES},
    "coarse": {"tubelet": (4, 16, 16)},
}


def saved_for_real(config, mask, dtype, checkpointing, device):
    model = fv.ViViT(config).train().to(device)
    model.set_grad_checkpointing(checkpointing)
    if dtype != torch.float32 and device == "cpu":
        widen_norms(model)
    video = torch.randint(256, (2, 3, config.frames, *config.size), dtype=torch.uint8, device=device)
    with saved_storages([*model.parameters(), video]) as saved:
        loss = accounting.loss_of(model, video, mask, dtype)
    loss.backward()
    return sum(saved.values())


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("mask", [0.0, 0.75])
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_step_keeps_what_is_accounted_for(kind, mask, checkpointing, dtype):
    config = CFG.replace(**KINDS[kind])
    found = accounting.account(config, mask, clips=2, dtype=dtype, checkpointing=checkpointing)
    assert found.saved_bytes == saved_for_real(config, mask, dtype, checkpointing, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: make gpu runs it where there is one")
@DTYPES
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_keeps_what_is_accounted_for(kind, dtype):
    config = CFG.replace(**KINDS[kind])
    found = accounting.account(config, 0.75, clips=2, dtype=dtype, device="cuda")
    assert found.saved_bytes == saved_for_real(config, 0.75, dtype, False, "cuda")


def test_a_block_keeps_what_its_equations_need():
    """LayerNorms: input, result, two numbers a row. Attention: q, k, v, result, lse. MLP: before and after GELU."""
    two, three = (accounting.account(CFG.replace(depth=depth), 0.5, clips=2) for depth in (2, 3))
    rows, width = 2 * two.tokens, CFG.width
    wanted = rows * (2 * (2 * width + 2) + 4 * width + CFG.heads + 2 * CFG.ff) * 4
    assert three.saved_bytes - two.saved_bytes == wanted


@pytest.mark.parametrize("mask", [0.0, 0.75])
def test_flops_are_those_of_the_closed_formula(mask):
    found = accounting.account(CFG, mask, clips=2)
    wanted = _Encoders(CFG, Options(), clips=2, mask_ratio=mask)
    assert found.tokens == wanted.kept
    assert (found.flops_forward, found.flops_step) == (wanted.flops(backward=False), wanted.flops(backward=True))


@pytest.mark.parametrize("kind", ["factorised", "frame", "tubes"])
def test_attention_is_counted_at_its_own_lengths(kind):
    """Unmasked, where lengths are known: with the four linear layers a block of the rest is what joint has."""
    config = CFG.replace(**KINDS[kind])
    sizes = [t * h * w for t, h, w in config.views]
    ((slots, height, width), *_) = config.views
    place, squares = height * width, {"frame": 0, "factorised": 0, "tubes": sum(n * n for n in sizes)}
    squares |= {"frame": slots * place**2, "factorised": slots * place**2 + place * slots**2}
    linear = 2 * sum(sizes) * (4 * CFG.width**2 * (1 + (kind == "factorised")) + 2 * CFG.width * CFG.ff)
    tubes = [tube.kernel for tube in TUBES] if kind == "tubes" else [CFG.tubelet]
    embed = sum(2 * n * CFG.width * 3 * t * h * w for n, (t, h, w) in zip(sizes, tubes, strict=True))
    wanted = embed + CFG.depth * (linear + 4 * CFG.width * squares[kind])
    assert accounting.account(config, 0.0).flops_forward == wanted


def test_masked_lengths_are_those_of_a_draw():
    config = CFG.replace(attention="frame")
    ids = fv.functional.random_keep(3, config.tokens, 0.5, generator=torch.Generator().manual_seed(0))
    counts = torch.stack([(row // 16).bincount(minlength=4) for row in ids])
    assert attended(config, 0.5, 3) == {(12, 16): int(counts.square().sum())}


def test_the_ledger_counts_what_is_alive_and_flops():
    x = torch.randn(10, 10)
    with Ledger([x], {}) as ledger:
        y = x + 1
        view = y.t()
        assert ledger.now == 400
        z = x @ x
        assert (ledger.now, ledger.flops) == (800, 2 * 10**3)
        del y
        assert ledger.now == 800, "the view holds the storage"
        del view
        assert ledger.now == 400
        z += 1
        x.add_(1)
        assert (ledger.now, ledger.peak) == (400, 800)


def test_checkpointing_keeps_less_and_computes_more():
    plain, checkpointed = (accounting.account(CFG.replace(depth=6), 0.0, clips=4, checkpointing=c) for c in (0, 1))
    assert checkpointed.saved_bytes < plain.saved_bytes / 4
    assert checkpointed.peak_bytes < plain.peak_bytes / 2
    assert plain.flops_step < checkpointed.flops_step <= plain.flops_step + plain.flops_forward


def test_points_are_the_papers():
    found = list(points(["joint", "tubes", "coarse"], ["B", "L"], [16, 128], [0, 75]))
    assert {p.encoder for p in found if p.frames == 32} == {"tubes"}, "tubes have none in 16 frames"
    assert len(found) == 2 * 2 * (5 * 2 + 1)
    assert Point.from_json(found[0].to_json()) == found[0]
    large = Point(encoder="coarse 4x32x32", model="L", frames=128, mask=0).config()
    assert (large.width, large.grid) == (1024, (32, 8, 8))
    assert set(ENCODERS) >= {"joint", "factorised", "frame", "tubes", "coarse 4x32x32"}


LIMITS = Ceilings(copy=1e10, product=1e11)


def test_a_row_says_what_it_is(monkeypatch):
    point = Point(encoder="joint", model="B", frames=16, mask=75, quick=True)
    asked = []
    told = {"seconds": {"median": 2.5, "p10": 2.0, "p90": 3.0, "rounds": 3}, "measured_peak_bytes": 1 << 30}
    monkeypatch.setattr(sweep, "measure", lambda *given: asked.append(given) or told)
    row = sweep.row_of(point, LIMITS, "cpu", under=10.0)
    assert asked == [(point, "cpu")] and "2.5 s, peak 1.00 GiB" in sweep.line_of(row)
    assert row["predicted_seconds"] == LIMITS.seconds(
        row["flops_step"], 3 * row["weight_bytes"] + 2 * (row["saved_bytes"] + row["clip_bytes"])
    )
    row = sweep.row_of(point, LIMITS, "cpu", under=1e-9)
    assert row["seconds"] is None and "at least" in sweep.line_of(row) and len(asked) == 1
    monkeypatch.setattr(sweep, "memory_bytes", lambda device: 1)
    assert "needs" in sweep.row_of(point, LIMITS, "cpu", under=10.0)["not_measured"] and len(asked) == 1
    row = sweep.row_of(point, None, "cpu", under=10.0)
    assert row["predicted_seconds"] is None and "accounted for only" in sweep.line_of(row)


def test_tubes_without_a_position_have_the_librarys_own_words():
    row = sweep.row_of(Point(encoder="tubes", model="L", frames=16, mask=0), LIMITS, "cpu", 10.0)
    assert "wanted at least 20 frames for tube 2 of 4" in row["error"] and row["error"] in sweep.line_of(row)


def test_a_small_point_is_measured_in_processes_of_its_own():
    found = sweep_measure.measure(Point(encoder="coarse 4x32x32", model="B", frames=16, mask=75, quick=True), "cpu")
    assert found["seconds"]["median"] > 0 and "not_measured" not in found
    assert found["measured_peak_bytes"] is None or found["measured_peak_bytes"] > 0


def test_a_run_that_accounts_times_nothing_and_draws(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sweep, "ceilings", lambda *a, **k: pytest.fail("timed"))
    given = ["--quick", "--device", "cpu", "--masks", "0", "75", "--measure-under", "0", "--plot", str(tmp_path)]
    assert sweep.main(given) == 0
    out = capsys.readouterr().out
    for name in ENCODERS:
        assert name in out
    assert "ViT-L, 32 frames" in out and (tmp_path / "encoders.png").read_bytes().startswith(b"\x89PNG")


def test_a_saved_run_is_whole_lines_with_their_origin(tmp_path):
    given = ["--models", "B", "--frames", "16", "--masks", "0", "75", "--encoders", "coarse", "--device", "cpu"]
    assert sweep.main([*given, "--measure-under", "0", "--save", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("_sweep.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6 and {row["kind"] for row in rows} == {"sweep"}
    assert all({"commit", "device", "torch", "date", "dtype"} <= set(row) for row in rows)
    assert rows[0]["parameters"] > 86e6 and rows[0]["optimiser_bytes"] == 8 * rows[0]["parameters"]
    assert len(sweep_plots.latest(rows + rows)) == 6
    with pytest.raises(ValueError, match="wanted rows of a sweep"):
        sweep_plots.latest([{"kind": "case"}])


@pytest.mark.parametrize("given", [["--save", "--quick"], ["--masks", "100"], ["--encoders", "conv"]])
def test_bad_arguments_are_refused(given, capsys):
    with pytest.raises(SystemExit):
        sweep.main(given)
    assert "error" in capsys.readouterr().err


@pytest.mark.slow
def test_the_measured_peak_is_what_is_accounted_for():
    """ViT-B, where the 15 MiB of a process's first step are little beside 300."""
    point = Point(encoder="joint", model="B", frames=16, mask=50)
    found = json.loads(
        sweep_measure.fresh("benchmarks.sweep_measure", ["peak", point.to_json(), "cpu"], **sweep_measure.PAGES)
    )
    if found["measured_peak_bytes"] is None:
        pytest.skip("no /proc here")
    accounted = accounting.account(point.config(), point.mask_ratio).peak_bytes
    assert 0.97 * accounted < found["measured_peak_bytes"] < 1.08 * accounted
