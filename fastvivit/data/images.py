"""Still images as one picture each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastvivit.data.container import Source
from fastvivit.data.decoding import decode_image
from fastvivit.data.video import check_clip


def read_image(path: Source, size: int | tuple[int, int] = 256) -> Tensor:
    """Read an image, scaled and cut as `read_clip` does with pictures of a video.

    JPEG, PNG, WebP, TIFF and BMP, and whatever else FFmpeg decodes; of several pictures the first. Grey and palette
    images come out as RGB, alpha is dropped. Turns by quarters that EXIF asks for are carried out; its
    rare mirrored orientations are not, and come out turned as FFmpeg reads them.

    Args:
        path: a local image file, a member of a tar, or a binary file object that can seek.
        size: pixels of the square, or ``(h, w)``.

    Returns:
        uint8 ``(C, H, W)``, RGB; a permuted view of ``(H, W, C)``, as the pictures of a clip are.

    Raises:
        VideoError: (a ValueError) no such file, unreadable, empty or damaged.
        ValueError: an argument outside its range.
        ImportError: PyAV is not installed.
    """
    height, width = check_clip(1, 1.0, size, 0.0, None, None)
    out = np.empty((height, width, 3), np.uint8)
    decode_image(path, out)
    return torch.from_numpy(out).permute(2, 0, 1)
