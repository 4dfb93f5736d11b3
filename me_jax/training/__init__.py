"""Fine-tuning: what goes in, what is minimised, how a run is kept."""
