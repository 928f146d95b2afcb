/** What a file is that somebody took for a boot image, by its first bytes: for messages that say what was found. */

interface FileKind {
  /** As in `it is …`. */
  readonly name: string;
  readonly hint?: string;
}

interface Magic extends FileKind {
  readonly magic: string;
  readonly at?: number;
}

const UNPACK = 'unpack it first';
/** What to do about an image for another CPU. */
export const OTHER_CPU = 'take one for x86';
/** What to do about an image of another format. */
export const RAW_DISKS = 'disks are raw images: qemu-img convert -O raw';
const DISK = 'disks are given to a device: -s SLOT,virtio-blk,FILE';

/** Magic numbers as latin1 text; the first that fits is the answer. Linux Documentation/arch/*\/booting.rst has the kernels'. */
const MAGICS: readonly Magic[] = [
  { magic: '\x1f\x8b', name: 'compressed by gzip', hint: UNPACK },
  { magic: '\xfd7zXZ', name: 'compressed by xz', hint: UNPACK },
  { magic: '\x28\xb5\x2f\xfd', name: 'compressed by zstd', hint: UNPACK },
  { magic: 'BZh', name: 'compressed by bzip2', hint: UNPACK },
  { magic: '\x02\x21\x4c\x18', name: 'compressed by lz4', hint: UNPACK },
  { magic: '\x04\x22\x4d\x18', name: 'compressed by lz4', hint: UNPACK },
  { magic: '\x89LZO', name: 'compressed by lzop', hint: UNPACK },
  { magic: '\x5d\0\0', name: 'compressed by lzma', hint: UNPACK },
  { magic: 'PK\x03\x04', name: 'a zip archive', hint: UNPACK },
  { magic: '7z\xbc\xaf', name: 'a 7z archive', hint: UNPACK },
  { magic: '!<arch>\n', name: 'a package or library (ar archive)', hint: UNPACK },
  { magic: 'ustar', at: 257, name: 'a tar archive', hint: UNPACK },
  { magic: 'ARM\x64', at: 56, name: 'a kernel for arm64', hint: OTHER_CPU },
  { magic: 'RSC\x05', at: 56, name: 'a kernel for RISC-V', hint: OTHER_CPU },
  { magic: '\x27\x05\x19\x56', name: "an image of U-Boot's", hint: 'take the bzImage that it was made of' },
  { magic: '\xd0\x0d\xfe\xed', name: 'a device tree', hint: 'take the bzImage' },
  { magic: '0707', name: 'a ramdisk (cpio archive)', hint: 'ramdisks are given with -r' },
  { magic: '\x7fELF', name: 'an ELF file', hint: 'give ELF images with -E, or the bzImage of this kernel' },
  { magic: 'MZ', name: 'a Windows or EFI program', hint: 'EFI programs need firmware: --ovmf' },
  { magic: 'QFI\xfb', name: 'a qcow2 disk', hint: RAW_DISKS },
  { magic: 'KDMV', name: 'a VMDK disk', hint: RAW_DISKS },
  { magic: 'vhdxfile', name: 'a VHDX disk', hint: RAW_DISKS },
  { magic: 'hsqs', name: 'a SquashFS file system', hint: DISK },
  { magic: '\x53\xef', at: 1080, name: 'an ext2, ext3 or ext4 file system', hint: DISK },
];

/** Bytes of a file from its beginning that `kindOf` looks at. */
export const KIND_BYTES = 1082;
const TEXT_BYTES = 64;

/** @param head up to {@link KIND_BYTES}. @returns undefined: nothing known. */
export function kindOf(head: Uint8Array): FileKind | undefined {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength);
  const known = MAGICS.find(({ magic, at = 0 }) => bytes.toString('latin1', at, at + magic.length) === magic);
  return known ?? (isText(head.subarray(0, TEXT_BYTES)) ? { name: 'a text file' } : undefined);
}

function isText(head: Uint8Array): boolean {
  return head.length > 0 && head.every((byte) => (byte >= 0x20 && byte < 0x7f) || (byte >= 9 && byte <= 13));
}
