"""`strucprune` for the documentation's blocks, without its seconds of imports each time.

    python -m tests.docs.command_server SOCKET

Imports everything once and then forks for each call: the child takes over the caller's arguments,
directory, environment and standard streams, and runs the command's own entry point. Signals to
the caller are passed on to it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

# What stands in for `strucprune`; it starts within some 20 ms.
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
call = socket.socket(socket.AF_UNIX)
call.connect({path!r})
words = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(call, [len(words).to_bytes(4, "big")], [0, 1, 2])
call.sendall(words)
answer = call.makefile()
process = int(answer.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(process, number))
sys.exit(int(answer.read() or 70))
"""


def write_client(file: Path, path: Path) -> None:
    """Write the stand-in for `strucprune`, which calls the server at `path`."""
    file.write_text(CLIENT.format(python=sys.executable, path=str(path)), encoding="utf-8")
    file.chmod(0o755)


def main() -> None:
    """Serve until the process is stopped."""
    import transformers

    import strucprune_core.commands.main
    import strucprune_core.evaluation.standalone
    import strucprune_core.pipeline

    _ = (
        transformers.LlamaForCausalLM,
        strucprune_core.commands.main.app,
    )  # names that load on first use
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        print("ready", flush=True)
        while True:
            call, _ = server.accept()
            if os.fork() == 0:
                os._exit(_answer(call))
            call.close()


def _answer(call: socket.socket) -> int:
    """Run one call in this process, and tell the caller its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(call, 4, 3)
    words = call.makefile("rb").read(int.from_bytes(size, "big"))
    sys.argv, directory, environment = json.loads(words)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    call.sendall(f"{os.getpid()}\n".encode())
    try:
        from strucprune_core.commands.main import main as command

        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    call.sendall(str(code).encode())
    return code


if __name__ == "__main__":
    main()
