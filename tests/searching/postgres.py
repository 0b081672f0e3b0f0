"""A PostgreSQL server of the machine's package, on a temporary folder and a socket in it, without any network port."""

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPERUSER = "postgres"  # the server refuses to run as root


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, or None where PostgreSQL is not installed."""
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def server() -> Iterator[str]:
    """Start a server, give the address of its database, and stop it."""
    bin_folder = programs()
    assert bin_folder is not None
    as_user = {"user": SUPERUSER} if os.getuid() == 0 else {}
    name = SUPERUSER if as_user else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="bough-pg-"))
    if as_user:
        shutil.chown(folder, SUPERUSER)

    def run(*words: str) -> None:
        subprocess.run([str(bin_folder / words[0]), *words[1:]], check=True, stdout=subprocess.DEVNULL, cwd="/", **as_user)

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-A", "trust", "-U", name, "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://{name}@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
