/*
 * Start of the demo guest, in the form Linux boot loaders know (bzImage, boot protocol 2.06).
 *
 * Layout of the file: sector 0 with the setup header at 0x1f1, one setup sector with 16-bit code, then the 32-bit
 * program. Two ways lead in:
 *
 *   acrn-dm -k      loads the whole file at 16 MiB, fills the zero page and enters `entry32` in protected mode:
 *                   cs 0x10, ds = es = ss 0x18, flat, paging off, esi = zero page, no stack.
 *   qemu -kernel    loads sectors 0..1 as real-mode code and runs `setup16` below, which collects the memory map and
 *                   switches to protected mode by itself. Handy to try the guest where there is no acrn-dm.
 */

#define PROTOCOL_VERSION 0x0206
#define LOADED_HIGH      0x01            /* the 32-bit part goes to 1 MiB or above */
#define SETUP_SECTS      1

#define ZP_E820_COUNT    0x1e8           /* offsets in the zero page (struct boot_params) */
#define ZP_SCRATCH_END   0x1e8
#define ZP_HEADER        0x1f1
#define ZP_HEADER_END    0x268
#define ZP_E820_TABLE    0x2d0

        .section .setup, "ax"
        .code16
setup_start:
        /* nothing may start at a boot sector: say nothing and stop */
1:      hlt
        jmp 1b

        .org 0x1f1
        .byte SETUP_SECTS               /* setup_sects */
        .word 0                         /* root_flags */
        .long program_paragraphs        /* syssize, in 16-byte units */
        .word 0                         /* ram_size */
        .word 0                         /* vid_mode */
        .word 0                         /* root_dev */
        .word 0xaa55                    /* boot_flag */
        jmp setup16                     /* 0x200: two bytes, the second one tells the header's length */
        .ascii "HdrS"                   /* 0x202 */
        .word PROTOCOL_VERSION          /* 0x206 */
        .long 0                         /* realmode_swtch */
        .word 0                         /* start_sys_seg */
        .word version_text - setup_start - 0x200
        .byte 0                         /* 0x210: type_of_loader, filled by the loader */
        .byte LOADED_HIGH               /* 0x211: loadflags */
        .word 0                         /* setup_move_size */
        .long 0x100000                  /* 0x214: code32_start */
        .long 0                         /* 0x218: ramdisk_image */
        .long 0                         /* 0x21c: ramdisk_size */
        .long 0                         /* bootsect_kludge */
        .word 0                         /* heap_end_ptr */
        .byte 0, 0                      /* ext_loader_ver, ext_loader_type */
        .long 0                         /* 0x228: cmd_line_ptr */
        .long 0x7fffffff                /* initrd_addr_max */
        .long 0x1000                    /* kernel_alignment */
        .byte 0                         /* relocatable_kernel */
        .byte 0
        .word 0
        .long 1023                      /* 0x238: cmdline_size */

        .org ZP_HEADER_END
/* Real mode, ds = the segment this was loaded at. The zero page is built 4 KiB above it. */
setup16:
        cli
        cld
        mov %cs, %ax                    /* cs = ds + 0x20 */
        sub $0x20, %ax
        mov %ax, %ds
        mov %ax, %ss
        mov $0xfff0, %sp
        add $0x100, %ax
        mov %ax, %es                    /* es = the zero page */
        xor %di, %di
        xor %ax, %ax
        mov $0x800, %cx
        rep stosw
        mov $ZP_HEADER, %si
        mov $ZP_HEADER, %di
        mov $(ZP_HEADER_END - ZP_HEADER), %cx
        rep movsb

        /* INT 15h E820: the memory map */
        xor %ebx, %ebx
        xor %ebp, %ebp
        mov $ZP_E820_TABLE, %di
next_entry:
        mov $0xe820, %eax
        mov $0x534d4150, %edx           /* 'SMAP' */
        mov $20, %ecx
        int $0x15
        jc e820_done
        cmp $0x534d4150, %eax
        jne e820_done
        inc %bp
        add $20, %di
        test %ebx, %ebx
        jz e820_done
        cmp $32, %bp
        jb next_entry
e820_done:
        mov %bp, %ax
        mov %al, %es:ZP_E820_COUNT

        xor %esi, %esi
        mov %es, %si
        shl $4, %esi                    /* esi = zero page, as the 32-bit entry wants it */
        xor %eax, %eax
        mov %ds, %ax
        shl $4, %eax
        add $(setup_gdt - setup_start), %eax
        mov %eax, setup_gdt_base - setup_start
        lgdtl setup_gdt_pointer - setup_start
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        mov $0x18, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %ss
        ljmpl $0x10, $0x100000

version_text:
        .asciz "acrn-dm demo guest"
        .balign 8
setup_gdt:                              /* the same four entries acrn-dm prepares */
        .quad 0, 0
        .quad 0x00cf9b000000ffff        /* 0x10: flat code */
        .quad 0x00cf93000000ffff        /* 0x18: flat data */
setup_gdt_pointer:
        .word . - setup_gdt - 1
setup_gdt_base:
        .long 0
        .org 512 * (SETUP_SECTS + 1)

        .section .text.entry, "ax"
        .code32
        .globl entry32
entry32:
        cli
        cld
        mov %cr0, %ebx                  /* kept for the report */
        lea ZP_SCRATCH_END(%esi), %esp  /* the protocol gives no stack; the zero page has a scratch word */
        call 1f
1:      pop %ebp
        sub $(1b - entry32), %ebp       /* where we run */
        mov %ebp, entry_address - entry32(%ebp)
        mov %esi, zero_page_address - entry32(%ebp)
        mov %ebx, entry_cr0 - entry32(%ebp)

        /* The program is linked for 1 MiB: copy it there, unless it was loaded there. */
        mov $entry32, %edi
        cmp %edi, %ebp
        je 2f
        mov %ebp, %esi
        mov $program_size, %ecx
        rep movsb
2:      mov $bss_start, %edi
        mov $bss_size, %ecx
        xor %eax, %eax
        rep stosb

        lgdt gdt_pointer
        ljmp $0x10, $3f
3:      mov $0x18, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %fs
        mov %eax, %gs
        mov %eax, %ss
        mov $stack_top, %esp
        xor %ebp, %ebp
        call guest_main
4:      cli
        hlt
        jmp 4b

        .balign 8
gdt:
        .quad 0, 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff
gdt_pointer:
        .word . - gdt - 1
        .long gdt
        .balign 4
        .globl entry_address, zero_page_address, entry_cr0
entry_address:      .long 0
zero_page_address:  .long 0
entry_cr0:          .long 0

        .section .bss
        .balign 16
        .skip 8192
stack_top:

        .section .note.GNU-stack, "", @progbits
