"""What to serve: a `ModelServerConfig`, as TensorFlow Serving's `models.config` files hold it, made definite.

Nothing here imports TensorFlow, so that a wrong flag or folder is answered at once.
"""

import os

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2


class StartError(Exception):
    """What was asked to be served cannot be; the message is one line that says why."""


def read_config(path):
    """The ModelServerConfig in the text file at `path`; raises StartError."""
    try:
        with open(path, encoding="utf-8") as file:
            return text_format.Parse(file.read(), model_server_config_pb2.ModelServerConfig())
    except OSError as error:
        raise StartError(f"model config file {path} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise StartError(f"model config file {path} is no ModelServerConfig in text form: {error}") from error


def one_model(name, base_path):
    """The ModelServerConfig of one model, its latest version served."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=name, base_path=os.path.abspath(base_path), model_platform="tensorflow"
    )
    return config


def entries(config):
    """{model name: ModelConfig} of a ModelServerConfig; raises StartError where one makes no sense."""
    found = {}
    for entry in config.model_config_list.config:
        if not entry.name:
            raise StartError("a model without a name in the model configuration")
        if entry.name in found:
            raise StartError(f"model {entry.name} is listed twice in the model configuration")
        if entry.model_platform != "tensorflow":
            given = f'not "{entry.model_platform}"'
            raise StartError(f'model {entry.name} needs model_platform: "tensorflow", {given}')
        if not os.path.isabs(entry.base_path):
            raise StartError(f'model {entry.name} needs an absolute base_path, not "{entry.base_path}"')
        found[entry.name] = entry
    if not found:
        raise StartError("the model configuration names no model (model_config_list { config { ... } })")
    return found


def wanted_versions(entry):
    """{number: folder} of the versions that a ModelConfig's policy chooses among those there are now.

    Raises StartError where the folder cannot be read or lacks what the policy or a label names.
    """
    try:
        folders = os.listdir(entry.base_path)
    except OSError as error:
        raise StartError(
            f"folder {entry.base_path} of model {entry.name} cannot be read: {error.strerror}"
        ) from error
    found = {
        int(folder): os.path.join(entry.base_path, folder)
        for folder in sorted(folders)
        # A larger number is no version: protos have 64 bits for it.
        if folder.isascii() and folder.isdigit() and int(folder) < 1 << 63
    }
    if not found:
        raise StartError(
            f"folder {entry.base_path} of model {entry.name} has no version in it: "
            "a folder named by a number, such as 1"
        )
    chosen = _chosen(entry, found)
    for label, version in entry.version_labels.items():
        if version not in chosen:
            raise StartError(
                f"label {label} of model {entry.name} names version {version}, which is not served; "
                f"served: {listed(chosen)}"
            )
    return chosen


def _chosen(entry, found):
    policy = entry.model_version_policy
    if policy.HasField("all"):
        return found
    if policy.HasField("specific"):
        wanted = set(policy.specific.versions)
        if not wanted or wanted - found.keys():
            asked = f"version {listed(wanted)}" if wanted else "specific versions and names none"
            raise StartError(f"model {entry.name} asks for {asked}; {entry.base_path} has {listed(found)}")
    else:
        wanted = sorted(found)[-max(policy.latest.num_versions, 1) :]
    return {version: found[version] for version in wanted}


def listed(versions):
    """Version numbers as a message has them."""
    return ", ".join(map(str, sorted(versions)))
