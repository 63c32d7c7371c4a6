"""The models a server has: loaded, and found again by a request's ModelSpec."""

import dataclasses

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from serving.config import StartError, listed
from serving.servable import RequestError, Servable, invalid_argument

AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


@dataclasses.dataclass
class Model:
    """One name: its loaded versions {number: Servable} and labels {label: number}."""

    versions: dict
    labels: dict


class ModelStore:
    """All that is served, `models` {name: Model}.

    Args:
        plans: {name: serving.config.ModelPlan}.

    Raises StartError where a version does not load.
    """

    def __init__(self, plans):
        self.models = {}
        try:
            for name, plan in plans.items():
                self.models[name] = Model({}, plan.labels)
                for version, path in plan.versions.items():
                    self.models[name].versions[version] = _load(name, version, path)
        except StartError:
            self.close()
            raise

    def find(self, spec):
        """The Servable that a ModelSpec names; raises RequestError."""
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        model = self.models.get(spec.name, Model({}, {}))
        choice = spec.WhichOneof("version_choice")
        if choice is None:
            if not model.versions:
                raise not_found(f"Servable not found for request: Latest({spec.name})")
            return model.versions[max(model.versions)]
        if choice == "version":
            version = spec.version.value
        elif spec.version_label in model.labels:
            version = model.labels[spec.version_label]
        else:
            raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        if version not in model.versions:
            raise not_found(f"Servable not found for request: Specific({spec.name}, {version})")
        return model.versions[version]

    def status(self, spec):
        """The GetModelStatusResponse for a ModelSpec, newest version first; raises RequestError.

        Labels are not looked at, as in the stock server.
        """
        versions = self.models[spec.name].versions if spec.name in self.models else {}
        if spec.HasField("version"):
            if spec.version.value not in versions:
                raise not_found(f"Could not find version {spec.version.value} of model {spec.name}")
            versions = [spec.version.value]
        elif not versions:
            raise not_found(f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in sorted(versions, reverse=True):
            response.model_version_status.add(version=version, state=AVAILABLE).status.SetInParent()
        return response

    def close(self):
        """Unload everything; no request may be under way."""
        for model in self.models.values():
            for servable in model.versions.values():
                servable.close()

    def __str__(self):
        return ", ".join(
            f"model {name} version {listed(model.versions)}" for name, model in self.models.items()
        )


def _load(name, version, path):
    try:
        return Servable(name, version, path)
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise StartError(f"version {version} of model {name} in {path} does not load: {reason}") from error


def not_found(message):
    """The RequestError for what is not served."""
    return RequestError(grpc.StatusCode.NOT_FOUND, message)
