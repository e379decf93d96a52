import torch

from onrw_core.bench.judges import judged
from onrw_core.bench.visible import PLACE, attacks_report, contact_sheet, visible_report, visible_table
from onrw_core.imaging.rounding import round_8bit


def pair():
    generator = torch.Generator().manual_seed(0)
    original = round_8bit(0.3 + 0.4 * torch.rand(3, 150, 131, generator=generator).mean(0).expand(3, -1, -1))
    marked = round_8bit(original + 0.004 * torch.randn(3, 150, 131, generator=generator))
    marked[:, 100:104, 20:24] = round_8bit(original[:, 100:104, 20:24] + 12 / 255)
    return marked, original


def test_the_judges_find_the_worst_place():
    marked, original = pair()
    record = judged(marked, original)
    assert record["peak"] == 12
    assert all(abs(found - there) <= 4 for found, there in zip(record["worst_at"], (102, 22), strict=True))
    assert judged(original, original)["worst"] < 0.01 < record["worst"]
    if record["ssimulacra2_reference"] is not None:
        assert abs(record["ssimulacra2_reference"] - record["ssimulacra2"]) < 0.01


def test_report_table_and_contact_sheet():
    marked, original = pair()
    readings = [
        {"photo": "a", "suite": suite, "label": label, "accuracy": bits, "log10_match": match, "log10_presence": -9.0}
        for suite, label, bits, match in (
            ("none", "none", 0.0, 0.0),
            ("onrw12", "blur=1", 1.0, -14.0),
            ("onrw12", "blur=1", 0.5, 0.0),
        )
    ]
    rows = visible_report({"a": judged(marked, original)}, readings, {"a": "anime"})
    assert (rows[0]["kind"], rows[0]["bits"], rows[0]["positive"]) == ("anime", 0.75, 0.5)
    attacks = attacks_report(readings)
    assert attacks["blur=1"] == {"bits": 0.75, "lowest": 0.5, "positive": 0.5} and attacks["none"]["bits"] == 0
    text = visible_table({"judges": {}, "systems": [{"name": "ONRW", "pictures": rows, "attacks": attacks}]})
    assert "anime" in text and "75.0" in text and "worst of 1" in text and "blur=1" in text
    sheet = contact_sheet(rows, {"a": (original, marked)})
    assert sheet.height > 3 * PLACE and sheet.width >= 6 * PLACE
