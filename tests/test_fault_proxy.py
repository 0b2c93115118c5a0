"""The proxy that tests of faults rely on does what it says, seen with plain sockets."""

import socket
import threading
import time

import grpc
import pytest

from tests.fixtures.faults import FaultyProxy, Frames, HeaderTable
from tests.fixtures.servers import free_port
from tests.fixtures.waiting import wait_until

pytestmark = pytest.mark.starts

#: Seconds after which a socket has been silent: what passes takes milliseconds.
SILENCE = 0.3
#: Seconds that nothing here takes, on a busy machine either.
LONG = 10.0


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self, greeting=b""):
        self.received = b""
        self.greeting = greeting
        self.ended = threading.Semaphore(0)  # once for each connection that ends
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection:
            try:
                connection.sendall(self.greeting)
                while data := connection.recv(2**16):
                    self.received += data
                    connection.sendall(data)
            except OSError:
                pass
        self.ended.release()


@pytest.fixture
def echo():
    server = Echo()
    yield server
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()


@pytest.fixture
def proxy(echo):
    proxy = FaultyProxy(echo.uri)
    yield proxy
    proxy.close()


@pytest.fixture
def connect(proxy):
    opened = []

    def connect():
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG)
        opened.append(client)
        return client

    yield connect
    for client in opened:
        client.close()


def receive(client, count):
    """Exactly so many bytes."""
    data = b""
    while len(data) < count:
        more = client.recv(count - len(data))
        if not more:
            raise EOFError(data)
        data += more
    return data


def assert_silent(client):
    client.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(LONG)


def seconds_of_round_trip(client, data=b"x"):
    began = time.monotonic()
    client.sendall(data)
    assert receive(client, len(data)) == data
    return time.monotonic() - began


def test_everything_passes_both_ways(echo, proxy, connect):
    data = bytes(range(256)) * 4_000
    first, second = connect(), connect()
    threading.Thread(target=first.sendall, args=(data,)).start()
    assert receive(first, len(data)) == data
    seconds_of_round_trip(second)
    assert (proxy.counts.connections, proxy.counts.open, proxy.counts.cut) == (2, 2, 0)
    # Bytes are counted after they were passed on.
    wait_until(lambda: proxy.counts.to_client == len(data) + 1)
    assert proxy.counts.to_server == len(data) + 1


def test_an_end_is_passed_on(echo, proxy, connect):
    client = connect()
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 4) == b"last"
    assert client.recv(1) == b""
    assert echo.ended.acquire(timeout=LONG)
    wait_until(lambda: proxy.counts.open == 0)


def test_each_direction_is_delayed(echo, proxy, connect):
    client = connect()
    wait_until(lambda: seconds_of_round_trip(client) < 0.2)
    proxy.delay(to_server=0.2)
    assert seconds_of_round_trip(client) >= 0.2
    proxy.delay(to_client=0.2)
    assert seconds_of_round_trip(client) >= 0.2
    proxy.delay(to_server=0.2, to_client=0.2)
    assert seconds_of_round_trip(client) >= 0.4
    proxy.heal()
    wait_until(lambda: seconds_of_round_trip(client) < 0.2)


def test_a_delay_does_not_narrow_the_bandwidth(echo, proxy, connect):
    client = connect()
    proxy.delay(to_client=0.3)
    began = time.monotonic()
    for number in range(20):
        client.sendall(b"%2d" % number)
        time.sleep(0.01)
    assert receive(client, 40) == b"".join(b"%2d" % number for number in range(20))
    assert 0.3 <= time.monotonic() - began < 20 * 0.3


def test_the_bandwidth_is_limited(echo, proxy, connect):
    client = connect()
    proxy.limit_bandwidth(50_000)
    # Both directions are at work at once.
    assert 0.4 <= seconds_of_round_trip(client, b"x" * 25_000) < LONG
    proxy.heal()
    assert seconds_of_round_trip(client, b"x" * 25_000) < 0.4


def test_what_is_stalled_comes_when_it_is_resumed(echo, proxy, connect):
    client = connect()
    seconds_of_round_trip(client)
    proxy.stall()
    client.sendall(b"first")
    other = connect()
    other.sendall(b"other")
    assert_silent(client)
    assert echo.received == b"x"
    proxy.resume()
    assert receive(client, 5) == b"first"
    assert receive(other, 5) == b"other"


def test_one_direction_can_be_stalled(echo, proxy, connect):
    client = connect()
    proxy.stall("to_client")
    client.sendall(b"arrives")
    assert_silent(client)
    assert echo.received == b"arrives"
    proxy.resume()
    assert receive(client, 7) == b"arrives"


def test_cut_connections_are_reset_at_both_ends_and_new_ones_work(echo, proxy, connect):
    clients = [connect(), connect()]
    for client in clients:
        seconds_of_round_trip(client)
    proxy.cut()
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert echo.ended.acquire(timeout=LONG)
    assert (proxy.counts.cut, proxy.counts.open) == (2, 0)
    seconds_of_round_trip(connect())


def test_what_is_stalled_is_lost_when_it_is_cut(echo, proxy, connect):
    client = connect()
    proxy.stall()
    client.sendall(b"lost")
    assert_silent(client)
    proxy.cut()
    proxy.resume()
    seconds_of_round_trip(connect())
    assert echo.received == b"x"


def test_a_closed_port_refuses_and_stays_its_own(echo, proxy, connect):
    client = connect()
    seconds_of_round_trip(client)
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            connect()
        proxy.refuse()  # again does nothing
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("127.0.0.1", proxy.port))
    proxy.accept()
    proxy.accept()
    seconds_of_round_trip(connect())


def test_a_black_hole_swallows_everything(echo, proxy, connect):
    before = connect()
    seconds_of_round_trip(before)
    proxy.black_hole()
    during = connect()
    for client in (before, during):
        client.sendall(b"lost")
        assert_silent(client)
    assert echo.received == b"x"
    # Bytes were lost, so that the connections are of no more use.
    proxy.heal()
    for client in (before, during):
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    seconds_of_round_trip(connect())


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_a_cut_after_some_bytes(echo, proxy, connect, direction):
    client = connect()
    seconds_of_round_trip(client, b"before")
    proxy.cut_after(1_000, direction)
    client.sendall(b"x" * 3_000)
    received = b""
    with pytest.raises(ConnectionResetError):
        while data := client.recv(2**16):
            received += data
    assert echo.ended.acquire(timeout=LONG)
    assert len(received) == 1_000 if direction == "to_client" else len(received) <= 1_000
    assert len(echo.received) <= 6 + (1_000 if direction == "to_server" else 3_000)
    # Once only.
    seconds_of_round_trip(connect(), b"x" * 3_000)


def test_a_server_that_is_gone_resets_its_clients():
    proxy = FaultyProxy(f"http://127.0.0.1:{free_port()}")
    with (
        pytest.raises(ConnectionResetError),  # while it connects already, where that takes long
        socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG) as client,
    ):
        client.recv(1)
    proxy.close()
    proxy.close()


def test_it_leaves_nothing_behind(echo):
    threads = threading.active_count()
    proxy = FaultyProxy(echo.uri)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG) as client:
        seconds_of_round_trip(client)
        proxy.stall()
        client.sendall(b"x")
        proxy.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert echo.ended.acquire(timeout=LONG)
    assert threading.active_count() <= threads
    assert proxy.counts.open == 0


# Requests of HTTP/2


def frame(kind, stream, payload=b"", flags=0):
    header = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return header + payload


def path(text, *, indexed=False):
    """A header block that names the path: literally and remembered, or by number."""
    return b"\xbe" if indexed else b"\x44" + bytes([len(text)]) + text.encode()


SETTINGS = frame(4, 0)
BEGIN = Frames.PREFACE + SETTINGS
INSERT = frame(1, 1, path("/milvus/Insert"), flags=4) + frame(0, 1, b"rows")
INSERT_AGAIN = frame(1, 3, path("", indexed=True), flags=4) + frame(0, 3, b"more rows")


def pieces(frames, data, step):
    return [
        piece
        for start in range(0, len(data), step)
        for piece in frames.feed(data[start : start + step])
    ]


@pytest.mark.parametrize("step", [1, 2, 7, 10, 1_000])
def test_requests_are_found_however_the_bytes_are_cut(step):
    data = BEGIN + INSERT + frame(6, 0, b"pingpong") + INSERT_AGAIN
    found = pieces(Frames(of_client=True), data, step)
    assert b"".join(piece for _, piece in found) == data
    streams = [(stream, piece[:9]) for stream, piece in found if stream]
    assert streams == [((1, "Insert"), INSERT[:9]), ((3, "Insert"), INSERT_AGAIN[:9])]


@pytest.mark.parametrize("step", [1, 2, 7, 10, 1_000])
@pytest.mark.parametrize("of_client", [True, False])
@pytest.mark.parametrize("data", [b"PRI * but something else", b"\0\0\0\7 no HTTP/2", b"x", b"\0"])
def test_what_is_no_http2_is_passed_as_it_is(step, of_client, data):
    data *= 5
    frames = Frames(of_client=of_client)
    found = pieces(frames, data, step)
    assert not any(stream for stream, _ in found)
    if len(data) > 8:
        assert b"".join(piece for _, piece in found) == data


def test_headers_of_every_form():
    table = HeaderTable()
    long = "/milvus/" + "x" * 300
    # A long path takes several bytes for its length; names and sizes of the table come between.
    block = b"\x3f\xe1\x1f" + b"\x83" + b"\x04\x7f" + bytes([len(long) - 127 & 0x7F | 0x80])
    block += bytes([len(long) - 127 >> 7]) + long.encode()
    assert table.path(block) == long
    assert table.path(b"\x40\x05:path\x02/a") == "/a"
    assert table.path(b"\x40\x01n\x01v") == ""
    assert table.path(b"\xbf") == "/a"  # the second newest of those remembered
    assert table.path(b"\x10\x05:path\x02/b") == "/b"
    assert table.path(b"\xbf") == "/a"


@pytest.fixture
def greeted():
    """A proxy before a server that begins as one of HTTP/2 does."""
    server = Echo(greeting=SETTINGS)
    proxy = FaultyProxy(server.uri)
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG)
    client.sendall(BEGIN)
    assert receive(client, len(SETTINGS + BEGIN)) == SETTINGS + BEGIN
    yield server, proxy, client
    client.close()
    proxy.close()
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()


def test_a_cut_before_a_request(greeted):
    server, proxy, client = greeted
    other = proxy.trap("Search", at="request", do=proxy.cut)
    trap = proxy.trap("Insert", at="request", do=proxy.cut, first=2)
    client.sendall(INSERT)
    assert receive(client, len(INSERT)) == INSERT
    client.sendall(INSERT_AGAIN)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert trap.sprung.wait(LONG)
    assert not other.sprung.is_set()
    assert server.received == BEGIN + INSERT
    assert proxy.counts.requests == {"Insert": 2}


@pytest.fixture
def answering():
    """A proxy before gRPC's own server, and a client's channel."""
    from concurrent.futures import ThreadPoolExecutor

    carried_out = []

    def service(details):
        def carry_out(request, context):
            carried_out.append((details.method, request))
            return request[::-1]

        return grpc.unary_unary_rpc_method_handler(carry_out)

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            return service(handler_call_details)

    server = grpc.server(ThreadPoolExecutor(4), handlers=(Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    proxy = FaultyProxy(f"http://127.0.0.1:{port}")
    with grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:

        def call(method, request):
            return channel.unary_unary(f"/milvus/{method}")(request, timeout=LONG)

        yield proxy, call, carried_out
    proxy.close()
    server.stop(None).wait()


def test_methods_of_grpc_are_known(answering):
    proxy, call, _ = answering
    for method in ("Insert", "Search", "Insert", "A", "Search", "Insert"):
        assert call(method, b"ab") == b"ba"
    assert proxy.counts.requests == proxy.counts.answers == {"Insert": 3, "Search": 2, "A": 1}


@pytest.mark.parametrize("at", ["request", "answer"])
def test_a_cut_around_a_request_of_grpc(answering, at):
    proxy, call, carried_out = answering
    call("Insert", b"0")
    trap = proxy.trap("Insert", at=at, do=proxy.cut, first=2)
    call("Insert", b"1")
    with pytest.raises(grpc.RpcError) as caught:
        call("Insert", b"2")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert trap.sprung.wait(LONG)
    assert (("/milvus/Insert", b"2") in carried_out) == (at == "answer")
    assert call("Insert", b"3") == b"3"
    assert proxy.counts.cut == 1


def test_a_request_waits_for_what_happens_before_it(answering):
    proxy, call, carried_out = answering
    call("Insert", b"0")
    seen = []
    trap = proxy.trap(at="request", do=lambda: seen.append(list(carried_out)), times=2)
    for number in (b"1", b"2", b"3"):
        assert call("Insert", number) == number
    assert trap.seen == 3
    assert [len(before) for before in seen] == [1, 2]


def test_what_goes_wrong_in_a_trap_is_told(echo):
    proxy = FaultyProxy(echo.uri)
    trap = proxy.trap(at="request", do=lambda: 1 / 0)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG) as client:
        client.sendall(BEGIN + INSERT)
        assert trap.sprung.wait(LONG)
    with pytest.raises(ZeroDivisionError):
        proxy.close()
