"""Generates speech for every test window, scores it against floors and ceilings, and writes results."""
