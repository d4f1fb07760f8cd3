//! libcublasLt.so of the software device.
