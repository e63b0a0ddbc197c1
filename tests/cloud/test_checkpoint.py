"""The checkpoint's file: what becomes of a place that cannot be written."""

import errno
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
