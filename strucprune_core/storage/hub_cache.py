"""The local cache of `huggingface_hub`, as far as reading a model in it needs. No torch.

    hub/models--org--name/snapshots/<commit>/config.json -> ../../blobs/<digest>
    hub/models--org--name/blobs/<digest>                     a file, or -> ../../blobs/<xx>/<hash>
    hub/blobs/<xx>/<hash>                                    files that repositories share

A snapshot is a directory of links to files that lie outside of it.
"""

from __future__ import annotations

from pathlib import Path

_REPOSITORIES = ("models--", "datasets--")
# Marks a folder of files that repositories share, since huggingface_hub 2.
_SHARED_MARKER = ".huggingface-shared-blobs"


def places_of_blobs(root: Path) -> tuple[Path, ...]:
    """The directories that links below `root` may lead to, if it is or lies in a snapshot.

    Args:
        root: A resolved path.
    """
    for snapshot in (root, *root.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith(_REPOSITORIES):
            shared = repository.parent / "blobs"
            own = (repository / "blobs",)
            return (*own, shared) if (shared / _SHARED_MARKER).is_file() else own
    return ()
