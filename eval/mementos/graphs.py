"""Synonym graphs: the benchmark's pickles, read without running anything in them, or the same as JSON.

A graph is a dictionary: a list item -> the item that follows it, or "" for none -> the words it may be replaced by.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from eval.mementos.data import Benchmark, Domain
from llava.imagechain.config import ConfigError
from llava.imagechain.files import read_json

Graph = dict[str, dict[str, list[str]]]
# Kind of words -> the one class that a pickle of this kind may name, in the module that the benchmark's notebook was.
CLASSES = {"object": "ObjectGraph", "action": "ActionGraph"}
LARGEST = 16 << 20  # bytes of a graph file; the largest of the six has 30 kB
# All that the six pickles consist of. Nothing here calls anything but the class's own __new__, and no number in the
# file can make the reader reserve memory.
HARMLESS = {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "STACK_GLOBAL", "NEWOBJ", "BUILD",
    "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_LIST", "SHORT_BINUNICODE", "BINUNICODE", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS",
}  # fmt: skip


class _PickledGraph:
    """Stands in for the notebook's class: holds what it held, does nothing."""

    graph: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != {"graph"}:
            raise pickle.UnpicklingError("an object with one attribute, graph, was wanted")
        self.graph = state["graph"]


class _Unpickler(pickle.Unpickler):
    """Admits one class."""

    def __init__(self, data: bytes, class_name: str) -> None:
        super().__init__(io.BytesIO(data))
        self._class_name = class_name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("__main__", self._class_name):
            return _PickledGraph
        raise pickle.UnpicklingError(f"it names {module}.{name}, only __main__.{self._class_name} is admitted")


def read_pickle(path: Path, kind: str) -> Graph:
    """Read one of the benchmark's graphs (.pkl).

    Args:
        path: The file, not trusted.
        kind: "object" or "action".

    Raises:
        ConfigError: It holds anything else than such a graph; nothing in it was run.
    """
    data = _small(path).read_bytes()
    try:
        for code, _, _ in pickletools.genops(data):
            if code.name not in HARMLESS:
                raise pickle.UnpicklingError(f"it has an instruction {code.name}, which no graph needs")
        loaded = _Unpickler(data, CLASSES[kind]).load()
    # A damaged pickle raises any of these.
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        ValueError,
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        raise ConfigError(f"{path} is refused: {error}. A graph of the benchmark was wanted.") from error
    return _checked(loaded.graph if isinstance(loaded, _PickledGraph) else None, path)


def read_graph_json(path: Path) -> Graph:
    """Read a graph as JSON: the dictionary itself, or under the key "adjacency".

    Raises:
        ConfigError: It is none.
    """
    try:
        loaded = read_json(_small(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(error)) from error
    return _checked(loaded.get("adjacency", loaded) if isinstance(loaded, dict) else None, path)


def _small(path: Path) -> Path:
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path}: a graph of at most {LARGEST >> 20} MB was wanted")
    return path


def _checked(graph: Any, path: Path) -> Graph:
    entries = graph.items() if isinstance(graph, dict) else [(None, None)]
    room = path.stat().st_size
    for item, following in entries:
        if not isinstance(item, str) or not isinstance(following, dict):
            found = f"{item!r:.80}: {following!r:.80}" if isinstance(graph, dict) else type(graph).__name__
            raise ConfigError(f"{path}: a dictionary item -> next item -> words was wanted, found {found}")
        for then, words in following.items():
            if not isinstance(then, str) or not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                raise ConfigError(f"{path}: a list of words was wanted under {item!r}, {then!r}")
            # A pickle may name one list again and again: a small file with more words than any memory holds.
            if (room := room - len(words)) < 0:
                raise ConfigError(f"{path}: at most one word for each byte was wanted, found more")
    return dict(graph)


def load_graphs(benchmark: Benchmark, domain: Domain) -> dict[str, Graph]:
    """Return the domain's graphs by kind of words ("object", "action"); JSON is taken where there are both.

    Raises:
        ConfigError: One is missing, there twice, or refused.
    """
    graphs = {}
    for kind in CLASSES:
        stem = f"{domain.graph}_{kind}_graph_v1"
        found = benchmark.files.get(f"{stem}.json", ()) or benchmark.files.get(f"{stem}.pkl", ())
        if len(found) != 1:
            listed = " and ".join(map(str, found)) or "none"
            raise ConfigError(f"{benchmark.root}: one {stem}.json or {stem}.pkl was wanted, found {listed}")
        graphs[kind] = read_pickle(found[0], kind) if found[0].suffix == ".pkl" else read_graph_json(found[0])
    return graphs
