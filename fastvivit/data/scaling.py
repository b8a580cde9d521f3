"""Decoded pictures to RGB pixels of the size that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastvivit.data.container import import_av

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class Scaler:
    """Scale until both sides cover the target, cut out the centre, turn if the file says so.

    One scaler serves one clip: swscale's tables are built once for each size that the pictures have.

    Args:
        height: rows of the result.
        width: columns of the result.
    """

    def __init__(self, height: int, width: int) -> None:
        import_av()
        from av.video.reformatter import Interpolation, VideoReformatter

        self._size = (height, width)
        self._reformatter = VideoReformatter()
        # Without the last two, swscale takes short cuts that darken a picture by up to 2 levels of 255.
        self._filter = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

    def write(self, frame: VideoFrame, out: np.ndarray) -> None:
        """Write one picture into every place of ``out``.

        Args:
            frame: PyAV's decoded picture, of any size and pixel format.
            out: uint8 ``(n, height, width, 3)``; n may be 0.
        """
        if len(out) == 0:
            return
        turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, as np.rot90 counts
        height, width = self._size if turns % 2 == 0 else self._size[::-1]
        scale = max(height / frame.height, width / frame.width)
        rows, columns = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
        # One thread: a picture takes less time than starting more, and loaders run several readers.
        rgb = self._reformatter.reformat(
            frame, width=columns, height=rows, format="rgb24", interpolation=self._filter, threads=1
        )
        plane = rgb.planes[0]
        pixels = np.frombuffer(plane, np.uint8).reshape(rows, plane.line_size)[:, : columns * 3]
        top, left = (rows - height) // 2, (columns - width) // 2
        pixels = pixels.reshape(rows, columns, 3)[top : top + height, left : left + width]
        out[:] = np.rot90(pixels, turns)
