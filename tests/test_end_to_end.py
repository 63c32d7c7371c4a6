"""From a trained folder to gRPC answers, with a server in this process."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_config, tiny_rows

from keras_bert_app.export import bundle
from keras_bert_app.scoring import models, resumable
from keras_bert_app.training import finetuning
from serving import server
from serving.client import PredictClient
from serving.errors import ServerError

CASES = {
    "one text": [b"the film was good"],
    "64 texts of mixed lengths": [b"good film " * (row % 20) + b"was dull" for row in range(64)],
    "empty": [b""],
    "10,000 characters": [b"poor plot " * 1000],
    "emoji": ["great 👍🏽 中".encode()],
    "invalid UTF-8": [b"\xff\xfe good \x80 \x00"],
}


@pytest.fixture(scope="module")
def client(tiny_bundle):
    with (
        server.serve("tiny", str(tiny_bundle), port=0) as running,
        PredictClient(running.address, "tiny") as client,
    ):
        yield client


@pytest.fixture(scope="module")
def model(tiny_run):
    return models.open_run(tiny_run, {})


def assert_same(answers, wanted):
    assert len(answers) == len(wanted)
    for answer, one in zip(answers, wanted, strict=True):
        assert answer["label"] == one["label"]
        assert answer["score"] == pytest.approx(one["score"], abs=1e-5)
        assert answer["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_server_answers_what_predict_writes(client, model, tmp_path, name):
    texts = CASES[name]
    (tmp_path / "texts.txt").write_bytes(b"".join(text + b"\n" for text in texts))
    resumable.predict_files(model, [tmp_path / "texts.txt"], tmp_path / "answers.jsonl")
    wanted = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert_same(client.predict(texts), wanted)


@pytest.mark.parametrize(
    ("inputs", "options", "code", "message"),
    [
        ({"txt": ["good"]}, {}, "INVALID_ARGUMENT", "input"),
        ({"text": [1]}, {}, "INVALID_ARGUMENT", "Expects arg[0] to be string but int64 is provided"),
        (
            {"text": ["good"]},
            {"version": 9},
            "NOT_FOUND",
            "Servable not found for request: Specific(tiny, 9)",
        ),
        ({"text": ["good"]}, {"signature_name": "other"}, "FAILED_PRECONDITION", 'key "other" not found.'),
        (
            {"text": np.array(b"good", object)},
            {},
            "INVALID_ARGUMENT",
            "text: expected string of rank 1, got shape []",
        ),
        ({"text": np.array([[b"good"]], object)}, {}, "INVALID_ARGUMENT", "rank 1, got shape [1,1]"),
        (
            {
                "token_ids": np.array([2, 3], "int32"),
                "segment_ids": np.zeros(2, "int32"),
                "padding_mask": [True, True],
            },
            {"signature_name": "token_ids"},
            "INVALID_ARGUMENT",
            "of rank 2, got shape [2]",
        ),
    ],
)
def test_a_wrong_request_is_refused_and_the_server_goes_on(client, inputs, options, code, message):
    with pytest.raises(ServerError) as error:
        client.run(inputs, **options)
    assert (error.value.code, message in error.value.message) == (code, True), error.value.message
    assert client.predict(["good"])[0]["label"] == "gut"


def test_another_model_is_not_found(client):
    with PredictClient(client.target, "other") as other, pytest.raises(ServerError) as error:
        other.predict(["good"])
    assert (error.value.code, error.value.message) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(other)",
    )


def test_pairs_are_trained_exported_and_served(tmp_path):
    rows = [
        {"text": row["text"], "text_pair": ("good", "bad")[place % 2], "label": row["label"]}
        for place, row in enumerate(tiny_rows())
    ]
    config = tiny_config(tmp_path / "data", rows, **{"data.pair_column": "text_pair", "train.epochs": 1})
    finetuning.finetune(config, tmp_path / "run")
    bundle.export(tmp_path / "run", tmp_path / "exported")
    texts, pairs = [b"the film", b"", b"plot " * 50], [b"good", b"bad " * 50, b"\xff"]
    wanted = models.open_run(tmp_path / "run", {}).answerer.answers(
        [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]
    )
    with (
        server.serve("pairs", str(tmp_path / "exported"), port=0) as running,
        PredictClient(running.address, "pairs") as client,
    ):
        assert_same(client.predict(texts, pairs), wanted)
        with pytest.raises(ServerError):
            client.predict(texts)
    layer = keras.layers.TFSMLayer(str(tmp_path / "exported" / "1"), call_endpoint="serving_default")
    answers = layer({"text": tf.constant(texts), "text_pair": tf.constant(pairs)})
    assert [label.decode() for label in answers["label"].numpy()] == [row["label"] for row in wanted]
