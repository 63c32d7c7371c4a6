import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle, c_api, contents, saved_model, verification, warmup


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A version folder that a test may spoil."""
    return shutil.copytree(tiny_bundle / "1", tmp_path / "exported" / "1")


@pytest.fixture
def c_api_alone(monkeypatch):
    """Leave out the runtime that takes seconds to start."""
    monkeypatch.setattr(verification, "_RUNTIMES", {"C API": "c_api.py"})


def change_first(copy, change):
    """Change the first example request of a bundle."""
    path = copy / "assets.extra" / "examples.json"
    content = json.loads(path.read_text("utf-8"))
    change(content[0])
    path.write_text(json.dumps(content))


def restate(copy):
    """State a spoilt bundle's files as they are now, so that only deeper checks can notice."""
    path = copy / "assets.extra" / bundle.BUNDLE_FILE
    content = json.loads(path.read_text("utf-8"))
    path.unlink()
    content["files"] = contents.identities(copy)
    path.write_text(json.dumps(content))


def change_graph(copy, change):
    """Change the graph of a bundle."""
    file = copy / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(saved.meta_graphs[0])
    file.write_bytes(saved.SerializeToString())


def write_records(copy, change):
    """Replace the warm-up file's records by what `change` makes of them."""
    logs = change(list(warmup.read(copy / warmup.FILE)))
    with tf.io.TFRecordWriter(str(copy / warmup.FILE)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def test_a_bundle_stands_alone_in_both_runtimes(tiny_bundle):
    found = verification.verify(tiny_bundle, "2.20")
    lines = found.splitlines()
    signatures = saved_model.signatures(saved_model.read(tiny_bundle / "1"))
    for runtime in verification._RUNTIMES:
        for signature in signatures:
            (row,) = (line for line in lines if line.startswith(runtime) and f" {signature} " in line)
            assert row.endswith(" from the trainer's; texts 0, 1, 7; tokens 8, 16, 32")
    for signature in signatures:
        assert any(line.split()[-4:] == [signature, "6", "all", "answered"] for line in lines)
    assert any(line.endswith("has them from 2.16 on, 2.20 too") for line in lines)
    assert any("tensorflow_text's: FastWordpieceTokenizeWithOffsets" in line for line in lines)
    assert found.endswith(f"{tiny_bundle / '1'} stands alone")


def test_changed_weights_are_noticed(copy, c_api_alone):
    (data,) = (copy / "variables").glob("*.data-*")
    content = np.fromfile(data, "uint8")
    content[: len(content) // 2] ^= 0x80
    content.tofile(data)
    with pytest.raises(UserError, match="variables.data-.*isn't as it was exported; copy the version again"):
        verification.verify(copy.parent)
    restate(copy)
    with pytest.raises(UserError, match="exported/1: C API: .*Checksum does not match"):
        verification.verify(copy.parent)


def test_an_answer_that_differs_is_refused_with_runtime_and_signature(copy, c_api_alone):
    def change(request):
        score = c_api.decode_tensor(request["outputs"]["score"])
        request["outputs"]["score"] = c_api.encode_tensor(score + np.float32(1e-3))

    change_first(copy, change)
    restate(copy)
    with pytest.raises(
        UserError, match="C API, signature serving_default differs from the trainer by 1.0e-03"
    ):
        verification.verify(copy)


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index", "assets.extra/vocab.txt"])
def test_a_cut_file_is_refused(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name}: has .* of .* bytes; copy the version again"):
        verification.verify(copy)


def test_missing_files_links_and_strangers_are_refused(copy, tmp_path):
    index = copy / "variables" / "variables.index"
    index.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="variables.index: is missing; copy the version again"):
        verification.verify(copy)
    index.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="variables.index: is a link, which breaks elsewhere; copy .* cp -L"):
        verification.verify(copy)
    index.unlink()
    (tmp_path / "elsewhere").rename(index)
    (copy / ".variables.index.x.tmp").touch()
    with pytest.raises(UserError, match="x.tmp: wasn't exported; remove it, or copy the version again"):
        verification.verify(copy)


def test_signatures_that_are_not_as_stated_are_refused_by_name(copy):
    def rename_method(graph):
        graph.signature_def["serving_default"].method_name = "tensorflow/serving/classify"

    def drop(graph):
        del graph.signature_def["token_ids"]

    def rename_output(graph):
        signature = graph.signature_def["serving_default"]
        signature.outputs["other"].CopyFrom(signature.outputs.pop("label"))

    whole = (copy / "saved_model.pb").read_bytes()
    for change, message in (
        (rename_method, "signature serving_default has method_name 'tensorflow/serving/classify', stated is"),
        (drop, "signature token_ids is stated, but not there; export it again"),
        (rename_output, "signature serving_default has outputs .*'other'.*, stated is"),
    ):
        (copy / "saved_model.pb").write_bytes(whole)
        change_graph(copy, change)
        restate(copy)
        with pytest.raises(UserError, match=f"1/saved_model.pb: {message}"):
            verification.verify(copy)


def test_operations_that_the_stated_server_lacks_are_refused(copy):
    def add(graph):
        graph.graph_def.library.function[0].node_def.add(name="new", op="TFText>Utf8Binarize")

    change_graph(copy, add)
    restate(copy)
    with pytest.raises(
        UserError,
        match="saved_model.pb: a stock model server 2.19 lacks TFText>Utf8Binarize; use 2.20 or later",
    ):
        verification.verify(copy, "2.19")


def test_batching_parameters_may_be_tuned_but_have_to_be_ones(copy):
    (copy / "batching_params.pbtxt").write_text("max_batch_size { value: 0 }")
    with pytest.raises(UserError, match="batching_params.pbtxt: max_batch_size is 0"):
        verification.verify(copy)


def test_warm_up_files_are_refused_with_record_and_signature(copy):
    def of_nobody(logs):
        logs[0].predict_log.request.model_spec.signature_name = "nobody"
        return logs

    def of_another_method(logs):
        request = logs[1].predict_log.request
        name = request.model_spec.signature_name
        logs[1].classify_log.request.model_spec.signature_name = name
        return logs

    def without_a_kind(logs):
        logs[2].Clear()
        return logs

    whole = (copy / warmup.FILE).read_bytes()
    for change, message in (
        (lambda logs: [], "isn't of TFRecords of PredictionLog"),
        (lambda logs: logs[:1], "has no request for signature .*; export it again"),
        (of_nobody, "record 0: signature nobody isn't there; export it again"),
        (of_another_method, "record 1: signature .* has the method .*, the request '.*classify'"),
        (without_a_kind, "record 2 is none that a server replays; export it again"),
    ):
        (copy / warmup.FILE).write_bytes(whole)
        write_records(copy, change)
        restate(copy)
        with pytest.raises(UserError, match=f"tf_serving_warmup_requests: {message}"):
            verification.verify(copy)


def test_a_warm_up_request_without_an_answer_is_refused(copy, c_api_alone):
    def of_a_wrong_rank(logs):
        for place, log in enumerate(logs):
            text = log.predict_log.request.inputs.get("text")
            if text is not None:
                text.tensor_shape.dim.add(size=1)
                return [*logs[:place], *logs[place + 1 :], log]

    write_records(copy, of_a_wrong_rank)
    restate(copy)
    count = len(list(warmup.read(copy / warmup.FILE)))
    with pytest.raises(
        UserError,
        match=rf"requests: record {count - 1}: signature .*: .*expected string of rank 1, got shape \[1,1\]",
    ):
        verification.verify(copy)


def test_an_unknown_format_is_refused_with_what_to_do(copy):
    path = copy / "assets.extra" / bundle.BUNDLE_FILE
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | {"format_version": 7}))
    with pytest.raises(
        UserError, match="has format 7, this version knows 1; verify it with the version that"
    ):
        verification.verify(copy)
    del content["signatures"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="json: states no signatures; export it again"):
        verification.verify(copy)


def test_a_folder_without_bundle_or_examples_is_refused(copy, tmp_path):
    with pytest.raises(UserError, match="has no version folder; `run.py export` writes one"):
        verification.verify(tmp_path)
    examples = copy / "assets.extra" / "examples.json"
    requests = json.loads(examples.read_text("utf-8"))
    examples.write_text(json.dumps([one for one in requests if one["signature"] != "token_ids"]))
    restate(copy)
    with pytest.raises(UserError, match="examples.json: has no request for signature token_ids"):
        verification.verify(copy)
    examples.unlink()
    restate(copy)
    with pytest.raises(UserError, match="has no example requests; export it again"):
        verification.verify(copy)


def test_an_answer_with_other_rows_is_refused():
    request = {"signature": "s", "inputs": {"x": {"shape": [2, 3]}}}
    verification.check_answer("f: record 0", request, {"outputs": {"y": {"shape": [2]}}})
    for shape in ([], [1], [3, 2]):
        with pytest.raises(UserError, match=r"f: record 0: signature s: y has shape .* for 2 rows"):
            verification.check_answer("f: record 0", request, {"outputs": {"y": {"shape": shape}}})


REQUEST = {"signature": "s", "outputs": {"x": c_api.encode_tensor(np.array([1.0, np.nan], "float32"))}}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": "no such op"}, "C, signature s: no such op"),
        ({"outputs": {}}, r"gives \[\], the trainer \['x'\]"),
        ({"outputs": {"x": c_api.encode_tensor(np.array([1.0], "float32"))}}, r"x is float32 \(1,\)"),
        (
            {"outputs": {"x": c_api.encode_tensor(np.array([1.0, np.nan], "float32"))}},
            "differs from the trainer by nan",
        ),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path, answer, message):
    with pytest.raises(UserError, match=message):
        verification.compare(tmp_path, "C", REQUEST, answer)
