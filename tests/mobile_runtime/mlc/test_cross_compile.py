"""Code for phones and browsers comes out, in the right form; OpenCL's is taken by a compiler."""

import pytest

from mobile_runtime.mlc.bundles import open_base
from mobile_runtime.mlc.cross_compile import (
    PLATFORMS,
    cross_compile,
    device_sources,
    object_format,
    symbol,
)


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
def test_each_platform_gets_its_objects(delta, tmp_path, platform) -> None:
    outcome = cross_compile(open_base(delta.base).config, {}, platform, tmp_path / "library.tar")
    assert outcome.problem == ""
    assert outcome.object_format == platform.object_format
    assert 100_000 < outcome.size_bytes < 5_000_000


def test_the_symbol_is_the_one_that_mlc_looks_for(delta) -> None:
    assert symbol(open_base(delta.base).config) == "llama_q4f32_1___tvm_ffi__library_bin"


def test_another_processor_is_noticed() -> None:
    x86 = b"\x7fELF\2\1\1" + bytes(11) + (62).to_bytes(2, "little")
    assert object_format(x86).startswith("unknown")


def test_opencl_kernels_are_built_by_a_compiler_of_opencl(delta, tmp_path, monkeypatch) -> None:
    """Oclgrind compiles OpenCL C 1.2 on any processor, as a phone's driver would."""
    opencl = pytest.importorskip("pyopencl", reason="pyopencl and oclgrind are in the dev extra")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    simulators = [each for each in opencl.get_platforms() if "Oclgrind" in each.name]
    if not simulators:
        pytest.skip("oclgrind has wheels for Linux on x86-64 only")
    context = opencl.Context(simulators[0].get_devices())
    android = next(platform for platform in PLATFORMS if platform.name == "Android OpenCL")
    (source,) = device_sources(open_base(delta.base).config, {}, android)
    kernels = opencl.Program(context, source).build(cache_dir=False).all_kernels()
    assert any("nt_matmul" in kernel.function_name.lower() for kernel in kernels)
    assert len(kernels) > 20
    with pytest.raises(opencl.RuntimeError, match="error"):
        opencl.Program(context, source.replace("float", "floot", 1)).build(cache_dir=False)
