"""Names of weights on model hubs -> a folder on this machine, by those hubs' own downloaders and caches.

hf://ORG/NAME[@REVISION]       huggingface_hub; a branch, tag or commit, by default the newest of main
kaggle://OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION]   kagglehub: KerasHub's presets and TF Hub's models
bert_base_en_uncased and such  KerasHub's own names for the former, with the version that it was made with
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_bert_app.errors import UserError

HUGGINGFACE, KAGGLE = "hf://", "kaggle://"
_PRESET = re.compile(r"bert_\w+")
# Of a repository on Hugging Face, no more than what is read.
_FILES = ["*.json", "vocab.txt", "assets/*", "model*.safetensors", "*.weights.h5", "bert_model.ckpt*"]
_PICKLE = "pytorch_model.bin"


def is_handle(source: str) -> bool:
    """Whether it may name weights on a hub; of KerasHub's own names only KerasHub knows."""
    preset = _PRESET.fullmatch(source) and not Path(source).exists()
    return source.startswith((HUGGINGFACE, KAGGLE)) or bool(preset)


def fetch(source: str) -> tuple[Path, dict[str, Any]] | None:
    """Download what a handle names, or find it in the cache; None for what is no handle.

    Returns:
        The folder, and for provenance the handle and its `revision`: the commit, or Kaggle's version.

    Raises:
        UserError: there is no such thing, or it can't be had.
    """
    if source.startswith(HUGGINGFACE):
        folder = _huggingface(source)
        return folder, {"handle": source, "revision": folder.name}
    handle = source if source.startswith(KAGGLE) else _kerashub_handle(source)
    if handle is None:
        return None
    folder = _kaggle(handle)
    return folder, {"handle": handle, "revision": folder.name}


def _huggingface(source: str) -> Path:
    import huggingface_hub

    name, _, revision = source.removeprefix(HUGGINGFACE).partition("@")

    def download(files):
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=files))

    with _told(f"{source}: can't be had from Hugging Face"):
        folder = download(_FILES)
        if not any(path.suffix in (".safetensors", ".h5", ".index") for path in folder.iterdir()):
            folder = download([*_FILES, _PICKLE])
    return folder


def _kaggle(handle: str) -> Path:
    import kagglehub

    with _told(f"{handle}: can't be had from Kaggle"):
        return Path(kagglehub.model_download(handle.removeprefix(KAGGLE)))


def _kerashub_handle(name: str) -> str | None:
    """The handle that KerasHub has for one of its presets; None for another name."""
    if not is_handle(name):
        return None
    import keras_hub

    presets = keras_hub.models.BertBackbone.presets
    return presets[name]["kaggle_handle"] if name in presets else None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever goes wrong, as one line: the libraries raise errors of their own and of their HTTP clients."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        first_sentence = re.split(r"(?<=[a-z\)'])\. ", text)[0].rstrip(".")
        raise UserError(f"{what}: {first_sentence}") from error
