"""The hub of the demo: ordinary local servers for users, behind proxies that somebody else starts.

Everything that differs from run to run comes from the environment; `incident` sets it.
"""

import json
import os
import sys
from pathlib import Path

here = Path(__file__).parent
run_dir = Path(os.environ["INCIDENT_DIR"])

c = get_config()  # noqa: F821

c.JupyterHub.bind_url = os.environ["INCIDENT_PUBLIC_URL"]
c.JupyterHub.hub_bind_url = os.environ["INCIDENT_HUB_URL"]
c.JupyterHub.last_activity_interval = int(os.environ["INCIDENT_POLL_SECONDS"])

# The hub may stop and start again while its users go on working.
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False

if "INCIDENT_ENDPOINTS" in os.environ:
    c.JupyterHub.proxy_class = "holdfast"
    c.HoldfastProxy.should_start = False
    c.HoldfastProxy.endpoints = os.environ["INCIDENT_ENDPOINTS"].split(",")
else:
    c.ConfigurableHTTPProxy.should_start = False
    c.ConfigurableHTTPProxy.api_url = os.environ["INCIDENT_CHP_API"]
    c.ConfigurableHTTPProxy.auth_token = os.environ["CONFIGPROXY_AUTH_TOKEN"]
    c.Proxy.extra_routes = json.loads((run_dir / "extra_routes.json").read_text())

c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "incident", "api_token": os.environ["INCIDENT_TOKEN"]}]
c.JupyterHub.load_roles = [
    {
        "name": "incident",
        "services": ["incident"],
        "scopes": ["admin:users", "admin:servers", "proxy", "list:services", "read:services"],
    }
]

c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = str(run_dir / "homes" / "{username}")
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = [f"--config={here / 'jupyter_server_config.py'}"]
if os.geteuid() == 0:
    c.Spawner.args.append("--allow-root")
c.Spawner.environment = {"INCIDENT_DIR": str(run_dir), "PYTHONPATH": str(here)}
c.Spawner.default_url = "/welcome"
# A request to start a server is answered at once, not when the server runs.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
