"""Hosts that are really apart, on one machine: network namespaces on a switch, host names and /tmp of their own.

The switch is a bridge in a namespace of its own, so nothing of this machine's network is touched. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.cable import TUN
from tests.cluster.standalone import Host, kill_tree

_NETWORK = "10.77.0"
ROOT = Path(__file__).resolve().parents[2]


def why_not() -> str:
    """Why there can be no such hosts here; "" where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    name = f"hv{os.getpid()}-try"
    try:
        _run("ip", "netns", "add", name)
        _run(
            "ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", "hostname elsewhere && mount --bind /mnt /tmp"
        )
        _run("ip", "-n", name, "link", "add", "near", "type", "veth", "peer", "name", "far")
        _run("ip", "-n", name, "link", "add", "switch", "type", "bridge")
    except FileNotFoundError as error:
        return f"no {error.filename} here (Debian: iproute2, util-linux)"
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    finally:
        with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
            _run("ip", "netns", "del", name)
    return ""


def why_not_slow() -> str:
    """Why no cable of such hosts can take its time and lose packets; "" where one can."""
    if _has_netem() or os.access(TUN, os.R_OK | os.W_OK):
        return ""
    return f"the kernel has no netem, and no {TUN}"


def _has_netem() -> bool:
    """Whether the kernel can delay and lose packets itself. Those of small virtual machines cannot."""
    name = f"hv{os.getpid()}-slow"
    try:
        _run("ip", "netns", "add", name)
        _run("tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False
    finally:
        with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
            _run("ip", "netns", "del", name)
    return True


@dataclass
class Hosts:
    """Hosts by name.

    Attributes:
        shared: a folder that all of them see in the same place, and this process, too.
        names: of the hosts.
    """

    shared: Path
    names: tuple[str, ...]
    _cables: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def host(self, name: str) -> Host:
        """For command lines: in its namespace, under its name, with a /tmp of its own."""
        tmp = f"{self._own(name)}/tmp"
        brought = "".join(
            f'mkdir -p "{tmp}/{path}" && mount --bind "/tmp/{path}" "{tmp}/{path}" && ' for path in _needed_of_tmp()
        )
        setting_up = (
            f"hostname {name} && {brought}mount --rbind {tmp} /tmp && "
            f'mount --bind {self.shared}/hosts /etc/hosts && exec "$@"'
        )
        inside = ("unshare", "--uts", "--mount", "sh", "-c", setting_up, name)
        return Host(self.address(name), ("ip", "netns", "exec", self._space(name), *inside))

    def address(self, name: str) -> str:
        return f"{_NETWORK}.{self.names.index(name) + 1}"

    def pull(self, name: str) -> None:
        """Its cable is pulled."""
        _run("ip", "-n", self._space("switch"), "link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Its cable is back."""
        _run("ip", "-n", self._space("switch"), "link", "set", name, "up")

    def part(self, names: Sequence[str], apart: bool = True) -> None:
        """These hosts reach each other no more (or again), and all others as before."""
        for name in names:
            _run(
                "bridge", "-n", self._space("switch"), "link", "set", "dev", name, "isolated", "on" if apart else "off"
            )

    def make(self, slow: str | None, delay_ms: float, loss: float) -> None:
        """Everything; the cable of host `slow` has a delay in each direction, and loses that share of the frames."""
        netem = slow is not None and _has_netem()
        (self.shared / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{self.address(name)} {name}\n" for name in self.names)
        )
        _run("ip", "netns", "add", self._space("switch"))
        _run("ip", "-n", self._space("switch"), "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _run("ip", "-n", self._space("switch"), "link", "set", "bridge", "up")
        for name in self.names:
            (self._own(name) / "tmp").mkdir(parents=True)
            space = self._space(name)
            _run("ip", "netns", "add", space)
            if name == slow and not netem:
                self._slow_cable(space, name, delay_ms, loss)
            else:
                far = ("peer", "name", name, "netns", self._space("switch"))
                _run("ip", "-n", space, "link", "add", "eth0", "type", "veth", *far)
            if name == slow and netem:
                how = ("delay", f"{delay_ms}ms", "loss", f"{loss:%}")
                for there, device in ((space, "eth0"), (self._space("switch"), name)):
                    _run("tc", "-n", there, "qdisc", "add", "dev", device, "root", "netem", *how)
            _run("ip", "-n", self._space("switch"), "link", "set", name, "master", "bridge")
            _run("ip", "-n", self._space("switch"), "link", "set", name, "up")
            _run("ip", "-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", space, "link", "set", device, "up")

    def remove(self) -> None:
        for cable in self._cables:
            kill_tree(cable.pid)
            cable.wait(timeout=10)
        for name in ("switch", *self.names):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", self._space(name))

    def _slow_cable(self, space: str, name: str, delay_ms: float, loss: float) -> None:
        near, far = f"hv{os.getpid()}n", f"hv{os.getpid()}f"
        how = ("--delay-ms", str(delay_ms), "--loss", str(loss))
        command = [sys.executable, "-m", "tests.cluster.cable", near, far, *how]
        cable = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        self._cables.append(cable)
        assert cable.stdout is not None
        assert cable.stdout.readline() == b"ready\n", "the cable cannot be made"
        _run("ip", "link", "set", near, "netns", space, "name", "eth0")
        _run("ip", "link", "set", far, "netns", self._space("switch"), "name", name)

    def _space(self, name: str) -> str:
        return f"hv{os.getpid()}-{name}"

    def _own(self, name: str) -> Path:
        return self.shared / f"of-{name}"


def _needed_of_tmp() -> list[Path]:
    """Below /tmp, what hosts need although they have one of their own: this checkout and its Python, if there."""
    needed = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    outermost = [path for path in needed if not needed & set(path.parents)]
    return [path.relative_to("/tmp") for path in outermost if path.is_relative_to("/tmp")]


@contextlib.contextmanager
def hosts(
    shared: Path, names: Sequence[str], *, slow: str | None = None, delay_ms: float = 0.0, loss: float = 0.0
) -> Iterator[Hosts]:
    """Hosts on one switch, all of which reach each other.

    Args:
        shared: not below /tmp, which each of them has for itself.
        slow: a host whose cable has that delay and loss: of netem where the kernel has it, else a `cable.py`.
    """
    made = Hosts(shared, tuple(names))
    try:
        made.make(slow, delay_ms, loss)
        yield made
    finally:
        made.remove()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
