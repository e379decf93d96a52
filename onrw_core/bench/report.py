"""What the robustness benchmark says: the report as JSON values, and its tables."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from .. import __version__
from .photos import Photo
from .statistics import FPRS, summary, worst
from .systems import System

__all__ = ["PLAIN", "progress", "robustness_report", "tables"]

PLAIN = "none"  # the reading without any attack

Record = dict[str, Any]


def robustness_report(
    systems: list[System], marks: dict[str, list[Record]], readings: dict[str, list[Record]], extra: list[str]
) -> Record:
    """Figures of all systems.

    Args:
        systems: In the order of the tables.
        marks: System name -> records of its marked photos.
        readings: System name -> records of its readings.
        extra: Names of photos that are reported apart (the mosaic).
    """
    rows = []
    for s in systems:
        notes = [n for n in marks[s.name] if n["photo"] not in extra]
        own = [r for r in readings[s.name] if r["photo"] not in extra]
        labels = dict.fromkeys(r["label"] for r in own)
        attacked = [r for r in own if r["suite"] != PLAIN] or own
        rows.append(
            {
                "name": s.name,
                "settings": s.settings(),
                "bits": s.num_bits,
                **{k: fmean(n[k] for n in notes) for k in ("psnr", "ssim", "psnr_flat", "seconds")},
                "ssim_lowest": min(n["ssim"] for n in notes),
                "attacks": {label: summary(r for r in own if r["label"] == label) for label in labels},
                "suites": _by_suite(own),
                "worst_photos": worst(attacked),
                "photos": notes,
                "large": [
                    {"photo": n, "mark": next(m for m in marks[s.name] if m["photo"] == n)}
                    | {"suites": _by_suite(r for r in readings[s.name] if r["photo"] == n)}
                    for n in extra
                ],
            }
        )
    return {
        "version": __version__,
        "photos": len(marks[systems[0].name]) - len(extra),
        "systems": rows,
    }


def _by_suite(records: Iterable[Record]) -> dict[str, Record]:
    records = list(records)
    return {
        name: summary(r for r in records if r["suite"] == name)
        for name in dict.fromkeys(r["suite"] for r in records)
    }


def progress(count: str, system: System, photo: Photo, note: Record, records: list[Record]) -> str:
    """One line for one photo."""
    figures = summary(records)
    return (
        f"{count} {photo.name}: {system.name}: {note['psnr']:.2f} dB, SSIM {note['ssim']:.4f}, "
        f"{note['seconds']:.1f} s; {figures['n']} readings, {100 * figures['bit_accuracy']:.2f} % of the bits"
    )


HEADER = f"{'attack':<32}{'n':>5}{'bits %':>8}{'+-':>6}{'words %':>9}{'ids %':>7}{'TPR 1e-3':>10}{'1e-6':>7}{'s':>7}"


def tables(report: Record) -> str:
    """The report as text."""
    lines = []
    for s in report["systems"]:
        lines += [
            "",
            f"{s['name']}: {s['bits']} bits, {report['photos']} photos of {report['size']} px, PSNR {s['psnr']:.2f} dB "
            f"(flattest 64 x 64: {s['psnr_flat']:.2f}), SSIM {s['ssim']:.4f} (lowest {s['ssim_lowest']:.4f}), "
            f"{s['seconds']:.2f} s to mark",
            HEADER,
        ]
        lines += [_row(label, figures) for label, figures in s["attacks"].items()]
        lines += [_row(f"mean of {name}", f) for name, f in s["suites"].items() if name != PLAIN]
        for large in s["large"]:
            mark = large["mark"]
            lines.append(
                f"{large['photo']}: {mark['psnr']:.2f} dB, SSIM {mark['ssim']:.4f}, {mark['seconds']:.1f} s"
            )
            lines += [_row(f"  {name}", f) for name, f in large["suites"].items()]
        worst_five = ", ".join(f"{photo} {100 * accuracy:.1f} %" for photo, accuracy in s["worst_photos"])
        lines.append(f"worst photos: {worst_five}")
    for name, cases in report.get("adversarial", {}).items():
        lines += ["", f"{name}, adversarial: presence at 1e-6, bits of the message in question, meaning"]
        for c in cases:
            rates = f"{100 * c['present']:>8.1f} %{100 * c['bit_accuracy']:>8.1f} %"
            lines.append(f"{c['case']:<46}{c['n']:>4}{rates}  {c['meaning']}")
    if "false_positives" in report:
        f = report["false_positives"]
        rates = ", ".join(f"{count} at {fpr}" for fpr, count in f["counts"].items())
        lines += [
            "",
            f"false positives in {f['readings']} readings of {f['photos']} unmarked photos: {rates}",
        ]
    return "\n".join(lines)


def _row(label: str, f: Record) -> str:
    tpr = [100 * f[f"tpr_{fpr:g}"] for fpr in FPRS]
    half = "" if f["interval"] != f["interval"] else f"{100 * f['interval']:.2f}"
    return (
        f"{label:<32}{f['n']:>5}{100 * f['bit_accuracy']:>8.2f}{half:>6}{100 * f['word_accuracy']:>9.1f}"
        f"{100 * f['message_rate']:>7.1f}{tpr[0]:>10.1f}{tpr[1]:>7.1f}{f['seconds']:>7.2f}"
    )
