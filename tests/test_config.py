import dataclasses
import json

import pytest

from keras_bert_app import config as configuration
from keras_bert_app.config import Config, freeze
from keras_bert_app.errors import UserError


def frozen(path, value):
    """The config with one key changed from its default."""
    values = configuration.to_dict(Config())
    *sections, name = path.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[name] = value
    return freeze(values)


def test_the_defaults_freeze_to_the_defaults():
    assert freeze(configuration.default()) == Config()
    assert freeze({}) == Config()


def test_a_frozen_config_goes_through_json_and_back():
    config = frozen("train.learning_rate", 3e-5)
    assert freeze(json.loads(json.dumps(configuration.to_dict(config)))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.learning_rate = 1.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.lerning_rate", 1.0, "unknown key config.train.lerning_rate; did you mean config.train.lea"),
        ("learning_rate", 1.0, "unknown key config.learning_rate; did you mean config.train.learning_rate?"),
        (
            "xyzzy",
            1,
            "unknown key config.xyzzy; at the top there are seed, init, init_head, fresh, text,",
        ),
        ("train", 3, "config.train is 3; it takes a section of keys"),
        ("train.batch_size", "32", "config.train.batch_size is '32'; it takes a whole number"),
        ("train.batch_size", 1.5, "config.train.batch_size is 1.5; it takes a whole number"),
        ("train.batch_size", True, "config.train.batch_size is True; it takes a whole number"),
        ("train.batch_size", None, "config.train.batch_size is None; it takes a whole number"),
        ("train.deterministic", 1, "config.train.deterministic is 1; it takes true or false"),
        ("train.learning_rate", "x", "config.train.learning_rate is 'x'; it takes a number"),
        ("data.train", 7, "config.data.train is 7; it takes a string"),
        ("train.batch_size", 0, "config.train.batch_size is 0; it takes at least 1"),
        ("train.learning_rate", -1e-5, "config.train.learning_rate is -1e-05; it takes at least 0"),
        ("train.learning_rate", float("nan"), "config.train.learning_rate is nan; it takes a finite number"),
        ("train.learning_rate", float("inf"), "config.train.learning_rate is inf; it takes a finite number"),
        ("encoder.dropout", 1.0, "config.encoder.dropout is 1.0; it takes less than 1"),
        ("text.max_length", 4, "config.text.max_length is 4; it takes at least 5"),
        ("train.precision", "float23", "config.train.precision is 'float23'; it takes one of float32, "),
        ("train.strategy", "miror", "did you mean 'mirrored'?"),
    ],
)
def test_a_wrong_key_or_value_is_refused_in_one_line_that_names_it(path, value, message):
    with pytest.raises(UserError) as error:
        frozen(path, value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_whole_number_will_do_where_a_number_is_taken():
    value = frozen("train.clip_norm", 2).train.clip_norm
    assert (value, type(value)) == (2.0, float)


def test_phases_are_frozen_sections_that_go_through_json_and_back():
    values = configuration.default()
    values.phases = ({"share": 0.9, "train": "examples-128"}, {"share": 0.1, "batch_size": 8})
    config = freeze(values)
    assert [(phase.share, phase.train, phase.batch_size) for phase in config.phases] == [
        (0.9, "examples-128", None),
        (0.1, None, 8),
    ]
    assert freeze(json.loads(json.dumps(configuration.to_dict(config)))) == config


def test_pieces_that_are_never_split_go_through_json_and_back():
    config = frozen("text.never_split", ["[MASK]", "[SEP]"])
    assert config.text.never_split == ("[MASK]", "[SEP]")
    assert freeze(json.loads(json.dumps(configuration.to_dict(config)))) == config
    with pytest.raises(UserError, match=r"config\.text\.never_split\[1\] is 3; it takes a"):
        frozen("text.never_split", ("[MASK]", 3))
    with pytest.raises(
        UserError, match=r"config\.text\.never_split is '\[MASK\]'; it takes a tuple of values"
    ):
        frozen("text.never_split", "[MASK]")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (({"share": 0.5},), "the shares of config.phases add up to 0.5; they have to make 1"),
        (({"shares": 1.0},), "unknown key config.phases[0].shares"),
        (({"share": 1.0, "batch_size": 0},), "config.phases[0].batch_size is 0; it takes at least 1"),
        ((3,), "config.phases[0] is 3; it takes a section of keys"),
        ("x", "config.phases is 'x'; it takes a tuple of sections"),
    ],
)
def test_wrong_phases_are_refused(phases, message):
    with pytest.raises(UserError) as error:
        freeze({"phases": phases})
    assert message in str(error.value)


def test_what_a_begun_run_may_change_is_devices_and_upkeep():
    everything = configuration.to_dict(Config())
    fixed = configuration.fixed_keys(everything)
    gone = everything["train"].keys() - fixed["train"].keys()
    assert gone == {
        "strategy",
        "num_devices",
        "accumulation",
        "jit",
        "recompute",
        "checkpoint_every",
        "keep_checkpoints",
        "peak_flops",
    }
    assert {name: section for name, section in fixed.items() if name != "train"} == {
        name: section for name, section in everything.items() if name != "train"
    }


def test_heads_that_do_not_divide_the_width_are_refused_with_the_nearest_that_do():
    values = configuration.default()
    values.encoder.num_heads, values.encoder.hidden_dim = 7, 384
    with pytest.raises(UserError, match="config.encoder.num_heads is 7.* 384; the nearest that does is 6"):
        freeze(values)
    with pytest.raises(UserError, match="num_heads is 5, which doesn't divide config.encoder.hidden_dim 768"):
        configuration.complete_encoder(configuration.EncoderConfig(num_heads=5), {"vocabulary_size": 10})


def test_the_encoder_is_what_the_config_asks_else_what_the_weights_say_else_berts():
    wanted = configuration.EncoderConfig(dropout=0.0)
    encoder = configuration.complete_encoder(wanted, {"vocabulary_size": 10, "dropout": 0.3, "num_layers": 6})
    assert (encoder.dropout, encoder.num_layers, encoder.hidden_dim) == (0.0, 6, 768)
    with pytest.raises(UserError, match="config.encoder.vocabulary_size is not set"):
        configuration.complete_encoder(wanted, {})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.batchsize=3", "did you mean config.train.batch_size?"),
        ("--config.batch_size", "did you mean config.train.batch_size?"),
        ("--config.train=3", "--config.train is a section, not a key; set one of its keys, such as "),
        ("--config.seed.x=3", "unknown flag --config.seed.x"),
    ],
)
def test_a_flag_of_no_key_is_refused_with_the_nearest(flag, message):
    with pytest.raises(UserError) as error:
        configuration.check_flags(["--workdir=x", flag])
    assert message in str(error.value)


def test_flags_of_keys_and_what_follows_two_dashes_pass():
    configuration.check_flags(["--config.train.batch_size=3", "-config.init", "x", "--", "--config.nothing"])


def test_every_key_is_documented_with_its_default():
    keys = {key: (default, help) for key, default, help in configuration.documented_keys()}
    assert keys["train.batch_size"][0] == 32
    assert "float32, mixed_bfloat16, mixed_float16, float64" in keys["train.precision"][1]
    assert all(help for _, help in keys.values())


def test_differences_name_each_key_that_changed():
    one, other = (configuration.to_dict(frozen("train.epochs", epochs)) for epochs in (3, 4))
    assert configuration.differences(one, other) == ["config.train.epochs: 3 -> 4"]
    assert configuration.differences(one, one) == []
