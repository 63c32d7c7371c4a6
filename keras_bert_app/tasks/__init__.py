"""What one job means: features, head, loss, metrics, decoding, signatures."""

from keras_bert_app.tasks.bare import BareNetwork
from keras_bert_app.tasks.classification import ClassificationTask
from keras_bert_app.tasks.pretraining import PretrainingTask

TASKS = {"classification": ClassificationTask, "pretraining": PretrainingTask}
# What a run's folder can be of; the last is none that can be trained.
DESCRIBED = TASKS | {"bare": BareNetwork}
