"""A run's folder: what is in it, how it is opened, and how its model comes back.

config.json      format version and the config as given, after flags
provenance.json  versions, git state, command, where weights and data came from
model.json       what the network is: task, encoder, tokenizer (with vocab.txt beside it)
checkpoints/     see checkpoints.py
summaries/       TensorBoard scalars
report.html, metrics.json, model.keras   results of the best checkpoint
"""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_bert_app import config as configuration
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file, is_taken
from keras_bert_app.tasks import DESCRIBED
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training import checkpoints
from keras_bert_app.training.places import require_run

FORMAT_VERSION = 1
# What a model.json without the key means.
_BEFORE = {"truncation": "longest_first"}
_PACKAGES = ("tensorflow", "keras", "tensorflow-text", "numpy", "safetensors")


def open_for_training(workdir: Path, config: configuration.Config) -> None:
    """Make the folder, or check that the one that is there belongs to this config.

    A run may go on with other devices and upkeep than it began with: see `config.fixed_keys`.

    Raises:
        UserError: it belongs to another config (the message lists the differences), is of an unknown format,
            or holds other things.
    """
    wanted = configuration.to_dict(config)
    path, content = workdir / "config.json", {"format_version": FORMAT_VERSION, "config": wanted}
    if path.exists():
        begun = configuration.to_dict(read_config(workdir))
        differences = configuration.differences(*map(configuration.fixed_keys, (begun, wanted)))
        if differences:
            raise UserError(
                f"{workdir} belongs to a run with another config ({'; '.join(differences)}); "
                "give another --workdir, or the same config to go on with that run"
            )
        if begun != wanted:
            write_json(path, content)
        return
    if is_taken(workdir):
        raise UserError(f"{workdir} exists and is no run's folder; give another --workdir")
    write_json(path, content)


def read_config(workdir: Path) -> configuration.Config:
    """The config of a run.

    Raises:
        UserError: no run is there, or it is of a format that this version doesn't know.
    """
    return configuration.freeze(_read_config(workdir))


def _read_config(workdir: Path) -> dict[str, Any]:
    require_run(workdir)
    content = read_json(workdir / "config.json", "")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{workdir} has format {content.get('format_version')!r}, this version knows {FORMAT_VERSION}; "
            "use the version that made it (see provenance.json), or train again in another --workdir"
        )
    return content["config"]


@dataclass(frozen=True)
class ModelDescription:
    """What the network is, apart from its weights.

    vocabulary, tokenizer_options: None of a network imported without its tokenizer.
    """

    task: Any
    encoder: configuration.EncoderConfig
    vocabulary: Vocabulary | None
    tokenizer_options: TokenizerOptions | None
    max_length: int
    truncation: str

    def packer(self) -> TextPacker:
        """The text side."""
        tokenizer = BertTokenizer(self.vocabulary, self.tokenizer_options)
        return TextPacker(tokenizer, self.max_length, self.truncation)

    def check_texts(self, workdir: Path) -> None:
        """Refuse a model that isn't asked about texts.

        Raises:
            UserError: it has only been pretrained or imported; says how to go on.
        """
        if not self.task.text_inputs:
            raise UserError(
                f"{workdir} holds a {self.task.network.kind} network, which answers no texts; fine-tune it "
                f"first: run.py finetune --config=FILE --config.init={workdir} --workdir=DIR"
            )
        if self.vocabulary is None:
            raise UserError(f"{workdir} was imported without a tokenizer, so that it reads no texts")

    def save(self, workdir: Path, training_records_sha256: str | None) -> None:
        """Write model.json and vocab.txt, or check that those there are the same.

        Raises:
            UserError: the run that is there has another network or other training records.
        """
        content = self._content() | {"training_records_sha256": training_records_sha256}
        path = workdir / "model.json"
        if path.exists():
            begun = read_json(path, "") | self.load(workdir)._content()
            differences = configuration.differences(begun, content, "model")
            if differences:
                raise UserError(
                    f"{workdir} was begun with other data or weights ({'; '.join(differences)}); "
                    "put them back to go on with that run, or give another --workdir"
                )
        if self.vocabulary:
            self.vocabulary.save(workdir / "vocab.txt")
        write_json(path, content)

    def _content(self) -> dict[str, Any]:
        tokenizer = None
        if self.vocabulary:
            digest = {"vocabulary_sha256": self.vocabulary.sha256}
            tokenizer = self.tokenizer_options.get_config() | digest
        return {
            "task": {"name": self.task.name} | self.task.get_config(),
            "encoder": configuration.to_dict(self.encoder),
            "tokenizer": tokenizer,
            "max_length": self.max_length,
            "truncation": self.truncation,
        }

    @classmethod
    def load(cls, workdir: Path) -> "ModelDescription":
        """Read model.json and vocab.txt.

        Raises:
            UserError: a file is missing, or the vocabulary isn't the one that the model was made with.
        """
        content = _BEFORE | read_json(
            workdir / "model.json", f"{workdir} has no model yet; `run.py finetune` or `pretrain` makes one"
        )
        vocabulary = options = None
        if content["tokenizer"]:
            vocabulary, options = Vocabulary.load(workdir / "vocab.txt"), dict(content["tokenizer"])
            if vocabulary.sha256 != options.pop("vocabulary_sha256"):
                raise UserError(
                    f"{workdir / 'vocab.txt'} isn't the vocabulary that the model was made with; "
                    "put that back"
                )
            options = TokenizerOptions(**options)
        arguments = dict(content["task"])
        return cls(
            task=DESCRIBED[arguments.pop("name")](**arguments),
            encoder=configuration.complete_encoder(configuration.EncoderConfig(), content["encoder"]),
            vocabulary=vocabulary,
            tokenizer_options=options,
            max_length=content["max_length"],
            truncation=content["truncation"],
        )


def best_step(workdir: Path) -> int:
    """The step that the evaluation metric chose.

    Raises:
        UserError: none has been evaluated yet.
    """
    best = None
    for step in reversed(checkpoints.steps(workdir)):
        with contextlib.suppress(checkpoints.Unreadable):
            best = checkpoints.read_state(workdir, step)["best_step"]
            break
    if best is None:
        raise UserError(f"{workdir} has no evaluated checkpoint yet; run the command that began it to go on")
    return best


def inference_precision(config: configuration.Config) -> str:
    """The dtype policy to answer with: float64 where trained in it, else float32."""
    return "float64" if config.train.precision == "float64" else "float32"


def load_best_model(workdir: Path, precision: str) -> tuple[ModelDescription, keras.Model]:
    """The description and the model with the weights of the best checkpoint, in a dtype policy."""
    step = best_step(workdir)
    description = ModelDescription.load(workdir)
    model = description.task.build_model(description.encoder, precision)
    checkpoints.restore(workdir, step, model)
    return description, model


def provenance() -> dict[str, Any]:
    """Versions, machine, command and git state, ready for JSON."""
    git = {}
    for key, arguments in {"commit": ["rev-parse", "HEAD"], "changes": ["status", "--porcelain"]}.items():
        answer = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        git[key] = answer.stdout.strip() if answer.returncode == 0 else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "git": git,
    }


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        UserError: `otherwise` where the file isn't there; where it is broken, says so.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(otherwise) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't read it: {error}") from error
