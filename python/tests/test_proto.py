"""The committed code says what `proto/` says."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from jupyterhub_holdfast._proto import cluster_pb2, cluster_pb2_grpc, routes_pb2, routes_pb2_grpc

PROTO_DIR = Path(__file__).resolve().parents[2] / "proto"
MODULES = {"routes": (routes_pb2, routes_pb2_grpc), "cluster": (cluster_pb2, cluster_pb2_grpc)}


@pytest.mark.parametrize("name", MODULES)
def test_generated_code_is_up_to_date(name, tmp_path):
    """Compares descriptors, not text, so that any version of the generator may judge what the pinned one wrote."""
    output = tmp_path / "descriptors"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PROTO_DIR}",
            f"--descriptor_set_out={output}",
            f"{name}.proto",
        ],
        check=True,
    )
    [expected] = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    messages, services = MODULES[name]
    messages.DESCRIPTOR.CopyToProto(committed)

    assert committed.name == f"holdfast/v1/{name}.proto"
    committed.name = expected.name
    for file in (expected, committed):
        forget_json_names(file.message_type)
    assert committed == expected, "run `python generate_proto.py`"

    for service in expected.service:
        servicer = getattr(services, f"{service.name}Servicer")
        for method in service.method:
            assert hasattr(servicer, method.name), "run `python generate_proto.py`"


def forget_json_names(messages):
    """They follow from the names, and only some versions of protoc write them out."""
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        forget_json_names(message.nested_type)
