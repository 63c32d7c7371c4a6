"""The variables' names of google-research/bert and of TensorFlow's model garden, as data.

The former are those of modeling.py, run_pretraining.py, run_classifier.py and run_squad.py; the latter those
of official/nlp/modeling and its tools/tf1_bert_checkpoint_converter_lib.py, which has older names too.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from keras_bert_app.config import EncoderConfig
from keras_bert_app.convert.rows import HEADS_BIAS, HEADS_IN, HEADS_OUT, TRANSPOSED, Row, Theirs, blocks
from keras_bert_app.model.networks import Network


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    return tuple(Row(f"{ours}/{part}", f"{theirs}/{part}", "H") for part in ("gamma", "beta"))


def _dense(ours: str, theirs: str, shape: str) -> tuple[Row, ...]:
    return (
        Row(f"{ours}/kernel", f"{theirs}/kernel", shape),
        Row(f"{ours}/bias", f"{theirs}/bias", shape[-1]),
    )


def _split(ours: str, theirs: str) -> tuple[Row, ...]:
    """A dense layer to heads that have an axis of their own."""
    return (
        Row(f"{ours}/kernel", f"{theirs}/kernel", "HND", HEADS_OUT),
        Row(f"{ours}/bias", f"{theirs}/bias", "ND", HEADS_BIAS),
    )


def _logits(ours: str, theirs: str, shape: str) -> tuple[Row, ...]:
    """Weights that the scripts of google-research/bert make themselves, [out, in]."""
    return (
        Row(f"{ours}/kernel", f"{theirs}weights", shape, TRANSPOSED),
        Row(f"{ours}/bias", f"{theirs}bias", shape[0]),
    )


def _words(theirs: str) -> tuple[Row, ...]:
    """Of the head that guesses words."""
    return (
        *_dense("masked_head/dense", f"{theirs}/dense", "HH"),
        *_norm("masked_head/norm", f"{theirs}/LayerNorm"),
    )


@dataclass(frozen=True)
class Style:
    """One way to name variables.

    words: the name of the token embeddings, which tells the style. poolers: rows of a pooler, under several
    names; the last that is there is the one that is used. heads: name of a head's layer, or kind of a
    network -> rows. rename: a name in the file -> the name in the rows.
    """

    words: str
    encoder: Sequence[Row]
    block: Sequence[Row]
    poolers: Sequence[Sequence[Row]]
    heads: Mapping[str, Sequence[Row]]
    left_out: Mapping[str, str]
    rename: Callable[[str], str] = str

    def has_pooler(self, names: Collection[str]) -> bool:
        """Whether there is one under any name."""
        return any(row.theirs in names for pooler in self.poolers for row in pooler)

    def theirs(self, network: Network, encoder: EncoderConfig, names: Collection[str]) -> Theirs:
        """Rows of a whole network.

        Args:
            names: those of the tensors that there are, as `rename` gives them.
        """
        used = [name for name in (network.kind, *network.heads) if name in self.heads]
        there = [pooler for pooler in self.poolers if any(row.theirs in names for row in pooler)]
        pooler = (there or self.poolers)[-1] if network.encoder(encoder).pooling == "first" else ()
        unused = {row.theirs: _NO_POOLER for other in self.poolers for row in other if other is not pooler}
        if network.kind in self.heads:
            heads = (rows for name, rows in self.heads.items() if name.endswith("_head"))
            unused |= {row.theirs: _NO_HEAD for rows in heads for row in rows}
        body = (*self.encoder, *blocks(self.block, encoder.num_layers), *pooler)
        return Theirs(
            (*body, *(row for name in used for row in self.heads[name])),
            left_out=self.left_out | {re.escape(name): why for name, why in unused.items()},
            rename=self.rename,
        )


_NO_POOLER = "a pooler that the network doesn't use"
_NO_HEAD = "a head of pretraining, which the fine-tuned network doesn't use"
_OPTIMIZERS = "the optimizer's"

_BLOCK = "encoder/block_{i}"
_LAYER, _ATTENTION = "bert/encoder/layer_{i}", "bert/encoder/layer_{i}/attention"
RELEASE = Style(
    words="bert/embeddings/word_embeddings",
    encoder=(
        Row("encoder/embeddings/token/embeddings", "bert/embeddings/word_embeddings", "VH"),
        Row("encoder/embeddings/position", "bert/embeddings/position_embeddings", "MH"),
        Row("encoder/embeddings/segment/embeddings", "bert/embeddings/token_type_embeddings", "GH"),
        *_norm("encoder/embeddings/norm", "bert/embeddings/LayerNorm"),
    ),
    block=(
        *_dense(f"{_BLOCK}/attention/query", f"{_ATTENTION}/self/query", "HH"),
        *_dense(f"{_BLOCK}/attention/key", f"{_ATTENTION}/self/key", "HH"),
        *_dense(f"{_BLOCK}/attention/value", f"{_ATTENTION}/self/value", "HH"),
        *_dense(f"{_BLOCK}/attention/output", f"{_ATTENTION}/output/dense", "HH"),
        *_norm(f"{_BLOCK}/attention_norm", f"{_ATTENTION}/output/LayerNorm"),
        *_dense(f"{_BLOCK}/intermediate", f"{_LAYER}/intermediate/dense", "HF"),
        *_dense(f"{_BLOCK}/output", f"{_LAYER}/output/dense", "FH"),
        *_norm(f"{_BLOCK}/output_norm", f"{_LAYER}/output/LayerNorm"),
    ),
    poolers=(_dense("encoder/pooler", "bert/pooler/dense", "HH"),),
    heads={
        "masked_head": (
            *_words("cls/predictions/transform"),
            Row("masked_head/bias", "cls/predictions/output_bias", "V"),
        ),
        "pair_head": _logits("pair_head/logits", "cls/seq_relationship/output_", "2H"),
        # run_classifier.py
        "sequence_classification": _logits("head/logits", "output_", "OH"),
        # run_squad.py
        "question_answering": _logits("head/logits", "cls/squad/output_", "OH"),
    },
    left_out={
        r".*/(adam|lamb)_[mv]": _OPTIMIZERS,
        # TensorFlow's own
        r".*/(Adam|LAMB|Momentum)(_1)?|beta[12]_power": _OPTIMIZERS,
        r"global_step|(.*/)?learning_rate": "a counter or rate of training",
    },
    # run_classifier_with_tfhub.py
    rename=lambda name: name.removeprefix("module/"),
)

_LAYER, _ATTENTION = "transformer/layer_{i}", "transformer/layer_{i}/self_attention"
_GARDEN_HEADS = {
    "masked_head": (
        *_words("cls/predictions/transform"),
        Row("masked_head/bias", "cls/predictions/output_bias/bias", "V"),
    ),
    "pair_head": _dense("pair_head/logits", "next_sentence/logits", "H2"),
    "sequence_classification": _dense("head/logits", "sentence_prediction/logits", "HO"),
}
# The dense layer of all heads but the one that guesses words, in older versions.
GARDEN_LOGITS = "predictions/transform/logits"
# Older name of a variable or a layer -> the later one.
_GARDEN_OLD = {
    r"embedding_postprocessor/type_embeddings$": "type_embeddings/embeddings",
    r"embedding_postprocessor/position_embeddings$": "position_embedding/embeddings",
    r"embedding_postprocessor/layer_norm/": "embeddings/layer_norm/",
    r"encoder/layer_(?=\d)": "transformer/layer_",
    r"self_attention_output/": "self_attention/attention_output/",
    r"(next_sentence|sentence_prediction)/pooler_dense/": "pooler_dense/",
    rf"{GARDEN_LOGITS}/": "next_sentence/logits/",
}
_GARDEN_ROOTS = re.compile(
    r"(?:.*/)?((?:word_embeddings|position_embedding|type_embeddings|embeddings/layer_norm|transformer/layer_\d+"
    r"|pooler_transform|pooler_dense|cls/predictions|next_sentence|sentence_prediction)/.*)"
)


def garden_name(name: str) -> str:
    """A variable's name without the models around it, as the later versions have it."""
    for old, new in _GARDEN_OLD.items():
        name = re.sub(f"(^|(?<=/)){old}", new, name)
    found = _GARDEN_ROOTS.fullmatch(name)
    return found[1] if found else name


GARDEN = Style(
    words="word_embeddings/embeddings",
    encoder=(
        Row("encoder/embeddings/token/embeddings", "word_embeddings/embeddings", "VH"),
        Row("encoder/embeddings/position", "position_embedding/embeddings", "MH"),
        Row("encoder/embeddings/segment/embeddings", "type_embeddings/embeddings", "GH"),
        *_norm("encoder/embeddings/norm", "embeddings/layer_norm"),
    ),
    block=(
        *_split(f"{_BLOCK}/attention/query", f"{_ATTENTION}/query"),
        *_split(f"{_BLOCK}/attention/key", f"{_ATTENTION}/key"),
        *_split(f"{_BLOCK}/attention/value", f"{_ATTENTION}/value"),
        Row(f"{_BLOCK}/attention/output/kernel", f"{_ATTENTION}/attention_output/kernel", "NDH", HEADS_IN),
        Row(f"{_BLOCK}/attention/output/bias", f"{_ATTENTION}/attention_output/bias", "H"),
        *_norm(f"{_BLOCK}/attention_norm", f"{_LAYER}/self_attention_layer_norm"),
        *_dense(f"{_BLOCK}/intermediate", f"{_LAYER}/intermediate", "HF"),
        *_dense(f"{_BLOCK}/output", f"{_LAYER}/output", "FH"),
        *_norm(f"{_BLOCK}/output_norm", f"{_LAYER}/output_layer_norm"),
    ),
    # Later pretraining left the encoder's own untrained, and gave the head one.
    poolers=(
        _dense("encoder/pooler", "pooler_transform", "HH"),
        _dense("encoder/pooler", "pooler_dense", "HH"),
    ),
    heads=_GARDEN_HEADS,
    left_out={
        r"(.*/)?(\.OPTIMIZER_SLOT|_?optimizer)/.*": _OPTIMIZERS,
        r"(.*/)?keras_api/metrics/.*": "a metric's",
        r"(.*/)?(save_counter|global_step)": "a counter of training",
        r"(.*/)?do_lower_case": "read with the tokenizer",
    },
    rename=garden_name,
)
