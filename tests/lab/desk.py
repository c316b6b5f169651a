"""Where a user works: JupyterLab in a page of a browser, with one notebook open."""

import re
import time
from collections import Counter
from urllib.parse import urlsplit

from playwright.async_api import expect

NOTEBOOK = "work.ipynb"
# A user's first page waits for the user's server.
SPAWN_MS = 180_000
PATIENCE_MS = 60_000


class Desk:
    """One page. `handshakes` counts what its WebSockets were answered with, by status; `kept` are those that may not close."""

    def __init__(self, page):
        self.page = page
        self.handshakes = Counter()
        self.kept = []
        self._sockets = []
        page.on("websocket", lambda socket: self._sockets.append(socket))

    @classmethod
    async def new(cls, context):
        page = await context.new_page()
        desk = cls(page)
        page.set_default_timeout(PATIENCE_MS)
        network = await context.new_cdp_session(page)
        network.on("Network.webSocketHandshakeResponseReceived", desk._shook_hands)
        await network.send("Network.enable")
        return desk

    def _shook_hands(self, event):
        self.handshakes[event["response"]["status"]] += 1

    async def log_in(self, url, user):
        """By the hub's own form; returns when JupyterLab is there, in a server that was started for it."""
        await self.page.goto(f"{url}/hub/login")
        await self.page.get_by_label("Username").fill(user)
        await self.page.get_by_label("Password").fill("any will do")
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.wait_for_url(re.compile(f"/user/{user}/lab"), timeout=SPAWN_MS)
        await self.page.locator("#jp-main-dock-panel").wait_for(timeout=SPAWN_MS)

    async def protocol(self):
        """What the page itself came by."""
        return await self.page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")

    async def open_notebook(self):
        """From the list of files; returns when its kernel waits for work."""
        await self.page.locator(".jp-DirListing-item", has_text=NOTEBOOK).dblclick()
        await self.kernel_is_idle()

    async def kernel_is_idle(self):
        """Returns when the kernel of the notebook waits for work."""
        # The notebook's own sign says so before there is a kernel.
        await self.page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()

    def keep_sockets(self):
        """From now on, none that is open may close."""
        self.kept = [socket for socket in self._sockets if not socket.is_closed()]
        assert any(_path(socket).endswith("/channels") for socket in self.kept), "no WebSocket leads to the kernel"

    def dropped(self):
        """The paths of those that have closed all the same."""
        return [_path(socket) for socket in self.kept if socket.is_closed()]

    async def run_cell(self, number, code, result):
        """Types `code` into the cell with this number, the first is 0, and runs it; that also makes the next one.

        How long it takes, in seconds, until `result` is seen.
        """
        # By its number: while the notebook is drawn, the last cell is not yet the last.
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)
        await cell.locator(".cm-content").click()
        await self.page.keyboard.insert_text(code)
        await expect(cell.locator(".cm-content")).to_have_text(code, use_inner_text=True)
        began = time.monotonic()
        await self.page.keyboard.press("Shift+Enter")
        await expect(cell.locator(".jp-OutputArea-output")).to_have_text(f"{result}\n", timeout=PATIENCE_MS)
        return time.monotonic() - began

    async def save(self):
        """Returns when the notebook is on the user's disk."""

        def is_saved(answer):
            # The layout of the page is put as well, now and then.
            return answer.request.method == "PUT" and urlsplit(answer.url).path.endswith(f"/api/contents/{NOTEBOOK}")

        async with self.page.expect_response(is_saved) as answer:
            await self.page.keyboard.press("Control+s")
        assert (await answer.value).ok, f"saving was answered with {(await answer.value).status}"


def _path(socket):
    return urlsplit(socket.url).path
