"""google-research/bert's checkpoints, both ways; the reference is transformers with gelu_new."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from test_huggingface_heads import our_model, their_outputs

from keras_bert_app.convert import google, huggingface_families
from keras_bert_app.convert.formats import find_format
from keras_bert_app.convert.reference import largest_differences, random_batch
from keras_bert_app.convert.tensorflow_checkpoint import find_checkpoint, read_checkpoint
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import Network
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

# Layers, width, heads, intermediate width, vocabulary, activation.
SHAPES = [(2, 24, 4, 40, 101, "gelu"), (3, 32, 2, 24, 67, "relu"), (24, 16, 2, 32, 53, "gelu")]
KINDS = (
    "encoder",
    "pretraining",
    "masked_lm",
    "next_sentence",
    "sequence_classification",
    "question_answering",
)
HEAD_NAMES = {
    "cls.predictions.transform.dense.weight": "cls/predictions/transform/dense/kernel",
    "cls.predictions.transform.dense.bias": "cls/predictions/transform/dense/bias",
    "cls.predictions.transform.LayerNorm.weight": "cls/predictions/transform/LayerNorm/gamma",
    "cls.predictions.transform.LayerNorm.bias": "cls/predictions/transform/LayerNorm/beta",
    "cls.predictions.bias": "cls/predictions/output_bias",
    "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
    "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    "classifier.weight": "output_weights",
    "classifier.bias": "output_bias",
    "qa_outputs.weight": "cls/squad/output_weights",
    "qa_outputs.bias": "cls/squad/output_bias",
}


def release_arrays(model):
    """transformers' tensors under the release's names."""
    arrays = {}
    prefix = "" if type(model) is transformers.BertModel else "bert."
    for name, tensor in model.named_parameters():
        array = tensor.detach().numpy()
        if name in HEAD_NAMES:
            is_kernel = name == "cls.predictions.transform.dense.weight"
            arrays[HEAD_NAMES[name]] = array.T if is_kernel else array
            continue
        name = name.removeprefix(prefix)
        if name.endswith("dense.weight") or any(
            f".{part}.weight" in name for part in ("query", "key", "value")
        ):
            array, name = array.T, name.replace(".weight", ".kernel")
        name = name.replace("layer.", "layer_").replace(".", "/")
        name = name.replace("LayerNorm/weight", "LayerNorm/gamma").replace("LayerNorm/bias", "LayerNorm/beta")
        arrays["bert/" + name.replace("_embeddings/weight", "_embeddings")] = array
    return arrays


def make_reference(kind, shape, labels=3):
    layers, width, heads, inner, vocabulary, activation = shape
    model_class = getattr(transformers, huggingface_families.FAMILIES["bert"].classes[kind])
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=30,
        hidden_act={"gelu": "gelu_new"}.get(activation, activation),
        num_labels=2 if kind == "question_answering" else labels,
    )
    model = model_class._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def settings_of(shape):
    layers, width, heads, inner, vocabulary, activation = shape
    return {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": activation,
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": 30,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }


def write_release(folder, arrays, shape, name="bert_model.ckpt"):
    """A checkpoint with Adam's slots, saved by a session as Google's scripts do."""
    folder.mkdir(exist_ok=True)
    slots = {f"{key}/{slot}": array * 0.5 for key, array in arrays.items() for slot in ("adam_m", "adam_v")}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for key, array in (arrays | slots).items():
            tf.compat.v1.get_variable(key, initializer=np.asarray(array), dtype=tf.float32)
        tf.compat.v1.train.get_or_create_global_step()
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / name), write_meta_graph=False)
    (folder / "bert_config.json").write_text(json.dumps(settings_of(shape)))
    write_vocabulary(folder / "vocab.txt", shape)
    return slots


def poolers(shape, names=("bert/pooler/dense",)):
    """What run_squad.py saves and doesn't use."""
    generator, width = np.random.default_rng(1), shape[1]
    shapes = {"kernel": (width, width), "bias": (width,)}
    return {
        f"{name}/{part}": generator.normal(size=size).astype("float32")
        for name in names
        for part, size in shapes.items()
    }


def write_vocabulary(path, shape):
    pieces = (*SPECIAL_TOKENS, *(f"piece{number}" for number in range(shape[4] - len(SPECIAL_TOKENS))))
    Vocabulary(pieces).save(path)


def assert_same_outputs(pretrained, reference):
    encoder, model = our_model(pretrained)
    batch = random_batch(pretrained.network, encoder)
    expected = their_outputs(reference, batch)
    outputs = {name: np.asarray(value) for name, value in model(batch).items()}
    differences = largest_differences(outputs, expected, batch["padding_mask"])
    assert differences.keys() == expected.keys()
    assert max(differences.values()) <= 2e-5


CASES = [(kind, SHAPES[0]) for kind in KINDS]
CASES += [(kind, shape) for shape in SHAPES[1:] for kind in ("pretraining", "sequence_classification")]


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_release_gives_its_outputs_and_a_round_trip_keeps_every_bit(tmp_path, kind, shape):
    reference = make_reference(kind, shape)
    arrays = release_arrays(reference)
    unused = poolers(shape) if kind == "question_answering" else {}
    slots = write_release(tmp_path / "theirs", arrays | unused, shape)
    pretrained = google.load(tmp_path / "theirs")
    assert pretrained.network.kind == kind and not pretrained.missing
    assert set(pretrained.left_out) == {*slots, *unused, "global_step"}
    if kind == "sequence_classification":
        assert pretrained.network.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert_same_outputs(pretrained, reference)

    (tmp_path / "ours").mkdir()
    google.save(pretrained, tmp_path / "ours", 30)
    written = tf.train.load_checkpoint(str(tmp_path / "ours" / "bert_model.ckpt"))
    assert written.get_variable_to_shape_map().keys() == arrays.keys()
    for name, array in arrays.items():
        assert written.get_tensor(name).dtype == "float32"
        np.testing.assert_array_equal(written.get_tensor(name), array, err_msg=name)
    assert json.loads((tmp_path / "ours" / "bert_config.json").read_text()) == settings_of(shape)
    assert (tmp_path / "ours" / "vocab.txt").read_bytes() == (tmp_path / "theirs" / "vocab.txt").read_bytes()
    again = google.load(tmp_path / "ours").arrays()
    before = pretrained.arrays()
    assert again.keys() == before.keys()
    assert all(np.array_equal(again[path], before[path]) for path in before)


def test_provenance_says_where_and_which_bytes(tmp_path):
    write_release(tmp_path, release_arrays(make_reference("encoder", SHAPES[0])), SHAPES[0])
    files = sorted(tmp_path.glob("bert_model.ckpt.*"), key=lambda file: "index" not in file.name)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    provenance = google.load(tmp_path).provenance
    assert provenance == {"format": "google", "path": str(tmp_path), "sha256": digest}


def test_a_head_beside_a_pooler_makes_no_one_lose_the_pooler(tmp_path):
    arrays = release_arrays(make_reference("masked_lm", SHAPES[0]))
    write_release(tmp_path, arrays | poolers(SHAPES[0]), SHAPES[0])
    pretrained = google.load(tmp_path)
    assert pretrained.network.kind == "pretraining" and "encoder/pooler/kernel" in pretrained.tensors
    assert sorted(pretrained.missing.values()) == [
        "cls/seq_relationship/output_bias",
        "cls/seq_relationship/output_weights",
    ]


def test_an_encoder_without_a_pooler_needs_none(tmp_path):
    arrays = release_arrays(make_reference("encoder", SHAPES[0]))
    arrays = {name: array for name, array in arrays.items() if "pooler" not in name}
    write_release(tmp_path, arrays, SHAPES[0])
    pretrained = google.load(tmp_path)
    assert pretrained.encoder["pooling"] == "mean" and not pretrained.missing
    (tmp_path / "ours").mkdir()
    google.save(pretrained, tmp_path / "ours", 30)
    assert google.load(tmp_path / "ours").tensors.keys() == pretrained.tensors.keys()


def test_a_fine_tuned_head_counts_more_than_those_of_pretraining(tmp_path):
    """As where run_classifier_with_tfhub.py trained a module that has them."""
    reference = make_reference("sequence_classification", SHAPES[0])
    arrays = {
        name if name.startswith("output_") else f"module/{name}": array
        for name, array in release_arrays(reference).items()
    }
    heads = release_arrays(make_reference("pretraining", SHAPES[0]))
    heads = {f"module/{name}": array for name, array in heads.items() if name.startswith("cls/")}
    slots = write_release(tmp_path, arrays | heads, SHAPES[0])
    pretrained = google.load(tmp_path)
    assert set(pretrained.left_out) == {*slots, *heads, "global_step"}
    assert_same_outputs(pretrained, reference)


def test_old_converters_read_what_is_written(tmp_path):
    """A TensorFlow 1 graph restores it by name."""
    arrays = release_arrays(make_reference("pretraining", SHAPES[0]))
    write_release(tmp_path, arrays, SHAPES[0])
    (tmp_path / "ours").mkdir()
    google.save(google.load(tmp_path), tmp_path / "ours", 30)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for key, array in arrays.items():
            tf.compat.v1.get_variable(key, array.shape, initializer=tf.zeros_initializer())
        tf.compat.v1.train.Saver().restore(session, str(tmp_path / "ours" / "bert_model.ckpt"))
        values = session.run({variable.name[:-2]: variable for variable in tf.compat.v1.global_variables()})
    assert all(np.array_equal(values[key], array) for key, array in arrays.items())


@pytest.mark.parametrize("give", ["", ".index", ".data-00000-of-00001"])
def test_a_checkpoint_is_taken_by_its_name_too(tmp_path, give):
    write_release(tmp_path, release_arrays(make_reference("encoder", SHAPES[0])), SHAPES[0])
    write_release(tmp_path, release_arrays(make_reference("encoder", SHAPES[0])), SHAPES[0], "model.ckpt-9")
    with pytest.raises(UserError, match="there is bert_model.ckpt.index, model.ckpt-9.index; give the path"):
        google.load(tmp_path)
    path = tmp_path / f"bert_model.ckpt{give}"
    assert find_format(path) == "google"
    assert google.load(path).network.kind == "encoder"


def test_a_module_of_the_first_hub_is_a_release_in_folders(release, tmp_path):
    """It names its variables as the release does, and needs the release's settings."""
    for name, place in (("variables", "bert_model.ckpt."), ("assets", "vocab")):
        (tmp_path / name).mkdir()
        for path in release.glob(f"{place}*"):
            path.rename(tmp_path / name / path.name.replace("bert_model.ckpt", "variables"))
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert "the number of heads isn't known" in refusal(tmp_path)
    (release / "bert_config.json").rename(tmp_path / "bert_config.json")
    pretrained = google.load(tmp_path)
    assert pretrained.network.kind == "pretraining" and len(pretrained.vocabulary) == SHAPES[0][4]


@pytest.mark.parametrize(
    ("piece", "lower_case"), [("ordinary", True), ("[Special]", True), ("Capital", False)]
)
def test_lower_casing_is_what_the_vocabulary_tells_unless_it_is_given(tmp_path, piece, lower_case):
    write_release(tmp_path, release_arrays(make_reference("encoder", SHAPES[0])), SHAPES[0])
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text().replace("piece7\n", f"{piece}\n"))
    options = google.load(tmp_path).tokenizer_options
    assert options.lower_case is options.strip_accents is lower_case
    options = google.load(tmp_path, {"lower_case": not lower_case}).tokenizer_options
    assert options.lower_case is options.strip_accents is not lower_case


def test_a_vocabulary_larger_than_its_embedding_is_of_something_else(tmp_path):
    write_release(tmp_path, release_arrays(make_reference("encoder", SHAPES[0])), SHAPES[0])
    with open(tmp_path / "vocab.txt", "a") as file:
        file.write("more\n")
    assert "has 102 pieces, but" in refusal(tmp_path)
    assert google.load(tmp_path, None).vocabulary is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    write_release(folder, release_arrays(make_reference("pretraining", SHAPES[0])), SHAPES[0])
    return folder


@pytest.fixture
def release(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "release")


def refusal(folder):
    with pytest.raises(UserError) as caught:
        google.load(folder).arrays()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 8, "num_hidden_groups": 1}, "embedding_size 8, num_hidden_groups 1: a network"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05: a network"),
        ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']; it takes one of gelu, relu"),
        ({"type_vocab_size": None}, "not a BERT configuration, type_vocab_size missing"),
        ({"num_hidden_layers": "2"}, "can't be loaded as it is"),
        ({"num_hidden_layers": -1}, "can't be loaded as it is"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'; it takes one of gelu, relu"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers, but there are"),
        ({"num_hidden_layers": 3}, "missing: bert/encoder/layer_2/attention/self/query/kernel"),
        ({"num_hidden_layers": 1}, "unknown: bert/encoder/layer_1/attention/output/LayerNorm/beta"),
        ({"hidden_size": "24"}, "can't be loaded as it is"),
        ({"num_attention_heads": 5}, "which doesn't divide"),
        ({"vocab_size": 102}, "misshapen: bert/embeddings/word_embeddings has shape [101, 24]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(release, changes, message):
    path = release / "bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert message in refusal(release)


def test_settings_of_no_consequence_are_let_through(release):
    path = release / "bert_config.json"
    more = {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform"}
    more |= {"layer_norm_eps": 1e-12, "model_type": "bert", "embedding_size": 24}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    google.load(release)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert_config.json", "bert_config.json isn't there, and without it the number of heads isn't known"),
        ("vocab.txt", "vocab.txt: can't read it: No such file"),
        ("bert_model.ckpt.index", "of checkpoints (*.index) there is none"),
        ("bert_model.ckpt.data-00000-of-00001", "data-00000-of-00001: can't read it: No such file"),
    ],
)
def test_a_missing_file_is_named(release, name, message):
    (release / name).unlink()
    assert message in refusal(release)


@pytest.mark.parametrize("name", ["bert_config.json", "vocab.txt", "bert_model.ckpt.data-00000-of-00001"])
def test_a_link_out_of_the_folder_is_refused(release, whole, name):
    (release / name).unlink()
    (release / name).symlink_to(whole / name)
    assert "a link that leads out of its folder" in refusal(release)


def test_bytes_that_changed_are_found_when_they_are_read(release):
    path = release / "bert_model.ckpt.data-00000-of-00001"
    data = path.read_bytes()
    path.write_bytes(data[:1000] + bytes(byte ^ 255 for byte in data[1000:2000]) + data[2000:])
    assert "Checksum does not match" in refusal(release)


def rewrite(release, change):
    _, tensors = read_checkpoint(find_checkpoint(release))
    arrays = change({name: tensor.read() for name, tensor in tensors.items()})
    tf.raw_ops.SaveV2(
        prefix=str(release / "bert_model.ckpt"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: np.full_like(array, np.nan), "NaN or infinity in encoder/pooler/bias"),
        (lambda array: array.astype("int32"), "no floating type: bert/pooler/dense/bias is int32"),
        (lambda array: np.array("text", object), "no floating type: bert/pooler/dense/bias is string"),
        (lambda array: array[:-1], "misshapen: bert/pooler/dense/bias has shape [23], by the config"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(release, change, message):
    name = "bert/pooler/dense/bias"
    rewrite(release, lambda arrays: arrays | {name: change(arrays[name])})
    assert message in refusal(release)


def test_all_that_does_not_fit_is_in_one_message(release):
    def change(arrays):
        arrays["bert/encoder/layer_0/intermediate/dense/kernel"] = np.ones((3, 4), "float32")
        del arrays["bert/encoder/layer_1/output/dense/bias"], arrays["bert/embeddings/LayerNorm/gamma"]
        return arrays | {"bert/embeddings/more": np.ones(1, "float32"), "loss_scale": np.float32(1)}

    rewrite(release, change)
    message = refusal(release)
    for part in (
        "unknown: bert/embeddings/more, loss_scale",
        "missing: bert/embeddings/LayerNorm/gamma, bert/encoder/layer_1/output/dense/bias",
        "misshapen: bert/encoder/layer_0/intermediate/dense/kernel has shape [3, 4]",
    ):
        assert part in message


def test_loading_reads_no_tensor(release, monkeypatch):
    """They are read one by one, when they are asked for."""
    asked, reader_class = [], tf.compat.v1.train.NewCheckpointReader

    class Reader:
        def __init__(self, path):
            self.reader = reader_class(path)

        def get_tensor(self, key):
            asked.append(key)
            return self.reader.get_tensor(key)

    monkeypatch.setattr(tf.compat.v1.train, "NewCheckpointReader", Reader)
    pretrained = google.load(release)
    assert asked == []
    pretrained.tensors["encoder/pooler/bias"].read()
    assert asked == ["bert/pooler/dense/bias"]


def save_refusal(pretrained, folder):
    with pytest.raises(UserError) as caught:
        google.save(pretrained, folder, 30)
    assert not any(folder.iterdir())
    return str(caught.value)


def test_all_that_their_code_can_not_compute_is_named(release, tmp_path):
    (tmp_path / "ours").mkdir()
    pretrained = google.load(release)
    changes = {
        "activation": "gelu",
        "epsilon": 1e-5,
        "position_type": "sinusoidal",
        "position_offset": 2,
        "pooling": "max",
        "embedding_dim": 12,
        "num_segments": 0,
    }
    options = replace(
        pretrained.tokenizer_options, strip_accents=False, split_chinese=False, never_split=("a",)
    )
    changed = replace(
        pretrained,
        encoder=pretrained.encoder | changes,
        network=Network("pretraining", masked_activation="relu", masked_epsilon=1e-3),
        tokenizer_options=options,
    )
    message = save_refusal(changed, tmp_path / "ours")
    for part in (
        "activation gelu_new or relu, not gelu",
        "epsilon 1e-12, not 1e-05",
        "position_type learned, not sinusoidal",
        "position_offset 0, not 2",
        "pooling first, not max",
        "embedding_dim 24, not 12",
        "num_segments 1 at least, not 0",
        "masked_activation gelu, not relu",
        "masked_epsilon 1e-12, not 0.001",
        "strip_accents as lower_case",
        "split_chinese",
        "no never_split",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network("token_classification", ("a", "b")), "has no token_classification"),
        (Network("multiple_choice"), "has no multiple_choice"),
        (Network("sequence_classification", ("a",), "regression"), "single_label_classification, not regr"),
    ],
)
def test_networks_that_their_scripts_have_not_are_refused(release, tmp_path, network, message):
    (tmp_path / "ours").mkdir()
    assert message in save_refusal(replace(google.load(release), network=network), tmp_path / "ours")


@pytest.mark.parametrize("network", [Network("encoder"), Network("pretraining")])
def test_pooling_that_is_no_pooler_is_refused(release, tmp_path, network):
    (tmp_path / "ours").mkdir()
    pretrained = google.load(release)
    changed = replace(pretrained, network=network, encoder=pretrained.encoder | {"pooling": "max"})
    assert "pooling first, not max" in save_refusal(changed, tmp_path / "ours")


def test_a_pooler_of_another_activation_is_refused(release, tmp_path):
    (tmp_path / "ours").mkdir()
    pretrained = google.load(release)
    changed = replace(pretrained, encoder=pretrained.encoder | {"pooler_activation": "gelu"})
    assert "pooler_activation tanh, not gelu" in save_refusal(changed, tmp_path / "ours")
