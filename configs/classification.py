"""A classifier for your own texts: any number of labels, single texts or pairs.

    python run.py finetune --config=configs/classification.py --workdir=runs/mine \\
        --config.data.train=train.csv --config.data.text_column=body --config.data.label_column=topic

Texts with several labels or none: --config.data.label_separator (docs/multi_label.md).

Without --config.data.evaluation and --config.data.test a tenth each is held out of the training file by hash.
Hardware, time and result depend on the data; configs/sentiment.py has measured ones.
"""

from keras_bert_app.config import default


def get_config():
    """MiniLM-L6 weights, batches of 32, three epochs at 5e-5 (Devlin et al. 2019, appendix A.3)."""
    config = default()
    config.init = "minilm-l6"
    config.train.batch_size = 32
    config.train.epochs = 3
    config.train.learning_rate = 5e-5
    return config
