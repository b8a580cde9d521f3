"""The command line: ``fastvivit COMMAND``, one file a command, loaded when it is called."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "info": "versions, device, and which backend each op would use and why not the others",
    "selftest": "check every op and backend that can run here against float64",
    "bench": "time the kernels beside their strongest peers: JSON lines, plots",
    "demo": "the whole recipe in miniature, on video files that it makes itself",
    "plan": "what a training step will need and take, and which switches to turn",
    "train": "train a model as a TOML file says; resumable",
    "embed": "encode video files to vectors",
    "search": "find clips by text",
    "caption": "describe video files in words",
    "evaluate": "score a model, and the paper's other systems, on a manifest",
    "data": "manifests: official annotation files of benchmarks to ours",
}
_EXTRAS = {
    "av": "video",
    "transformers": "hf",
    "tokenizers": "hf",
    "tyro": "train",
    "tqdm": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "bitsandbytes": "lowbit",
    "webdataset": "train",
}
# What a command ends with: right, failed, the user's mistake, Ctrl-C.
OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done. 1: it failed, or found something wrong. 2: a mistake in what was asked for, in one line on
    stderr. 130: Ctrl-C. ``-v`` anywhere shows tracebacks.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = any(word in ("-v", "--verbose") for word in given)
    given = [word for word in given if word not in ("-v", "--verbose")]
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return OK if given else MISTAKE
    name, *rest = given
    if name in ("--version", "-V"):
        import fastvivit

        print(f"fastvivit {fastvivit.__version__}")
        return OK
    if name not in COMMANDS:
        return _complain("fastvivit", f"wanted a command ({', '.join(COMMANDS)}), got {name!r}", MISTAKE)
    try:
        code = import_module(f"fastvivit.cli.{name}").run(rest)
        sys.stdout.flush()  # here, where a closed pipe is still caught
        return code
    except KeyboardInterrupt:
        return _complain(f"fastvivit {name}", "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code, message = _explain(error)
        return _complain(f"fastvivit {name}", message, code)


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an error that a command let through."""
    if isinstance(error, ImportError):
        cause: BaseException | None = error
        while cause is not None:
            module = (getattr(cause, "name", None) or "").partition(".")[0]
            if module in _EXTRAS:
                extra = _EXTRAS[module]
                return MISTAKE, f'needs {module}, which is not installed: pip install "fastvivit[{extra}]"'
            cause = cause.__cause__
    if isinstance(error, ValueError | OSError):
        return MISTAKE, str(error)
    return FAILED, f"{type(error).__name__}: {error}"


def _complain(who: str, message: str, code: int) -> int:
    print(f"{who}: {message}", file=sys.stderr)
    return code


def _help() -> str:
    lines = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return (
        "usage: fastvivit COMMAND ...    (`fastvivit COMMAND --help` says more)\n\n"
        "Kernels and encoder for long video.\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\noptions:\n  -v, --verbose  show tracebacks\n  -V, --version\n  -h, --help"
    )
