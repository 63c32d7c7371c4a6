"""A run's best checkpoint -> a versioned SavedModel with its tokenizer inside, whole or not there.

<export_dir>/<version>/saved_model.pb, variables/
<export_dir>/<version>/assets.extra/export.json   what `describe` gives, and options as measured
<export_dir>/<version>/assets.extra/vocab.txt     for people; the graph has its own
<export_dir>/<version>/assets.extra/examples.json requests and the trainer's answers, which verify replays
<export_dir>/<version>/assets.extra/tf_serving_warmup_requests   see warmup.py
<export_dir>/<version>/batching_params.pbtxt      see batching.py
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.export import batching, contents, saved_model, warmup
from keras_bert_app.export.c_api import encode_tensor
from keras_bert_app.export.freezing import FrozenNetwork
from keras_bert_app.export.options import PLAIN, TOLERANCES, ExportOptions
from keras_bert_app.export.preparation import prepare
from keras_bert_app.export.versions import version_folders
from keras_bert_app.files import atomic_directory
from keras_bert_app.tasks.signatures import METHOD_NAMES
from keras_bert_app.training import workdir as folders

FORMAT_VERSION = 1
EXTRA = "assets.extra"
BUNDLE_FILE, EXAMPLES_FILE = "export.json", "examples.json"

# What verify replays: one text alone, lengths mixed, and what a careless client sends.
_TEXTS = (
    "a quiet triumph",
    "so dull",
    "",
    "Not one of its jokes lands, and there are many; the cast, all better elsewhere, look as if they knew.",
    "naïve café — “so-so” … 50 % ½ 中文 👍🏽",
    b"\xff\xfe broken \x00 bytes",
    "long " * 2000,
)


class Bundle(tf.Module):
    """What the signatures need beside their graphs: the text side and the network's variables."""

    def __init__(self, network, packer, signatures):
        super().__init__()
        self.network = network
        self.packer = packer
        for name, signature in signatures.items():
            setattr(self, name, taking_one(signature))


def export(workdir: Path, export_dir: Path, options: ExportOptions = PLAIN) -> Path:
    """Write the next version and return its folder.

    Raises:
        UserError: the run has no evaluated checkpoint, `export_dir` can't be used, the options don't fit the
            run, or TensorFlow can't write.
    """
    folders.read_config(workdir)  # so that what is no run is called that
    step = folders.best_step(workdir)
    folders.ModelDescription.load(workdir).check_texts(workdir)
    version = next_version(export_dir)
    description, packer, model, answers, figures = prepare(workdir, options)
    network = FrozenNetwork(model)
    signatures = description.task.signatures(network, packer, answers)
    path = export_dir / str(version)
    with atomic_directory(path) as temporary:
        try:
            tf.saved_model.save(Bundle(network, packer, signatures), str(temporary), signatures=signatures)
        except tf.errors.OpError as error:
            raise UserError(f"{path}: TensorFlow can't write it: {error.message}") from error
        set_method_names(temporary)
        extra = temporary / EXTRA
        extra.mkdir()
        description.vocabulary.save(extra / "vocab.txt")
        found = saved_model.signatures(saved_model.read(temporary))
        warmup.write(temporary, found, packer, description.task.text_inputs)
        batching.write(temporary)
        requests = example_requests(description, packer, signatures)
        requests += requests_by_length(temporary, signatures, description.max_length)
        folders.write_json(extra / EXAMPLES_FILE, requests)
        about = {"options": vars(options) | vars(answers), "measured": figures}
        about["tolerance"] = TOLERANCES[options.precision]
        content = describe(workdir, description, step) | about | contents.describe(temporary)
        folders.write_json(extra / BUNDLE_FILE, content)
    if options.keep is not None:
        prune(export_dir, options.keep)
    return path


def prune(export_dir: Path, keep: int) -> None:
    """Remove all versions but the `keep` highest; none is ever seen in part."""
    for old in version_folders(export_dir)[:-keep]:
        # A name that no server takes for a version's, like those of folders that are being written.
        with tempfile.TemporaryDirectory(prefix=f".{old.name}.", suffix=".tmp", dir=export_dir) as away:
            os.rename(old, Path(away) / old.name)


def set_method_names(path: Path) -> None:
    """Name the methods of a SavedModel's classify and regress, for which TensorFlow writes predict."""
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in saved.meta_graphs:
        for name in METHOD_NAMES.keys() & graph.signature_def.keys():
            graph.signature_def[name].method_name = METHOD_NAMES[name]
    file.write_bytes(saved.SerializeToString(deterministic=True))


def taking_one(signature):
    """The signature as keras.layers.TFSMLayer calls it: with a dict of its inputs, or the only one."""
    specs = signature.structured_input_signature[1]

    @tf.function
    def call(inputs):
        return signature(**(inputs if isinstance(inputs, dict) else dict.fromkeys(specs, inputs)))

    call.get_concrete_function(dict(specs))
    if len(specs) == 1:
        call.get_concrete_function(*specs.values())
    return call


def next_version(export_dir: Path) -> int:
    """One more than the highest version folder there, 1 in a new folder.

    Raises:
        UserError: `export_dir` is a file.
    """
    if export_dir.exists() and not export_dir.is_dir():
        raise UserError(f"{export_dir} is a file; give a folder as --export_dir")
    return 1 + max((int(path.name) for path in version_folders(export_dir)), default=0)


def describe(workdir: Path, description: folders.ModelDescription, step: int) -> dict[str, Any]:
    """What someone who finds the bundle needs to know, ready for JSON."""
    metrics_path = workdir / "metrics.json"
    metrics = folders.read_json(metrics_path, "")["metrics"] if metrics_path.exists() else None
    return {
        "format_version": FORMAT_VERSION,
        "task": {"name": description.task.name} | description.task.get_config(),
        "tokenizer": {
            "vocabulary_sha256": description.vocabulary.sha256,
            "max_length": description.max_length,
            "truncation": description.truncation,
        }
        | description.tokenizer_options.get_config(),
        "checkpoint_step": step,
        "metrics": metrics,
        "training": folders.read_json(workdir / "provenance.json", f"{workdir}/provenance.json is missing"),
        "export": folders.provenance(),
    }


def example_requests(description: folders.ModelDescription, packer, signatures) -> list[dict[str, Any]]:
    """Requests for every signature with this process's answers, encoded as c_api.py does."""
    names = description.task.text_inputs
    requests = []
    for texts in (_TEXTS[:1], _TEXTS, ()):
        of_texts = dict.fromkeys(names, tf.constant(texts, tf.string))
        examples = {
            features.INPUTS: tf.constant(
                [warmup.tf_example(dict.fromkeys(names, text)).SerializeToString() for text in texts],
                tf.string,
            )
        }
        for signature, function in signatures.items():
            taken = function.structured_input_signature[1].keys()
            inputs = next(
                tensors
                for tensors in (of_texts, examples, packer(list(of_texts.values())))
                if tensors.keys() == taken
            )
            requests.append((signature, inputs))
    return [
        {
            "signature": name,
            "inputs": {key: encode_tensor(value.numpy()) for key, value in inputs.items()},
            "outputs": {
                key: encode_tensor(value.numpy()) for key, value in signatures[name](**inputs).items()
            },
        }
        for name, inputs in requests
    ]


def requests_by_length(path: Path, signatures, max_length: int) -> list[dict[str, Any]]:
    """The warm-up's requests of one text for every signature and length, with this process's answers."""
    return [
        {
            "signature": name,
            "length": length,
            "inputs": {key: encode_tensor(value) for key, value in inputs.items()},
            "outputs": {key: encode_tensor(value) for key, value in outputs.items()},
        }
        for name, length, inputs, outputs in warmup.examples(path, signatures, max_length)
    ]
