"""Video to text: a language model learns to see, on a handful of your clips.

    python examples/caption_your_clips.py --video-model DINOV2 --language-model SMOLLM2 --manifest clips.jsonl --out RUN

Both models are folders of transformers and stay frozen. The first half of each clip is trained on; the second halves,
and the manifest's last clip, which is not trained on at all, show what that is worth. RUN/report.json holds it all.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastvivit as fv
from fastvivit.caption.files import fingerprint
from fastvivit.cli.bench import load
from fastvivit.data import probe, read_clip, read_manifest


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--video-model", "--language-model", "--manifest", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--size", type=int, default=224, help="pixels, a multiple of 14")
    parser.add_argument("--masks", type=int, default=4, help="masks a clip, each of which drops 30 %%")
    for name, number in (("--frames", 16), ("--steps", 60), ("--lr", 1e-3)):
        parser.add_argument(name, type=type(number), default=number)
    parser.add_argument("--prompt", default="The video shows:")
    return parser.parse_args()


def halves(manifest: Path, frames: int, size: int) -> dict[str, tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Captions and the two halves (1, C, T, H, W) of each video."""
    captions: dict[Path, list[str]] = {}
    for entry in read_manifest(manifest):
        captions.setdefault(entry.video, []).extend(entry.captions)
    found = {}
    for video, texts in captions.items():
        half = probe(video).duration / 2 if probe(video).duration else 15.0  # a header may be silent
        parts = [read_clip(video, frames, frames / half, size, start).unsqueeze(0) for start in (0.0, half)]
        found[video.name] = (texts, *parts)
    return found


def build(given: argparse.Namespace) -> fv.VideoCaptioner:
    """DINOv2 over frames, a small resampler (8 clips fill no larger one), and the language model."""
    cfg = fv.ViViTConfig(
        frames=given.frames, size=given.size, tubelet=(2, 14, 14), attention="frame", images=False,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    encoder = fv.from_image_vit(given.video_model, cfg)
    lm = AutoModelForCausalLM.from_pretrained(given.language_model).float()
    tokenizer = AutoTokenizer.from_pretrained(given.language_model)
    resampler = fv.PerceiverResampler(256, encoder.num_features, depth=2, heads=4, latents=32, ff=1024)
    return fv.VideoCaptioner(encoder, lm, tokenizer, resampler)


def look(cap: fv.VideoCaptioner, clips: list[torch.Tensor], seed: int) -> fv.Vision:
    """What the frozen encoder makes of 70 % of each clip: the paper drops 30 %, in training and after it."""
    generator = torch.Generator().manual_seed(seed)
    return fv.Vision.stack([cap.encode_video(clip, 0.3, generator=generator) for clip in clips])


def train(cap: fv.VideoCaptioner, visions: list[fv.Vision], texts: list[list[str]], given) -> list[float]:
    """All clips in every step, captions and masks in turn; the loss of each step."""
    gates = [parameter for name, parameter in cap.named_parameters() if name.endswith("gate")]
    others = [p for n, p in cap.named_parameters() if p.requires_grad and not n.endswith("gate")]
    # Gates start shut, and nothing behind one learns before it has opened a little.
    groups = [{"params": others, "lr": given.lr}, {"params": gates, "lr": 10 * given.lr, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)

    def share(step: int) -> float:
        return min(20 * (step + 1) / given.steps, 0.05 + 0.475 * (1 + math.cos(math.pi * step / given.steps)))

    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    losses, began = [], time.monotonic()
    for step in range(given.steps):
        said = [of[step // len(visions) % len(of)] for of in texts]
        loss = cap(visions[step % len(visions)], said, prompts=given.prompt)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others + gates, 1.0)
        optimiser.step()
        rate.step()
        losses.append(loss.item())
        if step % 10 == 0 or step == given.steps - 1:
            print(f"step {step + 1}: captioning loss {losses[-1]:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return losses


@torch.no_grad()
def judge(cap: fv.VideoCaptioner, vision: fv.Vision, texts: list[list[str]], prompt: str) -> dict[str, list]:
    """For each clip: the loss of its captions, a text, and which of all clips' first captions it finds likeliest."""
    losses = [[cap(vision[i], [text], prompts=prompt).item() for text in of] for i, of in enumerate(texts)]
    options = [[of[0] for of in texts]]
    chosen = [cap.score(vision[i], prompt, options, "tokens").argmax().item() for i in range(len(texts))]
    written = cap.generate(vision, prompt, 48)
    return {"loss": [sum(of) / len(of) for of in losses], "text": written, "chosen": chosen}


def main() -> Path:
    """Train, and write down what came of it."""
    given = arguments()
    about = load("provenance").provenance("cpu", quick=False)
    torch.manual_seed(0)
    clips = halves(given.manifest, given.frames, given.size)
    cap = build(given).train()
    texts, first, second = (list(part) for part in zip(*clips.values(), strict=True))
    frozen = {"video": cap.video, "lm": cap.lm}
    before = {name: fingerprint(model) for name, model in frozen.items()}
    views = {"first half": look(cap, first, 100), "second half": look(cap, second, 101)}
    trained = slice(0, len(clips) - 1)
    visions = [look(cap, first[trained], seed) for seed in range(given.masks)]
    results = {"before": judge(cap, views["first half"], texts, given.prompt)}

    began = time.monotonic(), time.process_time()
    losses = train(cap, visions, texts[trained], given)
    seconds = {"wall": time.monotonic() - began[0], "processor": time.process_time() - began[1]}
    same = {name: fingerprint(model) == before[name] for name, model in frozen.items()}
    assert all(same.values()), same
    results |= {name: judge(cap, view, texts, given.prompt) for name, view in views.items()}

    names = list(clips)
    for i, name in enumerate(names):
        print(f"\n{name}" + ("" if i < len(names) - 1 else ", never trained on") + f": {texts[i][0]}")
        for when, found in results.items():
            print(f"  {when} [loss {found['loss'][i]:.2f}]: {found['text'][i]}")
    print(f"\ncaptioning loss {losses[0]:.2f} → {losses[-1]:.2f}; frozen parts bit-identical: {same}")
    report = {
        "provenance": about,
        "settings": {n: v for n, v in vars(given).items() if not isinstance(v, Path)},
        "trained_parameters": sum(p.numel() for p in cap.parameters() if p.requires_grad),
        "seconds": seconds, "losses": losses, "frozen_same": same, "fingerprints": before,
        "clips": names, "captions": texts, "left_out": names[-1], "results": results,
    }  # fmt: skip
    cap.save(given.out / "layers")
    (given.out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return given.out


if __name__ == "__main__":
    main()
