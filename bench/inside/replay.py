"""Runs in the instance: repeats the fetcher's requests over one socket without an HTTP library; prints milliseconds.

    python3 -I -S replay.py ADDRESS ROUNDS < [["GET", "/path?query"], …]

This is the metadata server's own answer time, the least that any client must wait: only the length is parsed.
"""

import json
import socket
import sys
import time

TTL = b"X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n"


def answer(sock: socket.socket, request: bytes) -> bytes:
    """Return the body of one answer."""
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    at = head.lower().index(b"content-length:") + 15
    length = int(head[at:].split(b"\r\n")[0])
    while len(body) < length:
        body += sock.recv(1 << 16)
    return body


def once(address: str, requests: list[tuple[str, str]]) -> float:
    began = time.perf_counter()
    with socket.create_connection((address, 80)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        token = b""
        for method, target in requests:
            head = f"{method} {target} HTTP/1.1\r\nHost: {address}\r\nMetadata-Flavor: Google\r\n".encode()
            if method == "PUT":
                token = b"X-aws-ec2-metadata-token: " + answer(sock, head + TTL + b"\r\n") + b"\r\n"
            else:
                answer(sock, head + token + b"\r\n")
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps([once(sys.argv[1], asked) for _ in range(int(sys.argv[2]))]))
