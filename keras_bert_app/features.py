"""Every name, dtype and shape that crosses a room.

Shape legend, used at line ends throughout the project:

    B  batch size                 S  sequence length, padding included
    T  tokens, without padding    P  masked positions
    N  attention heads            D  size of one head (H / N)
    H  hidden size                F  intermediate (feed-forward) size
    V  vocabulary size            C  classes
    L  encoder layers             E  width of the embeddings, H unless they are projected
"""

# Columns of a record, as files have them and as string signatures take them.
TEXT = "text"  # string [B]
TEXT_PAIR = "text_pair"  # string [B]
LABEL = "label"  # string [B] in records and signatures; int32 [B] in batches, or float32 [B, C] of 0 and 1
GROUP = "group"  # string [B]; records of one group stay in one split

# What packing makes of text and the encoder takes.
TOKEN_IDS = "token_ids"  # int32 [B, S]
SEGMENT_IDS = "segment_ids"  # int32 [B, S]; 0 for the first text, 1 for the second
PADDING_MASK = "padding_mask"  # bool [B, S]; True for a token, False for padding
SEQUENCE_IDS = "sequence_ids"  # int32 [B, S]; texts packed in a row, numbered from 1; 0 for padding
ENCODER_INPUTS = {TOKEN_IDS: "int32", SEGMENT_IDS: "int32", PADDING_MASK: "bool"}

# What a batch has beside them.
WEIGHT = "weight"  # float32 [B]; 0 for rows that only fill up a batch
NEXT_SENTENCE_LABEL = "next_sentence_label"  # int32 [B]; 0 where the second text follows the first, else 1

# What masking adds to a batch; padded with 0.
MASKED_POSITIONS = "masked_positions"  # int32 [B, P]; a model's input too
MASKED_IDS = "masked_ids"  # int32 [B, P]; what stood there
MASKED_WEIGHTS = "masked_weights"  # float32 [B, P]; 1 for a masked token, 0 for padding

# What the encoder gives.
SEQUENCE = "sequence"  # float [B, S, H]
POOLED = "pooled"  # float [B, H]
HIDDEN_STATES = "hidden_states"  # L + 1 times float [B, S, H], embeddings first
ATTENTION_WEIGHTS = "attention_weights"  # L times float [B, N, S, S]
TOKEN_EMBEDDINGS = "token_embeddings"  # float [V, E]; the weights, for a decoder tied to them

# What heads and signatures give.
LOGITS = "logits"  # float32 [B, C]
MASKED_LOGITS = "masked_logits"  # float32 [B, P, V]
PAIR_LOGITS = "pair_logits"  # float32 [B, 2]; see NEXT_SENTENCE_LABEL
PROBABILITIES = "probabilities"  # float32 [B, C]
SCORE = "score"  # float32 [B]; the probability of the label given

# What else signatures give.
NUM_TOKENS = "num_tokens"  # int32 [B]; tokens that were read, special ones included
TRUNCATED = "truncated"  # bool [B]; whether tokens of the text were left out
LABELS = "labels"  # string [B, C]; those that a text has, likeliest first, then ""
NUM_LABELS = "num_labels"  # int32 [B]
TOP_LABELS, TOP_SCORES = "top_labels", "top_scores"  # string, float32 [B, K]; best first
ABSTAINED = "abstained"  # bool [B]; whether the label is left out, for a low score
EMBEDDING = "embedding"  # float32 [B, H]; the pooled vector
PIECES = "pieces"  # string [B, S]; the vocabulary's, [PAD] for padding
STARTS, ENDS = "starts", "ends"  # int32 [B, S]; bytes of the text, half-open; both 0 where no text stands

# TensorFlow Serving's own names.
INPUTS = "inputs"  # string [B]; serialized tf.Example
CLASSES = "classes"  # string [B, C]
SCORES = "scores"  # float32 [B, C]
OUTPUTS = "outputs"  # float32 [B]
