"""The engine of the CPU: kernels that Numba and LLVM compile, kept on disk, run by all threads."""
