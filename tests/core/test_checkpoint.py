"""A checkpoint is whole or absent; a damaged one is passed over and said so."""

from __future__ import annotations

import pytest
import torch

from dsd_core import checkpoint
from dsd_core.errors import StorageError


def write(folder, step):
    return checkpoint.save(folder, step, {"w": torch.full((4,), float(step))}, {"step": step})


def test_the_newest_checkpoint_comes_back_and_only_two_stay(tmp_path):
    for step in (1, 2, 30):
        saved = write(tmp_path, step)
    tensors, state = checkpoint.load_newest(tmp_path, pytest.fail)
    assert state == {"step": 30} and tensors["w"].tolist() == [30.0] * 4
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000002", "00000030"]
    assert saved.path.name == "00000030" and saved.bytes > 0


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "nothing", pytest.fail) is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, name, harm):
    write(tmp_path, 1)
    path = write(tmp_path, 2).path / name
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    notes = []
    _, state = checkpoint.load_newest(tmp_path, notes.append)
    assert state == {"step": 1}
    assert len(notes) == 1 and "00000002 is damaged" in notes[0]


def test_what_a_killed_writer_left_behind_is_not_a_checkpoint(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "00000009.tmp").mkdir()
    (tmp_path / "00000009.tmp" / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.load_newest(tmp_path, pytest.fail)[1] == {"step": 1}


def test_a_folder_that_cannot_be_written_is_a_storage_error_and_harms_nothing(tmp_path):
    write(tmp_path / "c", 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file", 2)
    assert checkpoint.load_newest(tmp_path / "c", pytest.fail)[1] == {"step": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
)
def test_a_restored_optimizer_takes_the_very_same_next_step(make):
    def start():
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def step(net, optimizer, seed):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    net = start()
    optimizer = make(net.parameters())
    for seed in range(3):
        step(net, optimizer, seed)
    other = start()
    other.load_state_dict(net.state_dict())
    restored = make(other.parameters())
    checkpoint.restore_optimizer("it", restored, checkpoint.flatten_optimizer("it", optimizer))
    step(net, optimizer, 9)
    step(other, restored, 9)
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)
