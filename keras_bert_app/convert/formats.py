"""Other people's formats: which one a path has, and what reads and writes each."""

from pathlib import Path

from keras_bert_app.convert import huggingface
from keras_bert_app.errors import UserError

# Each has load(path, tokenizer) and save(pretrained, folder, max_length).
FORMATS = {"huggingface": huggingface}


def find_format(path: Path) -> str:
    """The key of FORMATS whose files lie there.

    Raises:
        UserError: none does.
    """
    names = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
    if huggingface.CONFIG in names or any(name.endswith(".safetensors") for name in names):
        return "huggingface"
    raise UserError(
        f"{path}: no weights that can be read; give a Hugging Face folder with {huggingface.CONFIG}, or a "
        "run's folder"
    )
