"""Figures for papers, each drawn from a table of `reports.series` or the table of a sweep.

Every function returns a matplotlib Figure with text of 8 points; `width` is in inches, `COLUMN` or `PAGE` wide where it
is None. pyplot is not used, and no setting of matplotlib is changed: the fonts are those of your rcParams.
"""

from raiopt.reports.figures.coordinates import parallel
from raiopt.reports.figures.curves import fooled_against, loss_against, robust_against_epsilon
from raiopt.reports.figures.dots import classes, jobs
from raiopt.reports.figures.files import save_figure, save_figures
from raiopt.reports.figures.maps import confusion_matrix, heatmap
from raiopt.reports.figures.style import COLUMN, PAGE

__all__ = [
    "COLUMN",
    "PAGE",
    "classes",
    "confusion_matrix",
    "fooled_against",
    "heatmap",
    "jobs",
    "loss_against",
    "parallel",
    "robust_against_epsilon",
    "save_figure",
    "save_figures",
]
