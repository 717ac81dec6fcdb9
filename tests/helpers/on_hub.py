"""What is pushed to the stand-in for the Hub, and how."""

from __future__ import annotations

from places import PACKED

FIRST, SECOND = PACKED / "mnist-98.safetensors", PACKED / "mnist-99.safetensors"


OURS = {"model.safetensors", "config.json", "README.md"}


def push(client, path, name, *options):
    done = client("push", path, name, "--onnx", "none", "--json", *options)
    assert done.exit_code == 0, done.stderr
    return done.json


def pack_on(client, folder, base, output, **options):
    code = f"""
import sys, torch, subcompress
sys.path.insert(0, {str(folder)!r})
import own
torch.manual_seed(5)
sub = subcompress.Subspace.of(own.net(), 12, base={base!r}, act_on="all", **{options!r})
with torch.no_grad():
    sub.z.normal_()
sub.round(4)
result = subcompress.pack(sub, {str(output)!r}, subcompress.Facts(input_shape=(8,)))
"""
    return client.python(code)
