"""What is timed: the layers that were asked for, the peers, and the definition that judges them at any length."""

import pytest
import torch

from benchmarks import golden
from benchmarks.case import Options
from benchmarks.cases import all_cases
from benchmarks.families.attention import attention_flops
from benchmarks.peers import attention as peers
from benchmarks.peers import sdpa

QUICK = Options(quick=True)


@pytest.mark.parametrize("lengths", [(5, 1, 9), (7,), (0, 3)])
def test_the_definition_by_blocks_is_the_definition(lengths, monkeypatch):
    # A block of two queries.
    monkeypatch.setattr(golden, "BLOCK_BYTES", 8 * 2 * max(lengths) * 2)
    q, k, v, grad = (torch.randn(sum(lengths), 2, 8, dtype=torch.float64) for _ in range(4))
    out, grads = golden.attention(q, k, v, lengths, grad)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    filled = [length for length in lengths if length]
    wanted = sdpa.clip_by_clip(*leaves, filled)
    torch.testing.assert_close(out, wanted)
    for found, exact in zip(grads, torch.autograd.grad(wanted, leaves, grad), strict=True):
        torch.testing.assert_close(found, exact)


def test_every_attention_peer_takes_part_or_says_why():
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    made, absent = peers.others(peers.Batch(lengths=(4, 5), cu_seqlens=cu, options=QUICK))
    names = {*(f"sdpa {name}" for name in peers.KERNELS), "torch varlen_attn", "FlexAttention compiled"}
    names |= {"flash-attn 2", "flash-attn 3", "flash-attn 4", "xformers"}
    assert set(made) | set(absent) == names and not set(made) & set(absent)
    assert all(absent.values())


def test_gpu_cases_are_the_layers_that_were_asked_for():
    """ViT-B and L; 16, 128, 256 frames; five masking ratios; what the claims rest on. Listed without a GPU."""
    cases = all_cases(Options(device="cuda", dtype=torch.bfloat16))
    facts = [case.facts for case in cases if case.name.startswith("attention/ViT-B")]
    assert {(f["frames"], f["mask"]) for f in facts} == {(n, m) for n in (16, 128, 256) for m in (0, 25, 50, 75, 90)}
    tokens = {(f["frames"], f["mask"]): f["tokens"] for f in facts}
    assert tokens[128, 0] == 16384 and tokens[256, 0] == 32768 and tokens[16, 75] == 512
    assert any("ViT-L" in case.name for case in cases)
    moved = [case for case in cases if case.name.startswith("rows/")]
    assert all(case.bytes >= 256 << 20 for case in moved)
    rates = {claim.rate / 1e12 for case in cases for claim in case.claims if claim.rate}
    assert rates == {300, 400, 450, 474, 500, 514, 560, 650}


@pytest.mark.parametrize("direction", ["forward", "backward", "forward + backward"])
def test_attention_flops_count_the_products(direction):
    products = {"forward": 2, "backward": 5, "forward + backward": 7}[direction]
    assert attention_flops([3, 5], 2, 8, direction) == products * 2 * 8 * 2 * (9 + 25)
