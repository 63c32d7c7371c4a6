"""What transformers calls BERT and its relatives: names of tensors, settings and classes, as data.

A relative is here if it differs from BERT by where positions start, missing segments, a projection of the
embeddings, or names. The classes are those of transformers' modeling_bert.py, modeling_roberta.py,
modeling_distilbert.py and modeling_electra.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_bert_app.config import EncoderConfig
from keras_bert_app.convert.rows import TRANSPOSED, Row, Theirs, Tie, Transform, blocks
from keras_bert_app.model.networks import Network


def _layer(ours: str, theirs: str, shape: str, kernel: Transform = TRANSPOSED) -> tuple[Row, Row]:
    """Kernel and bias of a dense layer, whose tensor has the shape `shape`, [out, in]."""
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", shape, kernel),
        Row(f"{ours}/bias", f"{theirs}.bias", shape[0]),
    )


def _norm(ours: str, theirs: str, shape: str) -> tuple[Row, Row]:
    return Row(f"{ours}/gamma", f"{theirs}.weight", shape), Row(f"{ours}/beta", f"{theirs}.bias", shape)


def _embeddings(segments: bool) -> tuple[Row, ...]:
    rows = [
        Row("encoder/embeddings/token/embeddings", "embeddings.word_embeddings.weight", "VE"),
        Row("encoder/embeddings/position", "embeddings.position_embeddings.weight", "ME"),
        *_norm("encoder/embeddings/norm", "embeddings.LayerNorm", "E"),
    ]
    if segments:
        theirs = "embeddings.token_type_embeddings.weight"
        rows.append(Row("encoder/embeddings/segment/embeddings", theirs, "GE"))
    return tuple(rows)


def _block(query, key, value, output, attention_norm, intermediate, output_dense, output_norm):
    """The rows of a block from their names of its layers."""
    ours = "encoder/block_{i}"
    return (
        *_layer(f"{ours}/attention/query", query, "HH"),
        *_layer(f"{ours}/attention/key", key, "HH"),
        *_layer(f"{ours}/attention/value", value, "HH"),
        *_layer(f"{ours}/attention/output", output, "HH"),
        *_norm(f"{ours}/attention_norm", attention_norm, "H"),
        *_layer(f"{ours}/intermediate", intermediate, "FH"),
        *_layer(f"{ours}/output", output_dense, "HF"),
        *_norm(f"{ours}/output_norm", output_norm, "H"),
    )


def _masked_head(dense, norm, bias):
    return (
        *_layer("masked_head/dense", dense, "EH"),
        *_norm("masked_head/norm", norm, "E"),
        Row("masked_head/bias", bias, "V"),
    )


_POOLER = "encoder/pooler"
_WORDS = "embeddings.word_embeddings.weight"
_BERT_BLOCK = _block(
    *(f"encoder.layer.{{i}}.attention.self.{name}" for name in ("query", "key", "value")),
    "encoder.layer.{i}.attention.output.dense",
    "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layer.{i}.intermediate.dense",
    "encoder.layer.{i}.output.dense",
    "encoder.layer.{i}.output.LayerNorm",
)
_CLASSIFIER, _SPANS = _layer("head/logits", "classifier", "OH"), _layer("head/logits", "qa_outputs", "OH")

# Our setting's key in their config.json.
BERT_KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}
# Settings that change what is computed, and the only values with which it is what ours computes.
_BERT_FIXED = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": (None, {}, []),
}


@dataclass(frozen=True)
class Family:
    """One model_type.

    prefix: of the encoder's tensors where there are heads. classes: kind of network -> class, the names of
    `architectures`. keys: our setting -> theirs. implied: our settings that theirs don't have. fixed: their
    settings -> possible values, the first one written. head_dropout: kind -> their setting of it.
    masked_activation: of the head that guesses words; None: the encoder's. encoder, block: rows. heads: kind
    -> rows beside those of the encoder, a pooler's included.
    """

    prefix: str
    classes: Mapping[str, str]
    keys: Mapping[str, str]
    implied: Mapping[str, Any]
    fixed: Mapping[str, tuple]
    head_dropout: Mapping[str, str]
    encoder: Sequence[Row]
    block: Sequence[Row]
    heads: Mapping[str, Sequence[Row]]
    ties: Sequence[Tie] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    masked_activation: str | None = None

    def theirs(self, network: Network, encoder: EncoderConfig) -> Theirs:
        """Rows of a whole network."""
        rows = (*self.encoder, *blocks(self.block, encoder.num_layers), *self.heads[network.kind])
        if encoder.embedding_dim in (None, encoder.hidden_dim):
            rows = tuple(row for row in rows if "/projection/" not in row.ours)
        if encoder.pooling != "first":
            rows = tuple(row for row in rows if "/pooler/" not in row.ours)
        names = {row.theirs for row in rows}
        ties = [tie for tie in self.ties if tie.same_as in names]
        unused = {} if any(name.startswith("pooler.") for name in names) else _NO_POOLER
        return Theirs(rows, ties, self.left_out | unused, self.short_name)

    def short_name(self, name: str) -> str:
        """A tensor's name in their file -> the name in the rows."""
        for old, new in OLD_SPELLINGS.items():
            name = name.replace(old, new)
        return name.removeprefix(self.prefix)

    def full_name(self, name: str, kind: str) -> str:
        """The reverse."""
        parts = ("embeddings", "embeddings_project", "encoder", "transformer", "pooler")
        return self.prefix + name if kind != "encoder" and name.split(".")[0] in parts else name


# Names that the oldest files spell differently, google-bert/bert-base-uncased among them.
OLD_SPELLINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_CONSTANTS = {r"embeddings\.(position_ids|token_type_ids)": "a constant"}
_NO_POOLER = {r"pooler\..*": "a pooler, which a network of this kind doesn't use"}


def _classes(prefix: str, *kinds: str) -> dict[str, str]:
    names = {
        "encoder": "Model",
        "pretraining": "ForPreTraining",
        "masked_lm": "ForMaskedLM",
        "next_sentence": "ForNextSentencePrediction",
        "sequence_classification": "ForSequenceClassification",
        "token_classification": "ForTokenClassification",
        "question_answering": "ForQuestionAnswering",
        "multiple_choice": "ForMultipleChoice",
    }
    return {kind: prefix + names[kind] for kind in kinds or names}


def _bert() -> Family:
    masked = _masked_head(
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
    )
    pair = _layer("pair_head/logits", "cls.seq_relationship", "2H")
    pooler = _layer(_POOLER, "pooler.dense", "HH")
    return Family(
        prefix="bert.",
        classes=_classes("Bert"),
        keys=BERT_KEYS,
        implied={"position_offset": 0, "pooler_activation": "tanh"},
        fixed=_BERT_FIXED,
        head_dropout=dict.fromkeys(
            ("sequence_classification", "token_classification", "multiple_choice"), "classifier_dropout"
        ),
        encoder=_embeddings(segments=True),
        block=_BERT_BLOCK,
        heads={
            "encoder": pooler,
            "pretraining": (*pooler, *masked, *pair),
            "masked_lm": masked,
            "next_sentence": (*pooler, *pair),
            "sequence_classification": (*pooler, *_CLASSIFIER),
            "token_classification": _CLASSIFIER,
            "question_answering": _SPANS,
            "multiple_choice": (*pooler, *_CLASSIFIER),
        },
        ties=(
            Tie("cls.predictions.decoder.weight", _WORDS),
            Tie("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
        left_out=_CONSTANTS,
    )


def _roberta() -> Family:
    masked = _masked_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
    kinds = ("encoder", "masked_lm", "sequence_classification", "token_classification")
    return Family(
        prefix="roberta.",
        classes=_classes("Roberta", *kinds, "question_answering", "multiple_choice"),
        keys=BERT_KEYS,
        implied={"pooler_activation": "tanh"},
        fixed=_BERT_FIXED,
        head_dropout=dict.fromkeys(
            ("sequence_classification", "token_classification", "multiple_choice"), "classifier_dropout"
        ),
        masked_activation="gelu",
        encoder=_embeddings(segments=True),
        block=_BERT_BLOCK,
        heads={
            "encoder": _layer(_POOLER, "pooler.dense", "HH"),
            "masked_lm": masked,
            "sequence_classification": (
                *_layer(_POOLER, "classifier.dense", "HH"),
                *_layer("head/logits", "classifier.out_proj", "OH"),
            ),
            "token_classification": _CLASSIFIER,
            "question_answering": _SPANS,
            "multiple_choice": (*_layer(_POOLER, "pooler.dense", "HH"), *_CLASSIFIER),
        },
        ties=(Tie("lm_head.decoder.weight", _WORDS), Tie("lm_head.decoder.bias", "lm_head.bias")),
        left_out=_CONSTANTS,
    )


def _distilbert() -> Family:
    pooler = _layer(_POOLER, "pre_classifier", "HH")
    kinds = ("encoder", "masked_lm", "sequence_classification", "token_classification")
    return Family(
        prefix="distilbert.",
        classes=_classes("DistilBert", *kinds, "question_answering", "multiple_choice"),
        keys={
            "vocabulary_size": "vocab_size",
            "num_layers": "n_layers",
            "num_heads": "n_heads",
            "hidden_dim": "dim",
            "intermediate_dim": "hidden_dim",
            "max_positions": "max_position_embeddings",
            "activation": "activation",
            "dropout": "dropout",
            "attention_dropout": "attention_dropout",
            "initializer_range": "initializer_range",
        },
        implied={"num_segments": 0, "epsilon": 1e-12, "position_offset": 0, "pooler_activation": "relu"},
        fixed={"pruned_heads": (None, {}, [])},
        head_dropout={
            "sequence_classification": "seq_classif_dropout",
            "multiple_choice": "seq_classif_dropout",
            "question_answering": "qa_dropout",
        },
        encoder=_embeddings(segments=False),
        block=_block(
            *(f"transformer.layer.{{i}}.attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin")),
            "transformer.layer.{i}.sa_layer_norm",
            "transformer.layer.{i}.ffn.lin1",
            "transformer.layer.{i}.ffn.lin2",
            "transformer.layer.{i}.output_layer_norm",
        ),
        heads={
            "encoder": (),
            "masked_lm": _masked_head("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
            "sequence_classification": (*pooler, *_CLASSIFIER),
            "token_classification": _CLASSIFIER,
            "question_answering": _SPANS,
            "multiple_choice": (*pooler, *_CLASSIFIER),
        },
        ties=(Tie("vocab_projector.weight", _WORDS),),
        left_out=_CONSTANTS,
    )


def _electra() -> Family:
    kinds = ("encoder", "masked_lm", "sequence_classification", "token_classification")
    return Family(
        prefix="electra.",
        classes=_classes("Electra", *kinds, "question_answering"),
        keys=BERT_KEYS | {"embedding_dim": "embedding_size"},
        implied={"position_offset": 0, "pooler_activation": "gelu"},
        fixed=_BERT_FIXED,
        head_dropout=dict.fromkeys(("sequence_classification", "token_classification"), "classifier_dropout"),
        masked_activation="gelu",
        encoder=(
            *_embeddings(segments=True),
            *_layer("encoder/embeddings/projection", "embeddings_project", "HE"),
        ),
        block=_BERT_BLOCK,
        heads={
            "encoder": (),
            "masked_lm": _masked_head(
                "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"
            ),
            "sequence_classification": (
                *_layer(_POOLER, "classifier.dense", "HH"),
                *_layer("head/logits", "classifier.out_proj", "OH"),
            ),
            "token_classification": _CLASSIFIER,
            "question_answering": _SPANS,
        },
        ties=(Tie("generator_lm_head.weight", _WORDS),),
        left_out=_CONSTANTS | {r"discriminator_predictions\..*": "the head of ELECTRA's own pretraining"},
    )


# By model_type.
FAMILIES = {"bert": _bert(), "roberta": _roberta(), "distilbert": _distilbert(), "electra": _electra()}
