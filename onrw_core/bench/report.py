"""The report of the robustness benchmark: JSON values and tables."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from .. import __version__
from .photos import Photo
from .regeneration import PURIFY, lost_at
from .statistics import FPRS, bootstrap, by_photo, present, public_summary, summary, worst
from .systems import AtQuality, Onrw, System

__all__ = ["PLAIN", "against", "progress", "purification_curve", "robustness_report", "tables"]

PLAIN = "none"  # the reading without any attack
STRICT_FPR = min(FPRS)
EQUAL_PSNR = 0.05  # dB by which the quality of two systems may differ
MEANS = ("ssimulacra2", "worst", "psnr", "ssim", "psnr_flat", "seconds")  # figures of a mark, averaged over photos

Record = dict[str, Any]


def robustness_report(
    systems: list[System], marks: dict[str, list[Record]], readings: dict[str, list[Record]], extra: list[str]
) -> Record:
    """The figures of all systems.

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
                **{k: fmean(n[k] for n in notes) for k in MEANS},
                "ssimulacra2_lowest": min(n["ssimulacra2"] for n in notes),
                "worst_highest": max(n["worst"] for n in notes),
                "ssim_lowest": min(n["ssim"] for n in notes),
                "attacks": {label: summary(r for r in own if r["label"] == label) for label in labels},
                "suites": _by_suite(own),
                "public": _public(s, own),
                "purification": purification_curve(own),
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
        "against": against(systems, rows, readings),
    }


def _public(system: System, records: list[Record]) -> Record:
    """Suite -> what the public layer of this library's marks said, where it was read."""
    if not isinstance(system, Onrw):
        return {}
    label = system.settings_.label
    suites = dict.fromkeys(r["suite"] for r in records)
    found = {name: public_summary((r for r in records if r["suite"] == name), label) for name in suites}
    return {name: figures for name, figures in found.items() if figures is not None}


def purification_curve(records: Iterable[Record]) -> Record | None:
    """Presence at the strictest rate over the strength of the purification, and where it is lost; None without it."""
    purified = [r for r in records if r["label"].startswith(PURIFY)]
    if not purified:
        return None
    curve = []
    for sigma in sorted({_sigma(r) for r in purified}):
        of_sigma = [r for r in purified if _sigma(r) == sigma]
        accuracy = fmean(r["accuracy"] for r in of_sigma)
        curve.append({"sigma": sigma, "present": fmean(present(r, STRICT_FPR) for r in of_sigma), "accuracy": accuracy})
    lost = lost_at([(point["sigma"], point["present"]) for point in curve])
    return {"fpr": STRICT_FPR, "curve": curve, "lost_at": lost}


def _sigma(record: Record) -> float:
    return float(record["label"].removeprefix(PURIFY))


def against(systems: list[System], rows: list[Record], readings: dict[str, list[Record]]) -> list[Record]:
    """Each system of this library compared with each peer of equal or lower PSNR, or of equal SSIMULACRA2.

    With another's decoder it is compared with that decoder's own encoder alone, with the keyed one with all.

    Args:
        systems: All of a run.
        rows: Theirs in the report.
        readings: By name of system.

    Returns:
        Per pair: the mean difference of the bit accuracy in each suite with its interval by photo, the attack with the
        least one, and the attacks where it falls short: where the whole interval of the difference is below zero.
    """
    pairs = []
    ours = [(s, row) for s, row in zip(systems, rows, strict=True) if isinstance(s, Onrw)]
    peers = [(s, row) for s, row in zip(systems, rows, strict=True) if not isinstance(s, Onrw)]
    for s, row in ours:
        for peer, beside in peers:
            if isinstance(peer, AtQuality):
                if peer.quality != s.settings_.quality:
                    continue
            elif row["psnr"] < beside["psnr"] - EQUAL_PSNR:
                continue
            if s.extractor.name not in ("keyed", peer.name.lower()) or (s.like not in (None, peer)):
                continue
            mine, theirs = readings[s.name], readings[peer.name]
            attacks = {label: _difference(mine, theirs, "label", label) for label in beside["attacks"]}
            suites = {suite: _difference(mine, theirs, "suite", suite) for suite in beside["suites"]}
            margins = {label: f["margin"] for label, f in attacks.items()}
            worst_label = min(margins, key=margins.get)
            pairs.append(
                {
                    "system": s.name,
                    "peer": peer.name,
                    "psnr_margin": row["psnr"] - beside["psnr"],
                    "suites": suites,
                    "lowest": {"attack": worst_label, "margin": margins[worst_label]},
                    "short": [label for label, f in attacks.items() if f["interval"][1] < 0],
                }
            )
    return pairs


def _difference(mine: list[Record], theirs: list[Record], field: str, value: str) -> Record:
    """Mean difference of the bit accuracy over the readings of one attack or suite, and its interval by photo."""
    a, b = (by_photo(r for r in records if r[field] == value) for records in (mine, theirs))
    differences = [a[photo] - b[photo] for photo in b]
    return {"margin": fmean(differences), "interval": bootstrap(differences)}


def _by_suite(records: Iterable[Record]) -> dict[str, Record]:
    records = list(records)
    return {
        name: summary(r for r in records if r["suite"] == name) for name in dict.fromkeys(r["suite"] for r in records)
    }


def progress(count: str, system: System, photo: Photo, note: Record, records: list[Record]) -> str:
    """One line for one photo."""
    figures = summary(records)
    return (
        f"{count} {photo.name}: {system.name}: {_visibility(note)}, {note['seconds']:.1f} s; {figures['n']} readings, "
        f"{100 * figures['bit_accuracy']:.2f} % of the bits"
    )


def _visibility(note: Record) -> str:
    return f"SSIMULACRA2 {note['ssimulacra2']:.1f}, worst place {note['worst']:.1f}, PSNR {note['psnr']:.2f} dB"


HEADER = f"{'attack':<32}{'n':>5}{'bits %':>8}{'+-':>6}{'words %':>9}{'ids %':>7}{'TPR 1e-3':>10}{'1e-6':>7}{'s':>7}"


def tables(report: Record) -> str:
    """The report as text."""
    lines = []
    for s in report["systems"]:
        lines += [
            "",
            f"{s['name']}: {s['bits']} bits, {report['photos']} photos of {report['size']} px, "
            f"SSIMULACRA2 {s['ssimulacra2']:.1f} (lowest {s['ssimulacra2_lowest']:.1f}), worst place {s['worst']:.1f} "
            f"(highest {s['worst_highest']:.1f}), PSNR {s['psnr']:.2f} dB (flattest 64 x 64: {s['psnr_flat']:.2f}), "
            f"SSIM {s['ssim']:.4f} (lowest {s['ssim_lowest']:.4f}), {s['seconds']:.2f} s to mark",
            HEADER,
        ]
        lines += [_row(label, figures) for label, figures in s["attacks"].items()]
        lines += [_row(f"mean of {name}", f) for name, f in s["suites"].items() if name != PLAIN]
        lines += [
            f"public layer, {name}: label right {100 * f['right']:.1f} %, "
            + ("" if f["without"] is None else f"message without label {100 * f['without']:.1f} %, ")
            + f"wrong label {f['wrong']}, of {f['n']} readings"
            for name, f in s["public"].items()
        ]
        for large in s["large"]:
            mark = large["mark"]
            lines.append(f"{large['photo']}: {_visibility(mark)}, SSIM {mark['ssim']:.4f}, {mark['seconds']:.1f} s")
            lines += [_row(f"  {name}", f) for name, f in large["suites"].items()]
        if s["purification"]:
            points = ", ".join(f"{p['sigma']:g}: {100 * p['present']:.0f} %" for p in s["purification"]["curve"])
            lost = s["purification"]["lost_at"]
            end = "never lost" if lost is None else f"lost at sigma {lost:.2f}"
            lines.append(f"presence at {s['purification']['fpr']:g} after purification by sigma {points}; {end}")
        worst_five = ", ".join(f"{photo} {100 * accuracy:.1f} %" for photo, accuracy in s["worst_photos"])
        lines.append(f"worst photos: {worst_five}")
    if report["against"]:
        lines += [
            "",
            "compared with peers at equal or better PSNR, or at equal SSIMULACRA2: bits of ONRW less bits of the peer, "
            "per cent, with interval",
        ]
    for pair in report["against"]:
        means = ", ".join(
            f"{suite} {100 * f['margin']:+.2f} [{100 * f['interval'][0]:+.2f}, {100 * f['interval'][1]:+.2f}]"
            for suite, f in pair["suites"].items()
        )
        low = pair["lowest"]
        short = f"; falls short on {', '.join(pair['short'])}" if pair["short"] else "; falls short nowhere"
        lines.append(
            f"{pair['system']} / {pair['peer']} ({pair['psnr_margin']:+.2f} dB): {means}; "
            f"lowest {100 * low['margin']:+.2f} on {low['attack']}{short}"
        )
    return "\n".join(lines)


def _row(label: str, f: Record) -> str:
    tpr = [100 * f[f"tpr_{fpr:g}"] for fpr in FPRS]
    half = "" if f["interval"] != f["interval"] else f"{100 * f['interval']:.2f}"
    return (
        f"{label:<32}{f['n']:>5}{100 * f['bit_accuracy']:>8.2f}{half:>6}{100 * f['word_accuracy']:>9.1f}"
        f"{100 * f['message_rate']:>7.1f}{tpr[0]:>10.1f}{tpr[1]:>7.1f}{f['seconds']:>7.2f}"
    )
