"""Looking into trained models of anybody's making. Empty so far."""
