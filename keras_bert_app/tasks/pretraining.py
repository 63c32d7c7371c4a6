"""What stands behind the mask, and how two texts belong together (Devlin et al. 2019, section 3.1)."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.config import Config, EncoderConfig, to_dict
from keras_bert_app.errors import UserError
from keras_bert_app.model.flops import encoder_flops
from keras_bert_app.model.networks import Network
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.text.vocabulary import Vocabulary

PAIR_OBJECTIVES = ("nsp", "sop", "none")


class PretrainingTask:
    """Masked language modelling, alone or with a binary question about the two texts.

    A batch has gone through text.masking.TokenMasker before it comes here.

    Args:
        pair_objective: "nsp", whether the second text follows the first or is another document's (Devlin et
            al. 2019); "sop", whether the two stand in their order or swapped (Lan et al. 2020, "ALBERT",
            section 3.1); "none", for rows without pairs. From nsp to sop only the examples differ.
        packed: rows hold several texts, kept apart by `sequence_ids`; without pairs only.
        masked_activation, masked_epsilon: of the head that guesses tokens; None: the encoder's.

    Raises:
        UserError: an unknown objective, or packed pairs.
    """

    name = "pretraining"
    # Those that may choose the checkpoint: higher is better.
    selection_metrics = ("mlm_log_likelihood", "mlm_accuracy")
    # It has no question that a text alone could be asked.
    text_inputs = ()
    # Its heads go on from those that a run starts from.
    fresh = ()

    def __init__(
        self,
        pair_objective: str = "nsp",
        packed: bool = False,
        masked_activation: str | None = None,
        masked_epsilon: float | None = None,
    ):
        if pair_objective not in PAIR_OBJECTIVES:
            raise UserError(
                f"the pair objective is {pair_objective!r}; it takes one of {', '.join(PAIR_OBJECTIVES)}"
            )
        if packed and pair_objective != "none":
            raise UserError(
                f"several texts are packed into a row only where the pair objective is none; "
                f"it is {pair_objective}"
            )
        self.pair_objective = pair_objective
        self.pairs = pair_objective != "none"
        self.packed = packed
        self.masked_activation, self.masked_epsilon = masked_activation, masked_epsilon
        self.inputs_dtypes = features.ENCODER_INPUTS | ({features.SEQUENCE_IDS: "int32"} if packed else {})
        pair_specs = {features.NEXT_SENTENCE_LABEL: tf.TensorSpec([None], "int32")} if self.pairs else {}
        self.targets_specs = pair_specs | {features.WEIGHT: tf.TensorSpec([None], "float32")}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "pair_objective": self.pair_objective,
            "packed": self.packed,
            "masked_activation": self.masked_activation,
            "masked_epsilon": self.masked_epsilon,
        }

    @property
    def network(self) -> Network:
        """What is on top of the encoder."""
        return Network(
            "pretraining" if self.pairs else "masked_lm",
            masked_activation=self.masked_activation,
            masked_epsilon=self.masked_epsilon,
            packed=self.packed,
        )

    def build_model(self, encoder: EncoderConfig, precision: str) -> keras.Model:
        """The encoder's inputs and masked_positions -> {masked_logits [B, P, V], pair_logits [B, 2]}.

        Without pairs there are no pair_logits, and no pooler, which nothing would train.
        """
        return self.network.build(encoder, precision, self.name)

    def forward_flops(self, config: Config, encoder: EncoderConfig, lengths: np.ndarray) -> float:
        """Floating-point operations of one pass forward; see model/flops.py.

        Args:
            lengths: tokens of each text, or pair of texts in one row, int [texts]. Of each text
                `config.masking.rate` is taken to be masked, special tokens as well.
        """
        masking, hidden = config.masking, encoder.hidden_dim
        masked = np.minimum(np.multiply(masking.rate, lengths), masking.max_predictions or np.inf).sum()
        masked_head = 2 * masked * (encoder.embedding_dim or hidden) * (hidden + encoder.vocabulary_size)
        pair_head = 4 * hidden * len(lengths) if self.pairs else 0
        return encoder_flops(self.network.encoder(encoder), lengths) + float(masked_head + pair_head)

    def preparation(self, config: Config, vocabulary: Vocabulary) -> TokenMasker:
        """What is done to batches before the model sees them: tokens are hidden.

        Raises:
            UserError: an impossible setting.
        """
        return TokenMasker(vocabulary, **to_dict(config.masking))

    def losses(
        self, outputs: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Name -> cross entropy in nats, [B, P] for masked tokens, [B] for pairs."""
        losses = {"mlm_loss": _cross_entropy(batch[features.MASKED_IDS], outputs[features.MASKED_LOGITS])}
        if self.pairs:
            losses[f"{self.pair_objective}_loss"] = _cross_entropy(
                batch[features.NEXT_SENTENCE_LABEL], outputs[features.PAIR_LOGITS]
            )
        return losses

    def measures(
        self, outputs: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Name -> whether it was right, shaped as the losses; for the eye alone."""
        measures = {"mlm_accuracy": _correct(batch[features.MASKED_IDS], outputs[features.MASKED_LOGITS])}
        if self.pairs:
            measures[f"{self.pair_objective}_accuracy"] = _correct(
                batch[features.NEXT_SENTENCE_LABEL], outputs[features.PAIR_LOGITS]
            )
        return measures

    def weights(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """By which each loss and measure is averaged over the global batch: float32 [B, P] or [B].

        0 for padding, and for rows that only fill up a batch: means are over masked tokens, and over rows.
        """
        masked = batch[features.MASKED_WEIGHTS] * batch[features.WEIGHT][:, None]
        weights = {"mlm_loss": masked, "mlm_accuracy": masked}
        if self.pairs:
            weights |= dict.fromkeys(
                (f"{self.pair_objective}_loss", f"{self.pair_objective}_accuracy"), batch[features.WEIGHT]
            )
        return weights

    def predictions(
        self, outputs: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """What evaluation keeps of a batch: for each loss and measure its sum over a row, [B].

        Beside them `num_masked`, float32 [B]. The logits of all rows would fill any memory.
        """
        rows = {"num_masked": tf.reduce_sum(batch[features.MASKED_WEIGHTS], axis=1)}
        for name, values in (self.losses(outputs, batch) | self.measures(outputs, batch)).items():
            if name.startswith("mlm_"):
                values = tf.reduce_sum(values * tf.cast(batch[features.MASKED_WEIGHTS], values.dtype), axis=1)
            rows[name] = values
        return rows

    def metrics(self, outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The `predictions` of all rows [N] and their targets [N] -> metrics, as values that JSON can hold.

        Returns:
            `num_examples` and `num_masked`; `mlm_loss` in nats, averaged over masked tokens, `perplexity`,
            its exponential, `mlm_log_likelihood`, its negative, and `mlm_accuracy`; with pairs the loss and
            accuracy under the objective's name; `loss`, the sum of the losses. Means over nothing are 0.
        """
        weights = np.asarray(targets[features.WEIGHT], "float64")
        counts = {
            "mlm": float(np.sum(outputs["num_masked"] * weights)),
            self.pair_objective: float(weights.sum()),
        }

        def mean(name):
            total = float(np.sum(np.asarray(outputs[name], "float64") * weights))
            return total / (counts[name.split("_")[0]] or 1.0)

        names = [
            f"{objective}_{kind}"
            for objective in counts
            if objective != "none"
            for kind in ("loss", "accuracy")
        ]
        means = {name: mean(name) for name in names}
        return {
            "num_examples": int(np.count_nonzero(weights)),
            "num_masked": round(counts["mlm"]),
            "loss": sum(value for name, value in means.items() if name.endswith("_loss")),
            "perplexity": float(np.exp(means["mlm_loss"])),
            "mlm_log_likelihood": -means["mlm_loss"],
        } | means


def _cross_entropy(label_ids, logits):
    """int [...] and float [..., C] -> nats [...]"""
    return keras.ops.sparse_categorical_crossentropy(label_ids, logits, from_logits=True)


def _correct(label_ids, logits):
    """int [...] and float [..., C] -> 1 or 0, float [...]"""
    return tf.cast(tf.argmax(logits, axis=-1, output_type=label_ids.dtype) == label_ids, logits.dtype)
