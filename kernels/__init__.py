"""How to draw it fast: one arithmetic, and the engines that run it. Knows torch, numba and triton, never fastinit."""

if __name__ != "fastinit.kernels":
    raise ImportError("this folder is shipped as fastinit.kernels; import that instead")
