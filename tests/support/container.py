# SPDX-License-Identifier: Apache-2.0
"""Runs a program as a kubelet runs the container of a manifest: its mounts, rights, environment."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_BUILD = """
set -eu
root=$1 new=$2
mount -t tmpfs container "$new"
for each in "$root"/*; do
    name=${each##*/}
    if [ -L "$each" ]; then
        cp -P "$each" "$new"
    elif [ -d "$each" ]; then
        mkdir "$new/$name"
        case $name in
        proc | sys | dev | run | tmp) ;;
        etc) cp -a "$each/." "$new/$name" ;;
        *) mount -o bind,ro "$each" "$new/$name" ;;
        esac
    fi
done
mount -t proc proc "$new/proc"
mount --bind /dev "$new/dev"
inside() { # where a path of the container is, whatever links are on the way
    chroot "$new" mkdir -p "$1"
    echo "$new$(chroot "$new" realpath "$1")"
}
"""


@dataclass(frozen=True, slots=True)
class Container:
    """What a DaemonSet says of its pods, filled in for one of them."""

    pod: Mapping[str, Any]
    """The pod's spec, with one container."""
    fields: Mapping[str, str]
    """What the API server knows of the pod: `metadata.name` and the like."""
    volumes: Mapping[str, Path]
    """By name, where their content is."""
    hosts: Mapping[str, str]
    """Addresses by name, as a cluster's DNS has them."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """The container."""
        (container,) = self.pod["containers"]
        return container  # type: ignore[no-any-return] # YAML

    def capabilities(self) -> list[str]:
        """What is left to it, in lower case."""
        rights = self.spec["securityContext"]["capabilities"]
        assert rights["drop"] == ["ALL"]
        return [name.lower() for name in rights["add"]]

    def env(self) -> dict[str, str]:
        """Its environment."""
        return {one["name"]: self._value(one) for one in self.spec["env"]}

    def command(
        self, program: Sequence[str], root: Path, place: Path, visible: Sequence[Path] = ()
    ) -> list[str]:
        """The command line that runs `program` with the container's arguments.

        Args:
            program: of the file system that begins at `root`.
            root: is not written to.
            place: an empty folder, for the container's file system.
            visible: folders of this machine that are to be seen, read-only, at the same path.
        """
        rights = self.spec["securityContext"]
        lines = [_BUILD]
        for mount in self.spec["volumeMounts"]:
            source, target = self.volumes[mount["name"]], mount["mountPath"]
            mode = ",ro" if mount.get("readOnly") else ""
            lines.append(f'mount -o bind{mode} {source} "$(inside {target})"')
        lines += [f'mount -o bind,ro {folder} "$(inside {folder})"' for folder in visible]
        names = "".join(f"{address} {name}\n" for name, address in self.hosts.items())
        lines.append(f'printf %s {shlex.quote(names)} > "$new/etc/hosts"')
        if rights["readOnlyRootFilesystem"]:
            lines.append('mount -o remount,ro "$new"')
        bounding = ",".join(["-all", *(f"+{name}" for name in self.capabilities())])
        lines.append(
            f'exec chroot "$new" setpriv --reuid {rights["runAsUser"]} '
            f"--regid {rights['runAsGroup']} --clear-groups --inh-caps=-all "
            f"--bounding-set={bounding} env -i {shlex.join(self._words())} "
            f"{shlex.join([*program, *self.spec['args']])}"
        )
        script = "\n".join(lines)
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"]
        return [*argv, str(root), str(place)]

    def _words(self) -> list[str]:
        standard = {"PATH": "/usr/local/bin:/usr/bin:/bin", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        return [f"{name}={value}" for name, value in (standard | self.env()).items()]

    def _value(self, one: Mapping[str, Any]) -> str:
        match one:
            case {"value": value}:
                return str(value)
            case {"valueFrom": {"fieldRef": {"fieldPath": path}}}:
                return self.fields[path]
            case {"valueFrom": {"resourceFieldRef": {"resource": path, "divisor": "1"}}}:
                kind, _, name = path.partition(".")
                amount = self.spec["resources"].get(kind, {}).get(name, str(os.cpu_count()))
                milli = float(amount.removesuffix("m")) / (1000 if amount.endswith("m") else 1)
                return str(math.ceil(milli))
            case _:
                raise AssertionError(f"no kubelet fills in {one}")
