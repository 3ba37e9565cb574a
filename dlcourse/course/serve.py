"""Start JupyterLab anywhere: as root in a container, without a browser, beside another Lab."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import webbrowser
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

ADDRESS = "127.0.0.1"  # this machine only
FIRST_PORT, PORTS_TRIED = 8888, 100


def free_port(first: int = FIRST_PORT) -> int:
    """The first port from ``first`` on that nothing listens to; ValueError if it is none."""
    if not 1 <= first <= 65535:
        raise ValueError(f"port={first}: give a number from 1 to 65535")
    last = min(first + PORTS_TRIED, 65536) - 1
    for port in range(first, last + 1):
        try:
            socket.create_server((ADDRESS, port)).close()
        except PermissionError:
            raise ValueError(f"port={port} is not for users: give one from 1024 on") from None
        except OSError:
            continue
        return port
    raise ValueError(f"ports {first} to {last} are all taken: give another with --port")


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def has_browser(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser would open for whoever sits here.

    A terminal's own browser, such as lynx, would take the terminal and cannot show Lab.
    """
    screen = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    if not environment.get("BROWSER"):
        if environment.get("SSH_CONNECTION") and not screen:
            return False
        if platform != "darwin" and not screen:
            return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def tunnel(port: int, environment: Mapping[str, str] = os.environ) -> str:
    """The command with which a laptop reaches ``port`` of this machine.

    The machine is called as the user has reached it, where that is known, else by its own name.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may give a number that has no name
        user = "user"
    host, door = socket.gethostname(), ""
    parts = environment.get("SSH_CONNECTION", "").split()  # client, its port, server, its port
    if len(parts) == 4:
        host, door = parts[2], "" if parts[3] == "22" else f"-p {parts[3]} "
    return f"ssh -N {door}-L {port}:{ADDRESS}:{port} {user}@{host}"


def lab_environment(lang: str) -> dict[str, str]:
    """Adds folders of settings: Lab shows Markdown files rendered, as pages, and speaks Korean.

    A setting and not ``?factory=`` in the address: the server prints its address with the token
    behind a second question mark then, and whoever copies it gets an error.

    lang: Korean only if the language pack is installed; whoever has chosen a language in Lab's
        own menu keeps it.
    """
    ours = Path(__file__).parent / "lab"
    folders = [str(ours / lang)] if lang == "ko" and korean_interface() else []
    folders += [str(ours), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return {"JUPYTER_CONFIG_PATH": os.pathsep.join(folder for folder in folders if folder)}


def korean_interface() -> bool:
    """Whether JupyterLab's Korean language pack is installed."""
    packs = metadata.entry_points(group="jupyterlab.languagepack")
    return "ko_KR" in {pack.name for pack in packs}


def kernel_settings() -> dict[str, str]:
    """Settings of jupyter_client's KernelManager: what passes between us and kernels is encrypted.

    Without, ipykernel warns at each start, into the terminal, that others may read along.
    """
    import zmq
    from jupyter_client import KernelManager

    known = "transport_encryption" in KernelManager.class_traits()  # jupyter_client 8.10
    return {"transport_encryption": "auto"} if known and zmq.has("curve") else {}
