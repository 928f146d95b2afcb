/** PCI configuration space: bytes, write masks and capability lists. (Implementation in progress.) */
export class ConfigSpace {}
