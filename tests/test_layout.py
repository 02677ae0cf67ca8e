"""The house rules that a reader relies on, read off the source; each rule is shown to catch a breach."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import FRONT, ROOMS, ROOT, module_names, scripts, sources, tree

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOP_LEVEL = {
    "probmix", "models", "inference", "tests", "tutorials", "benchmarks", ".ci", ".git", ".gitignore",
    ".pre-commit-config.yaml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "constraints.txt",
    "pyproject.toml", "setup.cfg",
}  # fmt: skip

# --- the rules: (module name, syntax tree) -> breaches --------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[str, ast.Module], Iterator[str]]


def imported(node: ast.AST) -> Iterator[str]:
    """Every dotted name that one import statement may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imported(code: ast.AST) -> Iterator[str]:
    return (name for node in ast.walk(code) for name in imported(node))


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imports_run_one_way(module: str, code: ast.Module) -> Iterator[str]:
    if module in FRONT:
        return
    room = next((r for r in ("probmix.models", "probmix.inference") if inside(module, r)), None)
    closed = {"probmix.models", "probmix.inference", *FRONT} - {room}
    yield from (name for name in all_imported(code) if any(inside(name, package) for package in closed))


def imports_are_absolute(module: str, code: ast.Module) -> Iterator[str]:
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: from {'.' * node.level}{node.module or ''}"
    yield from (name for name in all_imported(code) if name.split(".")[0] in ("models", "inference"))


def own_imports_are_at_the_top(module: str, code: ast.Module) -> Iterator[str]:
    for function in ast.walk(code):
        if isinstance(function, Function):
            yield from (f"{function.name}: {name}" for name in all_imported(function) if inside(name, "probmix"))


def nothing_is_pickled(module: str, code: ast.Module) -> Iterator[str]:
    picklers = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = {"torch.save", "torch.load", "pd.read_pickle", "pyro.get_param_store().save"}
    yield from (name for name in all_imported(code) if name.split(".")[0] in picklers)
    for node in ast.walk(code):
        if isinstance(node, ast.Call) and (ast.unparse(node.func) in calls or "to_pickle" in ast.unparse(node.func)):
            yield f"line {node.lineno}: {ast.unparse(node.func)}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", None) is True:
            yield f"line {node.value.lineno}: allow_pickle=True"


def functions_are_short(module: str, code: ast.Module) -> Iterator[str]:
    for node in ast.walk(code):
        if isinstance(node, Function):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            if lines > 60:
                yield f"{node.name}: {lines} lines"


def the_data_stay_where_they_are(module: str, code: ast.Module) -> Iterator[str]:
    """A copy to the host in a formula stalls an accelerator once per call."""
    if not (inside(module, "probmix.models") or module in {"probmix.conjugate", "probmix.covariance"}):
        return
    for node in ast.walk(code):
        name = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
        if name in {"cpu", "item", "tolist", "numpy"}:
            yield f"line {node.lineno}: .{name}()"


def forbidden_words() -> dict[str, str]:
    """Forbidden word -> the one to use, from the table of words in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("| say | never |")[1].split("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    return {word: say.strip() for say, never in rows for word in re.findall(r"`(\w+)`", never)}


def words_are_the_agreed_ones(module: str, code: ast.Module) -> Iterator[str]:
    if module.startswith("probmix.estimators"):  # they speak the language of scikit-learn
        return
    words = forbidden_words()
    for owner, name in public_words(code.body):
        if name in words:
            yield f"{owner}({name}): say {words[name]}"


def public_words(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, str]]:
    """Parameters of public functions and methods, and fields of public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_words(node.body, f"{owner}{node.name}.")
        elif isinstance(node, Function) and (not node.name.startswith("_") or node.name in {"__init__", "__call__"}):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield from ((owner + node.name, argument.arg) for argument in arguments)
        elif owner and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield owner.rstrip("."), node.target.id


def names_what_is_public(module: str, code: ast.Module) -> Iterator[str]:
    targets = [t for n in code.body if isinstance(n, ast.Assign | ast.AnnAssign) for t in getattr(n, "targets", [n])]
    names = {ast.unparse(getattr(target, "target", target)) for target in targets}
    if "__all__" not in names and not module.endswith("__main__"):
        yield "no __all__"


BREACHES: list[tuple[Rule, str, str]] = [
    (imports_run_one_way, "probmix.models.a", "from probmix.inference.em import EM"),
    (imports_run_one_way, "probmix.models.a", "import probmix.cli"),
    (imports_run_one_way, "probmix.inference.a", "def f():\n    import probmix.models.gaussian_mixture"),
    (imports_run_one_way, "probmix.a", "from probmix import models"),
    (imports_run_one_way, "probmix.a", "from probmix.demo import main"),
    (imports_are_absolute, "probmix.a", "from .errors import DataError"),
    (imports_are_absolute, "probmix.a", "from models.gaussian_mixture import GaussianMixture"),
    (own_imports_are_at_the_top, "probmix.a", "def f():\n    from probmix.errors import DataError"),
    (nothing_is_pickled, "probmix.a", "import pickle"),
    (nothing_is_pickled, "probmix.a", "torch.load(path, weights_only=True)"),
    (nothing_is_pickled, "probmix.a", "frame.to_pickle(path)"),
    (nothing_is_pickled, "probmix.a", "np.load(path, allow_pickle=True)"),
    (functions_are_short, "probmix.a", "def f():\n" + "    a = 1\n" * 61),
    (the_data_stay_where_they_are, "probmix.models.a", "loc.mean().item()"),
    (words_are_the_agreed_ones, "probmix.a", "def f(x, *, sigma): ..."),
    (words_are_the_agreed_ones, "probmix.a", "class A:\n    scale: float"),
    (words_are_the_agreed_ones, "probmix.a", "class A:\n    def __init__(self, n_components): ..."),
    (names_what_is_public, "probmix.a", "def f(): ..."),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in BREACHES))


@pytest.mark.parametrize(("rule", "module", "text"), BREACHES)
def test_a_breach_is_seen(rule, module, text):
    assert list(rule(module, ast.parse(text)))


@pytest.mark.parametrize("rule", RULES)
def test_the_packages_keep(rule):
    assert {m: found for m, file in sources().items() if (found := list(rule(m, tree(file))))} == {}


@pytest.mark.parametrize("rule", [imports_are_absolute, functions_are_short])
def test_tests_tutorials_and_benchmarks_keep(rule):
    assert {str(f): found for f in scripts() if (found := list(rule(f.stem, tree(f))))} == {}


def test_files_are_short():
    lines = {str(f.relative_to(ROOT)): len(f.read_bytes().splitlines()) for f in [*sources().values(), *scripts()]}
    assert {name: n for name, n in lines.items() if n > 500} == {}


# --- the rooms ------------------------------------------------------------------------------------------------------


def test_nothing_unexpected_at_the_top():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    entries = {entry.name for entry in ROOT.iterdir() if not any(fnmatch.fnmatch(entry.name, i) for i in ignored)}
    assert entries - TOP_LEVEL == set()


def test_rooms_are_flat():
    folders = {str(f.relative_to(ROOT)) for room in ROOMS.values() for f in room.iterdir() if f.is_dir()}
    assert {name for name in folders if "__pycache__" not in name} == {"probmix/data"}


@pytest.mark.parametrize("room", ["models", "inference"])
def test_a_room_imported_under_its_folder_name_says_the_right_name(room):
    run = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"ImportError: these files are the package probmix.{room}: write 'from probmix.{room} import" in run.stderr


def test_python_finds_every_source_file_by_its_mapped_name():
    assert set(module_names()) == {name for name in sources() if not name.endswith("__main__")}


def test_everything_public_has_a_docstring_of_its_own():
    missing = []
    for name in module_names():
        module = importlib.import_module(name)
        missing += [name] if not module.__doc__ else []
        for public in module.__all__:
            thing = getattr(module, public)
            if (isinstance(thing, type) or hasattr(thing, "__code__")) and not vars(thing).get(
                "__doc__", thing.__doc__
            ):
                missing.append(f"{name}.{public}")
    assert missing == []


# --- imports leave no trace -----------------------------------------------------------------------------------------


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("name", ["probmix", "probmix.arviz"])
def test_importing_does_not_load_torch(name):
    assert python(f"import sys, {name}; print('torch' in sys.modules)").strip() == "False"


SIDE_EFFECTS = """
import importlib, logging, random, warnings
import arviz, gpytorch, matplotlib, numpy, pandas, pyro  # theirs do not count
import rich.console, scipy.stats, torch, tqdm, typer
from house import module_names
def state():
    return {
        "dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(),
        "seed": torch.random.get_rng_state().sum().item(), "random": random.getstate(),
        "numpy": str(numpy.random.get_state()), "validate": torch.distributions.Distribution._validate_args,
        "store": list(pyro.get_param_store()), "plots": dict(matplotlib.rcParams), "backend": matplotlib.get_backend(),
        "logging": (logging.root.level, list(logging.root.handlers)), "warnings": list(warnings.filters),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
before = state()
for name in module_names():
    importlib.import_module(name)
print([name for name, value in state().items() if value != before[name]])
"""


def test_importing_everything_changes_nothing_for_the_caller():
    assert python(SIDE_EFFECTS).strip() == "[]"


# --- what is declared and what is shipped ---------------------------------------------------------------------------


def third_party() -> set[str]:
    """What the packages import, or name as the ``engine`` that another library is to load."""
    trees = [tree(file) for file in sources().values()]
    names = {name.split(".")[0] for code in trees for name in all_imported(code)}
    keywords = [node for code in trees for node in ast.walk(code) if isinstance(node, ast.keyword)]
    engines = {k.value.value for k in keywords if k.arg == "engine" and isinstance(k.value, ast.Constant)}
    return (names | engines) - set(sys.stdlib_module_names) - {"probmix"}


def test_dependencies_are_honest():
    import_names = {"linear-operator": "linear_operator", "pyro-ppl": "pyro", "scikit-learn": "sklearn"}
    declared = {re.split(r"[\s<>=!~\[;]", dependency)[0] for dependency in PROJECT["dependencies"]}
    assert {import_names.get(name, name) for name in declared} == third_party()


def test_what_is_declared_is_pinned():
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\s<>=!~\[;]", dependency)[0] for dependency in wanted} - {"probmix"}
    assert names - pins == set()


def test_the_two_places_of_the_version_agree():
    assert importlib.import_module("probmix").__version__ == PROJECT["version"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A folder with the source archive and the wheel, built by setuptools alone from a copy of the tree."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for entry in ("probmix", "models", "inference"):
        shutil.copytree(ROOT / entry, copy / entry, ignore=shutil.ignore_patterns("__pycache__"))
    for entry in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / entry, copy)
    code = f"from setuptools import build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})"
    run = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out


def test_the_wheel_holds_the_three_packages_their_data_and_nothing_else(shipped):
    wheel = next(shipped.glob("*.whl"))
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {"probmix" + folder + file.name for package, folder, file in shipped_files()}
    tables = {f"probmix/data/{file.name}" for file in (ROOT / "probmix/data").glob("*.csv")}
    assert {f"probmix/data/{name}.csv" for name in ("faithful", "galaxies", "iris", "wine")} <= tables
    assert names - {"probmix/data/README.md"} == modules | tables | {"probmix/py.typed"}


def shipped_files() -> Iterator[tuple[str, str, Path]]:
    for package, folder in ROOMS.items():
        for file in folder.glob("*.py"):
            yield package, package.removeprefix("probmix").replace(".", "/") + "/", file


def test_the_source_archive_can_make_the_wheel(shipped):
    with tarfile.open(next(shipped.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {str(file.relative_to(ROOT)) for file in sources().values()}
    assert needed | {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "probmix/data/wine.csv"} <= names
