import json
import math

from onrw_core.strict_json import to_json


def test_what_is_not_finite_is_null():
    value = {"psnr": math.inf, "parts": [1.5, -math.inf, {"p": math.nan}], "name": "Äpfel", "found": True}
    text = to_json(value)
    strict = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert strict == {"psnr": None, "parts": [1.5, None, {"p": None}], "name": "Äpfel", "found": True}
    assert "Äpfel" in text
