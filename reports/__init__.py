"""Renders results into a page: a pure function of what `eval` wrote."""
