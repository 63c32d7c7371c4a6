"""A small BERT from scratch within 30 CPU minutes: not yet measured.

python run.py pretrain --config=configs/pretrain_cpu.py --workdir=runs/cpu
"""

from configs.sizes import SIZES
from keras_bert_app.config import default


def get_config():
    """Masked tokens alone."""
    config = default()
    config.task.name = "pretraining"
    config.text.vocabulary = "vocab.txt"
    config.text.max_length = 64
    config.data.train = "examples"
    config.prepare.objective = "none"
    config.prepare.held_out = 0.05
    config.prepare.short_fraction = 0.0
    config.encoder.update(SIZES["mini"])
    config.encoder.num_layers = 2
    config.encoder.pooling = "mean"
    config.encoder.initializer_range = 0.05
    config.encoder.dropout = 0.0
    config.encoder.attention_dropout = 0.0
    config.masking.rate = 0.4
    config.train.batch_size = 32
    config.train.epochs = 5
    config.train.learning_rate = 1e-3
    config.train.precision = "mixed_bfloat16"
    return config
