"""Colours that mean the same in every figure: what is right, wrong, or a mixture; safe for the colour-blind."""

RIGHT, MIXED, WRONG = "#029e73", "#56b4e9", "#d55e00"
KINDS = {"all_wrong": WRONG, "mixed": MIXED, "all_right": RIGHT}
"""of groups"""
