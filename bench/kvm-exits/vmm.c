/*
 * vmm ELF: the least that runs guest.c on /dev/kvm, to compare with. One vCPU, interrupt controllers in the kernel as
 * acrn-dm has them, the image in memory, and a loop that answers port accesses. Ends with the guest's S5.
 *
 * vmm -t ELF: the same with the loop in a second thread, each access handed over and back by a futex: what two changes of the
 * thread cost by themselves.
 *
 * vmm ELF ELF: two VMs in two processes that ring each other (../kvm-doorbells): a write to BARE_BELL rings an eventfd in
 * the kernel, which is a message to the other. The second starts when the first has said something.
 */
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MEMORY (16u << 20)
#define BARE_BELL 0xfd000000u
#define BELL_VECTOR 0x40

static int call(int fd, unsigned long request, unsigned long argument, const char *what) {
  int result = ioctl(fd, request, argument);
  if (result < 0) err(1, "%s", what);
  return result;
}

static unsigned load(const char *path, unsigned char *memory) {
  static unsigned char file[1 << 20];
  int fd = open(path, O_RDONLY);
  ssize_t size = fd < 0 ? -1 : read(fd, file, sizeof file);
  if (size < (ssize_t)sizeof(Elf32_Ehdr)) err(1, "%s", path);
  const Elf32_Ehdr *elf = (const void *)file;
  for (int i = 0; i < elf->e_phnum; i++) {
    const Elf32_Phdr *part = (const void *)(file + elf->e_phoff + i * elf->e_phentsize);
    if (part->p_type == PT_LOAD) memcpy(memory + part->p_paddr, file + part->p_offset, part->p_filesz);
  }
  return elf->e_entry;
}

/* The VM's bell rings an eventfd; another one interrupts it. */
static void connect(int vm, int rings, int rung) {
  struct kvm_ioeventfd bell = {.addr = BARE_BELL, .len = 4, .fd = rings};
  call(vm, KVM_IOEVENTFD, (unsigned long)&bell, "KVM_IOEVENTFD");
  struct {
    struct kvm_irq_routing head;
    struct kvm_irq_routing_entry entry;
  } routes = {.head = {.nr = 1}};
  routes.head.entries[0] = (struct kvm_irq_routing_entry){
      .gsi = 24, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = 0xfee00000, .data = BELL_VECTOR}};
  call(vm, KVM_SET_GSI_ROUTING, (unsigned long)&routes, "KVM_SET_GSI_ROUTING");
  struct kvm_irqfd interrupt = {.fd = rung, .gsi = 24};
  call(vm, KVM_IRQFD, (unsigned long)&interrupt, "KVM_IRQFD");
}

/* A vCPU in KVM_RUN, and what its guest printed. */
struct guest {
  int vcpu;
  struct kvm_run *run;
  /* Gets a byte at the first thing the guest prints, or -1. */
  int said;
  /* Of -t: whose the vCPU is. Both threads sleep on it. */
  atomic_uint turn;
};
enum { GUESTS, SERVERS };

/* Until the guest leaves. */
static void enter(struct guest *guest) {
  call(guest->vcpu, KVM_RUN, 0, "KVM_RUN");
  if (guest->run->exit_reason != KVM_EXIT_IO) errx(1, "exit reason %u", guest->run->exit_reason);
}

/* @return whether the guest goes on. */
static bool serve(struct guest *guest) {
  struct kvm_run *run = guest->run;
  unsigned char *at = (unsigned char *)run + run->io.data_offset;
  if (run->io.direction == KVM_EXIT_IO_IN) memset(at, run->io.port == 0x3fd ? 0x60 : 0xff, run->io.size);
  else if (run->io.port == 0x3f8) {
    putchar(*at);
    if (guest->said >= 0 && write(guest->said, at, 1) == 1) close(guest->said), guest->said = -1;
  }
  return run->io.direction == KVM_EXIT_IO_IN || run->io.port != 0x404;
}

/* Give the vCPU to the other thread, and wait until it is back. */
static void wait_for(struct guest *guest, unsigned turn) {
  while (atomic_load(&guest->turn) != turn) syscall(SYS_futex, &guest->turn, FUTEX_WAIT_PRIVATE, !turn, 0);
}
static void give(struct guest *guest, unsigned to) {
  atomic_store(&guest->turn, to);
  syscall(SYS_futex, &guest->turn, FUTEX_WAKE_PRIVATE, 1);
}
static void *server(void *argument) {
  struct guest *guest = argument;
  for (bool goes_on = true; goes_on; give(guest, GUESTS)) {
    wait_for(guest, SERVERS);
    goes_on = serve(guest);
    if (!goes_on) exit(fflush(stdout));
  }
  return 0;
}

/* @param rings, rung eventfds, or -1. @param said gets a byte at the first thing the guest prints, or -1. */
static int run_vm(const char *image, int rings, int rung, int said, bool is_threaded) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) err(1, "/dev/kvm");
  int vm = call(kvm, KVM_CREATE_VM, 0, "KVM_CREATE_VM");
  unsigned long identity = 0xfeffc000;
  call(vm, KVM_SET_IDENTITY_MAP_ADDR, (unsigned long)&identity, "KVM_SET_IDENTITY_MAP_ADDR");
  call(vm, KVM_SET_TSS_ADDR, 0xfeffd000, "KVM_SET_TSS_ADDR");
  call(vm, KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP");
  unsigned char *memory = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (unsigned long)memory};
  call(vm, KVM_SET_USER_MEMORY_REGION, (unsigned long)&region, "KVM_SET_USER_MEMORY_REGION");
  unsigned entry = load(image, memory);
  if (rings >= 0) connect(vm, rings, rung);

  int vcpu = call(vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
  int runBytes = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE");
  struct kvm_run *run = mmap(0, runBytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct kvm_sregs sregs;
  call(vcpu, KVM_GET_SREGS, (unsigned long)&sregs, "KVM_GET_SREGS");
  struct kvm_segment code = {.limit = ~0u, .selector = 16, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};
  struct kvm_segment data = code;
  data.type = 3;
  data.selector = 24;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.cr0 = 0x31;
  call(vcpu, KVM_SET_SREGS, (unsigned long)&sregs, "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = entry, .rflags = 2, .rax = 0x2badb002};
  call(vcpu, KVM_SET_REGS, (unsigned long)&regs, "KVM_SET_REGS");

  static struct guest guest;
  guest = (struct guest){.vcpu = vcpu, .run = run, .said = said};
  pthread_t thread;
  if (is_threaded && pthread_create(&thread, 0, server, &guest) != 0) errx(1, "no thread");
  do {
    enter(&guest);
    if (!is_threaded) continue;
    give(&guest, SERVERS);
    wait_for(&guest, GUESTS);
  } while (is_threaded || serve(&guest));
  return fflush(stdout);
}

int main(int argc, char **argv) {
  if (argc == 2) return run_vm(argv[1], -1, -1, -1, false);
  if (argc == 3 && strcmp(argv[1], "-t") == 0) return run_vm(argv[2], -1, -1, -1, true);
  if (argc != 3) errx(2, "vmm [-t] ELF, or vmm ELF ELF");
  int bells[2] = {eventfd(0, 0), eventfd(0, 0)}, said[2], status;
  if (pipe(said) != 0) err(1, "pipe");
  pid_t first = fork();
  if (first == 0) _exit(run_vm(argv[1], bells[0], bells[1], said[1], false));
  close(said[1]);
  char byte;
  if (first < 0 || read(said[0], &byte, 1) != 1) errx(1, "the first VM did not start");
  run_vm(argv[2], bells[1], bells[0], -1, false);
  return waitpid(first, &status, 0) == first ? status : 1;
}
