"""The gRPC messages of the Open Inference Protocol and of those of Triton's extensions that the server answers.

They are built from the table below, so that no .proto file need be compiled. A test compares the names and numbers with
the published grpc_service.proto. They have a descriptor pool of their own, so that a client with messages of the same
names can be in the same process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

NAMED = "1 string name, 2 string version"
PARAMETERS = "map InferParameter parameters"
TENSOR = f"1 string name, 2 string datatype, 3 repeated int64 shape, 4 {PARAMETERS}, 5 InferTensorContents contents"

MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "1 bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "1 bool ready",
    "ModelReadyRequest": NAMED,
    "ModelReadyResponse": "1 bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "1 string name, 2 string version, 3 repeated string extensions",
    "ModelMetadataRequest": NAMED,
    "ModelMetadataResponse.TensorMetadata": "1 string name, 2 string datatype, 3 repeated int64 shape",
    "ModelMetadataResponse": "1 string name, 2 repeated string versions, 3 string platform, "
    "4 repeated ModelMetadataResponse.TensorMetadata inputs, 5 repeated ModelMetadataResponse.TensorMetadata outputs, "
    "6 map string properties",
    "InferParameter": "1 oneof bool bool_param, 2 oneof int64 int64_param, 3 oneof string string_param, "
    "4 oneof double double_param, 5 oneof uint64 uint64_param",
    "InferTensorContents": "1 repeated bool bool_contents, 2 repeated int32 int_contents, "
    "3 repeated int64 int64_contents, 4 repeated uint32 uint_contents, 5 repeated uint64 uint64_contents, "
    "6 repeated float fp32_contents, 7 repeated double fp64_contents, 8 repeated bytes bytes_contents",
    "ModelInferRequest.InferInputTensor": TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": f"1 string name, 2 {PARAMETERS}",
    "ModelInferRequest": f"1 string model_name, 2 string model_version, 3 string id, 4 {PARAMETERS}, "
    "5 repeated ModelInferRequest.InferInputTensor inputs, "
    "6 repeated ModelInferRequest.InferRequestedOutputTensor outputs, 7 repeated bytes raw_input_contents",
    "ModelInferResponse.InferOutputTensor": TENSOR,
    "ModelInferResponse": f"1 string model_name, 2 string model_version, 3 string id, 4 {PARAMETERS}, "
    "5 repeated ModelInferResponse.InferOutputTensor outputs, 6 repeated bytes raw_output_contents",
    "ModelInput": "1 string name, 2 enum DataType data_type, 4 repeated int64 dims",
    "ModelOutput": "1 string name, 2 enum DataType data_type, 3 repeated int64 dims",
    "ModelConfig": "1 string name, 4 int32 max_batch_size, 5 repeated ModelInput input, "
    "6 repeated ModelOutput output, 17 string backend",
    "ModelConfigRequest": NAMED,
    "ModelConfigResponse": "1 ModelConfig config",
    "StatisticDuration": "1 uint64 count, 2 uint64 ns",
    "InferStatistics": "1 StatisticDuration success, 2 StatisticDuration fail",
    "ModelStatistics": "1 string name, 2 string version, 4 uint64 inference_count, 5 uint64 execution_count, "
    "6 InferStatistics inference_stats",
    "ModelStatisticsRequest": NAMED,
    "ModelStatisticsResponse": "1 repeated ModelStatistics model_stats",
    "ModelRepositoryParameter": "1 oneof bool bool_param, 2 oneof int64 int64_param, 3 oneof string string_param, "
    "4 oneof bytes bytes_param",
    "RepositoryIndexRequest": "1 string repository_name, 2 bool ready",
    "RepositoryIndexResponse.ModelIndex": "1 string name, 2 string version, 3 string state, 4 string reason",
    "RepositoryIndexResponse": "1 repeated RepositoryIndexResponse.ModelIndex models",
    "RepositoryModelLoadRequest": "1 string repository_name, 2 string model_name, "
    "3 map ModelRepositoryParameter parameters",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "1 string repository_name, 2 string model_name, "
    "3 map ModelRepositoryParameter parameters",
    "RepositoryModelUnloadResponse": "",
}
"""Fields by message, each as NUMBER [repeated | map | enum | oneof] TYPE NAME. The keys of a map are strings."""

METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
    "ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip
"""The methods. METHOD takes the message METHODRequest and returns METHODResponse."""

DATATYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "STRING", "BF16",
)  # fmt: skip
"""TYPE_... of model_config.proto, by number."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATATYPES):
        types.value.add(name=f"TYPE_{name}", number=number)
    made: dict[str, Any] = {}
    for name in sorted(MESSAGES, key=lambda name: name.count(".")):  # what holds others comes before them
        outer, _, own = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=own)
    for name, fields in MESSAGES.items():
        for field in filter(None, fields.split(", ")):
            _add_field(made[name], f".{PACKAGE}.{name}", *field.split())
    return file


def _add_field(message: Any, path: str, number: str, *words: str) -> None:
    *kinds, kind, name = words
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if "repeated" in kinds or "map" in kinds:
        field.label = _Field.LABEL_REPEATED
    if "oneof" in kinds:
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if "map" in kinds:
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "1", "string", "key")
        _add_field(entry, "", "2", kind, "value")
        field.type, field.type_name = _Field.TYPE_MESSAGE, f"{path}.{entry.name}"
    elif kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if "enum" in kinds else _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


def _classes() -> dict[str, Any]:
    """The class of each message, by its name."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file().SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


CLASSES = _classes()
"""The class of each message, by its name in MESSAGES."""
