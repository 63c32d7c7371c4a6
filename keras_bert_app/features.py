"""Every name, dtype and shape that crosses a room.

Shape legend, used at line ends throughout the project:

    B  batch size                 S  sequence length, padding included
    T  tokens, without padding    P  masked positions
    N  attention heads            D  size of one head (H / N)
    H  hidden size                F  intermediate (feed-forward) size
    V  vocabulary size            C  classes
    L  encoder layers
"""

# Columns of a record, as files have them and as string signatures take them.
TEXT = "text"  # string [B]
TEXT_PAIR = "text_pair"  # string [B]
LABEL = "label"  # string [B] in records and signatures; int32 [B] in batches
GROUP = "group"  # string [B]; records of one group stay in one split

# What packing makes of text and the encoder takes.
TOKEN_IDS = "token_ids"  # int32 [B, S]
SEGMENT_IDS = "segment_ids"  # int32 [B, S]; 0 for the first text, 1 for the second
PADDING_MASK = "padding_mask"  # bool [B, S]; True for a token, False for padding
ENCODER_INPUTS = {TOKEN_IDS: "int32", SEGMENT_IDS: "int32", PADDING_MASK: "bool"}

# What a batch has beside them.
WEIGHT = "weight"  # float32 [B]; 0 for rows that only fill up a batch

# What the encoder gives.
SEQUENCE = "sequence"  # float [B, S, H]
POOLED = "pooled"  # float [B, H]
HIDDEN_STATES = "hidden_states"  # L + 1 times float [B, S, H], embeddings first
ATTENTION_WEIGHTS = "attention_weights"  # L times float [B, N, S, S]

# What heads and signatures give.
LOGITS = "logits"  # float32 [B, C]
PROBABILITIES = "probabilities"  # float32 [B, C]
SCORE = "score"  # float32 [B]; the probability of the label given
