import json
import subprocess
import sys

import pytest
from tensorflow.core.protobuf import meta_graph_pb2

from keras_bert_app.errors import UserError
from keras_bert_app.export import operations, saved_model

# In a process of its own: here tensorflow_text is imported already.
LIST_TEXT_OPERATIONS = """
import json
from tensorflow.python.client import pywrap_tf_session
from tensorflow.core.framework import op_def_pb2
def listed():
    content = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    return {op.name for op in op_def_pb2.OpList.FromString(content).op}
before = listed()
import tensorflow_text
print(json.dumps(sorted(listed() - before)))
"""


def graph_of(*nodes, function=None):
    """A graph of operations, each a name or (name, attribute), and of a function of the library."""
    graph = meta_graph_pb2.MetaGraphDef()
    lists = [graph.graph_def.node]
    if function:
        nodes = (*nodes, "f")
        graph.graph_def.library.function.add().signature.name = "f"
        lists.append(graph.graph_def.library.function[0].node_def)
    for names, target in zip((nodes, function or ()), lists, strict=False):
        for name in names:
            name, attribute = name if isinstance(name, tuple) else (name, "T")
            target.add(op=name).attr[attribute].i = 1
    return graph


def test_the_operations_of_the_table_are_those_that_importing_tensorflow_text_brings():
    done = subprocess.run([sys.executable, "-c", LIST_TEXT_OPERATIONS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == operations.TEXT_OPERATIONS


def test_operations_of_functions_count_and_calls_of_functions_do_not():
    found = operations.used(graph_of("MatMul", function=["Erfc", ("Erfc", "x"), ("Erfc", "_hidden")]))
    assert found == {"MatMul": {"T"}, "Erfc": {"T", "x"}}


def test_a_bundle_needs_one_operation_of_tensorflow_text_and_no_new_server(tiny_bundle):
    graph = saved_model.read(tiny_bundle / "1")
    found = operations.used(graph)
    assert operations.of_text(found) == ["FastWordpieceTokenizeWithOffsets"]
    assert {"BatchMatMulV2", "Erfc", "VarHandleOp"} <= found.keys()
    assert not any("inference" in name for name in found)
    assert operations.minimum_server_version(graph) == "2.16"


@pytest.mark.parametrize(
    ("node", "version"),
    [
        ("NormalizeUTF8", "2.16"),
        (("GatherNd", "bad_indices_policy"), "2.17"),
        ("CheckPinned", "2.18"),
        ("TFText>RoundRobinTrim", "2.20"),
        ("DecodeJxl", "2.21"),
    ],
)
def test_the_oldest_server_is_the_one_that_has_all_operations(node, version):
    assert operations.minimum_server_version(graph_of("MatMul", function=[node])) == version


def test_a_server_that_is_too_old_is_refused_with_what_it_lacks():
    graph = graph_of("TFText>RoundRobinTrim", function=["TFText>Utf8Binarize", "MatMul"])
    with pytest.raises(
        UserError,
        match="here: a stock model server 2.19.1 lacks TFText>RoundRobinTrim, TFText>Utf8Binarize; "
        "use 2.20 or later",
    ):
        operations.check("here", graph, "2.19.1")
    operations.check("here", graph, "2.20")


@pytest.mark.parametrize("name", ["OfNobody", "XlaLaunch", "_Retval"])
def test_what_no_stock_server_runs_is_refused_for_all(name):
    with pytest.raises(UserError, match=f"no stock model server has {name}"):
        operations.minimum_server_version(graph_of(name))


@pytest.mark.parametrize("version", ["2.15", "3", "", "2.190", "latest"])
def test_a_version_that_is_not_in_the_tables_is_refused(version):
    with pytest.raises(UserError, match="give one of 2.16, 2.17, 2.18, 2.19, 2.20, 2.21"):
        operations.check("here", graph_of("MatMul"), version)
