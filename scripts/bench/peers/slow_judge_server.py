"""A server for scripts/bench/judge.sh: speaks OpenAI's chat protocol and answers each request after a fixed time.

Launch: python scripts/bench/peers/slow_judge_server.py SECONDS
Prints its port. GET /calls returns how many completions were asked for. The same captions get the same answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys

MODEL = "slow-judge"


class Server:
    """Any number of connections, kept open, in one thread."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s, self.calls = answer_s, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until it is closed."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                path = head.split(" ", 2)[1]
                data = json.dumps(await self.answer(path, body)).encode()
                # One write: a head of its own would wait for the client's delayed acknowledgement.
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
                    + data
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, path: str, body: bytes) -> dict[str, object]:
        """Return the reply to one request."""
        if path == "/calls":
            return {"calls": self.calls}
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self.calls += 1
        await asyncio.sleep(self.answer_s)
        said = (
            "Yes" if hashlib.sha256(json.loads(body)["messages"][-1]["content"].encode()).digest()[0] % 5 == 0 else "No"
        )
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": 500, "completion_tokens": 2, "total_tokens": 502}
        return {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


async def main() -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(Server(float(sys.argv[1])).serve, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
