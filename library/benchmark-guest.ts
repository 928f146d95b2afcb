/**
 * The guest of `--benchmark`: 32-bit code that can lie anywhere. It reads a command from the port in DX, does it so many
 * times, and reads the next one. ESI is where it keeps data, EDI device memory.
 */

export const kinds = ['work', 'port', 'mmio'] as const;
export type Kind = (typeof kinds)[number];

/** What is done, in bits 31:30 of a command; below them stands how often, and 0 is the end. */
export const Command = { work: 0, port: 0x4000_0000, mmio: 0x8000_0000 } as const satisfies Record<Kind, number>;

/** From `work` to its JNZ, the two of `mix` included. */
export const INSTRUCTIONS_A_LOOP = 16;

export const machineCode = Uint8Array.from([
  ...[0xed], //                         next:  in   eax, dx
  ...[0x89, 0xc1], //                          mov  ecx, eax
  ...[0x81, 0xe1, 0xff, 0xff, 0xff, 0x3f], //  and  ecx, 0x3fffffff
  ...[0x74, 0x3e], //                          jz   stop
  ...[0xc1, 0xe8, 0x1e], //                    shr  eax, 30
  ...[0x74, 0x11], //                          jz   work
  ...[0x48], //                                dec  eax
  ...[0x74, 0x07], //                          jz   port
  ...[0x8b, 0x07], //                   mmio:  mov  eax, [edi]
  ...[0x49], //                                dec  ecx
  ...[0x75, 0xfb], //                          jnz  mmio
  ...[0xeb, 0xe6], //                          jmp  next
  ...[0xe4, 0x80], //                   port:  in   al, 0x80
  ...[0x49], //                                dec  ecx
  ...[0x75, 0xfb], //                          jnz  port
  ...[0xeb, 0xdf], //                          jmp  next
  ...[0x8b, 0x06], //                   work:  mov  eax, [esi]
  ...[0x01, 0xc8], //                          add  eax, ecx
  ...[0xc1, 0xc0, 0x05], //                    rol  eax, 5
  ...[0x89, 0x46, 0x04], //                    mov  [esi+4], eax
  ...[0x8d, 0x1c, 0x98], //                    lea  ebx, [eax+ebx*4]
  ...[0x31, 0xc3], //                          xor  ebx, eax
  ...[0x53], //                                push ebx
  ...[0xe8, 0x0f, 0x00, 0x00, 0x00], //        call mix
  ...[0x5d], //                                pop  ebp
  ...[0x39, 0xe8], //                          cmp  eax, ebp
  ...[0x83, 0xdb, 0x00], //                    sbb  ebx, 0
  ...[0x0f, 0xb6, 0x46, 0x03], //              movzx eax, byte [esi+3]
  ...[0x49], //                                dec  ecx
  ...[0x75, 0xde], //                          jnz  work
  ...[0xeb, 0xbb], //                          jmp  next
  ...[0x6b, 0xc0, 0x11], //             mix:   imul eax, eax, 17
  ...[0xc3], //                                ret
  ...[0xfa], //                         stop:  cli
  ...[0xf4], //                                hlt
]);
