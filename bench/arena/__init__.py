"""A comparison of optimizers that a sceptic can rerun: the same tasks, budgets and loop for all of them."""
