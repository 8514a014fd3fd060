"""A dialring client in Python on the package websockets (Debian: python3-websockets), to copy from.

    python3 python_websockets.py LOCATOR TOKEN DEVICE [subprotocol]

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
import urllib.error
import urllib.parse
import urllib.request

import websockets

LOCATOR, TOKEN, DEVICE, *SUBPROTOCOL = sys.argv[1:]


def handle(frame):
    """What the application does. When it returns, a stored message counts as handled."""
    print(json.dumps(frame), flush=True)


def locate(failed):
    request = urllib.request.Request(LOCATOR + "/v1/locate", json.dumps({"device": DEVICE, "failed": failed}).encode(),
                                     {"Authorization": "Bearer " + TOKEN, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def dial(url, ticket):
    options = {"ping_interval": 3, "ping_timeout": 10}  # the package answers the node's pings but does not show them: so it asks, too
    if SUBPROTOCOL:  # the way of clients that cannot set headers
        return websockets.connect(url, subprotocols=["dialring.v1", "dialring.ticket." + ticket], **options)
    return websockets.connect(url, subprotocols=["dialring.v1"],
                              extra_headers={"Authorization": "Bearer " + ticket}, **options)  # from websockets 14 on: additional_headers


class Client:
    def __init__(self):
        self.seq = self.cursor = None  # of the newest stored message that was taken
        self.ids = collections.deque(maxlen=500)  # of ephemeral messages, which two connections may bring
        self.ws = self.node = None  # the newest connection
        self.welcomed = 0.0  # when this chain of connections, which moves make, began
        self.resuming = self.leaving = False
        self.after_gap = None  # what older connections than this one bring may be of another log

    async def run(self):
        """Keeps the device connected, and returns why it cannot be."""
        failed, retry, attempt = [], {"base_ms": 500, "max_ms": 30000}, 0
        while not self.leaving:
            found, code, at_least, self.welcomed = None, None, 0, 0.0
            try:
                found = await asyncio.to_thread(locate, failed)
                failed, retry = [], found["retry"]
                await asyncio.sleep(found["dial_after_ms"] / 1000)
                code = await self.connection(found)
                if code == 1006:  # what libraries call the end without a close frame
                    failed = [self.node]
            except urllib.error.HTTPError as e:
                if e.code < 500 and e.code not in (408, 429):
                    return f"locate: {e}"
                at_least = float(e.headers.get("Retry-After") or 0)
            except websockets.InvalidStatusCode as e:  # the node refused the dial
                if e.status_code == 400:
                    self.seq = self.cursor = None
                at_least = float(e.headers.get("Retry-After") or 0)
            except (OSError, asyncio.TimeoutError, websockets.WebSocketException):
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
        url, since, following = to["url"], self.cursor, None
        if since:
            url += ("&" if "?" in url else "?") + urllib.parse.urlencode({"since": since})
        if not old:
            self.node = to["node"]
        async with dial(url, to["ticket"]) as ws:
            try:
                async for text in ws:
                    f = json.loads(text)
                    if f["type"] == "welcome":
                        self.ws, self.node, self.resuming = ws, to["node"], False
                        self.welcomed = self.welcomed or time.monotonic()
                        self.after_gap = ws if f["gap"] else None
                        if f["gap"]:
                            self.seq = None
                        if not since:  # so that a new device that dies with its first message gets it again
                            await ws.send(json.dumps({"type": "ack", "cursor": f["since"]}))
                        self.cursor = self.cursor or f["since"]
                        handle(f)
                        if old:  # it may be closed when its pong says that nothing was under way
                            with contextlib.suppress(websockets.ConnectionClosed):
                                await old.send('{"type":"ping","ref":"leaving"}')
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
                        await ws.close()
                    else:  # pong, ack, error, and what is not known yet
                        handle(f)
            except websockets.ConnectionClosedError:
                pass
        handle({"type": "closed", "node": to["node"], "code": ws.close_code})
        if following:
            with contextlib.suppress(OSError, asyncio.TimeoutError, websockets.WebSocketException):
                return await following
        return ws.close_code

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
                await ws.send(json.dumps({"type": "resume", "since": self.cursor}))
            return
        else:
            self.seq, self.cursor = seq, f["cursor"]
        handle(f)
        if seq is not None:
            await ws.send(json.dumps({"type": "ack", "cursor": f["cursor"]}))


async def main():
    client, stdin = Client(), asyncio.StreamReader()
    running = asyncio.create_task(client.run())
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)

    async def send():
        while line := await stdin.readline():
            await client.ws.send(line.decode().strip())

    await asyncio.wait({running, asyncio.create_task(send())}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        return running.result()
    client.leaving = True
    if client.ws:
        await client.ws.close()  # 1000: the session has left
    await asyncio.wait({running}, timeout=5)  # longer, it is in its back-off
    return None


sys.exit(asyncio.run(main()))
