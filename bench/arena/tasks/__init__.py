"""The arena's training tasks, from data that every machine has: nothing is downloaded."""
