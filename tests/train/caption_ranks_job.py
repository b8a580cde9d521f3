"""What the processes of tests/train/test_caption_ranks.py do, as ``tests.train.ranks_job`` has it."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from unittest import mock

import torch
from torch import distributed as dist
from torch.distributed import distributed_c10d

from fastvivit.caption.vision import Vision
from fastvivit.train import TrainConfig, VisionCache, fit, loop, parallel
from fastvivit.train.ranks import joined
from fastvivit.train.stages import video_to_text
from tests.tiny_captioner import make_captioner
from tests.train.ranks_job import CPU, main, train

__all__ = ["train"]
_SHORT = 6.0  # seconds of patience that a group has
CAPTIONS = ["a digit", "one digit moves up and two moves down and left and right", "two", "the short video up"]


def shares() -> None:
    """The loss is by token over all ranks, whose captions differ in length: loss and gradients of one process."""
    generator = torch.Generator().manual_seed(3)
    vision = Vision(torch.randn(4, 16, 32, generator=generator), torch.ones(4, 16, dtype=torch.bool))
    alone = make_captioner().train()
    loss = alone(vision, CAPTIONS, prompts="then")
    loss.backward()
    with joined(CPU) as ranks:
        model = make_captioner().train()
        if not ranks.first:  # its weights come from rank 0
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1.0)
        parallel.spread(model, "ddp", ranks)
        own = slice(2 * ranks.rank, 2 * ranks.rank + 2)
        share = model(Vision(vision.tokens[own], vision.mask[own]), CAPTIONS[own], prompts="then", gather=True)
        share.backward()
        unweighted = model(Vision(vision.tokens[own], vision.mask[own]), CAPTIONS[own], prompts="then").detach()
        assert abs(ranks.mean(unweighted) - loss) > 1e-2  # or the test would see nothing
        assert abs(ranks.mean(share.detach()) - loss) <= 1e-6 * loss
        parallel.average_gradients(model, ranks)
        wanted = dict(alone.named_parameters())
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert trained and trained == {name for name in wanted if wanted[name].grad is not None}
        assert not any(name.startswith(("video.", "lm.")) for name in trained)
        for name, parameter in model.named_parameters():
            if name in trained:
                largest = float(wanted[name].grad.abs().max())
                torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5 * largest)


def slow_preparation(config: dict, out: str) -> None:
    """Longer than a group waits: the other rank waits all the same."""
    learn, steps = video_to_text.learn_captions, []

    def slow(*args, **kwargs):
        assert dist.get_rank() == 0
        time.sleep(_SHORT + 2.0)
        learn(*args, **kwargs)

    def enough(*args):
        steps.append(1)
        raise RuntimeError("enough")

    with (
        mock.patch.object(distributed_c10d, "default_pg_timeout", timedelta(seconds=_SHORT)),
        mock.patch.object(video_to_text, "learn_captions", slow),
        mock.patch.object(loop, "train_step", enough),
    ):
        try:
            fit(TrainConfig.from_dict(config), out, quiet=True)
        except RuntimeError as error:
            assert str(error) == "enough" and steps == [1], error
            return
    raise AssertionError("nothing was prepared")


def failing(config: dict, out: str) -> None:
    """The language model can't be written: every rank hears of it."""
    with mock.patch.object(video_to_text, "save_language", side_effect=OSError("the disk is full")):
        try:
            fit(TrainConfig.from_dict(config), out, quiet=True)
        except OSError as error:
            assert "the disk is full" in str(error)
            return
    raise AssertionError("nothing was raised")


def killed(config: dict, out: str) -> None:
    """Rank 1 dies while it encodes its second batch; rank 0 is done with its own, and waits."""
    encode, calls = VisionCache._encode, []

    def die(self, *args):
        made = encode(self, *args)
        calls.append(1)
        if len(calls) == 2 and dist.get_rank() == 1:
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    with mock.patch.object(VisionCache, "_encode", die):
        fit(TrainConfig.from_dict(config), out, quiet=True)


def encoded_once(config: dict, out: str) -> None:
    """Each rank encodes its part of the clips, and nobody a clip that another one has encoded."""
    encode, made = VisionCache._encode, []

    def noted(self, *args):
        found = encode(self, *args)
        made.extend(found)
        return found

    with mock.patch.object(VisionCache, "_encode", noted):
        fit(TrainConfig.from_dict(config), out, quiet=True)
    with joined(CPU) as ranks:
        every = ranks.gather(made)
        names = [name for found in every for name in found]
        assert all(every) and len(names) == len(set(names)), [len(found) for found in every]


if __name__ == "__main__":
    main(sys.argv[1], globals())
