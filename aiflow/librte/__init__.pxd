# One file a DPDK header; declarations only.
