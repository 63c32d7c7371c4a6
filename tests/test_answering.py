"""The answers of a run and of its bundle: those of the trainer, of any bytes, in the order of the texts."""

import base64
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_config, tiny_rows

from keras_bert_app import evaluation
from keras_bert_app.data.batches import pack_texts
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle
from keras_bert_app.scoring import answering, models, parts, resumable
from keras_bert_app.training import finetuning

# What answers have to be given to, whatever it is.
TEXTS = (
    b"good",
    b"",
    b"good film " * 1000,
    "the film was great 👍🏽 中".encode(),
    b"\xff\xfe good \x00",
    b" \xe4 ",
)


@pytest.fixture(scope="module")
def run_model(tiny_run):
    return models.open_run(tiny_run, {})


@pytest.fixture(scope="module")
def bundle_model(tiny_bundle):
    return models.open_bundle(tiny_bundle, {})


def answers_to(path, model):
    output = path.with_name("answers.jsonl")
    count = resumable.predict_files(model, [path], output)
    answers = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert len(answers) == count
    return answers


def test_the_tiny_run_has_learned_what_its_texts_tell(run_model):
    texts = [{"text": b"the film was great"}, {"text": b"the plot was dull"}]
    good, bad = run_model.answerer.answers(texts)
    assert (good["label"], bad["label"]) == ("gut", "übel")
    assert good["score"] == max(good["probabilities"]) > 0.5
    assert sum(good["probabilities"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("source", ["run_model", "bundle_model"])
def test_answers_are_those_of_the_trainer_in_the_order_of_the_texts(source, tiny_run, request):
    texts = [*TEXTS, *(row["text"].encode() for row in tiny_rows(150))]
    answers = request.getfixturevalue(source).answerer.answers([{"text": text} for text in texts])
    predictor = evaluation.Predictor(tiny_run)
    examples = pack_texts(predictor.packer, [texts], predictor.task.no_targets(len(texts)))
    wanted = predictor.task.decode(predictor.outputs(examples))
    assert [answer["label"].encode() for answer in answers] == wanted["label"].numpy().tolist()
    got = np.array([answer["probabilities"] for answer in answers])
    assert np.abs(got - wanted["probabilities"].numpy()).max() <= 1e-6


def test_jsonl_is_answered_line_by_line_whatever_the_bytes(tmp_path, run_model):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": {"b64": base64.b64encode(text).decode()}} for text in TEXTS] + [{"text": "so 👍 dull"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = answers_to(path, run_model)
    assert len(answers) == len(rows)
    for text, answer in zip([*TEXTS, "so 👍 dull".encode()], answers, strict=True):
        (alone,) = run_model.answerer.answers([{"text": text}])
        assert answer["label"] == alone["label"]
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_each_line_of_a_txt_file_is_a_text(tmp_path, run_model):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"good film\n\ndull \xff film\r\n" + b"bad " * 2500)
    labels = [answer["label"] for answer in answers_to(path, run_model)]
    assert len(labels) == 4
    assert (labels[0], labels[3]) == ("gut", "übel")


def test_a_csv_file_needs_no_labels_and_keeps_its_order(tmp_path, run_model):
    path = tmp_path / "texts.csv"
    path.write_text('id,text\n1,"the film was good"\n2,"the film\nwas dull"\n3,\n4,great\n')
    labels = [answer["label"] for answer in answers_to(path, run_model)]
    assert (len(labels), labels[0], labels[1], labels[3]) == (4, "gut", "übel", "gut")


def test_pairs_in_columns_of_any_name_are_answered_by_a_run_and_its_bundle_alike(tmp_path):
    rows = [{"a": row["text"], "b": "good", "label": row["label"]} for row in tiny_rows()]
    changes = {"data.text_column": "a", "data.pair_column": "b", "train.epochs": 1}
    finetuning.finetune(tiny_config(tmp_path / "data", rows, **changes), tmp_path / "run")
    bundle.export(tmp_path / "run", tmp_path / "exported")
    (tmp_path / "texts.csv").write_text('b,a\n"good",dull\nbad,\n')
    of_run = models.open_run(tmp_path / "run", {})
    of_bundle = models.open_bundle(tmp_path / "exported", {"text": "a", "text_pair": "b"})
    answers = answers_to(tmp_path / "texts.csv", of_run)
    assert answers == answers_to(tmp_path / "texts.csv", of_bundle) and len(answers) == 2
    wanted = of_run.answerer.answers([{"text": b"dull", "text_pair": b"good"}])[0]["probabilities"]
    assert answers[0]["probabilities"] == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(UserError, match=r"texts.csv:1: no column 'text' for text.*; give --text_column="):
        answers_to(tmp_path / "texts.csv", models.open_bundle(tmp_path / "exported", {}))


def save(folder, signature, tiny_bundle):
    """A model that isn't asked about texts, with what a bundle says of itself."""
    double = tf.function(lambda numbers: {"doubled": 2 * numbers})
    double = double.get_concrete_function(numbers=tf.TensorSpec([None], tf.float32, name="numbers"))
    tf.saved_model.save(tf.Module(), str(folder), signatures={signature: double})
    shutil.copytree(tiny_bundle / "1" / "assets.extra", folder / "assets.extra")


def test_what_is_no_bundle_of_texts_is_refused(tmp_path, tiny_bundle):
    with pytest.raises(UserError, match="has no version folder"):
        models.open_bundle(tmp_path, {})
    with pytest.raises(UserError, match="isn't asked about pairs of texts; leave --pair_column out"):
        models.open_bundle(tiny_bundle, {"text_pair": "b"})
    save(tmp_path / "1", "serving_default", tiny_bundle)
    with pytest.raises(UserError, match="1: serving_default takes numbers float32; predict asks about text"):
        models.open_bundle(tmp_path, {})
    save(tmp_path / "2", "other", tiny_bundle)
    with pytest.raises(UserError, match="2 has no signature serving_default; there is other"):
        models.open_bundle(tmp_path, {})
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(UserError, match="2: TensorFlow can't load it: "):
        models.open_bundle(tmp_path, {})
    shutil.rmtree(tmp_path / "2" / "assets.extra")
    with pytest.raises(UserError, match=r"2 is no bundle that run.py export wrote"):
        models.open_bundle(tmp_path, {})


def test_a_model_is_known_by_its_content(tmp_path, tiny_run, tiny_bundle, run_model, bundle_model):
    assert models.open_bundle(tiny_bundle / "1", {}).sha256 == bundle_model.sha256 != run_model.sha256
    assert models.open_run(tiny_run, {}).sha256 == run_model.sha256


def test_batches_hold_texts_of_as_many_tokens_and_all_are_counted(monkeypatch, run_model):
    monkeypatch.setattr(answering, "_BATCH", 2)
    monkeypatch.setattr(answering, "_TEXTS_PACKED_AT_ONCE", 2)
    seen, signature = [], run_model.answerer._signature

    def watched(**texts):
        seen.append(texts["text"].numpy().tolist())
        return signature(**texts)

    monkeypatch.setattr(run_model.answerer, "_signature", watched)
    texts = (b"a a a a", b"good film", b"was", b"", b"the plot .")
    assert len(run_model.answerer.answers([{"text": text} for text in texts])) == 5
    assert seen == [[b"", b"was"], [b"good film", b"the plot ."], [b"a a a a"]]
    assert run_model.answerer.answers([]) == []


def test_an_output_that_is_an_input_or_a_folder_and_input_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.parquet").touch()
    for pattern, output, message in (
        ("*.txt", "a.txt", "a.txt is both --input and --output"),
        ("*.txt", "", "is a folder; give a file as --output"),
        ("*", "out", "b.parquet: of unknown kind"),
        ("*.csv", "out", "no such file; give files, folders or a pattern"),
    ):
        with pytest.raises(UserError, match=message):
            parts.files_to_read(str(tmp_path / pattern), {"text": "text"}, tmp_path / output)
