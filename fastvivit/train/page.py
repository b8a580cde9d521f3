"""A self-contained HTML page: text, tables, plots and frames in one file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 62rem; margin: 2rem auto; padding: 0
1rem; } h1 { font-size: 1.7rem; margin-bottom: 0.3rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de; padding-bottom: 0.2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.3rem; }
table { border-collapse: collapse; margin: 0.6rem 0; }
th, td { padding: 0.3rem 0.9rem; border-bottom: 1px solid #d0d7de; text-align: right; font-variant-numeric:
tabular-nums; } th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #8c959f; }
img { max-width: 100%; }
figure { margin: 0.5rem 0 0.9rem; }
figure.frames img { height: 64px; image-rendering: pixelated; border: 1px solid #d0d7de; }
figcaption { font-size: 0.88rem; color: #57606a; }
pre { background: #f6f8fa; padding: 0.8rem; overflow-x: auto; font-size: 0.82rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Frames of one clip, and what stands below them.

    Attributes:
        frames: uint8 (T, H, W, 3).
        caption: the line below.
    """

    frames: np.ndarray
    caption: str


class Page:
    """Collects the parts of a page, in order.

    Args:
        title: the heading.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def heading(self, text: str, level: int = 2) -> None:
        """A heading below the title."""
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Text as it is, in a box."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; its first column is the names."""
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        self._parts.append(f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>")

    def plot(self, figure: Figure, description: str) -> None:
        """A figure of matplotlib."""
        stream = BytesIO()
        figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
        image = _image(stream.getvalue(), description)
        self._parts.append(f"<figure>{image}<figcaption>{escape(description)}</figcaption></figure>")

    def strip(self, strip: Strip) -> None:
        """Frames of a clip side by side."""
        from matplotlib.image import imsave

        stream = BytesIO()
        gap = np.full((strip.frames.shape[1], 2, 3), 255, np.uint8)
        parts = [part for frame in strip.frames for part in (frame, gap)][:-1]
        imsave(stream, np.concatenate(parts, axis=1), format="png")
        self._parts.append(
            f'<figure class="frames">{_image(stream.getvalue(), strip.caption)}'
            f"<figcaption>{escape(strip.caption)}</figcaption></figure>"
        )

    def write(self, path: Path) -> Path:
        """Write the page, all of it or nothing."""
        body = "\n".join(self._parts)
        partial = path.with_name(f".{path.name}")
        partial.write_text(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
            f"<title>{escape(self._title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
            f"<body>\n<h1>{escape(self._title)}</h1>\n{body}\n</body>\n</html>\n",
            encoding="utf-8",
        )
        partial.replace(path)
        return path


def _image(png: bytes, description: str) -> str:
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"/>'
