"""The corner that speaks to the kernel and to libbpf; nothing else uses ctypes.CDLL for them."""
