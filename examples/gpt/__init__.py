"""The parts of train_gpt.py: options, text, model, optimizers, training loop, checkpoints, reports."""
