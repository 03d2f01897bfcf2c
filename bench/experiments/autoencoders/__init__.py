"""The paper's autoencoders: data, models, optimizers, and a search of the same size for each."""
