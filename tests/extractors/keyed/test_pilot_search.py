"""The pilot's search: its geometry is refined, its weights sum to one, and nothing is found where nothing is."""

import pytest
import torch

from onrw_core.extractors.keyed import pilot_search
from onrw_core.extractors.keyed.hypotheses import Hypothesis
from onrw_core.extractors.keyed.pilot_search import PilotSearch, detect
from onrw_core.imaging.geometry import Geometry

from .synthetic import marked, rotated

SIDE = 320
CORNERS = torch.tensor([[32.0, 32], [288, 32], [32, 288], [288, 288]])


@pytest.mark.parametrize("negative", [False, True])
def test_a_geometry_is_refined(negative):
    image = marked(SIDE)
    finder = PilotSearch(1 - image if negative else image)
    index = len(finder.views.projections) - 1
    attempt = finder.attempt(Hypothesis(index, Geometry.scale(1.014), 0.5, 640))
    assert attempt.promising and attempt.mark.negative == negative
    refined = finder.refined(attempt)
    assert refined.mark.cosine > attempt.mark.cosine

    def wrong(geometry: Geometry) -> float:
        """Pixels by which the distances between the corners are wrong."""
        placed = geometry.apply(CORNERS)
        return float((torch.pdist(placed) - torch.pdist(CORNERS)).abs().max())

    assert wrong(attempt.geometry) > 5 and wrong(refined.geometry) < 0.7


def test_the_search_shares_the_weight_of_one(monkeypatch):
    """Of all attempts on an image without a mark, which is read to the end."""
    weights = []
    attempt = PilotSearch.attempt

    def weighed(self: PilotSearch, hypothesis: Hypothesis) -> pilot_search.PilotAttempt:
        weights.append(hypothesis.weight)
        return attempt(self, hypothesis)

    monkeypatch.setattr(PilotSearch, "attempt", weighed)
    assert not detect(marked(160, amplitude=0.0)).found
    assert 0.5 < sum(weights) <= 1 + 1e-6


def test_a_turned_image_is_found_by_the_search_alone():
    turned = rotated(marked(SIDE), 17)
    found = detect(turned)
    assert found.found and found.geometry.rotation == pytest.approx(17, abs=0.3)
    assert not detect(turned, search=False).found


def test_a_blank_image_is_no_evidence():
    assert detect(torch.full((1, 3, 128, 128), 0.4), search=False).log10_p == 0
