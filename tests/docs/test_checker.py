"""What is wrong in a page is found: in blocks that run, and in those that are only checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import matches, read_blocks
from tests.docs.commands import read_commands
from tests.docs.pages import run_page


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\nimport musicrt\nmusicrt.lead()\n```", "no attribute 'lead'"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```", r"printed:\s+1"),
        ("<!-- needs a server -->\n```python\nfrom musicrt.bulk.serve import deploy\n```", "import deploy"),
        ("<!-- needs a GPU -->\n```python\nimport musicrt\nmusicrt.lead()\n```", r"musicrt\.lead"),
        ("```sh\nmusicrt inspect nothing\n```", "nothing does not exist"),
        ("```sh\nmusicrt systems\n```\n\n```text\nno system at all\n```", r"printed:\s+mucodec"),
        ("```sh\nls\n```", "ls is not run in tests"),
        ("<!-- needs a GPU -->\n```sh\nmusicrt decode BUNDLE a.enc out.wav --stps 3\n```", "--stps"),
        ("<!-- needs a GPU -->\n```sh\nmusicrt decode BUNDLE a.enc out.wav --steps many\n```", "many|integer"),
        ("<!-- needs a GPU -->\n```sh\nA=1 musicrt decode BUNDLE a.enc out.wav && musicrt decode BUNDLE a.enc\n```", "(?i)missing .*out"),
        ("<!-- needs a server -->\n```sh\nray job submit -- musicrt batch encode --input here\n```", "(?i)missing .*bundle"),
        ("<!-- needs a server -->\n```sh\nmusicrt serve\n```", "serve"),
        ("<!-- installs -->\n```sh\npip install 'musicrt[cpu,gpu]'\n```", "cpu,gpu"),
        ("<!-- installs -->\n```sh\npython -m benchmarks.nothing\n```", r"benchmarks\.nothing"),
        ("<!-- installs -->\n```sh\nscripts/nothing\n```", "scripts/nothing"),
        ("<!-- because -->\n```sh\nmusicrt doctor\n```", "because|none of"),
        ("```python\nprint(1)\n", "does not end"),
    ],
)
def test_a_fault_is_found(block: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=error):
        run_page(f"# Page\n\n{block}\n", "page", monkeypatch)


def test_an_error_says_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("# Page\n\n```python\na = 1\n```\n\n```python\n\na / 0\n```\n", "page.md", monkeypatch)
    assert caught.value.__notes__ == ["page.md, line 8"]
    assert caught.traceback[-1].lineno == 8  # from 0 on


def test_blocks_and_commands_of_a_page() -> None:
    first, second = read_blocks("<!-- installs -->\n```sh\nA=b one 'two three' \\\n  four # five\nsix | seven\n```\n\n```python\n1\n```\n")
    assert (first.reason, first.line, second.reason, second.line) == ("installs", 3, None, 9)
    commands = list(read_commands(first.text))
    assert [command.words for command in commands] == [["one", "two three", "four"], ["six"], ["seven"]]
    assert commands[0].settings == {"A": "b"}


def test_what_is_printed_may_be_left_out() -> None:
    assert matches("a … c\n… 1.5", "a b\nc\nd 1.5\n")
    assert not matches("a … c", "a b c d")
    assert not matches("1.5", "145")
