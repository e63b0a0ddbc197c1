"""The checkpoint's file: torn ones, and places that cannot be written."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from cloud.checkpoint import State, copies, resume, save
from protos.errors import InputError

STATE = State(3, 1, [{"valid_loss": 2.0}, {"train_loss": 1.5, "valid_loss": 1.0}])


class Run:
    """A parameter after one step of AdamW, and its best values."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parameters = {"w": torch.nn.Parameter(torch.randn(3, 2, generator=generator))}
        self.best = {"w": torch.randn(3, 2, generator=generator)}
        self.optimizer = torch.optim.AdamW(self.parameters.values())
        self.parameters["w"].grad = torch.ones(3, 2)
        self.optimizer.step()

    def save(self, path: Path) -> None:
        save(path, STATE, self.parameters, self.best, self.optimizer)

    def resume(self, path: Path) -> State | None:
        return resume(path, self.parameters, self.best, self.optimizer)


def test_a_run_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    saved, other = Run(1), Run(2)
    saved.save(tmp_path / "c.safetensors")
    assert other.resume(tmp_path / "c.safetensors") == STATE
    torch.testing.assert_close(copies(other.parameters), copies(saved.parameters), rtol=0, atol=0)
    torch.testing.assert_close(other.best, saved.best, rtol=0, atol=0)
    found, expected = (run.optimizer.state[run.parameters["w"]] for run in (other, saved))
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
def test_a_torn_checkpoint_goes_and_the_run_begins_again(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.safetensors"
    run, other = Run(1), Run(2)
    run.save(path)
    os.truncate(path, int(path.stat().st_size * share))
    before = copies(other.parameters)
    assert other.resume(path) is None
    torch.testing.assert_close(copies(other.parameters), before, rtol=0, atol=0)
    assert not path.exists()


def test_a_checkpoint_of_zeros_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(bytes(4096))
    assert Run(1).resume(path) is None
    assert not path.exists()


def test_the_disk_holds_the_bytes_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "c.safetensors", list[tuple[str, bool]]()
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), path.exists()))

    monkeypatch.setattr("os.fsync", noted)
    Run(1).save(path)
    assert synced[-2:] == [(str(tmp_path / "c.partial"), False), (str(tmp_path), True)]


def test_a_folder_that_is_gone_is_this_runs_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/c.*cannot be written \(No such file"):
        Run(1).save(tmp_path / "gone" / "c.safetensors")


def test_a_full_disk_is_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        Run(1).save(tmp_path / "c.safetensors")
    assert caught.value.errno == errno.ENOSPC
