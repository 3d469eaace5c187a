"""Write the guest's first file system: busybox, the script that it starts with, and kernel modules in loading order.

Usage: python tools/nic/initramfs.py KERNEL-TREE INIT-SCRIPT OUTPUT
"""

from __future__ import annotations

import lzma
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

WANTED = (
    *("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net"),
    *("vfio_iommu_type1", "vfio_pci", "uio_pci_generic"),
    *("sch_ingress", "cls_matchall", "act_vlan"),
    "igb",  # last: it takes the cards, and the tests give them to vfio-pci
)


def _stem(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


class Modules:
    """The modules of an unpacked kernel package."""

    def __init__(self, tree: Path) -> None:
        self._files = {_stem(path.name): path for path in tree.rglob("*.ko*")}
        self._builtin = {_stem(line) for each in tree.rglob("modules.builtin") for line in each.read_text().split()}

    def content(self, name: str) -> bytes:
        """The module, unpacked."""
        octets = self._files[name].read_bytes()
        return lzma.decompress(octets) if self._files[name].suffix == ".xz" else octets

    def in_order(self, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the wanted modules, each after those that it needs."""
        done: set[str] = set()

        def load(name: str) -> Iterator[tuple[str, bytes]]:
            if name in done or name in self._builtin:
                return
            if name not in self._files:
                raise SystemExit(f"aiflow: the kernel has no module {name}")
            done.add(name)
            content = self.content(name)
            needs = re.search(rb"\0depends=([^\0]*)\0", content)
            for other in needs[1].decode().split(",") if needs else []:
                if other:
                    yield from load(other.replace("-", "_"))
            yield name, content

        for name in wanted:
            yield from load(name)


class Archive:
    """A cpio archive in the form that the kernel reads ("newc")."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        """Append a file or a directory."""
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts += [_padded(head + path), _padded(content)]

    def content(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(octets: bytes) -> bytes:
    return octets + b"\0" * (-len(octets) % 4)


def main() -> None:
    """Write the archive."""
    tree, script, output = map(Path, sys.argv[1:])
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("aiflow: there is no busybox: apt-get install busybox-static")
    archive = Archive()
    for directory in ("bin", "modules"):
        archive.add(directory, 0o40755)
    archive.add("bin/busybox", 0o100755, Path(busybox).read_bytes())
    archive.add("init", 0o100755, script.read_bytes())
    for number, (name, content) in enumerate(Modules(tree).in_order(WANTED)):
        archive.add(f"modules/{number:02}-{name}.ko", 0o100644, content)
    output.write_bytes(archive.content())


if __name__ == "__main__":
    main()
