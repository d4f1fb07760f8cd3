//! libcuda.so of the software device.
