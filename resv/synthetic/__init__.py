"""A stream of keys, queries and values at full size, made from a video's features and a seed."""

from resv.synthetic.build import build_trace
from resv.synthetic.config import GeneratorConfig, KeyConfig, RecencyConfig, SharpnessConfig
from resv.synthetic.stream import SyntheticTrace

__all__ = ["GeneratorConfig", "KeyConfig", "RecencyConfig", "SharpnessConfig", "SyntheticTrace", "build_trace"]
