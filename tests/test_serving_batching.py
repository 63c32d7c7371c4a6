import concurrent.futures

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving import batching
from serving.config import StartError
from serving.servable import Servable
from serving.server import serve
from serving.status import RequestError
from tests.conformance import ask, classify, example, predict, texts, write_examples, write_models

PARAMETERS = batching.Parameters(max_batch_size=64, batch_timeout_micros=100_000, num_batch_threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that says how many texts it is computed with."""
    folder = tmp_path_factory.mktemp("rows")
    module = tf.Module()
    module.offset = tf.Variable(0)
    module.rows = tf.function(
        lambda text: {
            "rows": tf.fill([tf.size(text)], tf.size(text)) + module.offset,
            "same": tf.strings.join([text]),
        },
        [tf.TensorSpec([None], tf.string, name="text")],
    )
    tf.saved_model.save(module, str(folder / "1"), {"serving_default": module.rows})
    return folder


def run(servable, values, fetches=("rows", "same")):
    signature = servable.signatures["serving_default"]
    array = np.array(values, object)
    feeds = {signature.inputs["text"].name: (tf.string, array)}
    results = servable.run(feeds, [signature.outputs[name].name for name in fetches])
    return [result.tolist() for result in results]


def test_requests_that_come_together_are_computed_together_and_get_their_own_rows(folder):
    servable = Servable("rows", 1, str(folder / "1"), PARAMETERS)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: run(servable, [b"%d" % number] * 2), range(16)))
    assert [same for _, same in answers] == [[b"%d" % number] * 2 for number in range(16)]
    assert max(rows[0] for rows, _ in answers) > 2
    # some outputs alone
    assert run(servable, [b"a"], ["same"]) == [[b"a"]]
    servable.close()


def test_a_request_of_no_rows_and_one_that_is_too_large(folder):
    servable = Servable("rows", 1, str(folder / "1"), PARAMETERS)
    assert run(servable, []) == [[], []]
    with pytest.raises(RequestError, match="Task size 65 is larger than maximum input batch size 64"):
        run(servable, [b"a"] * 65)
    assert run(servable, [b"a"] * 64)[0] == [64] * 64
    servable.close()
    split = batching.Parameters(
        max_batch_size=200, enable_large_batch_splitting=True, max_execution_batch_size=64
    )
    servable = Servable("rows", 1, str(folder / "1"), split)
    assert sorted(run(servable, [b"a"] * 150)[0]) == [22] * 22 + [64] * 128
    servable.close()


def test_signatures_are_answered_through_the_batcher_as_without_it(tmp_path):
    config = write_models(tmp_path)
    requests = [
        predict({"text": texts(b"a", b"bb")}),
        predict({"text": texts(b"a"), "text_pair": texts(b"b")}, signature_name="pair"),
        predict({"text": texts(b"a")}, ["score"], version_label="stable"),
        classify([example(x=[1.0, 2.0]), example(x=[2.0, 1.0])]),
        classify([example(x=[1])]),
    ]
    answers = []
    for options in ({}, {"enable_batching": True}):
        with (
            serve(model_config_file=config, port=0, **options) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            answers.append([ask(channel, request) for request in requests])
    # TensorFlow puts the name of the function that failed before the reason
    answers[1][-1]["message"] = answers[1][-1]["message"].split("}} ")[-1]
    assert answers[0] == answers[1]


def test_the_parameters_of_a_version_are_in_its_folder(tmp_path):
    write_examples(tmp_path / "1")
    (tmp_path / "1" / batching.FILE).write_text("max_batch_size { value: 1 }")
    options = {"enable_batching": True, "enable_per_model_batching_parameters": True}
    with (
        serve("examples", tmp_path, port=0, **options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert ask(channel, classify([example(x=[1.0, 2.0])]))["code"] == "OK"
        answer = ask(channel, classify([example(x=[1.0, 2.0])] * 2))
        assert "Task size 2 is larger" in answer["message"]
    (tmp_path / "1" / batching.FILE).write_text("max_batch_size: 1")
    with pytest.raises(StartError, match="does not load: .*is no BatchingParameters"):
        serve("examples", tmp_path, port=0, **options)


def test_a_parameters_file_is_read_as_the_stock_server_reads_it(tmp_path):
    path = tmp_path / "batching.pbtxt"
    path.write_text(
        'max_batch_size { value: 32 } batch_timeout_micros { value: 1000 } thread_pool_name { value: "b" } '
        "allowed_batch_sizes: 8 allowed_batch_sizes: 32"
    )
    parameters = batching.read_parameters(path)
    assert (parameters.max_batch_size, parameters.batch_timeout_micros) == (32, 1000)
    assert parameters.allowed_batch_sizes == (8, 32) and parameters.max_enqueued_batches == 10


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "cannot be read"),
        ("max_batch_size: 3", "is no BatchingParameters"),
        ("pad_variable_length_inputs: true", "has no pad_variable_length_inputs"),
        ("num_batch_threads { value: 0 }", "at least 1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "must grow, and end with 8"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(tmp_path, text, reason):
    path = tmp_path / "batching.pbtxt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartError, match=reason):
        batching.read_parameters(path)
