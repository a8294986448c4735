"""Linear algebra of implicit steps: real coordinates of a state, Jacobians, small factorisations."""
