"""A user's server in the demo: an ordinary one that says in every answer whose it is."""

import os
from pathlib import Path

c = get_config()  # noqa: F821

c.ServerApp.tornado_settings = {"headers": {"X-Holdfast-Server": os.environ["JUPYTERHUB_USER"]}}
c.ServerApp.jpserver_extensions = {"welcome": True}

# Servers outlive their hub, so the demo has to know what to end when it ends.
pids = Path(os.environ["INCIDENT_DIR"]) / "pids"
pids.mkdir(exist_ok=True)
(pids / str(os.getpid())).touch()
