/** Numbers of the RFB protocol (RFC 6143, and the registry kept at github.com/rfbproto), big endian. */

export const SERVER_VERSION = 'RFB 003.008\n';
export const VERSION_BYTES = 12;

/** §7.1.2. */
export const Security = { Invalid: 0, None: 1, VncAuthentication: 2 } as const;
export const CHALLENGE_BYTES = 16;
/** §7.1.3. */
export const SecurityResult = { Ok: 0, Failed: 1 } as const;

/** §7.5, and those that the pseudo-encodings below bring. */
export const ClientMessage = {
  SetPixelFormat: 0,
  SetEncodings: 2,
  UpdateRequest: 3,
  Key: 4,
  Pointer: 5,
  CutText: 6,
  SetDesktopSize: 251,
  Qemu: 255,
} as const;
/** Of ClientMessage.Qemu. */
export const QEMU_KEY = 0;

/** §7.6. */
export const FRAMEBUFFER_UPDATE = 0;

/** §7.7, §7.8. */
export const Encoding = {
  Raw: 0,
  Zlib: 6,
  Zrle: 16,
  DesktopSize: -223,
  Cursor: -239,
  /** -256 to -247: the level of compression, 0 to 9. */
  CompressLevel0: -256,
  CompressLevel9: -247,
  QemuKey: -258,
  ExtendedDesktopSize: -308,
} as const;

/** Of an ExtendedDesktopSize rectangle: its x, why; and its y, what became of a request. */
export const ResizeReason = { Server: 0, ThisClient: 1 } as const;
export const ResizeStatus = { Ok: 0, Prohibited: 1, Invalid: 3, Forwarded: 4 } as const;

/** Bits of a pointer event beyond the buttons. */
export const WheelButton = { Up: 1 << 3, Down: 1 << 4 } as const;
