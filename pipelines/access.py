"""Asks a cluster, before Ray joins it, whether it answers, lets this process in, and keeps everybody else out.

Ray 2.60 itself tries a wrong token for 20 s and an address where nothing is for 160 s, and joins what is open to all.
"""

from __future__ import annotations

import os
from typing import Any

from pipelines.project import UserError

TIMEOUT = 10.0  # seconds that a busy head may take to answer


def check(address: str) -> None:
    """UserError, one line that says what to do, unless this process should join the cluster of RAY_ADDRESS."""
    from ray._common.network_utils import is_localhost

    where = f"RAY_ADDRESS={address}"
    head = _head(address, where)
    if head is None:
        return
    token = _token(address, where)
    nodes = _nodes(head, None, where)
    if nodes is None and not token:
        raise UserError(
            f"{where}: the cluster asks for a token: set RAY_AUTH_MODE=token and copy ~/.ray/auth_token from it"
        )
    if nodes is None and _nodes(head, token, where) is None:
        raise UserError(f"{where}: the cluster refuses this token: copy ~/.ray/auth_token from its head")
    # Ray's servers listen on all interfaces of a node, unless its own address is the loopback's.
    if nodes and not all(is_localhost(node) for node in nodes):
        raise UserError(
            f"{where}: the cluster runs anybody's commands; on every node set RAY_AUTH_MODE=token, copy one token"
            " (`ray get-auth-token --generate`) to ~/.ray/auth_token, and start Ray again"
        )


def _head(address: str, where: str) -> str | None:
    """HOST:PORT of the head; None where Ray would start a cluster of its own."""
    from ray._private.services import canonicalize_bootstrap_address

    if address.startswith("ray://"):
        raise UserError(f"{where}: give the head's HOST:6379, or run the command on the cluster: `ray job submit`")
    try:
        return canonicalize_bootstrap_address(address)
    except ConnectionError:
        raise UserError(f"{where}: no Ray runs on this machine; start one, or unset RAY_ADDRESS") from None
    except ValueError:
        raise UserError(f"{where}: expected HOST:PORT or auto") from None


def _token(address: str, where: str) -> str:
    """What Ray will send: nothing unless it is told to, or finds the cluster itself."""
    from ray._private.authentication.authentication_token_setup import (
        AuthenticationMode,
        AuthenticationTokenLoader,
        get_authentication_mode,
    )

    token = AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    if get_authentication_mode() != AuthenticationMode.DISABLED:
        if not token:
            raise UserError(
                f"{where}: RAY_AUTH_MODE asks for a token, and there is none: copy ~/.ray/auth_token from the head"
            )
        return token
    return token if address == "auto" and "RAY_AUTH_MODE" not in os.environ else ""


def _nodes(head: str, token: str | None, where: str) -> list[str] | None:
    """The addresses of the cluster's nodes; None where it does not let us in."""
    import grpc
    from ray.core.generated import gcs_service_pb2
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    messages: Any = gcs_service_pb2  # its names are made at import
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with _channel(head) as channel:
        try:
            ask = NodeInfoGcsServiceStub(channel).GetAllNodeInfo
            reply = ask(messages.GetAllNodeInfoRequest(), timeout=TIMEOUT, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return None
            raise UserError(f"{where}: no Ray head answers at {head}; start it, or unset RAY_ADDRESS") from None
    return [node.node_manager_address for node in reply.node_info_list]


def _channel(head: str) -> Any:
    """As Ray opens it, but without its token."""
    import grpc
    from ray._common.tls_utils import load_certs_from_env

    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(head, options)
    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(head, grpc.ssl_channel_credentials(authority, key, chain), options)
