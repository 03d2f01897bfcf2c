"""Costs of kernel launches, and predictions of their times."""
