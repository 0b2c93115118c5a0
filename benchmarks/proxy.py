"""A TCP proxy that delays each direction: a network between two processes of one machine.

    python -m benchmarks.proxy --to 127.0.0.1:19530 --delay-ms 10

It prints its port, and ends when its stdin is closed. It runs as a process of its own, so that it
does not take turns with the event loop that is measured. Bytes are delayed, not held up: the
bandwidth stays that of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 2**18
#: Bytes under way in each direction before the proxy stops reading.
WINDOW_CHUNKS = 256


@contextmanager
def delayed(address: str, delay_ms: float) -> Iterator[str]:
    """Run the proxy before `address` (host and port); yields the proxy's own address."""
    command = [sys.executable, "-m", "benchmarks.proxy", "--to", address]
    with subprocess.Popen(
        [*command, "--delay-ms", str(delay_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the delaying proxy did not start")
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.communicate()


async def serve(host: str, port: int, delay: float) -> None:
    """Forward connections until stdin ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        # Cancelled at the end; before Python 3.12 asyncio's streams would report that.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_pump(reader, to_writer, delay), _pump(to_reader, writer, delay))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW_CHUNKS)

    async def deliver() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                return
            writer.write(data)
            await writer.drain()

    delivering = asyncio.create_task(deliver())
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            await under_way.put((loop.time() + delay, data))
    await under_way.put((loop.time() + delay, b""))
    with contextlib.suppress(OSError):
        await delivering
    writer.close()


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description="A TCP proxy that delays each direction.")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, required=True)
    arguments = parser.parse_args()
    host, _, port = arguments.to.rpartition(":")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(host, int(port), arguments.delay_ms / 1000))


if __name__ == "__main__":
    main()
