"""The manifests in deploy/ against the schemas that Kubernetes and KServe publish (make_schemas.py), and against us."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import threading
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from documents import blocks
from places import EXAMPLES, ROOT
from serving import serving

from subcompress import __version__
from subcompress.serving.catalog import find_models
from subcompress.serving.trial import Trials
from subcompress_cli import main

DEPLOY = ROOT / "deploy"
KUSTOMIZED = "kubernetes", "kubernetes-volume", "kserve"
VERSIONS = "kubernetes-1.30.0", "kubernetes-1.37.0", "kserve-0.21.0"


def objects(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each]


FILES = sorted(path for name in KUSTOMIZED for path in (DEPLOY / name).rglob("*.yaml"))
MANIFESTS = {
    f"{path.relative_to(DEPLOY)} {each['kind']}": each
    for path in FILES
    for each in objects(path.read_text("utf-8"))
    if "kind" in each and each["kind"] != "Kustomization"
}
PODS = {
    "Deployment": lambda each: each["spec"]["template"]["spec"],
    "ServingRuntime": lambda each: each["spec"],
}
"""Kind -> what runs containers."""
PROBES = "startupProbe", "readinessProbe", "livenessProbe"


@cache
def schemas(version: str) -> dict[str, Any]:
    return json.loads((ROOT / "tests" / "schemas" / f"{version}.json").read_text("utf-8"))


def errors(manifest: dict[str, Any]) -> list[str]:
    """What the schemas say against a manifest; at least one of them must know its kind."""
    known = [schemas(v) for v in VERSIONS if manifest["kind"] in schemas(v)["kinds"]]
    assert known, manifest["kind"]
    found = []
    for each in known:
        schema = {"$ref": f"#/definitions/{each['kinds'][manifest['kind']]}", "definitions": each["definitions"]}
        found += [f"{e.json_path}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(manifest)]
    return found


def container(kind: str) -> dict[str, Any]:
    """The one container of the manifest of that kind."""
    (manifest,) = [each for each in MANIFESTS.values() if each["kind"] == kind]
    (found,) = PODS[kind](manifest)["containers"]
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_of_the_published_schema(name):
    assert errors(MANIFESTS[name]) == []


@pytest.mark.parametrize("block", list(blocks("docs/SERVING.md", "yaml")), ids=lambda b: b.text.split()[-1])
def test_manifests_of_the_documents_are_too(block):
    assert errors(yaml.safe_load(block.text)) == []


def test_schemas_refuse_what_is_wrong():
    for kind in PODS:
        (right,) = [each for each in MANIFESTS.values() if each["kind"] == kind]
        for change in ({"readynessProbe": {}}, {"args": "serve"}, {"ports": [{"containerPort": "many"}]}):
            wrong = copy.deepcopy(right)
            PODS[kind](wrong)["containers"][0].update(change)
            assert errors(wrong), (kind, change)
    service = copy.deepcopy(next(each for each in MANIFESTS.values() if each["kind"] == "InferenceService"))
    service["spec"]["predictor"]["model"]["storageURI"] = "s3://bucket"
    assert errors(service) == [
        "$.spec.predictor.model: Additional properties are not allowed ('storageURI' was unexpected)"
    ]


@pytest.mark.parametrize("name", KUSTOMIZED)
def test_kustomizations_name_what_is_there(name):
    folder = DEPLOY / name
    found = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    generated = [file for each in found.get("configMapGenerator", ()) for file in each["files"]]
    for path in (*found["resources"], *generated, *found.get("configurations", ())):
        assert (folder / path).exists(), path
    for image in found.get("images", ()):
        assert image["newTag"] == __version__
        used = {c["image"] for kind in PODS for c in [container(kind)]}
        assert used == {image["name"]}
    assert (DEPLOY / "kubernetes" / "models" / "digit.onnx").read_bytes() == (
        EXAMPLES / "web" / "digit.onnx"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl builds the kustomizations")
@pytest.mark.parametrize("name", KUSTOMIZED)
def test_kubectl_builds_them(name):
    done = subprocess.run(["kubectl", "kustomize", DEPLOY / name], capture_output=True, text=True, check=True)
    built = {each["kind"]: each for each in objects(done.stdout)}
    assert all(errors(each) == [] for each in built.values())
    (kind,) = set(PODS) & set(built)
    assert PODS[kind](built[kind])["containers"][0]["image"] == f"subcompress-serve:{__version__}"
    if name == "kubernetes":
        assert list(built["ConfigMap"]["binaryData"]) == ["digit.onnx"]
    if name == "kubernetes-volume":
        assert set(built) == {"Deployment", "PersistentVolumeClaim", "Service"}
        assert PODS[kind](built[kind])["volumes"][0]["persistentVolumeClaim"]["claimName"] == "subcompress-models"


def test_what_manifests_name_is_in_each_other():
    by_kind = {each["kind"]: each for each in MANIFESTS.values()}
    deployment, service = by_kind["Deployment"]["spec"], by_kind["Service"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == service["selector"]
    assert service["ports"][0]["targetPort"] in [port["name"] for port in container("Deployment")["ports"]]
    runtime, model = by_kind["ServingRuntime"], by_kind["InferenceService"]["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [each["name"] for each in runtime["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    for kind, pod in PODS.items():
        mounted = {mount["name"] for mount in container(kind)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod(by_kind[kind])["volumes"]}


@pytest.mark.parametrize("kind", PODS)
def test_the_command_of_a_container_is_one_of_ours(kind):
    found = container(kind)
    command, *arguments = found["args"]
    assert command == "serve"
    options = main.get_command(None, command).make_context(command, list(arguments)).params
    assert options["host"] == "0.0.0.0"
    ports = {port["containerPort"] for port in found["ports"]}
    assert ports == {options["port"]}
    for probe in PROBES:
        assert found[probe]["httpGet"]["port"] in {*ports, found["ports"][0].get("name")}
    limit = int(found["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    assert options["memory"] <= limit / 2  # the models; the program itself takes a hundred megabytes


@pytest.mark.parametrize("kind", PODS)
def test_a_container_may_do_little(kind):
    found = container(kind)["securityContext"]
    assert found["readOnlyRootFilesystem"] and not found["allowPrivilegeEscalation"]
    assert found["capabilities"]["drop"] == ["ALL"]
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text("utf-8")
    (manifest,) = [each for each in MANIFESTS.values() if each["kind"] == kind]
    user = found | PODS[kind](manifest).get("securityContext", {})
    assert user["runAsNonRoot"] and user["runAsUser"] == 10001


@pytest.fixture(scope="module")
def mounted(tmp_path_factory) -> Path:
    """A folder as Kubernetes mounts a ConfigMap: links to a link to a folder that it replaces at once."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "..2026_11_30").mkdir()
    shutil.copy(DEPLOY / "kubernetes" / "models" / "digit.onnx", folder / "..2026_11_30")
    (folder / "..data").symlink_to("..2026_11_30")
    (folder / "digit.onnx").symlink_to("..data/digit.onnx")
    return folder


def test_a_mounted_config_map_holds_the_models(mounted):
    found, wrong = find_models([str(mounted)])
    assert wrong == [] and [(each.name, each.wrong) for each in found.values()] == [("digit", "")]
    newer = mounted / "..2026_12_01"
    newer.mkdir()
    (newer / "digit.onnx").write_bytes((mounted / "digit.onnx").read_bytes())
    (mounted / "..next").symlink_to(newer.name)
    (mounted / "..next").rename(mounted / "..data")
    assert find_models([str(mounted)])[0]["digit"].signature != found["digit"].signature


@pytest.mark.parametrize("kind", PODS)
def test_the_probes_wait_for_the_models_and_need_no_token(kind, mounted, monkeypatch):
    may_run = threading.Event()
    monkeypatch.setattr(Trials, "__call__", lambda self, paths: [""] * len(paths) if may_run.wait(30) else [])
    with serving(mounted, trace=lambda jobs: [], token="a secret of ours") as client:
        asked = [container(kind)[name]["httpGet"]["path"] for name in PROBES]
        try:
            assert [client("GET", path).status for path in asked] == [200, 503, 200]
        finally:
            may_run.set()
        client.wait_until_ready()
        assert [client("GET", path).status for path in asked] == [200, 200, 200]
        assert [model.ready for model in client.running.models] == [True]
