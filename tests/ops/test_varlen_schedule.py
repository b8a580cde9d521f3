"""varlen_schedule against a schedule written out in Python."""

import pytest
import torch

from fastvivit.ops.varlen_attention.schedule import FIELDS, GRANULE, HEADER, UNUSED, blocks, table_size, varlen_schedule


def cu(lengths, device="cpu"):
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def entries_by_hand(own, other, rows, backwards):
    """Longest other side first; rows past the end last, as one more sequence that meets nothing."""
    starts, others = [0], [0]
    for a, b in zip(own, other, strict=True):
        starts.append(starts[-1] + a)
        others.append(others[-1] + b)
    spans = [(starts[i], starts[i + 1], others[i], others[i + 1]) for i in range(len(own))]
    spans.append((starts[-1], rows, 0, 0))
    entries = []
    for sequence in sorted(range(len(spans)), key=lambda i: spans[i][2] - spans[i][3]):
        count = -(-(spans[sequence][1] - spans[sequence][0]) // GRANULE)
        order = reversed(range(count)) if backwards else range(count)
        entries += [(sequence, block, *spans[sequence]) for block in order]
    return entries


def read(table, rows_q, rows_k, sequences):
    assert table.dtype == torch.int32 and table.shape == (table_size(rows_q, rows_k, sequences),)
    table = table.tolist()
    assert table[1:HEADER] == [rows_q, rows_k, sequences]
    entries = [tuple(table[i : i + FIELDS]) for i in range(HEADER, len(table), FIELDS)]
    middle = blocks(rows_q, sequences)
    return table[0], entries[:middle], entries[middle:]


CASES = {
    "self": ([5, 300, 0, 128, 129, 127, 1], None, 0, 0),
    "cross": ([5, 300, 0, 128], [1000, 0, 7, 128], 300, 1),
    "empty batch": ([], [], 140, 0),
    "no rows": ([0, 0], [0, 0], 0, 0),
    "many short": ([1] * 300, [3] * 300, 0, 0),
    "worst count": ([129] * 20 + [1], [1] * 21, 1, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_entries(case, device):
    lengths_q, lengths_k, slack_q, slack_k = CASES[case]
    lengths_k = lengths_q if lengths_k is None else lengths_k
    rows_q, rows_k = sum(lengths_q) + slack_q, sum(lengths_k) + slack_k
    table = varlen_schedule(cu(lengths_q, device), cu(lengths_k, device), rows_q, rows_k)
    flag, queries, keys = read(table, rows_q, rows_k, len(lengths_q))
    assert flag == 0
    for found, own, other, rows, backwards in (
        (queries, lengths_q, lengths_k, rows_q, True),
        (keys, lengths_k, lengths_q, rows_k, False),
    ):
        wanted = entries_by_hand(own, other, rows, backwards)
        assert len(wanted) <= len(found) == blocks(rows, len(own))
        assert found[: len(wanted)] == wanted
        assert set(found[len(wanted) :]) <= {(UNUSED,) * FIELDS}
        covered = [row for _, b, start, end, _, _ in wanted for row in range(start + b * GRANULE, end)[:GRANULE]]
        assert sorted(covered) == list(range(rows))


@pytest.mark.parametrize("wrong", ["start", "falls", "beyond", "wraps"])
@pytest.mark.parametrize("side", [0, 1])
def test_bad_cu_seqlens_raise_the_flag(wrong, side, device):
    values = {
        "start": [1, 4, 8],
        "falls": [0, 5, 4],
        "beyond": [0, 4, 11],
        "wraps": [0, 2**31 - 1, -(2**31)],
    }[wrong]
    both = [torch.tensor(v, dtype=torch.int32, device=device) for v in ([0, 3, 10], [0, 3, 10])]
    both[side] = torch.tensor(values, dtype=torch.int32, device=device)
    flag, queries, keys = read(varlen_schedule(*both, 10, 10), 10, 10, 2)
    assert flag == 1
    for _, _, start, end, other_start, other_end in [e for e in queries + keys if e[0] != UNUSED]:
        assert 0 <= start <= end <= 10 and other_start == other_end == 0


def test_compiles_for_all_lengths(device):
    compiled = torch.compile(varlen_schedule, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([5, 300], [7, 0, 9], [1000, 2, 2, 2]):
        starts, rows = cu(lengths, device), sum(lengths) + 3
        assert torch.equal(compiled(starts, starts, rows, rows), varlen_schedule(starts, starts, rows, rows))
