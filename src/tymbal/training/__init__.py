"""One training loop for all objectives and for fine-tuning: Hugging Face `Trainer`, and what it lacks."""
