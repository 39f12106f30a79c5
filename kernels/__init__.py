"""One arithmetic, and the engines that execute it. Imports torch, numba and triton, nothing of fastinit's."""

if __name__ != "fastinit.kernels":
    raise ImportError("this folder is shipped as fastinit.kernels; import that instead")
