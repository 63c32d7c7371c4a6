"""The messages of TensorFlow Serving's gRPC API that the client uses, without importing TensorFlow.

`tensorflow_serving.apis` imports all of TensorFlow, which takes seconds. Here the messages are declared
with the fields the client reads and writes, by number, as `tensorflow_serving/apis/*.proto` and
`tensorflow/core/{framework,protobuf}/*.proto` have them; other fields are skipped when parsing. Enums are
plain integers, which is the same on the wire. A test holds every line against the installed originals.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# message: "field:type=number ...", `type*` for repeated, `{type}` for a map from string.
MESSAGES = {
    "Dim": "size:int64=1",
    "TensorShapeProto": "dim:Dim*=2 unknown_rank:bool=3",
    "TensorProto": "dtype:int32=1 tensor_shape:TensorShapeProto=2 tensor_content:bytes=4 half_val:int32*=13 "
    "float_val:float*=5 double_val:double*=6 int_val:int32*=7 string_val:bytes*=8 "
    "int64_val:int64*=10 bool_val:bool*=11 uint32_val:uint32*=16 uint64_val:uint64*=17",
    "Int64Value": "value:int64=1",
    "ModelSpec": "name:string=1 version:Int64Value=2 signature_name:string=3 version_label:string=4",
    "PredictRequest": "model_spec:ModelSpec=1 inputs:{TensorProto}=2 output_filter:string*=3",
    "PredictResponse": "outputs:{TensorProto}=1 model_spec:ModelSpec=2",
    "Any": "type_url:string=1 value:bytes=2",
    "TensorInfo": "name:string=1 dtype:int32=2 tensor_shape:TensorShapeProto=3",
    "SignatureDef": "inputs:{TensorInfo}=1 outputs:{TensorInfo}=2 method_name:string=3",
    "SignatureDefMap": "signature_def:{SignatureDef}=1",
    "GetModelMetadataRequest": "model_spec:ModelSpec=1 metadata_field:string*=2",
    "GetModelMetadataResponse": "model_spec:ModelSpec=1 metadata:{Any}=2",
    "StatusProto": "error_code:int32=1 error_message:string=2",
    "ModelVersionStatus": "version:int64=1 state:int32=2 status:StatusProto=3",
    "GetModelStatusRequest": "model_spec:ModelSpec=1",
    "GetModelStatusResponse": "model_version_status:ModelVersionStatus*=1",
    "BytesList": "value:bytes*=1",
    "FloatList": "value:float*=1",
    "Int64List": "value:int64*=1",
    "Feature": "bytes_list:BytesList=1 float_list:FloatList=2 int64_list:Int64List=3",
    "Features": "feature:{Feature}=1",
    "Example": "features:Features=1",
    "ExampleList": "examples:Example*=1",
    "Input": "example_list:ExampleList=1",
    "Class": "label:string=1 score:float=2",
    "Classifications": "classes:Class*=1",
    "ClassificationResult": "classifications:Classifications*=1",
    "ClassificationRequest": "model_spec:ModelSpec=1 input:Input=2",
    "ClassificationResponse": "result:ClassificationResult=1 model_spec:ModelSpec=2",
    "Regression": "value:float=1",
    "RegressionResult": "regressions:Regression*=1",
    "RegressionRequest": "model_spec:ModelSpec=1 input:Input=2",
    "RegressionResponse": "result:RegressionResult=1 model_spec:ModelSpec=2",
}
# `DataType` of types.proto, by number, as NumPy names it.
DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
# `ModelVersionStatus.State`.
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}

_PACKAGE = "serving.client"  # of no consequence on the wire; keeps clear of the real names


def _add_field(message, declaration):
    name, rest = declaration.split(":")
    kind, number = rest.rsplit("=", 1)
    field = message.field.add(name=name, number=int(number))
    is_map = kind.startswith("{")
    field.label = field.LABEL_REPEATED if is_map or kind.endswith("*") else field.LABEL_OPTIONAL
    kind = kind.strip("{}*")
    if is_map:
        entry = message.nested_type.add(name="".join(map(str.title, name.split("_"))) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "key:string=1")
        _add_field(entry, f"value:{kind}=2")
        kind = f"{message.name}.{entry.name}"
    if kind in MESSAGES or is_map:
        field.type = field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")


def _build():
    file = descriptor_pb2.FileDescriptorProto(name="serving/client.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for declaration in fields.split():
            _add_field(message, declaration)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in MESSAGES
    }


CLASSES = _build()
