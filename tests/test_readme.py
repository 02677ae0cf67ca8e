"""What README.md tells the reader to type exists: commands, options, imports, files."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from house import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SETUP = "pip install -e . -c constraints.txt && python -m probmix demo"
TEST = 'pip install -e ".[test]" -c constraints.txt && pytest -n auto'
OWN_FILES = ("README.md", "CONTRIBUTING.md")

needs_cli = pytest.mark.skipif(importlib.util.find_spec("probmix.cli") is None, reason="no command line yet")


def fences(languages: set[str], file: str = "README.md") -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return [body for language, body in FENCE.findall(text) if language in languages]


def command_lines() -> list[str]:
    """Lines of the shell blocks, without prompts, with continued lines joined."""
    text = "".join(fences({"bash", "sh", "shell", "console", ""})).replace("\\\n", " ")
    return [line.removeprefix("$ ").strip() for line in text.splitlines() if line.strip()]


def probmix_calls() -> list[list[str]]:
    """The arguments of every call of the command line."""
    parts = [part for line in command_lines() for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    calls = [w[1:] for w in words if w[:1] == ["probmix"]]
    return calls + [w[3:] for w in words if w[:3] == ["python", "-m", "probmix"]]


@pytest.mark.parametrize("command", [SETUP, TEST])
def test_two_commands_do_all_the_setup(command):
    assert command_lines().count(command) == 1


@needs_cli
def test_commands_and_options_of_the_readme_exist():
    commands = cli_commands()
    calls = probmix_calls()
    assert {"demo", "fit", "compare", "report"} <= {call[0] for call in calls}
    assert [problem for call in calls for problem in problems(call, commands)] == []


@needs_cli
def test_a_wrong_command_or_option_is_seen():
    commands = cli_commands()
    assert problems(["fitt", "a.csv"], commands) == ["no command fitt"]
    assert problems(["fit", "a.csv", "--compnents", "2"], commands) == ["fit has no option --compnents"]


def cli_commands() -> dict[str, object]:
    typer, cli = importlib.import_module("typer"), importlib.import_module("probmix.cli")
    return dict(typer.main.get_command(cli.app).commands)


def problems(call: list[str], commands: dict[str, object]) -> list[str]:
    name = call[0]
    if name not in commands:
        return [f"no command {name}"]
    known = {"--help", *(option for parameter in commands[name].params for option in parameter.opts)}
    known |= {option for parameter in commands[name].params for option in parameter.secondary_opts}
    options = [word.split("=")[0] for word in call[1:] if word.startswith("-")]
    return [f"{name} has no option {option}" for option in options if option not in known]


def own_imports(code: str) -> list[tuple[str, str]]:
    nodes = [
        n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom) and str(n.module).startswith("probmix")
    ]
    return [(str(node.module), alias.name) for node in nodes for alias in node.names]


@pytest.mark.parametrize("file", OWN_FILES)
def test_python_blocks_parse_and_import_what_exists(file):
    found = [pair for block in fences({"python", "py"}, file) for pair in own_imports(block)]
    assert file != "README.md" or found, "README.md shows no Python"
    assert [pair for pair in found if not hasattr(importlib.import_module(pair[0]), pair[1])] == []


@pytest.mark.parametrize("file", OWN_FILES)
def test_links_and_pictures_within_the_repository_exist(file):
    text = FENCE.sub("", (ROOT / file).read_text(encoding="utf-8"))
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not target.startswith(("http:", "https:", "mailto:"))]
    assert [target for target in local if not Path(ROOT / target).exists()] == []
