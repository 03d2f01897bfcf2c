"""What is run on a GPU, or about its kernels without one."""
