"""Operations against those that PyTorch counts while transformers' models run."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from keras_bert_app import features
from keras_bert_app.config import Config, EncoderConfig, MaskingConfig, complete_encoder
from keras_bert_app.model.flops import encoder_flops, text_lengths
from keras_bert_app.tasks.classification import ClassificationTask
from keras_bert_app.tasks.pretraining import PretrainingTask

LENGTHS = (7, 30, 128)
ENCODER = complete_encoder(
    EncoderConfig(),
    {
        "vocabulary_size": 70,
        "num_layers": 3,
        "num_heads": 4,
        "hidden_dim": 32,
        "intermediate_dim": 96,
        "max_positions": 128,
    },
)


def counted(model_class, config_class=transformers.BertConfig, **settings):
    """What transformers' model computes for a text of each length, one after another."""
    config = config_class(
        vocab_size=70,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_size=32,
        intermediate_size=96,
        max_position_embeddings=128,
        attn_implementation="eager",
        **settings,
    )
    model = model_class(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for length in LENGTHS:
            model(input_ids=torch.ones(1, length, dtype=torch.long))
    return counter.get_total_flops()


def test_an_encoder_computes_what_transformers_does():
    assert encoder_flops(ENCODER, LENGTHS) == counted(transformers.BertModel)
    assert encoder_flops(ENCODER, []) == 0


def test_the_heads_compute_what_those_of_transformers_do():
    # Theirs for masked tokens works on every position.
    every = Config(masking=MaskingConfig(rate=1.0))
    pretraining, masked = (
        PretrainingTask(objective).forward_flops(every, ENCODER, LENGTHS) for objective in ("nsp", "none")
    )
    assert pretraining == counted(transformers.BertForPreTraining)
    assert masked == counted(transformers.BertForMaskedLM)
    classifier = ClassificationTask(["a", "b", "c"], [features.TEXT]).forward_flops(every, ENCODER, LENGTHS)
    assert classifier == counted(transformers.BertForSequenceClassification, num_labels=3)


def test_narrow_embeddings_are_projected_and_masked_tokens_back():
    narrow = dataclasses.replace(ENCODER, embedding_dim=8, pooling="mean")
    settings = {"config_class": transformers.ElectraConfig, "embedding_size": 8}
    assert encoder_flops(narrow, LENGTHS) == counted(transformers.ElectraModel, **settings)
    every = Config(masking=MaskingConfig(rate=1.0))
    masked = PretrainingTask("none").forward_flops(every, narrow, LENGTHS)
    assert masked == counted(transformers.ElectraForMaskedLM, **settings)


@pytest.mark.parametrize(("most", "masked"), [(None, 0.15 * 165), (10, 0.15 * 37 + 10)])
def test_the_masked_head_works_on_the_masked_share(most, masked):
    config = Config(masking=MaskingConfig(rate=0.15, max_predictions=most))
    task, hidden = PretrainingTask("none"), ENCODER.hidden_dim
    head = task.forward_flops(config, ENCODER, LENGTHS) - task.forward_flops(
        Config(masking=MaskingConfig(rate=0.0)), ENCODER, LENGTHS
    )
    assert head == pytest.approx(masked * 2 * (hidden * hidden + hidden * 70))


def test_lengths_are_those_of_the_texts_however_they_lie_in_rows():
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    assert text_lengths({features.PADDING_MASK: mask}).tolist() == [3, 5]
    numbers = np.array([[1, 1, 2, 0, 0], [1, 2, 2, 3, 3]])
    packed = {features.PADDING_MASK: numbers > 0, features.SEQUENCE_IDS: numbers}
    assert text_lengths(packed).tolist() == [2, 1, 1, 2, 2]
    assert text_lengths({features.SEQUENCE_IDS: np.zeros((2, 3), int)}).tolist() == []
