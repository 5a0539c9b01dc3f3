"""Dummy: the smallest system there can be, a linear codec. Copy this folder to begin with a new one (see CONTRIBUTING.md).

Its modules import each other relatively, so that the folder works where it is and under `musicrt/runtime/models/`.
"""
