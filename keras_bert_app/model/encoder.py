"""The BERT encoder (Devlin et al. 2019). Shapes: see features.py."""

import keras
from keras import ops

from keras_bert_app import features
from keras_bert_app.model.arithmetic import dense, lay_out, run_block
from keras_bert_app.model.attention import TransformerBlock, make_dense
from keras_bert_app.model.embeddings import PACKAGE, BertEmbeddings
from keras_bert_app.model.portable import ACTIVATIONS, at_least_float32

POOLER_ACTIVATIONS = ACTIVATIONS | {"tanh": ops.tanh}

# Below whatever layer normalisation gives, and finite in every float type in use.
_LOWEST = -6e4


@keras.saving.register_keras_serializable(package=PACKAGE)
class BertEncoder(keras.layers.Layer):
    """Token ids -> contextual vectors.

    Input: a dict of `token_ids` int [B, S], `segment_ids` int [B, S], `padding_mask` bool [B, S], and where
    rows hold several texts `sequence_ids` int [B, S], the number of the text that a token is of, 0 for
    padding: each text then sees itself alone, and its positions start at 0.
    Output: a dict of `sequence` [B, S, H], 0 for padding, and `pooled` [B, H]; with `return_all` also
    `hidden_states`, the L + 1 states [B, S, H] from the embeddings on, and `attention_weights`, L times
    [B, N, S, S]; with `return_token_embeddings` also `token_embeddings` [V, E], for a decoder tied to them.

    Args:
        pooling: "first" passes the first token through a dense layer, as the paper; "mean" and "max" pool
            over tokens, padding excluded, and have no weights.
        pooler_activation: of that dense layer: "tanh" as the paper, "relu" as DistilBERT's classifiers have
            it, "gelu" (exact) as ELECTRA's.
        num_segments, position_offset, embedding_dim: see BertEmbeddings.
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_positions=512,
        num_segments=2,
        activation="gelu",
        epsilon=1e-12,
        dropout=0.1,
        attention_dropout=0.1,
        initializer_range=0.02,
        position_type="learned",
        pooling="first",
        position_offset=0,
        embedding_dim=None,
        pooler_activation="tanh",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pooling not in ("first", "mean", "max"):
            raise ValueError(f"pooling is {pooling!r}; it takes 'first', 'mean' or 'max'")
        if pooler_activation not in POOLER_ACTIVATIONS:
            known = ", ".join(POOLER_ACTIVATIONS)
            raise ValueError(f"pooler_activation is {pooler_activation!r}; it takes one of {known}")
        self.pooling = pooling
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self._own_config = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "max_positions": max_positions,
            "num_segments": num_segments,
            "activation": activation,
            "epsilon": epsilon,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "initializer_range": initializer_range,
            "position_type": position_type,
            "pooling": pooling,
            "position_offset": position_offset,
            "embedding_dim": embedding_dim,
            "pooler_activation": pooler_activation,
        }
        policy = self.dtype_policy
        self.embeddings = BertEmbeddings(
            vocabulary_size,
            hidden_dim,
            max_positions,
            num_segments,
            position_type,
            epsilon,
            dropout,
            initializer_range,
            position_offset,
            embedding_dim,
            dtype=policy,
            name="embeddings",
        )
        self.blocks = [
            TransformerBlock(
                num_heads,
                hidden_dim,
                intermediate_dim,
                activation,
                epsilon,
                dropout,
                attention_dropout,
                initializer_range,
                dtype=policy,
                name=f"block_{number}",
            )
            for number in range(num_layers)
        ]
        if pooling == "first":
            self.pooler_activation = POOLER_ACTIVATIONS[pooler_activation]
            self.pooler = make_dense(hidden_dim, initializer_range, policy, "pooler")

    def build(self, input_shape):
        self.embeddings.build((None, None), (None, None))
        for block in self.blocks:
            block.build((None, None, self.hidden_dim))
        if self.pooling == "first":
            self.pooler.build((None, self.hidden_dim))

    def call(self, inputs, training=None, return_all=False, return_token_embeddings=False):
        mask = inputs[features.PADDING_MASK]
        layout = lay_out(self.num_heads, mask, inputs.get(features.SEQUENCE_IDS), as_rows=return_all)
        # For Keras, which hands it on with what the layers give.
        keras_mask = mask if return_all and features.SEQUENCE_IDS not in inputs else None
        x = self.embeddings(
            layout.take(inputs[features.TOKEN_IDS]),
            layout.take(inputs[features.SEGMENT_IDS]),
            layout.positions,
            training=training,
            mask=keras_mask,
        )
        states, attention_weights = [x], []
        # Where the first place alone is pooled, only it needs all of the last block: a graph that is asked
        # for no more computes no more.
        pools_first = self.pooling == "first" and not return_all
        for block in self.blocks[:-1] if pools_first else self.blocks:
            x, weights = run_block(
                block, x, mask=keras_mask, layout=layout, training=training, return_attention_weights=True
            )
            attention_weights.append(weights)
            states.append(x)
        if pools_first:
            x, first = self.blocks[-1].all_and_first(x, layout, training)
        else:
            first = layout.first(x)
        sequence = layout.put(x)  # [B, S, H]
        pooled = self._pool(sequence, first, mask)
        outputs = {features.SEQUENCE: sequence, features.POOLED: pooled}
        if return_all:
            outputs |= {features.HIDDEN_STATES: states, features.ATTENTION_WEIGHTS: attention_weights}
        if return_token_embeddings:
            table = self.embeddings.token.embeddings
            outputs[features.TOKEN_EMBEDDINGS] = ops.cast(table, self.compute_dtype)
        return outputs

    def _pool(self, x, first, mask):
        """Of all vectors [B, S, H] or the first of each row [B, H]: [B, H]"""
        if self.pooling == "first":
            return dense(first, (self.pooler,), self.pooler_activation)
        mask = mask[:, :, None]
        # Half precision can't even count to S.
        wide = ops.cast(x, at_least_float32(x.dtype))
        if self.pooling == "max":
            pooled = ops.max(ops.where(mask, wide, _LOWEST), axis=1)
        else:
            mask = ops.cast(mask, wide.dtype)
            pooled = ops.sum(wide * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1)
        return ops.cast(pooled, x.dtype)

    def compute_output_shape(self, input_shape):
        batch, length = input_shape[features.TOKEN_IDS]
        return {
            features.SEQUENCE: (batch, length, self.hidden_dim),
            features.POOLED: (batch, self.hidden_dim),
        }

    def compute_output_spec(self, inputs, training=None, return_all=False, return_token_embeddings=False):
        shapes = self.compute_output_shape({features.TOKEN_IDS: inputs[features.TOKEN_IDS].shape})
        outputs = {name: keras.KerasTensor(shape, self.compute_dtype) for name, shape in shapes.items()}
        if return_all:
            states = [keras.KerasTensor(shapes[features.SEQUENCE], self.compute_dtype)]
            attention_weights = []
            for block in self.blocks:
                state, weights = block.compute_output_spec(states[-1], return_attention_weights=True)
                states.append(state)
                attention_weights.append(weights)
            outputs |= {features.HIDDEN_STATES: states, features.ATTENTION_WEIGHTS: attention_weights}
        if return_token_embeddings:
            shape = self.embeddings.token.embeddings.shape
            outputs[features.TOKEN_EMBEDDINGS] = keras.KerasTensor(shape, self.compute_dtype)
        return outputs

    def get_config(self):
        return super().get_config() | self._own_config
