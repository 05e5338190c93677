"""The noise of masked diffusion, and the states that a model is trained on."""
