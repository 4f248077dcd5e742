"""What one cell does: quantize, then evaluate. Never imports mlflow or hydra."""
