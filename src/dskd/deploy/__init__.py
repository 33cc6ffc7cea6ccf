"""What ships: load, evaluate, predict and export a trained student."""
