"""DINOv2 ViT-S/14 itself, where its folder is present: real weights have outliers that random ones do not."""

from pathlib import Path

import pytest
import torch

import fastvivit as fv
from fastvivit.convert import from_image_vit
from tests.convert.foreign import hf_tokens, transformers

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "models" / "dinov2_small"


@torch.no_grad()
def test_a_still_clip_is_dinov2_s_image():
    if not FOLDER.is_dir():
        pytest.skip(f"no DINOv2 in {FOLDER}")
    cfg = fv.ViViTConfig(frames=4, size=224, tubelet=(2, 14, 14), attention="frame")
    enc = from_image_vit(FOLDER, cfg)
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 14, 14), size=(224, 224), mode="bicubic")
    want = hf_tokens(transformers.Dinov2Model.from_pretrained(FOLDER).eval(), image)
    got = enc(image.unsqueeze(2).expand(-1, -1, 4, -1, -1)).last_hidden_state.view(2, 257, 384)
    # Tokens reach 7; float32 rounding of the model itself is 1e-5.
    torch.testing.assert_close(got, want.expand(2, -1, -1), rtol=0, atol=1e-4)
