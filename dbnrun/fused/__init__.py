"""Many cells as one program: which cells of a sweep can train together, and the Hydra launcher that lets them."""
