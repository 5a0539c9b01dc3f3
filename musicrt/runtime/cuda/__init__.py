"""Memory, graphs and kernels of a GPU, and the sampling loops that stay on it. No package of CUDA is imported before a GPU is asked for."""
