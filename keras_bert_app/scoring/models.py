"""What can be asked: a run's best checkpoint, or a bundle; and what tells one such model from another."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.export.freezing import FrozenNetwork
from keras_bert_app.export.versions import newest_version
from keras_bert_app.scoring.answering import SIGNATURE, Answerer, load_bundle
from keras_bert_app.training import checkpoints
from keras_bert_app.training import workdir as folders

_COLUMN_FLAGS = {features.TEXT: "text_column", features.TEXT_PAIR: "pair_column"}


@dataclass(frozen=True)
class Model:
    """What answers.

    columns: name of a text -> its column in the files. sha256: of all that the answers follow from.
    """

    answerer: Answerer
    columns: Mapping[str, str]
    path: Path
    sha256: str


def given_columns(text_column: str | None, pair_column: str | None) -> dict[str, str]:
    """Name of a text -> the column that a flag names."""
    given = {features.TEXT: text_column, features.TEXT_PAIR: pair_column}
    return {name: column for name, column in given.items() if column is not None}


def open_run(workdir: Path, columns: Mapping[str, str]) -> Model:
    """A run's best checkpoint, asked through the signature that its bundle would have.

    Args:
        columns: name of a text -> column; for those it lacks, what the run's config says.

    Raises:
        UserError: the folder is no run's, has no evaluated checkpoint, or its model isn't asked about texts.
    """
    config = folders.read_config(workdir)
    folders.ModelDescription.load(workdir).check_texts(workdir)
    step = folders.best_step(workdir)
    description, model = folders.load_best_model(workdir, folders.inference_precision(config))
    packer = description.packer()
    signature = description.task.signatures(FrozenNetwork(model), packer)[SIGNATURE]
    answerer = Answerer(signature, packer, model, str(workdir))
    weights = checkpoints.folder_of(workdir, step) / checkpoints.MODEL
    files = [workdir / "config.json", workdir / "model.json", workdir / "vocab.txt", weights]
    chosen = _columns(answerer, description.task.columns(config.data, labelled=False) | columns, workdir)
    return Model(answerer, chosen, workdir, _sha256(files))


def open_bundle(export_dir: Path, columns: Mapping[str, str]) -> Model:
    """The newest version of a bundle, or the version whose folder is given.

    Args:
        columns: name of a text -> column; for those it lacks, one of the same name.

    Raises:
        UserError: there is none, it can't be loaded, or it isn't asked about texts.
    """
    path = newest_version(export_dir)
    answerer = load_bundle(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return Model(answerer, _columns(answerer, columns, path), path, _sha256(files))


def _columns(answerer: Answerer, columns: Mapping[str, str], path: Path) -> dict[str, str]:
    for name in columns.keys() - set(answerer.inputs):
        raise UserError(f"{path} isn't asked about pairs of texts; leave --{_COLUMN_FLAGS[name]} out")
    return {name: columns.get(name, name) for name in answerer.inputs}


def _sha256(files: list[Path]) -> str:
    """Of the content of files, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
