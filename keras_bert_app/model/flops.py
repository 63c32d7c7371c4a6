"""What a network has to compute: floating-point operations, a multiplication and an addition counted as two.

Products of matrices alone are counted, as usual (Chowdhery et al. 2022, "PaLM", appendix B): no look-ups,
normalisations, activations or softmaxes. Padding isn't counted either, nor attention between texts that share
a row, though hardware may compute both: time spent on them is no use made of it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig

# Forward; and backward twice as much, for the gradients of inputs and of weights (PaLM, appendix B).
TRAINING_PASSES = 3


def encoder_flops(encoder: EncoderConfig, lengths: np.ndarray) -> float:
    """Of one pass forward over texts of so many tokens each, int [texts]; the pooler's too, if it has one."""
    lengths = np.asarray(lengths, "float64")
    hidden, inner = encoder.hidden_dim, encoder.intermediate_dim
    width = encoder.embedding_dim or hidden
    embeddings = 2 * width * hidden * lengths.sum() if width != hidden else 0
    projections = 8 * hidden**2 * lengths.sum()  # query, key, value, output
    attention = 4 * hidden * np.square(lengths).sum()  # scores, weighted sum of values
    feed_forward = 4 * hidden * inner * lengths.sum()
    pooler = 2 * hidden**2 * len(lengths) if encoder.pooling == "first" else 0
    return float(encoder.num_layers * (projections + attention + feed_forward) + embeddings + pooler)


def text_lengths(batch: Mapping[str, Any]) -> np.ndarray:
    """Tokens of each text of a batch, int64 [texts]: of each row, or of each text packed into the rows."""
    if features.SEQUENCE_IDS not in batch:
        return np.count_nonzero(batch[features.PADDING_MASK], axis=1)
    numbers = np.asarray(batch[features.SEQUENCE_IDS])
    rows = np.arange(len(numbers))[:, None] * (numbers.max(initial=0) + 1)
    counts = np.bincount((rows + numbers)[numbers > 0])
    return counts[counts > 0]
