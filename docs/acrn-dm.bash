# Made by tools/make-option-reference.mjs from the option table. Do not edit.
_acrn_dm() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
  case $before in
    -s|--pci_slot)
      case $word in
        *,*,*) ;;
        *,*) COMPREPLY=($(compgen -P "${word%,*}," -W "hostbridge amd_hostbridge lpc ivshmem uart root-port dummy wdt-i6300esb piix4_pm virtio-blk virtio-net virtio-console virtio-input vhost-vsock virtio-i2c virtio-gpio virtio-gpu passthru igd-lpc ahci ahci-cd xhci virtio-rnd virtio-heci virtio-rpmb" -- "${word##*,}")) ;;
      esac ;;
    *)
      case $word in
        -*) COMPREPLY=($(compgen -W "-m --memsize --cpu_affinity --hypervisor --scenario --config -k --kernel -r --ramdisk -B --bootargs --ovmf --bios -E --elf_file -s --pci_slot -l --lpc --windows --virtio_msi --virtio_poll --acpidev_pt --mmiodev_pt --vtpm2 --fw_cfg --testdev --debugexit --rtvm --lapic_pt --ssram --intr_monitor --enable_trusty --pm_notify_channel --pm_by_vuart --cmd_monitor --display --socket-group --io-timeout --shutdown-timeout --api-socket --event-monitor --on-poweroff --on-reboot --on-crash --crash-dump --logger_setting --log-format --dry-run --host-root --debug --benchmark --list-passthru -h --help -v --version" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
      esac ;;
  esac
}
complete -o filenames -F _acrn_dm acrn-dm
