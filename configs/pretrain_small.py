"""A small BERT from scratch, on your own documents: masked tokens and next sentences.

    python run.py vocab    --input='corpus/*.txt' --output=vocab.txt --vocab_size=30000
    python run.py prepare  --config=configs/pretrain_small.py --input='corpus/*.txt' --output=examples/
    python run.py pretrain --config=configs/pretrain_small.py --workdir=runs/small
    python run.py finetune --config=configs/sentiment.py --config.init=runs/small --workdir=runs/s2

Hardware and time: not yet measured. Result: not yet measured.
"""

from configs.sizes import SIZES
from keras_bert_app.config import default


def get_config():
    """The size of Turc et al. 2019, whole words hidden, 10 passes over the examples."""
    config = default()
    config.task.name = "pretraining"
    config.text.vocabulary = "vocab.txt"
    config.text.max_length = 128
    config.data.train = "examples"
    config.encoder.update(SIZES["small"])
    config.masking.unit = "word"
    config.train.batch_size = 128
    config.train.epochs = 10
    config.train.learning_rate = 5e-4
    return config
