"""Stands in for the model and the reader in the processes of `onrw bench faults`; the faults are real.

    python -m tests.bench.stand_in --count 34

is that benchmark at a fraction of its time: how a photo is marked does not matter to what a fault does to its folder.
"""

from __future__ import annotations

import argparse
import sys
import time

from onrw_core import models, pipeline
from onrw_core.bench import faults
from onrw_core.commands import embed
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.reading import Reading
from onrw_core.payload.message import Decoded, decode

from .. import dummies

SECONDS = 0.3  # that marking a photo takes


def install() -> None:
    """Have the command write the bits into the first pixels, and read them there."""
    pipeline.embed = _embed
    embed.load_model = lambda *_: models.Loaded(None, None, lambda prompt: None)
    KeyedExtractor.read = _read


def _embed(image, model, autoencoder, extractor, bits, **_):
    time.sleep(SECONDS)
    marked = image.clone()
    marked[0, 0, : len(bits)] = bits.float()
    return dummies.marked(marked, bits, extractor)


def _read(extractor, image, key, **_):
    logits = image[0, 0, : extractor.num_bits] * 2 - 1
    found = bool((logits > 0).any())
    return Reading(found, -9.0 * found, logits, decode(logits, key) if found else Decoded(), 0.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    faults.add_arguments(parser)
    sys.exit(faults.run(parser.parse_args(), install))
