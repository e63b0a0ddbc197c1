"""Artifacts: identity by content, verified on opening, atomic to write, safe to interrupt."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from protos.artifacts import (
    MANIFEST,
    create,
    digest_json,
    finished,
    identity,
    kept_dir,
    open_artifact,
    work_dir,
)
from protos.errors import ArtifactError, InputError

PARENTS = {"profile": "a" * 64}
CONFIG = {"shots": 8, "seed": 0}


def make(path: Path, text: str = "one\n", config: dict[str, int] | None = None) -> Path:
    with create(path, "Dataset", PARENTS, config or CONFIG) as draft:
        (draft.path / "train.jsonl").write_text(text)
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "valid.jsonl").write_bytes(b"\x00\xff")
    return path


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_identity_is_the_documented_digest_worked_out_by_hand(tmp_path: Path) -> None:
    artifact = open_artifact(make(tmp_path / "a"))
    pairs = [
        ["deep/valid.jsonl", hashlib.sha256(b"\x00\xff").hexdigest()],
        ["train.jsonl", hashlib.sha256(b"one\n").hexdigest()],
    ]
    text = '[1,"Dataset",{},{{"profile":"{}"}},{{"seed":0,"shots":8}}]'.replace("{}", "%s")
    spelled = text.replace("{{", "{").replace("}}", "}") % (
        json.dumps(pairs, separators=(",", ":")),
        "a" * 64,
    )
    assert artifact.id == hashlib.sha256(spelled.encode()).hexdigest()


def test_same_content_has_the_same_id_whenever_and_wherever_it_is_made(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b" / "c")
    assert open_artifact(first).id == open_artifact(second).id
    assert open_artifact(make(tmp_path / "d", "two\n")).id != open_artifact(first).id
    other = make(tmp_path / "e", config={"shots": 9, "seed": 0})
    assert open_artifact(other).id != open_artifact(first).id


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "train.jsonl").write_text("onE\n"), "train.jsonl was altered"),
        (lambda p: (p / "train.jsonl").write_text("on"), "has 2 bytes, expected 4"),
        (lambda p: (p / "deep" / "valid.jsonl").unlink(), "valid.jsonl is missing"),
        (lambda p: (p / MANIFEST).unlink(), "not a Pocketune artifact"),
        (lambda p: (p / MANIFEST).write_text("{"), "not JSON"),
        (lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda p: edit_manifest(p, schema_version=99), "this build reads 1"),
        (lambda p: edit_manifest(p, kind="Sandwich"), "kind is 'Sandwich'"),
        (lambda p: edit_manifest(p, config={"shots": 9, "seed": 0}), "manifest was altered"),
        (lambda p: edit_manifest(p, parents={"profile": "b" * 64}), "manifest was altered"),
        (lambda p: edit_manifest(p, files=[]), "malformed manifest"),
        (
            lambda p: edit_manifest(p, files={"../x": {"sha256": "", "size_bytes": 1}}),
            "leaves the directory",
        ),
        (
            lambda p: edit_manifest(p, files={"/etc/passwd": {"sha256": "", "size_bytes": 1}}),
            "leaves the directory",
        ),
    ],
)
def test_damage_of_any_kind_is_noticed_on_opening(tmp_path: Path, damage, says: str) -> None:
    path = make(tmp_path / "a")
    damage(path)
    with pytest.raises(ArtifactError, match=says):
        open_artifact(path)
    assert finished(path, "Dataset", PARENTS, CONFIG) is None


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    outside = tmp_path / "outside"
    outside.write_text("one\n")
    (path / "train.jsonl").unlink()
    (path / "train.jsonl").symlink_to(outside)
    with pytest.raises(ArtifactError, match="missing"):
        open_artifact(path)


def test_the_wrong_kind_and_a_missing_directory_are_said(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="this is a Dataset, expected a Adapter"):
        open_artifact(path, "Adapter")
    with pytest.raises(InputError, match="no such artifact"):
        open_artifact(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="holds no file 'x'"):
        open_artifact(path).file("x")


def test_finished_only_for_the_same_parents_and_config(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    assert finished(path, "Dataset", PARENTS, CONFIG) is not None
    assert finished(path, "Dataset", PARENTS, {**CONFIG, "seed": 1}) is None
    assert finished(path, "Dataset", {"profile": "c" * 64}, CONFIG) is None


def test_a_failing_writer_leaves_the_old_artifact_and_nothing_else(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    before = open_artifact(path).id
    with (
        pytest.raises(FileNotFoundError),
        create(path, "Dataset", PARENTS, CONFIG) as draft,
    ):
        (draft.path / "nowhere" / "train.jsonl").write_text("half")
    assert open_artifact(path).id == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_no_artifact_of_this_kind_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for kind, path, says in [
        ("Dataset", mine, "not a Pocketune artifact"),
        ("Dataset", mine / "thesis.txt", "is a file"),
        ("Adapter", make(tmp_path / "a"), "is a Dataset"),
    ]:
        with pytest.raises(InputError, match=says), create(path, kind, {}, {}):
            pass
    assert (mine / "thesis.txt").read_text() == "years of work"


WRITER = """
    import sys, time
    from pathlib import Path
    import protos.artifacts as artifacts
    original = artifacts.{function}
    def stop(*args):
        print("here", flush=True)
        time.sleep(60)
        return original(*args)
    artifacts.{function} = stop
    with artifacts.create(Path(sys.argv[1]), "Dataset", {{}}, {{"run": 2}}) as draft:
        (draft.path / "train.jsonl").write_text("two\\n")
"""


@pytest.mark.parametrize("function", ["_seal", "_install", "sync", "tool_versions"])
def test_a_killed_writer_loses_nothing_and_the_next_one_cleans_up(
    tmp_path: Path, function: str
) -> None:
    path = make(tmp_path / "a")
    before = open_artifact(path).id
    script = textwrap.dedent(WRITER.format(function=function))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert open_artifact(path).id == before
    assert any(p.name.endswith(".partial") for p in tmp_path.iterdir())
    make(path, "three\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_kill_between_the_two_renames_is_undone_by_the_next_reader(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    before = open_artifact(path).id
    path.rename(tmp_path / ".a.old")
    assert open_artifact(path).id == before


def test_a_living_writers_draft_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with create(path, "Dataset", {}, {"run": 1}) as first:
        (first.path / "x").write_text("1")
        with create(path, "Dataset", {}, {"run": 2}) as second:
            (second.path / "x").write_text("2")
        assert (first.path / "x").read_text() == "1"
    assert open_artifact(path).config == {"run": 1}


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a")
    before = open_artifact(path).id

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(path, "two\n")
    monkeypatch.undo()
    assert open_artifact(path).id == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_work_dirs_belong_to_their_inputs(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def interrupted() -> None:
        with work_dir(path, PARENTS, CONFIG) as work:
            (work / "checkpoint").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (first,) = tmp_path.iterdir()
    with work_dir(path, PARENTS, CONFIG) as again:
        assert again == first
        assert (first / "checkpoint").exists()
    assert not first.exists(), "it is of no use once the artifact is there"
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with work_dir(path, PARENTS, {**CONFIG, "seed": 1}) as second:
        assert second != first
        assert not first.exists()


def test_a_kept_dir_stays_for_the_same_parents_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with kept_dir(path, PARENTS) as first, kept_dir(tmp_path / "a.b", PARENTS) as other:
        (first / "paid").write_text("x")
        with pytest.raises(InputError, match="another process"), kept_dir(path, PARENTS):
            pass
    with kept_dir(path, PARENTS) as again:
        assert (again / "paid").read_text() == "x"
    with kept_dir(path, {"profile": "another"}) as second:
        assert list(second.iterdir()) == []
    assert not first.exists()
    assert other.exists()


def test_two_processes_do_not_share_a_work_dir(tmp_path: Path) -> None:
    with work_dir(tmp_path / "a", PARENTS, CONFIG) as mine:
        with (
            pytest.raises(InputError, match="another process is making this artifact"),
            work_dir(tmp_path / "a", PARENTS, CONFIG),
        ):
            pass
        with work_dir(tmp_path / "a", PARENTS, {**CONFIG, "seed": 1}):
            assert mine.exists(), "a living run's checkpoints were removed"


def test_digests_do_not_depend_on_key_order() -> None:
    assert digest_json({"a": 1, "b": "é"}) == digest_json({"b": "é", "a": 1})
    assert identity("Dataset", {}, {}, {"x": 1}) != identity("Adapter", {}, {}, {"x": 1})
