"""Two processes that talk through gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_END = """
dist.barrier()
dist.destroy_process_group()
sys.stdout.write("same"), sys.stdout.flush()
os._exit(0)  # gloo's threads now and then outlive the interpreter, and abort it
"""


def run_two_ranks(script: str, folder: Path) -> None:
    """Run a script as rank 0 and as rank 1, and fail where one of them does.

    Args:
        script: what both do; ``sys.argv`` has the rank and the path of a store for ``dist.init_process_group``. It
            has imported ``os``, ``sys`` and ``torch.distributed as dist``, and leaves its group as it is.
        folder: for the store.
    """
    command = [sys.executable, "-c", script + _END]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ranks = [subprocess.Popen([*command, str(rank), str(folder / "store")], **pipes) for rank in (0, 1)]
    try:
        for process in ranks:
            said, errors = process.communicate(timeout=120)
            assert (process.returncode, said) == (0, b"same"), errors.decode()
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
