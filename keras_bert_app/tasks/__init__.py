"""What one job means: features, head, loss, metrics, decoding, signatures."""

from keras_bert_app.tasks.classification import ClassificationTask
from keras_bert_app.tasks.pretraining import PretrainingTask

TASKS = {"classification": ClassificationTask, "pretraining": PretrainingTask}
