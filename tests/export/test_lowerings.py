"""Lowerings that are kept: taken only where all is the same and whole, by one process at a time.

Where no backend matters, files of a few bytes are "lowered"; bundles are MLC's, written in a
second, and one of ExecuTorch's.
"""

import json
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from click.testing import CliRunner

from export.backend import Written
from export.base import export_base
from export.cli import export
from export.lowerings import Inputs, LoweringCache, default_cache, write_lowering
from export.merged import export_merged
from export.recipes import find_recipe
from protos.progress import silent

MLC, INT4 = "mlc-q4f16_1", "executorch-xnnpack-8da4w"
INPUTS = Inputs("BaseBundle", {"base_model": "0" * 64}, find_recipe(INT4), {"rank": 4})


@pytest.fixture
def cache(tmp_path):
    return LoweringCache(tmp_path / "cache")


def source(bundle):
    """Where the manifest says that the lowering came from."""
    return bundle.manifest.measured["lowering_cache"]


def lower(cache, directory, content=b"weights", inputs=INPUTS, progress=silent):
    """A lowering that writes `content`; gives what the cache did, and what stands there then."""
    directory.mkdir()
    (directory / "tokenizer.json").write_bytes(b"there before")

    def write():
        (directory / "part").mkdir()
        (directory / "part" / "program").write_bytes(content)
        return Written(["part/program"], {"figure": len(content)}, ["as every time"])

    written = write_lowering(cache, inputs, directory, write, progress)
    assert written.wire == ["part/program"]
    assert written.warnings[0] == "as every time"
    return written.measured["lowering_cache"], (directory / "part" / "program").read_bytes()


def entries(cache):
    return sorted(path for path in cache.folder.iterdir() if path.name != "locks")


def test_the_same_base_is_copied_also_with_other_prompts_and_equals_the_lowered_one(
    llama, cache, tmp_path
):
    first = export_base(str(llama), tmp_path / "a", MLC, cache=cache)
    same = export_base(str(llama), tmp_path / "b", MLC, cache=cache)
    prompts = export_base(str(llama), tmp_path / "c", MLC, cache=cache, prompts=["Fog:"])
    without = export_base(str(llama), tmp_path / "d", MLC)
    assert [source(b) for b in (first, same, prompts, without)] == [
        "kept", "copied", "copied", "not asked",
    ]  # fmt: skip
    assert first.id == same.id == without.id != prompts.id
    assert first.manifest.measured["wire_bytes"] == same.manifest.measured["wire_bytes"]
    shards = {name for name in first.manifest.files if name.startswith("params_shard")}
    assert shards
    assert all(prompts.manifest.files[name] == first.manifest.files[name] for name in shards)


@pytest.mark.slow
def test_an_executorch_base_from_the_cache_is_the_one_that_is_lowered_without(
    qwen3, qwen3_bundle, cache, tmp_path, base_device
):
    """The fixture's was lowered on its own, this one in another folder and copied from there."""
    made = export_base(str(qwen3), tmp_path / "a", INT4, rank=4, cache=cache)
    shutil.rmtree(made.path)
    copied = export_base(str(qwen3), tmp_path / "b", INT4, rank=4, cache=cache)
    assert (source(made), source(copied)) == ("kept", "copied")
    assert copied.id == qwen3_bundle.id
    assert base_device(copied)([7, 44, 130], 0).equal(base_device(qwen3_bundle)([7, 44, 130], 0))


def test_another_model_recipe_rank_or_context_is_lowered(llama, qwen3, cache, tmp_path):
    made = [
        export_base(str(base), tmp_path / str(number), recipe, cache=cache, **options)
        for number, (base, recipe, options) in enumerate([
            (llama, MLC, {}), (qwen3, MLC, {}), (llama, "mlc-q0f16", {}),
            (llama, MLC, {"rank": 3}), (llama, MLC, {"context_length": 96}),
        ])
    ]  # fmt: skip
    assert [source(bundle) for bundle in made] == ["kept"] * 5
    assert len(entries(cache)) == 5


def test_changed_weights_of_the_same_model_are_lowered(llama, cache, tmp_path):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(llama, tmp_path / "base")
    before = export_base(str(base), tmp_path / "a", MLC, cache=cache)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    after = export_base(str(base), tmp_path / "b", MLC, cache=cache)
    assert source(after) == "kept"
    assert after.id != before.id


def test_what_other_versions_lowered_is_not_taken(cache, tmp_path):
    assert lower(cache, tmp_path / "a") == ("kept", b"weights")
    for number, name in enumerate(("torch", "executorch", "torchao", "pocketune", "code")):
        assert name in cache.versions
        other = replace(cache, versions={**cache.versions, name: "another"})
        assert lower(other, tmp_path / str(number), name.encode()) == ("kept", name.encode())
    assert lower(cache, tmp_path / "b", b"never") == ("copied", b"weights")


def test_a_merged_bundle_is_copied_for_its_own_adapter_only(llama, make_adapter, cache, tmp_path):
    one, other = (make_adapter(llama, seed) for seed in (1, 2))
    given = {"base": str(llama), "trust_base": True, "cache": cache}
    first = export_merged(one, tmp_path / "a", MLC, **given)
    again = export_merged(one, tmp_path / "b", MLC, **given)
    second = export_merged(other, tmp_path / "c", MLC, **given)
    assert [source(b) for b in (first, again, second)] == ["kept", "copied", "kept"]
    assert first.id == again.id != second.id
    figures = [dict(bundle.manifest.measured) for bundle in (first, again)]
    for changing in ("golden_seconds", "lowering_seconds", "lowering_cache"):
        assert figures[0].pop(changing) is not figures[1].pop(changing)
    assert figures[0] == figures[1]


def _flip(entry):
    (entry / "part" / "program").write_bytes(b"weighty")


def _truncate(entry):
    (entry / "part" / "program").write_bytes(b"weigh")


def _lose(entry):
    (entry / "part" / "program").unlink()


def _garble(entry):
    (entry / "manifest.json").write_bytes(b"{")


def _swap(entry):
    """Right digests under the wrong name: the config in the manifest is another one."""
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["config"]["settings"]["rank"] = 5
    (entry / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [_flip, _truncate, _lose, _garble, _swap])
def test_a_damaged_entry_is_removed_and_lowered_anew(damage, cache, tmp_path):
    lower(cache, tmp_path / "a")
    (entry,) = entries(cache)
    damage(entry)
    assert lower(cache, tmp_path / "b", b"anew") == ("kept", b"anew")
    assert lower(cache, tmp_path / "c", b"never") == ("copied", b"anew")
    assert entries(cache) == [entry]


def test_files_that_were_there_before_are_no_part_of_an_entry(cache, tmp_path):
    lower(cache, tmp_path / "a")
    (entry,) = entries(cache)
    assert sorted(path.name for path in entry.rglob("*") if path.is_file()) == [
        "manifest.json", "program",
    ]  # fmt: skip


def test_of_two_at_once_one_lowers_and_the_other_waits_and_copies(cache, tmp_path):
    lowers, waits, found = threading.Event(), threading.Event(), {}

    def first_write():
        lowers.set()
        assert waits.wait(60), "the second did not wait"
        (tmp_path / "first" / "program").write_bytes(b"once")
        return Written(["program"])

    def first():
        (tmp_path / "first").mkdir()
        found["first"] = write_lowering(cache, INPUTS, tmp_path / "first", first_write, silent)

    thread = threading.Thread(target=first)
    thread.start()
    assert lowers.wait(60)
    (tmp_path / "second").mkdir()
    second = write_lowering(cache, INPUTS, tmp_path / "second", pytest.fail, lambda *_: waits.set())
    thread.join()
    assert found["first"].measured["lowering_cache"] == "kept"
    assert second.measured["lowering_cache"] == "copied"
    assert (tmp_path / "second" / "program").read_bytes() == b"once"


def test_a_process_that_is_killed_while_it_lowers_holds_up_nobody(cache, tmp_path):
    cache = replace(cache, versions={"code": "of both"})
    code = f"""
import time
from pathlib import Path
from export.lowerings import Inputs, LoweringCache, write_lowering
from export.recipes import find_recipe

inputs = Inputs("BaseBundle", {{"base_model": "0" * 64}}, find_recipe({INT4!r}), {{"rank": 4}})
write = lambda: (print("lowering", flush=True), time.sleep(600))
cache = LoweringCache(Path({str(cache.folder)!r}), versions={{"code": "of both"}})
write_lowering(cache, inputs, Path("."), write, print)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "lowering\n"
        process.send_signal(signal.SIGKILL)
    assert lower(cache, tmp_path / "a") == ("kept", b"weights")
    assert len(list((cache.folder / "locks").iterdir())) == 1  # it was the same entry's


def test_the_one_not_used_for_longest_makes_room(cache, tmp_path):
    small = replace(cache, limit_bytes=25_000)
    of = [replace(INPUTS, settings={"rank": rank}) for rank in range(4)]
    for rank in (0, 1):
        lower(small, tmp_path / f"made{rank}", bytes(10_000), of[rank])
    assert lower(small, tmp_path / "used", b"", of[0])[0] == "copied"
    lower(small, tmp_path / "made2", bytes(10_000), of[2])
    assert [lower(small, tmp_path / f"asked{rank}", b"", of[rank])[0] for rank in (0, 2)] == [
        "copied", "copied",
    ]  # fmt: skip
    assert lower(small, tmp_path / "asked1", b"anew", of[1]) == ("kept", b"anew")
    assert lower(small, tmp_path / "made3", bytes(25_001), of[3])[0] == "too large"
    assert lower(small, tmp_path / "asked3", b"small", of[3]) == ("kept", b"small")


def test_a_folder_that_cannot_be_one_fails_no_export_and_is_warned_of(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    bad = LoweringCache(tmp_path / "file" / "cache")
    (tmp_path / "a").mkdir()
    written = write_lowering(bad, INPUTS, tmp_path / "a", lambda: Written([]), silent)
    assert written.measured["lowering_cache"] == "not usable"
    assert str(tmp_path / "file") in written.warnings[0]


def test_the_command_takes_the_folder_of_the_environment_and_no_cache_goes_without(
    llama, tmp_path, monkeypatch
):
    monkeypatch.setenv("POCKETUNE_CACHE_DIR", str(tmp_path / "mine"))
    assert default_cache().folder == tmp_path / "mine" / "lowerings"

    def run(name, *options):
        arguments = ["base", "--base", llama, "--out", tmp_path / name, "--recipe", MLC, "--json"]
        result = CliRunner().invoke(export, [*map(str, arguments), *options])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["measured"]["lowering_cache"]

    assert run("a", "--no-cache") == "not asked"
    assert not (tmp_path / "mine").exists()
    assert run("b") == "kept"
    assert run("c") == "copied"
    assert (tmp_path / "mine" / "lowerings").stat().st_mode & 0o777 == 0o700
