/** Groups of users by name. */
import koffi from 'koffi';
import { native } from './libc.ts';

/** struct group, x86-64: char *name, char *password, u32 gid. */
const GID_OFFSET = 16;
const MAX_GROUP_ID = 0xffff_fffe;

/** @param name or a number. @returns undefined when there is no such group. */
export function groupId(name: string): number | undefined {
  if (/^\d+$/.test(name)) return Number(name) <= MAX_GROUP_ID ? Number(name) : undefined;
  if (name === '' || name.includes('\0')) return undefined;
  const group: unknown = (native('void *getgrnam(const char *)') as (name: string) => unknown)(name);
  return group === null ? undefined : (koffi.decode(group, GID_OFFSET, 'uint32_t') as number);
}

/** @returns undefined for a number without a name. */
export function groupName(id: number): string | undefined {
  const group: unknown = (native('void *getgrgid(unsigned int)') as (id: number) => unknown)(id);
  return group === null ? undefined : (koffi.decode(group, 0, 'const char *') as string);
}
