"""What one job means: features, head, loss, metrics, decoding, signatures."""

from keras_bert_app.tasks.classification import ClassificationTask

TASKS = {"classification": ClassificationTask}
