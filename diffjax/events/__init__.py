"""Events: what happens between the steps of a solve, and when."""
