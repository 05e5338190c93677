"""Trains teachers, collects trajectories, distils, evaluates. Needs torch; of this project, imports `runtime` only."""
