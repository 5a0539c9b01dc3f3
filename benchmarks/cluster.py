"""Whether `musicrt batch` gives on a cluster what it gives alone, also where a node dies in the middle.

    python -m benchmarks.cluster --bundle BUNDLE --out OUT

The nodes are processes of this machine with one core each, as `ray start` makes them, and the command is the same for all runs but for
RAY_ADDRESS. The node that dies is killed with all of its processes, as if its power were gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.errors import BackendError
from musicrt.runtime.measure import markdown_table, synthesise_music

_WAIT = 300  # seconds


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("cluster", "Whether `musicrt batch` gives on a cluster what it gives alone, also where a node dies.")
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each")
    parser.add_argument("--lot", type=int, default=2)
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parsed = parser.parse_args(arguments)
    settings = {name: getattr(parsed, name) for name in ("files", "seconds", "lot", "backend")}
    runs: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        music, alone = Path(folder, "music"), Path(folder, "alone")
        music.mkdir()
        rate = Bundle.open(parsed.bundle).spec.sample_rate
        for index in range(parsed.files):
            write_audio(music / f"{index}.wav", synthesise_music(parsed.seconds + index / 16, rate), rate)
        for name, nodes, dies in (("alone", 0, False), ("cluster", 2, False), ("cluster, a node dies", 2, True)):
            target = Path(folder, name)
            command = [sys.executable, "-m", "musicrt.cli", "batch", "encode", "--bundle", str(parsed.bundle.absolute())]
            command += ["--input", str(music), "--output", str(target), "--backend", parsed.backend, "--lot", str(parsed.lot)]
            run = (
                _run_on_nodes(command, target, nodes, parsed.files // 4, dies)
                if nodes
                else _finish(_begin([*command, "--workers", "1"], None), target)
            )
            there = {path.name for path in _results(target)}
            same = sum(_values(alone, file) == _values(target, file) for file in _names(parsed.files) if f"{file}.safetensors" in there)
            runs.append({"run": name, "nodes": nodes, **run, "same": same})
            say(f"{name}: {runs[-1]}")
    write_results(parsed.out, {**describe_run("cluster", parsed.bundle, settings, 1), "runs": runs}, render(runs))


def _run_on_nodes(command: list[str], target: Path, nodes: int, begun: int, dies: bool) -> dict[str, Any]:
    """On a cluster of its own. Where a node is to die, it is the last one, once so many results are there."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        others = [cluster.add_node(num_cpus=1) for _ in range(nodes - 1)]
        raylets = [node.all_processes["raylet"][0].process.pid for node in (cluster.head_node, *others)]
        program = _begin([*command, "--workers", str(nodes)], cluster.address)
        while len(_results(target)) < begun and program[0].poll() is None:
            time.sleep(0.01)
        facts: dict[str, Any] = {"workers": [sum(_is_worker(pid) for pid in _below(raylet)) for raylet in raylets]}
        if dies:
            for pid in [raylets[-1], *_below(raylets[-1])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            facts["there when it died"] = len(_results(target))
        return {**facts, **_finish(program, target)}
    finally:
        cluster.shutdown()


def _begin(command: list[str], address: str | None) -> tuple[subprocess.Popen[str], float]:
    """The command, from another folder than that of the cluster, and when it began."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path.cwd())} | ({"RAY_ADDRESS": address} if address else {})
    return subprocess.Popen(command, env=environment, cwd=os.sep, stdout=subprocess.PIPE, text=True), time.perf_counter()


def _finish(program: tuple[subprocess.Popen[str], float], target: Path) -> dict[str, Any]:
    """Raises BackendError where it does not end."""
    process, begun = program
    try:
        said, _ = process.communicate(timeout=_WAIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise BackendError(f"the command did not end in {_WAIT} s; see Ray's logs") from None
    told = said.strip().rpartition(": ")[2]
    return {"seconds": time.perf_counter() - begun, "status": process.returncode, "said": told, "results": len(_results(target))}


def _names(files: int) -> list[str]:
    return [f"{index}.wav" for index in range(files)]


def _results(target: Path) -> list[Path]:
    return [path for path in target.glob("*.safetensors") if not path.name.startswith(".")]


def _values(target: Path, name: str) -> bytes:
    return load_encoded(target / f"{name}.safetensors").values.tobytes()


def _below(pid: int) -> list[int]:
    """The processes that a process began, and theirs."""
    try:
        children = [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    except OSError:  # it has just ended
        return []
    return children + [other for child in children for other in _below(child)]


def _is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker")
    except OSError:
        return False


def render(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run."""
    rows = [
        [
            run["run"],
            " + ".join(map(str, run.get("workers", [1]))),
            str(run.get("there when it died", "")),
            str(run["status"]),
            run["said"],
            str(run["same"]),
            f"{run['seconds']:.1f}",
        ]
        for run in runs
    ]
    header = ("run", "workers of each node", "results when it died", "exit status", "said", "bits of those made alone", "whole run, s")
    return markdown_table(header, rows)


if __name__ == "__main__":
    sys.exit(launch(main))
