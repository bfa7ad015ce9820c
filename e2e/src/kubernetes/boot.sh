# The first steps of a node, in fresh namespaces of its own; then its first process takes over. It sees this machine's
# /usr and devices, and apart from them only what is its own: no path of the machine is shared with another node.
# Arguments: NAME DISK PROGRAMS SHARE CONTROL_GROUPS...
set -eu
name=$1 disk=$2 programs=$3 share=$4
shift 4

mount --make-rprivate /
mount --bind "$disk" "$disk"
cd "$disk"
mkdir -p usr etc/cni/net.d var/lib var/log var/tmp var/cache opt/cni/bin home tmp proc sys dev run mnt srv programs share old
mkdir -p -m 700 root
chmod 1777 tmp var/tmp
for link in bin sbin lib lib64; do ln -sfn "usr/$link" "$link"; done
ln -sfn ../run var/run
for file in passwd group nsswitch.conf alternatives ld.so.cache ld.so.conf ld.so.conf.d services protocols os-release ssl; do
  if [ -e "/etc/$file" ] && ! [ -e "etc/$file" ]; then cp -a "/etc/$file" "etc/$file"; fi
done
cp -u /usr/lib/cni/* opt/cni/bin/
echo "$name" >etc/hostname
printf '127.0.0.1 localhost\n' >etc/hosts
hostname "$name"

mount --rbind /usr usr
mount -o remount,bind,ro usr
mount --bind "$programs" programs
mount -o remount,bind,ro programs
mount --bind "$share" share
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
# Called by its own name, which whoever looks for a kubelet sees.
ln -s /programs/kubernetes run/kubelet
mount -t proc proc proc
mount -t sysfs sysfs sys
if [ "$1" = unified ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  # A group with processes hands no controllers on, so the node's daemons live in one of its own.
  mkdir sys/fs/cgroup/daemons
  echo 1 >sys/fs/cgroup/daemons/cgroup.procs
else
  mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
  for group; do
    mkdir "sys/fs/cgroup/$group"
    if [ "$group" = systemd ]; then options=none,name=systemd; else options=$group; fi
    mount -t cgroup -o "$options" cgroup "sys/fs/cgroup/$group"
  done
fi

# A kubelet sets these for the whole machine, which is not its own: it finds them as it wants them instead.
pin() {
  file=run/pinned-$(echo "$1" | tr / -)
  echo "$2" >"$file"
  mount --bind "$file" "proc/sys/$1"
}
pin vm/overcommit_memory 1
pin vm/panic_on_oom 0
pin kernel/panic 10
pin kernel/panic_on_oops 1
pin kernel/keys/root_maxkeys 1000000
pin kernel/keys/root_maxbytes 25000000

pivot_root . old
cd /
umount -l old
rmdir old
# What a pod mounts for its node (mountPropagation) is seen by the node.
mount --make-rshared /
touch /run/booted
exec /programs/pause
