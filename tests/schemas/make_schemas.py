"""Write tests/schemas/*.json, which manifests in deploy/ are checked against: `make_schemas.py FOLDER`.

FOLDER holds what two packages of PyPI have in them, both under the Apache License 2.0, unpacked:

    pip download --no-deps -d FOLDER kubernetes-validate==1.37.0 kserve==0.21.0
    for wheel in FOLDER/*.whl; do unzip -q $wheel -d FOLDER; done

kubernetes-validate carries the schemas that Kubernetes publishes; of its strict ones, those definitions are kept that
our kinds need, without descriptions. KServe publishes its schemas as classes of its Python client, which its generator
has made from the same source as the definitions in a cluster; they are read, not imported, and refer to Kubernetes'.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSIONS = "1.30.0", "1.37.0"
"""Of Kubernetes: the oldest and the newest that the manifests are for."""

KINDS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
}

KSERVE = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}

PLAIN = {"str": "string", "bool": "boolean", "int": "integer", "float": "number", "datetime": "string"}
"""Types of the generated classes."""

WHERE = {"V1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
"""Classes of Kubernetes that are not in its core."""

Schema = dict[str, Any]


def references(schema: Any) -> Iterator[str]:
    """Yield the names of the definitions that a schema refers to."""
    if isinstance(schema, dict):
        if isinstance(where := schema.get("$ref"), str):
            yield where.rpartition("/")[2]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def trimmed(schema: Any) -> Any:
    """A schema without what is for people, and with references within one file."""
    if isinstance(schema, list):
        return [trimmed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: trimmed(v) for k, v in schema.items() if k != "description" or not isinstance(v, str)}
    kept = {k: v for k, v in kept.items() if not k.startswith("x-kubernetes-") and k != "$schema"}
    if isinstance(where := kept.get("$ref"), str):
        kept["$ref"] = f"#/definitions/{where.rpartition('/')[2]}"
    return kept


def needed(definitions: dict[str, Schema], names: set[str]) -> dict[str, Schema]:
    """The definitions of these names and all that they refer to."""
    kept: dict[str, Schema] = {}
    todo = set(names)
    while todo:
        name = todo.pop()
        kept[name] = trimmed(definitions[name])
        todo |= set(references(kept[name])) - set(kept)
    return dict(sorted(kept.items()))


def kserve_definitions(folder: Path) -> dict[str, Schema]:
    """The schemas of KServe's classes, by class."""
    found: dict[str, Schema] = {}
    for path in sorted(folder.glob("v1*.py")):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found[node.name] = _class_schema(node, set(re.findall(r"Invalid value for `(\w+)`, must not", text)))
    return found


def _class_schema(node: ast.ClassDef, required: set[str]) -> Schema:
    values = {
        target.id: ast.literal_eval(item.value)
        for item in node.body
        if isinstance(item, ast.Assign)
        for target in item.targets
        if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
    }
    names = values.get("attribute_map", {})
    properties = {names[k]: _type_schema(kind) for k, kind in values.get("openapi_types", {}).items()}
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if wanted := sorted(names[each] for each in required & set(names)):
        schema["required"] = wanted
    return schema


def _type_schema(kind: str) -> Schema:
    """The schema of a type as the generated classes write it."""
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _type_schema(found[1])}
    if found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _type_schema(found[1])}
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    return {} if kind == "object" else {"$ref": f"#/definitions/{kind}"}


def joined(kserve: dict[str, Schema], kubernetes: dict[str, Schema]) -> dict[str, Schema]:
    """KServe's definitions with those of Kubernetes, which have the names that KServe's refer to them by."""
    found = {**kubernetes, **kserve}
    for name in {name for schema in kserve.values() for name in references(schema)} - set(kserve):
        place = WHERE.get(name, f"io.k8s.api.core.v1.{name.removeprefix('V1')}")
        found[name] = {"$ref": f"#/definitions/{place}"} if place in kubernetes else {}  # such as times in a status
    return found


def write(path: Path, source: str, kinds: dict[str, str], definitions: dict[str, Schema]) -> None:
    """Write the schemas of these kinds."""
    kept = needed(definitions, set(kinds.values()))
    text = json.dumps({"source": source, "kinds": kinds, "definitions": kept}, separators=(",", ":"))
    path.write_text(text.replace('},"', '},\n"') + "\n", "utf-8")
    print(f"{path.name}: {len(kept)} definitions, {path.stat().st_size} bytes")


def main(folder: Path) -> None:
    """Write all of them."""
    output = Path(__file__).parent
    published = folder / "kubernetes_validate" / "kubernetes-json-schema"
    read = {
        v: json.loads((published / f"v{v}-local-strict" / "_definitions.json").read_text("utf-8")) for v in VERSIONS
    }
    for version, text in read.items():
        source = f"kubernetes-validate 1.37.0, PyPI: the strict schemas of Kubernetes {version}, Apache-2.0; trimmed"
        write(output / f"kubernetes-{version}.json", source, KINDS, text["$defs"])
    definitions = joined(kserve_definitions(folder / "kserve" / "models"), read[VERSIONS[-1]]["$defs"])
    source = f"kserve 0.21.0, PyPI: its classes, with Kubernetes {VERSIONS[-1]} as above, Apache-2.0; trimmed"
    write(output / "kserve-0.21.0.json", source, KSERVE, definitions)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
