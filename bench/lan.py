"""A local network of our own, made of Linux network namespaces. Nothing outside it can be reached: it may be searched.

    with Lan() as lan:
        lan.host("10.77.0.21/24", serve=["10.77.0.21:11434=ollama:red"])
        client = lan.host("10.77.0.10/24")
        client.python("import socket; ...")

A bridge for each network is the switch, each host a namespace with one or more network cards. Needs root and `ip`;
`Lan.missing()` says why not. What was made is removed at the end, also after an error.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

FAKE = Path(__file__).with_name("fake_ollama.py")
ROOT = FAKE.parent.parent
_SETTINGS = ("OLLAMA_HOST", "SOLLOL_")


class Host:
    """A machine on the network."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._server: subprocess.Popen[str] | None = None

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]

    def serve(self, specs: list[str]) -> None:
        """Start servers (see `fake_ollama`) and wait until they listen."""
        command = self.command(sys.executable, "-S", str(FAKE), *specs)
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        if self._server.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the servers {specs} did not start in {self.namespace}")

    def route(self, gateway: str) -> None:
        """Send everything else to a gateway."""
        subprocess.run(["ip", "-n", self.namespace, "route", "add", "default", "via", gateway], check=True)

    def python(self, code: str, timeout_s: float = 60.0, **env: str) -> str:
        """Run a program on this machine and return what it printed."""
        surroundings = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
        surroundings |= {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"} | env
        command = self.command(sys.executable, "-c", code)
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=surroundings, check=False)
        if done.returncode:
            raise RuntimeError(f"in {self.namespace}:\n{done.stderr}")
        return done.stdout

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.communicate()


class Lan:
    """Hosts, and a switch for each of their networks."""

    _count = 0

    def __init__(self) -> None:
        Lan._count += 1
        self._name = f"sol{os.getpid()}x{Lan._count}"
        self._hosts: list[Host] = []
        self._namespaces: list[str] = []
        self._switches: dict[object, str] = {}

    @staticmethod
    def missing() -> str:
        """Why no network can be made here; empty if one can."""
        if sys.platform != "linux":
            return "network namespaces need Linux"
        if os.geteuid() != 0:
            return "network namespaces need root"
        if shutil.which("ip") is None:
            return "the program `ip` (iproute2) is not installed"
        name = f"sol{os.getpid()}try"
        tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        if tried.returncode:
            return f"no network namespace can be made here: {tried.stderr.strip()}"
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        return ""

    def __enter__(self) -> Lan:
        try:
            self._namespace("sw")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def host(self, *addresses: str, serve: list[str] | None = None, one_card: bool = False) -> Host:
        """Plug in a machine with these addresses, such as "10.77.0.21/24", each on a network card of its own."""
        tag = f"h{len(self._hosts)}"
        self._namespace(tag)
        self._ip(tag, "link set lo up")
        host = Host(self._name + tag)
        self._hosts.append(host)
        for number, address in enumerate(addresses):
            card = f"e{0 if one_card else number}"
            if number == 0 or not one_card:
                port = f"{tag}{card}"
                self._ip(tag, f"link add {card} type veth peer name {port} netns {self._name}sw")
                self._ip("sw", f"link set {port} master {self._switch(address)} up")
                self._ip(tag, f"link set {card} up")
            self._ip(tag, f"addr add {address} dev {card}")
        if serve:
            host.serve(serve)
        return host

    def _switch(self, address: str) -> str:
        network = ipaddress.ip_interface(address).network
        if network not in self._switches:
            made = self._switches[network] = f"br{len(self._switches)}"
            self._ip("sw", f"link add {made} type bridge forward_delay 0", f"link set {made} up")
        return self._switches[network]

    def close(self) -> None:
        for host in self._hosts:
            host.close()
        for namespace in reversed(self._namespaces):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
        self._hosts.clear()
        self._namespaces.clear()

    def _namespace(self, tag: str) -> None:
        subprocess.run(["ip", "netns", "add", self._name + tag], check=True)
        self._namespaces.append(self._name + tag)

    def _ip(self, tag: str, *commands: str) -> None:
        for command in commands:
            subprocess.run(["ip", "-n", self._name + tag, *command.split()], check=True, capture_output=True)
