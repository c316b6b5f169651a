"""What users of a hub's servers see."""

import json

from hub import API_TOKEN, fetch, trusting
from jupyterhub.utils import url_escape_path
from websockets.sync.client import connect


def owner(url, user, name="", ca=None):
    """Whose server answers for this user's path; None if it is no server."""
    server = "/".join(url_escape_path(part) for part in (user, name) if part)
    answer = fetch(f"{url}/user/{server}/api/contents/owner.txt?content=1", ca=ca)
    return json.loads(answer.body)["content"] if answer.status == 200 else None


def answered_by_hub(url, path):
    """Whether the default route took the request: the hub sends users' paths on to pages of its own."""
    answer = fetch(url + path)
    return answer.status == 302 and answer.headers["Location"].startswith("/hub/")


def type_in_terminal(url, user, text, ca=None):
    """Opens a terminal on the user's server and returns what its WebSocket sends until `text` comes back."""
    terminal = json.loads(fetch(f"{url}/user/{user}/api/terminals", method="POST", body={}, ca=ca).body)["name"]
    socket_url = f"ws{url.removeprefix('http')}/user/{user}/terminals/websocket/{terminal}"
    headers = {"Authorization": f"token {API_TOKEN}"}
    with connect(socket_url, additional_headers=headers, proxy=None, ssl=ca and trusting(ca)) as socket:
        socket.send(json.dumps(["stdin", f"echo {text}-$((40 + 2))\n"]))
        seen = ""
        while f"{text}-42" not in seen:
            kind, *content = json.loads(socket.recv(timeout=30))
            if kind == "stdout":
                seen += content[0]
    return seen
