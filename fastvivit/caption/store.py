"""Vision on the disk: shards of safetensors, each whole or not there, found by listing them."""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastvivit._folders import file_written_whole
from fastvivit.caption.vision import Vision

_OPEN = 64  # shards that a process maps at a time
_STALE = 24 * 3600.0  # seconds


class VisionStore:
    """``Vision`` of single clips by name, in a folder.

    What is added waits in memory until it fills a shard; a process that is killed loses that much and nothing else.
    Shards are mapped, not read: a clip costs the memory of its own tokens. Several processes may read and write the
    same folder; of a name that two have written the older copy counts, as on a GPU their bits may differ.

    Args:
        folder: made when something is written.
        shard_bytes: how much waits in memory.

    Raises:
        ValueError: a file in the folder that is no shard.
    """

    def __init__(self, folder: str | os.PathLike[str], *, shard_bytes: int = 64 << 20) -> None:
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes: wanted at least 1, got {shard_bytes}")
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self._waiting: dict[str, Vision] = {}
        self._bytes = 0
        self._mapped: OrderedDict[Path, Any] = OrderedDict()
        self._process = os.getpid()
        self._shards: dict[str, Path] = {}
        self.refresh()

    def __contains__(self, name: str) -> bool:
        """Whether it is there, on the disk or waiting."""
        return name in self._shards or name in self._waiting

    def __len__(self) -> int:
        """Names."""
        return len(self._shards.keys() | self._waiting.keys())

    def __iter__(self) -> Iterator[str]:
        """Names, in no order."""
        return iter(self._shards.keys() | self._waiting.keys())

    def __getstate__(self) -> dict[str, Any]:
        """For a loader's process, which maps shards itself."""
        return self.__dict__ | {"_mapped": OrderedDict()}

    def refresh(self) -> None:
        """List the folder again, for what other processes have written since.

        Raises:
            ValueError: a file in the folder that is no shard.
        """
        found: dict[str, Path] = {}
        for shard in sorted(self.folder.glob("vision-*.safetensors")):  # by time
            for name in _open(shard).keys():  # noqa: SIM118 (it is no dict)
                if name.endswith("/tokens"):
                    found.setdefault(name.removesuffix("/tokens"), shard)
        self._shards = found

    def add(self, name: str, vision: Vision) -> None:
        """Keep the ``Vision`` of one clip; nothing where the name is there already.

        Raises:
            ValueError: more than one clip, or an empty name.
        """
        self.update({name: vision})

    def update(self, visions: Mapping[str, Vision]) -> None:
        """``add`` several that reach the disk together: after a kill all of them are there, or none.

        Raises:
            ValueError: as ``add``; nothing is kept then.
        """
        kept = {}
        for name, vision in visions.items():
            if len(vision) != 1 or not name:
                raise ValueError(f"vision: wanted one clip and a name for it, got {len(vision)} clips for {name!r}")
            if name not in self:
                # Of its own: a row of a batch would keep the whole batch in memory.
                kept[name] = Vision(vision.tokens.detach().cpu().clone(), vision.mask.cpu().clone())
        self._waiting |= kept
        self._bytes += sum(vision.tokens.nbytes + vision.mask.nbytes for vision in kept.values())
        if self._bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Bring what waits to the disk; ``OSError`` where it can't be written, and then no part of it is there."""
        if not self._waiting:
            return
        tensors = {}
        for name, vision in self._waiting.items():
            tensors[f"{name}/tokens"], tensors[f"{name}/mask"] = vision.tokens[0], vision.mask[0]
        shard = self.folder / f"vision-{time.time_ns():020d}-{secrets.token_hex(4)}.safetensors"
        with file_written_whole(shard) as scratch:
            try:
                save_file(tensors, scratch)
            except SafetensorError as error:  # a full disk, for one
                raise OSError(f"vision: {shard} can't be written: {error}") from error
        self._shards |= dict.fromkeys(self._waiting, shard)
        self._waiting, self._bytes = {}, 0

    def remove_scratch(self) -> None:
        """Remove what killed writers left: files begun a day ago or before, since others may be writing now."""
        for path in self.folder.glob(".*.safetensors-*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()

    def get(self, name: str) -> Vision:
        """One clip, in the dtype it was kept in.

        Raises:
            KeyError: no such name.
            ValueError: a shard that is gone or damaged.
        """
        if name in self._waiting:
            return self._waiting[name]
        shard = self._shards[name]
        file = self._map(shard)
        try:
            return Vision(file.get_tensor(f"{name}/tokens")[None], file.get_tensor(f"{name}/mask")[None])
        except (OSError, SafetensorError) as error:
            raise ValueError(f"vision: {shard} can't be read: {error}; remove it, and it is made again") from error

    def _map(self, shard: Path) -> Any:
        if self._process != os.getpid():  # a forked loader: its parent's maps are not its own
            self._mapped, self._process = OrderedDict(), os.getpid()
        if shard not in self._mapped:
            self._mapped[shard] = _open(shard)
        self._mapped.move_to_end(shard)
        if len(self._mapped) > _OPEN:
            self._mapped.popitem(last=False)
        return self._mapped[shard]


def _open(shard: Path) -> Any:
    try:
        return safe_open(shard, "pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"vision: {shard} can't be read: {error}; remove it, and it is made again") from error
