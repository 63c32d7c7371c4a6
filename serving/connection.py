"""What the gRPC and the REST client share about reaching a server: addresses, TLS, deadlines, retries."""

import dataclasses
import re
import ssl
import time

from serving.errors import DeadlineExceeded

TIMEOUT = 60.0  # seconds for a whole call, retries and batches included, unless told otherwise
ATTEMPTS = 5  # the most that gRPC makes
# Seconds before the second attempt, the factor for each further one, and the most; jittered.
FIRST_DELAY, DELAY_FACTOR, LONGEST_DELAY = 0.1, 3, 2.0
BATCH_SIZE = 64  # rows in a request
CONCURRENCY = 4  # requests of one call under way at once
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:,/\[\]]+):([0-9]{1,5})")


def addresses(target):
    """The [(host, port)] of "host:port", or of several with commas between; raises ValueError, one line."""
    found = []
    for address in target.split(","):
        match = _ADDRESS.fullmatch(address.strip())
        if not match or not 0 < int(match[2]) < 65536:
            raise ValueError(
                f"{address!r} is no address; write host:port, such as localhost:8500, "
                "several with commas between"
            )
        found.append((match[1], int(match[2])))
    return found


def check_numbers(attempts, batch_size, concurrency):
    """Raise ValueError, one line, for numbers that a client can't have."""
    if batch_size < 1 or concurrency < 1 or not 1 <= attempts <= ATTEMPTS:
        raise ValueError(
            f"batch_size and concurrency are 1 or more, attempts 1 to {ATTEMPTS}; "
            f"not {batch_size}, {concurrency}, {attempts}"
        )


@dataclasses.dataclass(frozen=True)
class Tls:
    """An encrypted connection. All but `server_name` are paths of PEM files.

    Attributes:
        root_certificates: whom to trust; the well-known authorities where None.
        certificate, key: the client's own, for a server that asks for them; both or neither.
        server_name: the name that the server's certificate must hold, where it isn't the address' host, of
            several addresses the first one's.
    """

    root_certificates: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None

    def context(self):
        """The ssl.SSLContext; raises ValueError, one line, for files that can't be used."""
        if bool(self.certificate) != bool(self.key):
            raise ValueError("a client certificate and its key go together; give both or neither")
        context = ssl.create_default_context()
        if self.root_certificates:
            # Those alone are trusted.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            _load(context.load_verify_locations, self.root_certificates)
        if self.certificate:
            _load(context.load_cert_chain, self.certificate, self.key)
        return context


def _load(load, *paths):
    try:
        for path in paths:
            with open(path, "rb"):
                pass
        load(*paths)
    except OSError as error:  # ssl.SSLError is one
        where = error.filename or " with ".join(map(str, paths))
        raise ValueError(f"{where}: can't be used for TLS: {error.strerror}; give PEM files") from error


class Deadline:
    """The end of a call to `target` that may take `timeout` seconds, from now on; without end where None."""

    def __init__(self, timeout, target):
        self._target = target
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self):
        """Seconds left; None where there is no end. Raises DeadlineExceeded where none are."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(self._target, "DEADLINE_EXCEEDED", "the timeout has passed")
        return left
