"""The operations that a SavedModel uses, and the oldest stock TensorFlow Serving that has them all.

A server N links the operations of TensorFlow N and of tensorflow_text: 2.12.1 from 2.12 to 2.19, 2.20.0
from 2.20 on (`org_tensorflow_text` in tensorflow_serving/workspace.bzl of the tags 2.16.1 to 2.20.0; for
2.21, which has no tag there, the main branch of July 2026). The tables hold what came in later than 2.16 to
the operations of TensorFlow 2.21 and tensorflow_text 2.21.1: what TF_GetAllOpList lists with the libraries of
TensorFlow 2.16.2, 2.17.1, 2.18.1, 2.19.1, 2.20.0 and 2.21.0, and once tensorflow_text's of 2.12.1 and 2.20.0
are loaded.

They tell whether a graph can be loaded: operations by name and attribute. They don't tell whether there is a
kernel for each dtype and device, or whether it computes the same. A small classifier, exported without
options with TensorFlow 2.21, loaded in TensorFlow 2.20.0, 2.18.1 and 2.12.1 with the tensorflow_text of the
same version, through the C API, and all its signatures gave the trainer's answers to within 1e-7.
"""

import re
from collections.abc import Iterable, Mapping

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import op_def_registry

from keras_bert_app.errors import UserError

SERVER_VERSIONS = ("2.16", "2.17", "2.18", "2.19", "2.20", "2.21")

TEXT_OPERATIONS = {
    "CaseFoldUTF8", "ConstrainedSequence", "FastBertNormalize", "FastWordpieceTokenizeWithOffsets",
    "FindSourceOffsets", "MaxSpanningTree", "NormalizeUTF8", "NormalizeUTF8WithOffsetsMap",
    "PhraseTokenize", "RegexSplitWithOffsets", "RougeL", "SentenceFragments", "SentenceFragmentsV2",
    "SentencepieceDetokenizeOp", "SentencepieceIdToStringOp", "SentencepieceOp",
    "SentencepieceStringToIdOp", "SentencepieceTokenizeOp", "SentencepieceTokenizeWithOffsetsOp",
    "SentencepieceVocabSizeOp", "SplitMergeTokenizeWithOffsets", "TFText>BoiseTagsToOffsets",
    "TFText>ByteSplitByOffsets", "TFText>ByteSplitWithOffsets", "TFText>FastSentencepieceDetokenize",
    "TFText>FastSentencepieceTokenize", "TFText>FastWordpieceDetokenize", "TFText>NgramsStringJoin",
    "TFText>OffsetsToBoiseTags", "TFText>PhraseDetokenize", "TFText>RoundRobinGenerateMasks",
    "TFText>RoundRobinTrim", "TFText>Utf8Binarize", "TFText>WhitespaceTokenizeWithOffsetsV2",
    "TokenizerFromLogits", "UnicodeScriptTokenizeWithOffsets", "WhitespaceTokenizeWithOffsets",
    "WordpieceTokenizeWithOffsets",
}  # fmt: skip

# Server version -> the operations, and operation.attribute, that it is the first to have.
_SINCE = {
    "2.17": """
        _QuantizedMatMul CalibrationStatisticsSaver ComputeDedupDataSizeV2 ComputeDedupDataTupleMaskV2
        ConvertToListOfSparseCoreCooTensors ConvertToSparseCoreCsrWrappedCooTensor FinalizeTPUEmbeddingV2
        GetStatsFromListOfSparseCoreCooTensors GetTpuTaskId GlobalShuffleDataset IndexFlatMapDataset
        IteratorGetModelProto SortListOfSparseCoreCooTensors UpdateTaskIdAndGlobalCoreArray
        WeightedFlatMapDataset BatchFunction.mixed_priority_policy CustomAggregator.num_bins
        GatherNd.bad_indices_policy
        """,
    "2.18": """
        CheckPinned BatchFunction.batch_padding_policy ExperimentalMapDataset.force_synchronous
        MapDataset.force_synchronous ParallelMapDatasetV2.use_unbounded_threadpool
        ResourceScatterNdAdd.bad_indices_policy ResourceScatterNdMax.bad_indices_policy
        ResourceScatterNdMin.bad_indices_policy ResourceScatterNdSub.bad_indices_policy
        ResourceScatterNdUpdate.bad_indices_policy ScatterNd.bad_indices_policy
        ScatterNdAdd.bad_indices_policy ScatterNdMax.bad_indices_policy ScatterNdMin.bad_indices_policy
        ScatterNdNonAliasingAdd.bad_indices_policy ScatterNdSub.bad_indices_policy
        ScatterNdUpdate.bad_indices_policy TensorScatterAdd.bad_indices_policy
        TensorScatterMax.bad_indices_policy TensorScatterMin.bad_indices_policy
        TensorScatterSub.bad_indices_policy TensorScatterUpdate.bad_indices_policy
        """,
    "2.20": "DecodeWebP TFText>RoundRobinGenerateMasks TFText>RoundRobinTrim TFText>Utf8Binarize",
    "2.21": "DecodeJxl TensorListGetItem.Tshape",
}
_FIRST_SERVER = {name: version for version, names in _SINCE.items() for name in names.split()}
# A stock server doesn't compile, has no TPU, and makes those with an underscore itself, but for some.
_NEVER = ("_", "Xla", "TPU")
# Builds for x86 have it, by its name in their libraries.
_OF_X86 = ("_QuantizedMatMul",)


def used(graph: meta_graph_pb2.MetaGraphDef) -> dict[str, set[str]]:
    """Operation -> the attributes it is given, of the graph and all functions of its library."""
    functions = graph.graph_def.library.function
    calls = {function.signature.name for function in functions}
    found: dict[str, set[str]] = {}
    for nodes in (graph.graph_def.node, *(function.node_def for function in functions)):
        for node in nodes:
            if node.op not in calls:
                attributes = (name for name in node.attr if not name.startswith("_"))
                found.setdefault(node.op, set()).update(attributes)
    return found


def of_text(operations: Iterable[str]) -> list[str]:
    """Those that are tensorflow_text's."""
    return sorted(TEXT_OPERATIONS & set(operations))


def lacking(operations: Mapping[str, Iterable[str]], server_version: str) -> list[str]:
    """The operations, and operation.attribute, of `used` that a server of SERVER_VERSIONS doesn't have.

    Among them are all that neither TensorFlow nor tensorflow_text has as they are installed here.
    """
    place = SERVER_VERSIONS.index(server_version)
    names = [*operations, *(f"{name}.{each}" for name in operations for each in operations[name])]
    return sorted(
        name
        for name in names
        if place < SERVER_VERSIONS.index(_FIRST_SERVER.get(name, SERVER_VERSIONS[0])) or _is_foreign(name)
    )


def _is_foreign(name: str) -> bool:
    operation = name.partition(".")[0]
    if operation in _OF_X86:
        return False
    known = operation in TEXT_OPERATIONS or op_def_registry.get(operation) is not None
    return not known or operation.startswith(_NEVER)


def minimum_server_version(graph: meta_graph_pb2.MetaGraphDef) -> str:
    """The oldest of SERVER_VERSIONS that has all operations; older ones aren't in the tables.

    Raises:
        UserError: none has them.
    """
    operations = used(graph)
    for version in SERVER_VERSIONS:
        if not lacking(operations, version):
            return version
    missing = ", ".join(lacking(operations, SERVER_VERSIONS[-1]))
    raise UserError(f"no stock model server has {missing}; export without what needs it")


def check(where: str, graph: meta_graph_pb2.MetaGraphDef, server_version: str) -> None:
    """Refuse a graph that a server of a version such as "2.19" or "2.19.1" can't load; `where` is its file.

    Raises:
        UserError: the server lacks operations, or the version isn't one of SERVER_VERSIONS.
    """
    match = re.fullmatch(r"(\d+\.\d+)(\.\d+)?", server_version)
    if not match or match[1] not in SERVER_VERSIONS:
        raise UserError(
            f"--server_version={server_version} isn't known here; give one of {', '.join(SERVER_VERSIONS)}"
        )
    if missing := lacking(used(graph), match[1]):
        raise UserError(
            f"{where}: a stock model server {server_version} lacks {', '.join(missing)}; "
            f"use {minimum_server_version(graph)} or later"
        )
