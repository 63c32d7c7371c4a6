"""How the gRPC client reaches servers: addresses and options of a channel, retries and balancing in them.

Retries, their jitter and the choice among several targets are gRPC's own, asked for by a service config:
https://github.com/grpc/proposal/blob/master/A6-client-retries.md
"""

import json
import re
import socket
from pathlib import Path

import grpc

from serving.connection import DELAY_FACTOR, FIRST_DELAY, LONGEST_DELAY, LOOPBACK, addresses
from serving.errors import WORTH_RETRYING, error_of

# gRPC's own kinds of names, which are left to it.
_SCHEMES = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|xds):")
NO_LIMIT = 2**31 - 1


def open_channel(library, target, tls, attempts, keep_alive, more_options=()):
    """A channel made by `library`, grpc or grpc.aio; arguments as of `serving.client.PredictClient`."""
    name, options = resolve(target)
    options += [*channel_options(attempts, keep_alive), *more_options]
    if tls is None:
        return library.insecure_channel(name, options=options)
    tls.context()  # refuses files that can't be used, which gRPC would say nothing of
    several = not _SCHEMES.match(target) and "," in target
    # gRPC would look for all addresses at once in the certificate.
    server_name = tls.server_name or (addresses(target)[0][0].strip("[]") if several else None)
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return library.secure_channel(name, credentials(tls), options=options)


def resolve(target):
    """gRPC's name for one address or several, and the options that these need.

    Raises ValueError for what is no address, Unreachable where none of several hosts has an address.
    """
    if _SCHEMES.match(target):
        return target, []
    found = addresses(target)
    # A proxy can't reach this machine's own loopback, nor several addresses at once.
    direct = [("grpc.enable_http_proxy", 0)]
    if len(found) == 1:
        return target.strip(), direct if found[0][0] in LOOPBACK else []
    by_family = {socket.AF_INET: [], socket.AF_INET6: []}
    for host, port in found:
        try:
            entries = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError:
            continue  # as dead as one that doesn't answer
        for family, *_, address in entries:
            by_family.setdefault(family, []).append(address)
    if by_family[socket.AF_INET]:
        return "ipv4:" + ",".join(f"{host}:{port}" for host, port in by_family[socket.AF_INET]), direct
    if by_family[socket.AF_INET6]:
        return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port, *_ in by_family[socket.AF_INET6]), direct
    raise error_of(target, "UNAVAILABLE", "none of these hosts has an address")


def channel_options(attempts, keep_alive):
    """Options of every channel: no limits of size, attempts, load balancing, pings."""
    config = {"loadBalancingConfig": [{"round_robin": {}}]}
    if attempts > 1:
        policy = {
            "maxAttempts": attempts,
            "initialBackoff": f"{FIRST_DELAY}s",
            "maxBackoff": f"{LONGEST_DELAY}s",
            "backoffMultiplier": DELAY_FACTOR,
            "retryableStatusCodes": list(WORTH_RETRYING),
        }
        config["methodConfig"] = [{"name": [{}], "retryPolicy": policy}]
    options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Larger requests are not tried again; gRPC's own 256 KiB is less than a batch of long texts.
        ("grpc.per_rpc_retry_buffer_size", NO_LIMIT),
        # So that an attempt finds a server that is back; gRPC's own first delay is a second, and it doubles.
        ("grpc.initial_reconnect_backoff_ms", int(FIRST_DELAY * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(LONGEST_DELAY * 1000)),
    ]
    if keep_alive is not None:
        options += [
            ("grpc.keepalive_time_ms", int(keep_alive * 1000)),
            # Not keepalive_timeout_ms, which leaves the ping a minute all the same (seen with grpcio 1.85.1).
            ("grpc.http2.ping_timeout_ms", int(min(keep_alive, 20.0) * 1000)),
        ]
    return options


def credentials(tls):
    """The grpc.ChannelCredentials of a `serving.connection.Tls`."""
    files = (tls.root_certificates, tls.key, tls.certificate)
    return grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))
