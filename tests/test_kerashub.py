"""KerasHub's presets and weight files, both ways: the same outputs, the same bits."""

import json
import os
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import tensorflow_text  # noqa: F401 (KerasHub's tokenizer needs its ops)
from test_huggingface_heads import our_model

from keras_bert_app.convert import kerashub
from keras_bert_app.convert.hdf5 import read_h5
from keras_bert_app.convert.library import kerashub_outputs
from keras_bert_app.convert.reference import largest_differences, random_batch
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# Layers, width, heads, intermediate width, vocabulary.
SHAPES = [(2, 24, 4, 40, 101), (3, 32, 2, 24, 67), (24, 16, 2, 32, 53)]
KINDS = ("encoder", "sequence_classification", "masked_lm")


def make(folder, kind, shape, tokenizer=True):
    """A KerasHub model with every variable redrawn, saved as a preset."""
    import keras_hub

    layers, width, heads, inner, size = shape
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=size,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=inner,
        max_sequence_length=30,
    )
    pieces = [*SPECIAL_TOKENS, *(f"piece{number}" for number in range(size - len(SPECIAL_TOKENS)))]
    text = keras_hub.models.BertTokenizer(vocabulary=pieces, lowercase=True) if tokenizer else None
    if kind == "sequence_classification":
        preprocessor = tokenizer and keras_hub.models.BertTextClassifierPreprocessor(text, sequence_length=30)
        model = keras_hub.models.BertTextClassifier(
            backbone, num_classes=3, dropout=0.3, preprocessor=preprocessor or None
        )
    elif kind == "masked_lm":
        preprocessor = tokenizer and keras_hub.models.BertMaskedLMPreprocessor(text, sequence_length=30)
        model = keras_hub.models.BertMaskedLM(backbone, preprocessor=preprocessor or None)
    else:
        model = backbone
    draw = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + draw.normal(0, 0.2, weight.shape))
    if folder:
        model.save_to_preset(str(folder))
        if kind == "encoder" and tokenizer:
            text.save_to_preset(str(folder))
    return model


def arrays_of(folder):
    return {
        name: tensor.read()
        for file, prefix in (("model.weights.h5", "backbone:"), ("task.weights.h5", "task:"))
        if (folder / file).exists()
        for name, tensor in read_h5(folder / file, prefix).items()
        if "optimizer" not in name
    }


CASES = [(kind, SHAPES[0]) for kind in KINDS]
CASES += [("sequence_classification", SHAPES[1]), ("masked_lm", SHAPES[2])]


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_preset_gives_its_outputs_and_a_round_trip_keeps_every_bit(tmp_path, kind, shape):
    import keras_hub

    reference = make(tmp_path / "theirs", kind, shape)
    pretrained = kerashub.load(tmp_path / "theirs")
    assert pretrained.network.kind == kind and not pretrained.missing
    encoder, model = our_model(pretrained)
    batch = random_batch(pretrained.network, encoder)
    expected = kerashub_outputs(reference, batch)
    outputs = {name: np.asarray(value) for name, value in model(batch).items()}
    differences = largest_differences(outputs, expected, batch["padding_mask"])
    assert differences.keys() == expected.keys()
    assert max(differences.values()) <= 2e-5

    (tmp_path / "ours").mkdir()
    kerashub.save(pretrained, tmp_path / "ours", 30)
    before, after = arrays_of(tmp_path / "theirs"), arrays_of(tmp_path / "ours")
    assert before.keys() == after.keys()
    pooler = "backbone:layers/dense/"
    for name, array in before.items():
        if kind != "masked_lm" or not name.startswith(pooler):
            np.testing.assert_array_equal(after[name], array, err_msg=name)
    more = {} if kind == "encoder" else {"preprocessor": None}
    again = getattr(keras_hub.models, kerashub.CLASSES[kind]).from_preset(str(tmp_path / "ours"), **more)
    for name, value in kerashub_outputs(again, batch).items():
        np.testing.assert_array_equal(value, expected[name])
    tokenizer = keras_hub.models.BertTokenizer.from_preset(str(tmp_path / "ours"))
    assert np.asarray(tokenizer("Piece1 piece2 none")).tolist() == [6, 7, 1]
    assert kerashub.load(tmp_path / "ours").tokenizer_options == TokenizerOptions(True, False)
    copy = kerashub.make_model(encoder, pretrained.network)
    kerashub.load_into(copy, tmp_path / "theirs")
    for name, value in kerashub_outputs(copy, batch).items():
        np.testing.assert_array_equal(value, expected[name])
    if kind == "sequence_classification":
        assert pretrained.network.head_dropout == 0.3
        assert kerashub.load(tmp_path / "ours").network == pretrained.network


@pytest.mark.parametrize("kind", KINDS)
def test_a_weights_file_alone_tells_its_settings(tmp_path, kind):
    reference = make(None, kind, SHAPES[0], tokenizer=False)
    reference.save_weights(tmp_path / "any.weights.h5")
    pieces = [*SPECIAL_TOKENS, *(f"piece{number}" for number in range(96))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    pretrained = kerashub.load(tmp_path / "any.weights.h5", {"lower_case": False})
    assert pretrained.network.kind == kind and pretrained.encoder["num_heads"] == 4
    assert len(pretrained.vocabulary) == 101 and not pretrained.tokenizer_options.lower_case
    encoder, model = our_model(pretrained)
    batch = random_batch(pretrained.network, encoder)
    expected = kerashub_outputs(reference, batch)
    outputs = {name: np.asarray(value) for name, value in model(batch).items()}
    assert max(largest_differences(outputs, expected, batch["padding_mask"]).values()) <= 2e-5
    copy = kerashub.make_model(encoder, pretrained.network)
    kerashub.load_into(copy, tmp_path / "any.weights.h5")
    for name, value in kerashub_outputs(copy, batch).items():
        np.testing.assert_array_equal(value, expected[name])


def test_names_of_layers_are_understood_as_well_as_classes_and_numbers(tmp_path):
    make(tmp_path, "encoder", SHAPES[0])
    names = {
        "reversible_embedding": "token_embedding",
        "embedding": "segment_embedding",
        "layer_normalization": "embeddings_layer_norm",
        "dense": "pooled_dense",
        "transformer_encoder": "transformer_layer_0",
        "transformer_encoder_1": "transformer_layer_1",
    }
    before = kerashub.load(tmp_path).arrays()
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        layers = file["layers"]
        for one, other in names.items():
            layers.move(one, other)
        file.move("layers", "_layer_checkpoint_dependencies")
    after = kerashub.load(tmp_path).arrays()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_shards_are_one_preset(tmp_path):
    import keras_hub

    reference = make(tmp_path / "whole", "encoder", SHAPES[0])
    folder = tmp_path / "shards"
    reference.save_to_preset(str(folder), max_shard_size=2e-5)
    assert len(list(folder.glob("*.h5"))) == 3
    whole, sharded = (kerashub.load(path, None).arrays() for path in (tmp_path / "whole", folder))
    assert whole.keys() == sharded.keys()
    assert all(np.array_equal(whole[path], sharded[path]) for path in whole)
    copy = keras_hub.models.BertBackbone.from_config(reference.get_config())
    kerashub.load_into(copy, folder)
    for one, other in zip(copy.weights, reference.weights, strict=True):
        np.testing.assert_array_equal(one, other)

    index = folder / "model.weights.json"
    content = json.loads(index.read_text())
    for name, message in (
        ("../whole/model.weights.h5", "'../whole/model.weights.h5' is no weights.h5 file beside the index"),
        (["model_00009.weights.h5"], "model_00009.weights.h5: can't read it: No such file"),
        ({}, "{} is no weights.h5 file beside the index"),
    ):
        places = content["weight_map"] | {"/layers/embedding/vars": name}
        index.write_text(json.dumps({"weight_map": places}))
        assert message in refusal(folder)
    shutil.copy(folder / "model_00000.weights.h5", folder / "model_00003.weights.h5")
    places = content["weight_map"] | {"/more": "model_00003.weights.h5"}
    index.write_text(json.dumps({"weight_map": places}))
    assert "another shard has backbone:layers/embedding/vars/0" in refusal(folder)


def test_half_precision_comes_in_as_float32(tmp_path):
    import keras_hub

    settings = {
        "vocabulary_size": 11,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 4,
        "intermediate_dim": 5,
    }
    for dtype in ("bfloat16", "float16"):
        model = keras_hub.models.BertBackbone(**settings, dtype=dtype)
        model.save_to_preset(str(tmp_path / dtype))
        arrays = kerashub.load(tmp_path / dtype, None).arrays()
        table = np.asarray(model.token_embedding.embeddings).astype("float32")
        assert arrays["encoder/embeddings/token/embeddings"].dtype == "float32"
        np.testing.assert_array_equal(arrays["encoder/embeddings/token/embeddings"], table)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kerashub") / "preset"
    make(folder, "sequence_classification", SHAPES[0])
    return folder


@pytest.fixture
def preset(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "preset")


def refusal(folder):
    with pytest.raises(UserError) as caught:
        kerashub.load(folder).arrays()
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def change_json(path, **changes):
    content = json.loads(path.read_text())
    content["config"] |= changes.pop("config", {})
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"class_name": "Lambda"}, "class_name is 'Lambda'; it takes one of BertBackbone"),
        ("config.json", {"config": {"num_layers": 10**9}}, "1000000000 layers, but there are 43 tensors"),
        ("config.json", {"config": {"num_layers": 3}}, "missing: backbone/transformer_encoder_2/_self_atten"),
        ("config.json", {"config": {"num_heads": 5}}, "which doesn't divide"),
        ("config.json", {"config": {"hidden_dim": "24"}}, "can't be loaded as it is"),
        ("config.json", {"config": {"num_layers": "2"}}, "num_layers is '2'; it takes a whole number"),
        ("config.json", {"config": {"num_layers": None}}, "settings of a BertBackbone; missing: num_layers"),
        ("config.json", {"config": {"flash": 1}}, "the settings of a BertBackbone; unknown: 'flash'"),
        ("task.json", {"class_name": "function"}, "class_name is 'function'; it takes one of BertText"),
        (
            "task.json",
            {"config": {"num_classes": 4}},
            "misshapen: task:layers/dense/vars/0 has shape [24, 3]",
        ),
        ("task.json", {"config": {"num_classes": 10**12}}, "num_classes is 1000000000000"),
        ("task.json", {"config": {"dropout": 5}}, "dropout is 5; it takes a number from 0 to below 1"),
        ("task.json", {"config": {"dropout": float("nan")}}, "dropout is nan; it takes a number from 0"),
        ("task.json", {"config": {"pooling": "mean"}}, "unknown: 'pooling'"),
        ("tokenizer.json", {"config": {"split": False}}, "split is False; only True can be honoured"),
        ("tokenizer.json", {"config": {"lowercase": 3}}, "lowercase is 3; it has to be true or false"),
        ("tokenizer.json", {"config": {"normalize": True}}, "unknown: 'normalize'"),
        (
            "tokenizer.json",
            {"config": {"special_tokens_in_strings": True, "special_tokens": ["[E1]"]}},
            "special_tokens is ['[E1]']; it takes a list of pieces",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(preset, name, changes, message):
    change_json(preset / name, **changes)
    assert message in refusal(preset)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "assets/tokenizer/vocabulary.txt"])
def test_a_missing_file_is_named(preset, name):
    (preset / name).unlink()
    assert f"{preset / name}: can't read it: No such file" in refusal(preset)


def test_a_vocabulary_of_more_pieces_than_embeddings_is_refused(preset):
    with open(preset / "assets/tokenizer/vocabulary.txt", "a") as file:
        file.write("more\n")
    assert "has 102 pieces" in refusal(preset) and kerashub.load(preset, None).vocabulary is None


@pytest.mark.parametrize("name", ["task.json", "task.weights.h5", "tokenizer.json"])
def test_a_link_to_nothing_is_no_missing_file(preset, name):
    (preset / name).unlink()
    (preset / name).symlink_to("nowhere")
    assert f"{preset / name}: can't read it" in refusal(preset)


@pytest.mark.parametrize(
    "change", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\x89HDF\r\n\x1a\n" * 99]
)
def test_broken_files_are_refused(preset, change):
    path = preset / "model.weights.h5"
    path.write_bytes(change(path.read_bytes()))
    assert "model.weights.h5: can't read the weights" in refusal(preset)


BIAS = "layers/transformer_encoder/_self_attention_layer/output_dense/vars/1"


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (
            lambda file: file.create_dataset(BIAS, data=np.full(24, np.nan, "f")),
            "NaN or infinity in encode",
        ),
        (lambda file: file.create_dataset(BIAS, data=np.ones(24, "i4")), "no floating type: backbone:layers"),
        (lambda file: file.create_dataset(BIAS, data=np.ones(25, "f")), "misshapen: backbone:layers"),
        (
            lambda file: file.create_dataset(BIAS, (10**12,), "f", chunks=(1024,)),
            "vars/1 isn't whole in it",
        ),
        (lambda file: file.__setitem__(BIAS, h5py.SoftLink("/layers/dense/vars/1")), "missing: backbone/tr"),
        (
            lambda file: file.__setitem__(BIAS, h5py.ExternalLink("other.h5", "/secret")),
            "missing: backbone/transformer_encoder_0/_self_attention_layer/output_dense/vars/1",
        ),
        (
            lambda file: file.create_dataset(BIAS, (24,), "f", external=[("/etc/passwd", 0, 96)]),
            "vars/1 isn't whole in it",
        ),
    ],
)
def test_datasets_that_are_no_weights_are_refused(preset, put, message):
    with h5py.File(preset.parent / "other.h5", "w") as file:
        file["secret"] = np.ones(24, "f")
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        del file[BIAS]
        put(file)
    assert message in refusal(preset)


def test_a_link_out_of_the_folder_is_refused(preset, whole):
    (preset / "model.weights.h5").unlink()
    (preset / "model.weights.h5").symlink_to(whole / "model.weights.h5")
    assert "a link that leads out of its folder" in refusal(preset)


def test_special_tokens_in_texts_are_cut_as_theirs_before_and_after(whole, tmp_path):
    import keras_hub

    literals = ("piece3", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    options = TokenizerOptions(True, True, never_split=literals)
    kerashub.save(replace(kerashub.load(whole), tokenizer_options=options), tmp_path, 30)
    again = kerashub.load(tmp_path)
    assert again.tokenizer_options == options
    texts = ["piece1 [MASK] piece2", "piece2piece3[SEP]Piece4", "[UNK] [mask]"]
    ours = BertTokenizer(again.vocabulary, options)(np.array(texts)).to_list()
    theirs = keras_hub.models.BertTokenizer.from_preset(str(tmp_path))
    assert ours == [np.asarray(theirs(text)).tolist() for text in texts]
    assert ours[0] == [6, 4, 7] and ours[1] == [7, 8, 3, 9] and 1 in ours[2] and 4 not in ours[2]


def test_all_that_kerashub_can_not_compute_is_named(whole, tmp_path):
    pretrained = kerashub.load(whole)
    changes = {"activation": "gelu", "epsilon": 1e-5, "num_segments": 0}
    with pytest.raises(UserError) as caught:
        kerashub.save(replace(pretrained, encoder=pretrained.encoder | changes), tmp_path, 30)
    for part in ("activation 'gelu_new', not 'gelu'", "epsilon 1e-12, not 1e-05", "segments"):
        assert part in str(caught.value)
    options = TokenizerOptions(split_chinese=False, never_split=("piece1",))
    with pytest.raises(UserError) as caught:
        kerashub.save(replace(pretrained, tokenizer_options=options), tmp_path, 30)
    for part in (
        "split_chinese False",
        "never_split with all of [CLS], [SEP], [PAD], [MASK] or none, not pi",
    ):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []
