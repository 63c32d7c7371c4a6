import pytest
from google.protobuf import text_format

from keras_bert_app.errors import UserError
from keras_bert_app.export import batching


def test_the_file_that_is_written_is_one_a_server_takes(tmp_path):
    batching.write(tmp_path)
    found = text_format.Parse((tmp_path / "batching_params.pbtxt").read_text("utf-8"), batching._message()())
    assert found.max_batch_size.value == 128
    assert found.HasField("batch_timeout_micros") and found.batch_timeout_micros.value == 0
    assert batching.check(tmp_path).startswith("max_batch_size { value: 128 }")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 8", "no text of BatchingParameters"),
        ("max_batch { value: 8 }", 'no text of BatchingParameters .*no field named "max_batch"'),
        ("", "max_batch_size is 0; write max_batch_size { value: 128 }"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 2 allowed_batch_sizes: 4",
            r"sizes are \[2, 4\]; they have to increase and end with max_batch_size, 8",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: [8, 4, 8]",
            r"allowed_batch_sizes are \[8, 4, 8\]; they have to increase",
        ),
        (
            "max_batch_size { value: 8 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 9 }",
            "max_execution_batch_size is more than max_batch_size, 8",
        ),
        ("max_batch_size { value: 8 } pad_variable_length_inputs: true", "makes answers to token_ids wrong"),
    ],
)
def test_a_file_that_a_server_refuses_or_that_spoils_answers_is_refused(tmp_path, text, message):
    (tmp_path / "batching_params.pbtxt").write_text(text)
    with pytest.raises(UserError, match=rf"batching_params.pbtxt: .*{message}"):
        batching.check(tmp_path)


def test_allowed_sizes_that_increase_to_the_largest_are_taken(tmp_path):
    (tmp_path / "batching_params.pbtxt").write_text(
        "max_batch_size { value: 8 } allowed_batch_sizes: [1, 8] num_batch_threads { value: 2 } "
        "thread_pool_name { value: 'batches' } max_enqueued_batches { value: 4 }"
    )
    assert "allowed_batch_sizes: 8" in batching.check(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="batching_params.pbtxt: can't be read: No such file"):
        batching.check(tmp_path)
