"""Checkpointing by policy: the same numbers to the bit, and exactly the bytes that the docstring promises."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

import fastvivit as fv
import fastvivit.functional as F
from benchmarks.accounting import Ledger, saved_storages
from fastvivit.modules import offload
from fastvivit.modules.block import Block
from fastvivit.modules.mlp import ACTIVATIONS
from fastvivit.modules.offload import HostOffload
from fastvivit.modules.recompute import through
from fastvivit.tokens import Tokens
from fastvivit.tubes import Tube

CFG = fv.ViViTConfig(frames=8, size=64, width=48, depth=3, heads=3, ff=96, pos_std=0.2)
TUBES = (Tube(kernel=(4, 16, 16), stride=(4, 16, 16)), Tube(kernel=(2, 16, 16), stride=(4, 32, 32)))
KINDS = {
    "joint": {},
    "cls, quick gelu": {"cls": True, "pool": "cls", "act": "quick_gelu"},
    "frame": {"attention": "frame", "tubelet": (1, 16, 16)},
    "factorised": {"attention": "factorised", "tubelet": (1, 16, 16)},
    "tubes": {"attention": "tubes", "tubes": TUBES, "cross_view": True},
    "dropped branches": {"drop_path": 0.3},
}
SWITCHES = {
    "selective": {"policy": "selective"},
    "full": {"policy": "full"},
    "offload": {"policy": "full", "offload": True},
}


def encoder(dtype=torch.float32, **changes):
    torch.manual_seed(1)
    enc = fv.ViViT(CFG.replace(**changes)).train()
    for name, parameter in enc.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter)  # else a second attention gets no gradient
    return enc.to(dtype)


def clips(dtype=torch.float32):
    return torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(2)).to(dtype)


def step(enc, half=False, video=None):
    """Loss and gradients of one step, whatever was drawn before."""
    enc.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = enc(clips(enc.norm.weight.dtype) if video is None else video, mask_ratio=0.5)
    loss = out.pooled.square().sum() + out.tokens.sin().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in enc.parameters() if p.grad is not None)]


def same(got, want):
    return len(got) == len(want) and all(map(torch.equal, got, want))


@pytest.fixture
def small(monkeypatch):
    """Offload tensors of any size."""
    monkeypatch.setattr(offload, "SMALLEST", 1)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "autocast"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_equal_to_the_bit(kind, dtype, switch, small):
    half = dtype == "autocast"
    enc = encoder(torch.float32 if half else getattr(torch, dtype), **KINDS[kind])
    want = step(enc, half)
    enc.set_grad_checkpointing(True, **SWITCHES[switch])
    assert same(step(enc, half), want) and len(want) > 20
    enc.set_grad_checkpointing(False)
    assert enc.checkpointing is None and enc.offload is None and same(step(enc, half), want)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("method", ["adapters", "lora", "last_layers", "temporal"])
def test_equal_under_every_tuning(method, switch, small):
    enc = encoder(**KINDS["factorised" if method == "temporal" else "joint"])
    {
        "adapters": lambda: fv.tune.add_adapters(enc, 8),
        "lora": lambda: fv.tune.add_lora(enc, 2),
        "last_layers": lambda: fv.tune.last_layers(enc, 2),
        "temporal": lambda: fv.tune.temporal_only(enc),
    }[method]()
    with torch.no_grad():
        for parameter in enc.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    want = step(enc)
    enc.set_grad_checkpointing(True, **SWITCHES[switch])
    assert same(step(enc), want)


def test_a_graph_may_be_walked_twice(small):
    enc = encoder()
    for switch in SWITCHES.values():
        enc.set_grad_checkpointing(True, **switch)
        loss = enc(clips()).pooled.square().sum()
        first = torch.autograd.grad(loss, list(enc.blocks.parameters()), retain_graph=True)
        assert same(torch.autograd.grad(loss, list(enc.blocks.parameters())), first)


def bytes_of_a_block(policy, config):
    """What the forward of one more block leaves for the backward, beyond weights: what is alive, whoever holds it."""
    torch.manual_seed(0)
    kept, noted = [], []
    for depth in (2, 3):
        enc = fv.ViViT(config.replace(depth=depth)).train()
        if policy != "off":
            enc.set_grad_checkpointing(True, policy)
        known = [*enc.parameters(), clips()]
        with Ledger(known, {}) as ledger, saved_storages(known) as saved:
            out = enc(known[-1]).pooled
        kept.append(ledger.now)
        noted.append(sum(saved.values()))
        del out
    assert noted[1] - noted[0] == kept[1] - kept[0]
    return kept[1] - kept[0]


@pytest.mark.parametrize("ff", [192, 80])
@pytest.mark.parametrize(
    ("policy", "per_width", "per_ff", "small_ones"), [("off", 8, 2, 1), ("selective", 6, 1, 1), ("full", 1, 0, 0)]
)
def test_bytes_a_token_are_the_docstrings(policy, per_width, per_ff, small_ones, ff):
    config = CFG.replace(ff=ff)
    rows = 2 * config.tokens
    want = 4 * (per_width * config.width + per_ff * ff) + small_ones * (4 * config.heads + 16)
    assert bytes_of_a_block(policy, config) == rows * want
    row = {"off": "off | 8 D + 2 F", "selective": '"selective" | 6 D + F', "full": '"full" | D'}[policy]
    assert row in fv.ViViT.set_grad_checkpointing.__doc__


@pytest.mark.parametrize(("policy", "more"), [("off", 7), ("selective", 6)])
def test_bytes_of_a_second_attention_are_the_docstrings(policy, more):
    plain = CFG.replace(attention="frame", tubelet=(1, 16, 16))
    both = plain.replace(attention="factorised", order="space_time")
    extra = bytes_of_a_block(policy, both) - bytes_of_a_block(policy, plain)
    # The inverse of its order, tanh of its gate and what else does not grow with the width are less than one D.
    one = 2 * plain.tokens * plain.width * 4
    assert more * one <= extra < (more + 1) * one


def test_only_what_is_cheap_runs_again(monkeypatch):
    enc, calls = encoder(attention="factorised", tubelet=(1, 16, 16)), []
    for name, module in enc.blocks.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_, name=name: calls.append(name))
    enc.set_grad_checkpointing(True, "selective")
    loss = enc(clips()).pooled.square().sum()
    once = sorted(calls)
    loss.backward()
    again = calls[len(once) :]
    ends = {".".join(name.split(".")[1:]) for name in again}
    assert ends == {"norm1", "norm2", "extra.norm", "mlp.act"} and len(again) == 4 * CFG.depth


def test_what_a_norm_widens_for_itself_is_not_kept(monkeypatch):
    """Autocast on a GPU gives a norm float32; here a norm that does so itself."""
    from fastvivit.modules import recompute

    class Wide(nn.LayerNorm):
        def forward(self, x):
            x = x.float()
            seen.append(weakref.ref(x))
            return super().forward(x)

    monkeypatch.setattr(recompute, "_widens", lambda x: x.dtype == torch.bfloat16)
    layer, norm = nn.Linear(32, 64), Wide(32)
    found, seen = [], []
    for again in (False, True):
        seen.clear()
        torch.manual_seed(0)
        x = torch.randn(40, 32).to(torch.bfloat16).requires_grad_()
        layer.zero_grad()
        norm.zero_grad()
        with Ledger([*layer.parameters(), *norm.parameters(), x], {}) as ledger, torch.autocast("cpu"):
            out = through(layer, norm, x) if again else layer(norm(x))
        alive = ledger.now
        assert (seen[0]() is None) == again
        grads = torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters(), *norm.parameters()])
        found.append(([out, *grads], alive))
    (want, kept), (got, left) = found
    # Input of the norm in float32, of the layer in bfloat16.
    assert same(got, want) and kept - left == 40 * 32 * (4 + 2)


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_compiles_whole(policy):
    torch._dynamo.reset()
    enc = encoder()
    enc.set_grad_checkpointing(True, policy)
    compiled = torch.compile(enc, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(one(clips()).pooled.sum(), enc.embed.weight)[0] for one in (compiled, enc))
    torch.testing.assert_close(got, want)


class Watched(offload.Lane):
    """A lane that notes what a stream would have been asked for."""

    def __init__(self, device):
        super().__init__(device)
        self.asked, self.waited = [], []

    def copy(self, to, x):
        super().copy(to, x)
        self.asked.append("copy")
        return len(self.asked)

    def wait(self, copied):
        self.waited.append(copied)


def test_offload_moves_large_tensors_that_are_no_parameters():
    host = HostOffload()
    weight = nn.Parameter(torch.randn(1 << 9, 1 << 9))  # 1 MiB
    with host.saving():
        assert host._pack(weight) is weight
        view = weight.t()
        assert host._pack(view) is view
        few = torch.randn(100)
        assert host._pack(few) is few
        large = torch.randn(1 << 18)
        moved = host._pack(large)
    assert torch.equal(offload._unpack(moved), large) and offload._unpack(few) is few


def test_offload_keeps_two_on_the_device_and_fetches_ahead(small):
    host = HostOffload()
    lane = host._lanes[torch.device("cpu")] = Watched(torch.device("cpu"))
    values = [torch.randn(10) for _ in range(4)]
    moved = [host._pack(x) for x in values]
    assert [one.here is not None for one in moved] == [False, False, False, True]
    assert lane.waited == [1, 2, 3] and len(lane.asked) == 4  # each left after its own copy
    assert torch.equal(offload._unpack(moved[3]), values[3])
    assert len(lane.asked) == 5 and moved[2].here is not None and moved[1].here is None  # the last was still here
    assert torch.equal(offload._unpack(moved[2]), values[2])
    assert moved[2].here is None and moved[1].here is not None and len(lane.asked) == 6
    assert torch.equal(offload._unpack(moved[2]), values[2])  # a second backward: from the host again
    assert lane.waited[-1] == 7
    fetched = moved[1].copied
    del moved
    assert lane.waited[-1] == fetched  # dropped after it was fetched: the memory waits for the copy
    again = [host._pack(x) for x in values[:2]]
    assert again[0].before is None or again[0].before() is None


def test_models_with_offloading_can_be_copied_and_pickled(small):
    enc = encoder()
    enc.set_grad_checkpointing(True, offload=True)
    want = step(enc)
    for twin in (copy.deepcopy(enc), pickle.loads(pickle.dumps(enc))):
        assert twin.offload is not enc.offload and same(step(twin), want)


def test_bad_settings_are_errors_that_name_them():
    enc = encoder()
    with pytest.raises(ValueError, match="policy: wanted one of 'full', 'selective', got 'some'"):
        enc.set_grad_checkpointing(True, "some")
    with pytest.raises(ValueError, match="offload: wanted policy 'full' beside it, got 'selective'"):
        enc.set_grad_checkpointing(True, "selective", offload=True)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_through_every_activation(act):
    layer, norm = nn.Linear(24, 8).double(), ACTIVATIONS[act]()
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: through(layer, norm, x), (x,))


def test_a_block_takes_frozen_norms_and_frozen_inputs():
    block = Block(CFG, 0.0).train()
    block.norm1.requires_grad_(False)
    places = Tokens([((1, 1, 10),)], [10], None, torch.device("cpu")).by_clip
    x = F.gather_tokens(torch.randn(10, 48), torch.arange(10))
    grads = []
    for selective in (False, True):
        out = block(x, places, places, None, selective)
        grads.append(torch.autograd.grad(out.square().sum(), [p for p in block.parameters() if p.requires_grad]))
    assert same(*grads)
