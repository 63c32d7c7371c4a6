"""BERT-base from scratch on all GPUs of a machine: small batches, then large ones, and long sequences last.

    python run.py vocab    --input='corpus/*.txt' --output=vocab.txt --vocab_size=30000
    python run.py prepare  --config=configs/pretrain_base.py --input='corpus/*.txt' --output=examples-128 \\
        --config.text.max_length=128
    python run.py prepare  --config=configs/pretrain_base.py --input='corpus/*.txt' --output=examples-512
    python run.py pretrain --config=configs/pretrain_base.py --workdir=runs/base

Hardware and time: not yet measured. Result: not yet measured.
"""

from configs.sizes import SIZES
from keras_bert_app.config import default


def get_config():
    """The recipe of Devlin et al. 2019, appendix A.2: 40 passes, nine tenths of them over 128 tokens."""
    config = default()
    config.task.name = "pretraining"
    config.text.vocabulary = "vocab.txt"
    config.text.max_length = 512
    config.encoder.update(SIZES["base"])
    config.train.strategy = "mirrored"
    config.train.precision = "mixed_bfloat16"
    config.train.batch_size = 256
    config.train.epochs = 40
    config.train.learning_rate = 1e-4
    config.train.warmup_fraction = 0.01
    config.train.evaluate_every = 10_000
    config.train.checkpoint_every = 1_000
    config.phases = (
        {"share": 0.01, "train": "examples-128", "batch_size": 64},
        {"share": 0.89, "train": "examples-128"},
        {"share": 0.1, "train": "examples-512"},
    )
    return config
