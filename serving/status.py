"""How a request fails: with a gRPC status code and a message, the same over gRPC and REST."""

import grpc

# As TensorFlow's error codes, which are gRPC's numbers.
CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """A request that is answered with `code` (grpc.StatusCode) and `message` instead of a result."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


def invalid_argument(message):
    """The RequestError most requests end with."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message):
    """The RequestError for what is not served."""
    return RequestError(grpc.StatusCode.NOT_FOUND, message)
