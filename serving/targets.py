"""Whom to ask and with what: `localhost:8500/sentiment@canary`, and texts as a signature takes them."""

import dataclasses

from serving import messages
from serving.client import PredictClient
from serving.connection import addresses


class TargetError(Exception):
    """What was asked for can't be done; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A model at a server ("host:port"): its version by number, or by label, or else the latest."""

    address: str
    model: str
    version: int | None = None
    label: str | None = None

    def __str__(self):
        version = self.label if self.version is None else self.version
        return f"{self.address}/{self.model}" + ("" if version is None else f"@{version}")

    @property
    def choice(self):
        """The keyword arguments of PredictClient's methods that choose the version."""
        return {"version": self.version, "label": self.label}


def parse(spec, model=None):
    """The Target of "host:port[/MODEL][@VERSION or @LABEL]"; a name in digits is a version's number.

    `model` is for a `spec` that names none. Raises TargetError.
    """
    rest, at, version = spec.partition("@")
    address, slash, name = rest.rpartition("/")
    if not slash:
        address, name = rest, model
    form = "write host:port/MODEL, host:port/MODEL@VERSION or host:port/MODEL@LABEL"
    if not name:
        raise TargetError(f"{spec!r} names no model; {form}, or give --model")
    if at and not version:
        raise TargetError(f"{spec!r} has no version after its @; {form}")
    try:
        addresses(address)
    except ValueError as error:
        raise TargetError(f"{spec!r}: {error}") from None
    if version.isascii() and version.isdigit():
        return Target(address, name, version=int(version))
    return Target(address, name, label=version or None)


def text_inputs(target, signature_name, tls=None):
    """The names of the inputs of a signature that takes texts: (text,), or (text, text_pair).

    A single input may have any name. Raises TargetError for a signature that isn't there or takes anything
    else, `serving.errors.ServerError` where the server doesn't say.
    """
    try:
        client = PredictClient(target.address, target.model, tls=tls)
    except ValueError as error:  # about files of TLS
        raise TargetError(str(error)) from None
    with client:
        signatures = client.metadata(**target.choice)
    if signature_name not in signatures:
        raise TargetError(f"{target} has no signature {signature_name}; it has {', '.join(signatures)}")
    inputs = signatures[signature_name]["inputs"]
    if {dtype for dtype, _ in inputs.values()} == {"string"} and (
        len(inputs) == 1 or set(inputs) == {"text", "text_pair"}
    ):
        return tuple(sorted(inputs))
    takes = ", ".join(f"{name} ({dtype})" for name, (dtype, _) in inputs.items())
    raise TargetError(
        f"signature {signature_name} of {target} takes {takes or 'nothing'}; choose one that takes texts: "
        "one input of strings, or text and text_pair"
    )


def request(target, signature_name, names, rows):
    """The bytes of the PredictRequest about `rows`, tuples of as many texts (bytes) as there are `names`."""
    spec = messages.model_spec(target.model, target.version, target.label, signature_name)
    inputs = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return messages.predict_request(spec, inputs).SerializeToString()
