"""Linear algebra of implicit steps: real coordinates, Jacobians, small factorisations."""
