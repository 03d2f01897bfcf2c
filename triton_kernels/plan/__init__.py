"""Launch plans of the Triton kernels, made and kept on the host."""
