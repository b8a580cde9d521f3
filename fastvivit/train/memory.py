"""What a run does to need less memory; none of it changes what is learned."""

from __future__ import annotations

from dataclasses import dataclass

from fastvivit.caption import VideoCaptioner
from fastvivit.modules.dual import VideoTextModel
from fastvivit.train.checks import at_least, one_of

PREFIXES = ("device", "host", "off")
CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Switches between memory and time. Losses and gradients stay what they are; a resumed run may differ in them.

    Attributes:
        chunk: clips whose activations are alive at once, or images where there are no clips; 0 is the whole batch.
            Beside clips, as many images as come to their tokens. Contrastive training only.
        prefix: where the outputs of frozen blocks stay between the two passes of a chunked step: "device", "host",
            or "off" to compute them again. Contrastive training only.
        checkpointing: "none" keeps activations for the backward. "full" keeps the inputs of blocks alone and computes
            the rest again: of both encoders in contrastive training, of the resampler and of the language model's
            blocks in captioning, where the encoder is frozen and keeps nothing. "selective" computes only cheap parts
            of the video encoder's blocks again (``ViViT.set_grad_checkpointing`` has the bytes), and leaves the text
            encoder alone; captioning has nothing of that kind.
        offload: what "full" keeps waits for the backward in host memory.
    """

    chunk: int = 0
    prefix: str = "device"
    checkpointing: str = "none"
    offload: bool = False

    def __post_init__(self) -> None:
        at_least("memory", self, 0, "chunk")
        one_of("memory.prefix", self.prefix, PREFIXES)
        one_of("memory.checkpointing", self.checkpointing, CHECKPOINTING)
        if self.offload and self.checkpointing != "full":
            raise ValueError(f"memory.offload: wanted checkpointing = 'full' beside it, got {self.checkpointing!r}")

    def check_captioning(self, stage: str) -> None:
        """Refuse what means nothing in a captioning stage."""
        for name in ("chunk", "prefix"):
            if getattr(self, name) != getattr(MemoryConfig, name):
                raise ValueError(f"memory.{name}: wanted in stage 'contrastive' only, got it in {stage!r}")
        if self.checkpointing == "selective":
            raise ValueError(f"memory.checkpointing: wanted 'none' or 'full' in stage {stage!r}, got 'selective'")


def apply_memory(model: VideoTextModel | VideoCaptioner, config: MemoryConfig) -> None:
    """Set up what belongs to the model itself: ``checkpointing`` and ``offload``."""
    enable = config.checkpointing != "none"
    policy = config.checkpointing if enable else "full"
    if isinstance(model, VideoCaptioner):
        model.set_grad_checkpointing(enable, offload=config.offload)
    else:
        model.set_grad_checkpointing(enable, policy, offload=config.offload)
