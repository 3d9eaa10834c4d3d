"""The connection to the metadata server: accepted and refused answers, and limits of time and size."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from cloud_network.fetcher.metadata.http import MAX_BODY_BYTES, Client, Response
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers.vultr import Vultr
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.metadata.in_process import InProcess as Cloud

META = "/latest/meta-data/"
Serve = Callable[..., Client]


@pytest.fixture
def requests() -> list[bytes]:
    """Return the requests that `serve`'s servers received."""
    return []


@pytest.fixture
def serve(requests: list[bytes]) -> Iterator[Serve]:
    """Start a server that answers each connection with the given bytes, `pause` seconds apart, then closes."""
    listeners: list[socket.socket] = []

    def start(*pieces: bytes, pause: float = 0.0, times: int = 1) -> Client:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            for _ in range(times):
                try:
                    connection, _ = listener.accept()
                    with connection:
                        requests.append(connection.recv(65536))
                        for piece in pieces:
                            connection.sendall(piece)
                            time.sleep(pause)
                except OSError:  # the client has closed, or the test is over
                    return

        threading.Thread(target=answer, daemon=True).start()
        return Client(f"127.0.0.1:{listener.getsockname()[1]}")

    yield start
    for listener in listeners:
        listener.close()


def kind(client: Client, path: str = "/x", *parts: str) -> str:
    """Return the kind of the error of a request with a twentieth of the usual time limit; its text names the path."""
    with pytest.raises(MetadataError) as caught:
        client.request("GET", path, seconds=0.25)
    assert path in str(caught.value)
    assert all(part in str(caught.value) for part in parts)
    return caught.value.kind


def test_complete_answer_has_status_and_keeps_connection(cloud: Cloud, client: Client) -> None:
    for _ in range(3):
        assert "instance-id" in client.request("GET", META).text(META).split()
    assert client.request("GET", f"{META}nothing").status == 404
    assert cloud.connections() == 1
    assert client.requests == 4


def test_a_server_that_closes_after_each_answer_serves_as_well(cloud: Cloud, client: Client) -> None:
    cloud.configure(keep_alive=False)
    assert [client.request("GET", META).status for _ in range(3)] == [200] * 3
    assert cloud.connections() == 3


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("timeout", "timeout"), ("reset", "unreachable"), ("truncated", "truncated"), ("drip", "timeout")],
)
def test_failures_have_kinds_and_do_not_affect_the_next(
    cloud: Cloud, client: Client, fault: str, expected: str
) -> None:
    cloud.fail(fault, times=1)
    assert kind(client, META) == expected
    assert client.request("GET", META).status == 200


def test_clone_has_its_own_connection(cloud: Cloud, client: Client) -> None:
    client.kinds = ("vlan",)
    client.request("GET", META)
    other = client.clone()
    assert (other.endpoint, other.kinds, other.interface) == (client.endpoint, ("vlan",), client.interface)
    before = cloud.connections()
    other.request("GET", META)
    other.close()
    assert cloud.connections() == before + 1
    client.request("GET", META)
    assert cloud.connections() == before + 1


def test_slow_answer_counts_only_in_its_block(cloud: Cloud, client: Client) -> None:
    """A later pass that asks the server nothing must not report it as slow."""
    cloud.fail("late", interval=0.3, times=1)
    with client.until(time.monotonic() + 5):
        client.request("GET", META)
        assert client.slowest_answer >= 0.3
    assert client.slowest_answer == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("prohibited", [True, False])
def test_timeout_names_the_route_that_prohibits_the_server(
    cloud: Cloud, client: Client, monkeypatch: pytest.MonkeyPatch, prohibited: bool
) -> None:
    monkeypatch.setattr("cloud_network.fetcher.metadata.egress.is_prohibited", lambda address: prohibited)
    cloud.fail("timeout", times=1)
    with pytest.raises(MetadataError, match="no answer in time") as raised:
        client.request("GET", META, seconds=0.3)
    assert ("; a route prohibits 127.0.0.1 on this host" in str(raised.value)) == prohibited
    assert ("set net.ipv4.conf.all.rp_filter=0" in str(raised.value)) == prohibited


def test_closed_port_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    assert kind(Client(endpoint), META, "Connection refused") == "unreachable"


def test_an_ipv6_endpoint_stands_in_brackets() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        endpoint = f"[::1]:{listener.getsockname()[1]}"
        threading.Thread(target=_answer_once, args=(listener,), daemon=True).start()
        assert Client(endpoint).request("GET", META).body == b"ok"


def _answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_second_endpoint_is_used_while_first_is_unreachable(cloud: Cloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    client = Client(closed, cloud.endpoint)
    for _ in range(2):
        assert client.request("GET", META).status == 200
    assert client.endpoint == cloud.endpoint
    assert cloud.connections() == 1
    both = Client(closed, "127.0.0.1:9")
    assert kind(both, META, closed, "Connection refused") == "unreachable"
    assert both.endpoint == closed


def test_bad_answer_does_not_change_the_endpoint(cloud: Cloud) -> None:
    cloud.fail("reset", times=1)
    client = Client(cloud.endpoint, "127.0.0.1:9")
    assert kind(client, META) == "unreachable"
    assert client.request("GET", META).status == 200


def test_host_name_is_refused_as_endpoint() -> None:
    with pytest.raises(ValueError, match=r"metadata\.google\.internal"):
        Client("metadata.google.internal")
    with pytest.raises(ValueError, match="localhost"):
        Client("127.0.0.1:80", "localhost:80")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("17", 17.0), (" 3 ", 3.0), ("", 0.0), ("soon", 0.0), ("-1", 0.0), ("9" * 40, 999999999.0)],
)
def test_retry_after_is_seconds(text: str, seconds: float) -> None:
    error = Response(503, b"", {"retry-after": text}).error("p")
    assert (error.kind, str(error), error.retry_after) == ("status", "p: HTTP 503", seconds)


def test_retry_after_may_be_a_date() -> None:
    later = formatdate(time.time() + 60, usegmt=True)
    assert 50 < Response(503, b"", {"retry-after": later}).error("p").retry_after <= 60
    for text in (
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999",
    ):
        assert Response(503, b"", {"retry-after": text}).error("p").retry_after == 0


def test_chunks_are_put_together(serve: Serve) -> None:
    client = serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
    assert client.request("GET", "/x").body == b"abcde"


@pytest.mark.parametrize("rest", [b"3\r\nabc\r\n", b"9\r\nabc", b"3\r\nab", b"zz\r\nabc\r\n0\r\n\r\n"])
def test_chunks_that_end_early_or_make_no_sense_are_no_answer(serve: Serve, rest: bytes) -> None:
    assert kind(serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", rest)) == "truncated"


def test_fewer_bytes_than_promised_are_no_answer(serve: Serve) -> None:
    assert kind(serve(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), "/x", "3 bytes") == "truncated"


@pytest.mark.parametrize(
    "noise", [b"", b"hello\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70000]
)
def test_invalid_http_is_an_error(serve: Serve, noise: bytes) -> None:
    assert kind(serve(noise)) == "unreachable"


@pytest.mark.exhaustive
@pytest.mark.parametrize("where", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"HTT"])
def test_slow_bytes_do_not_extend_the_time_limit(serve: Serve, where: bytes) -> None:
    """Each pause is within its limit; the total limit applies in the head, in the body and in the status line."""
    assert kind(serve(where, *([b"a"] * 60), pause=0.05)) == "timeout"


@pytest.mark.exhaustive
def test_interim_answers_without_end_are_no_answer(serve: Serve) -> None:
    assert kind(serve(*([b"HTTP/1.1 100 Continue\r\n\r\n"] * 60), pause=0.05)) == "timeout"


def test_an_answer_that_is_too_large_is_not_read_to_its_end(serve: Serve) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    assert kind(serve(head, *([b"x" * (MAX_BODY_BYTES // 8)] * 24))) == "too large"


def test_the_largest_answer_passes(serve: Serve) -> None:
    client = serve(f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_BODY_BYTES}\r\n\r\n".encode(), b"x" * MAX_BODY_BYTES)
    assert len(client.request("GET", "/x").body) == MAX_BODY_BYTES


def test_headers_without_end_are_no_answer(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    assert kind(serve(head, *([b"x: y\r\n" * 30000] * 24), b"\r\n")) == "unreachable"


@pytest.mark.exhaustive
def test_trailers_without_end_stop_at_the_deadline(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    assert kind(serve(head, *([b"x: y\r\n"] * 60), pause=0.05)) == "timeout"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
    ],
    ids=["obs-fold", "bare LF", "equal lengths", "identity", "no length"],
)
def test_deviations_of_real_servers_are_accepted(serve: Serve, head: bytes) -> None:
    assert serve(head, b"ok").request("GET", "/x").body == b"ok"


def test_answer_without_a_length_proves_nothing_gone(serve: Serve) -> None:
    """Its end is that of the connection, which can close at any byte."""
    ipv4 = b'{"address": "10.0.1.2", "netmask": "255.255.255.0"}'
    body = b'{"interfaces": [{"mac": "56:00:03:15:c4:01", "ipv4": ' + ipv4 + b"}]}"
    length = b"Content-Length: " + str(len(body)).encode()
    unknown = [b"X: y", b"Transfer-Encoding: xchunked", *(b"Content-Length: " + each for each in (b"abc", b"-5", b""))]
    for head, unbounded in (*((each, True) for each in unknown), (length, False)):
        found = Vultr(serve(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n", body)).fetch()
        assert len(found.interfaces[0].addresses) == 1
        assert found.may_remove is not unbounded


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
    ],
    ids=["Chunked", "204", "304"],
)
def test_answer_whose_end_is_known_has_a_length(serve: Serve, head: bytes) -> None:
    client = serve(head)
    client.request("GET", "/x")
    assert not client.unbounded


def test_text_is_read_in_the_charset_of_the_answer() -> None:
    latin = Response(200, b"caf\xe9", {"content-type": "text/plain; charset=iso-8859-1"})
    assert latin.text("p") == "caf\xe9"
    with pytest.raises(MetadataError, match="not text in utf-8"):
        Response(200, b"caf\xe9", {"content-type": "text/plain"}).text("p")


@pytest.mark.exhaustive
@pytest.mark.parametrize("more", [b"", b"HTTP/1.1 500 Not asked for\r\nContent-Length: 0\r\n\r\n"])
def test_unusable_kept_connection_is_replaced(serve: Serve, more: bytes) -> None:
    client = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", more, pause=0.1, times=2)
    assert client.request("GET", "/x").status == 200
    time.sleep(0.5)
    assert client.request("GET", "/x").status == 200


def test_redirects_are_not_followed(cloud: Cloud, serve: Serve) -> None:
    client = serve(
        f"HTTP/1.1 302 Found\r\nLocation: http://{cloud.endpoint}{META}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert client.request("GET", META).status == 302
    assert cloud.requests() == []


@pytest.mark.parametrize("where", [b"//\xff", b"http://[/", b"http://\x00", b"http://a:b/", b""])
def test_invalid_redirect_is_not_followed(serve: Serve, where: bytes) -> None:
    client = serve(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + where + b"\r\n\r\n")
    assert client.request("GET", "/x").status == 302


@pytest.mark.parametrize("length", [b"Content-Length: 1100000", b"X: y"])
def test_body_of_a_redirect_is_bounded(serve: Serve, length: bytes) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /y\r\n" + length + b"\r\n\r\n"
    with pytest.raises(MetadataError, match="longer than 1048576 bytes"):
        serve(head, bytes(1100000)).request("GET", "/x")


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: x\r\nSet-Cookie: a=b\r\nRetry-After: 3\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1]:1/x\r\nContent-Length: 0\r\n\r\n",
]
NOISE = [b"\r\n", b"\n", b": ", b"0", b"-", b"\xff", b"\x00", b"[", b"9" * 30, b"Transfer-Encoding: chunked\r\n"]


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """Generate an answer with up to three places removed or inserted."""
    text = draw(st.sampled_from(ANSWERS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from([b"", *NOISE])) + text[at + draw(st.integers(0, 6)) :]
    return text


@given(st.lists(garbled(), min_size=4, max_size=4))
def test_garbled_answer_is_read_or_a_metadata_error(answers: list[bytes]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer_each, args=(listener, answers), daemon=True)
        thread.start()
        for _ in answers:
            client = Client(f"127.0.0.1:{listener.getsockname()[1]}")
            try:
                client.request("GET", "/x", seconds=0.1)
            except MetadataError:
                pass
            finally:
                client.close()
        thread.join()


def _answer_each(listener: socket.socket, answers: list[bytes]) -> None:
    for answer in answers:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(answer)


def test_proxies_and_passwords_of_the_environment_are_ignored(
    serve: Serve, requests: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (netrc := tmp_path / "netrc").write_text("default login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    client = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert client.request("GET", "/x").status == 200
    assert requests[0].startswith(b"GET /x HTTP/1.1\r\n")
    assert b"authorization" not in requests[0].lower()


def test_compression_is_neither_requested_nor_unpacked(serve: Serve, requests: list[bytes]) -> None:
    """A small body could unpack to a large one."""
    client = serve(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00")
    assert client.request("GET", "/x").body == b"\x1f\x8b\x08\x00"
    assert b"Accept-Encoding: identity\r\n" in requests[0]


def test_cookies_are_not_kept(serve: Serve, requests: list[bytes]) -> None:
    client = serve(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", times=2)
    client.request("GET", "/x")
    client.request("GET", "/x")
    assert [b"ookie" in request for request in requests] == [False, False]


@pytest.mark.parametrize("body", [b"\xff\xfe", b" \n<!DOCTYPE html>\n<html>", b"<HTML><body>", b"<html lang='en'>"])
def test_html_and_binary_data_are_refused_as_text(body: bytes) -> None:
    with pytest.raises(MetadataError, match="macs/x/local-ipv4s: the answer is") as caught:
        Response(200, body, {}).text("macs/x/local-ipv4s")
    assert caught.value.kind == "invalid"


def test_text_is_text() -> None:
    assert Response(200, "10.0.1.10\nü <html>".encode(), {}).text("p") == "10.0.1.10\nü <html>"
