"""A small network of its own: hosts with one address each, as Linux network namespaces on one switch.

All of it belongs to one process and to the namespaces that the process was started in, so that the kernel takes it
away when that process ends, however it ends: nothing is named, nothing is written to the machine's own network.
Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

PREFIX = "10.99.0."
TOOLS = ("ip", "mount", "nsenter", "setpriv", "unshare")
SHM = Path("/dev/shm")  # private to the sandbox: scratch files too are kept here


def missing() -> str | None:
    """Why there can be no such network here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"{tool} is not installed; it is in Debian's iproute2, mount or util-linux"
    done = subprocess.run(sandbox("true"), capture_output=True, text=True, check=False, timeout=30)
    return None if done.returncode == 0 else f"namespaces are not allowed here: {done.stderr.strip()}"


def sandbox(*command: str) -> list[str]:
    """`command` with networks, mounts and processes of its own, which end with it, and it with its parent."""
    unshare = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    return ["setpriv", "--pdeathsig", "KILL", *unshare, *command]


class Network:
    """The switch, `hosts` on it, and a private /etc/hosts; to be made inside a sandbox."""

    def __init__(self) -> None:
        _run("mount", "-t", "tmpfs", "tmpfs", str(SHM))
        self._names = SHM / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        _run("mount", "--bind", str(self._names), "/etc/hosts")
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "switch", "type", "bridge")
        _run("ip", "address", "add", f"{PREFIX}1/24", "dev", "switch")
        _run("ip", "link", "set", "switch", "up")

    def resolve(self, name: str, addresses: list[str]) -> None:
        """From now on `name` stands for these addresses, as a headless service's name does."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for address in addresses)]
        self._names.write_text("\n".join(lines) + "\n")


class Host:
    """A machine on the switch: a network namespace that has `address`."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.address = name, f"{PREFIX}{number}"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._holder.pid}/ns/net") == own:
            time.sleep(0.01)
        _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        _run("ip", "link", "set", name, "master", "switch", "up")
        _run(*self.inside("ip", "link", "set", "lo", "up"))
        _run(*self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0"))
        _run(*self.inside("ip", "link", "set", "eth0", "up"))

    def inside(self, *command: str) -> list[str]:
        """`command` as it is run on this host."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *command]

    def cut_off(self) -> None:
        """Pulls the cable: packets are lost in both directions, and nobody is told."""
        _run("ip", "link", "set", self.name, "down")

    def connect(self) -> None:
        """Puts the cable back."""
        _run("ip", "link", "set", self.name, "up")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
