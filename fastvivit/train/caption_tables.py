"""Tables of a run that trains a captioner."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastvivit.train.checks import above, at_least, one_of

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """The Perceiver resampler (paper, appendix A; latents: as many as a clip has places).

    Attributes:
        use: False leaves it out; a linear layer leads to the language model's width then.
        dim: of the latents.
        depth: layers.
        heads: attention heads.
        latents: of a clip; None is as many as the encoder has places, 256 with tubes.
        ff: inner width of the feed-forward layers.
    """

    use: bool = True
    dim: int = 1024
    depth: int = 3
    heads: int = 8
    latents: int | None = None
    ff: int = 4096

    def __post_init__(self) -> None:
        at_least("language.resampler", self, 1, "dim", "depth", "heads", "ff")
        if self.latents is not None:
            at_least("language.resampler", self, 1, "latents")
        if self.dim % self.heads:
            raise ValueError(f"language.resampler.heads: wanted a divisor of dim {self.dim}, got {self.heads}")


@dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """The gated cross-attention in the language model; see ``VideoCaptioner``.

    Attributes:
        every: a layer in front of each ``every``-th block.
        heads: attention heads; None is as many of ``head_dim`` as fit the language model's width.
        head_dim: width of a head.
        kv_heads: heads of keys and values; None shares them as the language model's own attention does.
        ff: inner width of a gated feed-forward layer as a multiple of the language model's width; 0 leaves it out.
        over_time: average tokens over time first; False for an encoder by tubes.
    """

    every: int = 1
    heads: int | None = None
    head_dim: int = 64
    kv_heads: int | None = None
    ff: int = 0
    over_time: bool = True

    def __post_init__(self) -> None:
        at_least("language.cross", self, 1, "every", "head_dim")
        at_least("language.cross", self, 0, "ff")
        for name in ("heads", "kv_heads"):
            if getattr(self, name) is not None:
                at_least("language.cross", self, 1, name)


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The frozen language model, and the new layers that let it see.

    Attributes:
        folder: a local folder with a causal language model of transformers and its tokenizer. None makes a small
            Llama over the words of the training captions, which learns to write such captions before it is frozen.
        width: of the one from scratch.
        depth: its blocks.
        heads: its attention heads.
        max_length: tokens it takes.
        pretrain_steps: steps that it learns captions as text, before anything is seen.
        pretrain_lr: highest learning rate of these steps.
        resampler: see ``ResamplerConfig``.
        cross: see ``CrossConfig``.
    """

    folder: str | None = None
    width: int = 128
    depth: int = 4
    heads: int = 4
    max_length: int = 64
    pretrain_steps: int = 300
    pretrain_lr: float = 1e-3
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    cross: CrossConfig = field(default_factory=CrossConfig)

    def __post_init__(self) -> None:
        at_least("language", self, 1, "width", "depth", "heads")
        at_least("language", self, 2, "max_length")
        at_least("language", self, 0, "pretrain_steps")
        above("language", self, 0, "pretrain_lr")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"language.heads: wanted heads of an even width (rotary positions) in width {self.width}, "
                f"got {self.heads}"
            )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Whether the frozen encoder runs once a clip and mask, or in every step.

    Attributes:
        cache: keep what the encoder makes of every clip on the disk, and read it from there: no video is decoded
            in training. What is there already is taken; see ``VisionCache``.
        masks: with ``cache``, different masks of a training clip; an epoch draws one of them. Without it every
            epoch has its own.
        folder: where; None is in the run's folder. Several runs may share one.
        dtype: of the numbers on the disk: "float32", "bfloat16" or "float16".
    """

    cache: bool = False
    masks: int = 4
    folder: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        at_least("vision", self, 1, "masks")
        one_of("vision.dtype", self.dtype, DTYPES)


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Prompts, and the texts that are written for held-out clips at the end of a run.

    Attributes:
        prompt: what stands before every caption, and is not learned. None is that of the run which "finetune" starts
            from, and nothing for "video_to_text"; what it comes to stands in the run's ``config.json``.
        describe: most held-out clips to write a text for; 0 takes the loss alone.
        max_new_tokens: most tokens of such a text.
    """

    prompt: str | None = None
    describe: int = 200
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        at_least("captions", self, 0, "describe")
        at_least("captions", self, 1, "max_new_tokens")
