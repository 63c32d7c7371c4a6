"""A network that no task here trains or asks: an encoder alone, or one with a head of another job."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from keras_bert_app.config import EncoderConfig
from keras_bert_app.model.networks import Network


class BareNetwork:
    """What is imported and has no task: to be inspected, published, loaded by Keras, and started from.

    Args: as model.Network.
    """

    name = "bare"
    text_inputs = ()

    def __init__(
        self,
        kind: str,
        labels: Sequence[str] = (),
        problem_type: str | None = None,
        head_dropout: float | None = None,
    ):
        self.network = Network(kind, labels, problem_type, head_dropout)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        config = dataclasses.asdict(self.network)
        return {key: config[key] for key in ("kind", "problem_type", "head_dropout")} | {
            "labels": list(self.network.labels)
        }

    def build_model(self, encoder: EncoderConfig, precision: str) -> keras.Model:
        """See model.Network.build."""
        return self.network.build(encoder, precision)
