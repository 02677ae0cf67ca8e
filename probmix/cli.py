"""The command line: ``probmix demo``, ``fit``, ``select``, ``compare`` and ``report``."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import typer
from typer.core import TyperGroup

from probmix import __version__
from probmix.arguments import Arguments
from probmix.comparison import compare as compare_trees
from probmix.demo import run_demo, write_demo
from probmix.errors import MethodError, ProbmixError
from probmix.inference import EM, MAP, NUTS, SVI, VB, ChEES, Gibbs, Laplace, infer
from probmix.inference.method import AbstractMethod
from probmix.models import GaussianMixture
from probmix.posterior import load_posterior
from probmix.readers import check_writable, read_table
from probmix.reading import Reading
from probmix.report import print_comparison, print_report, write_report
from probmix.results import clear, find_file, open_trees, refuse_overwriting, save_posterior, save_tree
from probmix.selection import select as choose
from probmix.status import FitWarning

__all__ = ["app", "main"]

_METHODS: dict[str, type[AbstractMethod]] = {
    "em": EM,
    "map": MAP,
    "laplace": Laplace,
    "svi": SVI,
    "vb": VB,
    "nuts": NUTS,
    "chees": ChEES,
    "gibbs": Gibbs,
}
_BAD_INPUT = 2
_INTERRUPTED = 130  # as a shell reports Ctrl-C


class MethodName(StrEnum):
    """Values of ``--method``."""

    EM = "em"
    MAP = "map"
    LAPLACE = "laplace"
    SVI = "svi"
    VB = "vb"
    NUTS = "nuts"
    CHEES = "chees"
    GIBBS = "gibbs"


class CovarianceName(StrEnum):
    """Values of ``--covariance``."""

    FULL = "full"
    TIED = "tied"
    DIAGONAL = "diagonal"
    SPHERICAL = "spherical"
    EII = "EII"
    VII = "VII"
    EEI = "EEI"
    VEI = "VEI"
    EVI = "EVI"
    VVI = "VVI"
    EEE = "EEE"
    VEE = "VEE"
    EVE = "EVE"
    VVE = "VVE"
    EEV = "EEV"
    VEV = "VEV"
    EVV = "EVV"
    VVV = "VVV"


class CriterionName(StrEnum):
    """Values of ``--criterion``."""

    BIC = "bic"
    ICL = "icl"
    AIC = "aic"
    AICC = "aicc"
    NEC = "nec"
    EVIDENCE = "evidence"
    LOO = "loo"


class Commands(TyperGroup):
    """Commands whose every refusal is one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of probmix ends it with exit code 2, Ctrl-C with 130."""
        try:
            return super().invoke(ctx)
        except ProbmixError as error:
            _say(f"error: {error}")
            raise typer.Exit(_BAD_INPUT) from error
        except KeyboardInterrupt as stop:  # outside the loop of a fit, which keeps what it has
            _say("interrupted")
            raise typer.Exit(_INTERRUPTED) from stop


app = typer.Typer(
    cls=Commands,
    help="Bayesian mixtures of Gaussians by EM, MAP, Laplace, SVI, VB, NUTS, ChEES or Gibbs, with results for ArviZ.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made if need be, and tried first.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same answer.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad input, 130 after Ctrl-C.

    Args:
        arguments: words of the command; those of the process by default.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        probmix ...
        0
    """
    mpl.use("Agg")  # pictures go to files, on machines without a screen too
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"probmix {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take the options that go before a command."""


@app.command()
def demo(out: OutOption = Path("probmix-demo"), seed: SeedOption = 0, quiet: QuietOption = False) -> None:
    """Fit the Old Faithful geyser data by EM, SVI and NUTS, and compare the three in one table.

    Takes a minute or so. Writes, for each of the three, the fit (.safetensors) and the same for ArviZ (.nc); the table
    (table.txt); and pictures of the NUTS draws.
    """
    check_writable(out)
    with _one_line_warnings():
        readings = run_demo(seed=seed, progress=not quiet)
    _finish(readings, write_demo(readings, out), out, quiet)


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help="Table of numbers: .csv, .tsv, .parquet, .npy or .npz.")],
    components: Annotated[int, typer.Option(help="Number of components of the mixture.")],
    columns: Annotated[str | None, typer.Option(help="Columns to use, e.g. eruptions,waiting; all by default.")] = None,
    method: Annotated[
        MethodName,
        typer.Option(
            help="em, map: the best point. laplace, svi, vb: an approximate posterior. nuts, chees, gibbs: exact draws."
        ),
    ] = MethodName.NUTS,
    covariance: Annotated[CovarianceName, typer.Option(help="Shape of a component.")] = CovarianceName.FULL,
    restarts: Annotated[int | None, typer.Option(help="Starts, the best is kept (em, map, laplace, svi, vb).")] = None,
    chains: Annotated[int | None, typer.Option(help="Independent chains (nuts, gibbs: 4; chees: 64).")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="First iterations of a chain, which are not kept (nuts, chees, gibbs).")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Iterations of a chain that are kept (nuts, chees, gibbs).")] = None,
    target_accept: Annotated[
        float | None, typer.Option(help="Mean acceptance to aim at; raise it if draws diverge (nuts, chees).")
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = Path("result"),
    force: Annotated[bool, typer.Option("--force", help="Replace the result that the folder holds.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a Bayesian mixture of Gaussians to the columns of a file.

    Writes posterior.safetensors, the fit as it was made, for `probmix report` and load_posterior; posterior.nc, the
    same for ArviZ and `probmix compare`, its draws with component labels matched across chains (the attribute 'labels'
    says so); table.txt; and pictures. Ctrl-C ends the fit early and writes what there is.
    """
    given = {"restarts": restarts, "chains": chains, "warmup": warmup, "draws": draws, "target_accept": target_accept}
    settings = _settings(method, given)
    model = GaussianMixture(components, covariance=covariance.value)
    table = read_table(file, columns.split(",") if columns is not None else None)
    Arguments.of(table).checked_by(model)
    if not force:
        refuse_overwriting(out)
    check_writable(out)
    with _one_line_warnings():
        posterior = infer(model, table, settings, seed=seed, progress=not quiet)
    clear(out)
    kept = save_posterior(posterior, out)  # before anything else can go wrong
    readings = {method.upper(): Reading.of(posterior)}
    files = [kept, save_tree(readings[method.upper()].tree, out), *write_report(readings, out)]
    _finish(readings, files, out, quiet)
    if posterior.status.state == "interrupted":
        raise typer.Exit(_INTERRUPTED)


@app.command()
def select(
    file: Annotated[Path, typer.Argument(help="Table of numbers: .csv, .tsv, .parquet, .npy or .npz.")],
    components: Annotated[str, typer.Option(help="Numbers of components, e.g. 1-9 or 2,3,5.")] = "1-9",
    columns: Annotated[str | None, typer.Option(help="Columns to use, e.g. eruptions,waiting; all by default.")] = None,
    covariance: Annotated[
        list[CovarianceName] | None, typer.Option(help="A shape to try; may be repeated. All 14 by default.")
    ] = None,
    criterion: Annotated[CriterionName, typer.Option(help="What to choose by; lower is better.")] = CriterionName.BIC,
    seed: SeedOption = 0,
    out: OutOption = Path("selection"),
    quiet: QuietOption = False,
) -> None:
    """Choose the number of components and the covariance of a mixture of Gaussians.

    Writes selection.csv, every score of every fit; selection.txt, the table that is printed; and selection.png.
    """
    numbers = _numbers(components)
    table = read_table(file, columns.split(",") if columns is not None else None)
    covariances = [name.value for name in covariance] if covariance else None
    folder = check_writable(out)
    with _one_line_warnings():
        chosen = choose(
            GaussianMixture(1), table, components=numbers, covariances=covariances or "all",
            criterion=criterion.value, seed=seed, progress=not quiet,
        )  # fmt: skip
    chosen.table.to_csv(folder / "selection.csv", index=False)
    (folder / "selection.txt").write_text(f"{chosen}\n", encoding="utf-8")
    chosen.plot()
    plt.savefig(folder / "selection.png")
    plt.close()
    if not quiet:
        typer.echo(f"{chosen}\n\nwritten to {folder}: selection.csv, selection.txt, selection.png")


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="Two or more folders of `probmix fit`, or their .nc files.")],
) -> None:
    """Compare results for the same data by leave-one-out cross-validation: which predicts a row best from the others?

    A single point (em, map) has no such score: it has no spread to average over.
    """
    print_comparison(compare_trees(open_trees(results)))


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="A folder of `probmix fit`, or a .safetensors file.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; the result's own by default.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Make the table and the pictures again, from the saved result alone."""
    kept = find_file(result, ".safetensors")
    folder = check_writable(kept.parent if out is None else out)
    posterior = load_posterior(kept)
    readings = {type(posterior.method).__name__: Reading.of(posterior)}
    _finish(readings, write_report(readings, folder), folder, quiet)


def _numbers(text: str) -> list[int]:
    """Read ``1-9`` or ``2,3,5``."""
    found = re.fullmatch(r"(\d+)-(\d+)", text.strip())
    if found:
        return list(range(int(found[1]), int(found[2]) + 1))
    if re.fullmatch(r"\d+(,\d+)*", text.strip()):
        return [int(number) for number in text.split(",")]
    raise MethodError(f"--components: expected numbers such as 1-9 or 2,3,5, got {text!r}. Write them without spaces.")


def _settings(method: MethodName, given: Mapping[str, float | None]) -> AbstractMethod:
    """Return the method with the settings that were given; a setting that it lacks is refused."""
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        having = [other for other, cls in _METHODS.items() if name in inspect.signature(cls).parameters]
        if method not in having:
            option = f"--{name.replace('_', '-')}"
            raise MethodError(
                f"{option} is a setting of --method {' or '.join(having)}, got --method {method}. "
                f"Leave {option} out, or choose another method."
            )
    return _METHODS[method](**chosen)


def _finish(readings: Mapping[str, Reading], files: Sequence[Path], folder: Path, quiet: bool) -> None:
    for name, reading in readings.items():
        if not reading.posterior.status.ok:
            _say(f"warning: {name} {reading.posterior.status}")
    if not quiet:
        print_report(readings)
        typer.echo(f"\nwritten to {folder}: {', '.join(file.name for file in files)}")


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Keep Python from printing how a fit ended, with the line of code: `_finish` says it in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        yield


def _say(text: str) -> None:
    typer.echo(" ".join(text.split()), err=True)
