"""What is beside the models for deploying them: files that agree with each other and with what is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import skrr_export
from skrr_export.bundle import Bundle
from skrr_export.triton.choices import Choices
from skrr_export.triton.repository import write_repository

ROOT = Path(skrr_export.__file__).parents[1]
FOLDER = ROOT / "runtimes" / "triton"


def documents(name: str) -> dict[str, Any]:
    """The documents of a YAML file, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((FOLDER / name).read_text())}


@pytest.fixture
def container() -> Any:
    [container] = documents("kubernetes.yaml")["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


def test_kubernetes_parts_refer_to_each_other(container: Any) -> None:
    parts = documents("kubernetes.yaml")
    assert set(parts) == {"Deployment", "Service", "HorizontalPodAutoscaler"}
    deployment = parts["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == parts["Service"]["spec"]["selector"]
    target = parts["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", parts["Deployment"]["metadata"]["name"])
    named = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in parts["Service"]["spec"]["ports"]} <= named
    volumes = {volume["name"] for volume in deployment["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert next(mount for mount in container["volumeMounts"] if mount["name"] == "models")["readOnly"]


def test_probes_ask_for_what_is_served(container: Any, plain: Bundle, tmp_path: Path) -> None:
    write_repository(plain, tmp_path / "models", Choices(name="t5"))
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert "/v2/health/ready" in paths
    models = {path.split("/")[3] for path in paths if path.startswith("/v2/models/")}
    text = (FOLDER / "kubernetes.yaml").read_text()
    models |= set(re.findall(r'model="(\w+)"', text))
    assert models <= {path.name for path in (tmp_path / "models").iterdir()}


def test_pods_may_finish_what_they_do(container: Any) -> None:
    pod = documents("kubernetes.yaml")["Deployment"]["spec"]["template"]["spec"]
    [timeout] = [int(argument.partition("=")[2]) for argument in container["args"] if "exit-timeout" in argument]
    assert pod["terminationGracePeriodSeconds"] > timeout


def test_kserve_serves_the_same_image() -> None:
    predictor = documents("kserve.yaml")["InferenceService"]["spec"]["predictor"]
    deployment = documents("kubernetes.yaml")["Deployment"]["spec"]["template"]["spec"]
    assert predictor["model"]["image"] == deployment["containers"][0]["image"]
    assert predictor["model"]["protocolVersion"] == "v2"


def test_the_image_is_made_of_files_that_exist() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    [version] = re.findall(r"^ARG TRITON=(\S+)$", text, re.MULTILINE)
    assert f"skrr-triton:{version}" in (FOLDER / "kubernetes.yaml").read_text()


def test_the_readme_tells_of_every_option() -> None:
    from skrr_export.cli.triton import command

    text = (FOLDER / "README.md").read_text()
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    for option in options - {"--output", "--force", "--json", "--quiet"}:
        assert f"| `{option}` |" in text
