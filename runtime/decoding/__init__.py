"""The decode loop and what it decides with: positions, gate, sampling, the state of a request. Pure numpy."""
