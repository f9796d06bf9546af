#!/bin/sh
# Turns a fresh Debian tree into test image v1. mmdebstrap runs it with the tree as $1; @UUID@ is filled in by
# make-images.sh.
set -e
tree=$1
echo 'UUID=@UUID@ / ext4 errors=remount-ro 0 1' >"$tree/etc/fstab"
echo hearth-vm >"$tree/etc/hostname"
printf '127.0.0.1 localhost hearth-vm\n' >"$tree/etc/hosts"
printf 'auto lo\niface lo inet loopback\n' >"$tree/etc/network/interfaces"
echo 'root:root' | chroot "$tree" chpasswd
printf 'MODULES=most\nCOMPRESS=zstd\n' >"$tree/etc/initramfs-tools/conf.d/hearth"
echo v1 >"$tree/etc/image-version"

mkdir -p "$tree/boot/grub"
cat >"$tree/boot/grub/grub.cfg" <<'GRUB'
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry "Debian" {
  linux /vmlinuz root=UUID=@UUID@ ro console=ttyS0,115200 net.ifnames=0
  initrd /initrd.img
}
GRUB

# The line that a boot test waits for: printed when everything that starts at boot has started.
cat >"$tree/etc/systemd/system/boot-marker.service" <<'UNIT'
[Unit]
Description=boot marker on the console
After=multi-user.target ssh.service
[Service]
Type=oneshot
StandardOutput=journal+console
ExecStart=/bin/sh -c 'echo "BOOT-MARKER ok $(cat /etc/image-version) uptime $(cut -d" " -f1 /proc/uptime)" > /dev/console'
[Install]
WantedBy=multi-user.target
UNIT
chroot "$tree" systemctl enable boot-marker.service >/dev/null 2>&1
