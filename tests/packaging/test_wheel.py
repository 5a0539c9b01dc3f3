"""What is shipped: sdist -> wheel holds the package as git tracks it, and works where only the wheel is."""

from __future__ import annotations

import email.message
import email.parser
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import musicrt

ROOT = Path(__file__).parents[2]
METADATA = f"musicrt-{musicrt.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built through an sdist, from a copy of what git has or would take, so that the checkout stays clean."""
    for module in ("build", "setuptools"):
        pytest.importorskip(module)
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in git_files("."):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; its dependencies are those of this environment."""
    pytest.importorskip("pip")
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target), str(wheel))
    return target


def run(*command: str, cwd: Path | None = None, path: Path | None = None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git_files(folder: str) -> list[str]:
    """Files that git tracks or would add, and that are there."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder, cwd=ROOT)
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.parser.Parser().parsestr(archive.read(f"{METADATA}/METADATA").decode())


def test_wheel_is_pure_and_named_after_the_version(wheel: Path) -> None:
    assert wheel.name == f"musicrt-{musicrt.__version__}-py3-none-any.whl"


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    tracked = git_files("musicrt")
    for name in (
        "py.typed",
        "cli/app.py",
        "bundles/music2latent-nano/manifest.json",
        "runtime/cuda/sources/choose.cu",
        "runtime/models/music2latent/README.md",
    ):
        assert f"musicrt/{name}" in tracked
    with zipfile.ZipFile(wheel) as archive:
        packed = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    own = {name: data for name, data in packed.items() if not name.startswith(f"{METADATA}/")}
    assert sorted(own) == tracked
    assert [name for name, data in own.items() if data != (ROOT / name).read_bytes()] == []


def test_licence_is_packed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        licence = archive.read(f"{METADATA}/licenses/LICENSE").decode()
    assert licence == (ROOT / "LICENSE").read_text()
    assert metadata_of(wheel)["License-Expression"] == "MIT"


def test_requirements_are_those_of_the_project(wheel: Path) -> None:
    metadata, project = metadata_of(wheel), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    expected = {Requirement(line) for line in project["dependencies"]}
    expected |= {Requirement(f'{line}; extra == "{extra}"') for extra, lines in extras.items() for line in lines}
    assert {Requirement(line) for line in metadata.get_all("Requires-Dist", [])} == expected
    assert metadata.get_all("Provides-Extra") == list(extras)
    assert metadata["Requires-Python"] == project["requires-python"]


def test_entry_point_is_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{METADATA}/entry_points.txt").decode() == "[console_scripts]\nmusicrt = musicrt.cli:main\n"


def test_installed_command_lists_systems(installed: Path, tmp_path: Path) -> None:
    (script,) = (installed / "bin").iterdir()
    assert script.name == "musicrt"
    expected = run(sys.executable, "-m", "musicrt.cli", "systems", cwd=tmp_path, path=ROOT)
    assert "\nmusic2latent\n" in expected
    assert run(sys.executable, "-m", "musicrt.cli", "systems", cwd=tmp_path, path=installed) == expected
    assert run(str(script), "systems", cwd=tmp_path, path=installed) == expected


def test_installed_package_finds_its_own_bundle(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code = "import musicrt, numpy; codec = musicrt.load(); print(musicrt.EMBEDDED, codec.encode(numpy.zeros(9000, 'f')).shape)"
    place, shape = run(sys.executable, "-c", code, cwd=tmp_path, path=installed).rstrip().split(" ", 1)
    assert Path(place).is_relative_to(installed)
    assert shape.startswith("(1, ")
