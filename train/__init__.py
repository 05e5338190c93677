"""The training side: teachers, trajectories, distillation and evaluation. Needs torch; imports `runtime` only."""
