"""The tuner without a device: tables rewritten in place, candidates rejected by compiling, noise not believed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks import tune_cases, tune_tables
from fastvivit.ops.tubelet_embed import backend_triton
from fastvivit.ops.varlen_attention import triton_configs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", tune_cases.FAMILIES)
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("kind", ["half", "tf32", "ieee"])
def test_every_tile_that_ships_is_found_in_its_table(family, arch, kind):
    spaces = list(tune_cases.FAMILIES[family](arch, kind, None, [32, 64, 128]))
    assert len(spaces) >= 3
    for space in spaces:
        try:
            assert tune_tables.read(space.place) == space.shipped
        except KeyError as error:  # a table may stand on another's row, which then is not its own to change
            assert "no row" in str(error) and kind == "ieee"


def _copy(module, tmp_path):
    return Path(shutil.copy(module.__file__, tmp_path))


def test_one_tile_is_replaced_and_nothing_else(tmp_path):
    path = _copy(triton_configs, tmp_path)
    before = path.read_text().splitlines()
    place = tune_tables.Place(path, "_HOPPER", ("half", 64), 1)
    others = [tune_tables.read(tune_tables.Place(path, "_HOPPER", ("half", 64), i)) for i in (0, 2)]
    where = tune_tables.write(place, (32, 128, 4, 2))
    assert tune_tables.read(place) == (32, 128, 4, 2)
    assert [tune_tables.read(tune_tables.Place(path, "_HOPPER", ("half", 64), i)) for i in (0, 2)] == others
    changed = [i for i, (a, b) in enumerate(zip(before, path.read_text().splitlines(), strict=True)) if a != b]
    assert len(changed) == 1 and where == f"{path.name}:{changed[0] + 1}"
    names = {}
    exec(compile(path.read_text().replace("from __future__ import annotations", ""), "copy", "exec"), names)
    assert names["TILES"][90]["half", 64].dkdv == names["Tile"](32, 128, 4, 2)


def test_a_row_of_the_embedding_is_replaced(tmp_path):
    place = tune_tables.Place(_copy(backend_triton, tmp_path), "TILES", (9, "half"), 0)
    assert tune_tables.row(place, (64, 256, 64, 8, 3)).startswith('(9, "half"): (Tile(64, 256, 64, 8, 3), Tile(')
    narrow = tune_tables.Place(place.path, "TILES", (9, "half"), 1)
    kept = tune_tables.read(narrow)
    tune_tables.write(place, (64, 256, 64, 8, 3))
    assert tune_tables.read(place) == (64, 256, 64, 8, 3) and tune_tables.read(narrow) == kept


def test_a_row_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="no row"):
        tune_tables.read(tune_tables.Place(_copy(triton_configs, tmp_path), "_HOPPER", ("half", 48), 0))


def test_rows_that_a_kernel_owns_divide_the_granule():
    for space in tune_cases.attention(90, "half", None, [64]):
        for block_m, block_n, _, _ in space.candidates:
            assert 128 % (block_n if "dkdv" in space.name or "atomic" in space.name else block_m) == 0


def _run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.tune", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_dry_run_compiles_and_rejects():
    code = (
        "from benchmarks import tune, tune_cases\n"
        "(space,) = tune_cases.embed(90, 'half', ['forward'], [])\n"
        "tiles = [space.shipped, (256, 256, 128, 8, 4)]\n"
        "left, rejected = tune.survivors({t: space.cases(t) for t in tiles}, 90, 1)\n"
        "assert left == [space.shipped], (left, rejected)\n"
        "print(rejected[tiles[1]])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("spills", "shared memory", "does not compile"))


def test_a_dry_run_needs_no_gpu():
    done = _run("embed", "--kernel", "video", "--dry-run", "--arch", "90", "--limit", "1", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "embed video half: 2 candidates for sm_90" in done.stdout and "may ship" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attention", "--dry-run", "--write"], "--write wants winners"),
        (["rows"], "invalid choice"),
    ],
)
def test_mistakes_are_refused(arguments, words):
    done = _run(*arguments)
    assert done.returncode == 2 and words in done.stderr


PICK = """
from benchmarks.measure import Spread
from benchmarks.tune import pick
for other in ((0.5,) * 3, (0.995, 0.99, 0.985), (1.2,) * 3):
    print(pick({(1,): Spread((1.0,) * 3), (2,): Spread(other)}, (1,)))
"""


def test_only_a_clear_winner_replaces_what_ships():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PICK], cwd=ROOT, env=environment, capture_output=True, text=True)
    # Twice as fast; by less than the margin; slower.
    assert done.stdout.split("\n")[:3] == ["(2,)", "(1,)", "(1,)"], done.stderr
