"""One label, or several, for a text or a pair of texts (Devlin et al. 2019, section 4.1)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import scipy
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.config import Config, DataConfig, EncoderConfig
from keras_bert_app.data.readers import Record
from keras_bert_app.errors import UserError
from keras_bert_app.model.flops import encoder_flops
from keras_bert_app.model.networks import Network
from keras_bert_app.tasks.answers import BEST_LABEL, AnswerOptions, answer, answer_several
from keras_bert_app.tasks.metrics import (
    classification_metrics,
    multi_label_metrics,
    worst_mistakes,
    worst_sets,
)
from keras_bert_app.tasks.signatures import (
    CLASSIFY,
    REGRESS,
    SERVING_DEFAULT,
    of_examples,
    of_texts,
    text_signatures,
)
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.text.vocabulary import Vocabulary

ONE_LABEL, SEVERAL_LABELS = "single_label_classification", "multi_label_classification"


class ClassificationTask:
    """Softmax over labels, or a sigmoid of each where a text may have several or none.

    Args:
        labels: label names; a label's id is its place.
        text_inputs: features.TEXT, and features.TEXT_PAIR where the texts come in pairs.
        head_dropout: rate before the classifier; None: the encoder's.
        problem_type: ONE_LABEL or SEVERAL_LABELS, as transformers calls them.

    Raises:
        UserError: too few labels: fewer than two, or none where texts may have several.
    """

    name = "classification"
    inputs_dtypes = features.ENCODER_INPUTS

    # Whose weights are never taken from those that a run starts from, but where config.init_head says so.
    fresh = ("head",)

    def __init__(
        self,
        labels: Sequence[str],
        text_inputs: Sequence[str],
        head_dropout: float | None = None,
        problem_type: str = ONE_LABEL,
    ):
        self.several = problem_type == SEVERAL_LABELS
        if self.several and not labels:
            raise UserError("the training set has no labels; a classifier of several needs one")
        if len(labels) < 2 and not self.several:
            raise UserError(
                f"the training set has only the label {', '.join(labels)!r}; a classifier needs two"
            )
        self.labels = tuple(labels)
        self.text_inputs = tuple(text_inputs)
        self.head_dropout = head_dropout
        self.problem_type = problem_type
        # Those that may choose the checkpoint, the first by default: higher is better.
        self.selection_metrics = (
            ("micro_f1", "macro_f1", "exact_match")
            if self.several
            else ("accuracy", "macro_f1", "micro_f1", "mcc")
        )
        self.targets_specs = {
            features.LABEL: tf.TensorSpec([None, len(labels)], "float32")
            if self.several
            else tf.TensorSpec([None], "int32"),
            features.WEIGHT: tf.TensorSpec([None], "float32"),
        }

    @classmethod
    def from_records(cls, config: Config, records: Sequence[Record]) -> "ClassificationTask":
        """The task whose labels are those of the training records, sorted.

        Raises:
            UserError: too few labels, or a wish that isn't for texts of several.
        """
        several = config.data.label_separator is not None
        if several and config.task.class_weights != "none":
            raise UserError(
                f"config.task.class_weights is {config.task.class_weights}, which is for one label a text; "
                "leave it unset with config.data.label_separator"
            )
        labels = sorted({label for record in records for label in _labels_of(record)})
        if several and not labels:
            raise UserError(
                f"{records[0].where}: no label here, nor in any row of the training set that follows; "
                "a classifier needs one"
            )
        pair = (features.TEXT_PAIR,) if config.data.pair_column else ()
        problem_type = SEVERAL_LABELS if several else ONE_LABEL
        return cls(labels, (features.TEXT, *pair), config.task.head_dropout, problem_type)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "labels": list(self.labels),
            "text_inputs": list(self.text_inputs),
            "head_dropout": self.head_dropout,
            "problem_type": self.problem_type,
        }

    @property
    def network(self) -> Network:
        """What is on top of the encoder."""
        return Network("sequence_classification", self.labels, self.problem_type, self.head_dropout)

    @staticmethod
    def columns(data: DataConfig, labelled: bool = True) -> dict[str, str]:
        """Feature name -> column name of the files."""
        columns = {
            features.TEXT: data.text_column,
            features.TEXT_PAIR: data.pair_column,
            features.LABEL: data.label_column if labelled else None,
            features.GROUP: data.group_column if labelled else None,
        }
        return {name: column for name, column in columns.items() if column is not None}

    def targets(self, records: Sequence[Record], class_weights: str = "none") -> dict[str, np.ndarray]:
        """Label ids int32 [N] and weights float32 [N]; balanced weights are N / (C * count of the label).

        Where texts may have several labels, float32 [N, C] of 0 and 1 in place of ids.

        Raises:
            UserError: a label that the training set doesn't have; names its file and line.
        """
        ids = {label: place for place, label in enumerate(self.labels)}
        for record in records:
            for label in _labels_of(record):
                if label not in ids:
                    raise UserError(
                        f"{record.where}: unknown label {label!r}; "
                        f"the training set has {', '.join(self.labels)}"
                    )
        weights = np.ones(len(records), "float32")
        if self.several:
            sets = np.zeros((len(records), len(self.labels)), "float32")
            for row, record in enumerate(records):
                sets[row, [ids[label] for label in _labels_of(record)]] = 1
            return {features.LABEL: sets, features.WEIGHT: weights}
        label_ids = np.array([ids[record.values[features.LABEL]] for record in records], "int32")
        if class_weights == "balanced":
            counts = np.bincount(label_ids, minlength=len(self.labels))
            weights = (len(records) / (len(self.labels) * counts))[label_ids].astype("float32")
        return {features.LABEL: label_ids, features.WEIGHT: weights}

    def no_targets(self, count: int) -> dict[str, np.ndarray]:
        """Targets of `count` unlabelled texts, which nothing reads."""
        return {
            name: np.zeros([count, *spec.shape[1:]], spec.dtype.as_numpy_dtype)
            for name, spec in self.targets_specs.items()
        }

    def build_model(self, encoder: EncoderConfig, precision: str) -> keras.Model:
        """The encoder's inputs -> {logits: float [B, C]}, as a functional Keras model."""
        return self.network.build(encoder, precision, self.name)

    def forward_flops(self, config: Config, encoder: EncoderConfig, lengths: np.ndarray) -> float:
        """Floating-point operations of one pass over texts of so many tokens, int [B]; see model/flops.py."""
        return encoder_flops(encoder, lengths) + 2.0 * encoder.hidden_dim * len(self.labels) * len(lengths)

    def preparation(self, config: Config, vocabulary: Vocabulary) -> None:
        """What is done to batches before the model sees them: nothing."""

    def losses(
        self, outputs: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Name -> cross entropy in nats, [B]; the mean over the labels where a text may have several."""
        logits = outputs[features.LOGITS]
        if self.several:
            each = keras.ops.binary_crossentropy(
                keras.ops.cast(batch[features.LABEL], logits.dtype), logits, from_logits=True
            )
            return {"loss": keras.ops.mean(each, axis=-1)}
        return {
            "loss": keras.ops.sparse_categorical_crossentropy(batch[features.LABEL], logits, from_logits=True)
        }

    def measures(
        self, outputs: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Name -> values to show during training beside the losses: none."""
        return {}

    def weights(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The weights by which the loss is averaged over the global batch, float32 [B]."""
        return {"loss": batch[features.WEIGHT]}

    def predictions(
        self, outputs: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """What evaluation keeps of a batch: all outputs."""
        return dict(outputs)

    def metrics(self, outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Model outputs [N, ...] and targets [N, ...] -> metrics; see tasks/metrics.py."""
        measure = multi_label_metrics if self.several else classification_metrics
        return measure(targets[features.LABEL], self.probabilities(outputs[features.LOGITS]), self.labels)

    def worst_mistakes(
        self, records: Sequence[Record], outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """The wrong predictions the model was surest of; see tasks/metrics.py."""
        texts = [" ¶ ".join(record.values[name] for name in self.text_inputs) for record in records]
        probabilities = self.probabilities(outputs[features.LOGITS])
        find = worst_sets if self.several else worst_mistakes
        return find(texts, targets[features.LABEL], probabilities, self.labels)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits [N, C] -> probabilities [N, C], in float64."""
        if self.several:
            return scipy.special.expit(np.asarray(logits, "float64"))
        shifted = np.exp(np.asarray(logits, "float64") - np.max(logits, axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)

    def decode(
        self, outputs: Mapping[str, tf.Tensor], options: AnswerOptions = BEST_LABEL
    ) -> Mapping[str, tf.Tensor]:
        """{logits [B, C]} -> probabilities float32 [B, C] and more; see answers.py."""
        give = answer_several if self.several else answer
        return give(outputs[features.LOGITS], self.labels, options)

    def signatures(
        self, network: Callable, packer: TextPacker, options: AnswerOptions = BEST_LABEL
    ) -> dict[str, Any]:
        """Signature name -> concrete function with the named inputs and outputs that a bundle has.

        network: as `with_pooled` gives it.

        serving_default: the texts, string [B] each -> what `decode` gives, num_tokens int32 [B], truncated
        bool [B].
        classify: serialized tf.Example, string [B] -> classes string [B, C], scores float32 [B, C].
        regress, where it is one of two labels: the same -> outputs float32 [B], the second's probability.
        And those of `text_signatures`.
        """

        read = tf.function(packer.read)

        def serving_default(texts):
            inputs, extent = read(texts)
            return self.decode(network(inputs, training=False), options) | extent

        def probabilities(texts):
            inputs, _ = read(texts)
            return self.decode(network(inputs, training=False), options)[features.PROBABILITIES]

        def classify(texts):
            scores = probabilities(texts)
            return {
                features.CLASSES: tf.tile(tf.constant([self.labels]), [tf.shape(scores)[0], 1]),
                features.SCORES: scores,
            }

        def regress(texts):
            return {features.OUTPUTS: probabilities(texts)[:, 1]}

        signatures = {
            SERVING_DEFAULT: of_texts(serving_default, self.text_inputs),
            CLASSIFY: of_examples(classify, self.text_inputs),
        }
        if len(self.labels) == 2 and not self.several:
            signatures[REGRESS] = of_examples(regress, self.text_inputs)
        return signatures | text_signatures(network, packer, read, self.text_inputs)


def _labels_of(record: Record) -> tuple[str, ...]:
    label = record.values[features.LABEL]
    return (label,) if isinstance(label, str) else label
