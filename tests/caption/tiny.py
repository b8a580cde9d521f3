"""Language models of many families, tokenizers and an encoder, all random and tiny."""

import functools

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import fastvivit as fv

WORDS = [*"abc", "red", "blue", "cup", "dog", "falls", "rises", "then", "left", "right", "cat", "photo", "of", "the"]
VOCABULARY = 300
_ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, **_ENDS,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **_ENDS}
_OPT = {key: value for key, value in _COMMON.items() if key != "intermediate_size"} | {"ffn_dim": 64}
FAMILIES = {
    "llama": ("LlamaConfig", _GROUPED),
    "gpt2": ("GPT2Config", _GPT),
    "opt": ("OPTConfig", _OPT),
    "opt_projected": ("OPTConfig", _OPT | {"word_embed_proj_dim": 16}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", _GROUPED | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", _GROUPED | {"head_dim": 8, "final_logit_softcapping": 0.5, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", _GROUPED | {"head_dim": 8, "sliding_window": 4}),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "gptj": ("GPTJConfig", _GPT | {"rotary_dim": 4}),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_ENDS}),
    "falcon": ("FalconConfig", {k: v for k, v in _COMMON.items() if k != "intermediate_size"}),
    "phi": ("PhiConfig", _COMMON),
    "cohere": ("CohereConfig", _GROUPED),
    "granite": ("GraniteConfig", _GROUPED | {"logits_scaling": 3.0}),
    "stablelm": ("StableLmConfig", _GROUPED),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, **_ENDS},
    ),
    "olmo2": ("Olmo2Config", _GROUPED),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}
        | _ENDS,
    ),
}


def language_model(name="llama", **changes):
    config, fields = FAMILIES[name]
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**(fields | changes))).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            # The usual 0.02 makes a tiny model that hardly looks at its input.
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
    return lm


def encoder(**changes):
    torch.manual_seed(0)
    settings = {"frames": 4, "size": 16, "tubelet": (2, 4, 4), "width": 24, "depth": 1, "heads": 2, "ff": 48}
    return fv.ViViT(fv.ViViTConfig(**(settings | {"images": False} | changes)))


def resampler(**changes):
    torch.manual_seed(0)
    settings = {"dim": 24, "in_dim": 24, "depth": 1, "heads": 2, "latents": 5, "ff": 24, "out_dim": 20}
    return fv.PerceiverResampler(**(settings | changes))


def captioner(name="llama", *, opened=True, tokens="words", lm=None, video=None, **options):
    """A captioner whose new layers do something, unless left shut."""
    options.setdefault("resampler", False)
    if options["resampler"] == "tiny":
        options["resampler"] = resampler()
    lm = language_model(name) if lm is None else lm
    cap = fv.VideoCaptioner(encoder() if video is None else video, lm, tokenizer(tokens), **options)
    if opened:
        open_gates(cap)
    return cap.eval()


@torch.no_grad()
def open_gates(cap, value=0.8):
    for layer in cap.layers:
        layer.gate.fill_(value)
        for linear in (layer.attn.q, layer.attn.kv, layer.attn.proj):
            linear.weight.mul_(2)
            linear.bias.normal_(0, 0.1)
        if layer.mlp is not None:
            layer.gate_ff.fill_(-value)


def clips(count=3, frames=4, size=16):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, frames, size, size), dtype=torch.uint8, generator=generator)


def vision(lengths=(16, 9, 1), holes=0.0, dtype=torch.float32):
    """Media with scattered real places."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.stack([torch.randperm(16, generator=generator) < n for n in lengths])
    tokens = torch.randn(len(lengths), 16, 24, generator=generator, dtype=torch.float64).to(dtype)
    return fv.Vision(tokens.masked_fill(~mask.unsqueeze(2), holes), mask)


@functools.cache
def tokenizer(kind="words"):
    """Words by number; bytes as GPT-2 has them, without a start token; or pieces with a mark in front of words."""
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
    names = ["<pad>", "<unk>", "<s>", "</s>"]
    if kind == "words":
        made = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*names, *WORDS])}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        text = ["a photo of the red cup then the blue dog falls left rises right"] * 4
        if kind == "bytes":
            made = Tokenizer(models.BPE())
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            alphabet, special, names = pre_tokenizers.ByteLevel.alphabet(), {"eos_token": "</s>"}, ["</s>"]
        else:
            made = Tokenizer(models.BPE(unk_token="<unk>"))
            made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
            alphabet = []
        made.train_from_iterator(
            text,
            trainers.BpeTrainer(
                vocab_size=VOCABULARY, special_tokens=names, initial_alphabet=alphabet, show_progress=False
            ),
        )
        if kind == "pieces":
            from tokenizers.processors import TemplateProcessing

            made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **special)


def left_padded(cap, prompts):
    """What ``generate`` gives the language model: (input_ids, attention_mask)."""
    ids = cap.texts.prompts(prompts, 8, torch.device("cpu"))
    return {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}
