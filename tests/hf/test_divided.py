"""What divided attention prepares, and where bad ids end."""

import pytest
import torch

import fastvivit as fv
import fastvivit.functional as F
from fastvivit.hf.divided import all_by_place, divide
from tests.hf.test_timesformer import clips, made


class OnAGpu(torch.Tensor):
    """Says so; results of such ids do too."""

    is_cuda = True


@pytest.mark.parametrize("full", [True, False])
def test_schedules_are_built_where_something_reads_them(full, monkeypatch):
    built = []
    monkeypatch.setattr(F, "varlen_schedule", lambda *args: built.append(args))
    divide(all_by_place(2, (4, 3, 3), torch.device("cpu")).as_subclass(OnAGpu), (4, 3, 3), full=full)
    assert len(built) == (0 if full else 2)


def test_a_bad_id_meets_no_index():
    class Blind(torch.nn.Module):
        """Patch embeddings that let any id pass, as on a GPU."""

        projection = made().embeddings.patch_embeddings.projection

        def forward(self, pixel_values, pos, keep):
            return (torch.zeros(*keep.shape, 32),)

    fast = fv.accelerate(made(hidden_dropout_prob=0.5)).train()
    fast.embeddings.patch_embeddings = Blind()
    with pytest.raises(ValueError, match=r"index: wanted ids in 0\.\.3, got 4"):
        fast(clips(), keep=torch.tensor([[0, 36], [1, 2]]))
