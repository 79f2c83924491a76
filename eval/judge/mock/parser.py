"""Scripted answers are read as a language model's are."""

from eval.judge.simrate.parser import parse

__all__ = ["parse"]
