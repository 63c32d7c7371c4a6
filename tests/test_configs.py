import importlib
from pathlib import Path

import pytest

import configs
from configs.sizes import SIZES
from keras_bert_app import config as configuration

FILES = sorted(path.stem for path in Path(configs.__file__).parent.glob("[!_]*.py") if path.stem != "sizes")


def test_there_are_configs():
    assert {"classification", "sentiment"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_config_freezes_and_says_how_it_is_run(name):
    module = importlib.import_module(f"configs.{name}")
    assert configuration.freeze(module.get_config()).train.epochs >= 1
    assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", FILES)
def test_a_config_is_made_anew_on_every_call(name):
    module = importlib.import_module(f"configs.{name}")
    module.get_config().train.batch_size = 7
    assert module.get_config().train.batch_size != 7


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_a_whole_encoder(name):
    config = configuration.default()
    config.encoder.update(SIZES[name])
    frozen = configuration.freeze(config).encoder
    encoder = configuration.complete_encoder(frozen, {"vocabulary_size": 100})
    assert encoder.hidden_dim == 64 * encoder.num_heads
    assert encoder.intermediate_dim == 4 * encoder.hidden_dim
