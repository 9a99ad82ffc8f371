"""A record gives back what it was made of, in the room that was reserved for it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsd_core.distill.signals import Correlation, Energy, Labelling, Logits, Presence, Signal
from dsd_core.signals.record import capacity, decode, encode, header_of

K = 7
HEAD = Logits("head")
EACH: dict[Signal, list[tuple[int, ...]]] = {
    Energy("taps", 8): [(1, 4, 6), (1, 4, 6), (1, 4, 6)],
    HEAD: [(K, 8, 12)],
    Correlation(HEAD, 1.0, "category", True, None): [(K, K)],
    Presence(): [(K,)],
    Labelling(0.5): [(1, 32, 48)],
}


def values(signal: Signal) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    if signal.kept == "ids":
        return [torch.randint(0, 256, shape, generator=generator).to(torch.uint8) for shape in EACH[signal]]
    return [10 * torch.rand(shape, generator=generator) for shape in EACH[signal]]


def kept(*signals: Signal, top_k: int | None = None) -> dict[Signal, tuple[Tensor, ...]]:
    (record,) = encode({signal: [x.unsqueeze(0) for x in values(signal)] for signal in signals}, top_k=top_k)
    found = decode([record + bytes(13)], signals, K, top_k=top_k)  # records are padded to their room
    return {signal: tuple(tensor[0] for tensor in tensors) for signal, tensors in found.items()}


def test_every_kind_of_signal_comes_back_in_half_precision_or_as_ids() -> None:
    found = kept(*EACH)
    assert list(found) == list(EACH)
    for signal, tensors in found.items():
        for tensor, before in zip(tensors, values(signal), strict=True):
            expected = before / before.max() if signal.kept == "scaled" else before
            assert tensor.dtype == (torch.uint8 if signal.kept == "ids" else torch.half)
            assert tensor.shape == before.shape
            assert torch.allclose(tensor.float(), expected.float(), rtol=5e-4, atol=1e-6)


def test_energies_beyond_half_precision_keep_their_pattern() -> None:
    energies = [torch.tensor([[[[1e9, 2e9]]]]), torch.zeros(1, 1, 1, 2)]
    (found,) = decode(encode({Energy("taps", 8): energies}), (Energy("taps", 8),), K).values()
    assert found[0].tolist() == [[[[0.5, 1.0]]]] and found[1].tolist() == [[[[0.0, 0.0]]]]


def test_records_of_one_shape_are_taken_together_and_each_keeps_its_place() -> None:
    signals = (Presence(), HEAD)
    rows = torch.arange(3.0)
    present, logits = rows.view(3, 1).expand(3, K), rows.view(3, 1, 1, 1).expand(3, K, 3, 5) + 0.5
    records = encode({Presence(): [present], HEAD: [logits]})
    alone = [encode({Presence(): [present[row : row + 1]], HEAD: [logits[row : row + 1]]}) for row in range(3)]
    assert alone == [[record] for record in records]
    assert {header_of(record, signals) for record in records} == {header_of(records[0], signals)}
    (other,) = encode({Presence(): [torch.zeros(1, K)], HEAD: [torch.zeros(1, K, 5, 3)]})
    assert header_of(other, signals) not in records[0]
    found = decode(records, signals, K)
    assert found[Presence()][0][:, 0].tolist() == [0, 1, 2] and found[HEAD][0].shape == (3, K, 3, 5)
    assert found[HEAD][0].amax(dim=(1, 2, 3)).tolist() == found[HEAD][0].amin(dim=(1, 2, 3)).tolist() == [0.5, 1.5, 2.5]


def test_of_the_largest_logits_the_probabilities_stay_and_the_others_share_the_rest() -> None:
    (before,) = values(HEAD)
    ((found,),) = kept(HEAD, top_k=3).values()
    p, q = before.softmax(dim=0), found.float().softmax(dim=0)
    largest = p.topk(3, dim=0).indices
    assert torch.allclose(q.gather(0, largest), p.gather(0, largest), atol=5e-3)
    others = q.scatter(0, largest, 0)
    assert torch.allclose(others.sum(dim=0), 1 - p.gather(0, largest).sum(dim=0), atol=5e-3)
    assert (others.amax(dim=0) <= others.sum(dim=0) / (K - 3) + 1e-3).all()


def test_more_largest_logits_than_classes_are_all_of_them() -> None:
    ((found,),) = kept(HEAD, top_k=100).values()
    assert torch.allclose(found.float(), values(HEAD)[0], rtol=1e-3)


@given(st.integers(16, 400), st.integers(16, 400), st.sampled_from([4, 8, 16, 32]), st.sampled_from([None, 3]))
def test_the_room_reserved_for_an_image_of_any_size_is_enough(
    height: int, width: int, stride: int, top_k: int | None
) -> None:
    def map_of(size: tuple[int, int]) -> dict[Signal, list[Tensor]]:
        grid = [-(-side // stride) for side in size]  # a network rounds up
        return {Energy("taps"): [torch.rand(1, 1, *grid)], HEAD: [torch.rand(1, K, *grid)]}

    probed = (64, 96)
    shapes = {signal: tuple(tuple(x.shape[1:]) for x in tensors) for signal, tensors in map_of(probed).items()}
    (record,) = encode(map_of((height, width)), top_k=top_k)
    assert len(record) <= capacity(shapes, probed, (height, width), top_k=top_k)
    assert len(encode(map_of(probed), top_k=top_k)[0]) == capacity(shapes, probed, probed, top_k=top_k)
