"""The models a server has: their versions loaded, served and unloaded as configuration and folders change.

The order of things is that of TensorFlow Serving's availability-preserving policy: a version no longer wanted
goes only once one that is wanted answers, and only when its last request has been answered.
"""

import contextlib
import dataclasses
import gc
import logging
import os
import threading
import time

from tensorflow_serving.apis import get_model_status_pb2

from serving import config
from serving.status import CODES, RequestError, invalid_argument, not_found

LOADING, AVAILABLE, UNLOADING, END = (
    get_model_status_pb2.ModelVersionStatus.State.Value(name)
    for name in ("LOADING", "AVAILABLE", "UNLOADING", "END")
)
log = logging.getLogger(__name__)


@dataclasses.dataclass
class Version:
    """One version of a model.

    Attributes:
        state: a ModelVersionStatus.State.
        servable: what answers, while it is AVAILABLE or UNLOADING.
        failure: the RequestError for which it did not load.
        stamp: what its folder looked like then; it is tried again once that has changed.
        num_users: requests under way.
    """

    state: int = LOADING
    servable: object = None
    failure: RequestError | None = None
    stamp: tuple = ()
    num_users: int = 0


class ModelStore:
    """All that is served.

    Args:
        load: function of a name, a version and a folder that returns a Servable, warmed up.
    """

    def __init__(self, load):
        self._load = load
        self.model_server_config = None  # what is served, as last asked for
        self._entries = {}  # model name: ModelConfig
        self._versions = {}  # model name: {number: Version}
        self._changed = threading.Condition()  # held to read or change the versions
        self._updating = threading.Lock()  # held by the one who loads and unloads
        self._said = {}  # model name: the last complaint about its folder

    def reload(self, model_server_config):
        """Serve what a ModelServerConfig asks for, and nothing else.

        Raises StartError, having changed nothing, where it makes no sense, where none of a model's versions
        loads, or where a label's does not.
        """
        entries = config.entries(model_server_config)
        with self._updating:
            wanted = {name: config.wanted_versions(entry) for name, entry in entries.items()}
            loaded = self._load_missing(wanted)
            try:
                for name, entry in entries.items():
                    self._check_available(name, wanted[name], entry.version_labels.values())
            except config.StartError:
                self._unload(loaded)
                with self._changed:
                    for name in entries.keys() - self._entries.keys():
                        del self._versions[name]
                raise
            self.model_server_config, self._entries = model_server_config, entries
            self._retire(wanted)

    def poll(self):
        """Look at the folders once more: load what is new, then unload what is no longer wanted."""
        with self._updating:
            wanted = {}
            for name, entry in self._entries.items():
                try:
                    wanted[name] = config.wanted_versions(entry)
                    self._said.pop(name, None)
                except config.StartError as error:
                    # All that is served of it goes on being served.
                    wanted[name] = {}
                    if self._said.get(name) != str(error):
                        self._said[name] = str(error)
                        log.warning("%s; what is served of it is kept", error)
            self._load_missing(wanted)
            self._retire(wanted)

    @contextlib.contextmanager
    def use(self, spec):
        """The Servable that a ModelSpec names, kept until the end of the block; raises RequestError."""
        with self._changed:
            version = self._find(spec)
            version.num_users += 1
        try:
            yield version.servable
        finally:
            with self._changed:
                version.num_users -= 1
                if version.state == UNLOADING:
                    self._changed.notify_all()

    def _find(self, spec):
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        versions = self._available(spec.name)
        choice = spec.WhichOneof("version_choice")
        if choice is None:
            if not versions:
                raise not_found(f"Servable not found for request: Latest({spec.name})")
            return versions[max(versions)]
        if choice == "version":
            number = spec.version.value
        else:
            labels = self._entries[spec.name].version_labels if spec.name in self._entries else {}
            if spec.version_label not in labels:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            number = labels[spec.version_label]
        if number not in versions:
            raise not_found(f"Servable not found for request: Specific({spec.name}, {number})")
        return versions[number]

    def status(self, spec):
        """The GetModelStatusResponse for a ModelSpec, newest version first; raises RequestError.

        Labels are not looked at, as in the stock server.
        """
        response = get_model_status_pb2.GetModelStatusResponse()
        with self._changed:
            versions = self._versions.get(spec.name, {})
            if spec.HasField("version"):
                if spec.version.value not in versions:
                    raise not_found(f"Could not find version {spec.version.value} of model {spec.name}")
                versions = {spec.version.value: versions[spec.version.value]}
            elif not versions:
                raise not_found(f"Could not find any versions of model {spec.name}")
            for number in sorted(versions, reverse=True):
                added = response.model_version_status.add(version=number, state=versions[number].state)
                added.status.SetInParent()
                if failure := versions[number].failure:
                    added.status.error_code = failure.code.value[0]
                    added.status.error_message = failure.message
        return response

    def _available(self, name):
        versions = self._versions.get(name, {})
        return {number: version for number, version in versions.items() if version.state == AVAILABLE}

    def _check_available(self, name, wanted, labelled):
        available = self._available(name)
        lacking = [number for number in labelled if number not in available]
        if not available.keys() & wanted.keys():
            lacking = list(wanted)
        if lacking:
            failure = self._versions[name][lacking[0]].failure
            raise config.StartError(
                f"version {lacking[0]} of model {name} in {wanted[lacking[0]]} does not load: "
                f"{failure.message}"
            )

    def _load_missing(self, wanted):
        """Load the versions of {name: {number: folder}} that are not; returns {name: {number: Version}}."""
        loaded = {}
        for name, folders in wanted.items():
            for number, path in sorted(folders.items()):
                versions = self._versions.setdefault(name, {})
                known = versions.get(number, Version(END))
                if known.servable or (known.failure and known.stamp == _stamp(path)):
                    continue
                version = Version(stamp=_stamp(path))
                with self._changed:
                    versions[number] = version
                started = time.monotonic()
                try:
                    servable = self._load(name, number, path)
                except Exception as error:
                    with self._changed:
                        version.state, version.failure = END, _failure(error)
                    log.error(
                        "version %d of model %s does not load: %s", number, name, version.failure.message
                    )
                    continue
                with self._changed:
                    version.state, version.servable = AVAILABLE, servable
                loaded.setdefault(name, {})[number] = version
                log.info("version %d of model %s: %.1f s", number, name, time.monotonic() - started)
        return loaded

    def _retire(self, wanted):
        unwanted = {}
        for name in self._versions:
            available = self._available(name)
            if name in wanted and not available.keys() & wanted[name].keys():
                continue
            unwanted[name] = {
                number: version for number, version in available.items() if number not in wanted.get(name, {})
            }
        self._unload(unwanted)

    def _unload(self, unwanted):
        """Answer no more requests from {name: {number: Version}}, and free each when its last one is done."""
        versions = {
            (name, number): version for name in unwanted for number, version in unwanted[name].items()
        }
        with self._changed:
            for version in versions.values():
                version.state = UNLOADING
        for (name, number), version in versions.items():
            with self._changed:
                self._changed.wait_for(lambda version=version: not version.num_users)
                servable, version.servable, version.state = version.servable, None, END
            servable.close()
            log.info("version %d of model %s: unloaded", number, name)
        if versions:
            del servable
            gc.collect()  # a graph is full of cycles

    def close(self):
        """Unload everything, each version when its last request is done."""
        with self._updating:
            self._unload({name: self._available(name) for name in self._versions})

    def __str__(self):
        return ", ".join(
            f"model {name} version {config.listed(self._available(name))}" for name in self._versions
        )


def _stamp(path):
    """What changes when a half-copied folder gets its missing files."""
    stamps = []
    for file in (path, os.path.join(path, "saved_model.pb"), os.path.join(path, "variables")):
        with contextlib.suppress(OSError):
            stamps.append(os.stat(file).st_mtime_ns)
    return tuple(stamps)


def _failure(error):
    if isinstance(error, RequestError):
        return error
    message = " ".join(str(error).split())[:500] or type(error).__name__
    return RequestError(CODES[getattr(error, "error_code", 2)], message)
