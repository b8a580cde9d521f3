"""The numbers of the paper's table 4: what fields of a run come to that are left out.

The table has cells that span columns, and its text does not say which. Weight decay, gradient clip and batch size are
read so that the two contrastive stages share theirs and the two stages with a language model theirs; the batch of the
fine-tuning (64 to 128) and its learning rate (1e-6 to 5e-6) are ranges, of which the upper end is taken. Betas, eps,
the final learning rate and what is not decayed the paper does not name. "contrastive" has the image-to-video column,
without its 800k steps: those are for the paper's mix of image and video data, so a run says its own. "images" is the
first of appendix C.1's two steps, of which only the batch is named (8k); the rest is the image-to-video column's, but
for the mask, which is the video's. Short to long tunes the last four layers and masks 75 % (section 6.1).
"""

from __future__ import annotations

from typing import Any

TABLE_4: dict[str, dict[str, Any]] = {
    "contrastive": {
        "batch_size": 512,
        "optimiser": {"lr": 5e-5, "weight_decay": 1e-2, "clip": 2.0},
        "schedule": {"warmup": 1000},
        "mask": {"ratio": 0.75},
    },
    "images": {
        "batch_size": 8192,
        "optimiser": {"lr": 5e-5, "weight_decay": 1e-2, "clip": 2.0},
        "schedule": {"warmup": 1000},
        "mask": {"ratio": 0.0},
    },
    "image_to_video": {
        "steps": 800_000,
        "batch_size": 512,
        "optimiser": {"lr": 5e-5, "weight_decay": 1e-2, "clip": 2.0},
        "schedule": {"warmup": 1000},
        "mask": {"ratio": 0.75},
        "init": {"time_std": 0.2},
    },
    "short_to_long": {
        "steps": 50_000,
        "batch_size": 512,
        "optimiser": {"lr": 5e-5, "weight_decay": 1e-2, "clip": 2.0},
        "schedule": {"warmup": 1000},
        "mask": {"ratio": 0.75},
        "tuning": {"method": "last_layers", "layers": 4},
    },
    "video_to_text": {
        "steps": 80_000,
        "batch_size": 128,
        "optimiser": {"lr": 4e-5, "weight_decay": 1e-4, "clip": 1.0},
        "schedule": {"warmup": 2000},
        "mask": {"ratio": 0.3},
    },
    "finetune": {
        "steps": 10_000,
        "batch_size": 128,
        "optimiser": {"lr": 5e-6, "weight_decay": 1e-4, "clip": 1.0},
        "schedule": {"warmup": 1000},
        "mask": {"ratio": 0.3},
    },
}


def with_preset(fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` of a run, and behind them those of its stage's preset that it leaves out, in tables too."""
    stage, filled = fields.get("stage", "contrastive"), dict(fields)
    for name, value in TABLE_4.get(stage if isinstance(stage, str) else "", {}).items():
        if name not in fields:
            filled[name] = value
        elif isinstance(value, dict) and isinstance(fields[name], dict):
            filled[name] = value | fields[name]
    return filled
