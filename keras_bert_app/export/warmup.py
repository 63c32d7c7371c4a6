"""Requests that a model server makes before a version becomes available, so that nobody waits for first runs.

The file's place and form are TensorFlow Serving's (servables/tensorflow/saved_model_warmup_util.cc):
TFRecords of PredictionLog, at most 1,000. One without an answer keeps the server from loading the version.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.export.saved_model import CLASSIFY, PREDICT, REGRESS
from keras_bert_app.text.packing import TextPacker, room

FILE = "assets.extra/tf_serving_warmup_requests"
MAX_RECORDS = 1000
# One text, as most callers send; a few, of which one isn't ASCII and so takes the tokenizer's longer way.
BATCH_SIZES = (1, 4)
_SHORTEST = 8
_NOT_ASCII = "é"
_MAX_WORDS = 1000
_LOGS = {PREDICT: "predict_log", CLASSIFY: "classify_log", REGRESS: "regress_log"}


def write(
    path: Path, signatures: Mapping[str, Mapping[str, Any]], packer: TextPacker, text_inputs: Sequence[str]
) -> int:
    """Write requests for every signature, length group and batch size; return how many.

    The texts are words of the vocabulary, as texts of the training set may be private.

    Args:
        path: the version folder.
        signatures: as saved_model.signatures gives them.

    Raises:
        UserError: a signature that takes neither texts, tf.Examples nor the encoder's inputs.
    """
    words = vocabulary_words(packer)
    batches = [
        texts_of_length(words, length, size, packer.max_length, len(text_inputs))
        for length in length_groups(packer.max_length)
        for size in BATCH_SIZES
    ]
    records = [
        record(name, signature, dict(zip(text_inputs, batch, strict=True)), packer)
        for name, signature in signatures.items()
        for batch in batches
    ]
    (path / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / FILE)) as writer:
        for one in records:
            writer.write(one.SerializeToString(deterministic=True))
    return len(records)


def length_groups(max_length: int) -> list[int]:
    """Tokens of the texts' sequences, special ones included: powers of two from 8 on, and `max_length`."""
    lengths, length = [], _SHORTEST
    while length < max_length:
        lengths.append(length)
        length *= 2
    return [*lengths, max_length]


def vocabulary_words(packer: TextPacker) -> list[str]:
    """Words of one token each, spread over the vocabulary: ASCII, or others, or else an unknown letter."""
    pieces = [piece for piece in packer.tokenizer.vocabulary.pieces if piece.isalpha()]
    pieces = [piece for piece in pieces if piece.isascii()] or pieces
    pieces = pieces[:: 1 + len(pieces) // _MAX_WORDS]
    single = packer.tokenizer(tf.constant(pieces, tf.string)).row_lengths().numpy() == 1
    return [piece for piece, is_one in zip(pieces, single, strict=True) if is_one] or ["a"]


def texts_of_length(
    words: Sequence[str], length: int, rows: int, max_length: int, num_texts: int
) -> list[list[str]]:
    """For each text input `rows` texts, so that a row's sequence has `length` tokens.

    Each has at least one word. In a batch of several the last row's texts end with a letter that isn't ASCII.
    """
    share, more = divmod(max(room(min(length, max_length), num_texts), num_texts), num_texts)
    texts = []
    for number in range(num_texts):
        count = share + (number < more)
        start = number * rows
        texts.append(
            [
                " ".join(words[((start + row) * count + place) % len(words)] for place in range(count))
                for row in range(rows)
            ]
        )
        if rows > 1:
            texts[-1][-1] = " ".join([*texts[-1][-1].split()[:-1], _NOT_ASCII])
    return texts


def record(
    name: str, signature: Mapping[str, Any], texts: Mapping[str, Sequence[str]], packer: TextPacker
) -> prediction_log_pb2.PredictionLog:
    """A request to one signature.

    Raises:
        UserError: a signature that takes neither texts, tf.Examples nor the encoder's inputs.
    """
    log = prediction_log_pb2.PredictionLog()
    method, inputs = signature["method_name"], signature["inputs"].keys()
    if method not in _LOGS:
        raise UserError(f"signature {name} has the method {method!r}; a server knows {', '.join(_LOGS)}")
    request = getattr(log, _LOGS[method]).request
    request.model_spec.name = "model"  # which the server doesn't read here
    request.model_spec.signature_name = name
    examples = [tf_example(dict(zip(texts, row, strict=True))) for row in zip(*texts.values(), strict=True)]
    if method in (CLASSIFY, REGRESS):
        request.input.example_list.examples.extend(examples)
        return log
    strings = {key: tf.constant(value, tf.string) for key, value in texts.items()}
    serialized = {features.INPUTS: tf.constant([one.SerializeToString() for one in examples], tf.string)}
    for tensors in (strings, serialized, packer(list(strings.values()))):
        if tensors.keys() == inputs:
            for key, value in tensors.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
            return log
    raise UserError(f"signature {name} takes {', '.join(inputs)}; no warm-up request can be made for it")


def tf_example(texts: Mapping[str, str | bytes]) -> tf.train.Example:
    """Texts by their inputs' names, as Classify and Regress take them."""
    example = tf.train.Example()
    for name, text in texts.items():
        example.features.feature[name].bytes_list.value.append(tf.compat.as_bytes(text))
    return example


def read(file: Path) -> Iterator[prediction_log_pb2.PredictionLog]:
    """The records of a warm-up file.

    Raises:
        UserError: it isn't there, is cut or isn't of TFRecords of PredictionLog, or has too many.
    """
    if not file.exists():
        raise UserError(f"{file}: is missing, so that first callers would wait; export it again")
    count = 0
    try:
        for count, content in enumerate(tf.data.TFRecordDataset(str(file)).as_numpy_iterator(), start=1):
            if count > MAX_RECORDS:
                raise UserError(f"{file}: has more than {MAX_RECORDS} records, which no server takes")
            yield prediction_log_pb2.PredictionLog.FromString(content)
    except (tf.errors.OpError, DecodeError) as error:
        reason = " ".join(str(getattr(error, "message", error)).split())
        raise UserError(f"{file}: isn't of TFRecords of PredictionLog ({reason}); export it again") from error
    if not count:
        raise UserError(f"{file}: isn't of TFRecords of PredictionLog (it has none); export it again")


def arrays(log: prediction_log_pb2.PredictionLog) -> tuple[str, str, dict[str, np.ndarray]]:
    """A record's method and signature, and the tensors that a server gives the signature for it.

    The method is "" for a kind of record that no server replays.
    """
    kinds = {kind: method for method, kind in _LOGS.items()}
    kind = log.WhichOneof("log_type")
    if kind not in kinds:
        return "", "", {}
    request = getattr(log, kind).request
    name = request.model_spec.signature_name or "serving_default"
    if kinds[kind] == PREDICT:
        tensors = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
    else:
        tensors = {features.INPUTS: _serialized(request.input.example_list.examples)}
    return kinds[kind], name, tensors


def examples(
    path: Path, functions: Mapping[str, Callable], max_length: int
) -> Iterator[tuple[str, int, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """The file's requests of one text with the trainer's answers: signature, length, inputs, outputs.

    Args:
        functions: the concrete function of each signature.
    """
    lengths = {name: iter(length_groups(max_length)) for name in functions}
    for log in read(path / FILE):
        _, name, inputs = arrays(log)
        if len(next(iter(inputs.values()))) == 1:
            outputs = functions[name](**{key: tf.constant(value) for key, value in inputs.items()})
            yield name, next(lengths[name]), inputs, {key: value.numpy() for key, value in outputs.items()}


def _serialized(examples: Iterable[tf.train.Example]) -> np.ndarray:
    return np.array([one.SerializeToString() for one in examples], object)
