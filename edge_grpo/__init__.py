"""EDGE-GRPO: experiments on advantage collapse in GRPO, and on what cures it."""

__version__ = "0.1.0"
