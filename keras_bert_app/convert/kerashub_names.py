"""The datasets' paths of KerasHub's BERT models (bert_backbone.py and its tasks) in HDF5 files of Keras 3."""

import re

from keras_bert_app.config import EncoderConfig
from keras_bert_app.convert.rows import HEADS_BIAS, HEADS_IN, HEADS_OUT, Row, Theirs, blocks
from keras_bert_app.model.networks import Network


def _pair(ours: str, theirs: str, parts: tuple[str, str], shapes: tuple[str, str], *transforms) -> list[Row]:
    """The two variables of a layer, which have numbers."""
    return [
        Row(f"{ours}/{part}", f"{theirs}/vars/{number}", shapes[number], *transforms[number : number + 1])
        for number, part in enumerate(parts)
    ]


_DENSE, _NORM = ("kernel", "bias"), ("gamma", "beta")
_BLOCK, _THEIRS = "encoder/block_{i}", "backbone/transformer_encoder_{i}"
_ATTENTION = f"{_THEIRS}/_self_attention_layer"
ENCODER = (
    Row("encoder/embeddings/token/embeddings", "backbone/reversible_embedding/vars/0", "VH"),
    Row("encoder/embeddings/position", "backbone/position_embedding/vars/0", "MH"),
    Row("encoder/embeddings/segment/embeddings", "backbone/embedding/vars/0", "GH"),
    *_pair("encoder/embeddings/norm", "backbone/layer_normalization", _NORM, ("H", "H")),
)
BLOCK = (
    *(
        row
        for name in ("query", "key", "value")
        for row in _pair(
            f"{_BLOCK}/attention/{name}",
            f"{_ATTENTION}/{name}_dense",
            _DENSE,
            ("HND", "ND"),
            HEADS_OUT,
            HEADS_BIAS,
        )
    ),
    *_pair(f"{_BLOCK}/attention/output", f"{_ATTENTION}/output_dense", _DENSE, ("NDH", "H"), HEADS_IN),
    *_pair(f"{_BLOCK}/attention_norm", f"{_THEIRS}/_self_attention_layer_norm", _NORM, ("H", "H")),
    *_pair(f"{_BLOCK}/intermediate", f"{_THEIRS}/_feedforward_intermediate_dense", _DENSE, ("HF", "F")),
    *_pair(f"{_BLOCK}/output", f"{_THEIRS}/_feedforward_output_dense", _DENSE, ("FH", "H")),
    *_pair(f"{_BLOCK}/output_norm", f"{_THEIRS}/_feedforward_layer_norm", _NORM, ("H", "H")),
)
POOLER = tuple(_pair("encoder/pooler", "backbone/dense", _DENSE, ("HH", "H")))
HEADS = {
    "encoder": (),
    "sequence_classification": tuple(_pair("head/logits", "task/dense", _DENSE, ("HO", "O"))),
    "masked_lm": (
        *_pair("masked_head/dense", "task/masked_lm_head/_intermediate_dense", _DENSE, ("HH", "H")),
        *_pair("masked_head/norm", "task/masked_lm_head/_intermediate_layer_norm", _NORM, ("H", "H")),
        Row("masked_head/bias", "task/masked_lm_head/vars/0", "V"),
    ),
}
_UNUSED = {re.escape(row.theirs): "a pooler, which a network of this kind doesn't use" for row in POOLER}
_LEFT_OUT = {r"task/optimizer/.*|backbone/optimizer/.*": "the optimizer's"}
# Layers that have a name in some versions of Keras and a class and number in others.
_LAYERS = {
    "token_embedding": "reversible_embedding",
    "segment_embedding": "embedding",
    "embeddings_layer_norm": "layer_normalization",
    "pooled_dense": "dense",
    "mlm_head": "masked_lm_head",
    "logits": "dense",
    "transformer_encoder": "transformer_encoder_0",
}


def short_name(name: str) -> str:
    """A dataset's path, with `task:` before those of the whole file, -> the name in the rows.

    Backbones are at the top of a file of theirs, and a layer of a task's.
    """
    place, _, path = name.partition(":")
    path = re.sub(r"(^|/)(layers|_layer_checkpoint_dependencies)/", r"\1", path)
    inside = re.match(r"(bert_backbone|backbone)/", path)
    if inside:
        place, path = "backbone", path[inside.end() :]
    first, _, rest = path.partition("/")
    first = re.sub(r"transformer_layer_(\d+)", r"transformer_encoder_\1", _LAYERS.get(first, first))
    return f"{place}/{first}/{rest}"


def theirs(network: Network, encoder: EncoderConfig) -> Theirs:
    """Rows of a whole network."""
    has_pooler = network.encoder(encoder).pooling == "first"
    pooler, left_out = (POOLER, _LEFT_OUT) if has_pooler else ((), _LEFT_OUT | _UNUSED)
    body = (*ENCODER, *blocks(BLOCK, encoder.num_layers), *pooler)
    return Theirs((*body, *HEADS[network.kind]), (), left_out, short_name)
