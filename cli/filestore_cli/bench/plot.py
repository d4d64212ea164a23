"""Draw the plot of a measurement. Only this module uses matplotlib, which the extra `plot` installs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.errors import MissingPackage
from filestore.system.metrics import Stage, StageTotals
from filestore_cli.bench.report import CEILINGS, stages_of
from filestore_cli.bench.run import BenchResult, Plan
from filestore_cli.text import for_display, in_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")

_BESIDE = ("loopback", "disk_write_sync")
"""The ceilings that are drawn next to the rates of whole transfers."""
_WAITED_ALPHA = 0.35

_Curves = dict[str, list[tuple[float, float]]]
"""The points of each curve, by its name."""


def check_plot(path: Path) -> None:
    """Raise ClickException or MissingPackage if no plot can be written to `path`.

    It is called before anything takes time.
    """
    if path.suffix.lower() not in FORMATS:
        raise click.ClickException(f"{for_display(path)} is not a name for a plot; give one that ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise click.ClickException(f"there is no folder {for_display(path.parent)} for the plot; make it first")
    if path.is_dir():
        raise click.ClickException(f"{for_display(path)} is a folder; give the path of a file for the plot")
    if find_spec("matplotlib") is None:
        raise MissingPackage("matplotlib", "--plot", "plot")


def plot(plan: Plan, found: BenchResult, path: Path) -> None:
    """Draw the stages of the last measurement, and how throughput depends on the size and on the number of clients."""
    from matplotlib.figure import Figure  # heavy, and an extra

    figure = Figure(figsize=(16, 5.5), layout="constrained")
    figure.suptitle(f"filestore bench {plan.verb}, {plan.kind if plan.path is None else plan.path.name}")
    bars, by_size, by_clients = figure.subplots(1, 3)
    _draw_stages(bars, found)
    sizes: _Curves = {}
    clients: _Curves = {}
    for run in found.runs:
        size = run.size / run.clients
        sizes.setdefault("1 client" if run.clients == 1 else f"{run.clients} clients", []).append((size, run.rate))
        clients.setdefault(f"{in_units(size)} each", []).append((run.clients, run.rate))
    _draw_rates(by_size, sizes, found)
    ticks = sorted({run.size / run.clients for run in found.runs})
    # An empty file of the user has no place on a logarithmic scale.
    by_size.set(xlabel="bytes that each client moves", xscale="log" if ticks[0] else "linear")
    by_size.set_xticks(ticks, [in_units(size) for size in ticks])
    by_size.set_xticks([], minor=True)
    _draw_rates(by_clients, clients, found)
    by_clients.set(xlabel="clients at the same time", xticks=sorted({run.clients for run in found.runs}))
    figure.savefig(path)


def _draw_stages(axes: Axes, found: BenchResult) -> None:
    """Draw a bar for each stage and side. The dark part of a bar is processor time."""
    sides = stages_of(found.runs[-1])
    stages = [stage for stage in Stage if any(stage in passed for passed in sides.values())]
    height = 0.8 / len(sides)
    for number, (side, passed) in enumerate(sides.items()):
        places = [place + number * height for place in range(len(stages))]
        found_here = [passed.get(stage, StageTotals()) for stage in stages]
        color = f"C{number}"
        axes.barh(
            places, [each.seconds for each in found_here], height, color=color, alpha=_WAITED_ALPHA, label=f"{side}, in all"
        )
        axes.barh(places, [each.cpu_seconds for each in found_here], height, color=color, label=f"{side}, processor")
    axes.set_yticks([place + height * (len(sides) - 1) / 2 for place in range(len(stages))], [*stages])
    axes.invert_yaxis()
    axes.set(xlabel="seconds in the last measurement, sum over all threads")
    axes.legend()


def _draw_rates(axes: Axes, curves: _Curves, found: BenchResult) -> None:
    for label, points in curves.items():
        axes.plot([x for x, _ in points], [rate / 1e9 for _, rate in points], marker="o", label=label)
    for number, name in enumerate(_BESIDE):
        axes.axhline(found.ceilings[name] / 1e9, color="grey", linestyle=("--", ":")[number], label=CEILINGS[name])
    axes.set(ylabel="GB/s of content, all clients together")
    axes.set_ylim(bottom=0)
    axes.legend()
