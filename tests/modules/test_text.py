"""The text tower."""

from types import SimpleNamespace

import torch
from torch import nn

from fastvivit.modules.text import TextTower


class Encoder(nn.Module):
    """As transformers' are called."""

    def __init__(self):
        super().__init__()
        self.config, self.words = SimpleNamespace(hidden_size=4), nn.Embedding(9, 4)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.words(input_ids) * attention_mask.unsqueeze(-1))


def tokens(texts, **options):
    found = {"input_ids": torch.tensor([[3, 4, 5], [6, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    return found | {"special_tokens_mask": 1 - found["attention_mask"]}


def test_no_copy_waits_for_the_device(monkeypatch):
    tower, copies, real = TextTower(Encoder(), tokens, max_length=3), [], torch.Tensor.to

    def to(tensor, target, *args, **kwargs):
        if isinstance(target, torch.device):
            copies.append(kwargs.get("non_blocking", False))
        return real(tensor, target, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    found = tower(["a b c", "d"])
    assert copies and all(copies)
    words = tower.model.words.weight
    torch.testing.assert_close(found, torch.stack([words[3:6].mean(0), words[6]]))
