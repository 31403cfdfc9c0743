"""A registry of named members of one kind: built-in by file, third parties' by entry point, imported on first use.

A built-in member is found by its file: the member ``l-lora`` of the package ``tangora.modes.kinds`` is the object
``MODE`` of ``tangora/modes/kinds/l_lora.py``. So a new one is one new file, and listing the names imports nothing.
Another package announces a member by an entry point of the registry's group::

    [project.entry-points."tangora.modes"]
    my-mode = "my_package.my_mode:MODE"

In a notebook, ``registry.register("my-mode", MODE)`` does the same for one process.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

from tangora.errors import PluginError
from tangora.support.validation import did_you_mean

__all__ = ["Registry", "load_entry", "origin_of"]


@dataclass(eq=False)
class Registry:
    """Members of one kind by name.

    Args:
        kind: what messages call a member, such as ``family``.
        package: the files of this package are the built-in members, except those that begin with ``_``.
        attribute: the name of the member in its file.
        contract: the runtime-checkable protocol that every member implements, as ``module:name``.
        group: the entry-point group of third parties.
        separator: replaces the ``_`` of a file's name in the member's name.
    """

    kind: str
    package: str
    attribute: str
    contract: str
    group: str
    separator: str = "-"
    _members: dict[str, Any] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all members, sorted; nothing is imported."""
        return iter(sorted({*self.own, *self._members, *self._entries}))

    def __contains__(self, name: object) -> bool:
        """Whether there is a member of that name; nothing is imported."""
        return name in self.own or name in self._members or name in self._entries

    @cached_property
    def own(self) -> dict[str, str]:
        """Name -> module of the built-in members."""
        # Only the top package is imported: the one that is listed, and those around it, may need torch.
        top, *rest = self.package.split(".")
        spec = util.find_spec(top)
        roots = (spec.submodule_search_locations if spec is not None else None) or ()
        folders = [str(Path(root, *rest)) for root in roots]
        files = [module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_")]
        return {file.replace("_", self.separator): f"{self.package}.{file}" for file in files}

    @cached_property
    def _entries(self) -> dict[str, metadata.EntryPoint]:
        return {entry.name: entry for entry in metadata.entry_points(group=self.group)}

    def get(self, name: str) -> Any:
        """Return the member of that name, imported on first use.

        Raises:
            PluginError: there is none, it cannot be imported, or it does not implement the contract.
        """
        if name not in self._members:
            self._members[name] = self._checked(name, *self._imported(name))
        return self._members[name]

    def origins(self) -> dict[str, str]:
        """Return name -> origin of every member: a module, or the entry point of a package. Nothing is imported."""
        return {name: self._origin(name) for name in self}

    def _origin(self, name: str) -> str:
        if name in self.own:
            return self.own[name]
        return origin_of(self._entries[name]) if name in self._entries else "registered in this process"

    def register(self, name: str, member: Any) -> None:
        """Add a member for this process; the same name again replaces it, unless it is built in.

        Raises:
            PluginError: the name is that of a built-in member, or the member does not implement the contract.
        """
        if name in self.own:
            fix = "choose another name"
            raise PluginError(f"the name is taken by a {self.kind} of Tangora", got=name, where=self.group, fix=fix)
        self._members[name] = self._checked(name, member, f"{type(member).__module__}.{type(member).__qualname__}")

    def unregister(self, name: str) -> None:
        """Forget a member that was added by `register`; unknown names are ignored."""
        if name not in self.own:
            self._members.pop(name, None)

    def all(self) -> dict[str, Any]:
        """Return every member by name; imports all of them."""
        return {name: self.get(name) for name in self}

    def _imported(self, name: str) -> tuple[Any, str]:
        """Return the member, not checked yet, and its origin."""
        entry = self._entries.get(name)
        if name in self.own:
            if entry is not None:
                fix = f"rename it, or uninstall {_package(entry)}"
                raise PluginError(f"two of kind {self.kind} have one name", got=name, where=origin_of(entry), fix=fix)
            return getattr(import_module(self.own[name]), self.attribute), self.own[name]
        if entry is None:
            raise PluginError(f"no such {self.kind}", got=name, fix=did_you_mean(str(name), list(self)))
        return load_entry(entry, self.kind), origin_of(entry)

    def _checked(self, name: str, member: Any, where: str) -> Any:
        module, _, attribute = self.contract.partition(":")
        contract = getattr(import_module(module), attribute)
        if not isinstance(member, contract):
            lacks = sorted(n for n in _names_of(contract) if not hasattr(member, n))
            fix = f"see {module}.{attribute}, and check it with tangora.testing"
            raise PluginError(f"the {self.kind} {name!r} lacks {', '.join(lacks)}", where=where, fix=fix)
        return member


def load_entry(entry: metadata.EntryPoint, kind: str) -> Any:
    """Return the object that an entry point names.

    Raises:
        PluginError: its package cannot be imported, or does not have it.
    """
    try:
        return entry.load()
    except Exception as cause:  # whatever a stranger's import raises
        what = f"the {kind} {entry.name!r} cannot be loaded ({type(cause).__name__}: {cause})"
        raise PluginError(what, where=origin_of(entry), fix=f"update or uninstall {_package(entry)}") from cause


def origin_of(entry: metadata.EntryPoint) -> str:
    """Return the origin of a third party's member, for messages."""
    return f"entry point {_package(entry)}: {entry.name} = {entry.value}"


def _names_of(contract: type) -> set[str]:
    """Return the public members of a protocol, its attributes included."""
    names: set[str] = set()
    for base in contract.__mro__[:-1]:
        names |= {n for n in (*vars(base), *vars(base).get("__annotations__", ())) if not n.startswith("_")}
    return names


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"
