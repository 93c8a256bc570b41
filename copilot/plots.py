"""The figures of a trained pair, drawn with matplotlib from what `copilot.inspection` measures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from copilot.inspection import HeldOut, Reliability, Rounds, Step

try:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError("plots need matplotlib, which is missing: pip install 'matplotlib>=3.8'") from error

LOSSES = {"ce": "cross-entropy of the Pilot", "rmse": "RMSE of the Copilot", "copilot_loss": "loss of the Copilot"}
PILOT, PAIR, RIGHT, FAINT = "#6b6b6b", "#1f5fa8", "#c2571a", "#c9c9c9"


def draw_mistakes(rounds: Rounds, losses: dict[str, list[tuple[int, float]]]) -> Figure:
    """Falling mistakes by round and, where there are any, the losses by optimizer step (see `read_losses`)."""
    columns = 2 if losses else 1
    figure = Figure(figsize=(5.2 * columns, 5.4), layout="constrained")
    window = max(len(rounds.number) // 10, 1)
    weights = np.ones(window) / window
    title = "Mistakes of the Pilot" + (f", mean of {window} rounds" if window > 1 else "")
    squares = (r"mean $\Vert\ell\,\Vert^2$ of a token", rounds.squared_error, title)
    rates = ("wrong tokens, %", [100 * rate for rate in rounds.error_rate], "")
    for row, (name, values, heading) in enumerate((squares, rates)):
        axes = _axes(figure, (2, columns, 1 + row * columns), name, "round" if row else "", heading)
        axes.plot(rounds.number, values, ".", color=FAINT, markersize=4)
        middle, mean = (np.convolve(of, weights, "valid") for of in (rounds.number, values))
        axes.plot(middle, mean, color=PILOT)
        axes.set_ylim(bottom=0)
    for row, (name, points) in enumerate(losses.items()):
        heading = "" if row else "Losses"
        axes = _axes(figure, (2, columns, 2 + row * columns), LOSSES[name], "optimizer step" if row else "", heading)
        axes.plot(*zip(*points, strict=True), ".-", color=PILOT if name == "ce" else PAIR, markersize=4)
        axes.set_ylim(bottom=0)
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_corrections(held: HeldOut) -> Figure:
    """How far the Copilot moves the candidates: |p~ - p^|, and |log p~ - log p^| as a share of the logits' range."""
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    probability = _axes(figure, (1, 2, 1), "candidates, %", "|p̃ − p̂|, logarithmic")
    _draw_sizes(probability, held.corrections.abs().double().numpy(), "", logarithmic=True)
    share = _axes(figure, (1, 2, 2), "", "|log p̃ − log p̂|, % of the range of the Pilot's logits")
    _draw_sizes(share, 100 * held.shares.abs().double().numpy(), " %", logarithmic=False)
    candidates, tokens = len(held.corrections), len(held.before[0])
    figure.suptitle(
        f"Corrections of {candidates:,} candidates for {tokens:,} tokens, λ = {held.strength:.3g}", fontsize=11
    )
    return figure


def _draw_sizes(axes: Any, sizes: NDArray[np.float64], unit: str, logarithmic: bool) -> None:
    """A histogram of (N,) sizes with median and 95th percentile; what is 0 or infinite is counted in words."""
    drawn = sizes[(sizes > 0) & np.isfinite(sizes)]
    shares = {"unchanged": np.mean(sizes == 0), "removed": np.mean(np.isinf(sizes))}
    axes.set_title(", ".join(f"{100 * share:.1f} % {name}" for name, share in shares.items() if share), fontsize=9)
    if len(drawn) == 0:
        axes.set(xticks=[], yticks=[])
        return
    edges = np.geomspace(0.9 * drawn.min(), 1.1 * drawn.max(), 61) if logarithmic else np.linspace(0, drawn.max(), 61)
    axes.hist(drawn, edges, weights=np.full(len(drawn), 100 / len(sizes)), color=PAIR, alpha=0.55)
    if logarithmic:
        axes.set_xscale("log")
    for share, height, name in ((50, 0.98, "median"), (95, 0.82, "95 % below")):
        at = np.quantile(sizes, share / 100, method="inverted_cdf")
        if at > 0 and np.isfinite(at):
            axes.axvline(at, color=RIGHT, linewidth=1)
            box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
            where = {"xy": (at, height), "xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
            place = (axes.transData + axes.transAxes.inverted()).transform((at, 0))[0]
            where |= {"xytext": (5, 0), "ha": "left"} if place < 0.7 else {"xytext": (-5, 0), "ha": "right"}
            axes.annotate(f"{name} {at:.2g}{unit}", **where, color=RIGHT, va="top", bbox=box)


def draw_step(step: Step) -> Figure:
    """One decoding step: likeliest tokens before, correction and after, and the Pilot's logit lens."""
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 1, 1.7))
    names = [_quoted(token) for token in step.tokens]
    colours = [RIGHT if index == step.right else PILOT for index in range(len(names))]
    change = step.after - step.before
    most = float(torch.cat([step.before, step.after]).max())
    furthest = max(float(change.abs().max()), 0.001)
    panels = (
        ("Pilot, p̂", step.before, (0, 1.4 * most)),
        ("correction, p̃ − p̂", change, (-1.8 * furthest, 1.8 * furthest)),
        ("Pilot + Copilot, p̃", step.after, (0, 1.4 * most)),
    )
    for place, (title, values, limits) in enumerate(panels):
        axes = _axes(figure, grid[place], title=title)
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.barh(range(len(names)), values.tolist(), color=colours, alpha=0.75, height=0.6)
        axes.axvline(0, color=PILOT, linewidth=0.8)
        axes.set(xlim=limits, ylim=(len(names) - 0.5, -0.5), xticks=[])
        axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names), parse_math=False)
        axes.tick_params(left=False)
        for row, value in enumerate(values.tolist()):
            text = f"{value:+z.3f}".replace("-", "−") if values is change else f"{value:.3f}"
            side = "right" if round(value, 3) < 0 else "left"
            axes.text(value, row, f" {text} ", va="center", ha=side, color=colours[row])
    for label, colour in zip(figure.axes[0].get_yticklabels(), colours, strict=True):
        label.set_color(colour)
    _draw_lens(_axes(figure, grid[3], x="layer", title="logit lens: p̂ by layer of the Pilot"), step, names, colours)
    if step.flipped:
        said = f"The Pilot says {names[0]}, the pair {names[step.right]}, which is right"
    else:
        gain = f"{change[step.right]:+z.3f}"
        said = f"No wrong token is put right; the right token that gains most is {names[step.right]}, {gain}"
    context = step.context if len(step.context) <= 100 else "…" + step.context[-100:]
    figure.suptitle(f"{said}\nafter {_quoted(context)}", fontsize=11, parse_math=False)
    return figure


def _quoted(text: str) -> str:
    """Text in quotes, in ASCII where the font lacks one of its characters."""
    drawable = get_font(findfont(FontProperties())).get_charmap()
    return repr(text) if all(ord(character) in drawable for character in repr(text)) else ascii(text)


def _draw_lens(axes: Any, step: Step, names: list[str], colours: list[str]) -> None:
    layers = range(1, len(step.lens) + 1)
    heights = _apart(step.lens[-1].tolist(), 0.065 * float(step.lens.max()))
    for index in reversed(range(len(names))):
        colour = colours[index] if index in (0, step.right) else FAINT
        axes.plot(layers, step.lens[:, index].tolist(), color=colour, linewidth=1.2 if colour == FAINT else 1.8)
        text = {"color": colours[index], "va": "center", "annotation_clip": False, "parse_math": False}
        axes.annotate(names[index], (layers[-1], heights[index]), (6, 0), textcoords="offset points", **text)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(1, max(len(layers), 2))
    axes.set_ylim(bottom=0)


def _apart(values: list[float], distance: float) -> list[float]:
    """The values moved up until any two of them are at least `distance` apart."""
    moved, lowest = list(values), -np.inf
    for index in np.argsort(values, kind="stable"):
        moved[index] = lowest = max(values[index], lowest + distance)
    return moved


def draw_reliability(before: Reliability, after: Reliability) -> Figure:
    """Confidence against accuracy of the Pilot and of the pair, with 95 % intervals (Wilson), over their histogram."""
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
    axes = _axes(figure, grid[0], "accuracy", "", "Reliability of the most likely token")
    counts = _axes(figure, grid[1], "tokens", "confidence")
    counts.grid(False)
    axes.plot([0, 1], [0, 1], "--", color=FAINT, linewidth=1)
    width = 1 / len(before.count)
    edges = np.arange(len(before.count)) * width
    for place, (name, found, colour) in enumerate((("Pilot", before, PILOT), ("Pilot + Copilot", after, PAIR))):
        full = found.count > 0
        label = f"{name}: ECE {100 * found.error:.1f} %"
        points = found.confidence[full].tolist(), found.accuracy[full].tolist()
        axes.plot(*points, "o-", color=colour, markersize=4, label=label)
        axes.vlines(points[0], *_wilson(found.accuracy[full].numpy(), found.count[full].numpy()), colour, alpha=0.4)
        counts.bar(edges + (0.28 + 0.44 * place) * width, found.count.tolist(), 0.42 * width, color=colour, alpha=0.35)
    axes.legend(frameon=False, loc="lower right", labelcolor="linecolor")
    counts.set_xlim(0, 1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return figure


def _wilson(rate: NDArray[np.float64], count: NDArray[np.int64], z: float = 1.96) -> tuple[Any, Any]:
    """95 % intervals of rates among `count` trials (Wilson, 1927): their lower and their upper ends."""
    middle = rate + z**2 / (2 * count)
    reach = z * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    shrink = 1 + z**2 / count
    return (middle - reach) / shrink, (middle + reach) / shrink


def _axes(figure: Figure, place: Any, y: str = "", x: str = "", title: str = "") -> Any:
    axes = figure.add_subplot(*place) if isinstance(place, tuple) else figure.add_subplot(place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=11)
    return axes


def save(figures: dict[str, Figure], folder: str | Path) -> list[Path]:
    """Write each figure to `folder`/<name>.png; nothing is written unless all can be drawn.

    Raises:
        OSError: a folder that cannot be written to.
    """
    drawn = {}
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        drawn[Path(folder) / f"{name}.png"] = buffer.getvalue()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, content in drawn.items():
        path.write_bytes(content)
    return list(drawn)
