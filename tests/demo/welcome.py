"""A page to see in a browser: the demo's servers have no user interface installed."""

from jupyter_server.base.handlers import MainHandler
from jupyter_server.utils import url_path_join


def _jupyter_server_extension_points():
    return [{"module": "welcome"}]


def _load_jupyter_server_extension(server):
    server.web_app.add_handlers(".*$", [(url_path_join(server.base_url, "welcome"), MainHandler)])
