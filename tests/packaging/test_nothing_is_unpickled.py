"""Nothing that a file holds is executed: no module of the package unpickles or evaluates but the two that read checkpoints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "musicrt"

MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dbm", "joblib", "dill", "cloudpickle", "pickletools", "runpy", "code"}
)
BARE = frozenset({"eval", "exec", "compile", "__import__", "execfile"})
ALLOWED = {
    ("runtime/checkpoint.py", "import pickle"),  # the name of an error
    ("runtime/unpickling.py", "import pickle"),
    ("runtime/unpickling.py", "torch.load without weights_only=True"),  # with an unpickler that makes tensors only
}


def findings(source: str) -> Iterator[str]:
    """What a source file does that could execute what it reads."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"import {one.name}" for one in names if one.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in MODULES:
                    yield f"import {module}"
                yield from (
                    f"import {one.name}" for one in names if module in ("numpy", "torch", "yaml", "builtins") and one.name in _LOADERS
                )
            case ast.Call(func=ast.Name(id=name)) if name in BARE:
                yield name
            case ast.Call(func=ast.Attribute(attr=name), keywords=keywords) as call:
                yield from _method(ast.unparse(call.func), name, {one.arg: ast.unparse(one.value) for one in keywords})


_LIBRARIES = frozenset({"numpy", "torch", "yaml", "builtins"})
_LOADERS = frozenset({"load", "unsafe_load", "full_load", "eval", "exec"})


def _method(full: str, name: str, given: dict[str | None, str]) -> Iterator[str]:
    match full:
        case "torch.load" if given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        case "np.load" | "numpy.load" if given.get("allow_pickle") != "False":
            yield f"{full} without allow_pickle=False"
        case "yaml.load" | "yaml.load_all" | "yaml.unsafe_load" | "yaml.full_load" | "torch.jit.load" | "torch.hub.load" | "torch.package":
            yield full
        case "yaml.parse" | "yaml.scan" | "yaml.compose" if given.get("Loader") != "yaml.SafeLoader":
            yield f"{full} without yaml.SafeLoader"
    if name in ("register_custom_ops_library", "extractall", "unpack_archive"):
        yield full
    if given.get("shell", "False") != "False" or full in ("os.system", "os.popen"):
        yield f"{full} in a shell"
    if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False":
        yield full


def test_no_module_executes_what_it_reads() -> None:
    found = {(path.relative_to(PACKAGE).as_posix(), finding) for path in PACKAGE.rglob("*.py") for finding in findings(path.read_text())}
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("import pickle", "import pickle"),
        ("import os, marshal as m", "import marshal"),
        ("from pickle import loads", "import pickle"),
        ("from torch import load", "import load"),
        ("def f():\n    import joblib.numpy_pickle", "import joblib.numpy_pickle"),
        ("eval('1')", "eval"),
        ("np.load(f)", "np.load without allow_pickle=False"),
        ("np.load(f, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("np.savez(f, allow_pickle=yes)", "np.savez"),
        ("torch.load(f, weights_only=x)", "torch.load without weights_only=True"),
        ("yaml.load(f, Loader=yaml.SafeLoader)", "yaml.load"),
        ("yaml.parse(f)", "yaml.parse without yaml.SafeLoader"),
        ("options.register_custom_ops_library('a.so')", "options.register_custom_ops_library"),
        ("archive.extractall()", "archive.extractall"),
        ("subprocess.run(x, shell=True)", "subprocess.run in a shell"),
    ],
)
def test_what_is_looked_for_is_found(source: str, finding: str) -> None:
    assert finding in set(findings(source))


def test_harmless_calls_are_none() -> None:
    source = (
        "model.eval()\nre.compile('a')\ntorch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nyaml.safe_load(f)\njson.load(f)"
    )
    assert not list(findings(source))
