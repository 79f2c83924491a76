"""Judges decide whether a predicted description says what the reference says (paper section 5.4, SimRate)."""

from eval.judge.base import BUILT_IN, Judge, JudgeSettings, Verdict, load_judge

__all__ = ["BUILT_IN", "Judge", "JudgeSettings", "Verdict", "load_judge"]
