"""Ids -> tensors: Keras layers on keras.ops alone. Importing this registers them for `.keras` files."""

from keras_bert_app.model.attention import SelfAttention, TransformerBlock
from keras_bert_app.model.embeddings import BertEmbeddings
from keras_bert_app.model.encoder import BertEncoder
from keras_bert_app.model.heads import (
    ClassificationHead,
    MaskedLanguageModelHead,
    MergeChoices,
    SplitChoices,
)

__all__ = [
    "BertEmbeddings",
    "BertEncoder",
    "ClassificationHead",
    "MaskedLanguageModelHead",
    "MergeChoices",
    "SelfAttention",
    "SplitChoices",
    "TransformerBlock",
]
