"""A kernel and a lab's supervisor: what goes over their socket, and what happens if one is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab import processes, runtime
from kdflow_lab.client import SupervisorClient
from kdflow_lab.config import LabConfig
from kdflow_lab.errors import ClusterError, ConfigError, RunError

Answer = Callable[[Connection, str, dict[str, Any]], None]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this test's labs are, and how long one without a kernel stays."""
    monkeypatch.setenv("KDFLOW_RUNTIME", str(tmp_path / "labs"))
    monkeypatch.setenv("KDFLOW_LINGER_S", "1")


@contextlib.contextmanager
def _listening(answer: Answer) -> Iterator[Path]:
    """A socket that answers requests in a thread; the lab's record names this process."""
    folder = runtime.new_folder()
    runtime.write_record(folder, {}, "1.0")
    listener = Listener(str(folder / runtime.SOCKET), family="AF_UNIX")
    attached = []

    def serve() -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                connection = listener.accept()
                name, arguments = connection.recv()
                if name == "attach":
                    connection.send(("attached", None))
                    attached.append(connection)
                elif name == "end":
                    return
                else:
                    answer(connection, name, arguments)
                    connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield folder
    finally:
        with Client(listener.address) as connection:
            connection.send(("end", {}))
        thread.join()
        listener.close()
        for connection in attached:
            connection.close()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- the kernel's side ----------------------------------------------------------------------------


def test_what_the_supervisor_says_meanwhile_is_passed_on() -> None:
    def answer(connection: Connection, name: str, arguments: dict[str, Any]) -> None:
        for said in (("phase", "loading"), ("progress", (1, 2)), ("progress", (2, 2))):
            connection.send(said)
        connection.send(("result", [name, arguments]))

    phases, progress = [], []
    with _listening(answer) as folder:
        client = SupervisorClient(folder)
        result = client.ask(
            "score",
            on_phase=phases.append,
            on_progress=lambda done, total: progress.append((done, total)),
            rows=3,
        )
        client.detach()
    assert result == ["score", {"rows": 3}]
    assert (phases, progress) == (["loading"], [(1, 2), (2, 2)])


def test_error_of_the_supervisor_is_raised_as_it_is() -> None:
    def answer(connection: Connection, name: str, arguments: dict[str, Any]) -> None:
        connection.send(("error", ConfigError("not so")))

    with _listening(answer) as folder:
        client = SupervisorClient(folder)
        with pytest.raises(ConfigError, match=r"^not so$"):
            client.ask("train", run="a")
        client.detach()


def test_supervisor_that_dies_while_it_answers_is_said_to_be_gone() -> None:
    def answer(connection: Connection, name: str, arguments: dict[str, Any]) -> None:
        connection.send(("phase", "loading"))

    with _listening(answer) as folder:
        client = SupervisorClient(folder)
        with pytest.raises(ClusterError, match=r"The lab has ended.*lab\.up\(\)"):
            client.ask("up")
        client.detach()
        assert not client.alive


def test_folder_without_a_lab_is_said_to_be_none() -> None:
    folder = runtime.new_folder()
    with pytest.raises(ClusterError, match="There is no living lab in"):
        SupervisorClient(folder)
    runtime.write_record(folder, {}, "1.0")
    with pytest.raises(ClusterError, match="has just ended"):
        SupervisorClient(folder)


# -- a real supervisor ----------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Iterator[SupervisorClient]:
    """Attached to a lab whose engines are not up."""
    config = LabConfig(teacher="zoo/teacher", student="zoo/student", dir=str(tmp_path / "runs"))
    made = SupervisorClient.start(config)
    yield made
    made.close()
    _wait(lambda: not processes.marked(made.folder))
    assert not made.folder.exists()


def test_unknown_request_is_refused_and_the_lab_goes_on(client: SupervisorClient) -> None:
    for name in ("nothing", "_look", "__class__"):
        with pytest.raises(RunError, match=name):
            client.ask(name)
    with pytest.raises(RunError, match="unexpected keyword argument 'rows'"):
        client.ask("status", rows=3)
    said = client.ask("status")
    assert (said["state"], said["runs"]) == ("down", [])
    assert said["kernels"] == [f"pid {os.getpid()}"]


def test_who_speaks_another_language_or_hangs_up_ends_nothing(client: SupervisorClient) -> None:
    address = str(client.folder / runtime.SOCKET)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"", None):
        with Client(address, family="AF_UNIX") as connection:
            if noise is not None:
                connection.send_bytes(noise)
    with Client(address, family="AF_UNIX") as connection:
        connection.send("no pair")
    assert client.ask("status")["state"] == "down"


def test_every_attached_kernel_is_known_until_it_leaves(client: SupervisorClient) -> None:
    other = SupervisorClient(client.folder)
    assert len(client.ask("status")["kernels"]) == 2
    other.detach()
    _wait(lambda: len(client.ask("status")["kernels"]) == 1)
    assert client.alive and not other.alive


def test_lab_without_kernels_and_runs_ends_soon(client: SupervisorClient) -> None:
    watcher = os.pidfd_open(client.record.pid)
    client.detach()
    processes.wait([watcher], 60)
    assert processes.ended([watcher])
    os.close(watcher)


def test_supervisor_that_is_killed_is_gone_and_so_is_its_folder(client: SupervisorClient) -> None:
    os.kill(client.record.pid, signal.SIGKILL)
    _wait(lambda: not client.alive)
    with pytest.raises(ClusterError, match=r"does not answer|has ended"):
        client.ask("status")
    _wait(lambda: not client.folder.exists())
    with pytest.raises(ClusterError, match="There is no living lab"):
        SupervisorClient(client.folder)
    client.close()  # safe though there is nothing to close


def test_socket_is_the_users_alone(client: SupervisorClient) -> None:
    assert (client.folder / runtime.SOCKET).stat().st_mode & 0o777 == 0o600


def test_supervisor_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here its configuration is one that no version writes."""
    config = LabConfig(teacher="zoo/teacher", student="zoo/student")
    monkeypatch.setattr(LabConfig, "model_dump_json", lambda self: '{"teacher": "zoo/teacher"}')
    with pytest.raises(ClusterError, match=r"did not start\. It said: .*student"):
        SupervisorClient.start(config)
