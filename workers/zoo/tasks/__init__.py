"""Two lm-evaluation-harness tasks made of the zoo's held-out text."""
