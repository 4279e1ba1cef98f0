"""Processes that meet and watch each other: threads stand for processes."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from twofold.backends.xla.meeting import PROTOCOL, Job, Watch, meet, record
from twofold.backends.xla.relay import Relay
from twofold.base.errors import ArgumentError, TwofoldError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def all_meet(*places: tuple[int, int], timeout: float = 10.0, host: str = "127.0.0.1") -> list[Any]:
    """What each of (processes, rank) gets from ``meet``: its result or its error."""
    at = f"{host}:{free_port()}"

    def one(place: tuple[int, int]) -> Any:
        try:
            return meet(Job(at, *place), timeout)
        except TwofoldError as error:
            return error

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def close(found: list[Any]) -> None:
    for lines, _ in found:
        for line in lines.values():
            line.close()


def watched(count: int, heartbeat: float) -> tuple[list[Watch], list[list[str]], list[Any]]:
    found = all_meet(*((count, rank) for rank in range(count)))
    said: list[list[str]] = [[] for _ in found]
    watches = [Watch(Job("h:1", count, r), lines, heartbeat, said[r].append) for r, (lines, _) in enumerate(found)]
    return watches, said, found


def wait_for(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_all_come_and_hear_the_same_port() -> None:
    found = all_meet(*((3, rank) for rank in range(3)))
    assert [sorted(lines) for lines, _ in found] == [[1, 2], [0], [0]]
    assert len({port for _, port in found}) == 1
    close(found)


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_all_come_over_ipv6_and_by_name(host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    found = all_meet((2, 0), (2, 1), host=host)
    assert [sorted(lines) for lines, _ in found] == [[1], [0]], found
    close(found)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 4000, '{"a":' * 1300, "\0", "1" * 4000, None])
def test_a_line_that_is_no_record_is_an_empty_one(text: str | None) -> None:
    assert record(text) == {}


@pytest.mark.parametrize("hello", [b"[" * 4000 + b"\n", b'{"twofold": %d, "rank": true, "processes": 2}\n' % PROTOCOL, b""])
def test_no_socket_is_left_open_after_a_failure(hello: bytes) -> None:
    """A stranger's, a liar's, one who goes away: their connections are closed, and so is everything after the error."""
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(meet, Job(f"127.0.0.1:{port}", 2, 0), 1.0)
        with _connected(port) as stranger:
            if hello:
                stranger.sendall(hello)
            else:
                stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(10)
            while stranger.recv(1000):
                pass
        assert isinstance(leader.exception(), TwofoldError)
    with socket.create_server(("127.0.0.1", port)):
        pass


def _connected(port: int) -> socket.socket:
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_the_relay_passes_bytes_on_both_ways_and_keeps_an_end_to_itself() -> None:
    port = free_port()
    relay = Relay(("127.0.0.1", port))
    host, _, place = relay.place.rpartition(":")
    with socket.create_connection((host, int(place))) as client:
        client.sendall(b"ping" * 50_000)  # before the service listens
        with socket.create_server(("127.0.0.1", port)) as server:
            service = server.accept()[0]
        with service, service.makefile("rb") as stream:
            assert stream.read(200_000) == b"ping" * 50_000
            service.sendall(b"pong")
            assert client.recv(4) == b"pong"
        client.settimeout(0.3)  # the service is gone
        with pytest.raises(TimeoutError):
            client.recv(1)
        relay.close()
        client.settimeout(10)
        assert client.recv(1) == b""


@pytest.mark.parametrize("first", ["client", "service"])
def test_the_relay_closes_the_sockets_of_a_connection_that_has_ended(first: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(server.getsockname())
        host, _, place = relay.place.rpartition(":")
        for _ in range(3):
            ends = {"client": socket.create_connection((host, int(place)))}
            ends["client"].sendall(b"ping")
            ends["service"] = server.accept()[0]
            assert ends["service"].recv(4) == b"ping" and len(relay._open) == 2
            ends.pop(first).close()
            next(iter(ends.values())).close()
            assert wait_for(lambda: not relay._open)
        relay.close()
        assert wait_for(lambda: not any(t.name == "relay" for t in threading.enumerate()))


@pytest.mark.parametrize(
    ("places", "kind", "message"),
    [
        (((2, 0), (3, 1)), ArgumentError, "process 1 was started for 3 processes, process 0 for 2; start all with"),
        (((3, 0), (3, 1), (3, 1)), ArgumentError, "two processes came as rank 1 of 3; give each process a rank of its own"),
    ],
)
def test_those_who_disagree_all_hear_why(places: Any, kind: type, message: str) -> None:
    for error in all_meet(*places):
        assert isinstance(error, kind) and message in str(error)


def test_who_is_missing_is_named() -> None:
    leader, worker = all_meet((4, 0), (4, 2), timeout=0.5)
    assert "of 4 processes, 1, 3 did not come" in str(leader) and "of 4 processes, 1, 3 did not come" in str(worker)
    (alone,) = all_meet((2, 1), timeout=0.3)
    assert "process 1 did not meet process 0" in str(alone) and "within 0.3 s" in str(alone)


def test_a_port_that_is_taken() -> None:
    wanted = pytest.raises(TwofoldError, match="cannot listen on .*in use.*Choose another port")
    with socket.create_server(("127.0.0.1", 0)) as taken, wanted:
        meet(Job(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0), 1.0)


def test_strangers_are_sent_away() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(meet, Job(f"127.0.0.1:{port}", 2, 0), 10.0)
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(100) == b""
        found = [pool.submit(meet, Job(f"127.0.0.1:{port}", 2, 1), 10.0).result(), leader.result()]
    assert found[0][1] == found[1][1]
    close(found)


@pytest.mark.parametrize("victim", [0, 2])
def test_an_end_without_good_bye_is_noticed_by_all_others_at_once(victim: int) -> None:
    watches, said, found = watched(3, heartbeat=60.0)
    began = time.monotonic()
    watches[victim].close(bye=False)
    others = [r for r in range(3) if r != victim]
    assert wait_for(lambda: all(said[r] for r in others)) and time.monotonic() - began < 5
    for r in others:
        assert said[r] == [f"distributed: process {victim} of 3 has died or ended early; the job has ended, start all processes again"]
    assert said[victim] == []
    close(found)


def test_silence_is_noticed_after_the_heartbeat() -> None:
    found = all_meet((2, 0), (2, 1))
    said: list[str] = []
    began = time.monotonic()
    Watch(Job("h:1", 2, 0), found[0][0], 1.5, said.append)  # process 1 never says a word
    assert wait_for(lambda: bool(said)) and 1.4 < time.monotonic() - began < 8
    assert "process 1 of 2 has given no sign of life for 1.5 s" in said[0]
    close(found)


def test_good_bye_is_no_death() -> None:
    watches, said, _ = watched(2, heartbeat=60.0)
    watches[1].close(bye=True)
    watches[0].wait_for_good_byes(10.0)
    assert watches[0].lines == {}
    watches[0].close(bye=True)
    assert wait_for(lambda: not any(t.name.startswith("watch") for t in threading.enumerate()))
    assert said == [[], []]


def end_together(*watches: Watch) -> list[Any]:
    pool = ThreadPoolExecutor(len(watches))
    ends = [pool.submit(watch.end_together) for watch in watches]
    pool.shutdown(wait=False)
    return ends


def test_all_end_together_however_late_the_last() -> None:
    watches, said, found = watched(3, heartbeat=60.0)
    for watch in watches:
        watch.begins()
    ends = end_together(watches[2], watches[0])
    assert wait_for(lambda: all(len(watch.through) == 2 for watch in watches))
    assert not any(end.done() for end in ends)
    ends += end_together(watches[1])
    assert all(end.result(10) is None for end in ends) and said == [[], [], []]
    close(found)


@pytest.mark.parametrize(("early", "late"), [(0, 1), (1, 0), (1, 2)])
@pytest.mark.parametrize("already_waiting", [True, False])
def test_who_ends_its_program_while_others_compute_with_it_is_named(early: int, late: int, already_waiting: bool) -> None:
    watches, said, found = watched(3, heartbeat=60.0)
    if already_waiting:
        watches[late].begins()
    (end,) = end_together(watches[early])
    if not already_waiting:  # where somebody is, the job may end before everybody has heard who is through
        assert wait_for(lambda: all(early in watch.through for watch in watches)) and said == [[], [], []]
        watches[late].begins()
    why = f"process {early} of 3 has ended its program, and others wait for it"
    others = [i for i in range(3) if i != early]
    assert wait_for(lambda: all(said[i] for i in others))
    with pytest.raises(TwofoldError, match=why):  # who waits is told by the error alone; no last computation together
        end.result(10)
    assert said[early] == [] and all(len(said[i]) == 1 and why in said[i][0] for i in others)
    close(found)
