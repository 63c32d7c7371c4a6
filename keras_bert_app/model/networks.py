"""Encoder and heads put together: functional Keras models, each with the name that papers give its job."""

import dataclasses

import keras

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, TaskConfig, check, to_dict
from keras_bert_app.errors import UserError
from keras_bert_app.model.encoder import BertEncoder
from keras_bert_app.model.heads import (
    ClassificationHead,
    MaskedLanguageModelHead,
    MergeChoices,
    SplitChoices,
)

# Which heads a kind of network has, and whether it reads the pooled vector.
KINDS = {
    "encoder": ((), True),
    "pretraining": (("masked_head", "pair_head"), True),
    "masked_lm": (("masked_head",), False),
    "next_sentence": (("pair_head",), True),
    "sequence_classification": (("head",), True),
    "token_classification": (("head",), False),
    "question_answering": (("head",), False),
    "multiple_choice": (("head",), True),
}
# Those whose outputs have names.
LABELLED = ("sequence_classification", "token_classification")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@dataclasses.dataclass(frozen=True)
class Network:
    """What is on top of the encoder.

    kind: a key of KINDS. labels: names of the classes, of a classifier of texts or tokens; a label's id is
    its place. problem_type: of a classifier of texts, one of PROBLEM_TYPES, as transformers calls them; None:
    not stated. head_dropout: rate before the classifier; None: the encoder's. masked_activation,
    masked_epsilon: of the head that guesses words; None: the encoder's. packed: rows hold several texts, kept
    apart by `sequence_ids`.

    Raises:
        UserError: an unknown kind or problem type, an impossible rate, or labels where there are none.
    """

    kind: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    head_dropout: float | None = None
    masked_activation: str | None = None
    masked_epsilon: float | None = None
    packed: bool = False

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.kind not in KINDS:
            raise UserError(f"the kind of network is {self.kind!r}; it takes one of {', '.join(KINDS)}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise UserError(
                f"the problem type is {self.problem_type!r}; it takes one of {', '.join(PROBLEM_TYPES)}"
            )
        check(TaskConfig(head_dropout=self.head_dropout), "task")
        if (self.kind in LABELLED) != bool(self.labels):
            raise UserError(f"a {self.kind} network with {len(self.labels)} labels can't be")

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads' layers."""
        return KINDS[self.kind][0]

    @property
    def num_outputs(self) -> int:
        """Width of the layer `head`: a logit a label, a start and an end, or a logit a choice."""
        return {"question_answering": 2, "multiple_choice": 1}.get(self.kind, len(self.labels))

    def encoder(self, encoder: EncoderConfig) -> EncoderConfig:
        """The encoder with no pooler where nothing reads what it gives."""
        return encoder if KINDS[self.kind][1] else dataclasses.replace(encoder, pooling="mean")

    def build(self, encoder: EncoderConfig, precision: str, name: str | None = None) -> keras.Model:
        """The model; its encoder is the layer `encoder`.

        Inputs: features.ENCODER_INPUTS, int or bool [B, S], for multiple_choice [B, K, S] of K choices;
        `masked_positions` int [B, P] where words are guessed. Outputs, as float32 at least:
        encoder: `sequence` [B, S, H], `pooled` [B, H], in the policy's compute dtype. pretraining:
        `masked_logits` [B, P, V] and `pair_logits` [B, 2]; masked_lm and next_sentence: one of them.
        sequence_classification: `logits` [B, C]. token_classification: `logits` [B, S, C].
        question_answering: `logits` [B, S, 2], of start and end. multiple_choice: `logits` [B, K].
        """
        dtypes = features.ENCODER_INPUTS | ({features.SEQUENCE_IDS: "int32"} if self.packed else {})
        shape = (None, None) if self.kind == "multiple_choice" else (None,)
        inputs = {key: keras.Input(shape, dtype=dtype, name=key) for key, dtype in dtypes.items()}
        texts = inputs
        if self.kind == "multiple_choice":
            texts = {key: MergeChoices(dtype=dtypes[key])(value) for key, value in inputs.items()}
        layer = BertEncoder(**to_dict(self.encoder(encoder)), dtype=precision, name="encoder")
        encoded = layer(texts, return_token_embeddings="masked_head" in self.heads)
        if not self.heads:
            outputs = {key: encoded[key] for key in (features.SEQUENCE, features.POOLED)}
            return keras.Model(inputs, outputs, name=name or self.kind)
        if "masked_head" in self.heads:
            positions = keras.Input((None,), dtype="int32", name=features.MASKED_POSITIONS)
            inputs = inputs | {features.MASKED_POSITIONS: positions}
        outputs = {}
        for head in self.heads:
            outputs |= self._answer(head, encoder, precision, inputs, encoded)
        return keras.Model(inputs, outputs, name=name or self.kind)

    def _answer(self, head, encoder, precision, inputs, encoded):
        """What a head makes of the encoder's outputs, by name."""
        if head == "masked_head":
            layer = MaskedLanguageModelHead(
                self.masked_activation or encoder.activation,
                encoder.epsilon if self.masked_epsilon is None else self.masked_epsilon,
                encoder.initializer_range,
                dtype=precision,
                name=head,
            )
            logits = layer(
                encoded[features.SEQUENCE],
                inputs[features.MASKED_POSITIONS],
                encoded[features.TOKEN_EMBEDDINGS],
            )
            return {features.MASKED_LOGITS: logits}
        pooled, sequence = encoded[features.POOLED], encoded[features.SEQUENCE]
        if head == "pair_head":
            # BERT has no dropout here, unlike the classifiers made from it.
            layer = ClassificationHead(2, 0.0, encoder.initializer_range, dtype=precision, name=head)
            return {features.PAIR_LOGITS: layer(pooled)}
        dropout = encoder.dropout if self.head_dropout is None else self.head_dropout
        layer = ClassificationHead(
            self.num_outputs, dropout, encoder.initializer_range, dtype=precision, name=head
        )
        logits = layer(pooled if KINDS[self.kind][1] else sequence)
        if self.kind == "multiple_choice":
            logits = SplitChoices(dtype=logits.dtype)(logits, inputs[features.TOKEN_IDS])
        return {features.LOGITS: logits}
