"""The runtime tensorrt-rtx without its hardware: what is refused and how, and that the plugin's device is what runs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from skrr_export.bundle import Bundle
from skrr_export.errors import DependencyError, InputError
from skrr_export.targets.onnx import plugin
from skrr_export.targets.onnx.session import OnnxSession
from tests.bundles import export, random_ids
from tests.checkpoints import t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("plugin")
    return export(t5_checkpoint(directory / "t5"), directory / "bundle")


def _install(patch: pytest.MonkeyPatch, name: str, library: Path = Path("absent.so")) -> None:
    """A plugin whose provider has the name; ONNX Runtime's own CPU provider is listed as a plugin's would be."""
    module = ModuleType(plugin.MODULE)
    vars(module).update(get_ep_name=lambda: name, get_library_path=lambda: str(library))
    patch.setitem(sys.modules, plugin.MODULE, module)


def test_runs_on_the_device_of_the_plugin(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    class Options(onnxruntime.SessionOptions):
        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            chosen.extend(device.ep_name for device in devices)
            super().add_provider_for_devices(devices, options)

    _install(monkeypatch, CPU)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    session = OnnxSession(bundle, device="cuda", runtime="tensorrt-rtx")
    assert chosen == session._session.get_providers() == [CPU]
    ids = random_ids(np.random.default_rng(0), 2, 9)
    ours, truth = (made.encode(ids)["last_hidden_state"] for made in (session, OnnxSession(bundle)))
    assert np.array_equal(ours, truth)


def test_plugin_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "Provider", Path("provider.so"))
    registered: list[tuple[str, str]] = []
    gpus = [SimpleNamespace(ep_name="Provider", number=number) for number in range(2)]
    library = SimpleNamespace(
        register_execution_provider_library=lambda *arguments: registered.append(arguments),
        get_ep_devices=lambda: [SimpleNamespace(ep_name=CPU), *(gpus if registered else [])],
    )
    for _ in range(2):
        assert plugin.device_of_plugin(library) is gpus[0]
    assert registered == [("Provider", "provider.so")]


def test_needs_the_gpu_to_be_asked_for(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="runs on an NVIDIA GPU, not on cpu: use --device cuda"):
        OnnxSession(bundle, runtime="tensorrt-rtx")


def test_plugin_that_is_missing_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, plugin.MODULE, None)
    with pytest.raises(DependencyError, match="pip install 'onnxruntime-ep-nv-tensorrt-rtx-cu13'"):
        OnnxSession(bundle, device="cuda", runtime="tensorrt-rtx")


def test_plugin_that_does_not_import_says_why(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{plugin.MODULE}.py").write_text("raise OSError('libx.so: no such file')")
    monkeypatch.delitem(sys.modules, plugin.MODULE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DependencyError, match=r"cu13 does not load: libx\.so: no such file"):
        OnnxSession(bundle, device="cuda", runtime="tensorrt-rtx")


def test_library_that_does_not_load_is_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "Provider")
    with pytest.raises(DependencyError, match=r"needs an NVIDIA GPU and its driver: .*absent\.so") as caught:
        OnnxSession(bundle, device="cuda", runtime="tensorrt-rtx")
    assert "\n" not in str(caught.value)


def test_machine_without_a_fitting_gpu_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "Provider")
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda name, path: None)
    with pytest.raises(DependencyError, match="no GPU for the runtime tensorrt-rtx"):
        OnnxSession(bundle, device="cuda", runtime="tensorrt-rtx")


def test_onnx_runtime_that_takes_no_plugins_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "Provider")
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(DependencyError, match=r"takes plugins, not .*: pip install -U 'onnxruntime>=1.24'"):
        OnnxSession(bundle, device="cuda", runtime="tensorrt-rtx")
