#!/usr/bin/env bash
# Builds the virtual-machine images that Hearth is tested with, from Debian's own packages.
#
#   make-images.sh [DIR] [GROUP...]     DIR: $IMAGES or ./images; GROUPs: v1 v2r v2i formats iso (default: all)
#
# v1    a bootable Debian 12: MBR disk, GRUB, ext4, cloud kernel, systemd, sshd, serial console. It prints
#       "BOOT-MARKER ok v1" on the serial line when it is up. Login root, password root: a test image, never a product.
# v2r   the next version, rebuilt: v1's tree with more packages in a file system that is made anew
# v2i   the next version, updated in place: v1's disk with the same packages installed inside it
# formats  v1 in every format that import accepts, and one (vdi) that it refuses with a hint
# iso   real ISO images of four kinds
#
# Products are named after the version and the format:
#   v1.raw .qcow2 .c.qcow2 (zlib) .z.qcow2 (zstd) .vmdk (sparse) .so.vmdk (streamOptimized) .vhd (dynamic)
#   .fixed.vhd .vhdx .vdi; v2r and v2i as .raw .qcow2 .c.qcow2 .z.qcow2; v1.tar (v1's tree); iso/*.iso
# MANIFEST.tsv names each with its size, its allocated bytes and its sha256. Two builds differ in their bytes (time
# stamps, package updates), so a figure belongs to the MANIFEST.tsv of its build.
#
# Each product is made as NAME.part and renamed, so a run that was stopped goes on where it was; what is there is
# not built again. Needs root (device nodes, one loop mount), about 6 GB, about 3 minutes.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${IMAGES:-images}}
[ $# -le 1 ] || groups=("${@:2}")
[ -n "${groups[*]-}" ] || groups=(v1 v2r v2i formats iso)

disk_size=2G                               # virtual size: room for v2, yet small enough to hash in seconds
v2_packages=(nginx-light python3)          # what a typical new build of an image adds
fs_uuid=5f9c0de1-77aa-4a5e-9a8e-0c0ffee0d15c   # fixed: the boot loader finds the root file system by it
fs_start=1048576                           # the first partition begins at 1 MiB, as every current partitioner does
base_packages=linux-image-cloud-amd64,initramfs-tools,zstd,systemd,systemd-sysv,udev,kmod,dbus,login,passwd
base_packages+=,util-linux,mount,iproute2,ifupdown,isc-dhcp-client,openssh-server,ca-certificates,procps,e2fsprogs
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1750000000}

die() { echo "make-images: $*" >&2; exit 1; }
say() { echo "make-images: $*" >&2; }

# --- where we run ---------------------------------------------------------------------------------------------
[ "$(id -u)" = 0 ] || die "needs root (device nodes, a loop mount); run: sudo make images"
# A mount name space of our own: whatever ends this script, no mount stays behind on the machine.
if [ -z "${HEARTH_IMAGES_NS:-}" ]; then
  exec env HEARTH_IMAGES_NS=1 unshare --mount --propagation private "$0" "$dir" "${groups[@]}"
fi
"$here/../../scripts/prerequisites" images
mkdir -p "$dir/iso"; dir=$(cd "$dir" && pwd)
free_kb=$(df --output=avail -k "$dir" | tail -n 1)
[ "$free_kb" -gt 8000000 ] || say "only $((free_kb / 1000000)) GB free in $dir; a full set takes about 6 GB"
work=$(mktemp -d "$dir/.work.XXXXXX")
chmod 755 "$work"; export TMPDIR=$work
# --one-file-system: a mount that could not be taken down is left alone instead of being emptied.
trap 'umount -q "$work"/*/proc "$work"/mnt 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT

want() { [[ " ${groups[*]} " == *" $1 "* ]]; }

# once PRODUCT COMMAND...: runs the command, which makes PRODUCT.part, unless the product is there.
once() {
  local product=$dir/$1 t0=$SECONDS; shift
  [ ! -s "$product" ] || return 0
  rm -f "$product.part"
  # Not `"$@" || die`: that would switch `set -e` off inside the command, and a failed step would pass unseen.
  "$@" "$product.part"
  sync "$product.part"; mv "$product.part" "$product"
  say "$(basename "$product") in $((SECONDS - t0)) s"
}

# --- the tree of v1 -------------------------------------------------------------------------------------------
make_tree() { # OUT.tar
  sed "s/@UUID@/$fs_uuid/g" "$here/customize-tree.sh" >"$work/customize.sh"; chmod +x "$work/customize.sh"
  mmdebstrap --quiet --format=tar --variant=minbase --include="$base_packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook="$work/customize.sh" bookworm "$1"
}
unpack_tree() { # DIR
  mkdir "$1"; tar -C "$1" -xpf "$dir/v1.tar" --numeric-owner
}

# --- a disk from a tree ---------------------------------------------------------------------------------------
make_disk() { # TREE OUT.raw
  local tree=$1 out=$2 bytes
  if [ ! -s "$work/core.img" ]; then
    printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$fs_uuid" >"$work/early.cfg"
    grub-mkimage -O i386-pc -c "$work/early.cfg" -p /boot/grub -o "$work/core.img" \
      biosdisk part_msdos ext2 search search_fs_uuid normal linux serial terminal configfile echo ls cat boot
  fi
  truncate -s "$disk_size" "$out"
  printf 'label: dos\nlabel-id: 0x5eed0001\nstart=2048, type=83, bootable\n' | sfdisk -q "$out"
  bytes=$(stat -c %s "$out")
  mke2fs -q -t ext4 -F -U "$fs_uuid" -L root -m 1 \
    -E offset=$fs_start,hash_seed=$fs_uuid,lazy_itable_init=1,nodiscard -d "$tree" "$out" $(((bytes - fs_start) / 1024))k
  dd if=/usr/lib/grub/i386-pc/boot.img of="$out" bs=440 count=1 conv=notrunc status=none
  dd if="$work/core.img" of="$out" bs=512 seek=1 conv=notrunc status=none
}

# Installs v2's packages inside a tree. The host's resolver and apt proxy are lent for the time of the installation.
install_v2() { # TREE
  local tree=$1 rc=0 conf
  cp --remove-destination /etc/resolv.conf "$tree/etc/resolv.conf"
  cp "$tree/etc/hosts" "$work/hosts.kept"; cat /etc/hosts >>"$tree/etc/hosts"
  for conf in /etc/apt/apt.conf /etc/apt/apt.conf.d/*proxy*; do
    [ ! -f "$conf" ] || cp "$conf" "$tree/etc/apt/apt.conf.d/99host-$(basename "$conf")"
  done
  printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"; chmod +x "$tree/usr/sbin/policy-rc.d"
  mount -t proc proc "$tree/proc"
  chroot "$tree" sh -ec "apt-get update -qq
    apt-get install -y -qq --no-install-recommends ${v2_packages[*]}
    apt-get clean" >"$dir/v2-apt.log" 2>&1 || rc=$?
  umount "$tree/proc"
  rm -f "$tree/usr/sbin/policy-rc.d" "$tree"/etc/apt/apt.conf.d/99host-*
  cp "$work/hosts.kept" "$tree/etc/hosts"
  echo v2 >"$tree/etc/image-version"
  [ $rc = 0 ] || die "installing ${v2_packages[*]} in v2 failed; see $dir/v2-apt.log"
}

make_v1() { # OUT.raw
  unpack_tree "$work/v1"; make_disk "$work/v1" "$1"; rm -rf --one-file-system "$work/v1"
}
make_v2_rebuilt() { # OUT.raw
  unpack_tree "$work/v2r"; install_v2 "$work/v2r"; make_disk "$work/v2r" "$1"; rm -rf --one-file-system "$work/v2r"
}
make_v2_in_place() { # OUT.raw
  cp --sparse=always "$dir/v1.raw" "$1"
  mkdir "$work/mnt"; mount -o loop,offset=$fs_start "$1" "$work/mnt"
  install_v2 "$work/mnt"
  umount "$work/mnt"
}

# convert NAME OUT FORMAT [OPTION...]: one more format of NAME.raw.
convert() {
  local from=$dir/$1.raw product=$2 format=$3; shift 3
  once "$product" qemu-img convert -f raw -O "$format" "$@" "$from"
}
# The three qcow2 flavours that clouds use.
qcow2_flavours() { # NAME
  convert "$1" "$1.qcow2" qcow2
  convert "$1" "$1.c.qcow2" qcow2 -c
  convert "$1" "$1.z.qcow2" qcow2 -c -o compression_type=zstd
}

# --- ISO images -----------------------------------------------------------------------------------------------
# From Debian packages that ship real ones; Debian's network installer ships a kernel and an initrd, wrapped here.
make_isos() { # OUT (a stamp)
  local scratch=$work/iso deb kind boot
  mkdir "$scratch"
  (cd "$scratch" && chmod 777 . && apt-get download -qq debian-installer-12-netboot-amd64 grub-rescue-pc ipxe memtest86+)
  for deb in "$scratch"/*.deb; do dpkg-deb -x "$deb" "$scratch/tree"; done
  find "$scratch/tree" -name '*.iso' -exec cp -n {} "$dir/iso/" \;
  for kind in text gtk; do
    boot=$scratch/tree/usr/lib/debian-installer/images/12/amd64/$kind/debian-installer/amd64
    mkdir -p "$scratch/$kind/boot/grub"; cp "$boot/linux" "$boot/initrd.gz" "$scratch/$kind/"
    printf '%s\n' 'set timeout=1' 'serial --unit=0' 'terminal_output serial console' \
      'menuentry "Debian installer" { linux /linux console=ttyS0' ' initrd /initrd.gz }' >"$scratch/$kind/boot/grub/grub.cfg"
    grub-mkrescue --locales= --themes= --fonts= -o "$dir/iso/di-netboot-$kind.iso" "$scratch/$kind" >/dev/null 2>&1
  done
  rm -rf "$scratch"; date >"$1"
}

# --- the products ---------------------------------------------------------------------------------------------
if want v1 || want v2r || want v2i || want formats; then
  once v1.tar make_tree
  once v1.raw make_v1
fi
if want v1; then qcow2_flavours v1; fi
if want formats; then
  convert v1 v1.vmdk vmdk
  convert v1 v1.so.vmdk vmdk -o subformat=streamOptimized
  convert v1 v1.vhd vpc -o subformat=dynamic,force_size=on
  convert v1 v1.fixed.vhd vpc -o subformat=fixed,force_size=on
  convert v1 v1.vhdx vhdx
  convert v1 v1.vdi vdi
fi
if want v2r; then once v2r.raw make_v2_rebuilt; qcow2_flavours v2r; fi
if want v2i; then once v2i.raw make_v2_in_place; qcow2_flavours v2i; fi
if want iso; then once iso/.done make_isos; fi

# --- the manifest ---------------------------------------------------------------------------------------------
cd "$dir"
for file in v1.tar v*.raw *.qcow2 *.vmdk *.vhd *.vhdx *.vdi iso/*.iso; do
  [ -f "$file" ] || continue
  read -r bytes blocks < <(stat -c '%s %b' "$file")
  # A line of an older manifest stands while the file is not newer and has the size it names.
  if ! { [ MANIFEST.tsv -nt "$file" ] && awk -F '\t' -v f="$file" -v b="$bytes" \
    '$1 == f && $2 == b { print; found = 1 } END { exit !found }' MANIFEST.tsv; }; then
    printf '%s\t%s\t%s\t%s\n' "$file" "$bytes" $((blocks * 512)) "$(sha256sum "$file" | cut -d ' ' -f 1)"
  fi
done >MANIFEST.tsv.part
mv MANIFEST.tsv.part MANIFEST.tsv
say "$(wc -l <MANIFEST.tsv) images in $dir, named in MANIFEST.tsv"
