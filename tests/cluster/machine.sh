#!/bin/sh
# Process 1 of a machine of the test cluster, in network, mount, UTS and process namespaces of its own: when it ends,
# the kernel ends every process of the machine, and mounts and links go with the last of them.
# usage: machine.sh DIR NAME
set -eu
dir=$1
name=$2

for place in var/lib var/log run; do
  mkdir -p "$dir/$place"
  mount --bind "$dir/$place" "/$place"
done
# A kubelet insists on settings of the whole kernel. It writes them to files of its machine instead.
mkdir -p "$dir/sysctl"
for setting in kernel/panic kernel/panic_on_oops kernel/keys/root_maxbytes kernel/keys/root_maxkeys vm/overcommit_memory \
  vm/panic_on_oom; do
  if [ -e "/proc/sys/$setting" ]; then
    file=$dir/sysctl/$(basename "$setting")
    cat "/proc/sys/$setting" >"$file"
    mount --bind "$file" "/proc/sys/$setting"
  fi
done
# What a pod mounts with Bidirectional propagation must be seen outside of it.
mount --make-rshared /

hostname "$name"
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
: >"$dir/ready"

# Waiting is also what takes away the remains of processes whose parents are gone.
while :; do
  sleep 86400 &
  wait $!
done
