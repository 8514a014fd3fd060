"""A dialring client in Python on aiohttp (Debian: python3-aiohttp), to copy from.

    python3 python_aiohttp.py LOCATOR TOKEN DEVICE [subprotocol]

Each line of stdin is sent as a frame; its end leaves. Each line of stdout is a frame that came, or tells that a connection was closed. The rules are in
client/WRITING_A_CLIENT.md. Left out: several locators, new tokens, sends that are repeated; and when the dial of a move fails, this one stays where it is
until the node closes that connection, and only then locates again.
"""
import asyncio
import collections
import contextlib
import json
import random
import sys
import time
import urllib.parse

import aiohttp

LOCATOR, TOKEN, DEVICE, *SUBPROTOCOL = sys.argv[1:]


def handle(frame):
    """What the application does. When it returns, a stored message counts as handled."""
    print(json.dumps(frame), flush=True)


class Client:
    def __init__(self, http):
        self.http = http
        self.seq = self.cursor = None  # of the newest stored message that was taken
        self.ids = collections.deque(maxlen=500)  # of ephemeral messages, which two connections may bring
        self.ws = self.node = None  # the newest connection
        self.welcomed = 0.0  # when this chain of connections, which moves make, began
        self.resuming = self.leaving = False
        self.after_gap = None  # what older connections than this one bring may be of another log

    async def locate(self, failed):
        async with self.http.post(LOCATOR + "/v1/locate", json={"device": DEVICE, "failed": failed}, raise_for_status=True,
                                  headers={"Authorization": "Bearer " + TOKEN}, timeout=aiohttp.ClientTimeout(10)) as response:
            return await response.json()

    def dial(self, url, ticket):
        # Without autoping the pings of the node are seen: so is its silence.
        if SUBPROTOCOL:  # the way of clients that cannot set headers
            return self.http.ws_connect(url, protocols=["dialring.v1", "dialring.ticket." + ticket], autoping=False, max_msg_size=0, timeout=2)
        return self.http.ws_connect(url, protocols=["dialring.v1"], headers={"Authorization": "Bearer " + ticket}, autoping=False, max_msg_size=0, timeout=2)

    async def run(self):
        """Keeps the device connected, and returns why it cannot be."""
        failed, retry, attempt = [], {"base_ms": 500, "max_ms": 30000}, 0
        while not self.leaving:
            found, code, at_least, self.welcomed = None, None, 0, 0.0
            try:
                found = await self.locate(failed)
                failed, retry = [], found["retry"]
                await asyncio.sleep(found["dial_after_ms"] / 1000)
                code = await self.connection(found)
                if code == 1006:  # the end without a close frame
                    failed = [self.node]
            except aiohttp.ClientResponseError as e:  # of the locate, or (a WSServerHandshakeError) of the dial
                if not found and e.status < 500 and e.status not in (408, 429):
                    return f"locate: {e}"
                if found and e.status == 400:
                    self.seq = self.cursor = None
                at_least = float((e.headers or {}).get("Retry-After") or 0)
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
                if found:
                    failed = [self.node]
            if self.leaving:
                break
            if code and 4000 <= code < 4100:
                return f"closed with {code}"
            if self.welcomed and time.monotonic() - self.welcomed >= 10:
                attempt = 0
            wait = random.uniform(0, min(retry["max_ms"], retry["base_ms"] * 2 ** min(attempt, 20)) / 1000)
            if attempt == 0 and code and 4200 <= code < 4300:
                wait = random.uniform(0, 0.1)
            attempt += 1
            await asyncio.sleep(max(wait, at_least))

    async def connection(self, to, old=None):
        """Dials what a locate or a move named, and reads until there is no connection any more; returns the last close code."""
        await asyncio.sleep(to.get("after_ms", 0) / 1000)
        url, since, following, interval = to["url"], self.cursor, None, 10
        if since:
            url += ("&" if "?" in url else "?") + urllib.parse.urlencode({"since": since})
        if not old:
            self.node = to["node"]
        async with self.dial(url, to["ticket"]) as ws:
            pings = asyncio.create_task(self.pings(ws))
            try:
                while True:
                    m = await ws.receive(interval + 5)
                    if m.type == aiohttp.WSMsgType.TEXT:
                        f = json.loads(m.data)
                    elif m.type == aiohttp.WSMsgType.PING:
                        await ws.pong(m.data)
                        continue
                    elif m.type == aiohttp.WSMsgType.PONG:
                        continue
                    else:  # ws.close_code would be 1000 for an end without a close frame, too
                        code = {aiohttp.WSMsgType.CLOSE: m.data, aiohttp.WSMsgType.CLOSING: 1000}.get(m.type, 1006)
                        break
                    if f["type"] == "welcome":
                        self.ws, self.node, self.resuming = ws, to["node"], False
                        self.welcomed = self.welcomed or time.monotonic()
                        ws.interval = interval = f["ping_interval_ms"] / 1000
                        self.after_gap = ws if f["gap"] else None
                        if f["gap"]:
                            self.seq = None
                        if not since:  # so that a new device that dies with its first message gets it again
                            await ws.send_json({"type": "ack", "cursor": f["since"]})
                        self.cursor = self.cursor or f["since"]
                        handle(f)
                        if old:  # it may be closed when its pong says that nothing was under way
                            with contextlib.suppress(ConnectionError):
                                await old.send_json({"type": "ping", "ref": "leaving"})
                            asyncio.get_running_loop().call_later(2, lambda: asyncio.create_task(old.close()))
                    elif f["type"] == "message":
                        await self.message(ws, f)
                    elif f["type"] == "skip" and self.seq is not None:
                        self.seq = max(self.seq, f["to"])
                    elif f["type"] == "resumed":
                        self.resuming = False
                        if f["gap"]:
                            self.seq = None
                    elif f["type"] == "move":
                        if following:
                            following.cancel()
                        following = asyncio.create_task(self.connection(f, ws))
                    elif f == {"type": "pong", "ref": "leaving"}:
                        code = 1000
                        break
                    else:  # pong, ack, error, and what is not known yet
                        handle(f)
            except (asyncio.TimeoutError, ConnectionError):  # nothing came for too long, or it broke
                code = 1006
            finally:
                pings.cancel()
        handle({"type": "closed", "node": to["node"], "code": code})
        if following:
            with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError):
                return await following
        return code

    async def message(self, ws, f):
        seq = f.get("seq")
        if seq is None:
            if f["id"] in self.ids:
                return
            self.ids.append(f["id"])
        elif self.after_gap not in (None, ws) or self.seq is not None and seq <= self.seq:
            return
        elif self.seq is not None and seq > self.seq + 1:  # one is missing
            if not self.resuming:
                self.resuming = True
                await ws.send_json({"type": "resume", "since": self.cursor})
            return
        else:
            self.seq, self.cursor = seq, f["cursor"]
        handle(f)
        if seq is not None:
            await ws.send_json({"type": "ack", "cursor": f["cursor"]})

    async def pings(self, ws):
        """The node's pings are enough to see that it lives; these find a dead network sooner on the way there."""
        ws.interval = 10
        with contextlib.suppress(ConnectionError):
            while True:
                await ws.ping()
                await asyncio.sleep(ws.interval)


async def main():
    async with aiohttp.ClientSession() as http:
        client, stdin = Client(http), asyncio.StreamReader()
        running = asyncio.create_task(client.run())
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)

        async def send():
            while line := await stdin.readline():
                await client.ws.send_str(line.decode().strip())

        await asyncio.wait({running, asyncio.create_task(send())}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        client.leaving = True
        if client.ws:
            await client.ws.close()  # 1000: the session has left
        await asyncio.wait({running}, timeout=5)  # longer, it is in its back-off
        return None


sys.exit(asyncio.run(main()))
