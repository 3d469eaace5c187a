#!/bin/bash
# In the guest: runs pytest over tests/nic. The last step of the boot.
cd "$1" || exit
export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONDONTWRITEBYTECODE=1
share=/run/share
touch $share/booted
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
chmod 1777 /tmp /dev/shm
path=$PWD
while [ "$path" != / ]; do # one test is an ordinary user
    chmod a+rx "$path"
    path=$(dirname "$path")
done
ip link set lo up
# QEMU's igb drops a frame whose segment is not contiguous in the guest's memory; DPDK's heap is shared memory
echo force >/sys/kernel/mm/transparent_hugepage/shmem_enabled
while read -r line; do export "${line?}"; done <$share/environment
mapfile -t arguments <$share/arguments
kind=${arguments[0]}
echo "aiflow: booted after $(cut -d' ' -f1 /proc/uptime) s"
[ "$kind" != boot ] || exit
selected=(-m "not soak")
[ "$kind" != soak ] || selected=(-m soak -s) # it prints its figures
.venv/bin/python -m pytest -c tests/nic/pytest.ini -p no:cacheprovider "${selected[@]}" "${arguments[@]:1}" \
    >$share/results.txt 2>&1
echo $? >$share/status
dmesg >$share/dmesg.log
