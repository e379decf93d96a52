"""The adapter in ComfyUI's own process: models and prompts prepared by ComfyUI, differentiated by ours."""

import importlib

import pytest
import torch

from .conftest import PACK_NAME
