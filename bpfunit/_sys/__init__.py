"""The corner that speaks to the kernel and to libbpf: nothing else in the package uses ctypes.CDLL."""
