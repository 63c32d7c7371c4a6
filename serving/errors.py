"""Why a call to a model server got no result, by what the caller can do about it.

Shared by the gRPC and the REST client, and free of both libraries.
"""


class ServerError(Exception):
    """A call that got no result; where no subclass below fits, the server ended it for a reason of its own.

    Attributes:
        code: name of the gRPC status code, such as "NOT_FOUND"; over REST, of the one that the HTTP status
            stands for.
        message: the server's own words, or the library's where no server was reached.
    """

    advice = "the server gave the call up; ask again, or look at its log"

    def __init__(self, target, code, message):
        self.code = code
        self.message = message
        super().__init__(f"{target}: {self.advice} ({code}: {' '.join(message.split())})")


class InvalidRequest(ServerError):
    """The request does not fit the model, and never will: change it."""

    advice = "the request doesn't fit the model: other inputs, or a signature or label that it hasn't"


class NotFound(ServerError):
    """The server has no such model or version: give another name, or load it there."""

    advice = "no such model or version there"


class NotPermitted(ServerError):
    """The server wants other credentials."""

    advice = "not permitted there; give the client certificate and key that the server asks for"


class Overloaded(ServerError):
    """The server has more work than it takes, retries included: send less at once, or later."""

    advice = "the server has too much to do; send less at once, or later"


class Unreachable(ServerError):
    """No server answers at the address, retries included: start it, or mend the address or TLS settings."""

    advice = "no model server answers there; is it running, and are address and TLS right?"


class DeadlineExceeded(ServerError):
    """No answer within the timeout: allow more, or send less at once."""

    advice = "no answer in time; are address and TLS right? Else allow more, or send fewer texts at once"


class WrongServer(ServerError):
    """What listens at the address is no model server, or an older one without this method."""

    advice = "what listens there does not speak TensorFlow Serving's API"


class ServerFault(ServerError):
    """A defect of the server or of its model: its log says more."""

    advice = "the server failed; its log says why"


KINDS = {
    "INVALID_ARGUMENT": InvalidRequest,
    "FAILED_PRECONDITION": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "UNAUTHENTICATED": NotPermitted,
    "PERMISSION_DENIED": NotPermitted,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unreachable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNIMPLEMENTED": WrongServer,
    "INTERNAL": ServerFault,
    "UNKNOWN": ServerFault,
    "DATA_LOSS": ServerFault,
}
# What another attempt, a little later, may mend.
WORTH_RETRYING = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


def error_of(target, code, message):
    """The ServerError for the name of a gRPC status code."""
    return KINDS.get(code, ServerError)(target, code, message)
