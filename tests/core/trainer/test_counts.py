"""The clock's hooks count the input of a model: exact numbers for each form of batch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.trainer.timing import Counts  # noqa: E402 - torch may be absent

pytestmark = pytest.mark.torch

IGNORED = -100


class Loader:
    """The part of a data loader that ``Counts`` uses; it returns given batches."""

    def __init__(self, *batches: dict[str, Any]) -> None:
        self._batches = list(batches)
        self.collate_fn = self._collate

    def _collate(self, samples: list[Any]) -> dict[str, Any]:
        return self._batches.pop(0)


def through(counts: Counts, batch: dict[str, Any], loss: float | None = None) -> None:
    """Call the hooks as a model in training does."""
    module = torch.nn.Identity()
    counts.before(module, (), batch)
    output = type("Output", (), {"loss": None if loss is None else torch.tensor(loss)})
    counts.after(module, (), batch, output)


def padded(*lengths: int, longest: int, prompts: int = 0) -> dict[str, Any]:
    """Return a padded batch; the first ``prompts`` tokens of each sample carry no loss."""
    place = torch.arange(longest)[None]
    mask = (place < torch.tensor(lengths)[:, None]).long()
    labels = torch.where((mask == 1) & (place >= prompts), 7, IGNORED)
    return {"input_ids": mask * 7, "attention_mask": mask, "labels": labels}


def flattened(*lengths: int) -> dict[str, Any]:
    """Return documents in one row without padding, as collators do: the first label of each document is masked."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    labels = torch.where(positions == 0, IGNORED, 7)
    return {"input_ids": torch.full_like(positions, 7), "labels": labels, "position_ids": positions}


def test_a_padded_batch() -> None:
    """Token slots include padding, real tokens do not; squared lengths are those of the padded rows."""
    counts = Counts()
    through(counts, padded(3, 5, longest=6))
    counts.end_step()
    assert counts.read() == {
        "samples": [2],
        "token_slots": [12],
        "real_tokens": [8],
        "trained_tokens": [2 + 4],
        "squared_lengths": [2 * 6**2],
        "losses": [],
    }
    assert counts.slots == 12


def test_a_batch_without_mask_and_labels() -> None:
    """Without a mask all slots count as real tokens; without labels all predicted tokens count as trained."""
    counts = Counts()
    through(counts, {"input_ids": torch.zeros(3, 4, dtype=torch.long)})
    counts.end_step()
    got = counts.read()
    assert (got["samples"], got["real_tokens"], got["trained_tokens"]) == ([3], [12], [9])


def test_tokens_without_loss() -> None:
    """Prompts count as real tokens, but not as trained ones."""
    counts = Counts()
    through(counts, padded(4, 6, longest=6, prompts=2))
    counts.end_step()
    got = counts.read()
    assert (got["token_slots"], got["real_tokens"], got["trained_tokens"]) == ([12], [10], [2 + 4])


def test_packs_flattened_into_one_row() -> None:
    """Two packs with documents of 3 and 5, and of 4 tokens: lengths are those of documents, samples are packs."""
    counts, batch = Counts(), flattened(3, 5, 4)
    loader = Loader(batch)
    counts.watch(loader)
    through(counts, loader.collate_fn(["pack", "pack"]))
    counts.end_step()
    assert counts.read() == {
        "samples": [2],
        "token_slots": [12],
        "real_tokens": [12],
        "trained_tokens": [2 + 4 + 3],
        "squared_lengths": [9 + 25 + 16],
        "losses": [],
    }


def test_packs_that_stay_rows() -> None:
    """Rows with position ids: each document has its own length, each row is a sample."""
    counts = Counts()
    positions = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1]])
    through(counts, {"input_ids": torch.zeros_like(positions), "position_ids": positions})
    counts.end_step()
    got = counts.read()
    assert (got["samples"], got["token_slots"], got["squared_lengths"]) == ([2], [8], [9 + 1 + 4 + 4])


def test_samples_without_padding_in_one_row() -> None:
    """In a flattened batch without packing, the samples are those that the loader collated."""
    counts, batch = Counts(), flattened(2, 6, 3)
    loader = Loader(batch)
    counts.watch(loader)
    through(counts, loader.collate_fn(["a", "b", "c"]))
    counts.end_step()
    got = counts.read()
    assert (got["samples"], got["token_slots"], got["squared_lengths"]) == ([3], [11], [4 + 36 + 9])


def test_a_short_last_batch_counts_its_own_samples() -> None:
    """The data loader is one batch ahead of the model, and the last batch has one pack instead of two."""
    counts = Counts()
    loader = Loader(flattened(4, 4), flattened(4, 4), flattened(4))
    counts.watch(loader)
    ahead = [loader.collate_fn(samples) for samples in (["a", "b"], ["c", "d"], ["e"])]
    for batch in ahead:
        through(counts, batch)
        counts.end_step()
    assert counts.read()["samples"] == [2, 2, 1]


def test_the_loader_inside_that_of_accelerate_is_watched() -> None:
    """Accelerate wraps the data loader whose batches are counted."""
    counts, inner = Counts(), Loader(flattened(4, 4))
    counts.watch(type("Shard", (), {"base_dataloader": inner})())
    through(counts, inner.collate_fn(["a", "b"]))
    counts.end_step()
    assert counts.read()["samples"] == [2]


def test_accumulated_passes_make_one_step() -> None:
    """Forward passes are added up until the step ends; a step that has not ended is not returned."""
    counts = Counts()
    through(counts, padded(3, 5, longest=6), loss=2.0)
    through(counts, padded(6, 6, longest=6), loss=4.0)
    counts.end_step()
    through(counts, padded(1, 1, longest=2))
    got = counts.read()
    assert (got["samples"], got["token_slots"], got["real_tokens"]) == ([4], [24], [20])
    # summed over trained tokens: 2+4 in the first pass, 5+5 in the second
    assert got["losses"] == [pytest.approx(2.0 * 6 + 4.0 * 10)]
    assert got["trained_tokens"] == [16]


def test_passes_outside_of_training_do_not_count() -> None:
    """Forward passes in evaluation mode are not counted."""
    counts, module = Counts(), torch.nn.Identity().eval()
    counts.before(module, (), padded(2, 2, longest=2))
    counts.end_step()
    assert counts.read()["samples"] == [0]


def test_a_loss_that_is_not_finite_is_none() -> None:
    """A loss of NaN gives None; a model without loss gives an empty list."""
    counts = Counts()
    through(counts, padded(2, 2, longest=2), loss=float("nan"))
    counts.end_step()
    assert counts.read()["losses"] == [None]
