"""JupyterHub's routes in a Holdfast cluster.

- proxy.py        HoldfastProxy: what JupyterHub asks of a proxy, asked of a cluster
- process.py      the `holdfast up` that the hub starts, finds again, and stops
- check.py        what the hub wants to be routed, and how the table differs from it
- client.py       RouteClient: writes, gets and lists that outlast an election
- changes.py      changes of routes, and how many of them are one batch
- credentials.py  how replicas are known, and what is shown to them
- endpoints.py    the replicas, and who seems to lead
- backoff.py      how long to wait before the next try
- errors.py       how a call can fail, and what the caller does next
- _proto/         generated from `proto/`
"""

import os

# Read by gRPC when it is first imported. The hub forks for every server it starts, and only to run another program: what
# gRPC does around a fork is of no use there, and it writes a line to the hub's log each time that it cannot do it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from .client import RouteClient
from .credentials import Credentials
from .errors import HoldfastError, LockedOut, Rejected, Unavailable
from .proxy import HoldfastProxy

__version__ = "0.1.0"

__all__ = ["Credentials", "HoldfastError", "HoldfastProxy", "LockedOut", "Rejected", "RouteClient", "Unavailable"]
