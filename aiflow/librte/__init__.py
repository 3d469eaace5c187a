"""Declarations of DPDK's C functions, one ``.pxd`` file a header; nothing here runs."""
