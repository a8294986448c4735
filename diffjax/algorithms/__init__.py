"""How a step is taken: the contract in `base.py`, a file a family, coefficients in `tableaus/`."""
