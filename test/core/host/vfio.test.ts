/** Numbers, sizes and offsets of VFIO's interface against the C compiler with the system's <linux/vfio.h>. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import * as vfio from '../../../devicemodel/core/host/vfio-abi.ts';

const hasCompiler = spawnSync('gcc', ['--version']).status === 0 && existsSync('/usr/include/linux/vfio.h');

/** Values by the C expression that has to give the same. */
function expected(): Map<string, number> {
  const values = new Map<string, number>();
  for (const [name, value] of Object.entries(vfio.VfioIoctl)) values.set(`VFIO_${name}`, value);
  const structs = {
    vfio_group_status: [vfio.VfioGroupStatus, { flags: 'flags' }],
    vfio_region_info: [
      vfio.VfioRegionInfo,
      { flags: 'flags', index: 'index', capOffset: 'cap_offset', sizeBytes: 'size', offset: 'offset' },
    ],
    vfio_info_cap_header: [vfio.VfioCapHeader, { id: 'id', next: 'next' }],
    vfio_region_sparse_mmap_area: [vfio.VfioSparseArea, { offset: 'offset', sizeBytes: 'size' }],
    vfio_pci_dependent_device: [
      vfio.VfioDependentDevice,
      { groupId: 'group_id', segment: 'segment', bus: 'bus', devfn: 'devfn' },
    ],
    vfio_iommu_type1_dma_map: [vfio.VfioDmaMap, { flags: 'flags', vaddr: 'vaddr', iova: 'iova', sizeBytes: 'size' }],
    vfio_iommu_type1_dma_unmap: [vfio.VfioDmaUnmap, { flags: 'flags', iova: 'iova', sizeBytes: 'size' }],
  } as const;
  for (const [name, [layout, fields]] of Object.entries(structs)) {
    values.set(`sizeof(struct ${name})`, layout.size);
    for (const [ours, theirs] of Object.entries(fields)) {
      values.set(`offsetof(struct ${name}, ${theirs})`, (layout.offsets as Record<string, number>)[ours] as number);
    }
  }
  return values
    .set('offsetof(struct vfio_device_info, flags)', vfio.VfioDeviceInfo.offsets.flags)
    .set('offsetof(struct vfio_region_info_cap_sparse_mmap, nr_areas)', vfio.VfioSparseMmap.offsets.areaCount)
    .set('offsetof(struct vfio_region_info_cap_sparse_mmap, areas)', vfio.VfioSparseMmap.size)
    .set('offsetof(struct vfio_irq_set, index)', vfio.VfioIrqSet.offsets.index)
    .set('offsetof(struct vfio_irq_set, data)', vfio.VfioIrqSet.size)
    .set('offsetof(struct vfio_pci_hot_reset_info, count)', vfio.VfioHotResetInfo.offsets.count)
    .set('offsetof(struct vfio_pci_hot_reset_info, devices)', vfio.VfioHotResetInfo.size)
    .set('offsetof(struct vfio_pci_hot_reset, group_fds)', vfio.VfioHotReset.size)
    .set('VFIO_API_VERSION', vfio.VFIO_API_VERSION)
    .set('VFIO_TYPE1v2_IOMMU', vfio.VFIO_TYPE1V2_IOMMU)
    .set('VFIO_GROUP_FLAGS_VIABLE', vfio.GroupFlag.viable)
    .set('VFIO_DEVICE_FLAGS_RESET', vfio.DeviceFlag.reset)
    .set('VFIO_REGION_INFO_FLAG_MMAP', vfio.RegionFlag.mmap)
    .set('VFIO_REGION_INFO_FLAG_CAPS', vfio.RegionFlag.caps)
    .set('VFIO_REGION_INFO_CAP_SPARSE_MMAP', vfio.RegionCap.sparseMmap)
    .set('VFIO_IRQ_SET_DATA_NONE', vfio.IrqSetFlag.none)
    .set('VFIO_IRQ_SET_DATA_EVENTFD', vfio.IrqSetFlag.eventfd)
    .set('VFIO_IRQ_SET_ACTION_UNMASK', vfio.IrqSetFlag.unmask)
    .set('VFIO_IRQ_SET_ACTION_TRIGGER', vfio.IrqSetFlag.trigger)
    .set('VFIO_DMA_MAP_FLAG_READ', vfio.DmaFlag.read)
    .set('VFIO_DMA_MAP_FLAG_WRITE', vfio.DmaFlag.write)
    .set('VFIO_PCI_CONFIG_REGION_INDEX', vfio.VfioRegionIndex.config)
    .set('VFIO_PCI_INTX_IRQ_INDEX', vfio.VfioIrqIndex.intx)
    .set('VFIO_PCI_MSI_IRQ_INDEX', vfio.VfioIrqIndex.msi)
    .set('VFIO_PCI_MSIX_IRQ_INDEX', vfio.VfioIrqIndex.msix);
}

test.skipIf(!hasCompiler)('numbers, sizes and offsets are those of <linux/vfio.h>', () => {
  const values = expected();
  const lines = [...values.keys()].map((name) => `  printf("%llu\\n", (unsigned long long)(${name}));`);
  const directory = mkdtempSync(join(tmpdir(), 'vfio-abi-'));
  try {
    const source = join(directory, 'abi.c');
    const includes = ['linux/vfio.h', 'stddef.h', 'stdio.h'].map((name) => `#include <${name}>`);
    writeFileSync(source, [...includes, 'int main(void) {', ...lines, '}'].join('\n'));
    execFileSync('gcc', ['-o', join(directory, 'abi'), source]);
    const answers = execFileSync(join(directory, 'abi'), { encoding: 'utf8' }).trim().split('\n').map(Number);
    expect(Object.fromEntries(values)).toEqual(Object.fromEntries([...values.keys()].map((n, i) => [n, answers[i]])));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
