"""Contract rows of danlu.math: one a public callable."""

from contract import Row

ROWS: list[Row] = []
