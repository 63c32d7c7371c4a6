import contextlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

import serving.warmup
from keras_bert_app.errors import UserError
from keras_bert_app.export import saved_model, warmup
from keras_bert_app.training import workdir as folders
from serving.servable import Servable

STRINGS = {"dtype": "string", "shape": [None]}


def signature(method, *inputs):
    return {"method_name": f"tensorflow/serving/{method}", "inputs": dict.fromkeys(inputs, STRINGS)}


OF_TEXTS = {
    "serving_default": signature("predict", "text"),
    "token_ids": signature("predict", "token_ids", "segment_ids", "padding_mask"),
    "classify": signature("classify", "inputs"),
    "regress": signature("regress", "inputs"),
    "of_examples": signature("predict", "inputs"),
}


@pytest.fixture(scope="module")
def packer(tiny_run):
    return folders.ModelDescription.load(tiny_run).packer()


@pytest.fixture(scope="module")
def written(packer, tmp_path_factory):
    """The file of all kinds of signatures, of one text."""
    path = tmp_path_factory.mktemp("warmup")
    count = warmup.write(path, OF_TEXTS, packer, ["text"])
    logs = list(warmup.read(path / warmup.FILE))
    assert len(logs) == count == len(OF_TEXTS) * 3 * 2
    return path / warmup.FILE, logs


def texts_of(name, tensors):
    """The texts of a request, decoded from tf.Examples where it has these."""
    if name == "serving_default":
        return tensors["text"].tolist()
    return [
        tf.train.Example.FromString(one).features.feature["text"].bytes_list.value[0]
        for one in tensors["inputs"]
    ]


def test_every_signature_is_asked_with_one_and_a_few_texts_of_each_length(written, packer):
    asked = {}
    for log in written[1]:
        _, name, tensors = warmup.arrays(log)
        if name != "token_ids":
            packed = packer([tf.constant(texts_of(name, tensors))])
            tensors = {key: value.numpy() for key, value in packed.items()}
        lengths = tensors["padding_mask"].sum(axis=1)
        assert len(set(lengths)) == 1
        asked.setdefault(name, []).append((len(lengths), lengths[0]))
    assert asked == {name: [(1, 8), (4, 8), (1, 16), (4, 16), (1, 32), (4, 32)] for name in OF_TEXTS}


def test_the_record_is_of_the_signatures_method(written):
    kinds = {}
    for log in written[1]:
        method, name, _ = warmup.arrays(log)
        assert method == OF_TEXTS[name]["method_name"]
        kinds[name] = log.WhichOneof("log_type")
    assert kinds == {
        "serving_default": "predict_log",
        "token_ids": "predict_log",
        "of_examples": "predict_log",
        "classify": "classify_log",
        "regress": "regress_log",
    }


def test_texts_are_words_of_the_vocabulary_and_a_batch_goes_the_longer_way_too(written, packer):
    known = {piece.encode() for piece in packer.tokenizer.vocabulary.pieces if piece.isalpha()}
    for log in written[1]:
        _, name, tensors = warmup.arrays(log)
        if name == "serving_default":
            words = [word for text in tensors["text"] for word in text.split()]
            others = [] if len(tensors["text"]) == 1 else ["é".encode()]
            assert [word for word in words if word not in known] == others
            assert [word for word in words if not word.isascii()] == others


def test_the_file_is_the_same_each_time(written, packer, tmp_path):
    warmup.write(tmp_path, OF_TEXTS, packer, ["text"])
    assert (tmp_path / warmup.FILE).read_bytes() == written[0].read_bytes()


@pytest.mark.parametrize("num_texts", [1, 2])
@pytest.mark.parametrize("length", [5, 8, 31, 32])
def test_pairs_share_the_length(packer, num_texts, length):
    words = warmup.vocabulary_words(packer)
    texts = warmup.texts_of_length(words, length, 3, 32, num_texts)
    packed = packer([tf.constant(text) for text in texts])
    np.testing.assert_array_equal(packed["padding_mask"].numpy().sum(axis=1), [length] * 3)


def test_the_longest_group_is_the_models_length():
    assert warmup.length_groups(512) == [8, 16, 32, 64, 128, 256, 512]
    assert warmup.length_groups(40) == [8, 16, 32, 40]
    assert warmup.length_groups(5) == [5]


def test_six_signatures_of_the_longest_model_stay_within_what_a_server_takes():
    assert 6 * len(warmup.BATCH_SIZES) * len(warmup.length_groups(8192)) <= warmup.MAX_RECORDS


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (signature("predict", "image"), "signature s takes image; no warm-up request can be made for it"),
        (signature("compare", "text"), "signature s has the method 'tensorflow/serving/compare'"),
    ],
)
def test_a_signature_that_cannot_be_asked_is_refused(packer, tmp_path, signature, message):
    with pytest.raises(UserError, match=message):
        warmup.write(tmp_path, {"s": signature}, packer, ["text"])
    assert not (tmp_path / warmup.FILE).exists()


@pytest.mark.parametrize("cut", [0, 3, -1])
def test_a_file_that_is_cut_or_of_something_else_is_refused(written, tmp_path, cut):
    file = tmp_path / "requests"
    file.write_bytes(written[0].read_bytes()[:cut] if cut else b"text\n" * 99)
    with pytest.raises(UserError, match="requests: isn't of TFRecords of PredictionLog .*; export it again"):
        list(warmup.read(file))


def test_records_of_something_else_and_too_many_are_refused(tmp_path):
    for name, content, count, message in (
        ("other", b"\xff\xff", 1, "isn't of TFRecords of PredictionLog"),
        ("many", prediction_log_pb2.PredictionLog().SerializeToString(), 1001, "more than 1000 records"),
    ):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            for _ in range(count):
                writer.write(content)
        with pytest.raises(UserError, match=message):
            list(warmup.read(tmp_path / name))


def test_another_reader_of_the_file_answers_all_records(tiny_bundle):
    path = str(tiny_bundle / "1")
    with contextlib.closing(Servable("tiny", 1, path)) as servable:
        assert serving.warmup.warm_up(servable, path) == 6 * 3 * 2


def test_signatures_are_read_with_method_names_dtypes_and_shapes(tiny_bundle):
    found = saved_model.signatures(saved_model.read(tiny_bundle / "1"))
    assert found["serving_default"]["method_name"] == saved_model.PREDICT
    assert found["serving_default"]["inputs"] == {"text": STRINGS}
    assert found["serving_default"]["outputs"]["probabilities"] == {"dtype": "float32", "shape": [None, 2]}
    assert found["token_ids"]["inputs"]["padding_mask"] == {"dtype": "bool", "shape": [None, None]}
    assert not any(name.startswith("__") for name in found)


def test_a_folder_without_a_graph_to_serve_is_refused(tmp_path):
    for content, message in (
        (None, "can't be read: No such"),
        (b"\xff", "no SavedModel, or cut"),
        (b"", "no graph"),
    ):
        if content is not None:
            (tmp_path / "saved_model.pb").write_bytes(content)
        with pytest.raises(UserError, match=f"saved_model.pb: .*{message}"):
            saved_model.read(tmp_path)
