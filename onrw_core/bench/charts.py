"""Charts of the benchmarks; matplotlib comes with the extra [bench]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .report import PLAIN

__all__ = ["false_positives_chart", "robustness_chart", "spaces_chart", "speed_chart"]

INCHES_PER_ATTACK = 0.42
DPI = 130


def robustness_chart(report: dict[str, Any], path: Path) -> None:
    """Bit accuracy by attack, and the trade-off between it and PSNR.

    Args:
        report: What `robustness.report` gives.
        path: Image file to write.
    """
    plt = _pyplot()
    systems = report["systems"]
    labels = list(dict.fromkeys(row for s in systems for row in s["attacks"]))
    figure, (bars, trade) = plt.subplots(
        2, 1, figsize=(max(8, INCHES_PER_ATTACK * len(labels) + 2), 9), height_ratios=(3, 2)
    )
    width = 0.8 / len(systems)
    for i, s in enumerate(systems):
        rows = [s["attacks"].get(label) for label in labels]
        positions = [x + (i - (len(systems) - 1) / 2) * width for x, row in enumerate(rows) if row]
        heights = [row["bit_accuracy"] for row in rows if row]
        bars.bar(positions, heights, width, label=f"{s['name']} ({s['psnr']:.1f} dB)")
        for suite, figures in s["suites"].items():
            if suite == PLAIN and len(s["suites"]) > 1:
                continue
            trade.scatter(s["psnr"], figures["bit_accuracy"], color=f"C{i}")
            trade.annotate(f"{s['name']}, {suite}", (s["psnr"], figures["bit_accuracy"]), fontsize=7)
    bars.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    bars.set_ylim(0.45, 1.01)
    bars.set_ylabel("bit accuracy")
    bars.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.suptitle(f"{report['photos']} photos, {report['size']} px")
    trade.set_xlabel("PSNR of the marked image, dB")
    trade.set_ylabel("mean bit accuracy")
    trade.margins(x=0.15)
    _save(figure, path)


def speed_chart(report: dict[str, Any], path: Path) -> None:
    """Seconds to success of both loops, and the time of this library's loop by part."""
    plt = _pyplot()
    figure, (total, parts) = plt.subplots(1, 2, figsize=(10, 4))
    names = ["published loop", "this library"]
    values = [report["published"]["seconds_to_success"], report["ours"]["seconds_to_success"]]
    reached = [report["published"]["success"], report["ours"]["success"]]
    total.barh(names, values)
    for i, (value, success) in enumerate(zip(values, reached, strict=True)):
        total.text(value, i, f" {value:.1f} s" if success else f" > {value:.1f} s", va="center")
    total.set_xlabel("seconds to success, median over photos")
    total.margins(x=0.35)
    left = [0.0, 0.0]
    for part in report["ours"]["breakdown"]:
        seconds = [report[loop]["breakdown"][part] for loop in ("published", "ours")]
        parts.barh(names, seconds, left=left, label=part)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    parts.set_xlabel("seconds an iteration")
    parts.legend(fontsize=7)
    _save(figure, path)


def false_positives_chart(report: dict[str, Any], path: Path) -> None:
    """Empirical against nominal rate of false alarms, with the interval by photo.

    Args:
        report: What `onrw bench false-positives` writes.
        path: Image file to write.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6, 5.5))
    for i, name in enumerate(name for name in ("plain", "search") if name in report):
        rows = [row for row in report[name]["curve"] if row["count"] > 0]
        nominal, rate, low, high = ([row[k] for row in rows] for k in ("nominal", "rate", "low", "high"))
        axes.plot(nominal, rate, color=f"C{i}", label=_readings(name, report[name]))
        axes.fill_between(nominal, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
    ends = [report["plain"]["curve"][i]["nominal"] for i in (0, -1)]
    axes.plot(ends, ends, "k-", linewidth=0.8, label="equal")
    for factor in (0.5, 2):
        axes.plot(ends, [factor * end for end in ends], "k:", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="reported p-value", ylabel="share of unmarked readings at or below it")
    axes.set_title("dotted: factor 2; bands: 95 % by photo", fontsize=9)
    axes.legend()
    _save(figure, path)


def _readings(name: str, of: dict[str, Any]) -> str:
    return f"{name}: {of['readings']:,} readings of {of['photos']:,} unmarked photos"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("charts need matplotlib: `pip install 'onrw[bench]'`, or leave the chart out") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=DPI, format=path.suffix[1:] or "png")
    temporary.replace(path)
    _pyplot().close(figure)


def spaces_chart(report: dict[str, Any], path: Path) -> None:
    """Bit accuracy by suite with intervals, and presence over the strength of purification, one row per mix and budget.

    Args:
        report: What `onrw bench spaces` writes.
        path: Image file to write.
    """
    plt = _pyplot()
    groups = list(dict.fromkeys((row["mix"], row["budget"]) for row in report["rows"]))
    figure, axes = plt.subplots(len(groups), 2, figsize=(11, 3.4 * len(groups)), squeeze=False)
    for (mix, budget), (bars, curve) in zip(groups, axes, strict=True):
        rows = [row for row in report["rows"] if (row["mix"], row["budget"]) == (mix, budget)]
        for i, row in enumerate(rows):
            suites = row["suites"]
            heights = [f["bit_accuracy"] for f in suites.values()]
            errors = [
                [max(0.0, f["bit_accuracy"] - f["interval"][0]) for f in suites.values()],
                [max(0.0, f["interval"][1] - f["bit_accuracy"]) for f in suites.values()],
            ]
            offset = (i - (len(rows) - 1) / 2) * 0.15
            positions = [x + offset for x in range(len(suites))]
            bars.errorbar(positions, heights, errors, fmt="o", capsize=3, label=row["variant"])
            if row["purification"]:
                points = row["purification"]["curve"]
                curve.plot([p["sigma"] for p in points], [p["present"] for p in points], "o-", label=row["variant"])
        bars.set_xticks(range(len(rows[0]["suites"])), list(rows[0]["suites"]))
        bars.set_ylabel("bit accuracy")
        bars.set_title(f"mix {mix}, equal {budget}", fontsize=9)
        bars.legend(fontsize=7)
        curve.set_xlabel("sigma of the purification")
        curve.set_ylabel("presence at 1e-6")
        curve.set_ylim(-0.03, 1.03)
    figure.suptitle(f"{report['photos']} photos, {report['size']} px, {report['target_psnr']:g} dB")
    _save(figure, path)
