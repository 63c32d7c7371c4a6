"""Other people's formats: which one a path has, and what reads and writes each."""

import re
from pathlib import Path

from keras_bert_app.convert import google, huggingface, kerashub
from keras_bert_app.errors import UserError

# Each has load(path, tokenizer), save(pretrained, folder, max_length) and UNSTATED.
FORMATS = {"huggingface": huggingface, "google": google, "kerashub": kerashub}

_CHECKPOINT = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")


def find_format(path: Path) -> str:
    """The key of FORMATS whose files lie there.

    Raises:
        UserError: none does.
    """
    names = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
    # A checkpoint may be named by any of its files, or by what their names have in common.
    names |= {f"{path.name}.index"} if Path(f"{path}.index").exists() else set()
    if {"saved_model.pb", google.CONFIG} & names or any(map(_CHECKPOINT.search, names)):
        return "google"
    if any(name.endswith(".weights.h5") for name in names):
        return "kerashub"
    if huggingface.CONFIG in names or any(name.endswith(".safetensors") for name in names):
        return "huggingface"
    raise UserError(
        f"{path}: no weights that can be read; give a Hugging Face folder with {huggingface.CONFIG}, a "
        f"TensorFlow checkpoint with {google.CONFIG}, a SavedModel, a KerasHub preset, or a run's folder"
    )
