"""tubelet_embed on every backend, against normalise → conv3d → + pos → index in float64."""

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.ops.tubelet_embed.op import OP
from tests.numerics import check
from tests.ops.cases import backends, names

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]

# kernel, stride, offset, size: ViViT, frame patches, coarse, TubeViT's four tubes, overlap, a size that does
# not divide.
TUBES = {
    "vivit": ((2, 16, 16), None, (0, 0, 0), (4, 32, 48)),
    "patches": ((1, 16, 16), None, (0, 0, 0), (3, 32, 32)),
    "coarse": ((4, 32, 32), None, (0, 0, 0), (8, 32, 64)),
    "tube1": ((8, 8, 8), (16, 32, 32), (0, 0, 0), (24, 40, 40)),
    "tube2": ((16, 4, 4), (6, 32, 32), (4, 8, 8), (26, 44, 12)),
    "tube3": ((4, 12, 12), (16, 32, 32), (0, 16, 16), (20, 60, 28)),
    "overlap": ((3, 5, 4), (1, 2, 3), (1, 0, 2), (5, 9, 11)),
    "odd": ((2, 3, 5), (2, 3, 5), (0, 1, 0), (5, 8, 12)),
}


def plain(keep, mean, std, stride, offset):
    """The chain, in the dtype that comes in."""

    def formula(video, weight, bias, pos):
        x = video.to(weight.dtype)
        if video.dtype == torch.uint8:
            x = x / 255
        if mean is not None:
            x = (x - x.new_tensor(mean).view(-1, 1, 1, 1)) / x.new_tensor(std).view(-1, 1, 1, 1)
        x = x[:, :, offset[0] :, offset[1] :, offset[2] :]
        out = nnf.conv3d(x, weight, bias, stride or weight.shape[2:]).flatten(2).transpose(1, 2) + pos
        if keep is None:
            return out
        if keep.dim() == 1:
            return out.flatten(0, 1)[keep]
        return out[torch.arange(len(keep), device=keep.device).unsqueeze(1), keep]

    return formula


def inputs(kernel, stride, offset, size, device, *, kind=torch.uint8, clips=2, width=24):
    if kind == torch.uint8:
        video = torch.randint(256, (clips, 3, *size), device=device, dtype=torch.uint8)
    else:
        video = torch.randn(clips, 3, *size, device=device, requires_grad=True)
    weight = (torch.randn(width, 3, *kernel, device=device) * 0.1).requires_grad_()
    grid = [(n - o - k) // s + 1 for n, o, k, s in zip(size, offset, kernel, stride or kernel, strict=True)]
    tokens = grid[0] * grid[1] * grid[2]
    pos = torch.randn(tokens, width, device=device, requires_grad=True)
    return [video, weight, torch.randn(width, device=device, requires_grad=True), pos], tokens


def fast(keep, mean, std, stride, offset, backend):
    def call(video, weight, bias, pos):
        return F.tubelet_embed(
            video,
            weight,
            bias,
            pos=pos,
            keep=keep,
            mean=mean,
            std=std,
            stride=stride,
            offset=offset,
            backend=backend,
        )

    return call


@pytest.mark.parametrize(("backend", "dtype"), backends(OP))
@pytest.mark.parametrize("tube", TUBES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32], ids=["uint8", "float"])
def test_every_tube(backend, dtype, tube, kind, device, poisoned):
    kernel, stride, offset, size = TUBES[tube]
    args, tokens = inputs(kernel, stride, offset, size, device, kind=kind)
    keep = F.random_keep(2, tokens, 0.4, device=device)
    rest = (keep, MEAN, STD, stride, offset)
    check(fast(*rest, backend), plain(*rest), args, dtype)


@pytest.mark.parametrize(("backend", "dtype"), backends(OP))
@pytest.mark.parametrize("form", ["all", "flat", "one", "none"])
def test_every_form_of_keep(backend, dtype, form, device, poisoned):
    kernel, stride, offset, size = TUBES["vivit"]
    args, tokens = inputs(kernel, stride, offset, size, device, width=33)
    keep = {
        "all": None,
        "flat": torch.randperm(2 * tokens, device=device)[:7],
        "one": torch.tensor([[tokens - 1], [0]], device=device),
        "none": torch.empty(2, 0, dtype=torch.int64, device=device),
    }[form]
    rest = (keep, None, None, None, offset)
    check(fast(*rest, backend), plain(*rest), args, dtype)


@pytest.mark.parametrize("backend", names(OP))
def test_a_decoder_buffer_and_other_views_cost_no_copy_and_agree(backend, device):
    buffer = torch.randint(256, (2, 6, 40, 48, 3), device=device, dtype=torch.uint8)
    weight = torch.randn(8, 3, 2, 16, 16, device=device)
    for video in (
        buffer.permute(0, 4, 1, 2, 3)[:, :, :4, :32],
        buffer.permute(0, 4, 1, 2, 3)[:, :, ::2, 3:35, 5:37],
        buffer.permute(0, 4, 1, 2, 3).flip(0)[:, :, 1:5, :32, :32],
        buffer.permute(0, 4, 1, 3, 2)[:, :, :2, :16, :16],
    ):
        got = F.tubelet_embed(video, weight, mean=MEAN, std=STD, backend=backend)
        want = F.tubelet_embed(video.contiguous(), weight, mean=MEAN, std=STD, backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", names(OP))
def test_images_take_a_2d_weight(backend, device):
    images = torch.randint(256, (3, 3, 32, 48), device=device, dtype=torch.uint8)
    weight = torch.randn(8, 3, 16, 16, device=device, requires_grad=True)
    got = F.tubelet_embed(images, weight, mean=MEAN, std=STD, backend=backend)
    x = (images / 255 - torch.tensor(MEAN, device=device).view(3, 1, 1)) / torch.tensor(STD, device=device).view(
        3, 1, 1
    )
    want = nnf.conv2d(x, weight, stride=16).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    got.sum().backward()
    assert weight.grad.shape == weight.shape


@pytest.mark.parametrize("backend", names(OP))
def test_no_clips(backend, device):
    video = torch.zeros(0, 3, 4, 32, 32, device=device, requires_grad=True)
    weight = torch.randn(5, 3, 2, 16, 16, device=device, requires_grad=True)
    pos = torch.randn(8, 5, device=device, requires_grad=True)
    keeps = {
        (0, 8, 5): None,
        (0, 3, 5): torch.zeros(0, 3, dtype=torch.int64, device=device),
        (0, 5): torch.zeros(0, dtype=torch.int64, device=device),
    }
    for shape, keep in keeps.items():
        out = F.tubelet_embed(video, weight, weight[:, 0, 0, 0, 0], pos=pos, keep=keep, backend=backend)
        assert out.shape == shape
        grads = torch.autograd.grad(out.sum(), (video, weight, pos))
        assert [grad.shape for grad in grads] == [video.shape, weight.shape, pos.shape]
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("backend", names(OP))
def test_float64_goes_to_the_reference_or_is_refused(backend, device):
    from fastvivit import BackendError

    video, weight = (
        torch.randn(1, 3, 2, 16, 16, dtype=torch.float64),
        torch.randn(4, 3, 2, 16, 16, dtype=torch.float64),
    )
    if backend == "reference":
        assert F.tubelet_embed(video, weight, backend=backend).dtype == torch.float64
    else:
        with pytest.raises(BackendError, match="float64"):
            F.tubelet_embed(video, weight, backend=backend)


@pytest.mark.parametrize("backend", names(OP))
def test_a_still_clip_under_an_inflated_weight_is_its_image(backend):
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    weight = torch.randn(8, 3, 16, 16)
    flat = F.tubelet_embed(image, weight, mean=MEAN, std=STD, backend=backend)
    still = image.unsqueeze(2).expand(-1, -1, 4, -1, -1)
    for how in ("average", "central"):
        got = F.tubelet_embed(still, F.inflate(weight, 2, how=how), mean=MEAN, std=STD, backend=backend)
        torch.testing.assert_close(got, flat.repeat(1, 2, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", names(OP))
def test_bad_ids_on_a_cpu_are_errors_that_name_them(backend):
    video, weight = torch.zeros(2, 3, 2, 32, 32), torch.zeros(4, 3, 2, 16, 16)
    for keep, message in (
        (torch.tensor([[0, 4], [0, 1]]), r"keep: wanted ids in 0\.\.3, got 4 at \[0, 1\]"),
        (torch.tensor([[0, 1], [2, 2]]), r"keep: wanted distinct ids, got 2 again at \[1, 1\]"),
        (torch.tensor([0, 7, 8]), r"keep: wanted ids in 0\.\.7, got 8 at \[2\]"),
        (torch.tensor([-1]), r"keep: wanted ids in 0\.\.7, got -1 at \[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            F.tubelet_embed(video, weight, keep=keep, backend=backend)


def test_bad_arguments_are_errors_that_name_them():
    video, weight = torch.zeros(2, 3, 4, 32, 32), torch.zeros(4, 3, 2, 16, 16)
    keep = torch.tensor([[0], [1]])
    for call, message in (
        (
            lambda: F.tubelet_embed(video[0, 0], weight),
            "video: wanted 4 or 5 dimensions, got shape (4, 32, 32)",
        ),
        (lambda: F.tubelet_embed(video.int(), weight), "video: wanted uint8 | float32"),
        (
            lambda: F.tubelet_embed(video, weight[:, :2]),
            "weight: wanted 3 channels like video, got shape (4, 2, 2, 16, 16)",
        ),
        (lambda: F.tubelet_embed(video, weight[:, :, 0]), "weight: wanted 5 dimensions"),
        (lambda: F.tubelet_embed(video[:, :, :1], weight), "video: wanted at least (T, H, W) = (2, 16, 16)"),
        (lambda: F.tubelet_embed(video, weight, torch.zeros(5)), "bias: wanted shape (4,), got (5,)"),
        (
            lambda: F.tubelet_embed(video, weight, pos=torch.zeros(9, 4)),
            "pos: wanted shape (8, 4) for a grid of (2, 2, 2)",
        ),
        (lambda: F.tubelet_embed(video, weight, keep=keep[:1]), "keep: wanted 2 clips like video"),
        (lambda: F.tubelet_embed(video, weight, keep=keep.int()), "keep: wanted int64, got int32"),
        (
            lambda: F.tubelet_embed(video, weight, stride=(2, 16)),
            "stride: wanted 3 whole numbers of at least 1",
        ),
        (
            lambda: F.tubelet_embed(video, weight, stride=(0, 16, 16)),
            "stride: wanted 3 whole numbers of at least 1",
        ),
        (
            lambda: F.tubelet_embed(video, weight, offset=(0, -1, 0)),
            "offset: wanted 3 whole numbers of at least 0",
        ),
        (lambda: F.tubelet_embed(video, weight, mean=[0.5]), "mean: wanted 3 values, one a channel, got 1"),
        (lambda: F.tubelet_embed(video, weight, std=[0.5, 0, 1]), "std: wanted values above 0"),
        (
            lambda: F.tubelet_embed(video, weight, precision="bf16"),
            "precision: wanted 'ieee' or 'tf32', got 'bf16'",
        ),
        (lambda: F.tubelet_embed(video, weight, backend="conv"), "backend: wanted one of 'auto', 'triton'"),
        (lambda: F.tubelet_embed(video, weight.to("meta")), "weight: wanted device cpu, got meta"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_autocast_casts_to_its_dtype():
    video, weight = torch.randint(256, (1, 3, 2, 16, 16), dtype=torch.uint8), torch.randn(4, 3, 2, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.tubelet_embed(video, weight, pos=torch.zeros(1, 4)).dtype == torch.bfloat16
