"""A MariaDB server of the machine's package, on a temporary folder and a socket in it, without any network port."""

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ACCOUNT = "mysql"  # of the package: the server refuses to run as root
DEADLINE = 60  # seconds until the server has to answer


def program() -> str | None:
    """The path of the server, or None where MariaDB is not installed."""
    return shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")


@contextmanager
def server() -> Iterator[str]:
    """Start a server, give the address of its database, and stop it."""
    binary = program()
    assert binary is not None
    as_user = {"user": ACCOUNT} if os.getuid() == 0 else {}
    name = ACCOUNT if as_user else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="bough-my-"))
    if as_user:
        shutil.chown(folder, ACCOUNT)
    data, socket = folder / "data", folder / "socket"
    common = ["--no-defaults", f"--datadir={data}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **as_user}
    try:
        made = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run([*made, f"--auth-root-socket-user={name}"], check=True, **quiet)
        words = [binary, *common, f"--socket={socket}", "--skip-networking", f"--pid-file={folder / 'pid'}"]
        with subprocess.Popen([*words, "--skip-grant-tables"], **quiet) as process:
            try:
                deadline = time.monotonic() + DEADLINE
                while not socket.exists():
                    assert process.poll() is None, "the server has ended"
                    assert time.monotonic() < deadline, "the server does not answer"
                    time.sleep(0.1)
                ask = ["mariadb", "--no-defaults", f"--socket={socket}", "-e", "CREATE DATABASE studies"]
                subprocess.run(ask, check=True, **quiet)
                yield f"mysql+pymysql://root@localhost/studies?unix_socket={socket}"
            finally:
                process.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
