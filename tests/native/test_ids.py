"""Ids checked, flattened, inverted and sorted, against plain torch."""

import pytest
import torch

from tests.native.calls import BUILT, LIB, guarded, ints, sort_ids

pytestmark = BUILT


def flat_ids(ids, size, distinct=True, want_out=True):
    out, check = guarded(*ids.shape, dtype=torch.int64)
    code = LIB.fv_flat_ids(ids.data_ptr(), *ids.shape, size, int(distinct), out.data_ptr() if want_out else None)
    check()
    return code, out


def random_ids(batch, per_clip, size, ascending, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(batch, size, generator=generator).argsort(1)[:, :per_clip]
    return ids.sort(1)[0] if ascending else ids.contiguous()


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("shape", [(0, 0), (1, 0), (1, 1), (3, 7), (2, 512), (1, 70001), (40000, 3)])
def test_flat_ids(shape, ascending, level, threads):
    batch, per_clip = shape
    size = per_clip + 5
    ids = random_ids(batch, per_clip, size, ascending)
    code, out = flat_ids(ids, size)
    assert code == -1
    assert torch.equal(out, ids + torch.arange(batch)[:, None] * size)
    assert flat_ids(ids, size, want_out=False)[0] == -1


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 131073), (30000, 5)])
@pytest.mark.parametrize("bad", [-1, "size", -(2**63), 2**63 - 1])
def test_flat_ids_finds_the_first_id_outside(shape, bad, level, threads):
    size = shape[1] + 5
    for row in {0, shape[0] * shape[1] // 2, shape[0] * shape[1] - 1}:
        for ascending in (True, False):
            ids = random_ids(*shape, size, ascending)
            ids.view(-1)[row:] = size if bad == "size" else bad
            assert flat_ids(ids, size)[0] == row
            assert flat_ids(ids, size, distinct=False)[0] == row


def test_flat_ids_finds_the_first_repeat(level, threads):
    assert flat_ids(ints(0, 1, 1).view(1, 3), 4)[0] == -2 - 2
    assert flat_ids(ints(3, 1, 3).view(1, 3), 4)[0] == -2 - 2
    assert flat_ids(ints(0, 0, 9).view(1, 3), 4)[0] == -2 - 1
    assert flat_ids(ints(0, 9, 0).view(1, 3), 4)[0] == 1
    assert flat_ids(ints(2, 3, 2, 3).view(2, 2), 4)[0] == -1, "another clip may use the same id"
    code, out = flat_ids(ints(2, 2, 0, 0).view(2, 2), 4, distinct=False)
    assert code == -1 and out.tolist() == [[2, 2], [4, 4]]
    ids = random_ids(1, 140000, 140000, True)
    for row in (65535, 65536, 65537, 139999):
        repeated = ids.clone()
        repeated[0, row] = repeated[0, row - 1]
        assert flat_ids(repeated, 140000)[0] == -2 - row
    assert flat_ids(ints(0).view(1, 1), 0)[0] == 0, "no id is inside an empty grid"


@pytest.mark.parametrize(("rows", "size"), [(0, 0), (0, 5), (1, 1), (7, 20), (5, 0), (50001, 140001)])
def test_invert_ids(rows, size, threads):
    ids = torch.randperm(max(size, rows), generator=torch.Generator().manual_seed(1))[:rows].contiguous()
    if rows:
        ids[0] = -1
    inverse, check = guarded(size, dtype=torch.int64)
    LIB.fv_invert_ids(ids.data_ptr(), rows, size, inverse.data_ptr())
    check()
    wanted = torch.full((size,), -1)
    inside = (ids >= 0) & (ids < size)
    wanted[ids[inside]] = torch.arange(rows)[inside]
    assert torch.equal(inverse, wanted)


@pytest.mark.parametrize(("rows", "segments"), [(0, 0), (0, 3), (1, 1), (3, 0), (9, 4), (1000, 77), (77, 1000)])
def test_sort_ids(rows, segments):
    ids = torch.randint(-2, segments + 2, (rows,), generator=torch.Generator().manual_seed(2))
    offsets, order = sort_ids(ids, segments)
    clamped = ids.clamp(0, max(segments - 1, 0))
    assert torch.equal(order, clamped.argsort(stable=True) if segments else torch.arange(rows))
    counts = torch.bincount(clamped, minlength=segments)[:segments]
    assert torch.equal(offsets, torch.cat([ints(0), counts.cumsum(0)]))
