# SPDX-License-Identifier: Apache-2.0
"""Why a call failed, as gRPC says it."""

from __future__ import annotations

from grpclib.const import Status

__all__ = ["OpenError", "RootsError", "RpcError", "Status"]

_DESCRIPTIONS = {
    Status.OK: "The operation completed successfully",
    Status.CANCELLED: "The operation was cancelled",
    Status.UNKNOWN: "Unknown error",
    Status.INVALID_ARGUMENT: "Client specified an invalid argument",
    Status.DEADLINE_EXCEEDED: "Deadline expired before operation could complete",
    Status.NOT_FOUND: "Some requested entity was not found",
    Status.ALREADY_EXISTS: "Some entity that we attempted to create already exists",
    Status.PERMISSION_DENIED: (
        "The caller does not have permission to execute the specified operation"
    ),
    Status.RESOURCE_EXHAUSTED: "Some resource has been exhausted",
    Status.FAILED_PRECONDITION: (
        "The system is not in a state required for the operation's execution"
    ),
    Status.ABORTED: "The operation was aborted",
    Status.OUT_OF_RANGE: "Operation was attempted past the valid range",
    Status.UNIMPLEMENTED: "Operation is not implemented or not supported",
    Status.INTERNAL: "Internal error",
    Status.UNAVAILABLE: "The service is currently unavailable",
    Status.DATA_LOSS: "Unrecoverable data loss or corruption",
    Status.UNAUTHENTICATED: ("The request does not have valid authentication credentials"),
}
"""Each status in the words of ztunnel's gRPC, which its logs and dumps show."""


class RpcError(Exception):
    """A call that had been answered ended with an error."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name}: {message}" if message else status.name)
        self.status = status
        self.message = message

    @property
    def description(self) -> str:
        """The status in words, without the message."""
        return _DESCRIPTIONS[self.status]


class OpenError(RpcError):
    """A call was never answered: no connection, no token, or an answer that is only a status."""


class RootsError(Exception):
    """There are no usable roots now; the message names their source."""
